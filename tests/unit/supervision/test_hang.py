"""Who of the ranks that stand still is the one the others wait for."""

from __future__ import annotations

import itertools
import json

import pytest

from orchestrator.job import EndReason, Remedy
from orchestrator.supervision.diagnosis import Verdict
from orchestrator.supervision.hang import RankView, collective, explain, main_frames, user_frame
from orchestrator.supervision.incident import incident_json

SITE = "/env/lib/python3.11/site-packages"
BELOW = [("/src/orchestrator/runtime/train.py", 55, "train"), ("/src/orchestrator/runtime/warm.py", 184, "_be_rank")]
C10D = f"{SITE}/torch/distributed/distributed_c10d.py"


def stack(*frames, others=()):
    """As faulthandler writes the stacks of a process: other threads first."""
    lines = []
    for thread in others:
        lines += ["Thread 0x00007f1 (most recent call first):", *(f'  File "{f}", line {n} in {name}' for f, n, name in thread), ""]
    lines += ["Current thread 0x00007f2 (most recent call first):"]
    return "\n".join(lines + [f'  File "{f}", line {n} in {name}' for f, n, name in [*frames, *BELOW]])


def waiting(name="all_reduce"):
    logger, deepspeed = f"{SITE}/torch/distributed/c10d_logger.py", f"{SITE}/deepspeed/comm/torch.py"
    return stack((C10D, 3252, name), (logger, 83, "wrapper"), (deepspeed, 9, name))


TORCH = f"{SITE}/torch/nn"
BUSY = stack((f"{TORCH}/functional.py", 9, "linear"), ("/home/me/net.py", 40, "forward"), (f"{TORCH}/modules/module.py", 1, "_call"))


def view(rank, step=812, moves=3, phase="backward", **more):
    return RankView(rank=rank, step=step, moves=moves, phase=phase, still_s=5.0, stack=more.pop("stack", waiting("reduce_scatter")), **more)


def test_a_stopped_rank():
    verdict = explain([view(0), view(1, state="T", stack=""), view(2)])
    assert (verdict.reason, verdict.rank, verdict.remedy) == (EndReason.HANG, 1, Remedy.RESTART)
    assert verdict.sentence == "rank 1 is stopped by a signal in backward of step 812; ranks 0, 2 wait in reduce_scatter"


def test_a_rank_that_waits_for_its_disk():
    verdict = explain([view(0), view(1, state="D")])
    assert verdict.sentence == "rank 1 waits in the kernel, for a disk or a driver in backward of step 812; rank 0 waits in reduce_scatter"


def test_a_rank_that_never_entered_what_the_others_wait_in():
    verdict = explain([view(0), view(1), view(2), view(3, moves=2, phase="forward", stack=BUSY)])
    assert (verdict.rank, verdict.remedy) == (3, Remedy.RETRY)
    assert verdict.sentence == (
        "rank 3 never entered backward of step 812: last seen in forward of step 812, at net.py:40 (forward); "
        "ranks 0, 1, 2 wait in reduce_scatter"
    )
    assert verdict.fingerprint == "hang:behind:forward:/home/me/net.py:forward"
    assert "net.py" in verdict.traceback


def test_a_rank_a_whole_step_behind():
    verdict = explain([view(0, step=813, moves=0, phase="data"), view(1, moves=9, phase="collective", stack=BUSY)])
    assert verdict.rank == 1
    assert verdict.sentence.startswith("rank 1 never entered data of step 813: last seen in collective of step 812")


def test_of_ranks_that_are_equally_far_the_one_outside_a_collective():
    verdict = explain([view(0), view(1, stack=BUSY), view(2)])
    assert verdict.rank == 1
    assert verdict.sentence == "rank 1 does not move in backward of step 812, at net.py:40 (forward); ranks 0, 2 wait in reduce_scatter"


def test_of_those_behind_one_that_waits_for_another_is_not_blamed():
    verdict = explain([view(0), view(1, moves=2, stack=waiting()), view(2, moves=2, stack=BUSY)])
    assert verdict.rank == 2


def test_a_lost_connection_is_no_ranks_fault():
    verdict = explain([view(0), view(1)])
    assert (verdict.rank, verdict.remedy) == (0, Remedy.RESTART)
    assert verdict.sentence == "all ranks wait in reduce_scatter of step 812: what they say to each other does not arrive"


def test_a_connection_that_is_lost_while_a_collective_has_ended_for_some_ranks_only():
    """The one that still waits in it is no more to blame than those that wait in the next one."""
    verdict = explain([view(0, step=813, moves=4, phase="collective", stack=waiting()), view(1)])
    assert (verdict.fingerprint, verdict.points_at_rank) == ("hang:connection:backward", False)
    assert verdict.sentence == "all ranks wait in all_reduce and reduce_scatter of step 812: what they say to each other does not arrive"


