"""JSON lines over the pipes between a parent and its children; a slow reader never stops a writer.

    LineWriter ── {"key": ...}\\n ──▶ LineReader

A message is an object on a line of at most MAX_LINE_BYTES. What the pipe does not take at once is kept, at most
MAX_BACKLOG_BYTES; messages beyond that are dropped and counted, but those sent as `important` are not.
"""

import json
import os

MAX_LINE_BYTES = 64 << 20        # a report of 2,048 instruments takes some 4 MB
MAX_BACKLOG_BYTES = 1 << 20
READ_BYTES = 1 << 18


def encode(message):
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def first_line(fd):
    """Read one message, waiting for it, before there is a loop; None at the end. Nothing may follow it yet."""
    line = b""
    while not line.endswith(b"\n"):
        some = os.read(fd, READ_BYTES)
        line += some
        if not some or len(line) > MAX_LINE_BYTES:
            return None
    return json.loads(line)


def say(fd, message):
    """Write one message, waiting until the pipe has it: the last words of a process without a loop."""
    try:
        os.set_blocking(fd, True)
        with open(fd, "wb", closefd=False) as file:
            file.write(encode(message))
    except OSError:
        pass


class LineReader:
    """Calls on_message(dict) for each line of `fd`, and on_end() once, when the other side is gone or talks nonsense."""

    def __init__(self, loop, fd, on_message, on_end):
        self.loop = loop
        self.fd = fd
        self.on_message = on_message
        self.on_end = on_end
        self.rest = bytearray()
        self.open = True
        os.set_blocking(fd, False)
        loop.register(fd, read=self.readable)

    def readable(self):
        try:
            some = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            some = b""
        if not some or len(self.rest) + len(some) > MAX_LINE_BYTES:
            return self.end()
        searched = len(self.rest)
        self.rest += some
        if self.rest.find(b"\n", searched) < 0:
            return
        *lines, rest = self.rest.split(b"\n")
        self.rest = rest
        for line in lines:
            if not self.open:
                return
            try:
                message = json.loads(line)
            except ValueError:
                return self.end()
            self.on_message(message)

    def end(self):
        if self.close():
            self.on_end()

    def close(self):
        """Stop reading; the descriptor is its opener's to close. Return True the first time."""
        was_open, self.open = self.open, False
        if was_open:
            self.loop.unregister(self.fd)
        return was_open


class LineWriter:
    def __init__(self, loop, fd):
        self.loop = loop
        self.fd = fd
        self.backlog = bytearray()
        self.dropped = 0
        self.open = True
        self.waiting = False
        os.set_blocking(fd, False)

    def send(self, message, important=False):
        if not self.open or (len(self.backlog) > MAX_BACKLOG_BYTES and not important):
            self.dropped += 1
            return
        self.backlog += encode(message)
        if not self.waiting:
            self.pump()

    def pump(self):
        """Write what the pipe takes."""
        try:
            while self.backlog:
                del self.backlog[:os.write(self.fd, self.backlog)]
        except BlockingIOError:
            pass
        except OSError:                  # nobody reads any more; who closed it will hear of that by other means
            self.backlog.clear()
            return self.close()
        if bool(self.backlog) != self.waiting:
            self.waiting = not self.waiting
            if self.waiting:
                self.loop.register(self.fd, write=self.pump)
            else:
                self.loop.unregister(self.fd)

    def close(self):
        self.open = False
        if self.waiting:
            self.waiting = False
            self.loop.unregister(self.fd)
