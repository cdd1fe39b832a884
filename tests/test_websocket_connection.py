"""The connection machine: legal and illegal wires in every delivery, limits, closing, and seeded fuzz.

A longer fuzz by hand: python3 -m tests.test_websocket_connection [iterations] [seed]
"""

import random
import struct
import sys
import time
import zlib

import pytest

from feeder.errors import ProtocolError
from feeder.websocket import (BINARY, CLIENT, CLOSE, PING, PONG, SERVER, TEXT, Connection, DeflateOptions)
from feeder.websocket import connection as module

ROLES = (CLIENT, SERVER)
KEY = b"\x11\x82\x73\xf4"


def deliveries(data):
    """Yield the ways bytes may arrive: whole, cut once anywhere, one at a time."""
    yield [data]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]
    yield [data[i:i + 1] for i in range(len(data))]


def frame(role, opcode, payload=b"", fin=1, rsv=0, masked=None, length_form=None, length=None):
    """A frame as the peer of `role` sends it, or a wrong one: the plain model of the machine's own writer."""
    masked = (role == SERVER) if masked is None else masked
    length = len(payload) if length is None else length
    form = length_form or (7 if length < 126 else 16 if length < 65536 else 64)
    head = bytes((fin << 7 | rsv << 4 | opcode, masked << 7 | (length if form == 7 else 126 if form == 16 else 127)))
    head += {7: b"", 16: struct.pack("!H", length & 0xFFFF), 64: struct.pack("!Q", length)}[form]
    if masked:
        return head + KEY + bytes(byte ^ KEY[i % 4] for i, byte in enumerate(payload))
    return head + payload


def play(connection, pieces):
    events = []
    for piece in pieces:
        events += connection.receive(piece)
    return events


def peer_reads(connection, data):
    """What the other end makes of our bytes; fails on any fault in them."""
    peer = Connection(SERVER if connection.role == CLIENT else CLIENT)
    events = peer.receive(data)
    assert peer.fault is None
    return events


# Legal wires

def legal_wire(role):
    frames = [
        (frame(role, TEXT, b"plain"), [(TEXT, b"plain")]),
        (frame(role, TEXT), [(TEXT, b"")]),
        (frame(role, TEXT, "Grüße 𝄞 업비트".encode()), [(TEXT, "Grüße 𝄞 업비트".encode())]),
        (frame(role, BINARY, b"\xff\x00\xfe"), [(BINARY, b"\xff\x00\xfe")]),
        (frame(role, PING, b"now"), [(PING, b"now")]),
        (frame(role, TEXT, "€".encode()[:1], fin=0), []),
        (frame(role, PING), [(PING, b"")]),
        (frame(role, 0, "€".encode()[1:2], fin=0), []),
        (frame(role, 0, fin=0), []),
        (frame(role, PONG, b"unasked"), [(PONG, b"unasked")]),
        (frame(role, 0, "€".encode()[2:]), [(TEXT, "€".encode())]),
        (frame(role, TEXT, b"x" * 126), [(TEXT, b"x" * 126)]),
        (frame(role, BINARY, b"", fin=0), []),
        (frame(role, 0, b""), [(BINARY, b"")]),
        (frame(role, TEXT, b"last"), [(TEXT, b"last")]),
        (frame(role, CLOSE, b"\x03\xe8" + "tschüß".encode()), [(CLOSE, (1000, "tschüß"))]),
    ]
    return b"".join(wire for wire, _ in frames), [event for _, events in frames for event in events]


