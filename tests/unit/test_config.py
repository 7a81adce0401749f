"""What is asked wrongly comes out as one error in our words, with exit code 2; overrides at `resume`; groups of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import FIXED_ON_RESUME, apply_overrides, conf_dir, groups, load_job_spec
from orchestrator.errors import ConfigError, LayoutError, UserError
from orchestrator.layout import legal
from orchestrator.spec import WHY_NO_OPTIMIZER, JobSpec, Precision, from_dict, to_dict

TRAINING = (
    "training.max_steps, training.global_batch_size, training.micro_batch_size, training.batch_size_warmup, training.precision, "
    "training.float8, training.float8_emulated, training.gradient_clipping, training.activation_checkpointing, training.compile, "
    "training.compile_backend, training.channels_last, training.eval_interval_steps, training.eval_samples, training.sample_at_evaluation, "
    "training.log_interval_steps, training.profile_steps, training.seed, training.ema_decay, training.evaluate_ema, training.best_metric, "
    "training.best_maximize, training.early_stopping_patience, training.early_stopping_min_delta"
)
WORKLOADS = "bert, custom, gpt, resnet, seq2seq, text-classifier"
OPTIMIZERS = "adafactor, adamw, bert, gpt, gpt-large, lion, muon, resnet, sgd, t5"
GROUPS = (
    "chaos, checkpoint, cluster, data, environment, guard, model, optimizer, parallelism, recovery, resources, scheduling, storage, "
    "tracking, training, workload"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The submitter's working directory: it holds `my_module.py`."""
    (tmp_path / "my_module.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def stored() -> JobSpec:
    """What a job of `workload=gpt` has in its row."""
    return load_job_spec(["workload=gpt"])


def refusal(*overrides: str, config_dir: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_job_spec(overrides, config_dir)
    assert caught.value.exit_code == 2
    return str(caught.value)


# what is right


@pytest.mark.parametrize("workload", ["gpt", "resnet"])
def test_a_composed_spec_is_the_same_after_json(workload: str) -> None:
    spec = load_job_spec([f"workload={workload}"])
    assert spec.workload.name == workload
    assert from_dict(JobSpec, json.loads(json.dumps(to_dict(spec)))) == spec


def test_overrides_reach_the_spec(folder: Path) -> None:
    spec = load_job_spec(
        ["model=gpt-tiny", "training.max_steps=50", "++training.seed=7", "training.precision=bf16", "optimizer.betas=[0.5,0.75]",
         "+workload.options.width=64", "+tracking.tags.team=a", "+environment.variables.MODE=x", "training.eval_samples=${training.seed}"]
    )  # fmt: skip
    assert spec.model.name == "gpt-tiny"
    assert (spec.training.max_steps, spec.training.seed, spec.training.eval_samples) == (50, 7, 7)
    assert (spec.training.precision, spec.optimizer.betas) == (Precision.bf16, (0.5, 0.75))
    assert (spec.workload.options["width"], spec.tracking.tags) == (64, {"team": "a"})
    assert spec.environment.texts == {"MODE": "x"}
    assert spec.workload.code_dir == str(folder)


def test_a_workload_of_the_working_directory_is_found_without_importing_it(folder: Path) -> None:
    (folder / "my_module.py").write_text("raise SystemExit('imported')")
    spec = load_job_spec(["workload=custom", "workload.entrypoint=my_module:Mine"])
    assert (spec.workload.entrypoint, spec.model.name, spec.data.name) == ("my_module:Mine", "none", "none")


@pytest.mark.parametrize("text", ["my_module:Mine", "package.inner:Mine", "workloads.gpt:Gpt"])
def test_an_entry_point_is_a_workload_by_itself(text: str, folder: Path) -> None:
    (folder / "package").mkdir()
    for name in ("my_module.py", "package/inner.py"):
        (folder / name).touch()
    others = ["+tracking.tags.team=a b:c", "+workload.options.width=64"]
    assert load_job_spec([f"workload={text}", *others]) == load_job_spec(["workload=custom", f"workload.entrypoint={text}", *others])


def test_an_entry_point_as_a_workload_is_refused_in_the_same_words(folder: Path) -> None:
    assert "there is no module 'my_modul' in" in refusal("workload=my_modul:Mine")
    for wrong in ("my_module:", "my_module:Mine:Other", "my-module:Mine"):
        assert f"workload.entrypoint={wrong.rstrip(':')}" in refusal(f"workload={wrong}")


@pytest.mark.parametrize("module", ["package", "package.inner"])
def test_packages_of_the_working_directory_are_found(folder: Path, module: str) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "inner.py").touch()
    assert load_job_spec(["workload=custom", f"workload.entrypoint={module}:X"]).workload.entrypoint == f"{module}:X"


def test_the_groups_are_the_folders_of_conf() -> None:
    found = groups()
    assert list(found) == GROUPS.split(", ")
    assert found["workload"] == WORKLOADS.split(", ")
    assert found["optimizer"] == OPTIMIZERS.split(", ")
    assert all((conf_dir() / group / f"{option}.yaml").is_file() for group, options in found.items() for option in options)


# what is wrong


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("workload=resnt", f"workload=resnt is not possible: allowed is {WORKLOADS}. Did you mean 'resnet'?"),
        ("optimizer=adam", f"optimizer=adam is not possible: allowed is {OPTIMIZERS}. Did you mean 'adamw'?"),
        ("optimizer=lamb", f"optimizer=lamb is not possible: allowed is {OPTIMIZERS}. {WHY_NO_OPTIMIZER['lamb']}"),
        ("workloads=gpt", f"workloads is no setting. Groups: {GROUPS}. Did you mean 'workload'?"),
        ("traning.max_steps=3", f"traning.max_steps is no setting. Groups: {GROUPS}. Did you mean 'training.max_steps'?"),
        ("training.max_step=3", f"training.max_step is no setting. Known here: {TRAINING}. Did you mean 'training.max_steps'?"),
        ("~training.max_step", f"training.max_step is no setting. Known here: {TRAINING}. Did you mean 'training.max_steps'?"),
        ("optimizer.lr.x=3", f"optimizer.lr.x is no setting. Groups: {GROUPS}. Did you mean 'optimizer.lr'?"),
    ],
)
def test_an_unknown_group_option_or_setting_is_refused_with_the_nearest(override: str, said: str) -> None:
    assert refusal(override) == said


