"""Decimal text and scaled ints, held against the standard library's decimal: exact, or an error, never rounded."""

import random
from decimal import Decimal, localcontext

import pytest

from feeder.errors import NumberError, PrecisionError, RangeError
from feeder.fixed import INT64_MAX, MAX_DECIMALS, MAX_TEXT, WIRE_DECIMALS, decimals_of, parse, parse_all, rescale, to_text


@pytest.mark.parametrize("text, decimals, value", [
    ("61837.64", 2, 6_183_764),
    ("61837.64000000", 2, 6_183_764),                  # as Binance pads; zeros are no digits
    ("61837.64", 8, 6_183_764_000_000),
    ("0", 0, 0), ("-0", 8, 0), ("0.000000000000000000000000", 0, 0), ("0e999", 0, 0), ("0e-999", 0, 0),
    ("-1.5", 1, -15), ("-0.01", 2, -1),
    ("007", 0, 7),
    ("1e3", 0, 1_000), ("1E+3", 2, 100_000), ("1.5e-7", 8, 15), ("1500e-2", 0, 15), ("-2.5e1", 0, -25),
    ("0.000000001", 9, 1), ("0.00000000001", 11, 1),   # OKX prices
    ("1234567890123.5", 4, 12_345_678_901_235_000),
    ("92233720368.54775807", 8, INT64_MAX), ("-92233720368.54775807", 8, -INT64_MAX),
    ("9223372036854775807", 0, INT64_MAX),
    ("0.000000000000000001", 18, 1),
])
def test_text_to_int_and_back(text, decimals, value):
    assert parse(text, decimals) == value
    assert parse(to_text(value, decimals), decimals) == value
    assert Decimal(to_text(value, decimals)) == Decimal(text)


@pytest.mark.parametrize("value, decimals, text", [
    (6_183_760, 2, "61837.6"), (0, 8, "0"), (0, 0, "0"), (-1, 8, "-0.00000001"), (5, 0, "5"), (-50, 1, "-5"),
    (100, 2, "1"), (INT64_MAX, 8, "92233720368.54775807"), (123, 3, "0.123"),
])
def test_int_to_the_shortest_text(value, decimals, text):
    assert to_text(value, decimals) == text


@pytest.mark.parametrize("text", [
    "", " ", "1 ", " 1", "+1", ".5", "1.", "1..2", "1,5", "--1", "1e", "1e1.5", "e5", "0x10", "1_000", "NaN",
    "Infinity", "-", "-.5", "1e1000", "1\n", "１", "٣", "1.٣", "null", "1" * (MAX_TEXT + 1),
])
def test_what_is_no_number(text):
    for function in (lambda: parse(text, 8), lambda: decimals_of(text)):
        with pytest.raises(NumberError) as caught:
            function()
        assert type(caught.value) is NumberError and repr(text[:MAX_TEXT]) in str(caught.value)


@pytest.mark.parametrize("text, decimals, needed", [
    ("0.001", 2, 3), ("61837.641", 2, 3), ("1.5", 0, 1), ("-0.000000001", 8, 9), ("1.50000e-8", 8, 9),
    ("1e-999", 8, 999), ("12345678901234567890.5", 0, 1), ("0.10010000", 1, 4),
])
def test_too_many_digits_say_how_many_are_needed(text, decimals, needed):
    with pytest.raises(PrecisionError, match=f"{text} has more than {decimals} decimals") as caught:
        parse(text, decimals)
    assert caught.value.decimals == decimals_of(text) == needed


@pytest.mark.parametrize("text, decimals", [
    ("92233720368.54775808", 8), ("-92233720368.54775808", 8), ("-9223372036854775808", 0), ("9" * MAX_TEXT, 0),
    ("1e30", 8), ("1e999", 0), ("1000", 18), ("92233720368547758080e-1", 0),
])
def test_too_large_for_64_bits(text, decimals):
    with pytest.raises(RangeError, match="does not fit 64 bits"):
        parse(text, decimals)


@pytest.mark.parametrize("text, needed", [
    ("100", 0), ("0", 0), ("0.000", 0), ("1.50", 1), ("61837.64000000", 2), ("1e-8", 8), ("1.5000e-1", 2),
    ("100e-2", 0), ("1e5", 0), ("-0.25", 2), ("1.5e3", 0),
])
def test_how_many_decimals_a_number_needs(text, needed):
    assert decimals_of(text) == needed


