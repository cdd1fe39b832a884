"""No wrong book is ever live: in runs through the twin, with faults, each book that was published was told by the venue.

The twin notes each book as its clients hold it after a message (`on_book`), the publisher's is compared after each event.
"""

from decimal import Decimal

import pytest
from support import book_decimals, dice
from test_venue_live import EACH_FAULT, LIVE_VENUES, agree, desk_of, quick  # noqa: F401

from feeder import ingest
from feeder.clock import SECOND
from feeder.message import LIVE
from feeder.twin.faults import Fault
from feeder.venue import VENUES
from feeder.venue.contract import REST

# A REST book reaches to a limit only; at Bitfinex a change of the book is several messages, of which the last is noted.
WATCHED = [name for name in LIVE_VENUES if VENUES[name].book != REST and name != "bitfinex"]
QUICK = (("coinbase", "gap"), ("bithumb", "reorder"))
FAULTS = [pytest.param(*param.values, marks=() if param.values in QUICK else pytest.mark.stress)
          for param in EACH_FAULT if param.values[0] in WATCHED]


class Watch:
    """Both ends of a feed: the books the twin told, and whether one was live that is none of them."""

    def __init__(self, made):
        self.made = made
        self.told = {}                # symbol -> {book}
        self.wrong = []
        self.live = 0                 # how often one was, and was looked for
        venue = made.twin.venues[made.config.name]
        venue.on_book = self.note
        channel = venue.dialect.channel
        venue.dialect.channel = lambda *key: self.note(channel(*key))        # its first subscriber is told it so
        publisher = made.pipeline.publisher
        for name in ("snapshot", "increment"):
            setattr(publisher, name, self.watching(getattr(publisher, name), publisher))

    def note(self, channel):
        if channel.is_book:
            texts = self.made.twin.venues[self.made.config.name].source.spelled(channel.symbol, *channel.book()[1:])
            self.told.setdefault(channel.symbol, set()).add(tuple(
                tuple((Decimal(price), Decimal(quantity)) for price, quantity in side) for side in texts))
        return channel

    def watching(self, call, publisher):
        def watched(instrument, *more):
            call(instrument, *more)
            entry = publisher.entries[instrument.instrument_id]
            if entry.state == LIVE:
                self.live += 1
                book = tuple(map(tuple, book_decimals(entry)))
                if book not in self.told.get(instrument.symbol, ()):
                    self.wrong.append((instrument.symbol, more[0]))
        return watched


def watched(made, seed):
    """Begin, with both ends watched."""
    made.serve(rate=200, levels=40, time_scale=1.0)
    watch = Watch(made)                  # before decoders bind what is behind recovery
    made.feed = ingest.Feed(made.loop, made.pipeline, made.config, {}, dice(seed))
    made.feed.start()
    made.until(lambda: made.live() and made.feed.is_connected())
    return watch


@pytest.mark.parametrize("name, kind", FAULTS)
def test_with_faults_each_live_book_was_told(name, kind):
    with desk_of(name, stale_after_s=0.7) as made:
        watch = watched(made, 5)
        for _ in range(2):
            made.twin.inject(Fault(kind, 0, {"mute": 0.3, "slow": 0.3, "notice": 0.5}.get(kind, 0), None))
            made.spin({"mute": 0.8, "notice": 0.8}.get(kind, 0.4))
            made.until(made.live)
        agree(made)
        assert watch.wrong == [] and watch.live > 5


@pytest.mark.stress
@pytest.mark.parametrize("name", WATCHED)
def test_while_connections_replace_each_other_each_live_book_was_told(name, monkeypatch):
    monkeypatch.setattr(ingest, "ECHO_NS", SECOND // 5)
    with desk_of(name, lifetime_s=0.3) as made:
        watch = watched(made, 6)
        made.until(lambda: made.feed.rollovers >= 5 * len(made.feed.lines), 30)
        made.feed.config.lifetime_s = 0
        agree(made)
        assert watch.wrong == [] and watch.live > 20 and made.feed.row()["disconnects"] == 0
