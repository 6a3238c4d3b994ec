"""Where the latent variables of a Pyro model live: their sites, and the scale of their prior."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import TransformedDistribution, biject_to, constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import _sum_rightmost as sum_rightmost  # pyright: ignore[reportPrivateUsage]

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError, BayeshnetWarning
from bayeshnet.sites.one_thread import one_thread

__all__ = [
    "CheckedInit",
    "LatentSite",
    "PriorStart",
    "jacobian_site",
    "latent_sites",
    "nodes_of",
    "prior_draw",
    "prior_start",
]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LatentSite:
    """A continuous latent site, in unconstrained coordinates.

    Attributes:
        name: The site's name.
        shape: Shape of its unconstrained value at the prototype.
        event_dim: Number of event dimensions of the unconstrained value.
        value_event_dim: The same of the constrained value.
        transform: From unconstrained to constrained values; None for the identity.
        plates: Names of the plates it is in.
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
        """The site's value for unconstrained coordinates."""
        return value if self.transform is None else cast("Tensor", self.transform(value))

    def log_jacobian(self, unconstrained: Tensor, value: Tensor) -> Tensor | None:
        """Logarithm ``[*batch]`` of the determinant of :meth:`constrain`, summed over a value; None where it is 0."""
        if self.transform is None:
            return None
        change = self.transform.log_abs_det_jacobian(unconstrained, value)
        return sum_rightmost(change, change.dim() - value.dim() + self.value_event_dim)

    def unconstrain(self, value: Tensor) -> Tensor:
        """Unconstrained coordinates of the site's value."""
        return value if self.transform is None else cast("Tensor", self.transform.inv(value))


def jacobian_site(site: LatentSite, unconstrained: Tensor, value: Tensor) -> None:
    """Tell Pyro the log-density that a constrained latent owes to its bijection, unless densities are masked away.

    A site of its own: inside the Delta of the latent, ``TraceMeanField_ELBO`` would drop it.
    """
    change = None if poutine.get_mask() is False else site.log_jacobian(unconstrained, value)
    if change is not None:
        pyro.sample(f"_jac_{site.name}", _LogJacobian(-change), infer={"is_auxiliary": True})


class _LogJacobian(dist.Unit):
    """The density that a bijection contributes, which moves with the draw, as long as that hangs on its graph.

    A bijection has nothing to learn. Where a guide's draws are taken for fixed values, its density is a constant.
    """

    def __init__(self, log_factor: Tensor) -> None:
        super().__init__(log_factor, has_rsample=True)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _LogJacobian:
        """The same for every place of ``batch_shape``."""
        return type(self)(self.log_factor.expand(Size(batch_shape)))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """A value without numbers, which shows whether Pyro has detached it."""
        return super().rsample(sample_shape).requires_grad_(self.log_factor.requires_grad and torch.is_grad_enabled())

    def log_prob(self, value: Tensor) -> Tensor:
        """The density, along the draw or at a fixed value."""
        log_factor = super().log_prob(value)
        return log_factor if value.requires_grad else log_factor.detach()


def nodes_of(trace: Trace) -> dict[str, Any]:
    """The messages of a trace by name; Pyro annotates most of their entries as optional."""
    return dict(trace.nodes)


def latent_sites(trace: Trace) -> list[LatentSite]:
    """The latent sites of a model's trace.

    Raises:
        ValueError: If a latent is discrete, or there is none.
    """
    sites: list[LatentSite] = []
    for name, site in nodes_of(trace).items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        fn, value = site["fn"], site["value"]
        if fn.support is not None and fn.support.is_discrete:
            raise ArgumentError(
                f"model: its latent site {name!r} ({type(fn).__name__}) is discrete; only continuous latents have a "
                "weight posterior. Sum it out in the model, or hide it, guide = AutoHypernet(poutine.block(model, "
                f"hide=[{name!r}]), ...), and enumerate it with TraceEnum_ELBO."
            )
        transform = biject_to(_plain_support(fn.support))
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


def _plain_support(support: Any) -> Any:
    """The constraint that torch knows a bijection for: that of the components, for a mixture."""
    while type(support).__name__ == "MixtureSameFamilyConstraint":
        support = support.base_constraint
    if isinstance(support, constraints.independent):
        inner = _plain_support(support.base_constraint)
        if inner is not support.base_constraint:
            return constraints.independent(inner, support.reinterpreted_batch_ndims)
    return support


def _is_real(support: Any) -> bool:
    support = _plain_support(support)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def prior_draw(site: Any) -> Tensor:
    """Value of a site for the prototype: a prior draw, or the middle of its support if the prior is improper."""
    fn = site["fn"]
    try:
        return fn.sample()
    except NotImplementedError:
        transform = biject_to(_plain_support(fn.support))
        return transform(torch.zeros(transform.inverse_shape(fn.batch_shape + fn.event_shape)))


