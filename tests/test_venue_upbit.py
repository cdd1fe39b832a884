"""Upbit: what its messages become, images of two connections. What all venues fulfil is in test_venue_contract."""

import json
from decimal import Decimal

import pytest
from support import CAPTURES, Recorder, dice, lines, needs_captures, recordings, short
from test_ingest import desk

from feeder import line
from feeder.clock import MILLISECOND
from feeder.errors import NumberError, VenueError
from feeder.message import BUY, LIVE, SELL, SYNCING
from feeder.pipeline import Pipeline
from feeder.replay import Replay
from feeder.venue import recognise
from feeder.venue.contract import ALIVE, ERROR, OWN_SEQUENCE_BITS, BrokenLine, Instruments, Notice, Ping
from feeder.venue.upbit import MAX_BEHIND, Upbit

BOOK = ('{"type":"orderbook","code":"KRW-BTC","timestamp":1790134742106,"total_ask_size":2.51469375,'
        '"total_bid_size":1.63815297,"orderbook_units":['
        '{"ask_price":1.16539E8,"bid_price":1.16538E8,"ask_size":0.02054761,"bid_size":0.08120946},'
        '{"ask_price":1.16542E8,"bid_price":0E-8,"ask_size":7.7720E-4,"bid_size":0}],'
        '"stream_type":"SNAPSHOT","level":0}')
NEXT_BOOK = ('{"type":"orderbook","code":"KRW-BTC","timestamp":1790134742206,"total_ask_size":1,"total_bid_size":1,'
             '"orderbook_units":[{"ask_price":116539000,"bid_price":1.165385E8,"ask_size":0.01,"bid_size":1.5e-7},'
             '{"ask_price":0.0,"bid_price":116538000,"ask_size":0.0,"bid_size":0.08120946}],"stream_type":"REALTIME"}')
TRADE = ('{"type":"trade","code":"KRW-BTC","timestamp":1790134742201,"trade_date":"2026-09-23",'
         '"trade_time":"03:25:42","trade_timestamp":1790134742150,"trade_price":116540000,"trade_volume":5.2E-4,'
         '"ask_bid":"%s",'
         '"prev_closing_price":115900000,"change":"RISE","change_price":640000,"sequential_id":17901347421500000,'
         '"stream_type":"%s"}')
SIMPLE_BOOK = ('{"ty":"orderbook","cd":"KRW-IQ","tms":1617646620673,"tas":3873697.94329493,"tbs":12103375.77710546,'
               '"obu":[{"ap":41.4,"bp":41.2,"as":9354.4915888,"bs":24347.90399112}],"st":"REALTIME"}')
SIMPLE_TRADE = ('{"ty":"trade","cd":"KRW-IQ","tms":1617646621082,"td":"2021-04-05","ttm":"18:17","ttms":1617646620000,'
                '"tp":41.2,"tv":12111.68782622,"ab":"ASK","pcp":43.20000000,"c":"FALL","cp":2.00000000,'
                '"sid":1617646620000000,"st":"REALTIME"}')
SAMPLES = {"upbit": [BOOK, NEXT_BOOK, TRADE % ("BID", "REALTIME"), TRADE % ("ASK", "SNAPSHOT"), SIMPLE_BOOK,
                     SIMPLE_TRADE, '{"status":"UP"}', '{"type":"ticker","code":"KRW-BTC"}', NEXT_BOOK,
                     '{"error":{"name":"NO_TICKET","message":"티켓이 존재하지 않거나, 유효하지 않습니다."}}']}
MS = 10**6


class Plain:
    """One connection's trades by nothing but json."""

    def trades(self, message):
        if message.get("type", message.get("ty")) == "trade":
            if message.get("stream_type", message.get("st")) == "REALTIME":
                yield (message.get("code") or message["cd"],
                       {"ASK": "sell", "BID": "buy"}[message.get("ask_bid") or message["ab"]])


