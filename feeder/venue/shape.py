"""The likely path: layouts learned from one message, for all messages that are laid out like it.

A venue prints the messages of one stream alike: same keys, same order, same number of decimals. Read every digit
as 0, and they are even the same text. So the first one goes through `json` (the unlikely path, always right), and
`learn` notes where in it the numbers stand; for the others one `translate` and one look-up in a dict find that out:

    {"stream":"btcusdt@trade","data":{"e":"trade","E":1723161255343,"s":"BTCUSDT","t":3707915061,"p":"61837.63000000",...
    {"stream":"btcusdt@trade","data":{"e":"trade","E":0000000000000,"s":"BTCUSDT","t":0000000000,"p":"00000.00000000",...

Equal layouts are equal JSON but for the digits. What digits can still spoil is checked: a JSON integer of several
does not begin with 0 (`firsts`), and those within names are to the letter (`literals`). So a message that passes means
what `json` would read, and both paths give the same result. All others go through `json`, and may teach a layout.

An array of price levels varies in length: the layout ends with its "[", and a regular expression checks the rest.
`cut_levels` then cuts it with whole-text operations of bytes (translate, split), which run at memory speed.

Hot:  the readers built on a Layout, the expressions, cut_levels; measured by `feeder bench decode`.
"""

import re
from collections import namedtuple
from functools import lru_cache
from operator import itemgetter
from struct import Struct

ZEROS = bytes.maketrans(b"123456789", b"000000000")
ZERO = ord("0")
MAX_LEARN_BYTES = 4096

match_token = re.compile(
    rb'"([^"\\\x00-\x1f\x80-\xff]*)"|(-?(?:0|[1-9][0-9]*))(?![0-9.eE])|(true|false|null)|([{}\[\]:,])').match
has_digit = re.compile(rb"[0-9]").search

COUNT = rb"(0|[1-9][0-9]{0,17})"              # a JSON integer that surely fits 64 bits
TIME = rb"(0|[1-9][0-9]{0,14}|[1-8][0-9]{15})"    # in ms or µs, whose ns surely fit 64 bits
ANY_NAME = rb'(?:[^"\\\x00-\x1f\x80-\xff]+)'  # known from elsewhere: not captured
ANY_INTEGER = rb"-?(?:0|[1-9][0-9]{0,99})"    # int() refuses thousands of digits, so json does
try:
    POSSESSIVE = b"+"                         # matching the levels of a diff takes 2.2 us with it, 3.5 without
    re.compile(b"[0-9]{1,2}" + POSSESSIVE)
except re.error:                              # before 3.11
    POSSESSIVE = b""


# What `learn` found. unpack(head without its points) gives the texts of `names`, in that order.
#   firsts(head): first digits of integers, none of which may be ZERO      literals: None, or (getter, what it must give)
Layout = namedtuple("Layout", "names unpack firsts literals")


def learn(head, slots):
    """Return the Layout of a message up to its first "[", or of all of it; None if it teaches nothing.

    No key may come twice, at any depth. The caller sees to it that those with slots are where it reads them.

    Args:
      slots: {key: function(text, is_string) -> is it one we can read?}; keys are those of the innermost object.
    """
    if len(head) > MAX_LEARN_BYTES:
        return None
    names, places, firsts, literals, nesting, keys = [], [], [], [], [], set()
    at, key, key_comes = 0, None, False
    while at < len(head):
        token = match_token(head, at)
        if token is None:
            return None
        string, integer, word, mark = token.groups()
        start, at = at, token.end()
        if mark:
            if mark in b"{[":
                nesting.append(mark)
            elif mark in b"}]" and nesting:
                nesting.pop()
            key_comes = mark == b"{" or mark == b"," and nesting[-1:] == [b"{"]
            continue
        is_key, key_comes = key_comes, False
        if is_key:
            if string is None or string in keys:      # json takes the last of them, and a layout cannot tell
                return None
            key = string
            keys.add(string)
        elif key in slots:
            text = token.group().strip(b'"')
            if not slots[key](text, string is not None):
                return None
            names.append(key)
            places.append((start + (string is not None), len(text)))
        if integer:
            digits = integer.lstrip(b"-")
            if len(digits) > 100:
                return None
            if len(digits) > 1:
                firsts.append(at - len(digits))
            if len(digits) == 16:                     # a time in µs fits with the first digit it has, not with any
                literals.append((at - 16, at - 15))
        elif (is_key or key not in slots) and has_digit(token.group()):
            literals.append((start, at))
    names_in = getter(tuple(literals)) if literals else None
    return Layout(names, unpacker(head, places), getter(tuple(firsts) or (0,)), names_in and (names_in, names_in(head)))


