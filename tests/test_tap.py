"""The tap's machine: against a deque, store by store, and between processes; a torn datagram is never handed over."""

import os
import random
import signal
import subprocess
import sys
import zlib
from collections import deque

import pytest
from support import PROJECT, dice

from feeder import shm
from feeder import tap as layout
from feeder.clock import SECOND, steady_ns
from feeder.tap import MAX_SLOTS, PADDING, SLOT_BYTES, TapError, TapReader, TapWriter, form, tap_bytes

SLOTS = 64                                   # of the ring between processes: overruns are common


def made(slots=8):
    buffer = bytearray(tap_bytes(slots))
    form(buffer, slots, 7, 8)
    return buffer


def slots_of(size):
    return -(-(size + 8) // SLOT_BYTES)


def drain(reader):
    return list(iter(reader.read, None))


# -- one process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [2, 4, 8, 16])
def test_random_operations_against_a_deque(slots):
    """The model keeps (first slot, bytes), the padding too, and forgets what the last record's slots cover."""
    rng = dice(slots)
    buffer = made(slots)
    writer = TapWriter(buffer)
    readers = [[TapReader(buffer), 0, 0] for _ in range(3)]          # and the model's head, and overruns
    model, tail, written, refused = deque(), 0, 0, 0
    for _ in range(20_000):
        if rng.random() < 0.6:
            size = rng.choice((0, 1, 55, 56, 57, 63, 64, 120, 121, rng.randrange(slots * 64)))
            payload = bytes([written & 255]) * size
            fits = size <= slots // 2 * 64 - 8
            assert writer.write(memoryview(payload)) == fits
            refused += not fits
            if fits:
                if tail % slots + slots_of(size) > slots:
                    model.append((tail, None))
                    tail += slots - tail % slots
                model.append((tail, payload))
                tail += slots_of(size)
                written += 1
                while tail - model[0][0] > slots:
                    model.popleft()
        else:
            side = rng.choice(readers)
            reader, head, overruns = side
            found = reader.read()
            rest = [(at, payload) for at, payload in model if at >= head]
            if head < tail and (not rest or rest[0][0] != head):
                head, overruns = tail, overruns + 1
                assert found is None
            else:
                kept = [(at, payload) for at, payload in rest if payload is not None]
                assert found == (kept[0][1] if kept else None)
                if kept:
                    head = kept[0][0] + slots_of(len(found))
            side[1:] = head, overruns
            assert (reader.head, reader.overruns) == (head, overruns)
            assert reader.lag_bytes() == (tail - head) * SLOT_BYTES
    assert (writer.tail, writer.records, writer.refused) == (tail, written, refused)
    assert written > 5_000 and refused > 100 and all(overruns > 100 for _, _, overruns in readers)
    assert writer.writer() == readers[0][0].writer() == (7, 8)


def test_a_burst_is_its_datagrams():
    buffer = made(64)
    writer, reader = TapWriter(buffer), TapReader(buffer)
    data = bytes(range(250))
    writer.write_burst(memoryview(data), 100)
    assert drain(reader) == [data[:100], data[100:200], data[200:]] and writer.records == 3


def test_who_comes_later_reads_on_from_there_or_from_the_start_while_it_is_kept():
    buffer = made(8)
    writer = TapWriter(buffer)
    for number in range(8):
        writer.write(b"%d" % number)
    late, rewound = TapReader(buffer), TapReader(buffer)
    rewound.rewind()
    assert drain(late) == [] and drain(rewound) == [b"%d" % number for number in range(8)]
    writer.write(b"8")
    late.rewind()                            # the first is gone: it stays where it is
    assert drain(late) == drain(rewound) == [b"8"] and late.overruns == rewound.overruns == 0


def test_an_overrun_is_told_once_and_reading_goes_on():
    buffer = made(8)
    writer, reader = TapWriter(buffer), TapReader(buffer)
    for number in range(9):
        writer.write(b"%d" % number)
    assert reader.read() is None and reader.overruns == 1 and reader.read() is None and reader.overruns == 1
    writer.write(b"on")
    assert reader.read() == b"on" and reader.overruns == 1


def test_what_is_no_tap_is_refused():
    for slots in (0, 1, 3, MAX_SLOTS * 2):
        with pytest.raises(TapError, match=f"tap of {slots} slots: expected a power of two"):
            form(bytearray(100), slots, 1, 1)
    with pytest.raises(TapError, match="needs 768 bytes, the segment has 767"):
        form(bytearray(767), 8, 1, 1)
    for buffer in (b"", bytes(8), bytes(100_000), made(8)[:-64], made(8)[:-1]):
        with pytest.raises(TapError):
            TapReader(buffer)
    for at, value in ((0, 1), (8, 2), (16, 0), (16, 1), (16, 9), (16, 1 << 60)):
        buffer = made(8)
        buffer[at:at + 8] = value.to_bytes(8, "little")
        with pytest.raises(TapError):
            TapReader(buffer)


def test_a_tap_has_one_writer_in_its_life():
    buffer = made(8)
    TapWriter(buffer).write(b"x")
    with pytest.raises(TapError, match="had a writer, pid 7"):
        TapWriter(buffer)


def test_random_garbage_is_an_error_or_data_never_anything_else():
    rng = dice(3)
    errors = 0
    for _ in range(3_000):
        buffer = made(8)
        writer, reader = TapWriter(buffer), TapReader(buffer)
        for _ in range(rng.randrange(12)):
            writer.write(bytes(rng.randrange(100)))
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(16, len(buffer) // 8) * 8
            value = rng.choice((0, 1, 9, PADDING, 1 << 63, rng.getrandbits(64), rng.getrandbits(4) << 32 | 249))
            buffer[at:at + 8] = value.to_bytes(8, "little")
        try:
            for _ in range(20):
                found = reader.read()
                assert found is None or len(found) <= reader.max_payload_bytes
        except TapError:
            errors += 1
    assert errors > 100


# -- the order of stores and loads ---------------------------------------------------------------------------


class Recording:
    """A memoryview that writes down where it was stored to and loaded from, and lets somebody in before each."""

    def __init__(self, view, name, log, before=lambda: None):
        self.view, self.name, self.log, self.before = view, name, log, before

    def __len__(self):
        return len(self.view)

    def __getitem__(self, at):
        self.before()
        self.log.append(("load", self.name, at))
        return self.view[at]

    def __setitem__(self, at, value):
        self.before()
        self.log.append(("store", self.name, at))
        self.view[at] = value


def test_intent_before_payload_before_cursor():
    rng = dice(5)
    writer = TapWriter(made(8))
    log = []
    writer.words, writer.buffer = Recording(writer.words, "word", log), Recording(writer.buffer, "bytes", log)
    paddings = 0
    for _ in range(2_000):
        del log[:]
        before = writer.tail
        assert writer.write(bytes(rng.randrange(writer.max_payload_bytes + 1)))
        assert all(kind == "store" for kind, _, _ in log)             # it never looks at what anybody did
        stores = [(name, at) for _, name, at in log]
        assert stores[0] == ("word", layout.INTENT_AT) and stores[-1] == ("word", layout.TAIL_AT)
        assert writer.words.view[layout.INTENT_AT] == writer.words.view[layout.TAIL_AT] == writer.tail
        for name, at in stores[1:-1]:
            start, stop = (at * 8, at * 8 + 8) if name == "word" else (at.start, at.stop)
            assert layout.FIRST_AT * 8 <= start <= stop <= len(writer.buffer.view)
            slot, last = ((place - layout.FIRST_AT * 8) // SLOT_BYTES for place in (start, max(start, stop - 1)))
            assert (slot - before) % 8 <= (last - before) % 8 < writer.tail - before <= 8
        paddings += len(stores) == 5
    assert paddings > 100


def test_tail_before_copy_before_intent():
    buffer = made(8)
    writer, reader = TapWriter(buffer), TapReader(buffer)
    log = []
    reader.words, reader.buffer = Recording(reader.words, "word", log), Recording(reader.buffer, "bytes", log)
    writer.write(b"datagram")
    assert reader.read() == b"datagram"
    assert [(kind, name) for kind, name, _ in log] == [("load", "word"), ("load", "word"), ("load", "bytes"),
                                                       ("load", "word")]
    assert [at for _, _, at in log] == [layout.TAIL_AT, layout.FIRST_AT, slice(264, 272), layout.INTENT_AT]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_written_between_two_loads_of_a_reader(seed):
    """The writer gets in before every load, and its stores are torn apart, too: it may stop before any of them."""
    rng = dice(seed)
    buffer = made(8)
    writer, reader = TapWriter(buffer), TapReader(buffer)
    written, loads = {}, []

    def datagram():
        body = len(written).to_bytes(4, "little") + bytes(rng.choices(range(256), k=rng.randrange(200)))
        written[len(written)] = body
        return body + zlib.crc32(body).to_bytes(4, "little")

    class Later:
        """Keeps stores back."""

        def __init__(self, view, kept):
            self.view, self.kept = view, kept

        def __setitem__(self, at, value):
            self.kept.append((self.view, at, value))

    def steps():
        """The writer's stores, one at a time; a copy is torn anywhere."""
        words, flat, kept = writer.words, writer.buffer, []
        writer.words, writer.buffer = Later(words, kept), Later(flat, kept)
        while True:
            writer.write(datagram())
            for view, at, value in kept:
                if view is flat:
                    middle = rng.randrange(len(value))
                    view[at.start:at.start + middle] = value[:middle]
                    yield
                view[at] = value
                yield
            del kept[:]

    stores = steps()

    def get_in():
        for _ in range(rng.choice((0, 0, 0, 1, 2, 10, 60))):
            next(stores)

    reader.words = Recording(reader.words, "word", loads, get_in)
    reader.buffer = Recording(reader.buffer, "bytes", loads, get_in)
    last, found, missed = -1, 0, 0
    for _ in range(4_000):
        get_in()
        overruns = reader.overruns
        data = reader.read()
        if data is not None:
            number = int.from_bytes(data[:4], "little")
            assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little") and data[:-4] == written[number]
            assert number > last
            missed += number - last - 1
            assert number == last + 1 or reader.overruns
            last, found = number, found + 1
        else:
            assert reader.overruns <= overruns + 1
    assert found > 200 and missed > 200 and reader.overruns > 100


def test_that_test_finds_a_reader_that_does_not_look_at_intent():
    """A ring ahead, and half of the next record written: without the check it is handed over."""
    buffer = made(2)
    writer, reader = TapWriter(buffer), TapReader(buffer)
    writer.write(b"a" * 56)
    writer.write(b"b" * 56)
    words = reader.words
    writer.words[layout.INTENT_AT] = 3
    writer.buffer[264:270] = b"cccccc"
    assert reader.read() is None and reader.overruns == 1

    class Blind:
        def __getitem__(self, at):
            return 0 if at == layout.INTENT_AT else words[at]

    reader.head, reader.words = 0, Blind()
    assert reader.read() == b"cccccc" + b"a" * 50


# -- the page ------------------------------------------------------------------------------------------------


def the_page():
    """Return {name: (offset, bytes)} of the section's tables, and its text."""
    text = (PROJECT / "docs" / "protocol.md").read_text(encoding="utf-8").partition("## Local tap\n")[2]
    text = text.partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[3]: (int(row[0]), row[1], row[4]) for row in rows if row[0].isdigit()}, text


class SecondReader:
    """Written from docs/protocol.md, section "Local tap", and nothing else."""

    def __init__(self, segment):
        self.segment = segment
        self.at = {name: at for name, (at, _, _) in the_page()[0].items()}
        assert self.word("tap_version") == 1
        self.slots = self.word("slots")
        self.head = self.word("tail")

    def word(self, name, slot=0):
        at = self.at[name] + 64 * (slot % self.slots if slot else 0)
        return int.from_bytes(self.segment[at:at + 8], sys.byteorder)

    def read(self):
        while self.head < self.word("tail"):
            word = self.word("ring", self.head)
            size = word & 0xFFFFFFFF
            at = self.at["ring"] + 64 * (self.head % self.slots) + 8
            copy = bytes(self.segment[at:at + size]) if size <= 32 * self.slots - 8 else b""
            if self.word("intent") - self.head > self.slots:
                self.head = self.word("tail")
                return "overrun"
            assert word >> 32 == self.head & 0xFFFFFFFF
            if size == 0xFFFFFFFF:
                self.head += self.slots - self.head % self.slots
                continue
            self.head += (size + 71) // 64
            return copy
        return None


def test_a_reader_written_from_the_page_reads_the_same():
    rng = dice(11)
    buffer = made(16)
    writer, reader, second = TapWriter(buffer), TapReader(buffer), SecondReader(buffer)
    overruns = 0
    for _ in range(20_000):
        if rng.random() < 0.55:
            writer.write(bytes(rng.choices(range(256), k=rng.randrange(200))))
        else:
            before = reader.overruns
            one, other = reader.read(), second.read()
            overruns += other == "overrun"
            assert one == (None if other == "overrun" else other) and reader.overruns - before == (other == "overrun")
    assert overruns > 100


def test_the_page_says_what_is():
    page, text = the_page()
    ours = {"tap_magic": layout.MAGIC_AT, "tap_version": layout.VERSION_AT, "slots": layout.SLOTS_AT,
            "pid": layout.PID_AT, "start": layout.START_AT, "intent": layout.INTENT_AT, "tail": layout.TAIL_AT,
            "ring": layout.FIRST_AT}
    assert {name: page[name][0] for name in ours} == {name: at * 8 for name, at in ours.items()}
    assert int(page["tap_magic"][2].split(",")[0], 16) == layout.MAGIC and "`$FDRTAP1`" in page["tap_magic"][2]
    assert made()[:8] == b"$FDRTAP1" and page["ring"][1] == f"{SLOT_BYTES} x slots"
    hello = [page[name][:2] for name in ("hello_magic", "hello_version", "segment_bytes")]
    assert hello == [(0, "4"), (4, "4"), (8, "8")]
    from feeder.net import handover
    assert handover.HELLO.size == 16 and f"{handover.TAP_SLOTS:,} slots" in text and handover.PREFIX == "\0feeder-tap/"


def test_the_bench_of_hops_checks_its_answer():
    from feeder.bench.tap import hop_round        # not above: the other processes start from this file, too
    hops, words = hop_round(300)
    assert hops.count == words.count == 300 and hops.negative == words.negative == 0


# -- processes -----------------------------------------------------------------------------------------------


def datagram(number, size):
    body = number.to_bytes(8, "little") + bytes([number % 251]) * (size - 12)
    return body + zlib.crc32(body).to_bytes(4, "little")


def check(data):
    """Return the number of a datagram that is whole."""
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"), f"torn: {data[:8].hex()}, {len(data)} bytes"
    number = int.from_bytes(data[:8], "little")
    assert data[8:-4] == bytes([number % 251]) * (len(data) - 12)
    return number


def write_on(fd, stop, seed):
    """The writing process: numbered datagrams of random sizes, as fast as it goes, but for a pause now and then."""
    segment = shm.Segment(fd)
    writer = TapWriter(segment.buffer)
    rng = random.Random(seed)
    pause_at = 0
    sizes = [rng.choice((12, 56, 57, 184, 700, 1472)) for _ in range(1_000)]
    for number in range(stop):
        writer.write(datagram(number, sizes[number % 1_000]))
        if number == pause_at:
            os.sched_yield()
            pause_at += rng.choice((1, 3, 10, 100))
    print(writer.records)
    writer.close()
    segment.close()


def read_on(fd, pause, stop):
    """A reading process: what it got, missed, and how often it was overrun. It ends when the writer has."""
    segment = shm.Segment(fd, is_writable=False)
    reader = TapReader(segment.buffer)
    last, got, missed = -1, 0, 0
    print("ready", flush=True)
    while not reader.words[ENDED_AT] or reader.lag_bytes():
        data = reader.read()
        if data is None:
            os.sched_yield()
            continue
        number = check(data)
        assert number > last and (number == last + 1 or reader.overruns)
        missed += number - last - 1
        last, got = number, got + 1
        for _ in range(pause):
            zlib.crc32(bytes(10_000))
    print(got, missed + stop - 1 - last, reader.overruns)
    reader.close()
    segment.close()


ENDED_AT = tap_bytes(SLOTS) // 8                 # a word behind the ring: the parent says that the writer has ended
PAUSES = (0, 0, 3, 30)


def children_of(kind, *words, **more):
    return subprocess.Popen([sys.executable, __file__, kind, *map(str, words)], stdout=subprocess.PIPE,
                            universal_newlines=True, env=dict(os.environ, PYTHONPATH=str(PROJECT)), **more)


@pytest.fixture
def shared():
    if not hasattr(os, "sched_yield"):
        pytest.skip("POSIX only")
    segment = shm.create(tap_bytes(SLOTS) + 4096)
    form(segment.buffer, SLOTS, *shm.identity())
    yield segment
    segment.close()


def one_writer_many_readers(segment, stop, seed, seconds):
    print("seed", seed)
    fd = segment.fd
    readers = [children_of("read", fd, pause, stop, pass_fds=[fd]) for pause in PAUSES]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "ready\n"
        begin_ns = steady_ns()
        writer = children_of("write", fd, stop, seed, pass_fds=[fd])
        readers.append(writer)
        out, _ = writer.communicate(timeout=seconds)
        assert writer.returncode == 0 and int(out) == stop
        segment.buffer[ENDED_AT * 8] = 1
        print(f"{stop:,} datagrams in {(steady_ns() - begin_ns) / SECOND:.1f} s through {SLOTS} slots")
        for reader, pause in zip(readers, PAUSES):
            got, missed, overruns = map(int, reader.communicate(timeout=seconds)[0].split())
            print(f"pause {pause}: {got:,} read, {missed:,} missed in {overruns:,} overruns, none torn")
            assert reader.returncode == 0 and got + missed == stop and (missed > 0) == (overruns > 0)
            assert overruns if pause else got
    finally:
        for process in readers:
            process.kill()
            process.wait()
            process.stdout.close()


def test_no_reader_gets_a_torn_datagram_and_all_know_what_they_missed(shared):
    one_writer_many_readers(shared, 60_000, 1, 60)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(2, 5))
def test_no_reader_gets_a_torn_datagram_long(shared, seed):
    one_writer_many_readers(shared, 5_000_000, seed, 900)


def test_a_writer_killed_anywhere_leaves_whole_datagrams_only(shared):
    """Readers go up to the tail that it left; what it was writing is nowhere, or told as an overrun."""
    rng = dice(9)
    print("killed after", end=" ")
    for _ in range(4):
        shared.buffer[:] = bytes(len(shared.buffer))
        form(shared.buffer, SLOTS, *shm.identity())
        reader = TapReader(shared.buffer)
        writer = children_of("write", shared.fd, 10**9, 1, pass_fds=[shared.fd])
        wanted, last = rng.randrange(1, 5_000), -1
        while last < wanted:
            data = reader.read()
            last = check(data) if data is not None else last
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        print(last, end=" ")
        for data in drain(reader):
            number = check(data)
            assert number > last
            last = number
        assert reader.read() is None and reader.lag_bytes() == 0
        reader.close()


if __name__ == "__main__":
    {"write": write_on, "read": read_on}[sys.argv[1]](*map(int, sys.argv[2:]))
