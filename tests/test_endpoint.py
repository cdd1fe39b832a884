"""Texts of endpoints, both ways."""

import pytest

from feeder.endpoint import Endpoint, parse
from feeder.errors import ConfigError


@pytest.mark.parametrize("text, found", [
    ("239.192.0.1:30001", ("239.192.0.1", 30001, None)), ("[ff15::1]:1", ("ff15::1", 1, None)),
    ("10.0.0.7:65535@eth1", ("10.0.0.7", 65535, "eth1")), ("[::1]:7@lo", ("::1", 7, "lo")),
    ("239.1.1.1:5@10.0.0.1", ("239.1.1.1", 5, "10.0.0.1"))])
def test_both_ways(text, found):
    assert parse(text) == found and str(Endpoint(*found)) == text


def test_a_port_for_those_that_have_none():
    assert parse("10.0.0.7", 30) == ("10.0.0.7", 30, None) and parse("::1", 30) == ("::1", 30, None)
    assert parse("[::1]@lo", 30) == ("::1", 30, "lo")
    assert parse("239.0.0.1:1").is_multicast and not parse("10.0.0.1:1").is_multicast


@pytest.mark.parametrize("text", ["", "localhost:1", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x",
                                  "10.0.0.1:-1", "[::1]", "[::1]:", "[::1]x:1", "[::1:1", "10.0.0.1:1@", "10.0.0.1:٣"])
def test_what_is_none(text):
    with pytest.raises(ConfigError, match="expected ADDRESS:PORT"):
        parse(text)
