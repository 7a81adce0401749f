"""Each fault once per job: who is about to do it writes so first, where only one can, and nobody forgets.

The object store's create-only write is what commits rely on too: it holds over all epochs, runs and lives of supervisors. A fault whose
doer dies between the claim and the deed is not done any more.
"""

from __future__ import annotations

import json

from orchestrator.chaos.plan import Fault
from orchestrator.errors import ObjectExists
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectStore


class Claims:
    def __init__(self, store: ObjectStore, job_id: str) -> None:
        self._store = store
        self._keys = JobKeys(job_id)

    def claim(self, fault: Fault, step: int, by: str) -> bool:
        """False: it was done before. `step` and `by`: where it comes to be done, and by whom. Raises StorageError."""
        content = json.dumps({**fault.to_dict(), "done_at": step, "by": by}).encode()
        try:
            self._store.create(self._keys.fault(fault.name), content)
        except ObjectExists:
            return False
        return True

    def done(self) -> set[str]:
        """Names of the faults that have been claimed. Raises StorageError."""
        keys = (info.key for info in self._store.list(self._keys.chaos))
        return {key.removeprefix(self._keys.chaos).removesuffix(".json") for key in keys}

    def claimed(self, name: str) -> tuple[int, str]:
        """(step, by) of a fault that has been claimed. Raises StorageError."""
        found = json.loads(self._store.get(self._keys.fault(name)))
        return found["done_at"], found["by"]
