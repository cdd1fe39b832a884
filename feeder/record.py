"""The messages of message.py as records: a sink that writes them into a ring, and what replays them into a sink.

In:   calls on RecordWriter.   Out: the same calls, by RecordReader, in another process.
Hot:  trade, bbo, increment and drain; measured by `feeder bench ring`.

    head      type side instrument | sequence | event_ns | recv_ns | received_ns                     40 bytes
    body      trade 24 | bbo 32 | levels: counts 8, then 16 each, bids and asks | define, venue: below

Numbers are the instrument's ints, inside decimals; a definition says them whole, so that a reader who missed some of
them still knows all: the scales of `define` are what the decimals grew by since that reader last heard.
`received_ns` is the stopwatch at the socket, one clock for all processes of a host.

Full ring: whatever record of an instrument is lost, the instrument is lost from there on: its records are counted and
not written, until half the ring is free; then `heal` writes its definition and STALE, and has it resynced.

A reader believes no record of an instrument before its definition: a new writer's first record, START, takes all
definitions back, and a new reader asks for them by the resync words.
"""

from functools import lru_cache
from struct import Struct, error as struct_error

from feeder.message import REASON_CODES, REASONS

START, DEFINE, SNAPSHOT, INCREMENT, TRADE, BBO, STALE, VENUE = range(1, 9)

HEAD = Struct("<HHIQqqq")                # type, side or reason or connected, instrument, sequence, times
TRADE_RECORD = Struct("<HHIQqqqQqq")
BBO_RECORD = Struct("<HHIQqqqqqqq")
LEVELS_RECORD = Struct("<HHIQqqqII")
TRADE_BODY, BBO_BODY, COUNTS = Struct("<Qqq"), Struct("<qqqq"), Struct("<II")
DEFINE_BODY = Struct("<bbbbHH")          # decimals, exponents, bytes of tick and lot text behind it
assert (HEAD.size, TRADE_RECORD.size, BBO_RECORD.size, LEVELS_RECORD.size) == (40, 64, 72, 48)
BODY = HEAD.size
assert [BODY + body.size for body in (TRADE_BODY, BBO_BODY, COUNTS)] == [64, 72, 48]
HEAL_SLOTS_PART = 2                      # lost instruments come back when one slot in so many is free
MAX_TEXT_BYTES = 64


@lru_cache(maxsize=1024)
def levels_struct(number_count):
    return Struct(f"<{number_count}q")


