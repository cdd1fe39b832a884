"""The twin's Bybit over real sockets, read by a bare client written from the fact sheet alone."""

import json
import re
from decimal import Decimal

import pytest

from feeder.errors import ConfigError
from feeder.net import Loop
from feeder.twin.faults import parse
from feeder.twin.server import Twin
from feeder.websocket import BINARY, PING, PONG
from twin_bench import Book, Follower, bench, keys

SPOT, LINEAR = "bybit_spot", "bybit_linear"
BOTH = [SPOT, LINEAR]
PATH = {SPOT: "/v5/public/spot", LINEAR: "/v5/public/linear"}


class Reader(Follower):
    """Fact sheet, 5. A book with a gap is subscribed anew."""

    def __init__(self, it, venue, topics):
        self.target, self.topics = PATH[venue], topics
        self.replies = []
        super().__init__(it, venue, {topic: Book(topic.split(".")[2], int(topic.split(".")[1]))
                                     for topic in topics if topic.startswith("orderbook")})

    def subscribe(self):
        for start in range(0, len(self.topics), 10):
            self.client.send(op="subscribe", args=self.topics[start:start + 10], req_id=f"r{start}")

    def take(self, message):
        if "success" in message:
            return self.replies.append(message)
        if message["topic"].startswith("publicTrade"):
            return self.trades.append(message)
        topic, data = message["topic"], message["data"]
        book, number = self.books[topic], data.get("u")
        if message["type"] == "snapshot" or number == 1:
            book.counts["resets"] += number == 1
            book.load(data["b"], data["a"], number)
        elif book.sides is None:
            book.counts["early"] += 1
        elif number is None or number > book.last + 1:
            book.gap()
            self.client.send(op="unsubscribe", args=[topic])
            self.client.send(op="subscribe", args=[topic])
        elif number <= book.last:
            book.counts["old"] += 1
        else:
            book.counts["updates"] += 1
            book.last = number
            book.set(0, data["b"])
            book.set(1, data["a"])

    def is_true(self, book):
        numbers = {key: sequence for key, sequence, *_ in self.it.twin.venues[self.venue].books(book.symbol)}
        return super().is_true(book) and (book.depth == 1 or
                                          numbers["orderbook", book.depth, book.symbol] == book.last)


@pytest.mark.parametrize("venue", BOTH)
def test_books_of_each_depth_end_equal_to_the_true_one_within_it(venue):
    topics = [f"orderbook.{depth}.{symbol}" for depth in (50, 200, 1000) for symbol in ("BTCUSDT", "DOGEUSDT")]
    with bench({venue: ["BTCUSDT", "DOGEUSDT", "ETHUSDT"]}, rate=4_000, levels=1_200) as it:
        reader = Reader(it, venue, topics)
        reader.more("updates", 40)
        reader.settle()
        for book in reader.books.values():
            assert book.counts["gaps"] == book.counts["old"] == 0 and book.counts["snapshots"] == 1
        assert reader.count("ghosts") > 0                                      # removals of levels nobody held
        assert all(len(side) == 50 for side in reader.books["orderbook.50.BTCUSDT"].sides)
        late = Reader(it, venue, topics)                                       # joins amid the deltas of the others
        late.settle()
        answer = it.get(venue, "/twin/book?symbol=btcusdt&limit=3")[2]
        assert {tuple(channel["channel"]) for channel in answer["channels"]} == {
            ("orderbook", depth, "BTCUSDT") for depth in (50, 200, 1000)}
        assert all(len(channel["bids"]) == 3 and channel["sequence"] > 1 for channel in answer["channels"])


@pytest.mark.parametrize("venue", BOTH)
def test_the_best_level_comes_whole_each_time_and_again_when_nothing_happens(venue):
    with bench({venue: ["BTCUSDT"]}, time_scale=30) as it:
        reader = Reader(it, venue, ["orderbook.1.BTCUSDT"])
        book, = reader.books.values()
        it.until(lambda: reader.is_live() and book.counts["snapshots"] > 30)
        assert not book.counts["updates"]
        it.twin.pause()
        it.until(lambda: reader.is_live() and book.levels() == it.truth(venue, "BTCUSDT", 1))
        count, last = book.counts["snapshots"], book.last
        it.until(lambda: reader.is_live() and book.counts["snapshots"] >= count + 3)     # after 3 s, here 0.1 s
        assert book.last == last


