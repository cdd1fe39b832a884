"""Distribution over real sockets: `feeder run`, a network that loses (relay.py), Listeners in processes of their own.

    twin ─▶ feeder run ─▶ group ─▶ relay ─▶ group ─▶ reader.py: what its consumer was told, as lines of JSON
                            └────▶ Witness: every datagram as it left, read by storm.Ledger

So each event that a consumer was told can be held against what was sent: the book of that moment, each trade.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from reader import digest
from relay import Relay, heard_socket
from outlet import free_address, multicast       # noqa: F401
from support import PROJECT
from test_run import free_port, shared_memory       # noqa: F401
from truth import INCREMENT_TYPE, LAST, SNAPSHOTS, TRADE_TYPE, Ledger, head_of

from feeder.twin import spawn

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals, and multicast on loopback")

SPOT = "binance_spot"
COINS = 6
PACE = 40                             # packets a second of the snapshot loop: a round takes long enough to be measured


class Group:
    """An address for the messages, and the port of the loop beside it; with the ports of `like`."""

    def __init__(self, like=None):
        self.address, self.port = free_address()
        self.port = like.port if like is not None else self.port
        self.loop_port = self.port + 1
        self.text = f"{self.address}:{self.port}"

    def route(self, other):
        """What a relay needs to bring everything to the other group."""
        return [[self.address, self.port, other.address, other.port],
                [self.address, self.loop_port, other.address, other.loop_port]]


class Witness:
    """Hears one group without any loss, in a thread; afterwards `ledgers` tell all that was sent there."""

    def __init__(self, group, interface="127.0.0.1"):
        self.datagrams = []
        self.sockets = [heard_socket(group.address, port, interface) for port in (group.port, group.loop_port)]
        self.is_over = False
        self.threads = [threading.Thread(target=self.run, args=(each,)) for each in self.sockets]
        for thread in self.threads:
            thread.start()

    def run(self, source):
        source.settimeout(0.05)
        while not self.is_over:
            try:
                self.datagrams.append((time.time_ns(), source.recv(65_536)))
            except TimeoutError:
                continue
            except OSError:               # the same before Python 3.10
                continue

    def close(self):
        self.is_over = True
        for thread in self.threads:
            thread.join()
        for each in self.sockets:
            each.close()
        self.ledgers, self.rounds_ns = {}, []
        began_ns = None
        for at_ns, datagram in self.datagrams:
            head = head_of(datagram)
            if not head.flags & SNAPSHOTS:
                key = head.channel, head.session
                if key not in self.ledgers:
                    self.ledgers[key] = Ledger(*key)
                self.ledgers[key].note(datagram)
            elif datagram[40] == 8:       # ROUND, which is the first message of its packet
                if began_ns:
                    self.rounds_ns.append(at_ns - began_ns)
                began_ns = at_ns


class Feeder:
    """`python3 -m feeder run` of the twin's venue, to a group; does not outlive `stack`. `inside`: words before it."""

    def __init__(self, stack, folder, child, group, inside=(), **output):
        self.group = group
        self.folder = folder
        self.inside = inside
        self.retransmit = f"127.0.0.1:{free_port()}"
        config = folder / "config"
        config.mkdir(parents=True)
        info = child.info[SPOT]

        def write(name, what):
            (config / name).write_text(json.dumps(what))
        write("crypto_exchanges.json", {"venues": [SPOT]})
        write(f"{SPOT}.json", {"venue": SPOT, "websocket_url": info["websocket_url"], "rest_url": info["rest_url"],
                               "symbols": info["symbols"][:COINS], "snapshot_limit": 100, "published_depth": 0})
        write("symbol_mapping.json", {})
        write("hft_config.json", {"runtime": {"workers": 0}, "memory": {"lock": False}, "log": {"path": "run.log"},
                                  "output": {
            "group": group.address, "port": group.port, "snapshot_port": group.loop_port,
            "snapshot_packets_per_second": PACE, "retransmit_port": int(self.retransmit.partition(":")[2]), **output}})
        self.process = None
        stack.callback(self.kill)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.drain.join()
            self.process.communicate()

    def start(self):
        """Start it and wait until all its books are live."""
        self.process = subprocess.Popen(
            [*self.inside, sys.executable, "-X", "dev", "-W", "error", "-m", "feeder", "run", "--config", "config"],
            cwd=str(self.folder), env=dict(os.environ, PYTHONPATH=str(PROJECT), PYTHONUNBUFFERED="1"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.is_live = threading.Event()
        self.drain = threading.Thread(target=self.watch)
        self.drain.start()
        assert self.is_live.wait(30) and self.process.poll() is None, "its books are not live"

    def watch(self):
        for line in self.process.stdout:
            if f"books {COINS} live" in line:
                self.is_live.set()

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        self.drain.join()
        with self.process:
            assert self.process.stderr.read() == ""
        assert self.process.returncode == (0 if number == signal.SIGINT else -number)


class Reader:
    """reader.py as a child, which does not outlive `stack`."""

    def __init__(self, stack, path, inside=(), **options):
        self.path = path
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-X", "dev", "-W", "error", str(PROJECT / "tests" / "reader.py"), str(path),
             json.dumps(options)], env=dict(os.environ, PYTHONPATH=str(PROJECT)), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stack.callback(self.kill)
        assert self.process.stdout.readline() == b"ready\n", self.process.stderr.read()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self):
        with self.process:
            self.process.stdin.close()
            assert self.process.stderr.read() == b""
        assert self.process.returncode == 0
        self.rows = [json.loads(line) for line in self.path.read_text().splitlines()]

    def of(self, kind):
        """Return the events of a kind, without its name and time."""
        return [row[2:] for row in self.rows if row[0] == kind]

    def live_after_s(self):
        """How long until the last of the books became live for the first time."""
        first = {}
        for kind, at_ns, *rest in self.rows:
            if kind == "State" and rest[2] == "live":
                first.setdefault(rest[1], at_ns)
        assert len(first) == COINS, first
        return max(first.values()) / 1e9

    def finals(self):
        return [row[1:] for row in self.rows if row[0] == "Final"]


