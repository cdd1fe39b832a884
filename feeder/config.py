"""Configuration: JSON files in, one validated `Config` out, or every problem found, together.

    crypto_exchanges.json    which venues                       schema file "exchanges"
    <venue>.json             one venue, all its symbols         schema file "venue"
    <venue>.limited.json     the same venue with few symbols    schema file "venue"
    symbol_mapping.json      {venue: {symbol: common name}}, only where `common_name` would guess wrong
    hft_config.json          host, processing, output, log      schema file "hft"

What may stand in them is said once, in schema.py. JSON is read strictly: a key given twice, NaN, an unknown key
or a wrong type is an error, because each of them is a person who believes that something was configured.
Problems are gathered in one _Reader and shown together, so that a folder is repaired in one round.

`builtin()` needs no file: the twin's ten symbols at both venues, with empty URLs that `run` fills in.
"""

import json
import os
import re
import sys

from feeder import endpoint, log
from feeder.endpoint import Endpoint
from feeder.errors import ConfigError
from feeder.instrument import channel_index
from feeder.keyfile import read_key
from feeder.packet import PACKET, MESSAGE, DEFINITION_BODY, ORDER_BOOK_ITEM, largest
from feeder.schema import (BY_VENUE, KNOWN_VENUES, LISTS, REQUIRED, SCHEMA, SUPPORTED_VENUES, accepts, defaults,
                           expected, names_below)
from feeder.venue import EMBEDDED, VENUES
from feeder.venue.contract import REST

MAX_FILE_BYTES = 1 << 20
MAX_PROBLEMS_SHOWN = 50
TWIN_LEVELS = 1000           # a side of the twin's books, all of them in one snapshot
TWIN_COINS = ("BTC", "ETH", "SOL", "BNB", "XRP", "ADA", "DOGE", "AVAX", "DOT", "LINK")     # all against USDT


class Section:
    """Plain attributes, one for each key of SCHEMA; a wrong name is an error in both directions."""

    __slots__ = ()

    def __init__(self, **values):
        for name in self.__slots__:
            setattr(self, name, values.pop(name))
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def as_dict(self):
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self):
        return f"{type(self).__name__}({self.as_dict()})"


class VenueConfig(Section):
    __slots__ = ("name",) + names_below("venue")[1:]


class CpuAffinity(Section):
    __slots__ = names_below("hft", "cpu_affinity.")


class Processing(Section):
    __slots__ = names_below("hft", "processing.")


class Memory(Section):
    __slots__ = names_below("hft", "memory.")


class Scheduling(Section):
    __slots__ = names_below("hft", "scheduling.")


class Sockets(Section):
    __slots__ = names_below("hft", "sockets.")


class Runtime(Section):
    __slots__ = names_below("hft", "runtime.")


class Hft(Section):
    __slots__ = ("cpu_affinity", "processing", "memory", "scheduling", "sockets", "runtime")


class Output(Section):
    __slots__ = names_below("hft", "output.")


class Log(Section):
    __slots__ = names_below("hft", "log.")


class Config(Section):
    """`names` maps (venue, symbol) to the common name of each configured symbol; `source` says where it is from."""

    __slots__ = ("venues", "hft", "output", "log", "names", "source")


def common_name(venue, symbol):
    """The venue's rule for its symbols: BTC/USDT, BTC/USDT-PERP."""
    return VENUES[venue].common_name(symbol)


def builtin(venues=None):
    """The embedded configuration; without `venues` the EMBEDDED ones. No files; `run` starts the twin and fills in both
    URLs of each venue.

    Snapshots of 1,000 levels cost little of the budget, so that all books are live at once. One process has the lowest
    latency on a small host, and is enough for what the twin sends.
    """
    reader = _Reader()
    chosen = reader.choose(venues or EMBEDDED, SUPPORTED_VENUES, "the embedded configuration")
    found = []
    for name in chosen:
        values = dict(defaults("venue", name), venue=name, websocket_url="", rest_url="",
                      symbols=[VENUES[name].spelling(coin, "USDT") for coin in TWIN_COINS])
        if VENUES[name].book == REST:
            values["snapshot_limit"] = TWIN_LEVELS
        found.append(values)
    return reader.assemble(found, dict(defaults("hft"), **{"runtime.workers": 0}), {}, "embedded configuration")


