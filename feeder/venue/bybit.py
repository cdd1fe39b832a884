"""Bybit v5: spot and linear (USDT and USDC margined) contracts.

Source: the exchange's fact sheet of 2026-09 (bybit-exchange.github.io/docs/v5), section numbers in the comments;
recordings of 2025 and 2026.

| message                                | role        | action                                              |
| orderbook.{25..1000}, type snapshot    | snapshot    | sink.snapshot; comes first, and again after a restart |
| the same, type delta                   | increment   | sink.depth, linked by u == last u + 1; u == 1: a snapshot |
| orderbook.1 (always a snapshot)        | BBO         | sink.bbo; one side may be missing: counted           |
| publicTrade                            | trades      | sink.trade each; S is the taker's side; BT: none     |
| {"success":true,"op":"subscribe"}      | ack         | Notice, by req_id                                    |
| {"success":false,..}                   | error       | Notice; one bad topic fails its whole request        |
| {"ret_msg":"pong"}, {"op":"pong"}      | alive       | Notice                                               |
| orderbook.rpi, orderbook.full, tickers, kline, liquidation | not ours | counted by topic                    |
| anything else                          | fault       | VenueError                                           |
"""

import json
import re
from urllib.parse import urlsplit

from feeder.message import BUY, SELL
from feeder.venue.contract import (ACK, ALIVE, ERROR, STREAM, Command, Line, Listing, Notice, Ping, Request, Venue,
                                   VenueFacts, follows_by_one, packed, trade_id_of)

ARGS_PER_REQUEST = 10                   # §2, spot; futures have no such limit, but fewer fail together
CHARACTERS = 20_000                     # of all args on a connection; the venue allows 21,000
SIDES = {"Buy": BUY, "Sell": SELL}
CHANNELS = {"depth": "orderbook.{levels}.", "trade": "publicTrade.", "bbo": "orderbook.1."}

match_book = re.compile(r"orderbook\.([0-9]{1,4})\.(.+)").fullmatch


