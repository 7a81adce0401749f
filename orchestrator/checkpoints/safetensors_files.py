"""A checkpoint's parameters as safetensors files, without the code of its model. Torch-free.

The format (https://github.com/huggingface/safetensors): 8 bytes of header length, little-endian; a JSON header with dtype, shape and the
place of every tensor in what follows; the tensors' bytes. Several files have an index that says which tensor is in which.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.tensors import Name, Slices, num_bytes_of, portions, read_tensors
from orchestrator.errors import IncompatibleCheckpoint
from orchestrator.storage import ObjectStore

FILE_BYTES = 4_000_000_000
INDEX = "model.safetensors.index.json"
ROLES = ("param", "buffer")

_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16", "bfloat16": "BF16",
    "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def parameters_of(manifest: Manifest) -> Slices:
    """Weights and buffers, by (role, name)."""
    return {key: slices for key, slices in manifest.tensors().items() if key[0] in ROLES}


def write_safetensors(
    store: ObjectStore, manifest: Manifest, folder: Path, tell: Callable[[int], None] = lambda num_bytes: None, file_bytes: int = FILE_BYTES
) -> list[Path]:  # fmt: skip
    """Write `model-00001-of-0000N.safetensors` and their index, the index last; returns all files. `tell(bytes)` hears what was written.

    Raises CorruptObject, StorageError, IncompatibleCheckpoint for a type that the format lacks.
    """
    slices = parameters_of(manifest)
    files = list(portions(slices, file_bytes))
    paths = [folder / f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for path, names in zip(paths, files, strict=True):
        _write_file(store, manifest, slices, names, path, tell)
    weight_map = {name: path.name for path, names in zip(paths, files, strict=True) for _, name in names}
    total = sum(num_bytes_of(parts[0]) for parts in slices.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*paths, folder / INDEX]


def _write_file(
    store: ObjectStore, manifest: Manifest, slices: Slices, names: Sequence[Name], path: Path, tell: Callable[[int], None]
) -> None:  # fmt: skip
    with path.open("xb") as file:
        header = _header(slices, names)
        file.write(len(header).to_bytes(8, "little") + header)
        for portion in portions({name: slices[name] for name in names}):
            arrays = read_tensors(store, manifest, slices, portion)
            for name in portion:
                content = arrays.pop(name).reshape(-1).view("uint8")
                file.write(content.data)
                tell(content.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _header(slices: Slices, names: Sequence[Name]) -> bytes:
    places: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for role, name in names:
        part = slices[role, name][0]
        if part.dtype not in _DTYPES:
            raise IncompatibleCheckpoint(f"{role} of {name} is {part.dtype}, which safetensors lacks; it has {', '.join(_DTYPES)}.")
        end = offset + num_bytes_of(part)
        places[name] = {"dtype": _DTYPES[part.dtype], "shape": list(part.global_shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(places, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
