"""`feeder replay`: the report, the pace, the refusals, the exit codes. Recordings in full are in test_captures."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from support import CAPTURES, PROJECT, lines, needs_captures, recordings, short

from feeder import cli, clock, packet
from feeder.errors import CaptureError, ConfigError
from feeder.replay import Pace, Replay, speed_of
from feeder.venue import VENUES, recognise

WS, REST = "wss://stream.binance.com:9443/stream", "https://api.binance.com/api/v3/depth?symbol=BTCUSDT&limit=1000"
SECOND = 10**9
SMALL = CAPTURES / "binance_spot" / "binanceus_4sym_20210814.jsonl.gz"


def diff(number, t=None, symbol="BTCUSDT", price="100.50"):
    raw = ('{"stream":"%s@depth@100ms","data":{"e":"depthUpdate","E":1723161255208,"s":"%s","U":%d,"u":%d,'
           '"b":[["%s","1.000"]],"a":[["101.50","2.000"]]}}' % (symbol.lower(), symbol, number, number, price))
    return {"t": number * SECOND if t is None else t, "conn": WS, "kind": "ws", "dir": "in", "raw": raw}


def book(number, symbol="BTCUSDT", **more):
    raw = '{"lastUpdateId":%d,"bids":[["100.00","5.000"]],"asks":[["101.00","0.500"]]}' % number
    return {"t": number * SECOND, "conn": REST.replace("BTCUSDT", symbol), "kind": "rest", "dir": "in", "raw": raw,
            **more}


def trade(number):
    return {"t": number * SECOND, "conn": WS, "kind": "ws", "dir": "in", "raw":
            '{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161255343,"s":"BTCUSDT","t":%d,"p":"100.75",'
            '"q":"0.001","T":1723161255342,"m":true,"M":true}}' % number}


def written(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def replayed(*files):
    replay = Replay(lambda datagram: None, session=1)
    for path in files:
        replay.file(path)
    return replay.report(0.5)


def feeder(*args, **more):
    """Run the command as a user does; return (exit code, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-m", "feeder", *map(str, args)], cwd=PROJECT,
                          capture_output=True, text=True, timeout=120, **more)
    return done.returncode, done.stdout, done.stderr


def test_the_report(tmp_path):
    path = written(tmp_path / "a.jsonl", diff(1), book(1), diff(2), trade(7), diff(3, price="100.75"),
                   {**diff(4), "dir": "out"})
    result = replayed(path)
    assert (result["records"], result["messages"], result["rest_books"], result["errors"]) == (6, 4, 1, 0)
    assert (result["gaps"], result["resyncs"], result["messages_per_second"]) == (0, 0, 8)
    row, = result["instruments"]
    assert {key: row[key] for key in ("venue", "symbol", "state", "reason", "events", "trades", "gaps", "resyncs",
                                      "last_sequence", "checksums_verified", "levels", "epoch")} == {
        "venue": "binance_spot", "symbol": "BTCUSDT", "state": "live", "reason": "none", "events": 3, "trades": 1,
        "gaps": 0, "resyncs": 0, "last_sequence": 3, "checksums_verified": 0, "levels": [3, 2], "epoch": 1}
    assert row["bids"] == [["100.75", "1"], ["100.5", "1"], ["100", "5"]]
    assert row["asks"] == [["101", "0.5"], ["101.5", "2"]]
    decoder = result["decoders"]["binance_spot"]
    assert decoder["likely"] + decoder["unlikely"] == 4
    json.dumps(result)


def test_a_gap_in_the_recording_is_told_and_not_cured_by_magic(tmp_path):
    row, = replayed(written(tmp_path / "a.jsonl", diff(1), book(1), diff(2), diff(4), diff(5)))["instruments"]
    assert (row["state"], row["reason"], row["gaps"], row["resyncs"], row["resync_reasons"]) == (
        "stale", "gap", 1, 1, {"gap": 1})
    row, = replayed(written(tmp_path / "b.jsonl", diff(1), book(1), diff(3), book(3), diff(4)))["instruments"]
    assert (row["state"], row["gaps"], row["epoch"]) == ("live", 1, 2)


def test_a_book_without_snapshot_is_never_live(tmp_path):
    row, = replayed(written(tmp_path / "a.jsonl", diff(1), diff(2)))["instruments"]
    assert (row["state"], row["reason"], row["bids"]) == ("syncing", "start", [])


