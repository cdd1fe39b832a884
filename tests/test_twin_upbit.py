"""The twin's Upbit over real sockets, read by a bare client written from the fact sheet alone."""

import json
import re
from decimal import Decimal

import pytest
from support import lines, needs_captures, recordings

from feeder.clock import MILLISECOND
from feeder.twin.faults import parse
from feeder.twin.market import Spec
from feeder.twin.upbit import Numbers, big_decimal, brief, java_double
from feeder.websocket import BINARY, PING, PONG, TEXT
from twin_bench import Book, Follower, bench, keys

UPBIT = "upbit"
BTC, ETH, DOGE, TETHER = "KRW-BTC", "KRW-ETH", "KRW-DOGE", "USDT-BTC"
TOKENS = {"parse_float": str, "parse_int": str}              # the wire's digits
PATH = "/websocket/v1"


def request(*types, form=None, ticket="t1"):
    return json.dumps([{"ticket": ticket}, *types, *([{"format": form}] if form else [])])


def orderbook(*codes, **more):
    return {"type": "orderbook", "codes": list(codes), **more}


def trade(*codes, **more):
    return {"type": "trade", "codes": list(codes), **more}


class Reader(Follower):
    """Fact sheet, 5: each frame replaces the book, rows of price 0 are none, what is older than that is dropped."""

    target = PATH
    opcodes = (TEXT, BINARY)
    hooks = TOKENS

    def __init__(self, it, codes, venue=UPBIT, form=None):
        self.codes, self.form = codes, form
        super().__init__(it, venue, {code.partition(".")[0]: Book(*split(code, self.levels)) for code in codes})

    levels = 30

    def subscribe(self):
        self.client.say(request(orderbook(*self.codes), trade(*self.books), form=self.form))

    def take(self, message):
        if isinstance(message, list):
            message, = message
        if "code" not in message:
            return self.others.append(message)
        if message["type"] == "trade":
            return self.trades.append(message)
        book, time = self.books[message["code"]], int(message["timestamp"])
        if book.sides is not None and time < book.last:
            book.counts["old"] += 1
            return
        rows = message["orderbook_units"]
        sides = [[(row[f"{side}_price"], row[f"{side}_size"]) for row in rows if Decimal(row[f"{side}_price"])]
                 for side in ("bid", "ask")]
        for side, is_bid in zip(sides, (True, False)):
            assert side == sorted(side, key=lambda row: Decimal(row[0]), reverse=is_bid)
        book.counts["padded"] += len(sides[0]) != len(sides[1])
        book.counts["updates"] += message["stream_type"] == "REALTIME"
        book.load(*sides, time)

    def is_true(self, book):
        told = {key[2]: sequence for key, sequence, *_ in self.it.twin.venues[self.venue].books(book.symbol)}
        return super().is_true(book) and told[book.depth] == book.last


def split(code, most):
    symbol, _, count = code.partition(".")
    return symbol, int(count or most)


@pytest.mark.parametrize("suffix", ["", ".30", ".15", ".5", ".1"])
def test_each_frame_is_the_book(suffix):
    with bench({UPBIT: [BTC, DOGE, TETHER]}) as it:
        reader = Reader(it, [code + suffix for code in (BTC, DOGE, TETHER)])
        reader.more("updates", 30)
        reader.settle()
        assert reader.connects == 1 and not reader.odd and not reader.others and not reader.count("old")
        assert suffix not in ("", ".30") or reader.count("padded") > 0       # thinner sides are filled up
        late = Reader(it, [BTC + suffix])
        late.settle()
        answer = it.get(UPBIT, "/twin/book?symbol=krw-btc")[2]
        assert [channel["channel"] for channel in answer["channels"]] == [
            ["orderbook", BTC, int(suffix[1:] or 30), "DEFAULT"]]


def test_data_are_binary_and_the_first_frame_is_a_snapshot():
    with bench({UPBIT: [BTC, ETH]}) as it:
        client = it.client(UPBIT, PATH)
        client.say(request(orderbook(BTC, ETH)))
        it.until(lambda: len(client.messages) > 20)
        assert {opcode for opcode, _ in client.messages} == {BINARY}
        found = [json.loads(payload) for _, payload in client.messages]
        for code in (BTC, ETH):
            own = [message for message in found if message["code"] == code]
            assert [message["stream_type"] for message in own] == ["SNAPSHOT"] + ["REALTIME"] * (len(own) - 1)
            times = [message["timestamp"] for message in own]
            assert times == sorted(set(times)) and 10 ** 12 < times[0] < 10 ** 13


