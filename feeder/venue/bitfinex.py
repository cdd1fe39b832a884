"""Bitfinex v2, public: spot pairs and perpetual contracts.

Source: the exchange's fact sheet (docs.bitfinex.com, read 2026), section numbers in the comments; a recording of 2021.

| message                                | role        | action                                                       |
| [id, [[price, count, amount], ..]]     | snapshot    | sink.snapshot; an empty list, too                            |
| [id, [price, count, amount]]           | increment   | sink.depth; amount below 0: asks; count 0: removed           |
| [id, "cs", checksum]                   | checksum    | of the book as it is now; wrong: STALE, it is sent anew      |
| [id, "te", [id, ms, amount, price]]    | trade       | sink.trade; amount above 0: the taker bought                 |
| [id, "tu", ..], trades as a list       | old trades  | counted: the same trades again                               |
| [id, "hb"]                             | alive       | Notice                                                       |
| event subscribed, unsubscribed, conf   | ack         | Notice; `subscribed` says what an id stands for              |
| event error                            | error       | Notice, with the symbol                                      |
| event info, code 20051                 | notice      | SHUTDOWN: the next connection first, then this one goes      |
| event info, code 20060; platform 0     | maintenance | books STALE, and none before it is over                      |
| event info, code 20061                 | its end     | SHUTDOWN: everything is subscribed anew                      |
| event info, pong                       | alive       | Notice                                                       |
| books R0 (orders), P1 to P4 (rounded), tickers, candles | not ours | counted by channel                             |
| anything else                          | fault       | VenueError                                                   |

SEQ_ALL has all arrays of a socket counted, whatever their channel; so where one is missing, all books of the socket are
STALE and the line is made anew. A checksum comes a few seconds after a change (§4), so unlike a hole it cannot be
waited for: what a book was since the last one is published. With TIMESTAMP each array has the venue's time.

Rows of books have a likely path: one expression takes the array apart. 4 us a message instead of 12, of which `json` is 1.

The sizes in the ticker are sums of 25 levels (in the recording, to the last digit), so it is no best bid and offer.
"""

import json
import re
from collections import namedtuple
from itertools import zip_longest
from urllib.parse import urlsplit
from zlib import crc32

from feeder import clock
from feeder.errors import NumberError, VenueError
from feeder.fixed import POWERS
from feeder.instrument import WIRE_EXPONENT
from feeder.message import BUY, SELL
from feeder.venue.contract import (ACK, ALIVE, ERROR, SHUTDOWN, STREAM, Command, Line, Listing, Notice, Request,
                                   Session, Venue, VenueFacts, exact_json, follows_by_one, packed)
from feeder.venue.mirror import Mirror

TIMESTAMP, SEQ_ALL, OB_CHECKSUM = 32768, 65536, 131072          # §2
FLAGS = TIMESTAMP | SEQ_ALL | OB_CHECKSUM
CHECKED_LEVELS = 25                                             # §5, of each side
MAX_CHANNELS = 64                                               # the venue opens 25 to 36 a connection
STOPPING, MAINTENANCE, RESUMED = "20051", "20060", "20061"
MAINTENANCE_NS = 120 * clock.SECOND                             # §2: at most
STREAMS = {"depth": "book-{levels}", "trade": "trades"}

# §8: the venue's own names of currencies, of those that differ and are likely to be met.
COMMON_NAMES = {"UST": "USDT", "UDC": "USDC", "TSD": "TUSD", "EUT": "EURT", "DSH": "DASH", "IOT": "IOTA", "QTM": "QTUM",
                "ALG": "ALGO", "ATO": "ATOM", "MNA": "MANA", "BCHN": "BCH"}
OWN_NAMES = {common: own for own, common in COMMON_NAMES.items()}

match_pair = re.compile(r"([A-Z0-9]{3})([A-Z0-9]{3})|([A-Z0-9]+):([A-Z0-9]+)").fullmatch
match_integer = re.compile(r"-?[0-9]{1,18}").fullmatch

# An array with one row, its count and perhaps its time: numbers that fit 64 bits at 8 decimals.
NUMBER = r"((?:0|[1-9][0-9]{0,9})(?:\.([0-9]{1,8}))?)"
match_row = re.compile(r"\[([1-9][0-9]{0,17}),\[" + NUMBER + r",(0|[1-9][0-9]{0,8}),(-?)" + NUMBER
                       + r"\],([1-9][0-9]{0,17})(?:,([1-9][0-9]{12}))?\]").fullmatch

