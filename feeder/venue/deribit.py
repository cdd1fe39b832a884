"""Deribit, JSON-RPC v2: inverse and linear futures and perpetuals, options and spot on one socket.

Source: the exchange's fact sheet of 2026-09 (docs.deribit.com), section numbers in the comments; a recording of 2021,
single frames of 2021 to 2026.

| message                              | role       | action                                                        |
| book.{instrument}.{100ms, agg2, raw} |            | of an instrument, the pace that came first makes the book     |
|   type snapshot                      | snapshot   | sink.snapshot; all levels                                     |
|   type change                        | increment  | sink.depth, linked by prev_change_id                          |
| quote.{instrument}                   | BBO        | sink.bbo; one side may be missing: counted                    |
| trades.{instrument}.{pace},          | trades     | sink.trade each; direction is the taker's; of block trades    |
|   trades.{kind}.{currency}.{pace}    |            | and combos none                                               |
| heartbeat, type heartbeat            | alive      | Notice                                                        |
| heartbeat, type test_request         | alive      | Notice with the answer: public/test                           |
| {"id":..,"result":[channels]}        | ack        | Notice; channels that are left out do not exist               |
| {"id":..,"result":other}             | ack, alive | Notice; of set_heartbeat, of public/test                      |
| {"error":..}                         | error      | Notice                                                        |
| book of a group, ticker, chart ..    | not ours   | counted by channel                                            |
| anything else                        | fault      | VenueError                                                    |

Numbers are JSON numbers, some with an exponent (2.2e3): all stay text. Amounts are dollars on inverse instruments and
coins on all others (§8), so a contract is 1.
"""

import json
import re
from urllib.parse import urlsplit

from feeder import fixed
from feeder.errors import NumberError
from feeder.message import BUY, SELL
from feeder.venue.contract import (ACK, ALIVE, ERROR, GAP, NEXT, OLD, REPLY, STREAM, Command, Line, Listing, Notice,
                                   Request, Venue, VenueFacts, exact_json, packed, trade_id_of)

HOSTS = ("www.deribit.com", "test.deribit.com", "streams.deribit.com")
CHANNELS_PER_REQUEST = 500              # §2
HEARTBEAT_S = 10                        # §3: the least there is
SIDES = {"buy": BUY, "sell": SELL}
PACES = {100: "100ms", 1000: "agg2"}    # raw wants a login
NO_MARKET = ("block_trade_id", "block_rfq_id", "combo_id", "combo_trade_id")
ALL = ("currency=any&kind=future", "currency=any&kind=option", "currency=any&kind=spot")
TEST_ID = 0                             # of answers to test_request; ours count from 1


