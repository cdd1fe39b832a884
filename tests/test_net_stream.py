import errno
import random
import socket
import threading

import pytest
from net_peers import Events, Peer, loop, run_until  # noqa: F401

import feeder.net.resolve
import feeder.net.stream
from feeder.clock import MILLISECOND, SECOND, wall_ns
from feeder.errors import HostError
from feeder.net import NetworkError, SocketOptions, connect, listen

SMALL = SocketOptions(recv_buffer_bytes=8192, send_buffer_bytes=8192)


class Server:
    """A Listener that keeps the streams it accepted and what became of them."""

    def __init__(self, loop, **options):
        self.streams, self.events = [], []
        self.listener = listen(loop, "127.0.0.1", 0, self.on_accept, **options)
        self.port = self.listener.port

    def on_accept(self, stream):
        events = Events()
        self.streams.append(stream)
        self.events.append(events)
        stream.on_data, stream.on_close = events.on_data, events.on_close


@pytest.fixture
def server(loop):
    server = Server(loop)
    yield server
    server.listener.close()
    for stream in server.streams:
        stream.abort()


def join_lookups():
    """Wait for the lookup threads a test let hang, before it hands the patched functions back."""
    for thread in threading.enumerate():
        if thread.name == "feeder-lookup":
            thread.join()


def dead_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def opened(loop, server, **options):
    """A stream connected to the server, its events, and the server's stream and events."""
    events = Events()
    stream = connect(loop, "127.0.0.1", server.port, **events.callbacks, **options)
    count = len(server.streams)
    run_until(loop, lambda: events.opened and len(server.streams) > count)
    return stream, events, server.streams[-1], server.events[-1]


def test_bytes_both_ways_then_an_orderly_end_on_both_sides(loop, server):
    stream, events, far, far_events = opened(loop, server)
    assert stream.peer == far.local == f"127.0.0.1:{server.port}" and stream.local == far.peer
    assert stream.recv_buffer_bytes >= 1 << 16 and far.send_buffer_bytes >= 1 << 16
    before_ns = wall_ns()
    assert stream.write(b"question") and far.write(b"answer")
    run_until(loop, lambda: events.data and far_events.data)
    assert (events.data, far_events.data) == (b"answer", b"question")
    assert before_ns <= events.stamps[0] <= wall_ns()
    stream.close()
    assert events.closed == []                   # never inside the owner's call
    run_until(loop, lambda: far_events.closed and events.closed)
    assert events.closed == far_events.closed == [None]
    assert (stream.bytes_out, far.bytes_in, stream.bytes_in, far.bytes_out) == (8, 8, 6, 6)
    assert not stream.write(b"late")
    stream.close()
    stream.abort()
    for _ in range(3):
        loop.run_once(0)
    assert events.closed == [None] and loop.errors == 0


def test_ipv6_works_where_the_host_has_it(loop):
    try:
        listener = listen(loop, "::1", 0, lambda stream: stream.close())
    except (HostError, OSError) as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    events = Events()
    stream = connect(loop, "::1", listener.port, **events.callbacks)
    run_until(loop, lambda: events.closed)
    assert events.opened and events.closed == [None] and stream.peer == f"[::1]:{listener.port}"
    listener.close()


def test_nagle_is_off(loop, server):
    stream, _, far, _ = opened(loop, server)
    for each in (stream, far):
        assert each._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    stream.close()


def test_megabytes_arrive_whole_through_small_buffers(loop):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    server = Server(loop, options=SMALL)
    stream, events, far, far_events = opened(loop, server, options=SMALL)
    sent = bytearray()
    while len(sent) < 3_000_000:
        piece = dice.getrandbits(8 * 1000).to_bytes(1000, "little") * dice.randrange(1, 40)
        assert stream.write(piece)
        sent += piece
    assert stream.pending_bytes > 1_000_000
    stream.close()                               # and close() waits for what is pending
    run_until(loop, lambda: far_events.closed)
    assert far_events.data == sent and events.closed == far_events.closed == [None]
    server.listener.close()


