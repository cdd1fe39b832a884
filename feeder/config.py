"""Configuration: JSON files in, one validated `Config` out, or every problem found, together.

    crypto_exchanges.json    which venues                         file "exchanges"
    <venue>.json             one venue, all its symbols           file "venue"
    <venue>.limited.json     the same venue with few symbols      file "venue"
    symbol_mapping.json      {venue: {symbol: common name}}, only where `common_name` would guess wrong
    hft_config.json          host, processing, output, log        file "hft"

SCHEMA is the one description of every key. Validation, defaults, the classes below, `check-config --keys` and
the tables of config/README.md (compared by a test) are derived from it; a new key is one line there.

JSON is read strictly: a key given twice, NaN, an unknown key or a value of the wrong type is an error, because
each of them is a person who believes that something was configured. Errors are gathered, not raised one by one.

`builtin()` needs no file: the twin's ten symbols at both venues, with empty URLs that `run` fills in.
"""

import difflib
import ipaddress
import json
import os
import re
import sys
from collections import namedtuple
from urllib.parse import urlsplit

from feeder.errors import ConfigError
from feeder.instrument import SYMBOL_BYTES

MAX_FILE_BYTES = 1 << 20
MAX_PROBLEMS_SHOWN = 50

# What the configuration has to know of a venue to judge and plan it; from the venues' documents (state 2026-09).
#   routes: channels that may share a connection      snapshot_weights: (up to this many levels, request weight)
VenueFacts = namedtuple("VenueFacts", "routes depth_intervals_ms snapshot_limits snapshot_weights symbol defaults")

_UPPER = re.compile(r"[^\sa-z/@?&#%,\"\\]+")     # Binance: upper case, but not only ASCII since 2025
KNOWN_VENUES = {                                  # None: the name is reserved, the dialect is not supported yet
    "binance_spot": VenueFacts(
        (("depth", "bbo", "trade"),), (100, 1000), range(1, 5001), ((100, 5), (500, 25), (1000, 50), (5000, 250)),
        _UPPER, {"snapshot_limit": 5000, "snapshot_weight_per_minute": 4800, "streams_per_connection": 1024}),
    "binance_usdm": VenueFacts(                   # /public and /market since 2026-04-23
        (("depth", "bbo"), ("trade",)), (100, 250, 500), (5, 10, 20, 50, 100, 500, 1000),
        ((50, 2), (100, 5), (500, 10), (1000, 20)),
        _UPPER, {"snapshot_limit": 1000, "snapshot_weight_per_minute": 1920, "streams_per_connection": 200}),
    "binance_coinm": None, "bybit_spot": None, "bybit_linear": None, "okx": None, "coinbase": None,
    "coinbase_exchange": None, "upbit": None, "bithumb": None, "deribit": None, "kraken": None, "bitfinex": None,
}
SUPPORTED_VENUES = tuple(name for name, facts in KNOWN_VENUES.items() if facts)

REQUIRED, BY_VENUE = "required", "by venue"       # in the place of a default
LEVELS = ("debug", "info", "warning", "error")
CHANNELS = ("depth", "trade", "bbo")
MIB = 1 << 20

