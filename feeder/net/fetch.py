"""REST over worker threads: whole answers, bounded in time and size, handed back in the loop's thread.

    get ──▶ queue ──▶ worker: lookup, connect, proxy, TLS, http.client ──▶ post ──▶ on_done(Answer)

Threads, because a snapshot of megabytes must not stall the loop, and because http.client is the standard
library's whole HTTP. One connection for each request: there are few (the venues' weight budgets see to that),
and none is ever found dead. `timeout_s` counts from when a worker takes the request up, and covers all of it
however slowly the bytes drip.

`on_done` is called exactly once for each get(), unless close() came first; then never.
"""

import io
import logging
import queue
import socket
import threading
from functools import partial
from urllib.parse import urlsplit

from .. import __version__
from ..clock import SECOND, steady_ns, wall_ns
from ..host import cpu
from .proxy import DEFAULT_PORTS, read_connect_answer
from .resolve import lookup
from .sockets import NetworkError, address_text, os_error_text

log = logging.getLogger("feeder.net")

TIMEOUT_S = 10
MAX_BYTES = 32 << 20
PIECE_BYTES = 64 << 10
POST_RETRY_S = 0.01


class Answer:
    """What became of a request.

    `error` is None when a whole HTTP answer came, whatever its status: 404 and 429 are answers. Else it is a sentence,
    and `status` is 0, or the status that was refused. `headers` is a dict, names in lower case. `recv_ns` is the wall
    time of the last byte.
    """

    __slots__ = ("url", "status", "headers", "body", "error", "recv_ns")

    def __init__(self, url, status=0, headers=None, body=b"", error=None):
        self.url = url
        self.status = status
        self.headers = headers or {}
        self.body = body
        self.error = error
        self.recv_ns = wall_ns()

    def __repr__(self):
        return f"<Answer {self.status} {len(self.body)} bytes {self.error or ''} {self.url}>"


class Fetcher:
    def __init__(self, loop, threads=2, tls=None, proxy=None, queue_limit=4096):
        """`tls`: context for https, by default the system's authorities. `proxy`: a Proxy for all requests, or None."""
        self.queue_limit = queue_limit
        self.waiting = 0                 # asked for and not yet answered; the loop's thread alone touches it
        self._loop = loop
        self._tls = tls
        self._proxy = proxy
        self._queue = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._running = set()            # requests in the workers' hands; under the lock
        self._threads = [threading.Thread(target=self._work, name=f"feeder-fetch-{n}") for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def get(self, url, on_done, timeout_s=TIMEOUT_S, max_bytes=MAX_BYTES):
        """Fetch `url`; `on_done(Answer)` is called later, in the loop's thread."""
        if self._closing.is_set():
            raise RuntimeError("the fetcher is closed")
        if self.waiting >= self.queue_limit:
            answer = Answer(url, error=f"{self.waiting} requests wait already, limit {self.queue_limit}")
            self._loop.call_at(0, lambda: on_done(answer))
            return
        self.waiting += 1
        self._queue.put(_Request(url, on_done, timeout_s, max_bytes))

    def close(self):
        """Stop all requests, their connections are shut down under the workers' hands; returns when threads ended."""
        self._closing.set()
        with self._lock:
            for request in self._running:
                request.cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self):
        cpu.enter(threading.current_thread().name)
        while True:
            request = self._queue.get()
            with self._lock:
                if request is None or self._closing.is_set():
                    return
                self._running.add(request)
            answer = request.perform(self._context, self._proxy)
            with self._lock:
                self._running.discard(request)
            while not self._loop.post(partial(self._deliver, request, answer)):
                if self._closing.wait(POST_RETRY_S):         # the loop is behind, or closed before us
                    return

    def _context(self):
        with self._lock:
            if self._tls is None:
                from .tls import tls_context
                self._tls = tls_context()
            return self._tls

    def _deliver(self, request, answer):
        self.waiting -= 1
        if not self._closing.is_set():
            request.on_done(answer)


