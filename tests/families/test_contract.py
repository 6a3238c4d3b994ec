"""What every variational family promises, the user's own too; a new one is a line in FAMILIES."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, priors
from bayeshnet.entropy.protocol import Diagnosis
from bayeshnet.errors import UsageError
from bayeshnet.families import (
    BlockGaussian,
    Family,
    Hypernet,
    LowRank,
    MeanField,
    Mixture,
    Start,
    placed,
)

SIZE = 9


class FullRank(Family):
    """A family of a user's own: Gaussians with any covariance, by its Cholesky factor."""

    def init_parameters(self, start):
        self.loc = nn.Parameter(start.mean())
        self.log_scale = nn.Parameter(torch.full_like(start.like, start.scale).log())
        self.below = nn.Parameter(torch.zeros_like(start.like.expand(start.size, -1)))

    def distribution(self, loc=None, scale=None):
        root = torch.eye(len(self.loc), dtype=self.loc.dtype) + self.below.tril(-1)
        mean, std = placed(self.loc, self.log_scale.exp(), loc, scale)
        return dist.MultivariateNormal(mean, scale_tril=std.unsqueeze(1) * root, validate_args=False)

    def warm_start(self, mean, std):
        with torch.no_grad():
            own = self.distribution().variance.sqrt()
            self.loc.copy_(torch.where(mean.isnan(), self.loc, mean))
            self.log_scale.add_(torch.where(std.isnan(), 0.0, (std / own).log()))


FAMILIES: dict[str, Callable[[], Family]] = {
    "mean field": MeanField,
    "low rank": lambda: LowRank(rank=3),
    "block Gaussian": lambda: BlockGaussian(num_components=1),
    "block Gaussians": BlockGaussian,
    "hypernet": Hypernet,
    "hypernet with independent noise": lambda: Hypernet(noise="independent", noise_dim=2, hidden_layers=[8]),
    "mixture": Mixture,
    "mixture of low rank": lambda: Mixture(LowRank(rank=2), 2),
    "mixture of hypernets": lambda: Mixture(Hypernet(noise_dim=2, hidden_layers=[8]), 2),
    "user's own": FullRank,
}
# Those with several components, between which half of the variance lies after a warm start, at random places.
SEVERAL = {"block Gaussians", "mixture", "mixture of low rank", "mixture of hypernets"}


def start(dtype: torch.dtype = torch.float64) -> Start:
    return Start([[3, 2], [3]], torch.zeros(SIZE, dtype=dtype), spread=0.3, scale=0.2, apart=0.1)


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def family(name):
    return FAMILIES[name]()


@pytest.fixture
def built(family):
    return family.build(start())


def seeded(distribution, num: int = 20):
    torch.manual_seed(1)
    draws = distribution.rsample((num,))
    return draws, distribution.log_prob(draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_and_their_density(family, dtype):
    made = family.build(start(dtype))
    draws, log_q = seeded(made.distribution())
    assert draws.shape == (20, SIZE)
    assert log_q.shape == (20,)
    assert draws.dtype == log_q.dtype == dtype
    assert bool(torch.isfinite(draws).all() & torch.isfinite(log_q).all())
    assert draws.std(0).min() > 0
    assert all(param.dtype == dtype for param in made.parameters())


def test_location_and_scale(built):
    loc, scale = torch.linspace(-3.0, 3.0, SIZE).double(), torch.linspace(0.5, 2.0, SIZE).double()
    draws, log_q = seeded(built.distribution())
    moved, moved_log_q = seeded(built.distribution(loc, scale))
    torch.testing.assert_close(moved, loc + scale * draws)
    torch.testing.assert_close(moved_log_q, log_q - scale.log().sum())


def test_the_density_is_that_of_the_draws(built):
    """The mean of p(w) / q(w) over draws is 1 for a narrower p, a Gaussian around their mean."""
    with torch.no_grad():
        draws, log_q = seeded(built.distribution(), 4000)
    narrow = dist.MultivariateNormal(draws.mean(0), 0.6 * draws.T.cov())
    ratio = (narrow.log_prob(draws) - log_q).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4.5 * float(ratio.std()) / math.sqrt(4000))


def test_every_parameter_is_learned(built):
    draws, log_q = seeded(built.distribution())
    (log_q + draws.square().sum(-1)).mean().backward()
    assert [key for key, param in built.named_parameters() if param.grad is None] == []


