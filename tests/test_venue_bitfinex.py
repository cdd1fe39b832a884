"""Bitfinex v2: what messages become, the count over the socket, and checksums against vectors and a plain computation.

What every venue has to fulfil is in test_venue_contract.
"""

import json
from decimal import Decimal
from zlib import crc32

import pytest
from support import CAPTURES, Market, Recorder, book_decimals, dice, lines, needs_captures, recordings, short
from test_venue_kraken import spoil

from feeder.errors import VenueError
from feeder.message import BUY, SELL
from feeder.replay import Replay
from feeder.venue import recognise
from feeder.venue.bitfinex import FLAGS, MAINTENANCE_NS, OB_CHECKSUM, SEQ_ALL, TIMESTAMP, Bitfinex
from feeder.venue.contract import (ACK, ALIVE, ERROR, OWN_SEQUENCE_BITS, SHUTDOWN, BrokenLine, Instruments, Listing,
                                   Notice)

# Of another project's tests (§5): price:amount, best first, asks without their sign; and the checksum.
VECTORS = [
    ("1000000000:5 64000:1e-8", "64100:2e-8", crc32(b"1000000000:5:64100:-2e-8:64000:1e-8")),
    ("0.000002:158456.10892182 0.000001:75507 1e-7:607000 2e-8:182669 1e-8:258315.53152927",
     "0.000003:132026.43745235 0.000004:2600.22734884 0.000005:1942.485768 0.000006:1996.35673 0.000007:2933.068129 "
     "0.000008:3285.38349046 0.000009:1610.227619 0.00001:2163.06111805 0.00002:48087.30266417 0.00003:2195.91921188 "
     "0.00004:7528.426572 0.00005:10902.277535 0.00006:8404.366051 0.00007:2527.94523598 0.00008:124.18614432 "
     "0.00009:25.39631 0.0001:50.311021 0.0002:25244.5889 0.0006:1328.29032048 0.002:200 0.02:200 0.2:200 1:200",
     1822826369),
    ("60000:0.02675957 1000:0.002168 600:0.009 500:1 300:0.6 100:0.1 70:0.5 30:1.2 6:1 2:4 1:17.388385 0.9:10 0.7:10 "
     "0.6:10 0.5:20 0.4:14 0.3:10 0.2:10 0.1:59 0.04:10 0.02:1 0.01:17 0.00002:10 0.000002:10 2e-7:10",
     "70000:0.05670774 2000000:0.001 20000000:0.00004", 167208263),
    ("", "", 0)]
BTC, DOGE = "tBTCUSD", "tDOGE:USD"
FIRST = 1 << OWN_SEQUENCE_BITS               # what the first connection counts from


def signed(checksum):
    return checksum - 2**32 if checksum >= 2**31 else checksum


def plain_checksum(bids, asks):
    """§5, word for word: {price token: amount token} of each side, asks' amounts negative."""
    bids = sorted(bids.items(), key=lambda row: -Decimal(row[0]))
    asks = sorted(asks.items(), key=lambda row: Decimal(row[0]))
    parts = []
    for at in range(25):
        for side in (bids, asks):
            if at < len(side):
                parts += side[at]
    return signed(crc32(":".join(parts).encode()))


def rows_of(bids, asks, count=1):
    """As a vector has them -> rows as the venue prints them."""
    return [f"[{price},{count},{sign}{amount}]" for sign, side in (("", bids), ("-", asks))
            for price, amount in (row.split(":") for row in side.split())]


def subscribed(channel, symbol, number, levels=100, more=""):
    book = f',"prec":"P0","freq":"F0","len":"{levels}"' if channel == "book" else ""
    return (f'{{"event":"subscribed","channel":"{channel}","chanId":{number},"symbol":"{symbol}"{more or book},'
            f'"pair":"{symbol[1:]}"}}')


