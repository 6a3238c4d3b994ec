"""The methods of the posterior benchmark: guides fitted by ``bayeshnet.fit``, and three that need only point estimates.

All train on the same data with the same prior and are asked for the same two things: outputs of sampled networks, and
the ELBO where there is one. Steps are full batches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyro
import torch
from _posterior_problems import Problem
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor

from bayeshnet import AutoHypernet, BayesianModel, FlatElbo, fit, predict
from bayeshnet.infer import flat_then_cosine

__all__ = ["FULL_RANK_LIMIT", "METHODS", "PARTICLES", "Method", "Schedule"]

PARTICLES = 8  # posterior samples per step, of every guide
FULL_RANK_LIMIT = 500  # most weights that AutoMultivariateNormal is tried with
# Of the Gaussians with correlations, whose many entries follow the noise of the gradients: with 0.01 the ELBO of the
# one of full rank ends 40 nats lower on moons.
CORRELATED_LR = 0.003
ENSEMBLE = 5
DROPOUT = 0.05

OnStep: TypeAlias = Callable[[], None]


# ---------------------------------------------------------------------- how long


@dataclass
class Schedule:
    """Learning rate and end of a fit.

    With ``flat_within`` None: ``steps`` steps, 40 % of them at the full rate, then a cosine down to 2 %. Otherwise the
    full rate until the ELBO's slope over the last 2000 steps is within its standard error, then the cosine over
    ``flat_within`` of the steps made so far, ``steps`` at most in all.

    Attributes:
        steps: Number of steps, or the most there may be.
        flat_within: Length of the decay relative to that of the flat part.
        flat_at: When the ELBO was found flat, or what was left just sufficed for the decay.
        converged: Whether it was found flat.
    """

    steps: int
    flat_within: float | None = None
    flat_at: int | None = None
    converged: bool = False
    rule: FlatElbo = field(default_factory=lambda: FlatElbo(window=2000, min_steps=2000, every=100))

    def factor(self, step: int) -> float:
        """Factor of the learning rate."""
        if self.flat_within is None:
            return flat_then_cosine(self.steps)(step)
        if self.flat_at is None:
            return 1.0
        return flat_then_cosine(self._last(self.flat_at), flat=self.flat_at / self._last(self.flat_at))(step)

    def stop(self, losses: list[float]) -> bool:
        """Whether to end, given the losses so far."""
        done = len(losses)
        if self.flat_within is None:
            return done >= self.steps
        if self.flat_at is None:
            self.converged = self.rule(losses)
            if self.converged or done >= int(self.steps / (1.0 + self.flat_within)):
                self.flat_at = done
        return self.flat_at is not None and done >= self._last(self.flat_at)

    def _last(self, flat_at: int) -> int:
        return min(self.steps, math.ceil(flat_at * (1.0 + (self.flat_within or 0.0))))


# ---------------------------------------------------------------------- what all have


class Method(ABC):
    """Something that is trained and then gives sampled networks.

    Args:
        problem: What to train on.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x, self.y = problem.train_data()

    @abstractmethod
    def train(self, schedule: Schedule, on_step: OnStep) -> int:
        """Train; ``on_step`` is called after each step. The number of steps is returned."""

    @abstractmethod
    def outputs(self, x: Tensor, num: int) -> Tensor:
        """Outputs ``[num, B, out]`` of sampled networks (fewer where there are no more networks)."""

    def elbo(self, num: int) -> tuple[float, float] | None:
        """The ELBO from ``num`` fresh samples and its standard error; None if there is none."""
        del num
        return None


# ---------------------------------------------------------------------- guides


