"""`checkpoint verify`: is every byte of a checkpoint as it was written?"""

from __future__ import annotations

from typing import Any

from orchestrator.checkpoints.catalog import Entry, read_catalog
from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.verify import Damage, blocks_of, verify
from orchestrator.cli.place import Place, chosen, place_of, place_parser
from orchestrator.cli.screen import Bar, as_json, size
from orchestrator.errors import CorruptObject, UserError
from orchestrator.paths import manifest_key


def verify_(arguments: list[str]) -> int:
    """Exit status 1 if anything is damaged."""
    parser = place_parser("verify", "Read every block of a checkpoint and check it; without STEP of the newest.")
    parser.add_argument("step", type=int, nargs="?")
    parser.add_argument("--all", action="store_true", help="all checkpoints of the job")
    parser.add_argument("--mark", action="store_true", help="mark what is damaged as suspect: no restart goes on from it")
    asked = parser.parse_intermixed_args(arguments)
    if asked.all and asked.step is not None:
        raise UserError(f"--all and step {asked.step} exclude each other.")
    place = place_of(asked)
    catalog = read_catalog(place.store, place.keys)
    entries = list(catalog.entries) if asked.all else [chosen(catalog, asked.step, place.keys.job_id)]
    unreadable = list(catalog.unreadable) if asked.all else []
    rows = [_checked(place, entry, asked.mark) for entry in entries]
    damaged = bool(unreadable) or any(row["damaged"] for row in rows)
    if asked.json:
        print(as_json({"job": place.keys.job_id, "checkpoints": rows, "unreadable": unreadable, "good": not damaged}))
    else:
        _say(rows, unreadable, asked.mark)
    return 1 if damaged else 0


def _checked(place: Place, entry: Entry, mark: bool) -> dict[str, Any]:
    log = CommitLog(place.store, place.keys)
    num_blocks = num_bytes = 0
    try:
        manifest = log.load_manifest(entry.ref)
    except CorruptObject as error:
        found = [Damage(manifest_key(entry.ref.prefix), None, str(error))]
    else:
        num_blocks = sum(len(blocks_of(segment)) for segment in manifest.segments)
        num_bytes = sum(segment.num_bytes for segment in manifest.segments)
        with Bar(f"verifying step {entry.ref.step}", num_bytes) as bar:
            found = verify(place.store, manifest, bar.add)
    if found and mark:
        log.mark_suspect(entry.ref.key, found[0].message)
    return {
        "step": entry.ref.step, "epoch": entry.ref.epoch, "commit": entry.ref.key, "blocks": num_blocks, "bytes": num_bytes,
        "damaged": [{"key": damage.key, "block": damage.block, "message": damage.message} for damage in found],
        "marked": bool(found) and mark,
    }  # fmt: skip


def _say(rows: list[dict[str, Any]], unreadable: list[str], mark: bool) -> None:
    for row in rows:
        name = f"step {row['step']} of epoch {row['epoch']}"
        if not row["damaged"]:
            print(f"{name}: all of its {row['blocks']} blocks are good, {size(row['bytes'])}")
            continue
        print(f"{name}: {len(row['damaged'])} damaged" + (", marked suspect" if row["marked"] else ""))
        for damage in row["damaged"]:
            print(f"  {damage['message']}")
    for key in unreadable:
        print(f"'{key}' is damaged: nothing can be restored from it")
    if not mark and any(row["damaged"] for row in rows):
        print("--mark keeps restarts from trying what is damaged")
