"""Upbit, and what Bithumb shares with it (bithumb.py).

Source: the exchange's fact sheet of 2026-09 (docs.upbit.com/kr), section numbers in the comments; a recording of 2021
in the SIMPLE format, frames of 2026 in the DEFAULT one. Both have the same content under other keys; we ask for DEFAULT
and read either.

| message                                  | role      | action                                              |
| orderbook, SNAPSHOT or REALTIME          | image     | the whole book; sink.snapshot or sink.depth         |
| trade, REALTIME                          | trade     | sink.trade; ASK: the taker sold                     |
| trade, SNAPSHOT                          | old trade | counted: it was told before                         |
| {"status":"UP"}                          | alive     | Notice; comes every 10 s once PING was sent         |
| {"error":{"name":..,"message":..}}       | error     | Notice; the venue closes the connection behind it   |
| ticker, candle.*                         | not ours  | counted by name                                     |
| anything else                            | fault     | VenueError                                          |

A request replaces the one before it, so a session sends all of its streams each time. Nothing is acknowledged, nothing
is numbered: an image lost is cured by the next, but one that cannot be read may have been a quiet market's last, so it
costs its book, or all of the connection where it does not say whose it was.
"""

import json
import re
from collections import namedtuple
from urllib.parse import quote, urlsplit

from feeder.errors import NumberError, VenueError
from feeder.message import BUY, SELL
from feeder.venue.contract import (ALIVE, ERROR, IMAGE, Command, Line, Listing, Notice, Ping, Request, Session, Venue,
                                   VenueFacts, exact_json, follows_by_one, packed)
from feeder.venue.mirror import Mirror

MARKETS_PER_REQUEST = 100
MAX_BEHIND = 20                   # images in a row that are older than ours: then the venue's clock was set back
SIDES = {"BID": BUY, "ASK": SELL}  # §6: the taker's
CHANNELS = {"depth": "orderbook", "trade": "trade"}

Words = namedtuple("Words", "kind code time units bid ask bid_size ask_size stream "
                            "traded_at price volume side trade_id")
DEFAULT = Words("type", "code", "timestamp", "orderbook_units", "bid_price", "ask_price", "bid_size", "ask_size",
                "stream_type", "trade_timestamp", "trade_price", "trade_volume", "ask_bid", "sequential_id")
SIMPLE = Words("ty", "cd", "tms", "obu", "bp", "ap", "bs", "as", "st", "ttms", "tp", "tv", "ab", "sid")


class Image:
    """A book's last image, and the session whose images are taken: the newest that brought one."""

    __slots__ = ("mirror", "number", "behind")

    def __init__(self, instrument):
        self.mirror = Mirror(instrument, 1)     # marked as a sequence of our own, though it goes on over connections
        self.number = 0
        self.behind = 0


