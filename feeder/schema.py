"""Every key of the configuration files: where it stands, what it accepts, its default, what it means.

SCHEMA is the one description. Validation and the classes in config.py, `check-config --keys` and the tables of
config/README.md (compared by a test) are derived from it; a new key is one line here.

A key's `kind` names a row of KINDS: a test of one value against the key's `bounds`, and its words for people.
Nothing in here opens a file.
"""

import ipaddress
import re
from collections import namedtuple
from urllib.parse import urlsplit

from feeder import endpoint
from feeder.errors import ConfigError
from feeder.instrument import SYMBOL_BYTES
from feeder.venue import VENUES

# {name: VenueFacts}; None: the dialect is for replay only.
KNOWN_VENUES = {name: venue.facts for name, venue in VENUES.items()}
SUPPORTED_VENUES = tuple(name for name, facts in KNOWN_VENUES.items() if facts)

REQUIRED, BY_VENUE = object(), object()           # in the place of a default
LEVELS = ("debug", "info", "warning", "error")
CHANNELS = ("depth", "trade", "bbo")
TAP_NAME = re.compile("[A-Za-z0-9._-]{0,64}")
MIB = 1 << 20

Key = namedtuple("Key", "file path kind default bounds meaning")
SCHEMA = tuple(Key(*row) for row in (
    ("exchanges", "venues", "venues", REQUIRED, None, "venues to feed from, each with a file of its name"),

    ("venue", "venue", "venue", REQUIRED, None, "name of the venue, as in the file's name"),
    ("venue", "websocket_url", "url", REQUIRED, ("ws", "wss"), "base address of the streams; the paths are added"),
    ("venue", "rest_url", "url", REQUIRED, ("http", "https"), "base address for snapshots and instrument facts"),
    ("venue", "symbols", "symbols", REQUIRED, None, "instruments, in the venue's own spelling"),
    ("venue", "channels", "channels", BY_VENUE, CHANNELS, "what to subscribe for each symbol; of what the venue offers"),
    ("venue", "depth_interval_ms", "int", BY_VENUE, (0, 60_000), "pace of the book; one the venue offers, 0 where none is"),
    ("venue", "snapshot_limit", "int", BY_VENUE, (0, 10_000), "levels a side of the book asked for; 0 where it is whole"),
    ("venue", "snapshot_weight_per_minute", "int", BY_VENUE, (1, 1_000_000),
     "request weight spent on snapshots; four fifths of what the venue grants an address"),
    ("venue", "connects_per_5_minutes", "int", BY_VENUE, (1, 1000), "connection attempts, first ones and repeated ones"),
    ("venue", "streams_per_connection", "int", BY_VENUE, (1, 1024), "streams before another connection is opened"),
    ("venue", "lines", "int", 1, (1, 2),
     "connections that bring the same; of two the first to bring an event counts, and either may be lost"),
    ("venue", "instruments_file", "text", "", (0, 1024),
     "where the venue's instrument list is kept, and read where it cannot be asked; relative to this file; empty: nowhere"),
    ("venue", "published_depth", "int", 20, (0, 5000), "levels a side that are published; 0 is all"),
    ("venue", "compression", "bool", False, None, "offer permessage-deflate"),
    ("venue", "ca_file", "text", "", (0, 1024), "certificates to trust instead of the host's; relative to this file"),
    ("venue", "verify_tls", "bool", True, None, "check the venue's certificate; false only in a laboratory"),
    ("venue", "proxy", "proxy", "env", ("http",), "HTTP CONNECT proxy; env: as https_proxy, no_proxy say; empty: none"),
    ("venue", "stale_after_s", "number", 30, (0.1, 3600), "silence of the data after which a connection is renewed"),
    ("venue", "freshness_s", "number", BY_VENUE, (0, 86_400),
     "silence of one book after which it is asked for anew; 0: never, as quiet symbols are silent"),
    ("venue", "lifetime_s", "number", BY_VENUE, (0, 604_800),
     "age at which a connection is replaced by a new one, without a loss; 0: only when the venue says so"),
    ("venue", "first_data_deadline_s", "number", 30, (0.1, 3600), "time for a new subscription to show its first data"),
    ("venue", "max_message_bytes", "int", BY_VENUE, (1024, 256 * MIB), "longest message accepted from the venue"),
    ("venue", "recv_buffer_bytes", "int", 4 * MIB, (4096, 1024 * MIB), "TCP receive buffer asked of the kernel"),

    ("hft", "cpu_affinity.enabled", "bool", True, None, "pin to the processors named here, if any"),
    ("hft", "cpu_affinity.processor_core", "int", -1, (-1, 4095),
     "processor of the publishing thread; -1 disables its pinning"),
    ("hft", "cpu_affinity.worker_cores", "cores", [], (0, 4095), "processors of ingest workers 0, 1, ...; empty: any"),
    ("hft", "cpu_affinity.other_cores", "cores", [], (0, 4095),
     "processors of all other threads and processes; empty: those feeder was started on"),
    ("hft", "memory.lock", "bool", True, None, "lock all memory, so that none is ever paged out"),
    ("hft", "memory.prefault", "bool", True, None, "touch at start the memory that books will grow into"),
    ("hft", "memory.gc", "choice", "freeze", ("freeze", "default"),
     "freeze: the collector leaves start-up objects alone and runs seldom; default: as Python has it"),
    ("hft", "memory.malloc", "bool", True, None, "keep freed memory instead of returning it to the kernel (glibc)"),
    ("hft", "scheduling.fifo_priority", "int", 0, (0, 99), "SCHED_FIFO priority of the publishing thread; 0: off"),
    ("hft", "scheduling.nice", "int", 0, (-20, 19), "nice value of the publishing thread and those it starts; 0 leaves it"),
    ("hft", "scheduling.timer_slack_ns", "int", 1, (0, 1_000_000_000),
     "how late the kernel may end a timed wait; 0 leaves it"),
    ("hft", "sockets.buffers", "bool", True, None, "ask for the socket buffers configured; false: the kernel's own"),
    ("hft", "sockets.busy_poll_us", "int", 0, (0, 10_000), "SO_BUSY_POLL of receiving sockets; 0: off"),
    ("hft", "sockets.priority", "int", 0, (0, 6), "SO_PRIORITY of sockets; 0: off"),
    ("hft", "sockets.dscp", "int", 0, (0, 63), "DSCP of packets sent, such as 46 for expedited forwarding; 0: off"),
    ("hft", "sockets.batch_us", "int", 100, (0, 1_000_000),
     "longest that a full datagram waits for others, to be sent in one call (UDP_SEGMENT); 0: off"),
    ("hft", "runtime.workers", "int", 4, (0, 64), "most ingest processes, fewer where cores are few; 0: all in one process"),
    ("hft", "runtime.thread_stack_bytes", "int", 3 * MIB, (0, 1024 * MIB),
     "stack of each thread, at least 65536; 0: the system's"),
    ("hft", "runtime.event_interval", "int", 61, (0, 100_000),
     "messages of one connection read before the others have their turn; 0: a whole receive buffer"),
    ("hft", "runtime.idle", "choice", "sleep", ("spin", "yield", "sleep"),
     "what the loop does while nothing comes; spin and yield use a whole processor"),
    ("hft", "runtime.switch_interval_us", "int", 50, (0, 1_000_000),
     "time after which a thread must let another have the interpreter; 0: Python's 5000"),
    ("hft", "runtime.thread_names", "bool", True, None, "names of processes and threads for ps and top"),
    ("hft", "processing.ring_buffer_size", "power", 65_536, (2, 1 << 24), "slots of the ring between processes"),
    ("hft", "processing.max_symbols", "int", 2048, (1, 65_536), "most instruments over all venues"),
    ("hft", "output.group", "address", "239.192.0.1", None, "group, or one host, that packets of the first channel go to"),
    ("hft", "output.port", "int", 30_001, (1, 65_535), "UDP port of the first channel"),
    ("hft", "output.interface", "text", "127.0.0.1", (0, 64),
     "interface to send from, by address or name; empty: the host's choice"),
    ("hft", "output.ttl", "int", 1, (0, 255), "routers a packet may pass; 0 and 1 stay in the network"),
    ("hft", "output.loopback", "bool", True, None, "let listeners on this host receive the group, too"),
    ("hft", "output.channel", "int", 0, (0, 65_535), "number of the first channel, written into each packet"),
    ("hft", "output.more_channels", "endpoints", [], None,
     "where further channels go, numbered on; instruments are divided among all of them, always alike"),
    ("hft", "output.fan_out", "endpoints", [], None,
     "who gets every datagram, too: single hosts where there is no multicast, or a second network"),
    ("hft", "output.packet_bytes", "int", 1472, (256, 65_507), "largest datagram; 1472 fits Ethernet unfragmented, by IPv6 1452"),
    ("hft", "output.send_buffer_bytes", "int", 4 * MIB, (4096, 1024 * MIB), "UDP send buffer asked of the kernel"),
    ("hft", "output.snapshot_port", "int", 30_002, (0, 65_535),
     "UDP port of the snapshot loop, at the addresses of the channels; 0: books are repeated in the channels instead"),
    ("hft", "output.snapshot_packets_per_second", "int", 200, (1, 10_000), "pace of each channel's snapshot loop"),
    ("hft", "output.retransmit_port", "int", 30_003, (0, 65_535), "UDP port that answers who missed packets; 0: none"),
    ("hft", "output.retransmit_address", "own_address", "127.0.0.1", None, "address of this host that it answers at"),
    ("hft", "output.retransmit_networks", "networks", ["127.0.0.0/8", "::1/128"], None, "networks that are answered"),
    ("hft", "output.retransmit_datagrams", "int", 8192, (1, 1 << 20), "last datagrams of a channel that are kept"),
    ("hft", "output.retransmit_packets_per_second", "int", 20_000, (1, 1_000_000), "most that is sent again, to all askers"),
    ("hft", "output.key_file", "text", "", (0, 1024),
     "file with the key that packets are signed with; relative to this file; empty: not signed"),
    ("hft", "output.tap", "tap", "", None, "name of a ring in memory for listeners on this host; empty: none"),
    ("hft", "log.path", "text", "feeder.log", (0, 1024),
     "log file, relative to where feeder is started; empty: no log"),
    ("hft", "log.level", "choice", "info", LEVELS, "least severe line that is kept; FEEDER_LOG overrides it"),
    ("hft", "log.max_bytes", "int", 16 * MIB, (4096, 1024 * MIB), "size at which the log file is rotated"),
    ("hft", "log.keep", "int", 4, (1, 100), "rotated log files that are kept"),
))


