"""tools/feeder.lua through tshark: fields as our own decoder reads them, gaps, no error of the script on garbage."""

import json
import shutil
import struct
import subprocess

import pytest
from support import PROJECT, dice

from feeder import packet, pcap
from feeder.control import datagram as control
from feeder.endpoint import Endpoint
from feeder.instrument import Instrument
from feeder.message import LIVE, SELL, STALE
from feeder.packet import Encoder, LoopEncoder
from feeder.seal import Seal

TSHARK = shutil.which("tshark")
pytestmark = pytest.mark.skipif(not TSHARK, reason="tshark is not installed")

SCRIPT = PROJECT / "tools" / "feeder.lua"
SESSION = 1_700_000_000 * 10**9
NOW = SESSION + 123_456_789
SEAL = Seal(b"sixteen bytes at least")
LINE_A, LINE_B = Endpoint("239.192.0.1", 30_001, None), Endpoint("ff15::1", 40_001, None)
SOURCES = {LINE_A: ("10.0.0.1", 5_000), LINE_B: ("2001:db8::1", 5_000)}


def run(path, *args):
    """Return what tshark says; Lua errors are its standard error's, or lines of the packet's tree."""
    done = subprocess.run([TSHARK, "-n", "-X", f"lua_script:{SCRIPT}", "-r", str(path), *args],
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    out, error = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.returncode and "lua_script" in error:
        pytest.skip(f"this tshark runs no Lua: {error.splitlines()[-1]}")
    assert done.returncode == 0, error
    assert "Lua Error" not in out + error and "feeder.lua" not in error, (out + error)[-2_000:]
    return out


def fields(path, *names, where=None, more=()):
    """Return a row of fields for each frame; a cell is the list of its values."""
    args = [word for name in names for word in ("-e", name)] + (["-Y", where] if where else []) + list(more)
    out = run(path, "-T", "fields", "-E", "aggregator=;", *args)
    return [[cell.split(";") if cell else [] for cell in line.split("\t")] for line in out.splitlines()]


@pytest.fixture
def capture(tmp_path):
    """Return (path, add): add(datagram, destination) writes it to the file."""
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap.HEADER)

    def add(datagram, destination=LINE_A):
        with open(path, "ab") as file:
            file.write(pcap.record(NOW, SOURCES[destination], destination, bytes(datagram)))

    return path, add


def all_kinds(emit, seal=None, session=SESSION, channel=7, edition=0):
    """Write each type of message; returns the encoder."""
    flags = packet.LAST | edition << packet.EDITION_SHIFT
    encoder = Encoder(session, channel, emit, lambda: NOW, seal=seal)
    coin = Instrument(3, "binance_spot", "BTCUSDT", "BTC/USDT", 2, 3)
    encoder.definition(coin, 1_000_000, 1_000, flags=flags)
    encoder.levels(packet.SNAPSHOT, 3, LIVE, 1, 99, NOW, NOW + 1, [6_183_764_000_000, 5, 6_183_763_000_000, 50_000_000],
                   [6_183_766_000_000, 2**63 - 1], flags & ~packet.LAST)
    encoder.levels(packet.INCREMENT, 3, LIVE, 1, 100, NOW, NOW + 2, [], [-(2**63 - 1), 0], flags & ~packet.LAST)
    encoder.trade(3, LIVE, 1, 2**64 - 1, NOW, NOW, 2**64 - 2, -6_183_764_000_000, 125_000, SELL, flags)
    encoder.bbo(3, LIVE, 1, 1, NOW, NOW, 6_183_764_000_000, 2, 6_183_766_000_000, 4, flags)
    encoder.status(3, STALE, 1, 2, NOW, 2, text="gap", flags=flags)
    encoder.status(packet.ALL_INSTRUMENTS, 0, 0, 0, NOW, 3, 0, "okx", "x" * 32)
    encoder.flush()
    return encoder


