"""Jobs on a Ray cluster that others started: two nodes, an agent on each; the command only detaches and leaves the cluster alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import TINY, Sandbox, interrupt, kill

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


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def address(sandbox):
    """Of two nodes with two CPUs each."""
    port = free_port()
    environment = {**sandbox.environment, "PYTHON": sys.executable}  # marks the cluster's processes as the sandbox's
    cluster = subprocess.Popen(
        [SCRIPT, "2", "2", str(port)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert cluster.stdout is not None
    first = cluster.stdout.readline()
    assert "ready: 2 nodes" in first, first + cluster.communicate(timeout=60)[0]
    yield f"127.0.0.1:{port}"
    sandbox.run("down")  # first: a control plane that looks for its cluster waits long
    cluster.send_signal(signal.SIGTERM)
    cluster.wait(timeout=60)


def test_one_worker_on_each_node_trains_what_two_on_one_node_do(sandbox, address):
    spread = ("resources.max_workers_per_node=1",)
    here = sandbox.submit(*TINY, f"cluster.address={address}")
    there = sandbox.submit(*TINY, *spread, f"cluster.address={address}")
    for job_id in (here, there):
        assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED, sandbox.describe()
    admitted = next(event.message for _, event in sandbox.client.events(there) if event.kind.name == "ADMITTED")
    assert admitted.count("1 on ") == 2, admitted
    assert sandbox.history(there) == sandbox.history(here)
    assert sandbox.fingerprint(there) == sandbox.fingerprint(here)

    killed = sandbox.submit(*TINY, *spread, f"cluster.address={address}")
    uploader = sandbox.wait_until(lambda: len(found := sandbox.victims("uploader")) == 2 and found[-1], "both uploaders")
    agent = uploader.parent()
    uploader.suspend()  # of its node nothing comes into the store; its rank stops when it has staged two steps
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


def test_ctrl_c_detaches_and_down_leaves_the_cluster_to_its_owner(sandbox, address):
    known = {job.id for job in sandbox.jobs()}
    command = sandbox.start("train", *TINY, "training.max_steps=500", f"cluster.address={address}")
    job_id = sandbox.wait_until(lambda: next((job.id for job in sandbox.jobs() if job.id not in known), ""), "the job")
    sandbox.wait_step(job_id, 1)
    interrupt(command)
    output, _ = command.communicate(timeout=30)
    assert command.returncode == 130 and "did not start the cluster" in output, output
    assert not sandbox.job(job_id).state.terminal
    assert sandbox.run("down")[0] == 0
    code, output = sandbox.run("resume", job_id)
    assert code == 0, output
    assert [row["step"] for row in sandbox.history(job_id)] == list(range(1, 501))


def test_more_than_this_cluster_can_ever_have_is_refused_and_what_is_taken_now_waits(sandbox, address):
    code, output = sandbox.run("submit", *TINY, "resources.cpus_per_worker=3", f"cluster.address={address}")
    assert code == 2 and "4 CPUs on 2 nodes" in output, output
    first = sandbox.submit(*TINY, "resources.cpus_per_worker=2", "training.max_steps=2000", f"cluster.address={address}")
    second = sandbox.submit(*TINY, "resources.cpus_per_worker=2", f"cluster.address={address}")
    reason = sandbox.wait_until(lambda: sandbox.job(second).reason if first in sandbox.job(second).reason else "", "a reason")
    assert "2 x 2 CPUs" in reason
    assert sandbox.run("cancel", first, "--now")[0] == 0
    assert sandbox.wait_ended(second).state is JobState.SUCCEEDED


@pytest.mark.campaign
def test_a_drained_node_gives_its_job_back_to_the_queue_and_nothing_of_it_is_lost(sandbox, address):
    """Two equal jobs fill a node each. The one on the head is the calm run; the other goes on there when its node is taken.

    Last in this file: a drain is not taken back.
    """
    fills = ("training.max_steps=500", "checkpoint.interval_steps=250", "resources.cpus_per_worker=1", f"cluster.address={address}")
    known = {job.id for job in sandbox.jobs()}
    commands = [sandbox.start("submit", *TINY, *fills) for _ in range(2)]  # at once, so that both run at the same time
    assert [command.wait(60) for command in commands] == [0, 0], sandbox.describe()
    jobs = [job.id for job in sandbox.jobs() if job.id not in known]
    nodes = {sandbox.wait_until(lambda job_id=job_id: sandbox.job(job_id).placement, "a place")[0][0]: job_id for job_id in jobs}
    calm = nodes.pop(_ray(sandbox, address, "-c", HEAD, address).strip())
    ((node, drained),) = nodes.items()
    sandbox.wait_step(drained, 20)
    drain = (f"--address={address}", f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a test")
    _ray(sandbox, address, "-m", "ray.scripts.scripts", "drain-node", *drain, "--deadline-remaining-seconds=60")
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
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
