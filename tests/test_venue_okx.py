"""OKX v5: what its messages become. What every venue has to fulfil is in test_venue_contract."""

import json
from binascii import crc32

import pytest
from mutate import MUTATIONS
from support import CAPTURES, Market, Recorder, book_decimals, dice, lines, needs_captures, recordings, short
from test_venue_contract import Rivals
from test_venue_live import agree, desk_of, quick, start      # noqa: F401 (quick is a fixture)

from feeder.errors import CaptureError, NumberError, VenueError
from feeder.message import BUY, LIVE, SELL, STALE
from feeder.pipeline import Pipeline
from feeder.replay import Replay
from feeder.venue import recognise
from feeder.venue.contract import ACK, ALIVE, ERROR, GAP, NEXT, OLD, SHUTDOWN, Instruments, Listing, Notice
from feeder.venue.okx import BOOKS_PER_CONNECTION, KINDS, Okx, checksum_of

BOOK = ('{"arg":{"channel":"%s","instId":"SOL-USDT"},"action":"%s","data":[{"asks":%s,"bids":%s,"ts":"1790394877200",'
        '"checksum":%s%s}]}')
SNAPSHOT = BOOK % ("books", "snapshot", '[["120.67","90.475897","0","6"],["120.68","83.806786","0","7"]]',
                   '[["120.66","28.448458","0","3"]]', 0, ',"seqId":32032594283,"prevSeqId":-1')
UPDATE = BOOK % ("books", "update", '[["120.67","60.475897","0","5"]]',
                 '[["120.66","0","0","0"],["120.655","1e-3","0","1"]]', 0,
                 ',"seqId":32032594315,"prevSeqId":32032594283')
IDLE = BOOK % ("books", "update", "[]", "[]", 0, ',"prevSeqId":32032594315,"seqId":32032594315')
RESET = BOOK % ("books", "update", '[["120.69","7","0","1"]]', "[]", 0, ',"prevSeqId":32032594315,"seqId":3')
TRADES = ('{"arg":{"channel":"trades","instId":"SOL-USDT"},"data":[{"instId":"SOL-USDT","tradeId":"1632918528",'
          '"px":"120.6","sz":"391.07","side":"sell","ts":"1790394876983","count":"26","source":"0",'
          '"seqId":92286018766}]}')
BBO = ('{"arg":{"channel":"bbo-tbt","instId":"SOL-USDT"},"data":[{"asks":[["83.81","11.93175","0","1"]],'
       '"bids":[["83.8","11.93317","0","1"]],"ts":"1765201257149","seqId":378617009}]}')
STATES = ('{"arg":{"channel":"instruments","instType":"SPOT"},"data":[{"instId":"SOL-USDT","state":"%s"},'
          '{"instId":"X-Y","state":"live"}]}')

# Of a book without seqId: the levels of the fact sheet's check value, 831078360, and what a change makes of it.
OLD_BOOK = [BOOK % ("books-l2-tbt", "snapshot", '[["3366.8","9","0","10"],["3368","8","0","3"],["3372","8","0","3"]]',
                    '[["3366.1","7","0","3"]]', 831078360, ""),
            BOOK % ("books-l2-tbt", "update", '[["3368","0","0","0"]]', '[["3366.1","7.0","0","3"]]',
                    checksum_of(["3366.1:7.0"], ["3366.8:9", "3372:8"]), "")]
SAMPLES = {"okx": ['{"id":"7","event":"subscribe","arg":{"channel":"books","instId":"SOL-USDT"},"connId":"a4d3ae55"}',
                   SNAPSHOT, UPDATE, IDLE, RESET, TRADES, BBO, STATES % "live", "pong"]}
NS = 10**6


class Plain:
    """One connection's trades by nothing but json."""

    def trades(self, message):
        if message.get("arg", {}).get("channel") == "trades":
            for trade in message.get("data", ()):
                yield trade["instId"], trade["side"]


class Talk:
    """A venue, one connection of it, and what it told."""

    def __init__(self):
        self.venue = Okx(Recorder(), Instruments(), discover=True)
        self.session = self.venue.session()

    def say(self, *texts):
        for text in texts:
            self.notice = self.session.decode(text.encode(), 9)
        return [call for call in self.venue.sink.take() if call[0] != "define"]