@pytest.mark.parametrize("plus", ["+", "++"])
def test_a_typo_is_not_appended(plus: str) -> None:
    said = refusal(f"{plus}training.max_step=3")
    assert said.startswith("training.max_step is no setting. Known here: max_steps, ")
    assert said.endswith("Did you mean 'max_steps'?")


def test_an_appended_name_that_is_nothing_like_a_setting_is_refused() -> None:
    said = refusal("+foo=1")
    assert said.startswith("foo is no setting. Known here: workload, model, data, training, name, ")
    assert "mean" not in said


def test_an_unknown_option_of_a_workload_says_how_to_add_it() -> None:
    said = refusal("workload.options.promt=x")
    assert said.startswith("workload.options.promt is no option of this workload. `+workload.options.promt=...` adds one")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.max_steps=four", "training.max_steps=four is not possible: allowed is a whole number."),
        ("training.max_steps='3'", "training.max_steps=3 is not possible: allowed is a whole number."),
        ("training.max_steps=null", "training.max_steps=None is not possible: allowed is a whole number."),
        ("tracking.enabled=maybe", "tracking.enabled=maybe is not possible: allowed is true or false."),
        ("training.precision=bf61", "training.precision=bf61 is not possible: allowed is auto, fp32, bf16, fp16. Did you mean 'bf16'?"),
        ("optimizer.warmup_steps=800", "optimizer.warmup_steps=800 is not possible: allowed is less than training.max_steps=800."),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(override: str, said: str) -> None:
    """Some of them; `test_spec.py` has all limits."""
    assert refusal(override) == said


@pytest.mark.parametrize("text", ["foo", "a=b=c", "training.max_steps", "--dryrun", "name=${foo", "training.[x]=1"])
def test_text_that_is_no_override_is_refused_with_an_example(text: str) -> None:
    assert refusal("training.seed=1", text) == f"'{text}' is no override: allowed is key=value, for example training.max_steps=100."


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=${training.nope}", "name cannot be resolved: Interpolation key 'training.nope' not found"),
        ("training.max_steps=${training.max_step}",
         "training.max_steps cannot be resolved: Interpolation key 'training.max_step' not found"),
    ],
)  # fmt: skip
def test_a_reference_to_nothing_is_named(override: str, said: str) -> None:
    assert refusal(override) == said


