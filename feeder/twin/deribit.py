"""Deribit's JSON-RPC v2 as text.

In:   events of market.py, requests of clients.   Out: JSON text, shaped like the frames quoted live in 2026.

Books come in-band and whole: a snapshot of all levels, then changes that name the change_id before them; the ids are
the engine's, so they jump. Numbers are JSON numbers as Erlang prints them: 10.0, 2.2e3, 1.423e-4. Channels that do not
exist are left out of the answer, without a word. A client asks for heartbeats and then must answer each test_request.

Facts: the fact sheet of 2026, by its paragraph. Unsure there, so settings: whether raw trades want a login (6).
Not here: logins, options, trades of a whole currency, platform_state.
"""

from .dialect import (PING, PONG, TEXT, Answer, BestChannel, BookChannel, Channel, Dialect, RequestError, Session,
                      Window, Words, dumps, first_price, grid_spec, parsed, request_of)
from .faults import SHOWN_BY_ALL
from .market import AGGREGATE, TRADE, Spec

INTERVALS = ("100ms", "agg2", "raw")
CREDITS, CREDITS_A_SECOND, SUBSCRIBE_COST = 30_000, 10_000, 3_000
SECOND_NS = 10 ** 9
LEAST_HEARTBEAT_S = 10
ANSWER_WITHIN_S = 10
NO_RAW = "raw_subscriptions_not_available_for_unauthorized"


class RpcError(Exception):
    def __init__(self, code, message, data=None):
        super().__init__(message)
        self.code, self.data = code, data


class ClientSession(Session):

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.credits, self.credits_ns = CREDITS, 0
        self.heard_ns = 0
        self.heartbeat_ns = 0                # interval; 0: not asked for
        self.beat_ns = self.asked_ns = 0     # when the next is due; when a test_request went unanswered

    def open(self, now_ns):
        self.heard_ns = self.credits_ns = now_ns
        self.expire(now_ns)

    def expire(self, now_ns):
        """Heartbeats that are due, a test_request that was not answered, a client that says and wants nothing."""
        dialect, waits = self.dialect, []
        if self.heartbeat_ns:
            if self.asked_ns and now_ns >= self.asked_ns + dialect.ns(ANSWER_WITHIN_S):
                self.peer.count("heartbeat_closes")
                self.deadline_ns = None
                return self.peer.close(4000, "heartbeat close")
            if now_ns >= self.beat_ns:
                self.beat_ns = now_ns + self.heartbeat_ns
                self.asked_ns = self.asked_ns or now_ns
                for kind in ("heartbeat", "test_request"):
                    self.peer.send(f'{{"params":{{"type":"{kind}"}},"method":"heartbeat","jsonrpc":"2.0"}}')
            waits.append(self.beat_ns)
            if self.asked_ns:
                waits.append(self.asked_ns + dialect.ns(ANSWER_WITHIN_S))
        elif not self.topics:
            quiet_ns = self.heard_ns + dialect.ns(dialect.idle_s)
            if now_ns >= quiet_ns:
                self.peer.count("idle_disconnects")
                self.deadline_ns = None
                return self.peer.abort()
            waits.append(quiet_ns)
        self.deadline_ns = min(waits, default=None)

    def take(self, opcode, payload, now_ns):
        self.heard_ns = now_ns
        if opcode in (PING, PONG):
            return
        request = request_of(payload) if opcode == TEXT else None
        if request is None:
            return self.answer(None, RpcError(11050, "bad_request", "invalid json"))
        number, params = request.get("id"), request.get("params", {})
        try:
            result = self.call(str(request.get("method")), params if isinstance(params, dict) else {}, now_ns)
        except RpcError as error:
            self.peer.count("bad_commands")
            self.answer(number, error)
            if error.code == 10028:
                self.peer.close(1008, "too_many_requests")
            return
        firsts = []
        if isinstance(result, tuple):
            result, firsts = result
        self.answer(number, result)
        self.tell(firsts)
        self.expire(now_ns)

    def answer(self, number, result):
        now_us = self.peer.now_ms * 1_000
        named = f'"id":{dumps(number)},' if number is not None else ""
        if isinstance(result, RpcError):
            data = f',"data":{dumps(result.data)}' if result.data else ""
            text = f'"error":{{"code":{result.code},"message":{dumps(str(result))}{data}}}'
        else:
            text = f'"result":{result}'
        self.peer.send(f'{{"jsonrpc":"2.0",{named}{text},"usIn":{now_us},"usOut":{now_us + 75},"usDiff":75,'
                       '"testnet":false}')

    def call(self, method, params, now_ns):
        """The result as JSON text, or with what its channels have for newcomers."""
        if method == "public/subscribe":
            return self.subscribe_all(params, now_ns)
        if method in ("public/unsubscribe", "public/unsubscribe_all"):
            names = list(self.topics) if method.endswith("all") else channels_of(params)
            left = [name for name in names if name in self.topics]
            for name in left:
                self.peer.leave(name)
            return '"ok"' if method.endswith("all") else dumps(left[::-1])
        if method == "public/set_heartbeat":
            interval = params.get("interval")
            if not isinstance(interval, (int, float)) or interval < LEAST_HEARTBEAT_S:
                raise RpcError(-32602, "Invalid params", {"reason": "must be at least 10", "param": "interval"})
            self.heartbeat_ns = self.dialect.ns(interval)
            self.beat_ns, self.asked_ns = now_ns + self.heartbeat_ns, 0
            return '"ok"'
        if method == "public/disable_heartbeat":
            self.heartbeat_ns = self.asked_ns = 0
            return '"ok"'
        if method == "public/test":
            self.asked_ns = 0
            return '{"version":"1.2.26"}'
        if method in ("public/get_time", "public/get_instruments", "public/get_order_book"):
            return self.dialect.call(method, params, self.peer.venue, self.peer.now_ms)
        raise RpcError(-32601, "Method not found")

    def subscribe_all(self, params, now_ns):
        earned = (now_ns - self.credits_ns) * CREDITS_A_SECOND // SECOND_NS
        self.credits, self.credits_ns = min(self.credits + earned, CREDITS), now_ns
        if self.credits < SUBSCRIBE_COST:
            raise RpcError(10028, "too_many_requests")
        self.credits -= SUBSCRIBE_COST
        accepted, firsts = [], []
        for name in channels_of(params):
            key = self.dialect.key(name, self.peer.symbols)
            if key is None:
                continue
            if name not in self.topics:                          # again: acknowledged, no new snapshot (2)
                firsts += self.subscribe(name, key)
            accepted.append(name)
        return dumps(accepted[::-1]), firsts                     # in another order (2)

    def half_a_message(self, now_ms):
        name = next(iter(self.topics), "book.BTC-PERPETUAL.100ms")
        return message(name, '{"timestamp":%d,"' % now_ms)[:-2]


