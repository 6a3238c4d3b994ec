"""What the conditional distribution of an observation says: classes, means, variances, the place of its numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
)

__all__ = [
    "class_probs",
    "elementwise",
    "has_classes",
    "is_discrete",
    "is_nominal",
    "kind_of_noise",
    "marginals",
    "mean_or_none",
    "variance_or_none",
]


def elementwise(conditional: Any) -> Any:
    """The distribution without its event dimensions that are independent, as far as it has such.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> elementwise(Independent(Normal(torch.zeros(2, 3), 1.0), 1)).batch_shape
        torch.Size([2, 3])
    """
    while isinstance(conditional, Independent):
        conditional = conditional.base_dist
    return conditional


def marginals(conditional: Any) -> Any:
    """The distributions of single numbers of an observation, as far as they are known.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> joint = MultivariateNormal(torch.zeros(2), torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
        >>> marginals(joint).stddev
        tensor([2., 1.])
    """
    base = elementwise(conditional)
    in_units = getattr(base, "with_base", None)  # of a distribution in the units of the data
    if in_units is not None:
        return in_units(marginals(base.base))
    if isinstance(base, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(base.mean, base.variance.sqrt(), validate_args=False)
    return base


def is_discrete(conditional: Any) -> bool:
    """Whether observations are whole numbers or labels.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> is_discrete(Bernoulli(0.5)), is_discrete(Normal(0.0, 1.0))
        (True, False)
    """
    try:
        return bool(conditional.support.is_discrete)
    except NotImplementedError:
        return False


def has_classes(conditional: Any) -> bool:
    """Whether observations are of a finite set that can be enumerated.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> has_classes(Bernoulli(0.5)), has_classes(torch.distributions.Poisson(0.5))
        (True, False)
    """
    base = elementwise(conditional)
    return bool(base.has_enumerate_support) and is_discrete(base)


def is_nominal(conditional: Any) -> bool:
    """Whether observations are names of classes, of which there is no mean: the Categorical.

    A class derived from it that has a mean is one of ordered classes.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> is_nominal(Categorical(torch.ones(3))), is_nominal(Bernoulli(0.5))
        (True, False)
    """
    base = elementwise(conditional)
    mean: Any = getattr(type(base), "mean", None)
    return isinstance(base, Categorical) and mean is Categorical.mean


def class_probs(conditional: Any) -> Tensor:
    """Probability of each class, under each element of the batch: ``[S, B, ..., C]``.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> class_probs(Bernoulli(torch.tensor([[0.25]])))
        tensor([[[0.7500, 0.2500]]])
    """
    base = elementwise(conditional)
    if isinstance(base, Categorical | OneHotCategorical):
        return base.probs
    values = base.enumerate_support(expand=False)
    return base.log_prob(values).exp().movedim(0, -1)


def mean_or_none(conditional: Any) -> Tensor | None:
    """``E[y | f_s]`` ``[S, B, ...]``; the class probabilities of a nominal one, None where no formula is known.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> mean_or_none(Bernoulli(torch.tensor([0.25])))
        tensor([0.2500])
    """
    if is_nominal(conditional):
        return class_probs(conditional)
    return _or_none(conditional, "mean")


def variance_or_none(conditional: Any) -> Tensor | None:
    """``Var[y | f_s]`` ``[S, B, ...]``; None where no formula is known, and for nominal classes.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> variance_or_none(Normal(torch.zeros(2), 3.0))
        tensor([9., 9.])
    """
    return None if is_nominal(conditional) else _or_none(conditional, "variance")


def kind_of_noise(conditional: Any) -> str:
    """The name of the distribution, for people; one of this package that derives from Pyro's says no more than Pyro's.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
        >>> kind_of_noise(Independent(Normal(torch.zeros(3), 1.0), 1))
        'Normal'
    """
    base = elementwise(conditional)
    if hasattr(base, "with_base"):
        return kind_of_noise(base.base)
    for cls in type(base).__mro__:
        if not cls.__module__.startswith("bayeshnet."):
            general = cls.__name__ in ("TorchDistribution", "TorchDistributionMixin") or cls is Distribution
            return type(base).__name__ if general else cls.__name__
    return type(base).__name__


def _or_none(conditional: Any, name: str) -> Tensor | None:
    try:
        return getattr(conditional, name)
    except (NotImplementedError, AttributeError):
        return None
