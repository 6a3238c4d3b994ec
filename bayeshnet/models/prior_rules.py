"""What may be given as ``prior=``: rules, and plain distributions that serve as one for every parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.moved import moved
from bayeshnet.models.priors import JointPrior, Prior
from bayeshnet.models.priors.joint import modules_of
from bayeshnet.models.weight_normal import WeightNormal

__all__ = ["PriorRule", "as_prior", "check_prior", "prior_rule", "usable_prior"]

PriorRule: TypeAlias = "Callable[..., TorchDistributionMixin]"

_WHAT_IT_IS = (
    "a prior is one of bayeshnet.priors, such as priors.Normal(scale='fan_in'); a distribution of one number, such as "
    "dist.Laplace(0., 1.), for every weight; or a function (name, shape) -> distribution or "
    "(name, record, *, like) -> distribution"
)


def as_prior(prior: Any) -> Any:
    """What is given as ``prior=``, with a distribution that modules make wrapped so that a model has their parameters.

    Example:
        >>> as_prior(dist.Laplace(0.0, 1.0)).scale
        tensor(1.)
    """
    if isinstance(prior, TorchDistributionMixin) and modules_of(prior):
        return JointPrior(prior)
    return prior


def prior_rule(prior: Any) -> PriorRule:
    """The function ``(name, record, *, like) -> distribution`` that a prior stands for.

    Args:
        prior: A :class:`~bayeshnet.models.priors.Prior`, a distribution, such a function, or one
            ``(name, shape) -> distribution``, whose distribution may be of one number, for all of the parameter.

    Raises:
        ArgumentTypeError: If it is none of these; the message says what a prior is.

    Example:
        >>> rule = prior_rule(dist.Laplace(0.0, 1.0))
        >>> rule("0.weight", ParamRecord((3, 2), "weight", 0), like=torch.zeros(())).event_shape
        torch.Size([3, 2])
    """
    if isinstance(prior, type):
        example = f"{prior.__name__}()" if issubclass(prior, Prior) else f"{prior.__name__}(...), an instance of it"
        raise ArgumentTypeError(
            f"prior: is the class {prior.__name__}; pass {example}. What is accepted: {_WHAT_IT_IS}."
        )
    if isinstance(prior, Prior):
        return prior.distribution
    if isinstance(prior, torch.distributions.Distribution):
        return _Everywhere(_of_pyro(prior, "is"))
    if hasattr(prior, "distribution") and callable(prior.distribution):
        return _checked_signature(prior.distribution)
    if isinstance(prior, nn.Module):
        raise _of_a_network(prior, "a module, which has no density")
    if not callable(prior):
        scale = isinstance(prior, int | float | Mapping | str | Tensor)
        meant = f" (priors.Normal(scale={prior!r}) may be meant)" if scale else ""
        raise ArgumentTypeError(f"prior: is {kind_of(prior)}{meant}; {_WHAT_IT_IS}.")
    return _checked_signature(prior)


def usable_prior(fn: Any, name: str, shape: tuple[int, ...], like: Tensor) -> TorchDistributionMixin:
    """Return what a rule gave for a parameter; raise if it cannot be the parameter's prior.

    Args:
        fn: What the rule returned.
        name: The parameter's name.
        shape: Its shape.
        like: A tensor with the network's dtype and device.

    Raises:
        ArgumentTypeError: If it is no distribution of Pyro, or of another dtype.
        ArgumentError: If its shape differs, or it is discrete.

    Example:
        >>> fn = dist.Normal(torch.zeros(3, 2), 1.0).to_event(2)
        >>> usable_prior(fn, "0.weight", (3, 2), torch.zeros(())) is fn
        True
    """
    if not isinstance(fn, torch.distributions.Distribution):
        raise ArgumentTypeError(
            f"prior: gives {kind_of(fn)} for parameter {name!r}; it has to return a distribution of Pyro with "
            f"event shape {shape}, such as dist.Normal(like.new_zeros(record.shape), 1.0).to_event({len(shape)})."
        )
    fn = _of_pyro(fn, f"gives parameter {name!r}")
    if tuple(fn.batch_shape) != () or tuple(fn.event_shape) != shape:
        raise ArgumentError(
            f"prior: gives parameter {name!r} a distribution with batch shape {tuple(fn.batch_shape)} and event shape "
            f"{tuple(fn.event_shape)}; expected () and {shape}. Use .expand(shape).to_event(len(shape))."
        )
    check_prior(fn, f"prior: that of parameter {name!r}", like)
    return fn


def check_prior(fn: TorchDistributionMixin, what: str, like: Tensor) -> None:
    """Raise unless a distribution has a density over real numbers of the network's dtype.

    Raises:
        ArgumentError: If it is discrete, or has a point mass (``Delta``) in it.
        ArgumentTypeError: If its numbers have another dtype.

    Example:
        >>> check_prior(dist.Laplace(torch.zeros(2), 1.0).to_event(1), "prior: it", torch.zeros(()))
    """
    support: Any = fn.support
    if getattr(support, "is_discrete", False):
        raise ArgumentError(f"{what} is discrete ({type(_base(fn)).__name__}); weights are continuous.")
    if _has_delta(fn):
        raise ArgumentError(
            f"{what} is {'' if isinstance(_base(fn), dist.Delta) else 'made of '}a Delta, a point that has no density; "
            "freeze a parameter that is known, param.requires_grad_(False), or pass a narrow Normal."
        )
    others = {t.dtype for t in _tensors(fn) if t.is_floating_point() and t.dtype != like.dtype}
    if others and _dtype_of_mean(fn) != like.dtype:
        raise ArgumentTypeError(
            f"{what} has numbers of {', '.join(map(str, others))}, the network's weights have {like.dtype}; make them "
            "with like.new_zeros(...), or convert the network."
        )


def _of_a_network(prior: Any, what: str) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"prior: is {kind_of(prior)}, {what}; {_WHAT_IT_IS}. What a hypernetwork makes is a prior as "
        "BayesianModel(net, priors.JointPrior(ImplicitWeights(hnet)), flat=True)."
    )


class _Everywhere:
    """The same distribution for every parameter: of one number, or of the parameter's shape."""

    def __init__(self, fn: TorchDistributionMixin) -> None:
        self.fn = fn

    def __call__(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        fn, shape = moved(self.fn, like), Size(record.shape)
        given = fn.batch_shape + fn.event_shape
        for key in ("loc", "scale"):
            value = getattr(_base(fn), key, None)
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                raise ArgumentError(f"prior: its {key} is {value.tolist()}; pass finite numbers.")
        if type(self.fn) is dist.Normal and given in (Size(), shape):
            return WeightNormal(fn.loc.expand(shape), fn.scale.expand(shape))
        if not fn.event_shape and given in (Size(), shape):
            return fn.expand(shape).to_event(len(shape))
        if fn.event_shape == shape and not fn.batch_shape:
            return fn
        raise ArgumentError(
            f"prior: {type(_base(fn)).__name__} has batch shape {tuple(fn.batch_shape)} and event shape "
            f"{tuple(fn.event_shape)}, which are neither those of one number nor those of parameter {name!r} "
            f"{tuple(shape)}; {_WHAT_IT_IS}."
        )


def _checked_signature(rule: Callable[..., Any]) -> PriorRule:
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):  # builtins have none
        return rule
    error = _refused(signature, like=None)
    if error is None:
        return rule
    if _refused(signature) is None:
        return _OfNameAndShape(rule)
    raise ArgumentTypeError(
        f"prior: the function takes {signature}, but is called as prior(name, record, like=tensor) or prior(name, "
        f"shape) ({error}); {_WHAT_IT_IS}."
    )