class Talk:
    def __init__(self, kind=Upbit):
        self.venue = kind(Recorder(), Instruments(), discover=True)
        self.session = self.venue.session()

    def say(self, *texts, session=None):
        for text in texts:
            self.notice = (session or self.session).decode(text.encode(), 9)
        return [call for call in self.venue.sink.take() if call[0] != "define"]


def book(time_ms, bids, asks, code="KRW-BTC", kind="REALTIME"):
    """An image of [(price, size)] a side, padded as the venue does."""
    count = max(len(bids), len(asks))
    rows = zip(list(asks) + [(0, 0)] * (count - len(asks)), list(bids) + [(0, 0)] * (count - len(bids)))
    return json.dumps({"type": "orderbook", "code": code, "timestamp": time_ms, "orderbook_units": [
        {"ask_price": ask, "bid_price": bid, "ask_size": ask_size, "bid_size": bid_size}
        for (ask, ask_size), (bid, bid_size) in rows], "stream_type": kind, "level": 0})


BASE = 1 << OWN_SEQUENCE_BITS


def test_what_messages_become():
    calls = Talk().say(*SAMPLES["upbit"][:-2])
    assert calls == [
        ("snapshot", "KRW-BTC", BASE + 1, 1790134742106 * MS, 9,
         [116538000, 8120946], [116539000, 2054761, 116542000, 77720]),
        ("depth", "KRW-BTC", BASE + 2, BASE + 2, None, 1790134742206 * MS, 9,
         [1165385000, 15], [1165420000, 0, 1165390000, 1000000]),         # 0.0, of the padding, has a decimal
        ("trade", "KRW-BTC", 0, 1790134742150 * MS, 9, 17901347421500000, 1165400000, 52000, BUY),
        ("snapshot", "KRW-IQ", BASE + 1, 1617646620673 * MS, 9, [412, 2434790399112], [414, 935449158880]),
        ("trade", "KRW-IQ", 0, 1617646620000 * MS, 9, 1617646620000000, 412, 1211168782622, SELL)]


@pytest.mark.parametrize("text, notice", [
    ('{"status":"UP"}', Notice(ALIVE, None, "")),
    ('{"error":{"name":"NO_CODES","message":"codes"}}', Notice(ERROR, None, "NO_CODES: codes")),
    ('{"type":"candle.1s","code":"KRW-BTC"}', None), ('{"ty":"ticker","cd":"KRW-BTC"}', None)])
def test_notices_and_what_is_not_ours(text, notice):
    talk = Talk()
    assert talk.say(text) == [] and talk.notice == notice


def test_each_request_holds_all_that_was_asked_for():
    session = Talk().session
    first, = session.subscribe(["orderbook:KRW-BTC", "trade:KRW-BTC"], 1)
    second, = session.subscribe(["orderbook:KRW-ETH.15"], 2)
    assert json.loads(first.text) == [
        {"ticket": "feeder-1-1"}, {"type": "orderbook", "codes": ["KRW-BTC"]},
        {"type": "trade", "codes": ["KRW-BTC"], "is_only_realtime": True}, {"format": "DEFAULT"}]
    assert json.loads(second.text)[1:3] == [
        {"type": "orderbook", "codes": ["KRW-BTC", "KRW-ETH.15"]},
        {"type": "trade", "codes": ["KRW-BTC"], "is_only_realtime": True}]
    assert first.keys == second.keys == {}
    assert session.unsubscribe(["orderbook:KRW-BTC"], 3) == []
    again, = session.subscribe(["orderbook:KRW-BTC"], 4)
    assert json.loads(again.text)[1:] == json.loads(second.text)[1:], "a book that is sent anew"


@pytest.mark.parametrize("levels, stream", [
    (30, "orderbook:KRW-BTC"), (0, "orderbook:KRW-BTC"), (15, "orderbook:KRW-BTC.15")])
def test_levels_are_a_suffix_of_the_book_alone(levels, stream):
    venue = Talk().venue
    line, = venue.lines(["KRW-BTC"], ["trade", "depth"], 0, 200, levels)
    assert line == ("/websocket/v1", ["trade:KRW-BTC", stream])
    assert set(map(venue.symbol_of, line.streams)) == {"KRW-BTC"}