def test_each_field_is_what_our_decoder_reads(capture):
    path, add = capture
    sent = []
    all_kinds(lambda datagram: (sent.append(packet.decode(bytes(datagram))), add(datagram)), edition=5)
    row, = fields(path, *("feeder." + name for name in (
        "channel session sequence send_ns message_count packet_bytes loop type instrument_id venue_sequence state "
        "epoch message_flags.edition price quantity number definition.price_exponent definition.depth "
        "definition.tick definition.symbol definition.name trade.id trade.side bbo.bid_price bbo.ask_quantity "
        "status.reason status.venue status.text bid_count").split()))
    (channel, session, sequence, send_ns, count, size, loop, types, ids, venue_sequences, states, epochs, editions,
     prices, quantities, numbers, exponent, depth, tick, symbol, name, trade_id, side, bid_price, ask_quantity,
     reasons, venues, texts, bid_counts) = row
    heard, = sent
    assert (channel, session, sequence, send_ns, loop) == (["7"], [str(SESSION)], ["1"], [str(NOW)], ["0"])
    assert (count, numbers) == (["7"], list("1234567")) and int(size[0]) == 40 + 152 + 88 + 56 + 72 + 72 + 104 + 104
    assert types == list("1234566")
    assert ids == [str(message.instrument_id) for message in heard.messages]
    assert venue_sequences == ["0", *(str(message.venue_sequence) for message in heard.messages[1:])]
    assert states == ["0", "2", "2", "2", "2", "3", "0"] and epochs == ["0", "1", "1", "1", "1", "1", "0"]
    assert editions == ["5"] * 6 + ["0"] and bid_counts == ["0", "2", "0", "0", "0", "0", "0"]
    _, snapshot, increment, trade, bbo, *_ = heard.messages
    levels = snapshot.bids + snapshot.asks + increment.bids + increment.asks
    assert prices == [*map(str, levels[::2]), str(trade.item.price)]
    assert quantities == [*map(str, levels[1::2]), str(trade.item.quantity)]
    assert (exponent, depth, tick, symbol, name) == (["-8"], ["20"], ["1000000"], ["BTCUSDT"], ["BTC/USDT"])
    assert (trade_id, side, bid_price, ask_quantity) == ([str(2**64 - 2)], ["2"], [str(bbo.bid.price)], ["4"])
    assert reasons == ["2", "3"] and venues == ["", "okx"] and texts == ["gap", "x" * 32]


def test_numbers_are_shown_at_the_definitions_exponents(capture):
    path, add = capture
    all_kinds(add)
    tree = run(path, "-V")
    for line in ("DEFINITION of instrument 3: binance_spot:BTCUSDT", "SNAPSHOT of binance_spot:BTCUSDT: 2 bids, 1 asks",
                 "bid 61837.64 x 0.00000005", "bid 61837.63 x 0.5", "ask 61837.66 x 92233720368.54775807",
                 "ask -92233720368.54775807 x 0", "TRADE of binance_spot:BTCUSDT: sell -61837.64 x 0.00125",
                 "BBO of binance_spot:BTCUSDT: bid 61837.64 x 0.00000002, ask 61837.66 x 0.00000004",
                 "STATUS of binance_spot:BTCUSDT: stale, gap", "STATUS: okx disconnected", "Tick: 1000000 (0.01)",
                 "Sent, ns: 1700000000123456789 (Nov 14, 2023 22:13:20."):
        assert line in tree, line
    assert "[Expert Info" not in tree


def test_another_edition_is_not_of_the_definition_that_is_known(capture):
    path, add = capture
    all_kinds(add)
    encoder = Encoder(SESSION, 7, add, lambda: NOW)
    encoder.sequence = 8
    encoder.trade(3, LIVE, 1, 1, 0, 0, 1, 5, 6, SELL, packet.LAST | 1 << packet.EDITION_SHIFT)
    encoder.flush()
    assert "TRADE of instrument 3: sell 5 x 6" in run(path, "-V")


def test_gaps_are_named_for_each_line_by_itself(capture):
    path, add = capture
    sent = []
    encoder = Encoder(SESSION, 0, lambda datagram: sent.append(bytes(datagram)), lambda: NOW)
    for number in range(10):
        for _ in range(3):
            encoder.trade(number, LIVE, 1, 1, 0, 0, 1, 5, 6, SELL)
        encoder.flush()
    encoder.heartbeat()
    encoder.end()
    for at in (0, 1, 2, 5, 5, 4, 6, 8, 9, 11):
        add(sent[at])
    for at in (3, 4, 5, 6, 7, 10):
        add(sent[at], LINE_B)
    rows = fields(path, "frame.number", "feeder.gap.first", "feeder.gap.last", where="feeder.gap.first")
    assert rows == [[["4"], ["10"], ["15"]], [["8"], ["22"], ["24"]], [["16"], ["25"], ["30"]]]
    assert fields(path, "frame.number", where="feeder.expert.late") == [[["5"]], [["6"]]]
    assert rows == fields(path, "frame.number", "feeder.gap.first", "feeder.gap.last", where="feeder.gap.first",
                          more=["-2"])               # dissected twice, judged once
    shown = run(path, "-V")
    assert "Messages 10 to 15 are missing" in shown and "feeder, channel 0 #16 3 TRADE GAP before" in shown


