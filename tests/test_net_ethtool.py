"""feeder.net.ethtool: structures as linux/ethtool.h has them, drivers that tell little, and this host's loopback."""

import sys

import pytest

from feeder.net.ethtool import COALESCE, FLAGS, GRO, LRO_FLAG, RINGS, Offloads, offloads


def driver(**answers):
    """A request function that answers what is given, by name of the request."""
    numbers = {GRO: "gro", FLAGS: "flags", COALESCE: "coalesce", RINGS: "rings"}
    return lambda name, number: answers.get(numbers[number])


def test_every_field_is_at_its_place():
    coalesce, rings = list(range(100, 132)), list(range(200, 232))
    found = offloads("eth0", driver(gro=[0, 1], flags=[0, LRO_FLAG], coalesce=coalesce, rings=rings))
    assert found == Offloads(True, True, 101, True, 205, 201)        # usecs, use_adaptive; rx_pending, rx_max_pending
    coalesce[10] = 0
    assert offloads("eth0", driver(gro=[0, 0], flags=[0, 1], coalesce=coalesce)) == Offloads(
        False, False, 101, False, None, None)


def test_a_driver_that_tells_nothing():
    assert offloads("eth0", driver()) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ethtool is Linux's")
def test_this_host():
    found = offloads("lo")
    assert found is None or found.gro in (True, False)
    assert offloads("nonsense0") is None and offloads("") is None and offloads("x" * 99) is None
