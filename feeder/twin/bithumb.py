"""Bithumb's WebSocket of 2024 as text: Upbit's protocol, but for what tells the two apart.

In:   events of market.py, requests of clients.   Out: JSON text in BINARY frames, shaped like those quoted in 2026-09.

    images       15 levels at most, any number of them by a suffix; times in MICROSECONDS; sizes rounded to 4 decimals,
                 so that a live level may show 0: a client holds none. Every other first image comes after later ones.
    trades       times in ms, the clock in Korea's time; ids beyond 2^53 that went through a double
    options      only isOnlySnapshot and isOnlyRealtime are read, is_only_... is ignored
    numbers      as JavaScript prints them: 3715000, 8.4592, 5e-8
    REST         errors come with status 200; 30 exact levels of one market, 15 of several; no ticks

/twin/book tells of the channels what a client holds, rounded; of the market what is true.

Facts: the fact sheet of 2026-09, by its paragraph. Unsure there, so settings: when an idle connection ends, how many
messages a second it may send (2), and whether trades share an id (6). Not here: the socket of before 2024, groups of
prices, ticker, logins.
"""

from .bitfinex import javascript
from .dialect import RequestError, Words, dumps
from .upbit import Book, ClientSession, Upbit

SHOWN_DECIMALS = 4                    # of the sizes of an image
FIRST_ID = 1_079_953_000_000_000_000
KOREA_MS = 9 * 3_600_000


class BithumbSession(ClientSession):

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.late, self.late_ns = [], None      # first images that wait, and until when

    def present(self, firsts, now_ns):
        """Tell first images; every other time only when later ones may have come (4)."""
        self.dialect.presented += 1
        images = [first for first in firsts if first[0].is_book and self.dialect.presented % 2 == 0]
        self.tell([first for first in firsts if first not in images])
        self.late, self.late_ns = images, now_ns + self.dialect.ns(self.dialect.late_s) if images else None

    def expire(self, now_ns):
        if self.late_ns is not None and self.late_ns <= now_ns:
            late, self.late, self.late_ns = self.late, [], None
            self.tell(late)
        super().expire(now_ns)
        if self.late_ns is not None and self.deadline_ns is not None:
            self.deadline_ns = min(self.deadline_ns, self.late_ns)

    def half_a_message(self, now_ms):
        return f'{{"type":"orderbook","code":"{self.peer.symbols[0]}","total_ask_size":1,"total_bid_size":1,"orde'


class Numbers(Words):
    """`shown` is of sizes in images."""

    __slots__ = ()

    def price(self, ticks):
        return javascript(Words.price(self, ticks))

    def quantity(self, lots):
        return javascript(Words.quantity(self, lots))

    def shown(self, lots):
        return self.quantity(rounded(lots))

    total = shown


def rounded(lots):
    """Lots of 8 decimals to those whose size has 4."""
    unit = 10 ** (8 - SHOWN_DECIMALS)
    return (lots + unit // 2) // unit * unit


class Image(Book):

    def book(self):
        sequence, *sides = super().book()
        return (sequence, *([(price, rounded(lots)) for price, lots in side if rounded(lots)] for side in sides))


class Bithumb(Upbit):
    name = "bithumb"
    session = BithumbSession
    image = Image
    connects = (10, 1)
    settings = {**Upbit.settings, "late_s": 0.05, "trades_an_id": 1}
    formats = ("DEFAULT", "SIMPLE")
    lists = False
    drops_seconds = False
    details = "isDetails"
    requests_per_second = 150
    most_units = 15
    layouts = {
        "book": '{"type":"orderbook","code":"%(code)s","total_ask_size":%(asks)s,"total_bid_size":%(bids)s,'
                '"orderbook_units":[%(units)s],"level":1,"timestamp":%(time)d,"stream_type":"%(kind)s"}',
        "trade": '{"type":"trade","code":"%(code)s","trade_price":%(price)s,"trade_volume":%(size)s,'
                 '"ask_bid":"%(side)s","trade_date":"%(date)s","trade_time":"%(clock)s","trade_timestamp":%(traded)d,'
                 '"sequential_id":%(number)d,"prev_closing_price":%(closing)s,"change":"%(direction)s",'
                 '"change_price":%(change)s,"timestamp":%(time)d,"stream_type":"%(kind)s"}'}

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.presented = 0

    def option(self, part, name):
        return part.get(f"isOnly{name.title()}") is True

    def units(self, count):
        return min(int(count) if count.isascii() and count.isdigit() and int(count) else self.most_units,
                   self.most_units)

    def is_level(self, level):
        return level in (None, 0, 1, "0", "1")

    def unknown_format(self, form):
        return "INVALID_PARAM", f"{form}은 지원하지 않는 포맷입니다."

    def stamp(self, symbol, now_ms):
        self.times[symbol] = time_us = max(self.times.get(symbol, 0) + 1, now_ms * 1_000)
        return time_us

    def local_ms(self, time_ms):
        return time_ms + KOREA_MS

    def number(self, event, time_ms):
        return through_a_double(FIRST_ID + event[2] // self.trades_an_id * 1_000)

    def words(self, spec):
        return Numbers(spec)

    def spelling(self, kind, form, words):
        return words.price, words.shown if kind == "book" else words.quantity

    # --- REST

    def endpoints(self):
        return {"/v1/market/all": self.markets, "/v1/orderbook": self.orderbook}

    def failed(self, code, message):
        return RequestError(dumps({"error": {"name": code, "message": message}}), 200)                  # (1)

    def warnings(self):
        return {"market_warning": "NONE"}

    def orderbook(self, listed, parameters, desk, now_ms):
        count = 30 if len(listed) == 1 else 15
        return [self.answer(desk.source.listings[symbol], desk.source.words[symbol], count, now_ms)
                for symbol in listed]


def through_a_double(number):
    """What JavaScript prints of it: 1079953210371761664 -> 1079953210371761700 (6)."""
    digits, _, power = repr(float(number)).partition("e+")
    return int(digits.replace(".", "").ljust(int(power) + 1, "0"))
