"""Coinbase Exchange and Advanced Trade: what messages become. What all venues fulfil is in test_venue_contract."""

import gzip
import json
from collections import Counter
from decimal import Decimal

import pytest
from support import CAPTURES, Market, Recorder, book_decimals, dice, lines, needs_captures, recordings, short
from test_ingest import desk, stub

from feeder.errors import NumberError, VenueError
from feeder.message import BUY, LIVE, SELL
from feeder.pipeline import Pipeline
from feeder.recovery import StreamRecovery
from feeder.replay import Replay
from feeder.venue import coinbase, recognise
from feeder.venue.coinbase import CoinbaseAdvanced, CoinbaseExchange
from feeder.venue.contract import (ACK, ALIVE, ERROR, GAP, NEXT, OLD, OWN_SEQUENCE_BITS, BrokenLine, Instruments,
                                   Notice)
from feeder.websocket import TEXT

SNAPSHOT = ('{"type":"snapshot","product_id":"BTC-USD","bids":[["10101.10","0.45054140"],["10101","2.5"]],'
            '"asks":[["10102.55","0.57753524"]]}')
UPDATE = ('{"type":"l2update","product_id":"BTC-USD","time":"2022-08-04T15:25:05.010758Z","changes":'
          '[["buy","10101.100000","0.00000000"],["sell","10102.3","1.00000000"],["buy","10101.05","0.3"]]}')
MATCH = ('{"type":"match","trade_id":%d,"sequence":50,"maker_order_id":"ac928c66-ca53-498f-9c13-a110027a60e8",'
         '"taker_order_id":"132fb6ae-456b-4654-b4e0-d681ac05cea1","time":"2014-11-07T08:19:27.028459Z",'
         '"product_id":"BTC-USD","size":"5.23512","price":"400.23","side":"sell"}')
TICKER = ('{"type":"ticker","sequence":37475248783,"product_id":"BTC-USD","price":"10102.55","best_bid":"10101.10",'
          '"best_bid_size":"0.45054140","best_ask":"10102.55","best_ask_size":"0.57753524","side":"buy",'
          '"time":"2022-10-19T23:28:22.061769Z","trade_id":370843401,"last_size":"11.4396987"}')
HEARTBEAT = ('{"type":"heartbeat","sequence":90,"last_trade_id":20,"product_id":"BTC-USD",'
             '"time":"2014-11-07T08:19:28.464459Z"}')
GRANTED = ('{"type":"subscriptions","channels":[{"name":"level2_50","product_ids":["BTC-USD"],"account_ids":null},'
           '{"name":"heartbeat","product_ids":["BTC-USD"]},{"name":"matches","product_ids":["BTC-USD"]}]}')


def advanced(number, channel, *events, time="2026-08-09T21:05:48.228568804Z"):
    return json.dumps({"channel": channel, "client_id": "", "timestamp": time, "sequence_num": number,
                       "events": events})


def level(side, price, quantity, time="2026-08-09T21:05:48.170326Z"):
    return {"side": side, "event_time": time, "price_level": price, "new_quantity": quantity}


def trade(number, side, product="BTC-USD", price="68900.50"):
    return {"trade_id": str(number), "product_id": product, "price": price, "size": "0.00150000", "side": side,
            "time": "2026-04-07T14:30:02.789012Z"}


BOOK = {"type": "snapshot", "product_id": "BTC-USD", "updates": [
    level("bid", "21921.73", "0.06317902", "1970-01-01T00:00:00Z"),
    level("offer", "21922.3", "0.02", "1970-01-01T00:00:00Z")]}
CHANGE = {"type": "update", "product_id": "BTC-USD", "updates": [
    level("bid", "21921.73", "0"), level("offer", "21922", "1.5"), level("bid", "21921.5", "0.01")]}
QUOTE = {"type": "update", "tickers": [
    {"type": "ticker", "product_id": "BTC-USD", "price": "21922", "best_bid": "21921.5", "best_bid_quantity": "0.01",
     "best_ask": "21922", "best_ask_quantity": "1.5"}]}
