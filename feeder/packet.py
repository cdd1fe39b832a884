"""Packets on the wire, version 1: one datagram is a header and whole messages. docs/protocol.md draws it.

In:   plain ints, already at wire exponents.   Out: datagrams, and back.
Hot:  Encoder.trade, bbo, increment; measured by `feeder bench packet` and `pipeline`.

    packet   magic  version flags channel | session | sequence | send_ns | count bytes reserved |  40 bytes
    message  type bytes instrument | venue_sequence | event_ns | recv_ns | flags state bids epoch  40 bytes
    body     definition 112 | levels 16 each, bids then asks | trade 32 | bbo 32 | status 64 | padding | round 16
    trailer  16, of a signed packet: seal.py makes and verifies it

Little-endian, every message a multiple of 8 bytes, so that a C program can cast it. `sequence` numbers
messages, not packets (MoldUDP64's idea): a packet without messages is a heartbeat and states the next one.

The encoder writes into one buffer, made once; what does not fit sends what is there first. An event may
span messages and packets; its last message carries LAST and readers apply nothing before they have it.

In a burst full packets may wait for the next ones, to leave with them in one call: UDP_SEGMENT (net/udp.py), which
wants all but the last of them equally long. What is free at the end of a packet becomes a PADDING message.

    | full packet | full packet | packet being filled ...  |
    0                           start         used         limit

The snapshot loop (LoopEncoder) is packets of the same make on a port of their own, outside the sequence: their `sequence`
says which message of the channel comes next after what they tell.

Not here: sockets, and clocks (the caller gives `clock_ns`).
"""

from collections import namedtuple
from functools import lru_cache
from struct import Struct, error as struct_error

from feeder.errors import FeederError, PacketError
from feeder.fixed import WIRE_DECIMALS, rescale
from feeder.instrument import SYMBOL_BYTES, VENUE_BYTES
from feeder.message import BUY, SELL, STATE_NAMES

MAGIC = 0x31524446            # "FDR1" as bytes on the wire
VERSION = 1

PACKET = Struct("<IBBHQQqHHI")
LOOP = Struct("<I")
PACKET_REST = Struct("<QqHH")                     # of a header, what differs from packet to packet: sequence to bytes
FLAGS_AT, REST_AT, LOOP_AT = 5, 16, 36
TRAILER_BYTES = 16
MESSAGE = Struct("<HHIQqqBBHI")
DEFINITION_BODY = Struct(f"<bbHB3xqq{VENUE_BYTES}s{SYMBOL_BYTES}s{SYMBOL_BYTES}s")
STATUS_BODY = Struct(f"<HBBI{VENUE_BYTES}s32s")
ORDER_BOOK_ITEM = Struct("<qq")
TRADE_ITEM = Struct("<QqqB7x")
BBO_BODY = Struct("<qqqq")
ROUND_BODY = Struct("<IIQ")
TRADE_MESSAGE = Struct("<HHIQqqBBHIQqqB7x")       # header and body in one store
BBO_MESSAGE = Struct("<HHIQqqBBHIqqqq")
assert PACKET.size == MESSAGE.size == 40 and DEFINITION_BODY.size == 112 and STATUS_BODY.size == 64
assert ORDER_BOOK_ITEM.size == 16 and TRADE_ITEM.size == BBO_BODY.size == 32
assert TRADE_MESSAGE.size == BBO_MESSAGE.size == 72

DEFINITION, SNAPSHOT, INCREMENT, TRADE, BBO, STATUS, PADDING, ROUND = 1, 2, 3, 4, 5, 6, 7, 8
TYPE_NAMES = {1: "definition", 2: "snapshot", 3: "increment", 4: "trade", 5: "bbo", 6: "status", 7: "padding",
              8: "round"}

LAST, FIRST, REFRESH = 1, 2, 4   # message flags: ends an event; begins a snapshot; repeats for late joiners
EDITION_SHIFT = 5             # above them: which definition of the instrument its numbers are of, modulo EDITIONS
EDITIONS = 8
# Packet flags: nothing but the next sequence; the session is over; of the snapshot loop; sent again on request; trailer.
HEARTBEAT, END, SNAPSHOTS, RETRANSMITTED, SIGNED = 1, 2, 4, 8, 16
SHARED_BOOK, SHARED_TRADE, SHARED_BBO = 1, 2, 4    # in a definition: that venue_sequence is the same on every connection