Key = namedtuple("Key", "file path kind default bounds meaning")
SCHEMA = tuple(Key(*row) for row in (
    ("exchanges", "venues", "venues", REQUIRED, None, "venues to feed from, each with a file of its name"),

    ("venue", "venue", "venue", REQUIRED, None, "name of the venue, as in the file's name"),
    ("venue", "websocket_url", "url", REQUIRED, ("ws", "wss"), "base address of the streams; the paths are added"),
    ("venue", "rest_url", "url", REQUIRED, ("http", "https"), "base address for snapshots and instrument facts"),
    ("venue", "symbols", "symbols", REQUIRED, None, "instruments, in the venue's own spelling"),
    ("venue", "channels", "channels", list(CHANNELS), CHANNELS, "what to subscribe for each symbol"),
    ("venue", "depth_interval_ms", "int", 100, (1, 60_000), "pace of the depth stream; one the venue offers"),
    ("venue", "snapshot_limit", "int", BY_VENUE, (1, 10_000), "levels a side asked for in a REST snapshot"),
    ("venue", "snapshot_weight_per_minute", "int", BY_VENUE, (1, 1_000_000),
     "request weight spent on snapshots; four fifths of what the venue grants an address"),
    ("venue", "connects_per_5_minutes", "int", 150, (1, 300), "connection attempts, first ones and repeated ones"),
    ("venue", "streams_per_connection", "int", BY_VENUE, (1, 1024), "streams before another connection is opened"),
    ("venue", "published_depth", "int", 20, (0, 5000), "levels a side that are published; 0 is all"),
    ("venue", "compression", "bool", False, None, "offer permessage-deflate"),
    ("venue", "ca_file", "file", "", None, "certificates to trust instead of the host's; relative to this file"),
    ("venue", "verify_tls", "bool", True, None, "check the venue's certificate; false only in a laboratory"),
    ("venue", "proxy", "proxy", "env", None, "HTTP CONNECT proxy: an URL, `env` (https_proxy, no_proxy) or none"),
    ("venue", "stale_after_s", "number", 30, (0.1, 3600), "silence of the data after which a connection is renewed"),
    ("venue", "first_data_deadline_s", "number", 30, (0.1, 3600), "time for a new subscription to show its first data"),
    ("venue", "max_message_bytes", "int", 16 * MIB, (1024, 256 * MIB), "longest message accepted from the venue"),
    ("venue", "recv_buffer_bytes", "int", 4 * MIB, (4096, 1024 * MIB), "TCP receive buffer asked of the kernel"),

    ("hft", "cpu_affinity.enabled", "bool", False, None, "pin the publishing process to one processor"),
    ("hft", "cpu_affinity.processor_core", "int", -1, (-1, 4095), "which processor; -1 disables pinning"),
    ("hft", "processing.ring_buffer_size", "power", 65_536, (2, 1 << 24), "slots of the ring between processes"),
    ("hft", "processing.max_symbols", "int", 2048, (1, 65_536), "most instruments over all venues"),
    ("hft", "output.group", "address", "239.192.0.1", None, "IPv4 group, or one host, that packets go to"),
    ("hft", "output.port", "int", 30_001, (1, 65_535), "UDP port"),
    ("hft", "output.interface", "text", "127.0.0.1", (0, 64), "interface to send from, by address or name; empty: the host's choice"),
    ("hft", "output.ttl", "int", 1, (0, 255), "routers a packet may pass; 0 and 1 stay in the network"),
    ("hft", "output.loopback", "bool", True, None, "let listeners on this host receive the group, too"),
    ("hft", "output.channel", "int", 0, (0, 65_535), "channel number written into each packet"),
    ("hft", "output.packet_bytes", "int", 1472, (256, 65_507), "largest datagram; 1472 fits Ethernet unfragmented"),
    ("hft", "output.send_buffer_bytes", "int", 4 * MIB, (4096, 1024 * MIB), "UDP send buffer asked of the kernel"),
    ("hft", "log.path", "text", "feeder.log", (0, 1024), "log file, relative to where feeder is started; empty: no log"),
    ("hft", "log.level", "choice", "info", LEVELS, "least severe line that is kept; FEEDER_LOG overrides it"),
    ("hft", "log.max_bytes", "int", 16 * MIB, (4096, 1024 * MIB), "size at which the log file is rotated"),
    ("hft", "log.keep", "int", 4, (1, 100), "rotated log files that are kept"),
))


# What each kind of key accepts. A function says yes or no; `expected` says it in words.

def _is_text(value, bounds=(1, 1024)):
    return type(value) is str and bounds[0] <= len(value) <= bounds[1] and value.isprintable()  # no lone surrogate


def _is_name(value, bounds=None):
    return _is_text(value) and " " not in value and len(value.encode()) <= SYMBOL_BYTES


def _is_int(value, bounds):
    return type(value) is int and bounds[0] <= value <= bounds[1]       # `type`, because True is an int, too


def _is_url(value, schemes, login=False):
    try:
        parts = urlsplit(value) if _is_text(value) and " " not in value else None
        return bool(parts and parts.scheme in schemes and parts.hostname and parts.port != 0
                    and not parts.query and not parts.fragment and (login or "@" not in parts.netloc))
    except ValueError:                                                   # port that is no number, broken [v6]
        return False


