"""From venues to the pipeline: connections kept alive, subscriptions, snapshots within the venue's budget.

    Feed (a venue) ─┬─ LineConnection ... one WebSocket each: connect, upgrade, subscribe, decode, reconnect for ever
                    └─ SnapshotQueue ... REST books: spaced by weight, few at once, retried, 429 obeyed

One Feed has one budget of connects and one of request weight. A connection that brings no market data for
`stale_after_s` is dead, however well it pings. What a lost connection carried goes STALE at once and alone:
the books whose increments were on it, not those of which it had only trades.

Hot:  LineConnection.on_data; measured live by `make bench-host`.
"""

import base64
import logging
import os
import random
from collections import deque
from urllib.parse import urlsplit

from feeder import clock
from feeder.config import SNAPSHOT_BURST
from feeder.errors import FeederError, NumberError, VenueError
from feeder.log import Limited
from feeder.net import Backoff, ConnectBudget, Fetcher, SocketOptions, connect, proxy_for, tls_context
from feeder.venue.contract import ACK, ERROR, SHUTDOWN
from feeder.websocket import BINARY, CLIENT, CLOSE, TEXT, ClientHandshake, Connection, DeflateOptions

log = logging.getLogger("feeder.ingest")

SUBSCRIBE_EVERY_NS = 300 * clock.MILLISECOND      # Binance: 5 messages a second in all, pongs included
CONNECT_WINDOW_NS = 300 * clock.SECOND
SNAPSHOTS_AT_ONCE = 2
SNAPSHOT_RETRY_FIRST_NS, SNAPSHOT_RETRY_CAP_NS = 250 * clock.MILLISECOND, 3 * clock.SECOND
INSTRUMENTS_RETRY_NS = 30 * clock.SECOND
MAX_RETRY_AFTER_S = 300
DEFAULT_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}


