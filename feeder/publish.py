"""Books and packets: the last stage before the socket.

In:   gapless messages (message.py) from recovery, or from a ring.   Out: datagrams through Encoders, one a channel.
Hot:  increment, trade, bbo; measured by `feeder bench pipeline`.

Keeps one Entry an instrument: its book, state and epoch. Nothing leaves as LIVE before it is synced, and an
event whose book comes out crossed is not published at all: the instrument goes STALE and is resynced.

An instrument is on one channel, always the same (instrument.channel_index); its id is unique over all of them.

Who joins late, or lost something, becomes live within a round, in which all instruments are repeated: by a SnapshotLoop
for each channel, or in the channels themselves, by `refresh()`. The wiring calls either on a timer.
"""

from feeder.book import Book
from feeder.clock import MILLISECOND, SECOND
from feeder.errors import NumberError
from feeder.fixed import parse
from feeder.instrument import channel_index
from feeder.message import LIVE, REASON_CODES, STALE, SYNCING
from feeder.packet import (ALL_INSTRUMENTS, DEFINITION_BODY, EDITION_SHIFT, EDITIONS, INCREMENT, LAST, MESSAGE,
                           ORDER_BOOK_ITEM, REFRESH, SNAPSHOT, STATUS_BODY)

MAX_EPOCH = 2**32 - 1
MAX_AT_ONCE = 4                      # packets of a snapshot loop; one that ends a book may follow
MAX_BEHIND_NS = 10 * MILLISECOND     # a snapshot loop that was kept waiting longer does not make up for it


class Entry:
    """One instrument as it is published, by an Encoder."""

    __slots__ = ("instrument", "encoder", "book", "state", "epoch", "reason", "sequence", "events", "trades", "bbos",
                 "crossed", "exponents", "sizes", "recv_ns", "edition", "flags")

    def __init__(self, instrument, encoder):
        self.instrument = instrument
        self.encoder = encoder
        self.book = Book(instrument.depth)
        self.state = SYNCING
        self.epoch = 0
        self.reason = "start"
        self.sequence = 0
        self.events = self.trades = self.bbos = self.crossed = 0
        self.recv_ns = 0
        self.exponents = self.sizes = None          # of the definition that was sent
        self.edition = 0              # message flags: which definition its numbers are of
        self.flags = LAST             # and LAST

    def next_edition(self):
        """From here on the numbers are of another scale."""
        self.edition = self.edition + (1 << EDITION_SHIFT) & (EDITIONS - 1) << EDITION_SHIFT
        self.flags = LAST | self.edition


