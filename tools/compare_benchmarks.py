"""Compare two sides of measurements: a verdict per figure, with the spread of both taken into account.

In:   BASE and NEW, each a file or a folder of files (*.json, its folders too); several files are several runs of one
      thing. What may be in them: benchmark_results.py.
Out:  a table; with --json the same for programs, with --html a page with plots (benchmark_page.py).

The value of a figure is the median over the runs of its side. Its spread is
  - with fewer than RUNS runs: that which they tell of their rounds, from RUNS rounds on, for what is timed in rounds;
  - with more: the range over the runs, widened (WIDEN) because few runs show less than all of their range, but at least
    half of the former, because that is how much a median of seven rounds scatters, compared with the rounds.
A figure is better or worse if |new - base| > max(floor of its kind, root of the sum of both spreads squared); the right
side of this is the column "spread". The floor of a ratio is 3 %; KINDS has the others.

A figure whose spread is not known on either side is not judged: tails and page faults of fewer than RUNS runs, and all
that is timed in a result of --quick, whose two rounds lie together by chance too often. Nor is a percentile that has
not ten messages beyond it.

Tried on 12 full runs of the same commit, two virtual cores, each against each other, as they are and with one side made
slower by 10, 20, 30 %; a change was told in so many of 100 comparisons, one run a side / three runs a side:

                                                        as they are      + 10 %      + 20 %      + 30 %
    CPU time by that of the reference, 12 scenarios        0.4 / 0      51 / 72     77 / 91     85 / 97
    ring: wall time of two spinning processes               14 / 0       17 / 1      24 / 4     36 / 10

So one file a side is a look, three are a finding; and the ring bench tells of the machine before it tells of the code.

What is not compared, because another thing than the code would be measured: figures of other traffic, of more than
twice the amount of work, of another reference or unit; bare times and rates of another machine. Ratios to a reference
timed in the same run do compare across machines and Pythons, with a warning: not everything gets slower alike.
"""

import argparse
import json
import math
import os
import statistics
import sys
import textwrap

from benchmark_results import FLOOR_ONLY, KINDS, ROUNDS, RUNS, ResultError, Side
from feeder.screen import columns_of, pad

WIDEN = {3: 1.6, 4: 1.3, 5: 1.2}  # the range of 7 normal samples by that of 3, 4, 5 (tables of d2); more are left alone
WORK_FACTOR = 2                   # counts further apart than this are another amount of work
WIDTH, NAME_WIDTH = 100, 36

BETTER, WORSE, SAME, ONLY_BASE, ONLY_NEW, NOT_COMPARABLE, NOT_JUDGED = VERDICTS = (
    "better", "worse", "within spread", "only in base", "only in new", "not comparable", "not judged")


def spread_of(point, kind):
    """Return the spread of a side's figure as an amount, or None where nothing tells it."""
    samples = point.samples[kind.key]
    rounds = None
    if kind.single == ROUNDS and point.spread is not None:
        rounds = point.spread * point.values[kind.key]
    if len(samples) >= RUNS:
        return max((max(samples) - min(samples)) * WIDEN.get(len(samples), 1), (rounds or 0) / 2)
    return 0 if kind.single == FLOOR_ONLY else rounds


class Line:
    """One figure: both values (or None), the spread that a change must exceed, the verdict and why."""

    def __init__(self, kind, base, new, verdict, why="", allowed=None):
        point = base or new
        self.kind, self.base_point, self.new_point = kind, base, new
        self.name, self.key = point.name, (point.bench, point.scenario)
        self.base = base.values.get(kind.key) if base else None
        self.new = new.values.get(kind.key) if new else None
        self.verdict, self.why, self.allowed = verdict, why, allowed

    @property
    def change(self):
        """As a share of base, or None."""
        return self.new / self.base - 1 if self.base and self.new is not None else None

    def as_json(self):
        point = self.base_point or self.new_point
        return {"bench": point.bench, "scenario": point.scenario, "rate": point.rate, "figure": self.kind.key,
                "better_is": "more" if self.kind.sign > 0 else "less", "base": self.base, "new": self.new,
                "change": self.change, "allowed": self.allowed, "verdict": self.verdict, "why": self.why,
                "base_runs": self.base_point.runs if self.base_point else 0,
                "new_runs": self.new_point.runs if self.new_point else 0}


