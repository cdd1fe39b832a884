"""Decimal text <-> scaled int, exact by digits; never through float.

A scaled int is value * 10**decimals. Text is what JSON allows as a number (sign, digits, point, exponent such
as 1.5e-7), as str. Digits beyond `decimals` must be zeros: anything else raises, nothing is rounded or cut.

The likely case, text that has exactly the instrument's digits, is not here: decoders cut those in bulk
(venue/binance.py). This is the exact slow path they must agree with.
"""

import re

from feeder.errors import NumberError, PrecisionError, RangeError

INT64_MAX = 2**63 - 1
MAX_TEXT = 64                 # longest number any venue prints is under 40 characters
MAX_DECIMALS = 18             # 10**18 is the last power of ten in int64
WIRE_DECIMALS = 8             # what packets carry unless an instrument's definition says otherwise
POWERS = tuple(10**n for n in range(2 * MAX_DECIMALS + 1))

match_number = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,3}))?").fullmatch


def split(text):
    """Return (value, places): the number is value / 10**places exactly. Raises NumberError."""
    match = match_number(text) if len(text) <= MAX_TEXT else None
    if match is None:
        raise NumberError(f"{text[:MAX_TEXT]!r} is not a decimal number of at most {MAX_TEXT} characters")
    sign, whole, fraction, exponent = match.groups("")
    value = int(whole + fraction)
    return (-value if sign else value), len(fraction) - int(exponent or 0)


def parse(text, decimals):
    """Return text * 10**decimals as an int.

    Raises: NumberError (no number), PrecisionError (significant digits beyond `decimals`), RangeError (not int64).
    """
    value, places = split(text)
    if value == 0:
        return 0
    missing = decimals - places
    if missing < 0:
        value, lost = divmod(value, 10**-missing)
        if lost:
            raise PrecisionError(f"{text} has more than {decimals} decimals", decimals_of(text))
    elif missing >= len(POWERS):
        raise RangeError(f"{text} at {decimals} decimals does not fit 64 bits")
    else:
        value *= POWERS[missing]
    if not -INT64_MAX <= value <= INT64_MAX:
        raise RangeError(f"{text} at {decimals} decimals does not fit 64 bits")
    return value


# Commas end the texts, so that one expression sees them all.
match_plain = re.compile(r"(?:[0-9]{1,18}(?:\.[0-9]{1,18})?,)*").fullmatch


def parse_all(texts, decimals):
    """Return [parse(text, decimals), ...]; of plain digits and points at a third of the cost."""
    joined = ",".join(texts) + ","
    if match_plain(joined) and joined.count(",") == len(texts):
        numbers = []
        for text in texts:
            whole, _, fraction = text.partition(".")
            missing = decimals - len(fraction)
            if missing < 0:
                break
            numbers.append(int(whole + fraction) * POWERS[missing])
        else:
            if not numbers or max(numbers) <= INT64_MAX:
                return numbers
    return [parse(text, decimals) for text in texts]


def decimals_of(text):
    """Return how many decimals the number needs: 2 for "1.5000e-1" (0.15), 0 for "100"."""
    value, places = split(text)
    while places > 0 and value % 10 == 0 and value:
        value //= 10
        places -= 1
    return max(places, 0) if value else 0


def to_text(value: int, decimals: int) -> str:
    """Return the shortest exact decimal text: 6183760 at 2 decimals is "61837.6". Inverse of parse."""
    sign = "-" if value < 0 else ""
    digits = str(abs(value)).rjust(decimals + 1, "0")
    if not decimals:
        return sign + digits
    fraction = digits[-decimals:].rstrip("0")
    return f"{sign}{digits[:-decimals]}.{fraction}" if fraction else sign + digits[:-decimals]


def rescale(value, decimals, wanted=WIRE_DECIMALS):
    """Return the scaled int `value` at another number of decimals, both 0 to 36.

    The plan's precision rules: 8 is likely and changes nothing, fewer multiply, more must not lose a digit.
    Raises: PrecisionError, RangeError.
    """
    if decimals < wanted:
        scaled = value * POWERS[wanted - decimals]
    elif decimals == wanted:
        scaled = value
    else:
        scaled, lost = divmod(value, POWERS[decimals - wanted])
        if lost:
            text = to_text(value, decimals)
            raise PrecisionError(f"{text} has more than {wanted} decimals", len(text.partition(".")[2]))
    if not -INT64_MAX <= scaled <= INT64_MAX:
        raise RangeError(f"{to_text(value, decimals)} at {wanted} decimals does not fit 64 bits")
    return scaled
