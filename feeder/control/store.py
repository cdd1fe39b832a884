"""The last datagrams of one stream, by sequence, in memory that is taken once.

In:   sequenced datagrams, of the publisher in order, of a listening copy nearly so.   Out: those that are asked for.
Hot:  Store.add; measured by `feeder bench store`.

    entries    firsts    sequence of each packet, ascending from `at` around; 0: none yet
               offsets   where it lies in the buffer
    at         the entry that is overwritten next: the oldest

What comes in order takes the oldest entry and its slot. What comes late (a listening copy hears two lines) takes them,
too, and then moves the few entries that are younger up by one; the bytes stay where they are.
"""

from bisect import bisect_right
from struct import Struct

from feeder.packet import FLAGS_AT, RETRANSMITTED, SNAPSHOTS

from .datagram import MAX_PACKETS

HEAD = Struct("<5xB2xQQ8xH")          # of a packet header: flags, session, sequence, message_count
EXTENT = Struct("<HH")                # message_count, packet_bytes
EXTENT_AT = 32
CHANNEL = Struct("<6xH")
MAX_LATE = 1024                       # entries that a late packet may have to move: 60 us


class Store:
    """Keeps up to `datagram_count` datagrams of up to `datagram_bytes` each; of one session, a new one empties it."""

    def __init__(self, datagram_count, datagram_bytes):
        self.datagram_count = datagram_count
        self.datagram_bytes = datagram_bytes
        self.view = memoryview(bytearray(datagram_count * datagram_bytes))
        self.offsets = list(range(0, datagram_count * datagram_bytes, datagram_bytes))
        self.sessions = self.added = self.late = self.too_late = self.too_large = self.duplicates = self.overlaps = 0
        self.clear()

    def clear(self):
        """Forget all packets, and whose they were."""
        self.channel = self.session = self.next = None
        self.firsts = [0] * self.datagram_count
        self.at = 0
        self.holes = 0                # messages that were skipped and did not come late; may be older than `oldest`

    @property
    def memory_bytes(self):
        return len(self.view)

    @property
    def oldest(self):
        """Number of the first message of the oldest packet; 0: nothing is kept."""
        return self.firsts[self.at] or self.firsts[0]

    @property
    def newest(self):
        """Number of the last message."""
        return self.next - 1 if self.firsts[self.at - 1] else 0

    def __len__(self):
        return self.datagram_count if self.firsts[self.at] else self.at

    def of(self, session):
        """Return the store of a session: this one, or None."""
        return self if session == self.session else None

    def add(self, datagram):
        """Keep a copy of a datagram, whose header is right; return False if it is of no use: empty, known, too large.

        Cost: 0.25 us where it follows the last one, 0.5 us with 1,400 bytes.
        """
        flags, session, sequence, count = HEAD.unpack_from(datagram)
        size = len(datagram)
        if sequence != self.next or session != self.session or not count or size > self.datagram_bytes:
            return self.add_unlikely(datagram, flags, session, sequence, count)
        at = self.at
        start = self.offsets[at]
        self.view[start:start + size] = datagram
        self.firsts[at] = sequence
        self.next = sequence + count
        at += 1
        self.at = at if at < self.datagram_count else 0
        self.added += 1
        return True

    def add_burst(self, datagrams, each_bytes):
        """Keep several that lie one behind the other, all but the last of `each_bytes`."""
        for start in range(0, len(datagrams), each_bytes):
            self.add(datagrams[start:start + each_bytes])

    def add_unlikely(self, datagram, flags, session, sequence, count):
        if not count or flags & SNAPSHOTS:
            return False
        if len(datagram) > self.datagram_bytes:
            self.too_large += 1
            return False
        if session != self.session:
            self.clear()
            self.session, self.next = session, sequence
            self.channel, = CHANNEL.unpack_from(datagram)
            self.sessions += 1
        if sequence < self.next:
            return self.insert(datagram, sequence, count)
        self.holes += sequence - self.next
        self.next = sequence
        return self.add(datagram)

    def insert(self, datagram, sequence, count):
        """Keep one that came late, between those that came before it."""
        firsts, offsets, at = self.firsts, self.offsets, self.at
        below = at - 1                # an index below 0 counts from the end, which is where the ring goes on
        lowest = max(at - self.datagram_count, at - 1 - MAX_LATE)
        while firsts[below] > sequence:
            below -= 1
            if below < lowest:
                self.too_late += 1
                return False
        if firsts[below] == sequence:
            self.duplicates += 1
            return False
        if (firsts[below] and firsts[below] + self.extent(below)[0] > sequence
                or below < at - 1 and firsts[below + 1] < sequence + count):
            self.overlaps += 1        # packets of one session do not
            return False
        start = offsets[at]
        self.view[start:start + len(datagram)] = datagram
        for to in range(at, below + 1, -1):
            firsts[to], offsets[to] = firsts[to - 1], offsets[to - 1]
        firsts[below + 1], offsets[below + 1] = sequence, start
        self.at = (at + 1) % self.datagram_count
        self.holes -= min(count, self.holes)
        self.late += 1
        self.added += 1
        return True

    def extent(self, at):
        """Return (messages, bytes) of an entry's packet."""
        return EXTENT.unpack_from(self.view, self.offsets[at] + EXTENT_AT)

    def find(self, first, count, most=MAX_PACKETS):
        """Return (packets, missing): those that hold the messages, at most `most`, and what of them is not kept.

        The packets are views, flagged as sent again, good until the next add(). `missing` is (first, last) of the first
        such part as far as the answer goes, or None.
        """
        last = first + count - 1
        expected, missing, packets = first, None, []
        for at in self.entries(first):
            begin = self.firsts[at]
            if begin > last:
                break
            start = self.offsets[at]
            messages, size = EXTENT.unpack_from(self.view, start + EXTENT_AT)
            if begin + messages <= first:
                continue
            if begin > expected and missing is None:
                missing = expected, begin - 1
            if len(packets) == most:
                return packets, missing
            self.view[start + FLAGS_AT] |= RETRANSMITTED
            packets.append(self.view[start:start + size])
            expected = begin + messages
        if expected <= last and missing is None:
            missing = expected, last
        return packets, missing

    def entries(self, first):
        """Yield the entries in order, from the one that may hold the message."""
        firsts, at, stop = self.firsts, self.at, self.datagram_count
        if not at or firsts[0] > first:
            start = max(at, bisect_right(firsts, first, at, stop) - 1)
            if firsts[start]:
                yield from range(start, stop)
            start = 0
        else:
            start = bisect_right(firsts, first, 0, at) - 1
        yield from range(start, at)
