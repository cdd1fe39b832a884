"""Kraken v2, and v1 of its recordings: what messages become; checksums against the documented and a plain reading.

What every venue has to fulfil is in test_venue_contract.
"""

import json
from collections import Counter
from decimal import Decimal
from zlib import crc32

import pytest
from mutate import MUTATIONS
from support import CAPTURES, Market, Recorder, book_decimals, dice, lines, needs_captures, recordings, short

from test_venue_contract import outcome
from test_venue_live import quick         # noqa: F401 (a fixture)
from test_venue_witness import watch

from feeder.errors import CaptureError, NumberError, VenueError
from feeder.message import BUY, SELL
from feeder.replay import Replay
from feeder.venue import kraken, recognise
from feeder.venue.contract import (ACK, ALIVE, ERROR, OWN_SEQUENCE_BITS, SHUTDOWN, BrokenLine, Instruments, Listing,
                                   Notice)
from feeder.venue.kraken import Kraken, KrakenV1

# The documented example, §5.
ASKS = ("45285.2 0.00100000 | 45286.4 1.54571953 | 45286.6 1.54571109 | 45289.6 1.54560911 | 45290.2 0.15890660 | "
        "45291.8 1.54553491 | 45294.7 0.04454749 | 45296.1 0.35380000 | 45297.5 0.09945542 | 45299.5 0.18772827")
BIDS = ("45283.5 0.10000000 | 45283.4 1.54582015 | 45282.1 0.10000000 | 45281.0 0.10000000 | 45280.3 1.54592586 | "
        "45279.0 0.07990000 | 45277.6 0.03310103 | 45277.5 0.30000000 | 45277.3 1.54602737 | 45276.6 0.15445238")
DOCUMENTED = 3310070434
TIME = "2023-10-06T17:35:55.440295Z"
TIME_NS = 1696613755440295000
FIRST = 1 << OWN_SEQUENCE_BITS               # what the first connection counts from


def plain_checksum(bids, asks):
    """§5, word for word: {price text: quantity text} of each side."""
    text = ""
    for side, falling in ((asks, False), (bids, True)):
        for price in sorted(side, key=Decimal, reverse=falling)[:10]:
            for number in (price, side[price]):
                text += number.replace(".", "").lstrip("0")
    return crc32(text.encode())


def side_of(text):
    return [tuple(level.split()) for level in text.split(" | ")]


def message(kind, bids, asks, checksum, symbol="BTC/USD", channel="book"):
    """As the venue prints it: numbers, not texts."""
    rows = [",".join(f'{{"price":{price},"qty":{quantity}}}' for price, quantity in side) for side in (bids, asks)]
    checked = f'"checksum":{checksum},' if checksum is not None else ""
    return (f'{{"channel":"{channel}","type":"{kind}","data":[{{"symbol":"{symbol}",'
            f'"bids":[{rows[0]}],"asks":[{rows[1]}],{checked}"timestamp":"{TIME}"}}]}}')


class Venue2:
    """The venue's side of one book: applies, cuts, prints with the right checksum."""

    def __init__(self, depth=10, bids=side_of(BIDS), asks=side_of(ASKS), symbol="BTC/USD"):
        self.depth, self.symbol = depth, symbol
        self.bids, self.asks = dict(bids), dict(asks)

    def snapshot(self):
        checksum = plain_checksum(self.bids, self.asks)
        return message("snapshot", self.bids.items(), self.asks.items(), checksum, self.symbol)

    def update(self, bids=(), asks=(), wrong=0):
        for side, rows, falling in ((self.bids, bids, True), (self.asks, asks, False)):
            for price, quantity in rows:
                if Decimal(quantity):
                    side[price] = quantity
                else:
                    side.pop(price, None)
            for price in sorted(side, key=Decimal, reverse=falling)[self.depth:]:
                del side[price]
        return message("update", bids, asks, plain_checksum(self.bids, self.asks) + wrong, self.symbol)


def ack(depth=10, symbol="BTC/USD", method="subscribe", number=1):
    return (f'{{"method":"{method}","result":{{"channel":"book","symbol":"{symbol}","depth":{depth},"snapshot":true}},'
            '"success":true,"time_in":"2023-09-25T09:04:31.742599Z","time_out":"2023-09-25T09:04:31.742648Z",'
            f'"req_id":{number}}}')


