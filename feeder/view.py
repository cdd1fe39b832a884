"""One instrument as a listener sees it: its book, its state, whether they are to be trusted.

A book is *in step* when its snapshot came complete, the sender called it LIVE at this epoch, and nothing was lost
since; only then is it LIVE here. A gap moves the stream's `era` on, and every book of an older era is out of step: no
walk over the books. Parts of an event wait in Pending until LAST; readers never see half. Silence and the end of a
session put a stream's books out of sight of LIVE, but not out of step.

Hot:  SideView.change, View.note.
Not here: which messages apply, and when (receiver.py).
"""

from bisect import bisect_left
from collections import deque

from feeder.message import LIVE, REASONS, STALE, SYNCING
from feeder.packet import FIRST, SNAPSHOT

MAX_LEVELS = 100_000              # a side, and an unfinished event
OUT_OF_STEP = -1                  # an era that no stream is ever in


class View:
    """One instrument in one stream."""

    __slots__ = ("stream", "instrument_id", "definition", "era", "has_book", "bids", "asks", "pending", "kept",
                 "usable_from", "edition", "defined_at",
                 "sent_state", "sent_reason", "epoch", "events", "refreshes", "trades", "bbos", "crossed",
                 "last_venue_sequence", "last_trade", "bbo")

    def __init__(self, stream, instrument_id):
        self.stream = stream
        self.instrument_id = instrument_id
        self.definition = None
        self.sent_state = SYNCING
        self.sent_reason = 0
        self.epoch = 0
        self.events = self.refreshes = self.trades = self.bbos = self.crossed = 0
        self.last_venue_sequence = 0
        self.last_trade = self.bbo = None
        self.kept = deque()            # Kept, INCREMENTs while out of step
        self.usable_from = 0           # a book of the loop that is older lacks something that is not kept
        self.edition = 0               # that the newest message told; the definition's, where there is one
        self.defined_at = 0            # the definition holds before this number
        self.clear()

    def clear(self):
        self.bids, self.asks = SideView(-1), SideView(1)
        self.has_book = False
        self.pending = None
        self.era = OUT_OF_STEP

    def define(self, definition):
        """Take a new definition; where more than tick and lot changed, what is kept is void until the next snapshot.

        Returns True where it is.
        """
        known, self.definition = self.definition, definition
        if known is not None and known._replace(tick=0, lot=0) == definition._replace(tick=0, lot=0):
            return False
        self.clear()
        if known is not None:
            self.last_trade = self.bbo = None
        return True

    def leave_step(self, usable_from):
        self.era = OUT_OF_STEP
        self.usable_from = max(self.usable_from, usable_from)

    def note(self, state, epoch, sequence):
        """Every message tells the state; anything but LIVE at the present epoch ends the trust in our book."""
        if state != LIVE:
            self.leave_step(sequence + 1)
        elif epoch != self.epoch and self.in_step:
            self.leave_step(sequence)
        elif self.sent_state != LIVE:
            self.era = OUT_OF_STEP
        self.epoch = epoch
        self.sent_state = state

    @property
    def in_step(self):
        """True when our book is the publisher's, at its last event."""
        return self.era == self.stream.era

    @property
    def state(self):
        """What may be shown: LIVE only where the book is proven to be."""
        if self.in_step and not self.stream.ended and not self.stream.silent:
            return LIVE
        if self.sent_state != LIVE:
            return self.sent_state
        return STALE if self.has_book else SYNCING

    @property
    def reason(self):
        """Why the book is not live, in one word or two; "none" where it is."""
        if self.stream.ended:
            return "session ended"
        if self.stream.silent:
            return "silent"
        if self.in_step:
            return "none"
        if self.definition is None:
            return "no definition"
        if self.sent_state != LIVE:
            return REASONS[self.sent_reason] if self.sent_reason < len(REASONS) else str(self.sent_reason)
        return "gap" if self.has_book else "no snapshot"

    @property
    def venue(self):
        return self.definition.venue if self.definition else ""

    @property
    def symbol(self):
        return self.definition.symbol if self.definition else ""

    @property
    def label(self):
        return f"{self.venue}:{self.symbol}" if self.definition else f"#{self.instrument_id}"


class SideView:
    """One side as published, best first: the venue's best levels without a hole, `depth` of them or more.

    `keys` are prices, negated for bids, so that ascending is best first on both sides.
    """

    __slots__ = ("sign", "keys", "quantities")

    def __init__(self, sign):
        self.sign = sign
        self.keys = []
        self.quantities = []

    def change(self, levels):
        """Apply one event's [price, quantity, ...], quantity 0 removes."""
        sign, keys, quantities = self.sign, self.keys, self.quantities
        numbers = iter(levels)
        for price, quantity in zip(numbers, numbers):
            key = sign * price
            at = bisect_left(keys, key)
            known = at < len(keys) and keys[at] == key
            if known:
                if quantity:
                    quantities[at] = quantity
                else:
                    del keys[at], quantities[at]
            elif quantity:
                keys.insert(at, key)
                quantities.insert(at, quantity)

    def __eq__(self, other):
        return self.keys == other.keys and self.quantities == other.quantities

    def __len__(self):
        return len(self.keys)

    def levels(self, most=None):
        """Return [(price, quantity), ...], best first."""
        sign = self.sign
        return [(sign * key, quantity) for key, quantity in zip(self.keys[:most], self.quantities)]

    def flat(self):
        """Return (price, quantity, price, quantity, ...), best first, as in a message."""
        return tuple(number for level in self.levels() for number in level)


def side_views(message):
    """Return the bids and asks of a SNAPSHOT."""
    bids, asks = SideView(-1), SideView(1)
    bids.change(message.bids)
    asks.change(message.asks)
    return bids, asks


class Pending:
    """The parts of an event so far."""

    __slots__ = ("type", "instrument_id", "epoch", "era", "first", "bids", "asks")

    def __init__(self, message, era, first):
        self.type = message.type
        self.instrument_id = message.instrument_id
        self.epoch = message.epoch
        self.era = era
        self.first = first             # number of the first part
        self.bids, self.asks = [], []

    def add(self, message, era):
        """Add a part; return False if it does not belong to this event, or there are too many levels."""
        if (self.type, self.epoch, self.era) != (message.type, message.epoch, era):
            return False
        self.bids += message.bids
        self.asks += message.asks
        return len(self.bids) + len(self.asks) <= 4 * MAX_LEVELS

    def whole(self, last):
        """Return the event as one Book."""
        flags = last.flags | FIRST if self.type == SNAPSHOT else last.flags
        return last._replace(flags=flags, bids=tuple(self.bids), asks=tuple(self.asks))
