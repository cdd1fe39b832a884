"""Coinbase Exchange's public feed as text.

In:   events of market.py, requests of clients.   Out: JSON text, shaped like the recording of 2021-04.

    level2_batch   a snapshot of all levels, then l2updates. No sequence, no checksum: the venue calls it guaranteed, a
                   loss shows only as a disconnect. So a `gap` here loses a diff and cuts the connection it was lost on.
    matches        one message a fill, the side is the MAKER's; first the last one again, as last_match
    heartbeat      a channel: once a second and product, with the last trade's number
    ticker         told by trades

A client must subscribe within 5 s. A price is spelled with varying zeros at its end. level2 and full want a key.
Facts: the fact sheet of 2026-08, part A; unsure there, so a setting: by which name level2_batch is acknowledged (A2).
"""

from hashlib import blake2b

from ..errors import ConfigError
from .dialect import (PING, PONG, TEXT, Answer, BookChannel, Budget, Channel, Dialect, RequestError, Session, Words,
                      dumps, grid_spec, iso_text, parsed, request_of)
from .faults import SHOWN_BY_ALL
from .market import AGGREGATE, TRADE

BATCH, BATCH_AS_SHOWN = "level2_batch", "level2_50"
CHANNELS = (BATCH, BATCH_AS_SHOWN, "matches", "ticker", "heartbeat")
WITH_KEY = ("level2", "full", "level3", "user", "balance")


class ClientSession(Session):

    def __init__(self, dialect, peer, route):
        super().__init__(dialect, peer, route)
        self.messages = Budget(dialect.messages_per_second, 1)

    def open(self, now_ns):
        self.deadline_ns = now_ns + self.dialect.ns(self.dialect.subscribe_within_s)

    def expire(self, now_ns):
        self.deadline_ns = None
        if not self.topics:
            self.peer.count("idle_disconnects")
            self.peer.close(1000, "")

    def take(self, opcode, payload, now_ns):
        if opcode in (PING, PONG):
            return
        if not self.messages.take(now_ns):
            return self.refuse("Too many requests", "rate limited")
        request = request_of(payload) if opcode == TEXT else None
        if request is None:
            return self.refuse("Malformed JSON", None)
        kind = request.get("type")
        if kind not in ("subscribe", "unsubscribe"):
            return self.refuse("Type has to be either subscribe or unsubscribe", None)
        wanted, firsts = [], []
        for channel in request.get("channels") or []:
            own = channel if isinstance(channel, dict) else {"name": channel}
            for product in own.get("product_ids", request.get("product_ids")) or []:
                wanted.append((own.get("name"), product))
        for name, product in wanted:
            if name in WITH_KEY:
                return self.refuse(f"Failed to {kind}", f"{name} requires authentication")
            if name not in CHANNELS:
                return self.refuse(f"Failed to {kind}", f"{name} is not a valid channel")
            if product not in self.peer.symbols:
                return self.refuse(f"Failed to {kind}", f"{product} is not a valid product")
        for name, product in wanted:
            name = BATCH if name == BATCH_AS_SHOWN else name
            if kind == "unsubscribe":
                self.peer.leave((name, product))
            elif (name, product) not in self.topics:
                firsts += self.subscribe((name, product), (name, product))
        held = {}
        for name, product in self.topics:
            held.setdefault(self.dialect.batch_name if name == BATCH else name, []).append(product)
        self.peer.send(dumps({"type": "subscriptions", "channels": [
            {"name": name, "product_ids": products} for name, products in held.items()]}))
        self.tell(firsts)

    def refuse(self, message, reason):
        self.peer.count("bad_commands")
        told = {"type": "error", "message": message}
        self.peer.send(dumps({**told, "reason": reason} if reason else told))

    def half_a_message(self, now_ms):
        return f'{{"type":"l2update","product_id":"{self.peer.symbols[0]}","changes":[["buy","'


