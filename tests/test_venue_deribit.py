"""Deribit: what its messages become. What every venue has to fulfil is in test_venue_contract."""

import json
from decimal import Decimal

import pytest
from support import CAPTURES, Market, Recorder, book_decimals, lines, needs_captures, recordings, short
from test_venue_live import agree, desk_of, quick, start      # noqa: F401 (quick is a fixture)

from feeder.errors import CaptureError, NumberError, VenueError
from feeder.message import BUY, LIVE, SELL
from feeder.replay import Replay
from feeder.twin.registry import DIALECTS
from feeder.venue import recognise
from feeder.venue.contract import ACK, ALIVE, ERROR, GAP, NEXT, OLD, REPLY, Instruments, Listing, Notice
from feeder.venue.deribit import CHANNELS_PER_REQUEST, Deribit

TOLD = '{"jsonrpc":"2.0","method":"subscription","params":{"channel":"%s","data":%s}}'
SNAPSHOT = TOLD % ("book.ETH-PERPETUAL.100ms", '{"timestamp":1790133840638,"type":"snapshot","change_id":136069961946,'
                   '"instrument_name":"ETH-PERPETUAL","bids":[["new",2772.65,2700],["new",2772.6,7.414e3]],'
                   '"asks":[["new",2772.7,53.0]]}')
CHANGE = TOLD % ("book.ETH-PERPETUAL.100ms", '{"timestamp":1790133842703,"type":"change","prev_change_id":136069961946,'
                 '"change_id":136069968001,"instrument_name":"ETH-PERPETUAL","bids":[["delete",2772.65,0.0]],'
                 '"asks":[["change",2772.7,1.0e1],["new",1.423e-4,2]]}')
TRADE = ('{"timestamp":1765531356452,"price":92294.5,"amount":10.0,"direction":"sell","index_price":92276.75,'
         '"instrument_name":"%s","trade_seq":271252854,"mark_price":92287.11,"tick_direction":2,"contracts":1.0,'
         '"trade_id":"%s"}')
TRADES = TOLD % ("trades.BTC-PERPETUAL.100ms", f'[{TRADE % ("BTC-PERPETUAL", "403691824")}]')
QUOTE = TOLD % ("quote.BTC-PERPETUAL", '{"timestamp":1765541767174,"instrument_name":"BTC-PERPETUAL",'
                '"best_ask_price":92288.5,"best_bid_price":92288.0,"best_ask_amount":99470.0,'
                '"best_bid_amount":133440.0}')
BEAT = '{"params":{"type":"%s"},"method":"heartbeat","jsonrpc":"2.0"}'
SAMPLES = {"deribit": [
    '{"jsonrpc":"2.0","id":3,"result":["trades.BTC-PERPETUAL.100ms","book.ETH-PERPETUAL.100ms"],'
    '"usIn":1699999999000000,"usOut":1699999999001000,"usDiff":1000,"testnet":false}',
    SNAPSHOT, CHANGE, TRADES, QUOTE, BEAT % "heartbeat", BEAT % "test_request"]}
NS = 10**6


class Plain:
    """One connection's trades by nothing but json."""

    def trades(self, message):
        params = message.get("params", {})
        if params.get("channel", "").startswith("trades."):
            for trade in params["data"]:
                if not {"block_trade_id", "block_rfq_id", "combo_id", "combo_trade_id"} & set(trade):
                    yield trade["instrument_name"], trade["direction"]


def venue_of():
    return Deribit(Recorder(), Instruments(), discover=True)


def said(venue, *texts):
    for text in texts:
        assert venue.decode(text.encode(), 9) is None
    return [call for call in venue.sink.take() if call[0] != "define"]


def test_what_messages_become():
    assert said(venue_of(), *SAMPLES["deribit"][1:5]) == [
        ("snapshot", "ETH-PERPETUAL", 136069961946, 1790133840638 * NS, 9,
         [277265, 27000, 277260, 74140], [277270, 530]),
        ("depth", "ETH-PERPETUAL", 136069968001, 136069968001, 136069961946, 1790133842703 * NS, 9,
         [27726500000, 0], [27727000000, 100, 1423, 20]),
        ("trade", "BTC-PERPETUAL", 271252854, 1765531356452 * NS, 9, 403691824, 922945, 100, SELL),
        ("bbo", "BTC-PERPETUAL", 0, 1765541767174 * NS, 9, 922880, 1334400, 922885, 994700)]


@pytest.mark.parametrize("sequence, previous, last, verdict", [
    (0, 0, 9, NEXT), (10, 10, 70, NEXT), (70, 10, 70, OLD), (10, 11, 70, GAP), (70, 3, 5, GAP)])
def test_ids_are_compared_with_the_one_before_only(sequence, previous, last, verdict):
    assert Deribit.follows(sequence, True, last, last, previous) is verdict


