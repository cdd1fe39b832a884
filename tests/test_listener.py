"""The library over real sockets on loopback: a publisher of real encoders, multicast and unicast, store and server.

Publisher and listener take turns in this thread; only what is about threads, signals and time has others.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from outlet import Outlet, free_port, multicast       # noqa: F401
from support import dice

from feeder import Listener
from feeder.clock import SECOND, steady_ns
from feeder.endpoint import Endpoint
from feeder.errors import ConfigError, FeederError, HostError
from feeder.events import Book, Definition, Dropped, Gap, Line, Session, Silence, State, Switch, Trade
from feeder.net import UnicastSocket
from feeder.net.handover import TapServer
from feeder.pcap import Reader

A, B = "239.192.77.6", "239.192.77.7"
KEY = b"sixteen bytes or more"
LINUX = sys.platform.startswith("linux")
linux = pytest.mark.skipif(not LINUX, reason="the kernel tells on Linux only")


class Ports:
    """Two lines, their loops, and the texts that name them."""

    def __init__(self, *groups):
        port, loop = free_port(), free_port()
        while loop == port:
            loop = free_port()
        self.lines = [(group, port) for group in groups]
        self.loops = [(group, loop) for group in groups]
        self.texts = [str(Endpoint(group, port, None)) for group in groups]
        self.snapshot_port = loop


def listen(ports, **more):
    return Listener(ports.texts, snapshot_port=ports.snapshot_port, **more)


def take(listener, count, seconds=10):
    """Return so many events."""
    found = []
    while len(found) < count:
        event = listener.next(seconds)
        assert event is not None, f"{len(found)} of {count} events: {found[-3:]}, {listener.stats()}"
        found.append(event)
    return found


def until(listener, is_it, seconds=10, do=None):
    """Return all events up to the first for which is_it(event); do() is called while there are none."""
    found, stop_ns = [], steady_ns() + seconds * SECOND
    while not found or not is_it(found[-1]):
        event = listener.next(0.02 if do else seconds)
        if event is not None:
            found.append(event)
        elif do:
            do()
        assert steady_ns() < stop_ns, (found[-5:], listener.stats())
    return found


def rest(listener):
    """Return what is there now."""
    return list(iter(lambda: listener.next(0.05), None))


def of(events, *kinds):
    return [event for event in events if type(event) in kinds]


def check(event, outlet):
    """A book is the publisher's at that event, whoever else is waiting."""
    if type(event) is Book:
        instrument = event.instrument
        bids, asks = outlet.truth[instrument.symbol, event.venue_sequence]
        assert instrument.is_live and (instrument.bids(), instrument.asks()) == (bids, asks)


def test_every_book_is_exactly_as_of_its_event():
    ports = Ports(A)
    with listen(ports) as listener, Outlet(ports.lines) as outlet:
        outlet.open()
        for number in range(300):
            outlet.change(number % 2)
        events = []
        while len(events) < 1 + 2 * 3 + 600:
            events.append(listener.next(10))
            check(events[-1], outlet)
        assert [type(event) for event in events[:7]] == [Session, Definition, State, Book, Definition, State, Book] or (
            of(events[:8], Definition, Book) and events[0].first == 1)
        assert [event.venue_sequence for event in of(events, Trade)] == list(range(101, 401))
        assert [event.venue_sequence for event in of(events, Book)[2:]] == list(range(101, 401))
        spot, = listener.find("c0/usdt")
        assert listener.instruments == [spot, *listener.find("binance_spot:C1USDT")]
        assert spot.price_text(spot.best_bid.price) == "61837.64"
        assert listener.next(0) is None and listener.next(0.01) is None


