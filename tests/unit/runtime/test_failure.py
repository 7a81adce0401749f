from __future__ import annotations

import pytest

from orchestrator import errors
from orchestrator.runtime.failure import describe, fingerprint


def caught(error):
    try:
        raise error
    except BaseException as found:  # noqa: BLE001 - a MemoryError and a KeyboardInterrupt are among them
        return found


@pytest.mark.parametrize(
    "error, reason",
    [
        (errors.DataError("x"), "DATA"),
        (errors.ConfigError("x"), "CONFIGURATION"),
        (errors.LayoutError("x"), "CONFIGURATION"),
        (errors.WorkloadError("x"), "USER_ERROR"),
        (errors.StorageDenied("x"), "STORAGE"),
        (errors.CorruptObject("x"), "STORAGE"),
        (errors.CheckpointError("x"), "CHECKPOINT"),
        (errors.IncompatibleCheckpoint("x"), "CHECKPOINT"),
        (errors.FencedError("x"), "FENCED"),
        (MemoryError(), "OUT_OF_MEMORY"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "OUT_OF_MEMORY"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "OUT_OF_MEMORY"),
        (ValueError("x"), "INTERNAL"),
    ],
)
def test_the_class_decides_the_end_reason(error, reason):
    assert describe(caught(error), "/elsewhere.py")["end_reason"] == reason


def test_an_error_that_passes_through_the_workload_is_the_users():
    failure = describe(caught(ValueError("mine")), __file__)
    assert failure["end_reason"] == "USER_ERROR"
    assert failure["message"] == "ValueError: mine"
    assert "raise error" in failure["traceback"]


def test_a_syntax_error_in_the_workload_is_the_users():
    assert describe(caught(SyntaxError("bad", ("/w.py", 1, 1, ""))), "/w.py")["end_reason"] == "USER_ERROR"


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1",
        "Connection reset by peer",
        "NCCL communicator was aborted on rank 1",
    ],
)
def test_a_lost_peer_is_an_echo_even_inside_the_workload(text):
    failure = describe(caught(RuntimeError(text)), __file__)
    assert (failure["end_reason"], failure["echo"]) == ("INTERNAL", True)


def test_a_users_own_connection_error_is_no_echo():
    failure = describe(caught(ConnectionResetError("Connection reset by peer")), __file__)
    assert (failure["end_reason"], failure["echo"]) == ("USER_ERROR", False)


def test_the_fingerprint_leaves_out_values_and_lines():
    assert fingerprint(caught(ValueError("step 3"))) == fingerprint(caught(ValueError("step 4")))
    assert fingerprint(caught(ValueError("x"))) != fingerprint(caught(KeyError("x")))
    assert "test_failure.py:caught" in fingerprint(caught(ValueError("x")))
