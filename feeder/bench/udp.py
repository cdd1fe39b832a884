"""Datagrams out and in over loopback multicast, in bursts: ours against one system call for each.

The bursts are those of the encoder (UDP_SEGMENT, padded to one size): full ones, 44 a call; what one turn of a
connection makes of the traffic, 61 messages; what a publisher makes that empties its rings, 1,024 messages. The
reference sends the same messages' datagrams, as they are without bursts, by a bare connected `send`; so a burst pays
for its padding.

In both a receiver that takes datagrams one by one has them cut for it on the sender's time, as most programs have.
What is sent is received untimed before the buffer can be full, and compared: each datagram once, in order, byte for
byte. Likewise for receiving, where both sides copy what they get, and a bare `recv_into` is the reference.
"""

import contextlib
import gc
from itertools import chain

from feeder import clock
from feeder.bench import measure
from feeder.bench.measure import BenchError, row_of
from feeder.bench.pipeline import new_pipeline
from feeder.net import PacketReceiver, PacketSender, SocketOptions
from feeder.net.udp import MAX_DATAGRAM_BYTES
from feeder.packet import DEFAULT_PACKET_BYTES, Padding, decode

GROUP = "239.192.255.77"
SIZE = DEFAULT_PACKET_BYTES
TRUESIZE = 4_608                 # of a receive buffer, at most, for a datagram of that size
UNDER_WAY = 256                  # datagrams that wait at most: receivers that keep up
GOAL = (0.4, 0.2)
NEVER_NS = 1 << 62
TURN, RINGS = 61, 1_024          # messages: a connection's turn (runtime.event_interval); four rings of worker.BATCH


def bench_udp(run):
    calls = 20 if run.quick else 1_000
    full = [bytes([number % 251]) * SIZE for number in range(44 * calls)]
    cases = {"full, 44 a call": ([full[at:at + 44] for at in range(0, len(full), 44)],) * 2,
             "one a call": ([[datagram] for datagram in full[:10 * calls]],) * 2}
    for name, messages in (("turns of 61 messages", TURN), ("turns of 1,024 messages", RINGS)):
        cases[name] = turns(run.traffic, messages, 44), turns(run.traffic, messages, 1)
        if read(cases[name][0]) != read(cases[name][1]):
            raise BenchError(f"udp {name}: bursts do not say the same as single datagrams")
    for name, (bursts, singles) in cases.items():
        yield row(run, f"send, {name}", Sending(False), bursts, singles, "connected send",
                   GOAL if name != "one a call" else None)
    yield row(run, "send, full, 44 a call; receiver coalesces", Sending(True), *cases["full, 44 a call"],
              "connected send")
    for name, (bursts, _) in cases.items():
        yield row(run, f"receive, {name}", Receiving(True), bursts, bursts, "recv_into")
    yield row(run, "receive, one a call, not coalescing", Receiving(False), *cases["one a call"], "recv_into")


def turns(traffic, messages, burst):
    """Return what the encoder emits of the traffic, flushed every so many messages: [[datagram of a call...]...]."""
    calls = []

    def emit(view):
        calls.append([bytes(view[at:at + SIZE]) for at in range(0, len(view), SIZE)])
    pipeline, venue = new_pipeline(traffic, emit)
    pipeline.encoder.gather(burst, NEVER_NS)
    calls.clear()
    for at, payload in enumerate(traffic.messages, 1):
        venue.decode(payload, 1)
        if at % messages == 0:
            pipeline.encoder.flush()
    pipeline.encoder.flush()
    return calls


def read(calls):
    return [message for datagram in chain.from_iterable(calls) for message in decode(datagram).messages
            if type(message) is not Padding]


