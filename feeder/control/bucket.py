"""So many a second, and a burst of them at once: a token bucket as virtual scheduling (GCRA, ITU-T I.371), one int."""

from feeder.clock import SECOND


class Bucket:
    """Args: per_second; burst, the most of one take(), and of several at once after a while without."""

    __slots__ = ("each_ns", "burst_ns", "full_ns")

    def __init__(self, per_second, burst):
        self.each_ns = SECOND // per_second
        self.burst_ns = burst * self.each_ns
        self.full_ns = 0             # when it would be full again, if nothing more was taken

    def wait_ns(self, count, now_ns):
        """Return how long until `count` can be taken; 0 is now."""
        return max(0, max(self.full_ns, now_ns) + count * self.each_ns - self.burst_ns - now_ns)

    def take(self, count, now_ns):
        self.full_ns = max(self.full_ns, now_ns) + count * self.each_ns

    def is_full(self, now_ns):
        return self.full_ns <= now_ns
