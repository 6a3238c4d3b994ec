r"""How far the pseudo-targets of a guide are trusted in choosing among candidates.

A draw of :class:`~bayeshnet.distributions.ConditionalWeights` is chosen from K candidates with probabilities
proportional to :math:`a_k^\tau`, where a is what the pseudo-targets say of a candidate. For targets that stand for all
data, tau = 1 is exact; for few of them a says too much. The ELBO of a draw is

.. math:: L(\tau) = E\, \sum_k w_k \, (\ell_k - \log K w_k), \quad w = \mathrm{softmax}(\tau \log a), \quad
    \ell_k = \log p(y, u_k) - \log q(u_k)

and L(0) is that of a single candidate, so the best tau is never worse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError
from bayeshnet.families.base import Family
from bayeshnet.inducing.build import ConditionalPlan
from bayeshnet.inducing.conditional_weights import ConditionalWeights
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.sites.latents import LatentSite
from bayeshnet.sites.modes import evaluating

__all__ = ["CALIBRATION_ROWS", "best_power", "checked_num_candidates", "score_candidates"]

CALIBRATION_ROWS = 512
"""So many rows of the data suffice to choose the power."""

_DRAWS = 512
_SHUFFLES = 16
# Outputs of hidden layers are kept for so many draws at once.
_AT_ONCE = 64
# Multiplications for all candidates of one draw.
_OPERATIONS = 8e6
_POWERS = tuple(i / 10 for i in range(11))


def default_num_candidates(plan: ConditionalPlan) -> int:
    """Number of candidates of a draw: 32, fewer down to 4 where each of them costs more."""
    layout, num = plan.layout, plan.inducing.num_inducing
    weight, bias = layout.layers[-1]
    size = math.prod(layout.shapes[weight][1:]) + (bias is not None)
    # The Gram matrix, and the way of the points through the layers before: a multiplication per weight, more in a
    # convolution.
    cost = num * (size * min(num, size) + sum(layout.body_sizes))
    return 2 ** math.floor(math.log2(min(32.0, max(4.0, _OPERATIONS / cost))))


def checked_num_candidates(given: int | None, plan: ConditionalPlan | None, family: Family | None) -> int:
    """The number of candidates of a draw; 1 where there is nothing that could choose among them.

    Args:
        given: What the user asks for, if anything.
        plan: The conditional layers, if there are any.
        family: What draws the other latents, if there are any.

    Raises:
        ValueError: If more than one is asked for where nothing could choose, or the number is not positive.
        TypeError: If it is no whole number.
    """
    if given is not None:
        require_count("num_candidates", given)
    if plan is not None and family is not None and plan.ranks_candidates and family.per_draw:
        default = 1 if family.searches else default_num_candidates(plan)
        return default if given is None else given
    if given not in (None, 1):
        raise ArgumentError(
            f"num_candidates: is {given}, but no conditional layer can choose among candidates here; leave it out."
        )
    return 1


def best_power(log_ratio: Tensor, log_weight: Tensor, num_candidates: int) -> float:
    """The tau in 0, 0.1, ..., 1 with the highest ELBO.

    Args:
        log_ratio: ``log p(y, u) - log q(u)`` of single candidates ``[S]``.
        log_weight: Logarithm of their a ``[S]``.
        num_candidates: Number K of candidates among which a draw is chosen.

    Example:
        >>> exact = 3.0 * torch.randn(512)
        >>> best_power(exact, exact, 8), best_power(exact, torch.randn(512), 8)
        (1.0, 0.0)
    """
    groups = len(log_ratio) // num_candidates
    orders = [torch.randperm(len(log_ratio))[: groups * num_candidates] for _ in range(_SHUFFLES)]
    rows = torch.cat(orders).reshape(-1, num_candidates)
    ratio, weight = log_ratio.double()[rows], log_weight.double()[rows]
    elbos: list[float] = []
    for power in _POWERS:
        log_w = (power * weight).log_softmax(1)
        elbos.append(float((log_w.exp() * (ratio - log_w)).sum(1).mean()))
    return _POWERS[max(range(len(elbos)), key=elbos.__getitem__)]


@torch.no_grad()
def score_candidates(
    model: BayesianModel, posterior: ConditionalWeights, sites: list[LatentSite], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The two arguments of :func:`best_power`, for a guide as it is.

    Args:
        model: The model.
        posterior: Its guide's distribution; the power in it has to be 1.
        sites: The model's latents.
        x: Inputs of rows ``[B, ...]``; of many a few are enough.
        y: Their targets.
    """
    size = max(len(x), model.dataset_size or 0)
    if len(x) > CALIBRATION_ROWS:
        chosen = torch.randperm(len(x))[:CALIBRATION_ROWS]
        x, y = x[chosen.to(x.device)], y[chosen.to(y.device)]
    parts: list[Tensor] = []
    with evaluating(model):  # the network that predicts, without its dropout
        for _ in range(_DRAWS // _AT_ONCE):
            latents, log_q, log_weight = posterior.candidates(_AT_ONCE)
            parts.append(torch.stack([_log_joint(model, sites, latents, x, y, size).to(log_q) - log_q, log_weight]))
    log_ratio, log_weight = torch.cat(parts, dim=1)
    return log_ratio, log_weight


def _log_joint(
    model: BayesianModel, sites: list[LatentSite], latents: Tensor, x: Tensor, y: Tensor, size: int
) -> Tensor:
    """Log-density ``[S]`` of all latents, in unconstrained coordinates ``[S, D]``, and of ``size`` rows like these."""
    priors = {**model.weight_priors(), **{f"likelihood.{k}": p for k, p in model.likelihood.priors().items()}}
    draws: dict[str, Tensor] = {}
    terms: list[Tensor] = []
    for site, part in zip(sites, latents.split([site.numel for site in sites], -1), strict=True):
        unconstrained = part.reshape(len(latents), *site.shape)
        value = site.constrain(unconstrained)
        draws[site.name] = value
        terms.append(priors[site.name].log_prob(value).double())
        change = site.log_jacobian(unconstrained, value)
        if change is not None:
            terms.append(change.double())
    _, conditional = model.conditional(x, draws)
    fit = conditional.log_prob(y).double().sum(-1) * (size / len(x))
    return torch.stack([*terms, fit]).sum(0)