class _Request:
    """One request in a worker's hands; `cancel` alone is called from outside."""

    def __init__(self, url, on_done, timeout_s, max_bytes):
        self.url = url
        self.on_done = on_done
        self.timeout_s = timeout_s
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket = None
        self._addresses = queue.SimpleQueue()

    def cancel(self):
        with self._lock:
            self._cancelled = True
            self._addresses.put(NetworkError("cancelled"))
            if self._socket is not None:
                try:
                    # Not SSLSocket.shutdown, which takes the TLS state from the thread that is reading.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                except OSError:          # not connected yet or no longer
                    pass

    def perform(self, context, proxy):
        """Return the Answer; never raises."""
        import http.client               # here, in a worker's thread: 13 ms that the start of a run need not wait for
        import ssl
        from .tls import tls_error_text
        self._deadline_ns = steady_ns() + int(self.timeout_s * SECOND)
        try:
            return self._fetch(context, proxy)
        except socket.timeout:
            error = f"no whole answer within {self.timeout_s:g} s"
        except ssl.SSLError as caught:
            error = f"TLS: {tls_error_text(caught)}"
        except http.client.HTTPException as caught:
            error = f"not a valid HTTP answer: {caught!r}"
        except (OSError, ValueError) as caught:      # ValueError: a URL that is none
            error = os_error_text(caught)
        except NetworkError as caught:
            error = str(caught)
        except Exception as caught:                  # our fault, yet whoever asked must hear of it
            log.exception("fetching %s", self.url)
            error = f"internal error: {caught!r}"
        finally:
            self._drop_socket()
        return Answer(self.url, error=f"{self.url}: {error}")

    def _fetch(self, context, proxy):
        from http.client import HTTPConnection
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NetworkError("expected an http or https URL")
        host, port = parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]
        if proxy is None:
            self._connect(host, port)
        else:
            self._connect(proxy.host, proxy.port)
            self._tunnel(proxy.connect_request(host, port))
        if parts.scheme == "https":
            self._hold(context().wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False))
            self._socket.settimeout(self._remaining_s())
            self._socket.do_handshake()
        connection = HTTPConnection(host, port)                  # it only writes the request and parses the answer
        connection.default_port = DEFAULT_PORTS[parts.scheme]    # not part of the Host header then
        connection.sock = _Wire(self._socket, self._remaining_s)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={
            "Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close",
            "User-Agent": f"feeder/{__version__}"})
        response = connection.getresponse()
        try:
            return self._read(response)
        finally:
            response.close()
            connection.close()

    def _read(self, response):
        headers = {name.lower(): value for name, value in response.getheaders()}
        if 300 <= response.status < 400:
            error = f"{self.url}: redirect refused: {response.status} to {headers.get('location', 'nowhere')[:200]}"
            return Answer(self.url, response.status, headers, error=error)
        body = bytearray()
        while True:
            piece = response.read1(PIECE_BYTES)
            if not piece:
                break
            body += piece
            if len(body) > self.max_bytes:
                raise NetworkError(f"answer is over the limit of {self.max_bytes} bytes "
                                   f"(announced: {headers.get('content-length', 'nothing')})")
        # read1 ends quietly at a cut connection, where read() would raise.
        announced = headers.get("content-length", "")
        if announced.isdigit() and len(body) < int(announced):
            raise NetworkError(f"answer was cut: {len(body)} of {announced} bytes")
        return Answer(self.url, response.status, headers, bytes(body))

    def _connect(self, host, port):
        """Try the addresses in turn, each with an even share of the time left."""
        lookup(host, port, self._addresses.put)
        try:
            addresses = self._addresses.get(timeout=self._remaining_s())
        except queue.Empty:
            raise NetworkError(f"no answer from name lookup within {self.timeout_s:g} s") from None
        if isinstance(addresses, NetworkError):
            raise addresses
        failures = []
        for left, (family, address) in zip(range(len(addresses), 0, -1), addresses):
            self._hold(socket.socket(family, socket.SOCK_STREAM))
            self._socket.settimeout(self._remaining_s() / left)
            try:
                return self._socket.connect(address)
            except OSError as error:
                failures.append(f"{address_text(address)}: {os_error_text(error)}")
                self._drop_socket()
        raise NetworkError("; ".join(failures))

    def _tunnel(self, request):
        wire = _Wire(self._socket, self._remaining_s)
        wire.sendall(request)
        head = bytearray()
        while True:
            piece = wire.receive(1)      # a byte at a time: what follows the head belongs to TLS
            if not piece:
                raise NetworkError("proxy ended the connection without an answer")
            head += piece
            if read_connect_answer(head) is not None:
                return

    def _hold(self, sock):
        """Make `sock` the one that cancel() shuts down; raises when it was called already."""
        with self._lock:
            self._socket = sock
            if self._cancelled:
                raise NetworkError("cancelled")

    def _drop_socket(self):
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _remaining_s(self):
        remaining_ns = self._deadline_ns - steady_ns()
        if remaining_ns <= 0:
            raise socket.timeout
        return remaining_ns / SECOND


class _Wire(io.RawIOBase):
    """What http.client takes for a socket: every operation gets only the time that is left of the whole.

    A socket's own timeout starts anew with every byte, so a peer that drips could hold a worker for ever.
    """

    def __init__(self, sock, remaining_s):
        self._socket = sock
        self._remaining_s = remaining_s

    def readable(self):
        return True

    def readinto(self, buffer):
        self._socket.settimeout(self._remaining_s())
        return self._socket.recv_into(buffer)

    def receive(self, size):
        self._socket.settimeout(self._remaining_s())
        return self._socket.recv(size)

    def sendall(self, data):
        self._socket.settimeout(self._remaining_s())
        self._socket.sendall(data)

    def makefile(self, mode):
        return io.BufferedReader(self, PIECE_BYTES)

    def close(self):
        """Nothing: http.client closes "its socket" before the body is read, and the request closes the real one."""
