"""Modulation of activations by gains and shifts that depend on a context."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, UsageError

__all__ = ["ContextModLayer"]


class ContextModLayer(nn.Module):
    """Element-wise modulation ``y = x * g + s`` with a gain g and a shift s.

    They are the layer's own, checkpoints of these (one per task, say), or passed to :meth:`forward`, then possibly
    different for each sample of the batch.

    Args:
        num_features: Shape of gain and shift without batch dimension: a size, or for convolutions ``(C, 1, 1)``.
        no_weights: Do not keep gain and shift.
        no_gains: Only shift.
        no_shifts: Only scale.
        apply_gain_offset: Multiply by ``1 + g``, so that all-zero weights do nothing.
        apply_gain_softplus: Multiply by the positive ``softplus(c g) / c``.
        softplus_scale: The constant c.

    Raises:
        ArgumentError: If options exclude each other.

    Example:
        >>> layer = ContextModLayer(3, no_weights=True)
        >>> layer(torch.ones(2, 3), weights=[torch.tensor([1.0, 2.0, 3.0]), torch.ones(2, 3)])
        tensor([[2., 3., 4.],
                [2., 3., 4.]])
    """

    gain: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(
        self,
        num_features: int | Sequence[int],
        no_weights: bool = False,
        no_gains: bool = False,
        no_shifts: bool = False,
        apply_gain_offset: bool = False,
        apply_gain_softplus: bool = False,
        softplus_scale: float = 1.0,
    ) -> None:
        super().__init__()
        shape = (num_features,) if isinstance(num_features, int) else tuple(num_features)
        if not shape or any(size < 1 for size in shape):
            raise ArgumentError(f"num_features: is {num_features}; pass a positive size, or sizes such as (16, 1, 1).")
        if no_gains and no_shifts:
            raise ArgumentError("no_gains, no_shifts: nothing is left to modulate; set at most one of the two.")
        if apply_gain_offset and apply_gain_softplus:
            raise ArgumentError("apply_gain_offset, apply_gain_softplus: exclude each other; set at most one of them.")
        if softplus_scale <= 0:
            raise ArgumentError(f"softplus_scale: is {softplus_scale}; pass a positive number.")
        self._features = shape
        self._no_weights = no_weights
        self._no_gains = no_gains
        self._no_shifts = no_shifts
        self._gain_offset = apply_gain_offset
        self._gain_softplus = apply_gain_softplus
        self._softplus_scale = softplus_scale
        self._num_ckpts = 0
        self.gain = None if no_weights or no_gains else nn.Parameter(torch.empty(shape))
        self.shift = None if no_weights or no_shifts else nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Let the layer start over: shifts 0, gains 1 (0 if an offset is added to them)."""
        for param in self.weights or ():
            param.fill_(self._neutral(param))

    # ------------------------------------------------------------------ description

    @property
    def weights(self) -> list[nn.Parameter] | None:
        """The internal gain and shift, as far as they exist, or None."""
        return [param for param in (self.gain, self.shift) if param is not None] or None

    @property
    def param_shapes(self) -> list[list[int]]:
        """Shape of each of gain and shift that the layer uses, internal or not."""
        return [list(self._features) for _ in self.param_shapes_meta]

    @property
    def param_shapes_meta(self) -> list[str]:
        """``"gain"`` or ``"shift"`` for each entry of :attr:`param_shapes`."""
        return ["gain"] * self.has_gains + ["shift"] * self.has_shifts

    @property
    def has_gains(self) -> bool:
        """Whether the layer multiplies."""
        return not self._no_gains

    @property
    def has_shifts(self) -> bool:
        """Whether the layer adds."""
        return not self._no_shifts

    @property
    def gain_offset_applied(self) -> bool:
        """Whether 1 is added to gains."""
        return self._gain_offset

    @property
    def gain_softplus_applied(self) -> bool:
        """Whether gains go through a softplus."""
        return self._gain_softplus

    @property
    def num_ckpts(self) -> int:
        """Number of checkpoints."""
        return self._num_ckpts

    # ------------------------------------------------------------------ forward

    def forward(
        self, x: Tensor, weights: Sequence[Tensor] | None = None, ckpt_id: int | None = None, bs_dim: int = 0
    ) -> Tensor:
        """Modulate.

        Args:
            x: Activations ``[B, *features]``; further dimensions between are broadcast over.
            weights: Gain and shift (one of them with ``no_gains`` or ``no_shifts``), ``[*features]`` each, or
                ``[B, *features]`` for separate ones per sample.
            ckpt_id: Checkpoint to use. Ignored if ``weights`` are given.
            bs_dim: Batch dimension of ``x``.

        Returns:
            A tensor of the shape of ``x``.

        Raises:
            ArgumentError: If weights are missing, or their number or shapes do not fit.
        """
        if weights is None:
            if self._no_weights:
                raise ArgumentError(
                    f"weights: this layer keeps none; pass {' and '.join(self.param_shapes_meta)} of shape "
                    f"{list(self._features)}."
                )
            pair = self.get_weights(ckpt_id)
            weights = [param for param in pair if param is not None]
        if len(weights) != len(self.param_shapes_meta):
            raise ArgumentError(
                f"weights: {len(weights)} tensors were given; this layer takes {' and '.join(self.param_shapes_meta)}."
            )
        tensors = dict(zip(self.param_shapes_meta, weights, strict=True))
        if "gain" in tensors:
            x = x * self.preprocess_gain(self._fit("gain", tensors["gain"], x, bs_dim))
        if "shift" in tensors:
            x = x + self._fit("shift", tensors["shift"], x, bs_dim)
        return x

    def _fit(self, name: str, tensor: Tensor, x: Tensor, bs_dim: int) -> Tensor:
        shape = tuple(tensor.shape)
        if shape == self._features:
            return tensor
        batch = x.shape[bs_dim]
        if shape != (batch, *self._features):
            raise ArgumentError(
                f"weights: the {name} has shape {list(shape)}; expected {list(self._features)}, or "
                f"{[batch, *self._features]} for one per sample."
            )
        lead = [1] * (x.dim() - len(self._features))
        lead[bs_dim] = batch
        return tensor.view(*lead, *self._features)

    def preprocess_gain(self, gain: Tensor) -> Tensor:
        """The factor that a gain stands for (offset or softplus applied)."""
        if self._gain_softplus:
            return F.softplus(gain * self._softplus_scale) / self._softplus_scale
        return gain + 1.0 if self._gain_offset else gain

    # ------------------------------------------------------------------ checkpoints

    def checkpoint_weights(self, device: torch.device | str | int | None = None, no_reinit: bool = False) -> None:
        """Keep a copy of gain and shift as buffers, and start over with weights that do nothing.

        Args:
            device: Where to keep the copy; where the weights are by default.
            no_reinit: Let the weights keep their values.

        Raises:
            UsageError: If the layer keeps no weights.
        """
        self._own_weights("checkpoint_weights")
        for name, param in (("gain", self.gain), ("shift", self.shift)):
            if param is not None:
                kept = param.detach().clone()
                self.register_buffer(f"{name}_ckpt_{self._num_ckpts}", kept if device is None else kept.to(device))
        self._num_ckpts += 1
        if not no_reinit:
            self.reset_parameters()

    def get_weights(self, ckpt_id: int | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Gain and shift, None where the layer has none.

        Args:
            ckpt_id: Number of a checkpoint; the current weights by default and for ``num_ckpts``.

        Raises:
            ArgumentError: If there is no such checkpoint.
        """
        if ckpt_id is None or operator.index(ckpt_id) == self._num_ckpts:
            return self.gain, self.shift
        if not 0 <= operator.index(ckpt_id) < self._num_ckpts:
            raise ArgumentError(
                f"ckpt_id: {ckpt_id} is not in 0..{self._num_ckpts}; {self._num_ckpts} checkpoints exist, and the "
                "number after the last one means the current weights."
            )
        return getattr(self, f"gain_ckpt_{ckpt_id}", None), getattr(self, f"shift_ckpt_{ckpt_id}", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Checkpoints made before saving do not exist in a fresh layer.
        while any(f"{prefix}{name}_ckpt_{self._num_ckpts}" in state_dict for name in ("gain", "shift")):
            for name in ("gain", "shift"):
                saved = state_dict.get(f"{prefix}{name}_ckpt_{self._num_ckpts}")
                if saved is not None:
                    like = getattr(self, name)
                    self.register_buffer(
                        f"{name}_ckpt_{self._num_ckpts}", torch.empty_like(saved if like is None else like.detach())
                    )
            self._num_ckpts += 1
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ------------------------------------------------------------------ initialisation

    def _own_weights(self, method: str) -> list[nn.Parameter]:
        if self.weights is None:
            raise UsageError(f"{method}: this layer keeps no weights; build it with no_weights=False.")
        return self.weights

    @torch.no_grad()
    def normal_init(self, std: float = 1.0) -> None:
        """Draw gains around their neutral value, and shifts around 0, from a normal distribution."""
        for param in self._own_weights("normal_init"):
            param.copy_(nn.init.normal_(torch.empty_like(param), std=std) + self._neutral(param))

    @torch.no_grad()
    def uniform_init(self, width: float = 1.0) -> None:
        """Draw gains around their neutral value, and shifts around 0, uniformly within ``width`` of it."""
        for param in self._own_weights("uniform_init"):
            param.copy_(nn.init.uniform_(torch.empty_like(param), -width, width) + self._neutral(param))

    @torch.no_grad()
    def sparse_init(self, sparsity: float = 0.8) -> None:
        """Let a random share ``sparsity`` of the gains block their features and the others do nothing; shifts are 0.

        Raises:
            ArgumentError: If ``sparsity`` is not in [0, 1].
        """
        if not 0 <= sparsity <= 1:
            raise ArgumentError(f"sparsity: is {sparsity}; pass the share of zeros, a number in [0, 1].")
        self._own_weights("sparse_init")
        self.reset_parameters()
        if self.gain is not None:
            blocked = torch.randperm(self.gain.numel(), device=self.gain.device)[: int(self.gain.numel() * sparsity)]
            self.gain.view(-1)[blocked] -= 1.0

    def _neutral(self, param: Tensor) -> float:
        return 1.0 if param is self.gain and not self._gain_offset else 0.0

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{list(self._features)}, {' and '.join(self.param_shapes_meta)}"
