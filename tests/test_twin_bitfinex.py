"""The twin's Bitfinex over real sockets, read by a bare client written from the fact sheet alone; with checksums."""

import json
from decimal import Decimal
from zlib import crc32

import pytest

from feeder.twin.bitfinex import javascript
from feeder.twin.faults import parse
from twin_bench import Book, Follower, bench

BITFINEX = "bitfinex"
BTC, ETH = "tBTCUSD", "tETHUSD"
PATH = "/ws/2"
SEQ_ALL, OB_CHECKSUM, TIMESTAMP = 65_536, 131_072, 32_768
TOKENS = {"parse_float": str, "parse_int": str}


def checksum(bids, asks):
    """Fact sheet, 5, over {price token: amount token}, amounts of asks negative."""
    bids = sorted(bids.items(), key=lambda row: Decimal(row[0]), reverse=True)[:25]
    asks = sorted(asks.items(), key=lambda row: Decimal(row[0]))[:25]
    words = []
    for place in range(25):
        for side in (bids, asks):
            words += [":".join(side[place])] if place < len(side) else []
    number = crc32(":".join(words).encode()) if words else 0
    return number - 2 ** 32 if number >= 2 ** 31 else number


def test_documented_vectors():
    asks = ("0.000003:132026.43745235 0.000004:2600.22734884 0.000005:1942.485768 0.000006:1996.35673 "
            "0.000007:2933.068129 0.000008:3285.38349046 0.000009:1610.227619 0.00001:2163.06111805 "
            "0.00002:48087.30266417 0.00003:2195.91921188 0.00004:7528.426572 0.00005:10902.277535 "
            "0.00006:8404.366051 0.00007:2527.94523598 0.00008:124.18614432 0.00009:25.39631 0.0001:50.311021 "
            "0.0002:25244.5889 0.0006:1328.29032048 0.002:200 0.02:200 0.2:200 1:200")
    bids = "0.000002:158456.10892182 0.000001:75507 1e-7:607000 2e-8:182669 1e-8:258315.53152927"
    rows = [dict(row.split(":") for row in side.split()) for side in (bids, asks)]
    assert checksum(rows[0], {price: "-" + amount for price, amount in rows[1].items()}) == 1822826369
    asks = {"70000": "-0.05670774", "2000000": "-0.001", "20000000": "-0.00004"}
    bids = ("60000:0.02675957 1000:0.002168 600:0.009 500:1 300:0.6 100:0.1 70:0.5 30:1.2 6:1 2:4 1:17.388385 "
            "0.9:10 0.7:10 0.6:10 0.5:20 0.4:14 0.3:10 0.2:10 0.1:59 0.04:10 0.02:1 0.01:17 0.00002:10 0.000002:10 "
            "2e-7:10")
    assert checksum(dict(row.split(":") for row in bids.split()), asks) == 167208263


@pytest.mark.parametrize("text, printed", [
    ("0.00000015", "1.5e-7"), ("0.10", "0.1"), ("61837.0", "61837"), ("0.00000290", "0.0000029"),
    ("0.00000002", "2e-8"), ("100", "100"), ("0.000001", "0.000001"), ("0", "0"), ("0.00000000", "0"),
    ("0.00000000000125", "1.25e-12")])
def test_numbers_as_javascript_prints_them(text, printed):
    assert javascript(text) == printed and Decimal(printed) == Decimal(text)


