"""From 1 to 2,048 instruments: the CPU time of a message and the memory of an instrument, as their number grows.

The messages are the same for every number. The recording is cut into as many parts as there are instruments; each
part becomes the traffic of one, under a symbol of its own, upon the book that the recording had there (its first 1,000
levels a side), and after some messages that are not counted. They are played a message of each in turn, so that every
message meets a book that was not touched for long. The reference, in the same rounds: one instrument with all of them
in their own order.

The answer: after each message a receiver knows the same book, trade or quote, whichever instrument it became.

Memory is the growth of the resident set of a fresh process that takes snapshots of 1,000 levels a side, divided by
their number. What its first instrument brings with it, loading and learning what all share, is not counted.
"""

import json
import subprocess
import sys
from bisect import bisect_left

from feeder import clock
from feeder.bench.measure import BenchError, loads_all, row_of, timed, timed_ours
from feeder.bench.pipeline import new_pipeline
from feeder.bench.traffic import Traffic
from feeder.host.memory import resident_bytes
from feeder.message import LIVE
from feeder.pipeline import Pipeline
from feeder.receiver import Receiver

COUNTS, QUICK_COUNTS = (1, 16, 128, 512, 2048), (1, 16)       # each divides the last one
LEVELS = 1_000
WARM_UP = 12                     # diffs, with some 170 messages between: shapes are learned, tables have grown
LEAST_LIKELY = 0.95              # below it the figure would tell of another path
KINDS = ("depth", "trade", "bbo")
GOAL = (1.3, 1.1)
MEMORY_GOAL = (150_000, 80_000, "memory_bytes")


