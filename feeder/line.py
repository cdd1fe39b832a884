"""One connection of a venue, for ever: connect, say hello, subscribe, decode, ping, replace, reconnect.

        waiting ──▶ connecting ──▶ upgrading ──▶ connected ──▶ lost ──▶ waiting ...
                    Stream's 10 s  └─ stale_after_s ────────┘

Texts leave one by one at the venue's pace (`facts.command_every_ms`, `commands_per_hour`). Each is remembered by the keys it
is acknowledged with: an error is told with the symbols it was about, an acknowledgement that fails to come is told, too. A
book that is to be sent anew is unsubscribed first and subscribed when that is acknowledged.

A connection that brings no life for `stale_after_s` is dead. Life is market data, and what the venue's module calls so
(heartbeats, answers to pings); WebSocket pings and acknowledgements are none.

Rollover, where the venue announces an end, or `lifetime_s` has passed: a second LineConnection, the successor, connects and
subscribes while this one goes on. When its books live there (recovery.Link.line), this one is closed. What both bring is
taken once: increments by their sequence, trades by their ids (`Recovery.echoes`). If this one is lost before, the books
the successor already has stay live.

Hot:  on_data; measured live by `make bench-host`.
"""

import base64
import logging
import os
from collections import deque
from urllib.parse import urlsplit

from feeder import clock
from feeder.errors import NumberError, VenueError
from feeder.net import Backoff, connect
from feeder.venue.contract import ACK, ALIVE, ERROR, REPLY, SHUTDOWN, BrokenLine
from feeder.websocket import BINARY, CLIENT, CLOSE, TEXT, ClientHandshake, Connection, DeflateOptions

log = logging.getLogger("feeder.ingest")

TEND_NS = 200 * clock.MILLISECOND            # how often pings, acknowledgements, ages are looked at
ACK_DEADLINE_NS = 10 * clock.SECOND
SETTLE_NS = clock.SECOND                     # from the last acknowledgement of a successor to the end of the old line
PATIENCE_NS = 15 * clock.SECOND              # for books that show no sign on the successor: they are quiet
LIFETIME_JITTER = 0.02                       # lines made together are not replaced together
HOUR_NS = 3_600 * clock.SECOND
DEFAULT_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}


class Ask:
    """Commands that belong together: the streams they are about, what is still to be acknowledged, what comes then."""

    __slots__ = ("streams", "what", "keys", "then", "unsent", "deadline_ns")

    def __init__(self, streams, what, commands, then):
        self.streams = streams
        self.what = what
        self.keys = {key: part for command in commands for key, part in command.keys.items()}
        self.then = then
        self.unsent = len(commands)
        self.deadline_ns = None              # set when all is sent


