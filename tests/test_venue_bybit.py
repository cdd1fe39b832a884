"""Bybit v5: what its messages become. What every venue has to fulfil is in test_venue_contract."""

import json

import pytest
from support import CAPTURES, Model, Recorder, book_decimals, lines, needs_captures, recordings, short

from feeder.errors import CaptureError, VenueError
from feeder.message import BUY, SELL
from feeder.replay import Replay
from feeder.venue import recognise
from feeder.venue.bybit import ARGS_PER_REQUEST, CHARACTERS, BybitLinear, BybitSpot
from feeder.venue.contract import ACK, ALIVE, ERROR, Instruments, Notice

BOOK = [
    '{"topic":"orderbook.200.BTCUSDT","ts":1672304484978,"type":"snapshot","data":{"s":"BTCUSDT","b":[["16493.50","0.006"],'
    '["16493","0.1"]],"a":[["16611.00","0.029"]],"u":18521288,"seq":7961638724},"cts":1672304484976}',
    '{"topic":"orderbook.200.BTCUSDT","type":"delta","ts":1672304485078,"data":{"s":"BTCUSDT","b":[["16493","0"],'
    '["16492.5","0.224"]],"a":[],"u":18521289,"seq":7961638790},"cts":1672304485076}',
    '{"topic":"orderbook.1.BTCUSDT","ts":1672304485079,"type":"snapshot","data":{"s":"BTCUSDT","b":[["16493.50","0.006"]],'
    '"a":[["16611.00","0.029"]],"u":866051,"seq":7961638791},"cts":1672304485077}',
]
TRADE = ('{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":1672304486868,"data":[{"T":1672304486865,"s":"BTCUSDT",'
         '"S":"%s","v":"0.001","p":"16578.50","i":"%s","BT":false,"RPI":false,"seq":1783284617}]}')
SAMPLES = {"bybit_spot": BOOK + [TRADE % ("Buy", "2100000000019296063")],
           "bybit_linear": BOOK + [TRADE % ("Sell", "20f43950-d8dd-5b31-9112-a178eb6023af")]}
NS = 10**6


class Plain:
    """One connection's trades by nothing but json."""

    def trades(self, message):
        if message.get("topic", "").startswith("publicTrade."):
            for trade in message["data"]:
                if not trade["BT"]:
                    yield trade["s"], {"Buy": "buy", "Sell": "sell"}[trade["S"]]


def venue_of(kind=BybitLinear):
    return kind(Recorder(), Instruments(), discover=True)


def test_what_messages_become():
    venue = venue_of()
    for text in SAMPLES["bybit_linear"]:
        assert venue.decode(text.encode(), 9) is None
    calls = [call for call in venue.sink.take() if call[0] != "define"]
    assert calls == [
        ("snapshot", "BTCUSDT", 18521288, 1672304484976 * NS, 9, [1649350, 6, 1649300, 100], [1661100, 29]),
        ("depth", "BTCUSDT", 18521289, 18521289, None, 1672304485076 * NS, 9, [1649300, 0, 1649250, 224], []),
        ("bbo", "BTCUSDT", 866051, 1672304485077 * NS, 9, 1649350, 6, 1661100, 29),
        ("trade", "BTCUSDT", 1783284617, 1672304486865 * NS, 9, 0x20f43950d8dd5b31, 1657850, 1, SELL)]
    spot = venue_of(BybitSpot)
    spot.decode(SAMPLES["bybit_spot"][-1].encode(), 9)
    assert spot.sink.take()[-1][5:] == (2100000000019296063, 1657850, 1, BUY)


def test_a_restart_of_the_service_is_a_snapshot_whatever_it_calls_itself():
    venue = venue_of()
    delta = json.loads(BOOK[1])
    delta["data"]["u"] = 1
    venue.decode(json.dumps(delta).encode(), 9)
    assert venue.sink.take()[-1][:3] == ("snapshot", "BTCUSDT", 1)


def test_only_one_depth_makes_the_book():
    venue = venue_of()
    venue.decode(BOOK[0].encode(), 9)
    venue.sink.take()
    for topic in ("orderbook.50.BTCUSDT", "orderbook.rpi.BTCUSDT", "orderbook.full.BTCUSDT", "tickers.BTCUSDT"):
        assert venue.decode(BOOK[1].replace("orderbook.200.BTCUSDT", topic).encode(), 9) is None
    assert venue.sink.take() == []
    assert venue.kinds["another depth"] == venue.kinds["orderbook.rpi"] == venue.kinds["tickers"] == 1


def test_block_trades_are_none_and_a_message_is_taken_whole_or_not_at_all():
    venue = venue_of()
    one = json.loads(TRADE % ("Buy", "7"))
    one["data"].append(dict(one["data"][0], BT=True))
    one["data"].append(dict(one["data"][0], p="16578.125", S="Sell"))       # more decimals than the first
    venue.decode(json.dumps(one).encode(), 9)
    assert [call[6:] for call in venue.sink.take() if call[0] == "trade"] == [(16578500, 1, BUY), (16578125, 1, SELL)]
    assert venue.not_market == 1
    one["data"].append(dict(one["data"][0], S="Short"))
    with pytest.raises(VenueError, match="Short"):
        venue.decode(json.dumps(one).encode(), 9)
    assert venue.sink.take() == []


