"""Low-rank adapters (LoRA, Hu et al. 2021) through peft: the weights of a folder stay as they are, small matrices beside them are trained.

A layer x -> Wx becomes x -> Wx + (alpha / rank) B A x with A float[rank, in], which begins at random, and B float[out, rank], which
begins at zero: the first forward pass is that of the stored model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from orchestrator.errors import ConfigError, UserError
from orchestrator.spec import JobSpec

from .requirements import require

_ADAPTER = "default"  # peft's name for the only one there is


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Part of `model.options` of a pretrained model."""

    lora_rank: int = 0
    """Rank of the adapters; 0: none, every weight is trained."""
    lora_alpha: float = 16.0
    """The adapters' share is multiplied by alpha / rank."""
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers that get one, such as q_proj; empty: all but the output."""

    def __post_init__(self) -> None:
        require(self.lora_rank >= 0, "model.options.lora_rank", self.lora_rank, "0 (no adapters) or more")
        require(self.lora_alpha > 0, "model.options.lora_alpha", self.lora_alpha, "more than 0")
        require(0 <= self.lora_dropout < 1, "model.options.lora_dropout", self.lora_dropout, "0 up to, but not, 1")

    def check_layout(self, spec: JobSpec) -> None:
        """Raises ConfigError where ranks would share a layer: then its adapter would have to be divided with it, which none does."""
        together = spec.parallelism.tensor_parallel_size
        allowed = "1 with model.options.lora_rank: adapters are not divided among ranks"
        require(together == 1 or not self.lora_rank, "parallelism.tensor_parallel_size", together, allowed)

    def adapt(self, model: nn.Module) -> nn.Module:
        """`model`, of transformers, with adapters; then nothing else of it is trainable. Raises ConfigError for unknown targets."""
        if not self.lora_rank:
            return model
        from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and few need it

        linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
        for name in self.lora_targets:
            if name not in linear:
                raise ConfigError(f"model.options.lora_targets={name} is not possible: the model's linear layers are {', '.join(linear)}.")
        config = LoraConfig(
            r=self.lora_rank, lora_alpha=self.lora_alpha, lora_dropout=self.lora_dropout,
            target_modules=list(self.lora_targets) or "all-linear",
        )  # fmt: skip
        adapted: nn.Module = inject_adapter_in_model(config, model)
        return adapted

    def save_adapters(self, model: nn.Module, base: str, folder: Path) -> None:
        """Write the adapters of a causal language model, without the weights of `base` that they stand beside, as peft reads them.

        Raises UserError where there are none.
        """
        if not self.lora_rank:
            raise UserError("this model has no adapters (model.options.lora_rank=0): export it without --adapters.")
        from peft import LoraConfig
        from safetensors.torch import save_file

        adapted = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "get_base_layer")}
        config = LoraConfig(
            r=self.lora_rank, lora_alpha=self.lora_alpha, lora_dropout=self.lora_dropout, target_modules=sorted(adapted),
            base_model_name_or_path=base, task_type="CAUSAL_LM", inference_mode=True,
        )  # fmt: skip
        config.save_pretrained(folder)
        tensors = {
            f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": parameter.detach().contiguous()
            for name, parameter in model.named_parameters()
            if f".{_ADAPTER}." in name
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merge(model: nn.Module) -> nn.Module:
    """`model` with its adapters added into the weights, as a plain model of its class. What has no adapters comes back as it is."""
    adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "get_base_layer")]
    for name, module in adapted:
        module.merge(safe_merge=True)
        model.set_submodule(name, module.get_base_layer())
    return model
