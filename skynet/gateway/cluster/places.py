"""The grid of stages x shards, and the members that have no place in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skynet.store.members import FAILED, LOADING, READY, SPARE, STARTING
from skynet.wire.keys import ORCHESTRATOR_QUEUE

SILENT = 0.6  # of a lease, which members renew several times, without a renewal

Member = Mapping[str, Any]

SHOWN = (
    "id", "node", "host", "pid", "device", "cores", "threads", "steps", "weight_bytes",
    "loaded_bytes", "kept_bytes", "resident_bytes", "free_bytes", "load_s", "problem", "joined",
    "protocol",
)  # fmt: skip


def stages_of(state: Mapping[str, Any], lease_s: float) -> list[dict[str, Any]]:
    """The stages of the plan in force, or of the target's shape, with a cell for each shard.

    state: of `cluster_status`.
    """
    plan = state["plan"]
    if plan:
        return [
            {
                "stage": stage["stage"],
                "layers": stage["layers"],
                "cells": [_cell(state, slice_, lease_s) for slice_ in stage["shards"]],
            }
            for stage in plan["stages"]
        ]
    target = state["target"] or {}
    stages, shards = target.get("stages") or 0, target.get("shards") or 0
    return [
        {
            "stage": stage,
            "layers": None,
            "cells": [
                _cell(state, {"address": f"stage{stage}.shard{shard}"}, lease_s)
                for shard in range(shards)
            ],
        }
        for stage in range(stages)
    ]


def orchestrators_of(state: Mapping[str, Any], lease_s: float) -> list[dict[str, Any]]:
    """The leading orchestrator first, then those that stand by."""
    found = [m for m in state["members"] if m["address"] == ORCHESTRATOR_QUEUE]
    found.sort(key=lambda member: (member["state"] != "leading", member["joined"]))
    return [_shown(member, lease_s) for member in found]


def others_of(state: Mapping[str, Any], lease_s: float) -> list[dict[str, Any]]:
    """The workers without a place in the grid, and why each has none."""
    cells = [cell for stage in stages_of(state, lease_s) for cell in stage["cells"]]
    places, placed = {cell["address"] for cell in cells}, {cell.get("id") for cell in cells}
    return [
        {**_shown(member, lease_s), "why": why_no_place(member, state, places)}
        for member in state["members"]
        if member["address"] != ORCHESTRATOR_QUEUE and member["id"] not in placed
    ]


def why_no_place(member: Member, state: Mapping[str, Any], places: set[str]) -> str:
    """Why a worker is in no cell of the grid."""
    leader = next((m for m in state["members"] if m["state"] == "leading"), None)
    if leader is not None and leader["protocol"] != member["protocol"]:
        return (
            f"speaks protocol {member['protocol']}, the leading orchestrator {leader['protocol']}: "
            "upgrade the older of them"
        )
    if member["problem"]:
        return str(member["problem"])
    if member["leaving"]:
        return "is leaving"
    if member["state"] == STARTING:
        return "is starting: it measures its speed"
    pinned = member["pinned"]
    if pinned and places and pinned not in places:
        return f"takes {pinned} only, which this shape has not"
    if pinned:
        return f"takes {pinned} only, which another worker has"
    if leader is None:
        return "waits for an orchestrator, which gives places"
    if not places:
        return "waits for a plan"
    if member["state"] == LOADING:
        return f"is loading for {member['address'] or 'the next plan'}"
    if member["state"] == SPARE:
        return "spare: takes the place of a lost worker"
    return f"{member['state']}, of an earlier plan"


def _holders(members: Sequence[Member]) -> dict[str, Member]:
    """The member of each place; one that was given the place before one that is pinned to it."""
    given = {member["address"]: member for member in members if member["address"]}
    pinned = {m["pinned"]: m for m in members if m["pinned"] and not m["address"]}
    return {**pinned, **given}


def _cell(state: Mapping[str, Any], part: Mapping[str, Any], lease_s: float) -> dict[str, Any]:
    address = part["address"]
    member = _holders(state["members"]).get(address)
    place = {"address": address, "heads": part.get("heads"), "columns": part.get("columns")}
    if member is None:
        return {**place, "state": "empty", "problem": "", "queue": state["queues"].get(address, 0)}
    shown = _shown(member, lease_s)
    plan = state["plan"]
    if shown["state"] == READY and plan and member["epoch"] != plan["epoch"]:
        shown["state"] = LOADING  # it has not taken its place in the plan in force yet
    links = [
        {"peer": link["peer"], "kind": link["kind"], "round_trip_s": link["round_trip_s"]}
        for link in member["links"]
    ]
    return {**shown, **place, "links": links, "queue": state["queues"].get(address, 0)}


def _shown(member: Member, lease_s: float) -> dict[str, Any]:
    """What the page shows of a member."""
    silent = member["silent_s"] > SILENT * lease_s
    state = "leaving" if member["leaving"] else member["state"]
    if silent and state != FAILED:
        state = "silent"
    size = member["weight_bytes"]
    fetched = min(1.0, member["loaded_bytes"] / size) if size else 0.0
    return {
        **{name: member[name] for name in SHOWN},
        "state": state,
        "silent_s": member["silent_s"] if silent else 0.0,
        "loaded_share": round(fetched, 3),
    }
