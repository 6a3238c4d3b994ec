"""The log joint density of a Pyro model as a function of a batch of unconstrained latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.sites.latents import LatentSite, constrained, latent_sites, nodes_of
from bayeshnet.sites.prototype import detach_trace

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
        ArgumentError: If latents are discrete or absent, or the data are a minibatch.

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
            trace = poutine.trace(model).get_trace(*self._args, **self._kwargs)
            detach_trace(trace)
            self._nesting = _require_all_rows(trace)
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
        """Return the coordinates ``[C, D]`` of values ``[C, *shape]`` by site.

        Raises:
            ArgumentError: If a site is missing, or has another shape.
        """
        missing = [site.name for site in self.sites if site.name not in values]
        if missing:
            raise ArgumentError(f"guide: gives no draws of the model's latents {missing}, only of {list(values)}.")
        parts: list[Tensor] = []
        for site in self.sites:
            value = values[site.name]
            found = site.unconstrain(value)
            if found[0].numel() != site.numel:
                raise ArgumentError(
                    f"guide: its draws of {site.name!r} have shape {tuple(value.shape)}, which are not draws of that "
                    f"latent: its coordinates are {tuple(site.shape)}. Pass draws [S, *shape] by site."
                )
            parts.append(found.reshape(len(value), -1))
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
        for log_prob in self._log_probs(model, values):
            if log_prob.dim() <= self._nesting:  # the same for all chains
                total = total + log_prob.sum()
            elif log_prob.dim() == self._nesting + 1:
                total = total + log_prob.reshape(len(log_prob), -1).sum(1)
            else:
                raise ValueError(f"a log density of shape {tuple(log_prob.shape)} for {num} chains")
        return total

    def _alone(self, u: Tensor) -> Tensor:
        total = u.new_zeros((), dtype=torch.float64)
        values: dict[str, Tensor] = {}
        for site, part in zip(self.sites, u.split([site.numel for site in self.sites]), strict=True):
            unconstrained = part.reshape(site.shape)
            values[site.name] = value = site.constrain(unconstrained)
            jacobian = site.log_jacobian(unconstrained, value)
            if jacobian is not None:
                total = total + jacobian.double().sum()
        for log_prob in self._log_probs(self._model, values):
            total = total + log_prob.sum()
        return total

    def _log_probs(self, model: Callable[..., Any], values: dict[str, Tensor]) -> list[Tensor]:
        conditioned = poutine.condition(model, data=values)
        # Far from the posterior a constraint may be broken by rounding, which is a rejection and not an error.
        with pyro.validation_enabled(False):
            trace = poutine.trace(conditioned).get_trace(*self._args, **self._kwargs)
            trace.compute_log_prob()
        return [site["log_prob"].double() for site in nodes_of(trace).values() if site["type"] == "sample"]

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


def _require_all_rows(trace: Trace) -> int:
    """Number of plate dimensions of a trace.

    Raises:
        ArgumentError: If a plate has a part of its rows.
    """
    nesting = 0
    for site in nodes_of(trace).values():
        for frame in site.get("cond_indep_stack", ()):
            if frame.full_size not in (None, frame.size):
                raise ArgumentError(
                    f"data: are {frame.size} of {frame.full_size} rows (plate {frame.name!r}); these chains need the "
                    "density of all rows. Pass all of them."
                )
            nesting = max(nesting, -frame.dim) if frame.vectorized else nesting
    return nesting
