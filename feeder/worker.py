"""The processes of `workers: N`, as children of supervise.py: ingest processes, and the one that publishes.

    ingest     Input ─▶ RecordWriter ─▶ ring          its share of each venue's instruments, on connections of its own
    publish    rings ─▶ RecordReader ─▶ Publisher ─▶ Output

The first line on stdin is the job; the rings are descriptors that were inherited. Then messages go both ways, pipe.py:

    down       {"report": true}: the last figures, in full    {"end": true}, or the end of the pipe: end
    up         ready, figures, report, log [level, logger, text], failed text

Nobody but the parent may end the pipe: a child whose parent died ends by itself.

Who dies heals so: a new worker begins with START, which takes back what the old one defined; the publisher had its books
STALE from the moment the old one was gone. A new publisher is a new session; it asks for all instruments by the resync
words, and each worker answers with definition, STALE and, when it has fetched it, a snapshot.
"""

import logging
import os
import signal
import sys
from contextlib import ExitStack

from feeder import clock, config as configuration, log as logs, shm
from feeder.errors import FeederError
from feeder.message import REASON_CODES, REASONS
from feeder.net import STRATEGIES, Loop
from feeder.pipe import LineReader, LineWriter, first_line, say
from feeder.pipeline import Intake
from feeder.publish import Publisher
from feeder.record import RecordReader, RecordWriter
from feeder.ring import Ring
from feeder.stages import Input, Output, Vitals, take_measures
from feeder.venue import VENUES
from feeder.venue.contract import Instruments

log = logging.getLogger("feeder.worker")

POLL_NS = 5 * clock.MILLISECOND            # how often a worker looks at its resync words
WATCH_NS = 100 * clock.MILLISECOND         # how often the publisher looks whether the writers live
NAP_NS = 50 * clock.MICROSECOND            # of an idle publisher that sleeps: a quarter of a processor
LONG_NAP_NS, WAKEFUL_ROUNDS = 500 * clock.MICROSECOND, 200      # once so many rounds, some 20 ms, brought nothing: 5 %
BATCH = 256                                # records of one ring before the next one has its turn


class Process:
    """What both kinds share: the loop, the pipes to the parent, the end. `half` (an Input or Output) tells the figures."""

    def __init__(self, job, config, stack, **measured):
        self.job = job
        self.config = config
        self.stack = stack
        runtime = config.hft.runtime
        self.loop = Loop(idle=STRATEGIES[runtime.idle](), event_interval=runtime.event_interval)
        stack.callback(self.loop.close)
        self.half = self.vitals = None
        self.ending = False
        self.up = LineWriter(self.loop, 1)
        stack.callback(self.up.close)
        down = LineReader(self.loop, 0, self.on_message, self.end)
        stack.callback(down.close)
        stack.callback(logs.forward(lambda *line: self.up.send({"log": line}), self.config.log.level))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.end())
        self.host = take_measures(config, stack, job["name"], **measured)

    def on_message(self, message):
        if "report" in message and self.half is not None:
            self.up.send({"report": self.half.report(), "process": dict(self.vitals.report(), **self.more())},
                         important=True)
        if "end" in message:
            self.end()

    def end(self):
        self.ending = True
        self.loop.stop()

    def ready(self, half):
        self.half = half
        self.vitals = Vitals(self.loop, self.host, [half], lambda: self.up.dropped)
        self.up.send({"ready": os.getpid()})
        self.tell()

    def tell(self):
        self.loop.call_after(self.job["interval_ns"], self.tell)
        self.up.send({"figures": self.half.figures(self.job["shown"]),
                      "process": dict(self.vitals.figures(), **self.more())})

    def open_ring(self, fd):
        segment = shm.Segment(fd)
        self.stack.callback(segment.close)
        ring = Ring(segment.buffer)
        self.stack.callback(ring.close)
        return ring


class Ingest(Process):
    def __init__(self, job, config, stack):
        cores = config.hft.cpu_affinity.worker_cores
        self.share = configuration.shares(config, job["workers"])[job["index"]]
        super().__init__(job, config, stack, core=cores[job["index"]] if job["index"] < len(cores) else -1,
                         venues=self.share.venues, udp=False)
        self.ring = self.open_ring(job["rings"][0])
        self.ring.write(*shm.identity())
        self.sink = RecordWriter(self.ring, self.resync)
        self.intake = None
        self.begin()

    def begin(self):
        """Build up once START is written; a ring that a dead publisher left full takes nothing until there is a new one."""
        if not self.sink.start():
            self.loop.call_after(POLL_NS, self.begin)
            return
        instruments = Instruments(self.config.hft.processing.max_symbols, configuration.instrument_ids(self.config))
        self.intake = Intake(self.sink, instruments, lambda *what: self.half.want_snapshot(*what))
        half = Input(self.share, self.loop, self.intake, self.stack, self.job["workers"])
        self.by_id = {instrument.instrument_id: instrument for instrument in instruments}
        half.start()
        self.ready(half)
        self.poll()

    def resync(self, instrument, reason, recv_ns):
        self.intake.resync(instrument, reason, recv_ns)

    def poll(self):
        self.loop.call_after(POLL_NS, self.poll)
        self.sink.heal()
        asked = self.ring.asked()
        for number, reason in asked:
            if number in self.by_id:
                self.sink.define(self.by_id[number], 1, 1)
                self.resync(self.by_id[number], REASONS[reason], clock.wall_ns())
        if any(REASONS[reason] == "start" for _, reason in asked):
            self.sink.repeat_venues()

    def more(self):
        sink = self.sink
        return {"ring": {"records": sink.records, "dropped": sink.dropped, "losses": sink.losses,
                         "fill": self.ring.fill(), "reader_alive": shm.is_alive(*self.ring.reader())}}

    def run(self):
        self.loop.run()


