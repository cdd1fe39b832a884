import random

import pytest

from feeder.net import Backoff, ConnectBudget


def test_backoff_draws_below_a_ceiling_that_doubles_up_to_the_cap():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    backoff = Backoff(first_ns=100, cap_ns=1000, random=dice)
    for _ in range(3):
        ceilings = [100, 200, 400, 800] + [1000] * 2000
        pauses = [backoff.next_ns() for _ in ceilings]
        assert all(0 <= pause <= ceiling for pause, ceiling in zip(pauses, ceilings))
        assert max(pauses) > 900 and min(pauses[4:]) < 100       # full jitter: the whole range is used
        backoff.reset()


def test_backoff_goes_on_for_ever_with_small_numbers():
    backoff = Backoff(random=random.Random(1))
    for _ in range(10_000):
        assert backoff.next_ns() <= backoff.cap_ns


def test_budget_never_lets_more_start_in_any_window():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(50):
        count, window_ns = dice.randrange(1, 6), dice.randrange(1, 100)
        budget = ConnectBudget(count, window_ns)
        now_ns, starts = 0, []
        for _ in range(100):
            now_ns += dice.choice((0, 0, 1, 5, window_ns))
            start_ns = budget.acquire_at(now_ns)
            assert start_ns >= now_ns
            # The plain rule: the first moment from now on that has fewer than `count` starts in the window before it.
            moments = sorted({now_ns} | {start + window_ns for start in starts if start + window_ns > now_ns})
            assert start_ns == next(moment for moment in moments
                                    if sum(start > moment - window_ns for start in starts) < count)
            starts.append(start_ns)


def test_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 connects"):
        ConnectBudget(0, 1)