Channel = namedtuple("Channel", "id kind symbol levels")


def checksum_of(mirror):
    """§5: bid, ask, bid, ask, ... as far as there are any; "price:amount" as they were printed. Signed."""
    pairs = zip_longest(mirror.bids.top(CHECKED_LEVELS), mirror.asks.top(CHECKED_LEVELS))
    found = crc32(":".join(digits for pair in pairs for digits in pair if digits).encode())
    return found - (1 << 32) if found >> 31 else found


class Bitfinex(Venue):
    name = "bitfinex"
    book = STREAM
    loads = staticmethod(exact_json)
    follows = staticmethod(follows_by_one)
    facts = VenueFacts(
        "Bitfinex v2", "a count over each connection, checksums", (("depth", "trade"),),
        re.compile(r"t(?:[A-Z0-9]{6}|[A-Z0-9]+:[A-Z0-9]+)"), "tBTCUSD",
        {"snapshot_limit": 100, "connects_per_5_minutes": 80, "streams_per_connection": 25},
        snapshot_limits=(25, 100, 250), connect_every_ms=3_750,
        notes="25 channels a connection, 20 connects a minute; prices have 5 digits and no tick; no best bid and offer")

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        if parts.scheme in ("ws", "wss"):
            return parts.hostname in ("api-pub.bitfinex.com", "api.bitfinex.com") and parts.path.rstrip("/") == "/ws/2"
        return parts.hostname in ("api-pub.bitfinex.com", "api.bitfinex.com") and parts.path.startswith("/v2/")

    @classmethod
    def spelling(cls, base, quote):
        base, quote = OWN_NAMES.get(base, base), OWN_NAMES.get(quote, quote)
        return f"t{base}{'' if len(base) == len(quote) == 3 else ':'}{quote}"

    @classmethod
    def common_name(cls, symbol):
        """§8: tBTCUST is BTC/USDT, tBTCF0:USTF0 BTC/USDT-PERP."""
        found = match_pair(symbol[1:])
        if found is None:
            return symbol
        base, quote = (name for name in found.groups() if name)
        mark = "-PERP" if base.endswith("F0") and quote.endswith("F0") else ""
        if mark:
            base, quote = base[:-2], quote[:-2]
        return f"{COMMON_NAMES.get(base, base)}/{COMMON_NAMES.get(quote, quote)}{mark}"

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        streams = [f"{STREAMS[channel].format(levels=levels)}:{symbol}" for channel in channels for symbol in symbols]
        return [Line("/ws/2", part) for part in packed(streams, streams_per_connection)]

    def symbol_of(self, stream):
        return stream.partition(":")[2]

    def session(self):
        return BitfinexSession(self)

    def instruments_requests(self, symbols):
        """§8. Without symbols: all there are."""
        perpetual = [symbol.endswith("F0") for symbol in symbols] or [False, True]
        return [Request(f"/v2/conf/pub:list:pair:{kind}", 1)
                for kind, is_wanted in (("exchange", not all(perpetual)), ("futures", any(perpetual))) if is_wanted]

    def decode_instruments(self, body):
        """Names are all there is; amounts have at most 8 decimals."""
        answer = self.parse(body)
        if not isinstance(answer, list) or not answer or not isinstance(answer[0], list):
            raise self.fault("no list of pairs", body)
        pairs = [pair for pair in answer[0] if type(pair) is str and match_pair(pair)]
        found = {"t" + pair: Listing(None, "0.00000001") for pair in pairs}
        if not found:
            raise self.fault("no pairs", body)
        return found


