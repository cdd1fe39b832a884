"""Machines as folders: what /proc and /sys of several hosts tell, cut to what feeder reads, as {path: text or Link}."""

import os

from feeder.host.facts import Host

MIB = 1 << 20


class Link(str):
    """A symbolic link's target."""


def build(folder, files, system="Linux", machine="x86_64"):
    """Lay out the files below a folder; return the Host that reads them."""
    for name, text in files.items():
        path = os.path.join(str(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(text, Link):
            os.symlink(text, path)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    return Host(str(folder), system, machine)


def spoil(host, files, random, rounds):
    """Replace all files by rubbish: cut, doubled, noise, numbers out of bounds; yield after each round."""
    for _ in range(rounds):
        for path, text in files.items():
            if isinstance(text, Link):
                continue
            with open(host.path(path), "wb") as file:
                file.write(random.choice((
                    b"", b"\0", b"-1", b"99999999999999999999999", b"\xff" * 9, b"a b c d e f g h i j\n" * 3, b":\n:",
                    text.encode()[:random.randrange(len(text) + 1)], text.encode() * 2, text.upper().encode(),
                    bytes(random.randrange(256) for _ in range(40)), text.replace("0", "x").encode(),
                    text.replace("\t", " - ").encode(), text.encode(), text.encode(), text.encode())))
        yield


def status(cpus, capabilities="0000000000000000"):
    return f"Name:\tpython3\nCapInh:\t0000000000000000\nCapEff:\t{capabilities}\nCpus_allowed_list:\t{cpus}\n"


def limits(locked):
    return ("Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max processes             96365                96365                processes \n"
            f"Max locked memory         {locked:<20} {locked:<20} bytes     \n")


def card(name, flags="0x1003", mtu=1500, speed=None, driver=None, node=None, lost=0, packets=1000):
    folder = f"sys/class/net/{name}"
    files = {f"{folder}/flags": flags + "\n", f"{folder}/mtu": f"{mtu}\n"}
    for which, count in (("rx_packets", packets), ("tx_packets", packets), ("rx_dropped", lost),
                         ("rx_missed_errors", 0), ("rx_fifo_errors", 0), ("tx_dropped", 0), ("tx_errors", 0)):
        files[f"{folder}/statistics/{which}"] = f"{count}\n"
    files.update({f"{folder}/speed": f"{speed}\n"} if speed else {})
    files.update({f"{folder}/device/numa_node": f"{node}\n"} if node is not None else {})
    files.update({f"{folder}/device/driver": Link(f"../../bus/drivers/{driver}")} if driver else {})
    return files


def interrupts(count, rows):
    """/proc/interrupts and /proc/irq of rows (number, name, {processor: count}, where it may go)."""
    lines = ["     " + "".join(f"{f'CPU{cpu}':>11}" for cpu in range(count))]
    files = {}
    for number, name, counts, affinity in rows:
        lines.append(f"{number:>4}:" + "".join(f"{counts.get(cpu, 0):>11}" for cpu in range(count))
                     + f"  PCI-MSIX-0000:00:01.0   0-edge      {name}")
        files[f"proc/irq/{number}/effective_affinity_list"] = affinity + "\n"
        files[f"proc/irq/{number}/smp_affinity_list"] = f"0-{count - 1}\n"
    lines += [" NMI:" + f"{0:>11}" * count + "  Non-maskable interrupts", " ERR:          0"]
    return {"proc/interrupts": "\n".join(lines) + "\n", **files}


ROUTES = ("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
          "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
          "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
MULTICAST_ROUTE = "eth1\t000000EF\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"          # 239.0.0.0/8
FIB_TRIE = ("Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n"
            "           |-- 127.0.0.1\n              /32 host LOCAL\n"
            "           |-- 192.0.2.2\n              /32 host LOCAL\n"
            "        |-- 192.0.2.255\n           /32 link BROADCAST\n")
SNMP = ("Ip: Forwarding DefaultTTL\nIp: 2 64\n"
        "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors\n"
        "Udp: 139550 496 0 127179 0 0 0\n")

NETWORK = {
    "proc/sys/net/core/rmem_max": "4194304\n", "proc/sys/net/core/wmem_max": "4194304\n",
    "proc/sys/net/core/netdev_max_backlog": "10000\n", "proc/net/softnet_stat": "001756fa 00000000 00000001 00000000\n"
    "00150bfa 00000000 00000002 00000000\n", "proc/net/snmp": SNMP, "proc/net/route": ROUTES,
    "proc/net/fib_trie": FIB_TRIE, "proc/sys/net/ipv4/igmp_max_memberships": "20\n",
    "proc/sys/net/ipv4/conf/all/force_igmp_version": "0\n",
    **card("lo", "0x9", 65536), **card("eth0", driver="virtio_net"),
}
CLOCK = {"sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
         "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc kvm-clock \n"}


def vm():
    """Two processors of a hypervisor, everything as it should be but isolation."""
    return {
        "proc/sys/kernel/ostype": "Linux\n", "proc/sys/kernel/osrelease": "6.18.44-fc\n",
        "proc/sys/kernel/version": "#1 SMP PREEMPT_DYNAMIC @0\n", "proc/cmdline": "console=ttyS0 quiet\n",
        "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu tsc hypervisor lahf_lm\n",
        "proc/stat": "cpu  1000 0 1000 8000 0 0 0 5 0 0\ncpu0 500 0 500 4000 0 0 0 5 0 0\ncpu1 1 0 1 1 0 0 0 0 0 0\n",
        "proc/self/status": status("0-1", "000001fffeffffff"), "proc/self/limits": limits(8388608),
        "proc/self/cgroup": "4:memory:/\n3:cpuset:/\n0::/\n", "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
        "proc/meminfo": "MemTotal:       24684092 kB\nMemAvailable:   23985440 kB\n",
        "sys/devices/system/cpu/online": "0-1\n", "sys/devices/system/cpu/isolated": "\n",
        "sys/devices/system/cpu/cpu0/topology/core_cpus_list": "0\n",
        "sys/devices/system/cpu/cpu1/topology/core_cpus_list": "1\n",
        "sys/devices/system/cpu/cpu1/cpuidle/state0/name": "POLL\n",
        "sys/devices/system/cpu/cpu1/cpuidle/state0/latency": "0\n",
        "sys/devices/system/cpu/cpu1/cpuidle/state0/disable": "0\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "dev/shm/.keep": "", "proc/812/comm": "chronyd\n", "proc/1/comm": "systemd\n",
        **interrupts(2, [(41, "virtio3-rx", {0: 5163}, "0"), (42, "virtio3-tx", {1: 0}, "1")]), **NETWORK, **CLOCK}


def ready_vm():
    return {**vm(), "sys/devices/system/cpu/isolated": "1\n", "sys/devices/system/cpu/nohz_full": "1\n",
            "proc/self/status": status("0", "000001fffeffffff")}


def numa():
    """Two sockets of eight cores of two threads, cores 4-7 isolated, for an ordinary user; much is left to be done."""
    def siblings(cpu):
        return f"{cpu % 16},{cpu % 16 + 16}\n"
    files = {
        **vm(), "proc/cmdline": "BOOT_IMAGE=/vmlinuz isolcpus=managed_irq,domain,4-7,20-23 nohz_full=4-7\n",
        "proc/cpuinfo": "flags\t\t: fpu tsc\n", "proc/self/status": status("0-3,8-19,24-31"),
        "proc/self/cgroup": "0::/user.slice/session-3.scope\n",
        "proc/self/limits": limits(65536), "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n"
        "/dev/sda2                               partition\t8388604\t0\t-2\n", "proc/sys/vm/swappiness": "60\n",
        "sys/devices/system/cpu/online": "0-31\n", "sys/devices/system/cpu/isolated": "4-7,20-23\n",
        "sys/devices/system/cpu/nohz_full": "4-7\n",
        "sys/devices/system/node/node0/cpulist": "0-7,16-23\n", "sys/devices/system/node/node1/cpulist": "8-15,24-31\n",
        "sys/devices/system/node/has_cpu": "0-1\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n",
        "proc/sys/net/core/rmem_max": "212992\n", "proc/sys/net/core/wmem_max": "212992\n",
        "proc/sys/net/core/netdev_max_backlog": "1000\n",
        "proc/net/softnet_stat": "00100000 00000010 00000001\n",
        "proc/net/snmp": SNMP.replace(" 127179 0 ", " 127179 77 "), "proc/net/route": ROUTES + MULTICAST_ROUTE,
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n",
        "sys/devices/system/clocksource/clocksource0/available_clocksource": "hpet acpi_pm\n",
        "proc/901/comm": "irqbalance\n", **card("eth0", speed=10000, driver="ixgbe", node=0, lost=9),
        **card("eth1", speed=25000, driver="mlx5_core", node=0),
        **interrupts(32, [(60, "mlx5_comp0", {0: 99, 6: 5}, "0-7"), (61, "mlx5_comp1", {7: 99999}, "7"),
                          (62, "nvme0q1", {8: 5}, "8")])}
    del files["proc/812/comm"]
    for cpu in range(32):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/topology/core_cpus_list"] = siblings(cpu)
        files[f"{folder}/cpufreq/scaling_governor"] = "powersave\n"
        for at, (name, latency) in enumerate((("POLL", 0), ("C1", 2), ("C6", 133))):
            files[f"{folder}/cpuidle/state{at}/name"] = name + "\n"
            files[f"{folder}/cpuidle/state{at}/latency"] = f"{latency}\n"
            files[f"{folder}/cpuidle/state{at}/disable"] = "0\n"
    return files


def container_v2():
    """A container of cgroup version 2 on the server: four processors, a quota, 512 MiB; its group is the root."""
    return {**numa(), "proc/self/cgroup": "0::/\n", "proc/self/status": status("8-11,24-27"),
            "sys/fs/cgroup/cpuset.cpus.effective": "8-11\n", "sys/fs/cgroup/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/memory.max": f"{512 * MIB}\n", "sys/fs/cgroup/memory.high": "max\n"}


def container_v1():
    """The same of version 1, its path not visible inside; no quota."""
    path = "/docker/0123456789abcdef"
    groups = ("9:memory", "5:cpu,cpuacct", "3:cpuset", "1:name=systemd")
    return {**numa(), "proc/self/cgroup": "".join(f"{group}:{path}\n" for group in groups),
            "proc/self/status": status("2-3"), "sys/fs/cgroup/cpuset/cpuset.cpus": "2-3\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{40 * MIB}\n"}


def no_sys():
    """/sys is not mounted, /proc is."""
    return {name: text for name, text in vm().items() if not name.startswith("sys/")}


def nothing():
    """Neither /proc nor /sys, as on macOS."""
    return {}


ALL = {each.__name__: each for each in (vm, ready_vm, numa, container_v2, container_v1, no_sys, nothing)}
