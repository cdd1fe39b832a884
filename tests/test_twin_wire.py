"""The twin over real sockets: protocol, both sync procedures, every fault, limits, recordings, the child."""

import gzip
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from feeder import twin
from feeder.clock import MILLISECOND, steady_ns
from feeder.errors import CaptureError, ConfigError, HostError
from feeder.net import Loop
from feeder.twin import spawn
from feeder.twin.faults import KINDS, parse
from feeder.twin.server import Twin
from feeder.websocket import BINARY, PING, PONG, TEXT, DeflateOptions
from twin_bench import SEED, Request, bench

SPOT, USDM = "binance_spot", "binance_usdm"


class Model:
    """One book by the venue's documented procedure, as plainly as it can be written. `gaps` counts broken links."""

    def __init__(self, bench, venue, symbol, limit):
        self.bench, self.venue, self.symbol = bench, venue, symbol
        self.target = f"/{'api/v3' if venue == SPOT else 'fapi/v1'}/depth?symbol={symbol}&limit={limit}"
        self.gaps = self.refetches = self.bbos = 0
        self.restart()

    def restart(self):
        self.buffer, self.request, self.last_id, self.sides = [], None, None, None
        self.is_first = True
        self.pairs = {}                  # update id -> best prices it was announced with

    def take(self, data):
        if data.get("s") != self.symbol:
            return
        if "U" in data:
            self.buffer.append(data)
            if self.request is None:
                self.request = Request(self.bench, self.venue, self.target)
        elif "B" in data and "A" in data:
            self.pairs[data["u"]] = data["b"], data["B"], data["a"], data["A"]

    def work(self):
        if self.request is None or not self.request.is_done:
            return
        if self.last_id is None:
            status, _, answer = self.request.result
            first = self.buffer[0]["U"]
            if status != 200 or answer["lastUpdateId"] < first - (self.venue == SPOT):
                self.refetches += 1
                self.request = Request(self.bench, self.venue, self.target)
                return
            self.last_id = answer["lastUpdateId"]
            self.sides = dict(answer["bids"]), dict(answer["asks"])
        for diff in self.buffer:
            if self.venue == SPOT:
                if diff["u"] <= self.last_id:
                    continue
                linked = diff["U"] <= self.last_id + 1
            else:
                if diff["u"] < self.last_id or not self.is_first and diff["u"] == self.last_id:
                    continue
                linked = diff["U"] <= self.last_id <= diff["u"] if self.is_first else diff["pu"] == self.last_id
                linked = linked or self.is_first and diff["pu"] == self.last_id
            if not linked:
                self.gaps += 1
                self.restart()
                self.buffer = [diff]
                return
            self.is_first = False
            self.last_id = diff["u"]
            for side, changes in zip(self.sides, (diff["b"], diff["a"])):
                for price, quantity in changes:
                    if float(quantity):
                        side[price] = quantity
                    else:
                        side.pop(price, None)
            if diff["u"] in self.pairs:
                bids, asks = self.book()
                assert (*bids[0], *asks[0]) == self.pairs.pop(diff["u"])
                self.bbos += 1
        self.buffer = []

    def book(self):
        bids, asks = self.sides
        return (sorted(map(list, bids.items()), key=lambda level: float(level[0]), reverse=True),
                sorted(map(list, asks.items()), key=lambda level: float(level[0])))


STREAMS = {SPOT: ("depth@100ms", "trade", "bookTicker"), USDM: ("depth@100ms", "bookTicker", "trade")}


def sync_target(venue, symbols, path=""):
    names = [f"{symbol.lower()}@{kind}" for symbol in symbols for kind in STREAMS[venue]]
    return f"{path}/stream?streams=" + "/".join(names)


