import io
import logging
import os
import subprocess
import sys

import pytest

from feeder import clock, log
from feeder.errors import ConfigError, HostError

LOGGER = logging.getLogger("feeder.test")
ROOT = os.path.join(os.path.dirname(__file__), os.pardir)


@pytest.fixture(autouse=True)
def closed_after(monkeypatch):
    monkeypatch.delenv("FEEDER_LOG", raising=False)
    yield
    log.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "feeder.log"


def lines(path):
    return path.read_text("utf-8").splitlines()


# -- setup and close


def test_lines_carry_time_level_name_and_text(path):
    log.setup(path)
    LOGGER.info("hello %s", "世界")
    LOGGER.debug("not kept")
    assert log.path() == str(path)
    log.close()
    (line,) = lines(path)
    stamp, level, rest = line.split(None, 2)
    assert stamp.endswith("Z") and len(stamp) == len("2026-01-01T00:00:00.000000Z")
    assert (level, rest) == ("INFO", "feeder.test: hello 世界")


def test_nothing_on_the_terminal(tmp_path):
    program = ("import logging\n"
               "from feeder import log\n"
               "line = logging.getLogger('feeder.x').critical\n"
               "line('before'); log.setup(''); line('no file')\n"
               "log.setup('a.log'); line('in it'); log.close(); line('after')\n"
               "log.close(); print(log.path() == '')\n")
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", program], cwd=tmp_path, timeout=60,
                          env=dict(os.environ, PYTHONPATH=os.path.abspath(ROOT)), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert len(lines(tmp_path / "a.log")) == 1


def test_level_from_configuration_and_environment(path):
    log.setup(path, "warning")
    LOGGER.info("no")
    log.setup(path, "warning", environ={"FEEDER_LOG": "DEBUG"})
    LOGGER.debug("yes")
    log.close()
    assert len(lines(path)) == 1


@pytest.mark.parametrize("level, environ, part", [
    ("loud", {}, "log.level: found 'loud', expected one of debug, info, warning, error"),
    ("info", {"FEEDER_LOG": "9"}, "FEEDER_LOG: found '9'")])
def test_wrong_level(path, level, environ, part):
    with pytest.raises(ConfigError, match=part):
        log.setup(path, level, environ=environ)
    assert not path.exists()


@pytest.mark.parametrize("name, part", [
    ("missing/feeder.log", "No such file or directory"), (".", "Is a directory"), ("a\0b", "null")])
def test_cannot_be_opened(tmp_path, name, part):
    with pytest.raises(HostError) as caught:
        log.setup(os.path.join(str(tmp_path), name))
    assert caught.value.exit_code == 2
    assert part in str(caught.value) and str(tmp_path) in str(caught.value)


def test_rotates_within_bounds(path):
    log.setup(path, max_bytes=500, keep=2)
    for number in range(100):
        LOGGER.info("line %d", number)
    log.close()
    kept = [path, path.with_name("feeder.log.1"), path.with_name("feeder.log.2")]
    assert sorted(path.parent.iterdir()) == kept
    assert all(file.stat().st_size <= 500 for file in kept)
    assert "line 99" in lines(path)[-1]


def test_setup_replaces_and_close_repeats(path, tmp_path):
    log.setup(path)
    log.setup(tmp_path / "second.log")
    LOGGER.info("there")
    log.close()
    log.close()
    assert lines(path) == [] and len(lines(tmp_path / "second.log")) == 1
    assert (log.path(), log.lost_lines()) == ("", 0)


# -- failure after opening


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a Linux device: a disk that is always full")
def test_full_disk_is_counted(capsys):
    log.setup("/dev/full", "debug")
    for number in range(2000):                # more than the stream buffers
        LOGGER.info("line %d", number)
    assert log.lost_lines() == 2000
    log.close()
    assert capsys.readouterr() == ("", "")