def test_unreadable_messages_are_counted_shown_and_go_on(tmp_path):
    bad = {**diff(2), "raw": "{nonsense"}
    path = written(tmp_path / "a.jsonl", diff(1), book(1), *[bad] * 15, diff(2),
                   {**book(3), "raw": '{"code":-1121,"msg":"Invalid symbol."}'},
                   {**book(3), "conn": "https://api.binance.com/api/v3/exchangeInfo"},
                   book(9, symbol="X" * 40), book(9, symbol="%ED%A0%80%00"))
    result = replayed(path)
    assert result["errors"] == 18 and len(result["first_errors"]) == 10 and result["rest_other"] == 1
    assert "a.jsonl, record 3: binance_spot: not JSON" in result["first_errors"][0]
    assert result["instruments"][0]["state"] == "live" and result["instruments"][0]["last_sequence"] == 2


def test_a_second_file_starts_its_instruments_anew(tmp_path):
    one = written(tmp_path / "one.jsonl", diff(1), book(1), diff(2))
    two = written(tmp_path / "two.jsonl", diff(50), book(50), diff(51))
    row, = replayed(one, two)["instruments"]
    assert (row["state"], row["gaps"], row["last_sequence"]) == ("live", 0, 51)
    assert row["resync_reasons"] == {"disconnect": 1}


def test_the_report_shows_an_instrument_as_its_last_file_left_it(tmp_path):
    bitcoin = written(tmp_path / "btc.jsonl", diff(1), book(1), diff(2))
    ether = written(tmp_path / "eth.jsonl", diff(1, symbol="ETHUSDT"), book(1, "ETHUSDT"))
    rows = replayed(bitcoin, ether)["instruments"]
    assert [(row["symbol"], row["state"], row["last_sequence"], row["resyncs"]) for row in rows] == [
        ("BTCUSDT", "live", 2, 0), ("ETHUSDT", "live", 1, 0)]


def test_speed_of():
    assert speed_of("max") is None and speed_of("1x") == 1 and speed_of("2.5x") == 2.5 and speed_of("10") == 10
    for text in ("", "x", "fast", "0", "0x", "-1x", "nan", "inf", "1e9x", "1xx"):
        with pytest.raises(ConfigError, match="--speed"):
            speed_of(text)


@pytest.mark.parametrize("speed, seconds", [(1, 9), (4.5, 2), (None, 0)])
def test_the_pace_is_the_recordings(tmp_path, monkeypatch, speed, seconds):
    now = [0]
    slept = []
    monkeypatch.setattr(clock, "steady_ns", lambda: now[0])

    def sleep(wanted):
        slept.append(wanted)
        now[0] += int(wanted * SECOND)

    monkeypatch.setattr(clock, "sleep", sleep)
    path = written(tmp_path / "a.jsonl", diff(1), diff(2), {**diff(3), "t": None}, diff(3, t=2 * SECOND), diff(10))
    replay = Replay(lambda datagram: None, session=1, pace=Pace(speed))
    replay.file(path)
    assert sum(slept) == pytest.approx(seconds, abs=0.01)


def test_urls():
    for url, name in ((WS, "binance_spot"), (REST, "binance_spot"),
                      ("wss://stream.binance.us:9443/ws/x", "binance_spot"),
                      ("wss://fstream.binance.com/public/stream", "binance_usdm"),
                      ("https://fapi.binance.com/fapi/v1/depth?symbol=X", "binance_usdm"),
                      ("wss://dstream.binance.com/stream", "binance_coinm"),
                      ("https://dapi.binance.com/dapi/v1/depth?symbol=X", "binance_coinm")):
        assert recognise(url) is VENUES[name]
    for url in ("", "nonsense", "wss://example.com/stream", "https://api.binance.com.example.com/api/v3/depth",
                "wss://[broken", "wss://stream.binance.com.:bad/", "\ud800"):
        with pytest.raises(CaptureError, match="not a supported dialect"):
            recognise(url)


# -- as a command -------------------------------------------------------------------------------------------


def test_the_command_writes_a_report_and_a_table(tmp_path):
    path = written(tmp_path / "a.jsonl", diff(1), book(1), diff(2), trade(5))
    code, out, error = feeder("replay", path, "--report", tmp_path / "report.json")
    assert (code, error) == (0, "")
    assert "3 messages" in out and "BTCUSDT" in out and "live" in out and "100.5 / 101" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["instruments"][0]["bids"] == [["100.5", "1"], ["100", "5"]]
    code, out, error = feeder("replay", path, "--report", "-", "--depth", "0")
    assert (code, error) == (0, "") and json.loads(out)["instruments"][0]["state"] == "live"


