"""The twin's Coinbase Advanced Trade over real sockets, read by a bare client written from the fact sheet alone."""

import json
import re

import pytest

from feeder.twin.faults import parse
from twin_bench import Book, Follower, bench, keys

COINBASE = "coinbase"
BTC, ETH = "BTC-USD", "ETH-USD"


class Reader(Follower):
    """Fact sheet, B4: one count a connection; a jump taints every book of it, so all are subscribed anew."""

    def __init__(self, it, products, channels=("heartbeats", "level2", "market_trades")):
        self.channels = channels
        self.gaps = self.old = 0
        self.beats = []
        super().__init__(it, COINBASE, {product: Book(product) for product in products})

    def subscribe(self):
        self.expected = 0
        for channel in self.channels:
            self.client.send(type="subscribe", channel=channel, product_ids=list(self.books))

    def take(self, message):
        if "type" in message:
            return self.others.append(message)
        number = message.get("sequence_num")
        if number is not None and number < self.expected:
            self.old += 1
            return
        if number != self.expected:
            self.gaps += 1
            self.expected = self.expected + 1 if number is None else number + 1
            for book in self.books.values():
                book.restart()
            for kind in ("unsubscribe", "subscribe"):
                self.client.send(type=kind, channel="level2", product_ids=list(self.books))
            return
        self.expected += 1
        for event in message["events"]:
            if message["channel"] == "l2_data":
                self.take_book(event)
            elif message["channel"] == "market_trades":
                self.trades.append(event)
            elif message["channel"] == "heartbeats":
                self.beats.append(event["heartbeat_counter"])
            else:
                self.others.append(event)

    def take_book(self, event):
        book = self.books[event["product_id"]]
        sides = [[(row["price_level"], row["new_quantity"]) for row in event["updates"] if row["side"] == name]
                 for name in ("bid", "offer")]
        assert sum(map(len, sides)) == len(event["updates"])
        if event["type"] == "snapshot":
            return book.load(*sides)
        if book.sides is not None:
            book.counts["updates"] += 1
            book.set(0, sides[0])
            book.set(1, sides[1])


def test_books_of_all_levels_end_equal_to_the_true_ones_and_one_count_runs_through():
    with bench({COINBASE: [BTC, ETH, "SOL-USD"]}, rate=3_000) as it:
        reader = Reader(it, [BTC, ETH])
        reader.more("updates", 60)
        reader.settle()
        assert reader.gaps == reader.old == 0 and reader.count("snapshots") == 2 and len(reader.trades) > 20
        late = Reader(it, [BTC, ETH])                                          # has a count of its own
        late.settle()
        assert late.gaps == 0 and late.expected < reader.expected


@pytest.mark.parametrize("kind, gaps, old", [("gap", 1, 0), ("reorder", 1, None), ("sequence", 1, 1),
                                             ("no_sequence", 1, 0), ("duplicate", 0, 1), ("snapshot", 0, 0)])
def test_faults_show_in_the_count_of_the_connection(kind, gaps, old):
    with bench({COINBASE: [BTC, ETH]}, faults=[parse(f"{kind}@0.1:{BTC}")]) as it:
        reader = Reader(it, [BTC, ETH])
        it.until(lambda: reader.is_live() and it.twin.faults_done)
        reader.settle()
        assert bool(reader.gaps) == bool(gaps) and reader.connects == 1
        assert old is None or bool(reader.old) == bool(old)        # None: it may come after the channel was left


def test_what_a_mute_loses_is_missing_in_the_count():
    with bench({COINBASE: [BTC]}) as it:
        reader = Reader(it, [BTC])
        it.until(reader.is_live)
        it.fault(COINBASE, "mute", seconds=0.1)
        it.until(lambda: reader.is_live() and reader.gaps)
        reader.settle()


def collect(it, client, count):
    found = []
    it.until(lambda: found.extend(client.texts()) or len(found) >= count)
    return found


def test_requests_and_their_answers():
    with bench({COINBASE: [BTC, ETH]}) as it:
        client = it.client(COINBASE, "/")
        client.send(type="subscribe", channel="market_trades", product_ids=[ETH, BTC])
        client.send(type="subscribe", channel="level2", product_ids=[BTC, "NO-PE"])
        client.send(type="subscribe", channel="nonsense", product_ids=[BTC])
        client.send(type="subscribe", channel="level2")
        client.send(type="unsubscribe", channel="market_trades", product_ids=[ETH])
        client.say("{")
        it.twin.pause()
        found = collect(it, client, 8)
        assert [message["events"][0]["type"] for message in found[:2]] == ["snapshot"] * 2         # before its answer
        assert found[2]["channel"] == "subscriptions" and found[2]["sequence_num"] == 2
        assert found[2]["events"] == [{"subscriptions": {"market_trades": [ETH, BTC]}}]
        errors = [message for message in found if message.get("type") == "error"]
        assert len(errors) == 4 and "NO-PE" in errors[0]["message"] and set(errors[0]) == {"type", "message"}
        assert found[-2]["events"] == [{"subscriptions": {"market_trades": [BTC]}}]
        assert it.twin.venues[COINBASE].channels.keys() == {("market_trades", BTC)}


def test_a_usdc_product_brings_the_usd_book():
    with bench({COINBASE: [BTC]}) as it:
        client = it.client(COINBASE, "/")
        client.send(type="subscribe", channel="level2", product_ids=["BTC-USDC"])
        found = collect(it, client, 3)
        assert found[0]["events"][0]["product_id"] == BTC
        assert found[1]["events"] == [{"subscriptions": {"level2": ["BTC-USDC"]}}]


