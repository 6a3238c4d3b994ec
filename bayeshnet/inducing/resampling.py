r"""Importance resampling of a guide's draws by its pseudo-targets: number of proposals and tempering exponent.

A draw of :class:`~bayeshnet.distributions.ConditionalWeights` is resampled from K proposals with probabilities
proportional to :math:`a_k^\tau`, where a is the importance weight of a proposal by the pseudo-targets. For targets that
stand for all data, tau = 1 is exact; from few of them a varies too much. The ELBO of a draw is

.. math:: L(\tau) = E\, \sum_k w_k \, (\ell_k - \log K w_k), \quad w = \mathrm{softmax}(\tau \log a), \quad
    \ell_k = \log p(y, u_k) - \log q(u_k)

and L(0) is that of a single proposal, so the best tau is never worse.
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

__all__ = ["CALIBRATION_ROWS", "best_exponent", "checked_num_proposals", "score_proposals"]

CALIBRATION_ROWS = 512
"""So many rows of the data suffice to choose the tempering exponent."""

_DRAWS = 512
_SHUFFLES = 16
# Outputs of hidden layers are kept for so many draws at once.
_AT_ONCE = 64
# Multiplications for all proposals of one draw.
_OPERATIONS = 8e6
# Beyond so many latents each proposal is a large network: the hundreds that weights are calibrated by are too many.
_LATENTS = 100_000
_EXPONENTS = tuple(i / 10 for i in range(11))


def default_num_proposals(plan: ConditionalPlan) -> int:
    """Return the number of proposals of a draw: 32, down to 4 where each costs more; 1 beyond 100,000 latents."""
    layout, num = plan.layout, plan.inducing.num_inducing
    if sum(layout.sizes) > _LATENTS:
        return 1
    weight, bias = layout.layers[-1]
    size = math.prod(layout.shapes[weight][1:]) + (bias is not None)
    # The Gram matrix, and the way of the points through the layers before: a multiplication per weight, more in a
    # convolution.
    cost = num * (size * min(num, size) + sum(layout.unconditional_sizes))
    return 2 ** math.floor(math.log2(min(32.0, max(4.0, _OPERATIONS / cost))))


def checked_num_proposals(given: int | None, plan: ConditionalPlan | None, family: Family | None) -> int:
    """Return the number of proposals of a draw; 1 where nothing tells their weights.

    Args:
        given: What the user asks for, if anything.
        plan: The conditional layers, if there are any.
        family: What draws the other latents, if there are any.

    Raises:
        ArgumentError: If more than one is asked for where nothing tells their weights, or the number is not positive.
        ArgumentTypeError: If it is not an integer.

    Example:
        >>> checked_num_proposals(None, None, None)
        1
    """
    if given is not None:
        require_count("num_proposals", given)
    if plan is not None and family is not None and plan.weighs_proposals and family.per_draw:
        default = 1 if family.searches else default_num_proposals(plan)
        return default if given is None else given
    if given not in (None, 1):
        raise ArgumentError(
            f"num_proposals: is {given}, and no conditional layer gives proposals a weight here; leave it out."
        )
    return 1


def best_exponent(log_ratio: Tensor, log_weight: Tensor, num_proposals: int) -> float:
    """Return the tempering exponent in 0, 0.1, ..., 1 with the highest ELBO.

    Args:
        log_ratio: ``log p(y, u) - log q(u)`` of single proposals ``[S]``.
        log_weight: Logarithm of their a ``[S]``.
        num_proposals: Number K of proposals from which a draw is resampled.

    Example:
        >>> exact = 3.0 * torch.randn(512)
        >>> best_exponent(exact, exact, 8), best_exponent(exact, torch.randn(512), 8)
        (1.0, 0.0)
    """
    groups = len(log_ratio) // num_proposals
    orders = [torch.randperm(len(log_ratio))[: groups * num_proposals] for _ in range(_SHUFFLES)]
    rows = torch.cat(orders).reshape(-1, num_proposals)
    ratio, weight = log_ratio.double()[rows], log_weight.double()[rows]
    elbos: list[float] = []
    for exponent in _EXPONENTS:
        log_w = (exponent * weight).log_softmax(1)
        elbos.append(float((log_w.exp() * (ratio - log_w)).sum(1).mean()))
    return _EXPONENTS[max(range(len(elbos)), key=elbos.__getitem__)]


@torch.no_grad()
def score_proposals(
    model: BayesianModel,
    posterior: ConditionalWeights,
    sites: list[LatentSite],
    x: Tensor,
    y: Tensor,
    **of_rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the first two arguments of :func:`best_exponent`, for a guide as it is.

    Args:
        model: The model.
        posterior: Its guide's distribution; its tempering exponent has to be 1.
        sites: The model's latents.
        x: Inputs of rows ``[B, ...]``; of many a few are enough.
        y: Their targets.
        of_rows: What the model takes of each row beside them, such as ``weight``.

    Example:
        >>> import pyro
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> from bayeshnet.sites.latents import latent_sites
        >>> x = torch.randn(20, 1)
        >>> noise = pyro.distributions.Gamma(6.0, 6.0)
        >>> model = BayesianModel(torch.nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=noise))
        >>> guide = AutoHypernet(model, example=(x, x[:, 0]))
        >>> sites = latent_sites(pyro.poutine.trace(model).get_trace(x, x[:, 0]))
        >>> log_ratio, log_weight = score_proposals(model, guide.get_posterior(), sites, x, x[:, 0])
        >>> log_ratio.shape, log_weight.shape
        (torch.Size([512]), torch.Size([512]))
    """
    size = max(len(x), model.dataset_size or 0)
    if len(x) > CALIBRATION_ROWS:
        chosen = torch.randperm(len(x))[:CALIBRATION_ROWS]
        x, y = x[chosen.to(x.device)], y[chosen.to(y.device)]
        of_rows = {name: value[chosen.to(value.device)] for name, value in of_rows.items()}
    parts: list[Tensor] = []
    with evaluating(model):  # the network that predicts, without its dropout
        for _ in range(_DRAWS // _AT_ONCE):
            latents, log_q, log_weight = posterior.proposals(_AT_ONCE)
            parts.append(
                torch.stack([_log_joint(model, sites, latents, x, y, size, of_rows).to(log_q) - log_q, log_weight])
            )
    log_ratio, log_weight = torch.cat(parts, dim=1)
    return log_ratio, log_weight


def _log_joint(
    model: BayesianModel,
    sites: list[LatentSite],
    latents: Tensor,
    x: Tensor,
    y: Tensor,
    size: int,
    of_rows: dict[str, Tensor],
) -> Tensor:
    """Return the log-density ``[S]`` of unconstrained latents ``[S, D]`` and of ``size`` rows like these."""
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
    terms.append(model.log_likelihood(x, y, draws, size=size, **of_rows))
    return torch.stack(terms).sum(0)