def bench_fanin(run):
    counts = QUICK_COUNTS if run.quick else COUNTS
    run.say(f"fanin: cutting the messages into {counts[-1]:,} parts")
    parts = Parts(run.traffic, counts[-1])
    single = published(parts, 1)
    for count in counts:
        if published(parts, count) != single:
            raise BenchError(f"fanin: {count:,} instruments published something else than one")
        pairs, shares = [], []
        for turn in range(max(2, run.repeats // 2)):
            run.say(f"fanin: {count:,} instruments, round {turn + 1}")
            venue, work = player(parts, count)
            likely, unlikely = venue.likely, venue.unlikely
            pairs.append((timed_ours(work), timed(player(parts, 1)[1])))
            likely, unlikely = venue.likely - likely, venue.unlikely - unlikely
            shares.append(likely / (likely + unlikely))
        if min(shares) < LEAST_LIKELY:
            raise BenchError(f"fanin: {min(shares):.1%} of the messages took the likely path, not {LEAST_LIKELY:.0%}")
        scenario = f"{count:,} instruments, same messages" if count > 1 else "one instrument, to compare with"
        yield row_of("fanin", scenario, len(parts.messages), pairs,
                     "one instrument with all of them", goal=GOAL if count > 1 else None, instruments=count,
                     likely_share=round(min(shares), 4))
    run.say(f"fanin: memory of {counts[-1]:,} instruments")
    yield memory_row(run, parts, counts[-1])


class Parts:
    """The messages, cut into `most` equal parts.

    starts: [(snapshot, messages)] of each part: the book as text WARM_UP diffs before it, and all that came in between.
    """

    def __init__(self, traffic, most):
        self.traffic = traffic
        step = len(traffic.messages) // most
        first = len(traffic.messages) - step * most
        self.messages = traffic.messages[first:]
        diffs = [number for number, payload in enumerate(traffic.messages) if b"@depth" in payload[:60]]
        begins = [diffs[max(0, bisect_left(diffs, at) - WARM_UP)] for at in range(first, len(traffic.messages), step)]
        snapshots = dict.fromkeys(begins)
        pipeline, venue = new_pipeline(traffic, lambda view: None)
        for number in diffs:
            if number in snapshots:
                snapshots[number] = snapshot_text(pipeline.publisher.entries[0])
            venue.decode(traffic.messages[number], 1)
            pipeline.encoder.flush()
        self.starts = [(snapshots[begin], traffic.messages[begin:first + number * step])
                       for number, begin in enumerate(begins)]


def snapshot_text(entry):
    """Return a book as its venue's REST answer tells it, padded to the instrument's decimals."""
    instrument = entry.instrument

    def number(value, decimals):
        digits = f"{value:0{decimals + 1}d}"
        return f'"{digits[:-decimals]}.{digits[-decimals:]}"' if decimals else f'"{digits}"'

    def levels(flat):
        return ",".join(f"[{number(price, instrument.price_decimals)},{number(quantity, instrument.quantity_decimals)}]"
                        for price, quantity in zip(flat[::2], flat[1::2]))
    bids, asks = map(levels, entry.book.top(LEVELS))
    return f'{{"lastUpdateId":{entry.sequence},"bids":[{bids}],"asks":[{asks}]}}'.encode()


def symbol(number):
    return b"T%04dUSDT" % number


def renamed(payload, name):
    return payload.replace(b"BTCUSDT", name).replace(b"btcusdt", name.lower())


def add(pipeline, venue, traffic, number, snapshot, warm_up=()):
    """Add an instrument that is live on `snapshot` and has its shapes learned. The first diff it is shown is older."""
    for kind in KINDS:
        for payload in traffic.kinds[kind][:1]:
            venue.decode(renamed(payload, symbol(number)), 0)
    venue.decode_snapshot(pipeline.instruments.all[number], snapshot, 0)
    for payload in warm_up:
        venue.decode(renamed(payload, symbol(number)), 0)
    entry = pipeline.publisher.entries[number]
    if entry.state != LIVE:
        raise BenchError(f"fanin: {entry.instrument.symbol} is not live after its snapshot")


def new_parts(parts, count, emit):
    """Return (venue, flush, [(message's number, payload), ...]) of `count` instruments that are live."""
    pipeline = Pipeline(emit, lambda: 0, session=1)
    venue = pipeline.venue("binance_spot", discover=True)
    for number in range(count):
        add(pipeline, venue, parts.traffic, number, *parts.starts[number * len(parts.starts) // count])
    pipeline.encoder.flush()
    step = len(parts.messages) // count
    return venue, pipeline.encoder.flush, [
        (number * step + at, renamed(parts.messages[number * step + at], symbol(number)))
        for at in range(step) for number in range(count)]


def player(parts, count):
    """Return (venue, work to be timed)."""
    venue, flush, schedule = new_parts(parts, count, lambda view: None)
    payloads = [payload for _, payload in schedule]

    def work():
        decode = venue.decode
        for payload in payloads:
            decode(payload, 1)
            flush()
    return venue, work


def published(parts, count):
    """Return what a receiver knows after each message of its instrument: {the message's number: book, trade, quote}."""
    receiver = Receiver()
    venue, flush, schedule = new_parts(parts, count, lambda view: receiver.receive(view, 0))
    stream, = receiver.streams.values()
    views = stream.views
    found = {}
    for at, (number, payload) in enumerate(schedule):
        venue.decode(payload, 1)
        flush()
        view = views[at % count]
        depth = view.definition.depth
        found[number] = (hash((*view.bids.levels(depth), *view.asks.levels(depth))) if b"@depth" in payload[:60] else
                         view.last_trade if b"@trade" in payload[:60] else view.bbo[-2:])
    if receiver.lost or receiver.mismatches or receiver.errors:
        raise BenchError(f"fanin: of what {count:,} instruments published a receiver could not use all: "
                         f"{receiver.lost} lost, {receiver.mismatches} mismatches, {receiver.errors}")
    return found


# -- memory ----------------------------------------------------------------------------------------------------


def memory_row(run, parts, count):
    """The CPU time of taking one snapshot, and what stays of it."""
    pairs, grown = [], []
    snapshot = parts.starts[0][0]
    reference = loads_all([snapshot] * count)
    for _ in range(2):
        job = json.dumps({"count": count, "snapshot": snapshot.decode(),
                          "first": [payload.decode() for kind in KINDS for payload in parts.traffic.kinds[kind][:1]]})
        child = subprocess.run(run.command("feeder.bench.fanin"), input=job.encode(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=run.environment, start_new_session=True, check=False)
        if child.returncode:
            said = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise BenchError(f"fanin: the process whose memory was asked for ended with {child.returncode}: {said}")
        told = json.loads(child.stdout)
        pairs.append((told["cpu_ns"], timed(reference)))
        grown.append(told["grown_bytes"])
    return row_of("fanin", f"{count:,} instruments come in, {LEVELS:,} levels a side", count, pairs,
                  "json.loads of the snapshot", unit="instrument", goal=MEMORY_GOAL,
                  memory_bytes=round(min(grown) / count), instruments=count)


def grow(count, snapshot, first):
    """The process whose memory is asked for: one instrument, then `count` more; tell what these took."""
    traffic = Traffic("", snapshot, first)
    pipeline = Pipeline(lambda view: None, lambda: 0, 1, max_symbols=count + 1)
    venue = pipeline.venue("binance_spot", discover=True)
    add(pipeline, venue, traffic, 0, snapshot)
    before, start_ns = resident_bytes(), clock.cpu_ns()
    for number in range(1, count + 1):
        add(pipeline, venue, traffic, number, snapshot)
    spent_ns = clock.cpu_ns() - start_ns
    return {"cpu_ns": spent_ns, "grown_bytes": resident_bytes() - before}


if __name__ == "__main__":
    _job = json.load(sys.stdin)
    print(json.dumps(grow(_job["count"], _job["snapshot"].encode(), [text.encode() for text in _job["first"]])))
