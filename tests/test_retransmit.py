"""The command that keeps a copy and sends it again: its streams by themselves, then as a process on real sockets.

    publisher (a process) ──▶ line A, line B (each loses some) ──▶ `feeder retransmit` (a process)
             └──▶ a receiver here, which loses more, and asks ◀────────────┘
"""

import argparse
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feeder import retransmit
from feeder.clock import SECOND, steady_ns
from feeder.control import Client
from feeder.errors import HostError
from feeder.net import Loop, PacketReceiver, PacketSender, UnicastSocket
from feeder.packet import END, HEARTBEAT, Encoder, LoopEncoder
from feeder.retransmit import Copies
from feeder.seal import Seal
from tests.outlet import free_udp_port
from tests.test_control import CHANNEL, SESSION, datagrams, flagged, span

ROOT = Path(__file__).parent.parent
KEY = b"a key of the tests, long enough"
COUNT = 400                      # datagrams of the publisher
SPAN = 3                         # messages in each


def bare(flags, sequence=1, session=SESSION, channel=CHANNEL):
    """Return a packet without messages."""
    out = []
    encoder = Encoder(session, channel, lambda view: out.append(bytes(view)), lambda: 5)
    encoder.sequence = sequence
    encoder.flush(flags)
    return out[0]


# -- streams -------------------------------------------------------------------------------------------------

def test_two_lines_make_one_copy():
    copies = Copies(4, 100, 1472)
    feed = datagrams([2] * 50)
    dice = random.Random(3)
    for at, data in enumerate(feed):
        a, b = dice.random() < 0.3, dice.random() < 0.3
        if not a or (a and b and at % 2):
            assert copies.take(data, at) is None
        if not b and at >= 3:
            assert copies.take(feed[at - 3], at) is None           # line B is behind
    row, = copies.rows(49)
    store = copies.channels[CHANNEL].of(SESSION)
    kept = [bytes(each) for each in store.find(1, 100)[0]]
    assert len(kept) == row["kept"] and sorted(map(span, kept)) == list(map(span, kept))
    assert row["late"] and row["duplicates"]
    whole = {number for each in kept for number in range(span(each)[0], span(each)[1] + 1)}
    assert row["missing_messages"] == row["newest"] - row["oldest"] + 1 - len(whole)


def test_what_is_not_a_packet_of_ours_is_refused_by_name():
    copies = Copies(4, 100, 1472, Seal(KEY))
    good, = datagrams([2], seal=Seal(KEY))
    assert copies.take(good, 0) is None
    zero = bytearray(good)
    zero[16:24] = bytes(8)
    for data, reason in ((b"", "malformed"), (good[:39], "malformed"), (good + b"\0", "malformed"), (zero, "malformed"),
                         (b"FDRQ" + good[4:], "not ours"), (good[:4] + b"\2" + good[5:], "not ours"),
                         (datagrams([2])[0], "not signed with our key"),
                         (good[:-1] + b"\0", "not signed with our key")):
        assert copies.take(data, 0) == reason
    assert copies.refused == {"malformed": 4, "not ours": 2, "not signed with our key": 2}
    assert copies.packets == 1 and len(copies.streams) == 1


def test_loop_packets_and_answers_are_not_kept():
    copies, out = Copies(4, 100, 1472), []
    loop = LoopEncoder(SESSION, CHANNEL, lambda view: out.append(bytes(view)), lambda: 5, 1472, None, lambda: 1)
    loop.round(1, 1)
    loop.flush()
    assert copies.take(out[0], 0) is None and copies.take(flagged(datagrams([1])[0]), 0) is None
    assert not copies.streams and not copies.packets


def test_the_default_lines_are_heard_by_the_interface_that_is_given():
    parser = argparse.ArgumentParser()
    retransmit.configure(parser)
    with pytest.raises(HostError, match="interface nobody-has-it: neither a name nor an address"):
        retransmit.Retransmitter(parser.parse_args(["--port", str(free_udp_port()), "--interface", "nobody-has-it"]))


