"""What doctor looks at: a function for each row, of nothing but a Patient, so that tests can lay out any machine.

A row says what was found, what is wanted, what the difference costs, and the commands that make it good. It is
`degraded` if the feeder runs but slower or later than it could, `unfit` if what was configured cannot work: books
beyond the memory, an interface that is not there, no venue in reach; `unknown` if it cannot be read, and that is
judged no further. The worst row is the verdict. Commands are complete lines of shell, or comments; nothing that
changes a host is named where it is not known to be needed.
Not here: reading (host/facts, host/timekeeping, net/probe) and showing (doctor).
"""

import ipaddress
import math
from collections import namedtuple

from feeder import config as configuration
from feeder.host import cores as layout
from feeder.host.facts import CAP_IPC_LOCK, CAP_NET_ADMIN, cpus_text
from feeder.packet import MAX_PACKET_BYTES, largest
from feeder.ring import ring_bytes

OK, UNKNOWN, DEGRADED, UNFIT = "ok", "unknown", "degraded", "unfit"
VERDICTS = {OK: ("ready", 0), UNKNOWN: ("ready", 0), DEGRADED: ("degraded", 1), UNFIT: ("unfit", 2)}
WORST_FIRST = (UNFIT, DEGRADED, UNKNOWN, OK)

KIB, MIB = 1 << 10, 1 << 20
OLDEST_KERNEL = (4, 18)                # the newest of what is used: UDP_SEGMENT
OLDEST_PYTHON = (3, 9)
GOOD_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "riscv_clocksource", "timebase",
               "tod")                  # read without entering the kernel
PTP_DAEMONS = ("ptp4l", "phc2sys", "timemaster")             # steer the clock without telling the kernel
CLOCK_DAEMONS = ("chronyd", "ntpd", "systemd-timesyncd", "openntpd", "ntpsec", *PTP_DAEMONS)
MAX_STOLEN = 0.001                     # of the processors' time
MAX_LOST = 1e-6                        # of packets since boot
MAX_IDLE_LATENCY_US = 10               # to wake from a C-state
MIN_BACKLOG = 5000
MIN_MEMBERSHIPS = 20                   # the kernel's default, IP_MAX_MEMBERSHIPS
UDP_HEADERS_BYTES = {4: 28, 6: 48}      # with those of IP
NO_DELAY = "interrupts not delayed (rx-usecs 0, adaptive-rx off)"
DELAY_COST = "a card that gathers packets adds 10 to 100 us to each"

Row = namedtuple("Row", "name status found wanted cost commands")


class Patient:
    """All that is known: the host, what is configured for it, and what had to be asked beyond files."""

    def __init__(self, config, host, build, *, clock=None, tls=None, reached=(), offloads=None, can_segment=None,
                 force_rings=False):
        self.config, self.host, self.build, self.clock = config, host, build, clock
        self.force_rings = force_rings
        self.offloads = offloads or (lambda name: None)      # a function like net.ethtool's
        self.can_segment = can_segment or (lambda size: None)        # and like net.udp's
        self.tls, self.reached = tls, reached            # None: an interpreter without ssl; [(venue, [Reached, ...])]
        self.workers = min(config.hft.runtime.workers, max(len(venue.symbols) for venue in config.venues))
        self.is_linux = host.kernel().system == "Linux"
        self.is_ordered = host.machine.lower() in layout.ORDERED_MACHINES
        self.ring_bytes = ring_bytes(config.hft.processing.ring_buffer_size,
                                     sum(len(venue.symbols) for venue in config.venues))
        self.process_bytes = configuration.memory_bytes(config) + self.workers * self.ring_bytes
        self.memory_bytes = self.process_bytes + self.workers * configuration.INTERPRETER_BYTES
        output = config.output
        group = ipaddress.ip_address(output.group)
        self.is_multicast, self.is_ipv6 = group.is_multicast, group.version == 6
        self.headers_bytes = UDP_HEADERS_BYTES[group.version]
        self.default_route = host.route_to("192.0.2.1")      # RFC 5737: nowhere in particular
        route = host.route_to(output.group)
        self.network = host.interface_of(output.interface) if output.interface and self.is_multicast else (
            host.interface(route.interface) if route else None)
        topology = layout.topology_of(host, self.network.name if self.network else None)
        self.usable = topology.usable if topology else []
        self.cores = layout.recommend(topology, self.is_ordered or force_rings) if topology else None
        affinity = config.hft.cpu_affinity
        configured = [affinity.processor_core, *affinity.worker_cores] if affinity.enabled else []
        recommended = [self.cores.publisher, *self.cores.workers] if self.cores else []
        self.hot = ([core for core in configured if core in self.usable]      # what must not be disturbed
                    or [core for core in recommended if core is not None])
        self.rest = [core for core in self.usable if core not in self.hot] or [0]


