"""The twin on the wire: WebSocket and REST of one or more venues on loopback, one port each, and its admin requests.

    Twin       all venues, the schedule, pause and faults          one timer: advance the sources, flush the peers
    Venue      one port: who is subscribed to which channel, and the faults that wait for a diff or a request
    peer.py    one TCP connection: HTTP requests one after the other, then perhaps a WebSocket
    dialect.py what the venue says; one module and one line of registry.py each

A message is made into text once per channel, into a frame once per group of its subscribers, and every peer's frames of
one tick leave in one write. Text that nobody listens to is never made. Only peers that negotiated deflate, or whose
venue numbers messages per connection, pay for themselves.

Hot:  Venue.publish, with the source behind it; 10,000 messages/s over 40 instruments take a third of a core.

Admin requests, on every port, for tests and for the curious:
    /twin/status    /twin/pause    /twin/resume    /twin/book?symbol=[&limit=]    /twin/disconnect
    /twin/fault?kind=[&symbol=][&seconds=]
Pause stops the market of all venues between two messages, drops faults that still wait for a diff, and sends the
pending diffs: from then on a client that has read everything, and is not muted, holds exactly /twin/book: all of the
market's levels there, and under `channels`, for each channel of this book somebody listens to, the levels within its
depth with the venue's own sequence.
"""

import json
import logging
from collections import Counter, deque
from functools import partial
from urllib.parse import parse_qs, urlsplit

from ..clock import MILLISECOND, SECOND, steady_ns, wall_ns
from ..errors import ConfigError
from ..net import listen
from ..websocket import SERVER, Connection
from .dialect import Budget, RequestError
from .faults import CONTENT_FAULTS, DIFF_FAULTS, REST_FAULTS, Fault
from .market import DEPTH
from .peer import Alarm, Peer
from .registry import DIALECTS
from .source import Recorded, Synthetic

TICK_NS = 2 * MILLISECOND            # least time between two bites of the market; what shares a tick shares a write
CONGESTED_BYTES = 1 << 20            # a recording at full speed waits for readers this far behind
SLOW_SECONDS = 2.0                   # when a fault does not say
MAX_FAULTS_KEPT = 1_000

log = logging.getLogger("feeder.twin")


