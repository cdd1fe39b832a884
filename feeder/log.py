"""The log: one rotating file, nothing on the terminal, and no way for it to stop or slow the feed.

`setup` attaches the file to the logger "feeder", above every `logging.getLogger("feeder.net")` of the package.
Before `setup`, after `close`, and with an empty path, lines go nowhere (a handler that drops them: without any,
logging prints warnings on the terminal).

A log that cannot be opened ends the command. Once it is open, failure (disk full, folder gone) costs lines, not
the feeder: they are counted in `lost_lines()`, and the first line that gets through again is followed by one that
tells how many are missing and why. logging would print a traceback on the terminal for each of them.

`Limited` is for lines that a venue can cause: one a key and period, then how many were held back.
"""

import logging
import os
import sys
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler

from feeder import clock
from feeder.errors import ConfigError, HostError

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_logger = logging.getLogger("feeder")
_logger.addHandler(logging.NullHandler())
_logger.propagate = False
_file = None                 # the handler that is attached now


class _UtcFormatter(logging.Formatter):
    def formatTime(self, record, datefmt=None):
        return datetime.fromtimestamp(record.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _LogFile(RotatingFileHandler):
    """Counts what it cannot write instead of printing a traceback to the terminal."""

    lost = 0                 # in all
    untold = 0               # since the last line about them
    reason = ""

    def emit(self, record):
        lost = self.lost
        super().emit(record)
        if self.untold and self.lost == lost:
            told, self.untold = self.untold, 0            # before emitting: if this line is lost, it counts anew
            super().emit(logging.makeLogRecord({
                "name": "feeder.log", "levelno": logging.ERROR, "levelname": "ERROR",
                "msg": f"{told} log lines before this were lost: {self.reason}"}))

    def handleError(self, record):
        error = sys.exc_info()[1]
        self.lost += 1
        self.untold += 1
        self.reason = f"{type(error).__name__}: {error} (message {record.msg!r:.200})"

    def close(self):
        try:
            super().close()
        except OSError as error:                          # the last flush on a full disk; it is closed all the same
            self.lost += 1
            self.reason = str(error)


def effective_level(level, environ=os.environ):
    """FEEDER_LOG if it is set, else the configured level. Raises ConfigError for one that does not exist."""
    override = environ.get("FEEDER_LOG", "")
    chosen = (override or level).lower()
    if chosen not in LEVELS:
        raise ConfigError(f"{'FEEDER_LOG' if override else 'log.level'}: found {override or level!r}, "
                          f"expected one of {', '.join(LEVELS)}")
    return chosen


def setup(path, level="info", max_bytes=16 << 20, keep=4, environ=os.environ):
    """Send the package's log to a file; FEEDER_LOG=debug|info|warning|error overrides the level.

    `max_bytes` and `keep` are at least 1: logging does not rotate at all with 0. An empty path keeps no log.
    Raises: HostError when the file cannot be opened, ConfigError for a level that does not exist.
    """
    global _file
    level = effective_level(level, environ)
    close()
    _logger.setLevel(LEVELS[level])
    if not path:
        return
    try:
        handler = _LogFile(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:                # ValueError: a NUL in the path
        raise HostError(f"log file {os.path.abspath(path)} cannot be opened: "
                        f"{getattr(error, 'strerror', None) or error}; set log.path to one that can "
                        "be written, or to \"\" for none") from error
    handler.setFormatter(_UtcFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    _logger.addHandler(handler)
    _file = handler


class _Forward(logging.Handler):
    def __init__(self, send):
        super().__init__()
        self.send = send
        self.setFormatter(logging.Formatter())           # the message and its traceback; who writes it adds the time

    def emit(self, record):
        try:
            self.send(record.levelno, record.name, self.format(record))
        except Exception:                                 # a line that cannot be formatted stops nothing, either
            pass


def forward(send, level):
    """Send the package's log to send(level number, logger name, text) instead of a file; return what ends that."""
    handler = _Forward(send)
    _logger.setLevel(LEVELS[effective_level(level)])
    _logger.addHandler(handler)
    return lambda: _logger.removeHandler(handler)


def close():
    """Write out and close the file. May be called twice."""
    global _file
    handler, _file = _file, None
    if handler:
        _logger.removeHandler(handler)
        handler.close()


def path():
    """Absolute path of the log that is open, or empty; for the error that tells where to read on."""
    return _file.baseFilename if _file else ""


def timestamp(wall_ns):
    """Return a wall time as text, to the second."""
    return datetime.fromtimestamp(wall_ns // clock.SECOND, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def lost_lines():
    """Lines the open log could not write; belongs in the report."""
    return _file.lost if _file else 0


class Limited:
    """Rate-limited logging: of lines with one key, the first in `per_key_seconds`, then how many were held back.

        noisy = Limited(logging.getLogger("feeder.venue"), 10)
        noisy.warning(("crossed", symbol), "%s: book crossed at %s", symbol, price)

    At most `max_keys` keys are remembered. When all of them are still in their period, further keys share one
    limit, so keys invented by a peer cannot flood the log, either.
    """

    OTHERS = "<other keys>"

    def __init__(self, logger, per_key_seconds, max_keys=1024, now_ns=clock.steady_ns):
        self.logger = logger
        self.period_ns = int(per_key_seconds * clock.SECOND)
        self.max_keys = max_keys
        self.now_ns = now_ns
        self.held_back = 0                                # in all
        self._keys = {}                                   # key -> [start of its period, held back in it]; oldest first

    def log(self, level, key, text, *args):
        """Return True if the line was logged."""
        if not self.logger.isEnabledFor(level):
            return False
        now = self.now_ns()
        entry = self._keys.get(key)
        while entry is None and len(self._keys) >= self.max_keys:
            oldest = next(iter(self._keys))
            if now - self._keys[oldest][0] < self.period_ns:
                key = self.OTHERS
                entry = self._keys.get(key)
                break
            self._tell(oldest, self._keys.pop(oldest)[1])
        if entry and now - entry[0] < self.period_ns:
            entry[1] += 1
            self.held_back += 1
            return False
        self._keys.pop(key, None)                         # to the young end
        self._keys[key] = [now, 0]
        if entry:
            self._tell(key, entry[1])
        self.logger.log(level, text, *args)
        return True

    def warning(self, key, text, *args):
        return self.log(logging.WARNING, key, text, *args)

    def info(self, key, text, *args):
        return self.log(logging.INFO, key, text, *args)

    def flush(self):
        """Tell what is still held back and forget all keys; for the end of a run."""
        for key, (_, count) in self._keys.items():
            self._tell(key, count)
        self._keys.clear()

    def _tell(self, key, count):
        if count:
            self.logger.info("%s: %d more lines were held back", key, count)
