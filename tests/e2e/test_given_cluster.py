"""Jobs on a Ray cluster that others started: two nodes, an agent on each; the command only detaches and leaves the cluster alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ENDLESS, TINY, Sandbox, interrupt, kill, slowed
from patience import LIMIT_S

from orchestrator.checkpoints.slab import Slab, SlabState
from orchestrator.control.environment import remote_environment
from orchestrator.events import EventKind
from orchestrator.job import JobState
from orchestrator.ports import free_port

HEAD = """
import sys
from ray._raylet import GcsClient
print(next(info.node_id.hex() for info in GcsClient(address=sys.argv[1]).get_all_node_info().values() if info.is_head_node))
"""
MEMORY = Path("/dev/shm")
SCRIPT = Path(__file__).parents[2] / "cluster" / "local.sh"
MAX_STARTS = 10
"""Ray itself gives a node half a minute to register."""


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def address(sandbox):
    """Of two nodes with two CPUs each."""
    for _ in range(MAX_STARTS):
        port = free_port()
        cluster, said = started(sandbox, port)
        if "ready: 2 nodes" in said:
            break
    else:
        raise AssertionError(said)
    yield f"127.0.0.1:{port}"
    sandbox.run("down")  # first: a control plane that looks for its cluster waits long
    cluster.send_signal(signal.SIGTERM)
    cluster.wait(timeout=LIMIT_S)


def started(sandbox: Sandbox, port: int) -> tuple[subprocess.Popen[str], str]:
    """The script's process, and what it says: one line when it is ready, all of it if it has ended."""
    environment = {**sandbox.environment, "PYTHON": sys.executable}  # marks the cluster's processes as the sandbox's
    cluster = subprocess.Popen(
        [SCRIPT, "2", "2", str(port)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert cluster.stdout is not None
    first = cluster.stdout.readline()
    return cluster, first if "ready: " in first else first + cluster.communicate(timeout=LIMIT_S)[0]


def test_one_worker_on_each_node_trains_what_two_on_one_node_do(sandbox, address, tmp_path):
    spread = ("resources.max_workers_per_node=1",)
    here = sandbox.submit(*TINY, f"cluster.address={address}")
    there = sandbox.submit(*TINY, *spread, f"cluster.address={address}")
    for job_id in (here, there):
        assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED, sandbox.describe()
    admitted = next(event.message for _, event in sandbox.client.events(there) if event.kind.name == "ADMITTED")
    assert admitted.count("1 on ") == 2, admitted
    assert sandbox.history(there) == sandbox.history(here)
    assert sandbox.fingerprint(there) == sandbox.fingerprint(here)

    is_suspended = tmp_path / "is-suspended"
    killed = sandbox.submit(*TINY, *spread, f"cluster.address={address}", *slowed(is_suspended))
    uploader = sandbox.wait_until(lambda: len(found := sandbox.victims("uploader")) == 2 and found[-1], "both uploaders")
    agent = uploader.parent()
    uploader.suspend()  # of its node nothing comes into the store; its rank stops when it has staged two steps
    is_suspended.touch()
    copies = sandbox.wait_until(lambda: _copied(killed, (20, 40)), "copies of both on the other node")
    agent.kill()
    kill(uploader)  # it may have gone with its agent
    for left in MEMORY.glob(f"orchestrator-{killed}-{copies}-*.slab"):
        left.unlink()  # they were the memory of the lost node
    assert sandbox.wait_ended(killed).state is JobState.SUCCEEDED, sandbox.describe()
    restored = {event.fields["step"] for _, event in sandbox.client.events(killed) if event.kind is EventKind.RESTORED}
    assert restored == {40}, sandbox.client.events(killed)
    assert sandbox.job(killed).progress.restarts == 1
    assert sandbox.history(killed) == sandbox.history(here)
    assert sandbox.fingerprint(killed) == sandbox.fingerprint(here)
    sandbox.wait_until(lambda: not list(MEMORY.glob(f"orchestrator-{killed}-*")), "the removal of slabs")


def _copied(job_id, steps):
    """The bundle of which another holds copies of those steps whole, as text."""
    for bundle in "01":
        tables = [json.loads(path.read_text()) for path in MEMORY.glob(f"orchestrator-{job_id}-*-of-{bundle}-*.json")]
        if {table["step"] for table in tables} == set(steps) and not list(MEMORY.glob(f"orchestrator-{job_id}-*.unfinished")):
            own = [Slab.open(path).state for path in MEMORY.glob(f"orchestrator-{job_id}-{bundle}-{bundle}-*.slab")]
            if own == [SlabState.STAGED, SlabState.STAGED]:
                return bundle
    return ""


def test_ctrl_c_detaches_and_down_leaves_the_cluster_to_its_owner(sandbox, address, tmp_path):
    known = {job.id for job in sandbox.jobs()}
    is_down = tmp_path / "is-down"
    command = sandbox.start("train", *TINY, "training.max_steps=500", *slowed(is_down), f"cluster.address={address}")
    job_id = sandbox.wait_until(lambda: next((job.id for job in sandbox.jobs() if job.id not in known), ""), "the job")
    sandbox.wait_step(job_id, 1)
    interrupt(command)
    output, _ = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 130 and "did not start the cluster" in output, output
    assert not sandbox.job(job_id).state.terminal
    assert sandbox.run("down")[0] == 0
    is_down.touch()
    code, output = sandbox.run("resume", job_id)
    assert code == 0, output
    assert [row["step"] for row in sandbox.history(job_id)] == list(range(1, 501))


def test_more_than_this_cluster_can_ever_have_is_refused_and_what_is_taken_now_waits(sandbox, address):
    code, output = sandbox.run("submit", *TINY, "resources.cpus_per_worker=3", f"cluster.address={address}")
    assert code == 2 and "4 CPUs on 2 nodes" in output, output
    first = sandbox.submit(*TINY, "resources.cpus_per_worker=2", ENDLESS, f"cluster.address={address}")
    second = sandbox.submit(*TINY, "resources.cpus_per_worker=2", f"cluster.address={address}")
    reason = sandbox.wait_until(lambda: sandbox.job(second).reason if first in sandbox.job(second).reason else "", "a reason")
    assert "2 x 2 CPUs" in reason
    assert sandbox.run("cancel", first, "--now")[0] == 0
    assert sandbox.wait_ended(second).state is JobState.SUCCEEDED


@pytest.mark.campaign
def test_a_drained_node_gives_its_job_back_to_the_queue_and_nothing_of_it_is_lost(sandbox, address, tmp_path):
    """Two equal jobs fill a node each. The one on the head is the calm run; the other goes on there when its node is taken.

    Last in this file: a drain is not taken back.
    """
    has_left = tmp_path / "has-left"
    fills = (
        "training.max_steps=500", "checkpoint.interval_steps=250", "resources.cpus_per_worker=1", f"cluster.address={address}",
        *slowed(has_left, steps=20),
    )  # fmt: skip
    known = {job.id for job in sandbox.jobs()}
    commands = [sandbox.start("submit", *TINY, *fills) for _ in range(2)]  # at once, so that both run at the same time
    assert [command.wait(LIMIT_S) for command in commands] == [0, 0], sandbox.describe()
    jobs = [job.id for job in sandbox.jobs() if job.id not in known]
    nodes = {sandbox.wait_until(lambda job_id=job_id: sandbox.job(job_id).placement, "a place")[0][0]: job_id for job_id in jobs}
    calm = nodes.pop(_ray(sandbox, address, "-c", HEAD, address).strip())
    ((node, drained),) = nodes.items()
    sandbox.wait_step(drained, 20)
    drain = (f"--address={address}", f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a test")
    _ray(sandbox, address, "-m", "ray.scripts.scripts", "drain-node", *drain, "--deadline-remaining-seconds=60")
    sandbox.wait_until(lambda: sandbox.job(drained).run == 2, "the way back to the queue")
    has_left.touch()
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED, sandbox.describe()
    job = sandbox.wait_ended(drained)
    assert (job.state, job.run) == (JobState.SUCCEEDED, 2), sandbox.describe()
    assert (job.progress.preemptions, job.progress.restarts) == (1, 0)
    told = [event for _, event in sandbox.client.events(drained)]
    (notice,) = [event for event in told if event.kind is EventKind.PREEMPTED]
    assert notice.message.startswith(f"Ray drains node {node[:8]}: it saves and leaves; ")
    (left,) = [event.message for event in told if event.kind is EventKind.ENDED and "back to the queue" in event.message]
    restored = next(event.fields["step"] for event in told if event.kind is EventKind.RESTORED)
    assert 20 <= restored < 500 and left.endswith(f"stopped after step {restored}; back to the queue, goes on from step {restored}")
    assert sandbox.history(drained) == sandbox.history(calm)
    assert sandbox.fingerprint(drained) == sandbox.fingerprint(calm)


def _ray(sandbox, address, *arguments):
    """What a program of Python prints that has Ray's token."""
    environment = {**sandbox.environment, **remote_environment(sandbox.home, address)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