def status(system):
    return ('{"channel":"status","type":"update","data":[{"api_version":"v2","connection_id":769405522530892351,'
            f'"system":"{system}","version":"2.0.10"}}]}}')


HEARTBEAT = '{"channel":"heartbeat"}'
TRADES = ('{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"sell","price":45283.5,'
          '"qty":0.00027625,"ord_type":"limit","trade_id":10218208,"timestamp":"%s"},'
          '{"symbol":"BTC/USD","side":"buy","price":45285,"qty":1.5e-7,"ord_type":"market","trade_id":10218209,'
          '"timestamp":"2023-10-06T17:35:55.440295123Z"}]}' % TIME)
TICKER = ('{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":45283.5,"bid_qty":0.10000000,'
          '"ask":45285.2,"ask_qty":0.00100000,"last":45283.5,"volume":1.0,"vwap":45283.5,"low":45000.0,"high":46000.0,'
          '"change":0.0,"change_pct":0.00}]}')
PONG = '{"method":"pong","req_id":42,"time_in":"2023-09-25T09:04:31.742599Z","time_out":"2023-09-25T09:04:31.742648Z"}'
REFUSED = ('{"method":"subscribe","error":"Currency pair not supported BTC/USDX","success":false,"symbol":"BTC/USDX",'
           '"req_id":1,"time_in":"2023-09-25T09:04:31.742599Z"}')


def samples():
    venue = Venue2()
    return [status("online"), ack(), REFUSED, venue.snapshot(), HEARTBEAT, venue.update([("45283.5", "0.00000000")]),
            TICKER, venue.update([("45284.0", "0.20000000")], [("45285.2", "0.00500000")]), TRADES, PONG]


V1 = ['{"connectionID":13935949241502919679,"event":"systemStatus","status":"online","version":"1.8.3"}',
      '{"channelID":320,"channelName":"book-10","event":"subscriptionStatus","pair":"XBT/USD","status":"subscribed",'
      '"subscription":{"depth":10,"name":"book"}}',
      '[320,{"as":[["58729.40000","0.45000000","1617666423.606671"]],'
      '"bs":[["58724.80000","0.10000000","1617666423.681845"]]},"book-10","XBT/USD"]',
      '[320,{"a":[["58729.40000","0.02203518","1617666424.577187"]]},'
      '{"b":[["58724.80000","0.03017320","1617666424.577304"]],"c":"%d"},"book-10","XBT/USD"]'
      % crc32(b"5872940000" b"2203518" b"5872480000" b"3017320"),
      '[321,[["58721.20000","0.02798644","1617666461.465618","s","m",""],'
      '["58721.20000","0.12749400","1617666461.466773","b","l",""]],"trade","XBT/USD"]', '{"event":"heartbeat"}']
SAMPLES = {"kraken": samples(), "kraken_v1": V1}


class Plain:
    """One connection's trades by nothing but json."""

    def trades(self, message):
        if isinstance(message, dict) and (message.get("channel"), message.get("type")) == ("trade", "update"):
            for trade in message["data"]:
                yield trade["symbol"], trade["side"]
        elif isinstance(message, list) and message[-2] == "trade":
            for trade in message[1]:
                yield message[-1], {"b": "buy", "s": "sell"}[trade[3]]


class Connection:
    """A session and what it told."""

    def __init__(self, kind=Kraken, streams=("book-10:BTC/USD",)):
        self.venue = kind(Recorder(), Instruments(), discover=True)
        self.session = self.venue.session()
        if streams:
            self.session.subscribe(streams, 1)

    def hear(self, *texts):
        """Return the last notice."""
        for text in texts:
            notice = self.session.decode(text.encode(), 9)
        return notice

    def told(self):
        return [call for call in self.venue.sink.take() if call[0] != "define"]

    @property
    def instrument(self):
        return next(iter(self.venue.instruments))


def flat(levels, price_decimals=1):
    return [number for price, quantity in levels
            for number in (int(Decimal(price).scaleb(price_decimals)), int(Decimal(quantity).scaleb(8)))]


