"""`checkpoint diff`: what two checkpoints of a job differ in."""

from __future__ import annotations

import math
from collections import Counter

from orchestrator.checkpoints.catalog import read_catalog
from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.diff import Change, TensorDiff, bytes_to_read, diff
from orchestrator.cli.place import chosen, place_of, place_parser
from orchestrator.cli.screen import Bar, as_json, table

SHOWN = 30
"""Rows without --all."""


def diff_(arguments: list[str]) -> int:
    parser = place_parser("diff", "What differs between two checkpoints, tensor by tensor; both are read whole.")
    parser.add_argument("before", type=int, metavar="STEP")
    parser.add_argument("after", type=int, metavar="STEP")
    parser.add_argument("--all", action="store_true", help=f"every tensor that differs, not only the {SHOWN} that differ most")
    asked = parser.parse_args(arguments)
    place = place_of(asked)
    catalog, log = read_catalog(place.store, place.keys), CommitLog(place.store, place.keys)
    before, after = (log.load_manifest(chosen(catalog, step, place.keys.job_id).ref) for step in (asked.before, asked.after))
    with Bar(f"comparing steps {asked.before} and {asked.after}", bytes_to_read(before, after)) as bar:
        found = list(diff(place.store, before, after, bar.add))
    if asked.json:
        print(as_json({"job": place.keys.job_id, "before": before.step, "after": after.step, "tensors": [_row(one) for one in found]}))
    else:
        _say(found, asked.all)
    return 0


def _row(found: TensorDiff) -> dict[str, object]:
    return {
        "role": found.role, "name": found.name, "change": found.change.name.lower(), "before": found.before, "after": found.after,
        "max_abs": found.max_abs, "relative_norm": found.relative_norm,
    }  # fmt: skip


def _say(found: list[TensorDiff], everything: bool) -> None:
    changed = [one for one in found if one.change not in (Change.EQUAL, Change.DIFFERS)]
    differing = sorted((one for one in found if one.change is Change.DIFFERS), key=_size, reverse=True)
    rows = [(one.role, one.name, one.change.value, one.before, one.after) for one in changed]
    if rows:
        print(table(("ROLE", "TENSOR", "", "BEFORE", "AFTER"), rows))
    shown = differing if everything else differing[:SHOWN]
    if shown:
        figures = [(one.role, one.name, _figure(one.max_abs), _figure(one.relative_norm)) for one in shown]
        print(table(("ROLE", "TENSOR", "MAX ABS", "RELATIVE NORM"), figures))
    if len(shown) < len(differing):
        print(f"{len(differing) - len(shown)} more differ less; --all shows them")
    counts = Counter(one.change for one in found)
    print(", ".join(f"{counts[change]} {change.value}" for change in Change if counts[change]) or "both are empty")


def _size(found: TensorDiff) -> float:
    """What cannot be told, or is no number, comes first."""
    value = found.relative_norm
    return math.inf if value is None or math.isnan(value) else value


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
