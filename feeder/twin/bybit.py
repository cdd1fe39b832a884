"""Bybit v5, spot and linear, as text.

In:   events of market.py, requests of clients.   Out: JSON text, byte-shaped like the recordings of 2025 and 2026.

    spot     keys `topic, ts, type`; numbers without zeros at the end; trade ids of digits; no req_id unless it was sent
    linear   keys `topic, type, ts`; as many decimals as tick and lot show, but a removal is "0"; trade ids are UUIDs

Books come in-band: a snapshot for each newcomer, deltas whose `u` grows by one a message and topic, and "0" for levels
that leave the window of the subscribed depth. orderbook.1 is a snapshot each time, and again after 3 s of silence.
Client pings are answered; without them and without data a connection ends after `idle_s`.

Facts: the fact sheet of 2026-07, by its paragraph. Shown alternately, because a client must take both: the first
snapshot before the acknowledgement and after it (2); the restart of the service as a snapshot and as a delta (5).
Not here: options, inverse, orderbook.full and .rpi, tickers.
"""

from hashlib import blake2b

from .dialect import (PING, PONG, TEXT, Answer, BestChannel, BookChannel, Budget, Channel, Dialect, RequestError,
                      Session, ShortWords, Window, Words, dumps, grid_spec, parsed, request_of)
from .faults import SHOWN_BY_ALL
from .market import AGGREGATE, TRADE, Spec

DEPTHS = (1, 50, 200, 1_000)
QUOTES = ("USDT", "USDC", "USDE", "EUR", "BTC", "ETH", "PERP")
MAX_ARGS_BYTES = 21_000               # per connection, in all
ENGINE_MS = 2                         # cts and T are older than ts by the way through the gateway
TICKS = {"BTC": ("0.1", "0.000001", "0.10", "0.001"), "ETH": ("0.01", "0.00001", "0.01", "0.01"),
         "SOL": ("0.01", "0.0001", "0.010", "0.1"), "XRP": ("0.0001", "0.01", "0.0001", "0.1"),
         "DOGE": ("0.00001", "0.1", "0.00001", "1")}


class ClientSession(Session):
    """One client: topics by request, all or nothing."""

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.connection_id = f"d9avt8shteepr{self.number:07d}-4zd1x"
        self.heard_ns = 0

    def open(self, now_ns):
        self.heard_ns = now_ns
        self.deadline_ns = now_ns + self.dialect.ns(self.dialect.idle_s)

    def expire(self, now_ns):
        quiet_since_ns = max(self.heard_ns, self.peer.sent_ns)
        self.deadline_ns = quiet_since_ns + self.dialect.ns(self.dialect.idle_s)
        if self.deadline_ns <= now_ns:
            self.deadline_ns = None
            self.peer.count("idle_disconnects")
            self.peer.abort()

    def take(self, opcode, payload, now_ns):
        if opcode in (PING, PONG):
            return
        request = request_of(payload) if opcode == TEXT else None
        if request is None:
            return self.answer("", "Invalid request", is_bad=True)
        number, op, args = request.get("req_id", ""), request.get("op", ""), request.get("args", [])
        if op == "ping":
            self.heard_ns = now_ns
            return self.answer("ping", "pong", number)
        if op not in ("subscribe", "unsubscribe"):
            return self.answer(op, f"Invalid op: {op}", number, is_bad=True)
        if not (args and isinstance(args, list) and all(isinstance(topic, str) for topic in args)):
            return self.answer(op, "Params Error", number, is_bad=True)
        if op == "unsubscribe":
            for topic in args:
                self.peer.leave(topic)
            return self.answer(op, self.dialect.told(op), number)
        self.subscribe_all(args, number)

    def subscribe_all(self, args, number):
        dialect = self.dialect
        if dialect.max_args and len(args) > dialect.max_args:
            return self.answer("subscribe", f"args size >{dialect.max_args}", number, is_bad=True)
        if sum(map(len, {*self.topics, *args})) > MAX_ARGS_BYTES:
            return self.answer("subscribe", f"args length >{MAX_ARGS_BYTES}", number, is_bad=True)
        keys = {topic: dialect.key(topic, self.peer.symbols) for topic in args}
        wrong = [topic for topic, key in keys.items() if key is None]
        if wrong:                                                  # one bad topic fails the whole request (2)
            return self.answer("subscribe", f"Invalid topic: {wrong[0]}", number, is_bad=True)
        firsts = []
        for topic, key in keys.items():
            if topic not in self.topics:                           # a repeated one is acknowledged, and no more
                firsts += self.subscribe(topic, key)
        dialect.acknowledged += 1
        if dialect.acknowledged % 2:
            self.answer("subscribe", dialect.told("subscribe"), number)
            self.tell(firsts)
        else:
            self.tell(firsts)
            self.answer("subscribe", dialect.told("subscribe"), number)

    def answer(self, op, message, number="", is_bad=False):
        if is_bad:
            self.peer.count("bad_commands")
        with_number = number or self.dialect.always_numbers and (op == "subscribe" or op == "unsubscribe" or is_bad)
        named = f'"req_id":{dumps(number)},' if with_number else ""
        message = dumps(message).replace(">", "\\u003e")           # as the venue's encoder escapes it
        self.peer.send(f'{{"success":{"false" if is_bad else "true"},"ret_msg":{message},'
                       f'"conn_id":"{self.connection_id}",{named}"op":{dumps(op)}}}')

    def half_a_message(self, now_ms):
        topic = next(iter(self.topics), "orderbook.50.BTCUSDT")
        return f'{{"topic":"{topic}","type":"delta","ts":{now_ms},"data":{{"s":"'