class BitfinexSession(Session):

    def __init__(self, venue):
        super().__init__(venue)
        self.wanted = 0               # flags asked for; a recording's client is not us
        self.flags = 0                # flags granted
        self.sequence = None          # of the last array, where they are counted
        self.channels = {}            # id -> Channel
        self.books = {}               # symbol -> id of the channel its book is from
        self.mirrors = {}             # symbol -> Mirror
        self.rows_of = {}             # id -> Mirror, of the channels whose rows change one
        self.paused_ns = 0            # since when there is maintenance

    # -- texts -----------------------------------------------------------------------------------------------

    def hello(self, request_id):
        self.wanted = FLAGS
        return [Command(json.dumps({"event": "conf", "flags": FLAGS}), {"conf": []})]

    def subscribe(self, streams, request_id):
        """§2. One text a channel; it is acknowledged and refused by its own words."""
        commands = []
        for stream in streams:
            channel, _, symbol = stream.partition(":")
            kind, _, levels = channel.partition("-")
            asked = {"event": "subscribe", "channel": kind, "symbol": symbol}
            if levels:
                asked.update(prec="P0", freq="F0", len=levels)
            commands.append(Command(json.dumps(asked), {f"{kind} {symbol}": [stream]}))
        return commands

    def unsubscribe(self, streams, request_id):
        """§2. By the id; what has none is not subscribed."""
        commands = []
        for stream in streams:
            kind, symbol = stream.partition(":")[0].partition("-")[0], self.venue.symbol_of(stream)
            for channel in self.channels.values():
                if (channel.kind, channel.symbol) == (kind, symbol):
                    text = f'{{"event":"unsubscribe","chanId":{channel.id}}}'
                    commands.append(Command(text, {f"end {channel.id}": [stream]}))
        return commands

    # -- what is lost ----------------------------------------------------------------------------------------

    def void(self):
        for mirror in self.mirrors.values():
            mirror.void()
        return [mirror.instrument for mirror in self.mirrors.values()]

    def lost(self, what, recv_ns):
        """Return the BrokenLine for what may be missing in any book."""
        self.sequence = None
        return self.broken(self.void(), what.removeprefix(f"{self.name}: "), recv_ns)

    def give_up(self, instrument, reason, recv_ns):
        if instrument.symbol in self.mirrors:
            self.mirrors[instrument.symbol].void()
        self.sink.stale(instrument, reason, recv_ns)

    # -- decoding: the likely path ---------------------------------------------------------------------------

    def decode(self, payload, recv_ns):
        found = match_row(payload.decode("latin-1"))
        if found is not None and self.cut_row(*found.groups(), recv_ns):
            self.venue.likely += 1
            return None
        return super().decode(payload, recv_ns)

    def cut_row(self, channel, price, price_part, count, sign, amount, amount_part, number, time, recv_ns):
        """Return False for what is not the next change of a known book, before anything has come of it."""
        mirror, number, is_removed = self.rows_of.get(channel), int(number), count == "0"
        if (mirror is None or number - 1 != self.sequence or self.paused_ns or is_removed and amount != "1"
                or (time is None) == bool(self.flags & TIMESTAMP)):
            return False
        instrument = mirror.instrument
        price_zeros = instrument.price_decimals - len(price_part or "")
        amount_zeros = instrument.quantity_decimals - len(amount_part or "")
        if price_zeros < 0 or amount_zeros < 0 or not (
                instrument.price_exponent == instrument.quantity_exponent == WIRE_EXPONENT):
            return False
        mirror.fit()
        if not mirror.is_known:
            return False
        self.sequence = number
        quantity = 0 if is_removed else int(amount.replace(".", "")) * POWERS[amount_zeros]
        level = [int(price.replace(".", "")) * POWERS[price_zeros], quantity]
        digits = [f"{price}:{sign}{amount}"]
        self.change(mirror, ([], level) if sign else (level, []), ((), digits) if sign else (digits, ()),
                    int(time) * 10**6 if time else 0, recv_ns)
        return True

    # -- decoding: the unlikely path -------------------------------------------------------------------------

    def decode_json(self, payload, recv_ns):
        venue = self.venue
        try:
            message = venue.parse(payload)
        except VenueError as error:
            raise self.lost(str(error), recv_ns) from None
        if self.paused_ns and recv_ns - self.paused_ns > MAINTENANCE_NS:
            raise self.lost(f"maintenance for more than {MAINTENANCE_NS / clock.SECOND:.0f} s", recv_ns)
        if isinstance(message, dict):
            return self.read_event(message, payload, recv_ns)
        if not isinstance(message, list) or len(message) < 2:
            raise self.lost(str(venue.fault("neither event nor array", payload)), recv_ns)
        return self.read_array(message, payload, recv_ns)

    def read_array(self, message, payload, recv_ns):
        """§4: [id, data], [id, "hb"], [id, word, data]; then the count, then the time, as far as asked for."""
        venue, data = self.venue, message[1]
        word = data if type(data) is str else None
        at = 2 if word is None or word == "hb" else 3
        if self.wanted & ~self.flags:
            raise self.lost(str(venue.fault("data that is not counted or checked", payload)), recv_ns)
        if self.flags & SEQ_ALL:
            number = message[at] if len(message) > at else None
            if type(number) is not str or not match_integer(number):
                raise self.lost(str(venue.fault("an array without its number", payload)), recv_ns)
            expected = None if self.sequence is None else self.sequence + 1
            if expected not in (None, int(number)):
                raise self.lost(f"array {number} after {self.sequence}", recv_ns)
            self.sequence = int(number)
            at += 1
        if word == "hb":
            venue.count(word)
            return Notice(ALIVE, None, "")
        event_ns = self.time_of(message[at]) if self.flags & TIMESTAMP and len(message) > at else 0
        channel = self.channels.get(message[0]) if type(message[0]) is str else None
        if channel is None:
            return venue.count("no channel of ours")          # §2: after the end of its subscription, too
        if channel.kind == "trades":
            return self.read_trade(channel, word, message, payload, recv_ns)
        if channel.kind != "book":
            return venue.count(channel.kind)
        instrument = venue.instrument(channel.symbol)
        if instrument is None or self.paused_ns:
            return None
        if self.books.get(channel.symbol) != channel.id:
            return venue.count("another depth")
        try:
            if word is None:
                self.read_book(instrument, channel.id, data, event_ns, payload, recv_ns)
            elif word == "cs":
                self.verify(instrument, message[2], channel.levels, event_ns, payload, recv_ns)
            else:
                venue.count(word)
        except (VenueError, NumberError):
            self.give_up(instrument, "bad_message", recv_ns)
            raise
        return None

    @staticmethod
    def time_of(text):
        """§9: ms. A time that is none spoils nothing."""
        return int(text) * 10**6 if type(text) is str and text.isascii() and text.isdigit() and len(text) < 14 else 0

    def read_book(self, instrument, channel_id, data, event_ns, payload, recv_ns):
        """§4: rows [price, count, amount]; a list of them is a snapshot."""
        venue = self.venue
        if not isinstance(data, list):
            raise venue.fault("no rows", payload)
        is_snapshot = not data or type(data[0]) is list
        sides = [], []
        for row in data if is_snapshot else (data,):
            if not isinstance(row, list) or len(row) < 3 or not all(type(text) is str for text in row[:3]):
                raise venue.fault("no row of price, count, amount", payload)
            price, count, amount = row[:3]
            if not (count.isascii() and count.isdigit() and len(count) < 10):
                raise venue.fault(f"{count:.40} orders at a price", payload)
            is_ask = amount.startswith("-")
            if int(count) == 0:
                if amount not in ("1", "-1"):
                    raise venue.fault(f"a level is removed from side {amount:.40}, expected 1 or -1", payload)
                sides[is_ask].append([price, "0", ""])
            else:
                sides[is_ask].append([price, amount[is_ask:], f"{price}:{amount}"])
        levels = venue.levels(instrument, sides, payload)
        digits = [[row[2] for row in side] for side in sides]
        mirror = self.mirrors.get(instrument.symbol)
        if is_snapshot:
            mirror = mirror or self.mirrors.setdefault(instrument.symbol, Mirror(instrument, self.number))
            self.rows_of[channel_id] = mirror
            bids, asks = mirror.snapshot(*levels, *digits)
            venue.count("snapshot")
            return self.sink.snapshot(instrument, mirror.sequence, event_ns, recv_ns, bids, asks)
        if mirror is not None:
            mirror.fit()
        if mirror is None or not mirror.is_known:
            return venue.count("update without a book")
        venue.count("update")
        self.change(mirror, levels, digits, event_ns, recv_ns)

    def change(self, mirror, levels, digits, event_ns, recv_ns):
        bids, asks = mirror.change(*levels, *digits)
        self.sink.depth(mirror.instrument, mirror.sequence, mirror.sequence, None, event_ns, recv_ns, bids, asks)

    def verify(self, instrument, text, levels, event_ns, payload, recv_ns):
        """§5. Rows of one change come one by one, so only here a level beyond those subscribed is known to be none."""
        if type(text) is not str or not match_integer(text):
            raise self.venue.fault("a checksum that is no integer", payload)
        mirror = self.mirrors.get(instrument.symbol)
        if mirror is None or not mirror.is_known:
            return self.venue.count("checksum without a book")
        if int(text) != checksum_of(mirror):
            self.venue.checksums_failed += 1
            return self.give_up(instrument, "checksum", recv_ns)
        self.venue.count("checksum")
        instrument.verified += 1
        fallen = [side.cut(max(levels, CHECKED_LEVELS)) for side in (mirror.bids, mirror.asks)]
        if any(fallen):
            mirror.sequence += 1
            self.sink.depth(instrument, mirror.sequence, mirror.sequence, None, event_ns, recv_ns, *fallen)

    def read_trade(self, channel, word, message, payload, recv_ns):
        """§6: te at once; tu tells the same a second or two later, and the first list what was before."""
        venue = self.venue
        if word != "te":
            return venue.count("old trades" if word in (None, "tu") else word)
        row = message[2] if len(message) > 2 else None
        if not isinstance(row, list) or len(row) < 4 or not all(type(text) is str for text in row[:4]):
            raise venue.fault("no trade", payload)
        number, time, amount, price = row[:4]
        trade = {"id": number, "time": time}
        trade_id, event_ns = venue.need_count(trade, "id", payload), venue.need_ns(trade, "time", payload)
        instrument = venue.instrument(channel.symbol)
        if instrument is None:
            return None
        sold = amount.startswith("-")
        venue.trades([(instrument, trade_id, event_ns, recv_ns, trade_id, price, amount[sold:], SELL if sold else BUY)])
        return venue.count("trade")

    # -- events ----------------------------------------------------------------------------------------------

    def read_event(self, message, payload, recv_ns):
        venue = self.venue
        event = venue.need(message, "event", str, payload)
        if event == "info":
            return self.on_info(message, recv_ns)
        if event == "conf":
            return self.on_conf(message, payload, recv_ns)
        if event == "subscribed":
            return self.on_subscribed(message, payload)
        if event == "unsubscribed":
            return self.on_unsubscribed(venue.need(message, "chanId", str, payload), recv_ns)
        if event == "error":
            words = f"{message.get('code')}: {message.get('msg')}"[:200]
            venue.count("error")
            kind, symbol, number = (message.get(name) for name in ("channel", "symbol", "chanId"))
            if type(kind) is str and type(symbol) is str:
                return Notice(ERROR, f"{kind} {symbol}", f"{symbol}: {words}"[:200])
            return Notice(ERROR, f"end {number}" if type(number) is str else None, words)
        venue.count(event)
        return Notice(ALIVE, None, "")

    def on_info(self, message, recv_ns):
        """§2. In maintenance what comes is not to be used; the venue advises to subscribe anew after it."""
        venue, code, platform = self.venue, message.get("code"), message.get("platform")
        venue.count(f"info {code}" if type(code) is str else "info")
        words = f"{code}: {message.get('msg')}"[:200]
        if code == MAINTENANCE or isinstance(platform, dict) and platform.get("status") == "0":
            self.paused_ns = recv_ns or 1
            for instrument in self.void():
                self.sink.stale(instrument, "venue", recv_ns)
        elif code == RESUMED:
            self.paused_ns = 0
        return Notice(SHUTDOWN, None, words) if code in (STOPPING, RESUMED) else Notice(ALIVE, None, "")

    def on_conf(self, message, payload, recv_ns):
        self.flags, self.sequence = self.venue.need_count(message, "flags", payload), None
        if message.get("status") != "OK" or self.wanted & ~self.flags:
            self.flags = 0
            raise self.lost(str(self.venue.fault("what proves the books is refused", payload)), recv_ns)
        self.venue.count("conf")
        return Notice(ACK, ("conf",), "")

    def on_subscribed(self, message, payload):
        venue = self.venue
        number, kind, symbol = (venue.need(message, key, str, payload) for key in ("chanId", "channel", "symbol"))
        levels = venue.need_count(message, "len", payload) if kind == "book" else 0
        if number in self.channels or len(self.channels) >= MAX_CHANNELS:
            raise venue.fault(f"a channel that is open, or more than {MAX_CHANNELS}", payload)
        venue.count("subscribed")
        key = f"{kind} {symbol}"
        if kind == "book" and message.get("prec") != "P0":
            kind = "another book"
        self.channels[number] = Channel(number, kind, symbol, levels)
        if kind == "book":
            self.books.setdefault(symbol, number)
        return Notice(ACK, (key,), "")

    def on_unsubscribed(self, number, recv_ns):
        """Nothing keeps its book up to date from here on, whoever wanted that."""
        channel = self.channels.pop(number, None)
        self.rows_of.pop(number, None)
        self.venue.count("unsubscribed")
        if channel is not None and self.books.get(channel.symbol) == number:
            del self.books[channel.symbol]
            if channel.symbol in self.mirrors:
                self.give_up(self.mirrors[channel.symbol].instrument, "gap", recv_ns)
        return Notice(ACK, (f"end {number}",), "")
