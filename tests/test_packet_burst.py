"""Packets that wait for others: what leaves together is what would have left alone, cut where the socket cuts it."""

import random
import struct

import pytest

from feeder.message import BUY, LIVE
from feeder.packet import (ALL_INSTRUMENTS, INCREMENT, LAST, PADDING, SHARING, SNAPSHOT, Encoder, Padding, decode,
                           largest)
from feeder.receiver import Receiver

COMMON = (3, LIVE, 2, 654_321, 17, 18)


class Wire:
    """An Encoder, its clock, and what it emits: `bursts`, each a list of datagrams as the kernel would cut them."""

    def __init__(self, packet_bytes=1472, burst=8, hold_ns=1_000):
        self.now_ns = 0
        self.bursts = []
        self.encoder = Encoder(1, 0, self.emit, lambda: self.now_ns, packet_bytes)
        self.size = largest(packet_bytes)
        if burst > 1:
            self.encoder.gather(burst, hold_ns)

    def emit(self, view):
        self.bursts.append([bytes(view[at:at + self.size]) for at in range(0, len(view), self.size)])

    @property
    def datagrams(self):
        return [datagram for burst in self.bursts for datagram in burst]

    def messages(self, with_padding=False):
        return [message for datagram in self.datagrams for message in decode(datagram).messages
                if with_padding or type(message) is not Padding]

    def trades(self, count):
        for number in range(count):
            self.encoder.trade(*COMMON, number, 500, 7, BUY)


def anything(dice, encoder):
    """One random call, of any size a message may have."""
    choice = dice.randrange(4)
    if choice == 0:
        encoder.bbo(*COMMON, *[dice.randrange(1 << 40) for _ in range(4)])
    elif choice == 1:
        encoder.status(*COMMON[:4], 18, dice.randrange(9), text="text")
    elif choice == 2:
        encoder.trade(*COMMON, dice.getrandbits(64), 500, 7, BUY)
    else:
        sides = [[dice.randrange(1 << 40) for _ in range(2 * dice.choice((0, 1, 2, 5, 30, 87, 200)))] for _ in range(2)]
        encoder.levels(dice.choice((SNAPSHOT, INCREMENT)), *COMMON, *sides)


@pytest.mark.parametrize("packet_bytes", [256, 257, 264, 272, 1472, 1473, 9000])
@pytest.mark.parametrize("burst", [2, 3, 44])
def test_a_burst_is_what_would_have_left_one_by_one(packet_bytes, burst):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice, clock = random.Random(seed), random.Random(seed + 1)
    plain, wire = Wire(packet_bytes, 1), Wire(packet_bytes, burst, 20 * packet_bytes)
    heard = Receiver()
    for turn in range(60):
        state = dice.getstate()
        for of in (plain, wire):
            dice.setstate(state)
            for _ in range(dice.randrange(1, 40)):
                wire.now_ns += clock.choice((0, 1, 50, 300))
                anything(dice, of.encoder)
            of.encoder.flush()
        assert wire.encoder.start == 0 and wire.encoder.count == 0           # nothing waits beyond its turn
    assert wire.messages() == plain.messages()
    assert any(len(each) > 1 for each in wire.bursts) and max(map(len, wire.bursts)) <= burst
    expected = 1
    for each in wire.bursts:
        assert {len(datagram) for datagram in each[:-1]} <= {wire.size} and len(each[-1]) <= wire.size
        for datagram in each:
            packet = decode(datagram)
            heard.receive(datagram, 0)
            assert packet.sequence == expected
            expected += packet.message_count
            padding = [at for at, message in enumerate(packet.messages) if type(message) is Padding]
            assert padding in ([], [len(packet.messages) - 1])
    assert len(wire.datagrams) == wire.encoder.packets
    kinds = wire.messages(with_padding=True)
    for before, after in zip(kinds, kinds[1:]):          # nothing stands between the parts of an event
        assert type(after) is not Padding or getattr(before, "flags", LAST) & LAST
    assert (heard.gap_count, heard.errors, heard.unknown_messages) == (0, {}, 0)
    assert heard.by_type["padding"] == len(kinds) - len(wire.messages()) > 0


