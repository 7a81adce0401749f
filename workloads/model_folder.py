"""A trained model in a local folder as transformers' `save_pretrained` writes it: `config.json`, safetensors, maybe `tokenizer.json`.

Nothing is downloaded, and nothing in the folder is run: pickled weights and code of its own are refused, each by the name of its file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig

from orchestrator.errors import DataError

FLAG = "model.options.pretrained"
TOKENIZER_FILE = "tokenizer.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def check_folder(folder: Path) -> None:
    """Raises DataError that names the first file that is missing or refused."""
    if not folder.is_dir():
        raise DataError(f"{FLAG}={folder} is not a folder.")
    if not (folder / "config.json").is_file():
        raise DataError(f"{FLAG}={folder} has no config.json.")
    if (folder / "model.safetensors").is_file():
        return
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        why = f" {pickles[0]} is refused: it is a pickle, and loading a pickle can run any code. Save it as safetensors." if pickles else ""
        raise DataError(f"{FLAG}={folder} has no model.safetensors (or model.safetensors.index.json).{why}")
    for name in sorted(set(read_json(index).get("weight_map", {}).values())):
        if not (folder / name).is_file():
            raise DataError(f"{FLAG}={folder} has no {name}, which model.safetensors.index.json names.")


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object.")
    return found


def read_config(folder: Path) -> Any:
    """transformers' config of the folder's model."""
    if "auto_map" in read_json(folder / "config.json"):
        raise DataError(f"{folder / 'config.json'} names code of its own (auto_map), which is not run: allowed are transformers' models.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{folder / 'config.json'} is no model that transformers knows: {str(error).splitlines()[0]}") from error


def load_model(auto: Any, folder: Path, config: Any, new: tuple[str, ...] = ()) -> nn.Module:
    """The stored weights in fp32. `auto`: transformers' class for the task, such as AutoModelForCausalLM.

    Weights whose name has one of the parts `new` may be missing, and begin at random then. Raises DataError where others are missing or
    have another shape.
    """
    try:
        model, found = auto.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except ValueError as error:
        raise DataError(f"{FLAG}={folder} is no model for this task: {str(error).splitlines()[0]}") from error
    _check_loaded(folder, sorted(key for key in found["missing_keys"] if not set(key.split(".")) & set(new)), "lack")
    _check_loaded(folder, sorted(key[0] for key in found["mismatched_keys"]), "have another shape for")
    module: nn.Module = model
    return module


def on_meta() -> bool:
    """Whether tensors are made without values (`torch.device("meta")`)."""
    return torch.empty(0).is_meta


def outline(auto: Any, config: Any) -> nn.Module:
    """The model of `config` in fp32 with the shapes that `load_model` gives it."""
    model: nn.Module = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model


class StoredTensors:
    """The tensors of a folder by name, of which each is read when it is needed."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        files = [single] if single.is_file() else [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  it is no dict
                    self._shapes[name], self._files[name] = tuple(file.get_slice(name).get_shape()), path

    def are_those_of(self, model: nn.Module) -> bool:
        """Whether they are the model's parameters and persistent buffers, each once (tied ones under their first name), and no more."""
        tensors = dict(model.named_parameters())
        persistent = model.state_dict().keys()
        tensors |= {name: tensor for name, tensor in model.named_buffers() if name in persistent}
        return self._shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def initialise(self, model: Any, name: str, module: nn.Module) -> None:
        """Set one module's tensors (`orchestrator.workload.OffersInitialisation`): those that are not stored as transformers does."""
        if module._non_persistent_buffers_set:
            model._init_weights(module)
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if key not in module._non_persistent_buffers_set:
                full = f"{name}.{key}"
                with safe_open(self._files[full], "pt") as file:  # opened anew: what it has mapped counts as this process's memory
                    tensor.copy_(file.get_tensor(full))


def save_folder(model: Any, folder: Path, tokenizer: Tokenizer) -> None:
    """Write `model`, a transformers one, with the tokenizer that its data were made by. `load_model` reads it, and so does transformers."""
    model.save_pretrained(folder)
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str())
    path = folder / "config.json"
    known = next(cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))  # ours are not in transformers
    path.write_text(json.dumps({**read_json(path), "architectures": [known]}, indent=2))


def check_fit(config: Any, vocab_size: int) -> None:
    """Raises DataError where the model cannot read the data's tokens."""
    if vocab_size > config.vocab_size:
        raise DataError(
            f"the tokenizer has {vocab_size} tokens, the model of {FLAG} only {config.vocab_size}: "
            "give the folder its tokenizer.json, or a smaller data.options.vocab_size."
        )


def _check_loaded(folder: Path, names: list[str], what: str) -> None:
    if names:
        raise DataError(f"{FLAG}={folder}: the weights {what} {', '.join(names[:3])} ({len(names)} in all) of config.json's model.")
