import argparse
import json
import os
import random
import shutil

import pytest

from feeder import config, schema
from feeder.errors import ConfigError

SHIPPED = os.path.join(os.path.dirname(__file__), os.pardir, "config", "feeder", "crypto")
README = os.path.join(SHIPPED, os.pardir, os.pardir, "README.md")


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped folder with two of its venues, for `edit` to spoil."""
    path = tmp_path / "crypto"
    shutil.copytree(SHIPPED, path)
    edit(path, "crypto_exchanges.json", lambda document: document.update(venues=["binance_spot", "binance_usdm"]))
    return path


def edit(folder, name, change):
    document = json.loads((folder / name).read_text("utf-8"))
    change(document)
    (folder / name).write_text(json.dumps(document, indent=1), "utf-8")


def problems(path, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        config.load(path, *args, **kwargs)
    assert caught.value.exit_code == 2
    for problem in caught.value.problems[:config.MAX_PROBLEMS_SHOWN]:
        assert problem in str(caught.value)
    return caught.value.problems


def only_problem(path, *args, **kwargs):
    found = problems(path, *args, **kwargs)
    assert len(found) == 1, found
    return found[0]


# -- what is shipped and what is built in


def test_builtin_is_what_the_twin_serves():
    built = config.builtin()
    assert [venue.name for venue in built.venues] == ["binance_spot", "binance_usdm"]
    for venue in built.venues:
        assert venue.symbols == [coin + "USDT" for coin in config.TWIN_COINS] and len(venue.symbols) == 10
        assert venue.websocket_url == venue.rest_url == ""
        assert venue.channels == ["depth", "trade", "bbo"]
    assert [venue.snapshot_limit for venue in built.venues] == [1000, 1000], "all of the twin's levels, at little weight"
    assert (built.output.group, built.output.port, built.output.packet_bytes) == ("239.192.0.1", 30001, 1472)
    assert (built.hft.cpu_affinity.enabled, built.hft.cpu_affinity.processor_core) == (True, -1)
    assert (built.hft.processing.ring_buffer_size, built.hft.processing.max_symbols) == (65536, 2048)
    assert built.log.path == "feeder.log"
    assert built.names["binance_spot", "BTCUSDT"] == "BTC/USDT"
    assert built.names["binance_usdm", "BTCUSDT"] == "BTC/USDT-PERP"


def test_builtin_is_made_anew_each_time():
    config.builtin().venues[0].symbols.clear()
    config.builtin().venues[0].channels.clear()
    assert len(config.builtin().venues[0].symbols) == 10
    assert len(config.builtin().venues[0].channels) == 3


def test_builtin_takes_only_its_venues():
    assert [venue.name for venue in config.builtin(["binance_usdm"]).venues] == ["binance_usdm"]
    with pytest.raises(ConfigError, match="--venue: found \"binance_coinm\", expected one that .* lists: binance_spot"):
        config.builtin(["binance_coinm"])


@pytest.mark.parametrize("limited", [False, True])
def test_shipped_folder_is_valid(limited):
    loaded = config.load(SHIPPED, limited=limited)
    assert [venue.name for venue in loaded.venues] == list(schema.SUPPORTED_VENUES)
    for venue in loaded.venues:
        assert len(venue.symbols) == 10 if limited else len(venue.symbols) >= 10
        assert venue.websocket_url.startswith("wss://") and venue.rest_url.startswith("https://")
    assert ("limited" in loaded.source) == limited


def test_shipped_settings_are_the_defaults():
    loaded, built = config.load(SHIPPED), config.builtin()
    assert (loaded.hft.runtime.workers, built.hft.runtime.workers) == (4, 0), "embedded: all in one process"
    built.hft.runtime.workers = 4
    assert repr((loaded.hft, loaded.output, loaded.log)) == repr((built.hft, built.output, built.log))


def test_one_venue_of_the_folder():
    assert [venue.name for venue in config.load(SHIPPED, ["binance_usdm"]).venues] == ["binance_usdm"]
    assert "--venue: found \"binance\"" in only_problem(SHIPPED, ["binance"])


def test_single_file():
    loaded = config.load(os.path.join(SHIPPED, "binance_usdm.limited.json"), limited=False)
    assert [venue.name for venue in loaded.venues] == ["binance_usdm"]
    assert loaded.output.port == 30001
    assert "--venue" in only_problem(os.path.join(SHIPPED, "binance_usdm.json"), ["binance_spot"])


def test_readme_documents_every_key_as_it_is():
    with open(README, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    for file in ("exchanges", "venue", "hft"):
        for row in config.rows(file):
            assert list(row) in cells, f"config/README.md lacks or differs from: {row}"
    keys = {key.path for key in schema.SCHEMA}
    documented = {row[0] for row in cells if len(row) == 4 and row[0] not in ("key", "---")}
    assert documented == keys


def test_schema_describes_itself():
    assert len({(key.file, key.path) for key in schema.SCHEMA}) == len(schema.SCHEMA)
    for key in schema.SCHEMA:
        assert schema.expected(key.kind, key.bounds)
        if key.default not in (schema.REQUIRED, schema.BY_VENUE) and key.kind not in schema.LISTS:
            assert schema.accepts(key.kind, key.default, key.bounds), key
    for name in schema.SUPPORTED_VENUES:
        for path, value in schema.defaults("venue", name).items():
            (key,) = [key for key in schema.SCHEMA if key.file == "venue" and key.path == path]
            assert key.kind in schema.LISTS or schema.accepts(key.kind, value, key.bounds)


def test_sections_refuse_wrong_names():
    built = config.builtin()
    with pytest.raises(AttributeError):
        built.output.prot = 1
    with pytest.raises(TypeError):
        config.Log(path="", level="info", max_bytes=1, keep=1, colour="red")
    assert "port" in repr(built.output)


# -- names


@pytest.mark.parametrize("symbol, name", [
    ("BTCUSDT", "BTC/USDT"), ("ETHBTC", "ETH/BTC"), ("BTCUSDT_260925", "BTC/USDT-260925"), ("BTCFDUSD", "BTC/FDUSD"),
    ("1000PEPEUSDT", "1000PEPE/USDT"), ("USDT", "USDT"), ("FOOBAR", "FOOBAR"),
    ("币安人生USDT", "币安人生/USDT"),
])
def test_common_name(symbol, name):
    assert config.common_name("binance_spot", symbol) == name


def test_mapping_overrules_the_rule(folder):
    edit(folder, "symbol_mapping.json", lambda d: d["binance_spot"].update(BTCUSDT="XBT/USDT"))
    names = config.load(folder).names
    assert names["binance_spot", "BTCUSDT"] == "XBT/USDT"
    assert names["binance_usdm", "BTCUSDT"] == "BTC/USDT-PERP"


@pytest.mark.parametrize("text, part", [
    ('{"binance_sopt": {}}', "nearest is binance_spot"),
    ('{"binance_spot": ["BTCUSDT"]}', "found a list of 1, expected an object"),
    ('{"binance_spot": {"BTCUSDT": 5}}', "binance_spot.BTCUSDT: found 5"),
    ('{"binance_spot": {"BTCUSDT": "BTC USDT"}}', "text without spaces"),
    ('{"binance_spot": {"BTCUSDT": "A", "BTCUSDT": "B"}}', "binance_spot.BTCUSDT: found the key twice")])
def test_wrong_mappings(folder, text, part):
    (folder / "symbol_mapping.json").write_text(text)
    assert part in only_problem(folder)


# -- strict reading


def hft(folder, section, key, value):
    def change(document):
        document[section][key] = value
    edit(folder, "hft_config.json", change)


@pytest.mark.parametrize("section, key, value, part", [
    ("processing", "ring_buffer_size", 65535, "power of two from 2 to 16777216; nearest are 32768 and 65536"),
    ("processing", "ring_buffer_size", 0, "found 0, expected a power of two"),
    ("processing", "ring_buffer_size", -4, "found -4, expected a power of two"),
    ("processing", "ring_buffer_size", True, "found true, expected a power of two"),
    ("processing", "max_symbols", True, "found true, expected an integer from 1"),
    ("processing", "max_symbols", 5.0, "found 5.0, expected an integer"),
    ("processing", "max_symbols", "5", 'found "5", expected an integer'),
    ("processing", "max_symbols", None, "found null, expected an integer"),
    ("processing", "max_symbols", {}, "found an object, expected an integer"),
    ("processing", "max_symbols", 20, "processing.max_symbols: found 104 symbols over all venues, expected at most 20"),
    ("cpu_affinity", "enabled", 1, "cpu_affinity.enabled: found 1, expected true or false"),
    ("cpu_affinity", "processor_core", -2, "cpu_affinity.processor_core: found -2, expected an integer from -1"),
    ("output", "port", 0, "output.port: found 0, expected an integer from 1 to 65535"),
    ("output", "port", 70000, "found 70000"),
    ("output", "group", "239.192.0.256", "expected an IPv4 or IPv6 address"),
    ("output", "group", 5, "found 5, expected an IPv4 or IPv6 address"),
    ("output", "group", "ff02::1::1", "expected an IPv4 or IPv6 address"),
    ("output", "group", "0.0.0.0", "expected an IPv4 or IPv6 address"),
    ("output", "group", "::", "expected an IPv4 or IPv6 address"),
    ("output", "more_channels", "239.192.0.2:30001", 'found "239.192.0.2:30001", expected a list'),
    ("output", "more_channels", ["239.192.0.2"], "output.more_channels[0]: found \"239.192.0.2\", expected ADDRESS:PORT"),
    ("output", "more_channels", ["239.192.0.2:0"], "expected ADDRESS:PORT or [IPv6]:PORT, and @INTERFACE"),
    ("output", "more_channels", ["0.0.0.0:30001"], "expected ADDRESS:PORT"),
    ("output", "more_channels", ["239.192.0.2:30001"] * 2, "no duplicate of output.more_channels[0]"),
    ("output", "more_channels", ["239.192.0.1:30001"], "output.more_channels[0]: found \"239.192.0.1:30001\", expected "
     "another one than output.port"),
    ("output", "more_channels", ["239.192.0.2:30002"], "output.snapshot_port: found 30002, expected another port than "
     "output.more_channels[0] has"),
    ("output", "fan_out", ["239.192.0.1:30001"], "output.fan_out[0]: found"),
    ("output", "fan_out", ["10.0.0.7:30002@eth1"], "expected another port than output.fan_out[0] has"),
    ("output", "snapshot_port", 30001, "output.snapshot_port: found 30001, expected another port than output.port has"),
    ("output", "snapshot_packets_per_second", 0, "found 0, expected an integer from 1 to 10000"),
    ("output", "retransmit_address", "239.192.0.1", "expected an IPv4 or IPv6 address of a host"),
    ("output", "retransmit_networks", ["10.0.0.7/8"], "expected a network such as 10.1.0.0/16, its host bits 0"),
    ("output", "retransmit_networks", [], "found a list of 0, expected a list without duplicates"),
    ("output", "retransmit_networks", [7], "output.retransmit_networks[0]: found 7"),
    ("output", "key_file", "missing.key", "missing.key: No such file"),
    ("output", "key_file", ".", "output.key_file: found key file"),
    ("output", "tap", "../x", "expected up to 64 letters, digits"),
    ("output", "tap", "x" * 65, "expected up to 64 letters, digits"),
    ("output", "interface", "eth0\n", "printable"),
    ("output", "loopback", "yes", "expected true or false"),
    ("log", "level", "chatty", 'log.level: found "chatty", expected one of debug, info, warning, error'),
    ("log", "level", ["info"], "expected one of debug"),
    ("log", "keep", 0, "log.keep: found 0"),
    ("log", "pth", "x", "log.pth: found an unknown key, expected a known one; nearest is log.path"),
    ("log", "ring_buffer_size", 4, "nearest is processing.ring_buffer_size"),
    ("log", "x" * 200, 4, "found an unknown key, expected a known one; known are cpu_affinity.enabled"),
    ("log", "path", "y" * 2000, "..."),
])
def test_wrong_settings(folder, section, key, value, part):
    hft(folder, section, key, value)
    problem = only_problem(folder)
    assert part in problem
    assert "hft_config.json" in problem or part.startswith("processing.max_symbols")


def test_channels_end_with_the_last_number(folder):
    def change(document):
        document["output"].update(channel=65_535, more_channels=["239.192.0.2:30001", "239.192.0.3:30001"])
    edit(folder, "hft_config.json", change)
    assert "output.more_channels: found 2 more after channel 65535, expected numbers below 65536" in only_problem(folder)


def test_endpoints_take_the_interface_of_all_unless_they_name_one(folder):
    def change(document):
        document["output"].update(group="ff15::1", interface="eth0", fan_out=["[fd00::7]:30001", "10.0.0.7:30001@eth1"],
                                  more_channels=["[ff15::2]:30011@eth1", "239.192.0.2:30001"], snapshot_port=0)
    edit(folder, "hft_config.json", change)
    output = config.load(folder).output
    assert list(map(str, config.channels(output))) == ["[ff15::1]:30001@eth0", "[ff15::2]:30011@eth1",
                                                       "239.192.0.2:30001@eth0"]
    assert list(map(str, config.fan_out(output))) == ["[fd00::7]:30001@eth0", "10.0.0.7:30001@eth1"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_key_file_is_relative_to_its_file_and_for_its_users_only(folder):
    hft(folder, "output", "key_file", "feeder.key")
    (folder / "feeder.key").write_text("0123456789abcdef")
    (folder / "feeder.key").chmod(0o640)
    assert os.path.samefile(config.load(folder).output.key_file, folder / "feeder.key")
    (folder / "feeder.key").chmod(0o644)
    assert "everybody on this host may read" in only_problem(folder)
    (folder / "feeder.key").chmod(0o600)
    (folder / "feeder.key").write_text("0123456789abcde\n")
    problem = only_problem(folder)
    assert "key of 15 bytes" in problem and "0123456789" not in problem


@pytest.mark.parametrize("key, value, part", [
    ("venue", "binance_sopt", "nearest is binance_spot"),
    ("venue", "binance_coinm", "binance_coinm is known, but not supported yet"),
    ("venue", "binance_usdm", 'found "binance_usdm", expected "binance_spot", as the file is named'),
    ("venue", ["binance_spot"], "found a list of 1, expected a supported venue"),
    ("websocket_url", "https://stream.binance.com", "with a scheme of ws, wss"),
    ("websocket_url", "wss://", "with a scheme of ws, wss"),
    ("websocket_url", "wss://host:99999", "with a scheme"),
    ("websocket_url", "wss://host:0", "with a scheme"),
    ("websocket_url", "wss://[::1", "with a scheme"),
    ("websocket_url", "wss://me:secret@host", '"wss://***@host"'),
    ("websocket_url", "wss://host/ws?x=1", "with a scheme"),
    ("websocket_url", "", "with a scheme"),
    ("websocket_url", 7, "found 7"),
    ("rest_url", "wss://api.binance.com", "with a scheme of http, https"),
    ("proxy", "socks5://me:secret@host:1080", '"socks5://***@host:1080", expected http://'),
    ("proxy", None, "found null"),
    ("symbols", [], "found a list of 0, expected a list without duplicates"),
    ("symbols", "BTCUSDT", 'found "BTCUSDT", expected a list'),
    ("symbols", ["BTCUSDT", "ETHUSDT", "BTCUSDT"], 'symbols[2]: found "BTCUSDT", expected no duplicate of symbols[0]'),
    ("symbols", ["BTCUSDT", "btcusdt"], "symbols[1]: found \"btcusdt\", expected the venue's own spelling"),
    ("symbols", ["BTC/USDT"], "expected the venue's own spelling"),
    ("symbols", ["BTC USDT"], "text without spaces"),
    ("symbols", ["\ud800"], "text without spaces"),
    ("symbols", ["币" * 11], "text without spaces of 1 to 32 bytes"),
    ("symbols", [{"a": 1}], "symbols[0]: found an object"),
    ("symbols", [True], "symbols[0]: found true"),
    ("channels", ["depth", "trades"], 'channels[1]: found "trades", expected one of depth, trade, bbo'),
    ("channels", ["depth", "depth"], "no duplicate of channels[0]"),
    ("depth_interval_ms", 250, "depth_interval_ms: found 250, expected one of 100, 1000"),
    ("lines", 3, "found 3, expected an integer from 1 to 2"),
    ("snapshot_limit", 5001, "snapshot_limit: found 5001, expected 1 to 5000"),
    ("snapshot_weight_per_minute", 249, "found 249, expected at least 250, the weight of one snapshot of 5000 levels"),
    ("stale_after_s", 0, "found 0, expected a number from 0.1 to 3600"),
    ("stale_after_s", True, "found true, expected a number"),
    ("verify_tls", 0, "found 0, expected true or false"),
    ("ca_file", "missing.pem", "expected a file that exists"),
    ("ca_file", ".", "expected a file that exists"),
    ("publishd_depth", 20, "nearest is published_depth"),
])
def test_wrong_venue(folder, key, value, part):
    edit(folder, "binance_spot.json", lambda document: document.update({key: value}))
    problem = only_problem(folder)
    assert part in problem and "binance_spot.json" in problem and "secret" not in problem


def test_usdm_has_its_own_limits(folder):
    edit(folder, "binance_usdm.json", lambda document: document.update(snapshot_limit=400, depth_interval_ms=1000))
    found = problems(folder)
    assert len(found) == 2
    assert "found 1000, expected one of 100, 250, 500" in found[0]
    assert "found 400, expected one of 5, 10, 20" in found[1]


def test_defaults_follow_the_venue(folder):
    def strip(document):
        for key in set(document) - {"venue", "websocket_url", "rest_url", "symbols"}:
            del document[key]
    edit(folder, "binance_spot.json", strip)
    edit(folder, "binance_usdm.json", strip)
    spot, usdm = config.load(folder).venues
    assert (spot.snapshot_limit, usdm.snapshot_limit) == (5000, 1000)
    assert (spot.streams_per_connection, usdm.streams_per_connection) == (1024, 200)


def test_required_keys(tmp_path):
    (tmp_path / "v.json").write_text("{}")
    found = problems(tmp_path / "v.json")
    assert len(found) == 4
    assert all("found nothing, expected" in problem for problem in found)


@pytest.mark.parametrize("value, ok", [
    ("ws://127.0.0.1:8080", True), ("wss://[::1]:443/base/", True), ("ws:/host", False), ("host:443", False)])
def test_urls(folder, value, ok):
    edit(folder, "binance_spot.json", lambda document: document.update(websocket_url=value))
    if ok:
        assert config.load(folder).venues[0].websocket_url == value.rstrip("/")
    else:
        only_problem(folder)


def test_ca_file_is_relative_to_its_file(folder):
    (folder / "ca.pem").write_text("")
    edit(folder, "binance_spot.json", lambda document: document.update(ca_file="ca.pem"))
    assert os.path.samefile(config.load(folder).venues[0].ca_file, folder / "ca.pem")


@pytest.mark.parametrize("raw, part", [
    (b'{"log": {"level": "info", "level": "debug"}}', "hft_config.json: log.level: found the key twice, expected it"),
    (b'{"log": {}, "log": {}}', "log: found the key twice"),
    (b'{"log": []}', "hft_config.json:1: log: found a list of 0, expected an object"),
    (b'{"log": {"level": NaN}}', "NaN is no JSON number"),
    (b'{"log": {"level": -Infinity}}', "-Infinity is no JSON number"),
    (b'{"processing": {"max_symbols": 1e999}}', "found Infinity, expected an integer"),
    (b"[]", "found a list of 0, expected an object"),
    (b"null", "found null, expected an object"),
    (b"", "hft_config.json:1: not JSON"),
    (b'{\n"log": {\n"level": }}', "hft_config.json:3: not JSON: Expecting value (column 10)"),
    (b'{"log": {}} x', "not JSON: Extra data"),
    (b"\xff", "not JSON: 'utf-8' codec"),
    (b"[" * 200_000, "not JSON"),
    (b'{"processing": {"max_symbols": ' + b"9" * 10_000 + b"}}", "hft_config.json"),
    (b" " * (config.MAX_FILE_BYTES + 1), "longer than 1048576 bytes"),
    (b'{"\\ud800": 1}', "\\ud800: found an unknown key"),
    (b'{\n\n"output": {"port": "x"}}', "hft_config.json:3: output.port"),
])
def test_strict_json(folder, raw, part):
    (folder / "hft_config.json").write_bytes(raw)
    assert part in only_problem(folder)


def test_byte_order_mark_is_accepted(folder):
    path = folder / "hft_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    config.load(folder)


def test_unknown_venues_in_the_list(folder):
    edit(folder, "crypto_exchanges.json", lambda document: document["venues"].extend(["binance_coinm", "nasdaq", "binance_spt"]))
    found = problems(folder)
    assert "venues[2]: found \"binance_coinm\", expected a supported venue (`feeder venues` lists them)" in found[0]
    assert "binance_coinm is known, but not supported yet" in found[0]
    assert "known are binance_spot, binance_usdm, binance_coinm" in found[1]
    assert "nearest is binance_spot" in found[2]


def test_all_problems_of_a_folder_together(folder):
    edit(folder, "crypto_exchanges.json", lambda document: document.update(extra=1))
    edit(folder, "binance_spot.json", lambda document: document.update(rest_url="ftp://x", compression=0))
    (folder / "binance_usdm.json").unlink()
    hft(folder, "output", "port", 0)
    (folder / "symbol_mapping.json").write_text("{")
    found = problems(folder)
    assert len(found) == 6
    for name in ("crypto_exchanges.json", "binance_spot.json", "binance_usdm.json: cannot be read", "hft_config.json:",
                 "symbol_mapping.json:1"):
        assert any(name in problem for problem in found), name
    with pytest.raises(ConfigError, match="6 problems in the configuration:\n"):
        config.load(folder)


def test_problems_shown_are_bounded(folder):
    edit(folder, "hft_config.json", lambda document: document.update((f"key{n}", 1) for n in range(500)))
    with pytest.raises(ConfigError) as caught:
        config.load(folder)
    assert len(caught.value.problems) == 500 and "... and 450 more" in str(caught.value)


def test_missing_paths(tmp_path):
    assert "cannot be read" in only_problem(tmp_path / "nothing")
    assert "crypto_exchanges.json: cannot be read" in problems(tmp_path)[0]


def test_random_damage_raises_only_config_errors(folder):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    names = sorted(os.listdir(SHIPPED))
    for _ in range(300):
        name = rng.choice([name for name in names if "limited" not in name])
        raw = bytearray((folder / name).read_bytes())
        original = bytes(raw)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw) + 1)
            if rng.random() < 0.5:
                raw[at:at + 1] = bytes([rng.choice(b'{}[]",:0189-eE. \\\xffx')])
            else:
                del raw[at:at + rng.randint(1, 40)]
        (folder / name).write_bytes(raw)
        try:
            config.load(folder)
        except ConfigError:
            pass
        (folder / name).write_bytes(original)


# -- the command


def check(capsys, *arguments):
    parser = argparse.ArgumentParser()
    config.configure(parser)
    code = config.main(parser.parse_args([str(argument) for argument in arguments]))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("USE_LIMITED_CONFIG", raising=False)
    monkeypatch.delenv("FEEDER_LOG", raising=False)


def test_check_config_text(capsys):
    code, out, err = check(capsys, "--config", SHIPPED)
    assert (code, err) == (0, "")
    assert "symbols    54, 20 levels a side published" in out
    assert "162 (depth, trade, bbo) on 1 connection to wss://stream.binance.com:9443" in out
    assert "150 (depth, trade, bbo) on 2 connections to wss://fstream.binance.com" in out
    assert "54 of 5000 levels, weight 13500, in about 205 s from https://api.binance.com" in out
    assert "239.192.0.1:30001" in out and "MiB" in out


def test_check_config_json(capsys):
    code, out, _ = check(capsys, SHIPPED, "--json", "--venue", "binance_usdm")
    found = json.loads(out)
    assert code == 0 and found["valid"]
    (venue,) = found["venues"]
    assert (venue["streams"], venue["connections"], venue["snapshot_weight"]) == (150, 2, 1000)
    assert found["processing"] == {"ring_buffer_size": 65536, "max_symbols": 2048}
    assert found["memory_bytes"] > 40 << 20


def test_check_config_tells_what_goes_where(capsys, folder):
    def change(document):
        document["output"].update(channel=7, more_channels=["239.192.0.2:30001@eth1"], fan_out=["10.0.0.7:30001"],
                                  retransmit_datagrams=1 << 16, tap="here")
    _, before, _ = check(capsys, folder, "--json")
    edit(folder, "hft_config.json", change)
    _, out, _ = check(capsys, folder, "--json")
    found = json.loads(out)
    first, second = found["channels"]
    assert (first["channel"], first["endpoint"]) == (7, "239.192.0.1:30001@127.0.0.1")
    assert (second["channel"], second["endpoint"]) == (8, "239.192.0.2:30001@eth1")
    assert len(first["instruments"]) + len(second["instruments"]) == 104 and len(first["instruments"]) > 30
    assert "binance_spot:BTCUSDT" in first["instruments"] and "binance_spot:ETHUSDT" in second["instruments"]
    assert found["store_bytes"] == 2 * 65_536 * 1472
    assert found["memory_bytes"] - json.loads(before)["memory_bytes"] == (
        found["store_bytes"] - 8192 * 1472 + (8 << 20) + 256), "and the tap"
    _, out, _ = check(capsys, folder)
    for part in ("239.192.0.2:30001 from eth1", "at port 30002, 200 packets/s, a round in about", "10.0.0.7:30001",
                 "127.0.0.1:30003 to 127.0.0.0/8, ::1/128: the last 65,536", "184 MiB", "not signed", "here: every datagram"):
        assert part in out, part
    edit(folder, "hft_config.json", lambda document: document["output"].update(snapshot_port=0, retransmit_port=0))
    _, out, _ = check(capsys, folder)
    assert "books are repeated in the channels" in out and "packets are not sent again" in out


@pytest.mark.parametrize("lines", [1, 2])
def test_check_config_counts_connections(capsys, folder, lines):
    edit(folder, "binance_usdm.json", lambda document: document.update(
        streams_per_connection=30, channels=["trade"], lines=lines))
    _, out, _ = check(capsys, folder, "--json", "--venue", "binance_usdm")
    (venue,) = json.loads(out)["venues"]
    assert (venue["streams"], venue["connections"], venue["snapshots"]) == (50, 2 * lines, 0)


@pytest.mark.parametrize("name", schema.SUPPORTED_VENUES)
def test_two_lines_only_where_the_venue_numbers_alike(tmp_path, name):
    with open(os.path.join(SHIPPED, f"{name}.json"), encoding="utf-8") as file:
        document = dict(json.load(file), lines=2)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(document))
    if "depth" in schema.KNOWN_VENUES[name].shared:
        assert config.load(path).venues[0].lines == 2
    else:
        with pytest.raises(ConfigError, match="lines: found 2, expected 1: the venue numbers"):
            config.load(path)


def test_check_config_says_what_is_wrong(capsys, folder):
    hft(folder, "output", "port", 0)
    code, out, err = check(capsys, folder)
    assert (code, out) == (2, "") and "output.port: found 0" in err
    code, out, err = check(capsys, folder, "--json")
    assert code == 2 and json.loads(out)["valid"] is False and "output.port" in json.loads(out)["problems"][0]


def test_check_config_never_shows_a_password(capsys, folder):
    edit(folder, "binance_spot.json", lambda document: document.update(proxy="http://me:secret@proxy:3128"))
    for arguments in ((folder,), (folder, "--json")):
        code, out, err = check(capsys, *arguments)
        assert code == 0 and "secret" not in out + err


def test_check_config_embedded_and_keys(capsys):
    code, out, _ = check(capsys)
    assert code == 0 and "embedded configuration" in out and "the venue twin" in out
    code, out, _ = check(capsys, "--keys")
    assert code == 0 and all(key.path in out for key in schema.SCHEMA)


def test_environment(capsys, monkeypatch):
    monkeypatch.setenv("USE_LIMITED_CONFIG", "1")
    monkeypatch.setenv("FEEDER_LOG", "debug")
    code, out, _ = check(capsys, SHIPPED, "--json")
    found = json.loads(out)
    assert code == 0 and found["venues"][0]["symbols"] == 10 and found["log"]["level"] == "debug"
    monkeypatch.setenv("USE_LIMITED_CONFIG", "perhaps")
    assert "USE_LIMITED_CONFIG: found \"perhaps\", expected 1 or 0" in check(capsys, SHIPPED)[2]
    monkeypatch.setenv("USE_LIMITED_CONFIG", "0")
    monkeypatch.setenv("FEEDER_LOG", "loud")
    code, _, err = check(capsys, SHIPPED)
    assert code == 2 and "FEEDER_LOG: found 'loud'" in err