def test_what_messages_become():
    assert Talk().say(*SAMPLES["okx"]) == [
        ("snapshot", "SOL-USDT", 32032594283, 1790394877200 * NS, 9,
         [12066, 28448458], [12067, 90475897, 12068, 83806786]),
        ("depth", "SOL-USDT", 32032594315, 32032594315, 32032594283, 1790394877200 * NS, 9,
         [120660, 0, 120655, 1000], [120670, 60475897]),
        ("depth", "SOL-USDT", 32032594315, 32032594315, 32032594315, 1790394877200 * NS, 9, [], []),
        ("depth", "SOL-USDT", 3, 3, 32032594315, 1790394877200 * NS, 9, [], [120690, 7000000]),
        ("trade", "SOL-USDT", 92286018766, 1790394876983 * NS, 9, 1632918528, 120600, 391070000, SELL),
        ("bbo", "SOL-USDT", 378617009, 1765201257149 * NS, 9, 83800, 11933170, 83810, 11931750)]


@pytest.mark.parametrize("sequence, previous, last, verdict", [
    (10, 10, 15, NEXT), (15, 15, 15, NEXT), (15, 15, 3, NEXT), (3, 3, 5, NEXT),       # the page's own example
    (15, 10, 15, OLD), (10, 11, 15, GAP), (15, 3, 5, GAP)])
def test_ids_are_compared_with_the_one_before_only(sequence, previous, last, verdict):
    assert Okx.follows(sequence, True, last, last, previous) is verdict


# -- books without seqId ----------------------------------------------------------------------------------------------


def test_checksums_prove_books_that_number_nothing():
    talk = Talk()
    assert [call[:4] + call[5:] for call in talk.say(*OLD_BOOK)] == [
        ("snapshot", "SOL-USDT", (1 << 40) + 1, 1790394877200 * NS, [33661, 7], [33668, 9, 33680, 8, 33720, 8]),
        ("depth", "SOL-USDT", (1 << 40) + 2, (1 << 40) + 2, 1790394877200 * NS, 9, [33661, 70], [33680, 0])]
    assert talk.venue.instruments.all[0].verified == 2


def test_a_wrong_checksum_ends_the_book_until_the_next_snapshot():
    talk = Talk()
    talk.say(OLD_BOOK[0])
    wrong = OLD_BOOK[1].replace('"3366.1","7.0"', '"3366.1","7"')
    assert talk.say(wrong, OLD_BOOK[1]) == [("stale", "SOL-USDT", "checksum", 9)]
    assert talk.venue.checksums_failed == 1 and talk.venue.kinds["update without a snapshot"] == 1
    assert [call[0] for call in talk.say(*OLD_BOOK)] == ["snapshot", "depth"]


def test_a_message_lost_among_books_that_number_nothing_is_their_end():
    talk = Talk()
    talk.say(OLD_BOOK[0], SNAPSHOT.replace("SOL-USDT", "BTC-USDT"))
    with pytest.raises(VenueError, match="without seqId"):
        talk.say(OLD_BOOK[1].replace('"update"', '"updat"'))
    assert talk.venue.sink.take() == [("stale", "SOL-USDT", "gap", 9)], "the other one is found by its ids"
    assert talk.say(OLD_BOOK[1]) == []


@pytest.mark.parametrize("text", [
    UPDATE.replace(',"seqId":32032594315,"prevSeqId":32032594283', ""), UPDATE.replace(',"prevSeqId":32032594283', ""),
    SNAPSHOT.replace('"checksum":0,"seqId":32032594283', '"x":0'),
    SNAPSHOT.replace('"checksum":0,"seqId":32032594283', '"checksum":"1"')])
def test_a_book_that_nothing_proves_is_refused(text):
    talk = Talk()
    talk.say(SNAPSHOT)
    with pytest.raises(VenueError):
        talk.say(text)
    assert talk.venue.sink.take() == []


def test_the_sign_of_the_checksum():
    assert checksum_of(["3366.1:7"], ["3366.8:9", "3368:8", "3372:8"]) == 831078360
    assert checksum_of([], ["1:1"]) == crc32(b"1:1") - (1 << 32) < 0 == checksum_of([], [])


# -- trades, best prices, states --------------------------------------------------------------------------------------


def test_the_newest_trade_is_told_again_at_each_subscription_and_published_once():
    talk = Talk()
    assert len(talk.say(TRADES, TRADES)) == 1
    talk.session = talk.venue.session()
    assert talk.say(TRADES) == [] and talk.venue.kinds["trade again"] == 2
    later = TRADES.replace("1632918528", "1632918530").replace('"sell"', '"buy"')
    assert [call[5:] for call in talk.say(TRADES, later)] == [(1632918530, 1206, 39107, BUY)]


