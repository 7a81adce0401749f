"""The engine under planners that do as they are told, and under the scheduler itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from orchestrator.control.scheduler.model import ClusterView, Plan, Policy, Preempt, Reservation, Resize, Start
from orchestrator.errors import ConfigError
from orchestrator.simulation.cluster import SimulationError, failures
from orchestrator.simulation.engine import simulate
from orchestrator.simulation.generate import generate
from orchestrator.simulation.grid import Ledger
from orchestrator.simulation.model import Outcome, Segment, Shape, TraceJob, World

ONE_NODE = World(shapes=(Shape(nodes=1, gpus_per_node=8),))
ROUNDS = Policy(mode="preemptive")
EVENTS = Policy(mode="batch")


def job(name: str, submit_s: float = 0, gpus: int = 8, duration_s: float = 600, **more) -> TraceJob:
    return TraceJob(id=name, submit_s=submit_s, gpus=gpus, duration_s=duration_s, **more)


def first_come(cluster: ClusterView, queue, running, usage, now, policy) -> Plan:
    free, starts = Ledger().grid(cluster, running), []
    for waiting in queue:
        place = free.place(waiting.demand)
        if place is None:
            break
        free.take(place)
        starts.append(Start(job_id=waiting.id, placement=place))
    return Plan(starts=tuple(starts))


class Recorder:
    """Keeps what the planner was given."""

    def __init__(self, planner=first_come) -> None:
        self.planner = planner
        self.calls: list[dict] = []

    def __call__(self, cluster, queue, running, usage, now, policy) -> Plan:
        self.calls.append({"cluster": cluster, "queue": queue, "running": running, "usage": usage, "now": now})
        return self.planner(cluster, queue, running, usage, now, policy)

    def at(self, now: float) -> dict:
        return next(call for call in reversed(self.calls) if call["now"] == now)


def preempting(at: float, victim: str, heir: str):
    """First come, but at `at` the heir has the place of the victim."""

    def planner(cluster, queue, running, usage, now, policy) -> Plan:
        if now == at and any(run.job.id == victim for run in running):
            place = next(run.placement for run in running if run.job.id == victim)
            preempt = Preempt(job_id=victim, for_job=heir, cost=0.0)
            return Plan(preempts=(preempt,), starts=(Start(job_id=heir, placement=place),))
        plan = first_come(cluster, queue, running, usage, now, policy)
        return replace(plan, next_change_at=at) if now < at else plan

    return planner


def by_id(outcome: Outcome) -> dict:
    return {found.job.id: found for found in outcome.jobs}


def segments(outcome: Outcome, name: str) -> list[tuple[float, float, str]]:
    return [(stay.start_s, stay.end_s, stay.end) for stay in by_id(outcome)[name].segments]


def test_without_preemption_a_job_starts_at_the_event_that_makes_room():
    outcome = simulate([job("a", 5), job("b", 7, duration_s=10)], ONE_NODE, first_come, EVENTS)
    assert segments(outcome, "a") == [(5, 605, "done")]
    assert segments(outcome, "b") == [(605, 615, "done")]
    assert (by_id(outcome)["b"].waited_s, by_id(outcome)["b"].longest_wait_s, by_id(outcome)["b"].jct_s) == (598, 598, 608)
    assert outcome.timeline == ((5, 8, 0), (7, 8, 1), (605, 8, 0), (615, 0, 0))
    assert (outcome.gpus, outcome.plans) == (8, len(outcome.plan_seconds))


def test_with_preemption_a_job_starts_at_the_next_round():
    outcome = simulate([job("a", 5), job("b", 7, duration_s=10)], ONE_NODE, first_come, ROUNDS)
    assert segments(outcome, "a") == [(60, 660, "done")]
    assert segments(outcome, "b") == [(660, 670, "done")]


def test_a_preempted_job_keeps_its_work_and_pays_for_its_next_start():
    trace = [job("a", gpus=4, duration_s=600), job("b", gpus=4, duration_s=3000), job("c", 60, gpus=4, duration_s=120)]
    seen = Recorder(preempting(at=120, victim="a", heir="c"))
    outcome = simulate(trace, ONE_NODE, seen, ROUNDS)
    assert segments(outcome, "a") == [(0, 120, "preempted"), (240, 240 + 62 + 480, "done")]
    assert segments(outcome, "c") == [(120, 240, "done")]
    a = by_id(outcome)["a"]
    assert (a.preemptions, a.waited_s, a.longest_wait_s, a.lost_gpu_s, a.first_start_s) == (1, 120, 120, 62 * 4, 0)
    waiting = next(waiting for waiting in seen.at(240)["queue"] if waiting.id == "a")
    assert (waiting.queued_s, waiting.attained, waiting.ran_s, waiting.preemptions) == (120, 480, 120, 1)
    assert waiting.submitted_s == 0


def test_the_planner_is_asked_again_at_once_when_it_has_preempted():
    def in_two(cluster, queue, running, usage, now, policy) -> Plan:
        if now == 120 and any(run.job.id == "a" for run in running):
            return Plan(preempts=(Preempt(job_id="a", for_job="b", cost=0.0),))
        ordered = tuple(sorted(queue, key=lambda waiting: waiting.id, reverse=True))
        return replace(first_come(cluster, ordered, running, usage, now, policy), next_change_at=120 if now < 120 else None)

    outcome = simulate([job("a"), job("b", 30, duration_s=60)], ONE_NODE, in_two, ROUNDS)
    assert segments(outcome, "b") == [(120, 180, "done")]


def test_a_planner_that_preempts_in_a_circle_is_stopped():
    def restless(cluster, queue, running, usage, now, policy) -> Plan:
        preempts = tuple(Preempt(job_id=run.job.id, for_job="", cost=0.0) for run in running)
        everyone = (*queue, *(run.job for run in running))
        return replace(first_come(cluster, everyone, (), usage, now, policy), preempts=preempts)

    with pytest.raises(SimulationError, match=r"at 60 s the planner preempts for the 10th time, last .*job_id='b'"):
        simulate([job("a"), job("b", 60)], ONE_NODE, restless, ROUNDS)


def test_decayed_usage_is_charged_to_the_tenant_also_while_its_job_runs():
    seen = Recorder()
    half_life_s = 1000.0
    policy = replace(EVENTS, usage_half_life_s=half_life_s)
    trace = [job("a", tenant="t", duration_s=1000), job("b", 500, tenant="u"), job("c", 3000, tenant="u", duration_s=1), job("d", 3000)]
    simulate(trace, ONE_NODE, seen, policy)
    decay = math.log(2) / half_life_s
    assert seen.at(500)["usage"].charged["t"] == pytest.approx(8 * (1 - math.exp(-500 * decay)) / decay)
    after = 8 * (1 - math.exp(-1000 * decay)) / decay * 0.5**2
    assert seen.at(3000)["usage"].charged["t"] == pytest.approx(after)
    assert seen.at(3000)["usage"].charged_at_s == 3000


def test_history_has_the_jobs_that_succeeded():
    seen = Recorder()
    trace = [job("a", tenant="t", duration_s=70), job("b", 100, tenant="t", status="Failed"), job("c", 2000, tenant="t")]
    simulate([*trace, job("d", 2000)], ONE_NODE, seen, EVENTS)
    assert seen.at(2000)["usage"].history == {("t", 8): (70.0,)}


def test_a_reservation_is_remembered_as_it_was_first_promised():
    def reserving(cluster, queue, running, usage, now, policy) -> Plan:
        plan = first_come(cluster, queue, running, usage, now, policy)
        started = {start.job_id for start in plan.starts}
        promised = [Reservation(job_id=w.id, start_s=now + 600, placement=()) for w in queue if w.id not in started]
        return replace(plan, reservations=tuple(promised))

    seen = Recorder(reserving)
    simulate([job("a"), job("b", 10), job("c", 20)], ONE_NODE, seen, EVENTS)
    assert {waiting.id: waiting.reserved_s for waiting in seen.at(600)["queue"]} == {"b": 610, "c": 620}


def test_a_shrunken_job_goes_on_at_the_law_of_speed_up():
    def resizing(cluster, queue, running, usage, now, policy) -> Plan:
        for run in running:
            if now == 300 and run.workers == 8:
                node_id = run.placement[0][0]
                return Plan(resizes=(Resize(job_id=run.job.id, workers=4, placement=((node_id, 4),)),))
        return first_come(cluster, queue, running, usage, now, policy)

    seen = Recorder(resizing)
    world = replace(ONE_NODE, speedup_exponent=0.5, preemption_loss_s=10.0)
    outcome = simulate([job("a", sizes=(4, 8)), job("b", 300, gpus=4)], world, seen, EVENTS)
    assert segments(outcome, "a") == [(0, 300, "resized"), (300, pytest.approx(310 + 300 * math.sqrt(2)), "done")]
    assert segments(outcome, "b")[0][0] == 300
    assert (by_id(outcome)["a"].preemptions, by_id(outcome)["a"].waited_s) == (0, 0)
    assert [(run.job.resized_s, run.workers, run.may_grow) for run in seen.calls[-1]["running"]] == [(300, 4, True)]


def test_a_gang_runs_at_the_speed_of_its_slowest_node():
    world = World(shapes=(Shape(nodes=1, gpus_per_node=8, speed=2.0), Shape(nodes=1, gpus_per_node=8, speed=0.5)))
    outcome = simulate([job("a", gpus=16), job("b", gpus=8)], world, first_come, EVENTS)
    assert segments(outcome, "a") == [(0, 1200, "done")]
    assert segments(outcome, "b") == [(1200, 1500, "done")]


def test_a_job_whose_node_fails_goes_on_from_its_last_save():
    world = replace(ONE_NODE, node_mtbf_s=100_000.0, node_repair_s=1000.0, save_interval_s=700.0, seed=3)
    failed = next(failures(world, "node-000"))
    outcome = simulate([job("a", duration_s=failed + 500)], world, first_come, EVENTS)
    saved, again = failed // 700 * 700, failed + 1000
    assert segments(outcome, "a") == [(0, failed, "node_lost"), (again, pytest.approx(again + 62 + failed + 500 - saved), "done")]
    a = by_id(outcome)["a"]
    assert (a.preemptions, a.waited_s, a.lost_gpu_s) == (0, pytest.approx(1000), pytest.approx(8 * (62 + failed - saved)))


def test_a_node_that_is_down_is_shown_as_such_and_saves_as_they_are_taken():
    world = replace(ONE_NODE, node_mtbf_s=100_000.0, node_repair_s=1000.0, save_interval_s=700.0, seed=3)
    failed = next(failures(world, "node-000"))
    seen = Recorder()
    trace = [job("a", duration_s=failed + 500), job("b", failed - 1), job("c", failed + 1)]
    simulate(trace, world, seen, EVENTS)
    assert seen.at(failed - 1)["running"][0].saved_s == (failed - 1) // 700 * 700
    assert [call["cluster"].nodes[0].alive for call in seen.calls if call["now"] >= failed][:3] == [False, False, True]


def test_failures_come_from_the_seed_alone():
    world = World(shapes=(Shape(nodes=4, gpus_per_node=8),), node_mtbf_s=50_000.0, save_interval_s=600.0, seed=1)
    trace = generate("plain", jobs=60, gpus=32, seed=1)
    first, again = (simulate(trace, world, first_come, EVENTS) for _ in range(2))
    assert first == again
    assert any(stay.end == "node_lost" for found in first.jobs for stay in found.segments)
    assert simulate(trace, replace(world, seed=2), first_come, EVENTS) != first


@pytest.mark.parametrize("policy", [ROUNDS, EVENTS])
def test_planning_every_round_changes_nothing_where_nothing_changes(policy):
    trace = generate("plain", jobs=100, gpus=32, seed=2)
    world = World(shapes=(Shape(nodes=4, gpus_per_node=8),))
    skipping, stepping = (simulate(trace, world, first_come, policy, every_round=every) for every in (False, True))
    assert (skipping.jobs, skipping.timeline) == (stepping.jobs, stepping.timeline)
    assert skipping.plans < stepping.plans


def test_no_gpu_is_given_twice_and_no_job_started_that_does_not_wait():
    def always(placement, name="b"):
        return lambda *given: Plan(starts=(Start(job_id=name, placement=placement),)) if given[2] else first_come(*given)

    two = [job("a", gpus=5), job("b", 10, gpus=5)]
    with pytest.raises(SimulationError, match="b was given 5 GPUs of node-000, which has 3 free"):
        simulate(two, ONE_NODE, always((("node-000", 5),)), EVENTS)
    with pytest.raises(SimulationError, match="b was given 3 GPUs; legal are 5"):
        simulate(two, ONE_NODE, always((("node-000", 3),)), EVENTS)
    with pytest.raises(SimulationError, match="b was given 5 GPUs of elsewhere, which has 0 free"):
        simulate(two, ONE_NODE, always((("elsewhere", 5),)), EVENTS)
    with pytest.raises(SimulationError, match="starts a, which does not wait"):
        simulate(two, ONE_NODE, always((("node-000", 3),), "a"), EVENTS)
    with pytest.raises(SimulationError, match="preempts b, which does not run"):
        simulate(two, ONE_NODE, lambda *_: Plan(preempts=(Preempt(job_id="b", for_job="", cost=0.0),)), EVENTS)


def test_a_planner_that_lets_all_wait_for_ever_is_named():
    with pytest.raises(SimulationError, match="1 jobs would wait for ever, a because: it is Monday"):
        simulate([job("a")], ONE_NODE, lambda *_: Plan(reasons={"a": "it is Monday"}), EVENTS)


def test_what_can_never_run_or_is_there_twice_is_refused():
    with pytest.raises(ConfigError, match="job b: gpus=16 can never run: the cluster has 8 in all"):
        simulate([job("a"), job("b", gpus=16)], ONE_NODE, first_come, EVENTS)
    with pytest.raises(ConfigError, match="job a is in the trace 2 times"):
        simulate([job("a"), job("a")], ONE_NODE, first_come, EVENTS)
    small = World(shapes=(Shape(nodes=4, gpus_per_node=4),))
    assert simulate([job("a", gpus=14)], small, first_come, EVENTS).jobs[0].segments[0].nodes == (
        ("node-000", 4), ("node-001", 4), ("node-002", 4), ("node-003", 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpus": 0}, "gpus=0 must be at least 1"),
        ({"submit_s": -1}, "submit_s=-1 must be 0 or later"),
        ({"duration_s": math.nan}, "duration_s=nan must not be negative"),
        ({"sizes": (2, 4)}, r"sizes=\(2, 4\) must ascend from at least 1, with gpus=8 among them"),
        ({"sizes": (8, 4)}, r"sizes=\(8, 4\) must ascend"),
    ],
)
def test_a_job_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=f"job a: {message}"):
        job("a", **wrong)


def test_progress_is_told_after_each_end():
    told: list[tuple[int, int]] = []
    simulate([job("a"), job("b")], ONE_NODE, first_come, EVENTS, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


def test_a_segment_says_where():
    outcome = simulate([job("a", gpus=3)], ONE_NODE, first_come, EVENTS)
    assert outcome.jobs[0].segments == (Segment(start_s=0, end_s=600, nodes=(("node-000", 3),), end="done"),)
