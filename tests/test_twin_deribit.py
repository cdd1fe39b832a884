"""The twin's Deribit over real sockets, read by a bare client written from the fact sheet alone."""

import json
import re
from decimal import Decimal

import pytest

from feeder.twin.deribit import erlang
from feeder.twin.faults import parse
from twin_bench import Book, Follower, bench, keys

DERIBIT = "deribit"
INVERSE, LINEAR = "BTC-PERPETUAL", "XRP_USDC-PERPETUAL"
PATH = "/ws/api/v2"
EXACT = {"parse_float": Decimal}


class Reader(Follower):
    """Fact sheet, 5: prev_change_id must be the change_id held; then unsubscribe, wait, subscribe."""

    target = PATH
    hooks = EXACT

    def __init__(self, it, symbols):
        self.number = 0
        super().__init__(it, DERIBIT, {symbol: Book(symbol) for symbol in symbols})

    def call(self, method, **params):
        self.number += 1
        self.client.send(jsonrpc="2.0", id=self.number, method="public/" + method, params=params)
        return self.number

    def subscribe(self):
        self.leaving = {}
        self.call("subscribe", channels=[f"book.{symbol}.100ms" for symbol in self.books])

    def take(self, message):
        if message.get("method") != "subscription":
            self.others.append(message)
            if message.get("id") in self.leaving:
                self.call("subscribe", channels=[self.leaving.pop(message["id"])])
            return
        channel, data = message["params"]["channel"], message["params"]["data"]
        book = self.books[data["instrument_name"]]
        assert channel == f"book.{book.symbol}.100ms"
        sides = [[(price, amount) for _, price, amount in data[side]] for side in ("bids", "asks")]
        if data["type"] == "snapshot":
            assert "prev_change_id" not in data
            return book.load(*sides, data["change_id"])
        if book.sides is None:
            return
        if data.get("prev_change_id") != book.last:
            book.gap()
            self.leaving[self.call("unsubscribe", channels=[channel])] = channel
            return
        for side, name in zip(book.sides, ("bids", "asks")):
            for action, price, amount in data[name]:
                known = Decimal(price) in side
                assert action == ("delete" if not amount else "change" if known else "new")
        book.counts["updates"] += 1
        book.last = data["change_id"]
        book.set(0, sides[0])
        book.set(1, sides[1])

    def is_true(self, book):
        (_, sequence, *_), = self.it.twin.venues[DERIBIT].books(book.symbol)
        return super().is_true(book) and sequence == book.last


def test_books_of_all_levels_end_equal_to_the_true_ones():
    with bench({DERIBIT: [INVERSE, LINEAR, "ETH_USDC"]}, rate=3_000) as it:
        reader = Reader(it, [INVERSE, LINEAR])
        reader.more("updates", 60)
        reader.settle()
        assert not reader.count("gaps")
        assert min(len(side) for book in reader.books.values() for side in book.sides) > 200
        late = Reader(it, [INVERSE, LINEAR])
        late.settle()
        assert not late.count("gaps")


@pytest.mark.parametrize("kind, gaps", [("gap", 1), ("reorder", 1), ("sequence", 1), ("no_sequence", 1),
                                        ("duplicate", 1), ("snapshot", 0)])
def test_faults_of_the_chain_heal(kind, gaps):
    with bench({DERIBIT: [INVERSE, LINEAR]}, faults=[parse(f"{kind}@0.1:{INVERSE}")]) as it:
        reader = Reader(it, [INVERSE, LINEAR])
        it.until(lambda: reader.is_live() and it.twin.faults_done)
        reader.settle()
        assert bool(reader.books[INVERSE].counts["gaps"]) == bool(gaps) and not reader.books[LINEAR].counts["gaps"]
        assert reader.connects == 1


def collect(it, client, count, what="usOut"):
    found = []
    it.until(lambda: found.extend(message for message in client.texts() if what in message) or len(found) >= count)
    return found


