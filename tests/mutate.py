"""Ways a message may come out wrong: each takes (dice, message bytes) and returns other bytes.

Half of them know JSON and keep it valid, since garbage is refused early while a well-formed stranger goes deep.
"""

import copy
import json
import re

NUMBER = re.compile(rb"[0-9]+(?:\.[0-9]+)?")
TEXT = re.compile(rb'"[^"\\]*"')
STRANGE = ("", "NaN", "Infinity", "-1", "+1.5", "1e5", "1.5E-3", "0x10", "1_000", " 1.0", "1.0 ", "1,5", ".5", "5.",
           "--1",
           "1.2.3", "١٢٣", "½", "0", "00012.50", "-0.00", "9" * 19, "9" * 40, "0." + "0" * 17 + "1", "1." + "1" * 30,
           "1e999", "1e-999", "9223372036854775807", "92233720368.54775807", "12345678901.5", "9999999999.99999999")
OTHERS = (None, True, False, 0, -1, 1, 1.5, 2**63 - 1, 2**63, 2**64, 10**14, 10**18, 10**30, "", "x", [], {}, [[]],
          [["1"]], [[1, 2]], [["1.5", "2"]], [["1.5", "2", []]], [["1.5", None]], {"a": {"b": []}}, "depthUpdate",
          "trade", "btcusdt@depth20", "BTCUSDT", "\ud800", "币安人生USDT", "\u0130")


def other(dice):
    return copy.deepcopy(dice.choice(OTHERS))


def flip(dice, text):
    at = dice.randrange(len(text))
    return text[:at] + bytes([text[at] ^ 1 << dice.randrange(8)]) + text[at + 1:]


def replace(dice, text):
    at = dice.randrange(len(text))
    return text[:at] + dice.choice((b'"', b"{", b"}", b"[", b"]", b",", b":", b".", b"0", b"9", b"-", b"e", b"\\",
                                    b" ", b"\x00", b"\xff", b"\n")) + text[at + 1:]


def delete(dice, text):
    at = dice.randrange(len(text))
    return text[:at] + text[at + dice.choice((1, 1, 1, 2, 5, 20)):]


def insert(dice, text):
    at = dice.randrange(len(text) + 1)
    return text[:at] + bytes(dice.randrange(256) for _ in range(dice.choice((1, 1, 2, 4)))) + text[at:]


def truncate(dice, text):
    return text[:dice.randrange(len(text))]


def repeat(dice, text):
    at = dice.randrange(len(text))
    end = at + dice.randrange(1, 40)
    return text[:end] + text[at:]


def two_in_one(dice, text):
    return text + dice.choice((b"", b" ", b"\n", b",")) + text


def whitespace(dice, text):
    at = dice.choice([found.end() for found in re.finditer(rb"[{}\[\]:,]", text)] or [0])
    return text[:at] + dice.choice((b" ", b"\n", b"\t", b"\r\n", b"\x0b", b"\xc2\xa0")) + text[at:]


def a_number(change):
    def mutate(dice, text):
        found = list(NUMBER.finditer(text))
        if not found:
            return text + b" "
        match = dice.choice(found)
        return text[:match.start()] + change(dice, match.group()) + text[match.end():]
    mutate.__name__ = change.__name__
    return mutate


@a_number
def other_digits(dice, number):
    return re.sub(rb"[0-9]", lambda _: b"%d" % dice.randrange(10), number)


@a_number
def more_digits(dice, number):
    at = dice.randrange(len(number) + 1)
    return number[:at] + b"%d" % dice.randrange(10 ** dice.choice((1, 2, 12))) + number[at:]


@a_number
def fewer_digits(dice, number):
    at = dice.randrange(len(number))
    return number[:at] + number[at + 1:]


@a_number
def more_decimals(dice, number):
    point = b"" if b"." in number else b"."
    return number + point + dice.choice((b"0", b"1", b"00000001", b"5" * dice.randrange(1, 20)))


@a_number
def long_number(dice, number):
    return number + b"%d" % dice.randrange(10) * dice.choice((10, 17, 18, 19, 64, 400, 5_000))


@a_number
def exponent(dice, number):
    return number + dice.choice((b"e1", b"E-1", b"e+3", b"e-9", b"e400", b"e", b"e99999"))


@a_number
def sign(dice, number):
    return dice.choice((b"-", b"+", b"0", b"-0")) + number


@a_number
def point_moved(dice, number):
    digits = number.replace(b".", b"")
    at = dice.randrange(len(digits) + 1)
    return digits[:at] + b"." + digits[at:]


def a_text(change):
    def mutate(dice, text):
        match = dice.choice(list(TEXT.finditer(text)) or [re.match(b"", text)])
        return text[:match.start()] + b'"' + change(dice, match.group()[1:-1]) + b'"' + text[match.end():]
    mutate.__name__ = change.__name__
    return mutate


@a_text
def other_text(dice, text):
    return dice.choice(STRANGE).encode()


@a_text
def escaped(dice, text):
    at = dice.randrange(len(text) + 1)
    return text[:at] + dice.choice((rb"\u0041", rb"\ud800", rb"\"", rb"\n", rb"\u0000", rb"\x")) + text[at:]


@a_text
def same_text_escaped(dice, text):
    at = dice.randrange(len(text)) if text else 0
    return text[:at] + (b"\\u%04x" % text[at] if text else b"") + text[at + 1:]


