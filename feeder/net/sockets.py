"""Socket options that TCP and UDP share: buffers are asked for, read back, and a shortfall is said once."""

import errno
import logging
import socket
import sys

from ..errors import FeederError

log = logging.getLogger("feeder.net")

BUFFER_BYTES = 4 << 20
LINUX = sys.platform.startswith("linux")

# name: (option, its privileged twin from asm-generic/socket.h, the kernel limit that it is cut to)
_BUFFERS = {
    "receive": (socket.SO_RCVBUF, 33, "net.core.rmem_max"),      # SO_RCVBUFFORCE
    "send": (socket.SO_SNDBUF, 32, "net.core.wmem_max"),         # SO_SNDBUFFORCE
}
_said = set()                # shortfalls already logged; at most a few sizes for each of the two buffers


class NetworkError(FeederError):
    """A connection could not be made or was lost; the text says with whom, at which stage, and why."""


class SocketOptions:
    """What a TCP socket is asked for."""

    __slots__ = ("recv_buffer_bytes", "send_buffer_bytes", "no_delay")

    def __init__(self, recv_buffer_bytes=BUFFER_BYTES, send_buffer_bytes=BUFFER_BYTES, no_delay=True):
        self.recv_buffer_bytes = recv_buffer_bytes
        self.send_buffer_bytes = send_buffer_bytes
        self.no_delay = no_delay


def request_buffer(sock, which, wanted):
    """Ask for a "receive" or "send" buffer of `wanted` bytes; return the bytes that the kernel really gave."""
    option, forced, limit = _BUFFERS[which]
    asked = wanted
    while True:
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, asked)
            break
        except OSError as error:         # BSD and macOS refuse what is over their limit where Linux cuts
            if error.errno != errno.ENOBUFS or asked < 4096:
                raise
            asked //= 2
    granted = _granted(sock, option)
    if granted < wanted and LINUX:
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, wanted)       # socket(7): needs CAP_NET_ADMIN
            granted = _granted(sock, option)
        except OSError:
            pass
    if granted < wanted and (which, wanted, granted) not in _said:
        _said.add((which, wanted, granted))
        remedy = f"; to have it all: sysctl -w {limit}={wanted}" if LINUX else ""
        log.warning("%s buffer: asked for %d bytes, the kernel gave %d%s", which, wanted, granted, remedy)
    return granted


def _granted(sock, option):
    size = sock.getsockopt(socket.SOL_SOCKET, option)
    return size // 2 if LINUX else size          # socket(7): Linux doubles it for its bookkeeping, and says so


def address_text(address):
    """"127.0.0.1:80" or "[::1]:80" of a socket address tuple."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def os_error_text(error):
    """The sentence of an OSError without its number: "Connection refused"."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
