"""A seeded synthetic market: the true books behind the venue twin, and what happens to them.

In:   whose turn it is and the time.   Out: events, tuples of plain ints; the dialect turns them into text.

    listing   one symbol: two sides, update ids, trades; its own random.Random, so it can be rebuilt from (seed, symbol)
    side      quantities {key: lots} and `keys` sorted with the best last; key is the price in ticks, negated for asks

One turn of a listing does one of three things, and returns the events in the order a venue sends them:

    touch   a quantity at the best price, a better price, or a sweep after the hidden `fair` price walked  -> BBO
    trade   fills against the best level, the book change they cause, the new best       -> TRADE.. AGGREGATE, BBO
    churn   removals, additions and changes away from the touch, then all changes since the last diff    -> DEPTH

Invariants: bid <= fair < ask after every event of a settled touch, never crossed after any event; every change of the
best price or quantity is announced by a BBO that carries the update id of the book state it shows, because churn never
touches the best level. Each change takes one update id (spot) or some (usdm, whose ids are shared by a wider engine).

Shaped by the recordings of BTCUSDT spot, 2024-08-08: levels a diff are log-normal (median 22, p90 104, p99 386, max
1,076), 48 % of them zero, 9 % removals of levels that came and went within one diff, about 8 % in the top 20.
"""

import random
from bisect import bisect_left, insort
from math import exp

TRADE, AGGREGATE, BBO, DEPTH = "trade", "aggTrade", "bookTicker", "depth"      # first item of each event tuple
# (TRADE, listing, trade_id, price, lots, buyer_is_maker)
# (AGGREGATE, listing, aggregate_id, price, lots, first_trade_id, last_trade_id, buyer_is_maker)
# (BBO, listing, update_id, bid, bid_lots, ask, ask_lots)
# (DEPTH, listing, first_id, last_id, previous_last_id, bids, asks)    sides: [(price, lots)], best first
# Prices are in ticks, quantities in lots.

MESSAGES_A_DIFF = 7          # other messages between two diffs: one message in eight is a diff
DIFF_WITHIN_MS = 250         # ... and at slow rates a diff at least this often, when anything changed
TRADE_SHARE = 0.12           # of the turns that are not diffs
WALK_SHARE = 0.03            # of the touches move the fair price
CHURN_MEDIAN, CHURN_SIGMA, CHURN_LIMIT = 20, 1.21, 1_076
NEAR_SHARE, NEAR_LEVELS = 0.03, 20
SWEEP_LIMIT = 8              # levels one event may take away
LEAST_LEVELS = 8             # a side is never swept below this
RECENT = 64                  # young levels are the ones that go: half live under 1.1 s in the recordings
POOL_BITS = 12