def _refused(signature: inspect.Signature, **options: Any) -> TypeError | None:
    try:
        signature.bind("name", None, **options)
    except TypeError as error:
        return error
    return None


class _OfNameAndShape:
    """A function ``(name, shape) -> distribution`` as a rule."""

    def __init__(self, rule: Callable[[str, tuple[int, ...]], Any]) -> None:
        self.rule = rule

    def __call__(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        fn: Any = self.rule(name, tuple(record.shape))
        if not isinstance(fn, torch.distributions.Distribution):
            return fn  # refused by usable_prior, with the parameter's name
        return _Everywhere(_of_pyro(fn, f"gives parameter {name!r}"))(name, record, like=like)


def _of_pyro(fn: Any, what: str) -> TorchDistributionMixin:
    if isinstance(fn, TorchDistributionMixin):
        return fn
    raise ArgumentTypeError(
        f"prior: {what} {kind_of(fn)} of torch.distributions, which is no sample site; use the one of "
        f"pyro.distributions, dist.{type(fn).__name__}(...)."
    )


def _base(fn: Any) -> Any:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _has_delta(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_delta(part) for part in value)
    if not isinstance(value, torch.distributions.Distribution):
        return False
    return isinstance(value, dist.Delta) or any(_has_delta(part) for part in vars(value).values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, torch.distributions.Distribution | torch.distributions.Transform):
        yield from _tensors(list(vars(value).values()))


def _dtype_of_mean(fn: Any) -> torch.dtype | None:
    try:
        return fn.mean.dtype
    except (NotImplementedError, AttributeError):  # a distribution without a mean
        return None
