"""The recordings of supported venues through the feeder's own replay, as a Markdown table: `make captures`, docs/venues.md.

Recordings are looked for in FEEDER_CAPTURES, else in ../shared/data beside the project. Exit code 1 if any of them has a gap,
a checksum that fails, or a message that cannot be read.
"""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from feeder import capture                               # noqa: E402
from feeder.errors import CaptureError                   # noqa: E402
from feeder.replay import Replay                         # noqa: E402
from feeder.venue import recognise                       # noqa: E402

CAPTURES = Path(os.environ.get("FEEDER_CAPTURES") or PROJECT.parent / "shared" / "data")
TITLES = ("recording", "venue", "messages", "books", "book events", "gaps", "checksums verified", "failed", "trades",
          "unreadable", "likely path")


def measured(path):
    """Return the table's row of a recording, None where no venue knows it; whether it is all as it should be."""
    first = next((record for record in capture.read(path) if record.direction == "in"), None)
    try:
        name = recognise(first.conn).name
    except (AttributeError, CaptureError):
        return None, True
    replay = Replay(lambda datagram: None, session=1)
    replay.file(path)
    report = replay.report(1)
    rows = report["instruments"]
    failed = sum(decoder["checksums_failed"] for decoder in report["decoders"].values())
    likely = sum(decoder["likely"] for decoder in report["decoders"].values())
    live = sum(row["state"] == "live" for row in rows)
    row = (f"{path.parent.name}/{path.name.partition('.')[0]}", name, f"{report['messages']:,}", f"{live} of {len(rows)}",
           f"{sum(each['events'] for each in rows):,}", report["gaps"],
           f"{sum(each['checksums_verified'] for each in rows):,}", failed, f"{sum(each['trades'] for each in rows):,}",
           report["errors"], f"{likely / max(1, report['messages']):.1%}")
    return row, not (report["gaps"] or failed or report["errors"])


def main():
    print("| " + " | ".join(TITLES) + " |\n|" + "---|" * len(TITLES))
    all_good = True
    for path in sorted(CAPTURES.glob("*/*.jsonl.gz")):
        if path.name.startswith(("instruments", "products")):
            continue
        row, is_good = measured(path)
        if row is not None:
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
            all_good &= is_good
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
