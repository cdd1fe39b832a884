"""One TCP connection to the twin: HTTP requests one after the other, then perhaps a WebSocket with its session.

`out` collects frames until the end of the tick. What the venue would say or do is the session's; what a connection can
suffer (slow, muted, held back messages, its end) happens here. Frames that all peers share come ready from the venue.
"""

import json
import logging

from ..clock import MILLISECOND, SECOND, steady_ns, wall_ns
from ..errors import ProtocolError
from ..websocket import CLOSE, PING, SERVER, TEXT, Connection, DeflateOptions, ServerHandshake, http_response
from .faults import SLOW_BYTES_PER_SECOND

MAX_EARLY_BYTES = 16 << 10           # of a next request sent before the answer to the last
LEAST_WAIT_NS = MILLISECOND
MUTED_FOR_EVER = 1 << 63

log = logging.getLogger("feeder.twin")


class Alarm:
    """Calls `owner.expire(now_ns)` when `owner.deadline_ns` has come. A deadline that moved away costs no timer."""

    def __init__(self, loop, owner):
        self._loop, self._owner = loop, owner
        self._timer = None
        self._due_ns = 0

    def arm(self):
        """Look at the deadline anew."""
        deadline_ns = self._owner.deadline_ns
        if self._timer is not None and (deadline_ns is None or deadline_ns >= self._due_ns):
            return
        self.cancel()
        if deadline_ns is not None:
            self._due_ns = deadline_ns
            self._timer = self._loop.call_at(deadline_ns, self._ring)

    def _ring(self):
        self._timer = None
        now_ns, owner = steady_ns(), self._owner
        if owner.deadline_ns is None:
            return
        if owner.deadline_ns <= now_ns:
            owner.expire(now_ns)
            if owner.deadline_ns is not None and owner.deadline_ns <= now_ns:
                owner.deadline_ns = now_ns + LEAST_WAIT_NS
        self.arm()

    def cancel(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Peer:
    """One accepted connection."""

    def __init__(self, venue, stream):
        self.venue = venue
        self.stream = stream
        self.handshake = ServerHandshake(allow_deflate=DeflateOptions() if venue.twin.allow_deflate else None)
        self.connection = None               # a WebSocket, after its handshake
        self.session = None
        self.deflates = False
        self.is_special = False              # whether frames that others share are not for this one: see `take`
        self.out = []
        self.held = {}                       # channel -> [payload] that a reorder fault holds back
        self.sent_ns = steady_ns()           # when data left last
        self.muted_until_ns = 0
        self.slow_until_ns = self.slow_ns = 0
        self.backlog = bytearray()           # of a slow peer
        self.alarm = None
        self.end_timer = None
        self.is_answering = False            # a REST answer is on its way
        self.early = b""
        stream.on_data, stream.on_close = self.on_data, self.on_close

    @property
    def now_ms(self):
        return wall_ns() // MILLISECOND

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
            return self.end_http(venue.dialect.connect_refusal, "Too many connection attempts.")
        try:
            self.stream.write(self.handshake.accept(request))
        except ProtocolError as error:
            return self.end_http(400, str(error))
        self.connection = Connection(SERVER, max_message_bytes=1 << 20, deflate=self.handshake.deflate)
        self.deflates = self.handshake.deflate is not None
        self.session = venue.dialect.session(venue.dialect, self, route)
        self.judge()
        self.alarm = Alarm(venue.twin.loop, self.session)
        venue.peers.add(self)
        if venue.twin.lifetime_ns:
            self.end_timer = venue.twin.loop.call_after(venue.twin.lifetime_ns, self.end)
        self.sent_ns = steady_ns()
        self.session.open(self.sent_ns)
        self.alarm.arm()
        if request.body:
            self.take_frames(request.body)

    # --- WebSocket

    def take_frames(self, data):
        connection = self.connection
        for opcode, payload in connection.receive(data):
            if opcode == CLOSE or not self.stream.is_open:
                continue
            self.session.take(opcode, payload, steady_ns())
        if not self.stream.is_open:
            return
        outgoing = connection.take_outgoing()
        if outgoing:
            self.stream.write(outgoing)
        if connection.is_closed:
            self.stream.close()
        self.alarm.arm()

    # what is sent

    def judge(self):
        self.is_special = bool(self.deflates or self.session.finishes or self.muted_until_ns or self.held)

    def take(self, channel, text, payload, action=None):
        """Queue one of a channel's messages the slow way; `payload` is what its other subscribers get."""
        session, connection, opcode = self.session, self.connection, self.venue.dialect.opcode
        if session.finishes:
            text = session.finish(channel, text)                     # counted, even when it is lost
            if text is None:
                return
            payload = text.encode()
        if self.muted_until_ns and self.is_muted() or not connection.is_open:
            return
        payloads = [payload, *self.held.pop(channel, ())]
        if action == "gap":
            payloads.pop(0)
            if self.venue.dialect.gap_cuts:
                self.stream.abort()
        elif action == "duplicate":
            payloads.insert(0, payload)
        elif action == "reorder":
            self.held[channel], payloads = payloads, []
        self.judge()
        self.out += [connection.send(opcode, payload) for payload in payloads]

    def release(self):
        """Send what reorder faults hold back."""
        for payloads in self.held.values():
            for payload in payloads:
                self.queue(self.venue.dialect.opcode, payload)
        self.held.clear()
        self.judge()

    # what a session may ask for

    def count(self, what):
        self.venue.counts[what] += 1

    @property
    def symbols(self):
        return self.venue.symbols

    def join(self, name, key, label=None):
        """Subscribe under `name`; return the channel, None for a key of None: it is taken and stays silent."""
        topic = self.session.topics[name] = None if key is None else (key, label)
        channel = topic and self.venue.join(self, key, label)
        self.venue.twin.first_subscription()
        return channel

    def leave(self, name):
        topic = self.session.topics.pop(name, None)
        if topic is not None:
            self.venue.leave(self, *topic)

    def send(self, text, opcode=TEXT):
        """Queue a text of this peer's own; it leaves with the rest of the tick, in order."""
        self.queue(opcode, text.encode())

    def ping(self, payload):
        self.queue(PING, payload)

    def tell(self, channel, text):
        """Queue a channel's text for this peer alone."""
        topics = filter(None, self.session.topics.values())
        label = next((label for key, label in topics if key == channel.key), None)
        self.take(channel, text, channel.dress(label, text).encode())
        self.venue.twin.schedule_flush()

    def queue(self, opcode, payload):
        if self.connection.is_open:
            self.out.append(self.connection.send(opcode, payload))
            self.venue.twin.schedule_flush()

    def is_muted(self):
        if self.muted_until_ns and steady_ns() >= self.muted_until_ns:
            self.muted_until_ns = 0
            if self.venue.dialect.mute_cuts:
                self.stream.abort()
        return bool(self.muted_until_ns)

    def refuse(self, reason, code=1008):
        self.count("refused")
        self.close(code, reason)

    def close(self, code, reason):
        """End in order: the frames that are queued, a close frame, the connection."""
        self.flush(steady_ns())
        if self.connection is not None:
            self.stream.write(self.connection.close(code, reason))
        self.stream.close()

    def abort(self):
        """End without a close frame."""
        self.flush(steady_ns())
        self.stream.close()

    # --- what a connection suffers

    def end(self, lead_s=None):
        """Its time is over: announce it where the venue does, then close."""
        twin, now_ns = self.venue.twin, steady_ns()
        if not self.stream.is_open:
            return
        told_s = self.session.farewell(now_ns)
        lead_ns = self.venue.dialect.ns(told_s) if lead_s is None else int(lead_s * SECOND)
        self.count("ended")
        self.end_timer = twin.loop.call_after(lead_ns, lambda: self.stream.is_open and self.close(1001, "going away"))

    def maintain(self, seconds=None):
        """The venue's maintenance begins, and ends by itself."""
        told_s = self.session.maintain(True)
        lasts_ns = int(seconds * SECOND) if seconds else self.venue.dialect.ns(told_s)
        self.end_timer = self.venue.twin.loop.call_after(lasts_ns, lambda: (
            self.stream.is_open and self.session.maintain(False)))

    def mute(self, now_ns, seconds):
        self.muted_until_ns = now_ns + int(seconds * SECOND) if seconds else MUTED_FOR_EVER
        self.judge()

    def slow_down(self, now_ns, seconds):
        self.slow_ns, self.slow_until_ns = now_ns, now_ns + int(seconds * SECOND)

    def flush(self, now_ns):
        if not (self.out or self.slow_until_ns):
            return
        data = b"".join(self.out)
        self.out.clear()
        if data:
            self.sent_ns = now_ns
        if self.slow_until_ns:
            data = self.trickle(data, now_ns)
        if data:
            self.stream.write(data)

    def trickle(self, data, now_ns):
        """What a slow connection lets through now."""
        backlog = self.backlog
        backlog += data
        if len(backlog) > self.stream.max_pending_bytes:
            self.count("slow_disconnects")
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

    def on_close(self, stream, error):
        if self.alarm is not None:
            self.alarm.cancel()
        if self.end_timer is not None:
            self.end_timer.cancel()
        if error is not None:
            log.info("%s: %s", self.venue.name, error)
            if "reads too slowly" in str(error):
                self.count("slow_disconnects")
        self.venue.forget(self)
