"""`listen`: the udp monitor. Joins groups, checks every sequence, shows what comes and what does not.

    Inlet ──datagrams──▶ Receiver (receiver.py) ──▶ status screen | ladder | JSON lines
                              └──▶ report and exit code at the end

Hot:  Monitor.on_datagram; everything else happens twice a second, or when something is missing.
Prices leave here as decimal text by their instrument's definition; what has no definition yet stays an int.
"""

import argparse
import json
import sys

from feeder.clock import MILLISECOND, SECOND, steady_ns, wall_ns
from feeder.config import builtin
from feeder.counter import Rate
from feeder.endpoint import Endpoint
from feeder.errors import ConfigError, HostError
from feeder.fixed import to_text
from feeder.inlet import Inlet
from feeder.message import LIVE, REASONS, SIDE_NAMES, STALE, STATE_NAMES, SYNCING
from feeder.packet import ALL_INSTRUMENTS, END, TYPE_NAMES, Bbo, Book, Definition, Padding, Status, Trade
from feeder.receiver import Receiver, Unknown, exhaust
from feeder.screen import Column, Screen, interruptible, size_text, table, time_text

REPORT_LEVELS = 20           # a side
LADDER_LEVELS = 20
RECENT_GAPS = 5              # shown on the screen, and named in plain lines at each refresh

EXIT_OK, EXIT_INTERNAL, EXIT_LOSS, EXIT_NOTHING = 0, 1, 3, 4

HELP = """exit codes: 0 nothing was lost; 3 messages were lost, or a repeated snapshot differs from the book kept;
4 no packet of ours came at all; 2 wrong arguments or the host refused; 1 an error of this program, or what it
writes (--pcap, --print) is not whole.

examples: python3 -m feeder listen
          python3 -m feeder listen --book binance_spot:BTCUSDT
          python3 -m feeder listen --seconds 60 --report report.json
          python3 -m feeder listen --print --count 100
          python3 -m feeder listen --line 239.192.0.1:30001@eth1 --line 239.192.0.2:30001@eth2
          python3 -m feeder listen --retransmit 127.0.0.1:30003 --pcap came.pcap"""


def configure(parser):
    output = builtin().output
    parser.description = "Join a group and show what is published there: rates, gaps, latencies, books."
    parser.epilog = HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--group", metavar="A", default=output.group,
                        help="multicast group, or an address of this host for unicast (default %(default)s)")
    parser.add_argument("--port", metavar="P", type=number(int, 1, 65535), default=output.port,
                        help="UDP port (default %(default)s)")
    parser.add_argument("--interface", metavar="I", default=output.interface,
                        help="interface to join on, by address or name (default %(default)s)")
    parser.add_argument("--line", metavar="ENDPOINT", action="append", default=[],
                        help="listen to ADDRESS:PORT or ADDRESS:PORT@INTERFACE instead of --group and --port; may be "
                        "given several times, for lines that carry the same, for several publishers or channels")
    parser.add_argument("--snapshot-port", metavar="P", type=number(int, 0, 65535), default=output.snapshot_port,
                        help="port of the snapshot loop at the same addresses, 0: none (default %(default)s)")
    parser.add_argument("--retransmit", metavar="ENDPOINT", action="append", default=[],
                        help="ask ADDRESS:PORT for what is missing; several are asked in this order")
    parser.add_argument("--hold-ms", metavar="N", type=number(float, 0, 10_000),
                        help="wait so long for what is missing before it counts as lost (default 0; 50 with several "
                        "lines, 200 with --retransmit)")
    parser.add_argument("--source", metavar="A", default="", help="hear nobody else than this sender (SSM)")
    parser.add_argument("--key-file", metavar="FILE", default="", help="count nothing that is not signed with this key")
    parser.add_argument("--tap", metavar="NAME", default="",
                        help="read a publisher's tap on this host, a line of shared memory; with --line beside others")
    parser.add_argument("--pcap", metavar="FILE", default="", help="write all that comes to a pcap file")
    parser.add_argument("--seconds", metavar="N", type=number(float, 0.001, 1e8), help="stop after so long")
    parser.add_argument("--count", metavar="N", type=number(int, 1, 2**62), help="stop after so many messages")
    parser.add_argument("--report", metavar="FILE", help="write one JSON object at the end; - is standard output")
    parser.add_argument("--coalesce", action="store_true",
                        help="take bursts whole (UDP_GRO): less work for a publisher on this host, more for each "
                        "single datagram here; kernel drops then count bursts")
    view = parser.add_mutually_exclusive_group()
    view.add_argument("--book", metavar="SYMBOL", help="show one book's ladder: SYMBOL or venue:SYMBOL")
    view.add_argument("--print", action="store_true", help="print each message as a line of JSON")


