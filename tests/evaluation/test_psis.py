from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import genpareto

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning
from bayeshnet.evaluation import Estimate, SmoothedWeights, WeightedDraws, pareto_smooth
from bayeshnet.evaluation.psis import fit_generalised_pareto


def exponential(num: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.log1p(-torch.rand(num, generator=generator, dtype=torch.double))


@pytest.mark.parametrize("shape", [-0.4, 0.0, 0.3, 0.8, 1.5])
def test_fit_agrees_with_maximum_likelihood(shape):
    """Two estimates from the same 4000 numbers, whose own error is (1 + shape) / sqrt(4000), or less for shape < 0."""
    x = genpareto.rvs(shape, scale=2.5, size=4000, random_state=1)
    k, scale = fit_generalised_pareto(torch.as_tensor(x))
    k_ml, _, scale_ml = genpareto.fit(x, floc=0)
    error = (1.0 + max(shape, 0.0)) / math.sqrt(4000)
    assert abs(k - k_ml) < 0.5 * error
    assert abs(k - shape) < 4 * error
    # Of the scale the relative error is sqrt(2 (1 + shape)) / sqrt(4000).
    assert abs(scale / scale_ml - 1) < 0.5 * error
    assert abs(scale / 2.5 - 1) < 4 * math.sqrt(2 * (1 + shape)) / math.sqrt(4000)


def test_fit_to_quantiles_of_a_known_distribution():
    levels = (np.arange(5000) + 0.5) / 5000
    for shape in (0.2, 0.7):
        k, scale = fit_generalised_pareto(torch.as_tensor(genpareto.ppf(levels, shape, scale=3.0)))
        assert (k, scale) == pytest.approx((shape, 3.0), abs=0.01)


@pytest.mark.parametrize("shape", [0.1, 0.4, 0.65, 1.0, 2.0])
def test_k_hat_of_pareto_weights(shape):
    """exp(shape * e) with e exponential has a Pareto tail of this shape from the first weight on."""
    num = 40_000
    found = pareto_smooth(shape * exponential(num))
    tail = 3 * math.sqrt(num)
    assert found.num_tail == tail
    drawn = (tail * shape + 5.0) / (tail + 10.0)
    assert abs(found.k_hat - drawn) < 4 * (1 + shape) / math.sqrt(tail)


# What arviz.psislw(log_weights, normalize=False) of ArviZ 0.23.4 gives: k-hat, and of the smoothed log weights the
# largest, the fifth largest and the logarithm of the sum.
ARVIZ = {
    (100, 0.2): (-0.07731722162631005, -699.2591133385899, -699.3262686205172, -695.1592999824086),
    (1000, 0.2): (0.16790507264046703, -698.5548856212218, -698.8409044936742, -692.8667275687799),
    (5000, 0.2): (0.21521279553739123, -698.3641951228052, -698.6094653267919, -691.2543850966039),
    (100, 0.6): (0.16308369312587276, -697.7773400157698, -698.081899585254, -694.5661194872579),
    (1000, 0.6): (0.5534241424738918, -695.6646568636654, -696.6304872041906, -692.1828172705198),
    (5000, 0.6): (0.5803181910353508, -695.0925853684155, -695.8778162073768, -690.5796001553997),
    (100, 1.2): (0.5202708782182645, -695.5546800315395, -696.3540386753268, -693.3460279075197),
    (1000, 1.2): (1.1335326911730834, -691.3293137273308, -693.4009233266914, -690.0075201660229),
    (5000, 1.2): (1.1316870188925963, -690.185170736831, -691.8140821621989, -688.3310761331587),
}


@pytest.mark.parametrize(("num", "shape"), ARVIZ)
def test_agrees_with_arviz(num, shape):
    found = pareto_smooth(shape * exponential(num, seed=num) - 700.0)
    k_hat, largest, fifth, log_sum = ARVIZ[num, shape]
    assert found.k_hat == pytest.approx(k_hat, rel=1e-9)
    ordered = found.log_weights.sort(descending=True).values
    assert (float(ordered[0]), float(ordered[4])) == pytest.approx((largest, fifth), rel=1e-11)
    assert float(ordered.logsumexp(0)) == pytest.approx(log_sum, rel=1e-11)


def test_smoothing_keeps_order_body_and_bound():
    log_weights = 0.9 * exponential(2000)
    found = pareto_smooth(log_weights)
    # The largest may tie at the bound.
    assert (found.log_weights[log_weights.argsort()].diff() >= 0).all()
    assert found.log_weights.max() <= log_weights.max()
    changed = found.log_weights != log_weights
    assert found.num_tail == math.ceil(3 * math.sqrt(2000))
    assert 0.9 * found.num_tail <= int(changed.sum()) <= found.num_tail
    assert log_weights[changed].min() > log_weights.sort().values[-found.num_tail - 1]


def test_smoothing_brings_the_mean_closer():
    """Mean squared error of the mean weight over 300 repetitions, shape 0.6: the variance is infinite, the mean 2.5."""
    raw, smooth = [], []
    for seed in range(300):
        log_weights = 0.6 * exponential(500, seed=seed)
        smooth.append(math.exp(pareto_smooth(log_weights).log_mean.value) - 2.5)
        raw.append(float(log_weights.exp().mean()) - 2.5)
    squares = torch.tensor([raw, smooth], dtype=torch.double).square()
    gain = squares[0] - squares[1]
    assert gain.mean() > 0
    assert squares[1].mean() < 0.8 * squares[0].mean()


def test_log_mean_and_effective_sample_size():
    log_weights = torch.tensor([0.0, 0.0, math.log(2.0), -math.inf], dtype=torch.double) + 1000.0
    found = pareto_smooth(log_weights)
    assert found.k_hat == math.inf
    assert found.ess == pytest.approx(16 / 6)
    w = np.array([1.0, 1.0, 2.0, 0.0])
    assert found.log_mean == pytest.approx((1000.0, w.std(ddof=1) / 2 / w.mean()), rel=1e-12)


def test_weights_without_a_tail():
    found = pareto_smooth(torch.full((400,), -3.0))
    assert (found.k_hat, found.num_tail, found.reliable) == (-math.inf, 0, True)
    assert found.log_mean == pytest.approx((-3.0, 0.0), abs=1e-7)
    assert found.ess == pytest.approx(400)
    one = torch.full((400,), -math.inf)
    one[17] = 2.0
    assert pareto_smooth(one).k_hat == math.inf
    assert not pareto_smooth(one).reliable


def test_threshold_depends_on_the_number_of_draws():
    assert pareto_smooth(exponential(100)).threshold == pytest.approx(0.5)
    assert pareto_smooth(exponential(10_000)).threshold == pytest.approx(0.7)


def test_bounds():
    log_weights = torch.tensor([1.0, 2.0, 4.0, 8.0, 3.0]).double()
    drawn = WeightedDraws({}, log_weights)
    assert drawn.elbo == pytest.approx((3.6, float(log_weights.std()) / math.sqrt(5)))
    assert drawn.iwae(1) == drawn.elbo
    pairs = torch.logsumexp(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), 1) - math.log(2)
    assert drawn.iwae(2).value == pytest.approx(float(pairs.mean()))
    assert drawn.iwae(2).error == pytest.approx(float((pairs[1] - pairs[0]).abs() / 2))
    assert drawn.iwae().value == pytest.approx(float(torch.logsumexp(log_weights, 0) - math.log(5)))
    with pytest.raises(ArgumentError, match="num_inner: is 3; pass 1 to 2"):
        drawn.iwae(3)


