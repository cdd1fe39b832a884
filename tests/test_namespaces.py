"""Distribution over network interfaces: publisher, a bad network and listeners, each in a network namespace of its own.

    publisher 198.18.1.1 ── veth ── 198.18.1.2 relay 198.18.2.1 ── veth ── 198.18.2.2 listeners

What loopback hides is here: multicast joined and sent by interface, routes, a cable that is pulled. Loss comes from
relay.py in the middle, with a seed (netem would do, but not every kernel has it). Retransmission goes through the
middle as unicast.
198.18.0.0/15 is for such tests (RFC 2544). Only for root with ip(8): nothing outside the namespaces is touched.
"""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from relay import Relay
from support import PROJECT
from test_relay import COINS, SPOT, Feeder, Group, Reader, Witness, check, streams, untold_trades

CLONE_NEWNET = 0x40000000
PUBLISHER, NEAR, FAR, LISTENER = "198.18.1.1", "198.18.1.2", "198.18.2.1", "198.18.2.2"

pytestmark = [pytest.mark.stress, pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="namespaces need Linux, root and ip(8)")]


def run(*words):
    done = subprocess.run([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, (words, done.stdout)


@contextlib.contextmanager
def within(name):
    """Sockets that are made here belong to a namespace; setns(2) is for the calling thread alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{name}", "rb") as there:
        assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0


@pytest.fixture
def network():
    """Three namespaces in a row, gone after the test."""
    names = [f"feeder-{os.getpid()}-{part}" for part in ("publisher", "middle", "listener")]
    with contextlib.ExitStack() as stack:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], stderr=subprocess.DEVNULL).returncode:
                pytest.skip("this host lets root make no network namespaces")
            stack.callback(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        publisher, middle, listener = names
        for card, name, address, peer in (("pub0", publisher, PUBLISHER, NEAR), ("sub0", listener, LISTENER, FAR)):
            run("ip", "link", "add", card, "netns", name, "type", "veth", "peer", "name", f"to-{card}", "netns", middle)
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", card)
            run("ip", "-n", middle, "addr", "add", f"{peer}/24", "dev", f"to-{card}")
            run("ip", "-n", name, "link", "set", card, "up")
            run("ip", "-n", middle, "link", "set", f"to-{card}", "up")
            run("ip", "-n", name, "route", "add", "198.18.0.0/16", "via", peer)
        run("ip", "netns", "exec", middle, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        yield SimpleNamespace(publisher=publisher, middle=middle, listener=listener)


def inside(name):
    return ["ip", "netns", "exec", name]


@contextlib.contextmanager
def twin(name):
    """A venue within a namespace."""
    process = subprocess.Popen(
        [*inside(name), sys.executable, "-m", "feeder.twin.command", "--parent", "--venue", SPOT, "--rate", "500",
         "--symbols", str(COINS), "--levels", "100"], cwd=str(PROJECT), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            yield SimpleNamespace(info=json.loads(process.stdout.readline())["venue"])
        finally:
            process.stdin.close()


def test_a_bad_network_a_pulled_cable_and_a_restart(tmp_path, network):
    group, beyond = Group(), Group()
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(twin(network.publisher))
        feeder = Feeder(stack, tmp_path / "feeder", child, group, inside(network.publisher), interface=PUBLISHER,
                        retransmit_address=PUBLISHER, retransmit_networks=["198.18.2.0/24"])
        with within(network.publisher):
            witness = Witness(group, PUBLISHER)
        stack.callback(witness.close)
        relay = stack.enter_context(Relay(
            group.route(beyond), inside(network.middle), hears=NEAR, sends=FAR, loss=0.05, burst=4, duplication=0.02,
            reordering=0.05, jitter_ms=3, seed=11))
        options = {"lines": beyond.text, "snapshot_port": beyond.loop_port, "interface": LISTENER}
        alone = Reader(stack, tmp_path / "alone", inside(network.listener), **options)
        asking = Reader(stack, tmp_path / "asking", inside(network.listener), **options,
                        retransmit=f"{PUBLISHER}:{feeder.retransmit.partition(':')[2]}")
        feeder.start()
        time.sleep(2)
        run("ip", "-n", network.middle, "link", "set", "to-sub0", "down")
        time.sleep(4.5)                       # longer than a publisher may be silent
        run("ip", "-n", network.middle, "link", "set", "to-sub0", "up")
        run("ip", "-n", network.listener, "route", "replace", "198.18.0.0/16", "via", FAR)
        time.sleep(2)
        feeder.end()
        feeder.start()
        time.sleep(1)
        relay.change(loss=0, duplication=0, reordering=0)
        time.sleep(2)
        late = Reader(stack, tmp_path / "late", inside(network.listener), **options)
        time.sleep(1.5)
        for reader in (alone, asking, late):
            reader.end()
        feeder.end()
    first, second = sorted(witness.ledgers)
    for reader in (alone, asking, late):
        books, trades = check(reader, witness.ledgers)
        assert books > 50 and trades > 50, (reader.path.name, books, trades)
        for channel, session, start in streams(reader):
            last = max(row[2] for row in reader.of("Trade") if row[1] == session)
            assert untold_trades(reader, witness.ledgers[channel, session], start, last) == []
    for reader in (alone, asking):
        assert [each[:2] for each in streams(reader)] == [first, second]
        assert [row[:3] for row in reader.of("Silence")] == [[*first, False], [*first, True]]
    assert relay.counts["lost"] > 20
    lost = {reader: sum(row[3] - row[2] + 1 for row in reader.of("Gap")) for reader in (alone, asking)}
    assert lost[asking] < lost[alone]
    assert late.live_after_s() < max(witness.rounds_ns) / 1e9 + 0.4
