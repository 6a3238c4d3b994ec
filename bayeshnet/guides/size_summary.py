"""What a guide and a training step take, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor

from bayeshnet.checks import require_count, require_flag
from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.formatting import number
from bayeshnet.guides._by_size import learned_bytes, step_bytes
from bayeshnet.guides._measured_step import measured_step, saved_bytes
from bayeshnet.models.capabilities import has_rows
from bayeshnet.models.forms import is_single
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets
from bayeshnet.sites.memory import available_memory, in_bytes
from bayeshnet.sites.one_thread import one_thread

__all__ = ["GuideSummary", "summary_of"]

# Numbers of rows from which the memory of more is extrapolated.
_FEW_ROWS = (2, 4)


@dataclass(frozen=True, repr=False)
class GuideSummary:
    """What a guide and a training step take; see :meth:`AutoHypernet.summary`.

    Attributes:
        guide: Name of its class.
        family: What draws the latents that are not conditional.
        weights: Number of latents: the weights of the network, and those of prior and likelihood.
        parameters: Number of entries of all parameters that are learned.
        num_inducing: Number of inducing points, which go through the network at every step.
        rows: Number of rows of the step; None where it is not known.
        num_samples: Number S of posterior samples of the step.
        memory_estimated: Bytes of a step at its peak: parameters with gradients, moments of Adam and a copy, and for
            each sample its weights and what the network keeps for the backward pass.
        memory_measured: Bytes of all tensors at the peak of a step that was made; None if none was.
        memory_available: Bytes that were left before; None where the system does not say.
        seconds: Wall-clock time of a step that was made; None if none was.
        choices: What was chosen, and why.

    Example:
        >>> GuideSummary("AutoHypernet", "MeanField()", 100, 200, 0, 16, 2, 10**6, None, None, None, ())
        AutoHypernet of MeanField()
          weights                100
          generator parameters   200, 2 per weight
          inducing points        0
          step                   2 samples, 16 rows
          memory of a step       1.0 MB estimated
    """

    guide: str
    family: str
    weights: int
    parameters: int
    num_inducing: int
    rows: int | None
    num_samples: int
    memory_estimated: int
    memory_measured: int | None
    memory_available: int | None
    seconds: float | None
    choices: tuple[str, ...]

    @property
    def parameters_per_weight(self) -> float:
        """Number of parameters over that of the weights."""
        return self.parameters / self.weights

    @property
    def inducing_share(self) -> float | None:
        """The part of a step's cost that inducing points have: their part of all rows that go through the network.

        None where the number of rows is not known.
        """
        if not self.num_inducing:
            return 0.0
        return None if self.rows is None else self.num_inducing / (self.num_inducing + self.rows)

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name, those of the properties too.

        Example:
            >>> summary = GuideSummary("AutoHypernet", "MeanField()", 100, 200, 0, 16, 2, 10**6, None, None, None, ())
            >>> summary.as_dict()["parameters_per_weight"]
            2.0
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **own,
            "parameters_per_weight": self.parameters_per_weight,
            "inducing_share": self.inducing_share,
        }

    def __repr__(self) -> str:
        share = self.inducing_share
        part = "" if not self.num_inducing or share is None else f", {share:.1%} of the rows of a step"
        rows = "" if self.rows is None else f", {self.rows:,} rows"
        memory = [f"{in_bytes(self.memory_estimated)} estimated"]
        if self.memory_measured is not None:
            memory.append(f"{in_bytes(self.memory_measured)} measured")
        if self.memory_available is not None:
            memory.append(f"{in_bytes(self.memory_available)} available")
        each = number(self.parameters_per_weight, digits=3)
        lines = {
            "weights": f"{self.weights:,}",
            "generator parameters": f"{self.parameters:,}, {each} per weight",
            "inducing points": f"{self.num_inducing:,}{part}",
            "step": f"{self.num_samples} samples{rows}",
            "memory of a step": ", ".join(memory),
        }
        if self.seconds is not None:
            lines["seconds of a step"] = number(self.seconds, digits=3)
        shown = [f"  {name:<22} {value}" for name, value in lines.items()]
        return "\n".join([f"{self.guide} of {self.family}", *shown, *(f"  chosen: {why}" for why in self.choices)])


def summary_of(guide: Any, data: Any, num_samples: int | None, *, measure: bool) -> GuideSummary:
    """Make the summary of a guide; see :meth:`AutoHypernet.summary`.

    Args:
        guide: The guide.
        data: Data of a step, or batches; None for the example.
        num_samples: Number of samples of a step; None for the default.
        measure: Whether a step is made.
    """
    require_flag("measure", measure)
    model = guide.original_model
    if model is None:
        raise UsageError("summary: the guide is a copy without its model; guide.attach(model) gives it one.")
    num: int = guide.default_particles if num_samples is None else num_samples
    require_count("num_samples", num)
    guide.require_memory(num)
    left = available_memory(guide.loc.device)
    with one_thread("summary"), torch.random.fork_rng(devices=[]):
        args, kwargs = _arguments(guide, data)
        _, y = inputs_and_targets(args, kwargs)
        rows = len(y) if has_rows(model) and isinstance(y, Tensor) and y.dim() else None
        latents, itemsize = guide.latent_dim, guide.loc.element_size()
        learned = learned_bytes(guide.num_parameters, itemsize)
        of_draws = step_bytes(guide.num_parameters, latents, num, itemsize) - learned
        estimated = learned + of_draws + num * _kept(model, guide, args, kwargs, rows)
        made = measured_step(model, guide, args, kwargs, num) if measure else None
    family, inducing = getattr(guide, "family", None), getattr(guide, "inducing", None)
    return GuideSummary(
        type(guide).__name__,
        family.describe() if family is not None else type(guide).__name__,
        latents,
        guide.num_parameters,
        0 if inducing is None else inducing.num_inducing,
        rows,
        num,
        estimated,
        None if made is None else made.memory,
        left,
        None if made is None else made.seconds,
        tuple(guide.choices()),
    )


def _arguments(guide: Any, data: Any) -> tuple[Any, dict[str, Any]]:
    """The model's arguments of a step."""
    if data is None:
        return guide.example_arguments()
    if not is_single(data):
        data = next(iter(data), None)
        if data is None:
            raise ArgumentError("data: is an empty iterable; pass at least one batch, or leave it out.")
    return call_arguments(data, "data", unwrap(guide.original_model))


def _kept(model: Any, guide: Any, args: Any, kwargs: Any, rows: int | None) -> int:
    """Bytes that one draw keeps for its backward pass, of few rows extrapolated to all."""
    few, more = _FEW_ROWS
    if rows is None or rows <= more:
        return saved_bytes(model, guide, args, kwargs)
    one, two = (saved_bytes(model, guide, *_first(args, kwargs, rows, num)) for num in _FEW_ROWS)
    return max(0, int(one + (two - one) / (more - few) * (rows - few)))


def _first(args: Any, kwargs: Any, rows: int, num: int) -> tuple[Any, Any]:
    def cut(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[:num] if part.dim() and len(part) == rows else part
        if isinstance(part, Mapping):
            return {key: cut(value) for key, value in part.items()}
        return type(part)(map(cut, part)) if type(part) in (tuple, list) else part

    return tuple(map(cut, args)), {key: cut(value) for key, value in kwargs.items()}
