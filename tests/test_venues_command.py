"""`feeder venues`: all of the registry, as text and as JSON."""

import json

from feeder import cli
from feeder.venue import VENUES


def test_every_venue_is_listed_as_text_and_as_json(capsys):
    assert cli.main(["venues"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["venues", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(found) == list(VENUES)
    for name, venue in VENUES.items():
        assert name in text and found[name]["live"] == bool(venue.facts)
        if venue.facts:
            assert venue.facts.proof in text and f"{name} ({venue.facts.title}): {venue.facts.notes}" in text
            assert found[name]["channels"] == list(venue.facts.channels)
            assert found[name]["defaults"]["snapshot_limit"] == venue.facts.default("snapshot_limit")
    assert all(len(line) <= 200 for line in text.partition("\n\n")[0].splitlines())
