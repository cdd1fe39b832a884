"""Upbit's WebSocket as text.

In:   events of market.py, requests of clients.   Out: JSON text in BINARY frames.

    orderbook    the best 1, 5, 15 or 30 of each side, whole each time; the thinner side is filled up with zeros
    trade        one message a fill; a newcomer first gets the last one again

A request is an array of a ticket, of types with their codes, and of a format. It replaces whatever the connection had
asked for before and is not acknowledged: what does not exist stays silent, what is malformed is told, and then the
connection ends. There are no numbers and no checksums, so no client can see a loss; an image that comes late shows by
its timestamp, which here never stays the same. A connection on which nothing moves for a minute is cut.

Numbers are JSON numbers the way Java prints them: DEFAULT like the frame quoted live in 2026-09 (8.348E7 is a double,
0.00077720 and 2.5E-7 are BigDecimals), SIMPLE like the recording of 2021-04 (3040.0, 0.00067556, 2E-7, 30.0).

Facts: the fact sheet of 2026-09, by its paragraph; what LIST_SUBSCRIPTIONS and errors say: the venue's pages. Unsure
there, so settings: when an idle connection ends, and whether the first UP is sent at once (3).
Not here: groups of prices (any `level` but 0 is silent, as one the market does not have), ticker, candles, logins,
the limit on handshakes with an Origin.
"""

import json
import re

from ..errors import ConfigError
from .dialect import (BINARY, PING, PONG, RATES, TEXT, Answer, BookChannel, Budget, Channel, Dialect, RequestError,
                      Session, Words, dumps, first_price, iso_text, parsed, short, step)
from .faults import SHOWN_BY_ALL
from .market import AGGREGATE, TRADE, Spec

UNITS = (1, 5, 15, 30)
SILENT = re.compile(r"ticker|candle\.(?:1s|(?:1|3|5|10|15|30|60|240)m)").fullmatch
WIRE_DELAY_MS = 51                    # how much later than the trade its message is made
TYPICAL_DOLLARS = 40                  # of a level: small enough for sizes with an exponent to occur

# Price bands of won and their ticks, since 2025-07-31 (8); below 100 won a thousandth of the band's end.
BANDS = ((1_000_000, "1000"), (500_000, "500"), (100_000, "100"), (50_000, "50"), (10_000, "10"), (5_000, "5"),
         (100, "1"))
NAMES = {"BTC": ("비트코인", "Bitcoin"), "ETH": ("이더리움", "Ethereum"), "XRP": ("리플", "Ripple")}

ERRORS = {"WRONG_FORMAT": "Format 이 맞지 않습니다.", "NO_TICKET": "티켓이 존재하지 않거나, 유효하지 않습니다.",
          "NO_TYPE": "type 필드가 존재하지 않습니다.", "NO_CODES": "codes 필드가 존재하지 않습니다.",
          "INVALID_PARAM": "codes 필드가 비어 있습니다.", "TOO_MANY_REQUESTS": "Too Many Requests"}

SHORT = {"type": "ty", "code": "cd", "timestamp": "tms", "total_ask_size": "tas", "total_bid_size": "tbs",
         "orderbook_units": "obu", "ask_price": "ap", "bid_price": "bp", "ask_size": "as", "bid_size": "bs",
         "stream_type": "st", "level": "lv", "trade_date": "td", "trade_time": "ttm", "trade_timestamp": "ttms",
         "trade_price": "tp", "trade_volume": "tv", "ask_bid": "ab", "prev_closing_price": "pcp", "change": "c",
         "change_price": "cp", "sequential_id": "sid", "best_ask_price": "bap", "best_ask_size": "bas",
         "best_bid_price": "bbp", "best_bid_size": "bbs"}