@pytest.mark.parametrize("role", ROLES)
def test_a_wire_of_everything_in_every_delivery(role):
    wire, expected = legal_wire(role)
    for pieces in deliveries(wire):
        connection = Connection(role)
        assert play(connection, pieces) == expected
        assert connection.fault is None and connection.is_closed
        assert (connection.frames_in, connection.messages_in, connection.bytes_in) == (16, 8, len(wire))
        assert peer_reads(connection, connection.take_outgoing()) == [
            (PONG, b"now"), (PONG, b""), (CLOSE, (1000, ""))]
        assert connection.take_outgoing() == b""


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("length", (0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, 300000))
def test_lengths_both_ways(role, length):
    sender = Connection(SERVER if role == CLIENT else CLIENT)
    for opcode, payload in ((TEXT, b"a" * length), (BINARY, random.Random(length).randbytes(length))):
        wire = sender.send(opcode, payload)
        for size in (len(wire), 65536, 1000):
            receiver = Connection(role)
            assert play(receiver, [wire[i:i + size] for i in range(0, len(wire), size)]) == [(opcode, payload)]
            assert receiver.fault is None


def test_every_bytes_like_object_is_taken_and_may_be_reused():
    connection = Connection(CLIENT)
    wire = frame(CLIENT, TEXT, b"abc") + frame(CLIENT, TEXT, b"defg")[:4]
    buffer = bytearray(wire)
    assert connection.receive(memoryview(buffer)) == [(TEXT, b"abc")]
    buffer[:] = bytes(len(buffer))
    assert connection.receive(bytearray(b"fg")) == [(TEXT, b"defg")]
    assert type(connection.receive(memoryview(wire))[0][1]) is bytes


def test_frames_are_masked_by_the_given_source():
    connection = Connection(CLIENT, mask_source=lambda size: KEY[:size])
    assert connection.send(TEXT, b"hello!") == frame(SERVER, TEXT, b"hello!")
    assert Connection(SERVER).send(TEXT, b"hello!") == b"\x81\x06hello!"


@pytest.mark.parametrize("seed", range(20))
def test_random_legal_scripts_in_random_cuts(seed):
    rng = random.Random(seed)
    role = rng.choice(ROLES)
    wire, expected = bytearray(), []
    for _ in range(200):
        kind = rng.random()
        text = rng.choice(("plain", "Grüße", "업비트", "")) * rng.choice((0, 1, 2, 30, 100))
        if kind < 0.5:
            wire += frame(role, TEXT, text.encode())
            expected.append((TEXT, text.encode()))
        elif kind < 0.6:
            wire += frame(role, PING, text.encode()[:100])
            expected.append((PING, text.encode()[:100]))
        else:
            opcode, parts = rng.choice((TEXT, BINARY)), rng.randrange(1, 6)
            payload = text.encode()
            cuts = [0] + sorted(rng.randrange(len(payload) + 1) for _ in range(parts - 1)) + [len(payload)]
            for i in range(parts):
                wire += frame(role, 0 if i else opcode, payload[cuts[i]:cuts[i + 1]], fin=i == parts - 1)
                if i < parts - 1 and rng.random() < 0.5:
                    wire += frame(role, PONG, b"x")
                    expected.append((PONG, b"x"))
            expected.append((opcode, payload))
    connection = Connection(role)
    pieces, at = [], 0
    while at < len(wire):
        size = rng.choice((1, 2, 3, 10, 100, 5000))
        pieces.append(wire[at:at + size])
        at += size
    assert play(connection, pieces) == expected
    assert connection.fault is None and connection.frames_in >= connection.messages_in


# Illegal wires: name, wire after a good message, close code, words of the fault

