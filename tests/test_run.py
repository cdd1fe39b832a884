"""`feeder run`, whole: the twin over real TCP, packets over real multicast, every book against the true one.

    Twin ──TCP──▶ Run ──multicast──▶ Witness (a Receiver)
      └─ Truth: each state the books ever had, taken before any fault can touch a message

The Witness compares every book that is published as live with the true book at that very venue sequence, and every
best bid and offer with the twin's at that update id. Where the twin is a child, its books are asked for when it pauses.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path

import machines
import pytest
from outlet import free_address, free_udp_port, multicast       # noqa: F401
from support import PROJECT, book_decimals, dice, is_best

from feeder import config as configuration
from feeder.clock import MILLISECOND, SECOND, steady_ns, wall_ns
from feeder.message import LIVE, STALE
from feeder.net import PacketReceiver
from feeder.packet import ALL_INSTRUMENTS, LAST, SNAPSHOT, Bbo, Book, Status, Trade
from feeder.receiver import Receiver
from feeder.run import Run, choose_workers
from feeder.twin import spawn
from feeder.twin.faults import KINDS, Fault
from feeder.twin.market import BBO, DEPTH
from feeder.twin.server import Twin
from feeder.venue.contract import NEXT

SPOT, USDM = "binance_spot", "binance_usdm"
BOTH = (SPOT, USDM)
SYMBOLS = tuple(coin + "USDT" for coin in configuration.TWIN_COINS)
SEED = 20


def made_config(symbols, **keys):
    """The embedded configuration with an address of its own, and `keys` of each venue changed."""
    config = configuration.builtin()
    config.output.group, config.output.port = free_address()
    config.output.retransmit_port = free_udp_port()
    config.log.path = ""
    for venue in config.venues:
        venue.symbols = list(symbols)
        for key, value in keys.items():
            assert key in venue.__slots__
            setattr(venue, key, value)
    return config


class Truth:
    """What the books of an in-process Twin were at every id that a diff ended on or a REST answer showed.

    The hooks sit where the market hands its events to the server: before duplicates, gaps and the wire.
    """

    def __init__(self, twin):
        self.books = {}                  # (venue, symbol) -> {update id: (bids, asks)}, ints of ticks and lots
        self.quotes = {}                 # (venue, symbol) -> {update id: (bid, lots, ask, lots)}
        self.specs = {}
        self.models = {}                 # two dicts a symbol, kept by the fault-free diffs alone
        self.twin = twin
        for name, venue in twin.venues.items():
            for symbol, listing in venue.source.listings.items():
                key = name, symbol
                self.books[key], self.quotes[key] = {}, {}
                self.specs[key] = listing.spec
                self.models[key] = dict(listing.bids.levels()), dict(listing.asks.levels())
            self.hook(name, venue)

    def hook(self, name, venue):
        publish, depth, listings = venue.publish, venue.source.depth, venue.source.listings

        def note(symbol, listing):
            self.books[name, symbol][listing.update_id] = listing.bids.levels(), listing.asks.levels()

        def hooked_publish(symbol, kind, event):
            if kind is DEPTH:
                assert event[3] == event[1].update_id
                note(symbol, event[1])
                for model, changes in zip(self.models[name, symbol], event[5:]):
                    for price, lots in changes:
                        model[price] = lots
                        if not lots:
                            del model[price]
            elif kind is BBO:
                self.quotes[name, symbol][event[2]] = event[3:]
            publish(symbol, kind, event)

        def hooked_depth(symbol, limit, now_ms):
            note(symbol, listings[symbol])
            return depth(symbol, limit, now_ms)

        venue.publish, venue.source.depth = hooked_publish, hooked_depth

    def scales(self, key, definition):
        """What a tick and a lot are as ints on the wire."""
        spec = self.specs[key]
        return (spec.tick_units * 10 ** (-definition.price_exponent - spec.price_decimals),
                spec.lot_units * 10 ** (-definition.quantity_exponent - spec.lot_decimals))

    def book(self, key, sequence, definition):
        """(bids, asks) as on the wire; None where the twin's book never stood at that id."""
        sides = self.books[key].get(sequence)
        if sides is None:
            return None
        tick, lot = self.scales(key, definition)
        return tuple([(price * tick, lots * lot) for price, lots in side] for side in sides)

    def quote(self, key, sequence, definition):
        quote = self.quotes[key].get(sequence)
        if quote is None:
            return None
        tick, lot = self.scales(key, definition)
        return (quote[0] * tick, quote[1] * lot), (quote[2] * tick, quote[3] * lot)

    def check(self):
        """The diffs alone, applied to the first book, make the books of the market: no error of the oracle."""
        for (name, symbol), (bids, asks) in self.models.items():
            listing = self.twin.venues[name].source.listings[symbol]
            assert (bids, asks) == (dict(listing.bids.levels()), dict(listing.asks.levels())), (name, symbol)


