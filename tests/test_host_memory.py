"""Memory: every row of the lock's table and every errno by a fake libc; the heap's habits by the kernel's fault counters."""

import errno
import gc
import subprocess
import sys

import pytest
from support import PROJECT

from feeder.host import memory
from feeder.host.facts import Host
from feeder.host.libc import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, load
from feeder.host.memory import HEADROOM_BYTES, MIB, Collector, Lock, Room, resident_bytes, tune_malloc

ALL = MCL_CURRENT | MCL_FUTURE


class FakeLibc:
    is_glibc = True

    def __init__(self, fails=0, refuses=()):
        self.fails, self.refuses = fails, refuses
        self.calls = []

    def mlockall(self, flags):
        self.calls.append(flags)
        if self.fails:
            raise OSError(self.fails, "as the test says")

    def munlockall(self):
        self.calls.append("munlockall")
        raise OSError(errno.ENOMEM, "nor that")          # it may fail, too

    def mallopt(self, parameter, value):
        self.calls.append((parameter, value))
        return parameter not in self.refuses


class FakeRoom:
    def __init__(self, limit=None, used=40 * MIB, free=None):
        self.limit, self.used, self.free = limit, used, free


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """What /proc/self/status says here; the real one for the tests that do not change it."""
    real, said = memory._status, {}
    monkeypatch.setattr(memory, "_status", lambda key, *args: said.get(key, real(key, *args)))
    return said


# -- which lock ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("room, flags, state, words", [
    (FakeRoom(), ALL, "on", "VmLck 40 MiB: all memory, present and future"),
    (FakeRoom(free=200 * MIB), ALL, "on", "present and future"),
    (FakeRoom(limit=204 * MIB), ALL, "on", "present and future"),                        # 40 + 100 + headroom
    (FakeRoom(limit=204 * MIB - 1), MCL_CURRENT, "partly", "only what is there now: RLIMIT_MEMLOCK 204 MiB is below "
                                                           "the worst case 204 MiB; one of: setcap cap_ipc_lock=+ep "),
    (FakeRoom(limit=48 * MIB), MCL_CURRENT, "partly", "LimitMEMLOCK=infinity in the systemd unit; ulimit -l 208896"),
    (FakeRoom(limit=48 * MIB - 1), None, "failed", "below what is in use, 40 MiB; memory may be paged out"),
    (FakeRoom(limit=0), None, "failed", "not locked: RLIMIT_MEMLOCK 0 MiB is below the worst case 204 MiB"),
    (FakeRoom(free=99 * MIB), ALL | MCL_ONFAULT, "partly", "as they are touched (MCL_ONFAULT): the worst case is 100 "
                                                           "MiB more, free are 99 MiB; fewer instruments"),
])
def test_it_looks_before_it_locks(kernel, room, flags, state, words):
    kernel["VmLck"] = 40 * MIB
    libc = FakeLibc()
    found = Lock(libc, room).take(100 * MIB)
    assert found[0] == state and words in found[1], found
    assert libc.calls == ([] if flags is None else [flags])


@pytest.mark.parametrize("code, room, words", [
    (errno.EPERM, FakeRoom(), ("not permitted", "setcap cap_ipc_lock=+ep /", "LimitMEMLOCK=infinity", "ulimit -l ")),
    (errno.ENOMEM, FakeRoom(), ("over RLIMIT_MEMLOCK, 204 MiB are needed", "setcap", "fewer instruments")),
    (errno.EAGAIN, FakeRoom(), ("physical memory is short", "container's memory limit", "fewer instruments")),
    (errno.EINVAL, FakeRoom(free=1), ("older than 4.4", "no MCL_ONFAULT")),
    (errno.EINVAL, FakeRoom(), ("Invalid argument (errno 22)", "seccomp")),
    (errno.ENOSYS, FakeRoom(), ("not in this kernel or sandbox",)),
    (errno.EACCES, FakeRoom(), ("Permission denied (errno 13)", "seccomp profile")),
])
def test_each_errno_has_its_sentence(code, room, words):
    libc = FakeLibc(fails=code)
    state, evidence = Lock(libc, room).take(100 * MIB)
    assert state == "failed" and "which stalls for milliseconds" in evidence
    assert all(each in evidence for each in words), evidence
    assert "\n" not in evidence and libc.calls[-1] == "munlockall"


