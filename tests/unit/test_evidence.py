"""The same fault is known again whatever numbers, places and ids it carries; other words are another fault."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence import normal_form, of_exception, of_log
from orchestrator.job import EndReason, Remedy

COUNT = st.integers(0, 10**12)
ADDRESS = st.integers(0, 2**64 - 1).map(hex)
PID = st.integers(1, 4_194_304)
RANK = st.integers(0, 20_000)
STEP = st.integers(0, 10**9)
LOSS = st.floats(0, 1e6, allow_nan=False).map(lambda value: f"{value:.6g}")
UNIT = st.sampled_from(["bytes", "KiB", "MiB", "GiB", "MB", "GB"])
SIZE = st.tuples(st.integers(0, 999_999), UNIT).map(lambda x: f"{x[0] / 100:.2f} {x[1]}")
SHAPE = st.lists(st.integers(0, 10**6), min_size=1, max_size=5).map(str)
HOST = st.tuples(*[st.integers(0, 255)] * 4, st.integers(1, 65535)).map(lambda x: "[{}.{}.{}.{}]:{}".format(*x))
TMP = st.text(string.ascii_lowercase + string.digits + "_-/", min_size=1, max_size=20).map(lambda name: f"/tmp/{name}")
ID = st.uuids().map(str)
TEMPLATES = (
    ("bad value {} at step {} of rank {}", (LOSS, STEP, RANK)),
    ("<Tensor object at {}> was freed by process {}", (ADDRESS, PID)),
    ("Tried to allocate {}. GPU {} has {} free", (SIZE, RANK, SIZE)),
    ("cannot read '{}': {} bytes, expected {}", (TMP, COUNT, COUNT)),
    ("shape {} does not fit torch.Size({})", (SHAPE, SHAPE)),
    ("rank{} lost {} in job {}", (RANK, HOST, ID)),
    ("mat1 and mat2 shapes cannot be multiplied ({}x{} and {}x{})", (RANK, RANK, RANK, RANK)),
)
WORD = st.text(string.ascii_lowercase, min_size=3, max_size=12)


@given(st.data(), st.sampled_from(TEMPLATES))
def test_what_differs_from_time_to_time_does_not_count(data, template):
    text, kinds = template
    one, other = (text.format(*(data.draw(kind) for kind in kinds)) for _ in range(2))
    assert normal_form(one) == normal_form(other)


@given(WORD, WORD, STEP)
def test_other_words_are_another_fault(one, other, step):
    forms = {normal_form(f"no {word} in batch of step {step}") for word in (one, other)}
    assert len(forms) == len({one, other})


@given(st.text(max_size=500))
def test_the_normal_form_is_one_line_of_bounded_length(text):
    found = normal_form(text)
    assert len(found) <= 300
    assert len(found.splitlines()) <= 1


@pytest.mark.parametrize(
    "one, other",
    [
        ("expected int64 but found float32", "expected int32 but found float32"),
        ("expected bfloat16", "expected float16"),
        ("'lengths' is missing", "'labels' is missing"),
        ("loss is nan", "loss is inf"),
        ("cannot open /data/a.json", "cannot open /data/b.json"),
    ],
)
def test_what_tells_faults_apart_stays(one, other):
    assert normal_form(one) != normal_form(other)


def test_only_the_first_line_counts():
    assert normal_form("\n  bad\nmore 1") == normal_form("bad\nless")


# evidence


def test_words_too_common_for_a_log_count_in_an_error_only():
    text = "Connection reset by peer"
    assert of_log(text) is None
    assert of_exception(["builtins.RuntimeError"], text).echo
    assert of_exception(["builtins.ConnectionResetError", "builtins.OSError"], text) is None


def test_the_most_telling_of_several_lines_counts():
    log = "NCCL WARN Call to connect failed\nstep 3\nCUDA error: uncorrectable ECC error encountered\n"
    found = of_log(log)
    assert (found.reason, found.remedy, found.echo) == (EndReason.DEVICE_FAULT, Remedy.OTHER_NODE, False)


def test_a_calm_log_says_nothing():
    assert of_log("step 10 loss 3.2\nsaving step 20\nmemory 12.1 GiB, out of 80\n") is None