def test_two_lines_one_with_loss_miss_nothing():
    """A loses 30 % and B 30 %, never both: each message once, in order."""
    random, ports = dice(11), Ports(A, B)
    lost = [random.choice((0, 1)) if random.random() < 0.6 else None for _ in range(2000)]
    with listen(ports) as listener, Outlet(ports.lines, lose=lambda line, number: lost[number] == line) as outlet:
        assert listener.stats()["hold_ms"] == 50
        lost[0] = None                   # both lines open the stream
        outlet.open()
        events = []
        for number in range(800):
            outlet.change(number % 2)
            while (event := listener.next(0)) is not None:
                events.append(event)
                check(event, outlet)
        events += rest(listener)
        assert [event.venue_sequence for event in of(events, Trade)] == list(range(101, 901))
        assert [event.venue_sequence for event in of(events, Book)[2:]] == list(range(101, 901))
        stats = listener.stats()
        assert not of(events, Gap) and stats["lost"] == 0
        a, b = stats["lines"]
        assert a["wins"] + b["wins"] == outlet.datagrams and min(a["lost"], b["lost"]) > 300
        assert a["lag_ns"]["count"] == a["duplicates"] and json.dumps(stats)


def test_one_line_dies_and_comes_back():
    ports, is_dead = Ports(A, B), []
    with listen(ports, silence_s=0.4) as listener, Outlet(
            ports.lines, lose=lambda line, number: line == 0 and bool(is_dead)) as outlet:
        outlet.open()
        outlet.change()
        rest(listener)
        is_dead.append(True)
        events = until(listener, lambda event: type(event) is Line, do=outlet.change)
        assert events[-1] == (0, ports.texts[0], False)
        outlet.change(1)
        is_dead.clear()
        events += until(listener, lambda event: type(event) is Line, do=outlet.change)
        assert events[-1] == (0, ports.texts[0], True)
        events += rest(listener)
        books = [event.venue_sequence for event in of(events, Book)]
        assert books == list(range(102, outlet.venue_sequence + 1)) and not of(events, Gap, Silence)
        assert listener.find("C0USDT")[0].is_live


def test_what_a_line_loses_is_asked_for_again():
    """10 % loss on the only line; requests and answers over real sockets, with key and cookie."""
    random, ports = dice(12), Ports(A)
    lost = [random.random() < 0.1 for _ in range(1000)]
    lost[0] = False
    with Outlet(ports.lines, lose=lambda line, number: lost[number]) as outlet:
        server = UnicastSocket("127.0.0.1")          # a port that is free, for the text
        port = server.port
        server.close()
        with listen(ports, retransmit=f"127.0.0.1:{port}", hold_ms=10_000) as listener:
            outlet.server_socket = UnicastSocket("127.0.0.1", port)
            listener.inlet.loop.register(outlet.server_socket, read=lambda: outlet.server_socket.serve(
                outlet.server.receive, steady_ns))
            outlet.open()
            events = []
            for number in range(500):
                outlet.change(number % 2)
                while (event := listener.next(0)) is not None:
                    events.append(event)
                    check(event, outlet)
            outlet.lose = lambda line, number: False
            outlet.heartbeat()
            events += until(listener, lambda event: type(event) is Trade and event.trade_id == 600)
            assert [event.venue_sequence for event in of(events, Book)[2:]] == list(range(101, 601))
            assert [event.venue_sequence for event in of(events, Trade)] == list(range(101, 601))
            stats = listener.stats()
            assert not of(events, Gap) and stats["lost"] == 0 < stats["lines"][0]["lost"]
            again = stats["retransmission"]
            assert again["packets"] >= sum(lost[:501]) and again["challenges"] > 0 and again["strangers"] == 0


def test_what_nobody_has_is_given_up_before_the_hold_is_over():
    ports = Ports(A)
    with Outlet(ports.lines, loops=ports.loops, lose=lambda line, number: 3 <= number < 6) as outlet:
        server = UnicastSocket("127.0.0.1")
        with listen(ports, retransmit=[f"127.0.0.1:{server.port}"], hold_ms=60_000) as listener:
            outlet.server_socket = server
            listener.inlet.loop.register(server, read=lambda: server.serve(outlet.server.receive, steady_ns))
            add = outlet.store.add
            outlet.store.add = lambda datagram: None if outlet.datagrams == 4 else add(datagram)
            outlet.open()
            for _ in range(8):
                outlet.change()
            events = until(listener, lambda event: type(event) is Gap)
            gap = events[-1]
            assert (gap.cause, gap.message_count, gap.covered) == ("network", 2, False)
            assert listener.stats()["retransmission"]["unavailable"] == 1
            assert not listener.find("C0USDT")[0].is_live and not listener.find("C0USDT")[0].bids()
            outlet.round()
            events = until(listener, lambda event: type(event) is Book)
            check(events[-1], outlet)
            assert events[-1].is_snapshot and events[-1].venue_sequence == 108


