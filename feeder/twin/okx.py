"""OKX v5 as text, spot and swaps on one port.

In:   events of market.py, requests of clients.   Out: JSON text, shaped like the frames quoted live in 2024 to 2026.

    books      400 levels in-band: a snapshot (prevSeqId -1), then updates of which each names the seqId before it;
               an empty update with both alike after a minute of silence; seqIds start low again after maintenance
    books5, bbo-tbt     whole each time        trades   one row an order, its last id, `count` fills
    trades-all          one fill a message, on the path /business

Every argument is acknowledged by itself. Clients say the text `ping`, which is no JSON, and hear `pong`; nothing sent
for 30 s ends the connection. Facts: the fact sheet of 2026-07, by its paragraph. The checksum is 0 for good (5).
Not here: the channels that want a login (refused with 64003), books-rpi, options.
"""

from ..errors import ConfigError
from .dialect import (PING, PONG, TEXT, Answer, BestChannel, BookChannel, Budget, Channel, Dialect, RequestError,
                      Session, ShortWords, dumps, grid_spec, parsed, request_of)
from .faults import SHOWN_BY_ALL
from .market import AGGREGATE, TRADE

DEPTHS = {"books": 400, "books5": 5}
VIP_CHANNELS = ("books-l2-tbt", "books50-l2-tbt")
MAX_REQUEST_BYTES = 64 << 10
NO_DATA = "No data received in 30s."


class ClientSession(Session):

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.connection_id = f"{self.number:08x}"
        self.budget = Budget(dialect.requests_per_hour, 3_600)

    def open(self, now_ns):
        self.deadline_ns = now_ns + self.dialect.ns(self.dialect.idle_s)

    def expire(self, now_ns):
        self.deadline_ns = self.peer.sent_ns + self.dialect.ns(self.dialect.idle_s)
        if self.deadline_ns <= now_ns:
            self.deadline_ns = None
            self.peer.count("idle_disconnects")
            self.peer.close(4004, NO_DATA)

    def take(self, opcode, payload, now_ns):
        if opcode in (PING, PONG):
            return
        if payload == b"ping":
            return self.peer.send("pong")
        request = request_of(payload) if opcode == TEXT else None
        said = payload.decode(errors="replace")
        if request is None or request.get("op") not in ("subscribe", "unsubscribe"):
            return self.refuse("", "60012", f"Invalid request: {said}")
        number, args = request.get("id", ""), request.get("args")
        if not (isinstance(args, list) and args and all(isinstance(arg, dict) for arg in args)):
            return self.refuse(number, "60013", "Invalid args")
        if len(payload) > MAX_REQUEST_BYTES:
            return self.refuse(number, "60012", f"Invalid request: longer than {MAX_REQUEST_BYTES} bytes")
        for place, arg in enumerate(args):
            if (place == 0 or self.dialect.counts_args) and not self.budget.take(now_ns):
                return self.refuse(number, "60014", "Requests too frequent")
            self.one(request["op"], arg, number)

    def one(self, op, arg, number):
        """One argument, with an answer of its own."""
        channel, symbol = str(arg.get("channel", "")), str(arg.get("instId", ""))
        if channel in VIP_CHANNELS:
            return self.refuse(number, "64003", "Your trading fee tier doesn't meet the requirement to access the "
                               f"{channel} channel.")
        if channel == "instruments" and self.route == "public":
            return self.list(op, str(arg.get("instType", "")), number)
        name = channel, symbol
        if not self.dialect.serves(self.route, channel) or symbol not in self.peer.symbols:
            return self.refuse(number, "60018", f"Wrong URL or channel:{channel}, instId:{symbol} doesn't exist. "
                               "Please use the correct URL, channel and parameters referring to API document.")
        firsts = []
        if op == "unsubscribe":
            self.peer.leave(name)
        elif name not in self.topics:                    # a repeated one is acknowledged, and no more (10)
            firsts = self.subscribe(name, name)
        self.answer(number, f'"event":"{op}","arg":{arg_text(channel, symbol)}')
        self.tell(firsts)

    def list(self, op, kind, number):
        """All instruments of a kind at once; then those that change, and here none does."""
        arg = {"channel": "instruments", "instType": kind}
        self.answer(number, f'"event":"{op}","arg":{dumps(arg)}')
        if op == "subscribe":
            self.peer.send(dumps({"arg": arg, "data": self.dialect.all_listed(self.peer.venue, kind)}))

    def refuse(self, number, code, message):
        self.peer.count("bad_commands")
        self.answer(number, f'"event":"error","msg":{dumps(message)},"code":"{code}"')

    def answer(self, number, text):
        named = f'"id":{dumps(number)},' if number else ""
        self.peer.send(f'{{{named}{text},"connId":"{self.connection_id}"}}')

    def farewell(self, now_ns):
        self.answer("", '"event":"notice","msg":"The connection will soon be closed for a service upgrade. Please '
                        'reconnect.","code":"64008"')
        return self.dialect.notice_s

    def half_a_message(self, now_ms):
        symbol = self.peer.symbols[0]
        return f'{{"arg":{arg_text("books", symbol)},"action":"update","data":[{{"asks":[["'


