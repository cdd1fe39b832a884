"""Broadcast ring of datagrams over any buffer: one writer, any number of readers, and the writer never looks at them.

In:   datagrams, as they go to the network.   Out: copies of the same bytes, in order, to every reader.
Hot:  TapWriter.write, TapReader.read; measured by `feeder bench tap`.

    byte 0       128                256
    | identity   | intent, tail (w) | slots of 64 bytes ...            all of it is written by the writer only

    slots        a record is one or more whole slots, never wrapped: what does not fit before the end starts at slot 0
    record       word: low half of its first slot's number | payload bytes      then the payload
    padding      word: the same                            | PADDING            up to the end of the ring

`tail` counts slots ever written; `intent` says up to where the writer may be writing at this moment. Both only grow.
Before it touches a slot it stores intent, after the last of a record it stores tail. A reader goes up to tail, copies
a record, and then looks at intent: more than a ring's slots beyond the record's first one, and the copy may be of two
datagrams, so it is dropped and the reader is **overrun**. It goes on behind the newest; the sequence numbers in the
datagrams say exactly what it missed. Readers have no place in the segment: they map it read-only, none can slow the
writer or harm another, and nobody knows how many there are. The idea is Aeron's broadcast buffer.

A segment has one writer in its life: pid and start tell which. docs/protocol.md has the layout for other languages.
Relies on ordered plain stores and loads (x86-64); doctor reports other machines. One store a word: cast("Q"), aligned.
Not here: how a reader comes to the segment (net/handover.py), waiting. Nothing to read is a return value.
"""

from feeder.errors import FeederError

MAGIC = 0x3150415452444624               # "$FDRTAP1" in memory
LAYOUT_VERSION = 1
SLOT_BYTES, LENGTH_BYTES = 64, 8
SLOT_WORDS = SLOT_BYTES // 8
PADDING = LOW = 0xFFFFFFFF
MAX_SLOTS = 1 << 24                      # a GiB

# Indexes of words. The writer's two share a line of their own: they change together.
MAGIC_AT, VERSION_AT, SLOTS_AT, PID_AT, START_AT = range(5)
INTENT_AT, TAIL_AT = 16, 17
FIRST_AT = 32
assert (INTENT_AT * 8, FIRST_AT * 8) == (128, 256)


class TapError(FeederError):
    """The segment is no tap of ours, or what is in it was not written by the rules."""


def tap_bytes(slot_count):
    """Return how large a buffer the ring takes."""
    return FIRST_AT * 8 + slot_count * SLOT_BYTES


def form(buffer, slot_count, pid, start):
    """Make a tap of zeroed memory for the writer with this pid and start; the magic comes last."""
    if not 2 <= slot_count <= MAX_SLOTS or slot_count & (slot_count - 1):
        raise TapError(f"tap of {slot_count} slots: expected a power of two, 2 to {MAX_SLOTS}")
    if len(buffer) < tap_bytes(slot_count):
        raise TapError(f"tap of {slot_count} slots needs {tap_bytes(slot_count)} bytes, the segment has {len(buffer)}")
    with memoryview(buffer) as view, view.cast("B") as flat, flat.cast("Q") as words:
        words[VERSION_AT], words[SLOTS_AT], words[PID_AT], words[START_AT] = LAYOUT_VERSION, slot_count, pid, start
        words[MAGIC_AT] = MAGIC


