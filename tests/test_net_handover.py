"""The tap's door, with real processes: killed, restarted, of another user; and nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import zlib

import pytest
from net_peers import loop, run_until  # noqa: F401
from support import PROJECT

from feeder import shm
from feeder.clock import SECOND, sleep, steady_ns
from feeder.errors import ConfigError, HostError
from feeder.net import handover
from feeder.net.handover import MAX_READERS, TapClient, TapServer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a tap needs Linux")
NAME = f"test-{os.getpid()}"
SLOTS = 256
NOBODY = 65534

# A publisher: numbered datagrams as often as it may, from `first` on; the door is looked at after each.
PUBLISHER = """
import sys, zlib
from feeder.clock import sleep
from feeder.net.handover import TapServer
server = TapServer(sys.argv[1], 256)
number, stop = int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
while True:
    server.accept()
    if number < stop:
        body = number.to_bytes(8, "little") + bytes(number % 300)
        server.write(body + zlib.crc32(body).to_bytes(4, "little"))
        number += 1
    if number == stop or number % 20 == 0:
        sleep(0.0001)
"""
READER = """
import sys
from feeder.clock import sleep
from feeder.net.handover import TapClient
client = TapClient(sys.argv[1])
while not client.is_open and not client.refused:
    client.poll()
    sleep(0.001)
print(client.text, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = left()
    yield
    assert left() == before


def left():
    """What has our name, and our descriptors; other tests may run beside us."""
    names = [line.split()[-1] for line in open_names().splitlines() if NAME in line]
    shared = [name for name in os.listdir("/dev/shm") if str(os.getpid()) in name]
    return names, shared, len(os.listdir("/proc/self/fd"))


@pytest.fixture
def keep():
    kept = []
    yield lambda thing: kept.append(thing) or thing
    for thing in reversed(kept):
        thing.close()


class Started:
    """A process running one of the scripts above."""

    def __init__(self, script, *words, **more):
        self.process = subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-c", script, *map(str, words)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
                                        env=dict(os.environ, PYTHONPATH=str(PROJECT)), **more)

    def line(self):
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def until(condition, seconds=20):
    give_up_ns = steady_ns() + seconds * SECOND
    while not condition():
        assert steady_ns() < give_up_ns, "waited in vain"
        sleep(0.0001)


def opened(server, client):
    """Let a client of this process in."""
    client.poll()
    server.accept()
    client.poll()
    assert client.is_open, client.text
    return client


def test_every_reader_gets_everything_and_is_counted(keep):
    server = keep(TapServer(NAME, SLOTS))
    clients = [opened(server, keep(TapClient(NAME))) for _ in range(3)]
    assert server.readers() == [(os.getpid(), os.geteuid())] * 3 and server.memory_bytes == 256 + SLOTS * 64
    sent = [b"datagram %d" % number for number in range(100)]
    for datagram in sent[:50]:
        assert server.write(memoryview(datagram))
    server.write_burst(memoryview(b"".join(sent[50:])), 11)
    for client in clients:
        assert list(iter(client.read, None)) == sent and client.overruns == 0
        assert client.text == f"reads from process {os.getpid()}"
    clients[0].close()
    assert len(server.readers()) == 2 and clients[0].read() is None
    assert opened(server, clients[0]).opened == 2


def test_in_a_loop(keep, loop):
    server = keep(TapServer(NAME, SLOTS))
    loop.register(server, read=server.accept)
    client = keep(TapClient(NAME))
    run_until(loop, lambda: client.poll() or client.is_open)
    server.write(b"x")
    assert client.read() == b"x"
    loop.unregister(server)


def test_a_sleeper_is_overrun_and_the_others_are_not(keep):
    server = keep(TapServer(NAME, SLOTS))
    sleeper, reader = (opened(server, keep(TapClient(NAME))) for _ in range(2))
    for number in range(1_000):
        server.write(b"%d" % number)
        assert reader.read() == b"%d" % number
    assert sleeper.read() is None and sleeper.overruns == 1 and reader.overruns == 0
    server.write(b"on")
    assert sleeper.read() == b"on"


def follow(client, wanted, last=-1):
    """Read on until a number; each datagram whole and later than the one before. Returns (last, missed)."""
    missed, give_up_ns = 0, steady_ns() + 20 * SECOND
    while last < wanted:
        data = client.read()
        if data is None:
            assert steady_ns() < give_up_ns, client.text
            client.poll()
            continue
        assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
        number = int.from_bytes(data[:8], "little")
        assert number > last
        missed += number - last - 1
        last = number
    return last, missed


