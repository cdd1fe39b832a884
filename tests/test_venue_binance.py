"""Binance's dialects: what each message becomes, and that both decoding paths agree on anything that may come.

The likely path (learned layouts) has one rival, `decode_json`. Two venues, each with instruments of its own, get
the same messages; one decodes by whichever path it likes, the other by json only. Their calls must be the same.
"""

import json
from collections import Counter
from functools import partial

import pytest
from mutate import MUTATIONS
from support import BINANCE, CAPTURES, Recorder, dice, recordings

from feeder import capture
from feeder.errors import NumberError, VenueError
from feeder.message import BUY, SELL
from feeder.venue import VENUES, binance
from feeder.venue.contract import ACK, ERROR, GAP, NEXT, OLD, SHUTDOWN, Instruments

SPOT = [
    '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1723161255208,"s":"BTCUSDT","U":50093239189,'
    '"u":50093239202,"b":[["61737.63000000","0.00000000"],["61730.17000000","1.20000000"]],'
    '"a":[["61837.64000000","1.54698000"]]}}',
    '{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161255343,"s":"BTCUSDT","t":3707915061,'
    '"p":"61837.63000000","q":"0.00010000","T":1723161255342,"m":true,"M":true}}',
    '{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1617566591312,"s":"BTCUSDT","a":667389617,'
    '"p":"57973.83000000","q":"0.00025700","f":743463414,"l":743463415,"T":1617566591311,"m":false,"M":true}}',
    '{"stream":"btcusdt@bookTicker","data":{"u":50093239203,"s":"BTCUSDT","b":"61837.63000000","B":"1.20000000",'
    '"a":"61837.64000000","A":"0.50000000"}}',
]
FUTURES = [
    '{"stream":"btcusdt@depth@0ms","data":{"e":"depthUpdate","E":1721347022504,"T":1721347022504,"s":"BTCUSDT",'
    '"U":4984028367545,"u":4984028370730,"pu":4984028367494,"b":[["1000.00","569.567"],["63941.10","0.000"]],'
    '"a":[["63943.90","12.345"],["63944.00","0.002"]]}}',
    '{"stream":"btcusdt@trade","data":{"e":"trade","E":1721347022631,"T":1721347022630,"s":"BTCUSDT","t":5140313801,'
    '"p":"63943.90","q":"0.002","X":"MARKET","m":true}}',
    '{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1721347022631,"a":5933014,"s":"BTCUSDT","p":"63943.90",'
    '"q":"0.002","nq":"0.002","f":100,"l":105,"T":1721347022630,"m":false,"st":1}}',
    '{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":4984028370881,"s":"BTCUSDT","b":"63943.90",'
    '"B":"10.100","a":"63944.00","A":"4.321","T":1721347022505,"E":1721347022510}}',
]
BUILT_IN = {"binance_spot": SPOT, "binance_usdm": FUTURES, "binance_coinm": FUTURES}
SAMPLES = BUILT_IN                      # for test_venue_contract
DOCUMENTED = (VenueError, NumberError)


class Plain:
    """One connection's trades by nothing but json, for test_venue_contract."""

    def trades(self, message):
        data = message.get("data", message)
        if isinstance(data, dict) and data.get("e") in ("trade", "aggTrade") and data.get("X", "MARKET") == "MARKET":
            yield data["s"], "sell" if data["m"] else "buy"


def venue_of(name, discover=True, limit=2048):
    return VENUES[name](Recorder(), Instruments(limit), discover=discover)


def outcome(decode, payload):
    """Return what came of a message: a Notice, None, or the class of the documented error it raised."""
    try:
        return decode(payload, 5)
    except DOCUMENTED as error:
        assert type(error).__name__ in ("VenueError", "NumberError", "PrecisionError", "RangeError")
        return type(error)


