"""The limits of every field, and the way of a spec through JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.spec import (
    ChaosSpec,
    CheckpointSpec,
    ClusterSpec,
    DataSpec,
    EnvironmentSpec,
    GuardSpec,
    JobSpec,
    ModelSpec,
    Offload,
    OnBadNumbers,
    OptimizerName,
    OptimizerSpec,
    ParallelismSpec,
    Precision,
    RecoverySpec,
    ResourcesSpec,
    Schedule,
    SchedulingSpec,
    StorageSpec,
    TrackingSpec,
    TrainingSpec,
    WorkloadSpec,
    from_dict,
    to_dict,
)

PARTS = {
    "workload": WorkloadSpec, "model": ModelSpec, "data": DataSpec, "training": TrainingSpec, "resources": ResourcesSpec,
    "parallelism": ParallelismSpec, "optimizer": OptimizerSpec, "checkpoint": CheckpointSpec, "storage": StorageSpec,
    "tracking": TrackingSpec, "recovery": RecoverySpec, "guard": GuardSpec, "chaos": ChaosSpec, "environment": EnvironmentSpec,
    "cluster": ClusterSpec, "scheduling": SchedulingSpec,
}  # fmt: skip
SMALLEST: dict[str, dict[str, Any]] = {
    "workload": {"name": "w", "entrypoint": "m:C"},
    "model": {"name": "m"},
    "data": {"name": "d"},
    "training": {"max_steps": 10, "global_batch_size": 8, "micro_batch_size": 2},
}
"""What has no default."""


def smallest(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(SMALLEST)), **changes}


def changed(flag: str, value: object) -> JobSpec:
    """The smallest spec with one setting, given as Hydra gives it."""
    part, _, name = flag.partition(".")
    values = smallest()
    values[part] = {**values.get(part, {}), name: value} if name else value
    return from_dict(JobSpec, values)


def value_of(spec: JobSpec, flag: str) -> object:
    found: Any = spec
    for name in flag.split("."):
        found = getattr(found, name)
    return found


LIMITS: dict[str, tuple[list[Any], list[Any], str]] = {
    "training.max_steps": ([1, 10**9], [0, -1], "a whole number of at least 1"),
    "training.global_batch_size": ([1, 10**6], [0, -8], "a whole number of at least 1"),
    "training.micro_batch_size": ([1, 8], [0, -2], "a whole number of at least 1"),
    "training.log_interval_steps": ([1, 50], [0], "a whole number of at least 1"),
    "training.eval_interval_steps": ([0, 1], [-1], "0 or more"),
    "training.eval_samples": ([0, 1], [-1], "0 or more"),
    "training.ema_decay": ([0.0, 0.9999], [-0.1, 1.0, float("nan")], "0 (no average) up to, but not, 1"),
    "training.early_stopping_min_delta": ([0.0, 0.5], [-0.1, float("nan")], "0 or more"),
    "training.seed": ([0, 2**31], [-1], "0 or more"),
    "training.profile_steps": (
        [(), (1, 1), (3, 10)], [[1], [0, 1], [3, 2], [3, 11], [1, 2, 3]], "[] or the first and last of at most 10 steps, such as [3,5]",
    ),
    "training.gradient_clipping": ([0.0, 0.5], [-0.1, float("nan")], "0 or more"),
    "resources.num_workers": ([1, 1000], [0, -1], "a whole number of at least 1"),
    "resources.min_workers": ([0, 1], [-1, 2], "0 (all or none) to resources.num_workers=1"),
    "resources.cpus_per_worker": ([0.25, 64.0], [0.0, -1.0], "more than 0"),
    "resources.gpus_per_worker": ([0.0, 1.0], [-1.0, 0.5, 2.0, float("nan")], "0 or 1 (a rank drives one GPU)"),
    "resources.threads_per_worker": ([1, 8], [0], "at least 1"),
    "resources.max_workers_per_node": ([0, 1], [-1], "0 or more"),
    "parallelism.zero_stage": ([0, 1, 2, 3], [-1, 4], "0, 1, 2 or 3"),
    "parallelism.tensor_parallel_size": ([1, 2, 8], [0, -1], "at least 1"),
    "parallelism.sequence_parallel_size": ([1, 2, 8], [0, -1], "at least 1"),
    "parallelism.zero_hpz_partition_size": ([1], [0, -1], "at least 1"),
    "optimizer.lr": ([1e-9, 10.0], [0.0, -1e-3, float("nan")], "more than 0"),
    "optimizer.betas": ([(0.0, 0.0), (0.9, 0.999)], [(0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, 0.9, 0.9), ()], "two numbers in [0, 1)"),
    "optimizer.warmup_steps": ([0, 9], [-1], "0 or more"),
    "optimizer.min_lr_ratio": ([0.0, 1.0], [-0.1, 1.1], "from 0 to 1"),
    "optimizer.decay_share": ([0.01, 1.0], [0.0, -0.1, 1.1, float("nan")], "more than 0, up to 1"),
    "checkpoint.interval_steps": ([0, 1, 10**6], [-1], "0 (chosen by cost) or more"),
    "checkpoint.node_mtbf_hours": ([0.5, 1e6], [0.0, -1.0, math.inf], "more than 0"),
    "checkpoint.buffers": ([1, 8], [0], "at least 1"),
    "checkpoint.max_upload_mb_per_s": ([0.0, 0.5], [-1.0, math.inf], "0 (no limit) or more"),
    "checkpoint.keep_last": ([0, 1], [-1], "0 (all) or more"),
    "checkpoint.keep_every_hours": ([0.0, 0.5, 24.0], [-1.0, float("nan"), float("inf")], "0 or more"),
    "checkpoint.grace_minutes": ([0.0, 0.5], [-1.0, float("inf")], "0 or more"),
    "checkpoint.keep_best": ([0], [-1], "0 or more"),
    "storage.url": (
        ["", "s3://bucket", "s3://my.bucket-1/a/b", "file:///", "file:///tmp/x"],
        ["bucket", "http://x", "s3://", "s3:///a", "s3://Bucket", "file://host/x", "/tmp/x"],
        "s3://bucket/prefix, file:///absolute/folder, or empty",
    ),
    "storage.endpoint_url": (
        ["", "http://127.0.0.1:9000", "https://s3.example.org"], ["127.0.0.1:9000", "ftp://x", "http://", "s3://x"],
        "http://host:port or https://host:port, or empty",
    ),
    "recovery.max_restarts": ([0, 1], [-1], "0 or more"),
    "recovery.max_restarts_without_progress": ([0, 1], [-1], "0 or more"),
    "recovery.preemption_grace_s": ([0.5, 120.0], [0.0, -1.0, float("nan"), float("inf")], "more than 0"),
    "recovery.max_preemptions": ([0, 1], [-1], "0 or more"),
    "recovery.shrink_after_s": ([0.0, 60.0], [-1.0], "0 or more"),
    "recovery.grow_interval_s": ([0.0, 60.0], [-1.0], "0 or more"),
    "guard.max_skips": ([0, 1], [-1], "0 or more"),
    "guard.replica_check_steps": ([-1, 0, 50], [-2], "at least -1"),
    "guard.spike_factor": ([0, 10.0], [-1.0, float("nan"), float("inf")], "0 (never) or more"),
    "workload.entrypoint": (
        ["m:C", "a.b.c:My_2", "_m:_C"], ["", "m", "m:", ":C", "m.C", "m:C.D", "1m:C", "m:1C", "a/b:C", "m.py:C:D", "m:C "],
        "module:Class, for example my_module:MyWorkload",
    ),
    "workload.package": (["", "0f" * 32], ["x", "0F" * 32, "0" * 63], "a hash of 64 hexadecimal digits, or empty; it is set at submission"),
    "environment.max_package_mb": ([0.5, 1e4], [0.0, -1.0, float("nan"), float("inf")], "more than 0"),
    "name": (["", "a", "0-run", "a" * 40], ["A", "a_b", "-a", "a" * 41, "a b", "ü"], "up to 40 of a-z, 0-9 and '-'"),
}  # fmt: skip
"""Flag -> values at the limit that are taken, values beyond that are not, what the message says is allowed."""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RANK", "1", "any variable but those that the orchestrator sets itself"),
        ("RAY_ADDRESS", "x", "any variable but those that the orchestrator sets itself"),
        ("OMP_NUM_THREADS", 4, "threads are resources.threads_per_worker"),
        ("1A", "x", "a name of letters, digits and '_'"),
        ("DEBUG", True, "text or a number; true and false in quotes"),
        ("DEBUG", None, "text or a number"),
        ("HF_TOKEN", "hf_x", "no secret"),
        ("WANDB_API_KEY", "x", "no secret"),
        ("db_password", "x", "no secret"),
    ],
)
def test_environment_variables_that_cannot_be(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EnvironmentSpec(variables={name: value})
    assert f"environment.variables.{name}=" in str(caught.value) and said in str(caught.value)
    assert "hf_x" not in str(caught.value)


def test_environment_variables_that_can_be() -> None:
    assert EnvironmentSpec(variables={"NCCL_DEBUG": "INFO", "TOKENIZERS_PARALLELISM": "false", "N": 3}).texts["N"] == "3"


@pytest.mark.parametrize(("key", "value"), [("zone", "a b"), ("a b", "c"), ("zone", ""), ("zone", True), ("x/y/z", "a"), ("n", "a" * 64)])
def test_labels_that_no_node_can_have(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"resources.node_labels.{key}={value} is not possible: allowed is a name of letters")):
        ResourcesSpec(node_labels={"zone": "a", "ray.io/accelerator-type": "H100", "n": 3, key: value})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("1A", "names of variables of your environment"),
        ("HF-TOKEN", "names of variables of your environment"),
        ("RAY_AUTH_TOKEN", "any variable but those that the orchestrator sets itself"),
        ("MODE", "what is not set by environment.variables.MODE too"),
    ],
)
def test_secrets_that_cannot_be_named(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EnvironmentSpec(variables={"MODE": "x"}, secrets=("HF_TOKEN", name))
    assert f"environment.secrets={name} is not possible" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(("uri", "shown"), [
    ("http://ann:hunter2@host:5000/x", "http://***@host:5000/x"), ("https://ann:hun@ter2@host", "https://***@host"),
    ("HTTPS://hunter2@host", "HTTPS://***@host"), ("postgresql://ann:hunter2@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
])  # fmt: skip
def test_a_password_is_refused_in_an_address_that_everybody_sees(uri: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrackingSpec(uri=uri)
    said = str(caught.value)
    assert f"tracking.uri={shown} is not possible" in said and "MLFLOW_TRACKING_PASSWORD" in said and "~/.pgpass" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("uri", [
    "", "databricks", "databricks://profile:prefix", "http://host:5000/a@b", "sqlite:////home/a:b@c/mlflow.db", "postgresql://ann@db/mlflow",
])  # fmt: skip
def test_addresses_without_a_password(uri: str) -> None:
    assert TrackingSpec(uri=uri).uri == uri


@pytest.mark.parametrize("requirement", ["", "-e .", "a b", "a>=", "git+https://x", "a; rm"])
def test_requirements_that_cannot_be(requirement: str) -> None:
    with pytest.raises(ConfigError, match=r"^environment\.requirements="):
        EnvironmentSpec(requirements=(requirement,))


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, (good, _, _) in LIMITS.items() for value in good])
def test_what_is_within_the_limits_is_taken(flag: str, value: object) -> None:
    assert value_of(changed(flag, value), flag) == value


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, (_, bad, _) in LIMITS.items() for value in bad])
def test_what_is_beyond_the_limits_is_refused_with_flag_value_and_what_is_allowed(flag: str, value: object) -> None:
    said = f"{flag}={value} is not possible: allowed is {LIMITS[flag][2]}."
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        changed(flag, value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("optimizer.lr", float("inf")),
        ("optimizer.eps", -1.0),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.momentum", 2.0),
        ("training.gradient_clipping", float("inf")),
        ("storage.max_attempts", 0),
        ("storage.connect_timeout_s", 0.0),
        ("storage.read_timeout_s", -1.0),
        ("tracking.drain_timeout_s", -1.0),
        ("tracking.registered_model", "a/b"),
        ("recovery.backoff_s", -1.0),
        ("cluster.num_cpus", -3),
        ("cluster.num_gpus", -2),
        ("cluster.idle_timeout_s", -1.0),
        ("tracking.tags", 3),
        ("model.options", 3),
    ],
)
def test_nonsense_is_refused(flag: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(flag)}"):
        changed(flag, value)


@pytest.mark.parametrize(
    "stages", [((10, 4), (10, 6)), ((10, 4), (20, 4)), ((10, 8),), ((10, 4), (20, 3)), ((0, 4),), ((10, 0),), ((10,),), ((10, 4, 1),)]
)
def test_a_batch_warm_up_grows_towards_the_batch(stages: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError, match=r"^training\.batch_size_warmup=\[\[.*\]\] is not possible: allowed is "):
        TrainingSpec(max_steps=9, global_batch_size=8, micro_batch_size=2, batch_size_warmup=stages)


def test_a_batch_warm_up_is_the_same_after_json() -> None:
    training = TrainingSpec(max_steps=9, global_batch_size=8, micro_batch_size=2, batch_size_warmup=((10, 2), (20, 4)))
    assert from_dict(TrainingSpec, json.loads(json.dumps(to_dict(training)))) == training
    with pytest.raises(ConfigError, match=r"^training\.batch_size_warmup=8 is not possible: allowed is a list such as"):
        changed("training.batch_size_warmup", [8])


def test_infinitely_many_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"resources\.gpus_per_worker=inf"):
        ResourcesSpec(gpus_per_worker=float("inf"))


def test_the_warm_up_is_shorter_than_the_training() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_steps=10 is not possible: allowed is less than training\.max_steps=10\."):
        changed("optimizer.warmup_steps", 10)


@pytest.mark.parametrize(
    ("part", "stage", "said"),
    [
        ("optimizer", 0, "parallelism.zero_stage=1 or parallelism.zero_stage=2 or parallelism.zero_stage=3"),
        ("parameters", 0, "parallelism.zero_stage=3"),
        ("parameters", 1, "parallelism.zero_stage=3"),
        ("parameters", 2, "parallelism.zero_stage=3"),
    ],
)
def test_only_what_zero_partitions_can_leave_the_device(part: str, stage: int, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^parallelism\.offload_{part}=cpu .* none at parallelism\.zero_stage={stage}, .*{said}\.$"):
        ParallelismSpec(zero_stage=stage, **{f"offload_{part}": Offload.cpu})
    ParallelismSpec(zero_stage=3, **{f"offload_{part}": Offload.cpu})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zero_stage": 2}, r"parallelism\.offload_optimizer=nvme .* none or cpu at parallelism\.zero_stage=2, because .* at ZeRO 3 only"),
        ({"offload_optimizer": Offload.none, "offload_parameters": Offload.nvme}, r"parallelism\.offload_parameters=nvme .* none or cpu, "),
        ({"tensor_parallel_size": 2}, r"parallelism\.tensor_parallel_size=2 .* 1 at parallelism\.offload_optimizer=nvme, because "),
        ({"zero_hpz_partition_size": 2}, r"parallelism\.zero_hpz_partition_size=2 .* 1 at parallelism\.offload_optimizer=nvme, because "),
        ({"nvme_path": ""}, r"parallelism\.nvme_path= .* an absolute path without '\.\.', .*, at parallelism\.offload_optimizer=nvme\."),
        ({"nvme_path": "scratch"}, r"parallelism\.nvme_path=scratch .* an absolute path without '\.\.', "),
        ({"nvme_path": "/disk/../etc"}, r"parallelism\.nvme_path=/disk/\.\./etc .* an absolute path without '\.\.', "),
    ],
)
def test_state_lies_on_a_disk_only_where_that_is_proven(changes: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {"zero_stage": 3, "offload_optimizer": Offload.nvme, "nvme_path": "/disk"}
    ParallelismSpec(**asked)
    with pytest.raises(ConfigError, match=f"^{said}"):
        ParallelismSpec(**{**asked, **changes})


def test_an_average_in_memory_is_refused_beside_state_on_a_disk() -> None:
    on_disk = {"zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": "/disk"}
    said = r"^training\.ema_decay=0\.9 .* allowed is 0 at parallelism\.offload_optimizer=nvme, because "
    with pytest.raises(ConfigError, match=said):
        from_dict(JobSpec, smallest(parallelism=on_disk, training={**SMALLEST["training"], "ema_decay": 0.9}))
    from_dict(JobSpec, smallest(parallelism=on_disk))


def test_zero_plus_plus_is_refused_where_it_does_nothing_or_cannot_run() -> None:
    for name, value in (("zero_hpz_partition_size", 2), ("zero_quantized_weights", True), ("zero_quantized_gradients", True)):
        for stage in (0, 1, 2):
            said = rf"^parallelism\.{name}={value} .* at parallelism\.zero_stage={stage}, .* ZeRO 3 only\.$"
            with pytest.raises(ConfigError, match=said):
                ParallelismSpec(zero_stage=stage, **{name: value})
        parallelism = {"zero_stage": 3, name: value}
        assert from_dict(JobSpec, smallest(parallelism=parallelism, resources={"gpus_per_worker": 1}))
        if value is True:
            with pytest.raises(ConfigError, match=rf"^parallelism\.{name}=True .* a CUDA op; .*resources\.gpus_per_worker=1\.$"):
                from_dict(JobSpec, smallest(parallelism=parallelism))
    with pytest.raises(ConfigError, match=r"^parallelism\.zero_hpz_partition_size=2 .* 1 at parallelism\.tensor_parallel_size=2, "):
        ParallelismSpec(zero_stage=3, zero_hpz_partition_size=2, tensor_parallel_size=2)


def test_tensor_parallelism_is_refused_where_its_norm_would_be_wrong() -> None:
    at_zero_0 = {"parallelism": {"zero_stage": 0, "tensor_parallel_size": 2}}
    for precision, gpus, good in (("fp32", 1, True), ("auto", 0, True), ("auto", 1, False), ("bf16", 0, False), ("fp16", 0, False)):
        training = {**SMALLEST["training"], "precision": precision}
        values = smallest(training=training, resources={"gpus_per_worker": gpus}, **at_zero_0)
        if good:
            from_dict(JobSpec, values)
            continue
        with pytest.raises(ConfigError, match=r"^parallelism\.tensor_parallel_size=2 .* 16 bits at parallelism\.zero_stage=0"):
            from_dict(JobSpec, values)


@pytest.mark.parametrize(
    ("size", "together", "said"),
    [
        (4, 1, "a divisor of model.options.num_heads=6: 1, 2, 3, 6."),
        (3, 1, "a divisor of data.options.block_size=16: 1, 2, 4, 8, 16."),
        (2, 2, "a divisor of model.options.num_heads=6 / parallelism.tensor_parallel_size=2: 1, 3."),
    ],
)
def test_positions_and_heads_must_be_shared_evenly(size: int, together: int, said: str) -> None:
    def asked(size: int) -> JobSpec:
        options = {"model": {"name": "m", "options": {"num_heads": 6}}, "data": {"name": "d", "options": {"block_size": 16}}}
        return from_dict(JobSpec, smallest(parallelism={"sequence_parallel_size": size, "tensor_parallel_size": together}, **options))

    with pytest.raises(ConfigError, match=rf"^parallelism\.sequence_parallel_size={size} is not possible: allowed is {re.escape(said)}$"):
        asked(size)
    asked(1)


@pytest.mark.parametrize("other", ["pipeline_parallel_size", "expert_parallel_size"])
def test_sequence_parallelism_stands_apart_from_pipelines_and_experts(other: str) -> None:
    with pytest.raises(ConfigError, match=r"^parallelism\.\w+=2 is not possible: allowed is 1 at parallelism\.\w+=2, because "):
        ParallelismSpec(**{"sequence_parallel_size": 2, other: 2})


def test_products_that_are_added_up_in_place_cannot_be_kept() -> None:
    values = {"parallelism": {"tensor_parallel_size": 2}}
    for how in ("none", "full"):
        from_dict(JobSpec, smallest(**values, training={**SMALLEST["training"], "activation_checkpointing": how}))
    said = r"^training\.activation_checkpointing=selective is not possible: allowed is none or full at parallelism\.tensor_parallel_size=2"
    with pytest.raises(ConfigError, match=said):
        from_dict(JobSpec, smallest(**values, training={**SMALLEST["training"], "activation_checkpointing": "selective"}))


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_what_looks_at_whole_matrices_is_refused_where_they_are_cut(name: str) -> None:
    def asked(**parallelism: Any) -> JobSpec:
        return from_dict(JobSpec, smallest(optimizer={"name": name}, parallelism=parallelism))

    assert asked(zero_stage=0)
    with pytest.raises(ConfigError, match=rf"^parallelism\.tensor_parallel_size=2 .* 1 with optimizer\.name={name}, which looks at whole"):
        asked(zero_stage=0, tensor_parallel_size=2)
    if name == "muon":
        assert asked(zero_stage=3, offload_parameters="cpu")
        with pytest.raises(ConfigError, match=r"^parallelism\.offload_optimizer=cpu .* none with optimizer\.name=muon, "):
            asked(zero_stage=2, offload_optimizer="cpu")
        return
    for stage in (1, 2, 3):
        said = rf"^optimizer\.name=adafactor .* muon at parallelism\.zero_stage={stage}, .*choose parallelism\.zero_stage=0\.$"
        with pytest.raises(ConfigError, match=said):
            asked(zero_stage=stage)


def test_dealing_experts_out_is_refused_where_the_norm_or_the_state_would_be_wrong() -> None:
    for stage in range(4):
        ParallelismSpec(zero_stage=stage, expert_parallel_size=2)
    for other in ("tensor_parallel_size", "pipeline_parallel_size", "sequence_parallel_size"):
        with pytest.raises(ConfigError, match=rf"^parallelism\.{other}=2 is not possible: allowed is 1 at .*expert_parallel_size=2"):
            ParallelismSpec(zero_stage=1, expert_parallel_size=2, **{other: 2})
    values = smallest(training={**SMALLEST["training"], "precision": "bf16"}, parallelism={"zero_stage": 0, "expert_parallel_size": 2})
    with pytest.raises(ConfigError, match=r"^parallelism\.expert_parallel_size=2 .* 16 bits at parallelism\.zero_stage=0"):
        from_dict(JobSpec, values)


def test_a_pipeline_is_refused_where_its_gradients_or_its_norm_would_be_wrong() -> None:
    for stage in (2, 3):
        with pytest.raises(ConfigError, match=rf"^parallelism\.pipeline_parallel_size=2 .*\.zero_stage={stage}, .*choose ZeRO 0 or 1\.$"):
            ParallelismSpec(zero_stage=stage, pipeline_parallel_size=2)
    for zero_stage, precision, good in ((0, "fp32", True), (0, "bf16", True), (0, "auto", True), (1, "fp16", True), (0, "fp16", False)):
        training, parallelism = {**SMALLEST["training"], "precision": precision}, {"zero_stage": zero_stage, "pipeline_parallel_size": 2}
        values = smallest(training=training, parallelism=parallelism, resources={"gpus_per_worker": 1})
        if good:
            from_dict(JobSpec, values)
            continue
        with pytest.raises(ConfigError, match=r"^parallelism\.pipeline_parallel_size=2 .* fp16 at parallelism\.zero_stage=0, where a tied"):
            from_dict(JobSpec, values)


@pytest.mark.parametrize("other", ["tensor", "sequence", "expert"])
def test_a_pipeline_goes_with_data_parallelism_only(other: str) -> None:
    with pytest.raises(ConfigError, match=rf"(pipeline|{other})_parallel_size=2 .* because "):
        ParallelismSpec(zero_stage=1, pipeline_parallel_size=2, **{f"{other}_parallel_size": 2})


FLOAT8 = {"float8": "tensorwise", "precision": "bf16"}


def in_float8(training: dict[str, Any], gpus: int = 1, **parallelism: int) -> JobSpec:
    spec = smallest(resources={"gpus_per_worker": gpus}, parallelism=parallelism)
    return from_dict(JobSpec, {**spec, "training": {**spec["training"], **training}})


def test_float8_is_taken_on_gpus_and_emulated_anywhere() -> None:
    for training, gpus in ((FLOAT8, 1), ({"float8": "rowwise"}, 1), (FLOAT8 | {"float8_emulated": True}, 0)):
        assert in_float8(training, gpus).training.float8.value == training["float8"]


@pytest.mark.parametrize(
    ("training", "gpus", "parallelism", "said"),
    [
        (FLOAT8, 0, {}, "none without GPUs; to see on a CPU what it does to a loss choose training.float8_emulated=true "),
        (FLOAT8 | {"precision": "fp16"}, 1, {}, "none at training.precision=fp16: what is not in fp8 must be in bf16"),
        ({"float8": "tensorwise", "float8_emulated": True}, 0, {}, "none at training.precision=auto: "),
        (FLOAT8, 1, {"tensor_parallel_size": 2}, "none at parallelism.tensor_parallel_size=2, where DeepSpeed puts layers of its own"),
        (FLOAT8, 1, {"expert_parallel_size": 2}, "none at parallelism.expert_parallel_size=2, where DeepSpeed puts layers of its own"),
    ],
)  # fmt: skip
def test_float8_is_refused_where_it_cannot_be(training: dict[str, Any], gpus: int, parallelism: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^training.float8=tensorwise is not possible: allowed is {re.escape(said)}"):
        in_float8(training, gpus, **parallelism)


def test_there_is_nothing_to_emulate_without_float8() -> None:
    with pytest.raises(ConfigError, match=r"^training\.float8_emulated=true is not possible: allowed is false at training\.float8=none"):
        in_float8({"float8_emulated": True})


def test_the_decay_of_wsd_begins_after_the_warm_up() -> None:
    values = {"schedule": "wsd", "warmup_steps": 4, "decay_share": 0.7}
    said = r"optimizer\.decay_share=0.7 is not possible: allowed is at most 0.6, what optimizer.warmup_steps=4 leaves"
    with pytest.raises(ConfigError, match=said):
        from_dict(JobSpec, smallest(optimizer=values))
    assert from_dict(JobSpec, smallest(optimizer={**values, "decay_share": 0.6}))
    assert from_dict(JobSpec, smallest(optimizer={**values, "schedule": "cosine"}))


@pytest.mark.parametrize("part", [*PARTS.values(), JobSpec])
def test_specs_are_frozen_and_take_keywords_only(part: Any) -> None:
    assert part.__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(part))


def test_every_part_is_a_group_of_the_job() -> None:
    assert {f.name for f in dataclasses.fields(JobSpec)} == {*PARTS, "name"}


# wrong kinds of values


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("training.max_steps", "four", "training.max_steps=four is not possible: allowed is a whole number."),
        ("training.max_steps", 1.5, "training.max_steps=1.5 is not possible: allowed is a whole number."),
        ("training.max_steps", True, "training.max_steps=True is not possible: allowed is a whole number."),
        ("training.max_steps", None, "training.max_steps=None is not possible: allowed is a whole number."),
        ("training.max_steps", [1], "training.max_steps=[1] is not possible: allowed is a whole number."),
        ("optimizer.lr", "high", "optimizer.lr=high is not possible: allowed is a number."),
        ("optimizer.lr", False, "optimizer.lr=False is not possible: allowed is a number."),
        ("optimizer.betas", 0.9, "optimizer.betas=0.9 is not possible: allowed is a list such as [0.9,0.95]."),
        ("optimizer.betas", [0.9, "x"], "optimizer.betas=x is not possible: allowed is a number."),
        ("tracking.enabled", "yes", "tracking.enabled=yes is not possible: allowed is true or false."),
        ("tracking.enabled", 1, "tracking.enabled=1 is not possible: allowed is true or false."),
        ("storage.url", 3, "storage.url=3 is not possible: allowed is text."),
        ("training", 3, "training=3 is not possible: training is a group of settings."),
        ("training.precision", "bf61", "training.precision=bf61 is not possible: allowed is auto, fp32, bf16, fp16. Did you mean 'bf16'?"),
        ("training.precision", None, "training.precision=None is not possible: allowed is auto, fp32, bf16, fp16."),
        ("parallelism.offload_optimizer", "gpu", "parallelism.offload_optimizer=gpu is not possible: allowed is none, cpu, "
                                                 "nvme. Did you mean 'cpu'?"),
        ("optimizer.name", "adam", "optimizer.name=adam is not possible: allowed is adamw, sgd, lion, muon, adafactor. "
                                   "Did you mean 'adamw'?"),
        ("optimizer.name", "zzz", "optimizer.name=zzz is not possible: allowed is adamw, sgd, lion, muon, adafactor."),
        ("optimizer.name", "LAMB", "optimizer.name=LAMB is not possible: allowed is adamw, sgd, lion, muon, adafactor. LAMB scales each "
                                   "layer by the norm of all its weights, of which a rank holds a part under ZeRO."),
        ("optimizer.schedule", "cosin", "optimizer.schedule=cosin is not possible: allowed is constant, linear, cosine, wsd. "
                                        "Did you mean 'cosine'?"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(flag: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(flag, value)
    assert str(caught.value) == said


def test_a_whole_number_is_a_number() -> None:
    lr = changed("optimizer.lr", 1).optimizer.lr
    assert (lr, type(lr)) == (1.0, float)


def test_an_unknown_key_is_refused_with_all_known_and_the_nearest() -> None:
    known = "interval_steps, node_mtbf_hours, buffers, max_upload_mb_per_s, peer_copy, keep_last"
    known += ", keep_every_hours, grace_minutes, keep_best"
    with pytest.raises(ConfigError) as caught:
        changed("checkpoint.keep_lst", 3)
    assert str(caught.value) == f"checkpoint.keep_lst is no setting. Known here: {known}. Did you mean 'keep_last'?"
    with pytest.raises(ConfigError, match=r"^trainin is no setting\. .* Did you mean 'training'\?$"):
        from_dict(JobSpec, smallest(trainin={}))


@pytest.mark.parametrize("flag", ["training", "training.max_steps"])
def test_a_missing_key_is_named(flag: str) -> None:
    part, _, name = flag.partition(".")
    values = smallest()
    del (values[part] if name else values)[name or part]
    with pytest.raises(ConfigError, match=rf"^{re.escape(flag)} is missing"):
        from_dict(JobSpec, values)


@pytest.mark.parametrize("layout", [{"zero_stage": 3}, {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_copies_are_compared_only_where_ranks_hold_whole_ones(layout: dict[str, int]) -> None:
    values = {**smallest(), "parallelism": layout, "guard": {"replica_check_steps": 50}}
    name, size = next(iter(layout.items()))
    with pytest.raises(ConfigError, match=rf"^guard.replica_check_steps=50 .* 0 or -1 at parallelism.{name}={size}"):
        from_dict(JobSpec, values)
    assert from_dict(JobSpec, {**values, "guard": {}}).replica_check_steps == 0


def test_copies_are_compared_where_there_are_two() -> None:
    def every(workers: int, **guard: int) -> int:
        return from_dict(JobSpec, {**smallest(), "resources": {"num_workers": workers}, "guard": guard}).replica_check_steps

    assert (every(1), every(2), every(2, replica_check_steps=0), every(1, replica_check_steps=4)) == (0, 50, 0, 4)


# round trip

names = st.text("abcxyz019.-_", min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.text(max_size=3)
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2), max_leaves=3)
options = st.dictionaries(keys, nested, max_size=2)
counts = st.integers(1, 10**6)
zero_or_more = st.integers(0, 10**6)
positive = st.floats(1e-9, 1e9)
job_specs = st.builds(
    JobSpec,
    workload=st.builds(WorkloadSpec, name=names, entrypoint=st.sampled_from(["m:C", "a.b:C_1"]), options=options, code_dir=names),
    model=st.builds(ModelSpec, name=names, options=options),
    data=st.builds(DataSpec, name=names, options=options),
    training=st.builds(
        TrainingSpec, max_steps=st.integers(100, 10**6), global_batch_size=counts, micro_batch_size=counts,
        precision=st.sampled_from(Precision), gradient_clipping=positive, eval_interval_steps=zero_or_more, seed=zero_or_more,
    ),
    name=st.sampled_from(["", "a", "run-7"]),
    resources=st.builds(
        ResourcesSpec, num_workers=counts, gpus_per_worker=st.sampled_from([0, 0.0, 1, 1.0]), cpus_per_worker=positive | counts,
        threads_per_worker=counts, max_workers_per_node=zero_or_more,
    ),
    parallelism=st.builds(ParallelismSpec, zero_stage=st.integers(0, 3))
    | st.builds(ParallelismSpec, zero_stage=st.integers(1, 3), tensor_parallel_size=counts)
    | st.builds(ParallelismSpec, zero_stage=st.integers(1, 2), tensor_parallel_size=counts, sequence_parallel_size=counts)
    | st.builds(ParallelismSpec, zero_stage=st.just(1), pipeline_parallel_size=counts)
    | st.builds(
        ParallelismSpec, zero_stage=st.just(3), offload_optimizer=st.sampled_from(Offload), nvme_path=st.just("/disk"),
        offload_parameters=st.sampled_from([Offload.none, Offload.cpu]),
    ),
    optimizer=st.builds(
        OptimizerSpec, name=st.sampled_from([OptimizerName.adamw, OptimizerName.sgd, OptimizerName.lion]), lr=positive,
        betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        schedule=st.sampled_from(Schedule), warmup_steps=st.integers(0, 90), min_lr_ratio=st.floats(0, 1),
    ),
    checkpoint=st.builds(CheckpointSpec, interval_steps=counts, keep_last=zero_or_more),
    storage=st.builds(StorageSpec, url=st.sampled_from(["", "s3://bucket/a", "file:///x"]), read_timeout_s=positive),
    tracking=st.builds(TrackingSpec, enabled=st.booleans(), uri=st.text(max_size=5), tags=options),
    recovery=st.builds(RecoverySpec, max_restarts=zero_or_more, backoff_s=positive),
    environment=st.builds(
        EnvironmentSpec,
        variables=st.sampled_from([{}, {"MODE": "x", "N": 3}]),
        requirements=st.sampled_from([(), ("numpy>=1,<9", "a[b]")]),
        max_package_mb=positive,
    ),
    guard=st.builds(GuardSpec, on_bad_numbers=st.sampled_from(OnBadNumbers), max_skips=zero_or_more, spike_factor=positive),
    cluster=st.builds(ClusterSpec, address=st.text(max_size=5), num_gpus=st.integers(-1, 8)),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(job_specs)
def test_a_spec_is_the_same_after_json(spec: JobSpec) -> None:
    assert from_dict(JobSpec, json.loads(json.dumps(to_dict(spec)))) == spec


def test_a_part_goes_through_json_alone() -> None:
    part = OptimizerSpec(name=OptimizerName.sgd, betas=(0.5, 0.75), schedule=Schedule.linear)
    values = to_dict(part)
    assert (values["name"], values["betas"], values["schedule"]) == ("sgd", [0.5, 0.75], "linear")
    assert from_dict(OptimizerSpec, values) == part


def test_json_of_a_spec_holds_no_python_objects() -> None:
    def leaves(value: object) -> list[object]:
        if isinstance(value, dict | list):
            return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in leaves(item)]
        return [value]

    found = leaves(to_dict(from_dict(JobSpec, smallest())))
    assert found
    assert not [leaf for leaf in found if isinstance(leaf, enum.Enum | tuple) or type(leaf) not in (str, int, float, bool)]


def test_what_is_left_out_has_its_default() -> None:
    spec = from_dict(JobSpec, smallest())
    assert spec.optimizer == OptimizerSpec()
    assert spec.cluster == ClusterSpec()
    assert spec.training.precision is Precision.auto


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size", "sequence_parallel_size", "expert_parallel_size"])
def test_what_is_not_proven_where_ranks_share_a_model_is_refused(name: str) -> None:
    def asked(size: int, **training: Any) -> JobSpec:
        return from_dict(JobSpec, smallest(training={**SMALLEST["training"], **training}, parallelism={name: size}))

    asked(1, compile=True)
    with pytest.raises(ConfigError, match=rf"^training\.compile=true is not possible: allowed is false at parallelism\.{name}=2"):
        asked(2, compile=True)
    if name == "pipeline_parallel_size":
        with pytest.raises(ConfigError, match=r"^training\.batch_size_warmup=\[\[4, 1\]\] .* at parallelism\.pipeline_parallel_size=2"):
            asked(2, batch_size_warmup=[[4, 1]])
