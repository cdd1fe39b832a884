"""The measures: switches, rows, and a whole `feeder run` about which the kernel is asked, not the feeder.

As whoever runs the tests, and, where that is root, again as a user without any capability.
"""

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import PROJECT

from feeder import config as configuration
from feeder.errors import ConfigError
from feeder.host import cpu, measures
from feeder.host.facts import parse_cpus
from feeder.host.libc import load
from feeder.host.measures import FAILED, MEASURES, OFF, ON, PARTLY, SKIPPED, Measures
from feeder.schema import SCHEMA, accepts

linux = pytest.mark.skipif(load() is None, reason="no Linux here, or no such libc")
BUFFERS = [("udp", "udp", 0, 1 << 16), ("tcp", "tcp", 1 << 16, 1 << 16)]


def options(*arguments):
    parser = argparse.ArgumentParser()
    measures.add_arguments(parser)
    return parser.parse_args(arguments)


def hft(*arguments, **changes):
    found = configuration.builtin().hft
    for path, value in changes.items():
        section, key = path.split("__")
        setattr(getattr(found, section), key, value)
    measures.from_arguments(options(*arguments), found)
    return found


def value(found, measure):
    return getattr(getattr(found, measure.section), measure.key)


# -- switches --------------------------------------------------------------------------------------------------

def test_each_measure_is_a_key_that_can_be_off():
    keys = {key.path: key for key in SCHEMA if key.file == "hft"}
    for measure in MEASURES:
        key = keys[f"{measure.section}.{measure.key}"]
        assert accepts(key.kind, measure.off, key.bounds)
        assert hasattr(Measures, "_" + measure.name.replace("-", "_"))
    assert len({(measure.section, measure.key) for measure in MEASURES}) == len(MEASURES)


def test_baseline_is_none_and_tuned_is_as_configured():
    baseline = hft("--profile", "baseline", scheduling__fifo_priority=10, runtime__idle="spin", sockets__dscp=46)
    assert all(value(baseline, measure) == measure.off for measure in MEASURES)
    tuned = hft("--profile", "tuned")
    assert repr(tuned) == repr(configuration.builtin().hft)
    on = {measure.name for measure in MEASURES if value(tuned, measure) != measure.off}
    assert on == {"names", "malloc", "thread-stack", "lock", "prefault", "pin", "timer-slack", "switch-interval",
                  "event-interval", "buffers", "batch", "gc"}
    assert tuned.runtime.event_interval == 61 and tuned.runtime.thread_stack_bytes == 3 << 20


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_each_flag_switches_off_its_measure_alone(measure):
    on = {f"{each.section}__{each.key}": "spin" if each.name == "idle" else 7 for each in MEASURES}
    found = hft(f"--no-{measure.name}", **on)
    assert [each.name for each in MEASURES if value(found, each) == each.off] == [measure.name]


def test_core_and_idle_by_argument():
    found = hft("--core", "3", "--idle", "yield", cpu_affinity__enabled=False)
    assert (found.cpu_affinity.enabled, found.cpu_affinity.processor_core, found.runtime.idle) == (True, 3, "yield")
    assert hft("--core", "3", "--no-pin").cpu_affinity.enabled is False
    for core in ("-1", "4096"):
        with pytest.raises(ConfigError, match=f"--core {core}: expected 0 to 4095"):
            hft(f"--core={core}")


def test_socket_options():
    found = measures.socket_options(hft(sockets__dscp=46, sockets__priority=5, sockets__busy_poll_us=20), 1000, 2000)
    assert (found.recv_buffer_bytes, found.send_buffer_bytes, found.dscp, found.priority, found.busy_poll_us) == (
        1000, 2000, 46, 5, 20)
    found = measures.socket_options(hft("--no-buffers"), 1000, 2000)
    assert (found.recv_buffer_bytes, found.send_buffer_bytes) == (0, 0)


# -- rows ------------------------------------------------------------------------------------------------------

def applied(found, libc, core=-1):
    taken = Measures(found, "feeder-test", core, libc)
    try:
        taken.apply(1 << 20, 1, BUFFERS)
        return taken, {row.measure: row for row in taken.rows}
    finally:
        taken.close()


