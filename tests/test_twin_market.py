"""The synthetic market and the dialects, without a socket."""

import json
import random
import re

import pytest

from feeder.errors import ConfigError
from feeder.twin.binance import LISTED, Spot, Usdm, WeightBudget
from feeder.twin.dialect import RequestError, Words
from feeder.twin.faults import parse
from feeder.twin.market import AGGREGATE, BBO, DEPTH, TRADE, Listing, Market, Spec
from feeder.twin.source import Pacer

DIALECTS = {"binance_spot": Spot, "binance_usdm": Usdm}

SEED = 20240808
BTC = Spec("BTCUSDT", "BTC", "USDT", "61837.64", "0.01000000", "0.00001000")
COARSE = Spec("ADAUSDT", "ADA", "USDT", "0.33450", "0.00010", "1")


def follow(listing, turns, check_each=1):
    """Run turns; hold a plain copy by the diffs; check books, ids and best prices on the way. Return all events."""
    bids, asks = dict(listing.bids.levels()), dict(listing.asks.levels())
    last_diff, last_id, trade_id = listing.diff_id, listing.update_id, listing.trade_id
    everything = []
    for turn in range(turns):
        events = listing.turn(turn * 4)
        everything += events
        for event in events:
            if event[0] == BBO:
                _, _, update_id, bid, bid_lots, ask, ask_lots = event
                assert event in events[-2:] and update_id == listing.update_id > last_id
                assert (bid, bid_lots) == listing.bids.levels(1)[0] and (ask, ask_lots) == listing.asks.levels(1)[0]
                assert bid < ask and bid_lots > 0 and ask_lots > 0
                last_id = update_id
            elif event[0] == TRADE:
                assert event[2] == trade_id + 1 and event[4] > 0
                trade_id += 1
            elif event[0] == DEPTH:
                _, _, first, last, previous, changed_bids, changed_asks = event
                assert previous == last_diff < first <= last and (changed_bids or changed_asks)
                assert not listing.contiguous or first == previous + 1
                last_diff = last
                for side, changes in ((bids, changed_bids), (asks, changed_asks)):
                    for price, lots in changes:
                        if lots:
                            side[price] = lots
                        else:
                            side.pop(price, None)
                assert bids == dict(listing.bids.levels()) and asks == dict(listing.asks.levels())
        if turn % check_each == 0:
            listing.check()
    return everything


@pytest.mark.parametrize("spec", [BTC, COARSE], ids=lambda spec: spec.symbol)
@pytest.mark.parametrize("levels, contiguous", [(1, True), (60, False), (1600, True), (1000, False)])
def test_books_ids_and_best_prices_hold_together(spec, levels, contiguous):
    print("seed", SEED)
    follow(Listing(spec, SEED, levels, contiguous), 1_500, check_each=1 if levels < 100 else 50)


