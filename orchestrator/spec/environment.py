"""What the processes of a job's ranks find beside the code of this program."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from orchestrator.spec.checks import Options, require

_OURS = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES",
    "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "DS_ACCELERATOR",
}  # fmt: skip
_VERSION = r"(<|<=|==|!=|>=|>|~=)\s*[\w.*+!-]+"
_SECRET = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)(_|$)|(ACCESS|API|PRIVATE)_KEY")
_FREE = "any variable but those that the orchestrator sets itself"


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    variables: Options = field(default_factory=dict)
    """Environment variables of the ranks, there from the start of their interpreter. They are kept with the job: no place for secrets."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables whose values are taken from the submitter's environment, travel beside the job's settings and are in
    the environment of its processes: `HF_TOKEN`. What is kept with the job is the names."""
    requirements: tuple[str, ...] = ()
    """Python packages that the nodes must have, such as `einops>=0.8`. They are checked before the first step, never installed: packages
    belong to the nodes' image."""
    max_package_mb: float = 100
    """Of the working directory, where the workload stands in it: it is packaged and kept with the job."""

    def __post_init__(self) -> None:
        for name, value in self.variables.items():
            flag = f"environment.variables.{name}"
            require(re.fullmatch(r"[A-Za-z_]\w*", name) is not None, flag, value, "a name of letters, digits and '_'")
            require(_is_free(name), flag, value, f"{_FREE}; threads are resources.threads_per_worker")
            why = f"no secret: variables are kept with the job. Set it in your environment, and name it: environment.secrets=[{name}]"
            require(_SECRET.search(name.upper()) is None, flag, "...", why)
            ok = isinstance(value, str | int | float) and not isinstance(value, bool) and "\0" not in str(value)
            require(ok, flag, value, "text or a number; true and false in quotes")
        for name in self.secrets:
            flag = "environment.secrets"
            require(re.fullmatch(r"[A-Za-z_]\w*", name) is not None, flag, name, "[NAME, ...], names of variables of your environment")
            require(_is_free(name), flag, name, _FREE)
            require(name not in self.variables, flag, name, f"what is not set by environment.variables.{name} too")
        for requirement in self.requirements:
            ok = re.fullmatch(rf"[A-Za-z0-9][\w.-]*(\[[^\]]*\])?\s*({_VERSION}(\s*,\s*{_VERSION})*)?", requirement) is not None
            require(ok, "environment.requirements", requirement, "[package>=1.2, ...] with versions by <, <=, ==, !=, >=, >, ~=")
        require(0 < self.max_package_mb < math.inf, "environment.max_package_mb", self.max_package_mb, "more than 0")

    @property
    def texts(self) -> dict[str, str]:
        """The variables as a process gets them."""
        return {name: str(value) for name, value in self.variables.items()}


def _is_free(name: str) -> bool:
    return name not in _OURS and not name.startswith(("ORCHESTRATOR_", "RAY_"))
