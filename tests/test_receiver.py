"""The receiver against plain truth: a publisher that remembers every book at every sequence, and a bad network."""

import heapq
import random

import pytest

from feeder import packet, receiver, stream as stream_module
from feeder.instrument import Instrument
from feeder.message import LIVE, REASON_CODES, STALE, SYNCING
from feeder.packet import EDITION_SHIFT, INCREMENT, LAST, REFRESH, SNAPSHOT, Encoder, LoopEncoder, OrderBookItem, Trade
from feeder.publish import Publisher as RealPublisher
from feeder.receiver import KINDS, Gap, Receiver, exhaust
from feeder.seal import Seal

SECOND = 10**9
START = 1_700_000_000 * SECOND


class Publisher:
    """Real Encoder output of a random market, and the truth beside it.

    `history[instrument_id]` is [(sequence after the event's last message, state, bids, asks, price exponent)]; `loops`
    are the datagrams of its snapshot loop.
    """

    def __init__(self, session, dice, count=4, depth=5, packet_bytes=256, channel=3, seal=None):
        self.dice = dice
        self.depth = depth
        self.now_ns = START
        self.datagrams = []
        self.encoder = Encoder(session, channel, lambda view: self.datagrams.append(bytes(view)),
                               lambda: self.now_ns, packet_bytes, seal)
        self.loops = []
        self.loop = LoopEncoder(session, channel, lambda view: self.loops.append(bytes(view)), lambda: self.now_ns,
                                packet_bytes, seal, lambda: self.encoder.sequence + self.encoder.count)
        self.rounds = 0
        self.editions = [0] * count
        self.instruments = [Instrument(number, "binance_spot", f"COIN{number}USDT", f"COIN{number}/USDT", 2, 3,
                                       depth if number else 0) for number in range(count)]
        self.books = [({}, {}) for _ in range(count)]
        self.epochs = [0] * count
        self.states = [SYNCING] * count
        self.history = [[(1, SYNCING, [], [], -8)] for _ in range(count)]

    def window(self, number):
        bids, asks = self.books[number]
        depth = self.instruments[number].depth or None
        return ([(price, bids[price]) for price in sorted(bids, reverse=True)][:depth],
                [(price, asks[price]) for price in sorted(asks)][:depth])

    def remember(self, number):
        encoder = self.encoder
        self.history[number].append((encoder.sequence + encoder.count, self.states[number], *self.window(number),
                                     self.instruments[number].price_exponent))

    def flags(self, number):
        return self.editions[number] << EDITION_SHIFT

    def define(self):
        for number in range(len(self.instruments)):
            self.define_one(number, self.encoder)

    def define_one(self, number, encoder):
        encoder.definition(self.instruments[number], tick=10**6, lot=10**5, flags=LAST | self.flags(number))

    def snapshot(self, number, more_flags=0):
        bids, asks = self.window(number)
        self.encoder.levels(SNAPSHOT, number, self.states[number], self.epochs[number], 77, START, self.now_ns,
                            flat(bids), flat(asks), more_flags | self.flags(number))
        self.remember(number)

    def repeat(self, number):
        """What the snapshot loop says of an instrument now."""
        self.define_one(number, self.loop)
        state, epoch = self.states[number], self.epochs[number]
        if state == LIVE:
            bids, asks = self.window(number)
            self.loop.levels(SNAPSHOT, number, state, epoch, 77, 0, self.now_ns, flat(bids), flat(asks),
                             REFRESH | self.flags(number))
        else:
            self.loop.status(number, state, epoch, 5, self.now_ns, REASON_CODES["gap"], flags=LAST | self.flags(number))
        self.loop.flush()

    def round(self, *numbers):
        """A round of the loop, at one moment."""
        self.rounds += 1
        self.loop.round(self.rounds, len(self.instruments))
        for number in numbers or range(len(self.instruments)):
            self.repeat(number)

    def rescale(self, number):
        """Exponents change: the book is not live until it is told anew."""
        if self.states[number] == LIVE:
            self.go_stale(number)
        self.instruments[number].price_exponent = -17 - self.instruments[number].price_exponent      # -8 and -9 in turn
        self.editions[number] = (self.editions[number] + 1) % 8
        self.define_one(number, self.encoder)
        self.go_live(number)

    def go_live(self, number):
        dice = self.dice
        self.books[number] = ({dice.randrange(1, 50): dice.randrange(1, 9) for _ in range(8)},
                              {dice.randrange(51, 99): dice.randrange(1, 9) for _ in range(8)})
        self.states[number] = LIVE
        self.epochs[number] += 1
        self.snapshot(number)

    def go_stale(self, number):
        self.states[number] = STALE
        self.encoder.status(number, STALE, self.epochs[number], 5, self.now_ns, REASON_CODES["gap"],
                            flags=LAST | self.flags(number))
        self.remember(number)

    def change(self, number):
        dice = self.dice
        before = self.window(number)
        for side, low, high in ((0, 1, 50), (1, 51, 99)):
            for _ in range(dice.randrange(5)):
                self.books[number][side][dice.randrange(low, high)] = dice.randrange(9)
        for side in self.books[number]:
            for price in [price for price, quantity in side.items() if not quantity]:
                del side[price]
        changes = map(differences, before, self.window(number))
        self.encoder.levels(INCREMENT, number, LIVE, self.epochs[number], self.encoder.sequence, START,
                            self.now_ns, *changes, self.flags(number))
        self.remember(number)

    def step(self):
        self.now_ns += 1_000_000
        number = self.dice.randrange(len(self.books))
        choice = self.dice.random()
        common = (number, self.states[number], self.epochs[number], 9, START, self.now_ns)
        if self.states[number] != LIVE or choice < 0.01:
            self.go_live(number)
        elif choice < 0.02:
            self.go_stale(number)
        elif choice < 0.15:
            self.encoder.trade(*common, 12345, 5, 7, 1, LAST | self.flags(number))
        elif choice < 0.25:
            self.encoder.bbo(*common, 5, 7, 8, 9, LAST | self.flags(number))
        elif choice < 0.27:
            self.refresh()
        elif choice < 0.30:
            self.encoder.heartbeat()
        elif choice < 0.5:
            self.encoder.flush()
        else:
            self.change(number)

    def refresh(self):
        self.define()
        for number in range(len(self.books)):
            self.snapshot(number, REFRESH)

    def truth(self, number, expected):
        """Return (state, bids, asks, price exponent) for someone who has everything before sequence `expected`."""
        return [entry for entry in self.history[number] if entry[0] <= expected][-1][1:]


def flat(levels):
    return [value for level in levels for value in level]


def differences(old, new):
    """Return the flat changes that turn the window `old` into `new`."""
    before, after = dict(old), dict(new)
    return flat([(price, 0) for price in before if price not in after] +
                [(price, quantity) for price, quantity in new if before.get(price) != quantity])


def bad_network(datagrams, dice, loss, duplication, reorder):
    """Yield the datagrams with some lost, some twice, some up to five places late."""
    waiting = []
    for at, datagram in enumerate(datagrams):
        if dice.random() >= loss:
            delay = dice.randrange(1, 6) if dice.random() < reorder else 0
            waiting.append((at + delay, at, datagram))
            if dice.random() < duplication:
                waiting.append((at + dice.randrange(3), at, datagram))
        for item in sorted(item for item in waiting if item[0] <= at):
            waiting.remove(item)
            yield item[2]
    for item in sorted(waiting):
        yield item[2]


