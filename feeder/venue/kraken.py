"""Kraken spot: WebSocket v2; of v1, which is frozen, what its recordings need.

Source: the exchange's fact sheet of 2026-07 (docs.kraken.com), section numbers in the comments; recordings of 2021 (v1)
and 2026 (v2).

| message of v2                          | role        | action                                                  |
| channel book, type snapshot            | snapshot    | verified, sink.snapshot                                 |
| channel book, type update              | increment   | cut to the depth, verified, sink.depth                  |
| channel trade, type update             | trades      | sink.trade each; side is the taker's                    |
| the same, type snapshot                | old trades  | counted; not asked for                                  |
| channel ticker                         | BBO         | sink.bbo; event_trigger bbo is asked for                |
| channel status                         | notice      | not online: books may cross; after maintenance: SHUTDOWN |
| channel heartbeat, method pong         | alive       | Notice                                                  |
| method subscribe, unsubscribe, success | ack         | Notice, one for each symbol of a request                |
| the same, success false                | error       | Notice, with the symbol; the others of the request live |
| other channels                         | not ours    | counted by name                                         |
| anything else                          | fault       | VenueError                                              |

| message of v1                               | role                        |
| [id, {as, bs}, "book-DEPTH", pair]          | snapshot, without checksum  |
| [id, {a, b, c}, .., "book-DEPTH", pair]     | increment; sides in one object or two; "r" marks nothing |
| [id, rows, "trade", pair]                   | trades, without ids         |
| {"event": ..}                               | counted                     |

Updates of books have a likely path: their text is matched as a whole, at the decimals the pair is known to print, so
that its digits are the numbers and the checksum's, too. 9 us a message instead of 23, of which `json` is 2.

Nothing is numbered. The proof is the checksum of each book message (§5), over the ten best levels a side as they were
printed; so a Mirror keeps these digits. Below those ten a lost message would not show: one that cannot be read at all
breaks the line, one that says whose book it was costs that book.
"""

import json
import re
from urllib.parse import urlsplit
from zlib import crc32

from feeder import fixed
from feeder.errors import NumberError, VenueError
from feeder.message import BUY, SELL
from feeder.venue import shape
from feeder.venue.contract import (ACK, ALIVE, ERROR, SHUTDOWN, STREAM, Command, Line, Listing, Notice, Ping, Request,
                                   Session, Venue, VenueFacts, exact_json, follows_by_one, iso_ns, packed,
                                   plain_json)
from feeder.venue.mirror import Mirror

DEPTHS = (10, 25, 100, 500, 1000)       # §2
CHECKED_LEVELS = 10                     # §5, whatever the depth
SYMBOLS_PER_REQUEST = 100               # ours; no limit is documented
HOSTS = ("ws.kraken.com", "beta-ws.kraken.com")
SIDES = {"buy": BUY, "sell": SELL, "b": BUY, "s": SELL}
STREAMS = {"depth": "book-{levels}", "trade": "trade", "bbo": "ticker"}
PARAMETERS = {"trade": {"snapshot": False}, "ticker": {"event_trigger": "bbo"}}
HEAD = b'{"channel":"book","type":"update","data":[{"symbol":"'
UPDATE = (re.escape(HEAD) + shape.ANY_NAME + rb'","bids":\[%(rows)b\],"asks":\[%(rows)b\],'
          rb'"checksum":(0|[1-9][0-9]{0,9}),'
          rb'"timestamp":"(20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8})\.([0-9]{6})([0-9]{3})?Z"\}\]\}\Z')
NEW_NAMES = {"XBT": "BTC", "XDG": "DOGE"}            # §8: of v1 and REST


def renamed(pair):
    """Return a pair of v1 or REST as v2 spells it."""
    return "/".join(NEW_NAMES.get(each, each) for each in pair.split("/"))


def printed(text, number):
    """Return the digits of a number that a checksum is made of; `number` is the same, scaled."""
    return str(number) if "e" in text or "E" in text else text.replace(".", "").lstrip("0")


def update_pattern(instrument):
    """Return match(update of its book) -> (bids, asks, checksum, second, microseconds, nanoseconds) or None.

    None where its decimals leave no digits before the point.
    """
    numbers = []
    for what in ("price", "quantity"):
        decimals, whole = getattr(instrument, what + "_decimals"), 17 + getattr(instrument, what + "_exponent")
        if whole < 0:
            return None
        numbers.append(b"(?:0|[1-9][0-9]{0,%d})" % whole + (rb"\.[0-9]{%d}" % decimals if decimals else b""))
    row, more = rb'\{"price":%b,"qty":%b\}' % tuple(numbers), shape.POSSESSIVE
    return re.compile(UPDATE % {b"rows": b"((?:%b(?:,%b)*%b)?%b)" % (row, row, more, more)}).match