def check(reader, ledgers, is_live=True):
    """Hold all that a reader was told against what was sent; return how many books and trades that was."""
    known = {}                            # (key, instrument, venue sequence) -> digests of its live versions
    for key, ledger in ledgers.items():
        for instrument_id, (_, versions) in ledger.versions.items():
            for version in versions:
                if version.is_live:
                    name = ledger.names[instrument_id]
                    known.setdefault((key, name, version.venue_sequence), set()).add(digest(*levels(version)))
    books = reader.of("Book")
    for channel, session, sequence, venue_sequence, *name, crc in books:
        key, name = (channel, session), tuple(name)
        ledger = ledgers[key]
        # A refresh of the loop may have a later number: of an event that changed nothing in the window.
        digests = known.get((key, name, venue_sequence)) or {
            digest(*levels(version)) for position in (sequence, sequence + 1)
            for version in [ledger.version(ledger.ids[name], position)] if version.is_live}
        assert crc in digests, (key, name, sequence, venue_sequence)
    told = {}
    for channel, session, sequence, trade_id, *name in reader.of("Trade"):
        fact = ledgers[channel, session].facts[sequence]
        assert fact.kind == TRADE_TYPE and fact.body[0] == trade_id
        told[(*name, trade_id)] = told.get((*name, trade_id), 0) + 1
    assert set(told.values()) == {1}
    finals = reader.finals()
    assert len(finals) == COINS
    for live, channel, session, venue_sequence, *name, crc in finals:
        assert live is is_live, name
        if live:
            assert crc in known[(channel, session), tuple(name), venue_sequence], name
    stats = next(row[1] for row in reader.rows if row[0] == "Stats")
    assert stats["receiver"]["mismatches"] == 0 if "receiver" in stats else True
    return len(books), len(told)


def levels(version):
    bids, asks = version.bids, version.asks
    return [(-key, quantity) for key, quantity in zip(*bids)], list(zip(*asks))


def untold_trades(reader, ledger, first, last):
    """Return the trades numbered first..last that the reader was not told and that are in no Gap that it was told.

    Of instruments whose definition it had by then: before that nobody can read the numbers of a trade. (What another
    stream has defined already is not told again.)
    """
    told = {tuple(row[3:]) for row in reader.of("Trade")}
    gaps = [row[2:4] for row in reader.of("Gap") if tuple(row[:2]) == ledger.key]
    defined = {}
    for channel, session, sequence, *name in reader.of("Definition"):
        if (channel, session) == ledger.key:
            defined.setdefault(ledger.ids[tuple(name)], sequence)
    return [(number, fact) for number, fact in ledger.facts.items() if fact.kind == TRADE_TYPE
            and max(first, defined.get(fact.instrument_id, 0) + 1) <= number <= last
            and (fact.body[0], *ledger.names[fact.instrument_id]) not in told
            and not any(low <= number <= high for low, high in gaps)]


def streams(reader):
    """Return [(channel, session, first)] as the reader was told."""
    return [tuple(row) for row in reader.of("Session")]


@pytest.fixture
def stack():
    before = shared_memory()
    with ExitStack() as stack:
        yield stack
    assert not shared_memory() - before


@pytest.fixture
def child(stack):
    return stack.enter_context(spawn(["--venue", SPOT, "--rate", 500, "--symbols", COINS, "--levels", 100]))