# -- images ---------------------------------------------------------------------------------------------------------


def test_an_image_that_is_older_than_ours_is_none_unless_they_keep_coming():
    talk = Talk()
    talk.say(book(1000_000_000_100, [(9, 1)], [(11, 1)]))
    late = book(1000_000_000_000, [(8, 1)], [(12, 1)])
    assert talk.say(*[late] * MAX_BEHIND) == [] and talk.venue.kinds["old image"] == MAX_BEHIND
    assert [call[0] for call in talk.say(late, late)] == ["depth", "depth"], "the venue's clock was set back"
    again = book(1000_000_000_000, [(8, 1)], [(12, 1)], kind="SNAPSHOT")
    assert talk.say(again)[0][-2:] == ([], []), "a quiet market's, when it is asked for again"


def test_a_book_that_was_given_up_begins_with_the_next_image_however_old():
    talk = Talk()
    talk.say(book(1000_000_000_100, [(9, 1)], [(11, 1)]))
    talk.venue.renew(talk.venue.instruments.all[0])
    told, = talk.say(book(1000_000_000_000, [(9, 1)], [(11, 1)]))
    assert told[:3] == ("snapshot", "KRW-BTC", BASE + 2)
    talk.venue.renew(talk.venue.instruments.add("upbit", "KRW-XRP"))


def test_of_two_connections_the_newer_one_takes_over_when_it_is_not_behind():
    talk = Talk()
    old, new = talk.session, talk.venue.session()
    talk.say(book(1000_000_000_100, [(9, 1)], [(11, 1)]), session=old)
    assert talk.say(book(1000_000_000_000, [(8, 1)], [(12, 1)], kind="SNAPSHOT"), session=new) == []
    told, = talk.say(book(1000_000_000_100, [(9, 1)], [(11, 1)]), session=new)
    assert told[:3] == ("snapshot", "KRW-BTC", BASE + 2)
    assert talk.say(book(1000_000_000_200, [(9, 2)], [(11, 1)]), session=old) == []
    assert talk.say(book(1000_000_000_200, [(9, 2)], [(11, 1)]), session=new)[0][-2:] == ([9, 2], [])
    assert talk.venue.kinds["image of the connection before"] == 1


def test_a_connection_that_took_over_and_is_lost_leaves_no_book_behind():
    """The old one's images are not taken any more, so the books are asked for there."""
    pipeline = Pipeline(lambda datagram: None, lambda: 1, 1)
    orders = []
    pipeline.want_snapshot = lambda venue, instrument, attempt: orders.append((instrument.symbol, attempt))
    venue, recovery = pipeline.venue("upbit", discover=True), pipeline.recoveries["upbit"]
    sessions = {"old": venue.session(), "new": venue.session()}

    def say(name, *image):
        recovery.line = name
        assert pipeline.decode(sessions[name], book(*image).encode(), 9) == (None, None)

    say("old", 1000_000_000_100, [(9, 1)], [(11, 1)])
    coin, = pipeline.instruments
    recovery.join("old", "new", [coin])
    say("new", 1000_000_000_100, [(9, 1)], [(11, 1)])
    assert recovery.link(coin).line == "new"
    recovery.fall_back("new", "old", [coin])
    assert recovery.link(coin).state == SYNCING and orders == [("KRW-BTC", 0)]
    say("old", 1000_000_000_100, [(9, 1)], [(11, 1)])
    say("old", 1000_000_000_200, [(9, 3)], [(11, 1)])
    assert recovery.link(coin).state == LIVE and pipeline.publisher.entries[0].book.top(5) == ([9, 3], [11, 1])


@pytest.mark.parametrize("change", [
    {"timestamp": "x"}, {"orderbook_units": None}, {"orderbook_units": [5]}, {"orderbook_units": [{"ask_price": 1}]},
    {"orderbook_units": [{"ask_price": -1, "bid_price": 1, "ask_size": 1, "bid_size": 1}]},
    {"orderbook_units": [{"ask_price": "x", "bid_price": 1, "ask_size": 1, "bid_size": 1}]}])
