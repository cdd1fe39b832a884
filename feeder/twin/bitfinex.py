"""Bitfinex v2 as text.

In:   events of market.py, requests of clients.   Out: JSON text, shaped like the recording of 2021-04.

Data are arrays that begin with the channel's number, which is the connection's own; flags of the connection append its
count of array frames (SEQ_ALL) and the time (TIMESTAMP), and ask for checksums (OB_CHECKSUM). So `finish` makes each
frame, and a lost one leaves its hole in the count of who wanted one.

    book     P0, F0, 1 to 250 levels: a snapshot, then one row a message; a count of 0 removes, also what leaves the
             depth; about every 2.5 s, when it changed, a checksum over the tokens of the 25 best, bids and asks in
             turn, asks negative
    trades   recent ones, then `te` at once and `tu` a second later for the same fill; an amount below 0 was sold
    ticker   the sizes are sums of 25 levels, made of doubles, as recorded (19203.444049780002): no best bid and offer

Numbers are printed as JavaScript does: 0.1, 1.5e-7. Every 15 s all channels of a connection say "hb", those that just
had data, too: so the recording; the fact sheet says only silent ones. Facts: the fact sheet of 2026-09, by
its paragraph; unsure there, so a setting: the channels of a connection (2). Not here: raw books, P1 to P4, F1, bulk
updates, funding.
"""

from collections import deque
from zlib import crc32

from .dialect import (PING, PONG, TEXT, Answer, BestChannel, BookChannel, Budget, Channel, Dialect, RequestError,
                      Session, Window, Words, dumps, grid_spec, parsed, request_of, short)
from .faults import SHOWN_BY_ALL
from .market import TRADE

LENGTHS = ("1", "25", "100", "250")
CHECKED = 25
TIMESTAMP, SEQ_ALL, OB_CHECKSUM = 32_768, 65_536, 131_072
WRONG, UNNUMBERED = "\1", "\2"                # at the head of a text: its number is to be wrong, or missing
RENAMED = {"USDT": "UST"}
MAINTENANCE = {
    True: (20060, "Entering in Maintenance mode. Please pause any activity and resume after receiving the info message "
                  "20061 (it should take 120 seconds at most)."),
    False: (20061, "Maintenance ended. You can resume normal activity. It is advised to unsubscribe/subscribe again "
                   "all channels.")}
RECENT_TRADES = 30