def test_times_of_a_connection():
    with bench({COINBASE: [BTC]}, time_scale=200) as it:                       # 5 s are 25 ms, 60 s 0.3 s, 1 s 5 ms
        late, quiet, kept = (it.client(COINBASE, "/") for _ in range(3))
        quiet.send(type="subscribe", channel="market_trades", product_ids=[BTC])
        kept.send(type="subscribe", channel="heartbeats")
        it.twin.pause()
        it.until(lambda: late.is_closed)
        assert not quiet.is_closed
        it.until(lambda: quiet.is_closed)
        beats = [message["events"][0] for message in kept.texts() if message["channel"] == "heartbeats"]
        numbers = [beat["heartbeat_counter"] for beat in beats]
        assert len(numbers) > 20 and numbers == list(range(1, len(numbers) + 1)) and not kept.is_closed
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} \+0000 UTC m=\+[\d.]+", beats[0]["current_time"])


def test_eight_messages_and_eight_connections_a_second():
    with bench({COINBASE: [BTC]}) as it:
        clients = [it.client(COINBASE, "/") for _ in range(9)]
        it.until(lambda: clients[8].is_closed)
        assert "429" in str(clients[8].error)
        for _ in range(9):
            clients[0].send(type="subscribe", channel="heartbeats")
        errors = []
        it.until(lambda: errors.extend(m for m in clients[0].texts() if "type" in m) or errors)
        assert errors == [{"type": "error", "message": "rate limit exceeded"}]


def test_messages_are_written_as_the_recorded_ones():
    recorded = {
        "level2": '{"channel":"l2_data","timestamp":"2026-08-09T21:05:48.505350477Z","sequence_num":14,"events":[{'
                  '"type":"update","product_id":"BTC-USD","updates":[{"side":"bid",'
                  '"event_time":"2026-08-09T21:05:48.210883Z","price_level":"65062.5","new_quantity":"0.00583"}]}]}',
        "market_trades": '{"channel":"market_trades","timestamp":"2026-08-09T21:05:49.25328358Z","sequence_num":50,'
                         '"events":[{"type":"update","trades":[{"product_id":"BTC-USD","trade_id":"1068572092","price":'
                         '"65083.66","size":"0.00171442","time":"2026-08-09T21:05:49.205817Z","side":"BUY"}]}]}',
        "ticker": '{"channel":"ticker","timestamp":"2026-08-09T21:05:48.229198328Z","sequence_num":6,"events":[{"type":'
                  '"snapshot","tickers":[{"type":"ticker","product_id":"BTC-USD","price":"65086.18","volume_24_h":'
                  '"2867.54532609","low_24_h":"64675.22","high_24_h":"65252.99","low_52_w":"57717.55","high_52_w":'
                  '"126296","price_percent_chg_24_h":"0.09601107287722","best_bid":"65083.66","best_ask":"65083.67",'
                  '"best_bid_quantity":"0.20371215","best_ask_quantity":"0.24290402"}]}]}'}
    with bench({COINBASE: [BTC]}) as it:
        for channel, text in recorded.items():
            client = it.client(COINBASE, "/")
            client.send(type="subscribe", channel=channel, product_ids=[BTC])
            raws = []
            it.until(lambda: raws.extend(raw for _, raw in client.messages if b'"subscriptions"' not in raw)
                     or client.messages.clear() or len(raws) > 8)
            for raw in raws[1:]:
                assert keys(json.loads(raw)) == keys(json.loads(text)) and b" " not in raw
                for number in re.findall(rb'"(?:price_level|new_quantity|price|size)":"([^"]*)"', raw):
                    assert number == b"0" or re.fullmatch(rb"\d+(\.\d*[1-9])?", number)
            client.stream.abort()


def test_trades_have_the_makers_side():
    with bench({COINBASE: [BTC]}) as it:
        made = {}
        publish = it.twin.venues[COINBASE].publish
        it.twin.venues[COINBASE].publish = lambda symbol, kind, event: (
            made.update({str(event[2]): event[5]}) if kind == "trade" else None, publish(symbol, kind, event))
        reader = Reader(it, [BTC], ("heartbeats", "market_trades", "level2"))
        it.until(lambda: reader.is_live() and len(reader.trades) > 60)
        rows = [row for event in reader.trades if event["type"] == "update" for row in event["trades"]]
        assert {row["side"] for row in rows} == {"BUY", "SELL"}
        assert all((row["side"] == "BUY") == made[row["trade_id"]] for row in rows if row["trade_id"] in made)
        batches = [[int(row["trade_id"]) for row in event["trades"]] for event in reader.trades]
        assert any(batch != sorted(batch) for batch in batches)                # the order of a batch is not promised


def test_rest():
    with bench({COINBASE: [BTC, ETH]}) as it:
        answer = it.get(COINBASE, "/api/v3/brokerage/market/products")[2]
        assert [(row["product_id"], row["price_increment"], row["base_increment"], row["alias_to"])
                for row in answer["products"]] == [(BTC, "0.01", "0.00000001", ["BTC-USDC"]),
                                                   (ETH, "0.001", "0.00000001", ["ETH-USDC"])]
        assert it.get(COINBASE, f"/api/v3/brokerage/market/products/{BTC}")[2]["product_id"] == BTC
        book = it.get(COINBASE, f"/api/v3/brokerage/market/product_book?product_id={BTC}&limit=3")[2]["pricebook"]
        assert len(book["bids"]) == len(book["asks"]) == 3
        assert it.get(COINBASE, "/api/v3/brokerage/market/products/NO-PE")[0] == 404
        assert it.get(COINBASE, "/api/v3/brokerage/time")[0] == 200
        it.get(COINBASE, "/twin/fault?kind=rest_429")
        assert it.get(COINBASE, "/api/v3/brokerage/time")[0] == 429
