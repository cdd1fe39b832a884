"""The publisher: what leaves as LIVE, in which epoch, at which exponents; through the real encoder and a receiver."""

from decimal import Decimal

import pytest
from mutate import MUTATIONS
from support import BINANCE, dice
from test_venue_binance import samples

from feeder import book, packet
from feeder.errors import RangeError
from feeder.fixed import INT64_MAX, to_text
from feeder.instrument import Instrument, channel_index
from feeder.message import BUY, LIVE, REASON_CODES, STALE, SYNCING
from feeder.packet import INCREMENT, REFRESH, SNAPSHOT, Encoder, LoopEncoder
from feeder.pipeline import Pipeline
from feeder.publish import Publisher, SnapshotLoop
from feeder.receiver import Receiver


class Desk:
    """A publisher, what it sent, and a receiver of that."""

    def __init__(self, count=1, depth=20, packet_bytes=1472):
        self.sent = []
        self.resyncs = []
        self.now_ns = 0
        self.receiver = Receiver()
        self.encoder = Encoder(1, 0, self.emit, lambda: self.now_ns, packet_bytes)
        self.publisher = Publisher(self.encoder, lambda *what: self.resyncs.append(what))
        self.instruments = [Instrument(number, "binance_spot", f"COIN{number}USDT", price_decimals=2,
                                       quantity_decimals=3, depth=depth) for number in range(count)]
        for instrument in self.instruments:
            self.publisher.define(instrument, 1, 1)

    def emit(self, datagram):
        self.now_ns += 1
        self.sent += packet.decode(bytes(datagram)).messages
        self.receiver.receive(datagram, self.now_ns)

    def take(self):
        """Return the messages sent since the last look."""
        self.encoder.flush()
        sent, self.sent = self.sent, []
        return sent

    def view(self, number=0):
        self.encoder.flush()
        return next(view for view in self.receiver.views() if view.instrument_id == number)


def kinds(messages):
    return [packet.TYPE_NAMES[message.type] if isinstance(message, packet.Book) else type(message).__name__.lower()
            for message in messages]


def test_definition_snapshot_increment():
    desk = Desk()
    coin, = desk.instruments
    desk.publisher.snapshot(coin, 7, 1_000, 2_000, [10_000, 5], [10_001, 6])
    desk.publisher.increment(coin, 8, 1_001, 2_001, [10_000, 0, 9_999, 4], [])
    definition, snapshot, increment = desk.take()
    assert (definition.symbol, definition.price_exponent, definition.depth) == ("COIN0USDT", -8, 20)
    assert snapshot[:8] == (SNAPSHOT, 0, 7, 1_000, 2_000, packet.FIRST | packet.LAST, LIVE, 1)
    assert (snapshot.bids, snapshot.asks) == ((10_000 * 10**6, 5 * 10**5), (10_001 * 10**6, 6 * 10**5))
    assert increment[:8] == (INCREMENT, 0, 8, 1_001, 2_001, packet.LAST, LIVE, 1)
    assert increment.bids == (10_000 * 10**6, 0, 9_999 * 10**6, 4 * 10**5)
    assert desk.view().state == LIVE


def test_a_definition_is_sent_again_when_tick_or_lot_become_known_and_only_then():
    desk = Desk()
    coin, = desk.instruments
    desk.publisher.snapshot(coin, 7, 0, 1, [10_000, 5], [10_001, 6])
    desk.take()
    coin.tick, coin.lot = "0.01", "0.001"
    desk.publisher.define(coin, 1, 1)
    definition, = desk.take()
    assert (definition.tick, definition.lot) == (10**6, 10**5) and desk.view().state == LIVE
    desk.publisher.define(coin, 1, 1)
    assert desk.take() == []
    coin.tick = "0.02"
    desk.publisher.define(coin, 1, 1)
    assert [message.tick for message in desk.take()] == [2 * 10**6] and desk.view().state == LIVE


def test_nothing_is_published_before_the_snapshot():
    desk = Desk()
    desk.take()
    desk.publisher.increment(desk.instruments[0], 1, 0, 0, [10_000, 5], [])
    assert desk.take() == []
    assert desk.publisher.entries[0].state == SYNCING


