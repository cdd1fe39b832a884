"""Coinbase: the Exchange feed and Advanced Trade, two products with different hosts, messages and rules.

Source: the exchange's fact sheet of 2026-09 (docs.cdp.coinbase.com), section numbers in the comments; recordings of
2021 (Exchange) and 2026 (Advanced Trade).

| Exchange                     | Advanced Trade          | role       | action                                   |
| snapshot                     | l2_data, type snapshot  | snapshot   | sink.snapshot; all of it, several MB     |
| l2update                     | l2_data, type update    | increment  | sink.depth                               |
| match                        | market_trades, update   | trade      | sink.trade; the side told is the MAKER's |
| last_match                   | market_trades, snapshot | old trades | counted: they were told before           |
| ticker                       | ticker                  | BBO        | sink.bbo; sizes missing: counted         |
| heartbeat                    | heartbeats              | alive      | Notice                                   |
| subscriptions                | subscriptions           | ack        | Notice: all that is subscribed now       |
| error                        | {"type":"error"}        | error      | Notice                                   |
| received, open, done, status | candles, status         | not ours   | counted by name, as any other is         |

What proves that nothing is missing: at Advanced Trade `sequence_num`, one count over all of a connection, so a jump
costs every book on it. At the Exchange nothing but the connection: no message of a book has a number. Its books are
counted here, and a text that cannot be read may have been one of them.

Acknowledgements tell all that is subscribed, in both. A command is granted when all of its streams are in there (or
none of them, for an unsubscription); an error names no request, so it is that of the oldest command that has the
product it names, or of the oldest.
"""

import json
import re
from urllib.parse import urlsplit

from feeder.errors import NumberError, VenueError
from feeder.message import BUY, SELL
from feeder.venue.contract import (ACK, ALIVE, ERROR, GAP, NEXT, OLD, OWN_SEQUENCE_BITS, STREAM, Command, Line, Listing,
                                   Notice, Request, Session, Venue, VenueFacts, follows_by_one, packed, trade_id_of)

STREAMS_PER_COMMAND = 100
MAX_PENDING = 1_000                     # commands without an answer, of a connection that lives for days
MAX_SNAPSHOT_BYTES = 64 << 20           # B4: BTC-USD is 5 MB
SYMBOL = re.compile(r"[A-Z0-9]+-[A-Z0-9]+")
AGGRESSOR = {"buy": SELL, "sell": BUY}  # A6, B6: they tell the maker's side


class Coinbase(Venue):
    """What both products share. A stream is channel:product, by the channel's name in requests (`names`)."""

    book = STREAM
    names = hosts = rest_hosts = id_key = tick_key = None

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        return parts.hostname in (cls.hosts if parts.scheme in ("ws", "wss") else cls.rest_hosts)

    @classmethod
    def spelling(cls, base, quote):
        return f"{base}-{quote}"

    @classmethod
    def common_name(cls, symbol):
        return symbol.replace("-", "/")

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        streams = [f"{self.names[channel]}:{symbol}" for symbol in symbols for channel in channels]
        return [Line("", part) for part in packed(streams, streams_per_connection)]

    def symbol_of(self, stream):
        return stream.partition(":")[2]

    def decode_instruments(self, body):
        """A8: a list; B8: an object with one."""
        answer = self.parse(body)
        try:
            entries = answer if type(answer) is list else answer["products"]
            return {entry[self.id_key]: Listing(entry[self.tick_key], entry["base_increment"])
                    for entry in entries or [{}]}
        except (KeyError, TypeError) as error:
            raise self.fault(f"instrument list without {error}", body) from None

    def need_list(self, data, key, kind, payload):
        value = data.get(key)
        if type(value) is not list or not all(type(each) is kind for each in value):
            raise self.fault(f"{key!r} is no list of {'objects' if kind is dict else 'lists'}", payload)
        return value

    def quote(self, instrument, ticker, size_keys, sequence, event_ns, recv_ns, payload):
        """Return the arguments of `sink.bbo`; None where a side or the sizes are missing."""
        keys = "best_bid", "best_ask", *size_keys
        bid, ask, bid_size, ask_size = texts = [ticker.get(key, "") for key in keys]
        if not all(type(text) is str for text in texts):
            raise self.fault("a best price or size is no text", payload)
        if not all(texts):
            return self.count("bbo without a side or sizes")
        prices = self.scaled(instrument, [bid, ask], "price")
        sizes = self.scaled(instrument, [bid_size, ask_size], "quantity")
        if not all(prices + sizes):
            return self.count("bbo without a side or sizes")
        self.count("bbo")
        return instrument, sequence, event_ns, recv_ns, prices[0], sizes[0], prices[1], sizes[1]


