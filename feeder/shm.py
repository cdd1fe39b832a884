"""Memory that several processes share, and whether a process is still there.

    parent: create(bytes) ─▶ Segment ─ fd, inherited (Popen's pass_fds) ─▶ child: Segment(fd)

A segment has no name that could be left behind: on Linux it is a memfd (memfd_create(2)), elsewhere a file that is
unlinked as soon as it is open. Whoever dies however, the last one that held it takes it along. The only name there
ever is stands for the microseconds between open and unlink; `sweep` removes what a kill in them has left.
`multiprocessing.shared_memory` was not taken: its names outlive a kill -9, and its resource tracker, a process more,
unlinks segments of others and warns about them (Python 3.8 to 3.12).

`for_readers` is a descriptor for those who may look at a segment and nothing else: the kernel refuses them a mapping
that can be written, and everybody a cut that would kill who reads behind it (SIGBUS).
"""

import errno
import mmap
import os
import tempfile

PREFIX = "feeder-ring-"
F_SEAL_FUTURE_WRITE = 0x10               # memfd_create(2), since 5.1; not in the fcntl module before Python 3.13
POPULATE = getattr(mmap, "MAP_POPULATE", 0x8000 if hasattr(os, "memfd_create") else 0)      # named since 3.10; mmap(2)


class Segment:
    """A mapping of the file `fd`, which it owns. All its pages are there before the first message."""

    def __init__(self, fd, is_writable=True):
        self.fd = fd
        size = os.fstat(fd).st_size
        if hasattr(mmap, "MAP_SHARED"):
            rights = mmap.PROT_READ | mmap.PROT_WRITE if is_writable else mmap.PROT_READ
            self.buffer = mmap.mmap(fd, size, mmap.MAP_SHARED | POPULATE, rights)
        else:
            self.buffer = mmap.mmap(fd, size, access=mmap.ACCESS_WRITE if is_writable else mmap.ACCESS_READ)

    def close(self):
        self.buffer.close()
        os.close(self.fd)


def create(size):
    """Return a zeroed Segment of `size` bytes."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("feeder-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
        sweep(folder)
        path = os.path.join(folder, f"{PREFIX}{os.getpid()}-{os.urandom(8).hex()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        os.unlink(path)
    os.ftruncate(fd, size)
    return Segment(fd)


def for_readers(segment):
    """Return a read-only descriptor of a segment, which can be neither cut nor mapped for writing from now on.

    Linux only. Raises OSError. Before 5.1 whoever has our uid may still open it for writing by /proc.
    """
    import fcntl                         # not on Windows
    fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    try:
        fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    except OSError:
        pass
    return os.open(f"/proc/self/fd/{segment.fd}", os.O_RDONLY | os.O_CLOEXEC)


def from_writer(fd):
    """Return the Segment, not to be written, of a descriptor that came from another process; close it where it fails.

    Raises OSError; also for one that could be cut under our feet.
    """
    import fcntl
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise PermissionError(errno.EPERM, "the segment is not sealed against being cut")
        return Segment(fd, is_writable=False)
    except (OSError, ValueError) as error:       # ValueError: an empty file cannot be mapped
        os.close(fd)
        raise OSError(errno.EINVAL, f"not a segment of a writer: {error}") from None


def sweep(folder):
    """Remove segments in a folder whose makers are gone."""
    for name in os.listdir(folder):
        pid = name[len(PREFIX):].partition("-")[0]
        if name.startswith(PREFIX) and pid.isdigit() and not is_alive(int(pid), 0):
            try:
                os.unlink(os.path.join(folder, name))
            except OSError:
                pass                     # another one sweeps, too, or it is not ours


def start_of(pid):
    """Return when a process started, in clock ticks since boot; 0 where the host does not tell; None if it is gone.

    With the pid it names a process for good: pids come again. Source: proc(5), /proc/pid/stat, fields 3 and 22.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in b"ZX" else int(fields[19])
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return None
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0


def is_alive(pid, start):
    """Return True while the process of this pid and start (0: any) runs; a zombie does not."""
    now = start_of(pid)
    return now is not None and (now == start or not start or not now)


def identity():
    """Return (pid, start) of this process, for the head of a segment."""
    return os.getpid(), start_of(os.getpid()) or 0