class Witness:
    """A listener on the wire. With a truth, it judges all that is published as live; `wrong` says what was not."""

    def __init__(self, output):
        self.loop = self.truth = None
        self.receiver = Receiver()
        self.socket = PacketReceiver(output.group, output.port, interface=output.interface)
        self.buffer = memoryview(bytearray(65_536))
        self.wrong = []
        self.books = self.quotes = 0     # compared and found true
        self.epochs = {}                 # instrument id -> epoch of its last live snapshot
        self.ended = set()               # (instrument id, epoch) that was declared over
        self.statuses = []               # (key, state, reason)
        handlers = self.receiver.handlers
        for kind, judge in ((Book, self.judge_book), (Bbo, self.judge_quote), (Trade, self.judge_state),
                            (Status, self.judge_status)):
            handlers[kind] = lambda stream, message, *more, handle=handlers[kind], judge=judge: (
                handle(stream, message, *more), judge(stream, message))[0]

    def join(self, loop, truth):
        self.loop, self.truth = loop, truth
        loop.register(self.socket, read=self.readable)

    def readable(self):
        while True:
            count = self.socket.receive_into(self.buffer)
            if count is None:
                return
            self.receiver.receive(self.buffer[:count], wall_ns())

    def close(self):
        if self.loop is not None:
            self.loop.unregister(self.socket)
        self.socket.close()

    def note(self, view, text):
        if len(self.wrong) < 20:
            self.wrong.append(f"{view.label}: {text}")

    def judge_state(self, stream, message):
        """Nothing is live but in the epoch of a live snapshot, and an epoch that was declared over never comes back."""
        at = message.instrument_id, message.epoch
        if message.state == LIVE and (self.epochs.get(at[0]) != at[1] or at in self.ended):
            self.note(stream.views[at[0]], f"live in epoch {at[1]}, which is not that of a snapshot: {message}")

    def judge_book(self, stream, message):
        view = stream.views[message.instrument_id]
        if message.state == LIVE and message.type == SNAPSHOT:
            known = self.epochs.get(message.instrument_id, 0)
            if message.epoch < known:
                self.note(view, f"epoch {message.epoch} after {known}")
            self.epochs[message.instrument_id] = message.epoch
        self.judge_state(stream, message)
        if message.state != LIVE or not message.flags & LAST or self.truth is None:
            return
        if view.state != LIVE:
            return self.note(view, f"published live, but {view.state} here at {message.venue_sequence}")
        true = self.truth.book((view.venue, view.symbol), message.venue_sequence, view.definition)
        if true and all(map(is_best, (view.bids.levels(), view.asks.levels()), true, [view.definition.depth] * 2)):
            self.books += 1
        else:
            self.note(view, f"book at {message.venue_sequence} is not the true one" if true else
                      f"published live at {message.venue_sequence}, where the book never stood")

    def judge_quote(self, stream, message):
        self.judge_state(stream, message)
        view = stream.views[message.instrument_id]
        if self.truth is None:
            return
        if self.truth.quote((view.venue, view.symbol), message.venue_sequence, view.definition) == (
                tuple(message.bid), tuple(message.ask)):
            self.quotes += 1
        else:
            self.note(view, f"quote at {message.venue_sequence} is not the true one")

    def judge_status(self, stream, message):
        if message.instrument_id == ALL_INSTRUMENTS:
            return self.statuses.append((message.venue, bool(message.connected), message.text))
        if message.state != LIVE:
            self.ended.add((message.instrument_id, message.epoch))
            view = stream.views[message.instrument_id]
            self.statuses.append(((view.venue, view.symbol), message.state, message.text))

    def assert_clean(self):
        heard = self.receiver
        assert self.wrong == []
        assert (heard.gap_count, heard.mismatches, heard.crossed, heard.errors) == (0, 0, 0, {}), heard.last_mismatch


class Live:
    """What rigs of one process and of several share: `run` with its loop, `witness`, and a twin in the same loop."""

    def add_twin(self, stack, config, rate, levels):
        self.twin = Twin(self.loop, {venue.name: venue.symbols for venue in config.venues}, seed=SEED, rate=rate,
                         levels=levels, rest_latency_ms=3)
        stack.callback(self.twin.close)
        self.truth = Truth(self.twin)
        for venue in config.venues:
            venue.websocket_url = self.twin.info[venue.name]["websocket_url"]
            venue.rest_url = self.twin.info[venue.name]["rest_url"]

    def until(self, condition, seconds=20):
        give_up_ns = steady_ns() + seconds * SECOND
        while not condition():
            assert steady_ns() < give_up_ns, f"waited in vain; {self.run.line()}; {self.witness.wrong}"
            self.loop.run_once(20 * MILLISECOND)

    def spin(self, seconds):
        """Let it run for a time that is itself what is wanted."""
        end_ns = steady_ns() + int(seconds * SECOND)
        self.until(lambda: steady_ns() >= end_ns, seconds + 5)

    def start(self):
        self.run.start()
        self.until(self.live)


