"""Gaussian weights whose correlations are a multiplicative perturbation of low rank."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor, nn
from torch.distributions.transforms import Transform

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError, DensityError
from bayeshnet.families.base import Family, Start, assign
from bayeshnet.families.flat_distribution import FlatDistribution
from bayeshnet.families.noise_transform import NoiseTransform
from bayeshnet.normal_density import log_standard_normal

__all__ = ["LowRank", "MultiplicativeLowRank"]


class MultiplicativeLowRank(FlatDistribution):
    r"""A Gaussian with covariance :math:`S (I + U V^\top)(I + V U^\top) S`, S diagonal.

    .. math:: w = \mu + \sigma \cdot (I + U V^\top) \varepsilon, \qquad
        \log q(w) = \log N(\varepsilon; 0, I) - \sum_i \log \sigma_i - \log |\det (I_r + V^\top U)|

    Unlike a covariance "diagonal plus low rank" it can narrow directions as well as widen them. With U or V zero it is
    the mean-field Gaussian. A density costs ``D r + r^3`` at any value, since the inverse is
    ``I - U (I_r + V^T U)^-1 V^T``; :meth:`log_prob` raises a :class:`~bayeshnet.errors.DensityError` where the
    covariance is singular or not finite.

    Args:
        loc: Mean ``[D]``.
        log_scale: Logarithm of sigma ``[D]``.
        left: U ``[D, r]``.
        right: V ``[D, r]``.

    Raises:
        ArgumentError: If shapes do not fit.

    Example:
        >>> q = MultiplicativeLowRank(torch.zeros(5), torch.zeros(5), 0.1 * torch.randn(5, 2), torch.randn(5, 2))
        >>> w = q.rsample((7,))
        >>> w.shape, q.log_prob(w).shape
        (torch.Size([7, 5]), torch.Size([7]))
    """

    def __init__(
        self, loc: Tensor, log_scale: Tensor, left: Tensor, right: Tensor, *, validate_args: bool | None = None
    ) -> None:
        size = loc.shape[0] if loc.dim() == 1 else -1
        if size < 1 or log_scale.shape != loc.shape or left.shape != right.shape or left.shape[:-1] != loc.shape:
            raise ArgumentError(
                f"loc, log_scale, left, right: have shapes {list(loc.shape)}, {list(log_scale.shape)}, "
                f"{list(left.shape)}, {list(right.shape)}; [D], [D], [D, r] and [D, r] are expected."
            )
        self.loc, self.log_scale, self.left, self.right = loc, log_scale, left, right
        super().__init__(Size(), loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean ``[*batch_shape, D]``."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each weight ``[*batch_shape, D]``."""
        # Row i of I + U V^T is e_i + U_i V^T.
        gram = self.right.T @ self.right
        own = 1.0 + 2.0 * (self.left * self.right).sum(-1) + ((self.left @ gram) * self.left).sum(-1)
        return ((2.0 * self.log_scale).exp() * own).expand(self.batch_shape + self.event_shape)

    def draw(self, num: int) -> tuple[Tensor, None]:
        """See :meth:`FlatDistribution.draw`."""
        return self.of_noise(torch.randn(num, len(self.loc), dtype=self.loc.dtype, device=self.loc.device)), None

    def of_noise(self, noise: Tensor) -> Tensor:
        """Return the weights ``[S, D]`` that standard normal noise ``[S, D]`` makes."""
        noise = noise + (noise @ self.right) @ self.left.T
        return torch.addcmul(self.loc, noise, self.log_scale.exp())

    def log_det(self) -> Tensor:
        """Return the logarithm of the determinant of the map from noise to weights.

        Raises:
            DensityError: If it is singular or not finite.
        """
        return self._core()[1].to(self.loc.dtype) + self.log_scale.sum()

    def _core(self) -> tuple[Tensor, Tensor]:
        """``I + V^T U`` ``[r, r]`` and the logarithm of its determinant, both in float64."""
        rank = self.left.shape[-1]
        # r x r algebra in float64: the determinant is that of a matrix that may be close to singular.
        left, right = self.left.double(), self.right.double()
        core = torch.eye(rank, dtype=torch.float64, device=left.device) + right.T @ left
        sign, log_det = torch.linalg.slogdet(core)
        if not bool(torch.isfinite(log_det) & (sign != 0)):
            raise DensityError(
                "left, right: I + V^T U is singular or not finite, so the distribution has no density; lower the "
                "learning rate or start from a smaller left factor."
            )
        return core, log_det

    def _log_prob_at(self, rows: Tensor) -> Tensor:
        core, log_det = self._core()
        scaled = (rows - self.loc) * (-self.log_scale).exp()
        inner = torch.linalg.solve(core, (scaled @ self.right).double().unsqueeze(-1)).squeeze(-1)
        noise = scaled - inner.to(scaled.dtype) @ self.left.T
        return log_standard_normal(noise) - self.log_scale.sum() - log_det.to(scaled.dtype)


class LowRank(Family, short_form="low_rank"):
    """Family of Gaussians with multiplicative noise of low rank; it starts as the mean-field one.

    Args:
        rank: Number of columns of the two factors, at most that of the latents.

    Raises:
        ArgumentError: If ``rank`` is not positive.
        ArgumentTypeError: If it is no whole number.

    Example:
        >>> LowRank(rank=2).build(Start([[3, 2]], torch.zeros(6))).distribution().rsample((5,)).shape
        torch.Size([5, 6])
    """

    def __init__(self, rank: int = 20) -> None:
        super().__init__()
        require_count("rank", rank)
        self.rank = rank

    def init_parameters(self, start: Start) -> None:
        """See :meth:`Family.init_parameters`."""
        self.rank = min(self.rank, start.size)
        self.loc = nn.Parameter(start.mean())
        self.log_scale = nn.Parameter(torch.full_like(start.like, math.log(start.scale)))
        self.left = nn.Parameter(start.like.new_zeros(start.size, self.rank))
        self.right = nn.Parameter(torch.randn_like(self.left.detach()) / math.sqrt(start.size))

    def num_parameters(self, start: Start) -> int:
        """See :meth:`Family.num_parameters`: two for each latent, and two for each and each rank."""
        return 2 * start.size * (1 + min(self.rank, start.size))

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> MultiplicativeLowRank:
        """See :meth:`Family.distribution`."""
        mean, log_scale = self.loc, self.log_scale
        if scale is not None:
            mean, log_scale = scale * mean, log_scale + scale.log()
        mean = mean if loc is None else loc + mean
        return MultiplicativeLowRank(mean, log_scale, self.left, self.right, validate_args=False)

    def noise_transform(self, loc: Tensor, scale: Tensor) -> Transform:
        """See :meth:`Family.noise_transform`."""
        made = self.distribution(loc, scale)
        return NoiseTransform(made.of_noise, lambda noise: made.log_det().expand(len(noise)))

    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """See :meth:`Family.warm_start`; correlations stay."""
        assign(self.loc, mean)
        with torch.no_grad():
            own = self.distribution().variance.sqrt()
        assign(self.log_scale, self.log_scale + (std / own).log())
