"""One request by a presigned URL: a body goes out of, or an answer into, the caller's memory.

Such a URL is as good as a key while it is valid, so none is logged or put into an error.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from botocore.exceptions import ClientError

from orchestrator.storage.connections import Connections

_SLICE_BYTES = 4 * 1024 * 1024
"""The read timeout holds for the way of each."""
_VALID_S = 900
"""Signed for each request anew, so that refreshed keys are used; S3 lets a clock be wrong by as much."""

Body = Iterator[memoryview] | None


class ShortObject(Exception):
    """The object ends `missing_bytes` before the end of the range that was asked for."""

    def __init__(self, missing_bytes: int) -> None:
        super().__init__(missing_bytes)
        self.missing_bytes = missing_bytes


class PresignedRequests:
    """To one bucket. `client` is boto3's: it knows keys and endpoint and signs.

    What the store refuses is raised as botocore's ClientError, as boto3 does; a connection that fails as OSError or HTTPException.
    """

    def __init__(self, client: Any, bucket: str, connections: Connections) -> None:
        self._client = client
        self._bucket = bucket
        self._connections = connections

    def put(self, operation: str, data: memoryview, **parameters: Any) -> str:
        """`put_object` or `upload_part`. Returns the ETag."""
        slices = (data[start : start + _SLICE_BYTES] for start in range(0, len(data), _SLICE_BYTES))
        with self._answer(operation, "PUT", parameters, {"Content-Length": str(len(data))}, slices) as (_, response):
            response.read()
            return response.headers.get("ETag", "")

    def get(self, key: str, start: int, buffer: memoryview) -> Iterator[int]:
        """Fill `buffer` from byte `start` of the object on, yielding the bytes that each read brought. Raises ShortObject too."""
        asked = {"Range": f"bytes={start}-{start + len(buffer) - 1}"}
        with self._answer("get_object", "GET", {"Key": key}, asked) as (connection, response):
            if response.status != 206 and start:
                raise _refused("get_object", response, "the store ignores the Range header")
            if response.length is not None and response.length < len(buffer):
                raise ShortObject(len(buffer) - response.length)
            yield from _received(connection, response, buffer)

    @contextmanager
    def _answer(
        self, operation: str, method: str, parameters: Mapping[str, Any], headers: Mapping[str, str], body: Body = None
    ) -> Iterator[tuple[HTTPConnection, HTTPResponse]]:
        signed = {"Bucket": self._bucket, **parameters}
        url = urlsplit(self._client.generate_presigned_url(operation, Params=signed, ExpiresIn=_VALID_S))
        with self._connections.lent((url.scheme, url.netloc)) as connection:
            cut_off = False
            try:
                connection.request(method, f"{url.path}?{url.query}", body=body, headers=headers)
            except (BrokenPipeError, ConnectionResetError):
                cut_off = True  # the server may have refused before it closed; if not, there is no answer to get
            response = connection.getresponse()
            if not 200 <= response.status < 300:
                raise _refused(operation, response)
            if cut_off:
                raise ConnectionResetError(f"{url.netloc} closed the connection before it had the body")
            yield connection, response
            if not response.isclosed():  # more came than was asked for
                connection.close()


def _received(connection: HTTPConnection, response: HTTPResponse, buffer: memoryview) -> Iterator[int]:
    """Fill `buffer` with the body, yielding what each read brought."""
    direct = type(connection.sock) is socket.socket and response.length == len(buffer)
    read = _direct_reads(connection.sock, response) if direct else response.readinto
    filled = 0
    while filled < len(buffer):
        count = read(buffer[filled : filled + _SLICE_BYTES])
        if not count:
            raise IncompleteRead(b"", len(buffer) - filled)
        filled += count
        yield count
    if direct:
        response.close()


def _direct_reads(plain: socket.socket, response: HTTPResponse) -> Callable[[memoryview], int]:
    """Without TLS the kernel fills a whole slice in one call, instead of one for whatever has arrived; its own read timeout holds."""
    plain.settimeout(None)
    with_headers = True

    def read(slice_: memoryview) -> int:
        nonlocal with_headers
        if with_headers:
            with_headers = False
            return response.fp.readinto1(slice_)
        try:
            return plain.recv_into(slice_, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    return read


def _refused(operation: str, response: HTTPResponse, message: str = "") -> ClientError:
    """As botocore has it; without an XML body the status is the code."""
    found = {} if message else _error_of(response.read())
    headers = {name.lower(): value for name, value in response.getheaders()}
    return ClientError(
        {
            "Error": {"Code": found.get("Code", str(response.status)), "Message": found.get("Message", message or response.reason)},
            "ResponseMetadata": {"HTTPStatusCode": response.status, "HTTPHeaders": headers},
        },
        operation,
    )


def _error_of(body: bytes) -> dict[str, str]:
    try:
        return {element.tag.rpartition("}")[2]: element.text or "" for element in ElementTree.fromstring(body)}
    except ElementTree.ParseError:
        return {}
