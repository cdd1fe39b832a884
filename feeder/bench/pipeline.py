"""The whole way in memory: raw WebSocket payload ▶ decode ▶ recovery ▶ book ▶ encoded datagram, one a message.

By kind (depth diff, trade, bookTicker) and for the recording's own mix in its own order, against `json.loads` of
the same bytes. The answer: all datagrams' hash, the same in every repeat; no gap, the book LIVE.

Then the mix's messages one by one, each timed alone (wall time, some 100 ns above the mean of all), under the
collector's policy of the measures chosen: how far p99 lies above p50. Most of that is in the messages, which have 1 to
1,000 levels.
"""

import json
from contextlib import contextmanager

from feeder import clock
from feeder.bench.measure import BenchError, compare, digest, loads_all, row_of, same
from feeder.counter import Histogram
from feeder.host.memory import Collector
from feeder.message import LIVE
from feeder.pipeline import Pipeline

GOALS = {"depth": (2.2, 1.6), "trade": (1.0, 0.6), "bbo": (1.0, 0.6), "mix": (1.3, 0.9)}
TAIL_GOAL = (6, 4)


def new_pipeline(traffic, emit):
    """A pipeline that has the book and has learned the shapes: the state of a feed that runs."""
    pipeline = Pipeline(emit, lambda: 0, session=1)
    venue = pipeline.venue("binance_spot", discover=True)
    for kind in ("depth", "trade", "bbo"):
        for payload in traffic.kinds[kind][:1]:
            venue.decode(payload, 0)
    venue.decode_snapshot(pipeline.instruments.all[0], traffic.snapshot, 0)
    for payload in traffic.kinds["depth"]:
        if pipeline.publisher.entries[0].state == LIVE:
            break
        venue.decode(payload, 0)
    pipeline.encoder.flush()
    return pipeline, venue


def bench_pipeline(run):
    traffic = run.traffic
    for kind, payloads in traffic.kinds.items():
        answers = set()

        def prepare():
            datagrams = []
            return (*new_pipeline(traffic, lambda view: datagrams.append(bytes(view))), datagrams)

        def work(state):
            pipeline, venue, datagrams = state
            decode, flush = venue.decode, pipeline.encoder.flush
            for payload in payloads:
                decode(payload, 1)
                flush()
        row = compare("pipeline", kind, len(payloads), work, loads_all(payloads), "json.loads", run.repeats, prepare,
                      goal=GOALS[kind])
        for _ in range(2):
            state = prepare()
            work(state)
            answers.add(digest(b"".join(state[2])))
        row["packets_hash"] = same(answers, f"pipeline {kind}")
        row["packets"] = len(state[2])
        entry = state[0].publisher.entries[0]
        link = state[0].recoveries["binance_spot"].link(entry.instrument)
        if link.gaps or entry.state != LIVE:
            raise BenchError(f"pipeline {kind}: {link.gaps} gaps, book {entry.state}")
        row["unlikely"] = state[1].unlikely
        with collector(run.host):
            row["latency_ns"] = latencies(payloads, prepare()).summary()
        yield row
    yield tail_row(run)


def tail_row(run):
    """How far p99 of the mix's single messages lies above their p50; `json_ratio`: the same of `json.loads`."""
    payloads = run.traffic.kinds["mix"]
    merged, pairs, plain = Histogram(), [], Histogram()
    for _ in range(run.repeats):
        pipeline, venue = new_pipeline(run.traffic, lambda view: None)
        with collector(run.host):
            found = latencies(payloads, (pipeline, venue))
            plain.merge(latencies_of(payloads, json.loads))
        p50, p99 = found.percentiles((50, 99))
        pairs.append((p99 * len(payloads), p50 * len(payloads)))
        merged.merge(found)
    p50, p99 = plain.percentiles((50, 99))
    run.notes.append(f"of json.loads of the mix's messages p99 is {p99 / p50:.1f} times p50")
    return row_of("pipeline", "mix: p99 of single messages to p50", len(payloads), pairs, "p50 of the same",
                  goal=TAIL_GOAL, latency_ns=merged.summary(), json_ratio=round(p99 / p50, 2))


@contextmanager
def collector(host):
    """Python's collector as `feeder run --profile HOST` has it, for a while."""
    if host != "tuned":
        yield
        return
    tuned = Collector()
    tuned.start()
    try:
        yield
    finally:
        tuned.close()


def latencies(payloads, state):
    """Return a Histogram of single messages."""
    pipeline, venue, *_ = state
    decode, flush = venue.decode, pipeline.encoder.flush

    def work(payload):
        decode(payload, 1)
        flush()
    return latencies_of(payloads, work)


def latencies_of(payloads, work):
    histogram = Histogram()
    stopwatch_ns, add = clock.stopwatch_ns, histogram.add
    for payload in payloads:
        start_ns = stopwatch_ns()
        work(payload)
        add(stopwatch_ns() - start_ns)
    return histogram
