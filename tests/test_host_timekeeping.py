"""feeder.host.timekeeping: the kernel's own answer, and every way of not getting one."""

import ctypes
import sys
import types

import pytest

from feeder.host.timekeeping import STA_UNSYNC, TIME_ERROR, Clock, Timex, read_clock


class Libc:
    """Answers adjtimex as it is told; notes the modes it was asked with."""

    def __init__(self, state=0, status=0, maxerror=1234, esterror=56):
        def adjtimex(pointer):
            timex = pointer._obj
            self.modes = timex.modes
            timex.status, timex.maxerror, timex.esterror = status, maxerror, esterror
            return state
        self.adjtimex = adjtimex


def test_synchronized_or_not():
    assert read_clock(Libc()) == Clock(True, 1234, 56)
    assert read_clock(Libc(status=STA_UNSYNC)).is_synchronized is False
    assert read_clock(Libc(state=TIME_ERROR)).is_synchronized is False


def test_it_asks_and_sets_nothing():
    libc = Libc()
    read_clock(libc)
    assert libc.modes == 0


def test_refused_or_absent():
    assert read_clock(Libc(state=-1)) is None
    assert read_clock(types.SimpleNamespace()) is None


@pytest.mark.skipif(not sys.platform.startswith("linux") or sys.maxsize < 1 << 32, reason="64-bit Linux")
def test_layout_and_this_host():
    assert (Timex.status.offset, Timex.maxerror.offset, Timex.tick.offset) == (40, 24, 88)      # linux/timex.h
    assert ctypes.sizeof(Timex) >= 208
    clock = read_clock()
    assert clock is None or clock.max_error_us >= 0 and type(clock.is_synchronized) is bool