class _Side:
    """What both ends see of a formed tap."""

    def __init__(self, buffer):
        self.buffer = memoryview(buffer).cast("B")
        self.words = self.buffer[:len(self.buffer) // 8 * 8].cast("Q")
        wrong = self._what_is_wrong()
        if wrong:
            self.close()
            raise TapError(wrong)
        count = self.slot_count = self.words[SLOTS_AT]
        self.mask = count - 1
        # Half the ring: with the padding before it, a record must not overwrite its own padding.
        self.max_payload_bytes = count // 2 * SLOT_BYTES - LENGTH_BYTES

    def _what_is_wrong(self):
        words, size = self.words, len(self.buffer)
        if size < tap_bytes(2) or words[MAGIC_AT] != MAGIC or words[VERSION_AT] != LAYOUT_VERSION:
            return f"not a tap of layout {LAYOUT_VERSION}"
        count = words[SLOTS_AT]
        if not 2 <= count <= MAX_SLOTS or count & (count - 1) or size < tap_bytes(count):
            return f"tap of {count} slots in {size} bytes"
        return ""

    def writer(self):
        """Return (pid, start) of the writer."""
        return self.words[PID_AT], self.words[START_AT]

    def close(self):
        """Let go of the buffer, which cannot be closed before."""
        self.words.release()
        self.buffer.release()


class TapWriter(_Side):
    """The one writer of a fresh tap. `records`: how many were written; `refused`: datagrams too large for it."""

    def __init__(self, buffer):
        super().__init__(buffer)
        if self.words[INTENT_AT]:
            raise TapError(f"this tap had a writer, pid {self.words[PID_AT]}: a new one forms a new tap")
        self.tail = self.records = self.refused = 0

    def write(self, datagram):
        """Show a datagram to all readers; return False if it is longer than `max_payload_bytes`."""
        size = len(datagram)
        slots = (size + (LENGTH_BYTES + SLOT_BYTES - 1)) >> 6
        words, tail = self.words, self.tail
        place = tail & self.mask
        if place + slots > self.slot_count or size > self.max_payload_bytes:
            if size > self.max_payload_bytes:
                self.refused += 1
                return False
            first = tail + self.slot_count - place
            words[INTENT_AT] = stop = first + slots
            words[FIRST_AT + place * SLOT_WORDS] = (tail & LOW) << 32 | PADDING
            tail, place = first, 0
        else:
            words[INTENT_AT] = stop = tail + slots
        at = FIRST_AT + place * SLOT_WORDS
        words[at] = (tail & LOW) << 32 | size
        start = at * 8 + LENGTH_BYTES
        self.buffer[start:start + size] = datagram
        words[TAIL_AT] = self.tail = stop
        self.records += 1
        return True

    def write_burst(self, datagrams, each_bytes):
        """Write several that lie one behind the other, all but the last of `each_bytes`, as PacketSender takes them."""
        for at in range(0, len(datagrams), each_bytes):
            self.write(datagrams[at:at + each_bytes])


class TapReader(_Side):
    """Reads on from now. `overruns` counts how often the writer was a ring ahead."""

    def __init__(self, buffer):
        super().__init__(buffer)
        self.head = self.words[TAIL_AT]
        self.overruns = 0

    def rewind(self):
        """Begin with the writer's first datagram, if that is still there."""
        if self.words[INTENT_AT] <= self.slot_count:
            self.head = 0

    def read(self):
        """Return the next datagram as bytes, None if there is none yet, or none since we were overrun.

        Raises: TapError where a record is not what its writer must have left.
        """
        words, head = self.words, self.head
        tail = words[TAIL_AT]
        while head < tail:
            place = head & self.mask
            at = FIRST_AT + place * SLOT_WORDS
            word = words[at]
            size = word & LOW
            start = at * 8 + LENGTH_BYTES
            datagram = bytes(self.buffer[start:start + size]) if size <= self.max_payload_bytes else None
            if words[INTENT_AT] - head > self.slot_count:        # after the copy, whatever it may be of
                self.overruns += 1
                self.head = words[TAIL_AT]
                return None
            if word >> 32 != head & LOW:
                raise TapError(f"record at slot {head}: its word says {word >> 32:#x}, {size} bytes")
            if datagram is not None:
                self.head = head + ((size + (LENGTH_BYTES + SLOT_BYTES - 1)) >> 6)
                return datagram
            if size != PADDING:
                raise TapError(f"record at slot {head}: {size} bytes, at most {self.max_payload_bytes}")
            self.head = head = head + self.slot_count - place
        return None

    def lag_bytes(self):
        """Return how much is written and not read; near the ring's size, an overrun is near."""
        return (self.words[TAIL_AT] - self.head) * SLOT_BYTES
