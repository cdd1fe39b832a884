"""Datagrams between two addresses: a socket that anybody may send to, and that answers whom it likes.

In:   datagrams with their sender's address.   Out: datagrams to an address.

It never blocks; what the kernel does not take is counted, as in udp.py. IPv4 or IPv6 by the address it is bound to.
Bound to all addresses it would hear what is broadcast, or sent to a group that anybody on this host joined (ip(7)): one
forged request, and every server of a network answers the same third party. On Linux such a datagram is seen as empty.
"""

import errno
import ipaddress
import logging
import socket

from ..errors import HostError
from .sockets import BUFFER_BYTES, LINUX, address_text, os_error_text, request_buffer

log = logging.getLogger("feeder.net")

TURN = 1                     # requests that are answered in one turn: up to 64 packets, 0.25 ms
REQUEST_BYTES = 2048         # what is longer is cut, and then malformed
IP_PKTINFO = 8               # ip(7), Linux; int index, struct in_addr ours, struct in_addr it was sent to
TOLD_BYTES = 80              # CMSG_SPACE of it, and of IPv6's: struct in6_addr it was sent to, unsigned index


class UnicastSocket:
    def __init__(self, address="127.0.0.1", port=0, *, send_buffer_bytes=BUFFER_BYTES, recv_buffer_bytes=BUFFER_BYTES):
        """Bind an address of this host ("0.0.0.0", "::" for all); port 0 is any, see `.port`. Raises HostError."""
        self.sent = self.bytes = self.dropped = self.errors = 0
        self._logged = set()             # errno values
        self._buffer = memoryview(bytearray(REQUEST_BYTES))
        try:
            own = ipaddress.ip_address(address.partition("%")[0])
            if own.is_multicast or address == "255.255.255.255":
                raise ValueError("expected the address of a host")
            is_ipv6 = own.version == 6
            self._socket = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        except (ValueError, OSError) as error:
            raise HostError(f"cannot open a socket at {address}: {os_error_text(error)}") from None
        try:
            self._socket.setblocking(False)
            self.recv_buffer_bytes = request_buffer(self._socket, "receive", recv_buffer_bytes)
            self.send_buffer_bytes = request_buffer(self._socket, "send", send_buffer_bytes)
            self._socket.bind((address, port))
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot bind {address_text((address, port))}: {os_error_text(error)}") from None
        self.address, self.port = self._socket.getsockname()[:2]
        self._recvfrom_into = self._socket.recvfrom_into
        if LINUX and own.is_unspecified:
            self._socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)        # of IPv6's sockets, too: they hear IPv4
            if is_ipv6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._recvfrom_into = self._receive_ours_into
        self._sendto = self._socket.sendto

    def receive_into(self, buffer):
        """Receive one datagram; return (bytes, the sender's address), or None when there is none now."""
        try:
            return self._recvfrom_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:         # Windows: somebody we answered was gone (KB 263823), or it is too long
            self._count(error, "receiving")
            return None

    def _receive_ours_into(self, buffer):
        size, ancillary, _, address = self._socket.recvmsg_into((buffer,), TOLD_BYTES)
        for level, kind, told in ancillary:
            if (level == socket.IPPROTO_IP and kind == IP_PKTINFO and told[4:8] != told[8:12]
                    or level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and told[0] == 0xFF):
                size = 0
        return size, address

    def send(self, datagram, address):
        """Send one datagram; return False if it did not leave, which is counted."""
        try:
            self.bytes += self._sendto(datagram, address)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno == errno.ENOBUFS:
                self.dropped += 1
            else:
                self._count(error, f"sending to {address_text(address)}")
            return False
        except OverflowError as error:               # port 0, or one that does not exist
            self._count(error, f"sending to {address_text(address)}")
            return False
        self.sent += 1
        return True

    def serve(self, answer, clock_ns, most=TURN):
        """Take up to `most` datagrams; send what answer(datagram, address, now_ns) returns to where each came from."""
        buffer = self._buffer
        for _ in range(most):
            found = self.receive_into(buffer)
            if found is None:
                break
            size, address = found
            for datagram in answer(buffer[:size], address, clock_ns()):
                self.send(datagram, address)

    def _count(self, error, doing):
        self.errors += 1
        kind = getattr(error, "errno", None)
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("%s: %s (said once, counted always)", doing, os_error_text(error))

    def fileno(self):
        return self._socket.fileno()

    def close(self):
        self._socket.close()
