"""The twin on the wire: WebSocket and REST of one or more venues on loopback, one port each, and its admin requests.

    Twin    all venues, the schedule, pause and faults          one timer: advance the sources, flush the peers
    Venue   one port: channels, REST with its weight budget, the faults that wait for a diff or a request
    Peer    one TCP connection: HTTP requests one after the other, then perhaps a WebSocket

A message is made into text once per venue, into a frame once per stream name, and every peer's frames of one tick
leave in one write. Text that nobody listens to is never made. Only peers that negotiated deflate pay for themselves.

Hot:  Venue.publish, with the source behind it; 10,000 messages/s over 40 instruments take a third of a core.

Admin requests, on every port, for tests and for the curious:
    /twin/status    /twin/pause    /twin/resume    /twin/book?symbol=[&limit=]    /twin/disconnect
    /twin/fault?kind=[&symbol=][&seconds=]
Pause stops the market of all venues between two messages, drops faults that still wait for a diff, and sends the
pending diffs: from then on a client that has read everything, and is not muted, holds exactly /twin/book.
"""

import json
import logging
from collections import Counter, deque
from functools import partial
from urllib.parse import parse_qs, urlsplit

from ..clock import MILLISECOND, SECOND, steady_ns, wall_ns
from ..errors import ConfigError, ProtocolError
from ..net import listen
from ..websocket import (BINARY, CLOSE, PING, PONG, SERVER, TEXT, Connection, DeflateOptions, ServerHandshake,
                         http_response)
from .binance import DIALECTS, MAX_STREAMS, RequestError, WeightBudget
from .faults import DIFF_FAULTS, REST_FAULTS, SLOW_BYTES_PER_SECOND, Fault
from .market import DEPTH
from .source import Recorded, Synthetic

TICK_NS = 2 * MILLISECOND            # least time between two bites of the market; what shares a tick shares a write
CONGESTED_BYTES = 1 << 20            # a recording at full speed waits for readers this far behind
MAX_EARLY_BYTES = 16 << 10           # of a next request sent before the answer to the last
CONNECTS_PER_5_MINUTES = 300         # per address at the real venue
SLOW_SECONDS = 2.0                   # when a fault does not say
MAX_FAULTS_KEPT = 1_000

log = logging.getLogger("feeder.twin")