class Rig(Live):
    """A Run, its Witness and, unless the venues are elsewhere, a Twin, all in one loop."""

    def __init__(self, stack, config, rate=1_500, levels=100, twin=True):
        print("seed", SEED)
        self.witness = Witness(config.output)        # listens before the first packet: Run sends definitions at once
        self.run = Run(config, stack)
        stack.callback(self.witness.close)
        self.loop = self.run.loop
        self.truth = self.twin = None
        if twin:
            self.add_twin(stack, config, rate, levels)
        self.witness.join(self.loop, self.truth)
        self.entries = self.run.publisher.entries

    def live(self):
        return all(entry.state == LIVE for entry in self.entries)

    def true_book(self, instrument):
        return self.twin.book(instrument.venue, instrument.symbol)

    def settle(self):
        """Pause the market, wait until all of it has come through, compare every book in full; return the levels."""
        self.until(self.live)
        self.twin.pause()
        return self.compare(self.true_book)

    def compare(self, true_book):
        truths = [true_book(entry.instrument) for entry in self.entries]
        self.until(lambda: self.live() and all(
            entry.sequence == truth[0] for entry, truth in zip(self.entries, truths)))
        self.run.publisher.flush()
        sent = self.run.publisher.encoders[0].sequence
        self.until(lambda: any(stream.expected >= sent for stream in self.witness.receiver.streams.values()))
        views = {(view.venue, view.symbol): view for view in self.witness.receiver.views()}
        levels = 0
        for entry, (_, *sides) in zip(self.entries, truths):
            entry.book.check()
            true = tuple([tuple(map(Decimal, level)) for level in side] for side in sides)
            instrument = entry.instrument
            assert book_decimals(entry) == true, f"{instrument.venue} {instrument.symbol}"
            view = views[instrument.venue, instrument.symbol]
            definition = view.definition
            heard = tuple([(Decimal(price).scaleb(definition.price_exponent),
                            Decimal(quantity).scaleb(definition.quantity_exponent))
                           for price, quantity in side.levels()] for side in (view.bids, view.asks))
            assert view.state == LIVE and all(map(is_best, heard, true, [definition.depth] * 2))
            levels += sum(map(len, true))
        return levels

    def row(self, venue):
        return next(row for row in self.run.report()["venues"] if row["venue"] == venue)

    def instruments(self, venue):
        return [row for row in self.run.report()["instruments"] if row["venue"] == venue]

    def finish(self):
        """What must hold at every end."""
        report = self.run.report()
        assert report["internal_errors"] == 0 and report["not_sent"] == report["send_errors"] == 0
        if self.truth is not None:
            self.truth.check()
        self.witness.assert_clean()
        return report


@contextmanager
def rig(symbols=SYMBOLS[:3], twin=True, rate=1_500, levels=100, **keys):
    keys = {"snapshot_limit": 100, "stale_after_s": 0.6, "published_depth": 0, **keys}
    with ExitStack() as stack:
        yield Rig(stack, made_config(symbols, **keys), rate, levels, twin)


# -- the whole way, the twin a process of its own -------------------------------------------------------------------


def run_beside_a_child(seconds, rate):
    """20 instruments over both venues at full depth: books, listener, counts."""
    with ExitStack() as stack:
        child = stack.enter_context(spawn([
            "--seed", SEED, "--rate", rate, "--symbols", len(SYMBOLS), "--levels", 1000]))
        config = made_config(SYMBOLS, snapshot_limit=1000)
        for venue in config.venues:
            assert child.info[venue.name]["symbols"] == venue.symbols
            venue.websocket_url = child.info[venue.name]["websocket_url"]
            venue.rest_url = child.info[venue.name]["rest_url"]
        made = Rig(stack, config, twin=False)
        made.start()
        made.spin(seconds)
        for name in BOTH:
            child.ask(name, "pause")
        levels = made.compare(lambda instrument: tuple(child.ask(
            instrument.venue, "book", symbol=instrument.symbol)[key] for key in ("last_update_id", "bids", "asks")))
        report = made.finish()
        status = child.ask(SPOT, "status")["venues"]
        for name in BOTH:                # not one message was lost, doubled or left lying
            counts, decoders = status[name]["counts"], report["decoders"][name]
            assert decoders["likely"] + decoders["unlikely"] - decoders["kinds"]["ack"] == sum(
                counts[kind] for kind in ("depth", "bookTicker", "trade" if name == SPOT else "aggTrade"))
            assert decoders["unlikely"] < 40 * 10, "a layout is learned once, and ten instruments have few each"
        assert len(made.entries) == 20 and report["gaps"] == report["resyncs"] == 0
        print(f"{report['messages']:,} messages in {report['seconds']:.1f} s ({report['messages_per_second']:,}/s), "
              f"{report['packets']:,} packets, {made.witness.receiver.messages:,} messages heard, "
              f"{levels:,} levels equal, latency {report['latency_ns']}, "
              f"forgiven {[each['forgiven'] for each in status.values()]}")
        return report


