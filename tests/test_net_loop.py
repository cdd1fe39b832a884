import random
import signal
import socket
import threading

import pytest
from net_peers import loop, run_until  # noqa: F401

from feeder.clock import MILLISECOND, SECOND, sleep, steady_ns
from feeder.net import Loop


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


# -- timers

def test_thousands_of_timers_fire_once_each_in_order_and_never_early(loop):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    fired, expected, timers = [], [], []
    start_ns = steady_ns()
    for number in range(5000):
        deadline_ns = start_ns + dice.randrange(50 * MILLISECOND)

        def fire(number=number, deadline_ns=deadline_ns):
            assert steady_ns() >= deadline_ns
            fired.append(number)

        timers.append(loop.call_at(deadline_ns, fire))
    cancelled = set(dice.sample(range(5000), 2000))
    for number in cancelled:
        timers[number].cancel()
        timers[number].cancel()              # once more does nothing
    expected = sorted((timer.deadline_ns, number) for number, timer in enumerate(timers) if number not in cancelled)
    run_until(loop, lambda: len(fired) == 3000)
    assert fired == [number for _, number in expected]
    assert loop.errors == 0 and not loop._heap and loop._cancelled == 0
    assert not any(timer.is_pending for timer in timers)


def test_cancelled_timers_do_not_pile_up(loop):
    for _ in range(20_000):
        loop.call_after(3600 * SECOND, print).cancel()
    assert len(loop._heap) < 1000


def test_a_timer_may_be_cancelled_by_one_that_fires_in_the_same_round(loop):
    fired = []
    first = loop.call_at(1, lambda: (fired.append(1), second.cancel()))
    second = loop.call_at(2, lambda: fired.append(2))
    third = loop.call_at(3, lambda: (fired.append(3), first.cancel()))
    loop.run_once(0)
    assert fired == [1, 3] and loop._cancelled == 0 and not third.is_pending


def test_a_timer_that_sets_itself_anew_starves_nobody(loop, pair):
    left, right = pair
    turns, other = [], []

    def again():
        turns.append(1)
        loop.call_at(0, again)

    again()
    loop.call_at(1, lambda: other.append("timer"))
    loop.register(right, read=lambda: (right.recv(1), other.append("socket")))
    left.send(b"x")
    for _ in range(3):
        loop.run_once(0)
    assert sorted(other) == ["socket", "timer"] and len(turns) == 4
    loop.unregister(right)


def test_the_wait_ends_with_the_first_timer(loop):
    fired = []
    loop.call_after(20 * MILLISECOND, lambda: fired.append(steady_ns()))
    start_ns = steady_ns()
    while not fired:
        loop.run_once(10 * SECOND)
    assert 20 * MILLISECOND <= fired[0] - start_ns < 2 * SECOND


# -- sockets

def test_read_and_write_callbacks_and_modify(loop, pair):
    left, right = pair
    seen = []
    loop.register(right, read=lambda: seen.append(right.recv(10)), write=lambda: seen.append("write"))
    loop.run_once(0)
    assert seen == ["write"]
    loop.modify(right, read=lambda: seen.append(right.recv(10)))
    left.send(b"abc")
    loop.run_once(SECOND)
    assert seen == ["write", b"abc"]
    loop.unregister(right)
    left.send(b"abc")
    loop.run_once(0)
    assert len(seen) == 2
    with pytest.raises(ValueError, match="neither"):
        loop.register(right)


def test_unregistering_in_a_round_silences_events_already_seen(loop):
    pairs = [socket.socketpair() for _ in range(8)]
    called = []

    def only_one(me):
        called.append(me)
        for _, right in pairs:
            loop.unregister(right)

    for left, right in pairs:
        loop.register(right, read=lambda right=right: only_one(right))
        left.send(b"x")
    loop.run_once(SECOND)
    assert len(called) == 1
    for left, right in pairs:
        left.close()
        right.close()


def test_on_idle_comes_after_each_round(loop):
    order = []
    loop.on_idle = lambda: order.append("idle")
    loop.call_at(0, lambda: order.append("timer"))
    loop.post(lambda: order.append("post"))
    loop.run_once(0)
    loop.run_once(0)
    assert order == ["post", "timer", "idle", "idle"]


# -- errors

def test_a_callback_that_raises_is_logged_and_counted_and_costs_nobody_else(loop, caplog):
    done = []

    def broken():
        raise KeyError("this one")

    loop.post(broken)
    loop.call_at(0, broken)
    loop.call_at(1, lambda: done.append(1))
    loop.run_once(0)
    assert loop.errors == 2 and done == [1]
    assert "broken" in caplog.text and "KeyError: 'this one'" in caplog.text


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through_and_lose_nothing_else(loop, interrupt):
    done = []

    def stop():
        raise interrupt

    loop.call_at(1, stop)
    loop.call_at(2, lambda: done.append(1))
    with pytest.raises(interrupt):
        loop.run_once(0)
    loop.run_once(0)
    assert done == [1] and loop.errors == 0


# -- threads and signals

def test_posts_of_many_threads_all_arrive_each_thread_in_order(loop):
    seen = []

    def poster(thread):
        for number in range(2000):
            while not loop.post(lambda number=number: seen.append((thread, number))):
                pass

    threads = [threading.Thread(target=poster, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    run_until(loop, lambda: len(seen) == 12_000, seconds=30)
    for thread in threads:
        thread.join()
    for name in range(6):
        assert [number for thread, number in seen if thread == name] == list(range(2000))


def test_a_post_wakes_a_loop_that_waits_without_limit(loop):
    for number in range(60):                 # the loop is about to sleep, or sleeps: nothing tells from outside
        thread = threading.Thread(target=lambda: (sleep(number % 4 / 1000), loop.post(loop.stop)))
        thread.start()
        loop.run()
        thread.join()


def test_posts_are_bounded_and_refused_after_close():
    loop = Loop(max_posts=3)
    assert [loop.post(print) for _ in range(5)] == [True, True, True, False, False]
    assert loop.posts_refused == 2
    loop.close()
    assert not loop.post(print)
    loop.stop()
    loop.close()                             # twice is fine


def test_posts_made_by_a_post_wait_for_the_next_round(loop):
    seen = []

    def again():
        seen.append(1)
        loop.post(again)

    loop.post(again)
    loop.run_once(0)
    loop.run_once(SECOND)
    assert len(seen) == 2


def test_stop_before_run_counts_and_run_can_be_repeated(loop):
    loop.stop()
    loop.run()
    loop.call_after(MILLISECOND, loop.stop)
    loop.run()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_stop_from_a_signal_handler_ends_a_waiting_run(loop):
    old = signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    main = threading.get_ident()
    thread = threading.Thread(target=lambda: signal.pthread_kill(main, signal.SIGUSR1))
    loop.post(thread.start)
    try:
        loop.run()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, old)