# -- the book -------------------------------------------------------------------------------------------------------


def test_the_documented_checksum():
    assert plain_checksum(dict(side_of(BIDS)), dict(side_of(ASKS))) == DOCUMENTED
    connection = Connection()
    connection.hear(message("snapshot", side_of(BIDS), side_of(ASKS), DOCUMENTED))
    assert connection.told() == [
        ("snapshot", "BTC/USD", FIRST + 1, TIME_NS, 9, flat(side_of(BIDS)), flat(side_of(ASKS)))]
    assert connection.instrument.verified == 1 and connection.venue.checksums_failed == 0


@pytest.mark.parametrize("at", range(20))
def test_every_one_of_the_twenty_levels_is_proved(at):
    """One digit of one level, and nothing is published."""
    sides = [side_of(BIDS), side_of(ASKS)]
    side = sides[at // 10]
    price, quantity = side[at % 10]
    side[at % 10] = price, quantity[:-1] + str((int(quantity[-1]) + 1) % 10)
    connection = Connection()
    connection.hear(message("snapshot", *sides, DOCUMENTED))
    assert connection.told() == [("stale", "BTC/USD", "checksum", 9)]
    assert (connection.instrument.verified, connection.venue.checksums_failed) == (0, 1)


def test_messages_and_what_they_become():
    connection = Connection()
    venue = Venue2()
    connection.hear(venue.snapshot(), venue.update([("45283.5", "0.00000000")]), TICKER, TRADES)
    assert connection.told()[1:] == [
        ("depth", "BTC/USD", FIRST + 2, FIRST + 2, None, TIME_NS, 9, [452835, 0], []),
        ("bbo", "BTC/USD", 0, 0, 9, 452835, 10000000, 452852, 100000),
        ("trade", "BTC/USD", 10218208, TIME_NS, 9, 10218208, 452835, 27625, SELL),
        ("trade", "BTC/USD", 10218209, TIME_NS + 123, 9, 10218209, 452850, 15, BUY)]


def test_levels_beyond_the_depth_fall_off_and_are_told_as_removed():
    connection = Connection()
    venue = Venue2(bids=side_of(BIDS))
    connection.hear(venue.snapshot(), venue.update([("45284.0", "1.00000000")]))
    assert connection.told()[-1][-2:] == ([452840, 100000000, 452766, 0], [])
    # The level that fell off is unknown now; its removal, or a level that falls off at once, changes nothing.
    connection.hear(venue.update([("45276.6", "0.00000000")]), venue.update([("45270.0", "1.00000000")]))
    assert [call[-2] for call in connection.told()] == [[452766, 0], [452700, 100000000, 452700, 0]]
    assert connection.instrument.verified == 4


def test_rows_are_applied_in_order():
    connection = Connection()
    venue = Venue2()
    connection.hear(venue.snapshot(), venue.update(asks=[("45285.2", "0.00000000"), ("45285.2", "2.00000000"),
                                                         ("45286.4", "1.00000000"), ("45286.4", "0.00000000")]))
    assert connection.instrument.verified == 2
    assert connection.told()[-1][-1] == [452852, 0, 452852, 200000000, 452864, 100000000, 452864, 0]


def test_few_levels_and_an_empty_side():
    connection = Connection()
    venue = Venue2(bids=[], asks=[("0.00000783", "105.00000000")], symbol="BTC/USD")
    connection.hear(venue.snapshot(), venue.update([("0.00000001", "7.00000000")]),
                    venue.update([], [("0.00000783", "0")]))
    assert connection.instrument.verified == 3


def test_a_wrong_checksum_costs_one_book_until_its_next_snapshot():
    connection = Connection(streams=["book-10:BTC/USD", "book-10:ETH/USD"])
    venue, other = Venue2(), Venue2(symbol="ETH/USD")
    connection.hear(venue.snapshot(), other.snapshot())
    connection.told()
    connection.hear(venue.update([("45283.5", "9.00000000")], wrong=1), venue.update([("45283.5", "8.00000000")]),
                    other.update([("45283.5", "9.00000000")]))
    assert connection.told() == [("stale", "BTC/USD", "checksum", 9),
                                 ("depth", "ETH/USD", FIRST + 2, FIRST + 2, None, TIME_NS, 9, [452835, 9 * 10**8], [])]
    assert connection.venue.checksums_failed == 1 and connection.venue.kinds["update without a book"] == 1
    connection.hear(venue.snapshot(), venue.update([("45283.5", "7.00000000")]))
    kinds = [(call[0], call[2]) for call in connection.told()]
    assert kinds == [("snapshot", FIRST + 3), ("depth", FIRST + 4)], "what failed was counted, too"


@pytest.mark.parametrize("spoil", [
    lambda text: text.replace('"checksum"', '"sum"'), lambda text: text.replace('"qty"', '"size"'),
    lambda text: text.replace('"update"', '"change"'), lambda text: text.replace("45284.0", "45284.0e99"),
    lambda text: text.replace("45284.0", "-45284.0"), lambda text: text.replace(TIME, "yesterday")])
def test_a_book_message_that_cannot_be_read_costs_its_book(spoil):
    connection = Connection()
    venue = Venue2()
    connection.hear(venue.snapshot())
    connection.told()
    with pytest.raises((VenueError, NumberError)) as caught:
        connection.hear(spoil(venue.update([("45284.0", "9.00000000")])))
    assert not isinstance(caught.value, BrokenLine)
    assert {call[:2] for call in connection.told()} == {("stale", "BTC/USD")}
    connection.hear(venue.update([("45284.0", "0.00000000")]))
    assert connection.told() == []


@pytest.mark.parametrize("text", [
    "{", '{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[{"price":',
    '{"channel":"book","type":"update","data":[]}', '{"channel":"book","data":[{"symbol":[]}]}'])
def test_a_message_that_may_be_of_any_book_breaks_the_line(text):
    connection = Connection(streams=["book-10:BTC/USD", "book-10:ETH/USD"])
    venue, other = Venue2(), Venue2(symbol="ETH/USD")
    connection.hear(venue.snapshot(), other.snapshot())
    connection.told()
    with pytest.raises(BrokenLine):
        connection.hear(text)
    assert connection.told() == [("stale", "BTC/USD", "gap", 9), ("stale", "ETH/USD", "gap", 9)]
    connection.hear(venue.update([("45283.5", "9.00000000")]), other.update([("45283.5", "9.00000000")]))
    assert connection.told() == []


def test_digits_are_those_of_the_wire_whatever_their_spelling():
    """A price without point, an exponent, more decimals than others: what is printed counts."""
    asks = [("105944", "0.00000015"), ("105945", "1.00000000")]
    text = message("snapshot", [], asks, plain_checksum({}, dict(asks))).replace("0.00000015", "1.5e-7")
    connection = Connection()
    connection.hear(message("snapshot", [], asks, plain_checksum({}, dict(asks))), text)
    assert connection.instrument.verified == 2 and connection.venue.checksums_failed == 0
    assert connection.told()[-1][-1] == [105944, 15, 105945, 10**8]


def test_a_depth_nobody_told_is_guessed_from_the_snapshot():
    connection = Connection(streams=())
    connection.hear(Venue2().snapshot())
    assert connection.session.mirrors["BTC/USD"].depth == 10
    connection.hear(ack(depth=500), Venue2().snapshot())
    assert connection.session.mirrors["BTC/USD"].depth == 500


def test_both_paths_agree_on_updates_however_they_are_spelled():
    """A walking book of 25 levels whose checksums are right, so that no message is refused before it is read."""
    rng = dice(8)
    spellings = [(TIME, "2023-10-06T17:35:55.440295123Z"), (TIME, "2023-10-06T17:35:55Z"), (":[{", ": [{"),
                 (TIME, "2023-10-06T17:35:56.000001Z"), ("0.00000015", "1.5e-7"), ("0.00000015", "15E-8"),
                 ("BTC/USD", "BTC\\/USD"), (f',"timestamp":"{TIME}"', "")]
    one, other = (Connection(streams=["book-25:BTC/USD"]) for _ in range(2))
    venue = Venue2(25)
    for number in range(1_500):
        price = 452_843 + rng.randrange(-60, 60)
        text = f"{price // 10}.{price % 10}"
        side = venue.bids if price <= 452_843 else venue.asks
        any_quantity = f"{rng.randrange(30)}.{rng.randrange(10**8):08d}"
        quantity = rng.choice(("0.00000000", "0.00000015", "0.00000015", any_quantity))
        rows = [(text, quantity)] if rng.random() < 0.8 else [(text, "1.00000000"), (text, quantity)]
        raw = venue.update(*((rows, []) if side is venue.bids else ([], rows)), wrong=number in (700, 900))
        if rng.random() < 0.3:
            raw = raw.replace(*rng.choice(spellings))
        if number in (0, 710, 905):
            raw = venue.snapshot()
        assert one.hear(raw) == other.session.decode_json(raw.encode(), 9)
        assert one.venue.sink.take() == other.venue.sink.take(), raw
    assert one.instrument.verified == other.instrument.verified > 1_400 and one.venue.checksums_failed == 2
    print(f"{one.venue.likely} of 1,500 by the likely path")
    assert 900 < one.venue.likely < 1_400


def test_the_likely_path_is_learned_for_decimals_and_unlearned_with_them():
    connection = Connection()
    venue = Venue2()
    connection.hear(venue.snapshot(), *[venue.update([("45284.0", f"0.0{number}000000")]) for number in range(1, 5)])
    assert connection.venue.likely == 3, "the first one teaches"
    connection.hear(TRADES.replace("45283.5", "45283.51"))                # the venue prints more decimals from now on
    connection.hear(venue.update([("45284.0", "1.00000000")]), venue.update([("45284.0", "2.00000000")]))
    assert connection.venue.likely == 3 and connection.instrument.price_decimals == 2
    assert [call[-2] for call in connection.told()[-2:]] == [[4528400, 100000000], [4528400, 200000000]]
    assert connection.instrument.verified == 7 and connection.venue.checksums_failed == 0


# -- what else is said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, notice", [
    (ack(), Notice(ACK, ("1 BTC/USD",), "")), (ack(method="unsubscribe", number=7), Notice(ACK, ("7 BTC/USD",), "")),
    (REFUSED, Notice(ERROR, "1 BTC/USDX", "BTC/USDX: Currency pair not supported BTC/USDX")),
    ('{"method":"subscribe","error":"Symbol(s) missing","success":false,"req_id":3}',
     Notice(ERROR, None, "Symbol(s) missing")),
    (PONG, Notice(ALIVE, None, "")), (HEARTBEAT, Notice(ALIVE, None, "")), (status("online"), Notice(ALIVE, None, ""))])
