"""A record from one process to another: a child writes, this one reads, both spin.

First hops one at a time: a word in shared memory (the reference), then a trade through the ring, written, read and
decoded. Then ten times as many records as fast as they go. Times here are wall time, p50 of the hops; what a spinning
process uses of the CPU says nothing. The answer: every trade arrives once and in order.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import threading

from feeder import clock, shm
from feeder.bench import measure
from feeder.bench.measure import BenchError, NoSink, row_of
from feeder.bench.peers import kill, started
from feeder.counter import Histogram
from feeder.instrument import Instrument
from feeder.record import RecordReader, RecordWriter
from feeder.ring import Ring, form, ring_bytes

RING_SLOTS, RING_ROOM, RING_SPINS = 65_536, 64, 100_000
WORDS_BYTES, ANSWER_AT = 4096, 32               # the reference: two words, far apart


def bench_ring(run):
    """A process of its own writes; this one reads. Hops one at a time, then records as fast as they go."""
    if not hasattr(os, "sched_yield"):
        return                                  # workers are POSIX only
    count = 1_000 if run.quick else 20_000
    hops, words, rates, pairs = Histogram(), Histogram(), [], []
    for _ in range(run.repeats):
        hop, word, rate = ring_round(count)
        hops.merge(hop)
        words.merge(word)
        rates.append(rate)
        pairs.append((hop.percentile(50) * count, word.percentile(50) * count))
    row = row_of("ring", "hop of a trade, both sides spin, p50", count, pairs, "hop of one word in shared memory",
                 goal=(1_500, 800, "ns"), latency_ns=hops.summary(), reference_latency_ns=words.summary())
    row["per_second"] = round(statistics.median(rates))
    yield row


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
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        fds = [segment.fd for segment in segments]
        command = [sys.executable, "-m", "feeder.bench.ring", *map(str, (*fds, count))]
        child = started(stack, kill, command, pass_fds=fds, env=dict(os.environ, PYTHONPATH=path),
                        stdin=subprocess.PIPE)
        with measure.watch:
            return read_hops(ring, words, count, child.poll)


def watcher(name, poll):
    """Return what a spinning reader calls once in a while: 0, or BenchError if the writer has died."""
    def look():
        if poll():
            raise BenchError(f"{name}: the writing process ended with exit code {poll()}")
        return 0
    return look


def read_words(words, count, look):
    """Return the Histogram of hops by one word, each answered."""
    stopwatch_ns, by_word, last = clock.stopwatch_ns, Histogram(), 0
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
    return by_word


def write_words(words, count):
    """The other side of read_words."""
    stopwatch_ns = clock.stopwatch_ns
    for _ in range(count):
        words[0] = sent_ns = stopwatch_ns()
        while words[ANSWER_AT] != sent_ns:
            pass


def read_hops(ring, words, count, poll):
    stopwatch_ns = clock.stopwatch_ns
    look = watcher("ring", poll)
    by_word = read_words(words, count, look)

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
    """The other process: `count` words, `count` trades, each answered before the next; then ten times as many."""
    segments = [shm.Segment(fd) for fd in (ring_fd, words_fd)]
    ring = Ring(segments[0].buffer)
    ring.write(*shm.identity())
    stopwatch_ns = clock.stopwatch_ns
    write_words(memoryview(segments[1].buffer).cast("Q"), count)
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


def end_with_parent():
    """End when its end of our standard input is gone, however it went: nobody else would stop our spinning."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    write_hops(*map(int, sys.argv[1:]))
