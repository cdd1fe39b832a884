"""A consumer as a process: a Listener that writes down each event as a line of JSON, and at the end what it holds.

    python3 tests/reader.py FILE '{"lines": ["239.192.0.1:30001"], "retransmit": "127.0.0.1:30003"}'

Prints "ready" when its sockets are open; ends when its standard input does. Books are written as the CRC-32 of all
their levels, at the moment that the event was handed over.
"""

import json
import sys
import threading
import zlib

from feeder import Listener
from feeder.clock import wall_ns
from feeder.events import Book, Definition, Gap, Line, Session, SessionEnded, Silence, State, Switch, Trade


def digest(bids, asks):
    """Of levels [(price, quantity), ...], best first."""
    return zlib.crc32(repr(([tuple(level) for level in bids], [tuple(level) for level in asks])).encode())


def row(event):
    """What is written of an event; None for the kinds that nobody asks for."""
    kind = type(event)
    if kind is Book:
        instrument = event.instrument
        return [event.channel, event.session, event.sequence, event.venue_sequence, instrument.venue, instrument.symbol,
                digest(instrument.bids(), instrument.asks())]
    if kind is Trade:
        instrument = event.instrument
        return [event.channel, event.session, event.sequence, event.trade_id, instrument.venue, instrument.symbol]
    if kind is Definition:
        return [event.channel, event.session, event.sequence, event.venue, event.symbol]
    if kind is State:
        return [event.instrument.venue, event.instrument.symbol, event.state, event.reason]
    if kind is Switch:
        return [event.instrument.symbol if event.instrument else None, *event[1:]]
    if kind in (Gap, Line, Session, SessionEnded, Silence):
        return list(event)
    return None


def main(path, options):
    with Listener(**json.loads(options)) as listener, open(path, "w", encoding="utf-8") as file:
        def wait():
            sys.stdin.buffer.read()
            listener.stop()
        began_ns = wall_ns()
        print("ready", flush=True)
        threading.Thread(target=wait, daemon=True).start()
        for event in listener:
            found = row(event)
            if found is not None:
                file.write(json.dumps([type(event).__name__, wall_ns() - began_ns, *found]) + "\n")
        for instrument in listener.instruments:
            file.write(json.dumps(["Final", instrument.is_live, instrument.channel, instrument.session,
                                   instrument.venue_sequence, instrument.venue, instrument.symbol,
                                   digest(instrument.bids(), instrument.asks())]) + "\n")
        file.write(json.dumps(["Stats", listener.stats()]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
