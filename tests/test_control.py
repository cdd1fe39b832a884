"""Retransmission without a network: the page's table, the store against a deque, a server that is lied to, a client
through a bad link; time is a number.

More, from a seed of one's own on: `python3 -m tests.test_control 1000 7`.
"""

import heapq
import hmac
import struct
import sys
from collections import Counter, deque
from itertools import islice

import pytest

from feeder import packet
from feeder.clock import MILLISECOND, SECOND
from feeder.control import Client, Control, Server, Store, is_control, parse_networks
from feeder.control import datagram as words
from feeder.control.bucket import Bucket
from feeder.control.client import PIECE, TRIES, WINDOW
from feeder.control.datagram import BUSY, CHALLENGE, NO_TOKEN, REQUEST, UNAVAILABLE, decode, encode
from feeder.control.server import MAX_ASKERS, SLICE_NS
from feeder.control.store import EXTENT_AT
from feeder.errors import ConfigError, PacketError
from feeder.packet import (FLAGS_AT, RETRANSMITTED, SIGNED, SNAPSHOTS, TRAILER_BYTES, Encoder, LoopEncoder)
from feeder.seal import Seal
from tests.support import dice as dice_of
from tests.test_packet import CODES, TABLES

SESSION = 1_700_000_000 * 10**9
CHANNEL = 7
SEAL = Seal(b"sixteen bytes or more")
HOME = ("127.0.0.1", 40_000)
LOCAL = parse_networks(["127.0.0.0/8", "::1/128"])


def datagrams(counts, first=1, session=SESSION, channel=CHANNEL, seal=None, packet_bytes=1472):
    """Return one datagram for each of `counts`, of as many trades."""
    out = []
    encoder = Encoder(session, channel, lambda view: out.append(bytes(view)), lambda: 5, packet_bytes, seal)
    encoder.sequence = first
    for count in counts:
        for number in range(count):
            encoder.trade(1, 2, 1, number, 0, 0, number, 100, 1, 1)
        encoder.flush()
    return out


def span(data):
    """Return the (first, last) message of a datagram."""
    header = packet.PACKET.unpack_from(data)
    return header[5], header[5] + header[7] - 1


def flagged(data):
    return data[:FLAGS_AT] + bytes([data[FLAGS_AT] | RETRANSMITTED]) + data[FLAGS_AT + 1:]


# -- the page ------------------------------------------------------------------------------------------------

def read(data):
    """Decode by the table of the page alone."""
    values, at = {}, 0
    for offset, size, kind, name, _ in TABLES["Retransmission", "bytes"]:
        offset, size = int(offset), int(size)
        assert offset == at and offset % min(size, 8) == 0 and (kind == "bytes" or struct.calcsize(CODES[kind]) == size)
        piece = data[offset:offset + size]
        values[name] = bytes(piece) if kind == "bytes" else int.from_bytes(piece, "little")
        at += size
    assert at == words.CONTROL.size
    return values


@pytest.mark.parametrize("kind", words.KIND_NAMES)
def test_the_page_reads_what_is_written(kind):
    control = Control(kind, 513, SESSION, 2**40 + 3, 65_535, 2**31, bytes(range(16)))
    for seal in (None, SEAL):
        data = encode(control, seal)
        values = read(data)
        assert data[:4] == b"FDRQ" and is_control(data) and is_control(memoryview(data))
        assert values.pop("control_magic") == words.MAGIC and values.pop("control_version") == 1
        assert tuple(values.values()) == tuple(control)
        assert decode(data, seal) == decode(memoryview(data), seal) == decode(data) == control
        assert len(data) == (48 if seal is None else 64)
    assert data[48:] == hmac.new(SEAL.key, data[:48], "sha256").digest()[:16]


def test_the_pages_kinds_and_limits():
    assert {int(row[0]): row[1].lower() for row in TABLES["Retransmission", "name"]} == words.KIND_NAMES
    limits = dict(TABLES["Limits"])
    assert int(limits["packets answered to one request"]) == words.MAX_PACKETS


GOOD = Control(REQUEST, CHANNEL, SESSION, 41, 3, 0, NO_TOKEN)


@pytest.mark.parametrize("data, reason", [
    (b"", "of 0 bytes, expected 48 or 64"), (encode(GOOD)[:47], "of 47 bytes"), (encode(GOOD) + b"\0", "of 49 bytes"),
    (b"FDR1" + encode(GOOD)[4:], "control magic is 0x31524446, expected 0x51524446"),
    (encode(GOOD)[:4] + b"\2" + encode(GOOD)[5:], "control version 2"),
    (encode(GOOD._replace(kind=0)), "kind 0"), (encode(GOOD._replace(kind=5)), "kind 5"),
    (encode(GOOD._replace(count=0)), "about 0 messages"), (encode(GOOD._replace(count=65_536)), "about 65536 messages"),
    (encode(GOOD._replace(first=0)), "messages from 0"),
    (encode(GOOD._replace(first=2**64 - 3, count=3)), f"about 3 messages from {2**64 - 3}"),
])
def test_malformed(data, reason):
    with pytest.raises(PacketError, match=reason):
        decode(data)