def illegal(role):
    def f(*args, **kwargs):
        return frame(role, *args, **kwargs)
    cases = [
        ("rsv1 without deflate", f(TEXT, b"x", rsv=4), 1002, "RSV1"),
        ("rsv2", f(TEXT, b"x", rsv=2), 1002, "reserved bits"),
        ("rsv3", f(PING, b"x", rsv=1), 1002, "reserved bits"),
        ("masking", f(TEXT, b"x", masked=role == CLIENT), 1002, "masked"),
        ("continuation of nothing", f(0, b"x"), 1002, "continues no message"),
        ("message in a message", f(TEXT, b"x", fin=0) + f(TEXT, b"y"), 1002, "new message"),
        ("binary in a message", f(TEXT, b"x", fin=0) + f(BINARY, b"y"), 1002, "new message"),
        ("message again after the last fragment", f(TEXT, b"x", fin=0) + f(0, b"y", fin=0) + f(BINARY, b"z"),
         1002, "new message"),
        ("fragmented ping", f(PING, b"x", fin=0), 1002, "fragmented"),
        ("fragmented close", f(CLOSE, b"", fin=0), 1002, "fragmented"),
        ("long ping", f(PING, b"x" * 126), 1002, "longer than 125"),
        ("long close", f(CLOSE, b"\x03\xe8" + b"x" * 124), 1002, "longer than 125"),
        ("16-bit length of 125", f(TEXT, b"x" * 125, length_form=16), 1002, "shortest"),
        ("64-bit length of 65535", f(TEXT, length=65535, length_form=64), 1002, "shortest"),
        ("length over 63 bits", f(TEXT, length=1 << 63, length_form=64), 1002, "highest bit"),
        ("message over the limit", f(TEXT, length=1001), 1009, "limit of 1000"),
        ("huge message", f(BINARY, length=(1 << 63) - 1), 1009, "limit of 1000"),
        ("fragments over the limit", f(TEXT, b"x" * 600, fin=0) + f(0, length=401), 1009, "limit of 1000"),
        ("bad utf-8", f(TEXT, b"ok\xff"), 1007, "byte 2"),
        ("bad utf-8 in a fragment", f(TEXT, b"abc", fin=0) + f(0, b"\xc3(", fin=0), 1007, "byte 3"),
        ("bad utf-8 across fragments", f(TEXT, b"ab\xe2", fin=0) + f(0, b"\x82", fin=0) + f(0, b"("), 1007, "byte 2"),
        ("cut utf-8", f(TEXT, b"\xe2\x82"), 1007, "byte 0"),
        ("cut utf-8 before an empty last fragment", f(TEXT, b"\xe2\x82", fin=0) + f(0), 1007, "byte 0"),
        ("surrogate", f(TEXT, b"\xed\xa0\x80"), 1007, "byte 0"),
        ("half a close code", f(CLOSE, b"\x03"), 1002, "half a code"),
        ("close reason not utf-8", f(CLOSE, b"\x03\xe8\xff"), 1007, "reason"),
    ]
    cases += [("opcode %d" % opcode, f(opcode, b"x"), 1002, "opcode %d is reserved" % opcode)
              for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)]
    cases += [("close code %d" % code, f(CLOSE, struct.pack("!H", code)), 1002, "close code %d" % code)
              for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)]
    return [(role,) + case for case in cases]


@pytest.mark.parametrize("role, name, wire, close_code, words", illegal(CLIENT) + illegal(SERVER))
def test_illegal_wires(role, name, wire, close_code, words):
    good = frame(role, TEXT, b"good")
    after = frame(role, TEXT, b"never seen")
    ways = deliveries(good + wire + after) if len(wire) < 200 else [[good + wire + after], [good, wire, after]]
    for pieces in ways:
        connection = Connection(role, max_message_bytes=1000)
        assert play(connection, pieces) == [(TEXT, b"good")]
        assert isinstance(connection.fault, ProtocolError)
        assert connection.fault.close_code == close_code
        assert words in str(connection.fault) and str(connection.fault).startswith("WebSocket frame ")
        assert connection.is_closed and not connection.is_open
        (opcode, (code, reason)), = peer_reads(connection, connection.take_outgoing())
        assert (opcode, code, reason) == (CLOSE, close_code, str(connection.fault)[:123])
        assert connection.receive(after) == [] and connection.take_outgoing() == b""


@pytest.mark.parametrize("payload, bad_at", (
    (b"ab\x80", 2), (b"\xc0", 0), (b"\xc1", 0), (b"\xf5", 0), (b"\xff", 0), (b"\xe0\x80", 1), (b"\xed\xa0", 1),
    (b"\xf0\x80", 1), (b"\xf4\x90", 1), (b"\xe2\x82(", 2), ("κόσμε".encode() + b"\xf4\x90", 11)))