class Rivals:
    """Two venues that must never differ."""

    def __init__(self, name):
        self.by_any, self.by_json = venue_of(name), venue_of(name)
        self.likely = 0
        self.by_json.levels_pattern = lambda instrument: None         # so that snapshots go by json, too

    def feed(self, payload):
        """Return how it went: "likely", "json", or the name of an error."""
        return self.compare(payload, outcome(self.by_any.decode, payload), outcome(self.by_json.decode_json, payload))

    def snapshot(self, body):
        one, other = (outcome(partial(venue.decode_snapshot, venue.instrument("BTCUSDT")), body)
                      for venue in (self.by_any, self.by_json))
        return self.compare(body, one, other)

    def compare(self, payload, one, other):
        likely, self.likely = self.likely, self.by_any.likely
        assert one == other, payload
        calls, other_calls = self.by_any.sink.take(), self.by_json.sink.take()
        assert calls == other_calls, payload
        if isinstance(one, type):
            assert not {call[0] for call in calls} - {"define", "stale"}, "an error must have done nothing else"
            return one.__name__
        return "likely" if self.by_any.likely > likely else "json"


def samples(name, each_stream=12, most_bytes=3_000):
    """Return {stream: clean messages}: built-in ones, and of the recordings the first of every stream."""
    found = {}
    for text in BUILT_IN[name]:
        found[json.loads(text)["stream"], "built in"] = [text.encode()]
    for path in recordings(name) if CAPTURES.exists() else ():
        for number, record in enumerate(capture.read(path)):
            if number == 1_500:
                break
            if record.kind == "ws" and record.direction == "in" and len(record.payload) < most_bytes:
                stream = record.payload[11:record.payload.index(b'"', 11)], path.name
                messages = found.setdefault(stream, [])
                if len(messages) < each_stream:
                    messages.append(record.payload)
    return found


def mutate_all(name, count, seed):
    """Feed `count` mutated messages of every stream and kind in turn; return Counter of how they went."""
    rng = dice(seed)
    streams = list(samples(name).items())
    went, by_kind = Counter(), Counter()
    while sum(went.values()) < count:
        _, messages = rng.choice(streams)
        rivals = Rivals(name)
        rivals.feed(messages[0])                        # warm-up: the clean message of that stream
        for _ in range(rng.choice((1, 2, 4))):          # later ones meet what was learned from earlier ones
            mutation = rng.choice(MUTATIONS)
            payload = mutation(rng, rng.choice(messages))
            if rng.random() < 0.2:
                payload = rng.choice(MUTATIONS)(rng, payload or b"{}")
            result = rivals.feed(payload)
            went[result] += 1
            by_kind[mutation.__name__, result] += 1
            if rng.random() < 0.5:                      # what it taught must hold for its kin
                rivals.feed(payload)
                for other in range(2):
                    rivals.feed(rng.choice(MUTATIONS[8:16])(rng, payload or b"{}"))
        rivals.feed(messages[-1])
    print(f"{name}: {sum(went.values())} mutated messages: {dict(went)}")
    return went, by_kind


@pytest.mark.parametrize("name", BINANCE)
def test_mutated_messages_go_the_same_way_by_both_paths(name):
    went, by_kind = mutate_all(name, 3_000, seed=20261)
    assert min(went["likely"], went["json"], went["VenueError"], went["NumberError"]) > 20, "all ways must be trodden"
    assert len({kind for kind, _ in by_kind}) == len(MUTATIONS)


def mutate_snapshots(name, count, seed):
    rng = dice(seed)
    went = Counter()
    texts = [b'{"lastUpdateId":1027024,"bids":[["61837.63000000","431.00000000"],["61837.00000000","0.50000000"]],'
             b'"asks":[["61838.00000000","12.00000000"]]}',
             b'{"lastUpdateId":1027024,"E":1589436922972,"T":1589436922959,"bids":[["4.00","431.0"]],'
             b'"asks":[["4.10","2.5"]]}']
    for _ in range(count):
        text = rng.choice(texts)
        rivals = Rivals(name)
        rivals.snapshot(text)
        for _ in range(3):
            went[rivals.snapshot(rng.choice(MUTATIONS)(rng, text))] += 1
        rivals.snapshot(text)
    print(f"{name}: {sum(went.values())} mutated snapshots: {dict(went)}")
    return went


