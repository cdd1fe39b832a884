"""Two connections for the same books: whatever either loses, what is told is the truth, once, and stale only when both have lost it."""

from types import SimpleNamespace

import pytest
from support import Recorder, dice
from test_recovery import RULES, Exchange, Shelf

from feeder.instrument import Instrument
from feeder.message import LIVE, SYNCING
from feeder.recovery import Recovery, StreamRecovery
from feeder.redundant import Leg, Redundant

KINDS = {"rest": Recovery, "stream": StreamRecovery}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_rule = pytest.mark.parametrize("rule", RULES)


class Witness(Shelf):
    """As Shelf, but a snapshot may come over a live book when it leads on; stale only when no leg is live."""

    whole = None

    def snapshot(self, instrument, sequence, *more):
        book = self.books[instrument.instrument_id]
        if book is not None:
            assert sequence > book[0], "a snapshot that does not lead on"
            self.books[instrument.instrument_id] = None
        super().snapshot(instrument, sequence, *more)

    def increment(self, instrument, sequence, *more):
        book = self.books[instrument.instrument_id]
        assert book is not None and sequence > book[0], f"twice, or back: {sequence}"
        super().increment(instrument, sequence, *more)

    def stale(self, instrument, reason, recv_ns):
        assert all(recovery.link(instrument).state != LIVE for recovery in self.whole.recoveries), "the other leg has it"
        super().stale(instrument, reason, recv_ns)


class Desk:
    def __init__(self, kind, rule, rng):
        self.exchange = Exchange(rng, rule == "futures")
        self.shelf = Witness([self.exchange])
        self.orders = []
        self.kind = kind
        self.instrument = Instrument(0, rule, "COIN")
        self.whole = self.shelf.whole = Redundant(lambda sink, number: KINDS[kind](
            RULES[rule], sink, lambda instrument, attempt: self.orders.append(number)), self.shelf)
        self.lines = [SimpleNamespace(leg=0), SimpleNamespace(leg=1)]
        self.whole.define(self.instrument, 1, 1)

    def links(self):
        return [recovery.link(self.instrument) for recovery in self.whole.recoveries]

    def say(self, leg, event):
        self.whole.line = self.lines[leg]
        self.whole.depth(self.instrument, *event)

    def book(self, leg, book):
        """As the venue gives it: by REST for all, or on the one connection."""
        self.whole.line = None if self.kind == "rest" else self.lines[leg]
        self.whole.snapshot(self.instrument, *book)

    def lose(self, leg):
        self.whole.recoveries[leg].disconnect([self.instrument], 1, line=self.lines[leg])

    def go_live(self):
        if self.kind == "rest":
            event = self.exchange.event()
            for leg in (0, 1):
                self.say(leg, event)
        for leg in (0, 1):
            self.book(leg, self.exchange.snapshot())
        assert [link.state for link in self.links()] == [LIVE, LIVE]
        self.orders.clear()


@every_kind
@every_rule
def test_the_first_of_each_counts_and_a_gap_of_one_is_filled_by_the_other(kind, rule):
    desk = Desk(kind, rule, dice(1))
    desk.go_live()
    first, lost, third = (desk.exchange.event() for _ in range(3))
    desk.say(0, first)
    desk.say(1, first)
    desk.say(0, third)                             # a gap there
    assert desk.links()[0].state == SYNCING and desk.shelf.reasons == []
    desk.say(1, lost)
    desk.say(1, third)
    desk.shelf.check(0)
    assert desk.shelf.books[0][0] == desk.exchange.last_id and desk.shelf.reasons == []
    desk.book(0, desk.exchange.snapshot())
    desk.say(0, desk.exchange.event())             # REST: flows again, then joins
    if kind == "rest":
        desk.book(0, desk.exchange.snapshot())
    assert [link.state for link in desk.links()] == [LIVE, LIVE] and desk.shelf.reasons == []
    a, b = desk.whole.legs
    assert a.covered == 1 and a.late + b.late >= 1 and desk.whole.link(desk.instrument).gaps == 1


@every_kind
@every_rule
def test_either_may_die_and_both_is_stale(kind, rule):
    desk = Desk(kind, rule, dice(2))
    desk.go_live()
    desk.lose(0)
    desk.say(1, desk.exchange.event())
    assert desk.shelf.reasons == [] and desk.shelf.books[0][0] == desk.exchange.last_id
    desk.lose(1)
    assert desk.shelf.reasons == [(0, "disconnect")] and desk.whole.link(desk.instrument).state == SYNCING


