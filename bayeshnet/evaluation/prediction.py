"""Predictions: the distribution of a network's output and of new observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.evaluation._conditional import (
    class_probs,
    elementwise,
    has_classes,
    is_discrete,
    is_nominal,
    kind_of_noise,
    marginals,
    mean_or_none,
    variance_or_none,
)
from bayeshnet.evaluation._mixture import (
    class_quantiles,
    count_quantiles,
    draw_quantiles,
    mixture_cdf,
    mixture_quantiles,
)
from bayeshnet.formatting import array, span
from bayeshnet.models.forms import as_numbers
from bayeshnet.sites.quantiles import checked_level, checked_levels, sample_quantiles

__all__ = ["Prediction", "entropy_of", "require_existing"]

# Observations whose log density is averaged for an entropy that has no formula.
_ENTROPY_DRAWS = 200


@dataclass(frozen=True, repr=False)
class Prediction:
    """The predictive distribution at B inputs, by S sampled networks.

    It is the mixture of the distributions of an observation under each network, ``p(y) = mean_s p(y | f_s)``, and
    everything follows from those, whatever the network's outputs mean: the mean ``E[y] = mean_s E[y | f_s]``, the law
    of total variance ``Var[y] = mean_s Var[y | f_s] + Var_s E[y | f_s]``, and quantiles from ``mean_s F(y | f_s)``.

    Labels without an order (``Categorical``) have no mean: there, ``functions`` and ``mean`` are class probabilities,
    ``epistemic`` and ``aleatoric`` parts of the entropy in nats. Bernoulli observations and counts are numbers.

    Where a distribution has no formula for its mean or variance (``NotImplementedError``), ``mean`` and ``std`` are
    those of ``samples``, with a Monte Carlo error of ``std / sqrt(S)``, and the parts cannot be told apart. Where
    a mean or a variance does not exist, as for a Student-t with 2 degrees of freedom or fewer, it is refused; quantiles
    always exist.

    Attributes:
        draws: Outputs of the sampled networks ``[S, B, ...]``: function values, logits, or parameters of another kind.
        samples: One drawn observation for each of them ``[S, B, ...]``.
        conditional: The distribution of observations given each output, ``batch_shape`` ``[S, B]``.

    Example:
        >>> import pyro.distributions as dist
        >>> f = torch.tensor([[0.0], [2.0]])
        >>> pred = Prediction(f, f, dist.Normal(f, 1.0))
        >>> pred.mean, pred.epistemic, pred.aleatoric
        (tensor([1.]), tensor([1.]), tensor([1.]))
        >>> pred
        Prediction(2 draws at 1 input, draws=f32[2,1], mean=1, std=1.41, likelihood=Normal)
        >>> rates = torch.tensor([[1.0], [3.0]])
        >>> Prediction(rates.log(), rates, dist.Poisson(rates)).std  # variance 2 of the counts, 1 of the rate
        tensor([1.7321])
    """

    draws: Tensor
    samples: Tensor
    conditional: TorchDistributionMixin

    @torch.no_grad()
    def __repr__(self) -> str:
        num, rows = self.draws.shape[0], math.prod(self.draws.shape[1:2])
        size = f"{num} draw{'s' * (num != 1)} at {rows} input{'s' * (rows != 1)}"
        ranges: list[str] = []
        nominal = is_nominal(self.conditional)
        estimated = (self._mean is None, not nominal and variance_or_none(self.conditional) is None)
        for name, of_samples in zip(("probs", "entropy") if nominal else ("mean", "std"), estimated, strict=True):
            with suppress(UsageError):  # a distribution without a variance
                ranges.append(f"{name}={span(getattr(self, name))}{' of samples' * of_samples}")
        if len(ranges) < 2:
            ranges.append(f"median={span(self.quantile(0.5))}")
        kind = kind_of_noise(self.conditional)
        return f"Prediction({', '.join([size, f'draws={array(self.draws)}', *ranges, f'likelihood={kind}'])})"

    @property
    def is_classification(self) -> bool:
        """Whether the observations are of a finite number of classes, so that there are ``probs``."""
        return has_classes(self.conditional)

    # ------------------------------------------------------------------ moments

    @property
    def _mean(self) -> Tensor | None:
        return mean_or_none(self.conditional)

    @property
    def functions(self) -> Tensor:
        """The mean of an observation under each network, ``E[y | f_s]`` ``[S, B, ...]``.

        The class probabilities ``[S, B, ..., C]`` for labels.

        Raises:
            UsageError: If no formula for it is known, or a mean does not exist.
        """
        found = self._mean
        if found is None:
            raise UsageError(
                f"functions: {self._kind} has no formula for its mean, so that of each network is not known; use "
                "samples, mean (of the samples) or quantile()."
            )
        return require_existing("functions", found, self._kind)

    @property
    def mean(self) -> Tensor:
        """Predictive mean ``[B, ...]``, ``P(y = 1)`` of a Bernoulli; for labels class probabilities ``[B, ..., C]``.

        Raises:
            UsageError: If it does not exist.
        """
        found = self._mean
        if found is None:
            return self.samples.to(torch.promote_types(self.samples.dtype, torch.float32)).mean(0)
        return require_existing("mean", found.mean(0), self._kind)

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation ``[B, ...]``: ``std^2 = epistemic^2 + aleatoric^2``.

        Raises:
            UsageError: For labels, and where it does not exist.
        """
        if is_nominal(self.conditional):
            raise UsageError("std: labels have none; use entropy, epistemic and aleatoric, in nats.")
        if self._mean is None or variance_or_none(self.conditional) is None:
            return self.samples.to(torch.promote_types(self.samples.dtype, torch.float32)).std(0, unbiased=False)
        return (self.epistemic.square() + self.aleatoric.square()).sqrt()

    @property
    def epistemic(self) -> Tensor:
        """The part that more data would remove ``[B, ...]``.

        The standard deviation over the sampled networks of the observation's mean; for labels the mutual information
        between label and network in nats.

        Raises:
            UsageError: Where it is not known, or does not exist.
        """
        if is_nominal(self.conditional):
            return self.mutual_information
        return self.functions.std(0, unbiased=False)

    @property
    def aleatoric(self) -> Tensor:
        """The part that is noise in the observations ``[B, ...]``.

        The root of the mean variance of an observation given the network; for labels the mean entropy of a network's
        prediction in nats.

        Raises:
            UsageError: Where it is not known, or does not exist.
        """
        if is_nominal(self.conditional):
            return entropy_of(class_probs(self.conditional)).mean(0)
        found = variance_or_none(self.conditional)
        if found is None:
            raise UsageError(
                f"aleatoric: {self._kind} has no formula for its variance; use std (of the samples) or interval()."
            )
        return require_existing("aleatoric", found.mean(0).sqrt(), self._kind)

    # ------------------------------------------------------------------ classes and information

    @property
    def probs(self) -> Tensor:
        """Probability of each class ``[B, ..., C]``, averaged over the sampled networks; ``[B, 2]`` for a Bernoulli.

        Raises:
            UsageError: If observations are not of a finite number of classes.
        """
        if not self.is_classification:
            raise UsageError("probs: is for classifications; use mean, std, quantile() or interval().")
        return class_probs(self.conditional).mean(0)

    @property
    def entropy(self) -> Tensor:
        """Entropy of the predictive distribution in nats, ``entropy = mutual_information + mean_s H[y | f_s]``.

        For a finite number of classes exact, ``[B, ...]``. Otherwise a Monte Carlo estimate ``[B]``, of all numbers of
        a row together: ``-mean log p(y)`` over (up to 200, evenly spaced) ``samples``, whose error is the standard
        deviation of ``log p(y)``, about .7 for a Gaussian, over the root of their number.
        """
        if self.is_classification:
            return entropy_of(self.probs)
        return -self._sampled_log_probs()[1].mean(0)

    @property
    def mutual_information(self) -> Tensor:
        """What an observation would say about the network, in nats: exact or estimated as ``entropy`` is."""
        if self.is_classification:
            return (self.entropy - entropy_of(class_probs(self.conditional)).mean(0)).clamp(min=0.0)
        own, of_all = self._sampled_log_probs()
        return (own - of_all).mean(0).clamp(min=0.0)

    def _sampled_log_probs(self) -> tuple[Tensor, Tensor]:
        """Log density of some samples under their own network, and under the mixture, each ``[M, B]``."""
        num = len(self.samples)
        chosen = torch.linspace(0, num - 1, min(num, _ENTROPY_DRAWS)).round().long().tolist()
        own: list[Tensor] = []
        of_all: list[Tensor] = []
        for s in chosen:
            log_prob = self.conditional.log_prob(self.samples[s])
            own.append(log_prob[s])
            of_all.append(torch.logsumexp(log_prob, 0) - math.log(num))
        return torch.stack(own), torch.stack(of_all)

    # ------------------------------------------------------------------ quantiles

    def quantile(self, levels: float | Sequence[float] | Tensor) -> Tensor:
        """Quantiles of a new observation, noise included.

        Exact, where the distribution function is known: of the mixture over the sampled networks for continuous
        observations, and the smallest value that reaches the level for ordered classes. Otherwise of ``samples``; of
        counts the smallest of them that so many do not exceed. For several outputs, of each by itself.

        Args:
            levels: A number between 0 and 1, or Q of them.

        Returns:
            ``[B, ...]``, or ``[Q, B, ...]``.

        Raises:
            ArgumentError: If a level is out of range.
            ArgumentTypeError: If one is not a number.
            UsageError: For labels.

        Example:
            >>> import pyro.distributions as dist
            >>> f = torch.zeros(4, 1)
            >>> Prediction(f, torch.randn(4, 1), dist.Normal(f, 1.0)).quantile([0.025, 0.975])
            tensor([[-1.9600],
                    [ 1.9600]])
        """
        if isinstance(levels, Sequence) or (isinstance(levels, Tensor) and levels.dim()):
            return self._quantiles(checked_levels("levels", levels).detach().cpu())
        return self._quantiles(torch.tensor([checked_level("levels", levels)], dtype=torch.double))[0]

    def _quantiles(self, levels: Tensor) -> Tensor:
        if is_nominal(self.conditional):
            raise UsageError("quantile: labels have no order; use probs.")
        if not bool(((levels > 0) & (levels < 1)).all()):
            raise ArgumentError(f"levels: is {levels.tolist()}; pass numbers between 0 and 1, both excluded.")
        if self.is_classification and not self.conditional.event_shape:
            base = elementwise(self.conditional)
            probs = class_probs(base).mean(0)
            values = torch.arange(probs.shape[-1]) if isinstance(base, torch.distributions.Categorical) else None
            values = base.enumerate_support(expand=False).reshape(-1) if values is None else values
            return class_quantiles(values.to(probs), probs, levels)
        if is_discrete(self.conditional):
            found = count_quantiles(marginals(self.conditional), self.samples, levels)
            return draw_quantiles(self.samples, levels) if found is None else found
        found = mixture_quantiles(marginals(self.conditional), self.samples, levels)
        return sample_quantiles(self.samples, levels) if found is None else found

    def interval(
        self, level: float = 0.9, *, kind: Literal["observation", "function"] = "observation"
    ) -> tuple[Tensor, Tensor]:
        """Central interval that holds a new observation, or the function's value, with probability ``level``.

        Args:
            level: Between 0 and 1.
            kind: ``"observation"`` (noise included, see :meth:`quantile`) or ``"function"`` (quantiles of
                ``functions``).

        Returns:
            Lower and upper end ``[B, ...]``.

        Raises:
            ArgumentError: If an argument is out of range.
            ArgumentTypeError: If ``level`` is not a number.
            UsageError: For labels.
        """
        level = checked_level("level", level)
        if kind not in ("observation", "function"):
            raise ArgumentError(f"kind: is {kind!r}; pass 'observation' or 'function'.")
        if is_nominal(self.conditional):
            raise UsageError("interval: labels have no order; use probs.")
        ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.double)
        low, high = self._quantiles(ends) if kind == "observation" else sample_quantiles(self.functions, ends)
        return low, high

    # ------------------------------------------------------------------ observations

    def log_prob(self, y: Any) -> Tensor:
        """Log predictive density of each observation, ``log mean_s p(y | f_s)``: ``[B]``.

        Args:
            y: Observations ``[B, ...]``, of the shape of one prediction.

        Raises:
            ArgumentError: If the shape differs, or observations are NaN or labels that do not exist.
            ArgumentTypeError: If ``y`` is not a tensor, or of another kind of numbers than is predicted.
        """
        log_prob = self.conditional.log_prob(self._checked(y))
        return torch.logsumexp(log_prob, 0) - math.log(log_prob.shape[0])

    def cdf(self, y: Any) -> Tensor:
        """Probability that an observation is at most ``y``, ``mean_s F(y | f_s)``: ``[B, ...]``.

        Where the distribution function is not known, the share of ``samples`` that are at most ``y``. For several
        outputs, of each by itself.

        Args:
            y: Observations ``[B, ...]``, of the shape of one prediction.

        Raises:
            ArgumentError: If the shape differs or observations are NaN.
            ArgumentTypeError: If ``y`` is not a tensor of real numbers.
            UsageError: For labels.

        Example:
            >>> import pyro.distributions as dist
            >>> f = torch.zeros(4, 1)
            >>> Prediction(f, f, dist.Normal(f, 1.0)).cdf(torch.tensor([1.96]))
            tensor([0.9750])
        """
        if is_nominal(self.conditional):
            raise UsageError("cdf: labels have no order; use probs.")
        y = self._checked(y)
        found = mixture_cdf(marginals(self.conditional), y)
        return (self.samples <= y).to(self.draws.dtype).mean(0) if found is None else found

    def _checked(self, y: Any) -> Tensor:
        """Observations in the dtype in which the distribution takes them."""
        y = as_numbers(y, "y", self.samples)
        if not isinstance(y, Tensor):
            raise ArgumentTypeError(f"y: is {kind_of(y)}; pass a tensor, torch.as_tensor(y).")
        labels = is_nominal(self.conditional)
        of_others = y.is_floating_point() if labels else y.dtype == torch.bool and not self.is_classification
        if y.is_complex() or of_others:
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; pass {'integer labels' if labels else 'real numbers'}.")
        expected = self.conditional.batch_shape[1:] + self.conditional.event_shape
        if y.shape != expected:
            raise ArgumentError(f"y: has shape {tuple(y.shape)}; pass {tuple(expected)}, that of the prediction.")
        if bool(torch.isnan(y).any()):
            raise ArgumentError(f"y: {int(torch.isnan(y).sum())} of {y.numel()} entries are NaN; drop those rows.")
        return y if y.is_floating_point() or labels else y.to(self.samples.dtype)

    @property
    def _kind(self) -> str:
        return kind_of_noise(self.conditional)


def require_existing(name: str, value: Tensor, kind: str) -> Tensor:
    """Return a moment, if it exists everywhere.

    Args:
        name: What it is, for the message.
        value: Its values.
        kind: The distribution's name.

    Raises:
        UsageError: If it is infinite or NaN somewhere.

    Example:
        >>> require_existing("std", torch.ones(3), "Normal")
        tensor([1., 1., 1.])
    """
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        raise UsageError(
            f"{name}: is infinite or NaN at {int(bad.sum())} of {value.numel()} places. A mean or a variance of "
            f"{kind} that does not exist (StudentT: df <= 1 and df <= 2, Cauchy) is no number; use quantile() and "
            "interval(), which always exist. Of other distributions it is the sign of a diverged fit."
        )
    return value


def entropy_of(probs: Tensor) -> Tensor:
    """Entropy of class probabilities ``[..., C]`` in nats.

    Example:
        >>> entropy_of(torch.tensor([0.5, 0.5]))
        tensor(0.6931)
    """
    return torch.special.entr(probs).sum(-1)
