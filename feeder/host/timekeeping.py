"""Whether something keeps this host's clock: adjtimex(2) asked with no modes, which needs no right and changes nothing.

It tells the truth inside containers, too, where the daemon that steers the clock is out of sight.
"""

import ctypes
import sys
from collections import namedtuple

Clock = namedtuple("Clock", "is_synchronized max_error_us estimated_error_us")

STA_UNSYNC = 0x0040                    # linux/timex.h
TIME_ERROR = 5                         # adjtimex's return value while not synchronized


class Timex(ctypes.Structure):
    """struct timex of linux/timex.h as glibc and musl lay it out; the tail is spare room for either."""

    _fields_ = [("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long),
                ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long), ("status", ctypes.c_int),
                ("constant", ctypes.c_long), ("precision", ctypes.c_long), ("tolerance", ctypes.c_long),
                ("time", ctypes.c_long * 2), ("tick", ctypes.c_long), ("tail", ctypes.c_byte * 512)]


def read_clock(libc=None):
    """Return the kernel's Clock, None where it cannot be asked.

    A clock that nobody corrects any more is marked unsynchronized by the kernel itself, after about nine hours:
    the largest error grows by 500 us a second, and 16 s is the end (kernel/time/ntp.c).
    """
    if libc is None:
        if not sys.platform.startswith("linux"):
            return None
        try:
            libc = ctypes.CDLL(None, use_errno=True)
        except OSError:
            return None
    try:
        adjtimex = libc.adjtimex
    except AttributeError:
        return None
    adjtimex.argtypes, adjtimex.restype = [ctypes.POINTER(Timex)], ctypes.c_int
    timex = Timex()
    state = adjtimex(ctypes.byref(timex))
    if state < 0:                      # EPERM of a seccomp filter, ENOSYS
        return None
    return Clock(state != TIME_ERROR and not timex.status & STA_UNSYNC, timex.maxerror, timex.esterror)
