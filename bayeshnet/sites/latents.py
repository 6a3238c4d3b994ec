"""Latent sites of a Pyro model in unconstrained coordinates, and the guide's sites at their places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import _sum_rightmost as sum_rightmost  # pyright: ignore[reportPrivateUsage]

from bayeshnet.errors import ArgumentError

__all__ = [
    "LatentSite",
    "constrained",
    "emit_normal_sites",
    "emit_sites",
    "latent_nodes",
    "latent_sites",
    "nodes_of",
    "plain_support",
]

Plates: TypeAlias = Mapping[str, AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class LatentSite:
    """A continuous latent site and its unconstrained coordinates.

    Attributes:
        name: Name of the site.
        shape: Shape of the unconstrained value in the prototype trace.
        event_dim: Number of event dimensions of the unconstrained value.
        value_event_dim: Number of event dimensions of the constrained value.
        transform: From unconstrained to constrained values; None for the identity.
        plates: Names of the plates around the site.

    Example:
        >>> from pyro.distributions.transforms import ExpTransform
        >>> site = LatentSite("scale", Size([2]), 0, 0, ExpTransform(), ("groups",))
        >>> site.constrain(torch.zeros(2)), site.unconstrain(torch.ones(2))
        (tensor([1., 1.]), tensor([0., 0.]))
    """

    name: str
    shape: Size
    event_dim: int
    value_event_dim: int
    transform: Transform | None
    plates: tuple[str, ...]

    @property
    def numel(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(self.shape)

    def constrain(self, value: Tensor) -> Tensor:
        """Map unconstrained coordinates to the value of the site."""
        return value if self.transform is None else cast("Tensor", self.transform(value))

    def unconstrain(self, value: Tensor) -> Tensor:
        """Map a value of the site to its unconstrained coordinates."""
        return value if self.transform is None else cast("Tensor", self.transform.inv(value))

    def log_jacobian(self, unconstrained: Tensor, value: Tensor) -> Tensor | None:
        """Return the log determinant ``[*batch]`` of the Jacobian of :meth:`constrain`; None for the identity."""
        if self.transform is None:
            return None
        change = self.transform.log_abs_det_jacobian(unconstrained, value)
        return sum_rightmost(change, change.dim() - value.dim() + self.value_event_dim)


# ---------------------------------------------------------------------- from a vector of all latents to values


def constrained(sites: Sequence[LatentSite], latent: Tensor) -> dict[str, Tensor]:
    """Split unconstrained coordinates of all latents into the values of the sites.

    Args:
        sites: The latent sites.
        latent: ``[*batch, D]``, the coordinates of the sites one after the other.

    Returns:
        ``[*batch, *shape]`` by site name.

    Example:
        >>> site = LatentSite("w", Size([3, 2]), 2, 2, None, ())
        >>> constrained([site], torch.zeros(5, 6))["w"].shape
        torch.Size([5, 3, 2])
    """
    parts = zip(sites, latent.split([site.numel for site in sites], -1), strict=True)
    return {site.name: site.constrain(part.reshape((*latent.shape[:-1], *site.shape))) for site, part in parts}


def emit_sites(
    sites: Sequence[LatentSite], latent: Tensor, plates: Plates, *, jacobian: bool = True
) -> dict[str, Tensor]:
    """Make Pyro sites of a draw of all latents: point masses at the constrained values.

    Args:
        sites: The latent sites.
        latent: The draw ``[*batch, D]``, in unconstrained coordinates. The dimensions of ``batch``, those of
            vectorised particles for instance, are to the left of all plates.
        plates: The guide's plates by name.
        jacobian: Whether the draw has a density in unconstrained coordinates, so that the density of constrained values
            takes the Jacobian of the transform into account. It is a site of its own, ``_jac_NAME``: as a part of the
            point mass ``TraceMeanField_ELBO`` would drop it.

    Returns:
        The values by site name.

    Example:
        >>> site = LatentSite("w", Size([3, 2]), 2, 2, None, ())
        >>> emit_sites([site], torch.zeros(6), {})["w"].shape
        torch.Size([3, 2])
    """
    jacobian = jacobian and poutine.get_mask() is not False
    values: dict[str, Tensor] = {}
    for site, part in zip(sites, latent.split([site.numel for site in sites], -1), strict=True):
        unconstrained = part.reshape(_shape_in_batch(site, latent.shape[:-1]))
        value = site.constrain(unconstrained)
        with _inside(site, plates):
            if jacobian:
                _emit_jacobian(site, unconstrained, value)
            values[site.name] = pyro.sample(site.name, _PointMass(value, event_dim=site.value_event_dim))
    return values


def emit_normal_sites(sites: Sequence[LatentSite], mean: Tensor, std: Tensor, plates: Plates) -> dict[str, Tensor]:
    """Make Pyro sites of independent Gaussians in unconstrained coordinates.

    Latents on the whole real line are plain Normal sites. Others are drawn as ``NAME_unconstrained`` and transformed,
    as in :func:`emit_sites`.

    Args:
        sites: The latent sites.
        mean: Means ``[D]``.
        std: Standard deviations ``[D]``.
        plates: The guide's plates by name.

    Returns:
        The values by site name.

    Example:
        >>> site = LatentSite("w", Size([3, 2]), 2, 2, None, ())
        >>> emit_normal_sites([site], torch.zeros(6), torch.ones(6), {})["w"].shape
        torch.Size([3, 2])
    """
    sizes = [site.numel for site in sites]
    values: dict[str, Tensor] = {}
    for site, loc, scale in zip(sites, mean.split(sizes), std.split(sizes), strict=True):
        # Pyro's checks look at all numbers; a positive scale is certain here.
        normal = dist.Normal(loc.reshape(site.shape), scale.reshape(site.shape), validate_args=False)
        with _inside(site, plates):
            fn = normal.to_event(site.event_dim)
            values[site.name] = pyro.sample(site.name, fn) if site.transform is None else _emit_transformed(site, fn)
    return values


def _emit_transformed(site: LatentSite, fn: dist.TorchDistribution) -> Tensor:
    unconstrained = pyro.sample(f"{site.name}_unconstrained", fn, infer={"is_auxiliary": True})
    value = site.constrain(unconstrained)
    if poutine.get_mask() is not False:
        _emit_jacobian(site, unconstrained, value)
    return pyro.sample(site.name, _PointMass(value, event_dim=site.value_event_dim))


def _emit_jacobian(site: LatentSite, unconstrained: Tensor, value: Tensor) -> None:
    change = site.log_jacobian(unconstrained, value)
    if change is not None:
        pyro.sample(f"_jac_{site.name}", _LogJacobian(-change), infer={"is_auxiliary": True})


def _inside(site: LatentSite, plates: Plates) -> ExitStack:
    """Enter the plates of a site."""
    stack = ExitStack()
    for name in site.plates:
        stack.enter_context(plates[name])
    return stack


def _shape_in_batch(site: LatentSite, batch: Size) -> Size | tuple[int, ...]:
    """Return the shape of unconstrained values for a batch of draws, in which the site's plates have their places."""
    places = len(site.shape) - site.event_dim
    if not batch or not places:
        return (*batch, *site.shape)
    # What torch.broadcast_shapes does, which takes ten times as long.
    outside, inside = batch[: max(0, len(batch) - places)], batch[max(0, len(batch) - places) :]
    sizes = list(site.shape)
    for i, size in enumerate(inside, start=places - len(inside)):
        sizes[i] = size if sizes[i] == 1 else sizes[i]
    return (*outside, *sizes)