def cut_rows(text):
    """Return [price, quantity, ...] of text that the pattern has matched: without its points, digits are the ints."""
    return list(map(int, text.translate(None, b'{}":.priceqty').split(b","))) if text else []


def checksum_of(mirror):
    """§5: asks from the lowest, then bids from the highest."""
    return crc32("".join(mirror.asks.top(CHECKED_LEVELS) + mirror.bids.top(CHECKED_LEVELS)).encode())


class Kraken(Venue):
    name = "kraken"
    book = STREAM
    loads = staticmethod(exact_json)
    follows = staticmethod(follows_by_one)
    facts = VenueFacts(
        "Kraken spot v2", "a checksum in each message", (("depth", "trade", "bbo"),),
        re.compile(r"[A-Z0-9.]+x?/[A-Z0-9.]+"), "BTC/USD",
        {"snapshot_limit": 100, "connects_per_5_minutes": 60, "streams_per_connection": 300},
        snapshot_limits=DEPTHS, ping=Ping('{"method":"ping"}', 20), connect_every_ms=5_000,
        notes="150 connects in 10 min (then banned for 10 min), in maintenance one in 5 s; any number of symbols a "
        "connection, one depth a symbol")

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        if parts.scheme in ("ws", "wss"):
            return parts.hostname in HOSTS and parts.path.rstrip("/") == "/v2"
        return parts.hostname == "api.kraken.com" and parts.path.startswith("/0/public/")

    @classmethod
    def spelling(cls, base, quote):
        return f"{base}/{quote}"

    @classmethod
    def common_name(cls, symbol):
        return symbol

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        streams = [f"{STREAMS[channel].format(levels=levels)}:{symbol}" for channel in channels for symbol in symbols]
        return [Line("/v2", part) for part in packed(streams, streams_per_connection)]

    def symbol_of(self, stream):
        return stream.partition(":")[2]

    def session(self):
        return KrakenSession(self)

    def instruments_request(self, symbols):
        return Request("/0/public/AssetPairs", 1)

    def decode_instruments(self, body):
        answer = self.parse(body)
        try:
            if answer["error"]:
                raise self.fault(f"the venue says: {', '.join(answer['error'])[:100]}", body)
            found = {}
            for entry in answer["result"].values():
                tick, lot = (fixed.to_text(1, int(entry[key])) for key in ("pair_decimals", "lot_decimals"))
                if "wsname" in entry:             # dark pools have none
                    found[renamed(entry["wsname"])] = Listing(entry.get("tick_size", tick), lot)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self.fault(f"instrument list without {error}", body) from None
        if not found:
            raise self.fault("instrument list without pairs", body)
        return found