def test_a_joiner_is_live_by_the_loop_alone():
    ports = Ports(A)
    with Outlet(ports.lines, loops=ports.loops, count=5) as outlet:
        outlet.open()
        for number in range(20):
            outlet.change(number % 5)
        with listen(ports) as listener:
            assert rest(listener) == []
            outlet.round()
            events = rest(listener)
            assert len(of(events, Definition)) == 5 and [event.is_snapshot for event in of(events, Book)] == [True] * 5
            for at, event in enumerate(of(events, Book)):
                assert (list(event.flat_bids), list(event.flat_asks)) == outlet.flat(at)
            assert all(instrument.is_live for instrument in listener.instruments)
            outlet.change(2)
            event = of(take(listener, 2), Book)[0]
            check(event, outlet)
            assert not event.is_snapshot and not of(events, Gap)
            assert listener.stats()["snapshot_loop"] == {
                "packets": outlet.loop_encoder.packets, "lost": 0, "unused": 0, "rounds": 1, "books_taken": 5,
                "round_ns": 0}


def test_what_does_not_fit_into_the_queue_is_a_gap_of_the_consumer():
    ports = Ports(A)
    with listen(ports, queue_bytes=66_000) as listener, Outlet(ports.lines, loops=ports.loops) as outlet:
        outlet.open()
        first = take(listener, 1)
        for _ in range(660):
            outlet.change()
        listener.look(0)                 # as it does while the consumer takes his time
        stats = listener.stats()
        assert stats["queue"]["bytes"] <= 66_000 and stats["own_losses"]["datagrams"] > 200
        assert not stats["queue"]["datagrams"] > 330
        outlet.change()                  # nothing is taken before it is half empty
        listener.look(0)
        assert listener.stats()["own_losses"]["datagrams"] == stats["own_losses"]["datagrams"] + 1
        events = first + rest(listener)
        for event in of(events, Book):
            assert event.instrument
        outlet.change()
        events += rest(listener)
        gap, = of(events, Gap)
        dropped = stats["own_losses"]["datagrams"] + 1
        assert gap.cause == "consumer" and gap.message_count == 2 * dropped
        assert [type(event) for event in events[-2:]] == [Gap, Trade]            # good without a live book
        assert of(events, State)[-1][1:] == ("stale", "gap")
        told = [event.venue_sequence for event in of(events, Trade)]
        assert told == [*range(101, 101 + 660 - dropped + 1), 762]
        outlet.round()
        book = of(rest(listener), Book)[0]
        assert book.is_snapshot and listener.find("C0USDT")[0].is_live
        check(book, outlet)


@linux
def test_what_the_kernels_buffer_could_not_hold_is_a_gap_of_the_kernel():
    """And one of the network after it is the network's."""
    ports, lost = Ports(A), set()
    with Outlet(ports.lines, loops=ports.loops, lose=lambda line, number: number in lost) as outlet:
        with listen(ports, recv_buffer_bytes=16_384) as listener:
            outlet.open()
            rest(listener)
            for _ in range(200):
                outlet.change()
            events = rest(listener)
            assert not of(events, Gap)               # it shows with what comes next
            outlet.change()
            events += rest(listener)
            gap, = of(events, Gap)
            drops = listener.stats()["kernel_drops"]
            assert gap.cause == "kernel" and gap.message_count == 2 * drops > 0
            for source in listener.inlet.sources:
                source.drop_times = type(source.drop_times)(at - SECOND for at in source.drop_times)  # a second goes by
            lost.add(outlet.datagrams)
            outlet.change()
            outlet.change()
            gap, = of(rest(listener), Gap)
            assert (gap.cause, gap.message_count) == ("network", 2)


