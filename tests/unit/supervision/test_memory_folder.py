"""Where slabs and clocks lie."""

from __future__ import annotations

from pathlib import Path

from orchestrator.supervision.agent import SHARED_MEMORY, memory_folder


def test_shared_memory_is_used_where_it_is_large_enough():
    assert memory_folder(Path("/fallback"), least_share=0.0) == SHARED_MEMORY
    assert memory_folder(Path("/fallback"), least_share=1000.0) == Path("/fallback")


def test_without_shared_memory_a_disk_does(tmp_path):
    assert memory_folder(tmp_path, shared=tmp_path / "missing") == tmp_path
