"""The simulated nodes: what is free on each, and when they fail. GPUs are counted; CPUs are never short."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Demand, Node, Placement
from orchestrator.errors import OrchestratorError
from orchestrator.simulation.model import Shape, World


class SimulationError(OrchestratorError):
    """A planner decided what cannot be."""


def shapes_by_node(world: World) -> dict[str, Shape]:
    """The shape of each node by its id."""
    shapes = [shape for shape in world.shapes for _ in range(shape.nodes)]
    digits = max(3, len(str(len(shapes) - 1)))
    return {f"node-{index:0{digits}d}": shape for index, shape in enumerate(shapes)}


def demand_of(gpus: int, world: World) -> Demand:
    """A job on no more GPUs than a node has stands on one node; a larger one on whole nodes, and the rest of it on one more."""
    widest = max(shape.gpus_per_node for shape in world.shapes)
    return Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1, group=min(gpus, widest))


def failures(world: World, node_id: str) -> Iterator[float]:
    """When a node fails, for ever: exponential times between a repair and the next failure, in whole seconds. The same for any planner."""
    draws = random.Random(f"{world.seed} {node_id}")
    now = 0.0
    while True:
        now += math.ceil(draws.expovariate(1 / world.node_mtbf_s))
        yield now
        now += world.node_repair_s


class Cluster:
    """Who holds how many GPUs of which node is known to the runs; here is what is left."""

    def __init__(self, world: World) -> None:
        self._shapes = shapes_by_node(world)
        self._nodes = {
            node_id: Node(id=node_id, cpu_units=shape.gpus_per_node * CPU_UNITS, gpus=shape.gpus_per_node)
            for node_id, shape in self._shapes.items()
        }
        self._free = {node_id: shape.gpus_per_node for node_id, shape in self._shapes.items()}
        self.gpus = sum(self._free.values())
        self.used = 0
        self.view = ClusterView(nodes=tuple(self._nodes.values()))

    def take(self, job_id: str, placement: Placement) -> float:
        """The speed of the gang. Raises SimulationError if a GPU is not there or not free."""
        for node_id, count in placement:
            if node_id not in self._nodes or not self._nodes[node_id].alive or not 0 < count <= self._free[node_id]:
                raise SimulationError(f"{job_id} was given {count} GPUs of {node_id}, which has {self._free.get(node_id, 0)} free")
            self._free[node_id] -= count
            self.used += count
        return min(self._shapes[node_id].speed for node_id, _ in placement)

    def give_back(self, placement: Placement) -> None:
        for node_id, count in placement:
            self._free[node_id] += count
            self.used -= count

    def set_alive(self, node_id: str, alive: bool) -> None:
        self._nodes[node_id] = replace(self._nodes[node_id], alive=alive)
        self.view = ClusterView(nodes=tuple(self._nodes.values()))

    @property
    def whole(self) -> bool:
        """No node is down."""
        return all(node.alive for node in self._nodes.values())

    def could_hold(self, demand: Demand) -> bool:
        """On empty nodes, all of them up."""
        groups, rest = divmod(demand.num_workers, demand.group)
        sizes = sorted((shape.gpus_per_node for shape in self._shapes.values()), reverse=True)
        for size in sizes:
            while groups and size >= demand.group:
                groups, size = groups - 1, size - demand.group
            if rest and not groups and size >= rest:
                rest = 0
        return not groups and not rest