def test_twenty_instruments_of_both_venues_end_with_the_true_books():
    report = run_beside_a_child(2, 2_000)
    assert report["messages"] > 2 * 2_000 * 0.5          # of a machine with better things to do


@pytest.mark.stress
def test_a_minute_at_five_thousand_a_second():
    report = run_beside_a_child(60, 5_000)
    assert report["messages"] > 60 * 5_000 * 0.9


# -- faults, one by one, on both venues at once ---------------------------------------------------------------------


def reasons(rows):
    """{reason: how often}, over instruments."""
    found = {}
    for row in rows:
        for reason, count in row["resync_reasons"].items():
            found[reason] = found.get(reason, 0) + count
    return found


# kind: (seconds, provoke a snapshot by a gap, has it been noticed?(row of the venue, rows of instruments, reasons))
EXPECTED = {
    "gap": (0, False, lambda row, books, why: why == {"gap": 1} and sum(each["gaps"] for each in books) == 1),
    "reorder": (0, False, lambda row, books, why: why == {"gap": 1} and sum(each["gaps"] for each in books) == 1),
    "duplicate": (0, False, lambda row, books, why: why == {} and sum(each["old"] for each in books) >= 1),
    "disconnect": (0, False, lambda row, books, why: why == {"disconnect": len(books)}
                   and row["disconnects"] == row["lines"]),
    "mute": (0, False, lambda row, books, why: why == {"disconnect": len(books)}
             and row["silences"] == row["disconnects"] == row["lines"] and "no market data" in row["last_error"]),
    "slow": (0.5, False, lambda row, books, why: why == {} and row["disconnects"] == 0),
    "garbage": (0, False, lambda row, books, why: why == {} and row["bad_messages"] == 3 * row["lines"]
                and row["disconnects"] == 0 and "not JSON" in row["last_error"]),
    "stale_snapshot": (0, True, lambda row, books, why: why == {"gap": 1}
                       and sum(each["late_snapshots"] for each in books) >= 1),
    "rest_429": (0, True, lambda row, books, why: why == {"gap": 1} and row["snapshots_failed"] == 1
                 and "HTTP 429" in row["last_error"]),
    "rest_error": (0, True, lambda row, books, why: why == {"gap": 1} and row["snapshots_failed"] == 1
                   and "HTTP 500" in row["last_error"]),
}


def test_every_fault_of_the_twin_is_tried():
    assert set(EXPECTED) == set(KINDS)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_fault_is_counted_never_shown_and_ends_live_with_the_true_books(kind):
    seconds, provoke, noticed = EXPECTED[kind]
    with rig() as made:
        made.start()
        made.spin(0.2)
        before = {entry.instrument.instrument_id: entry.epoch for entry in made.entries}
        made.twin.inject(Fault(kind, seconds=seconds))
        if provoke:
            made.twin.inject(Fault("gap"))
        made.until(lambda: sum(fault["kind"] == kind for fault in made.twin.faults_done) == 2)
        made.until(lambda: all(noticed(made.row(name), made.instruments(name), reasons(made.instruments(name)))
                               for name in BOTH) and made.live())
        made.spin(0.3 + seconds)
        levels = made.settle()
        report = made.finish()
        for name in BOTH:
            rows = made.instruments(name)
            assert noticed(made.row(name), rows, reasons(rows)), (made.row(name), rows)
        for entry in made.entries:       # a new epoch for each resync, and for nothing else
            link = made.run.intake.recoveries[entry.instrument.venue].link(entry.instrument)
            assert entry.epoch == before[entry.instrument.instrument_id] + link.resyncs
        told = {(key, reason) for key, state, reason in made.witness.statuses if state == STALE}
        assert told == {((row["venue"], row["symbol"]), reason) for row in report["instruments"]
                        for reason in row["resync_reasons"]}
        if kind in ("disconnect", "mute"):
            for name in BOTH:
                assert (name, False, "disconnect") in made.witness.statuses
                assert [up for key, up, _ in made.witness.statuses if key == name][-1] is True
        assert made.witness.books > 100 and made.witness.quotes > 100
        print(f"{kind}: {report['messages']:,} messages, {made.witness.books:,} live books and "
              f"{made.witness.quotes:,} quotes true, {levels:,} levels equal at the end")


def test_the_witness_finds_a_feeder_that_ignores_gaps(monkeypatch):
    """The proof that the proof can fail."""
    with rig() as made:
        for recovery in made.run.intake.recoveries.values():
            recovery.follows = lambda sequence, bridged, first, last, previous: NEXT
        made.start()
        made.twin.inject(Fault("gap"))
        made.until(lambda: len(made.witness.wrong) >= 2)
        assert all("is not the true one" in text for text in made.witness.wrong)
        assert made.witness.receiver.gap_count == 0


