"""The object store: does it keep what jobs rely on, and does its clock agree with ours?"""

from __future__ import annotations

import dataclasses
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from ulid import ULID

from orchestrator.control.checkup.finding import Finding, Subject, ok, problem, warning
from orchestrator.errors import StorageDenied, StorageError, StorageFull, StorageUnavailable
from orchestrator.spec import StorageSpec
from orchestrator.storage import DirectoryStore, HasUploads, ObjectStore, check_store, open_store

LIMIT_S = 5.0
SKEW_WARNING_S, SKEW_PROBLEM_S = 10.0, 300.0
"""S3 refuses requests that are more than 15 minutes off."""


def check_objects(subject: Subject, opened: ObjectStore | None = None, skew_s: float | None = None) -> Iterator[Finding]:
    """`opened`, `skew_s`: what is to be judged, if not what is found."""
    spec = dataclasses.replace(subject.storage, url=subject.storage.url or subject.home.store.as_uri())
    try:
        store = opened or open_store(spec, subject.environ)
        yield _conditions(store)
        yield from _uploads(store)
    except StorageError as error:
        yield problem(str(error), _fix(error, spec))
    yield _clock(clock_skew_s(spec) if skew_s is None else skew_s)


def _conditions(store: ObjectStore) -> Finding:
    """What `check_store` proves, and that a listing shows at once what was written and what was deleted."""
    began = time.monotonic()
    check_store(store)
    key = f"probe/{ULID()}"
    store.put(key, b"1")
    try:
        seen = [info.num_bytes for info in store.list(key)]
    finally:
        store.delete(key)
    if seen != [1] or list(store.list(key)):
        raise StorageError(f"{store.url} lists other objects than there are: jobs would not find their newest commit.")
    return ok(f"{store.url}: written, read, created once only, listed, deleted in {time.monotonic() - began:.2f} s")


def _uploads(store: ObjectStore) -> Iterator[Finding]:
    """What a killed upload leaves has to be found to be removed."""
    if isinstance(store, HasUploads):
        try:
            count = sum(1 for _ in store.list_unfinished(""))
        except StorageDenied:
            said = f"{store.url}: unfinished uploads may not be listed, so what a killed node leaves is never removed"
            yield warning(said, "allow s3:ListBucketMultipartUploads and s3:AbortMultipartUpload, or add a lifecycle rule to the bucket")
        else:
            yield ok(f"{count} unfinished uploads, of jobs that run or that were killed")


def _fix(error: StorageError, spec: StorageSpec) -> str:
    if isinstance(error, StorageDenied):
        return "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..., and check the bucket's name and policy"
    if isinstance(error, StorageFull):
        return "orchestrator checkpoint gc JOB, or make room there"
    if isinstance(error, StorageUnavailable):
        where = spec.endpoint_url or f"s3.{spec.region}.amazonaws.com"
        return f"curl -I {where}   (is it right, and reachable from here? storage.endpoint_url=...)"
    return "give another store: storage.url=s3://bucket/prefix storage.endpoint_url=..., or storage.url=file:///folder"


def _clock(skew_s: float | None) -> Finding:
    if skew_s is None:
        return ok("the store's clock is not known")
    message = f"this machine's clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the store's"
    fix = "sudo chronyc makestep, or: sudo timedatectl set-ntp true"
    if abs(skew_s) > SKEW_PROBLEM_S:
        return problem(message, fix)
    return warning(message, fix) if abs(skew_s) > SKEW_WARNING_S else ok(message)


def clock_skew_s(spec: StorageSpec) -> float | None:
    """Ours less the store's, to about a second; None if the store does not say. No keys are needed: a refusal has a date too."""
    if not spec.url.startswith("s3://"):
        return _folder_skew_s(spec)
    try:
        request = urllib.request.Request(spec.endpoint_url or f"https://s3.{spec.region}.amazonaws.com", method="HEAD")
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refusal:
        date = refusal.headers.get("Date")
    except (OSError, ValueError, http.client.HTTPException):
        return None  # `check_store` says why it cannot be reached
    try:
        return time.time() - parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None


def _folder_skew_s(spec: StorageSpec) -> float | None:
    """A file server may have a clock of its own: it dates what is written."""
    store = open_store(spec)
    assert isinstance(store, DirectoryStore), spec.url
    key = f"probe/{ULID()}"
    try:
        store.put(key, b"1")
        written_s = store.path(key).stat().st_mtime
    except (StorageError, OSError):
        return None
    now = time.time()
    store.delete(key)
    return now - written_s