class LineConnection:
    """One connection of a venue and the streams on it.

        waiting ──▶ connecting ──▶ upgrading ──▶ connected ──▶ lost ──▶ waiting ...
                    Stream's 10 s  └─ stale_after_s ────────┘
    """

    def __init__(self, feed, number, line):
        self.feed = feed
        self.name = f"{feed.name}/{number}"
        self.line = line
        self.backoff = Backoff(random=feed.random)
        self.stream = self.handshake = self.websocket = None
        self.timer = None                 # the next connect, or the next look at silence
        self.text_timer = None            # the next subscription, then the deadline of its first data
        self.texts = deque()              # subscriptions not sent yet
        self.connected = False            # from the upgrade on, until it is known to be lost
        self.lost = True
        self.backoff_used = False
        self.connects = 0
        self.bytes_before = 0             # received on earlier connections
        self.data_ns = 0                  # when market data last came
        self.instruments = feed.carried(line.streams)
        self.books = feed.carried(stream for stream in line.streams if stream in feed.depth_streams)

    @property
    def received_bytes(self):
        return self.bytes_before + (self.stream.bytes_in if self.stream is not None else 0)

    def start(self):
        now_ns = clock.steady_ns()
        at_ns = self.feed.connect_budget.acquire_at(now_ns)
        if at_ns > now_ns:
            log.warning("%s: connect budget used up, next connect in %.1f s",
                        self.name, (at_ns - now_ns) / clock.SECOND)
        self.timer = self.feed.loop.call_at(at_ns, self.connect)

    def connect(self):
        feed = self.feed
        url = urlsplit(feed.config.websocket_url)
        self.connects += 1
        self.lost = False
        secure = url.scheme == "wss"
        port = url.port or DEFAULT_PORTS[url.scheme]
        deflate = DeflateOptions() if feed.config.compression else None
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        self.handshake = ClientHandshake(
            host if port == DEFAULT_PORTS[url.scheme] else f"{host}:{port}", url.path.rstrip("/") + self.line.path,
            base64.b64encode(os.urandom(16)).decode(), headers=[("User-Agent", "feeder")], deflate=deflate)
        self.websocket = None
        log.info("%s: connecting to %s:%s", self.name, url.hostname, port)
        if self.stream is not None:
            self.bytes_before += self.stream.bytes_in
        self.stream = connect(
            feed.loop, url.hostname, port, tls=feed.tls if secure else None, proxy=feed.proxy,
            options=feed.options,
            on_open=self.on_open, on_data=self.on_first_data, on_close=self.on_close)

    def on_open(self, stream):
        stream.write(self.handshake.request)
        self.data_ns = clock.steady_ns()
        self.watch_silence()

    def on_first_data(self, stream, data, recv_ns):
        """Bytes of the upgrade's answer; whatever follows it are frames."""
        try:
            rest = self.handshake.receive(data)
        except VenueError as error:
            self.lose(error)
            return
        if rest is None:
            return
        self.websocket = Connection(CLIENT, max_message_bytes=self.feed.config.max_message_bytes,
                                    deflate=self.handshake.deflate)
        self.connected = True
        self.data_ns = clock.steady_ns()
        streams = self.line.streams
        self.texts.extend(self.feed.venue.subscribe(streams, self.feed.next_request_id(len(streams))))
        log.info("%s: connected, subscribing %d streams", self.name, len(streams))
        self.feed.line_changed(self, recv_ns)
        stream.on_data = self.on_data
        self.send_subscription()
        if rest:
            self.on_data(stream, rest, recv_ns)

    def send_subscription(self):
        loop = self.feed.loop
        self.stream.write(self.websocket.send(TEXT, self.texts.popleft().encode()))
        if self.texts:
            self.text_timer = loop.call_after(SUBSCRIBE_EVERY_NS, self.send_subscription)
        else:
            deadline_ns = int(self.feed.config.first_data_deadline_s * clock.SECOND)
            self.text_timer = loop.call_after(deadline_ns, lambda: self.feed.check_first_data(self))

    def watch_silence(self):
        """Look now and then whether data still comes; only data counts, not pings and not acknowledgements."""
        limit_ns = int(self.feed.config.stale_after_s * clock.SECOND)
        silent_ns = clock.steady_ns() - self.data_ns
        if silent_ns >= limit_ns:
            self.feed.silences += self.connected
            missing = "market data" if self.connected else "answer to the WebSocket upgrade"
            self.lose(VenueError(f"no {missing} for {silent_ns / clock.SECOND:.1f} s"))
            return
        self.timer = self.feed.loop.call_after(max(limit_ns - silent_ns, 10 * clock.MILLISECOND), self.watch_silence)

    def on_data(self, stream, data, recv_ns):
        feed = self.feed
        websocket = self.websocket
        sink = feed.pipeline.sink
        sink.received_ns = clock.stopwatch_ns()
        decode = feed.venue.decode
        has_data, ending = False, None
        for opcode, payload in websocket.receive(data):
            if opcode == TEXT or opcode == BINARY:
                try:
                    notice = decode(payload, recv_ns)
                except (VenueError, NumberError) as error:
                    feed.bad_message(error)
                else:
                    if notice is None:
                        has_data = True
                    elif self.on_notice(notice):
                        ending = VenueError(notice.text)
            elif opcode == CLOSE:
                ending = VenueError(f"closed by the venue: {payload[0]} {payload[1]}".rstrip())
        feed.flush()
        sink.received_ns = 0
        outgoing = websocket.take_outgoing()
        if outgoing:
            stream.write(outgoing)
        ending = websocket.fault or ending
        if has_data:
            self.data_ns = clock.steady_ns()
            if self.backoff_used:
                self.backoff.reset()          # data came, not merely a connection
                self.backoff_used = False
        if ending is not None:
            self.lose(ending)

    def on_notice(self, notice):
        """Note it; return True if the connection is to be made anew."""
        feed = self.feed
        if notice.kind == ACK:
            log.debug("%s: acknowledged %s", self.name, notice.request_id)
        elif notice.kind == ERROR:
            feed.venue_errors += 1
            feed.last_error = notice.text
            feed.limited.warning(("error", self.name), "%s: the venue says: %s (request %s)",
                                 self.name, notice.text, notice.request_id)
        return notice.kind == SHUTDOWN

    def lose(self, error):
        """Give the connection up. Its books are stale from here on, not when the last unsent byte has left."""
        self.down(error)
        self.stream.close(error)

    def on_close(self, stream, error):
        self.down(error)
        if not self.feed.closing:
            self.backoff_used = True
            self.timer = self.feed.loop.call_after(self.backoff.next_ns(), self.start)

    def down(self, error):
        """What a lost connection means for the rest; nothing, the second time."""
        if self.lost:
            return
        self.lost = True
        feed = self.feed
        was_connected, self.connected = self.connected, False
        self.cancel_timers()
        self.texts.clear()
        if feed.closing:
            return
        feed.pipeline.sink.received_ns = 0    # where a handler failed half-way
        log.warning("%s: connection lost: %s", self.name, error or "closed by the peer")
        feed.last_error = str(error or "closed by the peer")
        if was_connected:
            feed.disconnects += 1
            recv_ns = clock.wall_ns()
            feed.recovery.disconnect(self.books, recv_ns)
            feed.line_changed(self, recv_ns)

    def cancel_timers(self):
        for timer in (self.timer, self.text_timer):
            if timer is not None:
                timer.cancel()

    def close(self):
        self.cancel_timers()
        if self.stream is not None:
            if self.connected:
                self.stream.write(self.websocket.close(1000))
            self.stream.close()
            self.stream.abort()               # nobody will run the loop for what is still unsent


