"""A policy from the values of its settings, checked. Pure. A cluster's settings stand in the group `scheduler`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from orchestrator.control.scheduler.model import Policy, Tenant
from orchestrator.errors import ConfigError, nearest
from orchestrator.spec import from_dict

MODES = ("fifo", "batch", "preemptive")


def policy_of(values: Mapping[str, Any], path: str = "scheduler.") -> Policy:
    """Raises ConfigError with the setting, its value and the nearest valid name. `path`: what stands before the names of the settings."""
    tenants = values.get("tenants") or {}
    if not isinstance(tenants, Mapping):
        raise ConfigError(f"{path}tenants={tenants} is not possible: allowed is a mapping such as {{research: {{weight: 2, quota: 64}}}}.")
    found = {str(name): _tenant(settings, f"{path}tenants.{name}") for name, settings in tenants.items()}
    policy: Policy = from_dict(Policy, {**values, "tenants": found}, path)
    _check(policy, path)
    return policy


def check_tenants(policy: Policy, known: Iterable[str]) -> None:
    """Raises ConfigError for the settings of a tenant that is not among `known`."""
    names = sorted(set(known) - {""})
    for name in policy.tenants:
        if name not in names:
            raise ConfigError(
                f"scheduler.tenants.{name} is not possible: there is no tenant of that name. "
                f"Known: {', '.join(names) or 'none'}.{nearest(name, names)}"
            )


def _tenant(settings: Any, path: str) -> Tenant:
    if not isinstance(settings, Mapping):
        names = ", ".join(field.name for field in fields(Tenant))
        raise ConfigError(f"{path}={settings} is not possible: {path} is a group of settings: {names}.")
    tenant: Tenant = from_dict(Tenant, settings, f"{path}.")
    if not tenant.weight > 0:
        raise ConfigError(f"{path}.weight={tenant.weight:g} is not possible: allowed is a number above 0.")
    for name in ("quota", "jobs_per_user"):
        value = getattr(tenant, name)
        if value is not None and value < 1:
            raise ConfigError(f"{path}.{name}={value} is not possible: allowed is a whole number of at least 1, or null for no limit.")
    return tenant


def _check(policy: Policy, path: str) -> None:
    if policy.mode not in MODES:
        raise ConfigError(f"{path}mode={policy.mode} is not possible: allowed is {', '.join(MODES)}.{nearest(policy.mode, MODES)}")
    for field in fields(Policy):
        value = getattr(policy, field.name)
        if isinstance(value, int | float) and not value >= 0:
            raise ConfigError(f"{path}{field.name}={value:g} is not possible: allowed is a number of at least 0.")
    for name in ("usage_half_life_s", "round_s"):
        if not getattr(policy, name) > 0:
            raise ConfigError(f"{path}{name}={getattr(policy, name):g} is not possible: allowed is a number above 0.")
    if list(policy.levels) != sorted({level for level in policy.levels if level > 0}):
        shown = ",".join(f"{level:g}" for level in policy.levels)
        raise ConfigError(f"{path}levels=[{shown}] is not possible: allowed are numbers above 0, each above the one before.")
