"""The listener's half of the protocol: datagrams in; sequences checked, books kept, every gap named.

In:   one datagram and the time it came.   Out: what arrived, what did not, and each instrument's book.
Hot:  Receiver.receive; 20,000 datagrams a second are its aim (no bench yet; tests/test_receiver.py has its answers).

Sequences number messages, so a packet covers sequence .. sequence + count - 1 of its channel. Against the
number expected next:

    equal     applied
    higher    a gap, expected .. sequence - 1; then applied
    lower     fills a known gap: late (reordered), never applied to a book; else a duplicate

The first packet after joining sets the number expected. A higher session replaces the present one, and its
messages are counted from 1, because we were listening; a lower one is a straggler of an old session, unless
the present one has ended or fallen silent (a publisher restarted behind a clock that was set back).

A book is *in step* when its snapshot came complete, the sender called it LIVE at this epoch, and nothing was
lost since; only then is it LIVE here. A gap moves the channel's `era` on, and every book of an older era is
out of step: no walk over the books. Parts of an event wait in `pending` until LAST; readers never see half.
Silence and the end of a session put a channel's books out of sight of LIVE, but not out of step.

Not here: sockets, clocks, text for people. Everything kept has a bound, named below.
"""

import re
from bisect import bisect_left
from collections import deque, namedtuple

from feeder.counter import Histogram
from feeder.errors import PacketError
from feeder.message import LIVE, REASONS, STALE, SYNCING
from feeder.packet import (ALL_INSTRUMENTS, END, FIRST, LAST, REFRESH, SNAPSHOT, TYPE_NAMES, Bbo, Book, Definition,
                           Padding, Status, Trade, decode)

MAX_CHANNELS = 256
MAX_INSTRUMENTS = 16_384          # a channel
MAX_LEVELS = 100_000              # a side, and an unfinished event
MAX_GAPS = 1_000                  # newest kept for the report; all are counted
MAX_MISSING = 1_000               # ranges a channel in which late packets are recognized
MAX_SESSIONS = 100
MAX_REASONS = 64                  # kinds of error told apart
SILENCE_NS = 3_000_000_000        # a publisher sends heartbeats at least once a second
OUT_OF_STEP = -1                  # an era that no channel is ever in

Gap = namedtuple("Gap", "channel session first last at_ns")

numbers_in = re.compile(r"-?(0x[0-9a-f]+|\d+)")


