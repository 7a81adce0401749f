"""Old checkpoints leave the store: first the commit, so that nobody begins to read, then the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.checkpoints.commit import CommitLog, CommitRef
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What stays: the newest `keep_last` commits (0: all), and the `keep_best` whose step was evaluated best by `metric`."""

    keep_last: int
    keep_best: int = 0
    metric: str = "loss"
    maximize: bool = False

    def best(self, commits: Iterable[CommitRef]) -> list[CommitRef]:
        """Best first; the earlier of equal ones. Those that were not evaluated, or by another metric, are not among them."""
        figures = [(ref.value, ref) for ref in commits if ref.metric == self.metric and ref.value is not None]
        ordered = sorted(figures, key=lambda item: (-item[0] if self.maximize else item[0], item[1].step))
        return [ref for _, ref in ordered[: self.keep_best]]


def apply_retention(store: ObjectStore, keys: JobKeys, policy: Policy) -> list[str]:
    """Delete the commits that the policy does not keep, and what unfinished saves older than the newest ones left behind.

    Called by the job's owner right after a commit, when no rank reads. Killed in between, the next call finishes. Returns the
    deleted checkpoint prefixes.
    """
    if policy.keep_last == 0:
        return []
    chain = CommitLog(store, keys).chain()
    newest = chain[: policy.keep_last]
    if not newest:
        return []
    kept = {ref.prefix for ref in [*newest, *policy.best(chain)]}
    for ref in chain:
        if ref.prefix not in kept:
            store.delete(ref.key)
    return _delete_before(store, keys, kept, oldest=min(ref.step for ref in newest))


def _delete_before(store: ObjectStore, keys: JobKeys, kept: set[str], oldest: int) -> list[str]:
    deleted = set()
    for info in list(store.list(keys.checkpoints)):
        name = info.key.removeprefix(keys.checkpoints).split("/", 1)[0]
        prefix = f"{keys.checkpoints}{name}/"
        if prefix not in kept and int(name.split("-", 1)[0]) < oldest:
            store.delete(info.key)
            deleted.add(prefix)
    return sorted(deleted)
