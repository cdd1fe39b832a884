"""Socket options that TCP and UDP share: asked for, read back, and a shortfall is said once, with its remedy."""

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
# name: (level, option of asm-generic/socket.h or ip(7), value of what is asked, what it takes when the kernel refuses)
_OPTIONS = {
    "busy_poll_us": (socket.SOL_SOCKET, 46, lambda asked: asked,
                     "SO_BUSY_POLL: needs CAP_NET_ADMIN, or sysctl -w net.core.busy_read={0}"),
    "priority": (socket.SOL_SOCKET, 12, lambda asked: asked, "SO_PRIORITY {0}: needs CAP_NET_ADMIN"),
    "dscp": (socket.IPPROTO_IP, socket.IP_TOS, lambda asked: asked << 2, "DSCP {0}: the kernel does not allow it"),
    "segment_bytes": (socket.IPPROTO_UDP, 103, lambda asked: asked, "UDP_SEGMENT: needs Linux 4.18"),    # udp(7)
}
_said = set()                # shortfalls already logged; at most a few sizes for each of the two buffers


class NetworkError(FeederError):
    """A connection could not be made or was lost; the text says with whom, at which stage, and why."""


class SocketOptions:
    """What a socket is asked for; 0 leaves the kernel's own value."""

    __slots__ = ("recv_buffer_bytes", "send_buffer_bytes", "no_delay", "busy_poll_us", "priority", "dscp",
                 "segment_bytes")

    def __init__(self, recv_buffer_bytes=BUFFER_BYTES, send_buffer_bytes=BUFFER_BYTES, no_delay=True, busy_poll_us=0,
                 priority=0, dscp=0, segment_bytes=0):
        self.recv_buffer_bytes = recv_buffer_bytes
        self.send_buffer_bytes = send_buffer_bytes
        self.no_delay = no_delay
        self.busy_poll_us = busy_poll_us
        self.priority = priority
        self.dscp = dscp
        self.segment_bytes = segment_bytes


def request(sock, options, names):
    """Ask for the options of these names that are not 0: "receive", "send", and those of _OPTIONS.

    In that order: IP_TOS sets the priority, too (ip(7)). Returns [(name, what the kernel gave, remedy or "")] of those
    asked for; each remedy is logged once.
    """
    found = []
    for name in names:
        wanted = {"receive": options.recv_buffer_bytes, "send": options.send_buffer_bytes}.get(name)
        if wanted is not None:
            got = request_buffer(sock, name, wanted)
            remedy = sysctl_line(name, wanted) if got < wanted else ""
        else:
            wanted = getattr(options, name)
            got, remedy = _request_option(sock, name, wanted) if wanted else (0, "")
        if wanted:
            found.append((name, got, remedy))
    return found


def granted(kind, options, names):
    """Like `request`, on a "tcp" or "udp" socket that is opened for it and closed again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        return request(sock, options, names)


def _request_option(sock, name, wanted):
    level, option, value, remedy = _OPTIONS[name]
    remedy = remedy.format(wanted)
    if not LINUX and name != "dscp":
        return 0, f"{name}: Linux only"
    if sock.family == socket.AF_INET6 and name == "dscp":        # RFC 3542 §6.5
        level, option = socket.IPPROTO_IPV6, socket.IPV6_TCLASS
    try:
        sock.setsockopt(level, option, value(wanted))
        if sock.getsockopt(level, option) == value(wanted):
            return wanted, ""
    except OSError:
        pass
    if remedy not in _said:
        _said.add(remedy)
        log.warning("not granted: %s", remedy)
    return 0, remedy


def sysctl_line(which, wanted):
    """What an administrator types to allow a buffer."""
    return f"sysctl -w {_BUFFERS[which][2]}={wanted}"


def request_buffer(sock, which, wanted):
    """Ask for a "receive" or "send" buffer of `wanted` bytes; return the bytes that the kernel really gave."""
    option, forced, _ = _BUFFERS[which]
    asked = wanted
    while asked:
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
        remedy = (f"; to have it all: {sysctl_line(which, wanted)}, to keep it: the same line without sysctl -w in "
                  "/etc/sysctl.d/90-feeder.conf" if LINUX else "")
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
