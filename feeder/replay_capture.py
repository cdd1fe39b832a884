"""`feeder replay` of a pcap file: datagrams that were on the network once, through the receiver, or sent again.

    file ──▶ pcap.Reader ──▶ parts() ─┬─ ours ──▶ Receiver, at the times of the capture ──▶ gaps, books
                                      │             └──▶ --publish: as they are, at the pace of --speed
                                      └─ not ours: counted

Each destination in the file is a line, but of what was sent again on request; a tap's, written by `listen`, is
0.0.0.0:0. What a line lost and another brought is no loss, in the hold that is given.
Sent again, all go to one group: in sequence to its port, the snapshot loop to its own. Control datagrams stay here.
"""

import zlib

from feeder import pcap
from feeder.clock import MILLISECOND, SECOND
from feeder.errors import CaptureError
from feeder.listen import gap_record, instrument_record
from feeder.packet import MAGIC, PACKET, RETRANSMITTED, SNAPSHOTS
from feeder.receiver import MAX_LINES, Receiver, exhaust
from feeder.screen import time_text

HOLD_MS = 200                    # as long as who asks for retransmission waits
TICK_NS = 250 * MILLISECOND
PROGRESS_EVERY = 20_000          # datagrams
MAX_SHOWN_GAPS = 10
OURS, CONTROL = MAGIC.to_bytes(4, "little"), b"FDRQ"
SIZE_AT = 34                     # of a packet header: packet_bytes

EXIT_OK, EXIT_LOSS, EXIT_NOTHING = 0, 3, 4


def parts(payload):
    """Yield the datagrams of a payload: a capture on the sending host shows those of one system call as one.

    Of one that states another size than it has, all is one part: the receiver says what is wrong.
    """
    start, stop = 0, len(payload)
    while stop - start > PACKET.size:
        size = int.from_bytes(payload[start + SIZE_AT:start + SIZE_AT + 2], "little")
        if size < PACKET.size or payload[start + size:start + size + 4] != OURS:
            break
        yield payload[start:start + size]
        start += size
    yield payload[start:]


class CaptureReplay:
    """One run over capture files, in the order given; feeds a Receiver, and `senders` where there are any.

    Args: pace, an object whose wait(time_ns) waits; senders, (of what is in sequence, of the loop), each may be None.
    """

    def __init__(self, pace, senders=(None, None), hold_ms=HOLD_MS, seal=None, progress=None):
        self.receiver = Receiver(hold_ns=int(hold_ms * MILLISECOND), seal=seal)
        self.pace = pace
        self.senders = senders
        self.progress = progress
        self.lines = {}                  # destination -> number
        self.frames = self.payloads = self.datagrams = self.control = self.foreign = 0
        self.others = self.fragments = self.cut = 0
        self.first_ns = self.last_ns = None
        self.now_ns = self.due_ns = 0

    def file(self, path, file):
        """Replay one file that is open. Raises CaptureError; what was read before it counts."""
        reader = pcap.Reader(file, path)
        try:
            for captured in reader:
                self.payload(captured)
                if self.progress and reader.datagrams % PROGRESS_EVERY == 0:
                    self.progress(path, reader.frames)
        except (OSError, EOFError, zlib.error) as error:
            raise CaptureError(f"{path}, record {reader.frames + 1}: "
                               f"{getattr(error, 'strerror', None) or error}") from None
        finally:
            self.frames += reader.frames
            self.payloads += reader.datagrams
            self.others += reader.others
            self.fragments += reader.fragments
            self.cut += reader.cut

    def payload(self, captured):
        begins = captured.datagram[:4]
        if begins != OURS:
            self.control += begins == CONTROL
            self.foreign += begins != CONTROL
            return
        self.first_ns = captured.recv_ns if self.first_ns is None else self.first_ns
        self.pace.wait(captured.recv_ns)
        now_ns = self.now_ns = self.last_ns = max(self.now_ns, captured.recv_ns)    # merged files may step back
        receiver = self.receiver
        if now_ns >= self.due_ns:
            exhaust(receiver.tick(now_ns))
        for datagram in parts(captured.datagram):
            self.datagrams += 1
            flags = datagram[5] if len(datagram) > 5 else 0
            is_loop = bool(flags & SNAPSHOTS)
            sender = self.senders[is_loop]
            if sender is not None:
                sender.send(datagram)
            is_line = not flags & (SNAPSHOTS | RETRANSMITTED)
            receiver.receive(datagram, now_ns, self.line(captured.destination) if is_line else None)
        held_ns = receiver.deadline_ns
        self.due_ns = now_ns + TICK_NS if held_ns is None else min(now_ns + TICK_NS, held_ns)

    def line(self, destination):
        number = self.lines.get(destination)
        if number is None:
            number = len(self.lines)
            if number == MAX_LINES:
                raise CaptureError(f"more than {MAX_LINES} destinations in one capture")
            self.lines[destination] = number
        return number

    def finish(self):
        """What is still waited for does not come any more."""
        receiver = self.receiver
        while receiver.deadline_ns is not None:
            self.now_ns = max(self.now_ns, receiver.deadline_ns)
            exhaust(receiver.tick(self.now_ns))

    # -- reading ---------------------------------------------------------------------------------------------

    def exit_code(self):
        heard = self.receiver
        if not heard.packets + heard.loop_packets:
            return EXIT_NOTHING
        return EXIT_LOSS if heard.lost or heard.mismatches else EXIT_OK

    def report(self, seconds):
        heard = self.receiver
        captured_ns = 0 if self.first_ns is None else self.last_ns - self.first_ns
        return {
            "frames": self.frames, "payloads": self.payloads, "datagrams": self.datagrams,
            "not_udp": self.others, "fragments": self.fragments, "cut": self.cut, "control": self.control,
            "foreign": self.foreign, "seconds": round(seconds, 3), "captured_seconds": captured_ns / SECOND,
            "datagrams_per_second": round(self.datagrams / seconds) if seconds else 0,
            "packets": heard.packets, "messages": heard.messages, "messages_by_type": heard.by_type,
            "unknown_messages": heard.unknown_messages, "gaps_total": heard.gap_count, "lost": heard.lost,
            "late": heard.late, "duplicates": heard.duplicates, "old_session_packets": heard.stragglers,
            "silences": heard.silences, "mismatches": heard.mismatches, "last_mismatch": heard.last_mismatch,
            "crossed": heard.crossed, "errors": heard.errors,
            "snapshot_loop": {"packets": heard.loop_packets, "lost": heard.loop_lost, "rounds": heard.rounds,
                              "books_taken": heard.taken_from_loop},
            "send_to_capture_ns": heard.send_latency.summary(),
            "lines": [self.line_row(str(destination) if destination.port else "a tap", number)
                      for destination, number in self.lines.items()],
            "gaps": [gap_record(gap) for gap in heard.gaps],
            "sessions": [{"channel": session.channel, "session": session.number, "first_sequence": session.first,
                          "messages": session.messages, "ended": session.ended} for session in heard.sessions],
            "instruments": [instrument_record(view) for view in heard.views()]}

    def line_row(self, name, number):
        line = self.receiver.lines.get(number)
        if line is None:                           # nothing that came there could be read
            return {"name": name, "packets": 0}
        return {"name": name, "packets": line.packets, "wins": line.wins, "duplicates": line.duplicates,
                "lost": line.lost, "lag_ns": line.lag.summary()}


