"""The HTTP/1.1 upgrade that opens a WebSocket (RFC 6455 §4), both sides; and plain GET requests, for the venue twin.

In:   the first bytes of a TCP stream, cut anywhere.   Out: the request or response head, and the bytes behind it.

Strict where it costs nothing: CRLF line ends, token names, no folded lines, at most MAX_HEAD_BYTES and
MAX_HEADERS. Header names become lower case; repeated headers are joined by ", " (RFC 9110 §5.3).
Redirects, proxies and challenges are refused with their text: a market-data address is configured, not found.
Not here: bodies. A request with one is refused; of a refusing response the part at hand is quoted.
"""

import base64
import hashlib
import re
from binascii import Error as Base64Error
from http import HTTPStatus

from ..errors import ProtocolError
from .deflate import EXTENSION, accept_answer, choose_offer

MAX_HEAD_BYTES = 16 << 10
MAX_HEADERS = 100
MAX_QUOTED_BYTES = 300

_STATUS_TEXTS = {status.value: status.phrase for status in HTTPStatus}
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"         # §1.3
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")    # RFC 9110 §5.6.2
_HEADER = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?")
_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/1\.([01])")
_PARAMETER = re.compile(r"""[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*(?:=[ \t]*(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]+)|"""
                        r""""([!#$%&'*+\-.^_`|~0-9A-Za-z]+)")[ \t]*)?(?:([;,])|$)""")


class ClientHandshake:
    """Our side of the opening. `key`: base64 text of 16 random bytes; `headers`: more (name, value) pairs."""

    def __init__(self, host_header, path, key, headers=(), deflate=None):
        self.deflate = None         # after: what both agreed on
        self.headers = {}           # after, also after a refusal
        self.status = 0
        self._offer = deflate
        self._accept = _accept_of(key)
        self._head = _Head()
        lines = ["GET %s HTTP/1.1" % path]
        fields = [("Host", host_header), ("Upgrade", "websocket"), ("Connection", "Upgrade"),
                  ("Sec-WebSocket-Key", key), ("Sec-WebSocket-Version", "13")]
        if deflate:
            fields.append(("Sec-WebSocket-Extensions", deflate.header(offer=True)))
        fields += headers
        self._subprotocols = [value for name, value in headers if name.lower() == "sec-websocket-protocol"]
        lines += _header_lines(fields)
        if not _REQUEST_LINE.fullmatch(lines[0]):
            raise ValueError("path %r cannot stand in a request line" % (path,))
        self.request = _head_bytes(lines)

    def receive(self, data):
        """Take bytes; None while the head is incomplete, then the bytes behind it. Raises ProtocolError."""
        got = self._head.receive(data)
        if got is None:
            return None
        line, self.headers, rest = got
        match = _STATUS_LINE.fullmatch(line)
        if not match:
            raise ProtocolError("handshake: the peer does not speak HTTP/1.1; its first line is %r" % line[:80])
        self.status = int(match.group(2))
        if self.status != 101:
            raise ProtocolError(self._refusal(match.group(3) or "", rest))
        headers = self.headers
        if match.group(1) != "1":
            raise ProtocolError("handshake: answered in HTTP/1.0")
        if headers.get("upgrade", "").lower() != "websocket":
            raise ProtocolError("handshake: Upgrade is %r, expected websocket" % headers.get("upgrade"))
        if "upgrade" not in _tokens(headers.get("connection", "")):
            raise ProtocolError("handshake: Connection is %r, expected Upgrade" % headers.get("connection"))
        if headers.get("sec-websocket-accept") != self._accept:
            raise ProtocolError("handshake: Sec-WebSocket-Accept is %r, expected %r"
                                % (headers.get("sec-websocket-accept"), self._accept))
        chosen = headers.get("sec-websocket-protocol")
        if chosen is not None and chosen not in re.split(r"[ \t]*,[ \t]*", ",".join(self._subprotocols)):
            raise ProtocolError("handshake: subprotocol %r was not asked for" % chosen)
        for name, parameters in _extensions(headers.get("sec-websocket-extensions", "")):
            if name != EXTENSION or not self._offer:
                raise ProtocolError("handshake: extension %r was not asked for" % name, 1010)
            if self.deflate:
                raise ProtocolError("handshake: extension %r is answered twice" % name, 1010)
            self.deflate = accept_answer(self._offer, parameters)
        return rest

    def _refusal(self, reason, rest):
        text = "handshake: HTTP %d %s" % (self.status, reason)
        if 300 <= self.status < 400:
            text += "; redirects are not followed (to %s)" % self.headers.get("location", "nowhere")[:MAX_QUOTED_BYTES]
        if rest:
            text += "; %s" % ascii(rest[:MAX_QUOTED_BYTES].decode("utf-8", "replace"))
        return text


class HttpRequest:
    """A request's head. `body` is what came behind it: the first frames, or a next request sent early."""

    __slots__ = ("method", "target", "headers", "body", "is_http_11")

    def __init__(self, method, target, headers, body, is_http_11=True):
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.is_http_11 = is_http_11

    @property
    def is_upgrade(self):
        """Whether it asks for a WebSocket; `accept` says whether rightly so."""
        return "websocket" in _tokens(self.headers.get("upgrade", ""))

    @property
    def keep_alive(self):
        """Whether the client expects the connection to stay after a plain answer (RFC 9112 §9.3)."""
        wishes = _tokens(self.headers.get("connection", ""))
        return "close" not in wishes if self.is_http_11 else "keep-alive" in wishes


