"""Every Binance recording through the whole of the machines, against a plain model fed by plain json.

One run of a recording a session; the tests look at its results. The counts are printed, `pytest -s` shows them.
"""

import json
import re
from bisect import bisect_right
from decimal import Decimal
from functools import lru_cache
from urllib.parse import parse_qs, urlsplit

import pytest
from support import (BINANCE, CAPTURES, Model, Recorder, book_decimals, decimals, lines, needs_captures, recordings,
                     short)

from feeder import capture
from feeder.errors import VenueError
from feeder.message import LIVE
from feeder.receiver import Receiver
from feeder.replay import Replay
from feeder.venue import VENUES, recognise
from feeder.venue.contract import Instruments

pytestmark = needs_captures
RECORDINGS = recordings(*BINANCE)
LONG = "btcusdt_20240718_8min", "ethusdt_20240808_6min"       # of one book each; USD-M has a quick one, too
every_recording = pytest.mark.parametrize("path", [
    pytest.param(path, id=short(path), marks=pytest.mark.stress if path.name.startswith(LONG) else ())
    for path in RECORDINGS])


class Run:
    """A recording through Replay into a Receiver, with the best prices noted at every venue sequence."""

    def __init__(self, path):
        self.receiver = Receiver()
        self.now_ns = 1
        self.replay = Replay(self.emit, session=7, depth=20)
        self.best = {}                # (symbol, sequence) -> (bid, quantity, ask, quantity)
        publisher = self.replay.pipeline.publisher
        for name in ("snapshot", "increment"):
            setattr(publisher, name, self.noting(getattr(publisher, name), publisher))
        self.replay.file(path)
        publisher.flush()
        self.entries = publisher.entries

    def emit(self, datagram):
        self.now_ns += 1
        self.receiver.receive(datagram, self.now_ns)

    def noting(self, call, publisher):
        def noted(instrument, sequence, *more):
            call(instrument, sequence, *more)
            book = publisher.entries[instrument.instrument_id].book
            bid, ask = book.bids.best, book.asks.best
            self.best[instrument.symbol, sequence] = (bid, book.bids.window[bid], ask, book.asks.window[ask],
                                                      instrument.price_decimals, instrument.quantity_decimals)
        return noted


class Truth:
    """The same recording by json, dicts and sorting; shares no line with the feeder."""

    def __init__(self, path):
        self.models = {}
        self.tickers = {}             # (symbol, update id) -> the venue's own best prices, as it prints them
        self.trades = {}
        self.futures = path.parent.name != "binance_spot"
        for entry in lines(path):
            if entry["dir"] == "in":
                (self.rest if entry["kind"] == "rest" else self.message)(entry, json.loads(entry["raw"]))

    def rest(self, entry, body):
        symbol = parse_qs(urlsplit(entry["conn"]).query)["symbol"][0]
        self.model(symbol).snapshot(body)

    def model(self, symbol):
        return self.models.setdefault(symbol, Model(self.futures))

    def message(self, entry, message):
        data = message["data"]
        if data.get("e") == "depthUpdate":
            self.model(data["s"]).event(data)
        elif "B" in data:
            self.tickers[data["s"], data["u"]] = data["b"], data["B"], data["a"], data["A"]
        elif data["e"] in ("trade", "aggTrade") and data.get("X", "MARKET") == "MARKET":
            self.trades[data["s"]] = self.trades.get(data["s"], 0) + 1


run = lru_cache(maxsize=None)(Run)
truth = lru_cache(maxsize=None)(Truth)


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Half a gigabyte, which the tests after these would drag along."""
    yield
    run.cache_clear()
    truth.cache_clear()


@every_recording
def test_replays_without_a_gap_and_ends_live_with_the_models_books(path):
    replay, model = run(path).replay, truth(path)
    rows = replay.report(1)["instruments"]
    assert {row["symbol"] for row in rows} == set(model.models)
    for entry, row in zip(run(path).entries, rows):
        symbol = model.models[row["symbol"]]
        assert (symbol.gaps, row["gaps"], row["resyncs"], row["crossed"], row["buffer_overflows"]) == (0, 0, 0, 0, 0)
        assert row["state"] == "live" and row["reason"] == "none" and row["late_snapshots"] == 0
        assert row["last_sequence"] == symbol.sequence
        assert row["events"] == symbol.applied + 1, "one snapshot and every event that was due"
        assert row["trades"] == model.trades.get(row["symbol"], 0)
        entry.book.check()
        assert book_decimals(entry) == symbol.top(), "every level of both sides"
        assert row["levels"] == [len(symbol.bids), len(symbol.asks)]
        for side, levels in (("bids", symbol.top(20)[0]), ("asks", symbol.top(20)[1])):
            assert [(Decimal(price), Decimal(quantity)) for price, quantity in row[side]] == levels
    assert replay.error_count == 0 and replay.errors == []


def best_decimals(found):
    bid, bid_quantity, ask, ask_quantity, price_decimals, quantity_decimals = found
    return [number for level in decimals((bid, bid_quantity, ask, ask_quantity), price_decimals, quantity_decimals)
            for number in level]


@every_recording
def test_best_prices_equal_the_venues_own_at_the_same_update_id(path):
    """Price and quantity of both sides, wherever the venue sent a bookTicker with the very id the book had."""
    best, tickers = run(path).best, truth(path).tickers
    compared = 0
    for key, texts in tickers.items():
        if key in best:
            assert best_decimals(best[key]) == list(map(Decimal, texts)), key
            compared += 1
    at_least = {"ethusd_perp_20240808_11min": 2278, "4sym_20210814": 98, "binanceus_4sym_20210814": 79,
                "btcusdt_20240808_10min": 1072, "5sym_20210405": 216, "btcusdt_20240718_8min": 625,
                "ethusdt_20240808_6min": 551}.get(path.name.partition(".")[0], 0)
    print(f"{short(path)}: {compared} compared at equal ids, all agree")
    assert compared >= at_least


def readme_numbers(path):
    """Return (agreeing, compared) as the data's README states them for a recording, None for one it does not list."""
    row = next((line for line in (CAPTURES / "README.md").read_text().splitlines()
                if f"| {path.parent.name}/{path.name} |" in line), "")
    found = re.search(r"same update id ([0-9]+)/([0-9]+)", row)
    return tuple(map(int, found.groups())) if found else None


