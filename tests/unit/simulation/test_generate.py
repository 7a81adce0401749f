from __future__ import annotations

import itertools
import statistics
from collections import Counter

import pytest

from orchestrator.errors import ConfigError
from orchestrator.simulation.generate import LONGEST_S, RECIPES, SHORTEST_S, generate

JOBS, GPUS = 4000, 256


def shares(values) -> dict:
    return {value: count / JOBS for value, count in Counter(values).items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_trace_has_the_load_it_is_made_for_and_comes_from_its_seed(name):
    trace = generate(name, jobs=JOBS, gpus=GPUS, seed=1)
    assert trace == generate(name, jobs=JOBS, gpus=GPUS, seed=1) != generate(name, jobs=JOBS, gpus=GPUS, seed=2)
    asked = sum(job.gpus * job.duration_s for job in trace)
    assert asked / (GPUS * (trace[-1].submit_s - trace[0].submit_s)) == pytest.approx(RECIPES[name].load, rel=0.05)
    assert [job.submit_s for job in trace] == sorted(job.submit_s for job in trace)
    assert len({job.id for job in trace}) == JOBS
    assert all(SHORTEST_S <= job.duration_s <= LONGEST_S for job in trace)


def test_run_times_are_heavy_tailed():
    durations = sorted(job.duration_s for job in generate("plain", jobs=JOBS, gpus=GPUS, seed=1))
    assert 900 < statistics.median(durations) < 5400
    assert sum(durations[-JOBS // 20 :]) > 0.3 * sum(durations)


def test_small_jobs_are_93_in_100():
    assert 0.91 < shares(job.gpus for job in generate("small", jobs=JOBS, gpus=GPUS, seed=1))[1] < 0.96


def test_five_tenants_want_unequal_parts():
    found = shares(job.tenant for job in generate("tenants", jobs=JOBS, gpus=GPUS, seed=1))
    assert len(found) == 5
    assert max(found.values()) > 4 * min(found.values())


def test_bursts_are_bursts():
    def within_one_second(name: str) -> float:
        times = [job.submit_s for job in generate(name, jobs=JOBS, gpus=GPUS, seed=1)]
        return sum(later - earlier < 1 for earlier, later in itertools.pairwise(times)) / JOBS

    assert within_one_second("bursty") > 0.7 > 0.5 > within_one_second("plain")


def test_elastic_jobs_have_legal_sizes():
    elastic = [job for job in generate("elastic", jobs=JOBS, gpus=GPUS, seed=1) if job.sizes]
    assert len(elastic) > JOBS / 20
    assert {(job.gpus, job.sizes) for job in elastic} >= {(2, (1, 2, 4)), (8, (2, 4, 8, 16))}


def test_gangs_wider_than_a_quarter_of_the_cluster_are_left_out_and_a_wrong_name_is_told():
    assert max(job.gpus for job in generate("plain", jobs=JOBS, gpus=64, seed=1)) == 16
    with pytest.raises(ConfigError, match=r"no recipe 'burst'.* Did you mean 'bursty'"):
        generate("burst", jobs=1, gpus=8, seed=1)
