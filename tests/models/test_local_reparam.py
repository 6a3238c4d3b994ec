"""Local reparameterisation and flipout: what a row sees, and training."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn import functional as F

from bayeshnet import (
    AutoHypernet,
    AutoHypernetNormal,
    BayesianModel,
    fit,
    likelihoods,
    local_reparameterisation,
    priors,
)
from bayeshnet.models.per_row import Moments, PerRowNoise
from tests.models.per_row_problems import NETS, ROWS, WRAPPERS, outputs, problem


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("method", WRAPPERS)
@pytest.mark.parametrize("name", NETS)
def test_the_distribution_of_a_row_is_the_same(name, method, flat):
    model, guide, args = problem(name, flat=flat)
    num = 20_000
    plain = outputs(model, guide, args, num).double()
    noisy = outputs(WRAPPERS[method](model), guide, args, num).double()
    scale = plain.std(0)
    for power in (1, 2, 3):  # moments of (f - mean) / std
        one, two = (((f - plain.mean(0)) / scale) ** power for f in (plain, noisy))
        error = ((one.var(0) + two.var(0)) / num).sqrt()
        # Up to 10 outputs for each of 3 powers and 36 cases: 5 standard errors.
        assert bool(((one.mean(0) - two.mean(0)).abs() < 5 * error).all()), (name, power)
    # Within a row several outputs belong together as before.
    if name == "linear":
        cov = [torch.cov(f[:, 0].T)[0, 1] for f in (plain, noisy)]
        product = scale[0].prod()
        assert float((cov[0] - cov[1]).abs()) < 5 * float(product) * math.sqrt(2 / num)


@pytest.mark.parametrize("method", WRAPPERS)
def test_rows_are_less_correlated(method):
    model, guide, args = problem("mlp")

    def correlation(model):
        corr = torch.corrcoef(outputs(model, guide, args, 4000)[..., 0].T)
        return float((corr - torch.eye(ROWS)).abs().max())

    assert correlation(model) > 0.3
    # A correlation of 0 has a standard error of 0.016. Flipped signs leave none between linear functions of the noise
    # either, but the last bias alone is shared in size.
    assert correlation(WRAPPERS[method](model)) < 0.08


def test_independent_positions_are_biased():
    """Why it is not the default: averaging over positions hides their noise."""
    model, guide, args = problem("sequence")
    exact = outputs(model, guide, args, 4000).std(0)
    rough = outputs(local_reparameterisation(model, positions="independent"), guide, args, 4000)
    assert bool((rough.std(0) < exact - 5 * exact / math.sqrt(8000)).any())


LAYERS = {
    "linear": (F.linear, (4, 3), (2, 3), 2, {}),
    "linear on a sequence": (F.linear, (4, 5, 3), (2, 3), 2, {}),
    "conv1d": (F.conv1d, (4, 2, 7), (3, 2, 3), 3, {"padding": 1}),
    "conv2d": (F.conv2d, (4, 4, 5, 5), (6, 2, 3, 3), 6, {"stride": 2, "groups": 2}),
    "conv3d": (F.conv3d, (4, 2, 3, 3, 3), (3, 2, 2, 2, 2), 3, {}),
    "conv_transpose1d": (F.conv_transpose1d, (4, 2, 5), (2, 3, 3), 3, {"stride": 2}),
    "conv_transpose2d": (F.conv_transpose2d, (4, 4, 3, 3), (4, 2, 3, 3), 4, {"groups": 2, "padding": 1}),
    "conv_transpose3d": (F.conv_transpose3d, (4, 2, 2, 2, 2), (2, 1, 2, 2, 2), 1, {}),
}


@pytest.mark.parametrize("method", ["local", "independent", "flipout"])
@pytest.mark.parametrize("layer", LAYERS)
def test_moments_of_every_layer(layer, method):
    func, x_shape, w_shape, out, options = LAYERS[layer]
    x, loc, scale = torch.randn(x_shape), torch.randn(w_shape), torch.rand(w_shape) + 0.1
    b_loc, b_scale = torch.randn(out), torch.rand(out) + 0.1
    mean = func(x, loc, b_loc, **options)
    var = func(x.square(), scale.square(), b_scale.square(), **options)
    num = 4000
    found = []
    for _ in range(num):
        w, b = loc + scale * torch.randn_like(loc), b_loc + b_scale * torch.randn_like(b_loc)
        with PerRowNoise([w, b], [Moments(loc, scale), Moments(b_loc, b_scale)], rows=4, method=method):
            found.append(func(x, w, bias=b, **options))
    draws = (torch.stack(found) - mean) / var.sqrt()
    # Up to 300 entries: 5 standard errors of a standard normal's mean and variance.
    assert float(draws.mean(0).abs().max()) < 5 / math.sqrt(num)
    assert float((draws.square().mean(0) - 1).abs().max()) < 5 * math.sqrt(2 / num)
    # Rows: independent, or at least uncorrelated.
    corr = (draws[:, 0] * draws[:, 1]).mean(0)
    assert float(corr.abs().max()) < 5 * math.sqrt(3 / num)


def test_where_it_does_not_apply():
    """No rows in front, several uses, other functions: the draw itself is used."""
    w, x = torch.randn(3, 3), torch.randn(4, 3)
    known = [Moments(torch.zeros(3, 3), torch.ones(3, 3))]
    with PerRowNoise([w], known, rows=5, method="local"):
        assert torch.equal(F.linear(x, w), x @ w.T)
    with PerRowNoise([w], [None], rows=4, method="local"):
        assert torch.equal(F.linear(x, w), x @ w.T)
    with PerRowNoise([w], known, rows=4, method="local"):
        assert w.shape == (3, 3)
        assert torch.equal(x @ w, x.matmul(w))
        with pytest.raises(Exception, match="0"):
            F.linear(x, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_have_finite_gradients(dtype):
    loc, scale = torch.zeros(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype).requires_grad_()
    x = torch.zeros(4, 3, dtype=dtype, requires_grad=True)
    with PerRowNoise([loc], [Moments(loc, scale)], rows=4, method="local"):
        F.linear(x, loc).square().sum().backward()
    assert bool(torch.isfinite(scale.grad).all() & torch.isfinite(x.grad).all())


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("method", WRAPPERS)
@pytest.mark.parametrize("name", ["mlp", "convolution"])
def test_gradients_have_the_same_mean_and_a_lower_variance(name, method):
    make, shape = NETS[name]
    x = torch.randn(100, *shape)
    y = x.flatten(1)[:, 0].sin()
    model = BayesianModel(make(), likelihood=likelihoods.Normal(scale=0.3))
    guide = AutoHypernetNormal(model, example=(x, y), init_scale=0.2)
    params = list(guide.parameters())
    elbo = TraceMeanField_ELBO()

    def gradients(model, num=200):
        found = []
        for _ in range(num):
            loss = elbo.differentiable_loss(model, guide, x, y)
            grads = torch.autograd.grad(loss, params, allow_unused=True)
            found.append(torch.cat([g.flatten() for g in grads if g is not None]))
        return torch.stack(found).double()

    plain, noisy = gradients(model), gradients(WRAPPERS[method](model))
    # The trace of the covariance: 200 draws give it within some 20 %, the drop is a factor.
    assert float(noisy.var(0).sum()) < 0.6 * float(plain.var(0).sum())
    error = ((plain.var(0) + noisy.var(0)) / 200).sqrt()
    used = error > 0
    z = (plain.mean(0) - noisy.mean(0))[used] / error[used]
    # Thousands of correlated entries: their root mean square is about 1, were they unbiased.
    assert float(z.square().mean().sqrt()) < 2.0


@pytest.mark.parametrize("method", WRAPPERS)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("vectorised", [False, True])
def test_same_elbo(method, elbo, vectorised):
    model, guide, args = problem("mlp", spread=0.3, dataset_size=20)
    loss = elbo(num_particles=20, vectorize_particles=vectorised)

    def mean_loss(model):
        with torch.no_grad():
            losses = torch.tensor([loss.loss(model, guide, *args) for _ in range(15)], dtype=torch.double)
        return losses.mean(), losses.var() / 15

    (plain, plain_var), (noisy, noisy_var) = mean_loss(model), mean_loss(WRAPPERS[method](model))
    assert abs(plain - noisy) < 4.5 * math.sqrt(plain_var + noisy_var)


@pytest.mark.parametrize("method", WRAPPERS)
@pytest.mark.parametrize("flat", [False, True])
def test_it_fits(method, flat):
    x = torch.randn(60, 1)
    y = 2.0 * x[:, 0] - 1.0 + 0.3 * torch.randn(60)
    model = BayesianModel(
        nn.Linear(1, 1), prior=priors.Normal(1.0), likelihood=likelihoods.Normal(scale=0.3), flat=flat
    )
    guide = AutoHypernetNormal(model, example=(x, y))
    loss = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True)
    fit(WRAPPERS[method](model), guide, (x, y), steps=600, loss=loss, progress=False)
    # The best independent Gaussians: the exact mean, and the inverse of the precision's diagonal.
    design = torch.cat([x, torch.ones(60, 1)], 1)
    precision = design.T @ design / 0.09 + torch.eye(2)
    exact = torch.linalg.solve(precision, design.T @ y / 0.09).flatten()
    mean, std = (part.detach() for part in guide.moments())
    best = precision.diagonal().rsqrt()
    assert float(((mean - exact) / best).abs().max()) < 0.3
    torch.testing.assert_close(std, best, rtol=0.15, atol=0)


@pytest.mark.parametrize("method", WRAPPERS)
def test_other_guides(method):
    """Pyro's AutoNormal is recognised; a guide without Normal sites is evaluated as ever."""
    model, _, args = problem("mlp")
    guide = AutoNormal(model, init_scale=0.5)
    guide(*args)
    plain, noisy = (outputs(m, guide, args, 4000) for m in (model, WRAPPERS[method](model)))
    rows = [torch.corrcoef(f[..., 0].T)[0, 1:].abs().max() for f in (plain, noisy)]
    assert float(rows[1]) < 0.1 < float(rows[0])
    torch.testing.assert_close(noisy.std(0), plain.std(0), rtol=0.1, atol=0)
    guide = AutoHypernet(model, example=args, conditional=None)
    seen = []
    for each in (model, WRAPPERS[method](model)):
        torch.manual_seed(0)
        seen.append(Trace_ELBO().loss(each, guide, *args))
    assert seen[0] == seen[1]


def test_scales_that_differ_between_particles():
    """Then there are no moments to use, and the draws themselves are."""
    model, _, (x, y) = problem("linear")

    def guide(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        loc = z[..., None, None] if z.dim() else z
        pyro.sample("weight", dist.Normal(loc * torch.ones(2, 3), 1e-6).to_event(2))
        pyro.sample("bias", dist.Normal(torch.zeros(2), 1e-6).to_event(1))

    f = outputs(local_reparameterisation(model), guide, (x, y), 500)
    torch.testing.assert_close(
        f[..., 0] / x.sum(1), (f[:, :1, 0] / x[:1].sum(1)).expand(500, ROWS), rtol=1e-2, atol=1e-3
    )


def test_batch_norm_and_dropout():
    x, y = torch.randn(8, 3), torch.randn(8)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernetNormal(model, example=(x, y))
    for wrap in WRAPPERS.values():
        history = fit(wrap(model), guide, (x, y), steps=5, num_particles=3, progress=False)
        assert all(math.isfinite(loss) for loss in history.losses)
