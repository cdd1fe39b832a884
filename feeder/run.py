"""`feeder run`, the main job: venues in, books kept, packets out, one live status.

    Feeds (ingest) ──▶ Pipeline (decode, recover, book, encode) ──▶ PacketSender

Everything runs on one loop in one process (`workers: 0` of the design). Besides the data two timers send: the
refresh round, which repeats one instrument's definition and book at a time for late joiners, and the heartbeat
of an idle channel.

Latency is from the moment bytes of a venue were received to the moment the datagram left, per datagram.
"""

import logging
import sys
from contextlib import ExitStack

from feeder import clock, config as configuration, log as logs, report
from feeder.counter import Histogram, Rate
from feeder.errors import ConfigError, HostError
from feeder.fixed import to_text
from feeder.host.memory import resident_bytes
from feeder.ingest import Feed
from feeder.log import Limited
from feeder.message import LIVE, STALE, STATE_NAMES, SYNCING
from feeder.net import Loop, PacketSender
from feeder.pipeline import Pipeline
from feeder.screen import Column, Screen, interruptible, size_text, table, time_text
from feeder.twin import spawn

log = logging.getLogger("feeder.run")

HEARTBEAT_NS = clock.SECOND
ROUND_NS = 2 * clock.SECOND                 # one refresh round, where MIN_REFRESH_NS allows
MIN_REFRESH_NS, MAX_REFRESH_NS = 5 * clock.MILLISECOND, 100 * clock.MILLISECOND
MAX_SECONDS = 1e9
EXIT_OK, EXIT_FAULT = 0, 1

VENUE_COLUMNS = [Column(*each) for each in (
    ("venue", "<", 0), ("up", ">", 1), ("instruments", ">", 5), ("updates/s", ">", 2), ("live", ">", 0),
    ("syncing", ">", 3), ("stale", ">", 1), ("gaps", ">", 2), ("resyncs", ">", 4), ("unreadable", ">", 6))]
INSTRUMENT_COLUMNS = [Column(*each) for each in (
    ("venue", "<", 2), ("symbol", "<", 0), ("state", "<", 0), ("best bid", ">", 1), ("best ask", ">", 1),
    ("events", ">", 3), ("trades", ">", 4), ("gaps", ">", 5))]


