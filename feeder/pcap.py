"""Captures of datagrams as every network tool reads them: pcap files, nanoseconds, written and read.

Out:  HEADER once, then record(recv_ns, source, destination, datagram) for each datagram, as bytes.
In:   Reader(file, name): yields Captured, one for each whole UDP datagram of the file, and counts what it leaves out.
Source: draft-ietf-opsawg-pcap (the file), tcpdump.org/linktypes.html (what a record begins with), RFC 791, 8200, 768.

    file   = magic, version 2.4, 2 reserved words, snaplen, link type;  24 bytes
    record = seconds, ns or us, bytes kept, bytes that were;            16 bytes, then the frame
    frame  = as written here: IPv4 or IPv6 header, UDP header, datagram (LINKTYPE_RAW)

The headers are made up for the file: the sockets that received the datagram did not hand over the real ones. Addresses,
ports, lengths and checksums are right; TTL is 1, the identification 0. An unknown source is written as 0.0.0.0:0.
Files of other programs are read with Ethernet (VLAN tags, too), Linux "cooked" 1 and 2, raw IP and BSD loopback frames,
in both byte orders, in us or ns.
A capture at a sending host shows what left in one system call as one frame, however many datagrams it becomes on the
way (UDP_SEGMENT): who reads finds them by the sizes that they state themselves.
Not here: opening files, pcapng, putting IP fragments together (they are counted).
"""

import ipaddress
import struct
from collections import namedtuple
from functools import lru_cache

from feeder.endpoint import Endpoint
from feeder.errors import CaptureError

MAGIC_US, MAGIC_NS = 0xA1B2C3D4, 0xA1B23C4D
PCAPNG = b"\x0a\x0d\x0d\x0a"
SNAPLEN = 1 << 18                                     # libpcap's own; with headers a datagram may be above 64 KB
MAX_FRAME_BYTES = 1 << 20
MAX_HEADERS = 8                                       # VLAN tags, IPv6 extension headers
CACHED = 1024                                         # addresses; the sources of a multicast group are few

NULL, ETHERNET, RAW, LOOP, SLL, IPV4, IPV6, SLL2 = 0, 1, 101, 108, 113, 228, 229, 276
LINKS = {NULL: 4, ETHERNET: 14, 12: 0, 14: 0, RAW: 0, LOOP: 4, SLL: 16, IPV4: 0, IPV6: 0, SLL2: 20}  # bytes before IP
PROTOCOL_AT = {ETHERNET: 12, SLL: 14, SLL2: 0}        # where a frame says what it holds; the others hold IP only
ETHERTYPES = {0x0800: 4, 0x86DD: 6}
VLANS = (0x8100, 0x88A8, 0x9100)
UDP, FRAGMENT, EXTENSIONS = 17, 44, (0, 43, 60)       # protocol numbers; hop-by-hop, routing and destination options

RECORD = struct.Struct("<IIII")
IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")
IPV6_HEADER = struct.Struct("!IHBB16s16s")
UDP_HEADER = struct.Struct("!HHHH")
IPV4_MAX_BYTES = 65_535 - IPV4_HEADER.size - UDP_HEADER.size       # of a datagram
IPV6_MAX_BYTES = 65_535 - UDP_HEADER.size

HEADER = struct.pack("<IHHIIII", MAGIC_NS, 2, 4, 0, 0, SNAPLEN, RAW)

Captured = namedtuple("Captured", "recv_ns source destination datagram")    # int, Endpoint, Endpoint, bytes


# -- writing ------------------------------------------------------------------------------------------------------

def total(data):
    """Return the Internet checksum's sum (RFC 1071): the 16-bit words, modulo 65,535, an odd byte counted as high."""
    return (int.from_bytes(data, "big") << 8 * (len(data) & 1)) % 0xFFFF


