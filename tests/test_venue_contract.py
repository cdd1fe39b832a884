"""What every venue of the registry has to fulfil; docs/adding-a-venue.md leads here.

Each venue's module feeder/venue/NAME.py has a tests/test_venue_NAME.py with what is special to it, and two things for
this file: SAMPLES {venue name: [message text, ...]}, in an order a connection could bring them, and Plain, a class whose
`trades(message)` yields (symbol, "buy" or "sell") of each trade in a json.loads'ed message of one connection.
"""

import importlib
import json
import re
from collections import Counter
from functools import lru_cache

import pytest
from mutate import MUTATIONS
from support import CAPTURES, Recorder, dice, lines, recordings, short

from feeder import capture
from feeder.errors import CaptureError, NumberError, VenueError
from feeder.message import LIVE, SIDE_NAMES
from feeder.receiver import Receiver
from feeder.replay import Replay
from feeder.schema import SCHEMA, BY_VENUE, accepts
from feeder.venue import VENUES, recognise
from feeder.venue.contract import CHANNELS, REST, Instruments, Listing

every_venue = pytest.mark.parametrize("name", VENUES)
live_venues = pytest.mark.parametrize("name", [name for name, venue in VENUES.items() if venue.facts])


def module_of(name):
    return importlib.import_module("test_venue_" + VENUES[name].__module__.rpartition(".")[2])


def venue_of(name, discover=True):
    return VENUES[name](Recorder(), Instruments(), discover=discover)


@lru_cache(maxsize=None)
def attributed():
    """Return {path: venue name} of the recordings that a venue recognises."""
    found = {}
    for path in recordings() if CAPTURES.exists() else ():
        connection = next((entry["conn"] for entry in lines(path) if entry["dir"] == "in"), "")
        try:
            found[path] = recognise(connection).name
        except CaptureError:
            continue
    return found


# -- facts and texts ------------------------------------------------------------------------------------------------


@live_venues
def test_facts_are_complete(name):
    venue, facts = VENUES[name], VENUES[name].facts
    assert venue.name == name and facts.title and facts.proof and facts.notes
    assert facts.symbol.fullmatch(facts.example) and facts.symbol.fullmatch(venue.spelling("BTC", "USDT"))
    offered = [channel for route in facts.routes for channel in route]
    assert sorted(offered) == sorted(set(offered)) and set(offered) <= set(CHANNELS) and "depth" in offered
    keys = {key.path: key for key in SCHEMA if key.file == "venue"}
    for path, value in facts.defaults.items():
        assert keys[path].default is BY_VENUE, f"{path} has one default for all"
        assert keys[path].kind == "channels" or accepts(keys[path].kind, value, keys[path].bounds)
    if facts.snapshot_limits:
        assert facts.defaults["snapshot_limit"] in facts.snapshot_limits
    assert bool(facts.snapshot_weights) == (venue.book == REST)
    if facts.ping is not None:
        assert facts.ping.text and 0 < facts.ping.every_s <= 60
    assert facts.command_every_ms >= 0 and facts.connect_every_ms >= 0 and facts.lifetime_s >= 0


@live_venues
def test_common_names_tell_contracts_from_coins(name):
    venue = VENUES[name]
    common = venue.common_name(venue.spelling("BTC", "USDT"))
    assert common == "BTC/USDT" + venue.contract, common
    assert venue.common_name(venue.facts.example)


@live_venues
@pytest.mark.parametrize("count", [1, 10, 300])
def test_lines_carry_everything_once_within_the_limits(name, count):
    venue = venue_of(name)
    facts = venue.facts
    symbols = [venue.spelling(f"T{number}", "USDT") for number in range(count)]
    limit = facts.default("streams_per_connection")
    made = venue.lines(symbols, list(facts.channels), (facts.depth_intervals_ms or (0,))[0], limit,
                       facts.default("snapshot_limit"))
    streams = [stream for line in made for stream in line.streams]
    assert len(streams) == len(set(streams)) and all(0 < len(line.streams) <= limit for line in made)
    assert Counter(map(venue.symbol_of, streams)) == dict.fromkeys(symbols, len(facts.channels))
    assert all(line.path == "" or line.path.startswith("/") for line in made)
    for line in made:
        session = venue.session()
        calls = [session.subscribe]
        check_commands(session.hello(1), None)
        for call in calls:
            check_commands(call(line.streams, 7), line.streams)