class Orderbook(BookChannel):
    """orderbook.50, .200 and .1000"""

    def __init__(self, key, listing, words, head):
        super().__init__(key, listing, words)
        self.head, self.topic = head, f"orderbook.{key[1]}.{key[2]}"
        self.window = Window(listing, key[1], tells_ghosts=True)   # removals of levels nobody held do occur (10)
        self.sequence = listing.update_id % 10 ** 8 + 2            # 1 means something
        self.cross = listing.update_id
        self.resets = 0

    def texts(self, event, now_ms):
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return ()
        self.sequence += 1
        self.cross, self.now_ms = event[3], now_ms
        return (self.text("delta", bids, asks, self.sequence),)

    def text(self, kind, bids, asks, number):
        numbered = "" if number is None else f'"u":{number},'
        return (f'{self.head(self.topic, kind, self.now_ms)},"data":{{"s":"{self.symbol}",'
                f'"b":[{self.words.levels(bids)}],"a":[{self.words.levels(asks)}],{numbered}"seq":{self.cross}}},'
                f'"cts":{self.now_ms - ENGINE_MS}}}')

    def first(self, now_ms):
        self.now_ms = now_ms
        return [self.text("snapshot", *self.window.levels(), self.sequence)]

    def hurt(self, kind, event, now_ms):
        if kind in ("snapshot", "reset"):
            self.window.move(event)
            self.cross, self.now_ms, name = event[3], now_ms, "snapshot"
            self.sequence += 1
            if kind == "reset":
                self.sequence, self.resets = 1, self.resets + 1
                name = "snapshot" if self.resets % 2 else "delta"
            return [self.text(name, *self.window.levels(), self.sequence)]
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return []
        self.sequence += 1
        self.cross, self.now_ms = event[3], now_ms
        return [self.text("delta", bids, asks, self.sequence + 7 if kind == "sequence" else None)]


class Best(BestChannel):
    """orderbook.1"""

    def __init__(self, key, listing, words, head, idle_ns):
        super().__init__(key, listing, words)
        self.head, self.topic, self.idle_ns = head, f"orderbook.1.{key[2]}", idle_ns
        self.number = listing.update_id % 10 ** 8 + 2
        self.last = listing.best()

    def texts(self, event, now_ms):
        _, _, _, bid, bid_lots, ask, ask_lots = event
        if event[3:] == self.last[3:]:
            return ()
        self.number += 1
        self.last = event
        return (self.text(now_ms),)

    def text(self, now_ms):
        _, _, update_id, bid, bid_lots, ask, ask_lots = self.last
        return (f'{self.head(self.topic, "snapshot", now_ms)},"data":{{"s":"{self.symbol}",'
                f'"b":[{self.words.levels([(bid, bid_lots)])}],"a":[{self.words.levels([(ask, ask_lots)])}],'
                f'"u":{self.number},"seq":{update_id}}},"cts":{now_ms - ENGINE_MS}}}')

    def first(self, now_ms):
        return [self.text(now_ms)]

    def idle(self, now_ms):
        return [self.text(now_ms)]


class Trades(Channel):
    """publicTrade: the fills of one taker's order in one message."""

    kinds = (TRADE, AGGREGATE)

    def __init__(self, key, listing, words, head, fill):
        super().__init__(key, key[1])
        self.listing, self.words, self.head, self.fill = listing, words, head, fill
        self.topic = f"publicTrade.{key[1]}"
        self.fills = []
        self.last_price, self.last_tick = 0, "Plus"

    def texts(self, event, now_ms):
        if event[0] == TRADE:
            self.fills.append(event)
            return ()
        rows = [self.fill(trade, self.words, now_ms - ENGINE_MS, self.direction(trade[3])) for trade in self.fills]
        self.fills = []
        return (f'{self.head(self.topic, "snapshot", now_ms)},"data":[{",".join(rows)}]}}',)

    def direction(self, price):
        if price == self.last_price:
            return f"Zero{self.last_tick}Tick"
        self.last_tick = "Plus" if price > self.last_price else "Minus"
        self.last_price = price
        return f"{self.last_tick}Tick"


