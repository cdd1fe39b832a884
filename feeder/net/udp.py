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

An interface is named by its address ("127.0.0.1"), its name ("eth0"), or "" for the kernel's choice; it matters for
multicast only. IPv4 for now: what differs for IPv6 is in `_multicast_interface`, `_membership` and the option
names beside their use (RFC 3493 §5.2 takes an index wherever IPv4 takes an address).
"""

import errno
import ipaddress
import logging
import socket
import struct
import sys

from ..errors import HostError
from .sockets import BUFFER_BYTES, LINUX, os_error_text, request, request_buffer

log = logging.getLogger("feeder.net")

IP_MULTICAST_ALL = 49        # ip(7), Linux; not in the socket module
SO_MEMINFO = 55              # asm-generic/socket.h, since 4.12: an array of u32, sock_diag.h; the ninth counts drops
MEMINFO = struct.Struct("9I")
MAX_DATAGRAM_BYTES = 65_507  # a receive buffer of this size cuts nothing off
HEADERS_BYTES = 28           # of IPv4 without options, and UDP
IP_MTU = 14                  # ip(7), Linux: of the route of a connected socket
UDP_SEGMENT, UDP_GRO = 103, 104      # udp(7); not in the socket module
MAX_SEGMENTS = 64            # linux/udp.h, UDP_MAX_SEGMENTS; newer kernels take 128
# What the kernel says where it cannot cut: larger than the MTU, no checksums by the device, xfrm, another system.
NO_SEGMENTS = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT)
GRO_BYTES = 24               # CMSG_SPACE of an int


class PacketSender:
    def __init__(self, group, port, *, ttl=1, interface="127.0.0.1", loopback=True, send_buffer_bytes=BUFFER_BYTES,
                 options=None):
        """Open a sender; `group` may be unicast, which ignores ttl, interface and loopback.

        Raises HostError. `loopback` says whether this host hears its own multicast; on the interface lo it always does.
        `options`: SocketOptions, of which `priority`, `dscp` and `segment_bytes` are used. With the latter send() takes
        up to `burst` datagrams at once; `burst_text` says by which way they go.
        """
        self.sent = self.bytes = self.dropped = self.errors = self.bursts = 0
        self.group, self.port = group, port
        self.segment_bytes = options is not None and options.segment_bytes or sys.maxsize
        self.burst, self.burst_text = 1, "not asked for"
        self._logged = set()             # errno values
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self.send_buffer_bytes = request_buffer(self._socket, "send", send_buffer_bytes)
            if options is not None:
                request(self._socket, options, ("dscp", "priority"))
            if _is_multicast(group):
                self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
                self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(loopback))
                if interface:
                    self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _multicast_interface(interface))
            # After the options above, since it settles route and source address. A connected send is 0.5 us cheaper.
            self._socket.connect((group, port))
            if self.segment_bytes < sys.maxsize:
                self._allow_bursts(options)
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot send to {group}:{port} on interface {interface or 'of the route'}: "
                            f"{os_error_text(error)}") from None
        except HostError:
            self._socket.close()
            raise
        self._send = self._socket.send

    def _allow_bursts(self, options):
        (_, _, remedy), = request(self._socket, options, ("segment_bytes",))
        if remedy:
            return self._stop_bursts(remedy)
        mtu = self._socket.getsockopt(socket.IPPROTO_IP, IP_MTU)
        if self.segment_bytes + HEADERS_BYTES > mtu:
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
        log.warning("sending to %s:%d: %s", self.group, self.port, self.burst_text)

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
            log.warning("sending to %s:%d: %s (said once, counted always)", self.group, self.port,
                        os_error_text(error))

    def fileno(self):
        return self._socket.fileno()

    def close(self):
        self._socket.close()


class PacketReceiver:
    def __init__(self, group, port, *, interface="127.0.0.1", recv_buffer_bytes=BUFFER_BYTES, coalesce=False):
        """Open a receiver: joins a multicast `group` on the interface, or binds a unicast address of this host.

        Several on one host may join the same group and port, and each gets everything. Port 0 is any, see `.port`.
        `coalesce`: take bursts whole, where the kernel does that; then only receive_burst_into tells where to cut.
        Raises HostError.
        """
        self.coalesces = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self.recv_buffer_bytes = request_buffer(self._socket, "receive", recv_buffer_bytes)
            if coalesce and LINUX:
                self._coalesce()
            if _is_multicast(group):
                self._join(group, port, interface)
            else:
                self._socket.bind((group, port))     # without REUSEADDR: two would take each other's datagrams
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot receive {group}:{port} on interface {interface or 'of the route'}: "
                            f"{os_error_text(error)}") from None
        except HostError:
            self._socket.close()
            raise
        self.group = group
        self.port = self._socket.getsockname()[1]
        self._recv_into = self._socket.recv_into

    def _join(self, group, port, interface):
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not LINUX and hasattr(socket, "SO_REUSEPORT"):
            # BSD and macOS share a multicast port by this one. Linux would insist on the same user for all.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Bound to the group, other groups on the same port stay away; Windows cannot bind to a group.
        self._socket.bind(("" if sys.platform == "win32" else group, port))
        if LINUX:
            # Else the socket also hears what other processes joined on other interfaces (ip(7)).
            self._socket.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(group, interface))

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


def _is_multicast(group):
    try:
        address = ipaddress.ip_address(group)
    except ValueError:
        return False                     # a name; connect and bind look it up
    if address.version != 4:
        raise HostError(f"{group}: IPv6 is not supported for packets, expected an IPv4 address")
    return address.is_multicast


def _multicast_interface(interface):
    """The value of IP_MULTICAST_IF: an address, or an index where a name is given."""
    address = _ipv4(interface)
    if address is not None:
        return address
    index = _index(interface)
    # ip(7): struct ip_mreqn. Windows takes the index in place of the address, as 0.x.x.x.
    return struct.pack("!I", index) if sys.platform == "win32" else struct.pack("4s4si", bytes(4), bytes(4), index)


def _membership(group, interface):
    """The value of IP_ADD_MEMBERSHIP: struct ip_mreq or ip_mreqn, ip(7)."""
    group = socket.inet_aton(group)
    address = _ipv4(interface) if interface else bytes(4)
    if address is not None:
        return group + address
    index = _index(interface)
    if sys.platform == "win32":
        return group + struct.pack("!I", index)
    return struct.pack("4s4si", group, bytes(4), index)


def _ipv4(text):
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        return None


def _index(name):
    try:
        return socket.if_nametoindex(name)
    except OSError:
        names = ", ".join(found for _, found in socket.if_nameindex())
        raise HostError(f"interface {name}: neither an IPv4 address nor one of this host's: {names}") from None
