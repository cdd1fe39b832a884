"""Feeds against venues on real sockets: connections, subscriptions, silence, symbols, snapshots, TLS, proxies.

`Desk` has one Feed and what it feeds; its venue is the twin, or a `Stub` that does only what a test tells it to.
"""

import json
import logging
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from net_peers import authority  # noqa: F401
from support import dice
from test_net_stream import dead_port

from feeder import config as configuration, ingest, line
from feeder.clock import MILLISECOND, SECOND, steady_ns, wall_ns
from feeder.errors import ConfigError
from feeder.ingest import Feed, SnapshotQueue, retry_after_ns
from feeder.message import LIVE, STALE, SYNCING
from feeder.net import Loop, connect, listen, server_tls_context
from feeder.pipeline import Pipeline
from feeder.receiver import Receiver
from feeder.twin.faults import Fault
from feeder.twin.server import Twin
from feeder.websocket import CLOSE, PING, PONG, SERVER, TEXT, Connection, ServerHandshake, http_response

SPOT, USDM = "binance_spot", "binance_usdm"


class Desk:
    """A Feed, its pipeline and a Receiver of its datagrams; no multicast here."""

    def __init__(self, venue=SPOT, symbols=("BTCUSDT", "ETHUSDT"), seed=3, **keys):
        self.loop = Loop()
        self.receiver = Receiver()
        self.pipeline = Pipeline(self.emit, wall_ns, 1, want_snapshot=lambda venue, instrument, attempt: (
            self.feed.snapshots.order(instrument, attempt)))
        self.config, = configuration.builtin([venue]).venues
        self.config.symbols = list(symbols)
        if venue.startswith("binance"):
            self.config.snapshot_limit = 100
        self.config.proxy = ""
        for key, value in keys.items():
            assert key in self.config.__slots__
            setattr(self.config, key, value)
        self.seed = seed
        self.feed = self.twin = None

    def emit(self, datagram):
        self.receiver.receive(datagram, wall_ns())

    def start(self):
        self.feed = Feed(self.loop, self.pipeline, self.config, {}, dice(self.seed))
        self.feed.start()
        return self.feed

    def serve(self, symbols=None, **options):
        """Put the twin behind it, in the same loop."""
        options = {"rate": 800, "levels": 100, "rest_latency_ms": 2, **options}
        self.twin = Twin(self.loop, {self.config.name: list(symbols or self.config.symbols)}, seed=1, **options)
        info = self.twin.info[self.config.name]
        self.config.websocket_url, self.config.rest_url = info["websocket_url"], info["rest_url"]
        return self.twin.venues[self.config.name]

    def until(self, condition, seconds=10):
        give_up_ns = steady_ns() + int(seconds * SECOND)
        while not condition():
            assert steady_ns() < give_up_ns, f"waited in vain: {self.feed.row()}"
            self.loop.run_once(20 * MILLISECOND)

    def spin(self, seconds):
        end_ns = steady_ns() + int(seconds * SECOND)
        self.until(lambda: steady_ns() >= end_ns, seconds + 5)

    def states(self):
        return [entry.state for entry in self.pipeline.publisher.entries]

    def live(self):
        return all(state == LIVE for state in self.states())

    def close(self):
        if self.feed is not None:
            self.feed.close()
        if self.twin is not None:
            self.twin.close()
        for _ in range(3):
            self.loop.run_once(0)
        self.loop.close()


@contextmanager
def desk(*args, errors=0, **keys):
    made = Desk(*args, **keys)
    try:
        yield made
    finally:
        made.close()
    assert made.loop.errors == errors
    assert made.receiver.gap_count == 0 and made.receiver.errors == {}


LISTED = json.dumps({"symbols": [{"symbol": symbol, "filters": [
    {"filterType": "PRICE_FILTER", "tickSize": "0.01000000"}, {"filterType": "LOT_SIZE", "stepSize": "0.00001000"}]}
    for symbol in ("BTCUSDT", "ETHUSDT")]}).encode()


