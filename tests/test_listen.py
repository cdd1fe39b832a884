"""The listener over real multicast on loopback: a publisher made of the Encoder and a PacketSender."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from outlet import Outlet, free_port

from feeder import inlet, listen
from feeder.clock import SECOND, steady_ns, wall_ns
from feeder.errors import ConfigError, FeederError, HostError
from feeder.instrument import Instrument
from feeder.message import BUY, LIVE, REASON_CODES, STALE
from feeder.net import PacketReceiver, PacketSender, SocketOptions, UnicastSocket
from feeder.packet import INCREMENT, RETRANSMITTED, SNAPSHOT, Encoder
from feeder.pcap import Reader
from feeder.receiver import exhaust

GROUP = "239.192.77.5"
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
E8 = 10**8


@pytest.fixture(scope="module")
def multicast():
    """Skip where the host has no multicast on loopback (some containers)."""
    try:
        PacketReceiver(GROUP, free_port(), interface="127.0.0.1").close()
    except HostError as error:
        pytest.skip(str(error))


def parse(*arguments):
    parser = argparse.ArgumentParser()
    listen.configure(parser)
    return parser.parse_args([str(argument) for argument in arguments])


class Publisher:
    """Two instruments of the same symbol at two venues. `lose` names datagrams, counted from 0, that are not sent."""

    def __init__(self, port, lose=()):
        self.sender = PacketSender(GROUP, port, interface="127.0.0.1")
        self.encoder = Encoder(wall_ns(), 7, self.emit, wall_ns)
        self.lose = lose
        self.datagrams = 0
        self.spot = Instrument(0, "binance_spot", "BTCUSDT", "BTC/USDT", 2, 5)
        self.usdm = Instrument(1, "binance_usdm", "BTCUSDT", "BTC/USDT", 1, 3)

    def emit(self, datagram):
        if self.datagrams not in self.lose:
            assert self.sender.send(datagram)
        self.datagrams += 1

    def open(self):
        """Datagram 0: definitions and snapshots."""
        encoder, now_ns = self.encoder, wall_ns()
        for instrument in (self.spot, self.usdm):
            encoder.definition(instrument)
            encoder.levels(SNAPSHOT, instrument.instrument_id, LIVE, 1, 100, now_ns, now_ns,
                           [6183764 * 10**6, 150_000_000, 6183700 * 10**6, 25_000_000], [6183800 * 10**6, 1 * E8])
        encoder.flush()

    def change(self, sequence):
        """One datagram: the best bid's quantity, a trade and a bbo."""
        encoder, now_ns = self.encoder, wall_ns()
        encoder.levels(INCREMENT, 0, LIVE, 1, sequence, now_ns, now_ns, [6183764 * 10**6, sequence * E8], [])
        encoder.trade(0, LIVE, 1, sequence, now_ns, now_ns, 77, 6183764 * 10**6, 5_000_000, 1)
        encoder.bbo(0, LIVE, 1, sequence, now_ns, now_ns, 6183764 * 10**6, E8, 6183800 * 10**6, E8)
        encoder.flush()

    def close(self):
        self.sender.close()


def run(tmp_path, *arguments, lose=(), actions=None, stale=False, seconds=20):
    """Run `listen` in this process against a publisher in a thread; return (exit code, report)."""
    port = free_port()
    path = tmp_path / "report.json"
    args = parse("--group", GROUP, "--port", port, "--seconds", seconds, "--report", path, *arguments)
    joined = threading.Event()

    def publish():
        joined.wait()
        publisher = Publisher(port, lose)
        try:
            publisher.open()
            for sequence in range(101, 111):
                publisher.change(sequence)
            if stale:
                publisher.encoder.status(1, STALE, 1, 100, wall_ns(), REASON_CODES["gap"])
            publisher.encoder.heartbeat()
        finally:
            publisher.close()

    class Joined(listen.Monitor):
        def run(self):
            joined.set()                 # the group was joined when the monitor was made
            super().run()

    thread = threading.Thread(target=publish)
    thread.start()
    original, listen.Monitor = listen.Monitor, Joined
    try:
        code = listen.main(args)
    finally:
        listen.Monitor = original
        joined.set()
        thread.join()
    return code, json.loads(path.read_text())


