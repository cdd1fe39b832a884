"""The twin's Kraken over real sockets, read by a bare client written from the fact sheet alone; checksums included."""

import json
import re
from decimal import Decimal
from zlib import crc32

import pytest

from feeder.twin.dialect import iso_text
from feeder.twin.faults import parse
from twin_bench import Book, Follower, bench, keys

KRAKEN = "kraken"
BTC, ETH, DOGE = "BTC/USD", "ETH/USD", "DOGE/USD"
TOKENS = {"parse_float": str, "parse_int": str}              # the wire's digits


def checksum(bids, asks):
    """Fact sheet, 5: {price token: quantity token}."""
    text = ""
    for side, is_bid in ((asks, False), (bids, True)):
        for price in sorted(side, key=Decimal, reverse=is_bid)[:10]:
            text += price.replace(".", "").lstrip("0") + side[price].replace(".", "").lstrip("0")
    return crc32(text.encode())


def test_the_documented_vector():
    asks = ("45285.2 0.00100000 | 45286.4 1.54571953 | 45286.6 1.54571109 | 45289.6 1.54560911 | 45290.2 0.15890660 | "
            "45291.8 1.54553491 | 45294.7 0.04454749 | 45296.1 0.35380000 | 45297.5 0.09945542 | 45299.5 0.18772827")
    bids = ("45283.5 0.10000000 | 45283.4 1.54582015 | 45282.1 0.10000000 | 45281.0 0.10000000 | 45280.3 1.54592586 | "
            "45279.0 0.07990000 | 45277.6 0.03310103 | 45277.5 0.30000000 | 45277.3 1.54602737 | 45276.6 0.15445238")
    sides = [dict(level.split() for level in side.split(" | ")) for side in (bids, asks)]
    assert checksum(*sides) == 3310070434


class Reader(Follower):
    """Fact sheet, 5: apply, truncate, verify; a mismatch resyncs this symbol."""

    target = "/v2"
    hooks = TOKENS

    def __init__(self, it, symbols, depth=10):
        self.depth = depth
        self.texts = {}                  # symbol -> ({bid token: quantity token}, {ask ..})
        super().__init__(it, KRAKEN, {symbol: Book(symbol, depth) for symbol in symbols})

    def subscribe(self):
        self.request("subscribe", list(self.books), snapshot=True)

    def request(self, method, symbols, **more):
        self.client.send(method=method, params={"channel": "book", "symbol": symbols, "depth": self.depth, **more},
                         req_id=7)

    def take(self, message):
        if message.get("channel") != "book":
            self.others.append(message)
            if message.get("method") == "unsubscribe":
                self.request("subscribe", [message["result"]["symbol"]])
            return
        row, = message["data"]
        book = self.books[row["symbol"]]
        if message["type"] == "snapshot":
            book.load([], [])
            self.texts[book.symbol] = {}, {}
        elif book.sides is None:
            return
        book.counts["updates"] += message["type"] == "update"
        texts = self.texts[book.symbol]
        for number, side in enumerate(("bids", "asks")):
            prices = [level["price"] for level in row[side]]
            book.counts["twice"] += len(prices) - len(set(prices))
            for level in row[side]:
                texts[number][level["price"]] = level["qty"]
            for price in [price for price, quantity in texts[number].items() if not Decimal(quantity)]:
                del texts[number][price]
            for price in sorted(texts[number], key=Decimal, reverse=number == 0)[self.depth:]:
                del texts[number][price]
            book.sides[number].clear()
            book.set(number, texts[number].items())
        if row.get("checksum") != str(checksum(*texts)):
            book.gap()
            self.request("unsubscribe", [book.symbol])

    def is_true(self, book):
        (_, sequence, *_), = [row for row in self.it.twin.venues[KRAKEN].books(book.symbol) if row[0][2] == self.depth]
        return super().is_true(book) and checksum(*self.texts[book.symbol]) == sequence


@pytest.mark.parametrize("depth", [10, 25, 1000])
def test_books_of_each_depth_are_true_and_every_checksum_verifies(depth):
    with bench({KRAKEN: [BTC, DOGE, ETH]}, rate=3_000, levels=depth + 200) as it:
        reader = Reader(it, [BTC, DOGE], depth)
        reader.more("updates", 60)
        reader.settle()
        assert not reader.count("gaps") and reader.count("snapshots") == 2 and reader.count("twice") > 0
        late = Reader(it, [BTC, DOGE], depth)
        late.settle()
        assert not late.count("gaps")


