"""The order of packets against a plain model: a set of numbers that came, and a list of what must come out."""

import random
from collections import namedtuple

import pytest

from feeder import reorder
from feeder.reorder import AHEAD, DUPLICATE, FILLS, LATE, NEXT, OVERLAP, Missing, Reorder

Packet = namedtuple("Packet", "sequence message_count")


def deliver(order, first, count, now_ns, size=100):
    """Do with one packet what receiver.py does; return (place, what is released)."""
    place = order.place(first, count)
    if place in (NEXT, FILLS, AHEAD):
        order.put(Packet(first, count), size, now_ns)
    elif place == LATE:
        order.missing.fill(first, first + count - 1)
    released = list(order.release(now_ns))
    order.check()
    return place, released


def test_places():
    order = Reorder(10, hold_ns=1_000)
    assert deliver(order, 10, 2, 0) == (NEXT, [(10, 2)])
    assert deliver(order, 15, 5, 1) == (AHEAD, [])                       # 12..14 are missing
    assert deliver(order, 25, 1, 2) == (AHEAD, [])                       # 20..24 too
    assert order.wanted(2) == [(12, 14, 1), (20, 24, 2)] and order.deadline_ns == 1_001
    for first, count, place in (
            (10, 2, DUPLICATE), (3, 4, DUPLICATE), (11, 2, OVERLAP), (9, 20, OVERLAP), (15, 5, DUPLICATE),
            (16, 2, DUPLICATE), (14, 2, OVERLAP), (12, 3, FILLS), (13, 1, FILLS), (19, 2, OVERLAP), (21, 2, FILLS),
            (22, 4, OVERLAP), (24, 1, FILLS), (25, 2, OVERLAP), (26, 9, AHEAD), (30, 1, AHEAD)):
        assert order.place(first, count) == place, (first, count)
    assert deliver(order, 22, 1, 3) == (FILLS, [])
    assert order.wanted(3) == [(12, 14, 1), (20, 21, 2), (23, 24, 2)]
    assert order.place(21, 2) == OVERLAP
    assert deliver(order, 12, 3, 4) == (FILLS, [(12, 3), (15, 5)])
    assert (order.expected, order.deadline_ns) == (20, 1_002)
    assert deliver(order, 26, 1, 1_001) == (AHEAD, [])
    assert deliver(order, 27, 1, 1_002) == (AHEAD, [(20, 21), (22, 1), (23, 24), (25, 1), (26, 1), (27, 1)])
    assert (order.expected, order.deadline_ns, order.held, order.held_bytes) == (28, None, {}, 0)
    assert deliver(order, 20, 1, 1_003) == (LATE, [])
    assert deliver(order, 20, 1, 1_003) == (DUPLICATE, [])
    assert order.place(20, 2) == LATE and order.place(22, 1) == DUPLICATE


def test_nothing_is_waited_for_without_a_hold():
    order = Reorder(1)
    assert deliver(order, 4, 2, 5) == (AHEAD, [(1, 3), (4, 2)])
    assert deliver(order, 9, 0, 5) == (AHEAD, [(6, 8)])                  # a heartbeat
    assert order.expected == 9 and order.deadline_ns is None and order.wanted(5) == []


def test_a_heartbeat_is_waited_for_too():
    order = Reorder(1, hold_ns=10)
    assert deliver(order, 4, 0, 0) == (AHEAD, [])
    assert order.wanted(0) == [(1, 3, 0)]
    assert deliver(order, 2, 1, 1) == (FILLS, [])
    assert deliver(order, 5, 1, 9) == (AHEAD, [])
    assert list(order.release(10)) == [(1, 1), (2, 1), (3, 3)] and order.expected == 4
    order.check()
    assert list(order.release(19)) == [(4, 4), (5, 1)]
    order.check()


def test_give_up_declares_exactly_what_is_missing():
    order = Reorder(1, hold_ns=1_000)
    deliver(order, 5, 1, 0)
    deliver(order, 9, 1, 1)
    order.give_up(4, 7)
    order.check()
    assert order.wanted(1) == [(1, 3, 0), (8, 8, 1)]
    assert list(order.release(1)) == []                                  # 1..3 come first
    assert deliver(order, 6, 1, 2) == (FILLS, [])                        # somebody had it after all
    assert deliver(order, 1, 3, 3) == (FILLS, [(1, 3), (4, 4), (5, 1), (6, 1), (7, 7)])
    order.give_up(0, 100)
    assert list(order.release(4)) == [(8, 8), (9, 1)] and order.expected == 10
    order.check()