def test_text_fails_at_its_first_bad_byte(payload, bad_at):
    wire = frame(CLIENT, TEXT, payload + b"x" * 100, fin=0)
    connection = Connection(CLIENT)
    for i, byte in enumerate(wire):
        assert connection.receive(bytes((byte,))) == []
        assert (connection.fault is not None) == (i >= 2 + bad_at)
    assert str(connection.fault).startswith("WebSocket frame 1: text is not UTF-8")


# Closing

@pytest.mark.parametrize("code", (1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999))
def test_close_codes_travel(code):
    client, server = Connection(CLIENT), Connection(SERVER)
    wire = client.close(code, "because")
    assert not client.is_open and not client.is_closed
    assert server.receive(wire) == [(CLOSE, (code, "because"))]
    assert server.is_closed
    assert client.receive(server.take_outgoing()) == [(CLOSE, (code, ""))]
    assert client.is_closed and client.fault is None and client.take_outgoing() == b""


def test_a_close_without_code_is_answered_without_code():
    connection = Connection(CLIENT)
    assert connection.receive(frame(CLIENT, CLOSE)) == [(CLOSE, (1005, ""))]
    assert peer_reads(connection, connection.take_outgoing()) == [(CLOSE, (1005, ""))]


def test_messages_and_pings_are_served_until_the_peer_closes_too():
    connection = Connection(CLIENT)
    connection.receive(frame(CLIENT, PING, b"1"))
    assert peer_reads(connection, connection.close(1001)) == [(PONG, b"1"), (CLOSE, (1001, ""))]
    assert connection.close() == b""                    # a second one is nothing, not an error
    late = frame(CLIENT, TEXT, b"late") + frame(CLIENT, PING, b"2")
    assert connection.receive(late) == [(TEXT, b"late"), (PING, b"2")]
    assert peer_reads(connection, connection.take_outgoing()) == [(PONG, b"2")]
    assert connection.receive(frame(CLIENT, CLOSE, b"\x03\xe8") + b"\xff\xff garbage") == [(CLOSE, (1000, ""))]
    assert connection.is_closed and connection.fault is None and connection.take_outgoing() == b""


def test_a_fault_after_our_close_sends_no_second_close():
    connection = Connection(CLIENT)
    connection.close()
    connection.receive(b"\xff\xff")
    assert connection.fault and connection.is_closed and connection.take_outgoing() == b""


def test_misuse_raises():
    with pytest.raises(ValueError, match="role"):
        Connection("both")
    connection = Connection(CLIENT)
    for opcode in (0, 3, CLOSE, 11, 0x41):
        with pytest.raises(ValueError, match="opcode"):
            connection.send(opcode, b"")
    with pytest.raises(ValueError, match="at most 125"):
        connection.send(PING, b"x" * 126)
    with pytest.raises(ValueError, match="at most 123"):
        connection.close(1000, "x" * 124)
    for code in (0, 1005, 1006, 1015, 5000, 70000):
        with pytest.raises(ValueError, match="close code"):
            connection.close(code)
    assert connection.is_open
    connection.close()
    with pytest.raises(RuntimeError, match="closing"):
        connection.send(TEXT, b"x")


# Limits

def test_what_waits_is_bounded():
    connection = Connection(CLIENT, max_message_bytes=1000)
    assert connection.receive(frame(CLIENT, TEXT, b"x" * 1000)) == [(TEXT, b"x" * 1000)]    # the limit is allowed
    for _ in range(10000):                              # empty fragments hold nothing
        connection.receive(frame(CLIENT, TEXT if not connection._opcode else 0, fin=0))
    assert not connection._message and not connection._rest and connection.fault is None
    long_ping = frame(CLIENT, PING, b"x" * 125)
    for i in range(len(long_ping) - 1):
        connection.receive(long_ping[i:i + 1])
    assert len(connection._rest) == 126
    assert connection.receive(long_ping[-1:]) == [(PING, b"x" * 125)]


