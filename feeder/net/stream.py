"""A TCP connection on the loop: plain or TLS, direct or through a proxy, ours (`connect`) or accepted (`listen`).

In:   bytes of the peer, handed on as a view that is valid during the call only, with the wall time of the receive.
Out:  bytes of `write`, sent at once, the rest kept up to `max_pending_bytes`.
Hot:  _readable and _take_plain or _take_tls.

    resolving ──▶ connecting ──▶ asking the proxy ──▶ TLS handshake ──▶ open ──▶ closing ──▶ closed
        └─────── one timeout covers all of this; each may be skipped ──────┘       (flush, at most LINGER_NS)

`_take` is the state: received bytes go to the method of the stage they arrive in, and what one stage leaves over
is given to the next. Any stage may go to closed. `on_close` is called exactly once, always from the loop and
never inside a call of the owner's, with None (an orderly end, ours or the peer's) or the NetworkError that ended
it; no callback comes after it, and no on_data after close() or abort(). A callback that raises ends its stream,
since what it made of the bytes is unknown.

Not here: reconnecting, and any meaning of the bytes.
"""

import errno
import logging
import os
import socket
import struct

from ..clock import SECOND, steady_ns, wall_ns
from ..errors import HostError
from .proxy import read_connect_answer
from .resolve import lookup
from .sockets import NetworkError, SocketOptions, address_text, os_error_text, request, request_buffer

log = logging.getLogger("feeder.net")

CONNECT_TIMEOUT_NS = 10 * SECOND
LINGER_NS = 2 * SECOND               # for what is unsent at close()
MAX_PENDING_BYTES = 16 << 20
ACCEPTS_PER_ROUND = 64
ACCEPT_PAUSE_NS = SECOND             # when the process has no descriptor left
BACKLOG = 1024

RESOLVING, CONNECTING, PROXY, HANDSHAKE = "resolving", "connecting", "asking the proxy", "TLS handshake"
OPEN, CLOSING, CLOSED = "open", "closing", "closed"

_IN_PROGRESS = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", 0))
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def connect(loop, host, port, *, on_open, on_data, on_close, tls=None, server_name=None, proxy=None,
            timeout_ns=CONNECT_TIMEOUT_NS, options=None, max_pending_bytes=MAX_PENDING_BYTES):
    """Start connecting; return the Stream at once. Every outcome arrives by callback.

    Args:
        on_open(stream), on_data(stream, view, recv_ns), on_close(stream, error or None)
        tls: an ssl.SSLContext (see tls_context), or None for plain TCP.
        server_name: the name the certificate must carry, `host` unless given.
        proxy: a Proxy to CONNECT through; it then looks up `host`, we do not.
    """
    name = f"{host}:{port}" + (f" through proxy {proxy.host}:{proxy.port}" if proxy else "")
    stream = Stream(loop, name, options, max_pending_bytes)
    stream.on_open, stream.on_data, stream.on_close = on_open, on_data, on_close
    stream._start(host, port, tls, server_name or host, proxy, timeout_ns)
    return stream


def listen(loop, host, port, on_accept, *, tls=None, options=None, max_pending_bytes=MAX_PENDING_BYTES,
           timeout_ns=CONNECT_TIMEOUT_NS):
    """Accept connections on an address (port 0: any, see `.port`); `on_accept(stream)` gets each when it is open.

    It sets `stream.on_data` and `stream.on_close`. Raises HostError when the address cannot be had.
    """
    return Listener(loop, host, port, on_accept, tls, options, max_pending_bytes, timeout_ns)


