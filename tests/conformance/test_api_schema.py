"""The HTTP API is asked everything that its own OpenAPI schema allows, and much that it does not: no request is an error of the server, and
none changes anything without a token."""

from __future__ import annotations

import pytest
from api_requests import Asking, Service
from hypothesis import HealthCheck, Phase, settings

from orchestrator.paths import Home

FEW = settings(
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    made = Service(Home(tmp_path_factory.mktemp("home")))
    yield made
    made.store.close()


def test_no_request_is_an_error_of_the_server(service):
    asking = Asking(service, FEW)
    asking.all_are_answered()
    assert len(asking.operations) >= 31


def test_nothing_changes_without_a_token(service):
    asking = Asking(service, FEW)
    asking.nothing_changes()
    assert len(asking.operations) >= 11