def test_only_the_newest_of_too_many_pings_is_answered():
    connection = Connection(CLIENT)
    wire = b"".join(frame(CLIENT, PING, b"%0100d" % i) for i in range(5000))
    assert len(connection.receive(wire)) == 5000
    outgoing = connection.take_outgoing()
    assert len(outgoing) <= module.MAX_WAITING_PONG_BYTES + 200
    assert peer_reads(connection, outgoing)[-1] == (PONG, b"%0100d" % 4999)


def test_a_large_message_in_small_pieces_costs_linear_time():
    payload = b"x" * (4 << 20)
    wire = frame(CLIENT, TEXT, payload)
    connection = Connection(CLIENT)
    started = time.perf_counter()
    events = play(connection, [wire[i:i + 1024] for i in range(0, len(wire), 1024)])
    assert events == [(TEXT, payload)]
    assert time.perf_counter() - started < 2            # about 10 ms; joined anew at each piece it is over 4 s


# Fuzz: mutated wires never raise, and how they are cut never matters

def pack(payload):
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def base_wire(rng, role, deflate):
    """A few frames, legal or nearly so."""
    wire = bytearray()
    for _ in range(rng.randrange(1, 6)):
        opcode = rng.choice((TEXT, TEXT, TEXT, BINARY, 0, PING, PONG, CLOSE))
        payload = rng.choice((b"", b"{}", b"abc" * 20, "Grüße 업비트".encode(), b"\x03\xe8bye", b"x" * 130,
                              b"\xe2\x82"))
        packed = deflate and opcode in (TEXT, BINARY) and rng.random() < 0.6
        wire += frame(role, opcode, pack(payload) if packed else payload[:125] if opcode >= CLOSE else payload,
                      fin=opcode >= CLOSE or rng.random() < 0.7, rsv=4 if packed else 0)
    return wire


def mutate(rng, wire):
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(wire))
        kind = rng.randrange(4)
        if kind == 0:
            wire[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            wire[at] = rng.randrange(256)
        elif kind == 2:
            wire[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif len(wire) > 4:
            del wire[at:at + rng.randrange(1, 4)]
    return bytes(wire)


def fuzz(iterations, seed):
    """Return how many wires ended in a fault and how many did not."""
    rng = random.Random(seed)
    faults = 0
    for _ in range(iterations):
        role = rng.choice(ROLES)
        deflate = rng.choice((None, DeflateOptions(True, True)))
        wire = mutate(rng, base_wire(rng, role, deflate))
        ends = []
        cut = rng.randrange(len(wire) + 1)
        for pieces in ([wire], [wire[:cut], wire[cut:]], [wire[i:i + 1] for i in range(len(wire))]):
            connection = Connection(role, max_message_bytes=1000, deflate=deflate)
            events = play(connection, pieces)
            assert connection.fault is None or type(connection.fault) is ProtocolError
            assert len(connection._message) <= 1000 and len(connection._rest) <= 139
            peer_reads(connection, connection.take_outgoing())
            ends.append((events, connection.fault is None, connection.is_closed, connection.frames_in))
        assert ends[0] == ends[1] == ends[2], "seed %d, wire %s" % (seed, wire.hex())
        faults += connection.fault is not None
    return faults, iterations - faults


def test_fuzz():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    faults, fine = fuzz(3000, seed)
    assert faults > 500 and fine > 500                  # the mutations reach both


@pytest.mark.stress
def test_fuzz_long():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    fuzz(100000, seed)


def test_fuzz_can_fail(monkeypatch):
    def forgets_to_check(self, payload, events):
        events.append((CLOSE, (struct.unpack_from("!H", payload), "")))
    monkeypatch.setattr(Connection, "_take_close", forgets_to_check)
    with pytest.raises(struct.error):
        fuzz(2000, 1)


if __name__ == "__main__":
    iterations, seed = (int(text) for text in (sys.argv[1:] + ["100000", "1"][len(sys.argv) - 1:]))
    print("iterations %d, seed %d: %d faults, %d fine" % ((iterations, seed) + fuzz(iterations, seed)))