def test_an_image_that_cannot_be_read_costs_its_book(change):
    """It may be a quiet market's last for an hour."""
    talk = Talk()
    talk.say(book(1000_000_000_100, [(9, 1)], [(11, 1)]), book(1000_000_000_100, [(9, 1)], [(11, 1)], "KRW-ETH"))
    wrong = dict(json.loads(book(1000_000_000_200, [(9, 1)], [(11, 1)])), **change)
    with pytest.raises((VenueError, NumberError)) as raised:
        talk.say(json.dumps(wrong))
    assert raised.type is not BrokenLine and talk.venue.sink.take() == [("stale", "KRW-BTC", "bad_message", 9)]
    with pytest.raises(BrokenLine):
        talk.say(json.dumps(dict(wrong, code=None)))
    assert [call[:2] for call in talk.venue.sink.take()] == [("stale", "KRW-BTC"), ("stale", "KRW-ETH")]


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"type":null}', '{"error":5}', "5"])
def test_what_may_have_been_an_image_of_any_book_costs_all(text):
    talk = Talk()
    talk.say(book(1000_000_000_100, [(9, 1)], [(11, 1)]))
    with pytest.raises(BrokenLine):
        talk.say(text)
    assert talk.venue.sink.take() == [("stale", "KRW-BTC", "gap", 9)]


@pytest.mark.parametrize("seed", range(3))
def test_random_images_on_connections_that_replace_each_other_lead_to_the_newest(seed):
    """The same images on one or two connections that lag; a resync now and then. No wrong book is live on the way."""
    rng = dice(seed)
    pipeline = Pipeline(lambda datagram: None, lambda: 1, 1)
    venue, recovery = pipeline.venue("upbit", discover=True), pipeline.recoveries["upbit"]
    line = venue.session()
    waiting = {line: []}
    told = {}
    for step in range(1500):
        time_ms = 1_700_000_000_000 + step
        bids, asks = ([(price, rng.randrange(1, 4)) for price in sorted(rng.sample(prices, rng.randrange(5)),
                                                                       reverse=back)]
                      for prices, back in ((range(1, 15), True), (range(15, 30), False)))
        told[time_ms * MS] = tuple([(Decimal(price), Decimal(size)) for price, size in side] for side in (bids, asks))
        for queue in waiting.values():
            queue.append(book(time_ms, bids, asks).encode())
        if len(waiting) == 1 and rng.random() < 0.05:
            successor = venue.session()
            waiting[successor] = [waiting[line][-1]]
            recovery.join(line, successor, list(pipeline.instruments))
        for session, queue in list(waiting.items()):
            for _ in range(rng.choice((0, 1, 1, 2, 9))):
                if queue:
                    recovery.line = session
                    assert pipeline.decode(session, queue.pop(0), 9) == (None, None)
                    entry, = pipeline.publisher.entries
                    mirror = venue.images[entry.instrument].mirror
                    shown = tuple([(Decimal(price), Decimal(size)) for price, size in zip(side[::2], side[1::2])]
                                  for side in entry.book.top())
                    assert entry.state != LIVE or shown == told[mirror.event_ns]
        if len(waiting) == 2 and all(recovery.lives_on(each, successor) for each in pipeline.instruments):
            del waiting[line]
            assert recovery.settle(line, successor, list(pipeline.instruments), 1) == []
            line = successor
        if rng.random() < 0.01 and len(pipeline.instruments):
            pipeline.resync(pipeline.instruments.all[0], "crossed", 1)
    link, = recovery.links.values()
    assert link.gaps == 0 and line.number > 10


