"""Recordings: what a line must be, and that an error names the file and the line."""

import gzip
import json

import pytest
from support import deliveries, lines, needs_captures, recordings

from feeder import capture
from feeder.capture import Record
from feeder.errors import CaptureError

GOOD = {"t": 5, "conn": "wss://stream.binance.com/stream", "kind": "ws", "dir": "in", "raw": "{}"}


def written(path, *entries):
    path.write_bytes(b"".join((entry if isinstance(entry, bytes) else json.dumps(entry).encode()) + b"\n"
                              for entry in entries))
    return path


def test_plain_and_gzip_alike(tmp_path):
    plain = written(tmp_path / "a.jsonl", GOOD, {**GOOD, "t": None, "kind": "rest", "raw": "é"})
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    expected = [Record(5, GOOD["conn"], "ws", "in", b"{}"), Record(None, GOOD["conn"], "rest", "in", "é".encode())]
    assert list(capture.read(str(plain))) == list(capture.read(str(packed))) == expected


def test_gzip_is_recognised_by_content_not_by_name(tmp_path):
    path = tmp_path / "named.jsonl"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert len(list(capture.read(path))) == 1


def test_other_clock_and_sent_messages(tmp_path):
    entry = {key: value for key, value in GOOD.items() if key not in ("t", "dir")}
    path = written(tmp_path / "a.jsonl", {**entry, "mono_ns": 9}, {**GOOD, "dir": "out", "op": "bin", "note": "x"})
    assert [(each.t, each.direction) for each in capture.read(path)] == [(9, "in"), (5, "out")]


def test_an_empty_file_has_no_records(tmp_path):
    assert list(capture.read(written(tmp_path / "a.jsonl"))) == []
    (tmp_path / "a.gz").write_bytes(gzip.compress(b""))
    assert list(capture.read(tmp_path / "a.gz")) == []


@pytest.mark.parametrize("line", [
    b"", b"{", b"null", b"[]", b"5", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"t":1}', b"{}" * 2,
    {**GOOD, "raw": None}, {**GOOD, "raw": 5}, {**GOOD, "raw": "\ud800"}, {**GOOD, "kind": "tcp"},
    {**GOOD, "kind": None},
    {**GOOD, "conn": None}, {**GOOD, "conn": 7}, {**GOOD, "t": "5"}, {**GOOD, "t": 1.5}, {**GOOD, "t": []},
    {**GOOD, "t": True}, {**GOOD, "t": 2**63}, {**GOOD, "t": -1}, {**GOOD, "dir": 5}, {**GOOD, "dir": "sideways"},
    {key: value for key, value in GOOD.items() if key != "t"},
    {key: value for key, value in GOOD.items() if key != "raw"}], ids=lambda line: str(line)[:40])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line):
    path = written(tmp_path / "bad.jsonl", GOOD, GOOD, line, GOOD)
    found = []
    with pytest.raises(CaptureError, match=r"bad\.jsonl, line 3: not a record"):
        for record in capture.read(path):
            found.append(record)
    assert len(found) == 2, "what comes before was handed over"


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "MAX_LINE_BYTES", 100)
    path = written(tmp_path / "long.jsonl", b" " * 500)
    with pytest.raises(CaptureError, match="long.jsonl, line 1: longer than 100 bytes"):
        list(capture.read(path))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(CaptureError, match="nothing.gz: No such file"):
        list(capture.read(str(tmp_path / "nothing.gz")))
    with pytest.raises(CaptureError, match="directory"):
        list(capture.read(str(tmp_path)))


def test_gzip_cut_anywhere_tells_so_after_what_could_be_read(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({**GOOD, "t": number}).encode() + b"\n" for number in range(50)))
    path = tmp_path / "cut.jsonl.gz"
    most = 0
    for pieces in deliveries(whole):
        if len(pieces) != 2 or len(pieces[0]) < 2:
            continue                              # one byte is not known to be gzip, but is no record either
        path.write_bytes(pieces[0])
        found = []
        with pytest.raises(CaptureError, match="cut.jsonl.gz"):
            for record in capture.read(path):
                found.append(record.t)
        assert found == list(range(len(found)))
        most = max(most, len(found))
    assert most > 10


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_damaged_gzip(tmp_path, at):
    text = "".join(json.dumps({**GOOD, "t": number}) + "\n" for number in range(500))
    data = bytearray(gzip.compress(text.encode()))
    data[int(len(data) * at)] ^= 0xFF
    path = tmp_path / "damaged.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(CaptureError, match="damaged.jsonl.gz"):
        list(capture.read(path))


@needs_captures
def test_every_recording_of_every_venue_is_readable():
    """The format is common to all venues, though the dialects are not; the big ones are read by test_captures."""
    count = 0
    for path in recordings():
        if path.stat().st_size > 200_000:
            continue
        for record, entry in zip(capture.read(path), lines(path)):
            assert record.payload == entry["raw"].encode() and record.conn == entry["conn"]
            assert record.t == entry.get("t", entry.get("mono_ns")) and record.direction == entry.get("dir", "in")
            count += 1
    assert count > 10_000
