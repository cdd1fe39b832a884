"""`feeder bench`: what each machine costs, as a ratio to a stated reference measured in the same run.

The main reference is `json.loads` of the same bytes: what anybody pays before doing anything. Ours and the
reference are timed in turn, REPEATS times each; the figure is the ratio of the medians, the spread tells how
far the repeats lay apart. Every bench checks its answer. The recordings are used where they are
(FEEDER_CAPTURES, default ../shared/data), else messages of the venue twin, and the report says which.

    fixed      decimal text to int and back            decode     payload to calls on a sink
    book       increments into a book                  packet     calls to datagrams in memory
    frame      WebSocket frames out of received bytes  pipeline   payload to datagram in memory, one a message
    ring       from one spinning process to another: a call on the writer to the call on the reader's sink
"""

import contextlib
import gc
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from struct import Struct

from feeder import __version__, capture, clock, fixed, report, shm
from feeder.book import Book
from feeder.counter import Histogram
from feeder.errors import ConfigError, FeederError
from feeder.instrument import Instrument
from feeder.message import LIVE
from feeder.packet import Encoder
from feeder.pipeline import Pipeline
from feeder.record import RecordReader, RecordWriter
from feeder.ring import Ring, form, ring_bytes
from feeder.screen import time_text
from feeder.venue.binance import BinanceSpot
from feeder.venue.contract import Instruments
from feeder.websocket import CLIENT, SERVER, TEXT, Connection

REPEATS = 7
NOISY_SPREAD = 0.15              # repeats further apart than this make a result doubtful
RECORDING = os.path.join("binance_spot", "btcusdt_20240808_10min.jsonl.gz")
RECEIVE_BYTES = 65_536


class Traffic:
    """What the benches feed: `snapshot` (bytes), `messages` (all payloads, in order), and by kind."""

    def __init__(self, source, snapshot, messages):
        self.source = source
        self.snapshot = snapshot
        self.messages = messages
        self.kinds = {"depth": [each for each in messages if b"@depth" in each[:60]],
                      "trade": [each for each in messages if b"@trade" in each[:60]],
                      "bbo": [each for each in messages if b"@bookTicker" in each[:60]]}
        self.kinds["mix"] = messages


def load_traffic(limit):
    """The BTCUSDT spot recording from its snapshot on, or the same kind of traffic made by the twin's market."""
    path = os.path.join(os.environ.get("FEEDER_CAPTURES", os.path.join("..", "shared", "data")), RECORDING)
    if not os.path.exists(path):
        return synthetic_traffic(limit)
    messages, snapshot = [], None
    for record in capture.read(path):
        if record.kind == "rest":
            snapshot = record.payload
        else:
            messages.append(record.payload)
        if len(messages) >= limit:
            break
    return Traffic(f"recording {RECORDING}", snapshot, messages)


def synthetic_traffic(limit):
    """As many messages of one listing of the twin's seeded market, as its server would send them."""
    from feeder.twin.registry import DIALECTS
    from feeder.twin.source import BBO, DEPTH, TRADE, Synthetic
    names = {DEPTH: "btcusdt@depth@100ms", TRADE: "btcusdt@trade", BBO: "btcusdt@bookTicker"}
    market = Synthetic(DIALECTS["binance_spot"](), ["BTCUSDT"], seed=1, rate=1_000)
    now_ms = 1_723_161_255_000
    snapshot = market.depth("BTCUSDT", 5000, now_ms).encode()
    messages = []
    while len(messages) < limit:
        now_ms += 3
        for event in market.market.step(now_ms):
            if event[0] in names:
                text = market.text(event[0], "BTCUSDT", event, now_ms)
                messages.append(f'{{"stream":"{names[event[0]]}","data":{text}}}'.encode())
    return Traffic("the venue twin's market, seed 1 (no recording found)", snapshot, messages)


# -- measuring -------------------------------------------------------------------------------------------------


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


