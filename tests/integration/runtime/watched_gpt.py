"""A GPT that writes down the modules that its rank has when its second step begins: its first one is then complete."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from workloads.gpt import GPT


class Watched(GPT):
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        if self.calls == 2:
            Path(os.environ["FIRST_STEPS_FILE"]).write_text(json.dumps(list(sys.modules)))
        return super().loss(model, batch)