def test_with_a_key_each_bit_counts_and_without_a_trailer_nothing_does():
    data = bytearray(encode(GOOD, SEAL))
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(PacketError):
            decode(data, SEAL)
        data[bit >> 3] ^= 1 << (bit & 7)
    assert decode(data, SEAL) == GOOD
    for other in (encode(GOOD), encode(GOOD, Seal(b"another key, long enough"))):
        with pytest.raises(PacketError, match="not signed with our key"):
            decode(other, SEAL)


# -- the store -----------------------------------------------------------------------------------------------

class Plain:
    """The store's model: a deque of datagrams in order."""

    def __init__(self, count):
        self.count = count
        self.kept = deque()

    def add(self, data):
        first, last = span(data)
        if any(span(each)[0] <= last and first <= span(each)[1] for each in self.kept):
            return False
        if len(self.kept) == self.count:
            if first < span(self.kept[0])[0]:
                return False
            self.kept.popleft()
        self.kept.append(data)
        self.kept = deque(sorted(self.kept, key=span))
        return True

    def find(self, first, count, most=64):
        last = first + count - 1
        wanted = set(range(first, last + 1))
        found = [each for each in self.kept if wanted & set(range(span(each)[0], span(each)[1] + 1))]
        if len(found) > most:
            wanted = set(range(first, span(found[most])[0]))        # what comes behind the answer is not judged
            found = found[:most]
        missing = sorted(wanted - {number for each in found for number in range(span(each)[0], span(each)[1] + 1)})
        if not missing:
            return found, None
        end = next(number for number in range(missing[0], missing[-1] + 2) if number not in missing) - 1
        return found, (missing[0], end)


def check(store):
    """The store's invariants."""
    entries = store.firsts[store.at:] + store.firsts[:store.at]
    kept = [first for first in entries if first]
    assert kept == sorted(set(kept)) and entries == [0] * (len(entries) - len(kept)) + kept and len(store) == len(kept)
    assert sorted(store.offsets) == list(range(0, store.memory_bytes, store.datagram_bytes))
    for at, first in enumerate(store.firsts):
        if first:
            data = store.view[store.offsets[at]:store.offsets[at] + store.datagram_bytes]
            assert span(data) == (first, first + store.extent(at)[0] - 1) and span(data)[1] <= store.newest
    assert (store.oldest, store.newest >= store.oldest) == (kept[0] if kept else 0, True)


def play_store(dice, steps):
    """Hold a store against the plain one: mostly in order, some late, twice, lost, overlapping."""
    size = dice.choice((1, 2, 3, 5, 8))
    store, plain = Store(size, 512), Plain(size)
    counts = [dice.randrange(1, 6) for _ in range(steps)]
    feed = datagrams(counts, dice.choice((1, 1, 1000)))
    for at, data in enumerate(feed):
        kind = dice.random()
        if kind < 0.1:
            continue                                                       # lost
        if kind < 0.25:
            data = feed[max(0, at - dice.randrange(2 * size))]             # late, or twice
        elif kind < 0.28:
            data, = datagrams([dice.randrange(1, 6)], max(1, span(data)[0] - dice.randrange(4)))   # not as it was sent
        if span(data)[0] < (store.next or 0) and plain.kept and span(plain.kept[-1])[1] < span(data)[0]:
            continue                                          # cannot be: `next` is behind the last message
        assert store.add(data) == plain.add(data), (store.firsts, span(data))
        check(store)
        for _ in range(3):
            first = max(1, span(data)[0] + dice.randrange(-20, 10))
            count, most = dice.randrange(1, 30), dice.choice((1, 2, 64))
            packets, missing = store.find(first, count, most)
            found, without = plain.find(first, count, most)
            assert ([bytes(each) for each in packets], missing) == ([flagged(each) for each in found], without)
    return store


@pytest.mark.parametrize("seed", range(30))
def test_the_store_is_a_deque(seed):
    play_store(dice_of(seed), 60)


def test_rare_paths_of_the_store_are_taken():
    dice = dice_of(99)
    stores = [play_store(dice, 60) for _ in range(20)]
    for name in ("late", "too_late", "duplicates", "overlaps", "holes", "added"):
        assert sum(getattr(store, name) for store in stores) > 10, name


def test_a_store_keeps_what_is_worth_it():
    store = Store(4, 256)
    out = []
    encoder = Encoder(SESSION, CHANNEL, lambda view: out.append(bytes(view)), lambda: 5)
    encoder.heartbeat()
    encoder.end()
    loop = LoopEncoder(SESSION, CHANNEL, lambda view: out.append(bytes(view)), lambda: 5, 1472, None, lambda: 1)
    loop.round(1, 1)
    loop.flush()
    assert len(out) == 3 and not any(map(store.add, out)) and len(store) == 0 and store.find(1, 9) == ([], (1, 9))
    assert (store.oldest, store.newest, store.of(SESSION)) == (0, 0, None)
    assert not store.add(datagrams([9])[0]) and store.too_large == 1
    small = datagrams([1] * 6)
    assert all(map(store.add, small))
    assert (store.oldest, store.newest, len(store), store.channel) == (3, 6, 4, CHANNEL) and store.of(SESSION) is store
    assert [bytes(each) for each in store.find(1, 9)[0]] == list(map(flagged, small[2:]))
    assert store.find(3, 4)[1] is None and store.find(1, 9)[1] == (1, 2)
    newer, = datagrams([2], 1, SESSION + 1)
    assert store.add(newer) and store.of(SESSION) is None and len(store) == 1 and store.find(1, 2)[1] is None
    assert bytes(store.find(2, 1)[0][0]) == flagged(newer) and store.sessions == 2


