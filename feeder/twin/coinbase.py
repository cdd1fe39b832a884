"""Coinbase Advanced Trade as text.

In:   events of market.py, requests of clients.   Out: JSON text, shaped like the recording of 2026-08.

    sequence_num     one count per CONNECTION over all its channels, +1 a message: `finish` numbers each message for
                     each client, so that a lost one leaves its hole in that client's count
    level2           arrives as l2_data: a snapshot of all levels (megabytes at the venue), then updates; `bid`, `offer`
    market_trades    the side is the MAKER's; a batch is not in order; a snapshot of recent trades comes first
    heartbeats       once a second, who wants them; without any update a connection ends after `idle_s`

One channel a request. Times are RFC 3339 to the ns, zeros at the end cut. A -USDC product is the -USD book and says so.
Facts: the fact sheet of 2026-08, part B. Not here: candles, status, logins.
"""

from collections import deque

from ..errors import ConfigError
from .dialect import (PING, PONG, TEXT, Answer, BookChannel, Budget, Channel, Dialect, RequestError, Session,
                      ShortWords, dumps, grid_spec, iso_text, parsed, request_of)
from .faults import SHOWN_BY_ALL
from .market import AGGREGATE, TRADE

NUMBER, WRONG_NUMBER = "\0", "\1"            # where the client's own count goes; one that is too low
CHANNELS = ("level2", "market_trades", "ticker", "heartbeats")
RECENT_TRADES = 100


class ClientSession(Session):
    finishes = True

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.sequence = -1
        self.messages = Budget(dialect.messages_per_second, 1)
        self.open_ns = self.beat_ns = self.beats = 0

    def open(self, now_ns):
        self.open_ns = now_ns
        self.expire(now_ns)

    def expire(self, now_ns):
        dialect = self.dialect
        if not self.topics:
            end_ns = self.open_ns + dialect.ns(dialect.subscribe_within_s)
        elif "heartbeats" in self.topics:
            if now_ns >= self.beat_ns:
                self.beats += 1
                self.beat_ns = now_ns + dialect.ns(dialect.heartbeat_s)
                self.own("heartbeats", f'{{"current_time":"{go_clock(self.peer.now_ms)}",'
                                       f'"heartbeat_counter":{self.beats}}}')
            self.deadline_ns = self.beat_ns
            return
        else:
            end_ns = self.peer.sent_ns + dialect.ns(dialect.idle_s)
        self.deadline_ns = end_ns
        if now_ns >= end_ns:
            self.deadline_ns = None
            self.peer.count("idle_disconnects")
            self.peer.close(1001, "")

    def take(self, opcode, payload, now_ns):
        if opcode in (PING, PONG):
            return
        if not self.messages.take(now_ns):
            return self.refuse("rate limit exceeded")
        request = request_of(payload) if opcode == TEXT else None
        if request is None:
            return self.refuse("malformed request")
        kind, name, products = request.get("type"), request.get("channel"), request.get("product_ids", [])
        if kind not in ("subscribe", "unsubscribe"):
            return self.refuse(f"unknown type: {kind}")
        if name not in CHANNELS:
            return self.refuse(f"channel not supported: {name}")
        if name == "heartbeats":
            products = [None]
        elif not (products and isinstance(products, list)):
            return self.refuse("product_ids are missing")
        keys = {product: self.dialect.key(name, product, self.peer.symbols) for product in products}
        wrong = [product for product, key in keys.items() if key is None and name != "heartbeats"]
        if wrong:
            return self.refuse(f"{wrong[0]} is not a valid product")
        firsts = []
        for product, key in keys.items():
            topic = name if product is None else f"{name} {product}"
            if kind == "unsubscribe":
                self.peer.leave(topic)
            elif topic not in self.topics:
                firsts += self.subscribe(topic, key)
        self.tell(firsts)                                # before the acknowledgement, as recorded
        self.own("subscriptions", dumps({"subscriptions": self.subscriptions()}))
        self.expire(now_ns)

    def subscriptions(self):
        held = {}
        for topic in self.topics:
            name, _, product = topic.partition(" ")
            held.setdefault(name, []).append(product or name)
        return dict(sorted(held.items()))

    def refuse(self, reason):
        self.peer.count("bad_commands")
        self.peer.send(f'{{"type":"error","message":{dumps(reason)}}}')

    def own(self, channel, event):
        """A numbered message of this connection alone."""
        self.sequence += 1
        self.peer.send(envelope(channel, self.peer.now_ms * 10 ** 6, event).replace(NUMBER, str(self.sequence)))

    def finish(self, channel, text):
        self.sequence += 1
        return text.replace(NUMBER, str(self.sequence), 1).replace(WRONG_NUMBER, str(self.sequence - 3), 1)

    def half_a_message(self, now_ms):
        return envelope("l2_data", now_ms * 10 ** 6, '{"type":"update","product_id":"').partition(NUMBER)[0]


