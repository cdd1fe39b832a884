"""`retransmit`: keeps a copy of what the lines carry, and sends it again to who missed it; mostly on a host of its own.

    PacketReceiver, a line ─┐                            ┌─ who asks
    PacketReceiver, a line ─┼▶ Copies ─▶ Store, a stream │
                            │                   │        ▼
                            └───────────────────┴─ Server ◀─▶ UnicastSocket

Hot:  Copies.take. Only headers are read: what is kept is what was heard, byte for byte, and who asks looks at the rest.

What one line lost another one fills. A stream is a channel and session; one that is over is kept until its place is
wanted, so receivers heal though the feeder is gone. Before a request is answered the lines are read: what is asked for
may be there already.
"""

import argparse
import os
import sys
from collections import Counter

from feeder import report
from feeder.clock import SECOND, steady_ns
from feeder.config import builtin, channels
from feeder.control import Server, Store, parse_networks
from feeder.counter import Rate
from feeder.endpoint import Endpoint, parse
from feeder.errors import ConfigError
from feeder.keyfile import read_key
from feeder.listen import number
from feeder.net import Loop, PacketReceiver, UnicastSocket
from feeder.packet import DEFAULT_PACKET_BYTES, END, MAGIC, MAX_PACKET_BYTES, PACKET, RETRANSMITTED, SNAPSHOTS, VERSION
from feeder.screen import Screen, interruptible, size_text

BATCH = 256                  # datagrams of a line, then the others have their turn
REQUESTS = 8                 # answered in one turn: up to 512 packets, 2 ms
BUFFER_BYTES = 65_536        # no datagram is longer
SILENCE_NS = 3 * SECOND      # docs/protocol.md: the publisher is gone
SECRET_BYTES = 32
MAX_LINES = 64

EXIT_OK, EXIT_INTERNAL = 0, 1

HELP = """receivers are told of it by --retransmit ADDRESS:PORT.

examples: python3 -m feeder retransmit --port 30004
          python3 -m feeder retransmit --line 239.192.0.1:30001@eth1 --line 239.192.0.2:30001@eth2
          python3 -m feeder retransmit --address 10.1.0.9 --networks 10.1.0.0/16 --key-file feeder.key"""


def configure(parser):
    output = builtin().output
    parser.description = "Keep the last packets of a feed and send them again to who missed them."
    parser.epilog = HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--line", metavar="A:P", action="append", dest="lines",
                        help="a group, or an address of this host, that carries the packets; may be repeated "
                        f"(default {', '.join(default_lines())})")
    parser.add_argument("--interface", metavar="I", default=output.interface,
                        help="interface of lines that name none (default %(default)s)")
    parser.add_argument("--source", metavar="A", default="", help="the only sender to hear (source-specific multicast)")
    parser.add_argument("--address", metavar="A", default=output.retransmit_address,
                        help="address of this host to answer at; 0.0.0.0 or :: for all (default %(default)s)")
    parser.add_argument("--port", metavar="P", type=number(int, 1, 65535), default=output.retransmit_port,
                        help="UDP port to answer at (default %(default)s)")
    parser.add_argument("--networks", metavar="N", nargs="+", default=output.retransmit_networks,
                        help=f"networks that are answered (default {' '.join(output.retransmit_networks)})")
    parser.add_argument("--key-file", metavar="FILE", default="",
                        help="key of the feed: only what is signed is kept, and answered")
    parser.add_argument("--datagrams", metavar="N", type=number(int, 1, 1 << 20), default=output.retransmit_datagrams,
                        help="datagrams of a stream that are kept (default %(default)s)")
    parser.add_argument("--packet-bytes", metavar="N", type=number(int, 256, MAX_PACKET_BYTES),
                        default=DEFAULT_PACKET_BYTES, help="the longest of them (default %(default)s)")
    parser.add_argument("--streams", metavar="N", type=number(int, 1, 1024), default=8,
                        help="streams, a channel and session each, that are kept (default %(default)s)")
    parser.add_argument("--packets-per-second", metavar="N", type=number(int, 1, 1_000_000),
                        default=output.retransmit_packets_per_second,
                        help="most that is sent again, to all askers (default %(default)s)")
    parser.add_argument("--seconds", metavar="N", type=number(float, 0.001, 1e8), help="stop after so long")
    parser.add_argument("--report", metavar="FILE", help="write one JSON object at the end; - is standard output")


def default_lines():
    """Return what a publisher sends to, as texts without interface."""
    return [str(each._replace(interface=None)) for each in channels(builtin().output)]