def check_books(heard, publisher):
    """Assert that whatever is shown live is true; return how many were."""
    live = 0
    stream = heard.streams[publisher.encoder.channel, publisher.encoder.session]
    for number, view in stream.views.items():
        if view.state == LIVE:
            check_view(view, publisher, stream.expected)
            live += 1
    return live


def check_view(view, publisher, expected):
    state, bids, asks, price_exponent = publisher.truth(view.instrument_id, expected)
    assert state == LIVE
    assert view.bids.levels() == bids
    assert view.asks.levels() == asks
    assert view.definition.price_exponent == price_exponent


@pytest.mark.parametrize("loss, duplication, reorder", [
    (0, 0, 0), (0.02, 0, 0), (0, 0.05, 0), (0, 0, 0.05), (0.02, 0.03, 0.03), (0.3, 0.2, 0.2)])
@pytest.mark.parametrize("packet_bytes", [256, 1472])
def test_never_live_while_wrong_and_every_message_accounted_for(loss, duplication, reorder, packet_bytes):
    seed = hash((loss, duplication, reorder, packet_bytes)) & 0xFFFF
    print(f"seed {seed}")
    dice = random.Random(seed)
    publisher = Publisher(START, dice, packet_bytes=packet_bytes)
    publisher.refresh()
    for _ in range(1_500):
        publisher.step()
    calm_from = len(publisher.datagrams)
    publisher.define()
    for number in range(len(publisher.books)):
        publisher.go_live(number)
    publisher.encoder.heartbeat()

    heard = Receiver()
    got = set()                                   # every sequence that came, plainly
    duplicates = lives = late = joined = 0
    gaps = []
    expected = None
    delivered = list(bad_network(publisher.datagrams[:calm_from], dice, loss, duplication, reorder))
    for datagram in delivered + publisher.datagrams[calm_from:]:
        view = memoryview(bytearray(datagram))
        packet_in = packet.decode(view)
        first, count = packet_in.sequence, packet_in.message_count
        covered = set(range(first, first + count))
        if expected is None:
            expected = joined = first
        if first > expected:
            gaps.append((expected, first - 1))
        if first + count <= expected and count:
            if covered <= got or first < joined:
                duplicates += 1
            else:
                late += count
        if first >= joined:
            got |= covered
        expected = max(expected, first + count)
        heard.receive(view, publisher.now_ns)
        lives += check_books(heard, publisher)
    assert [(gap.first, gap.last) for gap in heard.gaps] == gaps[-receiver.MAX_GAPS:]
    assert heard.gap_count == len(gaps)
    assert heard.lost == expected - joined - len(got)
    assert heard.messages == len(got)
    assert (heard.duplicates, heard.late) == (duplicates, late)
    assert heard.mismatches == heard.crossed == 0, heard.last_mismatch
    assert heard.errors == {}
    assert lives > (len(delivered) if loss < 0.1 else 100)     # it is not enough to call everything stale
    assert check_books(heard, publisher) == len(publisher.books)
    if not loss and not reorder:
        assert heard.gap_count == heard.lost == heard.ignored == heard.undefined == 0
        assert heard.by_type["increment"] > 100


@pytest.mark.parametrize("depth", [1, 3, 20, 0])
@pytest.mark.parametrize("packet_bytes", [256, 1472])
def test_books_of_the_real_publisher(depth, packet_bytes):
    seed = 100 + depth
    print(f"seed {seed}")
    dice = random.Random(seed)
    heard = Receiver()
    encoder = Encoder(START, 0, lambda view: heard.receive(view, START), lambda: START, packet_bytes)
    publisher = RealPublisher(encoder, lambda *_: None)
    instrument = Instrument(0, "okx", "A-B", None, 2, 3, depth)
    publisher.define(instrument, 1, 1)
    book = publisher.entries[0].book
    for event in range(2_000):
        bids, asks = ([value for _ in range(dice.randrange(8)) for value in (
            low + int(abs(dice.gauss(0, 1)) * spread), dice.choice((0, 0, 1, 2, 3)))]
            for low, spread in ((500, -dice.choice((5, 60, 400))), (501, dice.choice((5, 60, 400)))))
        if event % 500 == 0:
            publisher.snapshot(instrument, event, START, START, bids, asks)
        else:
            publisher.increment(instrument, event, START, START, bids, asks)
        if event % 7 == 0:
            publisher.refresh()
        encoder.flush()
        view = heard.views()[0]
        assert view.state == publisher.entries[0].state == LIVE
        assert event % 7 or view.last_venue_sequence == event
        for side, truth in ((view.bids, book.bids), (view.asks, book.asks)):
            flat_truth = truth.top()
            assert len(side) >= min(depth or len(truth), len(truth))
            assert flat(side.levels()) == [
                value * (10**6, 10**5)[at % 2] for at, value in enumerate(flat_truth[:2 * len(side)])]
    assert heard.mismatches == heard.crossed == heard.lost == 0 and view.refreshes == 286


def pair(**options):
    publisher = Publisher(START, random.Random(1), packet_bytes=1472, **options)
    heard = Receiver()

    def deliver(*skip):
        publisher.encoder.flush()
        for at, datagram in enumerate(publisher.datagrams):
            if at not in skip:
                heard.receive(datagram, publisher.now_ns + 5_000)
        publisher.datagrams.clear()
    return publisher, heard, deliver


def test_gap_makes_every_book_of_the_channel_stale_until_its_own_snapshot():
    publisher, heard, deliver = pair(count=2)
    publisher.define()
    publisher.go_live(0)
    publisher.go_live(1)
    deliver()
    views = heard.views()
    assert [view.state for view in views] == [LIVE, LIVE]
    publisher.change(0)
    publisher.encoder.flush()
    publisher.change(1)
    deliver(0)
    assert heard.gaps[0] == Gap(3, START, 5, 5, publisher.now_ns + 5_000)
    assert [(view.state, view.reason) for view in views] == [(STALE, "gap")] * 2
    assert heard.ignored == 1
    publisher.snapshot(1, REFRESH)
    deliver()
    assert [view.state for view in views] == [STALE, LIVE]
    publisher.change(1)
    publisher.change(0)
    publisher.snapshot(0, REFRESH)
    deliver()
    assert check_books(heard, publisher) == 2
    assert heard.lost == 1 and heard.mismatches == 0


def test_a_heartbeat_shows_a_gap_at_the_end():
    publisher, heard, deliver = pair()
    publisher.define()
    deliver()
    publisher.go_live(0)
    publisher.encoder.heartbeat()
    deliver(0)
    assert (heard.gap_count, heard.lost, heard.heartbeats) == (1, 1, 1)


def test_refresh_that_differs_is_a_mismatch_and_is_adopted():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.go_live(0)
    publisher.snapshot(0, REFRESH)
    deliver()
    assert heard.mismatches == 0 and heard.views()[0].events == 1
    publisher.books[0][0][49] = 999
    publisher.snapshot(0, REFRESH)
    deliver()
    assert heard.mismatches == 1
    assert "binance_spot:COIN0USDT" in heard.last_mismatch
    assert check_books(heard, publisher) == 1