def compare(base, new):
    """Return [Line, ...] of two Sides, in their own order."""
    lines = []
    for key in keys_of(base, new):
        pair = base.points.get(key), new.points.get(key)
        lines += [line_of(kind, *pair, base.head, new.head) for kind in KINDS if worth_a_line(kind, pair)]
    return lines


def keys_of(base, new):
    """Return the scenarios of both sides: the benches in the order of the files, in each the rates from low to high."""
    keys = list(dict.fromkeys((*base.points, *new.points)))
    benches = list(dict.fromkeys(bench for bench, _ in keys))
    return sorted(keys, key=lambda key: (benches.index(key[0]), (base.points.get(key) or new.points[key]).rate or 0))


def worth_a_line(kind, pair):
    """A bare time says nothing beyond the ratio that was made of it; a rate nothing beyond the time."""
    points = [point for point in pair if point and kind.key in point.values]
    if kind.key == "ns":
        return any("ratio" not in point.values for point in points)
    if kind.key == "per_second":
        return not all(point.rate_is_of_time for point in points)
    return bool(points)


def line_of(kind, base, new, base_head, new_head):
    has_base, has_new = (point is not None and kind.key in point.values for point in (base, new))
    if not (has_base and has_new):
        return Line(kind, base if has_base else None, new if has_new else None, ONLY_BASE if has_base else ONLY_NEW)
    why = unlike(kind, base, new, base_head, new_head)
    if why:
        return Line(kind, base, new, NOT_COMPARABLE, why)
    if any(point.latency_count is not None and point.latency_count < kind.messages for point in (base, new)):
        return Line(kind, base, new, NOT_JUDGED, "fewer than ten messages lie beyond it")
    spreads = spread_of(base, kind), spread_of(new, kind)
    if None in spreads:
        return Line(kind, base, new, NOT_JUDGED, f"its spread is not known: fewer than {RUNS} rounds or runs")
    low, high = sorted((base.values[kind.key], new.values[kind.key]))
    allowed = max(kind.floor * low, kind.least, math.hypot(*spreads))
    if high - low <= allowed:
        return Line(kind, base, new, SAME, allowed=allowed)
    more = new.values[kind.key] > base.values[kind.key]
    return Line(kind, base, new, BETTER if more == (kind.sign > 0) else WORSE, allowed=allowed)


def unlike(kind, base, new, base_head, new_head):
    """Return why two figures tell of different things, or ""."""
    if base.source != new.source and base.source and new.source:
        return f"other traffic ({base.source} / {new.source}): other messages take other times"
    if base.unit != new.unit and base.unit and new.unit:
        return f"other unit ({base.unit} / {new.unit})"
    if kind.key == "ratio" and base.reference != new.reference:
        return f"other reference ({base.reference} / {new.reference})"
    if base.rate != new.rate:
        rates = f"{base.rate or 0:,.0f} / {new.rate or 0:,.0f}"
        return "" if kind.key == "ratio" else f"other rate ({rates} a second), as the knee lies elsewhere"
    if base.count and new.count and max(base.count, new.count) > WORK_FACTOR * min(base.count, new.count):
        return (f"other amount of work ({base.count:,.0f} / {new.count:,.0f} {base.unit}s): other messages, and caches "
                "are warm for less or more of them")
    if kind.bare and base_head.get("machine") != new_head.get("machine"):
        return (f"other machine ({base_head.get('machine') or 'not told'} / {new_head.get('machine') or 'not told'}): "
                "bare times and rates tell of it, not of the code")
    return ""


def warnings_of(base, new):
    """Return sentences on what the heads say."""
    found = []
    for key, what in (("machine", "Other machine"), ("python", "Other Python")):
        pair = base.head.get(key), new.head.get(key)
        if pair[0] != pair[1]:
            found.append(f"{what}: {pair[0] or 'not told'} / {pair[1] or 'not told'}. Ratios are compared all the "
                         "same, as the reference ran there too, but not everything gets slower alike.")
    for side in (base, new):
        if side.head.get("repeats") in ("1", "2") and side.runs < RUNS:
            found.append(f"{side.label} has {side.head['repeats']} rounds (--quick): a change and chance look alike.")
    drift = machine_drift(base, new)
    if drift is not None and abs(drift) >= 0.05:
        found.append(f"The references took {drift:+.0%} time in {new.label} (median of all): that much is the machine "
                     "or its Python; bare times share it.")
    return found


