"""Datagrams out and in: multicast groups, or plain unicast addresses.

Hot:  PacketSender.send, about 3 us on loopback, and PacketReceiver's two ways; measured by `feeder bench udp`.

Neither ever blocks. A sender's full kernel buffer is counted in `dropped` and told by return value: books go on, the
listener sees a gap in the sequence. Everything else that goes wrong while sending is counted in `errors` and logged
once for each kind.

Most of what a datagram costs is its way through the kernel, not the call. UDP_SEGMENT (Linux 4.18) sends several on
that way as one: the socket is told a size, and what is longer leaves as datagrams of it, the last perhaps shorter. A
sixth of the cost where they are many; receivers see datagrams as ever. Where the kernel or the route do not have it,
now or later, each is sent by a call of its own. UDP_GRO (5.0) is the same for who receives: what came as one is
given as one, with the size to cut it by. docs/experiments.md has the numbers, and those of sendmmsg and recvmmsg.

IPv4 and IPv6: all in which they differ is in `_Way`. An interface is named by its address ("127.0.0.1"), its name
("eth0"), its number ("2"), or "" for the kernel's choice; it matters for multicast, and for addresses of IPv6 that
mean nothing without one (fe80::1). "ff02::1%eth0" has its own. An address that is the interface is also the source
of what is sent, by which receivers may choose: with `source` they join for what this one sends (SSM, RFC 4607).

Groups that stay on this host: 239.192.0.1 by 127.0.0.1 works everywhere. Linux has no route for IPv6's by lo; the
error says how to add it.
"""

import errno
import ipaddress
import logging
import socket
import struct
import sys

from ..errors import HostError
from .sockets import BUFFER_BYTES, LINUX, address_text, os_error_text, request, request_buffer

log = logging.getLogger("feeder.net")

IP_MULTICAST_ALL = 49        # ip(7), Linux; not in the socket module
IP_ADD_SOURCE_MEMBERSHIP, MCAST_JOIN_SOURCE_GROUP = 39, 46       # ip(7), linux/in.h
SO_TIMESTAMPNS, SO_RXQ_OVFL = 35, 40     # socket(7), asm-generic/socket.h; as ancillary data of the same number
TIMESPEC = struct.Struct("@ll")
SO_MEMINFO = 55              # asm-generic/socket.h, since 4.12: an array of u32, sock_diag.h; the ninth counts drops
MEMINFO = struct.Struct("9I")
MAX_DATAGRAM_BYTES = 65_507  # a receive buffer of this size cuts nothing off
HEADERS_BYTES = {socket.AF_INET: 28, socket.AF_INET6: 48}        # without options, and UDP's
MTU = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}    # ip(7), ipv6(7), Linux
UDP_SEGMENT, UDP_GRO = 103, 104      # udp(7); not in the socket module
MAX_SEGMENTS = 64            # linux/udp.h, UDP_MAX_SEGMENTS; newer kernels take 128
# What the kernel says where it cannot cut: larger than the MTU, no checksums by the device, xfrm, another system.
NO_SEGMENTS = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT)
LOOPBACKS = ("lo", "lo0")
GRO_BYTES = 24               # CMSG_SPACE of an int
TOLD_BYTES = 96              # of an int, a struct timespec, and an int


