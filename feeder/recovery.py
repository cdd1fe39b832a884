"""Per instrument: turns a venue's increments and snapshots into a gapless stream, or says STALE.

In:   depth, snapshot, define, trade, bbo, stale from a decoder.   Out: the same on `sink`, but increments only gapless.
Hot:  depth while live; part of `feeder bench pipeline`.

          first increment                    snapshot joins the buffer
    START ---------------> SYNCING (buffer) -------------------------> LIVE
                              ^    |  ^ snapshot too old: ask again      |
                              |    +--+                                  |
                              +------------------------------------------+
                                 gap, crossed book, disconnect, bad numbers: STALE

A snapshot is asked for (`want_snapshot`) when the first increment is in the buffer, so that it is surely not
older than the stream; one that comes before any increment waits for it. How increments link is the venue's rule
(`follows`); snapshots that come unasked while LIVE change nothing. One instrument's trouble never touches another's.

Where the book comes on the stream (contract.STREAM, IMAGE: StreamRecovery) there is nothing to join:

             snapshot             snapshot: the venue replaces the book
    SYNCING ----------> LIVE ----------+     increments link by `follows`; those before a snapshot tell nothing
       ^    asked for at once |  ^-----+
       +----------------------+ gap, checksum, crossed book, bad numbers: STALE; a lost line: the next one brings it

Two lines may carry the same books for a while (line.py replaces connections without a loss). `line` is whose bytes are
being decoded, `Link.line` where a book lives, `Link.joining` a second line that brings it. Increments of both are the
same sequence, so the later of two is OLD. What the joining line brings beyond the next one is not a gap but early: it
waits in the buffer. The book lives on the joining line as soon as both were seen at one place of the sequence; where books
come on the stream, at its snapshot if that is not older. Trades and quotes that come twice are passed on once (`Echoes`).

Bounds: MAX_BUFFERED increments an instrument; beyond that the oldest go, which a later gap check will find.
Not here: when to fetch (ingest.py spaces requests within the venue's budget), and time.
"""

from collections import Counter, deque

from feeder.message import LIVE, SYNCING
from feeder.venue.contract import GAP, NEXT, OWN_SEQUENCE_BITS

MAX_BUFFERED = 2_000
MAX_KNOWN_TRADES = 4_096         # an instrument, while two lines bring them


class Link:
    """One instrument's place in its venue's sequence."""

    __slots__ = ("instrument", "line", "joining", "state", "sequence", "bridged", "buffer", "waiting", "events", "old",
                 "gaps", "resyncs", "reasons", "overflows", "late_snapshots", "attempts", "flowing", "early")

    def __init__(self, instrument):
        self.instrument = instrument
        self.line = None             # STREAM: the connection whose snapshot the book lives on
        self.joining = None          # a second connection that carries it
        self.state = SYNCING
        self.sequence = 0            # the venue's id of what the book holds
        self.bridged = False         # an increment was applied since the snapshot
        self.buffer = deque(maxlen=MAX_BUFFERED)
        self.flowing = False         # an increment has come since the last resync
        self.early = None            # a snapshot that came before
        self.waiting = False         # a snapshot is on order
        self.attempts = 0            # snapshots asked for in this sync
        self.events = 0              # book events passed on: snapshots and increments
        self.old = 0                 # increments the book already held
        self.gaps = 0                # breaks in the venue's sequence
        self.resyncs = 0             # times a live book was given up
        self.overflows = 0           # increments lost from the buffer
        self.late_snapshots = 0      # unasked or unusable ones
        self.reasons = Counter()     # of resyncs