@every_kind
@every_rule
@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(100, 1100), marks=pytest.mark.stress)])
def test_storm(kind, rule, seeds):
    """Each leg lags, loses, reorders and dies on its own; at every call the book told is the venue's at its sequence."""
    hidden = 0
    for seed in seeds:
        rng = dice(seed)
        desk = Desk(kind, rule, rng)
        exchange, queues, up = desk.exchange, [[], []], [True, True]
        for leg in (0, 1):
            if kind == "stream":
                desk.book(leg, exchange.snapshot())
        for step in range(300):
            stormy = step < 260
            event = exchange.event()
            for leg in (0, 1):
                if up[leg] and not (stormy and rng.random() < 0.04):
                    queues[leg].append(event)
                if stormy and rng.random() < 0.01 or not up[leg] and rng.random() < 0.2:
                    queues[leg].clear()
                    up[leg] = not up[leg]
                    if not up[leg]:
                        desk.lose(leg)
                    elif kind == "stream":
                        desk.book(leg, exchange.snapshot())
                for _ in range(rng.choice((0, 1, 1, 2, 4)) if stormy else 100):
                    if queues[leg]:
                        desk.say(leg, queues[leg].pop(0))
            if desk.orders and rng.random() < 0.5:
                leg = desk.orders.pop(0)
                if kind == "rest" or up[leg]:
                    queues[leg].clear() if kind == "stream" else None
                    desk.book(leg, exchange.snapshot())
                else:
                    desk.whole.recoveries[leg].snapshot_failed(desk.instrument)
            elif stormy and rng.random() < 0.01:
                desk.whole.resync(desk.instrument, "crossed", 1)
        assert desk.shelf.books[0] is not None and desk.shelf.books[0][0] == exchange.last_id, f"seed {seed}"
        desk.shelf.check(0)
        hidden += sum(leg.covered for leg in desk.whole.legs)
    assert hidden > len(seeds), "the other leg hid faults"


@pytest.mark.parametrize("by", ["snapshot", "increment"])
def test_a_venue_that_begins_anew_is_followed(by):
    """Its numbers go back: by a snapshot on the stream (Bybit's u = 1), or by an increment that links (OKX)."""
    recorder = Recorder()
    whole = Redundant(lambda sink, number: StreamRecovery(
        lambda sequence, bridged, first, last, previous: "next" if previous == sequence else "old", sink,
        lambda *order: None), recorder)
    coin, lines = Instrument(0, "v", "A"), [SimpleNamespace(leg=0), SimpleNamespace(leg=1)]
    for whole.line in lines:
        whole.snapshot(coin, 100, 0, 9, [], [])
    whole.line = lines[0]
    if by == "increment":
        whole.depth(coin, 5, 5, 100, 0, 9, [1, 1], [])          # not a snapshot: both start over
        assert [call[0] for call in recorder.take()] == ["snapshot", "stale"]
        assert whole.link(coin).state == SYNCING
        return
    whole.snapshot(coin, 1, 0, 9, [1, 1], [])
    whole.depth(coin, 2, 2, 1, 0, 9, [1, 2], [])
    whole.line = lines[1]
    whole.depth(coin, 101, 101, 100, 0, 9, [1, 3], [])          # still the old numbers: not told
    whole.snapshot(coin, 1, 0, 9, [1, 1], [])
    whole.depth(coin, 2, 2, 1, 0, 9, [1, 2], [])
    whole.depth(coin, 3, 3, 2, 0, 9, [1, 4], [])
    assert [call[:3:2] for call in recorder.take()] == [("snapshot", 100), ("snapshot", 1), ("increment", 2), ("increment", 3)]
    whole.recoveries[0].disconnect([coin], 9, line=lines[0])
    assert recorder.take() == [] and whole.link(coin).state == LIVE


def test_decimals_grow_for_what_waits_on_either_leg_and_are_told_once():
    recorder = Recorder()
    whole = Redundant(lambda sink, number: Recovery(RULES["spot"], sink, lambda *order: None), recorder)
    coin, lines = Instrument(0, "v", "A"), [SimpleNamespace(leg=0), SimpleNamespace(leg=1)]
    whole.define(coin, 1, 1)
    for whole.line in lines:
        whole.depth(coin, 1, 2, None, 0, 9, [10, 1], [])
    recorder.take()
    whole.define(coin, 10, 1)
    assert [recovery.link(coin).buffer[0][-2] for recovery in whole.recoveries] == [[100, 1], [100, 1]]
    assert [call[0] for call in recorder.take()] == ["define"]


def test_the_storm_can_fail(monkeypatch):
    monkeypatch.setattr(Leg, "increment", lambda self, *event: self.whole.sink.increment(*event))
    with pytest.raises(AssertionError, match="twice, or back|lead on"):
        test_storm("rest", "spot", range(1))


def test_trades_and_quotes_come_once():
    recorder = Recorder()
    whole = Redundant(lambda sink, number: StreamRecovery(None, sink, None), recorder)
    coin = Instrument(0, "v", "A")
    for whole.line in [SimpleNamespace(leg=0), SimpleNamespace(leg=1)]:
        whole.trade(coin, 5, 1, 9, 5, 100, 1, 1)
        whole.bbo(coin, 6, 1, 9, 100, 1, 101, 1)
    assert [call[0] for call in recorder.take()] == ["trade", "bbo"]
