"""The gradient of log q at fixed values: the score, which is 0 on average over draws, or an error that names why not.

Before, a value that equals the last draw was taken for the draw itself, whatever graph it had: the mean score of the
noise scale was -3.13 in the case of `test_mean_score_of_the_noise_scale`.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeshnet import AutoHypernet, BayesianModel, ImplicitWeights, likelihoods
from bayeshnet.entropy import ChangeOfVariables, Linearised
from bayeshnet.entropy.experimental import Adversarial, SemiImplicit, SpectralStein
from bayeshnet.errors import ArgumentTypeError, DensityError
from bayeshnet.families import BlockGaussianWeights, BlockLayout, MixtureWeights, MultiplicativeLowRank
from bayeshnet.hnets import HMLP, HPerturbWrapper
from tests.samplers import perturbed

LAYOUT = BlockLayout.of([(3, 2), (3,)], [(0, 1)])


def implicit(**options) -> tuple[TorchDistribution, list[Tensor]]:
    # Noise so large that nothing folds: where it does, the density of a draw is that of its own noise alone.
    hnet = perturbed(6, 2, **{"sigma": 0.8, **options}).double()
    with torch.no_grad():
        hnet.log_sigma_noise.add_(0.2 * torch.randn(6))
    return ImplicitWeights(hnet, loc=torch.randn(6).double(), scale=0.5 + torch.rand(6).double()), list(
        hnet.parameters()
    )


def conditional() -> tuple[TorchDistribution, list[Tensor]]:
    torch.set_default_dtype(torch.float64)
    x = torch.randn(12, 2)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    guide = AutoHypernet(BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3)), example=(x, x[:, 0]))
    return guide.get_posterior(), [param for param in guide.parameters() if param.requires_grad]


def blocks(components: int, *, noise: bool) -> tuple[TorchDistribution, list[Tensor]]:
    params = [torch.randn(components, 9), 0.1 * torch.randn(components, 9), 0.3 * torch.randn(components, 3, 3, 3)]
    params = [param.double().requires_grad_() for param in params]
    hnet = perturbed(9, 2, sigma=0.8).double() if noise else None
    made = BlockGaussianWeights(
        params[0], params[1], params[2:], LAYOUT, noise=None if hnet is None else ImplicitWeights(hnet)
    )
    return made, params + ([] if hnet is None else list(hnet.parameters()))


def mixture() -> tuple[TorchDistribution, list[Tensor]]:
    parts = [implicit(), implicit()]
    return MixtureWeights([part[0] for part in parts], weights=[1.0, 2.0]), parts[0][1] + parts[1][1]


def low_rank() -> tuple[TorchDistribution, list[Tensor]]:
    params = [torch.randn(6), 0.1 * torch.randn(6), 0.2 * torch.randn(6, 2), torch.randn(6, 2)]
    params = [param.double().requires_grad_() for param in params]
    return MultiplicativeLowRank(*params), params


EXACT = {
    "hypernetwork": implicit,
    "without_linear_head": lambda: implicit(kind="sine", sigma=3.0),
    "blocks": lambda: blocks(1, noise=False),
    "mixture_of_blocks": lambda: blocks(3, noise=False),
    "blocks_of_a_hypernetwork": lambda: blocks(1, noise=True),
    "mixture_of_blocks_of_a_hypernetwork": lambda: blocks(2, noise=True),
    "mixture_of_hypernetworks": mixture,
    "conditional_layers": conditional,
    "low_rank": low_rank,
}


def scores(q: TorchDistribution, params: list[Tensor], value: Tensor) -> list[Tensor]:
    gradients = torch.autograd.grad(q.log_prob(value).mean(), params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, gradients, strict=True)]


@pytest.mark.parametrize("name", EXACT)
def test_mean_score_is_zero(name):
    """Of detached draws, as reweighted wake-sleep makes them, batch by batch."""
    torch.manual_seed(0)
    q, params = EXACT[name]()
    batches, size = 30, 100
    directions = [torch.randn(3, param.numel(), dtype=param.dtype) for param in params]
    found: list[Tensor] = []
    for _ in range(batches):
        gradients = scores(q, params, q.rsample((size,)).detach())
        projected = [d @ g.flatten() for d, g in zip(directions, gradients, strict=True)]
        found.append(torch.cat(projected).double())
    found = torch.stack(found)
    active = found.std(0) > 0
    assert bool(active.any())
    t = found.mean(0)[active] / (found.std(0)[active] / math.sqrt(batches))
    # Student's t of 29 degrees of freedom exceeds 5 once in 40,000 times; there are up to 60 of them, not independent.
    assert float(t.abs().max()) < 5.0, t


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("without_graph", ["detach", "no_grad", "equal"])
def test_known_noise_has_the_gradient_of_the_search(name, without_graph):
    """A copy, which has drawn nothing, finds the noise by a search."""
    torch.manual_seed(0)
    q, params = EXACT[name]()
    if without_graph == "no_grad":
        value = q.sample((20,))
    else:
        drawn = q.rsample((20,))
        value = drawn.detach() if without_graph == "detach" else torch.tensor(drawn.tolist(), dtype=drawn.dtype)
    known = scores(q, params, value)
    q._last = None
    for part in getattr(q, "components", [getattr(q, "noise", None), getattr(q, "unconditional", None)]):
        if hasattr(part, "_last"):
            part._last = None
    searched = scores(q, params, value)
    for a, b in zip(known, searched, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_mean_score_of_the_noise_scale():
    """-3.13 before (and -2 is what it is along the draws: the entropy of two weights grows with the scale)."""
    torch.manual_seed(0)
    hnet = HMLP([[2]], uncond_in_size=1, cond_in_size=0, layers=(), verbose=False)
    wrapper = HPerturbWrapper(hnet, sigma_noise=0.5, learn_sigma="scalar", verbose=False)
    q = ImplicitWeights(wrapper)
    (score,) = torch.autograd.grad(q.log_prob(q.sample((4000,))).mean(), wrapper.log_sigma_noise)
    # The score of a scale of D = 2 Gaussian coordinates has variance 2 D at most.
    assert abs(float(score)) < 4.0 * math.sqrt(4.0 / 4000)
    (along,) = torch.autograd.grad(q.log_prob(q.rsample((4000,))).mean(), wrapper.log_sigma_noise)
    assert float(along) < -1.0


# ---------------------------------------------------------------------- which of the two gradients


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w,
        lambda w: w.clone(),
        lambda w: w.reshape(4, 1, 6).squeeze(1),
        lambda w: w.unsqueeze(0).expand(1, 4, 6)[0],
    ],
)
def test_copies_in_the_same_graph_are_the_draw(change):
    torch.manual_seed(0)
    q, params = implicit()
    w = q.rsample((4,))
    expected = torch.autograd.grad(q.log_prob(w).sum(), params, retain_graph=True)
    found = torch.autograd.grad(q.log_prob(change(w)).sum(), params)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_gradient_with_respect_to_the_value():
    """A leaf that equals the last draw had no gradient before."""
    torch.manual_seed(0)
    q, _ = implicit()
    value = q.sample((5,)).requires_grad_()
    (known,) = torch.autograd.grad(q.log_prob(value).sum(), value)
    (searched,) = torch.autograd.grad(copy.deepcopy(q).log_prob(value).sum(), value)
    torch.testing.assert_close(known, searched, rtol=1e-6, atol=1e-8)
    assert bool((known != 0).all())


def test_a_draw_changed_in_place_is_another_value():
    """Before, its density was that of the value before the change."""
    torch.manual_seed(0)
    q, _ = implicit()
    value = q.sample((5,))
    before = q.log_prob(value).detach()
    value.add_(0.3)
    assert not torch.allclose(q.log_prob(value).detach(), before)
    torch.testing.assert_close(q.log_prob(value), copy.deepcopy(q).log_prob(value), rtol=1e-6, atol=1e-6)


def test_numbers_do_not_depend_on_the_graph():
    torch.manual_seed(0)
    q, _ = implicit()
    w = q.rsample((50,))
    with torch.no_grad():
        plain = q.log_prob(w)
    torch.testing.assert_close(q.log_prob(w.detach()).detach(), plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.log_prob(w).detach(), plain, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- estimators without a score

WITHOUT = [
    (Linearised(), "independent"),
    (Linearised(form="entropy"), "independent"),
    (SemiImplicit(num_fresh=10), "independent"),
    (SpectralStein(num_samples=50), "shared"),
    (SpectralStein(num_samples=50), "independent"),
    (Adversarial(hidden=(4,), steps=1, batch_size=8), "shared"),
]


@pytest.mark.parametrize(("estimator", "noise"), WITHOUT, ids=lambda value: str(value).split("(", maxsplit=1)[0])
def test_estimators_without_a_score_say_so(estimator, noise):
    """The number is there; the gradient is refused, and not taken along the draw or left out as a zero."""
    torch.manual_seed(0)
    hnet = perturbed(4, 2, noise=noise)
    q = ImplicitWeights(hnet, estimator=copy.deepcopy(estimator))
    value = q.rsample((6,)).detach()
    log_q = q.log_prob(value)
    assert bool(torch.isfinite(log_q).all())
    with pytest.raises(DensityError, match=r"a gradient of log q at a fixed value was asked for, and .* has none"):
        log_q.sum().backward()
    assert all(param.grad is None for param in hnet.parameters())
    q.log_prob(q.rsample((6,))).sum().backward()  # along the draw there is one, as before
    for param in hnet.parameters():
        param.requires_grad_(False)
    assert not q.log_prob(q.sample((6,))).requires_grad  # nothing to differentiate: nothing to refuse


def test_default_of_independent_noise_is_right_along_draws():
    torch.manual_seed(0)
    hnet = perturbed(4, 2, noise="independent")
    assert isinstance(ImplicitWeights(hnet).estimator, Linearised)
    assert isinstance(ImplicitWeights(perturbed(4, 2)).estimator, ChangeOfVariables)


# ---------------------------------------------------------------------- importance resampling


def test_a_resampled_draw_keeps_its_number():
    """Drawn without gradients, each is resampled from several; the gradient, as documented, is that of a single one."""
    torch.manual_seed(0)
    q, params = conditional()
    assert q.num_proposals > 1
    value = q.sample((30,))
    with torch.no_grad():
        plain = q.log_prob(value)
    torch.testing.assert_close(q.log_prob(value).detach(), plain)
    known = scores(q, params, value)
    q._last = None
    for a, b in zip(known, scores(q, params, value), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------- what counts as the last draw


@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_another_dtype_is_refused_by_name(noise):
    q = ImplicitWeights(perturbed(4, 2, noise=noise))
    w = q.sample((3,))
    for value in (w.double(), torch.zeros(3, 4, dtype=torch.double)):
        with pytest.raises(ArgumentTypeError, match="value: has dtype torch.float64, the hypernetwork makes"):
            q.log_prob(value)


def test_a_draw_in_other_dimensions_is_the_draw():
    """With independent noise it had no density; all rows are needed, in their order."""
    q = ImplicitWeights(perturbed(4, 2, noise="independent"))
    with torch.no_grad():
        w = q.rsample((6,))
        plain = q.log_prob(w)
        assert torch.equal(q.log_prob(w.reshape(2, 3, 4)), plain.reshape(2, 3))
    with pytest.raises(DensityError, match="or are a part of what was"):
        q.log_prob(w[:3])


@pytest.mark.parametrize("name", ["hypernetwork", "blocks_of_a_hypernetwork", "mixture_of_hypernetworks"])
def test_a_draw_is_forgotten_when_the_parameters_change(name):
    """Before, the density of a kept draw was that of the noise that had made it under the old parameters."""
    torch.manual_seed(0)
    q, params = EXACT[name]()
    value = q.sample((20,))
    with torch.no_grad():
        for param in params:
            param.add_(0.05 * torch.randn_like(param))
    found = q.log_prob(value)
    torch.testing.assert_close(found, copy.deepcopy(q).log_prob(value), rtol=1e-5, atol=1e-5)


def test_maximum_likelihood_on_a_kept_sample():
    """The sample that the distribution drew last, fitted by the same distribution, as anyone would write it."""
    torch.manual_seed(0)
    hnet = HMLP([[1]], uncond_in_size=1, cond_in_size=0, layers=(), verbose=False)
    wrapper = HPerturbWrapper(hnet, sigma_noise=0.5, learn_sigma="scalar", verbose=False)
    q = ImplicitWeights(wrapper)
    value = q.sample((500,))
    weight, bias = hnet.internal_params
    with torch.no_grad():
        bias.add_(2.0)
    optimizer = torch.optim.Adam(wrapper.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-q.log_prob(value).mean()).backward()
        optimizer.step()
    assert float(bias.detach()) == pytest.approx(float(value.mean()), abs=0.01)
    assert abs(float(weight.detach()[0, 0] + wrapper.sigma.detach())) == pytest.approx(float(value.std()), rel=0.02)
