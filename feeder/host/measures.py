"""The measures taken on this host for speed: which there are, how each is switched off, and what became of it.

    Measures(config.hft, name, core).apply(...) ──▶ rows (measure, state, evidence) ──▶ start log, report, status

MEASURES is the one table. A measure is a key of hft_config.json and its value for "off"; from it come `--no-<name>`,
`--profile baseline` (all off) and the order in which they are taken. Each process takes its own: locks, pinning and
names are not inherited, or would be wrong if they were.

    on        done, and read back from the kernel        partly    less than asked for; the evidence says what
    off       switched off, or its value asks nothing    failed    refused; the evidence says the remedy
    skipped   this system does not have it

Nothing in here stops the feeder. Sockets take their options when they are opened; what the kernel grants is found out
here on sockets that are opened for it and closed again.
"""

import logging
import os
import sys
import threading
from collections import namedtuple
from contextlib import ExitStack

from feeder.clock import MICROSECOND, SECOND, steady_ns
from feeder.errors import ConfigError, HostError
from feeder.host import cpu, libc as c_library, memory
from feeder.host.facts import cpus_text
from feeder.host.usage import Usage
from feeder.net.sockets import SocketOptions, granted

log = logging.getLogger("feeder.host")

ON, PARTLY, OFF, FAILED, SKIPPED = "on", "partly", "off", "failed", "skipped"
WARM_UP_NS = 20 * SECOND              # books are live and have grown, sockets are open; faults count from here

Measure = namedtuple("Measure", "name section key off meaning")
Row = namedtuple("Row", "measure state evidence")
MEASURES = tuple(Measure(*row) for row in (              # in the order they are taken
    ("names", "runtime", "thread_names", False, "thread and process names"),
    ("malloc", "memory", "malloc", False, "malloc keeping what it got"),
    ("thread-stack", "runtime", "thread_stack_bytes", 0, "the thread stack size"),
    ("lock", "memory", "lock", False, "memory locking"),
    ("prefault", "memory", "prefault", False, "touching the heap at start"),
    ("pin", "cpu_affinity", "enabled", False, "pinning to processors"),
    ("nice", "scheduling", "nice", 0, "the nice value"),
    ("timer-slack", "scheduling", "timer_slack_ns", 0, "the timer slack"),
    ("fifo", "scheduling", "fifo_priority", 0, "SCHED_FIFO"),
    ("switch-interval", "runtime", "switch_interval_us", 0, "the interpreter's switch interval"),
    ("event-interval", "runtime", "event_interval", 0, "the bound of a connection's turn"),
    ("idle", "runtime", "idle", "sleep", "an idle strategy other than sleep"),
    ("buffers", "sockets", "buffers", False, "large socket buffers"),
    ("busy-poll", "sockets", "busy_poll_us", 0, "SO_BUSY_POLL"),
    ("priority", "sockets", "priority", 0, "SO_PRIORITY"),
    ("dscp", "sockets", "dscp", 0, "DSCP marks"),
    ("batch", "sockets", "batch_us", 0, "sending bursts of datagrams in one call"),
    ("gc", "memory", "gc", "default", "the collector's policy"),
))


# -- the command line ----------------------------------------------------------------------------------------

def add_arguments(parser):
    group = parser.add_argument_group("measures on this host")
    group.add_argument("--profile", choices=("baseline", "tuned"), default="tuned",
                       help="tuned: as configured, which is all of them by default; baseline: none")
    group.add_argument("--core", type=int, metavar="N", help="pin the publishing thread to this processor")
    group.add_argument("--idle", choices=("spin", "yield", "sleep"), help="what to do while nothing comes")
    for measure in MEASURES:
        group.add_argument(f"--no-{measure.name}", action="store_true", help=f"without {measure.meaning}")


def from_arguments(args, hft):
    """Change the configuration's `hft` as the command line says."""
    if args.core is not None:
        if not 0 <= args.core <= 4095:
            raise ConfigError(f"--core {args.core}: expected 0 to 4095")
        hft.cpu_affinity.processor_core, hft.cpu_affinity.enabled = args.core, True
    if args.idle is not None:
        hft.runtime.idle = args.idle
    for measure in MEASURES:
        if args.profile == "baseline" or getattr(args, "no_" + measure.name.replace("-", "_")):
            setattr(getattr(hft, measure.section), measure.key, measure.off)


def socket_options(hft, recv_buffer_bytes, send_buffer_bytes, segment_bytes=0):
    """Return the SocketOptions of a socket that shall have these buffers, and may send bursts of such datagrams."""
    wanted = (recv_buffer_bytes, send_buffer_bytes) if hft.sockets.buffers else (0, 0)
    return SocketOptions(*wanted, busy_poll_us=hft.sockets.busy_poll_us, priority=hft.sockets.priority,
                         dscp=hft.sockets.dscp, segment_bytes=segment_bytes)