def test_a_burst_is_its_datagrams():
    out = []
    encoder = Encoder(SESSION, CHANNEL, lambda view: out.append(bytes(view)), lambda: 5, 256)
    encoder.gather(8, SECOND)
    for number in range(40):
        encoder.trade(1, 2, 1, number, 0, 0, number, 100, 1, 1)
    encoder.flush()
    store = Store(64, 256)
    for each in out:
        store.add_burst(memoryview(each), encoder.packet_bytes)
    assert any(len(each) > 256 for each in out) and len(store) == encoder.packets
    assert b"".join(map(bytes, store.find(1, 65_535)[0])) == b"".join(
        flagged(each[at:at + 256]) for each in out for at in range(0, len(each), 256))


def test_signed_packets_verify_as_they_are_sent_again():
    store = Store(8, 512)
    for data in datagrams([1, 2, 3], seal=SEAL):
        store.add(data)
    packets, _ = store.find(1, 6)
    assert len(packets) == 3 and all(SEAL.verify(each) and each[FLAGS_AT] == SIGNED | RETRANSMITTED for each in packets)


def test_a_late_packet_moves_so_many_entries_and_no_more():
    store = Store(4096, 512)
    feed = datagrams([1] * 3000)
    for at, data in enumerate(feed):
        if at not in (100, 2500):
            store.add(data)
    assert store.holes == 2
    assert store.add(feed[2500]) and not store.add(feed[100]) and (store.late, store.too_late, store.holes) == (1, 1, 1)
    check(store)


# -- so many a second ----------------------------------------------------------------------------------------

def test_a_bucket_lets_through_its_rate_and_one_burst():
    bucket, now_ns, taken = Bucket(1000, 50), 10**15, 0
    dice = dice_of(5)
    for _ in range(20_000):
        now_ns += dice.randrange(100_000)
        count = dice.randrange(1, 51)
        wait_ns = bucket.wait_ns(count, now_ns)
        assert 0 <= wait_ns <= 50 * MILLISECOND and not bucket.wait_ns(count, now_ns + wait_ns)
        assert not wait_ns or bucket.wait_ns(count, now_ns + wait_ns - 1)
        if not wait_ns:
            bucket.take(count, now_ns)
            taken += count
    passed_ns = now_ns - 10**15
    assert passed_ns * 1000 // SECOND - 100 < taken <= passed_ns * 1000 // SECOND + 50
    assert bucket.is_full(now_ns + 50 * MILLISECOND) and not bucket.is_full(now_ns)


# -- the server ----------------------------------------------------------------------------------------------

def a_server(count=200, each=2, seal=None, **options):
    store = Store(count, 1472)
    for data in datagrams([each] * count, seal=seal):
        store.add(data)
    return Server({CHANNEL: store}, LOCAL, bytes(32), seal, **options)


def ask(server, first, count, now_ns=0, address=HOME, token=None, seal=None, **more):
    """Return what is answered, decoded where it is a control datagram; with the token that the server gives."""
    request = Control(REQUEST, CHANNEL, SESSION, first, count, 0, NO_TOKEN)._replace(**more)
    if token is None:
        challenge, = server.receive(encode(request, seal), address, now_ns)
        challenge = decode(challenge, seal)
        assert challenge == request._replace(kind=CHALLENGE, token=challenge.token) and challenge.token != NO_TOKEN
        token = challenge.token
    return [decode(each, seal) if is_control(each) else bytes(each)
            for each in server.receive(encode(request._replace(token=token), seal), address, now_ns)]


@pytest.mark.parametrize("seal", [None, SEAL])
def test_whole_packets_flagged_and_one_word_about_the_rest(seal):
    server = a_server(seal=seal)
    feed = [flagged(data) for data in datagrams([2] * 200, seal=seal)]
    assert ask(server, 10, 4, seal=seal) == feed[4:7]                      # 9-10, 11-12, 13-14
    assert ask(server, 1, 65_535, seal=seal) == feed[:64]
    *packets, rest = ask(server, 397, 100, seal=seal)
    assert packets == feed[198:] and rest == Control(UNAVAILABLE, CHANNEL, SESSION, 401, 96, 0, NO_TOKEN)
    for other in ({"session": SESSION + 1}, {"channel": 8}, {"first": 2**63}):
        rest, = ask(server, 1, 3, seal=seal, **other) if "first" not in other else ask(server, 2**63, 3, seal=seal)
        assert rest == Control(UNAVAILABLE, CHANNEL, SESSION, 1, 3, 0, NO_TOKEN)._replace(**other)
    assert server.counts["packets"] == 69 and server.counts["unavailable"] == 4 and server.counts["requests"] == 6