@pytest.mark.parametrize("name", BINANCE)
def test_mutated_snapshots_go_the_same_way_by_both_paths(name):
    assert len(mutate_snapshots(name, 300, seed=5)) >= 3


@pytest.mark.stress
@pytest.mark.parametrize("name", BINANCE)
def test_mutated_snapshots_go_the_same_way_by_both_paths_long(name):
    mutate_snapshots(name, 10_000, seed=6)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BINANCE)
def test_mutated_messages_go_the_same_way_by_both_paths_long(name, seed):
    mutate_all(name, 12_500, seed=1_000 + seed)


# -- what each message becomes ------------------------------------------------------------------------------


def calls(name, *texts, discover=True):
    venue = venue_of(name, discover)
    for text in texts:
        venue.decode(text if isinstance(text, bytes) else text.encode(), 5)
    return [call for call in venue.sink.take() if call[0] != "define"]


def test_spot_messages():
    assert calls("binance_spot", *SPOT) == [
        ("depth", "BTCUSDT", 50093239189, 50093239202, None, 1723161255208000000, 5,
         [6173763000000, 0, 6173017000000, 120000000], [6183764000000, 154698000]),
        ("trade", "BTCUSDT", 3707915061, 1723161255342000000, 5, 3707915061, 6183763000000, 10000, SELL),
        ("trade", "BTCUSDT", 667389617, 1617566591311000000, 5, 667389617, 5797383000000, 25700, BUY),
        ("bbo", "BTCUSDT", 50093239203, 0, 5, 6183763000000, 120000000, 6183764000000, 50000000)]


@pytest.mark.parametrize("name", ["binance_usdm", "binance_coinm"])
def test_futures_messages(name):
    assert calls(name, *FUTURES) == [
        ("depth", "BTCUSDT", 4984028367545, 4984028370730, 4984028367494, 1721347022504000000, 5,
         [100000, 569567, 6394110, 0], [6394390, 12345, 6394400, 2]),
        ("trade", "BTCUSDT", 5140313801, 1721347022630000000, 5, 5140313801, 6394390, 2, SELL),
        ("trade", "BTCUSDT", 5933014, 1721347022630000000, 5, 5933014, 6394390, 2, BUY),
        ("bbo", "BTCUSDT", 4984028370881, 1721347022510000000, 5, 6394390, 10100, 6394400, 4321)]


@pytest.mark.parametrize("name", BINANCE)
def test_the_second_of_a_kind_is_likely_and_the_same(name):
    rivals = Rivals(name)
    went = [rivals.feed(text.encode()) for text in BUILT_IN[name] * 3]
    # decimals widen while the first round comes in, so the second may teach again
    assert went[-4:] == ["likely"] * 4 and "likely" not in went[:3]


def test_raw_streams_without_a_name_are_read_too():
    bare = json.dumps(json.loads(SPOT[0])["data"])
    assert calls("binance_spot", bare) == calls("binance_spot", SPOT[0])
    venue = venue_of("binance_spot")
    venue.decode(bare.encode(), 5)
    venue.decode(bare.encode(), 5)
    assert venue.likely == 0 and not venue.layouts, "without the stream's name nothing can be learned"


@pytest.mark.parametrize("kind", ["INSURANCE_FUND", "ADL", "NA"])
def test_futures_trades_that_are_not_of_the_market(kind):
    rivals = Rivals("binance_usdm")
    rivals.feed(FUTURES[1].encode())
    rivals.feed(FUTURES[1].encode())
    assert rivals.feed(FUTURES[1].replace("MARKET", kind).replace("63943.90", "0").encode()) == "json"
    assert rivals.by_any.not_market == rivals.by_json.not_market == 1


