"""Records: the same calls come out as went in; a ring that is full never makes a wrong book."""

from struct import error as struct_error

import pytest
from support import Recorder, dice

from feeder.fixed import INT64_MAX
from feeder.instrument import Instrument
from feeder.message import BUY, LIVE, REASONS, SELL
from feeder.packet import Encoder
from feeder.publish import Publisher
from feeder.record import HEAD, RecordReader, RecordWriter
from feeder.ring import Ring, RingError, form, ring_bytes

SYMBOLS = ("BTCUSDT", "ETHUSDT", "币安人生USDT")


class Wire:
    """A ring with a writer before it and a reader behind it, who have instruments of their own."""

    def __init__(self, slots=1024, sink=None, symbols=SYMBOLS):
        buffer = bytearray(ring_bytes(slots, len(symbols)))
        form(buffer, slots, len(symbols))
        self.ring, there = Ring(buffer), Ring(buffer)
        self.ring.write(1, 1)
        there.read_from(2, 2)
        self.lost = []
        self.writer = RecordWriter(self.ring, lambda *what: self.lost.append(what))
        self.here = [Instrument(number, "binance_spot", symbol) for number, symbol in enumerate(symbols)]
        self.there = [Instrument(number, "binance_spot", symbol) for number, symbol in enumerate(symbols)]
        self.sink = sink or Recorder()
        self.sink.received_ns = 0
        self.venues = []
        self.reader = RecordReader(there, self.sink, dict(enumerate(self.there)), lambda *what: self.venues.append(what))

    def define_all(self):
        assert self.writer.start()
        for instrument in self.here:
            self.writer.define(instrument, 1, 1)
        self.reader.drain()
        if isinstance(self.sink, Recorder):
            self.sink.take()


def same_definitions(wire):
    fields = [name for name in Instrument.__slots__ if name not in ("name", "depth")]
    for here, there in zip(wire.here, wire.there):
        assert [getattr(here, name) for name in fields] == [getattr(there, name) for name in fields]


def widen(rng, instrument):
    """Change decimals, exponents and sizes as a venue does; return the scales."""
    scales = []
    for what in ("price", "quantity"):
        decimals = getattr(instrument, what + "_decimals")
        more = rng.choice((0, 0, 1, 3)) if decimals < 12 else -12
        setattr(instrument, what + "_decimals", decimals + more)
        scales.append(10 ** more if more >= 0 else 0)
        if rng.random() < 0.1:
            setattr(instrument, what + "_exponent", -decimals - more)
    instrument.rescale()
    if rng.random() < 0.3:
        instrument.tick, instrument.lot = rng.choice((None, "0.01")), rng.choice((None, "0.00000100"))
    return scales


def random_call(rng, wire):
    """Return (method, arguments) as the writer is called; the definition's scales are those of a change just made."""
    instrument = rng.choice(wire.here)

    def number(low=0):
        return rng.choice((low, 1, rng.randrange(2**40), INT64_MAX))

    def side():
        return [number() for _ in range(2 * rng.choice((0, 0, 1, 3, 20, 200)))]
    head = instrument, rng.choice((0, 1, 2**64 - 1, rng.randrange(2**50))), number(), number()
    name = rng.choice(("define", "snapshot", "increment", "increment", "trade", "trade", "bbo", "bbo", "stale"))
    if name == "define":
        return name, (instrument, *widen(rng, instrument))
    if name == "stale":
        return name, (instrument, rng.choice(REASONS), number())
    if name == "trade":
        return name, (*head, rng.choice((0, 2**64 - 1)), number(), number(), rng.choice((BUY, SELL)))
    if name == "bbo":
        return name, (*head, number(), number(), number(), number())
    return name, (*head, side(), side())


def test_random_calls_come_out_as_they_went_in():
    rng = dice(41)
    wire = Wire()
    wire.define_all()
    model = Recorder()
    calls = 0
    for number in range(6_000):
        name, arguments = random_call(rng, wire)
        wire.writer.received_ns = number
        getattr(wire.writer, name)(*arguments)
        getattr(model, name)(*arguments)
        calls += 1
        if rng.random() < 0.3 or name == "define" or wire.ring.free_slots() < 200:
            while wire.reader.drain(rng.randrange(1, 50)):
                pass
            assert wire.sink.take() == model.take()
            same_definitions(wire)
    wire.reader.drain(1_000)
    assert wire.sink.take() == model.take()
    assert wire.writer.records == wire.reader.records == calls + 1 + len(SYMBOLS)
    assert wire.lost == [] and wire.writer.dropped == wire.reader.unknown == 0


