"""What Ray says of the machines of a cluster, and what of them a process of a trial holds."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import psutil
import ray
from ray import ActorID, PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup


def holding() -> dict[str, Any]:
    """What this process holds for a trial, as plain values: what must be gone after the trial has stopped.

    A folder of its own is added by who makes it (trainables.node_folder.folder_held).
    """
    context = ray.get_runtime_context()
    return {
        "actor": context.get_actor_id(),
        "node": context.get_node_id(),
        "pid": os.getpid(),
        "began": psutil.Process().create_time(),
        "placement_group": context.get_placement_group_id(),
        "folder": None,
    }


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to go, e.g. after a spot machine's notice.

    Ray has no public function for it; its own Train asks in the same place.
    """
    return set(ray._private.state.state.get_draining_nodes())


def usable_nodes() -> dict[str, dict[str, float]]:
    """Resources of the nodes that live and stay, by node id."""
    leaving = draining_nodes()
    return {
        node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving
    }


def is_alive(node: str) -> bool:
    """Whether a node lives, as far as the cluster has noticed."""
    return any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())


def hosts() -> dict[str, str]:
    """The host name of each node that has ever been in the cluster, by node id."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}


def living(actors: Collection[str]) -> set[str]:
    """Those of these actors that have not ended, nor are known to be lost.

    Asked of the cluster's own table: what Ray's public functions for it ask, the dashboard, may not run.
    """
    return {actor for actor in actors if ray._private.state.actors(actor).get("State", "DEAD") != "DEAD"}


def free_orphaned_groups() -> set[str]:
    """Remove the placement groups of this job whose makers, actors, have died since; say which.

    Ray keeps such a group until the job ends, too. A gang's is made by an actor of Train, whose own watcher hears of it
    a moment later and may die with its machine: what the group holds would be lost to the search, and two gangs that
    wait for it would wait for ever. Ray has no public function that says who made a group.
    """
    job, nobody = ray.get_runtime_context().get_job_id(), ActorID.nil().hex()
    accessor = ray._private.state.state._connect_and_get_accessor()
    groups = map(PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    orphaned = {
        group.placement_group_id.hex()
        for group in groups
        if group.creator_actor_dead
        and group.creator_actor_id.hex() != nobody
        and group.creator_job_id.hex() == job
        and not group.is_detached
        and group.state != PlacementGroupTableData.REMOVED
    }
    for name in orphaned:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
    return orphaned


def placement_groups() -> set[str]:
    """Ids of the placement groups of the cluster that hold something or wait to."""
    return {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}
