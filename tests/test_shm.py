"""Segments: shared with a child, gone with the last who held them, however they end. The kernel is asked, not the code."""

import os
import signal
import subprocess
import sys

import pytest
from support import PROJECT

from feeder import shm

LINUX = sys.platform.startswith("linux")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors that children inherit")

CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from feeder import shm
segment = shm.Segment(int(sys.argv[2]))
segment.buffer[0:5] = b"hello"
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def leftovers():
    return sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []


def spawn(fd):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(PROJECT), str(fd)], pass_fds=[fd],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture(params=["memfd", "file"])
def segment(request, monkeypatch):
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("Linux only")
    before = leftovers()
    made = shm.create(100_000)
    assert leftovers() == before             # it has no name, from the start
    yield made
    made.close()
    assert leftovers() == before


def test_a_child_shares_it_and_a_kill_leaves_nothing(segment):
    assert len(segment.buffer) == 100_000 and segment.buffer[:] == bytes(100_000)
    child = spawn(segment.fd)
    with child.stdin, child.stdout:
        assert int(child.stdout.readline()) == child.pid
        assert segment.buffer[:5] == b"hello"
        child.kill()
        assert child.wait() == -signal.SIGKILL


def test_who_is_alive():
    pid, start = shm.identity()
    assert pid == os.getpid() and (start > 0 or not LINUX)
    assert shm.is_alive(pid, start) and shm.is_alive(pid, 0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child.stdin:
        start = shm.start_of(child.pid)
        assert shm.is_alive(child.pid, start)
        if LINUX:
            assert not shm.is_alive(child.pid, start + 1)      # the pid came again
        child.kill()
        if LINUX:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert not shm.is_alive(child.pid, start)          # a zombie does nothing any more
        child.wait()
    assert not shm.is_alive(child.pid, start) and shm.start_of(child.pid) is None


def test_what_a_killed_run_left_is_swept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = tmp_path / f"{shm.PREFIX}{child.pid}-abc"
    alive, foreign, strange = (tmp_path / name for name in (f"{shm.PREFIX}{os.getpid()}-abc", f"other-{child.pid}-abc",
                                                            shm.PREFIX + "text"))
    for path in (dead, alive, foreign, strange):
        path.write_bytes(b"")
    shm.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted((alive, foreign, strange))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memfd and its seals are Linux's")
def test_readers_can_neither_write_nor_cut():
    made = shm.create(8192)
    fd = shm.for_readers(made)
    reader = shm.from_writer(os.dup(fd))
    made.buffer[5] = 7
    assert reader.buffer[5] == 7
    with pytest.raises(TypeError):
        reader.buffer[5] = 8
    with pytest.raises(OSError):
        shm.Segment(fd)                              # read-only
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    for writable in (again, made.fd):
        with pytest.raises(OSError):
            shm.Segment(writable)                    # sealed, whoever it is
        with pytest.raises(OSError):
            os.ftruncate(writable, 4096)
        with pytest.raises(OSError):
            os.write(writable, b"x")
    for each in (fd, again):
        os.close(each)
    reader.close()
    made.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memfd and its seals are Linux's")
def test_what_is_no_segment_is_not_taken(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    unsealed = shm.create(8192)
    empty = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    os.close(shm.for_readers(type("Held", (), {"fd": empty})))
    for fd in (os.open(path, os.O_RDONLY), os.dup(unsealed.fd), empty):
        with pytest.raises(OSError, match="not a segment of a writer"):
            shm.from_writer(fd)
        with pytest.raises(OSError):
            os.fstat(fd)                             # closed
    unsealed.close()
