"""Inferred observation noise against the residuals of the predictive mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.evaluation._predict import predict
from bayeshnet.evaluation.psis import WeightedDraws
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.likelihoods import Normal

__all__ = ["check_noise", "noise_std", "some_rows"]

# Residuals are taken at so many rows at most: 2000 draws of them fit into memory.
_RESIDUAL_ROWS = 2000


def noise_std(model: BayesianModel, draws: Mapping[str, Tensor]) -> Tensor | None:
    """Standard deviation of the observation noise in each draw ``[S, 1 or out]``, in the units of the targets.

    None unless it is inferred.
    """
    for name in ("scale", "precision") if isinstance(model.likelihood, Normal) else ():
        if name in model.likelihood.priors():
            value = draws[f"likelihood.{name}"].double()
            noise = (value if name == "scale" else value.rsqrt()).reshape(len(value), -1)
            unit = model.units.target_scale
            return noise if unit is None else noise * unit.double()
    return None


def check_noise(
    report: Diagnosis,
    model: BayesianModel,
    draws: Mapping[str, Tensor],
    weighted: WeightedDraws | None,
    x: Any,
    y: Tensor,
) -> None:
    """Compare the noise with the residuals of the predictive mean, for the output where they differ most."""
    noise = noise_std(model, draws)
    if noise is None:
        return
    corrected = weighted is not None and weighted.smoothed.reliable
    if isinstance(x, Tensor):
        x, y = some_rows(x, _RESIDUAL_ROWS), some_rows(y, _RESIDUAL_ROWS)
    f = predict(model, draws, x).functions.double()
    if weighted is not None and corrected:
        mean = torch.tensordot(weighted.smoothed.normalised.to(f.device), f, dims=1)
    else:
        mean = f.mean(0)
    squares = (y.double() - mean).square()
    # One residual per noise: over all outputs if they share it.
    squares = squares.reshape(-1, noise.shape[1]) if noise.shape[1] > 1 else squares.reshape(-1, 1)
    residual = squares.mean(0).sqrt()
    level = noise.mean(0)
    ratio = level / residual.clamp(min=torch.finfo(torch.double).tiny)
    worst = int(ratio.argmax())
    report.values.update(
        noise=float(level[worst]), residual_std=float(residual[worst]), noise_ratio=float(ratio[worst])
    )
    # Parameters as many as a half of the rows explain a ratio of 1.4.
    if report.values["noise_ratio"] > 1.5:
        report.advice.append(
            f"The observation noise is {float(level[worst]):.3g} under the guide, {float(ratio[worst]):.2g} times the "
            f"residuals of its predictive mean ({'importance-corrected' if corrected else 'plain'}): the draws "
            "scatter, and what they cannot fit goes into the noise. Use conditional layers with more inducing points "
            "(num_inducing), or train longer; with about as many rows as the network has effective parameters a high "
            "ratio is right."
        )


def some_rows(x: Any, most: int) -> Any:
    """Evenly spaced rows of a tensor with more than ``most``."""
    if not isinstance(x, Tensor) or len(x) <= most:
        return x
    return x[torch.linspace(0, len(x) - 1, most, dtype=torch.double).round().long().to(x.device)]