class Peer:
    """One accepted connection. `out` collects frames until the end of the tick."""

    def __init__(self, venue, stream):
        self.venue = venue
        self.stream = stream
        self.handshake = ServerHandshake(allow_deflate=DeflateOptions() if venue.twin.allow_deflate else None)
        self.connection = None               # a WebSocket, after its handshake
        self.deflates = False
        self.combined = False
        self.kinds = ()
        self.streams = {}                    # stream name -> (symbol, kind), or None for a silent one; in order
        self.out = []
        self.muted_until_ns = 0
        self.slow_until_ns = self.slow_ns = 0
        self.backlog = bytearray()           # of a slow peer
        self.command_times = deque(maxlen=venue.dialect.commands_per_second)
        self.ping_payload, self.ping_ns = b"", 0
        self.timer = None
        self.is_answering = False            # a REST answer is on its way
        self.early = b""
        stream.on_data, stream.on_close = self.on_data, self.on_close

    # --- HTTP

    def on_data(self, stream, data, recv_ns):
        if self.connection is not None:
            return self.take_frames(data)
        if self.is_answering:
            self.early += data
            if len(self.early) > MAX_EARLY_BYTES:
                stream.close()
            return
        try:
            request = self.handshake.receive(data)
        except ProtocolError as error:
            return self.end_http(400, str(error))
        if request is None:
            return
        if request.is_upgrade:
            self.upgrade(request)
        else:
            self.early = request.body
            self.is_answering = True
            self.venue.request(self, request)

    def end_http(self, status, text):
        self.stream.write(http_response(status, json.dumps({"code": -1000, "msg": text}).encode(),
                                        headers=[("Connection", "close")]))
        self.stream.close()

    def answer(self, request, status, text, headers=()):
        """Send a REST answer; go on with a request that came early."""
        if not self.stream.is_open:
            return
        stays = request.keep_alive
        self.stream.write(http_response(status, text.encode(), headers=[
            *headers, ("Connection", "keep-alive" if stays else "close")]))
        self.is_answering = False
        if not stays:
            self.stream.close()
        elif self.early:
            early, self.early = self.early, b""
            self.on_data(self.stream, early, 0)

    def upgrade(self, request):
        venue = self.venue
        route = venue.dialect.route(request.target)
        if route is None:
            return self.end_http(404, f"nothing is served at {request.target}")
        if not venue.may_connect():
            return self.end_http(429, "Too many connection attempts.")
        try:
            self.stream.write(self.handshake.accept(request))
        except ProtocolError as error:
            return self.end_http(400, str(error))
        self.combined, self.kinds, streams = route
        self.connection = Connection(SERVER, max_message_bytes=1 << 20, deflate=self.handshake.deflate)
        self.deflates = self.handshake.deflate is not None
        venue.peers.add(self)
        if len(streams) > MAX_STREAMS:
            return self.refuse(f"{len(streams)} streams, at most {MAX_STREAMS} are allowed")
        self.subscribe(streams)
        self.timer = venue.twin.loop.call_after(venue.twin.ping_interval_ns, self.ping)
        if request.body:
            self.take_frames(request.body)

    # --- WebSocket

    def take_frames(self, data):
        connection = self.connection
        for opcode, payload in connection.receive(data):
            if opcode == PONG:
                if payload == self.ping_payload:
                    self.ping_ns = 0
            if opcode == CLOSE or not self.stream.is_open:
                continue
            now_ns = steady_ns()
            times = self.command_times
            if len(times) == times.maxlen and now_ns - times[0] < SECOND:      # pings and pongs count too
                return self.refuse(f"more than {times.maxlen} messages a second")
            times.append(now_ns)
            if opcode == TEXT:
                self.command(payload)
            elif opcode == BINARY:
                return self.refuse("binary messages are not served", 1003)
        outgoing = connection.take_outgoing()
        if outgoing:
            self.stream.write(outgoing)
        if connection.is_closed:
            self.stream.close()

    def command(self, payload):
        dialect = self.venue.dialect
        result = "null"
        try:
            method, params, number = dialect.command(payload)
        except RequestError as error:
            self.venue.counts["bad_commands"] += 1
            return self.send(TEXT, error.text.encode())
        if method == "SUBSCRIBE":
            if len(set(self.streams).union(params)) > MAX_STREAMS:
                return self.refuse(f"more than {MAX_STREAMS} streams")
            self.subscribe(params)
        elif method == "UNSUBSCRIBE":
            for name in params:
                self.venue.leave(self, name)
        elif method == "LIST_SUBSCRIPTIONS":
            result = json.dumps(list(self.streams), separators=(",", ":"))
        elif method == "SET_PROPERTY":
            streams = list(self.streams)
            for name in streams:
                self.venue.leave(self, name)
            self.combined = params[1]
            self.subscribe(streams)
        else:
            result = "true" if self.combined else "false"
        self.send(TEXT, f'{{"result":{result},"id":{number}}}'.encode())

    def subscribe(self, names):
        for name in names:
            if name not in self.streams:
                self.venue.join(self, name)
        if names:
            self.venue.twin.first_subscription()

    def send(self, opcode, payload):
        """Queue a frame of this peer's own; it leaves with the rest of the tick, in order."""
        if self.connection.is_open:
            self.out.append(self.connection.send(opcode, payload))
            self.venue.twin.schedule_flush()

    def flush(self, now_ns):
        if not (self.out or self.slow_until_ns):
            return
        data = b"".join(self.out)
        self.out.clear()
        if self.slow_until_ns:
            data = self.trickle(data, now_ns)
        if data:
            self.stream.write(data)

    def trickle(self, data, now_ns):
        """What a slow connection lets through now."""
        backlog = self.backlog
        backlog += data
        if len(backlog) > self.stream.max_pending_bytes:
            self.venue.counts["slow_disconnects"] += 1
            self.stream.abort()
            return b""
        size = len(backlog)
        if now_ns < self.slow_until_ns:
            size = (now_ns - self.slow_ns) * SLOW_BYTES_PER_SECOND // SECOND
            self.slow_ns += size * SECOND // SLOW_BYTES_PER_SECOND
        else:
            self.slow_until_ns = 0
        passed = bytes(backlog[:size])
        del backlog[:size]
        return passed

    def ping(self):
        """Once every interval: close the connection whose pong is overdue, else ask again."""
        if not self.stream.is_open or not self.connection.is_open:
            return
        twin = self.venue.twin
        now_ns = steady_ns()
        if self.ping_ns and now_ns - self.ping_ns >= twin.pong_timeout_ns:
            self.venue.counts["pong_timeouts"] += 1
            self.stream.write(self.connection.close(1008, "Pong timeout"))
            self.stream.close()
            return
        if not self.ping_ns:
            self.ping_ns, self.ping_payload = now_ns, str(wall_ns() // MILLISECOND).encode()
        self.send(PING, self.ping_payload)
        self.timer = twin.loop.call_after(twin.ping_interval_ns, self.ping)

    def refuse(self, reason, code=1008):
        self.venue.counts["refused"] += 1
        self.close(code, reason)

    def close(self, code, reason):
        """End in order: the frames that are queued, a close frame, the connection."""
        self.flush(steady_ns())
        if self.connection is not None:
            self.stream.write(self.connection.close(code, reason))
        self.stream.close()

    def on_close(self, stream, error):
        if self.timer is not None:
            self.timer.cancel()
        if error is not None:
            log.info("%s: %s", self.venue.name, error)
            if "reads too slowly" in str(error):
                self.venue.counts["slow_disconnects"] += 1
        self.venue.forget(self)


class Venue:
    """One venue on one port."""

    def __init__(self, twin, dialect, source, host, port):
        self.twin = twin
        self.dialect = dialect
        self.name = dialect.name
        self.source = source
        self.symbols = [spec.symbol for spec in source.specs]
        self._known = set(self.symbols)
        self.peers = set()                   # WebSockets
        self.plain = set()                   # all connections
        self.channels = {}                   # (symbol, kind) -> {(stream name, combined): [peers]}
        self.counts = Counter()
        self.diff_faults, self.rest_faults = [], []
        self.held = {}                       # symbol -> the diff that a reorder fault holds back
        self.weight = WeightBudget(dialect.weight_limit)
        self.waiting = []                    # depth requests a recording cannot answer yet
        self._connects = deque(maxlen=twin.connects_per_5_minutes)
        self._encoder = Connection(SERVER)   # frames that many share carry no state: any server's will do
        self._now_ms = wall_ns() // MILLISECOND
        self._listener = listen(twin.loop, host, port, self._accepted)
        self.port = self._listener.port

    @property
    def info(self):
        host = self.twin.host if ":" not in self.twin.host else f"[{self.twin.host}]"
        return {"websocket_url": f"ws://{host}:{self.port}", "rest_url": f"http://{host}:{self.port}",
                "symbols": self.symbols}

    def _accepted(self, stream):
        self.counts["connections"] += 1
        self.plain.add(Peer(self, stream))

    def may_connect(self):
        now_ns = steady_ns()
        if len(self._connects) == self._connects.maxlen and now_ns - self._connects[0] < 300 * SECOND:
            self.counts["connects_refused"] += 1
            return False
        self._connects.append(now_ns)
        return True

    # --- channels

    def join(self, peer, name):
        key = self.dialect.channel(name, peer.kinds)
        if key is not None and key[0] not in self._known:
            key = None
        peer.streams[name] = key
        if key is not None:
            self.channels.setdefault(key, {}).setdefault((name, peer.combined), []).append(peer)

    def leave(self, peer, name):
        key = peer.streams.pop(name, None)
        if key is None:
            return
        groups = self.channels[key]
        group = groups[name, peer.combined]
        group.remove(peer)
        if not group:
            del groups[name, peer.combined]
        if not groups:
            del self.channels[key]

    def forget(self, peer):
        for name in list(peer.streams):
            self.leave(peer, name)
        self.peers.discard(peer)
        self.plain.discard(peer)

    # --- the way of a message

    def advance(self, now_ns):
        self._now_ms = wall_ns() // MILLISECOND
        if not self.source.waits_for_readers or not any(
                peer.stream.pending_bytes > CONGESTED_BYTES for peer in self.peers):
            self.source.advance(now_ns, self._now_ms, self.publish)
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            for peer, request, symbol, limit, headers in waiting:
                self.answer_depth(peer, request, symbol, limit, headers)

    def publish(self, symbol, kind, item):
        """Send one message of the source to whoever subscribed it."""
        groups = self.channels.get((symbol, kind))
        if groups is None:
            return
        self.counts[kind] += 1
        text = self.source.text(kind, symbol, item, self._now_ms)
        if kind is DEPTH and (self.diff_faults or symbol in self.held):
            for text in self.spoil(symbol, text):
                self.distribute(groups, text)
        else:
            self.distribute(groups, text)

    def distribute(self, groups, text):
        for (name, combined), peers in groups.items():
            payload = (f'{{"stream":"{name}","data":{text}}}' if combined else text).encode()
            frame = None
            for peer in peers:
                if peer.muted_until_ns:
                    if steady_ns() < peer.muted_until_ns:
                        continue
                    peer.muted_until_ns = 0
                if not peer.connection.is_open:
                    continue
                if peer.deflates:
                    peer.out.append(peer.connection.send(TEXT, payload))
                    continue
                if frame is None:
                    frame = self._encoder.send(TEXT, payload)
                peer.out.append(frame)

    def spoil(self, symbol, text):
        """Apply the first fault that waits for a diff of this symbol; the texts to send instead."""
        if symbol in self.held:
            return [text, self.held.pop(symbol)]
        for fault in self.diff_faults:
            if fault.fits(symbol):
                break
        else:
            return [text]
        self.diff_faults.remove(fault)
        self.twin.done(self, fault, symbol, text[:120])
        if fault.kind == "duplicate":
            return [text, text]
        if fault.kind == "reorder":
            self.held[symbol] = text
        return []

    def flush(self, now_ns):
        for peer in self.peers:
            peer.flush(now_ns)

    def settle(self):
        """Send everything that is pending, in the source, in faults and in slow connections."""
        self._now_ms = wall_ns() // MILLISECOND
        self.diff_faults.clear()
        self.source.flush(self._now_ms, self.publish)
        for symbol, text in self.held.items():
            self.distribute(self.channels.get((symbol, DEPTH), {}), text)
        self.held.clear()
        now_ns = steady_ns()
        for peer in self.peers:
            peer.slow_until_ns = min(peer.slow_until_ns, now_ns)
        self.flush(now_ns)

    # --- faults that happen at once

    def hurt(self, fault):
        now_ns = steady_ns()
        for peer in list(self.peers):
            if fault.kind == "disconnect":
                peer.stream.abort()
            elif fault.kind == "mute":
                peer.muted_until_ns = now_ns + int(fault.seconds * SECOND) if fault.seconds else 1 << 63
            elif fault.kind == "slow":
                peer.slow_ns = now_ns
                peer.slow_until_ns = now_ns + int((fault.seconds or SLOW_SECONDS) * SECOND)
            elif fault.kind == "garbage":
                name = next((name for name, key in peer.streams.items() if key and key[1] == DEPTH), "btcusdt@depth")
                peer.send(TEXT, b"this is not JSON")
                peer.send(TEXT, f'{{"stream":"{name}","data":{{"e":"depthUpdate","E":{self._now_ms},"s":"'.encode())
                peer.send(BINARY, bytes(range(32)))
        self.twin.done(self, fault, fault.symbol, f"{len(self.peers)} connections")

    # --- REST

    def request(self, peer, request):
        target = request.target
        if target.startswith("/twin/"):
            return self.twin.admin(self, peer, request)
        if request.method != "GET":
            return peer.answer(request, 405, '{"code":-1000,"msg":"only GET is served"}')
        found = self.dialect.endpoint(target)
        if found is None or found[0] not in ("depth", "exchangeInfo", "time", "ping"):
            return peer.answer(request, 404, '{"code":-1000,"msg":"no such path"}')
        self.counts["rest_requests"] += 1
        try:
            self._serve(peer, request, *found)
        except RequestError as error:
            self._later(peer, request, error.status, error.text)

    def _serve(self, peer, request, endpoint, parameters):
        retry_s = self.weight.spend(self.dialect.weight(endpoint, parameters), steady_ns())
        headers = [("X-MBX-USED-WEIGHT-1M", str(self.weight.used))]
        if retry_s:
            return self._too_many(peer, request, headers, retry_s)
        symbol = parameters.get("symbol", "").upper() if endpoint == "depth" else None
        if endpoint == "depth" and symbol not in self._known:
            raise RequestError('{"code":-1121,"msg":"Invalid symbol."}')
        fault = self._rest_fault(endpoint, symbol)
        now_ms = wall_ns() // MILLISECOND
        if fault == "rest_429":
            return self._too_many(peer, request, headers, 1)
        if fault == "rest_error":
            text = '{"code":-1000,"msg":"An unknown error occurred while processing the request."}'
            return self._later(peer, request, 500, text, headers)
        if endpoint == "ping":
            text = "{}"
        elif endpoint == "time":
            text = f'{{"serverTime":{now_ms}}}'
        elif endpoint == "exchangeInfo":
            text = self.dialect.exchange_info(self.source.specs, parameters, now_ms)
        else:
            limit = self.dialect.depth_limit(parameters)
            if fault != "stale_snapshot":
                return self.answer_depth(peer, request, symbol, limit, headers)
            text = self.source.stale_depth(symbol, limit, now_ms)
        self._later(peer, request, 200, text, headers)

    def answer_depth(self, peer, request, symbol, limit, headers):
        """The book as it is now, after the latency; or once more when the recording has come to it."""
        text = self.source.depth(symbol, limit, wall_ns() // MILLISECOND)
        if text is not None:
            self._later(peer, request, 200, text, headers)
        elif peer.stream.is_open:
            self.waiting.append((peer, request, symbol, limit, headers))

    def _too_many(self, peer, request, headers, retry_s):
        self.counts["rest_429"] += 1
        text = (f'{{"code":-1003,"msg":"Too many requests; current limit is {self.weight.limit} request weight per '
                '1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API."}')
        self._later(peer, request, 429, text, headers + [("Retry-After", str(retry_s))])

    def _rest_fault(self, endpoint, symbol):
        for fault in self.rest_faults:
            if fault.fits(symbol) and (endpoint == "depth" or fault.kind != "stale_snapshot"):
                self.rest_faults.remove(fault)
                self.twin.done(self, fault, symbol, endpoint)
                return fault.kind
        return None

    def _later(self, peer, request, status, text, headers=()):
        self.twin.loop.call_after(self.twin.rest_latency_ns, lambda: peer.answer(request, status, text, headers))

    def status(self):
        return {**self.source.status(), "connections": len(self.peers),
                "streams": sum(len(peer.streams) for peer in self.peers), "counts": dict(self.counts),
                "weight_used": self.weight.used, "rest_refused": self.weight.refused, "symbols": len(self.symbols)}

    def close(self):
        self._listener.close()
        for peer in list(self.plain):
            peer.close(1001, "going away")
        self.source.close()


class Twin:
    """The venues together. Runs in `loop`; everything here is called in the loop's thread (use loop.post from others).

    Args:
        venues: {venue name: [symbols]}; with `replay` only the names count, the recording has its own symbols.
        rate: messages/s in all, shared by the venues.
        faults: [Fault], their times count from the first subscription.
        replay, speed: the path of a recording; a factor, or None for as fast as the clients read.
    """

    def __init__(self, loop, venues, *, seed=1, rate=2_000, host="127.0.0.1", port=0, levels=None, faults=(),
                 replay=None, speed=1.0, rest_latency_ms=20, ping_interval_s=20.0, pong_timeout_s=60.0,
                 allow_deflate=True, connects_per_5_minutes=CONNECTS_PER_5_MINUTES):
        self.loop = loop
        self.seed, self.host = seed, host
        self.faults = list(faults)
        self.rest_latency_ns = int(rest_latency_ms * MILLISECOND)
        self.ping_interval_ns, self.pong_timeout_ns = int(ping_interval_s * SECOND), int(pong_timeout_s * SECOND)
        self.allow_deflate = allow_deflate
        self.connects_per_5_minutes = connects_per_5_minutes
        self.is_paused = False
        self.faults_done = deque(maxlen=MAX_FAULTS_KEPT)
        self.venues = {}
        self._started_ns = steady_ns()
        self._first_ns = None                # of the first subscription
        self._tick_timer = None
        self._flush_posted = False
        self._timers = []
        self._admin = {"/twin/status": self._admin_status, "/twin/pause": self._admin_pause,
                       "/twin/resume": self._admin_resume, "/twin/book": self._admin_book,
                       "/twin/fault": self._admin_fault, "/twin/disconnect": self._admin_disconnect}
        try:
            for name, symbols in venues.items():
                if name not in DIALECTS:
                    raise ConfigError(f"venue {name!r} has no twin, expected one of {', '.join(DIALECTS)}")
                dialect = DIALECTS[name]()
                source = (Recorded(dialect, replay, speed) if replay else
                          Synthetic(dialect, symbols, seed, rate / len(venues), levels))
                self.venues[name] = Venue(self, dialect, source, host, port)
                port += 1 if port else 0
        except BaseException:
            self.close()
            raise
        loop.call_at(0, self._begin)         # the clock runs from the loop's first round, not while books are built

    @property
    def info(self):
        return {name: venue.info for name, venue in self.venues.items()}

    # --- the schedule

    def _begin(self):
        now_ns = self._started_ns = steady_ns()
        for venue in self.venues.values():
            if not venue.source.waits_for_readers:
                venue.source.start(now_ns)
        self._schedule(now_ns)

    def _schedule(self, now_ns):
        if self._tick_timer is not None:
            self._tick_timer.cancel()
            self._tick_timer = None
        due = [venue.source.due_ns for venue in self.venues.values() if venue.source.due_ns is not None]
        if any(venue.waiting or any(peer.slow_until_ns for peer in venue.peers) for venue in self.venues.values()):
            due.append(now_ns + 5 * TICK_NS)
        if due:
            self._tick_timer = self.loop.call_at(max(min(due), now_ns + TICK_NS), self._tick)

    def _tick(self):
        now_ns = steady_ns()
        try:
            for venue in self.venues.values():
                venue.advance(now_ns)
                venue.flush(now_ns)
        finally:
            self._schedule(now_ns)

    def schedule_flush(self):
        """Have the frames that were queued outside a tick leave in the next round."""
        if not self._flush_posted:
            self._flush_posted = True
            self.loop.call_at(0, self._flush)

    def _flush(self):
        self._flush_posted = False
        for venue in self.venues.values():
            venue.flush(steady_ns())

    def first_subscription(self):
        if self._first_ns is not None:
            return
        now_ns = self._first_ns = steady_ns()
        for venue in self.venues.values():
            if venue.source.waits_for_readers:
                venue.source.start(now_ns)
        for fault in self.faults:
            happen = partial(self.inject, fault)
            self._timers.append(self.loop.call_after(int(fault.when_s * SECOND), happen))
        self._schedule(now_ns)

    # --- faults, pause, books

    def inject(self, fault, venues=None):
        """Let a fault happen, at once or at the next diff or request, in all venues that fit or in the one named."""
        for venue in self.venues.values() if venues is None else venues:
            if fault.symbol is not None and fault.symbol not in venue.symbols:
                continue
            if fault.kind in DIFF_FAULTS:
                venue.diff_faults.append(fault)
            elif fault.kind in REST_FAULTS:
                venue.rest_faults.append(fault)
            else:
                venue.hurt(fault)
        self._schedule(steady_ns())

    def done(self, venue, fault, symbol, text):
        log.info("%s: fault %r, symbol %s: %s", venue.name, fault, symbol, text)
        self.faults_done.append({"kind": fault.kind, "venue": venue.name, "symbol": symbol, "time_ns": wall_ns()})

    def pause(self):
        now_ns = steady_ns()
        self.is_paused = True
        for venue in self.venues.values():
            venue.source.pause(now_ns)
            venue.settle()

    def resume(self):
        now_ns = steady_ns()
        self.is_paused = False
        for venue in self.venues.values():
            venue.source.resume(now_ns)
        self._schedule(now_ns)

    def book(self, venue_name, symbol):
        """The true book: (last update id, bids, asks), pairs of decimal text, best first."""
        return self.venues[venue_name].source.book(symbol)

    def status(self):
        return {"seed": self.seed, "paused": self.is_paused, "uptime_s": (steady_ns() - self._started_ns) / SECOND,
                "venues": {name: venue.status() for name, venue in self.venues.items()},
                "faults_done": list(self.faults_done),
                "faults_waiting": [repr(fault) for venue in self.venues.values()
                                   for fault in venue.diff_faults + venue.rest_faults]}

    def admin(self, venue, peer, request):
        """Answer /twin/...; mistakes are 400 with a sentence."""
        url = urlsplit(request.target)
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        status = 200
        try:
            if url.path in self._admin:
                answer = self._admin[url.path](venue, parameters)
            else:
                status, answer = 404, {"error": f"{url.path} is not served, expected one of {', '.join(self._admin)}"}
        except (ConfigError, ValueError) as error:
            status, answer = 400, {"error": str(error)}
        peer.answer(request, status, json.dumps(answer, separators=(",", ":")))

    def _admin_status(self, venue, parameters):
        return self.status()

    def _admin_pause(self, venue, parameters):
        self.pause()
        return {"paused": True}

    def _admin_resume(self, venue, parameters):
        self.resume()
        return {"paused": False}

    def _admin_book(self, venue, parameters):
        symbol = parameters.get("symbol", "").upper()
        if symbol not in venue.symbols:
            raise ConfigError(f"symbol {symbol!r} is not listed at {venue.name}")
        last_id, bids, asks = venue.source.book(symbol)
        limit = int(parameters.get("limit", 0)) or None
        return {"symbol": symbol, "last_update_id": last_id, "bids": bids[:limit], "asks": asks[:limit]}

    def _admin_fault(self, venue, parameters):
        fault = Fault(parameters.get("kind"), 0.0, float(parameters.get("seconds", 0)),
                      parameters.get("symbol", "").upper() or None)
        if fault.symbol is not None and fault.symbol not in venue.symbols:
            raise ConfigError(f"symbol {fault.symbol!r} is not listed at {venue.name}")
        self.inject(fault, [venue])
        return {"fault": repr(fault)}

    def _admin_disconnect(self, venue, parameters):
        self.inject(Fault("disconnect"), [venue])
        return {"disconnected": True}

    def close(self):
        for timer in self._timers:
            timer.cancel()
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        for venue in self.venues.values():
            venue.close()
