"""The whole way in memory: raw WebSocket payload ▶ decode ▶ recovery ▶ book ▶ encoded datagram, one a message.

By kind (depth diff, trade, bookTicker) and for the recording's own mix in its own order, against `json.loads` of
the same bytes. The answer: all datagrams' hash, the same in every repeat; no gap, the book LIVE.
"""

from feeder import clock
from feeder.bench import BenchError
from feeder.bench.measure import compare, digest, loads_all, same
from feeder.counter import Histogram
from feeder.message import LIVE
from feeder.pipeline import Pipeline

GOALS = {"depth": (2.2, 1.6), "trade": (1.0, 0.6), "bbo": (1.0, 0.6), "mix": (1.3, 0.9)}


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
        row["latency_ns"] = latencies(payloads, prepare())
        yield row


def latencies(payloads, state):
    """Return the percentiles of single messages: each timed alone, so some 100 ns above the mean."""
    pipeline, venue, _ = state
    decode, flush = venue.decode, pipeline.encoder.flush
    histogram = Histogram()
    stopwatch_ns, add = clock.stopwatch_ns, histogram.add
    for payload in payloads:
        start_ns = stopwatch_ns()
        decode(payload, 1)
        flush()
        add(stopwatch_ns() - start_ns)
    return histogram.summary()
