"""`feeder replay` of pcap files: exact gaps, books, lines, what is not ours; datagrams sent again, byte for byte."""

import gzip
import json
import os
import socket

import pytest
from support import book_decimals, decimals, dice
from test_replay import diff, feeder, written

from feeder import clock, packet, pcap
from feeder.control import datagram as control
from feeder.endpoint import Endpoint
from feeder.errors import CaptureError
from feeder.instrument import Instrument
from feeder.packet import Encoder, LoopEncoder
from feeder.publish import Publisher, SnapshotLoop
from feeder.replay import Pace
from feeder.replay_capture import CaptureReplay, parts, summary
from feeder.seal import Seal

SECOND, MILLISECOND = 10**9, 10**6
SESSION = 1_700_000_000 * SECOND
LINE_A, LINE_B, LOOP = (Endpoint(address, port, None) for address, port in (
    ("239.192.0.1", 30_001), ("239.192.0.2", 30_001), ("239.192.0.1", 30_002)))
KEY = b"sixteen bytes at least"


class Desk:
    """A publisher, and what it sent: (time, destination, datagram)."""

    def __init__(self, seed=1, seal=None, packet_bytes=512):
        self.rng = dice(seed)
        self.now_ns = SESSION
        self.sent = []
        self.encoder = Encoder(SESSION, 0, lambda datagram: self.send(LINE_A, datagram), lambda: self.now_ns,
                               packet_bytes, seal)
        self.publisher = Publisher(self.encoder, lambda *what: None)
        self.instruments = [Instrument(number, "binance_spot", f"COIN{number}", price_decimals=2, quantity_decimals=3,
                                       depth=5) for number in range(3)]
        for instrument in self.instruments:
            self.publisher.define(instrument, 1, 1)
            self.snapshot(instrument)
        self.loop = SnapshotLoop(self.publisher.carried[0], LoopEncoder(
            SESSION, 0, lambda datagram: self.send(LOOP, datagram), lambda: self.now_ns, packet_bytes, seal,
            lambda: self.encoder.sequence + self.encoder.count), 1)
        self.publisher.flush()

    def send(self, destination, datagram):
        self.now_ns += MILLISECOND
        self.sent.append((self.now_ns, destination, bytes(datagram)))

    def snapshot(self, instrument):
        self.publisher.snapshot(instrument, 1, 1, 2, [10_000, 5, 9_999, 7], [10_001, 5, 10_002, 7])

    def events(self, count):
        for _ in range(count):
            instrument = self.rng.choice(self.instruments)
            self.publisher.increment(instrument, 2, 1, 2, [self.rng.randrange(9_990, 10_001), self.rng.randrange(3)],
                                     [self.rng.randrange(10_001, 10_010), self.rng.randrange(3)])
            self.publisher.flush()

    def round(self):
        turns = self.loop.rounds
        while self.loop.rounds == turns:
            self.loop.send()

    def capture(self, path, lost=(), extra=()):
        """Write a file without the sequenced datagrams whose number (from 0) is in `lost`."""
        number = -1
        with open(path, "wb") as file:
            file.write(pcap.HEADER)
            for now_ns, destination, datagram in sorted([*self.sent, *extra], key=lambda each: each[0]):
                number += destination is LINE_A
                if destination is not LINE_A or number not in lost:
                    file.write(pcap.record(now_ns, ("10.0.0.1", 5_000), destination, datagram))
        return str(path)

    def gaps(self, lost):
        """What a receiver calls missing, in numbers of messages."""
        sequenced = [packet.decode(datagram) for _, destination, datagram in self.sent if destination is LINE_A]
        found = []
        for number in sorted(lost):
            first, last = sequenced[number].sequence, sequenced[number].sequence + sequenced[number].message_count - 1
            if found and found[-1][1] + 1 == first:
                found[-1][1] = last
            else:
                found.append([first, last])
        return found


def replayed(*paths, **more):
    replay = CaptureReplay(Pace(None), **more)
    for path in paths:
        with open(path, "rb") as file:
            replay.file(str(path), file)
    replay.finish()
    return replay, replay.report(0.5)


def agree(replay, desk):
    for entry in desk.publisher.entries:
        view, = replay.receiver.find(entry.instrument.symbol)
        assert view.in_step
        heard = tuple(decimals([number for level in side.levels() for number in level], 8, 8)
                      for side in (view.bids, view.asks))
        true = tuple(decimals(side, 2, 3) for side in entry.book.published())
        assert heard == true and book_decimals(entry)[0][0] == heard[0][0]


def test_gaps_are_exact_and_the_loop_heals(tmp_path):
    desk = Desk()
    desk.events(50)
    desk.round()
    desk.events(20)
    lost = (7, 8, 20, 41)
    replay, result = replayed(desk.capture(tmp_path / "a.pcap", lost))
    assert [[gap["from"], gap["to"]] for gap in result["gaps"]] == desk.gaps(lost) and len(result["gaps"]) == 3
    assert result["lost"] == sum(last - first + 1 for first, last in desk.gaps(lost))
    assert result["snapshot_loop"]["books_taken"] == 3 and result["mismatches"] == 0 and replay.exit_code() == 3
    agree(replay, desk)
    json.dumps(result)
    text = summary(result)
    first, last = desk.gaps(lost)[0]
    assert f"gap: channel 0, from {first} to {last}, {last - first + 1} messages" in text
    assert text[-1].startswith("binance_spot    COIN2           live ")
    assert (result["captured_seconds"], result["datagrams"]) == (
        (desk.sent[-1][0] - desk.sent[0][0]) / SECOND, len(desk.sent) - 4)