class ClientSession(Session):

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.budgets = Budget(dialect.messages_per_second, 1), Budget(dialect.messages_per_minute, 60)
        self.heard_ns = 0
        self.up_ns = None                 # when the next UP is due, once they were asked for
        self.asked = []                   # of the last request: [{"type": .., "codes": [..]}]

    def open(self, now_ns):
        self.heard_ns = now_ns
        self.expire(now_ns)

    def expire(self, now_ns):
        dialect = self.dialect
        if self.up_ns is not None and self.up_ns <= now_ns:
            self.peer.send('{"status":"UP"}')
            self.up_ns = now_ns + dialect.ns(dialect.up_s)
        idle_ns = max(self.heard_ns, self.peer.sent_ns) + dialect.ns(dialect.idle_s)
        if idle_ns <= now_ns and self.up_ns is None:
            self.deadline_ns = None
            self.peer.count("idle_disconnects")
            return self.peer.abort()                       # 1006 was seen (3)
        self.deadline_ns = idle_ns if self.up_ns is None else self.up_ns

    def take(self, opcode, payload, now_ns):
        self.heard_ns = now_ns
        if opcode in (PING, PONG):
            return
        dialect = self.dialect
        if payload == b"PING":
            if self.up_ns is None:
                self.up_ns = now_ns if dialect.up_at_once else now_ns + dialect.ns(dialect.up_s)
        elif not all([budget.take(now_ns) for budget in self.budgets]):
            self.refuse("TOO_MANY_REQUESTS")
        else:
            self.request(payload, now_ns)
        self.expire(now_ns)

    def request(self, payload, now_ns):
        try:
            parts = json.loads(payload)
        except ValueError:
            parts = None
        if not (isinstance(parts, list) and parts and all(isinstance(part, dict) for part in parts)):
            return self.refuse("WRONG_FORMAT")
        ticket = next((part["ticket"] for part in parts if part.get("ticket")), None)
        if ticket is None:
            return self.refuse("NO_TICKET")
        form = next((part["format"] for part in parts if "format" in part), "DEFAULT")
        if form not in self.dialect.formats:
            return self.refuse(*self.dialect.unknown_format(form))
        asked = [part for part in parts if "ticket" not in part and "format" not in part]
        if self.dialect.lists and any(part.get("method") == "LIST_SUBSCRIPTIONS" for part in asked):
            return self.list(ticket)
        if not asked or any("type" not in part for part in asked):
            return self.refuse("NO_TYPE")
        for part in asked:
            codes = part.get("codes")
            if codes is None:
                return self.refuse("NO_CODES")
            known = part["type"] in ("orderbook", "trade") or isinstance(part["type"], str) and SILENT(part["type"])
            if not (known and codes and isinstance(codes, list) and all(isinstance(code, str) for code in codes)):
                return self.refuse("INVALID_PARAM")
        self.replace(asked, form, now_ns)

    def replace(self, asked, form, now_ns):
        """The new list instead of the old one (2)."""
        for name in list(self.topics):
            self.peer.leave(name)
        self.asked, firsts = asked, []
        for part in asked:
            for code in part["codes"]:
                name = part["type"], code
                if name in self.topics:
                    continue
                told = self.subscribe(name, self.key(part, code, form))
                if not self.dialect.option(part, "realtime"):
                    firsts += told
                if self.dialect.option(part, "snapshot"):
                    self.peer.leave(name)
        self.present(firsts, now_ns)

    def present(self, firsts, now_ns):
        self.tell(firsts)

    def key(self, part, code, form):
        """What a type and a code name; None for nothing: it stays silent, letter case included (2)."""
        symbol, _, count = code.partition(".")
        if symbol not in self.peer.symbols or SILENT(part["type"]):
            return None
        if part["type"] == "trade":
            return ("trade", symbol, form) if not count else None
        units = self.dialect.units(count)
        return None if units is None or not self.dialect.is_level(part.get("level")) else (
            "orderbook", symbol, units, form)

    def list(self, ticket):
        held = [{"type": part["type"], "codes": part["codes"],
                 **({"level": 0} if part["type"] == "orderbook" else {})} for part in self.asked]
        self.peer.send(dumps({"method": "LIST_SUBSCRIPTIONS", "result": held, "ticket": ticket}))

    def refuse(self, name, message=None):
        self.peer.count("bad_commands")
        self.peer.send(f'{{"error":{{"name":"{name}","message":"{message or ERRORS[name]}"}}}}')
        self.peer.close(1000, "")

    def garbage(self, now_ms):
        return [(TEXT, b"this is not JSON"), (BINARY, self.half_a_message(now_ms).encode()), (BINARY, bytes(range(32)))]

    def half_a_message(self, now_ms):
        return f'{{"type":"orderbook","code":"{self.peer.symbols[0]}","timestamp":{now_ms},"total_ask_size":1.0,"orde'


# --- numbers

class Numbers(Words):
    """`price` and `quantity` are of DEFAULT, `brief` are those of SIMPLE."""

    __slots__ = ()

    def price(self, ticks):
        return java_double(Words.price(self, ticks))

    def quantity(self, lots):
        return big_decimal(Words.quantity(self, lots))

    def brief_price(self, ticks):
        return brief(Words.price(self, ticks))

    def brief_quantity(self, lots):
        return brief(Words.quantity(self, lots))

    def total(self, lots):
        return big_decimal(Words.quantity(self, lots))