INFO = '{"event":"info","version":2,"serverId":"083bd8d4-aca7-4690-a573-eabfc8103de8","platform":{"status":1}}'
REFUSED = '{"event":"error","msg":"symbol: invalid","code":10300,"channel":"book","symbol":"tXX"}'


def info(code, words="Stopping. Please try to reconnect"):
    return f'{{"event":"info","code":{code},"msg":"{words}"}}'


def conf(flags=FLAGS, status="OK"):
    return f'{{"event":"conf","status":"{status}","flags":{flags}}}'


class Connection:
    """A session, what it told, and the venue's count. Of a recording unless `live`: it said hello then."""

    def __init__(self, live=True, flags=FLAGS, books=(BTC,), levels=100):
        self.venue = Bitfinex(Recorder(), Instruments(), discover=True)
        self.session = self.venue.session()
        self.count, self.flags, self.now_ns = 0, flags, 9
        if live:
            self.session.hello(1)
        self.event(INFO, conf(flags))
        for number, symbol in enumerate(books, 10):
            self.event(subscribed("book", symbol, number, levels))

    def event(self, *texts):
        for text in texts:
            notice = self.session.decode(text.encode(), self.now_ns)
        return notice

    def text(self, number, *parts):
        self.count += 1
        tail = [str(self.count)] * bool(self.flags & SEQ_ALL) + ["1574694475039"] * bool(self.flags & TIMESTAMP)
        return f"[{','.join([str(number), *parts, *tail])}]"

    def hear(self, number, *parts):
        return self.event(self.text(number, *parts))

    def told(self):
        return [call for call in self.venue.sink.take() if call[0] != "define"]

    @property
    def instrument(self):
        return next(iter(self.venue.instruments))


def samples():
    made = Connection(live=False, books=())
    checksum = signed(crc32(b"7254.7:3.3:7254.8:-1.5e-7:7254.5:0.5"))
    return [INFO, conf(), subscribed("book", BTC, 10), subscribed("trades", BTC, 11), subscribed("ticker", BTC, 12),
            made.text(12, "[7616.5,31.89055171,7617.5,43.358118629999986,-550.8,-0.0674,7617.1,8314.71200815,8257,75]"),
            made.text(10, "[[7254.7,3,3.3],[7254.5,1,1],[7254.8,1,-0.25]]"), made.text(10, "[7254.5,1,0.5]"),
            made.text(10, "[7254.8,1,-1.5e-7]"), made.text(10, '"cs"', str(checksum)), made.text(10, "[7254.7,0,1]"),
            made.text(11, "[[401597393,1574694475039,0.005,7244.9]]"),
            made.text(11, '"te"', "[401597395,1574694478808,0.005,7245.3]"),
            made.text(11, '"te"', "[401597396,1574694478809,-2e-8,7245.2]"),
            made.text(11, '"tu"', "[401597395,1574694478808,0.005,7245.3]"), made.text(11, '"hb"'), REFUSED,
            '{"event":"pong","ts":1511545528111,"cid":1234}', '{"event":"unsubscribed","status":"OK","chanId":10}',
            made.text(10, "[7254.5,1,0.5]"), info(20060, "maintenance"), info(20061, "over"), info(20051)]


SAMPLES = {"bitfinex": samples()}


class Plain:
    """One connection's trades by nothing but json."""

    def __init__(self):
        self.symbols = {}

    def trades(self, message):
        if isinstance(message, dict):
            if message["event"] == "subscribed":
                self.symbols[message["chanId"]] = message["symbol"]
        elif message[1] == "te":
            yield self.symbols[message[0]], "buy" if message[2][2] > 0 else "sell"


# -- the book -------------------------------------------------------------------------------------------------------