class Deribit(Venue):
    name = "deribit"
    book = STREAM
    loads = staticmethod(exact_json)
    facts = VenueFacts(
        "Deribit", "each change names the one before", (("depth", "bbo", "trade"),),
        re.compile(r"[A-Z0-9]+(?:_[A-Z0-9]+)?(?:-[A-Za-z0-9_]+)*"), "BTC-PERPETUAL",
        {"depth_interval_ms": 100, "streams_per_connection": 400}, depth_intervals_ms=(100, 1000),
        command_every_ms=350, connect_every_ms=250,          # §2: 3,000 credits a request, 10,000 come a second
        notes="500 channels a request, 3 requests a second, 32 connections an address; all levels every 100 ms or "
        "about every second; raw books want a login", shared=("depth", "trade"))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.channels = {}              # (what, symbol) -> the channel that brings it, where several do

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        if parts.scheme in ("ws", "wss"):
            return parts.hostname in HOSTS and parts.path.rstrip("/") == "/ws/api/v2"
        return parts.hostname in HOSTS and parts.path.startswith("/api/v2/")

    @classmethod
    def spelling(cls, base, quote):
        return f"{base}_{quote}"

    @classmethod
    def common_name(cls, symbol):
        """§8: BTC-PERPETUAL is BTC/USD-PERP, BTC_USDC is BTC/USDC, BTC-25SEP26 is BTC/USD-25SEP26."""
        pair, mark, more = symbol.partition("-")
        base, _, quote = pair.partition("_")
        return f"{base}/{quote or 'USD'}{mark}{'PERP' if more == 'PERPETUAL' else more}"

    @staticmethod
    def follows(sequence, bridged, first, last, previous):
        """§5: by the id before only; all instruments share the ids."""
        return NEXT if previous == sequence else OLD if last == sequence else GAP

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        pace = PACES.get(depth_interval_ms, "100ms")
        names = {"depth": f"book.%s.{pace}", "trade": "trades.%s.100ms", "bbo": "quote.%s"}
        streams = [names[channel] % symbol for symbol in symbols for channel in channels]
        return [Line("/ws/api/v2", part) for part in packed(streams, streams_per_connection)]

    def symbol_of(self, stream):
        return stream.split(".")[1]

    def hello(self, request_id):
        """§3: without it silence would not tell a quiet book from a dead connection."""
        return [Command(call(request_id, "public/set_heartbeat", {"interval": HEARTBEAT_S}), {str(request_id): []})]

    def subscribe(self, streams, request_id, method="public/subscribe"):
        return [Command(call(number, method, {"channels": part}), {f"{number} {stream}": [stream] for stream in part})
                for number, part in enumerate(packed(streams, CHANNELS_PER_REQUEST), request_id)]

    def unsubscribe(self, streams, request_id):
        return self.subscribe(streams, request_id, "public/unsubscribe")

    # -- instruments, §8 -------------------------------------------------------------------------------------

    def instruments_requests(self, symbols):
        """Futures and spot are few; options are thousands, so those of our currencies only."""
        wanted = set()
        for symbol in symbols:
            pair, *more = symbol.split("-")
            base, _, quote = pair.partition("_")
            wanted.add(f"currency={quote or base}&kind=option" if len(more) > 2 else
                       "currency=any&kind=" + ("future" if more else "spot"))
        return [Request(f"/api/v2/public/get_instruments?{each}&expired=false", 1) for each in sorted(wanted or ALL)]

    def decode_instruments(self, body):
        answer = self.parse(body)
        try:
            if type(answer["result"]) is not list:
                raise TypeError("'result' is no list")
            return {entry["instrument_name"]: Listing(plain(entry["tick_size"]), plain(entry["min_trade_amount"]))
                    for entry in answer["result"]}
        except (KeyError, TypeError, NumberError) as error:
            raise self.fault(f"instrument list: {type(error).__name__}: {error}", body) from None

    # -- decoding --------------------------------------------------------------------------------------------

    def decode_json(self, payload, recv_ns):
        message = self.parse(payload)
        if not isinstance(message, dict):
            raise self.fault("no object", payload)
        method, params = message.get("method"), message.get("params")
        if method is None:
            return self.read_answer(message, payload)
        if not isinstance(params, dict):
            raise self.fault("no parameters", payload)
        if method == "heartbeat":
            return self.read_heartbeat(params, payload)
        if method != "subscription":
            raise self.fault("unknown method", payload)
        channel, data = self.need(params, "channel", str, payload), params.get("data")
        kind, *rest = channel.split(".")
        if kind == "book" and len(rest) == 2:
            self.read_book(channel, data, payload, recv_ns)
        elif kind == "quote":
            self.read_quote(data, payload, recv_ns)
        elif kind == "trades":
            self.read_trades(channel, data, payload, recv_ns)
        else:
            self.count("book of a group" if kind == "book" else kind[:40])
        return None

    def read_answer(self, message, payload):
        """§2. Ids are text here (exact_json)."""
        request, error, result = message.get("id"), message.get("error"), message.get("result")
        if isinstance(error, dict):
            self.count("error")
            words = [str(error[key]) for key in ("code", "message", "data") if error.get(key)]
            return Notice(ERROR, request, " ".join(words)[:200])
        if type(request) is not str or result is None:
            raise self.fault("unknown message", payload)
        self.count("answer")
        if request == str(TEST_ID):
            return Notice(ALIVE, None, "")
        if isinstance(result, list):
            request = tuple(f"{request} {channel}" for channel in result)
        return Notice(ACK, request, "")

    def read_heartbeat(self, params, payload):
        kind = params.get("type")
        if kind not in ("heartbeat", "test_request"):
            raise self.fault("unknown heartbeat", payload)
        self.count(kind)
        if kind == "heartbeat":
            return Notice(ALIVE, None, "")
        return Notice(REPLY, None, call(TEST_ID, "public/test", {}))

    def is_source(self, what, symbol, channel):
        """Return True if this is the channel that such messages of the symbol are taken from."""
        if self.channels.setdefault((what, symbol), channel) == channel:
            return True
        self.count("another " + what)
        return False

    def read_book(self, channel, data, payload, recv_ns):
        """§4, §5. The word of a row says nothing that its amount does not."""
        if not isinstance(data, dict) or data.get("type") not in ("snapshot", "change"):
            raise self.fault("no book", payload)
        symbol = self.need(data, "instrument_name", str, payload)
        if symbol != self.symbol_of(channel):
            raise self.fault("instrument and channel differ", payload)
        event_ns, change = self.need_ns(data, "timestamp", payload), self.need_count(data, "change_id", payload)
        previous = self.need_count(data, "prev_change_id", payload) if data["type"] == "change" else None
        instrument = self.instrument(symbol)
        if instrument is None or not self.is_source("depth", symbol, channel):
            return
        bids, asks = self.levels(instrument, (data.get("bids"), data.get("asks")), payload, 1, 2)
        self.count(data["type"])
        if data["type"] == "snapshot":
            self.sink.snapshot(instrument, change, event_ns, recv_ns, bids, asks)
        else:
            self.sink.depth(instrument, change, change, previous, event_ns, recv_ns, bids, asks)

    def read_quote(self, data, payload, recv_ns):
        """§7. How an empty side looks is unsure: null, or 0."""
        if not isinstance(data, dict):
            raise self.fault("no quote", payload)
        event_ns = self.need_ns(data, "timestamp", payload)
        instrument = self.instrument(self.need(data, "instrument_name", str, payload))
        if instrument is None:
            return
        sides = [[[data.get(f"best_{side}_price"), data.get(f"best_{side}_amount")]] for side in ("bid", "ask")]
        bids, asks = self.levels(instrument, [rows if None not in rows[0] else [] for rows in sides], payload)
        if not (any(bids[1:]) and any(asks[1:])):
            return self.count("quote without a side")
        self.count("quote")
        self.sink.bbo(instrument, 0, event_ns, recv_ns, *bids, *asks)

    def read_trades(self, channel, data, payload, recv_ns):
        """§6. Block trades and legs of combos were not made against this book."""
        if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
            raise self.fault("no trades", payload)
        calls, others = [], 0
        for entry in data:
            side = SIDES.get(self.need(entry, "direction", str, payload))
            if side is None:
                raise self.fault(f"'direction' is {entry['direction']!r:.40}, expected buy or sell", payload)
            symbol, trade_id = (self.need(entry, key, str, payload) for key in ("instrument_name", "trade_id"))
            texts = [self.need(entry, key, str, payload) for key in ("price", "amount")]
            sequence, event_ns = self.need_count(entry, "trade_seq", payload), self.need_ns(entry, "timestamp", payload)
            if any(entry.get(key) is not None for key in NO_MARKET):
                others += 1
                continue
            instrument = self.instrument(symbol)
            if instrument is not None and self.is_source("trade", symbol, channel):
                calls.append((instrument, sequence, event_ns, recv_ns, trade_id_of(trade_id), *texts, side))
        self.count("trade")
        self.trades(calls)
        self.not_market += others


def call(number, method, params):
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


def plain(text):
    """Return a number's text without an exponent: 1.0e-4 is 0.0001. Raises NumberError."""
    decimals = fixed.decimals_of(text)
    return fixed.to_text(fixed.parse(text, decimals), decimals)