def storm(seconds, seed):
    """Faults at random, several at once, on both venues: twenty instruments come through, true at every moment."""
    rng = dice(seed)
    with rig(SYMBOLS, rate=1_500, connects_per_5_minutes=300, snapshot_weight_per_minute=2_000) as made:
        made.start()
        end_ns = steady_ns() + seconds * SECOND
        done = dict.fromkeys(KINDS, 0)
        while steady_ns() < end_ns:
            kind = rng.choice(KINDS)
            venue = made.twin.venues[rng.choice(BOTH)]
            symbol = rng.choice(venue.symbols) if kind not in ("disconnect", "mute", "slow", "garbage") else None
            made.twin.inject(Fault(kind, seconds=rng.choice((0.2, 0.5)) if kind in ("slow", "mute") else 0,
                                   symbol=symbol), [venue])
            done[kind] += 1
            made.spin(rng.random())
        made.twin.inject(Fault("disconnect"))
        made.spin(1)
        made.until(made.live, 60)
        for venue in made.twin.venues.values():
            venue.rest_faults.clear()
        levels = made.settle()
        report = made.finish()
        print(f"{done}: {report['messages']:,} messages, {report['gaps']} gaps, {report['resyncs']} resyncs, "
              f"{made.witness.books:,} live books and {made.witness.quotes:,} quotes true, {levels:,} levels equal")
        assert report["resyncs"] > seconds / 4


def test_a_storm_of_faults():
    storm(2, 5)


@pytest.mark.stress
@pytest.mark.parametrize("seed", [6, 7])
def test_a_storm_of_faults_long(seed):
    storm(60, seed)


# -- the command ----------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc and sends signals")