@linux
def test_what_waited_for_a_slow_consumer_was_neither_silent_nor_late():
    """The consumer is away for longer than silence and hold; the kernel says when everything came."""
    random, ports = dice(13), Ports(A, B)
    lost = [random.choice((0, 1, None)) for _ in range(100)]
    lost[0] = None
    with listen(ports, silence_s=0.4, hold_ms=100) as listener, Outlet(
            ports.lines, lose=lambda line, number: lost[number] == line) as outlet:
        outlet.open()
        rest(listener)
        for number in range(50):
            outlet.change()
            time.sleep(0.01)             # the consumer
        events = rest(listener)
        assert [event.venue_sequence for event in of(events, Book)] == list(range(101, 151))
        assert not of(events, Gap, Silence, Line, State)


def test_a_silent_publisher_is_told_by_time_alone():
    ports = Ports(A)
    with listen(ports, silence_s=0.1) as listener, Outlet(ports.lines) as outlet:
        outlet.open()
        events = until(listener, lambda event: type(event) is Silence)
        events += rest(listener)
        assert [event.reason for event in of(events, State)][-2:] == ["silent", "silent"]
        assert not any(instrument.is_live for instrument in listener.instruments)
        outlet.change()
        events = rest(listener)
        assert of(events, Silence)[0].is_over and any(instrument.is_live for instrument in listener.instruments)


def test_two_publishers_one_is_killed():
    """Two runs that tell the same venue sequences: each book event once, the other one goes on when one is dead."""
    ports = Ports(A, B)
    with listen(ports, silence_s=0.3) as listener, Outlet(ports.lines[:1], session=1000) as one, Outlet(
            ports.lines[1:], session=2000) as other:
        for outlet in (one, other):
            outlet.open()
        events = rest(listener)
        for _ in range(20):
            for outlet in (one, other):
                outlet.change()
            events += rest(listener) if _ % 10 == 0 else []
        events += rest(listener)
        assert sorted({event.venue_sequence for event in of(events, Book)}) == list(range(100, 121))
        assert [event.trade_id for event in of(events, Trade)] == list(range(101, 121))

        events = until(listener, lambda event: type(event) is Silence and event.session == 1000,
                       do=lambda: other.change())
        events += rest(listener)
        other.change()
        events += rest(listener)
        assert [event.trade_id for event in of(events, Trade)] == list(range(121, other.venue_sequence + 1))
        assert listener.find("C0USDT")[0].is_live and listener.find("C0USDT")[0].session == 2000
        assert of(events, Switch) and not of(events, Gap)


def test_conflation_hands_over_what_is_newest():
    ports = Ports(A)
    with listen(ports, conflate=True) as listener, Outlet(ports.lines) as outlet:
        outlet.open()
        rest(listener)
        for number in range(100):
            outlet.change(number % 2)
        events = rest(listener)
        books = of(events, Book)
        assert 2 <= len(books) < 20 and [type(event) for event in books[-2:]] == [Book, Book]
        assert [event.trade_id for event in of(events, Trade)] == list(range(101, 201))
        for event in books[-2:]:
            check(event, outlet)
        assert {event.venue_sequence for event in books[-2:]} == {199, 200} and books[-1].is_snapshot
        assert listener.stats()["conflation"]["merged"] == 100 - len(books) and not of(events, Dropped)


def test_only_what_is_asked_for():
    ports = Ports(A)
    with listen(ports, instruments="c1/usdt") as listener, Outlet(ports.lines) as outlet:
        outlet.open()
        outlet.change(0)
        outlet.change(1)
        events = rest(listener)
        assert {event.instrument.symbol for event in of(events, Definition, State, Book, Trade)} == {"C1USDT"}
        assert [each.symbol for each in listener.instruments] == ["C1USDT"] and listener.find("C0USDT") == []
        assert of(events, Session)


def test_callbacks_by_kind():
    ports, got = Ports(A), []
    with listen(ports) as listener, Outlet(ports.lines) as outlet:
        outlet.open()
        outlet.change()
        trades = []
        listener.run(got.append, on_trade=trades.append, seconds=0.1)
        assert [trade.trade_id for trade in trades] == [101] and len(of(got, Book)) == 3 and not of(got, Trade)
        before = steady_ns()
        listener.run(seconds=0.05)
        assert 0.04 * SECOND < steady_ns() - before < 5 * SECOND

        def fail(book):
            raise KeyError(book.venue_sequence)
        outlet.change()
        with pytest.raises(KeyError, match="102"):
            listener.run(on_book=fail)
        outlet.change()
        listener.run(on_book=lambda book: listener.stop())
        assert listener.next() is None and list(listener) == []


