"""The order of one stream: packets in as they come, by any line, late, twice or never; out in sequence, gaps named.

In:   packets, by their first number and their count.   Out: each once, ascending; between them what is lost.
Hot:  not this. A packet that is next in a stream without waits passes by: receiver.py moves `expected` itself.

                  expected                                          edge
    handed on        | wait 40..44 | held 45..52 | wait 53..53 | held 54..60 |   not heard of

What is missing is waited for, `hold_ns` from the moment that something above it was seen. Then, or when nobody has it
any more (give_up), or when too much is held, it is declared lost, and what is above it goes out. What was declared is
kept in `missing` for a while: what comes later than that is told from a duplicate. hold_ns 0 waits for nothing.

Not here: what is in packets, lines, clocks. Packets are any objects with `sequence` and `message_count`.
"""

from bisect import bisect_right

MAX_HELD = 4_096                  # packets
MAX_HELD_BYTES = 8 << 20          # on the wire; decoded they take about five times that
MAX_MISSING = 1_000               # declared ranges in which late packets are recognized
BEYOND = 2**65                    # above every number

NEXT, FILLS, AHEAD, DUPLICATE, LATE, OVERLAP = range(6)


class Reorder:
    """Args: expected, number of the first message that counts; hold_ns, how long to wait for a missing one."""

    __slots__ = ("expected", "edge", "hold_ns", "waits", "held", "held_bytes", "missing")

    def __init__(self, expected, hold_ns=0):
        self.expected = expected      # next number to hand on
        self.edge = expected          # the one after all that was heard of; without waits that is `expected`
        self.hold_ns = hold_ns
        self.waits = []               # [first, last, since_ns], ascending; since_ns None: given up
        self.held = {}                # first number -> (packet, bytes)
        self.held_bytes = 0
        self.missing = Missing()

    def place(self, first, count):
        """Return where a packet belongs, by its header alone. Nothing changes."""
        waits = self.waits
        edge = self.edge if waits else self.expected
        if first >= edge:
            return NEXT if first == self.expected else AHEAD
        last = first + count - 1
        if last >= edge:
            return OVERLAP
        if last < self.expected:
            return LATE if self.missing.overlap(first, last) else DUPLICATE
        if first < self.expected:
            return OVERLAP
        at = bisect_right(waits, [first, BEYOND]) - 1        # the last wait that begins at `first` or before
        if at >= 0 and first <= waits[at][1]:
            while last > waits[at][1] and at + 1 < len(waits) and waits[at + 1][0] == waits[at][1] + 1:
                at += 1                                      # what was given up may end within a packet
            return FILLS if last <= waits[at][1] else OVERLAP
        return OVERLAP if at + 1 < len(waits) and waits[at + 1][0] <= last else DUPLICATE

    def put(self, packet, size, now_ns):
        """Take a packet that is NEXT, AHEAD or FILLS; one without messages only tells a number. Then release()."""
        waits = self.waits
        first, count = packet.sequence, packet.message_count
        edge = self.edge if waits else self.expected
        if first >= edge:
            if first > edge:
                waits.append([edge, first - 1, now_ns])
            self.edge = first + count
        elif count:
            last = first + count - 1
            start, stop = bisect_right(waits, [first, BEYOND]) - 1, bisect_right(waits, [last, BEYOND])
            waits[start:stop] = [part for low, high, since_ns in waits[start:stop]
                                 for part in cut(low, high, first, last, since_ns)]
        if count:
            self.held[first] = packet, size
            self.held_bytes += size

    def release(self, now_ns):
        """Yield packets and (first, last) of what is declared lost, in order; `expected` has moved with each."""
        waits, held = self.waits, self.held
        while waits or held:
            if not waits or self.expected < waits[0][0]:
                packet, size = held.pop(self.expected)
                self.held_bytes -= size
                self.expected += packet.message_count
                yield packet
            elif self.is_over(waits[0][2], now_ns):
                first, last, _ = waits.pop(0)
                self.missing.add(first, last)
                self.expected = last + 1
                yield first, last
            else:
                return

    def is_over(self, since_ns, now_ns):
        """True if what is missing since then is not waited for any longer; also when the clock was set back."""
        return (since_ns is None or not 0 <= now_ns - since_ns < self.hold_ns
                or len(self.held) > MAX_HELD or self.held_bytes > MAX_HELD_BYTES or len(self.waits) > MAX_HELD)

    @property
    def deadline_ns(self):
        """When release() has something to do though nothing comes; None while nothing is waited for."""
        return self.waits[0][2] + self.hold_ns if self.waits else None

    def wanted(self, now_ns):
        """Return [(first, last, since_ns), ...] of what is waited for."""
        return [(first, last, since_ns) for first, last, since_ns in self.waits if not self.is_over(since_ns, now_ns)]

    def give_up(self, first, last):
        """Do not wait for what is missing of first..last: nobody has it. Then release()."""
        parts = []
        for low, high, since_ns in self.waits:
            parts += ([low, min(high, first - 1), since_ns], [max(low, first), min(high, last), None],
                      [max(low, last + 1), high, since_ns])
        self.waits[:] = [part for part in parts if part[0] <= part[1]]

    def check(self):
        """Assert what always holds."""
        parts = sorted([(low, high) for low, high, _ in self.waits] +
                       [(first, first + packet.message_count - 1) for first, (packet, _) in self.held.items()])
        at = self.expected
        for low, high in parts:
            assert at == low <= high, (at, low, high)
            at = high + 1
        assert not self.waits or at == self.edge
        assert self.held_bytes == sum(size for _, size in self.held.values())
        self.missing.check(self.expected)


class Missing:
    """Ranges that never came: `add` and `fill`; the newest MAX_MISSING of them."""

    __slots__ = ("ranges",)

    def __init__(self):
        self.ranges = []              # [first, last], ascending

    def add(self, first, last):
        """Add a range above all others."""
        self.ranges.append([first, last])
        if len(self.ranges) > MAX_MISSING:
            del self.ranges[0]

    def overlap(self, first, last):
        """Return how many of first..last are missing."""
        found = 0
        for low, high in reversed(self.ranges):          # from the newest: late packets are seldom old
            if high < first:
                break
            found += max(min(high, last) - max(low, first) + 1, 0)
        return found

    def fill(self, first, last):
        """Take first..last out; return how many of them were missing."""
        filled = self.overlap(first, last)
        if filled:
            self.ranges[:] = [part for low, high in self.ranges for part in (
                [[low, high]] if high < first or last < low else cut(low, high, first, last))]
        return filled

    def check(self, stop):
        at = -1
        for low, high in self.ranges:
            assert at < low <= high < stop, (at, low, high, stop)
            at = high


def cut(low, high, first, last, *rest):
    """Return what first..last leaves of low..high: [[low, high, *rest], ...]."""
    return [part for part in ([low, first - 1, *rest], [last + 1, high, *rest]) if part[0] <= part[1]]
