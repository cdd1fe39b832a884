"""Datagrams out and in: multicast groups, or plain unicast addresses.

Hot:  PacketSender.send, about 3 us on loopback, and PacketReceiver.receive_into.

Neither ever blocks. A sender's full kernel buffer is counted in `dropped` and told by return value: books go on, the
listener sees a gap in the sequence. Everything else that goes wrong while sending is counted in `errors` and logged
once for each kind.

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


class PacketSender:
    def __init__(self, group, port, *, ttl=1, interface="127.0.0.1", loopback=True, send_buffer_bytes=BUFFER_BYTES,
                 options=None):
        """Open a sender; `group` may be unicast, which ignores ttl, interface and loopback.

        Raises HostError. `loopback` says whether this host hears its own multicast; on the interface lo it always does.
        `options`: SocketOptions, of which `priority` and `dscp` are used.
        """
        self.sent = self.bytes = self.dropped = self.errors = 0
        self.group, self.port = group, port
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
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot send to {group}:{port} on interface {interface or 'of the route'}: "
                            f"{os_error_text(error)}") from None
        except HostError:
            self._socket.close()
            raise
        self._send = self._socket.send

    def send(self, datagram):
        """Send one datagram; False if it did not leave this process."""
        try:
            self.bytes += self._send(datagram)
        except OSError as error:
            return self._failed(error, datagram)
        self.sent += 1
        return True

    def _failed(self, error, datagram):
        if isinstance(error, ConnectionRefusedError):
            # Unicast, nobody listens: the ICMP answer to an earlier datagram. This one was not tried yet.
            self._count(error)
            try:
                self.bytes += self._send(datagram)
                self.sent += 1
                return True
            except OSError as again:
                error = again
        if isinstance(error, BlockingIOError) or error.errno == errno.ENOBUFS:
            self.dropped += 1
        else:
            self._count(error)
        return False

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
    def __init__(self, group, port, *, interface="127.0.0.1", recv_buffer_bytes=BUFFER_BYTES):
        """Open a receiver: joins a multicast `group` on the interface, or binds a unicast address of this host.

        Several on one host may join the same group and port, and each gets everything. Port 0 is any, see `.port`.
        Raises HostError.
        """
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self.recv_buffer_bytes = request_buffer(self._socket, "receive", recv_buffer_bytes)
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

    def receive_into(self, buffer):
        """Receive one datagram; return its length, or None when there is none now.

        A datagram longer than `buffer` is cut; MAX_DATAGRAM_BYTES always suffice.
        """
        try:
            return self._recv_into(buffer)
        except BlockingIOError:
            return None

    def kernel_drops(self):
        """Return how many datagrams the kernel dropped as our buffer was full; None where it does not tell.

        What is missing beyond these was lost before it came to this host.
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