def _is_address(value, bounds):
    try:
        address = ipaddress.IPv4Address(value) if type(value) is str else None
    except ValueError:
        return False
    return bool(address and not address.is_unspecified and str(address) != "255.255.255.255")


KINDS = {
    "bool": lambda value, bounds: type(value) is bool,
    "int": _is_int,
    "power": lambda value, bounds: _is_int(value, bounds) and value & (value - 1) == 0,
    "number": lambda value, bounds: type(value) in (int, float) and bounds[0] <= value <= bounds[1],
    "text": _is_text,
    "file": lambda value, bounds: _is_text(value, (0, 1024)),            # that it exists: _Reader.venue
    "choice": lambda value, bounds: type(value) is str and value in bounds,
    "url": _is_url,
    "proxy": lambda value, bounds: value in ("", "env") or _is_url(value, ("http",), login=True),
    "address": _is_address,
    "venue": lambda value, bounds: type(value) is str and bool(KNOWN_VENUES.get(value)),
    "name": _is_name,
}
LISTS = {"venues": "venue", "channels": "choice", "symbols": "name"}      # kind of list -> kind of its items


def expected(kind, bounds):
    """What a key of this kind accepts, for errors and for the documentation."""
    if kind in LISTS:
        return f"a list of different items, each {expected(LISTS[kind], bounds)}"
    return {
        "bool": lambda: "true or false",
        "int": lambda: "an integer from {} to {}".format(*bounds),
        "power": lambda: "a power of two from {} to {}".format(*bounds),
        "number": lambda: "a number from {} to {}".format(*bounds),
        "text": lambda: "text of {} to {} printable characters".format(*bounds),
        "file": lambda: "the path of a file, or empty",
        "choice": lambda: "one of " + ", ".join(bounds),
        "url": lambda: "an URL " + " or ".join(f"{scheme}://host[:port]" for scheme in bounds),
        "proxy": lambda: "http://[user:password@]host:port, env, or empty",
        "address": lambda: "an IPv4 address",
        "venue": lambda: "a supported venue (" + ", ".join(SUPPORTED_VENUES) + ")",
        "name": lambda: f"text without spaces of 1 to {SYMBOL_BYTES} bytes",
    }[kind]()


# What the rest of the package sees.

class Section:
    """Plain attributes, one a key of SCHEMA; a wrong name is an error in both directions."""

    __slots__ = ()

    def __init__(self, **values):
        for name in self.__slots__:
            setattr(self, name, values.pop(name))
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


def _names_below(file, prefix=""):
    return tuple(key.path[len(prefix):] for key in SCHEMA if key.file == file and key.path.startswith(prefix))


class VenueConfig(Section):
    __slots__ = ("name",) + _names_below("venue")[1:]


class CpuAffinity(Section):
    __slots__ = _names_below("hft", "cpu_affinity.")


class Processing(Section):
    __slots__ = _names_below("hft", "processing.")


class Hft(Section):
    __slots__ = ("cpu_affinity", "processing")


class Output(Section):
    __slots__ = _names_below("hft", "output.")


class Log(Section):
    __slots__ = _names_below("hft", "log.")


class Config(Section):
    """`names` maps (venue, symbol) to the common name of each configured symbol; `source` says where it is from."""

    __slots__ = ("venues", "hft", "output", "log", "names", "source")


_QUOTES = ("FDUSD", "USDT", "USDC", "TUSD", "USD1", "USD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "JPY")


def common_name(symbol):
    """BTCUSDT -> BTC/USDT, BTCUSDT_260925 -> BTC/USDT_260925; text that ends in no known quote stays as it is."""
    pair, mark, expiry = symbol.partition("_")
    for quote in _QUOTES:
        if pair.endswith(quote) and pair != quote:
            return f"{pair[:-len(quote)]}/{quote}{mark}{expiry}"
    return symbol


TWIN_SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT",
                "ADAUSDT", "DOGEUSDT", "AVAXUSDT", "DOTUSDT", "LINKUSDT")