def check_commands(commands, streams):
    """Texts are texts, mostly JSON; keys are unique; each stream is in exactly one of them, or there are no keys."""
    keys = [key for command in commands for key in command.keys]
    assert len(keys) == len(set(keys))
    told = [stream for command in commands for part in command.keys.values() for stream in part]
    if streams is not None and keys:
        assert sorted(told) == sorted(streams)
    for command in commands:
        assert 0 < len(command.text.encode()) <= 64 << 10
        if command.text[0] in "{[":
            json.loads(command.text)


@every_venue
def test_instrument_lists_are_read(name):
    venue = venue_of(name)
    for path in sorted(CAPTURES.glob("*/*.jsonl.gz")):
        if not re.match("instruments|products", path.name):
            continue
        for record in capture.read(path):
            if not VENUES[name].recognises(record.conn):
                continue
            found = venue.decode_instruments(record.payload)
            assert found and all(type(listing) is Listing for listing in found.values())
            assert all(float(text) > 0 for listing in found.values() for text in listing if text), short(path)
    for broken in (b"", b"{}", b"[]", b"[1]", b"null", b'{"result":{}}', b"\xff", b'{"symbols":[5]}'):
        with pytest.raises(VenueError):
            venue.decode_instruments(broken)


# -- recordings -----------------------------------------------------------------------------------------------------


class Run:
    """A recording through Replay into a Receiver; trades noted by symbol and side."""

    def __init__(self, path):
        self.receiver = Receiver()
        self.trades = Counter()
        self.replay = Replay(lambda datagram: self.receiver.receive(datagram, 1), session=7, depth=20)
        publisher = self.replay.pipeline.publisher
        original = publisher.trade

        def trade(instrument, *more):
            self.trades[instrument.symbol, SIDE_NAMES[more[-1]]] += 1
            original(instrument, *more)

        publisher.trade = trade
        self.replay.file(path)
        publisher.flush()
        self.report = self.replay.report(1)


def plainly(path, name):
    """Return Counter of trades by (symbol, side), and the number of messages, by json and the venue's plain reading."""
    found, connections = Counter(), {}
    for entry in lines(path):
        if entry["kind"] == "ws" and entry["dir"] == "in":
            plain = connections.setdefault(entry["conn"], module_of(name).Plain())
            try:
                message = json.loads(entry["raw"])
            except ValueError:                            # OKX's pong
                continue
            found.update(plain.trades(message))
    return found


# Of the longest ones test_captures has the gist every day.
EACH_RECORDING = [pytest.param(path, id=short(path), marks=pytest.mark.stress if path.stat().st_size > 2 << 20 else ())
                  for path in attributed()]


@pytest.mark.parametrize("path", EACH_RECORDING)
def test_a_recording_has_no_gap_its_checksums_verify_and_its_trades_are_all_there(path):
    name = attributed()[path]
    run = Run(path)
    report = run.report
    assert (report["gaps"], report["resyncs"], report["errors"]) == (0, 0, 0), report["first_errors"]
    assert all(decoder["checksums_failed"] == 0 for decoder in report["decoders"].values())
    trades = plainly(path, name)
    assert run.trades == trades
    verified = sum(row["checksums_verified"] for row in report["instruments"])
    print(f"{short(path)}: {report['messages']} messages, {sum(trades.values())} trades, {verified} checksums")
    heard = run.receiver
    assert (heard.gap_count, heard.errors, heard.mismatches, heard.crossed, heard.undefined) == (0, {}, 0, 0, 0)
    views = {(view.venue, view.symbol): view for view in heard.views()}
    for entry in run.replay.pipeline.publisher.entries:
        if entry.events:
            assert entry.state == LIVE and entry.crossed == 0
        entry.book.check()
        instrument = entry.instrument
        view = views[instrument.venue, instrument.symbol]
        for side, own, sign in zip((view.bids, view.asks), entry.book.published(), (-1, 1)):
            assert [sign * key for key in side.keys] == [price * instrument.price_factor for price in own[::2]]
            assert side.quantities == [quantity * instrument.quantity_factor for quantity in own[1::2]]