def test_what_json_has_met_goes_the_likely_path():
    talk = Talk()
    assert talk.venue.instrument("SOL-USDT").price_exponent == -8
    for number, (text, old, new, likely) in enumerate((
            (BBO, "", "", 0), (BBO, "83.81", "83.9", 1), (BBO, "83.81", "83.815", 0), (BBO, "83.81", "83.816", 1),
            (TRADES, "1632918528", "1", 0), (TRADES, "1632918528", "2", 1), (TRADES, "1632918528", "2", 0),
            (TRADES, "120.6", "12345678901.5", 0), (BBO, "83.8", "1.123456789", 0), (BBO, "", "", 0))):
        before = talk.venue.likely
        talk.say(text.replace(old, new, 1))
        assert talk.venue.likely - before == likely, number
    assert talk.venue.instruments.all[0].price_exponent < -8 and not talk.venue.met


@pytest.mark.parametrize("talks", [100, pytest.param(5_000, marks=pytest.mark.stress)])
def test_the_likely_path_agrees_with_json(talks):
    """More of what it takes than the contract's own mutations have."""
    rng, likely = dice(talks), 0
    for _ in range(talks):
        rivals = Rivals("okx")
        for text in (SNAPSHOT, BBO, TRADES):
            rivals.feed(text.encode())
        for number in range(20):
            text = rng.choice((BBO, TRADES)).replace("1632918528", str(rng.randrange(10**10))).encode()
            rivals.feed(rng.choice(MUTATIONS)(rng, text) if number % 10 else text)
        likely += rivals.venues[0].likely
    print(f"{likely} of {23 * talks} by the likely path")
    assert likely > talks


def test_a_message_is_taken_whole_or_not_at_all():
    talk = Talk()
    message = json.loads(TRADES)
    message["data"].append(dict(message["data"][0], tradeId="1632918529", px="120.605"))
    message["data"].append(dict(message["data"][0], tradeId="1632918530", side="none"))
    with pytest.raises(VenueError, match="none"):
        talk.say(json.dumps(message))
    message["data"][-1].update(side="buy", px="1.2.3")
    with pytest.raises(NumberError):
        talk.say(json.dumps(message))
    assert {call[0] for call in talk.venue.sink.take()} <= {"define"}
    message["data"][-1]["px"] = "120.6"
    assert [call[5:] for call in talk.say(json.dumps(message))] == [
        (1632918528, 120600, 39107, SELL), (1632918529, 120605, 39107, SELL), (1632918530, 120600, 39107, BUY)]


def test_only_one_channel_makes_the_book_and_the_trades():
    talk = Talk()
    talk.say(SNAPSHOT, TRADES)
    for text, old, new in ((SNAPSHOT, "books", "books50-l2-tbt"), (TRADES.replace("28", "29"), "trades", "trades-all"),
                           (UPDATE, "books", "books-rpi"), (UPDATE, "books", "tickers"), (UPDATE, "books", "candle1m")):
        assert talk.say(text.replace(f'"{old}"', f'"{new}"')) == []
    kinds = talk.venue.kinds
    assert kinds["another depth"] == kinds["another trade"] == 1
    assert kinds["books-rpi"] == kinds["tickers"] == kinds["candle1m"] == 1


def test_a_quote_without_a_side_is_none():
    talk = Talk()
    assert talk.say(BBO.replace('[["83.8","11.93317","0","1"]]', "[]")) == []
    assert talk.venue.kinds["bbo without a side"] == 1


def test_bids_may_be_above_asks_while_there_is_no_continuous_trading():
    talk = Talk()
    talk.say(SNAPSHOT)
    instrument, = talk.venue.instruments
    for state, may_cross in (("live", False), ("preopen", True), ("suspend", True), ("live", False)):
        talk.say(STATES % state)
        assert instrument.may_cross is may_cross
    assert len(talk.venue.instruments) == 1, "others of the list are none of ours"


def test_a_crossed_book_is_live_in_an_auction_and_stale_after_it():
    pipeline = Pipeline(lambda datagram: None, lambda: 1, 1)
    session = pipeline.venue("okx", discover=True).session()
    pipeline.recoveries["okx"].line = session

    def say(text):
        assert pipeline.decode(session, text.encode(), 9)[1] is None
        return pipeline.publisher.entries[0].state

    crossed = SNAPSHOT.replace('"bids":[["120.66"', '"bids":[["120.69"')
    assert say(SNAPSHOT) == LIVE and say(crossed) == STALE
    assert say(STATES % "preopen") == STALE and say(crossed) == LIVE
    assert say(STATES % "live") == STALE and say(SNAPSHOT) == LIVE


