"""S3 and what speaks its protocol: boto3 for what is small, presigned requests for bodies."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlparse

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from orchestrator.errors import CorruptObject, ObjectExists, ObjectNotFound, StorageDenied, StorageError, StorageFull, StorageUnavailable
from orchestrator.spec import StorageSpec
from orchestrator.storage.connections import Connections
from orchestrator.storage.interface import ObjectInfo, UnfinishedUpload
from orchestrator.storage.presigned import PresignedRequests, ShortObject
from orchestrator.storage.scattered import Scattered
from orchestrator.storage.transfer import PART_BYTES, Transfer, Unreachable

_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "NoSuchBucket", "403"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_FULL = {"EntityTooLarge", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_ELSEWHERE = {
    *("AuthorizationQueryParametersError", "AuthorizationHeaderMalformed"),
    *("PermanentRedirect", "TemporaryRedirect", "301", "302", "307", "308"),
}
"""The bucket is in another region, which boto3 finds by itself."""
_MAX_CLOCK_GAP_S = 600
_MAX_CONNECTIONS = 16
# 'auto' may pick the CRT client, which drops endpoint_url
_STOCK = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=32 << 20, preferred_transfer_client="classic")


class S3Store:
    """Bodies go out of and into the caller's memory, except through an HTTP proxy, which boto3 serves."""

    def __init__(self, spec: StorageSpec, environ: Mapping[str, str], part_bytes: int = PART_BYTES) -> None:
        parts = urlparse(spec.url)
        self.url = spec.url
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._where = f"{spec.url} at {spec.endpoint_url}" if spec.endpoint_url else spec.url
        settings = botocore.session.get_session()
        try:
            self._client = _client(spec, environ, settings)
        except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is none
            raise StorageDenied(f"{self._where} cannot be opened: {error}") from error
        self._by_proxy = bool(get_environ_proxies(self._client.meta.endpoint_url))
        connections = Connections(
            limit=_MAX_CONNECTIONS,
            connect_timeout_s=spec.connect_timeout_s,
            read_timeout_s=spec.read_timeout_s,
            ca_bundle=settings.get_config_variable("ca_bundle") or get_cert_path(True),
        )
        requests = PresignedRequests(self._client, self._bucket, connections)
        self._transfer = Transfer(self._client, self._bucket, requests, spec.max_attempts, part_bytes)

    def put(self, key: str, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._move(key, lambda: self._transfer.put(self._prefix + key, view), lambda: self._stock_put(key, view))

    def _stock_put(self, key: str, data: memoryview) -> None:
        self._client.upload_fileobj(io.BytesIO(data), self._bucket, self._prefix + key, Config=_STOCK)

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

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        target = Scattered(buffers)
        if target.missing_bytes:
            self._move(
                key, lambda: self._transfer.read_into(self._prefix + key, start, target), lambda: self._stock_read(key, start, target)
            )  # fmt: skip

    def _stock_read(self, key: str, start: int, target: Scattered) -> None:
        body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **_range(start, target.missing_bytes))["Body"]
        while target.missing_bytes:
            count = body.readinto(target.next(target.missing_bytes)[0])
            if not count:
                raise ShortObject(target.missing_bytes)
            target.advance(count)

    def _move(self, key: str, direct: Callable[[], None], stock: Callable[[], None]) -> None:
        with self._explained(key):
            if self._by_proxy:
                stock()
                return
            try:
                direct()
            except ClientError as error:
                if _code(error) not in _ELSEWHERE:
                    raise
                stock()  # after which boto3 signs for the right region

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        with self._explained(prefix):
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield ObjectInfo(entry["Key"][len(self._prefix) :], entry["Size"])

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        with self._explained(prefix):
            for page in pages:
                for entry in page.get("Uploads", ()):
                    yield UnfinishedUpload(entry["Key"][len(self._prefix) :], entry["UploadId"], entry["Initiated"])

    def abort_unfinished(self, prefix: str, older_than_s: float, now: datetime | None = None) -> Sequence[UnfinishedUpload]:
        limit = (now or datetime.now(UTC)) - timedelta(seconds=older_than_s)
        old = [upload for upload in self.list_unfinished(prefix) if upload.begun < limit]
        for upload in old:
            with self._explained(upload.key):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._prefix + upload.key, UploadId=upload.id)
        return old

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except ShortObject as error:
            raise CorruptObject(f"'{key}' in {self.url} ends {error.missing_bytes} bytes early.") from error
        except (ClientError, BotoCoreError, Unreachable) as error:
            raise self._error(key, error) from error

    def _error(self, key: str, error: Exception) -> StorageError:
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
        gap_s = _clock_gap_s(error, datetime.now(UTC))
        if code == "RequestTimeTooSkewed" or (code in _DENIED and abs(gap_s) > _MAX_CLOCK_GAP_S):
            return StorageDenied(f"{self._where} refuses '{key}' ({code}): this machine's clock is {gap_s:+.0f} s off the store's; set it.")
        if code in _DENIED:
            return StorageDenied(f"{self._where} refuses '{key}' ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the policy.")
        if code in _FULL:
            return StorageFull(f"{self._where} has no space left for '{key}' ({code}).")
        return StorageUnavailable(f"{self._where} failed for '{key}': {code}.")


def _client(spec: StorageSpec, environ: Mapping[str, str], settings: Any) -> Any:
    config = Config(
        connect_timeout=spec.connect_timeout_s,
        read_timeout=spec.read_timeout_s,
        retries={"total_max_attempts": spec.max_attempts, "mode": "standard"},
        max_pool_connections=32,
        signature_version="s3v4",  # presigned URLs would else be of version 2, which AWS has retired
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
        botocore_session=settings,
    )
    return session.client("s3", endpoint_url=spec.endpoint_url or None, config=config)


def keys_of(profile: str) -> dict[str, str]:
    """The keys that an AWS profile of this machine stands for now, as environment variables. Raises StorageDenied if there are none."""
    try:
        credentials = boto3.session.Session(profile_name=profile).get_credentials()
    except BotoCoreError as error:
        raise StorageDenied(f"AWS_PROFILE={profile} is not possible: {error}") from error
    if credentials is None:
        raise StorageDenied(f"AWS_PROFILE={profile} is not possible: it has no keys.")
    keys = credentials.get_frozen_credentials()
    found = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key, "AWS_SESSION_TOKEN": keys.token}
    return {name: value for name, value in found.items() if value}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _clock_gap_s(error: ClientError, now: datetime) -> float:
    """How far `now` is ahead of the store's clock; 0 if it does not say."""
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return (now - parsedate_to_datetime(date)).total_seconds() if date else 0.0


def _range(start: int, length: int | None) -> dict[str, str]:
    if length is None:
        return {"Range": f"bytes={start}-"} if start else {}
    return {"Range": f"bytes={start}-{start + length - 1}"}
