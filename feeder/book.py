"""One instrument's order book: every level the venue gave, exact.

In:   snapshots and increments as flat lists of scaled ints.   Out: what changed in the published window.
Hot:  Bids.apply, Asks.apply; measured by `feeder bench book` and `pipeline`.

Each side is three hash tables {price: quantity}, apart by price. Nothing is kept sorted:

    deep                      reserve                window                       best
    ................ edge |...................| floor |..........................|
    thousands, never          RESERVE[0..1]          depth to WINDOW[1] times the depth: what receivers hold
    looked through            times the depth

A change costs two comparisons and one operation of a table. What leaves or enters the window is told as a removal
or a level, so a receiver who applies all it is told has exactly our window, and the best `depth` levels of it are
the venue's. The bounds move only when a table has grown or shrunk too far: then it is sorted, once in some twenty
events for the window, once in some hundreds for the reserve (`settle`).

Why no tick ladder in arrays, as first designed, and no sorted list: both were built, and cost 1.6 to 4 times
as much on the recordings (docs/experiments.md).
"""

DEFAULT_DEPTH = 20
MAX_LEVELS = 50_000              # a side; a book with more is hostile or broken: `overfull` until it is replaced
WINDOW = 2, 3                    # times the depth: levels after a move of the floor, and the most there may be
RESERVE = 8, 24                  # the same of the edge
FAR = 1 << 80                    # beyond every price


class Side:
    """What bids and asks share. Prices are compared after multiplying by `sign`, so that more is better."""

    __slots__ = ("depth", "window", "reserve", "deep", "floor", "edge", "best", "least", "most", "reserve_most", "moves",
                 "overfull")
    sign = None

    def __init__(self, depth=DEFAULT_DEPTH):
        self.depth = depth or MAX_LEVELS
        self.most = min(WINDOW[1] * self.depth, MAX_LEVELS)
        self.reserve_most = RESERVE[1] * self.depth
        self.moves = 0                # of the floor or the edge
        self.replace(())

    # -- reading ---------------------------------------------------------------------------------------------

    def __len__(self):
        return len(self.window) + len(self.reserve) + len(self.deep)

    def top(self, depth=None):
        """Return the best `depth` levels (all: None), best first, as a flat list [price, quantity, ...]."""
        levels = self.window
        if depth is None or depth > len(levels):
            levels = {**levels, **self.reserve, **self.deep}
        return best_first(levels, self.sign)[:None if depth is None else 2 * depth]

    def published(self):
        """Return what a receiver holds, best first."""
        return best_first(self.window, self.sign)

    # -- changing --------------------------------------------------------------------------------------------

    def replace(self, flat):
        """Make the levels [price, quantity, ...] the whole side."""
        numbers = iter(flat)
        self.window, self.reserve = {}, {}
        self.deep = {price: quantity for price, quantity in zip(numbers, numbers) if quantity}
        self.floor = self.edge = self.sign * FAR
        self.best = -self.floor
        self.least = 1
        self.settle([])

    def rescale(self, price_scale, quantity_scale):
        """Multiply everything: the instrument's decimals grew. The window stays: receivers are told nothing of this."""
        for name in ("window", "reserve", "deep"):
            setattr(self, name, {price * price_scale: quantity * quantity_scale
                                 for price, quantity in getattr(self, name).items()})
        for name in ("floor", "edge", "best"):
            bound = getattr(self, name)
            setattr(self, name, bound if abs(bound) == FAR else bound * price_scale)

    def settle(self, published):
        """Move the bounds where a table has outgrown them, and add to `published` what that changes in the window."""
        window, reserve, sign = self.window, self.reserve, self.sign
        self.overfull = len(self) > MAX_LEVELS
        if self.overfull:
            return                    # to be given up
        if len(window) > self.most:
            self.floor = self.move(window, reserve, WINDOW[0] * self.depth, published)
        elif len(window) < self.least:
            wanted = WINDOW[0] * self.depth - len(window)
            if len(reserve) < wanted and self.deep:
                self.fill_reserve()
            prices = self.worst_first(reserve)[-wanted:]
            for price in prices:
                window[price] = quantity = reserve.pop(price)
                published += price, quantity
            if reserve or self.deep:
                self.floor = prices[0]
                self.edge = self.edge if reserve else self.floor
            else:                     # all there is
                self.floor = self.edge = -sign * FAR
        if len(reserve) > self.reserve_most:
            self.edge = self.move(reserve, self.deep, RESERVE[0] * self.depth)
        self.least = self.depth if self.floor != -sign * FAR else 0
        self.best = max(window, key=sign.__mul__, default=-sign * FAR)

    def worst_first(self, prices):
        return sorted(prices, reverse=self.sign < 0)

    def move(self, table, worse, count, published=None):
        """Leave the best `count` levels in `table` and bring the others to `worse`; return the worst price left."""
        self.moves += 1
        prices = self.worst_first(table)
        for price in prices[:-count]:
            worse[price] = table.pop(price)
            if published is not None:
                published += price, 0
        return prices[-count]

    def fill_reserve(self):
        """Bring the best of the deep levels to the reserve. Cost: 60 us of 2,000 levels, 500 where all must be sorted."""
        self.moves += 1
        deep, sign, wanted = self.deep, self.sign, RESERVE[0] * self.depth
        prices = deep
        if self.window and len(deep) > 4 * wanted:
            reach = self.edge - self.best       # look as far beyond as window and reserve reached, then farther
            for times in (1, 3, 9):
                limit = sign * (self.edge + times * reach)
                prices = [price for price in deep if sign * price >= limit]
                if len(prices) >= wanted:
                    break
            else:
                prices = deep
        prices = self.worst_first(prices)[-wanted:]
        for price in prices:
            self.reserve[price] = deep.pop(price)
        self.edge = prices[0] if deep else -sign * FAR

    def check(self):
        """Assert every invariant; for tests."""
        sign, floor, edge = self.sign, self.sign * self.floor, self.sign * self.edge
        assert all(quantity > 0 for table in (self.window, self.reserve, self.deep) for quantity in table.values()), (
            "a level without quantity")
        assert all(sign * price >= floor for price in self.window), "window below the floor"
        assert all(edge <= sign * price < floor for price in self.reserve), "reserve out of its bounds"
        assert all(sign * price < edge for price in self.deep), "deep above the edge"
        assert len(self.window) <= self.most, "window too large"
        assert len(self.window) >= self.depth or not self.reserve and not self.deep, "window too small"
        assert len(self.reserve) <= self.reserve_most, "reserve too large"
        assert sign * self.best == max([sign * price for price in self.window], default=-FAR), "best"


