"""Where inducing points start: at rows of the data, with pseudo-targets that are worth all of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.inducing.layers import InducingLayers
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.sites.kept_state import restored
from bayeshnet.sites.rows import check_rows

__all__ = ["affordable_inducing", "default_num_inducing", "latent_noise", "place_inducing", "starting_points"]


_ROWS_FOR_A_POINT = 10


def default_num_inducing(num_rows: int) -> int:
    """Return the number of inducing points for so many rows: all up to 40, then as the square root of their number.

    Example:
        >>> [default_num_inducing(n) for n in (20, 40, 300, 1000, 10_000)]
        [20, 40, 104, 190, 600]
    """
    return min(num_rows, max(40, math.ceil(6 * math.sqrt(num_rows))))


def affordable_inducing(step_rows: int) -> int:
    """Return the largest number of inducing points that cost no more than a tenth of a training step.

    Each goes through the network for each draw, as a row does: one for ten rows of a step.

    Args:
        step_rows: Number of rows of a step.

    Example:
        >>> [affordable_inducing(n) for n in (16, 128, 1000)]
        [1, 12, 100]
    """
    return step_rows // _ROWS_FOR_A_POINT


@torch.no_grad()
def place_inducing(model: BayesianModel, inducing: InducingLayers, x: Tensor, y: Tensor, rows: int) -> None:
    """Move the inducing points to randomly chosen rows of these data, in place.

    Args:
        model: The model, which checks the data.
        inducing: The conditional layers.
        x: Inputs ``[B, ...]``.
        y: Targets.
        rows: Number of rows of all data.

    Raises:
        ArgumentError: If the model does not accept the data.

    Example:
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> x = torch.randn(20, 1)
        >>> model = BayesianModel(torch.nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> guide = AutoHypernet(model, example=(x, x[:, 0]))
        >>> place_inducing(model, guide.inducing, x + 5.0, x[:, 0], 20)
        >>> bool(guide.inducing.inputs.mean() > 3.0)
        True
    """
    check_rows(model, x, y)
    inputs, targets, log_precision = starting_points(model, x, y, inducing.num_inducing, rows)
    last: Any = inducing.points[-1]
    observed = inducing.observed_part(len(inducing.points) - 1, targets)
    with restored([inducing.inputs, last.targets, last.log_precision], on_error=True):
        inducing.inputs.copy_(inputs)
        last.targets.copy_(observed)
        last.log_precision.copy_(log_precision)


def starting_points(model: BayesianModel, x: Tensor, y: Tensor, num: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose pseudo-inputs at random rows, pseudo-targets at their targets, precisions worth all rows together.

    Args:
        model: The model.
        x: Inputs ``[B, ...]``.
        y: Targets.
        num: Number m of inducing points.
        rows: Number of rows of all data.

    Returns:
        Pseudo-inputs ``[m, ...]``, pseudo-targets ``[m, out]`` and the logarithm of their precisions ``[m]``, in the
            units of the network.

    Example:
        >>> from bayeshnet import likelihoods
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> [tuple(part.shape) for part in starting_points(model, torch.randn(20, 2), torch.randn(20), 5, 20)]
        [(5, 2), (5, 1), (5,)]
    """
    x, y = model.standardized_inputs(x), model.units.targets(y)  # what is inside of the model is in its units
    chosen = torch.randperm(len(x))[:num]
    if len(chosen) < num:
        chosen = torch.cat([chosen, torch.randint(len(x), (num - len(chosen),))])
    y = _filled(y)
    targets = model.likelihood.pseudo_targets(y[chosen.to(y.device)], _num_outputs(model))
    if targets is None:
        raise ArgumentError("y: has no pseudo-targets for this likelihood; pass targets like those of the example.")
    start = InducingLayers.start_precision(rows, num, _noise(model, y))
    return x[chosen.to(x.device)], targets, torch.full((num,), start, dtype=torch.float64)


def _filled(y: Tensor) -> Tensor:
    """Targets with the mean of the others where they are missing."""
    if not y.is_floating_point() or not bool(y.isnan().any()):
        return y
    return torch.where(y.isnan(), y.nanmean(0, keepdim=True).nan_to_num(), y)


def _num_outputs(model: BayesianModel) -> int:
    weights = [record for record in model.net.param_table if record.name == "weight"]
    return weights[-1].shape[0]


def latent_noise(model: BayesianModel) -> str | None:
    """Return the name of the likelihood's only latent, if that is one number: the scale or precision of the noise.

    Example:
        >>> from bayeshnet import likelihoods
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> latent_noise(model) is None
        True
    """
    latents, noise = model.likelihood.priors(), model.likelihood.noise_latent()
    return noise[0] if noise is not None and len(latents) == 1 and latents[noise[0]].event_shape.numel() == 1 else None


def _noise(model: BayesianModel, y: Tensor) -> float:
    """Return the standard deviation of the noise: the known one, or a start for one that is inferred."""
    if latent_noise(model) is not None:
        return 1.0  # a draw of the noise has its say later
    return model.likelihood.noise_level(y)
