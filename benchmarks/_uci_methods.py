"""The methods of the UCI benchmark: a Bayesian network of this package, and MC dropout by its usual protocol."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from _uci_data import Split, fraction_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, predict, priors

__all__ = ["METHODS", "Outcome", "Settings", "bayeshnet_method", "mc_dropout"]

HIDDEN = 50
DROPOUT_RATES = (0.005, 0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Settings:
    """What is the same for all sets.

    Attributes:
        steps: Steps of a fit.
        lr: Learning rate.
        particles: Posterior samples per step.
        full_batch: Largest number of rows that are used all at once.
        batch: Rows of a minibatch otherwise.
        draws: Sampled networks of the prediction.
        dropout_steps: Steps of each fit of MC dropout.
        dropout_draws: Sampled networks of MC dropout.
    """

    steps: int = 2000
    lr: float = 2e-2
    particles: int = 8
    full_batch: int = 1000
    batch: int = 250
    draws: int = 2000
    dropout_steps: int = 8000
    dropout_draws: int = 2000


@dataclass(frozen=True)
class Outcome:
    """What a method reached on a split, in the target's original units.

    Attributes:
        ll: Mean test log-likelihood.
        rmse: Root mean square error of the predictive mean.
        seconds: Processor time.
        notes: Whatever else is worth a column.
    """

    ll: float
    rmse: float
    seconds: float
    notes: Mapping[str, float]


def bayeshnet_method(split: Split, seed: int, settings: Settings) -> Outcome:
    """One hidden layer of tanh units, learned prior scales, latent noise, a conditional last layer.

    Settings come from the ELBO and from a fifth of the training rows, held out.
    """
    began = time.process_time()
    torch.manual_seed(seed)
    model, guide, elbo = _fitted(split, settings)
    prediction = predict(model, guide, split.x_test, settings.draws, batch_size=1000)
    noise = float(guide.median()["likelihood.precision"]) ** -0.5
    return Outcome(
        split.log_likelihood(prediction.log_prob(split.y_test)),
        split.rmse(prediction.mean),
        time.process_time() - began,
        {"elbo": elbo, "noise": noise},
    )


def _fitted(split: Split, settings: Settings) -> tuple[BayesianModel, AutoHypernet, float]:
    """A fit, and its ELBO: the mean over the last twentieth of the steps."""
    rows, inputs = split.x.shape
    net = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    prior = priors.Normal(scale="fan_in", learn={"0.weight": "inputs", "*": True})
    # Gamma(1, 0.05) would cost 64 nats at a noise of 0.028, which some sets have, and so inflate it.
    likelihood = likelihoods.Normal(precision=dist.Gamma(0.5, 0.005))
    model = BayesianModel(net, prior, likelihood, dataset_size=rows, flat=True)
    guide = AutoHypernet(model, example=(split.x, split.y))
    data = (split.x, split.y)
    if rows > settings.full_batch:
        data = DataLoader(TensorDataset(*data), settings.batch, shuffle=True, drop_last=True)
    history = fit(model, guide, data, settings.steps, lr=settings.lr, num_particles=settings.particles, progress=False)
    return model, guide, -statistics.fmean(history.losses[-max(1, settings.steps // 20) :])


# ---------------------------------------------------------------------- MC dropout


def mc_dropout(split: Split, seed: int, settings: Settings) -> Outcome:
    """Dropout kept on for predictions (Gal & Ghahramani, 2016); rate and noise chosen on a fifth of the training rows.

    One hidden layer of ReLU units, dropout before each layer, a prior length scale of 0.01; the networks of all rates
    are trained side by side. The chosen rate is trained again on all training rows.
    """
    began = time.process_time()
    torch.manual_seed(seed)
    held_out = fraction_split(split, 0.2, seed)
    rates = torch.tensor(DROPOUT_RATES)
    draws = _dropout_draws(held_out, rates, settings)
    precisions = torch.logspace(-1, 4, 51, dtype=torch.float64)
    scores = torch.tensor([[float(_mixture(f, held_out.y_test, tau).mean()) for tau in precisions] for f in draws])
    best, tau_index = divmod(int(scores.argmax()), len(precisions))
    tau = precisions[tau_index]
    final = _dropout_draws(split, rates[best : best + 1], settings)[0]
    return Outcome(
        split.log_likelihood(_mixture(final, split.y_test, tau)),
        split.rmse(final.mean(0)),
        time.process_time() - began,
        {"rate": float(rates[best]), "noise": float(tau) ** -0.5},
    )


def _mixture(f: Tensor, y: Tensor, precision: Tensor) -> Tensor:
    """Log density ``[T]`` of targets under networks' outputs ``[S, T]`` with Gaussian noise."""
    squares = (f.double() - y.double()).square()
    log_prob = -0.5 * precision * squares + 0.5 * precision.log() - 0.5 * math.log(2.0 * math.pi)
    return torch.logsumexp(log_prob, 0) - math.log(len(f))


def _dropout_draws(split: Split, rates: Tensor, settings: Settings) -> Tensor:
    """Train a network for each rate and draw its outputs at the test inputs: ``[R, S, T]``."""
    num, inputs = len(rates), split.x.shape[1]
    keep = (1.0 - rates).reshape(-1, 1, 1)
    shapes = [(num, inputs, HIDDEN), (num, 1, HIDDEN), (num, HIDDEN, 1), (num, 1, 1)]
    params: list[Tensor] = []
    for shape, fan_in in zip(shapes, (inputs, inputs, HIDDEN, HIDDEN), strict=True):
        bound = 1.0 / math.sqrt(fan_in)
        params.append(torch.empty(shape).uniform_(-bound, bound).requires_grad_())
    optimizer = torch.optim.Adam(params, lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.dropout_steps, eta_min=5e-5)
    rows = len(split.x)
    # 0.5 keep l^2 / (N tau) |w|^2 with l = 0.01; at tau = 10 it is negligible, as everywhere on the grid.
    decay = 0.5 * 1e-4 * keep / (rows * 10.0)
    size = min(rows, 128)

    def forward(x: Tensor) -> Tensor:
        w1, b1, w2, b2 = params
        h = x * torch.bernoulli(keep.expand(num, *x.shape[-2:])) / keep
        h = (h @ w1 + b1).relu()
        h = h * torch.bernoulli(keep.expand_as(h)) / keep
        return (h @ w2 + b2).squeeze(-1)

    order = torch.randperm(rows)
    for step in range(settings.dropout_steps):
        start = step * size % (rows - size + 1) if rows > size else 0
        if start == 0:
            order = torch.randperm(rows)
        chosen = order[start : start + size]
        loss = 0.5 * (forward(split.x[chosen]) - split.y[chosen]).square().mean(-1).sum()
        loss = loss + sum((decay * w.square()).sum() for w in (params[0], params[2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        tests = len(split.x_test)
        chunk = max(1, 500_000 // (tests * num))
        parts: list[Tensor] = []
        for size in itertools.chain([chunk] * (settings.dropout_draws // chunk), [settings.dropout_draws % chunk]):
            if size:
                out = forward(split.x_test.repeat(size, 1).expand(num, -1, -1))
                parts.append(out.reshape(num, size, tests))
        return torch.cat(parts, 1)


METHODS: Mapping[str, Callable[[Split, int, Settings], Outcome]] = {
    "bayeshnet": bayeshnet_method,
    "mc_dropout": mc_dropout,
}