@a_text
def not_ascii(dice, text):
    at = dice.randrange(len(text) + 1)
    return text[:at] + dice.choice(("é", "币", "😀", "\u2028", "\x7f", "\x1f")).encode() + text[at:]


@a_text
def not_utf8(dice, text):
    at = dice.randrange(len(text) + 1)
    return text[:at] + dice.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe5\xb8", b"\x80")) + text[at:]


class Pairs(list):
    """A JSON object as the list of its pairs, so that keys can repeat and move."""


def write(value, spaces):
    comma, colon = (", ", ": ") if spaces else (",", ":")
    if isinstance(value, Pairs):
        return "{" + comma.join(json.dumps(key) + colon + write(each, spaces) for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + comma.join(write(each, spaces) for each in value) + "]"
    return json.dumps(value)


def objects(value):
    if isinstance(value, Pairs):
        yield value
        for _, each in value:
            yield from objects(each)


def an_object(change):
    def mutate(dice, text):
        try:
            message = json.loads(text, object_pairs_hook=Pairs)
            found = [each for each in objects(message) if each]
            if found:
                change(dice, dice.choice(found[-2:] + found[-1:]))
            return write(message, dice.random() < 0.05).encode()
        except (ValueError, RecursionError):          # it was mutated before, and is JSON no more
            return text
    mutate.__name__ = change.__name__
    return mutate


@an_object
def key_removed(dice, pairs):
    del pairs[dice.randrange(len(pairs))]


@an_object
def key_twice(dice, pairs):
    key, value = dice.choice(pairs)
    pairs.insert(dice.randrange(len(pairs) + 1), (key, dice.choice((value, dice.choice(pairs)[1], other(dice)))))


@an_object
def keys_reordered(dice, pairs):
    dice.shuffle(pairs)


@an_object
def key_renamed(dice, pairs):
    at = dice.randrange(len(pairs))
    pairs[at] = dice.choice("eEsUuptqmabBATXc") + dice.choice(("", "", "u")), pairs[at][1]


@an_object
def key_added(dice, pairs):
    pairs.insert(dice.randrange(len(pairs) + 1), (dice.choice(("E", "T", "pu", "u", "s", "e", "X", "st", "data",
                                                               "stream",
                                                               "id", "code", "msg", "result", "error", "new")),
                                                  other(dice)))


@an_object
def values_swapped(dice, pairs):
    one, two = dice.randrange(len(pairs)), dice.randrange(len(pairs))
    values = pairs[one][1], pairs[two][1]
    pairs[one], pairs[two] = (pairs[one][0], values[1]), (pairs[two][0], values[0])


@an_object
def value_of_another_kind(dice, pairs):
    at = dice.randrange(len(pairs))
    key, value = pairs[at]
    pairs[at] = key, dice.choice((str(value), other(dice), [value], Pairs([("x", value)])))


@an_object
def wrapped(dice, pairs):
    pairs[:] = [(dice.choice(("data", "stream", "E", "x")), Pairs(pairs))]


@an_object
def value_moved_in(dice, pairs):
    """Some pairs go into an object of their own, beside the rest."""
    inner = Pairs(pair for pair in pairs if dice.random() < 0.3)
    pairs[:] = [pair for pair in pairs if pair not in inner]
    pairs.insert(dice.randrange(len(pairs) + 1), ("x", inner))


@an_object
def levels_changed(dice, pairs):
    sides = [value for _, value in pairs if type(value) is list]
    side = dice.choice(sides) if sides else []
    level = dice.choice(side) if side else []
    level = level if type(level) is list else []
    choice = dice.randrange(8)
    if choice == 0 and level:
        level.reverse()
    elif choice == 1:
        side.append(other(dice))
    elif choice == 2 and level:
        level.append(other(dice))
    elif choice == 3 and level:
        level.pop()
    elif choice == 4 and level:
        level[dice.randrange(len(level))] = dice.choice((dice.choice(STRANGE), other(dice)))
    elif choice == 5:
        dice.shuffle(side)
    elif choice == 6:
        side.clear()
    elif choice == 7 and side:
        side += side[:dice.randrange(1, 4)]


@an_object
def sides_swapped(dice, pairs):
    across = {"b": "a", "a": "b", "B": "A", "A": "B"}
    pairs[:] = [(across.get(key, key), value) for key, value in pairs]


@an_object
def a_strange_number(dice, pairs):
    at = dice.randrange(len(pairs))
    pairs[at] = pairs[at][0], dice.choice(STRANGE)


def nested(dice, text):
    depth = dice.choice((1, 10, 200, 900, 990, 1_000, 100_000))
    match = dice.choice(list(TEXT.finditer(text)) or [re.match(b"", text)])
    opening, closing = dice.choice(((b"[", b"]"), (b'{"a":', b"}")))
    middle = dice.choice((b"1", b"", match.group() or b"1"))
    return text[:match.start()] + opening * depth + middle + closing * depth + text[match.end():]


MUTATIONS = (flip, replace, delete, insert, truncate, repeat, two_in_one, whitespace, other_digits, more_digits,
             fewer_digits, more_decimals, long_number, exponent, sign, point_moved, other_text, escaped,
             same_text_escaped, not_ascii, not_utf8, key_removed, key_twice, keys_reordered, key_renamed, key_added,
             values_swapped, value_of_another_kind, wrapped, value_moved_in, levels_changed, sides_swapped,
             a_strange_number, nested)
