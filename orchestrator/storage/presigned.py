"""One request by a presigned URL: a body goes out of, or an answer into, the caller's memory.

Such a URL is as good as a key while it is valid, so none is logged or put into an error.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from botocore.exceptions import ClientError

from orchestrator.storage.connections import Connections
from orchestrator.storage.scattered import Scattered

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

    def get(self, key: str, start: int, target: Scattered) -> None:
        """Fill what is missing of `target` from byte `start` of the object on; what came before an error stays. Raises ShortObject too."""
        asked = {"Range": f"bytes={start}-{start + target.missing_bytes - 1}"}
        with self._answer("get_object", "GET", {"Key": key}, asked) as (connection, response):
            if response.status != 206 and start:
                raise _refused("get_object", response, "the store ignores the Range header")
            if response.length is not None and response.length < target.missing_bytes:
                raise ShortObject(target.missing_bytes - response.length)
            _receive(connection, response, target)

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


def _receive(connection: HTTPConnection, response: HTTPResponse, target: Scattered) -> None:
    """Without TLS the kernel fills a whole slice in one call, instead of one for whatever has arrived; its own read timeout holds."""
    direct = type(connection.sock) is socket.socket and response.length == target.missing_bytes
    if direct:
        target.write(memoryview(response.fp.peek())[: target.missing_bytes])  # what came with the headers
        connection.sock.settimeout(None)
    while target.missing_bytes:
        slices = target.next(_SLICE_BYTES)
        count = _whole(connection.sock, slices) if direct else response.readinto(slices[0])
        if not count:
            raise IncompleteRead(b"", target.missing_bytes)
        target.advance(count)
    if direct:
        response.close()


def _whole(plain: socket.socket, slices: list[memoryview]) -> int:
    try:
        return plain.recvmsg_into(slices, 0, socket.MSG_WAITALL)[0]
    except BlockingIOError:
        raise TimeoutError("timed out") from None


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
