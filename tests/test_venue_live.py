"""Every venue that has a twin, over TCP: each fault the twin can show heals, and books are the twin's; rollovers lose nothing.

The twin stops between two messages; then every book must be LIVE and, to the last level, the one the twin told.
"""

from decimal import Decimal
from types import SimpleNamespace

import pytest
from support import book_decimals, dice
from test_ingest import desk

from feeder import ingest, line
from feeder.clock import MILLISECOND, SECOND, steady_ns
from feeder.errors import VenueError
from feeder.message import LIVE, STALE
from feeder.net import Backoff
from feeder.twin.faults import Fault
from feeder.twin.registry import DIALECTS
from feeder.venue import VENUES
from feeder.venue.contract import REST
from feeder.websocket import TEXT

LIVE_VENUES = [name for name, venue in VENUES.items() if venue.facts and name in DIALECTS]
every_venue = pytest.mark.parametrize("name", LIVE_VENUES)
QUICK_FAULTS = ("gap", "checksum", "reset", "disconnect")        # the others take too long for every day: make stress
EACH_FAULT = [pytest.param(name, kind, marks=() if kind in QUICK_FAULTS else pytest.mark.stress)
              for name in LIVE_VENUES for kind in sorted(DIALECTS[name].faults)]
OF_EACH_KIND = {VENUES[name].book: name for name in reversed(LIVE_VENUES)}
ROLLOVERS = [pytest.param(name, seed, marks=() if (OF_EACH_KIND[VENUES[name].book], 0) == (name, seed) else pytest.mark.stress)
             for name in LIVE_VENUES for seed in range(3)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The pauses a real venue is owed, shortened."""
    monkeypatch.setattr(ingest, "RESUBSCRIBE_FIRST_NS", 20 * MILLISECOND)
    monkeypatch.setattr(ingest, "RESUBSCRIBE_CAP_NS", 200 * MILLISECOND)
    monkeypatch.setattr(ingest, "RESUBSCRIBE_DEADLINE_NS", SECOND)
    monkeypatch.setattr(ingest, "IMAGE_PATIENCE_NS", 100 * MILLISECOND)
    monkeypatch.setattr(ingest, "INSTRUMENTS_RETRY_NS", 100 * MILLISECOND)
    monkeypatch.setattr(line, "SETTLE_NS", 100 * MILLISECOND)
    monkeypatch.setattr(line, "TEND_NS", 20 * MILLISECOND)
    monkeypatch.setattr(Backoff, "next_ns", lambda self: 20 * MILLISECOND)
    monkeypatch.setattr(ingest.Hosts, "acquire_at", lambda self, host, at_ns, spacing_ns: at_ns)
    for dialect in DIALECTS.values():
        monkeypatch.setattr(dialect, "connects", (1_000, 60))            # as many as faults need


def start(made, name, **options):
    """Serve the venue and wait until all of its books are live."""
    facts = VENUES[name].facts
    if facts.ping is not None:          # not at the twin's pace, which would end connections that are tested otherwise
        options.setdefault("time_scale", 1.0)
    venue = made.serve(**options)
    made.start()
    made.until(lambda: made.live() and made.feed.is_connected())
    return venue


def desk_of(name, **keys):
    venue = VENUES[name]
    if venue.book != REST:
        keys = {"snapshot_limit": venue.facts.default("snapshot_limit"), **keys}
    return desk(name, symbols=[venue.spelling(coin, "USDT") for coin in ("BTC", "ETH")], **keys)


def told(made, symbol):
    """The books that the twin has told of a symbol, the whole one of the market, too."""
    twin = made.twin
    answer = twin._admin_book(twin.venues[made.config.name], {"symbol": symbol})
    books = answer.get("channels") or [dict(answer, sequence=answer["last_update_id"])]
    return [tuple([(Decimal(price), Decimal(quantity)) for price, quantity in book[side]] for side in ("bids", "asks"))
            for book in books]


def agree(made):
    """Stop the market; wait until all of it has come; every book must be live and equal."""
    made.twin.pause()
    entries = made.pipeline.publisher.entries

    def same():
        return all(entry.state == LIVE and book_decimals(entry) in told(made, entry.instrument.symbol)
                   for entry in entries)

    try:
        made.until(same, 6)
    finally:
        for entry in entries:
            entry.book.check()
    views = {view.symbol: view for view in made.receiver.views()}
    for entry in entries:
        view, factors = views[entry.instrument.symbol], entry.instrument
        for side, own, sign in zip((view.bids, view.asks), entry.book.published(), (-1, 1)):
            assert [sign * key for key in side.keys] == [price * factors.price_factor for price in own[::2]]
            assert side.quantities == [quantity * factors.quantity_factor for quantity in own[1::2]]
    made.twin.resume()


@every_venue
def test_books_are_the_twins(name):
    with desk_of(name) as made:
        start(made, name)
        feed = made.feed
        made.until(lambda: all(entry.trades for entry in made.pipeline.publisher.entries))
        for _ in range(3):
            made.spin(0.05)
            agree(made)
        row = feed.row()
        assert (row["disconnects"], row["bad_messages"], row["venue_errors"], row["unknown_symbols"]) == (0, 0, 0, [])
        assert all(link.gaps == link.resyncs == 0 for link in feed.recovery.links.values())
        assert made.feed.venue.checksums_failed == 0
        made.until(lambda: feed.instruments_date)
        for what in ("tick", "lot"):
            known = [bool(getattr(instrument, what)) for instrument in feed.instruments]
            assert all(known) or not any(known), f"a venue tells {what}s, or tells none"


@pytest.mark.parametrize("name, kind", EACH_FAULT)
def test_a_fault_heals(name, kind):
    with desk_of(name, stale_after_s=0.7) as made:
        venue = start(made, name)
        seconds = {"mute": 0.3, "slow": 0.3, "notice": 0.5}.get(kind, 0)
        made.twin.inject(Fault(kind, 0, seconds, None))
        done = made.twin.faults_done
        if kind in ("stale_snapshot", "rest_429", "rest_error"):      # they wait for a request
            if VENUES[name].book == REST:
                made.pipeline.resync(made.feed.instruments[0], "gap", 1)
            else:
                made.feed.fetch_instruments()
        made.until(lambda: done)
        made.spin({"mute": 0.4, "reorder": 0.2}.get(kind, 0.05))
        made.until(made.live)
        agree(made)
        assert venue.peers


@pytest.mark.stress
@every_venue
def test_a_lost_connection_is_stale_at_once_and_heals(name):
    with desk_of(name) as made:
        start(made, name)
        entries = made.pipeline.publisher.entries
        epochs = [entry.epoch for entry in entries]
        made.twin.inject(Fault("disconnect"))
        made.until(lambda: all(entry.state == STALE or entry.epoch > epoch for entry, epoch in zip(entries, epochs)))
        made.until(made.live)
        agree(made)
        assert made.feed.row()["disconnects"] >= 1


@every_venue
def test_an_unknown_symbol_is_named(name):
    venue = VENUES[name]
    known, unknown = venue.spelling("BTC", "USDT"), venue.spelling("NOSUCH", "USDT")
    with desk_of(name, first_data_deadline_s=0.3) as made:
        made.config.symbols = [known, unknown]
        made.serve(symbols=[known])
        feed = made.start()
        made.until(lambda: unknown in feed.row()["silent_symbols"] and unknown in feed.row()["unknown_symbols"])
        assert made.states()[0] == LIVE and known not in feed.row()["silent_symbols"] + feed.row()["unknown_symbols"]


class Trades:
    """Notes what leaves: trades by id, states."""

    def __init__(self, made):
        publisher = made.pipeline.publisher
        self.ids, self.stale = {}, []
        trade, stale = publisher.trade, publisher.stale

        def noted_trade(instrument, sequence, event_ns, recv_ns, trade_id, *more):
            self.ids.setdefault(instrument.symbol, []).append(trade_id)
            trade(instrument, sequence, event_ns, recv_ns, trade_id, *more)

        def noted_stale(instrument, reason, recv_ns):
            self.stale.append((instrument.symbol, reason))
            stale(instrument, reason, recv_ns)

        publisher.trade, publisher.stale = noted_trade, noted_stale


@pytest.mark.parametrize("name, seed", ROLLOVERS)
def test_planned_rollovers_lose_nothing(name, seed, monkeypatch):
    monkeypatch.setattr(ingest, "ECHO_NS", SECOND // 5)
    rng = dice(seed)
    with desk_of(name, lifetime_s=0.2 + rng.random() / 5) as made:
        made.serve()
        trades = Trades(made)            # before decoders bind what is behind recovery
        made.feed = ingest.Feed(made.loop, made.pipeline, made.config, {}, rng)
        made.feed.start()
        made.until(made.live)
        feed = made.feed
        market = made.twin.venues[name]
        made.until(lambda: feed.rollovers >= 2 * len(feed.lines), 20)
        feed.config.lifetime_s = 0
        agree(made)
        row = feed.row()
        assert trades.stale == [] and row["disconnects"] == 0 and row["lines"] == row["connected"] == len(feed.lines)
        assert all(link.gaps == link.resyncs == 0 for link in feed.recovery.links.values())
        for symbol, ids in trades.ids.items():
            assert len(ids) == len(set(ids)) > 10, "a trade came twice"
        check_trades(market, trades)
        assert row["connects"] >= 3 and row["received_bytes"] > 0


class Lossy:
    """A WebSocket machine that forgets every other message."""

    def __init__(self, websocket):
        self.websocket = websocket
        self.turn = 0

    def __getattr__(self, name):
        return getattr(self.websocket, name)

    def receive(self, data):
        for opcode, payload in self.websocket.receive(data):
            self.turn ^= 1
            if opcode != TEXT or self.turn:
                yield opcode, payload


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("binance_spot", "okx") else pytest.mark.stress)
                                  for name in LIVE_VENUES if "depth" in VENUES[name].facts.shared])
def test_of_two_lines_either_may_be_lost(name):
    """One connection after the other is killed, one loses a message now and then; no book is ever stale, no trade is missing."""
    rng = dice(5)
    with desk_of(name, lines=2) as made:
        made.serve()
        trades = Trades(made)
        feed = made.feed = ingest.Feed(made.loop, made.pipeline, made.config, {}, rng)
        feed.start()

        def whole():
            return made.live() and all(line.connected for line in feed.lines) and all(
                recovery.link(instrument).state == LIVE for recovery in feed.recoveries for instrument in feed.instruments)

        made.until(whole)
        trades.ids.clear()
        for number in range(6):
            if number % 3 == 2:
                lossy = rng.choice([line for line in feed.lines if line.books])
                leg = feed.recovery.legs[lossy.leg]
                covered = leg.covered
                lossy.websocket = Lossy(lossy.websocket)
                made.until(lambda: leg.covered > covered)
                lossy.websocket = lossy.websocket.websocket
            else:
                rng.choice(feed.lines).lose(VenueError("killed by the test"))
            assert made.live()
            made.until(whole, 10)
        made.until(lambda: all(len(ids) > 10 for ids in trades.ids.values()))
        agree(made)
        assert trades.stale == []
        row = feed.row()
        assert row["disconnects"] == 4 and row["lines"] == len(feed.lines) == row["connected"]
        assert min(leg["wins"] for leg in row["legs"]) > 0 and sum(leg["covered"] for leg in row["legs"]) >= 4
        for ids in trades.ids.values():
            assert len(ids) == len(set(ids)), "a trade came twice"
            ids.sort()                   # one that a line lost comes when the other brings it
        check_trades(made.twin.venues[name], trades)


def check_trades(market, trades):
    """Where trade ids are counted one by one, none may be missing."""
    if market.name.startswith("binance"):
        for ids in trades.ids.values():
            assert ids == list(range(ids[0], ids[0] + len(ids))), "a trade was lost, or out of order"


@pytest.mark.stress
@every_venue
def test_a_venue_that_ends_connections_is_followed_before(name):
    if "notice" not in DIALECTS[name].faults:
        pytest.skip("this venue says nothing before it ends a connection")
    with desk_of(name) as made:
        start(made, name)
        trades = SimpleNamespace(stale=[])
        publisher = made.pipeline.publisher
        stale = publisher.stale
        publisher.stale = lambda *what: (trades.stale.append(what), stale(*what))
        made.twin.inject(Fault("notice", 0, 5, None))
        made.until(lambda: made.feed.rollovers == len(made.feed.lines))
        agree(made)
        assert trades.stale == [] and made.feed.row()["disconnects"] == 0


@pytest.mark.stress
@every_venue
def test_a_minute_of_faults(name):
    """One a second, of any kind; between them every book is compared."""
    rng = dice(11)
    with desk_of(name, stale_after_s=0.7) as made:
        start(made, name, rate=400)
        end_ns = steady_ns() + 60 * SECOND
        while steady_ns() < end_ns:
            kind = rng.choice(sorted(DIALECTS[name].faults))
            made.twin.inject(Fault(kind, 0, rng.choice((0.2, 0.5, 1.0)) if kind in ("mute", "slow", "notice") else 0, None))
            made.spin(rng.uniform(0.2, 1.0))
            made.until(made.live)
            made.spin(0.05)
            if rng.random() < 0.3:
                made.spin(0.8)
                made.until(made.live)
                agree(made)
        made.spin(1.5)
        made.until(made.live)
        agree(made)
        print(name, made.feed.row(), made.feed.venue.kinds)