def number(kind, lowest, highest):
    def parse(text):
        value = kind(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text} is not within {lowest} to {highest}")
        return value
    parse.__name__ = "number"        # argparse names it in its message
    return parse


def main(args):
    if args.print and args.report == "-":
        raise ConfigError("--print and --report - both want the standard output; give --report a file")
    if args.report and args.report != "-":
        write_report(args.report, "")    # refused now, not after an hour of listening
    with Monitor(args) as monitor:
        with interruptible(monitor.loop.stop):
            monitor.run()
        monitor.screen.close()
        labels = sorted({view.label for view in monitor.find_book()})
        if len(labels) > 1:
            raise ConfigError(f"--book {args.book} is ambiguous: {', '.join(labels)}")
        monitor.screen.print(*monitor.summary())
        if args.report:
            write_report(args.report, json.dumps(monitor.report(), indent=1) + "\n")
    return monitor.exit_code()


def write_report(path, text):
    if path == "-":
        return Screen(sys.stdout).write(text)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HostError(f"--report {path}: cannot be written: {error.strerror}") from None


class PrintedReceiver(Receiver):
    """Tells `on_packet` of each packet that was applied in its order, also of those that had to wait."""

    on_packet = None

    def apply(self, stream, packet, now_ns):
        yield from super().apply(stream, packet, now_ns)
        self.on_packet(packet)