@pytest.mark.parametrize("venue", BOTH)
def test_trades_have_the_takers_side_and_several_share_a_message(venue):
    with bench({venue: ["BTCUSDT"]}, rate=4_000) as it:
        fills = []
        publish = it.twin.venues[venue].publish
        it.twin.venues[venue].publish = lambda symbol, kind, event: (
            fills.append(event) if kind == "trade" else None, publish(symbol, kind, event))
        reader = Reader(it, venue, ["publicTrade.BTCUSDT", "orderbook.50.BTCUSDT"])
        it.until(lambda: reader.is_live() and len(reader.trades) > 60)
        rows = [row for message in reader.trades for row in message["data"]]
        assert max(len(message["data"]) for message in reader.trades) > 1
        fills = fills[-len(rows):] if len(fills) < len(rows) else fills
        words = it.twin.venues[venue].source.words["BTCUSDT"]
        known = {(words.price(fill[3]), words.quantity(fill[4]), "Sell" if fill[5] else "Buy") for fill in fills}
        assert {(row["p"], row["v"], row["S"]) for row in rows} <= known
        assert {row["S"] for row in rows} == {"Sell", "Buy"}
        ids = [row["i"] for row in rows]
        assert len(set(ids)) == len(ids)
        shape = r"\d{19}" if venue == SPOT else r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-b[0-9a-f]{3}-[0-9a-f]{12}"
        assert all(re.fullmatch(shape, number) for number in ids)


RECORDED = {
    (SPOT, "orderbook.200"): '{"topic":"orderbook.200.BTCUSDT","ts":1786310816618,"type":"delta","data":{"s":"BTCUSDT",'
    '"b":[["65140.4","0.875077"]],"a":[["65154.6","0.09948"],["65239.1","0"]],"u":62505425,"seq":112488545865},'
    '"cts":1786310816585}',
    (SPOT, "publicTrade"): '{"topic":"publicTrade.BTCUSDT","ts":1786310822606,"type":"snapshot","data":[{"i":'
    '"2290000001189048101","T":1786310822605,"p":"65140.5","v":"0.002705","S":"Buy","seq":112488547164,"s":"BTCUSDT",'
    '"BT":false,"RPI":false}]}',
    (LINEAR, "orderbook.200"): '{"topic":"orderbook.200.BTCUSDT","type":"delta","ts":1786310818130,"data":{"s":'
    '"BTCUSDT","b":[["65095.30","0.005"],["65093.10","0"]],"a":[["65116.80","0.002"]],"u":15076953,'
    '"seq":753843913870},"cts":1786310818129}',
    (LINEAR, "publicTrade"): '{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":1786310819681,"data":[{"T":'
    '1786310819680,"s":"BTCUSDT","S":"Sell","v":"0.004","p":"65114.20","L":"MinusTick","i":'
    '"a9188a0a-82bc-50de-be60-03eedbe3cdd7","BT":false,"RPI":false,"seq":753843954913}]}',
}


@pytest.mark.parametrize("venue, topic", RECORDED)
def test_messages_are_written_as_the_recorded_ones(venue, topic):
    recorded = RECORDED[venue, topic]
    with bench({venue: ["BTCUSDT"]}) as it:
        client = it.client(venue, PATH[venue])
        client.send(op="subscribe", args=[topic + ".BTCUSDT"])
        it.until(lambda: len(client.messages) > 40)
        raws = [raw.decode() for _, raw in client.messages if b'"topic"' in raw and b'snapshot","data":{' not in raw]
        assert " " not in "".join(raws)
        for raw in raws:
            if '"type":"snapshot","ts"' in raw and topic.startswith("orderbook"):
                continue
            if '"type":"delta"' in raw or topic == "publicTrade":
                assert keys(json.loads(raw)) == keys(json.loads(recorded))
        numbers = re.findall(r'"(\d+(?:\.\d+)?)"', "".join(re.findall(r"\[\[.*?\]\]", "".join(raws))))
        for number in numbers:
            decimals = len(number.partition(".")[2])
            if venue == SPOT:
                assert number == "0" or not (decimals and number.endswith("0"))
            else:
                assert number == "0" or decimals in (2, 3)