def test_another_line_fills_within_the_hold_and_is_late_without(tmp_path):
    desk = Desk(2)
    desk.events(60)
    later = [(now_ns + 3 * MILLISECOND, LINE_B, datagram) for now_ns, _, datagram in desk.sent]
    path = desk.capture(tmp_path / "a.pcap", lost=(3, 4, 30), extra=later)
    replay, result = replayed(path)
    assert result["gaps"] == [] and result["lost"] == result["mismatches"] == 0 and replay.exit_code() == 0
    a, b = result["lines"]
    assert (a["name"], b["name"]) == (str(LINE_A), str(LINE_B)) and b["wins"] == 3 and a["packets"] == b["packets"] - 3
    assert 2 * MILLISECOND < b["lag_ns"]["p50"] < 4 * MILLISECOND
    agree(replay, desk)
    _, result = replayed(path, hold_ms=0)
    assert result["gaps_total"] == 2 and result["late"] and result["lost"] == 0


def test_what_is_missing_at_the_end_is_told(tmp_path):
    desk = Desk()
    desk.events(10)
    desk.encoder.end()
    count = sum(destination is LINE_A for _, destination, _ in desk.sent)
    replay, result = replayed(desk.capture(tmp_path / "a.pcap", lost=(count - 2,)))
    assert result["gaps_total"] == 1 and result["sessions"][0]["ended"]
    assert {row["state"] for row in result["instruments"]} == {"stale"}
    assert "(session ended)" in summary(result)[-1]


def test_silence_is_that_of_the_capture(tmp_path):
    desk = Desk()
    desk.now_ns += 3_600 * SECOND
    desk.events(1)
    replay, result = replayed(desk.capture(tmp_path / "a.pcap"))
    assert result["silences"] == 1 and {row["state"] for row in result["instruments"]} == {"live"}


def test_files_go_on_where_the_one_before_ended(tmp_path):
    desk = Desk()
    desk.events(20)
    first = desk.capture(tmp_path / "a.pcap")
    desk.sent.clear()
    desk.events(20)
    replay, result = replayed(first, desk.capture(tmp_path / "b.pcap"))
    assert result["gaps"] == [] and len(result["lines"]) == 1
    agree(replay, desk)


def test_datagrams_that_left_by_one_call_are_taken_apart(tmp_path):
    desk = Desk()
    desk.events(9)
    together = b"".join(datagram for _, _, datagram in desk.sent)
    assert list(parts(together)) == [datagram for _, _, datagram in desk.sent]
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap.HEADER + pcap.record(SESSION, None, LINE_A, together))
    replay, result = replayed(path)
    assert (result["payloads"], result["datagrams"], result["errors"]) == (1, len(desk.sent), {})
    agree(replay, desk)
    for odd in (b"", b"FDR1", together[:-1], together + b"x", together[:34] + b"\0\0" + together[36:]):
        assert b"".join(parts(odd)) == odd
        replayed_parts = list(parts(odd))
        assert len(replayed_parts) <= len(desk.sent)


def test_what_is_not_ours_is_counted(tmp_path):
    desk = Desk()
    question = control.encode(control.Control(1, 0, SESSION, 1, 1, 0, bytes(16)))
    extra = [(SESSION, Endpoint("10.0.0.7", 53, None), b"who is"), (SESSION + 2, LINE_B, b"FDR1 but no packet"),
             (SESSION + 1, Endpoint("10.0.0.7", 30_003, None), question)]
    _, result = replayed(desk.capture(tmp_path / "a.pcap", extra=extra))
    assert (result["foreign"], result["control"], result["not_udp"]) == (1, 1, 0)
    assert sum(result["errors"].values()) == 1 and result["gaps"] == []
    text = "\n".join(summary(result))
    assert "left out: 1 datagrams of others" in text and "left out: 1 of retransmission" in text


def test_what_was_sent_again_fills_a_gap_and_is_no_line_and_a_tap_is_named(tmp_path):
    desk = Desk()
    desk.events(4)
    number, (now_ns, _, datagram) = 2, [each for each in desk.sent if each[1] is LINE_A][2]
    again = bytearray(datagram)
    again[5] |= packet.RETRANSMITTED
    tap, asker = Endpoint("0.0.0.0", 0, None), Endpoint("0.0.0.0", 40_000, None)
    _, result = replayed(desk.capture(tmp_path / "a.pcap", lost=[number], extra=[
        (now_ns + 10, asker, bytes(again)), (desk.now_ns, tap, desk.sent[-1][2])]))
    assert result["gaps"] == [] and [line["name"] for line in result["lines"]] == ["239.192.0.1:30001", "a tap"]


