"""Draws, medians and quantiles of a guide's latents, all made in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.guides._sized import Sized
from bayeshnet.sites.latents import constrained
from bayeshnet.sites.quantiles import checked_levels, sample_quantiles

__all__ = ["Summaries"]


class Summaries(Sized):
    """The part of a guide that draws from it, for :meth:`get_posterior` of a subclass."""

    @torch.no_grad()
    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """Draw all latents, in one call.

        Args:
            num_samples: Number S of draws.

        Returns:
            ``[S, *shape]`` by site name.

        Raises:
            ArgumentError: If ``num_samples`` is not positive.
            ArgumentTypeError: If it is not an integer.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> guide = AutoHypernet(lambda: pyro.sample("scale", dist.Gamma(1.0, 1.0)), example=())
            >>> guide.sample_posterior(5)["scale"].shape
            torch.Size([5])
        """
        require_count("num_samples", num_samples)
        return constrained(self.sites, self.get_posterior().rsample((num_samples,)))

    def median(  # pyright: ignore[reportIncompatibleMethodOverride] - one keyword more than Pyro's
        self, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Estimate the median of each latent coordinate, with a standard error of ``1.25 std / sqrt(num_samples)``.

        Args:
            args: Ignored, for Pyro's signature.
            num_samples: Number of draws.
            kwargs: Ignored.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> guide = AutoHypernet(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=())
            >>> guide.median()["z"].shape
            torch.Size([])
        """
        return {name: value[0] for name, value in self.quantiles([0.5], num_samples=num_samples).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Estimate quantiles of each latent coordinate.

        They are taken in unconstrained coordinates and transformed, as Pyro's other guides do.

        Args:
            quantiles: Q numbers between 0 and 1.
            args: Ignored, for Pyro's signature.
            num_samples: Number of draws; the error of a quantile falls with its square root.
            kwargs: Ignored.

        Returns:
            ``[Q, *shape]`` by site name.

        Raises:
            ArgumentError: If a quantile is outside of 0..1, or ``num_samples`` not positive.
            ArgumentTypeError: If an argument is of another type.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> guide = AutoHypernet(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=())
            >>> guide.quantiles([0.05, 0.95])["z"].shape
            torch.Size([2])
        """
        require_count("num_samples", num_samples)
        levels = checked_levels("quantiles", quantiles).to(self.loc)
        latent = self.get_posterior().rsample((num_samples,))
        return constrained(self.sites, sample_quantiles(latent, levels))
