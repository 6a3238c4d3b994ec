"""The result of a diagnosis, and what its numbers mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bayeshnet.deprecation import warn_renamed
from bayeshnet.errors import BayeshnetWarning
from bayeshnet.formatting import number, with_error

__all__ = ["MEANINGS", "Diagnosis"]

_MOST_VALUES, _LONGEST_TITLE = 6, 40  # in a repr

MEANINGS: dict[str, str] = {
    "elbo": "evidence lower bound, nats",
    "log_evidence": "by smoothed importance weights, nats",
    "evidence_gap": "log_evidence - elbo: divergence of guide from posterior",
    "k_hat": "tail shape of the importance weights",
    "ess": "effective sample size of the importance weights",
    "sign_mismatch": "share of determinants of the rarer sign; above 0 it folds",
    "preimages": "noise vectors per draw; above 1 it folds",
    "entropy_excess": "over-estimate of the entropy by folding, nats",
    "holes": "share of values around the draws that no noise was found for",
    "full_support": "1 if there is known to be noise for every value",
    "log_q_bias": "by how much log q is too low on average, nats",
    "search_missed": "share of draws whose noise the search would miss",
    "entropy_gap": "entropy less that by importance sampling, nats",
    "effective_share": "effective share of the importance samples behind it",
    "self_weight": "weight of a draw's own noise in the semi-implicit bound",
    "stein_share": "entropy gradient seen by the estimated score; 1 is right",
    "spread": "spread that the estimated score leads to; 1 is right",
    "noise_share": "gradient of the noise scale, estimated over exact; 1 is right",
    "elbo_excess": "by how much the reported ELBO is too high, nats",
    "accuracy": "of the discriminator; near 1 it is saturated",
    "noise": "mean of the observation noise under the guide",
    "residual_std": "of the training targets from the predictive mean",
    "noise_ratio": "noise / residual_std",
    "spread_ratio": "std of functions, guide over chain",
    "chain_noise": "mean of the observation noise along the chain",
    "chain_noise_ratio": "noise / chain_noise",
    "chain_rhat": "split r-hat of functions, 90 % quantile",
    "chain_ess": "effective sample size of the chain, median over functions",
}
"""What each number says, in a few words. A diagnosis may hold others, which are shown without."""


_RENAMED = {"own_weight": "self_weight"}


class _Values(dict[str, float]):
    """Numbers by name, also by the names of version 0.1."""

    def __missing__(self, name: str) -> float:
        new = _RENAMED.get(name)
        if new is None or new not in self:
            raise KeyError(name)
        warn_renamed(f"Diagnosis.values[{name!r}]", f"Diagnosis.values[{new!r}]")
        return self[new]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self or _RENAMED.get(name) in self else default


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What a check of an estimator, a guide or a whole fit found; ``print(diagnosis)`` shows it as a table.

    Attributes:
        values: Numbers by name; ``NAME_error`` is the standard error of ``NAME``.
        advice: One sentence or two per problem: what was found and what to do; empty if none was found.
        category: The warning class that fits the problems.
        title: What was diagnosed.

    Example:
        >>> found = Diagnosis({"elbo": -3.25, "elbo_error": 0.01}, ["Train longer."], title="guide, 2000 draws")
        >>> print(found)
        guide, 2000 draws
          elbo  -3.250 ± 0.010  evidence lower bound, nats
        advice
          - Train longer.
        >>> found
        Diagnosis(guide, 2000 draws: elbo=-3.250 ± 0.010; 1 problem)
    """

    values: dict[str, float]
    advice: list[str] = field(default_factory=list[str])
    category: type[BayeshnetWarning] = BayeshnetWarning
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _Values(self.values))

    @property
    def healthy(self) -> bool:
        """Whether no problem was found."""
        return not self.advice

    def __str__(self) -> str:
        rows = [(name, text, MEANINGS.get(name, "")) for name, text in self._numbers()]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        lines = [f"  {name:<{widths[0]}}  {text:<{widths[1]}}  {meaning}".rstrip() for name, text, meaning in rows]
        found = [f"  - {sentence}" for sentence in self.advice] or ["  none: no problem was found"]
        return "\n".join([*([self.title] if self.title else []), *lines, "advice", *found])

    def __repr__(self) -> str:
        numbers = self._numbers()
        shown = [f"{name}={text}" for name, text in numbers[:_MOST_VALUES]]
        shown += ["..."] if len(numbers) > _MOST_VALUES else []
        problems = f"{len(self.advice)} problem{'s' * (len(self.advice) != 1)}" if self.advice else "healthy"
        short = self.title if len(self.title) <= _LONGEST_TITLE else f"{self.title[:_LONGEST_TITLE]}..."
        title = f"{short}: " if self.title else ""
        return f"Diagnosis({title}{', '.join(shown) or 'no numbers'}; {problems})"

    def _numbers(self) -> list[tuple[str, str]]:
        """Names and values as text, with their errors."""
        found: list[tuple[str, str]] = []
        for name, value in self.values.items():
            if name.endswith("_error") and name.removesuffix("_error") in self.values:
                continue
            error = self.values.get(f"{name}_error")
            found.append((name, number(value, digits=4) if error is None else with_error(value, error)))
        return found