def builtin(venues=None):
    """The embedded configuration. No files; `run` starts the twin and fills in both URLs of each venue."""
    reader = _Reader()
    chosen = reader.choose(venues, SUPPORTED_VENUES, "the embedded configuration")
    found = [_venue(dict(_defaults("venue", name), venue=name, symbols=list(TWIN_SYMBOLS), websocket_url="",
                         rest_url="")) for name in chosen]
    return _done(reader.assemble(found, _defaults("hft"), {}, "embedded configuration"), reader.problems)


def load(path, venues=None, limited=False):
    """Read a folder (it holds crypto_exchanges.json) or one venue's file; `venues` chooses among the folder's.

    Raises: ConfigError whose text has one line for each problem.
    """
    return _done(*read(path, venues, limited))


def read(path, venues=None, limited=False):
    """Like `load`, but returns (config or None, list of problems)."""
    path = os.fspath(path)
    reader = _Reader()
    if os.path.isdir(path):
        name = "crypto_exchanges.json"
        listed = reader.document("exchanges", os.path.join(path, name)).get("venues")
        chosen = reader.choose(venues, listed, name) if listed else []
        ending = ".limited.json" if limited else ".json"
        found = [reader.venue(os.path.join(path, venue + ending), venue) for venue in chosen]
        mapping = reader.mapping(os.path.join(path, "symbol_mapping.json"))
        hft = reader.document("hft", os.path.join(path, "hft_config.json"))
        source = path + (" (limited)" if limited else "")
    else:
        found, mapping, hft, source = [reader.venue(path)], {}, _defaults("hft"), path
        if found[0].get("venue"):
            reader.choose(venues, [found[0]["venue"]], path)
    config = reader.assemble([] if reader.problems else [_venue(values) for values in found], hft, mapping, source,
                             sum(len(values.get("symbols", ())) for values in found))
    return config, reader.problems


