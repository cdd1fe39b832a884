"""How benches time: ours and the reference in turn, CPU time, the answers checked. And what a row is.

Every row has: bench, scenario, count, unit, ns (CPU time a unit), reference (text), reference_ns, ratio, best_ratio,
rounds, spread, noisy, per_second. Where it applies: latency_ns and reference_latency_ns {count, p50, p90, p99, p999,
max}, rate, memory_bytes, minor_faults, major_faults, cpu_share, goal {reach, beyond, of: the key that they speak of,
the ratio if not said}, and what its bench has to say besides. tools/compare_benchmarks.py reads these names.
"""

import contextlib
import gc
import hashlib
import json
import statistics

from feeder import clock
from feeder.errors import FeederError

NOISY_SPREAD = 0.15              # rounds further apart than this make a result doubtful

watch = contextlib.nullcontext()     # entered round our side of each round; --profile puts a profiler here


class BenchError(FeederError):
    """A bench computed something wrong: its time means nothing."""


def timed(work):
    """Return ns of CPU of one call, the collector kept out of it; CPU, so that others on the machine do not count."""
    gc.collect()
    gc.disable()
    try:
        start_ns = clock.cpu_ns()
        work()
        return clock.cpu_ns() - start_ns
    finally:
        gc.enable()


def timed_ours(work):
    """As timed, for our side."""
    def watched():
        with watch:
            work()
    return timed(watched)


def compare(name, scenario, count, run, reference, reference_name, repeats, prepare=lambda: None, unit="message",
            goal=None):
    """Time `run(prepare())` and `reference()` in turn, after one unmeasured round; both do `count` units of work."""
    run(prepare())
    reference()
    pairs = []
    for _ in range(repeats):
        state = prepare()
        pairs.append((timed_ours(lambda: run(state)), timed(reference)))
    return row_of(name, scenario, count, pairs, reference_name, unit, goal)


def row_of(name, scenario, count, pairs, reference_name, unit="message", goal=None, **more):
    """Return the row of rounds [(our ns, the reference's ns), ...] of `count` units each; goal: (reach, beyond)."""
    own_ns, reference_ns = (statistics.median(column) for column in zip(*pairs))
    ratios = [own / max(1, other) for own, other in pairs]
    ratio = statistics.median(ratios)
    spread = (max(ratios) - min(ratios)) / ratio if ratio else 0.0
    row = {"bench": name, "scenario": scenario, "count": count, "unit": unit, "ns": round(own_ns / count, 1),
           "reference": reference_name, "reference_ns": round(reference_ns / count, 1), "ratio": round(ratio, 3),
           "best_ratio": round(min(ratios), 3), "rounds": len(pairs), "spread": round(spread, 3),
           "noisy": spread > NOISY_SPREAD, "per_second": round(count * clock.SECOND / max(1, own_ns)), **more}
    if goal is not None:
        row["goal"] = dict(zip(("reach", "beyond", "of"), goal))
    return row


def loads_all(payloads):
    """Return the reference that reads all payloads by `json`."""
    def work(loads=json.loads):
        for payload in payloads:
            loads(payload)
    return work


def digest(data):
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def same(answers, what):
    """Return the one answer all repeats gave."""
    if len(answers) != 1:
        raise BenchError(f"{what}: the repeats gave {len(answers)} different answers")
    return answers.pop()


class NoSink:
    """Takes every call and does nothing."""

    def define(self, *args):
        pass

    depth = snapshot = increment = trade = bbo = stale = define