def test_messages_and_what_they_become():
    connection = Connection(live=False, books=())
    connection.event(*SAMPLES["bitfinex"][:-4])
    ns = 1574694475039 * 10**6
    assert connection.told() == [
        ("snapshot", BTC, FIRST + 1, ns, 9, [72547, 330, 72545, 100], [72548, 25]),
        ("depth", BTC, FIRST + 2, FIRST + 2, None, ns, 9, [72545, 50], []),
        ("depth", BTC, FIRST + 3, FIRST + 3, None, ns, 9, [], [72548, 15]),
        ("depth", BTC, FIRST + 4, FIRST + 4, None, ns, 9, [72547, 0], []),
        ("trade", BTC, 401597395, 1574694478808 * 10**6, 9, 401597395, 72453, 500000, BUY),
        ("trade", BTC, 401597396, 1574694478809 * 10**6, 9, 401597396, 72452, 2, SELL),
        ("stale", BTC, "gap", 9)]
    assert connection.instrument.verified == 1 and connection.venue.kinds["old trades"] == 2


@pytest.mark.parametrize("bids, asks, checksum", VECTORS)
def test_checksums_of_known_vectors(bids, asks, checksum):
    own, other = ({price: sign + amount for price, amount in (row.split(":") for row in side.split())}
                  for sign, side in (("", bids), ("-", asks)))
    assert plain_checksum(own, other) == signed(checksum)
    connection = Connection()
    connection.hear(10, f"[{','.join(rows_of(bids, asks))}]")
    connection.hear(10, '"cs"', str(signed(checksum)))
    assert connection.instrument.verified == 1 and connection.venue.checksums_failed == 0
    connection.hear(10, '"cs"', str(signed(checksum) ^ 1))
    assert connection.told()[-1] == ("stale", BTC, "checksum", 9) and connection.venue.checksums_failed == 1


def javascript(number):
    """A decimal as JavaScript prints it."""
    if number < Decimal("1e-6"):
        first, *more = map(str, number.normalize().as_tuple().digits)
        return f"{first}{'.' * bool(more)}{''.join(more)}e{number.adjusted()}"
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def test_checksums_of_random_books_agree_with_the_plain_computation_and_both_paths_with_each_other():
    """Every 10 changes the venue sends the checksum. Both paths read everything alike."""
    rng = dice(4)
    connection, plain = Connection(), Connection()
    bids, asks = {}, {}

    def hear(*parts):
        text = connection.text(10, *parts)
        assert connection.event(text) == plain.session.decode_json(text.encode(), 9)
        assert connection.told() == plain.told(), text

    def price(sign):
        return javascript(Decimal(rng.randrange(1, 400) if sign < 0 else rng.randrange(400, 90_000)).scaleb(-8))

    def amount():
        return javascript(Decimal(rng.randrange(1, 10 ** rng.randrange(1, 12))).scaleb(-8))

    for side, sign in ((bids, -1), (asks, 1)):
        for _ in range(60):
            side[price(sign)] = ("-" if side is asks else "") + amount()
    hear(f"[{','.join(f'[{each},2,{side[each]}]' for side in (bids, asks) for each in side)}]")
    for number in range(600):
        side, sign, mark = rng.choice(((bids, -1, ""), (asks, 1, "-")))
        if side and rng.random() < 0.45:
            gone = rng.choice(sorted(side))
            del side[gone]
            hear(f"[{gone},0,{mark}1]")
        else:
            at = price(sign)
            side[at] = mark + amount()
            hear(f"[{at},1,{side[at]}]")
        if number % 10 == 9:
            hear('"cs"', str(plain_checksum(bids, asks)))
    assert connection.instrument.verified == 60 and connection.venue.checksums_failed == 0
    assert connection.instrument.price_decimals == 8 and plain.instrument.verified == 60
    print(f"{connection.venue.likely} of 600 by the likely path")
    assert 300 < connection.venue.likely < 600, "exponents are json's"


