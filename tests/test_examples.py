"""The examples of docs/examples as real processes, fed by a real publisher; and what they show of the types."""

import csv
import importlib.util
import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import typing
from pathlib import Path

import pytest
from outlet import free_address, multicast       # noqa: F401
from test_arbiter import Feed, Exchange

import feeder
from feeder import events
from feeder.clock import wall_ns
from feeder.listener import Listener
from feeder.net import PacketSender, UnicastSocket
from feeder.twin import spawn

PROJECT = Path(__file__).resolve().parent.parent
EXAMPLES = PROJECT / "docs" / "examples"


class Process:
    """One of ours; what it prints is kept, and can be waited for."""

    started = []

    def __init__(self, folder, *words):
        self.started.append(self)
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", *map(str, words)], cwd=str(folder), stdin=subprocess.DEVNULL,
            env=dict(os.environ, PYTHONPATH=str(PROJECT), PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        self.guard = threading.Timer(60, self.process.kill)
        self.guard.start()
        self.out = ""

    def wait_for(self, pattern):
        for line in self.process.stdout:
            self.out += line
            if re.search(pattern, line):
                return line
        raise AssertionError(f"{pattern!r} never came: {self.end()}")

    def end(self, number=None):
        """Return (exit code, standard output, standard error)."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate()
        self.guard.cancel()
        self.guard.join()
        return self.process.returncode, self.out + out, err


@pytest.fixture(autouse=True)
def processes():
    """None stays behind, whatever fails."""
    yield
    while Process.started:
        process = Process.started.pop()
        if process.process.returncode is None:
            process.end(signal.SIGKILL)


class Wire:
    """A Feed whose datagrams go out, but for those that are to be lost."""

    def __init__(self):
        self.address = free_address()
        self.sender = PacketSender(*self.address, interface="127.0.0.1")
        self.feed = Feed(Exchange(random.Random(5)), wall_ns())

    @property
    def line(self):
        return "{}:{}".format(*self.address)

    def send(self, datagrams):
        for datagram in datagrams:
            assert self.sender.send(datagram)


@pytest.fixture
def wire():
    wire = Wire()
    yield wire
    wire.sender.close()


def recorder(folder, wire, name, *words):
    """Start record_trades.py and send trades until it has written one; return it and the number of the last trade."""
    process = Process(folder, EXAMPLES / "record_trades.py", name, "--line", wire.line, "--snapshot-port", 0, *words)
    path = folder / name
    number = 0
    wire.feed.open()                                    # nobody hears it
    while not path.exists() or path.read_text().count("\n") < (2 if name.endswith("csv") else 1):
        for _ in wire.feed.instruments:
            wire.feed.publisher.refresh()
        wire.send(wire.feed.flush())
        number += 1
        wire.send(wire.feed.trade(0, number))
        assert process.process.poll() is None, process.end()
        threading.Event().wait(0.02)
    return process, number


def test_trades_are_recorded_to_csv_until_ctrl_c(tmp_path, wire):
    process, number = recorder(tmp_path, wire, "trades.csv")
    for number in range(number + 1, number + 50):
        wire.send(wire.feed.trade(number % 2, number, price=150 + number))
    path = tmp_path / "trades.csv"
    while f",{number}," not in path.read_text():
        threading.Event().wait(0.01)
    code, out, err = process.end(signal.SIGINT)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert (code, err) == (0, "") and out == f"{len(rows)} trades\n"
    first = int(rows[0]["trade_id"])
    assert [int(row["trade_id"]) for row in rows] == list(range(first, number + 1))
    last = rows[-1]
    assert (last["venue"], last["symbol"], last["price"], last["quantity"], last["side"]) == (
        "twin", f"COIN{number % 2}USDT", str(150 + number), "2", "buy" if number % 2 else "sell")


def test_a_recorder_that_missed_something_stops_and_says_what(tmp_path, wire):
    process, number = recorder(tmp_path, wire, "trades.jsonl")
    lost = wire.feed.encoder.sequence
    wire.feed.trade(0, number + 1)
    wire.send(wire.feed.trade(0, number + 2))
    code, out, err = process.end()
    rows = [json.loads(line) for line in (tmp_path / "trades.jsonl").read_text().splitlines()]
    assert code == 3 and out == ""
    assert err == f"after {len(rows)} trades: messages {lost} to {lost} of channel 0 are missing (network)\n"
    assert rows[-1]["trade_id"] == number


def test_a_recorder_ends_with_its_publisher(tmp_path, wire):
    process, number = recorder(tmp_path, wire, "trades.jsonl")
    wire.send(wire.feed.end())
    code, out, err = process.end()
    assert (code, err) == (0, "") and out.endswith(" trades\n")


def test_a_recorder_that_outlives_its_publisher(tmp_path, wire):
    """It was killed, and a new one came."""
    process, number = recorder(tmp_path, wire, "trades.jsonl")
    wire.send(Feed(wire.feed.venue, wall_ns()).open())
    code, out, err = process.end()
    assert code == 3 and err.endswith("channel 0: the publisher was started anew\n")


def test_two_lines_one_of_them_lossy(tmp_path, wire):
    other = free_address()
    second = PacketSender(*other, interface="127.0.0.1")
    process, number = recorder(tmp_path, wire, "trades.csv", "--line", "{}:{}".format(*other))
    dice = random.Random(3)
    for number in range(number + 1, number + 200):
        for datagram in wire.feed.trade(0, number):
            assert second.send(datagram)
            if dice.random() > 0.3:
                wire.send([datagram])
    path = tmp_path / "trades.csv"
    while f",{number}," not in path.read_text():
        wire.send(wire.feed.heartbeat())
        assert process.process.poll() is None, process.end()
        threading.Event().wait(0.01)
    second.close()
    code, _, err = process.end(signal.SIGTERM)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert (code, err) == (0, "")
    first = int(rows[0]["trade_id"])
    assert [int(row["trade_id"]) for row in rows] == list(range(first, number + 1))


def test_both_beside_a_real_feeder(tmp_path):
    """`feeder run` of two venues; the prices become live, the trades are recorded, and it all ends as it is told."""
    group, port = free_address()
    with spawn(["--rate", 500, "--symbols", 3, "--levels", 50]) as child:
        folder = tmp_path / "config"
        folder.mkdir()
        names = ("binance_spot", "binance_usdm")
        sock = UnicastSocket()
        sock.close()
        keys = {"crypto_exchanges": {"venues": names}, "symbol_mapping": {}, "hft_config": {
            "output": {"group": group, "port": port, "retransmit_port": sock.port}, "log": {"path": ""}}}
        for name in names:
            keys[name] = {"venue": name, "snapshot_limit": 100, "symbols": child.info[name]["symbols"][:3],
                          **{key: child.info[name][key] for key in ("websocket_url", "rest_url")}}
        for name, what in keys.items():
            (folder / f"{name}.json").write_text(json.dumps(what))
        run = Process(tmp_path, "-m", "feeder", "run", "--config", folder, "--profile", "baseline")
        line = ("--line", f"{group}:{port}")
        prices = Process(tmp_path, EXAMPLES / "best_prices.py", *line, "BTC/USDT", "binance_usdm:ETHUSDT")
        trades = Process(tmp_path, EXAMPLES / "record_trades.py", "trades.csv", *line, "--count", 50)
        found = prices.wait_for(r"^binance_usdm +ETH.* @ ")
        assert re.fullmatch(r"binance_usdm +ETH/USDT-PERP +[\d.]+ @ [\d.]+ +[\d.]+ @ [\d.]+ *\n", found)
        assert prices.wait_for("instruments") == "2 instruments, 0 messages missing\n"
        code, out, err = trades.end()
        assert (code, out, err) == (0, "50 trades\n", "")
        assert len((tmp_path / "trades.csv").read_text().splitlines()) == 51
        code, _, err = prices.end(signal.SIGINT)
        assert (code, err) == (0, "")
        assert run.end(signal.SIGINT)[0] == 0


# -- types ---------------------------------------------------------------------------------------------------------

def public_functions(owner):
    for name, found in inspect.getmembers(owner):
        if name.startswith("_") and name not in ("__init__", "__enter__", "__iter__", "__next__"):
            continue
        function = found.fget if isinstance(found, property) else found
        if inspect.isfunction(function) and function.__module__.startswith("feeder"):
            yield function


@pytest.mark.parametrize("owner", [getattr(events, name) for name in dir(events)
                                   if inspect.isclass(getattr(events, name)) and not name.startswith("_")]
                         + [Listener],
                         ids=lambda owner: owner.__name__)
def test_what_is_public_is_typed(owner):
    for function in public_functions(owner):
        hints = typing.get_type_hints(function)
        assert set(hints) == {*inspect.signature(function).parameters, "return"} - {"self"}, function
    for name in getattr(owner, "_fields", ()):
        assert name in typing.get_type_hints(owner)


def test_the_examples_pass_a_type_checker():
    """As somebody would who has the package among his: mypy, where it is there."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("no mypy")
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir=/dev/null",
                           *map(str, sorted(EXAMPLES.glob("*.py")))], cwd=str(PROJECT), stdout=subprocess.PIPE,
                          text=True)
    assert done.returncode == 0, done.stdout
    assert feeder.__file__ and (PROJECT / "feeder" / "py.typed").exists()


