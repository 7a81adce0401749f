"""What the controller makes of a plan: on a scripted cluster, with a clock that only the test moves."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.control.client import Client
from orchestrator.control.controller import Controller
from orchestrator.control.nodes.groups import GroupStatus, ScriptedGroups, done
from orchestrator.control.nodes.provisioning import Provisioner, ScriptedAutoscaler
from orchestrator.control.planning import planlog
from orchestrator.control.planning.accounts import Accounts, Stay
from orchestrator.control.planning.policy import DEFAULT
from orchestrator.control.planning.replay import replay
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Role, User
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import ConfigError, JobNotFound, StateError
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, JobResult, JobState, Progress
from orchestrator.layout import layout_for
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ParallelismSpec, ResourcesSpec, SchedulingSpec, TrainingSpec, WorkloadSpec
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.ledger import Ledger

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
    resources=ResourcesSpec(num_workers=2, gpus_per_worker=1),
)
QUICK = {"mode": "preemptive", "min_run_s": 0, "gain_factor": 0, "resize_interval_s": 0}


def gang(workers, **more):
    return ResourcesSpec(num_workers=workers, gpus_per_worker=1, **more)


class World:
    """Two nodes of four GPUs."""

    def __init__(self, root, nodes=2, gpus=4, policy=QUICK):
        self.home, self.groups = Home(root), ScriptedGroups()
        self.now = 2e9
        self.client, self.store = Client(self.home, clock=lambda: self.now), JobStore(self.home.jobs_db)
        self.view = ClusterView(nodes=tuple(Node(id=f"n{i}", host=f"n{i}", cpu_units=64 * CPU_UNITS, gpus=gpus) for i in range(nodes)))
        self.client.set_policy("preemptive", policy)
        self.start_controller()

    def start_controller(self):
        provisioner = Provisioner(self.home.node_types, ScriptedAutoscaler())
        self.controller = Controller(self.store, self.home, self.groups, lambda: done(self.view), provisioner)

    def turn(self, rounds=4, seconds=1.0):
        for _ in range(rounds):
            self.now += seconds
            self.controller.step(self.now)

    def submit(self, workers=2, priority=0, **changes):
        self.now += 0.01  # no two at one moment
        scheduling = changes.pop("scheduling", SchedulingSpec(priority=priority))
        resources = changes.pop("resources", gang(workers))
        spec = dataclasses.replace(SPEC, resources=resources, scheduling=scheduling, **changes)
        user = User(name=f"user of {scheduling.tenant}", tenant=scheduling.tenant, role=Role.ADMIN)
        return self.client.acting_for(user).submit(spec, {}).id

    def running(self, *given, **changes):
        job_id = self.submit(*given, **changes)
        self.turn()
        self.train(job_id, 1)
        return job_id

    def train(self, job_id, at, **ledger):
        """It says that it trains; `ledger`: worker-seconds by bucket."""
        books = Ledger(until_s=self.now, seconds={Bucket(name): seconds for name, seconds in ledger.items()}).to_dict() if ledger else {}
        self.say(job_id, JobState.RUNNING, step=at, committed_step=at, ledger=books)
        self.turn()
        assert self.job(job_id).state is JobState.RUNNING, self.job(job_id)

    def say(self, job_id, state, ended=False, events=(), **progress):
        source = f"life {self.job(job_id).run}"
        self.groups.supervisors[job_id] = GroupStatus(
            state=state, progress=Progress(**progress), source=source, ended=ended, events=tuple(enumerate(events, 1))
        )  # fmt: skip

    def leave(self, job_id, reason=EndReason.PREEMPTED, step=5):
        self.groups.results[job_id, self.job(job_id).run] = JobResult(end_reason=reason, message=f"stopped after step {step}", step=step)
        old = self.groups.supervisors[job_id]
        self.groups.supervisors[job_id] = dataclasses.replace(old, ended=True)
        self.turn(6)

    def job(self, job_id):
        return self.client.job(job_id)

    def told(self, job_id, kind):
        return [event for _, event in self.client.events(job_id) if event.kind is kind]

    def placed(self, *job_ids):
        return [dict(self.job(job_id).placement) for job_id in job_ids]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


# place


def test_tensor_parallel_ranks_are_on_one_node(tmp_path):
    """Of eight workers on nodes of three GPUs each: without groups the first node would have three."""
    world = World(tmp_path, nodes=4, gpus=3)
    training = dataclasses.replace(SPEC.training, global_batch_size=16)
    divided = ParallelismSpec(tensor_parallel_size=2)
    job_id = world.submit(8, parallelism=divided, training=training)
    world.turn()
    counts = [workers for _, workers in world.job(job_id).placement]
    context = RunContext(job_id=job_id, run=1, spec=world.job(job_id).spec, home=world.home, ranks_per_bundle=tuple(counts))
    layout = layout_for(context.spec)
    nodes = {rank: bundle for bundle in range(len(counts)) for rank in context.ranks(bundle)}
    groups = {}
    for rank in range(8):
        groups.setdefault(rank - layout.tensor_parallel_rank(rank), set()).add(nodes[rank])
    assert counts == [2, 2, 2, 2] and all(len(group) == 1 for group in groups.values()) and len(groups) == 4
    plain = World(tmp_path / "plain", nodes=4, gpus=3)
    job_id = plain.submit(8, training=training)
    plain.turn()
    assert sorted(workers for _, workers in plain.job(job_id).placement) == [2, 3, 3]


def test_a_tensor_parallel_group_that_fits_no_node_is_refused(tmp_path):
    world = World(tmp_path, nodes=4, gpus=3)
    world.turn()
    with pytest.raises(ConfigError, match="the job needs 4 x 1 CPU and 1 GPU, 4 together on a node; the cluster has"):
        world.submit(4, parallelism=ParallelismSpec(tensor_parallel_size=4))


# preemption


def fill(world, **changes):
    """Two jobs of four GPUs each."""
    return [world.running(4, **changes), world.running(4, **changes)]


def test_a_gang_of_a_higher_priority_has_the_cheapest_set_of_runs_leave_and_starts_when_they_have(world):
    first, second = fill(world)
    saved = Event(kind=EventKind.COMMITTED, job_id=second, time_s=world.now, message="step 1", fields={"stage_s": 0.5, "commit_s": 0.25})
    world.say(second, JobState.RUNNING, step=1, events=[saved])
    world.turn()
    urgent = world.submit(4, priority=1)
    world.turn()
    assert [told[0] for told in world.groups.preemptions] == [second], "what it did since its start is saved"
    order = world.job(second).order
    assert (order.kind, order.for_job, order.left) == ("preempt", urgent, False)
    assert world.job(urgent).reason == f"needs 4 x 1 CPU and 1 GPU; its place is being cleared by {second}"
    (told,) = world.told(second, EventKind.PREEMPTED)
    assert told.fields["for_job"] == urgent and told.fields["expected_gpu_s"] == pytest.approx(order.cost)
    assert "comes first" in told.message
    held_s = world.now
    world.leave(second)
    assert world.placed(urgent) == [{"n1": 4}]
    waits = world.job(second)
    assert (waits.state, waits.run, waits.service.preemptions, waits.position) == (JobState.QUEUED, 2, 1, 1)
    assert waits.service.ran_s > held_s - world.job(first).started_s - 10 and waits.service.attained == 4 * waits.service.ran_s
    world.train(urgent, 1)
    world.leave(urgent, EndReason.COMPLETED)
    assert world.placed(second) == [{"n1": 4}] and world.job(second).service.waited_s > 0


def test_who_has_not_begun_when_it_is_to_leave_does_not_begin(world):
    first = world.running(4)
    second = world.submit(4)
    world.groups.pending.add(second)
    world.turn()
    assert world.job(second).state is JobState.STARTING
    urgent = world.submit(4, priority=1)
    world.turn(6)
    assert world.groups.preemptions == [] and ("release", second) in world.groups.calls
    assert world.placed(first, urgent) == [{"n0": 4}, {"n1": 4}]
    waits = world.job(second)
    assert (waits.state, waits.run, waits.service.preemptions, waits.order.left) == (JobState.QUEUED, 2, 1, True)
    (ended,) = world.told(second, EventKind.ENDED)
    assert f"makes room for {urgent}" in ended.message
    world.groups.pending.clear()
    world.train(urgent, 1)
    world.leave(urgent, EndReason.COMPLETED)
    world.train(second, 1, start=8.0)
    (receipt,) = world.told(second, EventKind.RECEIPT)
    assert (receipt.fields["for_job"], receipt.fields["start_gpu_s"]) == (urgent, 8.0)


def test_who_must_not_be_preempted_is_waited_for(world):
    fill(world, scheduling=SchedulingSpec(preemptible=False))
    urgent = world.submit(4, priority=1)
    world.turn()
    assert world.groups.preemptions == [] and world.job(urgent).position == 1


def test_an_order_outlives_the_controller_and_is_given_once_to_each_life_of_the_supervisor(world):
    fill(world)
    world.groups.held.add("preempt")  # it does not arrive
    urgent = world.submit(4, priority=1)
    world.turn()
    ((victim, *_),) = world.groups.preemptions
    assert world.job(urgent).cleared == (("n1", 4),), "written at once: the place is kept for it by the next controller too"
    world.groups.held.clear()
    world.start_controller()
    world.turn()
    assert world.job(urgent).cleared == (("n1", 4),)
    assert [told[0] for told in world.groups.preemptions] == [victim] * 2, "told by the new controller, and nobody else is"
    world.start_controller()
    world.leave(victim)
    assert (world.job(urgent).state, world.job(urgent).cleared) == (JobState.STARTING, ())
    assert len(world.told(victim, EventKind.PREEMPTED)) == 1


def test_a_priority_that_is_raised_takes_a_place_and_one_of_a_job_that_has_ended_is_refused(world):
    fill(world)
    waits = world.submit(4)
    world.turn()
    assert world.groups.preemptions == []
    assert world.client.explain(waits).at_priority == 1
    world.client.set_priority(waits, 1)
    world.turn()
    assert len(world.groups.preemptions) == 1
    with pytest.raises(ConfigError, match=r"scheduling.priority=5000 is not possible: allowed is a whole number from -1000 to 1000"):
        world.client.set_priority(waits, 5000)
    world.client.request_stop(waits, "now")
    world.turn()
    with pytest.raises(StateError, match="has ended: cancelled"):
        world.client.set_priority(waits, 2)


def test_the_receipt_is_the_difference_of_two_ledgers(world):
    victim, other = fill(world, scheduling=SchedulingSpec(priority=1))
    world.train(victim, 10, start=8.0, step=100.0, provision=4.0, checkpoint=2.0)
    world.client.set_priority(victim, 0)
    urgent = world.submit(4, priority=1)
    world.turn()
    assert [told[0] for told in world.groups.preemptions] == [victim]
    world.leave(victim)
    world.train(urgent, 1)
    world.leave(urgent, EndReason.COMPLETED)
    after = {"start": 20.0, "step": 90.0, "provision": 6.0, "checkpoint": 2.5, "lost": 10.0, "queue": 30.0, "idle": 1.0}
    world.train(victim, 9, **after)
    (receipt,) = world.told(victim, EventKind.RECEIPT)
    assert receipt.fields["lost_gpu_s"] == 12.0 + 2.0 + 0.5 + 10.0 + 1.0
    assert (receipt.fields["start_gpu_s"], receipt.fields["work_done_again_gpu_s"]) == (12.0, 10.0)
    assert (receipt.fields["useful_gpu_s"], receipt.fields["queue_gpu_s"]) == (-10.0, 30.0)
    assert receipt.fields["for_job"] == urgent and "25.5 GPU-seconds were lost" in receipt.message
    assert world.job(victim).order is None and world.job(other).run == 1


# resizing


def test_an_elastic_job_shrinks_for_one_that_waits_and_goes_on_where_it_was_told_to(world):
    spec = {"training": TrainingSpec(max_steps=10, global_batch_size=16, micro_batch_size=2)}
    elastic = world.running(resources=gang(4, min_workers=2), **spec)
    world.running(4)
    waits = world.submit(2)
    world.turn()
    assert world.groups.preemptions == []
    assert world.groups.resizes == [(elastic, f"it makes room for {waits} with 2 of 4 workers")]
    assert "its place is being cleared" in world.job(waits).reason
    later = world.submit(2)
    world.turn()
    assert len(world.groups.resizes) == 1 and world.job(later).position == 2, "nobody is asked twice, and nobody overtakes"
    world.start_controller()
    world.turn()
    world.leave(elastic, EndReason.RESIZED)
    assert world.placed(elastic, waits) == [{"n0": 2}, {"n0": 2}]
    assert world.job(elastic).service.resized_s is not None
    world.train(elastic, 2)
    assert [event.fields["order"] for event in world.told(elastic, EventKind.RECEIPT)] in ([], ["resize"])
    world.train(waits, 1)


def test_a_place_that_is_gone_when_a_job_has_left_for_it_is_not_insisted_on(world):
    spec = {"training": TrainingSpec(max_steps=10, global_batch_size=16, micro_batch_size=2)}
    elastic = world.running(resources=gang(4, min_workers=2), **spec)
    world.running(4)
    world.submit(2)
    world.turn()
    world.view = ClusterView(nodes=world.view.nodes[1:])
    world.turn(2)
    world.leave(elastic, EndReason.RESIZED)
    job = world.job(elastic)
    assert job.state is JobState.QUEUED and job.order.placement == ()


# tenants


def test_a_quota_holds_and_the_reason_names_it(world):
    world.client.set_policy("mine", {**QUICK, "tenants": {"lab": {"quota": 2}}})
    lab = SchedulingSpec(tenant="lab")
    first, second = world.running(2, scheduling=lab), world.submit(2, scheduling=lab)
    world.turn()
    assert world.job(second).reason == "needs 2 of the quota of lab: 2 of 2 are in use"
    with pytest.raises(ConfigError, match=r"num_workers=4 is more than the quota of scheduling.tenant=lab \(2\)"):
        world.submit(4, scheduling=lab)
    world.client.set_policy("mine", {**QUICK, "tenants": {"lab": {"quota": 4}}})
    world.turn()
    assert world.job(second).state is JobState.STARTING
    assert world.job(first).run == 1


def test_jobs_per_user_and_fair_shares(world):
    world.client.set_policy("mine", {**QUICK, "tenants": {"a": {"jobs_per_user": 1}}})
    one = SchedulingSpec(tenant="a")
    world.running(2, scheduling=one)
    second = world.submit(2, scheduling=one)
    other = world.submit(2, scheduling=SchedulingSpec(tenant="b"))
    world.turn()
    assert world.job(second).reason == "user of a runs 1 job, the most that the tenant allows a user"
    assert world.job(other).state is JobState.STARTING


def test_who_has_used_less_comes_first_also_for_the_next_controller(world):
    heavy = world.running(4, scheduling=SchedulingSpec(tenant="heavy"))
    world.turn(2, seconds=5000)
    world.leave(heavy, EndReason.COMPLETED)
    (stay,) = [stay for _, stay in world.store.stays()]
    assert (stay.tenant, stay.width, stay.succeeded) == ("heavy", 4, True) and stay.ran_s == stay.ended_s - stay.started_s
    fill(world, scheduling=SchedulingSpec(tenant="third", preemptible=False))
    waiting = [world.submit(4, scheduling=SchedulingSpec(tenant=name)) for name in ("heavy", "light")]
    world.start_controller()
    world.turn()
    assert [row.job_id for row in world.client.queue()] == waiting[::-1]


def test_usage_fades_and_counts_each_stay_once():
    def stay(tenant, start, end, width=2):
        return Stay(
            job_id="j", tenant=tenant, width=width, asked_width=width, started_s=start, ended_s=end, ran_s=end - start, succeeded=True
        )  # fmt: skip

    accounts = Accounts([stay("a", 0.0, 10.0), stay("b", 5.0, 15.0)])
    usage = accounts.usage((), half_life_s=1e9)
    assert usage.charged_at_s == 15.0
    assert usage.charged == pytest.approx({"a": 20.0, "b": 20.0}, rel=1e-6)
    faded = accounts.usage((), half_life_s=5.0)
    assert faded.charged["a"] == pytest.approx(faded.charged["b"] / 2)
    accounts.add(stay("a", 20.0, 30.0))
    both = accounts.usage((), half_life_s=1e9)
    assert both.charged["a"] == pytest.approx(40.0, rel=1e-6) and both.history == {("a", 2): (10.0, 10.0), ("b", 2): (10.0,)}


# time limits


def test_a_job_over_its_time_limit_saves_and_ends_with_that_reason(world):
    job_id = world.running(2, scheduling=SchedulingSpec(time_limit_s=60))
    world.turn(1, seconds=30)
    assert not world.job(job_id).stop_requested
    world.turn(2, seconds=30)
    assert ("stop limit", job_id) in world.groups.calls and world.job(job_id).state is JobState.DRAINING
    world.groups.results[job_id, 1] = JobResult(end_reason=EndReason.TIME_LIMIT, message="stopped after step 7", step=7, committed_step=7)
    world.say(job_id, JobState.DRAINING, ended=True)
    world.turn(6)
    job = world.job(job_id)
    assert (job.state, job.result.end_reason) == (JobState.CANCELLED, EndReason.TIME_LIMIT)
    assert job.reason == "its time limit is over (scheduling.time_limit_s=60); stopped after step 7"


def test_the_limit_counts_over_preemptions_and_anew_after_a_resume(world):
    limited = SchedulingSpec(time_limit_s=100)
    victim = world.running(4, scheduling=limited)
    world.running(4, priority=2)
    world.turn(1, seconds=40)
    urgent = world.submit(4, priority=1)
    world.turn()
    world.leave(victim)
    world.turn(1, seconds=1000)  # the wait does not count
    assert world.job(victim).state is JobState.QUEUED
    world.train(urgent, 1)
    world.leave(urgent, EndReason.COMPLETED)
    world.train(victim, 6)
    assert not world.job(victim).stop_requested
    world.turn(2, seconds=20)
    assert world.job(victim).stop_requested == "limit"
    world.leave(victim, EndReason.CANCELLED)
    assert world.job(victim).result.end_reason is EndReason.TIME_LIMIT
    world.client.resume(victim, None, {})
    world.turn()
    assert world.job(victim).state is JobState.STARTING and world.job(victim).service.ran_s == 0


# dependencies


def test_a_job_waits_for_those_after_which_it_is_to_start(world):
    first = world.running()
    second = world.submit(scheduling=SchedulingSpec(after=(first,)))
    world.turn()
    assert world.job(second).reason == f"waits for {first} to succeed, which is running"
    assert world.client.explain(second).reason == world.job(second).reason
    assert [(row.job_id, row.position) for row in world.client.queue()] == [(second, 0)]
    world.leave(first, EndReason.COMPLETED)
    assert world.job(second).state is JobState.STARTING


@pytest.mark.parametrize("reason, how", [(EndReason.USER_ERROR, "failed"), (EndReason.CANCELLED, "was cancelled")])
def test_it_ends_with_one_that_does_not_succeed_and_so_do_those_after_it(world, reason, how):
    first = world.running()
    second = world.submit(scheduling=SchedulingSpec(after=(first,)))
    third = world.submit(scheduling=SchedulingSpec(after=(second,)))
    world.leave(first, reason)
    world.turn(4)
    for job_id, why in (
        (second, f"{first}, after which it was to start, {how}"),
        (third, f"{second}, after which it was to start, was cancelled"),
    ):
        job = world.job(job_id)
        assert (job.state, job.reason, job.result.end_reason) == (JobState.CANCELLED, why, EndReason.DEPENDENCY)
    with pytest.raises(ConfigError, match=f"{first} .*Resume it first"):
        world.client.resume(second, None, {})
    world.client.resume(first, None, {})
    world.client.resume(second, None, {})


def test_an_unknown_job_is_refused_with_the_nearest_and_a_circle_too(world):
    first = world.submit()
    with pytest.raises(JobNotFound, match=f"Did you mean '{first}'"):
        world.submit(scheduling=SchedulingSpec(after=(first[:-1] + "_",)))
    second = world.submit(scheduling=SchedulingSpec(after=(first[:9],)))
    assert world.job(second).spec.scheduling.after == (first,)
    world.client.request_stop(first, "now")
    world.turn(1)
    spec = dataclasses.replace(world.job(first).spec, scheduling=SchedulingSpec(after=(first,)))
    with pytest.raises(ConfigError):
        world.client.resume(first, spec, {})


# what is told


def test_each_job_that_waits_has_its_position_and_its_start_and_a_reserved_one_is_kept(world):
    world.client.set_policy("mine", {"mode": "batch", "reserve_after_s": 0})
    first = world.running(4)
    training = dataclasses.replace(SPEC.training, global_batch_size=16)
    large, small = world.submit(8, training=training), world.submit(8, training=training)
    world.turn()
    rows = world.client.queue()
    assert [(row.job_id, row.position) for row in rows] == [(large, 1), (small, 2)]
    assert rows[0].reserved and rows[0].start_s > world.now and rows[1].start_s > rows[0].start_s and not rows[1].reserved
    assert "has a place reserved in" in rows[0].reason
    found = world.client.explain(small)
    assert (found.position, found.state, found.num_workers) == (2, "queued", 8)
    assert world.client.explain(large).holders == (first,)
    assert world.client.explain(first).state == "running"


def test_the_default_policy_is_the_shipped_one_and_a_changed_one_is_kept(tmp_path):
    from orchestrator.cli.policy import load_policy

    assert load_policy([]) == DEFAULT
    client = Client(Home(tmp_path))
    assert client.policy() == DEFAULT
    client.set_policy("batch", load_policy(["scheduler=batch"]).settings)
    assert Client(Home(tmp_path)).policy().policy.mode == "batch"
    with pytest.raises(ConfigError, match=r"scheduler.max_wait is no setting.*Did you mean 'max_wait_s'"):
        client.set_policy("batch", {"mode": "batch", "max_wait": 3})


# the log


def test_the_log_of_a_run_with_deaths_of_the_controller_makes_the_same_plans_again(world):
    world.client.set_policy("mine", {**QUICK, "tenants": {"lab": {"quota": 4, "weight": 2}}})
    fill(world)
    urgent = world.submit(4, priority=1, recovery=SPEC.recovery)
    world.submit(2, scheduling=SchedulingSpec(tenant="lab"))
    world.turn()
    world.start_controller()
    for victim, *_ in list(world.groups.preemptions):
        world.leave(victim)
    world.train(urgent, 1)
    world.leave(urgent, EndReason.COMPLETED)
    logs = sorted(world.home.plans.glob("*.jsonl"))
    with logs[-1].open("a") as log:
        log.write('{"now": 17, "ha')  # killed as it wrote
    again = replay(world.home.plans)
    assert again.plans >= 5 and again.differing == ()
    text = logs[0].read_text()
    logs[0].write_text(text.replace('"priority": 1', '"priority": 0'))
    assert replay(world.home.plans).differing


def test_the_log_has_the_plans_of_all_controllers_and_when_it_is_full_the_oldest_go(world, monkeypatch):
    world.submit(4)
    for _ in range(20):
        world.start_controller()
        world.turn()
    first, *others = sorted(world.home.plans.glob("*.jsonl"))
    assert len(others) == 19 and replay(world.home.plans).plans >= 20
    monkeypatch.setattr(planlog, "MAX_BYTES", planlog.MAX_FILE_BYTES + sum(path.stat().st_size for path in others))
    world.start_controller()
    world.turn()
    assert not first.exists() and all(path.exists() for path in others)