class Run:
    """All of one run. What it opens is closed by `stack`, in reverse."""

    def __init__(self, config, stack):
        self.config = config
        self.started_ns = clock.steady_ns()
        self.latency = Histogram()              # up to the last status
        self.recent = Histogram()               # since then
        self.limited = Limited(log, 10)
        self.loop = Loop()
        stack.callback(self.loop.close)
        output = config.output
        self.sender = PacketSender(output.group, output.port, ttl=output.ttl, interface=output.interface,
                                   loopback=output.loopback, send_buffer_bytes=output.send_buffer_bytes)
        stack.callback(self.sender.close)
        self.pipeline = Pipeline(self.emit, clock.wall_ns, clock.wall_ns(), output.channel, output.packet_bytes,
                                 config.hft.processing.max_symbols, self.want_snapshot)
        self.pipeline.publisher.on_fault = self.on_fault
        self.feeds = {}
        for venue in config.venues:
            feed = self.feeds[venue.name] = Feed(self.loop, self.pipeline, venue, config.names)
            stack.callback(feed.close)
        self.rates = {name: Rate(self.started_ns, 0) for name in ("packets", "bytes", *self.feeds)}
        self.sent_at_beat = 0
        self.ever_live = False

    # -- the data path ---------------------------------------------------------------------------------------

    def emit(self, datagram):
        self.sender.send(datagram)
        received_ns = self.pipeline.received_ns
        if received_ns:
            self.recent.add(clock.stopwatch_ns() - received_ns)

    def want_snapshot(self, venue, instrument, attempt):
        self.feeds[venue.name].snapshots.order(instrument, attempt)

    def on_fault(self, instrument, reason, text):
        self.limited.warning((reason, instrument.instrument_id), "%s %s: %s: %s",
                             instrument.venue, instrument.symbol, reason, text)
        self.feeds[instrument.venue].last_error = f"{instrument.symbol}: {reason}: {text}"

    # -- timers ----------------------------------------------------------------------------------------------

    def start(self):
        for feed in self.feeds.values():
            feed.start()
        self.heartbeat()
        self.refresh()

    # The next one is set first: a fault in one round must not end the rounds.

    def heartbeat(self):
        self.loop.call_after(HEARTBEAT_NS, self.heartbeat)
        if self.sender.sent == self.sent_at_beat:
            self.pipeline.encoder.heartbeat()
        self.sent_at_beat = self.sender.sent

    def refresh(self):
        count = max(1, len(self.pipeline.instruments))
        self.loop.call_after(min(MAX_REFRESH_NS, max(MIN_REFRESH_NS, ROUND_NS // count)), self.refresh)
        self.pipeline.publisher.refresh()
        self.pipeline.encoder.flush()

    # -- what people and programs are shown ------------------------------------------------------------------

    def states(self, venue=None):
        """Return {state: how many books}, of one venue or of all."""
        counts = dict.fromkeys((LIVE, SYNCING, STALE), 0)
        for entry in self.pipeline.publisher.entries:
            if venue is None or entry.instrument.venue == venue:
                counts[entry.state] += 1
        return counts

    def update_rates(self):
        now_ns = clock.steady_ns()
        self.rates["packets"].update(now_ns, self.sender.sent)
        self.rates["bytes"].update(now_ns, self.sender.bytes)
        for name in self.feeds:
            venue = self.pipeline.venues[name]
            self.rates[name].update(now_ns, venue.likely + venue.unlikely)
        self.ever_live |= self.states()[LIVE] > 0
        shown, self.recent = self.recent, Histogram()
        self.latency.merge(shown)
        return shown

    def figures(self):
        """Return what both kinds of status tell, as texts by name."""
        shown = self.update_rates()
        p50, p99 = shown.percentiles((50, 99))
        return {"seconds": f"{(clock.steady_ns() - self.started_ns) / clock.SECOND:,.0f} s",
                "latency": (f"p50 {time_text(p50)}, p99 {time_text(p99)}, max {time_text(shown.max)}" if shown.max
                            else "none yet"),
                "packets": f"{self.rates['packets'].per_second:,.0f} packets/s",
                "memory": size_text(resident_bytes()), "not_sent": self.sender.dropped + self.sender.errors}

    def line(self):
        """Return the status for a log-like output."""
        figures = self.figures()
        counted = ", ".join(f"{count:,} {STATE_NAMES[state]}" for state, count in self.states().items())
        updates = sum(self.rates[name].per_second for name in self.feeds)
        gaps = sum(link.gaps for recovery in self.pipeline.recoveries.values() for link in recovery.links.values())
        return (f"{figures['seconds']}: {updates:,.0f} updates/s, {figures['packets']}; books {counted}; gaps {gaps}; "
                f"latency {figures['latency']}; memory {figures['memory']}"
                + (f"; NOT SENT {figures['not_sent']:,}" if figures["not_sent"] else ""))

    def screen(self, size):
        """Return the lines of the status for a terminal of that size."""
        figures = self.figures()
        output = self.config.output
        lines = [
            f"feeder run   {self.config.source}   {figures['seconds']}   Ctrl-C ends",
            f"output       {output.group}:{output.port} on {output.interface or 'any interface'}: "
            f"{figures['packets']}, {size_text(self.rates['bytes'].per_second)}/s, not sent {figures['not_sent']:,}",
            f"latency      socket to datagram: {figures['latency']}",
            f"memory       {figures['memory']}" + (f"   log {logs.path()}" if logs.path() else ""), ""]
        venue_rows = []
        for name, feed in self.feeds.items():
            of_venue = self.states(name)
            row = feed.row()
            links = self.pipeline.recoveries[name].links.values()
            venue_rows.append([name, f"{row['connected']}/{row['lines']}", str(len(feed.instruments)),
                               f"{self.rates[name].per_second:,.0f}", *(f"{of_venue[each]:,}" for each in of_venue),
                               f"{sum(link.gaps for link in links):,}", f"{sum(link.resyncs for link in links):,}",
                               f"{row['bad_messages']:,}"])
        lines += table(VENUE_COLUMNS, venue_rows, size.columns)
        lines += [f"last fault   {name}: {feed.last_error}" for name, feed in self.feeds.items() if feed.last_error]
        lines.append("")
        entries = self.pipeline.publisher.entries      # thousands perhaps: only those that fit are made into text
        lines += table(INSTRUMENT_COLUMNS, list(map(self.instrument_cells, entries[:size.lines])), size.columns)
        return lines + [""] * len(entries[size.lines:])

    def instrument_cells(self, entry):
        instrument = entry.instrument
        link = self.pipeline.recoveries[instrument.venue].link(instrument)
        best = [to_text(side[0], instrument.price_decimals) if side else "-" for side in entry.book.top(1)]
        return [instrument.venue, instrument.symbol, STATE_NAMES[entry.state], *best,
                f"{entry.events:,}", f"{entry.trades:,}", f"{link.gaps:,}"]

    def report(self):
        """Return the report of the run as a JSON-ready dict."""
        self.update_rates()
        seconds = (clock.steady_ns() - self.started_ns) / clock.SECOND
        pipeline = self.pipeline
        rows = report.instrument_rows(pipeline.publisher, pipeline.recoveries)
        messages = sum(venue.likely + venue.unlikely for venue in pipeline.venues.values())
        states = {STATE_NAMES[state]: count for state, count in self.states().items()}
        return {
            "source": self.config.source, "session": pipeline.encoder.session, "seconds": round(seconds, 3),
            "messages": messages, "messages_per_second": round(messages / seconds),
            "packets": self.sender.sent, "packets_per_second": round(self.sender.sent / seconds),
            "bytes": self.sender.bytes, "not_sent": self.sender.dropped, "send_errors": self.sender.errors,
            "send_buffer_bytes": self.sender.send_buffer_bytes, "published_messages": pipeline.encoder.sequence - 1,
            "books": states, "gaps": sum(row["gaps"] for row in rows), "resyncs": sum(row["resyncs"] for row in rows),
            "latency_ns": self.latency.summary(), "memory_bytes": resident_bytes(),
            "internal_errors": self.loop.errors, "log_lines_lost": logs.lost_lines(),
            "venues": [feed.row() for feed in self.feeds.values()],
            "decoders": report.decoder_rows(pipeline.venues.values()), "instruments": rows}


def configure(parser):
    parser.description = ("Feed from the venues of a configuration and publish packets. Without --config a venue on "
                          "this machine is started and fed from.")
    parser.epilog = ("example: python3 -m feeder run --config config/feeder/crypto --seconds 60 --report report.json\n"
                     "environment: USE_LIMITED_CONFIG=1 takes the 10-symbol configuration, "
                     "FEEDER_LOG=debug|info|warning|error the log level\n"
                     "exit codes: 0 ended as asked, 1 a fault (no book ever became live, or the built-in venue died), "
                     "2 wrong configuration or host")
    configuration.add_arguments(parser)
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so long; default: run until Ctrl-C")
    parser.add_argument("--report", metavar="FILE", help="write a JSON report at the end; - is standard output")
    parser.add_argument("--log", metavar="FILE", help="log file; empty text for none; default: as configured")
    parser.add_argument("--rate", type=float, default=2000, metavar="N",
                        help="messages/s of the built-in venue, without --config; default %(default)g")


def main(args):
    if args.seconds is not None and not 0 < args.seconds <= MAX_SECONDS:
        raise ConfigError(f"--seconds {args.seconds:g}: expected more than 0, at most {MAX_SECONDS:g}")
    config = configuration.from_arguments(args)
    if args.log is not None:
        config.log.path = args.log
    if args.report not in (None, "-"):
        report.check_writable(args.report)
    logs.setup(config.log.path, config.log.level, config.log.max_bytes, config.log.keep)
    try:
        return run(config, args)
    except (ConfigError, HostError) as error:
        log.critical("%s", error)
        raise type(error)(f"{error}" + (f" (log: {logs.path()})" if logs.path() else "")) from None
    except BrokenPipeError:               # nobody reads the report: cli.py's business
        raise
    except Exception:
        log.critical("ended by a fault of its own", exc_info=True)
        where = f"the log tells where: {logs.path()}" if logs.path() else "run with --log FILE to see where"
        print(f"feeder: ended by a fault of its own; {where}", file=sys.stderr)
        return EXIT_FAULT
    finally:
        logs.close()


def run(config, args):
    screen = Screen(sys.stderr if args.report == "-" else None)
    with ExitStack() as stack:
        child = None
        if not args.config:
            child = stack.enter_context(spawn([
                "--venue", ",".join(venue.name for venue in config.venues), "--rate", args.rate,
                "--symbols", ",".join(config.venues[0].symbols), "--levels", configuration.TWIN_LEVELS]))
            for venue in config.venues:
                venue.websocket_url = child.info[venue.name]["websocket_url"]
                venue.rest_url = child.info[venue.name]["rest_url"]
        running = Run(config, stack)
        log.info("started: %s", config.source)
        died = []

        def watch():
            running.loop.call_after(screen.interval_ns, watch)
            if child is not None and child.process.poll() is not None:
                died.append(child.process.returncode)
                running.loop.stop()
            if screen.is_live:
                screen.show(running.screen(screen.size()))
            else:
                screen.print(running.line())
            if screen.broken:
                running.loop.stop()

        with screen, interruptible(running.loop.stop):
            running.start()
            running.loop.call_after(screen.interval_ns, watch)
            if args.seconds:
                running.loop.call_after(int(args.seconds * clock.SECOND), running.loop.stop)
            running.loop.run()
            result = running.report()
            running.pipeline.encoder.end()
        running.limited.flush()
        log.info("ended after %.1f s", result["seconds"])
    if args.report != "-":
        summary(result)
    if args.report:
        report.write(result, args.report)
    if died:
        log.error("the built-in venue ended with exit code %s", died[0])
        print(f"feeder: the built-in venue ended unexpectedly (exit code {died[0]})", file=sys.stderr)
        return EXIT_FAULT
    if not running.ever_live:
        print("feeder: no book ever became live" + "".join(
            f"\n  {row['venue']}: {row['last_error'] or 'no fault was seen; was the time too short?'}"
            for row in result["venues"]), file=sys.stderr)
        return EXIT_FAULT
    return EXIT_FAULT if result["internal_errors"] else EXIT_OK


def summary(result):
    latency = result["latency_ns"]
    books = ", ".join(f"{count} {state}" for state, count in result["books"].items())
    print(f"{result['seconds']:.1f} s: {result['messages']:,} messages ({result['messages_per_second']:,}/s), "
          f"{result['packets']:,} packets, not sent {result['not_sent'] + result['send_errors']:,}")
    print(f"books {books}; gaps {result['gaps']}, resyncs {result['resyncs']}; "
          f"latency p50 {time_text(latency['p50'])}, p99 {time_text(latency['p99'])}, max {time_text(latency['max'])}; "
          f"memory {size_text(result['memory_bytes'])}")
    for row in result["venues"]:
        if row["last_error"]:
            print(f"{row['venue']}: {row['disconnects']} disconnects, {row['bad_messages']} unreadable messages; "
                  f"last fault: {row['last_error']}")