class GuideMethod(Method):
    """A Pyro guide.

    Args:
        problem: What to train on.
        make: Makes the guide.
        lr: Learning rate of Adam.
    """

    def __init__(
        self, problem: Problem, make: Callable[[BayesianModel, tuple[Tensor, Tensor]], Any], *, lr: float = 0.01
    ) -> None:
        super().__init__(problem)
        pyro.clear_param_store()  # Pyro's own guides of the same name would share their parameters
        self.model = problem.model()
        self.guide = make(self.model, (self.x, self.y))
        self.lr = lr

    def train(self, schedule: Schedule, on_step: OnStep) -> int:
        """See :meth:`Method.train`."""
        history = fit(
            self.model,
            self.guide,
            (self.x, self.y),
            steps=schedule.steps,
            lr=self.lr,
            lr_schedule=schedule.factor,
            num_particles=PARTICLES,
            stop=schedule.stop,
            callbacks=[lambda _step, _history: on_step()],
            progress=False,
        )
        return len(history)

    def outputs(self, x: Tensor, num: int) -> Tensor:
        """See :meth:`Method.outputs`."""
        return predict(self.model, self.guide, x, num_samples=num).draws

    @torch.no_grad()
    def elbo(self, num: int) -> tuple[float, float]:
        """See :meth:`Method.elbo`."""
        batch = min(num, 100)
        estimator = Trace_ELBO(num_particles=batch, vectorize_particles=True, max_plate_nesting=1)
        with pyro.validation_enabled(False):
            losses = [estimator.loss(self.model, self.guide, self.x, self.y) for _ in range(max(2, num // batch))]
        values = -torch.tensor(losses, dtype=torch.float64)
        return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def _start(model: BayesianModel) -> Callable[..., Any]:
    """Where Pyro's guides start: at random, 0.3 prior standard deviations around 0, as AutoHypernet does.

    Pyro's default puts all weights to 0, a saddle point of every network with a hidden layer.
    """
    return init_to_value(values={name: 0.3 * prior.sample() for name, prior in model.weight_priors().items()})


def _auto_normal(problem: Problem) -> GuideMethod:
    return GuideMethod(problem, lambda model, _: AutoNormal(model, init_loc_fn=_start(model)))


def _low_rank(problem: Problem) -> GuideMethod:
    def make(model: BayesianModel, _: object) -> Any:
        return AutoLowRankMultivariateNormal(model, init_loc_fn=_start(model), rank=20)

    return GuideMethod(problem, make, lr=CORRELATED_LR)


def _full_rank(problem: Problem) -> GuideMethod:
    def make(model: BayesianModel, _: object) -> Any:
        return AutoMultivariateNormal(model, init_loc_fn=_start(model))

    return GuideMethod(problem, make, lr=CORRELATED_LR)


def _hypernet(**options: Any) -> Callable[[Problem], GuideMethod]:
    return lambda problem: GuideMethod(problem, lambda model, data: AutoHypernet(model, example=data, **options))


# ---------------------------------------------------------------------- point estimates


class PointMethod(Method):
    """Adam on whitened weights ``z [K, D]`` of K networks, against minus the log joint density.

    Args:
        problem: What to train on.
        members: Number K of networks.
    """

    def __init__(self, problem: Problem, members: int = 1) -> None:
        super().__init__(problem)
        self.scale = problem.scale.float()
        self.z = torch.randn(members, problem.num_weights).requires_grad_()

    def train(self, schedule: Schedule, on_step: OnStep) -> int:
        """See :meth:`Method.train`."""
        adam = torch.optim.Adam([self.z], lr=0.01, fused=True)
        losses: list[float] = []
        while not schedule.stop(losses):
            adam.param_groups[0]["lr"] = 0.01 * schedule.factor(len(losses))
            loss = self.loss()
            loss.backward()
            adam.step()
            adam.zero_grad()
            losses.append(loss.item())
            on_step()
        return len(losses)

    def loss(self) -> Tensor:
        """Minus the log joint density, summed over the networks."""
        _, outputs = forward(self.problem, self.z * self.scale, self.x)
        return 0.5 * self.z.square().sum() - self.problem.log_likelihood(outputs, self.y).sum()

    @torch.no_grad()
    def outputs(self, x: Tensor, num: int) -> Tensor:
        """The networks themselves, however many are asked for."""
        return forward(self.problem, self.z * self.scale, x)[1]


class Dropout(PointMethod):
    """Dropout of the hidden units in training and prediction (Gal & Ghahramani, ICML 2016)."""

    def loss(self) -> Tensor:
        """Minus the log prior density, and the mean over masks of minus the log-likelihood."""
        weights = (self.z * self.scale).expand(PARTICLES, -1)
        _, outputs = forward(self.problem, weights, self.x, drop=DROPOUT)
        return 0.5 * self.z.square().sum() - self.problem.log_likelihood(outputs, self.y).sum() / PARTICLES

    @torch.no_grad()
    def outputs(self, x: Tensor, num: int) -> Tensor:
        """A network with another mask for each sample."""
        return forward(self.problem, (self.z * self.scale).expand(num, -1), x, drop=DROPOUT)[1]


class LaplaceLast(PointMethod):
    r"""A MAP network whose last layer is drawn from its Laplace approximation given all others.

    .. math:: P = S_0^{-1} + \sum_n \Lambda_n \otimes \phi_n \phi_n^T

    with features phi (and a one), the likelihood's curvature Lambda (identity over the squared noise, or
    ``diag(p) - p p^T``) and the prior's covariance. Exact for a regression; for a classification the generalised
    Gauss-Newton matrix, which is the Hessian of one layer.
    """

    @torch.no_grad()
    def outputs(self, x: Tensor, num: int) -> Tensor:
        """Networks that differ in their last layer."""
        mean, factor = self.last_layer()
        noise = torch.randn(mean.numel(), num, dtype=torch.float64)
        draws = mean.reshape(-1) + torch.linalg.solve_triangular(factor.T, noise, upper=True).T
        features, _ = forward(self.problem, self.z * self.scale, x)
        return (_with_ones(features[0]) @ draws.unflatten(1, mean.shape).transpose(1, 2)).to(x.dtype)

    @torch.no_grad()
    def last_layer(self) -> tuple[Tensor, Tensor]:
        """Mean ``[out, k + 1]`` of the last layer's weights and bias, and the Cholesky factor of their precision."""
        weights = self.z * self.scale
        features, outputs = forward(self.problem, weights, self.x)
        phi = _with_ones(features[0])
        if self.problem.is_classification:
            p = outputs[0].double().softmax(-1)
            curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        else:
            curvature = torch.eye(self.problem.widths[-1], dtype=torch.float64).expand(len(phi), -1, -1)
            curvature = curvature / (self.problem.noise or 1.0) ** 2
        out, k = self.problem.widths[-1], self.problem.widths[-2]
        weight, bias = weights[0, -out * (k + 1) :].double().split([out * k, out])
        prior = torch.tensor([self.problem.prior_std[-2]] * k + [self.problem.prior_std[-1]], dtype=torch.float64)
        precision = torch.einsum("nij,na,nb->iajb", curvature, phi, phi).reshape(out * (k + 1), -1)
        precision = precision + torch.diag(prior.pow(-2).repeat(out))
        mean = torch.cat([weight.view(out, k), bias.view(out, 1)], dim=1)
        return mean, torch.linalg.cholesky(precision)


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1).double()


def forward(problem: Problem, weights: Tensor, x: Tensor, *, drop: float = 0.0) -> tuple[Tensor, Tensor]:
    """Last hidden layer ``[S, B, k]`` and outputs ``[S, B, out]`` of networks with weights ``[S, D]``.

    Args:
        problem: Whose network it is.
        weights: Flat weights.
        x: Inputs ``[B, d]``.
        drop: Share of the hidden units that are left out, others for each sample.
    """
    num = weights.shape[0]
    parts = weights.split([math.prod(shape) for shape in problem.shapes], dim=1)
    tensors = [part.view(num, *shape) for part, shape in zip(parts, problem.shapes, strict=True)]
    h = x.expand(num, -1, -1)
    last = len(tensors) // 2 - 1
    for i in range(last):
        h = torch.baddbmm(tensors[2 * i + 1].unsqueeze(1), h, tensors[2 * i].transpose(1, 2))
        h = h.relu() if problem.activation == "relu" else h.tanh()
        if drop:
            keep = torch.full((num, 1, h.shape[2]), 1.0 - drop, dtype=h.dtype)
            h = h * torch.bernoulli(keep) / (1.0 - drop)
    return h, torch.baddbmm(tensors[-1].unsqueeze(1), h, tensors[-2].transpose(1, 2))


METHODS: Mapping[str, Callable[[Problem], Method]] = {
    "default": _hypernet(),
    "mf_body": _hypernet(family="mean_field"),
    "hyper_plain": _hypernet(conditional=None),
    "AutoNormal": _auto_normal,
    "AutoLowRank": _low_rank,
    "AutoMultivariateNormal": _full_rank,
    "ensemble": lambda problem: PointMethod(problem, ENSEMBLE),
    "dropout": Dropout,
    "laplace_last": LaplaceLast,
}
"""What makes each method for a problem, by name."""
