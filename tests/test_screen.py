"""The screen on a real pseudo-terminal, resized, and into files and closed pipes."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading

import pytest

from feeder import screen
from feeder.screen import Column, Screen, clip, columns_of, interruptible, size_text, table, time_text

posix = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")


class Terminal:
    """A pseudo-terminal of a given size; `shown` is what a VT100 would have on its glass."""

    def __init__(self, columns, lines):
        import fcntl
        import pty
        import termios
        self.set_size = lambda columns, lines: fcntl.ioctl(
            self.far, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.near, self.far = pty.openpty()
        self.stream = open(self.far, "w", closefd=False)
        self.set_size(columns, lines)

    def read(self):
        os.write(self.far, b"\0")                 # so that a read never waits for ever
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self.near, 65536)
        return data[:-1].decode()

    def close(self):
        self.stream.close()
        os.close(self.near)
        os.close(self.far)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(40, 5)
    yield terminal
    terminal.close()


def glass(text):
    """Return the lines painted by one show()."""
    body = text.split(screen.HOME)[-1].replace(screen.CLEAR_BELOW, "")
    return [line.replace(screen.CLEAR_LINE, "").rstrip("\r") for line in body.split("\n")]


@posix
def test_refreshes_in_place_follows_the_size_and_gives_the_terminal_back(terminal):
    with Screen(terminal.stream) as shown:
        assert shown.is_live and shown.size() == (40, 5)
        shown.show(["a" * 50, "b"], ["plain"])
        first = terminal.read()
        assert first.startswith(screen.OPEN + screen.CLEAR_ALL)
        assert glass(first) == ["a" * 39 + ">", "b"]
        shown.show(["c"])
        second = terminal.read()
        assert screen.OPEN not in second and screen.CLEAR_ALL not in second and glass(second) == ["c"]
        terminal.set_size(10, 3)
        shown.show(["0123456789A", "d", "e", "f"])
        third = terminal.read()
        assert screen.CLEAR_ALL in third
        assert glass(third) == ["012345678>", "d", "... 2 mor>"]
    assert terminal.read() == screen.CLOSE
    shown.close()
    assert terminal.read() == ""


@posix
def test_cursor_comes_back_after_ctrl_c(terminal):
    with pytest.raises(KeyboardInterrupt):
        with Screen(terminal.stream) as shown:
            shown.show(["a"])
            raise KeyboardInterrupt
    assert terminal.read().endswith(screen.CLOSE)


@posix
def test_a_dumb_terminal_gets_plain_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Screen(terminal.stream) as shown:
        shown.show(["screen"], ["plain"])
    assert terminal.read() == "plain\r\n"


@posix
def test_unknown_size_is_the_usual_one(terminal):
    terminal.set_size(0, 0)
    assert Screen(terminal.stream).size() == (80, 24)


def test_plain_lines_into_a_file_that_cannot_say_everything():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with Screen(stream) as shown:
        shown.show(["screen"], ["one\x1b[2J", "caf\u00e9"])
        shown.show(["screen"])
    assert raw.getvalue() == b"one?[2J\ncaf?\n"


@posix
def test_a_reader_who_leaves_is_no_error():
    script = ("from feeder.screen import Screen\n"
              "shown = Screen()\n"
              "while not shown.broken: shown.print('x' * 1000)\n")
    with subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-c", script], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == (b"", 0)


def test_first_signal_stops_second_insists_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    stops = []
    with interruptible(lambda: stops.append(1)) as asked:
        signal.raise_signal(signal.SIGTERM)
        assert stops == [1] and asked == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_a_thread_signals_are_left_alone():
    seen = []

    def work():
        with interruptible(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


COLUMNS = [Column("venue", "<", 2), Column("symbol", "<", 0), Column("trades", ">", 1)]
ROWS = [["okx", "BTC-USDT", "5"], ["binance_spot", "X\x1b", "12345"]]


@pytest.mark.parametrize("width, lines", [
    (80, ["venue         symbol    trades", "okx           BTC-USDT       5", "binance_spot  X?         12345"]),
    (20, ["symbol    trades", "BTC-USDT       5", "X?         12345"]),
    (9, ["symbol", "BTC-USDT", "X?"]),
    (4, ["sym>", "BTC>", "X?"]),
])
def test_table_leaves_columns_out_by_rank(width, lines):
    assert table(COLUMNS, ROWS, width) == lines


def test_clip_counts_columns_not_characters():
    assert columns_of("\ud55c\uad6d") == 4
    assert clip("\ud55c\uad6d\uc5b4", 5) == "\ud55c\uad6d>"
    assert clip("\ud55c\uad6d", 4) == "\ud55c\uad6d"
    assert clip("ab", 1) == ">" and clip("ab", 0) == ""


@pytest.mark.parametrize("ns, text", [
    (0, "0 ns"), (999, "999 ns"), (1_000, "1.00 us"), (12_345, "12.3 us"), (999_600, "1,000 us"),
    (4_560_000, "4.56 ms"), (7_890_000_000, "7.89 s"), (5_000 * 10**9, "5,000 s")])
def test_time_text(ns, text):
    assert time_text(ns) == text


def test_size_text():
    assert [size_text(count) for count in (0.0, 999, 1_500, 12_300_000)] == ["0 B", "999 B", "1.50 kB", "12.3 MB"]
