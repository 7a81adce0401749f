"""A rank's folder on a disk, and what is said where the disk or the node's limits do not suffice."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.runtime.disk import own_folder, place

NOBODY = 65534


def config(path="/disk", tensors=4):
    section = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": path, "buffer_count": tensors}}
    return {"zero_optimization": section}


def test_a_folder_is_there_while_its_owner_lives(tmp_path):
    root = tmp_path / "made" / "here"
    with own_folder(root, "job-0") as folder:
        (folder / "state").touch()
        with own_folder(root, "job-1") as other:
            assert folder != other
            assert sorted(path.name for path in root.rglob("*")) == sorted([folder.name, "state", other.name])
    assert list(root.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next_rank_on_the_node(tmp_path):
    (tmp_path / "of-the-user").mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with own_folder(tmp_path, "dead-0") as folder:
            (folder / "state").touch()
            os.write(writer, b"1")
            signal.pause()
        os._exit(1)
    os.read(reader, 1)
    assert len(list(tmp_path.glob("orchestrator-dead-0-*/state"))) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with own_folder(tmp_path, "next-0") as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["of-the-user", folder.name])


def test_a_path_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    said = r"^parallelism\.nvme_path=.*/file/x is not possible on this node: Not a directory"
    with pytest.raises(ConfigError, match=said), own_folder(tmp_path / "file" / "x", "job-0"):
        raise AssertionError("not reached")


def test_one_sub_group_of_many_is_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_SIZE", "2")
    for sizes, expected in (([2_000_000] * 40, 2_500_000), ([300_000, 100], 2**18)):
        completed = config()
        place(completed, tmp_path, sizes, ranks=2)
        section = completed["zero_optimization"]
        assert section["sub_group_size"] == expected
        assert section["offload_optimizer"]["nvme_path"] == str(tmp_path)


def test_a_disk_that_is_too_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_SIZE", "2")
    said = r"^parallelism\.nvme_path=.* has .* GB free on this node; .* of its 2 workers take 16000000\.0 GB\. Free some, "
    with pytest.raises(ConfigError, match=said):
        place(config(), tmp_path, [10**15], ranks=2)


def test_too_little_lockable_memory_is_refused_before_deepspeed_aborts(monkeypatch):
    monkeypatch.setenv("LOCAL_SIZE", "1")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (2**20, 2**20))
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            place(config(), Path("/"), [1000], ranks=1)
            with pytest.raises(ConfigError, match=r"needs 16 MB of locked memory per worker, and the limit on this node is 1 MB"):
                place(config(), Path("/"), [10**6], ranks=1)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