def load(path, venues=None, limited=False):
    """Read a folder (it holds crypto_exchanges.json) or one venue's file; `venues` chooses among the folder's.

    Raises: ConfigError; its text has a line for each problem, its attribute `problems` is the list of them.
    """
    path = os.fspath(path)
    reader = _Reader()
    if os.path.isdir(path):
        listing = os.path.join(path, "crypto_exchanges.json")
        listed = reader.document("exchanges", listing).get("venues", [])
        chosen = reader.choose(venues, listed, listing) if listed else []
        ending = ".limited.json" if limited else ".json"
        found = [reader.venue(os.path.join(path, name + ending), name) for name in chosen]
        mapping = reader.mapping(os.path.join(path, "symbol_mapping.json"))
        hft = reader.hft(os.path.join(path, "hft_config.json"))
        return reader.assemble(found, hft, mapping, path + (" (limited)" if limited else ""))
    values = reader.venue(path)
    if "venue" in values:
        reader.choose(venues, [values["venue"]], path)
    return reader.assemble([values], defaults("hft"), {}, path)


class _Pairs(list):
    """A JSON object as written, [(key, value), ...]: a key given twice is still seen twice."""


def _show(value):
    """A found value for an error text: short, ASCII, on one line, without a proxy's password."""
    if isinstance(value, _Pairs):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = re.sub(r"//[^/]*@", "//***@", json.dumps(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(name, known):
    """Hint for a name that is not known: the nearest one, or all when nothing is near."""
    last = name.rpartition(".")[2]
    near = [each for each in known if each.rpartition(".")[2] == last]        # right key, wrong section
    import difflib                       # for errors alone
    near = near or difflib.get_close_matches(name, known, 1, 0.6)
    return f"nearest is {near[0]}" if near else "known are " + ", ".join(known)


def _wanted(kind, bounds, value):
    """`expected`, and for a venue or a power of two what the writer may have meant."""
    text = expected(kind, bounds)
    if kind == "venue" and type(value) is str:
        return text + "; " + (f"{value} is known, but not supported yet" if value in KNOWN_VENUES else
                              _nearest(value, list(KNOWN_VENUES)))
    if kind == "power" and accepts("int", value, bounds):
        return f"{text}; nearest are {1 << value.bit_length() - 1} and {1 << value.bit_length()}"
    return text


class _Reader:
    """Reads files and gathers problems. What is wrong is left out of the values that the methods return."""

    def __init__(self):
        self.problems = []
        self.file, self.text = "", ""            # the file being read, for `problem`

    def problem(self, path, found, wanted, needle=None):
        """Note `file:line: key: found ..., expected ...`, with the line if the needle (the key) is but once in it."""
        needle = needle or json.dumps(path.rpartition(".")[2])
        line = ""
        if self.text.count(needle) == 1:
            line = f":{self.text.count(chr(10), 0, self.text.index(needle)) + 1}"
        text = f"{self.file}{line}: {path}: found {found}, expected {wanted}"
        self.problems.append(text.encode("utf-8", "backslashreplace").decode())      # a lone surrogate in a key

    def parse(self, path):
        """Return the _Pairs of a JSON file; empty, with a problem noted, if it cannot be read."""
        self.file, self.text = path, ""

        def refuse(constant):
            raise ValueError(f"{constant} is no JSON number")
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise ValueError(f"the file is longer than {MAX_FILE_BYTES} bytes")
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
        good = {name: self.accepted(keys[name], value) for name, value in given.items()}
        values = {**defaults(file, good.get("venue")), **good}
        for key in keys.values():
            if key.default is REQUIRED and key.path not in given:
                self.problem(key.path, "nothing", expected(key.kind, key.bounds))
        return {name: value for name, value in values.items() if value is not None}

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

    def accepted(self, key, value):
        """Return the value if the key accepts it, else None; of a list, what is good in it."""
        if key.kind not in LISTS:
            if accepts(key.kind, value, key.bounds):
                return value.rstrip("/") if key.kind == "url" else value
            return self.problem(key.path, _show(value), _wanted(key.kind, key.bounds, value))
        may_be_empty = key.default == []
        if type(value) is not list or not (value or may_be_empty):
            return self.problem(key.path, _show(value), expected(key.kind, key.bounds)
                                + ("" if may_be_empty else ", and not empty"))
        good, kind = {}, LISTS[key.kind]
        for index, item in enumerate(value):
            place = f"{key.path}[{index}]"
            if not accepts(kind, item, key.bounds):
                self.problem(place, _show(item), _wanted(kind, key.bounds, item), json.dumps(item))
            elif item in good:
                self.problem(place, _show(item), f"no duplicate of {key.path}[{good[item]}]")
            else:
                good[item] = index
        return list(good)

    def venue(self, path, name=None):
        """One venue's file, judged also by what the venue allows."""
        values = self.document("venue", path)
        if "venue" not in values:
            return values
        facts = KNOWN_VENUES[name or values["venue"]]
        if name and values["venue"] != name:
            self.problem("venue", _show(values["venue"]), f"{json.dumps(name)}, as the file is named")
        for key, allowed in (("depth_interval_ms", facts.depth_intervals_ms or (0,)),
                             ("snapshot_limit", facts.snapshot_limits or (0,))):
            if key in values and values[key] not in allowed:
                self.problem(key, values.pop(key), f"1 to {allowed[-1]}" if isinstance(allowed, range) else
                             "one of " + ", ".join(map(str, allowed)))
        weight = snapshot_weight(facts, values.get("snapshot_limit", 1))
        if values.get("snapshot_weight_per_minute", weight) < weight:
            self.problem("snapshot_weight_per_minute", values["snapshot_weight_per_minute"],
                         f"at least {weight}, the weight of one snapshot of {values['snapshot_limit']} levels")
        if values.get("lines") == 2 and "depth" not in facts.shared:
            self.problem("lines", 2, "1: the venue numbers its books on each connection anew, so two cannot be compared")
        for index, channel in enumerate(values.get("channels", ())):
            if channel not in facts.channels:
                self.problem(f"channels[{index}]", _show(channel), f"one the venue offers: {', '.join(facts.channels)}",
                             json.dumps(channel))
        for index, symbol in enumerate(values.get("symbols", ())):
            if not facts.symbol.fullmatch(symbol):       # would be acknowledged by the venue, then stay silent
                self.problem(f"symbols[{index}]", _show(symbol), f"the venue's own spelling, such as {facts.example}",
                             json.dumps(symbol))
        if values.get("instruments_file"):
            values["instruments_file"] = os.path.join(os.path.dirname(path), values["instruments_file"])
        if values.get("ca_file"):
            values["ca_file"] = os.path.join(os.path.dirname(path), values["ca_file"])
            if not os.path.isfile(values["ca_file"]):
                self.problem("ca_file", _show(values["ca_file"]), "a file that exists")
        return values

    def hft(self, path):
        """hft_config.json, judged also by how its keys for the output go together."""
        values = self.document("hft", path)
        channel, more = values.get("output.channel", 0), values.get("output.more_channels", ())
        if channel + len(more) >= 65_536:
            self.problem("output.more_channels", f"{len(more)} more after channel {channel}", "numbers below 65536")
        sent = {Endpoint(values.get("output.group"), values.get("output.port"), None): "output.port"}
        for key in ("output.more_channels", "output.fan_out"):
            for index, text in enumerate(values.get(key, ())):
                where, place = endpoint.parse(text), f"{key}[{index}]"
                if where in sent:
                    self.problem(place, _show(text), f"another one than {sent[where]}", json.dumps(text))
                sent.setdefault(where, place)
        for where, place in sent.items():
            if where.port and where.port == values.get("output.snapshot_port"):
                self.problem("output.snapshot_port", where.port, f"another port than {place} has")
        if values.get("output.key_file"):
            values["output.key_file"] = os.path.join(os.path.dirname(path), values["output.key_file"])
            try:
                read_key(values["output.key_file"])
            except ConfigError as error:
                self.problem("output.key_file", str(error), "a file that only its users can read, with a key of 16 "
                             "bytes or more")
        return values

    def mapping(self, path):
        """symbol_mapping.json -> {(venue, symbol): name}. Symbols that are not configured may be mapped, too."""
        names = {}
        for venue, entries in self.parse(path) or ():
            if venue not in KNOWN_VENUES:
                self.problem(venue, "an unknown venue", "a known one; " + _nearest(venue, list(KNOWN_VENUES)))
                continue
            if not isinstance(entries, _Pairs):
                self.problem(venue, _show(entries), "an object {symbol: common name}")
                continue
            for symbol, name in entries:
                if (venue, symbol) in names:
                    self.problem(f"{venue}.{symbol}", "the key twice", "it once")
                elif not accepts("name", name, None):
                    self.problem(f"{venue}.{symbol}", _show(name), expected("name", None))
                names[venue, symbol] = name
        return names

    def choose(self, wanted, listed, where):
        """The venues the command asked for, or all that are listed."""
        for name in wanted or ():
            if name not in listed:
                self.problems.append(f"--venue: found {_show(name)}, expected one that {where} lists: "
                                     + ", ".join(listed))
        return [name for name in listed if not wanted or name in wanted]

    def assemble(self, venues, hft, mapping, source):
        """Build the Config from validated values, or raise the ConfigError that tells all problems."""
        count = sum(len(values.get("symbols", ())) for values in venues)
        most = hft.get("processing.max_symbols", count)
        if count > most:
            self.problems.append(f"{source}: processing.max_symbols: found {count} symbols over all venues, "
                                 f"expected at most {most}")
        if self.problems:
            raise _error(self.problems)

        def part(cls, prefix):
            return cls(**{name: hft[prefix + name] for name in cls.__slots__})
        return Config(
            venues=[VenueConfig(name=values.pop("venue"), **dict(values, symbols=list(values["symbols"])))
                    for values in map(dict, venues)],
            hft=Hft(cpu_affinity=part(CpuAffinity, "cpu_affinity."), processing=part(Processing, "processing."),
                    memory=part(Memory, "memory."), scheduling=part(Scheduling, "scheduling."),
                    sockets=part(Sockets, "sockets."), runtime=part(Runtime, "runtime.")),
            output=part(Output, "output."), log=part(Log, "log."), source=source,
            names={(values["venue"], symbol): (mapping.get((values["venue"], symbol))
                                              or common_name(values["venue"], symbol))
                   for values in venues for symbol in values["symbols"]})


# One configuration, several processes: each is told all of it and takes its share.

def dump(config):
    """Return the Config as a JSON-ready dict, for another process to `restore`."""
    def value(path):
        section, name = path.rsplit(".", 1)
        return getattr(getattr(config if section in config.__slots__ else config.hft, section), name)
    venues = [dict(venue.as_dict(), venue=venue.name) for venue in config.venues]
    for values in venues:
        del values["name"]
    return {"venues": venues, "hft": {key.path: value(key.path) for key in SCHEMA if key.file == "hft"},
            "names": [[*key, name] for key, name in config.names.items()], "source": config.source}


def restore(values):
    """Return the Config that was dumped."""
    names = {(venue, symbol): name for venue, symbol, name in values["names"]}
    return _Reader().assemble(values["venues"], values["hft"], names, values["source"])


def instrument_ids(config):
    """Return {(venue, symbol): id}, dense from 0 over all venues: the same in each process."""
    symbols = [(venue.name, symbol) for venue in config.venues for symbol in venue.symbols]
    return {key: number for number, key in enumerate(symbols)}


def channels(output):
    """Return the Endpoints of the channels, the first one's number being `output.channel`."""
    first = Endpoint(output.group, output.port, output.interface)
    return [first] + [each._replace(interface=each.interface or output.interface)
                      for each in map(endpoint.parse, output.more_channels)]


def fan_out(output):
    """Return the Endpoints that get every datagram, too."""
    return [each._replace(interface=each.interface or output.interface) for each in map(endpoint.parse, output.fan_out)]


def shares(config, count):
    """Divide the configuration among `count` ingest processes; return a Config for each.

    Every venue's symbols are dealt out in turn, and its budgets are divided as its symbols are, since the venue
    counts what comes from one address.
    """
    configs = []
    for index in range(count):
        venues = []
        for venue in config.venues:
            symbols = venue.symbols[index::count]
            if symbols:
                part = VenueConfig(**venue.as_dict())
                part.symbols = symbols
                for budget in ("snapshot_weight_per_minute", "connects_per_5_minutes"):
                    setattr(part, budget, max(1, getattr(venue, budget) * len(symbols) // len(venue.symbols)))
                venues.append(part)
        configs.append(Config(**dict(config.as_dict(), venues=venues)))
    return configs


def _error(problems):
    more = len(problems) - MAX_PROBLEMS_SHOWN
    shown = problems[:MAX_PROBLEMS_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
    head = [f"{len(problems)} problems in the configuration:"] if len(problems) > 1 else []
    error = ConfigError("\n  ".join(head + shown))
    error.problems = problems
    return error


# The command line: what `run` and `check-config` share, then check-config itself.

def add_arguments(parser):
    """--config and --venue, for every command that reads its configuration by `from_arguments`."""
    parser.add_argument("--config", metavar="DIR|FILE", help="folder with crypto_exchanges.json, or one venue's file; "
                        "default: the embedded configuration. USE_LIMITED_CONFIG=1 takes a folder's limited files")
    parser.add_argument("--venue", metavar="NAME", nargs="+", action="extend", help="only these venues")


def from_arguments(args, environ=os.environ):
    """The Config a command asked for. Raises ConfigError."""
    limited = environ.get("USE_LIMITED_CONFIG", "").lower()
    if limited not in ("", "0", "1", "true", "false"):
        raise ConfigError(f"USE_LIMITED_CONFIG: found {_show(limited)}, expected 1 or 0")
    return load(args.config, args.venue, limited in ("1", "true")) if args.config else builtin(args.venue)


def configure(parser):
    parser.description = "Validate a configuration and print what `run` would do with it; exit code 2 if wrong."
    parser.epilog = "example: python3 -m feeder check-config config/feeder/crypto"
    add_arguments(parser)
    parser.add_argument("path", metavar="DIR|FILE", nargs="?", help="same as --config")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--keys", action="store_true", help="explain every key of every file instead")


def main(args):
    if args.keys:
        for file in ("exchanges", "venue", "hft"):
            for key, default, accepted, meaning in rows(file):
                print(f"{key}: {meaning}\n    {accepted}; default: {default}")
        return 0
    args.config = args.config or args.path
    try:
        config = from_arguments(args)
        config.log.level = log.effective_level(config.log.level)
    except ConfigError as error:
        if args.json:
            print(json.dumps({"valid": False, "problems": getattr(error, "problems", [str(error)])}, indent=2))
        else:
            print(error, file=sys.stderr)
        return error.exit_code
    found = plan(config)
    print(json.dumps(found, indent=2) if args.json else _text(found))
    return 0


def rows(file):
    """(key, default, accepted, meaning) of a file's keys as text; config/README.md must hold them all."""
    for key in SCHEMA:
        if key.file == file and key.default is BY_VENUE:
            yield key.path, "the venue's (`feeder venues`)", expected(key.kind, key.bounds), key.meaning
        elif key.file == file:
            default = "required" if key.default is REQUIRED else json.dumps(key.default)
            yield key.path, default, expected(key.kind, key.bounds), key.meaning


SNAPSHOT_BURST = 0.25          # of a minute's weight may be spent at once; the rest of it refills, evenly


def snapshot_seconds(weight, per_minute):
    """Return how long ingest's SnapshotQueue takes to spend so much."""
    return max(0, weight - SNAPSHOT_BURST * per_minute) / ((1 - SNAPSHOT_BURST) * per_minute) * 60


def snapshot_weight(facts, limit):
    """Return the request weight of a REST book; 0 where the book comes on the stream."""
    return next((weight for levels, weight in facts.snapshot_weights if limit <= levels), 0)


def plan(config):
    """What `run` would do, as a dict for JSON. Snapshots take what their budget makes them wait."""
    venues = []
    for venue in config.venues:
        facts, count = KNOWN_VENUES[venue.name], len(venue.symbols)
        routes = [count * len(set(route) & set(venue.channels)) for route in facts.routes]
        weight = snapshot_weight(facts, venue.snapshot_limit)
        snapshots = count if "depth" in venue.channels and facts.snapshot_weights else 0
        venues.append({
            "name": venue.name, "websocket_url": venue.websocket_url, "rest_url": venue.rest_url,
            "symbols": count, "channels": venue.channels, "published_depth": venue.published_depth,
            "streams": sum(routes),
            "connections": venue.lines * sum(-(-streams // venue.streams_per_connection) for streams in routes),
            "snapshots": snapshots, "snapshot_levels": venue.snapshot_limit, "snapshot_weight": weight * snapshots,
            "snapshot_seconds": round(snapshot_seconds(weight * snapshots, venue.snapshot_weight_per_minute), 1)})
    return {"valid": True, "source": config.source, "venues": venues, "channels": channel_plan(config),
            "memory_bytes": memory_bytes(config), "store_bytes": store_bytes(config.output),
            "output": config.output.as_dict(), "log": config.log.as_dict(),
            **{name: section.as_dict() for name, section in config.hft.as_dict().items()}}


ROUND_WASTE = 1.2              # packets of a snapshot loop, to those that would do were all of them full


def channel_plan(config):
    """What each channel carries, as dicts for JSON; the round of its snapshot loop is an estimate."""
    output = config.output
    ends = channels(output)
    plans = [{"channel": output.channel + index, "endpoint": str(end), "instruments": [], "round_seconds": None}
             for index, end in enumerate(ends)]
    packets = [0] * len(ends)
    for venue in config.venues:
        # Two or three times the depth are published (book.py), unless the venue sends fewer.
        levels = venue.snapshot_limit or WHOLE_BOOK_LEVELS
        if venue.published_depth:
            levels = min(levels, 2.5 * venue.published_depth)
        size = 2 * MESSAGE.size + DEFINITION_BODY.size + 2 * levels * ORDER_BOOK_ITEM.size
        for symbol in venue.symbols:
            index = channel_index(venue.name, symbol, len(ends))
            plans[index]["instruments"].append(f"{venue.name}:{symbol}")
            packets[index] += size / (largest(output.packet_bytes) - PACKET.size)
    if output.snapshot_port:
        for each, count in zip(plans, packets):
            each["round_seconds"] = round(ROUND_WASTE * count / output.snapshot_packets_per_second, 2)
    return plans


def store_bytes(output):
    """What is kept for retransmission, over all channels."""
    return (1 + len(output.more_channels)) * output.retransmit_datagrams * output.packet_bytes * bool(output.retransmit_port)


def tap_bytes(output):
    if not output.tap:
        return 0
    from feeder.net.handover import TAP_SLOTS      # with it the network
    from feeder import tap
    return tap.tap_bytes(TAP_SLOTS)


INTERPRETER_BYTES = 40 * (1 << 20)     # CPython with the package imported and its ordinary buffers
WHOLE_BOOK_LEVELS = 5_000              # where a venue sends all levels there are: more than most have
LEVEL_BYTES = 200                      # a level: two ints and its share of a dict; 114 measured, more when one has just grown


def memory_bytes(config):
    """Estimate of one process whose books have grown to twice their snapshots; with what it keeps to send again, and the
    tap.
    """
    book = sum(len(venue.symbols) * 2 * 2 * (venue.snapshot_limit or WHOLE_BOOK_LEVELS) * LEVEL_BYTES
               for venue in config.venues)
    return INTERPRETER_BYTES + book + store_bytes(config.output) + tap_bytes(config.output)


def retransmission_text(output, kept_bytes):
    if not output["retransmit_port"]:
        return "packets are not sent again"
    where = Endpoint(output["retransmit_address"], output["retransmit_port"], None)
    return (f"packets are sent again by {where} to {', '.join(output['retransmit_networks'])}: the last "
            f"{output['retransmit_datagrams']:,} of a channel, {kept_bytes / (1 << 20):.0f} MiB in all")


def _text(found):
    """The plan for people."""
    lines = [f"configuration is valid: {found['source']}"]
    for venue in found["venues"]:
        plural = "" if venue["connections"] == 1 else "s"
        depth = f"{venue['published_depth']} levels" if venue["published_depth"] else "all levels"
        lines += [
            f"{venue['name']}",
            f"  symbols    {venue['symbols']}, {depth} a side published",
            f"  streams    {venue['streams']} ({', '.join(venue['channels'])}) on {venue['connections']} "
            f"connection{plural} to {venue['websocket_url'] or 'the venue twin'}",
            f"  snapshots  {venue['snapshots']} of {venue['snapshot_levels']} levels, weight "
            f"{venue['snapshot_weight']}, in about {venue['snapshot_seconds']:.0f} s "
            f"from {venue['rest_url'] or 'the venue twin'}"]
    output, log_file, cpu = found["output"], found["log"], found["cpu_affinity"]
    pinned = cpu["enabled"] and cpu["processor_core"] >= 0
    lines += [
        f"output       packets of {output['packet_bytes']} bytes, ttl {output['ttl']}, "
        f"loopback {'on' if output['loopback'] else 'off'}, "
        + (f"signed with the key in {output['key_file']}" if output["key_file"] else "not signed")]
    for each in found["channels"]:
        address, _, interface = each["endpoint"].partition("@")
        lines.append(f"  channel {each['channel']:<4} {address} from {interface or 'any interface'}: "
                     f"{len(each['instruments'])} instruments")
        if each["round_seconds"] is not None:
            lines.append(f"    snapshots  at port {output['snapshot_port']}, {output['snapshot_packets_per_second']} packets/s, a "
                         f"round in about {each['round_seconds']:.1f} s")
    lines += [f"  {what:<12} {text}" for what, text in (
        ("snapshots", "" if output["snapshot_port"] else "none: books are repeated in the channels"),
        ("also to", ", ".join(output["fan_out"])),
        ("missed", retransmission_text(output, found["store_bytes"])),
        ("tap", f"{output['tap']}: every datagram in memory, for listeners on this host" if output["tap"] else "")) if text]
    lines += [
        f"processor    {cpu['processor_core'] if pinned else 'not pinned'}",
        f"limits       {found['processing']['max_symbols']} symbols, ring of "
        f"{found['processing']['ring_buffer_size']} slots",
        f"log          {log_file['path'] or 'none'}, {log_file['level']}, rotated at {log_file['max_bytes']} bytes, "
        f"{log_file['keep']} kept",
        f"memory       about {found['memory_bytes'] / (1 << 20):.0f} MiB at worst"]
    return "\n".join(lines)