ALL_INSTRUMENTS = 0xFFFFFFFF  # instrument id of a status that concerns a whole venue
MAX_PACKET_BYTES = 65_507     # IPv4 has no room for more; the sizes in headers are 16 bits too
DEFAULT_PACKET_BYTES = 1472   # Ethernet's 1,500 less IPv4 and UDP headers
BODY_OFFSET = MESSAGE.size
SHARING = 4                   # packets that have to share a wait to make it worth while, see Encoder.full

Packet = namedtuple("Packet", "channel flags session sequence send_ns message_count messages loop", defaults=(0,))
Definition = namedtuple("Definition", "instrument_id venue symbol name price_exponent quantity_exponent depth tick lot"
                        " shared edition", defaults=(0, 0))
Book = namedtuple("Book", "type instrument_id venue_sequence event_ns recv_ns flags state epoch bids asks")
Trade = namedtuple("Trade", "instrument_id venue_sequence event_ns recv_ns state epoch item edition", defaults=(0,))
Bbo = namedtuple("Bbo", "instrument_id venue_sequence event_ns recv_ns state epoch bid ask edition", defaults=(0,))
Status = namedtuple("Status", "instrument_id venue_sequence recv_ns state epoch reason connected venue text edition",
                    defaults=(0,))
Padding = namedtuple("Padding", "instrument_id")
Round = namedtuple("Round", "instrument_id number instrument_count")


class OrderBookItem(namedtuple("OrderBookItem", "price quantity")):
    """One level, 16 bytes: price, quantity; scaled ints at the instrument's exponents."""

    __slots__ = ()

    @classmethod
    def from_scaled(cls, price, quantity, price_decimals=WIRE_DECIMALS, quantity_decimals=WIRE_DECIMALS):
        """Build from ints at other decimals; 8 is the likely case. Raises PrecisionError, RangeError."""
        return cls(rescale(price, price_decimals), rescale(quantity, quantity_decimals))

    def pack(self):
        return ORDER_BOOK_ITEM.pack(*self)

    @classmethod
    def unpack(cls, data, offset=0):
        return cls._make(ORDER_BOOK_ITEM.unpack_from(data, offset))


class TradeItem(namedtuple("TradeItem", "trade_id price quantity side")):
    """One trade, 32 bytes: id, price, quantity, aggressor's side (1 bought, 2 sold), 7 bytes padding."""

    __slots__ = ()

    @classmethod
    def from_scaled(cls, trade_id, price, quantity, side,
                    price_decimals=WIRE_DECIMALS, quantity_decimals=WIRE_DECIMALS):
        """Build from ints at other decimals; 8 is the likely case. Raises PrecisionError, RangeError."""
        return cls(trade_id, rescale(price, price_decimals), rescale(quantity, quantity_decimals), side)

    def pack(self):
        return TRADE_ITEM.pack(*self)

    @classmethod
    def unpack(cls, data, offset=0):
        return cls._make(TRADE_ITEM.unpack_from(data, offset))


@lru_cache(maxsize=1024)
def levels_struct(number_count):
    return Struct(f"<{number_count}q")


@lru_cache(maxsize=1024)
def levels_message(number_count):
    """Header and levels in one store."""
    return Struct(f"{MESSAGE.format}{number_count}q")