def test_it_looks_like_the_recordings():
    print("seed", SEED)
    listing = Listing(BTC, SEED, 1_600)
    events = follow(listing, 8_000, check_each=1_000)
    assert len(listing.bids.keys) > 1_400 < len(listing.asks.keys)
    kinds = [event[0] for event in events if event[0] != AGGREGATE]
    share = {kind: kinds.count(kind) / len(kinds) for kind in (TRADE, BBO, DEPTH)}
    assert 0.10 < share[DEPTH] < 0.15 and 0.60 < share[BBO] < 0.72 and 0.14 < share[TRADE] < 0.26, share
    diffs = [event[5] + event[6] for event in events if event[0] == DEPTH]
    counts = sorted(map(len, diffs))
    assert 17 <= counts[len(counts) // 2] <= 27 and 75 <= counts[len(counts) * 9 // 10] <= 135
    changes = [lots for diff in diffs for _, lots in diff]
    assert 0.42 < changes.count(0) / len(changes) < 0.52
    assert min(len(listing.bids.keys), len(listing.asks.keys)) > 1_000
    assert len({event[3] for event in events if event[0] == BBO}) > 100          # the price walks


def test_aggregates_sum_up_the_trades_before_them():
    events = follow(Listing(BTC, SEED, 1_600), 2_000, check_each=500)
    open_trades = []
    for event in events:
        if event[0] == TRADE:
            open_trades.append(event)
        elif event[0] == AGGREGATE:
            _, _, _, price, lots, first, last, maker = event
            assert [trade[2] for trade in open_trades] == list(range(first, last + 1))
            assert {(trade[3], trade[5]) for trade in open_trades} == {(price, maker)}
            assert sum(trade[4] for trade in open_trades) == lots
            open_trades = []
        else:
            assert not open_trades                                                # trades come before what they cause


def test_the_seed_decides():
    one, two, other = (Market([BTC, COARSE], seed, 1_000) for seed in (7, 7, 8))
    plain = [[event[0:1] + event[2:] for _ in range(400) for event in market.step(0)] for market in (one, two, other)]
    assert plain[0] == plain[1] != plain[2]
    listing = Listing(BTC, 7, 1_600)
    first = listing.update_id, listing.bids.levels(), listing.asks.levels()
    follow(listing, 300, check_each=300)
    old = listing.rebuilt()
    assert (old.update_id, old.bids.levels(), old.asks.levels()) == first


def test_flush_leaves_nothing_pending():
    market = Market([BTC, COARSE], SEED, 1_000, contiguous=False)
    for _ in range(100):
        market.step(0)
    market.flush(0)
    assert market.flush(0) == []
    assert all(not side.changed for listing in market.listings.values() for side in (listing.bids, listing.asks))


# --- the dialects

RECORDED = {
    ("binance_spot", TRADE): '{"e":"trade","E":1723161283414,"s":"BTCUSDT","t":3735683777,"p":"61852.00000000",'
                             '"q":"0.00001000","T":1723161283412,"m":false,"M":true}',
    ("binance_spot", AGGREGATE): '{"e":"aggTrade","E":1628952396573,"s":"FTMUSDT","a":31718372,"p":"0.33993000",'
                                 '"q":"99.90000000","f":38248910,"l":38248910,"T":1628952396572,"m":true,"M":true}',
    ("binance_spot", BBO): '{"u":50093251845,"s":"BTCUSDT","b":"61851.99000000","B":"5.05792000",'
                           '"a":"61852.00000000","A":"0.00010000"}',
    ("binance_spot", DEPTH): '{"e":"depthUpdate","E":1723161255308,"s":"BTCUSDT","U":50093239203,"u":50093239207,'
                             '"b":[["55653.87000000","0.00000000"]],"a":[["61838.04000000","0.32332000"]]}',
    ("binance_usdm", TRADE): '{"e":"trade","E":1721347022956,"T":1721347022956,"s":"BTCUSDT","t":5182005737,'
                             '"p":"63943.90","q":"0.003","X":"MARKET","m":true}',
    ("binance_usdm", AGGREGATE): '{"e":"aggTrade","E":1616202009196,"a":389551486,"s":"BTCUSDT","p":"58665.00",'
                                 '"q":"0.043","f":621622993,"l":621622993,"T":1616202009188,"m":false}',
    ("binance_usdm", BBO): '{"e":"bookTicker","u":4984028370881,"s":"BTCUSDT","b":"63943.90","B":"46.371",'
                           '"a":"63944.00","A":"0.095","T":1721347022507,"E":1721347022507}',
    ("binance_usdm", DEPTH): '{"e":"depthUpdate","E":1721347022504,"T":1721347022504,"s":"BTCUSDT","U":4984028367545,'
                             '"u":4984028370730,"pu":4984028367494,"b":[["1000.00","569.567"]],'
                             '"a":[["63975.60","0.032"]]}',
}


def shape(text):
    """What is left when numbers before the point, symbols, truths and the count of levels do not matter."""
    text = re.sub(r'(\["\d+\.\d+","\d+\.\d+"\],?)+', "LEVELS", text)
    return re.sub(r"true|false", "BOOL", re.sub(r'"[A-Z]+USDT"', '"S"', re.sub(r"\d+(\.?)", r"9\1", text)))


@pytest.mark.parametrize("name, kind", sorted(RECORDED))
def test_messages_are_shaped_like_the_recorded_ones(name, kind):
    dialect = DIALECTS[name]()
    spec, = dialect.specs(["BTCUSDT"])
    listing = Listing(spec, SEED, 200, dialect.contiguous)
    make = dialect.makers()[kind]
    found = 0
    for event in follow(listing, 600, check_each=600):
        if event[0] == kind and (kind != DEPTH or event[5] and event[6]):
            text = make(event, Words(spec), 1723161283414)
            assert shape(text) == shape(RECORDED[name, kind])
            number = RECORDED[name, kind].partition('"p":"' if kind in (TRADE, AGGREGATE) else '"b":')[2]
            decimals = len(re.search(r"\.(\d+)", number).group(1))
            assert all(len(part) == decimals for part in re.findall(r'"(?:p|b|a)":"\d+\.(\d+)"', text))
            json.loads(text)
            found += 1
    assert found > 10


def test_sides_of_a_diff_are_ordered_as_the_venue_orders_them():
    for name, bids_fall in (("binance_spot", True), ("binance_usdm", False)):
        dialect = DIALECTS[name]()
        spec, = dialect.specs(["ETHUSDT"])
        for event in follow(Listing(spec, SEED, 200, dialect.contiguous), 100, check_each=100):
            if event[0] == DEPTH:
                for _ in range(2):                           # making text leaves the event as it was
                    diff = json.loads(dialect.depth(event, Words(spec), 0))
                bids, asks = ([float(price) for price, _ in diff[side]] for side in "ba")
                assert bids == sorted(bids, reverse=bids_fall) and asks == sorted(asks)


def test_numbers_are_exact_for_every_listed_symbol():
    dice = random.Random(SEED)
    for name in DIALECTS:
        for spec in DIALECTS[name]().specs(LISTED):
            words = Words(spec)
            for _ in range(20):
                ticks, lots = dice.randrange(10 ** 7), dice.randrange(10 ** 9)
                for text, count, step in (
                        (words.price(ticks), ticks, spec.tick), (words.quantity(lots), lots, spec.lot)):
                    decimals = len(step.partition(".")[2])
                    assert len(text.partition(".")[2]) == decimals
                    assert int(text.replace(".", "")) == count * int(step.replace(".", ""))
                assert words.levels([(ticks, lots)]) == f'["{words.price(ticks)}","{words.quantity(lots)}"]'


def test_stream_names_and_paths():
    spot, usdm = DIALECTS["binance_spot"](), DIALECTS["binance_usdm"]()
    assert spot.route("/stream?streams=btcusdt@depth@100ms/btcusdt@trade") == (
        True, (DEPTH, TRADE, AGGREGATE, BBO), ["btcusdt@depth@100ms", "btcusdt@trade"])
    assert spot.route("/ws/btcusdt%40trade")[2] == ["btcusdt@trade"]
    assert spot.route("/ws")[0] is False and spot.route("/public/ws") is None and spot.route("/wsx") is None
    assert usdm.route("/public/stream")[1] == usdm.route("/stream")[1] == (DEPTH, BBO, TRADE)
    assert usdm.route("/market/ws/btcusdt@aggTrade") == (False, (AGGREGATE,), ["btcusdt@aggTrade"])
    kinds = spot.route("/ws")[1]
    assert spot.stream("btcusdt@depth@100ms", kinds) == spot.stream("btcusdt@depth", kinds) == ("BTCUSDT", DEPTH)
    assert spot.stream("btcusdt@bookTicker", kinds) == ("BTCUSDT", BBO)
    for silent in ("BTCUSDT@trade", "btcusdt@depth5", "btcusdt@depth@1ms", "btcusdt@trade@100ms", "btcusdt", "", "@"):
        assert spot.stream(silent, kinds) is None
    assert usdm.stream("btcusdt@aggTrade", usdm.route("/public/ws")[1]) is None       # silent there since 2026-04-23


def test_commands():
    spot, usdm = DIALECTS["binance_spot"](), DIALECTS["binance_usdm"]()
    assert spot.command(b'{"method":"SUBSCRIBE","params":["a@trade"],"id":1}') == ("SUBSCRIBE", ["a@trade"], "1")
    assert spot.command(b'{"method":"LIST_SUBSCRIPTIONS","id":"x"}') == ("LIST_SUBSCRIPTIONS", [], '"x"')
    assert spot.command(b'{"method":"LIST_SUBSCRIPTIONS"}')[2] == "null"
    for dialect, text, code in (
            (spot, b"{", 3), (spot, b"[]", 2), (spot, b'{"method":"X","id":1}', 2), (spot, b'{"method":[],"id":1}', 2),
            (spot, b'{"method":"SUBSCRIBE","id":1}', 2), (spot, b'{"method":"SUBSCRIBE","params":[1],"id":1}', 2),
            (spot, b'{"method":"SUBSCRIBE","params":{},"id":1}', 2),
            (spot, b'{"method":"GET_PROPERTY","params":["y"]}', 0),
            (spot, b'{"method":"SET_PROPERTY","params":["combined",1],"id":2}', 1),
            (spot, b'{"method":"LIST_SUBSCRIPTIONS","id":1.5}', 2),
            (usdm, b'{"method":"LIST_SUBSCRIPTIONS","id":-1}', 2), (usdm, b'{"method":"LIST_SUBSCRIPTIONS"}', 2)):
        with pytest.raises(RequestError) as error:
            dialect.command(text)
        assert json.loads(error.value.text)["code"] == code


def test_weights():
    spot, usdm = DIALECTS["binance_spot"](), DIALECTS["binance_usdm"]()
    limits = (1, 100, 101, 500, 501, 1000, 1001, 5000, 9999)
    assert [spot.weight("depth", {"limit": str(limit)}) for limit in limits] == [5, 5, 25, 25, 50, 50, 250, 250, 250]
    assert [usdm.weight("depth", {"limit": str(limit)}) for limit in (5, 50, 100, 500, 1000)] == [2, 2, 5, 10, 20]
    assert spot.weight("depth", {}) == 5 and usdm.weight("depth", {}) == 10 and spot.weight("exchangeInfo", {}) == 20
    for dialect, limit in ((spot, "x"), (spot, "-1"), (usdm, "7")):
        with pytest.raises(RequestError):
            dialect.weight("depth", {"limit": limit})
    budget, second = WeightBudget(10), 10 ** 9
    assert [budget.spend(5, now * second) for now in (100, 110, 120, 159)] == [0, 0, 40, 1]
    assert budget.spend(5, 160 * second) == 0 and budget.used == 5 and budget.refused == 2


def test_exchange_info_has_the_filters():
    for name, tick in (("binance_spot", "0.01000000"), ("binance_usdm", "0.10")):
        dialect = DIALECTS[name]()
        specs = dialect.specs(["BTCUSDT", "ETHUSDT", "NEWTHINGUSDC"])
        every = json.loads(dialect.exchange_info(specs, {}, 5))["symbols"]
        assert [(entry["symbol"], entry["baseAsset"], entry["quoteAsset"]) for entry in every] == [
            ("BTCUSDT", "BTC", "USDT"), ("ETHUSDT", "ETH", "USDT"), ("NEWTHINGUSDC", "NEWTHING", "USDC")]
        filters = {entry["filterType"]: entry for entry in every[0]["filters"]}
        assert filters["PRICE_FILTER"]["tickSize"] == tick and float(filters["LOT_SIZE"]["stepSize"]) > 0
        some = json.loads(dialect.exchange_info(specs, {"symbols": '["ETHUSDT"]'}, 5))["symbols"]
        assert [entry["symbol"] for entry in some] == ["ETHUSDT"]
        for wrong in ({"symbol": "NOPE"}, {"symbols": '["NOPE"]'}, {"symbols": "["}):
            with pytest.raises(RequestError):
                dialect.exchange_info(specs, wrong, 5)


# --- faults and pace

def test_fault_words():
    assert repr(parse("gap@5:btcusdt")) == "gap@5:BTCUSDT" and repr(parse("mute@1.5+2")) == "mute@1.5+2"
    for wrong in ("gap", "gap@x", "bang@1", "gap@-1", "mute@1+nan", "mute@inf", "@1"):
        with pytest.raises(ConfigError):
            parse(wrong)


def test_pacer_keeps_absolute_deadlines_and_gives_up_what_it_cannot_make_up():
    second = 10 ** 9
    pacer = Pacer(1_000)
    assert pacer.due_ns is None and pacer.owed(5) == 0
    pacer.start(0)
    assert pacer.due_ns == second // 1_000
    sent = 0
    for now_ns in (3_000_000, 10_000_000, 10_100_000, 40_000_000):
        owed = pacer.owed(now_ns)
        pacer.sent += owed
        sent += owed
        assert sent == now_ns * 1_000 // second
    assert pacer.owed(second // 2) == 50                    # a bite, not all 460
    assert pacer.owed(5 * second) == 50 and pacer.forgiven == 5_000 - 40 - 50
    pacer.pause(5 * second)
    assert pacer.due_ns is None and pacer.owed(9 * second) == 0
    pacer.resume(10 * second)
    assert pacer.owed(10 * second) == 50 and pacer.behind_ns_max > 4 * second
