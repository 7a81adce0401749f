"""Bodies on their way to and from S3 when the way is bad: a proxy with faults before the fast store, and before a real SeaweedFS, which
checks signatures, where these matter."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime, timedelta

import pytest
from object_stores import KEYS, READER, fast_store, seaweedfs
from patience import LIMIT_S
from s3_proxy import HttpFault, certificate, s3_proxy

from orchestrator.errors import CorruptObject, ObjectExists, StorageDenied, StorageError, StorageUnavailable
from orchestrator.spec import StorageSpec
from orchestrator.storage import HasUploads, check_store
from orchestrator.storage.s3 import S3Store

PART = 1 << 20
BODY = os.urandom(4 * PART + 12_345)
LEAST_PART = 5 << 20  # that S3 and SeaweedFS allow
LARGE = os.urandom(2 * LEAST_PART + 12_345)


@pytest.fixture(scope="module")
def weed():
    with seaweedfs() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def fast():
    with fast_store() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(fast):
    with s3_proxy(fast) as found:
        yield found


def opened(endpoint, keys=KEYS, max_attempts=3, prefix="way", read_timeout_s=LIMIT_S, part_bytes=PART):
    asked = StorageSpec(
        url=f"s3://orchestrator/{prefix}", endpoint_url=endpoint, max_attempts=max_attempts, read_timeout_s=read_timeout_s
    )
    return S3Store(asked, keys, part_bytes=part_bytes)


def read(store, key, num_bytes, start=0):
    buffer = bytearray(num_bytes)
    store.read_into(key, start, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("num_bytes, parts", [(1, 0), (2 * PART, 0), (2 * PART + 1, 3), (len(BODY), 5)])
def test_a_body_goes_in_one_request_or_in_parts(proxy, num_bytes, parts):
    store = opened(proxy.endpoint, prefix=f"sizes-{num_bytes}")
    store.put("k", memoryview(BODY)[:num_bytes])
    assert proxy.seen.count("PUT partNumber uploadId") == parts and proxy.presigned == max(parts, 1)
    assert read(store, "k", num_bytes) == BODY[:num_bytes]
    assert proxy.seen.count("GET") == max(parts, 1)
    assert read(store, "k", num_bytes // 2, start=num_bytes // 3) == BODY[num_bytes // 3 : num_bytes // 3 + num_bytes // 2]


def test_a_server_that_checks_signatures_takes_all_parts(weed):
    with s3_proxy(weed) as proxy:
        for endpoint in (weed, proxy.endpoint):
            store = opened(endpoint, part_bytes=LEAST_PART)
            store.put("signed/a key + it's ü%?&", LARGE)
            assert read(store, "signed/a key + it's ü%?&", len(LARGE)) == LARGE
        assert proxy.presigned == 6
        proxy.faults = (HttpFault(kind="lost_answer", method="POST", parameter="uploadId"),)
        store.put("again", LARGE)
        assert read(store, "again", len(LARGE)) == LARGE and proxy.failed == 1


def test_memory_of_any_type_is_moved(proxy):
    store = opened(proxy.endpoint)
    numbers = memoryview(BODY)[: 3 * PART].cast("q")
    store.put("numbers", numbers)
    target = bytearray(3 * PART)
    store.read_into("numbers", 0, memoryview(target).cast("q"))
    assert target == BODY[: 3 * PART]


WAYS = [
    HttpFault(kind="503", method="PUT", parameter="partNumber", number=2),
    HttpFault(kind="429", method="PUT", parameter="partNumber", number=3),
    HttpFault(kind="no_answer", method="PUT", parameter="partNumber", number=1),
    HttpFault(kind="lost_answer", method="PUT", parameter="partNumber", number=4),
    HttpFault(kind="lost_answer", method="POST", parameter="uploads"),
    HttpFault(kind="lost_answer", method="POST", parameter="uploadId"),
    HttpFault(kind="503", method="GET", number=2),
    HttpFault(kind="no_answer", method="GET", number=3),
    HttpFault(kind="cut_answer", method="GET", number=4),
]


@pytest.mark.parametrize("fault", WAYS, ids=lambda fault: f"{fault.kind}-{fault.method}-{fault.parameter}")
def test_what_fails_once_is_tried_again(proxy, fault):
    proxy.faults = (fault,)
    store = opened(proxy.endpoint, prefix=f"again-{fault.kind}-{fault.method}-{fault.parameter}")
    store.put("k", BODY)
    assert read(store, "k", len(BODY)) == BODY
    assert proxy.failed == 1


def test_a_lost_connection_goes_on_where_it_was_cut(proxy):
    store = opened(proxy.endpoint, max_attempts=2)
    store.put("cut", BODY[:PART])
    proxy.faults = (HttpFault(kind="cut_answer", method="GET"),)
    assert read(store, "cut", PART) == BODY[:PART]
    assert [asked for asked in proxy.ranges if asked] == [f"bytes=0-{PART - 1}", f"bytes={PART // 2}-{PART - 1}"]


@pytest.mark.parametrize("kind", ["silent", "stalled"])
def test_a_read_that_stands_still_is_given_up_and_tried_again(proxy, kind):
    store = opened(proxy.endpoint)
    store.put("still", BODY[:PART])
    proxy.faults = (HttpFault(kind=kind, method="GET"),)
    assert read(opened(proxy.endpoint, max_attempts=9, read_timeout_s=1.5), "still", PART) == BODY[:PART]
    proxy.faults = (HttpFault(kind=kind, method="GET", number=0),)
    with pytest.raises(StorageUnavailable, match="timed out"):
        read(opened(proxy.endpoint, max_attempts=1, read_timeout_s=0.5), "still", PART)


def test_a_small_put_whose_answer_is_lost_is_repeated(proxy):
    proxy.faults = (HttpFault(kind="lost_answer", method="PUT"),)
    store = opened(proxy.endpoint)
    store.put("small", b"data")
    assert store.get("small") == b"data" and proxy.seen.count("PUT") == 2


def test_a_create_whose_answer_is_lost_is_success_and_another_s_is_not(proxy):
    proxy.faults = (HttpFault(kind="lost_answer", method="PUT"),)
    store = opened(proxy.endpoint, prefix="created")
    store.create("one", b"mine")
    with pytest.raises(ObjectExists):
        store.create("one", b"yours")


@pytest.mark.parametrize("kind", ["503", "no_answer"])
def test_an_upload_that_fails_for_good_leaves_nothing(proxy, kind):
    proxy.faults = (HttpFault(kind=kind, method="PUT", parameter="partNumber", number=0),)
    store = opened(proxy.endpoint, max_attempts=2, prefix=f"fails-{kind}")
    with pytest.raises(StorageUnavailable, match="fails-"):
        store.put("k", BODY)
    assert list(store.list("")) == [] and list(store.list_unfinished("")) == []


def test_an_upload_that_another_process_aborted_fails(proxy):
    store = opened(proxy.endpoint, max_attempts=2, prefix="aborted")
    proxy.faults = (HttpFault(kind="404", method="POST", parameter="uploadId", number=0),)
    with pytest.raises(StorageUnavailable, match="NoSuchUpload"):
        store.put("k", BODY)
    assert list(store.list("")) == []


def test_reads_that_fail_for_good_are_unavailable_and_refusals_are_not_repeated(proxy):
    store = opened(proxy.endpoint, max_attempts=2)
    store.put("read", BODY)
    proxy.faults = (HttpFault(kind="no_answer", method="GET", number=0),)
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        read(store, "read", len(BODY))
    proxy.faults, proxy.seen[:] = (HttpFault(kind="400", method="PUT", number=0),), []
    with pytest.raises(StorageUnavailable, match="400"):
        store.put("bad", b"data")
    assert proxy.seen == ["PUT"]


def test_a_range_that_the_object_does_not_have_is_corrupt(proxy):
    store = opened(proxy.endpoint)
    store.put("short", BODY[: 3 * PART])
    with pytest.raises(CorruptObject, match="ends 7 bytes early"):
        read(store, "short", 3 * PART, start=7)
    with pytest.raises(CorruptObject, match="short"):
        read(store, "short", 10, start=4 * PART)


def test_a_refusal_that_comes_before_the_body_was_read_is_understood(proxy):
    proxy.faults = (HttpFault(kind="early_answer", method="PUT", number=0),)
    with pytest.raises(StorageDenied, match="AccessDenied"):
        opened(proxy.endpoint, max_attempts=1).put("k", BODY[: 2 * PART])


def test_a_wrong_clock_is_named(proxy):
    proxy.faults = tuple(HttpFault(kind="skewed", method=method, number=0) for method in ("PUT", "GET"))
    store = opened(proxy.endpoint)
    for attempt in (lambda: store.put("k", b"data"), lambda: store.create("k", b"data"), lambda: read(store, "k", 1)):
        with pytest.raises(StorageDenied, match=r"clock is \+3[56]\d\d s off"):
            attempt()


def test_a_bucket_that_is_elsewhere_is_left_to_boto3(proxy):
    proxy.faults = tuple(HttpFault(kind="301", method=method, parameter="X-Amz-Signature", number=0) for method in ("PUT", "GET"))
    store = opened(proxy.endpoint, prefix="elsewhere")
    store.put("k", BODY)
    assert read(store, "k", len(BODY)) == BODY
    assert proxy.presigned == 0


def test_a_connection_that_was_closed_meanwhile_costs_no_attempt(proxy):
    proxy.faults = (HttpFault(kind="closed_later", method="PUT", number=0),)
    store = opened(proxy.endpoint, max_attempts=1)
    for number in range(3):
        store.put(f"closed-{number}", b"data")
        proxy.wait_closed()


def test_a_forked_child_opens_connections_of_its_own(proxy):
    store = opened(proxy.endpoint)
    store.put("forked", BODY[:PART])
    before = proxy.connections
    assert read(store, "forked", PART) == BODY[:PART] and proxy.connections == before
    child = os.fork()
    if not child:
        os._exit(read(store, "forked", PART) != BODY[:PART])
    assert os.waitpid(child, 0)[1] == 0
    assert proxy.connections == before + 1
    assert read(store, "forked", PART) == BODY[:PART] and proxy.connections == before + 1


def test_a_proxy_of_the_environment_is_used(fast, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    store = opened(fast, prefix="by-proxy")
    store.put("k", BODY)
    assert read(store, "k", len(BODY)) == BODY
    with pytest.raises(CorruptObject, match="ends 1 bytes early"):
        read(store, "k", 10, start=len(BODY) - 9)
    assert proxy.forwarded == len(proxy.seen) >= 3


def test_tls_is_verified(fast, tmp_path, monkeypatch):
    chain, key = certificate(tmp_path)
    with s3_proxy(fast, tls=(chain, key)) as proxy:
        assert proxy.endpoint.startswith("https://")
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        with pytest.raises(StorageUnavailable, match=r"(?i)certificate"):
            opened(proxy.endpoint, max_attempts=1).put("tls", b"data")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(chain))
        store = opened(proxy.endpoint)
        store.put("tls", BODY)
        assert read(store, "tls", len(BODY)) == BODY
        before = proxy.connections
        store.put("tls", b"small")
        assert read(store, "tls", 5) == b"small" and proxy.connections == before


def test_keys_that_are_renewed_are_used(weed, tmp_path, monkeypatch):
    held = tmp_path / "keys.json"

    def renew(keys):
        until = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        names = {"AccessKeyId": keys["AWS_ACCESS_KEY_ID"], "SecretAccessKey": keys["AWS_SECRET_ACCESS_KEY"]}
        held.write_text(json.dumps({"Version": 1, "Expiration": until, **names}))

    config = tmp_path / "config"
    config.write_text(f"[profile renewed]\ncredential_process = {sys.executable} -c \"print(open('{held}').read())\"\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    renew(READER)
    store = opened(weed, {"AWS_PROFILE": "renewed"}, prefix="renewed", part_bytes=LEAST_PART)
    with pytest.raises(StorageDenied):
        store.put("k", LARGE)
    renew(KEYS)
    store.put("k", LARGE)
    assert read(store, "k", len(LARGE)) == LARGE


def test_no_signature_is_said(proxy, caplog):
    caplog.set_level(logging.INFO)
    proxy.faults = (HttpFault(kind="no_answer", method="GET", number=0), HttpFault(kind="400", method="PUT", number=0))
    store = opened(proxy.endpoint, max_attempts=2)
    said = []
    for attempt in (lambda: read(store, "k", 10), lambda: store.put("k", b"data")):
        with pytest.raises(StorageError) as caught:
            attempt()
        said += traceback.format_exception(caught.value)
    assert "attempt 1 of 2 for 'way/k' failed" in caplog.text
    assert "X-Amz-" not in "".join(said) + caplog.text and KEYS["AWS_SECRET_ACCESS_KEY"] not in "".join(said)


def test_unfinished_uploads_are_found_and_aborted_by_age(weed):
    store = opened(weed, prefix="unfinished")
    assert isinstance(store, HasUploads)
    for key in ("a/1", "a/2", "b/3"):
        store._client.create_multipart_upload(Bucket="orchestrator", Key=f"unfinished/{key}")
    assert sorted(upload.key for upload in store.list_unfinished("")) == ["a/1", "a/2", "b/3"]
    assert store.abort_unfinished("a/", older_than_s=3600) == []
    later = datetime.now(UTC) + timedelta(hours=2)
    assert sorted(upload.key for upload in store.abort_unfinished("a/", older_than_s=3600, now=later)) == ["a/1", "a/2"]
    assert [upload.key for upload in store.list_unfinished("")] == ["b/3"]


def test_a_server_that_ignores_conditions_is_refused_before_the_first_step():
    with fast_store("--ignore-conditions") as endpoint:
        store = opened(endpoint, prefix="careless")
        with pytest.raises(StorageError, match=r"s3://orchestrator/careless .*create-only.*conditional writes"):
            check_store(store)
        assert list(store.list("")) == []
