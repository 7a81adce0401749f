"""`orchestrator remove`: what a job that has ended keeps is deleted."""

from __future__ import annotations

from orchestrator.cli.keeping import store_keys
from orchestrator.cli.parser import client_for, parser_for
from orchestrator.cli.screen import Screen, as_json
from orchestrator.client.connection import remove_all
from orchestrator.errors import UserError


def remove_(arguments: list[str]) -> int:
    parser = parser_for("remove", "Delete checkpoints, output and artifacts of a job that has ended, and its MLflow run. Its events stay.")
    parser.add_argument("job")
    parser.add_argument("--yes", action="store_true", help="needed: nothing brings it back")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.job(asked.job)
    if not asked.yes:
        raise UserError(f"remove deletes all that {job.id} keeps in {job.spec.storage.url}, and nothing brings it back: add --yes.")
    screen = Screen(beside_json=asked.json)
    keys = store_keys(job.spec.storage, elsewhere=client.remote)
    deleted = remove_all(client, job.id, keys, lambda objects: screen.line(f"removing {job.id}: {objects} objects deleted"))
    if asked.json:
        print(as_json({"id": job.id, "objects": deleted}))
    else:
        screen.say(f"{job.id} is removed: {deleted} objects deleted. What happened to it stays in `orchestrator list` and `events`.")
    return 0