class ClientSession(Session):
    finishes = True

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.flags = self.sequence = self.made = 0
        self.ids = {}                         # channel key -> number
        self.is_paused = False                # maintenance
        self.empty_ns = self.beat_ns = 0      # since when nothing is subscribed; when channels say hb next

    def open(self, now_ns):
        self.empty_ns = self.beat_ns = now_ns
        self.expire(now_ns)
        self.peer.send('{"event":"info","version":2,"serverId":"083bd8d4-aca7-4690-a573-eabfc8103de8",'
                       '"platform":{"status":1}}')

    def expire(self, now_ns):
        dialect = self.dialect
        if self.beat_ns <= now_ns:
            self.beat_ns = now_ns + dialect.ns(dialect.hb_s)
            for key in sorted(self.topics, key=self.ids.get):
                self.peer.tell(self.peer.venue.channels[key], '"hb"')
        if self.topics:
            self.empty_ns = now_ns
        idle_ns = self.empty_ns + dialect.ns(dialect.idle_s)
        self.deadline_ns = min(self.beat_ns, idle_ns)
        if idle_ns <= now_ns:
            self.deadline_ns = None
            self.peer.count("idle_disconnects")
            self.peer.close(1000, "")

    def take(self, opcode, payload, now_ns):
        if self.topics:
            self.empty_ns = now_ns
        if opcode in (PING, PONG):
            return
        request = request_of(payload) if opcode == TEXT else None
        event = request and request.get("event")
        if event == "ping":
            cid = f',"cid":{dumps(request["cid"])}' if "cid" in request else ""
            self.peer.send(f'{{"event":"pong","ts":{self.peer.now_ms}{cid}}}')
        elif event == "conf":
            self.configure(request.get("flags"))
        elif event == "subscribe":
            self.join(request)
        elif event == "unsubscribe":
            self.leave(request.get("chanId"))
        else:
            self.refuse("event: invalid", 10000, {})

    def configure(self, flags):
        good = isinstance(flags, int) and not flags & ~(TIMESTAMP | SEQ_ALL | OB_CHECKSUM)
        if good:
            self.flags = flags
        self.peer.send(f'{{"event":"conf","status":"{"OK" if good else "FAILED"}","flags":{dumps(flags)}}}')

    def join(self, request):
        name, symbol = request.get("channel"), request.get("symbol", request.get("pair"))
        echo = {"channel": name, "symbol": symbol}
        if name == "book":
            echo.update(prec=request.get("prec", "P0"), freq=request.get("freq", "F0"),
                        len=str(request.get("len", "25")))
        if "subId" in request:
            echo["subId"] = request["subId"]
        if name not in ("book", "trades", "ticker"):
            return self.refuse("channel: unknown", 10302, echo)
        if symbol not in self.peer.symbols:
            return self.refuse("symbol: invalid", 10300, echo)
        for field, known in (("prec", ("P0",)), ("freq", ("F0",)), ("len", LENGTHS)):
            if name == "book" and echo[field] not in known:
                return self.refuse(f"{field}: invalid", 10300, echo)
        key = (name, symbol, echo["len"]) if name == "book" else (name, symbol)
        if key in self.topics:
            return self.refuse("subscribe: dup", 10301, {**echo, "chanId": self.ids[key]})
        if len(self.topics) >= self.dialect.channels:
            return self.refuse("subscribe: limit", 10305, echo)
        self.made += 1
        number = self.ids[key] = 200_000 + self.number * 1_000 + self.made
        detail = {**echo, "pair": symbol[1:]}
        detail = {"event": "subscribed", "channel": detail.pop("channel"), "chanId": number, **detail}
        firsts = self.subscribe(key, key)
        self.peer.send(dumps(detail))
        self.tell(firsts)

    def leave(self, number):
        key = next((key for key, own in self.ids.items() if own == number), None)
        if key is None:
            return self.refuse("unsubscribe: invalid", 10400, {"chanId": number})
        self.peer.leave(key)
        del self.ids[key]
        self.peer.send(f'{{"event":"unsubscribed","status":"OK","chanId":{number}}}')

    def refuse(self, reason, code, echo):
        self.peer.count("bad_commands")
        self.peer.send(dumps({"event": "error", "msg": reason, "code": code, **echo}))

    def finish(self, channel, text):
        """Number it for this connection; None for what it did not ask for."""
        mark = text[0] if text[0] in (WRONG, UNNUMBERED) else ""
        text = text[len(mark):]
        if self.is_paused or text.startswith('"cs"') and not self.flags & OB_CHECKSUM:
            return None
        tail = ""
        if self.flags & SEQ_ALL:
            self.sequence += 1
            if mark != UNNUMBERED:
                tail = f",{self.sequence - 3 * (mark == WRONG)}"
        if self.flags & TIMESTAMP:
            tail += f",{self.peer.now_ms}"
        return f"[{self.ids[channel.key]},{text}{tail}]"

    def farewell(self, now_ns):
        self.peer.send('{"event":"info","code":20051,"msg":"Stopping. Please try to reconnect"}')
        return self.dialect.stop_s

    def maintain(self, is_starting):
        """Nothing is sent meanwhile, and what changes is not told later: books are to be had anew."""
        self.is_paused = is_starting
        code, message = MAINTENANCE[is_starting]
        self.peer.send(dumps({"event": "info", "code": code, "msg": message}))
        return self.dialect.maintenance_s

    def half_a_message(self, now_ms):
        return f"[{next(iter(self.ids.values()), 1)},[[61837"


class Numbers(Words):
    """As JavaScript prints numbers."""

    __slots__ = ()

    def price(self, ticks):
        return javascript(Words.price(self, ticks))

    def quantity(self, lots):
        return javascript(Words.quantity(self, lots))