MESSAGES = 4 + 30                        # of the publisher above


def test_everything_arrives(multicast, tmp_path, capsys):
    code, report = run(tmp_path, "--count", MESSAGES)
    assert code == report["exit_code"] == 0
    assert (report["messages"], report["packets"], report["lost"], report["gaps"]) == (MESSAGES, 11, 0, [])
    assert report["messages_by_type"] == {"definition": 2, "snapshot": 2, "increment": 10, "trade": 10, "bbo": 10,
                                          "status": 0, "padding": 0, "round": 0}
    spot, usdm = report["instruments"]
    assert (spot["venue"], spot["symbol"], spot["state"], spot["epoch"]) == ("binance_spot", "BTCUSDT", "live", 1)
    assert (spot["events"], spot["trades"], spot["last_venue_sequence"]) == (11, 10, 110)
    assert spot["bids"] == [["61837.64", "110"], ["61837", "0.25"]]
    assert spot["asks"] == [["61838", "1"]]
    assert (usdm["venue"], usdm["events"], usdm["in_step"]) == ("binance_usdm", 1, True)
    assert report["sessions"][0]["channel"] == 7
    latency = report["latency"]
    assert latency["send_to_receive_ns"]["count"] == 11 and latency["venue_receive_to_receive_ns"]["count"] == 30
    assert report["mismatches"] == report["crossed"] == report["internal_errors"] == 0
    out = capsys.readouterr().out
    assert "messages lost 0" in out and "2 live, 0 syncing, 0 stale" in out


def test_loss_is_named_and_is_exit_code_3(multicast, tmp_path, capsys):
    code, report = run(tmp_path, "--count", MESSAGES - 6, lose=(3, 4))
    assert code == 3
    gap, = report["gaps"]
    assert (gap["channel"], gap["from"], gap["to"], gap["messages"]) == (7, 4 + 7, 4 + 12, 6)
    assert (report["gaps_total"], report["lost"]) == (1, 6)
    assert {one["state"] for one in report["instruments"]} == {"stale"}
    assert {one["reason"] for one in report["instruments"]} == {"gap"}
    assert "gaps 1, messages lost 6" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_pcap_file_on_a_full_disk_is_told_and_is_exit_code_1(multicast, tmp_path, capsys, monkeypatch):
    class Full(inlet.Recording):
        def __init__(self, path):
            super().__init__(path)
            self.file.close()
            self.file = open("/dev/full", "ab")      # which takes what its buffer holds, until it is closed

    monkeypatch.setattr(inlet, "Recording", Full)
    code, report = run(tmp_path, "--count", MESSAGES, "--pcap", tmp_path / "came.pcap")
    assert (code, report["exit_code"], report["pcap"]["error"]) == (1, 1, "No space left on device")
    assert "came.pcap ends after" in capsys.readouterr().out and report["lost"] == 0


def test_nothing_received_is_exit_code_4(multicast, tmp_path, capsys):
    path = tmp_path / "report.json"
    args = parse("--group", GROUP, "--port", free_port(), "--seconds", "0.05", "--report", path)
    assert listen.main(args) == 4
    assert "nothing received from 239.192.77.5" in capsys.readouterr().out
    assert json.loads(path.read_text())["packets"] == 0


