"""Learned patterns: what a message teaches, what matches it afterwards, and which messages teach nothing."""

import json
import re

import pytest
from support import dice

from feeder.venue import shape

SLOTS = {b"s": shape.NAME, b"stream": shape.ANY_NAME, b"t": shape.COUNT, b"m": shape.BOOLEAN,
         b"p": shape.number_slot(2, 10)}
TRADE = b'{"stream":"a@trade","data":{"e":"trade","s":"AB","t":12,"p":"10.50","m":true,"x":5,"y":false,"z":null}}'


def learned(text, slots=SLOTS):
    """Return match(text) -> {name: group} or None."""
    pattern, names = shape.learn(text, slots)
    match = re.compile(pattern).match

    def groups(other):
        found = match(other)
        return found and dict(zip((name.decode() for name in names), found.groups()))
    return groups


def test_slots_become_groups_and_the_rest_stays():
    match = learned(TRADE)
    assert match(TRADE) == {"s": b"AB", "t": b"12", "p": b"10.50", "m": b"true"}
    other = TRADE.replace(b"a@trade", b"b@other").replace(b"12", b"0").replace(b"10.50", b"7.25")
    other = other.replace(b"true", b"false")
    assert match(other) == {"s": b"AB", "t": b"0", "p": b"7.25", "m": b"false"}
    assert match(TRADE.replace(b'"x":5', b'"x":-77').replace(b'"y":false', b'"y":true'))


@pytest.mark.parametrize("found, put", [
    (b'"e":"trade"', b'"e":"kline"'), (b'"t":12', b'"t":-12'), (b'"t":12', b'"t":012'), (b'"t":12', b'"t":1.0'),
    (b'"t":12', b'"t":"12"'), (b'"t":12', b'"t":' + b"9" * 19), (b"10.50", b"10.5"), (b"10.50", b"10.500"),
    (b"10.50", b"10"), (b"10.50", b"-1.50"), (b"10.50", b"1e1.50"), (b"10.50", b"12345678901.50"), (b"10.50", b".50"),
    (b"10.50", b"10:50"), (b'"z":null', b'"z":0'), (b'"x":5', b'"x":5.5'), (b'"x":5', b'"x":05'),
    (b'"x":5', b'"x":' + b"7" * 101), (b'"y":false', b'"y":0'), (b'"s":"AB"', b'"s":""'),
    (b'"s":"AB"', b'"s":"A\\u0042"'),
    (b'"s":"AB"', b'"s":"A\xc3\xa9"'), (b'"s":"AB"', b'"s":"A\nB"'), (b"}}", b"}} "), (b"}}", b"}}\n"), (b"}}", b"}"),
    (b'{"stream"', b' {"stream"'), (b'"e":', b'"e": '), (b'"x":5', b'"x":5,"w":1'), (b',"z":null', b"")])
def test_what_is_not_to_the_letter_does_not_match(found, put):
    assert found in TRADE and learned(TRADE)(TRADE.replace(found, put)) is None


@pytest.mark.parametrize("text", [
    b"", b" ", b"{", b'{"a":1.5}', b'{"a":1e5}', b'{"a": 1}', b'{"a":"\\n"}', b'{"a":"\xc3\xa9"}', b'{"a":01}',
    b'{"a":-}',
    b'{"t":1,"t":2}', b'{"a":{"t":1},"b":{"t":2}}', b'{"a":1,"b":2,"a":3}', b'{"p":"10.5"}', b'{"p":"ten.50"}',
    b'{"p":"1.0.50"}', b'{"x":"' + b"a" * shape.MAX_LEARN_BYTES + b'"}'], ids=lambda text: str(text)[:40])
def test_these_teach_nothing(text):
    if text in (b"", b"{"):
        assert learned(text)(text) == {}                  # harmless: they match themselves, json has refused them
    else:
        assert shape.learn(text, SLOTS) is None


