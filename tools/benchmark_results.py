"""Results of measurements as compare_benchmarks.py takes them: files in, Sides out.

Read are results of `feeder bench --json` (feeder/bench/measure.py says what a row is), reports of `feeder run` and
`feeder replay`, and the rounds that tools/bench_host.py writes. What is missing is taken as not told; what is there and
makes no sense is an error that names file and key.

    file ─▶ Row, a scenario of one run ─▶ Point, a scenario over all runs ─▶ Side, what its runs have in common
"""

import json
import os
import re
import statistics
import sys
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from feeder.screen import printable, scaled_text, size_text, time_text  # noqa: E402  (the path comes first)

RUNS = 3                          # fewer runs, or rounds of one run, do not show a spread
MAX_FILES, MAX_FILE_BYTES = 1_000, 64 << 20
PERCENTILES = ("p50", "p90", "p99", "p999", "max")


class ResultError(Exception):
    """A sentence for the person who asked: what is wrong, in which file, at which key."""


def ratio_text(value):
    return f"{value:#.3g}" if value < 100 else count_text(value)


def count_text(value):
    if value >= 1e6:
        return scaled_text(value, (("G", 10**9), ("M", 10**6)))
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def share_text(value):
    return f"{value:.1%}"


# What is judged. `sign`: 1 where more is better; `bare`: tells of the machine as much as of the code; `single`: where
# the spread of one run comes from: its rounds, nowhere (only several runs show it), or it needs none beyond the floor;
# `floor`: what is never a change, as a share (latencies are in histograms, whose steps are 3 %); `least`: the same, as
# an amount; `messages`: fewer have not ten beyond this percentile.
Kind = namedtuple("Kind", "key label sign bare single floor least text messages", defaults=(0,))
ROUNDS, RUNS_ONLY, FLOOR_ONLY = range(3)
KINDS = (
    Kind("ratio", "ratio", -1, False, ROUNDS, 0.03, 0, ratio_text),
    Kind("ns", "time", -1, True, ROUNDS, 0.03, 0, time_text),
    Kind("cpu_ns", "CPU time", -1, True, RUNS_ONLY, 0.05, 0, time_text),
    Kind("per_second", "a second", 1, True, ROUNDS, 0.03, 0, count_text),
    Kind("p50", "p50", -1, True, ROUNDS, 0.05, 0, time_text),
    Kind("p99", "p99", -1, True, RUNS_ONLY, 0.10, 0, time_text, 1_000),
    Kind("p999", "p99.9", -1, True, RUNS_ONLY, 0.10, 0, time_text, 10_000),
    Kind("cpu_share", "CPU share", -1, True, RUNS_ONLY, 0.05, 0, share_text),
    Kind("memory_bytes", "memory", -1, False, FLOOR_ONLY, 0.05, 0, size_text),
    Kind("minor_faults", "minor faults", -1, False, RUNS_ONLY, 0.10, 16, count_text),
    Kind("major_faults", "major faults", -1, False, RUNS_ONLY, 0.10, 0, count_text),
    Kind("lost", "lost", -1, True, FLOOR_ONLY, 0.0, 0, count_text),
)


# -- reading ---------------------------------------------------------------------------------------------------


class Row:
    """One scenario of one run. `values` {Kind.key: number}, `latency` and `reference_latency` {percentile: ns}."""

    def __init__(self, bench, scenario, rate=None, source=""):
        self.bench, self.scenario, self.rate, self.source = bench, scenario, rate, source
        self.unit = self.reference = ""
        self.count = self.spread = self.reference_ns = self.latency_count = None
        self.values, self.latency, self.reference_latency, self.goal = {}, {}, {}, {}