def test_without_linux_what_it_needs_is_skipped_with_a_sentence(monkeypatch):
    monkeypatch.setattr(measures.sys, "platform", "darwin")
    taken, rows = applied(hft(cpu_affinity__processor_core=0), None, 0)
    for name in ("names", "malloc", "lock", "pin", "timer-slack"):
        assert rows[name].state == SKIPPED and rows[name].evidence == "Linux only, this is darwin"
    for name in ("thread-stack", "switch-interval", "event-interval", "gc"):
        assert rows[name].state == ON
    assert taken.wanting() == ""


def test_a_host_that_refuses_everything_stops_nothing(caplog):
    class Refuses:
        is_glibc = True

        def mallopt(self, *args):
            return False

        def __getattr__(self, name):
            def refuse(*args):
                raise OSError(1, "Operation not permitted")
            return refuse

    taken = Measures(hft(cpu_affinity__processor_core=0), "feeder-test", 0, Refuses())
    rows = {row.measure: row for row in taken.apply(1 << 20, 1, BUFFERS)}
    for name in ("names", "lock", "pin", "timer-slack"):
        assert rows[name].state == FAILED, rows[name]
        # An ordinary user's lock is not even tried: the limit is known to be below what is in use.
        assert "not permitted" in rows[name].evidence or name == "lock" and "RLIMIT_MEMLOCK" in rows[name].evidence
        assert "Errno" not in rows[name].evidence
        assert f"{name} failed" in taken.wanting() and f"{name} failed: " in caplog.text
    assert rows["malloc"].state == PARTLY
    taken.close()                         # undoing is refused, too
    assert "feeder-test" not in threading.current_thread().name


def test_baseline_takes_nothing_and_says_which_key():
    taken, rows = applied(hft("--profile", "baseline"), load())
    assert {row.state for row in taken.rows} == {OFF} and len(rows) == len(MEASURES)
    assert rows["lock"].evidence == "memory.lock is false" and rows["idle"].evidence == "runtime.idle is sleep"


def test_table_report_and_status():
    taken, rows = applied(hft("--no-lock", "--no-prefault"), load())
    assert taken.table()[0].split() == ["measure", "state", "evidence"] and len(taken.table()) == len(MEASURES) + 1
    report = json.loads(json.dumps(taken.report()))
    assert [row["measure"] for row in report["measures"]] == [measure.name for measure in MEASURES]
    assert report["measures"][3] == {"measure": "lock", "key": "memory.lock", "state": "off",
                                     "evidence": "memory.lock is false"}
    assert report["usage"]["since"] == "start"
    taken.warm()
    assert taken.report()["usage"]["since"] == "warm-up" and "since warm-up" in taken.status() + taken.brief()


@linux
def test_all_of_it_is_undone_for_a_process_that_goes_on():
    libc, core = load(), sorted(os.sched_getaffinity(0))[-1]

    def now():
        stack_bytes = threading.stack_size(0)             # it returns what was before
        threading.stack_size(stack_bytes)
        return os.sched_getaffinity(0), libc.get_name(), stack_bytes, sys.getswitchinterval(), gc.get_threshold()

    before = now()
    taken = Measures(hft(), "feeder-test", core)
    try:
        taken.apply(1 << 20, 1, BUFFERS)
        assert os.sched_getaffinity(0) == {core} and libc.get_name() == "feeder-test"
        assert now()[2] == 3 << 20 and round(sys.getswitchinterval() * 1e6) == 50
    finally:
        taken.close()
    assert before == now()
    assert cpu._helpers[0] is None
    with open("/proc/self/status") as status:
        assert "VmLck:\t       0 kB\n" in status.readlines()


@linux
def test_a_core_that_is_not_there_leaves_it_unpinned():
    before = os.sched_getaffinity(0)
    taken, rows = applied(hft("--no-lock", "--no-prefault"), load(), 4000)
    assert rows["pin"].state == FAILED and rows["pin"].evidence.startswith("not pinned: core 4000 does not exist")
    taken, rows = applied(hft("--no-lock", "--no-prefault", cpu_affinity__other_cores=[4001]), load(), min(before))
    assert rows["pin"].state == FAILED and "core 4001 does not exist" in rows["pin"].evidence
    assert os.sched_getaffinity(0) == before


# -- a whole run, and what the kernel says of it ---------------------------------------------------------------

