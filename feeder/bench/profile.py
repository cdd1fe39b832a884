"""Where the time goes: `feeder bench NAME --profile [sample|cprofile]`.

    sample      once in a while of CPU time the line that runs is counted: little disturbance, lines, no callers.
                SIGPROF (signal.setitimer) comes no oftener than the kernel's tick, often 4 ms, and the interpreter
                takes it between two bytecodes: what a long call of C takes counts for the line that called it.
    cprofile    every call is counted and timed, and so becomes some times as dear, the short ones most

What is watched is our side of each round, not the reference and not what prepares it (measure.watch). Where a
`feeder run` does the work, that process is watched: it is started through this module, which leaves what it found in a
file.
"""

import json
import os
import signal
import sys
from collections import Counter

from feeder.errors import ConfigError

KINDS = ("sample", "cprofile")
EVERY_S = 0.001
SHOWN = 25


def profiler(kind):
    """Return a context to be entered as often as one likes; `report()` tells what was found in it.

    Raises ConfigError where this system cannot do it.
    """
    if kind == "cprofile":
        try:
            return _Calls()
        except ImportError as error:
            raise ConfigError(f"--profile cprofile: this Python was built without it: {error}") from None
    if not hasattr(signal, "setitimer") or not hasattr(signal, "SIGPROF"):
        raise ConfigError("--profile sample: this system has no signal.setitimer; --profile cprofile works everywhere")
    return _Samples()


class _Samples:
    unit = "samples"

    def __init__(self):
        self.counts = Counter()

    def _take(self, number, frame):
        self.counts[frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno] += 1

    def __enter__(self):
        self._before = signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)

    def report(self):
        return {"unit": self.unit, "total": sum(self.counts.values()), "places": [
            [count, None, f"{_short(code.co_filename)}:{line} {getattr(code, 'co_qualname', code.co_name)}"]
            for (code, line), count in self.counts.most_common(SHOWN)]}


class _Calls:
    unit = "seconds"

    def __init__(self):
        import cProfile
        self.profile = cProfile.Profile()

    def __enter__(self):
        self.profile.enable()
        return self

    def __exit__(self, *_):
        self.profile.disable()

    def report(self):
        found = []
        for entry in self.profile.getstats():
            place = entry.code if isinstance(entry.code, str) else (
                f"{_short(entry.code.co_filename)}:{entry.code.co_firstlineno} {entry.code.co_name}")
            found.append([entry.inlinetime, entry.callcount, place])
        found.sort(key=lambda row: -row[0])
        return {"unit": self.unit, "total": sum(row[0] for row in found), "places": found[:SHOWN]}


def _short(path):
    """Cut a file's path to what tells it apart: from our package on, or its last two parts."""
    parts = path.split(os.sep)
    return "/".join(parts[len(parts) - parts[::-1].index("feeder") - 1:] if "feeder" in parts else parts[-2:])


def lines(title, report):
    """Return a report as a table for people."""
    unit, total = report["unit"], report["total"]
    if not total:
        return [f"{title}: nothing was caught, it was too short"]
    texts = [f"{title}: where {total:,.4g} {unit} went",
             f"{'share':>7}{unit:>10}" + (f"{'calls':>12}" if unit == "seconds" else "") + "  place"]
    for spent, calls, place in report["places"]:
        counted = f"{calls:>12,}" if calls is not None else ""
        texts.append(f"{spent / total:>7.1%}{spent:>10,.4g}{counted}  {place}")
    return texts


def read(path):
    """Return the report that a watched process left; an empty one if it left none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError:
        return {"unit": "samples", "total": 0, "places": []}


def main(kind, path, *words):
    """Run the feeder's command line, watched."""
    from feeder.cli import main as command_line
    with profiler(kind) as found:
        code = command_line(words)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found.report(), file)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