def test_a_sandbox_that_only_pretends_is_found_out(kernel):
    kernel["VmLck"] = 0
    assert Lock(FakeLibc(), FakeRoom()).take(0) == (
        "failed", "mlockall succeeded, yet VmLck is 0: this kernel or sandbox only pretends to lock")


def test_growth_near_the_limit_is_let_go_before_it_can_fail(kernel):
    kernel["VmLck"] = 100 * MIB
    libc = FakeLibc()
    lock = Lock(libc, FakeRoom(limit=300 * MIB))
    assert lock.take(100 * MIB)[0] == "on" and lock.watch() is None and libc.calls == [ALL]
    kernel["VmLck"] = 300 * MIB - HEADROOM_BYTES // 2
    assert "memory allocated from now on is not locked" in lock.watch()
    assert lock.watch() is None and libc.calls == [ALL, MCL_CURRENT]          # said and done once

    libc = FakeLibc()
    lock = Lock(libc, FakeRoom(limit=300 * MIB))
    assert lock.take(100 * MIB)[0] == "on"
    libc.fails = errno.ENOMEM
    assert lock.watch() and libc.calls == [ALL, MCL_CURRENT, "munlockall"]

    unlimited = Lock(FakeLibc(), FakeRoom())
    unlimited.take(0)
    assert unlimited.watch() is None


REAL_LOCK = """
import mmap, sys
from feeder.host.libc import load
from feeder.host.memory import Lock, _status
class Room:
    limit, used, free = None, 0, {free}
print(Lock(load(), Room()).take(1 << 20)[0])
before = _status("VmLck"), _status("VmRSS")
with mmap.mmap(-1, 64 << 20) as block:
    print(_status("VmLck") - before[0] >> 20, _status("VmRSS") - before[1] >> 20)
"""


@pytest.mark.skipif(load() is None, reason="no Linux here, or no such libc")
@pytest.mark.parametrize("free, state, resident", [(None, "on", 64), (0, "partly", 0)])
def test_future_memory_is_there_at_once_or_as_it_is_touched(free, state, resident):
    """The kernel's own word for MCL_FUTURE and MCL_ONFAULT: a mapping of 64 MiB counts as locked in both cases."""
    if Room().limit is not None:
        pytest.skip("RLIMIT_MEMLOCK concerns us: not root, or a user namespace")
    found, locked, grown = run_script(REAL_LOCK.format(free=free))
    assert (found, locked) == (state, "64") and abs(int(grown) - resident) <= 1


# -- what limits it --------------------------------------------------------------------------------------------

def tree(root, **files):
    """Lay out a host: limits and status of an ordinary user of a machine, changed by `files`."""
    texts = {"proc/self/limits": "Max locked memory         8388608              8388608              bytes\n",
             "proc/self/status": "VmSize:\t  20480 kB\nCapEff:\t0000000000000000\n",
             "proc/self/uid_map": "         0          0 4294967295\n", "proc/self/cgroup": "0::/unit\n",
             "proc/meminfo": "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n"}
    texts.update({name.replace("__", "/").replace("_DOT_", "."): text for name, text in files.items()})
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Host(str(root))


@pytest.mark.parametrize("files, limit", [
    ({}, 8 * MIB),
    ({"proc__self__limits": "Max locked memory         unlimited            unlimited            bytes\n"}, None),
    ({"proc__self__status": "CapEff:\t0000000000004000\n"}, None),
    ({"proc__self__status": "CapEff:\t000001ffffffbfff\n"}, 8 * MIB),                  # all but CAP_IPC_LOCK
    ({"proc__self__status": "CapEff:\t000001ffffffffff\n", "proc__self__uid_map": "0 1000 1\n"}, 8 * MIB),   # rootless
])
def test_whom_the_limit_concerns(tmp_path, files, limit):
    room = Room(tree(tmp_path, **files))
    assert room.limit == limit and room.free == 1024 * MIB


def test_a_container_leaves_less_memory(tmp_path):
    room = Room(tree(tmp_path, **{"sys__fs__cgroup__unit__memory_DOT_max": str(300 * MIB),
                                  "sys__fs__cgroup__unit__memory_DOT_current": str(200 * MIB)}))
    assert room.free == 100 * MIB and room.used == 20 * MIB


