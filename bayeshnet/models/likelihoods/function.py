"""A likelihood of a function that returns any Pyro distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.likelihoods.base import Likelihood
from bayeshnet.models.observations import point_of

__all__ = ["FromFunction", "as_likelihood"]


class FromFunction(Likelihood):
    """Any Pyro distribution, by a function of the outputs: ``y ~ function(f)``.

    ``BayesianModel(net, likelihood=function)`` makes one. The function treats all dimensions before the last ones
    alike, as Pyro's distributions do: it is called with outputs ``[S, B, ...]`` of many networks.

    Args:
        function: From outputs ``[*samples, B, *event]`` (``[*samples, B]`` for outputs ``[B, 1]``) and, by name, the
            latent parameters, to a distribution with batch shape ``[*samples, B, ...]``.
        priors: Priors of latent parameters by name; each reaches the function in a shape that broadcasts against a
            batch shape ``[*samples, B]``, with its event dimensions after that.

    Raises:
        ArgumentTypeError: If ``function`` cannot be called, or, when used, returns no distribution of Pyro.
        ArgumentError: If, when used, its distribution has not the batch shape of the outputs.

    Example:
        >>> import pyro.distributions as dist
        >>> likelihood = FromFunction(lambda f: dist.Exponential(f.exp()))
        >>> likelihood.conditional(torch.zeros(4, 7), {}, batch_dims=2).mean.shape
        torch.Size([4, 7])
    """

    def __init__(
        self,
        function: Callable[..., TorchDistributionMixin],
        *,
        priors: Mapping[str, TorchDistributionMixin] | None = None,
    ) -> None:
        super().__init__()
        if not callable(function):
            raise ArgumentTypeError(
                f"function: is {kind_of(function)}; pass a function from outputs to a distribution of Pyro, such as "
                "lambda f: dist.Exponential(f.exp())."
            )
        self.function = function
        self._priors = dict(priors or {})

    def extra_repr(self) -> str:
        """The function's name, for ``repr``."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return ", ".join([name, *(f"{key}~{prior}" for key, prior in self._priors.items())])

    def priors(self) -> Mapping[str, TorchDistributionMixin]:
        """See :meth:`Likelihood.priors`."""
        return self._priors

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        placed = {name: _placed(params[name], prior, f, batch_dims) for name, prior in self._priors.items()}
        made: Any = self.function(f, **placed)
        if not isinstance(made, TorchDistributionMixin):
            raise ArgumentTypeError(
                f"likelihood: the function returned {kind_of(made)}; let it return a distribution of "
                "pyro.distributions."
            )
        if made.batch_shape[:batch_dims] != f.shape[:batch_dims]:
            raise ArgumentError(
                f"likelihood: the function made of outputs {tuple(f.shape)} a distribution with batch shape "
                f"{tuple(made.batch_shape)}; it has to begin with {tuple(f.shape[:batch_dims])}."
            )
        return made.to_event(len(made.batch_shape) - batch_dims)

    def target_event(self, event_shape: Size) -> Size:
        """See :meth:`Likelihood.target_event`; the function is tried on outputs 0 of one row."""
        with torch.no_grad():
            draws = {name: point_of(prior) for name, prior in self._priors.items()}
            return Size(self.conditional(torch.zeros(1, *event_shape), draws, batch_dims=1).event_shape)


def _placed(value: Tensor, prior: Any, f: Tensor, batch_dims: int) -> Tensor:
    """A draw with the samples in their place ``[*samples, 1, *event]``, whatever dimensions Pyro put around it."""
    event = value.shape[value.dim() - len(prior.event_shape) :]
    num = value.numel() // max(1, event.numel())
    lead = tuple(f.shape[: batch_dims - 1]) if num > 1 else (1,) * (batch_dims - 1)
    return value.reshape(*lead, 1, *event)


def as_likelihood(likelihood: Any) -> Likelihood:
    """The argument ``likelihood`` of a model as an object.

    Raises:
        ArgumentTypeError: If it is neither a likelihood nor a function.

    Example:
        >>> import pyro.distributions as dist
        >>> as_likelihood(lambda f: dist.Laplace(f, 1.0))
        FromFunction(<lambda>)
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    # A distribution can be called, too: that draws from it, whatever the outputs are.
    if not callable(likelihood) or isinstance(likelihood, type | TorchDistributionMixin):
        raise ArgumentTypeError(_no_likelihood(likelihood))
    function: Any = likelihood
    return FromFunction(function)


def _no_likelihood(given: Any) -> str:
    kind = given if isinstance(given, type) else type(given)
    what = f"the class {kind.__name__}" if isinstance(given, type) else kind_of(given)
    advice = (
        "pass one of bayeshnet.likelihoods, such as likelihoods.Normal(scale=0.1) or likelihoods.Categorical(), or a "
        "function from outputs to a distribution of Pyro"
    )
    if isinstance(given, type) and issubclass(given, Likelihood):
        advice = f"pass what it makes, {kind.__name__}(...)"
    elif issubclass(kind, TorchDistributionMixin):
        advice += f", such as lambda f: dist.{kind.__name__}(...) of the outputs f [*samples, B, ...]"
    return f"likelihood: is {what}; {advice}."
