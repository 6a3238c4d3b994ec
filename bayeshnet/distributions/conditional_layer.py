r"""The weights of a linear layer given its inputs at inducing points: exact linear-Gaussian conditionals.

A layer with weights ``W [q, out]`` (the bias among them, in whitened coordinates, prior N(0, I)) is observed at m
pseudo-inputs with features ``Psi [m, q]``, pseudo-targets ``V [m, out]`` and precisions ``Lambda [m]`` (global inducing
points, Ober & Aitchison, ICML 2021, https://arxiv.org/abs/2005.08140). With a diagonal pseudo-prior N(M, diag(r^2)) and
a factor c per output,

.. math::
    A = \Lambda^{1/2} \Psi\, \mathrm{diag}(r), \quad P = I + A^\top A, \quad
    W = M + \mathrm{diag}(r)\,\bigl(P^{-1} A^\top \Lambda^{1/2} (V - \Psi M) + \varepsilon\, \mathrm{diag}(c)\bigr),
    \quad \varepsilon \sim N(0, P^{-1})

for each column. ``M = 0, r = 1, c = 1`` is the posterior under the prior and the pseudo-observations. Where m < q the
same is computed from ``C = I + A A^T`` (Matheron's rule), of m rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeshnet.errors import DensityError

__all__ = ["LayerConditional"]

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class LayerConditional:
    """The Gaussian over a layer's weights, for each of S samples of what comes before it.

    All algebra is in the dtype of the tensors given; use float64 (a Gram matrix formed in float32 need not be positive
    definite).

    Attributes:
        whitened: A, ``[S, G, m, q]``; G is 1, or out where each output has a matrix of its own.
        root: Cholesky factor of P ``[S, G, q, q]``, or of C ``[S, G, m, m]`` where m < q.
        mean: ``P^-1 A^T Lambda^(1/2) (V - Psi M)``, ``[S, G, q, out / G]``.
        offset: M, ``[G, q, out / G]``.
        scale: r, ``[q]``.
        spread: c, ``[G, 1, out / G]``.
    """

    whitened: Tensor
    root: Tensor
    mean: Tensor
    offset: Tensor
    scale: Tensor
    spread: Tensor

    @classmethod
    def of(
        cls,
        features: Tensor,
        targets: Tensor,
        log_precision: Tensor,
        *,
        offset: Tensor,
        log_scale: Tensor,
        log_spread: Tensor,
    ) -> LayerConditional:
        """Condition on pseudo-observations.

        Args:
            features: Psi, ``[S, m, q]``, or ``[S, out, m, q]`` if they differ between outputs.
            targets: V, ``[m, out]`` or ``[S, m, out]``.
            log_precision: Logarithm of Lambda, ``[m]``.
            offset: M, ``[q, out]``.
            log_scale: Logarithm of r, ``[q]``.
            log_spread: Logarithm of c, ``[out]``.

        Raises:
            RuntimeError: If the matrix is not positive definite: features or precisions are NaN or infinite.
        """
        shared = features.dim() == 3
        psi = features.unsqueeze(1) if shared else features
        # [..., G, m, out / G]
        columns = targets.unsqueeze(-3) if shared else targets.transpose(-1, -2).unsqueeze(-1)
        m_offset = offset.unsqueeze(0) if shared else offset.t().unsqueeze(-1)
        root_precision = (0.5 * log_precision).exp().unsqueeze(-1)
        scale = log_scale.exp()
        whitened = root_precision * psi * scale
        residual = root_precision * (columns - psi @ m_offset)
        num, size = whitened.shape[-2:]
        transposed = whitened.transpose(-1, -2)
        gram = whitened @ transposed if num < size else transposed @ whitened
        gram = gram + torch.eye(min(num, size), dtype=gram.dtype, device=gram.device)
        root, info = torch.linalg.cholesky_ex(gram)
        if bool(info.any()):
            raise DensityError(
                "The matrix of a conditional layer is not positive definite: features or precisions of its inducing "
                "points became NaN or infinite. Lower the learning rate, or clip gradients (fit(..., clip_norm=10.0))."
            )
        if num < size:
            mean = transposed @ torch.cholesky_solve(residual, root)
        else:
            mean = torch.cholesky_solve(transposed @ residual, root)
        spread = (log_spread.unsqueeze(0) if shared else log_spread.unsqueeze(-1)).exp().unsqueeze(1)
        return cls(whitened, root, mean, m_offset, scale, spread)

    # ------------------------------------------------------------------ sampling and density

    @property
    def _dual(self) -> bool:
        return self.whitened.shape[-2] < self.whitened.shape[-1]

    def rsample(self) -> Tensor:
        """Draw weights ``[S, q, out]``, one for each sample of what comes before."""
        noise = torch.randn_like(self.mean)
        if self._dual:
            a = self.whitened
            extra = torch.randn(*a.shape[:-1], noise.shape[-1], dtype=noise.dtype, device=noise.device)
            noise = noise - a.transpose(-1, -2) @ torch.cholesky_solve(a @ noise - extra, self.root)
        else:
            noise = torch.linalg.solve_triangular(self.root.transpose(-1, -2), noise, upper=True)
        return self._join(self.offset + self.scale.unsqueeze(-1) * (self.mean + noise * self.spread))

    def log_prob(self, weights: Tensor) -> Tensor:
        """Log-density ``[S]`` of weights ``[S, q, out]``."""
        columns = weights.unsqueeze(1) if self.whitened.shape[1] == 1 else weights.transpose(1, 2).unsqueeze(-1)
        noise = ((columns - self.offset) / self.scale.unsqueeze(-1) - self.mean) / self.spread
        quadratic = noise.square().sum((-3, -2, -1)) + (self.whitened @ noise).square().sum((-3, -2, -1))
        size, out = weights.shape[-2:]
        per_group = out // self.whitened.shape[1]
        log_det = 2.0 * per_group * self.root.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        scales = 2.0 * (out * self.scale.log().sum() + size * self.spread.log().sum())
        return -0.5 * (quadratic + size * out * _LOG_2PI - log_det + scales)

    def _join(self, columns: Tensor) -> Tensor:
        """From ``[S, G, q, out / G]`` to ``[S, q, out]``."""
        return columns.squeeze(1) if columns.shape[1] == 1 else columns.squeeze(-1).transpose(1, 2)
