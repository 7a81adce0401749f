from __future__ import annotations

import importlib
import sys

import pytest

from orchestrator.errors import ConfigError, WorkloadError
from orchestrator.runtime.entrypoint import load_workload, workload_file
from orchestrator.spec import JobSpec, from_dict

GOOD = """
class Mine:
    tokens_per_sample = 0
    def __init__(self, spec): pass
    def source_fingerprint(self): pass
    def prepare(self, sink): pass
    def build_model(self, dataset): pass
    def loss(self, model, batch): pass
    def evaluate(self, model, batch): pass
    def metrics(self, sums): pass
class Half:
    def loss(self, model, batch): pass
"""


@pytest.fixture
def code_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_good_code.py").write_text(GOOD)
    (tmp_path / "my_bad_code.py").write_text("import a_module_that_is_not_there\n")
    yield tmp_path
    for name in ("my_good_code", "my_bad_code"):
        sys.modules.pop(name, None)


def spec_of(entrypoint, code_dir, stages=1):
    workload = {"name": "mine", "entrypoint": entrypoint, "code_dir": str(code_dir)}
    training = {"max_steps": 1, "global_batch_size": 1, "micro_batch_size": 1}
    parallelism = {"pipeline_parallel_size": stages}
    values = {"workload": workload, "model": {"name": "m"}, "data": {"name": "d"}, "training": training, "parallelism": parallelism}
    return from_dict(JobSpec, values)


def test_a_class_in_the_code_folder(code_dir):
    spec = spec_of("my_good_code:Mine", code_dir)
    assert type(load_workload(spec)).__name__ == "Mine"
    assert workload_file(spec) == str(code_dir / "my_good_code.py")


def test_a_package_of_the_users_own_comes_before_the_shipped_one_of_that_name(code_dir):
    shipped = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "workloads"}
    shipped["workloads"] = importlib.import_module("workloads")  # as in the warm process
    (code_dir / "workloads").mkdir()
    (code_dir / "workloads" / "__init__.py").write_text("")
    (code_dir / "my_good_code.py").rename(code_dir / "workloads" / "mine.py")
    try:
        assert type(load_workload(spec_of("workloads.mine:Mine", code_dir))).__name__ == "Mine"
    finally:
        for name in ("workloads", "workloads.mine"):
            sys.modules.pop(name, None)
        sys.modules.update(shipped)


def test_a_misspelt_class_names_the_nearest(code_dir):
    with pytest.raises(WorkloadError, match=r"has no class 'Mime'.* Did you mean 'Mine'"):
        load_workload(spec_of("my_good_code:Mime", code_dir))


def test_a_missing_module_is_named_with_the_folder(code_dir):
    with pytest.raises(WorkloadError, match=f"no module 'my_good_cod'.*{code_dir}"):
        load_workload(spec_of("my_good_cod:Mine", code_dir))


def test_missing_methods_are_named(code_dir):
    named = "Half of my_good_code has no method source_fingerprint, prepare, build_model, evaluate, metrics"
    with pytest.raises(WorkloadError, match=named):
        load_workload(spec_of("my_good_code:Half", code_dir))


def test_a_pipeline_of_a_workload_without_layers_is_refused(code_dir):
    said = r"^parallelism\.pipeline_parallel_size=2 is not possible: allowed is 1, because Mine of my_good_code has no method layers\(\)"
    with pytest.raises(ConfigError, match=said):
        load_workload(spec_of("my_good_code:Mine", code_dir, stages=2))


def test_a_failing_import_of_the_users_own_is_not_hidden(code_dir):
    spec = spec_of("my_bad_code:Mine", code_dir)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load_workload(spec)
    assert workload_file(spec) == str(code_dir / "my_bad_code.py")