def test_a_slow_reader_is_cut_off_at_the_bound(loop):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        events = Events()
        stream = connect(loop, "127.0.0.1", deaf.getsockname()[1], **events.callbacks, options=SMALL,
                         max_pending_bytes=500_000)
        run_until(loop, lambda: events.opened)
        results = []
        while stream.write(bytes(10_000)):
            results.append(stream.pending_bytes)
            assert len(results) < 10_000
            assert events.closed == []
        assert max(results) <= 500_000
        run_until(loop, lambda: events.closed)
        assert "too slowly" in events.error and "limit 500000" in events.error
        assert not stream.write(b"more") and stream.pending_bytes == 0


def test_close_gives_up_on_a_peer_that_does_not_read(loop, monkeypatch):
    monkeypatch.setattr(feeder.net.stream, "LINGER_NS", 50 * MILLISECOND)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        events = Events()
        stream = connect(loop, "127.0.0.1", deaf.getsockname()[1], **events.callbacks, options=SMALL)
        run_until(loop, lambda: events.opened)
        stream.write(bytes(4_000_000))
        stream.close()
        assert stream.stage == "closing" and not stream.write(b"more")
        run_until(loop, lambda: events.closed)
        assert "bytes still unsent" in events.error


def test_a_peer_that_half_closes_still_gets_what_is_pending(loop):
    heard = bytearray()
    accepted = Server(loop, options=SMALL)

    def ask():
        with socket.create_connection(("127.0.0.1", accepted.port)) as sock:
            sock.sendall(b"everything, please")
            sock.shutdown(socket.SHUT_WR)
            while True:
                piece = sock.recv(65536)
                if not piece:
                    return
                heard.extend(piece)

    thread = threading.Thread(target=ask)
    thread.start()
    run_until(loop, lambda: accepted.streams)
    far, events = accepted.streams[0], accepted.events[0]
    far.write(bytes(2_000_000))
    run_until(loop, lambda: events.closed)
    thread.join()
    assert events.closed == [None] and events.data == b"everything, please" and len(heard) == 2_000_000
    accepted.listener.close()


def test_abort_resets_the_peer_and_loses_what_is_pending(loop, server):
    stream, events, far, far_events = opened(loop, server)
    stream.abort()
    run_until(loop, lambda: far_events.closed and events.closed)
    assert events.closed == [None] and "reset" in far_events.error


def test_the_owners_error_is_handed_to_on_close(loop, server):
    stream, events, _, _ = opened(loop, server)
    reason = NetworkError("stale")
    stream.close(reason)
    run_until(loop, lambda: events.closed)
    assert events.closed == [reason]


# -- connecting

def test_refused(loop):
    events, port = Events(), dead_port()
    connect(loop, "127.0.0.1", port, **events.callbacks)
    run_until(loop, lambda: events.closed)
    assert events.error == f"127.0.0.1:{port}: connecting: 127.0.0.1:{port}: Connection refused"
    assert not events.opened


def test_close_while_connecting_is_final(loop, server):
    for rounds in range(4):
        events = Events()
        stream = connect(loop, "localhost", server.port, **events.callbacks)
        for _ in range(rounds):
            loop.run_once(0)
        was_open = stream.is_open
        stream.close()
        run_until(loop, lambda: events.closed)
        assert events.closed == [None] and events.opened == was_open


def test_the_next_address_is_tried(loop, server, monkeypatch):
    addresses = [(socket.AF_INET, ("127.0.0.1", dead_port())), (socket.AF_INET, ("127.0.0.1", server.port))]
    monkeypatch.setattr(feeder.net.stream, "lookup", lambda host, port, on_done: on_done(list(addresses)))
    events = Events()
    stream = connect(loop, "two.test", 443, **events.callbacks)
    run_until(loop, lambda: events.opened)
    assert stream.peer == f"127.0.0.1:{server.port}" and stream.name == "two.test:443"
    stream.close()


