"""How much of a request is read, and for whom."""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator.control.api.app import create_app
from orchestrator.control.api.bodies import LARGEST_BODY_BYTES, LARGEST_CODE_BYTES, PACKAGES_AT_ONCE, BodyLimit
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.audit import AuditLog
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.paths import Home

CODE = f"/v1/code/{'0' * 64}"
MIB = 1 << 20


class Sender:
    """Sends a megabyte each time it is asked for more, until `num_bytes` are sent."""

    def __init__(self, path: str = CODE, token: str = "", num_bytes: int = LARGEST_CODE_BYTES, declared: bool = True) -> None:
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        headers += [(b"content-length", str(num_bytes).encode())] if declared else []
        self.scope = {
            "type": "http", "method": "PUT", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers,
            "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        self.left, self.asked, self.sent = num_bytes, 0, []

    async def receive(self):
        self.asked += 1
        part = min(MIB, self.left)
        self.left -= part
        return {"type": "http.request", "body": bytes(part), "more_body": self.left > 0}

    async def send(self, message):
        self.sent.append(message)

    async def call(self, app) -> tuple[int, str]:
        """Status and the name of the error."""
        await app(self.scope, self.receive, self.send)
        body = b"".join(message.get("body", b"") for message in self.sent)
        return self.sent[0]["status"], json.loads(body or b"{}").get("error", "")


@pytest.fixture
def store(tmp_path):
    made = JobStore(tmp_path / "jobs.db")
    yield made
    made.close()


@pytest.fixture
def app(tmp_path, store):
    return create_app(Home(tmp_path), store, Pulse(), open_reads=False)


@pytest.mark.parametrize("token", ["", "orc.ann.guessed"])
@pytest.mark.parametrize("declared", [True, False])
def test_of_who_has_no_token_no_package_is_read(app, token, declared):
    sender = Sender(token=token, declared=declared)
    assert asyncio.run(sender.call(app)) == (401, "AuthenticationError") and sender.asked == 0


def test_of_who_may_not_send_code_no_package_is_read(app, store):
    sender = Sender(token=Users(store.engine).add("eve", "vision", "viewer"))
    assert asyncio.run(sender.call(app)) == (403, "PermissionDenied") and sender.asked == 0
    assert [(entry.user, entry.action) for entry in AuditLog(store.engine).read()] == [("eve", "refused keep code")]


def test_of_who_may_send_code_all_is_read_up_to_the_limit(app, store):
    token = Users(store.engine).add("ann", "vision", "user")
    inside = Sender(token=token, num_bytes=6 * MIB)
    assert asyncio.run(inside.call(app)) == (422, "ConfigError") and inside.asked == 6  # it is no package
    beyond = Sender(token=token, num_bytes=LARGEST_CODE_BYTES + 1)
    assert asyncio.run(beyond.call(app)) == (413, "UserError") and beyond.asked == 0
    elsewhere = Sender("/v1/jobs", token, num_bytes=LARGEST_BODY_BYTES + 1)
    assert asyncio.run(elsewhere.call(app)) == (413, "UserError") and elsewhere.asked == 0


@pytest.mark.parametrize("num_bytes", [5 * MIB, 10])
def test_few_packages_are_in_memory_at_once_however_small(num_bytes):
    async def all_at_once() -> None:
        inside, most, admitted, full, may_go = 0, 0, 0, asyncio.Event(), asyncio.Event()

        async def admit(_request):
            nonlocal admitted
            admitted += 1
            if admitted == len(senders):
                full.set()

        async def app(_scope, _receive, send):
            nonlocal inside, most
            inside, most = inside + 1, max(most, inside + 1)
            await may_go.wait()
            inside -= 1
            await send({"type": "http.response.start", "status": 200, "headers": []})

        senders = [Sender(num_bytes=num_bytes) for _ in range(PACKAGES_AT_ONCE + 2)]
        limit = BodyLimit(app, admit)
        answers = asyncio.gather(*(sender.call(limit) for sender in senders))
        await full.wait()
        assert sum(sender.asked > 0 for sender in senders) <= PACKAGES_AT_ONCE
        may_go.set()
        assert [status for status, _ in await answers] == [200] * len(senders)
        assert most == PACKAGES_AT_ONCE

    asyncio.run(all_at_once())


def test_what_does_not_arrive_in_time_is_given_up():
    class Stuck(Sender):
        async def receive(self):
            await asyncio.Event().wait()

    async def app(_scope, _receive, _send):
        raise AssertionError("it was never received")

    async def admit(_request):
        return None

    assert asyncio.run(Stuck(num_bytes=1).call(BodyLimit(app, admit, receive_limit_s=0.05))) == (408, "UserError")