def test_requests_and_their_answers():
    with bench({DERIBIT: [INVERSE, LINEAR]}) as it:
        client = it.client(DERIBIT, PATH)

        def call(number, method, **params):
            client.send(jsonrpc="2.0", id=number, method="public/" + method, params=params)

        call(1, "subscribe", channels=[f"book.{INVERSE}.100ms", "book.NOPE.100ms", f"quote.{LINEAR}", "nonsense"])
        call(2, "subscribe", channels=[f"book.{INVERSE}.raw"])
        call(3, "subscribe", channels=[f"trades.{INVERSE}.raw"])
        call(4, "subscribe", channels="x")
        call(5, "nothing")
        call(6, "unsubscribe", channels=[f"quote.{LINEAR}", "book.NOPE.100ms"])
        call(7, "set_heartbeat", interval=5)
        call(8, "get_time")
        client.send(jsonrpc="2.0", method="public/test", params={})
        client.say("{")
        call(9, "unsubscribe_all")
        found = collect(it, client, 11)
        assert [message.get("id") for message in found] == [1, 2, 3, 4, 5, 6, 7, 8, None, None, 9]
        assert found[0]["result"] == [f"quote.{LINEAR}", f"book.{INVERSE}.100ms"]          # another order, no unknown
        assert [message["error"]["code"] if "error" in message else None for message in found] == [
            None, 13778, 13778, -32602, -32601, None, -32602, None, None, 11050, None]
        assert found[5]["result"] == [f"quote.{LINEAR}"] and found[10]["result"] == "ok"
        assert not it.twin.venues[DERIBIT].channels and not client.is_closed


def test_a_duplicate_subscription_gets_no_snapshot():
    with bench({DERIBIT: [INVERSE]}) as it:
        client = it.client(DERIBIT, PATH)
        params = {"channels": [f"book.{INVERSE}.100ms"]}
        for number in (1, 2):
            client.send(jsonrpc="2.0", id=number, method="public/subscribe", params=params)
        found = collect(it, client, 12, "jsonrpc")
        assert found[0]["id"] == 1 and found[1]["params"]["data"]["type"] == "snapshot"
        assert sum(message["params"]["data"]["type"] == "snapshot" for message in found if "params" in message) == 1


def test_credits_run_out_and_the_connection_ends():
    with bench({DERIBIT: [INVERSE]}) as it:
        client = it.client(DERIBIT, PATH)
        for number in range(12):
            client.send(jsonrpc="2.0", id=number, method="public/subscribe", params={"channels": []})
        it.until(lambda: client.is_closed)
        found = [message for message in client.texts() if "id" in message]
        assert found[-1]["error"]["code"] == 10028 and len(found) == 11


def test_the_33rd_connection_is_refused():
    with bench({DERIBIT: [INVERSE]}) as it:
        clients = [it.client(DERIBIT, PATH) for _ in range(33)]
        it.until(lambda: clients[32].is_closed)
        assert "429" in str(clients[32].error) and not any(client.is_closed for client in clients[:32])


def test_heartbeats_want_an_answer_and_silence_ends():
    with bench({DERIBIT: [INVERSE]}, time_scale=200) as it:                    # 10 s are 50 ms, a minute 0.3 s
        good, bad, idle = (it.client(DERIBIT, PATH) for _ in range(3))
        for client in (good, bad):
            client.send(jsonrpc="2.0", id=1, method="public/set_heartbeat", params={"interval": 10})
        beats = []

        def work():
            for message in good.texts():
                beats.append(message.get("params", {}).get("type"))
                if beats[-1] == "test_request":
                    good.send(jsonrpc="2.0", id=12, method="public/test", params={})
            return idle.is_closed

        it.until(work)
        assert bad.is_closed and bad.close_event == (4000, "heartbeat close")
        assert not good.is_closed and beats.count("test_request") >= 4 and beats.count("heartbeat") >= 4
        assert idle.close_event is None


def test_messages_are_written_as_the_quoted_ones():
    recorded = {
        f"book.{LINEAR}.100ms": '{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.ALGO_USDC-'
        'PERPETUAL.100ms","data":{"timestamp":1790133842703,"type":"change","change_id":193809634213,'
        '"instrument_name":'
        '"ALGO_USDC-PERPETUAL","bids":[["new",0.11374,1054.0]],"asks":[],"prev_change_id":193809631160}}}',
        f"trades.{LINEAR}.100ms": '{"jsonrpc":"2.0","method":"subscription","params":{"channel":"x","data":[{'
        '"timestamp":1765531356452,"price":92294.5,"amount":10.0,"direction":"sell","index_price":92276.75,'
        '"instrument_name":'
        '"BTC-PERPETUAL","trade_seq":271252854,"mark_price":92287.11,"tick_direction":2,"contracts":1.0,'
        '"trade_id":"403691824"}]}}',
        f"quote.{LINEAR}": '{"jsonrpc":"2.0","method":"subscription","params":{"channel":"x","data":{"timestamp":'
        '1765541767174,"instrument_name":"BTC-PERPETUAL","best_ask_price":92288.5,"best_bid_price":92288.0,'
        '"best_ask_amount":99470.0,"best_bid_amount":133440.0}}}'}
    with bench({DERIBIT: [LINEAR]}) as it:
        for channel, text in recorded.items():
            client = it.client(DERIBIT, PATH)
            client.send(jsonrpc="2.0", id=1, method="public/subscribe", params={"channels": [channel]})
            raws = []
            it.until(lambda: raws.extend(raw for _, raw in client.messages if b'"method"' in raw)
                     or client.messages.clear() or len(raws) > 12)
            for raw in raws:
                if b'"snapshot"' not in raw:
                    assert keys(json.loads(raw)) == keys(json.loads(text))
            client.stream.abort()