def test_late_joiner_takes_the_refresh_and_counts_what_it_could_not_use():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.go_live(0)
    publisher.encoder.flush()
    publisher.datagrams.clear()
    publisher.change(0)
    publisher.encoder.trade(0, LIVE, 1, 9, START, START, 1, 5, 7, 2)
    deliver()
    view = heard.views()[0]
    assert (view.state, view.reason, view.trades, view.label) == (SYNCING, "no definition", 1, "#0")
    assert (heard.gap_count, heard.undefined, heard.ignored) == (0, 2, 1)
    publisher.refresh()
    deliver()
    assert view.state == LIVE and check_books(heard, publisher) == 1
    assert heard.find("coin0usdt") == heard.find("COIN0/USDT") == heard.find("binance_spot:COIN0USDT") == [view]


def test_new_session_resets_and_counts_from_one():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.go_live(0)
    deliver()
    old = publisher.encoder
    publisher.encoder = Encoder(START + SECOND, 3, old.emit, old.clock_ns)
    publisher.define()
    publisher.encoder.flush()
    publisher.encoder.trade(0, LIVE, 1, 9, START, START, 1, 5, 7, 2)
    deliver(0)                                          # its first packet is lost
    assert heard.gaps[0][:4] == (3, START + SECOND, 1, 1)
    assert heard.views()[0].state == SYNCING
    assert [session.number for session in heard.sessions] == [START, START + SECOND]
    old.heartbeat()                                     # a straggler of the old one
    deliver()
    assert heard.stragglers == 1 and heard.session_count == 2


def test_end_and_silence_put_books_out_of_live():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.go_live(0)
    deliver()
    view = heard.views()[0]
    exhaust(heard.tick(publisher.now_ns + SECOND))
    assert view.state == LIVE
    exhaust(heard.tick(publisher.now_ns + 10 * SECOND))
    exhaust(heard.tick(publisher.now_ns + 11 * SECOND))
    assert (view.state, view.reason, heard.silences) == (STALE, "silent", 1)
    publisher.encoder.heartbeat()
    deliver()
    assert view.state == LIVE                           # nothing was missed
    publisher.encoder.end()
    deliver()
    assert (view.state, view.reason, view.in_step) == (STALE, "session ended", True)
    assert heard.sessions[0].ended
    restarted = Encoder(START - SECOND, 3, publisher.encoder.emit, publisher.encoder.clock_ns)
    restarted.heartbeat()                               # a host whose clock was set back
    deliver()
    assert heard.session_count == 2 and heard.stragglers == 0


def test_status_and_states():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.go_live(0)
    publisher.go_stale(0)
    publisher.encoder.trade(0, LIVE, 1, 9, START, START, 1, 5, 7, 2)
    publisher.encoder.status(packet.ALL_INSTRUMENTS, STALE, 0, 0, 0, 3, connected=0, venue="okx", text="refused")
    deliver()
    view = heard.views()[0]
    assert view.state == STALE                          # live again only with a snapshot
    assert heard.venues["okx"].text == "refused"
    publisher.go_live(0)
    deliver()
    assert view.state == LIVE and view.epoch == 2


def test_crossed_book_is_counted_and_locked_is_not():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.books[0] = ({50: 1}, {50: 1})
    publisher.states[0] = LIVE
    publisher.snapshot(0)
    deliver()
    assert heard.crossed == 0
    publisher.books[0] = ({51: 1}, {50: 1})
    publisher.snapshot(0)
    deliver()
    assert heard.crossed == heard.views()[0].crossed == 1


def test_part_of_an_event_without_its_beginning_is_not_applied():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.go_live(0)
    deliver()
    view = heard.views()[0]
    encoder = publisher.encoder
    at = encoder.claim(packet.MESSAGE.size)
    packet.MESSAGE.pack_into(encoder.buffer, at, SNAPSHOT, 40, 0, 1, 1, 1, LAST, LIVE, 0, 1)
    encoder.commit(packet.MESSAGE.size)
    deliver()
    assert (view.state, heard.ignored) == (STALE, 1)


def test_new_exponents_wait_for_a_snapshot():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.go_live(0)
    deliver()
    view = heard.views()[0]
    publisher.encoder.definition(publisher.instruments[0], tick=1, lot=1)
    deliver()
    assert view.state == LIVE
    publisher.instruments[0].price_exponent = -9
    publisher.define()
    deliver()
    assert view.state == SYNCING and view.bids.levels() == []


def test_bad_datagrams_are_counted_by_reason_and_bounded(monkeypatch):
    monkeypatch.setattr(receiver, "MAX_REASONS", 3)
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    deliver()
    good = bytearray(b"FDR1") + bytes(60)
    for size in range(5):
        assert heard.receive(bytes(size), START) is None
    heard.receive(b"?" * 64, START)
    heard.receive(bytes(good), START)
    good[4] = 1
    heard.receive(bytes(good), START)
    assert heard.errors == {"datagram of N bytes, a packet header has N": 5, "magic is N, expected N": 1,
                            "packet version N, this reads version N": 1, "other": 1}


def test_overlapping_packet_is_an_error_and_shows_as_a_gap_later():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    deliver()
    publisher.encoder.sequence = 1
    publisher.define()
    publisher.define()
    deliver()
    assert heard.errors == {"packet overlaps the one before it": 1}
    publisher.encoder.heartbeat()
    deliver()
    assert heard.gap_count == 1


def test_bounds(monkeypatch):
    monkeypatch.setattr(receiver, "MAX_INSTRUMENTS", 2)
    monkeypatch.setattr(receiver, "MAX_STREAMS", 1)
    monkeypatch.setattr(receiver, "MAX_LEVELS", 3)
    publisher, heard, deliver = pair(count=3)
    publisher.define()
    publisher.encoder.trade(2, LIVE, 1, 9, START, START, 1, 5, 7, 2)
    publisher.go_live(0)                                # of unlimited depth
    publisher.encoder.flush()
    other = Encoder(START, 4, publisher.encoder.emit, publisher.encoder.clock_ns)
    other.heartbeat()
    deliver()
    assert heard.errors == {"more than N instruments in a stream": 2, "more than N streams": 1,
                            "more than N levels on a side": 1}
    assert len(heard.views()) == 2 and heard.views()[0].state == SYNCING


@pytest.mark.parametrize("hold_ns", [0, 1_000, 10**12])
def test_random_bytes_raise_nothing(hold_ns):
    seed = 8
    print(f"seed {seed}")
    dice = random.Random(seed)
    publisher = Publisher(START, dice)
    for _ in range(40):
        publisher.step()
        publisher.repeat(dice.randrange(4))
    publisher.encoder.end()
    heard = Receiver(hold_ns=hold_ns)
    for at in range(3_000):
        data = bytearray(dice.choice(publisher.datagrams + publisher.loops))
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        data = data[:dice.choice((len(data), len(data), dice.randrange(len(data))))]
        exhaust(heard.heard(data, START + 100 * at, dice.choice((0, 1, None))))
        if at % 50 == 0:
            exhaust(heard.tick(START + 100 * at))
            assert len(heard.wanted(START + 100 * at)) <= receiver.MAX_WANTED
        for stream in heard.streams.values():
            stream.order.check()
    assert heard.errors and heard.loop_packets and heard.duplicates
    for view in heard.views():
        assert view.state in (SYNCING, LIVE, STALE) and view.reason