def test_a_token_is_of_an_address_and_of_half_a_minute():
    request = Control(REQUEST, CHANNEL, SESSION, 1, 1, 0, NO_TOKEN)
    for start_ns in (0, 1, SLICE_NS - 1, SLICE_NS, 10**18 + 12_345):
        server = a_server()
        token = decode(server.receive(encode(request), HOME, start_ns)[0]).token
        for after_ns, kinds in ((0, 1), (30 * SECOND - 1, 1), (30 * SECOND, 1), (60 * SECOND, 0)):
            found, = server.receive(encode(request._replace(token=token)), HOME, start_ns + after_ns)
            assert is_control(found) != kinds
        for other in (("127.0.0.1", 40_001), ("127.0.0.2", 40_000), ("::1", 40_000, 0, 0)):
            found, = a_server().receive(encode(request._replace(token=token)), other, start_ns)
            assert decode(found).kind == CHALLENGE and decode(found).token != token
    assert decode(Server({}, LOCAL, bytes(31) + b"1").receive(encode(request), HOME, 0)[0]).token != decode(
        Server({}, LOCAL, bytes(32)).receive(encode(request), HOME, 0)[0]).token


def test_only_networks_that_may():
    server = a_server()
    for host in ("127.9.9.9", "::1", "::ffff:127.0.0.1", "::1%lo"):
        assert server.receive(encode(GOOD), (host, 1, 0, 0), 0), host
    for host in ("10.0.0.1", "::2", "::ffff:10.0.0.1", "fe80::1%lo", "", "host"):
        assert server.receive(encode(GOOD), (host, 1, 0, 0), 0) == [], host
    assert server.counts["other_networks"] == 6 and server.counts["challenges"] == 4


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "localhost", "::/129"])
def test_networks_are_checked(text):
    with pytest.raises(ConfigError, match="^network '"):
        parse_networks([text])


def test_what_is_not_a_request_of_ours_is_dropped_and_counted():
    server = a_server(seal=SEAL)
    for data in (b"", encode(GOOD), encode(GOOD, Seal(bytes(16))), encode(GOOD._replace(kind=9), SEAL),
                 datagrams([1])[0]):
        assert server.receive(data, HOME, 0) == []
    for kind in (CHALLENGE, UNAVAILABLE, BUSY):
        assert server.receive(encode(GOOD._replace(kind=kind), SEAL), HOME, 0) == []
    assert (server.counts["malformed"], server.counts["not_requests"]) == (5, 3)
    assert sum(server.counts.values()) == 8 and not server.askers


def flood(server, askers, seconds, dice):
    """Ask as fast as one can from several addresses; return how many packets each was sent."""
    sent, now_ns, tokens = Counter(), 0, {}
    while now_ns < seconds * SECOND:
        now_ns += dice.randrange(500_000)
        address = "127.0.0.1", dice.randrange(40_000, 40_000 + askers)
        token = tokens.get(address)
        request = GOOD._replace(first=dice.randrange(1, 250), count=150, token=token or NO_TOKEN)
        answers = server.receive(encode(request), address, now_ns)
        control = decode(answers[0]) if answers and is_control(answers[0]) else None
        if control is None:
            sent[address] += len(answers)
        elif control.kind == CHALLENGE:
            tokens[address] = control.token
        elif control.kind == BUSY:
            assert len(answers) == 1 and 0 < control.wait_us <= SECOND
    return sent


@pytest.mark.parametrize("askers", [1, 3, 40])
def test_rates_in_virtual_time(askers):
    server = a_server(packets_per_second=4000, asker_packets_per_second=1000)
    sent = flood(server, askers, 5, dice_of(askers))
    total = sum(sent.values())
    assert max(sent.values()) <= 5 * 1000 + 64 and total <= 5 * 4000 + 4000 // 20
    assert total > 0.95 * 5 * min(4000, 1000 * askers) and server.counts["busy"] and server.counts["packets"] == total
    assert min(sent.values()) > 0.2 * total / askers                       # and all have their share


def test_busy_says_when():
    server = a_server(packets_per_second=1000)
    assert len(ask(server, 1, 65_535)) == 64
    busy, = ask(server, 1, 65_535)
    assert busy == Control(BUSY, CHANNEL, SESSION, 1, 65_535, 64_000, NO_TOKEN)
    assert ask(server, 1, 65_535, 63_999_000)[0].kind == BUSY
    assert len(ask(server, 1, 65_535, 64_000_000)) == 64


def test_the_table_of_askers_is_bounded_and_forgets_nobody_who_counts():
    server = a_server(packets_per_second=10**6, asker_packets_per_second=64)
    for port in range(1, MAX_ASKERS + 1):                                  # a whole burst each
        assert len(ask(server, 1, 128, port * 250_000, ("127.0.0.1", port))) == 64
    now_ns = (MAX_ASKERS + 1) * 250_000
    refused, = ask(server, 1, 1, now_ns, ("127.0.0.1", 60_000))
    assert refused.kind == BUSY and len(server.askers) == MAX_ASKERS
    later_ns = now_ns + refused.wait_us * 1000
    packet_again, = ask(server, 1, 1, later_ns, ("127.0.0.1", 60_000))
    assert not is_control(packet_again) and len(server.askers) == MAX_ASKERS
    assert ("127.0.0.1", 1) not in server.askers and ("127.0.0.1", 2) in server.askers