@pytest.mark.parametrize("text, notice", [
    ('{"success":true,"ret_msg":"subscribe","conn_id":"2324d924","req_id":"7","op":"subscribe"}', Notice(ACK, "7", "")),
    ('{"success":true,"ret_msg":"","conn_id":"2324d924","req_id":"","op":"unsubscribe"}', Notice(ACK, None, "")),
    ('{"success":false,"ret_msg":"Invalid topic: x","conn_id":"23","req_id":"7","op":"subscribe"}',
     Notice(ERROR, "7", "Invalid topic: x")),
    ('{"success":true,"ret_msg":"pong","conn_id":"63","req_id":"78","op":"ping"}', Notice(ALIVE, None, "")),
    ('{"args":["1672916271846"],"op":"pong"}', Notice(ALIVE, None, "")),
])
def test_notices(text, notice):
    venue = venue_of()
    assert venue.decode(text.encode(), 9) == notice and venue.sink.take() == []


def test_requests_keep_the_venues_limits():
    venue = venue_of(BybitSpot)
    symbols = [f"COIN{number:04d}USDT" for number in range(900)]
    made = venue.lines(symbols, ["depth", "trade"], 0, 1024, 200)
    assert {line.path for line in made} == {"/v5/public/spot"}
    for line in made:
        assert sum(map(len, line.streams)) <= CHARACTERS
        for command in venue.subscribe(line.streams, 1):
            assert len(json.loads(command.text)["args"]) <= ARGS_PER_REQUEST
    assert made[0].streams[0] == "orderbook.200.COIN0000USDT"
    ask, = venue.unsubscribe(["orderbook.200.BTCUSDT"], 5)
    assert json.loads(ask.text) == {"req_id": "5", "op": "unsubscribe", "args": ["orderbook.200.BTCUSDT"]}


def test_the_category_is_in_the_path():
    assert recognise("wss://stream.bybit.com/v5/public/spot") is BybitSpot
    assert recognise("wss://stream.bybit.com/v5/public/linear") is BybitLinear
    assert recognise("https://api.bybit.com/v5/market/instruments-info?&category=linear&limit=1000") is BybitLinear
    with pytest.raises(CaptureError, match="bybit"):
        recognise("wss://stream.bybit.com/v5/public/option")


@pytest.mark.parametrize("symbol, name", [
    ("BTCUSDT", "BTC/USDT-PERP"), ("BTCPERP", "BTC/USDC-PERP"), ("BTCUSDT-26DEC25", "BTC/USDT-26DEC25"),
    ("BTC-26DEC25", "BTC/USDC-26DEC25"), ("1000PEPEUSDT", "1000PEPE/USDT-PERP")])
def test_common_names(symbol, name):
    assert BybitLinear.common_name(symbol) == name


def test_instruments_come_in_pages():
    venue = venue_of()
    first = venue.instruments_request(["BTCUSDT"])
    again = venue.more_instruments(first, b'{"result":{"nextPageCursor":"page%3D2","list":[]}}')
    assert again.path == first.path + "&cursor=page%3D2"
    assert venue.more_instruments(again, b'{"result":{"nextPageCursor":"p3"}}').path == first.path + "&cursor=p3"
    assert venue.more_instruments(again, b'{"result":{"nextPageCursor":""}}') is None


@needs_captures
@pytest.mark.parametrize("path", [path for path in recordings("bybit") if "orderbook1" not in path.name], ids=short)
def test_books_equal_a_plain_model_and_stay_within_the_depth_subscribed(path):
    models, most = {}, 0
    for entry in lines(path):
        message = json.loads(entry["raw"])
        if message.get("topic", "").startswith("orderbook.200."):
            data = message["data"]
            model = models.setdefault(data["s"], Model(False))
            if message["type"] == "snapshot":
                model.bids.clear()
                model.asks.clear()
            model.apply(data["b"], data["a"])
            most = max(most, len(model.bids), len(model.asks))
    replay = Replay(lambda datagram: None, session=1)
    replay.file(path)
    assert {entry.instrument.symbol: book_decimals(entry) for entry in replay.pipeline.publisher.entries} == {
        symbol: model.top() for symbol, model in models.items()}
    assert most == 200, "§5.6: the venue says itself which levels leave the window"


@needs_captures
def test_single_messages_are_read_or_counted():
    for name in ("documented_samples", "quoted_live_frames"):
        for entry in lines(CAPTURES / "bybit" / f"{name}.jsonl"):
            venue = venue_of()
            if '"COMMAND_RESP"' in entry["raw"] or '"args"' in entry["raw"]:       # of options; what a client sends
                with pytest.raises(VenueError):
                    venue.decode(entry["raw"].encode(), 9)
            else:
                venue.decode(entry["raw"].encode(), 9)
