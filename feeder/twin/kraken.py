"""Kraken spot WebSocket v2 as text.

In:   events of market.py, requests of clients.   Out: JSON text, shaped like the recording of 2026-08.

Books come in-band for a depth: a snapshot, then what changes within it. A level that falls out of the depth is not told
(clients truncate), one that moves in is. Numbers are JSON numbers with all their decimals, zeros at the end included,
because the checksum, over the ten best of each side, is made of their digits. There is no sequence: a lost update
shows by a later checksum, if it touched those ten, and they were not told anew since. So a `gap` loses updates, and a
`reorder` holds them back, until the next one's checksum tells.

A level that came and went between two updates is told twice in one, set and removed. Each symbol of a request is
acknowledged by itself. A connection with a subscription hears a heartbeat after a second of silence; one without ends
a minute after its last request. Facts: the fact sheet of 2026-07, by its paragraph.
"""

from collections import deque
from zlib import crc32

from ..errors import ConfigError
from .dialect import (PING, PONG, TEXT, Answer, BestChannel, BookChannel, Budget, Channel, Dialect, RequestError,
                      Session, Window, Words, dumps, grid_spec, iso_text, parsed, request_of)
from .faults import SHOWN_BY_ALL
from .market import AGGREGATE, TRADE

DEPTHS = (10, 25, 100, 500, 1_000)
CHECKED = 10                          # levels a side, whatever the depth
OLD_NAMES = {"BTC": "XBT", "DOGE": "XDG"}            # of REST and of the socket before
RECENT_TRADES = 50


class ClientSession(Session):

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.heard_ns = 0

    def open(self, now_ns):
        self.heard_ns = now_ns
        self.peer.send('{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"online",'
                       f'"api_version":"v2","connection_id":{769405522530892351 + self.number}}}]}}')
        self.expire(now_ns)

    def expire(self, now_ns):
        dialect = self.dialect
        if self.topics:
            self.deadline_ns = self.peer.sent_ns + dialect.ns(dialect.heartbeat_s)
            if self.deadline_ns <= now_ns:
                self.peer.send('{"channel":"heartbeat"}')
                self.deadline_ns = now_ns + dialect.ns(dialect.heartbeat_s)
            return
        self.deadline_ns = self.heard_ns + dialect.ns(dialect.idle_s)
        if self.deadline_ns <= now_ns:
            self.deadline_ns = None
            self.peer.count("idle_disconnects")
            self.peer.close(1000, "")

    def take(self, opcode, payload, now_ns):
        if opcode in (PING, PONG):
            return
        request = request_of(payload) if opcode == TEXT else None
        method = request and request.get("method")
        number = request.get("req_id") if request else None
        if method == "ping":
            self.heard_ns = now_ns
            return self.answer('"method":"pong"', number)
        params = request.get("params") if request else None
        if method not in ("subscribe", "unsubscribe") or not isinstance(params, dict):
            return self.refuse(method or "", "Malformed request" if request is None else "Invalid method", None, number)
        self.heard_ns = now_ns
        self.change(method, params, number)
        self.expire(now_ns)

    def change(self, method, params, number):
        channel, symbols = params.get("channel"), params.get("symbol")
        if channel == "instrument":
            symbols = [None]
        if channel not in ("book", "trade", "ticker", "instrument"):
            return self.refuse(method, f"Channel not supported {channel}", None, number)
        if not isinstance(symbols, list) or not symbols:
            return self.refuse(method, "Symbol(s) missing", None, number)
        depth = params.get("depth", 10)
        if channel == "book" and depth not in DEPTHS:
            return self.refuse(method, f"Subscription depth not supported {depth}", None, number)
        for symbol in symbols:                                  # an answer for each (2)
            if channel != "instrument" and symbol not in self.peer.symbols:
                self.refuse(method, f"Currency pair not supported {symbol}", symbol, number)
            else:
                self.one(method, channel, symbol, depth, params, number)

    def one(self, method, channel, symbol, depth, params, number):
        topic = self.topics.get((channel, symbol))
        with_snapshot = params.get("snapshot", channel in ("book", "instrument"))
        detail = {"channel": channel}
        if channel == "book":
            detail["depth"] = depth
        detail["snapshot"] = bool(with_snapshot)
        if symbol is not None:
            detail["symbol"] = symbol
        if method == "unsubscribe":
            if topic is None or channel == "book" and topic[0][2] != depth:
                return self.refuse(method, "Subscription Not Found", symbol, number)
            del detail["snapshot"]
            self.peer.leave((channel, symbol))
            return self.answer(f'"method":"unsubscribe","result":{dumps(detail)},"success":true', number)
        if topic is not None:                                   # one depth a symbol and connection (2)
            return self.refuse(method, "Already subscribed", symbol, number)
        firsts = self.subscribe((channel, symbol), (channel, symbol, depth) if channel == "book" else (channel, symbol))
        self.answer(f'"method":"subscribe","result":{dumps(detail)},"success":true', number)
        if with_snapshot:
            self.tell(firsts)

    def refuse(self, method, reason, symbol, number):
        self.peer.count("bad_commands")
        named = f',"symbol":{dumps(symbol)}' if symbol is not None else ""
        self.answer(f'"method":{dumps(method)},"error":{dumps(reason)},"success":false{named}', number)

    def answer(self, text, number):
        now_ns = self.peer.now_ms * 10 ** 6
        named = f',"req_id":{number}' if isinstance(number, int) else ""
        self.peer.send(f'{{{text},"time_in":"{iso_text(now_ns)}","time_out":"{iso_text(now_ns + 45_000)}"{named}}}')

    def half_a_message(self, now_ms):
        return f'{{"channel":"book","type":"update","data":[{{"symbol":"{self.peer.symbols[0]}","bids":[{{"price":'