def test_notices(text, notice):
    connection = Connection()
    assert connection.hear(text) == notice and connection.told() == []


@pytest.mark.parametrize("system", ["cancel_only", "post_only", "maintenance"])
def test_where_nothing_is_matched_books_may_cross(system):
    connection = Connection()
    venue = Venue2()
    connection.hear(status("online"), venue.snapshot())
    assert not connection.instrument.may_cross
    assert connection.hear(status(system)).kind == ALIVE and connection.instrument.may_cross
    notice = connection.hear(status("online"))
    assert not connection.instrument.may_cross
    assert notice.kind == (SHUTDOWN if system == "maintenance" else ALIVE)
    later = connection.venue.session()                    # the next connection is told before its first book
    later.decode(status(system).encode(), 9)
    later.decode(venue.snapshot().encode(), 9)
    assert connection.instrument.may_cross


def test_old_trades_are_not_told_again():
    connection = Connection()
    connection.hear(TRADES.replace('"update"', '"snapshot"'))
    assert connection.told() == [] and connection.venue.kinds["old trades"] == 1


def test_requests():
    session = Connection().session
    made = session.venue.lines(["BTC/USD", "ETH/USD"], ["depth", "trade", "bbo"], 0, 5, 25)
    assert [line.path for line in made] == ["/v2", "/v2"] and len(made[0].streams) == 5
    assert made[0].streams[:3] == ["book-25:BTC/USD", "book-25:ETH/USD", "trade:BTC/USD"]
    book, trade, ticker = session.subscribe(made[0].streams, 5)
    assert json.loads(book.text) == {"method": "subscribe", "req_id": 5, "params": {
        "channel": "book", "symbol": ["BTC/USD", "ETH/USD"], "depth": 25}}
    assert book.keys == {"5 BTC/USD": ["book-25:BTC/USD"], "5 ETH/USD": ["book-25:ETH/USD"]}
    assert json.loads(trade.text)["params"] == {"channel": "trade", "symbol": ["BTC/USD", "ETH/USD"], "snapshot": False}
    assert json.loads(ticker.text)["params"]["event_trigger"] == "bbo"
    assert ticker.keys == {"7 BTC/USD": ["ticker:BTC/USD"]}
    gone, = session.unsubscribe(["book-25:ETH/USD"], 9)
    assert json.loads(gone.text) == {"method": "unsubscribe", "req_id": 9, "params": {
        "channel": "book", "symbol": ["ETH/USD"], "depth": 25}}
    assert len(session.subscribe([f"trade:T{number}/USD" for number in range(250)], 1)) == 3