def test_trades_have_the_takers_side_and_ids_and_a_newcomer_gets_the_last_again():
    with bench({UPBIT: [BTC]}, rate=4_000) as it:
        fills = {}
        publish = it.twin.venues[UPBIT].publish
        it.twin.venues[UPBIT].publish = lambda symbol, kind, event: (
            fills.update({(event[3] * 1_000, event[4]): event[5]}) if kind == "trade" else None,
            publish(symbol, kind, event))
        reader = Reader(it, [BTC])
        it.until(lambda: reader.is_live() and len(reader.trades) > 60)
        for row in reader.trades:
            fill = int(Decimal(row["trade_price"])), int(Decimal(row["trade_volume"]).scaleb(8))
            assert row["ask_bid"] == ("ASK" if fills[fill] else "BID")           # ASK: the taker sold
        ids = [int(row["sequential_id"]) for row in reader.trades]
        assert ids == sorted(set(ids)) and {row["ask_bid"] for row in reader.trades} == {"ASK", "BID"}
        late, live = it.client(UPBIT, PATH), it.client(UPBIT, PATH)
        it.twin.pause()
        late.say(request(trade(BTC)))
        live.say(request(trade(BTC, is_only_realtime=True)))
        it.until(lambda: late.messages)
        again, = late.texts((BINARY,))
        reader.work()
        assert again["stream_type"] == "SNAPSHOT" and again["sequential_id"] == int(reader.trades[-1]["sequential_id"])
        it.twin.resume()
        it.until(lambda: live.messages)
        assert live.texts((BINARY,))[0]["stream_type"] == "REALTIME"


def collect(it, client, until=lambda found: False, spins=25):
    """What comes until the condition, or for so many rounds of 5 ms."""
    found = []
    for _ in range(spins):
        it.loop.run_once(5 * MILLISECOND)
        found += client.texts((TEXT, BINARY))
        if until(found):
            break
    return found


def test_a_request_replaces_the_one_before():
    with bench({UPBIT: [BTC, ETH]}) as it:
        client, channels = it.client(UPBIT, PATH), it.twin.venues[UPBIT].channels
        client.say(request(orderbook(BTC), trade(BTC)))
        it.until(lambda: len(channels) == 2)
        client.say(request(orderbook(ETH)))
        it.until(lambda: channels.keys() == {("orderbook", ETH, 30, "DEFAULT")})
        collect(it, client, lambda found: any(message["code"] == ETH for message in found))
        assert {message["code"] for message in collect(it, client, spins=10)} == {ETH}
        client.say(request(orderbook(ETH, BTC)))                               # all that is wanted: both anew
        found = collect(it, client, lambda found: sum(row["stream_type"] == "SNAPSHOT" for row in found) == 2, 200)
        assert {row["code"] for row in found if row["stream_type"] == "SNAPSHOT"} == {BTC, ETH}


def test_what_does_not_exist_is_silent():
    with bench({UPBIT: [BTC]}) as it:
        client = it.client(UPBIT, PATH)
        client.say(request(orderbook("KRW-NOSUCH", "krw-btc", "btc"), trade("KRW-NOSUCH"),
                           {"type": "ticker", "codes": [BTC]}, {"type": "candle.1m", "codes": [BTC]}))
        assert collect(it, client) == [] and not client.is_closed
        client.say(request(orderbook(BTC, level=10_000)))
        assert collect(it, client) == [] and not it.twin.venues[UPBIT].channels
        client.say(request(orderbook(BTC + ".3", level=0)))                    # no such number means all
        it.until(lambda: client.messages)
        assert it.twin.venues[UPBIT].channels.keys() == {("orderbook", BTC, 30, "DEFAULT")}


def test_snapshots_only_and_no_snapshots():
    with bench({UPBIT: [BTC]}) as it:
        once, live, old = (it.client(UPBIT, PATH) for _ in range(3))
        once.say(request(orderbook(BTC, is_only_snapshot=True)))
        live.say(request(orderbook(BTC, is_only_realtime=True)))
        old.say(request(orderbook(BTC, isOnlyRealtime=True)))
        it.until(lambda: all(client.messages for client in (once, live, old)))
        assert [row["stream_type"] for row in collect(it, once)] == ["SNAPSHOT"]
        for client in (live, old):
            assert {row["stream_type"] for row in collect(it, client)} == {"REALTIME"}


