"""Which worlds can train a batch, and what DeepSpeed is told of them."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import LayoutError
from orchestrator.layout import Layout, deepspeed_config, layout_for, legal, legal_world_sizes, smaller_micro_batch
from orchestrator.spec import (
    DataSpec,
    JobSpec,
    ModelSpec,
    Offload,
    OptimizerName,
    OptimizerSpec,
    ParallelismSpec,
    Precision,
    ResourcesSpec,
    TrainingSpec,
    WorkloadSpec,
)


def job(batch: int, micro: int, workers: int = 1, zero_stage: int = 1) -> JobSpec:
    return JobSpec(
        workload=WorkloadSpec(name="w", entrypoint="m:C"),
        model=ModelSpec(name="m"),
        data=DataSpec(name="d"),
        training=TrainingSpec(max_steps=10, global_batch_size=batch, micro_batch_size=micro),
        resources=ResourcesSpec(num_workers=workers),
        parallelism=ParallelismSpec(zero_stage=zero_stage),
    )


batches = st.tuples(st.integers(1, 12), st.integers(1, 60)).map(lambda pair: (pair[0] * pair[1], pair[0]))
"""(global batch, micro batch that divides it)"""


@settings(deadline=None)
@given(batches, st.integers(0, 10))
def test_a_smaller_micro_batch_makes_the_same_batch_on_the_same_workers(batch_and_micro: tuple[int, int], which: int) -> None:
    batch, micro = batch_and_micro
    worlds = [layout.world_size for layout in legal(job(batch, micro))]
    spec = job(batch, micro, workers=worlds[which % len(worlds)])
    smaller = smaller_micro_batch(spec)
    if smaller is None:
        assert micro == 1
        return
    before, after = layout_for(spec), layout_for(smaller)
    assert (after.global_batch_size, after.world_size) == (before.global_batch_size, before.world_size)
    assert after.micro_batch_size <= before.micro_batch_size / 2
    assert after.gradient_accumulation_steps * after.micro_batch_size == before.gradient_accumulation_steps * before.micro_batch_size


@settings(deadline=None)
@given(batches, st.integers(0, 3))
def test_every_legal_layout_makes_the_batch_and_worlds_ascend(batch_and_micro: tuple[int, int], zero_stage: int) -> None:
    batch, micro = batch_and_micro
    layouts = legal(job(batch, micro, zero_stage=zero_stage))
    worlds = [layout.world_size for layout in layouts]
    assert worlds == sorted(set(worlds))
    for layout in layouts:
        assert layout.micro_batch_size * layout.gradient_accumulation_steps * layout.world_size == batch == layout.global_batch_size
        assert (layout.micro_batch_size, layout.zero_stage) == (micro, zero_stage)


@settings(deadline=None)
@given(batches)
def test_no_world_that_can_is_left_out(batch_and_micro: tuple[int, int]) -> None:
    batch, micro = batch_and_micro
    worlds = {layout.world_size for layout in legal(job(batch, micro))}
    assert worlds == {world for world in range(1, batch + 1) if batch % (micro * world) == 0}


@settings(deadline=None)
@given(batches, st.integers(1, 80))
def test_the_asked_for_world_is_given_or_the_possible_ones_are_listed(batch_and_micro: tuple[int, int], workers: int) -> None:
    spec = job(*batch_and_micro, workers=workers)
    worlds = [layout.world_size for layout in legal(spec)]
    if workers in worlds:
        assert layout_for(spec).world_size == workers
        return
    with pytest.raises(LayoutError) as caught:
        layout_for(spec)
    said = str(caught.value)
    assert said.startswith(f"resources.num_workers={workers} cannot share training.global_batch_size={batch_and_micro[0]} ")
    listed = [int(number) for number in re.findall(r"\d+", said.rpartition("among")[2])]
    assert listed == worlds[:12]
    assert said.endswith(" ....") == (len(worlds) > 12)


def elastic(batch: int, micro: int, workers: int, least: int, **parallelism: int) -> JobSpec:
    spec = job(batch, micro)
    resources = ResourcesSpec(num_workers=workers, min_workers=least)
    return dataclasses.replace(spec, resources=resources, parallelism=ParallelismSpec(**parallelism))


@pytest.mark.parametrize(
    "spec, sizes",
    [
        (elastic(24, 2, 12, 0), (12,)),
        (elastic(24, 2, 12, 12), (12,)),
        (elastic(24, 2, 12, 1), (1, 2, 3, 4, 6, 12)),
        (elastic(24, 2, 6, 3), (3, 4, 6)),
        (elastic(24, 2, 12, 5), (6, 12)),  # 5 workers cannot share the batch
        (elastic(24, 2, 8, 2, tensor_parallel_size=2), (2, 4, 6, 8)),
        (elastic(24, 2, 8, 3, zero_stage=1, pipeline_parallel_size=2), (4, 6, 8)),
        (elastic(24, 2, 4, 1, zero_stage=3, zero_hpz_partition_size=2), (2, 4)),
    ],
)
def test_a_job_that_may_shrink_has_the_legal_sizes_from_its_least_on(spec: JobSpec, sizes: tuple[int, ...]) -> None:
    assert legal_world_sizes(spec) == sizes


@pytest.mark.parametrize(
    "spec, said",
    [
        (elastic(24, 2, 12, 7), "of the smaller numbers 1, 2, 3, 4, 6 are legal. Choose at most 6, or 0 (all or none)."),
        (elastic(24, 2, 2, 1, tensor_parallel_size=2), "no smaller number is legal. Choose 0 (all or none)."),
    ],
)
def test_a_least_size_with_nothing_to_shrink_to_is_refused_with_the_legal_ones(spec: JobSpec, said: str) -> None:
    with pytest.raises(LayoutError) as caught:
        legal_world_sizes(spec)
    asked = spec.resources
    assert str(caught.value) == (
        f"resources.min_workers={asked.min_workers} leaves nothing to shrink to from resources.num_workers={asked.num_workers}: {said}"
    )


@settings(deadline=None)
@given(batches, st.integers(1, 80), st.integers(0, 80))
def test_every_size_of_a_job_that_may_shrink_is_legal_and_the_full_one_is_the_last(
    batch_and_micro: tuple[int, int], workers: int, least: int
) -> None:
    whole = job(*batch_and_micro, workers=workers)
    worlds = [layout.world_size for layout in legal(whole)]
    if workers not in worlds or least > workers:
        return
    spec = dataclasses.replace(whole, resources=ResourcesSpec(num_workers=workers, min_workers=least))
    expected = [world for world in worlds if max(least, 1) <= world <= workers]
    if least in (0, workers):
        assert legal_world_sizes(spec) == (workers,)
    elif expected == [workers]:
        with pytest.raises(LayoutError):
            legal_world_sizes(spec)
    else:
        assert list(legal_world_sizes(spec)) == expected


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_a_micro_batch_that_does_not_divide_is_refused_with_those_that_do(batch: int, micro: int) -> None:
    if batch % micro == 0:
        assert legal(job(batch, micro))
        return
    with pytest.raises(LayoutError) as caught:
        legal(job(batch, micro))
    said = str(caught.value)
    assert said.startswith(f"training.micro_batch_size={micro} does not divide training.global_batch_size={batch}. ")
    assert all(batch % int(number) == 0 for number in re.findall(r"\d+", said.rpartition("batches:")[2]))


def test_the_words_of_both_refusals() -> None:
    with pytest.raises(LayoutError) as caught:
        layout_for(job(12, 2, workers=5))
    assert str(caught.value) == (
        "resources.num_workers=5 cannot share training.global_batch_size=12 in micro batches of 2: "
        "6 micro batches per step need a number of workers among 1, 2, 3, 6."
    )
    with pytest.raises(LayoutError) as caught:
        layout_for(job(12, 5))
    assert str(caught.value) == (
        "training.micro_batch_size=5 does not divide training.global_batch_size=12. Possible micro batches: 1, 2, 3, 4, 6, 12."
    )
    assert caught.value.exit_code == 2


def test_a_long_list_is_cut() -> None:
    with pytest.raises(LayoutError, match=r"among 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 18 \.\.\."):
        layout_for(job(360, 1, workers=7))


@settings(deadline=None)
@given(batches, st.integers(1, 8))
def test_tensor_parallel_ranks_multiply_the_world_and_share_their_samples(batch_and_micro: tuple[int, int], together: int) -> None:
    spec = job(*batch_and_micro)
    divided = dataclasses.replace(spec, parallelism=ParallelismSpec(tensor_parallel_size=together))
    for whole, layout in zip(legal(spec), legal(divided), strict=True):
        assert layout.world_size == whole.world_size * together
        assert layout.data_parallel_size == whole.world_size
        assert layout.global_batch_size == whole.global_batch_size
        places = [(layout.data_parallel_rank(rank), layout.tensor_parallel_rank(rank)) for rank in range(layout.world_size)]
        assert places == [(share, part) for share in range(layout.data_parallel_size) for part in range(together)]


@settings(deadline=None)
@given(batches, st.integers(1, 4), st.integers(1, 3))
def test_ranks_of_a_sequence_are_neighbours_with_the_same_samples(batch_and_micro: tuple[int, int], size: int, together: int) -> None:
    asked = ParallelismSpec(sequence_parallel_size=size, tensor_parallel_size=together)
    spec = dataclasses.replace(job(*batch_and_micro), parallelism=asked)
    for layout in legal(spec):
        assert layout.sequence_data_parallel_size * together == layout.world_size
        ranks = range(layout.world_size)
        places = [(layout.data_parallel_rank(r), layout.sequence_parallel_rank(r), layout.tensor_parallel_rank(r)) for r in ranks]
        assert places == list(itertools.product(range(layout.data_parallel_size), range(size), range(together)))
        assert [layout.sequence_data_parallel_rank(rank) for rank in ranks] == [rank // together for rank in ranks]
        config = deepspeed_config(spec, layout, Precision.fp32)  # to DeepSpeed a slice is a sample
        assert config["train_batch_size"] == layout.micro_batch_size * layout.gradient_accumulation_steps * layout.world_size // together


@given(batches, st.integers(1, 8))
def test_the_stages_of_a_pipeline_multiply_the_world_and_share_their_samples(batch_and_micro: tuple[int, int], stages: int) -> None:
    spec = job(*batch_and_micro)
    staged = dataclasses.replace(spec, parallelism=ParallelismSpec(pipeline_parallel_size=stages))
    for whole, layout in zip(legal(spec), legal(staged), strict=True):
        assert (layout.world_size, layout.data_parallel_size) == (whole.world_size * stages, whole.world_size)
        places = [(layout.pipeline_stage(rank), layout.data_parallel_rank(rank)) for rank in range(layout.world_size)]
        assert places == [(stage, share) for stage in range(stages) for share in range(layout.data_parallel_size)]


def test_a_pipeline_is_idle_while_it_fills_and_drains() -> None:
    spec = dataclasses.replace(job(16, 2), parallelism=ParallelismSpec(pipeline_parallel_size=3))
    assert [layout.pipeline_idle_share for layout in legal(spec)] == [2 / 10, 2 / 6, 2 / 4, 2 / 3]
    assert all(layout.pipeline_idle_share == 0 for layout in legal(job(16, 2)))


def test_a_tensor_parallel_size_that_does_not_divide_the_workers_is_refused() -> None:
    def asked(workers: int) -> JobSpec:
        return dataclasses.replace(job(12, 2, workers=workers), parallelism=ParallelismSpec(tensor_parallel_size=2))

    with pytest.raises(LayoutError) as caught:
        layout_for(asked(3))
    assert str(caught.value) == (
        "parallelism.tensor_parallel_size=2 does not divide resources.num_workers=3: possible numbers of workers are 2, 4, 6, 12."
    )
    with pytest.raises(LayoutError, match=r"resources\.num_workers=8 cannot share .* among 2, 4, 6, 12\.$"):
        layout_for(asked(8))
    assert layout_for(asked(4)).data_parallel_size == 2


def test_second_copies_of_zero_plus_plus_divide_the_workers() -> None:
    def asked(workers: int) -> JobSpec:
        return dataclasses.replace(job(12, 2, workers=workers), parallelism=ParallelismSpec(zero_stage=3, zero_hpz_partition_size=2))

    assert [layout.world_size for layout in legal(asked(2))] == [2, 6]
    with pytest.raises(LayoutError) as caught:
        layout_for(asked(3))
    assert str(caught.value) == (
        "parallelism.zero_hpz_partition_size=2 does not divide resources.num_workers=3: possible numbers of workers are 2, 6."
    )


def test_gradients_travel_in_small_buckets_and_on_gpus_during_the_backward_pass() -> None:
    for stage in range(4):
        for gpus in (0, 1):
            spec = dataclasses.replace(job(12, 2, zero_stage=stage), resources=ResourcesSpec(gpus_per_worker=gpus))
            zero = deepspeed_config(spec, layout_for(spec), Precision.bf16)["zero_optimization"]
            assert zero.get("overlap_comm", False) is (gpus == 1 and stage in (1, 2))
            assert ("reduce_bucket_size" in zero) is (stage in (1, 2))
            assert zero.get("use_multi_rank_bucket_allreduce", True) is not (gpus == 0 and stage in (1, 2))


def test_a_micro_batch_of_the_whole_batch_leaves_one_world() -> None:
    assert legal(job(8, 8)) == (Layout(world_size=1, micro_batch_size=8, gradient_accumulation_steps=1, zero_stage=1),)


# what DeepSpeed is told; the whole dicts stand in tests/golden


@settings(deadline=None)
@given(batches, st.integers(0, 3), st.sampled_from([Precision.fp32, Precision.bf16, Precision.fp16]), st.sampled_from(OptimizerName))
def test_deepspeeds_sum_holds_and_one_precision_is_on(
    batch_and_micro: tuple[int, int], zero_stage: int, precision: Precision, optimizer: OptimizerName
) -> None:
    zero_stage = 0 if optimizer is OptimizerName.adafactor else zero_stage
    spec = dataclasses.replace(job(*batch_and_micro, zero_stage=zero_stage), optimizer=OptimizerSpec(name=optimizer, lr=0.5))
    for layout in legal(spec):
        config = deepspeed_config(spec, layout, precision)
        per_rank = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
        assert config["train_batch_size"] == per_rank * layout.world_size == spec.training.global_batch_size
        undivided = precision is Precision.fp32 and zero_stage < 3 and layout.world_size == 1
        assert config["zero_optimization"]["stage"] == (0 if undivided else zero_stage)
        assert config["gradient_clipping"] == (0 if undivided or (zero_stage, precision) == (0, Precision.fp32) else 1)
        assert {name for name in ("bf16", "fp16") if name in config} == {precision.value} - {"fp32"}
        if optimizer in (OptimizerName.lion, OptimizerName.muon, OptimizerName.adafactor):
            assert "optimizer" not in config
        else:
            assert config["optimizer"]["params"]["lr"] == 0.5


def test_only_a_compiled_model_at_zero_3_keeps_torchs_own_linear_layer() -> None:
    for zero_stage, compiled in ((3, True), (3, False), (2, True)):
        spec = job(8, 2, zero_stage=zero_stage)
        spec = dataclasses.replace(spec, training=dataclasses.replace(spec.training, compile=compiled))
        found = deepspeed_config(spec, layout_for(spec), Precision.fp32)["zero_optimization"]
        assert ("memory_efficient_linear" in found) == (zero_stage == 3 and compiled)


@pytest.mark.parametrize(
    ("optimizer", "count"),
    [
        (OptimizerSpec(name=OptimizerName.adamw), 4), (OptimizerSpec(name=OptimizerName.lion), 3),
        (OptimizerSpec(name=OptimizerName.sgd, momentum=0.9), 3), (OptimizerSpec(name=OptimizerName.sgd, momentum=0.0), 2),
    ],
)  # fmt: skip
def test_state_in_files_has_a_buffer_for_weights_gradients_and_each_number_of_the_optimizer(optimizer: OptimizerSpec, count: int) -> None:
    on_disk = ParallelismSpec(zero_stage=3, offload_optimizer=Offload.nvme, nvme_path="/disk")
    spec = dataclasses.replace(job(8, 2), parallelism=on_disk, optimizer=optimizer)
    section = deepspeed_config(spec, layout_for(spec), Precision.fp32)["zero_optimization"]
    assert section["offload_optimizer"] == {"device": "nvme", "nvme_path": "/disk", "buffer_count": count}


def test_an_open_precision_is_a_mistake_of_the_caller() -> None:
    spec = job(8, 2)
    with pytest.raises(ValueError, match="precision must be resolved"):
        deepspeed_config(spec, layout_for(spec), Precision.auto)


def warming(workers: int, *stages: tuple[int, int]) -> JobSpec:
    spec = job(24, 4, workers)
    return dataclasses.replace(spec, training=dataclasses.replace(spec.training, batch_size_warmup=stages))


def test_a_world_must_share_every_batch_of_the_warm_up() -> None:
    assert [layout.world_size for layout in legal(job(24, 4))] == [1, 2, 3, 6]
    spec = warming(2, (16, 8), (48, 16))
    assert [layout.world_size for layout in legal(spec)] == [1, 2]
    assert layout_for(spec) == layout_for(job(24, 4, 2))
    said = (
        "resources.num_workers=3 cannot share training.global_batch_size=24 and 8, 16 of training.batch_size_warmup in micro batches of 4: "
        "6 micro batches per step need a number of workers among 1, 2, or batches on the way among 12."
    )
    with pytest.raises(LayoutError, match=f"^{re.escape(said)}$"):
        layout_for(warming(3, (16, 8), (48, 16)))
    said = "training.micro_batch_size=4 does not divide 6 of training.batch_size_warmup. Possible on the way: 4, 8, 12, 16, 20."
    with pytest.raises(LayoutError, match=f"^{re.escape(said)}$"):
        layout_for(warming(1, (16, 6)))


def test_the_batch_of_a_step_follows_from_the_samples_before_it() -> None:
    training = warming(2, (20, 8), (48, 16)).training
    position, sizes = 0, []
    for _ in range(7):
        sizes.append(training.batch_size_at(position))
        position += sizes[-1]
    assert sizes == [8, 8, 8, 16, 16, 24, 24]
    assert training.batch_sizes == (8, 16, 24)