class Reader:
    """Takes a file's content apart, and knows where it is in it."""

    def __init__(self, path):
        self.path = path

    def error(self, key, value, expected):
        return ResultError(f"{self.path}: {key}: {clip_repr(value)} is not {expected}")

    def number(self, place, name, key=""):
        """Return place[name], a number that is not negative, or None where it is not told."""
        value = place.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e18:
            raise self.error(f"{key}{name}", value, "a number from 0 to 10**18")
        return float(value)

    def text(self, place, name, key=""):
        value = place.get(name)
        if not isinstance(value, (str, type(None))):
            raise self.error(f"{key}{name}", value, "a text")
        return printable(value or "")

    def table(self, place, name, key=""):
        value = place.get(name)
        if not isinstance(value, (dict, type(None))):
            raise self.error(f"{key}{name}", value, "an object")
        return value or {}

    def load(self):
        """Return (head, [Row, ...])."""
        try:
            if os.path.getsize(self.path) > MAX_FILE_BYTES:
                raise ResultError(f"{self.path}: larger than {size_text(MAX_FILE_BYTES)}, no result")
            with open(self.path, encoding="utf-8") as file:
                content = json.load(file, parse_constant=lambda name: name)
        except OSError as error:
            raise ResultError(f"{self.path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ResultError(f"{self.path}: not JSON: {error}") from None
        if isinstance(content, list):
            return self.rounds(content)
        if isinstance(content, dict) and "results" in content:
            return self.bench(content)
        if isinstance(content, dict) and "messages_per_second" in content:
            return self.report(content)
        raise ResultError(f"{self.path}: neither results of `feeder bench` (key results) nor a report of `feeder run` "
                           "(key messages_per_second) nor a list of rounds of tools/bench_host.py")

    def bench(self, content):
        """What `feeder bench --json` wrote."""
        head = {name: self.text(content, name) for name in ("feeder", "python", "machine", "source", "host")}
        if not head["python"]:              # before 0.1.0 was out, machine began with the Python
            found = re.match(r"(\w+ \d+\.\d+\.\S+), (.*)", head["machine"])
            head["python"], head["machine"] = found.groups() if found else ("", head["machine"])
        repeats = self.number(content, "repeats")
        head["repeats"] = "" if repeats is None else f"{repeats:g}"
        if not isinstance(content["results"], list):
            raise self.error("results", content["results"], "a list")
        rows = []
        for at, result in enumerate(content["results"]):
            key = f"results[{at}]."
            if not isinstance(result, dict):
                raise self.error(key[:-1], result, "an object")
            if not self.text(result, "bench", key):
                raise self.error(key + "bench", result.get("bench"), "the name of a bench")
            row = Row(self.text(result, "bench", key), self.text(result, "scenario", key),
                      self.number(result, "rate", key), without_amount(head["source"]))
            row.unit, row.reference = self.text(result, "unit", key), self.text(result, "reference", key)
            row.count, row.spread, row.reference_ns = (
                self.number(result, name, key) for name in ("count", "spread", "reference_ns"))
            rounds = self.number(result, "rounds", key) or repeats
            if rounds is not None and rounds < RUNS:
                row.spread = None
            row.latency = self.percentiles(result, "latency_ns", key)
            row.reference_latency = self.percentiles(result, "reference_latency_ns", key)
            latency = self.table(result, "latency_ns", key)
            row.latency_count = self.number(latency, "count", key + "latency_ns.") or row.count
            row.values = dict(row.latency)
            for kind in KINDS:
                if kind.key not in PERCENTILES:
                    row.values[kind.key] = self.number(result, kind.key, key)
            goal = self.table(result, "goal", key)
            if (self.text(goal, "of", key + "goal.") or "ratio") == "ratio":
                row.goal = {name: self.number(goal, name, key + "goal.") for name in ("reach", "beyond")}
            rows.append(row)
        rates = {}
        for row in rows:
            rates.setdefault((row.bench, row.scenario), set()).add(row.rate)
        for row in rows:
            if len(rates[row.bench, row.scenario]) > 1 and row.rate is not None:
                row.scenario += f", {row.rate:,.0f} a second"
        return head, rows

    def percentiles(self, place, name, key=""):
        found = self.table(place, name, key)
        return {each: self.number(found, each, f"{key}{name}.") for each in PERCENTILES if found.get(each) is not None}

    def report(self, content):
        """What `feeder run` or `feeder replay` reported. How long it ran is no amount of work: it has no count."""
        row = Row("run" if "latency_ns" in content else "replay", "all it took in", None, self.text(content, "source"))
        row.latency = self.percentiles(content, "latency_ns")
        row.latency_count = self.number(self.table(content, "latency_ns"), "count", "latency_ns.")
        faults = self.table(self.table(content, "usage"), "per_minute", "usage.")
        lost = [self.number(content, name) for name in ("gaps", "not_sent")]
        row.values = {"per_second": self.number(content, "messages_per_second"), **row.latency,
                      "memory_bytes": self.number(content, "memory_bytes"),
                      "minor_faults": self.number(faults, "minor_faults", "usage.per_minute."),
                      "major_faults": self.number(faults, "major_faults", "usage.per_minute."),
                      "lost": None if None in lost else sum(lost)}
        return {"source": row.source}, [row]

    def rounds(self, content):
        """What tools/bench_host.py wrote of one setting at one rate: a list of rounds."""
        rows, setting = [], ""
        for at, result in enumerate(content):
            key = f"[{at}]."
            if not isinstance(result, dict):
                raise self.error(key[:-1], result, "an object")
            setting, rate = self.text(result, "setting", key), self.number(result, "rate", key)
            at_rate = "" if rate is None else f", {rate:,.0f} messages/s"
            for scenario, names in (("receive to send", ("p50 us", "p99 us", "p99.9 us", "max us")),
                                    ("venue to listener", ("end to end p50 us", "end to end p99 us"))):
                row = Row("live", scenario + at_rate, rate)
                for name in names:
                    value = self.number(result, name, key)
                    if value is not None:
                        percentile = name.replace("end to end ", "").replace(" us", "").replace(".", "")
                        row.latency[percentile] = value * 1000
                row.values = dict(row.latency)
                rows.append(row)
            cpu_us, memory = self.number(result, "CPU us a message", key), self.number(result, "memory MB", key)
            rows[-2].values.update({
                "per_second": self.number(result, "messages/s", key), "cpu_ns": cpu_us and cpu_us * 1000,
                "memory_bytes": memory and memory * 1e6, "minor_faults": self.number(result, "minor faults/min", key),
                "major_faults": self.number(result, "major", key), "lost": self.number(result, "lost", key)})
        return {"host": setting}, rows


def clip_repr(value):
    text = printable(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def without_amount(source):
    """How many messages of a source were taken is in the counts of the rows; "none" was asked for none."""
    return re.sub(r"^[\d,]+ messages of (the )?", "", source) if source != "none" else ""


class Point:
    """One scenario of one side: its rows of all runs put together."""

    def __init__(self, rows):
        first = rows[0]
        self.bench, self.scenario, self.unit, self.reference = first.bench, first.scenario, first.unit, first.reference
        self.source, self.goal, self.runs = first.source, first.goal, len(rows)
        self.rate, self.count, self.spread, self.reference_ns, self.latency_count = (
            middle(getattr(row, name) for row in rows)
            for name in ("rate", "count", "spread", "reference_ns", "latency_count"))
        self.samples = {kind.key: [row.values[kind.key] for row in rows if row.values.get(kind.key) is not None]
                        for kind in KINDS}
        self.values = {key: statistics.median(samples) for key, samples in self.samples.items() if samples}
        self.latency = together([row.latency for row in rows])
        self.reference_latency = together([row.reference_latency for row in rows])

    @property
    def cpu_ns(self):
        """CPU time of a unit. What a bench tells as ns is that, if it made its rate of it; else it is a latency."""
        return self.values.get("cpu_ns", self.values.get("ns") if self.rate_is_of_time else None)

    @property
    def rate_is_of_time(self):
        """Whether the units a second say nothing but the time of a unit."""
        return abs(self.values.get("ns", 0) * self.values.get("per_second", 0) / 1e9 - 1) < 0.02

    @property
    def name(self):
        return f"{self.bench}: {self.scenario}"


def middle(values):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def together(latencies):
    """Return {percentile: (median, lowest, highest)} of several runs' percentiles."""
    found = {}
    for name in PERCENTILES:
        values = [latency[name] for latency in latencies if name in latency]
        if values:
            found[name] = (statistics.median(values), min(values), max(values))
    return found


class Side:
    """`head` {what all its runs have in common: text}, `points` {(bench, scenario): Point}; role: base or new."""

    def __init__(self, path, role):
        self.path, self.name = str(path), printable(Path(path).resolve().name)
        self.label = f"{role} ({self.name})"
        self.files = files_of(Path(path))
        self.head, told, rows = {}, {}, {}
        for file in self.files:
            head, found = Reader(file).load()
            for key, value in head.items():
                known = without_amount(value) if key == "source" else value
                if known and told.setdefault(key, (known, file))[0] != known:
                    raise ResultError(f"{file}: {key}: {value!r}, but {told[key][0]!r} in {told[key][1]}; "
                                       "the runs of one side must be of one kind")
                if known:
                    self.head[key] = value
            for row in found:
                rows.setdefault((row.bench, row.scenario), []).append(row)
        self.points = {key: Point(found) for key, found in rows.items()}
        self.runs = max((point.runs for point in self.points.values()), default=0)

    def describe(self):
        told = [f"{self.runs} run{'s' * (self.runs != 1)}"]
        for key, before in (("feeder", "feeder "), ("python", ""), ("machine", ""), ("host", "host "), ("source", "")):
            if self.head.get(key, "none") != "none":
                told.append(before + self.head[key])
        return ", ".join(told)


def files_of(path):
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        if not files:
            raise ResultError(f"{path}: no *.json in this folder")
        if len(files) > MAX_FILES:
            raise ResultError(f"{path}: {len(files):,} files, at most {MAX_FILES:,} are read; name a narrower folder")
        return files
    return [path]