class Bids(Side):
    __slots__ = ()
    sign = 1

    def apply(self, flat):
        """Set levels [price, quantity, ...], quantity 0 removes; return what a receiver of the window must know.

        Removing an unknown level is normal at every venue.
        """
        window, reserve, deep = self.window, self.reserve, self.deep
        floor, edge, best = self.floor, self.edge, self.best
        published = []
        numbers = iter(flat)
        for price, quantity in zip(numbers, numbers):
            if price < edge:
                if quantity:
                    deep[price] = quantity
                elif price in deep:
                    del deep[price]
            elif price < floor:
                if quantity:
                    reserve[price] = quantity
                elif price in reserve:
                    del reserve[price]
            elif quantity:
                window[price] = quantity
                if price > best:
                    self.best = best = price
                published += price, quantity
            elif price in window:
                del window[price]
                published += price, 0
        if not self.least <= len(window) <= self.most or len(reserve) > self.reserve_most or len(deep) > MAX_LEVELS:
            self.settle(published)
        elif best not in window:
            self.best = max(window, default=-FAR)
        return published


class Asks(Side):
    """`apply` is written twice, mirrored: a sign inside the loop would cost 20 ns a level."""

    __slots__ = ()
    sign = -1

    def apply(self, flat):
        window, reserve, deep = self.window, self.reserve, self.deep
        floor, edge, best = self.floor, self.edge, self.best
        published = []
        numbers = iter(flat)
        for price, quantity in zip(numbers, numbers):
            if price > edge:
                if quantity:
                    deep[price] = quantity
                elif price in deep:
                    del deep[price]
            elif price > floor:
                if quantity:
                    reserve[price] = quantity
                elif price in reserve:
                    del reserve[price]
            elif quantity:
                window[price] = quantity
                if price < best:
                    self.best = best = price
                published += price, quantity
            elif price in window:
                del window[price]
                published += price, 0
        if not self.least <= len(window) <= self.most or len(reserve) > self.reserve_most or len(deep) > MAX_LEVELS:
            self.settle(published)
        elif best not in window:
            self.best = min(window, default=FAR)
        return published


def best_first(levels, sign):
    """Return {price: quantity} as a flat list."""
    prices = sorted(levels, reverse=sign > 0)
    flat = [None] * (2 * len(prices))
    flat[::2] = prices
    flat[1::2] = [levels[price] for price in prices]
    return flat


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
        return self.bids.best > self.asks.best

    @property
    def overfull(self):
        return self.bids.overfull or self.asks.overfull

    def top(self, depth=None):
        return self.bids.top(depth), self.asks.top(depth)

    def published(self):
        return self.bids.published(), self.asks.published()

    def rescale(self, price_scale, quantity_scale):
        self.bids.rescale(price_scale, quantity_scale)
        self.asks.rescale(price_scale, quantity_scale)

    def check(self):
        self.bids.check()
        self.asks.check()