class Stub:
    """A venue that does what the test says: `on_upgrade(link)`, `on_text(link, request)`, `on_get(target)`."""

    def __init__(self, desk, on_upgrade=lambda link: None, on_text=lambda link, request: None,
                 on_get=lambda target: (200, LISTED, ()), tls=None):
        self.desk = desk
        self.on_upgrade, self.on_text, self.on_get = on_upgrade, on_text, on_get
        self.accepts = []                # steady times
        self.gets = []                   # (steady time, target)
        self.links = []                  # WebSockets
        self.streams = []
        self.listener = listen(desk.loop, "127.0.0.1", 0, self.accepted, tls=tls)
        secure = "s" if tls else ""
        desk.config.websocket_url = f"ws{secure}://127.0.0.1:{self.listener.port}"
        desk.config.rest_url = f"http{secure}://127.0.0.1:{self.listener.port}"

    def accepted(self, stream):
        self.streams.append(stream)
        handshake = ServerHandshake()

        def on_data(stream, data, recv_ns):
            request = handshake.receive(data)
            if request is None:
                return
            if not request.is_upgrade:
                self.gets.append((steady_ns(), request.target))
                status, body, headers = self.on_get(request.target)
                stream.write(http_response(status, body, headers=[*headers, ("Connection", "close")]))
                return stream.close()
            self.accepts.append(steady_ns())
            link = SimpleNamespace(stream=stream, target=request.target, frames=[], websocket=Connection(SERVER))
            link.send = lambda opcode, payload: stream.write(link.websocket.send(opcode, payload))
            link.accept = lambda: stream.write(handshake.accept(request))
            link.end = lambda code, text="": stream.write(link.websocket.close(code, text))
            stream.on_data = lambda stream, data, recv_ns: self.frames(link, data)
            self.links.append(link)
            if self.on_upgrade(link) is not False:
                link.accept()

        stream.on_data = on_data
        stream.on_close = lambda stream, error: None

    def frames(self, link, data):
        for opcode, payload in link.websocket.receive(data):
            link.frames.append((steady_ns(), opcode, payload))
            if opcode == TEXT:
                self.on_text(link, json.loads(payload))

    def close(self):
        self.listener.close()
        for stream in self.streams:
            stream.abort()


@contextmanager
def stub(desk, **handlers):
    made = Stub(desk, **handlers)
    try:
        yield made
    finally:
        made.close()


def trade(symbol="BTCUSDT", number=1):
    stream = f"{symbol.lower()}@trade"
    return json.dumps({"stream": stream, "data": {
        "e": "trade", "E": 1_723_161_255_343, "s": symbol, "t": number, "p": "61837.63000000", "q": "0.00100000",
        "T": 1_723_161_255_343, "m": True, "M": True}}, separators=(",", ":")).encode()


def diff(first, last, symbol="BTCUSDT"):
    return json.dumps({"stream": f"{symbol.lower()}@depth@100ms", "data": {
        "e": "depthUpdate", "E": 1_723_161_255_343, "s": symbol, "U": first, "u": last,
        "b": [["61837.63000000", f"{last}.00000000"]], "a": [["61838.00000000", "1.00000000"]]}},
        separators=(",", ":")).encode()


def snapshot(sequence):
    return json.dumps({"lastUpdateId": sequence, "bids": [["61837.63000000", f"{sequence}.00000000"]],
                       "asks": [["61838.00000000", "1.00000000"]]}).encode()


def acknowledge(link, request):
    link.send(TEXT, b'{"result":null,"id":%d}' % request["id"])


# -- connecting -----------------------------------------------------------------------------------------------------


def test_a_closed_port_is_tried_for_ever_with_growing_pauses(monkeypatch):
    pauses = []
    original = line.Backoff.next_ns

    def short(self):
        pauses.append(self._ceiling_ns)
        return original(self) // 1_000   # the same draws, quicker

    monkeypatch.setattr(line.Backoff, "next_ns", short)
    port = dead_port()
    with desk(websocket_url=f"ws://127.0.0.1:{port}", rest_url=f"http://127.0.0.1:{port}") as made:
        feed = made.start()
        made.until(lambda: feed.lines[0].connects == 15)
        row = feed.row()
        assert "refused" in row["last_error"] and row["connected"] == row["disconnects"] == 0
        assert pauses[:12] == [min(30 * SECOND, 250 * MILLISECOND << power) for power in range(12)]
        assert made.states() == [SYNCING] * 2