@pytest.mark.parametrize("text, notice", [
    ('{"id":"1512","event":"subscribe","arg":{"channel":"books","instId":"BTC-USDT"},"connId":"a4d3ae55"}',
     Notice(ACK, "subscribe books:BTC-USDT", "")),
    ('{"event":"unsubscribe","arg":{"channel":"trades","instId":"BTC-USDT"}}',
     Notice(ACK, "unsubscribe trades:BTC-USDT", "")),
    ('{"event":"subscribe","arg":{"channel":"instruments","instType":"SPOT"},"connId":"94d38802"}',
     Notice(ACK, "subscribe instruments:SPOT", "")),
    ('{"event":"error","msg":"Wrong URL or channel:index-tickers, instId:NEAR-USDT-SWAP doesn\'t exist. Please use the '
     'correct URL, channel and parameters referring to API document.","code":"60018","connId":"94d38802"}',
     Notice(ERROR, "subscribe index-tickers:NEAR-USDT-SWAP",
            "60018 Wrong URL or channel:index-tickers, instId:NEAR-USDT-SWAP doesn't exist. Please use the correct "
            "URL, channel and parameters referring to API document.")),
    ('{"id":"3","event":"error","code":"60012","msg":"Invalid request: {}","connId":"a4d3ae55"}',
     Notice(ERROR, None, "60012 Invalid request: {}")),
    ('{"event":"error","code":"60014","msg":"Requests too frequent","connId":"a4d3ae55"}',
     Notice(SHUTDOWN, None, "60014 Requests too frequent")),
    ('{"event":"notice","msg":"The connection will soon be closed for a service upgrade. Please reconnect.",'
     '"code":"64008","connId":"8517149b"}',
     Notice(SHUTDOWN, None, "64008 The connection will soon be closed for a service upgrade. Please reconnect.")),
    ("pong", Notice(ALIVE, None, "")),
])
def test_notices(text, notice):
    talk = Talk()
    assert talk.say(text) == [] and talk.notice == notice


# -- requests, names, instruments -------------------------------------------------------------------------------------


def test_requests_keep_the_venues_limits():
    venue = Talk().venue
    made = venue.lines([f"COIN{number:04d}-USDT-SWAP" for number in range(300)], ["depth", "trade", "bbo"], 0, 87, 400)
    assert len(made) == 11 and {line.path for line in made} == {"/ws/v5/public"}
    for line in made:
        assert sum(stream.startswith("books:") for stream in line.streams) <= BOOKS_PER_CONNECTION
        assert all(len(command.text) < 64 << 10 for command in venue.subscribe(line.streams, 1))
    assert [len(line.streams) for line in venue.lines(["A-B", "C-D"], ["trade", "bbo"], 0, 3, 400)] == [3, 1]
    ask, = venue.unsubscribe(["books:BTC-USDT", "trades:ETH-USDT"], 5)
    assert json.loads(ask.text) == {"id": "5", "op": "unsubscribe", "args": [
        {"channel": "books", "instId": "BTC-USDT"}, {"channel": "trades", "instId": "ETH-USDT"}]}
    assert ask.keys == {"unsubscribe books:BTC-USDT": ["books:BTC-USDT"],
                        "unsubscribe trades:ETH-USDT": ["trades:ETH-USDT"]}


def test_hello_asks_for_the_states_of_our_kinds():
    venue = Talk().venue
    assert venue.hello(1) == []
    for symbol in ("BTC-USDT", "ETH-USDT", "BTC-USD-SWAP", "BTC-USD-261225", "BTC-USD-261225-100000-C"):
        venue.instruments.add("okx", symbol)
    venue.instruments.add("deribit", "BTC-PERPETUAL")
    ask, = venue.session().hello(1)
    assert json.loads(ask.text)["args"] == [{"channel": "instruments", "instType": kind} for kind in KINDS]


@pytest.mark.parametrize("symbol, name, family", [
    ("BTC-USDT", "BTC/USDT", "SPOT"), ("BTC-USD-SWAP", "BTC/USD-PERP", "SWAP"),
    ("BTC-USD_UM-SWAP", "BTC/USD_UM-PERP", "SWAP"),
    ("BTC-USD-261225", "BTC/USD-261225", "FUTURES"),
    ("BTC-USD-261225-100000-C", "BTC/USD-261225-100000-C", "OPTION&instFamily=BTC-USD"), ("BTC", "BTC", "FUTURES")])
