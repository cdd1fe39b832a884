"""How long until it works: imports, process start to the first datagram and to the first live book, memory at rest.

Everything in fresh interpreters, in turn with `python -S -c pass`, the least that any Python process takes (-S: no
site-packages, as on a bare host; what a host has there is not ours). What the imports take is CPU time, told without
the least; the rest is wall time and whole, from before the process is made. One unmeasured start comes first, so
compiled bytecode and the files' pages are there, as on a host's second start.

    import     feeder, feeder.cli (what `--help` loads), feeder.run (all that `run` loads)
    run        from a venue twin that runs already, its REST answers without delay; publishing begins with the first
               datagram, which defines an instrument; live is the first complete book
    embedded   `run` without a configuration, which starts the twin first

The answer: the book that came is LIVE and has levels on both sides. Memory at rest is the resident set a moment after.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack

from feeder import clock, config as configuration
from feeder.bench.measure import BenchError, row_of
from feeder.bench.peers import TIMEOUT_S, Cores, Listener, Process, config_folder, end, kill, start, started
from feeder.message import LIVE
from feeder.receiver import Receiver
from feeder.twin import spawn

IMPORTS = {"feeder": None, "feeder.cli": None, "feeder.run": (60e6, 30e6, "ns")}
IMPORT_ROUNDS = 15
PUBLISHING_GOAL = (300e6, 150e6, "ns")
VENUE = "binance_spot"
REST_NS, QUICK_REST_NS = 300 * clock.MILLISECOND, 20 * clock.MILLISECOND
PASS = "python -S -c pass"


def bench_start(run):
    with Cores() as cores:
        yield from imports(run, cores)
        with ExitStack() as stack:
            run.say("start: the venue")
            twin = stack.enter_context(spawn(["--venue", VENUE, "--rate", 1000, "--symbols", 10, "--rest-latency-ms", 0,
                                              "--levels", configuration.TWIN_LEVELS]))
            listener = Listener()
            stack.callback(listener.close)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            config_folder(folder, listener.port, {VENUE: twin.info[VENUE]})
            yield from starts(run, cores, listener, "from a venue that runs", PUBLISHING_GOAL, "--config", folder)
        with ExitStack() as stack:
            output = configuration.builtin().output
            listener = Listener(output.group, output.port)
            stack.callback(listener.close)
            yield from starts(run, cores, listener, "embedded venue", None, "--log", "")


def spent(run, cores, code):
    """Return (ns of wall time, ns of CPU time) that an interpreter takes for `code`, from start to end."""
    start_ns = clock.stopwatch_ns()
    with ExitStack() as stack:
        process = started(stack, kill, [sys.executable, "-S", "-c", code], env=run.environment,
                          stdin=subprocess.DEVNULL)
        cores.give(process.pid)
        if not hasattr(os, "wait4"):                 # Windows
            process.wait()
            wall_ns = clock.stopwatch_ns() - start_ns
            return wall_ns, wall_ns
        _, process.returncode, usage = os.wait4(process.pid, 0)      # a status, as good as an exit code: 0 is 0
        wall_ns = clock.stopwatch_ns() - start_ns
    if process.returncode:
        raise BenchError(f"start: {code!r} ended with status {process.returncode}")
    return wall_ns, int((usage.ru_utime + usage.ru_stime) * clock.SECOND)


def imports(run, cores):
    """CPU time; the ratio is that of whole processes."""
    for name, goal in IMPORTS.items():
        run.say(f"start: import {name}")
        code = f"import {name}"
        spent(run, cores, code)
        pairs = []
        for _ in range(run.repeats if run.quick else IMPORT_ROUNDS):
            least_ns = spent(run, cores, "pass")[1]
            pairs.append((spent(run, cores, code)[1], least_ns))
        row = row_of("start", code, 1, pairs, PASS, unit="import", goal=goal)
        row["ns"] = round(max(0.0, row["ns"] - row["reference_ns"]), 1)
        row["per_second"] = round(clock.SECOND / max(1, row["ns"]))
        yield row


def starts(run, cores, listener, scenario, goal, *words):
    """Two rows: to the first datagram, and to the first live book."""
    publishing, live, resident = [], [], []
    for turn in [1] if run.quick else range(run.repeats + 1):
        run.say(f"start: {scenario}, round {turn}")
        with ExitStack() as stack:
            least_ns = spent(run, cores, "pass")[0]
            found = []
            listener.drain(found)                    # of the one before
            found.clear()
            start_ns = clock.wall_ns()
            process = start(run, stack, cores, *words)
            first_ns, live_ns = heard(listener, start_ns)
            if turn:                                 # the first one made the bytecode
                publishing.append((first_ns - start_ns, least_ns))
                live.append((live_ns - start_ns, least_ns))
                clock.sleep((QUICK_REST_NS if run.quick else REST_NS) / clock.SECOND)
                resident.append(Process(process.pid).resident_bytes() or 0)
            said = end(process)
            if process.returncode:
                raise BenchError(f"start: the feeder ended with exit code {process.returncode}: "
                                 f"{said.decode(errors='replace').strip()}")
    yield row_of("start", f"{scenario}: first datagram", 1, publishing, PASS, unit="start", goal=goal)
    yield row_of("start", f"{scenario}: first live book", 1, live, PASS, unit="start",
                 memory_bytes=sorted(resident)[len(resident) // 2])


def heard(listener, start_ns):
    """Return when the first datagram, and when a first live book had come from the feeder that was just started."""
    receiver, found, first_ns = Receiver(), [], None
    deadline_ns = clock.steady_ns() + TIMEOUT_S * clock.SECOND
    while listener.wait(found, deadline_ns):
        datagram, at_ns = found.pop()
        receiver.receive(datagram, at_ns)
        for channel in receiver.streams.values():
            if channel.session.number < start_ns:    # of another one on the same group
                continue
            first_ns = first_ns or at_ns
            if any(view.state == LIVE and len(view.bids) and len(view.asks) for view in channel.views.values()):
                return first_ns, at_ns
    raise BenchError(f"start: no live book within {TIMEOUT_S} s")
