from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import NoisySampler, has_full_support
from bayeshnet.entropy.support import measure_holes
from bayeshnet.hnets import HMLP, ChunkedHMLP, HPerturbWrapper
from bayeshnet.infer import AutoHypernet
from tests.entropy.test_root_search import absolute
from tests.targets import target_model


def sampler(activation: nn.Module | None = None, noise: str = "shared", **options) -> NoisySampler:
    options = {"uncond_in_size": 3, "cond_in_size": 0, "layers": (10,), **options}
    hnet = HMLP([[8]], activation_fn=activation, verbose=False, **options)
    return NoisySampler(HPerturbWrapper(hnet, sigma_noise=0.02, noise=noise, verbose=False))


@pytest.mark.parametrize(
    ("made", "known"),
    [
        (lambda: sampler(nn.Tanh()), True),
        (lambda: sampler(nn.Sigmoid(), layers=(10, 10)), True),
        (lambda: sampler(nn.Tanh(), linear_skip=True), True),
        (lambda: sampler(None), True),  # linear, and invertible
        (lambda: sampler(nn.ReLU(), layers=()), True),
        (lambda: sampler(nn.ReLU()), False),
        (lambda: sampler(nn.GELU(), linear_skip=True), False),
        (lambda: sampler(nn.ReLU(), noise="independent"), True),
    ],
)
def test_what_is_known_of_the_support(made, known):
    torch.manual_seed(0)
    built = made()
    assert has_full_support(built) is known
    if known and built.shared:
        with torch.no_grad():
            share, _ = measure_holes(built, built.draw(100).weights)
        assert share <= 0.01


def test_a_skip_whose_sum_with_the_noise_is_singular_leaves_holes():
    """h(u) = -0.5 u + b tanh(u), sigma 0.5: w is within the reach of tanh."""
    hnet = HMLP([[1]], uncond_in_size=1, cond_in_size=0, layers=(3,), activation_fn=nn.Tanh(), linear_skip=True)
    with torch.no_grad():
        hnet.internal_params[-1].fill_(-0.5)
    assert not has_full_support(NoisySampler(HPerturbWrapper(hnet, sigma_noise=0.5)))
    assert has_full_support(NoisySampler(HPerturbWrapper(hnet, sigma_noise=0.4)))


def test_of_other_classes_nothing_is_known():
    hnet = ChunkedHMLP([[8]], 4, uncond_in_size=2, cond_in_size=0, chunk_emb_size=2)
    assert not has_full_support(NoisySampler(HPerturbWrapper(hnet)))


def test_holes_are_diagnosed():
    """h(u) = |u|: values around the draws, whose mean is 0.8 and whose standard deviation 0.6, below 0 are a sixth."""
    torch.manual_seed(0)
    found = ImplicitWeights(absolute()).diagnose(num_samples=256)
    share, error = found.values["holes"], found.values["holes_error"]
    z = torch.randn(100_000, dtype=torch.double)
    expected = float((z.abs() + 0.6 * torch.randn_like(z) < 0).double().mean())
    assert abs(share - expected) < 4 * error
    assert 0 < error < 0.05
    assert found.values["full_support"] == 0.0
    assert any(
        "leaves holes: no noise leads to" in advice and "ImportanceSampled()" in advice for advice in found.advice
    )
    assert "holes" not in ImplicitWeights(absolute()).diagnose(thorough=False).values


def test_the_default_hypernetwork_has_full_support():
    guide = AutoHypernet(target_model("two_modes"), example=())
    found = guide.diagnose()
    assert found.values["full_support"] == 1.0
    assert found.values["holes"] == 0.0
