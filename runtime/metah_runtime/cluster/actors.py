"""Replicas as Ray actors: starts them on different nodes, finds them by name, stops them."""

import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metah_runtime.checks import check_threads
from metah_runtime.cluster.access import NAMESPACE, require_token, token_mode
from metah_runtime.cluster.plan import ShardPlan, make_plan
from metah_runtime.cluster.replica import Replica, ReplicaInfo
from metah_runtime.cluster.routing import (
    HedgePolicy,
    Router,
    ShardReplicas,
    ShardRequest,
    ShardResponse,
)
from metah_runtime.cluster.searcher import ClusterIndex
from metah_runtime.errors import ClusterError, ConfigError, IndexMismatch
from metah_runtime.index.manifest import Manifest

DEFAULT_NAME: Final = "metah"
JOIN_TIMEOUT: Final = 60.0
"""Seconds in which all replicas must have opened and checked their shards."""
INFO_TIMEOUT: Final = 3.0
"""Seconds in which a replica must report its state; a later one is still sent requests."""

_LARGE: Final = 100_000
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_ACTOR: Final = re.compile(r"(?P<name>[^/]+)/(?P<digest>[0-9a-f]{16})/(?P<shard>\d+)/(?P<n>\d+)")


class ActorReplica(Replica):
    """A replica that also says on which node it runs and whether Ray asks for its token there."""

    def info(self, node: str = "", secured: bool = False) -> ReplicaInfo:
        """Return what this replica has open and where it runs."""
        import ray

        node = node or ray.get_runtime_context().get_node_id()
        return super().info(node, secured or token_mode())


@dataclass(frozen=True, slots=True)
class Member:
    """One replica: its shard, its number, the handle of its actor."""

    shard: int
    number: int
    handle: Any = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"replica {self.number}"


