"""`checkpoint export`: a checkpoint as a folder for other programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from orchestrator.checkpoints.catalog import Entry, read_catalog
from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.safetensors_files import parameters_of, write_safetensors
from orchestrator.checkpoints.tensors import num_bytes_of
from orchestrator.cli.place import Place, chosen, place_of, place_parser
from orchestrator.cli.screen import Bar, as_json
from orchestrator.errors import UserError
from orchestrator.spec import to_dict

FORMATS = {
    "hf": "as transformers reads it, by the workload's own code; with --adapters only its LoRA adapters, as peft reads them",
    "safetensors": "all weights and buffers, without the workload's code",
    "deepspeed-universal": "weights and optimizer state for DeepSpeed's checkpoint.load_universal",
}


def export_(arguments: list[str]) -> int:
    formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser = place_parser("export", "Write a checkpoint as a folder for other programs.")
    parser.add_argument("folder", help="must be empty, or not be there yet")
    parser.add_argument("--step", type=int, help="else the newest good one")
    parser.add_argument("--format", choices=FORMATS, default="hf", help=formats)
    parser.add_argument("--adapters", action="store_true", help="with --format hf: only the LoRA adapters; else they are merged")
    asked = parser.parse_args(arguments)
    if asked.adapters and asked.format != "hf":
        raise UserError(f"--adapters goes with --format hf, not with {asked.format}.")
    folder = Path(asked.folder)
    place = place_of(asked)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; give an empty folder or a new name.")
    entry = chosen(read_catalog(place.store, place.keys), asked.step, place.keys.job_id)
    folder.mkdir(parents=True, exist_ok=True)
    if asked.format == "safetensors":
        return _safetensors(place, entry, folder, asked.json)
    return _by_program(place, entry, folder, asked.format, asked.adapters, asked.json)


def _safetensors(place: Place, entry: Entry, folder: Path, json_wanted: bool) -> int:
    manifest = CommitLog(place.store, place.keys).load_manifest(entry.ref)
    with Bar(f"writing step {manifest.step}", sum(num_bytes_of(parts[0]) for parts in parameters_of(manifest).values())) as bar:
        files = write_safetensors(place.store, manifest, folder, bar.add)
    message = f"{place.keys.job_id} at step {manifest.step} is in {folder}: {len(files) - 1} files and their index"
    _say(message, place, entry, folder, json_wanted)
    return 0


def _by_program(place: Place, entry: Entry, folder: Path, format_: str, adapters: bool, json_wanted: bool) -> int:
    told = {"id": place.keys.job_id, "spec": to_dict(place.spec), "commit": entry.ref.key, "format": format_, "adapters": adapters}
    command = [sys.executable, "-m", "orchestrator.runtime.export", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin and program.stdout
        program.stdin.write(json.dumps(told))
        program.stdin.close()
        with Bar(f"writing step {entry.ref.step}", 0) as bar:
            for answer in map(json.loads, program.stdout):
                bar.expect(answer.get("total", 0))
                bar.add(answer.get("bytes", 0))
    if program.returncode == 0:
        _say(answer["message"], place, entry, folder, json_wanted)
    return program.returncode


def _say(message: str, place: Place, entry: Entry, folder: Path, json_wanted: bool) -> None:
    told = {"job": place.keys.job_id, "step": entry.ref.step, "epoch": entry.ref.epoch, "folder": str(folder)}
    print(as_json(told) if json_wanted else message)
