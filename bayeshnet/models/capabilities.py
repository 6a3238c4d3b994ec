"""What guides, ``fit`` and ``predict`` ask of a Pyro model, instead of what class it is of.

A model says by attributes what is known of it. Of a plain function nothing is, and each question has an answer to that.
:class:`~bayeshnet.BayesianModel` has all of them. A model of your own can have some, and is then treated likewise:

``max_plate_nesting``
    How many plates are inside each other. Without it Pyro finds it out in the first step.
``vectorises``
    Whether particles can be drawn in one call. Without it :func:`~bayeshnet.fit` tries that out on the data.
``latent_shapes``
    Name and event shape of each latent site. Without it a guide is not compared with them.
``requires_targets``
    Whether it takes ``(x, y)`` and needs both in training. Without it the model takes any arguments.
``bounded_density``
    Whether finite data have a finite log-density at every draw of the latents from the prior, so that an infinite one
    is the fault of the data.
``check_observations``, ``dataset_size``
    A method ``(x, y)`` that refuses rows which the model cannot be trained on, and their number. Without them rows are
    neither looked at nor counted.
``as_arguments``, ``as_inputs``
    Methods that make the arguments of the model, and the inputs of its network, of the forms of data. Without
    them arguments are passed on as they are.
``weight_priors``, ``net``, ``likelihood``
    With all of the others: the latents are weights of the network ``net``, whose priors the method gives by parameter,
    and those of the likelihood; ``flat`` says whether the weights are one site. Without them no layer is drawn
    conditionally on inducing points.
``conditional``, ``conditional_of``
    With ``latent_shapes``: methods that give outputs and the distribution of observations for draws of the latents,
    for :func:`~bayeshnet.predict`.

What stands together is asked for together: a model with a part of it is treated as one without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Size

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = [
    "has_bounded_density",
    "has_network",
    "has_rows",
    "is_predictive",
    "latents_of",
    "plate_nesting",
    "requires_targets",
    "vectorises",
]


# What is used together: a model with a part of it is treated as one without. Methods end with brackets.
_OF_ROWS = ("check_observations()", "dataset_size")
_OF_PREDICTIONS = ("conditional()", "conditional_of()", "latent_shapes")
_OF_NETWORKS = ("weight_priors()", "net", "likelihood", "flat")


def plate_nesting(model: Any) -> float:
    """How many plates of the model are inside each other; infinity if that is to be found out.

    Example:
        >>> plate_nesting(lambda x: None)
        inf
    """
    known = getattr(model, "max_plate_nesting", None)
    return math.inf if known is None else known


def vectorises(model: Any) -> bool:
    """Whether it is known that all particles of the model can be drawn in one call.

    Example:
        >>> vectorises(lambda x: None)
        False
    """
    return bool(getattr(model, "vectorises", False))


def latents_of(model: Any) -> Mapping[str, Size] | None:
    """The event shape of each latent site, or None if that takes a run of the model.

    Example:
        >>> from torch import nn
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> latents_of(BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1)))
        {'weight': torch.Size([1, 2]), 'bias': torch.Size([1])}
    """
    return getattr(model, "latent_shapes", None)


def requires_targets(model: Any) -> bool:
    """Whether the model's arguments are ``(x, y)``, and ``y`` would be a latent if it were left out.

    Example:
        >>> requires_targets(lambda x: None)
        False
    """
    return bool(getattr(model, "requires_targets", False))


def has_bounded_density(model: Any) -> bool:
    """Whether finite data have a finite log-density wherever the prior draws the latents.

    Example:
        >>> has_bounded_density(lambda x: None)
        False
    """
    return bool(getattr(model, "bounded_density", False))


def has_rows(model: Any) -> TypeGuard[BayesianModel]:
    """Whether the data of the model are rows that it can be asked about: ``check_observations``, ``dataset_size``.

    Example:
        >>> has_rows(lambda x: None)
        False
    """
    return _has(model, _OF_ROWS)


def has_network(model: Any) -> TypeGuard[BayesianModel]:
    """Whether latents of the model are the weights of a network, known by parameter: ``net``, ``weight_priors``.

    Example:
        >>> has_network(lambda x: None)
        False
    """
    return _has(model, _OF_ROWS + _OF_PREDICTIONS + _OF_NETWORKS)


def is_predictive(model: Any) -> TypeGuard[BayesianModel]:
    """Whether the model gives the distribution of observations for draws of its latents: ``conditional``.

    Example:
        >>> is_predictive(lambda x: None)
        False
    """
    return _has(model, _OF_PREDICTIONS)


def _has(model: Any, names: tuple[str, ...]) -> bool:
    for name in names:
        method = name.endswith("()")
        if not hasattr(model, name.removesuffix("()")) or (method and not callable(getattr(model, name[:-2]))):
            return False
    return True