class Numbers(Words):
    """Levels as objects of JSON numbers, all decimals shown."""

    LEVEL = '{"price":PRICE,"qty":QUANTITY}'
    __slots__ = ()

    def digits(self, levels):
        """What the checksum is made of: the digits without point and leading zeros."""
        tick, lot = self._tick, self._lot
        return "".join([f"{ticks * tick}{lots * lot}" for ticks, lots in levels])


class Book(BookChannel):
    """`sequence` is the last checksum, the only mark there is."""

    own_faults = ("gap", "reorder")

    def __init__(self, key, listing, words):
        super().__init__(key, listing, words)
        self.window = Window(listing, key[2], tells_leaving=False)
        self.sequence = self.checksum(*self.window.levels())
        self.time_ns = 0
        self.missed, self.is_late = [], False        # updates that clients miss, or get late
        self.shadow = None                           # what they hold meanwhile: {price: lots} of both sides

    def checksum(self, bids, asks):
        return crc32((self.words.digits(asks[:CHECKED]) + self.words.digits(bids[:CHECKED])).encode())

    def texts(self, event, now_ms):
        made = self.made(event, now_ms)
        if not (self.missed and made):
            return made
        if self.shadow_checksum() == self.sequence:
            self.missed += made
            return []
        missed, self.missed, self.shadow = self.missed, [], None
        return made + missed if self.is_late else made

    def shadow_checksum(self):
        """Of a client's book that took the last update, but none of the missed ones."""
        sides = [{**held, **dict(rows)} for held, rows in zip(self.shadow, self.rows)]
        bids, asks = ([level for level in side.items() if level[1]] for side in sides)
        return self.checksum(sorted(bids, reverse=True), sorted(asks))

    def settle(self):
        missed, self.missed = self.missed, []
        return missed

    def made(self, event, now_ms, wrong=0, is_checked=True):
        old = self.window.bids, self.window.asks
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return []
        self.sequence = self.checksum(*self.window.levels())
        brief = [self.came_and_went(changes, before, told) for changes, before, told in
                 zip(event[5:], old, (self.window.bids, self.window.asks))]
        self.rows = brief[0] + sorted(bids, key=has_lots), brief[1] + sorted(asks, key=has_lots)
        return [self.text("update", *self.rows, now_ms, (self.sequence + wrong) % 2 ** 32 if is_checked else None)]

    def came_and_went(self, changes, before, told):
        """One such level, set and then removed, if there is one within the depth."""
        for price, lots in changes[:CHECKED]:
            if not lots and price not in before and price not in told:
                return [(price, 1), (price, 0)]
        return []

    def text(self, kind, bids, asks, now_ms, checksum):
        self.time_ns = max(self.time_ns + 1_000, now_ms * 10 ** 6)
        checked = "" if checksum is None else f'"checksum":{checksum},'
        return (f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{self.symbol}",'
                f'"bids":[{self.words.levels(bids)}],"asks":[{self.words.levels(asks)}],'
                f'{checked}"timestamp":"{iso_text(self.time_ns)}"}}]}}')

    def first(self, now_ms):
        return [self.text("snapshot", *self.window.levels(), now_ms, self.sequence)]

    def hurt(self, kind, event, now_ms):
        if kind == "snapshot":
            self.made(event, now_ms)
            return self.first(now_ms)
        if kind in self.own_faults:
            shadow = [dict(self.window.bids), dict(self.window.asks)]
            self.missed, self.is_late, self.shadow = self.made(event, now_ms), kind == "reorder", shadow
            return []
        return self.made(event, now_ms, 12_345 if kind == "checksum" else 0, kind != "no_checksum")


