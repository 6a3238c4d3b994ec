"""Gaussian noise: of a scale of its own, or of one that the network gives."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError
from bayeshnet.models.likelihoods._targets import LocationLikelihood, RealTargets
from bayeshnet.models.likelihoods.parameters import ParametricLikelihood, Positive

__all__ = ["HeteroscedasticNormal", "Normal"]


class Normal(LocationLikelihood):
    """Gaussian noise, ``y = f + scale * e``, on every output.

    Args:
        scale: The noise's standard deviation: a positive number or a tensor ``[out]`` (known), or a distribution on
            the positive numbers (its prior; the scale is then inferred with the weights), with one value or ``[out]``
            as its event. ``out`` is the last dimension of the network's output.
        precision: ``1 / scale^2`` instead, in the same forms; excludes ``scale``.
        learn: Optimise ``scale`` as a parameter, starting at the number given (maximum marginal likelihood).
        per_row: Multiply ``scale`` by a number of each row, the model's argument ``noise``. With ``scale=1.0`` that is
            its known standard deviation, with a prior it is known up to a factor.

    Raises:
        ArgumentError: If both or neither of ``scale`` and ``precision`` are given, one is not positive, a prior has a
            batch shape, or ``learn`` is asked for together with a prior; when used, if the length is not 1 or ``out``.

    Example:
        >>> import torch
        >>> likelihood = Normal(scale=dist.Gamma(6.0, 6.0))
        >>> f = torch.zeros(7, 3)
        >>> likelihood.conditional(f, {"scale": torch.tensor(0.5)}, batch_dims=1).event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        scale: Positive | None = None,
        *,
        precision: Positive | None = None,
        learn: bool = False,
        per_row: bool = False,
    ) -> None:
        super().__init__(per_row=per_row)
        if (scale is None) == (precision is None):
            given = "neither" if scale is None else "both"
            raise ArgumentError(
                f"scale, precision: {given} of them were given; pass exactly one, such as scale=0.1 (known) or "
                "scale=dist.Gamma(6., 6.) (inferred)."
            )
        if precision is None:
            self.add_positive("scale", scale, learn=learn)
        else:
            self.add_positive("scale", precision, learn=learn, argument="precision", exponent=-0.5)

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        return dist.Normal(f, self.parameter("scale", params, f, batch_dims)).to_event(f.dim() - batch_dims)


class HeteroscedasticNormal(RealTargets, ParametricLikelihood):
    r"""Gaussian noise of a scale that the network gives, :math:`y \sim N(m, s(r)^2)`.

    The network gives a location m and a raw scale r for each target: outputs ``[B, 2 K]``, first K locations, then K
    raw scales. With :math:`c = \log(e - 1)`,

    .. math:: s(r) = \mathrm{scale} \cdot (\log(1 + e^{r + c}) + 10^{-4})

    so that r = 0 stands for ``scale``; it grows linearly for large r, and stays above ``scale`` / 10,000.

    Args:
        scale: The standard deviation where the raw scale is 0: known, or a prior.
        learn: Optimise it as a parameter.

    Raises:
        ArgumentError: As :class:`Normal`; when used, if the number of outputs is odd.

    Example:
        >>> import torch
        >>> fn = HeteroscedasticNormal(scale=0.1).conditional(torch.zeros(7, 2), {}, batch_dims=1)
        >>> fn.batch_shape, round(float(fn.variance[0]), 4)
        (torch.Size([7]), 0.01)
    """

    outputs_per_target = 2

    def __init__(self, scale: Positive = 1.0, *, learn: bool = False) -> None:
        super().__init__()
        self.add_positive("scale", scale, learn=learn)

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        loc, raw = f.unbind(-1)
        scale = self.parameter("scale", params, loc, batch_dims) * positive_of(raw)
        return dist.Normal(loc, scale).to_event(loc.dim() - batch_dims)

    def noise_latent(self) -> tuple[str, float] | None:
        """None: the noise is not a latent alone."""
        return None


_CENTRE = 0.5413248546129181  # log(e - 1)


def positive_of(raw: Tensor) -> Tensor:
    """A positive number of any, 1 of 0.

    Example:
        >>> import torch
        >>> positive_of(torch.tensor([-200.0, 0.0, 100.0]))
        tensor([1.0000e-04, 1.0001e+00, 1.0054e+02])
    """
    return nn.functional.softplus(raw + _CENTRE) + 1e-4