class Level2(BookChannel):
    """`sequence` is the time of the last message in ns, the only mark there is."""

    def __init__(self, key, listing, words):
        super().__init__(key, listing, words)
        self.sequence = self.updates = 0

    def texts(self, event, now_ms):
        bids, asks = self.window.move(event)
        if not (bids or asks):
            return ()
        self.sequence = max(self.sequence + 1_000, now_ms * 10 ** 6)
        self.updates += 1
        zeros = "" if self.updates % 2 else "0000"                   # both spellings were seen (A5)
        price, quantity = self.words.price, self.words.quantity
        changes = ",".join([f'["{side}","{price(ticks)}{zeros}","{quantity(lots)}"]'
                            for side, pairs in (("buy", bids), ("sell", asks)) for ticks, lots in pairs])
        return (f'{{"type":"l2update","product_id":"{self.symbol}","changes":[{changes}],'
                f'"time":"{iso_text(self.sequence)}"}}',)

    def first(self, now_ms):
        self.sequence = self.sequence or now_ms * 10 ** 6
        bids, asks = map(self.words.levels, self.window.levels())
        return [f'{{"type":"snapshot","product_id":"{self.symbol}","asks":[{asks}],"bids":[{bids}]}}']

    def hurt(self, kind, event, now_ms):
        self.texts(event, now_ms)
        return self.first(now_ms)


class Matches(Channel):
    kinds = (TRADE,)

    def __init__(self, key, listing, words):
        super().__init__(key, listing.spec.symbol)
        self.listing, self.words = listing, words
        self.last = (TRADE, listing, listing.trade_id, listing.bids.keys[-1], 1, True)

    def texts(self, event, now_ms, kind="match"):
        self.last = event
        _, _, number, price, lots, buyer_is_maker = event
        return (f'{{"type":"{kind}","trade_id":{number},"maker_order_id":"{order(self.symbol, number, "m")}",'
                f'"taker_order_id":"{order(self.symbol, number, "t")}","side":"{"buy" if buyer_is_maker else "sell"}",'
                f'"size":"{self.words.quantity(lots)}","price":"{self.words.price(price)}",'
                f'"product_id":"{self.symbol}","sequence":{self.listing.update_id},'
                f'"time":"{iso_text(now_ms * 10 ** 6)}"}}',)

    def first(self, now_ms):
        return self.texts(self.last, now_ms, "last_match")


class Ticker(Channel):
    kinds = (AGGREGATE,)

    def __init__(self, key, listing, words):
        super().__init__(key, listing.spec.symbol)
        self.listing, self.words = listing, words

    def texts(self, event, now_ms):
        price, quantity = self.words.price, self.words.quantity
        _, _, update_id, bid, bid_lots, ask, ask_lots = self.listing.best()
        _, _, _, last, lots, _, number, buyer_is_maker = event
        return (f'{{"type":"ticker","sequence":{update_id},"product_id":"{self.symbol}","price":"{price(last)}",'
                f'"open_24h":"{price(last)}","volume_24h":"1.0","low_24h":"{price(last)}","high_24h":"{price(last)}",'
                f'"volume_30d":"1.0","best_bid":"{price(bid)}","best_bid_size":"{quantity(bid_lots)}",'
                f'"best_ask":"{price(ask)}","best_ask_size":"{quantity(ask_lots)}",'
                f'"side":"{"sell" if buyer_is_maker else "buy"}","time":"{iso_text(now_ms * 10 ** 6)}",'
                f'"trade_id":{number},"last_size":"{quantity(lots)}"}}',)


class Heartbeat(Channel):
    kinds = ()

    def __init__(self, key, listing, idle_ns):
        super().__init__(key, listing.spec.symbol)
        self.listing, self.idle_ns = listing, idle_ns

    def idle(self, now_ms):
        return [f'{{"type":"heartbeat","sequence":{self.listing.update_id},"last_trade_id":{self.listing.trade_id},'
                f'"product_id":"{self.symbol}","time":"{iso_text(now_ms * 10 ** 6)}"}}']