class LineConnection:
    """Args: feed; number, for its name; line (contract.Line); leg: which of several that carry the same (redundant.py)."""

    def __init__(self, feed, number, line, leg=0):
        self.feed = feed
        self.number = number
        self.leg = leg
        self.recovery = feed.recoveries[leg]
        self.name = f"{feed.name}/{number}" + ("AB"[leg] if len(feed.recoveries) > 1 else "")
        self.line = line
        self.backoff = Backoff(random=feed.random)
        self.stream = self.handshake = self.websocket = self.session = None
        self.timer = None                 # the next connect, or the next look at silence
        self.text_timer = None            # the next text to send
        self.data_timer = None            # the deadline of first data
        self.tend_timer = None
        self.commands = deque()           # (Command, Ask), not sent yet
        self.asks = []                    # sent, or being sent, and not wholly acknowledged
        self.sent_ns = None               # when the texts of an hour left, where they are limited
        self.connected = False            # from the upgrade on, until it is known to be lost
        self.lost = True
        self.backoff_used = False
        self.connects = 0
        self.bytes_before = 0             # received on earlier connections
        self.data_ns = 0                  # when life was last seen
        self.ping_ns = self.end_ns = self.settled_ns = 0
        self.successor = self.predecessor = None
        self.seen = {}                    # instrument id -> (events, since): freshness of books
        self.instruments = feed.carried(line.streams)
        self.books = feed.carried(stream for stream in line.streams if stream in feed.depth_streams)

    @property
    def received_bytes(self):
        return self.bytes_before + (self.stream.bytes_in if self.stream is not None else 0)

    # -- connecting ------------------------------------------------------------------------------------------

    def start(self):
        now_ns = clock.steady_ns()
        at_ns = self.feed.may_connect_at(now_ns)
        if at_ns > now_ns + clock.SECOND:
            log.warning("%s: connects are paced as the venue wants it, the next one in %.1f s",
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
            host if port == DEFAULT_PORTS[url.scheme] else f"{host}:{port}",
            url.path.rstrip("/") + self.line.path or "/",
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
        feed = self.feed
        self.websocket = Connection(CLIENT, max_message_bytes=feed.config.max_message_bytes,
                                    deflate=self.handshake.deflate)
        self.connected = True
        now_ns = self.data_ns = clock.steady_ns()
        facts = feed.venue.facts
        self.sent_ns = deque(maxlen=facts.commands_per_hour) if facts.commands_per_hour else None
        self.ping_ns = now_ns + facts.ping.every_s * clock.SECOND if facts.ping else 0
        life_ns = feed.config.lifetime_s * clock.SECOND
        self.end_ns = int(now_ns + life_ns * (1 - LIFETIME_JITTER * feed.random.random())) if life_ns else 0
        self.settled_ns = 0
        self.seen.clear()
        if self.predecessor is not None:
            self.recovery.join(self.predecessor, self, self.books)
        self.session = feed.venue.session()
        streams = self.line.streams
        log.info("%s: connected, subscribing %d streams", self.name, len(streams))
        self.ask([], "hello", self.session.hello(feed.next_request_id(1)))
        self.ask(streams, "subscribe", self.session.subscribe(streams, feed.next_request_id(len(streams))))
        feed.line_changed(self, recv_ns)
        stream.on_data = self.on_data
        self.tend()
        if rest:
            self.on_data(stream, rest, recv_ns)

    # -- texts and their acknowledgements --------------------------------------------------------------------

    def ask(self, streams, what, commands, then=None):
        """Queue commands; call `then` when all of them are acknowledged, or were given up waiting for."""
        ask = Ask(streams, what, commands, then)
        self.commands.extend((command, ask) for command in commands)
        if commands:
            self.asks.append(ask)
            if self.text_timer is None:
                self.send_command()
        elif then is not None:
            then()

    def send_command(self):
        self.text_timer = None
        feed = self.feed
        if not self.commands:
            return
        now_ns = clock.steady_ns()
        if self.sent_ns is not None:
            if len(self.sent_ns) == self.sent_ns.maxlen and self.sent_ns[0] + HOUR_NS > now_ns:
                feed.limited.warning(("texts", self.name), "%s: the venue's budget of requests is used up for %.0f s",
                                     self.name, (self.sent_ns[0] + HOUR_NS - now_ns) / clock.SECOND)
                self.text_timer = feed.loop.call_at(self.sent_ns[0] + HOUR_NS, self.send_command)
                return
            self.sent_ns.append(now_ns)
        command, ask = self.commands.popleft()
        self.send_text(command.text)
        ask.unsent -= 1
        if not ask.unsent:
            ask.deadline_ns = now_ns + ACK_DEADLINE_NS
            if ask.what == "subscribe":
                self.await_first_data()
            self.settle(ask)
        self.text_timer = feed.loop.call_after(feed.venue.facts.command_every_ms * clock.MILLISECOND, self.send_command)

    def send_text(self, text):
        self.stream.write(self.websocket.send(TEXT, text.encode()))

    def settle(self, ask, give_up=False):
        """Look whether an Ask is done with."""
        if ask.unsent or ask.keys and not give_up:
            return
        self.asks.remove(ask)
        if ask.then is not None:
            ask.then()

    def await_first_data(self):
        if self.data_timer is not None:
            self.data_timer.cancel()
        self.data_timer = self.feed.loop.call_after(int(self.feed.config.first_data_deadline_s * clock.SECOND),
                                                    lambda: self.feed.check_first_data(self))

    def is_new(self, instrument):
        """Return True if the first subscription of its book is still on its way."""
        feed = self.feed
        return any(ask.what == "subscribe" and (not command.keys or any(
            stream in feed.depth_streams and feed.venue.symbol_of(stream) == instrument.symbol
            for part in command.keys.values() for stream in part)) for command, ask in self.commands)

    def resubscribe(self, streams):
        """Have the venue send these books anew."""
        session, feed = self.session, self.feed

        def subscribe():
            self.ask(streams, "book again", session.subscribe(streams, feed.next_request_id(len(streams))))

        self.ask(streams, "unsubscribe", session.unsubscribe(streams, feed.next_request_id(len(streams))), subscribe)

    def on_notice(self, notice):
        """Act on what the venue says of the connection; return True if that is a sign of life."""
        kind = notice.kind
        if kind == ALIVE:
            return True
        if kind == REPLY:
            self.send_text(notice.text)
            return True
        if kind == ACK:
            requests = notice.request if isinstance(notice.request, (tuple, list)) else (notice.request,)
            for request in requests:
                self.granted(request)
        elif kind == ERROR:
            self.refused(notice)
        elif kind == SHUTDOWN:
            self.feed.last_error = notice.text
            self.replace(notice.text)
        return False

    def find_ask(self, key):
        try:
            return next((ask for ask in self.asks if key in ask.keys), None)
        except TypeError:                     # a list, from a hostile venue
            return None

    def granted(self, key):
        log.debug("%s: acknowledged %s", self.name, key)
        ask = self.find_ask(key)
        if ask is not None:
            del ask.keys[key]
            self.settle(ask)

    def refused(self, notice):
        feed = self.feed
        ask = self.find_ask(notice.request) if notice.request is not None else None
        streams = ask.keys.pop(notice.request) if ask is not None else []
        symbols = list(dict.fromkeys(map(feed.venue.symbol_of, streams)))
        of = f" of {', '.join(symbols[:5])}{' ...' if len(symbols) > 5 else ''}" if symbols else ""
        feed.venue_errors += 1
        feed.last_error = f"{notice.text}{of and ' (request' + of + ')'}"
        feed.limited.warning(("error", self.name, notice.text), "%s: the venue says: %s (request %s%s)",
                             self.name, notice.text, notice.request, of)
        if ask is None:
            return
        if ask.what != "unsubscribe" and len(streams) > 1 and feed.venue.facts.splits:
            middle = len(streams) // 2        # one bad stream failed them all
            for half in (streams[:middle], streams[middle:]):
                self.ask(half, ask.what, self.session.subscribe(half, feed.next_request_id(len(half))))
        elif ask.what != "unsubscribe":
            feed.refused.update(dict.fromkeys(symbols, notice.text))
        self.settle(ask)

    # -- looking after it ------------------------------------------------------------------------------------

    def watch_silence(self):
        """Look now and then whether there is life."""
        limit_ns = int(self.feed.config.stale_after_s * clock.SECOND)
        silent_ns = clock.steady_ns() - self.data_ns
        if silent_ns >= limit_ns:
            self.feed.silences += self.connected
            missing = "market data" if self.connected else "answer to the WebSocket upgrade"
            self.lose(VenueError(f"no {missing} for {silent_ns / clock.SECOND:.1f} s"))
            return
        self.timer = self.feed.loop.call_after(max(limit_ns - silent_ns, 10 * clock.MILLISECOND), self.watch_silence)

    def tend(self):
        """Send pings, give up waiting for acknowledgements, replace what is old, look at quiet books."""
        feed = self.feed
        self.tend_timer = feed.loop.call_after(TEND_NS, self.tend)
        now_ns = clock.steady_ns()
        if self.ping_ns and now_ns >= self.ping_ns:
            ping = feed.venue.facts.ping
            self.ping_ns = now_ns + int(ping.every_s * clock.SECOND)
            self.send_text(ping.text)
        for ask in [ask for ask in self.asks if ask.deadline_ns is not None and now_ns >= ask.deadline_ns]:
            streams = [stream for part in ask.keys.values() for stream in part]
            if streams:
                feed.unacknowledged += 1
                log.warning("%s: not acknowledged within %g s: %s of %s", self.name, ACK_DEADLINE_NS / clock.SECOND,
                            ask.what, ", ".join(streams[:5]) + (" ..." if len(streams) > 5 else ""))
            self.settle(ask, give_up=True)
        if self.end_ns and now_ns >= self.end_ns and self.predecessor is None:
            self.end_ns = 0
            self.replace(f"{feed.config.lifetime_s:g} s old")
        if self.predecessor is not None:
            self.maybe_succeed(now_ns)
        elif feed.config.freshness_s:
            self.check_freshness(now_ns)

    def check_freshness(self, now_ns):
        limit_ns = int(self.feed.config.freshness_s * clock.SECOND)
        for instrument in self.books:
            link = self.recovery.link(instrument)
            events, since_ns = self.seen.get(instrument.instrument_id, (-1, now_ns))
            if events != link.events or now_ns - since_ns >= limit_ns:
                self.seen[instrument.instrument_id] = link.events, now_ns
                if events == link.events:
                    self.feed.not_fresh(instrument, self.recovery)

    # -- rollover --------------------------------------------------------------------------------------------

    def replace(self, why):
        """Open the next connection beside this one."""
        feed = self.feed
        if self.predecessor is not None:
            self.end_ns = clock.steady_ns()       # when it has taken over
            return
        if self.successor is not None or feed.closing:
            return
        log.info("%s: to be replaced: %s", self.name, why)
        successor = self.successor = LineConnection(feed, self.number, self.line, self.leg)
        successor.predecessor = self
        feed.begin_overlap()
        successor.start()

    def maybe_succeed(self, now_ns):
        """As the successor: let the old line go, once all it has is here, too."""
        if self.asks or self.commands:
            self.settled_ns = 0
            return
        self.settled_ns = self.settled_ns or now_ns
        waited_ns = now_ns - self.settled_ns
        recovery = self.recovery
        if waited_ns >= PATIENCE_NS or waited_ns >= SETTLE_NS and all(
                recovery.lives_on(instrument, self) for instrument in self.books):
            self.succeed()

    def succeed(self):
        """Take the old line's place."""
        old, self.predecessor = self.predecessor, None
        old.successor = None
        feed = self.feed
        feed.lines[feed.lines.index(old)] = self
        feed.rollovers += 1
        log.info("%s: the new connection has taken over", self.name)
        old.retire()
        feed.end_overlap(old, self)

    def retire(self):
        """End it in order; what it carried goes on elsewhere."""
        feed = self.feed
        feed.retired_connects += self.connects
        feed.retired_bytes += self.received_bytes
        self.cancel_timers()
        if not self.lost:
            self.lost = True
            self.connected = False
            if self.websocket is not None:
                self.stream.write(self.websocket.close(1000))
            self.stream.on_data = lambda stream, data, recv_ns: None
            self.stream.on_close = lambda stream, error: None
            self.stream.close()
            feed.retired.append(self.stream)

    # -- data ------------------------------------------------------------------------------------------------

    def on_data(self, stream, data, recv_ns):
        feed = self.feed
        websocket = self.websocket
        sink = feed.pipeline.sink
        sink.received_ns = clock.stopwatch_ns()
        decode = self.session.decode
        feed.recovery.line = self
        has_data, is_alive, ending = False, False, None
        for opcode, payload in websocket.receive(data):
            if opcode == TEXT or opcode == BINARY:
                try:
                    notice = decode(payload, recv_ns)
                except BrokenLine as error:
                    feed.bad_message(error)
                    ending = error
                    break                         # what follows is of a connection that cannot be trusted
                except (VenueError, NumberError) as error:
                    feed.bad_message(error)
                else:
                    if notice is None:
                        has_data = True
                    elif self.on_notice(notice):
                        is_alive = True
            elif opcode == CLOSE:
                ending = VenueError(f"closed by the venue: {payload[0]} {payload[1]}".rstrip())
        feed.flush()
        sink.received_ns = 0
        outgoing = websocket.take_outgoing()
        if outgoing:
            stream.write(outgoing)
        ending = websocket.fault or ending
        if has_data or is_alive:
            self.data_ns = clock.steady_ns()
            if self.backoff_used and has_data:
                self.backoff.reset()          # data came, not merely a connection
                self.backoff_used = False
        if ending is not None:
            self.lose(ending)

    # -- the end of a connection -----------------------------------------------------------------------------

    def lose(self, error):
        """Give the connection up. Its books are stale from here on, not when the last unsent byte has left."""
        self.down(error)
        self.stream.close(error)

    def on_close(self, stream, error):
        self.down(error)
        if self.feed.closing:
            return
        if self.successor is not None:
            self.successor.succeed()          # it was to be replaced anyway
            return
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
        self.commands.clear()
        self.asks.clear()
        if feed.closing:
            return
        feed.pipeline.sink.received_ns = 0    # where a handler failed half-way
        log.warning("%s: connection lost: %s", self.name, error or "closed by the peer")
        feed.last_error = str(error or "closed by the peer")
        if was_connected:
            feed.disconnects += 1
            recv_ns = clock.wall_ns()
            if self.predecessor is not None and self.predecessor.connected:
                self.recovery.fall_back(self, self.predecessor, self.books)
            else:
                self.recovery.disconnect(self.books, recv_ns, line=self)
            feed.line_changed(self, recv_ns)

    def cancel_timers(self):
        for timer in (self.timer, self.text_timer, self.data_timer, self.tend_timer):
            if timer is not None:
                timer.cancel()
        self.text_timer = None

    def close(self):
        self.cancel_timers()
        if self.successor is not None:
            self.successor.close()
        if self.stream is not None:
            if self.connected:
                self.stream.write(self.websocket.close(1000))
            self.stream.close()
            self.stream.abort()               # nobody will run the loop for what is still unsent
