"""Large bodies to and from S3: in parts, in parallel, tried again where that can help."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from orchestrator.storage.presigned import PresignedRequests
from orchestrator.storage.scattered import Scattered

PART_BYTES = 32 * 1024 * 1024
"""Of a multipart upload and of a range read. A body of up to two parts goes in one request, which costs the least; who has several
such bodies moves them in parallel."""
MAX_PARTS = 10_000
"""Of a multipart upload."""
THREADS = 8
"""Of one body."""
_TRANSIENT = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "OperationAborted"}

Piece = TypeVar("Piece")
Result = TypeVar("Result")

log = logging.getLogger("orchestrator.storage")


class Unreachable(Exception):
    """No whole answer in any attempt."""


@dataclass(frozen=True)
class Part:
    number: int
    """From 1."""
    start: int
    """First byte in the whole body."""
    data: memoryview


class Transfer:
    """Bodies of one bucket.

    Raises what `requests` raises of a refusal or a short object, and Unreachable; 5xx, 429 and lost connections are tried up to
    `max_attempts` times with growing pauses.
    """

    def __init__(self, client: Any, bucket: str, requests: PresignedRequests, max_attempts: int, part_bytes: int = PART_BYTES) -> None:
        self._client = client
        self._bucket = bucket
        self._requests = requests
        self._max_attempts = max_attempts
        self._part_bytes = part_bytes

    def put(self, key: str, data: memoryview) -> None:
        if len(data) <= 2 * self._part_bytes:
            self._retried(key, lambda: self._requests.put("put_object", data, Key=key))
        else:
            self._put_parts(key, data)

    def read_into(self, key: str, start: int, target: Scattered) -> None:
        if target.missing_bytes <= 2 * self._part_bytes:
            self._read_part(key, start, target, threading.Event())
        else:
            parts = list(enumerate(target.parts(self._part_bytes)))
            _together(lambda part, stop: self._read_part(key, start + part[0] * self._part_bytes, part[1], stop), parts)

    def _read_part(self, key: str, start: int, target: Scattered, stop: threading.Event) -> None:
        """What a lost connection brought is not asked for again."""
        self._retried(key, lambda: self._requests.get(key, start + target.filled_bytes, target), stop)

    def _put_parts(self, key: str, data: memoryview) -> None:
        """An upload that fails is aborted."""
        token = f"{random.getrandbits(128):032x}"
        begun = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, Metadata={"upload": token})
        upload = {"Key": key, "UploadId": begun["UploadId"]}

        def put(part: Part, stop: threading.Event) -> dict[str, Any]:
            send = partial(self._requests.put, "upload_part", part.data, PartNumber=part.number, **upload)
            return {"PartNumber": part.number, "ETag": self._retried(key, send, stop)}

        try:
            self._complete(upload, _together(put, parts_of(data, self._part_bytes)), token)
        except BaseException as error:
            self._abort(upload, error)
            raise

    def _complete(self, upload: dict[str, str], parts: Sequence[dict[str, Any]], token: str) -> None:
        try:
            self._client.complete_multipart_upload(Bucket=self._bucket, MultipartUpload={"Parts": parts}, **upload)
        except ClientError as error:
            # boto3 asks again when an answer is lost; a store that had completed it knows the upload no more
            if error.response["Error"].get("Code") != "NoSuchUpload" or not self._is_ours(upload["Key"], token):
                raise

    def _is_ours(self, key: str, token: str) -> bool:
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError:
            return False
        return bool(found["Metadata"].get("upload") == token)

    def _abort(self, upload: dict[str, str], cause: BaseException) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, **upload)
        except Exception as error:  # noqa: BLE001  - the cause is what the caller must see
            cause.add_note(f"The unfinished upload stays in the bucket: {error}")

    def _retried(self, key: str, attempt: Callable[[], Result], stop: threading.Event | None = None) -> Result:
        """`attempt` until it succeeds or fails for good; no more attempts once `stop` is set."""
        number = 1
        while True:
            last = number == self._max_attempts
            try:
                return attempt()
            except ClientError as error:
                if last or not _is_transient(error) or (stop and stop.is_set()):
                    raise
                reason = str(error)
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
                if last or (stop and stop.is_set()):
                    raise Unreachable(reason) from error
            pause = pause_s(number, random.random())
            log.info("attempt %d of %d for '%s' failed, next in %.1f s: %s", number, self._max_attempts, key, pause, reason)
            time.sleep(pause)
            number += 1


def parts_of(data: memoryview, part_bytes: int) -> list[Part]:
    """Each of `part_bytes`, the last one of less; of more where there would be more than MAX_PARTS."""
    size = max(part_bytes, -(-len(data) // MAX_PARTS))
    return [Part(number, start, data[start : start + size]) for number, start in enumerate(range(0, len(data), size), 1)]


def pause_s(attempt: int, share: float) -> float:
    """Seconds to wait after the failed `attempt` (from 1): `share` (drawn, 0 to 1) of 1, 2, 4 ... 20 at most, as boto3's standard mode."""
    return share * min(2.0 ** (attempt - 1), 20.0)


def _is_transient(error: ClientError) -> bool:
    status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return status >= 500 or status == 429 or error.response["Error"]["Code"] in _TRANSIENT


def _together(work: Callable[[Piece, threading.Event], Result], parts: Sequence[Piece]) -> list[Result]:
    """`work` on all parts at once. When one fails nothing of the others is running any more once the error is raised."""
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=min(THREADS, len(parts))) as pool:
        futures = [pool.submit(work, part, stop) for part in parts]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]