class CoinbaseSession(Session):
    """Commands and what answers them; the books that are told on this connection."""

    def __init__(self, venue):
        super().__init__(venue)
        self.books = {}                 # instrument -> sequence of its last event
        self.pending = {}               # number of a command -> (subscribe or unsubscribe, its streams)
        self.base = self.number << OWN_SEQUENCE_BITS

    def texts(self, kind, streams):
        """Yield (text, streams) of each command that subscribes or unsubscribes them."""
        raise NotImplementedError

    def subscribe(self, streams, request_id, kind="subscribe"):
        commands = []
        for number, (text, part) in enumerate(self.texts(kind, streams), request_id):
            self.pending[number] = kind, part
            commands.append(Command(text, {number: part}))
        while len(self.pending) > MAX_PENDING:
            del self.pending[next(iter(self.pending))]
        return commands

    def unsubscribe(self, streams, request_id):
        return self.subscribe(streams, request_id, "unsubscribe")

    def granted(self, active):
        """Return the ACK of all commands that what is subscribed now has fulfilled."""
        done = tuple(number for number, (kind, streams) in self.pending.items() if (
            active.issuperset(streams) if kind == "subscribe" else active.isdisjoint(streams)))
        for number in done:
            del self.pending[number]
        self.venue.count("ack")
        return Notice(ACK, done, "")

    def refused(self, text):
        """A2: "ABC-USD is not a valid product"; one bad product fails its whole command."""
        words = set(text.split())
        symbol_of = self.venue.symbol_of
        number = next((number for number, (_, streams) in self.pending.items()
                       if not words.isdisjoint(map(symbol_of, streams))), next(iter(self.pending), None))
        self.pending.pop(number, None)
        self.venue.count("error")
        return Notice(ERROR, number, text[:200])

    def lost(self, symbols, error, recv_ns):
        """What these books were told cannot be read; return the error to raise. None among them: nobody knows whose."""
        if not all(type(symbol) is str for symbol in symbols):
            return self.broken(self.books, f"a message may have been of a book: {error}", recv_ns)
        for instrument in filter(None, map(self.venue.named, symbols)):
            self.sink.stale(instrument, "bad_message", recv_ns)
        return error