class FullStream(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_lost_lines_are_told_when_the_disk_has_room_again(path, capsys):
    log.setup(path)
    LOGGER.info("first")
    handler = log._file
    good, handler.stream = handler.stream, FullStream()
    LOGGER.info("second %s", "x")
    LOGGER.info("third")
    handler.stream.close()
    handler.stream = good
    LOGGER.info("fourth")
    LOGGER.info("fifth")
    log.close()
    texts = [line.split(": ", 1)[1] for line in lines(path)]
    assert texts[:2] == ["first", "fourth"] and texts[3:] == ["fifth"]
    assert texts[2].startswith("2 log lines before this were lost: OSError: [Errno 28] No space left on device")
    assert capsys.readouterr() == ("", "")


def test_failing_rotation_is_counted(path, capsys):
    log.setup(path, max_bytes=150, keep=1)
    (path.with_name("feeder.log.1")).mkdir()                   # rename onto a folder fails
    (path.with_name("feeder.log.1") / "x").touch()
    for _ in range(5):
        LOGGER.info("a line of more than half a hundred bytes, certainly")
    assert log.lost_lines() == 4
    log.close()
    assert capsys.readouterr() == ("", "")


def test_a_wrong_format_is_counted_not_printed(path, capsys):
    log.setup(path)
    log._file.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))   # pytest's handler would raise
    assert log.lost_lines() == 1
    LOGGER.info("good")
    log.close()
    assert "TypeError" in lines(path)[1] and "'%d'" in lines(path)[1]
    assert capsys.readouterr() == ("", "")


def test_text_that_is_no_unicode(path):
    log.setup(path)
    LOGGER.info("\ud800")
    assert log.lost_lines() == 0
    log.close()
    assert lines(path)[0].endswith("\\ud800")


# -- Limited


class Clock:
    now = 0

    def __call__(self):
        return self.now

    def seconds(self, seconds):
        self.now += seconds * clock.SECOND


@pytest.fixture
def ticking():
    return Clock()


class Told(logging.Logger):
    """A logger outside of the tree that keeps its texts; calling it returns them."""

    def __init__(self):
        super().__init__("told", logging.INFO)
        self.texts = []

    def handle(self, record):
        self.texts.append(record.getMessage())

    def __call__(self):
        return self.texts


@pytest.fixture
def told():
    return Told()


def test_limited_tells_how_many_were_held_back(ticking, told):
    limited = log.Limited(told, 10, now_ns=ticking)
    assert [limited.warning("gap", "gap at %d", number) for number in range(4)] == [True, False, False, False]
    ticking.seconds(10)
    limited.warning("gap", "100% of it")
    limited.info("other", "other")
    assert told() == ["gap at 0", "gap: 3 more lines were held back", "100% of it", "other"]
    assert limited.held_back == 3


def test_limited_flush(ticking, told):
    limited = log.Limited(told, 10, now_ns=ticking)
    for key in ("a", "a", "b"):
        limited.info(key, "line")
    limited.flush()
    limited.flush()
    limited.info("a", "line again")
    assert told() == ["line", "line", "a: 1 more lines were held back", "line again"]


def test_limited_keys_are_bounded(ticking, told):
    limited = log.Limited(told, 10, max_keys=3, now_ns=ticking)
    for number in range(1000):                # keys a peer invents: three of their own, one for all others
        limited.info(number, "key %d", number)
    assert told() == ["key 0", "key 1", "key 2", "key 3"]
    assert len(limited._keys) == 4 and limited.held_back == 996
    ticking.seconds(10)
    for number in range(2000, 2010):
        limited.info(number, "key %d", number)
    assert len(limited._keys) <= 4
    assert sum("held back" in text for text in told()) == 1
    assert limited.held_back + sum(text.startswith("key") for text in told()) == 1010


def test_limited_below_the_level_costs_nothing(ticking, told):
    limited = log.Limited(told, 10, now_ns=lambda: pytest.fail("the clock was read"))
    assert limited.log(logging.DEBUG, "key", "line") is False
    assert told() == []
