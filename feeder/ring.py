"""Single-producer, single-consumer ring over any writable buffer.

In:   payloads from one writer.   Out: the same payloads, in order, to one reader.
Hot:  claim, commit, read, release; measured by `feeder bench ring`.

    byte 0       128                256               384
    | identity   | tail, writer (w) | head, reader, bell (r) | resync (r), a word an instrument | slots ...
    (w) written by the producer only, (r) by the consumer only; far apart, so writes do not collide

    slots        a record is one or more whole slots, never wrapped: what does not fit before the end starts at slot 0
    record       word: low half of its first slot's number | payload bytes      then the payload
    padding      word: the same                            | PADDING            up to the end of the ring

`tail` counts slots ever committed, `head` slots ever released. Both only grow: tail - head is the fill.
The writer stores the record first and moves `tail` last, one store a record; the reader loads `tail` once, then
owns all below it until it releases. The slot number in a record's word proves that it was written for this place and
this round: whatever breaks the order of stores shows as RingError, not as a wrong price.

`resync` words count how often the reader asked for an instrument to be started over, above a low byte that says why;
`bell` counts how often it asked at all: a writer looks at one word while nobody asks. A word is stored before the bell.

Either side may die at any moment and be replaced: `write` and `read_from` attach a new one. The writer's claim that was
never committed is not there; the new reader starts behind all that was committed before it.

Relies on ordered plain stores (x86-64); doctor reports other machines. One store a word: memoryview.cast("Q"), aligned.
Not here: waiting, what is in a payload, more than one writer. Full is a return value, never an exception.
"""

from feeder.errors import FeederError

MAGIC = 0x31474E4952524446               # "FDRRING1" in memory
LAYOUT_VERSION = 1
SLOT_BYTES = 128                         # a trade or a quote, whole, and a cache line pair
LENGTH_BYTES = 8                         # the word before the payload
LINE_BYTES = 128                         # what one writer has for itself
LINE_WORDS, SLOT_WORDS = LINE_BYTES // 8, SLOT_BYTES // 8
PADDING = LOW = 0xFFFFFFFF
REASON = 0xFF

# Indexes of words. A line a writer:
MAGIC_AT, VERSION_AT, SLOTS_AT, RESYNCS_AT = 0, 1, 2, 3
TAIL_AT, WRITER_PID_AT, WRITER_START_AT = LINE_WORDS, LINE_WORDS + 1, LINE_WORDS + 2
HEAD_AT, READER_PID_AT, READER_START_AT, BELL_AT = (2 * LINE_WORDS + at for at in range(4))
RESYNC_AT = 3 * LINE_WORDS
assert (TAIL_AT * 8, HEAD_AT * 8, RESYNC_AT * 8) == (128, 256, 384) and SLOT_BYTES % 64 == 0


class RingError(FeederError):
    """The segment is not a ring of ours, or what is in it was not written by the rules."""


