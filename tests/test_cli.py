"""The command line up to the point where a command starts: help, versions, defaults, errors, exit codes."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from feeder import __version__, cli
from feeder.errors import CaptureError, ConfigError, FeederError, HostError, VenueError

ROOT = Path(__file__).parent.parent


def feeder(*words, **more):
    """Run `python3 -m feeder WORDS` as a person would; return (exit code, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-m", "feeder", *words], cwd=str(ROOT), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, **more)
    return done.returncode, done.stdout, done.stderr


def exits(capsys, *words):
    """Call main where argparse ends it; return (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    return (caught.value.code, *capsys.readouterr())


@pytest.fixture
def run(monkeypatch):
    """Stands in for the command `run`; notes what it was started with, ends as `run.outcome` says."""
    found = types.ModuleType("feeder.run")
    found.started = []
    found.outcome = 0

    def configure(parser):
        parser.add_argument("--seconds", type=float)
        parser.add_argument("--config")

    def main(args):
        found.started.append(args)
        if isinstance(found.outcome, BaseException):
            raise found.outcome
        return found.outcome

    found.configure, found.main = configure, main
    monkeypatch.setitem(sys.modules, "feeder.run", found)
    return found


def test_version():
    assert feeder("-V") == feeder("--version") == (0, f"feeder {__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_help_names_every_command_and_has_an_example(capsys):
    for words in (["--help"], ["-h"]):
        code, out, err = exits(capsys, *words)
        assert code == 0 and err == "" and "example: python3 -m feeder " in out and "exit codes:" in out
        for name in cli.COMMANDS:
            assert re.search(rf"^    {name}\s", out, re.MULTILINE), name


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_commands_help_has_an_example_that_parses(name, capsys):
    code, out, err = exits(capsys, name, "--help")
    assert code == 0 and err == ""
    assert f"usage: python3 -m feeder {name}" in out
    examples = re.findall(rf"python3 -m feeder ({name}\b[^\n]*)", out.partition("example")[2])
    assert examples, "no example"
    for example in examples:
        words = example.split("   ")[0].split()
        assert cli.build_parser(name).parse_args(words).command == name
    assert len(out.splitlines()[0]) < 100 and re.search(r"^\w[^\n]*\.$", out, re.MULTILINE), "no description"


@pytest.mark.parametrize("words", [["nonsense"], ["nonsense", "--help"], ["Run"], ["lis"], ["-x", "listen"],
                                   ["--nonsense"], ["listen", "--nonsense"], ["listen", "more"],
                                   ["listen", "--port", "x"],
                                   ["listen", "--port", "0"], ["replay"]])
def test_wrong_usage_is_told_in_one_sentence_with_exit_code_2(words, capsys, run):
    code, out, err = exits(capsys, *words)
    assert code == 2 and out == "" and run.started == []
    *usage, sentence = err.splitlines()
    assert usage[0].startswith("usage: python3 -m feeder")
    assert re.match(r"python3 -m feeder( \S+)?: error: \S", sentence)


def test_wrong_usage_from_outside():
    code, out, err = feeder("nonsense")
    assert (code, out) == (2, "") and "'nonsense'" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("words, named", [
    (["replay", "no/such/file.jsonl"], "no/such/file.jsonl"),
    (["replay", "--speed", "0x", "x"], "--speed"),
    (["listen", "--print", "--report", "-"], "--report"),
    (["listen", "--report", "no/such/folder/x.json"], "no/such/folder/x.json"),
    (["listen", "--interface", "nonsense0", "--seconds", "1"], "nonsense0"),
    (["check-config", "no/such/folder"], "no/such/folder"),
    (["check-config", "--venue", "nonsense"], "nonsense"),
    (["run", "--config", "no/such/folder"], "no/such/folder"),
])
def test_errors_of_the_operator_are_one_sentence_with_exit_code_2(words, named, capsys):
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and named in err and "Traceback" not in err


@pytest.mark.parametrize("words, seconds", [([], None), (["--seconds", "4"], 4.0), (["run"], None),
                                            (["run", "--seconds", "4"], 4.0)])
def test_without_a_command_it_runs(run, words, seconds):
    assert cli.main(words) == 0
    args, = run.started
    assert args.command == "run" and args.seconds == seconds and args.config is None


def test_main_takes_the_arguments_of_the_process(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["feeder", "--seconds", "2"])
    assert cli.main() == 0 and run.started[0].seconds == 2.0


@pytest.mark.parametrize("error, code", [(ConfigError("a.json: x.y: found 1, expected 2"), 2), (HostError("no"), 2),
                                         (CaptureError("no"), 2), (VenueError("no"), 1), (FeederError("no"), 1)])
def test_errors_that_reach_the_top(run, capsys, error, code):
    run.outcome = error
    assert cli.main([]) == code
    assert capsys.readouterr() == ("", f"feeder: {error}\n")


def test_exit_codes_pass_through_and_an_interrupt_is_130(run):
    run.outcome = 3
    assert cli.main([]) == 3
    run.outcome = KeyboardInterrupt()
    assert cli.main([]) == 130


def test_a_fault_of_ours_is_not_dressed_up(run):
    run.outcome = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main([])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close differently")
@pytest.mark.parametrize("words", [["check-config", "--keys"], ["check-config"]])
def test_a_reader_that_went_away_is_no_fault(words):
    """`feeder check-config --keys | head -1`. Output of less than a buffer is written only at the end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    child = subprocess.Popen([sys.executable, "-m", "feeder", *words], cwd=str(ROOT), env=environment,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    with child.stderr:
        err = child.stderr.read()
    assert (child.wait(60), err) == (0, b"")