@lru_cache(CACHED)
def headers(source_address, source_port, address, port):
    """Return (True for IPv4, both addresses, both ports, sum of what does not change in the UDP pseudo header)."""
    target = ipaddress.ip_address(address).packed
    if source_address is None:
        source_address = "0.0.0.0" if len(target) == 4 else "::"
    origin = ipaddress.ip_address(source_address).packed
    if len(origin) != len(target):
        raise ValueError(f"{source_address} cannot have sent to {address}: one is IPv4, one IPv6")
    ports = struct.pack("!HH", source_port, port)
    return len(target) == 4, origin + target, ports, total(origin + target + ports) + UDP


def record(recv_ns, source, destination, datagram):
    """Return one record of the file.

    Args: source, destination: (address as text, port, ...), so an Endpoint or what a socket's recvfrom() tells;
    source None: not known. Raises ValueError for a datagram longer than UDP's, or addresses of two kinds.
    """
    source_address, source_port = source[:2] if source else (None, 0)
    is_ipv4, addresses, ports, fixed = headers(source_address, source_port, destination[0], destination[1])
    size = len(datagram)
    if size > (IPV4_MAX_BYTES if is_ipv4 else IPV6_MAX_BYTES):
        raise ValueError(f"a datagram of {size} bytes; UDP takes {IPV4_MAX_BYTES if is_ipv4 else IPV6_MAX_BYTES}")
    udp_bytes = size + UDP_HEADER.size
    checksum = -(fixed + 2 * udp_bytes + total(datagram)) % 0xFFFF or 0xFFFF      # 0 would say there is none
    if is_ipv4:
        head = struct.pack("!BBHHHBB", 0x45, 0, udp_bytes + 20, 0, 0x4000, 1, UDP)       # not to be fragmented
        head += struct.pack("!H", -(total(head) + total(addresses)) % 0xFFFF)
    else:
        head = struct.pack("!IHBB", 6 << 28, udp_bytes, UDP, 1)
    frame_bytes = len(head) + len(addresses) + udp_bytes
    seconds, ns = divmod(recv_ns, 1_000_000_000)
    return b"".join((RECORD.pack(seconds, ns, frame_bytes, frame_bytes), head, addresses, ports,
                     struct.pack("!HH", udp_bytes, checksum), datagram))


def begins(head):
    """Return True if a file that begins so, be it one byte, is a pcap file of any kind; a recording never does."""
    return head[:1] in (b"\xd4", b"\x4d", b"\xa1") or head[:2] == PCAPNG[:2]


# -- reading ------------------------------------------------------------------------------------------------------

@lru_cache(CACHED)
def endpoint(packed, port):
    return Endpoint(str(ipaddress.ip_address(packed)), port, None)