# --- requests

def replies(it, client, count):
    found = []
    it.until(lambda: found.extend(message for message in client.texts() if "success" in message)
             or len(found) >= count)
    return found


def test_acknowledgements_are_spelled_as_each_category_does():
    with bench({SPOT: ["BTCUSDT"], LINEAR: ["BTCUSDT"]}) as it:
        answers = {}
        for venue in BOTH:
            client = it.client(venue, PATH[venue])
            client.send(op="subscribe", args=["orderbook.50.BTCUSDT"])
            client.send(op="subscribe", args=["publicTrade.BTCUSDT"], req_id="a1")
            client.send(op="unsubscribe", args=["publicTrade.BTCUSDT"], req_id="a2")
            client.send(op="ping", req_id="7")
            client.send(op="ping")
            client.send(op="subscribe", args=["orderbook.50.BTCUSDT", "orderbook.500.BTCUSDT"], req_id="a3")
            client.send(op="subscribe", args=["publicTrade.BTCUSDT", "publicTrade.NOPE"])
            client.send(op="order.create", args=[1])
            client.send(op="subscribe", args=[])
            client.say("no JSON")
            found = replies(it, client, 10)
            identity = {message.pop("conn_id") for message in found}
            assert len(identity) == 1 and len(found) == 10
            answers[venue] = found
            assert it.twin.venues[venue].channels.keys() == {("orderbook", 50, "BTCUSDT")}      # all or nothing
        spot, linear = answers[SPOT], answers[LINEAR]
        assert spot[0] == {"success": True, "ret_msg": "subscribe", "op": "subscribe"}
        assert linear[0] == {"success": True, "ret_msg": "", "req_id": "", "op": "subscribe"}
        assert spot[1] == {"success": True, "ret_msg": "subscribe", "req_id": "a1", "op": "subscribe"}
        assert linear[1] == {"success": True, "ret_msg": "", "req_id": "a1", "op": "subscribe"}
        assert spot[2]["op"] == linear[2]["op"] == "unsubscribe"
        assert spot[3] == linear[3] == {"success": True, "ret_msg": "pong", "req_id": "7", "op": "ping"}
        assert spot[4] == {"success": True, "ret_msg": "pong", "op": "ping"}
        for found in answers.values():
            assert [message["success"] for message in found] == [True] * 5 + [False] * 5
            assert found[5]["ret_msg"] == "Invalid topic: orderbook.500.BTCUSDT" and found[5]["req_id"] == "a3"
            assert found[6]["ret_msg"] == "Invalid topic: publicTrade.NOPE"


def test_snapshots_come_before_the_acknowledgement_and_after_it():
    with bench({LINEAR: ["BTCUSDT", "ETHUSDT"]}) as it:
        client = it.client(LINEAR, PATH[LINEAR])
        first = []
        for symbol in ("BTCUSDT", "ETHUSDT"):
            client.send(op="subscribe", args=[f"orderbook.50.{symbol}"])
            seen = []
            it.until(lambda: seen.extend(m for m in client.texts() if "success" in m or m["type"] == "snapshot")
                     or len(seen) == 2)
            first.append("success" in seen[0])
        assert first == [True, False]
        client.send(op="subscribe", args=["orderbook.50.BTCUSDT"])             # again: acknowledged, no snapshot
        for _ in range(20):
            it.loop.run_once(10_000_000)
        later = client.texts()
        assert sum("success" in m for m in later) == 1
        assert not any(m.get("type") == "snapshot" for m in later)