def test_a_writer_is_killed_and_started_again_and_readers_follow(keep):
    """They are there first; what a writer writes before they have found it, its ring still holds."""
    clients = [keep(TapClient(NAME)) for _ in range(3)]
    assert all(not client.is_open and "no process" in client.text for client in clients)
    for turn in range(3):
        publisher = keep(Started(PUBLISHER, NAME, turn * 900, turn * 900 + 60))     # 150 slots
        assert publisher.line() == "ready"
        for client in clients:
            assert follow(client, turn * 900 + 59, turn * 900 - 1) == (turn * 900 + 59, 0)
        publisher.kill()
        assert NAME not in open_names()
        for client in clients:
            until(lambda: client.poll() or client.read() or not client.is_open)
            assert client.text == "the writer is gone" and client.opened == turn + 1 and client.faults == 0
            client.poll()
            assert client.text == "no process on this host has it"


def open_names():
    with open("/proc/net/unix") as file:
        return file.read()


def test_killed_in_full_flight(keep):
    client = keep(TapClient(NAME))
    last = -1
    for turn in range(3):
        publisher = keep(Started(PUBLISHER, NAME, last + 1, 10**9))
        last, _ = follow(client, last + 2_000, last)
        publisher.kill()
        while client.is_open:                    # what it wrote before its end is read all the same
            client.poll()
            data = client.read()
            last = int.from_bytes(data[:8], "little") if data else last
    assert client.faults == 0 and client.opened == 3


def test_what_was_written_last_is_read_after_the_writers_end(keep):
    server = TapServer(NAME, SLOTS)
    client = opened(server, keep(TapClient(NAME)))
    server.write(b"one")
    server.write(b"two")
    server.close()
    client.poll()
    assert [client.read() for _ in range(4)] == [b"one", b"two", None, None] and not client.is_open


def test_a_reader_that_comes_back_to_the_same_writer_does_not_begin_anew(keep):
    server = keep(TapServer(NAME, SLOTS))
    server.write(b"before")
    client = opened(server, keep(TapClient(NAME)))
    assert client.read() is None
    server.write(b"read")
    assert client.read() == b"read"
    client.close()
    assert opened(server, client).read() is None


def test_who_was_waiting_begins_with_the_first(keep):
    client = keep(TapClient(NAME))
    server = keep(TapServer(NAME, SLOTS))
    server.write(b"first")
    assert opened(server, client).read() == b"first"


def test_a_reader_killed_is_gone(keep):
    server = keep(TapServer(NAME, SLOTS))
    reader = keep(Started(READER, NAME))
    until(lambda: server.accept() or server.readers() == [(reader.process.pid, os.geteuid())])
    assert reader.line() == f"reads from process {os.getpid()}"
    reader.kill()
    assert server.readers() == [] and server.refused == 0


needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becoming another user needs root")


@needs_root
def test_another_user_is_refused(keep, caplog):
    """By the server, whatever the client does: this one has no check of its own. And it gets no descriptor."""
    server = keep(TapServer(NAME, SLOTS))
    child = os.fork()
    if not child:
        try:
            os.setuid(NOBODY)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect("\0feeder-tap/" + NAME)
                os._exit(0 if socket.recv_fds(sock, 100, 1)[:2] == (b"", []) else 1)
        except ConnectionResetError:
            os._exit(0)
        finally:
            os._exit(2)
    until(lambda: server.accept() or server.refused)
    assert os.waitpid(child, 0)[1] == 0 and server.readers() == [] and server.refused == 1
    assert f"process {child} is refused: it runs as uid {NOBODY}, this is for uid 0 and root" in caplog.text