def test_exit_codes_name_what_is_wrong(tmp_path, capsys):
    good = written(tmp_path / "good.jsonl", diff(1))
    bad = written(tmp_path / "bad.jsonl", diff(1), {"t": 1})
    foreign = written(tmp_path / "foreign.jsonl", {**diff(1), "conn": "wss://example.com/feed"})
    for args, code, text in (
            ([str(tmp_path / "none.gz")], 2, "none.gz: No such file"),
            ([bad], 2, "bad.jsonl, line 2: not a record"),
            ([foreign], 2, "'wss://example.com/feed' is not a supported dialect; supported are binance_spot"),
            ([good, "--speed", "fast"], 2, "--speed 'fast'"),
            ([good, "--report", str(tmp_path / "no" / "folder.json")], 2, "No such file")):
        assert cli.main(["replay", *args]) == code
        assert text in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        cli.main(["replay"])
    assert usage.value.code == 2
    with pytest.raises(SystemExit) as helped:
        cli.main(["replay", "--help"])
    assert helped.value.code == 0 and "example: python3 -m feeder replay" in capsys.readouterr().out


def test_a_cut_recording_is_an_error_of_the_command(tmp_path):
    import gzip
    data = gzip.compress("".join(json.dumps(diff(number)) + "\n" for number in range(1, 500)).encode())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(data[:len(data) // 2])
    code, _, error = feeder("replay", path)
    assert code == 2 and "cut.jsonl.gz" in error and "Traceback" not in error


def listener():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(30)
    return sock


def test_publish_sends_the_packets(tmp_path):
    path = written(tmp_path / "a.jsonl", diff(1), book(1), diff(2), trade(5))
    with listener() as sock:
        code, out, _ = feeder("replay", path, "--publish", "--group", "127.0.0.1", "--port", sock.getsockname()[1],
                              "--report", "-")
        report = json.loads(out)
        packets = [packet.decode(sock.recv(65_536)) for _ in range(report["packets"])]
    assert code == 0 and report["output"]["sent"] == report["packets"] and report["output"]["dropped"] == 0
    assert packets[-1].flags == packet.END
    assert [each.sequence for each in packets] == [1 + sum(before.message_count for before in packets[:number])
                                                   for number in range(len(packets))]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_with_the_report_so_far(tmp_path):
    path = written(tmp_path / "a.jsonl", trade(1), trade(3_600))
    with listener() as sock:
        child = subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-m", "feeder", "replay", path,
                                  "--speed", "1x", "--publish", "--group", "127.0.0.1", "--port",
                                  str(sock.getsockname()[1]), "--report", "-"],
                                 cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with child:
            sock.recv(65_536)                     # the first trade is out: it now waits an hour
            child.send_signal(signal.SIGINT)
            out, error = child.communicate(timeout=30)
            last = packet.decode(sock.recv(65_536))
    assert (child.returncode, error) == (130, "")
    assert json.loads(out)["messages"] == 1 and last.flags == packet.END


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_recording_may_come_through_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = "".join(json.dumps(entry) + "\n" for entry in (diff(1), book(1), diff(2)))
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    row, = replayed(str(pipe))["instruments"]
    writer.join()
    assert row["state"] == "live"


# -- other venues' recordings -------------------------------------------------------------------------------

def is_foreign(path):
    connection = next((entry["conn"] for entry in lines(path) if entry["dir"] == "in"), "")
    try:
        return not recognise(connection)
    except CaptureError:
        return bool(connection)


FOREIGN = [path for path in recordings() if is_foreign(path)]
FOREIGN += [path for path in sorted(CAPTURES.glob("*/quoted_live_frames.jsonl")) if is_foreign(path)]


@needs_captures
@pytest.mark.parametrize("path", FOREIGN, ids=short)
def test_foreign_dialects_are_refused_by_name(path, capsys):
    assert cli.main(["replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"feeder: {path.parent.name}") and "is not a supported dialect" in error
    assert "Traceback" not in error and len(error) < 500


@needs_captures
def test_a_foreign_recording_as_a_command():
    code, out, error = feeder("replay", next(path for path in FOREIGN if path.parent.name == "kucoin"))
    assert code == 2 and out == "" and error.startswith("feeder: kucoin (wss://")


@needs_captures
def test_a_binance_recording_as_a_command():
    code, out, error = feeder("replay", SMALL, "--report", "-")
    report = json.loads(out)
    assert (code, error) == (0, "") and report["gaps"] == report["errors"] == 0 and len(report["instruments"]) == 4
    assert {row["state"] for row in report["instruments"]} == {"live"}
    assert all(len(row["bids"]) == len(row["asks"]) == 20 for row in report["instruments"])
