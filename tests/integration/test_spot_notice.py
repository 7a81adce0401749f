"""cluster/spot_notice.sh: AWS's notice becomes a drain of the Ray node. The metadata service is a double, the node is real."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness import Sandbox
from patience import LIMIT_S

from orchestrator.control.environment import remote_environment
from orchestrator.ports import free_port

CLUSTER = Path(__file__).parents[2] / "cluster"
LEFT_S = 120


class Metadata(BaseHTTPRequestHandler):
    """Wants a token, as IMDSv2 does. The first question finds no notice, the second one does."""

    asked = 0

    def do_PUT(self):
        self._answer(200, "token" if self.path == "/api/token" else "")

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") != "token" or self.path != "/meta-data/spot/instance-action":
            self._answer(401, "")
            return
        Metadata.asked += 1
        end = datetime.now(UTC) + timedelta(seconds=LEFT_S)
        notice = f'{{"action": "terminate", "time": "{end:%Y-%m-%dT%H:%M:%SZ}"}}'
        self._answer(*((404, "") if Metadata.asked == 1 else (200, notice)))

    def _answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def address(sandbox):
    port = free_port()
    cluster = subprocess.Popen(
        [CLUSTER / "local.sh", "1", "1", str(port)], env={**sandbox.environment, "PYTHON": sys.executable}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    first = cluster.stdout.readline()
    assert "ready: 1 nodes" in first, first + cluster.communicate(timeout=LIMIT_S)[0]
    yield f"127.0.0.1:{port}"
    cluster.send_signal(signal.SIGTERM)
    cluster.wait(timeout=LIMIT_S)


@pytest.fixture
def environment(sandbox, address):
    """Of what runs on the node, with Ray's token."""
    return {**sandbox.environment, **remote_environment(sandbox.home, address), "PYTHON": sys.executable}


def test_who_has_no_token_may_not_drain(sandbox, address):
    environment = {**sandbox.environment, "RAY_AUTH_MODE": "disabled", "PYTHON": sys.executable}
    done = subprocess.run(
        [CLUSTER / "drain_node.sh", address, "5", "a test"], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )  # fmt: skip
    assert done.returncode != 0 and "drains" not in done.stdout


def test_a_node_that_is_not_there_is_told(environment, address):
    environment = {**environment, "NODE_IP": "127.9.9.9"}
    command = [CLUSTER / "drain_node.sh", address, "5", "a test"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1 and f"no node of Ray at {address} has the address 127.9.9.9" in done.stderr


def test_the_notice_drains_the_node_until_the_instance_is_taken(environment, address):
    metadata = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{metadata.server_port}"
    environment = {**environment, "METADATA_URL": url, "INTERVAL_S": "0.1"}
    done = subprocess.run(
        [CLUSTER / "spot_notice.sh", address], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )  # fmt: skip
    metadata.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"action": "terminate"' in done.stdout and Metadata.asked == 2
    assert re.search(r"^node [0-9a-f]{56} drains: the spot instance is taken$", done.stdout, re.MULTILINE)