class Spec:
    """What is listed: a symbol, its first price, tick and lot as the venue spells them ("0.10" shows two decimals).

    `typical_lots`: the median size of a level, where a lot is not a part of the base coin.
    """

    __slots__ = ("symbol", "base", "quote", "tick", "lot", "price_decimals", "lot_decimals", "tick_units", "lot_units",
                 "first_price", "first_ticks", "typical_lots")

    def __init__(self, symbol, base, quote, price, tick, lot, typical_lots=None):
        self.symbol, self.base, self.quote, self.tick, self.lot = symbol, base, quote, tick, lot
        self.first_price, self.typical_lots = price, typical_lots
        self.price_decimals, self.tick_units = _decimals_and_units(tick)
        self.lot_decimals, self.lot_units = _decimals_and_units(lot)
        whole, _, part = price.partition(".")
        scaled = int(whole + part[: self.price_decimals].ljust(self.price_decimals, "0"))
        self.first_ticks = max(scaled // self.tick_units, 100)


def _decimals_and_units(step):
    """'0.10' -> (2, 10): two decimals are shown, one step is ten units of the last one."""
    whole, _, part = step.partition(".")
    return len(part), int(whole + part)


class Side:
    __slots__ = ("sign", "keys", "quantities", "changed", "recent")

    def __init__(self, sign):
        self.sign = sign             # price = sign * key
        self.keys = []
        self.quantities = {}
        self.changed = set()         # keys since the last diff
        self.recent = [0] * RECENT   # keys of young levels, overwritten in turn; may be gone already

    def set(self, key, lots):
        if lots:
            if key not in self.quantities:
                insort(self.keys, key)
            self.quantities[key] = lots
        elif self.quantities.pop(key, 0):
            del self.keys[bisect_left(self.keys, key)]
        self.changed.add(key)

    def levels(self, limit=None):
        """[(price, lots)], best first."""
        sign, quantities = self.sign, self.quantities
        keys = self.keys if limit is None else self.keys[-limit:]
        return [(sign * key, quantities[key]) for key in reversed(keys)]

    def take_changes(self):
        sign, lots_of = self.sign, self.quantities.get
        changes = [(sign * key, lots_of(key, 0)) for key in sorted(self.changed, reverse=True)]
        self.changed.clear()
        return changes

    def check(self):
        assert self.keys == sorted(self.quantities) and all(lots > 0 for lots in self.quantities.values())


class Listing:
    """One symbol's true book and the dice that move it."""

    def __init__(self, spec, seed, levels, contiguous=True):
        self.spec = spec
        self.seed = seed
        self.contiguous = contiguous
        # At most `levels` a side, so that a snapshot of as many shows the whole book; held a little below that.
        # A low price has no room for many.
        self.level_limit = max(2 * NEAR_LEVELS, min(levels, spec.first_ticks // 3))
        self.levels = self.level_limit - max(self.level_limit // 20, min(NEAR_LEVELS, self.level_limit // 4))
        self.random = dice = random.Random(f"{seed} {spec.symbol}")
        size = 1 << POOL_BITS
        spread = max(spec.first_ticks * 0.0015, 300)       # median distance of a level from the touch, in ticks
        self.distances = [1 + int(spread * exp(dice.gauss(0, 1.3))) for _ in range(size)]
        price = spec.first_ticks * spec.tick_units / 10 ** spec.price_decimals
        median = spec.typical_lots or (
            500 / price * 10 ** spec.lot_decimals / spec.lot_units)              # an order of 500 units of quote
        self.sizes = [max(1, int(median * exp(dice.gauss(0, 2)))) for _ in range(size)]
        self.step_ticks = max(1, spec.first_ticks // 100_000)      # how far fair walks at once, about
        self.fair = spec.first_ticks
        self.bids, self.asks = Side(1), Side(-1)
        self.update_id = dice.randrange(10 ** 9, 10 ** 10)
        self.trade_id = dice.randrange(10 ** 8, 10 ** 9)
        self.aggregate_id = self.trade_id // 2
        self._fill(self.bids, self.fair)
        self._fill(self.asks, -(self.fair + 1))
        self.diff_id = self.update_id        # last id of the last diff
        self.first_id = None                 # first id since then
        self.diff_ms = 0
        self.messages_since_diff = 0

    def _fill(self, side, best):
        dice, sizes, size = self.random, self.sizes, len(self.sizes)
        side.set(best, sizes[0])
        for offset in range(1, NEAR_LEVELS):
            side.set(best - offset * self.step_ticks, sizes[offset])
        while len(side.keys) < self.levels:
            key = best - self.distances[int(dice.random() * size)] * (1 + int(dice.random() * 4)) // 2
            if key * side.sign > 0:
                side.set(key, sizes[int(dice.random() * size)])
        side.changed.clear()

    def rebuilt(self):
        """The same listing as it was at the very start: an honest, self-consistent, hopelessly old book."""
        return Listing(self.spec, self.seed, self.level_limit, self.contiguous)

    # --- turns

    def turn(self, now_ms):
        """Let one thing happen; return its events."""
        events = []
        if self.messages_since_diff >= MESSAGES_A_DIFF or (
                self.messages_since_diff and now_ms - self.diff_ms >= DIFF_WITHIN_MS):
            self._churn()
            if self.random.random() < 0.5:       # so that a diff often ends on an id a BBO carried, as it does live
                self._touch(events)
                events.append(self.best())
            return events + self.flush(now_ms)
        if self.random.random() < TRADE_SHARE:
            self._trade(events)
        else:
            self._touch(events)
        events.append(self.best())
        self.messages_since_diff += len(events)
        return events

    def best(self):
        """The BBO of this moment."""
        bid, ask = self.bids.keys[-1], self.asks.keys[-1]
        return (BBO, self, self.update_id, bid, self.bids.quantities[bid], -ask, self.asks.quantities[ask])

    def flush(self, now_ms):
        """The diff that folds all changes since the last one; [] when there were none."""
        if self.first_id is None:
            return []
        event = (DEPTH, self, self.first_id, self.update_id, self.diff_id,
                 self.bids.take_changes(), self.asks.take_changes())
        self.diff_id, self.first_id = self.update_id, None
        self.diff_ms, self.messages_since_diff = now_ms, 0
        return [event]

    def _change(self, side, key, lots):
        self.update_id += 1 if self.contiguous else 1 + int(self.random.random() * 60)
        if self.first_id is None:
            self.first_id = self.update_id
        side.set(key, lots)

    def _size(self):
        return self.sizes[int(self.random.random() * (1 << POOL_BITS))]

    def _touch(self, events):
        chance = self.random.random
        if chance() < WALK_SHARE:
            self._walk()
        bids, asks, fair = self.bids, self.asks, self.fair
        bid, ask = bids.keys[-1], -asks.keys[-1]
        if ask <= fair:
            self._sweep(asks, -fair, events)
        elif bid > fair:
            self._sweep(bids, fair + 1, events)
        elif ask - bid > 1 and chance() < 0.7:
            at_fair = chance() < 0.6
            if fair > bid and (ask == fair + 1 or chance() < 0.5):
                self._improve(bids, fair if at_fair else bid + 1 + int(chance() * (fair - bid)))
            else:
                self._improve(asks, -fair - 1 if at_fair else 1 - ask + int(chance() * (ask - fair - 1)))
        else:
            side = bids if chance() < 0.5 else asks
            self._change(side, side.keys[-1], self._size())

    def _improve(self, side, key):
        self._change(side, key, self._size())
        if len(side.keys) > self.level_limit:
            self._change(side, side.keys[0], 0)

    def _walk(self):
        chance, first = self.random.random, self.spec.first_ticks
        stride = 1 + int(chance() * chance() * 4 * self.step_ticks)
        drift = (self.fair - first) / first                    # pulled back, so that hours stay near the first price
        self.fair = max(self.fair + (stride if chance() > 0.5 + 2 * drift else -stride), first // 2)

    def _sweep(self, side, until, events):
        """Take away the levels with key >= until, by trades or by cancels."""
        traded = self.random.random() < 0.5
        taken = 0
        while side.keys[-1] >= until and len(side.keys) > LEAST_LEVELS and taken < SWEEP_LIMIT:
            key = side.keys[-1]
            if traded:
                self._fills(side, key, side.quantities[key], 1, events)
            self._change(side, key, 0)
            taken += 1
        if side.keys[-1] >= until:                 # not done: fair waits, so that it never lies beyond the touch
            self.fair = side.keys[-1] if side is self.bids else -side.keys[-1] - 1
        if not taken:                              # a side this thin only changes its quantity
            self._change(side, side.keys[-1], self._size())

    def _trade(self, events):
        chance = self.random.random
        side = self.bids if chance() < 0.5 else self.asks
        key = side.keys[-1]
        lots = side.quantities[key]
        wanted = min(lots, 1 + int(self._size() * 0.2))
        if wanted == lots and len(side.keys) <= LEAST_LEVELS:
            wanted = lots - 1
        if wanted:
            self._fills(side, key, wanted, 1 + int(chance() * chance() * 6), events)
            self._change(side, key, lots - wanted)
        else:
            self._change(side, key, self._size())

    def _fills(self, side, key, lots, pieces, events):
        price, buyer_is_maker = side.sign * key, side is self.bids
        first, total = self.trade_id + 1, lots
        while pieces > 1 and lots > 1:
            piece = 1 + int(self.random.random() * (lots - 1) / 2)
            self.trade_id += 1
            events.append((TRADE, self, self.trade_id, price, piece, buyer_is_maker))
            lots -= piece
            pieces -= 1
        self.trade_id += 1
        self.aggregate_id += 1
        events.append((TRADE, self, self.trade_id, price, lots, buyer_is_maker))
        events.append((AGGREGATE, self, self.aggregate_id, price, total, first, self.trade_id, buyer_is_maker))

    def _churn(self):
        """Change levels away from the touch, as many as one diff of the recordings holds."""
        chance, sizes, distances, size = self.random.random, self.sizes, self.distances, 1 << POOL_BITS
        count = min(int(CHURN_MEDIAN * exp(self.random.gauss(0, CHURN_SIGMA))), CHURN_LIMIT)
        change, levels = self._change, self.levels
        for index in range(count):
            side = self.bids if chance() < 0.5 else self.asks
            keys = side.keys
            held = len(keys)
            near = chance() < NEAR_SHARE
            what = chance()
            if 0.12 <= what < 0.2 or what >= 0.2 and (
                    held < self.level_limit and chance() < 4.5 - 4 * held / levels):         # drawn back to `levels`
                if near:
                    key = keys[-1 - int(chance() * min(held, NEAR_LEVELS))] - 1 - int(chance() * self.step_ticks)
                else:
                    key = keys[-1] - distances[int(chance() * size)]
                for _ in range(3):                            # on a coarse grid: further away, where there is room
                    if key not in side.quantities:
                        break
                    key -= 1 + int(chance() * self.levels)
                if key * side.sign <= 0:
                    continue
                change(side, key, sizes[int(chance() * size)])
                if what < 0.2:                                # came and went within one diff
                    change(side, key, 0)
                else:
                    side.recent[index % RECENT] = key
                continue
            if near:
                at = held - 2 - int(chance() * (NEAR_LEVELS - 1))
            else:
                at = int(chance() * (held - 1))
            key = keys[max(at, 0)]
            if what < 0.12:
                change(side, key, sizes[int(chance() * size)])
            elif held > LEAST_LEVELS:
                young = side.recent[int(chance() * RECENT)]
                if not near and chance() < 0.6 and young in side.quantities and young != keys[-1]:
                    key = young
                change(side, key, 0)

    def check(self):
        """Assert what every event must leave true."""
        self.bids.check()
        self.asks.check()
        assert self.bids.keys[-1] < -self.asks.keys[-1], f"{self.spec.symbol} crossed"
        assert self.bids.keys[0] > 0
        assert max(len(self.bids.keys), len(self.asks.keys)) <= self.level_limit


class Market:
    """All listings of one venue, and whose turn it is: a shuffled round in which the first symbols come more often."""

    def __init__(self, specs, seed, levels, contiguous=True):
        self.listings = {spec.symbol: Listing(spec, seed, levels, contiguous) for spec in specs}
        self.round = [listing for place, listing in enumerate(self.listings.values())
                      for _ in range(max(1, 6 - place))]
        random.Random(f"{seed} round").shuffle(self.round)
        self.place = 0

    def step(self, now_ms):
        """The events of the next listing's turn."""
        self.place = (self.place + 1) % len(self.round)
        return self.round[self.place].turn(now_ms)

    def flush(self, now_ms):
        """The diffs of everything that is pending, so that what was sent adds up to the true books."""
        return [event for listing in self.listings.values() for event in listing.flush(now_ms)]