class Venue:
    """One venue on one port."""

    def __init__(self, twin, dialect, source, host, port):
        self.twin = twin
        self.dialect = dialect
        self.name = dialect.name
        self.source = source
        self.symbols = [spec.symbol for spec in source.specs]
        self.peers = set()                   # WebSockets
        self.plain = set()                   # all connections
        self.channels = {}                   # key -> Channel
        self.fed = {}                        # (symbol, kind of event) -> [Channel]
        self.counts = Counter()
        self.diff_faults, self.rest_faults = [], []
        self.waiting = []                    # requests a recording cannot answer yet
        self.on_book = None                  # for tests: called with the channel after each message of a book
        count, seconds = dialect.connects
        self._connects = Budget(twin.connects_per_5_minutes or count, 300 if twin.connects_per_5_minutes else seconds)
        self._encoder = Connection(SERVER)   # frames that many share carry no state: any server's will do
        self._now_ms = wall_ns() // MILLISECOND
        self._now_ns = steady_ns()
        self._listener = listen(twin.loop, host, port, self._accepted)
        self.port = self._listener.port
        self.deadline_ns = None              # when a channel is next to be looked at for having been idle
        self._alarm = Alarm(twin.loop, self)

    @property
    def info(self):
        host = self.twin.host if ":" not in self.twin.host else f"[{self.twin.host}]"
        return {"websocket_url": f"ws://{host}:{self.port}", "rest_url": f"http://{host}:{self.port}",
                "symbols": self.symbols}

    def _accepted(self, stream):
        self.counts["connections"] += 1
        self.plain.add(Peer(self, stream))

    def may_connect(self):
        limit = self.dialect.max_connections
        if (limit is None or len(self.peers) < limit) and self._connects.take(steady_ns()):
            return True
        self.counts["connects_refused"] += 1
        return False

    def find(self, symbol):
        """The listed symbol that is meant, in whatever case it is written; ConfigError if there is none."""
        for listed in self.symbols:
            if listed == symbol or listed.upper() == symbol.upper():
                return listed
        raise ConfigError(f"symbol {symbol!r} is not listed at {self.name}")

    # --- channels

    def join(self, peer, key, label):
        channel = self.channels.get(key)
        if channel is None:
            channel = self.channels[key] = self.dialect.channel(key, self.source)
            for kind in channel.kinds:
                self.fed.setdefault((channel.symbol, kind), []).append(channel)
            self._watch(channel)
        channel.groups.setdefault(label, []).append(peer)
        return channel

    def leave(self, peer, key, label):
        channel = self.channels[key]
        group = channel.groups[label]
        group.remove(peer)
        peer.held.pop(channel, None)
        if group:
            return
        del channel.groups[label]
        if channel.groups:
            return
        del self.channels[key]
        for kind in channel.kinds:
            fed = self.fed[channel.symbol, kind]
            fed.remove(channel)
            if not fed:
                del self.fed[channel.symbol, kind]

    def forget(self, peer):
        if peer.session is not None:
            for name in list(peer.session.topics):
                peer.leave(name)
        self.peers.discard(peer)
        self.plain.discard(peer)

    # --- the way of a message

    def advance(self, now_ns):
        self._now_ns = now_ns
        self._now_ms = wall_ns() // MILLISECOND
        if not self.source.waits_for_readers or not any(
                peer.stream.pending_bytes > CONGESTED_BYTES for peer in self.peers):
            self.source.advance(now_ns, self._now_ms, self.publish)
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            for peer, request, answer in waiting:
                self.give(peer, request, answer)

    def publish(self, symbol, kind, item):
        """Send what one event of the source means to whoever subscribed it."""
        channels = self.fed.get((symbol, kind))
        if channels is None:
            return
        self.counts[kind] += 1
        if self.diff_faults and kind is DEPTH:
            return self.spoil(symbol, channels, item)
        for channel in channels:
            for text in channel.texts(item, self._now_ms):
                self.distribute(channel, text)
                if channel.idle_ns is not None or self.on_book is not None:
                    self._told(channel)

    def spoil(self, symbol, channels, item):
        """`publish` with the first fault that waits for a diff of this symbol; it stays until something showed it."""
        fault = next((fault for fault in self.diff_faults if fault.fits(symbol)), None)
        shown = None
        for channel in channels:
            hurts, action = fault is not None and channel.is_book, None
            if hurts and fault.kind in CONTENT_FAULTS + channel.own_faults:
                texts = channel.hurt(fault.kind, item, self._now_ms)
                shown = shown or (channel.missed or None) and channel.missed[0]
            else:
                texts = channel.texts(item, self._now_ms)
                action = fault.kind if hurts else None
            for text in texts:
                shown = shown or hurts and text
                self.distribute(channel, text, action)
                self._told(channel)
        if shown:
            self.diff_faults.remove(fault)
            self.twin.done(self, fault, symbol, shown[:120])

    def distribute(self, channel, text, action=None):
        """Queue a message for all who listen; `action` is what a fault does to it on its way."""
        opcode = self.dialect.opcode
        for label, peers in channel.groups.items():
            payload = channel.dress(label, text).encode()
            frame = None
            for peer in peers:
                if peer.is_special or action is not None:
                    peer.take(channel, text, payload, action)
                elif peer.connection.is_open:
                    if frame is None:
                        frame = self._encoder.send(opcode, payload)
                    peer.out.append(frame)

    def _told(self, channel):
        if channel.idle_ns is not None:
            channel.deadline_ns = self._now_ns + channel.idle_ns
        if self.on_book is not None and channel.is_book:
            self.on_book(channel)

    # what channels say when nothing happens

    def _watch(self, channel):
        if channel.idle_ns is not None:
            channel.deadline_ns = steady_ns() + channel.idle_ns
            self.deadline_ns = min(self.deadline_ns or channel.deadline_ns, channel.deadline_ns)
            self._alarm.arm()

    def expire(self, now_ns):
        self._now_ns, now_ms = now_ns, wall_ns() // MILLISECOND
        waiting = [channel for channel in self.channels.values() if channel.idle_ns is not None]
        for channel in waiting:
            if channel.deadline_ns <= now_ns:
                for text in channel.idle(now_ms):
                    self.distribute(channel, text)
                channel.deadline_ns = now_ns + channel.idle_ns
        self.deadline_ns = min((channel.deadline_ns for channel in waiting), default=None)
        self.twin.schedule_flush()

    def flush(self, now_ns):
        for peer in self.peers:
            peer.flush(now_ns)

    def settle(self):
        """Send everything that is pending, in the source, in faults and in slow connections."""
        now_ns = self._now_ns = steady_ns()
        self._now_ms = wall_ns() // MILLISECOND
        self.diff_faults.clear()
        self.source.flush(self._now_ms, self.publish)
        for channel in self.channels.values():
            for text in channel.settle():
                self.distribute(channel, text)
        for peer in self.peers:
            peer.release()
            peer.slow_until_ns = min(peer.slow_until_ns, now_ns)
        self.flush(now_ns)

    # --- faults that happen at once

    def hurt(self, fault):
        now_ns = steady_ns()
        for peer in list(self.peers):
            if fault.kind == "disconnect":
                peer.stream.abort()
            elif fault.kind == "mute":
                peer.mute(now_ns, fault.seconds)
            elif fault.kind == "slow":
                peer.slow_down(now_ns, fault.seconds or SLOW_SECONDS)
            elif fault.kind == "notice":
                peer.end(fault.seconds or None)
            elif fault.kind == "maintenance":
                peer.maintain(fault.seconds)
            else:
                for opcode, payload in peer.session.garbage(self._now_ms):
                    peer.queue(opcode, payload)
        self.twin.done(self, fault, fault.symbol, f"{len(self.peers)} connections")

    # --- REST

    def request(self, peer, request):
        target = request.target
        if target.startswith("/twin/"):
            return self.twin.admin(self, peer, request)
        if request.method != "GET":
            return peer.answer(request, 405, '{"code":-1000,"msg":"only GET is served"}')
        try:
            answer = self.dialect.rest(target, self, steady_ns(), wall_ns() // MILLISECOND)
        except RequestError as error:
            self.counts["rest_429"] += error.status == self.dialect.too_many_status
            return self._later(peer, request, error.status, error.text, error.headers)
        self.give(peer, request, answer)

    def give(self, peer, request, answer):
        """The answer as it is now, after the latency; or once more when the recording has come to it."""
        text = answer.text if answer.retry is None else answer.retry(wall_ns() // MILLISECOND)
        if text is not None:
            self._later(peer, request, 200, text, answer.headers)
        elif peer.stream.is_open:
            self.waiting.append((peer, request, answer))

    def rest_fault(self, symbol, is_snapshot):
        """For the dialect: a fault to show in this answer, or None; those of any answer are raised as one."""
        for fault in self.rest_faults:
            if fault.fits(symbol) and (is_snapshot or fault.kind != "stale_snapshot"):
                self.rest_faults.remove(fault)
                self.twin.done(self, fault, symbol, "REST")
                if fault.kind == "rest_429":
                    raise self.dialect.too_many(1)
                if fault.kind == "rest_error":
                    raise self.dialect.broken()
                return fault.kind
        return None

    def _later(self, peer, request, status, text, headers=()):
        self.twin.loop.call_after(self.twin.rest_latency_ns, lambda: peer.answer(request, status, text, headers))

    def books(self, symbol):
        """Of each channel that tells this book to somebody: its key, the venue's sequence, and the levels told."""
        return [(channel.key, *channel.book()) for channel in self.channels.values()
                if channel.is_book and channel.symbol == symbol]

    def status(self):
        return {**self.source.status(), "connections": len(self.peers),
                "streams": sum(len(peer.session.topics) for peer in self.peers), "counts": dict(self.counts),
                **self.dialect.status(), "symbols": len(self.symbols)}

    def close(self):
        self._alarm.cancel()
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
        time_scale: heartbeats, their timeouts and notices come so many times faster than the venue's.
        lifetime_s: connections end after so long, announced where the venue does.
        settings: {venue name: {setting of its dialect: value}}
    """

    def __init__(self, loop, venues, *, seed=1, rate=2_000, host="127.0.0.1", port=0, levels=None, faults=(),
                 replay=None, speed=1.0, rest_latency_ms=20, ping_interval_s=None, pong_timeout_s=None,
                 allow_deflate=True, connects_per_5_minutes=None, time_scale=1.0, lifetime_s=0, settings=None):
        self.loop = loop
        self.seed, self.host = seed, host
        self.faults = list(faults)
        self.rest_latency_ns = int(rest_latency_ms * MILLISECOND)
        self.lifetime_ns = int(lifetime_s * SECOND)
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
                chosen = dict(ping_interval_s=ping_interval_s, pong_timeout_s=pong_timeout_s)
                chosen = {key: value for key, value in chosen.items()
                          if value is not None and key in DIALECTS[name].settings}
                dialect = DIALECTS[name](time_scale, **{**chosen, **(settings or {}).get(name, {})})
                if replay and not dialect.replays:
                    raise ConfigError(f"the twin serves no recordings of {name}")
                source = (Recorded(dialect, replay, speed) if replay else
                          Synthetic(dialect, symbols, seed, rate / len(venues), levels))
                self.venues[name] = Venue(self, dialect, source, host, port)
                port += 1 if port else 0
            for fault in self.faults:
                if not any(fault.kind in venue.dialect.faults for venue in self.venues.values()):
                    raise ConfigError(f"fault {fault!r}: no client of {', '.join(self.venues)} could see it")
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
        """Let a fault happen, at once or at the next diff or request, in the venues named or all that can show it."""
        for venue in self.venues.values() if venues is None else venues:
            if fault.kind not in venue.dialect.faults:
                if venues is None:
                    continue
                raise ConfigError(f"a client of {venue.name} cannot see the fault {fault.kind}, expected one of "
                                  f"{', '.join(sorted(venue.dialect.faults))}")
            if fault.symbol is not None and not any(map(fault.fits, venue.symbols)):
                continue
            if fault.kind in DIFF_FAULTS + CONTENT_FAULTS:
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
        symbol = venue.find(parameters.get("symbol", ""))
        last_id, bids, asks = venue.source.book(symbol)
        limit = int(parameters.get("limit", 0)) or None
        answer = {"symbol": symbol, "last_update_id": last_id, "bids": bids[:limit], "asks": asks[:limit]}
        if not venue.dialect.replays:            # there a channel's book is the market's
            answer["channels"] = []
            for key, sequence, *sides in venue.books(symbol):
                bids, asks = venue.source.spelled(symbol, *sides)
                answer["channels"].append({"channel": key, "sequence": sequence, "bids": bids[:limit],
                                           "asks": asks[:limit]})
        return answer

    def _admin_fault(self, venue, parameters):
        fault = Fault(parameters.get("kind"), 0.0, float(parameters.get("seconds", 0)),
                      parameters.get("symbol") and venue.find(parameters["symbol"]))
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