def test_resampling_follows_the_weights():
    weights = torch.linspace(1.0, 2.0, 200).double()
    drawn = WeightedDraws({"z": torch.arange(200)}, weights.log())
    chosen = drawn.resample(1000)["z"]
    expected = 1000 * drawn.smoothed.normalised
    counts = torch.bincount(chosen, minlength=200)
    # Systematic: no count is off by 1 or more.
    assert float((counts - expected).abs().max()) < 1.0
    means = [float(drawn.resample(20)["z"].double().mean()) for _ in range(400)]
    exact = float((drawn.smoothed.normalised * torch.arange(200)).sum())
    assert abs(np.mean(means) - exact) < 4 * np.std(means) / math.sqrt(400)


def test_resampling_warns_of_weights_that_cannot_be_trusted():
    drawn = WeightedDraws({"z": torch.arange(500)}, 1.5 * exponential(500))
    with pytest.warns(BayeshnetWarning, match=r"resampled draws cannot be trusted: k-hat is 1\.\d+ \(above 0.63\)"):
        drawn.resample(10)


def test_errors():
    with pytest.raises(ArgumentTypeError, match="log_weights: is a list"):
        pareto_smooth([0.0])
    with pytest.raises(ArgumentError, match=r"log_weights: has shape \(2, 3\)"):
        pareto_smooth(torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match="1 of 3 are NaN or \\+inf"):
        pareto_smooth(torch.tensor([0.0, math.nan, 1.0]))
    with pytest.raises(ArgumentError, match="all are -inf"):
        pareto_smooth(torch.full((3,), -math.inf))
    with pytest.raises(ArgumentError, match="at least 5 positive"):
        fit_generalised_pareto(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(ArgumentError, match="num_samples: is 0"):
        WeightedDraws({}, torch.zeros(9)).resample(0)


def test_reprs():
    assert repr(Estimate(-1.23456, 0.0123)) == "Estimate(-1.235 ± 0.012)"
    assert repr(Estimate(0.0, math.nan)) == "Estimate(0 ± nan)"
    log_weights = torch.zeros(100).double()
    assert repr(pareto_smooth(log_weights)) == "SmoothedWeights(f64[100], k_hat=-inf, ess=100, reliable)"
    bad = SmoothedWeights(log_weights, 0.9, 20)
    assert repr(bad) == "SmoothedWeights(f64[100], k_hat=0.9, ess=100, not reliable: k_hat above 0.5)"
    draws = {f"w{i}": torch.zeros(100, i) for i in range(5)}
    assert repr(WeightedDraws(draws, log_weights)) == (
        "WeightedDraws(100 draws of {'w0': f32[100,0], 'w1': f32[100,1], 'w2': f32[100,2], ... 5 sites}, "
        "elbo=0 ± 0, k_hat=-inf, ess=100)"
    )
