"""A venue's book as its own messages make it, for venues whose messages do not say all that changed.

In:   flat levels [price, quantity, ...] of scaled ints, with the venue's digits where a checksum needs them.
Out:  flat levels that a book which knows nothing of the venue can apply: every removal is said.

    image        each message is the whole book (Upbit, Bithumb)     -> what differs from the one before
    change       levels beyond the subscribed depth fall off (Kraken) -> the change, and a removal for each of them
    top          the best levels with their digits                    -> for a checksum

A Mirror belongs to one connection (or, of images, to the venue) and one instrument; it counts events itself, with
the session's number above the count, for venues that number nothing (`sequence`; contract.follows_by_one links them).
Whoever has one verifies the checksum before handing the event on, and drops the mirror when it fails: what was never
verified is never published, and there is no second way for a book to be wrong.

A side is a table {key: (quantity, digits)} and the sorted list of its keys; a key is the price for bids and its
negative for asks, so the best is always last.
"""

from bisect import bisect_left, insort

from feeder.venue.contract import OWN_SEQUENCE_BITS

MAX_LEVELS = 50_000            # a side; book.py gives up beyond it, and so would the venue


class MirrorSide:
    __slots__ = ("sign", "levels", "keys")

    def __init__(self, sign):
        self.sign = sign
        self.levels = {}             # key -> (quantity, digits)
        self.keys = []               # ascending

    def replace(self, flat, digits):
        sign = self.sign
        self.levels = {sign * price: (quantity, digits[number] if digits else None)
                       for number, (price, quantity) in enumerate(zip(flat[::2], flat[1::2])) if quantity}
        self.keys = sorted(self.levels)

    def change(self, flat, digits):
        levels, keys, sign = self.levels, self.keys, self.sign
        for number, (price, quantity) in enumerate(zip(flat[::2], flat[1::2])):
            key = sign * price
            if quantity:
                if key not in levels:
                    insort(keys, key)
                levels[key] = quantity, digits[number] if digits else None
            elif key in levels:
                del levels[key]
                del keys[bisect_left(keys, key)]

    def cut(self, depth):
        """Drop what lies beyond `depth`; return the removals as flat levels."""
        fallen = self.keys[:-depth]
        removals = []
        for key in fallen:
            del self.levels[key]
            removals += self.sign * key, 0
        del self.keys[:len(fallen)]
        return removals

    def flat(self):
        return [number for key in reversed(self.keys) for number in (self.sign * key, self.levels[key][0])]

    def top(self, count):
        """Return the digits of the best `count` levels, best first."""
        return [self.levels[key][1] for key in self.keys[:-count - 1:-1]]

    def rescale(self, price_scale, quantity_scale):
        self.levels = {key * price_scale: (quantity * quantity_scale, digits)
                       for key, (quantity, digits) in self.levels.items()}
        self.keys = [key * price_scale for key in self.keys]


class Mirror:
    """Args: instrument; session_number (contract.Session.number, 0 without); depth a side, 0 for no limit."""

    __slots__ = ("instrument", "depth", "bids", "asks", "sequence", "is_known", "event_ns", "price_decimals",
                 "quantity_decimals")

    def __init__(self, instrument, session_number=0, depth=0):
        self.instrument = instrument
        self.depth = depth
        self.bids, self.asks = MirrorSide(1), MirrorSide(-1)
        self.sequence = session_number << OWN_SEQUENCE_BITS
        self.is_known = False        # there was a snapshot; False again after void()
        self.event_ns = 0            # of the newest image
        self.price_decimals, self.quantity_decimals = instrument.price_decimals, instrument.quantity_decimals

    def fit(self):
        """Follow the instrument's decimals; call it after the levels of a message were scaled, before they come in."""
        instrument = self.instrument
        price = instrument.price_decimals - self.price_decimals
        quantity = instrument.quantity_decimals - self.quantity_decimals
        if price < 0 or quantity < 0:                     # they shrank: what we hold cannot be said (the book is stale)
            self.void()
            self.bids, self.asks = MirrorSide(1), MirrorSide(-1)
        elif price or quantity:
            self.bids.rescale(10**price, 10**quantity)
            self.asks.rescale(10**price, 10**quantity)
        self.price_decimals, self.quantity_decimals = instrument.price_decimals, instrument.quantity_decimals

    def void(self):
        """Nothing is known any more until the next snapshot or image."""
        self.is_known = False

    @property
    def overfull(self):
        return max(len(self.bids.keys), len(self.asks.keys)) > MAX_LEVELS

    def snapshot(self, bids, asks, bid_digits=None, ask_digits=None):
        """Replace all; return (bids, asks) for `sink.snapshot`."""
        self.fit()
        self.bids.replace(bids, bid_digits)
        self.asks.replace(asks, ask_digits)
        if self.depth:
            self.bids.cut(self.depth)
            self.asks.cut(self.depth)
        self.is_known = True
        self.sequence += 1
        return self.bids.flat(), self.asks.flat()

    def change(self, bids, asks, bid_digits=None, ask_digits=None):
        """Apply rows in order; return (bids, asks) for `sink.depth`: the rows, and what fell off the end."""
        self.fit()
        self.sequence += 1
        self.bids.change(bids, bid_digits)
        self.asks.change(asks, ask_digits)
        if not self.depth:
            return bids, asks
        return bids + self.bids.cut(self.depth), asks + self.asks.cut(self.depth)

    def image(self, bids, asks):
        """Take the whole book; return (bids, asks) that lead there from the one before, for `sink.depth`.

        Only after a snapshot(): before, or after void(), there is nothing to lead from.
        """
        self.fit()
        self.sequence += 1
        changes = []
        for side, flat in ((self.bids, bids), (self.asks, asks)):
            before = side.levels
            side.replace(flat, None)
            after, sign = side.levels, side.sign
            changed = []
            for key in before:
                if key not in after:
                    changed += sign * key, 0
            for key, level in after.items():
                if before.get(key) != level:
                    changed += sign * key, level[0]
            changes.append(changed)
        return changes
