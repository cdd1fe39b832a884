"""One instrument's order book: every level the venue gave, exact, in arrays made beforehand.

In:   snapshots and increments as flat lists of scaled ints.   Out: what changed in the published window.
Hot:  Bids.apply, Asks.apply; measured by `feeder bench book` and `pipeline`.

Each side is a dense *ladder* around the touch: cell n holds the quantity at the price n ticks from `origin`,
one byte in `occupied` says whether it is not zero, and the best level is always the highest index.

    index     0 ............ floor ........ best ....... span
    cells     q q 0 q 0 0 q  [ published window ]  0 0 0 0       array of int64, 8 bytes a tick
    occupied  1 1 0 1 0 0 1  1 1 0 1 1 1 1 1 0 1   0 0 0 0       scanned by find, rfind, count

What lies below or above the ladder is in the dict `outside`; when the touch leaves the ladder, or the window
reaches below it, the side is laid out anew around the touch (`lay_out`, rare, O(levels)).

`floor` is the index of the depth-th best level, the worst published one; with fewer levels than that it is
NO_FLOOR and every change is published. A receiver who applies the published changes and cuts each side to
`depth` has exactly our first `depth` levels: changes at or above the old floor are all told, and levels that
came into the window because others left it are told with them.

Why a ladder: a sorted list costs a bisect and an insert for each of the 95 % of changes that add or remove a
level; an index costs neither, and machine words spare the cache misses of int objects (docs/experiments.md).
"""

from array import array

DEFAULT_DEPTH = 20
MIN_SPAN, MAX_SPAN = 1024, 32_768     # ticks a side; 9 bytes each
MAX_LEVELS = 50_000                   # a side; a book with more is hostile or broken, see `overfull`
COVER_LEVELS = 500                    # a new layout holds at least so many levels where MAX_SPAN allows
NO_FLOOR = -(1 << 80)                 # below every index