def has_lots(level):
    return level[1] > 0


class Trades(Channel):
    """The fills of one order in one message."""

    kinds = (TRADE, AGGREGATE)

    def __init__(self, key, words):
        super().__init__(key, key[1])
        self.words = words
        self.fills = []
        self.recent = deque(maxlen=RECENT_TRADES)

    def texts(self, event, now_ms):
        if event[0] == TRADE:
            self.fills.append(event)
            return ()
        time = iso_text(now_ms * 10 ** 6)
        rows = [f'{{"symbol":"{self.symbol}","side":"{"sell" if buyer_is_maker else "buy"}",'
                f'"price":{self.words.price(price)},"qty":{self.words.quantity(lots)},"ord_type":"limit",'
                f'"trade_id":{number},"timestamp":"{time}"}}'
                for _, _, number, price, lots, buyer_is_maker in self.fills]
        self.fills = []
        self.recent += rows
        return (f'{{"channel":"trade","type":"update","data":[{",".join(rows)}]}}',)

    def first(self, now_ms):
        return [f'{{"channel":"trade","type":"snapshot","data":[{",".join(self.recent)}]}}']


class Ticker(BestChannel):
    """Best bid and offer, as with event_trigger bbo; what is not of the book is made up."""

    def __init__(self, key, listing, words):
        super().__init__(key, listing, words)
        self.last = listing.best()

    def texts(self, event, now_ms, kind="update"):
        self.last = event
        _, _, _, bid, bid_lots, ask, ask_lots = event
        price, quantity = self.words.price, self.words.quantity
        return (f'{{"channel":"ticker","type":"{kind}","data":[{{"symbol":"{self.symbol}","bid":{price(bid)},'
                f'"bid_qty":{quantity(bid_lots)},"ask":{price(ask)},"ask_qty":{quantity(ask_lots)},'
                f'"last":{price(bid)},"volume":{quantity(10 ** 9)},"vwap":{price(bid)},"low":{price(bid)},'
                f'"high":{price(ask)},"change":0.0,"change_pct":0.00,"timestamp":"{iso_text(now_ms * 10 ** 6)}"}}]}}',)

    def first(self, now_ms):
        return self.texts(self.last, now_ms, "snapshot")


class Instruments(Channel):
    """The list of pairs; it never changes here."""

    kinds = ()

    def __init__(self, key, specs):
        super().__init__(key, None)
        self.specs = specs

    def first(self, now_ms):
        pairs = ",".join(f'{{"symbol":"{spec.symbol}","base":"{spec.base}","quote":"{spec.quote}","status":"online",'
                         f'"qty_precision":{spec.lot_decimals},"qty_increment":{spec.lot},'
                         f'"price_precision":{spec.price_decimals},"cost_precision":5,"marginable":false,'
                         f'"has_index":true,"cost_min":0.50,"price_increment":{spec.tick},"qty_min":{spec.lot}}}'
                         for spec in self.specs)
        return [f'{{"channel":"instrument","type":"snapshot","data":{{"assets":[],"pairs":[{pairs}]}}}}']


