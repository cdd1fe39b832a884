"""What stands round a feeder under test: its venue, its listener, the kernel's counters, a processor of its own.

Plain blocking sockets and files, on purpose: nothing here is what is measured, and nothing here shares its faults.

    Cores        the feeder under test has the last processor to itself, everything else the others
    Venue        one symbol's WebSocket and REST, as far as `feeder run` needs them to begin
    Listener     a UDP socket that tells when each datagram came, by the kernel's clock: its reader may be late
    Process      CPU time, page faults and memory of another process, as /proc tells them
    start        a `feeder run` on a configuration of its own
"""

import json
import os
import queue
import signal
import socket
import struct
import subprocess
import threading

from feeder import clock
from feeder.bench.measure import BenchError
from feeder.websocket import SERVER, TEXT, Connection, ServerHandshake, http_response

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 30
LONGEST_S = 600
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35      # asm-generic/socket.h; not in the socket module
TIMESPEC = struct.Struct("qq")
LISTENER_BYTES = 64 << 20                    # of receive buffer, where the kernel allows
MOST_DATAGRAM_BYTES, ANCILLARY_BYTES = 2_048, 64
STEPS = {"filters": [{"filterType": "PRICE_FILTER", "tickSize": "0.01000000"},
                     {"filterType": "LOT_SIZE", "stepSize": "0.00001000"}]}


class Cores:
    """Context: this process leaves its last processor to the one under test, which `give` puts there.

    Nothing happens with one processor, or where the system does not let us; `text` says what was done.
    """

    def __init__(self):
        self.before = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
        self.tested = max(self.before, default=None)
        self.text = "not pinned"

    def __enter__(self):
        if len(self.before) > 1:
            try:
                os.sched_setaffinity(0, self.before - {self.tested})
                self.text = f"it alone on processor {self.tested}"
            except OSError:
                pass
        return self

    def give(self, pid):
        if self.text != "not pinned":
            os.sched_setaffinity(pid, {self.tested})

    def __exit__(self, *_):
        if self.text != "not pinned":
            os.sched_setaffinity(0, self.before)


class Venue:
    """Binance spot with one symbol: takes any subscription, answers REST from `snapshot`; what is said is up to us."""

    def __init__(self, symbol, snapshot):
        self.symbol = symbol
        self._snapshot = snapshot
        self._upgraded = queue.Queue()
        self._listening = socket.create_server((LOOPBACK, 0))
        self._open = {self._listening}
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="bench-venue")
        self._thread.start()

    def _accept(self):
        while True:
            try:
                sock = self._listening.accept()[0]
            except OSError:                      # closed: the end
                return
            try:
                sock.settimeout(TIMEOUT_S)
                self._serve(sock)
            except OSError:
                sock.close()                     # gone; it will come again

    def _serve(self, sock):
        """Answer one request, REST or the upgrade; the feeder makes a connection for each."""
        handshake = ServerHandshake()
        request = None
        while request is None:
            data = sock.recv(65_536)
            if not data:
                return sock.close()
            request = handshake.receive(data)
        if request.is_upgrade:
            sock.sendall(handshake.accept(request))
            return self._upgraded.put(sock)
        body = self._snapshot if "/depth" in request.target else json.dumps(
            {"symbols": [dict(STEPS, symbol=self.symbol)]}).encode()
        sock.sendall(http_response(200, body, headers=[("Connection", "close")]))
        sock.close()
        return None

    def subscribed(self):
        """Wait for a connection and its subscription; return the socket. Raises BenchError."""
        try:
            sock = self._upgraded.get(timeout=TIMEOUT_S)
        except queue.Empty:
            raise BenchError(f"the feeder did not connect within {TIMEOUT_S} s") from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(SERVER)
        data = b"-"
        while data:
            data = sock.recv(65_536)
            for opcode, payload in connection.receive(data):
                if opcode == TEXT:
                    answer = json.dumps({"result": None, "id": json.loads(payload)["id"]})
                    sock.sendall(connection.send(TEXT, answer.encode()))
                    return sock
        sock.close()
        raise BenchError("the feeder ended its connection without a subscription")

    def close(self):
        try:
            self._listening.shutdown(socket.SHUT_RDWR)       # wakes accept, which close alone would not
        except OSError:
            pass
        self._listening.close()
        self._thread.join()
        while not self._upgraded.empty():
            self._upgraded.get().close()