def test_what_there_is_no_memory_for_is_refused_by_name():
    copies = Copies(4, 1 << 50, 1)
    reason = copies.take(datagrams([2])[0], 0)
    assert reason.startswith("no memory to keep 1,125,899,906,842,624 datagrams") and copies.refused == {reason: 1}
    assert not copies.streams and not copies.channels


def test_a_stream_lives_until_its_place_is_wanted():
    copies = Copies(2, 10, 1472)
    first, second, third, fourth = (SESSION + at for at in range(4))
    copies.take(datagrams([3], session=first)[0], 0)
    copies.take(datagrams([3], session=second)[0], SECOND)
    assert copies.take(datagrams([3], session=third)[0], 2 * SECOND) == "more than 2 streams"      # both are alive
    assert copies.refused == {"more than 2 streams": 1}
    assert copies.take(datagrams([3], 4, session=second)[0], 3 * SECOND) is None
    assert [row["state"] for row in copies.rows(3 * SECOND)] == ["silent", "open"]
    assert copies.channels[CHANNEL].of(first).find(1, 3)[1] is None         # dead, and still there
    assert copies.take(bare(HEARTBEAT, 9, third), 3 * SECOND) is None       # takes the place of the first one
    assert copies.channels[CHANNEL].of(first) is None
    assert copies.channels[CHANNEL].of(third).find(1, 3) == ([], (1, 3))    # and nothing of what was there
    assert copies.take(bare(END, 9, second), 3 * SECOND) is None
    assert [row["state"] for row in copies.rows(3 * SECOND)] == ["ended", "open"]
    copies.take(datagrams([1], 9, session=fourth, channel=8)[0], 3 * SECOND)
    assert set(copies.streams) == {(CHANNEL, third), (8, fourth)} and copies.channels[8].of(fourth).oldest == 9
    assert (copies.channels[CHANNEL].of(second), copies.channels[CHANNEL].of(fourth)) == (None, None)


# -- as a process --------------------------------------------------------------------------------------------

def lost(line):
    """Return which datagrams a destination does not get: some that both lines lose, and some each."""
    dice = random.Random(line)
    share = {"A": 0.1, "B": 0.1, "here": 0.3}[line]
    return {at for at in range(COUNT - 1) if dice.random() < share} | (
        {100, 101, 102, 250} if line != "here" else {100, 101, 250, 251})


def publish(key, ports):
    """The publisher's process: all it has to each destination but what that one loses; then it waits to be killed."""
    senders = {line: PacketSender("127.0.0.1", int(port)) for line, port in zip(("A", "B", "here"), ports)}
    without = {line: lost(line) for line in senders}
    for at, data in enumerate(datagrams([SPAN] * COUNT, seal=Seal(key) if key else None)):
        for line, sender in senders.items():
            if at not in without[line]:
                assert sender.send(data) == 1
    print("done", flush=True)
    sys.stdin.read()


def start(*words):
    return subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", *map(str, words)], cwd=str(ROOT),
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def heard_by(receiver, buffer=bytearray(2048)):
    found = []
    while True:
        size = receiver.receive_into(buffer)
        if size is None:
            return found
        found.append(bytes(buffer[:size]))


class Asker:
    """A Client on a real socket, and what it got."""

    def __init__(self, port, missing, seal=None):
        self.missing = set(missing)              # numbers of messages
        self.client = Client([("127.0.0.1", port)], seal)
        self.socket = UnicastSocket()
        self.got, self.gone = [], []
        self.loop = Loop()
        self.buffer = memoryview(bytearray(2048))
        self.loop.register(self.socket, read=self.read)

    def wanted(self):
        ranges = []
        for number in sorted(self.missing):
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        return [(CHANNEL, SESSION, first, last) for first, last in ranges[:64]]

    def read(self):
        while True:
            found = self.socket.receive_into(self.buffer)
            if found is None:
                return
            size, address = found
            data = self.buffer[:size]
            gone = self.client.receive(data, address, steady_ns())
            if gone is None:
                self.got.append(bytes(data))
                self.missing -= set(range(span(data)[0], span(data)[1] + 1))
            for each in gone or ():
                self.gone.append(each)
                self.missing -= set(range(each[2], each[3] + 1))

    def run(self, seconds=10):
        """Ask until nothing is missing."""
        end_ns = steady_ns() + seconds * SECOND
        while self.missing and steady_ns() < end_ns:
            for address, request in self.client.ask(self.wanted(), steady_ns()):
                self.socket.send(request, address)
            due_ns = self.client.deadline_ns or end_ns
            self.loop.run_once(max(0, min(due_ns, end_ns) - steady_ns()))
        return self

    def close(self):
        self.loop.close()
        self.socket.close()