class ExchangeSession(CoinbaseSession):

    def __init__(self, venue):
        super().__init__(venue)
        self.trade_ids = {}             # instrument -> the last one

    def texts(self, kind, streams):
        """A2. Product ids are in the channels; beside channels that are objects they were refused (2023)."""
        for part in packed(streams, STREAMS_PER_COMMAND):
            channels = {}
            for stream in part:
                channel, _, symbol = stream.partition(":")
                channels.setdefault(channel, []).append(symbol)
            if kind == "subscribe":
                channels["heartbeat"] = list(dict.fromkeys(map(self.venue.symbol_of, part)))
            yield json.dumps({"type": kind, "channels": [
                {"name": name, "product_ids": symbols} for name, symbols in channels.items()]}), part

    def decode_json(self, payload, recv_ns):
        venue = self.venue
        try:
            message = venue.parse(payload)
            kind = message.get("type") if isinstance(message, dict) else None
            if type(kind) is not str:
                raise venue.fault("no object with a type", payload)
        except VenueError as error:
            raise self.lost([None], error, recv_ns) from None
        if kind in ("snapshot", "l2update"):
            try:
                return self.read_book(kind, message, payload, recv_ns)
            except (VenueError, NumberError) as error:
                raise self.lost([message.get("product_id")], error, recv_ns) from None
        if kind == "subscriptions":
            return self.read_subscriptions(message, payload)
        if kind == "error":
            words = (venue.need(message, key, str, payload) for key in ("message", "reason") if key in message)
            return self.refused(": ".join(words))
        if kind == "match":
            return self.read_trade(message, payload, recv_ns)
        if kind == "ticker":
            return self.read_ticker(message, payload, recv_ns)
        venue.count(kind[:40])          # "clients are expected to ignore messages they do not support"
        return Notice(ALIVE, None, "") if kind == "heartbeat" else None

    def read_book(self, kind, message, payload, recv_ns):
        """A4. Size 0 removes. In 2021 a few sizes were negative or NaN; such a level is unknown, and so is the book."""
        venue = self.venue
        symbol = venue.need(message, "product_id", str, payload)
        event_ns = venue.need_ns(message, "time", payload) if "time" in message else 0
        if kind == "snapshot":
            sides, place = (message.get("bids"), message.get("asks")), 0
        else:
            changes = venue.need_list(message, "changes", list, payload)
            sides, place = [[change for change in changes if change[:1] == [side]] for side in ("buy", "sell")], 1
            if len(sides[0]) + len(sides[1]) != len(changes):
                raise venue.fault("a change is of neither side", payload)
        instrument = venue.instrument(symbol)
        if instrument is None:
            return
        bids, asks = venue.levels(instrument, sides, payload, place, place + 1)
        venue.count(kind)
        sequence = self.books[instrument] = self.books.get(instrument, self.base) + 1
        if kind == "snapshot":
            self.sink.snapshot(instrument, sequence, event_ns, recv_ns, bids, asks)
        else:
            self.sink.depth(instrument, sequence, sequence, None, event_ns, recv_ns, bids, asks)

    def read_trade(self, message, payload, recv_ns):
        """A6. Ids count the product's trades one by one; `matches` may lose some, which is counted."""
        venue = self.venue
        trade_id, sequence = (venue.need(message, key, int, payload) for key in ("trade_id", "sequence"))
        event_ns = venue.need_ns(message, "time", payload)
        side = AGGRESSOR.get(venue.need(message, "side", str, payload))
        texts = [venue.need(message, key, str, payload) for key in ("price", "size")]
        symbol = venue.need(message, "product_id", str, payload)
        if side is None:
            raise venue.fault(f"'side' is {message['side']!r:.40}, expected buy or sell", payload)
        instrument = venue.instrument(symbol)
        if instrument is None:
            return
        venue.trades([(instrument, sequence, event_ns, recv_ns, trade_id, *texts, side)])
        venue.count("trade")
        if trade_id > self.trade_ids.get(instrument, trade_id) + 1:
            venue.count("trades are missing before a trade")
        self.trade_ids[instrument] = trade_id

    def read_ticker(self, message, payload, recv_ns):
        """A7. Sent on trades only."""
        venue = self.venue
        sequence = venue.need(message, "sequence", int, payload)
        event_ns = venue.need_ns(message, "time", payload) if "time" in message else 0
        instrument = venue.instrument(venue.need(message, "product_id", str, payload))
        if instrument is not None:
            sizes = "best_bid_size", "best_ask_size"
            quote = venue.quote(instrument, message, sizes, sequence, event_ns, recv_ns, payload)
            if quote is not None:
                self.sink.bbo(*quote)

    def read_subscriptions(self, message, payload):
        """A2. level2_batch is another name of level2_50, so either may come back."""
        active = set()
        for channel in self.venue.need_list(message, "channels", dict, payload):
            name, symbols = channel.get("name"), channel.get("product_ids")
            if type(symbols) is not list:
                raise self.venue.fault("a channel has no list of products", payload)
            active.update(f"{'level2_batch' if name == 'level2_50' else name}:{symbol}" for symbol in symbols)
        return self.granted(active)


class CoinbaseExchange(Coinbase):
    name = "coinbase_exchange"
    names = {"depth": "level2_batch", "trade": "matches", "bbo": "ticker"}       # A2: level2 wants a key
    hosts = ("ws-feed.exchange.coinbase.com", "ws-direct.exchange.coinbase.com", "ws-feed.pro.coinbase.com",
             "ws-feed-public.sandbox.exchange.coinbase.com", "ws-direct.sandbox.exchange.coinbase.com")
    rest_hosts = ("api.exchange.coinbase.com", "api-public.sandbox.exchange.coinbase.com", "api.pro.coinbase.com")
    id_key, tick_key = "id", "quote_increment"
    follows = staticmethod(follows_by_one)
    facts = VenueFacts(
        "Coinbase Exchange", "no numbers; a loss ends the connection", (("depth", "trade", "bbo"),), SYMBOL, "BTC-USD",
        {"channels": ["depth", "trade"], "streams_per_connection": 60, "max_message_bytes": MAX_SNAPSHOT_BYTES},
        command_every_ms=50, connect_every_ms=150, splits=True,
        notes="8 connects/s and 100 texts/s an address; the first text within 5 s; books every 50 ms")

    def session(self):
        return ExchangeSession(self)

    def named(self, symbol):
        return self.instruments.find(self.name, symbol)

    def instruments_request(self, symbols):
        return Request("/products", 1)