def test_limits_of_a_request_and_of_a_connection():
    symbols = [f"{'T' * 340}{number:04d}USDT" for number in range(60)]         # 360 characters an argument
    with bench({SPOT: symbols[:12]}, levels=5) as it:
        client = it.client(SPOT, PATH[SPOT])
        client.send(op="subscribe", args=[f"publicTrade.{symbol}" for symbol in symbols[:11]], req_id="x")
        it.until(lambda: client.messages)
        assert b'"ret_msg":"args size \\u003e10"' in client.messages[0][1]
        client.texts()
        client.send(op="subscribe", args=[f"publicTrade.{symbol}" for symbol in symbols[:10]], req_id="x")
        assert replies(it, client, 1)[0]["success"]
    with bench({LINEAR: symbols}, levels=5, rate=100) as it:
        client = it.client(LINEAR, PATH[LINEAR])
        client.send(op="subscribe", args=[f"publicTrade.{symbol}" for symbol in symbols[:57]])
        client.send(op="subscribe", args=[f"publicTrade.{symbol}" for symbol in symbols[57:58]])
        client.send(op="subscribe", args=["publicTrade." + symbols[0]])
        assert [reply["success"] for reply in replies(it, client, 3)] == [True, True, True]
        client.send(op="subscribe", args=[f"publicTrade.{symbol}" for symbol in symbols[58:]])
        assert not replies(it, client, 1)[0]["success"]


def test_other_paths_are_not_served():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        for target in ("/v5/public/linear", "/v5/public", "/ws", "/"):
            client = it.client(SPOT, target)
            it.until(lambda: client.is_closed)
            assert "404" in str(client.error)


def test_a_silent_client_without_data_is_cut_off_and_a_pinging_one_is_not():
    with bench({SPOT: ["BTCUSDT"]}, settings={SPOT: {"idle_s": 0.3}}) as it:
        idle, pinging, fed = (it.client(SPOT, PATH[SPOT]) for _ in range(3))
        fed.send(op="subscribe", args=["orderbook.50.BTCUSDT"])
        assert replies(it, fed, 1)
        pongs = []

        def ping():
            if len(pongs) < 12:
                pongs.append(1)
                pinging.send(op="ping")
                it.loop.call_after(50_000_000, ping)

        ping()
        it.until(lambda: len(pongs) == 12)
        assert idle.is_closed and idle.close_event is None and not pinging.is_closed and not fed.is_closed
        idle.stream.abort()
        fed.stream.write(fed.connection.send(PING, b"x"))                      # control pings are answered
        it.until(lambda: (PONG, b"x") in fed.messages)
        assert it.twin.status()["venues"][SPOT]["counts"]["idle_disconnects"] == 1


# --- faults

@pytest.mark.parametrize("venue", BOTH)
@pytest.mark.parametrize("kind", ["gap", "reorder", "sequence", "no_sequence"])
def test_what_breaks_the_chain_is_seen_and_heals(venue, kind):
    topics = ["orderbook.50.BTCUSDT", "orderbook.200.BTCUSDT", "orderbook.50.ETHUSDT"]
    with bench({venue: ["BTCUSDT", "ETHUSDT"]}, faults=[parse(f"{kind}@0.2:BTCUSDT")]) as it:
        reader = Reader(it, venue, topics)
        it.until(lambda: reader.is_live() and it.twin.faults_done and reader.count("gaps"))
        reader.settle()
        assert [reader.books[topic].counts["gaps"] > 0 for topic in topics[1:]] == [True, False]
        assert reader.connects == 1


@pytest.mark.parametrize("venue", BOTH)
def test_what_must_not_break_it(venue):
    with bench({venue: ["BTCUSDT"]}) as it:
        reader = Reader(it, venue, ["orderbook.50.BTCUSDT", "orderbook.200.BTCUSDT"])
        it.until(reader.is_live)
        for kind in ("duplicate", "snapshot", "reset", "reset", "garbage", "slow"):
            it.fault(venue, kind, seconds=0.1)
            reader.settle()
        for book in reader.books.values():
            assert book.counts["gaps"] == 0 and book.counts["old"] == 1
            assert book.counts["snapshots"] == 4 and book.counts["resets"] == 2
        assert reader.odd == 2 and reader.connects == 1


@pytest.mark.parametrize("venue", BOTH)
def test_lost_connections(venue):
    with bench({venue: ["BTCUSDT"]}, lifetime_s=0.5) as it:
        reader = Reader(it, venue, ["orderbook.200.BTCUSDT"])
        it.until(reader.is_live)
        it.fault(venue, "disconnect")
        it.until(lambda: reader.is_live() and reader.connects == 2)
        it.fault(venue, "mute")
        reader.work()
        reader.client.send(op="ping")
        it.until(lambda: reader.work() or reader.replies and reader.replies[-1]["op"] == "ping")
        it.until(lambda: reader.is_live() and reader.connects >= 3)            # its life ends
        reader.settle()