@pytest.mark.parametrize("key", [b"", KEY])
def test_what_was_lost_is_sent_again_though_the_publisher_is_dead(tmp_path, key):
    seal = Seal(key) if key else None
    key_file = tmp_path / "key"
    key_file.write_bytes(key)
    key_file.chmod(0o600)
    ports = {line: free_udp_port() for line in ("A", "B", "answers")}
    words = ["-m", "feeder", "retransmit", "--line", f"127.0.0.1:{ports['A']}", "--line", f"127.0.0.1:{ports['B']}",
             "--port", ports["answers"], "--seconds", 60, "--report", tmp_path / "report.json"]
    command = start(*words, *(["--key-file", key_file] if key else []))
    publisher = receiver = asker = None
    try:
        assert "packets/s heard" in command.stdout.readline()                # it listens
        receiver = PacketReceiver("127.0.0.1", 0)
        publisher = start("-m", "tests.test_retransmit", "publish", key.decode(), ports["A"], ports["B"], receiver.port)
        assert publisher.stdout.readline() == "done\n"
        publisher.kill()                                                     # with SIGKILL: no END, no heartbeat
        publisher.wait(10)
        here = heard_by(receiver)
        feed = datagrams([SPAN] * COUNT, seal=seal)
        assert here == [data for at, data in enumerate(feed) if at not in lost("here")]
        missing = {number for at in lost("here") for number in range(SPAN * at + 1, SPAN * at + SPAN + 1)}
        asker = Asker(ports["answers"], missing, seal).run()
        nowhere = lost("A") & lost("B") & lost("here")                       # 100, 101, 250 at least
        assert not asker.missing
        assert sorted(set(asker.got)) == sorted(flagged(feed[at]) for at in lost("here") - nowhere)
        assert all(seal is None or seal.verify(each) for each in asker.got)
        told = {number for *_, first, last in asker.gone for number in range(first, last + 1)}
        assert told == {number for at in nowhere for number in range(SPAN * at + 1, SPAN * at + SPAN + 1)}
        command.send_signal(signal.SIGINT)
        out, errors = command.communicate(timeout=10)
        assert command.returncode == 0 and errors == "" and f"messages 1 to {SPAN * COUNT:,};" in out
    finally:
        for process in (command, publisher):
            if process is not None:
                process.kill()
                process.communicate()
        for each in (receiver, asker):
            if each is not None:
                each.close()
    report = json.loads((tmp_path / "report.json").read_text())
    stream, = report["streams"]
    assert (stream["channel"], stream["session"], stream["oldest"], stream["newest"]) == (
        CHANNEL, SESSION, 1, SPAN * COUNT)
    assert stream["kept"] == COUNT - len(lost("A") & lost("B"))
    assert stream["missing_messages"] == SPAN * len(lost("A") & lost("B"))
    assert report["server"]["packets"] >= len(lost("here")) - len(nowhere) and report["internal_errors"] == 0
    assert report["server"]["challenges"] == 1 and report["refused"] == {} and report["kernel_drops"] in (0, None)


def test_wrong_words_are_named(tmp_path):
    for words, reason in ((["--line", "nonsense"], "'nonsense': expected ADDRESS:PORT"),
                          (["--networks", "10.0.0.1/8"], "network '10.0.0.1/8'"),
                          (["--address", "192.0.2.1"], "cannot bind 192.0.2.1:30003"),
                          (["--key-file", tmp_path / "none"], "key file")):
        done = subprocess.run([sys.executable, "-m", "feeder", "retransmit", *map(str, words)], cwd=str(ROOT),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=30)
        assert done.returncode == 2 and reason in done.stderr and not done.stdout


if __name__ == "__main__":
    assert sys.argv[1] == "publish"
    publish(sys.argv[2].encode(), sys.argv[3:])