def test_latencies():
    publisher, heard, deliver = pair(count=1)
    publisher.define()
    publisher.encoder.trade(0, LIVE, 1, 9, START, START - 1_000_000, 1, 5, 7, 2)
    publisher.encoder.bbo(0, LIVE, 1, 9, START, 0, 5, 7, 6, 8)
    deliver()
    assert heard.send_latency.max == 5_000
    assert (heard.venue_latency.count, heard.venue_latency.max) == (1, 1_005_000)
    assert heard.views()[0].bbo.ask == OrderBookItem(6, 8)


# -- lines, holds, asking again, the snapshot loop -------------------------------------------------------------


class Judge:
    """Takes Heard one by one; each must be true the moment it comes, and in order."""

    def __init__(self, listener, publishers):
        self.listener = listener
        self.publishers = {(each.encoder.channel, each.encoder.session): each for each in publishers}
        self.at = {}                               # stream key -> number of the last event
        self.counts = dict.fromkeys(range(len(receiver.KINDS)), 0)
        self.taken = self.lives = 0

    def take(self, all_heard):
        for heard in all_heard:
            self.counts[heard.kind] += 1
            stream = heard.stream
            if stream is None:
                continue
            publisher = self.publishers[stream.key]
            if heard.kind == receiver.BOOK:
                assert heard.view.in_step and heard.message.flags & LAST
                is_loop = heard.message.flags & REFRESH and heard.sequence == stream.expected
                self.taken += bool(is_loop)
                check_view(heard.view, publisher, heard.sequence + (not is_loop))
                if heard.message.type == SNAPSHOT:
                    assert (heard.view.bids.flat(), heard.view.asks.flat()) == (heard.message.bids, heard.message.asks)
            if heard.kind in (receiver.GAP, receiver.TRADE, receiver.BBO):
                assert heard.sequence > self.at.get(stream.key, 0)
                self.at[stream.key] = heard.sequence if heard.kind != receiver.GAP else heard.message.last
        for stream in self.listener.streams.values():
            stream.order.check()
            session = stream.session
            assert session.messages - session.late + session.missed == stream.expected - session.first
            for view in stream.views.values():
                if view.state == LIVE:
                    check_view(view, self.publishers[stream.key], stream.expected)
                    self.lives += 1
        kept = sum(receiver.weight(kept.message) for stream in self.listener.streams.values()
                   for view in stream.views.values() for kept in view.kept)
        ahead = sum(receiver.weight(ahead[2]) for stream in self.listener.streams.values() for ahead in stream.ahead)
        assert self.listener.kept_numbers == kept + ahead


def storm(seed):
    """One publisher on one or two lines and a loop, all bad; perhaps somebody who has every packet to ask for."""
    dice = random.Random(seed)
    publisher = Publisher(START, dice, packet_bytes=dice.choice((256, 256, 1472)))
    line_count = dice.choice((1, 1, 2, 3))
    hold_ns = dice.choice((0, 0, 3_000_000, 20_000_000))
    losses = [dice.choice((0, 0.01, 0.1, 0.3)) for _ in range(line_count)]
    loop_loss, jitter_ns = dice.choice((0, 0.2)), dice.choice((1, 2_000_000, 9_000_000))
    asks = hold_ns and dice.random() < 0.5
    heard = Receiver(hold_ns=hold_ns, keep=dice.choice((0, 2, 512)))
    judge = Judge(heard, [publisher])
    queue, given, order = [], {}, 0                # (when, order, datagram, line)

    def send(datagram, line, loss, calm=False):
        nonlocal order
        order += 1
        if calm or dice.random() >= loss:
            delay_ns = 1 if calm else dice.randrange(1, jitter_ns + 1)
            heapq.heappush(queue, (publisher.now_ns + delay_ns, order, datagram, line))

    def deliver(until_ns):
        while queue and queue[0][0] <= until_ns:
            now_ns, _, datagram, line = heapq.heappop(queue)
            while heard.deadline_ns is not None and heard.deadline_ns <= now_ns:
                judge.take(heard.tick(heard.deadline_ns))
            judge.take(heard.heard(memoryview(bytearray(datagram)), now_ns, line))
            for channel, session, first, last in heard.wanted(now_ns) if asks else ():
                assert (channel, session) == publisher.loop_key
                for number in [number for number in given if first <= number <= last]:
                    again = bytearray(given[number])
                    again[5] |= packet.RETRANSMITTED
                    if dice.random() < 0.2:
                        judge.take(heard.heard(again, now_ns, None))
                if dice.random() < 0.1:
                    judge.take(heard.give_up(channel, session, first, last, now_ns))

    publisher.loop_key = 3, START
    for step in range(900):
        is_calm = step >= 800
        if step == 800:
            queue = [item for item in queue if item[3] is not None]
        publisher.step()
        if dice.random() < 0.01:
            publisher.rescale(dice.randrange(4))
        if dice.random() < 0.15:
            publisher.repeat(dice.randrange(4))
        if is_calm and step % 20 == 0:
            publisher.round()
        for datagram in publisher.datagrams:
            given[packet.decode(datagram).sequence] = datagram
            for line, loss in enumerate(losses):
                send(datagram, line, loss, is_calm)
        for datagram in publisher.loops:
            for line in range(dice.choice((1, line_count))):
                send(datagram, line, loop_loss, is_calm)
        publisher.datagrams.clear()
        publisher.loops.clear()
        deliver(publisher.now_ns)
    publisher.encoder.heartbeat()
    publisher.round()
    for datagram in publisher.datagrams + publisher.loops:
        send(datagram, 0, 0, True)
    deliver(publisher.now_ns + 10**9)
    judge.take(heard.tick(publisher.now_ns + 10**9))
    assert check_books(heard, publisher) == publisher.states.count(LIVE)
    assert [stream.expected for stream in heard.streams.values()] == [publisher.encoder.sequence]
    assert heard.mismatches == heard.crossed == 0, heard.last_mismatch
    assert heard.errors == {} and heard.kept_numbers == 0
    return heard, judge


@pytest.mark.parametrize("seed", range(24))
def test_storm(seed):
    print(f"seed {seed}")
    storm(seed)


def collect(heard_by, *datagrams, now_ns=START, line=0):
    """Give datagrams to a receiver; return [(kind, sequence), ...] of what it hands on."""
    return [pair for datagram in datagrams for pair in told(heard_by.heard(datagram, now_ns, line))]


def told(all_heard):
    return [(KINDS[heard.kind], heard.sequence) for heard in all_heard]


def stamped(datagram, flag=packet.RETRANSMITTED):
    data = bytearray(datagram)
    data[5] |= flag
    return bytes(data)


def published(count=1, **options):
    """Return a publisher and its first packets: definitions and books, one packet an event from there on."""
    publisher = Publisher(START, random.Random(1), count=count, packet_bytes=1472, **options)
    publisher.define()
    for number in range(count):
        publisher.go_live(number)
    publisher.encoder.flush()
    return publisher, publisher.datagrams


def changes(publisher, count):
    for _ in range(count):
        publisher.change(0)
        publisher.encoder.flush()