class Kraken(Dialect):
    name = "kraken"
    session = ClientSession
    connects = (150, 600)
    mute_cuts = True                     # what a short one loses may lie below the ten that are checked
    faults = frozenset(SHOWN_BY_ALL + ("gap", "reorder", "checksum", "no_checksum", "snapshot"))
    settings = {"heartbeat_s": 1.0, "idle_s": 60.0}

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.requests = Budget(15, 15)

    def route(self, target):
        return parsed(target)[0] if parsed(target)[0] == "/v2" else None

    def channel(self, key, source):
        name, symbol = key[:2]
        if name == "instrument":
            return Instruments(key, source.specs)
        listing, words = source.listings[symbol], source.words[symbol]
        if name == "book":
            return Book(key, listing, words)
        return Ticker(key, listing, words) if name == "ticker" else Trades(key, words)

    # --- REST: the names of old

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        if not path.startswith("/0/public/"):
            raise RequestError('{"error":["EGeneral:Unknown method"]}', 404)
        desk.counts["rest_requests"] += 1
        if not self.requests.take(now_ns):
            raise self.too_many(15)
        desk.rest_fault(None, False)
        endpoint, specs = path[len("/0/public/"):], {old_name(spec): spec for spec in desk.source.specs}
        if endpoint == "Time":
            return self.result(f'{{"unixtime":{now_ms // 1_000},"rfc1123":""}}')
        wanted = parameters.get("pair")
        if wanted is not None and any(name not in specs for name in wanted.split(",")):
            return Answer('{"error":["EQuery:Unknown asset pair"]}')
        if endpoint == "AssetPairs":
            listed = specs if wanted is None else {name: specs[name] for name in wanted.split(",")}
            rows = {name: self.listed(name, spec) for name, spec in listed.items()}
            return self.result(dumps(rows).replace("/", "\\/"))             # as the venue's encoder escapes it
        if endpoint == "Depth" and wanted in specs:
            spec = specs[wanted]
            listing, words, second = desk.source.listings[spec.symbol], desk.source.words[spec.symbol], now_ms // 1_000
            count = int(parameters["count"]) if parameters.get("count", "").isdigit() else 100
            rows = [",".join(f'["{words.price(price)}","{words.quantity(lots)}",{second}]'
                             for price, lots in side.levels(min(count, 500))) for side in (listing.asks, listing.bids)]
            return self.result(f'{{"{wanted}":{{"asks":[{rows[0]}],"bids":[{rows[1]}]}}}}')
        raise RequestError('{"error":["EGeneral:Unknown method"]}', 404)

    def result(self, text):
        return Answer(f'{{"error":[],"result":{text}}}')

    def listed(self, name, spec):
        base = OLD_NAMES.get(spec.base, spec.base)
        return {"altname": name, "wsname": f"{base}/{spec.quote}", "aclass_base": "currency", "base": base,
                "aclass_quote": "currency", "quote": spec.quote, "lot": "unit", "cost_decimals": 5,
                "pair_decimals": spec.price_decimals, "lot_decimals": spec.lot_decimals, "lot_multiplier": 1,
                "leverage_buy": [], "leverage_sell": [], "fees": [[0, 0.26]], "fees_maker": [[0, 0.16]],
                "fee_volume_currency": "ZUSD", "margin_call": 80, "margin_stop": 40, "ordermin": spec.lot,
                "costmin": "0.5", "tick_size": spec.tick, "status": "online"}

    def too_many(self, retry_s):
        return RequestError('{"error":["EAPI:Rate limit exceeded"]}', 429)

    def broken(self):
        return RequestError('{"error":["EService:Unavailable"]}', 503)

    # --- what is listed

    def words(self, spec):
        return Numbers(spec)

    def spell(self, base, quote):
        return f"{base}/{quote or 'USD'}"

    def spec(self, symbol):
        base, _, quote = symbol.partition("/")
        if not quote:
            raise ConfigError(f"kraken: symbol {symbol!r}: expected BASE/QUOTE")
        return grid_spec(symbol, base, quote, lot="0.00000001")


def old_name(spec):
    return OLD_NAMES.get(spec.base, spec.base) + spec.quote
