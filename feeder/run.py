"""`feeder run`, the main job: venues in, books kept, packets out, one live status.

    Input ──▶ Intake (decode, recover) ──▶ Publisher (book, encode) ──▶ Output

Everything runs on one loop in one process where `workers` is 0; supervise.py has the other case. What is shown and
reported is the same in both.
"""

import logging
import sys
from contextlib import ExitStack

from feeder import clock, config as configuration, log as logs, report
from feeder.errors import ConfigError, HostError
from feeder.host import measures
from feeder.host.cores import ORDERED_MACHINES, recommend, topology_of
from feeder.host.facts import Host
from feeder.host.measures import Measures
from feeder.net import STRATEGIES, Loop
from feeder.pipeline import Intake
from feeder.publish import Publisher
from feeder.schema import SCHEMA, accepts, expected
from feeder.screen import Screen, interruptible, size_text, time_text
from feeder.stages import Input, Output, Vitals, take_measures
from feeder.status import Status
from feeder.venue.contract import Instruments

log = logging.getLogger("feeder.run")

MAX_SECONDS = 1e9
WORKERS = next(key.bounds for key in SCHEMA if key.path == "runtime.workers")
EXIT_OK, EXIT_FAULT = 0, 1


class Run:
    """All of one run in one process. What it opens is closed by `stack`, in reverse."""

    def __init__(self, config, stack, host=None):
        runtime = config.hft.runtime
        self.loop = Loop(idle=STRATEGIES[runtime.idle](), event_interval=runtime.event_interval)
        stack.callback(self.loop.close)
        self.output = Output(config, self.loop, stack)
        self.publisher = self.output.publisher = Publisher(self.output.encoders, lambda *what: self.intake.resync(*what))
        self.publisher.on_fault = self.on_fault
        self.intake = Intake(self.publisher, Instruments(config.hft.processing.max_symbols),
                             lambda *what: self.input.want_snapshot(*what))
        self.input = Input(config, self.loop, self.intake, stack)
        self.feeds = self.input.feeds
        self.status = Status(config)
        # Without measures: none taken.
        self.vitals = Vitals(self.loop, host or Measures(config.hft, "feeder-run"), [self.output], logs.lost_lines)

    def on_fault(self, instrument, reason, text):
        self.output.fault(instrument, reason, text)
        self.feeds[instrument.venue].last_error = f"{instrument.symbol}: {reason}: {text}"

    def start(self):
        self.input.start()
        self.output.start()

    def update(self, shown=0):
        self.status.update(self.output.figures(shown), self.input.figures(shown), {"host": self.vitals.figures()})

    def line(self):
        """Return the status for a log-like output."""
        self.update()
        return self.status.line()

    def screen(self, size):
        """Return the lines of the status for a terminal of that size."""
        self.update(size.lines)
        return self.status.screen(size)

    def report(self):
        """Return the report of the run as a JSON-ready dict."""
        return self.status.report(self.output.report(), self.input.report(), {"host": self.vitals.report()})

    def end(self):
        """Tell listeners that nothing more comes."""
        self.output.end()


def configure(parser):
    parser.description = ("Feed from the venues of a configuration and publish packets. Without --config a venue on "
                          "this machine is started and fed from.")
    parser.epilog = ("example: python3 -m feeder run --config config/feeder/crypto --seconds 60 --report report.json\n"
                     "environment: USE_LIMITED_CONFIG=1 takes the 10-symbol configuration, "
                     "FEEDER_LOG=debug|info|warning|error the log level\n"
                     "exit codes: 0 ended as asked, 1 a fault (no book ever became live, or the built-in venue died), "
                     "2 wrong configuration or host")
    configuration.add_arguments(parser)
    measures.add_arguments(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="ingest processes before one that publishes; 0: all in "
                        "one process; default: runtime.workers of the configuration")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so long; default: run until Ctrl-C")
    parser.add_argument("--report", metavar="FILE", help="write a JSON report at the end; - is standard output")
    parser.add_argument("--log", metavar="FILE", help="log file; empty text for none; default: as configured")
    parser.add_argument("--rate", type=float, default=2000, metavar="N",
                        help="messages/s of the built-in venue, without --config; default %(default)g")


def main(args):
    if args.seconds is not None and not 0 < args.seconds <= MAX_SECONDS:
        raise ConfigError(f"--seconds {args.seconds:g}: expected more than 0, at most {MAX_SECONDS:g}")
    config = configuration.from_arguments(args)
    measures.from_arguments(args, config.hft)
    if args.workers is not None:
        if not accepts("int", args.workers, WORKERS):
            raise ConfigError(f"--workers {args.workers}: expected {expected('int', WORKERS)}")
        config.hft.runtime.workers = args.workers      # as asked, whatever the host
    if args.log is not None:
        config.log.path = args.log
    if args.report not in (None, "-"):
        report.check_writable(args.report)
    logs.setup(config.log.path, config.log.level, config.log.max_bytes, config.log.keep)
    if args.workers is None:
        choose_workers(config.hft.runtime, Host())
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


def choose_workers(runtime, host):
    """What is configured is the most; this host may have cores for fewer."""
    if runtime.workers:
        topology = topology_of(host)
        cores = recommend(topology, host.machine.lower() in ORDERED_MACHINES) if topology else None
        chosen = min(runtime.workers, len(cores.workers)) if cores else 0
        log.info("workers: %d of at most %d: %s", chosen, runtime.workers, cores.why if cores else "no processors known")
        runtime.workers = chosen


def run(config, args):
    screen = Screen(sys.stderr if args.report == "-" else None)
    with ExitStack() as stack:
        child = None
        if not args.config:
            from feeder.twin import spawn            # the parts that only some runs need are loaded by these
            child = stack.enter_context(spawn([
                "--venue", ",".join(venue.name for venue in config.venues), "--rate", args.rate,
                "--symbols", ",".join(f"{coin}/USDT" for coin in configuration.TWIN_COINS),
                "--levels", configuration.TWIN_LEVELS]))
            for venue in config.venues:
                venue.websocket_url = child.info[venue.name]["websocket_url"]
                venue.rest_url = child.info[venue.name]["rest_url"]
        if config.hft.runtime.workers:
            from feeder.supervise import Supervisor
            running = Supervisor(config, stack, screen.interval_ns)
        else:       # after the built-in venue was started, which is not to inherit the measures
            running = Run(config, stack, take_measures(config, stack, "feeder-run",
                                                       config.hft.cpu_affinity.processor_core, config.venues))
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
            running.end()
        log.info("ended after %.1f s", result["seconds"])
    if args.report != "-":
        summary(result)
    if args.report:
        report.write(result, args.report)
    if died:
        log.error("the built-in venue ended with exit code %s", died[0])
        print(f"feeder: the built-in venue ended unexpectedly (exit code {died[0]})", file=sys.stderr)
        return EXIT_FAULT
    if not running.status.ever_live:
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