def test_kinds_of_symbols(symbol, name, family):
    assert Okx.common_name(symbol) == name
    request, = Talk().venue.instruments_requests([symbol, symbol])
    assert request.path == "/api/v5/public/instruments?instType=" + family


def test_without_symbols_all_lists_are_named():
    assert [request.path.partition("=")[2] for request in Talk().venue.instruments_requests([])] == list(KINDS)


def test_sizes_of_contracts():
    body = ('{"code":"0","data":[{"instId":"A","tickSz":"0.1","lotSz":"1","ctVal":"0.1","ctMult":"0.01"},'
            '{"instId":"B","tickSz":"0.1","lotSz":"1","ctVal":"1e3","ctMult":""},'
            '{"instId":"C","tickSz":"","lotSz":"","ctVal":"","ctMult":""}],"msg":""}')
    venue = Talk().venue
    assert venue.decode_instruments(body.encode()) == {
        "A": Listing("0.1", "1", "0.001"), "B": Listing("0.1", "1", "1000"), "C": Listing(None, None, "1")}
    with pytest.raises(VenueError, match="51000 Parameter instType error"):
        venue.decode_instruments(b'{"code":"51000","data":[],"msg":"Parameter instType error"}')
    with pytest.raises(VenueError, match="NumberError"):
        venue.decode_instruments(body.replace('"0.1"', '"x"', 1).encode())


def test_connections_are_known_by_their_address():
    for url in ("wss://ws.okx.com:8443/ws/v5/public", "wss://wseea.okx.com:8443/ws/v5/business",
                "wss://ws.okex.com:8443/ws/v5/public", "https://www.okx.com/api/v5/public/instruments?instType=SPOT"):
        assert recognise(url) is Okx
    for url in ("wss://ws.okx.com:8443/ws/v5/private", "wss://real.okex.com:8443/ws/v3",
                "wss://notokx.com/ws/v5/public"):
        with pytest.raises(CaptureError):
            recognise(url)


# -- recordings -------------------------------------------------------------------------------------------------------


@needs_captures
@pytest.mark.parametrize("path", recordings("okx"), ids=short)
def test_every_checksum_verifies_and_books_equal_a_plain_model(path):
    models, books, most = {}, 0, 0
    for entry in lines(path):
        message = json.loads(entry["raw"])
        if message.get("arg", {}).get("channel", "").startswith("books") and "data" in message:
            books += 1
            model = models.setdefault(message["arg"]["instId"], Market())
            if message["action"] == "snapshot":
                model.__init__()
            data, = message["data"]
            model.apply(data["bids"], data["asks"])
            most = max(most, len(model.bids), len(model.asks))
    replay = Replay(lambda datagram: None, session=1)
    replay.file(path)
    report = replay.report(1)
    assert {entry.instrument.symbol: book_decimals(entry) for entry in replay.pipeline.publisher.entries} == {
        symbol: model.top() for symbol, model in models.items()}
    assert all(entry.state == LIVE for entry in replay.pipeline.publisher.entries)
    verified = sum(row["checksums_verified"] for row in report["instruments"])
    assert verified == books == (290 if "3inst" in path.name else 1504)
    assert most <= 400, "the venue says itself which levels leave the window"


@needs_captures
def test_single_messages_are_read_or_counted():
    for name in ("single_messages", "quoted_live_frames"):
        for entry in lines(CAPTURES / "okx" / f"{name}.jsonl"):
            if entry["kind"] != "ws" or '"table"' in entry["raw"]:                    # v3
                continue
            talk = Talk()
            try:
                talk.say(entry["raw"])
            except VenueError as error:
                assert "update" in entry["raw"] and "seqId" not in entry["raw"], error
            if '"seqId"' in entry["raw"] and '"books' in entry["raw"]:
                assert talk.venue.kinds["snapshot"] + talk.venue.kinds["update"] == 1


# -- live -------------------------------------------------------------------------------------------------------------


def test_a_connection_that_may_ask_for_nothing_more_is_replaced():
    """§2: 480 requests an hour. The twin counts arguments, the harsher reading."""
    with desk_of("okx") as made:
        start(made, "okx", settings={"okx": {"requests_per_hour": 10}})
        feed = made.feed
        for _ in range(3):
            made.pipeline.resync(feed.instruments[0], "gap", 1)
            made.until(made.live)
        made.until(lambda: feed.rollovers >= 1)
        agree(made)
        assert feed.row()["disconnects"] == 0