def _is_int(value, bounds):
    return type(value) is int and bounds[0] <= value <= bounds[1]       # `type`, because True is an int, too


def _is_text(value, bounds=(1, 1024)):
    return type(value) is str and bounds[0] <= len(value) <= bounds[1] and value.isprintable()  # no lone surrogate


def _is_name(value, bounds=None):
    return _is_text(value) and " " not in value and len(value.encode()) <= SYMBOL_BYTES


def _is_url(value, schemes, login=False):
    if not _is_text(value) or " " in value:
        return False
    try:
        parts = urlsplit(value)
        return (parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
                and not parts.query and not parts.fragment and (login or "@" not in parts.netloc))
    except ValueError:                                                   # port that is no number, broken [v6]
        return False


def _is_address(value, bounds=None):
    try:
        address = ipaddress.ip_address(value if type(value) is str else "")
    except ValueError:
        return False
    return not address.is_unspecified and value != "255.255.255.255"


def _is_own_address(value, bounds):
    return value in ("0.0.0.0", "::") or _is_address(value) and not ipaddress.ip_address(value).is_multicast


def _is_endpoint(value, bounds):
    try:
        return _is_text(value) and _is_address(endpoint.parse(value).address)
    except ConfigError:
        return False


def _is_network(value, bounds):
    try:
        return type(value) is str and bool(ipaddress.ip_network(value))
    except ValueError:
        return False