def test_the_loop_the_trailer_and_what_is_sent_again(capture):
    path, add = capture
    encoder = all_kinds(add, SEAL)
    loop = LoopEncoder(SESSION, 7, add, lambda: NOW, 1472, SEAL, lambda: encoder.sequence)
    loop.round(5, 10)
    loop.definition(Instrument(3, "binance_spot", "BTCUSDT"))
    loop.flush()
    again = []
    other = Encoder(SESSION, 8, lambda datagram: again.append(bytearray(datagram)), lambda: NOW, seal=SEAL)
    other.trade(3, LIVE, 1, 1, 0, 0, 1, 5, 6, SELL)
    other.flush()
    again[0][5] |= packet.RETRANSMITTED
    add(again[0])
    rows = fields(path, "feeder.flags", "feeder.trailer", "feeder.loop", "feeder.sequence", "feeder.type",
                  "feeder.round.number", "feeder.round.instrument_count", "feeder.flags.loop", "feeder.gap.first")
    assert [row[0] for row in rows] == [["0x10"], ["0x14"], ["0x18"]]
    assert [len(bytes.fromhex(row[1][0])) for row in rows] == [16] * 3
    assert bytes.fromhex(rows[2][1][0]) == bytes(again[0][-16:])
    assert rows[1][2:] == [["1"], ["8"], ["8", "1"], ["5"], ["10"], ["1"], []]
    shown = run(path).splitlines()
    assert "channel 7 loop 1, before 8 1 DEFINITION 1 ROUND" in shown[1] and shown[2].endswith("1 TRADE (again)")


def test_control_datagrams(capture):
    path, add = capture
    for kind in control.KIND_NAMES:
        add(control.encode(control.Control(kind, 7, SESSION, 40 + kind, 3, 500, b"t" * 16),
                           SEAL if kind == 2 else None))
    rows = fields(path, *("feeder.control." + name for name in (
        "kind channel session first count wait_us token trailer").split()))
    assert [row[:7] for row in rows] == [
        [[str(kind)], ["7"], [str(SESSION)], [str(40 + kind)], ["3"], ["500"], [(b"t" * 16).hex()]]
        for kind in (1, 2, 3, 4)]
    assert [len(row[7]) for row in rows] == [0, 1, 0, 0]
    assert "CHALLENGE channel 7 #42, 3 messages" in run(path)


def test_several_datagrams_that_left_by_one_call(capture):
    path, add = capture
    sent = []
    encoder = Encoder(SESSION, 0, lambda datagram: sent.append(bytes(datagram)), lambda: NOW, 256)
    for number in range(8):
        encoder.trade(number, LIVE, 1, 1, 0, 0, 1, 5, 6, SELL)
    encoder.flush()
    assert len(sent) == 3
    add(b"".join(sent))
    row, = fields(path, "feeder.sequence", "feeder.number", "feeder.instrument_id")
    assert row == [list("147"), list("12345678"), list("01234567")]


def test_what_is_not_ours_is_left_alone(capture):
    path, add = capture
    sent = []
    all_kinds(lambda datagram: sent.append(bytes(datagram)))
    for data in (b"", b"FDR1", b"FDR1" + bytes(36), sent[0][:4] + b"\2" + sent[0][5:], b"FDRQ" + bytes(44),
                 b"FDRQ\1" + bytes(42), b"x" * 100):
        add(data)
    assert all("UDP" in line and "FEEDER" not in line for line in run(path).splitlines())


def test_garbage_is_malformed_and_no_error_of_the_script(capture):
    path, add = capture
    rng = dice(3)
    samples = []
    for seal in (None, SEAL):
        all_kinds(lambda datagram: samples.append(bytes(datagram)), seal)
    judged = []
    for _ in range(400):
        data = bytearray(rng.choice(samples))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(5, len(data))
            data[at:at + 1] = rng.randbytes(1)
        if rng.random() < 0.3:
            data = data[:rng.randrange(40, len(data) + 1)]
        if rng.random() < 0.5:
            data[34:36] = struct.pack("<H", len(data))
        if rng.random() < 0.1:
            data[32:34] = rng.randbytes(2)
        try:
            packet.decode(data)
            judged.append(True)
        except packet.PacketError:
            judged.append(False)
        add(data)
    rows = fields(path, "frame.number", where="feeder.expert.malformed")
    wrong = {int(row[0][0]) - 1 for row in rows}
    assert not [at for at in wrong if judged[at]] and len(wrong) > 50
    json.loads(run(path, "-T", "json"))