def arg_text(channel, symbol):
    return f'{{"channel":"{channel}","instId":"{symbol}"}}'


class Rows(ShortWords):
    """Levels as [price, size, "0", count of orders]; the count is made up."""

    __slots__ = ()

    def levels(self, pairs):
        price, quantity = self.price, self.quantity
        return ",".join([f'["{price(ticks)}","{quantity(lots)}","0","{lots and 1 + lots % 13}"]'
                         for ticks, lots in pairs])


class Books(BookChannel):
    """`books`: seqIds jump, and are linked by prevSeqId."""

    def __init__(self, key, listing, words, idle_ns):
        super().__init__(key, listing, words, DEPTHS["books"])
        self.idle_ns = idle_ns
        self.arg = arg_text(*key)
        self.offset = 0                  # grows at a reset: the venue's numbers start low again

    def text(self, action, bids, asks, number, previous, now_ms):
        names = "" if previous is None else f',"prevSeqId":{previous}'
        return (f'{{"arg":{self.arg},"action":"{action}","data":[{{"asks":[{self.words.levels(asks)}],'
                f'"bids":[{self.words.levels(bids)}],"ts":"{now_ms}","checksum":0,"seqId":{number}{names}}}]}}')

    def texts(self, event, now_ms, wrong=0, is_named=True):
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return []
        previous, self.sequence = self.sequence, event[3] - self.offset
        return [self.text("update", bids, asks, self.sequence, previous + wrong if is_named else None, now_ms)]

    def first(self, now_ms):
        return [self.text("snapshot", *self.window.levels(), self.sequence, -1, now_ms)]

    def idle(self, now_ms):
        return [self.text("update", [], [], self.sequence, self.sequence, now_ms)]

    def hurt(self, kind, event, now_ms):
        if kind == "snapshot":
            self.texts(event, now_ms)
            return self.first(now_ms)
        if kind == "reset":
            self.offset = event[3] - 3                   # ... -> 15, then 15 -> 3 (5)
        return self.texts(event, now_ms, 7 if kind == "sequence" else 0, kind != "no_sequence")


class Books5(BookChannel):
    """`books5`: five levels, whole, when they changed."""

    is_book = False

    def __init__(self, key, listing, words):
        super().__init__(key, listing, words, DEPTHS["books5"])
        self.arg = arg_text(*key)

    def texts(self, event, now_ms):
        bids, asks = self.window.move(event)
        self.sequence = event[3]
        return self.first(now_ms) if bids or asks else []

    def first(self, now_ms):
        bids, asks = self.window.levels()
        return [f'{{"arg":{self.arg},"data":[{{"asks":[{self.words.levels(asks)}],"bids":[{self.words.levels(bids)}],'
                f'"instId":"{self.symbol}","ts":"{now_ms}","seqId":{self.sequence}}}]}}']