class Encoder:
    """Fills datagrams and hands each full one to `emit(memoryview)`, valid during that call only.

    Args: session, ns since the epoch at start, unique per run; channel 0..65535; clock_ns() for send_ns.
    After gather() a call of `emit` may bring several, one behind the other. seal (seal.py) signs each packet.
    """

    flags = 0                         # of every packet
    is_dense = False                  # split events begin in the packet that is there, instead of one of their own

    def __init__(self, session, channel, emit, clock_ns, packet_bytes=DEFAULT_PACKET_BYTES, seal=None):
        if not 256 <= packet_bytes <= MAX_PACKET_BYTES:
            raise FeederError(f"packet_bytes is {packet_bytes}, must be 256 to {MAX_PACKET_BYTES}")
        self.session = session
        self.channel = channel
        self.emit = emit
        self.clock_ns = clock_ns
        self.packet_bytes = largest(packet_bytes)
        self.sign = seal.sign if seal is not None else None
        self.trailer = TRAILER_BYTES if seal is not None else 0
        self.most = self.packet_bytes - self.trailer      # bytes of header and messages
        if seal is not None:
            self.flags |= SIGNED
        self.start = 0                # of the packet being filled; before it lie full ones
        self.count = 0                # of its messages
        self.sequence = 1             # of the first of them
        self.packets = 0
        self.used = PACKET.size
        self.full_ns = self.held_ns = 0
        self.gather(1, 0)

    def gather(self, burst, hold_ns):
        """From now on, let `emit` have up to `burst` packets at once; all but the last have largest(packet_bytes).

        A full packet then waits for others `hold_ns` at most, and never beyond flush(). burst 1: none waits.
        """
        self.flush()
        self.burst = burst
        self.hold_ns = hold_ns
        self.buffer = bytearray(burst * self.packet_bytes)
        self.view = memoryview(self.buffer)
        for start in range(0, len(self.buffer), self.packet_bytes):
            PACKET.pack_into(self.buffer, start, MAGIC, VERSION, self.flags, self.channel, self.session, 0, 0, 0, 0, 0)
        self.used = PACKET.size
        self.room = self.limit = self.most

    def flush(self, flags=0):
        """Send what is buffered; nothing to do when there is no message and no flag."""
        count = self.count
        start, used = self.start, self.used
        if count or flags:
            PACKET_REST.pack_into(self.buffer, start + REST_AT, self.sequence, self.clock_ns(), count,
                                  used - start + self.trailer)
            self.sequence += count
            self.count = 0
            self.packets += 1
            if flags:
                self.buffer[start + FLAGS_AT] = self.flags | flags
            if self.sign is not None:
                used = self.close(start, used)
        elif start:
            used = start              # full ones wait, and the message that came next was refused
        else:
            return
        if start:
            self.start = 0
            self.limit = self.room
        self.used = PACKET.size
        self.emit(self.view[:used])
        if flags:
            self.buffer[start + FLAGS_AT] = self.flags

    def close(self, start, used):
        """Write the trailer; return where the packet ends."""
        stop = used + TRAILER_BYTES
        self.view[used:stop] = self.sign(self.view[start:used])
        return stop

    def full(self, may_pad=True):
        """End the packet, since the next message goes into another one: it leaves, or waits for those that follow it.

        It waits only where packets come so fast that SHARING of them do so together: elsewhere the call that is
        saved is little beside the work between two of them, and the wait is long.
        """
        if self.burst == 1:
            return self.flush()
        start, stop = self.start, self.start + self.most
        free = stop - self.used
        now_ns = self.clock_ns()
        is_fast = (now_ns - self.full_ns) * SHARING <= self.hold_ns
        self.full_ns = now_ns
        self.room = self.most - MESSAGE.size if is_fast else self.most    # what is left takes a PADDING
        if not start:
            self.held_ns = now_ns
        if (not is_fast or start + self.packet_bytes == len(self.buffer) or now_ns - self.held_ns > self.hold_ns
                or free and (free < MESSAGE.size or not may_pad)):
            self.flush()              # with those that waited: the last one may be shorter
            self.limit = self.room
            return
        if free:
            MESSAGE.pack_into(self.buffer, self.used, PADDING, free, ALL_INSTRUMENTS, 0, 0, 0, LAST, 0, 0, 0)
            self.view[self.used + MESSAGE.size:stop] = bytes(free - MESSAGE.size)
            self.count += 1
        PACKET_REST.pack_into(self.buffer, start + REST_AT, self.sequence, now_ns, self.count, self.packet_bytes)
        self.sequence += self.count
        self.count = 0
        self.packets += 1
        if self.sign is not None:
            stop = self.close(start, stop)
        self.start = stop
        self.used = stop + PACKET.size
        self.limit = stop + self.room

    def beyond(self, size):
        """Return the offset of a message that reaches beyond `limit`: here if it fills the packet, else in the next."""
        if self.count and self.used + size != self.start + self.most:
            self.full()
        return self.used

    def heartbeat(self):
        self.flush()
        self.flush(HEARTBEAT)

    def end(self):
        """Send what is left, then the packet that ends the session."""
        self.flush()
        self.flush(END)

    def claim(self, size):
        """Return the offset of `size` free bytes, sending what is buffered where there are too few; commit() takes them."""
        return self.used if self.used + size <= self.limit else self.beyond(size)

    def commit(self, size):
        self.used += size
        self.count += 1

    def trade(self, instrument_id, state, epoch, sequence, event_ns, recv_ns, trade_id, price, quantity, side,
              flags=LAST):
        at = self.used
        if at + 72 > self.limit:
            at = self.beyond(72)
        TRADE_MESSAGE.pack_into(self.buffer, at, TRADE, 72, instrument_id, sequence, event_ns, recv_ns,
                                flags, state, 0, epoch, trade_id, price, quantity, side)
        self.used = at + 72
        self.count += 1

    def bbo(self, instrument_id, state, epoch, sequence, event_ns, recv_ns,
            bid_price, bid_quantity, ask_price, ask_quantity, flags=LAST):
        at = self.used
        if at + 72 > self.limit:
            at = self.beyond(72)
        BBO_MESSAGE.pack_into(self.buffer, at, BBO, 72, instrument_id, sequence, event_ns, recv_ns,
                              flags, state, 0, epoch, bid_price, bid_quantity, ask_price, ask_quantity)
        self.used = at + 72
        self.count += 1

    def levels(self, kind, instrument_id, state, epoch, sequence, event_ns, recv_ns, bids, asks, more_flags=0):
        """Write one event of flat wire ints [price, quantity, ...]; split over packets where it must be."""
        numbers = len(bids) + len(asks)
        size = 40 + 8 * numbers
        at = self.used
        if at + size > self.limit:
            if PACKET.size + size > self.most or self.is_dense and numbers:
                return self.split_levels(kind, instrument_id, state, epoch, sequence, event_ns, recv_ns,
                                         bids, asks, more_flags)
            at = self.beyond(size)
        flags = more_flags | (LAST | FIRST if kind == SNAPSHOT else LAST)
        levels_message(numbers).pack_into(self.buffer, at, kind, size, instrument_id, sequence, event_ns, recv_ns,
                                          flags, state, len(bids) >> 1, epoch, *bids, *asks)
        self.used = at + size
        self.count += 1

    def split_levels(self, kind, instrument_id, state, epoch, sequence, event_ns, recv_ns, bids, asks, more_flags):
        """Write as many levels as a packet holds, and so on: bids, then asks, which may share a part."""
        numbers = len(bids) + len(asks)
        first = 0
        while first < numbers:
            if self.count and (first or not self.is_dense or self.used + 56 > self.limit):
                self.full(may_pad=not first)       # nothing may stand between the parts
            at = self.used
            stop = first + (self.start + self.most - at - MESSAGE.size) // 16 * 2
            flags = more_flags | (LAST if stop >= numbers else 0)
            if kind == SNAPSHOT and not first:
                flags |= FIRST
            some_bids = bids[first:stop]
            some_asks = asks[max(0, first - len(bids)):max(0, stop - len(bids))]
            first = stop
            size = 40 + 8 * (len(some_bids) + len(some_asks))
            MESSAGE.pack_into(self.buffer, at, kind, size, instrument_id, sequence, event_ns, recv_ns,
                              flags, state, len(some_bids) >> 1, epoch)
            levels_struct((size - 40) // 8).pack_into(self.buffer, at + 40, *some_bids, *some_asks)
            self.commit(size)

    def definition(self, instrument, tick=0, lot=0, flags=LAST):
        size = MESSAGE.size + DEFINITION_BODY.size
        at = self.claim(size)
        MESSAGE.pack_into(self.buffer, at, DEFINITION, size, instrument.instrument_id, 0, 0, 0, flags, 0, 0, 0)
        DEFINITION_BODY.pack_into(
            self.buffer, at + BODY_OFFSET, instrument.price_exponent, instrument.quantity_exponent, instrument.depth,
            instrument.shared, tick, lot, field(instrument.venue, VENUE_BYTES), field(instrument.symbol, SYMBOL_BYTES),
            field(instrument.name, SYMBOL_BYTES))
        self.commit(size)

    def status(self, instrument_id, state, epoch, sequence, recv_ns, reason, connected=1, venue="", text="",
               flags=LAST):
        size = MESSAGE.size + STATUS_BODY.size
        at = self.claim(size)
        MESSAGE.pack_into(self.buffer, at, STATUS, size, instrument_id, sequence, 0, recv_ns, flags, state, 0, epoch)
        STATUS_BODY.pack_into(self.buffer, at + BODY_OFFSET, reason, connected, 0, 0,
                              field(venue, VENUE_BYTES), field(text, 32))
        self.commit(size)


class LoopEncoder(Encoder):
    """Packets of the snapshot loop: `position()` is the sequence of the channel's next message, `number` counts them."""

    flags = SNAPSHOTS
    is_dense = True

    def __init__(self, session, channel, emit, clock_ns, packet_bytes, seal, position):
        super().__init__(session, channel, emit, clock_ns, packet_bytes, seal)
        self.position = position

    def flush(self, flags=0):
        if self.count:
            self.sequence = self.position()
            LOOP.pack_into(self.buffer, LOOP_AT, self.packets + 1 & 0xFFFFFFFF)
            super().flush()

    def round(self, number, instrument_count):
        """Say that a round begins, and over how many instruments it goes."""
        size = MESSAGE.size + ROUND_BODY.size
        at = self.claim(size)
        MESSAGE.pack_into(self.buffer, at, ROUND, size, ALL_INSTRUMENTS, 0, 0, 0, LAST, 0, 0, 0)
        ROUND_BODY.pack_into(self.buffer, at + BODY_OFFSET, number & 0xFFFFFFFF, instrument_count, 0)
        self.commit(size)


def largest(packet_bytes):
    """Return the size of a packet that is full to the brim: all messages are multiples of 8 bytes."""
    return packet_bytes & ~7


def field(text, size):
    """UTF-8, cut at a whole character, padded with zeros by struct. Identity fields are checked by config."""
    data = text.encode()
    return data if len(data) <= size else data[:size].decode("utf-8", "ignore").encode()


def unfield(data):
    return data.rstrip(b"\0").decode("utf-8", "replace")


def decode(datagram):
    """Return the Packet in a datagram (any buffer); `messages` is a list, unknown types are left out, a trailer is not read.

    Raises PacketError: not ours, another version, sizes that do not add up, states or sides that do not exist.
    """
    size = len(datagram)
    if size < PACKET.size:
        raise PacketError(f"datagram of {size} bytes, a packet header has {PACKET.size}")
    magic, version, flags, channel, session, sequence, send_ns, count, packet_bytes, loop = PACKET.unpack_from(datagram)
    if magic != MAGIC:
        raise PacketError(f"magic is {magic:#010x}, expected {MAGIC:#010x}")
    if version != VERSION:
        raise PacketError(f"packet version {version}, this reads version {VERSION}")
    if packet_bytes != size:
        raise PacketError(f"datagram of {size} bytes states {packet_bytes}")
    if flags & SIGNED:
        size -= TRAILER_BYTES
        if size < PACKET.size:
            raise PacketError(f"signed packet of {packet_bytes} bytes has no room for its trailer")
    if flags & SNAPSHOTS and (flags & (HEARTBEAT | END) or not count):
        raise PacketError(f"packet of the snapshot loop with {count} messages and flags {flags:#04x}")
    messages = []
    at = PACKET.size
    try:
        for _ in range(count):
            kind, length = MESSAGE.unpack_from(datagram, at)[:2]
            if length < MESSAGE.size or length & 7 or at + length > size:
                raise PacketError(f"message of {length} bytes at offset {at} of a packet of {size}")
            read = READERS.get(kind)
            if read is not None:
                messages.append(read(datagram, at, length))
            at += length
    except struct_error as error:
        raise PacketError(f"message at offset {at} of a packet of {size} bytes: {error}") from None
    if at != size:
        raise PacketError(f"{count} messages end at offset {at} of a packet of {size} bytes")
    return Packet(channel, flags, session, sequence, send_ns, count, messages, loop)


def exact(kind, length, wanted):
    if length != MESSAGE.size + wanted:
        raise PacketError(f"{TYPE_NAMES[kind]} of {length} bytes, expected {MESSAGE.size + wanted}")


def known_state(state):
    if state not in STATE_NAMES:
        raise PacketError(f"book state {state} does not exist")
    return state


def read_levels(data, at, length):
    (kind, _, instrument_id, venue_sequence, event_ns, recv_ns, flags, state, bid_count, epoch
     ) = MESSAGE.unpack_from(data, at)
    numbers = (length - MESSAGE.size) >> 3
    if numbers & 1 or 2 * bid_count > numbers:
        raise PacketError(f"{TYPE_NAMES[kind]} with {bid_count} bids in {numbers} numbers")
    values = levels_struct(numbers).unpack_from(data, at + BODY_OFFSET)
    if numbers and min(values[1::2]) < 0:
        raise PacketError(f"{TYPE_NAMES[kind]} with a negative quantity")
    return Book(kind, instrument_id, venue_sequence, event_ns, recv_ns, flags, known_state(state), epoch,
                values[:2 * bid_count], values[2 * bid_count:])


def read_trade(data, at, length):
    exact(TRADE, length, TRADE_ITEM.size)
    _, _, instrument_id, venue_sequence, event_ns, recv_ns, flags, state, _, epoch = MESSAGE.unpack_from(data, at)
    item = TradeItem.unpack(data, at + BODY_OFFSET)
    if item.side not in (BUY, SELL):
        raise PacketError(f"trade with side {item.side}")
    return Trade(instrument_id, venue_sequence, event_ns, recv_ns, known_state(state), epoch, item, flags >> EDITION_SHIFT)


def read_bbo(data, at, length):
    exact(BBO, length, BBO_BODY.size)
    _, _, instrument_id, venue_sequence, event_ns, recv_ns, flags, state, _, epoch = MESSAGE.unpack_from(data, at)
    bid_price, bid_quantity, ask_price, ask_quantity = BBO_BODY.unpack_from(data, at + BODY_OFFSET)
    return Bbo(instrument_id, venue_sequence, event_ns, recv_ns, known_state(state), epoch,
               OrderBookItem(bid_price, bid_quantity), OrderBookItem(ask_price, ask_quantity),
               flags >> EDITION_SHIFT)


def read_definition(data, at, length):
    exact(DEFINITION, length, DEFINITION_BODY.size)
    _, _, instrument_id, _, _, _, flags, _, _, _ = MESSAGE.unpack_from(data, at)
    price_exponent, quantity_exponent, depth, shared, tick, lot, venue, symbol, name = DEFINITION_BODY.unpack_from(
        data, at + BODY_OFFSET)
    if not (-18 <= price_exponent <= 0 and -18 <= quantity_exponent <= 0):
        raise PacketError(f"definition with exponents {price_exponent}, {quantity_exponent}")
    return Definition(instrument_id, unfield(venue), unfield(symbol), unfield(name),
                      price_exponent, quantity_exponent, depth, tick, lot, shared, flags >> EDITION_SHIFT)


def read_status(data, at, length):
    exact(STATUS, length, STATUS_BODY.size)
    _, _, instrument_id, venue_sequence, _, recv_ns, flags, state, _, epoch = MESSAGE.unpack_from(data, at)
    reason, connected, _, _, venue, text = STATUS_BODY.unpack_from(data, at + BODY_OFFSET)
    if instrument_id != ALL_INSTRUMENTS:
        known_state(state)
    return Status(instrument_id, venue_sequence, recv_ns, state, epoch, reason, connected,
                  unfield(venue), unfield(text), flags >> EDITION_SHIFT)


def read_padding(data, at, length):
    return Padding(MESSAGE.unpack_from(data, at)[2])


def read_round(data, at, length):
    exact(ROUND, length, ROUND_BODY.size)
    number, instrument_count, _ = ROUND_BODY.unpack_from(data, at + BODY_OFFSET)
    return Round(MESSAGE.unpack_from(data, at)[2], number, instrument_count)


READERS = {DEFINITION: read_definition, SNAPSHOT: read_levels, INCREMENT: read_levels,
           TRADE: read_trade, BBO: read_bbo, STATUS: read_status, PADDING: read_padding, ROUND: read_round}