class KrakenSession(Session):

    def __init__(self, venue):
        super().__init__(venue)
        self.depths = {}              # symbol -> levels a side subscribed
        self.mirrors = {}             # symbol -> Mirror
        self.alike = {}               # symbol, as bytes -> (mirror, decimals, match): how its updates look
        self.second = self.second_ns = None              # the last one seen in a time
        self.system = None            # online, ...; None: not said yet

    # -- texts -----------------------------------------------------------------------------------------------

    def subscribe(self, streams, request_id, method="subscribe"):
        """§2. Each symbol is acknowledged by itself."""
        by_channel = {}
        for stream in streams:
            by_channel.setdefault(stream.partition(":")[0], []).append(stream)
        commands = []
        for channel, of_channel in by_channel.items():
            name, _, depth = channel.partition("-")
            for part in packed(of_channel, SYMBOLS_PER_REQUEST):
                symbols = [self.venue.symbol_of(stream) for stream in part]
                parameters = {"channel": name, "symbol": symbols, **PARAMETERS.get(name, {})}
                if depth:
                    parameters["depth"] = int(depth)
                    self.depths.update(dict.fromkeys(symbols, int(depth)))
                number = request_id + len(commands)
                text = json.dumps({"method": method, "params": parameters, "req_id": number})
                keys = {f"{number} {symbol}": [stream] for symbol, stream in zip(symbols, part)}
                commands.append(Command(text, keys))
        return commands

    def unsubscribe(self, streams, request_id):
        return self.subscribe(streams, request_id, "unsubscribe")

    # -- what is lost ----------------------------------------------------------------------------------------

    def lost(self, what, recv_ns):
        """Return the BrokenLine for a message that may have been of any book."""
        for mirror in self.mirrors.values():
            mirror.void()
        instruments = [mirror.instrument for mirror in self.mirrors.values()]
        return self.broken(instruments, what.removeprefix(f"{self.name}: "), recv_ns)

    def give_up(self, instrument, reason, recv_ns):
        if instrument.symbol in self.mirrors:
            self.mirrors[instrument.symbol].void()
        self.sink.stale(instrument, reason, recv_ns)

    def parse(self, payload, recv_ns):
        try:
            return self.venue.parse(payload)
        except VenueError as error:
            raise self.lost(str(error), recv_ns) from None

    # -- decoding: the likely path ---------------------------------------------------------------------------

    def decode(self, payload, recv_ns):
        alike = self.alike.get(payload[len(HEAD):payload.find(b'"', len(HEAD))])
        if alike is not None and self.cut_update(*alike, payload, recv_ns):
            self.venue.likely += 1
            return None
        return super().decode(payload, recv_ns)

    def cut_update(self, mirror, decimals, match, payload, recv_ns):
        """Return False for a message that only looks alike, before anything has come of it."""
        found = match(payload)
        instrument = mirror.instrument
        if found is None or decimals != (instrument.price_decimals, instrument.quantity_decimals):
            return False
        mirror.fit()
        bids, asks, checksum, second, microseconds, nanoseconds = found.groups()
        if second != self.second:
            try:
                self.second_ns, self.second = iso_ns(second.decode() + "Z"), second
            except NumberError:
                return False
        levels = cut_rows(bids), cut_rows(asks)
        if not mirror.is_known or not all(map(all, (side[::2] for side in levels))):
            return False
        digits = [[f"{price}{quantity}" for price, quantity in zip(side[::2], side[1::2])] for side in levels]
        event_ns = self.second_ns + int(microseconds) * 1_000 + int(nanoseconds or 0)
        self.change(mirror, levels, digits, int(checksum), event_ns, recv_ns)
        return True

    def learn(self, mirror):
        """After an update that json has read: from now on this book's look like this."""
        instrument, symbol = mirror.instrument, mirror.instrument.symbol.encode()
        decimals = instrument.price_decimals, instrument.quantity_decimals
        if symbol not in self.alike or self.alike[symbol][1] != decimals:
            match = update_pattern(instrument)
            if match is not None:
                self.alike[symbol] = mirror, decimals, match

    # -- decoding: the unlikely path -------------------------------------------------------------------------

    def decode_json(self, payload, recv_ns):
        message = self.parse(payload, recv_ns)
        venue = self.venue
        if not isinstance(message, dict):
            raise venue.fault("no object", payload)
        channel = message.get("channel")
        if channel == "book":
            return self.read_book(message, payload, recv_ns)
        if channel == "trade":
            return self.read_trades(message, payload, recv_ns)
        if channel == "heartbeat":
            venue.count(channel)
            return Notice(ALIVE, None, "")
        if channel is None:
            return self.read_answer(message, payload)
        if channel == "ticker":
            return self.read_bbo(self.only(message, payload), payload, recv_ns)
        if channel == "status":
            return self.on_status(venue.need(self.only(message, payload), "system", str, payload))
        if type(channel) is not str:
            raise venue.fault("channel is no text", payload)
        return venue.count(channel)

    def only(self, message, payload):
        """Return the one object in `data`."""
        data = message.get("data")
        if not isinstance(data, list) or len(data) != 1 or not isinstance(data[0], dict):
            raise self.venue.fault("'data' is not a list of one object", payload)
        return data[0]

    def read_answer(self, message, payload):
        """§2, §3."""
        method, error, symbol = (message.get(key) for key in ("method", "error", "symbol"))
        venue = self.venue
        if method == "pong":
            venue.count("pong")
            return Notice(ALIVE, None, "")
        if type(error) is str:
            venue.count("error")
            key = f"{message.get('req_id')} {symbol}" if type(symbol) is str else None
            return Notice(ERROR, key, f"{symbol}: {error}"[:200] if key else error[:200])
        result, is_done = message.get("result"), message.get("success") is True
        if method not in ("subscribe", "unsubscribe") or not is_done or not isinstance(result, dict):
            raise venue.fault("unknown message", payload)
        venue.count("ack")
        symbol = venue.need(result, "symbol", str, payload)
        if result.get("channel") == "book" and len(self.depths) < venue.instruments.limit:
            self.depths[symbol] = venue.need_count(result, "depth", payload)
        return Notice(ACK, (f"{message.get('req_id')} {symbol}",), "")

    def on_status(self, system):
        """§3. Nothing is matched but online; what maintenance did to the books is not told."""
        before, self.system = self.system, system
        self.venue.count(f"status {system[:20]}")
        for mirror in self.mirrors.values():
            self.venue.set_auction(mirror.instrument, system != "online")
        if before == "maintenance" and system == "online" and self.mirrors:
            return Notice(SHUTDOWN, None, "online again after maintenance: all is subscribed anew")
        return Notice(ALIVE, None, "")

    def read_book(self, message, payload, recv_ns):
        venue = self.venue
        try:
            data = self.only(message, payload)
            symbol = venue.need(data, "symbol", str, payload)
        except VenueError as error:
            raise self.lost(str(error), recv_ns) from None
        instrument = venue.instrument(symbol)
        if instrument is None:
            return None
        try:
            kind = message.get("type")
            if kind not in ("snapshot", "update"):
                raise venue.fault("no book", payload)
            rows = data.get("bids"), data.get("asks")
            levels = venue.levels(instrument, rows, payload, "price", "qty")
            checksum = venue.need_count(data, "checksum", payload)
            event_ns = venue.need_ns(data, "timestamp", payload) if "timestamp" in data else 0
        except (VenueError, NumberError):
            self.give_up(instrument, "bad_message", recv_ns)
            raise
        texts = [[(row["price"], row["qty"]) for row in side] for side in rows]
        self.take_book(instrument, kind == "snapshot", levels, texts, checksum, event_ns, recv_ns)
        if kind == "update" and symbol in self.mirrors:
            self.learn(self.mirrors[symbol])

    def take_book(self, instrument, is_snapshot, levels, texts, checksum, event_ns, recv_ns):
        """Apply, verify, hand on. `texts` as the levels were printed; checksum None: the message has none."""
        venue, mirror = self.venue, self.mirrors.get(instrument.symbol)
        digits = [[printed(price, flat[2 * at]) + printed(quantity, flat[2 * at + 1])
                   for at, (price, quantity) in enumerate(side)] for side, flat in zip(texts, levels)]
        if is_snapshot:
            if mirror is None:
                mirror = self.mirrors[instrument.symbol] = Mirror(instrument, self.number)
                venue.set_auction(instrument, self.system not in (None, "online"))
            fewest = max(map(len, texts))             # where nobody said the depth: the recording began later
            mirror.depth = self.depths.get(instrument.symbol) or next(
                (depth for depth in DEPTHS if depth >= fewest), fewest)
            bids, asks = mirror.snapshot(*levels, *digits)
            if self.proved(mirror, checksum, recv_ns):
                self.sink.snapshot(instrument, mirror.sequence, event_ns, recv_ns, bids, asks)
            return
        if mirror is not None:
            mirror.fit()
        if mirror is None or not mirror.is_known:
            return venue.count("update without a book")
        self.change(mirror, levels, digits, checksum, event_ns, recv_ns)

    def change(self, mirror, levels, digits, checksum, event_ns, recv_ns):
        bids, asks = mirror.change(*levels, *digits)
        if self.proved(mirror, checksum, recv_ns):
            self.sink.depth(mirror.instrument, mirror.sequence, mirror.sequence, None, event_ns, recv_ns, bids, asks)

    def proved(self, mirror, checksum, recv_ns):
        """§5. What is not, is never handed on."""
        if checksum is not None:
            if checksum != checksum_of(mirror):
                self.venue.checksums_failed += 1
                self.give_up(mirror.instrument, "checksum", recv_ns)
                return False
            mirror.instrument.verified += 1
        return True

    def read_trades(self, message, payload, recv_ns):
        venue, entries = self.venue, message.get("data")
        if message.get("type") == "snapshot":
            return venue.count("old trades")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise venue.fault("no trades", payload)
        calls = []
        for entry in entries:
            texts = [venue.need(entry, key, str, payload) for key in ("price", "qty")]
            event_ns = venue.need_ns(entry, "timestamp", payload)
            trade_id = venue.need_count(entry, "trade_id", payload)
            side = SIDES.get(venue.need(entry, "side", str, payload))
            if side is None:
                raise venue.fault(f"'side' is {entry['side']!r:.40}, expected buy or sell", payload)
            instrument = venue.instrument(venue.need(entry, "symbol", str, payload))
            if instrument is not None:
                calls.append((instrument, trade_id, event_ns, recv_ns, trade_id, *texts, side))
        venue.count("trade")
        venue.trades(calls)

    def read_bbo(self, data, payload, recv_ns):
        """§7. A change of the quantity alone is not promised."""
        venue = self.venue
        texts = [venue.need(data, key, str, payload) for key in ("bid", "ask", "bid_qty", "ask_qty")]
        event_ns = venue.need_ns(data, "timestamp", payload) if "timestamp" in data else 0
        instrument = venue.instrument(venue.need(data, "symbol", str, payload))
        if instrument is None:
            return
        bid, ask = venue.scaled(instrument, texts[:2], "price")
        bid_quantity, ask_quantity = venue.scaled(instrument, texts[2:], "quantity")
        if not (bid and ask):
            return venue.count("bbo without a side")
        venue.count("bbo")
        self.sink.bbo(instrument, 0, event_ns, recv_ns, bid, bid_quantity, ask, ask_quantity)


