"""How much memory this process holds."""

try:
    import resource
except ImportError:                   # Windows
    resource = None
import sys


def resident_bytes():
    """Return the resident set size; its peak where the host tells no more, 0 where it tells nothing. Source: proc(5)."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmRSS:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