BEAT = {"current_time": "2026-08-09 21:05:48.854840045 +0000 UTC m=+41691.260485341", "heartbeat_counter": 41691}
SAMPLES = {
    "coinbase_exchange": [GRANTED, SNAPSHOT, UPDATE, MATCH.replace('"match"', '"last_match"') % 10, MATCH % 11,
                          MATCH.replace('"sell"', '"buy"') % 12, TICKER, HEARTBEAT, UPDATE,
                          '{"type":"error","message":"Failed to subscribe","reason":"BTC-USX is not a valid product"}'],
    "coinbase": [advanced(0, "market_trades", {"type": "snapshot", "trades": [trade(7, "BUY")]}),
                 advanced(1, "subscriptions", {"subscriptions": {"market_trades": ["BTC-USD"]}}),
                 advanced(2, "l2_data", BOOK), advanced(3, "l2_data", CHANGE),
                 advanced(4, "market_trades", {"type": "update", "trades": [trade(9, "SELL"), trade(8, "BUY")]}),
                 advanced(5, "ticker", QUOTE), advanced(6, "heartbeats", BEAT),
                 advanced(7, "l2_data", CHANGE, {"type": "update", "product_id": "ETH-USD", "updates": []}),
                 '{"type":"error","message":"rate limit exceeded"}']}


class Plain:
    """One connection's trades by nothing but json; the maker's side is turned."""

    def trades(self, message):
        found = [message] if message.get("type") == "match" else [
            trade for event in message.get("events", ()) if event.get("type") == "update"
            for trade in event.get("trades", ())]
        for trade in found:
            yield trade["product_id"], {"buy": "sell", "sell": "buy"}[trade["side"].lower()]


class Talk:
    """A session of a venue that knows no instruments, or only those named."""

    def __init__(self, kind, *symbols):
        self.venue = kind(Recorder(), Instruments(), discover=not symbols)
        for symbol in symbols:
            self.venue.instruments.add(kind.name, symbol)
        self.session = self.venue.session()

    def say(self, *texts):
        for text in texts:
            self.notice = self.session.decode(text.encode(), 9)
        return [call for call in self.venue.sink.take() if call[0] != "define"]


def exchange(*symbols):
    return Talk(CoinbaseExchange, *symbols)


def advanced_trade(*symbols):
    return Talk(CoinbaseAdvanced, *symbols)


BASE = 1 << OWN_SEQUENCE_BITS


def test_what_messages_of_the_exchange_become():
    assert exchange().say(*SAMPLES["coinbase_exchange"][:-2]) == [
        ("snapshot", "BTC-USD", BASE + 1, 0, 9, [1010110, 45054140, 1010100, 250000000], [1010255, 57753524]),
        ("depth", "BTC-USD", BASE + 2, BASE + 2, None, 1659626705010758000, 9,
         [10101100000, 0, 10101050000, 30000000], [10102300000, 100000000]),
        ("trade", "BTC-USD", 50, 1415348367028459000, 9, 11, 400230000, 523512000, BUY),
        ("trade", "BTC-USD", 50, 1415348367028459000, 9, 12, 400230000, 523512000, SELL),
        ("bbo", "BTC-USD", 37475248783, 1666222102061769000, 9, 10101100000, 45054140, 10102550000, 57753524)]


def test_what_messages_of_advanced_trade_become():
    talk = advanced_trade()
    sent_ns, told_ns, traded_ns = 1786309548228568804, 1786309548170326000, 1775572202789012000
    assert talk.say(*SAMPLES["coinbase"][:-2]) == [
        ("snapshot", "BTC-USD", BASE + 2, sent_ns, 9, [2192173, 6317902], [2192230, 2000000]),
        ("depth", "BTC-USD", BASE + 3, BASE + 3, BASE + 2, told_ns, 9,
         [2192173, 0, 2192150, 1000000], [2192200, 150000000]),
        ("trade", "BTC-USD", 8, traded_ns, 9, 8, 6890050, 150000, SELL),
        ("trade", "BTC-USD", 9, traded_ns, 9, 9, 6890050, 150000, BUY),
        ("bbo", "BTC-USD", 0, sent_ns, 9, 2192150, 1000000, 2192200, 150000000)]
    assert talk.notice == Notice(ALIVE, None, "") and talk.venue.kinds["old trades"] == 1