def test_print_writes_json_lines_with_names_and_decimal_text(multicast, tmp_path, capsys):
    code, _ = run(tmp_path, "--print", "--count", 7, lose=(1,))
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert code == 3
    assert [record["type"] for record in records] == [
        "session", "definition", "snapshot", "definition", "snapshot", "gap", "increment", "trade", "bbo"]
    assert records[5]["from"] == 5 and records[5]["to"] == 7
    snapshot, trade = records[2], records[7]
    assert (snapshot["venue"], snapshot["symbol"], snapshot["sequence"]) == ("binance_spot", "BTCUSDT", 2)
    assert snapshot["bids"] == [["61837.64", "1.5"], ["61837", "0.25"]]
    assert (trade["price"], trade["quantity"], trade["side"], trade["state"]) == ("61837.64", "0.05", "buy", "live")
    assert "listened" in captured.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_print_into_a_full_disk_is_told(multicast, tmp_path, capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, report = run(tmp_path, "--print", "--count", MESSAGES)
    assert code == report["exit_code"] == 1
    assert "the standard output ended after" in capsys.readouterr().err


def test_report_on_standard_output_is_all_there_is(multicast, capsys):
    args = parse("--group", GROUP, "--port", free_port(), "--seconds", "0.05", "--report", "-")
    assert listen.main(args) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["gaps_total"] == 0 and "nothing received" in captured.err


def test_status_is_printed_with_its_reason(multicast, tmp_path, capsys):
    code, report = run(tmp_path, "--print", "--count", MESSAGES + 1, stale=True)
    status = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (status["type"], status["state"], status["reason"], status["venue"]) == (
        "status", "stale", "gap", "binance_usdm")
    assert [one["state"] for one in report["instruments"]] == ["live", "stale"] and code == 0


def test_ambiguous_book_says_so(multicast, tmp_path):
    with pytest.raises(ConfigError, match="ambiguous: binance_spot:BTCUSDT, binance_usdm:BTCUSDT"):
        run(tmp_path, "--book", "btcusdt", "--count", MESSAGES)


def test_a_book_of_two_publishers_is_one(multicast, capsys):
    with listen.Monitor(parse("--group", GROUP, "--port", free_port(), "--book", "C0/USDT")) as monitor:
        outlets = []
        for line, session in enumerate((7, 5)):
            outlet = Outlet([], count=1, session=session)
            outlet.encoder.emit = lambda datagram, line=line: monitor.heard.receive(bytes(datagram), wall_ns(), line)
            outlet.open()
            outlets.append(outlet)

        def shown():
            monitor.show_book()
            return monitor.shown.stream.session.number

        assert [view.state for view in monitor.find_book()] == [LIVE, LIVE] and shown() == 7
        assert "one of 2 publishers: channel 0, session 7" in capsys.readouterr().out
        outlets[0].encoder.status(0, STALE, 1, 100, wall_ns(), REASON_CODES["disconnect"])
        outlets[0].encoder.flush()
        assert shown() == 5
        outlets[0].open()                # live again, but there is no reason to change
        assert [view.state for view in monitor.find_book()] == [LIVE, LIVE] and shown() == 5
        outlets[1].encoder.end()
        assert shown() == 7


def test_a_tap_that_nobody_has_is_named(multicast, capsys):
    if not sys.platform.startswith("linux"):
        pytest.skip("taps need Linux")
    assert listen.main(parse("--tap", "feeder-test-nobody", "--seconds", "0.05")) == 4
    out = capsys.readouterr().out
    assert "nothing received from tap feeder-test-nobody in" in out and "no process on this host has it" in out


def heard_by(publish):
    """Return a Receiver that got what publish(publisher) sent, without a network."""
    heard = listen.Receiver()
    publisher = Publisher(free_port())
    publisher.encoder.emit = lambda datagram: heard.receive(datagram, wall_ns())
    try:
        publish(publisher)
    finally:
        publisher.close()
    return heard


def test_ladder_aligns_points_and_hides_what_is_not_live():
    heard = heard_by(Publisher.open)
    view = heard.find("binance_spot:BTCUSDT")[0]
    head, titles, *rows = listen.ladder(view, 20, 80)
    assert head.startswith("binance_spot:BTCUSDT  BTC/USDT  live  epoch 1")
    assert titles.split() == ["bid", "quantity", "bid", "ask", "ask", "quantity"]
    assert [line.split() for line in rows] == [["1.5", "61837.64", "61838", "1"], ["0.25", "61837"]]
    assert rows[0].index("61837.64") == rows[1].index("61837")
    assert listen.ladder(view, 20, 25)[1].split() == ["bid", "ask"]
    exhaust(heard.tick(wall_ns() + 60 * 10**9))
    assert len(listen.ladder(view, 20, 80)) == 1 and "STALE (silent)" in listen.ladder(view, 20, 80)[0]


@pytest.mark.parametrize("width, height", [(200, 60), (80, 24), (30, 12), (10, 3)])
def test_screen_lines_at_any_size(multicast, width, height):
    monitor = listen.Monitor(parse("--group", GROUP, "--port", free_port()))
    with monitor:
        assert "nothing received yet" in monitor.status_lines(width, height)
        monitor.heard = heard_by(Publisher.open)
        monitor.heard.receive(b"junk", 0)
        text = "\n".join(monitor.status_lines(width, height))
        assert "datagram of N bytes" in text and "2 live" in text
        if height > 20:
            assert "61837.64" in text and "binance_usdm" in text or width < 80
        monitor.refresh()


def test_wrong_arguments(capsys, tmp_path):
    for arguments in (["--port", "0"], ["--port", "x"], ["--seconds", "-1"], ["--book", "A", "--print"]):
        with pytest.raises(SystemExit) as stop:
            parse(*arguments)
        assert stop.value.code == 2
    assert "is not within 1 to 65535" in capsys.readouterr().err
    with pytest.raises(FeederError, match="standard output") as error:
        listen.main(parse("--print", "--report", "-"))
    assert error.value.exit_code == 2
    with pytest.raises(HostError, match="no/such/dir") as error:
        listen.main(parse("--report", tmp_path / "no/such/dir/report"))
    assert error.value.exit_code == 2
    with pytest.raises(HostError, match="interface"):
        listen.main(parse("--interface", "nosuch0"))


@pytest.mark.skipif(os.name != "posix", reason="signals to a child are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_with_summary_and_report(multicast, number):
    port = free_port()
    script = ("import argparse, sys\n"
              "from feeder import listen\n"
              "parser = argparse.ArgumentParser()\n"
              "listen.configure(parser)\n"
              "sys.exit(listen.main(parser.parse_args()))\n")
    with subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-c", script, "--group", GROUP, "--port",
                           str(port), "--print"], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        publisher = Publisher(port)
        try:
            publisher.open()                          # may be before the child has joined
            timer = threading.Timer(15, child.kill)
            timer.start()
            again = threading.Event()

            def repeat():
                while not again.wait(0.05):
                    publisher.change(101)
            thread = threading.Thread(target=repeat)
            thread.start()
            first = json.loads(child.stdout.readline())
            child.send_signal(number)
            out, err = child.communicate()
            again.set()
            thread.join()
            timer.cancel()
        finally:
            publisher.close()
    assert first["type"] == "session"
    assert child.returncode == 0, err
    assert b"listened" in err and b"Traceback" not in err and b"Warning" not in err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="UDP_GRO is Linux's")
