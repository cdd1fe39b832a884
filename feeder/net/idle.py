"""What a loop does while nothing is ready. A strategy asks the selector; `wait` returns what is ready, perhaps nothing.

    Sleep   waits in the kernel: no processor time while idle, 25 to 50 us from arrival to work, timers up to 1 ms late
    Yield   asks without waiting and offers the processor to others between two questions
    Spin    asks without waiting: a few us from arrival to work, and one processor used up whatever comes

Spin and Yield return at once: `max_wait_ns` is the longest that may pass; a round with nothing ready is a short one.
"""

import os

from ..clock import SECOND


class Sleep:
    name = "sleep"

    @staticmethod
    def wait(select, max_wait_ns):
        return select(None if max_wait_ns is None else max_wait_ns / SECOND)


class Spin:
    name = "spin"

    @staticmethod
    def wait(select, max_wait_ns):
        return select(0)


class Yield:
    name = "yield"
    _yield = staticmethod(getattr(os, "sched_yield", lambda: None))      # absent on Windows

    def wait(self, select, max_wait_ns):
        ready = select(0)
        if not ready:
            self._yield()
        return ready


STRATEGIES = {each.name: each for each in (Sleep, Spin, Yield)}
