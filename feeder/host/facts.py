"""What this host is: read from /proc and /sys, nothing else asked, nothing changed.

In:   a root path, "/" or a tree that a test laid out.
Out:  numbers, texts, sets of processors; None for whatever is absent, unreadable or malformed, never an exception.

None is an answer: containers hide files, macOS has none of them, kernels differ. Who asks must have a sentence for it.
Processors are sorted lists of ints. Sources: proc(5), the kernel's Documentation/admin-guide and ABI/testing.
Not here: what ought to be (doctor), and anything that needs a system call of its own (timekeeping).
"""

import math
import os
import re
from collections import namedtuple
from itertools import islice

PIECE_BYTES = 64 << 10
MAX_PIECES = 1024                  # of one file; /proc/interrupts of 512 processors is 4 MiB, in pieces of a page
MAX_PROCESSORS = 8192              # CONFIG_NR_CPUS goes no further
MAX_PROCESSES = 100_000            # looked at, when a daemon is searched for
INITIAL_MAP = "0 0 4294967295"     # of user ids, where no user namespace lies between; user_namespaces(7)
CAP_NET_ADMIN, CAP_IPC_LOCK, CAP_SYS_NICE = 12, 14, 23       # capabilities(7)

Kernel = namedtuple("Kernel", "system release machine version")
IdleState = namedtuple("IdleState", "name latency_us is_disabled")
Swap = namedtuple("Swap", "name bytes")
Irq = namedtuple("Irq", "number name processors counts")      # where it may go; [interrupts so far on each processor]
Softnet = namedtuple("Softnet", "processed dropped squeezed")
Route = namedtuple("Route", "interface destination mask metric")
Interface = namedtuple("Interface", "name is_up is_multicast mtu speed_mbit driver node "
                                    "received lost transmitted unsent")
Quota = namedtuple("Quota", "processors path")
MemoryLimit = namedtuple("MemoryLimit", "bytes path")


def parse_cpus(text):
    """[0, 1, 2, 8] of "0-2,8", the kernel's list format; [] of "", None of anything else."""
    if text is None:
        return None
    found = set()
    try:
        for part in filter(None, text.strip().split(",")):
            first, _, last = part.partition("-")
            first, last = int(first), int(last or first)
            if not 0 <= first <= last < MAX_PROCESSORS:
                return None
            found.update(range(first, last + 1))
    except ValueError:
        return None
    return sorted(found)


def cpus_text(cpus):
    """"0-2,8" of [0, 1, 2, 8]."""
    ranges = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _number(text, base=10):
    try:
        return int(text, base)
    except (ValueError, TypeError):
        return None


def _ipv4(text):
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
        return None
    return int.from_bytes(bytes(map(int, parts)), "big")


def _uname():
    """(system, machine); Windows has no uname, and elsewhere `platform` would take 1.4 ms of each start to ask it."""
    if hasattr(os, "uname"):
        found = os.uname()
        return found.sysname, found.machine
    import platform
    return platform.system(), platform.machine()


