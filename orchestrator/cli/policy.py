"""The policy of a control plane: the verb `policy`, and `scheduler=NAME` of the commands that start one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli.parser import parser_for, verbs_of
from orchestrator.cli.screen import as_json
from orchestrator.client.connection import Local, Verbs
from orchestrator.control.planning.policy import DEFAULT, ChosenPolicy
from orchestrator.errors import ConfigError, UserError
from orchestrator.paths import Home
from orchestrator.spec import to_dict

_POLICY = """\
By which policy the control plane decides who runs. Without arguments: what it is. A change holds from the next decision on, also for a
control plane that is started later.

  orchestrator policy                                        the policy and all its settings
  orchestrator policy batch                                  another one, as shipped
  orchestrator policy tenants.research.quota=64 grace_s=30   some settings of the present one"""


def policy_(arguments: list[str]) -> int:
    parser = parser_for("policy", _POLICY)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", metavar="NAME key=value", help="a policy, settings of it, or both")
    parser.add_argument("--config-dir", default="", metavar="FOLDER", help="with policies of your own: FOLDER/scheduler/NAME.yaml")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_intermixed_args(arguments)
    home = Home.find(asked.home)
    client = verbs_of(home) or Local(home)
    if asked.words:
        _change_policy(client, asked.words, Path(asked.config_dir) if asked.config_dir else None)
    chosen = client.policy()
    if asked.json:
        print(as_json({"name": chosen.name, "settings": dict(chosen.settings)}))
    else:
        print(chosen.name)
        print("\n".join(f"  {name:<20} {_setting(value)}" for name, value in to_dict(chosen.policy).items() if name != "mode"))
    return 0


def _change_policy(client: Verbs, words: list[str], config_dir: Path | None) -> None:
    names = [word for word in words if "=" not in word]
    changes = [word.removeprefix("scheduler.") for word in words if "=" in word]
    if len(names) > 1:
        raise UserError(f"'{' '.join(names)}' names {len(names)} policies: give one.")
    if names:
        chosen = load_policy([f"scheduler={names[0]}", *(f"scheduler.{change}" for change in changes)], config_dir)
    else:
        chosen = change_policy(client.policy(), changes)
    client.set_policy(chosen.name, chosen.settings)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_tenant(settings)}" for name, settings in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(f"{item:g}" for item in value)
    return "-" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _tenant(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items() if value is not None)


def load_policy(overrides: Sequence[str], config_dir: Path | None = None) -> ChosenPolicy:
    """By `scheduler=NAME` and `scheduler.KEY=VALUE`; the default one if none is named. Raises ConfigError with the nearest name."""
    from orchestrator.config import load_simulation

    names = [text.partition("=")[2] for text in overrides if text.startswith("scheduler=")]
    found = load_simulation(overrides, config_dir).scheduler
    return ChosenPolicy(name=names[-1] if names else DEFAULT.name, settings=to_dict(found))


def change_policy(chosen: ChosenPolicy, changes: Sequence[str]) -> ChosenPolicy:
    """With dotted `key=value` changes to its settings. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    settings = OmegaConf.create(to_dict(chosen.policy))
    for text in changes:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"'{text}' is no setting: allowed is key=value, for example max_wait_s=3600.") from error
        if override.is_sweep_override():
            raise ConfigError(f"{text} names several values: a list is written [a,b].")
        OmegaConf.update(settings, override.key_or_group, override.value(), force_add=True)
    values = OmegaConf.to_container(settings)
    assert isinstance(values, dict)
    return ChosenPolicy(name=chosen.name, settings={str(key): value for key, value in values.items()}).completed()