def order(symbol, number, side):
    text = blake2b(f"{symbol} {number} {side}".encode(), digest_size=16).hexdigest()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Exchange(Dialect):
    name = "coinbase_exchange"
    session = ClientSession
    connects = (20, 2.5)                         # 8 a second, 20 at once
    gap_cuts = mute_cuts = True
    faults = frozenset(SHOWN_BY_ALL + ("gap", "snapshot"))
    settings = {"subscribe_within_s": 5.0, "heartbeat_s": 1.0, "messages_per_second": 100,
                "batch_name": BATCH_AS_SHOWN}

    def __init__(self, time_scale=1.0, **settings):
        super().__init__(time_scale, **settings)
        self.requests = Budget(15, 1.5)          # 10 a second, 15 at once

    def route(self, target):
        return "/" if parsed(target)[0] in ("", "/") else None

    def channel(self, key, source):
        name, symbol = key
        listing, words = source.listings[symbol], source.words[symbol]
        if name == "heartbeat":
            return Heartbeat(key, listing, self.ns(self.heartbeat_s))
        return {BATCH: Level2, "matches": Matches, "ticker": Ticker}[name](key, listing, words)

    # --- REST

    def rest(self, target, desk, now_ns, now_ms):
        path, parameters = parsed(target)
        parts = path.strip("/").split("/")
        if parts[0] not in ("products", "time"):
            raise RequestError('{"message":"Route not found"}', 404)
        desk.counts["rest_requests"] += 1
        if not self.requests.take(now_ns):
            raise self.too_many(1)
        desk.rest_fault(parts[1] if len(parts) > 1 else None, False)
        specs = {spec.symbol: spec for spec in desk.source.specs}
        if parts == ["time"]:
            return Answer(f'{{"iso":"{iso_text(now_ms * 10 ** 6, 3)}","epoch":{now_ms / 1_000:.3f}}}')
        if len(parts) == 1:
            return Answer(dumps([self.listed(spec) for spec in specs.values()]))
        if parts[1] not in specs or parts[2:] not in ([], ["book"]):
            raise RequestError('{"message":"NotFound"}', 404)
        if len(parts) == 2:
            return Answer(dumps(self.listed(specs[parts[1]])))
        listing, words = desk.source.listings[parts[1]], desk.source.words[parts[1]]
        limit = None if parameters.get("level") == "2" else 1
        bids, asks = (",".join([f'["{words.price(price)}","{words.quantity(lots)}",1]'
                                for price, lots in side.levels(limit)]) for side in (listing.bids, listing.asks))
        return Answer(f'{{"bids":[{bids}],"asks":[{asks}],"sequence":{listing.update_id},"auction_mode":false,'
                      f'"auction":null,"time":"{iso_text(now_ms * 10 ** 6)}"}}')

    def listed(self, spec):
        return {"id": spec.symbol, "base_currency": spec.base, "quote_currency": spec.quote,
                "quote_increment": spec.tick, "base_increment": spec.lot,
                "display_name": f"{spec.base}/{spec.quote}", "min_market_funds": "1",
                "margin_enabled": False, "post_only": False, "limit_only": False, "cancel_only": False,
                "status": "online", "status_message": "", "trading_disabled": False, "fx_stablecoin": False,
                "auction_mode": False}

    def too_many(self, retry_s):
        return RequestError('{"message":"Public rate limit exceeded"}', 429)

    def broken(self):
        return RequestError('{"message":"Internal server error"}', 500)

    # --- what is listed

    def words(self, spec):
        return Words(spec)

    def spell(self, base, quote):
        return f"{base}-{quote or 'USD'}"

    def spec(self, symbol):
        base, _, quote = symbol.partition("-")
        if not quote:
            raise ConfigError(f"{self.name}: symbol {symbol!r}: expected BASE-QUOTE")
        return grid_spec(symbol, base, quote)
