"""`workers: N`: starts the ingest processes and the publishing one, watches them, and starts anew what died.

    Supervisor ─┬─ publish ◀─ ring 0 ─ worker-0        the rings are this process's; children inherit the descriptors
                ├─ worker-0   ◀─ ring 1 ─ worker-1
                └─ worker-1                            figures, reports and log lines come up by pipes (pipe.py)

Never in the data path: it may be stopped for a while and nobody misses it. A child that dies, or says nothing for
SILENCE_NS, is ended for good and started again after a pause that grows; worker.py tells how its books heal. A child
ends when its pipe ends, so nothing outlives this process, however it dies.

Workers need memory order that keeps one process's stores in order for the other: x86's. Elsewhere it refuses, unless
FEEDER_FORCE_RING=1.
"""

import logging
import os
import platform
import subprocess
import sys
from functools import reduce

from feeder import clock, config as configuration, log as logs, ring, shm
from feeder.errors import ConfigError, HostError
from feeder.host.cores import ORDERED_MACHINES
from feeder.host.measures import Measures
from feeder.net import Loop
from feeder.pipe import LineReader, LineWriter
from feeder.record import LEVELS_RECORD
from feeder.stages import Vitals
from feeder.status import Status, added

log = logging.getLogger("feeder.supervise")

MAX_SHOWN = 200                             # instruments of the screen, a status carries no more
WATCH_NS = clock.SECOND
SILENCE_NS = 10 * clock.SECOND              # without figures; they come every second or half
START_NS = 120 * clock.SECOND               # until the first figures: 2,048 instruments, memory locked
RESTART_FIRST_NS, RESTART_CAP_NS = 200 * clock.MILLISECOND, 30 * clock.SECOND
STEADY_NS = 30 * clock.SECOND               # who lived that long starts again without a long pause
REPORT_NS, END_NS = 10 * clock.SECOND, 5 * clock.SECOND
KILL_S = 5