def in_order(layout, wanted):
    """Return unpack(head without points) -> the texts of `wanted`. Raises ValueError where the layout lacks one."""
    order = tuple(layout.names.index(name) for name in wanted)
    return layout.unpack if order == tuple(range(len(layout.names))) else reordered(layout.unpack, order)


# Shared by all layouts that have the same numbers in the same places: with many instruments, memory is time.

@lru_cache(maxsize=4096)
def reordered(unpack, order):
    pick = itemgetter(*order)
    return lambda head: pick(unpack(head))


@lru_cache(maxsize=4096)
def unpack_of(form):
    return Struct(form).unpack


@lru_cache(maxsize=4096)
def getter(places):
    """Return get(text) -> tuple of what stands at `places`, indexes or (start, stop) pairs."""
    places = [place if isinstance(place, int) else slice(*place) for place in places]
    return itemgetter(*places, places[0])             # a single one would come without its tuple


def unpacker(head, places):
    """Return unpack(head without points) -> the texts at `places`, (start, size) in the head with them."""
    form, end = [], 0
    for start, size in places:
        size -= head.count(b".", start, start + size)
        start -= head.count(b".", 0, start)
        form.append(f"{start - end}x{size}s")
        end = start + size
    return unpack_of("".join(form) + f"{len(head) - head.count(b'.') - end}x")


def is_count(text, is_string):
    return not is_string and text.isdigit() and len(text) <= 18


def is_time(text, is_string):
    """In ms or µs, so that its ns fit 64 bits."""
    return not is_string and text.isdigit() and (len(text) <= 15 or len(text) == 16 and text < b"9")


def printed_decimals(text):
    """Return how many digits `text` (bytes) prints after its point."""
    return len(text.partition(b".")[2])


def number_slot(decimals, whole_digits):
    """Return a slot for decimal text that prints `decimals` digits: without its point, it is the scaled int.

    Whole parts have at most `whole_digits`, so the value fits its exponent.
    """
    fullmatch = re.compile(number(decimals, whole_digits)).fullmatch if whole_digits > 0 else None
    return lambda text, is_string: is_string and fullmatch is not None and fullmatch(text) is not None


def number(decimals, whole_digits):
    """Return the pattern of such a number."""
    whole = b"[0-9]{1,%d}" % whole_digits + POSSESSIVE
    return whole + rb"\.[0-9]{%d}" % decimals if decimals else whole


def levels(price_decimals, quantity_decimals, whole_digits):
    """Return the pattern of levels such as `["61837.64000000","1.54698000"],...`, all in one group.

    `whole_digits` are of (price, quantity).
    """
    level = (rb'\["' + number(price_decimals, whole_digits[0]) + rb'","'
             + number(quantity_decimals, whole_digits[1]) + rb'"\]')
    return b"((?:" + level + b"(?:," + level + b")*" + POSSESSIVE + b")?" + POSSESSIVE + b")"


def cut_levels(text):
    """Return [price, quantity, ...] of text that a level pattern has matched: without its points, digits are the ints."""
    return list(map(int, text.translate(None, b'."[]').split(b","))) if text else []
