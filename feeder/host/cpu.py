"""On which processors the threads of this process run, and how the kernel ranks them.

The thread that publishes is pinned to one core; every other thread first calls `enter`, which gives it its name
and keeps it off that core. A thread inherits the mask of the one that made it, so without `enter` all would
crowd on the pinned core.

What was set is read back: the kernel quietly drops cores that a container's cpuset does not have. Only when it went
wrong, /sys and the kernel are asked why, so that the sentence tells what to change.
"""

import errno
import os

from feeder.errors import HostError
from feeder.host.facts import Host, cpus_text, parse_cpus

_helpers = (None, None, False)           # libc, cores, names: for threads that are still to come


def arrange(libc, cores, names):
    """Say what `enter` does in this process: on which cores (None: as inherited), and whether threads get names."""
    global _helpers
    _helpers = libc, cores, names


def enter(name):
    """What a helper thread calls first. Never raises: a thread without its name does its work, too."""
    libc, cores, names = _helpers
    try:
        if libc is not None and names:
            libc.set_name(name)
        if libc is not None and cores:
            libc.set_affinity(cores)
    except OSError:
        pass


def pin(libc, cores, host=None):
    """Pin the calling thread to `cores`; return the cores read back. Raises HostError, the mask is then as before."""
    before = libc.get_affinity()
    try:
        libc.set_affinity(cores)
        found, code = libc.get_affinity(), 0
    except OSError as error:
        found, code = before, error.errno
    if found == sorted(cores):
        return found
    try:
        raise HostError(_why_not(libc, cores, code, found, host or Host()))
    finally:
        try:
            libc.set_affinity(before)
        except OSError:
            pass


def _why_not(libc, cores, code, found, host):
    wanted = set(cores)
    present, online = parse_cpus(host.text("sys/devices/system/cpu/present")), host.online()
    if present and wanted - set(present):
        return f"core {cpus_text(wanted - set(present))} does not exist, this machine has {cpus_text(present)}"
    if online and wanted - set(online):
        core = min(wanted - set(online))
        return (f"core {cpus_text(wanted - set(online))} is offline, online are {cpus_text(online)}; "
                f"as root: echo 1 > /sys/devices/system/cpu/cpu{core}/online")
    if code not in (0, errno.EINVAL):
        return f"the kernel refused core {cpus_text(cores)}: {os.strerror(code)}; a seccomp filter may forbid it"
    try:
        libc.set_affinity(range(max(present or cores) + 1))        # all: what is left of them is the cpuset
        allowed = libc.get_affinity()
    except OSError:
        allowed = found
    if wanted - set(allowed):
        return (f"core {cpus_text(wanted - set(allowed))} is outside the cpuset of this container or service, which "
                f"has {cpus_text(allowed)}; choose one of these or change --cpuset-cpus or AllowedCPUs=")
    return f"asked for core {cpus_text(cores)}, the kernel gave {cpus_text(found)}"


def set_fifo(priority):
    """Put the calling thread under SCHED_FIFO. Raises HostError. Threads and processes it makes stay ordinary.

    Source: sched(7).
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        found = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, os.sched_getparam(0).sched_priority
    except PermissionError:
        raise HostError("not permitted: needs CAP_SYS_NICE, or LimitRTPRIO= of the systemd unit, or ulimit -r "
                        f"of at least {priority}") from None
    except OSError as error:
        raise HostError(f"the kernel refused SCHED_FIFO: {error.strerror}") from None
    if found != (os.SCHED_FIFO, priority):
        raise HostError(f"asked for SCHED_FIFO {priority}, the kernel has policy {found[0]} priority {found[1]}")


def set_ordinary():
    """Back to the ordinary scheduling class."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def set_nice(value):
    """Set the nice value, of this thread and those it makes. Raises HostError. Source: setpriority(2)."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except PermissionError:
        raise HostError(f"not permitted: below the present {os.getpriority(os.PRIO_PROCESS, 0)} needs CAP_SYS_NICE, "
                        f"or LimitNICE={value} in the systemd unit") from None
    found = os.getpriority(os.PRIO_PROCESS, 0)
    if found != value:
        raise HostError(f"asked for {value}, the kernel has {found}; the limit is RLIMIT_NICE")
