"""Trades into a file, one line each; it stops with exit code 3 as soon as it missed one, and says what.

    PYTHONPATH=. python3 docs/examples/record_trades.py trades.csv
    PYTHONPATH=. python3 docs/examples/record_trades.py trades.jsonl --line 239.192.0.1:30001 --line 239.192.0.2:30001

Nothing is missed as long as one of the lines brings it. An instrument is recorded from its definition on. Exit code 0:
it ended as asked, by --seconds, --count, Ctrl-C or because the publisher ended.
"""

import argparse
import csv
import json
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Optional, Sequence, TextIO

from feeder import Listener
from feeder.events import Dropped, Event, Gap, Instrument, SessionEnded, Silence, State, Trade

MISSED = 3
FIELDS = ("event_ns", "recv_ns", "venue", "symbol", "trade_id", "side", "price", "quantity")
NO_TRADES = ("disconnect", "ring_full", "shutdown")          # the feeder itself did not get them, or lost them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="new file, .csv or .jsonl")
    parser.add_argument("--line", action="append", metavar="ENDPOINT", help="repeat it for several lines")
    parser.add_argument("--retransmit", action="append", default=[], metavar="ENDPOINT", help="who can be asked again")
    parser.add_argument("--snapshot-port", type=int, default=30002, metavar="P")
    parser.add_argument("--interface", default="127.0.0.1", metavar="I")
    parser.add_argument("--seconds", type=float, default=1e9, metavar="N")
    parser.add_argument("--count", type=int, metavar="N", help="stop after so many trades")
    args = parser.parse_args()
    count = 0
    with open(args.file, "x", buffering=1, newline="", encoding="utf-8") as file, Listener(
            args.line or ["239.192.0.1:30001"], snapshot_port=args.snapshot_port, retransmit=args.retransmit,
            interface=args.interface) as listener:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: listener.stop())
        write = writer(args.file, file)
        watch = Watch()
        stop_at = time.monotonic() + args.seconds
        while not listener.is_stopped and time.monotonic() < stop_at and count != args.count:
            event = listener.next(timeout=0.2)
            if isinstance(event, Trade):
                write((event.event_ns, event.recv_ns, event.instrument.venue, event.instrument.symbol, event.trade_id,
                       event.side_text, event.price_text, event.quantity_text))
                count += 1
            elif event is not None:
                missed = watch.missed(event)
                if missed is not None:
                    print(f"after {count} trades: {missed}", file=sys.stderr)
                    return MISSED
                if isinstance(event, SessionEnded) and not event.covered:
                    break
    print(f"{count} trades")
    return 0


class Watch:
    """Judges events by what they mean for somebody who wants every trade."""

    def __init__(self) -> None:
        self.was_live: set[Instrument] = set()

    def missed(self, event: Event) -> Optional[str]:
        """Return what is missing by this event; None where nothing is."""
        if isinstance(event, Gap) and not event.covered:
            return f"messages {event.first} to {event.last} of channel {event.channel} are missing ({event.cause})"
        if isinstance(event, Dropped):
            return f"{event.trade_count} trades of {event.instrument}: {event.reason}"
        if isinstance(event, Silence) and not event.is_over and not event.covered:
            return f"channel {event.channel} is silent"
        if isinstance(event, SessionEnded) and event.reason != "end" and not event.covered:
            return f"channel {event.channel}: the publisher was started anew"
        if isinstance(event, State):
            if event.is_live:
                self.was_live.add(event.instrument)
            elif event.reason in NO_TRADES and event.instrument in self.was_live:
                return f"{event.instrument}: {event.reason}"
        return None


def writer(path: Path, file: TextIO) -> Callable[[Sequence[object]], object]:
    """Return a function that writes one trade."""
    if path.suffix == ".csv":
        table = csv.writer(file)
        table.writerow(FIELDS)
        return table.writerow
    return lambda row: print(json.dumps(dict(zip(FIELDS, row))), file=file)


if __name__ == "__main__":
    sys.exit(main())
