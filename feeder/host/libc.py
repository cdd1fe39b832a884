"""The C library by ctypes: every foreign function is declared here, once, with the manual page it follows.

`load()` returns None where there is no Linux; what takes a Libc can be given a fake with the same methods. Failures
are OSError with the errno; sentences are made of it by those who know what was to be gained.
"""

import ctypes
import os
import sys

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4                      # mlockall(2); ONFAULT since Linux 4.4
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8      # mallopt(3)
PR_SET_NAME, PR_GET_NAME, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 15, 16, 29, 30      # prctl(2)
NAME_BYTES = 15                                                     # of a thread; pthread_setname_np(3)

CPU_SETSIZE = 1024                       # bits of glibc's cpu_set_t; CPU_SET(3) tells how to go beyond
MAX_CPUS = 1 << 16
WORD = ctypes.c_ulong                    # __cpu_mask
WORD_BITS = 8 * ctypes.sizeof(WORD)


def cpu_set(cores, bits=CPU_SETSIZE):
    """Return a cpu_set_t of at least `bits` and as large as `cores` need: CPU_ZERO, then CPU_SET for each."""
    bits = max([bits] + [core + 1 for core in cores])
    mask = (WORD * (-(-bits // WORD_BITS)))()
    for core in cores:
        mask[core // WORD_BITS] |= 1 << core % WORD_BITS
    return mask


def cores_of(mask):
    """Return the sorted cores of a cpu_set_t: CPU_ISSET for each bit."""
    return [at * WORD_BITS + bit for at, word in enumerate(mask) for bit in range(WORD_BITS) if word >> bit & 1]


class Libc:
    def __init__(self):
        dll = ctypes.CDLL(None, use_errno=True)
        self._mlockall = self._declare(dll.mlockall, ctypes.c_int)
        self._munlockall = self._declare(dll.munlockall)
        self._prctl = self._declare(dll.prctl, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong,
                                    ctypes.c_ulong)
        self._pthread_self = dll.pthread_self
        self._pthread_self.restype, self._pthread_self.argtypes = ctypes.c_ulong, ()
        affinity = ctypes.c_ulong, ctypes.c_size_t, ctypes.POINTER(WORD)       # pthread_setaffinity_np(3)
        self._setaffinity = self._declare(dll.pthread_setaffinity_np, *affinity)
        self._getaffinity = self._declare(dll.pthread_getaffinity_np, *affinity)
        self.is_glibc = hasattr(dll, "gnu_get_libc_version")
        self._mallopt = self._declare(dll.mallopt, ctypes.c_int, ctypes.c_int) if self.is_glibc else None

    @staticmethod
    def _declare(function, *types):
        function.restype, function.argtypes = ctypes.c_int, types
        return function

    @staticmethod
    def _checked(result):
        if result == -1:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def mlockall(self, flags):
        self._checked(self._mlockall(flags))

    def munlockall(self):
        self._checked(self._munlockall())

    def mallopt(self, parameter, value):
        """Return True if malloc took it. Only where `is_glibc`."""
        return self._mallopt(parameter, value) == 1

    def set_name(self, name):
        """Name the calling thread; in the main thread that is the process's name for ps, too."""
        text = ctypes.create_string_buffer(name.encode("ascii", "replace")[:NAME_BYTES])
        self._checked(self._prctl(PR_SET_NAME, ctypes.addressof(text), 0, 0, 0))

    def get_name(self):
        """Return the calling thread's name."""
        text = ctypes.create_string_buffer(NAME_BYTES + 1)
        self._checked(self._prctl(PR_GET_NAME, ctypes.addressof(text), 0, 0, 0))
        return text.value.decode("utf-8", "replace")

    def set_timer_slack(self, nanoseconds):
        """Set that of the calling thread, return what it is now."""
        self._checked(self._prctl(PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0))
        return self._checked(self._prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0))

    # The two below return their errno instead of setting it, as all of pthreads do.

    def set_affinity(self, cores):
        """Let the calling thread run on these cores only. The kernel drops those it may not have: read back."""
        mask = cpu_set(cores)
        code = self._setaffinity(self._pthread_self(), ctypes.sizeof(mask), mask)
        if code:
            raise OSError(code, os.strerror(code))

    def get_affinity(self):
        """Return the sorted cores that the calling thread may run on."""
        bits = CPU_SETSIZE
        while True:
            mask = cpu_set((), bits)
            code = self._getaffinity(self._pthread_self(), ctypes.sizeof(mask), mask)
            if not code:
                return cores_of(mask)
            if code != 22 or bits >= MAX_CPUS:         # EINVAL: the kernel's own mask is larger
                raise OSError(code, os.strerror(code))
            bits *= 2


def load():
    """Return a Libc, or None where it is not Linux or lacks what is needed."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return Libc()
    except (OSError, AttributeError):    # static build; a libc without pthread_setaffinity_np
        return None
