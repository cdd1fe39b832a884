"""Memory that is there before it is needed: locked, prefaulted, kept, and not searched by the collector.

Order matters: `tune_malloc`, then `Lock`, then `prefault`, all before the books exist.

`Lock` looks before it leaps. After mlockall(MCL_FUTURE) every new mapping counts against RLIMIT_MEMLOCK, and one
that is over it fails: malloc returns NULL, Python raises MemoryError in the middle of a book. So it compares first:

    not limited (CAP_IPC_LOCK, or unlimited)  and physical memory for the worst case    CURRENT | FUTURE
    not limited, but the worst case is more than what is free                           CURRENT | FUTURE | ONFAULT
    limited, and the worst case fits                                                    CURRENT | FUTURE
    limited, only what there is now fits                                                CURRENT
    limited, not even that                                                              nothing

The kernel counts address space (VmSize), not what is resident, with ONFAULT too. Locks are not inherited by fork.
"""

import errno
import gc
import math
import os
import sys

from feeder.clock import steady_ns
from feeder.host.facts import CAP_IPC_LOCK, Host
from feeder.host.libc import (M_ARENA_MAX, M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD, MCL_CURRENT, MCL_FUTURE,
                              MCL_ONFAULT)

try:
    import resource
except ImportError:                   # Windows
    resource = None

MIB = 1 << 20
HEADROOM_BYTES = 64 * MIB             # what no estimate foresees: name lookups' threads, the longest messages
COST = "memory may be paged out, which stalls for milliseconds"
STACK_MARGIN_BYTES = 8 * MIB          # a locked stack that may not grow ends the process by SIGSEGV
MMAP_THRESHOLD = 32 * MIB             # the most that glibc takes
KEEP_BYTES = (1 << 31) - 1            # mallopt takes an int
GARBAGE_LIMIT = 50_000                # container objects made and not freed before the collector looks at them
SMALL_BYTES, ARENA_BYTES = 512, 256 << 10       # CPython's allocator of small objects; arenas are 1 MiB since 3.10


def resident_bytes():
    """Return the resident set size; its peak where the host tells no more, 0 where it tells nothing."""
    found = _status("VmRSS")
    if found or resource is None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(key, host=Host()):
    """Bytes of a line of this process's status; 0 where there is none. Source: proc(5)."""
    return host.kib("proc/self/status", key) or 0


class Room:
    """What limits a lock, as the host tells it.

    Attributes: `limit` (RLIMIT_MEMLOCK in bytes; None: does not apply), `used` (address space now), `free` (physical
    memory that could still be had; None: unknown).
    """

    def __init__(self, host=None):
        host = host or Host()
        limit = host.lock_limit()
        self.limit = None if limit in (None, math.inf) or _may_lock(host) else limit
        self.used = _status("VmSize", host)
        rooms = [host.memory()[1]]
        group = host.memory_limit()                  # of a container or service
        if group is not None:
            folder = group.path.rpartition("/")[0]
            used = host.number(f"{folder}/memory.current") or host.number(f"{folder}/memory.usage_in_bytes") or 0
            rooms.append(max(0, group.bytes - used))
        self.free = min((room for room in rooms if room is not None), default=None)


def _may_lock(host):
    """True if RLIMIT_MEMLOCK does not count: CAP_IPC_LOCK, and that in the first user namespace, user_namespaces(7)."""
    return bool(host.has_capability(CAP_IPC_LOCK)) and (host.text("proc/self/uid_map") or "").split() == [
        "0", "0", "4294967295"]


def _size(count):
    return f"{count / MIB:,.0f} MiB"


def remedy(need):
    """What lifts the limit, for this interpreter."""
    return (f"one of: setcap cap_ipc_lock=+ep {os.path.realpath(sys.executable)}; LimitMEMLOCK=infinity in the systemd "
            f"unit; ulimit -l {-(-need // 1024)} (KiB) before the start; fewer instruments or snapshot levels")


