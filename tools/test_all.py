"""Run the tests on every supported Python this machine offers: on PATH, or installed by pyenv.

Each interpreter gets a virtual environment of its own, `.venv-3.x`, with pytest in it; it is kept for the next time.
What is not here is skipped with a message. Words on the command line are handed to pytest.

example: python3 tools/test_all.py tests/test_packet.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


def works(python, version):
    """True if `python` runs and is that version; pyenv's shims are there for versions that are not."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(python), "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def find(version):
    """Return the interpreter to use, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, shutil.which("python" + version), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    return next((found for found in candidates if found and works(found, version)), None)


def prepare(python, version):
    """Return the python of a virtual environment that has pytest; made now where there is none."""
    home = ROOT / f".venv-{version}"
    tester = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not works(tester, version):
        subprocess.run([str(python), "-m", "venv", "--clear", str(home)], check=True)
    if subprocess.run([str(tester), "-c", "import pytest"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([str(tester), "-m", "pip", "install", "-q", "--disable-pip-version-check", "pytest"], check=True)
    return tester


def main(words):
    failed, tested = [], 0
    for version in VERSIONS:
        python = find(version)
        if python is None:
            print(f"Python {version}: skipped, neither on PATH nor in pyenv", flush=True)
            continue
        print(f"Python {version}: {python}", flush=True)
        try:
            tester = prepare(python, version)
        except subprocess.CalledProcessError as error:
            print(f"Python {version}: no environment with pytest could be made ({error})", flush=True)
            failed.append(version)
            continue
        tested += 1
        if subprocess.run([str(tester), "-X", "dev", "-W", "error", "-m", "pytest", *words], cwd=str(ROOT)).returncode:
            failed.append(version)
    print(f"{tested} interpreters tested, failed: {', '.join(failed) or 'none'}")
    return 1 if failed or not tested else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