def test_addresses():
    for url in ("wss://ws.kraken.com/v2", "wss://beta-ws.kraken.com/v2", "https://api.kraken.com/0/public/AssetPairs"):
        assert recognise(url) is Kraken
    assert recognise("wss://ws.kraken.com") is KrakenV1
    with pytest.raises(CaptureError, match="kraken_futures"):
        recognise("wss://futures.kraken.com/ws/v1")


def test_instruments_have_the_names_of_v2():
    venue = Connection().venue
    body = {"error": [], "result": {
        "XXBTZUSD": {"wsname": "XBT/USD", "pair_decimals": 1, "lot_decimals": 8, "tick_size": "0.5"},
        "XDGUSD": {"wsname": "XDG/USD", "pair_decimals": 7, "lot_decimals": 8}}}
    assert venue.decode_instruments(json.dumps(body).encode()) == {
        "BTC/USD": Listing("0.5", "0.00000001"), "DOGE/USD": Listing("0.0000001", "0.00000001")}
    with pytest.raises(VenueError, match="EGeneral:Too many requests"):
        venue.decode_instruments(b'{"error":["EGeneral:Too many requests"]}')
    assert KrakenV1.common_name("XBT/USD") == "BTC/USD"


# -- v1, and recordings ---------------------------------------------------------------------------------------------