def test_all_addresses_fail_and_all_are_named(loop, monkeypatch):
    addresses = [(socket.AF_INET, ("127.0.0.1", dead_port())) for _ in range(3)]
    monkeypatch.setattr(feeder.net.stream, "lookup", lambda host, port, on_done: on_done(list(addresses)))
    events = Events()
    connect(loop, "three.test", 443, **events.callbacks)
    run_until(loop, lambda: events.closed)
    assert all(f"127.0.0.1:{port}: Connection refused" in events.error for _, (_, port) in addresses)


@pytest.fixture
def full_port():
    """A port whose queue of connections is full: Linux drops further SYNs, as a silent firewall would."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(20):
        filler = socket.socket()
        fillers.append(filler)
        filler.settimeout(0.2)
        try:
            filler.connect(listener.getsockname())
        except socket.timeout:
            break
    else:
        pytest.skip("this kernel's queue of connections does not fill")
    yield listener.getsockname()[1]
    for each in fillers + [listener]:
        each.close()


def test_a_silent_address_times_out(loop, full_port):
    events = Events()
    connect(loop, "127.0.0.1", full_port, **events.callbacks, timeout_ns=100 * MILLISECOND)
    run_until(loop, lambda: events.closed)
    assert "connecting: no success within 0.1 s" in events.error and str(full_port) in events.error


def test_the_timeout_is_over_once_open(loop):
    server = Server(loop, timeout_ns=30 * MILLISECOND)
    stream, events, far, far_events = opened(loop, server, timeout_ns=30 * MILLISECOND)
    passed = []
    loop.call_after(60 * MILLISECOND, lambda: passed.append(1))
    run_until(loop, lambda: passed)
    assert stream.is_open and far.is_open
    stream.close()
    run_until(loop, lambda: far_events.closed)
    server.listener.close()


def test_a_silent_address_leaves_time_for_the_next(loop, server, full_port, monkeypatch):
    addresses = [(socket.AF_INET, ("127.0.0.1", full_port)), (socket.AF_INET, ("127.0.0.1", server.port))]
    monkeypatch.setattr(feeder.net.stream, "lookup", lambda host, port, on_done: on_done(list(addresses)))
    events = Events()
    stream = connect(loop, "two.test", 443, **events.callbacks, timeout_ns=SECOND)
    run_until(loop, lambda: events.opened)
    stream.close()


def test_an_unknown_name(loop, monkeypatch):
    def fail(host, port, flags):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(feeder.net.resolve, "_addresses", fail)
    events = Events()
    connect(loop, "nowhere.test", 443, **events.callbacks)
    run_until(loop, lambda: events.closed)
    assert events.error == "nowhere.test:443: resolving: name lookup: Name or service not known"


def test_names_that_cannot_be(loop):
    for name in ("a..b", "x" * 300, "."):
        events = Events()
        connect(loop, name, 443, **events.callbacks)
        run_until(loop, lambda: events.closed)
        assert "name lookup" in events.error


def test_a_mute_name_server_stalls_only_its_own_connection(loop, server, monkeypatch):
    release, real = threading.Event(), feeder.net.resolve._addresses

    def slow(host, port, flags):
        if host == "slow.test" and not flags & socket.AI_NUMERICHOST:
            release.wait(10)
            return []
        return real(host, port, flags)

    monkeypatch.setattr(feeder.net.resolve, "_addresses", slow)
    events = Events()
    connect(loop, "slow.test", 443, **events.callbacks, timeout_ns=200 * MILLISECOND)
    stream, _, _, _ = opened(loop, server)       # meanwhile
    assert not events.closed
    run_until(loop, lambda: events.closed)
    assert events.error == "slow.test:443: resolving: no success within 0.2 s"
    release.set()
    join_lookups()
    stream.close()


def test_lookups_under_way_are_bounded(loop, monkeypatch):
    monkeypatch.setattr(feeder.net.resolve, "_slots", threading.BoundedSemaphore(1))
    release = threading.Event()

    def slow(host, port, flags):
        if flags:
            raise OSError
        release.wait(10)
        return []

    monkeypatch.setattr(feeder.net.resolve, "_addresses", slow)
    first, second = Events(), Events()
    connect(loop, "one.test", 1, **first.callbacks)
    connect(loop, "two.test", 1, **second.callbacks)
    run_until(loop, lambda: second.closed)
    assert "lookups are under way" in second.error and not first.closed
    release.set()
    run_until(loop, lambda: first.closed)
    join_lookups()


# -- faults of callbacks and misuse

@pytest.mark.parametrize("which", ["on_open", "on_data"])
def test_a_handler_that_raises_ends_its_stream_and_no_other(loop, server, which, caplog):
    def broken(*_):
        raise KeyError("handler")

    events = Events()
    connect(loop, "127.0.0.1", server.port, **dict(events.callbacks, **{which: broken}))
    run_until(loop, lambda: server.streams)
    server.streams[0].write(b"x")
    run_until(loop, lambda: events.closed)
    assert "its handler failed: KeyError('handler')" in events.error and loop.errors == 1
    assert "Traceback" in caplog.text
    stream, _, _, _ = opened(loop, server)
    stream.close()


def test_closing_in_on_data_ends_the_data(loop, server):
    stream, events, far, _ = opened(loop, server)
    stream.on_data = lambda *args: (events.on_data(*args), stream.close())
    far.write(b"one")
    run_until(loop, lambda: events.closed)
    assert events.data == b"one" and events.closed == [None]


def test_writing_before_on_open_is_our_mistake(loop, server):
    events = Events()
    stream = connect(loop, "127.0.0.1", server.port, **events.callbacks)
    with pytest.raises(RuntimeError, match="before on_open"):
        stream.write(b"x")
    stream.close()


# -- listening

def test_an_address_in_use_is_refused_with_a_sentence(loop, server):
    with pytest.raises(HostError, match=f"127.0.0.1:{server.port}: Address already in use"):
        listen(loop, "127.0.0.1", server.port, print)


def test_many_connections_at_once(loop, server):
    all_events = [Events() for _ in range(150)]
    streams = [connect(loop, "127.0.0.1", server.port, **events.callbacks) for events in all_events]
    run_until(loop, lambda: all(events.opened for events in all_events) and len(server.streams) == 150)
    for number, stream in enumerate(streams):
        stream.write(b"%d" % number)
        stream.close()
    run_until(loop, lambda: all(events.closed for events in server.events))
    assert {int(events.data) for events in server.events} == set(range(150))


def test_without_descriptors_accepting_pauses_and_goes_on(loop, server, monkeypatch, caplog):
    monkeypatch.setattr(feeder.net.stream, "ACCEPT_PAUSE_NS", 20 * MILLISECOND)
    real, refusals = server.listener._socket, []

    class Scarce:
        def accept(self):
            if len(refusals) < 2:
                refusals.append(1)
                raise OSError(errno.EMFILE, "Too many open files")
            return real.accept()

        def __getattr__(self, name):
            return getattr(real, name)

    server.listener._socket = Scarce()
    stream, _, _, _ = opened(loop, server)
    assert caplog.text.count("Too many open files; accepting again in 0.02 s") == 2
    stream.close()


def test_a_peer_that_is_gone_at_once(loop, server):
    for _ in range(20):
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    run_until(loop, lambda: server.listener.accepted == 20)
    run_until(loop, lambda: all(events.closed for events in server.events))
    assert loop.errors == 0


def test_a_peer_in_another_thread_that_dies_while_we_write(loop):
    peer = Peer(lambda sock: sock.recv(1))
    events = Events()
    stream = connect(loop, "127.0.0.1", peer.port, **events.callbacks)
    run_until(loop, lambda: events.opened)
    while not events.closed:
        stream.write(bytes(10_000))
        loop.run_once(MILLISECOND)
    assert len(events.closed) == 1
    peer.close()
