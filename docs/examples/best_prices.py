"""Best prices on the screen, twice a second; an instrument that is not live has no prices, but a reason.

    PYTHONPATH=. python3 docs/examples/best_prices.py
    PYTHONPATH=. python3 docs/examples/best_prices.py --line 239.192.0.1:30001 --seconds 10 BTC/USDT ETH/USDT

It looks at the instruments when it draws, not at each event: so it conflates, and can never fall behind.
"""

import argparse
import signal
import sys
import time
from typing import Optional

from feeder import Listener
from feeder.events import Gap, Instrument, Level

DRAW_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("instruments", nargs="*", metavar="NAME", help="BTC/USDT or binance_spot:BTCUSDT; default: all")
    parser.add_argument("--line", action="append", metavar="ENDPOINT", help="repeat it for several lines")
    parser.add_argument("--snapshot-port", type=int, default=30002, metavar="P")
    parser.add_argument("--interface", default="127.0.0.1", metavar="I")
    parser.add_argument("--seconds", type=float, default=1e9, metavar="N")
    args = parser.parse_args()
    missing = 0
    with Listener(args.line or ["239.192.0.1:30001"], snapshot_port=args.snapshot_port, interface=args.interface,
                  instruments=args.instruments or None, conflate=True) as listener:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: listener.stop())
        stop_at = time.monotonic() + args.seconds
        draw_at = 0.0
        while not listener.is_stopped and time.monotonic() < stop_at:
            event = listener.next(timeout=DRAW_S)
            if isinstance(event, Gap) and not event.covered:
                missing += event.message_count
            if time.monotonic() >= draw_at:
                draw(listener.instruments, missing)
                draw_at = time.monotonic() + DRAW_S
        draw(listener.instruments, missing)
    return 0


def draw(instruments: list[Instrument], missing: int) -> None:
    if sys.stdout.isatty():
        print("\x1b[H\x1b[J", end="")
    for instrument in instruments:
        print(f"{instrument.venue:<16}{instrument.name:<16}{prices(instrument)}")
    print(f"{len(instruments)} instruments, {missing} messages missing", flush=True)


def prices(instrument: Instrument) -> str:
    if not instrument.is_live:
        return f"{instrument.state}: {instrument.reason}"
    return f"{text(instrument, instrument.best_bid):>24}  {text(instrument, instrument.best_ask):<24}"


def text(instrument: Instrument, level: Optional[Level]) -> str:
    if level is None:
        return "-"
    return f"{instrument.quantity_text(level.quantity)} @ {instrument.price_text(level.price)}"


if __name__ == "__main__":
    sys.exit(main())
