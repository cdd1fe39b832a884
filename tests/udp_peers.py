"""20,000 datagrams in bursts from one process to two others over loopback multicast; each is checked by its receiver.

    python3 tests/udp_peers.py burst|plain|cut [COUNT]          prints a JSON object; exit code 1 if something is amiss

burst: UDP_SEGMENT. plain: without it. cut: the kernel refuses it on the way, and the rest goes one by one. One receiver
coalesces (UDP_GRO), one does not. No more is under way than the smaller of their buffers holds, so none may be lost.
"""

import json
import os
import random
import socket
import subprocess
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from feeder.clock import SECOND, steady_ns  # noqa: E402  (the path comes first)
from feeder.net import PacketReceiver, PacketSender, SocketOptions  # noqa: E402
from feeder.net.loop import Loop  # noqa: E402
from feeder.net.udp import MAX_DATAGRAM_BYTES  # noqa: E402

GROUP = "239.192.7.4"
SIZE = 1472
TRUESIZE = 4608                  # what a datagram takes of a buffer at most: as much again, in pages
PATIENCE_S = 30


def datagram(number, size):
    """Bytes that tell their number, and whether they are whole."""
    body = number.to_bytes(4, "little") + bytes([number % 251]) * (size - 8)
    return body + zlib.crc32(body).to_bytes(4, "little")


def receive(port, count, coalesce):
    """The receiving process: says its buffer's bytes, then a byte for each 20 datagrams; at the end what it found."""
    receiver = PacketReceiver(GROUP, port, coalesce=coalesce)
    sys.stdout.write(f"{receiver.recv_buffer_bytes}\n")
    sys.stdout.flush()
    buffer = memoryview(bytearray(MAX_DATAGRAM_BYTES))
    found = {"received": 0, "calls": 0, "wrong": 0}
    loop = Loop()
    told = 0

    def readable():
        nonlocal told
        while True:
            got = receiver.receive_burst_into(buffer)
            if got is None:
                break
            found["calls"] += 1
            size, each = got
            for at in range(0, size, each):
                data = buffer[at:min(at + each, size)]
                right = (int.from_bytes(data[:4], "little") == found["received"]
                         and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"))
                found["wrong"] += not right
                found["received"] += 1
        done = found["received"] // 20 - told
        told += done
        os.write(1, b"." * done)
        if found["received"] >= count:
            loop.stop()

    loop.register(receiver, read=readable)
    loop.call_after(PATIENCE_S * SECOND, loop.stop)
    loop.run()
    print(json.dumps(dict(found, kernel_drops=receiver.kernel_drops(), coalesces=receiver.coalesces)))
    loop.close()
    receiver.close()


def send(way, count, seed=1):
    dice = random.Random(seed)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    children = [subprocess.Popen([sys.executable, os.path.abspath(__file__), "receive", str(port), str(count), kind],
                                 stdout=subprocess.PIPE) for kind in ("coalesce", "single")]
    window = min(int(child.stdout.readline()) for child in children) * 2 // TRUESIZE
    burst = min(44, window)
    sender = PacketSender(GROUP, port, options=SocketOptions(segment_bytes=0 if way == "plain" else SIZE))
    if way == "plain":
        sender.segment_bytes, sender.burst = SIZE, 1      # takes bursts, and cuts them itself
    number, acknowledged = 0, [0, 0]
    while number < count:
        if way == "cut" and number > count // 2 and sender.burst > 1:
            sender._socket.setsockopt(socket.SOL_SOCKET, 11, 1)       # SO_NO_CHECK: the kernel then refuses to segment
        size = min(dice.randrange(1, burst + 1), count - number)
        last = dice.choice((40, 700, SIZE))
        data = b"".join(datagram(number + at, SIZE if at < size - 1 else last) for at in range(size))
        for at, child in enumerate(children):
            while number + size - acknowledged[at] > window:
                some = os.read(child.stdout.fileno(), 1)
                if not some:
                    sys.exit(f"a receiver ended at {acknowledged[at]} of {number}")
                acknowledged[at] += 20 * len(some)
        sender.send(data)
        number += size
    result = {"sent": sender.sent, "bursts": sender.bursts, "way": sender.burst_text,
              "lost": sender.dropped + sender.errors, "window": window,
              "receivers": [json.loads(child.stdout.read().lstrip(b".")) for child in children]}
    for child in children:
        child.wait(PATIENCE_S)
        child.stdout.close()
    sender.close()
    return result


def main(way, *more):
    if way == "receive":
        return receive(int(more[0]), int(more[1]), more[2] == "coalesce")
    count = int(more[0]) if more else 20_000
    start_ns = steady_ns()
    result = send(way, count)
    print(json.dumps(dict(result, user=os.getuid(), seconds=round((steady_ns() - start_ns) / SECOND, 2))))
    good = result["sent"] == count and not result["lost"] and all(
        each["received"] == count and not each["wrong"] and not each["kernel_drops"] for each in result["receivers"])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