class Reader:
    """Feeds the models of one venue from one client; connects again when the connection is lost."""

    def __init__(self, bench, venue, symbols, limit=None):
        self.bench, self.venue, self.symbols = bench, venue, symbols
        limit = limit or (5_000 if venue == SPOT else 1_000)
        self.models = [Model(bench, venue, symbol, limit) for symbol in symbols]
        self.connects = self.odd = 0
        self.diffs = []
        self.open()

    def open(self):
        self.connects += 1
        self.client = self.bench.client(self.venue, sync_target(self.venue, self.symbols))

    def work(self):
        for message in self.client.texts():
            if isinstance(message, bytes) or "data" not in message:
                self.odd += 1
                continue
            if "U" in message["data"]:
                self.diffs.append(message["data"])
            for model in self.models:
                model.take(message["data"])
        if self.client.is_closed:
            for model in self.models:
                model.restart()
            self.open()
        for model in self.models:
            model.work()

    def is_synced(self):
        self.work()
        return all(model.last_id is not None for model in self.models)

    def equals_truth(self):
        """Whether every book is, level by level, the true one; call it while the twin is paused."""
        self.work()
        for model in self.models:
            last_id, bids, asks = self.bench.twin.book(self.venue, model.symbol)
            if model.last_id != last_id or model.book() != (bids, asks):
                return False
        return True

    def wait_synced_and_equal(self):
        self.bench.until(self.is_synced)
        start = len(self.diffs)
        self.bench.until(lambda: self.is_synced() and len(self.diffs) > start + 3 * len(self.models))
        self.bench.twin.pause()
        self.bench.until(self.equals_truth)
        self.bench.twin.resume()


# --- sync procedures

def test_both_venues_sync_and_end_equal_to_the_true_books():
    symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT"]
    with bench({SPOT: symbols, USDM: symbols}, rate=3_000, rest_latency_ms=20) as it:
        readers = [Reader(it, SPOT, symbols), Reader(it, USDM, symbols)]
        for reader in readers:
            it.until(reader.is_synced)
        goal = [len(reader.diffs) + 60 for reader in readers]
        it.until(lambda: all([reader.is_synced() and len(reader.diffs) > count
                              for reader, count in zip(readers, goal)]))
        it.twin.pause()
        for reader in readers:
            it.until(reader.equals_truth)
            assert [model.gaps for model in reader.models] == [0] * 4
            assert sum(model.bbos for model in reader.models) > 20          # compared at equal ids
        links = {}
        for diff in readers[0].diffs:
            assert diff["U"] == links.get(diff["s"], diff["U"] - 1) + 1
            links[diff["s"]] = diff["u"]
        links.clear()
        holes = 0
        for diff in readers[1].diffs:
            assert diff["pu"] == links.get(diff["s"], diff["pu"]) < diff["U"] <= diff["u"]
            links[diff["s"]] = diff["u"]
            holes += diff["U"] > diff["pu"] + 1
        assert holes > 10


def test_pause_and_resume_go_on_without_a_gap():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        reader = Reader(it, SPOT, ["BTCUSDT"])
        for _ in range(3):
            reader.wait_synced_and_equal()
        assert reader.models[0].gaps == 0 and reader.connects == 1


# --- protocol

def test_subscribe_list_unsubscribe_and_errors():
    with bench({SPOT: ["BTCUSDT", "ETHUSDT"]}) as it:
        client = it.client(SPOT, "/ws")
        client.send(method="SUBSCRIBE", params=["btcusdt@trade", "nosuch@trade"], id=7)
        replies = []

        def wait(count):
            it.until(lambda: replies.extend(m for m in client.texts() if "result" in m or "code" in m)
                     or len(replies) == count)

        wait(1)
        client.send(method="LIST_SUBSCRIPTIONS", id="mine")
        client.send(method="UNSUBSCRIBE", params=["btcusdt@trade"], id=8)
        client.stream.write(client.connection.send(TEXT, b"{"))
        wait(4)
        assert replies[:3] == [{"result": None, "id": 7}, {"result": ["btcusdt@trade", "nosuch@trade"], "id": "mine"},
                               {"result": None, "id": 8}]
        assert replies[3]["code"] == 3 and not it.twin.venues[SPOT].channels


