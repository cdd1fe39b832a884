"""Binance spot, USD-M and COIN-M futures.

Source: exchanges' fact sheets of 2026-09 (developers.binance.com), section numbers in the comments; recordings
of 2021 to 2024. The three differ in endpoints, weights and in the rule that links depth updates.

| message                                | role        | action                                         |
| depthUpdate on @depth, @depth@…ms      | increment   | sink.depth, linked by U/u (spot) or pu (futures) |
| trade, aggTrade                        | trade       | sink.trade; `m` true: the taker sold; X other than MARKET: none |
| bookTicker (spot has no "e")           | BBO         | sink.bbo                                       |
| {"result":null,"id":n}                 | ack         | Notice                                         |
| {"code":..,"msg":..}, {"error":{..}}   | error       | Notice                                         |
| serverShutdown                         | notice      | Notice: reconnect at once                      |
| @depth5/10/20, kline, 24hrTicker, ...  | not ours    | counted by name                                |
| anything else                          | fault       | VenueError                                     |
"""

import json
import re
from urllib.parse import parse_qs, quote, urlsplit

from feeder.errors import VenueError
from feeder.message import BUY, SELL
from feeder.venue import shape
from feeder.venue.contract import (ACK, ERROR, GAP, INT64, NEXT, OLD, SHUTDOWN, Command, Line, Listing, Notice, Request,
                                   Venue, VenueFacts, packed)
from feeder.venue.shape import ZERO, ZEROS, cut_levels

MICROSECONDS_FROM = INT64 // 10**6  # a time from here on would not fit as ms: it is in µs (timeUnit=MICROSECOND)
MAX_TIME = INT64 // 1_000
MAX_LAYOUTS = 65_536            # a hostile venue may not make us learn for ever; some 700 bytes each
MAX_LAYOUTS_PER_INSTRUMENT = 256
MAX_PATTERNS = 512              # of levels: one for all instruments with the same decimals
STREAMS_PER_MESSAGE = 100       # §2: some 100 per SUBSCRIBE are customary

SYMBOL = re.compile(r"[^\sa-z/@?&#%,\"\\]+")      # upper case, but not only ASCII since 2025 (§1)

# A REST book, spot or futures; what is not captured is not read.
SNAPSHOT = (rb'\{"lastUpdateId":' + shape.COUNT + rb'(?:,"E":' + shape.TIME + rb',"T":' + shape.ANY_INTEGER + rb')?'
            + rb'(?:,"(?:symbol|pair)":"' + shape.ANY_NAME + rb'")*,"bids":\[%(levels)b\],"asks":\[%(levels)b\]\}\Z')

is_diff_stream = re.compile(r".+@depth(?:@[0-9]+ms)?").fullmatch


def nanoseconds(time):
    return time * 1_000_000 if time < MICROSECONDS_FROM else time * 1_000


