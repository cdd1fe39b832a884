"""`feeder bench`: what it costs, as a ratio to a stated reference measured in the same run.

The main reference is `json.loads` of the same bytes: what anybody pays before doing anything. Ours and the
reference are timed in turn, A B A B; the figure is the median of the rounds' ratios, the spread tells how far they lay
apart. Every bench names its scenario, warms up, repeats, and checks its answer. The recordings are used where they
are (FEEDER_CAPTURES, default ../shared/data), else messages of the venue twin, and the report says which.

    measure     how it is timed       machines          fixed, frame, decode, book, packet, store: each alone
    traffic     what is fed           pipeline, ring    put together, in memory
    peers       who stands round      fanin             from 1 to 2,048 instruments
    profile     where time goes       wire, start       `feeder run`, a process of its own
                                      deliver           a publisher and `feeder listen`

A bench is `bench_NAME(run)` in the module that BENCHES names, a generator of rows (measure.py says what a row is);
`run` is a Run: the traffic, how often to repeat. Modules are imported when their bench is wanted.
"""

import contextlib
import importlib
import os
import platform
import sys

from feeder import __version__, clock
from feeder.errors import ConfigError
from feeder.screen import size_text, time_text

REPEATS, QUICK_REPEATS = 7, 2
MESSAGES, QUICK_MESSAGES = 60_000, 2_000

# name: (module of this folder, what it measures)
BENCHES = {
    "fixed": ("machines", "decimal text to int"),
    "frame": ("machines", "WebSocket frames out of received bytes"),
    "decode": ("machines", "payload to calls on a sink"),
    "book": ("machines", "increments into a book"),
    "packet": ("machines", "calls to datagrams in memory"),
    "store": ("machines", "datagrams kept for retransmission, and found again for who asks"),
    "pipeline": ("pipeline", "payload to datagram in memory, one a message"),
    "ring": ("ring", "from one spinning process to another: a call on the writer to the call on the reader's sink"),
    "tap": ("tap", "the local tap: write of a datagram, and its hop to another spinning process"),
    "udp": ("udp", "datagrams out and in over loopback: in bursts, and one by one"),
    "deliver": ("deliver", "a datagram's cost to publisher and listener, 20,000 a second for a minute"),
    "fanin": ("fanin", "1 to 2,048 instruments: time a message, memory an instrument"),
    "wire": ("wire", "TCP bytes to datagrams through the kernel, open loop, to the knee and past it"),
    "start": ("start", "imports, process start to publishing and to the first live book, memory at rest"),
}
OF_PROCESSES = ("wire", "start")       # where a `feeder run` does the work


