"""Captures: what is written reads back and is right to the byte; other programs' files are read, broken ones told."""

import io
import ipaddress
import shutil
import struct
import subprocess

import pytest
from support import dice

from feeder import pcap
from feeder.endpoint import Endpoint
from feeder.errors import CaptureError

SECOND = 10**9
SOURCE, GROUP = ("10.0.0.7", 41_000), Endpoint("239.192.0.1", 30_001, None)
SOURCE6, GROUP6 = ("2001:db8::7", 41_000, 0, 0), Endpoint("ff15::1", 30_001, "eth0")
NOW = 1_700_000_000_123_456_789


def reader(data):
    return pcap.Reader(io.BytesIO(data), "some.pcap")


def words(data):
    """The Internet checksum's sum as RFC 1071 has it, by adding; 0xFFFF over a header that is right."""
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def file(link, frames, order="<", magic=pcap.MAGIC_NS, fraction=5, cut=None):
    """A file as another program writes it."""
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link)]
    for frame in frames:
        kept = frame[:cut]
        parts.append(struct.pack(order + "IIII", 7, fraction, len(kept), len(frame)) + kept)
    return b"".join(parts)


def ip(datagram, source=SOURCE, destination=GROUP):
    """The IP packet of a datagram, by the writer (whose bytes another test holds against the RFCs)."""
    return pcap.record(0, source, destination, datagram)[16:]


def frames(link, packet):
    """The ways in which a packet may be wrapped in a capture of that link type."""
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return {
        1: [bytes(12) + kind + packet, bytes(12) + b"\x81\x00\x00\x07" + kind + packet,
            bytes(12) + b"\x88\xa8\x00\x09\x81\x00\x00\x07" + kind + packet, bytes(12) + kind + packet + bytes(9)],
        0: [struct.pack(order + "I", family) + packet for order in "<>" for family in (2, 10, 24, 28, 30)],
        108: [struct.pack(">I", 2) + packet],
        113: [bytes(14) + kind + packet, bytes(14) + b"\x81\x00\x00\x07" + kind + packet],
        276: [kind + bytes(18) + packet],
    }.get(link, [packet])