def test_a_removal_of_what_is_not_there_changes_nothing():
    connection = Connection()
    connection.hear(10, "[[7,1,1],[8,1,-1]]")
    connection.hear(10, "[9,0,-1]")
    connection.hear(10, '"cs"', str(signed(crc32(b"7:1:8:-1"))))
    assert connection.told()[1:] == [("depth", BTC, FIRST + 2, FIRST + 2, None, 1574694475039 * 10**6, 9, [], [9, 0])]
    assert connection.instrument.verified == 1


def test_what_is_beyond_the_levels_subscribed_goes_when_the_book_is_proved():
    connection = Connection(levels=25)
    connection.hear(10, f"[{','.join(f'[{price},1,1]' for price in range(200, 225))}]")
    connection.hear(10, "[300,1,1]")
    assert connection.told()[-1][-2:] == ([300, 1], [])
    connection.hear(10, '"cs"', str(plain_checksum({str(price): "1" for price in [300, *range(201, 225)]}, {})))
    assert connection.told() == [("depth", BTC, FIRST + 3, FIRST + 3, None, 1574694475039 * 10**6, 9, [200, 0], [])]
    connection.hear(10, "[201,0,1]")
    assert connection.told()[0][2] == FIRST + 4


def test_a_wrong_checksum_costs_one_book_until_its_next_snapshot():
    connection = Connection(books=(BTC, DOGE))
    connection.hear(10, "[[7,1,1]]")
    connection.hear(11, "[[7,1,1]]")
    connection.told()
    connection.hear(10, '"cs"', "5")
    connection.hear(10, "[8,1,1]")
    connection.hear(11, "[8,1,1]")
    assert connection.told() == [("stale", BTC, "checksum", 9),
                                 ("depth", DOGE, FIRST + 2, FIRST + 2, None, 1574694475039 * 10**6, 9, [8, 1], [])]
    assert connection.hear(10, '"cs"', "5") is None and connection.venue.kinds["checksum without a book"] == 1
    assert connection.session.unsubscribe(["book-100:tBTCUSD", "trades:tBTCUSD"], 7) == [
        ('{"event":"unsubscribe","chanId":10}', {"end 10": ["book-100:tBTCUSD"]})]
    assert connection.event('{"event":"unsubscribed","status":"OK","chanId":10}') == Notice(ACK, ("end 10",), "")
    assert connection.event(subscribed("book", BTC, 77)) == Notice(ACK, ("book tBTCUSD",), "")
    connection.hear(77, "[[6,1,1]]")
    assert connection.told()[-1][:3] == ("snapshot", BTC, FIRST + 2)


@pytest.mark.parametrize("row", ["[7,1]", "[7,-1,1]", "[7,0,2]", "[7,1,null]", "[-7,1,1]", "{}", "[7,[],1]",
                                 "[7,1,1e99]", "[[7,1,1],5]"])
def test_a_row_that_cannot_be_read_costs_its_book(row):
    connection = Connection(books=(BTC, DOGE))
    for number in (10, 11):
        connection.hear(number, "[[7,1,1],[8,1,-1]]")
    connection.told()
    with pytest.raises(VenueError) as caught:
        connection.hear(10, row)
    assert not isinstance(caught.value, BrokenLine)
    assert {call[:2] for call in connection.told()} == {("stale", BTC)}
    for number in (10, 11):
        connection.hear(number, "[9,1,-1]")
    assert [call[:2] for call in connection.told()] == [("depth", DOGE)], "counted, though it was not read"


# -- the count over the socket --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["[9,1,1]", '"hb"', '"cs"', '"te"'])
def test_a_hole_in_the_count_taints_every_book_of_the_socket(lost):
    connection = Connection(books=(BTC, DOGE))
    connection.event(subscribed("trades", BTC, 12))
    for number in (10, 11):
        connection.hear(number, "[[7,1,1]]")
    connection.told()
    connection.text(12 if lost == '"te"' else 10, lost)
    with pytest.raises(BrokenLine, match="array 4 after 2"):
        connection.hear(12, '"hb"')
    assert connection.told() == [("stale", BTC, "gap", 9), ("stale", DOGE, "gap", 9)]
    connection.hear(10, "[8,1,1]")                          # a recording goes on
    assert connection.told() == []


