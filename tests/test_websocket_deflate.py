"""permessage-deflate: negotiation, both directions under every option, hostile streams, limits."""

import itertools
import json
import random
import tracemalloc
import zlib

import pytest

from feeder.errors import ProtocolError
from feeder.websocket import (BINARY, CLIENT, PING, SERVER, TEXT, ClientHandshake, Connection, DeflateOptions,
                              ServerHandshake)
from feeder.websocket.deflate import MAX_FINAL_BLOCKS, Inflater, accept_answer, choose_offer
from test_websocket_connection import deliveries, frame, pack

KEY = "MDEyMzQ1Njc4OWFiY2RlZg=="
BIG = 1 << 20


def negotiate(offer, allowed):
    client, server = ClientHandshake("h", "/", KEY, deflate=offer), ServerHandshake(allowed)
    answer = server.accept(server.receive(client.request))
    assert client.receive(answer) == b""
    assert client.deflate == server.deflate
    return client.deflate


def messages(rng, count):
    for i in range(count):
        levels = [["%d.%02d" % (rng.randrange(60000, 60100), rng.randrange(100)), "%.5f" % rng.random()]
                  for _ in range(rng.choice((0, 1, 20, 400)))]
        yield json.dumps({"e": "depthUpdate", "s": "BTCUSDT", "u": i, "b": levels}).encode()
    yield b""
    yield b"x"
    yield "Grüße 업비트".encode() * 1000
    yield b"\x00" * 300000


