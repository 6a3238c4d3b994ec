"""From a good posterior towards the posterior: many short chains started from a guide."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from bayeshnet.checks import require_count, require_flag, require_positive
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import ArgumentError, ConvergenceWarning, UsageError
from bayeshnet.guides.base import with_model
from bayeshnet.models.capabilities import is_predictive
from bayeshnet.sampling.convergence import nested_rhat
from bayeshnet.sampling.hmc import ChEES, Transition
from bayeshnet.sampling.log_joint import LogJoint
from bayeshnet.sampling.refined import Refined
from bayeshnet.sites.arguments import (
    all_data,
    inputs_and_targets,
    require_model,
    require_model_and_guide,
    row_arguments,
)
from bayeshnet.sites.latents import latent_nodes
from bayeshnet.sites.memory import refuse_too_large
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["refine"]

# Draws of the guide from which the scales of the coordinates are taken.
_SCALE_DRAWS = 500
# Transitions between two looks at nested R-hat.
_BLOCK = 10
# Functions at so many numbers of the outputs at most.
_FUNCTIONS = 200
# Groups of chains with a common start, if the number of chains allows it.
_GROUPS = 16


@torch.no_grad()
def refine(
    model: Callable[..., Any],
    guide: Callable[..., Any] | Mapping[str, Tensor],
    data: Any,
    *,
    num_chains: int = 64,
    num_draws: int = 1000,
    num_warmup: int = 100,
    max_transitions: int = 1000,
    max_rhat: float = 1.01,
    progress: bool = True,
) -> Refined:
    r"""Run many short chains of Hamiltonian Monte Carlo from draws of a guide.

    Chains are exact where guides are limited by their family, but need a long way from an arbitrary start; a guide
    draws from almost the right place. All chains are one batch: a step is one gradient of the model for all of them.
    Groups of chains (16, where that divides their number) start at one draw of the guide each; step size and
    trajectory length adapt over all chains during the warm-up, whose draws are dropped (:class:`ChEES`), in units of
    the guide's standard deviations. Then all draws are kept until there are ``num_draws`` and nested R-hat
    (:func:`nested_rhat`) of the functions is below ``max_rhat``. Functions are the network's outputs at (up to 200
    numbers of) the training inputs of a :class:`~bayeshnet.BayesianModel`, the latents in unconstrained coordinates of
    any other model, and in both cases the log joint density.

    The draws are those of the model as it is: learned prior scales are fixed. Chains rarely cross between separate
    modes: how much mass each has comes from the guide's draws, and is not corrected.

    Args:
        model: Any Pyro model with continuous latents; it is vectorised over chains where that gives the same density.
        guide: A fitted guide, of this package or of Pyro; or draws ``[S, *shape]`` by site, S >= 2, of Pyro's
            ``MCMC`` after its run or an earlier :class:`Refined`; new chains start at some of them.
        data: The arguments of the model, with all observations; no minibatch.
        num_chains: Number of chains.
        num_draws: Number of draws in all, at least.
        num_warmup: Transitions that adapt.
        max_transitions: Most transitions after the warm-up; more only if ``num_draws`` needs them.
        max_rhat: Bound on nested R-hat.
        progress: Show a progress bar.

    Returns:
        The draws, with diagnostics: ``rhat`` (the largest), ``converged``, ``acceptance``, ``divergences`` (a share of
        the transitions after warm-up), ``e_bfmi`` (the smallest of all chains; below 0.3 the energy is explored
        slowly, Betancourt, https://arxiv.org/abs/1604.00695), ``step_size``, ``trajectory_length``,
        ``num_gradients``, ``vectorised``.

    Raises:
        ArgumentError: If a number is too small, the data are a minibatch, latents are discrete or not in the guide, or
            draws are not finite or do not fit into the memory that there is.
        ArgumentTypeError: If an argument is of another type.
        UsageError: If the guide is a point, or no start has a finite density; or another thread is in a fit.

    Warns:
        ConvergenceWarning: If nested R-hat stayed above the bound, or more than 1 % of the transitions diverged.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mu", dist.Normal(0.5, 0.3))
        >>> refined = refine(model, guide, torch.tensor([1.0, 2.0, 0.0]), progress=False)
        >>> abs(float(refined["mu"].mean()) - 0.75) < 0.1, refined.converged
        (True, True)
    """
    given: Any = guide
    draws: Any = given.get_samples() if hasattr(given, "get_samples") else given
    if isinstance(draws, Mapping):
        require_model(model)
    else:
        require_model_and_guide(model, guide)
    require_count("num_chains", num_chains, least=4, advice="; better 32 or more")
    require_count("num_draws", num_draws)
    require_count("num_warmup", num_warmup)
    require_count("max_transitions", max_transitions, least=_BLOCK)
    require_positive("max_rhat", max_rhat)
    if not max_rhat > 1.0:
        raise ArgumentError(f"max_rhat: is {max_rhat}; pass a number above 1, such as 1.01.")
    require_flag("progress", progress)
    args, kwargs = all_data(model, data, "these chains need")
    needed = max(_BLOCK, math.ceil(num_draws / num_chains))
    with one_thread("refine"), evaluating(model):
        target = LogJoint(model, args, kwargs)
        if not isinstance(draws, Mapping):
            with with_model(guide, model):
                draws = _drawn(guide, args, kwargs)
        u = target.unconstrain(draws)
        refuse_too_large(
            3 * needed * num_chains * target.dim * u.element_size(),  # as they are kept, together, and constrained
            f"num_draws: is {num_draws}, draws of {target.dim:,} latents each",
            ["pass fewer"],
            device=u.device,
        )
        groups = _num_groups(num_chains)
        start, scale = _starts(target, u, groups), _scale(u)
        chains = ChEES(target.with_gradient, start.repeat_interleave(num_chains // groups, dim=0), scale)
        run = _Run(chains, _Functions(model, target, args, kwargs), groups)
        with tqdm(total=num_warmup + needed, disable=not progress, desc="refine") as bar:
            for _ in range(num_warmup):
                run.warm_up()
                bar.update()
            chains.end_warm_up()
            while len(run.draws) < max(needed, max_transitions):
                run.keep()
                bar.update()
                if len(run.draws) >= needed and len(run.draws) % _BLOCK == 0:
                    bar.set_postfix_str(f"R-hat {run.rhat():.3f}")
                    if run.rhat() < max_rhat:
                        break
    kept = torch.stack(run.draws, dim=1).flatten(0, 1)
    refined = Refined(target.constrain(kept), num_chains=num_chains, diagnostics=run.diagnostics(target, max_rhat))
    _warn(refined, max_rhat)
    return refined


class _Functions:
    """What convergence is judged by: ``[C, F]`` at the chains' places."""

    def __init__(self, model: Any, target: LogJoint, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._model, self._target = model, target
        self._inputs: Any = None
        if is_predictive(model):
            self._inputs, _ = inputs_and_targets(args, kwargs)
            rows = row_arguments(args, kwargs)
            self._of_rows = {name: value for name, value in rows.items() if name != "weight"}

    def __call__(self, u: Tensor, log_density: Tensor) -> Tensor:
        if self._inputs is None:
            values = u
        else:
            outputs, _ = self._model.conditional(self._inputs, self._target.constrain(u), **self._of_rows)
            values = outputs.flatten(1)
        if values.shape[1] > _FUNCTIONS:
            values = values[:, torch.linspace(0, values.shape[1] - 1, _FUNCTIONS, device=values.device).long()]
        return torch.cat([values.double(), log_density.unsqueeze(1)], dim=1)


class _Run:
    """The chains, and what is kept of them."""

    def __init__(self, chains: ChEES, functions: _Functions, groups: int) -> None:
        self._chains, self._functions, self._groups = chains, functions, groups
        self.draws: list[Tensor] = []
        self._values: list[Tensor] = []
        self._transitions: list[Transition] = []
        self._gradients = 1
        self._seen: tuple[int, float] = (0, math.inf)

    def warm_up(self) -> None:
        self._gradients += self._chains.step(adapt=True).num_leapfrog

    def keep(self) -> None:
        done = self._chains.step(adapt=False)
        self._gradients += done.num_leapfrog
        self._transitions.append(done)
        self.draws.append(self._chains.u)
        self._values.append(self._functions(self._chains.u, self._chains.log_density))

    def rhat(self) -> float:
        """Nested R-hat, the largest of all functions."""
        if self._seen[0] != len(self._values):
            self._seen = len(self._values), float(nested_rhat(torch.stack(self._values), self._groups).max())
        return self._seen[1]

    def diagnostics(self, target: LogJoint, max_rhat: float) -> dict[str, float]:
        energy = torch.stack([done.energy for done in self._transitions])
        return {
            "rhat": self.rhat(),
            "converged": float(self.rhat() < max_rhat),
            "acceptance": float(torch.stack([done.acceptance for done in self._transitions]).mean()),
            "divergences": float(torch.stack([done.divergent for done in self._transitions]).double().mean()),
            "e_bfmi": float((energy.diff(dim=0).square().mean(0) / energy.var(0)).min()),
            "step_size": self._chains.step_size,
            "trajectory_length": self._chains.trajectory_length,
            "num_gradients": float(self._gradients),
            "vectorised": float(target.vectorised),
        }


def _num_groups(num_chains: int) -> int:
    """The largest number of groups up to 16, of two chains or more, that divides the number of chains."""
    most = min(_GROUPS, num_chains // 2)
    return next((groups for groups in range(most, 1, -1) if num_chains % groups == 0), num_chains)


def _starts(target: LogJoint, u: Tensor, num: int) -> Tensor:
    """Starts ``[num, D]`` with a density, different ones where there are enough.

    Raises:
        UsageError: If no draw has a density.
    """
    u = u[torch.randperm(len(u))]
    # Looked at in parts, each as many as chains would be: mostly the first one is enough.
    found: list[Tensor] = []
    for part in u.split(num):
        found.append(part[torch.isfinite(target(part))])
        if sum(map(len, found)) >= num:
            break
    good = torch.cat(found)
    if not len(good):
        raise UsageError(
            "model, guide: the model's density is 0 or NaN at all draws of the guide; check the data for NaN, and that "
            "the guide was fitted to this model."
        )
    return good[:num] if len(good) >= num else good[torch.randint(len(good), (num,))]


def _scale(u: Tensor) -> Tensor:
    """The spread of the coordinates ``[D]``. A wrong one costs time, but does not move the stationary distribution.

    Raises:
        UsageError: If there is none.
    """
    scale = u.double().std(0).to(u) if len(u) > 1 else torch.zeros_like(u[0])
    if not bool((scale > 0).any()):
        raise UsageError(
            "guide: gives the same latents at every draw; a point has no spread to start chains from. Pass a guide "
            "with a spread, such as AutoHypernet or AutoNormal, or two or more different draws."
        )
    return scale.clamp(min=1e-3 * float(scale[scale > 0].median()))


def _drawn(guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    own = getattr(guide, "sample_posterior", None)
    if own is not None:
        return own(_SCALE_DRAWS)
    # One after the other: any guide, vectorised or not, and its sites need no plate of ours.
    traces = [latent_nodes(poutine.trace(guide).get_trace(*args, **kwargs)) for _ in range(_SCALE_DRAWS)]
    return {
        name: torch.stack([trace[name]["value"] for trace in traces]).detach()
        for name, site in traces[0].items()
        if not site["infer"].get("is_auxiliary")
    }


def _warn(refined: Refined, max_rhat: float) -> None:
    rhat, divergences = refined.diagnostics["rhat"], refined.diagnostics["divergences"]
    if not refined.converged:
        warnings.warn(
            f"Nested R-hat is {rhat:.3f}, not below {max_rhat}: groups of chains that started at different draws still "
            "differ, so the draws are better than the guide's but not those of the posterior. Raise max_transitions "
            "or num_warmup; if it stays so, the posterior may have modes between which chains do not cross.",
            ConvergenceWarning,
            stacklevel=stacklevel_of_user(),
        )
    if divergences > 0.01:
        warnings.warn(
            f"{100 * divergences:.1f} % of the transitions diverged: a region of strong curvature is left out. Use a "
            "parametrisation that is not centred for hierarchical scales, or float64.",
            ConvergenceWarning,
            stacklevel=stacklevel_of_user(),
        )
