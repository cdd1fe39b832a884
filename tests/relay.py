"""A bad network on loopback: a process that passes datagrams on, and loses, doubles and delays some of them, seeded.

    python3 tests/relay.py '{"routes": [["239.192.0.1", 30001, "239.192.0.2", 30001]], "loss": 0.3, "seed": 1}'

A route is group and port heard, group (or host) and port sent to, on the interfaces with the addresses `hears` and
`sends`. Lines of JSON on the standard input change keys while it runs ({"loss": 0}; "cut": true is a blackout); when
the input ends, it prints its counters and exits. All dice are of one seed: the same datagrams in the same order meet
the same fate (when they come is the host's business).

As a child of a test: `with Relay(routes, loss=0.3, seed=1) as relay: relay.change(cut=True)`; then `relay.counts`.
"""

import heapq
import json
import random
import select
import socket
import struct
import subprocess
import sys
import time

LOCAL = "127.0.0.1"
DEFAULTS = {"hears": LOCAL, "sends": LOCAL, "loss": 0.0, "burst": 1, "duplication": 0.0, "reordering": 0.0,
            "jitter_ms": 5.0, "cut": False, "seed": 0}


class Fate:
    """What becomes of each datagram: seconds by which its copies are late, none where it is lost."""

    def __init__(self, settings):
        self.settings = settings
        self.dice = random.Random(settings["seed"])
        self.losing = 0

    def copies(self):
        settings, dice = self.settings, self.dice
        if settings["cut"]:
            return []
        if not self.losing and dice.random() < settings["loss"] / settings["burst"]:
            self.losing = 1 if settings["burst"] == 1 else dice.randrange(1, 2 * settings["burst"])
        found = []
        if self.losing:
            self.losing -= 1
        else:
            found.append(self.delay())
        if dice.random() < settings["duplication"]:
            found.append(self.delay())
        return found

    def delay(self):
        if self.dice.random() < self.settings["reordering"]:
            return self.dice.random() * self.settings["jitter_ms"] / 1000
        return 0.0


def heard_socket(group, port, interface):
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    found.bind((group, port))
    if int(group.partition(".")[0]) & 0xF0 == 0xE0:
        found.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                         socket.inet_aton(group) + socket.inet_aton(interface))
    found.setblocking(False)
    return found


def sending_socket(interface):
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    found.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
    found.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, struct.pack("b", 1))
    return found


def main(text):
    settings = {**DEFAULTS, **json.loads(text)}
    fate = Fate(settings)
    sender = sending_socket(settings["sends"])
    routes = {heard_socket(*route[:2], settings["hears"]): tuple(route[2:]) for route in settings["routes"]}
    waiting = []                      # (when, order, datagram, where to)
    counts = {"heard": 0, "sent": 0, "lost": 0, "late": 0, "refused": 0}
    order = 0

    def send(datagram, where):
        try:
            sender.sendto(datagram, where)
            counts["sent"] += 1
        except OSError:                   # the cable is pulled
            counts["refused"] += 1

    print("ready", flush=True)
    commands = b""
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            send(*heapq.heappop(waiting)[2:])
        readable, _, _ = select.select([sys.stdin, *routes], [], [], max(0, waiting[0][0] - now) if waiting else None)
        for source in readable:
            if source is sys.stdin:
                data = sys.stdin.buffer.raw.read(65_536)
                if not data:
                    print(json.dumps(counts), flush=True)
                    return
                *whole, commands = (commands + data).split(b"\n")
                for line in whole:
                    settings.update(json.loads(line))
                    print("done", flush=True)
                continue
            for _ in range(64):
                try:
                    datagram = source.recv(65_536)
                except BlockingIOError:
                    break
                counts["heard"] += 1
                delays = fate.copies()
                counts["lost"] += not delays
                for delay in delays:
                    if delay:
                        order += 1
                        counts["late"] += 1
                        heapq.heappush(waiting, (time.monotonic() + delay, order, datagram, routes[source]))
                    else:
                        send(datagram, routes[source])


class Relay:
    """The relay as a child; ends with the block."""

    def __init__(self, routes, inside=(), **settings):
        """`inside`: words before the command, such as ip netns exec NAME."""
        assert set(settings) <= set(DEFAULTS), settings
        self.counts = None
        self.process = subprocess.Popen([*inside, sys.executable, __file__, json.dumps({"routes": routes, **settings})],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def change(self, **settings):
        """Change keys; they hold when this returns."""
        self.process.stdin.write(json.dumps(settings).encode() + b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"done\n"

    def close(self):
        with self.process:
            self.process.stdin.close()
            line = self.process.stdout.readline()
        self.counts = json.loads(line or b"{}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


if __name__ == "__main__":
    main(sys.argv[1])