def test_stop_from_a_thread_and_timeouts():
    ports = Ports(A)
    with listen(ports) as listener:
        before = steady_ns()
        assert listener.next(0) is None and listener.next(0.05) is None
        assert 0.045 * SECOND < steady_ns() - before < 5 * SECOND
        timer = threading.Timer(0.05, listener.stop)
        timer.start()
        assert list(listener) == []      # waits without an end, but for stop()
        timer.join()
    assert listener.next(1) is None


@pytest.mark.skipif(os.name != "posix", reason="signals to ourselves are POSIX")
def test_stop_from_a_signal_handler():
    ports = Ports(A)
    with listen(ports) as listener:
        before = signal.signal(signal.SIGUSR1, lambda number, frame: listener.stop())
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        try:
            timer.start()
            listener.run()
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)


def test_an_error_of_ours_is_raised_and_never_taken_for_the_end():
    ports = Ports(A)
    with listen(ports) as listener, Outlet(ports.lines) as outlet:
        listener.arbiter.take = lambda heard, now_ns: 1 // 0
        outlet.open()
        with pytest.raises(ZeroDivisionError):
            list(listener)
        with pytest.raises(FeederError, match="cannot go on"):
            list(listener)


def test_with_a_key_nothing_else_counts(tmp_path):
    path = tmp_path / "feeder.key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    ports = Ports(A)
    with listen(ports, key_file=str(path)) as listener:
        with Outlet(ports.lines, channel=1) as forger, Outlet(ports.lines, loops=ports.loops, key=KEY) as outlet:
            forger.open()
            outlet.open()
            outlet.round()
            events = rest(listener)
            assert {event.channel for event in of(events, Session, Book)} == {0}
            assert sum(listener.stats()["errors"].values()) == forger.datagrams


def test_unicast_and_a_loop_port_that_is_taken(caplog):
    """Addresses of this host are lines, too; without the loop, if another process has its port."""
    ports = Ports("127.0.0.1", "::1") if has_ipv6() else Ports("127.0.0.1")
    with listen(ports) as listener, Listener(f"127.0.0.1:{free_port()}", snapshot_port=ports.snapshot_port) as deaf:
        assert "no snapshot loop by line 127.0.0.1" in caplog.text and not deaf.stats()["lines"][0]["loop"]
        with Outlet(ports.lines, loops=ports.loops) as outlet:
            outlet.open()
            outlet.change()
            outlet.round()
            events = rest(listener)
            assert [event.venue_sequence for event in of(events, Book)] == [100, 100, 101]
            stats = listener.stats()
            assert stats["lines"][0]["wins"] == 2 and stats["snapshot_loop"]["rounds"] == 1


def has_ipv6():
    try:
        UnicastSocket("::1").close()
    except HostError:
        return False
    return True


@linux
def test_one_source_only():
    ports = Ports("232.77.7.7")
    with listen(ports, source="127.0.0.1") as listener, listen(ports, source="127.0.0.9") as deaf:
        with Outlet(ports.lines, loops=ports.loops) as outlet:
            outlet.open()
            outlet.round()
            assert len(of(rest(listener), Book)) == 2 and rest(deaf) == []
            assert (listener.stats()["snapshot_loop"]["rounds"], deaf.stats()["snapshot_loop"]["rounds"]) == (1, 0)
    assert listener.stats()["packets"] == 1 and listener.find("C0USDT")[0].is_live       # as it was when it was closed


def test_what_came_is_written_to_a_file(tmp_path):
    path = tmp_path / "came.pcap"
    ports = Ports(A)
    with listen(ports, pcap_file=str(path)) as listener, Outlet(ports.lines, loops=ports.loops) as outlet:
        outlet.open()
        outlet.change()
        outlet.round()
        rest(listener)
        assert listener.stats()["pcap"]["datagrams"] == outlet.datagrams + outlet.loop_encoder.packets
    with open(path, "rb") as file:
        found = list(Reader(file, "came.pcap"))
    assert [each.destination[:2] for each in found] == (
        ports.lines * outlet.datagrams + ports.loops * outlet.loop_encoder.packets)


