"""`feeder replay`: a recording through the same decoders, recovery, books and packets as a live feed.

REST books in the recording are used where they stand; a book that never had one is never LIVE.
"""

import sys

from feeder import capture, clock, report
from feeder.errors import CaptureError, ConfigError, VenueError
from feeder.packet import DEFAULT_PACKET_BYTES
from feeder.pipeline import Pipeline
from feeder.venue import recognise

PROGRESS_EVERY = 20_000        # records
MAX_SHOWN_ERRORS = 10
MAX_URLS = 1024


class Replay:
    """One run over files; feeds a Pipeline and keeps what the report needs."""

    def __init__(self, emit, session, depth=20, speed=None, progress=None, packet_bytes=DEFAULT_PACKET_BYTES):
        self.pipeline = Pipeline(emit, clock.wall_ns, session, packet_bytes=packet_bytes)
        self.depth = depth
        self.speed = speed            # None: as fast as it goes
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

    def file(self, path):
        """Replay one file. What is LIVE from an earlier file starts over: its connection is gone.

        The report shows each instrument as it was at the end of the last file that had it.
        """
        try:
            self.records_of(path)
        finally:
            for row in report.instrument_rows(self.pipeline.publisher, self.pipeline.recoveries):
                key = row["venue"], row["symbol"]
                known = self.rows.get(key)
                if known is None or any(row[name] != known[name] for name in ("events", "trades", "bbos", "old")):
                    self.rows[key] = row

    def records_of(self, path):
        self.by_url.clear()
        for name, recovery in self.pipeline.recoveries.items():
            recovery.disconnect([each for each in self.pipeline.instruments if each.venue == name], 0)
        start_ns, start_t = clock.steady_ns(), None
        flush = self.pipeline.encoder.flush
        for record in capture.read(path):
            self.records += 1
            if self.progress and self.records % PROGRESS_EVERY == 0:
                self.progress(path, self.records)
            if record.direction != "in":
                continue
            if self.speed and record.t is not None:
                start_t = record.t if start_t is None else start_t
                ahead_ns = (record.t - start_t) / self.speed - (clock.steady_ns() - start_ns)
                if ahead_ns > clock.MILLISECOND:
                    clock.sleep(ahead_ns / clock.SECOND)
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
    parser.description = "Run recordings through decoders, recovery and books, as a live feed would."
    parser.epilog = ("example: python3 -m feeder replay btcusdt.jsonl.gz --report -\n"
                     "exit codes: 0 all was read, 2 a file is unreadable or its dialect not supported")
    parser.add_argument("files", nargs="+", metavar="FILE", help="recording: .jsonl or .jsonl.gz")
    parser.add_argument("--speed", default="max", metavar="max|1x|Nx", help="default: max")
    parser.add_argument("--publish", action="store_true", help="send the packets as multicast too")
    parser.add_argument("--group", default="239.192.0.1", help="with --publish; default %(default)s")
    parser.add_argument("--port", type=int, default=30001, help="with --publish; default %(default)s")
    parser.add_argument("--interface", default="127.0.0.1", help="with --publish; default %(default)s")
    parser.add_argument("--depth", type=int, default=20, help="levels a side that are published, 0 all; default 20")
    parser.add_argument("--report", metavar="FILE", help="write a JSON report; - is standard output")


def main(args):
    speed = speed_of(args.speed)
    sender = None
    if args.publish:
        from feeder.net.udp import PacketSender
        sender = PacketSender(args.group, args.port, interface=args.interface)
    show = sys.stderr.isatty()

    def progress(path, records):
        sys.stderr.write(f"\r{path}: {records:,} records")
        sys.stderr.flush()

    replay = Replay(sender.send if sender else lambda datagram: None, clock.wall_ns(), args.depth, speed,
                    progress if show else None)
    start_ns = clock.stopwatch_ns()
    interrupted = False
    try:
        for path in args.files:
            replay.file(path)
        replay.pipeline.encoder.end()
    except KeyboardInterrupt:
        interrupted = True
        replay.pipeline.encoder.end()
    finally:
        if show:
            sys.stderr.write("\n")
        if sender:
            sender.close()
    result = replay.report((clock.stopwatch_ns() - start_ns) / clock.SECOND)
    if sender:
        result["output"] = {"sent": sender.sent, "dropped": sender.dropped, "bytes": sender.bytes}
    if args.report:
        report.write(result, args.report)
    if args.report != "-":
        summary(result)
    return 130 if interrupted else 0


def summary(result):
    print(f"{result['messages']:,} messages in {result['seconds']} s ({result['messages_per_second']:,}/s), "
          f"{result['packets']:,} packets, {result['gaps']} gaps, {result['errors']} unreadable")
    for text in result["first_errors"]:
        print(f"  {text}")
    print(f"{'venue':<16}{'symbol':<16}{'state':<9}{'events':>9}{'trades':>9}{'gaps':>6}{'resyncs':>8}  best bid / ask")
    for row in result["instruments"]:
        touch = " / ".join(side[0][0] if side else "-" for side in (row["bids"], row["asks"]))
        print(f"{row['venue']:<16}{row['symbol']:<16}{row['state']:<9}{row['events']:>9,}{row['trades']:>9,}"
              f"{row['gaps']:>6}{row['resyncs']:>8}  {touch}")