# -- words ---------------------------------------------------------------------------------------------------

def row(name, found, wanted, bad, cost, commands=(), status=DEGRADED, look=()):
    """A Row. `found` None: nobody knows. `bad`: whether it falls short. `look`: commands to see what we could not."""
    if found is None:
        return Row(name, UNKNOWN, "not readable", wanted, cost, list(look))
    judged = UNKNOWN if bad is None else status if bad else OK
    return Row(name, judged, found, wanted, cost, list({OK: (), UNKNOWN: look}.get(judged, commands)))


def size(count):
    if count == math.inf:
        return "unlimited"
    unit, name = (MIB, "MiB") if count >= MIB else (KIB, "KiB")
    return f"{count / unit:,.0f} {name}" if count >= KIB else f"{count} bytes"


def listed(names, most=4):
    names = list(map(str, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def sysctl(name, value):
    return [f"sysctl -w {name}={value}", f"echo '{name} = {value}' >> /etc/sysctl.d/90-feeder.conf"]


def boot(*options):
    """Commands that put options on the kernel's command line."""
    return [f"options={options[0]}", *(f'options="$options {each}"' for each in options[1:]),
            'sed -i "s/^GRUB_CMDLINE_LINUX=\\"/&$options /" /etc/default/grub && update-grub',
            '# Fedora, RHEL instead: grubby --update-kernel=ALL --args="$options"', "reboot"]


# -- host and interpreter ------------------------------------------------------------------------------------

def kernel(patient):
    kernel, is_linux = patient.host.kernel(), patient.is_linux
    numbers = tuple(int(part) if part.isdigit() else 0 for part in kernel.release.partition("-")[0].split(".")[:2])
    traits = [word for word in kernel.version.split() if word.startswith("PREEMPT")]
    return row("kernel", " ".join(filter(None, (kernel.system, kernel.release, kernel.machine, *traits))),
               "Linux %d.%d or newer" % OLDEST_KERNEL, not is_linux or bool(kernel.release) and numbers < OLDEST_KERNEL,
               "newer socket options are skipped" if is_linux else
               "locking, pinning and most socket options are skipped, for Linux alone has them",
               ["# a newer kernel" if is_linux else "# a Linux host"])


def virtualization(patient):
    virtual, stolen = patient.host.is_virtual(), patient.host.stolen()
    kind = "not readable" if virtual is None else "virtual machine" if virtual else "none"
    return row("hypervisor", None if stolen is None else f"{kind}, {stolen:.3%} of the time stolen",
               f"at most {MAX_STOLEN:.1%} stolen", (stolen or 0) > MAX_STOLEN,
               "a processor taken away stops the feed for milliseconds",
               ["# ask whoever runs the hypervisor for dedicated (pinned) processors"])


def python(patient):
    build = patient.build
    version = tuple(int(part) for part in build["version"].split(".")[:2])
    faults = [text for text, is_so in (
        (f"older than {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}", version < OLDEST_PYTHON),
        ("debug build: 2 to 5 times slower", build["debug"]),
        ("development mode (-X dev): slower", build["development_mode"]),
        ("free-threaded: a single thread is slower, and nothing here gains", not build["gil"]),
        ("built without profile-guided optimization: 10-30% slower", build["optimized"] is False),
        ("built without ctypes: no locking, no pinning", not build["ctypes"]),
        ("32 bits: large integers are slower", build["pointer_bits"] < 64)) if is_so]
    found = ", ".join((f"{build['implementation']} {build['version']}", "GIL" if build["gil"] else "free-threaded",
                       "debug" if build["debug"] else "no debug", "JIT" if build["jit"] else "no JIT",
                       {True: "optimized", False: "not optimized", None: "optimization unknown"}[build["optimized"]]))
    return row("python", found, "%d.%d or newer, with GIL, optimized, no debug" % OLDEST_PYTHON, bool(faults),
               "; ".join(faults), ["# use the distribution's interpreter, or build one with",
                                   "./configure --enable-optimizations --with-lto && make && make install"],
               UNFIT if version < OLDEST_PYTHON else DEGRADED)


def memory_order(patient):
    forced = patient.force_rings
    weak = ", weaker than x86's: rings are " + ("FORCED" if forced else "off unless FEEDER_FORCE_RING=1")
    return row("memory order", patient.host.machine + ("" if patient.is_ordered else weak),
               "x86, whose stores become visible in order, or workers 0",
               bool(patient.workers and not patient.is_ordered),
               "a record may be read before it is whole; rings end the run when they notice" if forced else
               "`run` with workers refuses to start", ["# set runtime.workers to 0 in hft_config.json"],
               DEGRADED if forced else UNFIT)


# -- processors ----------------------------------------------------------------------------------------------

def processors(patient):
    host, needed = patient.host, 2 + patient.workers         # the publisher and the rest have one each
    quota, online, nodes = host.quota(), host.online(), host.nodes()
    parts = [f"online {cpus_text(online)}"] if online else []
    parts += [f"usable {cpus_text(patient.usable)}"] if patient.usable else []
    parts += [f"{len(nodes)} NUMA nodes"] if len(nodes) > 1 else []
    parts += [f"a quota of {quota.processors:g}"] if quota else []
    return row("processors", ", ".join(parts) or None, f"at least {needed}, no quota",
               len(patient.usable) < needed or bool(quota),
               "a quota stops the feed for the rest of each period, up to 100 ms" if quota else
               "`run` starts fewer workers than are configured" if patient.workers else "processes wait for each other",
               [f"# {quota.path}: remove CPUQuota= of the unit, --cpus of the container"] if quota else
               [f"# {needed} processors, or fewer runtime.workers"])


def affinity(patient):
    wanted = patient.config.hft.cpu_affinity
    named = [core for core in (wanted.processor_core, *wanted.worker_cores, *wanted.other_cores) if core >= 0]
    if not wanted.enabled or not named or not patient.usable:
        return row("affinity", "no core configured", "cores as recommended below", False, "")
    outside = [core for core in named if core not in patient.usable]
    return row("affinity", f"configured cores {cpus_text(named)}", f"of {cpus_text(patient.usable)}",
               bool(outside), f"{cpus_text(outside)} cannot be had: the feeder runs unpinned",
               ["# correct cpu_affinity in hft_config.json as recommended below"])


def isolation(patient):
    isolated, tickless, hot = patient.host.isolated(), patient.host.tickless(), cpus_text(patient.hot)
    found = None if isolated is None else (f"isolated {cpus_text(isolated) or 'none'}, without tick "
                                           f"{cpus_text(tickless) or 'none'}, housekeeping "
                                           + cpus_text(set(patient.host.online() or ()) - set(isolated)))
    bad = bool(set(patient.hot) - set(isolated or ()))
    cpus = cpus_text({*patient.hot, *(isolated or ())})
    again = patient.host.boot_option("isolcpus") is not None
    return row("isolated cores", found, f"{hot} isolated" if hot else "none to isolate", bad,
               "other processes and the timer tick interrupt the publisher: jitter of 10 to 100 us and more",
               (["# first take out the isolcpus=, nohz_full= and rcu_nocbs= that are there"] if again else [])
               + boot(f"isolcpus=managed_irq,domain,{cpus}", f"nohz_full={cpus}", f"rcu_nocbs={cpus}"))


def siblings(patient):
    host, hot = patient.host, patient.hot
    others = sorted({cpu for core in hot for cpu in host.siblings(core)} - set(hot))
    others = [cpu for cpu in others if cpu in (host.online() or ())]
    shared = [core for core in hot if set(host.siblings(core)) & set(hot) - {core}]
    found = f"{cpus_text(others)} share cores with {cpus_text(hot)}" if others else "none beside " + (
        cpus_text(hot) or "any core") if not shared else f"{cpus_text(shared)} share a core with each other"
    return row("SMT siblings", found if host.online() else None, "none, or off", bool(others or shared),
               "a busy sibling takes up to half of the core",
               [f"for cpu in {' '.join(map(str, others))}; do echo 0 > /sys/devices/system/cpu/cpu$cpu/online; done"]
               if others else ["# name processors of different cores in cpu_affinity of hft_config.json"])


def governor(patient):
    governors = patient.host.governors()
    slow = [cpu for cpu in patient.hot if governors.get(cpu, "performance") != "performance"]
    found = ", ".join(sorted(set(governors.values()))) or (
        "none: frequency is not the kernel's business" if patient.host.online() else None)
    return row("governor", found, "performance", bool(slow), "a core that slowed down takes up to 1 ms to speed up",
               ["echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"])


def idle_states(patient):
    deep, deepest = {}, None
    for core in patient.hot:
        states = patient.host.idle_states(core)
        usable = [state for state in states if not state.is_disabled]
        deepest = max([deepest, *usable] if deepest else usable, key=lambda state: state.latency_us, default=deepest)
        slow = [at for at, state in enumerate(states) if state in usable and state.latency_us > MAX_IDLE_LATENCY_US]
        deep.update({core: slow} if slow else {})
    found = f"deepest {deepest.name}, {deepest.latency_us} us to wake" if deepest else (
        "none shown" if patient.host.online() else None)
    if patient.config.hft.runtime.idle == "spin":
        return row("C-states", found, "any: the loop spins, the cores never sleep", False, "")
    cpus, first = " ".join(map(str, sorted(deep))), min((ats[0] for ats in deep.values()), default=0)
    return row("C-states", found, f"at most {MAX_IDLE_LATENCY_US} us to wake", bool(deep),
               "each message after a pause waits for the core to wake",
               [f"for cpu in {cpus}; do echo 1 | tee /sys/devices/system/cpu/cpu$cpu/cpuidle/state[{first}-9]/disable; "
                "done", "# for good: intel_idle.max_cstate=1 processor.max_cstate=1 on the kernel's command line"])


def interrupts(patient):
    irqs, hot = patient.host.irqs(), set(patient.hot)
    busy = [irq for irq in irqs if hot & set(irq.processors) and any(irq.counts.get(core) for core in hot)]
    found = f"{len(irqs)} interrupts, " + (f"on {cpus_text(hot)}: " + listed(f"{irq.number} {irq.name}" for irq in busy)
                                            if busy else "none on the feeder's cores") if irqs else None
    balance = patient.host.running(["irqbalance"])
    return row("IRQ placement", found, f"none on {cpus_text(hot)}" if hot else "anywhere", bool(busy),
               "each one stops the publisher for 2 to 20 us, and spoils its caches",
               (["systemctl disable --now irqbalance"] if balance else [])
               + [f"for irq in {' '.join(str(irq.number) for irq in busy[:64])}; do "
                  f"echo {cpus_text(patient.rest)} > /proc/irq/$irq/smp_affinity_list; done"])


# -- memory --------------------------------------------------------------------------------------------------

def lock(patient):
    limit, capable = patient.host.lock_limit(), patient.host.has_capability(CAP_IPC_LOCK)
    need = patient.process_bytes
    found = None if limit is None and capable is None else (
        f"limit {'not readable' if limit is None else size(limit)}, CAP_IPC_LOCK "
        + {True: "yes", False: "no", None: "not readable"}[capable])
    return row("memory lock", found, f"CAP_IPC_LOCK, or a limit of {size(need)}",
               not capable and (limit is None or limit < need),
               "memory is not locked: under pressure it is paged out, and a page from disk takes milliseconds",
               ["# one of: in the systemd unit, [Service]", "LimitMEMLOCK=infinity",
                "# in the shell that starts it, as root", "ulimit -l unlimited",
                "# for every script of this interpreter",
                f"setcap cap_ipc_lock=+ep {patient.build['executable']}"])


def memory(patient):
    host, need = patient.host, patient.memory_bytes
    (total, available), limit = host.memory(), host.memory_limit()
    bounds = [each for each in (total, limit and limit.bytes) if each]
    found = f"{size(min(bounds))} " + (f"by {limit.path}" if limit and limit.bytes == min(bounds) else
                                       f"of RAM, {size(available or 0)} available") if bounds else None
    is_short = bool(bounds) and need > min(bounds)
    return row("memory", found, f"{size(need)} at worst, as configured",
               is_short or bool(available is not None and need > available),
               "the kernel kills the feeder when its books have grown" if is_short else
               "others must be paged out or killed first",
               ["# more memory, a higher limit (MemoryMax= of the unit, --memory of the container), or smaller:",
                "# fewer symbols, or a smaller snapshot_limit in the venue's file"], UNFIT if is_short else DEGRADED)


def huge_pages(patient):
    found = patient.host.huge_pages()
    return row("huge pages", found and f"transparent, {found}", "madvise or never", found == "always",
               "memory is joined and split behind our back: stalls of 0.1 to 1 ms, and more of it used",
               ["echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
                "# for good: transparent_hugepage=madvise on the kernel's command line"])


def swap(patient):
    host = patient.host
    swaps, swappiness = host.swaps(), host.sysctl("vm.swappiness")
    lockable = host.has_capability(CAP_IPC_LOCK) or (host.lock_limit() or 0) >= patient.process_bytes
    found = None if swaps is None else ", ".join(f"{swap.name} {size(swap.bytes)}" for swap in swaps[:3]) + (
        f", swappiness {swappiness}" if swappiness is not None else "") if swaps else "none"
    return row("swap", found, "none, or memory locked", bool(swaps) and not lockable,
               "memory that is not locked may go to disk", ["swapoff -a", *sysctl("vm.swappiness", 1)])


def shared_memory(patient):
    found = patient.host.shared_memory()
    need = 0 if patient.build["memfd"] else patient.workers * patient.ring_bytes
    why = ("with workers 0" if not patient.workers else
           "as rings lie in nameless memory" if patient.build["memfd"] else "for rings")
    return row("/dev/shm", found and f"{size(found[1])} free of {size(found[0])}",
               f"{size(need) if need else 'nothing'} {why}", bool(found) and found[1] < need,
               "a worker dies (SIGBUS) as its ring fills",
               [f"mount -o remount,size={-(-need // MIB) * 2}m /dev/shm",
                f"# in a container: --shm-size={-(-need // MIB) * 2}m"], UNFIT)


# -- network -------------------------------------------------------------------------------------------------

def socket_buffers(patient):
    host, config = patient.host, patient.config
    for which, name, need in (
            ("receive", "net.core.rmem_max", max([venue.recv_buffer_bytes for venue in config.venues] + [4 * MIB])),
            ("send", "net.core.wmem_max", config.output.send_buffer_bytes)):
        found, forced = host.sysctl(name), host.has_capability(CAP_NET_ADMIN)
        yield row(f"{which} buffer", None if found is None else f"{name} {found}"
                  + (", exceeded by CAP_NET_ADMIN" if forced and found < need else ""), f"{need}",
                  found is not None and found < need and not forced,
                  "bursts are dropped where the buffer ends" if which == "receive" else
                  "datagrams are dropped in a burst; a listener sees gaps", sysctl(name, need),
                  look=[f"sysctl {name}"] if patient.is_linux else [])


def backlog(patient):
    found, softnet = patient.host.sysctl("net.core.netdev_max_backlog"), patient.host.softnet()
    dropped = f"; {softnet.dropped:,} of {softnet.processed:,} packets dropped" if softnet else ""
    lost = bool(softnet) and softnet.dropped > MAX_LOST * softnet.processed
    return row("netdev backlog", None if found is None else f"{found}{dropped}", f"{MIN_BACKLOG} or more, none dropped",
               found is not None and found < MIN_BACKLOG or lost,
               "packets of a burst, on loopback too, are dropped before they reach a socket",
               sysctl("net.core.netdev_max_backlog", MIN_BACKLOG),
               look=["sysctl net.core.netdev_max_backlog"] if patient.is_linux else [])


def bursts(patient):
    size, card = largest(patient.config.output.packet_bytes), patient.network
    known = patient.can_segment(size)
    if not patient.config.hft.sockets.batch_us:
        return row("bursts", "each datagram by a call of its own: sockets.batch_us is 0", "", False, "")
    reason = ("the kernel does not have it" if known is False else
              f"two packets of {size} bytes are too much for a call" if 2 * size > MAX_PACKET_BYTES else
              f"packets of {size} bytes do not fit into the MTU of {card.mtu}"
              if card and card.mtu and card.mtu < size + patient.headers_bytes else "")
    return row("bursts", None if known is None else reason or "UDP_SEGMENT", "several datagrams a call (UDP_SEGMENT)",
               bool(reason), "a datagram of a burst costs six times as much",
               ["# a kernel of 4.18 or newer" if known is False else
                "# a smaller output.packet_bytes in hft_config.json"])


def udp(patient):
    known = patient.host.udp()
    counts = known or {}
    lost, sent = counts.get("RcvbufErrors") or 0, counts.get("SndbufErrors") or 0
    received = counts.get("InDatagrams") or 0
    found = f"received {received:,}, dropped {lost:,}; send buffer full {sent:,}, since boot"
    return row("UDP drops", found if known else None,
               "fewer than one in a million dropped", lost > MAX_LOST * (received + lost),
               "a listener on this host was too slow or its buffer too small; `feeder listen` tells if it was ours",
               sysctl("net.core.rmem_max", max(4 * MIB, 2 * (patient.host.sysctl("net.core.rmem_max") or 0)))
               + ["# and raise the listener's buffer to it"])


def network_cards(patient):
    """A row for the interface packets leave by, one for that of the default route, and their offloads."""
    host, output = patient.host, patient.config.output
    if not host.interfaces():
        yield row("network card", None, "up, MTU no smaller than a packet, nothing dropped", None,
                  "packets in fragments, or lost")
        return
    if patient.network is None and output.interface and patient.is_multicast:
        yield row("network card", f"{output.interface} is not on this host",
                  f"one of {listed(host.interfaces(), 8)}, or an address of it", True, "`run` cannot send and ends",
                  ["ip -brief address", "# then correct output.interface in hft_config.json"], UNFIT)
    for end in configuration.channels(output)[1:] + configuration.fan_out(output):
        if end.is_multicast and end.interface not in ("", output.interface) and host.interface_of(end.interface) is None:
            yield row("network card", f"{end.interface} of {end} is not on this host",
                      f"one of {listed(host.interfaces(), 8)}, or an address of it", True, "`run` cannot send and ends",
                      ["ip -brief address", "# then correct output.more_channels or fan_out in hft_config.json"], UNFIT)
    facing = host.interface(patient.default_route.interface) if patient.default_route else None
    for card in dict.fromkeys(filter(None, (patient.network, facing))):
        sends = card == patient.network
        packet = output.packet_bytes + patient.headers_bytes
        faults, commands = [], []
        if not card.is_up:
            faults.append("down: nothing passes")
            commands.append(f"ip link set dev {card.name} up")
        if sends and card.mtu and card.mtu < packet:
            faults.append(f"a full packet of {packet} bytes is sent as fragments, and lost if one is")
            commands.append(f"# set output.packet_bytes to {card.mtu - patient.headers_bytes} in hft_config.json, or")
            commands.append(f"ip link set dev {card.name} mtu {packet}")
        for lost, count in ((card.lost, card.received), (card.unsent, card.transmitted)):
            if lost and lost > MAX_LOST * ((count or 0) + lost):
                faults.append("packets are lost in the card or its driver")
                commands += ["# which counter tells the cause; larger rings help against bursts",
                             f"ethtool -S {card.name}", f"ethtool -G {card.name} rx 4096 tx 4096"]
                break
        parts = [card.driver, f"{card.speed_mbit} Mbit/s" if card.speed_mbit else None, f"MTU {card.mtu}",
                 "up" if card.is_up else "down"]
        if card.lost is not None and card.unsent is not None:
            parts.append(f"dropped {card.lost:,} in, {card.unsent:,} out")
        yield row(f"card {card.name}", ", ".join(filter(None, parts)),
                  (f"up, MTU {packet} or more" if sends else "up") + ", nothing dropped", bool(faults),
                  "; ".join(faults), commands, UNFIT if sends and not card.is_up else DEGRADED)
        if card.name != "lo":
            yield offloads(patient, card.name)


def offloads(patient, name):
    found = patient.offloads(name)
    if found is None:
        return row(f"offloads {name}", None, NO_DELAY, None, DELAY_COST, look=[f"ethtool -c {name}; ethtool -k {name}"])
    known = (("GRO", found.gro), ("LRO", found.lro), ("adaptive delay", found.is_adaptive))
    parts = [f"{label} {'on' if value else 'off'}" for label, value in known if value is not None]
    parts += [] if found.rx_delay_us is None else [f"interrupts delayed {found.rx_delay_us} us"]
    parts += [f"receive ring {found.rx_ring} of {found.rx_ring_max}"] if found.rx_ring_max else []
    is_late, is_short = found.is_adaptive or found.rx_delay_us, (found.rx_ring or 0) < min(1024, found.rx_ring_max or 0)
    return row(f"offloads {name}", ", ".join(parts), f"{NO_DELAY}, LRO off, a deep ring",
               bool(is_late or found.lro or is_short), DELAY_COST + "; a short ring loses the end of a burst",
               ([f"ethtool -C {name} adaptive-rx off rx-usecs 0"] if is_late else [])
               + ([f"ethtool -K {name} lro off"] if found.lro else [])
               + ([f"ethtool -G {name} rx {found.rx_ring_max}"] if is_short else []))


def multicast(patient):
    host, output = patient.host, patient.config.output
    if not patient.is_multicast:
        return row("multicast route", f"{output.group} is one host", "", False, "")
    route = host.route_to(output.group)
    card = patient.network
    if output.interface:
        found = None if not host.interfaces() else f"{output.group} leaves by {output.interface}, as configured"
        bad = card is not None and card.name != "lo" and not card.is_multicast
        return row("multicast route", found, "an interface with MULTICAST", bad, "the group does not leave this host",
                   [f"ip link set dev {card.name if card else output.interface} multicast on"])
    if patient.is_ipv6:
        return row("multicast route", None, f"a route that covers {output.group}", None, "`run` cannot send and ends",
                   look=[f"ip -6 route get {output.group}"])
    found = None if host.routes() is None else f"{output.group} leaves by {route.interface}" if route else "none"
    return row("multicast route", found, f"a route that covers {output.group}", route is None,
               "`run` cannot send and ends", ["ip route add 239.0.0.0/8 dev "
               + (patient.default_route.interface if patient.default_route else "eth0")], UNFIT)


def igmp(patient):
    found = patient.host.sysctl("net.ipv4.igmp_max_memberships")
    version = {1: ", forced to version 1", 2: ", forced to version 2"}.get(
        patient.host.sysctl("net.ipv4.conf.all.force_igmp_version"), "")
    return row("IGMP limits", None if found is None else f"{found} groups a socket{version}",
               f"{MIN_MEMBERSHIPS} or more", found is not None and found < MIN_MEMBERSHIPS,
               "a listener of many channels cannot join them all", sysctl("net.ipv4.igmp_max_memberships", 64))


# -- clock ---------------------------------------------------------------------------------------------------

def clock_source(patient):
    current, available = patient.host.clock_sources()
    best = next((name for name in GOOD_CLOCKS if name in available), None)
    return row("clock source", current, "tsc, or another that is read without the kernel",
               current is not None and current not in GOOD_CLOCKS,
               "each look at the clock is a system call of 0.3 to 2 us, several a message",
               [f"echo {best} > /sys/devices/system/clocksource/clocksource0/current_clocksource",
                f"# for good: clocksource={best} on the kernel's command line"] if best else boot("tsc=reliable"))


def clock_keeping(patient):
    daemons, clock = patient.host.running(CLOCK_DAEMONS), patient.clock
    steered = [name for name in daemons if name in PTP_DAEMONS]
    told = None if clock is None else (f"synchronized, error at most {clock.max_error_us / 1000:,.1f} ms"
                                       if clock.is_synchronized else "the kernel says: not synchronized")
    found = "; ".join(filter(None, (told, "by " + ", ".join(daemons) if daemons else
                                    "no clock daemon in sight" if not clock or not clock.is_synchronized else None)))
    bad = not steered and not clock.is_synchronized if clock else None
    return row("clock keeping", found if clock or daemons else None, "a clock that a daemon keeps", bad,
               "times in packets, and latencies from the venue's time, are off by an unknown amount",
               ["# why does it not keep time?", "chronyc tracking || ntpq -p || timedatectl"] if daemons else
               ["apt-get install chrony || dnf install chrony", "systemctl enable --now chronyd || "
                "systemctl enable --now chrony", "# in a container: on the host"])


# -- venues --------------------------------------------------------------------------------------------------

def tls_store(patient):
    venues = [venue for venue in patient.config.venues if "s://" in venue.websocket_url + venue.rest_url]
    asked = [venue for venue in venues if venue.verify_tls and not venue.ca_file]
    if patient.tls is None:
        return row("TLS store", "this Python has no ssl", "a Python with ssl", True, "no venue can be spoken to",
                   ["apt-get install libssl-dev || dnf install openssl-devel", "# then build Python again"], UNFIT)
    lax = [venue.name for venue in venues if not venue.verify_tls]
    return row("TLS store", f"{patient.tls.authorities} authorities in {listed(patient.tls.places) or 'no place'}, "
               f"{patient.tls.version}" + (f"; NOT VERIFIED: {listed(lax)}" if lax else ""),
               "authorities, and every venue verified", bool(asked and not patient.tls.authorities or lax),
               "no venue's certificate can be verified" if not lax else "whoever answers is believed",
               ["apt-get install ca-certificates || dnf install ca-certificates",
                "# or name a PEM file, here or as ca_file in the venue's file",
                "export SSL_CERT_FILE=/path/to/authorities.pem"] if not lax else
               ["# set verify_tls to true, and ca_file if the authority is your own"],
               UNFIT if asked and not patient.tls.authorities else DEGRADED)


def venues(patient):
    """A row for each venue; none in reach is unfit, some is degraded."""
    if not patient.reached:
        yield row("venues", "the built-in venue, on this machine", "none to reach", False, "")
        return
    any_reached = any(not each.error for _, answers in patient.reached for each in answers)
    for name, answers in patient.reached:
        lost = [each for each in answers if each.error]
        hosts = [f"{each.url.partition('://')[0]} in {each.elapsed_ns / 1e6:.0f} ms"
                 for each in answers if not each.error]
        via = sorted({each.proxy for each in answers if each.proxy})
        found = "; ".join([*hosts, *(f"NOT REACHED {each.error}" for each in lost)])
        yield row(name, found + (f" (proxy {', '.join(via)})" if via else "" if hosts else " (no proxy)"),
                  "websocket and rest addresses answer", bool(lost), "no data of this venue",
                  [f"# let this host out, or name a proxy ({', '.join(each.url for each in lost)}):",
                   "# here, or as proxy in the venue's file", "export https_proxy=http://PROXY:PORT"],
                  DEGRADED if any_reached else UNFIT)


CHECKS = {
    "host": (kernel, virtualization, python, memory_order),
    "processors": (processors, affinity, isolation, siblings, governor, idle_states, interrupts),
    "memory": (lock, memory, huge_pages, swap, shared_memory),
    "network": (socket_buffers, backlog, bursts, udp, network_cards, multicast, igmp),
    "clock": (clock_source, clock_keeping),
    "venues": (tls_store, venues),
}


def examine(patient):
    """Return {group: [Row, ...]}."""
    found = {}
    for group, checks in CHECKS.items():
        rows = found[group] = []
        for check in checks:
            answer = check(patient)
            rows.extend([answer] if isinstance(answer, Row) else answer)
    return found


def verdict(groups):
    """Return (word, exit code) of the worst row."""
    statuses = {each.status for rows in groups.values() for each in rows}
    return VERDICTS[next(status for status in WORST_FIRST if status in statuses)]
