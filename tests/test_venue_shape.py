"""Learned layouts: what a message teaches, what is laid out alike afterwards, and which messages teach nothing."""

import json
import re

import pytest
from support import dice

from feeder.venue import shape

SLOTS = {b"t": shape.is_count, b"T": shape.is_time, b"p": shape.number_slot(2, 10)}
TRADE = b'{"stream":"a1@trade","data":{"e":"trade","s":"AB","t":12,"p":"10.50","T":1723161255342,"m":true,"x":-57,"z":null}}'


def learned(text, slots=SLOTS):
    """Return read(text) -> {name: int text} or None, as a venue would build it."""
    layout = shape.learn(text, slots)
    key = text.translate(shape.ZEROS)

    def read(other):
        if other.translate(shape.ZEROS) != key or shape.ZERO in layout.firsts(other):
            return None
        if layout.literals is not None and layout.literals[0](other) != layout.literals[1]:
            return None
        return dict(zip((name.decode() for name in layout.names), layout.unpack(other.replace(b".", b""))))
    return read


def test_slots_are_read_and_the_rest_stays():
    read = learned(TRADE)
    assert read(TRADE) == {"t": b"12", "p": b"1050", "T": b"1723161255342"}
    other = TRADE.replace(b'"t":12', b'"t":97').replace(b"10.50", b"07.25").replace(b"-57", b"-12")
    assert read(other) == {"t": b"97", "p": b"0725", "T": b"1723161255342"}


@pytest.mark.parametrize("found, put", [
    (b'"e":"trade"', b'"e":"kline"'), (b'"t":12', b'"t":-12'), (b'"t":12', b'"t":02'), (b'"t":12', b'"t":012'),
    (b'"t":12', b'"t":1.0'), (b'"t":12', b'"t":"12"'), (b'"t":12', b'"t":1'), (b"10.50", b"10.5"), (b"10.50", b"1.050"),
    (b"10.50", b"1050."), (b"10.50", b"10.500"), (b"10.50", b"10"), (b"10.50", b"-1.50"), (b"10.50", b"1e1.50"),
    (b"10.50", b".1050"), (b"10.50", b"10:50"), (b'"z":null', b'"z":0'), (b"-57", b"-57.5"), (b"-57", b"-05"), (b"-57", b"57"),
    (b"-57", b"057"), (b'"m":true', b'"m":false'), (b'"s":"AB"', b'"s":""'), (b'"s":"AB"', b'"s":"AC"'), (b"a1@", b"a2@"),
    (b'"s":"AB"', b'"s":"\xc3\xa9"'), (b"}}", b"}} "), (b"}}", b"}}\n"), (b"}}", b"}"), (b'{"stream"', b' {"stream"'),
    (b'"e":', b'"e": '), (b'"x":-57', b'"x":-57,"w":1'), (b',"z":null', b"")])
def test_what_is_not_laid_out_alike_is_not_read(found, put):
    assert found in TRADE and learned(TRADE)(TRADE.replace(found, put)) is None


@pytest.mark.parametrize("text", [
    b" ", b'{"a":1.5}', b'{"a":1e5}', b'{"a": 1}', b'{"a":"\\n"}', b'{"a":"\xc3\xa9"}', b'{"a":01}', b'{"a":-}', b'{"a":"\n"}',
    b'{"t":1,"t":2}', b'{"a":{"t":1},"b":{"t":2}}', b'{"a":1,"b":2,"a":3}', b'{"p":"10.5"}', b'{"p":"ten.50"}', b'{"p":10}',
    b'{"p":"1.0.50"}', b'{"p":"12345678901.50"}', b'{"t":"12"}', b'{"t":-1}', b'{"t":true}', b'{"t":' + b"9" * 19 + b"}",
    b'{"T":9000000000000000}', b'{"T":' + b"1" * 17 + b"}", b'{"x":' + b"7" * 101 + b"}", b'{5:1}',
    b'{"x":"' + b"a" * shape.MAX_LEARN_BYTES + b'"}'], ids=lambda text: str(text)[:40])
def test_these_teach_nothing(text):
    assert shape.learn(text, SLOTS) is None


@pytest.mark.parametrize("text", [b"{", b'{"p":[', b'{"a":1,"b":['])
def test_beginnings_can_be_learned(text):
    assert learned(text)(text) == {}


def test_a_time_in_microseconds_keeps_its_first_digit():
    """So that every time of its layout fits 64 bits as ns, as json checks each."""
    read = learned(b'{"T":1723161255342987}')
    assert read(b'{"T":1999999999999999}') and read(b'{"T":2000000000000000}') is None


def test_points_may_stand_anywhere():
    text = b'{"a.b":"x.y.","p":"10.50","t":7,"z":"."}'
    assert learned(text)(text) == {"p": b"1050", "t": b"7"}


@pytest.mark.parametrize("decimals, whole, value, fits", [
    (2, 10, b"1.25", True), (2, 10, b"1.2", False), (2, 10, b"1.250", False), (0, 10, b"125", True), (0, 10, b"1.5", False),
    (8, 10, b"0.00000001", True), (2, 0, b"1.25", False), (18, 0, b"0.000000000000000001", False), (2, 10, b"", False),
    (2, 10, b"-1.25", False), (2, 10, b"1,25", False), (2, 10, b"\xd9\xa1.25", False), (2, 3, b"1234.25", False)])
def test_number_slots(decimals, whole, value, fits):
    assert shape.number_slot(decimals, whole)(value, True) is fits
    assert not shape.number_slot(decimals, whole)(value, False)


def test_counts_and_times_end_where_64_bits_do():
    for text, is_count in ((b"0", True), (b"9" * 18, True), (b"9" * 19, False), (b"", False), (b"-1", False)):
        assert bool(re.fullmatch(shape.COUNT, text)) == shape.is_count(text, False) == is_count
    for text, is_time in ((b"0", True), (b"1723161255343", True), (b"1723161255343123", True), (b"8999999999999999", True),
                          (b"9000000000000000", False), (b"9" * 17, False)):
        assert bool(re.fullmatch(shape.TIME, text)) == shape.is_time(text, False) == is_time


def test_levels_of_any_count_but_one_print():
    match = re.compile(shape.levels(2, 3, (10, 10))).fullmatch
    for text in (b"", b'["1.25","2.500"]', b'["1.25","2.500"],["12.50","0.125"]'):
        assert match(text).group(1) == text
    for side in (b'["1.25","2.50"]', b'["1.2","2.500"]', b'["1.25",2.500]', b'["1.25"]', b'["1.25","2.500",[]]', b"[]",
                 b'["1.25","2.500"],', b',["1.25","2.500"]', b'["1.25","2.500"]["1.25","2.500"]', b'["-1.25","2.500"]',
                 b'["1.25", "2.500"]', b'["1.25","2.500"]]', b'[["1.25","2.500"]', b'["12345678901.25","2.500"]'):
        assert match(side) is None, side


def test_cut_levels_reads_what_the_pattern_let_through():
    rng = dice(3)
    for decimals in ((2, 3), (0, 3), (8, 8), (2, 0), (0, 0)):
        pattern = re.compile(shape.levels(*decimals, (10, 10)))
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
    near_miss = b",".join([b'["1.25","2.500"]'] * 100_000) + b',["1.25","2.50"]'
    assert re.compile(shape.levels(2, 3, (10, 10))).fullmatch(near_miss) is None      # minutes, if it were not so
