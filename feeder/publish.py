"""Books and packets: the last stage before the socket.

In:   gapless messages (message.py) from recovery, or from a ring.   Out: datagrams through an Encoder.
Hot:  increment, trade, bbo; measured by `feeder bench pipeline`.

Keeps one Entry an instrument: its book, state and epoch. Nothing leaves as LIVE before it is synced, and an
event whose book comes out crossed is not published at all: the instrument goes STALE and is resynced.

Publishing round: `refresh()` repeats one instrument's definition and book, so that who joins late, or lost
something, becomes live within a round (the wiring calls it on a timer).
"""

from feeder.book import Book
from feeder.errors import NumberError
from feeder.fixed import parse
from feeder.message import LIVE, REASON_CODES, STALE, SYNCING
from feeder.packet import ALL_INSTRUMENTS, INCREMENT, REFRESH, SNAPSHOT

MAX_EPOCH = 2**32 - 1


class Entry:
    """One instrument as it is published."""

    __slots__ = ("instrument", "book", "state", "epoch", "reason", "sequence", "events", "trades", "bbos", "crossed",
                 "exponents", "recv_ns")

    def __init__(self, instrument):
        self.instrument = instrument
        self.book = Book(instrument.depth)
        self.state = SYNCING
        self.epoch = 0
        self.reason = "start"
        self.sequence = 0
        self.events = self.trades = self.bbos = self.crossed = 0
        self.recv_ns = 0
        self.exponents = None


class Publisher:
    """Args: encoder; want_resync(instrument, reason, recv_ns): the one way up, to recovery."""

    def __init__(self, encoder, want_resync):
        self.encoder = encoder
        self.want_resync = want_resync
        self.entries = []
        self.turn = 0
        self.flush = encoder.flush
        self.received_ns = 0          # stopwatch when the bytes in work arrived, 0 between; for latencies
        self.on_fault = None          # on_fault(instrument, reason, text): for the log

    # -- the sink --------------------------------------------------------------------------------------------

    def define(self, instrument, price_scale, quantity_scale):
        while len(self.entries) <= instrument.instrument_id:
            self.entries.append(None)
        entry = self.entries[instrument.instrument_id]
        if entry is None:
            entry = self.entries[instrument.instrument_id] = Entry(instrument)
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
        exponents = instrument.price_exponent, instrument.quantity_exponent
        if exponents == entry.exponents:
            return                                # decimals inside grew, outside nothing changes
        first, entry.exponents = entry.exponents is None, exponents
        if not first and entry.state == LIVE:     # receivers' ints have another meaning from here on
            self.stale(instrument, "precision", entry.recv_ns)
            self.send_definition(entry)
            self.live(entry, entry.sequence, 0, entry.recv_ns)
        else:
            self.send_definition(entry)

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
        self.send_book(entry, event_ns, 0)

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
        self.encoder.levels(INCREMENT, instrument.instrument_id, LIVE, entry.epoch, sequence, event_ns, recv_ns,
                            bids, asks)

    def trade(self, instrument, sequence, event_ns, recv_ns, trade_id, price, quantity, side):
        entry = self.entries[instrument.instrument_id]
        entry.trades += 1
        if instrument.is_scaled:
            price *= instrument.price_factor
            quantity *= instrument.quantity_factor
        self.encoder.trade(instrument.instrument_id, entry.state, entry.epoch, sequence, event_ns, recv_ns, trade_id,
                           price, quantity, side)

    def bbo(self, instrument, sequence, event_ns, recv_ns, bid_price, bid_quantity, ask_price, ask_quantity):
        entry = self.entries[instrument.instrument_id]
        entry.bbos += 1
        if instrument.is_scaled:
            price, quantity = instrument.price_factor, instrument.quantity_factor
            bid_price, ask_price = bid_price * price, ask_price * price
            bid_quantity, ask_quantity = bid_quantity * quantity, ask_quantity * quantity
        self.encoder.bbo(instrument.instrument_id, entry.state, entry.epoch, sequence, event_ns, recv_ns,
                         bid_price, bid_quantity, ask_price, ask_quantity)

    def stale(self, instrument, reason, recv_ns):
        entry = self.entries[instrument.instrument_id]
        if entry.state == LIVE:
            entry.state = STALE
            entry.reason = reason
            self.send_status(entry, recv_ns)

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

    def send_book(self, entry, event_ns, flags):
        bids, asks = entry.book.published()
        outside(entry.instrument, bids)
        outside(entry.instrument, asks)
        self.encoder.levels(SNAPSHOT, entry.instrument.instrument_id, entry.state, entry.epoch, entry.sequence,
                            event_ns, entry.recv_ns, bids, asks, flags)

    def send_definition(self, entry):
        instrument = entry.instrument
        tick, lot = (scaled_size(text, exponent) for text, exponent in (
            (instrument.tick, instrument.price_exponent), (instrument.lot, instrument.quantity_exponent)))
        self.encoder.definition(instrument, tick, lot)

    def send_status(self, entry, recv_ns):
        self.encoder.status(entry.instrument.instrument_id, entry.state, entry.epoch, entry.sequence, recv_ns,
                            REASON_CODES[entry.reason], text=entry.reason)

    def venue_status(self, venue, connected, reason, recv_ns):
        """Tell receivers that a venue's connection came or went."""
        self.encoder.status(ALL_INSTRUMENTS, 0, 0, 0, recv_ns, REASON_CODES[reason], int(connected), venue, reason)

    def refresh(self):
        """Repeat the next instrument of the round: definition, then its book or, without one, its state."""
        if not self.entries:
            return
        self.turn = (self.turn + 1) % len(self.entries)
        entry = self.entries[self.turn]
        self.send_definition(entry)
        if entry.state == LIVE:
            self.send_book(entry, 0, REFRESH)
        else:
            self.send_status(entry, entry.recv_ns)


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
