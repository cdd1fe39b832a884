"""`feeder venues`: what is supported, from the venues' own facts."""

import json

from feeder.screen import Column, table
from feeder.venue import VENUES
from feeder.venue.contract import IMAGE, REST, STREAM

MAX_WIDTH = 200
SNAPSHOTS = {REST: "REST", STREAM: "on the stream", IMAGE: "every message"}
COLUMNS = [Column(*each) for each in (
    ("name", "<", 0), ("channels", "<", 1), ("levels", "<", 2), ("ms", "<", 4), ("book from", "<", 3), ("proof", "<", 5))]


def rows():
    """Return a JSON-ready dict for each venue."""
    found = []
    for name, venue in VENUES.items():
        facts = venue.facts
        row = {"name": name, "live": facts is not None, "replay": True, "book_from": venue.book}
        if facts is not None:
            levels = facts.snapshot_limits
            row.update(
                title=facts.title, channels=list(facts.channels), connections_for=list(map(list, facts.routes)),
                levels=[levels[0], levels[-1]] if isinstance(levels, range) else list(levels),
                levels_are="a range" if isinstance(levels, range) else "a choice" if levels else "all",
                intervals_ms=list(facts.depth_intervals_ms), proof=facts.proof, example=facts.example,
                common_name=venue.common_name(facts.example),
                ping=facts.ping._asdict() if facts.ping else None, command_every_ms=facts.command_every_ms,
                commands_per_hour=facts.commands_per_hour, connect_every_ms=facts.connect_every_ms,
                lifetime_s=facts.lifetime_s, limits=facts.notes,
                defaults={key: facts.default(key) for key in (
                    "snapshot_limit", "depth_interval_ms", "snapshot_weight_per_minute", "connects_per_5_minutes",
                    "streams_per_connection", "max_message_bytes", "freshness_s", "lifetime_s")})
        found.append(row)
    return found


def configure(parser):
    parser.description = "List the venues that are supported: channels, depth, pace, proof of continuity, limits."
    parser.epilog = "example: python3 -m feeder venues --json"
    parser.add_argument("--json", action="store_true", help="everything, as a JSON list")


def main(args):
    found = rows()
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else text(found))
    return 0


def text(found):
    cells, lines = [], []
    for row in found:
        if not row["live"]:
            cells.append([row["name"], "replay only", "", "", SNAPSHOTS[row["book_from"]], ""])
            continue
        levels = "-".join(map(str, row["levels"])) if row["levels_are"] == "a range" else "/".join(map(str, row["levels"]))
        cells.append([row["name"], ",".join(row["channels"]), levels or "all", "/".join(map(str, row["intervals_ms"])) or "-",
                      SNAPSHOTS[row["book_from"]], row["proof"]])
        lines.append(f"{row['name']} ({row['title']}): {row['limits']}")
    return "\n".join([*table(COLUMNS, cells, MAX_WIDTH), "", *lines])