@every_recording
def test_best_prices_equal_the_venues_at_the_same_or_nearest_earlier_id(path):
    """As the data's README counted: at each book event, the newest bookTicker up to its id. Its numbers must be met.

    A bookTicker comes with every change of the best level, so the nearest earlier one has the best of now; two of
    6,492 differ in one recording, where the venue left one out (README).
    """
    tickers, ids = truth(path).tickers, {}
    for symbol, update_id in sorted(tickers):
        ids.setdefault(symbol, []).append(update_id)
    compared = agreeing = 0
    for (symbol, sequence), found in run(path).best.items():
        at = bisect_right(ids.get(symbol, []), sequence)
        if at:
            compared += 1
            agreeing += best_decimals(found) == list(map(Decimal, tickers[symbol, ids[symbol][at - 1]]))
    print(f"{short(path)}: {agreeing} of {compared} agree, README has {readme_numbers(path)}")
    assert compared - agreeing <= (2 if path.name.startswith("btcusdt_20240808") else 0)
    if readme_numbers(path):
        assert agreeing >= readme_numbers(path)[0] and compared >= readme_numbers(path)[1]


@every_recording
def test_a_receiver_of_the_packets_ends_with_the_publishers_books(path):
    heard, entries = run(path).receiver, run(path).entries
    assert (heard.gap_count, heard.errors, heard.mismatches, heard.crossed, heard.undefined) == (0, {}, 0, 0, 0)
    views = {(view.venue, view.symbol): view for view in heard.views()}
    assert len(views) == len(entries)
    for entry in entries:
        instrument = entry.instrument
        view = views[instrument.venue, instrument.symbol]
        assert view.state == LIVE and view.trades == entry.trades and view.bbos == entry.bbos
        assert view.last_venue_sequence <= entry.sequence       # events wholly below the window are not published
        for side, own, sign in zip((view.bids, view.asks), entry.book.published(), (-1, 1)):
            assert [sign * key for key in side.keys] == [price * instrument.price_factor for price in own[::2]]
            assert side.quantities == [quantity * instrument.quantity_factor for quantity in own[1::2]]


@pytest.mark.parametrize("path", [pytest.param(path, id=short(path), marks=pytest.mark.stress if path.stat().st_size > 2 << 20
                                               else ()) for path in RECORDINGS])
def test_both_paths_make_the_same_calls_on_every_message(path):
    kind = VENUES[path.parent.name]
    likely, unlikely = (kind(Recorder(), Instruments(), discover=True) for _ in range(2))
    count = 0
    for record in capture.read(path):
        if record.kind == "ws" and record.direction == "in":
            count += 1
            assert likely.decode(record.payload, record.t) == unlikely.decode_json(record.payload, record.t)
            assert likely.sink.take() == unlikely.sink.take(), record.payload
    print(f"{short(path)}: {count} messages, {likely.likely} of them by the likely path")
    assert likely.likely > 0.75 * count, "the comparison must have compared two paths"


SINGLE = [path for venue in BINANCE for path in sorted(CAPTURES.glob(f"{venue}/*.jsonl"))]


@pytest.mark.parametrize("path", SINGLE, ids=short)
def test_single_messages_are_read_or_counted(path):
    """One message a type, from the wire or from documentation: none is a fault but what is no message of ours."""
    kind = VENUES[path.parent.name]
    likely, unlikely = (kind(Recorder(), Instruments(), discover=True) for _ in range(2))
    for entry in lines(path):
        if entry["kind"] == "ws" and entry["dir"] == "in":
            payload = entry["raw"].encode()
            if "method" in entry["raw"]:          # what a client sends, in the documentation
                with pytest.raises(VenueError, match="unknown message"):
                    likely.decode(payload, 1)
                continue
            for _ in range(2):
                assert likely.decode(payload, 1) == unlikely.decode_json(payload, 1)
                assert likely.sink.take() == unlikely.sink.take()
        elif entry["dir"] == "in" and unlikely.snapshot_symbol(entry["conn"]):
            assert recognise(entry["conn"]) is kind
            instrument = unlikely.instrument(unlikely.snapshot_symbol(entry["conn"]))
            unlikely.decode_snapshot(instrument, entry["raw"].encode(), 1)
            assert [call[0] for call in unlikely.sink.take()][-1] == "snapshot"
    print(f"{short(path)}: {dict(unlikely.kinds)}")


def test_the_recordings_are_the_ones_we_know():
    """Eight recordings of 19 books; fewer would make everything above quietly weaker."""
    assert len(RECORDINGS) >= 8
    assert sum(len(truth(path).models) for path in RECORDINGS if not path.name.startswith(LONG)) >= 19 - len(LONG)
