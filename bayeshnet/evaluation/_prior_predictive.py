"""Predictions from the prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.evaluation._predict import check_model, predict
from bayeshnet.evaluation._seeds import base_seed, check_generator, seeded
from bayeshnet.evaluation._sources import like_of
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.models.prior_draws import prior_draws
from bayeshnet.sites.one_thread import one_thread

__all__ = ["prior_predictive"]


def prior_predictive(
    model: Any,
    x: Any,
    num_samples: int = 500,
    *,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    exposure: Tensor | None = None,
) -> Prediction:
    """Evaluate networks that are drawn from the prior: what the model says before it has seen data.

    Args:
        model: The Bayesian network; for an updated one, its prior is the posterior so far.
        x: Inputs ``[B, ...]``, or a tuple of the network's arguments.
        num_samples: Number S of networks.
        batch_size: Inputs evaluated at once, to bound memory; all by default.
        generator: Where random numbers come from; the global one, which otherwise stays as it is, by default.
        noise: Known noise of each row, as for :func:`~bayeshnet.predict`.
        exposure: Exposure of each row, likewise.

    Returns:
        What :func:`~bayeshnet.predict` returns: draws, mean, std, quantiles.

    Raises:
        ArgumentTypeError: If ``model`` is not a :class:`~bayeshnet.BayesianModel`, or an argument is of another type.
        ArgumentError: If a number is not positive, or inputs do not fit.
        UsageError: If another thread is in a fit.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods, priors
        >>> model = BayesianModel(torch.nn.Linear(1, 1), priors.Normal(2.0), likelihoods.Normal(scale=0.1))
        >>> pred = prior_predictive(model, torch.zeros(1, 1), 4000, generator=torch.Generator().manual_seed(0))
        >>> pred.draws.shape, bool((pred.epistemic - 2.0).abs() < 0.1)
        (torch.Size([4000, 1]), True)
    """
    check_model(model)
    require_count("num_samples", num_samples)
    check_generator(generator)
    options: dict[str, Any] = {"batch_size": batch_size, "noise": noise, "exposure": exposure}
    with one_thread("prior_predictive"):
        if generator is None:
            draws = prior_draws(model, num_samples)
        else:
            with seeded(base_seed(generator), 0, like_of(model).device):
                draws = prior_draws(model, num_samples)
    return predict(model, draws, x, generator=generator, **options)