@needs_root
def test_who_is_neither_root_nor_ourselves_is_not_believed(keep):
    """A squatter has the name; it looks to us as if we were another user."""
    server = keep(TapServer(NAME, SLOTS))
    child = os.fork()
    if not child:
        try:
            os.setuid(NOBODY)
            handover._peer = lambda sock: (4711, 1000)
            client = TapClient(NAME)
            expected = f"process 4711 has it as uid 1000, this one runs as {NOBODY}: it is not trusted"
            os._exit(0 if client.text == expected and client.refused == 1 and not client.is_open else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    server.accept()


def test_readers_come_in_one_a_turn_and_no_descriptor_for_one_is_said_once(keep, caplog):
    import resource                      # not on Windows
    server = keep(TapServer(NAME, SLOTS))
    knocking = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for sock in knocking:
        keep(sock).connect("\0feeder-tap/" + NAME)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        for _ in range(5):
            server.accept()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caplog.text.count("could not be let in: Too many open files") == 1 and server.readers() == []
    for count in (1, 2, 3, 3):
        server.accept()
        assert len(server.readers()) == count


def test_no_more_readers_than_there_may_be(keep, monkeypatch):
    monkeypatch.setattr(handover, "MAX_READERS", 3)
    server = keep(TapServer(NAME, SLOTS))
    clients = [opened(server, keep(TapClient(NAME))) for _ in range(3)]
    late = keep(TapClient(NAME))
    server.accept()
    late.poll()
    assert not late.is_open and "refused us" in late.text and (late.refused, server.refused) == (1, 1)
    clients[1].close()
    assert opened(server, late).opened == 1


def test_a_client_that_talks_or_never_reads_harms_nobody(keep):
    server = keep(TapServer(NAME, SLOTS))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0feeder-tap/" + NAME)
        server.accept()
        sock.send(bytes(1_000))
        assert len(server.readers()) == 1
        assert opened(server, keep(TapClient(NAME))).opened == 1
    until(lambda: len(server.readers()) == 1)


def test_a_name_has_one_publisher(keep):
    keep(TapServer(NAME, SLOTS))
    with pytest.raises(HostError, match=f"tap {NAME}: another process on this host has the name"):
        TapServer(NAME, SLOTS)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 65, "ä", "\0"])
@pytest.mark.parametrize("make", [TapServer, TapClient])
def test_names_that_cannot_be(make, name):
    with pytest.raises(ConfigError, match="letters, digits"):
        make(name)


@pytest.mark.parametrize("make", [TapServer, TapClient])
def test_where_there_are_no_taps_it_says_so(make, monkeypatch):
    monkeypatch.setattr(handover, "LINUX", False)
    with pytest.raises(HostError, match=f"tap {NAME}: a tap needs Linux"):
        make(NAME)


def pretend(answer, fds=(), size=8192):
    """A server of our own user that answers anything; returns the client's end of it."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("\0feeder-tap/" + NAME)
        door.listen(1)
        client = TapClient(NAME)
        conn, _ = door.accept()
        with conn:
            socket.send_fds(conn, [answer], list(fds)) if fds else conn.sendall(answer)
            client.poll()
    return client


HELLO = handover.HELLO.pack(handover.MAGIC, handover.VERSION, 8192)


@pytest.mark.parametrize("answer, count", [(b"x", 0), (HELLO, 0), (HELLO[:-1], 1), (b"FDRX" + HELLO[4:], 1),
                                           (HELLO[:4] + b"\2" + HELLO[5:], 1), (b"x", 1)])
def test_answers_that_make_no_sense(keep, answer, count):
    fds = [os.memfd_create("x") for _ in range(count)]
    client = keep(pretend(answer, fds))
    for fd in fds:
        os.close(fd)
    assert not client.is_open and client.faults == 1 and client.text == "who has it speaks another version"
    assert client.read() is None


def test_a_segment_that_is_no_tap_or_could_be_cut_is_left_alone(keep):
    unsealed = os.memfd_create("x")
    os.truncate(unsealed, 8192)
    client = keep(pretend(HELLO, [unsealed]))
    os.close(unsealed)
    assert not client.is_open and "not sealed against being cut" in client.text
    segment = keep(shm.create(8192))
    fd = shm.for_readers(segment)
    client = keep(pretend(HELLO, [fd]))
    os.close(fd)
    assert not client.is_open and client.faults == 1 and client.text == "not a tap of layout 1"


def test_a_writer_that_breaks_the_rules_is_left(keep):
    server = keep(TapServer(NAME, SLOTS))
    client = opened(server, keep(TapClient(NAME)))
    server.write(b"good")
    server.write(b"bad")
    server.writer.words[32 + 8] = 77
    assert client.read() == b"good" and client.read() is None
    assert client.faults == 1 and "record at slot 1" in client.text and not client.is_open
    server.write(b"later")
    assert opened(server, client).read() is None