class UpbitSession(Session):

    def __init__(self, venue):
        super().__init__(venue)
        self.streams = {}             # all that were asked for; a set that keeps its order
        self.books = {}               # instruments with a book told on this connection, the same

    def subscribe(self, streams, request_id):
        self.streams.update(dict.fromkeys(streams))
        return [Command(self.venue.request(self.streams, f"feeder-{self.number}-{request_id}"), {})]

    def unsubscribe(self, streams, request_id):
        """The subscription that follows replaces this one, and brings SNAPSHOT images."""
        return []

    def decode_json(self, payload, recv_ns):
        venue = self.venue
        words = kind = None
        try:
            message = venue.parse(payload)
            if isinstance(message, dict):
                if "error" in message:
                    return self.refused(message["error"], payload)
                if message.get("status") == "UP":
                    venue.count("UP")
                    return Notice(ALIVE, None, "")
                words = DEFAULT if DEFAULT.kind in message else SIMPLE
                kind = message.get(words.kind)
            if type(kind) is not str:
                raise venue.fault("no object with a type", payload)
        except VenueError as error:
            raise self.broken(self.books, f"a message may have been of a book: {error}", recv_ns) from None
        if kind == "trade":
            return venue.read_trade(words, message, payload, recv_ns)
        if kind != "orderbook":
            return venue.count(kind[:40])
        symbol = message.get(words.code)
        try:
            instrument = venue.read_image(words, message, payload, recv_ns, self.number)
        except (VenueError, NumberError) as error:
            if type(symbol) is not str:
                raise self.broken(self.books, f"an image of nobody knows what: {error}", recv_ns) from None
            instrument = venue.instruments.find(venue.name, symbol)
            if instrument is not None:
                self.sink.stale(instrument, "bad_message", recv_ns)
            raise
        if instrument is not None:
            self.books[instrument] = None
        return None

    def refused(self, error, payload):
        """§2. It names no code; WRONG_FORMAT, NO_TICKET, INVALID_PARAM ..."""
        if not isinstance(error, dict):
            raise self.venue.fault("error is no object", payload)
        self.venue.count("error")
        return Notice(ERROR, None, f"{error.get('name')}: {error.get('message')}"[:200])


