"""feeder.host.facts on machines laid out as folders, on rubbish, and on this very host."""

import math
import os
import sys

import pytest

import machines
from feeder.host.facts import (CAP_IPC_LOCK, CAP_NET_ADMIN, Host, IdleState, Irq, Kernel, MemoryLimit, Quota, Softnet,
                               Swap, cpus_text, parse_cpus)
from machines import MIB, build
from support import dice

QUESTIONS = ("kernel", "is_virtual", "stolen", "online", "allowed", "isolated", "tickless", "nodes", "governors",
             "irqs", "clock_sources", "cpuset", "quota", "memory_limit", "memory", "huge_pages", "swaps", "lock_limit",
             "shared_memory", "softnet", "udp", "interfaces", "routes", "local_addresses")


def ask_all(host):
    """Ask everything; return {question: answer}."""
    answers = {name: getattr(host, name)() for name in QUESTIONS}
    answers.update(siblings=host.siblings(1), idle=host.idle_states(1), capability=host.has_capability(CAP_IPC_LOCK),
                   route=host.route_to("239.192.0.1"), bad_route=host.route_to("x"), eth0=host.interface("eth0"),
                   by_address=host.interface_of("192.0.2.2"), loopback=host.interface_of("127.0.0.1"),
                   running=host.running(["chronyd"]), option=host.boot_option("isolcpus"),
                   backlog=host.sysctl("net.core.netdev_max_backlog"))
    return answers


@pytest.mark.parametrize("text, cpus", [
    ("", []), ("0", [0]), ("0-3", [0, 1, 2, 3]), ("0-1,8,10-11\n", [0, 1, 8, 10, 11]), (" 7 ", [7]), (None, None),
    ("(null)", None), ("3-1", None), ("-1", None), ("0-", [0]), ("0-99999999999", None), ("8192", None), ("a-b", None)])
def test_lists_of_processors(text, cpus):
    assert parse_cpus(text) == cpus
    if cpus:
        assert parse_cpus(cpus_text(cpus)) == cpus


def test_lists_are_shortest():
    assert cpus_text([]) == "" and cpus_text({3, 1, 2, 9}) == "1-3,9" and cpus_text(range(64)) == "0-63"


def test_virtual_machine(tmp_path):
    host = build(tmp_path, machines.vm())
    assert host.kernel() == Kernel("Linux", "6.18.44-fc", "x86_64", "#1 SMP PREEMPT_DYNAMIC @0")
    assert host.is_virtual() is True and host.stolen() == 5 / 10005
    assert host.online() == host.allowed() == [0, 1] and host.isolated() == host.tickless() == []
    assert host.siblings(1) == [1] and host.nodes() == {} and host.governors() == {}
    assert host.idle_states(1) == [IdleState("POLL", 0, False)]
    assert host.irqs()[0] == Irq(41, "virtio3-rx", [0], {0: 5163, 1: 0}) and len(host.irqs()) == 2
    assert host.clock_sources() == ("tsc", ["tsc", "kvm-clock"])
    assert host.lock_limit() == 8 * MIB and host.has_capability(CAP_IPC_LOCK) is True
    assert host.swaps() == [] and host.huge_pages() == "madvise"
    assert host.memory() == (24684092 * 1024, 23985440 * 1024) and host.memory_limit() is None
    assert host.softnet() == Softnet(0x1756fa + 0x150bfa, 0, 3) and host.udp()["InDatagrams"] == 139550
    assert host.interface("eth0").driver == "virtio_net" and host.interface("eth0").speed_mbit is None
    assert host.interface_of("127.0.0.1").name == "lo" and host.interface_of("192.0.2.2").name == "eth0"
    assert host.interface_of("192.0.2.3") is None and host.interface_of("nonsense0") is None
    assert host.interface_of("../../net/eth0") is None
    assert host.route_to("239.192.0.1").interface == "eth0"          # by the default route
    assert host.running(["chronyd", "ntpd"]) == ["chronyd"]
    assert host.shared_memory()[0] >= host.shared_memory()[1] > 0


def test_numa_server(tmp_path):
    host = build(tmp_path, machines.numa())
    assert host.is_virtual() is False and host.isolated() == [4, 5, 6, 7, 20, 21, 22, 23]
    assert host.tickless() == [4, 5, 6, 7] and host.siblings(20) == [4, 20]
    assert host.nodes() == {0: [*range(8), *range(16, 24)], 1: [*range(8, 16), *range(24, 32)]}
    assert set(host.governors().values()) == {"powersave"} and len(host.governors()) == 32
    assert [state.latency_us for state in host.idle_states(7)] == [0, 2, 133]
    assert [irq.processors for irq in host.irqs()] == [[*range(8)], [7], [8]]
    assert host.swaps() == [Swap("/dev/sda2", 8388604 * 1024)] and host.sysctl("vm.swappiness") == 60
    assert host.huge_pages() == "always" and host.has_capability(CAP_IPC_LOCK) is False
    assert host.route_to("239.192.0.1").interface == "eth1" and host.route_to("8.8.8.8").interface == "eth0"
    assert host.interface("eth0").lost == 9 and host.interface("eth1").node == 0
    assert host.quota() is None and host.cpuset() is None


