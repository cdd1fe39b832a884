"""The packet codec against docs/protocol.md: the tables there are read, and make a second, plain decoder.

Every vector is checked both ways; golden packets guard version 1 (tests/golden_v1.json; it is made once, with
`python3 -m tests.test_packet golden`, and never again for the same version). Longer fuzz, with a seed of one's own:
`python3 -m tests.test_packet 1000000 7`.
"""

import json
import random
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from feeder import book, fixed, packet, receiver
from feeder.errors import FeederError, PacketError, PrecisionError, RangeError
from feeder.instrument import SYMBOL_BYTES, VENUE_BYTES, Instrument
from feeder.message import BUY, LIVE, REASONS, SELL, SIDE_NAMES, STALE, STATE_NAMES, SYNCING
from feeder.packet import (ALL_INSTRUMENTS, BBO, DEFINITION, EDITION_SHIFT, END, FIRST, HEARTBEAT, INCREMENT, LAST,
                           MAX_PACKET_BYTES, REFRESH, SNAPSHOT, STATUS, TRADE, TYPE_NAMES, Bbo, Book, Definition, Encoder,
                           LoopEncoder, OrderBookItem, Padding, Round, Status, Trade, TradeItem, decode)
from feeder.seal import Seal

HERE = Path(__file__).parent
PROTOCOL = (HERE.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
GOLDEN = HERE / "golden_v1.json"

SESSION = 1_700_000_000 * 10**9
SEND_NS = SESSION + 67_423_509
TOP = 2**63 - 1


# -- the page, and the decoder it makes ----------------------------------------------------------------------

def tables():
    """Return {heading: [rows of its first table]}, and under (heading, first column's name) each table."""
    found, heading, rows = {}, None, None
    for line in PROTOCOL.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        if not line.startswith("|"):
            rows = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if rows is None:
            rows = []
            for key in (heading, (heading, cells[1])):
                found.setdefault(key, rows)
        elif not set(cells[0]) <= set("-"):
            rows.append(cells)
    return found


TABLES = tables()
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i8": "b", "i64": "q"}


class Layout:
    """One table of offsets, and a decoder that follows it field by field."""

    def __init__(self, heading):
        self.fields = []                       # (offset, bytes, type, name)
        for offset, size, kind, name, _ in TABLES[heading]:
            self.fields.append((int(offset), int(size), kind, name))
        self.size = sum(field[1] for field in self.fields)
        at = 0
        for offset, size, kind, name in self.fields:
            assert offset == at, f"{heading}: {name} is at {offset}, the fields before it end at {at}"
            if kind in CODES:
                assert struct.calcsize(CODES[kind]) == size and offset % size == 0, f"{heading}: {name}"
            at += size

    def format(self):
        return "<" + "".join(CODES.get(kind) or (f"{size}s" if kind == "text" else f"{size}x")
                             for _, size, kind, _ in self.fields)

    def read(self, data, at):
        values = {}
        for offset, size, kind, name in self.fields:
            piece = bytes(data[at + offset:at + offset + size])
            if kind == "text":
                values[name] = piece.rstrip(b"\0").decode("utf-8", "replace")
            elif kind in CODES:
                values[name] = int.from_bytes(piece, "little", signed=kind[0] == "i")
        return values


HEADER, MESSAGE, ITEM, TRADE_ITEM, BBO_BODY, DEFINITION_BODY, STATUS_BODY, ROUND_BODY = map(
    Layout, ("Packet header", "Message header", "OrderBookItem", "TradeItem", "Bbo", "Definition", "Status", "Round"))
BODIES = {"trade": TRADE_ITEM, "bbo": BBO_BODY, "definition": DEFINITION_BODY, "status": STATUS_BODY,
          "round": ROUND_BODY}
IN_THE_LOOP, SIGNED = 4, 16
TYPES = {int(row[0]): row[1] for row in TABLES["Message types"]}
STATES = {int(row[0]) for row in TABLES["States and reasons"]}


def model(data):
    """Decode by the page alone: (header, [message]) as dicts, None where the page calls the datagram malformed."""
    if len(data) < HEADER.size:
        return None
    header = HEADER.read(data, 0)
    if header["magic"] != 0x31524446 or header["version"] != 1 or header["packet_bytes"] != len(data):
        return None
    flags, stop = header["flags"], len(data) - (16 if header["flags"] & SIGNED else 0)
    if stop < HEADER.size or flags & IN_THE_LOOP and (flags & 3 or not header["message_count"]):
        return None
    at, messages = HEADER.size, []
    for _ in range(header["message_count"]):
        if at + MESSAGE.size > stop:
            return None
        message = MESSAGE.read(data, at)
        size = message["message_bytes"]
        if size < MESSAGE.size or size % 8 or at + size > stop:
            return None
        kind = TYPES.get(message["type"])
        body_at, body_size = at + MESSAGE.size, size - MESSAGE.size
        at += size
        if kind is None:
            continue
        if kind == "padding":
            messages.append(message)
            continue
        if kind in ("snapshot", "increment"):
            if body_size % ITEM.size or message["bid_count"] > body_size // ITEM.size:
                return None
            levels = [ITEM.read(data, where) for where in range(body_at, at, ITEM.size)]
            if any(level["quantity"] < 0 for level in levels):
                return None
            message["bids"], message["asks"] = levels[:message["bid_count"]], levels[message["bid_count"]:]
        else:
            if body_size != BODIES[kind].size:
                return None
            message.update(BODIES[kind].read(data, body_at))
            if kind == "trade" and message["side"] not in (1, 2):
                return None
            if kind == "definition" and not all(-18 <= message[name] <= 0 for name in
                                                ("price_exponent", "quantity_exponent")):
                return None
        is_stateless = kind in ("definition", "round") or kind == "status" and message["instrument_id"] == 0xFFFFFFFF
        if message["state"] not in STATES and not is_stateless:
            return None
        messages.append(message)
    return (header, messages) if at == stop else None


def flat(levels):
    return tuple(value for level in levels for value in (level["price"], level["quantity"]))


def in_our_words(message):
    """Return a message of the model as the class that feeder.packet makes of it."""
    common = [message[name] for name in ("instrument_id", "venue_sequence", "event_ns", "recv_ns")]
    state = [message["state"], message["epoch"]]
    kind, edition = TYPES[message["type"]], message["flags"] >> 5
    if kind in ("snapshot", "increment"):
        return Book(message["type"], *common, message["flags"], *state, flat(message["bids"]), flat(message["asks"]))
    if kind == "trade":
        return Trade(*common, *state, TradeItem(*[message[name] for name in ("trade_id", "price", "quantity", "side")]),
                     edition)
    if kind == "bbo":
        return Bbo(*common, *state, OrderBookItem(message["bid_price"], message["bid_quantity"]),
                   OrderBookItem(message["ask_price"], message["ask_quantity"]), edition)
    if kind == "definition":
        return Definition(common[0], *[message[name] for name in (
            "venue", "symbol", "name", "price_exponent", "quantity_exponent", "depth", "tick", "lot", "shared")], edition)
    if kind == "round":
        return Round(common[0], message["number"], message["instrument_count"])
    if kind == "padding":
        return Padding(common[0])
    return Status(common[0], common[1], common[3], *state,
                  *[message[name] for name in ("reason", "connected", "venue", "text")], edition)


def agree(data):
    """Assert that the codec and the page say the same of `data`; return the Packet, or None if malformed."""
    expected = model(data)
    try:
        found = decode(data)
    except PacketError as error:
        assert expected is None, f"{error}, but the page allows it: {bytes(data).hex()}"
        return None
    assert expected is not None, f"decoded, but the page calls it malformed: {bytes(data).hex()}"
    header, messages = expected
    assert found[:6] + found[7:] == tuple(header[name] for name in (
        "channel", "flags", "session", "sequence", "send_ns", "message_count", "loop"))
    assert found.messages == [in_our_words(message) for message in messages]
    return found


def test_layouts_are_those_of_the_page():
    for layout, ours, size in ((HEADER, packet.PACKET, 40), (MESSAGE, packet.MESSAGE, 40),
                               (ITEM, packet.ORDER_BOOK_ITEM, 16), (TRADE_ITEM, packet.TRADE_ITEM, 32),
                               (BBO_BODY, packet.BBO_BODY, 32), (DEFINITION_BODY, packet.DEFINITION_BODY, 112),
                               (STATUS_BODY, packet.STATUS_BODY, 64), (ROUND_BODY, packet.ROUND_BODY, 16)):
        assert layout.size == ours.size == struct.calcsize(layout.format()) == size
    assert packet.TRADE_MESSAGE.size == MESSAGE.size + TRADE_ITEM.size
    assert packet.BBO_MESSAGE.size == MESSAGE.size + BBO_BODY.size
    names = {name: size for _, size, _, name in DEFINITION_BODY.fields}
    assert (names["venue"], names["symbol"], names["name"]) == (VENUE_BYTES, SYMBOL_BYTES, SYMBOL_BYTES)


def test_codes_are_those_of_the_page():
    assert TYPES == TYPE_NAMES
    for code, name, size, _ in TABLES["Message types"]:
        assert size == (str(BODIES[name].size) if name in BODIES else "any" if name == "padding"
                        else f"{ITEM.size} x levels")
        assert getattr(packet, name.upper()) == int(code)

    def numbers(rows):
        return {int(row[0]): row[1] for row in rows}

    assert numbers(TABLES["States and reasons", "state"]) == STATE_NAMES
    assert numbers(TABLES["States and reasons", "reason"]) == dict(enumerate(REASONS))
    assert numbers(TABLES["TradeItem", "side"]) == SIDE_NAMES
    for heading, ours in (("Packet flags", ("HEARTBEAT", "END", "SNAPSHOTS", "RETRANSMITTED", "SIGNED")), ("Message flags", ("LAST", "FIRST", "REFRESH"))):
        assert numbers(TABLES[heading]) == {getattr(packet, name): name for name in ours}
    assert f"0x{packet.MAGIC:08X}" in TABLES["Packet header"][0][4] and packet.MAGIC.to_bytes(4, "little") == b"FDR1"
    assert packet.VERSION == 1 and f"0x{ALL_INSTRUMENTS:X}" in PROTOCOL


def test_limits_are_those_of_the_page():
    smallest, default, largest, levels, channels, _, deep, silence_s = [int(row[1]) for row in TABLES["Limits"]]
    assert (default, largest, channels) == (packet.DEFAULT_PACKET_BYTES, MAX_PACKET_BYTES, 2**16)
    assert deep == book.MAX_LEVELS and silence_s * 10**9 == receiver.SILENCE_NS and levels == (1472 - 80) // 16
    for size in (smallest, largest):
        encoder_of([], packet_bytes=size)
    for size in (smallest - 1, largest + 1, 0, -1):
        with pytest.raises(FeederError, match=f"packet_bytes is {size}, must be 256 to 65507"):
            encoder_of([], packet_bytes=size)


def test_example_of_the_page():
    lines = re.search(r"```hex\n(.*?)```", PROTOCOL, re.DOTALL).group(1).splitlines()
    data = b""
    for line in lines:
        offset, rest = line.split("  ")[:2]
        assert int(offset) == len(data)
        data += bytes.fromhex(rest)
    assert data == encode(lambda encoder: example(encoder), sequence=41)[0]
    found = agree(data)
    assert (found.channel, found.sequence, found.message_count, len(data)) == (7, 41, 2, 184)
    notes = {int(line[:3]): line.split("  ")[2] for line in lines}
    change, trade = found.messages
    assert str(found.session) in notes[8] and str(found.send_ns) in notes[24]
    for at, message in ((40, change), (112, trade)):
        assert str(message.venue_sequence) in notes[at + 8]
        assert str(message.event_ns) in notes[at + 16] and str(message.recv_ns) in notes[at + 24]
    for at, value in ((80, change.bids[0]), (96, change.asks[0]), (104, change.asks[1]), (160, trade.item.price),
                      (168, trade.item.quantity)):
        assert notes[at].split()[-1] == fixed.to_text(value, 8)
    assert change.bids[1] == 0 and trade.item.side == SELL and change.flags == LAST


def example(encoder):
    bid = 61_837_64 * 10**6
    encoder.levels(INCREMENT, 3, LIVE, 2, 654_321, SESSION + 61_000_000, SESSION + 67_400_000,
                   [bid, 0], [bid + 2 * 10**6, 50_000_000])
    encoder.trade(3, LIVE, 2, 987_654, SESSION + 62_000_000, SESSION + 67_410_000, 987_654, bid, 125_000, SELL)
    encoder.flush()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_structs_of_the_page_have_these_offsets(tmp_path):
    source = re.search(r"```c\n(.*?)```", PROTOCOL, re.DOTALL).group(1) + "#include <stddef.h>\n"
    for name, layout in (("packet_header", HEADER), ("message_header", MESSAGE), ("order_book_item", ITEM),
                         ("trade_item", TRADE_ITEM), ("bbo", BBO_BODY), ("definition", DEFINITION_BODY),
                         ("status", STATUS_BODY)):
        source += f'_Static_assert(sizeof(struct {name}) == {layout.size}, "{name}");\n'
        for offset, _, kind, field in layout.fields:
            if kind != "zero":
                source += f'_Static_assert(offsetof(struct {name}, {field}) == {offset}, "{name}.{field}");\n'
    (tmp_path / "layout.c").write_text(source)
    done = subprocess.run(["cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", str(tmp_path / "layout.c")],
                          stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- vectors, both ways --------------------------------------------------------------------------------------

def encoder_of(out, channel=7, **more):
    return Encoder(SESSION, channel, lambda view: out.append(bytes(view)), lambda: SEND_NS, **more)


def encode(fill, sequence=1, **more):
    out = []
    encoder = encoder_of(out, **more)
    encoder.sequence = sequence
    fill(encoder)
    encoder.flush()
    return out


def instrument(**more):
    found = Instrument(more.pop("instrument_id", 3), more.pop("venue", "binance_spot"), more.pop("symbol", "BTCUSDT"),
                       more.pop("name", "BTC/USDT"), more.pop("price_decimals", 2), more.pop("quantity_decimals", 5),
                       more.pop("depth", 20))
    found.shared = more.pop("shared", 0)
    assert not more
    return found


COMMON = (3, LIVE, 2, 654_321, SESSION + 1, SESSION + 2)       # id, state, epoch, venue_sequence, event, recv
WORDS = (3, 654_321, SESSION + 1, SESSION + 2, LIVE, 2)        # the same as they stand in Trade and Bbo
EDGE = (ALL_INSTRUMENTS - 1, STALE, 2**32 - 1, 2**64 - 1, -TOP - 1, TOP)
EDGE_WORDS = (ALL_INSTRUMENTS - 1, 2**64 - 1, -TOP - 1, TOP, STALE, 2**32 - 1)

VECTORS = {
    "definition": (
        lambda encoder: encoder.definition(instrument(), tick=10**6, lot=10**3),
        [Definition(3, "binance_spot", "BTCUSDT", "BTC/USDT", -8, -8, 20, 10**6, 10**3)]),
    "definition_of_odd_scales": (
        lambda encoder: encoder.definition(instrument(price_decimals=11, quantity_decimals=18, depth=0)),
        [Definition(3, "binance_spot", "BTCUSDT", "BTC/USDT", -11, -18, 0, 0, 0)]),
    "definition_of_full_fields": (
        lambda encoder: encoder.definition(
            instrument(venue="v" * 24, symbol="币安人生" * 2 + "USDT1234", name="é" * 17)),
        [Definition(3, "v" * 24, "币安人生" * 2 + "USDT1234", "é" * 16, -8, -8, 20, 0, 0)]),
    "snapshot": (
        lambda encoder: encoder.levels(SNAPSHOT, *COMMON, [500, 7, 499, 1], [501, 2]),
        [Book(SNAPSHOT, *WORDS[:4], LAST | FIRST, LIVE, 2, (500, 7, 499, 1), (501, 2))]),
    "snapshot_refresh": (
        lambda encoder: encoder.levels(SNAPSHOT, *COMMON, [500, 7], [], REFRESH),
        [Book(SNAPSHOT, *WORDS[:4], LAST | FIRST | REFRESH, LIVE, 2, (500, 7), ())]),
    "snapshot_without_levels": (
        lambda encoder: encoder.levels(SNAPSHOT, *COMMON, [], []),
        [Book(SNAPSHOT, *WORDS[:4], LAST | FIRST, LIVE, 2, (), ())]),
    "increment": (
        lambda encoder: encoder.levels(INCREMENT, *COMMON, [500, 0], [501, 2, -TOP, TOP]),
        [Book(INCREMENT, *WORDS[:4], LAST, LIVE, 2, (500, 0), (501, 2, -TOP, TOP))]),
    "trade": (
        lambda encoder: encoder.trade(*COMMON, 987_654, 500, 7, BUY),
        [Trade(*WORDS, TradeItem(987_654, 500, 7, BUY))]),
    "trade_of_extremes": (
        lambda encoder: encoder.trade(*EDGE, 2**64 - 1, -TOP, TOP, SELL),
        [Trade(*EDGE_WORDS, TradeItem(2**64 - 1, -TOP, TOP, SELL))]),
    "bbo": (
        lambda encoder: encoder.bbo(*COMMON, 500, 7, 501, 2),
        [Bbo(*WORDS, OrderBookItem(500, 7), OrderBookItem(501, 2))]),
    "bbo_of_extremes": (
        lambda encoder: encoder.bbo(*EDGE, -TOP, TOP, TOP, 0),
        [Bbo(*EDGE_WORDS, OrderBookItem(-TOP, TOP), OrderBookItem(TOP, 0))]),
    "status": (
        lambda encoder: encoder.status(3, STALE, 2, 654_321, SESSION + 2, 2, text="gap"),
        [Status(3, 654_321, SESSION + 2, STALE, 2, 2, 1, "", "gap")]),
    "status_of_a_venue": (
        lambda encoder: encoder.status(ALL_INSTRUMENTS, 0, 0, 0, SESSION + 2, 3, 0, "binance_usdm", "x" * 40),
        [Status(ALL_INSTRUMENTS, 0, SESSION + 2, 0, 0, 3, 0, "binance_usdm", "x" * 32)]),
    "several": (
        lambda encoder: (encoder.definition(instrument()), encoder.status(3, SYNCING, 0, 0, 0, 1),
                         encoder.levels(SNAPSHOT, *COMMON, [500, 7], [501, 2]), encoder.bbo(*COMMON, 500, 7, 501, 2),
                         encoder.trade(*COMMON, 1, 500, 7, BUY)),
        [Definition(3, "binance_spot", "BTCUSDT", "BTC/USDT", -8, -8, 20, 0, 0),
         Status(3, 0, 0, SYNCING, 0, 1, 1, "", ""),
         Book(SNAPSHOT, *WORDS[:4], LAST | FIRST, LIVE, 2, (500, 7), (501, 2)),
         Bbo(*WORDS, OrderBookItem(500, 7), OrderBookItem(501, 2)), Trade(*WORDS, TradeItem(1, 500, 7, BUY))]),
    "trade_of_another_edition": (
        lambda encoder: encoder.trade(*COMMON, 987_654, 500, 7, BUY, LAST | 5 << EDITION_SHIFT),
        [Trade(*WORDS, TradeItem(987_654, 500, 7, BUY), 5)]),
    "definition_of_another_edition": (
        lambda encoder: encoder.definition(instrument(shared=7), 10**6, 10**3, LAST | 7 << EDITION_SHIFT),
        [Definition(3, "binance_spot", "BTCUSDT", "BTC/USDT", -8, -8, 20, 10**6, 10**3, 7, 7)]),
    "heartbeat": (lambda encoder: encoder.heartbeat(), []),
    "end": (lambda encoder: encoder.end(), []),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_both_ways_and_against_the_golden_packets(name):
    fill, messages = VECTORS[name]
    data, = encode(fill, sequence=41)
    assert data.hex() == json.loads(GOLDEN.read_text())[name], "version 1 on the wire has changed"
    for kind in (bytes, bytearray, memoryview):
        found = decode(kind(data))
        assert found.messages == messages
        assert found[:6] == (7, {"heartbeat": HEARTBEAT, "end": END}.get(name, 0), SESSION, 41, SEND_NS, len(messages))
    agree(data)


def loop_packet():
    out = []
    encoder = LoopEncoder(SESSION, 7, lambda view: out.append(bytes(view)), lambda: SEND_NS, 1472, None, lambda: 41)
    encoder.round(9, 1)
    encoder.definition(instrument(), 10**6, 10**3)
    encoder.levels(SNAPSHOT, *COMMON, [500, 7], [501, 2], REFRESH)
    encoder.flush()
    return out[0]


def signed_packet():
    data, = encode(VECTORS["trade"][0], sequence=41, seal=Seal(bytes(range(32))))
    return data


BESIDES = {"loop": loop_packet, "signed": signed_packet}         # golden packets of other encoders


def test_golden_packets_of_the_loop_and_signed():
    golden = json.loads(GOLDEN.read_text())
    for name, make in BESIDES.items():
        assert make().hex() == golden[name], "version 1 on the wire has changed"
    found = agree(loop_packet())
    assert (found.flags, found.sequence, found.loop) == (packet.SNAPSHOTS, 41, 1)
    assert [type(message) for message in found.messages] == [Round, Definition, Book]
    assert agree(signed_packet()).messages == VECTORS["trade"][1] and Seal(bytes(range(32))).verify(signed_packet())


def test_golden_packets_are_all_there():
    assert set(json.loads(GOLDEN.read_text())) == set(VECTORS) | set(BESIDES)


def test_items_both_ways():
    level = OrderBookItem(-5, TOP)
    assert level.pack() == bytes.fromhex("fbffffffffffffff" "ffffffffffffff7f")
    assert OrderBookItem.unpack(b"junk" + level.pack(), 4) == level
    trade = TradeItem(2**64 - 1, 1, 2, SELL)
    assert trade.pack() == bytes.fromhex("ffffffffffffffff" "0100000000000000" "0200000000000000" "0200000000000000")
    assert TradeItem.unpack(trade.pack()) == trade
    assert len(level.pack()) == 16 and len(trade.pack()) == 32
    for item in (level, trade):
        assert ITEM.read(level.pack(), 0) == level._asdict() and TRADE_ITEM.read(trade.pack(), 0) == trade._asdict()
        assert not hasattr(item, "__dict__")


def test_items_from_scaled():
    assert OrderBookItem.from_scaled(6_183_764_000_000, 50_000_000) == (6_183_764_000_000, 50_000_000)   # the likely 8
    assert OrderBookItem.from_scaled(6_183_764, 5, 2, 1) == (6_183_764_000_000, 50_000_000)       # fewer multiply
    assert OrderBookItem.from_scaled(12_300, 0, 10, 18) == (123, 0)                       # more, all zeros
    assert TradeItem.from_scaled(9, 6_183_764, 125, SELL, 2, 5) == (9, 6_183_764_000_000, 125_000, SELL)
    assert isinstance(TradeItem.from_scaled(9, 1, 1, BUY), TradeItem)
    assert isinstance(OrderBookItem.from_scaled(1, 1), OrderBookItem)
    for price, quantity, scales, error in ((1, 0, (9, 8), PrecisionError), (0, 1, (8, 13), PrecisionError),
                                           (TOP, 0, (7, 8), RangeError), (0, TOP, (8, 0), RangeError),
                                           (TOP + 1, 0, (8, 8), RangeError), (0, -TOP - 1, (8, 8), RangeError)):
        with pytest.raises(error):
            OrderBookItem.from_scaled(price, quantity, *scales)
        with pytest.raises(error):
            TradeItem.from_scaled(1, price, quantity, BUY, *scales)


# -- packets and their numbers -------------------------------------------------------------------------------

def test_sequences_count_messages_and_nothing_is_sent_for_nothing():
    out = []
    encoder = encoder_of(out)
    encoder.flush()
    assert out == []
    encoder.heartbeat()
    encoder.trade(*COMMON, 1, 500, 7, BUY)
    encoder.bbo(*COMMON, 500, 7, 501, 2)
    encoder.flush()
    encoder.trade(*COMMON, 2, 500, 7, BUY)
    encoder.heartbeat()                              # what is buffered goes first
    encoder.levels(INCREMENT, *COMMON, [1, 1], [])
    encoder.end()
    packets = [agree(data) for data in out]
    assert [(each.sequence, each.message_count, each.flags) for each in packets] == [
        (1, 0, HEARTBEAT), (1, 2, 0), (3, 1, 0), (4, 0, HEARTBEAT), (4, 1, 0), (5, 0, END)]
    assert encoder.packets == 6 and {(each.session, each.channel) for each in packets} == {(SESSION, 7)}


@pytest.mark.parametrize("packet_bytes", [256, 257, 263, 264, 320, 1472, MAX_PACKET_BYTES])
def test_a_full_buffer_is_sent_and_what_did_not_fit_starts_the_next(packet_bytes):
    """Each kind is added until it overflows: no datagram is longer than allowed, none has room for one more."""
    adders = [(72, lambda encoder: encoder.trade(*COMMON, 1, 500, 7, BUY)),
              (72, lambda encoder: encoder.bbo(*COMMON, 500, 7, 501, 2)),
              (40 + 48, lambda encoder: encoder.levels(INCREMENT, *COMMON, [500, 0], [501, 2, 502, 3])),
              (40, lambda encoder: encoder.levels(SNAPSHOT, *COMMON, [], [])),
              (152, lambda encoder: encoder.definition(instrument())),
              (104, lambda encoder: encoder.status(3, STALE, 2, 5, 6, 2))]
    for size, add in adders:
        most = (packet_bytes - 40) // size
        out = []
        encoder = encoder_of(out, packet_bytes=packet_bytes)
        for _ in range(2 * most):
            add(encoder)
        assert len(out) == 1
        add(encoder)
        assert [len(data) for data in out] == [40 + most * size] * 2
        encoder.flush()
        assert [decode(data).sequence for data in out] == [1, most + 1, 2 * most + 1]
        assert [agree(data).message_count for data in out] == [most, most, 1]


def test_a_message_may_fill_a_packet_to_the_last_byte():
    for levels in (1, 11):
        out = encode(lambda encoder: encoder.levels(SNAPSHOT, *COMMON, [9, 9] * levels, []), packet_bytes=256)
        assert [len(data) for data in out] == [80 + 16 * levels]                  # 11 levels: 256 bytes
    for filler in (1, 8):
        out = encode(lambda encoder: (encoder.levels(SNAPSHOT, *COMMON, [9, 9] * filler, []),
                                      encoder.levels(SNAPSHOT, *COMMON, [], [])), packet_bytes=256)
        assert len(out) == 1 and agree(out[0]).message_count == 2                 # an empty body at the very end


@pytest.mark.parametrize("packet_bytes", [256, 272, 300, 1472])
@pytest.mark.parametrize("kind", [SNAPSHOT, INCREMENT])
def test_large_books_are_split_into_parts(kind, packet_bytes):
    dice = random.Random(packet_bytes)
    most = (packet_bytes - 80) // 16
    for bid_count, ask_count in ((most + 1, 0), (0, most + 1), (most, most), (most - 1, 2), (3 * most, 2 * most + 1),
                                 (1, most), (2500, 2500)):
        bids = [dice.randrange(1, TOP) for _ in range(2 * bid_count)]
        asks = [dice.randrange(1, TOP) for _ in range(2 * ask_count)]
        more = REFRESH if kind == SNAPSHOT else 0
        out = encode(lambda encoder: (encoder.bbo(*COMMON, 1, 1, 2, 2), encoder.levels(kind, *COMMON, bids, asks, more),
                                      encoder.bbo(*COMMON, 1, 1, 2, 2)), packet_bytes=packet_bytes)
        packets = [agree(data) for data in out]
        assert max(map(len, out)) <= packet_bytes
        messages = [message for each in packets for message in each.messages]
        assert [each.sequence for each in packets] == [
            1 + sum(before.message_count for before in packets[:at]) for at in range(len(packets))]
        parts = messages[1:-1]
        assert len(parts) == -(-(bid_count + ask_count) // most) > 1
        assert [value for part in parts for value in part.bids] == bids
        assert [value for part in parts for value in part.asks] == asks
        with_asks = [bool(part.asks) for part in parts]
        assert with_asks == sorted(with_asks)                                     # bids first
        assert {part[:5] + part[6:8] for part in parts} == {(kind, *WORDS[:4], LIVE, 2)}
        assert [part.flags & LAST for part in parts] == [0] * (len(parts) - 1) + [LAST]
        assert [part.flags & FIRST for part in parts] == [FIRST if kind == SNAPSHOT else 0] + [0] * (len(parts) - 1)
        assert {part.flags & REFRESH for part in parts} == {more}


def test_the_window_handed_to_emit_is_the_encoders_own():
    """Valid during the call only: the second packet overwrites the first, which is why receivers copy."""
    views = []
    encoder = Encoder(SESSION, 0, views.append, lambda: SEND_NS)
    encoder.trade(*COMMON, 1, 500, 7, BUY)
    encoder.flush()
    first = bytes(views[0])
    encoder.trade(*COMMON, 2, 500, 7, BUY)
    encoder.flush()
    assert bytes(views[0]) != first and bytes(views[0]) == bytes(views[1])


def test_a_number_too_large_is_refused_and_the_packet_stays_whole():
    out = []
    encoder = encoder_of(out)
    encoder.trade(*COMMON, 1, 500, 7, BUY)
    for bad in (lambda: encoder.trade(*COMMON, 1, 2**63, 7, BUY), lambda: encoder.bbo(*COMMON, 1, 2**63, 1, 1),
                lambda: encoder.levels(INCREMENT, *COMMON, [2**63, 1], [])):
        with pytest.raises(struct.error):
            bad()
    encoder.trade(*COMMON, 2, 500, 7, BUY)
    encoder.flush()
    assert [message.item.trade_id for message in agree(out[0]).messages] == [1, 2]


# -- malformed -----------------------------------------------------------------------------------------------

def built(*messages, **header):
    """Return a datagram of (type, flags, state, bid_count, body[, message_bytes]), wrong where a test wants it so."""
    body = b""
    for kind, flags, state, bid_count, content, *size in messages:
        size, = size or (40 + len(content),)
        body += packet.MESSAGE.pack(kind, size, header.get("instrument_id", 3), 1, 2, 3, flags, state, bid_count, 1)
        body += content
    return packet.PACKET.pack(header.get("magic", packet.MAGIC), header.get("version", 1), header.get("flags", 0), 7,
                              SESSION, 41, SEND_NS, header.get("count", len(messages)),
                              header.get("packet_bytes", 40 + len(body)), header.get("reserved", 0)) + body


LEVEL = packet.ORDER_BOOK_ITEM.pack(500, 7)
GOOD_TRADE = (TRADE, LAST, LIVE, 0, packet.TRADE_ITEM.pack(1, 500, 7, BUY))


def definition_body(price_exponent=-8, quantity_exponent=-8):
    return packet.DEFINITION_BODY.pack(price_exponent, quantity_exponent, 20, 0, 0, 0, b"v", b"s", b"n")


MALFORMED = {
    "empty": (b"", "datagram of 0 bytes, a packet header has 40"),
    "cut header": (built()[:39], "datagram of 39 bytes, a packet header has 40"),
    "magic": (built(magic=packet.MAGIC ^ 1), "magic is 0x31524447, expected 0x31524446"),
    "big-endian": (built(magic=0x46445231), "magic is 0x46445231, expected 0x31524446"),
    "version 0": (built(version=0), "packet version 0, this reads version 1"),
    "version 2": (built(version=2), "packet version 2, this reads version 1"),
    "states less": (built(GOOD_TRADE, packet_bytes=104), "datagram of 112 bytes states 104"),
    "states more": (built(GOOD_TRADE, packet_bytes=120), "datagram of 112 bytes states 120"),
    "byte appended": (built(GOOD_TRADE) + b"\0", "datagram of 113 bytes states 112"),
    "count without messages": (built(count=1), "message at offset 40 of a packet of 40 bytes"),
    "count too high": (built(GOOD_TRADE, count=2), "message at offset 112 of a packet of 112 bytes"),
    "count too low": (built(GOOD_TRADE, GOOD_TRADE, count=1), "1 messages end at offset 112 of a packet of 184 bytes"),
    "count 0 with bytes": (built(GOOD_TRADE, count=0), "0 messages end at offset 40 of a packet of 112 bytes"),
    "half a message header": (built(GOOD_TRADE, packet_bytes=60)[:60], "message at offset 40 of a packet of 60 bytes"),
    "message of 0 bytes": (built((9, 0, 0, 0, b"", 0)), "message of 0 bytes at offset 40"),
    "message of 32 bytes": (built((9, 0, 0, 0, b"", 32)), "message of 32 bytes at offset 40"),
    "message of odd size": (built((9, 0, 0, 0, b"x" * 4)), "message of 44 bytes at offset 40"),
    "message beyond the end": (built((9, 0, 0, 0, b"", 48)), "message of 48 bytes at offset 40 of a packet of 80"),
    "message of 65,528 bytes": (built((INCREMENT, LAST, LIVE, 0, LEVEL, 65_528)), "message of 65528 bytes"),
    "trade too short": (built((TRADE, LAST, LIVE, 0, b"\1" * 24)), "trade of 64 bytes, expected 72"),
    "trade too long": (built((TRADE, LAST, LIVE, 0, b"\1" * 40)), "trade of 80 bytes, expected 72"),
    "bbo too short": (built((BBO, LAST, LIVE, 0, b"\1" * 24)), "bbo of 64 bytes, expected 72"),
    "definition too short": (built((DEFINITION, LAST, 0, 0, b"\0" * 104)), "definition of 144 bytes, expected 152"),
    "status too long": (built((STATUS, LAST, LIVE, 0, b"\0" * 72)), "status of 112 bytes, expected 104"),
    "half a level": (built((INCREMENT, LAST, LIVE, 0, LEVEL + b"\0" * 8)), "increment with 0 bids in 3 numbers"),
    "more bids than levels": (built((SNAPSHOT, LAST, LIVE, 2, LEVEL)), "snapshot with 2 bids in 2 numbers"),
    "bids without levels": (built((INCREMENT, LAST, LIVE, 65_535, b"")), "increment with 65535 bids in 0 numbers"),
    "negative bid quantity": (built((INCREMENT, LAST, LIVE, 1, packet.ORDER_BOOK_ITEM.pack(500, -1))),
                              "negative quantity"),
    "negative ask quantity": (built((SNAPSHOT, LAST, LIVE, 1, LEVEL + packet.ORDER_BOOK_ITEM.pack(5, -TOP))),
                              "negative quantity"),
    "side 0": (built((TRADE, LAST, LIVE, 0, packet.TRADE_ITEM.pack(1, 500, 7, 0))), "trade with side 0"),
    "side 3": (built((TRADE, LAST, LIVE, 0, packet.TRADE_ITEM.pack(1, 500, 7, 3))), "trade with side 3"),
    "price exponent 1": (built((DEFINITION, LAST, 0, 0, definition_body(1))), "definition with exponents 1, -8"),
    "price exponent -19": (built((DEFINITION, LAST, 0, 0, definition_body(-19))), "definition with exponents -19, -8"),
    "quantity exponent 127": (built((DEFINITION, LAST, 0, 0, definition_body(-8, 127))), "with exponents -8, 127"),
    **{f"state {state} in type {kind}": (built((kind, LAST, state, 0, content)), f"book state {state} does not exist")
       for kind, content in ((SNAPSHOT, LEVEL), (INCREMENT, LEVEL), (TRADE, GOOD_TRADE[4]), (BBO, b"\0" * 32),
                             (STATUS, b"\0" * 64)) for state in (0, 4, 255)},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name):
    data, reason = MALFORMED[name]
    assert agree(data) is None
    for kind in (bytes, memoryview):
        with pytest.raises(PacketError) as caught:
            decode(kind(data))
        assert reason in str(caught.value)


def test_a_fault_behind_good_messages_drops_them_all():
    with pytest.raises(PacketError):
        decode(built(GOOD_TRADE, (TRADE, LAST, 9, 0, GOOD_TRADE[4])))


def test_every_truncation_is_malformed():
    for fill, _ in VECTORS.values():
        data, = encode(fill)
        for size in range(len(data)):
            for cut in (data[:size], data[:34] + struct.pack("<H", size) + data[36:size] if size >= 36 else b""):
                assert agree(cut) is None, f"{size} of {len(data)} bytes"


def test_what_a_later_version_1_may_send_is_taken():
    unknown = (77, 0xFF, 200, 9, b"?" * 48)
    found = agree(built(unknown, GOOD_TRADE, unknown, flags=0xE8, reserved=0xFFFFFFFF))
    assert found.message_count == 3 and [type(message) for message in found.messages] == [Trade]
    status = packet.STATUS_BODY.pack(999, 1, 255, 2**32 - 1, b"", b"\xff\xfe")
    assert agree(built((STATUS, 0xFF, LIVE, 9, status))).messages[0].reason == 999
    padded = bytearray(built(GOOD_TRADE))
    padded[-7:] = b"padding"
    assert agree(padded).messages == decode(built(GOOD_TRADE)).messages
    assert agree(built((STATUS, LAST, 0, 0, b"\0" * 64), instrument_id=ALL_INSTRUMENTS)).messages[0].state == 0


# -- fuzz ----------------------------------------------------------------------------------------------------

def random_datagram(dice):
    out = []
    encoder = encoder_of(out, packet_bytes=dice.choice((256, 512, 1472)))
    while not out or dice.random() < 0.3:
        for _ in range(dice.randrange(1, 6)):
            common = (dice.randrange(9), dice.choice((SYNCING, LIVE, STALE)), dice.randrange(5), dice.getrandbits(64),
                      dice.randrange(TOP), dice.randrange(TOP))
            choice = dice.randrange(6)
            if choice == 0:
                encoder.definition(instrument(instrument_id=dice.randrange(9)), dice.randrange(9), dice.randrange(9))
            elif choice == 1:
                encoder.status(*common[:4], common[5], dice.randrange(20), dice.randrange(2), "venue", "text")
            elif choice == 2:
                encoder.trade(*common, dice.getrandbits(64), dice.randrange(TOP), dice.randrange(TOP),
                              dice.choice((BUY, SELL)))
            elif choice == 3:
                encoder.bbo(*common, *[dice.randrange(TOP) for _ in range(4)])
            else:
                sides = [[dice.randrange(TOP) for _ in range(2 * dice.choice((0, 1, 2, 5, 20)))] for _ in range(2)]
                encoder.levels(dice.choice((SNAPSHOT, INCREMENT)), *common, *sides, dice.choice((0, 0, REFRESH)))
        encoder.flush()
    return dice.choice(out)


INTERESTING = (0, 1, 2, 3, 4, 7, 8, 39, 40, 41, 48, 72, 127, 128, 254, 255)


def resize(data, dice):
    """Give one message another size, or another type, in a way that all sizes still add up."""
    at, starts = 40, []
    while at < len(data):
        starts.append(at)
        at += int.from_bytes(data[at + 2:at + 4], "little")
    at = dice.choice(starts)
    size = int.from_bytes(data[at + 2:at + 4], "little")
    if dice.random() < 0.3:
        data[at] = dice.randrange(8)
        return
    wanted = max(40, size + 8 * dice.randrange(-6, 7))
    data[at + size:at + size] = bytes(max(0, wanted - size))
    del data[at + wanted:at + size]
    data[at + 2:at + 4] = struct.pack("<H", wanted)


def mutate(data, dice):
    """Return `data` hurt in some ways; mostly with its stated size put right, so that more is reached."""
    data = bytearray(data)
    if dice.random() < 0.4:
        resize(data, dice)
    for _ in range(dice.randrange(0 if dice.random() < 0.4 else 1, 5)):
        choice = dice.randrange(7)
        at = dice.randrange(len(data)) if data else 0
        if choice == 0 and data:
            data[at] ^= 1 << dice.randrange(8)
        elif choice == 1 and data:
            data[at] = dice.choice(INTERESTING)
        elif choice == 2 and len(data) >= 80:
            at = 40 + dice.choice((0, 1, 2, 3, 32, 33, 34, 35, 40, 41))         # the fields a decoder decides by
            if at < len(data):
                data[at] = dice.choice(INTERESTING)
        elif choice == 3:
            del data[at:at + dice.choice((1, 8, 16, 40, 72))]
        elif choice == 4:
            data[at:at] = data[dice.randrange(len(data) + 1):][:dice.choice((1, 8, 16, 72))]
        elif choice == 5 and len(data) >= 40:
            data[32:34] = struct.pack("<H", dice.choice((0, 1, 2, 3, 9, 65_535)))
        else:
            data[at:at + 8] = dice.getrandbits(64).to_bytes(8, "little")
    if len(data) >= 40 and dice.random() < 0.8:
        data[34:36] = struct.pack("<H", len(data) & 0xFFFF)
    return bytes(data)


def fuzz(count, seed):
    """Hold the codec against the page on `count` mutated datagrams; return how many were malformed, by reason."""
    print("seed", seed)
    dice = random.Random(seed)
    reasons = Counter()
    for _ in range(count):
        data = mutate(random_datagram(dice), dice)
        if agree(data) is None:
            with pytest.raises(PacketError) as caught:
                decode(data)
            reasons[re.sub("0x[0-9a-f]+|[0-9]+", "N", str(caught.value).partition(":")[0])] += 1
    return reasons


def test_fuzz():
    reasons = fuzz(5_000, random.randrange(2**32))
    assert 1_000 < sum(reasons.values()) < 4_500 and len(reasons) > 12, reasons       # both kinds in plenty


@pytest.mark.stress
def test_fuzz_long():
    fuzz(100_000, random.randrange(2**32))


@pytest.mark.parametrize("blunder", [
    {"exact": lambda kind, length, wanted: None},                       # sizes not checked
    {"known_state": lambda state: STATE_NAMES[state] and state},        # another error than the documented one
    {"READERS": {**packet.READERS, BBO: lambda data, at, length: None}},
])
def test_the_fuzz_can_fail(blunder, monkeypatch):
    for name, value in blunder.items():
        monkeypatch.setattr(packet, name, value)
    with pytest.raises((AssertionError, KeyError)):
        fuzz(5_000, 1)


if __name__ == "__main__":
    if sys.argv[1:] == ["golden"]:
        found = {**{name: encode(fill, sequence=41)[0] for name, (fill, _) in VECTORS.items()},
                 **{name: make() for name, make in BESIDES.items()}}
        lines = ",\n".join(f' "{name}": "{data.hex()}"' for name, data in found.items())
        GOLDEN.write_text("{\n" + lines + "\n}\n")
    else:
        for text, times in fuzz(int(sys.argv[1]), int(sys.argv[2])).most_common():
            print(f"{times:9,} {text}")