def envelope(channel, time_ns, event, number=NUMBER):
    numbered = "" if number is None else f'"sequence_num":{number},'
    return f'{{"channel":"{channel}","timestamp":"{go_time(time_ns)}",{numbered}"events":[{event}]}}'


def go_time(time_ns):
    """As Go prints it: no zeros at the end of the fraction."""
    text = iso_text(time_ns, 9)[:-1].rstrip("0")
    return text.rstrip(".") + "Z"


def go_clock(now_ms):
    return iso_text(now_ms * 10 ** 6 + 840_045, 9).replace("T", " ")[:-1] + " +0000 UTC m=+41691.260485341"


class Updates(ShortWords):
    """Levels as updates of one side; the time comes later."""

    __slots__ = ()

    def updates(self, bids, asks, time):
        price, quantity = self.price, self.quantity
        return ",".join([f'{{"side":"{side}","event_time":"{time}","price_level":"{price(ticks)}",'
                         f'"new_quantity":"{quantity(lots)}"}}'
                         for side, pairs in (("bid", bids), ("offer", asks)) for ticks, lots in pairs])


class Level2(BookChannel):
    """`sequence` is the time of the last message in ns: the count is each connection's own."""

    def __init__(self, key, listing, words):
        super().__init__(key, listing, words)
        self.sequence = 0

    def texts(self, event, now_ms, number=NUMBER):
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return []
        self.sequence = max(self.sequence + 1_000, now_ms * 10 ** 6)
        return [self.text("update", bids, asks, number)]

    def text(self, kind, bids, asks, number=NUMBER):
        updates = self.words.updates(bids, asks, go_time(self.sequence))
        return envelope("l2_data", self.sequence, f'{{"type":"{kind}","product_id":"{self.symbol}",'
                                                  f'"updates":[{updates}]}}', number)

    def first(self, now_ms):
        self.sequence = self.sequence or now_ms * 10 ** 6
        return [self.text("snapshot", *self.window.levels())]

    def hurt(self, kind, event, now_ms):
        if kind == "snapshot":
            self.texts(event, now_ms)
            return self.first(now_ms)
        return self.texts(event, now_ms, WRONG_NUMBER if kind == "sequence" else None)


class Trades(Channel):
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
        time = go_time(now_ms * 10 ** 6)
        rows = [f'{{"product_id":"{self.symbol}","trade_id":"{number}","price":"{self.words.price(price)}",'
                f'"size":"{self.words.quantity(lots)}","time":"{time}","side":"{"BUY" if buyer_is_maker else "SELL"}"}}'
                for _, _, number, price, lots, buyer_is_maker in self.fills]          # the maker's side
        self.fills = []
        self.recent += rows
        return (self.text("update", rows[::-1], now_ms),)                             # in no promised order

    def first(self, now_ms):
        return [self.text("snapshot", list(self.recent)[::-1], now_ms)]

    def text(self, kind, rows, now_ms):
        return envelope("market_trades", now_ms * 10 ** 6, f'{{"type":"{kind}","trades":[{",".join(rows)}]}}')


class Ticker(Channel):
    """Told by trades; with the best bid and offer of that moment. What is of the day is made up."""

    kinds = (AGGREGATE,)

    def __init__(self, key, listing, words):
        super().__init__(key, listing.spec.symbol)
        self.listing, self.words = listing, words

    def texts(self, event, now_ms, kind="update"):
        price, quantity = self.words.price, self.words.quantity
        _, _, _, bid, bid_lots, ask, ask_lots = self.listing.best()
        last = price(event[3] if event else bid)
        return (envelope("ticker", now_ms * 10 ** 6, (
            f'{{"type":"{kind}","tickers":[{{"type":"ticker","product_id":"{self.symbol}","price":"{last}",'
            f'"volume_24_h":"2867.54532609","low_24_h":"{last}","high_24_h":"{last}","low_52_w":"{last}",'
            f'"high_52_w":"{last}","price_percent_chg_24_h":"0.09601107287722","best_bid":"{price(bid)}",'
            f'"best_ask":"{price(ask)}","best_bid_quantity":"{quantity(bid_lots)}",'
            f'"best_ask_quantity":"{quantity(ask_lots)}"}}]}}')),)

    def first(self, now_ms):
        return self.texts(None, now_ms, "snapshot")


