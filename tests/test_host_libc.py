"""The declarations of libc: cpu_set_t of every size against its definition, and each call against the kernel's word."""

import ctypes
import os
import sys
import threading

import pytest
from support import dice

from feeder.host import libc as module
from feeder.host.libc import MAX_CPUS, cores_of, cpu_set, load

linux = pytest.mark.skipif(load() is None, reason="no Linux here, or no such libc")


@pytest.mark.parametrize("core, size", [(0, 128), (63, 128), (64, 128), (65, 128), (1023, 128), (1024, 136),
                                        (1025, 136), (4095, 512)])
def test_a_set_is_as_long_as_its_highest_core_needs(core, size):
    """CPU_SET(3): core n is bit n % 64 of the unsigned long n / 64; cpu_set_t itself has 1,024 bits."""
    mask = cpu_set([core])
    if ctypes.sizeof(ctypes.c_ulong) == 8:
        assert ctypes.sizeof(mask) == size
    assert int.from_bytes(bytes(mask), sys.byteorder) == 1 << core or sys.byteorder == "big"
    assert cores_of(mask) == [core]


def test_any_set_is_read_back_as_it_was_made():
    random = dice(5)
    for _ in range(200):
        cores = sorted(random.sample(range(5000), random.randrange(40)))
        assert cores_of(cpu_set(cores)) == cores
    assert cores_of(cpu_set([])) == []


def test_a_kernel_with_a_larger_mask_is_asked_again_with_a_longer_set():
    """pthread_getaffinity_np gives EINVAL while the set is shorter than the kernel's (CONFIG_NR_CPUS=8192)."""
    sizes = []

    class Kernel(module.Libc):
        def __init__(self):
            self._pthread_self = lambda: 0

        def _getaffinity(self, thread, size, mask):
            sizes.append(size * 8)
            if size * 8 < self.bits:
                return 22
            mask[70] = 1
            return 0

    kernel = Kernel()
    kernel.bits = 8192
    assert kernel.get_affinity() == [70 * module.WORD_BITS] and sizes == [1024, 2048, 4096, 8192]
    kernel.bits = 2 * MAX_CPUS
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.get_affinity()


@linux
def test_affinity_is_what_the_kernel_says():
    libc, before = load(), sorted(os.sched_getaffinity(0))
    assert libc.get_affinity() == before
    try:
        libc.set_affinity([before[-1]])
        assert libc.get_affinity() == sorted(os.sched_getaffinity(0)) == [before[-1]]
        libc.set_affinity(before + [4000])           # what the machine does not have is dropped, not refused
        assert libc.get_affinity() == before
        with pytest.raises(OSError, match="Invalid argument"):
            libc.set_affinity([4000])
    finally:
        os.sched_setaffinity(0, before)


@linux
def test_a_name_is_cut_at_fifteen_characters_and_belongs_to_one_thread():
    libc, seen = load(), []

    def work():
        libc.set_name("feeder-worker-12345")
        with open(f"/proc/self/task/{threading.get_native_id()}/comm") as file:
            seen.extend([libc.get_name(), file.read().strip()])

    before = libc.get_name()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["feeder-worker-1"] * 2 and libc.get_name() == before


@linux
def test_timer_slack_and_mallopt_and_errors():
    libc = load()
    assert libc.set_timer_slack(1234) == 1234
    assert libc.set_timer_slack(0) > 0               # 0 is the default again
    if libc.is_glibc:
        assert libc.mallopt(module.M_MMAP_THRESHOLD, 1 << 20)
    with pytest.raises(OSError) as caught:
        libc.mlockall(0x80)
    assert caught.value.errno == 22


def test_elsewhere_there_is_none(monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert load() is None
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *args, **keys: object())       # a libc without any of it
    assert load() is None