class Attacker:
    """Forges the sender of what it sends, does not hear what is sent there; knows all else, has tokens of its own."""

    VICTIM = ("127.0.0.99", 53)

    def __init__(self, server, dice, seal=None):
        self.server, self.dice, self.seal = server, dice, seal
        self.own = [("127.0.0.66", port) for port in range(5)]
        self.tokens = [NO_TOKEN]
        self.bytes_in = self.bytes_out = self.packets_here = 0

    def step(self, now_ns):
        dice = self.dice
        token = dice.choice(self.tokens + [dice.randbytes(16)])
        request = GOOD._replace(kind=dice.choice((1, 1, 1, 1, 2, 3, 4)), first=dice.randrange(1, 500),
                                count=dice.choice((1, 150, 65_535)), token=token)
        if dice.random() < 0.1:
            request = request._replace(session=dice.getrandbits(64), channel=dice.randrange(65_536))
        data = encode(request, dice.choice((None, self.seal)))
        if dice.random() < 0.2:
            data = mutate(data, dice)
        address = dice.choice(self.own) if dice.random() < 0.2 else self.VICTIM
        answers = self.server.receive(data, address, now_ns)
        if address == self.VICTIM:
            self.bytes_in += len(data)
            self.bytes_out += sum(map(len, answers))
            assert len(answers) <= 1 and sum(map(len, answers)) <= len(data)        # each by itself, and so in all
        else:
            self.packets_here += sum(not is_control(each) for each in answers)
            self.tokens += [decode(each).token for each in answers if is_control(each)]
            self.tokens = self.tokens[-20:]


def mutate(data, dice):
    data = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        choice, at = dice.randrange(4), dice.randrange(len(data) or 1)
        if choice == 0 and data:
            data[at] ^= 1 << dice.randrange(8)
        elif choice == 1:
            del data[at:at + dice.choice((1, 8, 16))]
        elif choice == 2:
            data[at:at] = dice.randbytes(dice.choice((1, 8, 16)))
        elif data:
            data[at] = dice.choice((0, 1, 2, 3, 4, 127, 128, 255))
    return bytes(data)


def attack(seed, steps, seal):
    dice = dice_of(seed)
    attacker = Attacker(a_server(seal=seal), dice, seal)
    now_ns = 0
    for _ in range(steps):
        now_ns += dice.randrange(50 * MILLISECOND)
        attacker.step(now_ns)
    assert 0 < attacker.bytes_out <= attacker.bytes_in and attacker.packets_here      # it would have got something
    assert len(attacker.server.askers) <= len(attacker.own)
    return attacker


@pytest.mark.parametrize("seal", [None, SEAL])
def test_amplification_is_at_most_one(seal):
    attack(1, 5_000, seal)


def test_the_attack_can_fail(monkeypatch):
    """A server whose tokens do not name the address is found out."""
    monkeypatch.setattr(Server, "token", lambda self, address, time_slice: bytes(15) + b"1")
    with pytest.raises(AssertionError):
        attack(1, 5_000, None)


def test_challenges_are_bounded_too():
    server = a_server()
    count = sum(len(server.receive(encode(GOOD), ("127.0.0.9", at), at * 10_000)) for at in range(50_000))
    assert 2_500 <= count <= 2_750 and server.counts["challenges_refused"] == 50_000 - count


def fuzz_server(seed, steps):
    """Whatever comes, it is answered by what the page allows, or counted."""
    dice = dice_of(seed)
    seal = dice.choice((None, SEAL))
    server = a_server(dice.choice((1, 3, 50)), seal=seal)
    token = server.token(HOME, 0)
    for _ in range(steps):
        request = GOOD._replace(first=dice.randrange(1, 110), count=dice.choice((1, 10, 65_535)), token=token)
        data = encode(request, seal)
        if dice.random() < 0.1:
            data = dice.randbytes(dice.choice((0, 1, 47, 48, 49, 64, 1472)))
        if dice.random() < 0.5:
            data = mutate(data, dice)
        before = server.counts["packets"]
        answers = server.receive(dice.choice((bytes, memoryview, bytearray))(data), HOME, 0)
        controls = [decode(each, seal) for each in answers if is_control(each)]
        assert len(controls) <= 1 and len(answers) - len(controls) == server.counts["packets"] - before <= 64
        assert all(each.kind in (CHALLENGE, UNAVAILABLE, BUSY) for each in controls)
        for each in islice(answers, len(answers) - len(controls)):
            assert packet.decode(each).flags & RETRANSMITTED
    counts = server.counts
    assert steps == sum(counts[name] for name in ("requests", "challenges", "malformed", "not_requests",
                                                  "challenges_refused"))
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_server(seed):
    counts = fuzz_server(seed, 1_000)
    assert counts["malformed"] > 50 and counts["requests"] > 50


# -- the client ----------------------------------------------------------------------------------------------