class Bybit(Dialect):
    """What both categories share."""

    session = ClientSession
    uncounted = TRADE                  # a message holds all fills of an order
    connects = (500, 300)
    connect_refusal = too_many_status = 403
    faults = frozenset(SHOWN_BY_ALL + ("gap", "reorder", "sequence", "no_sequence", "reset", "snapshot"))
    settings = {"idle_s": 600.0, "repeat_s": 3.0, "page_limit": 1_000}
    category = ""
    max_args = 0                       # in a request; 0: no limit
    always_numbers = False             # whether an answer has a req_id where the request had none

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.acknowledged = 0
        self.requests = Budget(600, 5)

    # --- WebSocket

    def route(self, target):
        return target if parsed(target)[0] == f"/v5/public/{self.category}" else None

    def key(self, topic, symbols):
        """What a topic names; None for none."""
        parts = topic.split(".")
        if parts[-1] not in symbols:
            return None
        if len(parts) == 2 and parts[0] == "publicTrade":
            return "publicTrade", parts[1]
        if len(parts) == 3 and parts[0] == "orderbook" and parts[1] in map(str, DEPTHS):
            return "orderbook", int(parts[1]), parts[2]
        return None

    def channel(self, key, source):
        listing, words = source.listings[key[-1]], source.words[key[-1]]
        if key[0] == "publicTrade":
            return Trades(key, listing, words, self.head, self.fill)
        if key[1] == 1:
            return Best(key, listing, words, self.head, self.ns(self.repeat_s))
        return Orderbook(key, listing, words, self.head)

    # --- REST

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        endpoints = {"/v5/market/instruments-info": self.instruments, "/v5/market/orderbook": self.orderbook,
                     "/v5/market/time": self.time}
        if path not in endpoints:
            raise RequestError("404 page not found", 404)
        desk.counts["rest_requests"] += 1
        if not self.requests.take(now_ns):
            raise self.too_many(600)
        desk.rest_fault(parameters.get("symbol"), False)
        if path != "/v5/market/time" and parameters.get("category") != self.category:
            return self.result(10001, "params error: Category is invalid", "{}", now_ms)
        if "symbol" in parameters and parameters["symbol"] not in desk.symbols:
            return self.result(10001, "Not supported symbols", "{}", now_ms)
        return endpoints[path](parameters, desk, now_ms)

    def result(self, code, message, text, now_ms):
        return Answer(f'{{"retCode":{code},"retMsg":{dumps(message)},"result":{text},"retExtInfo":{{}},'
                      f'"time":{now_ms}}}')

    def time(self, parameters, desk, now_ms):
        return self.result(0, "OK", f'{{"timeSecond":"{now_ms // 1_000}","timeNano":"{now_ms * 10 ** 6}"}}', now_ms)

    def instruments(self, parameters, desk, now_ms):
        """Linear is paged, by a cursor that is the place to go on from; spot comes whole."""
        specs = [spec for spec in desk.source.specs if parameters.get("symbol", spec.symbol) == spec.symbol]
        answer = {"category": self.category, "list": specs}
        if self.is_paged:
            start = self.whole(parameters.get("cursor") or "0")
            stop = start + min(self.whole(parameters.get("limit", "500")), self.page_limit)
            answer = {**answer, "list": specs[start:stop], "nextPageCursor": str(stop) if stop < len(specs) else ""}
        answer["list"] = [self.listed(spec) for spec in answer["list"]]
        return self.result(0, "OK", dumps(answer), now_ms)

    def orderbook(self, parameters, desk, now_ms):
        if "symbol" not in parameters:
            return self.result(10001, "params error: symbol invalid", "{}", now_ms)
        limit = min(max(self.whole(parameters.get("limit", str(self.book_limit))), 1), 1_000)
        symbol = parameters["symbol"]
        listing, words = desk.source.listings[symbol], desk.source.words[symbol]
        deepest = desk.channels.get(("orderbook", 1_000, symbol))
        number = deepest.sequence if deepest else listing.update_id % 10 ** 8 + 2
        text = (f'{{"s":"{symbol}","b":[{words.levels(listing.bids.levels(limit))}],'
                f'"a":[{words.levels(listing.asks.levels(limit))}],"ts":{now_ms},"u":{number},'
                f'"seq":{listing.update_id},"cts":{now_ms - ENGINE_MS}}}')
        return self.result(0, "OK", text, now_ms)

    def whole(self, text):
        if not (text.isascii() and text.isdigit()):
            raise RequestError('{"retCode":10001,"retMsg":"params error","result":{},"retExtInfo":{},"time":0}', 200)
        return int(text)

    def too_many(self, retry_s):
        return RequestError("403 access too frequent", 403)

    def broken(self):
        text = '{"retCode":10016,"retMsg":"Internal System Error","result":{},"retExtInfo":{},"time":0}'
        return RequestError(text, 500)

    # --- what is listed

    def spell(self, base, quote):
        return f"{base}{quote or 'USDT'}"

    def spec(self, symbol):
        base, quote = next(((symbol[:-len(quote)], quote) for quote in QUOTES
                            if symbol.endswith(quote) and symbol != quote), (symbol, "USDT"))
        spec = grid_spec(symbol, base, quote)
        if base not in TICKS:
            return spec
        tick, lot = TICKS[base][self.steps:self.steps + 2]
        return Spec(symbol, base, quote, spec.first_price, tick, lot)