# -- what is written ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("source, destination", [(SOURCE, GROUP), (SOURCE6, GROUP6), (None, GROUP), (None, GROUP6),
                                                 (("127.0.0.1", 9), ("127.0.0.1", 10)),
                                                 (("fe80::1%eth0", 9, 0, 2), ("ff12::1", 10))])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_written_reads_back(source, destination, kind):
    datagrams = [bytes(range(size % 256)) * (size // 200 + 1) for size in range(0, 1500, 37)]
    data = pcap.HEADER + b"".join(pcap.record(NOW + at, source, destination, kind(each))
                                  for at, each in enumerate(datagrams))
    found = reader(data)
    captured = list(found)
    assert [each.datagram for each in captured] == datagrams
    assert [each.recv_ns for each in captured] == [NOW + at for at in range(len(datagrams))]
    assert {each.destination for each in captured} == {Endpoint(*destination[:2], None)}
    unknown = "::" if ":" in destination[0] else "0.0.0.0"
    assert {each.source[:2] for each in captured} == {
        (source[0].partition("%")[0], source[1]) if source else (unknown, 0)}
    assert (found.frames, found.datagrams, found.others, found.fragments, found.cut) == (
        len(datagrams), len(datagrams), 0, 0, 0)


def test_headers_and_checksums_are_the_rfcs():
    random_bytes = dice(5).randbytes
    for size in (0, 1, 2, 3, 1472, 65_507):
        datagram = random_bytes(size)
        packet = ip(datagram)
        assert packet[0] == 0x45 and words(packet[:20]) == 0xFFFF
        assert struct.unpack("!H", packet[2:4])[0] == len(packet) == 28 + size
        assert packet[8:10] == b"\x01\x11" and packet[12:20] == bytes((10, 0, 0, 7, 239, 192, 0, 1))
        assert struct.unpack("!HHH", packet[20:26]) == (41_000, 30_001, 8 + size) and packet[28:] == datagram
        assert words(packet[12:20] + struct.pack("!HH", 17, 8 + size) + packet[20:]) == 0xFFFF
        packet = ip(datagram, SOURCE6, GROUP6)
        assert struct.unpack("!IHBB", packet[:8]) == (6 << 28, 8 + size, 17, 1) and len(packet) == 48 + size
        assert packet[8:24] == ipaddress.ip_address("2001:db8::7").packed
        assert packet[24:40] == ipaddress.ip_address("ff15::1").packed
        assert words(packet[8:40] + struct.pack("!II", 8 + size, 17) + packet[40:]) == 0xFFFF


def test_a_checksum_of_zero_is_sent_as_all_ones():
    """RFC 768: a zero says that there is none. One of the 65,536 last words makes it."""
    packet = ip(b"\0\0")
    checksum = packet[26:28]
    assert checksum not in (b"\0\0", b"\xff\xff")
    assert ip(checksum)[26:28] == b"\xff\xff"


def test_what_cannot_be_written():
    for source, destination, limit in ((SOURCE, GROUP, 65_507), (SOURCE6, GROUP6, 65_527)):
        assert len(pcap.record(0, source, destination, bytes(limit))) > limit
        with pytest.raises(ValueError, match=f"a datagram of {limit + 1} bytes; UDP takes {limit}"):
            pcap.record(0, source, destination, bytes(limit + 1))
    with pytest.raises(ValueError, match="one is IPv4, one IPv6"):
        pcap.record(0, SOURCE, GROUP6, b"")


# -- what others write ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("link", sorted(pcap.LINKS))
def test_every_link_type_both_byte_orders_both_units(order, link):
    for source, destination in ((SOURCE, GROUP), (SOURCE6, GROUP6)):
        wrapped = frames(link, ip(b"hello", source, destination))
        for magic, unit in ((pcap.MAGIC_NS, 1), (pcap.MAGIC_US, 1000)):
            for flags in (0, 0x24000000):                              # it may say how long a frame's check sequence is
                found = list(reader(file(link | flags, wrapped, order, magic)))
                assert found == [pcap.Captured(7 * SECOND + 5 * unit, source[:2] + (None,),
                                               destination[:2] + (None,), b"hello")] * len(wrapped)


def extended(packet, *headers):
    """An IPv6 packet with extension headers: (number, bytes after the first, which names the following)."""
    following = [number for number, _ in headers] + [17]
    body = b"".join(bytes([following[at + 1]]) + data for at, (_, data) in enumerate(headers))
    return (packet[:4] + struct.pack("!HBB", len(body) + len(packet) - 40, following[0], 1) + packet[8:40] + body
            + packet[40:])


def test_options_and_extension_headers_are_stepped_over():
    packet = ip(b"hello")
    options = bytes([0x47]) + packet[1:2] + struct.pack("!H", len(packet) + 8) + packet[4:20] + bytes(8) + packet[20:]
    six = ip(b"hello", SOURCE6, GROUP6)
    many = extended(six, (0, b"\0" + bytes(6)), (43, b"\1" + bytes(14)), (60, b"\0" + bytes(6)), (44, bytes(7)))
    found = reader(file(101, [options, many]))
    assert [each.datagram for each in found] == [b"hello"] * 2 and found.others == found.fragments == 0


def test_what_is_left_out_is_counted():
    packet, six = ip(b"hello"), ip(b"hello", SOURCE6, GROUP6)
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    tcp = bytes(12) + b"\x08\x00" + packet[:9] + b"\x06" + packet[10:]
    first = bytes(12) + b"\x08\x00" + packet[:6] + b"\x20\x00" + packet[8:]
    last = bytes(12) + b"\x08\x00" + packet[:6] + b"\x00\x01" + packet[8:]
    fragment = bytes(12) + b"\x86\xdd" + extended(six, (44, b"\0\0\1" + bytes(4)))
    found = reader(file(1, [b"", bytes(13), arp, tcp, first, last, fragment, *frames(1, packet)]))
    assert [each.datagram for each in found] == [b"hello"] * 4
    assert (found.frames, found.others, found.fragments, found.cut) == (11, 4, 3, 0)
    found = reader(file(101, [packet, packet[:-1]], cut=len(packet) - 1))
    assert list(found) == [] and found.cut == 2
    tail = struct.pack("!HH", 4, 0)                                   # a UDP length that is none, or beyond IP's
    long = struct.pack("!HH", 14, 0)
    found = reader(file(101, [packet[:24] + tail + packet[28:], packet[:24] + long + packet[28:], packet[:19], b"\x45",
                              b"\x10" * 40]))
    assert list(found) == [] and found.others == 5


def test_a_file_that_is_none_is_named():
    good = pcap.HEADER + pcap.record(NOW, SOURCE, GROUP, b"hello")
    for data, text in ((b"", "no pcap file (it begins with nothing)"),
                       (b"\xd4\xc3", "no pcap file (it begins with d4 c3)"),
                       (b"\x1f\x8b\x08\0", "no pcap file"), (b"\x0a\x0d\x0d\x0a", "editcap -F nsecpcap"),
                       (good[:23], "ends in the file's header"),
                       (good[:4] + b"\x03\0" + good[6:], "pcap version 3.4; 2.4 can be read"),
                       (good[:20] + b"\x69\0\0\0" + good[24:], "link type 105; Ethernet (1)")):
        with pytest.raises(CaptureError) as error:
            reader(data)
        assert text in str(error.value) and str(error.value).startswith("some.pcap: ")


def test_a_cut_file_is_told_after_all_before_it_was_read():
    one = pcap.record(NOW, SOURCE, GROUP, b"hello")
    for cut in range(1, len(one)):
        found, seen = reader(pcap.HEADER + one + one[:cut]), []
        with pytest.raises(CaptureError, match="some.pcap, record 2: the file ends in it"):
            for captured in found:
                seen.append(captured)
        assert len(seen) == 1
    with pytest.raises(CaptureError, match=r"record 2: 1048577 bytes; 1048576 are the most"):
        list(reader(pcap.HEADER + one + struct.pack("<IIII", 0, 0, 1_048_577, 0)))


def test_garbage_raises_nothing_else():
    rng = dice(7)
    base = [ip(b"hello" * 3), ip(b"hello" * 3, SOURCE6, GROUP6),
            extended(ip(b"x", SOURCE6, GROUP6), (0, b"\0" + bytes(6)), (44, bytes(7)))]
    handed_over = 0
    for _ in range(3_000):
        link = rng.choice(sorted(pcap.LINKS))
        frame = bytearray(rng.choice(frames(link, rng.choice(base))))
        for _ in range(rng.randrange(4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        data = bytearray(file(link, [frame[:rng.randrange(len(frame) + 1)] if rng.random() < 0.3 else frame]))
        if rng.random() < 0.2:
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            handed_over += len(list(reader(bytes(data))))
        except CaptureError:
            pass
    assert handed_over > 500


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_tshark_finds_nothing_wrong(tmp_path):
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap.HEADER + b"".join(pcap.record(NOW, source, destination, bytes(range(size)))
                                            for size in (0, 1, 255)
                                            for source, destination in ((SOURCE, GROUP), (SOURCE6, GROUP6))))
    done = subprocess.run(["tshark", "-n", "-r", str(path), "-o", "ip.check_checksum:TRUE",
                           "-o", "udp.check_checksum:TRUE", "-T", "fields", "-e", "frame.time_epoch",
                           "-e", "ip.checksum.status", "-e", "udp.checksum.status", "-e", "udp.dstport",
                           "-e", "udp.length"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows == [["1700000000.123456789", status, "1", "30001", str(size + 8)]
                    for size in (0, 1, 255) for status in ("1", "")]
