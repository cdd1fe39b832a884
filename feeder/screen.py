"""A terminal that shows the present state: one screen that refreshes in place, plain lines elsewhere.

In:   lines of text, as often as the caller likes.   Out: ANSI on a terminal (ECMA-48; xterm's private modes).

On a terminal each `show` repaints everything in one write, on the alternate screen, so that what was there
before comes back at the end. The size is asked for each time, which is all that a resize needs; lines are
cut to the width and to the height. Into a file or a pipe go the `plain` lines instead, one after another.

`close` restores the cursor and is safe to call twice; used as a context manager it also runs on Ctrl-C.
Text is made printable first: a symbol from the wire must not be able to steer the terminal.
Not here: when to refresh, and what is worth showing.
"""

import errno
import os
import signal
import sys
import threading
import unicodedata
from collections import namedtuple
from contextlib import contextmanager

DEFAULT_SIZE = os.terminal_size((80, 24))
LIVE_INTERVAL_NS = 500_000_000
PLAIN_INTERVAL_NS = 1_000_000_000

OPEN = "\x1b[?1049h\x1b[?25l\x1b[?7l"       # alternate screen, no cursor, no wrapping at the right edge
CLOSE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
HOME, CLEAR_LINE, CLEAR_BELOW, CLEAR_ALL = "\x1b[H", "\x1b[2K", "\x1b[J", "\x1b[2J"

Column = namedtuple("Column", "title align rank")      # align "<" or ">"; the highest rank gives way first


class Screen:
    """Args: stream, standard output if not given. `broken` turns true when nobody reads it any more; `error` says why, where it is a
    file that cannot be written.
    """

    def __init__(self, stream=None):
        self.stream = sys.stdout if stream is None else stream
        self.is_live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.interval_ns = LIVE_INTERVAL_NS if self.is_live else PLAIN_INTERVAL_NS
        self.broken = False
        self.error = ""
        self.painted = None              # size of the last painting; None: the screen is not ours now

    def size(self):
        """Return (columns, lines) as they are now."""
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except (OSError, ValueError, AttributeError):
            return DEFAULT_SIZE
        return size if size.columns and size.lines else DEFAULT_SIZE

    def show(self, lines, plain=()):
        """Repaint with `lines`; where there is no terminal, append the lines of `plain`."""
        if not self.is_live:
            self.print(*plain)
            return
        size = self.size()
        if len(lines) > size.lines:
            lines = lines[:size.lines - 1] + [f"... {len(lines) - size.lines + 1} more lines"]
        start = ""
        if self.painted is None:
            if os.name == "nt":
                os.system("")            # makes a Windows console obey escape sequences
            start = OPEN
        if self.painted != size:
            start += CLEAR_ALL
        self.painted = size
        body = "\r\n".join(CLEAR_LINE + clip(line, size.columns) for line in lines)
        self.write(start + HOME + body + CLEAR_BELOW)

    def print(self, *lines):
        """Append lines, made printable; not while a screen is painted."""
        if lines:
            self.write("".join(printable(line) + "\n" for line in lines))

    def write(self, text):
        """Write as it is. A reader who went away (`| head`) or a lost terminal sets `broken` and is no error."""
        if self.broken:
            return
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "replace").decode(encoding))
            self.stream.flush()
        except OSError as error:
            self.broken = True
            if error.errno in NO_ROOM:
                self.error = error.strerror
            silence(self.stream)

    def close(self):
        """Give the terminal back as it was."""
        if self.painted is not None:
            self.painted = None
            self.write(CLOSE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def silence(stream):
    """Send what is still buffered nowhere, or the interpreter complains at its exit (library reference, signal)."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
    except (OSError, ValueError):
        pass                             # not a file: nothing will be flushed


@contextmanager
def interruptible(stop):
    """While inside, Ctrl-C and SIGTERM call stop(), which must return at once; a second one is KeyboardInterrupt."""
    asked = []

    def handle(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stop()

    before = {}
    if threading.current_thread() is threading.main_thread():        # the only one that may set handlers
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


# -- text ----------------------------------------------------------------------------------------------------


def printable(text):
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def columns_of(text):
    """Return how many columns the text takes on a terminal: two for East Asian wide characters."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF") for one in text)


def clip(text, width):
    """Return the text, printable, in at most `width` columns; ">" at its end says that it was cut."""
    text = printable(text)
    if columns_of(text) <= width:
        return text
    used = 0
    for at, one in enumerate(text):
        used += columns_of(one)
        if used > width - 1:
            return text[:at] + ">"[:width]
    return text


def pad(text, width, align):
    missing = " " * (width - columns_of(text))
    return missing + text if align == ">" else text + missing


def table(columns, rows, width):
    """Return lines: titles and rows, aligned; columns are left out, highest rank first, until they fit the width."""
    rows = [[printable(cell) for cell in row] for row in [[column.title for column in columns], *rows]]
    widths = [max(map(columns_of, cells)) for cells in zip(*rows)]
    shown = list(range(len(columns)))
    while len(shown) > 1 and sum(widths[at] + 2 for at in shown) - 2 > width:
        shown.remove(max(shown, key=lambda at: columns[at].rank))
    return [clip("  ".join(pad(row[at], widths[at], columns[at].align) for at in shown).rstrip(), width)
            for row in rows]


def scaled_text(value, units):
    """Return about three digits and the first of `units`, (name, size) from large to small, that is reached."""
    unit, size = next(entry for entry in units if value >= entry[1] or entry is units[-1])
    value /= size
    return f"{value:,.{0 if size == 1 or value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def time_text(ns):
    """Return a latency for people: 850 ns, 12.3 us, 4.56 ms."""
    return scaled_text(ns, (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)))


def size_text(count):
    """Return an amount of bytes for people: 999 B, 12.3 kB, 4.56 MB."""
    return scaled_text(count, (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1)))
