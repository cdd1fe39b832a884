"""`make bench-compare`: measure two sides in turn, then compare them (compare_benchmarks.py).

    host       `feeder bench --host baseline` against `--host tuned`
    commits    the last commit before today, or --base REV, against the files that are here

Sides take turns, A B A B, bench by bench, so that a noisy minute meets both alike. The earlier commit is checked out
in a temporary git worktree, which is removed at the end, on Ctrl-C and on SIGTERM too. A bench that one side does not
have, or that fails there, is left out for both, with the reason. Nothing here needs a network. Results stay in
benchmarks/compare/, the page included.
"""

import argparse
import contextlib
import datetime
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare_benchmarks
from benchmark_results import RUNS

ROOT = Path(__file__).resolve().parent.parent
BENCHES = {"host": "wire ring pipeline", "commits": "decode book packet frame pipeline ring wire"}
BENCH_SECONDS = 600              # one bench of one side; more means that it hangs
STOP_SECONDS = 10                # to end its own processes after Ctrl-C


class DriverError(Exception):
    """A sentence for the person who asked."""


class Side:
    """What is measured: a tree with a feeder in it, and words that `feeder bench` gets besides."""

    def __init__(self, name, tree, words=()):
        self.name, self.tree, self.words = name, Path(tree), words

    def bench(self, name, path, words):
        """Run one bench; return "", or why there is no result."""
        captures = os.environ.get("FEEDER_CAPTURES") or ROOT.parent / "shared" / "data"
        environment = dict(os.environ, PYTHONPATH=str(self.tree), FEEDER_CAPTURES=os.path.abspath(captures))
        command = [sys.executable, "-m", "feeder", "bench", name, *self.words, *words, "--json", str(path)]
        child = subprocess.Popen(command, cwd=str(self.tree), env=environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
                                 start_new_session=True)      # so that Ctrl-C reaches it once, from here
        try:
            told = child.communicate(timeout=BENCH_SECONDS)[1].strip().splitlines()
        except BaseException as error:
            stop(child)
            if isinstance(error, subprocess.TimeoutExpired):
                return f"no result within {BENCH_SECONDS} s"
            raise
        if child.returncode == 0 and path.exists():
            return ""
        return told[-1] if told else f"exit code {child.returncode}"


def stop(child):
    """As Ctrl-C would: a bench ends its own processes then."""
    child.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    try:
        child.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def measure(sides, folder, names, rounds, words):
    """Fill folder/SIDE with results; return {bench that was left out: why}."""
    for side in sides:
        (folder / side.name).mkdir(parents=True, exist_ok=True)
        for old in (folder / side.name).glob("*-round-*.json"):
            old.unlink()
    left_out = {}
    for number in range(1, rounds + 1):
        for name in names:
            for side in sides:
                if name in left_out:
                    break
                say(f"round {number} of {rounds}: {name}, {side.name}", end="")
                start_s = time.monotonic()
                why = side.bench(name, folder / side.name / f"{name}-round-{number}.json", words)
                say(f" ({time.monotonic() - start_s:.0f} s)")
                if why:
                    left_out[name] = f"{side.name}: {why}"
                    say(f"{name} is left out; {left_out[name]}")
    for name in left_out:
        for path in folder.glob(f"*/{name}-round-*.json"):
            path.unlink()
    return left_out


def compare(sides, folder, names, left_out):
    if len(left_out) == len(names):
        raise DriverError("nothing to compare, every bench was left out")
    page = folder / "comparison.html"
    code = compare_benchmarks.main([*(str(folder / side.name) for side in sides), "--html", str(page),
                                    "--json", str(folder / "comparison.json")])
    print(f"page: {page}\n", flush=True)
    return code


def compare_hosts(args):
    """Exit code 0: what tuning costs is no regression."""
    sides = [Side(name, ROOT, ("--host", name)) for name in ("baseline", "tuned")]
    folder, names = Path(args.out) / "host", (args.benches or BENCHES["host"]).split()
    code = compare(sides, folder, names, measure(sides, folder, names, args.rounds, args.words))
    return 0 if code == 1 else code


def compare_commits(args):
    revision = base_revision(args.base)
    if not revision:
        say(f"no commit before today ({datetime.date.today()}) in this history, so there is nothing to compare with; "
            "name one: make bench-compare BASE=REV")
        return 0
    folder, names = Path(args.out) / "commits", (args.benches or BENCHES["commits"]).split()
    changed = ", and what is changed here since" if git("status", "--porcelain", "--", "feeder") else ""
    say(f"base is {git('log', '-1', '--format=%h of %cd, %s', '--date=short', revision)}\n"
        f"new is {git('rev-parse', '--short', 'HEAD')}{changed}")
    with worktree(revision) as tree:
        sides = [Side(git("rev-parse", "--short", revision), tree), Side("here", ROOT)]
        left_out = measure(sides, folder, names, args.rounds, args.words)
    return compare(sides, folder, names, left_out)


# -- git -------------------------------------------------------------------------------------------------------


def git(*words):
    """Return what a git command prints."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    except OSError as error:
        raise DriverError(f"git: {error.strerror}") from None
    if done.returncode:
        raise DriverError(f"git {' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()


def base_revision(asked):
    """Return the commit to compare with, or "" where the history has none before today."""
    if not asked:
        return git("rev-list", "-1", f"--before={datetime.date.today()}T00:00:00", "HEAD")
    if asked.startswith("-"):
        raise DriverError(f"BASE={asked} is no commit")
    return git("rev-parse", "--verify", asked + "^{commit}")


@contextlib.contextmanager
def worktree(revision):
    """Check a commit out, beside this tree and without touching it; remove it again, whatever happens."""
    folder = tempfile.mkdtemp(prefix="feeder-bench-")
    tree = os.path.join(folder, "tree")
    try:
        git("worktree", "add", "--quiet", "--detach", tree, revision)
        yield tree
    finally:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)      # a second Ctrl-C must not leave it behind
        try:
            with contextlib.suppress(DriverError):                 # it was never added: the error says so already
                git("worktree", "remove", "--force", tree)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, before)


def say(text, end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


def main(words=None):
    parser = argparse.ArgumentParser(
        description="Measure two sides in turn and compare them.", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python3 tools/bench_compare.py commits --base HEAD~3 --benches 'pipeline ring'\n"
               "exit codes: 0 no regression, 1 a figure is worse than at the earlier commit, 2 nothing to compare")
    parser.add_argument("what", nargs="*", metavar="host|commits", help="default: both")
    parser.add_argument("--base", metavar="REV", help="for commits; default: the last one before today")
    parser.add_argument("--benches", metavar="NAMES", help="separated by blanks; default: "
                        + "; ".join(f"{what}: {names}" for what, names in BENCHES.items()))
    parser.add_argument("--rounds", type=int, default=RUNS, help="of each side; default %(default)s")
    parser.add_argument("--quick", dest="words", action="store_const", const=("--quick",), default=(),
                        help="few messages: does it run; says nothing about speed")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "compare"), metavar="DIR",
                        help="default: %(default)s")
    args = parser.parse_args(words)
    jobs = {"host": compare_hosts, "commits": compare_commits}
    for what in args.what:
        if what not in jobs:
            parser.error(f"{what!r} is neither host nor commits")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    codes = []
    for what in args.what or jobs:
        try:
            codes.append(jobs[what](args))
        except DriverError as error:
            say(f"bench_compare: {what}: {error}")
            codes.append(2)
    return max(codes)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
