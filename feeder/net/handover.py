"""How readers on this host come to a tap (tap.py): by a descriptor, handed out at an abstract Unix socket.

    publisher: TapServer("feed").write(datagram)         reader: client = TapClient("feed")
               loop.register(server, read=server.accept)         client.poll() now and then, client.read() until None

A segment is a memfd, the socket's name ("\\0feeder-tap/feed", unix(7)) is in no file system: whoever is killed, nothing
is left behind. Who connects is told by the kernel (SO_PEERCRED): our own user and root get a descriptor they can only
read, others are refused. A reader asks the kernel the same of the server, so nobody else can pretend to be it. The
connection stays open: the kernel closes it with either end, which tells the reader to read what is left and to come
again, and the server how many readers there are. Nothing else ever goes over it; a reader cannot slow anybody.

Names are the network namespace's: a container with its own network does not see the host's taps. Linux only.
"""

import errno
import logging
import os
import re
import socket
import struct

from .. import shm
from ..errors import ConfigError, HostError
from ..tap import TapError, TapReader, TapWriter, form, tap_bytes
from .sockets import LINUX, os_error_text

log = logging.getLogger("feeder.net")

TAP_SLOTS = 1 << 17              # 8 MiB: 5,461 of the largest default datagrams, some 40,000 of single messages
MAX_READERS = 64
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
PREFIX = "\0feeder-tap/"
HELLO = struct.Struct("<4sIQ")   # FDRT, version, bytes of the segment; the descriptor comes with it
MAGIC, VERSION = b"FDRT", 1
CREDENTIALS = struct.Struct("iII")       # struct ucred, unix(7): pid, uid, gid


def check_name(name):
    """Return the name of a tap. Raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"tap {name!r}: expected up to 64 letters, digits, dots, dashes and underscores")
    return name


def _unix_socket(name):
    if not LINUX:
        raise HostError(f"tap {name}: a tap needs Linux, for its memfd and abstract sockets; use the network")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def _peer(sock):
    """Return (pid, uid) of the process at the other end, when it connected or began to listen."""
    return CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[:2]


def _is_gone(sock):
    """Whether the other end is closed. What it may have said is thrown away."""
    try:
        return not sock.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True


class TapServer:
    """A tap and its door. `write` and `write_burst` are the writer's; `refused` counts who was not let in."""

    def __init__(self, name, slot_count=TAP_SLOTS):
        """Raises ConfigError for the name, HostError where it is taken or the host has no taps."""
        self.name = check_name(name)
        self.refused = 0
        self._readers = []               # (socket, pid, uid)
        self._said = set()               # what was logged: ("uid", refused), at most MAX_READERS, ("errno", of accept)
        self._socket = _unix_socket(name)
        try:
            self._socket.bind(PREFIX + name)
            self._socket.listen(MAX_READERS)
        except OSError as error:
            self._socket.close()
            taken = error.errno == errno.EADDRINUSE
            raise HostError(f"tap {name}: " + ("another process on this host has the name; output.tap is to be another"
                                               if taken else os_error_text(error))) from None
        try:
            self._segment = shm.create(tap_bytes(slot_count))
            self._fd = shm.for_readers(self._segment)
        except OSError as error:
            self._socket.close()
            raise HostError(f"tap {name}: no memory to share, {tap_bytes(slot_count)} bytes: "
                            f"{os_error_text(error)}") from None
        form(self._segment.buffer, slot_count, *shm.identity())
        self.writer = TapWriter(self._segment.buffer)
        self.write, self.write_burst = self.writer.write, self.writer.write_burst
        self.memory_bytes = len(self._segment.buffer)

    def accept(self):
        """Let in, or refuse, the first who waits at the door; call it when the socket is readable.

        One a turn: who knocks all the time does not hold the writer up.
        """
        try:
            sock, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:             # no descriptor left, mostly: it goes on to wait
            if ("errno", error.errno) not in self._said:
                self._said.add(("errno", error.errno))
                log.warning("tap %s: a reader could not be let in: %s (said once)", self.name, os_error_text(error))
            return
        self._hand_over(sock)

    def _hand_over(self, sock):
        try:
            sock.setblocking(False)
            pid, uid = _peer(sock)
            if uid not in (0, os.geteuid()):
                reason = f"it runs as uid {uid}, this is for uid {os.geteuid()} and root"
            elif len(self.readers()) >= MAX_READERS:
                reason = f"there are {MAX_READERS} readers"
            else:
                socket.send_fds(sock, [HELLO.pack(MAGIC, VERSION, self.memory_bytes)], [self._fd])
                self._readers.append((sock, pid, uid))
                return
        except OSError as error:
            pid, uid, reason = 0, -1, os_error_text(error)
        sock.close()
        self.refused += 1
        if ("uid", uid) not in self._said and len(self._said) < MAX_READERS:
            self._said.add(("uid", uid))
            log.warning("tap %s: process %d is refused: %s", self.name, pid, reason)

    def readers(self):
        """Return [(pid, uid)] of those that are there now."""
        gone = [reader for reader in self._readers if _is_gone(reader[0])]
        for reader in gone:
            reader[0].close()
            self._readers.remove(reader)
        return [(pid, uid) for _, pid, uid in self._readers]

    def fileno(self):
        return self._socket.fileno()

    def close(self):
        for sock, _, _ in self._readers:
            sock.close()
        self._readers.clear()
        self._socket.close()
        os.close(self._fd)
        self.writer.close()
        self._segment.close()