def slots_start(resync_count):
    """Return the offset of slot 0."""
    return RESYNC_AT * 8 + -(-resync_count * 8 // LINE_BYTES) * LINE_BYTES


def ring_bytes(slot_count, resync_count):
    """Return how large a buffer the ring takes."""
    return slots_start(resync_count) + slot_count * SLOT_BYTES


def slots_of(payload_bytes):
    return (payload_bytes + LENGTH_BYTES + SLOT_BYTES - 1) // SLOT_BYTES


def form(buffer, slot_count, resync_count):
    """Make a ring of zeroed memory; the magic comes last, whoever sees it sees a whole ring."""
    if slot_count < 2 or slot_count & (slot_count - 1):
        raise RingError(f"ring of {slot_count} slots: expected a power of two, at least 2")
    if len(buffer) < ring_bytes(slot_count, resync_count):
        raise RingError(f"ring of {slot_count} slots needs {ring_bytes(slot_count, resync_count)} bytes, "
                        f"the segment has {len(buffer)}")
    with memoryview(buffer) as view, view.cast("B") as flat, flat.cast("Q") as words:
        words[VERSION_AT], words[SLOTS_AT], words[RESYNCS_AT] = LAYOUT_VERSION, slot_count, resync_count
        words[MAGIC_AT] = MAGIC


class Ring:
    """One process's view of a formed ring. It becomes a writer by `write`, a reader by `read_from`."""

    def __init__(self, buffer):
        self.buffer = memoryview(buffer).cast("B")
        self.words = self.buffer[:len(self.buffer) // 8 * 8].cast("Q")
        self.longs = self.buffer[:len(self.buffer) // 8 * 8].cast("q")      # for the payloads' signed numbers
        words = self.words
        if len(words) < RESYNC_AT or words[MAGIC_AT] != MAGIC or words[VERSION_AT] != LAYOUT_VERSION:
            raise RingError(f"not a ring of layout {LAYOUT_VERSION}")
        self.slot_count = words[SLOTS_AT]
        self.resync_count = words[RESYNCS_AT]
        if len(self.buffer) < ring_bytes(self.slot_count, self.resync_count):
            raise RingError(f"ring of {self.slot_count} slots in {len(self.buffer)} bytes")
        self.mask = self.slot_count - 1
        self.first_word = slots_start(self.resync_count) // 8
        # Half the ring: with the padding before it, a record must fit an empty ring from any place.
        self.max_payload_bytes = self.slot_count // 2 * SLOT_BYTES - LENGTH_BYTES
        self.tail = words[TAIL_AT]               # the writer's own, and `next_tail` when the claim is committed
        self.next_tail = self.tail
        self.head = words[HEAD_AT]               # the reader's own; of a writer, what it last saw
        self.next_head = self.head
        self.seen = []                           # resync words the writer has obeyed
        self.bell = 0

    def close(self):
        """Let go of the buffer, which cannot be closed before."""
        for view in (self.longs, self.words, self.buffer):
            view.release()

    # -- the writer ------------------------------------------------------------------------------------------

    def write(self, pid, start):
        """Become the writer, behind all that a former one committed. What was asked of it is answered by starting."""
        words = self.words
        words[WRITER_PID_AT], words[WRITER_START_AT] = pid, start
        self.tail = self.next_tail = words[TAIL_AT]
        self.head = words[HEAD_AT]
        self.bell = words[BELL_AT]
        self.seen = list(words[RESYNC_AT:RESYNC_AT + self.resync_count])

    def claim(self, payload_bytes):
        """Return the offset in `buffer` where the payload may be written, 8-byte aligned; None when it does not fit."""
        tail = self.tail
        slots = (payload_bytes + (LENGTH_BYTES + SLOT_BYTES - 1)) // SLOT_BYTES
        place = tail & self.mask
        padding = 0 if place + slots <= self.slot_count else self.slot_count - place
        if tail + padding + slots - self.head > self.slot_count:
            self.head = self.words[HEAD_AT]      # looked at only when the last look does not suffice
            if tail + padding + slots - self.head > self.slot_count or payload_bytes > self.max_payload_bytes:
                return None
        if padding:
            self.words[self.first_word + place * SLOT_WORDS] = (tail & LOW) << 32 | PADDING
            tail += padding
            place = 0
        at = self.first_word + place * SLOT_WORDS
        self.words[at] = (tail & LOW) << 32 | payload_bytes
        self.next_tail = tail + slots
        return at * 8 + LENGTH_BYTES

    def commit(self):
        """Hand the claimed record to the reader: one store."""
        self.tail = self.words[TAIL_AT] = self.next_tail

    def free_slots(self):
        """As the writer sees it."""
        self.head = self.words[HEAD_AT]
        return self.slot_count - (self.tail - self.head)

    def asked(self):
        """Return (number, reason) of the resync words that the reader has moved since the last call."""
        words = self.words
        bell = words[BELL_AT]
        if bell == self.bell:
            return ()
        self.bell = bell                         # before the words: one that moves now rings again
        now = words[RESYNC_AT:RESYNC_AT + self.resync_count].tolist()
        moved = [(number, new & REASON) for number, (new, old) in enumerate(zip(now, self.seen)) if new != old]
        self.seen = now
        return moved

    # -- the reader ------------------------------------------------------------------------------------------

    def read_from(self, pid, start):
        """Become the reader, behind all that was committed: a former reader may have seen it, this one needs a start."""
        words = self.words
        words[READER_PID_AT], words[READER_START_AT] = pid, start
        self.skip()

    def skip(self):
        """Release everything unread."""
        self.next_head = self.words[TAIL_AT]
        self.release()

    def read(self, limit=256):
        """Return [(offset, bytes) of a payload, ...] of at most so many records; they stay until release().

        Raises: RingError where a record is not what its writer must have left.
        """
        words, mask, first_word = self.words, self.mask, self.first_word
        head, tail = self.head, words[TAIL_AT]
        found = []
        while head != tail and len(found) < limit:
            at = first_word + (head & mask) * SLOT_WORDS
            word = words[at]
            payload_bytes = word & LOW
            if word >> 32 != head & LOW:
                raise RingError(f"record at slot {head}: its word says {word >> 32:#x}, {payload_bytes} bytes")
            if payload_bytes == PADDING:
                head += self.slot_count - (head & mask)
            else:
                head += (payload_bytes + (LENGTH_BYTES + SLOT_BYTES - 1)) // SLOT_BYTES
                found.append((at * 8 + LENGTH_BYTES, payload_bytes))
        if head > tail:
            raise RingError(f"the records read end at slot {head}, behind the tail, {tail}")
        self.next_head = head
        return found

    def release(self):
        """Give the slots of the last read() back."""
        self.head = self.words[HEAD_AT] = self.next_head

    def ask(self, numbers, reason):
        """Have the writer start these over; `reason` is 0 to 255."""
        words = self.words
        for number in numbers:
            words[RESYNC_AT + number] = (words[RESYNC_AT + number] & ~REASON) + REASON + 1 + reason
        words[BELL_AT] += 1

    # -- either ----------------------------------------------------------------------------------------------

    def fill(self):
        return self.words[TAIL_AT] - self.words[HEAD_AT]

    def writer(self):
        """Return (pid, start) of the writer, zeros before the first."""
        return self.words[WRITER_PID_AT], self.words[WRITER_START_AT]

    def reader(self):
        return self.words[READER_PID_AT], self.words[READER_START_AT]
