"""OKX v5: spot, swaps, futures and options on one socket; sizes of the last three are in contracts.

Source: the exchange's fact sheet of 2026-09 (okx.com/docs-v5), section numbers in the comments; recordings of 2021 and
2022, single frames of 2024 to 2026.

| message                                  | role        | action                                                   |
| books, books-l2-tbt, books50-l2-tbt:     |             | of a symbol, the channel that came first makes the book  |
|   action snapshot                        | snapshot    | sink.snapshot                                            |
|   action update                          | increment   | sink.depth, linked by prevSeqId; seqId may stay or fall  |
|   without seqId (2021, 2022)             | both        | linked by our own count, proven by the checksum          |
| bbo-tbt (one level a side, whole)        | BBO         | sink.bbo; one side may be missing: counted               |
| trades, trades-all                       | trades      | sink.trade each; side is the taker's                     |
| instruments                              | status      | no continuous trading while the state is not "live"      |
| {"event":"subscribe"}, unsubscribe       | ack         | Notice, one for each argument                            |
| {"event":"error"}                        | error       | Notice; the text names channel and symbol, or nothing    |
| {"event":"notice","code":"64008"}        | shutdown    | Notice                                                   |
| the text pong                            | alive       | Notice; it is no JSON                                    |
| books5, books-rpi, tickers, candles ..   | not ours    | counted by channel                                       |
| anything else                            | fault       | VenueError                                               |

`checksum` is 0 in every book since 2026-06 (§5), so nothing is read from it where there is a seqId.

Hot:  the likely path, for best prices and single trades printed as in 2026 (most messages) of instruments that
json has met before: 2.2 and 2.0 us where json takes 11.4 and 10.5 (docs/venues.md). Books would gain less than half and
come ten times a second: left to json. Layouts (shape.py) do not fit: this venue drops zeros at the end of numbers.
"""

import json
import re
from binascii import crc32
from itertools import zip_longest
from urllib.parse import urlsplit

from feeder import fixed
from feeder.errors import NumberError, VenueError
from feeder.instrument import WIRE_EXPONENT
from feeder.message import BUY, SELL
from feeder.venue.contract import (ACK, ALIVE, ERROR, GAP, NEXT, OLD, SHUTDOWN, STREAM, Command, Line, Listing, Notice,
                                   Ping, Request, Session, Venue, VenueFacts, packed, trade_id_of)
from feeder.venue.mirror import Mirror

CHANNELS = {"depth": "books", "trade": "trades", "bbo": "bbo-tbt"}
BOOKS_PER_CONNECTION = 29               # §2 recommends fewer than 30 of 400 levels
ARGS_PER_REQUEST = 200                  # §2 has 64 KB for all their text; an argument of ours takes 80 bytes at most
CHECKED_LEVELS = 25
KINDS = ("FUTURES", "SPOT", "SWAP")     # of instruments; options are listed for each family
SCALES = {decimals: 10**decimals for decimals in range(-WIRE_EXPONENT + 1)}
SIDES = {"buy": BUY, "sell": SELL}

# Ten digits before the point and eight behind it fit 64 bits at the exponent of -8, and such times do in ns.
NUMBER = rb'"([0-9]{1,10}(?:\.[0-9]{1,8})?)"'
LEVEL = rb'\[\[' + NUMBER + b"," + NUMBER + rb',"0","[0-9]+"\]\]'
STAMP = rb'"ts":"([1-8][0-9]{12})",'
SEQUENCE = rb'"seqId":(0|[1-9][0-9]{0,17})\}\]\}'
match_bbo = re.compile(rb'\{"arg":(\{"channel":"bbo-tbt","instId":"[A-Z0-9._-]+"\}),"data":\[\{"asks":' + LEVEL
                       + rb',"bids":' + LEVEL + b"," + STAMP + SEQUENCE).fullmatch
match_trade = re.compile(rb'\{"arg":(\{"channel":"trades","instId":"([A-Z0-9._-]+)"\}),"data":\[\{"instId":"\2",'
                         rb'"tradeId":"([0-9]{1,18})","px":' + NUMBER + rb',"sz":' + NUMBER + rb',"side":"(buy|sell)",'
                         + STAMP + rb'"count":"[0-9]+","source":"[0-9]+",' + SEQUENCE).fullmatch