class Reader(Follower):
    """Fact sheet, 5. A jump of the count: connect again. A wrong checksum: that book anew. Maintenance: all anew."""

    target = PATH
    hooks = TOKENS

    def __init__(self, it, symbols, length=100, flags=SEQ_ALL | OB_CHECKSUM):
        self.length, self.flags = length, flags
        self.jumps = self.checked = self.beats = 0
        super().__init__(it, BITFINEX, {symbol: Book(symbol, length) for symbol in symbols})

    def subscribe(self):
        self.sequence, self.ids, self.texts = 0, {}, {}
        self.client.send(event="conf", flags=self.flags)
        for symbol in self.books:
            self.ask(symbol)

    def ask(self, symbol):
        self.client.send(event="subscribe", channel="book", symbol=symbol, prec="P0", freq="F0", len=str(self.length))

    def anew(self, number):
        book = self.ids.pop(number)
        book.gap()
        self.client.send(event="unsubscribe", chanId=int(number))
        self.ask(book.symbol)

    def take(self, message):
        if isinstance(message, dict):
            self.others.append(message)
            if message["event"] == "subscribed":
                assert message["len"] == str(self.length) and message["prec"] == "P0"
                self.ids[message["chanId"]] = self.books[message["symbol"]]
            elif message.get("code") == "20060":
                for book in self.books.values():
                    book.restart()
            elif message.get("code") == "20061":
                for number in list(self.ids):
                    self.anew(number)
            return
        if self.sequence is None:                                              # jumped: nothing of it counts
            return
        if self.flags & SEQ_ALL:
            sequence = message.pop()
            self.sequence += 1
            if sequence != str(self.sequence):
                self.jumps += 1
                self.sequence = None
                for book in self.books.values():
                    book.restart()
                return self.client.stream.abort()
        book = self.ids.get(message[0])
        if book is not None:                                                   # else left, some still arrive
            self.take_data(book, *message)

    def take_data(self, book, number, kind, *rest):
        if kind == "hb":
            self.beats += 1
        elif kind == "cs":
            if book.sides is not None:
                self.checked += 1
                if rest[0] != str(checksum(*self.texts[book.symbol])):
                    self.anew(number)
        elif isinstance(kind[0], list):
            book.load([], [])
            self.texts[book.symbol] = {}, {}
            for row in kind:
                self.set(book, *row)
        elif book.sides is not None:
            book.counts["updates"] += 1
            self.set(book, *kind)

    def set(self, book, price, count, amount):
        side = 1 if amount.startswith("-") else 0
        texts = self.texts[book.symbol][side]
        if count == "0":
            assert amount in ("1", "-1")
            texts.pop(price, None)
        else:
            texts[price] = amount
        book.set(side, [(price, 0 if count == "0" else amount.lstrip("-"))])

    def is_true(self, book):
        return super().is_true(book) and [
            row[1] for row in self.it.twin.venues[BITFINEX].books(book.symbol) if row[0][2] == str(self.length)] == [
                checksum(*self.texts[book.symbol])]


@pytest.mark.parametrize("length", [1, 25, 100, 250])
def test_books_of_each_length_are_true_and_every_checksum_verifies(length):
    symbols = [BTC, "tSHIB:BTC"]
    with bench({BITFINEX: symbols + [ETH]}, rate=3_000, levels=400, settings={BITFINEX: {"checksum_s": 0.01}}) as it:
        reader = Reader(it, symbols, length)
        reader.more("updates", 100)
        it.until(lambda: reader.is_live() and reader.checked > 20)
        reader.settle()
        assert not reader.count("gaps") and not reader.jumps and reader.count("snapshots") == 2
        late = Reader(it, symbols, length)
        late.settle()
        assert not late.count("gaps") and not late.jumps
        assert all("e-" in price for price in reader.texts["tSHIB:BTC"][0])    # a cheap pair
        assert length < 250 or reader.count("ghosts") > 0


@pytest.mark.parametrize("kind, jumps, gaps", [("gap", 1, 0), ("reorder", 1, 0), ("sequence", 1, 0),
                                               ("no_sequence", 1, 0), ("duplicate", 1, 0), ("checksum", 0, 1)])
def test_faults_show_in_the_count_or_in_the_checksum(kind, jumps, gaps):
    with bench({BITFINEX: [BTC, ETH]}, faults=[parse(f"{kind}@0.1:{BTC}")]) as it:
        reader = Reader(it, [BTC, ETH])
        it.until(lambda: reader.is_live() and it.twin.faults_done)
        reader.settle()
        assert reader.jumps == jumps and reader.connects == 1 + jumps
        assert [book.counts["gaps"] for book in reader.books.values()] == [gaps, 0]


def test_without_the_count_a_loss_shows_in_the_checksum():
    with bench({BITFINEX: [BTC, ETH]}, settings={BITFINEX: {"checksum_s": 0}}) as it:
        reader = Reader(it, [BTC, ETH], 25, flags=OB_CHECKSUM)                 # all of its levels are in the checksum
        it.until(reader.is_live)
        it.fault(BITFINEX, "gap", symbol=BTC)
        reader.settle()
        assert not reader.books[ETH].counts["gaps"] and reader.connects == 1 and not reader.jumps