def test_notices():
    venue = venue_of("binance_spot")
    assert venue.decode(b'{"result":null,"id":7}', 1) == (ACK, 7, "")
    assert venue.decode(b'{"result":["btcusdt@trade"],"id":3}', 1) == (ACK, 3, "")
    assert venue.decode(b'{"code":2,"msg":"Invalid request","id":9}', 1) == (ERROR, 9, "2: Invalid request")
    assert venue.decode(b'{"error":{"code":1,"msg":"Expected Boolean"},"id":null}', 1) == (
        ERROR, None, "1: Expected Boolean")
    assert venue.decode(b'{"code":3,"msg":"Invalid JSON"}', 1) == (ERROR, None, "3: Invalid JSON")
    assert venue.decode(b'{"e":"serverShutdown","E":1770123456789}', 1).kind == SHUTDOWN
    assert venue.decode(b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}', 1
                        ).kind == SHUTDOWN
    assert len(venue.decode(b'{"code":2,"msg":"%s"}' % (b"x" * 9_999), 1).text) <= 200
    assert venue.sink.take() == []


def test_what_is_not_ours_is_counted():
    venue = venue_of("binance_spot")
    for text in (b'{"stream":"btcusdt@kline_1m","data":{"e":"kline","E":1,"s":"BTCUSDT","k":{}}}',
                 b'[{"e":"24hrTicker"}]',
                 b'{"stream":"!ticker@arr","data":[]}', b'{"lastUpdateId":160,"bids":[["0.0024","10"]],"asks":[]}',
                 b'{"stream":"btcusdt@depth20","data":{"lastUpdateId":160,"bids":[],"asks":[]}}'):
        assert venue.decode(text, 1) is None
    assert venue.kinds == {"kline": 1, "array": 2, "partial depth": 2} and venue.sink.take() == []
    futures = venue_of("binance_usdm")                    # §4: there, only the stream tells them apart
    futures.decode(FUTURES[0].replace("@depth@0ms", "@depth20@100ms").encode(), 1)
    assert futures.kinds == {"partial depth": 1} and futures.sink.take() == []


def test_kinds_are_bounded():
    venue = venue_of("binance_spot")
    for number in range(1_000):
        venue.decode(b'{"e":"kind%d"}' % number, 1)
    assert len(venue.kinds) <= 65 and sum(venue.kinds.values()) == 1_000


def test_only_configured_instruments_when_live():
    assert calls("binance_spot", *SPOT, discover=False) == []
    venue = venue_of("binance_spot", discover=False)
    venue.decode(SPOT[1].encode(), 1)
    assert venue.kinds == {"unknown symbol": 1} and len(venue.instruments) == 0


def test_the_number_of_instruments_is_bounded():
    venue = venue_of("binance_spot", limit=2)
    for symbol in ("AUSDT", "BUSDT"):
        venue.decode(SPOT[1].replace("BTCUSDT", symbol).encode(), 1)
    with pytest.raises(VenueError, match="CUSDT would be instrument 3, processing.max_symbols is 2"):
        venue.decode(SPOT[1].replace("BTCUSDT", "CUSDT").encode(), 1)


@pytest.mark.parametrize("symbol", ["", "X" * 33, "币" * 11, "A\\u0000", "\\ud800", "A\\nB"])
def test_symbols_that_no_definition_can_carry(symbol):
    venue = venue_of("binance_spot")
    with pytest.raises(VenueError, match="is not 1 to 32 bytes of text"):
        venue.decode(SPOT[1].replace("BTCUSDT", symbol).encode(), 1)
    assert venue.sink.take() == [] and len(venue.instruments) == 0


def test_symbols_outside_ascii():
    """§1: such exist since 2025-12; they never take the likely path, but are read."""
    rivals = Rivals("binance_spot")
    text = SPOT[1].replace("BTCUSDT", "币安人生USDT").replace("btcusdt", "币安人生usdt").encode()
    assert [rivals.feed(text) for _ in range(3)] == ["json"] * 3


