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
        (MemoryError(), "HOST_OUT_OF_MEMORY"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "OUT_OF_MEMORY"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "HOST_OUT_OF_MEMORY"),
        (errors.NotFinite("x"), "NAN"),
        (errors.LossSpike("x"), "SPIKE"),
        (errors.ReplicaDrift("x"), "DRIFT"),
        (ValueError("x"), "INTERNAL"),
        (ImportError("No module named 'x'"), "INTERNAL"),
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
    assert (failure["end_reason"], failure["echo"]) == ("NETWORK", True)


def test_a_users_own_connection_error_is_no_echo():
    failure = describe(caught(ConnectionResetError("Connection reset by peer")), __file__)
    assert (failure["end_reason"], failure["echo"]) == ("USER_ERROR", False)


@pytest.mark.parametrize(
    "error, remedy",
    [
        (errors.StorageUnavailable("x"), "WAIT"),
        (errors.StorageDenied("x"), "NONE"),
        (errors.WorkloadError("x"), "NONE"),
        (ModuleNotFoundError("No module named 'x'"), "NONE"),
        (SyntaxError("bad"), "NONE"),
        (ValueError("x"), "RETRY_ONCE"),
        (RuntimeError("CUDA out of memory"), "SMALLER_MICRO_BATCH"),
    ],
)
def test_what_may_help_is_said_too(error, remedy):
    assert describe(caught(error), __file__)["remedy"] == remedy


def test_the_error_that_another_was_raised_from_tells_the_cause():
    def wrap():
        try:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        except RuntimeError as error:
            raise ValueError("the forward pass failed") from error

    with pytest.raises(ValueError) as found:
        wrap()
    assert describe(found.value, __file__)["end_reason"] == "OUT_OF_MEMORY"


# tracebacks


def called(file, function, call, **names):
    """A function of that file that does `call`."""
    exec(compile(f"def {function}():\n    {call}\n", file, "exec"), names)
    return names[function]


def test_a_users_traceback_begins_in_the_users_file():
    linear = called("/site/torch/nn/functional.py", "linear", "raise ValueError('bad shape')")
    loss = called("/w/model.py", "loss", "linear()", linear=linear)
    step = called("/site/orchestrator/runtime/engine.py", "step", "loss()", loss=loss)
    try:
        step()
    except ValueError as error:
        told = describe(error, "/w/model.py")["traceback"].splitlines()
        whole = describe(error, "/other/model.py")["traceback"]
    assert told[0] == "Traceback (most recent call last):"
    assert told[1].startswith('  File "/w/model.py", line 2, in loss')
    assert told[2].startswith('  File "/site/torch/nn/functional.py"')
    assert told[-1] == "ValueError: bad shape"
    assert "engine.py" in whole


def test_of_the_errors_that_led_to_it_the_users_part_is_shown_too():
    first = called("/site/orchestrator/runtime/engine.py", "step", "{}['x']")
    attempt = "try:\n        first()\n    except KeyError as e:\n        raise ValueError('no x') from e"
    loss = called("/w/model.py", "loss", attempt, first=first)
    with pytest.raises(ValueError) as found:
        loss()
    told = describe(found.value, "/w/model.py")["traceback"]
    assert told.index("KeyError: 'x'") < told.index("direct cause") < told.index("ValueError: no x")


# fingerprints


def of(kind, message):
    return fingerprint(caught(kind(message)))


def test_the_fingerprint_leaves_out_values_and_lines():
    assert of(ValueError, "step 3") == of(ValueError, "step 4")
    assert of(ValueError, "x") != of(KeyError, "x")
    assert of(ValueError, "no label") != of(ValueError, "no image")
    assert "test_failure.py:caught" in of(ValueError, "x")


def test_a_fault_of_the_surroundings_is_the_same_in_every_function():
    here = describe(caught(RuntimeError("CUDA error: uncorrectable ECC error encountered")), __file__)
    there = called("/w/model.py", "loss", "raise RuntimeError('CUDA error: uncorrectable ECC error encountered')")
    with pytest.raises(RuntimeError) as found:
        there()
    assert describe(found.value, "/w/model.py")["fingerprint"] == here["fingerprint"] == "DEVICE_FAULT broken device"