def test_notices():
    with bench({BITFINEX: [BTC]}, time_scale=10) as it:
        reader = Reader(it, [BTC])
        it.until(reader.is_live)
        it.fault(BITFINEX, "maintenance", seconds=0.2)
        it.until(lambda: reader.work() or any(message.get("code") == "20060" for message in reader.others))
        assert reader.books[BTC].sides is None
        it.until(reader.is_live)
        reader.settle()
        assert reader.connects == 1 and not reader.jumps
        it.fault(BITFINEX, "notice")
        it.until(lambda: reader.work() or any(message.get("code") == "20051" for message in reader.others))
        it.until(lambda: reader.is_live() and reader.connects == 2)
        reader.settle()


def collect(it, client, count):
    found = []
    it.until(lambda: found.extend(client.texts()) or len(found) >= count)
    return found


def test_requests_and_their_answers():
    with bench({BITFINEX: [BTC, ETH]}, settings={BITFINEX: {"channels": 2}}) as it:
        client = it.client(BITFINEX, PATH)
        assert collect(it, client, 1)[0]["platform"] == {"status": 1}
        it.twin.pause()
        client.send(event="conf", flags=536_870_912)
        client.send(event="conf", flags=TIMESTAMP | SEQ_ALL)
        client.send(event="ping", cid=1234)
        client.send(event="subscribe", channel="book", symbol=BTC, len="25", subId="x1")
        client.send(event="subscribe", channel="book", symbol=BTC, len="25")
        client.send(event="subscribe", channel="book", symbol="tNOPE")
        client.send(event="subscribe", channel="book", symbol=ETH, prec="R0")
        client.send(event="subscribe", channel="book", symbol=ETH, len="50")
        client.send(event="subscribe", channel="trades", symbol=BTC)
        client.send(event="subscribe", channel="trades", symbol=ETH)
        client.send(event="sing")
        client.send(event="unsubscribe", chanId=1)
        found = collect(it, client, 14)
        data = [message for message in found if isinstance(message, list)]
        events = [message for message in found if isinstance(message, dict)]
        assert [event["event"] for event in events] == [
            "conf", "conf", "pong", "subscribed", "error", "error", "error", "error", "subscribed", "error", "error",
            "error"]
        assert [event.get("status") for event in events[:2]] == ["FAILED", "OK"] and events[2]["cid"] == 1234
        number = events[3].pop("chanId")
        assert events[3] == {"event": "subscribed", "channel": "book", "symbol": BTC, "prec": "P0", "freq": "F0",
                             "len": "25", "subId": "x1", "pair": "BTCUSD"}
        assert [event["code"] for event in events if event["event"] == "error"] == [
            10301, 10300, 10300, 10300, 10305, 10000, 10400]
        assert data[0][0] == number and len(data[0][1]) == 50 and data[0][2] == 1 and data[0][3] > 10 ** 12
        assert data[1] == [events[8]["chanId"], [], 2, data[1][3]]             # an empty snapshot
        client.send(event="unsubscribe", chanId=number)
        assert collect(it, client, 1) == [{"event": "unsubscribed", "status": "OK", "chanId": number}]


def test_all_channels_say_hb_together_busy_or_not():
    with bench({BITFINEX: [BTC, ETH]}, time_scale=100) as it:                  # 15 s are 0.15 s
        client = it.client(BITFINEX, PATH)
        client.send(event="conf", flags=SEQ_ALL)
        for symbol in (ETH, BTC):
            client.send(event="subscribe", channel="trades", symbol=symbol)
            client.send(event="subscribe", channel="book", symbol=symbol)
        found = []
        it.until(lambda: found.extend(message for message in client.texts() if isinstance(message, list))
                 or sum(message[1] == "hb" for message in found) >= 8)
        beats = [(place, message[0]) for place, message in enumerate(found) if message[1] == "hb"]
        numbers = sorted({message[0] for message in found})
        assert len(numbers) == 4
        for start in (0, 4):                                  # as recorded: in a row, by number
            places, ids = zip(*beats[start:start + 4])
            assert list(ids) == numbers and places[3] - places[0] == 3
        assert [message[-1] for message in found] == list(range(1, len(found) + 1))