def test_a_clock_that_was_set_back_holds_nothing_up():
    order = Reorder(1, hold_ns=1_000)
    deliver(order, 3, 1, 10**9)
    assert list(order.release(10**6)) == [(1, 2), (3, 1)]


def test_bounds(monkeypatch):
    monkeypatch.setattr(reorder, "MAX_HELD", 3)
    monkeypatch.setattr(reorder, "MAX_HELD_BYTES", 1_000)
    monkeypatch.setattr(reorder, "MAX_MISSING", 2)
    order = Reorder(1, hold_ns=1_000)
    for first in (2, 4, 6):
        assert deliver(order, first, 1, 0) == (AHEAD, [])
    assert deliver(order, 8, 1, 0) == (AHEAD, [(1, 1), (2, 1)])          # the fourth; only as much goes as has to
    assert deliver(order, 9, 1, 0, size=850)[1] == [(3, 3), (4, 1), (5, 5), (6, 1)]
    assert order.missing.ranges == [[3, 3], [5, 5]]
    for first in range(11, 30):                                          # heartbeats make ranges without packets
        deliver(order, first, 0, 0)
        assert len(order.waits) <= 3


def test_missing():
    missing = Missing()
    missing.add(3, 5)
    missing.add(9, 20)
    assert missing.overlap(0, 2) == missing.overlap(6, 8) == missing.overlap(21, 99) == 0
    assert missing.overlap(0, 99) == 15 and missing.overlap(5, 9) == 2
    assert missing.fill(5, 9) == 2 and missing.ranges == [[3, 4], [10, 20]]
    assert missing.fill(12, 13) == 2 and missing.ranges == [[3, 4], [10, 11], [14, 20]]
    assert missing.fill(12, 13) == 0
    assert missing.fill(0, 99) == 11 and missing.ranges == []


@pytest.mark.parametrize("hold_ns", [0, 1, 20, 10**9])
@pytest.mark.parametrize("seed", range(25))
def test_random_order_against_the_model(hold_ns, seed, monkeypatch):
    """Whatever order packets come in: each goes out once, ascending, or what is declared lost holds it, exactly."""
    print(f"seed {seed}")
    dice = random.Random(f"{seed} {hold_ns}")
    monkeypatch.setattr(reorder, "MAX_HELD", dice.choice((2, 30, 4_096)))
    monkeypatch.setattr(reorder, "MAX_HELD_BYTES", dice.choice((500, 10**6)))
    packets, number = [], 1
    while number < 600:
        count = dice.choice((0, 1, 1, 2, 5, 30))
        packets.append((number, count))
        number += count
    loss, duplication, delay = dice.choice((0, 0.02, 0.3)), dice.choice((0, 0.3)), dice.choice((0, 5, 60))
    queue = sorted((at + dice.randrange(delay + 1), at, packet) for at, packet in enumerate(packets)
                   if dice.random() >= loss for _ in range(1 + (dice.random() < duplication)))
    order = Reorder(1, hold_ns)
    out, came, declared = [], set(), set()
    for now_ns, _, (first, count) in queue:
        expected = order.expected
        place, released = deliver(order, first, count, now_ns)
        numbers = set(range(first, first + count))
        if count:
            assert place != OVERLAP
            assert (place == DUPLICATE) == (numbers <= came), (place, first, count)
            assert (place == LATE) == (first < expected and not numbers <= came)
            assert place != LATE or numbers <= declared
            came |= numbers
        if dice.random() < 0.05:
            some = dice.randrange(len(packets))                  # whole packets, one or several
            order.give_up(packets[some][0], sum(packets[min(some + dice.randrange(5), len(packets) - 1)]) - 1)
            released += order.release(now_ns)
            order.check()
        for item in released:
            if type(item) is tuple:
                declared.update(range(item[0], item[1] + 1))
        out += released
        assert expected <= order.expected
    order.give_up(0, 10**9)
    out += order.release(now_ns)
    order.check()
    at = 1
    for item in out:
        first, last = item if type(item) is tuple else (item.sequence, item.sequence + item.message_count - 1)
        assert first == at <= last
        at = last + 1
        assert type(item) is tuple or came.issuperset(range(first, last + 1))
    assert at == order.expected and not order.held and not order.waits


def test_what_is_given_up_may_end_within_a_packet():
    order = Reorder(1, hold_ns=1_000)
    deliver(order, 1, 1, 0)
    deliver(order, 9, 1, 0)
    order.give_up(4, 5)
    assert order.place(3, 3) == order.place(2, 7) == order.place(5, 4) == FILLS and order.place(5, 5) == OVERLAP
    assert deliver(order, 3, 3, 1) == (FILLS, [])
    assert order.wanted(1) == [(2, 2, 0), (6, 8, 0)]