def compare(name, scenario, count, run, reference, reference_name, repeats, prepare=lambda: None, unit="message"):
    """Time `run(prepare())` and `reference()` in turn, after one unmeasured round; both do `count` units of work."""
    run(prepare())
    reference()
    pairs = []
    for _ in range(repeats):
        state = prepare()
        pairs.append((timed(lambda: run(state)), timed(reference)))
    own_ns, reference_ns = (statistics.median(column) for column in zip(*pairs))
    ratios = sorted(own / other for own, other in pairs)
    spread = (ratios[-1] - ratios[0]) / ratios[len(ratios) // 2]
    return {"bench": name, "scenario": scenario, "count": count, "unit": unit, "ns": round(own_ns / count, 1),
            "reference": reference_name, "reference_ns": round(reference_ns / count, 1),
            "ratio": round(own_ns / reference_ns, 3), "best_ratio": round(ratios[0], 3), "spread": round(spread, 3),
            "noisy": spread > NOISY_SPREAD, "per_second": round(count * 1e9 / own_ns)}


def loads_all(payloads):
    def work(loads=json.loads):
        for payload in payloads:
            loads(payload)
    return work


def same(answers, what):
    """Return the one answer all repeats gave."""
    if len(answers) != 1:
        raise BenchError(f"{what}: the repeats gave {len(answers)} different answers")
    return answers.pop()


class BenchError(FeederError):
    """A bench computed something wrong: its time means nothing."""


class NoSink:
    """Takes every call and does nothing."""

    def define(self, *args):
        pass

    depth = snapshot = increment = trade = bbo = stale = define


class ListSink(NoSink):
    """Keeps the calls that reach the publisher."""

    def __init__(self):
        self.calls = []

    def increment(self, *args):
        self.calls.append(args)

    def trade(self, *args):
        self.calls.append(args)

    bbo = trade


# -- benches ---------------------------------------------------------------------------------------------------


def bench_fixed(traffic, repeats):
    texts = [level[0] for level in json.loads(traffic.snapshot)["bids"]]

    def run(_):
        for text in texts:
            fixed.parse(text, 8)

    def reference():
        for text in texts:
            float(text)
    for text in texts:
        if fixed.parse(text, 8) != int(text.replace(".", "")):
            raise BenchError(f"fixed: {text}")
    yield compare("fixed", "parse price text", len(texts), run, reference, "float", repeats, unit="number")


def new_venue(traffic, sink):
    """A decoder that has learned the shapes."""
    venue = BinanceSpot(sink, Instruments(), discover=True)
    for kind in ("depth", "trade", "bbo"):
        for payload in traffic.kinds[kind][:1]:
            venue.decode(payload, 0)
    return venue


def bench_decode(traffic, repeats):
    for kind, payloads in traffic.kinds.items():
        venue = new_venue(traffic, NoSink())

        def run(_):
            decode = venue.decode
            for payload in payloads:
                decode(payload, 0)
        unlikely = venue.unlikely
        row = compare("decode", kind, len(payloads), run, loads_all(payloads), "json.loads", repeats)
        row["unlikely"] = venue.unlikely - unlikely
        yield row


def decoded_depth(traffic):
    """Return (snapshot levels, [(bids, asks), ...]) of the diffs, as ints."""
    sink = ListSink()
    sink.depth = sink.snapshot = sink.trade
    venue = new_venue(traffic, sink)
    instrument = venue.instruments.all[0]
    venue.decode_snapshot(instrument, traffic.snapshot, 0)
    snapshot = sink.calls.pop()[-2:]
    sink.calls.clear()
    for payload in traffic.kinds["depth"]:
        venue.decode(payload, 0)
    return snapshot, [call[-2:] for call in sink.calls]


def bench_book(traffic, repeats):
    snapshot, diffs = decoded_depth(traffic)
    levels = sum(len(bids) + len(asks) for bids, asks in diffs) // 2

    def prepare():
        book = Book()
        book.snapshot(*snapshot)
        return book

    def run(book):
        for bids, asks in diffs:
            book.increment(bids, asks)
        answers.add(hashlib.blake2b(repr(book.top()).encode(), digest_size=8).hexdigest())

    def reference():
        """The plain book: a dict a side, sorted for the best price only when asked; here, never."""
        for side, at in (({}, 0), ({}, 1)):
            flat = snapshot[at]
            side.update(zip(flat[::2], flat[1::2]))
            for diff in diffs:
                flat = diff[at]
                for price, quantity in zip(flat[::2], flat[1::2]):
                    if quantity:
                        side[price] = quantity
                    else:
                        side.pop(price, None)
            plain.add(hashlib.blake2b(repr(sorted(side.items(), reverse=not at)).encode(), digest_size=8).hexdigest())
    answers, plain = set(), set()
    row = compare("book", "depth diffs, 20 levels published", levels, run, reference,
                  "a dict a side, never sorted", repeats, prepare, unit="level")
    row["book_hash"] = same(answers, "book")
    book = prepare()
    run(book)
    sides = [hashlib.blake2b(repr(list(zip(flat[::2], flat[1::2]))).encode(), digest_size=8).hexdigest()
             for flat in book.top()]
    if set(sides) != plain:
        raise BenchError("book: the ladder and the plain book differ")
    yield row


def bench_packet(traffic, repeats):
    count = 10_000

    def run(_):
        encoder = Encoder(1, 0, lambda datagram: None, lambda: 0)
        trade = encoder.trade
        for number in range(count):
            trade(1, 2, 1, number, number, number, number, 6183764000000, 100000, 1)
        encoder.flush()

    def reference(pack=Struct("<Qqq").pack):
        for number in range(count):
            pack(number, 6183764000000, 100000)
    yield compare("packet", "trades, 19 a datagram", count, run, reference, "Struct.pack of three numbers", repeats)


def bench_frame(traffic, repeats):
    payloads = traffic.messages
    server = Connection(SERVER)
    wire = b"".join(server.send(TEXT, payload) for payload in payloads)
    pieces = [wire[at:at + RECEIVE_BYTES] for at in range(0, len(wire), RECEIVE_BYTES)]
    views = [memoryview(piece) for piece in pieces]
    sizes = [len(payload) + (2 if len(payload) < 126 else 4) for payload in payloads]

    def run(_):
        receive = Connection(CLIENT).receive
        got = 0
        for view in views:
            got += len(receive(view))
        if got != len(payloads):
            raise BenchError(f"frame: {got} frames of {len(payloads)}")

    def reference():
        """Header by index and a slice; it trusts the wire, and so has all of it in one piece."""
        at = 0
        for _ in sizes:
            size = wire[at + 1]
            start = at + 2
            if size == 126:
                size = wire[start] << 8 | wire[start + 1]
                start += 2
            at = start + size
            wire[start:at]
    yield compare("frame", f"recording's mix in pieces of {RECEIVE_BYTES} bytes", len(payloads), run, reference,
                  "a bare loop of index and slice", repeats, unit="frame")


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


def bench_pipeline(traffic, repeats):
    for kind, payloads in traffic.kinds.items():
        answers = set()

        def prepare():
            datagrams = []
            return (*new_pipeline(traffic, lambda view: datagrams.append(bytes(view))), datagrams)

        def run(state):
            pipeline, venue, datagrams = state
            decode, flush = venue.decode, pipeline.encoder.flush
            for payload in payloads:
                decode(payload, 1)
                flush()
            run.state = state
        row = compare("pipeline", kind, len(payloads), run, loads_all(payloads), "json.loads", repeats, prepare)
        for _ in range(2):
            state = prepare()
            run(state)
            answers.add(hashlib.blake2b(b"".join(state[2]), digest_size=8).hexdigest())
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


RING_SLOTS, RING_ROOM, RING_SPINS = 65_536, 64, 100_000
WORDS_BYTES, ANSWER_AT = 4096, 32               # the reference: two words, far apart


def bench_ring(traffic, repeats):
    """A process of its own writes; this one reads. Hops one at a time, then records as fast as they go."""
    if not hasattr(os, "sched_yield"):
        return                                  # workers are POSIX only
    count = 20_000 if repeats == REPEATS else 1_000
    hops, words, rates, p50s = Histogram(), Histogram(), [], []
    for _ in range(repeats):
        hop, word, rate = ring_round(count)
        hops.merge(hop)
        words.merge(word)
        rates.append(rate)
        p50s.append(hop.percentile(50) / max(1, word.percentile(50)))
    p50s.sort()
    own_ns, reference_ns = hops.percentile(50), words.percentile(50)
    spread = (p50s[-1] - p50s[0]) / p50s[len(p50s) // 2]
    yield {"bench": "ring", "scenario": "hop of a trade, both sides spin, p50", "count": count, "unit": "message",
           "ns": own_ns, "reference": "hop of one word in shared memory", "reference_ns": reference_ns,
           "ratio": round(own_ns / max(1, reference_ns), 3), "best_ratio": round(p50s[0], 3), "spread": round(spread, 3),
           "noisy": spread > NOISY_SPREAD, "per_second": round(statistics.median(rates)),
           "latency_ns": hops.summary(), "reference_latency_ns": words.summary()}


def ring_round(count):
    """Return (Histogram of hops through a ring, of hops by a word, records a second through the ring)."""
    with contextlib.ExitStack() as stack:
        segments = [shm.create(size) for size in (ring_bytes(RING_SLOTS, 1), WORDS_BYTES)]
        for segment in segments:
            stack.callback(segment.close)
        form(segments[0].buffer, RING_SLOTS, 1)
        ring = Ring(segments[0].buffer)
        stack.callback(ring.close)
        words = stack.enter_context(memoryview(segments[1].buffer).cast("Q"))
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        fds = [segment.fd for segment in segments]
        child = subprocess.Popen([sys.executable, "-m", "feeder.bench", *map(str, (*fds, count))], pass_fds=fds,
                                 env=dict(os.environ, PYTHONPATH=path))
        stack.callback(child.wait)
        stack.callback(child.kill)
        return read_hops(ring, words, count, child.poll)


def read_hops(ring, words, count, poll):
    stopwatch_ns = clock.stopwatch_ns

    def look():
        """Called once in a while of spinning: has the writer died?"""
        if poll():
            raise BenchError(f"ring: the writing process ended with exit code {poll()}")
        return 0
    by_word, last = Histogram(), 0
    for _ in range(count):
        spins = 0
        while words[0] == last:
            spins += 1
            if spins > RING_SPINS:
                spins = look()
        now_ns = stopwatch_ns()
        last = words[0]
        by_word.add(now_ns - last)
        words[ANSWER_AT] = last

    class Sink(NoSink):
        received_ns = 0
        hops = Histogram()
        trades = 0

        def trade(self, instrument, sequence, *more):
            if self.received_ns:                 # a hop alone, not one of the many at once
                self.hops.add(stopwatch_ns() - self.received_ns)
            if sequence != self.trades:
                raise BenchError(f"ring: trade {sequence} where {self.trades} should be")
            self.trades += 1
            self.received_ns = 0
        start_over = NoSink.define
    sink = Sink()
    reader = RecordReader(ring, sink, {0: Instrument(0, "venue", "SYMBOL")}, NoSink().define)

    def drain(stop):
        spins = 0
        while sink.trades < stop:
            if not reader.drain():
                spins += 1
                if spins > RING_SPINS:
                    spins = look()
    drain(count + 1)
    start, start_ns = sink.trades, stopwatch_ns()
    drain(11 * count)
    return sink.hops, by_word, (11 * count - start) * clock.SECOND / (stopwatch_ns() - start_ns)


def write_hops(ring_fd, words_fd, count):
    """The other process: `count` words, `count` trades, each answered before the next; then ten times as many at once."""
    segments = [shm.Segment(fd) for fd in (ring_fd, words_fd)]
    ring = Ring(segments[0].buffer)
    ring.write(*shm.identity())
    stopwatch_ns = clock.stopwatch_ns
    words = memoryview(segments[1].buffer).cast("Q")
    for _ in range(count):
        words[0] = sent_ns = stopwatch_ns()
        while words[ANSWER_AT] != sent_ns:
            pass
    instrument = Instrument(0, "venue", "SYMBOL")
    writer = RecordWriter(ring, None)
    writer.start()
    writer.define(instrument, 1, 1)
    trade, fill = writer.trade, ring.fill
    for number in range(count):
        while fill():
            pass
        writer.received_ns = stopwatch_ns()
        trade(instrument, number, 0, 0, number, 6183764000000, 100000, 1)
    writer.received_ns = 0
    for number in range(count, 11 * count):
        if number % RING_ROOM == 0:
            while ring.free_slots() < RING_ROOM:
                pass
        trade(instrument, number, 0, 0, number, 6183764000000, 100000, 1)
    os._exit(0)                                 # the mappings are the kernel's to clear


BENCHES = {"fixed": bench_fixed, "frame": bench_frame, "decode": bench_decode, "book": bench_book,
           "packet": bench_packet, "pipeline": bench_pipeline, "ring": bench_ring}


# -- the command -----------------------------------------------------------------------------------------------


def configure(parser):
    parser.description = "Measure the machines. Figures are ratios to a reference timed in the same run."
    parser.epilog = ("example: python3 -m feeder bench pipeline --json result.json\n"
                     "environment: FEEDER_CAPTURES names the folder of recordings\n"
                     "exit codes: 0 done, 1 a bench computed something wrong, 2 wrong usage")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; default all")
    parser.add_argument("--quick", action="store_true", help="few messages and repeats: does it run, is it right")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON too; - is standard output")


def main(args):
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        raise ConfigError(f"no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    limit, repeats = (2_000, 2) if args.quick else (60_000, REPEATS)
    traffic = load_traffic(limit)
    out = sys.stderr if args.json == "-" else sys.stdout
    machine = f"{platform.python_implementation()} {platform.python_version()}, {processor()}, {os.cpu_count()} cores"
    print(f"feeder {__version__} on {machine}\n{len(traffic.messages):,} messages of {traffic.source}\n", file=out)
    print(f"{'bench':<10}{'scenario':<44}{'ours':>10}{'reference':>11}{'ratio':>8}{'spread':>8}{'a second':>12}", file=out)
    rows = []
    for name in args.names or BENCHES:
        for row in BENCHES[name](traffic, repeats):
            rows.append(row)
            print(f"{row['bench']:<10}{row['scenario']:<44}{row['ns']:>7,.0f} ns{row['reference_ns']:>8,.0f} ns"
                  f"{row['ratio']:>8.2f}{row['spread']:>8.0%}{row['per_second']:>12,}"
                  + ("  NOISY" if row["noisy"] else ""), file=out, flush=True)
    for row in rows:
        if "latency_ns" in row:
            shown = ", ".join(f"{name} {time_text(row['latency_ns'][name])}"
                              for name in ("p50", "p90", "p99", "p999", "max"))
            print(f"{row['bench']} {row['scenario']}, single messages: {shown}", file=out)
        if "reference_latency_ns" in row:
            latency = row["reference_latency_ns"]
            print(f"  reference: p50 {time_text(latency['p50'])}, p99 {time_text(latency['p99'])}", file=out)
    references = dict.fromkeys(f"{row['bench']}: {row['reference']}" for row in rows)
    print("references   " + "; ".join(references), file=out)
    if args.json:
        report.write({"feeder": __version__, "machine": machine, "source": traffic.source, "repeats": repeats,
                      "results": rows}, args.json)
    return 0


def processor():
    """Return the processor's name as the kernel tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    write_hops(*map(int, sys.argv[1:]))