class _PointMass(dist.Delta):
    """A Delta that recognises its own value, without comparing all numbers at every step."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return super().rsample(sample_shape) if sample_shape else self.v

    def log_prob(self, x: Tensor) -> Tensor:
        if x is self.v:
            return cast("Tensor", self.log_density).expand(self.batch_shape)
        return super().log_prob(x)


class _LogJacobian(dist.Unit):
    """The density that a bijection contributes, which moves with the draw, as long as that hangs on its graph.

    A bijection has nothing to learn. Where a guide's draws are taken for fixed values, its density is a constant.
    """

    def __init__(self, log_factor: Tensor) -> None:
        super().__init__(log_factor, has_rsample=True)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _LogJacobian:
        return type(self)(self.log_factor.expand(Size(batch_shape)))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Return a value without numbers, which shows whether Pyro has detached it."""
        return super().rsample(sample_shape).requires_grad_(self.log_factor.requires_grad and torch.is_grad_enabled())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density along the draw, or at a fixed value."""
        log_factor = super().log_prob(value)
        return log_factor if value.requires_grad else log_factor.detach()


# ---------------------------------------------------------------------- from a trace to sites


def nodes_of(trace: Trace) -> dict[str, Any]:
    """Return the messages of a trace by name, typed for reading: Pyro annotates most of their entries as optional.

    Example:
        >>> trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
        >>> "z" in nodes_of(trace)
        True
    """
    return dict(trace.nodes)


def latent_nodes(trace: Trace) -> dict[str, Any]:
    """Return the messages of the latents of a trace by name: sample sites that are neither observed nor subsamples.

    Example:
        >>> trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
        >>> list(latent_nodes(trace))
        ['z']
    """
    return {
        name: site
        for name, site in nodes_of(trace).items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def latent_sites(trace: Trace) -> list[LatentSite]:
    """Return the latent sites of a model's trace.

    Raises:
        ArgumentError: If a latent is discrete or local to a plate that is subsampled, or there is none.

    Example:
        >>> trace = poutine.trace(lambda: pyro.sample("z", dist.LogNormal(0.0, 1.0))).get_trace()
        >>> [(site.name, site.transform is None) for site in latent_sites(trace)]
        [('z', False)]
    """
    sites: list[LatentSite] = []
    for name, site in latent_nodes(trace).items():
        fn, value = site["fn"], site["value"]
        if fn.support is not None and fn.support.is_discrete:
            raise ArgumentError(
                f"model: its latent site {name!r} ({type(fn).__name__}) is discrete; only continuous latents have a "
                "weight posterior. Sum it out in the model, or hide it, guide = AutoHypernet(poutine.block(model, "
                f"hide=[{name!r}]), ...), and enumerate it with TraceEnum_ELBO."
            )
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ArgumentError(
                    f"model: its latent site {name!r} is local to the plate {frame.name!r}, of which only {frame.size} "
                    f"of {frame.full_size} rows are in a batch, and the guide has one set of coordinates, which all "
                    f"batches would share. Leave out subsample and subsample_size, or draw {name!r} outside of the "
                    "plate."
                )
        transform = biject_to(plain_support(fn.support))
        unconstrained = transform.inv(value)
        sites.append(
            LatentSite(
                name,
                unconstrained.shape,
                fn.event_dim + unconstrained.dim() - value.dim(),
                fn.event_dim,
                None if _is_real(fn.support) else transform,
                tuple(frame.name for frame in site["cond_indep_stack"]),
            )
        )
    if sum(site.numel for site in sites) == 0:
        raise ArgumentError(
            "model: has no latent variables for these example arguments, so there is nothing to infer; check that the "
            "sites to infer are not observed (obs=...) or blocked."
        )
    return sites


def plain_support(support: Any) -> Any:
    """Return the constraint that torch knows a bijection for: for a mixture, that of its components.

    Example:
        >>> weights, parts = dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), torch.ones(2))
        >>> plain_support(dist.MixtureSameFamily(weights, parts).support)
        GreaterThanEq(lower_bound=0.0)
    """
    while type(support).__name__ == "MixtureSameFamilyConstraint":
        support = support.base_constraint
    if isinstance(support, constraints.independent):
        inner = plain_support(support.base_constraint)
        if inner is not support.base_constraint:
            return constraints.independent(inner, support.reinterpreted_batch_ndims)
    return support


def _is_real(support: Any) -> bool:
    support = plain_support(support)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
