"""Histogram against a sorted list; Rate by hand."""

import random

import pytest

from feeder.counter import BUCKET_COUNT, EXACT, HIGHEST, Histogram, Rate, middle

SEED = 20_240_601


def plain_percentile(values, q):
    ordered = sorted(values)
    rank = max(1, -int(-len(ordered) * q // 100))
    return ordered[rank - 1]


@pytest.mark.parametrize("low, high", [(0, 63), (0, 5_000), (1_000, 10**7), (10**6, 10**12)])
def test_percentiles_agree_with_a_sorted_list(low, high):
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    values = [int(low + (high - low) * dice.random() ** 3) for _ in range(3_000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.count == len(values)
    assert histogram.max == max(values)
    for q in (0, 1, 50, 90, 99, 99.9, 100):
        exact = plain_percentile(values, q)
        got = histogram.percentile(q)
        assert abs(got - exact) <= exact / 60, (q, exact, got)
        if high < EXACT:
            assert got == exact


def test_every_bucket_is_reached_by_its_middle():
    for bucket in range(BUCKET_COUNT):
        histogram = Histogram()
        histogram.add(middle(bucket))
        assert histogram.buckets[bucket] == 1


def test_edges():
    histogram = Histogram()
    assert histogram.summary() == {"count": 0, "p50": 0, "p90": 0, "p99": 0, "p999": 0, "max": 0}
    histogram.add(-5)
    assert (histogram.negative, histogram.count, histogram.percentile(50)) == (1, 1, 0)
    histogram.add(HIGHEST + 10, count=2)
    assert histogram.count == 3
    assert histogram.max == HIGHEST
    assert histogram.percentile(100) >= HIGHEST - HIGHEST // 60


def test_percentile_never_exceeds_the_maximum():
    histogram = Histogram()
    histogram.add(1_000_000)
    assert histogram.percentile(99) <= histogram.max == 1_000_000


def test_merge_is_the_sum():
    dice = random.Random(SEED)
    parts = [Histogram(), Histogram()]
    whole = Histogram()
    for _ in range(500):
        value = dice.randrange(-10, 10**9)
        dice.choice(parts).add(value, 3)
        whole.add(value, 3)
    parts[0].merge(parts[1])
    assert parts[0].summary() == whole.summary()
    assert parts[0].negative == whole.negative


def test_rate():
    rate = Rate(1_000_000_000, total=10)
    assert rate.update(3_000_000_000, 30) == 10.0
    assert rate.update(3_000_000_000, 99) == 10.0
    assert rate.update(3_500_000_000, 30) == 0.0