# -- docs/receiving.md ---------------------------------------------------------------------------------------------

PAGE = (PROJECT / "docs" / "receiving.md").read_text(encoding="utf-8")


def test_the_page_names_every_event_and_its_fields():
    rows = {row[0]: row[2] for row in re.findall(r"^\| (\w+) \| (.*) \| (.*) \|$", PAGE, re.M)[1:]}
    kinds = {kind.__name__: kind for kind in typing.get_args(events.Event)}
    assert set(rows) == set(kinds)
    for name, fields in rows.items():
        for field in fields.replace("exponents", "price_exponent, quantity_exponent").replace(
                "from and to (channel, session)", "from_channel, to_session").split(", "):
            assert hasattr(kinds[name], field), (name, field)


def test_the_programs_of_the_page_run(wire, tmp_path):
    """As they are, but for the address, the time, and an end."""
    programs = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(programs) == 2
    for number, program in enumerate(programs):
        program = program.replace("239.192.0.1:30001", wire.line).replace('"BTC/USDT"', '"COIN0/USDT"')
        program = program.replace("seconds=60", "seconds=0.5")
        path = tmp_path / f"program{number}.py"
        path.write_text(program)
        process = Process(tmp_path, path)
        stop = threading.Event()

        def publish():
            wire.feed.open()
            at = 1
            while not stop.wait(0.02):
                at += 1
                for _ in wire.feed.instruments:
                    wire.feed.publisher.refresh()
                wire.send(wire.feed.flush() + wire.feed.trade(0, at))

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            if number == 0:
                assert "COIN0" in process.wait_for("at 150")
                code, out, err = process.end(signal.SIGINT)
                assert err.splitlines()[-1] == "KeyboardInterrupt"
            else:
                code, out, err = process.end()
                assert (code, err) == (0, "") and "COIN0/USDT 150\n" in out and out.endswith("\n0\n")
        finally:
            stop.set()
            thread.join()