def test_a_reference_to_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    said = refusal("name=${oc.env:NOT_SET}")
    assert said.startswith("name cannot be resolved: ")
    assert "'NOT_SET' not found" in said


def test_a_custom_workload_needs_an_entrypoint() -> None:
    assert refusal("workload=custom") == "workload.entrypoint is missing: give workload.entrypoint=my_module:MyWorkload."


def test_an_entrypoint_that_is_not_there_is_refused_with_the_nearest_module(folder: Path) -> None:
    assert refusal("workload=custom", "workload.entrypoint=my_modul:Mine") == (
        f"workload.entrypoint=my_modul:Mine is not possible: there is no module 'my_modul' in {folder}, and no installed package "
        "offers it as an entry point of 'orchestrator.workloads'. "
        "Did you mean 'my_module'?"
    )
    said = "workload.entrypoint=my_module is not possible: allowed is module:Class, for example my_module:MyWorkload."
    assert refusal("workload=custom", "workload.entrypoint=my_module") == said


STAGES = ("resources.num_workers=2", "parallelism.pipeline_parallel_size=2")


def test_a_pipeline_of_a_workload_whose_source_has_no_layers_is_refused(folder: Path) -> None:
    said = refusal("workload=resnet", *STAGES)
    assert said.startswith("parallelism.pipeline_parallel_size=2 is not possible: allowed is 1, because ResNet in ")
    assert said.endswith("workloads/resnet.py has no method layers() that says where to cut.")
    (folder / "my_module.py").write_text("class Mine:\n    def loss(self): pass\n")
    assert "Mine in" in refusal("workload=custom", "workload.entrypoint=my_module:Mine", *STAGES)


@pytest.mark.parametrize(
    "source",
    [
        "class Mine:\n    def layers(self, model): pass\n",
        "class Mine:\n    layers = other\n",
        "class Mine(Other):\n    pass\n",
        "Mine = make()\n",
        "this is no Python",
    ],
)
def test_a_pipeline_whose_source_may_have_layers_is_left_to_the_ranks(folder: Path, source: str) -> None:
    (folder / "my_module.py").write_text(source)
    assert load_job_spec(["workload=custom", "workload.entrypoint=my_module:Mine", *STAGES])
    assert load_job_spec(["workload=gpt", *STAGES]).parallelism.pipeline_parallel_size == 2


def test_a_batch_that_does_not_divide_is_a_layout_error() -> None:
    with pytest.raises(LayoutError, match=r"training\.micro_batch_size=5 does not divide training\.global_batch_size=12\. Possible .* 1, "):
        load_job_spec(["training.micro_batch_size=5"])


def test_a_world_that_does_not_divide_is_a_layout_error() -> None:
    with pytest.raises(LayoutError, match=r"resources\.num_workers=5 cannot share .* among 1, 2, 3, 6\."):
        load_job_spec(["resources.num_workers=5"])


def test_a_sweep_needs_its_flag() -> None:
    assert "training.seed=1,2" in refusal("training.seed=1,2")


def test_the_first_mistake_is_told_when_there_are_two() -> None:
    said = refusal("training.seed=1", "modle=gpt-tiny", "workload=resnt")
    assert said.startswith("modle is no setting")
    assert said.endswith("Did you mean 'model'?")


@pytest.mark.parametrize("text", ["", "=", "=3"])
def test_an_override_without_a_name_is_refused_with_an_example(text: str) -> None:
    assert refusal("training.seed=1", text) == f"'{text}' is no override: allowed is key=value, for example training.max_steps=100."


@pytest.mark.parametrize("override", ["training=3", "workload=null", "~workload", "~training.max_steps"])
def test_a_group_that_is_replaced_by_nonsense_or_removed_is_refused(override: str) -> None:
    assert override.lstrip("~").partition("=")[0] in refusal(override)


def test_the_nearest_option_of_the_workload_is_named() -> None:
    assert refusal("workload.options.promt=x").endswith("Did you mean 'workload.options.prompt'?")


def test_a_module_that_a_package_lacks_is_refused() -> None:
    assert "gtp" in refusal("workload=custom", "workload.entrypoint=workloads.gtp:GPT")