def test_a_crossed_event_is_not_published_and_asks_for_a_resync():
    desk = Desk()
    coin, = desk.instruments
    faults = []
    desk.publisher.on_fault = lambda *what: faults.append(what)
    desk.publisher.snapshot(coin, 7, 0, 1, [10_000, 5], [10_001, 6])
    desk.take()
    desk.publisher.increment(coin, 8, 0, 2, [10_002, 5], [])
    status, = desk.take()
    assert (status.state, status.reason, status.text) == (STALE, REASON_CODES["crossed"], "crossed")
    assert desk.resyncs == [(coin, "crossed", 2)]
    assert faults[0][:2] == (coin, "crossed") and "venue sequence 8" in faults[0][2]
    assert desk.view().state == STALE
    desk.publisher.increment(coin, 9, 0, 3, [10_002, 0], [])
    assert desk.take() == [], "stale until a snapshot"
    desk.publisher.snapshot(coin, 10, 0, 4, [10_000, 5], [10_003, 6])
    snapshot, = desk.take()
    assert (snapshot.state, snapshot.epoch) == (LIVE, 2)
    assert desk.view().state == LIVE and desk.publisher.entries[0].crossed == 1


def test_a_locked_book_is_published():
    desk = Desk()
    desk.publisher.snapshot(desk.instruments[0], 7, 0, 1, [10_000, 5], [10_000, 6])
    assert kinds(desk.take()) == ["definition", "snapshot"] and desk.resyncs == []


def test_a_crossed_snapshot_is_not_published():
    desk = Desk()
    coin, = desk.instruments
    desk.publisher.snapshot(coin, 7, 0, 1, [10_000, 5], [10_000, 6])
    desk.take()
    desk.publisher.snapshot(coin, 8, 0, 2, [10_002, 5], [10_001, 6])
    assert kinds(desk.take()) == ["status"] and desk.resyncs == [(coin, "crossed", 2)]
    desk = Desk()                                          # as the first thing ever
    desk.take()
    desk.publisher.snapshot(desk.instruments[0], 8, 0, 2, [10_002, 5], [10_001, 6])
    assert desk.take() == [] and desk.publisher.entries[0].state == SYNCING


def test_crossed_is_no_fault_in_an_auction_and_is_one_again_after_it():
    desk = Desk()
    coin, = desk.instruments
    coin.may_cross = True
    desk.publisher.snapshot(coin, 7, 0, 1, [10_002, 5], [10_001, 6])
    desk.publisher.increment(coin, 8, 0, 2, [10_003, 5], [])
    assert desk.publisher.entries[0].state == LIVE and desk.resyncs == []
    coin.may_cross = False
    desk.publisher.define(coin, 1, 1)
    assert desk.publisher.entries[0].state == STALE and desk.resyncs == [(coin, "crossed", 2)]


def test_epochs_grow_with_each_time_live():
    desk = Desk(count=2)
    for round_number in range(1, 5):
        for coin in desk.instruments:
            desk.publisher.snapshot(coin, round_number, 0, 1, [10_000, 5], [10_001, 6])
            desk.publisher.stale(coin, "gap", 2)
            desk.publisher.stale(coin, "disconnect", 3)    # known already: not said again
    books = [message for message in desk.take() if isinstance(message, packet.Book)]
    assert [book.epoch for book in books if book.instrument_id == 1] == [1, 2, 3, 4]
    assert desk.receiver.by_type["status"] == 8


def test_the_epoch_wraps_to_one():
    desk = Desk()
    desk.publisher.entries[0].epoch = 2**32 - 1
    desk.publisher.snapshot(desk.instruments[0], 1, 0, 1, [10_000, 5], [10_001, 6])
    assert desk.take()[-1].epoch == 1