def main(args):
    if args.report and args.report != "-":
        report.check_writable(args.report)
    with Retransmitter(args) as retransmitter:
        with interruptible(retransmitter.loop.stop):
            retransmitter.run()
        retransmitter.screen.close()
        retransmitter.screen.print(*retransmitter.status_lines())
        if args.report:
            report.write(retransmitter.report(), args.report)
        return EXIT_INTERNAL if retransmitter.loop.errors else EXIT_OK


class Sessions(dict):
    """The stores of one channel by session, as Server asks for them."""

    of = dict.get


class Copy:
    """One stream as it was heard."""

    def __init__(self, channel, session, store, now_ns):
        self.channel = channel
        self.session = session
        self.store = store
        self.heard_ns = now_ns
        self.ended = False

    def state(self, now_ns):
        return "ended" if self.ended else "silent" if now_ns - self.heard_ns >= SILENCE_NS else "open"


class Copies:
    """At most `limit` streams, each in a Store of `datagrams` of `packet_bytes`; one more takes a dead one's place."""

    def __init__(self, limit, datagrams, packet_bytes, seal=None):
        self.limit = limit
        self.datagrams = datagrams
        self.packet_bytes = packet_bytes
        self.seal = seal
        self.streams = {}            # (channel, session): Copy
        self.channels = {}           # channel: Sessions, for the Server
        self.packets = self.bytes = 0
        self.refused = Counter()     # datagrams that are not kept, by reason

    def take(self, datagram, now_ns):
        """Keep a datagram if it is a sequenced packet that is not known; return the reason where it is none of ours."""
        reason = self.fault(datagram)
        if reason:
            self.refused[reason] += 1
            return reason
        _, _, flags, channel, session, _, _, count, _, _ = PACKET.unpack_from(datagram)
        if flags & (SNAPSHOTS | RETRANSMITTED):
            return None
        self.packets += 1
        self.bytes += len(datagram)
        try:
            copy = self.streams.get((channel, session)) or self.open(channel, session, now_ns)
            reason = f"more than {self.limit} streams"
        except MemoryError:
            copy, reason = None, f"no memory to keep {self.datagrams:,} datagrams of {self.packet_bytes:,} bytes"
        if copy is None:
            self.refused[reason] += 1
            return reason
        copy.heard_ns = now_ns
        copy.ended = copy.ended or not count and bool(flags & END)
        copy.store.add(datagram)
        return None

    def fault(self, datagram):
        if len(datagram) < PACKET.size:
            return "malformed"
        magic, version, _, _, _, sequence, _, _, size, _ = PACKET.unpack_from(datagram)
        if magic != MAGIC or version != VERSION:
            return "not ours"
        if size != len(datagram) or not sequence:
            return "malformed"
        if self.seal is not None and not self.seal.verify(datagram):
            return "not signed with our key"
        return ""

    def open(self, channel, session, now_ns):
        """Return a new Copy, in the store of the longest dead one if there are too many; None where all are alive."""
        store = None
        if len(self.streams) >= self.limit:
            oldest = min(self.streams.values(), key=lambda copy: (not copy.ended, copy.heard_ns))
            if oldest.state(now_ns) == "open":
                return None
            store = oldest.store
            store.clear()
            del self.streams[oldest.channel, oldest.session]
            del self.channels[oldest.channel][oldest.session]
        store = store or Store(self.datagrams, self.packet_bytes)
        copy = self.streams[channel, session] = Copy(channel, session, store, now_ns)
        self.channels.setdefault(channel, Sessions())[session] = store
        return copy

    def rows(self, now_ns):
        return [{"channel": copy.channel, "session": copy.session, "state": copy.state(now_ns),
                 "kept": len(copy.store), "oldest": copy.store.oldest, "newest": copy.store.newest,
                 "missing_messages": copy.store.holes, "late": copy.store.late,
                 "not_kept": copy.store.too_late + copy.store.too_large + copy.store.overlaps,
                 "duplicates": copy.store.duplicates} for copy in self.streams.values()]