def row(run, name, way, bursts, singles, reference, goal=None):
    """Return the row of one way: our side with `bursts`, the reference with `singles`, in turn."""
    count = sum(map(len, singles))
    with way:
        pairs = []
        for _ in range(run.repeats + 1):                      # the first to warm up
            with measure.watch:
                own_ns = way.round(bursts, True)
            pairs.append((own_ns, way.round(singles, False)))
    return row_of("udp", name, count, pairs[1:], reference, "datagram", goal, burst=way.sender.burst_text,
                  datagrams_a_call=round(sum(map(len, bursts)) / len(bursts), 1),
                  bytes_more=round(sum(map(len, chain.from_iterable(bursts)))
                                   / sum(map(len, chain.from_iterable(singles))) - 1, 3))


class Way:
    """One sender and its receivers; `round` feeds calls as often as the receivers' buffers hold them."""

    def __init__(self, *coalescing):
        self.stack = contextlib.ExitStack()
        self.receivers = []
        for coalesce in coalescing:
            receiver = PacketReceiver(GROUP, self.receivers[0].port if self.receivers else 0, coalesce=coalesce)
            self.stack.callback(receiver.close)
            self.receivers.append(receiver)
        port = self.receivers[0].port
        self.sender, self.plain = (PacketSender(GROUP, port, options=SocketOptions(segment_bytes=size))
                                   for size in (SIZE, 0))
        self.stack.callback(self.sender.close)
        self.stack.callback(self.plain.close)
        self.window = min(UNDER_WAY, min(each.recv_buffer_bytes for each in self.receivers) * 2 // TRUESIZE)
        self.buffer = memoryview(bytearray(MAX_DATAGRAM_BYTES))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def round(self, calls, ours):
        """Return ns of CPU for all calls' datagrams, the collector kept out of it."""
        gc.collect()
        gc.disable()
        try:
            ns, some, count = 0, [], 0
            for call in calls:
                if count + len(call) > self.window:
                    ns += self.part(some, ours)
                    some, count = [], 0
                some.append(call)
                count += len(call)
            return ns + self.part(some, ours)
        finally:
            gc.enable()

    def check(self, calls, got):
        if got != list(chain.from_iterable(calls)):
            raise BenchError(f"udp: {len(got)} datagrams came of {sum(map(len, calls))}, or others than were sent")

    def take_singly(self, receiver, got):
        """The reference, and the check of what was sent; both sides copy."""
        recv_into, buffer, append = receiver._recv_into, self.buffer, got.append
        try:
            while True:
                size = recv_into(buffer)
                append(bytes(buffer[:size]))
        except BlockingIOError:
            pass

    def take_bursts(self, receiver, got):
        receive, buffer, append = receiver.receive_burst_into, self.buffer, got.append
        while True:
            found = receive(buffer)
            if found is None:
                return
            size, each = found
            if size <= each:
                append(bytes(buffer[:size]))
            else:
                for at in range(0, size, each):
                    append(bytes(buffer[at:at + each if at + each < size else size]))


class Sending(Way):
    def __init__(self, coalesce):
        super().__init__(coalesce)

    def part(self, calls, ours):
        if ours:
            views = [memoryview(b"".join(call)) for call in calls]
            send = self.sender.send
        else:
            views = [memoryview(datagram) for call in calls for datagram in call]
            send = self.plain._send                # the socket's own
        start_ns = clock.cpu_ns()
        for view in views:
            send(view)
        ns = clock.cpu_ns() - start_ns
        got = []
        self.take_bursts(self.receivers[0], got)
        self.check(calls, got)
        return ns


class Receiving(Way):
    def __init__(self, coalesce):
        super().__init__(coalesce, False)

    def part(self, calls, ours):
        for call in calls:
            self.sender.send(b"".join(call))
        own, single = [], []
        start_ns = clock.cpu_ns()
        if ours:
            self.take_bursts(self.receivers[0], own)
        else:
            self.take_singly(self.receivers[1], single)
        ns = clock.cpu_ns() - start_ns
        if ours:
            self.take_singly(self.receivers[1], single)
        else:
            self.take_bursts(self.receivers[0], own)
        self.check(calls, own)
        self.check(calls, single)
        return ns
