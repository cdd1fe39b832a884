"""Run the quick tests in two lanes at once: what mostly waits, for venues and processes, beside what mostly computes.

On two processors that takes little more than half as long as one after the other. The second lane's output follows the
first's. With one processor, or words for pytest, there is one lane.

example: python3 tools/test_quick.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAITING = ("test_ingest", "test_line", "test_listener", "test_relay", "test_run", "test_supervise", "test_twin_*")


def main(words):
    pytest = [sys.executable, "-m", "pytest", *words]
    waiting = sorted(path.relative_to(ROOT) for name in WAITING for path in (ROOT / "tests").glob(name + ".py"))
    if words or (os.cpu_count() or 1) < 2:
        return subprocess.run(pytest, cwd=str(ROOT)).returncode
    with tempfile.TemporaryFile() as kept:
        lanes = [subprocess.Popen([*pytest, *map(str, waiting)], cwd=str(ROOT)),
                 subprocess.Popen([*pytest, *(f"--ignore={path}" for path in waiting)], cwd=str(ROOT), stdout=kept,
                                  stderr=subprocess.STDOUT)]
        try:
            codes = [lane.wait() for lane in lanes]
        except KeyboardInterrupt:                  # it went to the lanes, too
            codes = [lane.wait() for lane in lanes]
        kept.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(kept.read())
        sys.stdout.buffer.flush()
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