def test_a_state_dict_is_all_there_is(family, built):
    other = family.build(start())
    assert not torch.equal(seeded(other.distribution())[0], seeded(built.distribution())[0])
    other.load_state_dict(built.state_dict())
    for one, two in zip(seeded(other.distribution()), seeded(built.distribution()), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies(built, clone):
    twin = clone(built)
    for one, two in zip(seeded(twin.distribution()), seeded(built.distribution()), strict=True):
        assert torch.equal(one, two)
    assert twin.describe() == built.describe()


def test_members_share_nothing(family):
    before = family.describe()
    one, two = family.build(start()), family.build(start())
    assert list(one.parameters())
    own = {tensor.data_ptr() for tensor in [*one.parameters(), *one.buffers()]}
    assert not own & {tensor.data_ptr() for tensor in [*two.parameters(), *two.buffers()]}
    assert not list(family.parameters()), "the settings have no parameters"
    assert family.describe() == before


def test_parameter_groups(built):
    groups = built.param_groups(0.01)
    given = [id(param) for group in groups for param in group["params"]]
    assert sorted(given) == sorted(id(param) for param in built.parameters())
    assert all(0 < group["lr"] <= 0.01 for group in groups)
    assert all(group.get("decay", 0.0) >= 0 for group in groups)
    torch.optim.Adam(groups)


def test_warm_start(name, built):
    mean, std = torch.linspace(-1.0, 1.0, SIZE).double(), torch.linspace(0.05, 0.3, SIZE).double()
    torch.manual_seed(0)
    built.warm_start(mean, std)
    num = 4000
    with torch.no_grad():
        draws, _ = seeded(built.distribution(), num)
    # Four standard errors and a half, of 9 numbers. The mean of two random places is off by half a standard deviation.
    off, ratio = (2.0, 2.0) if name in SEVERAL else (4.5 / math.sqrt(num), 1.0 + 4.5 / math.sqrt(2 * num))
    assert bool(((draws.mean(0) - mean).abs() < off * std).all())
    assert float((draws.std(0) / std).log().abs().max()) < math.log(ratio)


def test_a_warm_start_leaves_the_others_alone(built):
    with torch.no_grad():
        before, _ = seeded(built.distribution(), 4000)
    mean = torch.full((SIZE,), math.nan).double()
    std = mean.clone()
    mean[0], std[0] = 1.0, 0.1
    built.warm_start(mean, std)
    with torch.no_grad():
        after, _ = seeded(built.distribution(), 4000)
    rest = before[:, 1:]
    assert bool(((after[:, 1:].mean(0) - rest.mean(0)).abs() < 4.5 * rest.std(0) * math.sqrt(2 / 4000)).all())


def test_diagnosis_and_description(built):
    for thorough in (False, True):
        found = built.diagnose(num_samples=16, thorough=thorough)
        assert isinstance(found, Diagnosis)
        assert all(isinstance(value, float) for value in found.values.values())
    assert isinstance(built.describe(), str)
    assert built.describe() == repr(built)


# ---------------------------------------------------------------------- one from outside the package


def test_a_users_own_family_reaches_a_known_posterior():
    """Linear regression with correlated inputs: a Gaussian posterior that only a full covariance fits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator) @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.8], [0.0, 0.0, 0.5]])
    y = x @ torch.tensor([1.0, -1.0, 0.5]) + 0.3 * torch.randn(40, generator=generator)
    net = nn.Linear(3, 1, bias=False)
    model = BayesianModel(net, prior=priors.Normal(scale=1.0), likelihood=likelihoods.Normal(scale=0.3))
    precision = torch.eye(3) + x.T @ x / 0.09
    exact = dist.MultivariateNormal(torch.linalg.solve(precision, x.T @ y / 0.09), precision_matrix=precision)

    guide = AutoHypernet(model, example=(x, y), family=FullRank(), conditional=None)
    assert "FullRank" in repr(guide)
    fit(model, guide, (x, y), steps=1000, lr=0.05, progress=False)
    with torch.no_grad():
        found = guide.get_posterior()
    found = dist.MultivariateNormal(found.mean, scale_tril=found.scale_tril)
    assert float(torch.distributions.kl_divergence(found, exact)) < 0.02
    diagonal = dist.Normal(exact.mean, 1.0 / precision.diagonal().sqrt()).to_event(1)
    best = torch.distributions.kl_divergence(dist.MultivariateNormal(exact.mean, torch.diag(diagonal.variance)), exact)
    assert float(best) > 0.3, "what no mean-field family can do better than"


def test_a_family_without_a_warm_start_says_so():
    class Fixed(FullRank):
        warm_start = Family.warm_start

    with pytest.raises(UsageError, match="Fixed, which has no warm_start"):
        Fixed().build(start()).warm_start(torch.zeros(SIZE), torch.ones(SIZE))
