"""Families that are bijections of standard normal noise, as a transform: for NeuTra (Hoffman et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from bayeshnet.errors import UsageError

__all__ = ["NoiseTransform"]


class NoiseTransform(Transform):
    """A bijection of R^D from noise to latents, known by its values and the determinant of its Jacobian.

    Its inverse has no formula; a sampler in noise space (https://arxiv.org/abs/1903.03704) needs none.

    Args:
        values: From noise ``[S, D]`` to latents ``[S, D]``.
        log_det: From noise ``[S, D]`` to the logarithm ``[S]`` of the determinant's absolute value.

    Example:
        >>> import torch
        >>> transform = NoiseTransform(lambda z: 2.0 * z, lambda z: z.new_full((len(z),), 3.0).log())
        >>> z = torch.zeros(4, 3)
        >>> transform(z).shape, transform.log_abs_det_jacobian(z, transform(z)).shape
        (torch.Size([4, 3]), torch.Size([4]))
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType] - annotated as one without event dimensions
    codomain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    bijective = True

    def __init__(self, values: Callable[[Tensor], Tensor], log_det: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._values, self._log_det = values, log_det

    def _call(self, x: Tensor) -> Tensor:
        return self._values(x.reshape(-1, x.shape[-1])).reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        raise UsageError(
            "get_transform: the noise behind values that it did not make would have to be searched for; ask "
            "guide.get_posterior() for their density."
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm ``[*batch]`` of the Jacobian's determinant at noise ``[*batch, D]``."""
        return self._log_det(x.reshape(-1, x.shape[-1])).reshape(x.shape[:-1])
