"""The twin's Bithumb over real sockets, read by a bare client written from the fact sheet alone; what it shares with
Upbit is tested there."""

import json
import re
from decimal import ROUND_HALF_UP, Decimal

import pytest
from test_twin_upbit import Reader, collect, orderbook, request, trade
from twin_bench import bench, keys

from feeder.twin.bithumb import through_a_double
from feeder.twin.faults import parse
from feeder.websocket import BINARY, TEXT

BITHUMB = "bithumb"
BTC, ETH, DOGE = "KRW-BTC", "KRW-ETH", "KRW-DOGE"
PATH = "/websocket/v1"
CENT = Decimal("0.0001")


def shown(levels):
    """A true side as a client can know it: four decimals, and no level that shows 0."""
    rounded = [(price, quantity.quantize(CENT, ROUND_HALF_UP)) for price, quantity in levels]
    return [level for level in rounded if level[1]]


class BithumbReader(Reader):
    """Fact sheet, 5: as Upbit, and rows of size 0 are none."""

    levels = 15

    def __init__(self, it, codes):
        super().__init__(it, codes, BITHUMB)

    def take(self, message):
        super().take(message)
        if message.get("type") == "orderbook":
            shows_dust = any(row["bid_size"] == "0" for row in message["orderbook_units"])
            self.books[message["code"]].counts["dust"] += shows_dust
            self.others.append((message["code"], message["stream_type"]))

    def is_true(self, book):
        sequence, *told = next(row[1:] for row in self.it.twin.venues[BITHUMB].books(book.symbol)
                               if row[0][2] == book.depth)
        truth = self.it.truth(BITHUMB, book.symbol, book.depth)
        words = self.it.twin.venues[BITHUMB].source.spelled(book.symbol, *told)
        told = tuple([(Decimal(price), Decimal(quantity)) for price, quantity in side] for side in words)
        return book.levels() == tuple(map(shown, truth)) == told and sequence == book.last


@pytest.mark.parametrize("suffix", ["", ".1", ".7", ".30"])
def test_each_frame_is_the_book_of_fifteen_rounded(suffix):
    with bench({BITHUMB: [BTC, ETH, DOGE]}) as it:
        reader = BithumbReader(it, [code + suffix for code in (BTC, ETH, DOGE)])
        for book in reader.books.values():
            book.depth = min(book.depth, 15)
        reader.more("updates", 30)
        reader.settle()
        assert reader.connects == 1 and not reader.odd
        assert suffix == ".1" or reader.books[BTC].counts["dust"] > 0


def test_every_other_first_image_comes_after_later_ones():
    with bench({BITHUMB: [BTC]}) as it:
        readers = [BithumbReader(it, [BTC]) for _ in range(4)]
        it.until(lambda: all(reader.is_live() and (BTC, "SNAPSHOT") in reader.others + [
            (BTC, "SNAPSHOT")] * reader.books[BTC].counts["old"] for reader in readers))
        for reader in readers:
            reader.more("updates", 20)
        firsts = ["SNAPSHOT" == reader.others[0][1] for reader in readers]
        late = [reader.books[BTC].counts["old"] for reader in readers]
        assert firsts == [True, False, True, False] and late == [0, 1, 0, 1]
        for reader in readers:
            reader.settle()


def test_only_camel_case_options_are_read():
    with bench({BITHUMB: [BTC]}) as it:
        snake, camel, once = (it.client(BITHUMB, PATH) for _ in range(3))
        snake.say(request(orderbook(BTC, is_only_realtime=True)))
        camel.say(request(orderbook(BTC, isOnlyRealtime=True)))
        once.say(request(orderbook(BTC, isOnlySnapshot=True)))
        assert "SNAPSHOT" in {row["stream_type"] for row in collect(it, snake)}
        assert {row["stream_type"] for row in collect(it, camel)} == {"REALTIME"}
        assert [row["stream_type"] for row in collect(it, once)] == ["SNAPSHOT"]


def test_trades_have_ids_beyond_a_doubles_and_the_clock_of_korea():
    with bench({BITHUMB: [BTC]}, rate=4_000) as it:
        reader = BithumbReader(it, [BTC])
        it.until(lambda: reader.is_live() and len(reader.trades) > 60)
        rows = [row for row in reader.trades if row["stream_type"] == "REALTIME"]
        ids = [int(row["sequential_id"]) for row in rows]
        assert ids == sorted(set(ids)) and ids[0] > 2 ** 53
        assert all(number % 10 == 0 and float(number) == float(str(number)) for number in ids)
        assert through_a_double(1079953210371761664) == 1079953210371761700
        assert {row["ask_bid"] for row in rows} == {"ASK", "BID"}
        for row in rows:
            seconds = int(row["trade_timestamp"]) // 1_000 + 9 * 3_600
            clock = f"{seconds // 3_600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
            assert row["trade_time"] == clock and len(row["trade_timestamp"]) == 13
    with bench({BITHUMB: [BTC]}, rate=4_000, settings={BITHUMB: {"trades_an_id": 3}}) as it:
        reader = BithumbReader(it, [BTC])
        it.until(lambda: reader.is_live() and len(reader.trades) > 60)
        assert len({row["sequential_id"] for row in reader.trades}) < len(reader.trades) / 2