@pytest.mark.parametrize("more", [(), ("--coalesce",), ("--coalesce", "--print")])
def test_bursts_are_heard_as_datagrams(multicast, more, capsys):
    """Padded, and cut by the kernel or by the listener: every message once, none unknown, no gap."""
    port = free_port()
    sender = PacketSender(GROUP, port, options=SocketOptions(segment_bytes=1472))
    encoder = Encoder(1, 0, sender.send, wall_ns)
    encoder.gather(sender.burst, 10**9)
    with closing(sender), listen.Monitor(parse("--group", GROUP, "--port", port, *more)) as monitor:
        for number in range(500):
            encoder.trade(3, LIVE, 1, number, 2, 3, number, 4, 5, BUY)
        encoder.end()
        assert sender.bursts == 1 and sender.sent == 28
        while monitor.heard.packets < sender.sent:
            monitor.loop.run_once()
        heard = monitor.heard
        assert (heard.by_type["trade"], heard.by_type["padding"], heard.messages) == (500, 25, 525)
        assert (heard.gap_count, heard.errors, heard.unknown_messages) == (0, {}, 0)
        assert monitor.inlet.sources[0].socket.coalesces == bool(more) and not monitor.faults()
        assert "or more" not in monitor.loss()
        monitor.drops = 3
        assert ("kernel drops 3 or more" in monitor.loss()) == bool(more)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == (502 if "--print" in more else 0), printed[:3]