@pytest.mark.parametrize("right", ["workload.options.prompt=x", "+workload.options.width=64", "+tracking.tags.team=a"])
def test_what_is_right_is_not_blamed_for_what_is_wrong(right: str) -> None:
    assert refusal(right, "traning.max_steps=3").startswith("traning.max_steps is no setting.")


def test_a_tag_without_plus_says_how_to_add_it() -> None:
    assert "`+tracking.tags.team=...`" in refusal("tracking.tags.team=a")


# groups and options of the user's own


@pytest.fixture
def own(folder: Path) -> Path:
    files = {
        "model/mine.yaml": "name: mine\noptions: {width: 7}\n",
        "training/long.yaml": "max_steps: 5000\nglobal_batch_size: 32\nmicro_batch_size: 8\n",
        "workload/mine.yaml": (
            "# @package _global_\ndefaults: [{override /model: mine}]\nworkload: {name: mine, entrypoint: 'my_module:Mine'}\n"
        ),
        "notes.txt": "no group",
    }
    for name, text in files.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "conf"


def test_an_option_of_the_users_own_is_found(own: Path) -> None:
    spec = load_job_spec(["model=mine"], own)
    assert (spec.model.name, spec.model.options, spec.workload.name) == ("mine", {"width": 7}, "gpt")
    assert load_job_spec(["model=mine"], Path("conf")) == spec


def test_a_workload_of_the_users_own_brings_its_model(own: Path) -> None:
    spec = load_job_spec(["workload=mine", "training=long"], own)
    assert (spec.workload.entrypoint, spec.model.name, spec.training.max_steps) == ("my_module:Mine", "mine", 5000)


def test_an_option_of_the_users_own_is_named_as_the_nearest(own: Path) -> None:
    allowed = ", ".join([*groups()["model"], "mine"])
    assert refusal("model=mime", config_dir=own) == f"model=mime is not possible: allowed is {allowed}. Did you mean 'mine'?"
    assert "mine," not in refusal("model=mime")


def test_a_group_that_is_asked_for_wins_over_the_workloads_values(own: Path) -> None:
    assert load_job_spec(["workload=gpt", "optimizer=sgd"]).optimizer.lr == 0.1
    assert load_job_spec(["workload=gpt", "training=long"], own).training.max_steps == 5000


@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath")
@pytest.mark.parametrize("override", ["workload=gptx", "workload=gpt"])
def test_a_folder_that_is_not_there_is_refused(folder: Path, override: str) -> None:
    assert "nowhere" in refusal(override, config_dir=folder / "nowhere")


# resume


def changed(spec: JobSpec, *overrides: str) -> dict[str, tuple[object, object]]:
    """Flag -> (before, after) of what the overrides changed."""

    def flat(values: dict[str, object], path: str = "") -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in values.items():
            found.update(flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value})
        return found

    before, after = flat(to_dict(spec)), flat(to_dict(apply_overrides(spec, overrides)))
    return {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}


@pytest.mark.parametrize(
    ("override", "flag", "before", "after"),
    [
        ("training.max_steps=2000", "training.max_steps", 800, 2000),
        ("+training.max_steps=2000", "training.max_steps", 800, 2000),
        ("resources.num_workers=3", "resources.num_workers", 2, 3),
        ("parallelism.zero_stage=3", "parallelism.zero_stage", 1, 3),
        ("training.micro_batch_size=1", "training.micro_batch_size", 2, 1),
        ("training.precision=fp32", "training.precision", "auto", "fp32"),
        ("optimizer.lr=1e-4", "optimizer.lr", 0.004, 0.0001),
        ("optimizer.betas=[0.5,0.75]", "optimizer.betas", [0.9, 0.95], [0.5, 0.75]),
        ("storage.endpoint_url=http://127.0.0.1:9000", "storage.endpoint_url", "", "http://127.0.0.1:9000"),
        ("cluster.address=10.0.0.1:6379", "cluster.address", "", "10.0.0.1:6379"),
        ("tracking.tags.team=a", "tracking.tags.team", None, "a"),
    ],
)
def test_resume_may_change(stored: JobSpec, override: str, flag: str, before: object, after: object) -> None:
    assert changed(stored, override) == {flag: (before, after)}


