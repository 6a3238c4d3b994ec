"""Spectral normalisation of weights that are passed as arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError
from bayeshnet.layers.torch_modes import under_functorch

__all__ = ["SpectralNorm", "leading_vectors"]

_EPS = 1e-12


class SpectralNorm(nn.Module):
    """Divide weights by their largest singular value (Miyato et al. 2018, https://arxiv.org/abs/1802.05957).

    ``W / sigma(W)`` with ``sigma(W) = u^T W v``, u and v being the leading singular vectors, held constant when
    differentiating (which gives the exact gradient of sigma). A kernel is flattened to ``[out_channels, -1]``.

    Unlike ``torch.nn.utils.parametrizations.spectral_norm`` it works on tensors rather than on a module, so that
    external weights, ``torch.func.vmap`` and pickling work and the raw weights stay what the network registers.

    Weights that the module follows (``update=True``: the internal ones, in training) get one step of power iteration
    per call from vectors kept in buffers; the first call starts at the exact vectors. For all other weights sigma is
    exact.

    Args:
        shapes: Shapes of the weights, each with at least two dimensions.
        transposed: Whether the weights are kernels of transposed convolutions (``[in, out, ...]``): one value for
            all, or one for each.

    Raises:
        ArgumentError: If a shape has fewer than two dimensions or the lengths differ.

    Example:
        >>> norm = SpectralNorm([[4, 3]])
        >>> (weight,) = norm.normalize([torch.randn(4, 3)], update=False)
        >>> round(torch.linalg.matrix_norm(weight, 2).item(), 4)
        1.0
    """

    def __init__(self, shapes: Sequence[Sequence[int]], *, transposed: bool | Sequence[bool] = False) -> None:
        super().__init__()
        self._shapes = [tuple(shape) for shape in shapes]
        flags = [transposed] * len(self._shapes) if isinstance(transposed, bool) else list(transposed)
        if len(flags) != len(self._shapes):
            raise ArgumentError(
                f"transposed: has {len(flags)} entries for {len(self._shapes)} shapes; pass one value, or one for each."
            )
        self._transposed = flags
        for i, (shape, flag) in enumerate(zip(self._shapes, flags, strict=True)):
            if len(shape) < 2:
                raise ArgumentError(
                    f"shapes[{i}]: {list(shape)} is no matrix or kernel; spectral norm takes at least two dimensions."
                )
            # All zeros until the first update: nothing random, so that building a network draws no random numbers here.
            self.register_buffer(f"v_{i}", torch.zeros(math.prod(shape) // shape[1 if flag else 0]))

    def normalize(self, weights: Sequence[Tensor], *, update: bool) -> list[Tensor]:
        """Divide each weight by its largest singular value.

        Args:
            weights: One tensor per shape.
            update: Advance the iteration vectors: True for internal weights in training mode, else False. Inside a
                transform of ``torch.func`` they stay as they are.

        Returns:
            The normalised tensors; the arguments are not changed.

        Raises:
            ArgumentError: If number or shapes differ from those announced.

        Example:
            >>> norm = SpectralNorm([[2, 2]])
            >>> norm.normalize([torch.tensor([[3.0, 0.0], [0.0, 4.0]])], update=True)
            [tensor([[0.7500, 0.0000],
                    [0.0000, 1.0000]])]
        """
        if [tuple(weight.shape) for weight in weights] != self._shapes:
            raise ArgumentError(
                f"weights: have shapes {[list(w.shape) for w in weights]}; expected {[list(s) for s in self._shapes]}."
            )
        # Inside torch.func the weight may be a wrapped tensor, and buffers cannot take those.
        update = update and not under_functorch()
        normed: list[Tensor] = []
        for i, weight in enumerate(weights):
            matrix = (weight.transpose(0, 1) if self._transposed[i] else weight).flatten(1)
            with torch.no_grad():
                u, v = self._follow(i, matrix.detach()) if update else leading_vectors(matrix.detach())
            sigma = torch.dot(u, torch.mv(matrix, v))
            normed.append(weight / sigma.clamp_min(_EPS))
        return normed

    def _follow(self, i: int, matrix: Tensor) -> tuple[Tensor, Tensor]:
        kept: Tensor = getattr(self, f"v_{i}")
        v = kept.to(matrix.dtype)
        if not v.any():
            v = leading_vectors(matrix)[1]
        u = F.normalize(torch.mv(matrix, v), dim=0, eps=_EPS)
        v = F.normalize(torch.mv(matrix.T, u), dim=0, eps=_EPS)
        # The graph keeps v and not the buffer, which changes before the backward pass if there are two forward passes.
        kept.copy_(v)
        return u, v


def leading_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors u ``[m]`` and v ``[n]`` that belong to the largest singular value of a matrix ``[m, n]``.

    From the eigenvectors of the smaller Gram matrix: exact (the largest eigenvalue does not suffer from squaring), of
    cost ``m n min(m, n)``, and, unlike an iteration up to convergence, possible under ``torch.func.vmap``.

    Example:
        >>> u, v = leading_vectors(torch.tensor([[0.0, 5.0], [0.0, 0.0], [1.0, 0.0]]))
        >>> u.abs(), v.abs()
        (tensor([1., 0., 0.]), tensor([0., 1.]))
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    rows = matrix if tall else matrix.T
    # Scaled, so that squares neither overflow nor vanish.
    rows = rows / rows.abs().amax().clamp_min(torch.finfo(rows.dtype).tiny)
    v = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    u = F.normalize(torch.mv(rows, v), dim=0, eps=_EPS)
    return (u, v) if tall else (v, u)