class Recovery:
    """All instruments of one venue. `want_snapshot(instrument, attempt)` orders one; attempt counts from 0."""

    def __init__(self, follows, sink, want_snapshot):
        self.follows = follows
        self.sink = sink
        self.want_snapshot = want_snapshot
        self.links = {}
        self.line = None             # whose bytes are being decoded; any object, None for REST
        self.trade = sink.trade      # trades and quotes need no recovery: straight through
        self.bbo = sink.bbo

    def link(self, instrument):
        link = self.links.get(instrument.instrument_id)
        if link is None:
            link = self.links[instrument.instrument_id] = Link(instrument)
        return link

    def define(self, instrument, price_scale, quantity_scale):
        self.scale(instrument, price_scale, quantity_scale)
        self.sink.define(instrument, price_scale, quantity_scale)

    def scale(self, instrument, price_scale, quantity_scale):
        """Bring what waits to the instrument's new decimals."""
        link = self.link(instrument)
        if price_scale != 1 or quantity_scale != 1:
            if not all(instrument.fits(levels, price_scale, quantity_scale)
                       for waiting in (*link.buffer, link.early or ((), ())) for levels in waiting[-2:]):
                self.resync(instrument, "range", 0)       # what waits cannot be said with decimals so many
            for number, (*ids, bids, asks) in enumerate(link.buffer):
                link.buffer[number] = (*ids, scaled(bids, price_scale, quantity_scale),
                                       scaled(asks, price_scale, quantity_scale))
            if link.early is not None:
                *ids, bids, asks = link.early
                link.early = (*ids, scaled(bids, price_scale, quantity_scale), scaled(asks, price_scale, quantity_scale))

    def depth(self, instrument, first, last, previous, event_ns, recv_ns, bids, asks):
        link = self.links[instrument.instrument_id]
        if link.state == LIVE:
            verdict = self.follows(link.sequence, link.bridged, first, last, previous)
            if verdict is NEXT:
                link.sequence = last
                link.bridged = True
                link.events += 1
                self.sink.increment(instrument, last, event_ns, recv_ns, bids, asks)
                return
            if verdict is not GAP:
                link.old += 1
                if link.joining is not None:      # one of two lines was first, so both were here
                    self.hand_over(link)
                return
            if link.joining is not None and link.joining is self.line and len(link.buffer) < MAX_BUFFERED:
                link.buffer.append((first, last, previous, event_ns, recv_ns, bids, asks))
                self.catch_up(instrument, link)
                return
            link.gaps += 1
            self.resync(instrument, "gap", recv_ns)
        if len(link.buffer) == MAX_BUFFERED:
            link.overflows += 1
        link.buffer.append((first, last, previous, event_ns, recv_ns, bids, asks))
        link.flowing = True
        if link.early is not None:
            early, link.early = link.early, None
            self.snapshot(instrument, *early)
        elif not link.waiting:
            self.order(instrument, link)

    def hand_over(self, link):
        link.line, link.joining = link.joining, None
        link.buffer.clear()

    def catch_up(self, instrument, link):
        """The joining line is ahead: take of what waits whatever the other one has led to meanwhile."""
        waiting = list(link.buffer)
        for number, increment in enumerate(waiting):
            verdict = self.follows(link.sequence, link.bridged, *increment[:3])
            if verdict is GAP:
                return
            link.buffer.popleft()
            if verdict is NEXT:
                self.hand_over(link)
                for each in waiting[number:]:
                    self.depth(instrument, *each)
                return

    def order(self, instrument, link):
        link.waiting = True
        attempt, link.attempts = link.attempts, link.attempts + 1
        self.want_snapshot(instrument, attempt)

    def snapshot(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        """Take a snapshot and join the buffer to it; where it is too old, order another."""
        link = self.link(instrument)
        link.waiting = False
        if link.state == LIVE:
            link.late_snapshots += 1
            return
        if not link.flowing:
            link.early = sequence, event_ns, recv_ns, bids, asks
            return
        buffer = link.buffer
        while buffer:                # what the snapshot already holds
            first, last, previous = buffer[0][:3]
            verdict = self.follows(sequence, False, first, last, previous)
            if verdict is NEXT:
                break
            if verdict is GAP:
                link.late_snapshots += 1
                self.order(instrument, link)
                return
            link.old += 1
            buffer.popleft()
        link.state = LIVE
        link.sequence = sequence
        link.bridged = False
        link.attempts = 0
        link.events += 1
        self.sink.snapshot(instrument, sequence, event_ns, recv_ns, bids, asks)
        waiting = list(buffer)
        buffer.clear()
        for increment in waiting:    # a gap among them starts over with those behind it
            self.depth(instrument, *increment)

    def stale(self, instrument, reason, recv_ns):
        """The decoder could not read something of this instrument, or missed it: what the book lacks is unknown."""
        link = self.link(instrument)
        link.gaps += reason == "gap" and link.state == LIVE
        self.resync(instrument, reason, recv_ns)

    def resync(self, instrument, reason, recv_ns):
        """Give the book up and start over; the next increment orders a snapshot."""
        link = self.link(instrument)
        if link.state == LIVE:
            link.state = SYNCING
            link.resyncs += 1
            link.reasons[reason] += 1
            self.sink.stale(instrument, reason, recv_ns)
        link.buffer.clear()
        link.flowing = False
        link.early = None

    def snapshot_failed(self, instrument):
        """The ordered snapshot will not come; the next increment orders again."""
        self.link(instrument).waiting = False

    def disconnect(self, instruments, recv_ns, reason="disconnect", line=None):
        """A line was lost. Books that live on another one already have lost nothing."""
        for instrument in instruments:
            link = self.link(instrument)
            if line is None or link.line is None or link.line is line or link.state != LIVE:
                self.resync(instrument, reason, recv_ns)

    # -- two lines for the same books ------------------------------------------------------------------------

    def echoes(self, expected):
        """Expect trades and quotes twice, or no longer; whoever keeps bound functions has to fetch them anew."""
        self.trade, self.bbo = self.sink.trade, self.sink.bbo
        if expected:
            once = Echoes(self.sink)
            self.trade, self.bbo = once.trade, once.bbo

    def join(self, line, joining, instruments):
        """A second line will bring these books, too."""
        for instrument in instruments:
            link = self.link(instrument)
            link.line, link.joining = line, joining

    def lives_on(self, instrument, line):
        """Return True if giving up other lines would cost this book nothing."""
        link = self.link(instrument)
        return link.state != LIVE or link.line is line

    def fall_back(self, lost, line, instruments):
        """The joining line was lost, the other goes on."""
        for instrument in instruments:
            link = self.link(instrument)
            link.line, link.joining = line, None
            if link.state == LIVE:
                link.buffer.clear()

    def settle(self, old, line, instruments, recv_ns):
        """`old` brings nothing any more; return the books of which it is not known that `line` has them."""
        for instrument in instruments:
            link = self.link(instrument)
            if link.state == LIVE and link.line is old:
                self.hand_over(link)                  # quiet ones; the next increment tells whether one is missing
            link.line, link.joining = line, None
        return []


class Echoes:
    """Passes on once what two lines bring: each trade, with its id and content; quotes do not go back in the sequence."""

    def __init__(self, sink):
        self.sink = sink
        self.trades = {}             # instrument id -> {(trade id, time, price, quantity): None}, oldest first
        self.quotes = {}             # instrument id -> the last one

    def trade(self, instrument, sequence, event_ns, recv_ns, trade_id, price, quantity, side):
        known = self.trades.setdefault(instrument.instrument_id, {})
        key = trade_id, event_ns, price * instrument.price_factor, quantity * instrument.quantity_factor
        if key in known:                 # not by the id alone: at Bithumb several trades may share one
            return
        known[key] = None
        if len(known) > MAX_KNOWN_TRADES:
            del known[next(iter(known))]
        self.sink.trade(instrument, sequence, event_ns, recv_ns, trade_id, price, quantity, side)

    def bbo(self, instrument, sequence, event_ns, recv_ns, *quote):
        place = sequence, event_ns
        last_place, last_quote = self.quotes.get(instrument.instrument_id, ((0, 0), None))
        if place < last_place or quote == last_quote:
            return
        self.quotes[instrument.instrument_id] = place, quote
        self.sink.bbo(instrument, sequence, event_ns, recv_ns, *quote)


class StreamRecovery(Recovery):
    """The same where snapshots come on the stream: STREAM and IMAGE venues."""

    def depth(self, instrument, first, last, previous, event_ns, recv_ns, bids, asks):
        link = self.links[instrument.instrument_id]
        if link.state != LIVE:
            link.old += 1
            return
        if link.line is not self.line and not self.takes_over(link, first, last, previous):
            link.old += 1
            return
        verdict = self.follows(link.sequence, link.bridged, first, last, previous)
        if verdict is NEXT:
            link.sequence = last
            link.bridged = True
            link.events += 1
            self.sink.increment(instrument, last, event_ns, recv_ns, bids, asks)
        elif verdict is GAP:
            link.gaps += 1
            self.resync(instrument, "gap", recv_ns)
        else:
            link.old += 1

    def takes_over(self, link, first, last, previous):
        """An increment from another line than the book's; return True if it is to be judged as one of its own.

        The joining line began behind the book, so it passes the place where the book is, sooner or later.
        """
        if link.joining is not self.line:
            return False
        if last == link.sequence or self.follows(link.sequence, link.bridged, first, last, previous) is NEXT:
            self.hand_over(link)
            return last != link.sequence
        return False

    def join(self, line, joining, instruments):
        """The joining line's snapshots say when it has the books."""
        for instrument in instruments:
            self.link(instrument).line = line

    def fall_back(self, lost, line, instruments):
        """Books that had moved and whose sequence we count ourselves are asked for anew: the old line's is another."""
        links = [link for link in map(self.link, instruments)
                 if link.state == LIVE and link.line is lost and link.sequence >> OWN_SEQUENCE_BITS]
        super().fall_back(lost, line, instruments)
        for link in links:
            self.resync(link.instrument, "disconnect", 0)
            self.order(link.instrument, link)

    def settle(self, old, line, instruments, recv_ns):
        doubtful = []
        for instrument in instruments:
            link = self.link(instrument)
            if link.state == LIVE and link.line is old:
                if link.joining is line:
                    doubtful.append(instrument)       # its increments will bring it to where the book is, or never do
                else:
                    self.resync(instrument, "disconnect", recv_ns)     # no snapshot ever came there
                    self.order(instrument, link)
            elif link.state != LIVE:
                self.order(instrument, link)              # what was asked for on the old one does not come any more
        return doubtful

    def snapshot(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        link = self.link(instrument)
        link.waiting = False
        if link.state == LIVE and link.line is not self.line and sequence <= link.sequence:
            if sequence == link.sequence:
                link.line, link.joining = self.line, None
            else:
                link.joining = self.line     # its own increments will bring it to where the book is
                link.late_snapshots += 1
            return
        link.state = LIVE
        link.line, link.joining = self.line, None
        link.sequence = sequence
        link.bridged = False
        link.attempts = 0
        link.events += 1
        self.sink.snapshot(instrument, sequence, event_ns, recv_ns, bids, asks)

    def resync(self, instrument, reason, recv_ns):
        super().resync(instrument, reason, recv_ns)
        link = self.link(instrument)
        if reason in ("disconnect", "venue"):
            link.waiting = False             # the next connection brings it, or the venue's own pause ends: unasked
        elif not link.waiting:
            self.order(instrument, link)


def scaled(levels, price_scale, quantity_scale):
    levels = list(levels)
    levels[::2] = [price * price_scale for price in levels[::2]]
    levels[1::2] = [quantity * quantity_scale for quantity in levels[1::2]]
    return levels
