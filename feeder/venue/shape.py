"""The likely path: patterns learned from one message, for all messages that are shaped like it.

A venue prints the messages of one stream alike: same keys, same order, same number of decimals. The first
one goes through `json` (the unlikely path, always right). `learn` then turns its very text into a regular
expression in which the fields we read became groups, and all else must stand there to the letter:

    {"stream":"btcusdt@trade","data":{"e":"trade","E":1723161255343, ... "p":"61837.63000000", ... "m":true}}
    {"stream":"[^"]+","data":{"e":"trade","E":(0|[1-9][0-9]{0,17}), ... "p":"([0-9]{1,10}\\.[0-9]{8})", ...

What matches is valid JSON with the same meaning, so both paths give the same result. Whatever does not
(other keys, more decimals, white space, garbage) goes through `json` again, and may teach a new shape.

Price levels are checked by the same expression and cut by `cut_levels` with whole-text operations of bytes
(translate, split), which run at memory speed.

Hot:  the matches and the cutters; measured by `feeder bench decode`.
"""

import re

MAX_LEARN_BYTES = 1 << 20

match_token = re.compile(
    rb'"([^"\\\x00-\x1f\x80-\xff]*)"|(-?(?:0|[1-9][0-9]*))(?![0-9.eE])|(true|false|null)|([{}\[\]:,])').match

COUNT = rb"(0|[1-9][0-9]{0,17})"              # a JSON integer that surely fits 64 bits
TIME = rb"(0|[1-9][0-9]{0,14}|[1-8][0-9]{15})"    # in ms or µs, whose ns surely fit 64 bits
BOOLEAN = rb"(true|false)"
NAME = rb'([^"\\\x00-\x1f\x80-\xff]+)'
ANY_NAME = rb'(?:[^"\\\x00-\x1f\x80-\xff]+)'  # known from elsewhere: not captured
ANY_INTEGER = rb"-?(?:0|[1-9][0-9]{0,99})"    # int() refuses thousands of digits, so json does
ANY_BOOLEAN = rb"(?:true|false)"


class Levels:
    """Slot of an array of levels: one group with all between its brackets."""

    def __init__(self, level_pattern):
        self.pattern = b"((?:" + level_pattern + b"(?:," + level_pattern + b")*)?)"


def learn(text, slots):
    """Return (pattern, names) of the whole text, names[i] being the key of group i + 1; None if it has no shape.

    No key may come twice, at any depth. The caller sees to it that those with slots are where it reads them.

    Args:
      slots: {key: pattern, or function(value) -> pattern or None, or Levels}; keys are those of the innermost
        object. Strings without a slot stay literal, integers and booleans without one may be any.
    """
    if len(text) > MAX_LEARN_BYTES:
        return None
    parts, names, nesting, keys = [], [], [], set()
    at, key, key_comes = 0, None, False
    while at < len(text):
        token = match_token(text, at)
        if token is None:
            return None
        string, integer, word, mark = token.groups()
        at = token.end()
        if mark:
            parts.append(re.escape(mark))
            slot = slots.get(key)
            if mark == b"[" and isinstance(slot, Levels):
                empty = text[at:at + 1] == b"]"
                at = at if empty else text.find(b"]]", at) + 1     # now at the array's own "]"
                if not at:
                    return None
                nesting.append(mark)
                parts.append(slot.pattern)
                names.append(key)
            elif mark in b"{[":
                nesting.append(mark)
            elif mark in b"}]" and nesting:
                nesting.pop()
            key_comes = mark == b"{" or mark == b"," and nesting[-1:] == [b"{"]
        elif key_comes:
            if string in keys:              # json takes the last of them, and a pattern cannot tell
                return None
            key, key_comes = string, False
            keys.add(string)
            parts.append(re.escape(token.group()))
        else:
            slot = slots.get(key)
            pattern = slot(token.group().strip(b'"')) if callable(slot) else slot
            if pattern is None and slot is not None or isinstance(slot, Levels):
                return None
            if pattern is not None:
                if not pattern.startswith(b"(?:"):
                    names.append(key)
                parts.append(b'"' + pattern + b'"' if string is not None else pattern)
            elif integer:
                parts.append(ANY_INTEGER)
            elif word in (b"true", b"false"):
                parts.append(ANY_BOOLEAN)
            else:
                parts.append(re.escape(token.group()))
    return b"".join(parts) + rb"\Z", names


def printed_decimals(text):
    """Return how many digits `text` (bytes) prints after its point."""
    return len(text.partition(b".")[2])


def number(decimals, whole_digits):
    """Return the pattern of decimal text that prints `decimals` digits after its point: without it, the scaled int.

    Whole parts have at most `whole_digits`, so the value fits its exponent.
    """
    whole = b"[0-9]{1,%d}" % whole_digits
    return whole + rb"\.[0-9]{%d}" % decimals if decimals else whole


def number_slot(decimals, whole_digits):
    """Return a slot for such a number; a message that prints another count of decimals has no shape."""

    def slot(value):
        if whole_digits < 1 or printed_decimals(value) != decimals or not value.replace(b".", b"", 1).isdigit():
            return None
        return b"(" + number(decimals, whole_digits) + b")"

    return slot


def level(price_decimals, quantity_decimals, whole_digits):
    """Return the pattern of a level such as `["61837.64000000","1.54698000"]`; `whole_digits` of (price, quantity)."""
    return (rb'\["' + number(price_decimals, whole_digits[0]) + rb'","'
            + number(quantity_decimals, whole_digits[1]) + rb'"\]')


def cut_levels(text):
    """Return [price, quantity, ...] of text that a level pattern has matched: without its points, digits are the ints."""
    return list(map(int, text.translate(None, b'."[]').split(b","))) if text else []
