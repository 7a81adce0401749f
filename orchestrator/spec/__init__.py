"""What was asked for: `JobSpec` and its parts, frozen and validated.

A spec says what a person wants and nothing of what happened (that is `orchestrator.job`). Each part mirrors one Hydra group
of `conf/`; the attribute path is the command-line flag: `spec.training.max_steps` is `training.max_steps=...`.

    training.py      TrainingSpec, OptimizerSpec           job.py      WorkloadSpec, ModelSpec, DataSpec, JobSpec
    parallelism.py   ParallelismSpec                       convert.py  to_dict, from_dict
    operations.py    ResourcesSpec, CheckpointSpec, StorageSpec, TrackingSpec, RecoverySpec, ClusterSpec
    guard.py         GuardSpec                             chaos.py    ChaosSpec
    environment.py   EnvironmentSpec
    scheduling.py    SchedulingSpec
"""

from orchestrator.spec.chaos import ChaosSpec
from orchestrator.spec.checks import Options
from orchestrator.spec.convert import from_dict, to_dict
from orchestrator.spec.environment import EnvironmentSpec
from orchestrator.spec.guard import GuardSpec, OnBadNumbers
from orchestrator.spec.job import DataSpec, JobSpec, ModelSpec, WorkloadSpec
from orchestrator.spec.operations import CheckpointSpec, ClusterSpec, RecoverySpec, ResourcesSpec, StorageSpec, TrackingSpec
from orchestrator.spec.parallelism import SIZES, Offload, ParallelismSpec
from orchestrator.spec.scheduling import SchedulingSpec
from orchestrator.spec.training import (
    WHY_NO_OPTIMIZER,
    ActivationCheckpointing,
    CompileBackend,
    Float8,
    OptimizerName,
    OptimizerSpec,
    Precision,
    Schedule,
    TrainingSpec,
    why_no_optimizer,
)

__all__ = [
    "SIZES",
    "WHY_NO_OPTIMIZER",
    "ActivationCheckpointing",
    "ChaosSpec",
    "CheckpointSpec",
    "ClusterSpec",
    "CompileBackend",
    "DataSpec",
    "EnvironmentSpec",
    "Float8",
    "GuardSpec",
    "JobSpec",
    "ModelSpec",
    "Offload",
    "OnBadNumbers",
    "OptimizerName",
    "OptimizerSpec",
    "Options",
    "ParallelismSpec",
    "Precision",
    "RecoverySpec",
    "ResourcesSpec",
    "Schedule",
    "SchedulingSpec",
    "StorageSpec",
    "TrackingSpec",
    "TrainingSpec",
    "WorkloadSpec",
    "from_dict",
    "to_dict",
    "why_no_optimizer",
]