@pytest.mark.parametrize("what, text", [
    ("not JSON", b""), ("not JSON", b"{"), ("not JSON", b"\xff"), ("not JSON", b"\xef\xbb\xbf{}"),
    ("not JSON", b"[" * 10**5),
    ("neither object nor array", b"5"), ("neither", b"null"), ("unknown message", b"{}"),
    ("event name is no text", b'{"e":5}'), ("stream name is no text", b'{"stream":5,"data":{}}'),
    ("no data", b'{"stream":"x","data":5}'), ("unknown message", b'{"stream":"x","data":{}}'),
    ("'U' is None, expected a count", SPOT[0].replace('"U":50093239189,', "").encode()),
    ("'U' is '1', expected a count", SPOT[0].replace('"U":50093239189', '"U":"1"').encode()),
    ("'U' is -1, expected a count", SPOT[0].replace('"U":50093239189', '"U":-1').encode()),
    ("'U' is 1.0, expected a count", SPOT[0].replace('"U":50093239189', '"U":1.0').encode()),
    ("'U' is True, expected a count", SPOT[0].replace('"U":50093239189', '"U":true').encode()),
    ("'u' is 9223372036854775808, expected a count", SPOT[0].replace("50093239202", str(2**63)).encode()),
    ("'E' is 9223372036854775, expected a time", SPOT[0].replace("1723161255208", str(2**63 // 1000)).encode()),
    ("'m' is 1, expected true or false", SPOT[1].replace('"m":true', '"m":1').encode()),
    ("'p' is 1, expected text", SPOT[1].replace('"61837.63000000"', "1").encode()),
    ("'b' is no list of levels", SPOT[0].replace('"b":[', '"B":[').encode()),
    ("is not .price, quantity.", SPOT[0].replace('"1.54698000"', "1.5").encode()),
    ("is not .price, quantity.", SPOT[0].replace(',"1.54698000"', "").encode())],
    ids=lambda text: str(text)[:40])
def test_faults_say_what_and_show_the_message(what, text):
    venue = venue_of("binance_spot")
    with pytest.raises(VenueError, match=what) as fault:
        venue.decode(text, 1)
    assert str(fault.value).startswith("binance_spot: ") and len(str(fault.value)) < 600
    assert {call[0] for call in venue.sink.take()} <= {"define"}


@pytest.mark.parametrize("number", ["-1.50000000", "-0.00000001"])
@pytest.mark.parametrize("known", ["61837.63000000", "0.00010000"])
def test_negative_numbers_are_refused_and_minus_zero_is_zero(number, known):
    rivals = Rivals("binance_spot")
    rivals.feed(SPOT[1].encode())
    rivals.feed(SPOT[1].encode())
    assert rivals.feed(SPOT[1].replace(known, number).encode()) == "NumberError"
    assert rivals.feed(SPOT[1].replace(known, "-0.00000000").encode()) == "json"
    assert rivals.feed(SPOT[0].replace("1.20000000", number).encode()) == "NumberError"


@pytest.mark.parametrize("depth", list(range(880, 1_010, 2)) + [10**6])
def test_nesting_at_the_limit_of_recursion(depth):
    """Where json just manages, showing the value in an error must manage, too."""
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nest = opening * depth + "1" + closing * depth
        for text in (SPOT[1].replace('"61837.63000000"', nest), SPOT[0].replace('"1.54698000"', nest),
                     '{"code":%s,"msg":%s}' % (nest, nest)):
            outcome(venue_of("binance_spot").decode, text.encode())


# -- faults that mutations found, and kin of theirs ----------------------------------------------------------


@pytest.mark.parametrize("name, teacher, pupil", [
    # a key outside of data, where json does not look
    ("binance_spot", SPOT[3].replace('"data"', '"E":0,"data"'), ('"E":0', '"E":77')),
    ("binance_spot", SPOT[3][:-1] + ',"E":0}', ('"E":0', '"E":77')),
    # or deeper
    ("binance_spot", SPOT[3].replace('"s"', '"x":{"E":0},"s"'), ('"E":0', '"E":77')),
    ("binance_spot", SPOT[3].replace('"s"', '"x":[{"E":0}],"s"'), ('"E":0', '"E":77')),

    ("binance_usdm", FUTURES[0].replace('"pu":4984028367494,', "").replace('"data"', '"pu":5,"data"'),
     ('"pu":5', '"pu":6')),
    # the same key twice: json takes the last
    ("binance_spot", SPOT[3].replace('"s"', '"u":1,"s"'), ('"u":1', '"u":2')),
    ("binance_spot", SPOT[3].replace('"data"', '"data":{"E":5},"data"'), ('"E":5', '"E":6')),
    ("binance_spot", SPOT[0].replace('"s"', '"a":5,"s"'), ('"a":5', '"a":6')),
    ("binance_spot", SPOT[0][:-1] + ',"stream":"btcusdt@depth@100ms"}', ("", "")),
    ("binance_usdm", FUTURES[3].replace('"s"', '"stream":5,"s"'), (":5,", ":.5,")),
    # an integer nobody reads, of more digits than int() takes
    ("binance_spot", SPOT[2], ("743463414", "7" * 5_000)),
    # eighteen decimals leave no whole digit
    ("binance_spot", SPOT[1].replace("61837.63000000", "0.000000000000000001"), ("", "")),
    ("binance_spot", SPOT[0].replace("1.20000000", "0.000000000000000001"), ("", "")),
    # lone surrogates in names
    ("binance_spot", SPOT[1].replace("btcusdt@trade", "btcusdt@trade\\ud800"), ("", "")),
    ("binance_spot", SPOT[1].replace('"M"', '"\\ud800"'), ("", "")),
    # times at the borders between ms, µs and nonsense
    *(("binance_spot", SPOT[number], ("172316125534" if number else "172316125520", str(time)))
      for number in (0, 1) for time in (9223372036854, 10**14 // 10, 10**13, 922337203685477, 10**15, 10**17)),
    *(("binance_usdm", FUTURES[number], ("172134702", str(time)))
      for number in (0, 1, 3) for time in (9223, 10**9, 10**12)),
])
def test_what_was_learned_holds_for_kin(name, teacher, pupil):
    rivals = Rivals(name)
    for text in (teacher, teacher, teacher.replace(*pupil), BUILT_IN[name][1], teacher.replace(*pupil), teacher):
        rivals.feed(text.encode())


@pytest.mark.parametrize("time, ns", [
    (0, 0), (1, 10**6), (1723161255342, 1723161255342 * 10**6), (9223372036853, 9223372036853 * 10**6),
    (9223372036854, 9223372036854 * 10**3), (1723161255342987, 1723161255342987 * 10**3),
    (9223372036854774, 9223372036854774 * 10**3)])
def test_times_in_ms_and_us(time, ns):
    rivals = Rivals("binance_spot")
    for number in (0, 1):
        rivals.feed(SPOT[number].encode())
        rivals.feed(SPOT[number].encode())
    for text in (SPOT[0].replace("1723161255208", str(time)), SPOT[1].replace("1723161255342", str(time))):
        rivals.feed(text.encode())
        assert calls("binance_spot", text)[0][5 if "depth" in text else 3] == ns < 2**63


def test_learning_is_bounded(monkeypatch):
    venue = venue_of("binance_spot")
    for number in range(300):                              # a stream whose layout changes all the time
        venue.decode(SPOT[1].replace('"M":true', f'"M{chr(97 + number // 20) * (1 + number % 20)}":true').encode(), 1)
    assert len(venue.layouts) == len(venue.layouts_of[0]) == binance.MAX_LAYOUTS_PER_INSTRUMENT == 256
    monkeypatch.setattr(binance, "MAX_LAYOUTS", 257)
    for number in range(3):
        venue.decode(SPOT[1].replace("BTC", "C" * (1 + number)).replace("btc", "c" * (1 + number)).encode(), 1)
    assert len(venue.layouts) == 257


def test_names_that_differ_in_their_digits_are_told_apart():
    rivals = Rivals("binance_usdm")
    texts = [text.replace("BTCUSDT", f"BTCUSDT_{day}").replace("btcusdt", f"btcusdt_{day}").encode()
             for day in (260327, 260626, 260925) for text in FUTURES]
    assert [rivals.feed(text) for text in texts + texts] == ["json"] * 12 + ["likely"] * 12
    venue = rivals.by_any
    assert len(venue.layouts) == len(venue.by_names) == 4 and len(venue.patterns) == 1
    venue.forget(venue.instruments.all[1])
    assert [rivals.feed(text) for text in texts] == ["likely"] * 4 + ["json"] * 4 + ["likely"] * 4


def test_a_stream_that_changes_its_decimals_is_learned_anew():
    rivals = Rivals("binance_spot")
    went = [rivals.feed(SPOT[1].replace("61837.63000000", price).encode())
            for price in ("61837.60", "61837.70", "61837.605", "61837.606", "61837.60", "61837.600")]
    assert went == ["json", "likely", "json", "likely", "json", "likely"]


# -- the venue's rules, endpoints and texts ------------------------------------------------------------------


@pytest.mark.parametrize("sequence, bridged, first, last, verdict", [
    (100, False, 101, 105, NEXT), (100, False, 95, 105, NEXT), (100, False, 100, 101, NEXT), (100, False, 90, 100, OLD),
    (100, False, 90, 99, OLD), (100, False, 102, 105, GAP), (100, False, 101, 101, NEXT),
    (100, True, 101, 101, NEXT), (100, True, 102, 103, GAP), (100, True, 90, 100, OLD), (100, True, 99, 105, GAP)])
def test_spot_rule(sequence, bridged, first, last, verdict):
    """§5: drop u <= id; the first must span id + 1; then U == previous u + 1."""
    assert VENUES["binance_spot"].follows(sequence, bridged, first, last, None) == verdict


@pytest.mark.parametrize("sequence, bridged, first, last, previous, verdict", [
    (100, False, 95, 105, 94, NEXT), (100, False, 100, 105, 94, NEXT), (100, False, 90, 100, 89, NEXT),
    (100, False, 90, 99, 89, OLD), (100, False, 101, 105, 99, GAP), (100, False, 105, 110, 100, NEXT),
    (100, True, 150, 160, 100, NEXT), (100, True, 101, 105, 99, GAP), (100, True, 90, 100, 89, OLD),
    (100, True, 90, 99, 80, OLD), (100, True, 95, 105, 94, GAP), (100, True, 150, 160, None, GAP)])
def test_futures_rule(sequence, bridged, first, last, previous, verdict):
    """§5: drop u < id; the first must have U <= id <= u; then pu == previous u. Ranges have holes."""
    for name in ("binance_usdm", "binance_coinm"):
        assert VENUES[name].follows(sequence, bridged, first, last, previous) == verdict


def test_lines_and_subscriptions():
    spot, usdm = venue_of("binance_spot"), venue_of("binance_usdm")
    lines = spot.lines(["BTCUSDT", "ETHUSDT"], ["depth", "trade", "bbo"], 100, 4)
    assert [line.path for line in lines] == ["/stream", "/stream"] and [len(line.streams) for line in lines] == [4, 2]
    assert sorted(lines[0].streams + lines[1].streams) == [
        "btcusdt@bookTicker", "btcusdt@depth@100ms", "btcusdt@trade", "ethusdt@bookTicker", "ethusdt@depth@100ms",
        "ethusdt@trade"]
    by_path = {line.path: line.streams for line in usdm.lines(["BTCUSDT"], ["depth", "trade", "bbo"], 0, 200)}
    assert by_path == {"/public/stream": ["btcusdt@depth@0ms", "btcusdt@bookTicker"],
                       "/market/stream": ["btcusdt@aggTrade"]}, "§1: since 2026-04-23 two connections"
    for call, method in ((spot.subscribe, "SUBSCRIBE"), (spot.unsubscribe, "UNSUBSCRIBE")):
        commands = call([f"s{number}@trade" for number in range(250)], 7)
        asked = [json.loads(command.text) for command in commands]
        assert [each["id"] for each in asked] == [7, 8, 9] and {each["method"] for each in asked} == {method}
        assert sum((each["params"] for each in asked), []) == [f"s{number}@trade" for number in range(250)]
        assert [command.keys for command in commands] == [{each["id"]: each["params"]} for each in asked]
    assert spot.symbol_of("btcusdt@depth@100ms") == "BTCUSDT"


def test_snapshots_and_their_weights():
    for name, levels, weight in (("binance_spot", 20, 5), ("binance_spot", 5000, 250), ("binance_spot", 101, 25),
                                 ("binance_usdm", 1000, 20), ("binance_usdm", 5, 2)):
        venue = venue_of(name)
        instrument = venue.instrument("币USDT")
        path, cost = venue.snapshot_request(instrument, levels)
        assert path.endswith(f"depth?symbol=%E5%B8%81USDT&limit={levels}") and cost == weight
        assert venue.snapshot_symbol("https://host" + path) == "币USDT"
        assert venue.snapshot_symbol("https://host/api/v3/exchangeInfo?symbol=X") is None


def test_a_snapshot():
    venue = venue_of("binance_usdm")
    coin = venue.instrument("BTCUSDT")
    body = (b'{"lastUpdateId":1027024,"E":1589436922972,"T":1589436922959,"bids":[["4.00","431.0"]],'
            b'"asks":[["4.10","12.5"],["4.25","1.0"]]}')
    expected = ("snapshot", "BTCUSDT", 1027024, 1589436922972000000, 9, [400, 4310], [410, 125, 425, 10])
    venue.decode_snapshot(coin, body, 9)
    assert venue.sink.take()[-1] == expected
    venue.parse = None                                     # the decimals are known now, so json is not needed
    venue.decode_snapshot(coin, body, 9)
    assert venue.sink.take() == [expected]
    del venue.parse
    for body, text in ((b'{"code":-1121,"msg":"Invalid symbol."}', "snapshot refused: -1121: Invalid symbol."),
                       (b"[]", "snapshot is no object"), (b"<html>", "not JSON"), (b'{"lastUpdateId":5}', "'bids'"),
                       (b'{"bids":[],"asks":[]}', "'lastUpdateId' is None")):
        with pytest.raises(VenueError, match=text):
            venue.decode_snapshot(coin, body, 9)
    assert venue.sink.take() == []


def test_instrument_lists():
    body = {"symbols": [{"symbol": "BTCUSDT", "filters": [
        {"filterType": "PRICE_FILTER", "tickSize": "0.01000000"}, {"filterType": "LOT_SIZE", "stepSize": "0.00001000"},
        {"filterType": "NOTIONAL"}]}]}
    venue = venue_of("binance_spot")
    assert venue.decode_instruments(json.dumps(body).encode()) == {"BTCUSDT": ("0.01000000", "0.00001000", "1")}
    for broken in (b"{}", b"[]", b'{"symbols":[{}]}', b'{"symbols":[5]}', b'{"symbols":[{"symbol":"X","filters":[]}]}',
                   b"x"):
        with pytest.raises(VenueError):
            venue.decode_instruments(broken)
    for name in BINANCE:
        for path in sorted(CAPTURES.glob(f"{name}/instruments*.jsonl.gz")):
            record, = list(capture.read(path))
            found = venue_of(name).decode_instruments(record.payload)
            assert found and all(float(tick) > 0 and float(lot) > 0 for tick, lot, _ in found.values())