def test_what_is_free_becomes_padding_and_the_last_one_stays_short():
    wire = Wire()
    wire.trades(19 + 19 + 2)
    wire.encoder.flush()
    (first, second, third), = wire.bursts
    assert (len(first), len(second), len(third)) == (1472, 1472, 184)
    assert first[1408:] == struct.pack("<HHIQqqBBHI", PADDING, 64, ALL_INSTRUMENTS, 0, 0, 0, LAST, 0, 0, 0) + bytes(24)
    assert [decode(each).sequence for each in (first, second, third)] == [1, 21, 41]


@pytest.mark.parametrize("levels, trades, sizes", [
    (80, 1, [(1472, 1432)]),
    (80, 2, [(1472, 1472, 112)]),             # 40 bytes are free: a PADDING without a body
    (84, 1, [(1472, 1472, 112)]),             # 48 are
    (85, 1, [(1472, 1440), (112,)]),          # 32 are too few, so the burst ends with it
    (86, 1, [(1472, 1456), (112,)]),
    (87, 1, [(1472, 1472, 112)]),             # it fills its packet
])
def test_ends_of_packets(levels, trades, sizes):
    """A packet of trades, one that an increment nearly fills, and trades."""
    wire = Wire()
    wire.trades(19)
    wire.encoder.levels(INCREMENT, *COMMON, [1, 1] * levels, [])
    wire.trades(trades)
    wire.encoder.flush()
    assert [tuple(map(len, each)) for each in wire.bursts] == sizes


def test_packets_wait_only_where_they_come_fast_and_never_for_long():
    wire = Wire(burst=44, hold_ns=1_000)
    wire.now_ns = 10_000
    for _ in range(5):                        # slower than a quarter of the wait: each leaves when it is full
        wire.trades(19)
        wire.now_ns += 1_000 // SHARING + 1
    assert [len(each) for each in wire.bursts] == [1] * 4
    for _ in range(12):                       # faster: they wait until the first has waited 1,000 ns
        wire.trades(19)
        wire.now_ns += 200
    assert [len(each) for each in wire.bursts][4:] == [1, 7], wire.bursts
    wire.encoder.flush()
    assert sum(map(len, wire.bursts)) == 17


def test_as_many_as_one_call_takes():
    wire = Wire(burst=3)
    wire.trades(19 * 10)
    wire.encoder.flush()
    assert [len(each) for each in wire.bursts] == [3, 3, 3, 1]


def test_what_waits_leaves_though_the_next_message_is_refused():
    wire = Wire()
    wire.trades(19)
    with pytest.raises(struct.error):
        wire.encoder.trade(*COMMON, 1, 2**63, 7, BUY)
    assert wire.bursts == []
    wire.encoder.flush()
    assert [len(each) for each in wire.bursts] == [1] and len(wire.messages()) == 19
    wire.encoder.heartbeat()
    assert decode(wire.datagrams[-1]).sequence == 21 and len(wire.datagrams) == 2


def test_gather_sends_what_is_there_and_can_be_taken_back():
    wire = Wire(burst=1)
    wire.trades(2)
    wire.encoder.gather(8, 1_000)
    assert [len(each) for each in wire.bursts] == [1]
    wire.trades(30)
    wire.encoder.gather(1, 0)
    wire.trades(30)
    wire.encoder.flush()
    assert [len(each) for each in wire.bursts] == [1, 2, 1, 1] and len(wire.messages()) == 62


def test_a_clock_that_is_set_back_holds_nothing_beyond_the_turn():
    wire = Wire(burst=44)
    wire.now_ns = 1 << 60
    wire.trades(20)
    wire.now_ns = 5
    wire.trades(19 * 50)
    wire.encoder.flush()
    assert max(map(len, wire.bursts)) <= 44 and len(wire.messages()) == 20 + 19 * 50