def test_only_the_window_leaves_and_the_receiver_follows():
    rng = dice(11)
    desk = Desk(depth=5)
    coin, = desk.instruments
    desk.publisher.snapshot(coin, 0, 0, 0, [n for price in range(9_990, 9_900, -1) for n in (price, 3)],
                            [n for price in range(10_010, 10_100) for n in (price, 4)])
    for sequence in range(1, 500):
        bids = [n for _ in range(rng.randrange(4)) for n in (9_990 - rng.randrange(40), rng.choice((0, 0, 7)))]
        asks = [n for _ in range(rng.randrange(4)) for n in (10_010 + rng.randrange(40), rng.choice((0, 0, 7)))]
        desk.publisher.increment(coin, sequence, 0, sequence, bids, asks)
    view, (bids, asks) = desk.view(), desk.publisher.entries[0].book.published()
    assert 5 <= len(bids) // 2 <= 15 and 5 <= len(asks) // 2 <= 15
    assert [-key for key in view.bids.keys] == [price * 10**6 for price in bids[::2]]
    assert view.asks.keys == [price * 10**6 for price in asks[::2]]
    assert view.asks.quantities == [quantity * 10**5 for quantity in asks[1::2]]
    assert desk.receiver.errors == {} and desk.receiver.gap_count == 0


def test_refresh_goes_round_and_repeats_without_changing_anything():
    desk = Desk(count=3)
    for coin in desk.instruments[:2]:
        desk.publisher.snapshot(coin, 5, 0, 9, [10_000, 5], [10_001, 6])
    desk.publisher.stale(desk.instruments[1], "gap", 10)
    desk.take()
    late = Receiver()
    desk.receiver = late                                   # who joins now knows nothing
    for _ in range(3):
        desk.publisher.refresh()
    messages = desk.take()
    assert sorted(zip(kinds(messages), (message.instrument_id for message in messages))) == [
        ("definition", 0), ("definition", 1), ("definition", 2), ("snapshot", 0), ("status", 1), ("status", 2)]
    assert [message.flags & REFRESH for message in messages if isinstance(message, packet.Book)] == [REFRESH]
    states = {view.instrument_id: (view.sent_state, view.reason) for view in late.views()}
    assert states == {0: (LIVE, "none"), 1: (STALE, "gap"), 2: (SYNCING, "start")}
    assert late.views()[0].state == LIVE and desk.publisher.entries[0].epoch == 1 and late.mismatches == 0


def test_refresh_of_nothing_is_nothing():
    desk = Desk(count=0)
    desk.publisher.refresh()
    assert desk.take() == []


def test_trades_and_quotes_carry_state_epoch_and_wire_numbers():
    desk = Desk()
    coin, = desk.instruments
    desk.publisher.trade(coin, 3, 1, 2, 3, 10_050, 7, BUY)
    desk.publisher.snapshot(coin, 7, 0, 1, [10_000, 5], [10_001, 6])
    desk.publisher.bbo(coin, 8, 4, 5, 10_000, 1, 10_001, 2)
    _, trade, _, bbo = desk.take()
    assert (trade.state, trade.epoch, trade.item) == (SYNCING, 0, (3, 10_050 * 10**6, 7 * 10**5, BUY))
    assert (bbo.state, bbo.epoch, bbo.bid, bbo.ask) == (
        LIVE, 1, (10_000 * 10**6, 10**5), (10_001 * 10**6, 2 * 10**5))


def test_venue_status_reaches_the_receiver():
    desk = Desk()
    desk.publisher.venue_status("binance_spot", False, "disconnect", 5)
    status = desk.take()[-1]
    assert (status.instrument_id, status.venue, status.connected, status.text) == (
        packet.ALL_INSTRUMENTS, "binance_spot", 0, "disconnect")
    assert desk.receiver.venues["binance_spot"].reason == REASON_CODES["disconnect"]


# -- several channels, and the snapshot loop beside each ---------------------------------------------------------