def test_only_what_was_subscribed_comes_raw_or_combined():
    with bench({SPOT: ["BTCUSDT", "ETHUSDT"], USDM: ["BTCUSDT"]}) as it:
        raw = it.client(SPOT, "/ws/btcusdt@trade/btcusdt@bookTicker")
        both = it.client(SPOT, "/stream?streams=ethusdt@depth/ethusdt@depth@100ms/ethusdt@aggTrade")
        market = it.client(USDM, "/market/stream?streams=btcusdt@aggTrade/btcusdt@depth@100ms")
        public = it.client(USDM, "/public/ws/btcusdt@aggTrade/btcusdt@depth@100ms")
        old = it.client(USDM, "/ws/btcusdt@aggTrade/btcusdt@bookTicker")
        seen = {client: [] for client in (raw, both, market, public, old)}

        def collect():
            for client in seen:
                seen[client] += client.texts()
            return all(len(messages) >= 25 for messages in seen.values())

        it.until(collect)
        assert {m.get("e", "bbo") for m in seen[raw]} == {"trade", "bbo"} and {m["s"] for m in seen[raw]} == {"BTCUSDT"}
        assert {m["stream"] for m in seen[both]} == {"ethusdt@depth", "ethusdt@depth@100ms", "ethusdt@aggTrade"}
        assert {m["data"]["s"] for m in seen[both]} == {"ETHUSDT"}
        assert {m["stream"] for m in seen[market]} == {"btcusdt@aggTrade"}          # others are silent there
        assert {m["e"] for m in seen[public]} == {"depthUpdate"} and {m["e"] for m in seen[old]} == {"bookTicker"}
        raw.send(method="SET_PROPERTY", params=["combined", True], id=1)
        it.until(lambda: any("stream" in m for m in raw.texts()))


def test_deflate_is_agreed_when_offered():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        packed = it.client(SPOT, "/ws/btcusdt@depth@100ms", deflate=DeflateOptions())
        plain = it.client(SPOT, "/ws/btcusdt@depth@100ms")
        assert packed.handshake.deflate is not None and plain.handshake.deflate is None
        start = len(plain.messages)
        got = {packed: [], plain: []}
        it.until(lambda: [got[c].extend(c.texts()) for c in got] and min(map(len, got.values())) > start + 20)
        ids = {diff["u"]: diff for diff in got[plain]}
        assert all(ids.get(diff["u"], diff) == diff for diff in got[packed])
        assert packed.stream.bytes_in < plain.stream.bytes_in


def test_refused_targets_and_bad_http():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        for target in ("/nowhere", "/api/v3/nothing", "/twin/nothing"):
            assert it.get(SPOT, target)[0] == 404
        client = it.client(SPOT, "/public/stream")
        it.until(lambda: client.is_closed)
        assert "404" in str(client.error)
        answers = []
        stream = it.connect(SPOT, lambda stream: stream.write(b"rubbish\r\n\r\n"),
                            lambda stream, data, recv_ns: answers.append(bytes(data)))
        it.until(lambda: answers and not stream.is_open)
        assert answers[0].startswith(b"HTTP/1.1 400")