QUOTED = {
    "orderbook": '{"type":"orderbook","code":"KRW-ETH","total_ask_size":369.9832,"total_bid_size":287.0216,'
                 '"orderbook_units":[{"ask_price":3715000,"bid_price":3714000,"ask_size":8.4592,"bid_size":3.012}],'
                 '"level":1,"timestamp":1790133505546514,"stream_type":"SNAPSHOT"}',
    "trade": '{"type":"trade","code":"KRW-BTC","trade_price":116208000,"trade_volume":0.0009,"ask_bid":"BID",'
             '"trade_date":"2026-09-23","trade_time":"12:18:33","trade_timestamp":1790133513739,'
             '"sequential_id":1079953210371761700,"prev_closing_price":1,"change":"RISE","change_price":1,'
             '"timestamp":1790133514039,"stream_type":"REALTIME"}'}


@pytest.mark.parametrize("form", ["DEFAULT", "SIMPLE"])
def test_messages_are_written_as_the_quoted_ones(form):
    with bench({BITHUMB: [ETH, DOGE]}) as it:
        client = it.client(BITHUMB, PATH)
        client.say(request(orderbook(ETH, DOGE), trade(ETH, DOGE), form=form))
        it.until(lambda: len(client.messages) > 60)
        assert {opcode for opcode, _ in client.messages} == {BINARY}
        kinds = set()
        for _, payload in client.messages:
            raw = payload.decode()
            message = json.loads(raw, parse_float=str)
            if form == "DEFAULT":
                assert keys(message) == keys(json.loads(QUOTED[message["type"]]))
                time = message["timestamp"]
            else:
                time = message["tms"]
            kind = message.get("type", message.get("ty"))
            kinds.add(kind)
            assert len(str(time)) == (16 if kind == "orderbook" else 13)          # µs and ms
            prices = re.findall(r'"(?:ask_price|bid_price|trade_price|ap|bp|tp)":([^,}]*)', raw)
            sizes = re.findall(r'"(?:ask_size|bid_size|total_ask_size|as|bs|tas)":([^,}]*)', raw)
            assert all(re.fullmatch(r"[1-9]\d*", token) for token in prices)
            assert all(re.fullmatch(r"0|[1-9]\d*|\d+\.\d{0,3}[1-9]", token) for token in sizes)
        assert kinds == {"orderbook", "trade"}


@pytest.mark.parametrize("text, name", [
    ('[{"type":"trade","codes":["KRW-BTC"]}]', "NO_TICKET"), ('[{"ticket":"x"},{"type":"trade"}]', "NO_CODES"),
    ('[{"ticket":"x"},{"method":"LIST_SUBSCRIPTIONS"}]', "NO_TYPE"), ("PONG", "WRONG_FORMAT"),
    ('[{"ticket":"x"},{"type":"trade","codes":["KRW-BTC"]},{"format":"JSON_LIST"}]', "INVALID_PARAM")])
def test_malformed_requests_are_told_and_end_the_connection(text, name):
    with bench({BITHUMB: [BTC]}) as it:
        client = it.client(BITHUMB, PATH)
        client.say(text)
        it.until(lambda: client.is_closed)
        payload, = [payload for opcode, payload in client.messages if opcode == TEXT]
        assert json.loads(payload)["error"]["name"] == name and client.close_event[0] == 1000


def test_faults():
    with bench({BITHUMB: [BTC, ETH]}, faults=[parse(f"reorder@0.2:{BTC}")]) as it:
        reader = BithumbReader(it, [BTC, ETH])
        it.until(lambda: reader.is_live() and reader.books[BTC].counts["old"])
        reader.settle()
        for kind in ("duplicate", "garbage", "slow"):
            it.fault(BITHUMB, kind, seconds=0.1)
            reader.settle()
        assert reader.odd == 3 and reader.connects == 1
        it.fault(BITHUMB, "disconnect")
        it.until(lambda: reader.is_live() and reader.connects == 2)
        reader.settle()
        assert it.get(BITHUMB, "/twin/fault?kind=gap")[0] == 400


def test_rest():
    with bench({BITHUMB: [BTC, DOGE, "BTC-ETH"]}) as it:
        rows = it.get(BITHUMB, "/v1/market/all")[2]
        assert rows[0] == {"market": BTC, "korean_name": "비트코인", "english_name": "Bitcoin"}
        assert it.get(BITHUMB, "/v1/market/all?isDetails=true")[2][0]["market_warning"] == "NONE"
        assert "market_warning" not in it.get(BITHUMB, "/v1/market/all?is_details=true")[2][0]
        it.twin.pause()
        row, = it.get(BITHUMB, f"/v1/orderbook?markets={BTC}")[2]
        truth = it.truth(BITHUMB, BTC, 30)
        assert [float(unit["bid_size"]) for unit in row["orderbook_units"]] == [
            float(quantity) for _, quantity in truth[0]][:len(row["orderbook_units"])]       # exact
        assert 15 < len(row["orderbook_units"]) <= 30 and 10 ** 12 < row["timestamp"] < 10 ** 13
        rows = it.get(BITHUMB, f"/v1/orderbook?markets={BTC},{DOGE}")[2]
        assert [len(row["orderbook_units"]) for row in rows] == [15, 15]
        status, _, answer = it.get(BITHUMB, "/v1/orderbook?markets=KRW-NOSUCH")
        assert (status, answer) == (200, {"error": {"name": 404, "message": "Code not found"}})
        assert it.get(BITHUMB, f"/v1/orderbook/instruments?markets={BTC}")[0] == 404
        for kind, status in (("rest_429", 429), ("rest_error", 500)):
            assert it.get(BITHUMB, f"/twin/fault?kind={kind}")[0] == 200
            assert it.get(BITHUMB, "/v1/market/all")[0] == status