def test_a_host_that_tells_nothing_limits_nothing(tmp_path):
    room = Room(Host(str(tmp_path)))
    assert (room.limit, room.used, room.free) == (None, 0, None)


# -- the heap --------------------------------------------------------------------------------------------------

def test_malloc_takes_all_some_or_is_another():
    libc = FakeLibc()
    state, evidence = tune_malloc(libc)
    assert state == "on" and "M_TRIM_THRESHOLD 2147483647" in evidence and "M_ARENA_MAX 1" in evidence
    assert (-8, 1) in libc.calls
    state, evidence = tune_malloc(FakeLibc(refuses={-3}))
    assert state == "partly" and evidence.endswith("taken; refused M_MMAP_THRESHOLD")
    assert tune_malloc(FakeLibc(refuses={-1, -2, -3, -8}))[1].startswith("nothing taken; refused M_TRIM_THRESHOLD")
    libc.is_glibc = False
    assert tune_malloc(libc) == ("skipped", "mallopt is glibc's, this is another C library")


def run_script(text):
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", text], cwd=PROJECT, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


FAULTS = """
import resource, sys
from feeder.host.libc import load
from feeder.host.memory import *
tuned = len(sys.argv) > 1 or {tuned}
if tuned:
    libc = load()
    print(tune_malloc(libc)[0])
    ballast = Ballast()
    print(prefault(24 << 20, ballast)[0])
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
kept = []
def grow():
    # What a book does: small integers by the thousand, tables of some kilobytes, and one of a megabyte now and then.
    for number in range(40):
        kept.append({{key << 40: key << 41 for key in range(1000)}})
        kept.append(bytearray(100_000))
    kept.append(bytearray(1 << 20))
    del kept[:]
before = faults()
for _ in range(3):
    grow()
print(faults() - before)
"""


@pytest.mark.skipif(load() is None or not load().is_glibc, reason="glibc's malloc on Linux is what is measured")
def test_growth_into_prefaulted_memory_costs_hardly_a_page_fault():
    """PYTHONMALLOC of -X dev wraps but does not replace the allocators; measured without and with it."""
    *states, tuned = run_script(FAULTS.format(tuned=True))
    plain, = run_script(FAULTS.format(tuned=False))
    print("faults plain", plain, "tuned", tuned)
    assert states == ["on", "on"]
    assert int(tuned) < 200 < int(plain)


def test_prefaulting_leaves_half_of_what_is_free_alone():
    ballast = memory.Ballast()
    state, evidence = memory.prefault(64 * MIB, ballast, FakeRoom(free=8 * MIB))
    assert state == "partly" and evidence.startswith("4 MiB touched") and "64 MiB were wanted" in evidence
    assert ballast.objects
    assert memory.prefault(1000, ballast, FakeRoom()) == ("on", "nothing to touch")
    assert memory.prefault(64 * MIB, ballast, FakeRoom(free=MIB)) == ("failed", "no room for 64 MiB")


def test_resident_memory_is_there():
    assert resident_bytes() > MIB


# -- the collector ---------------------------------------------------------------------------------------------

class Cycle:
    def __init__(self):
        self.me = self


def test_garbage_is_bounded_and_each_look_is_timed(monkeypatch):
    monkeypatch.setattr(memory, "GARBAGE_LIMIT", 500)
    before, collector = gc.get_threshold(), Collector()
    try:
        state, evidence = collector.start()
        assert state == "on" and "at most 500 between" in evidence and gc.get_freeze_count() > 0
        for _ in range(2000):
            Cycle()
        seen = collector.summary()
        assert seen["collections"] >= 1 and seen["objects"] > 0 and 0 < seen["pause_ns_max"] <= seen["pause_ns_total"]
        frozen = gc.get_freeze_count()
        kept = [Cycle() for _ in range(50)]
        collector.warm()
        assert gc.get_freeze_count() >= frozen + 50 and len(kept) == 50
    finally:
        collector.close()
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0
    Collector().warm()                     # never started: changes nothing
    assert gc.get_freeze_count() == 0