class Retransmitter:
    """The sockets and the loop; a context manager that closes them."""

    def __init__(self, args):
        self.args = args
        default = builtin().output
        lines = [parse(text, default.port) for text in args.lines or default_lines()]
        if len(lines) > MAX_LINES:
            raise ConfigError(f"{len(lines)} lines, {MAX_LINES} can be heard")
        seal = read_key(args.key_file) if args.key_file else None
        self.copies = Copies(args.streams, args.datagrams, args.packet_bytes, seal)
        self.server = Server(self.copies.channels, parse_networks(args.networks), os.urandom(SECRET_BYTES), seal,
                             args.packets_per_second)
        self.where = Endpoint(args.address, args.port, None)
        self.screen = Screen(sys.stderr if args.report == "-" else sys.stdout)
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.loop = Loop()
        self.sockets = []
        try:
            self.socket = UnicastSocket(args.address, args.port)
            self.sockets.append(self.socket)
            self.lines = []
            for line in lines:
                source = args.source if line.is_multicast else ""
                self.lines.append(PacketReceiver(line.address, line.port, source=source,
                                                 interface=line.interface or args.interface))
                self.sockets.append(self.lines[-1])
        except BaseException:
            self.__exit__()
            raise
        self.names = [str(line) for line in lines]
        self.started_ns = steady_ns()
        self.heard_rate, self.sent_rate = Rate(self.started_ns), Rate(self.started_ns)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.screen.close()
        self.loop.close()
        for each in self.sockets:
            each.close()

    def run(self):
        loop = self.loop
        loop.register(self.socket, read=self.serve)
        for line in self.lines:
            loop.register(line, read=lambda line=line: self.hear(line))
        if self.args.seconds is not None:
            loop.call_after(int(self.args.seconds * SECOND), loop.stop)
        loop.call_after(0, self.refresh)
        loop.run()

    def hear(self, line):
        receive_into, take, buffer = line.receive_into, self.copies.take, self.buffer
        now_ns = steady_ns()
        for _ in range(BATCH):
            size = receive_into(buffer)
            if size is None:
                break
            take(buffer[:size], now_ns)

    def serve(self):
        for line in self.lines:
            self.hear(line)
        self.socket.serve(self.server.receive, steady_ns, REQUESTS)

    def refresh(self):
        self.loop.call_after(self.screen.interval_ns, self.refresh)
        now_ns = steady_ns()
        self.heard_rate.update(now_ns, self.copies.packets)
        self.sent_rate.update(now_ns, self.server.counts["packets"])
        lines = self.status_lines()
        self.screen.show([f"feeder retransmit   {(now_ns - self.started_ns) / SECOND:,.0f} s   Ctrl-C ends", *lines],
                         [self.status_line()])

    # -- text ------------------------------------------------------------------------------------------------

    def status_line(self):
        """One line for a terminal that cannot be painted."""
        counts = self.server.counts
        kept = sum(len(copy.store) for copy in self.copies.streams.values())
        return (f"{(steady_ns() - self.started_ns) / SECOND:.0f} s: {self.heard_rate.per_second:,.0f} packets/s heard, "
                f"{kept:,} kept, {self.sent_rate.per_second:,.0f}/s sent again; {counts['requests']:,} requests, "
                f"{counts['packets']:,} packets sent again, {counts['unavailable']:,} unavailable, "
                f"{counts['busy']:,} busy")

    def status_lines(self):
        copies, counts, sock = self.copies, self.server.counts, self.socket
        lines = [f"heard     {copies.packets:,} packets, {size_text(copies.bytes)} by {', '.join(self.names)}"]
        drops = self.kernel_drops()
        faults = [f"{count:,} x {reason}" for reason, count in sorted(copies.refused.items())]
        faults += [f"kernel drops {drops:,}"] if drops else []
        faults += [f"internal errors {self.loop.errors:,}"] if self.loop.errors else []
        lines += ["faults    " + "; ".join(faults)] if faults else []
        for row in copies.rows(steady_ns()):
            lines += [f"channel {row['channel']:<3}session {row['session']} {row['state']}: {row['kept']:,} packets kept",
                      f"          messages {row['oldest']:,} to {row['newest']:,}; "
                      f"{row['missing_messages']:,} never heard"]
        lines += [f"answered  {counts['requests']:,} requests at {self.where} by {counts['packets']:,} packets, "
                  f"{size_text(counts['packet_bytes'])}",
                  f"          {counts['challenges']:,} challenges, {counts['unavailable']:,} unavailable, "
                  f"{counts['busy']:,} busy"]
        dropped = {"from other networks": counts["other_networks"], "malformed": counts["malformed"],
                   "not requests": counts["not_requests"], "challenges beyond the limit": counts["challenges_refused"],
                   "the kernel did not take": sock.dropped, "could not be sent": sock.errors}
        if any(dropped.values()):
            lines.append("dropped   " + "; ".join(f"{count:,} {name}" for name, count in dropped.items() if count))
        return lines

    def kernel_drops(self):
        """Return what the kernel dropped as we were slow, over all lines; None where it does not tell."""
        drops = [line.kernel_drops() for line in self.lines]
        return None if None in drops else sum(drops)

    def report(self):
        copies = self.copies
        return {"lines": self.names, "address": str(self.where), "networks": list(self.args.networks),
                "seconds": round((steady_ns() - self.started_ns) / SECOND, 3), "packets": copies.packets,
                "bytes": copies.bytes, "refused": dict(copies.refused), "kernel_drops": self.kernel_drops(),
                "streams": copies.rows(steady_ns()), "server": dict(self.server.counts),
                "not_sent": self.socket.dropped, "send_errors": self.socket.errors,
                "internal_errors": self.loop.errors}