def test_faults_its_clients_cannot_see_are_refused():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        for kind in ("checksum", "stale_snapshot", "notice"):
            status, _, answer = it.get(SPOT, f"/twin/fault?kind={kind}")
            assert status == 400 and kind in answer["error"]
    loop = Loop()
    with pytest.raises(ConfigError, match="idle_s"):
        Twin(loop, {SPOT: ["BTCUSDT"]}, settings={SPOT: {"nonsense": 1}})
    with pytest.raises(ConfigError, match="checksum@1"):
        Twin(loop, {SPOT: ["BTCUSDT"]}, faults=[parse("checksum@1")])
    for _ in range(3):
        loop.run_once(0)
    loop.close()


def test_every_book_that_was_told_can_be_witnessed():
    with bench({LINEAR: ["BTCUSDT"]}) as it:
        told, held = {}, {}

        def note(channel):
            sequence, *sides = channel.book()
            told[sequence] = [[tuple(map(Decimal, level)) for level in it.twin.venues[LINEAR].source.spelled(
                "BTCUSDT", side)[0]] for side in sides]

        it.twin.venues[LINEAR].on_book = note
        reader = Reader(it, LINEAR, ["orderbook.50.BTCUSDT"])
        book, = reader.books.values()
        take = reader.take

        def taken(message):
            take(message)
            if book.sides is not None:
                held[book.last] = list(book.levels())

        reader.take = taken
        reader.more("updates", 40)
        assert len(held) > 40 and all(told[number] == levels for number, levels in held.items() if number in told)
        assert len(held.keys() & told.keys()) > 38


def test_garbage_is_text_half_a_message_and_a_binary_frame():
    with bench({LINEAR: ["BTCUSDT"]}) as it:
        client = it.client(LINEAR, PATH[LINEAR])
        it.fault(LINEAR, "garbage")
        it.until(lambda: len(client.messages) == 3)
        assert [opcode for opcode, _ in client.messages] == [1, 1, BINARY]


# --- REST

def test_instruments_are_paged_on_linear_and_whole_on_spot():
    symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "NEWTHINGUSDC", "XRPUSDT"]
    with bench({SPOT: symbols, LINEAR: symbols}, levels=20) as it:
        target = "/v5/market/instruments-info?category="
        status, _, answer = it.get(SPOT, target + "spot&limit=2")
        listed = answer["result"]["list"]
        assert (status, answer["retCode"], [row["symbol"] for row in listed]) == (200, 0, symbols)
        assert listed[0]["priceFilter"]["tickSize"] == "0.1"
        assert listed[0]["lotSizeFilter"]["basePrecision"] == "0.000001"
        assert (listed[3]["baseCoin"], listed[3]["quoteCoin"]) == ("NEWTHING", "USDC")
        found, cursor = [], ""
        while True:
            result = it.get(LINEAR, f"{target}linear&limit=2&cursor={cursor}")[2]["result"]
            found += result["list"]
            cursor = result["nextPageCursor"]
            if not cursor:
                break
        assert [row["symbol"] for row in found] == symbols
        assert found[0]["priceFilter"]["tickSize"] == "0.10" and found[0]["lotSizeFilter"]["qtyStep"] == "0.001"
        assert it.get(SPOT, target + "linear")[2]["retCode"] == 10001
        assert it.get(SPOT, target + "spot&symbol=NOPE")[2]["retCode"] == 10001
        assert it.get(SPOT, "/v5/market/nothing")[0] == 404
        assert it.get(SPOT, "/v5/market/time")[2]["retMsg"] == "OK"
        book = it.get(SPOT, "/v5/market/orderbook?category=spot&symbol=BTCUSDT&limit=5")[2]["result"]
        assert len(book["b"]) == len(book["a"]) == 5 and book["s"] == "BTCUSDT"
        for kind, status in (("rest_429", 403), ("rest_error", 500)):
            assert it.get(SPOT, f"/twin/fault?kind={kind}")[0] == 200
            assert it.get(SPOT, target + "spot")[0] == status
