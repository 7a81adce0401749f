"""The page's files as they are served, and the questions that only it asks."""

from __future__ import annotations

import json
import re

import httpx2
import pytest
from page_stage import Stage
from patience import LIMIT_S
from starlette.testclient import TestClient

from orchestrator.control.api.app import create_app
from orchestrator.control.api.page import FOLDER, PAGES, TYPES
from orchestrator.control.pulse import Pulse
from orchestrator.control.reading.curve import Curves, Record, points, thinned
from orchestrator.control.reading.job_page import web_address
from orchestrator.control.records.store import JobStore
from orchestrator.errors import CorruptObject
from orchestrator.job import JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.storage.memory import MemoryStore

FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture
def http(tmp_path):
    store = JobStore(tmp_path / "jobs.db")
    yield TestClient(create_app(Home(tmp_path), store, Pulse()), base_url="http://127.0.0.1", follow_redirects=False)
    store.close()


@pytest.fixture
def stage(tmp_path):
    made = Stage(Home(tmp_path))
    yield made
    made.close()


def ask(stage: Stage, path: str, user: str = "ann", params: dict | None = None, **headers):
    token = {"Authorization": f"Bearer {stage.tokens[user]}"} if user else {}
    return httpx2.get(stage.server.url + path, params=params, headers={**token, **headers}, timeout=LIMIT_S)


# files


@pytest.mark.parametrize("name", [*PAGES, *FILES])
def test_every_file_is_served_without_a_token_as_what_it_is(http, name):
    response = http.get(f"/ui/{name}")
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == TYPES["." + PAGES.get(name, name).rpartition(".")[2]]
    assert response.content == (FOLDER / PAGES.get(name, name)).read_bytes()
    assert response.headers["x-content-type-options"] == "nosniff"
    again = http.get(f"/ui/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", response.headers["etag"])
    assert http.get(f"/ui/{name}", headers={"If-None-Match": '"another"'}).status_code == 200


def test_nothing_but_these_files_may_run_in_it(http):
    policy = dict(part.split(" ", 1) for part in http.get("/ui/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["img-src"] == "'self'"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")


@pytest.mark.parametrize("name", FILES)
def test_files_have_no_inline_code_no_markup_from_text_and_no_other_host(name):
    text = (FOLDER / name).read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)\w", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text)
    assert not re.search(r"localStorage|document\.cookie|indexedDB", text)
    if name.endswith(".html"):
        assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:|<script(?![^>]*\ssrc=)", text)


@pytest.mark.parametrize("path", ["/ui/none.js", "/ui/page.py", "/ui/..%2fapp.py", "/ui/%2e%2e/%2e%2e/app.py", "/ui/job/", "/ui/\u00e9"])
def test_there_is_nothing_else(http, path):
    response = http.get(path)
    assert response.status_code == 404
    assert "default-src 'none'" in response.headers.get("content-security-policy", "default-src 'none'")


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_the_page_is_found(http, path):
    response = http.get(path)
    assert (response.status_code, response.headers["location"]) == (307, "ui/")


# the overview


def test_what_is_in_use_by_node_and_by_tenant(stage):
    stage.put_day()
    found = ask(stage, "/v1/overview").json()
    assert found["cluster"] == {"nodes": 8, "draining": 1, "gpus": 64, "gpus_used": 58, "cpus": 768, "cpus_used": 464}
    assert [node["gpus_used"] for node in found["nodes"]] == [8, 8, 8, 8, 8, 8, 8, 2]
    assert [(node["name"], node["standing"], node["draining"], node["jobs"]) for node in found["nodes"][5:8:2]] == [
        ("gpu-06", "suspect", False, 2), ("gpu-08", "good", True, 1),
    ]  # fmt: skip
    tenants = {row["tenant"]: (row["gpus_used"], row["quota"], row["running"], row["waiting"]) for row in found["tenants"]}
    assert tenants == {"language": (40, 40, 2, 19), "vision": (12, 24, 2, 16), "speech": (6, None, 2, 17), "ops": (0, None, 0, 17)}
    assert (found["jobs"]["queued"], found["jobs"]["succeeded"], found["jobs"]["failed"]) == (69, 3, 1)


