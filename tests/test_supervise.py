"""`workers: N`, whole: the twin and the listener here, ingest and publishing processes between them, and kill -9.

    Twin ──TCP──▶ worker-0, worker-1 ══rings══▶ publish ──multicast──▶ Witness, which judges every live book and quote
      └─ Truth

As in test_run.py, whose Witness this is; whatever is killed, no book that was published live may be a wrong one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from functools import reduce

import pytest
from outlet import multicast       # noqa: F401
from support import PROJECT, dice
from test_run import BOTH, SPOT, SYMBOLS, Live, Witness, made_config

from feeder import config as configuration
from feeder.clock import MILLISECOND, SECOND, steady_ns
from feeder.errors import ConfigError, HostError
from feeder.message import LIVE, STALE
from feeder.net import Loop
from feeder.pipe import LineReader, LineWriter, first_line, say
from feeder.run import Run
from feeder.status import added
from feeder.supervise import Supervisor, check
from feeder.twin.faults import Fault

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers are POSIX only")
INTERVAL_NS = 100 * MILLISECOND


def shared_memory():
    return sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []


class SessionWitness(Witness):
    """Epochs belong to a session; a publisher that was started anew has a new one."""

    session = None

    def renew(self, stream):
        if stream.session.number != self.session:
            self.session = stream.session.number
            self.epochs.clear()
            self.ended.clear()

    def judge_state(self, stream, message):
        self.renew(stream)
        super().judge_state(stream, message)

    def judge_book(self, stream, message):
        self.renew(stream)
        super().judge_book(stream, message)

    def judge_status(self, stream, message):
        self.renew(stream)
        super().judge_status(stream, message)


class Rig(Live):
    def __init__(self, stack, workers, symbols, rate=1_200, levels=100, slots=65_536, **keys):
        self.before = shared_memory()
        config = self.config = made_config(symbols, **{"snapshot_limit": 100, "published_depth": 0, **keys})
        config.hft.runtime.workers = workers
        config.hft.processing.ring_buffer_size = slots
        self.witness = SessionWitness(config.output)
        self.run = Supervisor(config, stack, INTERVAL_NS)
        stack.callback(self.witness.close)
        self.loop = self.run.loop
        self.add_twin(stack, config, rate, levels)
        self.run.job["config"] = configuration.dump(config)
        self.witness.join(self.loop, self.truth)
        self.count = sum(len(venue.symbols) for venue in config.venues)

    def views(self):
        """{(venue, symbol): view} of the present session."""
        streams = self.witness.receiver.streams.values()
        return {(view.venue, view.symbol): view for stream in streams for view in stream.views.values()
                if view.definition is not None}

    def live(self):
        views = self.views()
        return len(views) == self.count and all(view.state == LIVE for view in views.values())

    def child(self, name):
        return next(child for child in self.run.children if child.name == name)

    def kill(self, name, number=signal.SIGKILL):
        """Kill a child; return its pid when it is running no more, or is another one."""
        pid = self.child(name).process.pid
        os.kill(pid, number)
        return pid

    def settle(self):
        """Pause the market; every book of the listener must come to be the true one. Return how many levels."""
        self.until(self.live)
        self.twin.pause()
        truths = {(name, symbol): self.twin.book(name, symbol)
                  for name, venue in self.twin.venues.items() for symbol in venue.symbols}
        self.until(lambda: self.live() and all(
            view.last_venue_sequence >= truths[key][0] or self.same(view, truths[key]) for key, view in self.views().items()))
        levels = 0
        for key, view in self.views().items():
            assert self.same(view, truths[key]), key
            levels += sum(map(len, truths[key][1:]))
        return levels

    @staticmethod
    def same(view, truth):
        definition = view.definition
        heard = [[(Decimal(price).scaleb(definition.price_exponent), Decimal(quantity).scaleb(definition.quantity_exponent))
                  for price, quantity in side.levels()] for side in (view.bids, view.asks)]
        return heard == [[tuple(map(Decimal, level)) for level in side] for side in truth[1:]]

    def stale_since(self, count):
        """Which (key, reason) were declared stale, from the status `count` on."""
        return {(key, reason) for key, state, reason in self.witness.statuses[count:] if state == STALE}

    def finish(self, restarts):
        report = self.run.report()
        pids = [process["pid"] for process in report["processes"].values()]
        self.run.end()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        self.until(lambda: all(stream.session.ended for stream in self.witness.receiver.streams.values()), 5)
        self.truth.check()
        self.witness.assert_clean()
        assert report["internal_errors"] == 0 and report["not_sent"] == report["send_errors"] == 0
        assert self.run.restarts == restarts and report["log_lines_lost"] == 0
        assert self.witness.books > 20 and self.witness.quotes > 20
        assert shared_memory() == self.before
        return report


@contextmanager
def rig(workers=2, symbols=SYMBOLS[:3], **keys):
    with ExitStack() as stack:
        yield Rig(stack, workers, symbols, **keys)


# -- as with one process -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_all_books_are_the_true_ones(workers):
    with rig(workers, SYMBOLS) as made:
        assert "starting" in made.run.line() and made.run.screen(os.terminal_size((80, 24)))
        made.start()
        made.spin(1)
        line, screen = made.run.line(), made.run.screen(os.terminal_size((120, 60)))
        levels = made.settle()
        report = made.finish(restarts=0)
        assert "20 live" in line and "RESTARTS" not in line
        assert sum("live" in text for text in screen) >= 21 and len(screen) < 60
        assert [name for name in ("publish", "worker-0", "supervise") if any(
            text.startswith(name + " ") for text in screen)] == ["publish", "worker-0", "supervise"]
        assert report["books"] == {"live": 20, "syncing": 0, "stale": 0}
        assert report["gaps"] == report["resyncs"] == 0 and report["latency_ns"]["count"] > 100
        assert 0 < report["latency_ns"]["p50"] < SECOND / 10
        assert [row["symbol"] for row in report["instruments"]] == list(SYMBOLS) * 2       # the ids, over all workers
        for row in report["venues"]:
            assert row["connected"] == row["lines"] == (1 if row["venue"] == SPOT else 2) * workers
        rings = [process["ring"] for name, process in report["processes"].items() if name != "publish"]
        assert [ring["dropped"] for ring in rings] == [0] * workers and all(ring["records"] > 500 for ring in rings)
        told = [(key, up) for key, up, reason in made.witness.statuses if key in BOTH]
        assert {(name, True) for name in BOTH} <= set(told) and told[-1][1]
        print(f"{report['messages']:,} messages, {made.witness.books:,} live books and {made.witness.quotes:,} quotes "
              f"true, {levels:,} levels equal, latency {report['latency_ns']}")


def test_the_report_has_the_same_keys_as_with_one_process():
    with ExitStack() as stack:
        config = made_config(SYMBOLS[:2])
        expected = Run(config, stack).report()
    with rig(2, SYMBOLS[:2]) as made:
        made.start()
        found = made.run.report()
        made.run.end()
    assert set(found) == set(expected) | {"processes"}
    for key in ("venues", "instruments"):
        assert [set(row) for row in found[key]] == [set(row) for row in expected[key]]
    assert set(found["decoders"]) == set(expected["decoders"])
    json.dumps(found)


def test_a_gap_heals_through_the_ring_and_alone():
    with rig() as made:
        made.start()
        made.twin.inject(Fault("gap"))
        made.until(lambda: len(made.stale_since(0)) == 2)
        made.until(made.live)
        made.settle()
        report = made.finish(restarts=0)
        assert report["gaps"] == report["resyncs"] == 2
        assert {reason for _, reason in made.stale_since(0)} == {"gap"}


# -- kill -9 -------------------------------------------------------------------------------------------------


def test_a_killed_worker_has_its_books_stale_at_once_and_back_live():
    with rig() as made:
        made.start()
        made.spin(0.3)
        count, session = len(made.witness.statuses), made.witness.session
        made.child("worker-1").pause_ns = 2 * SECOND                # so that it is not its successor who finds out
        made.kill("worker-1")
        mine = {(name, SYMBOLS[1]) for name in BOTH}              # dealt out in turn: the second of three
        made.until(lambda: {key for key, _ in made.stale_since(count)} == mine, 2)
        assert {reason for _, reason in made.stale_since(count)} == {"disconnect"}
        made.until(lambda: all((name, False, "disconnect") in made.witness.statuses[count:] for name in BOTH), 2)
        assert not made.child("worker-1").is_running
        made.until(made.live)
        made.until(lambda: all([up for key, up, _ in made.witness.statuses if key == name][-1] for name in BOTH))
        made.spin(0.3)
        made.settle()
        report = made.finish(restarts=1)
        assert made.witness.session == session and report["session"] == session
        assert {key for key, _ in made.stale_since(count)} == mine      # nobody else's
        assert report["processes"]["worker-1"]["starts"] == 2 and report["processes"]["worker-0"]["starts"] == 1


def test_a_killed_publisher_comes_back_with_a_new_session_and_all_books():
    with rig() as made:
        made.start()
        made.spin(0.3)
        count, session = len(made.witness.statuses), made.witness.session
        made.kill("publish")
        made.until(lambda: made.witness.session != session)
        made.until(made.live)
        made.until(lambda: all((name, True, "none") in made.witness.statuses[count:] for name in BOTH))
        made.spin(0.3)
        made.settle()
        report = made.finish(restarts=1)
        assert made.witness.receiver.session_count == 2 and made.witness.session > session
        assert report["processes"]["publish"]["starts"] == 2
        assert report["retransmission"]["failures"] == 0 and report["retransmission"]["kept"] > 10
        assert report["snapshot_loop"]["rounds"] > 0 == report["snapshot_loop"]["send_errors"]
        assert [report["processes"][f"worker-{number}"]["starts"] for number in (0, 1)] == [1, 1]


def test_all_killed_at_once():
    with rig() as made:
        made.start()
        session = made.witness.session
        for child in made.run.children:
            made.kill(child.name)
        made.until(lambda: made.run.restarts == 3 and made.witness.session != session)
        made.until(made.live)
        made.settle()
        made.finish(restarts=3)


def test_a_child_that_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr("feeder.supervise.SILENCE_NS", SECOND)
    with rig() as made:
        made.start()
        made.kill("worker-0", signal.SIGSTOP)
        made.until(lambda: made.run.restarts == 1 and len(made.stale_since(0)) == 4)
        made.until(made.live)
        made.settle()
        made.finish(restarts=1)


def test_a_child_ended_by_hand_is_replaced_too():
    with rig() as made:
        made.start()
        made.kill("worker-0", signal.SIGTERM)
        made.until(lambda: made.run.restarts == 1 and len(made.stale_since(0)) == 4)
        made.until(made.live)
        made.settle()
        made.finish(restarts=1)


def test_a_ring_that_is_full_makes_books_stale_never_wrong():
    """The publisher sleeps while the workers fill a ring of 256 slots; it must not wake up to half a history."""
    with rig(workers=1, rate=3_000, slots=256) as made:
        made.start()
        count = len(made.witness.statuses)
        made.kill("publish", signal.SIGSTOP)
        made.until(lambda: made.child("worker-0").vitals["ring"]["dropped"] > 100)
        made.kill("publish", signal.SIGCONT)
        made.until(lambda: len({key for key, reason in made.stale_since(count) if reason == "ring_full"}) == made.count)
        made.until(made.live)
        made.spin(0.3)
        made.settle()
        report = made.finish(restarts=0)
        assert {row["resync_reasons"].get("ring_full") for row in report["instruments"]} == {1}


def storm(seconds, seed):
    rng = dice(seed)
    with rig(2, SYMBOLS[:6], connects_per_5_minutes=300) as made:
        made.start()
        restarts, end_ns = 0, steady_ns() + seconds * SECOND
        while steady_ns() < end_ns:
            if rng.random() < 0.5:
                made.kill(rng.choice(made.run.children).name)
                restarts += 1
                made.until(lambda: made.run.restarts == restarts)
            else:
                made.twin.inject(Fault(rng.choice(("gap", "disconnect", "duplicate"))))
            made.spin(rng.random() * 2)
            made.until(lambda: all(child.is_running and child.ready for child in made.run.children), 60)
        made.until(made.live, 60)
        levels = made.settle()
        made.finish(restarts)
        print(f"{restarts} killed, {made.witness.books:,} live books and {made.witness.quotes:,} quotes true, "
              f"{levels:,} levels equal")


@pytest.mark.stress
@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_kills_and_faults(seed):
    storm(60, seed)


# -- the whole command ---------------------------------------------------------------------------------------


def command(tmp_path, *more):
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "feeder", "run", "--workers", "2", "--log",
         str(tmp_path / "run.log"), *more], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(PROJECT)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(pid):
    """All processes below one: {pid: command line}."""
    parents, names = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{name}/cmdline") as file:
                names[int(name)] = file.read().replace("\0", " ")
        except OSError:
            pass
    found, grown = {pid}, True
    while grown:
        grown = {child for child, parent in parents.items() if parent in found} - found
        found |= grown
    return {child: names.get(child, "") for child in found - {pid}}


def wait_for(condition, seconds=20):
    give_up_ns = steady_ns() + seconds * SECOND
    while not condition():
        assert steady_ns() < give_up_ns
        time.sleep(0.05)


linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks /proc")


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_parent_ends_all_and_leaves_nothing(tmp_path, number):
    before = shared_memory()
    process = command(tmp_path, "--report", "report.json")
    with process.stdout, process.stderr:
        wait_for(lambda: "20 live" in process.stdout.readline(), 40)
        family = children_of(process.pid)
        assert sum("feeder.worker" in text for text in family.values()) == 3, family
        process.send_signal(number)
        code = process.wait(20)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family))
        error = process.stderr.read()
    assert shared_memory() == before and error == ""
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["books"]["live"] == 20 and report["internal_errors"] == 0


@linux
def test_what_cannot_start_is_an_error_not_a_restart():
    config = made_config(SYMBOLS[:1])
    config.output.interface = "nosuch0"
    config.hft.runtime.workers = 1
    with ExitStack() as stack:
        run = Supervisor(config, stack, INTERVAL_NS)
        run.start()
        run.loop.run()
        with pytest.raises(HostError, match="nosuch0"):
            run.report()
        assert run.publisher.starts == 1


# -- the parts -----------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused(monkeypatch):
    config = configuration.builtin()
    check(config)
    config.hft.processing.ring_buffer_size = 256
    with pytest.raises(ConfigError, match="ring_buffer_size: found 256, expected at least 512"):
        check(config)
    config.hft.processing.ring_buffer_size = 512
    check(config)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(HostError, match="memory order"):
        check(config)
    monkeypatch.setenv("FEEDER_FORCE_RING", "1")
    check(config)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_shares_are_all_of_it_once(count):
    config = configuration.builtin()
    config.venues[1].symbols = config.venues[1].symbols[:2]
    parts = configuration.shares(config, count)
    for venue in config.venues:
        mine = [part for share in parts for part in share.venues if part.name == venue.name]
        assert sorted(symbol for part in mine for symbol in part.symbols) == sorted(venue.symbols)
        for budget in ("snapshot_weight_per_minute", "connects_per_5_minutes"):
            assert sum(getattr(part, budget) for part in mine) <= getattr(venue, budget)
        assert len(mine) == min(count, len(venue.symbols))
    assert sorted(configuration.instrument_ids(config).values()) == list(range(12))


def test_a_configuration_comes_through_a_dump():
    config = configuration.builtin()
    config.hft.memory.lock, config.output.group = False, "239.1.2.3"
    values = json.loads(json.dumps(configuration.dump(config)))
    assert configuration.restore(values).as_dict().keys() == config.as_dict().keys()
    assert configuration.dump(configuration.restore(values)) == values
    assert repr(configuration.restore(values)) == repr(config)


def test_figures_add_up():
    one = {"venues": {"a": {"row": {"venue": "a", "lines": 1, "unknown_symbols": ["X"], "last_error": ""}}}, "n": 1}
    two = {"venues": {"a": {"row": {"venue": "a", "lines": 2, "unknown_symbols": [], "last_error": "e"}},
                      "b": {"row": {"venue": "b", "lines": 4, "unknown_symbols": ["Y"], "last_error": ""}}}, "n": 2}
    assert reduce(added, [one, two]) == {"venues": {
        "a": {"row": {"venue": "a", "lines": 3, "unknown_symbols": ["X"], "last_error": "e"}},
        "b": {"row": {"venue": "b", "lines": 4, "unknown_symbols": ["Y"], "last_error": ""}}}, "n": 3}


@pytest.fixture
def pipe():
    loop = Loop()
    out, into = os.pipe()
    yield loop, out, into
    loop.close()
    for fd in (out, into):
        try:
            os.close(fd)
        except OSError:
            pass


def test_lines_come_whole_however_large(pipe):
    loop, out, into = pipe
    heard, ends = [], []
    reader = LineReader(loop, out, heard.append, lambda: ends.append(True))
    writer = LineWriter(loop, into)
    messages = [{"n": number, "text": "ü\n" * size} for number, size in enumerate((0, 1, 100_000, 3, 400_000))]
    for message in messages:
        writer.send(message)
    assert writer.waiting and not writer.dropped
    while len(heard) < len(messages):
        loop.run_once(SECOND)
    assert heard == messages and not writer.waiting
    writer.close()
    os.close(into)
    while not ends:
        loop.run_once(SECOND)
    assert not reader.open and ends == [True]


def test_a_reader_that_sleeps_costs_messages_not_time(pipe):
    loop, out, into = pipe
    writer = LineWriter(loop, into)
    for number in range(100):
        writer.send({"figures": "x" * 50_000})
    assert 60 < writer.dropped < 100
    writer.send({"report": 1}, important=True)
    heard = []
    reader = LineReader(loop, out, heard.append, lambda: None)
    while not heard or "report" not in heard[-1]:
        loop.run_once(SECOND)
    assert len(heard) == 101 - writer.dropped
    reader.close()
    os.close(out)
    for _ in range(2):
        writer.send({"figures": 1})               # nobody reads any more: no error
    assert not writer.open
    writer.close()


def test_nonsense_on_a_pipe_is_its_end(pipe):
    loop, out, into = pipe
    heard, ends = [], []
    LineReader(loop, out, heard.append, lambda: ends.append(True))
    os.write(into, b'{"a":1}\n{"b"\n{"c":1}\n')
    loop.run_once(SECOND)
    assert heard == [{"a": 1}] and ends == [True]


def test_the_first_line_and_the_last_words(pipe):
    _, out, into = pipe
    say(into, {"failed": "x"})
    assert first_line(out) == {"failed": "x"}
    os.close(into)
    assert first_line(out) is None