def test_a_key(tmp_path):
    desk = Desk(seal=Seal(KEY))
    path = desk.capture(tmp_path / "a.pcap")
    replay, result = replayed(path, seal=Seal(KEY))
    assert result["errors"] == {}
    agree(replay, desk)
    replay, result = replayed(path, seal=Seal(KEY + b"x"))
    assert result["packets"] == 0 and sum(result["errors"].values()) == len(desk.sent) and replay.exit_code() == 4


def test_too_many_destinations(tmp_path):
    desk = Desk()
    extra = [(SESSION + at, Endpoint("239.192.0.1", 1_000 + at, None), desk.sent[0][2]) for at in range(65)]
    with pytest.raises(CaptureError, match="more than 64 destinations"):
        replayed(desk.capture(tmp_path / "a.pcap", extra=extra))


# -- as a command -----------------------------------------------------------------------------------------------------

def test_the_command_goes_by_content(tmp_path):
    desk = Desk()
    desk.events(30)
    plain = desk.capture(tmp_path / "whole.jsonl")
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress((tmp_path / "whole.jsonl").read_bytes()))
    code, out, error = feeder("replay", plain)
    assert (code, error) == (0, "") and f"{len(desk.sent)} datagrams of " in out and "gaps 0" in out and "COIN2" in out
    code, out, error = feeder("replay", packed, "--report", "-")
    assert (code, error) == (0, "") and json.loads(out)["datagrams"] == len(desk.sent)
    lossy = desk.capture(tmp_path / "lossy.pcap", lost=(5,))
    code, out, error = feeder("replay", lossy, "--report", tmp_path / "report.json")
    assert (code, error) == (3, "") and "gap: channel 0, from " in out
    assert json.loads((tmp_path / "report.json").read_text())["gaps_total"] == 1


def test_exit_codes_name_what_is_wrong(tmp_path, capsys):
    from feeder import cli
    desk = Desk()
    desk.events(3)
    good = desk.capture(tmp_path / "good.pcap")
    data = (tmp_path / "good.pcap").read_bytes()
    for name, content, code, text in (
            ("cut.pcap", data[:-1], 2, f"cut.pcap, record {len(desk.sent)}: the file ends in it"),
            ("next.pcapng", b"\x0a\x0d\x0d\x0a" + bytes(24), 2, "a pcapng file; `editcap -F nsecpcap IN OUT`"),
            ("cut.gz", gzip.compress(data)[:-9], 2, "cut.gz, record "),
            ("worse.gz", gzip.compress(data)[:5], 2, "worse.gz: "),
            ("link.pcap", data[:20] + b"\x69" + data[21:], 2, "link type 105")):
        (tmp_path / name).write_bytes(content)
        assert cli.main(["replay", str(tmp_path / name)]) == code, name
        assert text in capsys.readouterr().err
    (tmp_path / "nothing.pcap").write_bytes(pcap.HEADER)
    assert cli.main(["replay", str(tmp_path / "nothing.pcap")]) == 4
    recording = written(tmp_path / "a.jsonl", diff(1))
    for files in ((good, recording), (recording, good)):
        assert cli.main(["replay", *files]) == 2
        assert "cannot be replayed together" in capsys.readouterr().err


def bound():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(30)
    return sock


def test_publish_sends_them_again_as_they_were(tmp_path):
    desk = Desk()
    desk.events(30)
    desk.round()
    path = desk.capture(tmp_path / "a.pcap")
    with bound() as line, bound() as loop:
        code, out, error = feeder("replay", path, "--publish", "--group", "127.0.0.1", "--port", line.getsockname()[1],
                                  "--snapshot-port", loop.getsockname()[1], "--report", "-")
        assert (code, error) == (0, "") and json.loads(out)["output"]["sent"] == len(desk.sent)
        for sock, wanted in ((line, LINE_A), (loop, LOOP)):
            for _, destination, datagram in desk.sent:
                if destination is wanted:
                    assert sock.recv(65_536) == datagram


def test_the_pace_is_the_captures(tmp_path, monkeypatch):
    now, slept = [0], []
    monkeypatch.setattr(clock, "steady_ns", lambda: now[0])

    def sleep(wanted):
        slept.append(wanted)
        now[0] += int(wanted * SECOND)

    monkeypatch.setattr(clock, "sleep", sleep)
    desk = Desk()
    desk.now_ns += 10 * SECOND
    desk.events(1)
    replay = CaptureReplay(Pace(5))
    path = desk.capture(tmp_path / "a.pcap")
    with open(path, "rb") as file:
        replay.file(path, file)
    assert sum(slept) == pytest.approx((desk.sent[-1][0] - desk.sent[0][0]) / SECOND / 5, abs=0.01)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_capture_may_come_through_a_pipe(tmp_path):
    import threading
    desk = Desk()
    data = open(desk.capture(tmp_path / "a.pcap"), "rb")
    with data:
        content = data.read()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    code, out, _ = feeder("replay", pipe, "--report", "-")
    writer.join()
    assert code == 0 and json.loads(out)["datagrams"] == len(desk.sent)