@pytest.mark.parametrize("text, name", [
    ("no JSON", "WRONG_FORMAT"), ("{}", "WRONG_FORMAT"), ("[]", "WRONG_FORMAT"), ("[1]", "WRONG_FORMAT"),
    ('[{"type":"trade","codes":["KRW-BTC"]}]', "NO_TICKET"), ('[{"ticket":"x"}]', "NO_TYPE"),
    ('[{"ticket":"x"},{"codes":["KRW-BTC"]}]', "NO_TYPE"), ('[{"ticket":"x"},{"type":"trade"}]', "NO_CODES"),
    ('[{"ticket":"x"},{"type":"trade","codes":[]}]', "INVALID_PARAM"),
    ('[{"ticket":"x"},{"type":["trade"],"codes":["KRW-BTC"]}]', "INVALID_PARAM"),
    ('[{"ticket":"x"},{"type":"depth","codes":["KRW-BTC"]}]', "INVALID_PARAM"),
    ('[{"ticket":"x"},{"type":"trade","codes":["KRW-BTC"]},{"format":"SHORT"}]', "WRONG_FORMAT")])
def test_malformed_requests_are_told_and_end_the_connection(text, name):
    with bench({UPBIT: [BTC]}) as it:
        client = it.client(UPBIT, PATH)
        client.say(text)
        it.until(lambda: client.is_closed)
        assert client.close_event[0] == 1000
        (opcode, payload), = [event for event in client.messages if event[0] in (TEXT, BINARY)]
        error = json.loads(payload)["error"]
        assert opcode == TEXT and error["name"] == name and error["message"] and b" " not in payload[:20]


def test_messages_of_a_second_are_limited():
    with bench({UPBIT: [BTC]}) as it:
        client = it.client(UPBIT, PATH)
        for _ in range(6):
            client.say(request({"method": "LIST_SUBSCRIPTIONS"}))
        it.until(lambda: client.is_closed)
        found = client.texts()
        assert [message.get("method") for message in found] == ["LIST_SUBSCRIPTIONS"] * 5 + [None]
        assert found[-1]["error"]["name"] == "TOO_MANY_REQUESTS"
    with bench({UPBIT: [BTC]}, settings={UPBIT: {"messages_per_second": 5_000}}) as it:
        client = it.client(UPBIT, PATH)
        for _ in range(101):
            client.say(request(trade(BTC)))
        it.until(lambda: client.is_closed)


def test_subscriptions_are_listed():
    with bench({UPBIT: [BTC]}) as it:
        client = it.client(UPBIT, PATH)
        client.say(request(orderbook(BTC), trade(BTC, "KRW-NOSUCH")))
        client.say(request({"method": "LIST_SUBSCRIPTIONS"}, ticket="mine"))
        found = collect(it, client, lambda found: any("method" in message for message in found), 200)
        answer, = [message for message in found if "method" in message]
        assert answer == {"method": "LIST_SUBSCRIPTIONS", "ticket": "mine", "result": [
            {"type": "orderbook", "codes": [BTC], "level": 0}, {"type": "trade", "codes": [BTC, "KRW-NOSUCH"]}]}
        assert len(it.twin.venues[UPBIT].channels) == 2                        # it replaces nothing


def test_pings_keep_a_silent_connection():
    with bench({UPBIT: [BTC]}, time_scale=100) as it:                          # a minute is 0.6 s, ten seconds 0.1 s
        idle, texts, frames, fed = (it.client(UPBIT, PATH) for _ in range(4))
        texts.say("PING")
        fed.say(request(trade(BTC)))

        def ping():
            if not frames.is_closed:
                frames.stream.write(frames.connection.send(PING, b"x"))
                it.loop.call_after(200 * MILLISECOND, ping)

        ping()
        it.until(lambda: idle.is_closed)
        assert idle.close_event is None                                        # 1006
        it.until(lambda: sum(event[0] == PONG for event in frames.messages) >= 5)
        assert not frames.is_closed and not texts.is_closed and not fed.is_closed
        ups = [event for event in texts.messages if event[0] == TEXT]
        assert len(ups) >= 6 and {payload for _, payload in ups} == {b'{"status":"UP"}'}
        assert it.twin.status()["venues"][UPBIT]["counts"]["idle_disconnects"] == 1
        frames.stream.abort()
    with bench({UPBIT: [BTC]}, settings={UPBIT: {"up_at_once": True}}) as it:
        client = it.client(UPBIT, PATH)
        client.say("PING")
        it.until(lambda: client.messages)


