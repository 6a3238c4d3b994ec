"""Inferred observation noise against the residuals of the predictive mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.evaluation._predict import predict
from bayeshnet.evaluation.psis import WeightedDraws
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.forms import num_rows, rows_of

__all__ = ["check_noise", "noise_std", "some_rows"]

# Residuals are taken at so many rows at most: 2000 draws of them fit into memory.
_RESIDUAL_ROWS = 2000


def noise_std(model: BayesianModel, draws: Mapping[str, Tensor]) -> Tensor | None:
    """Standard deviation of the observation noise in each draw ``[S, 1 or out]``, in the units of the targets.

    None unless it is inferred.
    """
    latent, unit = model.likelihood.noise_latent(), model.units.target_scale
    if latent is None:
        return None
    value = draws[f"likelihood.{latent[0]}"].double()
    noise = (value if latent[1] == 1.0 else value ** latent[1]).reshape(len(value), -1)
    # A factor of the noise of each row has no unit.
    return noise if unit is None or "noise" in model.likelihood.row_data else noise * unit.double()


def check_noise(
    report: Diagnosis,
    model: BayesianModel,
    draws: Mapping[str, Tensor],
    weighted: WeightedDraws | None,
    x: Any,
    y: Tensor,
    of_rows: Mapping[str, Any] | None = None,
) -> None:
    """Compare the noise with the residuals of the predictive mean, for the output where they differ most.

    Rows count as much as they weigh, targets that are missing not at all. Where each row has a noise of its own, the
    factor of it is compared with residuals in units of it.
    """
    noise = noise_std(model, draws)
    if noise is None or not model.likelihood.noise_is_std:
        return
    of_rows = of_rows or {}
    corrected = weighted is not None and weighted.smoothed.reliable
    if not isinstance(y, Tensor):
        raise ArgumentTypeError(f"data: targets are {kind_of(y)}; pass a tensor, torch.as_tensor(y).")
    if num_rows(x) == len(y):
        x, y = some_rows(x, _RESIDUAL_ROWS), some_rows(y, _RESIDUAL_ROWS)
        of_rows = {name: some_rows(value, _RESIDUAL_ROWS) for name, value in of_rows.items()}
    given = {name: value for name, value in of_rows.items() if name != "weight"}
    f = predict(model, draws, x, **given).functions.double()
    if weighted is not None and corrected:
        mean = torch.tensordot(weighted.smoothed.normalised.to(f.device), f, dims=1)
    else:
        mean = f.mean(0)
    squares = (y.double().reshape(mean.shape) - mean).square()
    extra = (1,) * (squares.dim() - 1)
    if "noise" in given:
        known = given["noise"].double()
        squares = squares / (known if known.shape == squares.shape else known.reshape(-1, *extra)).square()
    weight = of_rows["weight"].double() if "weight" in of_rows else squares.new_ones(len(squares))
    weights = torch.where(torch.isnan(squares), 0.0, weight.reshape(-1, *extra))
    # One residual per noise: over all outputs if they share it.
    columns = noise.shape[1] if noise.shape[1] > 1 else 1
    squares, weights = squares.nan_to_num(0.0).reshape(-1, columns), weights.reshape(-1, columns)
    residual = ((squares * weights).sum(0) / weights.sum(0)).sqrt()
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
    """Evenly spaced rows of what has more than ``most``."""
    rows = num_rows(x)
    if rows <= most:
        return x
    return rows_of(x, torch.linspace(0, rows - 1, most, dtype=torch.double).round().long())
