"""What can be made to go wrong, and how an operator or a test asks for it.

    KIND@WHEN[+SECONDS][:SYMBOL]      WHEN: seconds after the first subscription.   gap@5:BTCUSDT   mute@3+2

| kind | what the clients see |
|---|---|
| gap | one diff (of the symbol, or the next of any) is never sent |
| duplicate, reorder | one diff comes twice; comes after its successor |
| disconnect | the TCP connections are reset, without a WebSocket close |
| mute | connections stay and answer pings, but bring no data: for SECONDS, or until they are made anew |
| slow | connections trickle SLOW_BYTES_PER_SECOND for SECONDS (2 unless given), then catch up |
| garbage | a text that is no JSON, a diff cut in half, and a binary frame, on every connection |
| stale_snapshot | the next REST depth answer is the book of the market's first moment, older than any diff |
| rest_429, rest_error | the next REST request is refused as too many, the venue's way; 500 |

And what only some venues can show:

| kind | what the clients see |
|---|---|
| sequence, no_sequence | one diff carries a wrong number; carries none. What follows is numbered right |
| checksum, no_checksum | one checksum is wrong; is missing. The levels are right |
| reset | the venue starts its numbers anew, and says so its own way |
| snapshot | a snapshot nobody asked for, amid the diffs |
| notice | connections are told that they will end, and end (SECONDS later, unless given the venue's time) |
| maintenance | connections are told that it starts, hear nothing for SECONDS (or the venue's time), are told it ended |

A fault a venue's clients could not tell from the ordinary is refused there by name.
"""

import math

from ..errors import ConfigError

DIFF_FAULTS = ("gap", "duplicate", "reorder")                       # wait for a diff
REST_FAULTS = ("stale_snapshot", "rest_429", "rest_error")          # wait for a request
WIRE_FAULTS = ("disconnect", "mute", "slow", "garbage")             # happen at once
KINDS = DIFF_FAULTS + REST_FAULTS + WIRE_FAULTS                     # of Binance
CONTENT_FAULTS = ("sequence", "no_sequence", "checksum", "no_checksum", "reset", "snapshot")      # wait for a diff
ALL_KINDS = KINDS + CONTENT_FAULTS + ("notice", "maintenance")
SHOWN_BY_ALL = ("duplicate", "rest_429", "rest_error") + WIRE_FAULTS
SLOW_BYTES_PER_SECOND = 20_000


class Fault:
    __slots__ = ("kind", "when_s", "seconds", "symbol")

    def __init__(self, kind, when_s=0.0, seconds=0.0, symbol=None):
        if kind not in ALL_KINDS:
            raise ConfigError(f"fault kind {kind!r} is unknown, expected one of {', '.join(ALL_KINDS)}")
        for name, value in (("WHEN", when_s), ("SECONDS", seconds)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"fault {kind}: {name} is {value!r}, expected seconds, 0 or more")
        self.kind, self.when_s, self.seconds, self.symbol = kind, when_s, seconds, symbol

    def fits(self, symbol):
        return self.symbol is None or self.symbol == symbol or symbol is not None and (
            self.symbol.upper() == symbol.upper())          # venues spell in either case, operators too

    def __repr__(self):
        return f"{self.kind}@{self.when_s:g}" + (f"+{self.seconds:g}" if self.seconds else "") + (
            f":{self.symbol}" if self.symbol else "")


def parse(text):
    """'gap@5:BTCUSDT' -> Fault; ConfigError names what is wrong."""
    kind, at, rest = text.partition("@")
    when, _, symbol = rest.partition(":")
    when, _, seconds = when.partition("+")
    try:
        return Fault(kind, float(when), float(seconds or 0), symbol.upper() or None)
    except ValueError:
        raise ConfigError(f"--fault {text}: expected KIND@WHEN[+SECONDS][:SYMBOL], such as gap@5:BTCUSDT") from None