def test_wrong_arguments(tmp_path):
    for lines, more, text in (
            ((), {}, "0 lines"), (["239.192.0.1"], {}, "expected ADDRESS:PORT"),
            (["239.192.0.1:1"] * 2, {}, "given twice"),
            ("239.192.0.1:30001", {"retransmit": "nowhere"}, "expected ADDRESS:PORT"),
            ("239.192.0.1:30001", {"retransmit": "239.192.0.1:30003"}, "one host"),
            ("239.192.0.1:30001", {"key_file": str(tmp_path / "none")}, "key file"),
            *((["239.192.0.1:30001"], {name: value}, f"{name} .* is not within") for name, value in (
                ("hold_ms", -1), ("hold_ms", float("nan")), ("silence_s", 0), ("queue_bytes", 0),
                ("recv_buffer_bytes", 0), ("snapshot_port", 65_536)))):
        with pytest.raises(ConfigError, match=text):
            Listener(lines, **more)
    for more, text in (({"interface": "nosuch0"}, "nosuch0"),
                       ({"pcap_file": str(tmp_path / "no" / "file")}, "No such file")):
        with pytest.raises(HostError, match=text):
            Listener(f"{A}:{free_port()}", **more)


PROGRAM = """
import json, signal, sys
from feeder import Listener, events

with Listener(sys.argv[1], snapshot_port=int(sys.argv[2])) as listener:
    signal.signal(signal.SIGTERM, lambda number, frame: listener.stop())
    print("listening", flush=True)
    for event in listener:
        if isinstance(event, events.Book):
            print(event.instrument.name, event.venue_sequence, flush=True)
    print(json.dumps(listener.stats()["queue"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals to a child are POSIX")
def test_a_program_of_its_own_ends_by_signal_and_says_nothing_else():
    ports = Ports(A)
    with subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, ports.texts[0],
                           str(ports.snapshot_port)], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as child:
        timer = threading.Timer(30, child.kill)
        timer.start()
        with Outlet(ports.lines) as outlet:
            assert child.stdout.readline() == "listening\n"
            outlet.open()
            outlet.change()
            assert [child.stdout.readline() for _ in range(3)] == ["C0/USDT 100\n", "C1/USDT 100\n", "C0/USDT 101\n"]
            child.send_signal(signal.SIGTERM)
            out, err = child.communicate()
        timer.cancel()
    assert (child.returncode, err) == (0, "") and json.loads(out)["datagrams"] == 0


@linux
def test_a_tap_is_one_more_line():
    """Shared memory instead of the network, or beside it; a reader that was overrun knows who was too slow."""
    name = f"feeder-test-{os.getpid()}"
    server = TapServer(name, 1 << 10)
    with closing(server), Listener((), tap=name) as listener, Outlet([]) as outlet:
        emit = outlet.encoder.emit
        outlet.encoder.emit = lambda datagram: (emit(datagram), server.write(datagram))
        listener.inlet.loop.register(server, read=server.accept)
        until_open = steady_ns() + 10 * SECOND
        while not listener.inlet.tap.client.is_open:
            assert listener.next(0.01) is None and steady_ns() < until_open
        outlet.open()
        for number in range(100):
            outlet.change(number % 2)
        events = rest(listener)
        assert [event.venue_sequence for event in of(events, Book)[2:]] == list(range(101, 201))
        check(of(events, Book)[-1], outlet)
        taken = listener.inlet.on_datagram

        def while_it_reads(*came):
            taken(*came)
            if outlet.datagrams < 200:
                outlet.change()

        listener.inlet.on_datagram = while_it_reads
        outlet.change()
        rest(listener)
        assert outlet.datagrams == 200 and not listener.inlet.receiver.send_latency.negative
        listener.inlet.on_datagram = taken
        for _ in range(1000):            # of 4 slots each: four rings
            outlet.change()
        rest(listener)
        outlet.change()
        gap, = of(rest(listener), Gap)
        line, = listener.stats()["lines"]
        assert gap.cause == "consumer" and gap.message_count == 2 * 1000 and line["overruns"] == 1
