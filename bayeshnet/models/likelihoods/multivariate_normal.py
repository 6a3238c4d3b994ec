"""Gaussian noise that is correlated between the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import array
from bayeshnet.formatting import value as printed
from bayeshnet.models.likelihoods._targets import LocationLikelihood
from bayeshnet.models.likelihoods.parameters import Positive, checked_prior, placed
from bayeshnet.normal_density import LOG_2PI

__all__ = ["GappyNormal", "MultivariateNormal"]


class GappyNormal(dist.MultivariateNormal):
    """A multivariate normal distribution whose values may have gaps: entries that are NaN are integrated out.

    Example:
        >>> fn = GappyNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        >>> fn.log_prob(torch.tensor([0.0, torch.nan])), dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
        (tensor(-0.9189), tensor(-0.9189))
    """

    marginalises = True

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of the entries that are there."""
        missing = torch.isnan(value)
        if not bool(missing.any()):
            return super().log_prob(value)
        # The marginal, with a standard normal in each gap, whose density at 0 is taken off again.
        tril: Any = self.scale_tril
        covariance = tril @ tril.mT
        known = (~missing).to(covariance.dtype)
        covariance = covariance * known.unsqueeze(-1) * known.unsqueeze(-2) + torch.diag_embed(1.0 - known)
        loc: Any = self.loc
        residual = torch.where(missing, torch.zeros_like(loc), torch.where(missing, loc, value) - loc)
        made = dist.MultivariateNormal(torch.zeros_like(residual), covariance, validate_args=False)
        return made.log_prob(residual) + 0.5 * LOG_2PI * (1.0 - known).sum(-1)


class MultivariateNormal(LocationLikelihood):
    r"""Gaussian noise that is correlated between the K outputs, :math:`y \sim N(f, \Sigma)`.

    Known or learned by ``covariance``; latent by a prior for the standard deviations and one for the Cholesky factor of
    the correlations, :math:`\Sigma = \mathrm{diag}(s) L L^T \mathrm{diag}(s)`. Entries of a target that are missing
    (``missing="ignore"``) are integrated out.

    Args:
        covariance: The covariance ``[K, K]``, known or where learning starts; excludes the others.
        scale: The standard deviations: known (a number or ``[K]``), or a prior.
        correlation: The prior of the Cholesky factor of the correlations, ``dist.LKJCholesky(K, 2.0)``.
        learn: Optimise the covariance as a parameter.

    Raises:
        ArgumentError: If the covariance is not symmetric and positive definite, both or neither of ``covariance`` and
            ``correlation`` are given; when used, if K is not the number of outputs.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> likelihood = MultivariateNormal(torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
        >>> likelihood.conditional(torch.zeros(7, 2), {}, batch_dims=1).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        covariance: Tensor | None = None,
        *,
        scale: Positive | None = None,
        correlation: TorchDistributionMixin | None = None,
        learn: bool = False,
    ) -> None:
        super().__init__()
        self._prior: TorchDistributionMixin | None = None
        if (covariance is None) == (correlation is None):
            given = "neither" if covariance is None else "both"
            raise ArgumentError(
                f"covariance, correlation: {given} of them were given; pass covariance=[K, K] (known or learned), or "
                "scale= and correlation=dist.LKJCholesky(K, 2.0) (latent)."
            )
        if covariance is None:
            if scale is None:
                raise ArgumentError("scale: is missing; pass the standard deviations or their prior with correlation.")
            if learn:
                raise ArgumentError("learn: correlation has a prior and is inferred already; pass covariance= instead.")
            prior: Any = checked_prior("correlation", correlation, positive=False)
            if len(prior.event_shape) != 2:
                raise ArgumentError(
                    f"correlation: its prior has event shape {tuple(prior.event_shape)}; pass one over Cholesky "
                    "factors [K, K], dist.LKJCholesky(K, 2.0)."
                )
            self._prior, self.size = prior, int(prior.event_shape[-1])
            self.add_positive("scale", scale)
            return
        if scale is not None:
            raise ArgumentError("scale: is given beside covariance, which holds it; leave it out.")
        tril = _factor(covariance)
        self.size = len(tril)
        if learn:
            self.tril = nn.Parameter(tril)
        else:
            self.register_buffer("tril", tril)

    @property
    def covariance(self) -> Tensor:
        """The covariance ``[K, K]`` as it is now.

        Raises:
            ArgumentError: If it is latent.
        """
        if self._prior is not None:
            raise ArgumentError("covariance: is latent; look at the draws of the sites 'likelihood.correlation', ...")
        tril = self._tril()
        return tril @ tril.mT

    def extra_repr(self) -> str:
        """The covariance, for ``repr``."""
        if self._prior is not None:
            return f"{super().extra_repr()}, correlation~{printed(self._prior)}"
        how = "learned, " if isinstance(self.tril, nn.Parameter) else ""
        return f"covariance={how}{array(self.tril)}"

    def priors(self) -> Mapping[str, TorchDistributionMixin]:
        """See :meth:`Likelihood.priors`."""
        return super().priors() if self._prior is None else {**super().priors(), "correlation": self._prior}

    def _tril(self) -> Tensor:
        """The Cholesky factor. Its diagonal is a logarithm, so that it stays positive in learning."""
        return self.tril.tril(-1) + torch.diag_embed(self.tril.diagonal().exp())

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        outputs = f.shape[batch_dims:]
        if outputs[-1:] != (self.size,) and not (self.size == 1 and not outputs):
            raise ArgumentError(
                f"covariance: is for {self.size} outputs, but the network gives {tuple(outputs)} per row; pass one of "
                "their number."
            )
        if self._prior is None:
            tril = self._tril().to(f.dtype)
        else:
            factor = placed(params["correlation"], 2, f, batch_dims)
            inner = (1,) * (len(outputs) - 1)
            factor = factor.reshape(*factor.shape[:-2], *inner, *factor.shape[-2:])
            tril = self.parameter("scale", params, f, batch_dims).unsqueeze(-1) * factor.to(f.dtype)
        if not outputs:
            return dist.Normal(f, tril.reshape(tril.shape[:-2]))
        return GappyNormal(f, scale_tril=tril).to_event(len(outputs) - 1)

    def noise_latent(self) -> tuple[str, float] | None:
        """See :meth:`Likelihood.noise_latent`: none, as the covariance is not one number."""
        return None

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`: the root mean square of the standard deviations."""
        if self._prior is not None:
            return super().noise_level(y)
        return float(self.covariance.detach().diagonal().mean().sqrt())


def _factor(covariance: Any) -> Tensor:
    """The Cholesky factor of a covariance, with the logarithm of its diagonal."""
    if not isinstance(covariance, Tensor) or not covariance.is_floating_point():
        given = f"a tensor of {covariance.dtype}" if isinstance(covariance, Tensor) else kind_of(covariance)
        raise ArgumentTypeError(f"covariance: is {given}; pass a floating-point tensor [K, K].")
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ArgumentError(f"covariance: has shape {tuple(covariance.shape)}; pass [K, K].")
    if not torch.allclose(covariance, covariance.mT):
        raise ArgumentError("covariance: is not symmetric; pass a symmetric positive definite matrix.")
    tril, info = torch.linalg.cholesky_ex(covariance.detach())
    if int(info) or not bool(torch.isfinite(tril).all()):
        raise ArgumentError("covariance: is not positive definite; pass one with positive eigenvalues.")
    return tril.tril(-1) + torch.diag_embed(tril.diagonal().log())