KINDS = {                      # kind: (test, words); words take the bounds by number, or all of them
    "bool": (lambda value, bounds: type(value) is bool, "true or false"),
    "int": (_is_int, "an integer from {0} to {1}"),
    "power": (lambda value, bounds: _is_int(value, bounds) and value & (value - 1) == 0,
              "a power of two from {0} to {1}"),
    "number": (lambda value, bounds: type(value) in (int, float) and bounds[0] <= value <= bounds[1],
               "a number from {0} to {1}"),
    "text": (_is_text, "text of {0} to {1} printable characters"),
    "name": (_is_name, f"text without spaces of 1 to {SYMBOL_BYTES} bytes"),
    "choice": (lambda value, bounds: type(value) is str and value in bounds, "one of {all}"),
    "url": (_is_url, "scheme://host[:port][/path] with a scheme of {all}"),
    "proxy": (lambda value, bounds: value in ("", "env") or _is_url(value, bounds, login=True),
              "http://[user:password@]host:port, env, or empty"),
    "address": (_is_address, "an IPv4 or IPv6 address"),
    "own_address": (_is_own_address, "an IPv4 or IPv6 address of a host, 0.0.0.0 or :: for all of them"),
    "endpoint": (_is_endpoint, "ADDRESS:PORT or [IPv6]:PORT, and @INTERFACE where it is another"),
    "network": (_is_network, "a network such as 10.1.0.0/16, its host bits 0"),
    "tap": (lambda value, bounds: type(value) is str and bool(TAP_NAME.fullmatch(value)),
            "up to 64 letters, digits, dots, dashes and underscores"),
    "venue": (lambda value, bounds: type(value) is str and bool(KNOWN_VENUES.get(value)),
              "a supported venue (`feeder venues` lists them)"),
}
LISTS = {"venues": "venue", "channels": "choice", "symbols": "name", "cores": "int",   # kind of a list: of its items
         "endpoints": "endpoint", "networks": "network"}


def accepts(kind, value, bounds):
    return KINDS[kind][0](value, bounds)


def expected(kind, bounds):
    """What a kind accepts, in words."""
    if kind in LISTS:
        return "a list without duplicates, each " + expected(LISTS[kind], bounds)
    return KINDS[kind][1].format(*(bounds or ()), all=", ".join(map(str, bounds or ())))


def defaults(file, venue=None):
    """{key path: value} of the keys of a file that have a default, at this venue."""
    values = {}
    for key in SCHEMA:
        if key.file == file and key.default is BY_VENUE:
            if KNOWN_VENUES.get(venue):
                values[key.path] = KNOWN_VENUES[venue].default(key.path)
        elif key.file == file and key.default is not REQUIRED:
            values[key.path] = list(key.default) if type(key.default) is list else key.default
    return values


def names_below(file, prefix=""):
    """The keys of one section, without the section's own name."""
    return tuple(key.path[len(prefix):] for key in SCHEMA if key.file == file and key.path.startswith(prefix))
