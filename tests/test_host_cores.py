"""feeder.host.cores: which processors are recommended, on machines as folders and on random ones."""

import pytest

import machines
from feeder.host.cores import Topology, recommend, topology_of
from machines import build
from support import dice


def plain(count, **more):
    topology = Topology(list(range(count)), [], {cpu: [cpu] for cpu in range(count)}, {}, None, None)
    return topology._replace(**more)


@pytest.mark.parametrize("count, publisher, workers, rest", [
    (1, None, [], [0]), (2, 1, [], [0]), (3, 2, [], [0, 1]), (4, 3, [1, 2], [0]), (6, 5, [1, 2, 3, 4], [0]),
    (8, 7, [3, 4, 5, 6], [0, 1, 2])])
def test_plain_machines(count, publisher, workers, rest):
    cores = recommend(plain(count))
    assert (cores.publisher, cores.workers, cores.rest, cores.idle) == (publisher, workers, rest, [])


def test_without_rings_there_are_no_workers():
    cores = recommend(plain(8), rings=False)
    assert cores.publisher == 7 and cores.workers == [] and cores.rest == [*range(7)] and "memory order" in cores.why


def test_threads_of_one_core_are_not_two_cores():
    cores = recommend(plain(4, siblings={0: [0, 2], 1: [1, 3], 2: [0, 2], 3: [1, 3]}))
    assert (cores.publisher, cores.workers, cores.rest, cores.idle) == (1, [], [0, 2], [3])


def test_a_quota_counts_as_cores():
    assert recommend(plain(8, quota=1.5)).publisher is None
    assert recommend(plain(8, quota=4.0)).workers == [5, 6]


def test_numa_server(tmp_path):
    """Isolation leaves 4-7 out of what this process was started on; pinning may go there all the same."""
    host = build(tmp_path, machines.numa())
    cores = recommend(topology_of(host, "eth1"))
    assert (cores.publisher, cores.workers) == (7, [4, 5, 6])        # isolated, all on the card's node
    assert cores.idle == [20, 21, 22, 23] and not set(cores.rest) & {4, 5, 6, 7, *cores.idle}
    assert 0 in cores.rest and 8 in cores.rest


def test_containers_have_what_they_are_given(tmp_path):
    cores = recommend(topology_of(build(tmp_path / "v2", machines.container_v2()), "eth0"))
    assert (cores.publisher, cores.workers, cores.rest) == (11, [], [8, 9, 10])      # a quota of 2.5
    cores = recommend(topology_of(build(tmp_path / "v1", machines.container_v1())))
    assert (cores.publisher, cores.workers, cores.rest) == (3, [], [2])


def test_a_mask_narrower_than_isolation_explains_is_respected(tmp_path):
    files = {**machines.numa(), "proc/self/status": machines.status("0-1")}      # taskset
    topology = topology_of(build(tmp_path, files))
    assert topology.usable == [0, 1] and recommend(topology).publisher == 1


def test_unknown_machine(tmp_path):
    assert topology_of(build(tmp_path, machines.nothing())) is None


def test_any_machine():
    """Every processor has at most one role, publisher, workers and rest are usable, the rest is never empty."""
    random = dice(3)
    for _ in range(3000):
        count, threads = random.randrange(1, 24), random.choice((1, 2))
        online = list(range(count * threads))
        usable = sorted(random.sample(online, random.randrange(1, len(online) + 1)))
        isolated = sorted(random.sample(usable, random.choice((0, random.randrange(len(usable) + 1)))))
        siblings = {cpu: sorted({cpu, (cpu + count) % len(online)}) if threads == 2 else [cpu] for cpu in online}
        half = count // 2
        nodes = random.choice(({}, {0: [cpu for cpu in online if cpu % count < half],
                                    1: [cpu for cpu in online if cpu % count >= half]}))
        topology = Topology(usable, isolated, siblings, nodes, random.choice((None, None, 0.5, 2.5, 8.0)),
                            random.choice((None, -1, 0, 1)))
        cores = recommend(topology, random.random() < 0.9)
        pinned = ([] if cores.publisher is None else [cores.publisher]) + cores.workers
        assert len(set(pinned)) == len(pinned) and set(pinned) <= set(usable), topology
        assert cores.rest and set(cores.rest) <= set(usable) and not set(cores.rest) & set(pinned), topology
        assert not set(cores.idle) & {*pinned, *cores.rest}, topology
        assert len({min(siblings[cpu]) for cpu in pinned}) == len(pinned), topology      # a core each
        assert len(cores.workers) in (0, 2, 3, 4), topology
        if isolated and pinned and set(usable) - set(isolated):
            assert pinned[0] in isolated or not any(min(siblings[cpu]) == cpu for cpu in isolated), topology
