"""Latencies and rates, counted in plain ints.

In:   nanoseconds, one at a time.   Out: percentiles, within 1.6 %, from a table that never grows.
Hot:  Histogram.add, once a message.

    value        bucket
    0 .. 63      itself, exact
    64 ..        32 buckets for each power of two: the five bits after the leading one
    2**63 ..     the last one

Log-linear, as HdrHistogram does it: a bucket is never wider than 1/32 of what is in it, and `percentile`
answers with its middle. Two histograms merge by adding.
Not here: clocks. A negative latency (two clocks that disagree) counts as 0 and in `negative`.
"""

SUB_BITS = 5
EXACT = 2 << SUB_BITS                    # below it every value has its own bucket
HIGHEST = 2**63 - 1
BUCKET_COUNT = (HIGHEST.bit_length() - SUB_BITS + 1) << SUB_BITS
SECOND_NS = 1_000_000_000


class Histogram:
    """How often which latency was seen."""

    __slots__ = ("buckets", "max", "negative")

    def __init__(self):
        self.buckets = [0] * BUCKET_COUNT
        self.max = 0
        self.negative = 0

    def add(self, ns, count=1):
        if ns > self.max:
            if ns > HIGHEST:
                ns = HIGHEST
            self.max = ns
        shift = ns.bit_length() - (SUB_BITS + 1)
        if ns < 0:
            self.negative += count
            self.buckets[0] += count
        elif shift > 0:
            self.buckets[(shift << SUB_BITS) + (ns >> shift)] += count
        else:
            self.buckets[ns] += count

    @property
    def count(self):
        return sum(self.buckets)

    def percentile(self, q):
        """Return the ns that `q` per cent (0..100) of the values do not exceed; 0 when there are none."""
        return self.percentiles((q,))[0]

    def percentiles(self, wanted):
        """Return what percentile() does for several q, ascending, in one walk over the buckets."""
        total = self.count
        results = []
        seen = 0
        at = -1
        for q in wanted:
            rank = max(1, -int(-total * q // 100))       # the rank-th smallest; rounded up
            while seen < rank and at < BUCKET_COUNT - 1:
                at += 1
                seen += self.buckets[at]
            results.append(min(middle(at), self.max) if total else 0)
        return results

    def merge(self, other):
        self.buckets[:] = map(int.__add__, self.buckets, other.buckets)
        self.max = max(self.max, other.max)
        self.negative += other.negative

    def summary(self):
        p50, p90, p99, p999 = self.percentiles((50, 90, 99, 99.9))
        return {"count": self.count, "p50": p50, "p90": p90, "p99": p99, "p999": p999, "max": self.max}


def middle(bucket):
    """Return the value in the middle of a bucket: the inverse of the index in Histogram.add."""
    if bucket < EXACT:
        return bucket
    shift = (bucket >> SUB_BITS) - 1
    low = (bucket - (shift << SUB_BITS)) << shift
    return low + (1 << shift >> 1)


class Rate:
    """How fast a growing total grows, between one look and the next. Display code: floats."""

    __slots__ = ("total", "at_ns", "per_second")

    def __init__(self, now_ns, total=0):
        self.total = total
        self.at_ns = now_ns
        self.per_second = 0.0

    def update(self, now_ns, total):
        """Return the units per second since the last update; the last answer again if no time has passed."""
        passed_ns = now_ns - self.at_ns
        if passed_ns > 0:
            self.per_second = (total - self.total) * SECOND_NS / passed_ns
            self.total = total
            self.at_ns = now_ns
        return self.per_second