class Receiver:
    """What was heard on one group and port; `receive` is fed, the rest is read."""

    def __init__(self, silence_ns=SILENCE_NS):
        self.silence_ns = silence_ns
        self.channels = {}
        self.packets = 0               # that decoded, whatever became of them
        self.bytes = 0
        self.heartbeats = 0
        self.messages = 0              # in sequence or late; not duplicates
        self.by_type = dict.fromkeys(TYPE_NAMES.values(), 0)
        self.unknown_messages = 0      # of a type this version does not know
        self.gaps = deque(maxlen=MAX_GAPS)
        self.gap_count = 0
        self.missed = 0                # messages in gaps, at the moment the gap was seen
        self.late = 0                  # of those, the ones that came after all
        self.late_packets = 0
        self.duplicates = 0            # packets
        self.stragglers = 0            # packets of an older session
        self.silences = 0              # times that a channel stopped without END
        self.mismatches = 0            # refreshes that differ from the book kept without loss: must be 0
        self.last_mismatch = ""
        self.crossed = 0
        self.undefined = 0             # messages of instruments whose definition has not come yet
        self.ignored = 0               # book messages that could not be used: before a snapshot, or parts of a cut one
        self.errors = {}               # reason -> count; numbers in reasons are written as N
        self.sessions = deque(maxlen=MAX_SESSIONS)
        self.session_count = 0
        self.venues = {}               # name -> its newest Status
        self.send_latency = Histogram()      # send -> receive, a packet
        self.venue_latency = Histogram()     # the feeder's receive from the venue -> receive, a message
        self.handlers = {Definition: self.on_definition, Book: self.on_book, Trade: self.on_trade,
                         Bbo: self.on_bbo, Status: self.on_status, Padding: self.on_padding}

    @property
    def lost(self):
        """Messages that never came."""
        return self.missed - self.late

    # -- packets ---------------------------------------------------------------------------------------------

    def receive(self, datagram, now_ns):
        """Take one datagram, valid during the call only; return its Packet, or None where it brought nothing new.

        Times are the wall clock's, as in the packets.
        """
        self.bytes += len(datagram)
        try:
            packet = decode(datagram)
        except PacketError as error:
            return self.error(str(error))
        self.packets += 1
        channel = self.channels.get(packet.channel)
        if channel is None or packet.session != channel.session.number:
            channel = self.open_session(channel, packet, now_ns)
            if channel is None:
                return None
        first = packet.sequence
        count = packet.message_count
        expected = channel.expected
        self.send_latency.add(now_ns - packet.send_ns)
        channel.heard_ns = now_ns
        channel.silent = False
        if first != expected:
            if first < expected:
                return self.take_late(channel, packet)
            self.open_gap(channel, expected, first - 1, now_ns)
        channel.expected = first + count
        if not count:
            self.heartbeats += 1
            if packet.flags & END:
                channel.session.ended = True
            return packet
        self.messages += count
        channel.session.messages += count
        if len(packet.messages) != count:
            self.unknown_messages += count - len(packet.messages)
        handlers = self.handlers
        for message in packet.messages:
            handlers[type(message)](channel, message, now_ns)
        return packet

    def tick(self, now_ns):
        """Mark the channels from which nothing comes any more; to be called about once a second."""
        for channel in self.channels.values():
            if not (channel.silent or channel.session.ended) and now_ns - channel.heard_ns > self.silence_ns:
                channel.silent = True
                self.silences += 1

    def open_session(self, channel, packet, now_ns):
        """Start a channel, or a new session on it; None for a straggler of an older one."""
        if channel is None:
            if len(self.channels) >= MAX_CHANNELS:
                return self.error(f"more than {MAX_CHANNELS} channels")
            expected = packet.sequence
        elif packet.session < channel.session.number and not (
                channel.session.ended or now_ns - channel.heard_ns > self.silence_ns):
            self.stragglers += 1
            return None
        else:
            expected = 1
        session = Session(packet.channel, packet.session, expected, now_ns)
        self.sessions.append(session)
        self.session_count += 1
        self.channels[packet.channel] = channel = Channel(session, expected, now_ns)
        return channel

    def open_gap(self, channel, first, last, now_ns):
        self.gaps.append(Gap(channel.number, channel.session.number, first, last, now_ns))
        self.gap_count += 1
        self.missed += last - first + 1
        channel.missing.append([first, last])
        del channel.missing[:-MAX_MISSING]
        channel.era += 1

    def take_late(self, channel, packet):
        """A packet from before the expected number: it fills a gap, or is a duplicate, or a late heartbeat."""
        first, last = packet.sequence, packet.sequence + packet.message_count - 1
        if last >= channel.expected:
            return self.error("packet overlaps the one before it")      # not applied, so the next one shows a gap
        if last < first:
            return None
        filled = channel.fill(first, last)
        if not filled:
            self.duplicates += 1
            return None
        self.late += filled
        self.late_packets += 1
        self.messages += filled
        channel.session.messages += filled
        for message in packet.messages:
            view = channel.views.get(message.instrument_id)
            if isinstance(message, Definition):
                if view is None or view.definition is None:             # a newer one may be known
                    self.on_definition(channel, message, 0)
            elif isinstance(message, Trade) and view is not None:
                self.by_type["trade"] += 1
                view.trades += 1
        return packet

    def error(self, reason):
        """Count a fault of the sender; returns None for the caller to return."""
        reason = numbers_in.sub("N", reason)
        if reason not in self.errors and len(self.errors) >= MAX_REASONS:
            reason = "other"
        self.errors[reason] = self.errors.get(reason, 0) + 1

    # -- messages --------------------------------------------------------------------------------------------

    def view(self, channel, instrument_id):
        """Return the instrument's view, made now where it is new; None where there are too many."""
        view = channel.views.get(instrument_id)
        if view is None:
            if len(channel.views) >= MAX_INSTRUMENTS:
                return self.error(f"more than {MAX_INSTRUMENTS} instruments on a channel")
            view = channel.views[instrument_id] = View(channel, instrument_id)
        return view

    def note(self, channel, message):
        """Return the message's view, its state noted; None where there is no room for it."""
        view = self.view(channel, message.instrument_id)
        if view is not None:
            if view.definition is None:
                self.undefined += 1
            view.note(message.state, message.epoch)
        return view

    def on_definition(self, channel, definition, now_ns):
        self.by_type["definition"] += 1
        view = self.view(channel, definition.instrument_id)
        if view is not None and view.definition != definition:
            view.define(definition)

    def on_book(self, channel, message, now_ns):
        is_snapshot = message.type == SNAPSHOT
        self.by_type["snapshot" if is_snapshot else "increment"] += 1
        view = self.note(channel, message)
        if view is None:
            return
        if not is_snapshot and message.recv_ns:       # a snapshot's may be an old time
            self.venue_latency.add(now_ns - message.recv_ns)
        if view.definition is None or not is_snapshot and view.era != channel.era:
            self.ignored += 1                         # without a definition nobody knows what the numbers mean
            return
        flags = message.flags
        bids, asks = message.bids, message.asks
        begins = flags & FIRST if is_snapshot else view.pending is None
        if not begins or not flags & LAST:
            parts = view.gather(message, begins)
            if parts is None:                         # its beginning was lost, or it is too long
                view.pending = None
                view.era = OUT_OF_STEP
                self.ignored += 1
                return
            if not flags & LAST:
                return
            bids, asks = parts
        view.pending = None
        if is_snapshot:
            self.on_snapshot(channel, view, message, bids, asks)
        else:
            view.bids.change(bids)
            view.asks.change(asks)
            self.after_event(view, message)

    def on_snapshot(self, channel, view, message, bids, asks):
        in_step = view.era == channel.era
        fresh_bids, fresh_asks = SideView(-1), SideView(1)
        fresh_bids.change(bids)
        fresh_asks.change(asks)
        if message.flags & REFRESH:
            view.refreshes += 1
            if in_step:
                if view.bids == fresh_bids and view.asks == fresh_asks:
                    view.last_venue_sequence = message.venue_sequence     # events below the window are not sent
                    return
                self.mismatches += 1
                self.last_mismatch = f"channel {channel.number} {view.label} at venue sequence {message.venue_sequence}"
        view.bids, view.asks = fresh_bids, fresh_asks
        view.has_book = True
        view.era = channel.era if message.state == LIVE else OUT_OF_STEP
        self.after_event(view, message)

    def after_event(self, view, message):
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

    def on_trade(self, channel, message, now_ns):
        self.by_type["trade"] += 1
        view = self.note(channel, message)
        if view is None:
            return
        if message.recv_ns:
            self.venue_latency.add(now_ns - message.recv_ns)
        view.trades += 1
        view.last_trade = message.item

    def on_bbo(self, channel, message, now_ns):
        self.by_type["bbo"] += 1
        view = self.note(channel, message)
        if view is None:
            return
        if message.recv_ns:
            self.venue_latency.add(now_ns - message.recv_ns)
        view.bbos += 1
        view.bbo = message

    def on_status(self, channel, message, now_ns):
        self.by_type["status"] += 1
        if message.instrument_id == ALL_INSTRUMENTS:
            if message.venue in self.venues or len(self.venues) < MAX_CHANNELS:
                self.venues[message.venue] = message
            return
        view = self.note(channel, message)
        if view is not None:
            view.sent_reason = message.reason

    def on_padding(self, channel, message, now_ns):
        self.by_type["padding"] += 1

    # -- reading ---------------------------------------------------------------------------------------------

    def views(self):
        """Return every instrument of every channel, by venue and symbol; those without a definition last."""
        found = [view for channel in self.channels.values() for view in channel.views.values()]
        return sorted(found, key=lambda view: (view.definition is None, view.venue, view.symbol,
                                               view.channel.number, view.instrument_id))

    def find(self, text):
        """Return the views that `text` names: SYMBOL, the common name, or venue:SYMBOL; any case."""
        wanted = text.lower()
        return [view for view in self.views() if view.definition is not None
                and wanted in (view.symbol.lower(), view.definition.name.lower(), view.label.lower())]