def test_overrides_of_resume_hold_together(stored: JobSpec) -> None:
    assert changed(stored, "training.micro_batch_size=4", "resources.num_workers=3").keys() == {
        "training.micro_batch_size", "resources.num_workers",
    }  # fmt: skip
    assert apply_overrides(stored, ["training.max_steps=900", "training.max_steps=1000"]).training.max_steps == 1000
    assert apply_overrides(stored, []) == stored


SAMPLES = {
    "name": ["name=x"],
    "workload": ["workload=resnet", "workload.entrypoint=a:B", "workload.options.prompt=x", "workload.code_dir=/x"],
    "model": ["model=gpt-tiny", "model.options.num_layers=2"],
    "data": ["data=digits", "data.name=x"],
    "training.seed": ["training.seed=1", "++training.seed=1"],
    "training.global_batch_size": ["training.global_batch_size=24"],
    "training.batch_size_warmup": ["training.batch_size_warmup=[[24,4]]"],
    "optimizer.name": ["optimizer.name=lion"],
    "storage.url": ["storage.url=file:///x"],
}


def test_there_is_a_sample_of_all_that_is_fixed() -> None:
    assert set(SAMPLES) == set(FIXED_ON_RESUME)


@pytest.mark.parametrize("override", [override for overrides in SAMPLES.values() for override in overrides])
def test_resume_does_not_change_what_makes_the_job(stored: JobSpec, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(stored, ["training.max_steps=900", override])
    flag = override.lstrip("+").partition("=")[0]
    assert str(caught.value) == f"{flag} cannot change when a job is resumed: it would be another job. Submit a new one."


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.max_step=3", f"training.max_step is no setting. Known here: {TRAINING}. Did you mean 'training.max_steps'?"),
        ("training.seeds=3", f"training.seeds is no setting. Known here: {TRAINING}. Did you mean 'training.seed'?"),
        ("modell=x", f"modell is no setting. Groups: {GROUPS}. Did you mean 'model'?"),
        ("optimizer=sdg", f"optimizer=sdg is not possible: allowed is {OPTIMIZERS}. Did you mean 'sgd'?"),
        ("optimizer=sgd", "'optimizer=sgd' is not possible on resume: give single settings such as training.max_steps=100."),
        ("training.max_steps=four", "training.max_steps=four is not possible: allowed is a whole number."),
        ("training.precision=bf61", "training.precision=bf61 is not possible: allowed is auto, fp32, bf16, fp16. Did you mean 'bf16'?"),
        ("optimizer.warmup_steps=900", "optimizer.warmup_steps=900 is not possible: allowed is less than training.max_steps=800."),
        ("foo", "'foo' is no override: allowed is key=value, for example training.max_steps=100."),
        ("--now", "'--now' is no override: allowed is key=value, for example training.max_steps=100."),
    ],
)
def test_resume_refuses_what_is_wrong(stored: JobSpec, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(stored, [override])
    assert str(caught.value) == said


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_resume_takes_exactly_the_legal_worlds(stored: JobSpec, workers: int, micro: int) -> None:
    batch = stored.training.global_batch_size
    overrides = [f"resources.num_workers={workers}", f"training.micro_batch_size={micro}"]
    if batch % (workers * micro):
        with pytest.raises(LayoutError, match=rf"resources\.num_workers={workers} "):
            apply_overrides(stored, overrides)
    else:
        assert workers in {layout.world_size for layout in legal(apply_overrides(stored, overrides))}


def test_a_refused_resume_changes_nothing(stored: JobSpec) -> None:
    before = json.dumps(to_dict(stored))
    with pytest.raises(LayoutError):
        apply_overrides(stored, ["tracking.tags.team=a", "resources.num_workers=5"])
    assert json.dumps(to_dict(stored)) == before


def test_resume_refuses_settings_of_hydra(stored: JobSpec) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir"):
        apply_overrides(stored, ["hydra.run.dir=x"])


def test_resume_takes_a_nested_tag(stored: JobSpec) -> None:
    assert apply_overrides(stored, ["tracking.tags.a.b=1"]).tracking.tags == {"a": {"b": 1}}


def test_resume_refuses_a_sweep_in_words(stored: JobSpec) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr=1,2 "):
        apply_overrides(stored, ["optimizer.lr=1,2"])