def scientific(text):
    """(digits, exponent) of plain decimal text: '0.00067556' -> ('67556', -4), '83480000' -> ('8348', 7)."""
    whole, _, part = text.partition(".")
    digits = (whole + part).lstrip("0")
    exponent = len(whole) - 1 if whole != "0" else len(digits) - len(part) - 1
    return digits.rstrip("0"), exponent


def java_double(text):
    """Double.toString: plain from 0.001 to 10,000,000, with a decimal at least; elsewhere 8.348E7, 2.0E-7."""
    digits, exponent = scientific(text)
    if not digits:
        return "0.0"
    if -3 <= exponent < 7:
        return brief(text)
    return f"{digits[0]}.{digits[1:] or 0}E{exponent}"


def big_decimal(text):
    """BigDecimal.toString: all decimals, zeros at the end too; below 0.000001 like 2.50E-7, 9E-8, 0E-8."""
    whole, _, part = text.partition(".")
    digits = (whole + part).lstrip("0") or "0"
    exponent = len(digits) - 1 - len(part)
    if exponent >= -6:
        return text
    return f"{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}E{exponent}"


def brief(text):
    """Of 2021: 42.0, 41.4, 0.0006825, 2.2E-7, 2E-7."""
    text = short(text)
    if text.startswith("0.000000"):
        return big_decimal(text)
    return text if "." in text else text + ".0"


# --- channels

class Book(BookChannel):
    """`sequence` is the timestamp of the last image; `window` holds the levels it shows."""

    def __init__(self, key, listing, words, dialect):
        super().__init__(key, listing, words, key[2])
        self.dialect = dialect
        self.layout, self.row, self.price, self.quantity, self.is_list = dialect.layout("book", key[3], words)
        self.sequence = 0

    def texts(self, event, now_ms):
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return ()
        self.sequence = self.dialect.stamp(self.symbol, now_ms)
        return (self.text("REALTIME"),)

    def first(self, now_ms):
        """The last image once more, with its time (4)."""
        self.sequence = self.sequence or self.dialect.stamp(self.symbol, now_ms)
        return [self.text("SNAPSHOT")]

    def text(self, kind):
        bids, asks = self.window.levels()
        missing, pad = len(bids) - len(asks), (self.price(0), self.quantity(0))
        padded = [[(self.price(ticks), self.quantity(lots)) for ticks, lots in side] + [pad] * fill
                  for side, fill in ((asks, max(missing, 0)), (bids, max(-missing, 0)))]
        rows = [self.row % (ask[0], bid[0], ask[1], bid[1]) for ask, bid in zip(*padded)]
        text = self.layout % {
            "code": self.symbol, "time": self.sequence, "units": ",".join(rows), "kind": kind,
            "asks": self.words.total(sum(lots for _, lots in asks)),
            "bids": self.words.total(sum(lots for _, lots in bids))}
        return f"[{text}]" if self.is_list else text


class Trades(Channel):
    """A fill a message."""

    kinds = (TRADE,)

    def __init__(self, key, listing, words, dialect):
        super().__init__(key, key[1])
        self.listing, self.words, self.dialect = listing, words, dialect
        self.layout, _, self.price, self.quantity, self.is_list = dialect.layout("trade", key[2], words)

    def texts(self, event, now_ms):
        return (self.text(*self.dialect.traded(self.symbol, event, now_ms), "REALTIME"),)

    def first(self, now_ms):
        last = self.dialect.trades.get(self.symbol)
        return [] if last is None else [self.text(*last, "SNAPSHOT")]

    def text(self, event, number, time_ms, kind):
        _, listing, _, price, lots, buyer_is_maker = event
        _, _, _, bid, bid_lots, ask, ask_lots = listing.best()
        closing = listing.spec.first_ticks
        date, time = iso_text(self.dialect.local_ms(time_ms) * 10 ** 6, 0)[:-1].split("T")
        if self.dialect.drops_seconds and self.key[2].startswith("SIMPLE") and time.endswith(":00"):
            time = time[:-3]                               # as recorded: LocalTime.toString leaves zero seconds out
        text = self.layout % {
            "code": self.symbol, "time": time_ms + WIRE_DELAY_MS, "date": date, "clock": time, "traded": time_ms,
            "price": self.price(price), "size": self.quantity(lots), "side": "ASK" if buyer_is_maker else "BID",
            "closing": self.price(closing), "change": self.price(abs(price - closing)), "number": number, "kind": kind,
            "direction": "RISE" if price > closing else "FALL" if price < closing else "EVEN",
            "ask": self.price(ask), "ask_size": self.quantity(ask_lots), "bid": self.price(bid),
            "bid_size": self.quantity(bid_lots)}
        return f"[{text}]" if self.is_list else text