class Lock:
    """Memory locking of this process. `take` once; `watch` now and then, where the limit applies."""

    def __init__(self, libc, room=None):
        self.libc = libc
        self.room = room or Room()
        self.flags = 0

    def take(self, more_bytes):
        """Lock, as far as that can never make an allocation fail.

        Args:    more_bytes: address space that the process will still take, at worst.
        Returns: (state, evidence): "on", "partly" or "failed", and a sentence.
        """
        room = self.room
        need = room.used + more_bytes + HEADROOM_BYTES
        flags, state, how = MCL_CURRENT | MCL_FUTURE, "on", "all memory, present and future"
        if room.limit is not None and need > room.limit:
            short = f"RLIMIT_MEMLOCK {_size(room.limit)} is below the worst case {_size(need)}"
            if room.used + STACK_MARGIN_BYTES > room.limit:
                return "failed", (f"not locked: {short}, and below what is in use, {_size(room.used)}; {COST}; "
                                  f"{remedy(need)}")
            flags, state = MCL_CURRENT, "partly"
            how = f"only what is there now: {short}; {remedy(need)}"
        elif room.free is not None and more_bytes > room.free:
            flags, state = flags | MCL_ONFAULT, "partly"
            how = (f"pages as they are touched (MCL_ONFAULT): the worst case is {_size(more_bytes)} more, "
                   f"free are {_size(room.free)}; fewer instruments or more memory")
        try:
            self.libc.mlockall(flags)
        except OSError as error:
            self._release()                   # part of it may be locked, and the rest would count
            return "failed", _lock_error(error.errno, flags, need)
        self.flags = flags
        locked = _status("VmLck")
        if not locked:
            return "failed", "mlockall succeeded, yet VmLck is 0: this kernel or sandbox only pretends to lock"
        return state, f"VmLck {_size(locked)}: {how}"

    def watch(self):
        """Return a sentence if growth came near the limit and was let go, else None.

        An estimate can be wrong. What is locked stays so; what is allocated from here on is not, and so cannot fail.
        """
        if self.room.limit is None or not self.flags & MCL_FUTURE:
            return None
        locked = _status("VmLck")
        if locked + HEADROOM_BYTES // 2 < self.room.limit:
            return None
        self.flags = MCL_CURRENT
        try:
            self.libc.mlockall(self.flags)    # without MCL_FUTURE: takes that back, mlockall(2)
        except OSError:
            self._release()
        return (f"VmLck {_size(locked)} came near RLIMIT_MEMLOCK {_size(self.room.limit)}: memory allocated from now on "
                f"is not locked; {remedy(2 * locked)}")

    def _release(self):
        self.flags = 0
        try:
            self.libc.munlockall()
        except OSError:
            pass


def _lock_error(code, flags, need):
    """One sentence for each errno of mlockall(2): what failed, what it costs, what helps."""
    if code == errno.EPERM:
        return f"mlockall: not permitted, RLIMIT_MEMLOCK is 0 and CAP_IPC_LOCK missing; {COST}; {remedy(need)}"
    if code == errno.ENOMEM:
        return f"mlockall: over RLIMIT_MEMLOCK, {_size(need)} are needed at worst; {COST}; {remedy(need)}"
    if code == errno.EAGAIN:
        return (f"mlockall: not all pages could be had, physical memory is short; {COST}; free memory, raise the "
                "container's memory limit, or configure fewer instruments")
    if code == errno.EINVAL and flags & MCL_ONFAULT:
        return (f"mlockall: this kernel is older than 4.4 and knows no MCL_ONFAULT; {COST}; a newer kernel, or memory "
                "for the worst case")
    if code == errno.ENOSYS:
        return f"mlockall: not in this kernel or sandbox; {COST}; run outside of it"
    return (f"mlockall: {os.strerror(code)} (errno {code}); {COST}; a seccomp profile may forbid it: allow mlockall "
            "there")