@pytest.mark.parametrize("spoil", [lambda text: text.replace(",3,", ",2,"), lambda text: text.replace(",3,", ",1,"),
                                   lambda text: text.replace(",3,", ",null,"), lambda text: text[:-20],
                                   lambda text: "[10]", lambda text: "[]", lambda text: "17", lambda text: "nonsense"])
def test_what_cannot_be_placed_breaks_the_line(spoil):
    connection = Connection(books=(BTC, DOGE))
    for number in (10, 11):
        connection.hear(number, "[[7,1,1]]")
    connection.told()
    with pytest.raises(BrokenLine):
        connection.event(spoil(connection.text(10, "[8,1,1]")))
    assert connection.told() == [("stale", BTC, "gap", 9), ("stale", DOGE, "gap", 9)]


def test_arrays_of_channels_that_ended_are_counted_and_not_read():
    connection = Connection()
    connection.hear(10, "[[7,1,1]]")
    connection.event('{"event":"unsubscribed","status":"OK","chanId":10}')
    connection.hear(10, "[8,1,1]")
    connection.hear(99, '"hb"')
    assert [call[0] for call in connection.told()] == ["snapshot", "stale"]
    assert connection.venue.kinds["no channel of ours"] == connection.venue.kinds["hb"] == 1
    connection.text(99)
    with pytest.raises(BrokenLine):
        connection.hear(99, '"hb"')


@pytest.mark.parametrize("text", [conf(FLAGS, "FAILED"), conf(SEQ_ALL), conf(OB_CHECKSUM | TIMESTAMP), conf(0)])
def test_without_what_proves_the_books_there_are_none(text):
    venue = Bitfinex(Recorder(), Instruments(), discover=True)
    session = venue.session()
    assert session.hello(1) == [(json.dumps({"event": "conf", "flags": 229376}), {"conf": []})]
    with pytest.raises(BrokenLine, match="refused"):
        session.decode(text.encode(), 9)
    with pytest.raises(BrokenLine, match="not counted"):
        session.decode(b"[10,[[7,1,1]],1,1574694475039]", 9)


def test_a_recording_without_flags_is_read_by_its_own_rules():
    for flags, tail in ((0, ""), (TIMESTAMP, ",1574694475039"), (SEQ_ALL, ",1"),
                        (SEQ_ALL | TIMESTAMP, ",1,1574694475039")):
        connection = Connection(live=False, flags=flags)
        assert connection.text(10, "[[7,1,1]]") == f"[10,[[7,1,1]]{tail}]"
        connection.event(f"[10,[[7,1,1]]{tail}]")
        assert connection.told()[0][3] == (1574694475039 * 10**6 if flags & TIMESTAMP else 0)


# -- what else is said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, notice", [
    (conf(), Notice(ACK, ("conf",), "")), (INFO, Notice(ALIVE, None, "")),
    (subscribed("trades", BTC, 30), Notice(ACK, ("trades tBTCUSD",), "")),
    (REFUSED, Notice(ERROR, "book tXX", "tXX: 10300: symbol: invalid")),
    ('{"event":"error","msg":"unsubscribe: invalid","code":10400,"chanId":7}',
     Notice(ERROR, "end 7", "10400: unsubscribe: invalid")),
    ('{"event":"error","msg":"Unknown event","code":10000}', Notice(ERROR, None, "10000: Unknown event")),
    ('{"event":"pong","ts":1511545528111,"cid":1234}', Notice(ALIVE, None, "")),
    (info(20051), Notice(SHUTDOWN, None, "20051: Stopping. Please try to reconnect"))])
def test_notices(text, notice):
    connection = Connection()
    assert connection.event(text) == notice and connection.told() == []


def test_heartbeats_are_life():
    connection = Connection()
    assert connection.hear(10, '"hb"') == Notice(ALIVE, None, "") and connection.told() == []