# -- what proves that nothing is missing ----------------------------------------------------------------------------


def test_a_hole_in_the_connections_count_costs_each_of_its_books():
    talk = advanced_trade()
    other = json.loads(json.dumps(BOOK).replace("BTC-USD", "ETH-USD"))
    talk.say(advanced(0, "l2_data", BOOK), advanced(1, "l2_data", other))
    with pytest.raises(BrokenLine, match="sequence_num 3 came, expected 2"):
        talk.say(advanced(3, "heartbeats", BEAT))
    assert talk.venue.sink.take() == [("stale", "BTC-USD", "gap", 9), ("stale", "ETH-USD", "gap", 9)]
    assert talk.say(advanced(3, "l2_data", CHANGE)) == [] and talk.venue.kinds["already counted"] == 1
    assert len(talk.say(advanced(4, "l2_data", CHANGE))) == 1


@pytest.mark.parametrize("text", [
    advanced("x", "l2_data", CHANGE), advanced(None, "l2_data", CHANGE), advanced(1, 5, CHANGE),
    advanced(1, "l2_data", "x"), advanced(1, "l2_data", dict(CHANGE, product_id=5))])
def test_what_may_have_been_of_any_book_costs_all(text):
    talk = advanced_trade()
    talk.say(advanced(0, "l2_data", BOOK))
    with pytest.raises(BrokenLine):
        talk.say(text)
    assert talk.venue.sink.take() == [("stale", "BTC-USD", "gap", 9)]


@pytest.mark.parametrize("change", [
    {"updates": [level("ask", "5", "1")]}, {"updates": [level("bid", "x", "1")]}, {"updates": [level("bid", "5", 1)]},
    {"updates": [level("bid", "-5", "1")]}, {"type": "delta"}, {"updates": None}, {"updates": [5]},
    {"updates": [level("bid", "5", "1", "yesterday")]}])
def test_an_update_that_cannot_be_read_costs_its_book_alone(change):
    talk = advanced_trade()
    talk.say(advanced(0, "l2_data", BOOK))
    other = dict(BOOK, product_id="ETH-USD")
    with pytest.raises((VenueError, NumberError)) as raised:
        talk.say(advanced(1, "l2_data", dict(CHANGE, **change)))
    assert raised.type is not BrokenLine
    assert [call[:3] for call in talk.venue.sink.take()] == [("stale", "BTC-USD", "bad_message")]
    assert talk.say(advanced(2, "l2_data", other))[0][:2] == ("snapshot", "ETH-USD"), "the count goes on"
    for channel in ("market_trades", "ticker", "subscriptions"):
        with pytest.raises(VenueError) as raised:
            talk.say(advanced(talk.session.expected, channel, {"type": "update"}))
        assert raised.type is not BrokenLine and talk.venue.sink.take() == []


def test_of_the_exchange_nobody_counts_so_a_text_that_cannot_be_read_costs_all():
    for text in ("no JSON", SNAPSHOT[:50], "[]", '{"product_id":"BTC-USD"}', '{"type":"l2update","changes":[]}'):
        talk = exchange()
        talk.say(SNAPSHOT)
        with pytest.raises(BrokenLine):
            talk.say(text)
        assert talk.venue.sink.take() == [("stale", "BTC-USD", "gap", 9)]
    talk = exchange()
    talk.say(SNAPSHOT, SNAPSHOT.replace("BTC-USD", "ETH-USD"))
    for wrong in ('["hold","1","1"]', '["buy","1"]', '["buy","NaN","1"]', '["buy","1","-1"]', '{"buy":1}', "[]"):
        with pytest.raises((VenueError, NumberError)) as raised:
            talk.say('{"type":"l2update","product_id":"BTC-USD","changes":[%s]}' % wrong)
        assert raised.type is not BrokenLine
        assert [call[:3] for call in talk.venue.sink.take()] == [("stale", "BTC-USD", "bad_message")], wrong
    with pytest.raises(VenueError):
        talk.say(MATCH.replace('"sell"', '"seller"') % 5)
    assert talk.venue.sink.take() == []