class Publisher:
    """Args: encoders: one for each channel, or a single one; want_resync(instrument, reason, recv_ns): the one way up, to
    recovery.
    """

    def __init__(self, encoders, want_resync):
        self.encoders = list(encoders) if isinstance(encoders, (list, tuple)) else [encoders]
        self.want_resync = want_resync
        self.entries = []             # by instrument id
        self.carried = [[] for _ in self.encoders]       # the entries of each channel
        self.turn = 0
        if len(self.encoders) == 1:
            self.flush = self.encoders[0].flush
        self.received_ns = 0          # stopwatch when the bytes in work arrived, 0 between; for latencies
        self.on_fault = None          # on_fault(instrument, reason, text): for the log

    def flush(self):
        """Send what is buffered."""
        for encoder in self.encoders:
            encoder.flush()

    # -- the sink --------------------------------------------------------------------------------------------

    def define(self, instrument, price_scale, quantity_scale):
        while len(self.entries) <= instrument.instrument_id:
            self.entries.append(None)
        entry = self.entries[instrument.instrument_id]
        if entry is None:
            index = channel_index(instrument.venue, instrument.symbol, len(self.encoders))
            entry = self.entries[instrument.instrument_id] = Entry(instrument, self.encoders[index])
            self.carried[index].append(entry)
        elif not price_scale * quantity_scale:
            entry.book.snapshot([], [])
        elif price_scale != 1 or quantity_scale != 1:
            if all(instrument.fits(side, price_scale, quantity_scale) for side in entry.book.top()):
                entry.book.rescale(price_scale, quantity_scale)
            else:                                 # what we hold cannot be said with decimals so many
                entry.book.snapshot([], [])
                self.give_up(entry, "range", entry.recv_ns)
        if entry.state == LIVE and entry.book.crossed and not instrument.may_cross:      # an auction has ended so
            self.crossed(entry, entry.sequence, entry.recv_ns)
        sizes = instrument.tick, instrument.lot
        exponents = instrument.price_exponent, instrument.quantity_exponent
        if exponents == entry.exponents:
            if sizes != entry.sizes:              # known now, or other ones: no matter to books
                entry.sizes = sizes
                send_definition(entry, entry.encoder)
            return                                # decimals inside grew, outside nothing changes
        first, entry.exponents, entry.sizes = entry.exponents is None, exponents, sizes
        if not first and entry.state == LIVE:     # receivers' ints have another meaning from here on
            self.stale(instrument, "precision", entry.recv_ns)
            entry.next_edition()
            send_definition(entry, entry.encoder)
            self.live(entry, entry.sequence, 0, entry.recv_ns)
        else:
            if not first:
                entry.next_edition()
            send_definition(entry, entry.encoder)

    def snapshot(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        entry = self.entries[instrument.instrument_id]
        entry.events += 1
        entry.book.snapshot(bids, asks)
        if entry.book.overfull:
            return self.give_up(entry, "too_many_levels", recv_ns)
        if entry.book.crossed and not instrument.may_cross:
            return self.crossed(entry, sequence, recv_ns)
        self.live(entry, sequence, event_ns, recv_ns)

    def live(self, entry, sequence, event_ns, recv_ns):
        entry.state = LIVE
        entry.reason = "none"
        entry.epoch = entry.epoch + 1 if entry.epoch < MAX_EPOCH else 1
        entry.sequence = sequence
        entry.recv_ns = recv_ns
        send_book(entry, entry.encoder, event_ns, 0)

    def increment(self, instrument, sequence, event_ns, recv_ns, bids, asks):
        entry = self.entries[instrument.instrument_id]
        if entry.state != LIVE:
            return                                # crossed a moment ago; the resync is under way
        entry.events += 1
        entry.sequence = sequence
        entry.recv_ns = recv_ns
        bid_side, ask_side = entry.book.bids, entry.book.asks
        bids, asks = bid_side.apply(bids), ask_side.apply(asks)
        if bid_side.overfull or ask_side.overfull:
            return self.give_up(entry, "too_many_levels", recv_ns)
        if not bids and not asks:
            return                                # all of it lay below the published window
        if bid_side.best > ask_side.best and not instrument.may_cross:
            return self.crossed(entry, sequence, recv_ns)
        if instrument.is_scaled:
            outside(instrument, bids)
            outside(instrument, asks)
        entry.encoder.levels(INCREMENT, instrument.instrument_id, LIVE, entry.epoch, sequence, event_ns, recv_ns,
                             bids, asks, entry.edition)

    def trade(self, instrument, sequence, event_ns, recv_ns, trade_id, price, quantity, side):
        entry = self.entries[instrument.instrument_id]
        entry.trades += 1
        if instrument.is_scaled:
            price *= instrument.price_factor
            quantity *= instrument.quantity_factor
        entry.encoder.trade(instrument.instrument_id, entry.state, entry.epoch, sequence, event_ns, recv_ns, trade_id,
                            price, quantity, side, entry.flags)

    def bbo(self, instrument, sequence, event_ns, recv_ns, bid_price, bid_quantity, ask_price, ask_quantity):
        entry = self.entries[instrument.instrument_id]
        entry.bbos += 1
        if instrument.is_scaled:
            price, quantity = instrument.price_factor, instrument.quantity_factor
            bid_price, ask_price = bid_price * price, ask_price * price
            bid_quantity, ask_quantity = bid_quantity * quantity, ask_quantity * quantity
        entry.encoder.bbo(instrument.instrument_id, entry.state, entry.epoch, sequence, event_ns, recv_ns,
                          bid_price, bid_quantity, ask_price, ask_quantity, entry.flags)

    def stale(self, instrument, reason, recv_ns):
        entry = self.entries[instrument.instrument_id]
        if entry.state == LIVE:
            entry.state = STALE
            entry.reason = reason
            send_status(entry, entry.encoder, recv_ns)

    def start_over(self, instrument, reason, recv_ns):
        """Nothing that was known is kept up to date any more: a ring's writer is gone."""
        self.stale(instrument, reason, recv_ns)
        self.entries[instrument.instrument_id].book.snapshot([], [])

    def seen(self, instrument):
        """Return True if it had data."""
        entry = self.entries[instrument.instrument_id]
        return bool(entry.events or entry.trades or entry.bbos)

    # -- faults ----------------------------------------------------------------------------------------------

    def crossed(self, entry, sequence, recv_ns):
        entry.crossed += 1
        if self.on_fault is not None:
            book = entry.book
            self.on_fault(entry.instrument, "crossed",
                          f"bid {book.bids.best} above ask {book.asks.best} at venue sequence {sequence}")
        self.give_up(entry, "crossed", recv_ns)

    def give_up(self, entry, reason, recv_ns):
        self.stale(entry.instrument, reason, recv_ns)
        self.want_resync(entry.instrument, reason, recv_ns)

    # -- what is sent besides the events ---------------------------------------------------------------------

    def venue_status(self, venue, connected, reason, recv_ns):
        """Tell receivers that a venue's connection came or went."""
        for encoder in self.encoders:
            encoder.status(ALL_INSTRUMENTS, 0, 0, 0, recv_ns, REASON_CODES[reason], int(connected), venue, reason)

    def refresh(self):
        """Repeat the next instrument of the round in its channel."""
        if not self.entries:
            return
        self.turn = (self.turn + 1) % len(self.entries)
        entry = self.entries[self.turn]
        repeat(entry, entry.encoder)


class SnapshotLoop:
    """The instruments of a channel, round after round, in packets outside its sequence.

    Args:   entries: one of `Publisher.carried`; encoder: the LoopEncoder beside the channel's.

    What a packet tells holds at one moment: all of it is written, and leaves, in one call.
    """

    def __init__(self, entries, encoder, packets_per_second):
        self.entries = entries
        self.encoder = encoder
        self.interval_ns = SECOND // packets_per_second
        self.turn = 0                 # of `entries`: who comes next
        self.due_ns = None            # when the next packet is
        self.rounds = 0               # that are over
        self.round_ns = 0             # how long the last one took
        self.began_ns = None

    def run(self, now_ns):
        """Send what is due; to be called every `interval_ns` or oftener. `now_ns`: of a steady clock."""
        if self.due_ns is None:
            self.due_ns = now_ns
        self.due_ns = max(self.due_ns, now_ns - MAX_BEHIND_NS)
        while self.entries and self.due_ns <= now_ns:
            if not self.turn:
                self.round_ns = self.due_ns - self.began_ns if self.began_ns is not None else 0
                self.began_ns = self.due_ns
            self.due_ns += self.send() * self.interval_ns

    def send(self):
        """Send as many instruments as fill a packet or, where books are larger than that, a few; return how many packets."""
        encoder, entries = self.encoder, self.entries
        before = encoder.packets
        if not self.turn:
            encoder.round(self.rounds + 1, len(entries))
        while True:
            repeat(entries[self.turn], encoder)
            self.turn += 1
            if self.turn == len(entries):
                self.turn = 0
                self.rounds += 1
                break
            if encoder.used + repeated_bytes(entries[self.turn]) > encoder.limit and (
                    encoder.used > encoder.limit // 2 or encoder.packets - before >= MAX_AT_ONCE):
                break
        encoder.flush()
        return encoder.packets - before


# An entry's messages to an encoder: its own, or that of the snapshot loop.

def send_book(entry, encoder, event_ns, flags):
    bids, asks = entry.book.published()
    outside(entry.instrument, bids)
    outside(entry.instrument, asks)
    encoder.levels(SNAPSHOT, entry.instrument.instrument_id, entry.state, entry.epoch, entry.sequence, event_ns,
                   entry.recv_ns, bids, asks, flags | entry.edition)


def send_definition(entry, encoder):
    instrument = entry.instrument
    tick, lot = (scaled_size(text, exponent) for text, exponent in (
        (instrument.tick, instrument.price_exponent), (instrument.lot, instrument.quantity_exponent)))
    encoder.definition(instrument, tick, lot, entry.flags)


def send_status(entry, encoder, recv_ns):
    encoder.status(entry.instrument.instrument_id, entry.state, entry.epoch, entry.sequence, recv_ns,
                   REASON_CODES[entry.reason], text=entry.reason, flags=entry.flags)


def repeat(entry, encoder):
    """Write an instrument's definition, then its book or, without one, its state."""
    send_definition(entry, encoder)
    if entry.state == LIVE:
        send_book(entry, encoder, 0, REFRESH)
    else:
        send_status(entry, encoder, entry.recv_ns)


def repeated_bytes(entry):
    """Return how much `repeat` writes."""
    book = entry.book
    body = (ORDER_BOOK_ITEM.size * (len(book.bids.window) + len(book.asks.window)) if entry.state == LIVE
            else STATUS_BODY.size)
    return 2 * MESSAGE.size + DEFINITION_BODY.size + body


def scaled_size(text, exponent):
    """Return a tick or lot at wire exponents; 0 is "not known"."""
    try:
        return parse(text, -exponent) if text else 0
    except NumberError:
        return 0


def outside(instrument, flat):
    """Scale flat [price, quantity, ...] from inside decimals to wire exponents, in place."""
    factor = instrument.price_factor
    if factor != 1:
        flat[::2] = [price * factor for price in flat[::2]]
    factor = instrument.quantity_factor
    if factor != 1:
        flat[1::2] = [quantity * factor for quantity in flat[1::2]]