class ServerHandshake:
    """The other side. After a plain request has been answered, `receive` may go on with the next one."""

    def __init__(self, allow_deflate=None):
        self.deflate = None         # after `accept`: what both agreed on
        self._allow = allow_deflate
        self._head = _Head()

    def receive(self, data):
        """Take bytes; None while the head is incomplete, then an HttpRequest. Raises ProtocolError."""
        got = self._head.receive(data)
        if got is None:
            return None
        line, headers, rest = got
        match = _REQUEST_LINE.fullmatch(line)
        if not match:
            raise ProtocolError("request line %r is not HTTP/1.1" % line[:80])
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            raise ProtocolError("requests with a body are not served")
        self._head = _Head()
        return HttpRequest(match.group(1), match.group(2), headers, rest, match.group(3) == "1")

    def accept(self, request, headers=()):
        """The bytes of the 101 response (§4.2.2); raises ProtocolError for a request that breaks §4.2.1."""
        found = request.headers
        if request.method != "GET" or not request.is_http_11:
            raise ProtocolError("upgrade: must be a GET of HTTP/1.1")
        if not request.is_upgrade or "upgrade" not in _tokens(found.get("connection", "")):
            raise ProtocolError("upgrade: Upgrade is %r and Connection %r, expected websocket and Upgrade"
                                % (found.get("upgrade"), found.get("connection")))
        if "host" not in found:
            raise ProtocolError("upgrade: there is no Host")
        version = found.get("sec-websocket-version")
        if version != "13":
            raise ProtocolError("upgrade: Sec-WebSocket-Version is %r, expected 13" % version)
        try:
            accept = _accept_of(found.get("sec-websocket-key", ""))
        except ValueError as error:
            raise ProtocolError("upgrade: %s" % error) from None
        fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
        offers = [parameters for name, parameters in _extensions(found.get("sec-websocket-extensions", ""))
                  if name == EXTENSION]
        chosen = choose_offer(self._allow, offers) if self._allow else None
        if chosen:
            self.deflate, value = chosen
            fields.append(("Sec-WebSocket-Extensions", value))
        return _head_bytes(["HTTP/1.1 101 Switching Protocols"] + _header_lines(fields + list(headers)))


def http_response(status, body, content_type="application/json", headers=()):
    """A whole plain response."""
    lines = ["HTTP/1.1 %d %s" % (status, _STATUS_TEXTS.get(status, "Unknown"))]
    fields = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    return _head_bytes(lines + _header_lines(fields + list(headers))) + body


class _Head:
    """Collects a head: its first line, its headers, the bytes behind it."""

    def __init__(self):
        self._buffer = bytearray()

    def receive(self, data):
        buffer = self._buffer
        searched = max(len(buffer) - 3, 0)
        buffer += data
        end = buffer.find(b"\r\n\r\n", searched)
        if end > MAX_HEAD_BYTES or end < 0 and len(buffer) > MAX_HEAD_BYTES:
            raise ProtocolError("HTTP head is larger than the limit of %d bytes" % MAX_HEAD_BYTES)
        if end < 0:
            return None
        first, *lines = buffer[:end].decode("latin-1").split("\r\n")
        if len(lines) > MAX_HEADERS:
            raise ProtocolError("HTTP head has %d headers, the limit is %d" % (len(lines), MAX_HEADERS))
        headers = {}
        for line in lines:
            match = _HEADER.fullmatch(line)
            if not match:
                raise ProtocolError("HTTP header line %r is malformed" % line[:80])
            name, value = match.group(1).lower(), match.group(2).rstrip(" \t")
            headers[name] = headers[name] + ", " + value if name in headers else value
        return first, headers, bytes(buffer[end + 4:])


def _accept_of(key):
    """The proof that the server read our key (§4.2.2); ValueError unless it is base64 of 16 bytes."""
    try:
        size = len(base64.b64decode(key, validate=True))
    except (Base64Error, ValueError):
        size = -1
    if size != 16:
        raise ValueError("Sec-WebSocket-Key %r is not the base64 of 16 bytes" % key[:80])
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def _tokens(value):
    return [token.strip(" \t").lower() for token in value.split(",")]


def _extensions(value):
    """Parse Sec-WebSocket-Extensions (§9.1) into (name, [(parameter, value or None)]) pairs."""
    found, at = [], 0
    names = True
    while at < len(value):
        match = _PARAMETER.match(value, at)
        if not match or names and "=" in match.group():
            raise ProtocolError("Sec-WebSocket-Extensions %r is malformed" % value[:200], 1010)
        if names:
            found.append((match.group(1), []))
        else:
            found[-1][1].append((match.group(1), match.group(2) or match.group(3)))
        names = match.group(4) == ","
        at = match.end()
    if value[-1:] in (";", ","):
        raise ProtocolError("Sec-WebSocket-Extensions %r is malformed" % value[:200], 1010)
    return found


def _header_lines(fields):
    lines = ["%s: %s" % field for field in fields]
    for line in lines:
        if not _HEADER.fullmatch(line):
            raise ValueError("header %r cannot be sent" % line)
    return lines


def _head_bytes(lines):
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