class Upbit(Venue):
    name = "upbit"
    book = IMAGE
    loads = staticmethod(exact_json)              # §4: numbers, some as 1.16539E8
    hosts = ("api.upbit.com",)                    # §1: other regions are other venues with other books
    path = "/websocket/v1"
    realtime = "is_only_realtime"
    default_levels = 30
    lot = "0.00000001"                            # §8
    follows = staticmethod(follows_by_one)
    facts = VenueFacts(
        "Upbit", "each message is the whole book", (("depth", "trade"),), re.compile(r"[A-Z0-9]+-[A-Z0-9]+"), "KRW-BTC",
        {"snapshot_limit": 30, "streams_per_connection": 200},    # §2: 855 worked
        snapshot_limits=(1, 5, 15, 30), ping=Ping("PING", 10), command_every_ms=650, connect_every_ms=250,
        notes="5 connects/s an address, 100 texts a minute a connection; a book every 100 ms")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.images = {}              # instrument -> Image
        self.asked = []               # symbols whose ticks are wanted

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        return parts.hostname in cls.hosts and (parts.scheme not in ("ws", "wss") or parts.path == cls.path)

    @classmethod
    def spelling(cls, base, quote):
        return f"{quote}-{base}"

    @classmethod
    def common_name(cls, symbol):
        quote, mark, base = symbol.partition("-")
        return f"{base}/{quote}" if mark else symbol

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        """§2: 30 levels need no suffix."""
        suffix = {"depth": f".{levels}" if levels not in (0, self.default_levels) else "", "trade": ""}
        streams = [f"{CHANNELS[channel]}:{symbol}{suffix[channel]}" for symbol in symbols for channel in channels]
        return [Line(self.path, part) for part in packed(streams, streams_per_connection)]

    def symbol_of(self, stream):
        return stream.partition(":")[2].partition(".")[0]

    def session(self):
        return UpbitSession(self)

    def request(self, streams, ticket):
        """§2. Of trades only new ones: the SNAPSHOT repeats the last."""
        codes = {"orderbook": [], "trade": []}
        for stream in streams:
            kind, _, code = stream.partition(":")
            codes[kind].append(code)
        wanted = [{"type": kind, "codes": codes[kind]} for kind in codes if codes[kind]]
        for each in wanted:
            if each["type"] == "trade":
                each[self.realtime] = True
        return json.dumps([{"ticket": ticket}, *wanted, {"format": "DEFAULT"}])

    def instruments_request(self, symbols):
        self.asked = list(symbols)
        return Request("/v1/market/all", 1)

    def more_instruments(self, request, body):
        """§8. Ticks are told of the codes asked for, and of none if one is unknown: so the list of all comes first."""
        if request.path == "/v1/market/all":
            listed = self.decode_instruments(body)
            self.asked = [symbol for symbol in self.asked if symbol in listed]
        part, self.asked = self.asked[:MARKETS_PER_REQUEST], self.asked[MARKETS_PER_REQUEST:]
        return Request("/v1/orderbook/instruments?markets=" + quote(",".join(part), safe=","), 1) if part else None

    def decode_instruments(self, body):
        """Either list. A tick is that of the price band the market is in when asked."""
        answer = self.parse(body)
        try:
            if "error" in answer:                 # Bithumb §1: with HTTP 200
                raise self.fault(f"market list refused: {answer['error']}", body)
            return {entry["market"]: Listing(entry.get("tick_size"), self.lot) for entry in answer or [{}]}
        except (KeyError, TypeError, AttributeError) as error:
            raise self.fault(f"market list without {error}", body) from None

    # -- decoding --------------------------------------------------------------------------------------------

    def read_image(self, words, message, payload, recv_ns, number):
        """§4. Return the instrument. Rows pair the n-th ask with the n-th bid; a thin side is padded with zeros."""
        event_ns = self.need_ns(message, words.time, payload)
        symbol = self.need(message, words.code, str, payload)
        units = message.get(words.units)
        if type(units) is not list or not all(type(unit) is dict for unit in units):
            raise self.fault(f"{words.units!r} is no list of objects", payload)
        instrument = self.instrument(symbol)
        if instrument is None:
            return None
        sides = [[[unit.get(price), unit.get(size)] for unit in units]
                 for price, size in ((words.bid, words.bid_size), (words.ask, words.ask_size))]
        bids, asks = map(without_zeros, self.levels(instrument, sides, payload))
        self.take(instrument, event_ns, recv_ns, bids, asks, number)
        return instrument

    def take(self, instrument, event_ns, recv_ns, bids, asks, number):
        """Hand on an image of the session of that number."""
        image = self.images.get(instrument)
        if image is None:
            image = self.images[instrument] = Image(instrument)
        mirror = image.mirror
        if mirror.is_known:
            if number < image.number:
                return self.count("image of the connection before")
            if event_ns < mirror.event_ns and image.behind < MAX_BEHIND:
                image.behind += 1
                return self.count("old image")
        image.behind = 0
        is_next = mirror.is_known and number == image.number
        image.number = number
        mirror.event_ns = event_ns
        if is_next:
            self.count("image")
            bids, asks = mirror.image(bids, asks)
            self.sink.depth(instrument, mirror.sequence, mirror.sequence, None, event_ns, recv_ns, bids, asks)
        else:
            self.count("first image")
            bids, asks = mirror.snapshot(bids, asks)
            self.sink.snapshot(instrument, mirror.sequence, event_ns, recv_ns, bids, asks)

    def renew(self, instrument):
        if instrument in self.images:
            self.images[instrument].mirror.void()

    def read_trade(self, words, message, payload, recv_ns):
        event_ns = self.need_ns(message, words.traded_at, payload)
        trade_id = self.need_count(message, words.trade_id, payload)
        side = SIDES.get(self.need(message, words.side, str, payload))
        texts = [self.need(message, key, str, payload) for key in (words.price, words.volume)]
        symbol = self.need(message, words.code, str, payload)
        if side is None:
            raise self.fault(f"{words.side!r} is {message[words.side]!r:.40}, expected ASK or BID", payload)
        if message.get(words.stream) == "SNAPSHOT":
            return self.count("old trade")
        instrument = self.instrument(symbol)
        if instrument is not None:
            self.count("trade")
            self.trades([(instrument, 0, event_ns, recv_ns, trade_id, *texts, side)])


def without_zeros(flat):
    """§4: rows of price 0 are padding, of size 0 dust (Bithumb rounds sizes)."""
    if all(flat):
        return flat
    return [number for level in zip(flat[::2], flat[1::2]) if all(level) for number in level]
