"""No book that the venue never had is published live: every published state is compared, through the twin's faults.

The twin tells its state after each message of a book, and what is published must be one of those. Bitfinex alone tells
one change in several messages, a row each: there it lies between two neighbouring states, each of its levels is as in
one of them. Venues whose book joins a REST answer hold more than one channel tells, and are compared at rest
(test_venue_live).
"""

from contextlib import contextmanager
from decimal import Decimal

import pytest
from support import book_decimals, dice
from test_venue_live import EACH_FAULT, LIVE_VENUES, agree, desk_of, quick      # noqa: F401 (a fixture)

from feeder import ingest
from feeder.clock import SECOND
from feeder.message import LIVE
from feeder.twin.faults import Fault
from feeder.twin.registry import DIALECTS
from feeder.venue import VENUES
from feeder.venue.contract import REST

WATCHED = [name for name in LIVE_VENUES if VENUES[name].book != REST]
BY_ROWS = "bitfinex"              # tells one change in several messages
CORRUPTING = ("gap", "reorder", "duplicate", "checksum", "no_checksum", "sequence", "no_sequence", "snapshot", "reset",
              "garbage", "disconnect")
QUICK = [("bitfinex", ("gap", "checksum"), 3), ("kraken", ("gap", "checksum"), 3), ("coinbase", ("gap",), 2),
         ("bithumb", ("reorder",), 2)]
EACH_ALONE = [pytest.param(*param.values, marks=pytest.mark.stress) for param in EACH_FAULT if param.values[0] in WATCHED]
SECONDS = {"mute": 0.3, "slow": 0.3, "notice": 0.5}
KEPT = 4_000                      # states a symbol


class Witness:
    """Notes what the twin tells from the first subscriber on, and judges what is published."""

    def __init__(self, made):
        self.made = made
        self.market = made.twin.venues[made.config.name]
        self.states = {}          # symbol -> [(bids, asks)], {price: quantity} each
        self.judged = 0
        self.wrong = []
        self.market.on_book = self.note
        make = self.market.dialect.channel

        def channel(key, source):
            made = make(key, source)
            if made.is_book:
                self.note(made)
            return made

        self.market.dialect.channel = channel
        publisher = made.pipeline.publisher
        for name in ("snapshot", "increment"):
            setattr(publisher, name, self.judging(getattr(publisher, name), publisher))

    def note(self, channel):
        words, (_, *sides) = channel.words, channel.book()
        states = self.states.setdefault(channel.symbol, [])
        state = tuple({Decimal(words.price(price)): Decimal(words.quantity(lots)) for price, lots in side}
                      for side in sides)
        if not states or states[-1] != state:
            states.append(state)
            del states[:-KEPT]

    def judging(self, call, publisher):
        def judged(instrument, *more):
            call(instrument, *more)
            entry = publisher.entries[instrument.instrument_id]
            if entry.state == LIVE:
                self.judge(entry)
        return judged

    def judge(self, entry):
        self.judged += 1
        symbol, states = entry.instrument.symbol, self.states[entry.instrument.symbol]
        found = tuple(map(dict, book_decimals(entry)))
        if self.market.name == BY_ROWS:
            true = any(lies_between(found, states[max(0, at - 1)], states[at]) for at in range(len(states) - 1, -1, -1))
        else:
            true = any(found == state for state in reversed(states))
        if not true:
            self.wrong.append((symbol, entry.sequence, entry.events))


def lies_between(found, one, other):
    return all(found_side.get(price) in (first.get(price), second.get(price))
               for found_side, first, second in zip(found, one, other)
               for price in found_side.keys() | first.keys() | second.keys())


@contextmanager
def watched(name, **keys):
    """A desk whose books are live, and its Witness, which heard of them all."""
    with desk_of(name, **keys) as made:
        made.serve(rate=400, time_scale=1.0, levels=60)
        witness = Witness(made)              # before decoders bind what is behind recovery
        made.feed = ingest.Feed(made.loop, made.pipeline, made.config, {}, dice(5))
        made.feed.start()
        made.until(lambda: made.live() and made.feed.is_connected())
        yield made, witness
        made.until(lambda: witness.judged > 20)
        row = made.feed.row()
        print(f"{name}: {witness.judged} states judged, {row['disconnects']} disconnects, "
              f"{row['snapshots_requested']} books asked for again, {len(witness.wrong)} wrong")


def watch(name, kinds, count, seed):
    """Show so many faults of these kinds, one after another; return the Witness."""
    rng = dice(seed)
    with watched(name, stale_after_s=0.7) as (made, witness):
        for _ in range(count):
            made.twin.inject(Fault(rng.choice(kinds)))
            made.spin(rng.uniform(0.05, 0.25))
            made.until(made.live)
    return witness


@pytest.mark.parametrize("name, kinds, count", [each for each in QUICK if each[0] in WATCHED])
def test_no_wrong_book_is_ever_live(name, kinds, count):
    assert watch(name, kinds, count, 1).wrong == []


@pytest.mark.stress
@pytest.mark.parametrize("name", WATCHED)
def test_no_wrong_book_is_ever_live_for_long(name):
    assert watch(name, [kind for kind in CORRUPTING if kind in DIALECTS[name].faults], 80, 2).wrong == []


@pytest.mark.parametrize("name, kind", EACH_ALONE)
def test_nor_with_any_fault(name, kind):
    with watched(name, stale_after_s=0.7) as (made, witness):
        for _ in range(2):
            made.twin.inject(Fault(kind, 0, SECONDS.get(kind, 0), None))
            made.spin({"mute": 0.8, "notice": 0.8}.get(kind, 0.4))
            made.until(made.live)
        agree(made)
    assert witness.wrong == []


@pytest.mark.stress
@pytest.mark.parametrize("name", WATCHED)
def test_nor_while_connections_replace_each_other(name, monkeypatch):
    monkeypatch.setattr(ingest, "ECHO_NS", SECOND // 5)
    with watched(name, lifetime_s=0.3) as (made, witness):
        made.until(lambda: made.feed.rollovers >= 5 * len(made.feed.lines), 30)
        made.feed.config.lifetime_s = 0
        agree(made)
        assert made.feed.row()["disconnects"] == 0
    assert witness.wrong == []

