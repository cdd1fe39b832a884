"""Make an instruments file from a venue's saved instrument list, for a host that cannot ask the venue.

    curl -o answer.json 'https://api.bybit.com/v5/market/instruments-info?category=linear&limit=1000'
    python3 tools/make_instruments.py bybit_linear answer.json ... > bybit_linear.instruments.json

An answer is the body as it came, or a recording of such requests. Several (pages) go into one file. `--request` prints which
addresses to ask. Name the file as `instruments_file` in the venue's configuration.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from feeder import capture, clock, listings              # noqa: E402
from feeder.errors import CaptureError, FeederError      # noqa: E402
from feeder.venue import VENUES                          # noqa: E402
from feeder.venue.contract import Instruments            # noqa: E402


def bodies(path, venue):
    """Yield the answers in a file: of a recording those of this venue, else the file itself."""
    try:
        found = [record.payload for record in capture.read(path) if record.kind == "rest" and venue.recognises(record.conn)]
    except CaptureError:
        found = [Path(path).read_bytes()]
    yield from found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("venue", choices=list(VENUES))
    parser.add_argument("answers", nargs="*", help="files with what the venue answered")
    parser.add_argument("--request", action="store_true", help="print the paths to ask the venue's REST address for")
    args = parser.parse_args()
    venue = VENUES[args.venue](None, Instruments())
    if args.request:
        for request in venue.instruments_requests([]):
            print(request.path)
        return 0
    try:
        found = {symbol: listing for path in args.answers for body in bodies(path, venue)
                 for symbol, listing in venue.decode_instruments(body).items()}
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made.json"
            listings.write(made, args.venue, found, ", ".join(args.answers), clock.wall_ns())
            listings.read(made, args.venue)              # what we write must be readable
            sys.stdout.write(made.read_text(encoding="utf-8"))
    except (FeederError, OSError) as error:
        print(f"make_instruments: {error}", file=sys.stderr)
        return 2
    print(f"{len(found)} instruments", file=sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