def _done(config, problems):
    if problems:
        more = len(problems) - MAX_PROBLEMS_SHOWN
        shown = problems[:MAX_PROBLEMS_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
        head = [] if len(problems) == 1 else [f"{len(problems)} problems in the configuration:"]
        raise ConfigError("\n  ".join(head + shown))
    return config


def _venue(values):
    values = dict(values)
    return VenueConfig(name=values.pop("venue"), **values)


def _defaults(file, venue=None):
    """Values of the keys that have a default; mutable ones are copied."""
    values = {}
    for key in SCHEMA:
        if key.file == file and key.default is BY_VENUE:
            if KNOWN_VENUES.get(venue):
                values[key.path] = KNOWN_VENUES[venue].defaults[key.path]
        elif key.file == file and key.default is not REQUIRED:
            values[key.path] = list(key.default) if type(key.default) is list else key.default
    return values


class _Pairs(list):
    """A JSON object as written: [(key, value), ...], so that a key given twice is still seen twice."""


def _show(value):
    """A found value for an error text: short, ASCII, on one line, without a proxy's password."""
    if isinstance(value, (_Pairs, dict)):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = re.sub(r"//[^/]*@", "//***@", json.dumps(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(name, known):
    """Hint for a name that is not known: the nearest one, or all when nothing is near."""
    last = name.rpartition(".")[2]
    near = [each for each in known if each.rpartition(".")[2] == last]        # right key, wrong section
    near = near or difflib.get_close_matches(name, known, 1, 0.6)
    return f"nearest is {near[0]}" if near else "known are " + ", ".join(known)


class _Reader:
    """Reads files and gathers problems. Values that are wrong are left out of what the methods return."""

    def __init__(self):
        self.problems = []
        self.file, self.text = "", ""            # the file being read, for `problem`

    def problem(self, path, found, wanted, needle=None):
        """Note `file:line: key: found ..., expected ...`; the line only when the needle stands in it alone."""
        if needle is None:
            needle = json.dumps(path.rpartition(".")[2])
        where = self.file
        if self.text.count(needle) == 1:
            where += f":{self.text.count(chr(10), 0, self.text.index(needle)) + 1}"
        text = f"{where}: {path}: found {found}, expected {wanted}"
        self.problems.append(text.encode("utf-8", "backslashreplace").decode())      # a lone surrogate in a key

    def parse(self, path):
        """Return the _Pairs of a JSON file, or None."""
        self.file, self.text = path, ""

        def refuse(constant):
            raise ValueError(f"{constant} is not a JSON number")
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise ValueError(f"longer than {MAX_FILE_BYTES} bytes")
            self.text = raw.decode("utf-8-sig")                               # Windows editors write the mark
            pairs = json.loads(self.text, object_pairs_hook=_Pairs, parse_constant=refuse)
        except OSError as error:
            self.problems.append(f"{path}: cannot be read: {error.strerror or error}")
        except json.JSONDecodeError as error:
            self.problems.append(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})")
        except (ValueError, RecursionError) as error:                         # also UTF-8, thousands of digits
            self.problems.append(f"{path}: not JSON: {error}")
        else:
            if isinstance(pairs, _Pairs):
                return pairs
            self.problems.append(f"{path}: found {_show(pairs)}, expected an object {{...}}")
        return None

    def document(self, file, path):
        """Parse and validate one file by SCHEMA; return {key path: value} with the defaults filled in."""
        pairs = self.parse(path)
        if pairs is None:
            return {}
        keys = {key.path: key for key in SCHEMA if key.file == file}
        given = {}
        self.walk(pairs, keys, "", given)
        venue = given.get("venue")
        values = _defaults(file, venue if KINDS["venue"](venue, None) else None)
        for path, value in given.items():
            good = self.item(keys[path], value)
            values.pop(path, None)
            if good is not None:
                values[path] = good
        for key in keys.values():
            if key.default is REQUIRED and key.path not in given:
                self.problem(key.path, "nothing", expected(key.kind, key.bounds))
        return values

    def walk(self, pairs, keys, prefix, given):
        """Flatten sections into `given`; refuse unknown keys and keys given twice."""
        seen = set()
        for name, value in pairs:
            path = prefix + name
            if name in seen:
                self.problem(path, "the key twice", "it once")
            elif path in keys:
                given[path] = value
            elif not any(key.startswith(path + ".") for key in keys):
                self.problem(path, "an unknown key", "a known one; " + _nearest(path, list(keys)))
            elif isinstance(value, _Pairs):
                self.walk(value, keys, path + ".", given)
            else:
                self.problem(path, _show(value), "an object {...}")
            seen.add(name)

    def item(self, key, value):
        """Return the value if the key accepts it, else None; of a list, what is good in it."""
        if key.kind not in LISTS:
            if KINDS[key.kind](value, key.bounds):
                return value.rstrip("/") if key.kind == "url" else value
            self.problem(key.path, _show(value), self.wanted(key.kind, key.bounds, value))
            return None
        if type(value) is not list or not value:
            self.problem(key.path, _show(value), expected(key.kind, key.bounds))
            return None
        good = {}
        for index, each in enumerate(value):
            place, kind = f"{key.path}[{index}]", LISTS[key.kind]
            if not KINDS[kind](each, key.bounds):
                self.problem(place, _show(each), self.wanted(kind, key.bounds, each), json.dumps(each))
            elif each in good:
                self.problem(place, _show(each), f"no duplicate of {key.path}[{good[each]}]")
            else:
                good[each] = index
        return list(good)

    @staticmethod
    def wanted(kind, bounds, value):
        """`expected`, and for a venue or a ring size what the writer may have meant."""
        text = expected(kind, bounds)
        if kind == "venue" and type(value) is str:
            if value in KNOWN_VENUES:
                return f"{text}; {value} is known, but not supported yet"
            return f"{text}; {_nearest(value, list(KNOWN_VENUES))}"
        if kind == "power" and _is_int(value, bounds):
            return f"{text}; nearest are {1 << value.bit_length() - 1} and {1 << value.bit_length()}"
        return text

    def venue(self, path, name=None):
        """One venue's file, judged also by what the venue allows."""
        values = self.document("venue", path)
        facts = KNOWN_VENUES.get(values.get("venue"))
        if not facts:
            return values
        if name and values["venue"] != name:
            self.problem("venue", _show(values["venue"]), f'"{name}", as the file is named')
        interval, limit = values.get("depth_interval_ms"), values.get("snapshot_limit")
        if interval and interval not in facts.depth_intervals_ms:
            self.problem("depth_interval_ms", interval, "one of " + ", ".join(map(str, facts.depth_intervals_ms)))
        if limit and limit not in facts.snapshot_limits:
            ways = facts.snapshot_limits
            self.problem("snapshot_limit", limit, f"1 to {ways[-1]}" if isinstance(ways, range) else
                         "one of " + ", ".join(map(str, ways)))
        elif limit and values.get("snapshot_weight_per_minute", limit) < snapshot_weight(facts, limit):
            self.problem("snapshot_weight_per_minute", values["snapshot_weight_per_minute"],
                         f"at least the {snapshot_weight(facts, limit)} of one snapshot of {limit} levels")
        for index, symbol in enumerate(values.get("symbols", ())):
            if not facts.symbol.fullmatch(symbol):       # would be acknowledged by the venue, then stay silent
                self.problem(f"symbols[{index}]", _show(symbol), "an upper-case symbol such as BTCUSDT",
                             json.dumps(symbol))
        if values.get("ca_file"):
            values["ca_file"] = os.path.join(os.path.dirname(path), values["ca_file"])
            if not os.path.isfile(values["ca_file"]):
                self.problem("ca_file", _show(values["ca_file"]), "a file that exists")
        return values

    def mapping(self, path):
        """symbol_mapping.json -> {(venue, symbol): name}. Symbols that are not configured may be mapped, too."""
        names = {}
        for venue, entries in self.parse(path) or ():
            if venue not in KNOWN_VENUES:
                self.problem(venue, "an unknown venue", "a known one; " + _nearest(venue, list(KNOWN_VENUES)))
            elif not isinstance(entries, _Pairs):
                self.problem(venue, _show(entries), "an object {symbol: common name}")
            else:
                for symbol, name in entries:
                    if (venue, symbol) in names:
                        self.problem(f"{venue}.{symbol}", "the key twice", "it once")
                    elif not _is_name(name):
                        self.problem(f"{venue}.{symbol}", _show(name), expected("name", None))
                    names[venue, symbol] = name
        return names

    def choose(self, wanted, listed, where):
        """Venues the command asked for, all that are listed when it did not ask."""
        for name in wanted or ():
            if name not in listed:
                self.problems.append(f"--venue: found {_show(name)}, expected one that {where} lists: "
                                     + ", ".join(listed))
        return [name for name in listed if not wanted or name in wanted]

    def assemble(self, venues, hft, mapping, source, symbol_count=0):
        """Build the Config, or note why not and return None."""
        most = hft.get("processing.max_symbols", symbol_count)
        if symbol_count > most:
            self.problems.append(f"{source}: found {symbol_count} symbols over all venues, expected at most {most} "
                                 "(processing.max_symbols)")
        if self.problems:
            return None

        def part(cls, prefix):
            return cls(**{name: hft[prefix + name] for name in cls.__slots__})
        names = {(venue.name, symbol): mapping.get((venue.name, symbol)) or common_name(symbol)
                 for venue in venues for symbol in venue.symbols}
        return Config(venues=venues, names=names, source=source, output=part(Output, "output."), log=part(Log, "log."),
                      hft=Hft(cpu_affinity=part(CpuAffinity, "cpu_affinity."), processing=part(Processing, "processing.")))


# The command line: what `run` and `check-config` share, and check-config itself.

def add_arguments(parser):
    """--config and --venue, for every command that reads a configuration with `from_arguments`."""
    parser.add_argument("--config", metavar="DIR|FILE", help="folder with crypto_exchanges.json, or one venue's file; "
                        "without it the embedded configuration (USE_LIMITED_CONFIG=1 takes a folder's limited files)")
    parser.add_argument("--venue", metavar="NAME", nargs="+", action="extend", help="only these venues")


def from_arguments(args, environ=os.environ):
    """The Config a command asked for. Raises ConfigError."""
    return load(args.config, args.venue, wants_limited(environ)) if args.config else builtin(args.venue)


def wants_limited(environ):
    value = environ.get("USE_LIMITED_CONFIG", "")
    if value.lower() not in ("", "0", "1", "true", "false"):
        raise ConfigError(f"USE_LIMITED_CONFIG: found {_show(value)}, expected 1 or 0")
    return value.lower() in ("1", "true")


def snapshot_weight(facts, limit):
    return next(weight for levels, weight in facts.snapshot_weights if limit <= levels)
