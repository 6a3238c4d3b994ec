r"""The weights of a linear layer given its inputs at inducing points: exact linear-Gaussian conditionals.

A layer with weights ``W [q, out]`` (the bias among them, in whitened coordinates: prior N(0, I), the weights proper
are ``s W``) is observed at m pseudo-inputs with features ``F [m, q]``, ``Psi = F diag(s)``, pseudo-targets
``V [m, out]`` and precisions ``Lambda [m]`` (global inducing points, Ober & Aitchison, ICML 2021,
https://arxiv.org/abs/2005.08140). With a diagonal pseudo-prior N(M, diag(r^2)) and a factor c per output,

.. math::
    A = \Lambda^{1/2} \Psi\, \mathrm{diag}(r), \quad P = I + A^\top A, \quad
    W = M + \mathrm{diag}(r)\,\bigl(P^{-1} A^\top \Lambda^{1/2} (V - \Psi M) + \varepsilon\, \mathrm{diag}(c)\bigr),
    \quad \varepsilon \sim N(0, P^{-1})

for each column. ``M = 0, r = 1, c = 1`` is the posterior under the prior and the pseudo-observations. Where m < q the
same is computed from ``C = I + A A^T`` (Matheron's rule), of m rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeshnet.entropy.protocol import BOUND_THE_GRADIENT
from bayeshnet.errors import DensityError
from bayeshnet.normal_density import LOG_2PI

__all__ = ["LARGEST", "LayerConditional"]


# P has no eigenvalue below 1, but the error of each is about 2e-16 of the largest entry, and the mean has that error
# relative to its size, which may be thousands of standard deviations. Up to this size of the entries log q is then
# exact to 1e-5; above it the root comes from A and not from A^T A.
LARGEST = 1e7


@dataclass(frozen=True, slots=True)
class LayerConditional:
    """The Gaussian over a layer's weights, for each of S samples of what comes before it.

    All algebra is in the dtype of the tensors given; use float64 (a Gram matrix formed in float32 need not be positive
    definite).

    Attributes:
        features: ``Lambda^(1/2) F``, ``[S, 1, m, q]``.
        factor: ``s r``, ``[G, q, 1]``; G is 1, or out where the prior scales differ between outputs.
        root: Cholesky factor of P ``[S, G, q, q]``, or of C ``[S, G, m, m]`` where m < q (and P not near singular).
        mean: ``P^-1 A^T Lambda^(1/2) (V - Psi M)``, ``[S, G, q, out / G]``.
        offset: M, ``[G, q, out / G]``.
        scale: r, ``[q, 1]``.
        spread: c, ``[G, 1, out / G]``.
        residual: ``Lambda^(1/2) (V - Psi M)``, ``[S or 1, G, m, out / G]``.
        log_precision: Logarithm of Lambda, ``[m]`` or ``[S, m]``.

    Example:
        >>> free = {"offset": torch.zeros(4, 2), "log_scale": torch.zeros(4), "log_spread": torch.zeros(2)}
        >>> layer = LayerConditional.of(
        ...     torch.randn(3, 10, 4), torch.randn(10, 2), torch.zeros(10), prior_scale=torch.ones(1, 4), **free
        ... )
        >>> weights, log_prob = layer.rsample()
        >>> weights.shape, torch.allclose(layer.log_prob(weights), log_prob, atol=1e-4)
        (torch.Size([3, 4, 2]), True)
    """

    features: Tensor
    factor: Tensor
    root: Tensor
    mean: Tensor
    offset: Tensor
    scale: Tensor
    spread: Tensor
    residual: Tensor
    log_precision: Tensor

    @classmethod
    def of(
        cls,
        features: Tensor,
        targets: Tensor,
        log_precision: Tensor,
        *,
        prior_scale: Tensor,
        offset: Tensor,
        log_scale: Tensor,
        log_spread: Tensor,
    ) -> LayerConditional:
        """Condition on pseudo-observations.

        Args:
            features: F, ``[S, m, q]``.
            targets: V, ``[m, out]`` or ``[S, m, out]``.
            log_precision: Logarithm of Lambda, ``[m]``, or ``[S, m]`` where it depends on what comes before.
            prior_scale: s, ``[1, q]``, or ``[out, q]`` if the prior differs between outputs.
            offset: M, ``[q, out]``.
            log_scale: Logarithm of r, ``[q]``.
            log_spread: Logarithm of c, ``[out]``.

        Raises:
            DensityError: If features or precisions are NaN or infinite.
        """
        shared = len(prior_scale) == 1
        columns = _columns(targets, shared)
        places = _columns(offset, shared)
        root_precision = (0.5 * log_precision).exp().unsqueeze(-2).unsqueeze(-1)  # [1, m, 1] or [S, 1, m, 1]
        weighted = root_precision * features.unsqueeze(1)
        transposed = weighted.transpose(-1, -2)
        scale = log_scale.exp().unsqueeze(-1)
        prior = prior_scale.unsqueeze(-1)
        factor = prior * scale
        residual = root_precision * columns - weighted @ (prior * places)
        num, size = features.shape[-2:]
        if num < size:
            gram = (weighted * factor.square().transpose(-1, -2)) @ transposed
        else:
            gram = (factor * factor.transpose(-1, -2)) * (transposed @ weighted)
        root = _root(gram, weighted, factor)
        if root.shape[-1] < size:
            mean = factor * (transposed @ torch.cholesky_solve(residual, root))
        else:
            mean = torch.cholesky_solve(factor * (transposed @ residual), root)
        spread = _columns(log_spread.exp().unsqueeze(0), shared)
        return cls(weighted, factor, root, mean, places, scale, spread, residual, log_precision)

    def of_samples(self, rows: Tensor) -> LayerConditional:
        """The same for some of the samples only."""
        residual, log_precision = self.residual, self.log_precision
        return replace(
            self,
            features=self.features[rows],
            root=self.root[rows],
            mean=self.mean[rows],
            residual=residual[rows] if len(residual) > 1 else residual,
            log_precision=log_precision[rows] if log_precision.dim() == 2 else log_precision,
        )

    # ------------------------------------------------------------------ sampling and density

    @property
    def log_evidence(self) -> Tensor:
        """Log-density ``[S]`` of the pseudo-targets V with the weights integrated out, under N(M, diag(r^2))."""
        num, out = self.residual.shape[-2], self.mean.shape[1] * self.mean.shape[-1]
        projected = self.factor * (self.features.transpose(-1, -2) @ self.residual)
        quadratic = self.residual.square().sum((-3, -2, -1)) - (projected * self.mean).sum((-3, -2, -1))
        log_det = self.mean.shape[-1] * self._log_det - out * self.log_precision.sum(-1)
        return -0.5 * (quadratic + log_det + num * out * LOG_2PI)

    @property
    def _log_det(self) -> Tensor:
        """Sum over groups of the logarithm of the determinant of P ``[S]``."""
        return 2.0 * self.root.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))

    @property
    def _dual(self) -> bool:
        return self.root.shape[-1] < self.features.shape[-1]

    def rsample(self, *, noise: tuple[Tensor, Tensor | None] | None = None) -> tuple[Tensor, Tensor]:
        """Draw weights ``[S, q, out]``, one for each sample of what comes before; with their log-density ``[S]``.

        Args:
            noise: Standard normal numbers to use for one group, ``[S, q, out]`` and, where m < q, ``[S, m, out]``.
        """
        base = torch.randn_like(self.mean) if noise is None else noise[0].unsqueeze(1)
        if self._dual:
            if noise is None or noise[1] is None:
                shape = (*self.root.shape[:-1], base.shape[-1])
                extra = torch.randn(shape, dtype=base.dtype, device=base.device)
            else:
                extra = noise[1].unsqueeze(1)
            solved = torch.cholesky_solve(self.features @ (self.factor * base) - extra, self.root)
            drawn = base - self.factor * (self.features.transpose(-1, -2) @ solved)
            # The second term is A times it, without another product with A.
            quadratic = drawn.square().sum((-3, -2, -1)) + (extra + solved).square().sum((-3, -2, -1))
        else:
            drawn = torch.linalg.solve_triangular(self.root.transpose(-1, -2), base, upper=True)
            quadratic = base.square().sum((-3, -2, -1))
        columns = self.offset + self.scale * (self.mean + drawn * self.spread)
        weights = columns.squeeze(1) if columns.shape[1] == 1 else columns.squeeze(-1).transpose(1, 2)
        return weights, self._log_prob(quadratic)

    def log_prob(self, weights: Tensor) -> Tensor:
        """Log-density ``[S]`` of weights ``[S, q, out]``."""
        noise = ((_columns(weights, len(self.factor) == 1) - self.offset) / self.scale - self.mean) / self.spread
        seen = self.features @ (self.factor * noise)
        return self._log_prob(noise.square().sum((-3, -2, -1)) + seen.square().sum((-3, -2, -1)))

    def _log_prob(self, quadratic: Tensor) -> Tensor:
        size, per_group = self.mean.shape[-2:]
        out = per_group * self.mean.shape[1]
        log_det = per_group * self._log_det
        scales = 2.0 * (out * self.scale.log().sum() + size * self.spread.log().sum())
        return -0.5 * (quadratic + size * out * LOG_2PI - log_det + scales)


def _root(gram: Tensor, weighted: Tensor, factor: Tensor) -> Tensor:
    """Cholesky factor of I + G, where G is ``A^T A`` or, with fewer rows than columns, ``A A^T``.

    Where rounding would decide about I + G, that of ``I + A^T A`` in either case, by a QR decomposition of A: the error
    grows as A then and not as its square. (Matheron's rule has the latter error even with an exact root.)
    """
    largest = float(gram.detach().diagonal(dim1=-2, dim2=-1).amax())
    if not math.isfinite(largest):
        raise DensityError(
            "The matrix of a conditional layer is not finite: features or precisions of its inducing points became "
            f"NaN or infinite. Lower the learning rate, or {BOUND_THE_GRADIENT}."
        )
    if largest <= LARGEST:
        root, info = torch.linalg.cholesky_ex(gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
        if not bool(info.any()):
            return root
    matrix = weighted * factor.transpose(-1, -2)
    eye = torch.eye(matrix.shape[-1], dtype=gram.dtype, device=gram.device)
    # (I, A) = Q R has R^T R = I + A^T A.
    upper = torch.linalg.qr(torch.cat([eye.expand(*matrix.shape[:-2], *eye.shape), matrix], dim=-2)).R
    signs = upper.detach().diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)
    return (signs * upper).transpose(-1, -2)


def _columns(matrix: Tensor, shared: bool) -> Tensor:
    """From ``[..., n, out]`` to ``[..., G, n, out / G]``: all outputs together, or one by one."""
    return matrix.unsqueeze(-3) if shared else matrix.transpose(-1, -2).unsqueeze(-1)
