"""What every score asks of its arguments.

Two mistakes would otherwise give a number that looks right: a shape that broadcasts (``[B, 1]`` against ``[B]`` is
``[B, B]``) and a NaN that a comparison turns into "not covered".
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.forms import as_numbers
from bayeshnet.typing import ClassProbabilities, Labels, OutputDraws, Targets

__all__ = [
    "check_draws",
    "check_log_density",
    "check_probabilities",
    "check_same_shape",
    "check_tensor",
]


def check_tensor(name: str, value: object, *, finite: bool = True) -> Tensor:
    """``value`` as a tensor of floating-point numbers without NaN, and without infinities if ``finite``."""
    value = as_numbers(value, name, torch.zeros(()), keep=True)
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: is {kind_of(value)}; pass a tensor, torch.as_tensor({name}).")
    if not value.is_floating_point():
        raise ArgumentTypeError(f"{name}: has dtype {value.dtype}; pass floating-point numbers, {name}.float().")
    if value.numel() == 0:
        raise ArgumentError(f"{name}: is empty, of shape {list(value.shape)}; pass at least one row.")
    bad = ~torch.isfinite(value) if finite else torch.isnan(value)
    if bad.any():
        what = "NaN or infinite" if finite else "NaN"
        raise ArgumentError(
            f"{name}: has {int(bad.sum())} of {value.numel()} entries {what}, and a score of them would mean nothing; "
            "find where they come from (a diverged fit, a missing value in the data), or drop the rows."
        )
    return value


def check_same_shape(name: str, value: Tensor, y: Tensor) -> None:
    """Raise unless the shapes are the same; those that broadcast are not."""
    if value.shape != y.shape:
        raise ArgumentError(
            f"{name}: has shape {list(value.shape)}, and y has shape {list(y.shape)}; pass one shape for both, "
            f"[B] or [B, out]. {_how_to_match(name, value, y)}"
        )


def check_draws(draws: object, y: object, *, at_least: int = 1) -> tuple[OutputDraws, Targets]:
    """``draws`` ``[S, B]`` or ``[S, B, out]`` and their targets ``y`` ``[B]`` or ``[B, out]``; S >= ``at_least``."""
    draws, y = check_tensor("draws", draws), check_tensor("y", y)
    if draws.ndim < 2 or draws.shape[1:] != y.shape:
        expected = [f"S >= {at_least}", *y.shape]
        if draws.shape == y.shape:
            fix = "The dimension of draws is missing: one network's output is draws.unsqueeze(0)."
        else:
            fix = _how_to_match("draws", draws[0], y) if draws.ndim > 1 else "Draws come first, then rows."
        raise ArgumentError(
            f"draws: has shape {list(draws.shape)}, and y has shape {list(y.shape)}; pass draws of shape "
            f"[{', '.join(map(str, expected))}]. {fix}"
        )
    if draws.shape[0] < at_least:
        raise ArgumentError(f"draws: holds {draws.shape[0]} of them; pass at least {at_least}.")
    return draws, y


def check_log_density(name: str, value: object, *, ndim: int) -> Tensor:
    """Log densities ``[B]`` (``ndim`` 1) or ``[S, B]`` (2); minus infinity is one, NaN is not."""
    tensor = check_tensor(name, value, finite=False)
    if tensor.ndim != ndim:
        shape = "[B], one number a row" if ndim == 1 else "[S, B], one row a draw"
        fix = (
            "Average the density over draws first: log_predictive_density(log_densities)."
            if ndim == 1
            else "Sum over the outputs of a row, and keep the draws apart."
        )
        raise ArgumentError(f"{name}: has shape {list(tensor.shape)}; pass {shape}. {fix}")
    return tensor


def check_probabilities(probs: object, labels: object) -> tuple[ClassProbabilities, Labels]:
    """Probabilities ``[B, C]`` that sum to one, and integer labels ``[B]`` from 0 to C - 1."""
    probs = check_tensor("probs", probs)
    if probs.ndim != 2:
        raise ArgumentError(
            f"probs: has shape {list(probs.shape)}; pass [B, C], the probability of each class. Average draws "
            "[S, B, C] with probs.mean(0); a binary p [B] is torch.stack([1 - p, p], -1)."
        )
    labels = as_numbers(labels, "labels", torch.zeros(()))
    if not isinstance(labels, Tensor):
        raise ArgumentTypeError(f"labels: is {kind_of(labels)}; pass a tensor, torch.as_tensor(labels).")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ArgumentTypeError(f"labels: has dtype {labels.dtype}; pass integers from 0 to C - 1, labels.long().")
    if labels.shape != probs.shape[:1]:
        raise ArgumentError(
            f"labels: has shape {list(labels.shape)}, and probs has shape {list(probs.shape)}; pass labels of "
            f"shape [{probs.shape[0]}]. One-hot labels become that by labels.argmax(-1)."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= probs.shape[1]:
        raise ArgumentError(
            f"labels: range from {low} to {high}, and probs has {probs.shape[1]} columns; pass classes numbered from 0 "
            f"to {probs.shape[1] - 1}."
        )
    # Softmax in float32 is off by some 1e-7 for each class; logits are off by far more than this.
    if bool((probs < 0).any()) or bool(((probs.sum(-1) - 1).abs() > 1e-3).any()):
        raise ArgumentError(
            f"probs: has entries from {float(probs.min()):.3g} to {float(probs.max()):.3g}, and rows that sum to "
            f"{float(probs.sum(-1).min()):.3g}..{float(probs.sum(-1).max()):.3g}; pass probabilities from 0 to 1 with "
            "rows that sum to 1. For logits: probs.softmax(-1)."
        )
    return probs, labels.long()


def _how_to_match(name: str, value: Tensor, y: Tensor) -> str:
    if value.numel() == y.numel():
        if value.ndim == y.ndim + 1 and value.shape[-1] == 1:
            return f"Try {name}.squeeze(-1)."
        if y.ndim == value.ndim + 1 and y.shape[-1] == 1:
            return "Try y.squeeze(-1)."
    return "Check that both come from the same rows."