class Station:
    """A Publisher of several channels with their snapshot loops, and what they sent: packets, and truth by sequence."""

    def __init__(self, count=12, channels=2, depth=20, packet_bytes=1472, rate=200):
        self.now_ns = 1
        self.packets = [[] for _ in range(channels)]
        self.looped = [[] for _ in range(channels)]
        self.loop_bytes = 0
        self.encoders = [Encoder(1, number, lambda view, number=number: self.packets[number].append(
            packet.decode(bytes(view))), self.clock, packet_bytes) for number in range(channels)]
        self.publisher = Publisher(self.encoders, lambda *what: None)
        self.loops = [SnapshotLoop(entries, LoopEncoder(
            1, number, lambda view, number=number: self.emit_loop(number, view), self.clock, packet_bytes, None,
            lambda encoder=encoder: encoder.sequence + encoder.count), rate)
            for number, (entries, encoder) in enumerate(zip(self.publisher.carried, self.encoders))]
        self.instruments = [Instrument(number, "binance_spot", f"COIN{number}USDT", price_decimals=2,
                                       quantity_decimals=3, depth=depth) for number in range(count)]
        for instrument in self.instruments:
            self.publisher.define(instrument, 1, 1)

    def clock(self):
        return self.now_ns

    def emit_loop(self, number, view):
        self.loop_bytes += len(view)
        self.looped[number].append(packet.decode(bytes(view)))

    def books(self, channel):
        """Yield (number of the next message, {instrument id: (definition, (bids, asks) or status)}) after each message."""
        known = {}
        expected = 1
        for sent in self.packets[channel]:
            assert sent.sequence == expected
            for message in sent.messages:
                expected += 1
                number = message.instrument_id
                definition, state = known.get(number, (None, (SYNCING, 0, REASON_CODES["start"])))
                if isinstance(message, packet.Definition):
                    definition = message
                elif isinstance(message, packet.Status):
                    state = message.state, message.epoch, message.reason
                elif isinstance(message, packet.Book):
                    if message.flags & packet.FIRST:
                        state = {}, {}
                    state = tuple({price: quantity for price, quantity in {**side, **dict(zip(*[iter(levels)] * 2))}.items()
                                   if quantity} for side, levels in zip(state, (message.bids, message.asks)))
                known[number] = definition, state
                yield expected, dict(known)

    def repeated(self, channel):
        """Yield (sequence, instrument id, definition, (bids, asks) or status) of the snapshot loop, parts put together."""
        definition, parts, number = None, None, 0
        for sent in self.looped[channel]:
            number += 1
            assert sent.loop == number and sent.flags == packet.SNAPSHOTS and sent.message_count == len(sent.messages)
            assert parts is None or sent.sequence == parts_of
            for message in sent.messages:
                if isinstance(message, packet.Definition):
                    assert parts is None
                    definition = message
                elif isinstance(message, packet.Status):
                    yield sent.sequence, message.instrument_id, definition, (message.state, message.epoch, message.reason)
                elif isinstance(message, packet.Book):
                    assert message.flags & REFRESH and message.state == LIVE and message.event_ns == 0
                    if message.flags & packet.FIRST:
                        parts, parts_of = ({}, {}), sent.sequence
                    for side, levels in zip(parts, (message.bids, message.asks)):
                        side.update(zip(levels[::2], levels[1::2]))
                    if message.flags & packet.LAST:
                        yield sent.sequence, message.instrument_id, definition, parts
                        parts = None
        assert parts is None


def test_an_instrument_is_on_one_channel_and_a_venue_on_all():
    station = Station(count=30, channels=3)
    publisher = station.publisher
    for coin in station.instruments:
        publisher.snapshot(coin, 1, 0, 1, [10_000, 5], [10_001, 6])
        publisher.increment(coin, 2, 0, 2, [9_999, 5], [])
        publisher.trade(coin, 3, 1, 2, 3, 10_050, 7, BUY)
        publisher.bbo(coin, 8, 4, 5, 10_000, 1, 10_001, 2)
        publisher.stale(coin, "gap", 9)
    publisher.venue_status("binance_spot", False, "disconnect", 5)
    for _ in station.instruments:
        publisher.refresh()
    publisher.flush()
    seen = set()
    for number, packets in enumerate(station.packets):
        messages = [message for sent in packets for message in sent.messages]
        ids = {message.instrument_id for message in messages} - {packet.ALL_INSTRUMENTS}
        assert ids == {coin.instrument_id for coin in station.instruments
                       if channel_index(coin.venue, coin.symbol, 3) == number}
        assert len(ids) >= 5 and not ids & seen and {sent.channel for sent in packets} == {number}
        assert [message.venue for message in messages if message.instrument_id == packet.ALL_INSTRUMENTS] == ["binance_spot"]
        assert len(messages) == 1 + 8 * len(ids)
        seen |= ids
    assert len(seen) == 30


