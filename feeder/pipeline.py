"""The machines of one process put together: decoders and recoveries of several venues before one sink.

    Intake      venues ─▶ recoveries ─▶ sink: a ring's writer in an ingest process
    Pipeline    the same with a Publisher as the sink: everything in one process

`run`, `replay` and `bench` differ in where payloads come from and where datagrams go; what lies between is here.
A sink is more than message.py's calls to the wiring: venue_status, seen, flush, received_ns.
"""

from feeder.errors import NumberError, VenueError
from feeder.packet import DEFAULT_PACKET_BYTES, Encoder
from feeder.publish import Publisher
from feeder.recovery import Recovery, StreamRecovery
from feeder.redundant import Redundant
from feeder.venue import VENUES
from feeder.venue.contract import REST, Instruments


class Intake:
    """Args: sink; instruments; want_snapshot(venue, instrument, attempt)."""

    def __init__(self, sink, instruments, want_snapshot):
        self.sink = sink
        self.instruments = instruments
        self.venues = {}
        self.recoveries = {}
        self.want_snapshot = want_snapshot
        self.bad_messages = {}        # venue name -> how many payloads could not be read

    def venue(self, name, discover=False, depth=20, lines=1):
        """Return the Venue machine of that name, made on first use; `lines`: connections that bring the same."""
        if name not in self.venues:
            kind = VENUES[name]
            machine = Recovery if kind.book == REST else StreamRecovery

            def make(sink, number=0):
                return machine(kind.follows, sink, lambda *order: self.order(self.venues[name], *order))

            recovery = self.recoveries[name] = make(self.sink) if lines == 1 else Redundant(make, self.sink)
            self.venues[name] = kind(recovery, self.instruments, discover, depth)
            self.bad_messages[name] = 0
        return self.venues[name]

    def define(self, venue, symbol, **more):
        """Add a configured instrument."""
        instrument = self.instruments.add(venue.name, symbol, **more)
        instrument.shared = venue.facts.shared_bits
        venue.sink.define(instrument, 1, 1)
        return instrument

    def order(self, venue, instrument, attempt):
        """A book is to be had anew: its venue's business first (IMAGE), then the wiring's."""
        venue.renew(instrument)
        self.want_snapshot(venue, instrument, attempt)

    def resync(self, instrument, reason, recv_ns):
        self.recoveries[instrument.venue].resync(instrument, reason, recv_ns)

    def decode(self, session, payload, recv_ns):
        """Decode one payload; return (Notice or None, error or None). A bad payload is counted and costs nothing else.

        What it might have carried is missed by the sequence check, which then resyncs the one instrument.
        """
        try:
            return session.decode(payload, recv_ns), None
        except (VenueError, NumberError) as error:
            self.bad_messages[session.name] += 1
            return None, error

    def decode_snapshot(self, venue, instrument, body, recv_ns):
        """As decode, for a REST book; the order is open again when it could not be read."""
        try:
            venue.decode_snapshot(instrument, body, recv_ns)
            return None
        except (VenueError, NumberError) as error:
            self.bad_messages[venue.name] += 1
            self.recoveries[venue.name].snapshot_failed(instrument)
            return error


class Pipeline(Intake):
    """Args: emit(datagram); clock_ns; session; want_snapshot(venue, instrument, attempt)."""

    def __init__(self, emit, clock_ns, session, channel=0, packet_bytes=DEFAULT_PACKET_BYTES, max_symbols=2048,
                 want_snapshot=lambda venue, instrument, attempt: None):
        self.encoder = Encoder(session, channel, emit, clock_ns, packet_bytes)
        self.publisher = Publisher(self.encoder, self.resync)
        super().__init__(self.publisher, Instruments(max_symbols), want_snapshot)
