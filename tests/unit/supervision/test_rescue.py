"""Which staged steps come into the store still after nodes were lost, and what their peers are asked for."""

from __future__ import annotations

from pathlib import Path

from orchestrator.paths import Home
from orchestrator.spec import JobSpec, from_dict
from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.rescue import Rescue

VALUES = {
    "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"},
    "training": {"max_steps": 50, "global_batch_size": 4, "micro_batch_size": 1}, "resources": {"num_workers": 4},
}  # fmt: skip


class Ring:
    """Three nodes with ranks 0, 1 | 2 | 3; `held` is what the peers have copies of."""

    def __init__(self, *lost, held=()):
        self.lost, self.held, self.asked = set(lost), set(held), []

    def missing(self):
        return self.lost

    def peer(self, bundle):
        return (bundle + 1) % 3

    def adopt(self, bundle, unsaved):
        self.asked.append((bundle, unsaved))
        return unsaved & self.held


def rescue(ring, saved=()):
    """All ranks have staged steps 10 and 20, ranks 0 and 1 also 30."""
    context = RunContext(job_id="job", run=1, spec=from_dict(JobSpec, VALUES), home=Home(Path("/")), ranks_per_bundle=(2, 1, 1))
    attempt = Attempt(epoch=1, world_size=4, base_step=0, began_s=0.0)
    for step, writers in ((10, 4), (20, 4), (30, 2)):
        for writer in range(writers):
            attempt.heard_staged({"step": step, "checkpoint": f"p{step}", "writer": writer}, 0.0)
    for step, writer in saved:
        attempt.heard_saved({"step": step, "checkpoint": f"p{step}", "writer": writer})
    return Rescue(context, ring, attempt)


def test_all_comes_while_every_node_is_there():
    ring = Ring()
    assert rescue(ring).steps() == [10, 20]
    assert not ring.asked


def test_a_peer_is_asked_once_for_what_of_the_lost_node_is_not_known_to_be_stored():
    ring = Ring(0, held=[(0, "p20"), (1, "p20")])
    it = rescue(ring, saved=[(10, 0), (10, 1)])
    assert it.steps() == it.steps() == [10, 20]
    assert ring.asked == [(0, {(0, "p20"), (1, "p20")})]


def test_a_peer_is_asked_for_what_is_heard_of_later_too():
    ring = Ring(1, held=[(2, "p10"), (2, "p20"), (2, "p30")])
    it = rescue(ring)
    assert it.steps() == [10, 20]
    for writer in (2, 3):
        it._attempt.heard_staged({"step": 30, "checkpoint": "p30", "writer": writer}, 0.0)
    assert it.steps() == [10, 20, 30]
    assert ring.asked == [(1, {(2, "p10"), (2, "p20")}), (1, {(2, "p30")})]


def test_a_step_of_which_a_part_has_no_copy_does_not_come():
    ring = Ring(0, held=[(0, "p10"), (1, "p10"), (0, "p20")])
    assert rescue(ring).steps() == [10]


def test_a_peer_that_is_lost_too_stores_nothing():
    ring = Ring(1, held=[(2, "p10"), (2, "p20"), (3, "p10"), (3, "p20")])
    it = rescue(ring)
    assert it.steps() == [10, 20]
    ring.lost = {1, 2}
    assert it.steps() == []
    ring.lost = {2}  # bundle 2's copies lie on bundle 0
    assert it.steps() == [10, 20]


def test_what_was_stored_before_the_nodes_were_lost_needs_no_peer():
    assert rescue(Ring(1, 2, held=[]), saved=[(10, 2), (10, 3)]).steps() == [10]