class AdvancedSession(CoinbaseSession):

    def __init__(self, venue):
        super().__init__(venue)
        self.expected = None            # the next sequence_num; of the first message it may be any

    def hello(self, request_id):
        """B2, B3: without heartbeats a channel that is quiet for a minute is closed."""
        return [Command('{"type":"subscribe","channel":"heartbeats"}', {})]

    def texts(self, kind, streams):
        by_channel = {}
        for stream in streams:
            by_channel.setdefault(stream.partition(":")[0], []).append(stream)
        for channel, its in by_channel.items():
            for part in packed(its, STREAMS_PER_COMMAND):
                symbols = list(map(self.venue.symbol_of, part))
                yield json.dumps({"type": kind, "product_ids": symbols, "channel": channel}), part

    def decode_json(self, payload, recv_ns):
        """B4. What is no JSON has no number; the next message tells whether it was one of the count."""
        venue = self.venue
        message = venue.parse(payload)
        if not isinstance(message, dict):
            raise venue.fault("no object", payload)
        if message.get("type") == "error" and "sequence_num" not in message:
            return self.refused(venue.need(message, "message", str, payload))
        try:
            number = venue.need_count(message, "sequence_num", payload)
            channel = venue.need(message, "channel", str, payload)
        except VenueError as error:
            raise self.lost([None], error, recv_ns) from None
        expected = number if self.expected is None else self.expected
        if number < expected:
            return venue.count("already counted")
        self.expected = number + 1
        if number > expected:
            raise self.broken(self.books, f"sequence_num {number} came, expected {expected}", recv_ns)
        symbols = [None]                # whose books it is about, when that is known
        try:
            events = venue.need_list(message, "events", dict, payload)
            symbols = [event.get("product_id") for event in events]
            event_ns = venue.need_ns(message, "timestamp", payload)
            return self.read(channel, events, number, event_ns, payload, recv_ns)
        except (VenueError, NumberError) as error:
            raise self.lost(symbols, error, recv_ns) if channel == "l2_data" else error

    def read(self, channel, events, number, event_ns, payload, recv_ns):
        if channel == "l2_data":
            return self.read_books(events, number, event_ns, payload, recv_ns)
        if channel == "market_trades":
            return self.read_trades(events, payload, recv_ns)
        if channel == "ticker":
            return self.read_tickers(events, event_ns, payload, recv_ns)
        if channel == "subscriptions":
            return self.read_subscriptions(events, payload)
        self.venue.count(channel[:40])
        return Notice(ALIVE, None, "") if channel == "heartbeats" else None

    def read_books(self, events, number, event_ns, payload, recv_ns):
        """B4. Several events of one product are scaled together, since a later one may widen it."""
        venue, by_symbol = self.venue, {}
        for event in events:
            kind, updates = venue.need(event, "type", str, payload), venue.need_list(event, "updates", dict, payload)
            if kind not in ("snapshot", "update"):
                raise venue.fault(f"'type' is {kind!r:.40}, expected snapshot or update", payload)
            bids, asks = ([update for update in updates if update.get("side") == side] for side in ("bid", "offer"))
            if len(bids) + len(asks) != len(updates):
                raise venue.fault("an update is of neither side", payload)
            # One event_time in all updates of a message, as recorded; 1970 in old snapshots.
            time_ns = updates and venue.need_ns(updates[-1], "event_time", payload) or event_ns
            by_symbol.setdefault(venue.need(event, "product_id", str, payload), []).append((kind, time_ns, bids, asks))
        calls = []
        for symbol, told in by_symbol.items():
            instrument = venue.instrument_of(symbol)
            if instrument is not None:
                sides = [rows for _, _, *both in told for rows in both]
                levels = venue.levels(instrument, sides, payload, "price_level", "new_quantity")
                calls += [(instrument, kind, time_ns, *levels[2 * at:2 * at + 2])
                          for at, (kind, time_ns, *_) in enumerate(told)]
        sequence = self.base + number
        for instrument, kind, time_ns, bids, asks in calls:
            venue.count(kind)
            previous, self.books[instrument] = self.books.get(instrument), sequence
            if kind == "snapshot":
                self.sink.snapshot(instrument, sequence, time_ns, recv_ns, bids, asks)
            else:
                self.sink.depth(instrument, sequence, sequence, previous, time_ns, recv_ns, bids, asks)

    def read_trades(self, events, payload, recv_ns):
        """B6. A batch of 250 ms, in no promised order; the snapshot is of trades that were told before."""
        venue, calls = self.venue, []
        for event in events:
            if event.get("type") != "update":
                venue.count("old trades")
                continue
            for trade in venue.need_list(event, "trades", dict, payload):
                side = AGGRESSOR.get(venue.need(trade, "side", str, payload).lower())
                if side is None:
                    raise venue.fault(f"'side' is {trade['side']!r:.40}, expected BUY or SELL", payload)
                trade_id = trade_id_of(venue.need(trade, "trade_id", str, payload))
                event_ns = venue.need_ns(trade, "time", payload)
                texts = [venue.need(trade, key, str, payload) for key in ("price", "size")]
                instrument = venue.instrument_of(venue.need(trade, "product_id", str, payload))
                if instrument is not None:
                    calls.append((instrument, trade_id, event_ns, recv_ns, trade_id, *texts, side))
        venue.count("trade")
        venue.trades(sorted(calls, key=lambda call: call[4]))

    def read_tickers(self, events, event_ns, payload, recv_ns):
        """B7. On trades only, and behind the book. Of several of one product the last one is the best price."""
        venue, newest = self.venue, {}
        for event in events:
            for ticker in venue.need_list(event, "tickers", dict, payload):
                newest[venue.need(ticker, "product_id", str, payload)] = ticker
        quotes = []
        for symbol, ticker in newest.items():
            instrument = venue.instrument_of(symbol)
            if instrument is not None:
                sizes = "best_bid_quantity", "best_ask_quantity"
                quotes.append(venue.quote(instrument, ticker, sizes, 0, event_ns, recv_ns, payload))
        for quote in filter(None, quotes):
            self.sink.bbo(*quote)

    def read_subscriptions(self, events, payload):
        """B8: where BTC-USDC was asked for, BTC-USD may be what is told."""
        active = set()
        for event in events:
            channels = event.get("subscriptions")
            if type(channels) is not dict or not all(type(symbols) is list for symbols in channels.values()):
                raise self.venue.fault("a channel has no list of products", payload)
            active.update(f"{name}:{symbol}" for name, symbols in channels.items() for symbol in symbols)
        active |= {stream + "C" for stream in active if stream.endswith("-USD")}
        return self.granted(active)


