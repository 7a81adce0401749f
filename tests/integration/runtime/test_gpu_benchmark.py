"""The GPU benchmark runs from end to end where there is nothing but torch, DeepSpeed and numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import TRAINING_LIMIT_S

ROOT = Path(__file__).parents[3]
PROGRAM = """
import runpy, sys
sys.modules.update(dict.fromkeys({absent}))  # a module that is None cannot be imported
sys.argv = {argv}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ABSENT = {"transformers", "tokenizers", "ray", "mlflow", "hydra", "omegaconf", "boto3", "awscrt", "sklearn", "matplotlib", "ulid"}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "arms"), [("tiny", ["zero1", "zero2", "zero3"]), ("tiny-resnet", ["zero1"])])
def test_it_runs_without_a_gpu_and_without_what_a_gpu_machine_may_lack(tmp_path, model, arms):
    options = ["--device", "cpu", "--model", model, "--compile", "none", "--rounds", "2", "--folder", str(tmp_path)]
    program = PROGRAM.format(absent=ABSENT, argv=[str(ROOT / "benchmarks" / "gpu_throughput.py"), *options])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TRAINING_LIMIT_S)
    assert done.returncode == 1 and done.stdout.endswith("}\n"), done.stderr[-3000:]  # a CPU does not hold the bars
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"claim", "ours", "peers", "ratio", "bar", "holds"} <= set(found) and found["holds"] is False
    assert [name for name in found["ours"] if name.endswith("plain")] == [f"{arm} / plain" for arm in arms]
    assert found["left_out"] == {} and found["matmul_tflops"] > 0
    table = next(tmp_path.iterdir()).read_text()
    losses = [line.split("|")[-2].strip() for line in table.splitlines() if line.startswith(("| plain", "| zero"))]
    assert len(losses) == len(arms) + 1 and len(set(losses)) == 1, table  # every arm trains the same model
    first, last = map(float, losses[0].split(" -> "))
    assert last < first
