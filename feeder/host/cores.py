"""Which processors the feeder's processes should have on a machine; a pure function of facts.

    publisher     one processor: isolated if any is, near the network card, not the first, no work on its sibling
    workers       up to MOST_WORKERS ingest processes on cores of the same NUMA node, isolated ones if two are left
    rest          everything else that feeder and the system do: never an isolated processor, if that can be helped
    idle          hardware threads that share a core with publisher or workers; better left without work

One thread to a core: a busy sibling takes up to half of it. One core is always left to the rest, since the kernel's own
work has to go somewhere. `why` is the sentence for people.
"""

from collections import namedtuple

MOST_WORKERS = 4                       # the plan's; beyond it the publisher is the bottleneck
ORDERED_MACHINES = ("x86_64", "amd64", "i386", "i686")       # stores become visible in order, which rings rely on
FEWEST_CORES_FOR_WORKERS = 4           # below it a ring only moves the work about: rest, publisher, two workers

Topology = namedtuple("Topology", "usable isolated siblings nodes quota network_node")
Cores = namedtuple("Cores", "publisher workers rest idle why")


def topology_of(host, interface=None):
    """Ask a facts.Host. Returns None when not even the processors are known."""
    online, allowed, cpuset = host.online(), host.allowed(), host.cpuset()
    isolated = host.isolated() or []
    usable = cpuset or allowed or online
    if not usable:
        return None
    if not cpuset and allowed and online and set(allowed) >= set(online) - set(isolated):
        usable = online                # nothing but isolation keeps this process away, and pinning overcomes that
    if online:
        usable = [cpu for cpu in usable if cpu in online] or usable
    quota, found = host.quota(), host.interface(interface) if interface else None
    return Topology(usable, [cpu for cpu in isolated if cpu in usable], {cpu: host.siblings(cpu) for cpu in usable},
                    host.nodes(), quota.processors if quota else None, found.node if found else None)


def recommend(topology, rings=True):
    """Return the Cores for a machine. `rings`: whether its memory order allows rings, and so workers."""
    usable, isolated = sorted(topology.usable), set(topology.isolated)
    cores = {}                         # a core, named by its first usable thread: its usable threads
    for cpu in usable:
        threads = [each for each in topology.siblings[cpu] if each in usable]
        cores.setdefault(min(threads), threads)
    node_of = {cpu: node for node, cpus in topology.nodes.items() for cpu in cpus}
    count = len(cores)
    if topology.quota is not None:
        count = min(count, int(topology.quota))
    if count < 2:
        what = "one core" if topology.quota is None or len(cores) < 2 else f"a quota of {topology.quota:g} processors"
        return Cores(None, [], usable, [], f"{what}: pinning would only keep others from running; workers 0")

    def preference(core):
        near = topology.network_node in (None, -1, node_of.get(core))
        return core in isolated, near, core
    # The least wanted core is kept for the rest; workers are near the publisher, a ring across nodes costs double.
    first, *others = sorted(cores, key=preference, reverse=True)
    candidates = [core for core in others[:-1] if node_of.get(core) == node_of.get(first)]
    quiet = [core for core in candidates if core in isolated]
    if first in isolated and len(quiet) > 1:       # what is isolated already is enough
        candidates = quiet
    most = min(MOST_WORKERS, len(candidates), count - 2)
    if not rings:
        chosen, why = 0, "memory order is not x86's, rings are off: workers 0"
    elif count < FEWEST_CORES_FOR_WORKERS or most < 2:
        chosen, why = 0, f"{count} cores: one process with a core of its own beats workers that share; workers 0"
    else:
        chosen, why = most, f"{count} cores: publisher, {most} workers, the rest shares what is left"
    workers = sorted(candidates[:chosen])
    taken = {first, *workers}
    idle = [cpu for core in taken for cpu in cores[core] if cpu != core]
    free = [cpu for cpu in usable if cpu not in taken]
    rest = ([cpu for cpu in free if cpu not in isolated and cpu not in idle]
            or [cpu for cpu in free if cpu not in idle] or free)
    return Cores(first, workers, rest, sorted(set(idle) - set(rest)), why)