class SnapshotQueue:
    """Orders of REST books, served in order within a weight budget.

    A bucket of a quarter of the minute's weight, refilled at three quarters of it a minute: no window of 60 s spends
    more than the budget, and a few instruments need not wait at all.
    """

    def __init__(self, feed):
        self.feed = feed
        self.per_minute = feed.config.snapshot_weight_per_minute
        self.capacity = SNAPSHOT_BURST * self.per_minute
        self.refill = (1 - SNAPSHOT_BURST) * self.per_minute / 60e9       # weight a ns
        self.level = self.capacity
        self.filled_ns = clock.steady_ns()
        self.waiting = deque()
        self.running = 0
        self.timer = None
        self.pause_until_ns = 0
        self.requested = self.failed = 0
        self.fetcher = feed.fetcher

    def order(self, instrument, attempt):
        """Fetch the book of an instrument; repeated attempts wait, so that a venue that lags is not flooded."""
        if attempt:
            ceiling = min(SNAPSHOT_RETRY_CAP_NS, SNAPSHOT_RETRY_FIRST_NS << min(attempt - 1, 10))
            pause_ns = self.feed.random.randrange(ceiling // 2, ceiling + 1)
            self.feed.loop.call_after(pause_ns, lambda: self.put(instrument))
        else:
            self.put(instrument)

    def put(self, instrument):
        self.waiting.append(instrument)
        self.serve()

    def serve(self):
        if self.feed.closing:
            return
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        while self.waiting and self.running < SNAPSHOTS_AT_ONCE:
            now_ns = clock.steady_ns()
            self.level = min(self.capacity, self.level + (now_ns - self.filled_ns) * self.refill)
            self.filled_ns = now_ns
            instrument = self.waiting[0]
            request = self.feed.venue.snapshot_request(instrument, self.feed.config.snapshot_limit)
            weight = min(request.weight, self.capacity)       # a budget below one request still serves, slowly
            wait_ns = max(self.pause_until_ns - now_ns,
                          int((weight - self.level) / self.refill) if weight > self.level else 0)
            if wait_ns > 0:
                self.timer = self.feed.loop.call_after(wait_ns + 1, self.serve)
                return
            self.level -= weight
            self.waiting.popleft()
            self.running += 1
            self.requested += 1
            self.fetcher.get(self.feed.config.rest_url.rstrip("/") + request.path,
                             lambda answer, instrument=instrument: self.done(instrument, answer))

    def done(self, instrument, answer):
        feed = self.feed
        self.running -= 1
        if answer.error is None and answer.status == 200:
            error = feed.pipeline.decode_snapshot(feed.venue, instrument, answer.body, answer.recv_ns)
            feed.flush()
        else:
            error = answer.error or f"HTTP {answer.status} {answer.body[:120]!r}"
            feed.recovery.snapshot_failed(instrument)
            self.obey(answer)
        if error is not None:
            self.failed += 1
            feed.last_error = f"snapshot of {instrument.symbol}: {error}"
            feed.limited.warning(("snapshot", instrument.symbol), "%s: %s", feed.name, feed.last_error)
            link = feed.recovery.link(instrument)
            if link.flowing and not link.waiting:     # else the next increment orders, after a reconnect
                feed.recovery.order(instrument, link)
        self.serve()

    def obey(self, answer):
        """Ask for nothing while the venue wants to be left alone."""
        if answer.status in (418, 429):
            self.pause_until_ns = clock.steady_ns() + retry_after_ns(answer.headers)


def retry_after_ns(headers):
    """Return how long a 429 or 418 asks us to wait; a second where it does not say."""
    text = headers.get("retry-after", "")
    is_count = text.isascii() and text.isdigit() and len(text) < 9        # isdigit alone takes "²", int() does not
    return min(int(text), MAX_RETRY_AFTER_S) * clock.SECOND if is_count else clock.SECOND


class Feed:
    """One venue's whole input.

    Args: loop; pipeline; config (a VenueConfig); names {(venue, symbol): common name}; options (SocketOptions of its
    connections).
    """

    def __init__(self, loop, pipeline, config, names, rng=None, options=None):
        self.loop = loop
        self.pipeline = pipeline
        self.config = config
        self.name = config.name
        self.random = rng or random.Random()
        self.options = options or SocketOptions(recv_buffer_bytes=config.recv_buffer_bytes)
        self.limited = Limited(log, 10)
        self.closing = False
        self.flush = pipeline.sink.flush
        self.disconnects = self.silences = self.venue_errors = 0
        self.last_error = ""
        self.request_id = 1
        self.unknown_symbols = []
        self.silent = {}              # symbol -> instrument that let its deadline pass
        self.venue = pipeline.venue(config.name)
        self.recovery = pipeline.recoveries[config.name]
        self.instruments = [pipeline.define(self.venue, symbol, name=names.get((config.name, symbol)),
                                            depth=config.published_depth) for symbol in config.symbols]
        depth_lines = self.venue.lines(config.symbols, ["depth"], config.depth_interval_ms, len(config.symbols))
        self.depth_streams = {stream for line in depth_lines for stream in line.streams}
        self.connect_budget = ConnectBudget(config.connects_per_5_minutes, CONNECT_WINDOW_NS)
        secure = config.websocket_url.startswith("wss:") or config.rest_url.startswith("https:")
        self.tls = tls_context(config.ca_file or None, config.verify_tls) if secure else None
        self.proxy = proxy_for(config.websocket_url, config.proxy or None)
        self.fetcher = Fetcher(loop, SNAPSHOTS_AT_ONCE, tls=self.tls,
                               proxy=proxy_for(config.rest_url, config.proxy or None))
        self.snapshots = SnapshotQueue(self)
        self.lines = [LineConnection(self, number, line) for number, line in enumerate(self.venue.lines(
            config.symbols, config.channels, config.depth_interval_ms, config.streams_per_connection))]

    def start(self):
        self.fetch_instruments()
        for line in self.lines:
            line.start()

    def carried(self, streams):
        """Return the instruments that these streams are about."""
        symbols = set(map(self.venue.symbol_of, streams))
        return [instrument for instrument in self.instruments if instrument.symbol in symbols]

    def fetch_instruments(self):
        if not self.closing:
            request = self.venue.instruments_request(self.config.symbols)
            self.fetcher.get(self.config.rest_url.rstrip("/") + request.path, self.on_instruments)

    def next_request_id(self, stream_count):
        first, self.request_id = self.request_id, self.request_id + stream_count
        return first

    def on_instruments(self, answer):
        """Ticks and lots make definitions complete and find misspelt symbols; the feed runs without them, too."""
        self.unknown_symbols = []
        try:
            if answer.error is not None or answer.status != 200:
                raise VenueError(answer.error or f"HTTP {answer.status}")
            known = self.venue.decode_instruments(answer.body)
            for instrument in self.instruments:
                if instrument.symbol not in known:
                    self.unknown_symbols.append(instrument.symbol)
                    continue
                instrument.tick, instrument.lot = known[instrument.symbol]      # told in the next refresh round
                self.recovery.define(instrument, 1, 1)
        except FeederError as error:
            self.last_error = f"instrument list: {error}"
            log.warning("%s: no instrument list, ticks are learned from the data; asking again in %g s: %s",
                        self.name, INSTRUMENTS_RETRY_NS / clock.SECOND, error)
            self.snapshots.obey(answer)
            self.loop.call_after(INSTRUMENTS_RETRY_NS, self.fetch_instruments)
        if self.unknown_symbols:
            log.error("%s: the venue does not list %s; check the spelling in its configuration",
                      self.name, ", ".join(self.unknown_symbols))
        self.flush()

    def check_first_data(self, line):
        """A venue acknowledges a symbol it does not know and stays silent; only a deadline finds that."""
        silent = [instrument for instrument in line.instruments if not self.has_data(instrument)]
        self.silent.update((instrument.symbol, instrument) for instrument in silent)
        if silent:
            log.error("%s: no data within %g s for %s: unknown to the venue, or not traded", line.name,
                      self.config.first_data_deadline_s, ", ".join(instrument.symbol for instrument in silent))

    def has_data(self, instrument):
        return self.pipeline.sink.seen(instrument) or self.recovery.link(instrument).flowing

    def bad_message(self, error):
        self.pipeline.bad_messages[self.name] += 1
        self.last_error = str(error)
        self.limited.warning("bad message", "%s", error)

    def line_changed(self, line, recv_ns):
        self.pipeline.sink.venue_status(self.name, all(each.connected for each in self.lines),
                                        "none" if line.connected else "disconnect", recv_ns)
        self.flush()

    def row(self):
        """What the report tells about this venue."""
        return {"venue": self.name, "lines": len(self.lines), "connected": sum(line.connected for line in self.lines),
                "connects": sum(line.connects for line in self.lines), "disconnects": self.disconnects,
                "silences": self.silences, "bad_messages": self.pipeline.bad_messages[self.name],
                "venue_errors": self.venue_errors, "snapshots_requested": self.snapshots.requested,
                "snapshots_failed": self.snapshots.failed, "snapshots_waiting": len(self.snapshots.waiting),
                "unknown_symbols": self.unknown_symbols,
                "silent_symbols": [symbol for symbol, each in self.silent.items() if not self.has_data(each)],
                "last_error": self.last_error,
                "received_bytes": sum(line.received_bytes for line in self.lines)}

    def close(self):
        self.closing = True
        for line in self.lines:
            line.close()
        self.fetcher.close()
        self.limited.flush()