def without_capabilities(keep=""):
    """A command prefix that leaves no capability but those to `keep`, and the interpreter that such a user may run."""
    if os.geteuid() != 0:
        pytest.skip("not root: the test above ran without capabilities already")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv here (util-linux)")
    prefix = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", f"--bounding-set=-all{keep}",
              f"--inh-caps=-all{keep}", f"--ambient-caps=-all{keep}"]
    # setpriv itself may still execute what the user may not, so the interpreter has to start itself once more.
    probe = ("import subprocess, sys, feeder; assert sys.version_info >= (3, 9); "
             "subprocess.run([sys.executable, '-c', ''], check=True)")
    for python in (sys.executable, "/usr/bin/python3"):
        found = subprocess.run([*prefix, python, "-c", probe], cwd=PROJECT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        if found.returncode == 0:
            return prefix, python
    pytest.skip("no interpreter that an ordinary user may run and that sees this package")


def proc(pid, name):
    with open(f"/proc/{pid}/{name}") as file:
        return file.read()


class Witnessed:
    """What the kernel said while a run went on, and its report."""

    def __init__(self, prefix, python, arguments, seconds=3, limit=None):
        command = [*prefix, python, "-m", "feeder", "run", "--seconds", str(seconds), "--report", "-", "--log", "",
                   "--rate", "500", *arguments]

        def raise_limit():
            import resource
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))

        self.processors, self.names = set(), set()
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                              preexec_fn=raise_limit if limit else None) as child:
            try:
                lines = []
                for line in child.stderr:
                    lines.append(line)
                    if len(lines) < seconds:
                        self.ask(child.pid)
                text = child.stdout.read()
                assert child.wait(30) == 0, lines
                self.report = json.loads(text)
            finally:
                child.kill()
        self.measures = {row["measure"]: row for row in self.report["measures"]}

    def ask(self, pid):
        self.status = dict(line.split(":\t", 1) for line in proc(pid, "status").splitlines())
        self.vm_lck = int(self.status["VmLck"].split()[0])
        self.processors.add(int(proc(pid, f"task/{pid}/stat").rpartition(")")[2].split()[36]))
        self.helpers = {}
        for task in os.listdir(f"/proc/{pid}/task"):
            self.names.add(proc(pid, f"task/{task}/comm").strip())
            if int(task) != pid:
                self.helpers[task] = re.search("Cpus_allowed_list:\t(.*)", proc(pid, f"task/{task}/status")).group(1)
        self.comm = proc(pid, "comm").strip()
        try:
            with open(f"/proc/{pid}/timerslack_ns") as file:
                self.slack = file.read().strip()
        except PermissionError:           # another process's is for CAP_SYS_NICE
            self.slack = None
        self.maps = proc(pid, "maps")
        if shutil.which("ss"):
            self.sockets = subprocess.run(["ss", "-tunamOp"], stdout=subprocess.PIPE, text=True).stdout
            self.sockets = [line for line in self.sockets.splitlines() if f"pid={pid}," in line]
        else:
            self.sockets = []


@pytest.fixture(scope="module")
def runs():
    """The runs of the tests below, all at once; each is a future, whose skip is raised where its result is asked."""
    core = ["--core", str(some_cores()[0])]
    with ThreadPoolExecutor(4) as pool:
        yield {
            "tuned": pool.submit(Witnessed, [], sys.executable, core),
            "bare": pool.submit(lambda: Witnessed(*without_capabilities(), [*core, "--no-prefault"])),
            "one": pool.submit(lambda: Witnessed(*without_capabilities(",+ipc_lock"), [])),
            "baseline": pool.submit(Witnessed, [], sys.executable, ["--profile", "baseline"])}


def judge(seen, core, others):
    """What must be so whatever the rights."""
    assert seen.report["books"]["live"] > 0 and seen.report["internal_errors"] == 0
    assert parse_cpus(seen.status["Cpus_allowed_list"].strip()) == [core]
    assert seen.processors == {core}                      # it stays put
    assert seen.comm == "feeder-run" and {"feeder-run", "feeder-fetch-0", "feeder-fetch-1"} <= seen.names
    assert seen.helpers and {tuple(parse_cpus(text)) for text in seen.helpers.values()} == {tuple(others)}
    for name in ("pin", "names", "malloc", "timer-slack", "gc", "thread-stack", "switch-interval"):
        assert seen.measures[name]["state"] in (ON, SKIPPED), seen.measures[name]
    spans = [line.split()[0].split("-") for line in seen.maps.splitlines() if " rw-p " in line]
    sizes = [int(last, 16) - int(first, 16) for first, last in spans]
    assert sum(abs(size - (3 << 20)) < 1 << 16 for size in sizes) >= 2        # of four stacks; neighbours may be merged
    usage = seen.report["usage"]
    assert usage["process"]["major_faults"] >= 0 and usage["per_minute"]["involuntary_switches"] >= 0