def test_the_rule_of_channels_is_what_it_always_was():
    """Two feeders, of two releases, must divide alike."""
    assert [channel_index(*key, 7) for key in (("binance_spot", "BTCUSDT"), ("okx", "BTC-USDT"), ("upbit", "KRW-BTC"),
                                               ("binance_spot", "\u5e01USDT"))] == [4, 4, 3, 0]


@pytest.mark.parametrize("depth, packet_bytes, fill", [(5, 1472, 0.7), (20, 1472, 0.8), (0, 1472, 0.8), (20, 256, 0.9),
                                                       (20, 9000, 0.4)])
def test_what_the_snapshot_loop_tells_holds_at_its_sequence(depth, packet_bytes, fill):
    """Events, resyncs and changes of scale at random; each repeated book is what the channel's own messages make it."""
    rng = dice(17)
    station = Station(depth=depth, packet_bytes=packet_bytes)
    publisher = station.publisher
    for sequence in range(1, 1_500):
        coin = rng.choice(station.instruments)
        what = rng.random()
        if publisher.entries[coin.instrument_id].state != LIVE or what < 0.01:
            publisher.snapshot(coin, sequence, 0, 1, [n for price in range(9_990, 9_900, -1) for n in (price, 3)],
                               [n for price in range(10_010, 10_100) for n in (price, 4)])
        elif what < 0.02:
            publisher.stale(coin, "gap", 2)
        elif what < 0.022 and coin.price_decimals < 12:
            coin.price_decimals += 3
            coin.rescale()
            publisher.define(coin, 1000, 1)
        elif what < 0.03:
            coin.tick, coin.lot = f"0.0{sequence % 9 + 1}", "0.001"
            publisher.define(coin, 1, 1)
        else:
            scale = 10 ** (coin.price_decimals - 2)
            publisher.increment(coin, sequence, 0, sequence, *(
                [n for _ in range(rng.randrange(4)) for n in ((start + sign * rng.randrange(40)) * scale, rng.choice((0, 7)))]
                for start, sign in ((9_990, -1), (10_010, 1))))
        if rng.random() < 0.2:
            publisher.flush()
        if rng.random() < 0.3:
            rng.choice(station.loops).send()
    publisher.flush()
    for channel, loop in enumerate(station.loops):
        truth = dict(station.books(channel))
        compared = 0
        for sequence, number, definition, state in station.repeated(channel):
            assert (definition, state) == truth[sequence][number]
            compared += isinstance(state[0], dict)
        rounds = [message for sent in station.looped[channel] for message in sent.messages
                  if isinstance(message, packet.Round)]
        assert [each.number for each in rounds] == list(range(1, len(rounds) + 1)) and len(rounds) >= 3
        assert {each.instrument_count for each in rounds} == {len(loop.entries)} and compared >= 15
        print(f"channel {channel}: {compared} books, {len(station.looped[channel])} packets, {loop.rounds} rounds")
    filled = station.loop_bytes / sum(map(len, station.looped)) / packet_bytes
    print(f"{filled:.2f} of a packet are filled")
    assert filled > fill