def test_levels_of_any_count_but_one_print():
    slots = {b"b": shape.Levels(shape.level(2, 3, (10, 10))), b"a": shape.Levels(shape.level(2, 3, (10, 10)))}
    for teacher in (b'{"b":[["1.25","2.500"]],"a":[]}', b'{"b":[],"a":[["1.25","2.500"],["7.00","0.000"]]}',
                    b'{"b":[],"a":[]}'):
        match = learned(teacher, slots)
        assert match(b'{"b":[["1.25","2.500"],["12.50","0.125"]],"a":[["3.00","4.000"]]}') == {
            "b": b'["1.25","2.500"],["12.50","0.125"]', "a": b'["3.00","4.000"]'}
        assert match(b'{"b":[],"a":[]}') == {"b": b"", "a": b""}
        for side in (b'["1.25","2.50"]', b'["1.2","2.500"]', b'["1.25",2.500]', b'["1.25"]', b'["1.25","2.500",[]]',
                     b"[]",
                     b'["1.25","2.500"],', b',["1.25","2.500"]', b'["1.25","2.500"]["1.25","2.500"]',
                     b'["-1.25","2.500"]',
                     b'["1.25", "2.500"]', b'["1.25","2.500"]]', b'[["1.25","2.500"]', b'["12345678901.25","2.500"]'):
            assert match(b'{"b":[' + side + b'],"a":[]}') is None, side


def test_a_slot_of_levels_takes_nothing_else():
    slots = {b"b": shape.Levels(shape.level(2, 3, (10, 10)))}
    for text in (b'{"b":5}', b'{"b":"x"}', b'{"b":null}', b'{"b":[["1.25","2.500"]'):
        assert shape.learn(text, slots) is None
    assert learned(b'{"b":{"x":1}}', slots)(b'{"b":{"x":2}}') == {}


@pytest.mark.parametrize("decimals, whole, value, fits", [
    (2, 10, b"1.25", True), (2, 10, b"1.2", False), (2, 10, b"1.250", False), (0, 10, b"125", True),
    (0, 10, b"1.5", False),
    (8, 10, b"0.00000001", True), (2, 0, b"1.25", False), (18, 0, b"0.000000000000000001", False), (2, 10, b"", False),
    (2, 10, b"-1.25", False), (2, 10, b"1,25", False), (2, 10, b"\xd9\xa1.25", False)])
def test_number_slots(decimals, whole, value, fits):
    pattern = shape.number_slot(decimals, whole)(value)
    assert (pattern is not None) == fits
    if fits:
        assert re.fullmatch(pattern, value) and re.fullmatch(pattern, value).group(1) == value


def test_the_slots_of_counts_and_times_end_where_64_bits_do():
    for text, is_count in ((b"0", True), (b"9" * 18, True), (b"9" * 19, False), (b"00", False), (b"", False),
                           (b"-1", False)):
        assert bool(re.fullmatch(shape.COUNT, text)) == is_count
    for text, is_time in ((b"0", True), (b"1723161255343", True), (b"1723161255343123", True),
                          (b"8999999999999999", True),
                          (b"9000000000000000", False), (b"9" * 17, False), (b"01", False)):
        assert bool(re.fullmatch(shape.TIME, text)) == is_time


def test_cut_levels_reads_what_the_pattern_let_through():
    rng = dice(3)
    for decimals in ((2, 3), (0, 3), (8, 8), (2, 0), (0, 0)):
        whole = 10, 10
        pattern = re.compile(shape.Levels(shape.level(*decimals, whole)).pattern)
        for count in (0, 1, 2, 50):
            numbers = [rng.randrange(10 ** rng.randrange(1, 11 + decimals[at % 2])) for at in range(2 * count)]
            texts = []
            for at, value in enumerate(numbers):
                places = decimals[at % 2]
                digits = str(value).rjust(places + 1, "0")
                texts.append(f"{digits[:-places]}.{digits[-places:]}" if places else digits)
            levels = [list(level) for level in zip(texts[::2], texts[1::2])]
            text = json.dumps(levels, separators=(",", ":"))[1:-1].encode()
            assert pattern.fullmatch(text).group(1) == text
            assert shape.cut_levels(text) == numbers


def test_matching_hostile_text_takes_no_time():
    """The pattern has one way through a text, so a near miss is not tried in many ways."""
    slots = {b"b": shape.Levels(shape.level(2, 3, (10, 10)))}
    match = learned(b'{"b":[["1.25","2.500"]]}', slots)
    near_miss = b'{"b":[' + b",".join([b'["1.25","2.500"]'] * 100_000) + b',["1.25","2.50"]]}'
    assert match(near_miss) is None                        # minutes, if it were not so