def test_five_connections_a_second_and_one_path():
    with bench({UPBIT: [BTC]}) as it:
        clients = [it.client(UPBIT, PATH) for _ in range(6)]
        it.until(lambda: clients[5].is_closed)
        assert "429" in str(clients[5].error) and not any(client.is_closed for client in clients[:5])
        missing = it.client(UPBIT, "/websocket/v2")
        it.until(lambda: missing.is_closed)
        assert "404" in str(missing.error)


# --- faults

def test_a_late_image_is_dropped_and_the_others_do_no_harm():
    with bench({UPBIT: [BTC, ETH]}, faults=[parse(f"reorder@0.1:{BTC}")]) as it:
        reader = Reader(it, [BTC, ETH])
        it.until(lambda: reader.is_live() and reader.books[BTC].counts["old"])
        reader.settle()
        assert reader.count("old") == 1
        for kind in ("duplicate", "garbage", "slow"):
            it.fault(UPBIT, kind, seconds=0.1)
            reader.settle()
        assert reader.odd == 3 and reader.connects == 1
        it.fault(UPBIT, "disconnect")
        it.until(lambda: reader.is_live() and reader.connects == 2)
        it.fault(UPBIT, "mute", seconds=0.1)
        reader.settle()
        for kind in ("gap", "sequence", "checksum", "snapshot", "notice"):     # no client could tell
            status, _, answer = it.get(UPBIT, f"/twin/fault?kind={kind}")
            assert status == 400 and kind in answer["error"]


# --- how it is written

QUOTED = {
    "orderbook": '{"type":"orderbook","code":"KRW-BTC","timestamp":1790134742106,"total_ask_size":2.51469375,'
                 '"total_bid_size":1.63815297,"orderbook_units":[{"ask_price":1.16539E8,"bid_price":1.16538E8,'
                 '"ask_size":0.02054761,"bid_size":0.08120946}],"stream_type":"SNAPSHOT","level":0}',
    "trade": '{"type":"trade","code":"KRW-BTC","timestamp":1790134742201,"trade_date":"2026-09-23",'
             '"trade_time":"03:25:42","trade_timestamp":1790134742150,"trade_price":116540000,"trade_volume":0.00052,'
             '"ask_bid":"BID","prev_closing_price":115900000,"change":"RISE",'
             '"change_price":640000,"sequential_id":17901347421500000,'
             '"best_ask_price":116560000,"best_ask_size":0.0007,"best_bid_price":116539000,"best_bid_size":0.0132,'
             '"stream_type":"REALTIME"}'}
RECORDED = {
    "orderbook": '{"ty":"orderbook","cd":"KRW-IQ","tms":1617646620673,"tas":3873697.94329493,"tbs":12103375.77710546,'
                 '"obu":[{"ap":41.4,"bp":41.2,"as":9354.4915888,"bs":24347.90399112}],"st":"REALTIME","lv":0}',
    "trade": '{"ty":"trade","cd":"KRW-IQ","tms":1617646621082,"td":"2021-04-05","ttm":"18:17","ttms":1617646620000,'
             '"tp":41.2,"tv":12111.68782622,"ab":"ASK","pcp":43.20000000,"c":"FALL","cp":2.00000000,'
             '"sid":1617646620000000,"bap":41.4,"bas":1.0,"bbp":41.2,"bbs":1.0,"st":"REALTIME"}'}


@pytest.mark.parametrize("form, models", [("DEFAULT", QUOTED), ("SIMPLE", RECORDED), ("JSON_LIST", QUOTED),
                                          ("SIMPLE_LIST", RECORDED)])
def test_messages_are_written_as_the_quoted_and_the_recorded_ones(form, models):
    with bench({UPBIT: [BTC, DOGE]}) as it:
        client = it.client(UPBIT, PATH)
        client.say(request(orderbook(BTC, DOGE), trade(BTC, DOGE), form=form))
        it.until(lambda: len(client.messages) > 60)
        seen = set()
        for _, payload in client.messages:
            raw = payload.decode()
            assert " " not in raw and raw.startswith("[{" if form.endswith("LIST") else "{")
            raw = raw[1:-1] if form.endswith("LIST") else raw
            message = json.loads(raw)
            kind = message.get("type", message.get("ty"))
            assert keys(message) == keys(json.loads(models[kind]))
            seen.add((kind, message.get("code", message.get("cd"))))
            prices = re.findall(r'"(?:ask_price|bid_price|trade_price|ap|bp|tp)":([^,}]*)', raw)
            sizes = re.findall(r'"(?:ask_size|bid_size|trade_volume|as|bs|tv)":([^,}]*)', raw)
            if form.startswith("SIMPLE"):
                shape = r"\d+\.\d+(E-\d+)?|\dE-\d+"
                assert all(re.fullmatch(shape, token) for token in prices + sizes)
                assert not any(re.search(r"\.\d+0$", token) for token in prices + sizes)
            else:
                assert all(re.fullmatch(r"\d\.\d+E\d|\d{1,7}\.\d+", token) for token in prices)
                assert all(re.fullmatch(r"\d+\.\d{8}|\d(\.\d)?E-[78]", token) for token in sizes)
        assert len(seen) == 4