class PacketSender:
    def __init__(self, group, port, *, ttl=1, interface="127.0.0.1", loopback=True, send_buffer_bytes=BUFFER_BYTES,
                 options=None):
        """Open a sender; `group` may be unicast, which ignores ttl, interface and loopback.

        Raises HostError. `ttl`: IPv6 calls it hop limit. `loopback` says whether this host hears its own multicast; on
        the interface lo it always does.
        `options`: SocketOptions, of which `priority`, `dscp` and `segment_bytes` are used. With the latter send() takes
        up to `burst` datagrams at once; `burst_text` says by which way they go.
        """
        self.sent = self.bytes = self.dropped = self.errors = self.bursts = 0
        self.group, self.port = group, port
        way = _Way(group, port, interface)
        self.segment_bytes = options is not None and options.segment_bytes or sys.maxsize
        self.burst, self.burst_text = 1, "not asked for"
        self._logged = set()             # errno values
        self._socket = socket.socket(way.family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self.send_buffer_bytes = request_buffer(self._socket, "send", send_buffer_bytes)
            if options is not None:
                request(self._socket, options, ("dscp", "priority"))
            if way.is_multicast:
                way.send_by(self._socket, ttl, loopback)
            # After the options above, since it settles route and source address. A connected send is 0.5 us cheaper.
            self._socket.connect(way.address)
            if self.segment_bytes < sys.maxsize:
                self._allow_bursts(options)
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot send to {way}: {way.reason(error)}") from None
        except HostError:
            self._socket.close()
            raise
        self._send = self._socket.send

    def _allow_bursts(self, options):
        (_, _, remedy), = request(self._socket, options, ("segment_bytes",))
        if remedy:
            return self._stop_bursts(remedy)
        mtu = self._socket.getsockopt(*MTU[self._socket.family])
        if self.segment_bytes + HEADERS_BYTES[self._socket.family] > mtu:
            return self._stop_bursts(f"datagrams of {self.segment_bytes} bytes do not fit into the MTU of {mtu}")
        self.burst = min(MAX_SEGMENTS, MAX_DATAGRAM_BYTES // self.segment_bytes)
        if self.burst < 2:
            return self._stop_bursts(f"two datagrams of {self.segment_bytes} bytes are too much for a call")
        self.burst_text = f"UDP_SEGMENT, {self.burst} x {self.segment_bytes} bytes"

    def _stop_bursts(self, reason):
        self.burst, self.burst_text = 1, f"one at a time: {reason}"
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
        except OSError:
            pass                         # never had it
        log.warning("sending to %s: %s", address_text((self.group, self.port)), self.burst_text)

    def send(self, datagrams):
        """Send a datagram, or several one behind the other, all but the last of segment_bytes; return how many left."""
        if len(datagrams) > self.segment_bytes:
            return self._send_burst(datagrams)
        try:
            self.bytes += self._send(datagrams)
        except OSError as error:
            return self._failed(error, datagrams)
        self.sent += 1
        return 1

    def _send_burst(self, datagrams):
        size = self.segment_bytes
        count = -(-len(datagrams) // size)
        if count <= self.burst:
            try:
                self.bytes += self._send(datagrams)
                self.sent += count
                self.bursts += 1
                return count
            except OSError as error:
                if error.errno in NO_SEGMENTS:
                    self._stop_bursts(os_error_text(error))
                elif isinstance(error, ConnectionRefusedError):
                    self._count(error)
        # The kernel takes all or nothing: what did not go together has, each alone, its own fate and count.
        return sum(self.send(datagrams[at:at + size]) for at in range(0, len(datagrams), size))

    def _failed(self, error, datagram):
        if self.burst > 1 and error.errno in NO_SEGMENTS:        # it minds the option, though there is nothing to cut
            self._stop_bursts(os_error_text(error))
            return self.send(datagram)
        if isinstance(error, ConnectionRefusedError):
            # Unicast, nobody listens: the ICMP answer to an earlier datagram. This one was not tried yet.
            self._count(error)
            try:
                self.bytes += self._send(datagram)
                self.sent += 1
                return 1
            except OSError as again:
                error = again
        if isinstance(error, BlockingIOError) or error.errno == errno.ENOBUFS:
            self.dropped += 1
        else:
            self._count(error)
        return 0

    def _count(self, error):
        self.errors += 1
        if error.errno not in self._logged:
            self._logged.add(error.errno)
            log.warning("sending to %s: %s (said once, counted always)", address_text((self.group, self.port)),
                        os_error_text(error))

    def fileno(self):
        return self._socket.fileno()

    def close(self):
        self._socket.close()


class PacketReceiver:
    def __init__(self, group, port, *, interface="127.0.0.1", source="", recv_buffer_bytes=BUFFER_BYTES,
                 coalesce=False, tells=False):
        """Open a receiver: joins a multicast `group` on the interface, or binds a unicast address of this host.

        Several on one host may join the same group and port, and each gets everything. Port 0 is any, see `.port`.
        `source`: an address; of a group, nothing is heard that has another sender. Linux only.
        `coalesce`: take bursts whole, where the kernel does that; then only receive_burst_into tells where to cut.
        `tells`: have the kernel tell receive_told_into when each came, and what it dropped before. Raises HostError.
        """
        self.coalesces = False
        self.tells = tells and LINUX
        way = _Way(group, port, interface, source)
        self._socket = socket.socket(way.family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self.recv_buffer_bytes = request_buffer(self._socket, "receive", recv_buffer_bytes)
            if coalesce and LINUX:
                self._coalesce()
            if self.tells:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
            if way.family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if way.is_multicast:
                self._join(way)
            else:
                self._socket.bind(way.address)       # without REUSEADDR: two would take each other's datagrams
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot receive {way}: {way.reason(error)}") from None
        except HostError:
            self._socket.close()
            raise
        self.group = group
        self.port = self._socket.getsockname()[1]
        self._recv_into = self._socket.recv_into

    def _join(self, way):
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not LINUX and hasattr(socket, "SO_REUSEPORT"):
            # BSD and macOS share a multicast port by this one. Linux would insist on the same user for all.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Bound to the group, other groups on the same port stay away; Windows cannot bind to a group.
        self._socket.bind(("", way.address[1]) if sys.platform == "win32" else way.address)
        way.join(self._socket)

    def _coalesce(self):
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
            self.coalesces = True
        except OSError:
            pass                         # before 5.0: one at a time

    def receive_into(self, buffer):
        """Receive one datagram; return its length, or None when there is none now.

        A datagram longer than `buffer` is cut; MAX_DATAGRAM_BYTES always suffice.
        """
        try:
            return self._recv_into(buffer)
        except BlockingIOError:
            return None

    def receive_burst_into(self, buffer):
        """Receive what came as one; return (bytes, bytes of each datagram but the last), or None when there is none.

        A single datagram is (n, n). `buffer` has MAX_DATAGRAM_BYTES at least.
        """
        try:
            if not self.coalesces:
                size = self._recv_into(buffer)
                return size, size
            size, ancillary, _, _ = self._socket.recvmsg_into((buffer,), GRO_BYTES)
        except BlockingIOError:
            return None
        for _, kind, value in ancillary:         # only where there is something to cut
            if kind == UDP_GRO:
                return size, int.from_bytes(value[:4], sys.byteorder)
        return size, size

    def receive_told_into(self, buffer):
        """Receive what came as one, and what the kernel tells of it; 1 us more than receive_burst_into.

        Returns (bytes, bytes of each datagram but the last, when it came in ns of the wall clock, how much was dropped
        since the socket was opened until it came), or None when there is none. Without `tells`, and elsewhere than on
        Linux, the time and the drops are 0.
        """
        if not self.tells:
            found = self.receive_burst_into(buffer)
            return found and (*found, 0, 0)
        try:
            size, ancillary, _, _ = self._socket.recvmsg_into((buffer,), TOLD_BYTES)
        except BlockingIOError:
            return None
        each, came_ns, drops = size, 0, 0
        for _, kind, value in ancillary:
            if kind == SO_TIMESTAMPNS:
                seconds, ns = TIMESPEC.unpack(value)
                came_ns = seconds * 1_000_000_000 + ns
            elif kind == SO_RXQ_OVFL:            # absent until the first
                drops = int.from_bytes(value[:4], sys.byteorder)
            elif kind == UDP_GRO:
                each = int.from_bytes(value[:4], sys.byteorder)
        return size, each, came_ns, drops

    def kernel_drops(self):
        """Return how often the kernel dropped something as our buffer was full; None where it does not tell.

        Datagrams; with `coalesce` a burst that is dropped counts as one. What is missing beyond these was lost before
        it came to this host.
        """
        if not LINUX:
            return None
        try:
            return MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size))[8]
        except (OSError, struct.error):
            return None

    def fileno(self):
        return self._socket.fileno()

    def close(self):
        self._socket.close()


def can_segment(segment_bytes):
    """Whether this kernel has UDP_SEGMENT; asked on a socket of its own, nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment_bytes)
            return LINUX and sock.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT) == segment_bytes
    except OSError:
        return False


class _Way:
    """An address and the interface to it, as the kernel wants to be told of either family.

    `index` is the interface by number, `local` by address, which IPv4 prefers; zeros are the kernel's choice.
    """

    def __init__(self, group, port, interface, source=""):
        host, _, zone = group.partition("%")             # RFC 4007 §11
        address = _ip(host)                              # None of a name: connect and bind look it up
        self.group, self.port, self.interface, self.source = group, port, zone or interface, source
        self.is_multicast = address is not None and address.is_multicast
        self.family = socket.AF_INET6 if address is not None and address.version == 6 else socket.AF_INET
        self.index, self.local = 0, bytes(4)
        is_six = self.family == socket.AF_INET6
        by = _ip(self.interface)
        if self.is_multicast and not is_six and by is not None and by.version == 4:
            self.local = by.packed
        elif self.interface and (self.is_multicast or is_six and address.is_link_local):
            self.index = _index(self.interface, by)
            if not is_six and socket.if_indextoname(self.index) in LOOPBACKS:
                self.index, self.local = 0, socket.inet_aton("127.0.0.1")      # else the source would be another's
        self.address = (host, port, 0, self.index) if is_six else (host, port)
        is_from = is_six and by is not None and by.version == 6
        self.from_address = (self.interface.partition("%")[0], 0, 0, self.index) if is_from else None
        if source:
            self._check_source(_ip(source))

    def _check_source(self, source):
        if not self.is_multicast:
            raise HostError(f"source {self.source}: only a multicast group is joined for one source, "
                            f"{self.group} is none")
        if source is None or source.is_multicast or (source.version == 6) != (self.family == socket.AF_INET6):
            raise HostError(f"source {self.source}: expected the address of who sends to {self.group}")
        if not LINUX:
            raise HostError(f"source {self.source}: source-specific multicast is done on Linux only")

    def __str__(self):
        return (f"{address_text((self.group, self.port))} on interface {self.interface or 'of the route'}"
                + (f" from {self.source}" if self.source else ""))

    def reason(self, error):
        """The sentence of an OSError, and what helps where that is known."""
        text = os_error_text(error)
        if LINUX and error.errno == errno.ENETUNREACH and self.is_multicast and self.family == socket.AF_INET6:
            name = socket.if_indextoname(self.index) if self.index else "INTERFACE"
            kind = "local" if name == "lo" else "multicast"      # by lo, what is not local is rejected
            text += f"; to have a route: ip -6 route add {kind} ff00::/8 dev {name} table local"
        return text

    def send_by(self, sock, ttl, loopback):
        if self.family == socket.AF_INET6:               # RFC 3493 §5.2
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, int(loopback))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.index)
            if self.from_address:
                sock.bind(self.from_address)             # IPv4 has its source by IP_MULTICAST_IF
            return
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(loopback))
        if self.interface:
            by = self._by()
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, by if len(by) == 4 else bytes(4) + by)

    def join(self, sock):
        group = socket.inet_pton(self.family, self.address[0])
        level = socket.IPPROTO_IPV6 if self.family == socket.AF_INET6 else socket.IPPROTO_IP
        # Else the socket also hears what other processes joined on other interfaces (ip(7)). Of IPv6, Linux would
        # let it even hear this group there, where anybody joined: net/ipv6/mcast.c, inet6_mc_check.
        if LINUX and level == socket.IPPROTO_IP:
            sock.setsockopt(level, IP_MULTICAST_ALL, 0)
        elif LINUX and self.index:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, socket.if_indextoname(self.index).encode())
            except PermissionError:
                pass                                     # before 5.7 for root only: then it hears them
        if self.source and self.local != bytes(4):       # struct ip_mreq_source, in Linux's order
            sock.setsockopt(level, IP_ADD_SOURCE_MEMBERSHIP, group + self.local + socket.inet_aton(self.source))
        elif self.source:                                # RFC 3678 §5.1: struct group_source_req
            sock.setsockopt(level, MCAST_JOIN_SOURCE_GROUP, struct.pack("@I0L", self.index)
                            + self._storage(group) + self._storage(socket.inet_pton(self.family, self.source)))
        elif level == socket.IPPROTO_IPV6:
            sock.setsockopt(level, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", self.index))
        else:
            sock.setsockopt(level, socket.IP_ADD_MEMBERSHIP, group + self._by())

    def _by(self):
        """What follows the group in IP_ADD_MEMBERSHIP: an address, or an index behind none (struct ip_mreqn, ip(7))."""
        if not self.index:
            return self.local
        if sys.platform == "win32":                      # takes the index in place of the address, as 0.x.x.x
            return struct.pack("!I", self.index)
        return struct.pack("@4xi", self.index)

    def _storage(self, address):
        """A struct sockaddr_storage of this family without a port."""
        head = struct.pack("@H2x4x" if self.family == socket.AF_INET6 else "@H2x", self.family)
        return (head + address).ljust(128, b"\0")


def _ip(text):
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _index(text, address):
    """The number of an interface given by name, number or address (an ip_address, or None). Raises HostError."""
    try:
        if address is None:
            numbers = (index for index, _ in socket.if_nameindex() if str(index) == text)
            return next(numbers, 0) or socket.if_nametoindex(text)
        if address.is_loopback:
            return next(index for index, name in socket.if_nameindex() if name in LOOPBACKS)
        if address.version == 6 and "%" in text:
            return socket.if_nametoindex(text.partition("%")[2])
        if address.version == 6 and LINUX:
            with open("/proc/net/if_inet6", encoding="ascii") as file:   # address, index, ...; in hexadecimal digits
                return next(int(line.split()[1], 16) for line in file if line.startswith(address.packed.hex()))
    except (OSError, StopIteration):
        pass
    names = ", ".join(found for _, found in socket.if_nameindex())
    hint = "; IPv6 takes no IPv4 address for it" if address is not None and address.version == 4 else ""
    raise HostError(f"interface {text}: neither a name nor an address of this host's: {names}{hint}") from None