def test_in_maintenance_there_are_no_books_and_after_it_all_are_subscribed_anew():
    connection = Connection(books=(BTC, DOGE))
    for number in (10, 11):
        connection.hear(number, "[[7,1,1]]")
    connection.told()
    assert connection.event(info(20060, "Entering in Maintenance mode")).kind == ALIVE
    assert connection.told() == [("stale", BTC, "venue", 9), ("stale", DOGE, "venue", 9)]
    connection.hear(10, "[[6,1,1]]")
    connection.hear(11, "[8,1,1]")
    assert connection.told() == []
    assert connection.event(info(20061, "Maintenance ended")) == Notice(SHUTDOWN, None, "20061: Maintenance ended")
    connection.hear(10, "[8,1,1]")
    assert connection.told() == []
    connection.hear(10, "[[6,1,1]]")
    assert connection.told()[0][0] == "snapshot"


def test_a_maintenance_whose_end_is_not_told_ends_with_the_connection():
    connection = Connection(books=())
    connection.event(INFO.replace('"status":1', '"status":0'), subscribed("book", BTC, 10))
    connection.hear(10, "[[6,1,1]]")
    connection.now_ns += MAINTENANCE_NS
    connection.hear(10, '"hb"')
    connection.now_ns += 1
    with pytest.raises(BrokenLine, match="maintenance for more than 120 s"):
        connection.hear(10, '"hb"')
    assert connection.told() == []


def test_other_books_are_not_ours():
    connection = Connection()
    connection.event(subscribed("book", BTC, 20, 25),
                     subscribed("book", DOGE, 21, more=',"prec":"R0","freq":"F0","len":"25"'))
    connection.hear(10, "[[7,1,1]]")
    connection.hear(20, "[[6,1,1]]")
    connection.hear(21, "[[34753002978,7294.7,1.54340371]]")
    assert [call[-2] for call in connection.told()] == [[7, 1]]
    assert connection.venue.kinds["another depth"] == connection.venue.kinds["another book"] == 1


def test_requests_and_addresses():
    session = Connection(books=()).session
    made = session.venue.lines([BTC, DOGE], ["depth", "trade"], 0, 3, 100)
    assert [(line.path, line.streams) for line in made] == [
        ("/ws/2", ["book-100:tBTCUSD", "book-100:tDOGE:USD", "trades:tBTCUSD"]), ("/ws/2", ["trades:tDOGE:USD"])]
    assert session.venue.symbol_of("book-100:tDOGE:USD") == DOGE
    book, _, trades = session.subscribe(made[0].streams, 5)
    assert json.loads(book.text) == {"event": "subscribe", "channel": "book", "symbol": BTC, "prec": "P0", "freq": "F0",
                                     "len": "100"} and book.keys == {"book tBTCUSD": ["book-100:tBTCUSD"]}
    assert json.loads(trades.text) == {"event": "subscribe", "channel": "trades", "symbol": BTC}
    assert session.unsubscribe(["book-100:tBTCUSD"], 5) == [], "nobody told its channel yet"
    assert recognise("wss://api-pub.bitfinex.com/ws/2") is recognise("wss://api.bitfinex.com/ws/2") is Bitfinex


@pytest.mark.parametrize("symbol, name, pair", [
    ("tBTCUSD", "BTC/USD", ("BTC", "USD")), ("tBTCUST", "BTC/USDT", ("BTC", "USDT")),
    (DOGE, "DOGE/USD", ("DOGE", "USD")), ("tDSHUSD", "DASH/USD", ("DASH", "USD")),
    ("tBTCF0:USTF0", "BTC/USDT-PERP", None), ("tDOTF0:BTCF0", "DOT/BTC-PERP", None),
    ("tTESTBTC:TESTUSD", "TESTBTC/TESTUSD", ("TESTBTC", "TESTUSD")), ("fUSD", "fUSD", None)])