# -- rescale: 8 is likely, fewer multiply, more must not lose a digit ----------------------------------------

@pytest.mark.parametrize("value, decimals, wanted, result", [
    (123, 8, 8, 123), (0, 0, 8, 0), (6_183_764, 2, 8, 6_183_764_000_000), (-5, 0, 8, -500_000_000),
    (1_000, 11, 8, 1), (-12_300, 10, 8, -123), (0, 18, 8, 0), (7, 3, 5, 700), (5 * 10**27, 18 + 18, 18, 5 * 10**9),
    (INT64_MAX, 8, 8, INT64_MAX), (INT64_MAX * 10, 9, 8, INT64_MAX),
])
def test_rescale(value, decimals, wanted, result):
    assert rescale(value, decimals, wanted) == result


@pytest.mark.parametrize("value, decimals, needed", [
    (1, 9, 9), (-1, 9, 9), (1_001, 11, 11), (12_300, 13, 11), (15, 18, 18)])
def test_rescale_loses_no_digit(value, decimals, needed):
    with pytest.raises(PrecisionError, match="has more than 8 decimals") as caught:
        rescale(value, decimals)
    assert caught.value.decimals == needed


@pytest.mark.parametrize("value, decimals", [
    (INT64_MAX, 7), (-INT64_MAX, 0), (INT64_MAX + 1, 8), (-INT64_MAX - 1, 8), (10**30, 9), (92_233_720_369, 0)])
def test_rescale_stays_within_64_bits(value, decimals):
    with pytest.raises(RangeError, match="at 8 decimals does not fit 64 bits"):
        rescale(value, decimals)


# -- against decimal -----------------------------------------------------------------------------------------

def random_text(dice):
    """Numbers as venues print them, with every length and exponent near the edges."""
    digits = "".join(dice.choice("0001234567899") for _ in range(dice.randrange(1, 24)))
    point = dice.randrange(1, len(digits) + 1)
    text = digits[:point] + ("." + digits[point:] if point < len(digits) else "")
    if dice.random() < 0.3:
        text += f"{dice.choice('eE')}{dice.choice(['', '+', '-'])}{dice.randrange(25)}"
    return "-" + text if dice.random() < 0.3 else text


def test_random_numbers_agree_with_decimal():
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    outcomes = {"exact": 0, "precision": 0, "range": 0}
    with localcontext() as context:
        context.prec = 200
        for _ in range(10_000):
            text, decimals = random_text(dice), dice.choice((0, 1, 2, 3, 5, 8, 8, 8, 11, MAX_DECIMALS))
            truth = Decimal(text).scaleb(decimals)
            try:
                value = parse(text, decimals)
            except PrecisionError as error:
                assert truth != truth.to_integral_value() and error.decimals > decimals
                assert Decimal(text).scaleb(error.decimals) % 10 != 0       # and not one digit more
                outcomes["precision"] += 1
            except RangeError:
                assert abs(truth) > INT64_MAX
                outcomes["range"] += 1
            else:
                assert value == truth and abs(value) <= INT64_MAX
                assert Decimal(to_text(value, decimals)).scaleb(decimals) == value
                assert decimals_of(text) == decimals_of(to_text(value, decimals)) <= decimals
                wire = Decimal(value).scaleb(WIRE_DECIMALS - decimals)
                try:
                    assert rescale(value, decimals) == wire
                except PrecisionError:
                    assert wire != wire.to_integral_value()
                except RangeError:
                    assert abs(wire) > INT64_MAX
                outcomes["exact"] += 1
    assert min(outcomes.values()) > 500, outcomes


def test_all_at_once_is_one_by_one():
    rng = random.Random(8)
    texts = ["1", "0", "61837.64", "0.00000001", "007", "1.50", "1e-3", "-1", "999999999999999999", "0.123456789", "", "1,2", "x",
             "1.", ".5", "9" * 30]
    for _ in range(3_000):
        chosen, decimals = [rng.choice(texts) for _ in range(rng.randrange(5))], rng.randrange(12)
        try:
            wanted = [parse(text, decimals) for text in chosen]
        except NumberError as error:
            with pytest.raises(type(error)):
                parse_all(chosen, decimals)
        else:
            assert parse_all(chosen, decimals) == wanted