class Coinbase(Dialect):
    name = "coinbase"
    session = ClientSession
    connects = (8, 1)
    faults = frozenset(SHOWN_BY_ALL + ("gap", "reorder", "sequence", "no_sequence", "snapshot"))
    # 60 to 90 s without updates end a channel (B2): the shorter is the safer.
    settings = {"subscribe_within_s": 5.0, "idle_s": 60.0, "heartbeat_s": 1.0, "messages_per_second": 8}

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.requests = Budget(10, 1)

    def route(self, target):
        return "/" if parsed(target)[0] in ("", "/") else None

    def key(self, name, product, symbols):
        if product not in symbols:
            product = str(product)[:-1] if str(product).endswith("-USDC") else None        # the same book (B8)
        return (name, product) if product in symbols else None

    def channel(self, key, source):
        name, symbol = key
        listing, words = source.listings[symbol], source.words[symbol]
        if name == "level2":
            return Level2(key, listing, words)
        return Trades(key, words) if name == "market_trades" else Ticker(key, listing, words)

    # --- REST

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        prefix, found, rest = path.partition("/api/v3/brokerage/")
        if prefix or not found:
            raise RequestError('{"error":"NOT_FOUND","message":"no such path"}', 404)
        desk.counts["rest_requests"] += 1
        if not self.requests.take(now_ns):
            raise self.too_many(1)
        desk.rest_fault(None, False)
        specs = {spec.symbol: spec for spec in desk.source.specs}
        if rest == "time":
            return Answer(f'{{"iso":"{go_time(now_ms * 10 ** 6)}","epochSeconds":"{now_ms // 1_000}",'
                          f'"epochMillis":"{now_ms}"}}')
        if rest == "market/products":
            rows = ",".join(self.listed(spec) for spec in specs.values())
            return Answer(f'{{"products":[{rows}], "num_products":{len(specs)}, "pagination":{{"prev_cursor":"", '
                          '"next_cursor":"", "has_next":false, "has_prev":false}}')
        product = parameters.get("product_id", rest[len("market/products/"):])
        if product not in specs:
            raise RequestError('{"error":"NOT_FOUND","error_details":"valid product_id is required",'
                               '"message":"valid product_id is required"}', 404)
        if rest == "market/product_book":
            limit = parameters.get("limit", "")
            listing, words = desk.source.listings[product], desk.source.words[product]
            bids, asks = (",".join(f'{{"price":"{words.price(price)}","size":"{words.quantity(lots)}"}}'
                                   for price, lots in side.levels(int(limit) if limit.isdigit() else None))
                          for side in (listing.bids, listing.asks))
            return Answer(f'{{"pricebook":{{"product_id":"{product}","bids":[{bids}],"asks":[{asks}],'
                          f'"time":"{go_time(now_ms * 10 ** 6)}"}}}}')
        return Answer(self.listed(specs[product]))

    def listed(self, spec):
        alias_to = [spec.symbol + "C"] if spec.quote == "USD" else []
        return dumps({"product_id": spec.symbol, "price": spec.first_price, "base_increment": spec.lot,
                      "quote_increment": spec.tick, "quote_min_size": "1", "quote_max_size": "150000000",
                      "base_min_size": spec.lot, "base_max_size": "3400", "base_name": spec.base,
                      "quote_name": spec.quote, "watched": False, "is_disabled": False, "new": False,
                      "status": "online", "cancel_only": False, "limit_only": False, "post_only": False,
                      "trading_disabled": False, "auction_mode": False, "product_type": "SPOT",
                      "quote_currency_id": spec.quote, "base_currency_id": spec.base, "alias": "",
                      "alias_to": alias_to, "view_only": False, "price_increment": spec.tick,
                      "display_name": spec.symbol, "product_venue": "CBE"})

    def too_many(self, retry_s):
        return RequestError('{"error":"RATE_LIMIT_EXCEEDED","message":"rate limit exceeded"}', 429)

    def broken(self):
        return RequestError('{"error":"INTERNAL","message":"internal error"}', 500)

    # --- what is listed

    def words(self, spec):
        return Updates(spec)

    def spell(self, base, quote):
        return f"{base}-{quote or 'USD'}"

    def spec(self, symbol):
        base, _, quote = symbol.partition("-")
        if not quote:
            raise ConfigError(f"{self.name}: symbol {symbol!r}: expected BASE-QUOTE")
        return grid_spec(symbol, base, quote, 7, lot="0.00000001")