class Monitor:
    """The inlet, its loop, and when to look; a context manager that closes them."""

    def __init__(self, args):
        self.args = args
        self.screen = Screen(sys.stderr if args.print or args.report == "-" else sys.stdout)
        self.lines = Screen(sys.stdout) if args.print else None      # only for its patience with a closed pipe
        lines = args.line or ([] if args.tap else [str(Endpoint(args.group, args.port, None))])
        self.inlet = Inlet(
            self.on_datagram, lines, snapshot_port=args.snapshot_port, retransmit=args.retransmit, tap=args.tap,
            interface=args.interface, source=args.source, key_file=args.key_file, hold_ms=args.hold_ms,
            coalesce=args.coalesce, pcap_file=args.pcap, receiver=PrintedReceiver if args.print else Receiver)
        self.heard = self.inlet.receiver
        if args.print:
            self.heard.on_packet = self.print_packet
        self.loop = self.inlet.loop
        self.printed = self.sessions_named = self.gaps_named = 0
        self.applied = []                # packets printed during one datagram, as their turn came
        self.is_done = False
        self.shown = None                # the view of --book
        self.alarm = None
        self.started_ns = self.stopped_ns = steady_ns()
        self.drops = self.inlet.kernel_drops()
        self.rates = {name: Rate(self.started_ns) for name in ("packets", "bytes", "messages", *self.heard.by_type)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.screen.close()
        self.inlet.close()

    def run(self):
        """Listen until the time or the count is over, or somebody stops us."""
        loop = self.loop
        loop.on_idle = self.on_round
        if self.args.seconds is not None:
            loop.call_after(int(self.args.seconds * SECOND), loop.stop)
        loop.call_after(0, self.refresh)
        try:
            loop.run()
        finally:
            self.stopped_ns = steady_ns()
            loop.on_idle = None
            self.drops = self.inlet.kernel_drops()
            exhaust(self.inlet.tend(wall_ns()))
            if self.inlet.recording is not None:
                self.inlet.recording.close()         # what is left of it may find the disk full

    def on_round(self):
        """After each round of the loop: see to what is missing when it is time, and be woken for it."""
        inlet, now_ns = self.inlet, wall_ns()
        if inlet.tap is not None:
            inlet.tap.read()
        if not inlet.wait_ns(now_ns):
            exhaust(inlet.tend(now_ns))
            if self.lines is not None:
                self.print_records(self.news())
        due_ns = steady_ns() + inlet.wait_ns(now_ns)
        alarm = self.alarm
        if alarm is None or not alarm.is_pending or due_ns < alarm.deadline_ns - MILLISECOND:
            if alarm is not None:
                alarm.cancel()
            self.alarm = self.loop.call_at(due_ns, int)          # nothing to call: the round is what is wanted

    def on_datagram(self, datagram, came_ns, origin):
        if self.is_done:
            return
        packet = self.inlet.receive(datagram, came_ns, origin)
        if self.lines is not None:
            if not any(packet is each for each in self.applied):         # it had not to wait, or came too late
                self.print_packet(packet)
            self.applied.clear()
        if self.args.count is not None and self.heard.messages >= self.args.count:
            self.is_done = True
            self.loop.stop()

    def print_packet(self, packet):
        self.applied.append(packet)
        records = self.news()
        if packet is not None:
            messages = packet.messages
            if self.args.count is not None:
                messages = messages[:self.args.count - self.printed]
            self.printed += len(messages)
            stream = self.heard.streams.get((packet.channel, packet.session))
            views = {} if stream is None else stream.views
            for sequence, message in enumerate(messages, packet.sequence):
                if type(message) not in (Padding, Unknown):
                    records.append(message_record(packet, sequence, message, views.get(message.instrument_id)))
            if packet.flags & END:
                records.append({"type": "end", "channel": packet.channel, "session": packet.session})
        self.print_records(records)

    def news(self):
        """Return records of the sessions and gaps that were not told yet."""
        heard = self.heard
        sessions, self.sessions_named = heard.session_count - self.sessions_named, heard.session_count
        gaps, self.gaps_named = heard.gap_count - self.gaps_named, heard.gap_count
        return [{"type": "session", "channel": session.channel, "session": session.number, "from": session.first}
                for session in newest(heard.sessions, sessions)] + [
                {"type": "gap", **gap_record(gap)} for gap in newest(heard.gaps, gaps)]

    def print_records(self, records):
        self.lines.write("".join(json.dumps(record) + "\n" for record in records))
        if self.lines.broken:
            self.loop.stop()

    def refresh(self):
        """Look at what was heard; called again and again."""
        self.loop.call_after(self.screen.interval_ns, self.refresh)
        now_ns = steady_ns()
        heard = self.heard
        self.drops = self.inlet.kernel_drops()
        for name, total in (("packets", heard.packets), ("bytes", heard.bytes), ("messages", heard.messages),
                            *heard.by_type.items()):
            self.rates[name].update(now_ns, total)
        if self.args.book:
            self.show_book()
        elif self.screen.is_live and not self.args.print:
            self.screen.show(self.status_lines(*self.screen.size()))
        elif not self.args.print and now_ns - self.started_ns > self.screen.interval_ns // 2:
            self.screen.print(self.status_line(), *self.new_gap_lines())

    def exit_code(self):
        heard = self.heard
        if self.loop.errors or self.unwritten():
            return EXIT_INTERNAL
        if not heard.packets:
            return EXIT_NOTHING
        return EXIT_LOSS if heard.lost or heard.mismatches else EXIT_OK

    def unwritten(self):
        """Return what was to be written and was not, as sentences."""
        recording, lines = self.inlet.recording, self.lines
        found = []
        if recording is not None and recording.error:
            found.append(f"{self.args.pcap} ends after {recording.count:,} datagrams or before: {recording.error}")
        if lines is not None and lines.error:
            found.append(f"the standard output ended after {self.printed:,} messages or before: {lines.error}")
        return found

    # -- text ------------------------------------------------------------------------------------------------

    @property
    def seconds(self):
        return (self.stopped_ns - self.started_ns) / SECOND

    def states(self):
        """Return "20 live, 0 syncing, 1 stale"."""
        counts = dict.fromkeys((LIVE, SYNCING, STALE), 0)
        for view in self.heard.views():
            counts[view.state] += 1
        return ", ".join(f"{count:,} {STATE_NAMES[state]}" for state, count in counts.items())

    def loss(self):
        heard = self.heard
        more = " or more" if self.drops and self.args.coalesce else ""           # a burst dropped counts as one
        drops = "" if self.drops is None else f", kernel drops {self.drops:,}{more}"
        return (f"gaps {heard.gap_count:,}, messages lost {heard.lost:,}, late {heard.late:,}, "
                f"duplicates {heard.duplicates:,}{drops}")

    def faults(self):
        """Return a line for what must not happen at all; none while it has not."""
        heard = self.heard
        found = [f"{count:,} {name}" for name, count in (
            ("MISMATCHES", heard.mismatches), ("crossed books", heard.crossed), ("silences", heard.silences),
            ("packets of old sessions", heard.stragglers), ("messages of unknown type", heard.unknown_messages),
            ("internal errors", self.loop.errors)) if count]
        found += [f"{count:,} x {reason}" for reason, count in heard.errors.items()]
        if heard.mismatches:
            found.append(f"last mismatch: {heard.last_mismatch}")
        found += self.unwritten()
        return ["faults    " + "; ".join(found)] if found else []

    def where(self):
        by = f" on {self.args.interface or 'any interface'}" if self.inlet.endpoints else ""
        return ", ".join(self.inlet.names) + by

    def ways(self):
        """Return a line for each way by which packets come, where there is more than one, and for what was cured."""
        report = self.inlet.report()
        lines = []
        if len(report["lines"]) > 1 or self.inlet.tap is not None:
            lines += [line_text(line) for line in report["lines"]]
        if report["retransmission"] is not None:
            lines.append(f"resent    {report['retransmission']['packets']:,} packets, "
                         f"{report['retransmission']['requests']:,} requests")
        loop = report["snapshot_loop"]
        if loop["packets"]:
            lines.append(f"snapshots {loop['packets']:,} packets, {loop['lost']:,} lost, rounds {loop['rounds']:,}; "
                         f"books taken {loop['books_taken']:,}")
        return lines

    def status_line(self):
        rate = self.rates
        return (f"{(steady_ns() - self.started_ns) / SECOND:.0f} s: {rate['packets'].per_second:,.0f} packets/s, "
                f"{size_text(rate['bytes'].per_second)}/s, {rate['messages'].per_second:,.0f} messages/s; "
                f"{self.states()}; {self.loss()}; sent to here {latency_text(self.heard.send_latency)}")

    def new_gap_lines(self):
        new = self.heard.gap_count - self.gaps_named
        self.gaps_named += new
        lines = ["gap: " + gap_text(gap) for gap in newest(self.heard.gaps, min(new, RECENT_GAPS))]
        return lines + [f"gap: and {new - RECENT_GAPS:,} before these"] if new > RECENT_GAPS else lines

    def status_lines(self, width, height):
        heard, rate = self.heard, self.rates
        lines = [f"feeder listen   {self.where()}   {(steady_ns() - self.started_ns) / SECOND:,.0f} s   Ctrl-C ends"]
        if not heard.packets:
            lines.append("nothing received yet")
        for stream in list(heard.streams.values())[:4]:
            state = "ended" if stream.ended else "SILENT" if stream.silent else "open"
            lines.append(f"channel {stream.channel:<3}session {stream.session.number} {state}, "
                         f"next sequence {stream.expected:,}")
        by_type = ", ".join(f"{name} {rate[name].per_second:,.0f}" for name in heard.by_type)
        lines += [
            f"packets   {rate['packets'].per_second:,.0f}/s, {heard.packets:,} in all   "
            f"{size_text(rate['bytes'].per_second)}/s   socket buffer {size_text(self.inlet.recv_buffer_bytes)}",
            f"messages  {rate['messages'].per_second:,.0f}/s, {heard.messages:,} in all",
            f"  /s      {by_type}",
            f"latency   sent to here:   {latency_text(heard.send_latency)}",
            f"          feeder to here: {latency_text(heard.venue_latency)}",
            f"loss      {self.loss()}", *self.ways(), *self.faults()]
        lines += ["  gap     " + gap_text(gap) for gap in newest(heard.gaps, RECENT_GAPS)]
        for status in heard.venues.values():
            if not status.connected:
                lines.append(f"venue     {status.venue} is not connected: {status.text or reason_text(status.reason)}")
        views = heard.views()
        lines += [f"books     {self.states()}", ""]
        room = max(height - len(lines) - 1, 1)
        lines += table(COLUMNS, map(row, views[:room] if len(views) <= room else views[:room - 1]), width)
        if len(views) > room:
            lines.append(f"... {len(views) - room + 1:,} more instruments; a taller terminal shows them, --report all")
        return lines

    def find_book(self):
        return self.heard.find(self.args.book) if self.args.book else []

    def show_book(self):
        found = self.find_book()
        if len({view.label for view in found}) > 1:
            self.loop.stop()             # main says so
        elif found:
            if self.shown not in found or self.shown.state != LIVE:      # of several publishers one, while it is live
                self.shown = max(found, key=lambda view: (view.state == LIVE, view is self.shown, view.stream.key))
            width, height = self.screen.size()
            lines = ladder(self.shown, min(LADDER_LEVELS, max(height - 4, 1)), width)
            if len(found) > 1:
                lines.append("one of {} publishers: channel {}, session {}".format(len(found), *self.shown.stream.key))
            self.screen.show([*lines, self.loss()], ["", *lines, *self.new_gap_lines()])
        else:
            waiting = f"waiting for the definition of {self.args.book}; {len(self.heard.views())} instruments so far"
            self.screen.show([waiting, self.loss()], [waiting])

    def summary(self):
        heard, args, where = self.heard, self.args, self.where()
        if not heard.packets:
            foreign = f", but {sum(heard.errors.values()):,} datagrams that are not ours" if heard.errors else ""
            return [f"nothing received from {where} in {self.seconds:.1f} s{foreign}. Is the feeder running, and are "
                    "group, port and interface the same?", *self.ways(), *self.faults()]
        lines = [f"listened {self.seconds:.1f} s to {where}: {heard.packets:,} packets, {heard.messages:,} messages, "
                 f"{size_text(heard.bytes)}", f"loss      {self.loss()}", *self.ways(), *self.faults(),
                 f"latency   sent to here:   {latency_text(heard.send_latency)}",
                 f"          feeder to here: {latency_text(heard.venue_latency)}",
                 f"books     {self.states()}"]
        lines += [f"channel {session.channel}: the publisher ended session {session.number}"
                  for session in heard.sessions if session.ended]
        if args.book and not self.find_book():
            lines.append(f"no instrument {args.book} was defined in that time")
        return lines

    # -- report ----------------------------------------------------------------------------------------------

    def report(self):
        heard = self.heard
        return {
            "group": self.args.group, "port": self.args.port, "interface": self.args.interface,
            "seconds": round(self.seconds, 3), "exit_code": self.exit_code(),
            **self.inlet.report(), "kernel_drops": self.drops, "internal_errors": self.loop.errors,
            "gaps": [gap_record(gap) for gap in heard.gaps],
            "sessions": [{"channel": session.channel, "session": session.number, "first_sequence": session.first,
                          "messages": session.messages, "ended": session.ended} for session in heard.sessions],
            "sessions_total": heard.session_count,
            "venues": {name: {"connected": bool(status.connected), "reason": reason_text(status.reason),
                              "text": status.text} for name, status in heard.venues.items()},
            "instruments": [instrument_record(view) for view in heard.views()],
        }


# -- text for people -------------------------------------------------------------------------------------------

COLUMNS = (Column("venue", "<", 4), Column("symbol", "<", 0), Column("state", "<", 1), Column("why", "<", 7),
           Column("epoch", ">", 8), Column("bid", ">", 2), Column("ask", ">", 3), Column("events", ">", 5),
           Column("trades", ">", 6))


def row(view):
    live = view.state == LIVE
    bid, ask = (side_texts(view, side, 1) if live else () for side in (view.bids, view.asks))
    return (view.venue, view.symbol or view.label, STATE_NAMES[view.state], "" if live else view.reason,
            str(view.epoch), bid[0][0] if bid else "-", ask[0][0] if ask else "-", f"{view.events:,}",
            f"{view.trades:,}")


def line_text(line):
    """Return the line of a line; one that was never heard has no figures."""
    if "packets" not in line:
        return f"line      {line['name']}: nothing yet" + (f"; {line['tap']}" if "tap" in line else "")
    return (f"line      {line['name']}: {'SILENT, ' if line['silent'] else ''}{line['packets']:,} packets, first with "
            f"{line['wins']:,}, messages lost {line['lost']:,}, behind by p50 {time_text(line['lag_ns']['p50'])}, "
            f"p99 {time_text(line['lag_ns']['p99'])}")


def newest(kept, count):
    """Return the last `count` of a deque, or all there are."""
    return list(kept)[-count:] if count else []


def latency_text(histogram):
    p50, p99 = histogram.percentiles((50, 99))
    odd = f" ({histogram.negative:,} negative: clocks differ)" if histogram.negative else ""
    return f"p50 {time_text(p50)}, p99 {time_text(p99)}, max {time_text(histogram.max)}{odd}"


def gap_text(gap):
    return f"channel {gap.channel}, from {gap.first} to {gap.last}, {gap.last - gap.first + 1:,} messages"


def reason_text(code):
    return REASONS[code] if code < len(REASONS) else str(code)


def ladder(view, level_count, width):
    """Return the lines of one book, best level first, bids on the left."""
    bids, asks = side_texts(view, view.bids, level_count), side_texts(view, view.asks, level_count)
    state = STATE_NAMES[view.state] if view.state == LIVE else f"{STATE_NAMES[view.state].upper()} ({view.reason})"
    lines = [f"{view.label}  {view.definition.name}  {state}  epoch {view.epoch}  "
             f"venue sequence {view.last_venue_sequence}  events {view.events:,}  trades {view.trades:,}"]
    if view.state != LIVE:
        return lines                     # levels that might be wrong are not shown
    prices = aligned([price for price, _ in bids + asks])
    quantities = aligned([quantity for _, quantity in bids + asks])
    left = [(quantity, price) for quantity, price in zip(quantities[:len(bids)], prices)]
    right = list(zip(prices[len(bids):], quantities[len(bids):]))
    blank = ("", "")
    rows = [(left[at] if at < len(left) else blank) + (right[at] if at < len(right) else blank)
            for at in range(max(len(left), len(right)))]
    return lines + table(LADDER, rows, width)


LADDER = (Column("bid quantity", ">", 2), Column("bid", ">", 0), Column("ask", "<", 0), Column("ask quantity", "<", 1))


def aligned(texts):
    """Return decimal texts padded so that their points are in one column."""
    whole = [text.partition(".") for text in texts]
    before = max((len(parts[0]) for parts in whole), default=0)
    after = max((len(parts[1] + parts[2]) for parts in whole), default=0)
    return [f"{parts[0]:>{before}}{parts[1] + parts[2]:<{after}}" for parts in whole]


# -- records for programs --------------------------------------------------------------------------------------


def price_text(definition, value):
    return value if definition is None else to_text(value, -definition.price_exponent)


def quantity_text(definition, value):
    return value if definition is None else to_text(value, -definition.quantity_exponent)


def side_texts(view, side, most):
    return [(price_text(view.definition, price), quantity_text(view.definition, quantity))
            for price, quantity in side.levels(most)]


def gap_record(gap):
    return {"channel": gap.channel, "from": gap.first, "to": gap.last, "messages": gap.last - gap.first + 1,
            "session": gap.session, "at_ns": gap.at_ns}


def instrument_record(view):
    return {"channel": view.stream.channel, "instrument_id": view.instrument_id, "venue": view.venue,
            "symbol": view.symbol, "name": view.definition.name if view.definition else "",
            "state": STATE_NAMES[view.state], "reason": view.reason, "in_step": view.in_step, "epoch": view.epoch,
            "events": view.events, "trades": view.trades, "bbos": view.bbos, "refreshes": view.refreshes,
            "crossed": view.crossed, "last_venue_sequence": view.last_venue_sequence,
            "bids": side_texts(view, view.bids, REPORT_LEVELS), "asks": side_texts(view, view.asks, REPORT_LEVELS)}


def message_record(packet, sequence, message, view):
    """Return one message as a JSON object; `view` may be None."""
    definition = view.definition if view is not None else None
    kind = TYPE_NAMES[message.type] if isinstance(message, Book) else type(message).__name__.lower()
    record = {"type": kind, "channel": packet.channel, "sequence": sequence, "send_ns": packet.send_ns,
              "instrument_id": message.instrument_id}
    if isinstance(message, Definition):
        return {**record, **message._asdict()}
    if message.instrument_id == ALL_INSTRUMENTS:
        record["venue"] = message.venue
    elif definition is not None:
        record.update(venue=definition.venue, symbol=definition.symbol)
    record.update(state=STATE_NAMES.get(message.state, str(message.state)), epoch=message.epoch,
                  venue_sequence=message.venue_sequence, recv_ns=message.recv_ns)
    if isinstance(message, Status):
        record.update(reason=reason_text(message.reason), connected=bool(message.connected), text=message.text)
        return record
    record["event_ns"] = message.event_ns
    if isinstance(message, Trade):
        item = message.item
        record.update(trade_id=item.trade_id, price=price_text(definition, item.price),
                      quantity=quantity_text(definition, item.quantity), side=SIDE_NAMES[item.side])
    elif isinstance(message, Bbo):
        for name, item in (("bid", message.bid), ("ask", message.ask)):
            record[name] = price_text(definition, item.price), quantity_text(definition, item.quantity)
    else:
        record["flags"] = message.flags
        for name, flat in (("bids", message.bids), ("asks", message.asks)):
            record[name] = [(price_text(definition, price), quantity_text(definition, quantity))
                            for price, quantity in zip(flat[::2], flat[1::2])]
    return record
