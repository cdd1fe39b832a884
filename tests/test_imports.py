"""The arrows between modules, kept honest: every import and every forbidden call is read from the source by ast.

words < machines < edges < wiring < commands: a module imports from its own layer and those below. A machine
imports no machine outside its own folder but those in SHARED, and of the standard library only what touches
neither socket, file, clock nor dice. Each power has one home. Nothing but the standard library is imported.
"""

import ast
import importlib
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import feeder

ROOT = Path(__file__).parent.parent

# The layer of a module, or of all in a package; the longest name decides.
WORDS, MACHINES, EDGES, WIRING, COMMANDS = range(5)
LAYERS = {
    "feeder": WORDS, "feeder.errors": WORDS, "feeder.fixed": WORDS, "feeder.clock": WORDS, "feeder.instrument": WORDS,
    "feeder.message": WORDS, "feeder.seal": WORDS, "feeder.endpoint": WORDS,
    "feeder.events": WORDS,
    "feeder.websocket": MACHINES, "feeder.venue": MACHINES, "feeder.arbiter": MACHINES, "feeder.recovery": MACHINES, "feeder.redundant": MACHINES,
    "feeder.ring": MACHINES, "feeder.tap": MACHINES, "feeder.record": MACHINES, "feeder.book": MACHINES, "feeder.conflate": MACHINES,
    "feeder.packet": MACHINES, "feeder.control": MACHINES, "feeder.pcap": MACHINES,
    "feeder.counter": MACHINES, "feeder.receiver": MACHINES, "feeder.reorder": MACHINES, "feeder.stream": MACHINES,
    "feeder.view": MACHINES,
    "feeder.host": EDGES, "feeder.net": EDGES, "feeder.shm": EDGES, "feeder.capture": EDGES, "feeder.log": EDGES,
    "feeder.screen": EDGES, "feeder.report": EDGES, "feeder.listings": EDGES, "feeder.keyfile": EDGES,
    "feeder.config": WIRING, "feeder.schema": WIRING, "feeder.publish": WIRING, "feeder.pipeline": WIRING,
    "feeder.ingest": WIRING, "feeder.line": WIRING,
    "feeder.replay": WIRING, "feeder.replay_capture": WIRING, "feeder.listen": WIRING, "feeder.retransmit": WIRING, "feeder.run": WIRING, "feeder.supervise": WIRING,
    "feeder.inlet": WIRING, "feeder.listener": WIRING,
    "feeder.stages": WIRING, "feeder.status": WIRING, "feeder.worker": WIRING, "feeder.pipe": EDGES,
    "feeder.twin": WIRING, "feeder.twin.market": MACHINES, "feeder.twin.faults": MACHINES,
    "feeder.twin.dialect": MACHINES, "feeder.twin.binance": MACHINES, "feeder.twin.bybit": MACHINES,
    "feeder.twin.bitfinex": MACHINES,
    "feeder.twin.okx": MACHINES, "feeder.twin.deribit": MACHINES,
    "feeder.twin.coinbase": MACHINES, "feeder.twin.coinbase_exchange": MACHINES, "feeder.twin.kraken": MACHINES,
    "feeder.twin.upbit": MACHINES, "feeder.twin.bithumb": MACHINES,
    "feeder.bench": COMMANDS, "feeder.checks": COMMANDS, "feeder.doctor": COMMANDS, "feeder.cli": COMMANDS, "feeder.venues": COMMANDS,
    "feeder.__main__": COMMANDS,
}
NAMES = {WORDS: "words", MACHINES: "machines", EDGES: "edges", WIRING: "wiring", COMMANDS: "commands"}

# Machines that another machine may import: both are vocabularies more than machines.
SHARED = {("feeder.recovery", "feeder.venue.contract"), ("feeder.redundant", "feeder.recovery"),      # how a venue's increments link
          ("feeder.control.store", "feeder.packet"), ("feeder.control.client", "feeder.packet"),
          ("feeder.receiver", "feeder.packet"),                # the listener's half of the protocol
          ("feeder.receiver", "feeder.counter"), ("feeder.receiver", "feeder.reorder"),
          ("feeder.receiver", "feeder.stream"), ("feeder.receiver", "feeder.view"), ("feeder.stream", "feeder.view"),
          ("feeder.stream", "feeder.packet"), ("feeder.stream", "feeder.reorder"), ("feeder.stream", "feeder.counter"),
          ("feeder.view", "feeder.packet"),
          ("feeder.arbiter", "feeder.receiver"),               # kinds of Heard; what the listener's half heard
          ("feeder.arbiter", "feeder.packet"), ("feeder.arbiter", "feeder.counter")}

