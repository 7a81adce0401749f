"""What the loop tells who watches it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator.runtime.link import Phase, ProgressClock
from orchestrator.runtime.train import _tick


class Staging:
    """Notes where the clock stands when the loop waits for a copy."""

    def __init__(self, clock, copying):
        self.clock, self.copying, self.waited_in = clock, copying, []

    def finish(self):
        self.waited_in.append(self.clock.read().phase)


@pytest.mark.parametrize("copying", [True, False])
def test_who_waits_for_the_copy_of_a_save_is_in_the_checkpoint_and_not_loading(tmp_path, copying):
    clock = ProgressClock(tmp_path / "clock", create=True)
    staging = Staging(clock, copying)
    run = SimpleNamespace(staging=staging, tick=clock.tick)
    for phase in (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.DATA, Phase.OPTIMIZER):
        _tick(run, SimpleNamespace(tick=lambda phase: None), 7, phase)
    assert staging.waited_in == [Phase.CHECKPOINT] * copying
    assert (clock.read().step, clock.read().phase) == (7, Phase.OPTIMIZER)