def test_lists_come_in_their_order_and_a_part_at_a_time(stage):
    stage.put_day()
    found = ask(stage, "/v1/overview?limit=3&waiting=66&ended=1").json()
    assert [job["id"] for job in found["running"]["jobs"]] == ["gpt-7b-pretrain-01k", "gpt-1b-long-context-c3d", "vit-base-imagenet-4kq"]
    assert [job["position"] for job in found["waiting"]["jobs"]] == [67, 68, 0]
    assert [job["id"] for job in found["ended"]["jobs"]] == ["gpt-350m-ablate-2", "vit-tiny-debug-9", "gpt-1b-lr3e-4"]
    assert [found[name]["total"] for name in ("running", "waiting", "ended")] == [6, 69, 5]
    first = found["running"]["jobs"][0]
    assert (first["gpus"], first["priority"], first["recoveries"], round(first["goodput"], 3)) == (32, 10, 3, 0.919)
    reserved = ask(stage, "/v1/overview?limit=1").json()["waiting"]["jobs"][0]
    assert (reserved["position"], reserved["reserved"], reserved["start_s"] - stage.now) == (1, True, pytest.approx(52 * 60))


@pytest.mark.parametrize(("words", "ids"), [
    ("50%", ["50%"]), ("a_b", ["a_b"]), ("ANN", ["50%", "a_b", "axb"]), ("Language", ["50%", "a_b", "axb"]), ("nobody", []),
])  # fmt: skip
def test_jobs_are_found_by_the_letters_that_were_given(stage, words, ids):
    for job_id in ("50%", "a_b", "axb"):
        stage.put(job_id, stage.spec("m"))
    found = ask(stage, "/v1/overview", params={"find": words}).json()
    assert sorted(job["id"] for job in found["waiting"]["jobs"]) == ids


