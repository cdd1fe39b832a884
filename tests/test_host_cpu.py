"""Pinning: each way it can go wrong by a fake libc and a host laid out for it; then a real process, as the kernel sees it."""

import errno
import os
import subprocess
import sys
import threading

import pytest
from support import PROJECT

from feeder.errors import HostError
from feeder.host import cpu
from feeder.host.facts import Host
from feeder.host.libc import load

linux = pytest.mark.skipif(load() is None, reason="no Linux here, or no such libc")


class FakeLibc:
    """A kernel whose cpuset has `cpuset`; what is not in it is dropped, and refused when nothing is left."""

    def __init__(self, cpuset, fails=0, drops=()):
        self.cpuset, self.fails, self.drops = set(cpuset), fails, set(drops)
        self.mask = sorted(cpuset)
        self.names = []

    def set_affinity(self, cores):
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        left = sorted(set(cores) & self.cpuset - self.drops)
        if not left:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.mask = left

    def get_affinity(self):
        return self.mask

    def set_name(self, name):
        self.names.append(name)


@pytest.fixture
def host(tmp_path):
    """A machine of eight cores, of which 6 is offline."""
    folder = tmp_path / "sys/devices/system/cpu"
    folder.mkdir(parents=True)
    (folder / "present").write_text("0-7\n")
    (folder / "online").write_text("0-5,7\n")
    return Host(str(tmp_path))


@pytest.fixture(autouse=True)
def no_helpers():
    yield
    cpu.arrange(None, None, False)


def test_what_was_set_is_read_back(host):
    libc = FakeLibc(range(8))
    assert cpu.pin(libc, [3], host) == [3] and cpu.pin(libc, [5, 4], host) == [4, 5]


@pytest.mark.parametrize("libc, cores, words", [
    (FakeLibc(range(6)), [9], "core 9 does not exist, this machine has 0-7"),
    (FakeLibc(range(6)), [2, 9, 10], "core 9-10 does not exist, this machine has 0-7"),     # the kernel drops them only
    (FakeLibc(range(6)), [6], "core 6 is offline, online are 0-5,7; as root: echo 1 > "
                              "/sys/devices/system/cpu/cpu6/online"),
    (FakeLibc([0, 1, 2]), [7], "core 7 is outside the cpuset of this container or service, which has 0-2; "
                               "choose one of these or change --cpuset-cpus or AllowedCPUs="),
    (FakeLibc([0, 1, 2]), [1, 4], "core 4 is outside the cpuset of this container or service, which has 0-2"),
    (FakeLibc(range(6), fails=errno.EPERM), [1], "the kernel refused core 1: Operation not permitted; a seccomp filter"),
    (FakeLibc(range(6), fails=errno.ENOSYS), [1], "the kernel refused core 1: Function not implemented"),
    (FakeLibc(range(6), fails=errno.EINVAL), [1], "asked for core 1, the kernel gave 0-5"),
])
def test_each_refusal_says_why_and_leaves_the_mask_as_it_was(host, libc, cores, words):
    before = libc.get_affinity()
    with pytest.raises(HostError) as caught:
        cpu.pin(libc, cores, host)
    assert str(caught.value).startswith(words)
    assert libc.get_affinity() == before


def test_helper_threads_take_their_name_and_their_cores():
    libc = FakeLibc(range(4))
    cpu.enter("nobody")
    cpu.arrange(libc, [0, 2], True)
    cpu.enter("feeder-fetch-0")
    assert libc.names == ["feeder-fetch-0"] and libc.mask == [0, 2]
    cpu.arrange(libc, None, False)
    cpu.enter("feeder-fetch-1")
    assert libc.names == ["feeder-fetch-0"]
    cpu.arrange(FakeLibc([0], fails=errno.EPERM), [0], True)
    cpu.enter("feeder-fetch-2")                          # a refusal is no reason not to fetch


def refusal(error):
    def refuse(*args):
        raise error
    return refuse


