"""The listener's half of the protocol: datagrams in; sequences checked, books kept, every gap named.

In:   one datagram, the time it came, the line it came by.   Out: Heard, one by one, each while its book is as of it.
Hot:  Receiver.sort and what it calls for a packet that is next; 20,000 datagrams a second are its aim.

    line 0 ──┐ path                          ┌▶ Stream (channel, session): Reorder, then each message in sequence
    line 1 ──┼──────▶ sort: whose, and where ┼▶ Stream                       └▶ View (instrument): book, state
    resent ──┘        by header alone        └▶ duplicate, late, straggler, not ours: counted
    loop   ──────────────────────────────────▶ a view's book, at the place in the stream where it is valid

A *stream* is one numbered run, a *line* one way by which packets come; any number of lines carry a stream. A line that
shows a greater session has moved to another stream; one that was left by all its lines is over. What is missing is
waited for, and declared, as reorder.py says. The first packet of a stream sets the number expected; where its line
carried another session before, we were listening, and it is 1. When a book is LIVE is told in view.py.

A book of the snapshot loop holds at S, between two messages. A view out of step keeps its INCREMENTs, so a book that
comes when the stream is at S or beyond is taken, and what followed S is put on top. That is right if since S nothing
was lost (`since`), and no message told another state or edition, or was dropped (`usable_from`).

Not here: sockets, clocks, asking again, choosing among streams, text for people. Everything kept has a bound, named
below.
"""

import re
from collections import deque, namedtuple

from feeder.counter import Histogram
from feeder.errors import PacketError
from feeder.message import LIVE
from feeder.packet import (ALL_INSTRUMENTS, EDITION_SHIFT, END as LAST_PACKET, FIRST, LAST, MAGIC, MESSAGE, PACKET,
                           REFRESH, RETRANSMITTED, SIGNED, SNAPSHOT, SNAPSHOTS, TYPE_NAMES, VERSION, Bbo, Book,
                           Definition, Packet, Padding, Round, Status, Trade, decode)
from feeder.reorder import BEYOND, DUPLICATE, LATE, OVERLAP, Reorder
from feeder.stream import ARRIVALS, Line, Path, Session, Stream
from feeder.view import MAX_LEVELS, OUT_OF_STEP, Pending, View, side_views

MAX_STREAMS = 256
MAX_LINES = 64
MAX_INSTRUMENTS = 16_384          # a stream
MAX_GAPS = 1_000                  # newest kept for the report; all are counted
MAX_SESSIONS = 100
MAX_VENUES = 256
MAX_REASONS = 64                  # kinds of error told apart
MAX_WANTED = 64                   # ranges that wanted() names
KEEP = 512                        # INCREMENTs that a view out of step keeps
MAX_AHEAD = 4_096                 # messages of the loop that wait for a stream to reach them
MAX_KEPT_NUMBERS = 1 << 20        # in all that is kept for the loop; 40 MB
SILENCE_NS = 3_000_000_000        # a publisher sends heartbeats at least once a second

# Kinds of Heard. `message` is, unless it says otherwise, the packet.py message; `sequence` that of its last part.
BOOK = 1               # a whole event, applied, in step: a Book with all its levels. One of the loop: type SNAPSHOT
                       # with REFRESH, and `sequence` is the next number, since all below it is in the book
TRADE, BBO = 2, 3
STATE = 4              # what may be shown of the view changed: its Status, or the message that put the book out of step
DEFINITION = 5         # new or changed
VENUE = 6              # Status of a whole venue
GAP = 7                # declared lost: a Gap; all books of the stream are out of step
SESSION = 8            # a stream opened: its Session; `sequence` is the first expected
END = 9                # a stream is over, by its last packet or because all its lines went to others: its Session
SILENT, HEARD_AGAIN = 10, 11              # nothing came for silence_ns, all its books are out of sight: its Session
LINE_SILENT, LINE_BACK = 12, 13           # its Line; no stream
KINDS = ("", "book", "trade", "bbo", "state", "definition", "venue", "gap", "session", "end", "silent", "heard_again",
         "line_silent", "line_back")

Heard = namedtuple("Heard", "kind stream sequence view message")
Gap = namedtuple("Gap", "channel session first last at_ns")
Kept = namedtuple("Kept", "first last message")
Unknown = namedtuple("Unknown", "instrument_id type")            # a message of a type that this version does not know

unpack_header = PACKET.unpack_from
numbers_in = re.compile(r"-?(0x[0-9a-f]+|\d+)")


