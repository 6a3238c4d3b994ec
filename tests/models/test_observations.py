"""How much each observation counts: weights of rows and classes, gaps, tempering; the same under every algorithm."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.mcmc.util import initialize_model
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, importance_sample, likelihoods, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROWS = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)


def linear(out: int, likelihood, **options) -> BayesianModel:
    return BayesianModel(nn.Linear(2, out).double(), likelihood=likelihood, **options)


def draw(model: BayesianModel, num: int | None = None):
    generator = torch.Generator().manual_seed(1)
    lead = () if num is None else (num,)
    return {
        name: torch.rand((*lead, *shape), generator=generator, dtype=torch.float64) + 0.1
        for name, shape in model.latent_shapes.items()
    }


def observed(model, values, *args, **kwargs) -> torch.Tensor:
    """The term of the observations in the joint density."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace.nodes["obs"]["log_prob_sum"]


CASES = {
    "Normal known": (1, lambda: likelihoods.Normal(scale=0.5), torch.linspace(-1, 1, 6).double()),
    "Normal latent": (1, lambda: likelihoods.Normal(scale=dist.Gamma(torch.tensor(6.0).double(), 6.0)), X[:, 0]),
    "Normal two outputs": (2, lambda: likelihoods.Normal(scale=torch.tensor([0.5, 2.0])), X),
    "StudentT": (1, lambda: likelihoods.StudentT(scale=0.5), X[:, 0]),
    "Laplace": (1, lambda: likelihoods.Laplace(scale=0.5), X[:, 0]),
    "Heteroscedastic": (2, lambda: likelihoods.HeteroscedasticNormal(scale=0.5), X[:, 0]),
    "Categorical": (3, likelihoods.Categorical, torch.tensor([0, 1, 2, 0, 1, 1])),
    "Ordinal": (1, lambda: likelihoods.Ordinal(torch.tensor([-1.0, 1.0])), torch.tensor([0, 1, 2, 0, 1, 1])),
    "Bernoulli": (1, likelihoods.Bernoulli, torch.tensor([0, 1, 1, 0, 1, 1])),
    "Poisson": (1, likelihoods.Poisson, torch.tensor([0, 1, 5, 0, 2, 1])),
    "NegativeBinomial": (1, lambda: likelihoods.NegativeBinomial(0.5), torch.tensor([0, 1, 5, 0, 2, 1])),
    "Beta": (1, lambda: likelihoods.Beta(5.0), torch.linspace(0.1, 0.9, 6).double()),
    "CensoredNormal": (1, lambda: likelihoods.CensoredNormal(0.5, lower=-0.2), X[:, 0].clamp(min=-0.2)),
    "TruncatedNormal": (1, lambda: likelihoods.TruncatedNormal(0.5, lower=-4.0), X[:, 0]),
    "MultivariateNormal": (2, lambda: likelihoods.MultivariateNormal(torch.tensor([[1.0, 0.5], [0.5, 1.0]])), X),
    "NormalMixture": (6, lambda: likelihoods.NormalMixture(2), X[:, 0]),
    "function": (1, lambda: lambda f: dist.Gumbel(f, 0.5), X[:, 0]),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_of_rows(name):
    """A row of weight 2 counts as two rows, one of weight 0 as none; with particles and minibatches as without."""
    out, make, y = CASES[name]
    model = linear(out, make(), kl_weight=0.5)
    values = draw(model)
    rows = torch.stack([observed(model, values, X[i : i + 1], y[i : i + 1]) for i in range(6)])
    expected = (ROWS * rows).sum()
    torch.testing.assert_close(observed(model, values, X, y, ROWS), expected)
    torch.testing.assert_close(observed(model, values, x=X, y=y, weight=ROWS), expected)
    plain = linear(out, make())
    torch.testing.assert_close(2.0 * observed(plain, values, X, y), rows.sum())  # likelihood^(1 / 0.5)
    # Predictions do not know of weights.
    _, conditional = model.conditional(X, {key: value.unsqueeze(0) for key, value in values.items()})
    torch.testing.assert_close(2.0 * conditional.log_prob(y)[0], rows)
    # Half of the rows, scaled up.
    large = linear(out, make(), dataset_size=12, kl_weight=0.5)
    torch.testing.assert_close(observed(large, values, X, y, ROWS), 2.0 * expected)
    many = draw(model, 3)
    spread = {key: value.unsqueeze(1) for key, value in many.items()}
    with pyro.plate("particles", 3, dim=-2):
        trace = poutine.trace(poutine.condition(model, spread)).get_trace(X, y, ROWS)
    trace.compute_log_prob()
    singles = [observed(model, {key: value[i] for key, value in many.items()}, X, y, ROWS) for i in range(3)]
    torch.testing.assert_close(trace.nodes["obs"]["log_prob"].sum(1), torch.stack(singles))
    torch.testing.assert_close(model.log_likelihood(X, y, many, weight=ROWS), torch.stack(singles))


FLOATS = [
    "Normal known",
    "Normal two outputs",
    "StudentT",
    "Laplace",
    "Heteroscedastic",
    "Poisson",
    "Beta",
    *["CensoredNormal", "TruncatedNormal", "MultivariateNormal", "NormalMixture", "function", "Bernoulli"],
]


@pytest.mark.parametrize("name", FLOATS)
def test_missing_targets(name):
    """A row that is missing counts as if it were not there, and gives no gradient."""
    out, make, y = CASES[name]
    y = y.double().clone()
    y[2] = torch.nan
    model = linear(out, make(), missing="ignore")
    values = {key: value.requires_grad_() for key, value in draw(model).items()}
    found = observed(model, values, X, y)
    rest = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(found, observed(model, values, X[rest], y[rest]))
    for grad in torch.autograd.grad(found, list(values.values())):
        assert bool(torch.isfinite(grad).all())
    assert "missing='ignore'" in repr(model)


def test_missing_entries_of_rows():
    y = X.clone()
    y[0, 1] = torch.nan
    model = linear(2, likelihoods.Normal(scale=0.5), missing="ignore")
    values = draw(model)
    f = X @ values["weight"].T + values["bias"]
    expected = dist.Normal(f, 0.5).log_prob(X).sum() - dist.Normal(f, 0.5).log_prob(X)[0, 1]
    torch.testing.assert_close(observed(model, values, X, y), expected)
    joint = linear(2, likelihoods.MultivariateNormal(torch.tensor([[1.0, 0.6], [0.6, 1.0]])), missing="ignore")
    own = dist.Normal(f[0, 0], 1.0).log_prob(X[0, 0])
    torch.testing.assert_close(observed(joint, values, X[:1], y[:1]), own)
    rows = linear(2, lambda f: dist.MultivariateNormal(f, torch.eye(2).double()), missing="ignore")
    with pytest.raises(ArgumentError, match="MultivariateNormal is a distribution over whole rows; leave out or weigh"):
        observed(rows, values, X, y)
    torch.testing.assert_close(observed(rows, values, X, X), dist.Normal(f, 1.0).log_prob(X).sum())


def test_class_weights_and_ignored_labels():
    weights = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)
    y = torch.tensor([0, 1, 2, -100, 1, 2])
    likelihood = likelihoods.Categorical(class_weights=weights, ignore_index=-100)
    model = linear(3, likelihood)
    values = draw(model)
    logits = X @ values["weight"].T + values["bias"]
    expected = -nn.functional.cross_entropy(logits, y, weight=weights, ignore_index=-100, reduction="none")
    torch.testing.assert_close(observed(model, values, X, y), expected.sum())
    torch.testing.assert_close(observed(model, values, X, y, ROWS), (ROWS * expected).sum())
    _, conditional = model.conditional(X, {key: value.unsqueeze(0) for key, value in values.items()})
    plain = -nn.functional.cross_entropy(logits, y, ignore_index=-100, reduction="none")
    torch.testing.assert_close(conditional.log_prob(y)[0], plain)
    assert "class_weights=[1, 0, 2.5], ignore_index=-100" in repr(likelihood)
    # One label per pixel, classes first.
    net = nn.Conv2d(1, 3, 1).double()
    images = BayesianModel(net, likelihood=likelihoods.Categorical(class_dim=1, class_weights=weights, ignore_index=9))
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    y = torch.tensor([[[0, 1], [2, 9]], [[9, 0], [0, 2]]])
    values = draw(images)
    logits = nn.functional.conv2d(x, values["weight"], values["bias"])
    expected = -nn.functional.cross_entropy(logits, y, weight=weights, ignore_index=9, reduction="none")
    torch.testing.assert_close(observed(images, values, x, y), expected.sum())
    with pytest.raises(ArgumentError, match="class_weights: has 2 entries, and the network gives 3 logits"):
        linear(3, likelihoods.Categorical(class_weights=[1.0, 2.0]))(X, torch.zeros(6).long())
    with pytest.raises(ArgumentError, match="class_weights: is"):
        likelihoods.Categorical(class_weights=[1.0, -2.0])
    with pytest.raises(ArgumentTypeError, match="ignore_index: is 1.5"):
        likelihoods.Categorical(ignore_index=1.5)