def test_v1_sides_in_two_objects_and_republished_rows():
    connection = Connection(KrakenV1, ())
    connection.hear(*V1, V1[3].replace('304"]', '304","r"]'))
    calls = connection.told()
    assert calls[0][-2:] == ([5872480000, 10000000], [5872940000, 45000000])
    assert calls[1] == ("depth", "XBT/USD", FIRST + 2, FIRST + 2, None, 1617666424577304000, 9, [5872480000, 3017320],
                        [5872940000, 2203518])
    assert [call[5:] for call in calls[2:4]] == [(0, 5872120000, 2798644, SELL), (0, 5872120000, 12749400, BUY)]
    assert connection.instrument.verified == 2
    with pytest.raises(VenueError, match="'c'"):
        connection.hear(V1[3].replace('"c"', '"x"'))
    assert connection.told() == [("stale", "XBT/USD", "bad_message", 9)]


def rows_of(entry):
    """Yield (symbol, is snapshot, depth, bids, asks, checksum) of a recorded message, numbers as printed."""
    found = json.loads(entry["raw"], parse_float=str, parse_int=str)
    if isinstance(found, dict):
        if found.get("channel") == "book":
            data, = found["data"]
            bids, asks = ([(row["price"], row["qty"]) for row in data[side]] for side in ("bids", "asks"))
            yield data["symbol"], found["type"] == "snapshot", 10, bids, asks, data["checksum"]
    elif found[-2].startswith("book"):
        merged = {key: value for part in found[1:-2] for key, value in part.items()}
        bids, asks = ([row[:2] for row in merged.get(side, merged.get(side + "s", []))] for side in "ba")
        yield found[-1], "as" in merged, int(found[-2][5:]), bids, asks, merged.get("c")