class Binance(Venue):
    """What spot and futures share."""

    hosts = ()
    rest_hosts = ()
    paths = {"depth": "/stream", "bbo": "/stream", "trade": "/stream"}
    trade_stream = "trade"
    depth_path = instruments_path = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.layouts = {}             # head, all digits 0 -> how to read what is laid out like it, see cut_depth
        self.by_names = {}            # the same where names have digits -> {those names: how to read it}
        self.layouts_of = {}          # instrument_id -> [(head, all digits 0; names with digits)]
        self.learned = 0              # layouts in all
        self.patterns = {}            # pattern -> compiled

    # -- endpoints -------------------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        if parts.scheme in ("ws", "wss"):
            return parts.hostname in cls.hosts
        return parts.hostname in cls.rest_hosts and parts.path.startswith(cls.rest_prefixes)

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        names = {"depth": f"depth@{depth_interval_ms}ms", "trade": self.trade_stream, "bbo": "bookTicker"}
        by_path = {}
        for channel in channels:
            by_path.setdefault(self.paths[channel], []).extend(
                f"{symbol.lower()}@{names[channel]}" for symbol in symbols)
        return [Line(path, streams[at:at + streams_per_connection])
                for path, streams in by_path.items() for at in range(0, len(streams), streams_per_connection)]

    def subscribe(self, streams, request_id, method="SUBSCRIBE"):
        return [Command(json.dumps({"method": method, "params": part, "id": number}, ensure_ascii=False), {number: part})
                for number, part in enumerate(packed(streams, STREAMS_PER_MESSAGE), request_id)]

    def unsubscribe(self, streams, request_id):
        return self.subscribe(streams, request_id, "UNSUBSCRIBE")

    def symbol_of(self, stream):
        return stream.partition("@")[0].upper()

    def instruments_request(self, symbols):
        return Request(self.instruments_path, self.instruments_weight)

    def decode_instruments(self, body):
        answer = self.parse(body)
        try:
            found = {}
            for entry in answer["symbols"]:
                filters = {each["filterType"]: each for each in entry["filters"]}
                found[entry["symbol"]] = Listing(filters["PRICE_FILTER"]["tickSize"], filters["LOT_SIZE"]["stepSize"])
            return found
        except (KeyError, TypeError) as error:
            raise self.fault(f"instrument list without {error}", body) from None

    def snapshot_request(self, instrument, levels):
        weight = next(weight for most, weight in self.facts.snapshot_weights if levels <= most)
        return Request(f"{self.depth_path}?symbol={quote(instrument.symbol)}&limit={levels}", weight)

    def snapshot_symbol(self, url):
        parts = urlsplit(url)
        if not parts.path.endswith("/depth"):
            return None
        return parse_qs(parts.query).get("symbol", [None])[0]

    # -- decoding: the likely path ---------------------------------------------------------------------------

    def decode(self, payload, recv_ns):
        at = payload.find(b"[") + 1           # levels begin there
        head = payload[:at] if at else payload
        alike = self.layouts.get(head.translate(ZEROS))
        if alike is not None and alike[0](self, alike, head, payload, recv_ns):
            self.likely += 1
            return None
        self.unlikely += 1
        return self.decode_json(payload, recv_ns)

    # `alike` is what was learned of a layout: (one of these, instrument, unpack, firsts, what that one wants). They return
    # False for a message that only looks alike. No closures: with 2,048 instruments, memory touched is time.

    def cut_depth(self, alike, head, payload, recv_ns):
        _, instrument, unpack, firsts, match = alike
        found = match(payload, len(head))
        if found is None or ZERO in firsts(head):
            return False
        time, first, last, *previous = unpack(head.replace(b".", b""))
        bids, asks = found.groups()
        self.sink.depth(instrument, int(first), int(last), int(previous[0]) if previous else None, nanoseconds(int(time)),
                        recv_ns, cut_levels(bids), cut_levels(asks))
        return True

    def cut_trade(self, alike, head, payload, recv_ns):
        _, instrument, unpack, firsts, side = alike
        if ZERO in firsts(head):
            return False
        trade_id, price, quantity, time = unpack(head.replace(b".", b""))
        trade_id, time = int(trade_id), int(time)
        self.sink.trade(instrument, trade_id, time * 1_000_000 if time < MICROSECONDS_FROM else time * 1_000, recv_ns,
                        trade_id, int(price), int(quantity), side)
        return True

    def cut_bbo(self, alike, head, payload, recv_ns):
        _, instrument, unpack, firsts, is_timed = alike
        if ZERO in firsts(head):
            return False
        if is_timed:
            sequence, bid, bid_quantity, ask, ask_quantity, time = unpack(head.replace(b".", b""))
            event_ns = nanoseconds(int(time))
        else:
            sequence, bid, bid_quantity, ask, ask_quantity = unpack(head.replace(b".", b""))
            event_ns = 0
        self.sink.bbo(instrument, int(sequence), event_ns, recv_ns, int(bid), int(bid_quantity), int(ask), int(ask_quantity))
        return True

    def cut_named(self, alike, head, payload, recv_ns):
        """For names with digits, which a layout does not tell apart: BTCUSD_260327 and BTCUSD_260626."""
        _, names_in, by_names = alike
        alike = by_names.get(names_in(head))
        return alike is not None and alike[0](self, alike, head, payload, recv_ns)

    def compiled(self, pattern):
        match = self.patterns.get(pattern)
        if match is None:
            match = self.patterns[pattern] = re.compile(pattern).match
        return match

    def learn(self, payload, stream, instrument, kind):
        """Learn the layout of a message that json has read and the sink has taken."""
        known = self.layouts_of.setdefault(instrument.instrument_id, [])
        if len(known) >= MAX_LAYOUTS_PER_INSTRUMENT or self.learned >= MAX_LAYOUTS or len(self.patterns) >= MAX_PATTERNS:
            return
        if not (stream.isascii() and payload.startswith(b'{"stream":"' + stream.encode() + b'","data":{')
                and payload.endswith(b"}}") and payload.count(b"{") == 2):
            return                    # what a layout reads must be where json reads it: in `data` and not deeper
        head = payload[:payload.find(b"[") + 1] or payload
        price = shape.number_slot(instrument.price_decimals, 18 + instrument.price_exponent)
        quantity = shape.number_slot(instrument.quantity_decimals, 18 + instrument.quantity_exponent)
        slots = {"depth": {b"E": shape.is_time, b"U": shape.is_count, b"u": shape.is_count, b"pu": shape.is_count},
                 "bbo": {b"u": shape.is_count, b"E": shape.is_time, b"b": price, b"B": quantity, b"a": price, b"A": quantity},
                 "trade": {b"t": shape.is_count, b"T": shape.is_time, b"p": price, b"q": quantity},
                 "aggTrade": {b"a": shape.is_count, b"T": shape.is_time, b"p": price, b"q": quantity}}[kind]
        layout = shape.learn(head, slots)
        if layout is None or (kind != "depth" and head is not payload):
            return
        try:
            alike = getattr(self, f"{kind.lower()}_alike")(instrument, layout, head, payload)
        except ValueError:            # a field came without its key: not a layout worth knowing
            return
        if alike is None:
            return
        key, names = head.translate(ZEROS), None
        if layout.literals is not None:
            names_in, names = layout.literals
            by_names = self.by_names.setdefault(key, {})
            by_names[names] = alike
            alike = Binance.cut_named, names_in, by_names
        self.layouts[key] = alike
        known.append((key, names))
        self.learned += 1

    def forget(self, instrument):
        known = self.layouts_of.pop(instrument.instrument_id, ())
        self.learned -= len(known)
        for key, names in known:
            if names is not None:
                self.by_names[key].pop(names, None)
            else:
                self.layouts.pop(key, None)

    def depth_alike(self, instrument, layout, head, payload):
        levels = self.levels_pattern(instrument)
        rest = payload[payload.rfind(b"]"):]
        if levels is None or not head.endswith(b'"b":[') or any(map(rest.count, b"0123456789")):
            return None
        match = self.compiled(levels + rb'\],"a":\[' + levels + re.escape(rest) + rb"\Z")
        if match(payload, len(head)) is None:
            return None
        linked = (b"pu",) if b"pu" in layout.names else ()
        return Binance.cut_depth, instrument, shape.in_order(layout, (b"E", b"U", b"u", *linked)), layout.firsts, match

    def trade_alike(self, instrument, layout, head, payload, id_key=b"t"):
        unpack = shape.in_order(layout, (id_key, b"p", b"q", b"T"))
        return Binance.cut_trade, instrument, unpack, layout.firsts, SELL if b'"m":true' in payload else BUY

    def aggtrade_alike(self, instrument, layout, head, payload):
        return self.trade_alike(instrument, layout, head, payload, b"a")

    def bbo_alike(self, instrument, layout, head, payload):
        timed = (b"E",) if b"E" in layout.names else ()
        unpack = shape.in_order(layout, (b"u", b"b", b"B", b"a", b"A", *timed))
        return Binance.cut_bbo, instrument, unpack, layout.firsts, bool(timed)

    def levels_pattern(self, instrument):
        """Return the pattern of levels printed at the instrument's decimals; None where they leave no digits."""
        whole_digits = 18 + instrument.price_exponent, 18 + instrument.quantity_exponent
        if min(whole_digits) < 1:
            return None
        return shape.levels(instrument.price_decimals, instrument.quantity_decimals, whole_digits)

    # -- decoding: the unlikely path -------------------------------------------------------------------------

    def decode_json(self, payload, recv_ns):
        message = self.parse(payload)
        if not isinstance(message, dict):
            if isinstance(message, list):
                return self.count("array")                  # !ticker@arr and its like
            raise self.fault("neither object nor array", payload)
        stream, data = message.get("stream"), message.get("data", message)
        if "stream" in message and not isinstance(stream, str):
            raise self.fault("stream name is no text", payload)
        if not isinstance(data, dict):
            if isinstance(data, list):
                return self.count("array")
            raise self.fault("no data", payload)
        event = data.get("e")
        if event == "depthUpdate":
            if stream is not None and not is_diff_stream(stream):
                return self.count("partial depth")
            self.read_depth(data, stream, payload, recv_ns)
        elif event in ("trade", "aggTrade"):
            self.read_trade(event, data, stream, payload, recv_ns)
        elif event == "bookTicker" or (event is None and "u" in data and "B" in data):
            self.read_bbo(data, stream, payload, recv_ns)
        elif event is None:
            return self.read_control(data, payload)
        elif event == "serverShutdown":
            self.count(event)
            return Notice(SHUTDOWN, None, "the venue announces that it will close the connection")
        elif isinstance(event, str):
            self.count(event)
        else:
            raise self.fault("event name is no text", payload)
        return None

    def read_control(self, data, payload):
        if "lastUpdateId" in data:
            return self.count("partial depth")
        error = data.get("error", data)
        if isinstance(error, dict) and "code" in error and "msg" in error:
            self.count("error")
            return Notice(ERROR, data.get("id"), f"{error['code']}: {error['msg']}"[:200])
        if "result" in data:
            self.count("ack")
            return Notice(ACK, data.get("id"), "")
        raise self.fault("unknown message", payload)

    def need_time(self, data, key, payload):
        """Return a time as ns."""
        time = self.need(data, key, int, payload)
        if time >= MAX_TIME:
            raise self.fault(f"{key!r} is {time}, expected a time in ms or µs", payload)
        return nanoseconds(time)

    def read_levels(self, instrument, data, names, payload):
        """Return (bids, asks) as flat ints."""
        sides = []
        for name in names:
            levels = data.get(name)
            if not isinstance(levels, list):
                raise self.fault(f"{name!r} is no list of levels", payload)
            for level in levels:
                # Old spot messages carry a third, empty element in each level.
                if not (isinstance(level, list) and len(level) >= 2
                        and type(level[0]) is str and type(level[1]) is str):
                    raise self.fault(f"level {level!r:.60} of {name!r} is not [price, quantity]", payload)
            sides.append(levels)
        both = sides[0] + sides[1]
        flat = [None] * (2 * len(both))
        flat[::2] = self.scaled(instrument, [level[0] for level in both], "price")
        flat[1::2] = self.scaled(instrument, [level[1] for level in both], "quantity")
        return flat[:2 * len(sides[0])], flat[2 * len(sides[0]):]

    def read_depth(self, data, stream, payload, recv_ns):
        first, last = (self.need(data, key, int, payload) for key in ("U", "u"))
        event = self.need_time(data, "E", payload)
        previous = self.need(data, "pu", int, payload) if "pu" in data else None
        symbol = self.need(data, "s", str, payload)
        instrument = self.instrument(symbol)
        if instrument is None:
            return
        bids, asks = self.read_levels(instrument, data, ("b", "a"), payload)
        self.count("depth")
        self.sink.depth(instrument, first, last, previous, event, recv_ns, bids, asks)
        if stream is not None:
            self.learn(payload, stream, instrument, "depth")

    def read_trade(self, event, data, stream, payload, recv_ns):
        time = self.need_time(data, "T", payload)
        trade_id = self.need(data, "t" if event == "trade" else "a", int, payload)
        maker = self.need(data, "m", bool, payload)
        price_text, quantity_text = self.need(data, "p", str, payload), self.need(data, "q", str, payload)
        symbol = self.need(data, "s", str, payload)
        if data.get("X", "MARKET") != "MARKET":             # §6: insurance fund, ADL, NA: not of the market
            self.not_market += 1
            return
        instrument = self.instrument(symbol)
        if instrument is None:
            return
        price, = self.scaled(instrument, [price_text], "price")
        quantity, = self.scaled(instrument, [quantity_text], "quantity")
        self.count("trade")
        self.sink.trade(instrument, trade_id, time, recv_ns, trade_id, price, quantity,
                        SELL if maker else BUY)
        if stream is not None:
            self.learn(payload, stream, instrument, event)

    def read_bbo(self, data, stream, payload, recv_ns):
        sequence = self.need(data, "u", int, payload)
        event = self.need_time(data, "E", payload) if "E" in data else 0
        texts = [self.need(data, key, str, payload) for key in ("b", "a", "B", "A")]
        symbol = self.need(data, "s", str, payload)
        instrument = self.instrument(symbol)
        if instrument is None:
            return
        bid, ask = self.scaled(instrument, texts[:2], "price")
        bid_quantity, ask_quantity = self.scaled(instrument, texts[2:], "quantity")
        self.count("bbo")
        self.sink.bbo(instrument, sequence, event, recv_ns, bid, bid_quantity, ask, ask_quantity)
        if stream is not None:
            self.learn(payload, stream, instrument, "bbo")

    def decode_snapshot(self, instrument, body, recv_ns):
        """The likely path takes 5 ms for 5,000 levels a side, json and exact parsing 25; the loop stands still meanwhile."""
        levels = self.levels_pattern(instrument)
        if levels is not None and len(self.patterns) < MAX_PATTERNS:
            found = self.compiled(SNAPSHOT % {b"levels": levels})(body)
            if found is not None:
                sequence, event, bids, asks = found.groups()
                self.sink.snapshot(instrument, int(sequence), nanoseconds(int(event)) if event else 0, recv_ns,
                                   cut_levels(bids), cut_levels(asks))
                return
        data = self.parse(body)
        if not isinstance(data, dict):
            raise self.fault("snapshot is no object", body)
        if "code" in data and "msg" in data:
            raise VenueError(f"{self.name} {instrument.symbol}: snapshot refused: {data['code']}: {data['msg']!s:.100}")
        sequence = self.need(data, "lastUpdateId", int, body)
        event = self.need_time(data, "E", body) if "E" in data else 0
        bids, asks = self.read_levels(instrument, data, ("bids", "asks"), body)
        self.sink.snapshot(instrument, sequence, event, recv_ns, bids, asks)


