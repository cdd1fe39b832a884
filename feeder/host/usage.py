"""What the kernel counted for this process and for the calling thread: page faults and context switches."""

try:
    import resource
except ImportError:                   # Windows
    resource = None

FIELDS = (("minor_faults", "ru_minflt"), ("major_faults", "ru_majflt"),
          ("voluntary_switches", "ru_nvcsw"), ("involuntary_switches", "ru_nivcsw"))


class Usage:
    """Counts since `mark`. Source: getrusage(2); RUSAGE_THREAD is Linux's, and speaks of whoever calls."""

    def __init__(self, now_ns):
        self.mark(now_ns)

    def mark(self, now_ns):
        self.marked_ns = now_ns
        self._at = self._read()

    @staticmethod
    def _read():
        if resource is None:
            return {}
        who = {"process": resource.RUSAGE_SELF}
        if hasattr(resource, "RUSAGE_THREAD"):
            who["thread"] = resource.RUSAGE_THREAD
        found = {name: resource.getrusage(each) for name, each in who.items()}
        return {name: {field: getattr(row, source) for field, source in FIELDS} for name, row in found.items()}

    def since(self, now_ns):
        """Return {"seconds": ..., "process": {field: count}, "thread": {...}, "per_minute": {field: of the thread}}."""
        seconds = (now_ns - self.marked_ns) / 1e9
        found = {name: {field: count - self._at[name][field] for field, count in row.items()}
                 for name, row in self._read().items()}
        of_loop = found.get("thread") or found.get("process") or {}
        minutes = max(seconds, 1e-9) / 60
        return {"seconds": round(seconds, 1), **found,
                "per_minute": {field: round(count / minutes, 1) for field, count in of_loop.items()}}