def test_isolation_from_the_boot_line_where_sys_is_silent(tmp_path):
    files = machines.numa()
    del files["sys/devices/system/cpu/isolated"], files["sys/devices/system/cpu/nohz_full"]
    host = build(tmp_path, files)
    assert host.isolated() == [4, 5, 6, 7, 20, 21, 22, 23] and host.tickless() == [4, 5, 6, 7]


def test_containers(tmp_path):
    host = build(tmp_path / "v2", machines.container_v2())
    assert host.cpuset() == [8, 9, 10, 11] and host.quota() == Quota(2.5, "sys/fs/cgroup")
    assert host.memory_limit() == MemoryLimit(512 * MIB, "sys/fs/cgroup/memory.max")
    host = build(tmp_path / "v1", machines.container_v1())
    assert host.cpuset() == [2, 3] and host.quota() is None
    assert host.memory_limit() == MemoryLimit(40 * MIB, "sys/fs/cgroup/memory/memory.limit_in_bytes")


def test_the_least_limit_of_all_levels_counts(tmp_path):
    host = build(tmp_path, {
        "proc/self/cgroup": "0::/a.slice/b.service\n", "sys/fs/cgroup/a.slice/memory.max": f"{100 * MIB}\n",
        "sys/fs/cgroup/a.slice/b.service/memory.max": "max\n",
        "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a.slice/cpu.max": "50000 100000\n", "sys/fs/cgroup/a.slice/cpuset.cpus.effective": "0-2\n"})
    assert host.memory_limit() == MemoryLimit(100 * MIB, "sys/fs/cgroup/a.slice/memory.max")
    assert host.quota().processors == 0.5 and host.cpuset() == [0, 1, 2]


def test_a_limit_of_version_1_that_is_none(tmp_path):
    host = build(tmp_path, {"proc/self/cgroup": "4:memory:/\n",
                            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert host.memory_limit() is None


def test_capabilities_of_a_user_namespace_are_none_of_the_hosts(tmp_path):
    files = {"proc/self/status": machines.status("0", "0000000000005000")}
    host = build(tmp_path, files)
    assert host.has_capability(CAP_IPC_LOCK) is True and host.has_capability(CAP_NET_ADMIN) is True
    build(tmp_path, {"proc/self/uid_map": "         0          0 4294967295\n"})
    assert host.has_capability(CAP_IPC_LOCK) is True
    build(tmp_path, {"proc/self/uid_map": "         0     100000      65536\n"})
    assert host.has_capability(CAP_IPC_LOCK) is False


def test_lock_limit_unlimited(tmp_path):
    assert build(tmp_path, {"proc/self/limits": machines.limits("unlimited")}).lock_limit() == math.inf


def test_without_sys(tmp_path):
    host = build(tmp_path, machines.no_sys())
    assert host.online() == [0, 1]                                   # from /proc/stat
    assert host.isolated() == [] and host.interfaces() == [] and host.interface("eth0") is None
    assert host.huge_pages() is None and host.governors() == {} and host.idle_states(1) == []
    assert host.clock_sources() == (None, []) and host.siblings(1) == [1]


def test_nothing_at_all(tmp_path):
    host = build(tmp_path, machines.nothing(), "Darwin", "arm64")
    assert host.kernel() == Kernel("Darwin", "", "arm64", "")
    empty = {name: answer for name, answer in ask_all(host).items() if answer}
    assert empty == {"kernel": host.kernel(), "siblings": [1], "clock_sources": (None, []), "memory": (None, None)}


@pytest.mark.parametrize("rounds", [3, pytest.param(48, marks=pytest.mark.stress)])
@pytest.mark.parametrize("name", machines.ALL)
def test_rubbish_never_raises(tmp_path, name, rounds):
    """All files at once cut, doubled, replaced by noise, or left as they are."""
    host = build(tmp_path, machines.ALL[name]())
    for _ in machines.spoil(host, machines.ALL[name](), dice(7), rounds):
        ask_all(host)


def test_folders_in_the_place_of_files(tmp_path):
    for path in machines.numa():
        os.makedirs(str(tmp_path / path), exist_ok=True)
    assert ask_all(Host(str(tmp_path), "Linux", "x86_64"))["online"] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")
def test_this_host():
    host = Host()
    answers = ask_all(host)
    assert answers["kernel"].release == os.uname().release           # /proc/sys refuses large reads
    assert set(os.sched_getaffinity(0)) == set(answers["allowed"])
    assert host.fields("proc/self/status")["Pid"] and host.kib("proc/self/status", "VmRSS") > MIB


def test_a_large_file_is_read_whole_and_an_endless_one_is_not(tmp_path):
    host = build(tmp_path, {"big": "x" * 300_000})
    assert len(host.text("big")) == 300_000
    if os.path.exists("/dev/zero"):
        assert len(Host().text("dev/zero")) == 64 * MIB