class Stream:
    """Made by `connect` and by a Listener.

    Attributes: `name` (what was asked for, "host:port", for messages), `peer` and `local` (texts "address:port",
    None before they are known), `stage`, `bytes_in` and `bytes_out` (the owner's bytes, not TLS's),
    `recv_buffer_bytes` and `send_buffer_bytes` (what the kernel gave), `owner` (free for whoever uses the stream).
    """

    def __init__(self, loop, name, options, max_pending_bytes):
        self.name = name
        self.peer = self.local = self.owner = None
        self.on_open = self.on_data = self.on_close = None
        self.max_pending_bytes = max_pending_bytes
        self.bytes_in = self.bytes_out = 0
        self.recv_buffer_bytes = self.send_buffer_bytes = 0
        self.stage = RESOLVING
        self._loop = loop
        self._options = options or SocketOptions()
        self._socket = self._tls = self._take = self._error = None
        self._is_watched = False
        self._pending = bytearray()      # unsent; deleting at its front is cheap, CPython moves only its start
        self._timer = self._attempt_timer = None

    @property
    def is_open(self):
        return self.stage is OPEN

    @property
    def pending_bytes(self):
        return len(self._pending)

    # -- the owner's calls

    def write(self, data):
        """Send bytes, now or as soon as the peer takes them; return False if the stream is closing or closed.

        When more than `max_pending_bytes` would have to wait, the peer is too slow: the stream is closed with an error.
        """
        if self.stage is not OPEN:
            if self.stage is CLOSING or self.stage is CLOSED:
                return False
            raise RuntimeError(f"{self.name}: write before on_open, while {self.stage}")
        self.bytes_out += len(data)
        if self._tls is not None:
            self._tls.write(data)
            data = self._tls.take()
        self._send(data)
        return self.stage is OPEN

    def close(self, error=None):
        """End the stream; what is unsent gets LINGER_NS to leave. `error` is handed to on_close as it is."""
        if self.stage is CLOSING or self.stage is CLOSED:
            return
        if self.stage is OPEN:
            if self._tls is not None:
                self._say_goodbye()
            if self._pending:
                self.stage = CLOSING
                self._error = error
                self._watch(write=self._writable)
                self._timer = self._loop.call_after(LINGER_NS, self._lingered)
                return
        self._finish(error)

    def abort(self):
        """End the stream at once with a reset; what is unsent is lost."""
        if self._socket is not None:
            try:                         # socket(7): linger on, 0 seconds
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:              # Windows packs two shorts; there the close is an ordinary one
                pass
        self._finish(self._error)

    # -- becoming open

    def _start(self, host, port, tls, server_name, proxy, timeout_ns):
        loop = self._loop
        self._target = (host, port)
        self._tls_wanted = (tls, server_name)
        self._proxy = proxy
        self._timeout_ns = timeout_ns
        self._deadline_ns = steady_ns() + timeout_ns
        self._failures = []              # one text for each address that did not work
        self._timer = loop.call_at(self._deadline_ns, self._timed_out)
        first = (proxy.host, proxy.port) if proxy else (host, port)
        # A numeric address is answered at once; the post keeps even then all callbacks out of connect().
        lookup(*first, lambda result: loop.post(lambda: self._resolved(result)))

    def _resolved(self, result):
        if self.stage is not RESOLVING:          # closed or timed out meanwhile
            return
        if isinstance(result, NetworkError):
            return self._fail(result)
        self._addresses = result
        self._try_next()

    def _try_next(self):
        """Try the next address; each gets an even share of the time that is left."""
        self.stage = CONNECTING
        while self._addresses:
            family, address = self._addresses.pop(0)
            self.peer = address_text(address)
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM)
                self._configure()
                code = self._socket.connect_ex(address)
                if code not in _IN_PROGRESS:
                    raise OSError(code, os.strerror(code))
            except OSError as error:
                self._address_failed(os_error_text(error))
                continue
            self._watch(write=self._connected)
            if self._addresses:
                share_ns = (self._deadline_ns - steady_ns()) // (len(self._addresses) + 1)
                self._attempt_timer = self._loop.call_after(share_ns, self._attempt_timed_out)
            return
        self._fail("; ".join(self._failures))

    def _configure(self):
        options = self._options
        self._socket.setblocking(False)
        # Before the connect: the window scale is settled in the SYN (tcp(7)).
        self.recv_buffer_bytes = request_buffer(self._socket, "receive", options.recv_buffer_bytes)
        self.send_buffer_bytes = request_buffer(self._socket, "send", options.send_buffer_bytes)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.no_delay)
        request(self._socket, options, ("busy_poll_us", "dscp", "priority"))

    def _address_failed(self, text):
        self._failures.append(f"{self.peer}: {text}")
        self._drop_socket()

    def _attempt_timed_out(self):
        self._address_failed("no answer in its share of the time")
        self._try_next()

    def _connected(self):
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code:
            try:
                self.local = address_text(self._socket.getsockname())
                self._socket.getpeername()
            except OSError as error:
                code = error.errno
            else:
                # A loopback connect to a port nobody listens on can pick that very port and meet itself.
                code = errno.ECONNREFUSED if self.local == self.peer else 0
        if code:
            self._address_failed(os.strerror(code))
            return self._try_next()
        if self._attempt_timer is not None:
            self._attempt_timer.cancel()
        self._watch(read=self._readable)
        if self._proxy is None:
            return self._start_tls(b"", 0)
        self.stage = PROXY
        self._take = self._take_proxy
        self._proxy_head = bytearray()
        self._send(self._proxy.connect_request(*self._target))

    def _take_proxy(self, view, recv_ns):
        self._proxy_head += view
        try:
            rest = read_connect_answer(self._proxy_head)
        except NetworkError as error:
            return self._fail(error)
        if rest is not None:
            self._start_tls(rest, recv_ns)

    def _start_tls(self, rest, recv_ns):
        context, server_name = self._tls_wanted
        if context is None:
            return self._opened(rest, recv_ns)
        from .tls import TlsSession
        try:
            session = TlsSession(context, server_name)
        except ValueError as error:      # a name that cannot be one, such as ".example"
            return self._fail(str(error))
        self._handshake(session, rest, recv_ns)

    def _handshake(self, session, rest, recv_ns):
        self.stage = HANDSHAKE
        self._take = self._take_handshake
        self._tls = session
        self._take_handshake(rest, recv_ns)

    def _take_handshake(self, view, recv_ns):
        session = self._tls
        session.feed(view)
        try:
            done = session.handshake()
        except NetworkError as error:
            self._send(session.take())   # the alert, so that the peer knows too
            return self._fail(error)
        self._send(session.take())
        if done and self.stage is HANDSHAKE:
            self._opened(b"", recv_ns)   # application data may lie in the session already; b"" reads it

    def _opened(self, rest, recv_ns):
        self._timer.cancel()
        self.stage = OPEN
        self._take = self._take_plain if self._tls is None else self._take_tls
        self._guarded(self.on_open, self)
        if self.stage is OPEN and (rest or self._tls is not None):
            self._take(rest, recv_ns)

    # -- bytes in

    def _readable(self):
        try:
            count = self._socket.recv_into(self._loop.turn_buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self._fail(os_error_text(error))
        recv_ns = wall_ns()
        if count:
            self._take(self._loop.buffer[:count], recv_ns)
        elif self.stage is OPEN and self._tls is None:
            self.close()                 # a peer that only half closed still gets what is pending
        else:
            self._fail("peer ended the connection" if self.stage is not OPEN else
                       "peer ended the connection without TLS close_notify")

    def _take_plain(self, view, recv_ns):
        self.bytes_in += len(view)
        self._guarded(self.on_data, self, view, recv_ns)

    def _take_tls(self, view, recv_ns):
        session = self._tls
        buffer = self._loop.buffer       # `view` is usually a part of it; fed, it is free again
        session.feed(view)
        count = len(buffer)
        while count == len(buffer) and self.stage is OPEN:
            try:
                count = session.read_into(buffer)
            except NetworkError as error:
                self._send(session.take())
                return self._fail(error)
            if count:
                self.bytes_in += count
                self._guarded(self.on_data, self, buffer[:count], recv_ns)
        if self.stage is OPEN:
            answer = session.take()      # TLS's own, such as the reply to a key update
            if answer:
                self._send(answer)
            if session.ended:
                self.close()

    def _guarded(self, callback, *args):
        try:
            callback(*args)
        except Exception as error:
            self._fail(f"its handler failed: {error!r}")
            raise                        # to the loop, which logs and counts it

    # -- bytes out

    def _send(self, data):
        if self.stage is CLOSED:
            return
        pending = self._pending
        if not pending:
            try:
                count = self._socket.send(data) if data else 0
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError as error:
                return self._fail(os_error_text(error))
            if count == len(data):
                return
            data = memoryview(data)[count:]
        waiting = len(pending) + len(data)
        if waiting > self.max_pending_bytes:
            return self._fail(f"peer reads too slowly: {waiting} bytes wait to be sent, limit {self.max_pending_bytes}")
        if not pending:
            self._watch(read=self._readable, write=self._writable)
        pending += data

    def _say_goodbye(self):
        self._tls.goodbye()
        notice = self._tls.take()
        if self._pending:
            self._pending += notice      # a few bytes; they may pass the bound
            return
        try:
            self._socket.send(notice)
        except OSError:                  # peers that do not wait for it are common, and no reason for an error
            pass

    def _writable(self):
        try:
            count = self._socket.send(self._pending)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self._fail(os_error_text(error))
        del self._pending[:count]
        if not self._pending:
            if self.stage is CLOSING:
                self._finish(self._error)
            else:
                self._watch(read=self._readable)

    # -- the end

    def _timed_out(self):
        where = f" {self.peer}" if self.stage is CONNECTING else ""
        tried = "".join(f"; {text}" for text in self._failures)
        self._fail(f"no success within {self._timeout_ns / SECOND:g} s{where}{tried}")

    def _lingered(self):
        self._finish(self._error or NetworkError(
            f"{self.name}: {len(self._pending)} bytes still unsent {LINGER_NS / SECOND:g} s after close"))

    def _fail(self, reason):
        self._finish(self._error or NetworkError(f"{self.name}: {self.stage}: {reason}"))

    def _finish(self, error):
        if self.stage is CLOSED:
            return
        self.stage = CLOSED
        self._error = error
        self._drop_socket()
        self._timer.cancel()
        self._pending = bytearray()
        self._loop.call_at(0, self._report)

    def _report(self):
        on_close, error = self.on_close, self._error
        self.on_open = self.on_data = self.on_close = self._take = self._tls = None      # no cycles left behind
        if on_close is not None:
            on_close(self, error)

    def _drop_socket(self):
        if self._attempt_timer is not None:
            self._attempt_timer.cancel()
        if self._socket is not None:
            if self._is_watched:
                self._loop.unregister(self._socket)
                self._is_watched = False
            self._socket.close()
            self._socket = None

    def _watch(self, read=None, write=None):
        if self._is_watched:
            self._loop.modify(self._socket, read, write)
        else:
            self._loop.register(self._socket, read, write)
            self._is_watched = True

    def __repr__(self):
        return f"<Stream {self.name} {self.stage}>"


class Listener:
    def __init__(self, loop, host, port, on_accept, tls, options, max_pending_bytes, timeout_ns):
        self.accepted = 0                # TCP connections
        self.failed = 0                  # of those, the ones that never opened: gone, or no TLS handshake
        self._loop = loop
        self._on_accept = on_accept
        self._tls = tls
        self._options = options or SocketOptions()
        self._max_pending_bytes = max_pending_bytes
        self._timeout_ns = timeout_ns
        self._resume_timer = None
        self._unopened = set()           # streams in their handshake: ours to close until on_accept has them
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):       # Windows, where REUSEADDR would steal the port
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(False)
            # Accepted sockets inherit it, in time for the window scale.
            request_buffer(self._socket, "receive", self._options.recv_buffer_bytes)
            self._socket.bind((host, port))
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot listen on {host}:{port}: {os_error_text(error)}") from None
        self.host, self.port = self._socket.getsockname()[:2]
        loop.register(self._socket, read=self._acceptable)

    def _acceptable(self):
        for _ in range(ACCEPTS_PER_ROUND):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                log.error("listener %s:%d: %s; accepting again in %g s", self.host, self.port, os_error_text(error),
                          ACCEPT_PAUSE_NS / SECOND)
                self._loop.unregister(self._socket)          # or it would be ready again at once, for ever
                self._resume_timer = self._loop.call_after(ACCEPT_PAUSE_NS, self._resume)
                return
            self.accepted += 1
            self._adopt(sock, address)
            if self._socket is None:                         # on_accept closed the listener
                return

    def _adopt(self, sock, address):
        stream = Stream(self._loop, address_text(address), self._options, self._max_pending_bytes)
        stream._socket = sock
        stream._failures = []
        stream._timeout_ns = self._timeout_ns
        stream._timer = self._loop.call_after(self._timeout_ns, stream._timed_out)
        stream.on_open, stream.on_close = self._opened, self._lost
        try:
            stream._configure()
            stream.peer, stream.local = stream.name, address_text(sock.getsockname())
        except OSError as error:         # gone already
            return stream._fail(os_error_text(error))
        stream._watch(read=stream._readable)
        if self._tls is None:
            stream._opened(b"", 0)
        else:
            from .tls import TlsSession
            self._unopened.add(stream)
            stream._handshake(TlsSession(self._tls, server_side=True), b"", 0)

    def _opened(self, stream):
        self._unopened.discard(stream)
        stream.on_close = None
        self._on_accept(stream)

    def _lost(self, stream, error):
        self._unopened.discard(stream)
        self.failed += 1
        log.warning("listener %s:%d: %s", self.host, self.port, error)

    def _resume(self):
        self._resume_timer = None
        self._loop.register(self._socket, read=self._acceptable)

    def close(self):
        """Accept no more; streams that were handed to on_accept live on."""
        if self._socket is None:
            return
        if self._resume_timer is None:
            self._loop.unregister(self._socket)
        else:
            self._resume_timer.cancel()
        self._socket.close()
        self._socket = None
        for stream in self._unopened:
            stream.on_close = None
            stream.abort()
        self._unopened.clear()
