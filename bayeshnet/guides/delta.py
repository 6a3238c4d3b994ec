"""A guide whose hypernetwork outputs one value for each latent: maximum a posteriori."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.families.hypernet import HnetOrBuilder
from bayeshnet.guides._explicit import ExplicitHypernet
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.sites.latents import emit_sites

__all__ = ["AutoHypernetDelta"]


class AutoHypernetDelta(ExplicitHypernet):
    r"""Automatic guide for MAP estimates that come from a deterministic hypernetwork.

    .. math:: u = \mathrm{loc} + \mathrm{scale} \cdot (h(e) + \mathrm{offset})

    in unconstrained coordinates; the sites are Deltas at the constrained values. Fitting it maximises
    ``log p(data | w) + log p(w)``, the density of constrained latents being that in their own coordinates, as for
    Pyro's ``AutoDelta``. With a conditional hypernetwork each condition has weights of its own. All draws are the same:
    fit with ``num_particles=1``.

    Args:
        model: Any Pyro model whose latents are continuous.
        example: The model's arguments: a tuple of positional ones, a mapping of keyword ones, or one tensor. With
            observations, as for training.
        hnet: A function from target shapes to a hypernetwork without noise, or such a hypernetwork itself; its own
            initialisation is kept. By default a small MLP with one learned embedding (chunked for more
            than 100,000 latents).
        cond_id: The condition of a conditional hypernetwork; may be left out if it has only one.
        init_loc_fn: One of Pyro's per-site initialisation functions, for a location to start at exactly. By default
            weights with a Normal prior start at 0.3 of its scale around its mean, at random, and other latents at their
            prior median, if the hypernetwork is the default one.
        whiten: Use centre and spread of the prior as loc and scale; otherwise 0 and 1, which leaves weights as the
            hypernetwork makes them (for one with a hyperfan initialisation, say).

    Raises:
        ArgumentError: If latents are discrete or absent, the data hold NaN, or the hypernetwork takes noise, does not
            fit the target shapes or lacks the condition.
        ArgumentTypeError: If an argument is of another type.
        DensityError: If the hypernetwork has batch norm or dropout.

    Example:
        >>> from bayeshnet import BayesianModel, fit, likelihoods
        >>> x, y = torch.randn(20, 2), torch.randn(20)
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernetDelta(model, example=(x, y))
        >>> history = fit(model, guide, (x, y), steps=20, num_particles=1, progress=False)
        >>> guide.median()["weight"].shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        example: Any,
        hnet: HnetOrBuilder | None = None,
        cond_id: int | None = None,
        init_loc_fn: Callable[..., Any] | None = None,
        whiten: bool = True,
    ) -> None:
        super().__init__(model, example=example, init_loc_fn=init_loc_fn)
        noise = self.build(
            model, example=example, hnet=hnet, cond_id=cond_id, copies=1, whiten=whiten, init_loc_fn=init_loc_fn
        )
        with torch.no_grad():
            if not whiten and init_loc_fn is None:
                self.loc.zero_()
            if hnet is None or (init_loc_fn is not None and not isinstance(hnet, HyperNetInterface)):
                self.offset += 0.3 * noise - self.outputs()

    def latent(self) -> Tensor:
        """Return the latents ``[D]`` in unconstrained coordinates.

        Example:
            >>> import pyro
            >>> guide = AutoHypernetDelta(lambda: pyro.sample("scale", dist.Gamma(1.0, 1.0)), example=())
            >>> bool(guide.latent().exp() == guide.median()["scale"])
            True
        """
        return torch.addcmul(self.loc, self.scale, self.outputs()[0])

    @torch.no_grad()
    def move_to(self, mean: Tensor, std: Tensor | None = None, draws: Mapping[str, Tensor] | None = None) -> None:
        """Shift the latents in place, by the offset; the hypernetwork stays as it is.

        Args:
            mean: Latents ``[D]`` in unconstrained coordinates; NaN for those that are to stay where they are.
            std: Ignored, since there is no spread.
            draws: Ignored.

        Raises:
            ArgumentError: If the shape differs.

        Example:
            >>> import pyro
            >>> guide = AutoHypernetDelta(lambda: pyro.sample("scale", dist.Gamma(1.0, 1.0)), example=())
            >>> guide.move_to(torch.zeros(1))
            >>> float(guide.median()["scale"])
            1.0
        """
        if mean.shape != self.loc.shape:
            raise ArgumentError(f"mean: has shape {tuple(mean.shape)}; pass {tuple(self.loc.shape)}.")
        shift = (mean - self.latent()) / self.scale
        self.offset += torch.where(shift.isnan(), torch.zeros_like(shift), shift)

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """Return the Delta at the latents, flattened and unconstrained."""
        return dist.Delta(self.latent(), event_dim=1)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Make Pyro sites of all latents; see :meth:`bayeshnet.guides.base.Guide.forward`."""
        self.emit_params()
        return emit_sites(self.sites, self.latent(), self._create_plates(*args, **kwargs), jacobian=False)

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 1, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the values themselves, once for each quantile: ``[Q, *shape]`` by site name."""
        return super().quantiles(quantiles, num_samples=1)
