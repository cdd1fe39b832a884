"""No book that the venue never had is published live: every published state is compared, through the twin's faults.

The twin tells its state after each message of a book. A venue may tell one change in several messages (Bitfinex: a row
each), so what is published lies between two neighbouring states: each of its levels is as in one of them. Venues whose
book joins a REST answer hold more than one channel tells, and are compared at rest (test_venue_live).
"""

from decimal import Decimal

import pytest
from support import book_decimals, dice
from test_venue_live import LIVE_VENUES, desk_of, quick      # noqa: F401 (a fixture)

from feeder.message import LIVE
from feeder.twin.faults import Fault
from feeder.twin.registry import DIALECTS
from feeder.venue import VENUES
from feeder.venue.contract import STREAM

WATCHED = [name for name in LIVE_VENUES if VENUES[name].book == STREAM]
CORRUPTING = ("gap", "reorder", "duplicate", "checksum", "no_checksum", "sequence", "no_sequence", "snapshot", "reset",
              "garbage", "disconnect")
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
        if not any(lies_between(found, states[max(0, at - 1)], states[at]) for at in range(len(states) - 1, -1, -1)):
            self.wrong.append((symbol, entry.sequence, entry.events))


def lies_between(found, one, other):
    return all(found_side.get(price) in (first.get(price), second.get(price))
               for found_side, first, second in zip(found, one, other)
               for price in found_side.keys() | first.keys() | second.keys())


def watch(name, kinds, count, seed):
    """Show so many faults of these kinds, one after another; return the Witness."""
    rng = dice(seed)
    with desk_of(name, stale_after_s=0.7) as made:
        made.serve(time_scale=1.0, levels=60)
        witness = Witness(made)
        feed = made.start()
        made.until(made.live)
        for _ in range(count):
            made.twin.inject(Fault(rng.choice(kinds)))
            made.spin(rng.uniform(0.05, 0.25))
            made.until(made.live)
        row = feed.row()
        print(f"{name}: {witness.judged} states judged, {count} faults, {row['disconnects']} disconnects, "
              f"{row['snapshots_requested']} books asked for again, {len(witness.wrong)} wrong")
    assert witness.judged > 20
    return witness


@pytest.mark.parametrize("name", [name for name in WATCHED if "checksum" in DIALECTS[name].faults])
def test_no_wrong_book_is_ever_live(name):
    assert watch(name, ("gap", "checksum"), 3, 1).wrong == []


@pytest.mark.stress
@pytest.mark.parametrize("name", WATCHED)
def test_no_wrong_book_is_ever_live_for_long(name):
    assert watch(name, [kind for kind in CORRUPTING if kind in DIALECTS[name].faults], 80, 2).wrong == []
