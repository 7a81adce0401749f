"""A job whose data set, checkpoints, logs and journal live in S3: a real SeaweedFS, with keys that only its processes see."""

from __future__ import annotations

import pytest
from harness import TINY, Sandbox, held
from object_stores import KEYS, READER, opened, seaweedfs

from orchestrator.job import JobState
from orchestrator.paths import JobKeys


@pytest.fixture(scope="module")
def endpoint():
    with seaweedfs() as url:
        yield url


@pytest.fixture
def sandbox():
    box = Sandbox()
    for name in [name for name in box.environment if name.startswith("AWS_")]:
        del box.environment[name]
    yield box
    box.close()


def stored_at(endpoint: str, prefix: str, bucket: str = "orchestrator") -> tuple[str, ...]:
    return (f"storage.url=s3://{bucket}/{prefix}", f"storage.endpoint_url={endpoint}", "storage.max_attempts=2")


def test_a_killed_job_on_s3_equals_the_calm_one_and_its_keys_stay_secret(sandbox, endpoint, monkeypatch, tmp_path):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    sandbox.environment |= KEYS
    where = stored_at(endpoint, "root")
    calm = sandbox.submit(*TINY, *where)
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED, sandbox.describe()
    is_killed = tmp_path / "is-killed"
    job_id = sandbox.submit(*TINY, *where, *held(is_killed, 90))
    sandbox.wait_step(job_id, 50)
    sandbox.wait_until(sandbox.ranks, "a rank")[-1].kill()
    is_killed.touch()
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.SUCCEEDED and job.progress.restarts == 1
    assert sandbox.history(job_id) == sandbox.history(calm)
    assert sandbox.fingerprint(job_id) == sandbox.fingerprint(calm)

    assert not (sandbox.home.root / "store").exists(), "nothing went to the local folder"
    assert sandbox.run("down")[0] == 0
    code, output = sandbox.run("up")  # a controller that starts deletes those of jobs that have ended, if the last one did not
    assert code == 0, output
    assert not list((sandbox.home.root / "secrets").glob("*.json")), "the keys are gone"
    own_code = sandbox.home.root / "cache" / "code"  # these tests, packaged: they name the key themselves
    for path in sandbox.home.root.rglob("*"):
        if path.is_file() and own_code not in path.parents:
            assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in content(path), path
    store = opened(endpoint, "root")
    for info in store.list(JobKeys(job_id).root):
        if "/ckpt/" not in info.key:
            assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in store.get(info.key), info.key
    code, output = sandbox.run("logs", job_id)
    assert code == 0, output


def content(path):
    """Nothing of a file that the control plane, which is up, has removed meanwhile."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.parametrize(
    "keys, bucket, words",
    [
        ({}, "orchestrator", ("AWS_ACCESS_KEY_ID",)),
        ({**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "orchestrator", ("AWS_SECRET_ACCESS_KEY",)),
        (READER, "orchestrator", ("AccessDenied",)),
        (KEYS, "no-such-bucket", ("no-such-bucket", "does not exist")),
    ],
)
def test_wrong_keys_and_buckets_are_refused_before_anything_starts(sandbox, endpoint, keys, bucket, words):
    sandbox.environment |= {**keys, "AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
    code, output = sandbox.run("train", *TINY, *stored_at(endpoint, "refused", bucket))
    assert code == 2, output
    assert "Traceback" not in output
    for word in words:
        assert word in output
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in output
    assert sandbox.jobs() == [] and not sandbox.processes()
