"""Through the kernel: bytes on a TCP socket to datagrams received, open loop, at fixed rates to the knee and past it.

    this process ── WebSocket frames, TCP ──▶ `feeder run`, workers 0 ── UDP ──▶ this process          ours
         │                                                                            ▲
         └────────── the same bytes, TCP ──▶ recv(1472) ──▶ send, bare Python ── UDP ─┘                the reference

Message i is due at start + i / rate, whatever the receiver does, and its latency counts from then: a stall is seen in
all that it delays, wherever they wait. It ends when the kernel has the datagram for the listener (SO_TIMESTAMPNS): how
soon somebody reads it is not ours. Messages are matched by the venue's own numbers: update ids, trade ids.

Sender and listener are one process that never sleeps, since two would take turns on one processor; the one under test
has the other processor to itself. Each of the feeder's rounds begins with a new connection and the recording's own
snapshot, each round with a stretch at the same rate that is not counted. `feeder run` waits in the kernel (its strategy
`sleep`), and so does the forwarder. What one receive brought leaves it as one datagram, no longer than the feeder's may
be: the least that any Python process between the two sockets does, and it, too, batches when it is behind.

The knee is the highest rate at which nothing piles up: half of the round's last quarter came out within
KEEPING_UP_NS. Its row has the CPU time of a message there, all others the p50 of their latencies.
The answer: every trade and quote comes out, nothing is lost, and the listener's book is the one built in memory.

What is left out: cards, drivers, TLS, the wire itself, and the waking of who reads the datagrams.
"""

import gc
import json
import os
import socket
import statistics
import struct
import sys
import tempfile
from bisect import bisect_left
from contextlib import ExitStack

from feeder import clock
from feeder.bench.measure import BenchError, row_of
from feeder.bench.peers import (LOOPBACK, TIMEOUT_S, Cores, Listener, Process, Venue, config_folder, end, kill, start,
                                started)
from feeder.bench.pipeline import new_pipeline
from feeder.counter import Histogram
from feeder.message import LIVE
from feeder.packet import Bbo, Book, Trade, decode
from feeder.receiver import Receiver
from feeder.websocket import SERVER, TEXT, Connection

RATES = (2_000, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 80_000, 100_000, 125_000, 150_000, 200_000,
         300_000)
QUICK_RATES = (1_000, 4_000)
ROUND_S, MAIN_ROUND_S = 0.6, 1.2
CLIMB_ROUNDS, REFINEMENTS = 2, 3
INTRO = 300                      # messages before each round, among them the diffs that join the snapshot
SETTLING = 0.1                   # of a round's messages are not counted
KEEPING_UP_NS = 2 * clock.MILLISECOND
FORWARD_BYTES = 1_472            # as long as the feeder's datagrams may be
GOAL = (1.6, 1.25)
LEAST_LIKELY = 0.95
NUMBER = struct.Struct("<Q")