def test_numbers_are_javas():
    spellings = {
        java_double: {"83480000": "8.348E7", "3040": "3040.0", "0.00067556": "6.7556E-4", "0.00000020": "2.0E-7",
                      "10000000": "1.0E7", "9999999": "9999999.0", "0": "0.0"},
        big_decimal: {"0.00077720": "0.00077720", "0.00000250": "0.00000250", "0.00000025": "2.5E-7",
                      "0.00000009": "9E-8", "0.00000000": "0E-8", "12.50000000": "12.50000000"},
        brief: {"42": "42.0", "41.4": "41.4", "0.00068250": "0.0006825", "0.00000020": "2E-7", "0.00000022": "2.2E-7",
                "30.00000000": "30.0"}}
    for spelled, examples in spellings.items():
        assert {text: spelled(text) for text in examples} == examples
    words = Numbers(Spec("BTC-X", "X", "BTC", "0.00000022", "0.00000001", "0.00000001"))
    for ticks in list(range(1, 2_000)) + [10 ** power + 7 for power in range(3, 17)]:
        for token in (words.price(ticks), words.quantity(ticks), words.brief_price(ticks), words.brief_quantity(ticks)):
            assert Decimal(token) == Decimal(ticks).scaleb(-8)


@needs_captures
def test_brief_numbers_are_spelled_as_in_the_whole_recording():
    path, = recordings("upbit")
    tokens = {token for line in lines(path) for token in re.findall(r'"(?:ap|bp|as|bs|tp|tv)":([^,}]*)', line["raw"])}
    assert len(tokens) > 2_500
    for token in tokens:
        assert brief(f"{Decimal(token):.8f}") == token


# --- REST

def test_rest():
    with bench({UPBIT: [BTC, DOGE, TETHER, "BTC-ETH"]}) as it:
        status, headers, rows = it.get(UPBIT, "/v1/market/all")
        assert [row["market"] for row in rows] == [BTC, DOGE, TETHER, "BTC-ETH"]
        assert status == 200 and "group=market" in headers["remaining-req"]
        assert rows[0] == {"market": BTC, "korean_name": "비트코인", "english_name": "Bitcoin"}
        rows = it.get(UPBIT, "/v1/market/all?is_details=true")[2]
        assert rows[0]["market_event"]["warning"] is False and "caution" in rows[0]["market_event"]
        rows = it.get(UPBIT, f"/v1/orderbook/instruments?markets={BTC},{DOGE},{TETHER},BTC-ETH")[2]
        assert [(row["quote_currency"], row["tick_size"]) for row in rows] == [
            ("KRW", "1000"), ("KRW", "1"), ("USDT", "0.01"), ("BTC", "0.00000001")]
        row, other = it.get(UPBIT, f"/v1/orderbook?markets={BTC},{DOGE}&count=5&level=0")[2]
        assert len(row["orderbook_units"]) == 5 and other["market"] == DOGE
        status, _, answer = it.get(UPBIT, f"/v1/orderbook?markets={BTC},KRW-NOSUCH")
        assert (status, answer) == (404, {"error": {"name": 404, "message": "Code not found"}})
        assert it.get(UPBIT, "/v1/orderbook")[0] == 400 and it.get(UPBIT, "/v2")[0] == 404
        assert it.get(UPBIT, "/v1/orderbook?markets=KRW-BTC&count=x")[0] == 400
        for kind, status in (("rest_429", 429), ("rest_error", 500)):
            assert it.get(UPBIT, f"/twin/fault?kind={kind}")[0] == 200
            assert it.get(UPBIT, "/v1/market/all")[0] == status
    with bench({UPBIT: [BTC]}) as it:
        assert {it.get(UPBIT, "/v1/market/all")[0] for _ in range(11)} == {200, 429}
