"""Class labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models._repr import positive
from bayeshnet.models.likelihoods._labels import LabelDistribution, refuse_labels
from bayeshnet.models.likelihoods.base import Likelihood

__all__ = ["Categorical"]

_LOGIT = 2.0


class Categorical(Likelihood):
    r"""Class labels, :math:`y \sim \mathrm{Categorical}(\mathrm{softmax}(f))`.

    **Classes come last**: outputs of the network are logits ``[B, C]``, or ``[B, ..., C]`` for several labels per row
    (``[B, ...]``), such as one for each pixel or token. Networks that put them second, as convolutions and
    ``nn.CrossEntropyLoss`` do, need ``class_dim=1``; their outputs ``[B, C, H, W]`` are then handed on as
    ``[B, H, W, C]``, in :func:`~bayeshnet.predict` too.

    Args:
        class_dim: The dimension of the network's output ``[B, ...]`` that holds the logits. By default the last; where
            the shape would fit another reading as well (``C = H = W``), it has to be given.
        class_weights: Factors ``[C]`` of the log-likelihood of each label in training, by its class; 0 leaves a class
            out. Scores of predictions are not weighted.
        ignore_index: A label that says that there is none, such as -100: it counts 0.

    Raises:
        ArgumentError: If ``class_dim`` is 0; when used, if the output has no such dimension, it is smaller than 2, the
            labels have another shape or are none of ``0..C-1``, or it cannot be told which dimension holds the classes.
        ArgumentTypeError: If ``class_dim`` is no whole number, or the labels are no integers.

    Example:
        >>> Categorical().conditional(torch.zeros(7, 3), {}, batch_dims=1).batch_shape
        torch.Size([7])
        >>> Categorical(class_dim=1).arrange(torch.zeros(7, 3, 8, 8), batch_dims=1).shape
        torch.Size([7, 8, 8, 3])
    """

    integer_targets: ClassVar[bool] = True
    logit_differences: ClassVar[bool] = True
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        class_dim: int | None = None,
        class_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if class_dim is not None and (isinstance(class_dim, bool) or not isinstance(class_dim, int)):
            raise ArgumentTypeError(
                f"class_dim: is {class_dim!r}, {kind_of(class_dim)}; pass -1 (classes last), 1 (outputs "
                "[B, C, ...]) or None."
            )
        if class_dim == 0:
            raise ArgumentError("class_dim: is 0, the dimension of the rows; pass -1 (classes last) or 1.")
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise ArgumentTypeError(f"ignore_index: is {ignore_index!r}; pass a label such as -100, or None.")
        self.class_dim, self.ignore_index = class_dim, ignore_index
        self.register_buffer("class_weights", None if class_weights is None else _weights(class_weights))

    def extra_repr(self) -> str:
        """Which dimension holds the classes, their weights and what is ignored, for ``repr``, if that was said."""
        parts = [f"class_dim={self.class_dim}"] if self.class_dim is not None else []
        parts += [f"class_weights={positive(self.class_weights)}"] if self.class_weights is not None else []
        return ", ".join([*parts, *([f"ignore_index={self.ignore_index}"] if self.ignore_index is not None else [])])

    def arrange(self, f: Tensor, *, batch_dims: int) -> Tensor:
        """See :meth:`Likelihood.arrange`."""
        if self.class_dim in (None, -1):
            return f
        dims = f.dim() - batch_dims + 1  # of an output [B, ...] of one network
        place = self.class_dim + dims if self.class_dim < 0 else self.class_dim
        if not 0 < place < dims:
            raise ArgumentError(
                f"class_dim: is {self.class_dim}, but the network's output {tuple(f.shape[batch_dims - 1 :])} has no "
                "such dimension beside that of the rows."
            )
        return f if place == dims - 1 else f.movedim(batch_dims - 1 + place, -1)

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        return LabelDistribution(logits=f, ignore_index=self.ignore_index).to_event(f.dim() - batch_dims - 1)

    def target_event(self, event_shape: Size) -> Size:
        """See :meth:`Likelihood.target_event`."""
        if len(event_shape) == 0 or event_shape[-1] < 2:
            first = (
                " For outputs [B, C, ...] pass class_dim=1." if self.class_dim is None and len(event_shape) > 1 else ""
            )
            raise ArgumentError(
                f"likelihood: Categorical needs at least 2 logits in the last dimension of the network's output; one "
                f"output has shape {tuple(event_shape)}.{first}"
            )
        return event_shape[:-1]

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if y.is_floating_point() or y.is_complex():
            one_hot = len(event_shape) == 1 and y.shape[1:] == event_shape
            fix = "y.argmax(-1) if these are one-hot vectors or probabilities" if one_hot else "try y.long()"
            raise ArgumentTypeError(
                f"y: has dtype {y.dtype}; a Categorical likelihood needs integer labels 0..C-1, {fix}."
            )
        if self.class_dim is None and len(event_shape) > 1 and event_shape[:-1] == event_shape[1:]:
            raise ArgumentError(
                f"likelihood: an output of the network has shape {tuple(event_shape)}, so that its classes may be in "
                "the first or in the last dimension; say which: Categorical(class_dim=1) for outputs [B, C, ...] as of "
                "convolutions, Categorical(class_dim=-1) for [B, ..., C]."
            )
        num = event_shape[-1] if event_shape else 0
        # Looking at values waits for the device; fit switches Pyro's validation off after its first step.
        if num and is_validation_enabled() and y.shape[1:] == event_shape[:-1]:
            refuse_labels(y if self.ignore_index is None else y[y != self.ignore_index], num)
        if self.class_weights is not None and num and len(self.class_weights) != num:
            raise ArgumentError(
                f"class_weights: has {len(self.class_weights)} entries, and the network gives {num} logits; pass one "
                "of each class."
            )

    def entry_weight(self, y: Tensor) -> Tensor | None:
        """See :meth:`Likelihood.entry_weight`: the weight of its class."""
        if self.class_weights is None:
            return None
        y = y if self.ignore_index is None else torch.where(y == self.ignore_index, torch.zeros_like(y), y)
        return self.class_weights[y.long()]

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """See :meth:`Likelihood.pseudo_targets`: logits of 2 for the class that was seen, -2 for the others."""
        if y.dim() != 1:
            return None
        known = (y >= 0) & (y < num_outputs) & (y != (-1 if self.ignore_index is None else self.ignore_index))
        labels = torch.where(known, y, torch.zeros_like(y)).long()
        logits = _LOGIT * (2.0 * nn.functional.one_hot(labels, num_outputs).double() - 1.0)
        return torch.where(known.unsqueeze(-1), logits, torch.zeros_like(logits))

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`: a label is worth a quarter of an observation of its logits."""
        return 2.0

    def shape_advice(self, y: Tensor, event_shape: Size) -> str:
        """See :meth:`Likelihood.shape_advice`."""
        if self.class_dim is None and len(event_shape) > 1 and y.shape[1:] == event_shape[1:]:
            return " Classes come last here; for outputs [B, C, ...] pass likelihoods.Categorical(class_dim=1)."
        one_hot = len(event_shape) == 1 and y.shape[1:] == event_shape
        if one_hot:
            return " For one-hot vectors pass y.argmax(-1)."
        column = y.dim() == len(event_shape) + 1 and y.shape[1:] == (*event_shape[:-1], 1)
        return " Try y.squeeze(-1)." if column else ""


def _weights(given: Tensor | Sequence[float]) -> Tensor:
    """Weights of the classes ``[C]``."""
    weights = torch.as_tensor(given, dtype=None if isinstance(given, Tensor) else torch.get_default_dtype())
    if weights.dim() != 1 or not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ArgumentError(f"class_weights: is {given}; pass finite numbers [C], zero or more.")
    return weights.detach().clone()
