"""Binance's two dialects as text: what the synthetic market says becomes the venue's messages and answers.

In:   events of market.py, requests of clients.   Out: JSON text, byte-shaped like the recordings (key order, padding).

    spot   prices and quantities padded to 8 decimals; bids of a diff best first; U follows u; bookTicker has no `e`
    usdm   decimals of tick and lot; bids of a diff worst first; pu names the previous u, ids have holes; E and T

Facts with their sources: the venue's web-socket-streams.md and rest-api.md (state of 2026-07) and, where those and
the recordings of 2021 to 2024 differ in key order, the recordings. Not here: sockets, time, who is subscribed.
"""

import json
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import FeederError
from .market import AGGREGATE, BBO, DEPTH, TRADE, Spec

SECOND_NS, MINUTE_NS = 10 ** 9, 60 * 10 ** 9
MAX_STREAMS = 1024                    # per connection, both venues

# symbol: first price, spot tick, spot lot, usdm tick, usdm lot. Usdm ticks show as many decimals as the venue does.
LISTED = {
    "BTCUSDT": ("61837.64", "0.01", "0.00001", "0.10", "0.001"),
    "ETHUSDT": ("2681.62", "0.01", "0.0001", "0.01", "0.001"),
    "SOLUSDT": ("156.23", "0.01", "0.001", "0.0100", "1"),
    "BNBUSDT": ("512.40", "0.01", "0.001", "0.010", "0.01"),
    "XRPUSDT": ("0.6123", "0.0001", "0.1", "0.0001", "0.1"),
    "ADAUSDT": ("0.33450", "0.0001", "0.1", "0.00010", "1"),
    "DOGEUSDT": ("0.10123", "0.00001", "1", "0.000010", "1"),
    "AVAXUSDT": ("21.870", "0.001", "0.01", "0.0010", "1"),
    "DOTUSDT": ("4.612", "0.001", "0.01", "0.001", "0.1"),
    "LINKUSDT": ("10.234", "0.001", "0.01", "0.001", "0.01"),
    "TRXUSDT": ("0.12694", "0.00001", "0.1", "0.00001", "1"),
    "LTCUSDT": ("58.91", "0.01", "0.001", "0.01", "0.001"),
    "BCHUSDT": ("341.20", "0.01", "0.001", "0.01", "0.001"),
    "ETCUSDT": ("18.420", "0.001", "0.01", "0.001", "0.01"),
    "UNIUSDT": ("6.104", "0.001", "0.01", "0.0010", "1"),
    "AAVEUSDT": ("98.12", "0.01", "0.001", "0.010", "0.1"),
    "ATOMUSDT": ("4.913", "0.001", "0.01", "0.001", "0.01"),
    "NEARUSDT": ("3.987", "0.001", "0.1", "0.0010", "1"),
    "FILUSDT": ("3.612", "0.001", "0.01", "0.001", "0.1"),
    "XLMUSDT": ("0.09876", "0.00001", "1", "0.00001", "1"),
}
QUOTES = ("USDT", "USDC", "FDUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "USD")


class RequestError(FeederError):
    """What the venue answers a bad request: `text` is the JSON, `status` the HTTP status where it has one."""

    def __init__(self, text, status=400):
        super().__init__(text)
        self.text = text
        self.status = status


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


class Dialect:
    """What both venues share. One object per venue; texts of a listing are made by its `Words`."""

    name = ""
    contiguous = True
    rest_prefix = ""
    weight_limit = 0
    info_weight = 0
    commands_per_second = 0
    depth_speeds = ()
    routes = {}                 # path prefix -> kinds served there

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

    def channel(self, stream, kinds):
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

    def endpoint(self, target):
        """(endpoint name below the prefix, {parameter: value}); None for a path that is not ours."""
        url = urlsplit(target)
        if not url.path.startswith(self.rest_prefix):
            return None
        return url.path[len(self.rest_prefix):], {name: values[0] for name, values in parse_qs(url.query).items()}

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

    def specs(self, symbols):
        """What is listed under these names; names that are not in the table get a price of their own."""
        return [self.spec(symbol, *(LISTED.get(symbol) or _made_up(symbol))) for symbol in symbols]


class Spot(Dialect):
    name = "binance_spot"
    contiguous = True
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


DIALECTS = {"binance_spot": Spot, "binance_usdm": Usdm}


class Words:
    """Numbers of one listing as text. Ticks and lots are multiplied to units of the last decimal that is shown."""

    __slots__ = ("symbol", "_price", "_quantity", "_level", "_tick", "_price_one", "_lot", "_lot_one")

    def __init__(self, spec):
        self.symbol = spec.symbol
        self._price, self._quantity = _template(spec.price_decimals), _template(spec.lot_decimals)
        self._level = f'["{self._price}","{self._quantity}"]'
        self._tick, self._price_one = spec.tick_units, 10 ** spec.price_decimals
        self._lot, self._lot_one = spec.lot_units, 10 ** spec.lot_decimals

    def price(self, ticks):
        return self._price % divmod(ticks * self._tick, self._price_one)

    def quantity(self, lots):
        return self._quantity % divmod(lots * self._lot, self._lot_one)

    def levels(self, pairs):
        """The inside of a JSON list of levels. Cost: 0.6 us a level; most of what a diff costs here."""
        level, tick, price_one, lot, lot_one = self._level, self._tick, self._price_one, self._lot, self._lot_one
        return ",".join([level % (ticks * tick // price_one, ticks * tick % price_one,
                                  lots * lot // lot_one, lots * lot % lot_one) for ticks, lots in pairs])

    def pairs(self, pairs):
        return [[self.price(ticks), self.quantity(lots)] for ticks, lots in pairs]


def _template(decimals):
    """For (whole, part): '%d.%02d'; without decimals the part, always 0, is formatted to nothing."""
    return f"%d.%0{decimals}d" if decimals else "%d%.0s"


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
    """A plausible listing for any name, the same one each time: the name's bytes choose the price."""
    price = 1 + sum(place * byte for place, byte in enumerate(symbol.encode(), 3)) % 9_000 / 100
    return f"{price:.3f}", "0.001", "0.01", "0.0010", "0.1"


def _whole(text, name):
    if not text.isascii() or not text.isdigit():
        raise _illegal(name)
    return int(text)


def _illegal(name):
    return RequestError('{"code":-1100,"msg":"Illegal characters found in parameter \'%s\'."}' % name)


def text_makers(dialect):
    return {TRADE: dialect.trade, AGGREGATE: dialect.aggregate, BBO: dialect.bbo, DEPTH: dialect.depth}