class CoinbaseAdvanced(Coinbase):
    name = "coinbase"
    names = {"depth": "level2", "trade": "market_trades", "bbo": "ticker"}
    hosts = ("advanced-trade-ws.coinbase.com",)
    rest_hosts = ("api.coinbase.com",)
    id_key, tick_key = "product_id", "price_increment"
    facts = VenueFacts(
        "Coinbase Advanced Trade", "one count over the connection", (("depth", "trade", "bbo"),), SYMBOL, "BTC-USD",
        {"channels": ["depth", "trade"], "streams_per_connection": 40, "max_message_bytes": MAX_SNAPSHOT_BYTES},
        # B2: 8 texts/s of an address, not of a connection; each begins with three.
        command_every_ms=250, connect_every_ms=500, splits=True,
        notes="8 connects/s, 8 texts/s an address; first text within 5 s; a lost message costs its connection's books")

    def session(self):
        return AdvancedSession(self)

    def named(self, symbol):
        """B8: the messages of X-USDC may name X-USD, which is the same book."""
        find = self.instruments.find
        return find(self.name, symbol) or (find(self.name, symbol + "C") if symbol.endswith("-USD") else None)

    def instrument_of(self, symbol):
        return self.named(symbol) or self.instrument(symbol)

    @staticmethod
    def follows(sequence, bridged, first, last, previous):
        """The session counts the connection; an increment names the book's last event there."""
        return NEXT if previous == sequence else OLD if last <= sequence else GAP

    def instruments_request(self, symbols):
        return Request("/api/v3/brokerage/market/products", 1)
