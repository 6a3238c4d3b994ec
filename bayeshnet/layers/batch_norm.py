"""Batch normalisation with several sets of running statistics and external scale and shift."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, UsageError

__all__ = ["BatchNormLayer"]

_EPS = 1e-5


class BatchNormLayer(nn.Module):
    """Batch normalisation ``y = (x - m) / sqrt(v + 1e-5) * scale + shift`` over all dimensions but the second.

    In training mode m and v are those of the batch, and a set of running statistics follows them; in evaluation mode
    they are that set. There can be several sets, one per task for example: :meth:`checkpoint_stats` opens a new one and
    ``stats_id`` selects one. Scale and shift may come from outside, so that a hypernetwork can make them.

    Which statistics normalise, by option, in training / evaluation mode:

    ========================= ======================= ==============
    tracked (default)         batch (then updated)    running
    given to ``forward``      batch (then updated)    given
    ``frozen_stats``          0 and 1                 0 and 1
    ``learnable_stats``       the learned parameters  the same
    none of these             batch                   batch
    ========================= ======================= ==============

    Given statistics that are part of a computation graph (the output of a hypernetwork) are not updated; gradients
    flow to them in evaluation mode.

    Args:
        num_features: Size of the second dimension of the inputs.
        momentum: Weight of the new batch in the running statistics.
        affine: Keep a scale and a shift, used unless others are given.
        track_running_stats: Keep running statistics.
        frozen_stats: Use mean 0 and variance 1 always; needs ``track_running_stats=False``.
        learnable_stats: Learn mean and variance by gradient descent; needs ``track_running_stats=False``.

    Raises:
        ArgumentError: If options exclude each other, or a number is out of range.

    Example:
        >>> layer = BatchNormLayer(3)
        >>> out = layer(torch.randn(8, 3))
        >>> layer.checkpoint_stats()
        >>> layer.num_stats, layer(torch.randn(8, 3), stats_id=1).shape
        (2, torch.Size([8, 3]))
    """

    _stopped: bool = False

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        frozen_stats: bool = False,
        learnable_stats: bool = False,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ArgumentError(f"num_features: is {num_features}; pass the number of channels, at least 1.")
        if momentum is None or not 0 <= momentum <= 1:  # pyright: ignore[reportUnnecessaryComparison]
            raise ArgumentError(f"momentum: is {momentum}; pass a number in [0, 1], such as the default 0.1.")
        for option, on in (("frozen_stats", frozen_stats), ("learnable_stats", learnable_stats)):
            if on and track_running_stats:
                raise ArgumentError(f"{option}: excludes tracking; pass track_running_stats=False with {option}=True.")
        if frozen_stats and learnable_stats:
            raise ArgumentError("frozen_stats, learnable_stats: statistics are frozen or learned; pass one of the two.")
        self._num_features = num_features
        self._momentum = momentum
        self._track_running_stats = track_running_stats
        self._learnable_stats = learnable_stats
        self.scale = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self._num_stats = 0
        if learnable_stats:
            self.mean_0 = nn.Parameter(torch.zeros(num_features))
            # Through softplus, so that no step of an optimiser makes the variance negative.
            self.raw_var_0 = nn.Parameter(torch.full((num_features,), 0.5413248546129181))
            self._num_stats = 1
        elif track_running_stats or frozen_stats:
            self._add_stats(torch.zeros(num_features))

    # ------------------------------------------------------------------ parameters

    @property
    def weights(self) -> list[nn.Parameter] | None:
        """The internal scale and shift, or None."""
        return None if self.scale is None or self.bias is None else [self.scale, self.bias]

    @property
    def param_shapes(self) -> list[list[int]]:
        """Shapes of scale and shift, internal or not."""
        return [[self._num_features], [self._num_features]]

    # ------------------------------------------------------------------ sets of statistics

    @property
    def follows_batch(self) -> bool:
        """Whether the layer normalises by the batch in training: its statistics are neither frozen nor learned."""
        return self._track_running_stats or self._num_stats == 0

    def stop_tracking(self, *, drop: bool = False) -> None:
        """Normalise by the batch in training, and leave the running statistics as they are.

        Args:
            drop: Forget all sets of them, so that the layer normalises by the batch in evaluation mode, too.

        Raises:
            UsageError: If the statistics are frozen or learned.
        """
        if not self.follows_batch:
            raise UsageError("stop_tracking: the statistics of this layer are frozen or learned.")
        self._stopped = True
        if drop:
            for i in range(self._num_stats):
                delattr(self, f"mean_{i}")
                delattr(self, f"var_{i}")
            self._num_stats, self._track_running_stats = 0, False

    @property
    def num_stats(self) -> int:
        """Number of sets of statistics that the layer keeps."""
        return self._num_stats

    def _add_stats(self, like: Tensor) -> None:
        self.register_buffer(f"mean_{self._num_stats}", torch.zeros_like(like))
        self.register_buffer(f"var_{self._num_stats}", torch.ones_like(like))
        self._num_stats += 1

    def checkpoint_stats(self, device: torch.device | str | int | None = None) -> None:
        """Open a new set of running statistics (mean 0, variance 1); the sets so far are kept.

        Args:
            device: Where to keep it; where the last one is by default.

        Raises:
            UsageError: If the layer does not track statistics.
        """
        if not self._track_running_stats:
            raise UsageError(
                "checkpoint_stats: this layer does not track running statistics; build it with "
                "track_running_stats=True."
            )
        like = self.get_stats()[0]
        self._add_stats(like if device is None else like.to(device))

    def get_stats(self, stats_id: int | None = None) -> tuple[Tensor, Tensor]:
        """A set of statistics: mean and variance, ``[num_features]`` each.

        Args:
            stats_id: Number of the set; the newest by default.

        Raises:
            ArgumentError: If there is no such set.
            UsageError: If the layer keeps no statistics at all.
        """
        if self._num_stats == 0:
            raise UsageError(
                "get_stats: this layer keeps no statistics; build it with track_running_stats=True or pass "
                "running_mean and running_var to forward."
            )
        index = self._num_stats - 1 if stats_id is None else operator.index(stats_id)
        if not 0 <= index < self._num_stats:
            raise ArgumentError(
                f"stats_id: {index} is not in 0..{self._num_stats - 1}, the sets that exist; checkpoint_stats() opens "
                "a new one."
            )
        if self._learnable_stats:
            return self.mean_0, F.softplus(self.raw_var_0)
        return getattr(self, f"mean_{index}"), getattr(self, f"var_{index}")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Sets opened by checkpoint_stats before saving do not exist in a fresh layer.
        while self._track_running_stats and f"{prefix}mean_{self._num_stats}" in state_dict:
            self._add_stats(self.get_stats()[0])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        inputs: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        stats_id: int | None = None,
    ) -> Tensor:
        """Normalise.

        Args:
            inputs: ``[B, num_features, ...]``.
            running_mean: Mean to use in place of the layer's own statistics ``[num_features]``; with ``running_var``.
            running_var: Variance to use.
            weight: Scale ``[num_features]``; by default the internal one, none without ``affine``.
            bias: Shift ``[num_features]``; likewise.
            stats_id: Number of the set of statistics; needed if there are several. Ignored if statistics are given.

        Returns:
            A tensor of the shape of ``inputs``.

        Raises:
            ArgumentError: If shapes do not fit, only one statistic is given, or ``stats_id`` is missing or out of
                range.
        """
        if inputs.dim() < 2 or inputs.shape[1] != self._num_features:
            raise ArgumentError(
                f"inputs: has shape {tuple(inputs.shape)}; this layer takes [B, {self._num_features}, ...]."
            )
        weight = self.scale if weight is None else weight
        bias = self.bias if bias is None else bias
        given = running_mean is not None and running_var is not None
        if not given:
            if running_mean is not None or running_var is not None:
                raise ArgumentError("running_mean, running_var: only one of the two was given; pass both or none.")
            if self._num_stats > 0:
                running_mean, running_var = self._select(stats_id)
        if running_mean is None or running_var is None:
            return F.batch_norm(inputs, None, None, weight, bias, training=True, eps=_EPS)
        if not given and not self._track_running_stats:  # frozen or learned
            return _normalise(inputs, running_mean, running_var, weight, bias)
        if not self.training:
            return _normalise(inputs, running_mean, running_var, weight, bias)
        if self._stopped or running_mean.requires_grad or running_var.requires_grad:
            return F.batch_norm(inputs, None, None, weight, bias, training=True, eps=_EPS)
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, True, self._momentum, _EPS)

    def _select(self, stats_id: int | None) -> tuple[Tensor, Tensor]:
        if stats_id is None and self._num_stats > 1:
            raise ArgumentError(
                f"stats_id: is needed, because this layer has {self._num_stats} sets of statistics; pass one of "
                f"0..{self._num_stats - 1} (as `condition` of the network)."
            )
        return self.get_stats(stats_id)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self._num_features}, momentum={self._momentum}, num_stats={self._num_stats}"


def _normalise(inputs: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if not (mean.requires_grad or var.requires_grad):
        return F.batch_norm(inputs, mean, var, weight, bias, training=False, eps=_EPS)
    # PyTorch's function has no derivative with respect to the statistics.
    shape = (-1,) + (1,) * (inputs.dim() - 2)
    normed = (inputs - mean.view(shape)) * torch.rsqrt(var + _EPS).view(shape)
    if weight is not None:
        normed = normed * weight.view(shape)
    return normed if bias is None else normed + bias.view(shape)