def test_requests_of_one_connection_are_answered_in_turn():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        raw = bytearray()
        two = b"GET /api/v3/ping HTTP/1.1\r\nHost: x\r\n\r\n" * 2
        stream = it.connect(SPOT, lambda stream: stream.write(two), lambda stream, data, recv_ns: raw.extend(data))
        it.until(lambda: raw.count(b"\r\n\r\n{}") == 2)
        assert stream.is_open
        stream.write(b"POST /api/v3/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        it.until(lambda: not stream.is_open)
        assert b" 405 " in raw


def test_pings_are_answered_or_the_connection_ends():
    with bench({SPOT: ["BTCUSDT"]}, ping_interval_s=0.03, pong_timeout_s=0.1, connects_per_5_minutes=3) as it:
        good, bad = it.client(SPOT, "/ws/btcusdt@trade"), it.client(SPOT, "/ws", answers_pings=False)
        it.until(lambda: bad.is_closed)
        assert bad.close_event[0] == 1008 and not good.is_closed
        assert sum(opcode == PING for opcode, _ in good.messages) >= 2
        assert it.twin.status()["venues"][SPOT]["counts"]["pong_timeouts"] == 1
        it.client(SPOT, "/ws")
        late = it.client(SPOT, "/ws")                                            # the fourth connect of five minutes
        it.until(lambda: late.is_closed)
        assert "429" in str(late.error)


@pytest.mark.parametrize("venue, limit", [(SPOT, 5), (USDM, 10)])
def test_too_many_commands_end_the_connection(venue, limit):
    with bench({venue: ["BTCUSDT"]}) as it:
        client = it.client(venue, "/ws")
        for number in range(limit):
            client.send(method="LIST_SUBSCRIPTIONS", id=number)
        client.stream.write(client.connection.send(PONG, b""))                   # counts too
        it.until(lambda: client.is_closed)
        assert client.close_event[0] == 1008
        client = it.client(venue, "/ws")
        client.stream.write(client.connection.send(BINARY, b"x"))
        it.until(lambda: client.is_closed)
        assert client.close_event[0] == 1003
        client = it.client(venue, "/ws")
        client.send(method="SUBSCRIBE", params=[f"s{number}@trade" for number in range(1_025)], id=1)
        it.until(lambda: client.is_closed)
        assert client.close_event[0] == 1008


def test_a_reader_that_stops_reading_is_cut_off():
    with bench({SPOT: ["BTCUSDT"]}, rate=20_000) as it:
        client = it.client(SPOT, sync_target(SPOT, ["BTCUSDT"]))
        peer, = it.twin.venues[SPOT].peers
        peer.stream.max_pending_bytes = 50_000
        it.loop.unregister(client.stream._socket)        # the client's kernel buffers fill up, then ours
        client.stream._is_watched = False
        it.until(lambda: not it.twin.venues[SPOT].peers, timeout_s=15)
        assert it.twin.status()["venues"][SPOT]["counts"]["slow_disconnects"] == 1
        client.stream.abort()


# --- REST

def test_depth_respects_the_limit_and_says_its_weight():
    with bench({SPOT: ["BTCUSDT"], USDM: ["BTCUSDT"]}) as it:
        status, headers, answer = it.get(SPOT, "/api/v3/depth?symbol=BTCUSDT&limit=7")
        assert status == 200 and len(answer["bids"]) == len(answer["asks"]) == 7
        assert headers["x-mbx-used-weight-1m"] == "5"
        assert list(answer) == ["lastUpdateId", "bids", "asks"]
        status, headers, answer = it.get(SPOT, "/api/v3/depth?symbol=BTCUSDT&limit=5000")
        assert len(answer["bids"]) > 1_000 < len(answer["asks"]) and headers["x-mbx-used-weight-1m"] == "255"
        assert it.get(SPOT, "/api/v3/depth?symbol=NOPE")[::2] == (400, {"code": -1121, "msg": "Invalid symbol."})
        assert it.get(SPOT, "/api/v3/depth?symbol=BTCUSDT&limit=x")[0] == 400
        status, headers, answer = it.get(USDM, "/fapi/v1/depth?symbol=BTCUSDT&limit=1000")
        assert list(answer) == ["lastUpdateId", "E", "T", "bids", "asks"] and 900 <= len(answer["bids"]) < 1_000
        assert it.get(USDM, "/fapi/v1/depth?symbol=BTCUSDT&limit=7")[0] == 400
        assert len(it.get(SPOT, "/api/v3/exchangeInfo?symbols=%5B%22BTCUSDT%22%5D")[2]["symbols"]) == 1
        assert it.get(USDM, "/fapi/v1/exchangeInfo")[2]["symbols"][0]["contractType"] == "PERPETUAL"
        assert it.get(USDM, "/fapi/v1/time")[2]["serverTime"] > 1_600_000_000_000


def test_weight_over_the_minute_is_429_with_retry_after():
    with bench({SPOT: ["ADAUSDT"]}, levels=20) as it:
        results = [it.get(SPOT, "/api/v3/depth?symbol=ADAUSDT&limit=5000") for _ in range(26)]
        assert [status for status, _, _ in results] == [200] * 24 + [429] * 2
        assert 0 < int(results[-1][1]["retry-after"]) <= 60 and results[-1][2]["code"] == -1003
        assert results[23][1]["x-mbx-used-weight-1m"] == "6000"


# --- faults

@pytest.mark.parametrize("venue", [SPOT, USDM])
@pytest.mark.parametrize("kind", ["gap", "reorder"])
def test_lost_and_late_diffs_break_the_chain_and_heal(venue, kind):
    with bench({venue: ["BTCUSDT", "ETHUSDT"]}, faults=[parse(f"{kind}@0.3:BTCUSDT")]) as it:
        reader = Reader(it, venue, ["BTCUSDT", "ETHUSDT"])
        btc, eth = reader.models
        it.until(lambda: reader.is_synced() and btc.gaps)
        assert [done["kind"] for done in it.twin.status()["faults_done"]] == [kind]
        ids = [diff["u"] for diff in reader.diffs if diff["s"] == "BTCUSDT"]
        assert (ids == sorted(ids)) == (kind == "gap") and len(ids) == len(set(ids))
        reader.wait_synced_and_equal()
        assert eth.gaps == 0


@pytest.mark.parametrize("venue", [SPOT, USDM])
def test_duplicates_come_twice_and_harm_nobody(venue):
    with bench({venue: ["BTCUSDT"]}) as it:
        reader = Reader(it, venue, ["BTCUSDT"])
        it.until(reader.is_synced)
        assert it.get(venue, "/twin/fault?kind=duplicate&symbol=BTCUSDT")[0] == 200
        it.until(lambda: reader.is_synced() and it.twin.faults_done)
        reader.wait_synced_and_equal()
        ids = [diff["u"] for diff in reader.diffs]
        assert len(ids) == len(set(ids)) + 1 and reader.models[0].gaps == 0


def test_disconnect_drops_every_connection_without_a_close():
    with bench({SPOT: ["BTCUSDT"], USDM: ["BTCUSDT"]}) as it:
        readers = [Reader(it, SPOT, ["BTCUSDT"]), Reader(it, USDM, ["BTCUSDT"])]
        for reader in readers:
            it.until(reader.is_synced)
        first = readers[0].client
        assert it.get(SPOT, "/twin/disconnect")[0] == 200
        it.until(lambda: first.is_closed)
        assert first.error is not None and first.close_event is None
        for reader in readers:
            reader.wait_synced_and_equal()
        assert [reader.connects for reader in readers] == [2, 1]


def test_mute_keeps_pinging_and_sends_no_data():
    with bench({SPOT: ["BTCUSDT"]}, ping_interval_s=0.02) as it:
        reader = Reader(it, SPOT, ["BTCUSDT"])
        it.until(reader.is_synced)
        it.get(SPOT, "/twin/fault?kind=mute")
        client = reader.client
        reader.work()
        client.stream.write(client.connection.send(PING, b"there?"))
        it.until(lambda: (PONG, b"there?") in client.messages)
        client.messages.clear()
        it.until(lambda: sum(opcode == PING for opcode, _ in client.messages) >= 3)
        assert all(opcode != TEXT for opcode, _ in client.messages)
        other = it.client(SPOT, "/ws/btcusdt@bookTicker")                        # a new connection hears again
        it.until(lambda: other.texts())
        client.stream.close()
        reader.wait_synced_and_equal()


def test_mute_for_a_while_leaves_a_gap():
    with bench({USDM: ["BTCUSDT"]}, faults=[parse("mute@0.3+0.2")]) as it:
        reader = Reader(it, USDM, ["BTCUSDT"])
        it.until(lambda: reader.is_synced() and reader.models[0].gaps)
        reader.wait_synced_and_equal()
        assert reader.connects == 1


def test_stale_snapshot_is_older_than_any_diff():
    for venue in (SPOT, USDM):
        with bench({venue: ["BTCUSDT"]}, faults=[parse("stale_snapshot@0:BTCUSDT")]) as it:
            reader = Reader(it, venue, ["BTCUSDT"])
            reader.wait_synced_and_equal()
            assert reader.models[0].refetches >= 1


def test_rest_429_and_rest_error():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        it.get(SPOT, "/twin/fault?kind=rest_429")
        it.get(SPOT, "/twin/fault?kind=rest_error&symbol=BTCUSDT")
        status, headers, _ = it.get(SPOT, "/api/v3/depth?symbol=BTCUSDT")
        assert status == 429 and headers["retry-after"] == "1"
        assert it.get(SPOT, "/api/v3/ping")[0] == 200
        assert it.get(SPOT, "/api/v3/depth?symbol=BTCUSDT")[0] == 500
        assert it.get(SPOT, "/api/v3/depth?symbol=BTCUSDT")[0] == 200


def test_garbage_is_three_messages_and_nothing_is_lost():
    with bench({USDM: ["BTCUSDT"]}) as it:
        reader = Reader(it, USDM, ["BTCUSDT"])
        it.until(reader.is_synced)
        it.get(USDM, "/twin/fault?kind=garbage")
        it.until(lambda: reader.client.messages and any(op == BINARY for op, _ in reader.client.messages))
        reader.wait_synced_and_equal()
        assert reader.odd == 2 and reader.models[0].gaps == 0 and reader.connects == 1


def test_slow_connections_trickle_and_then_catch_up():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        reader = Reader(it, SPOT, ["BTCUSDT"])
        it.until(reader.is_synced)
        it.get(SPOT, "/twin/fault?kind=slow&seconds=0.5")
        start_ns, start_bytes = steady_ns(), reader.client.stream.bytes_in
        it.until(lambda: reader.work() or steady_ns() - start_ns > 400 * MILLISECOND)
        slow = reader.client.stream.bytes_in - start_bytes
        peer, = it.twin.venues[SPOT].peers
        assert slow < 20_000 and len(peer.backlog) > 5 * slow
        reader.wait_synced_and_equal()
        assert reader.models[0].gaps == 0


def test_spot_announces_the_end_of_a_connection_and_usdm_does_not():
    with bench({SPOT: ["BTCUSDT"], USDM: ["BTCUSDT"]}, time_scale=20, lifetime_s=0.1) as it:
        raw, both = it.client(SPOT, "/ws/btcusdt@trade"), it.client(SPOT, "/stream?streams=btcusdt@trade")
        mute = it.client(USDM, "/ws")
        it.until(lambda: all(client.is_closed for client in (raw, both, mute)))
        notices = [[message for message in client.texts() if "serverShutdown" in str(message)]
                   for client in (raw, both, mute)]
        assert [list(message) for message in notices[0] + notices[1]] == [["e", "E"], ["stream", "data"]]
        assert not notices[2] and raw.close_event[0] == 1001
        assert it.get(USDM, "/twin/fault?kind=notice")[0] == 400


def test_admin_requests_say_what_is_wrong():
    with bench({SPOT: ["BTCUSDT"]}) as it:
        for target in ("fault?kind=bang", "fault", "fault?kind=gap&symbol=NOPE", "fault?kind=mute&seconds=x",
                       "book?symbol=NOPE", "book?symbol=BTCUSDT&limit=x"):
            status, _, answer = it.get(SPOT, "/twin/" + target)
            assert status == 400 and answer["error"]
        it.get(SPOT, "/twin/pause")
        answer = it.get(SPOT, "/twin/book?symbol=btcusdt&limit=3")[2]
        assert (answer["last_update_id"], answer["bids"]) == (it.twin.book(SPOT, "BTCUSDT")[0],
                                                              it.twin.book(SPOT, "BTCUSDT")[1][:3])
        it.get(SPOT, "/twin/resume")
        status = it.get(SPOT, "/twin/status")[2]
        assert status["seed"] == SEED and status["venues"][SPOT]["source"] == "synthetic" and not status["paused"]
        assert len(KINDS) == 10


# --- recordings

def write_recording(path, seed=SEED):
    """A recording of the twin itself: usdm @depth@0ms and @trade, with the REST answer in the middle of the diffs."""
    from feeder.twin.binance import Usdm
    from feeder.twin.dialect import Words
    from feeder.twin.market import DEPTH, Listing

    dialect = Usdm()
    spec, = dialect.specs(["BTCUSDT"])
    listing = Listing(spec, seed, 300, dialect.contiguous)
    words, makers, stream = Words(spec), dialect.makers(), {"depth": "btcusdt@depth@0ms"}
    listing.turn(0), listing.flush(0)
    time_ns = 1721347020984480942
    raws = []
    with gzip.open(path, "wt", encoding="utf-8") as file:
        def record(kind, url, raw):
            file.write(json.dumps({"t": time_ns, "conn": url, "kind": kind, "dir": "in", "raw": raw}) + "\n")

        for turn in range(1_200):
            time_ns += 500_000
            for event in listing.turn(turn):
                text = makers[event[0]](event, words, time_ns // 1_000_000)
                name = stream.get(event[0], "btcusdt@" + event[0])
                raws.append(f'{{"stream":"{name}","data":{text}}}')
                record("ws", "wss://fstream.binance.com/stream", raws[-1])
            if turn == 400:
                answer = dialect.depth_text(listing.update_id, words.levels(listing.bids.levels()),
                                            words.levels(listing.asks.levels()), time_ns // 1_000_000)
            if turn == 440:                                      # an answer takes its time: newer diffs came first
                record("rest", "https://fapi.binance.com/fapi/v1/depth?symbol=BTCUSDT&limit=1000", answer)
        for event in listing.flush(0):
            raws.append(f'{{"stream":"btcusdt@depth@0ms","data":{makers[DEPTH](event, words, 0)}}}')
            record("ws", "wss://fstream.binance.com/stream", raws[-1])
    return raws, listing, words


@pytest.mark.parametrize("speed", [1.0, None])
def test_a_recording_is_served_byte_for_byte_and_rest_waits_for_its_time(tmp_path, speed):
    path = str(tmp_path / "usdm.jsonl.gz")
    raws, listing, words = write_recording(path)
    with bench({USDM: []}, replay=path, speed=speed) as it:
        early = Request(it, USDM, "/fapi/v1/depth?symbol=BTCUSDT&limit=1000")
        client = it.client(USDM, "/public/stream?streams=btcusdt@depth@0ms/btcusdt@bookTicker/btcusdt@trade")
        for _ in range(20):
            it.loop.run_once(5 * MILLISECOND)
        assert not early.is_done and it.twin.venues[USDM].waiting
        start_ns = steady_ns()
        it.until(lambda: it.twin.status()["venues"][USDM]["finished"])
        assert speed is None or steady_ns() - start_ns > 500 * MILLISECOND
        expected = [raw.encode() for raw in raws if "aggTrade" not in raw]
        it.until(lambda: len(client.messages) == len(expected) and early.is_done)
        assert [payload for _, payload in client.messages] == expected
        last_id, bids, asks = it.twin.book(USDM, "BTCUSDT")
        assert last_id == listing.update_id
        assert (bids, asks) == (words.pairs(listing.bids.levels()), words.pairs(listing.asks.levels()))
        late = it.get(USDM, "/fapi/v1/depth?symbol=BTCUSDT&limit=1000")[2]
        assert (late["lastUpdateId"], late["bids"], late["asks"]) == (last_id, bids, asks)
        assert len(it.get(USDM, "/fapi/v1/exchangeInfo")[2]["symbols"]) == 1


def test_a_recording_syncs_with_the_documented_procedure(tmp_path):
    path = str(tmp_path / "usdm.jsonl.gz")
    write_recording(path)
    with bench({USDM: []}, replay=path) as it:
        reader = Reader(it, USDM, ["BTCUSDT"])
        it.until(lambda: reader.is_synced() and it.twin.status()["venues"][USDM]["finished"])
        it.until(reader.equals_truth)
        assert reader.models[0].gaps == 0 and reader.models[0].bbos > 10


def test_unreadable_recordings_are_refused_by_name(tmp_path):
    from feeder.twin.source import venues_in

    path = tmp_path / "x.jsonl"
    for content, words in (('{"conn":"wss://ws.kraken.com","raw":"{}"}\n', "kraken"), ("nonsense\n", "x.jsonl")):
        path.write_text(content)
        with pytest.raises(CaptureError, match=words):
            venues_in(str(path))
    path.write_text('{"t":1,"conn":"wss://stream.binance.com/stream","kind":"ws","dir":"in","raw":"{}"}\n{"t":1}\n')
    loop = Loop()
    with pytest.raises(CaptureError, match="line 2"):
        Twin(loop, {SPOT: []}, replay=str(path))
    with pytest.raises(ConfigError, match="binance_spot"):
        Twin(loop, {"nowhere": ["BTCUSDT"]})
    loop.close()


# --- the process

def test_spawned_child_answers_and_ends_with_its_parent():
    with spawn(["--symbols", "BTCUSDT,ETHUSDT", "--levels", "50", "--rate", "200", "--seed", SEED]) as child:
        assert set(child.info) == {SPOT, USDM} and child.seed == SEED and child.pid == child.process.pid
        assert child.info[SPOT]["symbols"] == ["BTCUSDT", "ETHUSDT"]
        assert urlsplit(child.info[USDM]["websocket_url"]).port != urlsplit(child.info[SPOT]["websocket_url"]).port
        assert child.ask(SPOT, "pause") == {"paused": True}
        assert len(child.ask(USDM, "book", symbol="ETHUSDT")["bids"]) >= 30
        with pytest.raises(HostError, match="NOPE"):
            child.ask(SPOT, "book", symbol="NOPE")
        assert child.close() == 0
    with pytest.raises(HostError, match="exit code 2"):
        spawn(["--venue", "nowhere"])


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_command_ends_on_a_signal_with_a_summary():
    process = subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-m", "feeder.twin.command",
                                "--symbols", "1", "--levels", "50"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0 and errors.startswith("feeder venue: seed 1") and "binance_usdm" in errors
    assert "Warning" not in errors


def test_ctrl_c_while_the_child_starts_leaves_nothing_open(monkeypatch):
    made = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            made.append(self)
            self.stdout.close()

            def readline():
                raise KeyboardInterrupt
            self.stdout = SimpleNamespace(readline=readline, close=lambda: None)

    monkeypatch.setattr(twin.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        twin.spawn(["--symbols", "BTC/USDT"])
    process, = made
    assert process.returncode is not None and process.stdin.closed