@linux
@pytest.mark.parametrize("name, function, error, words", [
    ("sched_setscheduler", lambda: cpu.set_fifo(20), PermissionError(errno.EPERM, "no"),
     "needs CAP_SYS_NICE, or LimitRTPRIO= of the systemd unit, or ulimit -r of at least 20"),
    ("sched_setscheduler", lambda: cpu.set_fifo(20), OSError(errno.EINVAL, "Invalid argument"),
     "the kernel refused SCHED_FIFO: Invalid argument"),
    ("setpriority", lambda: cpu.set_nice(-5), PermissionError(errno.EACCES, "no"),
     "below the present 0 needs CAP_SYS_NICE, or LimitNICE=-5"),
])
def test_scheduling_refused(monkeypatch, name, function, error, words):
    monkeypatch.setattr(cpu.os, "getpriority", lambda *args: 0)
    monkeypatch.setattr(cpu.os, name, refusal(error))
    with pytest.raises(HostError) as caught:
        function()
    assert words in str(caught.value)


@linux
def test_scheduling_that_is_accepted_but_not_done(monkeypatch):
    monkeypatch.setattr(cpu.os, "sched_setscheduler", lambda *args: None)
    with pytest.raises(HostError, match="asked for SCHED_FIFO 20, the kernel has policy 0 priority 0"):
        cpu.set_fifo(20)
    monkeypatch.setattr(cpu.os, "setpriority", lambda *args: None)
    with pytest.raises(HostError, match="asked for 19, the kernel has"):
        cpu.set_nice(19)


@linux
def test_fifo_stays_with_its_thread():
    """SCHED_RESET_ON_FORK: what the publishing thread starts is ordinary."""
    seen = []

    def publish():
        try:
            cpu.set_fifo(1)
        except HostError as error:
            seen.append(str(error))
            return
        seen.append(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
        helper = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
        helper.start()
        helper.join()

    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    if len(seen) == 1:
        pytest.skip(seen[0])
    assert seen == [os.SCHED_FIFO, os.SCHED_OTHER]


@linux
def test_a_core_that_this_machine_does_not_have():
    with pytest.raises(HostError, match="core 4000 does not exist, this machine has "):
        cpu.pin(load(), [4000])


CPUSET = "/sys/fs/cgroup/cpuset"


@linux
def test_a_real_cpuset_is_named():
    """A group with the first core only; a process in it wants the last one."""
    cores = sorted(os.sched_getaffinity(0))
    group = f"{CPUSET}/feeder-test-{os.getpid()}"
    if len(cores) < 2 or not os.access(CPUSET, os.W_OK) or not os.path.exists(f"{CPUSET}/cpuset.mems"):
        pytest.skip(f"needs two cores and a writable {CPUSET} (cgroup version 1, as root)")
    try:
        os.mkdir(group)
    except OSError as error:
        pytest.skip(f"no cpuset can be made here: {error}")
    script = ("import sys\nfrom feeder.host import cpu\nfrom feeder.host.libc import load\n"
              "sys.stdin.readline()\n"
              "try: cpu.pin(load(), [int(sys.argv[1])])\n"
              "except Exception as error: print(error)\n")
    try:
        for name, value in (("cpuset.cpus", str(cores[0])), ("cpuset.mems", "0")):
            with open(f"{group}/{name}", "w") as file:
                file.write(value)
        with subprocess.Popen([sys.executable, "-c", script, str(cores[-1])], cwd=PROJECT, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as child:
            try:
                with open(f"{group}/cgroup.procs", "w") as file:
                    file.write(str(child.pid))
                text, _ = child.communicate("go\n", timeout=30)
            finally:
                child.kill()
    except OSError as error:
        pytest.skip(f"no cpuset can be used here: {error}")
    finally:
        os.rmdir(group)
    assert text.startswith(f"core {cores[-1]} is outside the cpuset of this container or service, which has {cores[0]};")
