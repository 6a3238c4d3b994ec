"""The log joint density of a Pyro model as a function of a batch of unconstrained latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.sites.data_errors import errors_of_data
from bayeshnet.sites.latents import LatentSite, constrained, latent_sites, nodes_of
from bayeshnet.sites.prototype import detach_trace
from bayeshnet.sites.traces import log_prob_per_draw, plate_nesting, require_all_rows, total_log_prob

__all__ = ["LogJoint"]

_LOGGER = logging.getLogger(__name__)


class LogJoint:
    r"""The log joint density :math:`\log p(y, z(u)) + \log |dz / du|` of many ``u`` at once, with its gradient.

    The model runs once for all chains, in a plate to the left of its own, if a trial shows that this gives the
    densities of one chain at a time; otherwise once for each. Densities are summed in float64.

    Args:
        model: Any Pyro model whose latents are continuous.
        args: Its arguments, with all observations.
        kwargs: Its keyword arguments.

    Attributes:
        sites: The latent sites, in the order of their coordinates.
        dim: Number D of unconstrained coordinates.
        vectorised: Whether the model runs once for all chains.

    Raises:
        ArgumentError: If latents are discrete or absent, or the data are a minibatch or make the model fail.
        ArgumentTypeError: If the model does not take these arguments.

    Example:
        >>> import pyro.distributions as dist
        >>> target = LogJoint(lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1)))
        >>> value, gradient = target.with_gradient(torch.ones(5, 3))
        >>> value.shape, gradient.shape, target.vectorised
        (torch.Size([5]), torch.Size([5, 3]), True)
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self._model, self._args, self._kwargs = model, args, dict(kwargs or {})
        with torch.random.fork_rng(devices=[]):
            with errors_of_data(model, self._args, self._kwargs, "data"):
                trace = poutine.trace(model).get_trace(*self._args, **self._kwargs)
            detach_trace(trace)
            require_all_rows(trace, "chains")
            self._nesting = plate_nesting(trace)
            self.sites: list[LatentSite] = latent_sites(trace)
            nodes = nodes_of(trace)
            starts = [site.unconstrain(nodes[site.name]["value"]).reshape(-1) for site in self.sites]
            self._prototype = torch.cat(starts).detach()
            self.dim = len(self._prototype)
            self.vectorised = self._vectorises()

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """Return the values ``[C, *shape]`` by site of unconstrained coordinates ``[C, D]``."""
        return constrained(self.sites, u)

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the coordinates ``[C, D]`` of draws ``[C, *shape]`` by site.

        Raises:
            ArgumentError: If a site is missing, has another shape or number of draws than the others, or values that
                are NaN, infinite or outside of its support.
            ArgumentTypeError: If draws are no tensor.
        """
        missing = [site.name for site in self.sites if site.name not in values]
        if missing:
            raise ArgumentError(f"guide: gives no draws of the model's latents {missing}, only of {list(values)}.")
        parts: list[Tensor] = []
        for site in self.sites:
            value: Any = values[site.name]
            if not isinstance(value, Tensor) or not value.dim():
                raise ArgumentTypeError(f"guide: gives {kind_of(value)} for {site.name!r}; pass draws [S, *shape].")
            found = site.unconstrain(value)
            if found.numel() != len(value) * site.numel or not len(value):
                raise ArgumentError(
                    f"guide: its draws of {site.name!r} have shape {tuple(value.shape)}, which are not draws of that "
                    f"latent: its coordinates are {tuple(site.shape)}. Pass draws [S, *shape] by site."
                )
            if not bool(torch.isfinite(found).all()):
                raise ArgumentError(
                    f"guide: gives draws of {site.name!r} that are NaN, infinite or outside of the latent's support; "
                    "remove them, or fit the guide again."
                )
            parts.append(found.reshape(len(value), -1))
        numbers = {site.name: len(part) for site, part in zip(self.sites, parts, strict=True)}
        if len({*numbers.values()}) > 1:
            raise ArgumentError(f"guide: gives different numbers of draws, {numbers}; pass as many of each site.")
        return torch.cat(parts, dim=1).to(self._prototype)

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log density ``[C]`` of ``u [C, D]``, in float64."""
        if self.vectorised:
            return self._together(u)
        return torch.stack([self._alone(row) for row in u])

    def with_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density ``[C]`` and its gradient ``[C, D]``; -inf where it is not finite."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = self(u)
            (gradient,) = torch.autograd.grad(value.sum(), u)
        value = value.detach()
        return torch.where(torch.isfinite(value), value, -torch.inf), torch.nan_to_num(gradient, 0.0, 0.0, 0.0)

    # ------------------------------------------------------------------ how the model runs

    def _together(self, u: Tensor) -> Tensor:
        num = len(u)
        values: dict[str, Tensor] = {}
        total = u.new_zeros(num, dtype=torch.float64)
        for site, part in zip(self.sites, u.split([site.numel for site in self.sites], -1), strict=True):
            unconstrained = part.reshape(num, *site.shape)
            value = site.constrain(unconstrained)
            jacobian = site.log_jacobian(unconstrained, value)
            if jacobian is not None:
                total = total + jacobian.double().reshape(num, -1).sum(1)
            outside = value.dim() - 1 - site.value_event_dim  # dimensions of the site's own plates
            values[site.name] = value.reshape(num, *(1,) * (self._nesting - outside), *value.shape[1:])
        model = pyro.plate("_chains", num, dim=-1 - self._nesting)(self._model)
        return total + log_prob_per_draw(self._trace(model, values), num, self._nesting + 1)

    def _alone(self, u: Tensor) -> Tensor:
        total = u.new_zeros((), dtype=torch.float64)
        values: dict[str, Tensor] = {}
        for site, part in zip(self.sites, u.split([site.numel for site in self.sites]), strict=True):
            unconstrained = part.reshape(site.shape)
            values[site.name] = value = site.constrain(unconstrained)
            jacobian = site.log_jacobian(unconstrained, value)
            if jacobian is not None:
                total = total + jacobian.double().sum()
        return total + total_log_prob(self._trace(self._model, values))

    def _trace(self, model: Callable[..., Any], values: dict[str, Tensor]) -> Trace:
        conditioned = poutine.condition(model, data=values)
        # Far from the posterior a constraint may be broken by rounding, which is a rejection and not an error.
        with pyro.validation_enabled(False):
            trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(*self._args, **self._kwargs))
            trace.compute_log_prob()
        return trace

    def _vectorises(self) -> bool:
        u = self._prototype + 0.1 * torch.randn(3, self.dim).to(self._prototype)
        with torch.no_grad():
            alone = torch.stack([self._alone(row) for row in u])
            # Whatever a model does that cannot be vectorised: it runs one chain at a time, where its errors come up.
            try:
                together = self._together(u)
            except Exception as error:
                _LOGGER.info("the model cannot be vectorised over chains, which run in turn: %s", error)
                return False
        same = together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-3, atol=1e-3)
        if not same:
            _LOGGER.info("the model gives other densities for several chains together, which run in turn")
        return same