class BinanceSpot(Binance):
    name = "binance_spot"
    hosts = ("stream.binance.com", "data-stream.binance.vision", "stream.testnet.binance.vision",
             "demo-stream.binance.com", "stream.binance.us")
    rest_hosts = ("api.binance.com", "api1.binance.com", "api2.binance.com", "api3.binance.com", "api4.binance.com",
                  "api-gcp.binance.com", "www.binance.com", "data-api.binance.vision", "testnet.binance.vision",
                  "demo-api.binance.com", "api.binance.us")
    rest_prefixes = ("/api/",)
    depth_path = "/api/v3/depth"
    instruments_path, instruments_weight = "/api/v3/exchangeInfo", 20
    facts = VenueFacts(                                             # §1, §4; budgets are four fifths of the venue's
        "Binance spot", "update ids without holes", (("depth", "bbo", "trade"),), SYMBOL, "BTCUSDT",
        {"snapshot_limit": 5000, "snapshot_weight_per_minute": 4800, "depth_interval_ms": 100},
        (100, 1000), range(1, 5001), ((100, 5), (500, 25), (1000, 50), (5000, 250)),
        command_every_ms=300, lifetime_s=86_400,                    # 5 messages a second in all, pongs included
        notes="5 messages/s in, 1,024 streams a connection, 300 connects in 5 min, 24 h a connection",
        shared=("depth", "trade", "bbo"))

    @staticmethod
    def follows(sequence, bridged, first, last, previous):
        """§5: U <= id + 1 <= u joins, u <= id is old, and in steady state U == previous u + 1."""
        if first == sequence + 1:
            return NEXT
        if last <= sequence:
            return OLD
        return NEXT if first <= sequence and not bridged else GAP


