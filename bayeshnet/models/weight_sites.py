"""The sites of a network's weights: their priors, one site each or all in one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor
from torch.distributions import constraints

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.module_mainnet import frozen_hint
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models import priors
from bayeshnet.models.learned_scales import LearnedScales
from bayeshnet.models.prior_rules import prior_rule, usable_prior
from bayeshnet.models.weight_joint import JointWeights
from bayeshnet.models.weight_normal import WeightNormal

__all__ = [
    "build_priors",
    "learned_scales",
    "placed_draws",
    "prior_for",
    "prior_latents",
    "refuse_unknown_names",
    "split_flat",
    "stacked_values",
]


def prior_for(prior: Any, net: Any, copied: Any, *, flat: bool) -> Any:
    """A prior as a model of this network has it: with the network's values where they are its centre.

    Args:
        prior: As for the model.
        net: The network that was given, with its values.
        copied: The model's copy without weights.
        flat: Whether all weights are one site.

    Raises:
        ArgumentError: If a prior of all weights jointly does not fit, or one has entries for unknown parameters.

    Example:
        >>> from bayeshnet.mnets import functional_copy
        >>> net = torch.nn.Linear(2, 1)
        >>> prior_for(priors.Normal(loc="net"), net, functional_copy(net), flat=False)
        Normal(scale=1, loc=<values of 2 parameters>)
    """
    if getattr(prior, "joint", False):
        prior.check(copied, flat=flat)
    found = prior.for_network(net) if isinstance(prior, priors.Prior) else prior
    refuse_unknown_names(found, copied)
    return found


def prior_latents(prior: Any, net: Any, like: Tensor) -> dict[str, TorchDistributionMixin]:
    """Priors of a prior's own latents, by their names in it; none for most.

    Example:
        >>> from bayeshnet import MLP
        >>> net = MLP(n_in=2, n_out=1, hidden_layers=(), verbose=False)
        >>> list(prior_latents(priors.Horseshoe(), net, torch.zeros(())))
        ['0.weight.global', '0.weight.local']
    """
    if not isinstance(prior, priors.Prior):
        return {}
    params = dict(zip(net.param_names, net.param_table, strict=True))
    return dict(prior.latents(params, like=like))


def refuse_unknown_names(prior: Any, net: Any) -> None:
    """Raise if a prior has entries for parameters that the network has not.

    Raises:
        ArgumentError: If there are any.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> net = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1)).net
        >>> refuse_unknown_names(priors.Normal(scale={"wight": 1.0}), net)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: scale: has entries for ['wight']; the network's parameters are ['weight', ...
    """
    for argument, named in prior.named_parameters().items() if isinstance(prior, priors.Prior) else ():
        unknown = [name for name in named if name not in net.param_names]
        if unknown:
            raise ArgumentError(
                f"{argument}: has entries for {unknown}; the network's parameters are {list(net.param_names)}."
                f"{frozen_hint(unknown, net)}"
            )


def learned_scales(prior: Any, net: Any, like: Tensor) -> LearnedScales | None:
    """Factors for the prior scales, where the prior asks for them.

    Example:
        >>> from bayeshnet import MLP
        >>> net = MLP(n_in=2, n_out=1, hidden_layers=(), verbose=False)
        >>> learned_scales(priors.Normal(scale=1.0), net, torch.zeros(())) is None
        True
    """
    shape_of = getattr(prior, "factor_shape", None)
    if shape_of is None:  # a plain function
        return None
    names = list(net.param_names)
    found = {name: shape_of(name, record) for name, record in zip(names, net.param_table, strict=True)}
    shapes = {name: shape for name, shape in found.items() if shape is not None}
    whole = {name: tuple(shape) for name, shape in zip(names, net.param_shapes, strict=True)}
    return LearnedScales(whole, shapes, like) if shapes else None


def build_priors(
    prior: Any,
    net: Any,
    like: Tensor,
    *,
    learned: LearnedScales | None,
    flat: bool,
    latents: Mapping[str, Tensor] | None = None,
) -> dict[str, TorchDistributionMixin]:
    """The prior of every weight site, by site name.

    Args:
        prior: As for the model.
        net: The main network.
        like: A tensor with the dtype and device of the weights.
        learned: Factors of the scales, if they are learned; these priors have factors 1.
        flat: Whether all weights are one site.
        latents: Values ``[*samples, *event]`` of the prior's own latents, by their names in it, for the prior given
            them; by default all factors are 1.

    Raises:
        ArgumentError: If a prior does not fit its parameter, or is not over all real numbers for a flat site.

    Example:
        >>> from bayeshnet import MLP
        >>> net = MLP(n_in=2, n_out=1, hidden_layers=(), verbose=False)
        >>> list(build_priors(priors.Normal(scale=1.0), net, torch.zeros(()), learned=None, flat=True))
        ['weights']
    """
    rule = prior_rule(prior)
    if flat and isinstance(prior, torch.distributions.Distribution):
        record = ParamRecord((net.num_params,), "weight", 0)
        return {"weights": usable_prior(rule("weights", record, like=like), "weights", record.shape, like)}
    made: dict[str, TorchDistributionMixin] = {}
    for name, shape, record in zip(net.param_names, net.param_shapes, net.param_table, strict=True):
        if latents:
            made[name] = prior.given(name, record, latents, like=like)
            continue
        fn = usable_prior(rule(name, record, like=like), name, tuple(shape), like)
        made[name] = LearnedScales.check(name, fn) if learned is not None and name in learned.factor_shapes else fn
    return {"weights": _flat(made)} if flat else made


def stacked_values(weights: Mapping[str, Tensor], net: Any, *, flat: bool) -> tuple[list[Tensor], Size]:
    """Draws of the weight sites as :func:`~bayeshnet.mnets.batched_forward` takes them.

    Args:
        weights: A value per weight site, each ``[*samples, *shape]`` with the same or broadcastable ``samples``.
        net: The main network.
        flat: Whether all weights are one site.

    Returns:
        A tensor ``[S, *shape]`` of each parameter, or one ``[S, D]`` of all; and ``samples``.

    Example:
        >>> from bayeshnet import MLP
        >>> net = MLP(n_in=2, n_out=1, hidden_layers=(), verbose=False)
        >>> stacked, samples = stacked_values({"weights": torch.zeros(4, 1, 3)}, net, flat=True)
        >>> stacked[0].shape, samples
        (torch.Size([4, 3]), torch.Size([4, 1]))
    """
    values = [weights["weights"]] if flat else [weights[name] for name in net.param_names]
    dims = [1] if flat else [len(shape) for shape in net.param_shapes]
    batches = [value.shape[: value.dim() - n] for value, n in zip(values, dims, strict=True)]
    lead = batches[0] if len(set(batches)) == 1 else torch.broadcast_shapes(*batches)
    num = math.prod(lead)
    events = [value.shape[value.dim() - n :] for value, n in zip(values, dims, strict=True)]
    pairs = zip(values, events, strict=True)
    return [value.expand(lead + event).reshape((num, *event)) for value, event in pairs], lead


def split_flat(weights: Tensor, net: Any) -> list[Tensor]:
    """Draws ``[S, D]`` of all weights as one tensor ``[S, *shape]`` of each parameter.

    Example:
        >>> from bayeshnet import MLP
        >>> net = MLP(n_in=2, n_out=1, hidden_layers=(), verbose=False)
        >>> [part.shape for part in split_flat(torch.zeros(4, 3), net)]
        [torch.Size([4, 1, 2]), torch.Size([4, 1])]
    """
    shapes = [Size(shape) for shape in net.param_shapes]
    parts = weights.split([shape.numel() for shape in shapes], 1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def placed_draws(draws: Mapping[str, Tensor], sites: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    """Draws ``[S, *shape]`` of the weight sites as ``[S, 1, *shape]``, as under a plate.

    An explicit place for the plate keeps one sample apart from none.

    Args:
        draws: The draws, those of other sites too.
        sites: The prior of each weight site.
        like: A tensor with the dtype of the weights.

    Raises:
        ArgumentTypeError: If draws have another dtype.

    Example:
        >>> site = WeightNormal(torch.zeros(3), torch.ones(3))
        >>> placed_draws({"bias": torch.zeros(5, 3)}, {"bias": site}, torch.zeros(()))["bias"].shape
        torch.Size([5, 1, 3])
    """
    num = next(iter(draws.values())).shape[0]
    placed = {name: draws[name].reshape((num, 1, *fn.event_shape)) for name, fn in sites.items()}
    for name, value in placed.items():
        if value.dtype != like.dtype:
            raise ArgumentTypeError(
                f"draws: those of {name!r} have dtype {value.dtype}, the network's weights {like.dtype}; convert them, "
                f"value.to({like.dtype})."
            )
    return placed


def _flat(made: Mapping[str, TorchDistributionMixin]) -> TorchDistributionMixin:
    locs: list[Tensor] = []
    scales: list[Tensor] = []
    plain = True
    for name, fn in made.items():
        base: Any = fn
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        support: Any = getattr(base, "support", None)
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if support not in (constraints.real, constraints.real_vector):
            raise ArgumentError(
                f"flat: one site for all weights needs priors over all real numbers, parameter {name!r} has {fn}; pass "
                "flat=False."
            )
        if not isinstance(base, torch.distributions.Normal) or fn.batch_shape:
            plain = False
            continue
        locs.append(base.loc.reshape(-1))
        scales.append(base.scale.reshape(-1))
    return WeightNormal(torch.cat(locs), torch.cat(scales)) if plain else JointWeights(list(made.values()))
