"""Idle strategies and the bound of a turn: what wakes a loop, what it costs, and that nobody is kept waiting."""

import os
import socket
import threading

import pytest
from net_peers import run_until

from feeder.clock import MILLISECOND, SECOND, cpu_ns, sleep, steady_ns, stopwatch_ns
from feeder.net import STRATEGIES, Loop, Sleep, Spin, Stream, Yield
from feeder.net.loop import MESSAGE_BYTES


@pytest.fixture(params=STRATEGIES.values(), ids=lambda strategy: strategy.name)
def loop(request):
    loop = Loop(idle=request.param())
    yield loop
    loop.close()


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


def test_sockets_timers_and_posts_of_other_threads_all_wake_it(loop, pair):
    left, right = pair
    seen = []
    loop.register(right, read=lambda: seen.append(right.recv(16)))
    loop.call_after(5 * MILLISECOND, lambda: seen.append("timer"))
    poster = threading.Thread(target=lambda: (left.send(b"bytes"), loop.post(lambda: seen.append("post"))))
    poster.start()
    run_until(loop, lambda: len(seen) == 3)
    poster.join()
    assert sorted(map(str, seen)) == ["b'bytes'", "post", "timer"]
    loop.unregister(right)


def test_stop_ends_it_from_another_thread(loop):
    stopper = threading.Timer(0.01, loop.stop)
    stopper.start()
    loop.run()
    stopper.join()


def used_share(strategy):
    """The share of the time that a loop with nothing to do but wait for a timer spends working."""
    loop = Loop(idle=strategy())
    try:
        loop.call_after(60 * MILLISECOND, loop.stop)
        started_ns, used_ns = steady_ns(), cpu_ns()
        loop.run()
        return (cpu_ns() - used_ns) / (steady_ns() - started_ns)
    finally:
        loop.close()


def test_only_sleep_leaves_the_processor_alone():
    assert used_share(Sleep) < 0.3 < max(used_share(Spin) for _ in range(5))


def test_yield_offers_the_processor_only_when_there_is_nothing_to_do():
    offered = []
    idle = Yield()
    idle._yield = lambda: offered.append(1)
    assert idle.wait(lambda timeout: ["ready"] if timeout == 0 else pytest.fail("it waited"), SECOND) == ["ready"]
    assert offered == []
    assert idle.wait(lambda timeout: [], None) == [] and offered == [1]
    assert Yield()._yield is getattr(os, "sched_yield", Yield._yield)


def test_the_wait_of_sleep_is_in_seconds():
    asked = []
    for wait_ns in (None, 0, 1_500_000_000):
        Sleep.wait(asked.append, wait_ns)
    assert asked == [None, 0, 1.5]


# -- the bound of a turn ---------------------------------------------------------------------------------------

def stream_of(loop, sock, on_data):
    """An open Stream over a socket that is there already."""
    stream = Stream(loop, "test", None, 1 << 20)
    stream._socket = sock
    stream.on_data, stream.on_close = on_data, lambda stream, error: None
    stream.stage, stream._take = "open", stream._take_plain
    loop.register(sock, read=stream._readable)
    return stream


@pytest.mark.parametrize("interval, longest", [(1, MESSAGE_BYTES), (61, 61 * MESSAGE_BYTES), (0, 256 << 10)])
def test_a_turn_is_so_many_messages_and_loses_nothing(pair, interval, longest):
    left, right = pair
    loop = Loop(event_interval=interval)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    data = os.urandom(40_000)
    got = []
    stream_of(loop, right, lambda stream, view, recv_ns: got.append(bytes(view)))
    left.send(data)
    run_until(loop, lambda: sum(map(len, got)) == len(data))
    assert b"".join(got) == data and max(map(len, got)) == min(longest, len(data))
    loop.unregister(right)
    loop.close()


def test_a_busy_connection_lets_others_and_timers_in():
    """Work takes 1 us a byte. A quiet neighbour's byte waits for one turn of the busy one, not for all it has."""
    waits = {}
    for interval in (0, 4):
        loop = Loop(event_interval=interval)
        busy, quiet = socket.socketpair(), socket.socketpair()
        for sock in (*busy, *quiet):
            sock.setblocking(False)
        busy[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        busy[0].send(bytes(40_000))
        order = []

        def work(stream, view, recv_ns, order=order, quiet=quiet):
            if not order:
                quiet[0].send(b"x")               # it comes while the busy one is at work
            order.append(len(view))
            end_ns = stopwatch_ns() + len(view) * 10
            while stopwatch_ns() < end_ns:
                pass

        stream_of(loop, busy[1], work)
        stream_of(loop, quiet[1], lambda stream, view, recv_ns, order=order: order.append("quiet"))
        run_until(loop, lambda order=order: "quiet" in order)
        waits[interval] = sum(each for each in order[:order.index("quiet")])
        for sock in (*busy, *quiet):
            if sock in (busy[1], quiet[1]):
                loop.unregister(sock)
            sock.close()
        loop.close()
    assert waits[0] == 40_000 and waits[4] <= 2 * 4 * MESSAGE_BYTES


def test_sleep_is_what_a_loop_does_by_default():
    loop = Loop()
    assert isinstance(loop.idle, Sleep) and len(loop.turn_buffer) == len(loop.buffer)
    loop.close()
    sleep(0)
