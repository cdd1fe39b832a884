"""Binance's dialects: what each message becomes, and that both decoding paths agree on anything that may come.

The likely path (learned patterns) has one rival, `decode_json`. Two venues, each with instruments of its own, get
the same messages; one decodes by whichever path it likes, the other by json only. Their calls must be the same.
"""

import json
from collections import Counter

import pytest
from mutate import MUTATIONS
from support import BINANCE, CAPTURES, Recorder, dice, recordings

from feeder import capture
from feeder.errors import NumberError, VenueError
from feeder.message import BUY, SELL
from feeder.venue import VENUES
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
DOCUMENTED = (VenueError, NumberError)


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

    def feed(self, payload):
        """Return how it went: "likely", "json", or the name of an error."""
        likely = self.by_any.likely
        one, other = outcome(self.by_any.decode, payload), outcome(self.by_json.decode_json, payload)
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


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BINANCE)
def test_mutated_messages_go_the_same_way_by_both_paths_long(name, seed):
    mutate_all(name, 12_500, seed=1_000 + seed)
