"""What a sampler in the coordinates of a guide's noise asks for: ``NeuTraReparam`` of Pyro."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoContinuous
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions.transforms import Transform

from bayeshnet.errors import UsageError
from bayeshnet.sites.latents import LatentSite, nodes_of

__all__ = ["NoiseCoordinates"]


class NoiseCoordinates(AutoContinuous):
    """The part of a guide that says which standard normal noise its draws are made of, where they are."""

    loc: Tensor
    sites: list[LatentSite]

    def get_base_dist(self) -> TorchDistribution:
        """Return the standard normal distribution ``[D]`` of the noise that :meth:`get_transform` takes."""
        return cast("TorchDistribution", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """Return the bijection from noise ``[D]`` to all latents, unconstrained; Pyro's ``NeuTraReparam`` asks for it.

        Args:
            args: Ignored, for Pyro's signature.
            kwargs: Ignored.

        Raises:
            UsageError: If the guide is no bijection of noise.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> guide = AutoHypernet(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=())
            >>> guide.get_transform()(guide.get_base_dist().sample()).shape
            torch.Size([1])
        """
        raise UsageError(
            f"get_transform: {type(self).__name__} is no bijection of noise, which NeuTraReparam needs; use an "
            "AutoHypernet with conditional=None, or an AutoHypernetNormal."
        )

    def _unpack_latent(self, latent: Tensor) -> Generator[tuple[Any, Tensor]]:
        # As Pyro's, by the sites of this guide.
        nodes, parts = nodes_of(cast("Trace", self.prototype_trace)), latent.split([s.numel for s in self.sites], -1)
        for site, part in zip(self.sites, parts, strict=True):
            yield nodes[site.name], part.reshape((*latent.shape[:-1], *site.shape))
