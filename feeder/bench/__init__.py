"""`feeder bench`: what it costs, as a ratio to a stated reference measured in the same run.

The main reference is `json.loads` of the same bytes: what anybody pays before doing anything. Ours and the
reference are timed in turn, A B A B; the figure is the median of the rounds' ratios, the spread tells how far they lay
apart. Every bench names its scenario, warms up, repeats, and checks its answer. The recordings are used where they
are (FEEDER_CAPTURES, default ../shared/data), else messages of the venue twin, and the report says which.

    traffic     what is fed          machines    fixed, frame, decode, book, packet: each alone
    measure     how it is timed      pipeline, ring: put together

A bench is `bench_NAME(run)` in the module that BENCHES names, a generator of rows (measure.py says what a row is);
`run` is a Run: the traffic, how often to repeat. Modules are imported when their bench is wanted.
"""

import importlib
import os
import platform
import sys

from feeder import __version__, clock
from feeder.errors import ConfigError, FeederError
from feeder.screen import time_text

REPEATS, QUICK_REPEATS = 7, 2
MESSAGES, QUICK_MESSAGES = 60_000, 2_000

# name: (module of this folder, what it measures)
BENCHES = {
    "fixed": ("machines", "decimal text to int"),
    "frame": ("machines", "WebSocket frames out of received bytes"),
    "decode": ("machines", "payload to calls on a sink"),
    "book": ("machines", "increments into a book"),
    "packet": ("machines", "calls to datagrams in memory"),
    "pipeline": ("pipeline", "payload to datagram in memory, one a message"),
    "ring": ("ring", "from one spinning process to another: a call on the writer to the call on the reader's sink"),
}


class BenchError(FeederError):
    """A bench computed something wrong: its time means nothing."""


class Run:
    """What benches are told. `quick`: few messages and repeats: does it run, is it right."""

    def __init__(self, quick=False, host="none"):
        self.quick = quick
        self.host = host
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

    def rows(self, name):
        module = importlib.import_module("feeder.bench." + BENCHES[name][0])
        yield from getattr(module, "bench_" + name)(self)


def configure(parser):
    parser.description = "Measure what the feeder costs. Figures are ratios to a reference timed in the same run."
    parser.epilog = ("benches:\n" + "".join(f"  {name:<10}{what}\n" for name, (_, what) in BENCHES.items())
                     + "\nexample: python3 -m feeder bench pipeline --json result.json\n"
                     "environment: FEEDER_CAPTURES names the folder of recordings\n"
                     "exit codes: 0 done, 1 a bench computed something wrong, 2 wrong usage")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; default all")
    parser.add_argument("--quick", action="store_true", help="few messages and repeats: does it run, is it right")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON too; - is standard output")


def main(args):
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        raise ConfigError(f"no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    run = Run(args.quick)
    out = sys.stderr if args.json == "-" else sys.stdout
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{processor()}, {os.cpu_count()} cores"
    started_ns = clock.wall_ns()
    print(f"feeder {__version__} on {python}, {machine}\n\n{HEADINGS}", file=out)
    rows = []
    for name in args.names or BENCHES:
        for row in run.rows(name):
            rows.append(row)
            print(line(row), file=out, flush=True)
    for row in rows:
        for text in tails(row):
            print(text, file=out)
    references = dict.fromkeys(f"{row['bench']}: {row['reference']}" for row in rows)
    print("references   " + "; ".join(references), file=out)
    print(f"source       {run.source}", file=out)
    if args.json:
        from feeder import report
        report.write({"feeder": __version__, "python": python, "machine": machine, "source": run.source,
                      "time": started_ns, "host": run.host, "repeats": run.repeats, "results": rows}, args.json)
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
