"""Importance weights of any guide against any Pyro model, and the log evidence that follows."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor, nn

from bayeshnet.entropy.protocol import LogDensity
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError, UsageError
from bayeshnet.infer.arguments import call_arguments, require_targets
from bayeshnet.infer.latents import nodes_of
from bayeshnet.infer.psis import Estimate, WeightedDraws

__all__ = ["importance_sample", "log_evidence"]

_LOGGER = logging.getLogger(__name__)
# Draws in one vectorised call.
_AT_ONCE = 256


@torch.no_grad()
def importance_sample(
    model: Callable[..., Any], guide: Callable[..., Any], data: Any, num_samples: int = 1000
) -> WeightedDraws:
    """Draw from a guide, and weight each draw by ``p(data, z) / q(z)``.

    log p is the sum over all sites of the model, log q over all sites of the guide, auxiliary ones too. Draws are made
    and scored in vectorised calls of up to 256. Before that the model is tried on a few draws; if it fails, or gives
    them other densities than one by one, all are scored one by one. The trial leaves the caller's random numbers alone.

    A model that is a module is put into evaluation mode for the call.

    Args:
        model: Any Pyro model whose latents are all in the guide.
        guide: Any guide for it: of this package, of Pyro, or a function.
        data: The arguments of the model, with all observations: a tuple, a mapping, or one tensor. No minibatch.
        num_samples: Number S of draws.

    Raises:
        ValueError: If the data are a minibatch, the latents of guide and model differ, or ``num_samples`` is below 2.
        TypeError: If an argument is of another type.
        RuntimeError: If the guide is a point, has no density per draw, or a weight is NaN or +inf.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> def guide(y):  # the exact posterior: all weights are the evidence
        ...     pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), (len(y) + 1) ** -0.5))
        >>> w = importance_sample(model, guide, torch.tensor([1.0, 2.0]), num_samples=100)
        >>> w.draws["mu"].shape, bool(w.log_weights.std() < 1e-5)
        (torch.Size([100]), True)
    """
    for name, part in (("model", model), ("guide", guide)):
        if not callable(part):
            raise ArgumentTypeError(f"{name}: is a {type(part).__name__}; pass a Pyro {name}, a callable.")
    if num_samples < 2:
        raise ArgumentError(f"num_samples: is {num_samples}; pass at least 2, better 1000 or more.")
    args, kwargs = _all_data(model, data)
    _require_density(guide)
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        pair = _Pair(model, guide, args, kwargs)
        if pair.vectorises():
            chunks = math.ceil(num_samples / _AT_ONCE)
            sizes = [(num_samples + i) // chunks for i in range(chunks)]
            parts = [pair.draw(size) for size in sizes]
        else:
            _LOGGER.info("model or guide cannot be vectorised over draws; %d draws are made in turn", num_samples)
            parts = [pair.draw_one() for _ in range(num_samples)]
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
    log_p, log_q = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    log_weights = log_p - log_q
    _refuse_undefined(log_p, log_q, log_weights)
    draws = {name: torch.cat([part[0][name] for part in parts]) for name in pair.shapes}
    return WeightedDraws(draws, log_weights)


def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    num_samples: int = 1000,
    *,
    method: Literal["psis", "iwae"] = "psis",
) -> Estimate:
    """Logarithm of the marginal likelihood of the data, by importance sampling from a guide.

    Warns if k-hat says that the error cannot be trusted. To get other numbers from the same draws use
    :func:`importance_sample`.

    Args:
        model: Any Pyro model.
        guide: Any guide for it.
        data: The arguments of the model, with all observations.
        num_samples: Number of draws.
        method: ``"psis"``: the mean of the smoothed weights; or ``"iwae"``: that of the weights themselves, whose
            expectation is a lower bound.

    Returns:
        Value and standard error in nats.

    Raises:
        ValueError: As for :func:`importance_sample`, or if ``method`` is unknown.
        TypeError: As for :func:`importance_sample`.
        RuntimeError: As for :func:`importance_sample`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     pyro.sample("obs", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mu", dist.Normal(0.5, 0.8))
        >>> y = torch.tensor(1.0)
        >>> found, exact = log_evidence(model, guide, y), dist.Normal(0.0, 2**0.5).log_prob(y)
        >>> bool(abs(found.value - exact) < 4 * found.error)
        True
    """
    if method not in ("psis", "iwae"):
        raise ArgumentError(f"method: is {method!r}; pass 'psis' or 'iwae'.")
    weighted = importance_sample(model, guide, data, num_samples)
    weighted.warn_if_unreliable("The log evidence and its error", stacklevel=2)
    return weighted.log_evidence if method == "psis" else weighted.iwae()


# ---------------------------------------------------------------------- what can be weighted


def _all_data(model: Callable[..., Any], data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(data, Tensor | Mapping | tuple):
        raise ArgumentTypeError(
            f"data: is a {type(data).__name__}; importance weights need all observations at once. Pass the model's "
            "arguments as a tuple (x, y), a dict or a tensor; of a loader, its whole data set."
        )
    args, kwargs = call_arguments(data, "data")
    require_targets(model, args, kwargs, "data")
    return args, kwargs


def _require_density(guide: Any) -> None:
    estimator = getattr(guide, "estimator", None)
    if isinstance(estimator, LogDensity) and not estimator.per_draw:
        raise DensityError(
            f"guide: its estimator {estimator!r} gives no density of a draw, so there are no importance weights. Build "
            "the guide with ChangeOfVariables() for shared noise or Linearised() for independent noise."
        )


def _refuse_undefined(log_p: Tensor, log_q: Tensor, log_weights: Tensor) -> None:
    bad = torch.isnan(log_weights) | (log_weights == math.inf)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise UsageError(
            f"model, guide: the weight of {int(bad.sum())} of {len(bad)} draws is NaN or infinite; of the first such "
            f"draw log p is {float(log_p[first])} and log q {float(log_q[first])}. Check the data for NaN, and the "
            "guide's scales."
        )


# ---------------------------------------------------------------------- how draws are scored


class _Pair:
    """A model and its guide, run together."""

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        with torch.random.fork_rng(devices=[]):
            (guide_trace, model_trace), (again, _) = self.run(None), self.run(None)
        latents = _latents(guide_trace, model_trace)
        self.shapes = {name: site["value"].shape for name, site in latents.items()}
        self.nesting = 1 + _plate_nesting(guide_trace, model_trace)
        repeated = nodes_of(again)
        self.random = [n for n, site in latents.items() if not torch.equal(site["value"], repeated[n]["value"])]
        if not self.random:
            raise UsageError(
                "guide: gives the same latents at every call; a point has no density, so there are no importance "
                "weights. Pass a guide with a spread, such as AutoHypernet or AutoNormal."
            )

    def run(self, num: int | None) -> tuple[Trace, Trace]:
        """Traces of the guide and of the model that takes its draws: ``num`` draws, or one without a plate for them."""
        if num is None:
            guide, model = self.guide, self.model
        else:
            guide, model = (pyro.plate("_draws", num, dim=-self.nesting)(fn) for fn in (self.guide, self.model))
        guide_trace = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
        traces = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        for trace in traces:
            trace.compute_log_prob()
        return traces

    def draw(self, num: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Draws ``[num, *shape]`` by site, their log p and log q ``[num]``, in one vectorised call."""
        guide_trace, model_trace = self.run(num)
        nodes = nodes_of(guide_trace)
        draws = {name: nodes[name]["value"].reshape((num, *shape)) for name, shape in self.shapes.items()}
        return draws, self._per_draw(model_trace, num), self._per_draw(guide_trace, num)

    def draw_one(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The same for one draw, without a plate around it."""
        guide_trace, model_trace = self.run(None)
        nodes = nodes_of(guide_trace)
        draws = {name: nodes[name]["value"].unsqueeze(0) for name in self.shapes}
        return draws, _total(model_trace).reshape(1), _total(guide_trace).reshape(1)

    def vectorises(self, num: int = 3) -> bool:
        """Whether draws made together differ, and have the log p that they have one by one."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Whatever a model does that cannot be vectorised: it is then run one draw at a time, and errors that
            # have another cause come up there.
            try:
                draws, together, _ = self.draw(num)
            except Exception as error:
                _LOGGER.debug("the vectorised trial failed: %s", error)
                return False
            if any(torch.equal(draws[name][0], draws[name][1]) for name in self.random):
                return False
            one_by_one = torch.stack([self._log_joint({n: v[i] for n, v in draws.items()}) for i in range(num)])
        return torch.allclose(together, one_by_one, rtol=1e-3, atol=1e-3, equal_nan=True)

    def _log_joint(self, values: dict[str, Tensor]) -> Tensor:
        conditioned = poutine.condition(self.model, data=values)
        trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(*self.args, **self.kwargs))
        trace.compute_log_prob()
        return _total(trace)

    def _per_draw(self, trace: Trace, num: int) -> Tensor:
        """Sum over the sites of a vectorised trace ``[num]``, in float64."""
        totals: list[Tensor] = []
        for name, log_prob in _log_probs(trace):
            if log_prob.dim() < self.nesting:  # the same for all draws
                totals.append(log_prob.sum().expand(num))
            elif log_prob.dim() == self.nesting and log_prob.shape[0] in (1, num):
                totals.append(log_prob.reshape(log_prob.shape[0], -1).sum(1).expand(num))
            else:
                raise UsageError(
                    f"model, guide: the log density of site {name!r} has shape {tuple(log_prob.shape)} for {num} draws."
                )
        return torch.stack(totals).sum(0)


def _log_probs(trace: Trace) -> list[tuple[str, Tensor]]:
    sites = nodes_of(trace).items()
    return [(name, site["log_prob"].double()) for name, site in sites if site["type"] == "sample"]


def _total(trace: Trace) -> Tensor:
    return torch.stack([log_prob.sum() for _, log_prob in _log_probs(trace)]).sum()


def _latents(guide_trace: Trace, model_trace: Trace) -> dict[str, Any]:
    """The guide's sites that the model takes its latents from, by name."""
    in_guide = {
        name: site
        for name, site in nodes_of(guide_trace).items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    wanted: list[str] = []
    for name, site in nodes_of(model_trace).items():
        if site["type"] != "sample":
            continue
        for frame in site["cond_indep_stack"]:
            if frame.full_size not in (None, frame.size):
                raise ArgumentError(
                    f"data: are {frame.size} of {frame.full_size} rows (plate {frame.name!r}); importance weights of a "
                    "minibatch mean nothing. Pass all rows."
                )
        if not site["is_observed"] and not site_is_subsample(site):
            wanted.append(name)
    missing = [name for name in wanted if name not in in_guide]
    extra = [n for n, site in in_guide.items() if n not in wanted and not site["infer"].get("is_auxiliary")]
    if missing or extra:
        raise ArgumentError(
            f"guide: lacks the model's latents {missing}, and has sites {extra} that the model has not; log q then is "
            "no density of the model's latents. Was it made for this model and data? Auxiliary variables need "
            "infer={'is_auxiliary': True}."
        )
    return {name: in_guide[name] for name in wanted}


def _plate_nesting(*traces: Trace) -> int:
    """Number of plate dimensions in use."""
    frames = [
        frame for trace in traces for site in nodes_of(trace).values() for frame in site.get("cond_indep_stack", ())
    ]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)
