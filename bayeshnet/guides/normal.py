"""A guide whose hypernetwork outputs means and standard deviations of independent Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.transforms import AffineTransform, Transform
from torch.nn import functional as F

from bayeshnet.checks import require_positive
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.families.hypernet import HnetOrBuilder
from bayeshnet.guides._explicit import ExplicitHypernet
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.init import gauss_hyperfan_init
from bayeshnet.sites.latents import constrained, emit_normal_sites
from bayeshnet.sites.quantiles import checked_levels

__all__ = ["AutoHypernetNormal"]


class AutoHypernetNormal(ExplicitHypernet):
    r"""Automatic guide with independent Gaussians whose parameters come from a hypernetwork.

    In unconstrained coordinates

    .. math:: u \sim N(\mathrm{loc} + \mathrm{scale} \cdot m, (\mathrm{scale} \cdot \mathrm{softplus}(\rho))^2), \quad
        (m, \rho) = h(e) + \mathrm{offset}

    with loc and scale the centre and spread of the prior, a hypernetwork h, its learned input e (an embedding, one for
    each condition) and a fixed offset that places the start. With one condition it is a mean-field posterior in another
    parameterisation. With several, each condition (task, data set) has a posterior of its own, and they share the
    hypernetwork: build one guide for each and pass the first one's ``hnet`` to the others, or set :attr:`cond_id`.

    Latents on the whole real line are plain Normal sites, so that ``TraceMeanField_ELBO`` computes their KL in closed
    form. Others are drawn as ``NAME_unconstrained`` and transformed. The guide works under ``Trace_ELBO`` and
    ``RenyiELBO`` as well, with vectorised particles, and in ``Predictive``.
    :func:`~bayeshnet.local_reparameterisation` and :func:`~bayeshnet.flipout` lower the variance of its gradients.

    Args:
        model: Any Pyro model whose latents are continuous; a :class:`~bayeshnet.BayesianModel`, for instance.
        example: The model's arguments, which the guide is built from: a tuple of positional ones, a mapping of keyword
            ones, or one tensor. With observations, as for training.
        hnet: A function from target shapes to a hypernetwork without noise, or such a hypernetwork itself. The targets
            are ``[means..., rhos...]``, the latents' shapes twice over. What a function returns is initialised here by
            :func:`~bayeshnet.init.gauss_hyperfan_init` (where that has no method for it, the offset is set so that the
            start is the same); a hypernetwork is taken as it is. By default a small MLP with one learned embedding
            (chunked for more than 100,000 latents).
        cond_id: The condition of a conditional hypernetwork; may be left out if it has only one.
        std: ``"softplus"`` or ``"exp"``: the standard deviation is ``softplus(rho)`` or ``exp(rho / 2)``.
        init_loc_fn: One of Pyro's per-site initialisation functions, for a location to start at exactly.
        init_scale: Start of the standard deviations, in units of the prior's spread.
        mean_var: Variance of the means at the start, in the same units.
        rho_var: Variance of the rhos at the start.
        whiten: Use the prior's spread as the scale; otherwise 1.

    Raises:
        ArgumentError: If latents are discrete or absent, the data hold NaN, a number is out of range, or the
            hypernetwork takes noise, does not fit the target shapes or lacks the condition.
        ArgumentTypeError: If an argument is of another type.
        DensityError: If the hypernetwork has batch norm or dropout.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> guide = AutoHypernetNormal(model, example=(torch.tensor([1.0, 2.0]),))
        >>> guide
        AutoHypernetNormal(latent_dim=1, sites=1, hnet=HMLP)
        >>> guide.sample_posterior(5)["mu"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        example: Any,
        hnet: HnetOrBuilder | None = None,
        cond_id: int | None = None,
        std: Literal["softplus", "exp"] = "softplus",
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float = 0.1,
        mean_var: float = 0.09,
        rho_var: float = 0.01,
        whiten: bool = True,
    ) -> None:
        if std not in ("softplus", "exp"):
            raise ArgumentError(f"std: is {std!r}; pass 'softplus' or 'exp'.")
        require_positive("init_scale", init_scale)
        for name, value in (("mean_var", mean_var), ("rho_var", rho_var)):
            if not (value >= 0 and math.isfinite(value)):
                raise ArgumentError(f"{name}: is {value}; pass a variance, 0 or a positive number.")
        super().__init__(model, example=example, init_loc_fn=init_loc_fn)
        self._std: Literal["softplus", "exp"] = std
        noise = self.build(
            model, example=example, hnet=hnet, cond_id=cond_id, copies=2, whiten=whiten, init_loc_fn=init_loc_fn
        )
        self._start(hnet, init_scale, mean_var, rho_var, noise, exact=init_loc_fn is not None)

    @torch.no_grad()
    def _start(
        self, hnet: object, init_scale: float, mean_var: float, rho_var: float, noise: Tensor, *, exact: bool
    ) -> None:
        """Place the start: by the hypernetwork's weights where that can be, else by the offset."""
        rho = self._rho_of(torch.full_like(self.loc, init_scale))
        self.offset[1] = rho
        if isinstance(hnet, HyperNetInterface):
            return
        try:
            gauss_hyperfan_init(self.hnet, mean_var=mean_var, rho_var=rho_var, use_xavier=True)
        except (ArgumentTypeError, UsageError):  # a kind of hypernetwork that it has no method for
            start = math.sqrt(mean_var) * noise
            self.offset += torch.stack([start, rho + math.sqrt(rho_var) * torch.randn_like(rho)]) - self.outputs()
        if exact:
            self.offset[0] -= self.outputs()[0]

    # ------------------------------------------------------------------ the Gaussian

    def _std_of(self, rho: Tensor) -> Tensor:
        return F.softplus(rho) if self._std == "softplus" else (0.5 * rho).exp()

    def _rho_of(self, std: Tensor) -> Tensor:
        # The inverse of softplus, without the overflow of exp.
        return std + torch.log(-torch.expm1(-std)) if self._std == "softplus" else 2.0 * std.log()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation ``[D]`` of all latents, in unconstrained coordinates.

        Example:
            >>> import pyro
            >>> guide = AutoHypernetNormal(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=(), mean_var=0.0)
            >>> mean, std = guide.moments()
            >>> mean.shape, std.shape
            (torch.Size([1]), torch.Size([1]))
        """
        mean, rho = self.outputs()
        return torch.addcmul(self.loc, self.scale, mean), self.scale * self._std_of(rho)

    @torch.no_grad()
    def move_to(self, mean: Tensor, std: Tensor | None = None, draws: Mapping[str, Tensor] | None = None) -> None:
        """Shift the Gaussians in place, by the offset; the hypernetwork stays as it is.

        Args:
            mean: Means ``[D]`` in unconstrained coordinates; NaN for latents that are to stay where they are.
            std: Standard deviations ``[D]``; None or NaN for those that are to stay.
            draws: Ignored.

        Raises:
            ArgumentError: If a shape differs, or a standard deviation is not positive.

        Example:
            >>> import pyro
            >>> guide = AutoHypernetNormal(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=())
            >>> guide.move_to(torch.tensor([2.0]), torch.tensor([0.5]))
            >>> mean, std = guide.moments()
            >>> bool((mean - 2.0).abs() < 1e-5), bool((std - 0.5).abs() < 1e-5)
            (True, True)
        """
        std = torch.full_like(mean, math.nan) if std is None else std
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.loc.shape:
                raise ArgumentError(f"{name}: has shape {tuple(value.shape)}; pass {tuple(self.loc.shape)}.")
        if bool((std <= 0).any()):
            raise ArgumentError("std: has entries that are not positive; pass NaN for those that are to stay.")
        wanted = torch.stack([(mean - self.loc) / self.scale, self._rho_of(std / self.scale)])
        self.offset += torch.where(wanted.isnan(), torch.zeros_like(wanted), wanted - self.outputs())

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """Return the distribution over all latents, flattened and unconstrained: a draw is ``[D]``."""
        mean, std = self.moments()
        return dist.Normal(mean, std, validate_args=False).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """Return the affine map from noise to all latents; see the base class."""
        return AffineTransform(*self.moments(), event_dim=1)

    # ------------------------------------------------------------------ the guide

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents as Pyro sites; see :meth:`bayeshnet.guides.base.Guide.forward`."""
        self.emit_params()
        mean, std = self.moments()
        return emit_normal_sites(self.sites, mean, std, self._create_plates(*args, **kwargs))

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return quantiles of each latent coordinate, exact.

        Args:
            quantiles: Q numbers between 0 and 1.
            args: Ignored, for Pyro's signature.
            num_samples: Ignored.
            kwargs: Ignored.

        Returns:
            ``[Q, *shape]`` by site name.

        Raises:
            ArgumentError: If a quantile is outside of 0..1.
            ArgumentTypeError: If they are not numbers.

        Example:
            >>> import pyro
            >>> guide = AutoHypernetNormal(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=())
            >>> guide.quantiles([0.05, 0.95])["z"].shape
            torch.Size([2])
        """
        levels = checked_levels("quantiles", quantiles).to(self.loc)
        mean, std = self.moments()
        return constrained(self.sites, mean + std * torch.special.ndtri(levels).unsqueeze(-1))