class Spot(Bybit):
    name = "bybit_spot"
    category = "spot"
    steps = 0
    max_args = 10
    is_paged = False
    book_limit = 1

    def words(self, spec):
        return ShortWords(spec)

    def told(self, op):
        return op

    def head(self, topic, kind, now_ms):
        return f'{{"topic":"{topic}","ts":{now_ms},"type":"{kind}"'

    def fill(self, trade, words, now_ms, direction):
        _, _, number, price, lots, buyer_is_maker = trade
        return (f'{{"i":"229{number:016d}","T":{now_ms},"p":"{words.price(price)}","v":"{words.quantity(lots)}",'
                f'"S":"{"Sell" if buyer_is_maker else "Buy"}","seq":{trade[1].update_id},"s":"{words.symbol}",'
                '"BT":false,"RPI":false}')

    def listed(self, spec):
        return {"symbolId": 9, "symbol": spec.symbol, "baseCoin": spec.base, "quoteCoin": spec.quote, "innovation": "0",
                "status": "Trading", "marginTrading": "utaOnly", "stTag": "0",
                "lotSizeFilter": {"basePrecision": spec.lot, "quotePrecision": "0.0000001", "minOrderQty": spec.lot,
                                  "maxOrderQty": "230", "minOrderAmt": "5", "maxOrderAmt": "8000000",
                                  "maxLimitOrderQty": "230", "maxMarketOrderQty": "120",
                                  "postOnlyMaxLimitOrderSize": "1150"},
                "priceFilter": {"tickSize": spec.tick},
                "riskParameters": {"priceLimitRatioX": "0.005", "priceLimitRatioY": "0.01"},
                "symbolType": "", "xstockMultiplier": "1"}


class LinearWords(Words):
    """All decimals, but a removal is "0"."""

    __slots__ = ()

    def levels(self, pairs):
        price, quantity = self.price, self.quantity
        return ",".join([f'["{price(ticks)}","{quantity(lots) if lots else 0}"]' for ticks, lots in pairs])


class Linear(Bybit):
    name = "bybit_linear"
    category = "linear"
    steps = 2
    always_numbers = True
    is_paged = True
    book_limit = 25

    def words(self, spec):
        return LinearWords(spec)

    def told(self, op):
        return ""

    def head(self, topic, kind, now_ms):
        return f'{{"topic":"{topic}","type":"{kind}","ts":{now_ms}'

    def fill(self, trade, words, now_ms, direction):
        _, _, number, price, lots, buyer_is_maker = trade
        return (f'{{"T":{now_ms},"s":"{words.symbol}","S":"{"Sell" if buyer_is_maker else "Buy"}",'
                f'"v":"{words.quantity(lots)}","p":"{words.price(price)}","L":"{direction}",'
                f'"i":"{uuid_text(words.symbol, number)}","BT":false,"RPI":false,"seq":{trade[1].update_id}}}')

    def listed(self, spec):
        return {"symbol": spec.symbol, "contractType": "LinearPerpetual", "status": "Trading", "baseCoin": spec.base,
                "quoteCoin": spec.quote, "launchTime": "1585526400000", "deliveryTime": "0", "deliveryFeeRate": "",
                "priceScale": str(spec.price_decimals),
                "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
                "priceFilter": {"minPrice": spec.tick, "maxPrice": "1999999.80", "tickSize": spec.tick},
                "lotSizeFilter": {"maxOrderQty": "1190.000", "minOrderQty": spec.lot, "qtyStep": spec.lot,
                                  "postOnlyMaxOrderQty": "1190.000", "maxMktOrderQty": "119.000",
                                  "minNotionalValue": "5"},
                "unifiedMarginTrade": True, "fundingInterval": 480, "settleCoin": spec.quote, "isPreListing": False,
                "displayName": "", "symbolType": ""}


def uuid_text(symbol, number):
    """A UUID (version 5 in its shape) that is the same for the same trade."""
    text = blake2b(f"{symbol} {number}".encode(), digest_size=16).hexdigest()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-b{text[17:20]}-{text[20:]}"