class CheckedInit:
    """A per-site initialisation function whose values are looked at.

    Args:
        init_loc_fn: From a site to its value, as Pyro's ``init_to_median``; None for a draw from the prior.

    Raises:
        TypeError: If it cannot be called.
    """

    def __init__(self, init_loc_fn: Callable[..., Any]) -> None:
        if not callable(init_loc_fn):
            raise ArgumentTypeError(
                f"init_loc_fn: is a {type(init_loc_fn).__name__}; pass a function from a site to its value, such as "
                "pyro.infer.autoguide.init_to_median or init_to_value(values={...}), or None."
            )
        try:
            signature = inspect.signature(init_loc_fn)
        except (TypeError, ValueError):  # builtins have none
            signature = None
        try:
            _ = signature and signature.bind("site")
        except TypeError as reason:
            raise ArgumentTypeError(
                f"init_loc_fn: the function takes {signature}, but is called with one site ({reason})."
            ) from None
        self.init_loc_fn = init_loc_fn

    def __call__(self, site: Any) -> Any:
        """The value of a site.

        Raises:
            ValueError: If it has another shape than the site, or is not finite.
            TypeError: If it is no tensor of real numbers.
        """
        value = self.init_loc_fn(site)
        if value is None:
            return None
        name, shape = site["name"], tuple(site["fn"].shape())
        if not isinstance(value, Tensor) or value.is_complex():
            given = f"a {type(value).__name__}" if not isinstance(value, Tensor) else f"a tensor of {value.dtype}"
            raise ArgumentTypeError(f"init_loc_fn: gives {given} for the site {name!r}; return a tensor {shape}.")
        if tuple(value.shape) != shape:
            raise ArgumentError(
                f"init_loc_fn: gives a value of shape {tuple(value.shape)} for the site {name!r}; return {shape}."
            )
        if not bool(torch.isfinite(value).all()):
            raise ArgumentError(f"init_loc_fn: gives values for the site {name!r} that are NaN or infinite.")
        return value


@dataclass(frozen=True, slots=True)
class PriorStart:
    """Centre and spread of the prior in unconstrained coordinates.

    Attributes:
        loc: Centre ``[D]``.
        scale: Spread ``[D]``, positive.
        gaussian: Where the prior is a Normal with known location and scale ``[D]``, as for network weights.
    """

    loc: Tensor
    scale: Tensor
    gaussian: Tensor


def prior_start(
    model: Callable[..., Any],
    sites: Sequence[LatentSite],
    prototype: Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    num_draws: int = 48,
) -> PriorStart:
    """Centre and spread of each latent coordinate under the prior.

    Exact for Normal priors that do not depend on other latents; median and interquartile range of prior draws
    elsewhere; the prototype's value and 1 where the prior cannot be drawn from.

    Args:
        model: The Pyro model.
        sites: Its latent sites.
        prototype: A feasible unconstrained point ``[D]``.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        num_draws: Runs of the model, if not all priors are plain Normals.
    """
    loc, scale = prototype.clone(), torch.ones_like(prototype)
    gaussian = torch.zeros_like(prototype, dtype=torch.bool)
    traces: list[Trace] = []
    try:
        with one_thread("AutoHypernet"), torch.no_grad():
            traces.extend(_prior_trace(model, args, kwargs) for _ in range(2))
            known = [_constant_normal(traces, site) for site in sites]
            if any(moments is None for moments in known):
                traces.extend(_prior_trace(model, args, kwargs) for _ in range(num_draws - 2))
        parts: list[tuple[Tensor, Tensor, bool]] = []
        for site, moments in zip(sites, known, strict=True):
            parts.append((*_empirical(traces, site), False) if moments is None else (*moments, True))
        loc = torch.cat([part[0] for part in parts]).to(prototype)
        scale = torch.cat([part[1] for part in parts]).to(prototype)
        gaussian = torch.cat([torch.full(part[0].shape, part[2]) for part in parts]).to(prototype.device)
    except (BayeshnetError, BayeshnetWarning):  # the model's own words; a warning is raised where it is an error
        raise
    except Exception as error:  # drawing from an improper or fragile prior may fail in any way
        _LOGGER.debug("the prior cannot be drawn from: %s", error)
    usable = torch.isfinite(loc) & torch.isfinite(scale) & (scale > 0)
    return PriorStart(
        torch.where(usable, loc, prototype), torch.where(usable, scale, torch.ones_like(scale)), gaussian & usable
    )


def _prior_trace(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Trace:
    return poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)


def _constant_normal(traces: Sequence[Trace], site: LatentSite) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a Normal prior that is the same in every run."""
    found: list[tuple[Tensor, Tensor]] = []
    for trace in traces[:2]:
        fn = nodes_of(trace)[site.name]["fn"]
        while not isinstance(fn, torch.distributions.Normal):
            if isinstance(fn, TransformedDistribution) and not isinstance(fn, torch.distributions.LogNormal):
                return None  # its base is Normal in other coordinates than the unconstrained ones
            fn = getattr(fn, "base_dist", None)
            if fn is None:
                return None
        found.append((fn.loc, fn.scale))
    (loc, scale), (loc_again, scale_again) = found
    if not (torch.equal(loc, loc_again) and torch.equal(scale, scale_again)):
        return None
    return loc.expand(site.shape).reshape(-1), scale.expand(site.shape).reshape(-1)


def _empirical(traces: Sequence[Trace], site: LatentSite) -> tuple[Tensor, Tensor]:
    values = [nodes_of(trace)[site.name]["value"] for trace in traces]
    draws = torch.stack([site.unconstrain(value).reshape(-1) for value in values])
    quartiles = torch.quantile(draws, torch.tensor([0.25, 0.5, 0.75], dtype=draws.dtype, device=draws.device), dim=0)
    return quartiles[1], ((quartiles[2] - quartiles[0]) / 1.349).clamp(1e-3, 1e3)