class Receiver:
    """What was heard on any lines; `heard` or `receive` is fed, `tick` told the time, the rest is read.

    Times are the wall clock's, as in the packets. Args: silence_ns; hold_ns, how long to wait for what is missing;
    alone_ns, the same for a stream that one line alone carries, where that is another time; seal (seal.py), with which
    packets must verify; keep, how many INCREMENTs a view out of step keeps for a book of the loop.
    """

    def __init__(self, silence_ns=SILENCE_NS, hold_ns=0, alone_ns=None, seal=None, keep=KEEP):
        self.silence_ns = silence_ns
        self.hold_ns = hold_ns
        self.alone_ns = hold_ns if alone_ns is None else alone_ns
        self.seal = seal
        self.keep = keep
        self.streams = {}              # (channel, session) -> Stream
        self.closed = {}               # key -> number expected, of streams that were dropped: one may go on after all
        self.lines = {}                # line -> Line
        self.waiting = set()           # streams with a gap that is not declared yet
        self.packets = 0               # of the sequence, that were whole, whatever became of them
        self.bytes = 0
        self.heartbeats = 0
        self.messages = 0              # in sequence or late; not duplicates
        self.by_type = dict.fromkeys(TYPE_NAMES.values(), 0)
        self.unknown_messages = 0      # of a type this version does not know
        self.gaps = deque(maxlen=MAX_GAPS)
        self.gap_count = 0
        self.missed = 0                # messages in gaps, at the moment the gap was declared
        self.late = 0                  # of those, the ones that came after all
        self.late_packets = 0
        self.duplicates = 0            # packets
        self.resent = 0                # packets that came because somebody asked
        self.stragglers = 0            # packets of an older session
        self.silences = 0              # times that a stream stopped without END
        self.mismatches = 0            # refreshes that differ from the book kept without loss: must be 0
        self.last_mismatch = ""
        self.crossed = 0
        self.undefined = 0             # messages of instruments whose definition has not come yet
        self.ignored = 0               # book messages of no use when they came: before a snapshot, or cut parts
        self.loop_packets = 0          # of the snapshot loop, these and below
        self.loop_lost = 0
        self.loop_unused = 0           # packets: seen before, or of a session that is not heard in sequence
        self.rounds = 0
        self.taken_from_loop = 0       # books
        self.errors = {}               # reason -> count; numbers in reasons are written as N
        self.sessions = deque(maxlen=MAX_SESSIONS)
        self.session_count = 0
        self.venues = {}               # name -> its newest Status
        self.send_latency = Histogram()      # send -> receive, a packet
        self.venue_latency = Histogram()     # the feeder's receive from the venue -> receive, a message
        self.stream = None             # of the packet that sort() returned
        self.whole = None              # the Book of an event that was split, where a handler told BOOK
        self.was_in_step = False       # the view, before the message in work was noted
        self.kept_numbers = 0
        self.handlers = {Definition: self.on_definition, Book: self.on_book, Trade: self.on_trade, Bbo: self.on_bbo,
                         Status: self.on_status, Padding: self.on_padding, Round: self.on_padding,
                         Unknown: self.on_unknown}

    @property
    def lost(self):
        """Messages that never came."""
        return self.missed - self.late

    # -- feeding ---------------------------------------------------------------------------------------------

    def receive(self, datagram, now_ns, line=0):
        """Take all of one datagram; return its Packet, or None where it brought nothing new, or has to wait."""
        found = self.sort(datagram, now_ns, line)
        if type(found) is not Packet:
            return None if found is None else exhaust(found)
        stream, handlers, sequence = self.stream, self.handlers, found.sequence
        self.messages += found.message_count
        stream.session.messages += found.message_count
        for message in found.messages:
            handlers[type(message)](stream, message, sequence, now_ns)
            sequence += 1
        if stream.ahead:
            exhaust(self.take_ahead(stream))
        return found

    def heard(self, datagram, now_ns, line=0):
        """Yield Heard while a datagram is applied, message by message. It must stay as it is, and all must be taken.

        Args: line, by which it came, any number; None for what was sent again.
        """
        found = self.sort(datagram, now_ns, line)
        if found is None:
            return
        yield from self.apply(self.stream, found, now_ns) if type(found) is Packet else found

    def tick(self, now_ns):
        """Yield Heard that time brings: what was waited for too long, silence. All must be taken; call it at least once
        a second, and at deadline_ns.
        """
        silence_ns = self.silence_ns
        for stream in list(self.streams.values()):
            if stream.order.waits:
                yield from self.run(stream, now_ns)
            stream.heard_ns = min(stream.heard_ns, now_ns)       # the clock was set back
            if now_ns - stream.heard_ns > silence_ns and not stream.silent and not stream.session.ended:
                stream.silent = True
                self.silences += 1
                for path in stream.paths:
                    path.quiet = True
                yield Heard(SILENT, stream, stream.order.expected, None, stream.session)
            if stream.silent and self.is_replaced(stream) or stream.is_left and all(
                    now_ns - path.heard_ns > silence_ns for path in stream.paths):
                yield from self.close(stream, now_ns)
        for line in self.lines.values():
            for path in line.paths.values():
                path.heard_ns = min(path.heard_ns, now_ns)
            if not line.silent and line.is_quiet(now_ns, silence_ns):
                line.silent = True
                for path in line.paths.values():
                    path.quiet = True
                yield Heard(LINE_SILENT, None, 0, None, line)

    @property
    def deadline_ns(self):
        """When tick() has something to do for packets that are held back, or None."""
        return min(stream.order.deadline_ns for stream in self.waiting) if self.waiting else None

    def wanted(self, now_ns):
        """Return [(channel, session, first, last), ...]: what is missing and still waited for, oldest first."""
        if not self.waiting:
            return []
        found = sorted((since_ns, *stream.key, first, last) for stream in self.waiting
                       for first, last, since_ns in stream.order.wanted(now_ns))
        return [wanted[1:] for wanted in found[:MAX_WANTED]]

    def give_up(self, channel, session, first, last, now_ns):
        """Yield Heard: nobody can send first..last again, do not wait for what is missing of it. All must be taken."""
        stream = self.streams.get((channel, session))
        if stream is not None:
            stream.order.give_up(first, last)
            yield from self.run(stream, now_ns)

    # -- packets ---------------------------------------------------------------------------------------------

    def sort(self, datagram, now_ns, line):
        """Return a Packet that is next in `self.stream`, to be applied; None, if all is done; or a generator of Heard,
        to be exhausted, that returns what receive() does.
        """
        size = len(datagram)
        self.bytes += size
        if size < PACKET.size:
            return self.refuse(datagram)
        magic, version, flags, channel, session, sequence, send_ns, count, packet_bytes, _ = unpack_header(datagram)
        if magic != MAGIC or version != VERSION or packet_bytes != size:
            return self.refuse(datagram)
        if self.seal is not None:
            if not flags & SIGNED:
                return self.error("packet is not signed")
            if not self.seal.verify(datagram):
                return self.error("signature does not verify")
        if flags & (SNAPSHOTS | RETRANSMITTED):
            if flags & SNAPSHOTS:
                return self.on_loop(datagram, now_ns)
            line = None                              # whoever sends again: that is not the line living
        known = self.lines.get(line)
        path = known.paths.get(channel) if known is not None else None
        if path is not None and path.session == session and not path.quiet:
            order = path.stream.order
            if sequence == order.expected == path.next and count and not order.waits:
                try:
                    packet = decode(datagram)
                except PacketError as error:
                    return self.error(str(error))
                self.packets += 1
                stream = self.stream = path.stream
                order.expected = path.next = sequence + count
                path.wins += 1
                path.heard_ns = stream.heard_ns = now_ns
                self.send_latency.add(now_ns - send_ns)
                if stream.arrivals is not None:
                    stream.arrivals[sequence % ARRIVALS] = sequence, now_ns
                return packet if len(packet.messages) == count else with_unknown(packet, datagram)
            if count and order.place(sequence, count) == DUPLICATE:
                self.packets += 1
                return self.on_duplicate(path, sequence, count, now_ns)
        return self.on_unlikely(datagram, line, path, now_ns)

    def refuse(self, datagram):
        try:
            decode(datagram)
        except PacketError as error:
            return self.error(str(error))

    def on_duplicate(self, path, first, count, now_ns):
        """A packet that another line, or this one, has brought already."""
        self.duplicates += 1
        if path is None:
            return
        path.heard_ns = path.stream.heard_ns = now_ns
        path.duplicates += 1
        arrivals = path.stream.arrivals
        if path.arrived(first, count) and arrivals is not None:
            known, came_ns = arrivals[first % ARRIVALS]
            if known == first:
                path.line.lag.add(now_ns - came_ns)

    def on_unlikely(self, datagram, line, path, now_ns):
        """Take a packet that is not plainly the next; a generator of Heard that returns it if it is new and applied."""
        try:
            packet = with_unknown(decode(datagram), datagram)
        except PacketError as error:
            return self.error(str(error))
        self.packets += 1
        if line is None:
            self.resent += 1
            stream = self.streams.get((packet.channel, packet.session))
            if stream is None:
                self.stragglers += 1
                return None
        else:
            if path is None or path.session != packet.session or path.stream is None:
                path = yield from self.move(line, path, packet, now_ns)
                if path is None:
                    return None
            stream = path.stream
            path.heard_ns = stream.heard_ns = now_ns
            path.quiet = stream.silent
            if path.line.silent:
                path.line.silent = False
                yield Heard(LINE_BACK, None, 0, None, path.line)
        order = stream.order
        if packet.sequence < order.expected == stream.session.first < packet.sequence + packet.message_count:
            if path is not None and path.next == packet.sequence:
                path.next = order.expected
            packet = rest(packet, order.expected)    # we joined by the loop, while this packet was being filled
        first, count = packet.sequence, packet.message_count
        place = order.place(first, count)
        if count and place == DUPLICATE:
            return self.on_duplicate(path, first, count, now_ns)
        if path is not None:
            path.arrived(first, count)
        if count and place == OVERLAP:
            return self.error("packet overlaps the one before it")      # not applied, so the next one shows a gap
        if count and place == LATE:
            return (yield from self.take_late(stream, path, packet))
        is_newest = first >= (order.edge if order.waits else order.expected)
        if path is not None:
            if count:
                path.wins += 1
                if stream.arrivals is not None:
                    stream.arrivals[first % ARRIVALS] = first, now_ns
            else:
                path.heartbeats += 1
            if is_newest:
                self.send_latency.add(now_ns - packet.send_ns)
        if not count:
            if not is_newest:
                return None
            self.heartbeats += 1
            if packet.flags & LAST_PACKET:
                stream.end_at = first
        order.hold_ns = self.hold_of(stream, now_ns)
        order.put(packet, len(datagram), now_ns)
        yield from self.run(stream, now_ns)
        if path is not None:
            path.quiet = stream.silent
        return None if first in order.held else packet

    def hold_of(self, stream, now_ns):
        """Return how long to wait for what is missing of a stream; of a new one nobody knows yet who carries it."""
        is_new = now_ns - stream.session.since_ns <= self.silence_ns
        return self.hold_ns if is_new or sum(not path.line.silent for path in stream.paths) > 1 else self.alone_ns

    def run(self, stream, now_ns):
        """Yield Heard while all that is in order now is applied, or declared lost."""
        order = stream.order
        for step in order.release(now_ns):
            if type(step) is Packet:
                if stream.silent and self.is_back(stream, now_ns):
                    yield Heard(HEARD_AGAIN, stream, step.sequence, None, stream.session)
                yield from self.apply(stream, step, now_ns)
            else:
                yield self.open_gap(stream, *step, now_ns)
        if order.waits:
            self.waiting.add(stream)
            return
        self.waiting.discard(stream)
        if stream.silent and self.is_back(stream, now_ns):     # not before a gap is declared: it is not live then
            yield Heard(HEARD_AGAIN, stream, order.expected, None, stream.session)
        if stream.ahead:
            yield from self.take_ahead(stream)
        if stream.end_at is not None and not stream.session.ended:
            stream.session.ended = True
            yield Heard(END, stream, order.expected, None, stream.session)

    def is_back(self, stream, now_ns):
        """Lift a stream's silence if something new came; return True if so."""
        if now_ns - stream.heard_ns > self.silence_ns:
            return False
        stream.silent = False
        return True

    def apply(self, stream, packet, now_ns):
        """Apply the messages of a packet; yield what each of them brought."""
        handlers, views, sequence = self.handlers, stream.views, packet.sequence
        self.messages += packet.message_count
        stream.session.messages += packet.message_count
        self.whole = None
        for message in packet.messages:
            kind = handlers[type(message)](stream, message, sequence, now_ns)
            if kind is not None:
                if self.whole is not None:
                    message, self.whole = self.whole, None
                yield Heard(kind, stream, sequence, views.get(message.instrument_id), message)
            sequence += 1
        if stream.ahead:
            yield from self.take_ahead(stream)

    def open_gap(self, stream, first, last, now_ns):
        gap = Gap(*stream.key, first, last, now_ns)
        self.gaps.append(gap)
        self.gap_count += 1
        self.missed += last - first + 1
        stream.session.missed += last - first + 1
        stream.era += 1
        stream.since = last + 1
        for view in stream.keepers:
            self.forget(view)
        stream.keepers.clear()
        return Heard(GAP, stream, first, None, gap)

    def take_late(self, stream, path, packet):
        """A packet of what was declared lost: never applied to a book."""
        missing = stream.order.missing
        first, last = packet.sequence, packet.sequence + packet.message_count - 1
        filled = missing.fill(first, last)
        self.late += filled
        self.late_packets += 1
        self.messages += filled
        stream.session.messages += filled
        stream.session.late += filled
        if path is not None:
            path.wins += 1
        for sequence, message in enumerate(packet.messages, first):
            view = stream.views.get(message.instrument_id)
            if type(message) is Definition:
                if view is None or view.definition is None and view.edition == message.edition:
                    if self.on_definition(stream, message, sequence, 0) is not None:
                        yield Heard(DEFINITION, stream, sequence, stream.views[message.instrument_id], message)
            elif type(message) is Trade and view is not None:
                self.by_type["trade"] += 1
                view.trades += 1
        return packet

    def error(self, reason):
        """Count a fault of the sender; returns None for the caller to return."""
        reason = numbers_in.sub("N", reason)
        if reason not in self.errors and len(self.errors) >= MAX_REASONS:
            reason = "other"
        self.errors[reason] = self.errors.get(reason, 0) + 1

    # -- sessions --------------------------------------------------------------------------------------------

    def move(self, line, path, packet, now_ns):
        """Bring a line to the stream of its packet; yield Heard, return its Path, or None if the packet does not count.
        """
        number, session = packet.channel, packet.session
        if path is not None and session < path.session and (
                self.seal is not None or path.stream is not None and not path.stream.session.ended
                and now_ns - path.heard_ns <= self.silence_ns):
            self.stragglers += 1
            return None
        stream = self.streams.get((number, session))
        if stream is None and not (yield from self.make_room(now_ns)):
            return self.error(f"more than {MAX_STREAMS} streams")
        if path is None:
            if line not in self.lines:
                if len(self.lines) >= MAX_LINES:
                    return self.error(f"more than {MAX_LINES} lines")
                self.lines[line] = Line(line)
            path = self.lines[line].paths[number] = Path(self.lines[line])
            expected = packet.sequence
        else:
            expected = packet.sequence if session == path.session else 1
            old = path.stream
            if old is not None:
                old.is_left = True
                old.paths.remove(path)
                path.stream = None
                if not old.paths:
                    yield from self.close(old, now_ns)
        if stream is None:
            stream = self.open(number, session, expected, now_ns)
            yield Heard(SESSION, stream, stream.expected, None, stream.session)
        path.take(stream, max(expected, stream.session.first))
        return path

    def open(self, channel, number, expected, now_ns):
        expected = self.closed.pop((channel, number), expected)
        session = Session(channel, number, expected, now_ns)
        self.sessions.append(session)
        self.session_count += 1
        stream = self.streams[channel, number] = Stream(session, Reorder(expected, self.hold_ns), now_ns)
        return stream

    def is_replaced(self, stream):
        """True if only the loop told of a stream, and lines brought another one of its channel."""
        return not stream.paths and any(other.channel == stream.channel and other.paths
                                        for other in self.streams.values())

    def make_room(self, now_ns):
        """See to it that one more stream may be opened; yields Heard, returns False where it may not."""
        if len(self.streams) >= MAX_STREAMS:
            dead = [stream for stream in self.streams.values() if stream.silent or stream.session.ended]
            if not dead:
                return False
            yield from self.close(dead[0], now_ns)
        return True

    def close(self, stream, now_ns):
        """Drop a stream: what is held goes out, what is missing is declared; yields Heard."""
        stream.order.give_up(0, BEYOND)
        yield from self.run(stream, now_ns)
        del self.streams[stream.key]
        self.closed[stream.key] = stream.expected
        if len(self.closed) > MAX_STREAMS:
            del self.closed[next(iter(self.closed))]
        stream.is_over = True
        for path in stream.paths:
            path.stream = None
            path.quiet = True
        stream.paths.clear()
        for view in stream.keepers:
            self.forget(view)
        while stream.ahead:
            self.kept_numbers -= weight(stream.ahead.popleft()[2])
        if not stream.session.ended:
            yield Heard(END, stream, stream.order.expected, None, stream.session)

    # -- messages: handlers return the kind of Heard, or None --------------------------------------------------

    def view(self, stream, instrument_id):
        """Return the instrument's view, made now where it is new; None where there are too many."""
        view = stream.views.get(instrument_id)
        if view is None:
            if len(stream.views) >= MAX_INSTRUMENTS:
                return self.error(f"more than {MAX_INSTRUMENTS} instruments in a stream")
            view = stream.views[instrument_id] = View(stream, instrument_id)
        return view

    def note(self, stream, message, edition, sequence):
        """Return the message's view, its state noted; None where there is no room for it."""
        view = stream.views.get(message.instrument_id) or self.view(stream, message.instrument_id)
        if view is not None:
            self.was_in_step = view.era == stream.era
            if view.edition != edition:
                self.undefine(view, edition, sequence)
            if view.definition is None:
                self.undefined += 1
            view.note(message.state, message.epoch, sequence)
        return view

    def undefine(self, view, edition, at):
        """From message number `at` on the numbers are of another definition, which is not known yet."""
        view.edition = edition
        view.definition = view.last_trade = view.bbo = None
        view.clear()
        view.leave_step(at)
        self.forget(view, at)

    def on_definition(self, stream, definition, sequence, now_ns):
        self.by_type["definition"] += 1
        view = self.view(stream, definition.instrument_id)
        return self.define(view, definition, sequence + 1) if view is not None else None

    def define(self, view, definition, at):
        """Take a definition that holds before message number `at`."""
        if view.definition == definition:
            return None
        if view.edition != definition.edition:
            self.undefine(view, definition.edition, at)
        view.defined_at = at
        if view.define(definition):
            view.leave_step(at)
            self.forget(view, at)
        return DEFINITION

    def on_book(self, stream, message, sequence, now_ns):
        is_snapshot = message.type == SNAPSHOT
        self.by_type["snapshot" if is_snapshot else "increment"] += 1
        view = self.note(stream, message, message.flags >> EDITION_SHIFT, sequence)
        if view is None:
            return None
        if not is_snapshot and message.recv_ns:       # a snapshot's may be an old time
            self.venue_latency.add(now_ns - message.recv_ns)
        in_step = view.era == stream.era
        if view.definition is None if is_snapshot else not in_step:
            self.ignored += 1                         # without a definition nobody knows what the numbers mean
            if is_snapshot:
                return view.leave_step(sequence + 1)
        flags = message.flags
        first = sequence
        pending = view.pending
        begins = flags & FIRST if is_snapshot else pending is None or pending.era != stream.era
        if not begins or not flags & LAST:
            if begins:
                pending = view.pending = Pending(message, stream.era, sequence)
            if pending is None or not pending.add(message, stream.era):
                view.pending = None                   # its beginning was lost, or it is too long
                view.leave_step(sequence + 1)
                self.ignored += in_step or is_snapshot
                return STATE if in_step else None
            if not flags & LAST:
                return STATE if self.was_in_step and not in_step else None      # the rest may be long in coming
            first = pending.first
            message = pending.whole(message)
        view.pending = None
        if is_snapshot:
            kind = self.on_snapshot(stream, view, message, sequence)
        elif in_step:
            view.bids.change(message.bids)
            view.asks.change(message.asks)
            kind = self.after_event(view, message, sequence)
        else:
            return self.keep_increment(view, first, sequence, message)
        if kind is not None and first != sequence:
            self.whole = message
        return kind

    def on_snapshot(self, stream, view, message, sequence):
        if message.flags & REFRESH:
            view.refreshes += 1
        sides = side_views(message)
        if message.flags & REFRESH and view.era == stream.era and self.is_same(view, message, *sides):
            view.last_venue_sequence = message.venue_sequence         # events below the window are not sent
            return None
        self.forget(view)
        view.bids, view.asks = sides
        view.has_book = True
        view.era = stream.era if message.state == LIVE else OUT_OF_STEP
        return self.after_event(view, message, sequence)

    def is_same(self, view, message, bids, asks):
        """Compare a book that is repeated with the one that was kept; they must not differ."""
        if view.bids == bids and view.asks == asks and view.epoch == message.epoch:
            return True
        self.mismatch(view, f"at venue sequence {message.venue_sequence}")

    def mismatch(self, view, what):
        self.mismatches += 1
        self.last_mismatch = f"channel {view.stream.channel} {view.label} {what}"

    def after_event(self, view, message, sequence):
        if not message.flags & REFRESH:
            view.events += 1
        view.last_venue_sequence = message.venue_sequence
        bids, asks = view.bids.keys, view.asks.keys
        if bids and asks and -bids[0] > asks[0] and view.sent_state == LIVE:
            self.crossed += 1
            view.crossed += 1
        if len(bids) > MAX_LEVELS or len(asks) > MAX_LEVELS:
            self.error(f"more than {MAX_LEVELS} levels on a side")
            view.clear()
            view.leave_step(sequence + 1)
            return STATE
        return BOOK if view.era == view.stream.era else None

    def on_trade(self, stream, message, sequence, now_ns):
        self.by_type["trade"] += 1
        view = self.note(stream, message, message.edition, sequence)
        if view is None:
            return None
        if message.recv_ns:
            self.venue_latency.add(now_ns - message.recv_ns)
        view.trades += 1
        view.last_trade = message.item
        return TRADE

    def on_bbo(self, stream, message, sequence, now_ns):
        self.by_type["bbo"] += 1
        view = self.note(stream, message, message.edition, sequence)
        if view is None:
            return None
        if message.recv_ns:
            self.venue_latency.add(now_ns - message.recv_ns)
        view.bbos += 1
        view.bbo = message
        return BBO

    def on_status(self, stream, message, sequence, now_ns):
        self.by_type["status"] += 1
        if message.instrument_id == ALL_INSTRUMENTS:
            if message.venue in self.venues or len(self.venues) < MAX_VENUES:
                self.venues[message.venue] = message
            return VENUE
        view = self.view(stream, message.instrument_id)
        if view is None:
            return None
        before = view.sent_state, view.sent_reason, view.epoch
        self.note(stream, message, message.edition, sequence)
        view.sent_reason = message.reason
        return STATE if before != (view.sent_state, view.sent_reason, view.epoch) else None

    def on_padding(self, stream, message, sequence, now_ns):
        self.by_type["padding" if type(message) is Padding else "round"] += 1

    def on_unknown(self, stream, message, sequence, now_ns):
        self.unknown_messages += 1

    # -- the snapshot loop -----------------------------------------------------------------------------------

    def on_loop(self, datagram, now_ns):
        """Take a packet of the loop; a generator of Heard. It proves nothing about lines, and keeps nothing alive."""
        try:
            packet = decode(datagram)
        except PacketError as error:
            return self.error(str(error))
        self.loop_packets += 1
        key = packet.channel, packet.session
        stream = self.streams.get(key)
        if stream is None:
            # A session that replaces another begins with its first message in sequence, or what was lost before would
            # not be a gap: its heartbeat is here within a second.
            if any(channel == packet.channel for channel, _ in self.streams) or not (
                    yield from self.make_room(now_ns)):
                self.loop_unused += 1
                return None
            stream = self.open(*key, packet.sequence, now_ns)
            yield Heard(SESSION, stream, stream.expected, None, stream.session)
        told, parts = [], []
        for message in packet.messages:
            if type(message) is Book and not (message.flags & FIRST and message.flags & LAST):
                parts.append(message)
            else:
                told.append((packet.sequence, message))
        found = stream.loop.take(packet.loop, packet.sequence, parts)
        if found is None:
            self.loop_unused += 1                             # another line has brought it
            return None
        self.loop_lost += found[0]
        for at, message in told + found[1]:
            if type(message) is Round:
                self.rounds += 1
                stream.begin_round(message.number, now_ns)
                continue
            if type(message) not in (Definition, Book, Status) or message.instrument_id == ALL_INSTRUMENTS:
                continue
            view = self.view(stream, message.instrument_id)
            if view is None:
                continue
            if at <= stream.order.expected:
                heard = self.take_from_loop(view, at, message)
                if heard is not None:
                    yield heard
            elif stream.order.waits or not view.in_step:
                stream.ahead.append((at, view, message))
                self.kept_numbers += weight(message)
                while stream.ahead and (len(stream.ahead) > MAX_AHEAD or self.kept_numbers > MAX_KEPT_NUMBERS):
                    self.kept_numbers -= weight(stream.ahead.popleft()[2])

    def take_ahead(self, stream):
        """Yield Heard of what the loop told about the place where the stream is now."""
        ahead, order = stream.ahead, stream.order
        while ahead and ahead[0][0] <= order.expected:
            at, view, message = ahead.popleft()
            self.kept_numbers -= weight(message)
            heard = self.take_from_loop(view, at, message)
            if heard is not None:
                yield heard

    def take_from_loop(self, view, at, message):
        """Use what holds before message number `at`, at most the one expected; return Heard, or None."""
        stream = view.stream
        expected = stream.order.expected
        in_step = view.in_step
        if at < expected if in_step else at < max(stream.since, view.usable_from):
            return None
        if type(message) is Definition:
            kind = self.loop_definition(view, at, message, in_step)
        elif type(message) is Status:
            kind = self.loop_status(view, at, message, in_step)
        else:
            kind, message = self.loop_book(view, at, message, in_step)
        return Heard(kind, stream, expected, view, message) if kind is not None else None

    def loop_definition(self, view, at, message, in_step):
        if at < view.defined_at:
            return None
        if in_step and view.definition != message:
            self.mismatch(view, "in its definition")
        return self.define(view, message, at)

    def loop_status(self, view, at, message, in_step):
        if in_step:
            self.mismatch(view, f"is live, and {message.reason} in the loop")
        elif message.edition != view.edition:
            return None
        before = view.sent_state, view.sent_reason, view.epoch
        view.note(message.state, message.epoch, at - 1)
        view.sent_reason = message.reason
        self.forget(view, at)
        return STATE if before != (view.sent_state, view.sent_reason, view.epoch) else None

    def loop_book(self, view, at, message, in_step):
        if view.definition is None or message.flags >> EDITION_SHIFT != view.edition or message.state != LIVE:
            return None, message
        sides = side_views(message)
        if in_step:
            view.refreshes += 1
            if self.is_same(view, message, *sides):
                return None, message
        self.taken_from_loop += 1
        after = [kept.message for kept in view.kept if kept.first >= at]
        self.forget(view)
        for kept in after:
            sides[0].change(kept.bids)
            sides[1].change(kept.asks)
        view.events += len(after)
        view.bids, view.asks = sides
        view.has_book = True
        view.note(LIVE, message.epoch, at - 1)
        view.era = view.stream.era
        view.sent_reason = 0
        if view.pending is not None and view.pending.first < at:
            view.pending = None
        if after:
            message = after[-1]._replace(type=SNAPSHOT, flags=FIRST | LAST | REFRESH, bids=view.bids.flat(),
                                         asks=view.asks.flat())
        return self.after_event(view, message, view.stream.order.expected - 1), message

    def keep_increment(self, view, first, last, message):
        """Keep what a view out of step cannot use yet, and forget the oldest where there is too much."""
        kept = view.kept
        kept.append(Kept(first, last, message))
        view.stream.keepers.add(view)
        self.kept_numbers += weight(message)
        while kept and (len(kept) > self.keep or self.kept_numbers > MAX_KEPT_NUMBERS):
            view.usable_from = max(view.usable_from, kept[0].last + 1)
            self.forget(view, kept[0].first + 1)

    def forget(self, view, stop=BEYOND):
        """Drop what was kept of before message number `stop`."""
        kept = view.kept
        while kept and kept[0].first < stop:
            self.kept_numbers -= weight(kept.popleft().message)

    # -- reading ---------------------------------------------------------------------------------------------

    def views(self):
        """Return every instrument of every stream, by venue and symbol; those without a definition last."""
        found = [view for stream in self.streams.values() for view in stream.views.values()]
        return sorted(found, key=lambda view: (view.definition is None, view.venue, view.symbol, *view.stream.key,
                                               view.instrument_id))

    def find(self, text):
        """Return the views that `text` names: SYMBOL, the common name, or venue:SYMBOL; any case."""
        wanted = text.lower()
        return [view for view in self.views() if view.definition is not None
                and wanted in (view.symbol.lower(), view.definition.name.lower(), view.label.lower())]


def exhaust(generator):
    """Run a generator to its end; return what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def weight(message):
    """Return how many numbers a message keeps, about."""
    return 16 + (len(message.bids) + len(message.asks) if type(message) is Book else 0)


def with_unknown(packet, datagram):
    """Return the packet with an Unknown where decode() left a message out, so that each one's number is known."""
    if len(packet.messages) == packet.message_count:
        return packet
    messages, known, at = [], iter(packet.messages), PACKET.size
    for _ in range(packet.message_count):
        kind, length, instrument_id = MESSAGE.unpack_from(datagram, at)[:3]
        messages.append(next(known) if kind in TYPE_NAMES else Unknown(instrument_id, kind))
        at += length
    return packet._replace(messages=messages)


def rest(packet, first):
    """Return the packet without what is before message number `first`."""
    less = first - packet.sequence
    return packet._replace(sequence=first, message_count=packet.message_count - less, messages=packet.messages[less:])