def channels_of(params):
    names = params.get("channels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RpcError(-32602, "Invalid params", {"reason": "must be a list of strings", "param": "channels"})
    return names


class Numbers(Words):
    """As Erlang prints floats: the shorter form. Every third even amount stays in the longer one, as in 2021."""

    __slots__ = ()

    def price(self, ticks):
        return erlang(Words.price(self, ticks))

    def quantity(self, lots):
        return erlang(Words.quantity(self, lots), lots % 3 == 0)

    def rows(self, pairs, known=()):
        price, quantity = self.price, self.quantity
        return ",".join([f'["{("change" if ticks in known else "new") if lots else "delete"}",{price(ticks)},'
                         f'{quantity(lots)}]' for ticks, lots in pairs])

    def levels(self, pairs):
        return ",".join([f"[{self.price(ticks)},{self.quantity(lots)}]" for ticks, lots in pairs])


def erlang(text, stays_long=False):
    """'2200' -> '2.2e3', '0.0001' -> '1.0e-4', '10' -> '10.0', '2772.650' -> '2772.65'."""
    whole, _, part = text.partition(".")
    part = part.rstrip("0")
    digits = (whole + part).lstrip("0")
    if not digits:
        return "0.0"
    long = f"{whole}.{part or 0}"
    if stays_long:
        return long
    power = len(whole) - 1 if whole != "0" else -1 - len(part) + len(part.lstrip("0"))
    digits = digits.rstrip("0")
    brief = f"{digits[0]}.{digits[1:] or 0}e{power}"
    return brief if len(brief) < len(long) + (power < 0) else long


def message(name, data):
    return f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{name}","data":{data}}}}}'


class Book(BookChannel):
    """book.{instrument}.{interval}: all levels."""

    def texts(self, event, now_ms, wrong=0, is_named=True):
        window = self.window
        known = [{price for price, _ in changes if price in side}
                 for changes, side in ((event[5], window.bids), (event[6], window.asks))]
        bids, asks = window.move(event)
        if not (bids or asks):
            return []
        previous, self.sequence, self.now_ms = self.sequence, event[3], now_ms
        named = f',"prev_change_id":{previous + wrong}' if is_named else ""
        rows = self.words.rows(bids, known[0]), self.words.rows(asks, known[1])
        return [self.text("change", *rows, named)]

    def text(self, kind, bids, asks, named=""):
        return message(self.key[0], f'{{"timestamp":{self.now_ms},"type":"{kind}","change_id":{self.sequence},'
                                    f'"instrument_name":"{self.symbol}","bids":[{bids}],"asks":[{asks}]{named}}}')

    def first(self, now_ms):
        self.now_ms = self.now_ms or now_ms
        bids, asks = self.window.levels()
        return [self.text("snapshot", self.words.rows(bids), self.words.rows(asks))]

    def hurt(self, kind, event, now_ms):
        if kind == "snapshot":
            self.texts(event, now_ms)
            return self.first(now_ms)
        return self.texts(event, now_ms, 7 if kind == "sequence" else 0, kind != "no_sequence")


class Grouped(BookChannel):
    """book.{instrument}.none.{depth}.{interval}: whole each time."""

    is_book = False

    def __init__(self, key, listing, words):
        super().__init__(key, listing, words)
        self.window = Window(listing, int(key[0].split(".")[-2]))

    def texts(self, event, now_ms):
        bids, asks = self.window.move(event)
        self.sequence = event[3]
        return self.first(now_ms) if bids or asks else ()

    def first(self, now_ms):
        bids, asks = map(self.words.levels, self.window.levels())
        return [message(self.key[0], f'{{"timestamp":{now_ms},"instrument_name":"{self.symbol}",'
                                     f'"change_id":{self.sequence},"bids":[{bids}],"asks":[{asks}]}}')]


class Trades(Channel):
    """The fills of one order in one list."""

    kinds = (TRADE, AGGREGATE)

    def __init__(self, key, words):
        super().__init__(key, key[1])
        self.words = words
        self.fills = []
        self.last_price, self.last_direction = 0, 0

    def texts(self, event, now_ms):
        if event[0] == TRADE:
            self.fills.append(event)
            return ()
        rows = [self.row(fill, now_ms) for fill in self.fills]
        self.fills = []
        return (message(self.key[0], f"[{','.join(rows)}]"),)

    def row(self, fill, now_ms):
        _, listing, number, price, lots, buyer_is_maker = fill
        if price != self.last_price:
            self.last_direction = 0 if price > self.last_price else 2
        direction = self.last_direction + (price == self.last_price)
        self.last_price = price
        price, amount = self.words.price(price), self.words.quantity(lots)
        prefix = "ETH-" if listing.spec.base == "ETH" else ""
        return (f'{{"timestamp":{now_ms},"price":{price},"amount":{amount},'
                f'"direction":"{"sell" if buyer_is_maker else "buy"}","index_price":{price},'
                f'"instrument_name":"{self.symbol}","trade_seq":{number % 10 ** 9},"mark_price":{price},'
                f'"tick_direction":{direction},"contracts":1.0,"trade_id":"{prefix}{number}"}}')


class Quote(BestChannel):
    def __init__(self, key, listing, words):
        super().__init__(key, listing, words)
        self.last = listing.best()

    def texts(self, event, now_ms):
        if event[3:] == self.last[3:]:
            return ()
        self.last = event
        return self.first(now_ms)

    def first(self, now_ms):
        _, _, _, bid, bid_lots, ask, ask_lots = self.last
        price, quantity = self.words.price, self.words.quantity
        data = (f'{{"timestamp":{now_ms},"instrument_name":"{self.symbol}","best_ask_price":{price(ask)},'
                f'"best_bid_price":{price(bid)},"best_ask_amount":{quantity(ask_lots)},'
                f'"best_bid_amount":{quantity(bid_lots)}}}')
        return [message(self.key[0], data)]


class Deribit(Dialect):
    name = "deribit"
    session = ClientSession
    contiguous = False
    max_connections = 32
    faults = frozenset(SHOWN_BY_ALL + ("gap", "reorder", "sequence", "no_sequence", "snapshot"))
    settings = {"idle_s": 60.0, "raw_trades_need_login": True}

    def route(self, target):
        return target if parsed(target)[0] == "/ws/api/v2" else None

    def key(self, name, symbols):
        """(name, instrument) of a channel there is; None is left out of the answer."""
        parts = name.split(".")
        kind, symbol, rest = parts[0], parts[1] if len(parts) > 1 else "", parts[2:]
        if symbol not in symbols:
            return None
        if kind == "quote" and not rest:
            return name, symbol
        if len(rest) == 1 and rest[0] in INTERVALS and kind in ("book", "trades"):
            if rest[0] == "raw" and (kind == "book" or self.raw_trades_need_login):
                raise RpcError(13778, NO_RAW)
            return name, symbol
        if kind == "book" and len(rest) == 3 and rest[0] == "none" and rest[1] in ("1", "10", "20") and (
                rest[2] in INTERVALS[:2]):
            return name, symbol
        return None

    def channel(self, key, source):
        name, symbol = key
        listing, words = source.listings[symbol], source.words[symbol]
        if name.startswith("trades"):
            return Trades(key, words)
        if name.startswith("quote"):
            return Quote(key, listing, words)
        return Book(key, listing, words) if name.count(".") == 2 else Grouped(key, listing, words)

    # --- REST, and the same by WebSocket

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        desk.counts["rest_requests"] += 1
        desk.rest_fault(parameters.get("instrument_name"), False)
        us = f'"usIn":{now_ms}000,"usOut":{now_ms}075,"usDiff":75,"testnet":false}}'
        try:
            if not path.startswith("/api/v2/"):
                raise RpcError(-32601, "Method not found")
            return Answer(f'{{"jsonrpc":"2.0","result":{self.call(path[8:], parameters, desk, now_ms)},{us}')
        except RpcError as error:
            text = f'{{"jsonrpc":"2.0","error":{{"message":{dumps(str(error))},"code":{error.code}}},{us}'
            raise RequestError(text, 400) from None

    def call(self, method, params, desk, now_ms):
        if method == "public/test":
            return '{"version":"1.2.26"}'
        if method == "public/get_time":
            return str(now_ms)
        if method == "public/get_instruments":
            currency, kind = params.get("currency", "any"), params.get("kind", "any")
            return "[" + ",".join(self.listed(spec) for spec in desk.source.specs
                                  if currency in ("any", spec.base if is_inverse(spec) else spec.quote)
                                  and kind in ("any", kind_of(spec))) + "]"
        if method == "public/get_order_book":
            symbol, depth = params.get("instrument_name"), int(params.get("depth", 5))
            if symbol not in desk.symbols:
                raise RpcError(13020, "not_found")
            listing, words = desk.source.listings[symbol], desk.source.words[symbol]
            bids, asks = (words.levels(side.levels(depth)) for side in (listing.bids, listing.asks))
            return (f'{{"timestamp":{now_ms},"state":"open","instrument_name":"{symbol}",'
                    f'"change_id":{listing.update_id},"bids":[{bids}],"asks":[{asks}]}}')
        raise RpcError(-32601, "Method not found")

    def listed(self, spec):
        inverse, kind = is_inverse(spec), kind_of(spec)
        return (f'{{"tick_size":{erlang(spec.tick)},"tick_size_steps":[],"taker_commission":5.0e-4,'
                f'"settlement_period":"perpetual","settlement_currency":"{spec.base if inverse else spec.quote}",'
                f'"quote_currency":"{spec.quote}","min_trade_amount":{erlang(spec.lot)},"maker_commission":0.0,'
                f'"kind":"{kind}","is_active":true,"instrument_type":"{"reversed" if inverse else "linear"}",'
                f'"instrument_name":"{spec.symbol}","expiration_timestamp":32503708800000,'
                f'"creation_timestamp":1534167754000,"counter_currency":"{spec.quote}",'
                f'"contract_size":{erlang(spec.lot)},"base_currency":"{spec.base}"}}')

    def too_many(self, retry_s):
        return RequestError('{"jsonrpc":"2.0","error":{"message":"too_many_requests","code":10028}}', 429)

    def broken(self):
        return RequestError('{"jsonrpc":"2.0","error":{"message":"temporarily_unavailable","code":13028}}', 500)

    # --- what is listed

    def words(self, spec):
        return Numbers(spec)

    def spell(self, base, quote):
        if quote is None:
            return f"{base}-PERPETUAL" if base in ("BTC", "ETH") else f"{base}_USDC-PERPETUAL"
        return f"{base}_{quote}"

    def spec(self, symbol):
        pair = symbol.partition("-")[0]
        base, _, quote = pair.partition("_")
        if not quote:                                            # inverse: an amount is in dollars
            tick, lot = {"BTC": ("0.50", "10"), "ETH": ("0.05", "1")}.get(base, ("0.0001", "1"))
            return Spec(symbol, base, "USD", f"{first_price(base):.8f}", tick, lot, typical_lots=300)
        return grid_spec(symbol, base, quote)


def is_inverse(spec):
    return "_" not in spec.symbol


def kind_of(spec):
    return "future" if "-" in spec.symbol else "spot"