class Host:
    """Args: root of the tree; system and machine as `uname` says them, for where the tree does not."""

    def __init__(self, root="/", system=None, machine=None):
        self.root = root
        self.system = system or _uname()[0]
        self.machine = machine or _uname()[1]

    # -- files -----------------------------------------------------------------------------------------------

    def path(self, name):
        return os.path.join(self.root, name)

    def text(self, name):
        """The stripped text of a file below the root."""
        try:
            with open(self.path(name), "rb", buffering=0) as file:
                # By pieces: /proc/sys refuses one read of 4 MiB and more with ENOMEM (fs/proc/proc_sysctl.c).
                pieces = iter(lambda: file.read(PIECE_BYTES), b"")
                return b"".join(islice(pieces, MAX_PIECES)).decode("utf-8", "replace").strip()
        except (OSError, ValueError):            # ValueError: a NUL in the name
            return None

    def lines(self, name):
        text = self.text(name)
        return [] if text is None else text.splitlines()

    def number(self, name):
        return _number(self.text(name))

    def names(self, folder):
        try:
            return sorted(os.listdir(self.path(folder)))
        except (OSError, ValueError):
            return []

    def link(self, name):
        """The last part of where a symbolic link points."""
        try:
            return os.path.basename(os.readlink(self.path(name)))
        except (OSError, ValueError):
            return None

    def fields(self, name):
        """{"VmLck": "0 kB", ...} of a file of "name: value" lines."""
        pairs = (line.partition(":") for line in self.lines(name))
        return {key.strip(): value.strip() for key, mark, value in pairs if mark}

    def kib(self, name, key):
        """Bytes of a "MemTotal:  24684092 kB" line."""
        words = self.fields(name).get(key, "").split()
        count = _number(words[0]) if words else None
        return None if count is None else count * 1024

    def sysctl(self, name):
        """An integer such as net.core.rmem_max."""
        return self.number("proc/sys/" + name.replace(".", "/"))

    # -- machine ---------------------------------------------------------------------------------------------

    def kernel(self):
        return Kernel(self.text("proc/sys/kernel/ostype") or self.system, self.text("proc/sys/kernel/osrelease") or "",
                      self.machine, self.text("proc/sys/kernel/version") or "")

    def is_virtual(self):
        """Whether a hypervisor shows itself; None where the kernel tells of no processor."""
        lines = self.lines("proc/cpuinfo")
        flags = next((line for line in lines if line.startswith("flags")), None)
        if self.text("sys/hypervisor/type"):
            return True
        return None if flags is None else "hypervisor" in flags.split()

    def stolen(self):
        """The share of all processor time since boot that the hypervisor gave to others, 0 .. 1."""
        words = next((line.split() for line in self.lines("proc/stat") if line.startswith("cpu ")), [])
        times = [_number(word) for word in words[1:9]]       # user nice system idle iowait irq softirq steal
        if len(times) < 8 or None in times or not sum(times):
            return None
        return times[7] / sum(times)

    def boot_option(self, name):
        """The value of name=value on the kernel's command line."""
        for word in (self.text("proc/cmdline") or "").split():
            key, _, value = word.partition("=")
            if key == name:
                return value
        return None

    # -- processors ------------------------------------------------------------------------------------------

    def online(self):
        return parse_cpus(self.text("sys/devices/system/cpu/online")) or self._from_stat()

    def _from_stat(self):
        found = re.findall(r"^cpu(\d{1,4}) ", self.text("proc/stat") or "", re.MULTILINE)
        return sorted(map(int, found)) or None

    def allowed(self):
        """Where this process may run now. Isolated processors are left out of it by the kernel unless asked for."""
        return parse_cpus(self.fields("proc/self/status").get("Cpus_allowed_list"))

    def isolated(self):
        """Processors that the scheduler leaves alone (isolcpus=, isolated cpuset partitions)."""
        found = parse_cpus(self.text("sys/devices/system/cpu/isolated"))
        if found is None:
            option = self.boot_option("isolcpus")            # flags may come first: isolcpus=managed_irq,domain,2-7
            numbers = ",".join(part for part in (option or "").split(",") if part[:1].isdigit())
            return parse_cpus(numbers) if self.text("proc/cmdline") is not None else None
        return found

    def tickless(self):
        """Processors without a timer tick while one task runs (nohz_full=)."""
        found = parse_cpus(self.text("sys/devices/system/cpu/nohz_full"))    # "(null)" when off, on some kernels
        return parse_cpus(self.boot_option("nohz_full")) or [] if found is None else found

    def siblings(self, cpu):
        """The hardware threads of a processor's core, itself included."""
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology/"
        found = parse_cpus(self.text(topology + "core_cpus_list")) or parse_cpus(
            self.text(topology + "thread_siblings_list"))    # its name before Linux 5.3
        return found if found and cpu in found else [cpu]

    def nodes(self):
        """{NUMA node: its processors}; {} where there are none."""
        folder = "sys/devices/system/node"
        found = {int(name[4:]): parse_cpus(self.text(f"{folder}/{name}/cpulist"))
                 for name in self.names(folder) if re.fullmatch(r"node[0-9]{1,4}", name)}
        return {node: cpus for node, cpus in found.items() if cpus}

    def governors(self):
        """{processor: frequency governor}; {} where the kernel does not set frequencies."""
        found = {cpu: self.text(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")
                 for cpu in self.online() or ()}
        return {cpu: governor for cpu, governor in found.items() if governor}

    def idle_states(self, cpu):
        """The C-states of a processor, from shallow to deep."""
        folder = f"sys/devices/system/cpu/cpu{cpu}/cpuidle"
        states = []
        for name in sorted(self.names(folder), key=lambda name: _number(name[5:]) or 0):
            latency_us = self.number(f"{folder}/{name}/latency")
            if name.startswith("state") and latency_us is not None:
                states.append(IdleState(self.text(f"{folder}/{name}/name") or name, latency_us,
                                        self.text(f"{folder}/{name}/disable") not in ("0", None)))
        return states

    def irqs(self):
        """The interrupts of devices, with where they may go."""
        lines = self.lines("proc/interrupts")
        columns = re.findall(r"CPU(\d{1,4})\b", lines[0]) if lines else []
        found = []
        for line in lines[1:]:
            words = line.split()
            number = words[0].rstrip(":") if words else ""
            if not (number.isascii() and number.isdigit()) or len(words) <= len(columns):
                continue                                     # NMI, LOC, RES: not a device's
            counts = {int(cpu): _number(word) or 0 for cpu, word in zip(columns, words[1:])}
            folder = f"proc/irq/{int(number)}/"
            cpus = parse_cpus(self.text(folder + "effective_affinity_list")) or parse_cpus(
                self.text(folder + "smp_affinity_list"))
            found.append(Irq(int(number), words[-1], cpus or [], counts))
        return found

    def clock_sources(self):
        """(current, [available])."""
        folder = "sys/devices/system/clocksource/clocksource0/"
        return self.text(folder + "current_clocksource"), (self.text(folder + "available_clocksource") or "").split()

    # -- control groups --------------------------------------------------------------------------------------

    def _groups(self, controller):
        """Folders of this process's control group and its parents, innermost first, version 2 and then 1.

        Where a container mounts its own group as the whole tree the inner folders do not exist; the last one does.
        """
        for line in self.lines("proc/self/cgroup"):
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            names = controllers.split(",")
            if controllers and controller not in names:
                continue
            tops = [f"sys/fs/cgroup/{folder}" for folder in dict.fromkeys((controllers, controller))]
            parts = [part for part in path.split("/") if part not in ("", ".", "..")]
            for top in tops if controllers else ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                for count in range(len(parts), -1, -1):
                    yield "/".join([top, *parts[:count]])

    def cpuset(self):
        """Processors that the control group lets this process have."""
        for folder in self._groups("cpuset"):
            for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
                found = parse_cpus(self.text(f"{folder}/{name}"))
                if found:
                    return found
        return None

    def quota(self):
        """How many processors' worth of time the control group grants, the least of all levels; None: no limit."""
        found = []
        for folder in self._groups("cpu"):
            words = (self.text(f"{folder}/cpu.max") or "").split() or [
                self.text(f"{folder}/cpu.cfs_quota_us"), self.text(f"{folder}/cpu.cfs_period_us")]
            if len(words) == 2:
                quota, period = map(_number, words)          # "max 100000", and -1 of version 1: no limit
                if quota and period and quota > 0 and period > 0:
                    found.append(Quota(quota / period, folder))
        return min(found, default=None)

    def memory_limit(self):
        """What the control group lets this process hold, the least of all levels; None: no limit, or hidden."""
        found = []
        for folder in self._groups("memory"):
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
                count = self.number(f"{folder}/{name}")
                if count is not None and 0 < count < 1 << 60:        # version 1 says "none" as about 2**63
                    found.append(MemoryLimit(count, f"{folder}/{name}"))
        return min(found, default=None)

    # -- memory ----------------------------------------------------------------------------------------------

    def memory(self):
        """(total, available) bytes."""
        return self.kib("proc/meminfo", "MemTotal"), self.kib("proc/meminfo", "MemAvailable")

    def huge_pages(self):
        """The chosen word of "always [madvise] never"."""
        found = re.search(r"\[(\w+)\]", self.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
        return found and found.group(1)

    def swaps(self):
        """Swap areas; None where /proc does not tell."""
        lines = self.lines("proc/swaps")
        rows = [line.rsplit(None, 4) for line in lines[1:]]  # Filename Type Size Used Priority; a name may hold spaces
        return [Swap(row[0], (_number(row[2]) or 0) * 1024) for row in rows if len(row) == 5] if lines else None

    def lock_limit(self):
        """RLIMIT_MEMLOCK, the soft one, in bytes; math.inf for unlimited."""
        found = re.search(r"^Max locked memory\s+(\S+)", self.text("proc/self/limits") or "", re.MULTILINE)
        if not found:
            return None
        return math.inf if found.group(1) == "unlimited" else _number(found.group(1))

    def has_capability(self, number):
        """Whether this process has a capability in effect now, on the host and not only in a user namespace."""
        mask = _number(self.fields("proc/self/status").get("CapEff"), 16)
        is_host = (self.text("proc/self/uid_map") or INITIAL_MAP).split() == INITIAL_MAP.split()
        return None if mask is None else bool(mask >> number & 1) and is_host

    def shared_memory(self):
        """(size, free) bytes of /dev/shm."""
        try:
            found = os.statvfs(self.path("dev/shm"))
        except (OSError, AttributeError):                    # AttributeError: Windows
            return None
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize

    # -- network ---------------------------------------------------------------------------------------------

    def softnet(self):
        """What the kernel's receive queues, one a processor, did since boot; the columns are hexadecimal."""
        rows = [line.split() for line in self.lines("proc/net/softnet_stat")]
        rows = [[_number(word, 16) for word in row[:3]] for row in rows if len(row) >= 3]
        rows = [row for row in rows if None not in row]
        return Softnet(*map(sum, zip(*rows))) if rows else None

    def udp(self):
        """{"RcvbufErrors": 0, ...} since boot."""
        rows = [line.split() for line in self.lines("proc/net/snmp") if line.startswith("Udp:")]
        if len(rows) < 2:
            return None
        return {name: _number(value) for name, value in zip(rows[0][1:], rows[1][1:])}

    def interfaces(self):
        return self.names("sys/class/net")

    def interface(self, name):
        """Facts of one interface; None if there is none of that name."""
        folder = f"sys/class/net/{name}"
        flags = _number(self.text(f"{folder}/flags"), 16) if name and "/" not in name else None
        if flags is None:
            return None

        def count(*names):
            found = [self.number(f"{folder}/statistics/{each}") for each in names]
            return None if None in found else sum(found)
        speed = self.number(f"{folder}/speed")
        return Interface(name, bool(flags & 0x1), bool(flags & 0x1000),       # if.h: IFF_UP, IFF_MULTICAST
                         self.number(f"{folder}/mtu"), speed if speed and speed > 0 else None,
                         self.link(f"{folder}/device/driver"), self.number(f"{folder}/device/numa_node"),
                         count("rx_packets"), count("rx_dropped", "rx_missed_errors", "rx_fifo_errors"),
                         count("tx_packets"), count("tx_dropped", "tx_errors"))

    def routes(self):
        """The IPv4 routing table; None where /proc does not tell."""
        lines = self.lines("proc/net/route")
        found = []
        for line in lines[1:]:
            words = line.split()
            if len(words) < 8:
                continue
            # The file prints each address as the host's own integer; every host we know of here is little-endian.
            numbers = [_number(words[at], 16) for at in (1, 7)]
            if None in numbers or not all(0 <= number < 1 << 32 for number in numbers):
                continue
            destination, mask = (int.from_bytes(number.to_bytes(4, "little"), "big") for number in numbers)
            found.append(Route(words[0], destination, mask, _number(words[6]) or 0))
        return found if lines else None

    def route_to(self, address):
        """The Route that a dotted IPv4 address takes; None if there is none."""
        number = _ipv4(address)
        fitting = [route for route in self.routes() or () if number is not None
                   and number & route.mask == route.destination]
        return max(fitting, key=lambda route: (route.mask, -route.metric), default=None)

    def local_addresses(self):
        """Dotted IPv4 addresses of this host; None where /proc does not tell."""
        lines = self.lines("proc/net/fib_trie")
        found = set()
        for above, line in zip(lines, lines[1:]):
            if "/32 host LOCAL" in line:
                found.add(above.split()[-1] if above.split() else "")
        return found if lines else None

    def interface_of(self, text):
        """The Interface meant by a name or a local address; None if it is not found."""
        if _ipv4(text) is None:
            return self.interface(text)
        if text.startswith("127."):
            return self.interface("lo")
        route = self.route_to(text) if text in (self.local_addresses() or ()) else None
        return self.interface(route.interface) if route else None

    # -- processes -------------------------------------------------------------------------------------------

    def running(self, wanted):
        """Which of the names in `wanted` are names of running processes; comm is cut to 15 characters."""
        pids = [name for name in self.names("proc") if name.isdigit()][:MAX_PROCESSES]
        return sorted({self.text(f"proc/{pid}/comm") for pid in pids} & {name[:15] for name in wanted})
