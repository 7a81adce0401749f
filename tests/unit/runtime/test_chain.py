"""A workload's layers must hold what its model holds, and a rank must know which tensor is whose."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from orchestrator.errors import WorkloadError  # noqa: E402
from orchestrator.runtime.chain import Held, check_chain, holdings, kinds_of, names_of, places_of, size_of  # noqa: E402


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_stand_once_with_all_their_stages():
    model = Model()
    runs = [[model.embedding], [nn.Sequential(model.norm, nn.ReLU()), model.head]]
    check_chain(model, [layer for run in runs for layer in run])
    found = holdings(model, runs)
    assert found["embedding.weight"] == Held((5, 3), (0, 1), is_buffer=False)
    assert found["norm.running_mean"] == Held((3,), (1,), is_buffer=True)
    assert list(found) == [
        "embedding.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    assert places_of(runs[1], names_of(model))["embedding.weight"].owner is model.head
    assert [size_of(layer) for layer in runs[1]] == [6, 15]
    assert [kinds_of(layer) for layer in runs[1]] == [{"vectors"}, {"matrices"}]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (lambda model: [model.embedding, model.head], r"layers\(\) leaves out norm.weight, norm.bias, norm.running_mean \(5 in all\)"),
        (lambda model: [model.embedding, model.norm, nn.Linear(3, 5, bias=False)], r"layers\(\) brings Linear.weight, which is not of"),
        (lambda model: [model.embedding, model.norm, torch.relu], r"layers\(\) must return torch.nn.Modules"),
    ],
)
def test_layers_that_are_not_the_models_are_refused(layers, said):
    model = Model()
    with pytest.raises(WorkloadError, match=said):
        check_chain(model, layers(model))