def tune_malloc(libc):
    """Have glibc keep what it got: no trimming, no private mappings below 32 MiB, one arena. Source: mallopt(3).

    One arena, because each thread's own reserves 64 MiB of address space, all of which a lock counts.
    """
    if not libc.is_glibc:
        return "skipped", "mallopt is glibc's, this is another C library"
    wanted = (("M_TRIM_THRESHOLD", M_TRIM_THRESHOLD, KEEP_BYTES), ("M_TOP_PAD", M_TOP_PAD, MIB),
              ("M_MMAP_THRESHOLD", M_MMAP_THRESHOLD, MMAP_THRESHOLD), ("M_ARENA_MAX", M_ARENA_MAX, 1))
    refused = [name for name, parameter, value in wanted if not libc.mallopt(parameter, value)]
    taken = ", ".join(f"{name} {value}" for name, _, value in wanted if name not in refused)
    if refused:
        return "partly", f"{taken or 'nothing'} taken; refused {', '.join(refused)}"
    return "on", taken


class Ballast:
    """Holds one small object in each arena of CPython's allocator, which gives an arena back only when it is empty."""

    def __init__(self):
        self.objects = []


def prefault(want_bytes, ballast, room=None):
    """Touch `want_bytes` of heap, half as small objects, half as large blocks; return (state, evidence).

    Without `tune_malloc` glibc gives the large half back at once. Never takes more than half of what is free.
    """
    room = room or Room()
    most = want_bytes
    if room.free is not None:
        most = min(most, room.free // 2)
    if most < MIB:
        return ("on", "nothing to touch") if want_bytes < MIB else ("failed", f"no room for {_size(want_bytes)}")
    before = resident_bytes()
    blocks = [bytes(SMALL_BYTES - 80) for _ in range(most // 2 // SMALL_BYTES)]     # its head, and what -X dev adds
    ballast.objects += blocks[::ARENA_BYTES // SMALL_BYTES]
    del blocks
    block = bytearray(min(most // 2, MMAP_THRESHOLD - MIB))
    blocks = [block] + [bytearray(len(block)) for _ in range(most // 2 // len(block) - 1)]
    for block in blocks:
        block[::4096] = b"\1" * len(block[::4096])        # calloc's pages are not there before they are written
    del block, blocks
    kept = max(0, resident_bytes() - before)
    state = "on" if most == want_bytes else "partly"
    return state, f"{_size(most)} touched, {_size(kept)} of it stay" + (
        "" if state == "on" else f"; {_size(want_bytes)} were wanted, there is no room for more")


class Collector:
    """The collector's policy: what is there at start and after warm-up is frozen, the rest is looked at seldom.

    Reference counts free nearly everything; only cycles wait for the collector, at most GARBAGE_LIMIT objects of them
    between two looks. Each look is timed: `collections`, `worst_ns`, `total_ns`.
    """

    def __init__(self):
        self.collections = self.worst_ns = self.total_ns = 0
        self.found = 0
        self._started_ns = 0

    def start(self):
        self._threshold = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_LIMIT, 5, 5)
        gc.callbacks.append(self._watch)
        return "on", f"{gc.get_freeze_count():,} objects frozen, at most {GARBAGE_LIMIT:,} between two looks"

    def warm(self):
        """Freeze what came since the start; without a collection, which would stall."""
        if self._watch in gc.callbacks:
            gc.freeze()

    def close(self):
        """Back to Python's own ways, for whoever runs several times in one process."""
        if self._watch in gc.callbacks:
            gc.callbacks.remove(self._watch)
            gc.unfreeze()
            gc.set_threshold(*self._threshold)

    def _watch(self, phase, info):
        now_ns = steady_ns()
        if phase == "start":
            self._started_ns = now_ns
            return
        took_ns = now_ns - self._started_ns
        self.collections += 1
        self.found += info["collected"]
        self.total_ns += took_ns
        self.worst_ns = max(self.worst_ns, took_ns)

    def summary(self):
        return {"collections": self.collections, "objects": self.found, "pause_ns_max": self.worst_ns,
                "pause_ns_total": self.total_ns}
