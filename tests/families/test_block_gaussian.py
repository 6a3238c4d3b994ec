"""Gaussians with a block of covariance per unit, against dense ones."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pyro.distributions import Normal, StudentT
from torch.distributions import MultivariateNormal

from bayeshnet.errors import ArgumentError
from bayeshnet.families import BlockGaussianWeights, BlockLayout

# Two layers of units (3 of 2 weights and a bias; 2 of 3 weights without), and two numbers that belong to none.
SHAPES = [(3, 2), (2, 3), (3,), (2,)]
LAYOUT = BlockLayout.of(SHAPES, [(0, 2), (1, None)])
NUM = 17


def params(components, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factors = [0.7 * draw(components, units, size, size) for units, size in LAYOUT.blocks]
    return draw(components, NUM), 0.3 * draw(components, NUM), factors


def mixing(log_scale, factors, k):
    """From the noise of component k, ordered by unit, to weights less their mean, in the natural order of entries."""
    matrix = torch.eye(NUM, dtype=torch.float64)
    start = 0
    for factor, (units, size) in zip(factors, LAYOUT.blocks, strict=True):
        for unit in range(units):
            block = slice(start, start + size)
            matrix[block, block] += factor[k, unit].tril(-1)
            start += size
    return (log_scale[k].exp().unsqueeze(1) * matrix)[LAYOUT.order]


def dense(loc, log_scale, factors, k):
    """Component k as one Gaussian, in the natural order of entries."""
    matrix = mixing(log_scale, factors, k)
    return MultivariateNormal(loc[k][LAYOUT.order], matrix @ matrix.t())


def test_layout():
    assert LAYOUT.blocks == ((3, 3), (2, 3))
    ordered = torch.argsort(LAYOUT.order).tolist()
    assert ordered[:9] == [0, 1, 12, 2, 3, 13, 4, 5, 14]  # weights of a unit and its bias
    assert ordered[9:15] == [6, 7, 8, 9, 10, 11]
    assert ordered[15:] == [15, 16]


def test_large_units_stay_independent():
    layout = BlockLayout.of([(2, 20), (2,), (3, 1)], [(0, 1), (2, None)])
    assert layout.blocks == ()
    assert layout.order.tolist() == list(range(45))


@pytest.mark.parametrize("components", [1, 3])
def test_density_is_that_of_dense_gaussians(components):
    given = params(components)
    q = BlockGaussianWeights(*given, LAYOUT)
    w = q.rsample((4, 5))
    columns = torch.stack([dense(*given, k).log_prob(w) for k in range(components)])
    expected = columns.logsumexp(0) - math.log(components)
    assert torch.allclose(q.log_prob(w), expected, atol=1e-9)
    assert torch.allclose(q.log_prob(w.clone() + 0.0), expected, atol=1e-9)
    foreign = torch.randn(7, NUM, dtype=torch.float64)
    columns = torch.stack([dense(*given, k).log_prob(foreign) for k in range(components)])
    assert torch.allclose(q.log_prob(foreign), columns.logsumexp(0) - math.log(components), atol=1e-9)


def test_moments_of_draws():
    given = params(3)
    torch.manual_seed(0)
    num = 30_000
    w = BlockGaussianWeights(*given, LAYOUT).rsample((num,))
    parts = [dense(*given, k) for k in range(3)]
    mean = torch.stack([part.mean for part in parts]).mean(0)
    second = torch.stack([part.covariance_matrix + torch.outer(part.mean, part.mean) for part in parts]).mean(0)
    covariance = second - torch.outer(mean, mean)
    # Stratified draws vary less than independent ones, whose standard errors are these; 4.5 of them for 170 numbers.
    std = covariance.diagonal().sqrt()
    assert ((w.mean(0) - mean).abs() < 4.5 * std / math.sqrt(num)).all()
    products = (w - mean).unsqueeze(2) * (w - mean).unsqueeze(1)
    error = products.std(0) / math.sqrt(num)
    assert ((products.mean(0) - covariance).abs() < 4.5 * error).all()


def test_components_take_turns():
    """Of 8 draws of 4 components, each makes 2; of 6 each makes 1 or 2; and the order is random."""
    loc = torch.arange(4.0).unsqueeze(1).expand(4, NUM).double().clone()
    factors = [torch.zeros(4, units, size, size, dtype=torch.float64) for units, size in LAYOUT.blocks]
    q = BlockGaussianWeights(loc, torch.full_like(loc, -9.0), factors, LAYOUT)
    torch.manual_seed(0)
    orders = set()
    for num, allowed in ((8, {2}), (6, {1, 2}), (1, {0, 1})):
        for _ in range(20):
            which = q.rsample((num,))[:, 0].round().long()
            assert set(torch.bincount(which, minlength=4).tolist()) <= allowed
            orders.add(tuple(which.tolist()))
    assert len(orders) > 20


def test_each_place_of_a_batch_has_the_mixture():
    """Draws at one place of a call are spread over the components, whatever the number of draws."""
    loc = torch.arange(3.0).unsqueeze(1).expand(3, NUM).double().clone()
    factors = [torch.zeros(3, units, size, size, dtype=torch.float64) for units, size in LAYOUT.blocks]
    q = BlockGaussianWeights(loc, torch.full_like(loc, -9.0), factors, LAYOUT)
    torch.manual_seed(0)
    num = 3000
    counts = torch.zeros(2, 3)
    for _ in range(num):
        for place, k in enumerate(q.rsample((2,))[:, 0].round().long().tolist()):
            counts[place, k] += 1
    assert ((counts / num - 1 / 3).abs() < 4.5 * math.sqrt(2 / 9 / num)).all()


def test_gradients():
    given = [part.requires_grad_() for part in (*params(2)[:2], *params(2)[2])]

    def loss(loc, log_scale, *factors):
        torch.manual_seed(3)
        q = BlockGaussianWeights(loc, log_scale, factors, LAYOUT)
        w = q.rsample((3,))
        return (w.sin().sum(-1) - q.log_prob(w)).sum()

    assert torch.autograd.gradcheck(loss, given, atol=1e-6)


def noise_with_heavy_tails():
    """Noise that is not Gaussian and has a density everywhere."""
    return StudentT(torch.tensor(5.0, dtype=torch.float64)).expand([NUM]).to_event(1)


def test_density_with_other_noise():
    """One component: the change of variables. Of a value from elsewhere with several: the mixture of those."""
    given, noise = params(3), noise_with_heavy_tails()

    def one(k, w):
        matrix = mixing(given[1], given[2], k)
        e = (w - given[0][k][LAYOUT.order]) @ torch.linalg.inv(matrix).t()
        return noise.log_prob(e) - torch.linalg.slogdet(matrix).logabsdet

    single = BlockGaussianWeights(given[0][:1], given[1][:1], [f[:1] for f in given[2]], LAYOUT, noise=noise)
    w = single.rsample((4, 5))
    assert torch.allclose(single.log_prob(w), one(0, w), atol=1e-9)
    foreign = torch.randn(7, NUM, dtype=torch.float64)
    assert torch.allclose(single.log_prob(foreign), one(0, foreign), atol=1e-9)
    several = BlockGaussianWeights(*given, LAYOUT, noise=noise)
    expected = torch.stack([one(k, foreign) for k in range(3)]).logsumexp(0) - math.log(3)
    assert torch.allclose(several.log_prob(foreign), expected, atol=1e-9)


@pytest.mark.parametrize("apart", [0.1, 1.0, 30.0])
def test_entropy_with_other_noise_is_never_claimed_too_high(apart):
    """What is evaluated at draws is on average the density or more; apart from each other exactly that."""
    loc, log_scale, factors = params(3)
    q = BlockGaussianWeights(apart * loc, log_scale, factors, LAYOUT, noise=noise_with_heavy_tails())
    torch.manual_seed(0)
    w = q.rsample((4000,))
    excess = q.log_prob(w) - copy.deepcopy(q).log_prob(w)  # a copy has drawn nothing
    error = float(excess.std()) / math.sqrt(len(excess))
    assert float(excess.mean()) > -4.5 * error
    if apart == 30.0:
        assert torch.allclose(excess, torch.zeros(()).double(), atol=1e-9)


def test_expand_and_copies():
    q = BlockGaussianWeights(*params(2), LAYOUT)
    wide = q.expand((3, 2))
    assert wide.rsample((4,)).shape == (4, 3, 2, NUM)
    assert wide.log_prob(torch.zeros(NUM, dtype=torch.float64)).shape == (3, 2)
    w = q.rsample()
    assert torch.equal(copy.deepcopy(q).log_prob(w), q.log_prob(w))


def test_errors():
    loc, log_scale, factors = params(2)
    with pytest.raises(ArgumentError, match=r"loc, log_scale: have shapes \(2, 17\) and \(1, 17\)"):
        BlockGaussianWeights(loc, log_scale[:1], factors, LAYOUT)
    with pytest.raises(ArgumentError, match=r"factors: have shapes .*the layout asks for \[\(2, 3, 3, 3\)"):
        BlockGaussianWeights(loc, log_scale, factors[:1], LAYOUT)
    with pytest.raises(ArgumentError, match=r"noise: has batch shape \(17,\) and event shape \(\)"):
        BlockGaussianWeights(loc, log_scale, factors, LAYOUT, noise=Normal(torch.zeros(NUM), 1.0))
    with pytest.raises(ArgumentError, match="value: has shape .5,.; its last dimension has to be 17"):
        BlockGaussianWeights(loc, log_scale, factors, LAYOUT).log_prob(torch.zeros(5))