class Best(BestChannel):
    """`bbo-tbt`: told again after a minute of silence."""

    def __init__(self, key, listing, words, idle_ns):
        super().__init__(key, listing, words)
        self.idle_ns, self.arg = idle_ns, arg_text(*key)
        self.last = listing.best()

    def texts(self, event, now_ms):
        if event[3:] == self.last[3:]:
            return ()
        self.last = event
        return self.first(now_ms)

    def first(self, now_ms):
        _, _, update_id, bid, bid_lots, ask, ask_lots = self.last
        return [f'{{"arg":{self.arg},"data":[{{"asks":[{self.words.levels([(ask, ask_lots)])}],'
                f'"bids":[{self.words.levels([(bid, bid_lots)])}],"ts":"{now_ms}","seqId":{update_id}}}]}}']

    idle = first


class Trades(Channel):
    """`trades`: one row for what one order took at one price."""

    kinds = (AGGREGATE,)

    def __init__(self, key, words):
        super().__init__(key, key[1])
        self.words, self.arg = words, arg_text(*key)

    def texts(self, event, now_ms):
        _, listing, _, price, lots, first, last, buyer_is_maker = event
        return (self.text(listing, last, price, lots, buyer_is_maker, now_ms, f'"count":"{last - first + 1}",'),)

    def text(self, listing, number, price, lots, buyer_is_maker, now_ms, count):
        return (f'{{"arg":{self.arg},"data":[{{"instId":"{self.symbol}","tradeId":"{number}",'
                f'"px":"{self.words.price(price)}","sz":"{self.words.quantity(lots)}",'
                f'"side":"{"sell" if buyer_is_maker else "buy"}","ts":"{now_ms}",{count}"source":"0",'
                f'"seqId":{listing.update_id}}}]}}')


class EveryTrade(Trades):
    """`trades-all`: each fill."""

    kinds = (TRADE,)

    def texts(self, event, now_ms):
        _, listing, number, price, lots, buyer_is_maker = event
        return (self.text(listing, number, price, lots, buyer_is_maker, now_ms, ""),)