class RecordWriter:
    """The sink before a ring. Args: ring (claim, commit, buffer); on_lost(instrument, reason, recv_ns): have it resynced."""

    def __init__(self, ring, on_lost):
        self.ring = ring
        self.buffer = ring.buffer
        self.on_lost = on_lost
        self.received_ns = 0             # stopwatch when the bytes in work arrived, 0 between
        self.instruments = {}            # id -> instrument, of those defined
        self.lost = {}                   # id -> recv_ns of the first record that did not fit
        self.venues = {}                 # venue -> what is to be said of it, when it did not fit
        self.said = {}                   # venue -> the same, the last time
        self.active = set()              # ids that had a book, trade or quote
        self.records = 0
        self.dropped = 0                 # records not written, the ring being full
        self.losses = 0                  # times an instrument was lost

    def start(self):
        """Say that a new writer begins; return False if there is no room."""
        return self.write_head(START, 0, 0, 0, 0)

    # -- the sink --------------------------------------------------------------------------------------------

    def define(self, instrument, price_scale, quantity_scale):
        self.instruments[instrument.instrument_id] = instrument
        self.write_definition(instrument)

    def snapshot(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        self.write_levels(SNAPSHOT, instrument, sequence, event_ns, recv_ns, bids, asks)

    def increment(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        self.write_levels(INCREMENT, instrument, sequence, event_ns, recv_ns, bids, asks)

    def write_levels(self, kind, instrument, sequence, event_ns, recv_ns, bids, asks):
        number = instrument.instrument_id
        count = len(bids) + len(asks)
        at = None if number in self.lost else self.ring.claim(48 + 8 * count)
        if at is None:
            return self.lose(number, recv_ns)
        try:
            LEVELS_RECORD.pack_into(self.buffer, at, kind, 0, number, sequence, event_ns, recv_ns, self.received_ns,
                                    len(bids), len(asks))
            levels_struct(count).pack_into(self.buffer, at + 48, *bids, *asks)
        except struct_error:
            return self.on_lost(instrument, "range", recv_ns)
        self.ring.commit()
        self.records += 1
        self.active.add(number)

    def trade(self, instrument, sequence, event_ns, recv_ns, trade_id, price, quantity, side):
        number = instrument.instrument_id
        at = None if number in self.lost else self.ring.claim(64)
        if at is None:
            return self.lose(number, recv_ns)
        TRADE_RECORD.pack_into(self.buffer, at, TRADE, side, number, sequence, event_ns, recv_ns, self.received_ns,
                               trade_id, price, quantity)
        self.ring.commit()
        self.records += 1
        self.active.add(number)

    def bbo(self, instrument, sequence, event_ns, recv_ns, bid_price, bid_quantity, ask_price, ask_quantity):
        number = instrument.instrument_id
        at = None if number in self.lost else self.ring.claim(72)
        if at is None:
            return self.lose(number, recv_ns)
        BBO_RECORD.pack_into(self.buffer, at, BBO, 0, number, sequence, event_ns, recv_ns, self.received_ns,
                             bid_price, bid_quantity, ask_price, ask_quantity)
        self.ring.commit()
        self.records += 1
        self.active.add(number)

    def stale(self, instrument, reason, recv_ns):
        number = instrument.instrument_id
        if number in self.lost or not self.write_head(STALE, REASON_CODES[reason], number, 0, recv_ns):
            self.lose(number, recv_ns)

    def venue_status(self, venue, connected, reason, recv_ns):
        self.said[venue] = self.venues[venue] = connected, reason, recv_ns
        self.tell_venues()

    def repeat_venues(self):
        """Say again what was said of each venue: the reader is a new one."""
        self.venues.update(self.said)
        self.tell_venues()

    def seen(self, instrument):
        """Return True if it had data."""
        return instrument.instrument_id in self.active

    def flush(self):
        """Nothing waits here: each record is committed by itself."""

    # -- room ------------------------------------------------------------------------------------------------

    def lose(self, number, recv_ns):
        """A record could not be written, perhaps not the first one of this instrument."""
        self.dropped += 1
        if number not in self.lost:
            self.losses += 1
            self.lost[number] = recv_ns

    def heal(self):
        """Where there is room again, have the lost instruments start over. The wiring calls it now and then."""
        self.tell_venues()
        if not self.lost or self.ring.free_slots() * HEAL_SLOTS_PART < self.ring.slot_count:
            return
        for number, recv_ns in list(self.lost.items()):
            instrument = self.instruments[number]
            if not (self.put_definition(instrument)
                    and self.write_head(STALE, REASON_CODES["ring_full"], number, 0, recv_ns)):
                return                   # both again, the next time
            del self.lost[number]
            self.on_lost(instrument, "ring_full", recv_ns)

    # -- the rarer records -----------------------------------------------------------------------------------

    def write_head(self, kind, extra, number, sequence, recv_ns, body=b""):
        at = self.ring.claim(BODY + len(body))
        if at is None:
            return False
        HEAD.pack_into(self.buffer, at, kind, extra, number, sequence, 0, recv_ns, self.received_ns)
        self.buffer[at + BODY:at + BODY + len(body)] = body
        self.ring.commit()
        self.records += 1
        return True

    def write_definition(self, instrument):
        number = instrument.instrument_id
        if number in self.lost or not self.put_definition(instrument):
            self.lose(number, 0)

    def put_definition(self, instrument):
        tick, lot = ((text or "").encode()[:MAX_TEXT_BYTES] for text in (instrument.tick, instrument.lot))
        body = DEFINE_BODY.pack(instrument.price_decimals, instrument.quantity_decimals, instrument.price_exponent,
                                instrument.quantity_exponent, len(tick), len(lot)) + tick + lot
        return self.write_head(DEFINE, int(instrument.may_cross), instrument.instrument_id, 0, 0, body)

    def tell_venues(self):
        for venue, (connected, reason, recv_ns) in list(self.venues.items()):
            if not self.write_head(VENUE, int(connected), REASON_CODES[reason], 0, recv_ns, venue.encode()):
                self.dropped += 1
                return
            del self.venues[venue]


class RecordReader:
    """Replays a ring's records into `sink`, which also has `start_over(instrument, reason, recv_ns)`.

    Args: ring; sink; instruments: {id: the reader's own Instrument}, of those that this ring carries;
    on_venue(venue, connected, reason, recv_ns).
    """

    def __init__(self, ring, sink, instruments, on_venue):
        self.ring = ring
        self.buffer, self.longs = ring.buffer, ring.longs
        self.sink = sink
        self.instruments = instruments
        self.on_venue = on_venue
        self.known = {}                  # id -> instrument, of those defined by the present writer
        self.records = 0
        self.unknown = 0                 # records before their definition: not believed
        self.starts = 0
        self.faults = 0
        self.last_fault = ""

    def drain(self, limit=256):
        """Replay at most so many records; return how many there were.

        Raises: RingError, struct.error, LookupError, ValueError on what no writer writes; begin_again() is the cure.
        """
        found = self.ring.read(limit)
        if not found:
            return 0
        buffer, sink, known = self.buffer, self.sink, self.known
        for at, size in found:
            kind, extra, number, sequence, event_ns, recv_ns, received_ns = HEAD.unpack_from(buffer, at)
            instrument = known.get(number)
            if received_ns and not sink.received_ns:
                sink.received_ns = received_ns           # of the oldest that is not sent yet
            if instrument is None or kind == DEFINE or kind == VENUE or kind == START:
                self.rare(kind, extra, number, recv_ns, at, size)
            elif kind == BBO:
                sink.bbo(instrument, sequence, event_ns, recv_ns, *BBO_BODY.unpack_from(buffer, at + 40))
            elif kind == TRADE:
                sink.trade(instrument, sequence, event_ns, recv_ns, *TRADE_BODY.unpack_from(buffer, at + 40), extra)
            elif kind == STALE:
                sink.stale(instrument, REASONS[extra], recv_ns)
            elif kind == INCREMENT or kind == SNAPSHOT:
                bid_count, ask_count = COUNTS.unpack_from(buffer, at + 40)
                if size != 48 + 8 * (bid_count + ask_count):
                    raise ValueError(f"levels record of {size} bytes for {bid_count} and {ask_count} numbers")
                first = at + 48 >> 3
                middle = first + bid_count
                apply = sink.increment if kind == INCREMENT else sink.snapshot
                apply(instrument, sequence, event_ns, recv_ns, self.longs[first:middle].tolist(),
                      self.longs[middle:middle + ask_count].tolist())
            else:
                raise ValueError(f"record of type {kind}")
        self.ring.release()
        self.records += len(found)
        return len(found)

    def rare(self, kind, extra, number, recv_ns, at, size):
        if kind == DEFINE:
            self.define(number, at, bool(extra))
        elif kind == VENUE:
            self.on_venue(bytes(self.buffer[at + BODY:at + size]).decode(), bool(extra), REASONS[number], recv_ns)
        elif kind == START:
            self.starts += 1
            self.writer_gone(recv_ns)
        else:
            self.unknown += 1

    def define(self, number, at, may_cross):
        price_decimals, quantity_decimals, price_exponent, quantity_exponent, tick_bytes, lot_bytes = (
            DEFINE_BODY.unpack_from(self.buffer, at + BODY))
        text = bytes(self.buffer[at + BODY + DEFINE_BODY.size:][:tick_bytes + lot_bytes]).decode()
        instrument = self.instruments[number]
        is_new = number not in self.known
        scales = [1 if is_new else 10 ** grown if grown >= 0 else 0 for grown in (
            price_decimals - instrument.price_decimals, quantity_decimals - instrument.quantity_decimals)]
        instrument.price_decimals, instrument.quantity_decimals = price_decimals, quantity_decimals
        instrument.price_exponent, instrument.quantity_exponent = price_exponent, quantity_exponent
        instrument.rescale()
        instrument.may_cross = may_cross
        instrument.tick, instrument.lot = text[:tick_bytes] or None, text[tick_bytes:] or None
        self.known[number] = instrument
        self.sink.define(instrument, *scales)

    def writer_gone(self, recv_ns):
        """What came from the writer is not kept up to date any more: nothing of it is live, nothing of it is used."""
        for instrument in self.instruments.values():
            self.sink.start_over(instrument, "disconnect", recv_ns)
        self.known.clear()

    def begin_again(self, recv_ns, fault=""):
        """Leave out what is in the ring and have the writer start all over; at the start, and where a record is broken."""
        if fault:
            self.faults += 1
            self.last_fault = fault
        self.writer_gone(recv_ns)
        self.ring.skip()
        self.ring.ask(self.instruments, REASON_CODES["start"])
