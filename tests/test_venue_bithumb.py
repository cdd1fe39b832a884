"""Bithumb: what differs from Upbit (test_venue_upbit.py). What every venue has to fulfil is in test_venue_contract."""

import gzip
import json

import pytest
from support import CAPTURES, Recorder, lines, needs_captures
from test_venue_upbit import BASE, Talk
from test_venue_upbit import Plain  # noqa: F401      its messages are Upbit's

from feeder.errors import CaptureError, VenueError
from feeder.message import BUY, SELL
from feeder.venue import recognise
from feeder.venue.bithumb import Bithumb
from feeder.venue.contract import ERROR, Instruments, Notice

BOOK = ('{"type":"orderbook","code":"KRW-ETH","total_ask_size":369.9832,"total_bid_size":287.0216,"orderbook_units":['
        '{"ask_price":3715000,"bid_price":3714000,"ask_size":8.4592,"bid_size":3.012},'
        '{"ask_price":3716000,"bid_price":3713000,"ask_size":0,"bid_size":15.399},'
        '{"ask_price":3717000,"bid_price":0,"ask_size":4.1755,"bid_size":0}],'
        '"level":1,"timestamp":%d,"stream_type":"%s"}')
TRADE = ('{"type":"trade","code":"KRW-BTC","trade_price":116208000,"trade_volume":0.0009,"ask_bid":"%s",'
         '"trade_date":"2026-09-23","trade_time":"12:18:33","trade_timestamp":1790133513739,'
         '"sequential_id":1079953210371761700,"timestamp":1790133514039,"stream_type":"%s"}')
SAMPLES = {"bithumb": [BOOK % (1790133505627050, "REALTIME"), BOOK % (1790133505546514, "SNAPSHOT"),
                       TRADE % ("BID", "REALTIME"), TRADE % ("ASK", "REALTIME"), TRADE % ("ASK", "SNAPSHOT"),
                       '{"status":"UP"}', '{"type":"ticker","code":"KRW-BTC"}',
                       (BOOK % (1790133505727050, "REALTIME")).replace("8.4592", "5E-8"),
                       '{"error":{"name":"WRONG_FORMAT","message":"x"}}']}


def test_what_messages_become():
    talk = Talk(Bithumb)
    assert talk.say(*SAMPLES["bithumb"]) == [
        ("snapshot", "KRW-ETH", BASE + 1, 1790133505627050000, 9, [3714000, 30120, 3713000, 153990],
         [3715000, 84592, 3717000, 41755]),
        ("trade", "KRW-BTC", 0, 1790133513739000000, 9, 1079953210371761700, 116208000, 9, BUY),
        ("trade", "KRW-BTC", 0, 1790133513739000000, 9, 1079953210371761700, 116208000, 9, SELL),
        ("depth", "KRW-ETH", BASE + 2, BASE + 2, None, 1790133505727050000, 9, [], [3715000, 5])]
    assert talk.notice == Notice(ERROR, None, "WRONG_FORMAT: x")
    assert talk.venue.kinds["old image"] == 1, "a SNAPSHOT behind newer images"


def test_options_are_spelled_without_underscores():
    command, = Talk(Bithumb).session.subscribe(["orderbook:KRW-BTC", "trade:KRW-BTC"], 1)
    assert json.loads(command.text)[1:] == [{"type": "orderbook", "codes": ["KRW-BTC"]},
                                            {"type": "trade", "codes": ["KRW-BTC"], "isOnlyRealtime": True},
                                            {"format": "DEFAULT"}]
    venue = Bithumb(Recorder(), Instruments())
    assert [venue.lines(["KRW-BTC"], ["depth"], 0, 200, levels)[0].streams for levels in (0, 15, 5)] == [
        ["orderbook:KRW-BTC"], ["orderbook:KRW-BTC"], ["orderbook:KRW-BTC.5"]]


def test_the_market_list_has_neither_ticks_nor_lots():
    venue = Bithumb(Recorder(), Instruments())
    body = b'[{"market":"KRW-BTC","korean_name":"x","english_name":"Bitcoin","market_warning":"NONE"}]'
    assert venue.decode_instruments(body) == {"KRW-BTC": (None, None, "1")}
    assert venue.more_instruments(venue.instruments_request(["KRW-BTC"]), body) is None
    with pytest.raises(VenueError, match="Code not found"):           # with HTTP 200
        venue.decode_instruments(b'{"error":{"name":404,"message":"Code not found"}}')


def test_names_and_places():
    assert recognise("wss://ws-api.bithumb.com/websocket/v1") is Bithumb
    assert recognise("https://api.bithumb.com/v1/market/all") is Bithumb
    for legacy in ("wss://pubwss.bithumb.com/pub/ws", "https://api.bithumb.com/public/ticker/ALL_BTC"):
        with pytest.raises(CaptureError, match="bithumb_legacy"):
            recognise(legacy)


@needs_captures
def test_single_messages_are_read_and_the_legacy_socket_is_named():
    talk, legacy = Talk(Bithumb), 0
    for entry in lines(CAPTURES / "bithumb" / "quoted_live_frames.jsonl"):
        if "pubwss" in entry["conn"]:
            legacy += 1
            with pytest.raises(CaptureError, match="bithumb_legacy"):
                recognise(entry["conn"])
        elif entry["dir"] == "in":
            assert recognise(entry["conn"]) is Bithumb
            talk.session.decode(entry["raw"].encode(), 9)
    assert talk.venue.kinds == {"first image": 1, "image": 1, "trade": 1, "UP": 1, "error": 1} and legacy == 5
    with gzip.open(next((CAPTURES / "bithumb").glob("legacy*.gz")), "rt") as file:
        with pytest.raises(CaptureError, match="bithumb_legacy"):
            recognise(json.loads(file.readline())["conn"])
