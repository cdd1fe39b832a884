"""The ring: against a deque, store by store, between real processes, and with a writer killed at the worst moment.

Run as a module it is the other process: `test_ring.py KIND FD FIRST COUNT SEED`, see `other()`.
"""

import os
import random
import signal
import subprocess
import sys
from array import array
from collections import deque
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from feeder import ring as layout, shm  # noqa: E402
from feeder.clock import SECOND, steady_ns  # noqa: E402
from feeder.ring import LENGTH_BYTES, SLOT_BYTES, Ring, RingError, form, ring_bytes, slots_of  # noqa: E402

WORD_LIMIT = 600                 # words of a record between processes: up to 38 slots


def made(slots=8, resyncs=3):
    """Return (writer, reader) on one buffer."""
    buffer = bytearray(ring_bytes(slots, resyncs))
    form(buffer, slots, resyncs)
    writer, reader = Ring(buffer), Ring(buffer)
    writer.write(11, 22)
    reader.read_from(33, 44)
    return writer, reader


def put(ring, payload):
    at = ring.claim(len(payload))
    if at is None:
        return False
    ring.buffer[at:at + len(payload)] = payload
    ring.commit()
    return True


def take(ring, limit=256):
    found = [bytes(ring.buffer[at:at + size]) for at, size in ring.read(limit)]
    ring.release()
    return found


# -- layout --------------------------------------------------------------------------------------------------


def test_the_layout_is_the_one_drawn():
    writer, reader = made(slots=4, resyncs=17)
    reader.ask((0, 16), 7)
    put(writer, b"abc")
    buffer = bytes(writer.buffer)

    def word(at):
        return int.from_bytes(buffer[at:at + 8], "little")
    assert buffer[:8] == b"FDRRING1" and [word(8), word(16), word(24)] == [1, 4, 17]
    assert [word(128), word(136), word(144)] == [1, 11, 22]                    # tail, writer
    assert [word(256), word(264), word(272), word(280)] == [0, 33, 44, 1]      # head, reader, bell
    assert word(384) == word(384 + 16 * 8) == 0x107
    start = 384 + 256                                                          # 17 words take two lines
    assert layout.slots_start(17) == start and len(buffer) == start + 4 * 128
    assert word(start) == 3 and buffer[start + 8:start + 11] == b"abc"
    assert writer.writer() == (11, 22) and writer.reader() == (33, 44) and reader.fill() == 1


@pytest.mark.parametrize("spoil, text", [
    (lambda buffer: buffer.__setitem__(0, 0), "not a ring"),
    (lambda buffer: buffer.__setitem__(8, 9), "not a ring of layout 1"),
    (lambda buffer: buffer.__setitem__(16, 64), "ring of 64 slots in")])
def test_a_segment_that_is_no_ring_is_refused(spoil, text):
    buffer = bytearray(ring_bytes(8, 0))
    form(buffer, 8, 0)
    spoil(buffer)
    with pytest.raises(RingError, match=text):
        Ring(buffer)


def test_forming_refuses_wrong_sizes():
    for slots in (0, 1, 3, 100):
        with pytest.raises(RingError, match="power of two"):
            form(bytearray(10_000), slots, 0)
    with pytest.raises(RingError, match="needs .* bytes, the segment has"):
        form(bytearray(ring_bytes(8, 1) - 1), 8, 1)
    with pytest.raises(RingError):
        Ring(bytearray(16))


# -- one process ---------------------------------------------------------------------------------------------


def test_full_is_a_value_and_ends_when_the_reader_releases():
    writer, reader = made(slots=4)
    one = bytes(SLOT_BYTES - LENGTH_BYTES)
    assert [put(writer, one) for _ in range(5)] == [True] * 4 + [False]
    assert writer.free_slots() == 0
    assert len(reader.read(1)) == 1 and not put(writer, one)
    reader.release()
    assert put(writer, one) and not put(writer, one)
    assert len(take(reader)) == 4 and reader.fill() == 0 and writer.free_slots() == 4


def test_a_record_does_not_wrap_and_fits_an_empty_ring_from_every_place():
    for place in range(8):
        writer, reader = made(slots=8)
        for _ in range(place):
            put(writer, b"x")
        take(reader)
        longest = bytes(range(256)) * 2
        longest = longest[:writer.max_payload_bytes]
        assert slots_of(len(longest)) == 4 and put(writer, longest)
        assert take(reader) == [longest]
    assert writer.claim(writer.max_payload_bytes + 1) is None


def test_a_claim_that_is_not_committed_is_not_there():
    writer, reader = made()
    at = writer.claim(100)
    writer.buffer[at:at + 100] = b"x" * 100
    assert take(reader) == []
    put(writer, b"second thought")
    assert take(reader) == [b"second thought"]


