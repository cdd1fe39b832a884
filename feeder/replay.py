"""`feeder replay`: a recording through the same decoders, recovery, books and packets as a live feed.

REST books in the recording are used where they stand; a book that never had one is never LIVE.
What a file is, it says itself: pcap files, which hold our packets, are replay_capture.py's.
"""

import sys

from feeder import capture, clock, pcap, report
from feeder.errors import CaptureError, ConfigError, VenueError
from feeder.packet import DEFAULT_PACKET_BYTES
from feeder.pipeline import Pipeline
from feeder.venue import recognise

PROGRESS_EVERY = 20_000        # records
MAX_SHOWN_ERRORS = 10
MAX_URLS = 1024


class Pace:
    """Waits as the recording did, `speed` times as fast; None: as fast as it goes."""

    def __init__(self, speed):
        self.speed = speed
        self.start()

    def start(self):
        """The next time that is told is now."""
        self.start_ns, self.start_t = clock.steady_ns(), None

    def wait(self, t):
        """Wait until what happened at `t` is due; None: nobody knows when."""
        if not self.speed or t is None:
            return
        self.start_t = t if self.start_t is None else self.start_t
        ahead_ns = (t - self.start_t) / self.speed - (clock.steady_ns() - self.start_ns)
        if ahead_ns > clock.MILLISECOND:
            clock.sleep(ahead_ns / clock.SECOND)


class Replay:
    """One run over files; feeds a Pipeline and keeps what the report needs."""

    def __init__(self, emit, session, depth=20, pace=None, progress=None, packet_bytes=DEFAULT_PACKET_BYTES):
        self.pipeline = Pipeline(emit, clock.wall_ns, session, packet_bytes=packet_bytes)
        self.depth = depth
        self.pace = pace or Pace(None)
        self.progress = progress
        self.records = 0
        self.messages = 0
        self.rest_answers = 0
        self.ignored_rest = 0
        self.errors = []
        self.error_count = 0
        self.by_url = {}
        self.rows = {}                # (venue, symbol) -> report row at the end of the last file that had it

    def venue_of(self, url):
        return self.pipeline.venue(recognise(url).name, discover=True, depth=self.depth)

    def session_of(self, url):
        """Return (session, recovery) of a connection; a URL is one connection, as far as recordings tell."""
        if url not in self.by_url:
            if len(self.by_url) >= MAX_URLS:
                raise CaptureError(f"more than {MAX_URLS} connections in one recording")
            venue = self.venue_of(url)
            self.by_url[url] = venue.session(), self.pipeline.recoveries[venue.name]
        return self.by_url[url]

    def file(self, path, file=None):
        """Replay one file, which may be open. What is LIVE from an earlier file starts over: its connection is gone.

        The report shows each instrument as it was at the end of the last file that had it.
        """
        try:
            self.records_of(path, file)
        finally:
            for row in report.instrument_rows(self.pipeline.publisher, self.pipeline.recoveries):
                key = row["venue"], row["symbol"]
                known = self.rows.get(key)
                if known is None or any(row[name] != known[name] for name in ("events", "trades", "bbos", "old")):
                    self.rows[key] = row

    def records_of(self, path, file):
        self.by_url.clear()
        for name, recovery in self.pipeline.recoveries.items():
            recovery.disconnect([each for each in self.pipeline.instruments if each.venue == name], 0)
        self.pace.start()
        flush = self.pipeline.encoder.flush
        for record in capture.read(path, file):
            self.records += 1
            if self.progress and self.records % PROGRESS_EVERY == 0:
                self.progress(path, self.records)
            if record.direction != "in":
                continue
            self.pace.wait(record.t)
            recv_ns = record.t or 0
            if record.kind == "ws":
                self.messages += 1
                session, recovery = self.session_of(record.conn)
                recovery.line = session
                _, error = self.pipeline.decode(session, record.payload, recv_ns)
            else:
                error = self.rest(self.venue_of(record.conn), record, recv_ns)
            if error is not None:
                self.error_count += 1
                if len(self.errors) < MAX_SHOWN_ERRORS:
                    self.errors.append(f"{path}, record {self.records}: {error}")
            flush()

    def rest(self, venue, record, recv_ns):
        symbol = venue.snapshot_symbol(record.conn)
        if symbol is None:
            self.ignored_rest += 1
            return None
        self.rest_answers += 1
        try:
            instrument = venue.instrument(symbol)
        except VenueError as error:               # one too many, or no name for a symbol
            return error
        return self.pipeline.decode_snapshot(venue, instrument, record.payload, recv_ns)

    def report(self, seconds):
        pipeline = self.pipeline
        rows = list(self.rows.values())
        return {"records": self.records, "messages": self.messages, "rest_books": self.rest_answers,
                "rest_other": self.ignored_rest, "seconds": round(seconds, 3),
                "messages_per_second": round(self.messages / seconds) if seconds else 0,
                "packets": pipeline.encoder.packets, "errors": self.error_count, "first_errors": self.errors,
                "gaps": sum(row["gaps"] for row in rows), "resyncs": sum(row["resyncs"] for row in rows),
                "decoders": report.decoder_rows(pipeline.venues.values()), "instruments": rows}


def speed_of(text):
    """Return the factor of "1x", "2.5x"; None for "max"."""
    if text == "max":
        return None
    try:
        factor = float(text[:-1] if text.endswith("x") else text)
    except ValueError:
        factor = 0
    if not 0 < factor < 1e6:
        raise ConfigError(f"--speed {text!r}: expected max, 1x or a factor such as 10x")
    return factor