# -- one process ---------------------------------------------------------------------------------------------

class Measures:
    """What is done in this process.

    Args:   hft; name of the process, at most 15 characters; core to pin the calling thread to, -1 for none;
            libc: for tests; None where there is none.
    """

    def __init__(self, hft, name, core=-1, libc=c_library.load):
        self.hft = hft
        self.name = name
        self.core = core
        self.libc = libc() if callable(libc) else libc
        self.rows = []
        self.collector = memory.Collector()
        self.ballast = memory.Ballast()
        self.locked = None
        self.is_warm = False
        self.usage = Usage(steady_ns())
        self._undo = ExitStack()

    def apply(self, worst_bytes, threads, buffers):
        """Take all measures; return the rows.

        Args:   worst_bytes: memory this process may come to hold; threads: how many it will start;
                buffers: [(what, "tcp" or "udp", receive bytes, send bytes)] of the sockets it will open.
        """
        self.worst_bytes, self.threads, self.buffers = worst_bytes, threads, buffers
        for measure in MEASURES:
            value = getattr(getattr(self.hft, measure.section), measure.key)
            if value == measure.off:
                row = OFF, f"{measure.section}.{measure.key} is {_text(value)}"
            else:
                try:
                    row = getattr(self, "_" + measure.name.replace("-", "_"))(value)
                except OSError as error:
                    row = FAILED, f"the kernel refused: {error.strerror}; a seccomp filter may forbid it"
                except (HostError, ValueError) as error:
                    row = FAILED, str(error)
            self.rows.append(Row(measure.name, *row))
        for line in self.table():
            log.info("%s", line)
        for row in self.rows:
            if row.state in (PARTLY, FAILED):
                log.warning("%s %s: %s", row.measure, row.state, row.evidence)
        return self.rows

    def warm(self):
        """Called once the first data has come and gone: from here on nothing should fault."""
        self.is_warm = True
        self.collector.warm()
        self.usage.mark(steady_ns())

    def watch(self):
        """To be called now and then: takes back what would do harm."""
        sentence = self.locked.watch() if self.locked is not None else None
        if sentence:
            log.warning("%s", sentence)
            self.rows = [Row(row.measure, PARTLY, sentence) if row.measure == "lock" else row for row in self.rows]

    def close(self):
        """Undo what can be undone, for a process that goes on after the run."""
        self._undo.close()

    def _later(self, function, *args):
        """Have close() call it; what the host then refuses stays as it is."""
        def undo():
            try:
                function(*args)
            except OSError as error:
                log.debug("not undone: %s", error)
        self._undo.callback(undo)

    # -- for people and programs -----------------------------------------------------------------------------

    def table(self):
        width = max(len(row.measure) for row in self.rows)
        return [f"{'measure':<{width}}  state    evidence"] + [
            f"{row.measure:<{width}}  {row.state:<7}  {row.evidence}" for row in self.rows]

    def report(self):
        """Return {"measures": [...], "usage": {...}} for the report."""
        keys = {measure.name: f"{measure.section}.{measure.key}" for measure in MEASURES}
        return {"measures": [dict(row._asdict(), key=keys[row.measure]) for row in self.rows],
                "usage": dict(self.usage.since(steady_ns()), since="warm-up" if self.is_warm else "start",
                              collector=self.collector.summary())}

    def status(self):
        """Return one line for the status: what the kernel counted, and what is not as it should be."""
        found = self.usage.since(steady_ns())
        counts, rates = found.get("process"), found["per_minute"]
        if counts is None:
            return "no counters here"
        return (f"faults since {'warm-up' if self.is_warm else 'start'} {counts['minor_faults']:,} minor, "
                f"{counts['major_faults']:,} major; switches/min {rates['voluntary_switches']:,.0f} voluntary, "
                f"{rates['involuntary_switches']:,.0f} involuntary")

    def brief(self):
        """Return the faults alone, for a status of one line."""
        counts = self.usage.since(steady_ns()).get("process", {})
        return (f"faults since {'warm-up' if self.is_warm else 'start'} {counts.get('minor_faults', 0):,} minor, "
                f"{counts.get('major_faults', 0):,} major")

    def wanting(self):
        """Return the measures that are not as they were asked for, as a text."""
        return ", ".join(f"{row.measure} {row.state}" for row in self.rows if row.state in (PARTLY, FAILED))

    # -- each measure: (its value) -> (state, evidence) ------------------------------------------------------

    def _no_libc(self):
        return (SKIPPED, f"Linux only, this is {sys.platform}") if not sys.platform.startswith("linux") else (
            SKIPPED, "the C library does not have what it takes")

    def _names(self, value):
        if self.libc is None:
            return self._no_libc()
        self._later(self.libc.set_name, self.libc.get_name())
        self._later(cpu.arrange, None, None, False)
        self.libc.set_name(self.name)
        cpu.arrange(self.libc, None, True)
        found = self.libc.get_name()
        return (ON if found == self.name else PARTLY), f"this is {found}, helpers are feeder-fetch-0 and so on"

    def _malloc(self, value):
        return self._no_libc() if self.libc is None else memory.tune_malloc(self.libc)

    def _thread_stack(self, value):
        self._later(threading.stack_size, threading.stack_size(value))      # it returns what was before
        return ON, f"{threading.stack_size(value):,} bytes for each thread that is started from now on"

    def _lock(self, value):
        if self.libc is None:
            return self._no_libc()
        self._later(self.libc.munlockall)
        self.locked = memory.Lock(self.libc)
        stack_bytes = self.hft.runtime.thread_stack_bytes or 8 * memory.MIB
        return self.locked.take(self._growth() + self.threads * stack_bytes)

    def _growth(self):
        return max(0, self.worst_bytes - memory.resident_bytes())

    def _prefault(self, value):
        self._later(self.ballast.objects.clear)
        return memory.prefault(self._growth(), self.ballast)

    def _pin(self, value):
        affinity = self.hft.cpu_affinity
        if self.core < 0 and not affinity.other_cores:
            return OFF, "no core is configured for this process"
        if self.libc is None:
            return self._no_libc()
        started_on = self.libc.get_affinity()
        others = affinity.other_cores or [core for core in started_on if core != self.core] or started_on
        names = self.hft.runtime.thread_names
        try:
            if affinity.other_cores:                     # tried here, where a fault can be told
                cpu.pin(self.libc, affinity.other_cores)
            if self.core >= 0:
                cpu.pin(self.libc, [self.core])
        except HostError as error:
            self.libc.set_affinity(started_on)
            return FAILED, f"not pinned: {error}"
        self._later(self.libc.set_affinity, started_on)
        self._later(cpu.arrange, None, None, False)
        cpu.arrange(self.libc, others, names)
        return ON, (f"this thread on {cpus_text(self.libc.get_affinity())}, helper threads on {cpus_text(others)}; "
                    "read back")

    def _fifo(self, value):
        if not hasattr(os, "SCHED_FIFO"):
            return self._no_libc()
        self._later(cpu.set_ordinary)
        cpu.set_fifo(value)
        spins = self.hft.runtime.idle == "spin"
        return ON, f"SCHED_FIFO {value}, read back" + (
            "; it spins, so the kernel takes 5 % of its core back (sched_rt_runtime_us)" if spins else "")

    def _nice(self, value):
        if not hasattr(os, "setpriority"):
            return self._no_libc()
        cpu.set_nice(value)
        return ON, f"{value}, read back"

    def _timer_slack(self, value):
        if self.libc is None:
            return self._no_libc()
        self._later(self.libc.set_timer_slack, 0)            # 0: the default again, prctl(2)
        found = self.libc.set_timer_slack(value)
        return (ON if found == value else PARTLY), f"{found} ns, read back"

    def _switch_interval(self, value):
        self._later(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(value * MICROSECOND / SECOND)
        return ON, f"{sys.getswitchinterval() * 1e6:.0f} us"

    def _event_interval(self, value):
        return ON, f"{value} messages of a connection in one turn"

    def _idle(self, value):
        return ON, f"{value}: uses a whole processor"

    def _buffers(self, value):
        found, short = [], set()
        for what, kind, receive, send in self.buffers:
            options = SocketOptions(receive, send)
            rows = granted(kind, options, ("receive", "send"))
            found += [f"{what} {which} {got:,} bytes" for which, got, _ in rows]
            short.update(remedy for _, _, remedy in rows if remedy)
        if short:
            return PARTLY, f"{', '.join(found)}; to have all: {'; '.join(sorted(short))}"
        return ON, ", ".join(found) + ("; the kernel accounts twice that" if sys.platform.startswith("linux") else "")

    def _option(self, **wanted):
        (name, got, remedy), = granted("udp", SocketOptions(0, 0, **wanted), tuple(wanted))
        if remedy:
            return (SKIPPED if remedy.endswith("Linux only") else FAILED), remedy
        return ON, f"{got}, read back"

    def _busy_poll(self, value):
        return self._option(busy_poll_us=value)

    def _priority(self, value):
        return self._option(priority=value)

    def _dscp(self, value):
        return self._option(dscp=value)

    def _batch(self, value):
        if not any(kind == "udp" for _, kind, _, _ in self.buffers):
            return OFF, "this process sends no datagrams"
        state, evidence = self._option(segment_bytes=1472)       # any size: whether it is known is the question
        return state, f"up to {value} us; UDP_SEGMENT {evidence}" if state == ON else evidence

    def _gc(self, value):
        self._later(self.collector.close)
        return self.collector.start()


def _text(value):
    return {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
