"""The book against a plain dict-and-sort model, with tiny limits so that the rare paths are common."""

import random

import pytest

from feeder import book as book_module
from feeder.book import FAR, Book


class Model:
    """The book as anybody would write it first."""

    def __init__(self):
        self.sides = {}, {}

    def apply(self, bids, asks):
        for side, levels in zip(self.sides, (bids, asks)):
            for price, quantity in zip(levels[::2], levels[1::2]):
                if quantity:
                    side[price] = quantity
                else:
                    side.pop(price, None)

    def top(self, depth=None):
        bids, asks = self.sides
        return (flat(sorted(bids.items(), reverse=True)[:depth]), flat(sorted(asks.items())[:depth]))


def flat(levels):
    return [number for level in levels for number in level]


def storm(seed, depth, spread, steps, monkeypatch):
    """Random events round a walking price; every step is compared with the model, and with one who was told only what is published."""
    monkeypatch.setattr(book_module, "WINDOW", (2, 3))
    monkeypatch.setattr(book_module, "RESERVE", (3, 6))
    print(f"seed {seed} depth {depth} spread {spread}")
    rng = random.Random(seed)
    book, model, receiver = Book(depth), Model(), Model()
    middle = 10_000
    for step in range(steps):
        middle += rng.choice((-1, 0, 0, 1)) * rng.choice((0, 1, 3, 40))
        bids, asks = [], []
        for _ in range(rng.choice((0, 1, 2, 5, 30))):
            away = int(rng.expovariate(1 / spread))
            quantity = rng.choice((0, 0, rng.randrange(1, 10**12)))
            if rng.random() < 0.5:
                bids += middle - 1 - away, quantity
            else:
                asks += middle + 1 + away, quantity
        # the market leaves no crossed levels behind
        bids += [n for price in model.sides[0] if price >= middle for n in (price, 0)]
        asks += [n for price in model.sides[1] if price <= middle for n in (price, 0)]
        if step % 97 == 0:
            model.apply(bids, asks)
            book.snapshot(*model.top())
            receiver = Model()
            receiver.apply(*book.published())
        else:
            model.apply(bids, asks)
            receiver.apply(*book.increment(bids, asks))
        book.check()
        assert book.top() == model.top()
        assert book.top(5) == model.top(5)
        assert receiver.top() == book.published()
        assert receiver.top(depth or None) == model.top(depth or None)
        bid, ask = model.sides
        assert book.bids.best == max(bid, default=-FAR)
        assert book.asks.best == min(ask, default=FAR)
        assert not book.crossed
    return book


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("depth, spread", [(1, 3), (3, 5), (20, 30), (0, 30), (5, 300)])
def test_equals_model(seed, depth, spread, monkeypatch):
    book = storm(seed, depth, spread, 300, monkeypatch)
    if (depth, spread) == (1, 3):
        assert book.bids.moves > 10, "the storm should have moved the bounds now and then"


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(100, 140))
def test_equals_model_long(seed, monkeypatch):
    storm(seed, seed % 25, 2 ** (seed % 11), 5_000, monkeypatch)


def test_removing_an_unknown_level_is_normal():
    book = Book()
    book.snapshot([100, 1], [101, 1])
    assert book.increment([90, 0], [110, 0]) == ([], [])
    assert book.top() == ([100, 1], [101, 1])
    book.check()


def test_crossed_and_locked():
    book = Book()
    book.snapshot([100, 1], [101, 1])
    book.increment([101, 5], [])
    assert not book.crossed, "locked is legal"
    book.increment([102, 5], [])
    assert book.crossed


def test_changes_below_the_window_are_not_published():
    book = Book(depth=1)
    book.snapshot([100, 1, 99, 1, 98, 1, 97, 1], [])
    assert book.published() == ([100, 1, 99, 1], [])
    assert book.increment([98, 7, 50, 3], []) == ([], [])
    assert book.increment([100, 0, 99, 0], []) == ([100, 0, 99, 0, 97, 1, 98, 7], []), "what comes in is told"
    assert book.increment([101, 1, 102, 1], []) == ([101, 1, 102, 1, 97, 0, 98, 0], []), "what goes out is removed"
    book.check()


def test_rescale_keeps_every_level():
    book = Book()
    book.snapshot([100, 1, 60, 2], [101, 1, 4000, 3])
    book.rescale(100, 10)
    assert book.top() == ([10000, 10, 6000, 20], [10100, 10, 400000, 30])
    book.check()


@pytest.mark.parametrize("seed", range(8))
def test_rescale_leaves_receivers_the_window_they_were_told(seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    book = Book(depth=2)
    book.snapshot([n for price in range(1, 100) for n in (price, 1)], [n for price in range(100, 200) for n in (price, 1)])
    for _ in range(rng.randrange(1, 3)):
        book.increment([rng.randrange(96, 100), 0], [rng.randrange(100, 104), 0])
    before, told = book.top(), book.published()
    book.rescale(10, 1)
    book.check()
    for sides, scaled in ((before, book.top()), (told, book.published())):
        assert [[price // 10 for price in side[::2]] for side in scaled] == [side[::2] for side in sides]


@pytest.mark.parametrize("depth", [0, 1, 20])
def test_levels_are_kept_and_bounded(depth, monkeypatch):
    monkeypatch.setattr(book_module, "MAX_LEVELS", 1_000)
    book = Book(depth)
    book.snapshot([10**9, 1], [10**9 + 1, 1])
    book.increment([n for price in range(1, 1_000) for n in (price, 1)], [])
    assert not book.overfull and len(book.bids) == 1_000
    book.check()
    for price in range(2_000, 3_000):                     # what lies in the reserve is noticed a little later
        book.increment([price, 1], [])
    assert book.overfull and len(book.bids) == 2_000
    book.snapshot([5, 1], [6, 1])
    assert not book.overfull and book.top() == ([5, 1], [6, 1])
    book.snapshot([n for price in range(1, 1_002) for n in (price, 1)], [])
    assert book.overfull


def test_the_check_can_fail():
    book = Book()
    book.snapshot([100, 1], [101, 1])
    book.bids.deep[500] = 5
    with pytest.raises(AssertionError):
        book.check()
