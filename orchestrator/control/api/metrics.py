"""What Prometheus reads: jobs, nodes and the controller's loop, as they are when it asks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from orchestrator.control.client import Client
from orchestrator.control.pulse import BOUNDS_S, Pulse
from orchestrator.control.scheduler.model import CPU_UNITS

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(client: Client, pulse: Pulse) -> bytes:
    """In Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Now(client, pulse))
    return generate_latest(registry)


class _Now:
    def __init__(self, client: Client, pulse: Pulse) -> None:
        self._client = client
        self._pulse = pulse

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        found, placed = self._client.totals(), Counter[tuple[str, str]]()
        for place in found.places:
            placed[place.tenant, place.state] += place.workers
        yield _counted("orchestrator_jobs", "Jobs", found.jobs)
        yield _counted("orchestrator_workers_placed", "Workers that have a place", placed)
        waits_s = 0.0 if found.queued_since_s is None else time.time() - found.queued_since_s
        yield GaugeMetricFamily("orchestrator_longest_wait_seconds", "Of a job that is queued", waits_s)
        yield from self._nodes()
        yield from self._loop()

    def _nodes(self) -> Iterator[Metric]:
        nodes = self._client.nodes()[0].there.nodes
        yield GaugeMetricFamily("orchestrator_nodes", "Nodes of the cluster", len(nodes))
        yield GaugeMetricFamily("orchestrator_nodes_draining", "Nodes that Ray takes away", sum(node.draining for node in nodes))
        yield GaugeMetricFamily("orchestrator_cpus", "CPUs of the cluster", sum(node.cpu_units for node in nodes) / CPU_UNITS)
        yield GaugeMetricFamily("orchestrator_gpus", "GPUs of the cluster", sum(node.gpus for node in nodes))

    def _loop(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("orchestrator_controller_ready", "The controller has seen the cluster", int(self._pulse.ready))
        yield GaugeMetricFamily("orchestrator_controller_silent_seconds", "Since its last round", self._pulse.silent_s)
        total, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), list(self._pulse.counts), strict=True):
            total += count
            buckets.append((bound, total))
        spent_s = self._pulse.total_s
        yield HistogramMetricFamily("orchestrator_controller_round_seconds", "Time of a round", buckets=buckets, sum_value=spent_s)


def _counted(name: str, about: str, amounts: Mapping[tuple[str, str], int]) -> Metric:
    """`amounts`: by (tenant, state)."""
    family = GaugeMetricFamily(name, about, labels=["state", "tenant"])
    for (tenant, state), value in amounts.items():
        family.add_metric([state, tenant], value)
    return family