def javascript(text):
    """'0.00000015' -> '1.5e-7', '0.10' -> '0.1', '61837.0' -> '61837'."""
    whole, _, part = text.partition(".")
    if whole != "0" or not part.startswith("000000") or not part.strip("0"):
        return short(text)
    digits = part.strip("0")
    power = len(part) - len(part.lstrip("0")) + 1
    return f"{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}e-{power}"


class Book(BookChannel):
    """`sequence` is the checksum of this moment."""

    def __init__(self, key, listing, words, checksum_ns):
        super().__init__(key, listing, words)
        self.window = Window(listing, int(key[2]), tells_ghosts=True)
        self.idle_ns, self.checksum_ms = checksum_ns or None, checksum_ns // 10 ** 6
        self.checked_ms, self.is_told = 0, True   # when a checksum was told, and whether it is that of this moment
        self.sequence = self.checksum()

    def checksum(self):
        price, quantity = self.words.price, self.words.quantity
        sides = [side[:CHECKED] for side in self.window.levels()]
        tokens = []
        for place in range(max(map(len, sides))):
            for side, sign in zip(sides, ("", "-")):
                if place < len(side):
                    tokens.append(f"{price(side[place][0])}:{sign}{quantity(side[place][1])}")
        number = crc32(":".join(tokens).encode()) if tokens else 0
        return number - (1 << 32) if number >= 1 << 31 else number

    def row(self, ticks, lots, sign):
        if not lots:
            return f"[{self.words.price(ticks)},0,{sign}1]"
        return f"[{self.words.price(ticks)},{1 + lots % 3},{sign}{self.words.quantity(lots)}]"

    def texts(self, event, now_ms):
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return []
        self.sequence, self.is_told = self.checksum(), False
        changes = [(ticks, lots, "") for ticks, lots in bids] + [(ticks, lots, "-") for ticks, lots in asks]
        changes.sort(key=lambda change: change[1] > 0)           # what leaves goes first, as recorded
        texts = [self.row(*change) for change in changes]
        if now_ms - self.checked_ms >= self.checksum_ms:
            texts.append(self.told(now_ms))
        return texts

    def told(self, now_ms, wrong=0):
        self.checked_ms, self.is_told = now_ms, True
        return f'"cs",{self.sequence + wrong}'

    def first(self, now_ms):
        bids, asks = self.window.levels()
        rows = [self.row(*level, "") for level in bids] + [self.row(*level, "-") for level in asks]
        return [f"[{','.join(rows)}]"]

    def idle(self, now_ms):
        return [] if self.is_told else [self.told(now_ms)]

    def hurt(self, kind, event, now_ms):
        texts = [text for text in self.texts(event, now_ms) if not text.startswith('"cs"')]
        if kind == "checksum":
            return [*texts, self.told(now_ms, 1)] if texts else []
        if texts:
            texts[0] = (WRONG if kind == "sequence" else UNNUMBERED) + texts[0]
        return texts

class Trades(Channel):
    kinds = (TRADE,)

    def __init__(self, key, words, tu_ns):
        super().__init__(key, key[1])
        self.words, self.idle_ns, self.tu_ms = words, max(tu_ns, 10 ** 6), tu_ns // 10 ** 6
        self.recent = deque(maxlen=RECENT_TRADES)
        self.executed = deque()                   # (time, row) of those whose `tu` is to come

    def texts(self, event, now_ms):
        _, _, number, price, lots, buyer_is_maker = event
        amount = ("-" if buyer_is_maker else "") + self.words.quantity(lots)
        row = f"[{3 * number},{now_ms},{amount},{self.words.price(price)}]"
        texts = [f'"te",{row}', *self.updated(now_ms)]
        self.recent.append(row)
        self.executed.append((now_ms, row))
        return texts

    def updated(self, now_ms):
        texts = []
        while self.executed and now_ms - self.executed[0][0] >= self.tu_ms:
            texts.append(f'"tu",{self.executed.popleft()[1]}')
        return texts

    def first(self, now_ms):
        return [f"[{','.join(reversed(self.recent))}]"]

    def idle(self, now_ms):
        return self.updated(now_ms)