class KrakenV1(Kraken):
    """For replay only: no facts, nothing to subscribe with."""

    name = "kraken_v1"
    loads = staticmethod(plain_json)
    facts = None

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and parts.hostname in HOSTS and parts.path in ("", "/")

    @classmethod
    def common_name(cls, symbol):
        return renamed(symbol)

    def session(self):
        return KrakenV1Session(self)


class KrakenV1Session(KrakenSession):

    def decode_json(self, payload, recv_ns):
        message = self.parse(payload, recv_ns)
        venue = self.venue
        if isinstance(message, dict):
            venue.count(venue.need(message, "event", str, payload))
            return Notice(ALIVE, None, "")
        if not isinstance(message, list) or len(message) < 4 or not all(type(text) is str for text in message[-2:]):
            raise self.lost(str(venue.fault("no channel and pair", payload)), recv_ns)
        *_, channel, pair = message
        if channel.startswith("book-"):
            return self.read_book_of(pair, channel, message[1:-2], payload, recv_ns)
        if channel == "trade":
            return self.read_trades_of(pair, message[1], payload, recv_ns)
        return venue.count(channel)

    def read_book_of(self, pair, channel, parts, payload, recv_ns):
        venue = self.venue
        instrument = venue.instrument(pair)
        if instrument is None:
            return
        try:
            if not all(isinstance(part, dict) for part in parts):
                raise venue.fault("no book", payload)
            data = {key: value for part in parts for key, value in part.items()}
            is_snapshot = "as" in data
            rows = [data.get(key, []) for key in (("bs", "as") if is_snapshot else ("b", "a"))]
            levels = venue.levels(instrument, rows, payload)
            checksum = None if is_snapshot else venue.need_count(data, "c", payload)
            event_ns = max((seconds_ns(row, 2) for side in rows for row in side), default=0)
            depth = channel.partition("-")[2]
            self.depths[pair] = int(depth) if depth.isascii() and depth.isdigit() and len(depth) < 6 else 0
        except (VenueError, NumberError):
            self.give_up(instrument, "bad_message", recv_ns)
            raise
        texts = [[row[:2] for row in side] for side in rows]
        self.take_book(instrument, is_snapshot, levels, texts, checksum, event_ns, recv_ns)

    def read_trades_of(self, pair, rows, payload, recv_ns):
        """Trades have no ids here: 0."""
        venue = self.venue
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) >= 4 and all(
                type(text) is str for text in row[:4]) and row[3] in SIDES for row in rows):
            raise venue.fault("no trades", payload)
        times = [seconds_ns(row, 2) for row in rows]
        instrument = venue.instrument(pair)
        if instrument is not None:
            venue.count("trade")
            venue.trades([(instrument, 0, event_ns, recv_ns, 0, row[0], row[1], SIDES[row[3]])
                          for event_ns, row in zip(times, rows)])


def seconds_ns(row, at):
    """Return a time in seconds, as decimal text in a row, as ns. Raises NumberError."""
    if len(row) <= at or type(row[at]) is not str:
        raise NumberError(f"{row!r:.60} has no time")
    return max(0, fixed.parse(row[at], 9))