class Child:
    """One child process, over all its lives."""

    def __init__(self, supervisor, name, index, rings):
        self.supervisor = supervisor
        self.name = name
        self.index = index                  # None: publishes
        self.rings = rings
        self.process = self.reader = self.writer = None
        self.pause_ns = RESTART_FIRST_NS    # before the next start
        self.pid = 0                        # of the last life
        self.starts = self.asked = 0        # lives so far; the one that was asked for a report
        self.ready = self.was_ready = False
        self.started_ns = self.heard_ns = 0
        self.figures = self.vitals = None   # the last it told
        self.report = None                  # the same in full, once it was asked

    def start(self):
        supervisor = self.supervisor
        if supervisor.ending:
            return
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "feeder.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            pass_fds=self.rings, start_new_session=True,     # Ctrl-C is for the parent, who then ends us in order
            env=dict(os.environ, PYTHONPATH=path))
        self.starts += 1
        self.pid = self.process.pid
        self.ready = False
        self.started_ns = self.heard_ns = clock.steady_ns()
        self.reader = LineReader(supervisor.loop, self.process.stdout.fileno(), self.on_message, self.on_end)
        self.writer = LineWriter(supervisor.loop, self.process.stdin.fileno())
        self.writer.send(dict(supervisor.job, index=self.index, name="feeder-" + self.name, rings=self.rings),
                         important=True)
        log.info("%s: started, pid %d", self.name, self.process.pid)

    @property
    def is_running(self):
        return self.process is not None

    def on_message(self, message):
        self.heard_ns = clock.steady_ns()
        if "log" in message:
            level, name, text = message["log"]
            logging.getLogger(name).log(level, "%s: %s", self.name, text)
        elif "ready" in message:
            self.ready = self.was_ready = True
            self.supervisor.on_ready(self)
        elif "failed" in message:
            log.error("%s: %s", self.name, message["failed"])
            if not self.was_ready:          # it never worked: that is no accident to heal
                self.supervisor.fail(message["failed"])
        elif "report" in message:
            self.report = message["report"], message["process"]
        else:
            self.figures, self.vitals = message["figures"], message["process"]

    def on_end(self):
        """Its pipe has ended, so it has, or it is to."""
        code = self.reap()
        supervisor = self.supervisor
        if supervisor.ending:
            return
        if clock.steady_ns() - self.started_ns > STEADY_NS:
            self.pause_ns = RESTART_FIRST_NS
        pause_ns, self.pause_ns = self.pause_ns, min(2 * self.pause_ns, RESTART_CAP_NS)
        supervisor.restarts += 1
        log.error("%s ended unexpectedly (%s); started again in %.2f s", self.name,
                  f"signal {-code}" if code < 0 else f"exit code {code}", pause_ns / clock.SECOND)
        supervisor.loop.call_after(pause_ns, self.start)

    def reap(self):
        """Have the process ended and gone; return its exit code."""
        process, self.process = self.process, None
        self.ready = False
        self.reader.close()
        self.writer.close()
        process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(KILL_S if self.supervisor.ending else 0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def watch(self, now_ns):
        limit_ns = SILENCE_NS if self.ready else START_NS
        if self.is_running and now_ns - self.heard_ns > limit_ns:
            log.error("%s: nothing heard for %.0f s, killed", self.name, (now_ns - self.heard_ns) / clock.SECOND)
            self.process.kill()             # the pipe's end does the rest


class Supervisor:
    """A run with workers; shows itself as run.Run does. What it opens is closed by `stack`, in reverse."""

    def __init__(self, config, stack, interval_ns=clock.SECOND):
        check(config)
        symbols = sum(len(venue.symbols) for venue in config.venues)
        count = min(config.hft.runtime.workers, max(len(venue.symbols) for venue in config.venues))
        cores = os.cpu_count() or 1
        log.info("%d ingest processes: %d configured, %d instruments, %d processors%s", count,
                 config.hft.runtime.workers, symbols, cores,
                 "" if count + 1 <= cores else "; more processes than processors: they will wait for each other")
        self.config = config
        self.loop = Loop()
        stack.callback(self.loop.close)
        self.ending = False
        self.failure = None
        self.restarts = 0
        self.status = Status(config)
        self.job = {"config": configuration.dump(config), "workers": count, "interval_ns": interval_ns,
                    "shown": MAX_SHOWN}
        segments = []
        for _ in range(count):
            segment = shm.create(ring.ring_bytes(config.hft.processing.ring_buffer_size, symbols))
            stack.callback(segment.close)
            ring.form(segment.buffer, config.hft.processing.ring_buffer_size, symbols)
            segments.append(segment.fd)
        self.publisher = Child(self, "publish", None, segments)
        self.workers = [Child(self, f"worker-{index}", index, [fd]) for index, fd in enumerate(segments)]
        self.children = [self.publisher, *self.workers]
        self.vitals = Vitals(self.loop, Measures(config.hft, "feeder-run"), [], logs.lost_lines)
        stack.callback(self.close)

    def start(self):
        self.publisher.start()
        self.watch()

    def on_ready(self, child):
        """Workers start when there is somebody to read them; later on each heals by itself."""
        if child is self.publisher:
            for worker in self.workers:
                if not worker.starts:
                    worker.start()

    def watch(self):
        self.loop.call_after(WATCH_NS, self.watch)
        now_ns = clock.steady_ns()
        for child in self.children:
            child.watch(now_ns)

    def fail(self, text):
        self.failure = HostError(text)
        self.loop.stop()

    # -- what people and programs are shown ------------------------------------------------------------------

    def told(self):
        """Return figures of the Output, of the Inputs added up, and of the processes; None until all have told some."""
        if any(child.figures is None for child in self.children):
            return None
        processes = {child.name: child.vitals for child in self.children}
        return (self.publisher.figures, reduce(added, [worker.figures for worker in self.workers]),
                dict(processes, supervise=self.vitals.figures()))

    def line(self):
        told = self.told()
        if told is None:
            return f"{self.status.seconds():,.0f} s: starting {len(self.children)} processes"
        self.status.update(*told)
        return self.status.line() + (f"; RESTARTS {self.restarts}" if self.restarts else "")

    def screen(self, size):
        told = self.told()
        if told is None:
            return [self.line()]
        self.status.update(*told)
        return self.status.screen(size)

    def report(self):
        """Ask all children for their reports, wait for them, and return the one report of the run."""
        if self.failure is not None:
            raise self.failure
        for child in self.children:
            child.report, child.asked = None, 0
        give_up_ns = clock.steady_ns() + REPORT_NS
        while any(child.report is None for child in self.children) and clock.steady_ns() < give_up_ns:
            for child in self.children:
                if child.ready and child.asked != child.starts:      # once in each life: one may just be starting
                    child.asked = child.starts
                    child.writer.send({"report": True}, important=True)
            self.loop.run_once(20 * clock.MILLISECOND)
            if self.failure is not None:
                raise self.failure
        missing = [child.name for child in self.children if child.report is None]
        if missing:
            raise HostError(f"no report from {', '.join(missing)}: not running, or not within "
                            f"{REPORT_NS / clock.SECOND:.0f} s; the log tells more")
        output, *inputs = (child.report[0] for child in self.children)
        processes = {child.name: child.report[1] for child in self.children}
        result = self.status.report(output, reduce(added, inputs), dict(processes, supervise=self.vitals.report()))
        result["processes"] = {child.name: dict(processes[child.name], starts=child.starts, pid=child.pid)
                               for child in self.children}
        return result

    def end(self):
        """The publisher ends first: what workers do on leaving concerns nobody."""
        self.ending = True
        for children in ([self.publisher], self.workers):
            for child in children:
                if child.is_running:
                    child.writer.send({"end": True}, important=True)
            give_up_ns = clock.steady_ns() + END_NS
            while any(child.is_running for child in children) and clock.steady_ns() < give_up_ns:
                self.loop.run_once(20 * clock.MILLISECOND)

    def close(self):
        self.ending = True
        for child in self.children:
            if child.is_running:
                child.process.kill()
                child.reap()


def check(config):
    """Refuse what cannot work before anything is started."""
    if os.name != "posix":
        raise HostError("workers need descriptors that children inherit, which this system does not have; "
                        "run with workers 0")
    if platform.machine().lower() not in ORDERED_MACHINES and os.environ.get("FEEDER_FORCE_RING") != "1":
        raise HostError(f"rings rely on the memory order of x86-64, this is {platform.machine()}; run with workers 0, "
                        "or set FEEDER_FORCE_RING=1 at your own risk")
    slots = config.hft.processing.ring_buffer_size
    levels = max(venue.snapshot_limit for venue in config.venues)
    need = 2 * ring.slots_of(LEVELS_RECORD.size + 2 * levels * 16)
    if slots < need:
        raise ConfigError(f"processing.ring_buffer_size: found {slots}, expected at least {1 << (need - 1).bit_length()}: "
                          f"a snapshot of {levels} levels a side must fit twice")