def test_what_was_not_written_by_the_rules_is_an_error():
    writer, reader = made(slots=4)
    first = reader.first_word
    put(writer, b"x")
    for word in (1 << 32 | 1, 0xFFFFFFFF << 32 | 1, 4 * SLOT_BYTES):      # another slot's, no slot's, too long
        writer.words[first] = word
        with pytest.raises(RingError):
            reader.read()
    writer.words[first] = 1
    assert take(reader) == [b"x"]
    for _ in range(8):                       # the same place a round later has another number
        put(writer, b"y")
        take(reader)
    put(writer, b"z")
    writer.words[first + (8 + 1 & 3) * layout.SLOT_WORDS] -= 4 << 32
    with pytest.raises(RingError, match="record at slot 9"):
        reader.read()
    reader.skip()
    put(writer, b"after")
    assert take(reader) == [b"after"]


def test_slot_numbers_beyond_32_bits():
    writer, reader = made(slots=4)
    for ring in (writer, reader):
        ring.tail = ring.next_tail = ring.head = ring.next_head = 2**32 - 3
        ring.words[layout.TAIL_AT] = ring.words[layout.HEAD_AT] = 2**32 - 3
    for number in range(9):
        assert put(writer, bytes([number])) and take(reader) == [bytes([number])]
    assert reader.head == 2**32 + 6


def test_the_one_way_up():
    writer, reader = made(resyncs=3)
    assert writer.asked() == ()
    reader.ask((1,), 5)
    reader.ask((1, 2), 6)
    assert writer.asked() == [(1, 6), (2, 6)] and writer.asked() == ()
    reader.ask((0, 1, 2), 255)
    other = Ring(writer.buffer)
    other.write(1, 1)
    assert other.asked() == ()               # a new writer starts all over anyway
    assert writer.asked() == [(0, 255), (1, 255), (2, 255)]
    for _ in range(300):
        reader.ask((0,), 1)
    assert other.asked() == [(0, 1)]