class Side:
    """What bids and asks share; they differ in how a price becomes an index."""

    __slots__ = ("depth", "origin", "span", "cells", "occupied", "outside", "floor", "layouts")

    def __init__(self, depth=DEFAULT_DEPTH, span=MIN_SPAN):
        self.depth = depth or MAX_LEVELS
        self.origin = 0
        self.outside = {}
        self.floor = NO_FLOOR
        self.layouts = 0
        self.allocate(span)

    def allocate(self, span):
        self.span = span
        self.cells = array("q", bytes(8 * span))
        self.occupied = bytearray(span)

    # -- reading ---------------------------------------------------------------------------------------------

    def __len__(self):
        return self.occupied.count(1) + len(self.outside)

    def best(self):
        """Return the best price, None when the side is empty."""
        at = self.occupied.rfind(1)
        if at >= 0:
            return self.price(at)          # settle() sees to it that nothing outside is better
        return self.best_of(self.outside) if self.outside else None

    def top(self, depth=None):
        """Return the best `depth` levels (all: None), best first, as a flat list [price, quantity, ...]."""
        flat = []
        cells, occupied, price = self.cells, self.occupied, self.price
        wanted = len(self) if depth is None else min(depth, len(self))
        at = occupied.rfind(1)
        while at >= 0 and len(flat) < 2 * wanted:
            flat += price(at), cells[at]
            at = occupied.rfind(1, 0, at)
        if len(flat) < 2 * wanted:
            for level in self.ordered(self.outside)[:wanted - len(flat) // 2]:
                flat += level, self.outside[level]
        return flat

    # -- changing --------------------------------------------------------------------------------------------

    def clear(self):
        self.outside.clear()
        self.allocate(self.span)
        self.floor = NO_FLOOR

    def replace(self, levels):
        """Make `levels` the whole side."""
        quantities = iter(levels)
        self.lay_out({price: quantity for price, quantity in zip(quantities, quantities) if quantity})

    def rescale(self, price_scale, quantity_scale):
        """Multiply everything: the instrument's decimals grew."""
        flat = self.top()
        self.lay_out({price * price_scale: quantity * quantity_scale for price, quantity in zip(flat[::2], flat[1::2])})

    def settle(self, published, raised):
        """Move the floor after a change and add the levels that came into the window to `published`."""
        floor, depth = self.floor, self.depth
        if raised or floor < 0:
            if raised or floor != NO_FLOOR or len(self) > depth:
                self.widen(published)
            return
        occupied, cells, price = self.occupied, self.cells, self.price
        surplus = occupied.count(1, floor) - depth
        if surplus >= 0:
            floor = occupied.find(1, floor)       # the level at the floor may be gone
        while surplus > 0:
            floor = occupied.find(1, floor + 1)
            surplus -= 1
        while surplus < 0:
            floor = occupied.rfind(1, 0, floor)
            if floor < 0:
                return self.widen(published)
            published += price(floor), cells[floor]
            surplus += 1
        self.floor = floor

    def widen(self, published):
        """The rare part of settle: lay out anew, then tell all of the new window that the old one lacked."""
        told = set(published[::2])
        worst = None if self.floor == NO_FLOOR else self.price(self.floor)
        self.lay_out(dict(pairs(self.top())))
        if worst is None:
            return                            # all changes were told, and so were all levels before them
        for price, quantity in pairs(self.top(self.depth)):
            if price not in told and self.better(worst, price):
                published += price, quantity

    def lay_out(self, levels):
        """Place the ladder so that the touch has a quarter of it above and the rest below, and fill it."""
        self.layouts += 1
        self.outside = {}
        self.floor = NO_FLOOR
        prices = self.ordered(levels)
        if not prices:
            return self.allocate(MIN_SPAN)
        best = prices[0]
        reach = abs(best - prices[min(len(prices), COVER_LEVELS) - 1])
        if len(prices) >= self.depth:
            reach = max(reach, 2 * abs(best - prices[self.depth - 1]))
        span = MIN_SPAN
        while span < MAX_SPAN and span * 3 // 4 <= reach:
            span *= 2
        self.allocate(span)
        self.place(best, span * 3 // 4)
        cells, occupied, index, outside = self.cells, self.occupied, self.index, self.outside
        for price in prices:
            at = index(price)
            if 0 <= at < span:
                cells[at] = levels[price]
                occupied[at] = 1
            else:
                outside[price] = levels[price]
        if len(prices) > self.depth:
            self.floor = index(prices[self.depth - 1])

    @property
    def overfull(self):
        return len(self.outside) > MAX_LEVELS

    def check(self):
        """Assert every invariant; for tests and `--check`."""
        assert len(self.cells) == len(self.occupied) == self.span
        for at in range(self.span):
            assert self.occupied[at] == (self.cells[at] > 0), f"cell {at}"
        assert all(quantity > 0 for quantity in self.outside.values())
        assert not any(0 <= self.index(price) < self.span for price in self.outside)
        flat = self.top()
        assert flat[::2] == self.ordered(set(flat[::2])), "levels out of order"
        assert len(flat) == 2 * len(self)
        if len(self) > self.depth:
            assert self.floor == self.index(flat[2 * self.depth - 2]), "floor"
        else:
            assert self.floor == NO_FLOOR or len(self) == self.depth, "floor of a short side"


class Bids(Side):
    __slots__ = ()

    def index(self, price):
        return price - self.origin

    def price(self, at):
        return self.origin + at

    def place(self, best, at):
        self.origin = best - at

    best_of = staticmethod(max)

    @staticmethod
    def better(price, other):
        return price > other

    @staticmethod
    def ordered(prices):
        return sorted(prices, reverse=True)

    def apply(self, levels):
        """Set levels [price, quantity, ...], quantity 0 removes; return what a receiver of the window must know.

        Removing an unknown level is normal at every venue.  Cost: 100 to 130 ns a level.
        """
        origin, span, floor = self.origin, self.span, self.floor
        cells, occupied, outside = self.cells, self.occupied, self.outside
        published = []
        raised = False
        numbers = iter(levels)
        for price, quantity in zip(numbers, numbers):
            at = price - origin
            if 0 <= at < span:
                cells[at] = quantity
                occupied[at] = quantity > 0
            else:
                if quantity:
                    outside[price] = quantity
                    raised |= at > 0          # better than the whole ladder
                elif price in outside:
                    del outside[price]
            if at >= floor:
                published += price, quantity
        if published:
            self.settle(published, raised)
        return published


class Asks(Side):
    """As Bids with the index mirrored; `apply` is written twice because a sign would cost 20 ns a level."""

    __slots__ = ()

    def index(self, price):
        return self.origin - price

    def price(self, at):
        return self.origin - at

    def place(self, best, at):
        self.origin = best + at

    best_of = staticmethod(min)

    @staticmethod
    def better(price, other):
        return price < other

    @staticmethod
    def ordered(prices):
        return sorted(prices)

    def apply(self, levels):
        origin, span, floor = self.origin, self.span, self.floor
        cells, occupied, outside = self.cells, self.occupied, self.outside
        published = []
        raised = False
        numbers = iter(levels)
        for price, quantity in zip(numbers, numbers):
            at = origin - price
            if 0 <= at < span:
                cells[at] = quantity
                occupied[at] = quantity > 0
            else:
                if quantity:
                    outside[price] = quantity
                    raised |= at > 0
                elif price in outside:
                    del outside[price]
            if at >= floor:
                published += price, quantity
        if published:
            self.settle(published, raised)
        return published


def pairs(flat):
    numbers = iter(flat)
    return zip(numbers, numbers)


class Book:
    """Both sides of one instrument."""

    __slots__ = ("bids", "asks")

    def __init__(self, depth=DEFAULT_DEPTH):
        self.bids = Bids(depth)
        self.asks = Asks(depth)

    def clear(self):
        self.bids.clear()
        self.asks.clear()

    def snapshot(self, bids, asks):
        self.bids.replace(bids)
        self.asks.replace(asks)

    def increment(self, bids, asks):
        """Apply one event; return (bids, asks) to publish, either may be empty."""
        return self.bids.apply(bids), self.asks.apply(asks)

    @property
    def crossed(self):
        """True when the best bid is above the best ask; equal prices are locked, which is legal."""
        bid, ask = self.bids.best(), self.asks.best()
        return bid is not None and ask is not None and bid > ask

    @property
    def overfull(self):
        return self.bids.overfull or self.asks.overfull

    def top(self, depth=None):
        return self.bids.top(depth), self.asks.top(depth)

    def rescale(self, price_scale, quantity_scale):
        self.bids.rescale(price_scale, quantity_scale)
        self.asks.rescale(price_scale, quantity_scale)

    def check(self):
        self.bids.check()
        self.asks.check()