def test_the_snapshot_loop_keeps_its_pace_and_makes_up_for_little():
    station = Station(count=40, channels=1, packet_bytes=256)     # a packet holds one definition and not its status
    loop, = station.loops
    for coin in station.instruments:
        station.publisher.snapshot(coin, 1, 0, 1, [10_000, 5], [10_001, 6])
    second = 1_000_000_000
    for now_ns in range(0, 2 * second, second // 1000):
        loop.run(now_ns)
    assert 398 <= loop.encoder.packets <= 405
    begins = [sent.loop for sent in station.looped[0] if isinstance(sent.messages[0], packet.Round)]
    assert loop.rounds == len(begins) - 1 >= 4 and abs(loop.round_ns - (begins[-1] - begins[-2]) * second / 200) < second / 40
    sent = loop.encoder.packets
    loop.run(10 * second)                                         # it was kept waiting for eight seconds
    assert 1 <= loop.encoder.packets - sent <= 10
    fast = SnapshotLoop(loop.entries, loop.encoder, 5_000)
    sent = loop.encoder.packets
    for now_ns in range(0, second, second // 200):                # several a turn, where turns are rare
        fast.run(now_ns)
    assert abs(loop.encoder.packets - sent - 5_000) < 50


def test_a_snapshot_loop_of_nothing_is_silent_and_takes_in_who_comes_later():
    station = Station(count=0, channels=1)
    loop, = station.loops
    loop.run(1)
    assert station.looped == [[]]
    station.publisher.define(Instrument(0, "okx", "BTC-USDT"), 1, 1)
    loop.run(2)
    (sent,), = station.looped
    assert kinds(sent.messages) == ["round", "definition", "status"] and sent.sequence == 2
    station.publisher.define(Instrument(1, "okx", "ETH-USDT"), 1, 1)
    loop.run(10_000_000)
    assert kinds(station.looped[0][-1].messages) == ["round", "definition", "status", "definition", "status"]
    assert station.looped[0][-1].sequence == 3


# -- numbers that do not fit eight decimals, through the whole pipeline --------------------------------------


class Feed:
    """Spot messages as text through a Pipeline into a Receiver."""

    def __init__(self, name="binance_spot"):
        self.receiver = Receiver()
        self.orders = 0
        self.now_ns = 0
        self.pipeline = Pipeline(self.emit, lambda: self.now_ns, session=1, want_snapshot=self.order)
        self.venue = self.pipeline.venue(name, discover=True)
        self.sequence = 100

    def emit(self, datagram):
        self.now_ns += 1
        self.receiver.receive(datagram, self.now_ns)

    def order(self, venue, instrument, attempt):
        self.orders += 1

    def diff(self, bids=(), asks=()):
        self.sequence += 1
        levels = '"b":[%s],"a":[%s]' % tuple(",".join('["%s","%s"]' % level for level in side) for side in (bids, asks))
        text = ('{"stream":"xyzbtc@depth@100ms","data":{"e":"depthUpdate","E":1723161255208,"s":"XYZBTC",'
                '"U":%d,"u":%d,%s}}' % (self.sequence, self.sequence, levels))
        return self.pipeline.decode(self.venue, text.encode(), 5)[1]

    def snapshot(self, bids=(), asks=()):
        body = '{"lastUpdateId":%d,"bids":[%s],"asks":[%s]}' % (
            self.sequence, *(",".join('["%s","%s"]' % level for level in side) for side in (bids, asks)))
        return self.pipeline.decode_snapshot(self.venue, self.venue.instrument("XYZBTC"), body.encode(), 5)

    def heard(self):
        """Return (state, bids, asks, exponents) as a receiver has them."""
        self.pipeline.encoder.flush()
        view, = self.receiver.views()
        definition = view.definition
        sides = []
        for side in (view.bids, view.asks):
            sides.append([(Decimal(to_text(abs(key), -definition.price_exponent)),
                           Decimal(to_text(quantity, -definition.quantity_exponent)))
                          for key, quantity in zip(side.keys, side.quantities)])
        return (view.state, *sides, (definition.price_exponent, definition.quantity_exponent))


def test_more_than_eight_decimals_change_the_exponent_and_lose_no_digit():
    feed = Feed()
    assert feed.diff([("0.00000012", "1000.0")]) is None
    assert feed.snapshot([("0.00000012", "1000.0")], [("0.00000014", "5.0")]) is None
    assert feed.heard() == (LIVE, [(Decimal("0.00000012"), 1000)], [(Decimal("0.00000014"), 5)], (-8, -8))
    assert feed.diff([("0.0000001234567", "3.0")]) is None
    assert feed.heard() == (LIVE, [(Decimal("0.0000001234567"), 3), (Decimal("0.00000012"), 1000)],
                            [(Decimal("0.00000014"), 5)], (-13, -8))
    entry, = feed.pipeline.publisher.entries
    assert entry.epoch == 2 and feed.receiver.errors == {}
    assert feed.pipeline.recoveries["binance_spot"].links[0].gaps == 0
    assert feed.diff([("0.0000001234567", "0.000000000001")]) is None
    assert feed.heard()[1][0] == (Decimal("0.0000001234567"), Decimal("0.000000000001"))
    assert feed.heard()[3] == (-13, -12)


def test_quantities_of_thirteen_whole_digits():
    feed = Feed()
    feed.diff([("0.5", "1234567890123.5")])
    feed.snapshot([("0.5", "1234567890123.5")], [("0.6", "1.5")])
    assert feed.heard() == (LIVE, [(Decimal("0.5"), Decimal("1234567890123.5"))], [(Decimal("0.6"), Decimal("1.5"))],
                            (-8, -1))
    feed = Feed()                                          # and where the book was live before
    feed.diff([("0.5", "3.5")])
    feed.snapshot([("0.5", "3.5")], [("0.6", "1.5")])
    feed.diff([("0.5", "1234567890123.5")])
    assert feed.heard() == (LIVE, [(Decimal("0.5"), Decimal("1234567890123.5"))], [(Decimal("0.6"), Decimal("1.5"))],
                            (-8, -1))
    assert feed.pipeline.publisher.entries[0].epoch == 2


def test_digits_that_no_exponent_holds_make_the_book_stale_not_wrong():
    feed = Feed()
    feed.diff([("61837.64", "1234567.5")])
    feed.snapshot([("61837.64", "1234567.5")], [("61838.00", "2.5")])
    assert feed.heard()[0] == LIVE
    error = feed.diff([("61837.640000000000000001", "1.0")])
    assert "64 bits" in str(error) and feed.heard()[0] == STALE
    assert feed.diff([("61837.65", "1.5")]) is None and feed.orders == 2
    assert feed.snapshot([("61837.65", "1.5")], []) is None
    assert feed.heard()[:2] == (LIVE, [(Decimal("61837.65"), Decimal("1.5"))])


@pytest.mark.parametrize("price, quantity", [("0.000000000000000001", "1.0"), ("1.5", "0.000000000000000001"),
                                             ("0.00000000000001", "0.00000000000001"), ("1.5", "92233720368547.5")])
def test_decimals_that_the_book_cannot_follow_make_it_stale_not_wrong(price, quantity):
    """The message itself fits, but with its decimals the levels that are there would not."""
    feed = Feed()
    feed.diff([("61837.64", "1234567.5")])
    feed.snapshot([("61837.64", "1234567.5")], [("61838.00", "2.5"), ("99999999", "50000000000")])
    assert feed.heard()[0] == LIVE
    assert feed.diff([(price, quantity)]) is None
    state, bids, _, _ = feed.heard()
    assert state != LIVE or (Decimal(price), Decimal(quantity)) in bids
    feed.diff([("61837.64", "2.5")])
    assert feed.heard()[0] != LIVE or (Decimal("61837.64"), Decimal("2.5")) in feed.heard()[1]
    assert feed.receiver.errors == {}


def test_a_snapshot_that_cannot_be_read_is_ordered_again():
    feed = Feed()
    feed.diff([("0.5", "1.0")])
    instrument = feed.pipeline.instruments.all[0]
    for number, body in enumerate((b"<html>", b'{"code":-1003,"msg":"Too many requests"}',
                                   b'{"lastUpdateId":101,"bids":[["-1","1"]],"asks":[]}'), 1):
        assert feed.orders == number
        assert feed.pipeline.decode_snapshot(feed.venue, instrument, body, 5) is not None
        feed.diff([("0.5", "1.0")])
        feed.diff([("0.5", "2.0")])
    assert feed.pipeline.bad_messages == {"binance_spot": 3} and feed.heard()[0] != LIVE
    assert feed.snapshot([("0.5", "2.0")]) is None and feed.heard()[0] == LIVE


# -- anything at all ----------------------------------------------------------------------------------------


def storms_of_garbage(name, count, seed):
    """Many short ones: a message of many decimals may end an instrument for good, since its prices fit no more."""
    rng = dice(seed)
    streams = [messages for messages in samples(name).values()]
    results = [storm_of_garbage(name, 250, rng, streams) for _ in range(count // 250)]
    refused, packets, snapshots = map(sum, zip(*results))
    print(f"{name}: {count} messages, {refused} refused, {packets} packets, {snapshots} snapshots")
    assert refused > count / 4 and snapshots > count / 250


def storm_of_garbage(name, count, rng, streams):
    """Clean and mutated messages through the whole pipeline: errors are returned, never raised; packets stay ours."""
    feed = Feed(name)
    pipeline, venue = feed.pipeline, feed.venue
    errors = 0
    for number in range(count):
        messages = rng.choice(streams)
        payload = rng.choice(messages)
        if rng.random() < 0.8:
            payload = rng.choice(MUTATIONS)(rng, payload)
        _, error = pipeline.decode(venue, payload, number)
        errors += error is not None
        if rng.random() < 0.04 and len(pipeline.instruments):      # a snapshot, at times a mutated one
            instrument = pipeline.instruments.all[rng.randrange(len(pipeline.instruments))]
            buffer = pipeline.recoveries[name].link(instrument).buffer
            body = b'{"lastUpdateId":%d,"bids":[["1.5","2.5"]],"asks":[["1.75","3.25"]]}' % (
                buffer[-1][1] if buffer else rng.randrange(10**12))
            if rng.random() < 0.3:
                body = rng.choice(MUTATIONS)(rng, body)
            pipeline.decode_snapshot(venue, instrument, body, number)
        if rng.random() < 0.01:
            pipeline.publisher.refresh()
        if rng.random() < 0.002:
            pipeline.recoveries[name].disconnect(list(pipeline.instruments), number)
    pipeline.encoder.end()
    heard = feed.receiver
    assert heard.errors == {} and heard.gap_count == 0 and heard.mismatches == 0 and heard.crossed == 0
    for entry in pipeline.publisher.entries:
        entry.book.check()
        instrument = entry.instrument
        for side in entry.book.top():
            assert all(price * instrument.price_factor <= INT64_MAX for price in side[::2])
            assert all(0 < quantity * instrument.quantity_factor <= INT64_MAX for quantity in side[1::2])
    return errors, heard.packets, heard.by_type["snapshot"]


@pytest.mark.parametrize("name", BINANCE)
def test_garbage_stops_nothing(name):
    storms_of_garbage(name, 2_000, seed=71)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BINANCE)
def test_garbage_stops_nothing_long(name, seed):
    storms_of_garbage(name, 12_500, seed=700 + seed)


def test_one_message_with_too_many_decimals_does_not_kill_its_instrument():
    """It widens the instrument until normal numbers do not fit; then it is STALE, narrowed, and live after a resync."""
    pipeline = Pipeline(lambda datagram: None, lambda: 1, session=1)
    venue = pipeline.venue("binance_spot", discover=True)

    def diff(first, last, price="61837.64000000"):
        text = ('{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1723161255208,"s":"BTCUSDT","U":%d,"u":%d,'
                '"b":[["%s","1.50000000"]],"a":[]}}' % (first, last, price))
        return pipeline.decode(venue, text.encode(), 1)[1]

    def snapshot(last):
        text = '{"lastUpdateId":%d,"bids":[["61837.00000000","1.00000000"]],"asks":[["61839.00000000","1.00000000"]]}' % last
        return pipeline.decode_snapshot(venue, pipeline.instruments.all[0], text.encode(), 1)

    assert diff(1, 2) is None and snapshot(2) is None
    entry = pipeline.publisher.entries[0]
    assert entry.state == LIVE
    diff(3, 3, "0.000000000000000001")
    instrument = pipeline.instruments.all[0]
    assert instrument.price_decimals == 18
    assert isinstance(diff(4, 4), RangeError)
    assert (entry.state, entry.reason, instrument.price_decimals) == (STALE, "range", 8)
    assert diff(5, 5) is None and snapshot(5) is None and diff(6, 6) is None
    assert entry.state == LIVE
    assert entry.book.top() == ([6183764000000, 150000000, 6183700000000, 100000000], [6183900000000, 100000000])
    assert instrument.price_exponent == -8


def test_a_book_with_too_many_levels_is_given_up(monkeypatch):
    monkeypatch.setattr(book, "MAX_LEVELS", 100)
    desk = Desk()
    coin, = desk.instruments
    for _ in range(2):
        desk.publisher.snapshot(coin, 1, 0, 1, [10_000, 5], [10_001, 6])
        desk.publisher.increment(coin, 2, 0, 2, [n for price in range(1, 200) for n in (price, 1)], [])
        assert (desk.view().state, desk.view().reason) == (STALE, "too_many_levels")
    desk.publisher.snapshot(coin, 3, 0, 3, [n for price in range(1, 200) for n in (price, 1)], [])
    assert desk.view().state == STALE and desk.resyncs[-1][1] == "too_many_levels"