def test_what_is_heard_is_told_one_by_one_with_all_levels():
    publisher, datagrams = published()
    heard = Receiver()
    publisher.encoder.trade(0, LIVE, 1, 9, START, START, 1, 5, 7, 2)
    publisher.encoder.bbo(0, LIVE, 1, 9, START, START, 5, 7, 6, 8)
    publisher.go_stale(0)
    publisher.encoder.status(packet.ALL_INSTRUMENTS, STALE, 0, 0, 0, 3, connected=0, venue="okx")
    publisher.encoder.heartbeat()
    publisher.define()
    publisher.encoder.end()
    assert collect(heard, *datagrams) == [
        ("session", 1), ("definition", 1), ("book", 2), ("trade", 3), ("bbo", 4), ("state", 5), ("venue", 6),
        ("end", 8)]                                  # the definition again is nothing new


def test_a_split_event_is_told_once_whole():
    publisher = Publisher(START, random.Random(1), count=1, packet_bytes=256)
    publisher.define()
    publisher.books[0] = ({at: 1 for at in range(1, 40)}, {at: 1 for at in range(50, 90)})
    publisher.states[0], publisher.epochs[0] = LIVE, 1
    publisher.snapshot(0)
    publisher.encoder.trade(0, LIVE, 1, 9, START, START, 1, 5, 7, 2)
    publisher.encoder.flush()
    assert len(publisher.datagrams) > 5
    heard = Receiver()
    books = []
    for datagram in publisher.datagrams:
        for item in heard.heard(datagram, START):
            if item.kind == receiver.BOOK:
                books.append(item)
                assert item.view.bids.flat() == item.message.bids and item.view.asks.flat() == item.message.asks
            elif item.kind == receiver.TRADE:
                assert type(item.message) is Trade
    assert [(book.sequence, len(book.message.bids), len(book.message.asks)) for book in books] == [
        (publisher.encoder.sequence - 2, 78, 80)]


def test_of_two_lines_the_first_wins_and_losses_are_counted_for_each():
    publisher, datagrams = published()
    changes(publisher, 200)
    dice = random.Random(3)
    heard = Receiver(hold_ns=10**6)
    lost = [0, 0]
    for at, datagram in enumerate(datagrams):
        now_ns = START + at * 10**5
        for line, delay_ns in ((0, 0), (1, 5_000)):
            if 0 < at < 200 and dice.random() < (0.3, 0.1)[line] and not (line and missed):
                lost[line] += 1
                missed = True
                continue
            missed = False
            exhaust(heard.heard(datagram, now_ns + delay_ns, line))
    assert heard.gap_count == heard.lost == heard.late == 0
    assert check_books(heard, publisher) == 1
    first, second = heard.lines[0], heard.lines[1]
    assert [first.lost, second.lost] == lost and min(lost) > 5
    assert first.packets + lost[0] == second.packets + lost[1] == len(datagrams)
    assert (first.wins, second.wins) == (len(datagrams) - lost[0], lost[0])
    assert first.duplicates == 0 and second.duplicates == heard.duplicates == second.packets - lost[0]
    assert second.lag.count == second.duplicates - 1           # the first is not timed
    assert 4_900 < second.lag.percentile(50) < 5_100
    assert first.lag.count == 0 and first.sessions == second.sessions == {3: START}
    assert heard.streams[3, START].lines == [first, second]