def test_a_time_of_year_one_is_none_and_unknown_kinds_are_counted():
    talk = exchange()
    told, = talk.say(SNAPSHOT.replace('"bids"', '"time":"0001-01-01T00:00:00.000000Z","bids"'))
    assert told[3] == 0
    assert talk.say('{"type":"status","products":[]}', '{"type":"auction","product_id":"BTC-USD"}') == []
    assert talk.venue.kinds["status"] == talk.venue.kinds["auction"] == 1


def test_missing_trades_are_counted():
    talk = exchange()
    talk.say(MATCH.replace('"match"', '"last_match"') % 3, MATCH % 10, MATCH % 11, MATCH % 14)
    assert talk.venue.kinds["trades are missing before a trade"] == 1


@pytest.mark.parametrize("sequence, previous, last, verdict", [
    (5, 5, 9, NEXT), (5, 4, 9, GAP), (9, 5, 9, OLD), (9, None, 12, GAP), (2 << 40, 5, 9, OLD)])
def test_an_increment_names_the_one_before(sequence, previous, last, verdict):
    assert CoinbaseAdvanced.follows(sequence, True, last, last, previous) is verdict


def test_two_events_of_one_book_in_a_message_have_one_scale():
    talk = advanced_trade()
    later = dict(CHANGE, updates=[level("bid", "21921.125", "7")])
    calls = talk.say(advanced(0, "l2_data", BOOK, later))
    assert [call[-2:] for call in calls] == [([21921730, 6317902], [21922300, 2000000]), ([21921125, 700000000], [])]
    recovery = StreamRecovery(CoinbaseAdvanced.follows, Recorder(), lambda *order: None)
    talk.venue.sink = talk.session.sink = recovery
    talk.session.decode(advanced(1, "l2_data", BOOK, later, later).encode(), 9)
    link = recovery.link(talk.venue.instruments.all[0])
    assert (link.state, link.sequence, link.gaps) == (LIVE, BASE + 1, 0)


# -- commands and what answers them ---------------------------------------------------------------------------------


def test_texts_of_the_exchange():
    session = CoinbaseExchange(Recorder(), Instruments()).session()
    line, = session.venue.lines(["BTC-USD", "ETH-USD"], ["depth", "trade"], 0, 1024)
    command, = session.subscribe(line.streams, 7)
    assert json.loads(command.text) == {"type": "subscribe", "channels": [
        {"name": "level2_batch", "product_ids": ["BTC-USD", "ETH-USD"]},
        {"name": "matches", "product_ids": ["BTC-USD", "ETH-USD"]},
        {"name": "heartbeat", "product_ids": ["BTC-USD", "ETH-USD"]}]}
    assert command.keys == {7: line.streams}
    command, = session.unsubscribe(["level2_batch:BTC-USD"], 8)
    assert json.loads(command.text) == {"type": "unsubscribe", "channels": [
        {"name": "level2_batch", "product_ids": ["BTC-USD"]}]}, "heartbeats go on"


def test_texts_of_advanced_trade_are_a_channel_each():
    session = CoinbaseAdvanced(Recorder(), Instruments()).session()
    assert [command.text for command in session.hello(1)] == ['{"type":"subscribe","channel":"heartbeats"}']
    line, = session.venue.lines(["BTC-USD", "ETH-USD"], ["depth", "trade"], 0, 1024)
    commands = session.subscribe(line.streams, 7)
    assert [json.loads(command.text) for command in commands] == [
        {"type": "subscribe", "product_ids": ["BTC-USD", "ETH-USD"], "channel": channel}
        for channel in ("level2", "market_trades")]
    assert [list(command.keys) for command in commands] == [[7], [8]]