class Ticker(BestChannel):
    def __init__(self, key, listing, words):
        super().__init__(key, listing, words)
        self.last = listing.best()

    def texts(self, event, now_ms):
        self.last = event
        return self.first(now_ms)

    def first(self, now_ms):
        _, listing, _, bid, _, ask, _ = self.last
        price = self.words.price
        return [f"[{price(bid)},{self.sum(listing.bids)},{price(ask)},{self.sum(listing.asks)},0.001969,0.0262,"
                f"{price(bid)},101459.39453471,{price(ask)},{price(bid)}]"]

    def sum(self, side):
        return short(repr(sum(float(self.words.quantity(lots)) for _, lots in side.levels(CHECKED))))


class Bitfinex(Dialect):
    name = "bitfinex"
    session = ClientSession
    connects = (20, 60)
    faults = frozenset(SHOWN_BY_ALL + ("gap", "reorder", "sequence", "no_sequence", "checksum", "notice",
                                       "maintenance"))
    # Channels of a connection: 25 and 30 are documented, 36 were accepted (2). The least is the safest.
    settings = {"channels": 25, "idle_s": 60.0, "hb_s": 15.0, "checksum_s": 2.5, "stop_s": 2.0,
                "maintenance_s": 120.0, "tu_s": 1.5}

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.requests = Budget(30, 60)

    def route(self, target):
        return target if parsed(target)[0] == "/ws/2" else None

    def channel(self, key, source):
        listing, words = source.listings[key[1]], source.words[key[1]]
        if key[0] == "book":
            return Book(key, listing, words, self.ns(self.checksum_s))
        if key[0] == "trades":
            return Trades(key, words, self.ns(self.tu_s))
        return Ticker(key, listing, words)

    # --- REST

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        desk.counts["rest_requests"] += 1
        if not self.requests.take(now_ns):
            raise self.too_many(60)
        desk.rest_fault(None, False)
        if path == "/v2/platform/status":
            return Answer("[1]")
        parts = path.split("/")
        if parts[:3] == ["", "v2", "conf"] and len(parts) == 4:
            answers = [self.configuration(name, desk.source.specs) for name in parts[3].split(",")]
            if None not in answers:
                return Answer(dumps(answers))
        if parts[:3] == ["", "v2", "book"] and len(parts) == 5 and parts[3] in desk.symbols and parts[4] == "P0":
            length = parameters.get("len", "25")
            if length in LENGTHS:
                key = "book", parts[3], length
                book = Book(key, desk.source.listings[parts[3]], desk.source.words[parts[3]], 0)
                return Answer(book.first(now_ms)[0])
        raise RequestError('["error",10020,"path: invalid"]', 404)

    def configuration(self, name, specs):
        futures = [spec.symbol[1:] for spec in specs if is_future(spec.symbol)]
        if name == "pub:list:pair:exchange":
            return [spec.symbol[1:] for spec in specs if not is_future(spec.symbol)]
        if name in ("pub:list:pair:futures", "pub:list:pair:future"):
            return futures
        if name == "pub:info:pair":
            return [[spec.symbol[1:], [None, None, None, spec.lot, "2000.0", *[None] * 7]]
                    for spec in specs if not is_future(spec.symbol)]
        return [["UST", "USDt"]] if name == "pub:map:currency:sym" else None

    def too_many(self, retry_s):
        return RequestError('["error",11010,"ratelimit: error"]', 429)

    def broken(self):
        return RequestError('["error",10001,"Internal server error"]', 500)

    # --- what is listed

    def words(self, spec):
        return Numbers(spec)

    def own(self, symbol):
        return symbol if symbol.startswith("t") else f"t{symbol.upper()}"

    def spell(self, base, quote):
        base, quote = (RENAMED.get(name, name) for name in (base, quote or "USD"))
        return f"t{base}{quote}" if len(base) == len(quote) == 3 else f"t{base}:{quote}"

    def spec(self, symbol):
        """A price has five digits, an amount eight decimals."""
        pair = symbol[1:]
        base, colon, quote = pair.partition(":")
        if not colon:
            base, quote = pair[:3], pair[3:]
        base = base[:-2] if is_future(symbol) else base
        return grid_spec(symbol, base, quote, 5, lot="0.00000001")


def is_future(symbol):
    return symbol.endswith("F0")