def test_random_operations_against_a_deque():
    seed = int(os.environ.get("FEEDER_SEED", 31))
    print("seed", seed)
    rng = random.Random(seed)
    fulls = skips = 0
    for slots in (2, 4, 8, 64):
        writer, reader = made(slots, 2)
        model, number = deque(), 0
        for _ in range(6_000):
            dice = rng.random()
            if dice < 0.5:
                size = rng.choice((0, 1, 8, 119, 120, 121, rng.randrange(writer.max_payload_bytes + 1)))
                payload = number.to_bytes(8, "little") * (size // 8) + bytes(size % 8)
                number += 1
                if rng.random() < 0.1:
                    writer.claim(size)       # thought better of it
                if put(writer, payload):
                    model.append(payload)
                else:
                    fulls += 1
                    assert model or size > writer.max_payload_bytes, "an empty ring takes what is not too long"
            elif dice < 0.96:
                limit = rng.randrange(1, 5)
                expected = [model.popleft() for _ in range(min(limit, len(model)))]
                found = [bytes(reader.buffer[at:at + n]) for at, n in reader.read(limit)]
                assert found == expected
                reader.release()
            elif dice < 0.98:                # the writer died and was replaced, perhaps in the middle of a record
                at = writer.claim(8)
                if at is not None:
                    writer.buffer[at:at + 8] = b"half way"
                writer = Ring(writer.buffer)
                writer.write(number, number)
            else:
                reader = Ring(reader.buffer)
                reader.read_from(number, number)
                model.clear()
                skips += 1
            assert 0 <= reader.fill() <= slots and (reader.fill() > 0) == bool(model)
            assert sum(slots_of(len(payload)) for payload in model) <= reader.fill()
    assert fulls > 1_000 and skips > 100


class Stores:
    """Stands for `words` or `buffer` of a ring: notes each store, then does it."""

    def __init__(self, view, log, name):
        self.view, self.log, self.name = view, log, name

    def __getitem__(self, at):
        return self.view[at]

    def __setitem__(self, at, value):
        self.log.append((self.name, at))
        self.view[at] = value


def test_payload_before_cursor_and_one_writer_a_word():
    rng = random.Random(5)
    writer, reader = made(slots=8, resyncs=4)
    stores, reads = [], []
    writer.words, writer.buffer = Stores(writer.words, stores, "word"), Stores(writer.buffer, stores, "bytes")
    reader.words = Stores(reader.words, reads, "word")
    paddings = 0
    for number in range(2_000):
        del stores[:], reads[:]
        tail = writer.tail
        payload = bytes(rng.randrange(writer.max_payload_bytes + 1))
        assert put(writer, payload)
        *before, last = stores
        assert last == ("word", layout.TAIL_AT) and last not in before
        first = writer.first_word
        for name, at in before:              # nothing but slots at and behind the tail
            start, stop = (at * 8, at * 8 + 8) if name == "word" else (at.start, at.stop)
            assert first * 8 <= start <= stop <= len(writer.buffer.view)
            slot = (start - first * 8) // SLOT_BYTES
            assert (slot - tail) % 8 < writer.tail - tail
        assert before[-1][0] == "bytes" and before[-2][0] == "word"
        paddings += len(before) == 3
        reader.ask((number % 4,), 1)
        assert take(reader) == [payload]
        assert reads == [("word", layout.RESYNC_AT + number % 4), ("word", layout.BELL_AT), ("word", layout.HEAD_AT)]
    assert paddings > 100


def test_the_recording_finds_a_writer_that_moves_the_cursor_first():
    writer, _ = made()
    stores = []
    writer.words, writer.buffer = Stores(writer.words, stores, "word"), Stores(writer.buffer, stores, "bytes")
    at = writer.claim(8)
    writer.commit()
    writer.buffer[at:at + 8] = bytes(8)
    assert stores[-1] != ("word", layout.TAIL_AT)


# -- two processes -------------------------------------------------------------------------------------------


def record(ring, at, first, count):
    """Write `count` words that count up from `first`."""
    ring.longs[at >> 3:(at >> 3) + count] = array("q", range(first, first + count))


def other(kind, fd, first, count, seed):
    """The writer: words that count up, in records of random length.

    all: `count` of them. torn: the same, then one record more, killed by its own hand between payload and cursor.
    """
    segment = shm.Segment(fd)
    ring = Ring(segment.buffer)
    ring.write(*shm.identity())
    rng = random.Random(seed)
    stop = first + count
    while first < stop:
        size = min(rng.randrange(1, WORD_LIMIT), stop - first)
        at = ring.claim(8 * size)
        while at is None:
            os.sched_yield()
            at = ring.claim(8 * size)
        record(ring, at, first, size)
        ring.commit()
        first += size
    if kind == "torn":
        size = rng.randrange(1, WORD_LIMIT)
        at = ring.claim(8 * size)
        while at is None:
            os.sched_yield()
            at = ring.claim(8 * size)
        record(ring, at, -10**9, rng.randrange(size))
        os.kill(os.getpid(), signal.SIGKILL)
    ring.close()
    segment.close()


@pytest.fixture
def shared():
    if not hasattr(os, "sched_yield"):
        pytest.skip("POSIX only")
    segment = shm.create(ring_bytes(1024, 1))
    form(segment.buffer, 1024, 1)
    ring = Ring(segment.buffer)
    ring.read_from(*shm.identity())
    yield segment.fd, ring
    ring.close()
    segment.close()


def start(kind, fd, first, count, seed):
    return subprocess.Popen([sys.executable, __file__, kind, *map(str, (fd, first, count, seed))], pass_fds=[fd])


def follow(ring, first, stop, seconds, is_over=lambda: False):
    """Read words that count up from `first`, until `stop` or over and empty; return the next one."""
    give_up_ns = steady_ns() + seconds * SECOND
    while first < stop:
        over = is_over()
        found = ring.read()
        for at, size in found:
            count = size >> 3
            assert ring.longs[at >> 3:(at >> 3) + count].tolist() == list(range(first, first + count)), first
            first += count
        ring.release()
        if not found:
            if over:
                break
            assert steady_ns() < give_up_ns, f"only {first:,} words in {seconds} s"
            os.sched_yield()
    return first


def exchange(shared, count, seed, seconds):
    fd, ring = shared
    print("seed", seed)
    child = start("all", fd, 0, count, seed)
    try:
        begin_ns = steady_ns()
        assert follow(ring, 0, count, seconds) == count
        print(f"{count:,} words in {(steady_ns() - begin_ns) / SECOND:.1f} s, none torn, none lost")
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait()
    assert ring.fill() == 0


def test_millions_of_words_between_two_processes(shared):
    exchange(shared, 3_000_000, 1, 60)


@pytest.mark.stress
def test_two_hundred_million_words_between_two_processes(shared):
    exchange(shared, 200_000_000, 2, 1_200)


def test_a_writer_killed_between_payload_and_cursor_leaves_nothing(shared):
    fd, ring = shared
    first = 0
    for seed in range(6):
        child = start("torn", fd, first, 20_000, seed)
        assert follow(ring, first, first + 20_000, 30) == first + 20_000
        assert child.wait(10) == -signal.SIGKILL
        assert ring.read() == [] and ring.fill() == 0
        assert ring.writer()[0] == child.pid and not shm.is_alive(*ring.writer())
        first += 20_000


def killed_at_random(shared, times, seed):
    """Whatever moment it is killed at, what is committed is whole, and the next one writes on from there."""
    fd, ring = shared
    print("seed", seed)
    rng = random.Random(seed)
    first = words = 0
    for number in range(times):
        child = start("all", fd, first, 10**12, rng.randrange(1000))
        reached = follow(ring, first, first + rng.randrange(1, 400_000), 30)
        child.kill()
        first = follow(ring, reached, 10**15, 30, lambda: child.poll() is not None)
        assert child.wait() == -signal.SIGKILL and ring.fill() == 0
        words += first - reached
    print(f"{times} writers killed, {words:,} words read after the kill")


def test_a_writer_killed_at_random(shared):
    killed_at_random(shared, 5, 3)


@pytest.mark.stress
def test_a_writer_killed_at_random_long(shared):
    killed_at_random(shared, 300, 4)


def test_the_bench_of_hops_checks_its_answer():
    from feeder.bench.ring import ring_round      # not above: the other process starts from this file, too
    hops, words, rate = ring_round(300)
    assert hops.count == words.count == 300 and hops.negative == words.negative == 0 and rate > 0


if __name__ == "__main__":
    other(sys.argv[1], *map(int, sys.argv[2:]))