class Net:
    """A receiver that misses messages, its client, and servers behind links that delay; with `loss` they lose, double
    and reorder, too."""

    def __init__(self, dice, servers, missing, seal=None, loss=0.0, delay_ns=100_000, hold_ns=10 * SECOND):
        self.dice, self.loss, self.delay_ns, self.hold_ns = dice, loss, delay_ns, hold_ns
        self.servers = servers                         # {address: Server, or None: nobody is there}
        self.missing = {(CHANNEL, SESSION): set(missing)} if not isinstance(missing, dict) else missing
        self.gone, self.got, self.times = [], Counter(), []
        self.client = Client(list(servers), seal)
        self.now_ns, self.events, self.order = 10**15, [], 0
        self.requests = []                             # (time, address, control)
        self.latest_ns = Counter()                     # to each address

    def wanted(self):
        """As Receiver.wanted(): at most 64 ranges, oldest first."""
        ranges = []
        for key, numbers in self.missing.items():
            for number in sorted(numbers):
                if ranges and ranges[-1][:2] == list(key) and ranges[-1][3] == number - 1:
                    ranges[-1][3] = number
                elif len(ranges) == 64:
                    break
                else:
                    ranges.append([*key, number, number])
        return [tuple(each) for each in ranges]

    def later(self, data, to, address):
        for _ in range(1 + (self.dice.random() < self.loss / 4)):
            if self.dice.random() >= self.loss:
                self.order += 1
                when_ns = self.now_ns + self.dice.randrange(self.delay_ns // 2, self.delay_ns + 1)
                if not self.loss:
                    when_ns = self.latest_ns[to] = max(self.latest_ns[to], when_ns)
                heapq.heappush(self.events, (when_ns, self.order, bytes(data), to, address))

    def ask(self):
        for address, data in self.client.ask(self.wanted(), self.now_ns):
            self.requests.append((self.now_ns, address, decode(data)))
            if self.servers[address] is not None:
                self.later(data, address, HOME)

    def run(self):
        """Go on until nothing is missing, or held any longer, or nothing is left to be done."""
        end_ns = self.now_ns + self.hold_ns
        self.ask()
        while any(self.missing.values()):
            due = [each for each in (self.client.deadline_ns, self.events and self.events[0][0]) if each]
            if not due or min(due) > end_ns:
                break
            self.now_ns = max(self.now_ns, min(due))
            while self.events and self.events[0][0] <= self.now_ns:
                _, _, data, to, address = heapq.heappop(self.events)
                if to == HOME:
                    self.take(data, address)
                else:
                    for answer in self.servers[to].receive(data, address, self.now_ns):
                        self.later(answer, HOME, to)
            self.ask()
        return self

    def take(self, data, address):
        gone = self.client.receive(data, address, self.now_ns)
        if gone is None:
            header = packet.decode(data)
            assert header.flags & RETRANSMITTED
            numbers = self.missing.get((header.channel, header.session), set())
            new = set(range(header.sequence, header.sequence + header.message_count)) & numbers
            self.got.update(new)
            numbers -= new
        for channel, session, first, last in gone or ():
            self.gone.append((channel, session, first, last))
            assert set(range(first, last + 1)) <= self.missing[channel, session]
            self.missing[channel, session] -= set(range(first, last + 1))


def host(number):
    return f"127.0.0.{number}", 30_003


def test_one_loss_is_asked_for_once_and_after_a_moment():
    net = Net(dice_of(1), {host(1): a_server()}, {21, 22}).run()
    (first_ns, _, first), (_, _, second) = net.requests
    assert first_ns == 10**15 + MILLISECOND and first == Control(REQUEST, CHANNEL, SESSION, 21, 2, 0, NO_TOKEN)
    assert second == first._replace(token=second.token) and second.token != NO_TOKEN
    assert sorted(net.got) == [21, 22] and not net.gone and net.now_ns < 10**15 + 2 * MILLISECOND
    assert net.client.ask([], net.now_ns) == [] and net.client.deadline_ns is None


def test_what_comes_by_itself_is_not_asked_for():
    client = Client([host(1)])
    assert client.ask([(CHANNEL, SESSION, 5, 9)], 0) == [] and client.deadline_ns == MILLISECOND
    assert client.ask([], MILLISECOND) == [] and client.deadline_ns is None


def test_a_large_gap_goes_in_pieces_and_quickly():
    net = Net(dice_of(2), {host(1): a_server(8192, 3, packets_per_second=10**6, asker_packets_per_second=10**6)},
              set(range(101, 8101))).run()
    assert len(net.got) == 8_000 and not net.gone
    assert all(control.count <= PIECE for _, _, control in net.requests)
    assert len(net.requests) < 1.3 * 8_000 / PIECE
    assert net.now_ns - 10**15 < 40 * MILLISECOND                          # 64 at once, then 5,000 requests a second


@pytest.mark.parametrize("seal", [None, SEAL])
@pytest.mark.parametrize("seed", range(8))
def test_through_a_bad_link_all_comes(seed, seal):
    dice = dice_of(seed)
    servers = {host(at): a_server(300, 2, seal) for at in range(1, dice.randrange(2, 4))}
    missing = set(dice.sample(range(1, 601), dice.randrange(1, 400)))
    net = Net(dice, servers, missing, seal, loss=dice.choice((0.0, 0.05, 0.3)),
              delay_ns=dice.choice((50_000, 2 * MILLISECOND, 40 * MILLISECOND))).run()
    assert set(net.got) == missing and not net.gone and max(net.got.values()) == 1


def test_a_long_way_is_not_asked_twice():
    net = Net(dice_of(3), {host(1): a_server(400, 1)}, set(range(1, 257)), delay_ns=80 * MILLISECOND).run()
    assert len(net.got) == 256
    by_piece = Counter(control.first for _, _, control in net.requests if control.token != NO_TOKEN)
    assert set(by_piece) == {1, 65, 129, 193} and max(by_piece.values()) == 1


def test_servers_in_order_and_what_none_has_is_told():
    part, rest, nobody = Store(100, 512), Store(100, 512), Store(100, 512)
    feed = datagrams([1] * 100)
    for at, data in enumerate(feed):
        (part if at < 40 else rest if at < 80 else nobody).add(data)
    servers = {host(at): Server({CHANNEL: store}, LOCAL, bytes(32)) for at, store in enumerate((part, rest), 1)}
    net = Net(dice_of(4), servers, set(range(1, 101))).run()
    assert set(net.got) == set(range(1, 81))
    assert {number for *_, first, last in net.gone for number in range(first, last + 1)} == set(range(81, 101))
    assert net.requests[0][1] == host(1) and net.now_ns < 10**15 + 20 * MILLISECOND
    other = Net(dice_of(5), servers, {(CHANNEL, SESSION + 1): {1, 2}}).run()
    assert other.gone == [(CHANNEL, SESSION + 1, 1, 2)] and [each[1] for each in other.requests] == [
        host(1), host(1), host(2), host(2)]


def test_a_dead_server_costs_little_and_who_has_a_stream_is_remembered():
    net = Net(dice_of(6), {host(1): None, host(2): a_server(), host(3): a_server()}, {1, 2})
    net.run()
    assert len(net.got) == 2 and net.now_ns < 10**15 + 10 * MILLISECOND
    net.now_ns += SECOND                               # now it is known that nobody is there
    net.missing[CHANNEL, SESSION] = {50}
    net.requests.clear()
    net.run()
    assert [address for _, address, _ in net.requests] == [host(2)]
    net = Net(dice_of(7), {host(1): Server({}, LOCAL, bytes(32)), host(2): a_server()}, {1, 2}).run()
    net.missing[CHANNEL, SESSION] = {50}
    net.requests.clear()
    assert {address for _, address, _ in net.run().requests} == {host(2)} and len(net.got) == 3


def test_retries_are_spaced_and_end():
    net = Net(dice_of(8), {host(1): None}, {5, 6}, hold_ns=100 * SECOND).run()
    times = [when_ns for when_ns, _, _ in net.requests]
    assert len(times) == TRIES and net.client.deadline_ns is None and not net.gone
    assert [(after - before) // MILLISECOND for before, after in zip(times, times[1:])] == [
        5, 10, 20, 40, 80, 160, 320]


def test_without_a_token_one_request_goes_out():
    net = Net(dice_of(9), {host(1): None}, set(range(1, 2000)), hold_ns=100 * MILLISECOND).run()
    assert len(net.requests) < 25 and len(net.client.streams[CHANNEL, SESSION].pieces) == 2000 // PIECE + 1 <= WINDOW


def test_busy_is_obeyed():
    server = a_server(400, 1, packets_per_second=1280)
    net = Net(dice_of(10), {host(1): server}, set(range(1, 321))).run()
    assert len(net.got) == 320 and server.counts["busy"] and len(net.requests) < 40
    assert 190 * MILLISECOND < net.now_ns - 10**15 < 260 * MILLISECOND     # 256 of them at 1,280 a second
    both = {host(1): a_server(400, 1, packets_per_second=1280), host(2): a_server(400, 1, packets_per_second=1280)}
    net = Net(dice_of(11), both, set(range(1, 321))).run()                 # the other one has not been asked much
    assert len(net.got) == 320 and net.now_ns - 10**15 < 150 * MILLISECOND


def test_a_new_token_after_half_a_minute():
    net = Net(dice_of(12), {host(1): a_server()}, {1}).run()
    net.now_ns += 100 * SECOND
    net.missing[CHANNEL, SESSION] = set(range(50, 250))
    assert len(net.run().got) == 201 and net.client.peers[0].challenges >= 2 and net.now_ns < 10**15 + 101 * SECOND


def test_requests_are_bounded_a_second():
    client, sent = Client([host(1)], requests_per_second=100), 0
    client.peers[0].token = bytes(range(16))
    for now_ns in range(0, SECOND, MILLISECOND):
        sent += len(client.ask([(CHANNEL, SESSION, 1, 10_000)], now_ns))
    assert 100 <= sent <= 100 + WINDOW


def test_strangers_and_what_was_not_asked_for():
    server, client = a_server(), Client([host(1), host(2)])
    request, = client.ask([(CHANNEL, SESSION, 1, 4)], 0) or client.ask([(CHANNEL, SESSION, 1, 4)], MILLISECOND)
    answer = Control(CHALLENGE, CHANNEL, SESSION, 1, 4, 0, bytes(range(16)))
    known = flagged(datagrams([2])[0])
    assert client.receive(known, host(3), 0) == [] and client.receive(encode(answer), ("127.0.0.1", 1), 0) == []
    assert client.counts["strangers"] == 2
    for data in (flagged(datagrams([2], 5)[0]), flagged(datagrams([2], 1, SESSION + 1)[0]), datagrams([2])[0],
                 flagged(datagrams([1], channel=CHANNEL + 1)[0]), encode(answer._replace(kind=REQUEST)),
                 encode(answer._replace(session=SESSION + 1)), encode(answer._replace(first=5)),
                 encode(answer._replace(channel=1, kind=UNAVAILABLE))):
        assert client.receive(data, host(1), 0) == []
    assert client.receive(known, host(2), 0) == []                         # it was not asked
    assert client.counts["unasked"] == 9 and client.peers[0].token == NO_TOKEN
    assert client.receive(b"FDRQ" + bytes(44), host(1), 0) == client.receive(b"", host(1), 0) == []
    assert client.counts["malformed"] == 2
    assert client.receive(known, host(1), 0) is None and request[0] == host(1) and server.counts["requests"] == 0


def test_with_a_key_an_unsigned_word_is_no_word():
    client = Client([host(1)], SEAL)
    client.ask([(CHANNEL, SESSION, 1, 4)], 0)
    (_, data), = client.ask([(CHANNEL, SESSION, 1, 4)], MILLISECOND)
    assert len(data) == 64 and SEAL.verify(data)
    gone = Control(UNAVAILABLE, CHANNEL, SESSION, 1, 4, 0, NO_TOKEN)
    assert client.receive(encode(gone), host(1), 0) == [] and client.counts["malformed"] == 1
    assert client.receive(encode(gone, SEAL), host(1), 0) == [(CHANNEL, SESSION, 1, 4)]


def fuzz_client(seed, steps):
    """Whatever a server says, the client asks within its bounds, and for nothing but what is missing."""
    dice = dice_of(seed)
    servers = [host(1), host(2)]
    client, sent, told, now_ns = Client(servers), [], Counter(), 10**12
    missing = set()
    for _ in range(steps):
        now_ns += dice.randrange(2 * MILLISECOND)
        if dice.random() < 0.1:
            first = dice.randrange(1, 3000)
            missing ^= set(range(first, first + dice.choice((1, 10, 500))))
        net = Net(dice, {}, missing)
        wanted = net.wanted()
        requests = [(address, decode(data)) for address, data in client.ask(wanted, now_ns)]
        for address, control in requests:
            first, last = control.first, control.first + control.count - 1
            assert address in servers and control.kind == REQUEST and control.count <= PIECE
            assert any(begin <= first and last <= end for *_, begin, end in wanted)
        sent = (sent + requests)[-20:]
        pieces = [piece for stream in client.streams.values() for piece in stream.pieces]
        assert all(piece.last < after.first for piece, after in zip(pieces, pieces[1:])) and len(pieces) <= 4096
        assert sum(map(client.is_open, pieces)) == 0 or client.deadline_ns is not None
        for address, control in dice.sample(sent, min(len(sent), 3)):
            kind = dice.choice((REQUEST, CHALLENGE, CHALLENGE, UNAVAILABLE, BUSY))
            first = control.first + dice.randrange(-3, control.count + 3)
            answer = control._replace(kind=kind, first=max(1, first), count=dice.randrange(1, 80),
                                      token=dice.randbytes(16), wait_us=dice.choice((0, 1, 1000, 2**32 - 1)))
            data = encode(answer)
            if dice.random() < 0.3:
                data = flagged(datagrams([dice.randrange(1, 9)], max(1, first))[0])
            data = mutate(data, dice) if dice.random() < 0.3 else data
            before = dict(client.counts)
            gone = client.receive(dice.choice((bytes, memoryview))(data), dice.choice((address, *servers)), now_ns)
            is_counted = client.counts != before
            told["packet" if gone is None else "gone" if gone else "counted" if is_counted else "taken"] += 1
            for *_, first, last in gone or ():
                assert any(begin <= first and last <= end for *_, begin, end in wanted)
    assert client.peers[0].requests + client.peers[1].requests <= 64 + (now_ns - 10**12) * 5_000 // SECOND
    return told


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_client(seed):
    told = fuzz_client(seed, 300)
    assert min(told[name] for name in ("packet", "gone", "counted", "taken")), told


@pytest.mark.stress
def test_long():
    for seed in range(100, 300):
        play_store(dice_of(seed), 300)
        fuzz_server(seed, 3_000)
        fuzz_client(seed, 1_000)
        attack(seed, 5_000, SEAL if seed & 1 else None)


if __name__ == "__main__":
    for seed_of_turn in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[1])):
        play_store(dice_of(seed_of_turn), 200)
        fuzz_server(seed_of_turn, 1_000)
        fuzz_client(seed_of_turn, 500)
        attack(seed_of_turn, 2_000, None)
