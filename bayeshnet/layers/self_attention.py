"""Self-attention between the pixels of an image, as SAGAN uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.layers.spectral_norm import SpectralNorm

__all__ = ["SelfAttnLayerV2", "self_attention", "self_attention_shapes"]

_KERNELS = (0, 2, 4)  # query, key and value among the seven tensors


def self_attention_shapes(in_dim: int) -> list[tuple[int, ...]]:
    """Shapes of the seven tensors of a self-attention unit, in the order in which they are passed.

    Weight and bias of the query, of the key (``max(1, C // 8)`` channels each) and of the value (C channels), then the
    residual scale gamma.

    Args:
        in_dim: Number of channels C of the image.

    Raises:
        ArgumentError: If ``in_dim`` is below 1.
        ArgumentTypeError: If it is no integer.

    Example:
        >>> self_attention_shapes(16)
        [(2, 16, 1, 1), (2,), (2, 16, 1, 1), (2,), (16, 16, 1, 1), (16,), (1,)]
    """
    if isinstance(in_dim, bool) or not isinstance(in_dim, int):
        raise ArgumentTypeError(f"in_dim: is {kind_of(in_dim)}; pass the number of channels, an int.")
    if in_dim < 1:
        raise ArgumentError(f"in_dim: is {in_dim}; pass the number of channels, at least 1.")
    # At least one channel, so that narrow images have attention too.
    narrow = max(1, in_dim // 8)
    kernels = [(narrow, in_dim, 1, 1), (narrow, in_dim, 1, 1), (in_dim, in_dim, 1, 1)]
    return [*(shape for kernel in kernels for shape in (kernel, kernel[:1])), (1,)]


def self_attention(x: Tensor, weights: Sequence[Tensor], *, ret_attention: bool = False) -> Any:
    """Add to each pixel a weighted mean of the values of all pixels (SAGAN).

    Zhang et al. 2018, https://arxiv.org/abs/1805.08318. With query ``q_i``, key ``k_j`` and value ``v_j`` of the N
    pixels, each a linear function of the pixel's channels, ``A_ij = softmax_j(q_i . k_j)`` and
    ``out_i = gamma * sum_j A_ij v_j + x_i``.

    Args:
        x: Images ``[B, C, H, W]``.
        weights: The seven tensors of :func:`self_attention_shapes`.
        ret_attention: Return A too.

    Returns:
        A tensor of the shape of ``x``; with ``ret_attention`` the pair of it and A, ``[B, N, N]`` with ``N = H * W``,
        whose rows sum to 1.

    Raises:
        ArgumentError: If shapes do not fit.

    Example:
        >>> x = torch.randn(2, 4, 3, 5)
        >>> weights = [torch.randn(shape) for shape in self_attention_shapes(4)]
        >>> out, attention = self_attention(x, weights, ret_attention=True)
        >>> out.shape, attention.shape
        (torch.Size([2, 4, 3, 5]), torch.Size([2, 15, 15]))
    """
    if x.dim() != 4:
        raise ArgumentError(f"x: has shape {list(x.shape)}; pass images [B, C, H, W].")
    _check("weights", weights, self_attention_shapes(x.shape[1]))
    query_w, query_b, key_w, key_b, value_w, value_b, gamma = weights
    pixels = x.flatten(2)
    # Products rather than convolutions: for 1x1 kernels they are the same, and vmap makes batched products of them.
    query, key, value = (
        kernel.flatten(1) @ pixels + bias.unsqueeze(1)
        for kernel, bias in ((query_w, query_b), (key_w, key_b), (value_w, value_b))
    )
    attention = _softmax(query.transpose(1, 2) @ key)
    out = gamma * (value @ attention.transpose(1, 2)).unflatten(2, x.shape[2:]) + x
    return (out, attention) if ret_attention else out


def _softmax(scores: Tensor) -> Tensor:
    if forward_ad.unpack_dual(scores).tangent is None:
        return torch.softmax(scores, dim=-1)
    # PyTorch's forward-mode rule of softmax writes in place what a backward pass through it needs.
    exps = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    return exps / exps.sum(-1, keepdim=True)


class SelfAttnLayerV2(nn.Module):
    """The self-attention unit of SAGAN (:func:`self_attention`), with weights of its own or from outside.

    Seven tensors: weight and bias of query, key and value, and the residual scale gamma. Gamma starts at 0, so that the
    unit starts as the identity; the kernels start with PyTorch's default for convolutions.

    Args:
        in_dim: Number of channels of the images.
        use_spectral_norm: Divide each of the three kernels by its largest singular value.
        no_weights: Keep none of the seven tensors; ``forward`` receives them.
        init_weights: Initial values of the seven tensors.

    Raises:
        ArgumentError: If ``in_dim`` is below 1, or ``init_weights`` do not fit or are given with ``no_weights``.
        ArgumentTypeError: If ``in_dim`` is no integer.

    Example:
        >>> layer = SelfAttnLayerV2(8, False)
        >>> x = torch.randn(2, 8, 4, 4)
        >>> torch.equal(layer(x), x)
        True
    """

    def __init__(
        self,
        in_dim: int,
        use_spectral_norm: bool,
        no_weights: bool = False,
        init_weights: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._shapes = self_attention_shapes(in_dim)
        if no_weights and init_weights is not None:
            raise ArgumentError("init_weights: the layer keeps no weights with no_weights=True; pass one of the two.")
        self.weights = None if no_weights else nn.ParameterList(nn.Parameter(torch.empty(s)) for s in self._shapes)
        self.spectral_norm = SpectralNorm([self._shapes[i] for i in _KERNELS]) if use_spectral_norm else None
        if self.weights is not None:
            self._reset(self.weights)
        if init_weights is not None:
            _check("init_weights", init_weights, self._shapes)
            with torch.no_grad():
                for param, value in zip(self.weights or (), init_weights, strict=True):
                    param.copy_(value)

    def _reset(self, params: nn.ParameterList) -> None:
        # Kernel and bias are alike in this: kaiming_uniform_(a=sqrt(5)) is U(-1, 1) / sqrt(fan-in) too.
        bound = 1 / math.sqrt(self._shapes[0][1])
        for param in list(params)[:-1]:
            nn.init.uniform_(param, -bound, bound)
        nn.init.zeros_(params[-1])

    @property
    def param_shapes(self) -> list[list[int]]:
        """Shapes of the seven tensors, internal or not."""
        return [list(shape) for shape in self._shapes]

    @property
    def weight_shapes(self) -> list[list[int]]:
        """The reference API's name of :attr:`param_shapes`."""
        return self.param_shapes

    def forward(
        self,
        x: Tensor,
        ret_attention: bool = False,
        weights: Sequence[Tensor] | None = None,
        dWeights: Sequence[Tensor] | None = None,
    ) -> Any:
        """Attend.

        Args:
            x: Images ``[B, in_dim, H, W]``.
            ret_attention: Return the attention too.
            weights: The seven tensors; the internal ones by default.
            dWeights: Seven tensors that are added to the weights.

        Returns:
            A tensor of the shape of ``x``; with ``ret_attention`` the pair of it and the attention ``[B, N, N]``, whose
            rows sum to 1.

        Raises:
            ArgumentError: If shapes do not fit, or the layer keeps no weights and none are given.

        Example:
            >>> layer = SelfAttnLayerV2(8, False, no_weights=True)
            >>> weights = [torch.randn(shape) for shape in layer.param_shapes]
            >>> layer(torch.randn(2, 8, 4, 4), weights=weights).shape
            torch.Size([2, 8, 4, 4])
        """
        if x.dim() != 4 or x.shape[1] != self._shapes[0][1]:
            raise ArgumentError(f"x: has shape {list(x.shape)}; this layer takes [B, {self._shapes[0][1]}, H, W].")
        if weights is None:
            if self.weights is None:
                raise ArgumentError(f"weights: this layer keeps none; pass tensors of the shapes {self.param_shapes}.")
            used = list(self.weights)
        else:
            _check("weights", weights, self._shapes)
            used = list(weights)
        if dWeights is not None:
            _check("dWeights", dWeights, self._shapes)
            used = [weight + change for weight, change in zip(used, dWeights, strict=True)]
        if self.spectral_norm is not None:
            # The iteration follows the internal weights only; whatever else is used gets its exact norm.
            own = weights is None and dWeights is None
            kernels = self.spectral_norm.normalize([used[i] for i in _KERNELS], update=self.training and own)
            for i, kernel in zip(_KERNELS, kernels, strict=True):
                used[i] = kernel
        return self_attention(x, used, ret_attention=ret_attention)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self._shapes[0][1]}"


def _check(name: str, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    given = [tuple(tensor.shape) for tensor in tensors]
    if given != list(shapes):
        raise ArgumentError(
            f"{name}: have shapes {[list(s) for s in given]}; expected {[list(s) for s in shapes]} (weight and bias of "
            "query, key and value, then gamma)."
        )