# -- garbage, and the two paths -------------------------------------------------------------------------------------


def outcome(decode, payload):
    """Return what came of a message: a Notice, None, or the class of the documented error it raised."""
    try:
        return decode(payload, 5)
    except (VenueError, NumberError) as error:
        return type(error)


class Rivals:
    """Two sessions that must never differ: one takes whichever path it likes, the other json."""

    def __init__(self, name):
        self.venues = venue_of(name), venue_of(name)
        one, other = (venue.session() for venue in self.venues)
        self.by_any, self.by_json = one.decode, other.decode_json

    def feed(self, payload):
        """Return the outcome; after an error nothing was told but `define` and `stale`."""
        one, other = outcome(self.by_any, payload), outcome(self.by_json, payload)
        assert one == other, payload
        calls, other_calls = (venue.sink.take() for venue in self.venues)
        assert calls == other_calls, payload
        if isinstance(one, type):
            assert not {call[0] for call in calls} - {"define", "stale"}, (payload, calls)
        return one


def conversations(name, most=150, most_bytes=20_000):
    """Yield lists of payloads that a connection brought in this order: the samples, the begin of each recording."""
    yield [text.encode() for text in module_of(name).SAMPLES[name]]
    for path, venue in attributed().items():
        if venue == name:
            by_connection = {}
            for record in capture.read(path):
                if record.kind == "ws" and record.direction == "in":
                    talks = by_connection.setdefault(record.conn, [[]])
                    if len(record.payload) > most_bytes:
                        talks.append([])              # another talk: a venue that counts would miss it
                        continue
                    talks[-1].append(record.payload)
                    if sum(map(len, talks)) == most:
                        break
            yield from (payloads for talks in by_connection.values() for payloads in talks if payloads)


@every_venue
def test_clean_messages_are_read_alike_by_both_paths(name):
    for payloads in conversations(name):
        rivals = Rivals(name)
        for payload in payloads:
            assert not isinstance(rivals.feed(payload), type), payload


def mutate_all(name, count, seed):
    rng = dice(seed)
    talks = list(conversations(name))
    went = Counter()
    while sum(went.values()) < count:
        payloads = rng.choice(talks)
        rivals = Rivals(name)
        start = rng.randrange(len(payloads))
        for payload in payloads[max(0, start - 20):start]:
            rivals.feed(payload)
        for payload in payloads[start:start + 10]:
            mutated = rng.choice(MUTATIONS)(rng, payload)
            if rng.random() < 0.2:
                mutated = rng.choice(MUTATIONS)(rng, mutated or b"{}")
            result = rivals.feed(mutated)
            went[result.__name__ if isinstance(result, type) else "read"] += 1
    print(f"{name}: {dict(went)}")
    assert went["read"] and went["VenueError"]


@every_venue
def test_mutated_messages_raise_only_what_is_documented(name):
    mutate_all(name, 400, 5)


@pytest.mark.stress
@every_venue
def test_many_mutated_messages(name):
    mutate_all(name, 20_000, 6)


@every_venue
def test_garbage(name):
    rng = dice(7)
    rivals = Rivals(name)
    for payload in (b"", b"{", b"null", b"true", b"0", b'""', b"[]", b"[[]]", b"{}", b"\xff\xfe", b"[" * 100_000,
                    b'{"a":NaN}', b"1" * 5_000, *(rng.randbytes(rng.randrange(1, 60)) for _ in range(200))):
        rivals.feed(payload)
