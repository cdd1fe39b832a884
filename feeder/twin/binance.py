"""Binance's two dialects as text: what the synthetic market says becomes the venue's messages and answers.

In:   events of market.py, requests of clients.   Out: JSON text, byte-shaped like the recordings (key order, padding).

    spot   prices and quantities padded to 8 decimals; bids of a diff best first; U follows u; bookTicker has no `e`
    usdm   decimals of tick and lot; bids of a diff worst first; pu names the previous u, ids have holes; E and T

A client names streams in the URL or in SUBSCRIBE; books start from a REST snapshot. Facts with their sources: the
venue's web-socket-streams.md and rest-api.md (state of 2026-07) and, where those and the recordings of 2021 to 2024
differ in key order, the recordings. Not here: sockets, time, who is subscribed.
"""

import json
from urllib.parse import parse_qs, unquote, urlsplit

from .dialect import (BINARY, COINS, MINUTE_NS, PONG, SECOND_NS, TEXT, Answer, Budget, Channel, RequestError, Session,
                      dumps, first_price, parsed)
from .dialect import Dialect as AnyDialect
from .faults import KINDS
from .market import AGGREGATE, BBO, DEPTH, TRADE, Spec

MAX_STREAMS = 1024                    # per connection, both venues

# symbol: first price, spot tick, spot lot, usdm tick, usdm lot. Usdm ticks show as many decimals as the venue does.
STEPS = {
    "BTC": ("0.01", "0.00001", "0.10", "0.001"),
    "ETH": ("0.01", "0.0001", "0.01", "0.001"),
    "SOL": ("0.01", "0.001", "0.0100", "1"),
    "BNB": ("0.01", "0.001", "0.010", "0.01"),
    "XRP": ("0.0001", "0.1", "0.0001", "0.1"),
    "ADA": ("0.0001", "0.1", "0.00010", "1"),
    "DOGE": ("0.00001", "1", "0.000010", "1"),
    "AVAX": ("0.001", "0.01", "0.0010", "1"),
    "DOT": ("0.001", "0.01", "0.001", "0.1"),
    "LINK": ("0.001", "0.01", "0.001", "0.01"),
    "TRX": ("0.00001", "0.1", "0.00001", "1"),
    "LTC": ("0.01", "0.001", "0.01", "0.001"),
    "BCH": ("0.01", "0.001", "0.01", "0.001"),
    "ETC": ("0.001", "0.01", "0.001", "0.01"),
    "UNI": ("0.001", "0.01", "0.0010", "1"),
    "AAVE": ("0.01", "0.001", "0.010", "0.1"),
    "ATOM": ("0.001", "0.01", "0.001", "0.01"),
    "NEAR": ("0.001", "0.1", "0.0010", "1"),
    "FIL": ("0.001", "0.01", "0.001", "0.1"),
    "XLM": ("0.00001", "1", "0.00001", "1"),
}
LISTED = {f"{coin}USDT": (COINS[coin], *steps) for coin, steps in STEPS.items()}
QUOTES = ("USDT", "USDC", "FDUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "USD")


class WeightBudget:
    """Request weight per minute: a window opens with the first request after the last one closed."""

    def __init__(self, limit):
        self.limit = limit
        self.used = 0
        self.refused = 0
        self._ends_ns = 0

    def spend(self, weight, now_ns):
        """0 when granted, else the seconds to wait."""
        if now_ns >= self._ends_ns:
            self.used, self._ends_ns = 0, now_ns + MINUTE_NS
        self.used += weight
        if self.used <= self.limit:
            return 0
        self.refused += 1
        return max(1, -(-(self._ends_ns - now_ns) // SECOND_NS))


class StreamSession(Session):
    """One client: streams by name, raw or combined; WebSocket pings of the venue that want their pongs."""

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.combined, self.kinds, _ = route
        self.commands = Budget(dialect.commands_per_second, 1)
        self.ping_payload, self.ping_ns = b"", 0

    def open(self, now_ns):
        names = self.route[2]
        if len(names) > MAX_STREAMS:
            return self.peer.refuse(f"{len(names)} streams, at most {MAX_STREAMS} are allowed")
        self.join_all(names)
        self.deadline_ns = now_ns + self.dialect.ns(self.dialect.ping_interval_s)

    def take(self, opcode, payload, now_ns):
        if opcode == PONG and payload == self.ping_payload:
            self.ping_ns = 0
        if not self.commands.take(now_ns):                                     # pings and pongs count too
            return self.peer.refuse(f"more than {self.dialect.commands_per_second} messages a second")
        if opcode == TEXT:
            self.command(payload)
        elif opcode == BINARY:
            self.peer.refuse("binary messages are not served", 1003)

    def expire(self, now_ns):
        """Once every interval: close the connection whose pong is overdue, else ask again."""
        dialect = self.dialect
        if self.ping_ns and now_ns - self.ping_ns >= dialect.ns(dialect.pong_timeout_s):
            self.peer.count("pong_timeouts")
            return self.peer.close(1008, "Pong timeout")
        if not self.ping_ns:
            self.ping_ns, self.ping_payload = now_ns, str(self.peer.now_ms).encode()
        self.peer.ping(self.ping_payload)
        self.deadline_ns = now_ns + dialect.ns(dialect.ping_interval_s)

    def command(self, payload):
        result = "null"
        try:
            method, params, number = self.dialect.command(payload)
        except RequestError as error:
            self.peer.count("bad_commands")
            return self.peer.send(error.text)
        if method == "SUBSCRIBE":
            if len(set(self.topics).union(params)) > MAX_STREAMS:
                return self.peer.refuse(f"more than {MAX_STREAMS} streams")
            self.join_all(params)
        elif method == "UNSUBSCRIBE":
            for name in params:
                self.peer.leave(name)
        elif method == "LIST_SUBSCRIPTIONS":
            result = dumps(list(self.topics))
        elif method == "SET_PROPERTY":
            names = list(self.topics)
            for name in names:
                self.peer.leave(name)
            self.combined = params[1]
            self.join_all(names)
        else:
            result = "true" if self.combined else "false"
        self.peer.send(f'{{"result":{result},"id":{number}}}')

    def join_all(self, names):
        for name in names:
            if name not in self.topics:
                key = self.dialect.stream(name, self.kinds)
                if key is not None and key[0] not in self.peer.symbols:
                    key = None
                self.peer.join(name, key, (name, self.combined))

    def farewell(self, now_ns):
        if "notice" not in self.dialect.faults:
            return 0
        text = '{"e":"serverShutdown","E":%d}' % self.peer.now_ms
        self.peer.send(f'{{"stream":"!serverShutdown","data":{text}}}' if self.combined else text)
        return self.dialect.shutdown_s

    def half_a_message(self, now_ms):
        name = next((name for name, topic in self.topics.items() if topic and topic[0][1] == DEPTH), "btcusdt@depth")
        return f'{{"stream":"{name}","data":{{"e":"depthUpdate","E":{now_ms},"s":"'


class Stream(Channel):
    """One kind of one symbol, under however many names. A recording brings its own text."""

    def __init__(self, key, source):
        super().__init__(key, key[0])
        self.kind, self.source = key[1], source
        self.kinds = (self.kind,)
        self.is_book = self.kind == DEPTH

    def texts(self, event, now_ms):
        return (self.source.text(self.kind, self.symbol, event, now_ms),)

    def book(self):
        return self.source.book(self.symbol)

    def dress(self, label, text):
        name, combined = label
        return f'{{"stream":"{name}","data":{text}}}' if combined else text


class Dialect(AnyDialect):
    """What both venues share. One object per venue; texts of a listing are made by its `Words`."""

    session = StreamSession
    replays = True
    faults = frozenset(KINDS)
    settings = {"ping_interval_s": 20.0, "pong_timeout_s": 60.0, "shutdown_s": 1.0}
    rest_prefix = ""
    weight_limit = 0
    info_weight = 0
    commands_per_second = 0
    depth_speeds = ()
    routes = {}                 # path prefix -> kinds served there

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.budget = WeightBudget(self.weight_limit)

    # --- WebSocket

    def route(self, target):
        """Split an upgrade's target into (combined, kinds, streams in the URL); None if nothing is served there."""
        url = urlsplit(target)
        for prefix, kinds in self.routes.items():
            if not url.path.startswith(prefix):
                continue
            rest = url.path[len(prefix):]
            if rest == "/stream":
                streams = parse_qs(url.query).get("streams", [""])[0]
                return True, kinds, [name for name in streams.split("/") if name]
            if rest == "/ws" or rest.startswith("/ws/"):
                return False, kinds, [name for name in unquote(rest[4:]).split("/") if name]
        return None

    def channel(self, key, source):
        return Stream(key, source)

    def stream(self, stream, kinds):
        """(symbol, kind) a stream name stands for; None for one that is taken and stays silent, as at the venue."""
        symbol, _, kind = stream.partition("@")
        kind, _, speed = kind.partition("@")
        if kind not in kinds or symbol != symbol.lower() or speed and (kind != DEPTH or speed not in self.depth_speeds):
            return None
        return symbol.upper(), kind

    def command(self, payload):
        """A client's request as (method, params, id as JSON text); RequestError carries the answer to a bad one."""
        try:
            request = json.loads(payload)
        except ValueError as error:
            raise RequestError('{"code":3,"msg":%s}' % json.dumps(f"Invalid JSON: {error}")) from None
        if not isinstance(request, dict):
            raise RequestError('{"code":2,"msg":"Invalid request: expected an object"}')
        number = request.get("id")
        if not self._may_be_id(number):
            raise RequestError('{"code":2,"msg":"Invalid request: request ID is not allowed"}')
        number = json.dumps(number)
        method, params = request.get("method"), request.get("params", [])

        def refuse(code, reason):
            raise RequestError('{"code":%d,"msg":%s,"id":%s}' % (code, json.dumps(reason), number))

        if method not in ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY"):
            refuse(2, f"Invalid request: unknown variant `{method}`, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`, "
                      "`LIST_SUBSCRIPTIONS`, `SET_PROPERTY`, `GET_PROPERTY`")
        if not isinstance(params, list):
            refuse(2, "Invalid request: params must be a list")
        if method.endswith("SUBSCRIBE") and not (params and all(isinstance(name, str) for name in params)):
            refuse(2, "Invalid request: params must be a list of stream names")
        if method.endswith("PROPERTY") and params[:1] != ["combined"]:
            refuse(0, "Unknown property")
        if method == "SET_PROPERTY" and not (len(params) == 2 and isinstance(params[1], bool)):
            refuse(1, "Invalid value type: expected Boolean")
        return method, params, number

    def _may_be_id(self, number):
        if isinstance(number, str):
            return len(number) <= 36
        return number is None or type(number) is int and -2 ** 63 <= number < 2 ** 63

    # --- REST

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        endpoint = path[len(self.rest_prefix):] if path.startswith(self.rest_prefix) else ""
        if endpoint not in ("depth", "exchangeInfo", "time", "ping"):
            raise RequestError('{"code":-1000,"msg":"no such path"}', 404)
        desk.counts["rest_requests"] += 1
        retry_s = self.budget.spend(self.weight(endpoint, parameters), now_ns)
        headers = [("X-MBX-USED-WEIGHT-1M", str(self.budget.used))]
        if retry_s:
            raise self.too_many(retry_s)
        symbol = parameters.get("symbol", "").upper() if endpoint == "depth" else None
        if endpoint == "depth" and symbol not in desk.symbols:
            raise RequestError('{"code":-1121,"msg":"Invalid symbol."}')
        fault = desk.rest_fault(symbol, endpoint == "depth")
        if endpoint == "ping":
            return Answer("{}", headers)
        if endpoint == "time":
            return Answer(f'{{"serverTime":{now_ms}}}', headers)
        if endpoint == "exchangeInfo":
            return Answer(self.exchange_info(desk.source.specs, parameters, now_ms), headers)
        limit, source = self.depth_limit(parameters), desk.source
        if fault == "stale_snapshot":
            return Answer(source.stale_depth(symbol, limit, now_ms), headers)
        return Answer(None, headers, lambda now_ms: source.depth(symbol, limit, now_ms))

    def too_many(self, retry_s):
        text = (f'{{"code":-1003,"msg":"Too many requests; current limit is {self.budget.limit} request weight per '
                '1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API."}')
        return RequestError(text, 429, [("X-MBX-USED-WEIGHT-1M", str(self.budget.used)), ("Retry-After", str(retry_s))])

    def broken(self):
        text = '{"code":-1000,"msg":"An unknown error occurred while processing the request."}'
        return RequestError(text, 500, [("X-MBX-USED-WEIGHT-1M", str(self.budget.used))])

    def status(self):
        return {"weight_used": self.budget.used, "rest_refused": self.budget.refused}

    def weight(self, endpoint, parameters):
        if endpoint == "depth":
            return self.depth_weight(self.depth_limit(parameters))
        return self.info_weight if endpoint == "exchangeInfo" else 1

    def exchange_info(self, specs, parameters, now_ms):
        wanted = None
        if "symbol" in parameters:
            wanted = [parameters["symbol"]]
        elif "symbols" in parameters:
            try:
                wanted = json.loads(parameters["symbols"])
            except ValueError:
                raise _illegal("symbols") from None
        by_symbol = {spec.symbol: spec for spec in specs}
        for symbol in wanted or ():
            if symbol not in by_symbol:
                raise RequestError('{"code":-1121,"msg":"Invalid symbol."}')
        listed = specs if wanted is None else [by_symbol[symbol] for symbol in wanted]
        limit = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": self.weight_limit}
        head = {"timezone": "UTC", "serverTime": now_ms, **self.info_head, "rateLimits": [limit], "exchangeFilters": []}
        return json.dumps({**head, "symbols": [self.symbol_info(spec) for spec in listed]}, separators=(",", ":"))

    def spell(self, base, quote):
        return f"{base}{quote or 'USDT'}"

    def specs(self, symbols):
        """What is listed under these names; names that are not in the table get a price of their own."""
        return [self.spec(symbol, *(LISTED.get(symbol) or _made_up(symbol))) for symbol in symbols]

    def makers(self):
        """{kind of event: what makes it text}"""
        return {TRADE: self.trade, AGGREGATE: self.aggregate, BBO: self.bbo, DEPTH: self.depth}


class Spot(Dialect):
    name = "binance_spot"
    faults = frozenset(KINDS + ("notice",))        # serverShutdown, since 2026-05
    contiguous = True
    uncounted = AGGREGATE              # a subscriber of every channel sees the rate: clients here take single trades
    rest_prefix = "/api/v3/"
    weight_limit = 6_000
    info_weight = 20
    commands_per_second = 5
    depth_speeds = ("100ms", "1000ms")
    routes = {"": (DEPTH, TRADE, AGGREGATE, BBO)}
    info_head = {}
    level_count = 1_600                # at most, a side; a 5000-level snapshot holds the whole book

    def spec(self, symbol, price, tick, lot, _usdm_tick, _usdm_lot):
        return Spec(symbol, *_split(symbol), price, _padded(tick), _padded(lot))

    def depth_limit(self, parameters):
        return min(max(_whole(parameters.get("limit", "100"), "limit"), 1), 5_000)

    def depth_weight(self, limit):
        return 5 if limit <= 100 else 25 if limit <= 500 else 50 if limit <= 1_000 else 250

    def depth_text(self, last_id, bids, asks, now_ms):
        return f'{{"lastUpdateId":{last_id},"bids":[{bids}],"asks":[{asks}]}}'

    def symbol_info(self, spec):
        return {"symbol": spec.symbol, "status": "TRADING", "baseAsset": spec.base, "baseAssetPrecision": 8,
                "quoteAsset": spec.quote, "quotePrecision": 8, "quoteAssetPrecision": 8,
                "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"], "isSpotTradingAllowed": True,
                "filters": [{"filterType": "PRICE_FILTER", "minPrice": spec.tick, "maxPrice": "1000000.00000000",
                             "tickSize": spec.tick},
                            {"filterType": "LOT_SIZE", "minQty": spec.lot, "maxQty": "92141578.00000000",
                             "stepSize": spec.lot}],
                "permissions": ["SPOT"]}

    def trade(self, event, words, now):
        _, listing, number, price, lots, maker = event
        return (f'{{"e":"trade","E":{now},"s":"{words.symbol}","t":{number},"p":"{words.price(price)}",'
                f'"q":"{words.quantity(lots)}","T":{now},"m":{"true" if maker else "false"},"M":true}}')

    def aggregate(self, event, words, now):
        _, listing, number, price, lots, first, last, maker = event
        return (f'{{"e":"aggTrade","E":{now},"s":"{words.symbol}","a":{number},"p":"{words.price(price)}",'
                f'"q":"{words.quantity(lots)}","f":{first},"l":{last},"T":{now},"m":{"true" if maker else "false"},'
                '"M":true}')

    def bbo(self, event, words, now):
        _, listing, update_id, bid, bid_lots, ask, ask_lots = event
        return (f'{{"u":{update_id},"s":"{words.symbol}","b":"{words.price(bid)}","B":"{words.quantity(bid_lots)}",'
                f'"a":"{words.price(ask)}","A":"{words.quantity(ask_lots)}"}}')

    def depth(self, event, words, now):
        _, listing, first, last, previous, bids, asks = event
        return (f'{{"e":"depthUpdate","E":{now},"s":"{words.symbol}","U":{first},"u":{last},'
                f'"b":[{words.levels(bids)}],"a":[{words.levels(asks)}]}}')


class Usdm(Dialect):
    name = "binance_usdm"
    contiguous = False
    uncounted = TRADE                  # ... and aggregates there
    rest_prefix = "/fapi/v1/"
    weight_limit = 2_400
    info_weight = 1
    commands_per_second = 10
    depth_speeds = ("100ms", "500ms", "0ms")
    # Since 2026-04-23 a path serves its own kinds only; the old paths serve the public ones, others stay silent there.
    # @trade is undocumented; /public serves it according to two adapters.
    routes = {"/public": (DEPTH, BBO, TRADE), "/market": (AGGREGATE,), "": (DEPTH, BBO, TRADE)}
    info_head = {"futuresType": "U_MARGINED"}
    level_count = 1_000                # at most, a side; the largest snapshot there is holds the whole book

    def _may_be_id(self, number):
        return type(number) is int and 0 <= number < 2 ** 64

    def spec(self, symbol, price, _spot_tick, _spot_lot, tick, lot):
        return Spec(symbol, *_split(symbol), price, tick, lot)

    def depth_limit(self, parameters):
        limit = _whole(parameters.get("limit", "500"), "limit")
        if limit not in (5, 10, 20, 50, 100, 500, 1_000):
            raise RequestError('{"code":-4021,"msg":"%d is not valid depth limit."}' % limit)
        return limit

    def depth_weight(self, limit):
        return 2 if limit <= 50 else 5 if limit <= 100 else 10 if limit <= 500 else 20

    def depth_text(self, last_id, bids, asks, now_ms):
        return f'{{"lastUpdateId":{last_id},"E":{now_ms},"T":{now_ms},"bids":[{bids}],"asks":[{asks}]}}'

    def symbol_info(self, spec):
        return {"symbol": spec.symbol, "pair": spec.symbol, "contractType": "PERPETUAL", "status": "TRADING",
                "baseAsset": spec.base, "quoteAsset": spec.quote, "marginAsset": spec.quote,
                "pricePrecision": spec.price_decimals, "quantityPrecision": spec.lot_decimals,
                "baseAssetPrecision": 8, "quotePrecision": 8,
                "filters": [{"minPrice": spec.tick, "maxPrice": "1000000", "filterType": "PRICE_FILTER",
                             "tickSize": spec.tick},
                            {"stepSize": spec.lot, "filterType": "LOT_SIZE", "maxQty": "10000000", "minQty": spec.lot}],
                "orderTypes": ["LIMIT", "MARKET"], "timeInForce": ["GTC", "IOC", "FOK", "GTX"]}

    def trade(self, event, words, now):
        _, listing, number, price, lots, maker = event
        return (f'{{"e":"trade","E":{now},"T":{now},"s":"{words.symbol}","t":{number},"p":"{words.price(price)}",'
                f'"q":"{words.quantity(lots)}","X":"MARKET","m":{"true" if maker else "false"}}}')

    def aggregate(self, event, words, now):
        _, listing, number, price, lots, first, last, maker = event
        return (f'{{"e":"aggTrade","E":{now},"a":{number},"s":"{words.symbol}","p":"{words.price(price)}",'
                f'"q":"{words.quantity(lots)}","f":{first},"l":{last},"T":{now},"m":{"true" if maker else "false"}}}')

    def bbo(self, event, words, now):
        _, listing, update_id, bid, bid_lots, ask, ask_lots = event
        return (f'{{"e":"bookTicker","u":{update_id},"s":"{words.symbol}","b":"{words.price(bid)}",'
                f'"B":"{words.quantity(bid_lots)}","a":"{words.price(ask)}","A":"{words.quantity(ask_lots)}",'
                f'"T":{now},"E":{now}}}')

    def depth(self, event, words, now):
        _, listing, first, last, previous, bids, asks = event
        return (f'{{"e":"depthUpdate","E":{now},"T":{now},"s":"{words.symbol}","U":{first},"u":{last},"pu":{previous},'
                f'"b":[{words.levels(bids[::-1])}],"a":[{words.levels(asks)}]}}')


def _padded(step):
    """Spot spells everything with 8 decimals."""
    whole, _, part = step.partition(".")
    return f"{whole}.{part.ljust(8, '0')}"


def _split(symbol):
    for quote in QUOTES:
        if symbol.endswith(quote) and symbol != quote:
            return symbol[: -len(quote)], quote
    return symbol, "USDT"


def _made_up(symbol):
    """A plausible listing for any name, the same one each time."""
    return f"{first_price(symbol):.3f}", "0.001", "0.01", "0.0010", "0.1"


def _whole(text, name):
    if not text.isascii() or not text.isdigit():
        raise _illegal(name)
    return int(text)


def _illegal(name):
    return RequestError('{"code":-1100,"msg":"Illegal characters found in parameter \'%s\'."}' % name)