def test_a_rank_that_waits_for_what_nobody_sends():
    """Its own code has called a collective that the others do not take part in."""
    own = stack((C10D, 2500, "recv"), ("/home/me/net.py", 40, "loss"))
    verdict = explain([view(0), view(1, moves=2, phase="forward", stack=own)])
    assert (verdict.rank, verdict.points_at_rank) == (1, False), "it is the code's fault, not a machine's"
    assert verdict.sentence == (
        "rank 1 never entered backward of step 812: last seen in forward of step 812, at net.py:40 (loss); rank 0 waits in reduce_scatter"
    )


def test_a_rank_that_skips_a_collective_in_which_the_others_wait():
    own = stack((C10D, 2500, "all_reduce"), ("/home/me/net.py", 40, "loss"))
    verdict = explain([view(0, moves=2, phase="forward", stack=own), view(1), view(2, moves=2, phase="forward", stack=own)])
    assert (verdict.rank, verdict.points_at_rank) == (1, False)
    assert verdict.sentence.startswith("rank 1 did not enter what the workload calls in forward of step 812: last seen in backward of")
    assert verdict.sentence.endswith("; ranks 0, 2 wait in all_reduce")


def test_a_rank_that_is_ahead_and_in_no_collective_is_not_covered_by_those_that_wait_behind_it():
    verdict = explain([view(0), view(1, step=813, moves=0, phase="data", stack=BUSY)])
    assert verdict.rank == 1 and verdict.sentence.startswith("rank 1 does not move in data of step 813")


def test_only_a_rank_that_acted_by_itself_is_pointed_at():
    assert not explain([view(0), view(1, state="T", stack="")]).points_at_rank
    assert explain([view(0), view(1, state="D", stack="")]).points_at_rank
    assert explain([view(0), view(1, stack=BUSY)]).points_at_rank


def test_a_job_of_one_rank():
    verdict = explain([view(0, stack=BUSY)])
    assert verdict.sentence == "rank 0 does not move in backward of step 812, at net.py:40 (forward)"
    assert explain([view(0, state="T", stack="")]).sentence == "rank 0 is stopped by a signal in backward of step 812"


def test_ranks_that_did_not_answer_are_blamed_by_how_far_they_are():
    assert explain([view(0), view(1, moves=1, phase="data", stack="")]).rank == 1


def test_one_that_did_not_answer_does_not_cover_one_that_is_seen_outside_a_collective():
    assert explain([view(0, stack=""), view(1, stack=BUSY), view(2)]).rank == 1
    assert explain([view(0), view(1, stack="")]).rank == 1, "all that is known is that the other one waits"


def test_several_culprits_are_named_together():
    verdict = explain([view(0), view(1, state="T"), view(2, state="T")])
    assert verdict.sentence == "ranks 1, 2 are stopped by a signal in backward of step 812; rank 0 waits in reduce_scatter"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_the_views_does_not_matter(order):
    views = [view(0), view(1, moves=1, stack=BUSY), view(2)]
    assert explain([views[index] for index in order]) == explain(views)


def test_the_main_thread_is_told_from_the_others():
    text = stack((C10D, 1, "barrier"), others=[[(f"{SITE}/tqdm/_monitor.py", 60, "run")]])
    text += "\n\nThread 0x00007f3 (most recent call first):\n  File \"/lib/python3.11/threading.py\", line 3 in wait"
    frames = main_frames(text)
    assert collective(frames) == "barrier"
    assert frames[-1].function == "_be_rank"
    assert main_frames("") == [] and collective([]) == "" and user_frame([]) is None


def test_an_incident_holds_all_that_was_seen():
    seen = [{"bundle": 1, "ranks": [{"rank": 1, "stack": "s"}], "node": {"host": "b"}}]
    seen += [{"bundle": 0, "ranks": [{"rank": 0}], "node": {"host": "a"}}]
    verdict = Verdict(reason=EndReason.HANG, remedy=Remedy.RETRY, rank=1, sentence="rank 1 does not move", fingerprint="hang:x")
    found = json.loads(incident_json(verdict, 3, 60, 1.0, seen))
    assert (found["summary"], found["culprit"], found["epoch"], found["committed_step"]) == ("rank 1 does not move", 1, 3, 60)
    assert [(rank["rank"], rank["node"]) for rank in found["ranks"]] == [(0, 0), (1, 1)]
    assert {node["host"] for node in found["nodes"]} == {"a", "b"}
