"""Start a guide at known weights: those of a trained network, a MAP estimate, or the draws of another guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro.infer import Predictive
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.guides.base import Guide
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_mainnet import ModuleMainNet
from bayeshnet.mnets.own_lists import kept_params
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.latents import LatentSite, nodes_of
from bayeshnet.sites.one_thread import one_thread

__all__ = ["start_from"]

Source: TypeAlias = "nn.Module | Mapping[str, Tensor] | Callable[..., Any]"


@torch.no_grad()
def start_from(guide: Guide, source: Source, *, num_samples: int = 200) -> None:
    """Start a guide at given weights, or at the mean and spread of given draws; it is changed in place.

    The guide's location becomes the weights, or the mean of the draws; with draws its standard deviations become
    theirs, latent by latent, in unconstrained coordinates. Correlations are not carried over.

    Each guide does this in its own way (:meth:`~bayeshnet.guides.base.Guide.move_to`). A hypernetwork family moves
    the bias of its output layer and the noise scale (and the rows of the output layer shrink where they alone would
    spread more than half of the variance asked for); other families move their location and scale; conditional layers
    their pseudo-targets, to the network's outputs at the pseudo-inputs; :class:`~bayeshnet.AutoHypernetNormal` and
    :class:`~bayeshnet.AutoHypernetDelta` their offset.

    Args:
        guide: The guide to move.
        source: One of

            - a network with the model's parameter names and shapes, such as the one that the model was built from, or
              its ``state_dict()``;
            - values by site name, such as a MAP estimate ``guide.median()``;
            - draws ``[S, *shape]`` by site name, such as those of NUTS;
            - another guide for the same model, of this package or any other (a point, such as ``AutoDelta``, has no
              spread).

            Latents of the likelihood may be missing; they stay as they are.
        num_samples: Number of draws from another guide.

    Raises:
        ArgumentError: If names, shapes or numbers of draws do not fit, or values are not finite or impossible.
        ArgumentTypeError: If an argument is of another type.
        UsageError: If the guide's hypernetwork has no bias for each weight, or no learned noise scale where a spread
            is asked for.

    Example:
        >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))  # trained, say
        >>> x, y = torch.randn(20, 2), torch.randn(20)
        >>> model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernet(model, example=(x, y), conditional=None)
        >>> start_from(guide, net)
        >>> bool((guide.median()["0.weight"] - net[0].weight).abs().max() < 0.1)
        True
    """
    if not isinstance(guide, Guide):
        raise ArgumentTypeError(
            f"guide: is {kind_of(guide)}; pass an AutoHypernet, AutoHypernetNormal or AutoHypernetDelta."
        )
    require_count("num_samples", num_samples)
    sites = guide.sites
    draws = _unconstrained(sites, _draws(guide, sites, _values(guide, source, sites, num_samples)), guide.loc.dtype)
    mean, std = _moments(draws, sites)
    guide.move_to(mean.to(guide.loc), std.to(guide.loc), draws)


# ---------------------------------------------------------------------- values or draws by name


def _values(guide: Guide, source: Source, sites: Sequence[LatentSite], num_samples: int) -> dict[str, Tensor]:
    if has_network(source):
        raise ArgumentTypeError(
            "source: is a BayesianModel, which keeps no weights; pass the network it was built from, or a guide for it."
        )
    if isinstance(source, Mapping):
        return _without_buffers(guide, dict(source))
    if isinstance(source, Guide):
        return source.sample_posterior(num_samples)
    if isinstance(source, nn.Module) and not hasattr(source, "_pyro_name"):
        net: Any = source if isinstance(source, MainNetInterface) else ModuleMainNet(source)
        if net.internal_params is None:
            raise ArgumentError(
                "source: the network keeps no weights; pass the one that the model was built from, or a dict of them."
            )
        own_names = [name for name, r in zip(net.param_names, net.param_table, strict=True) if r.internal]
        return _without_buffers(guide, dict(zip(own_names, kept_params(net), strict=True)))
    if not callable(source) or isinstance(source, type):
        raise ArgumentTypeError(f"source: is {kind_of(source)}; pass a network, a dict of tensors by name, or a guide.")
    args, kwargs = guide.example_arguments()
    names = tuple(site.name for site in sites)
    predictive = Predictive(source, num_samples=num_samples, return_sites=names)
    with one_thread("start_from"):
        found: Mapping[str, Tensor] = predictive(*args, **kwargs)
    shapes = _shapes(guide)
    return {name: v.reshape((num_samples, *shapes[name])) for name, v in found.items() if name in shapes}


def _network_model(guide: Guide) -> BayesianModel | None:
    """Return the guide's model without Pyro's handlers around it, if it is a BayesianModel."""
    model = None if guide.original_model is None else unwrap(guide.original_model)
    return model if has_network(model) else None


def _without_buffers(guide: Guide, values: dict[str, Any]) -> dict[str, Tensor]:
    """Leave out buffers and frozen parameters, which a state dict of the model's network contains."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(f"source: {name!r} is {kind_of(value)}; pass tensors by name.")
    model = _network_model(guide)
    if model is None:
        return values
    buffers = {name.removeprefix("module.") for name, _ in model.net.named_buffers()}
    buffers.update((*getattr(model.net, "frozen_names", ()), *getattr(model.net, "learned_names", ())))
    return {name: value for name, value in values.items() if name.removeprefix("module.") not in buffers}