@pytest.mark.parametrize("name", ["level2_batch", "level2_50"])
def test_all_that_is_subscribed_now_is_the_acknowledgement(name):
    talk = exchange("BTC-USD", "ETH-USD")
    told = GRANTED.replace("level2_50", name)
    talk.session.subscribe(["level2_batch:BTC-USD", "matches:BTC-USD"], 1)
    talk.session.subscribe(["level2_batch:ETH-USD"], 2)
    assert talk.say(told) == [] and talk.notice == Notice(ACK, (1,), "")
    talk.say(told)
    assert talk.notice == Notice(ACK, (), "")
    talk.session.unsubscribe(["level2_batch:BTC-USD"], 3)
    talk.say(told)
    assert talk.notice.request == ()
    talk.say('{"type":"subscriptions","channels":[{"name":"%s","product_ids":["ETH-USD"]}]}' % name)
    assert talk.notice == Notice(ACK, (2, 3), "")


def test_acknowledgements_of_a_usdc_product_may_name_the_usd_one():
    talk = advanced_trade("BTC-USDC")
    talk.session.subscribe(["level2:BTC-USDC"], 1)
    talk.say(advanced(0, "subscriptions", {"subscriptions": {"level2": ["BTC-USD"], "heartbeats": ["heartbeats"]}}))
    assert talk.notice == Notice(ACK, (1,), "")
    assert talk.say(advanced(1, "l2_data", BOOK))[0][:2] == ("snapshot", "BTC-USDC")
    trades = [trade(1, "BUY"), trade(2, "BUY", "ETH-USD")]
    assert [call[:2] for call in talk.say(advanced(2, "market_trades", {"type": "update", "trades": trades}))] == [
        ("trade", "BTC-USDC")]
    with pytest.raises(VenueError):
        talk.say(advanced(3, "l2_data", dict(CHANGE, updates=5)))
    assert talk.venue.sink.take() == [("stale", "BTC-USDC", "bad_message", 9)]


def test_an_error_is_of_the_command_with_the_product_it_names_or_of_the_oldest():
    talk = exchange("BTC-USD")
    talk.session.subscribe(["level2_batch:BTC-USD"], 1)
    talk.session.subscribe(["level2_batch:ETH-USD", "level2_batch:BTC-USX"], 2)
    talk.session.subscribe(["matches:BTC-USD"], 3)
    talk.say('{"type":"error","message":"Failed to subscribe","reason":"BTC-USX is not a valid product"}')
    assert talk.notice == Notice(ERROR, 2, "Failed to subscribe: BTC-USX is not a valid product")
    for number in (1, 3, None):
        talk.say('{"type":"error","message":"Failed to subscribe"}')
        assert talk.notice == Notice(ERROR, number, "Failed to subscribe")


def test_commands_without_an_answer_are_bounded(monkeypatch):
    monkeypatch.setattr(coinbase, "MAX_PENDING", 3)
    talk = exchange("BTC-USD")
    for number in range(10):
        talk.session.subscribe([f"matches:C{number}-USD"], number)
    assert list(talk.session.pending) == [7, 8, 9]


# -- best prices, lists, recordings ---------------------------------------------------------------------------------


def test_a_best_price_needs_both_sides_and_sizes():
    talk = exchange()
    old = TICKER.replace('"best_bid_size":"0.45054140",', "")
    assert talk.say(old, TICKER.replace('"10101.10"', '""'), TICKER.replace('"0.57753524"', '"0"')) == []
    assert talk.venue.kinds["bbo without a side or sizes"] == 3
    with pytest.raises(VenueError):
        talk.say(TICKER.replace('"10101.10"', "10101.10"))


def test_names_and_places():
    assert recognise("wss://ws-feed.exchange.coinbase.com") is CoinbaseExchange
    assert recognise("wss://ws-feed.pro.coinbase.com") is CoinbaseExchange
    assert recognise("wss://advanced-trade-ws.coinbase.com") is CoinbaseAdvanced
    assert recognise("https://api.coinbase.com/api/v3/brokerage/market/products") is CoinbaseAdvanced
    assert CoinbaseExchange.common_name("ETH-BTC") == "ETH/BTC"


