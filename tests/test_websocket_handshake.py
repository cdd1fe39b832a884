"""The HTTP upgrade: both sides, plain requests, every rule broken once, seeded fuzz."""

import random

import pytest

from feeder.errors import ProtocolError
from feeder.websocket import ClientHandshake, DeflateOptions, ServerHandshake, http_response
from feeder.websocket.handshake import MAX_HEAD_BYTES, MAX_HEADERS
from test_websocket_connection import deliveries

# RFC 6455 §1.2: its key and the answer to it
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
RESPONSE = ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Accept: %s\r\n\r\n" % ACCEPT).encode()
REQUEST = ("GET /ws/btcusdt@trade?x=1 HTTP/1.1\r\nHost: venue:9443\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % KEY).encode()


def client(**options):
    return ClientHandshake("venue:9443", "/ws/btcusdt@trade?x=1", KEY, **options)


def receive(machine, pieces):
    """Feed pieces until there is an answer; return it and the pieces that were not needed, joined."""
    pieces = list(pieces)
    while pieces:
        got = machine.receive(pieces.pop(0))
        if got is not None:
            return got, b"".join(pieces)
    return None, b""


def test_the_request():
    assert client().request == REQUEST
    more = client(headers=[("User-Agent", "feeder")], deflate=DeflateOptions(True, False, 10, 9)).request.decode()
    assert more.split("\r\n")[6:] == [
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; server_max_window_bits=10; "
        "client_max_window_bits=9", "User-Agent: feeder", "", ""]
    assert b"permessage-deflate; client_max_window_bits\r\n" in client(deflate=DeflateOptions()).request


def test_the_answer_in_every_delivery():
    for pieces in deliveries(RESPONSE + b"\x81\x02hi"):
        handshake = client()
        rest, unread = receive(handshake, pieces)
        assert rest + unread == b"\x81\x02hi"
        assert handshake.headers == {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": ACCEPT}
        assert handshake.status == 101 and handshake.deflate is None


def changed(old, new):
    assert old in RESPONSE
    return RESPONSE.replace(old, new)


def extended(value):
    return changed(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: " + value + b"\r\n\r\n")


@pytest.mark.parametrize("response", (
    changed(b"Upgrade: websocket", b"uPGRADE:WebSocket \t "),
    changed(b"Connection: Upgrade", b"Connection: keep-alive, upgrade"),
    changed(b"Connection: Upgrade", b"Connection: keep-alive\r\nConnection: Upgrade"),
    changed(b" Switching Protocols", b""),
    changed(b"\r\n\r\n", b"\r\nSet-Cookie: a=\xe9; path=/\r\nX-Empty:\r\n\r\n"),
    changed(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: v2\r\n\r\n"),
))
def test_answers_that_are_fine(response):
    assert client(headers=[("Sec-WebSocket-Protocol", "v1, v2")]).receive(response) == b""


@pytest.mark.parametrize("value, expected", (
    (b"permessage-deflate", DeflateOptions()),
    (b"permessage-deflate ; server_no_context_takeover;client_max_window_bits = 10", DeflateOptions(1, 0, 15, 10)),
    (b'permessage-deflate; server_max_window_bits="9"', DeflateOptions(0, 0, 9, 15)),
    (b"", None),
))
def test_extension_answers(value, expected):
    handshake = client(deflate=DeflateOptions())
    assert handshake.receive(extended(value)) == b""
    assert handshake.deflate == expected


@pytest.mark.parametrize("response, words", (
    (b"SSH-2.0-OpenSSH_9\r\n\r\n", "first line is 'SSH"),
    (changed(b"HTTP/1.1 101", b"HTTP/1.0 101"), "HTTP/1.0"),
    (changed(b"HTTP/1.1 101", b"HTTP/2 101"), "does not speak"),
    (changed(b"HTTP/1.1 101", b"HTTP/1.1 1O1"), "does not speak"),
    (changed(b"Upgrade: websocket\r\n", b""), "Upgrade is None"),
    (changed(b"websocket\r\n", b"h2c\r\n"), "Upgrade is 'h2c'"),
    (changed(b"Connection: Upgrade", b"Connection: close"), "Connection is 'close'"),
    (changed(b"Connection: Upgrade", b"Connection: upgraded"), "Connection is"),
    (changed(ACCEPT.encode(), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOO="), "Sec-WebSocket-Accept is"),
    (changed(b"\r\n\r\n", b"\r\nSec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n\r\n"), "Sec-WebSocket-Accept is"),
    (changed(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: v3\r\n\r\n"), "subprotocol 'v3' was not asked for"),
    (extended(b"x-webkit-deflate-frame"), "extension 'x-webkit-deflate-frame' was not asked for"),
    (extended(b"permessage-deflate, permessage-deflate"), "answered twice"),
    (extended(b"permessage-deflate; client_max_window_bits"), "no value"),
    (extended(b"permessage-deflate;"), "malformed"),
    (extended(b"permessage-deflate; =1"), "malformed"),
    (extended(b"permessage-deflate=1"), "malformed"),
    (extended(b"permessage-deflate server_no_context_takeover"), "malformed"),
    (extended(b'permessage-deflate; server_max_window_bits="9'), "malformed"),
    (changed(b"Upgrade: websocket", b"Upgrade : websocket"), "malformed"),
    (changed(b"Upgrade: websocket", b"Upgrade: web\r\n socket"), "malformed"),
    (changed(b"Upgrade: websocket", b"Upgrade: web\x00socket"), "malformed"),
    (changed(b"Upgrade: websocket\r\n", b"Upgrade: websocket\n"), "malformed"),
    (changed(b"Upgrade: websocket", b"no colon"), "malformed"),
    (changed(b"\r\n\r\n", b"\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n"), "larger than the limit of 16384 bytes"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES, "larger than the limit of 16384 bytes"),
    (changed(b"\r\n\r\n", b"\r\nX: 1" * (MAX_HEADERS - 2) + b"\r\n\r\n"), "101 headers, the limit is 100"),
))
def test_answers_that_are_refused(response, words):
    for pieces in ([response], [response[:20], response[20:]], [response[i:i + 1] for i in range(len(response))]):
        with pytest.raises(ProtocolError) as caught:
            receive(client(deflate=DeflateOptions()), pieces)
        assert words in str(caught.value)


def test_a_refusal_names_status_reason_and_body():
    body = b'{"code":-1003,"msg":"Too many requests"}'
    handshake = client()
    with pytest.raises(ProtocolError) as caught:
        handshake.receive(http_response(429, body, headers=[("Retry-After", "7")]))
    assert str(caught.value) == "handshake: HTTP 429 Too Many Requests; '%s'" % body.decode()
    assert handshake.status == 429 and handshake.headers["retry-after"] == "7"
    with pytest.raises(ProtocolError, match="HTTP 502 Bad Gateway; '.{302}'$"):
        client().receive(http_response(502, b"<html>\r\n" + b"x" * 10000, "text/html")[:9000])
    with pytest.raises(ProtocolError, match="HTTP 403 $"):
        client().receive(b"HTTP/1.1 403\r\n\r\n")


def test_redirects_are_refused_by_name():
    with pytest.raises(ProtocolError, match=r"HTTP 302 Found; redirects are not followed \(to wss://elsewhere/\)"):
        client().receive(b"HTTP/1.1 302 Found\r\nLocation: wss://elsewhere/\r\n\r\n")


def test_an_extension_is_refused_when_none_was_offered():
    with pytest.raises(ProtocolError, match="not asked for"):
        client().receive(extended(b"permessage-deflate"))


@pytest.mark.parametrize("arguments", (
    ("venue\r\nX: y", "/", KEY), ("venue", "/a b", KEY), ("venue", "/\r\n", KEY), ("venue", "", KEY),
    ("venue", "/ü", KEY), ("venue", "/", "short"), ("venue", "/", KEY[:-4] + "!!=="), ("venue", "/", "a" * 24),
    ("venue", "/", KEY, [("X", "a\r\nY: b")]), ("venue", "/", KEY, [("X Y", "a")]), ("venue", "/", KEY, [("", "a")]),
))
def test_what_would_break_the_request_raises(arguments):
    with pytest.raises(ValueError):
        ClientHandshake(*arguments)


# Server side

def test_a_request_in_every_delivery():
    for pieces in deliveries(REQUEST + b"\x81\x80abcd"):
        server = ServerHandshake()
        request, unread = receive(server, pieces)
        assert (request.method, request.target) == ("GET", "/ws/btcusdt@trade?x=1")
        assert request.headers["host"] == "venue:9443" and request.is_upgrade
        assert request.body + unread == b"\x81\x80abcd"
        assert server.accept(request) == RESPONSE and server.deflate is None


def test_plain_requests_follow_each_other():
    one = b"GET /api/v3/depth?symbol=BTCUSDT&limit=5000 HTTP/1.1\r\nHost: h\r\n\r\n"
    two = b"DELETE /x HTTP/1.0\r\nContent-Length: 0\r\n\r\n"
    three = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    server = ServerHandshake()
    request = server.receive(one + two + three)
    assert request.target == "/api/v3/depth?symbol=BTCUSDT&limit=5000" and not request.is_upgrade
    assert request.keep_alive and request.body == two + three
    request = server.receive(request.body)
    assert (request.method, request.keep_alive, request.body) == ("DELETE", False, three)
    assert not server.receive(request.body).keep_alive
    assert server.receive(REQUEST[:50]) is None
    assert server.receive(REQUEST[50:]).is_upgrade


def test_responses():
    assert http_response(200, b"{}") == (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                                         b"Content-Length: 2\r\n\r\n{}")
    assert http_response(418, b"", "text/plain", [("Retry-After", "9")]).endswith(b"Retry-After: 9\r\n\r\n")
    assert http_response(599, b"").startswith(b"HTTP/1.1 599 Unknown\r\n")
    with pytest.raises(ValueError):
        http_response(200, b"", headers=[("X", "\r\n")])


def test_more_headers_in_the_acceptance():
    server = ServerHandshake()
    answer = server.accept(server.receive(REQUEST), headers=[("Server", "twin")])
    assert answer.endswith(b"\r\nServer: twin\r\n\r\n") and client().receive(answer) == b""


@pytest.mark.parametrize("request_bytes, words", (
    (b"GET / HTTP/2.0\r\n\r\n", "not HTTP/1.1"),
    (b"GET  / HTTP/1.1\r\n\r\n", "not HTTP/1.1"),
    (b"get / HTTP/1.1\r\n\r\n", "not HTTP/1.1"),
    (b"\x16\x03\x01\x02\x00\r\n\r\n", "not HTTP/1.1"),          # somebody speaks TLS to a plain port
    (b"\r\n\r\n", "not HTTP/1.1"),
    (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "with a body"),
    (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "with a body"),
    (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", "malformed"),
    (b"GET /" + b"x" * MAX_HEAD_BYTES, "larger than the limit"),
))
def test_requests_that_are_refused(request_bytes, words):
    for pieces in ([request_bytes], [request_bytes[i:i + 1] for i in range(len(request_bytes))]):
        with pytest.raises(ProtocolError, match=words):
            receive(ServerHandshake(), pieces)


@pytest.mark.parametrize("old, new, words", (
    (b"GET", b"POST", "must be a GET"),
    (b"HTTP/1.1", b"HTTP/1.0", "must be a GET of HTTP/1.1"),
    (b"Upgrade: websocket\r\n", b"", "Upgrade is None"),
    (b"Connection: Upgrade\r\n", b"", "Connection None"),
    (b"Host: venue:9443\r\n", b"", "no Host"),
    (b"Version: 13", b"Version: 8", "Version is '8'"),
    (b"Sec-WebSocket-Version: 13\r\n", b"", "Version is None"),
    (KEY.encode(), b"", "not the base64 of 16 bytes"),
    (KEY.encode(), KEY.encode()[4:], "not the base64 of 16 bytes"),
    (KEY.encode(), b"*" * 24, "not the base64 of 16 bytes"),
    (KEY.encode(), b"\xe9" * 24, "not the base64 of 16 bytes"),
    (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: ;\r\n\r\n", "malformed"),
))
def test_upgrades_that_are_refused(old, new, words):
    assert old in REQUEST
    server = ServerHandshake(DeflateOptions())
    with pytest.raises(ProtocolError, match=words):
        server.accept(server.receive(REQUEST.replace(old, new, 1)))


def fuzz(iterations, seed):
    """Mutated heads raise ProtocolError or nothing."""
    rng = random.Random(seed)
    response = extended(b"permessage-deflate; server_max_window_bits=9")
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    outcomes = {"fine": 0, "refused": 0}
    for i in range(iterations):
        data = bytearray((response, request)[i % 2])
        for _ in range(rng.choice((0, 1, 1, 3))):
            at = rng.randrange(len(data))
            data[at:at + rng.randrange(3)] = bytes(rng.randrange(256) for _ in range(rng.randrange(3)))
        cut = rng.randrange(len(data) + 1)
        try:
            if i % 2:
                server = ServerHandshake(DeflateOptions())
                got, _ = receive(server, [data[:cut], data[cut:]])
                if got:
                    server.accept(got)
            else:
                receive(client(deflate=DeflateOptions()), [data[:cut], data[cut:]])
            outcomes["fine"] += 1
        except ProtocolError:
            outcomes["refused"] += 1
    return outcomes


def test_fuzz():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    outcomes = fuzz(4000, seed)
    assert min(outcomes.values()) > 500


@pytest.mark.stress
def test_fuzz_long():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    fuzz(100000, seed)