def test_two_lines_and_retransmission_are_told_line_by_line(multicast, tmp_path, capsys):
    """A loses a third, B one datagram, which nobody else has but the server."""
    port, loop_port = free_port(), free_port()
    endpoints = [(GROUP, port), ("239.192.77.6", port)]
    lost = {(0, number) for number in range(1, 60, 3)} | {(1, 30), (0, 30)}
    path = tmp_path / "came.pcap"
    with Outlet(endpoints, [(GROUP, loop_port)], lose=lambda line, number: (line, number) in lost) as outlet:
        server = outlet.server_socket = UnicastSocket("127.0.0.1")
        with listen.Monitor(parse(
                "--line", f"{GROUP}:{port}", "--line", f"239.192.77.6:{port}", "--snapshot-port", loop_port,
                "--retransmit", f"127.0.0.1:{server.port}", "--pcap", path)) as monitor:
            monitor.loop.register(server, read=lambda: server.serve(outlet.server.receive, steady_ns))
            monitor.loop.on_idle = monitor.on_round
            outlet.open()
            for _ in range(60):
                outlet.change()
            outlet.round()
            stop_ns = steady_ns() + 10 * SECOND
            while monitor.heard.messages < 4 + 120 or not monitor.heard.rounds:
                monitor.loop.run_once(SECOND)
                assert steady_ns() < stop_ns
            report = monitor.report()
            assert (report["lost"], report["gaps"], report["exit_code"], report["hold_ms"]) == (0, [], 0, 200)
            a, b = report["lines"]
            assert (a["name"], b["name"]) == (f"{GROUP}:{port}", f"239.192.77.6:{port}")
            assert (a["lost"], b["lost"]) == (2 * 21, 2) and a["wins"] + b["wins"] == outlet.datagrams - 1
            assert report["retransmission"]["packets"] == 1 and report["snapshot_loop"]["rounds"] == 1
            assert json.dumps(report) and report["pcap"]["datagrams"] > 100
            text = "\n".join(monitor.summary())
            assert f"line      {GROUP}:{port}: " in text and "messages lost 42" in text
            assert "resent    1 packets" in text
            assert f"239.192.77.6:{port} on 127.0.0.1: " in text and "snapshots 1 packets" in text
            monitor.refresh()
    with open(path, "rb") as file:                       # what was sent again is in it, or a replay would miss it
        resent = [each.source.port for each in Reader(file, "came.pcap")
                  if each.datagram[:4] == b"FDR1" and each.datagram[5] & RETRANSMITTED]
    assert resent == [server.port]


def test_print_with_a_hold_is_in_order_and_tells_gaps_when_they_are_declared(multicast, capsys):
    """Datagram 3 comes by line B only, and later; 6 never."""
    port = free_port()
    endpoints = [(GROUP, port), ("239.192.77.6", port)]
    with Outlet(endpoints, lose=lambda line, number: number == 6 or line != (1 if number in (0, 3) else 0)) as outlet:
        with listen.Monitor(parse("--print", "--hold-ms", 300, "--snapshot-port", 0, "--line", f"{GROUP}:{port}",
                                  "--line", f"239.192.77.6:{port}")) as monitor:
            monitor.loop.on_idle = monitor.on_round
            outlet.open()
            for _ in range(8):
                outlet.change()
            stop_ns = steady_ns() + 10 * SECOND
            while monitor.heard.messages < 4 + 14:
                monitor.loop.run_once(SECOND)
                assert steady_ns() < stop_ns
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["sequence"] if "sequence" in record else record["type"] for record in records] == [
        "session", *range(1, 15), "gap", *range(17, 21)]
    assert records[15]["from"] == 15 and records[15]["to"] == 16


def test_a_key_and_what_is_not_signed_with_it(multicast, tmp_path):
    path = tmp_path / "feeder.key"
    path.write_bytes(b"sixteen bytes or more\n")
    path.chmod(0o600)
    port = free_port()
    with listen.Monitor(parse("--group", GROUP, "--port", port, "--key-file", path, "--snapshot-port", 0)) as monitor:
        with Outlet([(GROUP, port)], channel=3) as forger, Outlet([(GROUP, port)], key=path.read_bytes()[:-1]) as good:
            forger.open()
            good.open()
            while monitor.inlet.datagrams < forger.datagrams + good.datagrams:
                monitor.loop.run_once(SECOND)
        report = monitor.report()
        assert {session["channel"] for session in report["sessions"]} == {0} and report["lost"] == 0
        assert report["errors"] == {"packet is not signed": forger.datagrams}
    for arguments, text in ((["--key-file", tmp_path / "none"], "key file"),
                            (["--line", "x"], "expected ADDRESS:PORT")):
        with pytest.raises(ConfigError, match=text):
            listen.Monitor(parse(*arguments))
