from __future__ import annotations

import dataclasses
import itertools
import threading
from concurrent.futures import wait

import pytest
from patience import LIMIT_S

from orchestrator.control import controller, life
from orchestrator.control.client import CLUSTER, Client
from orchestrator.control.controller import SEEK_LIMIT_S, SETTLE_S, Controller
from orchestrator.control.nodes.groups import GroupStatus, ScriptedGroups, done, failed
from orchestrator.control.nodes.provisioning import Provisioner, ScriptedAutoscaler
from orchestrator.control.nodes.threads import Threads
from orchestrator.control.planning.live import LiveJobs
from orchestrator.control.planning.reputation import MEMORY_S
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView, plan
from orchestrator.control.scheduler.model import CPU_UNITS, Node, Preempt
from orchestrator.errors import ClusterError, ConfigError, StaleWrite, StorageDenied, StorageUnavailable, UserError
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, JobResult, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, RecoverySpec, ResourcesSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
    resources=ResourcesSpec(num_workers=2),
)


class World:
    """A controller on a scripted cluster with 2 CPUs, and a clock that only `turn` moves."""

    def __init__(self, root) -> None:
        self.home = Home(root)
        self.groups = ScriptedGroups()
        self.client = Client(self.home)
        self.store = JobStore(self.home.jobs_db)
        self.now = 1000.0
        self.start_controller()

    def start_controller(self) -> None:
        view = ClusterView(nodes=(Node(id="node-1", cpu_units=2 * CPU_UNITS),))
        self.provisioner = Provisioner(self.home.node_types, ScriptedAutoscaler())
        self.controller = Controller(self.store, self.home, self.groups, lambda: done(view), self.provisioner)

    def turn(self, rounds: int = 4, seconds: float = 1.0) -> None:
        for _ in range(rounds):
            self.now += seconds
            self.controller.step(self.now)

    def submit(self, **changes):
        return self.client.submit(dataclasses.replace(SPEC, **changes), {"K": "v"}).id

    def running(self, **changes):
        job_id = self.submit(**changes)
        self.turn()
        self.say(job_id, JobState.RUNNING)
        self.turn()
        assert self.state(job_id) is JobState.RUNNING
        return job_id

    def say(self, job_id, state=JobState.RUNNING, events=(), source="1", ended=False, unwritten=None, **progress):
        self.groups.supervisors[job_id] = GroupStatus(
            state=state, progress=Progress(**progress), source=source, ended=ended, unwritten=unwritten,
            events=tuple((seq, Event(kind=EventKind.COMMITTED, job_id=job_id, time_s=0.0, message=text)) for seq, text in events),
        )  # fmt: skip

    def end(self, job_id, reason=EndReason.COMPLETED, message="", **more):
        run = self.client.job(job_id).run
        self.groups.results[job_id, run] = JobResult(end_reason=reason, message=message, **more)
        self.say(job_id, ended=True)

    def state(self, job_id):
        return self.client.job(job_id).state

    def messages(self, job_id):
        return [event.message for _, event in self.client.events(job_id)]

    def kinds(self, job_id):
        return [event.kind.name for _, event in self.client.events(job_id)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_job_goes_from_the_queue_to_its_end(world):
    job_id = world.submit()
    world.turn(1)
    job = world.client.job(job_id)
    assert (job.state, job.placement) == (JobState.STARTING, (("node-1", 2),))
    world.turn()
    world.say(job_id, step=3, loss=0.5, events=[(1, "one")])
    world.turn(2)
    assert world.client.job(job_id).progress == Progress(step=3, loss=0.5)
    assert world.state(job_id) is JobState.RUNNING
    world.end(job_id, metrics={"val_loss": 0.1})
    world.turn()
    job = world.client.job(job_id)
    assert (job.state, job.placement, job.result.metrics) == (JobState.SUCCEEDED, (), {"val_loss": 0.1})
    assert world.kinds(job_id) == ["SUBMITTED", "ADMITTED", "COMMITTED", "ENDED"]
    assert world.groups.calls[-1] == ("release", job_id)
    assert world.home.secrets(job_id).exists()
    world.turn(2, controller.SECRETS_STAY_S)
    assert not world.home.secrets(job_id).exists()
    assert world.store.meta(CLUSTER)["nodes"][0]["id"] == "node-1"


@pytest.mark.parametrize("readable", [True, False])
def test_a_result_that_the_store_did_not_take_is_heard_from_the_supervisor(world, readable):
    job_id = world.running()
    if not readable:
        world.groups.result = lambda job: failed(StorageUnavailable("the store is out of reach"))
    result = JobResult(end_reason=EndReason.STORAGE, message="No space left on device", committed_step=15)
    world.say(job_id, ended=True, unwritten=result)
    world.turn()
    job = world.client.job(job_id)
    assert (job.state, job.result, job.run) == (JobState.FAILED, result, 1)
    assert world.kinds(job_id)[-1] == "ENDED"


def test_the_second_job_waits_with_a_reason_and_starts_when_the_place_is_free(world):
    first, second = world.running(), world.submit()
    world.turn()
    assert world.client.job(second).reason == f"needs 2 x 1 CPU; 0 CPUs are free, held by {first}"
    assert world.kinds(second) == ["SUBMITTED", "WAITING"], "a reason is told once"
    world.end(first)
    world.turn(6)
    assert world.state(second) is JobState.STARTING
    assert world.client.job(second).reason == ""


def test_a_reason_whose_figures_change_all_the_time_is_told_once_for_each_wording(world):
    views = [ClusterView(nodes=(Node(id="node-1", cpu_units=cpus * CPU_UNITS),)) for cpus in (3, 4)]
    world.controller._look = lambda: done(views[round(world.now / 61) % 2])
    first = world.running()
    second = world.submit(resources=ResourcesSpec(num_workers=2, cpus_per_worker=1.5))
    reasons = set()
    for _ in range(60):
        world.turn(1, seconds=61)
        reasons.add(world.client.job(second).reason)
    assert reasons == {f"needs 2 x 1.5 CPUs; {free} free, held by {first}" for free in ("1 CPU is", "2 CPUs are")}
    told = [event.message for _, event in world.client.events(second) if event.kind is EventKind.WAITING]
    assert sorted(told) == sorted(reasons), "each once"


def test_rows_that_count_no_more_go_and_those_that_do_stay(world):
    broken = {"incident": "HANG", "node": "n1"}
    for time_s in (0.0, MEMORY_S):
        told = Event(kind=EventKind.HANG, job_id="a", time_s=time_s, message="rank 1 does not move", fields=broken)
        world.store.tell_waiting([], [told])
    world.now = MEMORY_S + 10.0
    world.turn(1)
    assert [incident.time_s for incident in world.store.incidents(0.0)] == [MEMORY_S]
    assert len(world.store.events("a")) == 2, "what happened to a job stays"


@pytest.mark.parametrize(
    "reason, state",
    [
        (EndReason.COMPLETED, JobState.SUCCEEDED),
        (EndReason.CANCELLED, JobState.CANCELLED),
        (EndReason.USER_ERROR, JobState.FAILED),
        (EndReason.FENCED, JobState.FAILED),
    ],
)
def test_how_it_ended_decides_the_state(world, reason, state):
    job_id = world.running()
    world.end(job_id, reason, "because")
    world.turn()
    assert (world.state(job_id), world.client.job(job_id).reason) == (state, "because")


def test_the_end_that_the_supervisor_has_told_is_not_told_again(world):
    """It is told before the journal is shipped and the tracking server has all; an order to leave may come in between. Clocks differ."""
    job_id = world.running()
    told = Event(kind=EventKind.ENDED, job_id=job_id, time_s=world.now - 100, message="trained 3 steps")
    world.say(job_id)
    world.groups.supervisors[job_id] = dataclasses.replace(world.groups.supervisors[job_id], events=((1, told),))
    world.turn()
    world.store.tell_waiting([], [Event(kind=EventKind.PREEMPTED, job_id=job_id, time_s=world.now, message="makes room")])
    world.end(job_id, message="trained 3 steps")
    world.turn()
    assert world.state(job_id) is JobState.SUCCEEDED
    assert world.messages(job_id).count("trained 3 steps") == 1


def test_a_preempted_job_is_queued_for_another_run(world):
    job_id = world.running()
    world.end(job_id, EndReason.PREEMPTED, "made room")
    world.turn(6)
    job = world.client.job(job_id)
    assert (job.run, job.state) == (2, JobState.STARTING)


def test_events_are_stored_once_and_in_order_over_lives_of_supervisor_and_controller(world):
    job_id = world.running()
    world.say(job_id, events=[(2, "b"), (1, "a")])
    world.turn(3)
    world.start_controller()
    world.turn(3)
    world.say(job_id, events=[(1, "a"), (2, "b"), (3, "c")])
    world.turn(3)
    world.say(job_id, source="2", events=[(1, "d")])
    world.turn(3)
    told = [event.message for _, event in world.client.events(job_id) if event.kind is EventKind.COMMITTED]
    assert told == ["a", "b", "c", "d"]


def test_a_new_controller_finds_the_supervisor(world):
    job_id = world.running()
    world.groups.calls.clear()
    world.start_controller()
    world.say(job_id, JobState.RECOVERING)
    world.turn()
    assert world.groups.calls == [("find", job_id)]
    assert world.state(job_id) is JobState.RECOVERING


def test_a_job_that_ended_while_no_controller_lived_is_finished(world):
    job_id = world.running()
    world.end(job_id)
    del world.groups.supervisors[job_id]
    world.start_controller()
    world.turn()
    assert world.state(job_id) is JobState.SUCCEEDED


def test_of_many_jobs_each_is_asked_less_often_and_orders_wait_for_nothing(world, monkeypatch):
    monkeypatch.setattr(controller, "MAX_ASKS_PER_S", 0.5)
    job_id, asked, status = world.running(), [], world.groups.status
    monkeypatch.setattr(world.groups, "status", lambda job, after: asked.append(world.now) or status(job, after))
    world.turn(20, 0.5)
    assert [round(later - sooner, 3) for sooner, later in itertools.pairwise(asked)] == [2.0] * (len(asked) - 1) and len(asked) >= 4
    world.client.request_stop(job_id, "drain")
    world.turn(1, 0.1)
    assert ("stop drain", job_id) in world.groups.calls


def test_a_new_controller_goes_on_with_a_start_that_the_one_before_it_began(world):
    job_id = world.submit()
    world.groups.pending.add(job_id)
    world.turn()
    placed = world.client.job(job_id)
    world.groups.calls.clear()
    world.start_controller()
    world.turn()
    world.groups.pending.clear()
    world.turn()
    assert (job_id in world.groups.supervisors, "SUPERVISOR_LOST" in world.kinds(job_id), ("release", job_id) in world.groups.calls) == (
        True, False, False,
    )  # fmt: skip
    assert (placed.state, world.client.job(job_id)) == (JobState.STARTING, placed)


def test_a_job_that_ended_at_its_start_while_no_controller_lived_is_not_started_again(world):
    job_id = world.submit()
    world.turn()
    assert world.state(job_id) is JobState.STARTING
    world.end(job_id, EndReason.CONFIGURATION, "no such option")
    del world.groups.supervisors[job_id]
    world.groups.calls.clear()
    world.start_controller()
    world.turn()
    assert world.state(job_id) is JobState.FAILED
    assert ("start", job_id) not in world.groups.calls


@pytest.mark.parametrize("end", ["error", "nodes"])
def test_a_start_that_cannot_be_gone_on_with_goes_back_to_the_queue(world, end):
    job_id = world.submit()
    world.groups.pending.add(job_id)
    world.turn()
    world.groups.calls.clear()
    if end == "error":
        world.groups.start_errors[job_id] = ClusterError("the place is broken")
        world.start_controller()
    else:
        machines(world, "node-1", life="new-")
    world.turn(3)
    world.groups.start_errors.clear()
    world.turn(5)
    assert world.kinds(job_id).count("SUPERVISOR_LOST") == 1
    assert ("release", job_id) in world.groups.calls


@pytest.mark.parametrize("restart", [True, False])
def test_a_job_whose_cluster_is_gone_is_queued_again_at_its_old_place(world, restart):
    job_id = world.running()
    queued_s = world.client.job(job_id).queued_s
    world.groups.supervisors.clear()
    if restart:
        world.start_controller()
    world.groups.pending.add(job_id)
    world.turn(8)
    job = world.client.job(job_id)
    assert (job.state, job.run, job.queued_s) == (JobState.STARTING, 1, queued_s)
    assert "SUPERVISOR_LOST" in world.kinds(job_id)
    assert "goes on from its last commit" in "".join(world.messages(job_id))
    assert ("release", job_id) in world.groups.calls


def test_after_a_new_head_the_job_that_ran_comes_before_the_one_that_waited(world):
    """The new nodes are free as soon as they are seen; who waited must not take them before the lost job is back in the queue."""
    running, waiting = world.running(), world.submit()
    world.turn(2)
    world.groups.supervisors.clear()
    machines(world, "node-1", life="new-")
    world.turn(8)
    assert [world.client.job(job_id).placement for job_id in (running, waiting)] == [(("new-node-1", 2),), ()]
    assert running in world.client.job(waiting).reason


def test_a_lost_job_whose_result_cannot_be_read_holds_the_others_up_for_a_while_only(world):
    running, waiting = world.running(), world.submit()
    world.groups.supervisors.clear()
    world.groups.held.add("result")
    machines(world, "node-1", life="new-")
    world.turn(5)
    assert world.state(waiting) is JobState.QUEUED
    world.turn(5, SEEK_LIMIT_S / 4)
    assert (world.state(running), world.state(waiting)) == (JobState.RUNNING, JobState.STARTING)


def test_a_job_that_is_lost_again_and_again_without_progress_fails(world):
    job_id = world.submit()
    world.groups.start_errors[job_id] = ClusterError("no room for the agent")
    world.turn(80)
    job = world.client.job(job_id)
    assert (job.state, job.result.end_reason) == (JobState.FAILED, EndReason.INTERNAL)
    assert "no room for the agent" in job.reason
    assert world.groups.calls.count(("start", job_id)) == life.MAX_LOSSES + 1


def test_a_place_that_ray_does_not_give_is_given_up_however_often_and_the_job_waits_for_another(world):
    job_id = world.submit()
    world.groups.pending.add(job_id)
    for _ in range(life.MAX_LOSSES + 2):
        world.turn(3)
        world.turn(1, life.START_LIMIT_S)
        world.turn(4)
    assert "".join(world.messages(job_id)).count("Ray did not reserve its place within 300 s") > life.MAX_LOSSES
    world.groups.pending.clear()
    world.turn(4)
    world.say(job_id, JobState.RUNNING)
    world.turn()
    assert world.state(job_id) is JobState.RUNNING


def test_ray_has_its_time_for_a_place_from_when_it_was_first_asked(world):
    world.groups.held.add("start")
    job_id = world.submit()
    world.turn(2, life.START_LIMIT_S)
    world.groups.pending.add(job_id)
    world.groups.held.clear()
    world.groups.unanswered[-1].set_result("start its supervisor")
    world.turn(2)
    world.groups.pending.clear()
    world.turn(2)
    assert world.kinds(job_id) == ["SUBMITTED", "ADMITTED"] and job_id in world.groups.supervisors


def test_cancelling_a_queued_job_ends_it_at_once(world):
    world.running()
    job_id = world.submit()
    world.client.request_stop(job_id, "drain")
    world.turn(1)
    assert world.state(job_id) is JobState.CANCELLED
    assert world.kinds(job_id)[-1] == "ENDED"


def test_cancelling_a_job_before_its_place_is_ready_gives_the_place_back(world):
    job_id = world.submit()
    world.groups.pending.add(job_id)
    world.turn()
    world.client.request_stop(job_id, "drain")
    world.turn(2)
    assert world.state(job_id) is JobState.CANCELLED
    assert world.groups.calls[-1] == ("release", job_id)


def test_a_start_in_flight_is_waited_for_before_the_place_of_a_cancelled_job_is_given_back(world):
    world.groups.held.add("start")
    job_id = world.submit()
    world.turn()
    world.client.request_stop(job_id, "now")
    world.turn(2, life.STOP_NOW_LIMIT_S)
    assert ("release", job_id) not in world.groups.calls
    world.groups.supervisors[job_id] = world.groups.first_status(world.client.job(job_id))
    world.groups.unanswered[-1].set_result(True)
    world.turn(2)
    assert (world.state(job_id), world.groups.supervisors) == (JobState.CANCELLED, {})


def test_an_order_to_stop_is_passed_on_once_and_a_stronger_one_again(world):
    job_id = world.running()
    world.client.request_stop(job_id, "drain")
    world.turn()
    assert world.state(job_id) is JobState.DRAINING
    world.client.request_stop(job_id, "now")
    world.turn()
    assert [call for call in world.groups.calls if call[0].startswith("stop")] == [("stop drain", job_id), ("stop now", job_id)]
    world.end(job_id, EndReason.CANCELLED, "stopped", step=4, committed_step=4, resumable=True)
    world.turn()
    assert world.state(job_id) is JobState.CANCELLED
    assert world.client.job(job_id).result.resumable


def test_a_supervisor_that_does_not_listen_is_ended_without_it(world):
    job_id = world.running()
    world.groups.held.add("status")
    world.client.request_stop(job_id, "now")
    world.turn(2)
    assert world.state(job_id) is JobState.RUNNING
    world.turn(2, life.STOP_NOW_LIMIT_S)
    assert world.state(job_id) is JobState.CANCELLED
    assert world.groups.calls[-1] == ("release", job_id)


def test_a_supervisor_that_does_not_answer_a_new_controller_is_ended_without_it(world):
    job_id = world.running()
    world.groups.held.add("find")
    world.start_controller()
    world.client.request_stop(job_id, "now")
    world.turn(2)
    assert world.state(job_id) is JobState.RUNNING
    world.turn(2, life.STOP_NOW_LIMIT_S)
    assert (world.state(job_id), world.groups.supervisors) == (JobState.CANCELLED, {})


def test_a_supervisor_found_late_has_the_whole_time_to_stop_at_once(world):
    job_id = world.running()
    world.groups.held.add("find")
    world.start_controller()
    world.client.request_stop(job_id, "now")
    world.turn(2, life.STOP_NOW_LIMIT_S / 4)
    world.groups.unanswered[-1].set_result(True)
    world.turn(4, life.STOP_NOW_LIMIT_S / 5)
    assert (world.state(job_id), world.groups.calls[-1]) == (JobState.RUNNING, ("stop now", job_id))


def test_a_new_controller_passes_the_order_to_stop_on_again(world):
    job_id = world.running()
    world.client.request_stop(job_id, "drain")
    world.turn()
    world.start_controller()
    world.turn()
    sent = world.groups.calls.count(("stop drain", job_id))
    assert sent == 3, "at once, and when it is known to which of the supervisor's lives"
    world.turn(20)
    assert world.groups.calls.count(("stop drain", job_id)) == sent


def test_a_supervisor_that_was_restarted_before_it_stopped_is_told_again(world):
    job_id = world.running()
    world.client.request_stop(job_id, "drain")
    world.turn()
    world.say(job_id, source="its second life")
    world.turn(20)
    assert world.groups.calls.count(("stop drain", job_id)) == 2


def test_resume_runs_again_under_the_same_name(world):
    job_id = world.running()
    world.end(job_id, EndReason.USER_ERROR, "bug")
    world.turn()
    world.client.resume(job_id, None, {})
    world.turn(2)
    assert world.state(job_id) is JobState.STARTING
    world.end(job_id)
    world.turn()
    assert (world.state(job_id), world.client.job(job_id).run) == (JobState.SUCCEEDED, 2)


def test_one_that_hangs_keeps_nobody_else(world):
    small = ResourcesSpec(num_workers=1)
    world.groups.held.add("start")
    world.submit(resources=small)
    world.turn()
    world.groups.held.clear()
    other = world.running(resources=small)
    world.end(other)
    world.turn()
    assert world.state(other) is JobState.SUCCEEDED


def test_many_jobs_that_start_at_once_do_not_hide_that_the_cluster_answers(world):
    class Slow(ScriptedGroups):
        def start(self, job):
            return threads.starts.submit(lambda: "" if may_go.wait(LIMIT_S) else "start its supervisor")

    def look():
        looks.append(threads.looks.submit(lambda: ClusterView(nodes=(Node(id="node-1", cpu_units=100 * CPU_UNITS),))))
        return looks[-1]

    threads, may_go, looks = Threads(), threading.Event(), []
    world.controller = Controller(world.store, world.home, Slow(), look, world.provisioner)
    for _ in range(50):
        world.submit(resources=ResourcesSpec(num_workers=1))
    for _ in range(4):
        world.turn(1)
        wait(looks, timeout=LIMIT_S)
    world.turn(1, seconds=0.0)  # hears the last look, if the last turn was too early for it
    assert len(world.store.all([JobState.STARTING])) == 50
    assert world.controller.seen_s == world.now
    may_go.set()


def test_an_unreadable_result_fails_the_job_and_an_unreachable_store_is_waited_for(tmp_path):
    class Unreadable(ScriptedGroups):
        error: Exception = StorageUnavailable("no answer")

        def result(self, job):
            return failed(self.error)

    world = World(tmp_path)
    world.groups = Unreadable()
    world.start_controller()
    job_id = world.running()
    world.end(job_id)
    world.turn(10)
    assert world.state(job_id) is JobState.RUNNING
    world.groups.error = StorageDenied("wrong keys")
    world.turn(4)
    assert (world.state(job_id), world.client.job(job_id).result.end_reason) == (JobState.FAILED, EndReason.STORAGE)


@pytest.mark.parametrize("error", [ValueError("Invalid endpoint: http://minio_1:9000"), KeyError("end_reason")])
def test_a_result_that_no_later_try_can_read_fails_the_job(world, error):
    job_id = world.running()
    world.groups.result = lambda job: failed(error)
    world.end(job_id)
    world.turn()
    job = world.client.job(job_id)
    assert (job.state, job.result.end_reason) == (JobState.FAILED, EndReason.STORAGE)
    assert "its result cannot be read" in job.reason


def test_a_job_whose_result_is_not_to_be_had_can_be_stopped_at_once(world):
    job_id = world.running()
    world.groups.held.add("result")
    world.say(job_id, ended=True)
    world.turn()
    world.client.request_stop(job_id, "now")
    world.turn(2)
    assert world.state(job_id) is JobState.RUNNING
    world.turn(2, life.STOP_NOW_LIMIT_S)
    assert (world.state(job_id), world.groups.supervisors) == (JobState.CANCELLED, {})


def test_the_last_progress_is_kept_though_a_client_writes_in_the_same_round(world, monkeypatch):
    job_id = world.running()
    refresh = LiveJobs.refresh

    def then_somebody_writes(jobs):
        found = refresh(jobs)
        monkeypatch.setattr(LiveJobs, "refresh", refresh)
        world.client.set_priority(job_id, 3)
        return found

    monkeypatch.setattr(LiveJobs, "refresh", then_somebody_writes)
    world.groups.results[job_id, 1] = JobResult(end_reason=EndReason.COMPLETED, message="")
    world.say(job_id, ended=True, step=10, committed_step=10)
    world.turn(6)
    job = world.client.job(job_id)
    assert (job.state, job.progress.step, job.progress.committed_step) == (JobState.SUCCEEDED, 10, 10)


def test_an_unreadable_cluster_stops_nothing_that_runs(world):
    job_id = world.running()
    world.controller._look = lambda: failed(ClusterError("no answer"))
    world.say(job_id, step=5)
    world.turn(3)
    assert world.client.job(job_id).progress.step == 5


NOTICE = Node(id="node-1", cpu_units=2 * CPU_UNITS, draining=True, drain_deadline_s=1100.0)


def drain(world, *nodes):
    world.controller._look = lambda: done(ClusterView(nodes=nodes))


def test_a_drain_notice_preempts_the_jobs_of_the_node_once_and_they_wait_for_another_place(world):
    job_id = world.running()
    drain(world, NOTICE, Node(id="node-2", cpu_units=CPU_UNITS))
    world.turn()
    assert world.groups.preemptions == [(job_id, "Ray drains node node-1", 1100.0)]
    world.say(job_id, JobState.DRAINING, source="2")  # its supervisor was started again
    world.turn()
    assert len(world.groups.preemptions) == 2
    world.end(job_id, EndReason.PREEMPTED, "Ray drains node node-1; stopped after step 5")
    world.turn(6)
    job = world.client.job(job_id)
    assert (job.state, job.run, job.placement) == (JobState.QUEUED, 2, ())
    drain(world, NOTICE, Node(id="node-2", cpu_units=2 * CPU_UNITS))
    world.turn()
    assert dict(world.client.job(job_id).placement) == {"node-2": 2}
    assert len(world.groups.preemptions) == 2


def test_a_drain_notice_of_another_node_disturbs_nobody(world):
    world.running()
    drain(world, Node(id="node-1", cpu_units=2 * CPU_UNITS), dataclasses.replace(NOTICE, id="node-2"))
    world.turn()
    assert world.groups.preemptions == []


def test_a_notice_that_did_not_reach_the_supervisor_is_given_again_and_the_earliest_deadline_counts(world):
    class Unreachable(ScriptedGroups):
        def preempt(self, job, why, deadline_s):
            super().preempt(job, why, deadline_s)
            return failed(ClusterError("no answer")) if len(self.preemptions) < 3 else done()

    world.groups = Unreachable()
    drain(world, Node(id="node-1", cpu_units=CPU_UNITS), Node(id="node-2", cpu_units=CPU_UNITS))
    world.controller._groups = world.groups
    job_id = world.running()
    ends = {"node-1": None, "node-2": 1200.0}
    drain(world, *(dataclasses.replace(NOTICE, id=name, cpu_units=CPU_UNITS, drain_deadline_s=end) for name, end in ends.items()))
    world.turn(8)
    assert world.groups.preemptions == [(job_id, "Ray drains node node-2", 1200.0)] * 3


def test_a_job_that_was_preempted_too_often_fails_with_the_reason(world):
    job_id = world.running(recovery=RecoverySpec(max_preemptions=2))
    for count in (1, 2):
        run = world.client.job(job_id).run
        world.groups.results[job_id, run] = JobResult(end_reason=EndReason.PREEMPTED, message="made room")
        world.say(job_id, ended=True, preemptions=count)
        world.turn(8)
    job = world.client.job(job_id)
    assert (job.state, job.run) == (JobState.FAILED, 2)
    assert job.reason == "it was preempted 2 times (recovery.max_preemptions=2); the last time: made room"


def test_the_schedulers_order_preempts_a_job_once(world):
    def preempting(cluster, queue, running, usage, now, policy):
        orders = tuple(Preempt(job_id=run.job.id, for_job="b", cost=60.0, why="makes room for b") for run in running)
        return dataclasses.replace(plan(cluster, queue, running, usage, now, policy), preempts=orders)

    job_id = world.running()
    world.controller = Controller(world.store, world.home, world.groups, world.controller._look, world.provisioner, preempting)
    world.turn(6)
    assert world.groups.preemptions == [(job_id, "makes room for b", None)]


def test_a_job_takes_what_stands_by_and_gives_it_back_with_its_place(world):
    world.groups.standby = ("standby:1", "standby:2")
    job_id = world.running()
    assert world.client.job(job_id).standby == ("standby:1", "standby:2")
    world.start_controller()
    world.turn()
    assert world.client.job(job_id).standby == ("standby:1", "standby:2")
    world.end(job_id)
    world.turn()
    assert world.state(job_id) is JobState.SUCCEEDED
    assert world.client.job(job_id).standby == ()


def test_what_stands_by_is_not_lost_with_a_job_that_was_changed_at_the_same_moment(world, monkeypatch):
    world.groups.standby = ("standby:1", "standby:2")
    world.turn()
    job_id, update = world.submit(), world.store.update

    def stale(job, *given, **changes):
        if "placement" in changes:
            raise StaleWrite("the user was first")
        return update(job, *given, **changes)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(world.store, "update", stale)
        world.turn(1)
        assert world.state(job_id) is JobState.QUEUED
    world.turn(1)
    assert world.client.job(job_id).standby == ("standby:1", "standby:2")


def test_nothing_is_made_to_stand_by_while_a_job_starts_and_makes_its_first_steps(world):
    world.turn(2)
    assert not world.groups.kept
    world.turn(seconds=SETTLE_S)
    assert world.groups.kept[-1] == ("node-1",)
    job_id = world.submit()
    world.groups.kept.clear()
    world.turn(seconds=2 * SETTLE_S)
    assert world.state(job_id) is JobState.STARTING and not world.groups.kept
    world.say(job_id, JobState.RUNNING)
    world.turn(2)
    assert world.state(job_id) is JobState.RUNNING and not world.groups.kept
    world.turn(seconds=SETTLE_S)
    assert world.groups.kept


# machines that fail


def machines(world, *hosts, life=""):
    """A cluster of so many nodes of 2 CPUs; `life`: part of Ray's ids for them, which change when it starts anew."""
    view = ClusterView(nodes=tuple(Node(id=f"{life}{host}", host=host, cpu_units=2 * CPU_UNITS) for host in hosts))
    world.controller = Controller(world.store, world.home, world.groups, lambda: done(view), world.provisioner)


def incident(world, job_id, node, kind="HANG"):
    """The job's supervisor tells of it; then the job ends."""
    world.say(job_id, JobState.RUNNING)
    fields = {"incident": kind, "node": node}
    told = Event(kind=EventKind.HANG, job_id=job_id, time_s=world.now, message="rank 0 does not move", fields=fields)
    world.groups.supervisors[job_id] = dataclasses.replace(world.groups.supervisors[job_id], events=((1, told),))
    world.turn(2)
    world.end(job_id)
    world.turn(6)


def place_of(world, job_id):
    return [name for name, _ in world.client.job(job_id).placement]


def test_a_machine_that_failed_is_taken_last_also_after_a_restart_until_it_is_forgiven(world):
    machines(world, "m1", "m2")
    first = world.running()
    assert place_of(world, first) == ["m1"]
    incident(world, first, "m1")
    machines(world, "m1", "m2", life="new-")
    second = world.running()
    assert place_of(world, second) == ["new-m2"]
    third = world.running()
    assert place_of(world, third) == ["new-m1"], "rather than to wait"
    for job_id in (second, third):
        world.end(job_id)
    world.turn(6)
    assert world.client.forgive("m1") == 1
    assert place_of(world, world.running()) == ["new-m1"]


def test_a_machine_that_failed_for_several_jobs_is_taken_only_by_one_that_needs_it(world):
    machines(world, "m1", "m2")
    for kind in ("WRONG_BITS", "DEVICE_FAULT"):
        incident(world, world.running(), "m1", kind)
    small = world.running()
    assert place_of(world, small) == ["m2"]
    waiting = world.submit()
    world.turn()
    assert world.client.job(waiting).reason.endswith("kept out after their failures: m1 (`orchestrator nodes`)")
    world.end(small)
    world.turn(6)
    world.say(waiting)
    world.end(waiting)
    world.turn(6)
    large = world.submit(resources=ResourcesSpec(num_workers=4))
    world.turn(2)
    assert place_of(world, large) == ["m1", "m2"]
    assert "WARNING" in world.kinds(large) and "in spite of failures there" in world.messages(large)[-1]


def test_forgiving_an_unknown_machine_names_the_nearest(world):
    machines(world, "m1")
    world.turn()
    with pytest.raises(UserError, match=r"no node is named 'm2'. Known: m1"):
        world.client.forgive("m2")


# fewer workers

ELASTIC = ResourcesSpec(num_workers=2, min_workers=1)
PATIENT = RecoverySpec(shrink_after_s=30, grow_interval_s=60)
ONE, TWO = (tuple(Node(id=f"node-{n}", cpu_units=CPU_UNITS) for n in range(1, count + 1)) for count in (1, 2))


def lose_node_2(world, **changes):
    """A job on two nodes, the second of which is lost; its supervisor has found that out."""
    drain(world, *TWO)
    job_id = world.running(**{"resources": ELASTIC, "recovery": PATIENT, **changes})
    drain(world, *ONE)
    world.end(job_id, EndReason.PREEMPTED, "node node-2 is lost; back to the queue, goes on from step 5", committed_step=5)
    world.turn(6)
    return job_id


def test_a_job_that_lost_a_node_starts_on_a_spare_one_before_those_that_came_later(world):
    drain(world, *TWO, Node(id="node-3", cpu_units=CPU_UNITS))
    job_id = world.running()
    later = world.submit()
    world.turn()
    drain(world, ONE[0], Node(id="node-3", cpu_units=CPU_UNITS))
    world.end(job_id, EndReason.PREEMPTED, "node node-2 is lost")
    world.turn(6)
    job = world.client.job(job_id)
    assert (job.state, job.run, dict(job.placement)) == (JobState.STARTING, 2, {"node-1": 1, "node-3": 1})
    assert world.client.job(later).reason == f"needs 2 x 1 CPU; 0 CPUs are free on 2 nodes, held by {job_id}"


def test_a_rigid_job_waits_for_another_node_however_long(world):
    job_id = lose_node_2(world, resources=ResourcesSpec(num_workers=2))
    world.turn(4, seconds=1000)
    assert world.client.job(job_id).reason == "needs 2 x 1 CPU; the cluster has 1 CPU on 1 node in all"


def test_where_no_node_comes_it_goes_on_with_fewer_workers_and_says_so(world):
    job_id = lose_node_2(world)
    job = world.client.job(job_id)
    assert (job.state, job.reason) == (
        JobState.QUEUED, "needs 2 x 1 CPU; the cluster has 1 CPU on 1 node in all; starts with 1 worker if no node comes within 30 s"
    )  # fmt: skip
    world.turn(3, seconds=10)
    job = world.client.job(job_id)
    assert (job.state, job.run, job.placement, job.num_placed) == (JobState.STARTING, 2, (("node-1", 1),), 1)
    told = [event for _, event in world.client.events(job_id) if event.kind is EventKind.RESIZED]
    assert [(event.message, event.fields) for event in told] == [("1 of 2 workers, because nodes are missing", {"workers": 1})]


def test_a_node_that_comes_in_time_is_waited_for(world):
    job_id = lose_node_2(world)
    world.turn(2, seconds=10)
    drain(world, *TWO)
    world.turn(4)
    assert world.client.job(job_id).num_placed == 2
    assert "RESIZED" not in world.kinds(job_id)


def shrunk(world):
    world.client.set_policy("preemptive", {"mode": "preemptive", "resize_interval_s": 60})
    job_id = lose_node_2(world)
    world.turn(3, seconds=10)
    world.turn()
    world.say(job_id, JobState.RUNNING, source="2", committed_step=5)
    world.turn()
    assert world.state(job_id) is JobState.RUNNING
    return job_id


def test_it_grows_back_when_all_fit_again_and_not_too_soon(world):
    job_id = shrunk(world)
    drain(world, *TWO)
    world.turn(4)
    assert world.groups.resizes == []
    world.turn(4, seconds=30)
    assert world.groups.resizes == [(job_id, "all 2 workers have a place again")], "each life of a supervisor is told once"
    world.say(job_id, JobState.DRAINING, source="2", committed_step=9)
    later = world.submit(resources=ResourcesSpec(num_workers=1))
    world.turn(4)
    assert world.state(later) is JobState.QUEUED, "the place is kept"
    world.end(job_id, EndReason.RESIZED, "all 2 workers have a place again; stopped after step 9; back to the queue", committed_step=9)
    world.say(job_id, JobState.DRAINING, source="2", ended=True, committed_step=9)
    world.turn(6)
    job = world.client.job(job_id)
    assert (job.state, job.run, job.num_placed) == (JobState.STARTING, 3, 2)
    assert world.groups.preemptions == []


def test_a_supervisor_that_did_not_hear_that_it_is_to_leave_is_told_again(world):
    job_id = shrunk(world)
    drain(world, *TWO)
    world.turn(4, seconds=30)
    world.say(job_id, JobState.RUNNING, source="3", committed_step=5)  # started again
    world.turn(4)
    assert len(world.groups.resizes) == 2


def test_a_job_that_is_stopped_on_its_way_to_more_workers_is_cancelled(world):
    job_id = shrunk(world)
    drain(world, *TWO)
    world.turn(4, seconds=30)
    world.client.request_stop(job_id, "drain")
    world.end(job_id, EndReason.RESIZED, "stopped after step 9", committed_step=9)
    world.turn(6)
    assert world.state(job_id) is JobState.CANCELLED


def test_resizing_takes_nothing_from_the_budget_of_preemptions(world):
    job_id = world.running(recovery=RecoverySpec(max_preemptions=1))
    world.end(job_id, EndReason.RESIZED, "all have a place")
    world.turn(6)
    assert (world.state(job_id), world.client.job(job_id).run) == (JobState.STARTING, 2)


def test_a_place_whose_node_goes_before_the_supervisor_is_there_is_given_back_at_once(world):
    drain(world, *TWO)
    job_id = world.submit()
    world.groups.pending.add(job_id)
    world.turn()
    drain(world, ONE[0], Node(id="node-3", cpu_units=CPU_UNITS))
    world.turn(8)
    assert dict(world.client.job(job_id).placement) == {"node-1": 1, "node-3": 1}
    assert "node node-2 was lost before it started; queued again" in "".join(world.messages(job_id))


def test_a_job_that_may_shrink_is_taken_by_a_cluster_that_holds_its_least_size(world):
    drain(world, *ONE)
    world.turn()
    with pytest.raises(ConfigError, match=r"resources\.num_workers=2 is more than the cluster can ever have"):
        world.submit()
    with pytest.raises(ConfigError, match=r"resources\.min_workers=2 is more than the cluster can ever have"):
        world.submit(resources=ResourcesSpec(num_workers=4, min_workers=2))
    job_id = world.submit(resources=ELASTIC, recovery=RecoverySpec(shrink_after_s=0))
    world.turn()
    assert world.client.job(job_id).num_placed == 1
