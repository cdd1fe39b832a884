"""The local tap: what a datagram costs its writer, and how long it takes to another process where both spin.

Writing stands beside the send of the same datagrams to a multicast group on loopback that one socket has joined, which
is what it is added to, or read instead of. A hop stands beside one of a word in shared memory; times of hops are wall
time, p50: what a spinning process uses of the CPU says nothing. The answers: every datagram arrives once and in order.
"""

import contextlib
import os
import subprocess
import sys
import threading

from feeder import clock, shm
from feeder.bench import measure
from feeder.bench.measure import BenchError, row_of, timed, timed_ours
from feeder.bench.peers import kill, started
from feeder.bench.ring import ANSWER_AT, RING_SPINS, WORDS_BYTES, end_with_parent, read_words, watcher, write_words
from feeder.counter import Histogram
from feeder.net import PacketReceiver, PacketSender
from feeder.net.handover import TAP_SLOTS
from feeder.tap import TapReader, TapWriter, form, tap_bytes

GROUP = "239.192.7.9"
SIZES = (184, 1472)                      # an increment and a trade; the largest datagram by default
HOP_BYTES = 184
CHUNK = 400                              # of the largest datagrams, what any receive buffer holds


def bench_tap(run):
    for size in SIZES:
        yield written(run, size)
    if hasattr(os, "sched_yield"):
        yield hopped(run)


def datagrams(size, count):
    """Return datagrams that tell their number, as the encoder hands them over: views of one buffer."""
    return [memoryview(number.to_bytes(8, "little") + bytes(size - 8)) for number in range(count)]


def written(run, size):
    chunks = 2 if run.quick else 50
    sent = datagrams(size, CHUNK)
    with contextlib.ExitStack() as stack:
        buffer = bytearray(tap_bytes(TAP_SLOTS))
        form(buffer, TAP_SLOTS, *shm.identity())
        writer, reader = TapWriter(buffer), TapReader(buffer)
        receiver = stack.enter_context(contextlib.closing(PacketReceiver(GROUP, 0)))
        sender = stack.enter_context(contextlib.closing(PacketSender(GROUP, receiver.port)))

        def all_of(take):
            for datagram in sent:
                take(datagram)
        pairs = []
        for _ in range(run.repeats + 1):                     # the first to warm up
            own_ns = reference_ns = 0
            for _ in range(chunks):
                own_ns += timed_ours(lambda: all_of(writer.write))
                check(list(iter(reader.read, None)), sent)
                reference_ns += timed(lambda: all_of(sender.send))
                check(received(receiver), sent)
            pairs.append((own_ns, reference_ns))
    return row_of("tap", f"write of {size} bytes", CHUNK * chunks, pairs[1:], "send to a group on loopback", "datagram")


def received(receiver):
    buffer = memoryview(bytearray(2_000))
    return [bytes(buffer[:size]) for size in iter(lambda: receiver.receive_into(buffer), None)]


def check(found, sent):
    if found != sent:
        raise BenchError(f"tap: {len(found)} datagrams of {len(sent)}, or others than were written")


def hopped(run):
    count = 1_000 if run.quick else 20_000
    hops, words, pairs = Histogram(), Histogram(), []
    for _ in range(run.repeats):
        hop, word = hop_round(count)
        hops.merge(hop)
        words.merge(word)
        pairs.append((hop.percentile(50) * count, word.percentile(50) * count))
    return row_of("tap", f"hop of {HOP_BYTES} bytes, both sides spin, p50", count, pairs,
                  "hop of one word in shared memory", "datagram", latency_ns=hops.summary(),
                  reference_latency_ns=words.summary())


def hop_round(count):
    """Return (Histogram of hops through a tap, of hops by a word); a process of its own writes."""
    with contextlib.ExitStack() as stack:
        segments = [shm.create(size) for size in (tap_bytes(TAP_SLOTS), WORDS_BYTES)]
        for segment in segments:
            stack.callback(segment.close)
        form(segments[0].buffer, TAP_SLOTS, *shm.identity())
        reader = TapReader(segments[0].buffer)
        stack.callback(reader.close)
        words = stack.enter_context(memoryview(segments[1].buffer).cast("Q"))
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        fds = [segment.fd for segment in segments]
        child = started(stack, kill, [sys.executable, "-m", "feeder.bench.tap", *map(str, (*fds, count))], pass_fds=fds,
                        env=dict(os.environ, PYTHONPATH=path), stdin=subprocess.PIPE)
        with measure.watch:
            return read_hops(reader, words, count, child.poll)


def read_hops(reader, words, count, poll):
    stopwatch_ns, read = clock.stopwatch_ns, reader.read
    look = watcher("tap", poll)
    by_word, by_tap = read_words(words, count, look), Histogram()
    for number in range(count):
        spins, datagram = 0, None
        while datagram is None:
            datagram = read()
            spins += 1
            if spins > RING_SPINS:
                spins = look()
        now_ns = stopwatch_ns()
        by_tap.add(now_ns - int.from_bytes(datagram[8:16], "little"))
        if int.from_bytes(datagram[:8], "little") != number or len(datagram) != HOP_BYTES or reader.overruns:
            raise BenchError(f"tap: another datagram where {number} should be")
        words[ANSWER_AT] = number + 1
    return by_tap, by_word


def write_hops(tap_fd, words_fd, count):
    """The other process: `count` words, `count` datagrams, each answered before the next."""
    segments = [shm.Segment(fd) for fd in (tap_fd, words_fd)]
    writer = TapWriter(segments[0].buffer)
    stopwatch_ns = clock.stopwatch_ns
    words = memoryview(segments[1].buffer).cast("Q")
    write_words(words, count)
    datagram = memoryview(bytearray(HOP_BYTES))
    stamps = datagram.cast("Q")
    for number in range(count):
        stamps[0] = number
        stamps[1] = stopwatch_ns()
        writer.write(datagram)
        while words[ANSWER_AT] != number + 1:
            pass
    os._exit(0)                                 # the mappings are the kernel's to clear


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    write_hops(*map(int, sys.argv[1:]))