class Command:
    """`python3 -X dev -W error -m feeder run ...`; nothing but what the command means may appear on stderr."""

    def __init__(self, folder, *words, interpreter=(sys.executable,), package=PROJECT, stdout=subprocess.PIPE,
                 **environ):
        self.process = subprocess.Popen(
            [*interpreter, "-X", "dev", "-W", "error", "-m", "feeder", "run", *map(str, words)], cwd=str(folder),
            env=dict(os.environ, PYTHONPATH=str(package), PYTHONUNBUFFERED="1", **environ), stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self.guard = threading.Timer(60, self.process.kill)
        self.guard.start()

    def wait_for(self, pattern):
        """Read standard output up to a line that matches."""
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"{pattern!r} never came: {self.lines} {self.end()}")

    def child(self):
        """The pid of the built-in venue."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    def end(self):
        """Return (exit code, standard output, standard error)."""
        out, err = self.process.communicate()
        self.guard.cancel()
        self.guard.join()
        return self.process.returncode, "".join(self.lines) + (out or ""), err


def ended(folder, *words, **more):
    return Command(folder, *words, **more).end()


def shared_memory():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.fixture
def venue_child():
    with spawn(["--rate", 1000, "--symbols", 6, "--levels", 100]) as child:
        yield child


def written_config(folder, child, names=BOTH, **hft):
    """A configuration folder for a twin: six symbols a venue, two in the limited form."""
    group, port = free_address()
    folder.mkdir(parents=True, exist_ok=True)

    def write(name, what):
        (folder / name).write_text(json.dumps(what))

    write("crypto_exchanges.json", {"venues": list(names)})
    for name in names:
        info = child.info[name]
        for ending, count in ((".json", 6), (".limited.json", 2)):
            write(name + ending, {"venue": name, "websocket_url": info["websocket_url"], "rest_url": info["rest_url"],
                                  "symbols": info["symbols"][:count], "snapshot_limit": 100})
    write("symbol_mapping.json", {})
    output = {"group": group, "port": port, "retransmit_port": free_udp_port(), **hft.pop("output", {})}
    write("hft_config.json", {"output": output, "log": {"path": "run.log"}, **hft})
    return folder


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_summary_a_report_and_nothing_left_behind(number, tmp_path):
    before = shared_memory()
    command = Command(tmp_path, "--report", "report.json", "--log", "run.log")
    command.wait_for("books 20 live, 0 syncing, 0 stale")
    child = command.child()
    command.process.send_signal(number)
    code, out, err = command.end()
    assert (code, err) == (0, "")
    first, second = out.splitlines()[-2:]
    assert re.fullmatch(r"[\d.]+ s: [\d,]+ messages \([\d,]+/s\), [\d,]+ packets, not sent 0", first)
    assert second.startswith("books 20 live, 0 syncing, 0 stale; gaps 0, resyncs 0; latency p50 ")
    assert not os.path.exists(f"/proc/{child}") and not shared_memory() - before
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["books"] == {"live": 20, "syncing": 0, "stale": 0} and len(report["instruments"]) == 20
    assert report["latency_ns"]["count"] > 0 and report["internal_errors"] == report["log_lines_lost"] == 0
    for row in report["instruments"]:
        assert row["state"] == "live" and row["resync_reasons"] == {} and row["gaps"] == 0
        assert len(row["bids"]) == len(row["asks"]) == 20 and row["events"] > 0
        assert Decimal(row["bids"][0][0]) < Decimal(row["asks"][0][0])
    log = (tmp_path / "run.log").read_text()
    assert "started: embedded configuration" in log and "ended after" in log and "ERROR" not in log
    assert set(os.listdir(tmp_path)) == {"report.json", "run.log"}


@linux
def test_a_built_in_venue_that_dies_ends_it_with_a_sentence(tmp_path):
    command = Command(tmp_path, "--log", "run.log", "--report", "report.json")
    command.wait_for("books 20 live")
    os.kill(command.child(), signal.SIGKILL)
    code, out, err = command.end()
    assert code == 1 and err == "feeder: the built-in venue ended unexpectedly (exit code -9)\n"
    assert "stale" in out.splitlines()[-4] or "disconnects" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["state"] for row in report["instruments"]} == {"stale"}
    assert all(row["resync_reasons"] == {"disconnect": 1} for row in report["instruments"])


@linux
def test_a_feeder_that_is_killed_leaves_no_venue_behind(tmp_path):
    command = Command(tmp_path, "--log", "")
    command.wait_for("books 20 live")
    child = command.child()
    command.process.kill()
    assert command.end()[0] == -signal.SIGKILL
    give_up_ns = steady_ns() + 10 * SECOND
    while os.path.exists(f"/proc/{child}") and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert steady_ns() < give_up_ns, "the venue lives on"
        threading.Event().wait(0.02)


def test_the_embedded_run_ends_by_itself_and_its_report_is_all_of_its_output(tmp_path):
    code, out, err = ended(tmp_path, "--seconds", 1.1, "--report", "-", "--log", "", "--venue", USDM)
    assert code == 0
    report = json.loads(out)
    assert [row["venue"] for row in report["venues"]] == [USDM] and report["books"]["live"] == 10
    assert 1.1 <= report["seconds"] < 4 and report["messages"] > 500
    assert all(re.match(r"\d+ s: [\d,]+ updates/s, ", line) for line in err.splitlines()) and os.listdir(tmp_path) == []


def test_a_configuration_folder_limited_and_by_venue(tmp_path, venue_child):
    folder = written_config(tmp_path / "config", venue_child)
    code, out, err = ended(tmp_path, "--config", folder, "--seconds", 1, "--report", "all.json")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "all.json").read_text())["books"] == {"live": 12, "syncing": 0, "stale": 0}
    code, out, err = ended(tmp_path, "--config", folder, "--seconds", 1, "--venue", SPOT, "--report", "some.json",
                           USE_LIMITED_CONFIG="1", FEEDER_LOG="debug")
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "some.json").read_text())
    assert {(row["venue"], row["state"]) for row in report["instruments"]} == {(SPOT, "live")}
    assert report["books"]["live"] == 2 and report["source"].endswith("(limited)")
    assert " DEBUG " in (tmp_path / "run.log").read_text()


def test_run_and_listen_as_people_use_them(tmp_path, venue_child):
    folder = written_config(tmp_path / "config", venue_child)
    output = json.loads((folder / "hft_config.json").read_text())["output"]
    listener = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "feeder", "listen", "--group", output["group"], "--port",
         str(output["port"]), "--seconds", "2.5", "--report", "heard.json"], cwd=str(tmp_path), stdin=subprocess.DEVNULL,
        env=dict(os.environ, PYTHONPATH=str(PROJECT)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    code, out, err = ended(tmp_path, "--config", folder, "--seconds", 1.3, "--report", "sent.json")
    assert (code, err) == (0, "")
    out, err = listener.communicate()
    assert (listener.returncode, err) == (0, "")
    heard, sent = (json.loads((tmp_path / name).read_text()) for name in ("heard.json", "sent.json"))
    assert heard["gaps_total"] == heard["lost"] == heard["mismatches"] == heard["silences"] == 0
    assert len(heard["instruments"]) == len(sent["instruments"]) == 12


@linux
def test_two_feeders_with_the_same_port_and_tap_the_second_does_without_until_the_first_is_gone(tmp_path, venue_child):
    shared = {"retransmit_port": free_udp_port(), "tap": f"test-{os.getpid()}"}
    one, two = (written_config(tmp_path / name, venue_child, output=shared) for name in ("one", "two"))
    first = Command(tmp_path, "--config", one, "--log", "")
    first.wait_for("books 12 live")
    code, out, err = ended(tmp_path, "--config", two, "--seconds", 1, "--log", "two.log", "--report", "two.json")
    assert (code, err) == (0, "") and "; NO RETRANSMISSION: cannot bind 127.0.0.1:" in out and "; NO TAP: tap test-" in out
    report = json.loads((tmp_path / "two.json").read_text())
    assert report["books"]["live"] == 12 and report["internal_errors"] == 0
    assert report["retransmission"]["failures"] == report["tap"]["failures"] == 1
    assert "Address already in use" in report["retransmission"]["error"] and report["snapshot_loop"]["rounds"] > 0
    assert (tmp_path / "two.log").read_text().count(" WARNING feeder.run: who misses packets cannot ask for them") == 1
    first.process.kill()
    assert first.end()[0] == -signal.SIGKILL
    code, out, err = ended(tmp_path, "--config", two, "--seconds", 1, "--log", "", "--report", "two.json")
    report = json.loads((tmp_path / "two.json").read_text())
    assert (code, err, "NO " in out) == (0, "", False) and report["retransmission"]["kept"] > 100
    assert report["tap"]["records"] >= report["packets"] + report["snapshot_loop"]["packets"] - 50


def test_wrong_configuration_ends_with_2_and_names_it(tmp_path, venue_child):
    folder = written_config(tmp_path / "config", venue_child)
    (folder / "hft_config.json").write_text('{"output": {"prot": 1}}')
    code, out, err = ended(tmp_path, "--config", folder)
    assert code == 2 and out == "" and "hft_config.json" in err and "output.prot" in err and "port" in err
    code, out, err = ended(tmp_path, "--config", tmp_path / "nowhere")
    assert code == 2 and "nowhere" in err and len(err.splitlines()) == 1
    for words, named in ((["--seconds", "inf"], "--seconds"), (["--seconds", "0"], "--seconds"),
                         (["--venue", "nonsense"], "nonsense")):
        code, out, err = ended(tmp_path, "--log", "", *words)
        assert code == 2 and out == "" and named in err and "Traceback" not in err
    code, out, err = ended(tmp_path, "--log", "", FEEDER_LOG="loud")
    assert code == 2 and "FEEDER_LOG" in err


def test_wrong_configuration_found_while_starting_ends_with_2_too(tmp_path, venue_child):
    folder = written_config(tmp_path / "config", venue_child)
    venue = json.loads((folder / f"{SPOT}.json").read_text())
    (folder / "junk.pem").write_text("no certificate")
    venue.update(websocket_url="wss://127.0.0.1:1", ca_file="junk.pem")
    (folder / f"{SPOT}.json").write_text(json.dumps(venue))
    code, out, err = ended(tmp_path, "--config", folder)
    assert code == 2 and out == "" and "junk.pem" in err and "log: " in err and "Traceback" not in err
    (folder / "hft_config.json").write_text('{"output": {"interface": "nonsense0"}, "log": {"path": ""}}')
    code, out, err = ended(tmp_path, "--config", folder)
    assert code == 2 and out == "" and "nonsense0" in err and "Traceback" not in err


def test_a_log_or_report_that_cannot_be_opened_ends_with_2_before_anything_starts(tmp_path):
    code, out, err = ended(tmp_path, "--log", "no/such/folder/run.log")
    assert code == 2 and out == "" and str(tmp_path / "no/such/folder/run.log") in err
    code, out, err = ended(tmp_path, "--log", "run.log", "--report", "no/such/folder/report.json")
    assert code == 2 and out == "" and "no/such/folder/report.json" in err
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_costs_log_lines_not_the_feed(tmp_path):
    code, out, err = ended(tmp_path, "--log", "/dev/full", "--seconds", 1, "--report", "report.json")
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["log_lines_lost"] > 0 and report["books"]["live"] == 20
    code, out, err = ended(tmp_path, "--log", "", "--seconds", 1, "--report", "/dev/full")
    assert code == 2 and "/dev/full" in err and "books 20 live" in out, "the summary is shown all the same"


def test_no_book_ever_live_is_a_fault_and_says_why(tmp_path, venue_child):
    folder = written_config(tmp_path / "config", venue_child, names=[SPOT])
    venue = json.loads((folder / f"{SPOT}.json").read_text())
    port = free_port()
    (folder / f"{SPOT}.json").write_text(json.dumps(dict(venue, websocket_url=f"ws://127.0.0.1:{port}")))
    code, out, err = ended(tmp_path, "--config", folder, "--seconds", 0.3)
    assert code == 1 and "no book ever became live" in err and "refused" in err and SPOT in err


def free_port():
    """A port where nobody listens."""
    import socket
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def ordinary_interpreter():
    """Words that run Python as `nobody`, or None where that cannot be."""
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("setpriv"):
        return None
    for python in ("/usr/bin/python3", sys.executable):
        words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps", "-all", python]
        tried = subprocess.run([*words, "-c", "import sys, ssl; assert sys.version_info >= (3, 9)"], cwd="/",
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if tried.returncode == 0:
            return words
    return None


@linux
def test_the_copied_folder_alone_works_for_an_ordinary_user():
    interpreter = ordinary_interpreter()
    if interpreter is None:
        pytest.skip("needs root, setpriv and an interpreter that others may read")
    with tempfile.TemporaryDirectory() as folder:         # not tmp_path: its parents are closed to others
        copy = Path(folder) / "feeder"
        shutil.copytree(PROJECT / "feeder", copy, ignore=shutil.ignore_patterns("__pycache__"))
        home = Path(folder) / "home"
        home.mkdir()
        for each, *_ in os.walk(folder):
            os.chmod(each, 0o755)
        os.chmod(home, 0o777)
        code, out, err = ended(home, "--seconds", 1, "--report", "report.json", interpreter=interpreter, package=folder,
                               PYTHONDONTWRITEBYTECODE="1", HOME=str(home))
        assert (code, err) == (0, "")
        assert json.loads((home / "report.json").read_text())["books"]["live"] == 20
        assert sorted(os.listdir(home)) == ["feeder.log", "report.json"]
        code, out, err = ended(folder, "--seconds", 1, interpreter=interpreter, package=folder, HOME=str(home),
                               PYTHONDONTWRITEBYTECODE="1")
        assert code == 2 and "Permission denied" in err and str(Path(folder) / "feeder.log") in err


# -- the live screen ------------------------------------------------------------------------------------------------


def paintings(text):
    """What stood on the terminal after each repaint: lists of lines. (A terminal puts a return before a newline.)"""
    return [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", part.partition("\x1b[J")[0]).replace("\r\r\n", "\n").split("\n")
            for part in text.split("\x1b[H")[1:]]


@linux
def test_the_live_screen_fits_every_size_and_gives_the_terminal_back(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    def resize(columns, lines):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    ours, terminal = pty.openpty()
    resize(80, 24)
    command = Command(tmp_path, "--log", "", stdout=terminal, TERM="xterm")
    text = ""
    try:
        for columns, lines in ((80, 24), (40, 10), (200, 60), (20, 3)):
            resize(columns, lines)
            start = len(text)
            while True:                      # a change of size clears all; from there on, the first whole one
                text += os.read(ours, 65_536).decode()
                whole = text[start:].partition("\x1b[2J")[2].rpartition("\x1b[J")[0]
                seen = paintings(whole)
                if seen and (columns != 80 or any(" 10 " in line for line in seen[-1])):
                    break
                assert len(seen) < 20
            painting = seen[-1]
            assert len(painting) <= lines and max(map(len, painting)) <= columns, (columns, lines, painting)
            assert painting[0].startswith("feeder run")
            if lines == 60:
                assert sum(line.rstrip().startswith("binance_") for line in painting) == 22       # 2 venues, 20 books
                assert not any("more lines" in line for line in painting)
            elif lines > 3:
                assert re.match(r"\.\.\. \d+ more lines", painting[-1])
        command.process.send_signal(signal.SIGINT)
        while "books 20 live" not in text.rpartition("\x1b[?1049l")[2]:
            text += os.read(ours, 65_536).decode()
    finally:
        command.process.kill() if command.process.poll() is None and "\x1b[?1049l" not in text else None
        code, _, err = command.end()
        os.close(ours)
        os.close(terminal)
    assert (code, err) == (0, "")
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1 and text.count("\x1b[?25h") == 1


@linux
def test_a_reader_that_went_away_ends_it_and_is_no_fault(tmp_path):
    """`feeder run | head -1`, and a report that nobody reads."""
    command = Command(tmp_path, "--log", "run.log")
    command.wait_for("1 s: ")
    child = command.child()
    command.process.stdout.close()
    with command.process.stderr:
        err = command.process.stderr.read()
    assert (command.process.wait(20), err) == (0, "")
    command.guard.cancel()
    assert not os.path.exists(f"/proc/{child}")
    command = Command(tmp_path, "--log", "run.log", "--seconds", 0.3, "--report", "-")
    command.process.stdout.close()
    with command.process.stderr:
        err = command.process.stderr.read()
    assert command.process.wait(20) == 0 and "Error" not in err and "a fault" not in err
    command.guard.cancel()


def test_workers_are_as_many_as_the_host_has_cores_for(tmp_path, caplog):
    caplog.set_level("INFO", "feeder.run")
    for name, machine, most, chosen in (("numa", machines.numa(), 4, 3), ("two", machines.numa(), 2, 2),
                                        ("none", machines.numa(), 0, 0), ("vm", machines.vm(), 4, 0)):
        runtime = configuration.builtin().hft.runtime
        runtime.workers = most
        choose_workers(runtime, machines.build(tmp_path / name, machine))
        assert runtime.workers == chosen, name
    assert "workers: 3 of at most 4: " in caplog.text and "one process with a core of its own" in caplog.text
