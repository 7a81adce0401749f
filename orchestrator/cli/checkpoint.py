"""The verb `checkpoint`: what a job has saved, and what becomes of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from orchestrator.checkpoints.catalog import Catalog, Entry, read_catalog
from orchestrator.checkpoints.pins import pin, unpin
from orchestrator.checkpoints.retention import Plan, carry_out, plan, policy_of
from orchestrator.cli.place import Place, chosen, place_of, place_parser
from orchestrator.cli.screen import Bar, as_json, duration, size, table
from orchestrator.errors import UserError, nearest
from orchestrator.paths import step_of

HELP = """\
usage: orchestrator checkpoint VERB JOB ... [--json] [--home FOLDER | --storage URL [--endpoint-url URL]]

  ls JOB                       its checkpoints: age, size, layout, metric, and what becomes of each
  verify JOB [STEP | --all]    read every block and check it; --mark: a damaged one is not used any more
  diff JOB STEP STEP           what differs between two of them, tensor by tensor
  pin JOB STEP                 it stays, whatever the settings say
  unpin JOB STEP
  export JOB FOLDER            write its model for other programs: --format, --step, --adapters
  gc JOB                       delete what the settings do not keep; --dry-run: only say so
"""

_SHORT = {"tensor_parallel_size": "tp", "pipeline_parallel_size": "pp", "sequence_parallel_size": "sp", "expert_parallel_size": "ep"}


def checkpoint(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="", flush=True)
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        raise UserError(f"'checkpoint {verb}' is no command. Commands: {', '.join(VERBS)}.{nearest(verb, VERBS)}")
    return VERBS[verb](arguments[1:])


def ls_(arguments: list[str]) -> int:
    asked = place_parser("ls", "The checkpoints of a job, newest first.").parse_args(arguments)
    place = place_of(asked)
    catalog = read_catalog(place.store, place.keys)
    rows = _rows(catalog, place, time.time())
    if asked.json:
        print(as_json({"job": place.keys.job_id, "checkpoints": rows, "unreadable": list(catalog.unreadable)}))
        return 0
    if not rows:
        print(f"{place.keys.job_id} has no committed checkpoint yet")
        return 0
    head = ("STEP", "EPOCH", "AGE", "SIZE", "ELSEWHERE", "WORKERS", "LAYOUT", "METRIC", "")
    print(table(head, [_cells(row) for row in rows]))
    for row in rows:
        if row["fault"]:
            print(f"step {row['step']}: {row['fault']}")
    for key in catalog.unreadable:
        print(f"'{key}' is damaged")
    return 0


def _rows(catalog: Catalog, place: Place, now: float) -> list[dict[str, Any]]:
    good = [entry for entry in catalog.entries if entry.good]
    policy = dataclasses.replace(policy_of(place.spec), keep_best=1)
    best = {ref.key for ref in policy.best(entry.ref for entry in good)}
    return [
        {
            "step": entry.ref.step,
            "epoch": entry.ref.epoch,
            "commit": entry.ref.key,
            "time_s": entry.ref.time_s or None,
            "age_s": now - entry.ref.time_s if entry.ref.time_s else None,
            "own_bytes": catalog.own_bytes(entry),
            "referenced_bytes": entry.referenced_bytes,
            "world_size": entry.summary.world_size if entry.summary else None,
            "zero_stage": entry.summary.zero_stage if entry.summary else None,
            "sizes": dict(entry.summary.sizes) if entry.summary else {},
            "metric": entry.ref.metric or None,
            "value": entry.ref.value,
            "flags": _flags(entry, newest=entry is (good[0] if good else None), best=entry.ref.key in best),
            "fault": entry.fault,
        }
        for entry in catalog.entries
    ]


def _flags(entry: Entry, newest: bool, best: bool) -> list[str]:
    """`newest` and `best` of the good ones. `abandoned`: the job went back behind it; `damaged`: something is missing."""
    flags = {
        "newest": newest, "best": best, "pinned": entry.pinned, "tombstoned": entry.tombstone_s is not None, "suspect": entry.suspect,
        "damaged": bool(entry.fault), "abandoned": entry.abandoned,
    }  # fmt: skip
    return [name for name, on in flags.items() if on]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    layout = "-" if row["zero_stage"] is None else f"ZeRO {row['zero_stage']}"
    layout += "".join(f" {_SHORT.get(name, name)} {count}" for name, count in row["sizes"].items() if count > 1)
    return (
        str(row["step"]), str(row["epoch"]), "-" if row["age_s"] is None else duration(row["age_s"]), size(row["own_bytes"]),
        size(row["referenced_bytes"]) if row["referenced_bytes"] else "-", str(row["world_size"] or "-"), layout,
        "-" if row["value"] is None else f"{row['metric']} {row['value']:.6g}", " ".join(row["flags"]),
    )  # fmt: skip


def pin_(arguments: list[str]) -> int:
    def keep(place: Place, entry: Entry) -> None:
        pin(place.store, place.keys, entry, policy_of(place.spec).grace_s, time.time())

    return _mark("pin", "A checkpoint that stays, whatever the settings say.", keep, True, arguments)


def unpin_(arguments: list[str]) -> int:
    def let_go(place: Place, entry: Entry) -> None:
        unpin(place.store, place.keys, entry)

    return _mark("unpin", "The settings say again whether the checkpoint stays.", let_go, False, arguments)


def _mark(verb: str, about: str, act: Callable[[Place, Entry], None], pinned: bool, arguments: list[str]) -> int:
    parser = place_parser(verb, about)
    parser.add_argument("step", type=int)
    asked = parser.parse_args(arguments)
    place = place_of(asked)
    entry = chosen(read_catalog(place.store, place.keys), asked.step, place.keys.job_id)
    act(place, entry)
    if asked.json:
        print(as_json({"job": place.keys.job_id, "step": entry.ref.step, "epoch": entry.ref.epoch, "pinned": pinned}))
    else:
        print(f"step {entry.ref.step} of {place.keys.job_id} is {'pinned' if pinned else 'not pinned any more'}")
    return 0


def gc_(arguments: list[str]) -> int:
    parser = place_parser("gc", "Delete what the job's settings do not keep (checkpoint.keep_last and what follows it).")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    asked = parser.parse_args(arguments)
    place = place_of(asked)
    policy, now = policy_of(place.spec), time.time()
    found = plan(read_catalog(place.store, place.keys), place.keys, policy, now)
    if not asked.dry_run:
        with Bar("deleting", found.num_bytes) as bar:
            carry_out(place.store, place.keys, found, now, bar.add)
    if asked.json:
        print(as_json(_told(found, place, asked.dry_run)))
    elif policy.keep_last == 0:
        print("nothing goes: checkpoint.keep_last=0 keeps all")
    else:
        _say_plan(found, asked.dry_run, now)
    return 0


def _told(found: Plan, place: Place, dry_run: bool) -> dict[str, Any]:
    gone = [
        {"step": step_of(removal.prefix)[1], "epoch": step_of(removal.prefix)[0], "checkpoint": removal.prefix,
         "committed": removal.commit is not None, "bytes": removal.num_bytes}
        for removal in found.removals
    ]  # fmt: skip
    waiting = [{"checkpoint": prefix, "until_s": until} for prefix, until in found.waiting.items()]
    return {
        "job": place.keys.job_id, "dry_run": dry_run, "deleted": gone, "bytes": found.num_bytes, "waiting": waiting,
        "kept": [entry.ref.step for entry in found.kept],
    }  # fmt: skip


def _say_plan(found: Plan, dry_run: bool, now: float) -> None:
    for removal in found.removals:
        what = "" if removal.commit else ", which was not finished"
        print(f"{'would delete' if dry_run else 'deleted'} step {step_of(removal.prefix)[1]}{what}  {size(removal.num_bytes)}")
    for prefix, until in found.waiting.items():
        print(f"step {step_of(prefix)[1]} goes in {duration(until - now)}: call gc again then, or let the job's next commit do it")
    kept = ", ".join(str(entry.ref.step) for entry in found.kept) or "none"
    verb = "would be" if dry_run else "are"
    print(f"{len(found.removals)} checkpoints {verb} deleted, {size(found.num_bytes)}; steps that stay: {kept}")


def _verify(arguments: list[str]) -> int:
    from orchestrator.cli.verify import verify_

    return verify_(arguments)


def _diff(arguments: list[str]) -> int:
    from orchestrator.cli.diff import diff_

    return diff_(arguments)


def _export(arguments: list[str]) -> int:
    from orchestrator.cli.export import export_

    return export_(arguments)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "ls": ls_, "verify": _verify, "diff": _diff, "pin": pin_, "unpin": unpin_, "export": _export, "gc": gc_,
}  # fmt: skip
