"""S3 and what speaks its protocol, by boto3."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from orchestrator.errors import CorruptObject, ObjectExists, ObjectNotFound, StorageDenied, StorageError, StorageFull, StorageUnavailable
from orchestrator.spec import StorageSpec
from orchestrator.storage.interface import ObjectInfo

_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "NoSuchBucket", "403"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_FULL = {"EntityTooLarge", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_MULTIPART_BYTES = 64 * 1024 * 1024
# 'auto' may pick the CRT client, which drops endpoint_url
_TRANSFER = TransferConfig(multipart_threshold=_MULTIPART_BYTES, multipart_chunksize=32 * 1024 * 1024, preferred_transfer_client="classic")


class S3Store:
    def __init__(self, spec: StorageSpec, environ: Mapping[str, str]) -> None:
        parts = urlparse(spec.url)
        self.url = spec.url
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._where = f"{spec.url} at {spec.endpoint_url}" if spec.endpoint_url else spec.url
        self._client = _client(spec, environ)

    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._explained(key):
            if len(data) < _MULTIPART_BYTES:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=bytes(data))
            else:
                self._client.upload_fileobj(io.BytesIO(data), self._bucket, self._prefix + key, Config=_TRANSFER)

    def create(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if _code(error) not in _EXISTS:
                raise self._error(key, error) from error
            self._accept_own(key, data)
        except BotoCoreError as error:
            raise self._error(key, error) from error

    def _accept_own(self, key: str, data: bytes) -> None:
        """An earlier try of ours may have arrived and only its answer been lost."""
        if self.get(key) != data:
            raise ObjectExists(f"'{key}' exists in {self.url} with other content.")

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        with self._explained(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **_range(start, length))
            data: bytes = answer["Body"].read()
        if length is not None and len(data) != length:
            raise CorruptObject(f"'{key}' in {self.url}: {len(data)} bytes came, wanted were {length} from {start} on.")
        return data

    def read_into(self, key: str, start: int, buffer: memoryview) -> None:
        if not len(buffer):
            return
        with self._explained(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **_range(start, len(buffer)))
            body, filled = answer["Body"], 0
            while filled < len(buffer):
                count = body.readinto(buffer[filled:])
                if not count:
                    raise CorruptObject(f"'{key}' in {self.url} ends {len(buffer) - filled} bytes early.")
                filled += count

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        with self._explained(prefix):
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield ObjectInfo(entry["Key"][len(self._prefix) :], entry["Size"])

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise self._error(key, error) from error

    def _error(self, key: str, error: ClientError | BotoCoreError) -> StorageError:
        if isinstance(error, NoCredentialsError):
            return StorageDenied(f"No S3 keys for {self._where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.")
        if not isinstance(error, ClientError):
            return StorageUnavailable(f"{self._where} cannot be reached: {error}")
        code = _code(error)
        if code in _MISSING:
            return ObjectNotFound(f"'{key}' is not in {self._where}.")
        if code == "NoSuchBucket":
            return StorageDenied(f"Bucket '{self._bucket}' of {self._where} does not exist; create it or mend storage.url.")
        if code == "InvalidRange":
            return CorruptObject(f"'{key}' in {self._where} is shorter than it should be.")
        if code in _DENIED:
            return StorageDenied(f"{self._where} refuses '{key}' ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the policy.")
        if code in _FULL:
            return StorageFull(f"{self._where} has no space left for '{key}' ({code}).")
        return StorageUnavailable(f"{self._where} failed for '{key}': {code}.")


def _client(spec: StorageSpec, environ: Mapping[str, str]) -> Any:
    config = Config(
        connect_timeout=spec.connect_timeout_s,
        read_timeout=spec.read_timeout_s,
        retries={"total_max_attempts": spec.max_attempts, "mode": "standard"},
        max_pool_connections=32,
        s3={"addressing_style": "path"} if spec.endpoint_url else {},
        # the default CRC32 trailer breaks some S3-compatible stores; our own block checksums are the authority
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session(
        aws_access_key_id=environ.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environ.get("AWS_SESSION_TOKEN"),
        profile_name=environ.get("AWS_PROFILE") or os.environ.get("AWS_PROFILE"),
        region_name=spec.region,
    )
    return session.client("s3", endpoint_url=spec.endpoint_url or None, config=config)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _range(start: int, length: int | None) -> dict[str, str]:
    if length is None:
        return {"Range": f"bytes={start}-"} if start else {}
    return {"Range": f"bytes={start}-{start + length - 1}"}