def test_data_of_rows_are_refused_by_name():
    model = linear(1, likelihoods.Normal(scale=1.0))
    y = X[:, 0]
    for weight, error, match in (
        (torch.ones(5), ArgumentError, r"weight: has shape \(5,\); pass \(6,\)"),
        (-torch.ones(6), ArgumentError, "weight: 6 of 6 entries are no finite numbers, zero or more"),
        ([1.0] * 6, ArgumentTypeError, "weight: is a list"),
    ):
        with pytest.raises(error, match=match):
            model(X, y, weight)
    with pytest.raises(ArgumentError, match="noise: the likelihood Normal does not take it; .*per_row=True"):
        model(X, y, noise=torch.ones(6))
    per_row = linear(1, likelihoods.Normal(scale=1.0, per_row=True))
    with pytest.raises(ArgumentError, match="noise: the likelihood Normal needs it; pass noise= with every row"):
        per_row(X, y)
    with pytest.raises(ArgumentError, match=r"noise: has shape \(5,\); pass \(6,\)"):
        per_row(X, y, noise=torch.ones(5))
    with pytest.raises(ArgumentError, match="noise: 6 of 6 entries are no finite positive numbers"):
        per_row(X, y, noise=torch.zeros(6))
    with pytest.raises(ArgumentError, match="kl_weight: is 0"):
        linear(1, likelihoods.Normal(scale=1.0), kl_weight=0)