@needs_captures
@pytest.mark.parametrize("path", recordings("kraken"), ids=short)
def test_books_equal_a_plain_model_and_the_venues_checksums_a_plain_computation(path):
    """Every checksum by the plain reading here, and again by the feeder: the same count."""
    books, verified = {}, 0
    for entry in lines(path):
        for symbol, is_snapshot, depth, *sides, checksum in rows_of(entry) if entry["dir"] == "in" else ():
            book = books.setdefault(symbol, ({}, {}))
            for side, rows, falling in zip(book, sides, (True, False)):
                if is_snapshot:
                    side.clear()
                for price, quantity in rows:
                    if Decimal(quantity):
                        side[price] = quantity
                    else:
                        side.pop(price, None)
                if len(side) > depth:
                    for price in sorted(side, key=Decimal, reverse=falling)[depth:]:
                        del side[price]
            if checksum is not None and (verified < 500 or "v2" in path.name):        # plain is slow
                assert plain_checksum(*book) == int(checksum)
                verified += 1
    replay = Replay(lambda datagram: None, session=1)
    replay.file(path)
    market = {symbol: Market() for symbol in books}
    for symbol, (bids, asks) in books.items():
        market[symbol].apply(bids.items(), asks.items())
    assert {entry.instrument.symbol: book_decimals(entry) for entry in replay.pipeline.publisher.entries} == {
        symbol: each.top() for symbol, each in market.items()}
    rows = replay.report(1)["instruments"]
    assert sum(row["checksums_verified"] for row in rows) == (54 if "v2" in path.name else 14_496)


@needs_captures
def test_single_messages_of_v1_are_read_or_counted():
    for entry in lines(CAPTURES / "kraken" / "single_messages.jsonl"):
        connection = Connection(KrakenV1, ())
        if entry["kind"] == "ws":
            connection.hear(entry["raw"])


def test_without_checksums_wrong_books_would_be_live(monkeypatch):
    """So the witness of test_venue_witness can fail."""
    class Anything:
        def __ne__(self, other):
            return False

    monkeypatch.setattr(kraken, "checksum_of", lambda mirror: Anything())
    assert watch("kraken", ("gap", "reorder"), 5, 1).wrong


def talks():
    """What a connection brings; all checksums are right."""
    venue = Venue2(25)
    made = [ack(25), venue.snapshot()]
    made += [venue.update([(f"45284.{number % 10}", f"{number}.00000001")], [("45286.4", f"0.{number:08d}")])
             for number in range(40)]
    yield [text.encode() for text in made]
    for path in recordings("kraken"):
        if "v2" in path.name:
            yield [entry["raw"].encode() for entry in lines(path) if entry["dir"] == "in"]


def spoil(talks, connect, count, seed):
    """One message of a sound conversation is spoiled; then it goes on. Both paths see the same all the way."""
    rng, went, likely = dice(seed), Counter(), 0
    for _ in range(count):
        payloads = rng.choice(talks)
        at = rng.randrange(len(payloads) // 2, len(payloads))
        spoiled = rng.choice(MUTATIONS)(rng, payloads[at])
        one, other = connect(), connect()
        for payload in (*payloads[:at], spoiled, *payloads[at:at + 2]):
            before = one.venue.likely
            result = outcome(one.session.decode, payload)
            assert result == outcome(other.session.decode_json, payload), payload
            calls = one.venue.sink.take()
            assert calls == other.venue.sink.take(), payload
            if payload is spoiled:
                went[result.__name__ if isinstance(result, type) else "read"] += 1
                likely += one.venue.likely - before
                if isinstance(result, type):
                    assert not {call[0] for call in calls} - {"define", "stale"}, payload
    print(f"{one.venue.name}: {dict(went)}, {likely} spoiled ones by the likely path")
    assert went["read"] and went["BrokenLine"] and likely


def test_both_paths_agree_on_a_spoiled_message_amid_sound_ones():
    spoil(list(talks()), lambda: Connection(streams=()), 100, 1)


@pytest.mark.stress
def test_both_paths_agree_on_many_spoiled_messages():
    spoil(list(talks()), lambda: Connection(streams=()), 4_000, 2)