def machine_drift(base, new):
    """Return by how much longer the references took in new, as a share; None where none is in both."""
    steps = [new.points[key].reference_ns / point.reference_ns - 1 for key, point in base.points.items()
             if point.reference_ns and key in new.points and new.points[key].reference_ns]
    return statistics.median(steps) if steps else None


# -- for people ------------------------------------------------------------------------------------------------


def change_text(line):
    if line.change is None:
        return "" if line.base == line.new or None in (line.base, line.new) else "from 0"
    return f"{line.change:+.1%}" if abs(line.change) < 9.995 else f"x {line.change + 1:,.0f}"


def allowed_text(line):
    """The spread that a change must exceed, as a share of base where that can be read."""
    if line.allowed is None:
        return ""
    share = line.allowed / line.base if line.base else math.inf
    return f"{share:.0%}" if share < 10 else line.kind.text(line.allowed)


def value_text(line, value):
    return "-" if value is None else line.kind.text(value)


def table(lines):
    """Yield aligned text, WIDTH columns at most; a name that is too long has a line of its own."""
    yield f"{'figure':<{NAME_WIDTH}} {'':<12}{'base':>10}{'new':>10}{'change':>8}{'spread':>7}  verdict"
    last = None
    for line in lines:
        name = "" if line.name == last else line.name
        last = line.name
        if columns_of(name) > NAME_WIDTH:
            yield from textwrap.wrap(name, WIDTH)
            name = ""
        verdict = line.verdict.upper() if line.verdict == WORSE else line.verdict
        yield (f"{pad(name, NAME_WIDTH, '<')} {line.kind.label:<12}{value_text(line, line.base):>10}"
               f"{value_text(line, line.new):>10}{change_text(line):>8}{allowed_text(line):>7}  {verdict}").rstrip()


def summary(lines):
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "nothing to compare"


def reasons(lines):
    """Yield each reason once, with how many figures it stands for."""
    for why in dict.fromkeys(line.why for line in lines if line.why):
        of = [line for line in lines if line.why == why]
        yield f"{of[0].verdict} ({len(of)}): {why}"


def write(path, text):
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None


def tell(lines, out):
    """Print; what is longer than WIDTH goes on in a next line."""
    try:
        for line in lines:
            print(line if len(line) <= WIDTH else textwrap.fill(line, WIDTH, subsequent_indent="    "), file=out)
        out.flush()
    except BrokenPipeError:           # `compare_benchmarks.py … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def run(args):
    base, new = Side(args.base, "base"), Side(args.new, "new")
    lines, warnings = compare(base, new), warnings_of(base, new)
    heads = [f"{side.label}: {side.describe()}" for side in (base, new)] + [f"note: {warning}" for warning in warnings]
    tell([*heads, "", *table(lines), "", *reasons(lines), summary(lines)],
         sys.stderr if "-" in (args.json, args.html) else sys.stdout)
    if args.json:
        write(args.json, json.dumps({
            "base": {"path": base.path, **base.head}, "new": {"path": new.path, **new.head}, "warnings": warnings,
            "verdicts": {verdict: sum(line.verdict == verdict for line in lines) for verdict in VERDICTS},
            "figures": [line.as_json() for line in lines]}, indent=2) + "\n")
    if args.html:
        from benchmark_page import page
        write(args.html, page(base, new, lines, warnings))
    return 1 if any(line.verdict == WORSE for line in lines) else 0


def main(words=None):
    parser = argparse.ArgumentParser(
        description="Compare two sides of benchmark results, with their spread taken into account.",
        epilog="example: python3 tools/compare_benchmarks.py before.json after.json --html page.html\n"
               "exit codes: 0 no regression, 1 a figure is worse beyond the spread, 2 wrong usage or unreadable file",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="a file, or a folder of files, of results")
    parser.add_argument("new", metavar="NEW", help="what is held against it")
    parser.add_argument("--json", metavar="FILE", help="write the verdicts as JSON too; - is standard output")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots too; - is standard output")
    args = parser.parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")           # names may hold what a terminal's encoding lacks
    try:
        return run(args)
    except ResultError as error:
        print(f"compare_benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
