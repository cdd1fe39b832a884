"""What a datagram costs the publisher and the listener: two processes, 20,000 a second for a minute, none lost.

Each datagram is 256 bytes, three trades, from an Encoder by a PacketSender; the listener is `feeder listen`, with 4 MB
of receive buffer: it checks sequences, decodes all, keeps views. 20 datagrams leave in each millisecond: one by one, or
in one call (UDP_SEGMENT) to a listener that takes them so (`--coalesce`).

CPU time is that of the whole process, as the kernel counts it, for the time of sending. The references are bare loops
over the same bytes, a connected `send` and a `recv_into` each, nothing encoded, nothing decoded.
"""

import contextlib
import json
import subprocess
import sys

from feeder import clock
from feeder.bench import peers, udp
from feeder.bench.measure import BenchError, row_of
from feeder.net import PacketReceiver, PacketSender, SocketOptions
from feeder.packet import Encoder

GROUP = "239.192.255.78"
RATE, TURN_NS = 20_000, clock.MILLISECOND
SECONDS, QUICK_SECONDS = 60, 1
PACKET_BYTES, TRADES = 256, 3                    # 40 + 3 x 72: full to the brim, so that bursts need no padding
A_TURN = RATE * TURN_NS // clock.SECOND


def bench_deliver(run):
    seconds = QUICK_SECONDS if run.quick else SECONDS
    references = bare(run)
    for way, burst in (("one by one", 1), ("in bursts", A_TURN)):
        run.say(f"deliver: {RATE} datagrams/s {way} for {seconds} s")
        found = measured(run, seconds, burst)
        for who, reference in zip(("publisher", "listener"), references):
            yield row_of("deliver", f"{who}, {RATE:,} datagrams/s {way}", found["datagrams"],
                         [(found[who], found["datagrams"] * ns) for ns in reference[1]], reference[0], "datagram",
                         sent=found["datagrams"], lost=found["lost"], kernel_drops=found["kernel_drops"],
                         cpu_share=round(found[who] / (seconds * clock.SECOND), 3))


def bare(run):
    """Return (name, [ns a datagram, a round each]) of the bare sender and the bare receiver."""
    count = 500 if run.quick else 20_000
    datagrams = []
    encoder = Encoder(1, 0, lambda view: datagrams.append(bytes(view)), clock.wall_ns, PACKET_BYTES)
    while len(datagrams) < count:
        fill(encoder, len(datagrams))
    singles = [[datagram] for datagram in datagrams]
    found = []
    for name, kind in (("connected send", udp.Sending), ("recv_into", udp.Receiving)):
        with kind(False) as way:
            way.round(singles, False)
            found.append((name, [way.round(singles, False) / count for _ in range(run.repeats)]))
    return found


def fill(encoder, number):
    """Make one full datagram; it leaves with it, or waits for others of a burst."""
    now_ns = clock.wall_ns()
    for trade in range(TRADES):
        encoder.trade(trade, 1, 0, number, now_ns, now_ns, number, 6_183_764_000_000, 50_000_000, 1)
    if encoder.burst == 1:
        encoder.flush()


def measured(run, seconds, burst):
    """Run publisher and listener; return ns of CPU of both, what was sent and what was lost."""
    with contextlib.ExitStack() as stack:
        free = PacketReceiver(GROUP, 0)
        port = free.port
        free.close()
        listening = ["listen", "--group", GROUP, "--port", port, "--report", "-", *(["--coalesce"] if burst > 1 else [])]
        listener = peers.started(stack, peers.end, run.command("feeder", *listening), stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=run.environment)
        publisher = peers.started(stack, peers.kill, run.command("feeder.bench.deliver", port, seconds, burst),
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=run.environment)
        if publisher.stdout.readline() != "heard\n":
            raise BenchError("deliver: the listener did not come up")
        heard = peers.Process(listener.pid)
        before = heard.cpu_ns()
        publisher.stdin.write("go\n")
        publisher.stdin.flush()
        told = json.loads(publisher.stdout.readline())
        spent = heard.cpu_ns() - before
        listener.send_signal(peers.signal.SIGINT)
        report = json.loads(listener.communicate(timeout=peers.TIMEOUT_S)[0])
        publisher.communicate()
    if report["messages"] + report["lost"] != told["messages"]:
        raise BenchError(f"deliver: {told['messages']} messages were sent, the listener says {report['messages']} "
                         f"came and {report['lost']} were lost")
    return {"publisher": told["cpu_ns"], "listener": spent, "datagrams": told["datagrams"], "lost": report["lost"],
            "kernel_drops": report["kernel_drops"]}


def publish(port, seconds, burst):
    """The publisher, a process of its own: waits until somebody listens, then for the word, then sends."""
    sender = PacketSender(GROUP, port, options=SocketOptions(segment_bytes=PACKET_BYTES if burst > 1 else 0))
    encoder = Encoder(clock.wall_ns(), 0, sender.send, clock.wall_ns, PACKET_BYTES)
    with contextlib.closing(PacketReceiver(GROUP, port)) as echo:           # our own words: the group is joined
        buffer = bytearray(2048)
        give_up_ns = clock.steady_ns() + clock.SECOND
        while clock.steady_ns() < give_up_ns:                               # the listener needs a moment to start
            encoder.heartbeat()
            clock.sleep(0.1)
        if echo.receive_into(buffer) is None:
            raise BenchError("deliver: no multicast on loopback")
    say("heard\n")
    sys.stdin.readline()
    encoder.gather(min(burst, sender.burst), clock.SECOND)
    start_ns, start_cpu_ns, sent = clock.steady_ns(), clock.process_cpu_ns(), sender.sent
    number = 0
    for turn in range(seconds * clock.SECOND // TURN_NS):
        for _ in range(A_TURN):
            fill(encoder, number)
            number += 1
        encoder.flush()
        ahead_ns = start_ns + (turn + 1) * TURN_NS - clock.steady_ns()
        if ahead_ns > 0:
            clock.sleep(ahead_ns / clock.SECOND)
    cpu_ns = clock.process_cpu_ns() - start_cpu_ns
    encoder.end()
    clock.sleep(0.5)                                                        # for the listener to have read all
    say(json.dumps({"cpu_ns": cpu_ns, "datagrams": number, "messages": encoder.sequence - 1,
                    "sent": sender.sent - sent, "dropped": sender.dropped}) + "\n")
    sender.close()


def say(text):
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    publish(*map(int, sys.argv[1:]))