find_argument = re.compile(r"channel: ?([A-Za-z0-9-]+), ?instId: ?([^ ,]+)").search


class Okx(Venue):
    name = "okx"
    book = STREAM
    facts = VenueFacts(
        "OKX v5", "each update names the one before", (("depth", "bbo", "trade"),),
        re.compile(r"[A-Z0-9]+(?:-[A-Z0-9._]+){1,4}"), "BTC-USDT",
        # §5.3: a book without change is told again each minute, so silence of three means that it is lost.
        {"snapshot_limit": 400, "streams_per_connection": 87, "freshness_s": 180},
        snapshot_limits=(400,), ping=Ping("ping", 20), command_every_ms=100, commands_per_hour=480,
        connect_every_ms=400,
        notes="29 books a connection, 480 requests an hour there, 3 connects a second; 400 levels every 100 ms, "
        "best price every 10 ms; faster books want a login", shared=("depth", "trade", "bbo"))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.channels = {}              # (what, symbol) -> the channel that brings it, where several do
        self.last_trades = {}           # symbol -> trade id; the newest one is told again at each subscription
        self.met = {}                   # arg of a message, as printed -> instrument: what the likely path may take

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        if not (parts.hostname or "").endswith((".okx.com", ".okex.com")):
            return False
        if parts.scheme in ("ws", "wss"):
            return parts.path.rstrip("/") in ("/ws/v5/public", "/ws/v5/business")
        return parts.path.startswith("/api/v5/")

    @classmethod
    def spelling(cls, base, quote):
        return f"{base}-{quote}"

    @classmethod
    def common_name(cls, symbol):
        base, _, rest = symbol.partition("-")
        quote, mark, more = rest.partition("-")
        return f"{base}/{quote}{mark}{'PERP' if more == 'SWAP' else more}" if quote else symbol

    @staticmethod
    def follows(sequence, bridged, first, last, previous):
        """§5: by the id before only. Ids that fall are a reset, so a smaller one is not old by itself."""
        return NEXT if previous == sequence else OLD if last == sequence else GAP

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        most = BOOKS_PER_CONNECTION if "depth" in channels else streams_per_connection
        return [Line("/ws/v5/public", part) for some in packed(symbols, most)
                for part in packed([f"{CHANNELS[channel]}:{symbol}" for symbol in some for channel in channels],
                                   streams_per_connection)]

    def symbol_of(self, stream):
        return stream.partition(":")[2]

    def session(self):
        return OkxSession(self)

    def hello(self, request_id):
        """§8: the states of instruments, all at first and then those that change."""
        ours = {kind_of(each.symbol) for each in self.instruments if each.venue == self.name}
        kinds = [kind for kind in KINDS if kind in ours]
        return [self.command("subscribe", request_id, [("instruments", "instType", kind) for kind in kinds], {
            f"subscribe instruments:{kind}": [] for kind in kinds})] if kinds else []

    def subscribe(self, streams, request_id, op="subscribe"):
        return [self.command(op, number, [(channel, "instId", symbol) for channel, _, symbol in
                                          (stream.partition(":") for stream in part)],
                             {f"{op} {stream}": [stream] for stream in part})
                for number, part in enumerate(packed(streams, ARGS_PER_REQUEST), request_id)]

    def unsubscribe(self, streams, request_id):
        return self.subscribe(streams, request_id, "unsubscribe")

    def command(self, op, number, args, keys):
        return Command(json.dumps({"id": str(number), "op": op, "args": [
            {"channel": channel, key: value} for channel, key, value in args]}), keys)

    def meet(self, instrument, channel):
        """Leave such messages of an instrument to the likely path from here on."""
        if instrument.price_exponent == instrument.quantity_exponent == WIRE_EXPONENT:
            self.met[f'{{"channel":"{channel}","instId":"{instrument.symbol}"}}'.encode()] = instrument

    def forget(self, instrument):
        self.met = {arg: each for arg, each in self.met.items() if each is not instrument}

    # -- instruments, §8 -------------------------------------------------------------------------------------

    def instruments_requests(self, symbols):
        families = {"OPTION&instFamily=" + "-".join(symbol.split("-")[:2]) if kind_of(symbol) == "OPTION"
                    else kind_of(symbol) for symbol in symbols}
        return [Request("/api/v5/public/instruments?instType=" + family, 1) for family in sorted(families or KINDS)]

    def decode_instruments(self, body):
        answer = self.parse(body)
        try:
            if answer["code"] != "0":
                raise self.fault(f"no instrument list: {answer['code']} {answer['msg']}", body)
            if type(answer["data"]) is not list:
                raise TypeError("'data' is no list")
            return {entry["instId"]: Listing(size_of(entry["tickSz"]), size_of(entry["lotSz"]), contract_of(entry))
                    for entry in answer["data"]}
        except (KeyError, TypeError, AttributeError, NumberError) as error:
            raise self.fault(f"instrument list: {type(error).__name__}: {error}", body) from None