class BinanceFutures(Binance):

    @staticmethod
    def follows(sequence, bridged, first, last, previous):
        """§5: pu == previous u links; the first event after a snapshot must have U <= id <= u. Ranges have holes."""
        if previous == sequence:
            return NEXT
        if last < sequence or (bridged and last == sequence):
            return OLD
        return NEXT if first <= sequence and not bridged else GAP


class BinanceUsdm(BinanceFutures):
    name = "binance_usdm"
    hosts = ("fstream.binance.com", "demo-fstream.binance.com", "fstream.binancefuture.com")
    rest_hosts = ("fapi.binance.com", "demo-fapi.binance.com", "testnet.binancefuture.com")
    rest_prefixes = ("/fapi/",)
    paths = {"depth": "/public/stream", "bbo": "/public/stream", "trade": "/market/stream"}     # §1, since 2026-04-23
    trade_stream = "aggTrade"
    depth_path = "/fapi/v1/depth"
    instruments_path, instruments_weight = "/fapi/v1/exchangeInfo", 1
    contract = "-PERP"
    facts = VenueFacts(
        "Binance USD-M futures", "each update names the one before", (("depth", "bbo"), ("trade",)), SYMBOL, "BTCUSDT",
        {"snapshot_limit": 1000, "snapshot_weight_per_minute": 1920, "streams_per_connection": 200, "depth_interval_ms": 100},
        (100, 250, 500), (5, 10, 20, 50, 100, 500, 1000), ((50, 2), (100, 5), (500, 10), (1000, 20)),
        command_every_ms=300, lifetime_s=86_400,
        notes="10 messages/s in, 1,024 (formerly 200) streams a connection, 24 h a connection",
        shared=("depth", "trade", "bbo"))


class BinanceCoinm(BinanceFutures):
    name = "binance_coinm"
    hosts = ("dstream.binance.com", "dstream.binancefuture.com")
    rest_hosts = ("dapi.binance.com", "testnet.binancefuture.com")
    rest_prefixes = ("/dapi/",)
    trade_stream = "aggTrade"
    depth_path = "/dapi/v1/depth"
    instruments_path, instruments_weight = "/dapi/v1/exchangeInfo", 1
