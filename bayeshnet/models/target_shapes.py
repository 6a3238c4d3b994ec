"""The shape of one observation: a rule that depends on the network, the likelihood and one argument, and on no call."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Size, Tensor

from bayeshnet.checks import kind_of
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import ArgumentError, ArgumentTypeError, TargetShapeWarning
from bayeshnet.models.likelihoods.base import Likelihood

__all__ = ["checked_shape", "drops_dimension", "fitted_targets"]


def checked_shape(shape: Any) -> tuple[int, ...] | None:
    """The argument ``target_shape`` as a tuple, or None.

    Raises:
        ArgumentTypeError: If it is no sequence of whole numbers.

    Example:
        >>> checked_shape([1]), checked_shape(None)
        ((1,), None)
    """
    if shape is None:
        return None
    sizes: list[Any] = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else [None]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise ArgumentTypeError(
            f"target_shape: is {shape!r}, {kind_of(shape)}; pass the shape of one observation, () for a single number "
            "or (1,) to keep a last dimension of size 1."
        )
    return tuple(sizes)


def drops_dimension(likelihood: Likelihood, event: Size, target_shape: tuple[int, ...] | None) -> bool:
    """Whether observations of shape ``(1,)`` are taken for single numbers.

    Args:
        likelihood: The likelihood, which knows what is observed.
        event: Shape of one output of the network, as the likelihood arranges it.
        target_shape: The argument of the model.

    Raises:
        ArgumentError: If observations have another shape than the argument says.

    Example:
        >>> from bayeshnet import likelihoods
        >>> normal = likelihoods.Normal(scale=0.1)
        >>> [drops_dimension(normal, Size(e), s) for e, s in (((1,), None), ((1,), (1,)), ((2,), None))]
        [True, False, False]
    """
    full = likelihood.target_event(event)
    if full == (1,) and target_shape in (None, ()):
        return True
    if target_shape is not None and full != target_shape:
        raise ArgumentError(
            f"target_shape: is {target_shape}, but the likelihood {type(likelihood).__name__} makes observations of "
            f"shape {tuple(full)} of the network's outputs; leave it out, or change the outputs."
        )
    return False


def fitted_targets(likelihood: Likelihood, y: Any, output: Size, target_shape: tuple[int, ...] | None) -> Tensor:
    """Targets in the shape of the observations, checked.

    Args:
        likelihood: The likelihood.
        y: Targets ``[B, *target]``.
        output: Shape of the outputs of one network ``[B, ...]``, as the likelihood arranges them.
        target_shape: The argument of the model.

    Raises:
        ArgumentTypeError: If ``y`` is no tensor, or of a dtype that the likelihood does not take.
        ArgumentError: If its shape or values do not fit the outputs.

    Example:
        >>> from bayeshnet import likelihoods
        >>> import torch
        >>> fitted_targets(likelihoods.Normal(scale=0.1), torch.zeros(7), Size([7, 1]), None).shape
        torch.Size([7])
    """
    if not isinstance(y, Tensor):
        raise ArgumentTypeError(f"y: is {kind_of(y)}; pass a tensor, torch.as_tensor(y).")
    event = output[1:]
    drops = drops_dimension(likelihood, event, target_shape)
    inner = event[1:] if drops else event
    expected = output[:1] + likelihood.target_event(inner)
    likelihood.check_target(y, inner)
    if y.shape == expected:
        return y
    if drops and y.shape == (*expected, 1):
        warnings.warn(
            f"y: has shape {tuple(y.shape)}, and observations are single numbers here, so that predictions will be "
            f"[B]. Pass BayesianModel(..., target_shape=(1,)) for predictions [B, 1], or y.squeeze(-1).",
            TargetShapeWarning,
            stacklevel=stacklevel_of_user(),
        )
        return y.squeeze(-1)
    advice = likelihood.shape_advice(y, inner)
    if not advice and expected == (*y.shape, 1) and target_shape == (1,):
        advice = " Pass y.unsqueeze(-1), or leave out target_shape."
    raise ArgumentError(
        f"y: has shape {tuple(y.shape)}; the network's output {tuple(output)} asks for {tuple(expected)}.{advice}"
    )