class Okx(Dialect):
    name = "okx"
    session = ClientSession
    connects = (3, 1)
    faults = frozenset(SHOWN_BY_ALL + ("gap", "reorder", "sequence", "no_sequence", "reset", "snapshot", "notice"))
    # The page counts requests, a sister product's page tokens a request: whether arguments count is not said (2).
    settings = {"idle_s": 30.0, "keep_alive_s": 60.0, "notice_s": 60.0, "requests_per_hour": 480, "counts_args": True}

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.requests = Budget(20, 2)

    def route(self, target):
        path = parsed(target)[0]
        return path[len("/ws/v5/"):] if path in ("/ws/v5/public", "/ws/v5/business") else None

    def serves(self, route, channel):
        return channel in (("books", "books5", "bbo-tbt", "trades") if route == "public" else ("trades-all",))

    def channel(self, key, source):
        name, symbol = key
        listing, words, idle_ns = source.listings[symbol], source.words[symbol], self.ns(self.keep_alive_s)
        if name == "books":
            return Books(key, listing, words, idle_ns)
        if name == "books5":
            return Books5(key, listing, words)
        if name == "bbo-tbt":
            return Best(key, listing, words, idle_ns)
        return Trades(key, words) if name == "trades" else EveryTrade(key, words)

    # --- REST

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        endpoints = {"/api/v5/public/instruments": self.instruments, "/api/v5/market/books": self.book,
                     "/api/v5/public/time": self.time}
        if path not in endpoints:
            raise RequestError('{"code":"404","data":{},"detailMsg":"","error_code":"404","error_message":"Not Found",'
                               '"msg":"Not Found"}', 404)
        desk.counts["rest_requests"] += 1
        if not self.requests.take(now_ns):
            raise self.too_many(2)
        desk.rest_fault(parameters.get("instId"), False)
        return endpoints[path](parameters, desk, now_ms)

    def time(self, parameters, desk, now_ms):
        return Answer(f'{{"code":"0","data":[{{"ts":"{now_ms}"}}],"msg":""}}')

    def instruments(self, parameters, desk, now_ms):
        kind = parameters.get("instType", "")
        if kind not in ("SPOT", "SWAP", "FUTURES", "OPTION"):
            raise RequestError('{"code":"51000","data":[],"msg":"Parameter instType error"}')
        rows = self.all_listed(desk, kind)
        if "instId" in parameters:
            rows = [row for row in rows if row["instId"] == parameters["instId"]]
            if not rows:
                raise RequestError('{"code":"51001","data":[],"msg":"Instrument ID doesn\'t exist."}')
        return Answer(dumps({"code": "0", "data": rows, "msg": ""}))

    def all_listed(self, desk, kind):
        return [self.listed(spec, kind) for spec in desk.source.specs if kind_of(spec.symbol) == kind]

    def listed(self, spec, kind):
        is_swap = kind == "SWAP"
        inverse = is_swap and spec.quote == "USD"
        value = {"ctMult": "1", "ctType": "inverse" if inverse else "linear", "ctVal": "100" if inverse else "0.01",
                 "ctValCcy": "USD" if inverse else spec.base} if is_swap else dict.fromkeys(
                     ("ctMult", "ctType", "ctVal", "ctValCcy"), "")
        return {"alias": "", "baseCcy": "" if is_swap else spec.base, "category": "1", **value, "expTime": "",
                "instId": spec.symbol, "instType": kind, "lever": "10", "listTime": "1548133413000",
                "lotSz": spec.lot, "minSz": spec.lot, "optType": "", "quoteCcy": "" if is_swap else spec.quote,
                "settleCcy": (spec.base if inverse else spec.quote) if is_swap else "", "state": "live", "stk": "",
                "tickSz": spec.tick, "uly": f"{spec.base}-{spec.quote}" if is_swap else ""}

    def book(self, parameters, desk, now_ms):
        symbol, size = parameters.get("instId"), parameters.get("sz", "1")
        if symbol not in desk.symbols:
            raise RequestError('{"code":"51001","data":[],"msg":"Instrument ID doesn\'t exist."}')
        if not (size.isascii() and size.isdigit() and 1 <= int(size) <= 400):
            raise RequestError('{"code":"51000","data":[],"msg":"Parameter sz error"}')
        listing, words = desk.source.listings[symbol], desk.source.words[symbol]
        return Answer(f'{{"code":"0","msg":"","data":[{{"asks":[{words.levels(listing.asks.levels(int(size)))}],'
                      f'"bids":[{words.levels(listing.bids.levels(int(size)))}],"ts":"{now_ms}",'
                      f'"seqId":{listing.update_id}}}]}}')

    def too_many(self, retry_s):
        return RequestError('{"msg":"Too Many Requests","code":"50011"}', 429)

    def broken(self):
        return RequestError('{"code":"50026","data":[],"msg":"System error. Please try again later."}', 500)

    # --- what is listed

    def words(self, spec):
        return Rows(spec)

    def spell(self, base, quote):
        return f"{base}-{quote or 'USDT'}"

    def spec(self, symbol):
        base, _, rest = symbol.partition("-")
        quote = rest.partition("-")[0]
        if not quote:
            raise ConfigError(f"okx: symbol {symbol!r}: expected BASE-QUOTE or BASE-QUOTE-SWAP")
        return grid_spec(symbol, base, quote, lot="0.01" if kind_of(symbol) == "SWAP" else None)       # of contracts


def kind_of(symbol):
    return "SWAP" if symbol.endswith("-SWAP") else "SPOT" if symbol.count("-") == 1 else "FUTURES"
