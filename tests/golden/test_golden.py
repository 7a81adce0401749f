"""What is derived stays as it was: resolved specs, DeepSpeed dicts, legal worlds, the help text.

A difference is either a mistake or wanted. If it is wanted, write the golden files anew and read `git diff tests/golden` before you
commit them:

    UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/golden
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.config import load_job_spec
from orchestrator.layout import deepspeed_config, layout_for, legal
from orchestrator.spec import JobSpec, ParallelismSpec, Precision, to_dict

FOLDER = Path(__file__).parent
HINT = "If this is wanted: UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/golden, then read `git diff tests/golden`."


def check(path: Path, text: str, update: bool) -> None:
    """Compare `text` with the golden file, or write it."""
    if update:
        path.write_text(text)
    golden = path.read_text() if path.exists() else ""
    if text != golden:
        lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), f"{path.name} (golden)", f"{path.name} (now)", lineterm="")
        pytest.fail("\n".join([f"{path.name} differs.", *lines, HINT]), pytrace=False)


def spec_of(workload: str) -> str:
    values = to_dict(load_job_spec([f"workload={workload}"]))
    assert values["workload"]["code_dir"] == str(Path.cwd())
    values["workload"]["code_dir"] = "<the submitter's working directory>"
    return as_yaml(values)


def deepspeed_of_gpt() -> str:
    precisions = (Precision.fp32, Precision.bf16, Precision.fp16)
    return as_yaml(
        {
            f"{optimizer} zero{spec.parallelism.zero_stage} {precision.value}": deepspeed_config(spec, layout_for(spec), precision)
            for optimizer in ("adamw", "sgd", "lion", "muon")
            for spec in zero_stages_of_gpt(optimizer)
            for precision in precisions
        }
    )


def offloaded_gpt() -> str:
    asked = {"optimizer at zero1": (1, ["optimizer"]), "parameters at zero3": (3, ["parameters"])}
    asked["both at zero3"] = (3, ["optimizer", "parameters"])
    found = {}
    for name, (stage, parts) in asked.items():
        flags = [f"parallelism.zero_stage={stage}", *(f"parallelism.offload_{part}=cpu" for part in parts)]
        spec = load_job_spec(["workload=gpt", "resources.num_workers=2", *flags])
        found[name] = deepspeed_config(spec, layout_for(spec), Precision.bf16)
    on_disk = ["parallelism.zero_stage=3", "parallelism.offload_optimizer=nvme", "parallelism.nvme_path=/disk"]
    spec = load_job_spec(["workload=gpt", "resources.num_workers=2", *on_disk])
    found["optimizer on nvme at zero3"] = deepspeed_config(spec, layout_for(spec), Precision.bf16)
    return as_yaml(found)


def zero_plus_plus_gpt() -> str:
    flags = ["zero_stage=3", "zero_hpz_partition_size=2", "zero_quantized_weights=true", "zero_quantized_gradients=true"]
    on_gpus = ["resources.num_workers=6", "resources.gpus_per_worker=1", "training.global_batch_size=12", "training.micro_batch_size=2"]
    spec = load_job_spec(["workload=gpt", *on_gpus, *(f"parallelism.{flag}" for flag in flags)])
    return as_yaml(deepspeed_config(spec, layout_for(spec), Precision.bf16))


def tensor_parallel_gpt() -> str:
    spec = load_job_spec(["workload=gpt", "resources.num_workers=4", "parallelism.tensor_parallel_size=2"])
    return as_yaml({f"{x.world_size} ranks": deepspeed_config(spec, x, Precision.bf16) for x in legal(spec)[:2]})


def sequence_parallel_gpt() -> str:
    flags = ["resources.num_workers=4", "model.options.num_heads=4", "parallelism.sequence_parallel_size=4"]
    spec = load_job_spec(["workload=gpt", *flags])
    return as_yaml({f"{x.world_size} ranks": deepspeed_config(spec, x, Precision.bf16) for x in legal(spec)[:2]})


def expert_parallel_gpt() -> str:
    flags = ["workload=gpt", "model=gpt-moe-tiny", "resources.num_workers=2", "parallelism.expert_parallel_size=2"]
    specs = {stage: load_job_spec([*flags, f"parallelism.zero_stage={stage}"]) for stage in (0, 1)}
    return as_yaml({f"zero{stage}": deepspeed_config(spec, layout_for(spec), Precision.fp32) for stage, spec in specs.items()})


def zero_stages_of_gpt(optimizer: str) -> list[JobSpec]:
    spec = load_job_spec(["workload=gpt", f"optimizer={optimizer}", "resources.num_workers=2"])
    return [dataclasses.replace(spec, parallelism=ParallelismSpec(zero_stage=stage)) for stage in range(4)]


def legal_of_gpt() -> str:
    rows = [(x.world_size, x.micro_batch_size, x.gradient_accumulation_steps, x.zero_stage) for x in legal(load_job_spec(["workload=gpt"]))]
    return "".join(f"{' '.join(f'{cell!s:<12}' for cell in row).rstrip()}\n" for row in [("world", "micro", "accumulation", "zero"), *rows])


def help_text() -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["--help"]) == 0
    return said.getvalue()


def as_yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, width=140)


GOLDEN: dict[str, Callable[[], str]] = {
    "spec-gpt.yaml": lambda: spec_of("gpt"),
    "spec-resnet.yaml": lambda: spec_of("resnet"),
    "spec-text-classifier.yaml": lambda: spec_of("text-classifier"),
    "spec-bert.yaml": lambda: spec_of("bert"),
    "spec-seq2seq.yaml": lambda: spec_of("seq2seq"),
    "deepspeed-gpt.yaml": deepspeed_of_gpt,
    "deepspeed-offload.yaml": offloaded_gpt,
    "deepspeed-tensor-parallel.yaml": tensor_parallel_gpt,
    "deepspeed-sequence-parallel.yaml": sequence_parallel_gpt,
    "deepspeed-expert-parallel.yaml": expert_parallel_gpt,
    "deepspeed-zero-plus-plus.yaml": zero_plus_plus_gpt,
    "legal-gpt.txt": legal_of_gpt,
    "help.txt": help_text,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_is_as_it_was(name: str) -> None:
    check(FOLDER / name, GOLDEN[name](), update="UPDATE_GOLDEN" in os.environ)


def test_every_golden_file_belongs_to_a_check() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".yaml", ".txt")} == set(GOLDEN)


def test_a_difference_shows_itself_and_how_to_accept_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    check(path, "a: 1\nb: 2\n", update=True)
    check(path, "a: 1\nb: 2\n", update=False)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)x.yaml differs.*-b: 2\n\+b: 3\n.*UPDATE_GOLDEN=1"):
        check(path, "a: 1\nb: 3\n", update=False)
    assert path.read_text() == "a: 1\nb: 2\n"


def test_a_missing_golden_file_is_a_difference(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"\+a: 1"):
        check(tmp_path / "x.yaml", "a: 1\n", update=False)