def test_numbers_have_exponents():
    with bench({DERIBIT: [INVERSE]}) as it:
        client = it.client(DERIBIT, PATH)
        client.send(jsonrpc="2.0", id=1, method="public/subscribe", params={"channels": [f"book.{INVERSE}.100ms"]})
        it.until(lambda: re.search(rb",\d\.\de\d\]", b"".join(raw for _, raw in client.messages)))


@pytest.mark.parametrize("text, printed", [
    ("2200", "2.2e3"), ("0.0001423", "1.423e-4"), ("10", "10.0"), ("2772.650", "2772.65"), ("0", "0.0"),
    ("0.00", "0.0"), ("45170", "45170.0"), ("1054", "1054.0"), ("0.5", "0.5"), ("0.00010", "1.0e-4"),
    ("0.001", "0.001"), ("100000000", "1.0e8")])
def test_numbers_as_erlang_prints_them(text, printed):
    assert erlang(text) == printed and Decimal(printed) == Decimal(text) == Decimal(erlang(text, True))


def test_trades_quotes_and_windows():
    with bench({DERIBIT: [INVERSE, "ETH-PERPETUAL"]}) as it:
        client = it.client(DERIBIT, PATH)
        names = [f"trades.{INVERSE}.100ms", "trades.ETH-PERPETUAL.100ms", f"quote.{INVERSE}",
                 f"book.{INVERSE}.none.20.100ms"]
        client.send(jsonrpc="2.0", id=1, method="public/subscribe", params={"channels": names})
        rows, last = [], {}

        def work():
            for message in client.texts(**EXACT):
                if "params" in message:
                    data = last[message["params"]["channel"]] = message["params"]["data"]
                    if isinstance(data, list):
                        rows.extend(data)
            return len(rows) > 80 and len(last) == 4

        it.until(work)
        for symbol in (INVERSE, "ETH-PERPETUAL"):
            numbers = [row["trade_seq"] for row in rows if row["instrument_name"] == symbol]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert all(row["trade_id"].startswith("ETH-") == (row["instrument_name"] == "ETH-PERPETUAL") for row in rows)
        assert {row["direction"] for row in rows} == {"buy", "sell"}
        it.twin.pause()
        for _ in range(10):
            it.loop.run_once(5_000_000)
        work()
        bids, asks = it.truth(DERIBIT, INVERSE, 20)
        quote, window = last[f"quote.{INVERSE}"], last[f"book.{INVERSE}.none.20.100ms"]
        assert (quote["best_bid_price"], quote["best_bid_amount"]) == bids[0]
        assert (quote["best_ask_price"], quote["best_ask_amount"]) == asks[0]
        assert [tuple(level) for level in window["bids"]] == bids and [tuple(level) for level in window["asks"]] == asks
        assert all(amount % 10 == 0 for _, amount in bids + asks)              # dollars


def test_rest():
    with bench({DERIBIT: [INVERSE, LINEAR, "ETH_USDC"]}) as it:
        answer = it.get(DERIBIT, "/api/v2/public/get_instruments?currency=any&kind=future&expired=false")[2]
        assert [(row["instrument_name"], row["tick_size"], row["instrument_type"]) for row in answer["result"]] == [
            (INVERSE, 0.5, "reversed"), (LINEAR, 0.000001, "linear")]
        answer = it.get(DERIBIT, "/api/v2/public/get_instruments?currency=BTC")[2]
        assert [row["instrument_name"] for row in answer["result"]] == [INVERSE]
        book = it.get(DERIBIT, f"/api/v2/public/get_order_book?instrument_name={INVERSE}&depth=5")[2]["result"]
        assert len(book["bids"]) == len(book["asks"]) == 5 and book["state"] == "open"
        assert it.get(DERIBIT, "/api/v2/public/nothing")[2]["error"]["code"] == -32601
        assert it.get(DERIBIT, "/api/v2/public/get_order_book?instrument_name=X")[0] == 400
        it.get(DERIBIT, "/twin/fault?kind=rest_429")
        assert it.get(DERIBIT, "/api/v2/public/get_time")[0] == 429
