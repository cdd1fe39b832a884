"""What a network card's driver tells of its offloads, delays and rings: ethtool's read-only requests, for any user.

/sys shows none of this. SIOCETHTOOL takes an ifreq that points to a structure of 32-bit words whose first is the
request; the driver fills in the rest (linux/ethtool.h, net/ethtool/ioctl.c: these are allowed without rights).
"""

import array
import socket
import struct
from collections import namedtuple

try:
    import fcntl
except ImportError:                      # Windows
    fcntl = None

from .sockets import LINUX

SIOCETHTOOL = 0x8946
GRO, FLAGS, COALESCE, RINGS = 0x2B, 0x25, 0x0E, 0x10         # ETHTOOL_GGRO, _GFLAGS, _GCOALESCE, _GRINGPARAM
LRO_FLAG = 1 << 15                                           # ETH_FLAG_LRO
IFREQ = struct.Struct("16sP16x")                             # if.h: name, then a union of at most 24 bytes
MAX_WORDS = 32                                               # of a structure; the longest here has 23

# None: the driver does not tell.
Offloads = namedtuple("Offloads", "gro lro rx_delay_us is_adaptive rx_ring rx_ring_max")


def offloads(interface, request=None):
    """Return the Offloads of an interface, None where nothing is told. `request(name, number)`: words, or None."""
    if request is None:
        if fcntl is None or not LINUX:
            return None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return offloads(interface, lambda name, number: _ask(sock, name, number))
    gro, flags, coalesce, rings = (request(interface, number) for number in (GRO, FLAGS, COALESCE, RINGS))
    found = Offloads(gro and bool(gro[1]), flags and bool(flags[1] & LRO_FLAG), coalesce and coalesce[1],
                     coalesce and bool(coalesce[10]), rings and rings[5], rings and rings[1])
    return None if set(found) == {None} else found


def _ask(sock, name, number):
    words = array.array("I", [number] + [0] * (MAX_WORDS - 1))
    try:
        fcntl.ioctl(sock, SIOCETHTOOL, IFREQ.pack(name.encode()[:15], words.buffer_info()[0]))
    except (OSError, UnicodeError):      # EOPNOTSUPP: not this driver; ENODEV: no such card; EPERM: a sandbox
        return None
    return list(words)
