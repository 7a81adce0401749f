"""An S3 server in memory, fast enough that a benchmark of clients measures the clients. One process, one thread for each connection.

    python benchmarks/fast_store.py [--port 0] [--bucket bench] [--ignore-conditions]

Prints its endpoint and serves until it is ended (SIGTERM to its pid). It speaks as much of the protocol as boto3, s3torchconnector and
pyarrow use: objects with ranges and conditional creates, copies, multipart uploads, lists, deletes, aws-chunked bodies. It believes
every signature and verifies no checksum; an ETag is a number, since an MD5 would cost more than all the rest. With `--ignore-conditions`
it overwrites where `If-None-Match: *` forbids it, as some stores do.
"""

from __future__ import annotations

import argparse
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from fast_store_wire import NUMBERS, Answer, Block, Incoming, Request, Stored, send


@dataclass
class Upload:
    key: str
    metadata: dict[str, str]
    begun: float = field(default_factory=time.time)
    parts: dict[int, tuple[str, Block]] = field(default_factory=dict)


@dataclass
class Bucket:
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Refusal(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.answer = Answer(status, text=f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")


class Service:
    """What the requests do. A method for each kind: `<http method>_<object or bucket>`."""

    def __init__(self, buckets: list[str], obeys_conditions: bool) -> None:
        self._buckets = {name: Bucket() for name in buckets}
        self._obeys_conditions = obeys_conditions

    def answer(self, request: Request) -> Answer:
        try:
            name = f"{request.method.lower()}_{'object' if request.key else 'bucket'}"
            if name == "put_bucket":
                self._buckets.setdefault(request.bucket, Bucket())
                return Answer()
            bucket = self._buckets.get(request.bucket)
            if bucket is None:
                raise Refusal(404, "NoSuchBucket")
            if not hasattr(self, name):
                raise Refusal(501, "NotImplemented")
            found: Answer = getattr(self, name)(bucket, request)
            return found
        except Refusal as refusal:
            return refusal.answer

    def put_object(self, bucket: Bucket, request: Request) -> Answer:
        if "uploadId" in request.query:
            stored = Stored([request.body], {})
            self._upload(bucket, request).parts[int(request.query["partNumber"])] = (stored.etag, request.body)
            return Answer(headers={"ETag": stored.etag})
        if "x-amz-copy-source" in request.headers:
            return self._copy(bucket, request)
        stored = Stored([request.body], _metadata(request))
        with bucket.lock:
            if request.headers.get("if-none-match") == "*" and self._obeys_conditions and request.key in bucket.objects:
                raise Refusal(412, "PreconditionFailed")
            bucket.objects[request.key] = stored
        return Answer(headers={"ETag": stored.etag})

    def _copy(self, bucket: Bucket, request: Request) -> Answer:
        name, _, key = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("/")
        source = self._object(self._buckets[name], key)
        copy = bucket.objects[request.key] = Stored(source.blocks, source.metadata)
        described = f"<ETag>{escape(copy.etag)}</ETag><LastModified>{_time(copy.modified)}</LastModified>"
        return Answer(text=f"<CopyObjectResult>{described}</CopyObjectResult>")

    def get_object(self, bucket: Bucket, request: Request) -> Answer:
        stored = self._object(bucket, request.key)
        start, end, status = _range(request.headers.get("range"), stored.size)
        headers = {"ETag": stored.etag, "Last-Modified": formatdate(stored.modified, usegmt=True), "Accept-Ranges": "bytes"}
        headers |= {f"x-amz-meta-{name}": value for name, value in stored.metadata.items()}
        headers["Content-Type"] = "application/octet-stream"
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size}"
        return Answer(status, headers, stored=stored, start=start, end=end)

    head_object = get_object

    def delete_object(self, bucket: Bucket, request: Request) -> Answer:
        if "uploadId" in request.query:
            self._upload(bucket, request)
            del bucket.uploads[request.query["uploadId"]]
        else:
            bucket.objects.pop(request.key, None)
        return Answer(204)

    def post_object(self, bucket: Bucket, request: Request) -> Answer:
        if "uploads" in request.query:
            number = f"{next(NUMBERS):032x}"
            bucket.uploads[number] = Upload(request.key, _metadata(request))
            where = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
            return Answer(text=f"<InitiateMultipartUploadResult>{where}<UploadId>{number}</UploadId></InitiateMultipartUploadResult>")
        upload = self._upload(bucket, request)
        asked = [int(number.text or 0) for number in ElementTree.fromstring(request.body.data).iter() if number.tag.endswith("PartNumber")]
        if not asked or any(number not in upload.parts for number in asked):
            raise Refusal(400, "InvalidPart")
        stored = bucket.objects[request.key] = Stored([upload.parts[number][1] for number in asked], upload.metadata)
        del bucket.uploads[request.query["uploadId"]]
        where = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key><ETag>{escape(stored.etag)}</ETag>"
        return Answer(text=f"<CompleteMultipartUploadResult>{where}</CompleteMultipartUploadResult>")

    def head_bucket(self, bucket: Bucket, request: Request) -> Answer:
        return Answer()

    def get_bucket(self, bucket: Bucket, request: Request) -> Answer:
        if "location" in request.query:
            return Answer(text="<LocationConstraint></LocationConstraint>")
        if "uploads" in request.query:
            return self._list_uploads(bucket, request)
        return self._list_objects(bucket, request)

    def _list_objects(self, bucket: Bucket, request: Request) -> Answer:
        """Version 2: in key order, what lies behind the delimiter as one common prefix."""
        prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
        after = request.query.get("continuation-token") or request.query.get("start-after", "")
        room = int(request.query.get("max-keys", 1000))
        entries: dict[str, str] = {}
        truncated = False
        for key, stored in sorted(dict(bucket.objects).items()):
            tail = key[len(prefix) :]
            folder = prefix + tail[: tail.index(delimiter) + len(delimiter)] if delimiter and delimiter in tail else ""
            name = folder or key
            if not key.startswith(prefix) or name <= after or name in entries:
                continue
            truncated = len(entries) == room
            if truncated:
                break
            size = f"<Size>{stored.size}</Size><LastModified>{_time(stored.modified)}</LastModified><ETag>{escape(stored.etag)}</ETag>"
            entries[name] = (
                f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" if folder
                else f"<Contents><Key>{escape(key)}</Key>{size}<StorageClass>STANDARD</StorageClass></Contents>"
            )  # fmt: skip
        more = f"<NextContinuationToken>{escape(list(entries)[-1])}</NextContinuationToken>" if truncated else ""
        head = f"<Name>{request.bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount>"
        head += f"<MaxKeys>{room}</MaxKeys><IsTruncated>{str(truncated).lower()}</IsTruncated>{more}"
        return Answer(text=f"<ListBucketResult>{head}{''.join(entries.values())}</ListBucketResult>")

    def _list_uploads(self, bucket: Bucket, request: Request) -> Answer:
        rows = "".join(
            f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{number}</UploadId><Initiated>{_time(upload.begun)}</Initiated></Upload>"
            for number, upload in sorted(dict(bucket.uploads).items(), key=lambda item: item[1].key)
            if upload.key.startswith(request.query.get("prefix", ""))
        )
        return Answer(text=f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{rows}</ListMultipartUploadsResult>")

    def post_bucket(self, bucket: Bucket, request: Request) -> Answer:
        if "delete" not in request.query:
            raise Refusal(501, "NotImplemented")
        for element in ElementTree.fromstring(request.body.data).iter():
            if element.tag.endswith("Key"):
                bucket.objects.pop(element.text or "", None)
        return Answer(text="<DeleteResult></DeleteResult>")

    def _object(self, bucket: Bucket, key: str) -> Stored:
        stored = bucket.objects.get(key)
        if stored is None:
            raise Refusal(404, "NoSuchKey")
        return stored

    def _upload(self, bucket: Bucket, request: Request) -> Upload:
        upload = bucket.uploads.get(request.query["uploadId"])
        if upload is None or upload.key != request.key:
            raise Refusal(404, "NoSuchUpload")
        return upload


def _metadata(request: Request) -> dict[str, str]:
    return {name.removeprefix("x-amz-meta-"): value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}


def _range(header: str | None, size: int) -> tuple[int, int, int]:
    """(first byte, byte behind the last one, status)."""
    if not header:
        return 0, size, 200
    first, _, last = header.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size:
        raise Refusal(416, "InvalidRange")
    return start, end, 206


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def serve(connection: socket.socket, service: Service) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    incoming = Incoming(connection)
    with connection:
        try:
            while True:
                request = incoming.request()
                answer = service.answer(request)  # its memory stays until the next request: then the client has all of it
                send(connection, request, answer)
                del request
        except ConnectionError:
            return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", action="append")
    parser.add_argument("--ignore-conditions", action="store_true")
    asked = parser.parse_args()
    service = Service(asked.bucket or ["bench"], not asked.ignore_conditions)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with socket.create_server(("127.0.0.1", asked.port), backlog=128) as server:
        print(f"http://127.0.0.1:{server.getsockname()[1]}", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection, service), daemon=True).start()


if __name__ == "__main__":
    main()