class OkxSession(Session):
    """A connection. `mirrors` has the books that carry no seqId: of recordings of 2021 and 2022."""

    def __init__(self, venue):
        super().__init__(venue)
        self.mirrors = {}               # symbol -> Mirror
        self.readers = {"books": self.read_book, "books-l2-tbt": self.read_book, "books50-l2-tbt": self.read_book,
                        "bbo-tbt": self.read_bbo, "trades": self.read_trades, "trades-all": self.read_trades,
                        "instruments": self.read_states}

        self.takers = {b"bbo-tbt": self.take_bbo, b'trades"': self.take_trade}

    def decode(self, payload, recv_ns):
        take = self.takers.get(payload[19:26])            # what follows {"arg":{"channel":"
        if take is not None and take(payload, recv_ns):
            self.venue.likely += 1
            return None
        self.venue.unlikely += 1
        return self.decode_json(payload, recv_ns)

    def take_bbo(self, payload, recv_ns):
        found = match_bbo(payload)
        instrument = self.venue.met.get(found[1]) if found else None
        if instrument is None:
            return False
        _, ask, ask_quantity, bid, bid_quantity, ms, sequence = found.groups()
        try:
            decimals = instrument.price_decimals
            bid, ask = scaled(bid, decimals), scaled(ask, decimals)
            decimals = instrument.quantity_decimals
            bid_quantity, ask_quantity = scaled(bid_quantity, decimals), scaled(ask_quantity, decimals)
        except KeyError:                                  # more decimals than before
            return False
        self.sink.bbo(instrument, int(sequence), int(ms) * 10**6, recv_ns, bid, bid_quantity, ask, ask_quantity)
        return True

    def take_trade(self, payload, recv_ns):
        found = match_trade(payload)
        instrument = self.venue.met.get(found[1]) if found else None
        if instrument is None:
            return False
        _, _, trade_id, price, quantity, side, ms, sequence = found.groups()
        trade_id = int(trade_id)
        if trade_id == self.venue.last_trades.get(instrument.symbol):
            return False                                  # seldom
        try:
            price, quantity = scaled(price, instrument.price_decimals), scaled(quantity, instrument.quantity_decimals)
        except KeyError:
            return False
        self.venue.last_trades[instrument.symbol] = trade_id
        self.sink.trade(instrument, int(sequence), int(ms) * 10**6, recv_ns, trade_id, price, quantity,
                        BUY if side == b"buy" else SELL)
        return True

    def decode_json(self, payload, recv_ns):
        try:
            return self.read(payload, recv_ns)
        except (VenueError, NumberError) as error:
            if not self.mirrors:
                raise
            for mirror in self.mirrors.values():
                mirror.void()
            raise self.broken([mirror.instrument for mirror in self.mirrors.values()],
                              f"books without seqId, and a message was lost: {error}", recv_ns) from None

    def read(self, payload, recv_ns):
        venue = self.venue
        if payload == b"pong":                            # §3
            venue.count("pong")
            return Notice(ALIVE, None, "")
        message = venue.parse(payload)
        if not isinstance(message, dict):
            raise venue.fault("no object", payload)
        if "event" in message:
            return self.read_event(message, payload)
        arg, entries = message.get("arg"), message.get("data")
        if not isinstance(arg, dict) or not isinstance(entries, list):
            raise venue.fault("unknown message", payload)
        channel = venue.need(arg, "channel", str, payload)
        reader = self.readers.get(channel)
        if reader is None:
            venue.count(channel[:40])
            return None
        if not all(isinstance(entry, dict) for entry in entries):
            raise venue.fault("'data' is no list of objects", payload)
        reader(message, arg, channel, entries, payload, recv_ns)
        return None

    def read_event(self, message, payload):
        venue, event = self.venue, message["event"]
        if event in ("subscribe", "unsubscribe"):
            arg = message.get("arg")
            if not isinstance(arg, dict):
                raise venue.fault("no argument is acknowledged", payload)
            venue.count("ack")
            return Notice(ACK, f"{event} {arg.get('channel')}:{arg.get('instId') or arg.get('instType')}", "")
        if event not in ("error", "notice"):
            raise venue.fault("unknown event", payload)
        code, words = venue.need(message, "code", str, payload), venue.need(message, "msg", str, payload)
        venue.count(event)
        text = f"{code} {words}"[:200]
        # 64008: the connection ends within a minute (§3). 60014: it may ask for no more this hour, a new one may (§2).
        if code in ("64008", "60014"):
            return Notice(SHUTDOWN, None, text)
        found = find_argument(words)
        return Notice(ERROR, f"subscribe {found[1]}:{found[2]}" if found else None, text)

    def is_source(self, what, symbol, channel):
        """Return True if this is the channel that such messages of the symbol are taken from."""
        if self.venue.channels.setdefault((what, symbol), channel) == channel:
            return True
        self.venue.count("another " + what)
        return False

    def only(self, entries, payload):
        if len(entries) != 1:
            raise self.venue.fault(f"{len(entries)} books in a message, expected 1", payload)
        return entries[0]

    # -- books, §5 -------------------------------------------------------------------------------------------

    def read_book(self, message, arg, channel, entries, payload, recv_ns):
        venue = self.venue
        data, action = self.only(entries, payload), message.get("action")
        if action not in ("snapshot", "update"):
            raise venue.fault("no book", payload)
        symbol = venue.need(arg, "instId", str, payload)
        event_ns = venue.need_ns(data, "ts", payload)
        instrument = venue.instrument(symbol)
        if instrument is None or not self.is_source("depth", symbol, channel):
            return
        if "seqId" not in data:
            return self.read_unnumbered(instrument, data, action, event_ns, payload, recv_ns)
        sequence = venue.need(data, "seqId", int, payload)
        previous = venue.need(data, "prevSeqId", int, payload) if action == "update" else None
        bids, asks = venue.levels(instrument, (data.get("bids"), data.get("asks")), payload)
        venue.count(action)
        self.mirrors.pop(symbol, None)
        if action == "snapshot":
            self.sink.snapshot(instrument, sequence, event_ns, recv_ns, bids, asks)
        else:
            self.sink.depth(instrument, sequence, sequence, previous, event_ns, recv_ns, bids, asks)

    def read_unnumbered(self, instrument, data, action, event_ns, payload, recv_ns):
        """A book of the time when the checksum was its proof. With neither of the two nothing would prove it."""
        venue, mirror, checksum = self.venue, self.mirrors.get(instrument.symbol), data.get("checksum")
        if type(checksum) is not int or mirror is None and checksum == 0:
            raise venue.fault("a book with neither seqId nor checksum", payload)
        sides = data.get("bids"), data.get("asks")
        bids, asks = venue.levels(instrument, sides, payload)
        digits = [[f"{row[0]}:{row[1]}" for row in rows] for rows in sides]
        if action == "update" and (mirror is None or not mirror.is_known):
            return venue.count("update without a snapshot")
        venue.count(action + " by checksum")
        if mirror is None:
            mirror = self.mirrors[instrument.symbol] = Mirror(instrument, self.number)
        previous = mirror.sequence
        bids, asks = (mirror.snapshot if action == "snapshot" else mirror.change)(bids, asks, *digits)
        if mirror.overfull or checksum != checksum_of(mirror.bids.top(CHECKED_LEVELS), mirror.asks.top(CHECKED_LEVELS)):
            venue.checksums_failed += 1
            mirror.void()
            return self.sink.stale(instrument, "checksum", recv_ns)
        instrument.verified += 1
        if action == "snapshot":
            self.sink.snapshot(instrument, mirror.sequence, event_ns, recv_ns, bids, asks)
        else:
            self.sink.depth(instrument, mirror.sequence, mirror.sequence, previous, event_ns, recv_ns, bids, asks)

    # -- the rest --------------------------------------------------------------------------------------------

    def read_bbo(self, message, arg, channel, entries, payload, recv_ns):
        """§7."""
        venue, data = self.venue, self.only(entries, payload)
        event_ns = venue.need_ns(data, "ts", payload)
        sequence = venue.need(data, "seqId", int, payload) if "seqId" in data else 0
        instrument = venue.instrument(venue.need(arg, "instId", str, payload))
        if instrument is None:
            return
        bids, asks = venue.levels(instrument, (data.get("bids"), data.get("asks")), payload)
        if len(bids) != 2 or len(asks) != 2:
            return venue.count("bbo without a side")
        venue.count("bbo")
        venue.meet(instrument, channel)
        self.sink.bbo(instrument, sequence, event_ns, recv_ns, *bids, *asks)

    def read_trades(self, message, arg, channel, entries, payload, recv_ns):
        """§6. At a subscription the newest trade comes, however old (20 hours in a recording); once is enough."""
        venue = self.venue
        symbol = venue.need(arg, "instId", str, payload)
        calls, last = [], venue.last_trades.get(symbol)
        for entry in entries:
            if entry.get("instId") != symbol:
                raise venue.fault("a trade of another symbol", payload)
            side = SIDES.get(venue.need(entry, "side", str, payload))
            if side is None:
                raise venue.fault(f"'side' is {entry['side']!r:.40}, expected buy or sell", payload)
            event_ns = venue.need_ns(entry, "ts", payload)
            sequence = venue.need(entry, "seqId", int, payload) if "seqId" in entry else 0
            texts = venue.need(entry, "px", str, payload), venue.need(entry, "sz", str, payload)
            trade_id = trade_id_of(venue.need(entry, "tradeId", str, payload))
            if trade_id != last:
                last = trade_id
                calls.append((sequence, event_ns, recv_ns, trade_id, *texts, side))
        instrument = venue.instrument(symbol)
        if instrument is None or not self.is_source("trade", symbol, channel):
            return
        venue.count("trade" if calls else "trade again")
        venue.trades([(instrument, *call) for call in calls])
        venue.last_trades[symbol] = last
        venue.meet(instrument, channel)

    def read_states(self, message, arg, channel, entries, payload, recv_ns):
        """§5.7: in a call auction the best ask may be below the best bid."""
        venue = self.venue
        states = [tuple(venue.need(entry, key, str, payload) for key in ("instId", "state")) for entry in entries]
        venue.count("instruments")
        for symbol, state in states:
            instrument = venue.instruments.find(venue.name, symbol)
            if instrument is not None:
                venue.set_auction(instrument, state != "live")


