"""What may be given as ``prior=``: rules, and plain distributions that serve as one for every parameter."""

from __future__ import annotations

import copy
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
from bayeshnet.models.priors import Prior
from bayeshnet.models.weight_normal import WeightNormal

__all__ = ["PriorRule", "check_prior", "prior_rule", "usable_prior"]

PriorRule: TypeAlias = "Callable[..., TorchDistributionMixin]"

_WHAT_IT_IS = (
    "a prior is one of bayeshnet.priors, such as priors.Normal(scale='fan_in'); a distribution of one number, such as "
    "dist.Laplace(0., 1.), for every weight; or a function (name, record, *, like) -> distribution"
)


def prior_rule(prior: Any) -> PriorRule:
    """The function ``(name, record, *, like) -> distribution`` that a prior stands for.

    Args:
        prior: A :class:`~bayeshnet.models.priors.Prior`, a distribution, or such a function.

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
        if any(isinstance(part, nn.Module) or hasattr(part, "generator") for part in vars(prior).values()):
            raise _of_a_network(
                prior,
                "a distribution of what a network makes, with parameters that the model would neither train nor save",
            )
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
        f"prior: is {kind_of(prior)}, {what}; {_WHAT_IT_IS}. What a hypernetwork makes can be the prior of a "
        "Pyro model of your own, with w = pyro.sample('weights', ImplicitWeights(hnet)); for an example see "
        "docs/estimators.md, section 'Full support'."
    )


class _Everywhere:
    """The same distribution for every parameter: of one number, or of the parameter's shape."""

    def __init__(self, fn: TorchDistributionMixin) -> None:
        self.fn = fn

    def __call__(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        fn, shape = _moved(self.fn, like), Size(record.shape)
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
    try:
        signature.bind("name", None, like=None)
    except TypeError as error:
        raise ArgumentTypeError(
            f"prior: the function takes {signature}, but is called as prior(name, record, like=tensor) ({error}); "
            f"{_WHAT_IT_IS}."
        ) from None
    return rule


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


def _moved(value: Any, like: Tensor) -> Any:
    """A distribution with all floating-point numbers in the dtype and on the device of ``like``, each still finite."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value.to(like.device)
        moved = value.detach().to(like)
        lost = torch.isfinite(value) & (~torch.isfinite(moved) | ((moved == 0) & (value != 0)))
        if bool(lost.any()):
            raise ArgumentError(
                f"prior: has {float(value[lost].flatten()[0]):g}, which is {float(moved[lost].flatten()[0]):g} in "
                f"{like.dtype}, the network's dtype; pass numbers in its range."
            )
        return moved
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_moved(part, like) for part in value)
    if not isinstance(value, torch.distributions.Distribution | torch.distributions.Transform):
        return value
    made = copy.copy(value)
    vars(made).update({key: _moved(part, like) for key, part in vars(value).items()})
    return made


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