class Session:
    """One numbered run of a publisher on one channel, for the report."""

    __slots__ = ("channel", "number", "first", "since_ns", "messages", "ended")

    def __init__(self, channel, number, first, since_ns):
        self.channel = channel
        self.number = number
        self.first = first             # sequence expected first; above 1 where we joined late
        self.since_ns = since_ns
        self.messages = 0
        self.ended = False


class Channel:
    """Where a channel's present session stands."""

    __slots__ = ("number", "session", "expected", "heard_ns", "silent", "era", "missing", "views")

    def __init__(self, session, expected, now_ns):
        self.number = session.channel
        self.session = session
        self.expected = expected
        self.heard_ns = now_ns
        self.silent = False
        self.era = 0                   # grows with each gap
        self.missing = []              # [first, last], ascending
        self.views = {}

    def fill(self, first, last):
        """Take first..last out of what is missing; return how many messages of it were missing."""
        missing = self.missing
        at = len(missing)
        while at and missing[at - 1][1] >= first:       # from the newest: late packets are seldom old
            at -= 1
        filled = 0
        left = []
        for low, high in missing[at:]:
            overlap = min(high, last) - max(low, first) + 1
            if overlap <= 0:
                left.append([low, high])
                continue
            filled += overlap
            if low < first:
                left.append([low, first - 1])
            if last < high:
                left.append([last + 1, high])
        if filled:
            missing[at:] = left
        return filled