@pytest.mark.parametrize("kind, gaps", [("gap", 1), ("reorder", 1), ("checksum", 1), ("no_checksum", 1),
                                        ("duplicate", 0), ("snapshot", 0)])
def test_faults_show_by_the_checksum_and_heal(kind, gaps):
    with bench({KRAKEN: [BTC, ETH]}, faults=[parse(f"{kind}@0.1:{BTC}")]) as it:
        reader = Reader(it, [BTC, ETH], 25)
        it.until(lambda: reader.is_live() and it.twin.faults_done)
        reader.settle()
        assert bool(reader.books[BTC].counts["gaps"]) == bool(gaps) and not reader.books[ETH].counts["gaps"]
        assert reader.connects == 1


def collect(it, client, count, what="method"):
    found = []
    it.until(lambda: found.extend(message for message in client.texts() if what in message) or len(found) >= count)
    return found


def test_each_symbol_is_answered_and_the_others_go_on():
    with bench({KRAKEN: [BTC, ETH]}) as it:
        client = it.client(KRAKEN, "/v2")
        client.send(method="subscribe", params={"channel": "book", "symbol": [BTC, "BTC/USDX", ETH]}, req_id=1)
        client.send(method="subscribe", params={"channel": "book", "symbol": [BTC], "depth": 25}, req_id=2)
        client.send(method="unsubscribe", params={"channel": "book", "symbol": [BTC], "depth": 25}, req_id=3)
        client.send(method="unsubscribe", params={"channel": "book", "symbol": [BTC], "depth": 10}, req_id=4)
        client.send(method="subscribe", params={"channel": "book", "symbol": [BTC], "depth": 11}, req_id=5)
        client.send(method="subscribe", params={"channel": "l3", "symbol": [BTC]}, req_id=6)
        client.send(method="ping", req_id=42)
        client.say("{")
        found = collect(it, client, 10)
        assert [message.get("success") for message in found] == [
            True, False, True, False, False, True, False, False, None, False]
        time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
        for message in found:
            start, end = message.pop("time_in"), message.pop("time_out")
            assert re.fullmatch(time, start) and re.fullmatch(time, end) and start < end
        assert found[0] == {"method": "subscribe", "result": {"channel": "book", "depth": 10, "snapshot": True,
                                                              "symbol": BTC}, "success": True, "req_id": 1}
        assert found[1] == {"method": "subscribe", "error": "Currency pair not supported BTC/USDX", "success": False,
                            "symbol": "BTC/USDX", "req_id": 1}
        assert found[8] == {"method": "pong", "req_id": 42}
        assert it.twin.venues[KRAKEN].channels.keys() == {("book", ETH, 10)}


def test_heartbeats_fill_silence_and_idle_clients_are_cut_off():
    with bench({KRAKEN: [BTC]}, time_scale=200) as it:                         # 1 s is 5 ms, a minute 0.3 s
        idle, asking, subscribed = (it.client(KRAKEN, "/v2") for _ in range(3))
        assert collect(it, idle, 1, "channel")[0]["data"][0]["system"] == "online"
        subscribed.send(method="subscribe", params={"channel": "trade", "symbol": [BTC]})
        assert collect(it, subscribed, 1)[0]["success"]
        it.twin.pause()
        beats = []

        def ask():
            if not asking.is_closed:
                asking.send(method="ping")
                it.loop.call_after(50_000_000, ask)

        ask()
        it.until(lambda: idle.is_closed and (beats.extend(subscribed.texts()) or True))
        assert not asking.is_closed and not subscribed.is_closed
        assert beats.count({"channel": "heartbeat"}) > 20
        it.twin.resume()
        asking.stream.abort()


def test_messages_are_written_as_the_recorded_ones():
    recorded = {
        "book": '{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[],"asks":[{"price":62806.6,'
                '"qty":0.00000000},{"price":62808.0,"qty":0.79607759}],"checksum":265834348,'
                '"timestamp":"2026-08-16T23:37:05.376419Z"}]}',
        "trade": '{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"buy","price":105944.20,'
                 '"qty":0.00027625,"ord_type":"limit","trade_id":10218208,"timestamp":"2023-10-06T17:35:55.440295Z"}]}'}
    with bench({KRAKEN: [BTC]}) as it:
        client = it.client(KRAKEN, "/v2")
        for channel in recorded:
            client.send(method="subscribe", params={"channel": channel, "symbol": [BTC]})
        raws = []
        it.until(lambda: raws.extend(raw.decode() for _, raw in client.messages) or client.messages.clear()
                 or len(raws) > 60)
        for raw in raws:
            message = json.loads(raw)
            if message.get("type") == "update" and message["channel"] in recorded:
                assert keys(message)[:2] == keys(json.loads(recorded[message["channel"]]))[:2]
                assert list(message["data"][0]) == list(json.loads(recorded[message["channel"]])["data"][0])
            for price in re.findall(r'"price":([^,]*),', raw):
                assert re.fullmatch(r"\d+\.\d", price)                           # every decimal, and as a number
            for quantity in re.findall(r'"qty":([^,}]*)[,}]', raw):
                assert re.fullmatch(r"\d+\.\d{8}", quantity)