def book_messages(path):
    """Yield (product, is it a snapshot, [(side, price, size)]) of both dialects, by nothing but json."""
    for entry in lines(path):
        message = json.loads(entry["raw"]) if entry["dir"] == "in" else {}
        kind = message.get("type")
        if kind == "snapshot":
            yield message["product_id"], True, [("bid", *row) for row in message["bids"]] + [
                ("ask", *row) for row in message["asks"]]
        elif kind == "l2update":
            yield message["product_id"], False, [({"buy": "bid", "sell": "ask"}[side], *row)
                                                 for side, *row in message["changes"]]
        elif message.get("channel") == "l2_data":
            for event in message["events"]:
                yield event["product_id"], event["type"] == "snapshot", [
                    ({"bid": "bid", "offer": "ask"}[each["side"]], each["price_level"], each["new_quantity"])
                    for each in event["updates"]]


@needs_captures
@pytest.mark.parametrize("path", recordings("coinbase"), ids=short)
def test_books_equal_a_plain_model(path):
    models = {}
    for symbol, is_snapshot, rows in book_messages(path):
        if is_snapshot:
            models[symbol] = Market()
        models[symbol].apply(*([row[1:] for row in rows if row[0] == side] for side in ("bid", "ask")))
    replay = Replay(lambda datagram: None, session=1)
    replay.file(path)
    assert {entry.instrument.symbol: book_decimals(entry) for entry in replay.pipeline.publisher.entries} == {
        symbol: model.top() for symbol, model in models.items()}
    venue, = replay.pipeline.venues.values()
    assert venue.kinds["trades are missing before a trade"] == 0 and len(models) in (2, 5)
    print(f"{short(path)}: {dict(venue.kinds)}")


@needs_captures
def test_the_aggressor_of_advanced_trade_is_not_the_side_it_prints():
    """Trades exactly at the best bid or ask of the book just before: sellers hit bids, buyers lift asks (B6)."""
    best, met = {}, Counter()
    talk = advanced_trade()
    market = {}
    for entry in lines(next(path for path in recordings("coinbase") if "advanced" in path.name)):
        if entry["dir"] == "out":
            continue
        for call in talk.say(entry["raw"]):
            instrument = talk.venue.instruments.find("coinbase", call[1])
            if call[0] == "trade":
                scaled = Decimal(call[6]).scaleb(-instrument.price_decimals)
                for side, price in best.get(call[1], {}).items():
                    met[side, call[8]] += price == scaled
        message = json.loads(entry["raw"])
        for event in message["events"] if message["channel"] == "l2_data" else ():
            model = market.setdefault(event["product_id"], Market())
            model.apply(*([(row["price_level"], row["new_quantity"]) for row in event["updates"] if row["side"] == side]
                          for side in ("bid", "offer")))
            bid, _, ask, _ = model.best()
            best[event["product_id"]] = {"bid": bid, "ask": ask}
    print(dict(met))
    assert met["bid", SELL] > 10 and met["ask", BUY] > 10 and not met["bid", BUY] and not met["ask", SELL]


@needs_captures
def test_single_messages_are_read_or_counted():
    """One a type, of 2021 to 2023; the last is a REST book."""
    talk = exchange()
    told = list(lines(CAPTURES / "coinbase" / "single_messages.jsonl"))
    calls = talk.say(*(entry["raw"] for entry in told[:-1]))
    assert [call[0] for call in calls] == ["snapshot", "depth"]
    assert set(talk.venue.kinds) == {"last_match", "snapshot", "l2update", "open", "bbo without a side or sizes"}


@needs_captures
@pytest.mark.parametrize("kind, name, symbol, listing", [
    (CoinbaseExchange, "products_exchange_20210417", "SKL-EUR", ("0.0001", "0.1", "1")),
    (CoinbaseAdvanced, "products_20260809", "BTC-USDC", ("0.01", "0.00000001", "1"))])
def test_products(kind, name, symbol, listing):
    body = json.loads(gzip.open(CAPTURES / "coinbase" / f"{name}.jsonl.gz", "rt").read())["raw"].encode()
    assert kind(Recorder(), Instruments()).decode_instruments(body)[symbol] == listing


