"""feeder.doctor: rows, verdicts and exit codes on machines laid out as folders; the command on this host."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import machines
from feeder import cli, config as configuration, doctor
from feeder.checks import DEGRADED, OK, UNFIT, UNKNOWN, Patient, examine, verdict
from feeder.host.facts import Host
from feeder.host.timekeeping import Clock
from feeder.net.ethtool import Offloads
from feeder.net.probe import Reached, TlsStore
from feeder.ring import ring_bytes
from machines import MIB, build
from support import dice

ROOT = Path(__file__).parent.parent
BUILD = {"implementation": "cpython", "version": "3.11.7", "executable": "/opt/python/bin/python3.11", "gil": True,
         "debug": False, "development_mode": False, "jit": False, "optimized": True, "pointer_bits": 64, "memfd": True,
         "ctypes": True}
TLS = TlsStore("OpenSSL 3.0.19", 144, ["/etc/ssl/certs"])
KEPT = Clock(True, 12_000, 300)
CRYPTO = str(ROOT / "config" / "feeder" / "crypto")


def patient(folder, files, config=None, system="Linux", machine="x86_64", **more):
    host = build(folder, files, system, machine)
    return Patient(config or configuration.builtin(), host, more.pop("build", BUILD),
                   **{"clock": KEPT, "tls": TLS, "can_segment": lambda size: True, **more})


def rows(patient):
    """{name: Row}"""
    return {each.name: each for group in examine(patient).values() for each in group}


def short(patient, *statuses):
    return {name for name, each in rows(patient).items() if each.status in (statuses or (DEGRADED, UNFIT))}


def changed(values, *keys):
    """builtin() with hft values changed: "runtime.workers", 4, ..."""
    config = configuration.builtin()
    for name, value in zip((values, *keys)[::2], (values, *keys)[1::2]):
        section, _, key = name.partition(".")
        setattr(config.output if section == "output" else getattr(config.hft, section), key, value)
    return config


# -- whole machines ------------------------------------------------------------------------------------------

def test_a_machine_that_is_ready(tmp_path):
    case = patient(tmp_path, machines.ready_vm())
    assert short(case) == set() and short(case, UNKNOWN) == {"offloads eth0"}
    assert verdict(examine(case)) == ("ready", 0)
    assert (case.cores.publisher, case.cores.rest) == (1, [0])


def test_a_virtual_machine_without_isolation(tmp_path):
    case = patient(tmp_path, machines.vm())
    assert short(case) == {"isolated cores"} and verdict(examine(case)) == ("degraded", 1)


def test_a_server_where_much_is_left_to_do(tmp_path):
    case = patient(tmp_path, machines.numa(), clock=Clock(False, 16_000_000, 16_000_000))
    assert case.hot == [7, 4, 5, 6]
    assert short(case) == {"SMT siblings", "governor", "C-states", "IRQ placement", "memory lock",
                           "huge pages", "swap", "receive buffer", "send buffer", "netdev backlog", "UDP drops",
                           "card eth0", "clock source", "clock keeping"} and verdict(examine(case))[1] == 1
    found = rows(case)
    assert found["isolated cores"].found == "isolated 4-7,20-23, without tick 4-7, housekeeping 0-3,8-19,24-31"
    assert "for cpu in 20 21 22 23; do echo 0 >" in found["SMT siblings"].commands[0]
    assert found["IRQ placement"].commands[0] == "systemctl disable --now irqbalance"
    assert "for irq in 60 61; do echo 0-3,8-31 >" in found["IRQ placement"].commands[1]
    assert "for cpu in 4 5 6 7;" in found["C-states"].commands[0] and "state[2-9]" in found["C-states"].commands[0]
    assert "setcap cap_ipc_lock=+ep /opt/python/bin/python3.11" in found["memory lock"].commands
    assert found["send buffer"].commands[0] == "sysctl -w net.core.wmem_max=4194304"
    assert found["clock source"].commands[0] == 'options=tsc=reliable'


def test_containers(tmp_path):
    case = patient(tmp_path / "v2", machines.container_v2())
    assert "quota of 2.5" in rows(case)["processors"].found and rows(case)["processors"].status == DEGRADED
    assert rows(case)["memory"].found == "512 MiB by sys/fs/cgroup/memory.max" and rows(case)["memory"].status == OK
    case = patient(tmp_path / "v1", machines.container_v1())
    assert rows(case)["memory"].status == UNFIT and verdict(examine(case)) == ("unfit", 2)


@pytest.mark.parametrize("name", ["no_sys", "nothing"])
def test_what_cannot_be_read_is_said_and_not_judged(tmp_path, name):
    system, machine = ("Darwin", "arm64") if name == "nothing" else ("Linux", "x86_64")
    case = patient(tmp_path, machines.ALL[name](), system=system, machine=machine, clock=None)
    assert short(case) == ({"kernel"} if name == "nothing" else {"isolated cores"})
    if name == "nothing":                                            # and no command, since none is known to be needed
        assert {name for name, each in rows(case).items() if each.commands} == {"kernel"}
    unreadable = {name for name, each in rows(case).items() if each.found == "not readable"}
    assert {"huge pages", "clock source", "network card"} <= unreadable
    assert verdict(examine(case))[1] == 1


@pytest.mark.parametrize("name", machines.ALL)
def test_text_fits_80_columns_and_json_is_one_object(tmp_path, name):
    case = patient(tmp_path, machines.ALL[name](), reached=[
        ("binance_spot", [Reached("wss://stream.binance.com:9443", "", 9, "resolving: no such name " * 5)])])
    groups = examine(case)
    lines = doctor.as_text(case, groups)
    assert max(map(len, lines)) < 80 and all(line.isascii() and line == line.rstrip() for line in lines)
    assert lines[0].startswith("feeder doctor: ") and "recommended cores" in "\n".join(lines[-16:])
    found = json.loads(json.dumps(doctor.as_object(case, groups)))
    assert found["exit_code"] == verdict(groups)[1] and len(found["rows"]) == sum(map(len, groups.values()))
    for each in found["rows"]:
        assert set(each) == {"group", "name", "status", "found", "wanted", "cost", "commands"}
        assert each["found"] and (each["status"] == OK or each["cost"]), each
        assert not (each["commands"] and each["status"] == OK), each
        assert each["commands"] or each["status"] in (OK, UNKNOWN), each
    if case.cores is None:
        assert found["recommended"] is None
    else:
        assert found["recommended"]["settings"]["runtime"]["workers"] == len(case.cores.workers)


@pytest.mark.skipif(not os.path.exists("/bin/sh"), reason="no shell")
@pytest.mark.parametrize("name", machines.ALL)
def test_every_command_is_one_that_a_shell_accepts(tmp_path, name):
    """`sh -n` reads without executing: the text as printed, continued lines included."""
    config = changed("output.packet_bytes", 9000, "output.interface", "eth0")
    case = patient(tmp_path, machines.ALL[name](), config, clock=Clock(False, 1, 1))
    for each in rows(case).values():
        if any(command.startswith("LimitMEMLOCK") for command in each.commands):
            assert each.name == "memory lock"
        assert not any(" #" in command for command in each.commands), each
        text = "\n".join(line for command in each.commands for line in doctor.command_text(command))
        subprocess.run(["/bin/sh", "-n"], input=text, text=True, check=True, timeout=30)


def test_a_quoted_word_is_never_broken():
    command = 'sed -i "s/a/' + "x " * 60 + '/" file'
    assert "\n".join(doctor.command_text(command)).count("x x") > 1
    script = "printf '%s|' " + "\n".join(doctor.command_text(command))
    done = subprocess.run(["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True, timeout=30, check=True)
    assert done.stdout == 'sed|-i|s/a/' + "x " * 60 + '/|file|'


@pytest.mark.parametrize("rounds", [2, pytest.param(32, marks=pytest.mark.stress)])
@pytest.mark.parametrize("name", machines.ALL)
def test_rubbish_in_every_file_is_survived(tmp_path, name, rounds):
    files = machines.ALL[name]()
    host = build(tmp_path, files)
    for _ in machines.spoil(host, files, dice(11), rounds):
        for config in (configuration.builtin(), changed("runtime.workers", 3, "output.interface", "192.0.2.2")):
            case = Patient(config, host, BUILD, clock=None, tls=TLS)
            lines = doctor.as_text(case, examine(case))
            assert all(line.isprintable() for line in lines)
            json.dumps(doctor.as_object(case, examine(case)), allow_nan=False)


# -- single rows ---------------------------------------------------------------------------------------------

def only(tmp_path, name, files=None, **more):
    return rows(patient(tmp_path, {**machines.ready_vm(), **(files or {})}, **more))[name]


@pytest.mark.parametrize("change, status, text", [
    ({}, OK, "GIL, no debug, no JIT, optimized"),
    ({"version": "3.8.18"}, UNFIT, "3.8.18"), ({"debug": True}, DEGRADED, ", debug"),
    ({"gil": False}, DEGRADED, "free-threaded"), ({"optimized": False}, DEGRADED, "not optimized"),
    ({"optimized": None}, OK, "optimization unknown"), ({"jit": True}, OK, ", JIT"),
    ({"ctypes": False}, DEGRADED, "cpython"), ({"pointer_bits": 32}, DEGRADED, "cpython"),
    ({"version": "3.14.0rc1"}, OK, "3.14.0rc1")])
def test_python(tmp_path, change, status, text):
    found = only(tmp_path, "python", build={**BUILD, **change})
    assert found.status == status and text in found.found


@pytest.mark.parametrize("machine, status", [("x86_64", OK), ("AMD64", OK), ("aarch64", UNFIT), ("riscv64", UNFIT)])
def test_memory_order(tmp_path, machine, status):
    assert only(tmp_path / "a", "memory order", machine=machine, config=changed("runtime.workers", 2)).status == status
    forced = only(tmp_path / "c", "memory order", machine=machine, config=changed("runtime.workers", 2),
                  force_rings=True)
    assert forced.status == (OK if status == OK else DEGRADED)
    found = only(tmp_path / "b", "memory order", machine=machine)
    assert found.status == OK and (status == OK) == ("weaker" not in found.found)


@pytest.mark.parametrize("release, status", [("4.17.9", DEGRADED), ("4.18.0-553.el8.x86_64", OK), ("6.18", OK),
                                             ("nonsense", DEGRADED)])
def test_kernel(tmp_path, release, status):
    assert only(tmp_path, "kernel", {"proc/sys/kernel/osrelease": release}).status == status


def test_configured_cores(tmp_path):
    config = changed("cpu_affinity.processor_core", 9, "cpu_affinity.other_cores", [0])
    found = only(tmp_path, "affinity", config=config)
    assert found.status == DEGRADED and found.cost.startswith("9 cannot be had")
    case = patient(tmp_path / "b", machines.numa(), changed("cpu_affinity.processor_core", 5))
    assert case.hot == [5] and rows(case)["affinity"].status == rows(case)["isolated cores"].status == OK


def test_spinning_needs_no_shallow_sleep(tmp_path):
    assert rows(patient(tmp_path, machines.numa(), changed("runtime.idle", "spin")))["C-states"].status == OK


def test_lock_needs_the_right_or_room(tmp_path):
    poor = machines.status("0", "0000000000000000")
    assert only(tmp_path / "a", "memory lock", {"proc/self/status": poor}).status == DEGRADED
    found = only(tmp_path / "b", "memory lock", {"proc/self/status": poor,
                                                 "proc/self/limits": machines.limits("unlimited")})
    assert found.status == OK and found.found == "limit unlimited, CAP_IPC_LOCK no"


def test_memory_counts_every_process(tmp_path):
    alone = patient(tmp_path, machines.ready_vm())
    config = changed("runtime.workers", 4)
    several = patient(tmp_path, {}, config)
    rings = 4 * ring_bytes(65_536, 20)
    assert several.memory_bytes == alone.memory_bytes + rings + 4 * configuration.INTERPRETER_BYTES
    assert rows(several)["processors"].status == DEGRADED            # six wanted, two there
    files = {"proc/meminfo": f"MemTotal: {4 << 20} kB\nMemAvailable: 1024 kB\n"}
    assert only(tmp_path / "b", "memory", files).status == DEGRADED
    assert only(tmp_path / "c", "memory", {"proc/meminfo": "MemTotal: 30000 kB\n"}).status == UNFIT


def test_shared_memory_counts_where_rings_have_names(tmp_path, monkeypatch):
    monkeypatch.setattr(Host, "shared_memory", lambda host: (64 * MIB, 8 * MIB))
    config = changed("runtime.workers", 4)
    assert only(tmp_path / "a", "/dev/shm", config=config).status == OK
    found = only(tmp_path / "b", "/dev/shm", config=config, build={**BUILD, "memfd": False})
    assert found.status == UNFIT and found.commands[0] == "mount -o remount,size=66m /dev/shm"
    monkeypatch.setattr(Host, "shared_memory", lambda host: None)
    assert only(tmp_path / "c", "/dev/shm").status == UNKNOWN


def test_buffers_may_be_forced(tmp_path):
    small = {"proc/sys/net/core/rmem_max": "212992\n"}
    assert "exceeded by CAP_NET_ADMIN" in only(tmp_path / "a", "receive buffer", small).found
    small["proc/self/status"] = machines.status("0")
    assert only(tmp_path / "b", "receive buffer", small).status == DEGRADED


@pytest.mark.parametrize("config, can, status, text", [
    (changed("sockets.batch_us", 0), False, OK, "sockets.batch_us is 0"),
    (configuration.builtin(), True, OK, "UDP_SEGMENT"),
    (configuration.builtin(), None, UNKNOWN, "not readable"),
    (configuration.builtin(), False, DEGRADED, "does not have it"),
    (changed("output.packet_bytes", 40_000), True, DEGRADED, "two packets of 40000 bytes"),
    (changed("output.interface", "eth0", "output.packet_bytes", 9000), True, DEGRADED, "MTU of 1500")])
def test_bursts(tmp_path, config, can, status, text):
    found = rows(patient(tmp_path, machines.ready_vm(), config, can_segment=lambda size: can))["bursts"]
    assert found.status == status and text in found.found and bool(found.commands) == (status == DEGRADED)


def test_a_packet_must_fit_the_card(tmp_path):
    config = changed("output.interface", "eth0", "output.packet_bytes", 1473)
    found = only(tmp_path, "card eth0", config=config)
    assert found.status == DEGRADED and "# set output.packet_bytes to 1472" in found.commands[0]
    found = only(tmp_path / "6", "card eth0", config=changed("output.interface", "eth0", "output.group", "ff15::1"))
    assert found.status == DEGRADED and "# set output.packet_bytes to 1452 in" in found.commands[0]


def test_interfaces(tmp_path):
    found = only(tmp_path / "a", "network card", config=changed("output.interface", "eth7"))
    assert found.status == UNFIT and "eth0, lo" in found.wanted
    assert only(tmp_path / "b", "network card", config=changed("output.interface", "192.0.2.77")).status == UNFIT
    for key in ("output.more_channels", "output.fan_out"):
        found = only(tmp_path / key, "network card", config=changed(key, ["239.192.0.2:30001@eth7"]))
        assert found.status == UNFIT and "eth7 of 239.192.0.2:30001@eth7 is not on this host" in found.found
    down = machines.card("eth0", flags="0x1002")
    assert only(tmp_path / "c", "card eth0", down, config=changed("output.interface", "192.0.2.2")).status == UNFIT
    assert only(tmp_path / "d", "card eth0", down).status == DEGRADED


@pytest.mark.parametrize("found, status, command", [
    (Offloads(True, False, 0, False, 4096, 4096), OK, None), (Offloads(True, None, None, None, None, None), OK, None),
    (Offloads(True, False, 50, False, 256, 256), DEGRADED, "ethtool -C eth0 adaptive-rx off rx-usecs 0"),
    (Offloads(True, False, 0, True, None, None), DEGRADED, "ethtool -C eth0 adaptive-rx off rx-usecs 0"),
    (Offloads(False, True, 0, False, 4096, 4096), DEGRADED, "ethtool -K eth0 lro off"),
    (Offloads(True, False, 0, False, 256, 8192), DEGRADED, "ethtool -G eth0 rx 8192"),
    (None, UNKNOWN, "ethtool -c eth0; ethtool -k eth0")])
def test_offloads(tmp_path, found, status, command):
    row = only(tmp_path, "offloads eth0", offloads=lambda name: found)
    assert row.status == status and row.commands == ([command] if command else [])


def test_multicast_route(tmp_path):
    anywhere = changed("output.interface", "")
    found = only(tmp_path / "a", "multicast route", config=anywhere)
    assert found.status == OK and "leaves by eth0" in found.found
    lost = only(tmp_path / "b", "multicast route", {"proc/net/route": machines.ROUTES.splitlines()[0] + "\n"},
                config=anywhere)
    assert lost.status == UNFIT and lost.commands == ["ip route add 239.0.0.0/8 dev eth0"]
    assert only(tmp_path / "c", "multicast route", config=changed("output.group", "10.1.2.3")).status == OK
    assert only(tmp_path / "e", "multicast route", config=changed("output.group", "ff15::1", "output.interface", "")
                ).status == UNKNOWN
    mute = only(tmp_path / "d", "multicast route", machines.card("eth0", flags="0x3"),
                config=changed("output.interface", "eth0"))
    assert mute.status == DEGRADED


@pytest.mark.parametrize("clock, daemon, status", [
    (KEPT, "chronyd", OK), (KEPT, "sh", OK), (Clock(False, 1, 1), "chronyd", DEGRADED), (None, "chronyd", UNKNOWN),
    (Clock(False, 1, 1), "sh", DEGRADED), (Clock(False, 1, 1), "phc2sys", OK), (None, "sh", UNKNOWN),
    (KEPT, "systemd-timesyn", OK)])
def test_clock_keeping(tmp_path, clock, daemon, status):
    assert only(tmp_path, "clock keeping", {"proc/812/comm": daemon + "\n"}, clock=clock).status == status


# -- venues --------------------------------------------------------------------------------------------------

def answers(*errors, proxy=""):
    return [Reached(f"wss://v{at}", proxy, 12_000_000, error) for at, error in enumerate(errors)]


def test_venues(tmp_path):
    fine, cut, half = ("a", answers("", "")), ("b", answers("no", "no")), ("c", answers("", "no", proxy="p:1"))

    def judged(folder, *reached):
        found = rows(patient(tmp_path / folder, machines.ready_vm(), reached=list(reached)))
        return [found[name].status for name, _ in reached]
    assert judged("1", fine) == [OK] and judged("2", cut) == [UNFIT] and judged("3", half) == [DEGRADED]
    assert judged("4", fine, cut, half) == [OK, DEGRADED, DEGRADED]
    found = rows(patient(tmp_path / "5", machines.ready_vm(), reached=[half]))["c"]
    assert found.found == "wss in 12 ms; NOT REACHED no (proxy p:1)"


def test_tls_store(tmp_path):
    config = configuration.load(CRYPTO, ["binance_spot"], limited=True)
    none = TlsStore("OpenSSL 3", 0, [])
    assert only(tmp_path / "a", "TLS store", tls=none, config=config).status == UNFIT
    assert only(tmp_path / "b", "TLS store", tls=none).status == OK          # the built-in venue needs none
    assert only(tmp_path / "c", "TLS store", tls=None).status == UNFIT
    config.venues[0].verify_tls = False
    assert only(tmp_path / "d", "TLS store", config=config).status == DEGRADED


# -- the command ---------------------------------------------------------------------------------------------

def run(*words, **more):
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-m", "feeder", "doctor", *words], cwd=str(ROOT),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=60, **more)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_this_host_as_text_and_as_json():
    code, out = run()
    assert code in (0, 1, 2) and re.search(r"^(ready|degraded|unfit): ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) < 80
    code, out = run("--json")
    found = json.loads(out)
    assert found["exit_code"] == code and found["python"]["version"] == sys.version.split()[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_this_host_for_an_ordinary_user(tmp_path):
    """In a process of its own, since rights that are dropped do not come back; once before, to import everything."""
    code = ("import os, sys; from feeder import cli, doctor; import feeder.net.probe; out = sys.stdout; "
            "sys.stdout = open(os.devnull, 'w'); cli.main(['doctor', '--json']); sys.stdout.close(); sys.stdout = out; "
            "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(cli.main(['doctor', '--json']))")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=str(ROOT), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    row = next(each for each in found["rows"] if each["name"] == "memory lock")
    assert found["exit_code"] == done.returncode
    if sys.platform.startswith("linux"):
        assert row["found"].endswith("CAP_IPC_LOCK no")


def test_nothing_is_written(tmp_path):
    before = sorted(os.listdir(str(ROOT)))
    run("--json")
    assert sorted(os.listdir(str(ROOT))) == before


def test_a_wrong_configuration_is_one_sentence(capsys):
    assert cli.main(["doctor", "--config", "no/such/folder"]) == 2
    assert "no/such/folder" in capsys.readouterr().err


def test_a_venue_on_this_machine_is_reached(tmp_path, capsys):
    """Offline, the whole way: a configuration that names a port of loopback where nobody answers."""
    path = tmp_path / "binance_spot.json"
    path.write_text(json.dumps({"venue": "binance_spot", "websocket_url": "ws://127.0.0.1:1",
                                "rest_url": "http://127.0.0.1:1", "symbols": ["BTCUSDT"]}))
    assert cli.main(["doctor", "--json", "--config", str(path)]) == 2
    found = json.loads(capsys.readouterr().out)
    row = next(each for each in found["rows"] if each["name"] == "binance_spot")
    assert row["status"] == UNFIT and "refused" in row["found"]