def test_a_checksum_follows_the_last_change():
    with bench({BITFINEX: [BTC]}, settings={BITFINEX: {"checksum_s": 0.2}}) as it:
        reader = Reader(it, [BTC])
        reader.more("updates", 5)
        it.twin.pause()
        book = reader.books[BTC]
        it.until(lambda: reader.is_live() and reader.is_true(book))
        checked = reader.checked
        it.until(lambda: reader.is_live() and reader.checked > checked)
        assert not book.counts["gaps"]
        for _ in range(60):
            it.loop.run_once(5_000_000)
        reader.work()
        assert reader.checked == checked + 1                                   # ... once


def test_silent_channels_say_hb_and_idle_connections_end():
    with bench({BITFINEX: [BTC, ETH]}, time_scale=100) as it:                  # 15 s are 0.15 s, 60 s are 0.6 s
        reader, idle = Reader(it, [BTC, ETH]), it.client(BITFINEX, PATH)
        it.until(reader.is_live)
        it.twin.pause()
        it.until(lambda: reader.is_live() and reader.beats >= 4)
        assert not reader.jumps                                                # they count
        it.until(lambda: idle.is_closed)
        assert reader.connects == 1


def test_trades_come_as_te_and_later_as_tu():
    with bench({BITFINEX: [BTC]}, settings={BITFINEX: {"tu_s": 0.05}}) as it:
        sold = {}
        publish = it.twin.venues[BITFINEX].publish
        it.twin.venues[BITFINEX].publish = lambda symbol, kind, event: (
            sold.update({str(3 * event[2]): event[5]}) if kind == "trade" else None, publish(symbol, kind, event))
        client = it.client(BITFINEX, PATH)
        client.send(event="subscribe", channel="trades", symbol=BTC)
        rows = {"te": [], "tu": []}

        def work():
            for message in client.texts(**TOKENS):
                if isinstance(message, list) and message[1] in ("te", "tu"):
                    rows[message[1]].append(message[2])
            return len(rows["tu"]) > 40

        it.until(work)
        executed = rows["te"]
        assert all(row in executed for row in rows["tu"]) and len(executed) > len(rows["tu"])
        assert all(sold[number] == amount.startswith("-") for number, _, amount, _ in executed if number in sold)
        late = it.client(BITFINEX, PATH)
        late.send(event="subscribe", channel="trades", symbol=BTC)
        found = collect(it, late, 3)
        snapshot = found[2][1]
        numbers = [row[0] for row in snapshot]
        assert len(numbers) == 30 and numbers == sorted(numbers, reverse=True)


def test_ticker_and_rest():
    with bench({BITFINEX: [BTC, "tDUSK:USD", "tBTCF0:USTF0"]}) as it:
        client = it.client(BITFINEX, PATH)
        client.send(event="subscribe", channel="ticker", symbol=BTC)
        found = []
        it.until(lambda: found.extend(m for m in client.texts(**TOKENS) if isinstance(m, list)) or len(found) > 5)
        it.twin.pause()
        for _ in range(10):
            it.loop.run_once(5_000_000)
        found += client.texts(**TOKENS)
        told = [float(token) for token in found[-1][1]]
        for side, levels in enumerate(it.truth(BITFINEX, BTC, 25)):            # sizes are sums, as recorded
            assert told[2 * side] == levels[0][0] and told[2 * side + 1] == pytest.approx(
                float(sum(quantity for _, quantity in levels)), rel=1e-12)
        assert it.get(BITFINEX, "/v2/conf/pub:list:pair:exchange")[2] == [["BTCUSD", "DUSK:USD"]]
        assert it.get(BITFINEX, "/v2/conf/pub:list:pair:futures,pub:map:currency:sym")[2] == [
            ["BTCF0:USTF0"], [["UST", "USDt"]]]
        assert it.get(BITFINEX, "/v2/conf/pub:info:pair")[2][0][0][:1] == ["BTCUSD"]
        assert len(it.get(BITFINEX, "/v2/book/tBTCUSD/P0?len=25")[2]) == 50
        assert it.get(BITFINEX, "/v2/nothing")[0] == 404 and it.get(BITFINEX, "/v2/platform/status")[2] == [1]
        assert it.get(BITFINEX, "/twin/fault?kind=rest_429&symbol=TbtcUSD")[0] == 200
        it.get(BITFINEX, "/twin/fault?kind=rest_error")
        assert it.get(BITFINEX, "/v2/platform/status")[0] == 500
        assert json.loads(json.dumps(it.get(BITFINEX, "/twin/book?symbol=tbtcusd")[2]))["symbol"] == BTC