class View:
    """One instrument as the listener sees it."""

    __slots__ = ("channel", "instrument_id", "definition", "era", "has_book", "bids", "asks", "pending",
                 "sent_state", "sent_reason", "epoch", "events", "refreshes", "trades", "bbos", "crossed",
                 "last_venue_sequence", "last_trade", "bbo")

    def __init__(self, channel, instrument_id):
        self.channel = channel
        self.instrument_id = instrument_id
        self.definition = None
        self.sent_state = SYNCING
        self.sent_reason = 0
        self.epoch = 0
        self.events = self.refreshes = self.trades = self.bbos = self.crossed = 0
        self.last_venue_sequence = 0
        self.last_trade = self.bbo = None
        self.clear()

    def clear(self):
        self.bids, self.asks = SideView(-1), SideView(1)
        self.has_book = False
        self.pending = None
        self.era = OUT_OF_STEP

    def define(self, definition):
        """Take a new definition; where more than tick and lot changed, what is kept is void until the next snapshot."""
        known, self.definition = self.definition, definition
        if known is None:
            self.clear()
        elif known._replace(tick=0, lot=0) != definition._replace(tick=0, lot=0):
            self.clear()
            self.last_trade = self.bbo = None

    def note(self, state, epoch):
        """Every message tells the state; anything but LIVE at the present epoch ends the trust in our book."""
        if state != LIVE or epoch != self.epoch:
            self.era = OUT_OF_STEP
            self.epoch = epoch
        elif self.sent_state != LIVE:
            self.era = OUT_OF_STEP
        self.sent_state = state

    def gather(self, message, is_first):
        """Collect the parts of an event; return all (bids, asks) so far, None where the beginning is missing."""
        era = self.channel.era
        if is_first:
            self.pending = (message.type, era, message.epoch, [], [])
        if self.pending is None:
            return None
        kind, began, epoch, bids, asks = self.pending
        if (kind, began, epoch) != (message.type, era, message.epoch):
            return None
        bids += message.bids
        asks += message.asks
        if len(bids) + len(asks) > 4 * MAX_LEVELS:
            return None
        return bids, asks

    @property
    def in_step(self):
        """True when our book is the publisher's, at its last event."""
        return self.era == self.channel.era

    @property
    def state(self):
        """What may be shown: LIVE only where the book is proven to be."""
        if self.in_step and not self.channel.session.ended and not self.channel.silent:
            return LIVE
        if self.sent_state != LIVE:
            return self.sent_state
        return STALE if self.has_book else SYNCING

    @property
    def reason(self):
        """Why the book is not live, in one word or two; "none" where it is."""
        if self.channel.session.ended:
            return "session ended"
        if self.channel.silent:
            return "silent"
        if self.in_step:
            return "none"
        if self.definition is None:
            return "no definition"
        if self.sent_state != LIVE:
            return REASONS[self.sent_reason] if self.sent_reason < len(REASONS) else str(self.sent_reason)
        return "gap" if self.has_book else "no snapshot"

    @property
    def venue(self):
        return self.definition.venue if self.definition else ""

    @property
    def symbol(self):
        return self.definition.symbol if self.definition else ""

    @property
    def label(self):
        return f"{self.venue}:{self.symbol}" if self.definition else f"#{self.instrument_id}"


class SideView:
    """One side as published, best first: the venue's best levels without a hole, `depth` of them or more.

    `keys` are prices, negated for bids, so that ascending is best first on both sides.
    """

    __slots__ = ("sign", "keys", "quantities")

    def __init__(self, sign):
        self.sign = sign
        self.keys = []
        self.quantities = []

    def change(self, levels):
        """Apply one event's [price, quantity, ...], quantity 0 removes."""
        sign, keys, quantities = self.sign, self.keys, self.quantities
        numbers = iter(levels)
        for price, quantity in zip(numbers, numbers):
            key = sign * price
            at = bisect_left(keys, key)
            known = at < len(keys) and keys[at] == key
            if known:
                if quantity:
                    quantities[at] = quantity
                else:
                    del keys[at], quantities[at]
            elif quantity:
                keys.insert(at, key)
                quantities.insert(at, quantity)

    def __eq__(self, other):
        return self.keys == other.keys and self.quantities == other.quantities

    def __len__(self):
        return len(self.keys)

    def levels(self, most=None):
        """Return [(price, quantity), ...], best first."""
        sign = self.sign
        return [(sign * key, quantity) for key, quantity in zip(self.keys[:most], self.quantities)]