class TapClient:
    """A reader that waits for its tap, follows the writer's restarts, and never blocks.

    `is_open`; `text`: how it stands, for people; `opened`, `refused`: how often a tap was found, or was not for us;
    `faults`: taps left because they were not written by the rules.
    """

    def __init__(self, name):
        """Raises ConfigError for the name, HostError where the host has no taps. A tap need not be there yet."""
        self.name = check_name(name)
        self.opened = self.refused = self.faults = 0
        self.text = "not looked for yet"
        self._socket = self._segment = self._reader = None
        self._is_gone = self._has_waited = False
        self._writer = None              # (pid, start) of the last one
        self._overruns = 0               # of former readers
        _unix_socket(name).close()
        self.poll()

    @property
    def is_open(self):
        return self._reader is not None

    @property
    def overruns(self):
        return self._overruns + (self._reader.overruns if self._reader else 0)

    def read(self):
        """Return the next datagram as bytes, or None."""
        reader = self._reader
        if reader is None:
            return None
        try:
            datagram = reader.read()
        except TapError as error:
            self.faults += 1
            self._leave(str(error))
            return None
        if datagram is None and self._is_gone and not reader.lag_bytes():
            self._leave("the writer is gone")
        return datagram

    def poll(self):
        """Look for the tap, or whether its writer is still there. A few system calls: some ten times a second."""
        if self._reader is not None:
            self._is_gone = self._is_gone or _is_gone(self._socket)
            return
        try:
            if self._socket is None:
                self._connect()
            if self._socket is not None:
                self._take()
        except OSError as error:
            self._leave(os_error_text(error))
        except TapError as error:
            self.faults += 1
            self._leave(str(error))

    def _connect(self):
        self._socket = _unix_socket(self.name)
        try:
            self._socket.connect(PREFIX + self.name)
        except ConnectionRefusedError:
            return self._leave("no process on this host has it")
        pid, uid = _peer(self._socket)
        if os.geteuid() not in (0, uid) and uid != 0:
            self.refused += 1
            self._leave(f"process {pid} has it as uid {uid}, this one runs as {os.geteuid()}: it is not trusted")

    def _take(self):
        """Take the descriptor if it has come."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, HELLO.size, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            self.text = "waiting for its writer"
            return None
        except ConnectionResetError:
            data, fds = b"", []
        if not data:
            pid, uid = _peer(self._socket)
            self.refused += 1
            return self._leave(f"process {pid} refused us: it is for uid {uid} and root, {MAX_READERS} readers")
        hello = HELLO.unpack(data) if len(data) == HELLO.size else None
        if not fds or hello is None or hello[:2] != (MAGIC, VERSION):
            for fd in fds:
                os.close(fd)
            raise TapError("who has it speaks another version")
        self._segment = shm.from_writer(fds[0])
        # We were here before it: what it wrote until we found it is news, and still there, if it is not too much.
        before = self._writer
        self._reader = TapReader(self._segment.buffer)
        self._writer = self._reader.writer()
        if self._has_waited and self._writer != before:
            self._reader.rewind()
        self.opened += 1
        self._is_gone = False
        self.text = f"reads from process {self._writer[0]}"
        log.info("tap %s: %s", self.name, self.text)

    def _leave(self, reason):
        self._has_waited = True
        if reason != self.text:
            self.text = reason
            log.warning("tap %s: %s", self.name, reason)
        if self._reader is not None:
            self._overruns += self._reader.overruns
            self._reader.close()
            self._reader = None
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self):
        self.text = "closed"             # said by who closes it
        self._leave(self.text)
