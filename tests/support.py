"""What the tests of venues, recovery, publishing and recordings share. Plain on purpose: this is the rival of the code.

Recordings are looked for in FEEDER_CAPTURES, else in ../shared/data beside the project; tests that need them are
skipped where they are absent. Random tests draw from `dice(seed)`, which prints the seed; FEEDER_SEED overrides it.
"""

import gzip
import json
import os
import random
from decimal import Decimal
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
CAPTURES = Path(os.environ.get("FEEDER_CAPTURES") or PROJECT.parent / "shared" / "data")
BINANCE = ("binance_spot", "binance_usdm", "binance_coinm")

needs_captures = pytest.mark.skipif(
    not (CAPTURES / "README.md").exists(),
    reason=f"no recordings in {CAPTURES} (set FEEDER_CAPTURES to the folder that has binance_spot and the others)")


def recordings(*venues):
    """Return the paths of continuous recordings, of all venues where none is named."""
    return sorted(path for venue in (venues or ("*",)) for path in CAPTURES.glob(f"{venue}/*.jsonl.gz")
                  if "instruments" not in path.name and "products" not in path.name)


def short(path):
    return f"{path.parent.name}/{path.name.partition('.')[0]}"


def lines(path):
    """Yield a recording's objects by nothing but gzip and json."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def dice(seed):
    seed = int(os.environ.get("FEEDER_SEED", seed))
    print(f"seed {seed}")
    return random.Random(seed)


def deliveries(data):
    """Yield the ways bytes may arrive: whole, cut once anywhere, one at a time."""
    yield [data]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]
    yield [data[at:at + 1] for at in range(len(data))]


class Recorder:
    """A sink that writes down what it is told, instruments by symbol."""

    def __init__(self):
        self.calls = []

    def take(self):
        calls, self.calls = self.calls, []
        return calls

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def record(instrument, *more):
            self.calls.append((name, instrument.symbol, *(list(each) if isinstance(each, (list, tuple)) else each
                                                          for each in more)))
        self.__dict__[name] = record
        return record


class Market:
    """The book as anybody would write it first: two dicts of decimals, sorted when somebody asks."""

    def __init__(self):
        self.bids, self.asks = {}, {}

    def apply(self, bids, asks):
        for side, levels in ((self.bids, bids), (self.asks, asks)):
            for price, quantity, *_ in levels:
                price, quantity = Decimal(price), Decimal(quantity)
                if quantity:
                    side[price] = quantity
                else:
                    side.pop(price, None)

    def top(self, depth=None):
        return sorted(self.bids.items(), reverse=True)[:depth], sorted(self.asks.items())[:depth]

    def best(self):
        bid, ask = max(self.bids, default=None), min(self.asks, default=None)
        return bid, self.bids.get(bid), ask, self.asks.get(ask)


class Model(Market):
    """One Binance symbol by the documented procedure (fact sheets §5), word for word; futures link by `pu`."""

    def __init__(self, futures):
        super().__init__()
        self.futures = futures
        self.waiting = []             # events before the snapshot
        self.sequence = None          # None: no snapshot yet
        self.joined = False           # an event was applied on the snapshot
        self.applied = self.gaps = 0

    def snapshot(self, body):
        assert self.sequence is None, "recordings have one snapshot a symbol"
        self.apply(body["bids"], body["asks"])
        self.sequence = body["lastUpdateId"]
        for event in self.waiting:
            self.event(event)
        self.waiting = []

    def event(self, event):
        if self.sequence is None:
            return self.waiting.append(event)
        first, last, known = event["U"], event["u"], self.sequence
        if self.futures:
            if not self.joined and last < known or self.joined and last <= known:
                return None
            fits = event["pu"] == known if self.joined else first <= known <= last or event["pu"] == known
        else:
            if last <= known:
                return None
            fits = first == known + 1 if self.joined else first <= known + 1 <= last
        if not fits:
            self.gaps += 1
            return None
        self.joined = True
        self.sequence = last
        self.applied += 1
        return self.apply(event["b"], event["a"])


def decimals(flat, price_decimals, quantity_decimals):
    """Return [(price, quantity), ...] of flat scaled ints."""
    return [(Decimal(price).scaleb(-price_decimals), Decimal(quantity).scaleb(-quantity_decimals))
            for price, quantity in zip(flat[::2], flat[1::2])]


def book_decimals(entry):
    """Return the whole of a publisher's book as Market.top() would."""
    instrument = entry.instrument
    return tuple(decimals(side, instrument.price_decimals, instrument.quantity_decimals) for side in entry.book.top())


def is_best(heard, true, depth):
    """Return True if a listener's side is the beginning of the true one, at least `depth` levels of it (0: all)."""
    return list(heard) == list(true[:len(heard)]) and len(heard) >= min(depth or len(true), len(true))
