"""Networks whose weights and inputs broadcast: each place has the plain module's output for its weights and inputs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bayeshnet.errors import ArgumentError
from bayeshnet.mnets import ModuleMainNet
from bayeshnet.mnets.broadcast import broadcast_forward, row_dims


class Sequence(nn.Module):
    """A recurrent network, which has no batching rule."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(2, 3, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, u, v, *, power=2):
        return (self.first(u) * self.second(v)).abs() ** power


class OfLabels(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, label):
        return self.table(label)


# network, shapes of one row, number of its dimensions
NETWORKS = {
    "chain": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), [(2,)]),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)), [(2, 3)]),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), [(1, 4, 4)]),
    "recurrent": (Sequence, [(5, 2)]),
    "two inputs": (TwoInputs, [(2,), (4,)]),
    "labels": (OfLabels, [()]),
}
# batches of weights and of inputs
BATCHES = [
    ((), (7,)),
    ((3, 1), (7,)),
    ((3, 1), (3, 7)),
    ((3, 1), (2, 1, 7)),
    ((3, 1), (2, 3, 7)),
    ((3, 2, 1), (2, 7)),
    ((3, 1, 1), (4, 7)),
    ((7,), (7,)),
    ((3,), ()),
    ((1,), (7,)),
]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("samples", "batch"), BATCHES)
def test_each_place_is_the_module_with_its_weights_and_inputs(name, samples, batch):
    torch.manual_seed(0)
    make, rows = NETWORKS[name]
    module = make().double()
    net = ModuleMainNet(module, no_weights=True)
    weights = {key: torch.randn(*samples, *param.shape).double() for key, param in module.named_parameters()}
    inputs = [torch.randint(5, batch) if name == "labels" else torch.randn(*batch, *row).double() for row in rows]
    stacked = [weights[key].reshape(-1, *shape) for key, shape in zip(net.param_names, net.param_shapes, strict=True)]
    out = broadcast_forward(net, stacked, torch.Size(samples), inputs, [len(row) for row in rows])
    full = torch.broadcast_shapes(samples, batch)
    assert out.shape[: len(full)] == full
    spread_weights = {key: value.expand(*full, *value.shape[len(samples) :]) for key, value in weights.items()}
    spread = [part.expand(*full, *part.shape[len(batch) :]) for part in inputs]
    for place in itertools.product(*map(range, full)):
        one = {key: value[place] for key, value in spread_weights.items()}
        expected = functional_call(module, one, tuple(part[place].unsqueeze(0) for part in spread))[0]
        torch.testing.assert_close(out[place], expected, rtol=1e-9, atol=1e-9)


def test_many_rows_are_taken_in_parts():
    """Activations of 20,000 rows leave the cache of a core, so that samples are taken one after the other."""
    net = ModuleMainNet(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), no_weights=True)
    weights = [torch.randn(3, *shape) for shape in net.param_shapes]
    x = torch.randn(3, 20_000, 2)
    out = broadcast_forward(net, weights, torch.Size([3, 1]), [x], [1])
    few = broadcast_forward(net, weights, torch.Size([3, 1]), [x[:, -5:]], [1])
    torch.testing.assert_close(out[:, -5:], few, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["chain", "convolution"])
def test_gradients_of_weights_and_own_inputs(name):
    make, rows = NETWORKS[name]
    net = ModuleMainNet(make().double(), no_weights=True)
    weights = [torch.randn(2, *shape).double().requires_grad_() for shape in net.param_shapes]
    x = torch.randn(2, 3, *rows[0]).double().requires_grad_()

    def outputs(x, *weights):
        return broadcast_forward(net, list(weights), torch.Size([2, 1]), [x], [len(rows[0])])

    assert torch.autograd.gradcheck(outputs, (x, *weights))


def test_arguments_that_are_no_tensors_are_the_same_for_all():
    module = TwoInputs().double()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, u, v, power):
            return self.module(u, v, power=power)

    net = ModuleMainNet(Wrapped())
    weights = [torch.randn(3, *shape).double() for shape in net.param_shapes]
    u, v = torch.randn(3, 5, 2).double(), torch.randn(5, 4).double()
    out = broadcast_forward(net, weights, torch.Size([3, 1]), [u, v, 3], [1, 1, 0])
    for s in range(3):
        values = dict(zip(net.param_names, [weight[s] for weight in weights], strict=True))
        torch.testing.assert_close(out[s], functional_call(net.module, values, (u[s], v, 3)), rtol=1e-9, atol=1e-9)


def test_what_does_not_broadcast_is_refused():
    net = ModuleMainNet(nn.Linear(2, 1))
    weights = [torch.zeros(3, 1, 2), torch.zeros(3, 1)]
    with pytest.raises(ArgumentError, match=r"x: has the batch shape \(4, 7\), the weights have \(3, 1\)"):
        broadcast_forward(net, weights, torch.Size([3, 1]), [torch.zeros(4, 7, 2)], [1])

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x):
            return self.linear(x).mean(0, keepdim=True)

    with pytest.raises(ArgumentError, match=r"net: gives a tensor \[1, 1\] for 7 rows"):
        broadcast_forward(ModuleMainNet(Pooled()), weights, torch.Size([3, 1]), [torch.zeros(7, 2)], [1])


def test_the_dimensions_of_a_row_where_they_are_certain():
    chain = ModuleMainNet(nn.Sequential(nn.Dropout(), nn.Linear(2, 1)))
    assert row_dims(chain, torch.zeros(3, 4, 2)) == 1
    assert row_dims(ModuleMainNet(nn.Sequential(nn.Flatten(), nn.Linear(6, 1))), torch.zeros(5, 2, 3)) is None
    assert row_dims(ModuleMainNet(Sequence()), torch.zeros(5, 2)) == 1
    assert row_dims(ModuleMainNet(OfLabels()), torch.zeros(5)) is None
