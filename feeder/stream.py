"""What the receiver remembers of where packets come from: streams, and the lines that carry them.

    Line ──▶ Path, one a channel ──▶ Stream (channel, session) ──▶ View, one an instrument

A stream is one numbered run of a publisher. A line is one way by which packets come; on each channel it carries one
session at a time, and any number of lines carry the same. Counters of lines are of packets, but `lost`, of messages.

Not here: what to do with a packet (receiver.py), in which order (reorder.py).
"""

from collections import deque

from feeder.counter import Histogram
from feeder.packet import FIRST, LAST
from feeder.reorder import Missing
from feeder.view import Pending

ARRIVALS = 4_096                  # of a stream with several lines, how many are remembered to measure lags
LOOP_MASK = 0xFFFFFFFF            # numbers of the loop begin again behind it
MAX_EARLY = 8                     # packets of the loop


class Session:
    """One numbered run of a publisher on one channel, for the report."""

    __slots__ = ("channel", "number", "first", "since_ns", "messages", "missed", "late", "ended")

    def __init__(self, channel, number, first, since_ns):
        self.channel = channel
        self.number = number
        self.first = first             # sequence expected first; above 1 where we joined late
        self.since_ns = since_ns
        self.messages = 0
        self.missed = 0                # messages declared lost
        self.late = 0                  # of those, the ones that came after all
        self.ended = False             # by its last packet

    @property
    def lost(self):
        return self.missed - self.late


class Stream:
    """Where one session on one channel stands."""

    __slots__ = ("key", "channel", "session", "order", "paths", "arrivals", "heard_ns", "silent", "is_left", "is_over",
                 "end_at", "era", "since", "views", "keepers", "ahead", "loop", "round",
                 "round_at", "round_ns", "__weakref__")

    def __init__(self, session, order, now_ns):
        self.key = session.channel, session.number
        self.channel = session.channel
        self.session = session
        self.order = order
        self.paths = []
        self.arrivals = None           # [(first number, came_ns), ...] by number, while there are several lines
        self.heard_ns = now_ns         # when anything of it came by a line
        self.silent = False
        self.is_left = False           # a line went on to another session
        self.is_over = False           # dropped
        self.end_at = None             # number after its last message
        self.era = 0                   # grows with each gap
        self.since = order.expected    # nothing is missing from this number on
        self.views = {}
        self.keepers = set()           # views with something in `kept`
        self.ahead = deque()           # (at, view, message) of the loop
        self.loop = Loop()
        self.round = self.round_at = 0
        self.round_ns = None           # how long the last round took: between the beginnings of two in a row

    @property
    def expected(self):
        """The number expected next."""
        return self.order.expected

    @property
    def ended(self):
        return self.session.ended or self.is_over

    @property
    def lines(self):
        """The lines that carry it."""
        return [path.line for path in self.paths]

    def begin_round(self, number, now_ns):
        """Note that a round of the loop begins."""
        follows = self.round and number == self.round + 1
        self.round_ns = now_ns - self.round_at if follows else None
        self.round, self.round_at = number, now_ns


class Loop:
    """The snapshot loop's packets by their numbers: each once, and the parts of split books in order.

    Only parts have an order: those of a packet that is early wait for those before it, while no more than MAX_EARLY do.
    """

    __slots__ = ("next", "newest", "early", "pending")

    def __init__(self):
        self.next = self.newest = None     # number whose parts come next; the highest one seen
        self.early = {}                    # number -> (at, parts)
        self.pending = None                # (at, Pending) of a book that is split

    def take(self, number, at, parts):
        """Note a packet; return (how many more are missing, -1 for one that was; [(at, book) that is whole now]).

        None for one that was here, or is no longer waited for.
        """
        if self.next is None:
            self.next = number
            self.newest = number - 1 & LOOP_MASK
        if number - self.next & LOOP_MASK > LOOP_MASK >> 1 or number in self.early:
            return None
        missing = (number - self.newest & LOOP_MASK) - 1
        if missing > LOOP_MASK >> 1:
            missing = -1
        else:
            self.newest = number
        self.early[number] = at, parts
        books = []
        while self.early:
            found = self.early.pop(self.next, None)
            if found is None:
                if len(self.early) <= MAX_EARLY:
                    break
                self.next = min(self.early, key=lambda each: each - self.next & LOOP_MASK)
                self.pending = None
                continue
            self.next = self.next + 1 & LOOP_MASK
            at, parts = found
            books += [(at, book) for book in (self.part(at, part) for part in parts) if book is not None]
        return missing, books

    def part(self, at, message):
        """Add a part to the book that is split; return it when it is whole, else None."""
        if message.flags & FIRST:
            self.pending = (at, Pending(message, 0, at))
        elif self.pending is None:
            return None
        began_at, book = self.pending
        if began_at != at or book.instrument_id != message.instrument_id or not book.add(message, 0):
            self.pending = None
        elif message.flags & LAST:
            self.pending = None
            return book.whole(message)
        return None


class Line:
    """One way by which packets come, over all its channels and sessions."""

    __slots__ = ("line", "paths", "lag", "silent")

    def __init__(self, line):
        self.line = line
        self.paths = {}                # channel -> Path
        self.lag = Histogram()         # behind the line that brought a packet first
        self.silent = False

    def is_quiet(self, now_ns, silence_ns):
        """True if nothing came for so long, though a session goes on."""
        times = [path.heard_ns for path in self.paths.values() if path.stream is None or not path.stream.session.ended]
        return bool(times) and now_ns - max(times) > silence_ns

    @property
    def packets(self):
        return self.wins + self.duplicates + sum(path.heartbeats for path in self.paths.values())

    @property
    def wins(self):
        """Packets that it brought first."""
        return sum(path.wins for path in self.paths.values())

    @property
    def duplicates(self):
        """Packets that had come before."""
        return sum(path.duplicates for path in self.paths.values())

    @property
    def lost(self):
        """Messages that this line did not bring; another one may have."""
        return sum(path.lost for path in self.paths.values())

    @property
    def sessions(self):
        """Channel -> session that it carries."""
        return {channel: path.session for channel, path in self.paths.items()}


class Path:
    """One channel on one line, and the stream that it carries now."""

    __slots__ = ("line", "session", "stream", "next", "missing", "heard_ns", "quiet", "wins", "duplicates",
                 "heartbeats", "lost")

    def __init__(self, line):
        self.line = line
        self.session = 0
        self.stream = None
        self.heard_ns = 0
        self.quiet = False             # look closer at the next packet: line or stream were silent, or it is dropped
        self.wins = self.duplicates = self.heartbeats = self.lost = 0

    def take(self, stream, expected):
        self.stream = stream
        self.session = stream.session.number
        self.next = expected
        self.missing = Missing()
        stream.paths.append(self)
        if len(stream.paths) > 1 and stream.arrivals is None:
            stream.arrivals = [(-1, 0)] * ARRIVALS

    def arrived(self, first, count):
        """Count what this line lost; return False for what it brought before."""
        expected = self.next
        stop = first + count
        if first > expected:
            self.lost += first - expected
            self.missing.add(expected, first - 1)
        elif stop <= expected:
            filled = self.missing.fill(first, stop - 1)
            self.lost -= filled
            return bool(filled)
        self.next = stop
        return True