def configure(parser):
    parser.description = ("Run recordings through decoders, recovery and books, as a live feed would; or pcap files of "
                          "our packets (listen --pcap, tcpdump -w) through the receiver.")
    parser.epilog = ("example: python3 -m feeder replay btcusdt.jsonl.gz --report -\n"
                     "         python3 -m feeder replay heard.pcap\n"
                     "exit codes: 0 all was read, 2 a file is unreadable or its dialect not supported; of pcap files\n"
                     "also 3 messages are missing or a repeated snapshot differs from the book kept, 4 nothing is ours")
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, .jsonl or .jsonl.gz; or pcap files")
    parser.add_argument("--speed", default="max", metavar="max|1x|Nx", help="default: max")
    parser.add_argument("--publish", action="store_true",
                        help="send the packets as multicast too; those of a pcap file as they are")
    parser.add_argument("--group", default="239.192.0.1", help="with --publish; default %(default)s")
    parser.add_argument("--port", type=int, default=30001, help="with --publish; default %(default)s")
    parser.add_argument("--snapshot-port", type=int, default=30002,
                        help="with --publish: for the snapshot loop in a pcap file, 0: leave it out; default "
                        "%(default)s")
    parser.add_argument("--interface", default="127.0.0.1", help="with --publish; default %(default)s")
    parser.add_argument("--depth", type=int, default=20, help="levels a side that are published, 0 all; default 20")
    parser.add_argument("--hold-ms", type=float, default=200,
                        help="of a pcap file: how long a gap waits for what another line, or a retransmission, brings; "
                        "default %(default)s")
    parser.add_argument("--key-file", default="", help="of a pcap file: count nothing that is not signed with this key")
    parser.add_argument("--report", metavar="FILE", help="write a JSON report; - is standard output")


def main(args):
    pace = Pace(speed_of(args.speed))
    with capture.opened(args.files[0]) as (first, head):
        are_captures = pcap.begins(head)
        files = each_file(args.files, first, are_captures)
        senders = [sender(args, args.port), sender(args, args.snapshot_port if are_captures else 0)]
        show = Progress("frames" if are_captures else "records") if sys.stderr.isatty() else None
        try:
            code, result, lines = (run_captures if are_captures else run_recordings)(args, files, pace, senders, show)
        finally:
            if show:
                sys.stderr.write("\n")
            for each in filter(None, senders):
                each.close()
    if args.publish:
        result["output"] = {name: sum(getattr(each, name) for each in senders if each)
                            for name in ("sent", "dropped", "bytes")}
    if args.report:
        report.write(result, args.report)
    if args.report != "-":
        print("\n".join(lines(result)))
    return code


def each_file(paths, first, are_captures):
    """Yield (path, open file); the first is open already. Raises CaptureError where one is of the other kind."""
    yield paths[0], first
    for path in paths[1:]:
        with capture.opened(path) as (file, head):
            if pcap.begins(head) != are_captures:
                raise CaptureError(f"{path}: pcap files and recordings cannot be replayed together")
            yield path, file


def sender(args, port):
    if not args.publish or not port:
        return None
    from feeder.net.udp import PacketSender
    return PacketSender(args.group, port, interface=args.interface)


class Progress:
    """Called with path and count: shows how far it is."""

    def __init__(self, what):
        self.what = what

    def __call__(self, path, count):
        sys.stderr.write(f"\r{path}: {count:,} {self.what}")
        sys.stderr.flush()


def run_recordings(args, files, pace, senders, progress):
    """Return (exit code, report, its lines for people)."""
    emit = senders[0].send if senders[0] else lambda datagram: None
    replay = Replay(emit, clock.wall_ns(), args.depth, pace, progress)
    start_ns = clock.stopwatch_ns()
    code = 0
    try:
        for path, file in files:
            replay.file(path, file)
    except KeyboardInterrupt:
        code = 130
    replay.pipeline.encoder.end()
    return code, replay.report((clock.stopwatch_ns() - start_ns) / clock.SECOND), summary


def run_captures(args, files, pace, senders, progress):
    """Return (exit code, report, its lines for people)."""
    from feeder.keyfile import read_key
    from feeder.replay_capture import CaptureReplay, summary as capture_summary
    seal = read_key(args.key_file) if args.key_file else None
    replay = CaptureReplay(pace, senders, args.hold_ms, seal, progress)
    start_ns = clock.stopwatch_ns()
    code = 0
    try:
        for path, file in files:
            replay.file(path, file)
    except KeyboardInterrupt:
        code = 130
    replay.finish()
    result = replay.report((clock.stopwatch_ns() - start_ns) / clock.SECOND)
    return code or replay.exit_code(), result, capture_summary


def summary(result):
    lines = [f"{result['messages']:,} messages in {result['seconds']} s ({result['messages_per_second']:,}/s), "
             f"{result['packets']:,} packets, {result['gaps']} gaps, {result['errors']} unreadable"]
    lines += [f"  {text}" for text in result["first_errors"]]
    lines.append(f"{'venue':<16}{'symbol':<16}{'state':<9}{'events':>9}{'trades':>9}{'gaps':>6}{'resyncs':>8}"
                 "  best bid / ask")
    for row in result["instruments"]:
        touch = " / ".join(side[0][0] if side else "-" for side in (row["bids"], row["asks"]))
        lines.append(f"{row['venue']:<16}{row['symbol']:<16}{row['state']:<9}{row['events']:>9,}{row['trades']:>9,}"
                     f"{row['gaps']:>6}{row['resyncs']:>8}  {touch}")
    return lines