def _shapes(guide: Guide) -> dict[str, tuple[int, ...]]:
    """Return the shape of the value of each latent site."""
    trace: Any = guide.prototype_trace
    nodes = nodes_of(trace)
    return {site.name: tuple(nodes[site.name]["value"].shape) for site in guide.sites}


def _draws(guide: Guide, sites: Sequence[LatentSite], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the draws ``[S, *shape]`` of each site that is given; S is 1 for a point."""
    shapes, parts = _shapes(guide), _parts_of_flat(guide)
    names = [name for site in sites for name in (parts if site.name == "weights" and parts else (site.name,))]
    flat_given = "weights" in values and bool(parts)
    if flat_given:
        names = [site.name for site in sites]
    unknown = [name for name in values if name not in names]
    missing = [name for name in names if name not in values and not name.startswith(("likelihood.", "prior."))]
    if unknown or missing:
        raise ArgumentError(
            f"source: has unknown names {unknown[:5]} and lacks {missing[:5]}; the latents are {names[:20]}. Was it "
            "made for this model?"
        )
    found: dict[str, Tensor] = {}
    for name in (name for name in names if name in values):
        shape = shapes[name] if name in shapes else parts[name]
        value = values[name].detach()
        if not value.is_floating_point() or value.is_meta:
            kind = "is on the meta device" if value.is_meta else f"has dtype {value.dtype}"
            raise ArgumentTypeError(f"source: {name!r} {kind}; pass floating-point tensors with values, value.float().")
        if tuple(value.shape) == shape:
            found[name] = value.unsqueeze(0)
        elif tuple(value.shape[1:]) == shape and value.dim() == len(shape) + 1 and len(value) > 0:
            found[name] = value
        else:
            raise ArgumentError(
                f"source: {name!r} has shape {tuple(value.shape)}; pass {shape}, or draws [S, *{shape}]."
            )
    if len({len(value) for value in found.values()}) > 1:
        raise ArgumentError(
            f"source: the numbers of draws differ: { {name: len(value) for name, value in found.items()} }; pass the "
            "same S for all."
        )
    if parts and not flat_given:
        flat = torch.cat([found.pop(name).flatten(1) for name in parts], dim=1)
        found["weights"] = flat
    return found


def _parts_of_flat(guide: Guide) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters that the one site of a flat model consists of."""
    model = _network_model(guide)
    if model is None or not model.flat:
        return {}
    return {name: tuple(shape) for name, shape in zip(model.net.param_names, model.net.param_shapes, strict=True)}


def _unconstrained(sites: Sequence[LatentSite], draws: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the draws ``[S, n]`` by site name in unconstrained coordinates, finite in the guide's dtype."""
    found: dict[str, Tensor] = {}
    for site in sites:
        if site.name in draws:
            value = site.unconstrain(draws[site.name]).flatten(1) if site.shape else site.unconstrain(draws[site.name])
            value = value.reshape(len(value), -1)
            if not bool(torch.isfinite(value.to(dtype)).all()):
                raise ArgumentError(
                    f"source: {site.name!r} has values that are not finite in {dtype}, or are impossible under the "
                    "model's prior."
                )
            found[site.name] = value
    return found


def _moments(draws: Mapping[str, Tensor], sites: Sequence[LatentSite]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation ``[D]``, NaN where there is none."""
    means: list[Tensor] = []
    stds: list[Tensor] = []
    like = next(iter(draws.values()))
    for site in sites:
        nothing = like.new_full((site.numel,), math.nan)
        value = draws.get(site.name)
        means.append(nothing if value is None else value.mean(0))
        std = nothing if value is None or len(value) == 1 else value.double().std(0).to(value.dtype)
        # Draws of a point guide differ by nothing, or by rounding.
        stds.append(torch.where(std > 1e-6 * (1.0 + means[-1].abs()), std, nothing))
    return torch.cat(means), torch.cat(stds)