class Bybit(Venue):
    """What spot and linear share: all but the path, for the category is not in the topics."""

    book = STREAM
    category = None
    hosts = ("stream.bybit.com", "stream-testnet.bybit.com", "stream.bytick.com", "stream.bybit.tr", "stream.bybit.kz",
             "stream.bybit.nl")
    rest_hosts = ("api.bybit.com", "api.bytick.com", "api-testnet.bybit.com")
    follows = staticmethod(follows_by_one)                  # §5.4: not promised, but without an exception so far

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.topics = {}                # symbol -> the topic its book is from, where several depths come

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        if parts.scheme in ("ws", "wss"):
            return parts.hostname in cls.hosts and parts.path.rstrip("/") == f"/v5/public/{cls.category}"
        return parts.hostname in cls.rest_hosts and f"category={cls.category}" in parts.query.split("&")

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        streams = [CHANNELS[channel].format(levels=levels) + symbol for channel in channels for symbol in symbols]
        return [Line(f"/v5/public/{self.category}", part) for part in packed(streams, streams_per_connection, CHARACTERS)]

    def symbol_of(self, stream):
        return stream.rpartition(".")[2]

    def subscribe(self, streams, request_id, op="subscribe"):
        return [Command(json.dumps({"req_id": str(number), "op": op, "args": part}), {str(number): part})
                for number, part in enumerate(packed(streams, ARGS_PER_REQUEST), request_id)]

    def unsubscribe(self, streams, request_id):
        return self.subscribe(streams, request_id, "unsubscribe")

    def instruments_request(self, symbols):
        return Request(f"/v5/market/instruments-info?category={self.category}&limit=1000", 1)

    def more_instruments(self, request, body):
        """§8: linear comes in pages."""
        found = re.search(rb'"nextPageCursor":"([^"&]+)"', body)
        return found and Request(request.path.partition("&cursor=")[0] + "&cursor=" + found[1].decode(), 1)

    def decode_instruments(self, body):
        answer = self.parse(body)
        try:
            return {entry["symbol"]: Listing(entry["priceFilter"]["tickSize"], entry["lotSizeFilter"][self.lot_key])
                    for entry in answer["result"]["list"]}
        except (KeyError, TypeError) as error:
            raise self.fault(f"instrument list without {error}", body) from None

    # -- decoding --------------------------------------------------------------------------------------------

    def decode_json(self, payload, recv_ns):
        message = self.parse(payload)
        if not isinstance(message, dict):
            raise self.fault("no object", payload)
        topic = message.get("topic")
        if topic is None:
            return self.read_control(message, payload)
        if type(topic) is not str:
            raise self.fault("topic is no text", payload)
        book = match_book(topic)
        if book is not None:
            self.read_book(message, topic, int(book[1]), book[2], payload, recv_ns)
        elif topic.startswith("publicTrade."):
            self.read_trades(message, payload, recv_ns)
        else:
            self.count(topic.partition(".")[0] if not topic.startswith("orderbook.") else topic.rpartition(".")[0])
        return None

    def read_control(self, message, payload):
        """§2, §3. An answer to a ping has "ping" as its op on spot and linear, "pong" on others."""
        op, text = message.get("op"), message.get("ret_msg", "")
        if op in ("ping", "pong"):
            self.count("pong")
            return Notice(ALIVE, None, "")
        if op not in ("subscribe", "unsubscribe") or type(message.get("success")) is not bool or type(text) is not str:
            raise self.fault("unknown message", payload)
        request = message.get("req_id") or None
        if message["success"]:
            self.count("ack")
            return Notice(ACK, request, "")
        self.count("error")
        return Notice(ERROR, request, text[:200])

    def read_book(self, message, topic, depth, symbol, payload, recv_ns):
        data, kind = message.get("data"), message.get("type")
        if not isinstance(data, dict) or kind not in ("snapshot", "delta"):
            raise self.fault("no book", payload)
        update = self.need(data, "u", int, payload)
        event_ns = self.need_ns(message, "cts" if "cts" in message else "ts", payload)
        if data.get("s") != symbol:
            raise self.fault("symbol and topic differ", payload)
        instrument = self.instrument(symbol)
        if instrument is None:
            return
        if depth == 1:
            return self.read_bbo(instrument, data, update, event_ns, payload, recv_ns)
        if self.topics.setdefault(symbol, topic) != topic:
            return self.count("another depth")
        bids, asks = self.levels(instrument, (data.get("b"), data.get("a")), payload)
        self.count(kind)
        if kind == "snapshot" or update == 1:             # §5.2: the service restarted
            self.sink.snapshot(instrument, update, event_ns, recv_ns, bids, asks)
        else:
            self.sink.depth(instrument, update, update, None, event_ns, recv_ns, bids, asks)

    def read_bbo(self, instrument, data, update, event_ns, payload, recv_ns):
        bids, asks = self.levels(instrument, (data.get("b"), data.get("a")), payload)
        if len(bids) != 2 or len(asks) != 2:
            return self.count("bbo without a side")
        self.count("bbo")
        self.sink.bbo(instrument, update, event_ns, recv_ns, *bids, *asks)

    def read_trades(self, message, payload, recv_ns):
        entries = message.get("data")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.fault("no trades", payload)
        calls = []
        for entry in entries:
            event_ns = self.need_ns(entry, "T", payload)
            side = SIDES.get(self.need(entry, "S", str, payload))
            if side is None:
                raise self.fault(f"'S' is {entry.get('S')!r:.40}, expected Buy or Sell", payload)
            trade_id = trade_id_of(self.need(entry, "i", str, payload))
            sequence = self.need(entry, "seq", int, payload) if "seq" in entry else 0
            texts = self.need(entry, "p", str, payload), self.need(entry, "v", str, payload)
            symbol = self.need(entry, "s", str, payload)
            if entry.get("BT") is True:                   # a block trade: agreed on elsewhere, not of this book
                self.not_market += 1
                continue
            instrument = self.instrument(symbol)
            if instrument is not None:
                calls.append((instrument, sequence, event_ns, recv_ns, trade_id, *texts, side))
        self.count("trade")
        self.trades(calls)


class BybitSpot(Bybit):
    name = "bybit_spot"
    category = "spot"
    lot_key = "basePrecision"
    facts = VenueFacts(
        "Bybit v5 spot", "update ids one by one (observed)", (("depth", "bbo", "trade"),),
        re.compile(r"[A-Z0-9]+"), "BTCUSDT",
        {"snapshot_limit": 200, "connects_per_5_minutes": 400},
        snapshot_limits=(50, 200, 1000), ping=Ping('{"op":"ping"}', 20), command_every_ms=100, connect_every_ms=100,
        splits=True, notes="10 topics a request, 21,000 characters of topics a connection, 500 connects in 5 min; "
        "50 levels every 20 ms, 200 every 100 ms, 1000 every 200 ms")


class BybitLinear(Bybit):
    name = "bybit_linear"
    category = "linear"
    contract = "-PERP"
    lot_key = "qtyStep"
    facts = BybitSpot.facts._replace(title="Bybit v5 linear contracts", symbol=re.compile(r"[A-Z0-9]+(?:-[A-Z0-9]+)*"))

    @classmethod
    def common_name(cls, symbol):
        """§8: BTCUSDT is BTC/USDT-PERP, BTCPERP BTC/USDC-PERP; BTCUSDT-26DEC25 and BTC-26DEC25 have a date."""
        pair, mark, date = symbol.partition("-")
        if mark:
            pair = pair if pair.endswith(("USDT", "USDC")) else pair + "USDC"
            return super().common_name(pair).replace(cls.contract, "-" + date)
        return super().common_name(symbol[:-4] + "USDC" if symbol.endswith("PERP") else symbol)
