"""The verb `export`: the model of a job as a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from orchestrator.cli.jobs import client_for, parser_for
from orchestrator.errors import UserError
from orchestrator.spec import to_dict


def export(arguments: list[str]) -> int:
    parser = parser_for("export", "Write the model of the newest checkpoint as a folder that transformers reads.")
    parser.add_argument("job")
    parser.add_argument("folder", help="must be empty, or not be there yet")
    parser.add_argument("--adapters", action="store_true", help="only the LoRA adapters, as peft reads them; else they are merged")
    asked = parser.parse_args(arguments)
    job = client_for(asked.home, asked.job).job(asked.job)
    folder = Path(asked.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; give an empty folder or a new name.")
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps({"id": job.id, "spec": to_dict(job.spec), "adapters": asked.adapters})
    done = subprocess.run([sys.executable, "-m", "orchestrator.runtime.export", str(folder)], input=told, text=True, check=False)
    return done.returncode