class RayTransport:
    """Sends requests to actors. Never retries: the router asks another replica instead."""

    def __init__(self) -> None:
        self._stored: tuple[ShardRequest, tuple[Any, ...]] | None = None

    def now(self) -> float:
        """Return a time in seconds that never goes back."""
        return time.monotonic()

    def send(self, replica: Member, request: ShardRequest) -> Any:
        """Start a request; large arguments are put into Ray's object store once."""
        return replica.handle.ask.remote(request.method, *self._arguments(request))

    def wait(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """Return the tickets that are done, waiting until one is or the timeout ends."""
        import ray

        return list(ray.wait(list(tickets), num_returns=1, timeout=timeout)[0])

    def result(self, ticket: Any) -> ShardResponse[Any]:
        """Return the response of a ticket that is done; raise its error."""
        import ray

        response = ray.get(ticket, timeout=1.0)
        assert isinstance(response, ShardResponse)
        return response

    def _arguments(self, request: ShardRequest) -> tuple[Any, ...]:
        import ray

        stored = self._stored
        if stored is None or stored[0] is not request:
            put = (ray.put(a) if getattr(a, "nbytes", 0) > _LARGE else a for a in request.arguments)
            self._stored = stored = (request, tuple(put))
        return stored[1]


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """State of one replica: serving, silent, gone, or refused with the reason."""

    shard: int
    replica: int
    state: str
    codes: int | None = None
    node: str | None = None
    process: int | None = None


def start(
    index: str | os.PathLike[str],
    address: str,
    *,
    name: str = DEFAULT_NAME,
    shards: int = 1,
    replicas: int = 2,
    threads: int = 1,
    policy: HedgePolicy | None = None,
) -> ClusterIndex:
    """Serve the present state of an index folder by shards x replicas detached actors.

    The folder must be at the same place on every node. Replicas of a shard are on different
    nodes. threads: of each replica, and the CPUs that Ray keeps for it. All replicas join, or
    everything is stopped again and ClusterError names who refused and why.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name must be 1 to 40 of a-z, 0-9, - and _, got {name!r}")
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise ConfigError(f"replicas must be a whole number >= 1, got {replicas!r}")
    check_threads(threads)
    folder = Path(index).absolute()
    plan = make_plan(Manifest.read(folder), shards)
    import ray

    require_token(address)
    nodes = sum(node["Alive"] for node in ray.nodes())
    if replicas > nodes:
        raise ClusterError(
            f"{replicas} replicas of a shard need {replicas} nodes, Ray has {nodes}; "
            f"fix: start Ray on more machines, or --replicas {nodes}"
        )
    if _members(name):
        raise ClusterError(
            f"a cluster {name!r} runs already; fix: `metah-search cluster stop`, or another --name"
        )
    try:
        members = _create(folder, plan, name, replicas, threads)
        infos = _ask_info(members, JOIN_TIMEOUT)
        for member in members:
            _check_joined(plan, member, infos.get(member))
    except BaseException:
        stop(name)
        raise
    return _searcher(plan, members, policy)


def find(
    name: str = DEFAULT_NAME,
    *,
    expect: str | None = None,
    policy: HedgePolicy | None = None,
) -> ClusterIndex:
    """Return the Searcher of a running cluster; raise ClusterError if there is none.

    expect: the fingerprint that the index must have, else IndexMismatch.
    """
    plan, members, _ = _look(name)
    found = plan.manifest.fingerprint
    if expect is not None and found != expect:
        raise IndexMismatch(
            f"cluster {name!r} serves codes of model {found or '(none)'}, expected {expect}; "
            "fix: use the model of the index"
        )
    return _searcher(plan, members, policy)


def status(name: str = DEFAULT_NAME) -> tuple[ShardPlan, list[ReplicaStatus]]:
    """Return the plan of a cluster and the state of each replica that Ray knows."""
    plan, members, infos = _look(name)
    rows = []
    for member in members:
        info = infos.get(member)
        if not isinstance(info, ReplicaInfo):
            gone = f"gone: {info}" if info else "silent"
            rows.append(ReplicaStatus(member.shard, member.number, gone))
            continue
        state = f"refused: {info.refusal}" if info.refusal else "serving"
        rows.append(
            ReplicaStatus(member.shard, member.number, state, info.codes, info.node, info.process)
        )
    absent = set(range(len(plan.shards))) - {member.shard for member in members}
    rows += [ReplicaStatus(shard, 0, "gone: no replica is left") for shard in absent]
    return plan, sorted(rows, key=lambda row: (row.shard, row.replica))


def stop(name: str = DEFAULT_NAME) -> int:
    """Stop all replicas of a cluster, free their places and return how many there were."""
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    members = _members(name)
    for _, member in members:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(member.handle, no_restart=True)
    for key, group in ray.util.placement_group_table().items():
        if group["name"].startswith(_group(name, "")) and group["state"] != "REMOVED":
            place = PlacementGroup(PlacementGroupID(bytes.fromhex(key)))
            ray.util.remove_placement_group(place)
    return len(members)


def _create(folder: Path, plan: ShardPlan, name: str, replicas: int, threads: int) -> list[Member]:
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    actor = ray.remote(ActorReplica)
    groups = [
        placement_group(
            [{"CPU": threads}] * replicas,
            strategy="STRICT_SPREAD",
            name=_group(name, str(shard)),
            lifetime="detached",
        )
        for shard in range(len(plan.shards))
    ]
    members = []
    for shard, group in enumerate(groups):
        if not group.wait(JOIN_TIMEOUT / 2):
            raise ClusterError(
                f"Ray finds no place for {replicas} x {threads} CPUs on {replicas} nodes for shard "
                f"{shard}; fix: fewer --shards or --threads, or more nodes (see `ray status`)"
            )
        for number in range(replicas):
            place = PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=number
            )
            handle = actor.options(
                name=f"{name}/{plan.digest[:16]}/{shard}/{number}",
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=-1,
                max_task_retries=0,
                num_cpus=threads,
                scheduling_strategy=place,
            ).remote(str(folder), plan.encode(), shard, threads)
            members.append(Member(shard, number, handle))
    return members


def _group(name: str, shard: str) -> str:
    return f"{NAMESPACE}/{name}/{shard}"


def _members(name: str) -> list[tuple[str, Member]]:
    """Return (digest, member) of all actors of a cluster, by shard and number."""
    import ray

    found = []
    for entry in ray.util.list_named_actors(all_namespaces=True):
        match = _ACTOR.fullmatch(entry["name"] or "")
        if entry["namespace"] != NAMESPACE or match is None or match["name"] != name:
            continue
        with suppress(ValueError):  # gone meanwhile
            handle = ray.get_actor(entry["name"], namespace=NAMESPACE)
            found.append((match["digest"], Member(int(match["shard"]), int(match["n"]), handle)))
    return sorted(found, key=lambda item: (item[0], item[1].shard, item[1].number))


def _look(name: str) -> tuple[ShardPlan, list[Member], dict[Member, Any]]:
    """Return the plan of a running cluster, its members, and the information from each."""
    found = _members(name)
    if not found:
        raise ClusterError(
            f"no cluster {name!r} runs here; fix: `metah-search cluster start INDEX`"
        )
    digests = {digest for digest, _ in found}
    if len(digests) > 1:
        raise ClusterError(
            f"replicas of {len(digests)} states of an index run as {name!r}; "
            "fix: `metah-search cluster stop`, then start"
        )
    members = [member for _, member in found]
    infos = _ask_info(members, INFO_TIMEOUT)
    plan = next(
        (ShardPlan.decode(h.plan) for h in infos.values() if isinstance(h, ReplicaInfo)), None
    )
    if plan is None:
        raise ClusterError(f"no replica of cluster {name!r} answers within {INFO_TIMEOUT:g} s")
    if not plan.digest.startswith(digests.pop()):
        raise ClusterError(f"the replicas of cluster {name!r} contradict their names")
    return plan, members, infos


def _ask_info(members: Iterable[Member], timeout: float) -> dict[Member, Any]:
    """Return by member its ReplicaInfo or the text of its error; silent members are left out."""
    import ray

    asked = {member.handle.info.remote(): member for member in members}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout)
    infos: dict[Member, Any] = {}
    for ref in ready:
        try:
            infos[asked[ref]] = ray.get(ref, timeout=1.0)
        except ray.exceptions.RayError as error:
            infos[asked[ref]] = " ".join(str(error).split())[:200]
    return infos


def _check_joined(plan: ShardPlan, member: Member, info: Any) -> None:
    who = f"replica {member.number} of shard {member.shard}"
    if info is None:
        raise ClusterError(f"{who} did not open its files within {JOIN_TIMEOUT:g} s")
    if not isinstance(info, ReplicaInfo):
        raise ClusterError(f"{who} did not start: {info}")
    if info.refusal is not None:
        raise ClusterError(f"{who} on node {info.node[:12]} refuses to join: {info.refusal}")
    if info.digest != plan.shard_digest(member.shard):
        raise ClusterError(f"{who} has another state of the index open")
    if not info.secured:
        raise ClusterError(f"node {info.node[:12]} runs Ray without its token")


def _searcher(
    plan: ShardPlan, members: Iterable[Member], policy: HedgePolicy | None
) -> ClusterIndex:
    by_shard: dict[int, list[Member]] = {shard: [] for shard in range(len(plan.shards))}
    for member in members:
        by_shard[member.shard].append(member)
    shards = [
        ShardReplicas(plan.shard_digest(shard), tuple(mine), f"shard {shard}")
        for shard, mine in by_shard.items()
    ]
    return ClusterIndex(plan, Router(shards, RayTransport(), policy))
