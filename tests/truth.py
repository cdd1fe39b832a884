"""The truth of what was sent, kept apart from what is judged: datagrams read as they leave, by structs of its own.

Structs and numbers are of docs/protocol.md, not of feeder/packet.py. A Ledger is two plain dicts a book, and remembers
what each number was, and what each book was before it.
"""

from bisect import bisect_right
from collections import namedtuple
from struct import Struct

from feeder.message import LIVE

HEADER = Struct("<IBBHQQqHHI")
CONTROL = Struct("<IBBHQQII16s")
UNAVAILABLE = 3
MESSAGE = Struct("<HHIQqqBBHI")
TRADE, BBO = Struct("<QqqB7x"), Struct("<qqqq")
DEFINITION, STATUS = Struct("<bbHB3xqq24s32s32s"), Struct("<HBBI24s32s")
(DEFINITION_TYPE, SNAPSHOT_TYPE, INCREMENT_TYPE, TRADE_TYPE, BBO_TYPE, STATUS_TYPE, PADDING_TYPE,
 ROUND_TYPE) = range(1, 9)
LAST, FIRST, REFRESH = 1, 2, 4
HEARTBEAT, END, SNAPSHOTS, RETRANSMITTED, SIGNED = 1, 2, 4, 8, 16
NOBODY = 0xFFFFFFFF

Head = namedtuple("Head", "flags channel session sequence count size loop")
Fact = namedtuple("Fact", "kind instrument_id flags state epoch venue_sequence event_ns body begin")
Version = namedtuple("Version", "is_live epoch definition bids asks venue_sequence")
UNKNOWN = Version(False, 0, None, ([], []), ([], []), 0)


def head_of(datagram):
    _, _, flags, channel, session, sequence, _, count, size, loop = HEADER.unpack_from(datagram)
    return Head(flags, channel, session, sequence, count, size, loop)


class Ledger:
    """The truth of one stream, written as its datagrams leave. `versions[id]`: (positions, Versions), ascending.

    A Version holds from its position on: after every message below that number.
    """

    def __init__(self, channel, session):
        self.key = channel, session
        self.facts = {}
        self.next = 1
        self.parts = {}
        self.books = {}                 # instrument id -> [is_live, epoch, definition, bids, asks, venue sequence]
        self.versions = {}
        self.ids, self.names = {}, {}   # (venue, symbol) -> instrument id, and back
        self.offsets = {}               # (venue, symbol) -> the publisher's numbers less the market's
        self.ended = False

    def note(self, datagram):
        """Read one datagram of the sequence."""
        head = head_of(datagram)
        assert (head.channel, head.session) == self.key and not head.flags & (SNAPSHOTS | RETRANSMITTED)
        assert head.sequence == self.next and head.size == len(datagram)
        at = HEADER.size
        for number in range(head.sequence, head.sequence + head.count):
            self.facts[number] = self.apply(number, datagram, at)
            at += MESSAGE.unpack_from(datagram, at)[1]
        assert at == head.size - (16 if head.flags & SIGNED else 0)
        self.next += head.count
        self.ended = self.ended or bool(head.flags & END)

    def apply(self, number, data, at):
        kind, size, instrument_id, venue_sequence, event_ns, _, flags, state, bid_count, epoch = MESSAGE.unpack_from(
            data, at)
        body = at + MESSAGE.size
        if kind == PADDING_TYPE or kind == STATUS_TYPE and instrument_id == NOBODY:
            fields = STATUS.unpack_from(data, body) if kind == STATUS_TYPE else None
            return Fact(kind, instrument_id, flags, state, epoch, venue_sequence, event_ns, fields, number)
        book = self.books.setdefault(instrument_id, [False, 0, None, {}, {}, 0])
        fields, begin = None, number
        if kind == DEFINITION_TYPE:
            *scales, depth, shared, tick, lot, venue, symbol, name = DEFINITION.unpack_from(data, body)
            fields = (*map(text_of, (venue, symbol, name)), *scales, depth, tick, lot, shared, flags >> 5)
            known = book[2]
            if fields != known:
                if known is not None and is_other(known, fields):
                    book[0] = False
                assert fields[-1] == (0 if known is None else (known[-1] + (fields[3:5] != known[3:5])) % 8)
                book[2] = fields
                self.names[instrument_id] = fields[:2]
                self.ids[fields[:2]] = instrument_id
                self.keep(number, instrument_id, book)
            return Fact(kind, instrument_id, flags, state, epoch, venue_sequence, event_ns, fields, begin)
        assert book[2] is None or flags >> 5 == book[2][-1]
        if kind in (TRADE_TYPE, BBO_TYPE, STATUS_TYPE):
            layout = {TRADE_TYPE: TRADE, BBO_TYPE: BBO, STATUS_TYPE: STATUS}[kind]
            fields = layout.unpack_from(data, body)
            assert (state == LIVE) == book[0] and (state != LIVE or epoch == book[1]) or kind == STATUS_TYPE
            if book[0] and state != LIVE:
                book[0] = False
                self.keep(number, instrument_id, book)
        else:
            numbers = Struct(f"<{(size - MESSAGE.size) // 8}q").unpack_from(data, body)
            parts = self.parts.setdefault(instrument_id, ([], [], number))
            parts[0].extend(numbers[:2 * bid_count])
            parts[1].extend(numbers[2 * bid_count:])
            if flags & LAST:
                *fields, begin = self.parts.pop(instrument_id)
                if kind == SNAPSHOT_TYPE:
                    assert state == LIVE and epoch == book[1] + (not flags & REFRESH)
                    book[3], book[4] = {}, {}
                else:
                    assert book[0] and (state, epoch) == (LIVE, book[1])
                for side, flat in zip(book[3:5], fields):
                    for price, quantity in zip(flat[::2], flat[1::2]):
                        if quantity:
                            side[price] = quantity
                        else:
                            side.pop(price, None)
                book[0], book[1], book[5] = True, epoch, venue_sequence
                self.keep(number, instrument_id, book)
        return Fact(kind, instrument_id, flags, state, epoch, venue_sequence, event_ns, fields, begin)

    def keep(self, number, instrument_id, book):
        positions, versions = self.versions.setdefault(instrument_id, ([], []))
        bids, asks = sorted(book[3], reverse=True), sorted(book[4])
        positions.append(number + 1)
        versions.append(Version(*book[:3], ([-price for price in bids], [book[3][price] for price in bids]),
                                (asks, [book[4][price] for price in asks]), book[5]))

    def version(self, instrument_id, position):
        """What the instrument was after every message below `position`."""
        positions, versions = self.versions.get(instrument_id, ((), ()))
        at = bisect_right(positions, position)
        return versions[at - 1] if at else UNKNOWN



def text_of(field):
    return field.rstrip(b"\0").decode()


def is_other(known, definition):
    """Whether a definition, as a ledger has it, differs in more than tick and lot."""
    return known[:6] + known[8:] != definition[:6] + definition[8:]


def cut(burst):
    """Yield the datagrams of a burst."""
    at = 0
    while at < len(burst):
        size = head_of(burst[at:at + HEADER.size]).size
        yield burst[at:at + size]
        at += size
