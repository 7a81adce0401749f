"""What a workload offers: model, data recipe, loss and metrics, and nothing of ranks, checkpoints or Ray.

A workload is built once per process as `cls(spec)`. Arrays of samples are numpy structured arrays: one record per sample, the
fields of fixed shape (`tokens: uint16[513]`, `image: float32[1, 8, 8]`). In a batch each field is a tensor whose first dimension
is the number of samples; whole numbers come as int64, but bytes (uint8) as they are, others as float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from orchestrator.spec import JobSpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    Batch = Mapping[str, torch.Tensor]


class DatasetSink(Protocol):
    """Where `prepare` puts what it makes. The content hash is over all of it, in the order of the calls."""

    def write(self, split: str, records: np.ndarray[Any, Any]) -> None:
        """Append samples (structured dtype, shape [n]) to a split: `train` and `validation` are needed."""

    def add_file(self, name: str, content: bytes) -> None:
        """Keep a file beside the shards: a tokenizer, class names."""

    def progress(self, message: str) -> None:
        """Tell the person who waits what is going on, in a few words."""


class DatasetView(Protocol):
    """A prepared data set as a workload sees it."""

    @property
    def content_hash(self) -> str: ...

    def num_samples(self, split: str) -> int: ...

    def file(self, name: str) -> bytes: ...


@runtime_checkable
class Workload(Protocol):
    """The methods that the runtime calls. All of them must be deterministic given the spec and the seeds already set."""

    def __init__(self, spec: JobSpec) -> None: ...

    @property
    def tokens_per_sample(self) -> int:
        """For throughput; 0 where a sample has no tokens (then samples/s is shown)."""

    def source_fingerprint(self) -> str:
        """A hash of the recipe and of the source it reads. Same fingerprint: the prepared data set is used again."""

    def prepare(self, sink: DatasetSink) -> None:
        """Read the source, write samples. Runs once, in one process on one node."""

    def build_model(self, dataset: DatasetView) -> torch.nn.Module:
        """The model on the CPU in fp32, initialised under the job's seed."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Scalar: the mean over the samples of the batch."""

    def evaluate(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Sums over the samples of the batch (any shape, float64 or int64); they are added over batches and ranks."""

    def metrics(self, sums: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, float]:
        """Figures from the sums over the whole split; must contain `loss`."""


class OffersLayers(Protocol):
    """Optional, and needed for `parallelism.pipeline_parallel_size` > 1: `layers(model)` -> the model as a chain of modules.

    The first one takes a batch, each other one what the one before it returned, which must be a tensor; the last one returns what the
    model itself would return for that batch. All parameters and persistent buffers are the model's own; a tied weight may stand in
    several modules. `loss` and `evaluate` then get a stand-in for the model that has its outcome already: they may call it once for a
    batch, its arguments are not looked at, and it has no parameters.
    """

    def layers(self, model: torch.nn.Module) -> Sequence[torch.nn.Module]: ...


class Initialise(Protocol):
    """Sets the tensors of one module of a model; see `OffersInitialisation`."""

    def __call__(self, model: torch.nn.Module, name: str, module: torch.nn.Module) -> None: ...


class OffersInitialisation(Protocol):
    """Optional, for models that should not stand whole in one process's memory: their values, module by module.

    Where it is offered, the runtime calls `build_model` under `torch.device("meta")`: tensors get shapes and no values, and nothing may
    look at those. Then it takes one module after the other: memory for its tensors, their values, and on to where they stay.
    """

    @property
    def initialise(self) -> Initialise | None:
        """`initialise(model, name, module)` sets `module`'s own parameters and buffers, which are fp32 on the rank's device and hold NaN; a
        tied one is set by the first module that has it. torch's random numbers are seeded from the job's seed and `name`, which is
        `model.named_modules()`'s. No other module may be looked at. None: this job's model is built by `build_model` alone."""


class OffersSequence(Protocol):
    """Optional: what ranks need to know to share each sample's sequence (`parallelism.sequence_parallel_size` > 1).

    A rank's batch then holds its slice of the fields named here and the other fields whole; the model, a transformers model, attends
    over the whole sequence and counts positions as in it. So `loss` must be a mean in which every position counts alike, and the sums
    that `evaluate` makes of the slices must add up to those of the whole.
    """

    @property
    def sequence_fields(self) -> Mapping[str, int]:
        """Fields of a batch that run along the sequence, [samples, positions + n, ...], each with its n: 0 where it has an element for
        each position, 1 where inputs are `[:, :-1]` and targets `[:, 1:]` of one field. Slices overlap by n."""


class OffersDraws(Protocol):
    """Optional: random numbers for each training sample, for augmentation in `loss`.

    A training batch then has a field `draws`, int64[samples, draws_per_sample] from 0 up to 2**32: a function of the job's seed, the
    epoch and the sample alone, so the same at any number of workers and after a restart. Evaluation has none.
    """

    @property
    def draws_per_sample(self) -> int:
        """0: none."""


class OffersSample(Protocol):
    """Optional: `sample(model, dataset)` -> a text that shows what the trained model does."""

    def sample(self, model: torch.nn.Module, dataset: DatasetView) -> str: ...


class OffersReport(Protocol):
    """Optional: `report(sums, dataset)` -> files by name (JSON, PNG, text) that show the final evaluation."""

    def report(self, sums: Mapping[str, np.ndarray[Any, Any]], dataset: DatasetView) -> Mapping[str, bytes]: ...


class OffersExport(Protocol):
    """Optional: `export(model, dataset, folder)` writes the model as files that other programs read, for
    `orchestrator checkpoint export`."""

    def export(self, model: torch.nn.Module, dataset: DatasetView, folder: Path) -> None: ...


class OffersAdapters(Protocol):
    """Optional: `export_adapters(model, dataset, folder)` writes only what was trained beside stored weights, for
    `checkpoint export --adapters`."""

    def export_adapters(self, model: torch.nn.Module, dataset: DatasetView, folder: Path) -> None: ...


class OffersFlops(Protocol):
    """Optional: `flops_per_sample(model)` -> floating point operations of the forward and backward pass of one sample, for the MFU.

    For a decoder 6 N + 12 L h s per token (N parameters, L layers, width h, sequence length s; PaLM, appendix B). Without it,
    6 x parameters x `tokens_per_sample` are taken.
    """

    def flops_per_sample(self, model: torch.nn.Module) -> float: ...


REQUIRED = ("source_fingerprint", "prepare", "build_model", "loss", "evaluate", "metrics")
"""Methods that an entry point must have; checked right after it is imported."""
