"""Traces of a guide and of its model: whether they fit each other, and whether they can be vectorised over draws."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.sites.latents import latent_nodes, nodes_of

__all__ = [
    "PairedTraces",
    "log_prob_per_draw",
    "plate_nesting",
    "require_all_rows",
    "require_same_latents",
    "total_log_prob",
]

_LOGGER = logging.getLogger(__name__)


class PairedTraces:
    """Traces of a guide, and of its model replayed against them.

    Args:
        model: The model.
        guide: Its guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        partial: Whether the data may be a minibatch, and the guide may lack some latents of the model.
        all_latents: Whether the guide must have all latents of the model even if ``partial``.

    Raises:
        ArgumentError: If the latents of the two differ, or the data are a minibatch and ``partial`` is False.

    Example:
        >>> import pyro.distributions as dist
        >>> model = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = lambda: pyro.sample("z", dist.Normal(0.5, 1.0))
        >>> draws, log_p, log_q = PairedTraces(model, guide, (), {}).draw(5)
        >>> draws["z"].shape, log_p.shape, log_q.shape
        (torch.Size([5]), torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        partial: bool = False,
        all_latents: bool = False,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self._subsamples: dict[str, Tensor] = {}
        guide_trace, model_trace = self.run(None)
        if not partial:
            require_all_rows(model_trace, "importance weights")
        self._latents = _latents(guide_trace, model_trace, partial=partial and not all_latents)
        self.shapes = {name: site["value"].shape for name, site in self._latents.items()}
        self.nesting = 1 + plate_nesting(guide_trace, model_trace)
        self._random = list(self.shapes)

    def require_spread(self) -> None:
        """Raise unless the guide has a spread.

        Raises:
            UsageError: If the guide is a point.
        """
        repeated = nodes_of(self.run(None)[0])
        sites = self._latents.items()
        self._random = [name for name, site in sites if not torch.equal(site["value"], repeated[name]["value"])]
        if not self._random:
            raise UsageError(
                "guide: gives the same latents at every call; a point has no density, so there are no importance "
                "weights. Pass a guide with a spread, such as AutoHypernet or AutoNormal."
            )

    def run(self, num: int | None) -> tuple[Trace, Trace]:
        """Trace the guide, and the model with its draws.

        Args:
            num: Number of draws, in a plate; None for one draw without a plate.

        Returns:
            The traces of guide and model.
        """
        if num is None:
            guide, model = self.guide, self.model
        else:
            guide, model = (pyro.plate("_draws", num, dim=-self.nesting)(fn) for fn in (self.guide, self.model))
        guide_trace = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
        nodes = nodes_of(model_trace).items()
        self._subsamples = {name: site["value"] for name, site in nodes if site_is_subsample(site)}
        traces = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        for trace in traces:
            trace.compute_log_prob()
        return traces

    def draw(self, num: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Make draws in one vectorised call.

        Args:
            num: Number S of draws.

        Returns:
            Draws ``[S, *shape]`` by site name, their log p ``[S]`` and log q ``[S]``, both in float64.
        """
        guide_trace, model_trace = self.run(num)
        nodes = nodes_of(guide_trace)
        draws = {name: nodes[name]["value"].reshape((num, *shape)) for name, shape in self.shapes.items()}
        log_p, log_q = (log_prob_per_draw(trace, num, self.nesting) for trace in (model_trace, guide_trace))
        return draws, log_p, log_q

    def draw_one(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Make one draw without a plate around it; returns what :meth:`draw` does, for S = 1."""
        guide_trace, model_trace = self.run(None)
        nodes = nodes_of(guide_trace)
        draws = {name: nodes[name]["value"].unsqueeze(0) for name in self.shapes}
        return draws, total_log_prob(model_trace).reshape(1), total_log_prob(guide_trace).reshape(1)

    def trouble(self, num: int = 3, *, strict: bool = False) -> str | None:
        """Compare log p of vectorised draws with log p of the same draws one by one.

        Args:
            num: Number of draws to try.
            strict: Whether vectorised draws must differ, and log p must be a function of the draw alone. Otherwise
                noise that the draws share is accepted, and so is a random log p.

        Returns:
            What goes wrong with vectorised draws, for a message; None if nothing does.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Whatever a model does that cannot be vectorised: it is then run one draw at a time, and errors that
            # have another cause come up there.
            try:
                draws, together, _ = self.draw(num)
            except Exception as error:
                _LOGGER.debug("the vectorised trial failed: %s", error)
                return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            if strict and any(torch.equal(draws[name][0], draws[name][1]) for name in self._random):
                return "draws made together are all the same"
            one_by_one = self._one_by_one(draws)
            if _close(together, one_by_one):
                return None
            if not _close(one_by_one, self._one_by_one(draws)):
                return None if not strict else "the model's log density is random"  # nothing to compare with
        pair = f"{float(together[0]):.6g} among others and {float(one_by_one[0]):.6g} alone"
        return f"the log density of a draw is {pair}"

    def _one_by_one(self, draws: Mapping[str, Tensor]) -> Tensor:
        num = len(next(iter(draws.values())))
        return torch.stack([self._log_joint({name: value[i] for name, value in draws.items()}) for i in range(num)])

    def _log_joint(self, values: dict[str, Tensor]) -> Tensor:
        # The same rows as before, where the model takes them at random.
        conditioned = poutine.condition(self.model, data={**self._subsamples, **values})
        trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(*self.args, **self.kwargs))
        trace.compute_log_prob()
        return total_log_prob(trace)


def require_same_latents(wanted: Sequence[str], given: Sequence[str], *, partial: bool = False) -> None:
    """Raise unless a guide has the latents of the model.

    Args:
        wanted: Names of the model's latents.
        given: Names of the guide's latents, without auxiliary ones.
        partial: Whether the guide may leave some of them to the prior.

    Raises:
        ArgumentError: If they differ, or the model has none.

    Example:
        >>> require_same_latents(["z", "scale"], ["z"], partial=True)
    """
    if not wanted:
        raise ArgumentError(
            "model: has no latent variables for these data, so there is nothing to infer; check that the sites to "
            "infer are not observed (obs=...) or blocked. A network becomes a model by BayesianModel(net, "
            "likelihood=...)."
        )
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    if extra or (missing and (not partial or len(missing) == len(wanted))):
        raise ArgumentError(
            f"guide: lacks the model's latents {missing}, and has sites {extra} that the model does not have; log q "
            "then is not a density of the model's latents. Was it made for this model and data? Auxiliary variables "
            "need infer={'is_auxiliary': True}."
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


def _log_probs(trace: Trace) -> list[tuple[str, Tensor]]:
    sites = nodes_of(trace).items()
    return [(name, site["log_prob"].double()) for name, site in sites if site["type"] == "sample"]


def log_prob_per_draw(trace: Trace, num: int, nesting: int) -> Tensor:
    """Return the log density of each draw of a vectorised trace ``[num]``, in float64.

    Args:
        trace: The trace, with log densities.
        num: Number of draws.
        nesting: Number of dimensions of plates, the leftmost one of which is that of the draws.

    Raises:
        UsageError: If a site has another number of densities.

    Example:
        >>> import pyro.distributions as dist
        >>> model = pyro.plate("draws", 3, dim=-1)(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
        >>> trace = poutine.trace(model).get_trace()
        >>> trace.compute_log_prob()
        >>> log_prob_per_draw(trace, 3, 1).shape
        torch.Size([3])
    """
    totals: list[Tensor] = []
    for name, log_prob in _log_probs(trace):
        if log_prob.dim() < nesting:  # the same for all draws
            totals.append(log_prob.sum().expand(num))
        elif log_prob.dim() == nesting and log_prob.shape[0] in (1, num):
            totals.append(log_prob.reshape(log_prob.shape[0], -1).sum(1).expand(num))
        else:
            raise UsageError(
                f"model, guide: the log density of site {name!r} has shape {tuple(log_prob.shape)} for {num} draws."
            )
    return torch.stack(totals).sum(0)


def total_log_prob(trace: Trace) -> Tensor:
    """Return the log density of a trace, in float64.

    Example:
        >>> import pyro.distributions as dist
        >>> trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.zeros(()))).get_trace()
        >>> trace.compute_log_prob()
        >>> total_log_prob(trace)
        tensor(-0.9189, dtype=torch.float64)
    """
    return torch.stack([log_prob.sum() for _, log_prob in _log_probs(trace)]).sum()


def require_all_rows(model_trace: Trace, what: str) -> None:
    """Raise if a plate has a part of its rows.

    Args:
        model_trace: The trace of the model.
        what: What would mean nothing of a minibatch, for the message.

    Raises:
        ArgumentError: If there is such a plate.

    Example:
        >>> require_all_rows(Trace(), "importance weights")
    """
    for site in nodes_of(model_trace).values():
        for frame in site.get("cond_indep_stack", ()):
            if frame.full_size not in (None, frame.size):
                raise ArgumentError(
                    f"data: are {frame.size} of {frame.full_size} rows (plate {frame.name!r}); {what} of a "
                    "minibatch mean nothing. Pass all rows."
                )


def _latents(guide_trace: Trace, model_trace: Trace, *, partial: bool) -> dict[str, Any]:
    """Return the guide's sites that the model takes its latents from, by name."""
    in_guide, in_model = latent_nodes(guide_trace), latent_nodes(model_trace)
    own = [name for name, site in in_guide.items() if name in in_model or not site["infer"].get("is_auxiliary")]
    require_same_latents(list(in_model), own, partial=partial)
    return {name: in_guide[name] for name in in_model if name in in_guide}


def plate_nesting(*traces: Trace) -> int:
    """Return the number of plate dimensions in use.

    Example:
        >>> plate_nesting(Trace())
        0
    """
    frames = [
        frame for trace in traces for site in nodes_of(trace).values() for frame in site.get("cond_indep_stack", ())
    ]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)