def test_the_pause_is_short_again_after_data_not_after_a_mere_connection(monkeypatch):
    original = line.Backoff.next_ns
    monkeypatch.setattr(line.Backoff, "next_ns", lambda self: original(self) // 20)     # the same draws, quicker
    with desk() as made, stub(made, on_text=acknowledge) as venue:
        feed = made.start()
        only = feed.lines[0]
        for count in range(1, 4):        # connections that bring nothing but acknowledgements
            made.until(lambda: len(venue.links) == count and any(frame[1] == TEXT for frame in venue.links[-1].frames))
            made.spin(0.02)
            venue.links[-1].stream.abort()
            made.until(lambda: only.backoff._ceiling_ns == 250 * MILLISECOND << count)
        made.until(lambda: len(venue.links) == 4 and only.connected)
        venue.links[-1].send(TEXT, trade())
        made.until(lambda: not only.backoff_used)
        assert only.backoff._ceiling_ns == 250 * MILLISECOND
        assert feed.row()["disconnects"] == 3 and feed.row()["connects"] == 4


def test_only_who_speaks_tls_loads_its_certificates():
    for websocket_url, rest_url, wanted in (("ws://127.0.0.1:9", "http://127.0.0.1:9", False),
                                            ("wss://127.0.0.1:9", "http://127.0.0.1:9", True),
                                            ("ws://127.0.0.1:9", "https://127.0.0.1:9", True)):
        with desk(websocket_url=websocket_url, rest_url=rest_url) as found:
            found.feed = Feed(found.loop, found.pipeline, found.config, {}, dice(1))
            assert (found.feed.tls is not None) == wanted


def test_connects_keep_to_the_budget(monkeypatch):
    monkeypatch.setattr(ingest, "CONNECT_WINDOW_NS", SECOND // 2)
    monkeypatch.setattr(line.Backoff, "next_ns", lambda self: 0)
    with desk(connects_per_5_minutes=3) as made, stub(made, on_upgrade=lambda link: link.stream.abort()) as venue:
        made.start()
        made.until(lambda: len(venue.accepts) == 8)
        assert all(later - earlier > 0.475 * SECOND for earlier, later in zip(venue.accepts, venue.accepts[3:]))
        assert venue.accepts[2] - venue.accepts[0] < 0.25 * SECOND


def test_lines_share_one_budget(monkeypatch):
    monkeypatch.setattr(ingest, "CONNECT_WINDOW_NS", SECOND // 2)
    with desk(USDM, connects_per_5_minutes=1) as made, stub(made) as venue:
        made.start()
        made.until(lambda: len(venue.accepts) == 2)
        assert [link.target for link in venue.links] == ["/public/stream", "/market/stream"]
        assert venue.accepts[1] - venue.accepts[0] > 0.45 * SECOND


@pytest.mark.parametrize("answer, text", [
    (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nslow", "429"),
    (b"HTTP/1.1 301 Moved\r\nLocation: wss://elsewhere/\r\n\r\n", "redirect"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "SSH")])
def test_an_upgrade_that_is_refused_says_why_and_is_tried_again(answer, text):
    def refuse(link):
        link.stream.write(answer)
        link.stream.close()
        return False

    with desk() as made, stub(made, on_upgrade=refuse) as venue:
        feed = made.start()
        made.until(lambda: len(venue.links) == 2)
        assert text.lower() in feed.last_error.lower() and feed.row()["disconnects"] == 0


def test_an_upgrade_that_is_never_answered_is_given_up():
    with desk(stale_after_s=0.2) as made, stub(made, on_upgrade=lambda link: False) as venue:
        feed = made.start()
        made.until(lambda: len(venue.links) == 2)
        assert "no answer to the WebSocket upgrade for 0.2 s" in feed.last_error
        assert feed.row()["silences"] == 0


@pytest.mark.parametrize("stage", ["resolving", "connecting", "asking the proxy", "TLS handshake", "upgrading",
                                   "waiting"])
def test_close_at_every_stage_of_connecting(stage):
    """Nothing is left open or running, and nothing happens afterwards."""
    loop = Loop()
    silent = listen(loop, "127.0.0.1", 0, lambda stream: None)           # accepts in the kernel, says nothing
    port = dead_port() if stage == "waiting" else silent.port
    scheme = "wss" if stage == "TLS handshake" else "ws"
    host = "203.0.113.1" if stage == "connecting" else "127.0.0.1"      # RFC 5737: nobody is there
    more = {"proxy": f"http://127.0.0.1:{port}"} if stage == "asking the proxy" else {}
    with desk(websocket_url=f"{scheme}://{host}:{port}", rest_url=f"http://127.0.0.1:{dead_port()}", **more) as made:
        feed = made.start()
        line = feed.lines[0]
        made.until(lambda: line.stream is not None)
        if stage == "waiting":
            made.until(lambda: line.backoff_used)
        elif stage == "upgrading":
            made.until(lambda: line.stream.is_open)
        elif stage != "resolving":
            made.until(lambda: line.stream.stage == stage or line.backoff_used)     # no route: the stage is short
        feed.close()
        connects = line.connects
        made.spin(0.05)
        assert line.connects == connects and not line.connected and line.stream.stage == "closed"
    silent.close()
    loop.close()


# -- subscribing ----------------------------------------------------------------------------------------------------


def test_subscriptions_are_complete_paced_and_start_over_with_the_connection():
    symbols = [f"T{number:03d}USDT" for number in range(110)]            # 330 streams: 4 texts
    with desk(symbols=symbols) as made, stub(made, on_text=acknowledge) as venue:
        made.start()
        made.until(lambda: venue.links and len(venue.links[0].frames) == 1)
        venue.links[0].stream.abort()    # lost while it subscribes
        made.until(lambda: len(venue.links) == 2 and len(venue.links[1].frames) == 4)
        made.spin(0.4)
        texts = [(at, json.loads(payload)) for at, opcode, payload in venue.links[1].frames]
        assert len(texts) == 4
        assert sorted(name for _, text in texts for name in text["params"]) == sorted(
            f"{symbol.lower()}@{kind}" for symbol in symbols for kind in ("depth@100ms", "trade", "bookTicker"))
        assert all(later[0] - earlier[0] > 0.28 * SECOND for earlier, later in zip(texts, texts[1:]))
        ids = [text["id"] for _, text in texts]
        assert len(set(ids)) == 4


def test_an_error_of_the_venue_is_counted_and_named():
    with desk() as made, stub(made, on_text=lambda link, request: link.send(
            TEXT, b'{"error":{"code":2,"msg":"Invalid request: unknown stream"},"id":%d}' % request["id"])):
        feed = made.start()
        made.until(lambda: feed.venue_errors == 1)
        assert feed.row()["last_error"] == "2: Invalid request: unknown stream (request of BTCUSDT, ETHUSDT)" and feed.row()["connected"] == 1


# -- silence, ends and faults of a connection -----------------------------------------------------------------------


def test_pings_and_acknowledgements_are_no_data():
    def ping(link):
        if link.stream.is_open and link.websocket.is_open:
            link.send(PING, b"are you there")
            made.loop.call_after(40 * MILLISECOND, lambda: ping(link))

    def on_text(link, request):
        acknowledge(link, request)
        ping(link)

    with desk(stale_after_s=0.4) as made, stub(made, on_text=on_text) as venue:
        feed = made.start()
        made.until(lambda: len(venue.links) == 2)
        pongs = [at for at, *frame in venue.links[0].frames if frame == [PONG, b"are you there"]]
        assert len(pongs) >= 3, "they were answered, all the same"
        assert feed.row()["silences"] == feed.row()["disconnects"] == 1
        assert "no market data for 0.4 s" in feed.last_error
        made.spin(0.05)
        for link in venue.links:
            link.stream.abort()


def test_data_that_only_json_can_read_keeps_the_connection_alive():
    """A venue that prints its messages differently is slower to read, not silent."""
    with desk(stale_after_s=0.3) as made, stub(made) as venue:
        feed = made.start()
        made.until(lambda: feed.lines[0].connected)
        for number in range(20):
            venue.links[0].send(TEXT, trade(number=number).replace(b'"e":', b' "e" :'))
            made.spin(0.04)
        assert feed.silences == 0 and len(venue.links) == 1 and feed.venue.likely == 0 and feed.venue.unlikely == 20


def test_a_close_of_the_venue_is_answered_and_named():
    with desk() as made, stub(made) as venue:
        feed = made.start()
        made.until(lambda: feed.lines[0].connected)
        venue.links[0].end(1001, "maintenance")
        made.until(lambda: len(venue.links) == 2)
        _, opcode, payload = venue.links[0].frames[-1]
        assert (opcode, payload[0]) == (CLOSE, 1001)
        assert "closed by the venue: 1001 maintenance" in feed.last_error


def test_our_close_says_goodbye():
    with desk() as made, stub(made) as venue:
        feed = made.start()
        made.until(lambda: feed.lines[0].connected)
        made.spin(0.02)
        feed.close()
        made.until(lambda: venue.links[0].frames[-1][1] == CLOSE)
        assert venue.links[0].frames[-1][2][0] == 1000


class Market:
    """One stubbed symbol: diffs when told, snapshots as they are asked for."""

    def __init__(self):
        self.sequence = 100
        self.answers = deque()           # (status, body, headers) that come first
        self.stub = None
        self.both = False                # diffs go to all connections

    def on_get(self, target):
        if "/depth" not in target:
            return 200, LISTED, ()
        if self.answers:
            return self.answers.popleft()
        return 200, snapshot(self.sequence), ()

    def step(self, skip=0):
        first = self.sequence + 1 + skip
        self.sequence = first
        for link in self.stub.links if self.both else self.stub.links[-1:]:
            link.send(TEXT, diff(first, first))

    def gap(self):
        """A gap, and the book is live again."""
        link = self.desk.pipeline.recoveries[SPOT].links[0]
        gaps = link.gaps
        self.step(skip=1)
        self.desk.until(lambda: link.gaps > gaps and self.desk.live())

    def orders(self):
        return [at for at, target in self.stub.gets if "/depth" in target]


@contextmanager
def market(on_text=lambda link, request: None, **keys):
    """A desk with one symbol that is LIVE."""
    made_market = Market()
    with desk(symbols=["BTCUSDT"], **keys) as made, stub(made, on_get=made_market.on_get, on_text=on_text) as venue:
        made_market.stub, made_market.desk = venue, made
        made.start()
        made.until(lambda: made.feed.lines[0].connected)
        made_market.step()
        made.until(made.live)
        yield made, made_market


def test_a_shutdown_notice_opens_the_next_connection_first(monkeypatch):
    monkeypatch.setattr(line, "SETTLE_NS", SECOND // 10)
    with market(on_text=acknowledge) as (made, venue):
        link, = venue.stub.links
        venue.both = True                # the diffs go to every connection, as at the venue
        venue.sequence += 1              # in one write: the diffs before and behind the notice
        link.stream.write(link.websocket.send(TEXT, diff(venue.sequence, venue.sequence))
                          + link.websocket.send(TEXT, b'{"e":"serverShutdown","E":1723161255343}')
                          + link.websocket.send(TEXT, diff(venue.sequence + 1, venue.sequence + 1)))
        venue.sequence += 1
        entry, = made.pipeline.publisher.entries
        made.until(lambda: entry.sequence == venue.sequence)
        assert "announces" in made.feed.last_error
        made.until(lambda: len(venue.stub.links) == 2 and made.feed.lines[0].successor.connected)
        made.spin(0.3)
        assert made.feed.rollovers == 0 and link.websocket.is_open, "nothing was seen on the new one yet"
        venue.step()
        made.until(lambda: made.feed.rollovers == 1)
        made.until(lambda: link.frames[-1][1] == CLOSE)
        venue.both = False
        venue.step()
        made.until(lambda: entry.sequence == venue.sequence)
        row = made.feed.row()
        assert (entry.epoch, made.states(), row["disconnects"], row["connects"], row["lines"]) == (1, [LIVE], 0, 2, 1)


def test_a_book_is_stale_at_once_even_where_the_goodbye_cannot_leave():
    """Bytes that the peer does not take keep a closing stream for a while; the book must not stay live for it."""
    with market() as (made, venue):
        line = made.feed.lines[0]
        line.stream._pending += b"x"     # as if the kernel had refused them
        line.lose(ingest.VenueError("a test"))
        assert line.stream.stage == "closing" and made.states() == [STALE] and not line.connected
        assert made.receiver.views()[0].state == STALE
        made.until(lambda: line.stream.stage == "closed", 4)


def test_a_snapshot_in_flight_when_the_line_is_lost_makes_nothing_live():
    with market() as (made, venue):
        slow = deque()
        venue.stub.on_get = lambda target: slow.append(target) or venue.on_get(target)
        venue.step(skip=1)               # a gap: a snapshot is ordered
        made.until(lambda: made.feed.snapshots.running == 1)
        venue.stub.links[0].stream.abort()
        made.until(lambda: made.feed.snapshots.running == 0 and not made.feed.lines[0].connected)
        assert made.states() == [STALE], "the answer came, but no stream runs"
        made.until(lambda: made.feed.lines[0].connected)
        made.spin(0.05)
        assert made.states() == [STALE]
        venue.step()                     # follows on the early snapshot
        made.until(made.live)
        entry, = made.pipeline.publisher.entries
        assert entry.sequence == venue.sequence
        venue.step()
        made.until(lambda: entry.sequence == venue.sequence)
        assert made.pipeline.recoveries[SPOT].links[0].gaps == 1


def test_a_snapshot_that_fails_after_its_line_was_lost_waits_for_the_stream(monkeypatch):
    monkeypatch.setattr(ingest, "SNAPSHOT_RETRY_FIRST_NS", MILLISECOND)
    with market() as (made, venue):
        venue.answers.append((500, b"", ()))
        venue.stub.on_upgrade = lambda link: False       # from now on nobody gets in
        venue.step(skip=1)
        made.until(lambda: made.feed.snapshots.running == 1)
        venue.stub.links[0].stream.abort()
        made.until(lambda: made.feed.snapshots.failed == 1)
        orders = len(venue.orders())
        made.spin(0.2)
        assert len(venue.orders()) == orders and made.states() == [STALE]
        venue.stub.on_upgrade = lambda link: None
        for link in venue.stub.links[1:]:
            link.stream.abort()
        made.until(lambda: made.feed.lines[0].connected)
        venue.step()
        made.until(made.live)
        assert len(venue.orders()) == orders + 1


def test_an_early_snapshot_that_is_too_old_is_replaced():
    with market() as (made, venue):
        venue.step(skip=1)
        made.until(lambda: made.feed.snapshots.running == 1)
        venue.stub.links[0].stream.abort()
        made.until(lambda: made.feed.snapshots.running == 0 and not made.feed.lines[0].connected)
        made.until(lambda: made.feed.lines[0].connected)
        orders = len(venue.orders())
        venue.step(skip=5)               # more happened while nobody listened
        made.until(made.live)
        assert len(venue.orders()) == orders + 1 and made.pipeline.publisher.entries[0].sequence == venue.sequence


def test_a_lost_line_of_trades_leaves_the_books_alone():
    with desk(USDM) as made:
        venue = made.serve()
        feed = made.start()
        made.until(lambda: made.live() and feed.pipeline.publisher.entries[0].trades)
        public, trades = feed.lines
        assert trades.line.path.startswith("/market") and trades.books == [] and len(trades.instruments) == 2
        epochs = [entry.epoch for entry in made.pipeline.publisher.entries]
        trades.stream.abort()
        made.until(lambda: trades.connects == 2 and trades.connected)
        assert feed.disconnects == 1 and [entry.epoch for entry in made.pipeline.publisher.entries] == epochs
        assert made.receiver.venues[USDM].connected == 1
        assert venue.peers and made.live()


def test_received_bytes_are_of_all_connections():
    with market() as (made, venue):
        before = made.feed.row()["received_bytes"]
        venue.stub.links[0].stream.abort()
        made.until(lambda: len(venue.stub.links) == 2 and made.feed.lines[0].connected)
        assert made.feed.row()["received_bytes"] > before


def test_a_fault_of_ours_in_a_handler_costs_one_connection_not_the_feed():
    with desk(symbols=["BTCUSDT"], errors=1) as made, stub(made) as venue:
        feed = made.start()
        made.until(lambda: feed.lines[0].connected)
        decode = feed.venue.decode
        feed.venue.decode = lambda payload, recv_ns: 1 // 0
        venue.links[0].send(TEXT, trade())
        made.until(lambda: made.loop.errors == 1)
        feed.venue.decode = decode
        made.until(lambda: len(venue.links) == 2 and feed.lines[0].connected)
        assert made.pipeline.sink.received_ns == 0 and "its handler failed" in feed.last_error
        venue.links[1].send(TEXT, trade())
        made.until(lambda: made.pipeline.publisher.entries[0].trades == 1)


# -- symbols --------------------------------------------------------------------------------------------------------


def test_symbols_the_venue_does_not_list_are_named_and_so_is_silence(caplog):
    with desk(symbols=["BTCUSDT", "BTCUSTD"], first_data_deadline_s=0.5) as made:
        made.serve(symbols=["BTCUSDT", "ETHUSDT"])
        with caplog.at_level(logging.INFO, "feeder"):
            feed = made.start()
            made.until(lambda: feed.row()["silent_symbols"])
        assert feed.row()["unknown_symbols"] == feed.row()["silent_symbols"] == ["BTCUSTD"]
        assert "does not list BTCUSTD; check the spelling" in caplog.text
        assert "no data within 0.5 s for BTCUSTD" in caplog.text
        assert made.states() == [LIVE, SYNCING]
        known, unknown = made.feed.instruments
        assert known.tick == "0.01000000" and not unknown.tick


def test_a_symbol_that_wakes_up_late_is_no_longer_called_silent():
    with desk(symbols=["BTCUSDT"], first_data_deadline_s=0.1) as made, stub(made) as venue:
        feed = made.start()
        made.until(lambda: feed.row()["silent_symbols"] == ["BTCUSDT"])
        venue.links[0].send(TEXT, trade())
        made.until(lambda: feed.row()["silent_symbols"] == [])


def test_the_deadline_of_first_data_runs_from_the_subscription(caplog):
    """While nothing is connected nobody can say that a symbol is silent."""
    port = dead_port()
    with desk(symbols=["BTCUSDT"], first_data_deadline_s=0.1, websocket_url=f"ws://127.0.0.1:{port}",
              rest_url=f"http://127.0.0.1:{port}") as made:
        feed = made.start()
        made.spin(0.3)
        assert feed.row()["silent_symbols"] == [] and "no data within" not in caplog.text


def test_the_instrument_list_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(ingest, "INSTRUMENTS_RETRY_NS", 50 * MILLISECOND)
    with desk(symbols=["BTCUSDT"]) as made, stub(made) as venue:
        answers = [(500, b"{}", ()), (200, b"no JSON", ()), (200, b'{"symbols":[{"symbol":1}]}', ()), (200, LISTED, ())]
        venue.on_get = lambda target: answers.pop(0)
        feed = made.start()
        made.until(lambda: feed.instruments[0].tick == "0.01000000")
        assert "instrument list" in feed.last_error and feed.unknown_symbols == [] and not answers


# -- snapshots ------------------------------------------------------------------------------------------------------


class FakeFetcher:
    def __init__(self):
        self.asked = []

    def get(self, url, on_done):
        self.asked.append((steady_ns(), url, on_done))


def queue_of(desk, weight_per_minute):
    """A SnapshotQueue whose requests go nowhere."""
    desk.config.snapshot_weight_per_minute = weight_per_minute
    feed = desk.start()
    queue = feed.snapshots = SnapshotQueue(feed)
    queue.fetcher = FakeFetcher()
    return feed, queue


def answer(status=200, body=b"{}", error=None, **headers):
    return SimpleNamespace(status=status, body=body, error=error, headers=headers, recv_ns=1)


def test_snapshots_keep_to_the_weight_of_a_minute():
    """Orders without end, time in fast motion: no window of a minute spends more than its weight."""
    spent = []
    now_ns = [10**12]
    with desk(websocket_url="ws://127.0.0.1:1", rest_url="http://127.0.0.1:1") as made:
        feed, queue = queue_of(made, 200)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ingest.clock, "steady_ns", lambda: now_ns[0])
            wakes = []
            patch.setattr(feed.loop, "call_after", lambda delay_ns, fn: (
                wakes.append((now_ns[0] + delay_ns, fn)), SimpleNamespace(cancel=lambda: None))[1])
            queue.filled_ns = now_ns[0]
            queue.fetcher.get = lambda url, on_done: (spent.append((now_ns[0], 5)), made_done.append(on_done))
            made_done = []
            queue.waiting.extend(feed.instruments * 100)
            queue.serve()
            while queue.waiting:
                while made_done:
                    made_done.pop()
                    queue.running -= 1
                wakes.sort(key=lambda each: each[0])
                if wakes and queue.running == 0 and wakes[0][0] > now_ns[0]:
                    now_ns[0] = wakes[0][0]
                wakes.clear()
                queue.serve()
        assert len(spent) == 200
        for start, _ in spent:
            assert sum(weight for at, weight in spent if start <= at < start + 60 * SECOND) <= 200
        length_s = (spent[-1][0] - spent[0][0]) / SECOND
        assert 300 < length_s < 420, "three quarters of the budget are used, for as long as it takes"


def test_two_at_once_and_the_rest_in_order():
    with desk(symbols=[f"T{number}USDT" for number in range(6)], websocket_url="ws://127.0.0.1:1",
              rest_url="http://127.0.0.1:1") as made:
        feed, queue = queue_of(made, 100_000)
        for instrument in feed.instruments:
            queue.order(instrument, 0)
        asked = queue.fetcher.asked
        assert len(asked) == 2 and len(queue.waiting) == 4
        queue.done(feed.instruments[0], answer(body=snapshot(5)))
        assert len(asked) == 3
        assert [url.partition("symbol=")[2].partition("&")[0] for _, url, _ in asked] == ["T0USDT", "T1USDT", "T2USDT"]
        feed.close()
        queue.done(feed.instruments[1], answer(body=snapshot(5)))
        assert len(asked) == 3, "nothing is asked for after the end"


@pytest.mark.parametrize("status", [418, 429])
def test_retry_after_is_obeyed_by_all(status, monkeypatch):
    monkeypatch.setattr(ingest, "retry_after_ns", lambda headers: retry_after_ns(headers) // 4)       # quicker
    with market() as (made, venue):
        venue.answers.append((status, b'{"code":-1003,"msg":"Too many requests"}', [("Retry-After", "1")]))
        before = len(venue.orders())
        venue.gap()
        refused, again = venue.orders()[before:]
        assert again - refused >= 0.99 * SECOND / 4
        row = made.feed.row()
        assert row["snapshots_failed"] == 1 and f"HTTP {status}" in row["last_error"] and "BTCUSDT" in row["last_error"]


def test_what_retry_after_may_say():
    assert retry_after_ns({"retry-after": "7"}) == 7 * SECOND
    assert retry_after_ns({"retry-after": "99999999"}) == 300 * SECOND
    for text in ("", "-1", "1e9", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 5000, "²"):
        assert retry_after_ns({"retry-after": text}) == SECOND
    assert retry_after_ns({}) == SECOND


def test_a_snapshot_that_keeps_failing_is_ordered_once_at_a_time_and_ever_more_slowly(monkeypatch):
    """A quiet instrument, too: it is asked for again without another diff."""
    monkeypatch.setattr(ingest, "SNAPSHOT_RETRY_FIRST_NS", 10 * MILLISECOND)
    monkeypatch.setattr(ingest, "SNAPSHOT_RETRY_CAP_NS", 100 * MILLISECOND)
    with market() as (made, venue):
        bad = [(500, b"", ()), (200, b"no JSON", ()), (200, b'{"code":-1,"msg":"odd"}', ()),
               (200, b'{"lastUpdateId":1,"bids":[["x","1"]],"asks":[]}', ()), (503, b"", ())]
        venue.answers.extend(bad)
        before = len(venue.orders())
        venue.gap()
        orders = venue.orders()[before:]
        assert len(orders) == len(bad) + 1 and made.feed.row()["snapshots_failed"] == len(bad)
        assert orders[-1] - orders[-2] > orders[1] - orders[0]
        venue.answers.extend(bad * 2)
        before = len(venue.orders())
        venue.step(skip=1)
        made.until(lambda: not made.live())
        while len(venue.orders()) < before + 6:          # and with diffs in between, which might order, too
            assert len(made.feed.snapshots.waiting) + made.feed.snapshots.running <= 1
            venue.step()
            made.loop.run_once(5 * MILLISECOND)
        made.until(made.live)
        assert len(venue.orders()) == before + 2 * len(bad) + 1


# -- the rest of the way --------------------------------------------------------------------------------------------


def test_compression_is_negotiated_and_read():
    with desk(compression=True) as made:
        venue = made.serve()
        feed = made.start()
        made.until(lambda: made.live() and feed.venue.likely > 100)
        assert all(peer.deflates for peer in venue.peers)
        assert feed.lines[0].handshake.deflate is not None and feed.row()["bad_messages"] == 0


def test_compression_that_the_venue_declines_is_no_fault():
    with desk(compression=True) as made:
        made.serve(allow_deflate=False)
        feed = made.start()
        made.until(made.live)
        assert feed.lines[0].handshake.deflate is None


class Relay:
    """TLS outside, the plain port of a twin inside; in the loop of the desk."""

    def __init__(self, loop, port, authority):
        self.loop, self.port = loop, port
        self.streams = []
        self.listener = listen(loop, "127.0.0.1", 0, self.accepted,
                               tls=server_tls_context(authority.certificate, authority.key))

    def accepted(self, outer):
        early = []

        def opened(inner):
            for data in early:
                inner.write(data)
            early.clear()

        inner = connect(self.loop, "127.0.0.1", self.port, on_open=opened,
                        on_data=lambda stream, data, recv_ns: outer.write(bytes(data)),
                        on_close=lambda stream, error: outer.close())
        outer.on_data = lambda stream, data, recv_ns: (
            inner.write(bytes(data)) if inner.is_open else early.append(bytes(data)))
        outer.on_close = lambda stream, error: inner.close()
        self.streams += [outer, inner]

    def close(self):
        self.listener.close()
        for stream in self.streams:
            stream.abort()


@contextmanager
def secured(desk, authority, host="localhost"):
    venue = desk.serve()
    relay = Relay(desk.loop, venue.port, authority)
    desk.config.websocket_url = f"wss://{host}:{relay.listener.port}"
    desk.config.rest_url = f"https://{host}:{relay.listener.port}"
    try:
        yield relay
    finally:
        relay.close()


def test_tls_with_an_authority_of_our_own(authority):
    with desk(ca_file=authority.ca_file) as made, secured(made, authority):
        feed = made.start()
        made.until(lambda: made.live() and feed.venue.likely > 100)
        assert feed.instruments[0].tick and feed.row()["disconnects"] == 0
        made.twin.inject(Fault("disconnect"))
        made.until(lambda: feed.disconnects == 1 and made.live())


def test_tls_with_an_authority_nobody_knows_says_so_and_goes_on(authority):
    with desk() as made, secured(made, authority):
        feed = made.start()
        made.until(lambda: feed.lines[0].connects == 2)
        assert "certificate not accepted" in feed.last_error and made.states() == [SYNCING] * 2


def test_a_ca_file_that_is_none_is_found_before_anything_starts(tmp_path):
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    with desk(ca_file=str(junk), websocket_url="wss://127.0.0.1:1", rest_url="https://127.0.0.1:1") as made:
        with pytest.raises(ConfigError, match="junk.pem"):
            made.start()


class Proxies:
    """ConnectProxy serves one connection after the other; a feed has several at once: the loop relays."""

    def __init__(self, loop, host=None):
        self.loop = loop
        self.host = host                 # where all names lead to
        self.heads = []
        self.streams = []
        self.listener = listen(loop, "127.0.0.1", 0, self.accepted)

    def accepted(self, near):
        head = bytearray()
        self.streams.append(near)

        def on_data(stream, data, recv_ns):
            head.extend(data)
            if b"\r\n\r\n" not in head:
                return
            self.heads.append(bytes(head))
            host, port = bytes(head).split(b" ")[1].decode().rsplit(":", 1)
            far = connect(self.loop, self.host or host, int(port),
                          on_open=lambda far: near.write(b"HTTP/1.1 200 Connection established\r\n\r\n"),
                          on_data=lambda far, data, recv_ns: near.write(bytes(data)),
                          on_close=lambda far, error: near.close())
            self.streams.append(far)
            near.on_data = lambda near, data, recv_ns: far.write(bytes(data))
            near.on_close = lambda near, error: far.close()

        near.on_data, near.on_close = on_data, lambda stream, error: None

    def close(self):
        self.listener.close()
        for stream in self.streams:
            stream.abort()


@pytest.mark.parametrize("secure", [False, True])
def test_everything_goes_through_the_proxy(authority, secure):
    with desk(ca_file=authority.ca_file) as made:
        proxy = Proxies(made.loop)
        made.config.proxy = f"http://user:secret@127.0.0.1:{proxy.listener.port}"
        try:
            with secured(made, authority):
                if not secure:
                    port = made.twin.venues[SPOT].port
                    made.config.websocket_url = f"ws://localhost:{port}"
                    made.config.rest_url = f"http://localhost:{port}"
                feed = made.start()
                made.until(made.live)
                assert len(proxy.heads) >= 4     # stream, instrument list, two books
                wanted = feed.config.rest_url.partition("//")[2].encode()
                for head in proxy.heads:
                    assert head.startswith(b"CONNECT " + wanted + b" HTTP/1.1\r\n")
                    assert b"Proxy-Authorization: Basic " in head
        finally:
            proxy.close()


def test_the_environments_proxy_is_used_when_configured_so(monkeypatch):
    with desk(proxy="env") as made:
        port = made.serve().port
        made.config.websocket_url, made.config.rest_url = f"ws://feed.test:{port}", f"http://feed.test:{port}"
        proxy = Proxies(made.loop, "127.0.0.1")
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.listener.port}")
        made.start()
        made.until(made.live)
        assert len(proxy.heads) >= 4
        proxy.close()


def test_a_proxy_that_is_wrong_in_the_environment_is_a_configuration_error(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with desk(proxy="env", websocket_url="ws://example.test:1", rest_url="https://example.test:1") as made:
        with pytest.raises(ConfigError, match="prox"):
            made.start()


def test_latency_counts_datagrams_that_venue_bytes_caused():
    with market() as (made, venue):
        seen = []
        emit = made.emit
        made.pipeline.encoder.emit = lambda datagram: (seen.append(made.pipeline.sink.received_ns), emit(datagram))
        venue.step()
        made.until(lambda: made.pipeline.publisher.entries[0].sequence == venue.sequence)
        assert seen and all(seen)
        del seen[:]
        made.pipeline.publisher.refresh()
        made.pipeline.encoder.flush()
        assert seen == [0]