@pytest.mark.parametrize("every_s, disconnects", [(0.1, 0), (60, 1)])
def test_pings_keep_a_quiet_connection(every_s, disconnects, monkeypatch):
    """The twin's minute of idleness is 0.3 s here; UP, which comes since the first PING, is life enough."""
    monkeypatch.setattr(Upbit, "facts", Upbit.facts._replace(ping=Ping("PING", every_s)))
    monkeypatch.setattr(line, "TEND_NS", 20 * MILLISECOND)
    with desk("upbit", symbols=["KRW-BTC"], snapshot_limit=30, stale_after_s=0.4) as made:
        made.serve(time_scale=200.0, settings={"upbit": {"idle_s": 60.0}})
        made.start()
        made.until(made.live)
        made.twin.pause()
        kinds = made.feed.venue.kinds
        made.until(lambda: kinds["UP"] > 10 or made.feed.disconnects)
        assert made.feed.disconnects == disconnects and made.live() == (not disconnects)


# -- lists, recordings ----------------------------------------------------------------------------------------------


def test_ticks_are_asked_for_the_codes_that_are_listed(monkeypatch):
    venue = Talk().venue
    request = venue.instruments_request(["KRW-BTC", "KRW-NONE", "KRW-ETH"])
    markets = b'[{"market":"KRW-ETH","english_name":"Ethereum"},{"market":"KRW-BTC"},{"market":"BTC-ETH"}]'
    assert venue.decode_instruments(markets)["KRW-BTC"] == (None, "0.00000001", "1")
    monkeypatch.setattr("feeder.venue.upbit.MARKETS_PER_REQUEST", 1)
    first = venue.more_instruments(request, markets)
    assert first.path == "/v1/orderbook/instruments?markets=KRW-BTC"
    ticks = b'[{"market":"KRW-BTC","quote_currency":"KRW","tick_size":"1000","supported_levels":["0","10000"]}]'
    assert venue.decode_instruments(ticks) == {"KRW-BTC": ("1000", "0.00000001", "1")}
    second = venue.more_instruments(first, ticks)
    assert second.path == "/v1/orderbook/instruments?markets=KRW-ETH"
    assert venue.more_instruments(second, ticks) is None
    venue.instruments_request(["KRW-NONE"])
    assert venue.more_instruments(request, markets) is None
    with pytest.raises(VenueError, match="Code not found"):
        venue.decode_instruments(b'{"error":{"name":404,"message":"Code not found"}}')


def test_names_and_places():
    assert recognise("wss://api.upbit.com/websocket/v1") is Upbit is recognise("https://api.upbit.com/v1/market/all")
    assert not Upbit.recognises("wss://sg-api.upbit.com/websocket/v1"), "another venue, with other books"
    assert Upbit.common_name("KRW-BTC") == "BTC/KRW"


@needs_captures
@pytest.mark.parametrize("path", recordings("upbit"), ids=short)
def test_each_book_is_the_last_image(path):
    images, count = {}, 0
    for entry in lines(path):
        message = json.loads(entry["raw"], parse_float=Decimal) if entry["dir"] == "in" else {}
        if message.get("ty") == "orderbook":
            count += 1
            assert len(message["obu"]) == 15 and entry["op"] == "bin"
            images[message["cd"]] = [[(row[price], row[size]) for row in message["obu"] if row[price] and row[size]]
                                     for price, size in (("bp", "bs"), ("ap", "as"))]
    replay = Replay(lambda datagram: None, session=1, depth=15)
    replay.file(path)
    rows = replay.report(1)["instruments"]
    assert {row["symbol"]: [[(Decimal(price), Decimal(size)) for price, size in row[side]] for side in ("bids", "asks")]
            for row in rows} == images
    assert sum(row["events"] for row in rows) == count and all(row["state"] == "live" for row in rows)


@needs_captures
def test_single_messages_are_read():
    talk = Talk()
    for entry in lines(CAPTURES / "upbit" / "quoted_live_frames.jsonl"):
        if entry["dir"] == "in":
            talk.say(entry["raw"])
    assert talk.venue.kinds == {"first image": 1, "UP": 1, "error": 1} and "NO_TICKET: 티켓" in talk.notice.text
