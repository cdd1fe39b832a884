"""When to try again: a growing, jittered pause between attempts, and a budget of connects for a whole venue.

Machines: time arrives as `now_ns`, dice as a `random.Random`.
"""

from collections import deque

from ..clock import MILLISECOND, SECOND

FIRST_NS = 250 * MILLISECOND
CAP_NS = 30 * SECOND


class Backoff:
    """Pauses between attempts, for ever: drawn evenly from 0 to a ceiling that doubles up to `cap_ns`.

    "Full jitter" (AWS Architecture Blog, 2015-03): when a venue restarts and all its clients come back, even draws
    spread them best. The budget below keeps a run of short draws from adding up.
    """

    def __init__(self, first_ns=FIRST_NS, cap_ns=CAP_NS, *, random):
        self.first_ns = first_ns
        self.cap_ns = cap_ns
        self._random = random
        self._ceiling_ns = first_ns

    def next_ns(self):
        pause_ns = self._random.randrange(self._ceiling_ns + 1)
        self._ceiling_ns = min(self.cap_ns, self._ceiling_ns * 2)
        return pause_ns

    def reset(self):
        """The attempt was a success (data came, not merely a connection): begin again at `first_ns`."""
        self._ceiling_ns = self.first_ns


class ConnectBudget:
    """At most `count` starts in any span of `window_ns`; one per venue, shared by all its connections."""

    def __init__(self, count, window_ns):
        if count < 1:
            raise ValueError(f"a budget of {count} connects never lets one start")
        self.window_ns = window_ns
        self._starts = deque(maxlen=count)       # ascending; the oldest falls out when its place is taken

    def acquire_at(self, now_ns):
        """Reserve a start; return when it may take place, `now_ns` or later."""
        start_ns = now_ns
        if len(self._starts) == self._starts.maxlen:
            start_ns = max(now_ns, self._starts[0] + self.window_ns)
        self._starts.append(start_ns)
        return start_ns
