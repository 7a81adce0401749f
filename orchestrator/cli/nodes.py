"""`orchestrator nodes`: the machines of the cluster, and what has spoken against them."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from orchestrator.cli.parser import parser_for, verbs_of
from orchestrator.cli.screen import as_json, table
from orchestrator.client.connection import Verbs
from orchestrator.control.planning.reputation import Incident, scores, standing, weight
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import UserError
from orchestrator.paths import Home


def nodes(arguments: list[str]) -> int:
    parser = parser_for("nodes", "The machines of the cluster, and what has spoken against them.")
    parser.add_argument("action", nargs="?", choices=["forgive"], help="forgive NODE: what has happened there counts no more")
    parser.add_argument("node", nargs="?", default="")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_intermixed_args(arguments)
    home = Home.find(asked.home)
    verbs = verbs_of(home)
    if verbs is None:
        raise UserError(f"there is no cluster in {home.root}; `orchestrator train` starts one")
    if asked.action:
        count = verbs.forgive(asked.node)
        told = as_json({"node": asked.node, "forgiven": count})
        print(told if asked.json else f"{asked.node}: {count} incident{'' if count == 1 else 's'} forgiven")
        return 0
    rows = _rows(verbs, time.time())
    if asked.json:
        print(as_json(rows))
        return 0
    _show(rows)
    return 0


def _rows(client: Verbs, now: float) -> list[dict[str, Any]]:
    """One for each machine that is there, or that something speaks against."""
    view, incidents = client.nodes()
    found, gpus = scores(incidents, now), scores(incidents, now, lambda incident: incident.gpu)
    names = sorted({node.name for node in view.nodes} | set(found))
    return [
        {
            "node": name,
            **_resources([node for node in view.nodes if node.name == name]),
            "score": round(found.get(name, 0.0), 3),
            "standing": standing(found.get(name, 0.0)).name.lower(),
            "suspected_gpus": {one.gpu: round(gpus[one.gpu], 3) for one in incidents if one.node == name and one.gpu},
            "incidents": [_incident(incident, now) for incident in incidents if incident.node == name],
        }
        for name in names
    ]


def _resources(nodes: list[Node]) -> dict[str, Any]:
    """Several of Ray's nodes may share a machine."""
    return {"state": _state(nodes), "cpus": sum(node.cpu_units for node in nodes) / CPU_UNITS, "gpus": sum(node.gpus for node in nodes)}


def _state(nodes: list[Node]) -> str:
    if not nodes:
        return "gone"
    if all(node.coming for node in nodes):
        on_way = sum(node.starting for node in nodes)
        return f"{on_way} of {len(nodes)} on the way" if on_way else f"{len(nodes)} not started"
    return "draining" if all(node.draining for node in nodes) else "alive"


def _incident(incident: Incident, now: float) -> dict[str, Any]:
    return {
        "time_s": incident.time_s, "job": incident.job_id, "kind": incident.kind.name.lower(), "gpu": incident.gpu,
        "weight": round(weight(incident, now), 3), "message": incident.message,
    }  # fmt: skip


def _show(rows: list[dict[str, Any]]) -> None:
    cells = [
        (row["node"], row["state"], f"{row['cpus']:g}", str(row["gpus"]), f"{row['score']:.2f}", row["standing"]) for row in rows
    ]  # fmt: skip
    print(table(("NODE", "STATE", "CPUS", "GPUS", "SCORE", "STANDING"), cells))
    for row in rows:
        for seen in row["incidents"]:
            when, what = datetime.fromtimestamp(seen["time_s"]), seen["kind"].replace("_", " ")
            print(f"  {row['node']}  {when:%Y-%m-%d %H:%M:%S}  {what} in {seen['job']}, counts {seen['weight']:.2f}: {seen['message']}")
    if any(row["incidents"] for row in rows):
        print("next: orchestrator nodes forgive NODE, once it is mended")