@needs_captures
def test_the_recording_over_tcp_with_its_message_of_five_megabytes():
    path = next(path for path in recordings("coinbase") if "advanced" in path.name)
    texts = [entry["raw"].encode() for entry in lines(path) if entry["dir"] == "in"]
    models = {"BTC-USD": Market(), "ETH-USD": Market()}
    for symbol, _, rows in book_messages(path):
        models[symbol].apply(*([row[1:] for row in rows if row[0] == side] for side in ("bid", "ask")))

    def on_text(link, request):
        for text in texts if request["channel"] == "heartbeats" else ():
            link.send(TEXT, text)

    listed = b'{"products":[]}'
    with desk("coinbase", symbols=list(models)) as made:
        with stub(made, on_text=on_text, on_get=lambda target: (200, listed, ())):
            line, = made.start().lines
            made.until(lambda: line.session is not None and line.session.expected == 500 and not line.asks)
            for entry in made.pipeline.publisher.entries:
                assert entry.state == LIVE and book_decimals(entry) == models[entry.instrument.symbol].top()
            assert max(map(len, texts)) > 5_000_000 and made.feed.row()["disconnects"] == 0


@pytest.mark.parametrize("kind", [CoinbaseExchange, pytest.param(CoinbaseAdvanced, marks=pytest.mark.stress)])
def test_a_product_that_is_refused_is_found_among_the_others(kind):
    with desk(kind.name, symbols=["BTC-USD", "ETH-USD", "NOSUCH-USD", "SOL-USD"]) as made:
        made.serve(symbols=["BTC-USD", "ETH-USD", "SOL-USD"], time_scale=1.0)
        feed = made.start()
        made.until(lambda: "NOSUCH-USD" in feed.refused and sum(state == LIVE for state in made.states()) == 3)
        made.until(lambda: not feed.lines[0].asks)
        assert list(feed.refused) == ["NOSUCH-USD"] and "NOSUCH-USD is not a valid product" in feed.refused["NOSUCH-USD"]
        assert feed.row()["disconnects"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_random_conversation_leads_to_a_plain_models_books(seed):
    """Advanced Trade with duplicates, events of several books in a message, and a hole that ends the connection."""
    rng = dice(seed)
    pipeline = Pipeline(lambda datagram: None, lambda: 1, 1)
    venue = pipeline.venue("coinbase", discover=True)
    links = pipeline.recoveries["coinbase"].links
    for _ in range(20):
        session = pipeline.recoveries["coinbase"].line = venue.session()
        models = {"A-USD": Market(), "B-USD": Market()}
        number = rng.randrange(3)
        for step in range(rng.randrange(5, 30)):
            events = []
            for symbol in models:
                if not step or rng.random() < 0.7:
                    sides = [[(f"{price}{rng.choice(('', '.5', '.250'))}", rng.choice(("0", "0.00", "1", "2.5")))
                              for price in rng.sample(prices, rng.randrange(6))]
                             for prices in (range(10, 25), range(25, 40))]
                    models[symbol].apply(*sides)
                    rows = [level(side, *row) for side, rows in zip(("bid", "offer"), sides) for row in rows]
                    kind = "update" if step else "snapshot"
                    events.append({"type": kind, "product_id": symbol, "updates": rows})
            for _ in range(rng.choice((1, 1, 1, 2))):
                assert pipeline.decode(session, advanced(number, "l2_data", *events).encode(), 9) == (None, None)
            number += 1
        for entry in pipeline.publisher.entries:
            assert entry.state == LIVE and entry.crossed == 0
            assert book_decimals(entry) == models[entry.instrument.symbol].top()
        assert sum(link.gaps for link in links.values()) == pipeline.bad_messages["coinbase"] * 2
        _, error = pipeline.decode(session, advanced(number + 1, "heartbeats", BEAT).encode(), 9)
        assert type(error) is BrokenLine and not any(entry.state == LIVE for entry in pipeline.publisher.entries)