@pytest.mark.parametrize("flags", tuple(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("windows", tuple(itertools.product((8, 9, 12, 15), repeat=2)))
def test_both_directions_under_every_option(flags, windows):
    rng = random.Random(1)
    agreed = negotiate(DeflateOptions(*flags, *windows), DeflateOptions())
    client, server = Connection(CLIENT, deflate=agreed), Connection(SERVER, deflate=agreed)
    for sender, receiver, window in ((client, server, windows[1]), (server, client, windows[0])):
        wire, expected = bytearray(), []
        for i, payload in enumerate(messages(rng, 20)):
            opcode = TEXT if i % 3 else BINARY
            wire += sender.send(opcode, payload, compress=i % 5 != 4) + sender.send(PING, b"p")
            expected += [(opcode, payload), (PING, b"p")]
        plain_bytes = sum(len(payload) for _, payload in expected)
        assert (len(wire) < plain_bytes / 2) == (window > 8)    # 8: zlib cannot, so it is sent as it is
        got, at = [], 0
        while at < len(wire):
            size = rng.choice((1, 7, 100, 20000))
            got += receiver.receive(wire[at:at + size])
            at += size
        assert receiver.fault is None and got == expected


def test_context_is_kept_or_not():
    payload = json.dumps({"symbol": "BTCUSDT", "random": random.Random(1).getrandbits(2000)}).encode()
    for kept, options in ((True, DeflateOptions()), (False, DeflateOptions(server_no_context_takeover=True))):
        server, client = Connection(SERVER, deflate=options), Connection(CLIENT, deflate=options)
        first, second = server.send(TEXT, payload), server.send(TEXT, payload)
        assert (len(second) < len(first) / 5) == kept
        assert client.receive(first + second) == [(TEXT, payload)] * 2


# Negotiation

@pytest.mark.parametrize("offer, allowed, agreed", (
    (DeflateOptions(), DeflateOptions(), DeflateOptions()),
    (DeflateOptions(True, True, 9, 10), DeflateOptions(), DeflateOptions(True, True, 9, 10)),
    (DeflateOptions(), DeflateOptions(True, True, 9, 10), DeflateOptions(True, True, 9, 10)),
    (DeflateOptions(False, True, 12, 10), DeflateOptions(True, False, 10, 12), DeflateOptions(True, True, 10, 10)),
    (DeflateOptions(), None, None),
    (None, DeflateOptions(), None),
))
def test_both_sides_agree(offer, allowed, agreed):
    assert negotiate(offer, allowed) == agreed


@pytest.mark.parametrize("offers, value", (
    ([[("client_max_window_bits", None)]], "permessage-deflate; client_max_window_bits=12"),
    ([[]], "permessage-deflate"),                       # not offered, so it may not be answered
    ([[("server_max_window_bits", "15")]], "permessage-deflate; server_max_window_bits=15"),
    ([[("server_max_window_bits", "9")]], "permessage-deflate; server_max_window_bits=9"),
    ([[("server_max_window_bits", "16")], [("server_max_window_bits", "8")]],
     "permessage-deflate; server_max_window_bits=8"),
    ([[("unknown", None)], []], "permessage-deflate"),
    ([[("server_max_window_bits", None)]], None),
    ([[("server_max_window_bits", "09")]], None),
    ([[("server_no_context_takeover", "1")]], None),
    ([[("client_max_window_bits", "7")]], None),
    ([[("server_no_context_takeover", None)] * 2], None),
    ([], None),
))
def test_the_server_takes_the_first_good_offer(offers, value):
    chosen = choose_offer(DeflateOptions(client_max_window_bits=12), offers)
    assert (chosen and chosen[1]) == value


@pytest.mark.parametrize("offered, answer, expected", (
    (DeflateOptions(), [], DeflateOptions()),
    (DeflateOptions(), [("server_no_context_takeover", None), ("client_no_context_takeover", None),
                        ("server_max_window_bits", "8"), ("client_max_window_bits", "9")], DeflateOptions(1, 1, 8, 9)),
    (DeflateOptions(client_no_context_takeover=True, client_max_window_bits=10), [],
     DeflateOptions(False, True, 15, 10)),
    (DeflateOptions(server_max_window_bits=12), [("server_max_window_bits", "11")],
     DeflateOptions(False, False, 11, 15)),
    (DeflateOptions(server_max_window_bits=12), [], "server_max_window_bits is 15, offered 12"),
    (DeflateOptions(server_max_window_bits=12), [("server_max_window_bits", "13")], "offered 12"),
    (DeflateOptions(client_max_window_bits=12), [("client_max_window_bits", "13")], "offered 12"),
    (DeflateOptions(server_no_context_takeover=True), [], "lacks server_no_context_takeover"),
    (DeflateOptions(), [("client_max_window_bits", None)], "no value"),
    (DeflateOptions(), [("server_max_window_bits", "7")], "not known"),
    (DeflateOptions(), [("server_max_window_bits", "x")], "not known"),
    (DeflateOptions(), [("server_no_context_takeover", "true")], "not known"),
    (DeflateOptions(), [("mystery", None)], "not known"),
    (DeflateOptions(), [("server_max_window_bits", "9")] * 2, "twice"),
))
def test_the_client_checks_the_answer(offered, answer, expected):
    if isinstance(expected, DeflateOptions):
        assert accept_answer(offered, answer) == expected
    else:
        with pytest.raises(ProtocolError, match=expected) as caught:
            accept_answer(offered, answer)
        assert caught.value.close_code == 1010


def test_options_are_checked():
    for bits in (7, 16, 0):
        with pytest.raises(ValueError, match="expected 8 to 15"):
            DeflateOptions(server_max_window_bits=bits)


# Streams

@pytest.mark.parametrize("role", (CLIENT, SERVER))
def test_fragments_and_control_frames_in_every_delivery(role):
    text = "Grüße 업비트 ".encode() * 30
    packed = pack(text)
    wire = (frame(role, TEXT, packed[:1], fin=0, rsv=4) + frame(role, PING, b"p") + frame(role, 0, fin=0)
            + frame(role, 0, packed[1:10], fin=0) + frame(role, 0, packed[10:])
            + frame(role, TEXT, b"plain") + frame(role, BINARY, packed, rsv=4) + frame(role, TEXT, b"\x00", rsv=4))
    for pieces in deliveries(wire):
        connection = Connection(role, deflate=DeflateOptions(True, True))
        events = [event for piece in pieces for event in connection.receive(piece)]
        assert events == [(PING, b"p"), (TEXT, text), (TEXT, b"plain"), (BINARY, text), (TEXT, b"")]


# RFC 7692 §7.2.3: the examples; each message is Hello
@pytest.mark.parametrize("wire", (
    "c1 07 f2 48 cd c9 c9 07 00",
    "41 03 f2 48 cd 80 04 c9 c9 07 00",
    "c1 07 f2 48 cd c9 c9 07 00 c1 05 f2 00 11 00 00",
    "c1 0b 00 05 00 fa ff 48 65 6c 6c 6f 00",
    "c1 08 f3 48 cd c9 c9 07 00 00",
    "c1 0d f2 48 05 00 00 00 ff ff ca c9 c9 07 00",
    "c1 08 f3 48 cd c9 c9 07 00 00 c1 07 f2 48 cd c9 c9 07 00",     # a stream goes on after a final block
))
def test_examples_of_the_rfc(wire):
    for pieces in deliveries(bytes.fromhex(wire)):
        connection = Connection(CLIENT, deflate=DeflateOptions())
        events = [event for piece in pieces for event in connection.receive(piece)]
        assert connection.fault is None
        assert events == [(TEXT, b"Hello")] * (1 + wire.count("c1", 5))


@pytest.mark.parametrize("name, payload, close_code, words", (
    ("not deflate", b"\xff\xff\xff", 1007, "broken"),
    ("a distance too far back", b"\x82\x01\x01\x00", 1007, "broken"),
    ("bad utf-8 inside", pack(b"ok\xff"), 1007, "byte 2"),
    ("cut utf-8 inside", pack(b"\xe2\x82"), 1007, "UTF-8"),
    ("over the limit", pack(b"x" * 1001), 1009, "limit"),
    ("far over the limit", pack(b"x" * 1000000), 1009, "limit"),
    ("over the limit on the wire", bytes(1001), 1009, "limit of 1000"),
    ("final blocks without end", b"\x03\x00" * (MAX_FINAL_BLOCKS + 1) + b"\x00", 1007, "final blocks"),
))
def test_hostile_streams(name, payload, close_code, words):
    wire = frame(CLIENT, TEXT, b"good") + frame(CLIENT, TEXT, payload, rsv=4)
    for pieces in deliveries(wire) if len(wire) < 100 else [[wire], [wire[i:i + 1] for i in range(len(wire))]]:
        connection = Connection(CLIENT, max_message_bytes=1000, deflate=DeflateOptions())
        assert [event for piece in pieces for event in connection.receive(piece)] == [(TEXT, b"good")]
        assert connection.fault.close_code == close_code and words in str(connection.fault)
        assert connection.take_outgoing()[:1] == b"\x88"


@pytest.mark.parametrize("fin, rsv, opcode, words", ((1, 4, PING, "RSV1"), (1, 4, 0, "RSV1")))
def test_rsv1_only_at_the_start_of_a_message(fin, rsv, opcode, words):
    connection = Connection(CLIENT, deflate=DeflateOptions())
    packed = pack(b"hello")
    assert connection.receive(frame(CLIENT, TEXT, packed[:3], fin=0, rsv=4)
                              + frame(CLIENT, opcode, packed[3:], fin=fin, rsv=rsv)) == []
    assert words in str(connection.fault)


def test_the_limit_itself_is_allowed():
    connection = Connection(CLIENT, max_message_bytes=1000, deflate=DeflateOptions())
    assert connection.receive(frame(CLIENT, TEXT, pack(b"x" * 1000), rsv=4)) == [(TEXT, b"x" * 1000)]


def test_a_bomb_costs_no_more_memory_than_the_limit():
    bomb = pack(bytes(64 * BIG))
    wire = frame(CLIENT, BINARY, bomb, rsv=4)
    connection = Connection(CLIENT, max_message_bytes=BIG, deflate=DeflateOptions())
    tracemalloc.start()
    assert connection.receive(wire) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert connection.fault.close_code == 1009
    assert peak < 4 * BIG                               # the whole would be 64


def test_an_old_message_is_no_window_after_a_final_block():
    # What a final block hides is refused, not guessed: see Inflater._continue_after_final.
    inflater = Inflater(False)
    assert inflater.feed(pack(b"abcdefgh"), 100, True) == b"abcdefgh"
    second = zlib.compressobj(wbits=-15, zdict=b"abcdefgh")
    body = second.compress(b"abcdefgh") + second.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(ProtocolError, match="too far back"):
        inflater.feed(b"\x03\x00" + body[:-4], 100, True)