def test_what_one_line_alone_carries_is_not_waited_for():
    publisher, datagrams = published()
    changes(publisher, 20)
    other, others = published(channel=4)
    changes(other, 20)
    heard = Receiver(hold_ns=SECOND, alone_ns=0)

    def lines_bring(number, *lines, after_s):
        return [kind for line in lines for kind, _ in collect(
            heard, (datagrams, others)[line // 2][number], now_ns=START + after_s * SECOND, line=line)]

    for number in range(4):                                  # lines 0 and 1 carry the one, 2 the other
        lines_bring(number, 0, 1, 2, after_s=number)
    assert lines_bring(5, 0, 2, after_s=4) == ["gap"]        # of line 2; the other one is waited for, and comes
    assert heard.gaps[0].channel == 4 and lines_bring(4, 1, after_s=4) == ["book", "book"]
    for number in range(6, 10):
        lines_bring(number, 0, after_s=number)
        exhaust(heard.tick(START + number * SECOND))
    assert heard.lines[1].silent and lines_bring(11, 0, after_s=10) == ["gap"]      # dead, it will not bring anything
    assert lines_bring(11, 1, after_s=10) == ["line_back"]
    assert lines_bring(13, 1, after_s=11) == [] and lines_bring(12, 0, after_s=11) == []       # out of step: kept

    heard = Receiver(hold_ns=SECOND, alone_ns=0)             # a second line may still be on its way
    assert lines_bring(0, 2, after_s=0) and not lines_bring(2, 2, after_s=3) and lines_bring(1, 2, after_s=3)
    assert heard.gap_count == 0


def test_a_line_falls_silent_and_comes_back_and_its_stream_lives_on():
    publisher, datagrams = published()
    heard = Receiver()
    for line in (0, 1):
        collect(heard, datagrams[0], line=line)
    datagrams.clear()
    changes(publisher, 10)
    found = []
    for at, datagram in enumerate(datagrams, 1):
        now_ns = START + at * SECOND
        found += collect(heard, datagram, now_ns=now_ns)
        if at == 8:
            found += collect(heard, datagram, now_ns=now_ns, line=1)
        found += told(heard.tick(now_ns + 1))
        assert heard.views()[0].state == LIVE and heard.lines[1].silent == (3 <= at < 8)
    assert [kind for kind, _ in found] == ["book"] * 3 + ["line_silent"] + ["book"] * 5 + ["line_back"] + ["book"] * 2
    assert heard.lines[1].lost == 7 and heard.silences == 0


def test_sessions_belong_to_lines_and_a_stream_is_over_when_they_all_have_gone():
    publisher, datagrams = published()
    changes(publisher, 6)
    heard = Receiver(hold_ns=SECOND)
    for line in (0, 1):
        collect(heard, datagrams[0], line=line)
    old = list(datagrams)
    datagrams.clear()
    restarted = Publisher(START + SECOND, random.Random(2), count=1, packet_bytes=1472)
    restarted.define()
    restarted.encoder.flush()
    restarted.go_live(0)
    restarted.encoder.flush()
    new = restarted.datagrams
    assert collect(heard, old[2], line=1) == []                           # old[1] is missing
    assert collect(heard, new[0], line=0) == [("session", 1), ("definition", 1)]
    assert collect(heard, old[1], line=0) == [] and heard.stragglers == 1
    assert collect(heard, old[1], line=1) == [("book", 3), ("book", 4)]   # that line is still there
    assert collect(heard, old[5], line=1) == []
    assert [view.state for view in heard.views()] == [LIVE, SYNCING]
    assert collect(heard, new[1], line=1) == [("gap", 5), ("end", 8), ("book", 2)]
    assert collect(heard, new[0], line=1) == [] and heard.duplicates == 2
    assert list(heard.streams) == [(3, START + SECOND)] and heard.lines[1].sessions == {3: START + SECOND}
    assert heard.lines[1].lost == 2 and heard.lost == 2 and check_books(heard, restarted) == 1


def test_a_line_lost_nothing_of_a_stream_from_before_it_was_heard_of():
    publisher, datagrams = published()
    changes(publisher, 20)
    other = Publisher(START + SECOND, random.Random(2), count=1, packet_bytes=1472)
    other.encoder.end()
    heard = Receiver()
    collect(heard, datagrams[8], other.datagrams[0])                     # two feeders at one address by mistake
    assert collect(heard, datagrams[12]) == [("session", 11), ("gap", 11)]
    assert heard.lines[0].lost == heard.lost == 3
    collect(heard, other.datagrams[0], line=1)
    collect(heard, datagrams[13], line=1)
    assert heard.lines[1].lost == 4                                      # of those that were heard of


def test_a_stream_that_was_left_and_fell_silent_is_dropped_and_may_go_on():
    publisher, datagrams = published()
    changes(publisher, 3)
    heard = Receiver()
    for line in (0, 1):
        collect(heard, datagrams[0], line=line)
    other = Publisher(START + SECOND, random.Random(2), count=1, packet_bytes=1472)
    other.encoder.heartbeat()
    collect(heard, other.datagrams[0])
    assert told(heard.tick(START + SECOND)) == [] and len(heard.streams) == 2
    assert told(heard.tick(START + 4 * SECOND)) == [("silent", 3), ("end", 3), ("silent", 1), ("line_silent", 0),
                                                    ("line_silent", 0)]
    assert list(heard.streams) == [(3, START + SECOND)]
    assert collect(heard, datagrams[2], now_ns=START + 5 * SECOND, line=1) == [
        ("session", 3), ("line_back", 0), ("gap", 3)]
    stream = heard.streams[3, START]
    assert stream.expected == 5 and stream.session.missed == 1


def test_two_publishers_are_two_streams():
    publisher, datagrams = published()
    other = Publisher(START + 5, random.Random(5), count=1, packet_bytes=1472)
    other.define()
    other.go_live(0)
    other.encoder.flush()
    heard = Receiver()
    for _ in range(30):
        changes(publisher, 1)
        changes(other, 1)
    for one, two in zip(datagrams, other.datagrams):
        collect(heard, one, line=0)
        collect(heard, two, line=1)
    assert heard.lost == heard.stragglers == heard.duplicates == 0 and heard.session_count == 2
    assert check_books(heard, publisher) == check_books(heard, other) == 1


def test_what_is_missing_is_waited_for_and_asked_for():
    publisher, datagrams = published()
    changes(publisher, 20)
    heard = Receiver(hold_ns=1_000)
    collect(heard, *datagrams[:2])
    assert heard.deadline_ns is None and heard.wanted(START) == []
    assert collect(heard, datagrams[3], datagrams[4], now_ns=START + 10) == []
    assert collect(heard, datagrams[8], now_ns=START + 20) == []
    assert heard.wanted(START + 20) == [(3, START, 4, 4), (3, START, 7, 9)] and heard.deadline_ns == START + 1_010
    assert heard.views()[0].state == LIVE and heard.gap_count == 0
    assert collect(heard, stamped(datagrams[2]), now_ns=START + 30, line=None) == [
        ("book", 4), ("book", 5), ("book", 6)]
    assert told(heard.tick(START + 1_019)) == []
    assert told(heard.tick(START + 1_020)) == [("gap", 7)]                # the book above is of no use
    assert heard.gaps[-1] == Gap(3, START, 7, 9, START + 1_020) and heard.views()[0].state == STALE
    assert heard.deadline_ns is None and heard.wanted(START + 1_020) == []
    assert collect(heard, datagrams[6], now_ns=START + 1_030) == []
    assert (heard.late, heard.lost, heard.resent, heard.ignored) == (1, 2, 1, 1)
    publisher.snapshot(0, REFRESH)
    publisher.encoder.flush()
    assert collect(heard, *datagrams[9:], now_ns=START + 1_040) == [("book", 23)]
    assert check_books(heard, publisher) == 1


def test_what_nobody_has_is_not_waited_for():
    publisher, datagrams = published()
    changes(publisher, 9)
    heard = Receiver(hold_ns=SECOND)
    collect(heard, datagrams[0], datagrams[4], datagrams[8])
    assert told(heard.give_up(3, START, 9, 10, START)) == []
    assert heard.wanted(START) == [(3, START, 3, 5), (3, START, 7, 8)]
    assert told(heard.give_up(3, START, 1, 4, START)) == [("gap", 3)]
    assert heard.wanted(START) == [(3, START, 5, 5), (3, START, 7, 8)]
    assert told(heard.give_up(3, START, 5, 8, START)) == [("gap", 5), ("gap", 7), ("gap", 9)]
    assert heard.streams[3, START].expected == 11 and heard.lost == 6
    assert told(heard.give_up(9, START, 5, 8, START)) == []


def test_wanted_is_bounded_and_oldest_first():
    publisher, datagrams = published()
    changes(publisher, 400)
    heard = Receiver(hold_ns=SECOND)
    collect(heard, *datagrams[::2])
    wanted = heard.wanted(START)
    assert len(wanted) == receiver.MAX_WANTED and wanted[:2] == [(3, START, 3, 3), (3, START, 5, 5)]


def test_what_is_sent_again_opens_nothing_and_proves_no_life():
    publisher, datagrams = published()
    changes(publisher, 3)
    heard = Receiver()
    assert collect(heard, stamped(datagrams[0])) == [] and heard.stragglers == 1
    assert heard.streams == heard.lines == {}
    collect(heard, datagrams[0])
    assert told(heard.tick(START + 4 * SECOND)) == [("silent", 3), ("line_silent", 0)]
    now_ns = START + 4 * SECOND
    assert collect(heard, stamped(datagrams[1]), now_ns=now_ns, line=None) == [("book", 3)]
    assert heard.views()[0].state == STALE
    assert collect(heard, datagrams[0], now_ns=now_ns) == [("line_back", 0)]     # neither does a copy
    assert heard.views()[0].state == STALE
    assert collect(heard, datagrams[2], now_ns=now_ns) == [("heard_again", 4), ("book", 4)]
    assert heard.views()[0].state == LIVE


def test_silence_is_not_lifted_before_the_gap_behind_it_is_declared():
    publisher, datagrams = published()
    changes(publisher, 9)
    heard = Receiver(hold_ns=1_000)
    collect(heard, datagrams[0])
    exhaust(heard.tick(START + 4 * SECOND))
    view = heard.views()[0]
    for item in heard.heard(datagrams[4], START + 5 * SECOND):
        assert view.state == STALE
    assert view.state == STALE and view.reason == "silent"
    found = []
    for item in heard.tick(START + 5 * SECOND + 1_000):
        found.append(KINDS[item.kind])
        assert view.state == STALE
    assert found == ["gap", "heard_again"] and view.reason == "gap"


def test_signed_packets():
    seal = Seal(b"sixteen bytes or")
    publisher, datagrams = published(seal=seal)
    publisher.change(0)
    publisher.encoder.end()
    publisher.round()
    heard = Receiver(seal=seal)
    unsigned = published()[1][0]
    bad = bytearray(datagrams[0])
    bad[60] ^= 1
    assert collect(heard, unsigned, bytes(bad), datagrams[0][:-1], b"") == [] and heard.streams == {}
    assert heard.errors == {"packet is not signed": 1, "signature does not verify": 1,
                            "datagram of N bytes states N": 1, "datagram of N bytes, a packet header has N": 1}
    spoiled = bytearray(publisher.loops[0])
    spoiled[-1] ^= 1
    assert collect(heard, *publisher.loops, bytes(spoiled)) == [("session", 4), ("definition", 4), ("book", 4)]
    heard = Receiver(seal=seal)
    assert collect(heard, datagrams[0], stamped(datagrams[1]), *datagrams[2:]) == [
        ("session", 1), ("definition", 1), ("book", 2), ("book", 3), ("end", 4)]
    old = Publisher(START - SECOND, random.Random(1), count=1, packet_bytes=1472, seal=seal)
    old.encoder.heartbeat()
    exhaust(heard.tick(START + 9 * SECOND))
    assert collect(heard, *old.datagrams, now_ns=START + 9 * SECOND) == [] and heard.stragglers == 1
    plain = Receiver()                               # without the key the trailer is skipped
    assert len(collect(plain, *datagrams)) == 5


# -- the loop


def test_a_joiner_is_live_within_a_round_though_nothing_happens():
    publisher, _ = published(count=3)
    publisher.go_stale(2)
    publisher.round()
    heard = Receiver()
    assert [kind for kind, sequence in collect(heard, *publisher.loops) if sequence == 8] == [
        "session", "definition", "book", "definition", "book", "definition", "state"]
    assert check_books(heard, publisher) == 2 and heard.taken_from_loop == 2
    assert [(view.state, view.reason) for view in heard.views()][2] == (STALE, "gap")
    assert heard.packets == heard.messages == 0 and heard.lines == {}
    assert told(heard.tick(START + 4 * SECOND)) == [("silent", 8)]          # the loop keeps nothing alive
    publisher.loops.clear()
    publisher.round()
    assert collect(heard, *publisher.loops, now_ns=START + 4 * SECOND) == [] and heard.views()[0].state == STALE
    assert (heard.rounds, heard.streams[3, START].round_ns) == (2, 4 * SECOND)
    publisher.datagrams.clear()
    publisher.encoder.heartbeat()
    assert collect(heard, *publisher.datagrams[1:], now_ns=START + 4 * SECOND) == [("heard_again", 8)]
    assert check_books(heard, publisher) == 2


def lossy(count=6, **options):
    """Return a publisher and a receiver whose only book is out of step by a gap, 3..3, then has had some changes."""
    publisher, datagrams = published()
    heard = Receiver(**options)
    changes(publisher, 1)
    collect(heard, datagrams[0])
    datagrams.clear()
    changes(publisher, count)
    return publisher, datagrams, heard


def test_a_book_of_the_loop_that_is_behind_gets_what_followed_on_top():
    publisher, datagrams, heard = lossy(3)
    publisher.repeat(0)                                                     # holds at 7
    publisher.datagrams, more = [], publisher.datagrams
    changes(publisher, 3)
    collect(heard, *more, *publisher.datagrams)
    assert heard.views()[0].state == STALE and heard.streams[3, START].expected == 10
    assert collect(heard, *publisher.loops) == [("book", 10)]
    assert check_books(heard, publisher) == 1 and heard.views()[0].epoch == 1
    assert heard.kept_numbers == 0


def test_a_book_of_the_loop_from_before_the_loss_is_of_no_use():
    publisher, datagrams, heard = lossy(0)
    publisher.repeat(0)
    changes(publisher, 2)
    collect(heard, datagrams[1])
    assert collect(heard, *publisher.loops) == [] and heard.views()[0].state == STALE


def test_a_book_of_the_loop_that_is_ahead_waits():
    publisher, datagrams, heard = lossy(3)
    collect(heard, datagrams[0])
    publisher.repeat(0)
    assert collect(heard, *publisher.loops) == [] and heard.kept_numbers > 0
    changes(publisher, 1)
    assert collect(heard, datagrams[1]) == []
    assert collect(heard, *datagrams[2:]) == [("book", 7), ("book", 7)]
    assert check_books(heard, publisher) == 1 and heard.kept_numbers == 0


def test_a_state_told_since_then_makes_a_book_of_the_loop_useless():
    publisher, datagrams, heard = lossy(2)
    publisher.repeat(0)
    publisher.go_stale(0)
    publisher.encoder.flush()
    assert collect(heard, *datagrams) == [("gap", 3), ("state", 6)]
    assert collect(heard, *publisher.loops) == [] and heard.views()[0].reason == "gap"
    publisher.loops.clear()
    publisher.repeat(0)
    assert collect(heard, *publisher.loops) == []                           # nothing new in it
    publisher.go_live(0)
    publisher.repeat(0)
    publisher.encoder.flush()
    assert collect(heard, *publisher.loops[-1:], *datagrams[-1:]) == [("book", 7)]
    assert heard.mismatches == 0


@pytest.mark.parametrize("keep, is_live", [(0, False), (2, False), (3, True), (512, True)])
def test_what_is_kept_is_bounded(keep, is_live):
    publisher, datagrams, heard = lossy(1, keep=keep)
    publisher.repeat(0)
    changes(publisher, 3)
    collect(heard, *datagrams)
    view = heard.views()[0]
    assert len(view.kept) == min(keep, 4)
    assert collect(heard, *publisher.loops) == [("book", 8)] * is_live
    assert check_books(heard, publisher) == is_live
    publisher.repeat(0)
    assert collect(heard, publisher.loops[-1]) == [("book", 8)] * (not is_live)
    assert check_books(heard, publisher) == 1 and heard.kept_numbers == 0


def test_all_that_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(receiver, "MAX_KEPT_NUMBERS", 100)
    monkeypatch.setattr(receiver, "MAX_AHEAD", 2)
    publisher, datagrams, heard = lossy(40)
    collect(heard, *datagrams)
    assert 0 < heard.kept_numbers <= 100
    publisher.change(0)
    publisher.repeat(0)
    publisher.repeat(0)
    collect(heard, *publisher.loops)
    assert heard.kept_numbers <= 100 and len(heard.streams[3, START].ahead) <= 2


def test_a_book_in_parts_needs_all_of_them():
    publisher, datagrams = published(count=2)
    publisher.loop.most = publisher.loop.packet_bytes = publisher.loop.room = publisher.loop.limit = 256
    publisher.books[1] = ({at: 1 for at in range(1, 40)}, {at: 1 for at in range(50, 90)})
    publisher.instruments[1].depth = 0
    publisher.round(1)
    count = len(publisher.loops)
    assert count > 5
    assert collect(Receiver(), *publisher.loops)[-1][0] == "book"
    for at in range(count):
        heard = Receiver()
        collect(heard, *publisher.loops[:at], *publisher.loops[at + 1:])
        assert heard.taken_from_loop == 0 and heard.loop_lost == (0 < at < count - 1)
    heard = Receiver()
    for datagram in publisher.loops:
        collect(heard, datagram, datagram)                              # two lines
    assert heard.taken_from_loop == 1 and heard.loop_unused == count


def test_the_loop_is_compared_with_a_book_in_step():
    publisher, datagrams = published()
    publisher.round()
    heard = Receiver()
    assert collect(heard, *datagrams, *publisher.loops)[1:] == [("definition", 1), ("book", 2)]
    assert (heard.mismatches, heard.views()[0].refreshes, heard.taken_from_loop) == (0, 1, 0)
    publisher.books[0][0][49] = 999
    publisher.repeat(0)
    assert collect(heard, publisher.loops[-1]) == [("book", 3)]
    assert heard.mismatches == heard.taken_from_loop == 1 and "COIN0USDT at venue sequence 77" in heard.last_mismatch
    publisher.states[0] = STALE
    publisher.repeat(0)
    assert collect(heard, publisher.loops[-1]) == [("state", 3)]
    assert heard.mismatches == 2 and heard.views()[0].state == STALE


def test_the_loop_does_not_open_a_session_where_another_is_heard():
    publisher, datagrams = published()
    heard = Receiver()
    collect(heard, *datagrams)
    restarted = Publisher(START + SECOND, random.Random(2), count=1, packet_bytes=1472)
    restarted.define()
    restarted.encoder.flush()
    restarted.round()
    assert collect(heard, *restarted.loops) == [] and heard.loop_unused == 1
    restarted.encoder.heartbeat()
    assert collect(heard, *restarted.datagrams[1:]) == [("end", 3), ("session", 1), ("gap", 1)]
    restarted.round()
    assert collect(heard, restarted.loops[-1]) == [("definition", 2), ("state", 2)] and heard.lost == 1


def test_a_packet_that_was_being_filled_when_the_loop_told_its_place():
    publisher, datagrams = published()
    datagrams.clear()
    publisher.change(0)
    publisher.repeat(0)
    publisher.change(0)
    publisher.encoder.flush()
    heard = Receiver()
    assert collect(heard, *publisher.loops) == [("session", 4), ("definition", 4), ("book", 4)]
    assert collect(heard, *datagrams) == [("book", 4)]
    assert check_books(heard, publisher) == 1 and heard.errors == {} and heard.lines[0].lost == heard.lost == 0


def test_a_definition_that_was_lost_makes_numbers_mean_nothing():
    publisher, datagrams = published()
    heard = Receiver()
    collect(heard, *datagrams)
    datagrams.clear()
    publisher.rescale(0)                             # STATUS, DEFINITION, SNAPSHOT
    publisher.encoder.flush()
    publisher.encoder.trade(0, LIVE, 2, 9, START, START, 1, 5, 7, 2, LAST | 1 << EDITION_SHIFT)
    publisher.go_live(0)
    publisher.encoder.flush()
    assert collect(heard, datagrams[1]) == [("gap", 3), ("trade", 6)]
    view = heard.views()[0]
    assert (view.state, view.reason, view.edition) == (SYNCING, "no definition", 1)
    publisher.repeat(0)
    assert collect(heard, *publisher.loops) == [("definition", 8), ("book", 8)]
    assert check_books(heard, publisher) == 1


def test_numbers_are_right_where_types_are_unknown():
    publisher, datagrams = published()
    encoder = publisher.encoder
    at = encoder.claim(packet.MESSAGE.size)
    packet.MESSAGE.pack_into(encoder.buffer, at, 99, 40, 0, 1, 1, 1, LAST, LIVE, 0, 1)
    encoder.commit(packet.MESSAGE.size)
    encoder.trade(0, LIVE, 1, 9, START, START, 1, 5, 7, 2)
    encoder.flush()
    heard = Receiver()
    assert collect(heard, *datagrams)[-1] == ("trade", 4)
    assert (heard.unknown_messages, heard.messages) == (1, 4)


def test_a_malformed_datagram_moves_nothing():
    publisher, datagrams = published()
    changes(publisher, 3)
    heard = Receiver(hold_ns=SECOND)
    collect(heard, datagrams[0])
    stream = heard.streams[3, START]
    for datagram in (datagrams[1], datagrams[3], stamped(datagrams[2])):
        for at, value in ((40, 99), (42, 41), (73, 9), (74, 255)):       # type stays, size, state, bids
            data = bytearray(datagram)
            data[at] = value
            if at == 40:
                data[at] = packet.TRADE
            collect(heard, bytes(data))
    data = bytearray(datagrams[1])
    data[8] += 1                                                       # a greater session, and nonsense in it
    data[42] = 41
    collect(heard, bytes(data))
    other = bytearray(data)
    other[6] = 9                                                       # another channel, another line
    collect(heard, bytes(other), line=7)
    assert sum(heard.errors.values()) == 14 and heard.packets == 1
    assert stream.expected == 3 and not stream.order.waits
    assert list(heard.streams) == [(3, START)] and list(heard.lines) == [0]
    assert collect(heard, *datagrams[1:]) == [("book", 3), ("book", 4), ("book", 5)]


def test_lines_and_streams_are_bounded(monkeypatch):
    monkeypatch.setattr(receiver, "MAX_LINES", 2)
    monkeypatch.setattr(receiver, "MAX_STREAMS", 2)
    publisher, datagrams = published()
    heard = Receiver()
    for line in range(4):
        collect(heard, datagrams[0], line=line)
    assert list(heard.lines) == [0, 1] and heard.errors == {"more than N lines": 2}
    for channel in range(4, 8):
        other = Publisher(START, random.Random(1), channel=channel)
        other.encoder.end()
        collect(heard, *other.datagrams)
    assert len(heard.streams) == 2 and (3, START) in heard.streams            # those that ended made room


@pytest.mark.stress
@pytest.mark.parametrize("block", range(10))
def test_many_storms(block):
    for seed in range(1_000 + 100 * block, 1_100 + 100 * block):
        print(f"seed {seed}")
        storm(seed)


def test_the_loops_packets_may_change_places():
    """Each once; parts of split books wait for those before them, a lost one costs only its own book."""
    def book(flags, price):
        return packet.Book(SNAPSHOT, price // 100, 1, 0, 0, flags, LIVE, 1, (price, 1), ())

    dice = random.Random(4)
    for _ in range(200):
        packets, books = [], dice.randrange(1, 5)
        for number in range(books):                      # of some parts each, in packets that follow on each other
            parts = dice.randrange(2, 5)
            for part in range(parts):
                flags = packet.FIRST * (not part) | packet.LAST * (part == parts - 1)
                packets.append((number, book(flags, 100 * number + part)))
        first = dice.choice((1, 7, 2**32 - 3))
        lost = dice.randrange(len(packets)) if dice.random() < 0.5 else None
        order = list(range(len(packets)))
        for at in range(1, len(order) - 1):              # neighbours but the first change places
            if dice.random() < 0.5:
                order[at], order[at + 1] = order[at + 1], order[at]
        loop, whole, missing = stream_module.Loop(), [], 0
        loop.take(first - 1 & stream_module.LOOP_MASK, 0, [])
        for at in order + order:
            if at != lost:
                found = loop.take(first + at & stream_module.LOOP_MASK, packets[at][0], [packets[at][1]])
                if found is not None:
                    missing += found[0]
                    whole += found[1]
        for at in range(len(packets), len(packets) + stream_module.MAX_EARLY + 1):        # the next ones give it up
            found = loop.take(first + at & stream_module.LOOP_MASK, 99, [])
            missing += found[0]
            whole += found[1]
        expected = [number for number in range(books) if lost is None or number != packets[lost][0]]
        assert [at for at, _ in whole] == expected and missing == (lost is not None)
        for at, each in whole:
            assert list(each.bids[::2]) == [part.bids[0] for number, part in packets if number == at]
        assert loop.take(first & stream_module.LOOP_MASK, 0, []) is None and not loop.early