def scaled(text, decimals):
    """Return plain digits with a point as an int. Raises KeyError where they have more decimals."""
    whole, _, fraction = text.partition(b".")
    return int(whole + fraction) * SCALES[decimals - len(fraction)]


def kind_of(symbol):
    """§8: BTC-USDT, BTC-USDT-SWAP, BTC-USD-261225, BTC-USD-261225-100000-C."""
    return "SWAP" if symbol.endswith("-SWAP") else {1: "SPOT", 4: "OPTION"}.get(symbol.count("-"), "FUTURES")


def size_of(text):
    """Return decimal text as it is, None where it is empty: the venue does not say. Raises NumberError."""
    if text:
        fixed.split(text)
    return text or None


def contract_of(entry):
    """Return ctVal * ctMult, the coins or dollars of a contract, exactly; "1" where a size is in coins already."""
    if not entry["ctVal"]:
        return "1"
    value, places = fixed.split(entry["ctVal"])
    times, more = fixed.split(entry["ctMult"] or "1")
    places += more
    return fixed.to_text(value * times * 10**max(-places, 0), max(places, 0))


def checksum_of(bids, asks):
    """§5, before 2026-06: CRC32, signed, of "price:size" of the best bid, the best ask, the next bid ..."""
    texts = [text for pair in zip_longest(bids, asks) for text in pair if text is not None]
    value = crc32(":".join(texts).encode())
    return value - (1 << 32) if value >> 31 else value