def bench_wire(run):
    if not hasattr(socket.socket, "recvmsg"):
        run.notes.append("wire needs POSIX sockets")
        return
    with ExitStack() as stack:
        rig = Rig(run, stack)
        seconds = 0.1 if run.quick else ROUND_S
        knee = too_fast = 0
        for rate in QUICK_RATES if run.quick else RATES:
            run.say(f"wire: {rate:,} messages/s")
            rounds = rig.rounds(rate, seconds, min(run.repeats, CLIMB_ROUNDS))
            yield rig.row(f"{rate:,} messages/s", rate, rounds)
            if not keeps_up(rounds):
                too_fast = rate
                break
            knee, at_knee = rate, rounds
        if not knee:
            run.notes.append(f"wire: not even {rate:,} messages/s were kept up with; it stands for the knee")
            knee, at_knee = rate, rounds
        for _ in range(REFINEMENTS if knee < too_fast else 0):
            rate = (knee + too_fast) // 2
            run.say(f"wire: the knee is between {knee:,} and {too_fast:,} messages/s")
            rounds = rig.rounds(rate, seconds, CLIMB_ROUNDS)
            if keeps_up(rounds):
                knee, at_knee = rate, rounds
            else:
                too_fast = rate
        yield rig.row("the knee, CPU time", knee, at_knee, by_cpu=True)
        run.say(f"wire: half the knee, {knee // 2:,} messages/s")
        rounds = rig.rounds(knee // 2, seconds if run.quick else MAIN_ROUND_S, run.repeats)
        yield rig.row("half the knee", knee // 2, rounds, GOAL)
        rig.check()


class Round:
    """What one stretch of `count` messages at one rate showed.

    `last_quarter_ns`: the median latency there; `behind_ns`: that of the last; `late`: how late we sent, a Histogram.
    """

    def __init__(self, latency, last_quarter_ns, behind_ns, late, cpu_ns, faults, wall_ns, count):
        self.latency, self.last_quarter_ns, self.behind_ns, self.late = latency, last_quarter_ns, behind_ns, late
        self.cpu_ns, self.faults, self.wall_ns, self.count = cpu_ns, faults, wall_ns, count


def keeps_up(rounds):
    """A stall of the host looks like a rate that is too high, never the other way round: the best round counts."""
    return min(own.last_quarter_ns for own, _ in rounds) <= KEEPING_UP_NS


class Rig:
    """The processes and sockets of a run. `stack` closes them."""

    def __init__(self, run, stack):
        traffic = run.traffic
        self.traffic = traffic
        frames = [Connection(SERVER).send(TEXT, payload) for payload in traffic.messages]
        self.stops = [0]
        for frame in frames:
            self.stops.append(self.stops[-1] + len(frame))
        self.wire = memoryview(b"".join(frames))
        self.marks = [mark(payload) for payload in traffic.messages]
        cores = stack.enter_context(Cores())
        self.where = cores.text
        self.venue = Venue("BTCUSDT", traffic.snapshot)
        stack.callback(self.venue.close)
        self.ours, self.theirs = Listener(), Listener()
        stack.callback(self.ours.close)
        stack.callback(self.theirs.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config_folder(folder, self.ours.port, {"binance_spot": {
            "symbols": ["BTCUSDT"], "websocket_url": f"ws://{LOOPBACK}:{self.venue.port}",
            "rest_url": f"http://{LOOPBACK}:{self.venue.port}"}})
        self.told = os.path.join(folder, "report.json")
        self.feeder = start(run, stack, cores, "--config", folder, "--report", self.told)
        self.receiver = Receiver()
        self.seen = set()                                    # marks of trades and quotes that it took
        self.books = {}                                      # what it must know after so many messages
        listening = stack.enter_context(socket.create_server((LOOPBACK, 0)))
        child = started(stack, kill, run.command("feeder.bench.wire", listening.getsockname()[1], self.theirs.port),
                        env=run.environment)
        cores.give(child.pid)
        listening.settimeout(TIMEOUT_S)
        self.forwarder = stack.enter_context(listening.accept()[0])
        self.forwarder.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.forwarder.setblocking(False)
        self.counters = Process(self.feeder.pid), Process(child.pid)

    def rounds(self, rate, seconds, count):
        """Return [(ours, the forwarder's), ...]."""
        stop = INTRO + min(int(rate * seconds), len(self.marks) - INTRO)
        while self.marks[stop - 1][0] is Book:               # a diff may change nothing that is published
            stop -= 1
        return [(self.through_feeder(rate, stop), self.through_forwarder(rate, stop)) for _ in range(count)]

    def joined(self):
        """Return a new connection whose book is live."""
        connection = self.venue.subscribed()
        found = []
        self.ours.drain(found)                               # of the time between
        self.take(found)
        self.seen.clear()
        connection.sendall(self.wire[:self.stops[INTRO]])
        deadline_ns = clock.steady_ns() + TIMEOUT_S * clock.SECOND
        wanted = next(each for each in reversed(self.marks[:INTRO]) if each[0] is not Book)
        while not (self.is_live() and wanted in self.seen):
            if not self.ours.wait(found, deadline_ns):
                connection.close()
                raise BenchError(f"wire: no live book within {TIMEOUT_S} s")
            self.take(found)
        connection.setblocking(False)
        return connection

    def through_feeder(self, rate, stop):
        with self.joined() as connection:
            last = NUMBER.pack(self.marks[stop - 1][1])
            played = self.play(connection, self.ours, self.counters[0], rate, stop, last)
        found = played[0]
        arrived = {}
        for datagram, at_ns in found:
            for message in decode(datagram).messages:
                if isinstance(message, (Book, Trade, Bbo)):
                    arrived[type(message), message.venue_sequence] = at_ns       # the last part of an event counts
        missing = [each for each in self.marks[INTRO:stop] if each[0] is not Book and each not in arrived]
        if missing:
            raise BenchError(f"wire: {len(missing)} trades and quotes of {stop - INTRO} messages did not come out")
        self.take(found)
        if self.receiver.lost or self.receiver.mismatches or not self.is_live():
            raise BenchError(f"wire: {self.receiver.lost} messages lost, {self.receiver.mismatches} mismatches, "
                             f"live: {self.is_live()}")
        stream, = self.receiver.streams.values()
        view = stream.views[0]
        depth = view.definition.depth
        if stop not in self.books:
            self.books[stop] = self.book_after(stop, depth)
        if (view.bids.levels(depth), view.asks.levels(depth)) != self.books[stop]:
            raise BenchError("wire: the listener's book is not the one that is built in memory")
        return self.round(rate, stop, played, lambda number: arrived.get(self.marks[number]))

    def through_forwarder(self, rate, stop):
        found = []
        self.theirs.drain(found)
        size = self.stops[stop] - self.stops[INTRO]
        played = self.play(self.forwarder, self.theirs, self.counters[1], rate, stop, None)
        got, times = [0], []
        for datagram, at_ns in played[0]:
            got.append(got[-1] + len(datagram))
            times.append(at_ns)
        if got[-1] != size:
            raise BenchError(f"wire: {got[-1]} bytes of {size} came out of the forwarder")
        first = self.stops[INTRO]

        def arrival(number):
            return times[bisect_left(got, self.stops[number + 1] - first) - 1]
        return self.round(rate, stop, played, arrival)

    def round(self, rate, stop, played, arrival):
        _, start_ns, late, cpu_ns, faults, wall_ns = played
        count, latency, latencies = stop - INTRO, Histogram(), []
        for number in range(INTRO + int(count * SETTLING), stop):
            at_ns = arrival(number)
            if at_ns is not None:
                latencies.append(at_ns - due_ns(start_ns, number - INTRO, rate))
                latency.add(latencies[-1])
        return Round(latency, statistics.median(latencies[-len(latencies) // 4:]), latencies[-1], late, cpu_ns, faults,
                     wall_ns, count)

    def play(self, sock, listener, process, rate, stop, last):
        """Send each message when it is due and take what comes out, until `last` (or all bytes, if None) came.

        Returns (datagrams with their times, start, how late writes were, CPU ns, (minor, major) faults, wall ns).
        """
        found, late = [], Histogram()
        wall_ns, send, wire, stops = clock.wall_ns, sock.send, self.wire, self.stops
        sent, total = stops[INTRO], stops[stop]
        due = INTRO                                          # messages that are due
        gc.collect()
        gc.disable()
        before = process.cpu_ns(), process.faults()
        start_ns = wall_ns() + clock.MILLISECOND
        while sent < total:
            now_ns = wall_ns()
            if now_ns >= start_ns:
                now_due = min(stop, INTRO + (now_ns - start_ns) * rate // clock.SECOND + 1)
                if now_due > due:
                    late.add(now_ns - due_ns(start_ns, due - INTRO, rate))
                    due = now_due
                if stops[due] > sent:
                    try:
                        sent += send(wire[sent:stops[due]])
                    except BlockingIOError:                  # full: what is due waits, and its latency grows
                        pass
            listener.drain(found, 8)
        deadline_ns = clock.steady_ns() + TIMEOUT_S * clock.SECOND
        came, seen = 0, 0
        while True:
            listener.drain(found)
            if last is None:
                came += sum(len(datagram) for datagram, _ in found[seen:])
                done = came >= total - stops[INTRO]
            else:
                done = any(last in datagram for datagram, _ in found[seen:])
            seen = len(found)
            if done:
                break
            if not listener.wait(found, deadline_ns):
                raise BenchError(f"wire: at {rate:,} messages/s the last one did not come out within {TIMEOUT_S} s")
        took_ns = wall_ns() - start_ns
        after = process.cpu_ns(), process.faults()
        gc.enable()
        known = None not in before and None not in after
        return (found, start_ns, late, after[0] - before[0] if known else None,
                [now - then for now, then in zip(after[1], before[1])] if known else None, took_ns)

    # -- what the listener knows -----------------------------------------------------------------------------

    def take(self, found):
        """Have the receiver take datagrams, and note what was in them."""
        for datagram, at_ns in found:
            packet = self.receiver.receive(datagram, at_ns)
            for message in packet.messages if packet else ():
                if isinstance(message, (Trade, Bbo)):
                    self.seen.add((type(message), message.venue_sequence))
        found.clear()

    def is_live(self):
        return any(0 in stream.views and stream.views[0].state == LIVE for stream in self.receiver.streams.values())

    def book_after(self, stop, depth):
        """Return (bids, asks) after so many messages, in memory."""
        receiver = Receiver()
        pipeline, venue = new_pipeline(self.traffic, lambda view: receiver.receive(view, 0))
        for payload in self.traffic.messages[:stop]:
            venue.decode(payload, 1)
        pipeline.encoder.flush()
        stream, = receiver.streams.values()
        view = stream.views[0]
        return view.bids.levels(depth), view.asks.levels(depth)

    # -- figures ---------------------------------------------------------------------------------------------

    def row(self, scenario, rate, rounds, goal=None, by_cpu=False):
        count = rounds[0][0].count
        own, other, pairs = Histogram(), Histogram(), []
        by_cpu = by_cpu and all(each.cpu_ns is not None for pair in rounds for each in pair)
        for pair in rounds:
            own.merge(pair[0].latency)
            other.merge(pair[1].latency)
            pairs.append([each.cpu_ns if by_cpu else each.latency.percentile(50) * count for each in pair])
        row = row_of("wire", scenario, count, pairs, "a bare recv and send in Python", goal=goal, rate=rate,
                     placed=self.where, latency_ns=own.summary(), reference_latency_ns=other.summary(),
                     late_ns_p99=max(each.late.percentile(99) for pair in rounds for each in pair))
        row["jitter_ns"] = row["latency_ns"]["p99"] - row["latency_ns"]["p50"]
        row["per_second"] = round(statistics.median(
            count * clock.SECOND / ((count - 1) * clock.SECOND / rate + ours.behind_ns) for ours, _ in rounds))
        row["kept_up"] = keeps_up(rounds)
        if all(each.cpu_ns is not None for pair in rounds for each in pair):
            for name, side in zip(("", "reference_"), zip(*rounds)):
                row[name + "cpu_share"] = round(statistics.median(each.cpu_ns / each.wall_ns for each in side), 3)
                row[name + "cpu_ns"] = round(statistics.median(each.cpu_ns / count for each in side), 1)
            row["minor_faults"], row["major_faults"] = (sum(ours.faults[at] for ours, _ in rounds) for at in (0, 1))
        return row

    def check(self):
        """End the feeder and look at what it says of itself."""
        with self.joined():                                  # it ends with a live book, so with exit code 0
            said = end(self.feeder).decode(errors="replace").strip()
        if self.feeder.returncode:
            raise BenchError(f"wire: the feeder ended with exit code {self.feeder.returncode}: {said}")
        with open(self.told, encoding="utf-8") as file:
            told = json.load(file)
        decoder = told["decoders"]["binance_spot"]
        share = decoder["likely"] / (decoder["likely"] + decoder["unlikely"])
        if told["not_sent"] or told["internal_errors"] or told["gaps"] or share < LEAST_LIKELY:
            raise BenchError(f"wire: the feeder told of {told['not_sent']} datagrams not sent, {told['gaps']} gaps, "
                             f"{told['internal_errors']} faults of its own, {share:.1%} on the likely path")


def due_ns(start_ns, number, rate):
    return start_ns + number * clock.SECOND // rate


def mark(payload):
    """Return what a message is known by when it comes out: its type there, and the venue's number."""
    kind, key = ((Book, b'"u":') if b"@depth" in payload[:60] else (Trade, b'"t":') if b"@trade" in payload[:60] else
                 (Bbo, b'"u":'))
    at = payload.index(key) + len(key)
    return kind, int(payload[at:payload.index(b",", at)])


def forward(tcp_port, udp_port):
    """The reference: what one receive brought leaves as one datagram. Ends with the connection."""
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        source = socket.create_connection((LOOPBACK, tcp_port))
    except ConnectionRefusedError:               # who started us is gone
        return
    with source, out:
        out.connect((LOOPBACK, udp_port))
        recv, send = source.recv, out.send
        data = recv(FORWARD_BYTES)
        while data:
            send(data)
            data = recv(FORWARD_BYTES)


if __name__ == "__main__":
    forward(*map(int, sys.argv[1:]))