def test_only_one_pace_makes_the_book_and_the_trades():
    venue = venue_of()
    said(venue, SNAPSHOT, TRADES)
    for text, old, new in ((SNAPSHOT, ".100ms", ".raw"), (TRADES, ".BTC-PERPETUAL.100ms", ".future.BTC.100ms"),
                           (CHANGE, ".100ms", ".none.20.100ms"), (CHANGE, "book.ETH-PERPETUAL", "ticker.ETH-PERPETUAL"),
                           (CHANGE, "book.ETH-PERPETUAL.100ms", "platform_state")):
        assert said(venue, text.replace(old, new)) == []
    kinds = venue.kinds
    assert kinds["another depth"] == kinds["another trade"] == kinds["book of a group"] == 1
    assert kinds["ticker"] == kinds["platform_state"] == 1


def test_trades_of_a_kind_may_be_of_several_instruments():
    venue = venue_of()
    one, other = TRADE % ("BTC-26MAR21", "7"), TRADE.replace("sell", "buy") % ("ETH-26MAR21", "ETH-7")
    calls = said(venue, TOLD % ("trades.future.any.100ms", f"[{one},{other}]"))
    assert [(call[1], call[-1]) for call in calls] == [("BTC-26MAR21", SELL), ("ETH-26MAR21", BUY)]
    assert calls[0][5] == 7 != calls[1][5]


def test_trades_made_elsewhere_are_none():
    venue = venue_of()
    trade = json.loads(TRADE % ("BTC-PERPETUAL", "1"))
    entries = [trade, {**trade, "block_trade_id": "BLOCK-9"}, {**trade, "combo_id": "BTC-FS-26DEC25_PERP"},
               {**trade, "block_trade_id": None, "liquidation": "T"}]
    assert len(said(venue, TOLD % ("trades.BTC-PERPETUAL.100ms", json.dumps(entries)))) == 2
    assert venue.not_market == 2
    entries[3]["direction"] = "zero"
    with pytest.raises(VenueError, match="zero"):
        said(venue, TOLD % ("trades.BTC-PERPETUAL.100ms", json.dumps(entries)))
    entries[3].update(direction="buy", price="x")
    with pytest.raises(NumberError):
        said(venue, TOLD % ("trades.BTC-PERPETUAL.100ms", json.dumps(entries)))
    assert venue.sink.take() == [] and venue.not_market == 2


@pytest.mark.parametrize("price, amount", [("null", "null"), ("null", "0.0"), ("0.0", "0.0"), ("0", "0")])
def test_a_quote_without_a_side_is_none(price, amount):
    venue = venue_of()
    assert said(venue, QUOTE.replace("92288.5", price).replace("99470.0", amount)) == []
    assert venue.kinds["quote without a side"] == 1
    with pytest.raises(VenueError):
        said(venue, QUOTE.replace("92288.5", "{}"))


@pytest.mark.parametrize("text, notice", [
    (SAMPLES["deribit"][0], Notice(ACK, ("3 trades.BTC-PERPETUAL.100ms", "3 book.ETH-PERPETUAL.100ms"), "")),
    ('{"jsonrpc":"2.0","id":1,"result":"ok","usIn":1,"usOut":2,"usDiff":1,"testnet":false}', Notice(ACK, "1", "")),
    ('{"jsonrpc":"2.0","id":0,"result":{"version":"1.2.26"}}', Notice(ALIVE, None, "")),
    (BEAT % "heartbeat", Notice(ALIVE, None, "")),
    (BEAT % "test_request",
     Notice(REPLY, None, '{"jsonrpc": "2.0", "id": 0, "method": "public/test", "params": {}}')),
    ('{"jsonrpc":"2.0","id":5,"error":{"code":13778,"message":"raw_subscriptions_not_available_for_unauthorized"}}',
     Notice(ERROR, "5", "13778 raw_subscriptions_not_available_for_unauthorized")),
    ('{"jsonrpc":"2.0","error":{"code":11050,"message":"bad_request","data":"invalid json"}}',
     Notice(ERROR, None, "11050 bad_request invalid json")),
])
def test_notices(text, notice):
    venue = venue_of()
    assert venue.decode(text.encode(), 9) == notice and venue.sink.take() == []


def test_requests_keep_the_venues_limits():
    venue = venue_of()
    symbols = [f"C{number}_USDC-PERPETUAL" for number in range(300)]
    made = venue.lines(symbols, ["depth", "trade", "bbo"], 1000, 700, 0)
    assert [len(line.streams) for line in made] == [700, 200] and {line.path for line in made} == {"/ws/api/v2"}
    assert made[0].streams[:3] == [
        "book.C0_USDC-PERPETUAL.agg2", "trades.C0_USDC-PERPETUAL.100ms", "quote.C0_USDC-PERPETUAL"]
    commands = venue.subscribe(made[0].streams, 7)
    assert [len(command.keys) for command in commands] == [CHANNELS_PER_REQUEST, 200]
    assert [json.loads(command.text)["id"] for command in commands] == [7, 8]
    ask, = venue.unsubscribe(["book.X.100ms"], 5)
    assert json.loads(ask.text) == {"jsonrpc": "2.0", "id": 5, "method": "public/unsubscribe",
                                    "params": {"channels": ["book.X.100ms"]}}
    hello, = venue.session().hello(1)
    assert json.loads(hello.text)["params"] == {"interval": 10}


