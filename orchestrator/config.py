"""Hydra overrides -> JobSpec, or the settings of a simulation. The only module, with the command line, that knows Hydra.

Hydra composes, the frozen specs check: whatever is wrong comes out as one ConfigError or LayoutError that names the flag, the value
given, what is allowed and the nearest valid name.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator import layout
from orchestrator.code.origin import origin_of, source_file
from orchestrator.errors import ConfigError, nearest
from orchestrator.simulation.settings import SimulationSettings, settings_of
from orchestrator.spec import JobSpec, from_dict, to_dict, why_no_optimizer

_CHECKOUT = Path(__file__).resolve().parents[1]
FIXED_ON_RESUME = (
    "name", "workload", "model", "data", "training.seed", "training.global_batch_size", "training.batch_size_warmup", "optimizer.name",
    "storage.url",
)  # fmt: skip
"""What a resumed job cannot change: another model, order of data or place would not be this job any more."""


def conf_dir() -> Path:
    """The folder of the shipped configuration: in the wheel, else in the checkout."""
    shipped = Path(__file__).with_name("_conf")
    return shipped if shipped.is_dir() else _CHECKOUT / "conf"


@dataclasses.dataclass(frozen=True)
class Schema:
    """What overrides may name."""

    config: str
    """The file in `conf/` that composition begins with."""
    settings: Any
    """The dataclass that it becomes."""
    groups: tuple[str, ...]
    example: str
    instead: str
    """Of an override with several values."""
    open: str
    """Matches the names of settings that a user may add."""


JOB = Schema(
    "config", JobSpec, tuple(item.name for item in dataclasses.fields(JobSpec)), "training.max_steps=100",
    "`-m` makes one job of each", r"(workload|model|data)\.options\.|tracking\.tags\.|environment\.variables\.",
)  # fmt: skip
SIMULATION = Schema(
    "simulate", SimulationSettings, ("scheduler",), "cluster.nodes=72", "`--compare` takes several policies", r"scheduler\."
)


def load_job_spec(overrides: Sequence[str], config_dir: Path | None = None) -> JobSpec:
    """The spec of `overrides`. `config_dir`: a folder with more groups and options of the user's own."""
    return job_spec(_compose(JOB, spelled_out(overrides), config_dir))


def spelled_out(overrides: Sequence[str]) -> list[str]:
    """`workload=my_module:MyWorkload` is short for `workload=custom workload.entrypoint=my_module:MyWorkload`."""
    found: list[str] = []
    for text in overrides:
        short = re.fullmatch(r"workload=([\w.-]+:.*)", text)
        found += ["workload=custom", f"workload.entrypoint={short[1]}"] if short else [text]
    return found


def load_simulation(overrides: Sequence[str], config_dir: Path | None = None) -> SimulationSettings:
    """What a simulation assumes. A setting of the scheduler needs no `+`, though not every policy's file has it."""
    added = [re.sub(rf"^\+*(?={SIMULATION.open})", "++", text) for text in overrides]
    values = OmegaConf.to_container(_compose(SIMULATION, added, config_dir), resolve=True)
    assert isinstance(values, dict)
    return settings_of({str(key): value for key, value in values.items()})


def job_spec(config: DictConfig) -> JobSpec:
    """The spec of a composed configuration, checked as far as it can be without a cluster."""
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_missing(error)) from error
    assert isinstance(values, dict)
    if isinstance(values.get("workload"), dict):
        values["workload"] = {"code_dir": str(Path.cwd()), **values["workload"]}
    spec: JobSpec = from_dict(JobSpec, {str(key): value for key, value in values.items()})
    layout.legal_world_sizes(spec)
    origin_of(spec.workload.entrypoint, spec.workload.code_dir)
    _check_layers(spec)
    return spec


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job that a sweep asks for (`a=1,2`): one list of overrides where nothing is swept."""
    swept = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()] if override.is_sweep_override() else [text]
        for text, override in zip(overrides, _parse(overrides), strict=True)
    ]
    return [list(chosen) for chosen in itertools.product(*swept)]


def apply_overrides(spec: JobSpec, overrides: Sequence[str]) -> JobSpec:
    """A stored spec with dotted `key=value` changes, for `resume`."""
    values = to_dict(spec)
    for text in overrides:
        override = _parse([text])[0]
        if override.is_sweep_override():
            raise ConfigError(f"{text} is not possible on resume: give one value.")
        key, value = override.key_or_group, override.value()
        _check_changeable(key)
        _set(values, key, value, text)
    changed: JobSpec = from_dict(JobSpec, values)
    layout.legal_world_sizes(changed)
    _check_layers(changed)
    return changed


def groups(schema: Schema = JOB, config_dir: Path | None = None) -> dict[str, list[str]]:
    """The options of every group that is shipped, with those of the user's own."""
    found: dict[str, list[str]] = {}
    for folder in [conf_dir(), *([config_dir] if config_dir else [])]:
        for name in sorted(schema.groups):
            options = found.setdefault(name, [])
            options += sorted({path.stem for path in (folder / name).glob("*.yaml")} - {*options})
    return {name: options for name, options in found.items() if options}


def _compose(schema: Schema, overrides: Sequence[str], config_dir: Path | None) -> DictConfig:
    if config_dir and not config_dir.is_dir():
        raise ConfigError(f"--config-dir={config_dir} is not possible: there is no such folder.")
    for override in _parse(overrides, schema):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} names several values: {schema.instead}; a list is written [a,b].")
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        try:
            return compose(schema.config, overrides=[*overrides, *_search(config_dir)])
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group that is given a number or null
            raise ConfigError(_explain(schema, overrides, config_dir, error)) from error