def test_venue_statuses_and_the_stopwatch():
    wire = Wire()
    wire.define_all()
    wire.writer.venue_status("binance_spot", True, "none", 5)
    wire.writer.venue_status("binance_usdm", False, "disconnect", 6)
    coin = wire.here[0]
    for received_ns in (70, 80):
        wire.writer.received_ns = received_ns
        wire.writer.trade(coin, 1, 2, 3, 4, 5, 6, BUY)
    wire.reader.drain()
    assert wire.venues == [("binance_spot", True, "none", 5), ("binance_usdm", False, "disconnect", 6)]
    assert wire.sink.received_ns == 70                   # the oldest that is not sent yet
    wire.writer.repeat_venues()
    wire.reader.drain()
    assert wire.venues[2:] == wire.venues[:2]
    assert wire.writer.seen(coin) and not wire.writer.seen(wire.here[1])


def test_definitions_tell_of_auctions():
    wire = Wire()
    wire.define_all()
    for is_on in (True, False):
        wire.here[0].may_cross = is_on
        wire.writer.define(wire.here[0], 1, 1)
        wire.reader.drain()
        assert [there.may_cross for there in wire.reader.instruments.values()] == [is_on, False, False]


def test_nothing_is_believed_before_its_definition():
    wire = Wire()
    wire.define_all()
    coin = wire.here[0]
    coin.price_decimals = 2
    coin.rescale()
    wire.writer.define(coin, 100, 1)
    wire.reader.begin_again(9)                            # a new reader
    assert wire.sink.take() == [("start_over", symbol, "disconnect", 9) for symbol in SYMBOLS]
    assert wire.ring.asked() == [(number, REASONS.index("start")) for number in range(3)]
    wire.writer.trade(coin, 1, 2, 3, 4, 5, 6, BUY)
    wire.reader.drain()
    assert wire.sink.take() == [] and wire.reader.unknown == 1
    wire.writer.define(coin, 1, 1)
    wire.writer.trade(coin, 1, 2, 3, 4, 5, 6, BUY)
    wire.reader.drain()
    assert wire.sink.take() == [("define", coin.symbol, 1, 1), ("trade", coin.symbol, 1, 2, 3, 4, 5, 6, BUY)]
    assert wire.there[0].price_decimals == 2
    coin.price_decimals = 0                               # a new writer, which has seen fewer decimals
    assert wire.writer.start()
    wire.writer.trade(coin, 1, 2, 3, 4, 5, 6, BUY)
    wire.writer.define(coin, 1, 1)
    wire.reader.drain()
    assert wire.sink.take() == [*(("start_over", symbol, "disconnect", 0) for symbol in SYMBOLS),
                                ("define", coin.symbol, 1, 1)]
    assert wire.there[0].price_decimals == 0 and wire.reader.unknown == 2


def test_what_is_lost_stays_lost_until_half_the_ring_is_free():
    wire = Wire(slots=8)
    wire.define_all()
    coin, other = wire.here[:2]
    for sequence in range(8):
        wire.writer.trade(coin, sequence, 0, 0, 0, 1, 1, BUY)
    assert wire.writer.dropped == 0
    wire.writer.trade(other, 1, 0, 33, 0, 1, 1, BUY)      # full
    wire.writer.venue_status("binance_spot", False, "disconnect", 4)
    assert wire.writer.lost == {1: 33} and wire.writer.losses == 1
    assert wire.reader.drain(3) == 3                      # three are free: not enough to come back for
    wire.writer.heal()
    assert wire.lost == [] and len(wire.writer.lost) == 1
    wire.writer.trade(other, 2, 0, 0, 0, 1, 1, BUY)
    wire.writer.stale(other, "gap", 0)
    other.quantity_decimals = 3
    wire.writer.define(other, 1, 1000)
    assert wire.writer.dropped == 5
    wire.reader.drain()
    wire.sink.take()
    wire.writer.heal()
    assert wire.writer.lost == {} and wire.lost == [(other, "ring_full", 33)]
    wire.writer.trade(other, 9, 0, 0, 0, 1, 1, BUY)
    wire.reader.drain()
    assert wire.sink.take() == [("define", other.symbol, 1, 1000), ("stale", other.symbol, "ring_full", 33),
                                ("trade", other.symbol, 9, 0, 0, 0, 1, 1, BUY)]
    assert wire.venues == [("binance_spot", False, "disconnect", 4)]


def test_a_new_writer_waits_while_the_ring_is_full():
    wire = Wire(slots=2)
    wire.writer.start(), wire.writer.start()
    assert not wire.writer.start()
    wire.reader.ring.skip()
    assert wire.writer.start()


def test_what_does_not_fit_64_bits_is_given_up_not_cut():
    wire = Wire()
    wire.define_all()
    coin = wire.here[0]
    wire.writer.increment(coin, 2**64, 0, 7, [1, 1], [])
    assert wire.lost == [(coin, "range", 7)] and wire.reader.drain() == 0
    with pytest.raises(struct_error):
        wire.writer.trade(coin, 0, 0, 0, 2**64, 1, 1, BUY)
    wire.writer.trade(coin, 0, 0, 0, 1, 1, 1, BUY)
    wire.reader.drain()
    assert len(wire.sink.take()) == 1


