"""From a model and its posterior to ArviZ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from bayeshnet.arviz._network import Network
from bayeshnet.arviz._program import Program
from bayeshnet.arviz._variables import Draws, assembled
from bayeshnet.checks import kind_of, require_count, require_flag
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.capabilities import is_predictive
from bayeshnet.sites.arguments import call_arguments
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["to_arviz"]


@torch.no_grad()
def to_arviz(
    model: Callable[..., Any],
    guide: Any,
    data: Any,
    *,
    num_samples: int = 1000,
    num_chains: int = 1,
    weights: Literal["auto", "all", "rms"] | Sequence[str] = "auto",
    functions: bool = True,
    inputs: bool = True,
    prior: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    batch_size: int | None = None,
    parallel: bool = True,
) -> Any:
    """A fitted model as data of ArviZ, whose ``loo``, ``compare``, ``summary`` and plots run on it.

    The groups, each variable with the dimensions ``chain`` and ``draw`` first where it has draws:

    ``posterior``
        Draws of the latents by site; see ``weights`` for large networks.
    ``functions``
        At the data, the ``outputs`` of each drawn network, and the ``mean`` of an observation under it where that has a
        formula (class probabilities for labels). Unlike weights they mean the same in all chains. Of a plain Pyro
        model its deterministic sites.
    ``log_likelihood``
        Of each row of the data (several numbers in a row count as one), as the model counts it: times its ``weight``
        and those of classes, without targets that are missing. ``loo`` then leaves out all copies that a weight stands
        for. Not multiplied by ``dataset_size``.
    ``posterior_predictive``, ``observed_data``, ``constant_data``
        Drawn observations, one for each network; the targets, NaN where they are missing; inputs, ``weight``,
        ``noise`` and ``exposure``. Rows of weight 0, without any target, or masked, are in neither the first two nor
        the log-likelihood, of which ``loo`` could say nothing; ``row`` has the numbers of those that remain.
    ``prior``, ``prior_predictive``
        With ``prior=``: so many draws.
    ``sample_stats``
        Of an ``MCMC`` object: ``diverging``.

    Draws of a guide are independent draws, in one chain, of an approximation: a k-hat of ``loo`` says whether leaving
    out a row is a small step from the guide, not whether the guide is close to the posterior, and ``r_hat`` says
    nothing. ``draws_of`` in the attributes of the result says where draws are from.

    Args:
        model: The Bayesian network, or any Pyro model that is given observations by its arguments or by conditioning.
        guide: A fitted guide, any of Pyro's; Pyro's ``MCMC`` after its run, whose chains stay apart; draws
            ``[S, *shape]`` by site; a list of trained networks; or :class:`~bayeshnet.evaluation.WeightedDraws` of
            :func:`~bayeshnet.importance_sample`, which are resampled by their weights.
        data: All arguments of the model, observations included: ``(x, y)``, or a dict ``{"x": ..., "y": ...}`` that
            may have ``weight``, ``noise`` and ``exposure``.
        num_samples: Number S of draws, if they are made.
        num_chains: Number of chains of draws that are given by site, chain after chain.
        weights: Which sites of weights are kept: ``"all"``; ``"rms"``, the root mean square of each in place of its
            numbers, as ``NAME.rms``; patterns such as ``["0.*"]``; or ``"auto"``, all of up to 10 million drawn
            numbers, else ``"rms"``. Sites of the likelihood are always kept.
        functions: Keep the group ``functions``.
        inputs: Keep the inputs in ``constant_data``.
        prior: Number of draws from the prior; none by default.
        coords: Labels of the dimensions ``row``, ``class`` and ``output``, or of others by their names in the result.
        batch_size: Rows evaluated at once, to bound memory; for networks.
        parallel: Make a guide's draws in one vectorised call.

    Returns:
        An ``arviz.InferenceData``, or with ArviZ 1.x an ``xarray.DataTree``.

    Raises:
        ArgumentError: If the data lack observations or are a minibatch, draws do not fit the model or the number of
            chains, or an option is unknown.
        ArgumentTypeError: If an argument is of another type.
        UsageError: If another thread is in a fit.

    Example:
        >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> idata = to_arviz(model, AutoHypernet(model, example=(x, y)), (x, y), num_samples=100)
        >>> dict(idata.posterior["weight"].sizes)
        {'chain': 1, 'draw': 100, 'weight_dim_0': 1, 'weight_dim_1': 2}
        >>> dict(idata.log_likelihood["obs"].sizes)
        {'chain': 1, 'draw': 100, 'row': 8}
    """
    _check_options(model, num_samples, num_chains, prior, weights)
    require_flag("functions", functions)
    require_flag("inputs", inputs)
    require_flag("parallel", parallel)
    args, kwargs = call_arguments(data, "data", model)
    with one_thread("to_arviz"), evaluating(model):
        kind = Network if is_predictive(model) else Program
        source: Any = kind(model, args, kwargs, batch_size, parallel)
        draws = _collected(guide, source, num_samples, num_chains)
        groups, facts = source.groups(draws, weights=weights, functions=functions)
        if prior is not None:
            groups.update(source.prior_groups(prior, weights=weights))
    if draws.stats:
        groups["sample_stats"] = {name: draws.variable(value, ()) for name, value in draws.stats.items()}
    observed, constant = source.given(inputs)
    groups["observed_data"] = observed
    groups["constant_data"] = constant
    attrs = {"inference_library": "bayeshnet", "draws_of": draws.origin, **draws.facts, **facts}
    groups = {name: variables for name, variables in groups.items() if variables}
    return assembled(groups, attrs, coords or {}, source.counted)


def _check_options(model: Any, num_samples: Any, num_chains: Any, prior: Any, weights: Any) -> None:
    if not callable(model):
        raise ArgumentTypeError(f"model: is {kind_of(model)}; pass a BayesianModel or a Pyro model, a callable.")
    require_count("num_samples", num_samples)
    require_count("num_chains", num_chains)
    if prior is not None:
        require_count("prior", prior, advice=", or None for no draws of the prior")
    patterns = not isinstance(weights, str) and isinstance(weights, Sequence)
    if weights not in ("auto", "all", "rms") and not (patterns and all(isinstance(w, str) for w in weights)):
        raise ArgumentError(f"weights: is {weights!r}; pass 'auto', 'all', 'rms' or patterns in a list, ['0.*'].")


def _collected(guide: Any, source: Any, num_samples: int, num_chains: int) -> Draws:
    """Draws from whatever gives them."""
    if isinstance(guide, Mapping):
        values = source.draws(guide, num_samples)
        total = len(next(iter(values.values())))
        if total % num_chains:
            raise ArgumentError(f"num_chains: is {num_chains}, and there are {total} draws; pass a divisor of that.")
        return Draws(values, "what was given by site", num_chains)
    if num_chains != 1:
        raise ArgumentError(
            f"num_chains: is {num_chains}, and is for draws that are given by site; leave it out: an MCMC object knows "
            "its chains, and a guide has none."
        )
    if hasattr(guide, "get_samples"):
        grouped: Mapping[str, Tensor] = guide.get_samples(group_by_chain=True)
        chains, each = next(iter(grouped.values())).shape[:2]
        values = source.draws({name: value.flatten(0, 1) for name, value in grouped.items()}, num_samples)
        origin = f"{type(getattr(guide, 'kernel', guide)).__name__}, {chains} chain{'s' * (chains != 1)}"
        return Draws(values, origin, chains, _divergences(guide, chains, each))
    if hasattr(guide, "resample"):
        k_hat, ess = float(guide.smoothed.k_hat), float(guide.smoothed.ess)
        values = source.draws(guide.resample(num_samples), num_samples)
        return Draws(values, "a guide, resampled by importance weights", facts={"guide_k_hat": k_hat, "guide_ess": ess})
    values = source.draws(guide, num_samples)
    if isinstance(guide, list | tuple):
        return Draws(values, f"an ensemble of {len(cast('Sequence[Any]', guide))} networks")
    name = getattr(guide, "__name__", type(guide).__name__)
    return Draws(values, f"the guide {name}, an approximation: independent, and not of the exact posterior")


def _divergences(chain: Any, chains: int, each: int) -> dict[str, Tensor]:
    """Which draws of Pyro's MCMC ended a trajectory that diverged."""
    kept = getattr(chain, "_diagnostics", None)  # diagnostics() would compute r_hat of all weights as well
    if not kept or not all(isinstance(one, Mapping) and "divergences" in one for one in kept):
        return {}
    found = torch.zeros(chains, each, dtype=torch.bool)
    for row, one in zip(found, kept, strict=True):
        row[[place for place in one["divergences"] if place < each]] = True
    return {"diverging": found.flatten()}
