"""The words venues share: times, ids, JSON that keeps its digits, packing."""

from datetime import datetime, timezone

import pytest
from support import Recorder, dice

from feeder.errors import NumberError
from feeder.venue.contract import (GAP, NEXT, OLD, Instruments, Venue, exact_json, follows_by_one, iso_ns, nanoseconds,
                                   packed, trade_id_of)

NOW_S = 1_786_310_817


@pytest.mark.parametrize("time, ns", [
    (NOW_S, NOW_S * 10**9), (NOW_S * 10**3 + 5, (NOW_S * 10**3 + 5) * 10**6), (NOW_S * 10**6 + 5, (NOW_S * 10**6 + 5) * 10**3),
    (NOW_S * 10**9 + 5, NOW_S * 10**9 + 5), (0, 0)])
def test_times_by_their_size(time, ns):
    assert nanoseconds(time) == ns


@pytest.mark.parametrize("text, ns", [
    ("1970-01-01T00:00:00Z", 0), ("1970-01-01T00:00:01.5Z", 1_500_000_000),
    ("2023-02-09T20:32:50.714964855Z", 1675974770714964855), ("2014-11-07T08:19:27.028459Z", 1415348367028459000),
    ("2026-04-07 14:30:10.000000000+00:00", 1775572210000000000), ("0001-01-01T00:00:00.000000Z", 0),
    ("2024-02-29T23:59:59Z", 1709251199000000000), ("2016-12-31T23:59:60Z", 1483228800000000000)])
def test_text_times(text, ns):
    assert iso_ns(text) == ns


def test_text_times_equal_the_standard_librarys():
    rng = dice(1)
    for _ in range(2_000):
        seconds = rng.randrange(0, 4_000_000_000)
        text = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
        assert iso_ns(text + "Z") == seconds * 10**9


@pytest.mark.parametrize("text", ["", "2023", "2023-02-09T20:32:50", "2023-13-01T00:00:00Z", "2023-02-09T25:00:00Z",
                                  "2023-02-09T20:32:50.Z", "２023-02-09T20:32:50Z"])
def test_what_is_no_time(text):
    with pytest.raises(NumberError):
        iso_ns(text)


def test_trade_ids():
    assert trade_id_of("995098700") == 995098700 and trade_id_of("18446744073709551615") == 2**64 - 1
    assert trade_id_of("20f43950-d8dd-5b31-9112-a178eb6023af") == 0x20F43950D8DD5B31
    digests = {trade_id_of(text) for text in ("ETH-1234", "ETH-1235", "18446744073709551616", "", "²", "-5")}
    assert len(digests) == 6 and all(0 <= number < 2**64 for number in digests)
    assert trade_id_of("ETH-1234") == 0x0 + trade_id_of("ETH-1234") and trade_id_of("007") == 7


def test_numbers_stay_the_text_they_are():
    assert exact_json('[1.50, 1.5e-7, 100, -2E8, 0.10000000]') == ["1.50", "1.5e-7", "100", "-2E8", "0.10000000"]
    with pytest.raises(ValueError):
        exact_json("[NaN]")


def test_numbers_with_exponents_are_exact():
    venue = Venue(Recorder(), Instruments())
    venue.name = "v"
    coin = venue.instruments.add("v", "S")
    assert venue.scaled(coin, ["1.5e-7", "2e-8", "1.16539E8", "0.5"], "price") == [15, 2, 11653900000000000, 50000000]
    assert coin.price_decimals == 8


def test_packing():
    assert list(packed([], 3)) == []
    assert list(packed(list("abcdefg"), 3)) == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert list(packed(["aaa", "bbb", "c", "dddddddd"], 9, 6)) == [["aaa", "bbb"], ["c"], ["dddddddd"]]


def test_one_by_one():
    assert [follows_by_one(7, True, number, number, None) for number in (6, 7, 8, 9)] == [OLD, OLD, NEXT, GAP]
