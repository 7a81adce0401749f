"""A trace from CSV: what is read, and each thing that can be wrong, with its line, field and reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DataError
from orchestrator.simulation.model import TraceJob
from orchestrator.simulation.trace import OPTIONAL, REQUIRED, from_zero, parse_trace, read_trace

HEADER = ",".join(REQUIRED)


def read(*lines: str, header: str = HEADER, **more: object) -> tuple[TraceJob, ...]:
    return parse_trace([header + "\n", *(f"{line}\n" for line in lines)], "t.csv", **more)


def refusal(*lines: str, header: str = HEADER, **more: object) -> str:
    with pytest.raises(DataError) as caught:
        read(*lines, header=header, **more)
    assert caught.value.exit_code == 2
    return str(caught.value)


# what is right


def test_a_line_is_a_job_and_what_is_empty_is_not_in_the_source() -> None:
    assert read("a,10,2,5.5,ann,lab,Killed", "b,12,1,0,,,") == (
        TraceJob(id="a", submit_s=0, gpus=2, duration_s=5.5, user="ann", tenant="lab", status="Killed"),
        TraceJob(id="b", submit_s=2, gpus=1, duration_s=0),
    )


def test_columns_may_stand_in_any_order_with_the_optional_ones() -> None:
    header = "sizes,status,vc,user,duration_s,num_gpus,submit_s,job_id,limit_s,priority"
    first, second = read("8 2,,,,9,4,0,a,100,-3", ",,,,9,4,1,b,,", header=header)
    assert (first.sizes, first.limit_s, first.priority) == ((2, 4, 8), 100.0, -3)
    assert (second.sizes, second.limit_s, second.priority) == ((), None, 0)


def test_jobs_come_in_the_order_of_submission_and_of_equal_times_as_they_stand() -> None:
    jobs = read("a,9,1,1,,,", "b,7,1,1,,,", "c,9,1,1,,,")
    assert [(job.id, job.submit_s) for job in jobs] == [("b", 0), ("a", 2), ("c", 2)]


@given(st.lists(st.integers(0, 10**9), max_size=20))
def test_the_first_is_submitted_at_0_and_no_distance_changes(times: list[int]) -> None:
    jobs = from_zero(TraceJob(id=str(number), submit_s=time_s, gpus=1, duration_s=1) for number, time_s in enumerate(times))
    assert [job.submit_s for job in jobs] == [time_s - min(times) for time_s in sorted(times)]


def test_a_file_with_a_byte_order_mark_quotes_and_empty_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f'{HEADER}\r\n\r\n"a, or b",0,1,1,,,\r\n'.encode())
    assert [job.id for job in read_trace(path)] == ["a, or b"]


# what is wrong


@pytest.mark.parametrize("column", REQUIRED)
def test_a_missing_column_is_named(column: str) -> None:
    header = ",".join(name for name in REQUIRED if name != column)
    assert refusal("a", header=header).startswith(f"t.csv line 1: column '{column}' is missing. Needed: job_id, submit_s, ")


def test_an_unknown_column_is_refused_with_the_nearest() -> None:
    said = refusal("a", header=HEADER.replace("duration_s", "duration"))
    assert said == f"t.csv line 1: 'duration' is no column. Known: {', '.join([*REQUIRED, *OPTIONAL])}. Did you mean 'duration_s'?"
    assert refusal("a", header=f"{HEADER},user").endswith("line 1: column 'user' is there twice.")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x,-1,1,1,,,", "submit_s=-1 is not possible: allowed is seconds, at least 0."),
        ("x,1,1,-0.5,,,", "duration_s=-0.5 is not possible: allowed is seconds, at least 0."),
        ("x,soon,1,1,,,", "submit_s=soon is not possible: allowed is seconds, at least 0."),
        ("x,1,1,nan,,,", "duration_s=nan is not possible: allowed is seconds, at least 0."),
        ("x,1,1,inf,,,", "duration_s=inf is not possible: allowed is seconds, at least 0."),
        ("x,1,0,1,,,", "num_gpus=0 is not possible: allowed is a whole number of at least 1."),
        ("x,1,1.5,1,,,", "num_gpus=1.5 is not possible: allowed is a whole number of at least 1."),
        ("x,1,,1,,,", "num_gpus is empty."),
        (" ,1,1,1,,,", "job_id is empty."),
        ("a,1,1,1,,,", "job_id=a is there already, in line 2."),
        ("x,1,1,1", "4 fields, the header has 7."),
        ("x,1,1,1,,,,", "8 fields, the header has 7."),
    ],
)
def test_a_wrong_field_is_named_with_its_line(line: str, said: str) -> None:
    assert refusal("a,0,1,1,,,", line) == f"t.csv line 3: {said}"


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("priority", "high", "a whole number."),
        ("limit_s", "-1", "seconds, at least 0."),
        ("sizes", "1;2", "whole numbers of at least 1 with spaces between them."),
        ("sizes", "0 1", "whole numbers of at least 1 with spaces between them."),
    ],
)
def test_a_wrong_optional_field_too(column: str, value: str, allowed: str) -> None:
    said = refusal(f"a,0,1,1,,,,{value}", header=f"{HEADER},{column}")
    assert said == f"t.csv line 2: {column}={value} is not possible: allowed is {allowed}"


def test_a_job_that_can_never_run_is_refused_with_the_reason() -> None:
    assert len(read("a,0,8,1,,,", why_never=lambda job: None)) == 1
    said = refusal("a,0,8,1,,,", "b,0,9,1,,,", why_never=lambda job: "the cluster has 8 GPUs" if job.gpus > 8 else None)
    assert said == "t.csv line 3: num_gpus=9 can never run: the cluster has 8 GPUs."


def test_a_file_without_jobs_is_refused() -> None:
    assert refusal() == "t.csv: no job in it."
    assert refusal(header="").startswith("t.csv line 1: column 'job_id' is missing.")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe\x00", "is no text in UTF-8: byte 0xff at 0."), (f'{HEADER}\n"a,0,1,1'.encode(), " line 2: unexpected end of data.")],
)
def test_a_file_that_is_no_csv_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(said)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "no.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=said):
            read_trace(path)