def summary(result):
    """Return the report's lines for people."""
    lines = [f"{result['datagrams']:,} datagrams of {result['captured_seconds']:,.3f} s in {result['seconds']} s "
             f"({result['datagrams_per_second']:,}/s), {result['messages']:,} messages, gaps {result['gaps_total']:,}, "
             f"messages lost {result['lost']:,}, late {result['late']:,}, duplicates {result['duplicates']:,}"]
    lines += [f"  left out: {result[name]:,} {text}" for name, text in (
        ("not_udp", "frames that are not UDP"), ("foreign", "datagrams of others"),
        ("control", "of retransmission's questions and answers"), ("fragments", "IP fragments"),
        ("cut", "datagrams that the capture cut")) if result[name]]
    lines += [f"  {count:,} x {reason}" for reason, count in result["errors"].items()]
    if result["mismatches"]:
        lines.append(f"  MISMATCHES {result['mismatches']:,}, last: {result['last_mismatch']}")
    if len(result["lines"]) > 1:
        lines += [f"line {line['name']}: {line['packets']:,} packets" + (
            f", first with {line['wins']:,}, messages lost {line['lost']:,}, behind by p50 "
            f"{time_text(line['lag_ns']['p50'])}" if line["packets"] else "") for line in result["lines"]]
    lines += [f"gap: channel {gap['channel']}, from {gap['from']} to {gap['to']}, {gap['messages']:,} messages"
              for gap in result["gaps"][:MAX_SHOWN_GAPS]]
    if result["gaps_total"] > MAX_SHOWN_GAPS:
        lines.append(f"gap: and {result['gaps_total'] - MAX_SHOWN_GAPS:,} more")
    lines.append(f"{'venue':<16}{'symbol':<16}{'state':<9}{'events':>9}{'trades':>9}  best bid / ask")
    for row in result["instruments"]:
        touch = " / ".join(str(side[0][0]) if side else "-" for side in (row["bids"], row["asks"]))
        symbol = row["symbol"] or f"#{row['instrument_id']}"
        lines.append(f"{row['venue']:<16}{symbol:<16}{row['state']:<9}{row['events']:>9,}{row['trades']:>9,}  {touch}"
                     + ("" if row["state"] == "live" else f"  ({row['reason']})"))
    return lines