class Upbit(Dialect):
    name = "upbit"
    session = ClientSession
    opcode = BINARY
    uncounted = AGGREGATE
    level_count = 40                      # so few that a side is often thinner than the 30 that are shown
    connects = (5, 1)
    faults = frozenset(SHOWN_BY_ALL + ("reorder",))
    settings = {"idle_s": 60.0, "up_s": 10.0, "up_at_once": False, "messages_per_second": 5, "messages_per_minute": 100}
    formats = ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
    image = Book
    quote = "KRW"
    lists = True                          # LIST_SUBSCRIPTIONS is understood
    drops_seconds = True
    details = "is_details"
    requests_per_second = 10              # of REST, a group
    row = '{"ask_price":%s,"bid_price":%s,"ask_size":%s,"bid_size":%s}'
    layouts = {
        "book": '{"type":"orderbook","code":"%(code)s","timestamp":%(time)d,"total_ask_size":%(asks)s,'
                '"total_bid_size":%(bids)s,"orderbook_units":[%(units)s],"stream_type":"%(kind)s","level":0}',
        "trade": '{"type":"trade","code":"%(code)s","timestamp":%(time)d,"trade_date":"%(date)s",'
                 '"trade_time":"%(clock)s","trade_timestamp":%(traded)d,"trade_price":%(price)s,'
                 '"trade_volume":%(size)s,"ask_bid":"%(side)s","prev_closing_price":%(closing)s,'
                 '"change":"%(direction)s","change_price":%(change)s,"sequential_id":%(number)d,'
                 '"best_ask_price":%(ask)s,"best_ask_size":%(ask_size)s,"best_bid_price":%(bid)s,'
                 '"best_bid_size":%(bid_size)s,"stream_type":"%(kind)s"}'}

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.times = {}                   # symbol -> timestamp of its last image
        self.trades = {}                  # symbol -> (event, sequential_id, ms) of its last fill
        self.groups = {}                  # of REST -> Budget

    def route(self, target):
        return target if parsed(target)[0] == "/websocket/v1" else None

    def channel(self, key, source):
        kind, symbol = key[:2]
        return (self.image if kind == "orderbook" else Trades)(key, source.listings[symbol], source.words[symbol], self)

    # what is different at Bithumb

    def option(self, part, name):
        """`is_only_snapshot`, `is_only_realtime`; the older spelling is understood (2)."""
        return part.get(f"is_only_{name}", part.get(f"isOnly{name.title()}")) is True

    def units(self, count):
        """How many levels a code's suffix means; another number silently means all (2)."""
        return int(count) if count in map(str, UNITS) else UNITS[-1]

    def is_level(self, level):
        return level in (None, 0, "0")

    def unknown_format(self, form):
        return ("WRONG_FORMAT",)

    def stamp(self, symbol, now_ms):
        """A time for an image, later than the last one's."""
        self.times[symbol] = time_ms = max(self.times.get(symbol, 0) + 1, now_ms)
        return time_ms

    def local_ms(self, time_ms):
        return time_ms

    def number(self, event, time_ms):
        """sequential_id: the time and four more digits (6)."""
        last = self.trades.get(event[1].spec.symbol)
        return max(time_ms * 10_000, last[1] + 1 if last else 0)

    def spelling(self, kind, form, words):
        """The functions that make prices and sizes text."""
        if form.startswith("SIMPLE"):
            return words.brief_price, words.brief_quantity
        return words.price, words.quantity

    def traded(self, symbol, event, now_ms):
        """(event, sequential_id, ms) of a fill, the same in each format."""
        last = self.trades.get(symbol)
        if last is None or last[0] is not event:
            self.trades[symbol] = last = event, self.number(event, now_ms), now_ms
        return last

    def layout(self, kind, form, words):
        """(text of a message, of a row, function of a price, of a size, whether it is sent in a list)"""
        texts = self.layouts[kind], self.row
        if form.startswith("SIMPLE"):
            texts = [re.sub(r'"(\w+)":', lambda found: f'"{SHORT[found[1]]}":', text) for text in texts]
        return (*texts, *self.spelling(kind, form, words), form.endswith("_LIST"))

    # --- REST

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        endpoints = self.endpoints()
        if path not in endpoints:
            raise RequestError('{"error":{"name":404,"message":"Not Found"}}', 404)
        desk.counts["rest_requests"] += 1
        group = path.split("/")[2]
        budget = self.groups.setdefault(group, Budget(self.requests_per_second, 1))
        if not budget.take(now_ns):
            raise self.too_many(1)
        desk.rest_fault(None, False)
        listed = {spec.symbol: spec for spec in desk.source.specs}
        wanted = parameters["markets"].split(",") if "markets" in parameters else None
        if path != "/v1/market/all":
            if wanted is None:
                raise self.failed(400, "Missing request parameter error. Check the required parameters!")
            if any(symbol not in listed for symbol in wanted):
                raise self.failed(404, "Code not found")                          # the whole call (1)
            listed = {symbol: listed[symbol] for symbol in wanted}
        rows = endpoints[path](listed, parameters, desk, now_ms)
        return Answer(f"[{','.join(rows)}]", [("Remaining-Req", f"group={group}; min=600; sec=9")])

    def endpoints(self):
        return {"/v1/market/all": self.markets, "/v1/orderbook": self.orderbook,
                "/v1/orderbook/instruments": self.instruments}

    def failed(self, code, message):
        return RequestError(dumps({"error": {"name": code, "message": message}}), code)

    def markets(self, listed, parameters, desk, now_ms):
        details, rows = self.warnings() if parameters.get(self.details) == "true" else {}, []
        for symbol, spec in listed.items():
            korean, english = NAMES.get(spec.base, (spec.base, spec.base.title()))
            row = {"market": symbol, "korean_name": korean, "english_name": english, **details}
            rows.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
        return rows

    def warnings(self):
        caution = {name: False for name in ("PRICE_FLUCTUATIONS", "TRADING_VOLUME_SOARING", "DEPOSIT_AMOUNT_SOARING",
                                            "GLOBAL_PRICE_DIFFERENCES", "CONCENTRATION_OF_SMALL_ACCOUNTS")}
        return {"market_event": {"warning": False, "caution": caution}}

    def instruments(self, listed, parameters, desk, now_ms):
        return [dumps({"market": symbol, "quote_currency": spec.quote, "tick_size": spec.tick,
                       "supported_levels": ["0"]}) for symbol, spec in listed.items()]

    def orderbook(self, listed, parameters, desk, now_ms):
        count = parameters.get("count", "30")
        if not (count.isascii() and count.isdigit()):
            raise self.failed(400, "Type mismatch error. Check the parameters type!")
        return [self.answer(desk.source.listings[symbol], desk.source.words[symbol], min(int(count) or 30, 30), now_ms)
                for symbol in listed]

    def answer(self, listing, words, count, now_ms):
        asks, bids = listing.asks.levels(count), listing.bids.levels(count)
        rows = ",".join(self.row % (words.price(ask), words.price(bid), words.quantity(ask_lots),
                                    words.quantity(bid_lots)) for (ask, ask_lots), (bid, bid_lots) in zip(asks, bids))
        return (f'{{"market":"{listing.spec.symbol}","timestamp":{now_ms},'
                f'"total_ask_size":{words.quantity(sum(lots for _, lots in asks))},'
                f'"total_bid_size":{words.quantity(sum(lots for _, lots in bids))},'
                f'"orderbook_units":[{rows}],"level":0}}')

    def too_many(self, retry_s):
        return RequestError('{"error":{"name":"too_many_requests","message":"Too many API requests."}}', 429)

    def broken(self):
        return RequestError('{"error":{"name":500,"message":"Internal Server Error"}}', 500)

    # --- what is listed

    def words(self, spec):
        return Numbers(spec)

    def spell(self, base, quote):
        return f"{quote or self.quote}-{base}"

    def spec(self, symbol):
        quote, _, base = symbol.partition("-")
        if not base:
            raise ConfigError(f"{self.name}: symbol {symbol!r}: expected QUOTE-BASE")
        price = first_price(base) * RATES.get(quote, 1.0)
        if quote == "KRW":
            tick = won_tick(price)
        elif quote == "BTC":
            tick = "0.00000001"
        else:
            tick = "0.01" if price >= 10 else step(scientific(f"{price:.12f}")[1] - 3)
        lots = int(TYPICAL_DOLLARS / first_price(base) * 10 ** 8)
        return Spec(symbol, base, quote, f"{price:.12f}", tick, "0.00000001", typical_lots=lots)


def won_tick(price):
    """The tick of a price in won, by its band."""
    for least, tick in BANDS:
        if price >= least:
            return tick
    return step(scientific(f"{price:.12f}")[1] - 2)
