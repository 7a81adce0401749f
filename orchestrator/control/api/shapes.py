"""What goes into the API and comes out, as the OpenAPI schema tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WrapValidator

from orchestrator.control.records.database import LARGEST_NUMBER
from orchestrator.errors import ConfigError
from orchestrator.spec import JobSpec, from_dict

LONGEST_WAIT_S = 60.0
DEEPEST = 64
"""So many settings inside each other: what reads and writes them goes down as many calls."""


def _spec(value: Any, _by_pydantic: Any) -> JobSpec:
    """In the words of the command line. Raises ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError("spec is not possible: allowed is a job's settings, by group.")
    spec: JobSpec = from_dict(JobSpec, _shallow(value))
    return spec


def _shallow(value: Any) -> Any:
    """Raises ConfigError."""
    if _is_deeper(value, DEEPEST):
        raise ConfigError(f"the settings are not possible: allowed are {DEEPEST} inside each other.")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return depth < 0 or any(_is_deeper(item, depth - 1) for item in inside)


Spec = Annotated[JobSpec, WrapValidator(_spec)]
"""The schema is that of the dataclasses, the checks are their own."""
Secrets = Annotated[dict[str, str], Field(description="Environment variables of the job's processes, such as S3 keys. Never shown again.")]
Name = Annotated[str, Field(max_length=64)]
Number = Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]
Rank = Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]
Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT_S, description="Seconds to wait for news before an answer without any")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Submission(_Strict):
    spec: Spec
    secrets: Secrets = {}
    id: str = Field("", description="Its name, for who may have to ask twice: the second time the job of the first one is returned")


class Stop(_Strict):
    mode: Literal["drain", "now"] = "drain"
    """drain: save a checkpoint first."""


class Resumption(_Strict):
    spec: Spec | None = None
    """What is asked for now; null: as before."""
    secrets: Secrets = {}


class Removal(_Strict):
    secrets: Annotated[dict[str, str], Field(description="Keys for the job's object store, as of its submission")] = {}


class NewUser(_Strict):
    name: Name
    tenant: str = Field("", description="Whose jobs the user may change; empty: the user's own name")
    role: str = Field("user", description="viewer, user or admin")


class Priority(_Strict):
    priority: int


class PolicyChoice(_Strict):
    name: Name
    """What to call it: of the file its settings came from."""
    settings: Annotated[dict[str, Any], AfterValidator(_shallow)] = {}
    """As in `conf/scheduler`; what is left out has its default."""


class Problem(BaseModel):
    error: str = Field(description="Its name in the error tree")
    message: str


class JobView(BaseModel):
    """A job, whole: spec, progress, result and placement as they are kept."""

    model_config = ConfigDict(extra="allow")
    id: str
    state: str
    version: int
    run: int
    user: str
    tenant: str
    reason: str
    spec: dict[str, Any]
    progress: dict[str, Any]
    result: dict[str, Any] | None


class JobInShort(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: str
    state: str
    user: str
    tenant: str
    progress: dict[str, Any]


class JobPage(BaseModel):
    jobs: list[JobInShort]
    next: str = Field(description="Give it as `after` for what follows; empty: that was all")


class EventView(BaseModel):
    seq: int
    kind: str
    job_id: str
    time_s: float
    message: str
    fields: dict[str, Any]


class EventPage(BaseModel):
    events: list[EventView]
    next: int = Field(description="Give it as `after` for what follows")
    ended: bool = Field(description="The job has ended and these are its last events")


class LineView(BaseModel):
    rank: int
    epoch: int
    time_s: float = Field(description="When it reached the store, about a second after it was printed; 0: not known")
    text: str


class LogPage(BaseModel):
    lines: list[LineView]
    next: str = Field(description="Give it as `after` for what follows, at any time, to any server of the same jobs")
    ended: bool = Field(description="The job has ended and these are its last lines")


class Forgiven(BaseModel):
    node: str
    incidents: int


class RemovedView(BaseModel):
    id: str
    objects: int = Field(description="That were deleted now")
    done: bool = Field(description="Nothing is left; if not, ask again")


class UserView(BaseModel):
    name: str
    tenant: str
    role: str
    created_s: float
    revoked_s: float | None = Field(description="When the token was revoked; null: it counts")


class UserList(BaseModel):
    users: list[UserView]


class NewToken(BaseModel):
    user: str
    token: str = Field(description="Shown this once: only a hash of it is kept")


class Revoked(BaseModel):
    user: str
    revoked: bool