def test_nuts_sees_the_same_density():
    """The potential energy is minus the log joint density, with weights, gaps and tempering."""
    y = X[:, 0].clone()
    y[3] = torch.nan
    model = linear(1, likelihoods.Normal(scale=0.5), missing="ignore", kl_weight=2.0)
    values = draw(model)
    _, potential, _, _ = initialize_model(model, (X, y, ROWS))
    prior = sum(fn.log_prob(values[name]) for name, fn in model.weight_priors().items())
    f = (X @ values["weight"].T + values["bias"]).squeeze(-1)
    terms = ROWS * dist.Normal(f, 0.5).log_prob(X[:, 0])
    torch.testing.assert_close(-potential(values), prior + 0.5 * (terms.sum() - terms[3]))
    assert NUTS(model).model is model


@pytest.mark.slow
def test_a_weighted_fit_is_that_of_repeated_rows():
    """Linear regression with weights 0, 1, 2 against its exact posterior."""
    torch.manual_seed(0)
    x = torch.randn(30, 1)
    weight = torch.randint(0, 3, (30,)).float()
    y = 2.0 * x[:, 0] + 0.5 * torch.randn(30) + 5.0 * (weight == 0)
    model = BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.5), prior=dist.Normal(0.0, 1.0))
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, {"x": x, "y": y, "weight": weight}, steps=400, num_particles=8, progress=False)
    design = torch.cat([x, torch.ones(30, 1)], 1)
    precision = design.T @ (weight[:, None] * design) / 0.25 + torch.eye(2)
    exact = torch.linalg.solve(precision, design.T @ (weight * y) / 0.25)
    draws = guide.sample_posterior(4000)
    found = torch.cat([draws["weight"].reshape(-1, 1), draws["bias"]], 1)
    std = torch.linalg.inv(precision).diagonal().sqrt()
    assert float(((found.mean(0) - exact) / std).abs().max()) < 0.2
    torch.testing.assert_close(found.std(0), std, rtol=0.15, atol=0.0)


class Gumbel(likelihoods.Likelihood):
    """A likelihood from outside: one method."""

    def conditional(self, f, params, *, batch_dims):
        return dist.Gumbel(f, 0.3).to_event(f.dim() - batch_dims)


@pytest.mark.parametrize("make", [Gumbel, lambda: lambda f: dist.Gumbel(f, 0.3)], ids=["class", "function"])
def test_a_likelihood_from_outside_fits_and_predicts(make):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 60).unsqueeze(1)
    y = dist.Gumbel(2.0 * x[:, 0], 0.3).sample()
    model = BayesianModel(nn.Linear(1, 1), likelihood=make())
    guide = AutoHypernet(model, example=(x, y))
    assert "pseudo-targets" in repr(guide)
    fit(model, guide, (x, y), steps=300, num_particles=8, progress=False)
    slope = guide.sample_posterior(500)["weight"].reshape(-1)
    assert abs(float(slope.mean()) - 2.0) < 4.0 * float(slope.std())
    assert float(slope.std()) < 0.2
    pred = predict(model, guide, x, 50)
    assert pred.log_prob(y).shape == (60,)
    assert pred.conditional.mean.shape == (50, 60)
    torch.testing.assert_close(pred.conditional.mean.mean(0), 2.0 * x[:, 0] + 0.3 * 0.5772, atol=0.25, rtol=0.0)


def test_a_function_with_latents():
    model = linear(
        1,
        likelihoods.FromFunction(dist.Laplace, priors={"scale": dist.HalfNormal(torch.tensor(1.0).double())}),
    )
    values = draw(model, 3)
    _, conditional = model.conditional(X, values)
    expected = dist.Laplace(conditional.mean, values["likelihood.scale"][:, None]).log_prob(X[:, 0])
    torch.testing.assert_close(conditional.log_prob(X[:, 0]), expected)
    assert model(X).shape == (6,)
    with pytest.raises(ArgumentTypeError, match="the function returned a Tensor"):
        linear(1, lambda f: f)(X)
    with pytest.raises(ArgumentError, match=r"batch shape \(\); it has to begin with"):
        linear(1, lambda f: dist.Normal(0.0, 1.0))(X)
    with pytest.raises(ArgumentTypeError, match="likelihood: is the class Normal"):
        linear(1, likelihoods.Normal)


def test_importance_weights_know_of_row_weights():
    y = X[:, 0]
    model = linear(1, likelihoods.Normal(scale=0.5))
    guide = AutoHypernet(model, example=(X, y))
    assert importance_sample(model, guide, (X, y, ROWS), 10) is not None