def test_names(symbol, name, pair):
    assert Bitfinex.common_name(symbol) == name
    if pair:
        assert Bitfinex.spelling(*pair) == symbol and Bitfinex.facts.symbol.fullmatch(symbol)


def test_instrument_lists_are_asked_for_as_far_as_needed():
    venue = Connection().venue
    paths = [[request.path.rpartition(":")[2] for request in venue.instruments_requests(symbols)]
             for symbols in ([BTC], ["tBTCF0:USTF0"], [BTC, "tBTCF0:USTF0"], [])]
    assert paths == [["exchange"], ["futures"], ["exchange", "futures"], ["exchange", "futures"]]
    assert venue.decode_instruments(b'[["BTCUSD","DOGE:USD"]]') == {
        BTC: Listing(None, "0.00000001"), DOGE: Listing(None, "0.00000001")}


# -- recordings -----------------------------------------------------------------------------------------------------


@needs_captures
@pytest.mark.parametrize("path", recordings("bitfinex"), ids=short)
def test_books_equal_a_plain_model_and_the_ticker_is_no_best_bid(path):
    """Books as anybody would keep them; the venue says itself what leaves the 100 levels. Some rows have exponents."""
    symbols, books, most, exponents, sums = {}, {}, 0, 0, 0
    for entry in lines(path):
        found = json.loads(entry["raw"], parse_float=str, parse_int=str)
        if entry["dir"] == "out":
            continue
        if isinstance(found, dict):
            if found["event"] == "subscribed":
                symbols[found["chanId"]] = found["channel"], found["symbol"]
            continue
        channel, symbol = symbols.get(found[0], ("", ""))
        market = books.get(symbol)
        if channel == "ticker" and market is not None and found[1] != "hb":
            bids = market.top(25)[0]
            sums += abs(sum(quantity for _, quantity in bids) - Decimal(found[1][1])) < Decimal("1e-7")
        if channel != "book" or found[1] == "hb":
            continue
        rows = found[1] if not found[1] or type(found[1][0]) is list else [found[1]]
        market = books.setdefault(symbol, Market())
        for price, count, amount in rows:
            exponents += "e" in price + amount
            level = [(price, amount.lstrip("-") if int(count) else "0")]
            market.apply(*((level, []) if amount[0] != "-" else ([], level)))
        most = max(most, len(market.bids), len(market.asks))
    replay = Replay(lambda datagram: None, session=1)
    replay.file(path)
    assert {entry.instrument.symbol: book_decimals(entry) for entry in replay.pipeline.publisher.entries} == {
        symbol: market.top() for symbol, market in books.items()}
    assert (len(books), most) == (7, 100) and exponents == 21
    assert sums >= 5, "BID_SIZE is the sum of 25 levels"


@needs_captures
def test_single_messages_are_of_channels_nobody_subscribed_here():
    """Their recorder put the subscription in the channel's place."""
    for entry in lines(CAPTURES / "bitfinex" / "single_messages.jsonl"):
        if entry["kind"] == "ws":
            connection = Connection(live=False, flags=0, books=())
            assert connection.event(entry["raw"]) is None and connection.told() == []
            assert connection.venue.kinds["no channel of ours"] == 1


def talks():
    """The recording's begin, and one whose checksums are right."""
    yield [text.encode() for text in SAMPLES["bitfinex"][:12]]
    for path in recordings("bitfinex"):
        yield [entry["raw"].encode() for entry in lines(path) if entry["dir"] == "in"][:110]


def test_both_paths_agree_on_a_spoiled_message_amid_sound_ones():
    spoil(list(talks()), lambda: Connection(live=False, flags=0, books=()), 100, 1)


@pytest.mark.stress
def test_both_paths_agree_on_many_spoiled_messages():
    spoil(list(talks()), lambda: Connection(live=False, flags=0, books=()), 4_000, 2)
