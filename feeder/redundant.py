"""Two connections to one venue, each with a recovery of its own; what either proves is passed on once.

In:   what a decoder says, of the connection that `line` names.   Out: the same on `sink`: gapless, each event once.

    connections of leg A ─▶ Recovery ─▶ Leg ─┐
                                             ├─▶ Redundant ─▶ sink       the first of each venue sequence
    connections of leg B ─▶ Recovery ─▶ Leg ─┘

Each leg is gapless by itself, or STALE and being resynced. So whatever is at place s of the venue's sequence, on
one leg or the other, the next event of a live leg that ends behind s leads on from there: it says of each price it
names how it stands at its end, and those it does not name have not changed since. What ends at s or before is old.
A book is stale when it is on no leg.

A snapshot of a leg that comes back is passed on only if it is ahead of what was told. Where a leg's own sequence goes back,
the venue began anew: by a snapshot, the other leg has to show that it did, too; else both start over.
Trades and quotes: recovery.Echoes, for good. A trade that one leg lost comes when the other brings it: perhaps behind later ones.

Only for venues whose book sequence is the same on every connection (`VenueFacts.shared`). `line` is whose bytes are being
decoded: anything with a `leg`, or None for a book that came by REST, which every leg may take that waits for one.
"""

from collections import namedtuple

from feeder.message import LIVE, SYNCING
from feeder.recovery import Echoes

Total = namedtuple("Total", "instrument state gaps resyncs reasons old events overflows late_snapshots flowing waiting attempts")


class Told:
    """Where one instrument is, of all legs together."""

    __slots__ = ("sequence", "legs")

    def __init__(self):
        self.sequence = 0
        self.legs = set()            # those on which the book lives


class Leg:
    """The sink of one leg's recovery."""

    def __init__(self, whole, name):
        self.whole = whole
        self.name = name
        self.at = {}                 # instrument id -> the sequence of what came last
        self.wins = self.late = self.covered = 0       # events first here; events already told; faults the other leg hid
        self.trade, self.bbo = whole.once.trade, whole.once.bbo

    def define(self, instrument, price_scale, quantity_scale):
        self.whole.define_from(self, instrument, price_scale, quantity_scale)

    def snapshot(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        told = self.whole.told(instrument)
        number = instrument.instrument_id
        before, self.at[number] = self.at.get(number, 0), sequence
        if self in told.legs and sequence < before:
            self.whole.leave_out_others(self, instrument, recv_ns)
        elif told.legs and sequence <= told.sequence:
            told.legs.add(self)
            self.late += 1
            return
        told.legs.add(self)
        self.wins += 1
        told.sequence = sequence
        self.whole.sink.snapshot(instrument, sequence, event_ns, recv_ns, bids, asks)

    def increment(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        told = self.whole.told(instrument)
        number = instrument.instrument_id
        before, self.at[number] = self.at.get(number, 0), sequence
        if sequence <= told.sequence:
            self.late += 1
            if sequence < before:
                self.whole.resync(instrument, "gap", recv_ns)
            return
        self.wins += 1
        told.sequence = sequence
        self.whole.sink.increment(instrument, sequence, event_ns, recv_ns, bids, asks)

    def stale(self, instrument, reason, recv_ns):
        told = self.whole.told(instrument)
        if self not in told.legs:
            return                   # left out: nothing that was told came from here
        told.legs.remove(self)
        if told.legs:
            self.covered += 1
        else:
            self.whole.sink.stale(instrument, reason, recv_ns)


class Redundant:
    """Stands where a Recovery stands, before a venue's decoder.

    Args: make(sink, leg number): a Recovery; sink; names of the legs.
    """

    def __init__(self, make, sink, names=("A", "B")):
        self.sink = sink
        self.once = Echoes(sink)
        self.by_instrument = {}
        self.legs = [Leg(self, name) for name in names]
        self.recoveries = [make(leg, number) for number, leg in enumerate(self.legs)]
        self.line = None

    @property
    def line(self):
        return self._line

    @line.setter
    def line(self, line):
        """Lead the decoder's calls to that connection's recovery."""
        self._line = line
        recovery = self.recoveries[line.leg if line is not None else 0]
        recovery.line = line
        self.depth, self.trade, self.bbo, self.stale = recovery.depth, recovery.trade, recovery.bbo, recovery.stale
        self.define = recovery.define
        self.snapshot = self.offer if line is None else recovery.snapshot

    def told(self, instrument):
        told = self.by_instrument.get(instrument.instrument_id)
        if told is None:
            told = self.by_instrument[instrument.instrument_id] = Told()
        return told

    def define_from(self, leg, instrument, price_scale, quantity_scale):
        """What waits in the other recoveries is of the same decimals."""
        for other, recovery in zip(self.legs, self.recoveries):
            if other is not leg:
                recovery.scale(instrument, price_scale, quantity_scale)
        self.sink.define(instrument, price_scale, quantity_scale)

    def offer(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        """A book by REST, for each leg that waits for it."""
        waiting = [recovery for recovery in self.recoveries if recovery.link(instrument).waiting]
        for recovery in waiting or self.recoveries[:1]:
            recovery.snapshot(instrument, sequence, event_ns, recv_ns, list(bids), list(asks))

    def leave_out_others(self, leg, instrument, recv_ns):
        self.told(instrument).legs.clear()
        for other, recovery in zip(self.legs, self.recoveries):
            if other is not leg:
                recovery.resync(instrument, "gap", recv_ns)

    def resync(self, instrument, reason, recv_ns):
        """The book itself was found wrong: both begin again."""
        for recovery in self.recoveries:
            recovery.resync(instrument, reason, recv_ns)

    def snapshot_failed(self, instrument):
        for recovery in self.recoveries:
            recovery.snapshot_failed(instrument)

    def link(self, instrument):
        """Return counters of all legs, in the shape of a recovery.Link."""
        links = [recovery.link(instrument) for recovery in self.recoveries]
        reasons = sum((link.reasons for link in links), links[0].reasons.__class__())
        return Total(instrument, LIVE if any(link.state == LIVE for link in links) else SYNCING,
                     *(sum(getattr(link, name) for link in links) for name in ("gaps", "resyncs")), reasons,
                     *(sum(getattr(link, name) for link in links) for name in ("old", "events", "overflows", "late_snapshots")),
                     *(any(getattr(link, name) for link in links) for name in ("flowing", "waiting")),
                     max(link.attempts for link in links))

    @property
    def links(self):
        """As a Recovery's, with the links of all legs: for sums."""
        return {(number, instrument_id): link for number, recovery in enumerate(self.recoveries)
                for instrument_id, link in recovery.links.items()}