@pytest.mark.parametrize("symbol, name, asked", [
    ("BTC-PERPETUAL", "BTC/USD-PERP", "currency=any&kind=future"),
    ("BTC_USDC-PERPETUAL", "BTC/USDC-PERP", "currency=any&kind=future"),
    ("BTC-25SEP26", "BTC/USD-25SEP26", "currency=any&kind=future"), ("BTC_USDC", "BTC/USDC", "currency=any&kind=spot"),
    ("BTC-25SEP26-100000-C", "BTC/USD-25SEP26-100000-C", "currency=BTC&kind=option"),
    ("XRP_USDC-26DEC25-2d5-C", "XRP/USDC-26DEC25-2d5-C", "currency=USDC&kind=option")])
def test_names_and_kinds_of_symbols(symbol, name, asked):
    assert Deribit.facts.symbol.fullmatch(symbol) and Deribit.common_name(symbol) == name
    request, = venue_of().instruments_requests([symbol, symbol])
    assert request.path == f"/api/v2/public/get_instruments?{asked}&expired=false"


def test_the_embedded_run_and_the_twin_spell_alike():
    assert Deribit.spelling("BTC", "USDT") == DIALECTS["deribit"]().spell("BTC", "USDT") == "BTC_USDT"


def test_sizes_are_told_without_exponents():
    body = '{"result":[{"instrument_name":"A","tick_size":1.0e-4,"min_trade_amount":%s}]}'
    assert venue_of().decode_instruments((body % "1.0e1").encode()) == {"A": Listing("0.0001", "10")}
    for wrong in ("null", "{}", '"x"', "1e400"):
        with pytest.raises(VenueError):
            venue_of().decode_instruments((body % wrong).encode())


def test_connections_are_known_by_their_address():
    for url in ("wss://www.deribit.com/ws/api/v2", "wss://test.deribit.com/ws/api/v2/",
                "wss://streams.deribit.com/ws/api/v2",
                "https://www.deribit.com/api/v2/public/get_instruments?currency=BTC&expired=false"):
        assert recognise(url) is Deribit
    with pytest.raises(CaptureError):
        recognise("wss://www.deribit.com/ws/api/v1")


# -- recordings -------------------------------------------------------------------------------------------------------


@needs_captures
@pytest.mark.parametrize("path", recordings("deribit"), ids=short)
def test_books_equal_a_plain_model_and_the_tickers(path):
    """The ticker is another stream: its best prices are those of the book at its arrival in 233 of 263 (README)."""
    models, counts = {}, {"change": 0, "snapshot": 0, "same": 0, "compared": 0}
    for entry in lines(path):
        params = json.loads(entry["raw"], parse_float=str, parse_int=str).get("params", {})
        data, kind = params.get("data"), params.get("channel", "").partition(".")[0]
        if kind == "book":
            counts[data["type"]] += 1
            model = models.setdefault(data["instrument_name"], Market())
            if data["type"] == "snapshot":
                model.__init__()
            model.apply(*([row[1:] for row in data[side]] for side in ("bids", "asks")))
        elif kind == "ticker" and data["instrument_name"] in models:
            bid, _, ask, _ = models[data["instrument_name"]].best()
            counts["compared"] += 1
            counts["same"] += (Decimal(data["best_bid_price"]), Decimal(data["best_ask_price"])) == (bid or 0, ask or 0)
    replay = Replay(lambda datagram: None, session=1)
    replay.file(path)
    assert {entry.instrument.symbol: book_decimals(entry) for entry in replay.pipeline.publisher.entries} == {
        symbol: model.top() for symbol, model in models.items()}
    assert all(entry.state == LIVE for entry in replay.pipeline.publisher.entries)
    assert counts == {"snapshot": 10, "change": 177, "compared": 263, "same": 233}


@needs_captures
def test_single_messages_are_read_or_counted():
    for name in ("single_messages", "quoted_live_frames"):
        for entry in lines(CAPTURES / "deribit" / f"{name}.jsonl"):
            if entry["kind"] == "ws" and entry["dir"] == "in":
                venue = venue_of()
                venue.decode(entry["raw"].encode(), 9)
                assert len(venue.kinds) == 1


# -- live -------------------------------------------------------------------------------------------------------------


def test_test_requests_are_answered():
    """At a hundredth of the venue's times: the twin closes where one is not answered."""
    with desk_of("deribit", stale_after_s=5) as made:
        start(made, "deribit", time_scale=100.0)
        made.until(lambda: made.feed.venue.kinds["test_request"] >= 5)
        agree(made)
        assert made.feed.row()["disconnects"] == 0 and made.feed.row()["venue_errors"] == 0


def test_heartbeats_keep_a_quiet_connection():
    with desk_of("deribit", stale_after_s=0.5) as made:
        start(made, "deribit", time_scale=100.0)
        made.twin.pause()
        made.spin(1.2)
        assert made.live() and made.feed.row()["disconnects"] == 0
