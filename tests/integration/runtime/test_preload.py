"""What a rank still has to import in its first step, and what DeepSpeed compiles in front of it: next to nothing, and nothing.

    UPDATE_PRELOAD=1 .venv/bin/python -m pytest tests/integration/runtime/test_preload.py

records anew what the warm process imports ahead (`orchestrator/runtime/recorded_imports.txt`); read its diff before you commit it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ranks import Group, spec_of

from orchestrator.runtime.preload import RECORD

HERE = Path(__file__).parent
FEW = 15
"""Modules that a first step may still import: that of the workload itself, and what is small."""
RECORDS_ANEW = bool(os.environ.get("UPDATE_PRELOAD"))
REDUCE = """
import json, pathlib, sys
from orchestrator.runtime.preload import import_known, import_recorded
import_known()
pathlib.Path(sys.argv[1]).write_text("\\n".join(import_recorded(json.load(sys.stdin))) + "\\n")
"""


class FirstSteps(Group):
    program = str(HERE / "first_steps.py")


def imported(folder, zero_stage, world=1):
    """Names of the modules that rank 0 of a tiny GPT imports up to its second step, in order, and what was compiled for it."""
    folder.mkdir()
    source = folder / "source"
    source.mkdir()
    for number in range(40):
        (source / f"m{number}.py").write_text("\n".join(f"def f{n}(x):\n    return x * {n} + {number}" for n in range(60)))
    recipe = {"root": str(source), "exclude": [], "vocab_size": 300, "block_size": 16, "validation_share": 0.1, "tokenizer_bytes": 100_000}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}
    spec = spec_of(
        folder / "store", workload__entrypoint="watched_gpt:Watched", workload__code_dir=str(HERE), workload__options={"new_tokens": 2},
        model__options=shape, data__options=recipe, parallelism__zero_stage=zero_stage, training__max_steps=3,
        training__global_batch_size=4 * world, training__eval_samples=8, training__activation_checkpointing="none",
    )  # fmt: skip
    group = FirstSteps(folder, world, spec).start()
    assert group.finish() == [0] * world, group.logs()
    return json.loads((group.run_dir / "task0.imports").read_text())


def roots(names):
    return {name.partition(".")[0] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_forked_rank_imports_next_to_nothing_in_its_first_step_and_compiles_nothing(tmp_path, monkeypatch, zero_stage):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    own = imported(tmp_path / "job", zero_stage)
    assert len(own) <= FEW, own
    assert roots(own) <= {"watched_gpt", "orchestrator"} | set(sys.stdlib_module_names), own
    assert not list((tmp_path / "compiled").rglob("*")) if (tmp_path / "compiled").exists() else True


@pytest.mark.skipif(not RECORDS_ANEW, reason="records, does not test")
def test_record(tmp_path, monkeypatch):
    monkeypatch.setenv("BARE", "1")
    found = [name for stage in range(4) for name in imported(tmp_path / f"zero{stage}", stage)]
    names = [name for name in dict.fromkeys(found) if name.partition(".")[0] not in ("watched_gpt", "workloads")]
    names.reverse()  # a module takes its place in `sys.modules` when it is complete: after those that it brings along
    command = [sys.executable, "-c", REDUCE, str(RECORD)]
    done = subprocess.run(command, input=json.dumps(names), stderr=subprocess.PIPE, text=True, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stderr