def test_trades_number_on_and_a_snapshot_is_had_on_request():
    with bench({KRAKEN: [BTC]}) as it:
        client = it.client(KRAKEN, "/v2")
        client.send(method="subscribe", params={"channel": "trade", "symbol": [BTC]})
        rows = []
        it.until(lambda: rows.extend(row for message in client.texts() if message.get("channel") == "trade"
                                     for row in message["data"]) or len(rows) > 60)
        numbers = [row["trade_id"] for row in rows]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert {row["side"] for row in rows} == {"buy", "sell"}
        late = it.client(KRAKEN, "/v2")
        late.send(method="subscribe", params={"channel": "trade", "symbol": [BTC], "snapshot": True})
        snapshot = collect(it, late, 1, "data")
        snapshot = [message for message in snapshot if message["type"] == "snapshot"] or collect(it, late, 1, "data")
        assert len(snapshot[0]["data"]) == 50


def test_best_prices_instruments_and_rest():
    with bench({KRAKEN: [BTC, DOGE]}) as it:
        client = it.client(KRAKEN, "/v2")
        client.send(method="subscribe", params={"channel": "ticker", "symbol": [BTC], "event_trigger": "bbo"})
        client.send(method="subscribe", params={"channel": "instrument"})
        seen = {}
        it.until(lambda: seen.update({message.get("channel"): message for message in client.texts()})
                 or {"ticker", "instrument"} <= seen.keys())
        assert [pair["symbol"] for pair in seen["instrument"]["data"]["pairs"]] == [BTC, DOGE]
        assert seen["instrument"]["data"]["pairs"][0]["price_increment"] == 0.1
        it.twin.pause()
        for _ in range(10):
            it.loop.run_once(5_000_000)
        seen.update({message.get("channel"): message for message in client.texts(parse_float=str)})
        bids, asks = it.truth(KRAKEN, BTC, 1)
        best = seen["ticker"]["data"][0]
        assert [tuple(Decimal(str(best[name])) for name in ("bid", "bid_qty")),
                tuple(Decimal(str(best[name])) for name in ("ask", "ask_qty"))] == [bids[0], asks[0]]
        pairs = it.get(KRAKEN, "/0/public/AssetPairs")[2]["result"]
        assert {name: (pair["wsname"], pair["pair_decimals"], pair["tick_size"]) for name, pair in pairs.items()} == {
            "XBTUSD": ("XBT/USD", 1, "0.1"), "XDGUSD": ("XDG/USD", 6, "0.000001")}
        depth = it.get(KRAKEN, "/0/public/Depth?pair=XBTUSD&count=3")[2]["result"]["XBTUSD"]
        assert len(depth["bids"]) == len(depth["asks"]) == 3
        assert it.get(KRAKEN, "/0/public/AssetPairs?pair=NO")[2]["error"] == ["EQuery:Unknown asset pair"]
        it.get(KRAKEN, "/twin/fault?kind=rest_429")
        assert it.get(KRAKEN, "/0/public/Time")[0] == 429
        missing = it.client(KRAKEN, "/v1")
        it.until(lambda: missing.is_closed)


@pytest.mark.parametrize("seconds, text", [
    (0, "1970-01-01T00:00:00"), (951_782_400, "2000-02-29T00:00:00"), (1_709_164_799, "2024-02-28T23:59:59"),
    (1_735_689_599, "2024-12-31T23:59:59"), (1_740_787_200, "2025-03-01T00:00:00"),
    (4_107_542_400, "2100-03-01T00:00:00")])
def test_dates(seconds, text):
    assert iso_text(seconds * 10 ** 9 + 123_456_789) == text + ".123456Z"
    assert iso_text(seconds * 10 ** 9 + 5, 9) == text + ".000000005Z" and iso_text(seconds * 10 ** 9, 0) == text + "Z"