class Run:
    """What benches are told. `quick`: few messages and repeats: does it run, is it right."""

    def __init__(self, quick=False, host="tuned"):
        self.quick = quick
        self.host = host               # the measures that processes under test take, `feeder run`'s --profile
        self.profile = None            # (kind, file) where the processes under test are to be profiled
        self.notes = []                # sentences for the end of the output
        self.repeats = QUICK_REPEATS if quick else REPEATS
        self._traffic = None

    @property
    def traffic(self):
        """The Traffic, loaded once, when a bench wants it."""
        if self._traffic is None:
            from feeder.bench.traffic import load
            self._traffic = load(QUICK_MESSAGES if self.quick else MESSAGES)
        return self._traffic

    @property
    def source(self):
        return self._traffic.source if self._traffic is not None else "none"

    def say(self, text):
        """Tell where a long bench is: over and over one line of a terminal, nothing elsewhere."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<78.78}\r")
            sys.stderr.flush()

    def command(self, module, *words):
        """Return the command line of a process of ours that a bench needs; -S: as on a host without site-packages."""
        return [sys.executable, "-S", "-m", module, *map(str, words)]

    def feeder(self, *words):
        """Return the command line of the feeder under test."""
        if self.profile:
            return self.command("feeder.bench.profile", *self.profile, *words)
        return self.command("feeder", *words)

    @property
    def environment(self):
        """What such a process is to find in its environment: this package, and leave to keep its bytecode."""
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        found = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))))
        found.pop("PYTHONDONTWRITEBYTECODE", None)
        return found

    def rows(self, name):
        module = importlib.import_module("feeder.bench." + BENCHES[name][0])
        yield from getattr(module, "bench_" + name)(self)


def configure(parser):
    width = max(map(len, BENCHES))
    parser.description = (
        "Measure what the feeder costs. Every figure stands beside a reference that was timed in turn with it in the\n"
        "same run, mostly json.loads of the same bytes: compare ratios, not times, and no two whose spreads overlap.\n"
        "All of them take some minutes.")
    parser.epilog = (
        "benches:\n" + "".join(f"  {name:<{width}}  {what}\n" for name, (_, what) in BENCHES.items())
        + "\ncolumns: ours and the reference, a unit (CPU time; of wire, ring, start and hops wall time); ratio, the\n"
        "median of the rounds'; spread, how far these lie apart, NOISY where that is too far to believe; how the\n"
        "plan's goal stands: beyond, reached or missed\n"
        "\nexample: python3 -m feeder bench pipeline --json result.json\n"
        "         python3 -m feeder bench wire --host baseline\n"
        "environment: FEEDER_CAPTURES names the folder of recordings; without them the venue twin's market is used\n"
        "exit codes: 0 done, 1 a bench computed something wrong, 2 wrong usage")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; default all")
    parser.add_argument("--quick", action="store_true", help="few messages and repeats: does it run, is it right")
    parser.add_argument("--host", choices=("baseline", "tuned"), default="tuned",
                        help="the measures on this host that processes under test take, and the collector's policy "
                        "where latencies are told; default %(default)s, as of `run`")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON too; - is standard output")
    parser.add_argument("--profile", nargs="?", const="sample", choices=("sample", "cprofile"),
                        help="tell where our side's time goes instead of how much it is; default %(const)s")


def main(args):
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        raise ConfigError(f"no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    run = Run(args.quick, args.host)
    if args.profile:
        return show_profiles(run, args)
    out = sys.stderr if args.json == "-" else sys.stdout
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{processor()}, {os.cpu_count()} cores"
    started_ns = clock.wall_ns()
    print(f"feeder {__version__} on {python}, {machine}\n\n{HEADINGS}", file=out)
    rows = []
    for name in args.names or BENCHES:
        for row in run.rows(name):
            rows.append(row)
            run.say("")
            print(line(row), file=out, flush=True)
    for row in rows:
        for text in tails(row):
            print(text, file=out)
    references = dict.fromkeys(f"{row['bench']}: {row['reference']}" for row in rows)
    print("references   " + "; ".join(references), file=out)
    print(f"source       {run.source}", file=out)
    noisy = sum(row["noisy"] for row in rows)
    if noisy and not run.quick:
        run.notes.append(f"{noisy} of {len(rows)} rows are NOISY: something else ran; repeat them on a quiet machine")
    for note in run.notes:
        print(f"note         {note}", file=out)
    if args.json:
        from feeder import report
        report.write({"feeder": __version__, "python": python, "machine": machine, "source": run.source,
                      "time": started_ns, "host": run.host, "repeats": run.repeats, "results": rows}, args.json)
    return 0


def show_profiles(run, args):
    import tempfile
    from feeder.bench import measure, profile
    if args.json:
        raise ConfigError("--json: the figures of a profiled run mean nothing; choose one of --json and --profile")
    for name in args.names or BENCHES:
        found = profile.profiler(args.profile)
        with tempfile.TemporaryDirectory() as folder:
            told = os.path.join(folder, "profile.json")
            if name in OF_PROCESSES:
                run.profile = args.profile, told
            else:
                measure.watch = found
            try:
                for row in run.rows(name):
                    run.say(f"{name}: {row['scenario']}")
            finally:
                run.profile, measure.watch = None, contextlib.nullcontext()
            run.say("")
            print("\n".join(profile.lines(name, profile.read(told) if name in OF_PROCESSES else found.report())) + "\n")
    return 0


# -- for people ------------------------------------------------------------------------------------------------

HEADINGS = f"{'bench':<10}{'scenario':<46}{'ours':>10}{'reference':>11}{'ratio':>8}{'spread':>8}{'a second':>12}  goal"
PERCENTILES = ("p50", "p90", "p99", "p999", "max")


def line(row):
    return (f"{row['bench']:<10}{row['scenario']:<46}{time_text(row['ns']):>10}{time_text(row['reference_ns']):>11}"
            f"{row['ratio']:>8.2f}{row['spread']:>8.0%}{row['per_second']:>12,}  "
            + ", ".join(filter(None, (verdict(row), "NOISY" if row["noisy"] else ""))))


def verdict(row):
    """Say how a row stands to its goal: nothing where it has none."""
    goal = row.get("goal")
    if not goal:
        return ""
    figure = row[goal.get("of", "ratio")]
    if figure <= goal["beyond"]:
        return "beyond"
    return "reached" if figure <= goal["reach"] else "missed"


def tails(row):
    for key, what in (("latency_ns", "single messages"), ("reference_latency_ns", "reference")):
        if key in row:
            shown = ", ".join(f"{name} {time_text(row[key][name])}" for name in PERCENTILES)
            yield f"{row['bench']} {row['scenario']}, {what}: {shown}"
    if "memory_bytes" in row:
        yield f"{row['bench']} {row['scenario']}, memory: {size_text(row['memory_bytes'])}"
    if "cpu_share" in row and "late_ns_p99" in row:
        yield (f"{row['bench']} {row['scenario']}, processor {row['cpu_share']:.0%}, of the reference "
               f"{row['reference_cpu_share']:.0%}; page faults {row['minor_faults']} minor, {row['major_faults']} major; "
               f"sent late by p99 {time_text(row['late_ns_p99'])}")


def processor():
    """Return the processor's name as the kernel tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for text in file:
                if text.startswith("model name"):
                    return text.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
