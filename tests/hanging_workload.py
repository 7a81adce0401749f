"""The tiny workload in slow motion, which stops moving on order, in one of the ways in which jobs do.

The order is a file in the folder `workload.options.orders`, named `<how>-<rank>`: that rank renames it to `<how>-<rank>.taken` and obeys.
"""

from __future__ import annotations

import os
import random
import socket
import stat
import threading
import time
from pathlib import Path

import torch.distributed as dist
from tiny_workload import Tiny

from orchestrator.chaos import acts

AS_GOOD_AS_FOR_EVER_S = 600
SPREAD_S = 0.05
HELD: list[socket.socket] = []


class Hanging(Tiny):
    def __init__(self, spec):
        super().__init__(spec)
        self.orders = Path(self.options["orders"])

    def build_model(self, dataset):
        self.group, gather = dist.new_group(), dataset.gather

        def read(split, ids):
            if split == "train":
                self.obey("data")
            return gather(split, ids)

        dataset.gather = read
        return super().build_model(dataset)

    def loss(self, model, batch):
        time.sleep(float(self.options.get("step_s", 0.01)))
        for how in ("gil", "busy", "blocked", "mute", "reset", "extra"):
            self.obey(how)
        if self.options.get("collective") and not self.taken("skip"):
            dist.barrier(self.group)  # what a user's workload may do: a collective of its own
        loss = super().loss(model, batch)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: self.obey("backward"))
        return loss

    def taken(self, how):
        order = self.orders / f"{how}-{dist.get_rank()}"
        if not order.exists():
            return False
        order.write_text(str(time.time()))
        order.rename(order.with_suffix(".taken"))
        return True

    def obey(self, how):
        if self.taken(how):
            getattr(self, f"do_{how}")()

    def do_gil(self):
        """Keeps Python's lock in C."""
        acts.hold_gil()

    def do_busy(self):
        end = time.monotonic() + AS_GOOD_AS_FOR_EVER_S
        while time.monotonic() < end:
            pass

    def do_blocked(self):
        time.sleep(AS_GOOD_AS_FOR_EVER_S)

    do_backward = do_data = do_blocked

    def do_extra(self):
        """Calls a collective once more than the others do."""
        dist.barrier(self.group)

    def do_reset(self):
        """Its connections to the others are closed, at any point of a step: they are told."""
        threading.Timer(random.random() * SPREAD_S, reset).start()

    def do_mute(self):
        """What it sends to the others goes nowhere from now on, and nothing comes: nobody is told, as when a cable is pulled."""
        threading.Timer(random.random() * SPREAD_S, mute).start()


def reset():
    for number in connections():
        with socket.socket(fileno=os.dup(number)) as copy:
            copy.shutdown(socket.SHUT_RDWR)


def mute():
    for number in connections():
        os.dup(number)  # the connection stays open
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
        os.dup2(ends[0].fileno(), number)
        HELD.extend(ends)


def connections():
    """Descriptors of this process's TCP connections to other ranks."""
    store, found = int(os.environ["MASTER_PORT"]), []
    for number in [int(file.name) for file in Path("/proc/self/fd").iterdir()]:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and store not in (copy.getsockname()[1], copy.getpeername()[1]):
                    found.append(number)
        except OSError:  # closed meanwhile, or not connected
            continue
    return found