class Reader:
    """The datagrams of a file that is open for reading bytes (a pipe will do), in its order.

    frames       records read
    datagrams    those that were whole UDP datagrams, and handed over
    others       neither IPv4 nor IPv6, no UDP, or with lengths that contradict each other
    fragments    parts of a datagram that IP had to cut
    cut          the capture kept less than the datagram (its snaplen)

    Raises CaptureError, with the file's name and the record's number, when the file is none of the kind, or ends in a
    record; all before that was handed over.
    """

    def __init__(self, file, name):
        self.name = name
        self.read = file.read
        self.frames = self.datagrams = self.others = self.fragments = self.cut = 0
        head = self.read(24)
        if head[:4] == PCAPNG:
            raise CaptureError(f"{name}: a pcapng file; `editcap -F nsecpcap IN OUT` makes a pcap file of it")
        for order in "<>":
            magic = struct.unpack(order + "I", head[:4])[0] if len(head) >= 4 else 0
            if magic in (MAGIC_US, MAGIC_NS):
                break
        else:
            raise CaptureError(f"{name}: no pcap file (it begins with {head[:4].hex(' ') or 'nothing'})")
        if len(head) < 24:
            raise CaptureError(f"{name}: ends in the file's header")
        self.order = order
        self.fraction_ns = 1 if magic == MAGIC_NS else 1000
        major, minor, self.link = struct.unpack(order + "HH12xI", head[4:])
        self.link &= 0xFFFF                           # above: what is known of a frame check sequence, which IP ignores
        if major != 2:
            raise CaptureError(f"{name}: pcap version {major}.{minor}; 2.4 can be read")
        if self.link not in LINKS:
            raise CaptureError(f"{name}: link type {self.link}; Ethernet (1), raw IP (101), Linux cooked (113, 276) "
                               "and BSD loopback (0, 108) can be read")

    def __iter__(self):
        unpack = struct.Struct(self.order + "IIII").unpack
        while True:
            head = self.read(16)
            if not head:
                return
            if len(head) < 16:
                raise CaptureError(f"{self.name}, record {self.frames + 1}: the file ends in it")
            seconds, fraction, kept_bytes, _ = unpack(head)
            if kept_bytes > MAX_FRAME_BYTES:
                raise CaptureError(f"{self.name}, record {self.frames + 1}: {kept_bytes} bytes; {MAX_FRAME_BYTES} are "
                                   "the most that can be read")
            frame = self.read(kept_bytes)
            if len(frame) < kept_bytes:
                raise CaptureError(f"{self.name}, record {self.frames + 1}: the file ends in it")
            self.frames += 1
            found = self.datagram(frame)
            if found:
                self.datagrams += 1
                yield Captured(seconds * 1_000_000_000 + fraction * self.fraction_ns, *found)

    def datagram(self, frame):
        """Return (source, destination, datagram) of a frame, or None, which is counted."""
        at = LINKS[self.link]
        known = PROTOCOL_AT.get(self.link)
        if known is not None:
            if len(frame) < at:
                return self.other()
            kind = int.from_bytes(frame[known:known + 2], "big")
            for _ in range(MAX_HEADERS):
                if kind not in VLANS or len(frame) < at + 4:
                    break
                kind = int.from_bytes(frame[at + 2:at + 4], "big")
                at += 4
            if kind not in ETHERTYPES:
                return self.other()
        version = frame[at] >> 4 if at < len(frame) else 0
        if version == 4 and len(frame) >= at + 20:
            return self.ipv4(frame, at)
        if version == 6 and len(frame) >= at + 40:
            return self.ipv6(frame, at)
        return self.other()

    def ipv4(self, frame, at):
        first, _, ip_bytes, _, fragment, _, protocol, _, source, destination = IPV4_HEADER.unpack_from(frame, at)
        header_bytes = 4 * (first & 15)
        if protocol != UDP or not 20 <= header_bytes <= ip_bytes:
            return self.other()
        if fragment & 0x3FFF:                         # an offset, or more to follow
            self.fragments += 1
            return None
        return self.udp(frame, at + header_bytes, ip_bytes - header_bytes, source, destination)

    def ipv6(self, frame, at):
        _, rest, following, _, source, destination = IPV6_HEADER.unpack_from(frame, at)
        at += 40
        for _ in range(MAX_HEADERS):
            if following == FRAGMENT and rest >= 8 and len(frame) >= at + 8:
                if int.from_bytes(frame[at + 2:at + 4], "big") & 0xFFF9:
                    self.fragments += 1
                    return None
                size = 8                              # "atomic": a fragment that is all (RFC 6946)
            elif following in EXTENSIONS and rest >= 8 and len(frame) >= at + 2:
                size = 8 * (frame[at + 1] + 1)
            else:
                break
            if at >= len(frame) or rest < size:
                return self.other()
            following = frame[at]
            at += size
            rest -= size
        return self.udp(frame, at, rest, source, destination) if following == UDP else self.other()

    def udp(self, frame, at, rest, source, destination):
        """`rest`: the bytes that IP says are there from `at` on; behind them Ethernet may have padded."""
        if len(frame) < at + UDP_HEADER.size:
            return self.other()
        source_port, port, size, _ = UDP_HEADER.unpack_from(frame, at)
        if not UDP_HEADER.size <= size <= rest:
            return self.other()
        if len(frame) < at + size:
            self.cut += 1
            return None
        return endpoint(source, source_port), endpoint(destination, port), frame[at + UDP_HEADER.size:at + size]

    def other(self):
        self.others += 1