def some_cores():
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1], cores[:-1] or cores


def allowed(name):
    try:
        with open(f"/proc/sys/net/core/{name}_max") as file:
            return int(file.read())
    except OSError:
        return None


def judge_buffers(seen):
    """8 MiB of bookkeeping for 4 MiB asked, on UDP out and TCP both ways; `ss -m` prints what SO_MEMINFO tells."""
    if seen.measures["buffers"]["state"] != ON:
        assert "sysctl -w net.core." in seen.measures["buffers"]["evidence"]
        return
    if not seen.sockets:
        return
    streams = [line for line in seen.sockets if line.startswith("tcp") and "ESTAB" in line]
    datagrams = [line for line in seen.sockets if line.startswith("udp")]
    assert streams and all("rb8388608" in line and "tb8388608" in line for line in streams), streams
    assert datagrams and all("tb8388608" in line for line in datagrams), datagrams


@linux
def test_a_run_as_the_kernel_sees_it(runs):
    core, others = some_cores()
    seen = runs["tuned"].result()
    judge(seen, core, others)
    assert seen.slack in ("1", None)
    judge_buffers(seen)
    lock = seen.measures["lock"]
    assert (seen.vm_lck > 0) == (lock["state"] in (ON, PARTLY)), lock
    if lock["state"] == ON:
        assert seen.vm_lck * 1024 > 20 << 20 and "present and future" in lock["evidence"]


@linux
def test_a_run_without_any_capability(runs):
    core, others = some_cores()
    seen = runs["bare"].result()
    judge(seen, core, others)
    judge_buffers(seen)
    assert int(seen.status["CapEff"].strip(), 16) == 0 and seen.status["Uid"].split()[0] == "65534"
    lock = seen.measures["lock"]
    if lock["state"] == FAILED:            # the usual limit is 8 MiB
        assert seen.vm_lck == 0 and "LimitMEMLOCK=infinity" in lock["evidence"] and "setcap" in lock["evidence"]


@linux
def test_one_capability_is_enough_to_lock_everything(runs):
    """An ordinary user with CAP_IPC_LOCK alone, as AmbientCapabilities= of a systemd unit gives it."""
    seen = runs["one"].result()
    assert seen.status["Uid"].split()[0] == "65534" and int(seen.status["CapEff"], 16) == 1 << 14
    assert seen.measures["lock"]["state"] == ON and seen.vm_lck > 20 << 10
    assert seen.measures["prefault"]["state"] == ON


@linux
@pytest.mark.parametrize("limit, state", [(96 << 20, PARTLY), (2 << 30, ON)])
def test_a_limit_that_is_too_low_or_enough(limit, state):
    """Without capabilities, and with limits that root may have to raise for it first."""
    import resource
    prefix, python = without_capabilities()
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY and hard < limit:
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, limit))
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
        except (ValueError, OSError):
            pytest.skip(f"RLIMIT_MEMLOCK is {hard} and may not be raised here (CAP_SYS_RESOURCE)")
    seen = Witnessed(prefix, python, [], limit=limit)
    assert seen.measures["lock"]["state"] == state and seen.vm_lck > 0
    assert seen.report["internal_errors"] == 0


@linux
def test_a_run_of_baseline_is_left_alone(runs):
    seen = runs["baseline"].result()
    assert {row["state"] for row in seen.report["measures"]} == {OFF}
    assert seen.vm_lck == 0 and seen.comm.startswith("python") and not any("feeder" in name for name in seen.names)
    assert parse_cpus(seen.status["Cpus_allowed_list"].strip()) == sorted(os.sched_getaffinity(0))
    assert not any("b8388608" in line for line in seen.sockets), seen.sockets