class Listener:
    """On a free port of this host, or a member of a multicast group on loopback."""

    def __init__(self, group=None, port=0):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, SO_RCVBUFFORCE):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, option, LISTENER_BYTES)
            except OSError:                      # force: not allowed; macOS refuses what is over its limit
                pass
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        except OSError:                          # not Linux: the moment of reading has to do
            pass
        if group is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                                    socket.inet_aton(group) + socket.inet_aton(LOOPBACK))
        self._socket.bind((group or LOOPBACK, port))
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]

    def drain(self, into, most=1_000_000):
        """Append (datagram, ns since the epoch when it came) of those that wait; return how many."""
        receive, take = self._socket.recvmsg, into.append
        for count in range(most):
            try:
                datagram, ancillary, _, _ = receive(MOST_DATAGRAM_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                return count
            take((datagram, _stamp(ancillary)))
        return most

    def wait(self, into, until_ns):
        """Append the next datagram as `drain` does; False if none came until then, clock.steady_ns."""
        self._socket.settimeout(max(0.000_001, (until_ns - clock.steady_ns()) / clock.SECOND))
        try:
            datagram, ancillary, _, _ = self._socket.recvmsg(MOST_DATAGRAM_BYTES, ANCILLARY_BYTES)
        except socket.timeout:
            return False
        finally:
            self._socket.setblocking(False)
        into.append((datagram, _stamp(ancillary)))
        return True

    def close(self):
        self._socket.close()


def _stamp(ancillary):
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, ns = TIMESPEC.unpack(data)
            return seconds * clock.SECOND + ns
    return clock.wall_ns()


class Process:
    """Counters of a process; None where there is no /proc. Source: proc(5)."""

    def __init__(self, pid):
        self.folder = f"/proc/{pid}"

    def cpu_ns(self):
        """CPU time of all threads that live."""
        try:
            total = 0
            for thread in os.listdir(self.folder + "/task"):
                with open(f"{self.folder}/task/{thread}/schedstat", encoding="ascii") as file:
                    total += int(file.read().split()[0])
            return total
        except OSError:
            return None

    def faults(self):
        """(minor, major) so far."""
        try:
            with open(self.folder + "/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            return int(fields[7]), int(fields[9])
        except OSError:
            return None

    def resident_bytes(self):
        try:
            with open(self.folder + "/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return None


def config_folder(folder, port, venues):
    """Write a configuration that publishes to a Listener; `venues`: {name: {key: value}} besides what all have."""
    def write(name, content):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)
    write("crypto_exchanges.json", {"venues": list(venues)})
    write("symbol_mapping.json", {})
    write("hft_config.json", {"output": {"group": LOOPBACK, "port": port}, "log": {"path": ""}})
    for name, keys in venues.items():
        write(f"{name}.json", {"venue": name, "stale_after_s": 3600, "first_data_deadline_s": 3600,
                               "snapshot_limit": 1000, "connects_per_5_minutes": 300, **keys})


def started(stack, ending, command, **more):
    """Return the Popen of a process that `stack` will end by `ending(process)`.

    It has a session of its own: Ctrl-C is for us, and waits until the process is in the stack's hands.
    """
    interrupts = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    try:
        process = subprocess.Popen(command, start_new_session=True, **more)
        stack.callback(ending, process)
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
    return process


def kill(process):
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def start(run, stack, cores, *words):
    """Start `feeder run` with these words and the run's measures, alone on its processor; return the Popen.

    `stack` ends it, in order at first; if we are killed it ends by itself after LONGEST_S.
    """
    command = run.feeder("run", "--profile", run.host, "--workers", 0, "--seconds", LONGEST_S, *words)
    process = started(stack, end, command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=run.environment)
    cores.give(process.pid)
    return process


def end(process):
    """End a process in order, or else for good; return what it said. May be called again."""
    if process.returncode is not None:
        return b""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=TIMEOUT_S)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[1]