def test_a_bad_network_a_late_joiner_and_a_publisher_that_is_killed(tmp_path, stack, child):
    inner, outer = Group(), Group()
    feeder = Feeder(stack, tmp_path / "feeder", child, inner)
    witness = Witness(inner)
    stack.callback(witness.close)
    relay = stack.enter_context(Relay(inner.route(outer), loss=0.05, burst=3, duplication=0.03, reordering=0.05,
                                      seed=7))
    feeder.start()
    options = {"lines": outer.text, "snapshot_port": outer.loop_port}
    alone = Reader(stack, tmp_path / "alone", **options)
    asking = Reader(stack, tmp_path / "asking", retransmit=feeder.retransmit, **options)
    time.sleep(1)
    feeder.end(signal.SIGKILL)
    feeder.start()
    time.sleep(0.7)
    relay.change(loss=0, duplication=0, reordering=0)
    time.sleep(0.3)
    late = Reader(stack, tmp_path / "late", **options)
    time.sleep(0.9)
    for reader in (alone, asking, late):
        reader.end()
    feeder.end()
    stack.close()
    assert relay.counts["lost"] > 10 and len(witness.ledgers) == 2
    first, second = sorted(witness.ledgers)
    for reader, fewest in (alone, 100), (asking, 100), (late, 20):
        books, trades = check(reader, witness.ledgers)
        assert books > fewest and trades > fewest, (reader.path.name, books, trades)
        for channel, session, start in streams(reader):
            last = max(row[2] for row in reader.of("Trade") if row[1] == session)
            assert untold_trades(reader, witness.ledgers[channel, session], start, last) == []
    for reader in (alone, asking):
        assert [each[:2] for each in streams(reader)] == [first, second] and streams(reader)[1][2] == 1
    assert alone.of("Gap") and len(asking.of("Gap")) < len(alone.of("Gap"))
    assert max(witness.rounds_ns) < 1e9
    assert late.live_after_s() < max(witness.rounds_ns) / 1e9 + 0.4, "more than a round, and what the host may take"


@pytest.mark.stress
def test_two_lines_with_the_same_packets_one_at_30_percent_and_then_dead(tmp_path, stack, child):
    first = Group()
    second, outer = Group(first), Group(first)
    feeder = Feeder(stack, tmp_path / "feeder", child, first, fan_out=[second.text])
    witness = Witness(first)
    stack.callback(witness.close)
    relay = stack.enter_context(Relay(second.route(outer), loss=0.3, duplication=0.05, reordering=0.1, seed=8))
    reader = Reader(stack, tmp_path / "reader", lines=[first.text, outer.text], snapshot_port=first.loop_port)
    feeder.start()
    time.sleep(3)
    relay.change(cut=True)
    time.sleep(5)
    reader.end()
    feeder.end()
    stack.close()
    books, trades = check(reader, witness.ledgers)
    assert books > 500 and trades > 300 and relay.counts["lost"] > 100
    assert reader.of("Gap") == []
    (key, ledger), = witness.ledgers.items()
    assert streams(reader) == [(*key, 1)]
    assert untold_trades(reader, ledger, 1, max(row[2] for row in reader.of("Trade"))) == []
    assert [(row[0], row[2]) for row in reader.of("Line")] == [(1, False)]


@pytest.mark.stress
def test_two_feeders_one_line_at_30_percent_and_then_the_other_killed(tmp_path, stack, child):
    first = Group()
    second, outer = Group(first), Group(first)
    feeders = [Feeder(stack, tmp_path / name, child, group) for name, group in (("a", first), ("b", second))]
    witnesses = [Witness(group) for group in (first, second)]
    for witness in witnesses:
        stack.callback(witness.close)
    relay = stack.enter_context(Relay(second.route(outer), seed=9))
    for feeder in feeders:
        feeder.start()
    reader = Reader(stack, tmp_path / "reader", lines=[first.text, outer.text], snapshot_port=first.loop_port)
    time.sleep(4.5)                       # who was not live for 3 s covers nothing
    calm_ns = time.time_ns()
    relay.change(loss=0.3, duplication=0.05, reordering=0.1)
    time.sleep(4)
    relay.change(loss=0, duplication=0, reordering=0)
    time.sleep(4.5)
    killed_ns = time.time_ns()
    feeders[0].end(signal.SIGKILL)
    time.sleep(5)
    reader.end()
    feeders[1].end()
    stack.close()
    (a_key, a), (b_key, b) = ((key, ledger) for witness in witnesses for key, ledger in witness.ledgers.items())
    books, trades = check(reader, {a_key: a, b_key: b})
    assert books > 1_000 and trades > 800 and relay.counts["lost"] > 100

    def number_at(witness, at_ns):
        """The first number that was sent after a moment."""
        return min(head_of(datagram).sequence for sent_ns, datagram in witness.datagrams
                   if sent_ns >= at_ns and not head_of(datagram).flags & SNAPSHOTS)
    assert all(row[5] for row in reader.of("Gap") if row[6] > calm_ns), "one line brought what the other one lost"
    last = max(row[2] for row in reader.of("Trade") if row[1] == b_key[1])
    told = {(row[3], *row[4:6]) for row in reader.of("Book")}
    for ledger, start, stop in ((a, number_at(witnesses[0], calm_ns), a.next),
                                (b, number_at(witnesses[1], killed_ns), last)):
        assert untold_trades(reader, ledger, start, stop) == []
        sent = {(fact.venue_sequence, *ledger.names[fact.instrument_id]) for number, fact in ledger.facts.items()
                if fact.kind == INCREMENT_TYPE and fact.flags & LAST and start <= number <= stop}
        assert len(sent) > 100 and sent <= told
    assert (None, *a_key, *b_key, "silent") in [tuple(row) for row in reader.of("Switch")]
