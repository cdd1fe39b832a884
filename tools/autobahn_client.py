#!/usr/bin/env python3
"""Play the cases of an Autobahn fuzzing server against feeder.websocket's client, and say how each ended.

    wstest -m fuzzingserver -s spec.json            in a Python 2.7 environment, see docs/websocket.md
    python3 tools/autobahn_client.py ws://127.0.0.1:9001 [--cases '12.*' --cases '13.*'] [--report reports/index.json]

For each case: connect, echo every message until the server ends it, then ask the server how it judges us.
The last step, updateReports, has the server write its report; with --report the way each connection was
closed is judged from it too. Exit code: 0 when every case is OK, NON-STRICT or INFORMATIONAL, else 1; 2 when it
could not be run.
"""

import argparse
import base64
import fnmatch
import json
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from feeder.errors import ProtocolError     # noqa: E402
from feeder.websocket import BINARY, CLIENT, TEXT, ClientHandshake, Connection, DeflateOptions     # noqa: E402

GOOD = ("OK", "NON-STRICT", "INFORMATIONAL")
MAX_MESSAGE_BYTES = 32 << 20        # cases 9.* send 16 MiB
TIMEOUT_S = 600                     # the longest case is given 480 s by the server


def play(address, path, on_message, deflate=None, piece_bytes=65536):
    """One connection from handshake to end; `on_message(connection, opcode, payload)` returns bytes to send."""
    with socket.create_connection(address, timeout=TIMEOUT_S) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        handshake = ClientHandshake("%s:%d" % address, path, key, deflate=deflate)
        peer.sendall(handshake.request)
        data = None
        while data is None:
            got = peer.recv(65536)
            if not got:
                raise ProtocolError("the server closed during the handshake")
            data = handshake.receive(got)
        connection = Connection(CLIENT, MAX_MESSAGE_BYTES, handshake.deflate)
        while True:
            answer = bytearray()
            for at in range(0, len(data), piece_bytes):
                events = connection.receive(data[at:at + piece_bytes])
                answer += connection.take_outgoing()    # pongs first: they answer what came before a message's end
                for opcode, payload in events:
                    if opcode in (TEXT, BINARY):
                        answer += on_message(connection, opcode, payload)
            try:
                peer.sendall(answer)
                data = peer.recv(65536)
            except ConnectionError:
                data = b""              # after a fault the server may reset
            if not data:
                return                  # the server closes first (RFC 6455 §7.1.1)


def echo(connection, opcode, payload):
    """The payload back, unless a close that came with it ended the sending."""
    return connection.send(opcode, payload) if connection.is_open else b""


def ask(address, path):
    """The JSON value the server answers a command with."""
    answers = []
    play(address, path, lambda connection, opcode, payload: answers.append(payload) or b"")
    return json.loads(answers[0]) if answers else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the fuzzing server, like ws://127.0.0.1:9001")
    parser.add_argument("--agent", default="feeder", help="our name in the report (default: %(default)s)")
    parser.add_argument("--cases", action="append", metavar="PATTERN",
                        help="only these cases, like '6.*'; may be repeated")
    parser.add_argument("--piece-bytes", type=int, default=65536, metavar="N",
                        help="give the machine at most so many bytes at once (default: %(default)s); with 1 a fault "
                             "never overtakes the echo of the message before it: no case of 1 to 7 is NON-STRICT")
    parser.add_argument("--report", metavar="FILE",
                        help="index.json the server writes; read at the end for close behavior")
    args = parser.parse_args()
    url = urlsplit(args.url)
    address = url.hostname, url.port or 80
    agent = quote(args.agent)
    verdicts = {}
    started = time.monotonic()
    try:
        count = ask(address, "/getCaseCount")
        for number in range(1, count + 1):
            where = "?case=%d&agent=%s" % (number, agent)
            name = ask(address, "/getCaseInfo" + where)["id"]
            if args.cases and not any(fnmatch.fnmatchcase(name, pattern) for pattern in args.cases):
                continue
            case_started = time.monotonic()
            play(address, "/runCase" + where, echo, DeflateOptions(), args.piece_bytes)
            verdict = ask(address, "/getCaseStatus" + where)["behavior"]
            verdicts[name] = verdict
            line = "%d of %d: case %s %s, %.1f s" % (number, count, name, verdict, time.monotonic() - case_started)
            if verdict not in GOOD:
                print("\r%-70s" % line)
            elif sys.stdout.isatty():
                print("\r%-70s" % line, end="", flush=True)
            elif number % 25 == 0:
                print(line, flush=True)
        play(address, "/updateReports?agent=" + agent, echo)
    except (OSError, ProtocolError) as error:
        print("autobahn_client: %s: %s" % (args.url, error), file=sys.stderr)
        return 2
    if args.report:
        report = json.loads(Path(args.report).read_text())[args.agent]
        for name in verdicts:
            closing = report[name]["behaviorClose"]
            if closing not in GOOD:
                print("\rcase %s closed badly: %s" % (name, closing))
                verdicts[name] += ", close " + closing
    print("\r%-70s" % ("%d cases in %.0f s: " % (len(verdicts), time.monotonic() - started)
                       + ", ".join("%d %s" % (n, verdict) for verdict, n in Counter(verdicts.values()).most_common())))
    bad = [name for name, verdict in verdicts.items() if verdict not in GOOD]
    if bad or not verdicts:
        print("not passed: " + (", ".join(bad) or "there was no case to play"))
    return 1 if bad or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