def test_it_is_the_same_until_something_happens(stage):
    stage.put_day()
    first = ask(stage, "/v1/overview")
    assert ask(stage, "/v1/overview", **{"If-None-Match": first.headers["etag"]}).status_code == 304
    stage.store.update(stage.store.get("llama-8b-finetune-r0"), stop_requested="now")
    assert ask(stage, "/v1/overview", **{"If-None-Match": first.headers["etag"]}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/overview", "/v1/jobs/a/page", "/v1/jobs/a/curve", "/v1/jobs/a/tail"])
def test_what_it_shows_needs_a_token(stage, path):
    stage.put("a", stage.spec("m"))
    assert ask(stage, path, "").status_code == 401
    assert ask(stage, path, "eve").status_code == 200


# one job


def test_a_job_its_ledger_and_its_links(stage):
    shown = ask(stage, f"/v1/jobs/{stage.put_day()}/page").json()
    run = "https://mlflow.example.org/base/#/runs/0a1b2c3d4e5f60718293a4b5c6d7e8f9"
    assert shown["job"]["state"] == "running"
    assert sum(shown["ledger"]["seconds"].values()) == pytest.approx(shown["ledger"]["worker_s"])
    assert shown["links"] == {"mlflow": run, "mlflow_run_id": run.rpartition("/")[2], "ray": "http://127.0.0.1:8265"}
    assert ask(stage, "/v1/jobs/bert-large-mlm-5tt/page").json()["links"]["mlflow"] == run
    assert ask(stage, "/v1/jobs/moe-8x7b-probe-q9e/page").json()["links"]["mlflow"] == "https://mlflow.example.org/base"


@pytest.mark.parametrize(("uri", "shown"), [
    ("http://host:5000", "http://host:5000"), ("https://host/a?x=1", "https://host/a"), ("sqlite:////home/mlflow.db", ""),
    ("javascript:alert(1)//http://host", ""), ("databricks", ""), ("", ""),
])  # fmt: skip
def test_only_a_server_is_linked_to(uri, shown):
    assert web_address(uri) == shown


def test_the_last_lines_and_then_what_comes_after_them(stage):
    stage.put("a", stage.spec("m", workers=2), state=JobState.RUNNING)
    stage.put_output("a", 0, 0, "".join(f"old {number}\n" for number in range(50)) + "half")
    stage.put_output("a", 1, 0, "one\n")
    last = ask(stage, "/v1/jobs/a/tail?lines=3").json()
    assert [line["text"] for line in last["lines"]] == ["old 48", "old 49", "one"]
    assert last["ended"] is False
    stage.put_output("a", 0, len("".join(f"old {number}\n" for number in range(50)) + "half"), " and whole\n")
    rest = ask(stage, f"/v1/jobs/a/logs?after={last['next']}").json()
    assert [line["text"] for line in rest["lines"]] == ["half and whole"]
    assert [line["text"] for line in ask(stage, "/v1/jobs/a/tail?rank=1").json()["lines"]] == ["one"]


def test_a_job_that_printed_nothing_has_a_place_to_go_on_from(stage):
    stage.put("a", stage.spec("m"), state=JobState.RUNNING)
    nothing = ask(stage, "/v1/jobs/a/tail").json()
    stage.put_output("a", 0, 0, "first\n")
    assert nothing["lines"] == []
    assert [line["text"] for line in ask(stage, f"/v1/jobs/a/logs?after={nothing['next']}").json()["lines"]] == ["first"]


def test_the_curve_of_a_job_comes_from_its_store(stage):
    stage.put("a", stage.spec("m"))
    stage.put_journal("a", [metrics(1, 2.5), {"kind": "evaluated", "step": 1, "values": {"loss": 2.75}}])
    first = ask(stage, "/v1/jobs/a/curve")
    assert first.json() == {"training": [[1, 2.5]], "validation": [[1, 2.75]]}
    assert ask(stage, "/v1/jobs/a/curve", **{"If-None-Match": first.headers["etag"]}).status_code == 304
    stage.put_journal("a", [{"kind": "rewind"}], first=3)
    damaged = ask(stage, "/v1/jobs/a/curve")
    assert (damaged.status_code, damaged.json()["error"]) == (502, "CorruptObject")


# curves


def metrics(step: int, loss: float | None) -> dict:
    return {"kind": "metrics", "step": step, "values": {} if loss is None else {"loss": loss}}


class Counting(MemoryStore):
    """Remembers what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.read.append(key)
        return super().get(key, start, length)

    def segment(self, first: int, records: list[dict]) -> None:
        lines = [json.dumps({"seq": first + index, "time_s": 0.0, **record}) for index, record in enumerate(records)]
        self.put(JobKeys("a").journal_segment(first), "\n".join([*lines, ""]).encode())


def test_a_curve_grows_by_what_is_new_and_follows_rewinds_and_later_segments():
    store, curves = Counting(), Curves()
    store.segment(1, [metrics(1, 4.0), metrics(2, 3.0), {"kind": "evaluated", "step": 2, "values": {"loss": 3.5}}])
    assert curves.read(store, "a", 100) == {"training": [(1, 4.0), (2, 3.0)], "validation": [(2, 3.5)]}
    store.segment(4, [metrics(3, 2.0), metrics(4, 9.0), {"kind": "tags", "values": {}}])
    assert curves.read(store, "a", 100)["training"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 9.0)]
    assert curves.read(store, "a", 100)["training"][-1] == (4, 9.0)
    assert store.read == [JobKeys("a").journal_segment(first) for first in (1, 4)]
    store.segment(5, [{"kind": "rewind", "step": 2}, metrics(3, 2.5)])
    assert curves.read(store, "a", 100)["training"] == [(1, 4.0), (2, 3.0), (3, 2.5)]
    store.segment(5, [{"kind": "rewind", "step": 1}])
    assert curves.read(store, "a", 100) == {"training": [(1, 4.0)], "validation": []}


@pytest.mark.parametrize("data", [
    b"{", b"[]\n", b'{"kind": "metrics"}\n', b'{"seq": 1, "kind": "metrics", "step": 1, "values": {"loss": {}}}\n',
])  # fmt: skip
def test_a_segment_that_cannot_be_read_is_named(data):
    store = MemoryStore()
    store.put(JobKeys("a").journal_segment(1), data)
    with pytest.raises(CorruptObject, match=r"journal/000000000001\.jsonl"):
        Curves().read(store, "a", 100)


def test_what_is_no_number_is_no_point():
    losses = (float("nan"), None, float("inf"), 1.0)
    records = [Record(step, "metrics", step, loss) for step, loss in enumerate(losses)]
    assert points(records, "metrics") == [(3, 1.0)]


@pytest.mark.parametrize("num_points", [4, 7, 100, 999])
def test_thinning_keeps_spikes_and_both_ends(num_points):
    curve = [(step, 2.0 + (50.0 if step == 617 else -1.5 if step == 403 else step / 1e6)) for step in range(1000)]
    kept = thinned(curve, num_points)
    assert len(kept) <= num_points
    assert kept == sorted(set(kept)) and set(kept) <= set(curve)
    assert {curve[0], curve[-1], (617, 52.0), (403, 0.5)} <= set(kept)
    assert thinned(curve[:3], num_points) == curve[:3]
