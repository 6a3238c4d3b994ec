"""How well rows that are held out are predicted while a guide is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.guides.base import with_model
from bayeshnet.models.capabilities import has_rows, is_predictive
from bayeshnet.models.forms import is_single, rows_of
from bayeshnet.models.observations import row_weight
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets, require_targets
from bayeshnet.sites.latents import nodes_of
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.rows import check_rows
from bayeshnet.training._random import RandomStates, generators_of, own_stream

__all__ = ["Validation"]

_ROWS = 2_000  # evaluated at once
_OF_ROWS = ("x", "y", "weight", "noise", "exposure")  # the arguments of a BayesianModel, in their order


@dataclass(frozen=True, eq=False)
class Validation:
    r"""Rows that are held out of a fit, and how often they are looked at.

    The curve is minus the mean log predictive density per row, in nats; lower is better:

    .. math:: -\frac{1}{N} \sum_n \log \frac{1}{S} \sum_s p(y_n \mid x_n, w_s), \quad w_s \sim q

    It is what :func:`~bayeshnet.predict` would be scored by at that step: model and guide are in evaluation mode, and
    draws are those of ``guide.sample_posterior``. All looks of a fit use the same random numbers, so that they differ
    by the guide alone, and the random numbers of the fit are what they would be without it. Weights of rows weigh the
    mean; targets that are left out count 0. Of a model other than a
    :class:`~bayeshnet.BayesianModel`, rows are the entries of its observed sites, which are evaluated draw by draw.

    Args:
        data: The held-out rows, in the forms of the data of :func:`~bayeshnet.fit`; batches are gone through once.
        every: Steps from one look to the next; the last step of a fit is always followed by one. By default an epoch
            where the fit is given ``epochs``, and else 100 steps.
        num_samples: Number S of draws.

    Raises:
        ArgumentError: If a number is not positive.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods
        >>> x = torch.linspace(-1.0, 1.0, 20).unsqueeze(-1)
        >>> y = x.squeeze(-1)
        >>> model = BayesianModel(torch.nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> guide = AutoHypernet(model, example=(x[::2], y[::2]))
        >>> held_out = Validation((x[1::2], y[1::2]), every=10)
        >>> history = fit(model, guide, (x[::2], y[::2]), 30, validation=held_out, progress=False)
        >>> history.validation_steps
        [9, 19, 29]
    """

    data: Any
    every: int | None = None
    num_samples: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.data, Iterator):
            raise ArgumentTypeError(
                f"validation: its data are {kind_of(self.data)}, an iterator, which gives its batches once only; pass "
                "a tuple (x, y), a list of batches or a DataLoader."
            )
        if not isinstance(self.data, Iterable) or isinstance(self.data, str | bytes):
            raise ArgumentTypeError(
                f"validation: is {kind_of(self.data)}; pass held-out rows in the forms of data: a tuple (x, y), a list "
                "of batches or a DataLoader."
            )
        if self.every is not None:
            require_count("every", self.every, advice=", or None")
        require_count("num_samples", self.num_samples)

    def check(self, model: Callable[..., Any]) -> None:
        """Raise unless a model accepts the rows, those of the first batch if there are several.

        Args:
            model: The model.

        Raises:
            ArgumentError: If there are no rows, or the model does not accept them.
            ArgumentTypeError: If a dtype does not fit.
        """
        with own_stream(RandomStates.now(generators_of(self.data)), generators_of(self.data)):
            batch = next(iter(self._batches()), None)
            if batch is None:
                raise ArgumentError("validation: has no rows; pass one or more.")
            y = inputs_and_targets(*self._arguments(model, batch))[1]
            if isinstance(y, Tensor) and y.shape[:1] == (0,):
                raise ArgumentError("validation: has no rows; pass one or more.")

    def _batches(self) -> Iterable[Any]:
        return [self.data] if is_single(self.data) else self.data

    def _arguments(self, model: Any, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model, which are checked as in training: nothing may broadcast."""
        args, kwargs = call_arguments(batch, "validation", model)
        require_targets(model, args, kwargs, "validation")
        x, y = inputs_and_targets(args, kwargs)
        if not has_rows(model) or not isinstance(y, Tensor) or not len(y):
            return args, kwargs
        try:
            check_rows(model, x, y)
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            if weight is not None:
                with pyro.validation_enabled():
                    row_weight(weight, len(y))
        except (ArgumentError, ArgumentTypeError) as error:
            raise type(error)(f"validation: {str(error).removeprefix('data: ')}") from error
        return args, kwargs

    def score(self, model: Callable[..., Any], guide: Callable[..., Any], start: RandomStates) -> float:
        """Evaluate the guide as it is now.

        Args:
            model: The model.
            guide: Its guide.
            start: Where the random numbers begin.

        Returns:
            Minus the mean log predictive density per row, in nats.

        Raises:
            ArgumentError: If there are no rows, or the model does not accept them.
        """
        total, rows = 0.0, 0.0
        with own_stream(start, generators_of(self.data)), torch.no_grad(), evaluating(model, guide):
            draws = self._draws(model, guide)
            for batch in self._batches():
                args, kwargs = self._arguments(model, batch)
                for log_probs, weight in self._log_probs(model, guide, draws, args, kwargs):
                    of_rows = log_probs.double().logsumexp(0) - math.log(len(log_probs))
                    total -= float((of_rows if weight is None else of_rows * weight).sum())
                    rows += of_rows.numel() if weight is None else float(weight.sum())
        if not rows:
            raise ArgumentError("validation: has no rows, or all have weight 0; pass one or more.")
        return total / rows

    def _draws(self, model: Any, guide: Any) -> dict[str, Tensor] | None:
        """Draws ``[S, *shape]`` by site, for a model that predicts from them."""
        if not is_predictive(model):
            return None
        own = getattr(guide, "sample_posterior", None)
        with with_model(guide, model):
            if own is not None:
                return own(self.num_samples)
            sites = tuple(model.latent_shapes)
            made: Mapping[str, Tensor] = Predictive(guide, num_samples=self.num_samples, return_sites=sites)()
            return {name: made[name].reshape((self.num_samples, *shape)) for name, shape in model.latent_shapes.items()}

    def _log_probs(
        self, model: Any, guide: Any, draws: dict[str, Tensor] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Log densities ``[S, ...]`` of the observations given each draw, and weights of the rows, some at a time."""
        if draws is None:
            yield torch.stack([_one_draw(model, guide, args, kwargs) for _ in range(self.num_samples)]), None
            return
        given = {**dict(zip(_OF_ROWS, args, strict=False)), **kwargs}
        x, y, weight = (given.pop(name, None) for name in ("x", "y", "weight"))
        observed = getattr(model, "observed", None)
        for start in range(0, len(y), _ROWS):
            part = slice(start, start + _ROWS)
            inputs, others = rows_of(x, part, rows=len(y)), rows_of(given, part, rows=len(y))
            conditional = model.conditional(inputs, draws, **others)[1]
            targets = y[part].reshape(-1, *conditional.event_shape)
            if observed is not None:  # targets that are left out, and weights of classes, are as in training
                conditional, targets = observed(conditional, targets)
            log_probs = conditional.log_prob(targets)
            yield log_probs.expand(self.num_samples, *log_probs.shape[1:]), None if weight is None else weight[part]


def _one_draw(model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Log densities of the entries of all observed sites, given one draw of the guide."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    found = [site for site in nodes_of(trace).values() if site["type"] == "sample" and site["is_observed"]]
    parts = [site["fn"].log_prob(site["value"]).reshape(-1) for site in found if site["value"] is not None]
    if not parts:
        raise ArgumentError("validation: the model observes nothing in these data; pass the model's data.")
    return torch.cat(parts)
