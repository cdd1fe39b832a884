"""Instrument lists on disk, and what a feed does with them."""

import json
import subprocess
import sys

import pytest
from support import CAPTURES, PROJECT, needs_captures
from test_ingest import LISTED, desk, stub
from test_net_stream import dead_port

from feeder import listings
from feeder.clock import SECOND
from feeder.errors import ConfigError
from feeder.venue.contract import Listing

SOME = {"BTCUSDT": Listing("0.10", "0.001"), "ODD": Listing(None, "1e-9", "10")}


def test_what_is_written_is_read_and_other_symbols_stay(tmp_path):
    path = tmp_path / "new" / "list.json"
    assert listings.read(path, "v") == ("", {})
    listings.write(path, "v", SOME, "http://x", 1_786_310_817 * SECOND)
    assert listings.read(path, "v") == ("2026-08-09T21:26:57Z", SOME)
    listings.write(path, "v", {"BTCUSDT": Listing("1", "1")}, "y", 0)
    assert listings.read(path, "v") == ("1970-01-01T00:00:00Z", {**SOME, "BTCUSDT": Listing("1", "1")})
    assert [each.name for each in path.parent.iterdir()] == ["list.json"]


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"venue":"w","date":"","instruments":{}}', '{"venue":"v","date":"","instruments":[]}',
    '{"venue":"v","date":"","instruments":{"A":{}}}', '{"venue":"v","date":"","instruments":{"A":{"tick":1,"lot":"1","contract":"1"}}}',
    '{"venue":"v","date":"","instruments":{"A":{"tick":"-1","lot":"1","contract":"1"}}}',
    '{"venue":"v","date":"","instruments":{"A":{"tick":"x","lot":"1","contract":"1"}}}', "[" * 100_000])
def test_what_is_no_list_is_an_error_and_is_replaced(tmp_path, text):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not an instrument list"):
        listings.read(path, "v")
    listings.write(path, "v", SOME, "", 0)
    assert listings.read(path, "v")[1] == SOME


def test_a_feed_keeps_the_list_and_has_it_where_the_venue_does_not_answer(tmp_path):
    path = tmp_path / "spot.json"
    with desk(instruments_file=str(path)) as made, stub(made, on_get=lambda target: (200, LISTED, ())):
        feed = made.start()
        made.until(lambda: path.exists())
        assert feed.instruments[0].tick == "0.01000000" and feed.row()["instruments_date"].startswith("20")
        assert sorted(json.loads(path.read_text())["instruments"]) == ["BTCUSDT", "ETHUSDT"]
    url = f"://127.0.0.1:{dead_port()}"
    with desk(instruments_file=str(path), websocket_url="ws" + url, rest_url="http" + url) as made:
        feed = made.start()
        assert feed.instruments[0].tick == "0.01000000" and feed.row()["instruments_date"].startswith("20")
        made.until(lambda: feed.lines[0].connects == 2)
        assert feed.instruments[1].lot == "0.00001000"


def test_a_list_that_cannot_be_kept_or_read_costs_nothing_else(tmp_path):
    path = tmp_path / "spot.json"
    path.mkdir()
    with desk(instruments_file=str(path)) as made, stub(made, on_get=lambda target: (200, LISTED, ())):
        feed = made.start()
        made.until(lambda: feed.instruments[0].tick)
        assert "spot.json" in feed.last_error


def test_an_exponent_that_is_needed_is_there_before_the_first_book(tmp_path):
    path = tmp_path / "spot.json"
    listings.write(path, "binance_spot", {"BTCUSDT": Listing("0.00000000001", "1", "0.01")}, "", 0)
    url = f"://127.0.0.1:{dead_port()}"
    with desk(symbols=["BTCUSDT"], instruments_file=str(path), websocket_url="ws" + url, rest_url="http" + url) as made:
        feed = made.start()
        instrument, = feed.instruments
        assert (instrument.price_exponent, instrument.quantity_exponent, instrument.contract) == (-11, -8, "0.01")


@needs_captures
def test_the_tool_makes_one_of_a_saved_answer(tmp_path):
    saved = CAPTURES / "bybit" / "instruments_20260809.jsonl.gz"
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "tools/make_instruments.py", "bybit_linear", str(saved)],
                          cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "made.json"
    path.write_text(done.stdout)
    found = listings.read(path, "bybit_linear")[1]
    assert len(found) == 800 and found["BTCUSDT"] == Listing("0.10", "0.001", "1")
