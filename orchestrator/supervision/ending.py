"""The end of a run: history and plot, the rest of the journal, the tracking server, and last the result."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from orchestrator.checkpoints.catalog import read_catalog
from orchestrator.checkpoints.pins import pin
from orchestrator.checkpoints.retention import policy_of
from orchestrator.errors import CheckpointError, ObjectExists, StorageError, StorageUnavailable
from orchestrator.events import EventKind
from orchestrator.job import EndReason, JobResult, result_to_dict
from orchestrator.paths import JobKeys
from orchestrator.spec import to_dict
from orchestrator.storage import ObjectStore
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.bookkeeper import Bookkeeper
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.ledger import Ledger
from orchestrator.tracking.journal import Journal, evaluations, history
from orchestrator.tracking.report import goodput_plot, history_json, loss_plot

RESULT_TRIES = 5
RESULT_RETRY_S = 2.0
LEAVE_LIMIT_S = 2.0
"""How long the tracking server is waited for when the job must leave; its next run delivers the rest."""

log = logging.getLogger("orchestrator.supervisor")

_GOES_ON = (EndReason.PREEMPTED, EndReason.RESIZED)
_STATUS = {EndReason.COMPLETED: "FINISHED", **dict.fromkeys((EndReason.CANCELLED, EndReason.TIME_LIMIT, *_GOES_ON), "KILLED")}


def write_config(store: ObjectStore, context: RunContext) -> bool:
    """Keep the resolved spec. True if a supervisor of this run has lived before. Raises StorageError."""
    key = context.keys.spec(context.run)
    content = json.dumps(to_dict(context.spec), indent=2).encode()
    lived = any(info.key == key for info in store.list(key))
    if not lived:
        store.put(context.keys.artifact("config.json"), content)
        store.put(key, content)
    return lived


def close_books(
    context: RunContext, store: ObjectStore, chronicle: Chronicle, result: JobResult, books: Bookkeeper,
    sleep: Callable[[float], None] = time.sleep,
) -> JobResult | None:  # fmt: skip
    """Write down how the run ended. What the store refuses, or does not take in a few tries, is left out with a line in the log.

    Returns the result if that is left out. Not for a run that was fenced: that job is another supervisor's.
    """
    journal, tracking = chronicle.journal, chronicle.tracking
    hasty = result.end_reason in (EndReason.STORAGE, EndReason.PREEMPTED)
    attempt = _Attempts(1 if hasty else RESULT_TRIES, sleep)
    for name in _artifacts(store, context.keys, journal, attempt):
        journal.append("artifact", name=name)
    if context.spec.tracking.registered_model and result.end_reason is EndReason.COMPLETED:
        attempt("the model's version", lambda: _register(store, context, journal))
    for name in _goodput(store, context.keys, books.close(), attempt):
        journal.append("artifact", name=name)
    first_line = result.message.split("\n", 1)[0]
    chronicle.tell(EventKind.ENDED, first_line or result.end_reason.label, reason=result.end_reason.name)
    facts = {"end_reason": result.end_reason.label, "end_message": result.message[:5000]}
    journal.append("end", status=_STATUS.get(result.end_reason, "FAILED"), **facts)
    attempt("the journal", journal.ship)
    if not tracking.finish(LEAVE_LIMIT_S if result.end_reason in _GOES_ON else context.spec.tracking.drain_timeout_s):
        chronicle.board.event(EventKind.WARNING, f"the tracking server did not take all of it; the rest is kept in {journal.path}")
    return write_result(store, context, dataclasses.replace(result, mlflow_run_id=tracking.run_id))


def write_result(store: ObjectStore, context: RunContext, result: JobResult) -> JobResult | None:
    """`result-<run>.json`, once. The result again if the store does not take it: the controller has to hear it another way."""
    content = json.dumps(result_to_dict(result)).encode()
    for _ in range(RESULT_TRIES):
        try:
            store.create(context.keys.result(context.run), content)
            return None
        except ObjectExists:
            log.warning("another supervisor has written how run %d ended", context.run)
            return None
        except StorageUnavailable as error:
            log.warning("the result is not written yet: %s", error)
            time.sleep(RESULT_RETRY_S)
        except StorageError as error:
            log.warning("the result is not written: %s", error)
            return result
    return result


def _artifacts(store: ObjectStore, keys: JobKeys, journal: Journal, attempt: _Attempts) -> list[str]:
    """History and plot of the whole job, over all its runs. Returns the names that were written."""
    records = list(journal.records(0))
    trained, evaluated = history(records), evaluations(records)
    makers: dict[str, Callable[[], bytes]] = {"history.json": lambda: history_json(trained, evaluated)}
    if trained:
        makers["loss.png"] = lambda: loss_plot(trained, evaluated)
    made = {name: make() for name, make in makers.items()}
    written = [name for name, content in made.items() if attempt(name, partial(store.put, keys.artifact(name), content))]
    return ["config.json", *written]


def _goodput(store: ObjectStore, keys: JobKeys, ledger: Ledger, attempt: _Attempts) -> list[str]:
    """The ledger as JSON and as a plot. Returns the names that were written."""
    makers: dict[str, Callable[[], bytes]] = {
        "goodput.json": lambda: json.dumps(ledger.to_dict(), indent=2).encode(),
        "goodput.png": lambda: goodput_plot({bucket.value: ledger.seconds.get(bucket, 0.0) for bucket in Bucket}, ledger.goodput_share),
    }
    return [name for name, make in makers.items() if attempt(name, lambda name=name, make=make: store.put(keys.artifact(name), make()))]  # type: ignore[misc]


def _register(store: ObjectStore, context: RunContext, journal: Journal) -> None:
    """The registry gets a pointer, so what it points to is pinned. Raises StorageError."""
    catalog = read_catalog(store, context.keys)
    good = [entry for entry in catalog.entries if entry.good]
    best = policy_of(context.spec).best([entry.ref for entry in good])
    chosen = next((entry for entry in good if best and entry.ref == best[0]), next(iter(good), None))
    if chosen is None:
        log.warning("no model is registered: the job has no good checkpoint")
        return
    pin(store, context.keys, chosen, grace_s=0.0, now=0.0)
    source = f"{store.url.rstrip('/')}/{chosen.ref.prefix}"
    journal.append("model", name=context.spec.tracking.registered_model, source=source, step=chosen.ref.step, job_id=context.job_id)


class _Attempts:
    """Calls to the store, each tried again while it is out of reach: together so many times, and then each only once."""

    def __init__(self, count: int, sleep: Callable[[float], None]) -> None:
        self._left = count
        self._sleep = sleep

    def __call__(self, what: str, call: Callable[[], Any]) -> bool:
        """False, and a line in the log, if it did not succeed."""
        while True:
            try:
                call()
                return True
            except (StorageError, CheckpointError) as error:
                self._left -= isinstance(error, StorageUnavailable)
                log.warning("%s is not written: %s", what, error)
                if self._left <= 0 or not isinstance(error, StorageUnavailable):
                    return False
            self._sleep(RESULT_RETRY_S)
