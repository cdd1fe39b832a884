"""The mirror against two dicts: images become increments, what falls off the depth is said, digits are kept."""

import pytest
from support import dice

from feeder.instrument import Instrument
from feeder.venue.contract import NEXT, OLD, OWN_SEQUENCE_BITS, follows_by_one
from feeder.venue.mirror import Mirror


class Plain:
    """A book that applies increments and knows nothing of venues."""

    def __init__(self):
        self.sides = {}, {}

    def apply(self, *sides):
        for side, flat in zip(self.sides, sides):
            for price, quantity in zip(flat[::2], flat[1::2]):
                if quantity:
                    side[price] = quantity
                else:
                    side.pop(price, None)

    def flat(self):
        return [[number for price in sorted(side, reverse=not number) for number in (price, side[price])]
                for number, side in enumerate(self.sides)]


def random_side(rng, count):
    prices = rng.sample(range(1, 40), count)
    return [number for price in prices for number in (price, rng.randrange(0, 5))]


def image_of(rng, most):
    bids, asks = ([number for price in sorted(rng.sample(range(1, 40), rng.randrange(most)))
                   for number in (price, rng.randrange(1, 4))] for _ in range(2))
    return bids, asks


@pytest.mark.parametrize("seed", range(5))
def test_images_become_increments_that_lead_to_them(seed):
    rng = dice(seed)
    mirror, plain = Mirror(Instrument(0, "v", "S")), Plain()
    plain.apply(*mirror.snapshot(*image_of(rng, 20)))
    for _ in range(200):
        bids, asks = image_of(rng, 20)
        plain.apply(*mirror.image(bids, asks))
        assert plain.sides == (dict(zip(bids[::2], bids[1::2])), dict(zip(asks[::2], asks[1::2])))
        assert plain.flat() == [mirror.bids.flat(), mirror.asks.flat()]
    bids, asks = image_of(rng, 20)
    mirror.image(bids, asks)
    assert mirror.image(bids, asks) == [[], []]


@pytest.mark.parametrize("seed", range(5))
def test_what_falls_off_the_depth_is_said(seed):
    rng = dice(seed)
    depth = rng.choice((1, 3, 10))
    mirror, plain, sides = Mirror(Instrument(0, "v", "S"), 0, depth), Plain(), Plain()
    plain.apply(*mirror.snapshot(random_side(rng, 20), random_side(rng, 20)))
    sides.sides = tuple(map(dict, plain.sides))
    for _ in range(300):
        changes = random_side(rng, rng.randrange(6)), random_side(rng, rng.randrange(6))
        plain.apply(*mirror.change(*changes))
        sides.apply(*changes)
        for side, sign in zip(sides.sides, (-1, 1)):
            for price in sorted(side, key=lambda price: sign * price)[depth:]:
                del side[price]
        assert plain.sides == sides.sides and plain.flat() == [mirror.bids.flat(), mirror.asks.flat()]
        assert not mirror.overfull


def test_digits_are_those_of_the_wire():
    coin = Instrument(0, "v", "S", price_decimals=1, quantity_decimals=2)
    mirror = Mirror(coin)
    mirror.snapshot([105, 250, 104, 100], [106, 50], ["10.5 2.50", "10.4 1.00"], ["10.6 0.50"])
    assert mirror.bids.top(2) == ["10.5 2.50", "10.4 1.00"] and mirror.asks.top(2) == ["10.6 0.50"]
    coin.price_decimals = 2                      # a message with more decimals: the instrument was widened
    mirror.change([1045, 100], [], ["10.45 1.00"], [])
    assert mirror.bids.top(3) == ["10.5 2.50", "10.45 1.00", "10.4 1.00"]
    assert mirror.bids.flat() == [1050, 250, 1045, 100, 1040, 100]
    assert mirror.change([1050, 0], [], ["10.50 0"], []) == ([1050, 0], []) and mirror.bids.top(1) == ["10.45 1.00"]


def test_decimals_that_shrink_void_it():
    coin = Instrument(0, "v", "S", price_decimals=4)
    mirror = Mirror(coin)
    mirror.snapshot([1, 1], [])
    coin.price_decimals = 2
    mirror.fit()
    assert not mirror.is_known and mirror.bids.flat() == []


def test_a_later_sessions_count_is_newer():
    coin = Instrument(0, "v", "S")
    old, new = Mirror(coin, 1), Mirror(coin, 2)
    for _ in range(5):
        old.change([], [])
    new.snapshot([], [])
    assert new.sequence == (2 << OWN_SEQUENCE_BITS) + 1
    assert follows_by_one(new.sequence, False, old.sequence, old.sequence, None) is OLD
    new.change([], [])
    assert follows_by_one(new.sequence - 1, False, new.sequence, new.sequence, None) is NEXT
