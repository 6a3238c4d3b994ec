"""Importance weights of any guide against any Pyro model, and the log evidence that follows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError, DensityError, UsageError
from bayeshnet.evaluation.psis import Estimate, WeightedDraws
from bayeshnet.guides.base import with_model
from bayeshnet.sites.arguments import (
    all_data,
    refuse_second_data,
    require_model_and_guide,
)
from bayeshnet.sites.data_errors import errors_of_data
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread
from bayeshnet.sites.traces import PairedTraces

__all__ = ["importance_sample", "log_evidence"]

_LOGGER = logging.getLogger(__name__)
# Draws in one vectorised call.
_AT_ONCE = 256


@torch.no_grad()
def importance_sample(
    model: Callable[..., Any], guide: Callable[..., Any], data: Any, num_samples: int = 1000
) -> WeightedDraws:
    """Draw from a guide, and weight each draw by ``p(data, z) / q(z)``.

    log p is the sum over all sites of the model, log q over all sites of the guide, including auxiliary ones. Draws are
    made and scored in vectorised calls of up to 256. First a vectorised trial of a few draws is made: if the model
    fails, or gives other densities than one by one, all draws are scored one by one. The trial leaves the caller's
    random numbers alone.

    A model that is a module is put into evaluation mode for the call; afterwards each of its submodules is in the mode
    it was in.

    Args:
        model: Any Pyro model whose latents are all in the guide.
        guide: Any guide for it: of this package, of Pyro, or a function.
        data: The arguments of the model, with all observations: a tuple, a mapping, or one tensor. No minibatch.
        num_samples: Number S of draws.

    Raises:
        ArgumentError: If the data are a minibatch or hold NaN, the latents of guide and model differ, or
            ``num_samples`` is below 2.
        ArgumentTypeError: If an argument is of another type.
        DensityError: If the guide has no density of a single draw.
        UsageError: If the guide is a point, or a weight is NaN or +inf; or another thread is in a fit.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> def guide(y):  # the exact posterior: all weights are the evidence
        ...     pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), (len(y) + 1) ** -0.5))
        >>> w = importance_sample(model, guide, torch.tensor([1.0, 2.0]), num_samples=100)
        >>> w.draws["mu"].shape, bool(w.log_weights.std() < 1e-5)
        (torch.Size([100]), True)
    """
    require_model_and_guide(model, guide)
    refuse_second_data("num_samples", num_samples)
    require_count("num_samples", num_samples, least=2, advice="; better 1000 or more")
    args, kwargs = all_data(model, data, "importance weights need")
    _require_density(guide)
    with one_thread("importance_sample"), evaluating(model), with_model(guide, model):
        with torch.random.fork_rng(devices=[]):
            with errors_of_data(model, args, kwargs, "data"):
                pair = PairedTraces(model, guide, args, kwargs)
            pair.require_spread()
            trouble = pair.trouble(strict=True)
        if trouble is None:
            chunks = math.ceil(num_samples / _AT_ONCE)
            sizes = [(num_samples + i) // chunks for i in range(chunks)]
            parts = [pair.draw(size) for size in sizes]
        else:
            _LOGGER.info("model or guide cannot be vectorised over draws: %s; draws are made in turn", trouble)
            parts = [pair.draw_one() for _ in range(num_samples)]
    log_p, log_q = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    log_weights = log_p - log_q
    _refuse_undefined(log_p, log_q, log_weights)
    draws = {name: torch.cat([part[0][name] for part in parts]) for name in pair.shapes}
    return WeightedDraws(draws, log_weights)


def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    num_samples: int = 1000,
    *,
    method: Literal["psis", "iwae"] = "psis",
) -> Estimate:
    """Logarithm of the marginal likelihood of the data, by importance sampling from a guide.

    Warns if k-hat says that the error cannot be trusted. To get other numbers from the same draws use
    :func:`importance_sample`.

    Args:
        model: Any Pyro model.
        guide: Any guide for it.
        data: The arguments of the model, with all observations.
        num_samples: Number of draws.
        method: ``"psis"``: the mean of the smoothed weights; or ``"iwae"``: that of the weights themselves, whose
            expectation is a lower bound.

    Returns:
        Value and standard error in nats.

    Raises:
        ArgumentError: As for :func:`importance_sample`, or if ``method`` is unknown.
        ArgumentTypeError: As for :func:`importance_sample`.
        UsageError: As for :func:`importance_sample`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     pyro.sample("obs", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mu", dist.Normal(0.5, 0.8))
        >>> y = torch.tensor(1.0)
        >>> found, exact = log_evidence(model, guide, y), dist.Normal(0.0, 2**0.5).log_prob(y)
        >>> bool(abs(found.value - exact) < 4 * found.error)
        True
    """
    if method not in ("psis", "iwae"):
        raise ArgumentError(f"method: is {method!r}; pass 'psis' or 'iwae'.")
    weighted = importance_sample(model, guide, data, num_samples)
    weighted.warn_if_unreliable("The log evidence and its error", stacklevel=2)
    return weighted.log_evidence if method == "psis" else weighted.iwae()


def _require_density(guide: Any) -> None:
    estimator = getattr(guide, "estimator", None)
    if not getattr(estimator, "per_draw", True):
        raise DensityError(
            f"guide: its estimator {estimator!r} gives no density of a draw, so there are no importance weights. Build "
            "the guide with ChangeOfVariables() for shared noise or Linearised() for independent noise."
        )


def _refuse_undefined(log_p: Tensor, log_q: Tensor, log_weights: Tensor) -> None:
    bad = torch.isnan(log_weights) | (log_weights == math.inf)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise UsageError(
            f"model, guide: the weight of {int(bad.sum())} of {len(bad)} draws is NaN or infinite; of the first such "
            f"draw log p is {float(log_p[first])} and log q {float(log_q[first])}. Check the data for NaN, and the "
            "guide's scales."
        )