class Publish(Process):
    def __init__(self, job, config, stack):
        super().__init__(job, config, stack, core=config.hft.cpu_affinity.processor_core)
        output = Output(config, self.loop, stack)
        self.publisher = output.publisher = Publisher(output.encoders, self.want_resync)
        self.publisher.on_fault = output.fault
        instruments = Instruments(config.hft.processing.max_symbols)
        for venue in config.venues:
            for symbol in venue.symbols:
                instrument = instruments.add(venue.name, symbol, name=config.names.get((venue.name, symbol)),
                                             depth=venue.published_depth)
                instrument.shared = VENUES[venue.name].facts.shared_bits
                self.publisher.define(instrument, 1, 1)
        self.readers, self.reader_of, self.connected, self.gone = [], {}, {}, {}
        for index, (fd, share) in enumerate(zip(job["rings"], configuration.shares(config, job["workers"]))):
            carried = {instrument.instrument_id: instrument for instrument in (
                instruments.find(venue.name, symbol) for venue in share.venues for symbol in venue.symbols)}
            ring = self.open_ring(fd)
            ring.read_from(*shm.identity())
            reader = RecordReader(ring, self.publisher, carried, lambda *what, index=index: self.on_venue(index, *what))
            self.readers.append(reader)
            self.reader_of.update(dict.fromkeys(carried, reader))
            self.connected.update(((venue.name, index), False) for venue in share.venues)
            reader.begin_again(clock.wall_ns())
        output.start()
        self.ready(output)
        self.watch()

    def want_resync(self, instrument, reason, recv_ns):
        number = instrument.instrument_id
        self.reader_of[number].ring.ask((number,), REASON_CODES[reason])

    def on_venue(self, index, venue, connected, reason, recv_ns):
        """A worker's connections to a venue came or went; the venue is connected when all workers are."""
        self.connected[venue, index] = connected
        everywhere = all(state for (name, _), state in self.connected.items() if name == venue)
        if everywhere or not connected:
            self.publisher.venue_status(venue, everywhere, reason, recv_ns)

    def watch(self):
        """Find writers that died: what they had is not live any more."""
        self.loop.call_after(WATCH_NS, self.watch)
        for index, reader in enumerate(self.readers):
            writer = reader.ring.writer()
            if writer[0] and self.gone.get(index) != writer and not shm.is_alive(*writer):
                self.gone[index] = writer
                now_ns = clock.wall_ns()
                log.error("worker %d (pid %d) is gone: its %d books are stale", index, writer[0], len(reader.instruments))
                reader.writer_gone(now_ns)
                for venue in [name for name, of in self.connected if of == index]:
                    self.on_venue(index, venue, False, "disconnect", now_ns)
                self.publisher.flush()

    def run(self):
        loop, publisher, readers = self.loop, self.publisher, self.readers
        naps = self.config.hft.runtime.idle == "sleep"
        empty_rounds = 0
        while not self.ending:
            count = 0
            for reader in readers:
                try:
                    count += reader.drain(BATCH)
                except Exception as error:       # ours or the memory's: the books of this ring start over, the rest goes on
                    log.exception("ring of worker %d: all its books start over", readers.index(reader))
                    loop.errors += 1
                    reader.begin_again(clock.wall_ns(), str(error))
            if count:
                publisher.flush()
                publisher.received_ns = 0
            loop.run_once(0)
            empty_rounds = 0 if count else empty_rounds + 1
            if naps and empty_rounds:
                clock.sleep((NAP_NS if empty_rounds < WAKEFUL_ROUNDS else LONG_NAP_NS) / clock.SECOND)
        self.half.end()

    def more(self):
        return {"rings": [{"records": reader.records, "unknown": reader.unknown, "starts": reader.starts,
                           "faults": reader.faults, "fill": reader.ring.fill()} for reader in self.readers]}


def main():
    job = first_line(0)
    if job is None:
        return 0
    with ExitStack() as stack:
        try:
            kind = Publish if job["index"] is None else Ingest
            kind(job, configuration.restore(job["config"]), stack).run()
        except FeederError as error:
            say(1, {"failed": str(error)})
            return error.exit_code
        return 0


if __name__ == "__main__":
    sys.exit(main())
