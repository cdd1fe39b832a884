"""Run the quick tests in two lanes at once: what mostly waits, for venues and processes, beside what mostly computes.

On two processors that takes little more than half as long as one after the other. Progress of both is shown as it comes, what else
a lane says when it has ended; a last line adds up both. With one processor, or words for pytest, there is one lane.

example: python3 tools/test_quick.py
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).resolve().parent.parent
WAITING = ("test_ingest", "test_line", "test_listener", "test_relay", "test_run", "test_supervise", "test_twin_*")
PROGRESS = re.compile(r"[.sxXFE]+ *(\[ *[0-9]+%\])?\n")


def main(words):
    pytest = [sys.executable, "-m", "pytest", *words]
    waiting = sorted(path.relative_to(ROOT) for name in WAITING for path in (ROOT / "tests").glob(name + ".py"))
    if words or (os.cpu_count() or 1) < 2:
        return subprocess.run(pytest, cwd=str(ROOT)).returncode
    start = time.monotonic()
    lanes = [Lane([*pytest, *map(str, waiting)]), Lane([*pytest, *(f"--ignore={path}" for path in waiting)])]
    try:
        for lane in lanes:
            lane.join()
    except KeyboardInterrupt:                          # it went to the lanes, too
        for lane in lanes:
            lane.join()
    counts = sum((lane.counts() for lane in lanes), Counter())
    print(", ".join(f"{count} {what}" for what, count in counts.items()), f"in {time.monotonic() - start:.2f}s")
    return max((lane.code for lane in lanes), key=abs)


class Lane(Thread):
    """One pytest."""

    def __init__(self, command):
        super().__init__()
        self.lines = []
        self.code = None
        self.process = subprocess.Popen(command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.start()

    def run(self):
        for line in self.process.stdout:
            if PROGRESS.fullmatch(line):
                sys.stdout.write(line)
                sys.stdout.flush()
            else:
                self.lines.append(line)
        self.code = self.process.wait()
        self.process.stdout.close()
        sys.stdout.write("".join(self.lines))
        sys.stdout.flush()

    def counts(self):
        """Return {"passed": 1234, "failed": 1 ...} of pytest's closing line."""
        closing = [line for line in self.lines if re.search(" in [0-9.]+s", line)] or [""]
        found = re.findall("([0-9]+) ([a-z]+)", closing[-1].partition(" in ")[0])
        return Counter({what: int(count) for count, what in found})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