def _search(config_dir: Path | None) -> list[str]:
    return [f"hydra.searchpath=[{config_dir.resolve()}]"] if config_dir else []


def _parse(overrides: Sequence[str], schema: Schema = JOB) -> list[Any]:
    return [_parse_one(text, schema) for text in overrides]


def _parse_one(text: str, schema: Schema) -> Any:
    try:
        found = OverridesParser.create().parse_override(text)
    except (OverrideParseException, HydraException) as error:
        raise ConfigError(_no_override(text, schema)) from error
    if not found.key_or_group:
        raise ConfigError(_no_override(text, schema))
    return found


def _no_override(text: str, schema: Schema) -> str:
    return f"'{text}' is no override: allowed is key=value, for example {schema.example}."


def _explain(schema: Schema, overrides: Sequence[str], config_dir: Path | None, error: Exception) -> str:
    """In words what Hydra refused: the first override whose name or option does not exist."""
    known = groups(schema, config_dir)
    parsed = _parse(overrides, schema)
    choices = [override.input_line for override in parsed if override.key_or_group in known] + _search(config_dir)
    for override in parsed:
        key = str(override.key_or_group)
        if re.match(schema.open, key):
            found = None if override.is_add() or override.is_force_add() else _unknown_option(key, choices)
        else:
            found = _unknown(key, override.value(), known, schema)
        if found:
            return found
    return str(error).splitlines()[0]


def _unknown(key: str, value: Any, known: Mapping[str, list[str]], schema: Schema = JOB) -> str | None:
    if key in known and not isinstance(value, list | dict) and value not in known[key]:
        remark = (why_no_optimizer(str(value)) if key == "optimizer" else "") or nearest(str(value), known[key])
        return f"{key}={value} is not possible: allowed is {', '.join(known[key])}.{remark}"
    names = dict(_settings(schema.settings))
    if key in known or key in names or key.startswith("hydra"):
        return None
    near = nearest(key, [*names, *known])
    parent = key.rpartition(".")[0]
    siblings = [name for name in names if name.rpartition(".")[0] == parent]
    allowed = f" Known here: {', '.join(siblings)}." if siblings and parent else f" Groups: {', '.join(known)}."
    return f"{key} is no setting.{allowed}{near}"


def _unknown_option(key: str, choices: list[str]) -> str | None:
    """`choices`: the groups that were chosen; they decide which options there are."""
    parent, _, name = key.rpartition(".")
    try:
        options = OmegaConf.select(compose("config", overrides=choices), parent)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None  # a wrong choice is told by its own name
    known = [str(option) for option in options] if isinstance(options, DictConfig) else []
    if name in known:
        return None
    free = {"tracking.tags": "tag", "environment.variables": "variable"}
    what = free.get(parent, f"option of this {parent.split('.')[0]}")
    near = nearest(key, [f"{parent}.{option}" for option in known])
    return f"{key} is no {what}. `+{key}=...` adds {'it' if parent in free else 'one that it may understand'}.{near}"


def _settings(cls: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every setting."""
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from _settings(hint, f"{path}{item.name}.")
        else:
            yield f"{path}{item.name}", hint


def _missing(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or "a setting"
    if key == "workload.entrypoint":
        return "workload.entrypoint is missing: give workload.entrypoint=my_module:MyWorkload."
    return f"{key} cannot be resolved: {str(error).splitlines()[0]}"


def _check_layers(spec: JobSpec) -> None:
    """A pipeline needs a workload with `layers()`; refused here where the source shows that it has none, else when the ranks start."""
    stages, name = spec.parallelism.pipeline_parallel_size, spec.workload.entrypoint.split(":")[1]
    file = source_file(spec.workload.entrypoint, spec.workload.code_dir)
    if stages > 1 and file and _lacks(file, name, "layers"):
        found = f"{name} in {file} has no method layers() that says where to cut"
        raise ConfigError(f"parallelism.pipeline_parallel_size={stages} is not possible: allowed is 1, because {found}.")


def _lacks(file: Path, class_name: str, method: str) -> bool:
    """Whether the source says for sure that a class has no such method: it is there, inherits nothing, and does not name it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return False  # the ranks will say where
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    return len(found) == 1 and not found[0].bases and not found[0].decorator_list and method not in _names(found[0])


def _names(found: ast.ClassDef) -> set[str]:
    """All names that a class's own body defines or assigns."""
    defined = {node.name for node in ast.walk(found) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return defined | {node.id for node in ast.walk(found) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _check_changeable(key: str) -> None:
    for fixed in FIXED_ON_RESUME:
        if key == fixed or key.startswith(f"{fixed}."):
            raise ConfigError(f"{key} cannot change when a job is resumed: it would be another job. Submit a new one.")


def _set(values: dict[str, Any], key: str, value: Any, text: str) -> None:
    found = _unknown(key, value, groups()) if not re.match(r"(tracking\.tags|environment\.variables)\.", key) else None
    if found or "." not in key or key.startswith("hydra."):
        raise ConfigError(found or f"'{text}' is not possible on resume: give single settings such as training.max_steps=100.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"'{text}' is not possible: {parent} is no group.")
    values[last] = value
