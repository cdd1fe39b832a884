"""One instrument's order book: every level the venue gave, exact.

In:   snapshots and increments as flat lists of scaled ints.   Out: what changed in the published window.
Hot:  Bids.apply, Asks.apply, Side.settle; measured by `feeder bench book` and `pipeline`.

Each side is a hash table of all levels and one sorted array of keys, `near`, for the part round the touch.
A key is the price for bids and its negative for asks, so the best is always last:

    levels   {price: quantity}                                        all of them
    near     [ k  k  k  k  k  k  k  k  k  k  k  k  k  k  k  k  k ]     those at `edge` or better
               edge                 floor ... published window   best

In the recordings two thirds to nine tenths of all changes lie below the edge; they cost a comparison and one
operation of the table. Only the others touch the sorted array. `near` is cut to KEEP times the depth when it has
grown to GROW times, and filled again from the table (rare, O(n log n)) when it holds less than the window.

`floor` is the key of the depth-th best level, the worst published one; with fewer levels than that it is NO_KEY
and every change is published. A receiver who applies the published changes and cuts each side to `depth` has
exactly our first `depth` levels: changes at or above the old floor are all told, and levels that came into the
window because others left it are told with them.

Why no tick ladder in arrays, as first designed: on five recordings it cost 250 to 950 ns a level, this 138 to
269, a bare dict 74 to 149 (docs/experiments.md).
"""

from bisect import bisect_left, insort

DEFAULT_DEPTH = 20
MAX_LEVELS = 50_000              # a side; a book with more is hostile or broken, see `overfull`
KEEP, GROW = 4, 12               # times the depth: near after a cut, near before one
NO_KEY = -(1 << 80)              # below every key


class Side:
    """What bids and asks share; they differ in the sign of a key."""

    __slots__ = ("depth", "levels", "near", "edge", "floor", "most", "refills")
    sign = None

    def __init__(self, depth=DEFAULT_DEPTH):
        self.depth = depth or MAX_LEVELS
        self.most = GROW * self.depth
        self.levels = {}
        self.refills = 0
        self.fill()

    # -- reading ---------------------------------------------------------------------------------------------

    def __len__(self):
        return len(self.levels)

    def best(self):
        """Return the best price, None when the side is empty."""
        return self.sign * self.near[-1] if self.near else None

    def top(self, depth=None):
        """Return the best `depth` levels (all: None), best first, as a flat list [price, quantity, ...]."""
        near, levels, sign = self.near, self.levels, self.sign
        if depth is None or depth > len(near):
            prices = sorted(levels, reverse=sign > 0)[:depth]
        else:
            prices = [sign * key for key in near[:-depth - 1:-1]]
        flat = [None] * (2 * len(prices))
        flat[::2] = prices
        flat[1::2] = [levels[price] for price in prices]
        return flat

    @property
    def overfull(self):
        return len(self.levels) > MAX_LEVELS

    # -- changing --------------------------------------------------------------------------------------------

    def replace(self, flat):
        """Make the levels [price, quantity, ...] the whole side."""
        self.levels = {price: quantity for price, quantity in pairs(flat) if quantity}
        self.fill()

    def rescale(self, price_scale, quantity_scale):
        """Multiply everything: the instrument's decimals grew."""
        self.levels = {price * price_scale: quantity * quantity_scale for price, quantity in self.levels.items()}
        self.fill()

    def fill(self):
        """Make `near` anew from the table."""
        self.refills += 1
        keys = sorted(self.levels) if self.sign > 0 else [-price for price in sorted(self.levels, reverse=True)]
        self.near = keys[-KEEP * self.depth:]
        self.set_edge()
        self.floor = self.near[-self.depth] if len(self.near) >= self.depth else NO_KEY

    def set_edge(self):
        """State what `near` covers; all there is, as long as nothing was cut off."""
        key = self.near[0] if len(self.near) < len(self.levels) else NO_KEY
        self.edge = self.sign * key

    def settle(self, published):
        """After changes: bound `near`, move the floor, add the levels that came into the window to `published`."""
        near, levels, sign, depth, floor = self.near, self.levels, self.sign, self.depth, self.floor
        if len(near) < depth and self.edge != sign * NO_KEY:
            self.fill()
            near = self.near
        elif len(near) > self.most:
            del near[:-KEEP * depth]
            self.set_edge()
        if len(near) < depth:
            self.floor = NO_KEY
            first = 0
        else:
            self.floor = near[-depth]
            first = len(near) - depth
        if self.floor < floor:
            for key in near[first:bisect_left(near, floor)]:
                published += sign * key, levels[sign * key]

    def check(self):
        """Assert every invariant; for tests."""
        assert all(quantity > 0 for quantity in self.levels.values()), "a level without quantity"
        keys = sorted(self.sign * price for price in self.levels)
        covered = [key for key in keys if key >= self.sign * self.edge]
        assert self.near == covered, "near is not what the edge says"
        assert len(self.near) >= min(self.depth, len(keys)), "near is shorter than the window"
        assert self.floor == (keys[-self.depth] if len(keys) >= self.depth else NO_KEY), "floor"


class Bids(Side):
    __slots__ = ()
    sign = 1

    def apply(self, flat):
        """Set levels [price, quantity, ...], quantity 0 removes; return what a receiver of the window must know.

        Removing an unknown level is normal at every venue.
        """
        levels, near, edge, floor = self.levels, self.near, self.edge, self.floor
        published = []
        numbers = iter(flat)
        for price, quantity in zip(numbers, numbers):
            if price < edge:
                if quantity:
                    levels[price] = quantity
                elif price in levels:
                    del levels[price]
                continue
            if quantity:
                if price not in levels:
                    insort(near, price)
                levels[price] = quantity
            elif price in levels:
                del levels[price]
                del near[bisect_left(near, price)]
            if price >= floor:
                published += price, quantity
        if published or len(near) > self.most:
            self.settle(published)
        return published


class Asks(Side):
    """`apply` is written twice, mirrored: a sign inside the loop would cost 20 ns a level."""

    __slots__ = ()
    sign = -1

    def apply(self, flat):
        levels, near, edge, floor = self.levels, self.near, self.edge, -self.floor
        published = []
        numbers = iter(flat)
        for price, quantity in zip(numbers, numbers):
            if price > edge:
                if quantity:
                    levels[price] = quantity
                elif price in levels:
                    del levels[price]
                continue
            if quantity:
                if price not in levels:
                    insort(near, -price)
                levels[price] = quantity
            elif price in levels:
                del levels[price]
                del near[bisect_left(near, -price)]
            if price <= floor:
                published += price, quantity
        if published or len(near) > self.most:
            self.settle(published)
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

    def snapshot(self, bids, asks):
        self.bids.replace(bids)
        self.asks.replace(asks)

    def increment(self, bids, asks):
        """Apply one event; return (bids, asks) to publish, either may be empty."""
        return self.bids.apply(bids), self.asks.apply(asks)

    @property
    def crossed(self):
        """True when the best bid is above the best ask; equal prices are locked, which is legal."""
        bids, asks = self.bids.near, self.asks.near
        return bool(bids and asks) and bids[-1] + asks[-1] > 0       # an ask's key is minus its price

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
