"""Summaries of predictions: what is kept of them where there are too many rows or networks to keep all draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.evaluation._conditional import (
    class_probs,
    has_classes,
    is_nominal,
    mean_or_none,
    variance_or_none,
)
from bayeshnet.evaluation.prediction import Prediction, entropy_of, require_existing
from bayeshnet.formatting import span
from bayeshnet.sites.quantiles import checked_level

__all__ = ["PredictionSummary", "joined", "parts_of"]

# Why a part is not there, for the message.
_REASONS = {
    "mean": "labels have probs in its place",
    "epistemic": "the likelihood has no formula for its mean",
    "aleatoric": "the likelihood has no formula for its mean or its variance",
    "std": "labels have none; use entropy and mutual_information",
    "probs": "is for classifications; use mean, std and quantiles",
    "entropy": "is kept for classes only; predict() estimates it for other observations",
    "mutual_information": "is kept for classes only; predict() estimates it for other observations",
    "quantiles": "labels have no order, or no levels were asked for",
    "log_prob": "was not asked for; pass targets=",
    "functions": "were not asked for; pass functions=True",
}


@dataclass(frozen=True, repr=False)
class PredictionSummary:
    """What :func:`~bayeshnet.predict_summary` keeps of a prediction at B inputs; the names are those of ``Prediction``.

    Attributes:
        num_draws: Number S of sampled networks.
        levels: Those of the quantiles.
        parts: Tensors by name; the properties refuse what is missing with the reason.
        likelihood: Name of the distribution of observations.

    Example:
        >>> parts = {"mean": torch.zeros(3), "quantiles": torch.zeros(2, 3)}
        >>> summary = PredictionSummary(10, (0.05, 0.95), parts, "Normal")
        >>> summary.mean, summary.interval(0.9)[0].shape
        (tensor([0., 0., 0.]), torch.Size([3]))
        >>> summary.log_prob
        Traceback (most recent call last):
        ...
        bayeshnet.errors.UsageError: log_prob: was not asked for; pass targets=.
    """

    num_draws: int
    levels: tuple[float, ...]
    parts: dict[str, Tensor]
    likelihood: str

    def __repr__(self) -> str:
        rows = len(next(iter(self.parts.values()), ()) if "mean" not in self.parts else self.parts["mean"])
        ranges: list[str] = []
        for name in ("mean", "std") if "std" in self.parts else ("probs", "entropy"):
            with suppress(UsageError):
                ranges.append(f"{name}={span(self._part(name))}")
        kept = [name for name in self.parts if name not in ("mean", "std", "probs", "entropy")]
        size = f"{self.num_draws} draw{'s' * (self.num_draws != 1)} at {rows} input{'s' * (rows != 1)}"
        return f"PredictionSummary({', '.join([size, *ranges, f'kept={kept}', f'likelihood={self.likelihood}'])})"

    def _part(self, name: str) -> Tensor:
        if name not in self.parts:
            raise UsageError(f"{name}: {_REASONS[name]}.")
        return self.parts[name]

    @property
    def mean(self) -> Tensor:
        """Predictive mean ``[B, ...]``; for labels the class probabilities ``[B, ..., C]``."""
        return require_existing("mean", self._part("mean"), self.likelihood)

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation ``[B, ...]``: ``std^2 = epistemic^2 + aleatoric^2``."""
        return require_existing("std", self._part("std"), self.likelihood)

    @property
    def epistemic(self) -> Tensor:
        """The part that more data would remove ``[B, ...]``; for labels in nats."""
        return require_existing("epistemic", self._part("epistemic"), self.likelihood)

    @property
    def aleatoric(self) -> Tensor:
        """The part that is noise in the observations ``[B, ...]``; for labels in nats."""
        return require_existing("aleatoric", self._part("aleatoric"), self.likelihood)

    @property
    def probs(self) -> Tensor:
        """Probability of each class ``[B, ..., C]``."""
        return self._part("probs")

    @property
    def entropy(self) -> Tensor:
        """Entropy of the class probabilities in nats ``[B, ...]``."""
        return self._part("entropy")

    @property
    def mutual_information(self) -> Tensor:
        """What a label would say about the network, in nats ``[B, ...]``."""
        return self._part("mutual_information")

    @property
    def quantiles(self) -> Tensor:
        """Quantiles of a new observation ``[Q, B, ...]`` at ``levels``."""
        return self._part("quantiles")

    @property
    def log_prob(self) -> Tensor:
        """Log predictive density of the targets ``[B]``."""
        return self._part("log_prob")

    @property
    def functions(self) -> Tensor:
        """The mean of an observation under each network ``[S, B, ...]``, a joint draw over all rows for each."""
        return self._part("functions")

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central interval that holds a new observation with probability ``level``: its ends ``[B, ...]``.

        Args:
            level: Between 0 and 1; both of its ends have to be among ``levels``.

        Raises:
            ArgumentError: If they are not, or it is out of range.
        """
        level = checked_level("level", level)
        wanted = (0.5 - level / 2, 0.5 + level / 2)
        places = [i for end in wanted for i, kept in enumerate(self.levels) if abs(kept - end) < 1e-9]
        if len(places) != 2:
            raise ArgumentError(
                f"level: is {level}, and the levels kept are {list(self.levels)}; pass "
                f"levels=({wanted[0]:g}, {wanted[1]:g}) to predict_summary."
            )
        return self.quantiles[places[0]], self.quantiles[places[1]]


def parts_of(pred: Prediction, levels: Tensor | None, y: Tensor | None, *, functions: bool) -> dict[str, Tensor]:
    """The parts of a prediction at some rows, each computed once.

    Args:
        pred: The prediction.
        levels: Those of the quantiles; None for none.
        y: Targets ``[B, ...]``.
        functions: Whether to keep the draws of functions.

    Example:
        >>> import pyro.distributions as dist
        >>> f = torch.zeros(4, 3)
        >>> sorted(parts_of(Prediction(f, f, dist.Normal(f, 1.0)), None, None, functions=False))
        ['aleatoric', 'epistemic', 'mean', 'std']
    """
    conditional, parts = pred.conditional, dict[str, Tensor]()
    mean, variance = mean_or_none(conditional), variance_or_none(conditional)
    if has_classes(conditional):
        probs = mean if mean is not None and is_nominal(conditional) else class_probs(conditional)
        parts["probs"] = probs.mean(0)
        parts["entropy"] = entropy_of(parts["probs"])
        noise = entropy_of(probs).mean(0)
        parts["mutual_information"] = (parts["entropy"] - noise).clamp(min=0.0)
        if is_nominal(conditional):
            parts |= {"mean": parts["probs"], "epistemic": parts["mutual_information"], "aleatoric": noise}
    if not is_nominal(conditional):
        if mean is None:
            parts["mean"] = pred.mean
        else:
            spread, parts["mean"] = torch.std_mean(mean, 0, correction=0)
            parts["epistemic"] = spread
        if variance is not None:
            parts["aleatoric"] = variance.mean(0).sqrt()
        known = "epistemic" in parts and "aleatoric" in parts
        parts["std"] = torch.hypot(parts["epistemic"], parts["aleatoric"]) if known else pred.std
        if levels is not None and len(levels):
            parts["quantiles"] = pred.quantile(levels)
    if y is not None:
        parts["log_prob"] = pred.log_prob(y)
    if functions:
        parts["functions"] = pred.functions.clone()
    return parts


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of all rows together.

    Example:
        >>> joined([{"mean": torch.zeros(2), "quantiles": torch.zeros(3, 2)}] * 2)["quantiles"].shape
        torch.Size([3, 4])
    """
    along = {"quantiles": 1, "functions": 1}
    return {name: torch.cat([part[name] for part in parts], dim=along.get(name, 0)) for name in parts[0]}
