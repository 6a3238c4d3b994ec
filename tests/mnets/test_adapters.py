"""Low-rank adapters: the network at the start, plain weights after merging, Bayesian in the adapters alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, batched_forward, fit, likelihoods, sample_networks
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets import adapted_names, merged, with_adapters


def dense():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def images():
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(36, 2))


def sequences():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def volumes():
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 2))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


CASES = [
    (dense, (5, 3), None),
    (images, (5, 2, 6, 6), None),
    (sequences, (5, 2, 7), None),
    (volumes, (5, 1, 3, 3, 3), None),
    (Attends, (5, 3, 4), ["attention.out_proj", "head"]),
]


@pytest.mark.parametrize(("make", "shape", "targets"), CASES)
def test_at_the_start_it_is_the_network_and_merged_it_is_what_it_was(make, shape, targets):
    torch.manual_seed(0)
    network, x = make().double(), torch.randn(shape, dtype=torch.float64)
    adapted = with_adapters(network, rank=2, alpha=0.5, targets=targets)
    torch.testing.assert_close(adapted(x), network(x), rtol=0, atol=1e-14)
    trained = {name for name, param in adapted.named_parameters() if param.requires_grad}
    assert trained == {f"{name}.parametrizations.weight.0.{key}" for name in adapted_names(adapted) for key in "AB"}
    with torch.no_grad():
        for name in trained:
            adapted.get_parameter(name).normal_()
    plain = merged(adapted)
    assert list(plain.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(plain(x), adapted(x), rtol=0, atol=1e-10)
    assert float((plain(x) - network(x)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(("make", "shape", "targets"), CASES)
def test_samples_of_the_adapters_vectorised_and_looped(make, shape, targets):
    torch.manual_seed(1)
    adapted = with_adapters(make().double(), rank=2, targets=targets)
    x = torch.randn(shape, dtype=torch.float64)
    params = {name: param for name, param in adapted.named_parameters() if param.requires_grad}
    draws = {name: torch.randn(3, *param.shape, dtype=torch.float64) for name, param in params.items()}
    together = batched_forward(adapted, draws, x)
    for i in range(3):
        with torch.no_grad():
            for name, param in params.items():
                param.copy_(draws[name][i])
        torch.testing.assert_close(together[i], adapted(x), rtol=0, atol=1e-10)


def test_corrections_have_the_size_that_is_said():
    torch.manual_seed(2)
    adapted = with_adapters(nn.Linear(40, 50, bias=False), rank=4, alpha=0.5)
    low_rank = adapted.parametrizations.weight[0]
    sums = 0.0
    for _ in range(200):
        with torch.no_grad():
            low_rank.A.normal_()
            low_rank.B.normal_()
            sums += float(low_rank(torch.zeros(50, 40)).square().mean())
    # The variance of an entry is alpha^2 / fan_in = 0.00625. Of a draw the mean square has relative variance of about
    # 2 / (r m) + 2 / (r n) = 0.0225, so that the mean over 200 draws has a standard error of 1.1 %.
    assert sums / 200 == pytest.approx(0.25 / 40, rel=0.05)


def test_a_model_is_bayesian_in_the_adapters_and_a_draw_is_merged():
    torch.manual_seed(3)
    network = dense().double()
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(2, (20,))
    adapted = with_adapters(network, rank=1)
    model = BayesianModel(adapted, likelihood=likelihoods.Categorical())
    assert list(model.latent_shapes) == [f"{i}.parametrizations.weight.0.{key}" for i in (0, 2) for key in "AB"]
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), 3, num_particles=2, progress=False)
    (draw,) = sample_networks(guide, 1)
    plain = merged(draw)
    torch.testing.assert_close(plain(x), draw(x), rtol=0, atol=1e-10)
    network.load_state_dict(plain.state_dict())
    assert torch.equal(network(x), plain(x))
    for name, value in model.net.module.state_dict().items():
        if name.endswith("original"):
            assert torch.equal(value, dict(adapted.named_parameters())[name])


@pytest.mark.parametrize(
    ("make", "targets", "message"),
    [
        (dense, "7", "targets: '7' matches no layer"),
        (dense, nn.Conv2d, "targets: Conv2d matches no layer"),
        (Attends, None, r"input projections of \['attention'\]"),
        (Attends, "*.in_proj_weight", "holds three weights in one"),
        (Attends, nn.MultiheadAttention, "holds three weights in one"),
        (lambda: nn.Sequential(nn.Tanh()), None, "no linear layer or convolution"),
    ],
)
def test_what_can_have_no_adapter_is_named(make, targets, message):
    with pytest.raises(ArgumentError, match=message):
        with_adapters(make(), targets=targets)


def test_wrong_arguments():
    with pytest.raises(ArgumentTypeError, match="net: is"):
        with_adapters(3)
    with pytest.raises(ArgumentTypeError, match="targets: has"):
        with_adapters(dense(), targets=[3])
    with pytest.raises(ArgumentError, match="rank"):
        with_adapters(dense(), rank=0)
    with pytest.raises(ArgumentError, match="has no low-rank adapters"):
        merged(dense())
    network = dense()
    network[2].weight = network[0].weight
    with pytest.raises(ArgumentError, match="is tied"):
        with_adapters(network)
    with pytest.raises(ArgumentError, match="parametrised weight"):
        with_adapters(with_adapters(dense()))