@pytest.mark.parametrize("spoil", [
    lambda wire, at: HEAD.pack_into(wire.ring.buffer, at, 99, 0, 0, 0, 0, 0, 0),          # no such type
    lambda wire, at: HEAD.pack_into(wire.ring.buffer, at, 2, 0, 77, 0, 0, 0, 0),          # no such instrument
    lambda wire, at: HEAD.pack_into(wire.ring.buffer, at, 7, 200, 0, 0, 0, 0, 0),         # no such reason
    lambda wire, at: HEAD.pack_into(wire.ring.buffer, at, 4, 0, 0, 0, 0, 0, 0),           # levels that are not there
    lambda wire, at: wire.ring.words.__setitem__((at >> 3) - 1, 5)])                      # not written for this slot
def test_a_broken_record_is_an_error_and_starts_the_ring_over(spoil):
    wire = Wire()
    wire.define_all()
    wire.writer.trade(wire.here[0], 1, 2, 3, 4, 5, 6, BUY)
    (at, _), = wire.reader.ring.read()
    spoil(wire, at)
    with pytest.raises((RingError, ValueError, LookupError)):
        wire.reader.drain()
    wire.reader.begin_again(0, "broken")
    assert wire.reader.faults == 1 and wire.reader.last_fault == "broken" and wire.reader.drain() == 0
    assert len(wire.ring.asked()) == 3


@pytest.mark.parametrize("slots", [16, 32, 128])
def test_a_live_book_is_never_wrong_whatever_the_ring_loses(slots):
    """A market before a small ring, a publisher behind it that reads when it likes, either of them replaced at random."""
    print(market_before(slots, dice(slots)))


def test_that_proof_can_fail(monkeypatch):
    monkeypatch.setattr(RecordWriter, "lose", lambda self, number, recv_ns: None)
    with pytest.raises(AssertionError, match="not the book at"):
        market_before(16, dice(16))


def market_before(slots, rng):
    datagrams = []
    encoder = Encoder(1, 0, lambda view: datagrams.append(len(view)), lambda: 0)
    wire = Wire(slots, Publisher(encoder, lambda instrument, reason, recv_ns: None))
    for instrument in wire.there:
        wire.sink.define(instrument, 1, 1)
    wire.define_all()
    truth = [({}, {}) for _ in wire.here]                 # the market, and each state it ever had
    history = [{0: ({}, {})} for _ in wire.here]
    sequence = [0] * len(wire.here)
    live = [False] * len(wire.here)                       # as recovery has it: only then are increments sent
    checked, drains = 0, 0.25
    for step in range(12_000):
        number = rng.randrange(len(wire.here))
        instrument = wire.here[number]
        sides = [[], []]
        for at, side in enumerate(truth[number]):
            for _ in range(rng.choice((0, 1, 4))):
                price = rng.randrange(1, 30) + 100 * at
                side[price] = rng.choice((0, rng.randrange(1, 9)))
                sides[at] += [price, side[price]]
                if not side[price]:
                    del side[price]
        sequence[number] += 1
        history[number][sequence[number]] = tuple(dict(side) for side in truth[number])
        if live[number]:
            wire.writer.increment(instrument, sequence[number], 0, step, *sides)
        elif rng.random() < 0.2:
            live[number] = True
            wire.writer.snapshot(instrument, sequence[number], 0, step,
                                 *([n for level in side.items() for n in level] for side in truth[number]))
        if rng.random() < 0.01:
            drains = rng.choice((0.01, 0.25))             # a reader in a hurry, or asleep
        dice_now = rng.random()
        if dice_now < drains:
            wire.reader.drain(rng.randrange(1, 2 * slots))
        elif dice_now < 0.30:
            wire.writer.heal()
            for lost, reason, _ in wire.lost:
                live[lost.instrument_id] = False
            wire.lost.clear()
            for asked, _ in wire.ring.asked():
                wire.writer.define(wire.here[asked], 1, 1)
                wire.writer.stale(wire.here[asked], "start", step)
                live[asked] = False
        elif dice_now < 0.301:
            wire.reader.begin_again(step)
        elif dice_now < 0.302 and wire.ring.free_slots() == slots:
            wire.ring = Ring(wire.ring.buffer)
            wire.ring.write(step, step)
            wire.writer = RecordWriter(wire.ring, lambda *what: wire.lost.append(what))
            assert wire.writer.start()
            live = [False] * len(live)
            for each in wire.here:
                wire.writer.define(each, 1, 1)
        for entry in wire.sink.entries:
            if entry.state == LIVE:
                bids, asks = ({price: quantity for price, quantity in zip(flat[::2], flat[1::2])}
                              for flat in entry.book.top())
                true = history[entry.instrument.instrument_id][entry.sequence]
                assert (bids, asks) == true, f"not the book at {entry.sequence}"
                checked += 1
    assert checked > 1_000
    return f"{checked:,} live books true, {wire.writer.losses} losses by the last writer, {len(datagrams):,} datagrams"
