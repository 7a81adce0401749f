from __future__ import annotations

import pytest

from orchestrator.tracking.redact import Redactor

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "AWS_SESSION_TOKEN": "session-0123456789",
    "RAY_AUTH_TOKEN_PATH": "/home/somebody/token",
    "LICENSE_TOKEN": "ab",
    "HOME": "/home/somebody",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("denied for wJalrXUtnFEMI/K7MDENG at step 3", "denied for *** at step 3"),
        ("x=session-0123456789", "x=***"),
        ("postgresql://team:hunter2@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("sqlite:////home/somebody/mlflow.db", "sqlite:////home/somebody/mlflow.db"),
        ("token of /home/somebody/token, a stable lab", "token of /home/somebody/token, a stable lab"),
    ],
)
def test_secrets_never_pass(text: str, shown: str) -> None:
    assert Redactor(ENVIRONMENT).text(text) == shown


def test_a_secret_within_a_longer_one_leaves_no_rest() -> None:
    assert Redactor({"A_TOKEN": "abcdef", "B_TOKEN": "abcdef-ghi"}).text("abcdef-ghi") == "***"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("data.options.hub_token", "***"), ("api_key", "***"), ("workload.options.tokenizer", "v"), ("max_tokens", "v")],
)
def test_settings_named_like_secrets_are_hidden(name: str, shown: str) -> None:
    assert Redactor({}).setting(name, "v") == shown