# The package's door for users, by module __getattr__: nothing that imports feeder goes through it.
DOOR = ("feeder", "feeder.listener")

# What words and machines may import of the standard library.
PURE = {"array", "base64", "binascii", "bisect", "codecs", "collections", "functools", "hashlib", "heapq", "hmac", "http", "ipaddress",
        "itertools", "math", "operator", "re", "struct", "typing", "urllib.parse", "zlib"}

# One home per power: the top of a module's name, and who may import it.
HOMES = {
    "ctypes": {"feeder.host"}, "resource": {"feeder.host"},
    "socket": {"feeder.net", "feeder.bench"}, "ssl": {"feeder.net"}, "select": {"feeder.net"}, "selectors": {"feeder.net"},
    "urllib.request": {"feeder.net"},
    "http.client": {"feeder.net", "feeder.twin"},
    "time": {"feeder.clock"}, "datetime": {"feeder.log"},
    "random": {"feeder.twin", "feeder.ingest"},                                    # ingest: jitter of reconnects
    "os": {"feeder.host", "feeder.keyfile", "feeder.net", "feeder.shm", "feeder.log", "feeder.screen", "feeder.capture", "feeder.report",
           "feeder.config", "feeder.line", "feeder.listings", "feeder.listen", "feeder.replay", "feeder.run", "feeder.twin", "feeder.retransmit",
           "feeder.supervise", "feeder.stages", "feeder.worker", "feeder.pipe", "feeder.bench", "feeder.doctor", "feeder.cli",
           "feeder.websocket.connection"},
    "json": {"feeder.venue", "feeder.twin", "feeder.config", "feeder.capture", "feeder.report", "feeder.listen",
             "feeder.pipe", "feeder.bench", "feeder.venues",
             "feeder.listings"},
    "subprocess": {"feeder.twin", "feeder.supervise", "feeder.bench", "feeder.doctor"},
    "mmap": {"feeder.shm"}, "multiprocessing": {"feeder.shm"}, "importlib": {"feeder.cli", "feeder.bench"},
    **dict.fromkeys(("asyncio", "pickle", "marshal", "shelve", "dbm", "code", "runpy", "imp", "pip"), set()),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
WORLD_CALLS = {"open", "print", "input", "breakpoint"}         # not in words and machines


class Module:
    """One source file: its dotted name, and every module it imports, wherever in the file."""

    def __init__(self, name, source, is_package=False):
        self.name = name
        self.tree = ast.parse(source)
        self.imports = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self.imports.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = name.split(".")[:len(name.split(".")) - node.level + is_package]
                    base = ".".join(parents + [base] if base else parents)
                self.imports.update(self.target(base, alias.name) for alias in node.names)

    @staticmethod
    def target(base, name):
        """`from a import b` imports a.b where that is a module of ours, else a."""
        path = ROOT.joinpath(*base.split("."), name)
        return f"{base}.{name}" if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() else base

    @property
    def layer(self):
        return layer(self.name)


def within(name, package):
    return name == package or name.startswith(package + ".")


def layer(name):
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        known = ".".join(parts[:count])
        if known in LAYERS and (known != "feeder" or count == len(parts)):
            return LAYERS[known]
    return None


def folder(name):
    """Return the package that a module of a package belongs to, or its own name."""
    return ".".join(name.split(".")[:2])


def modules(top):
    found = []
    for path in sorted((ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return found


@pytest.fixture(scope="module")
def ours():
    """Parsed for these tests only: half a million objects that the collector would look at in all others."""
    return modules("feeder")


# -- the rules; each returns its complaints ------------------------------------------------------------------

def docstring(module):
    return [] if ast.get_docstring(module.tree) else [f"{module.name} has no docstring to open with"]


def known_layer(module):
    return [] if module.layer is not None else [f"{module.name} is in no layer: give it one in LAYERS"]


def arrows(module):
    """Imports point up the map; machines meet in wiring."""
    wrong = []
    for target in sorted(name for name in module.imports if within(name, "feeder")):
        if layer(target) is None or module.layer is None or (module.name, target) == DOOR:
            continue                                          # known_layer tells
        if layer(target) > module.layer:
            wrong.append(f"{module.name} ({NAMES[module.layer]}) imports {target} ({NAMES[layer(target)]})")
        elif (module.layer == layer(target) == MACHINES and folder(module.name) != folder(target)
              and (module.name, target) not in SHARED):
            wrong.append(f"machine {module.name} imports machine {target}")
    return wrong


def powers(module):
    wrong = []
    for target in sorted(module.imports):
        for power, homes in HOMES.items():
            if within(target, power) and not any(within(module.name, home) for home in homes):
                wrong.append(f"{module.name} imports {target}, whose home is {', '.join(sorted(homes)) or 'nowhere'}")
        if module.layer in (WORDS, MACHINES) and not within(target, "feeder"):
            if not any(within(target, name) for name in PURE) and not any(within(target, name) for name in HOMES):
                wrong.append(f"{module.name} imports {target}, which is not among the pure modules")
    return wrong


def calls(module):
    """No code from data, no shell; and in words and machines no file, terminal or `os` but its random bytes."""
    wrong = []
    forbidden = FORBIDDEN_CALLS | (WORLD_CALLS if module.layer in (WORDS, MACHINES) else set())
    for node in ast.walk(module.tree):
        where = f"{module.name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Name) and node.id in forbidden:
            wrong.append(f"{where}: {node.id}")
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            wrong.append(f"{where}: shell=")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            text = f"{node.value.id}.{node.attr}"
            if text in ("os.system", "os.popen") and module.name != "feeder.screen" or (   # screen: a Windows console
                    module.layer in (WORDS, MACHINES) and node.value.id == "os" and node.attr != "urandom"):
                wrong.append(f"{where}: {text}")
            elif text in ("datetime.now", "datetime.utcnow", "datetime.today", "date.today"):
                wrong.append(f"{where}: {text} reads a clock")
    return wrong


def is_standard(name):
    """True for a module of the standard library. sys.stdlib_module_names came with 3.10 only."""
    top = name.partition(".")[0]
    if top in sys.builtin_module_names:
        return True
    spec = importlib.util.find_spec(top)
    if spec is None:
        return False
    if spec.origin in ("built-in", "frozen"):
        return True
    origin = Path(spec.origin or "")
    home = Path(sysconfig.get_path("stdlib"))
    return home in origin.parents and "site-packages" not in origin.parts


def foreign(module, allowed=("feeder",)):
    return [f"{module.name} imports {target}, which is not in the standard library" for target in sorted(module.imports)
            if target.partition(".")[0] not in allowed and not is_standard(target)]


RULES = (docstring, known_layer, arrows, powers, calls, foreign)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules(rule, ours):
    assert [complaint for module in ours for complaint in rule(module)] == []


def test_tools_and_tests_import_the_standard_library_too():
    known = {path.stem for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py")}
    wrong = []
    for module in modules("tools") + modules("tests"):
        if within(module.name, "tools"):
            wrong += docstring(module) + foreign(module, ("feeder", *known))
        else:
            wrong += foreign(module, ("feeder", "pytest", "_pytest", "tests", "tools", *known))
    assert wrong == []


def test_no_circles(ours):
    """Modules import each other in one direction only, inside packages too."""
    graph = {module.name: {name for name in module.imports if within(name, "feeder") and (module.name, name) != DOOR}
             for module in ours}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join(path[path.index(name):] + [name])
        if name in done:
            return
        path.append(name)
        for target in sorted(graph.get(name, ())):
            visit(target)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("name, source, rule, complaint", [
    ("feeder.book", "x = 1", docstring, "feeder.book has no docstring to open with"),
    ("feeder.surprise", "", known_layer, "feeder.surprise is in no layer: give it one in LAYERS"),
    ("feeder.surprise.inner", "", known_layer, "feeder.surprise.inner is in no layer: give it one in LAYERS"),
    ("feeder.fixed", "from feeder.book import Book", arrows, "feeder.fixed (words) imports feeder.book (machines)"),
    ("feeder.book", "def f():\n  from feeder import net", arrows, "feeder.book (machines) imports feeder.net (edges)"),
    ("feeder.net.stream", "from ..packet import decode\nfrom .. import run", arrows,
     "feeder.net.stream (edges) imports feeder.run (wiring)"),
    ("feeder.book", "from feeder.packet import decode", arrows, "machine feeder.book imports machine feeder.packet"),
    ("feeder.venue.okx", "from ..recovery import Recovery", arrows,
     "machine feeder.venue.okx imports machine feeder.recovery"),
    ("feeder.replay", "import socket", powers, "feeder.replay imports socket, whose home is feeder.bench, feeder.net"),
    ("feeder.run", "from ctypes.util import find_library", powers,
     "feeder.run imports ctypes.util, whose home is feeder.host"),
    ("feeder.net.loop", "import time", powers, "feeder.net.loop imports time, whose home is feeder.clock"),
    ("feeder.publish", "import pickle", powers, "feeder.publish imports pickle, whose home is nowhere"),
    ("feeder.book", "import logging", powers, "feeder.book imports logging, which is not among the pure modules"),
    ("feeder.run", "eval('1')", calls, "feeder.run, line 1: eval"),
    ("feeder.run", "__import__('os')", calls, "feeder.run, line 1: __import__"),
    ("feeder.book", "x = 1\nopen('x')", calls, "feeder.book, line 2: open"),
    ("feeder.websocket.connection", "import os\nos.getpid()", calls, "feeder.websocket.connection, line 2: os.getpid"),
    ("feeder.log", "datetime.now()", calls, "feeder.log, line 1: datetime.now reads a clock"),
    ("feeder.twin", "run('ls', shell=True)", calls, "feeder.twin, line 1: shell="),
    ("feeder.run", "import numpy.linalg", foreign,
     "feeder.run imports numpy.linalg, which is not in the standard library"),
    ("feeder.run", "import pytest", foreign, "feeder.run imports pytest, which is not in the standard library"),
])
def test_each_rule_can_fail(name, source, rule, complaint):
    assert rule(Module(name, source)) == [complaint]


def test_what_is_allowed_passes():
    for name, source in (("feeder.net.stream", '"""."""\nimport socket\nfrom ..clock import SECOND'),
                         ("feeder.venue.okx", '"""."""\nimport json, re\nfrom feeder.venue.contract import Venue'),
                         ("feeder.recovery", '"""."""\nfrom feeder.venue.contract import GAP'),
                         ("feeder.websocket.connection", '"""."""\nimport os\nos.urandom(4)')):
        assert [complaint for rule in RULES for complaint in rule(Module(name, source))] == []


HEAVY = ("ssl", "asyncio", "socket", "ctypes", "http.client", "json", "logging", "subprocess")


def loaded(*names):
    """Return which of HEAVY a fresh interpreter has loaded after importing `names`."""
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            f"for name in {names!r}: __import__(name)\n"
            f"print(' '.join(name for name in {HEAVY!r} if name in sys.modules))")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          text=True, timeout=60, check=True)
    return done.stdout.split()


def test_the_command_line_starts_light():
    """`feeder -V` and `--help` load no machinery; each command brings its own."""
    assert loaded("feeder", "feeder.cli") == []


def test_the_library_is_loaded_when_it_is_asked_for():
    assert "socket" in loaded("feeder.listener") and loaded("feeder.events") == []
    assert feeder.Listener is importlib.import_module("feeder.listener").Listener
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        feeder.nothing


def test_a_run_waits_for_nothing_that_only_some_runs_need():
    """TLS, REST's client and the twin's are loaded when they are wanted: 25 ms of 65."""
    assert set(loaded("feeder.run")) == {"socket", "ctypes", "json", "logging"}


def test_words_and_the_machines_of_the_data_path_load_no_machinery():
    assert loaded("feeder.message", "feeder.book", "feeder.packet", "feeder.counter", "feeder.receiver") == []
    assert loaded("feeder.recovery", "feeder.venue") == ["json"]
