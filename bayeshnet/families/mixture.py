"""A mixture of weight distributions, with the density of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of, require_count
from bayeshnet.entropy.protocol import Diagnosis
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families.base import INIT_SCALE, Family, Start, family_of
from bayeshnet.families.flat_distribution import FlatDistribution
from bayeshnet.families.implicit_weights import ImplicitWeights

__all__ = ["Mixture", "MixtureWeights"]


class MixtureWeights(FlatDistribution):
    r"""A mixture of K distributions over R^D, which may be hypernetworks.

    .. math:: q(w) = \sum_{k=1}^K \pi_k \, q_k(w)

    :meth:`log_prob` is the density of the whole mixture, so every component has to have a density at the draws of the
    others: a Gaussian has, and so has a hypernetwork with shared noise under
    :class:`~bayeshnet.entropy.ChangeOfVariables`, by a search for the noise.

    The weights :math:`\pi` are fixed, equal by default: then a draw moves smoothly with all that is learned, and plain
    reparameterised gradients are unbiased. Unequal modes are met by more components than modes.

    With ``stratified`` the draws of one call are shared out among the components as evenly as the weights allow, in
    random order, instead of each choosing at random. Every draw has the density q by itself, so means over draws, and
    with them the ELBO and its gradient, are unbiased and vary less; but the draws of one call are not independent of
    each other. That suits a guide, not a prior.

    Args:
        components: K distributions with one event shape ``[D]`` and no batch shape.
        weights: K positive numbers, proportional to :math:`\pi`; equal by default.
        stratified: Share the draws of a call out evenly.

    Raises:
        ArgumentError: If there are no components, shapes do not fit, weights are not positive, or a hypernetwork's
            estimator has no differentiable density at values that it did not sample.
        ArgumentTypeError: If a component is not a distribution.

    Example:
        >>> import pyro.distributions as dist
        >>> parts = [dist.Normal(mean * torch.ones(3), 0.5).to_event(1) for mean in (-1.0, 1.0)]
        >>> q = MixtureWeights(parts)
        >>> w = q.rsample((7,))
        >>> w.shape, q.log_prob(w).shape
        (torch.Size([7, 3]), torch.Size([7]))
    """

    def __init__(
        self,
        components: Sequence[TorchDistribution],
        *,
        weights: Tensor | Sequence[float] | None = None,
        stratified: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.components = list(components)
        if validate_args is not False:
            _check_components(self.components)
        self.shares = _shares(weights, len(self.components))
        self.stratified = stratified
        flat = [part for part in self.components if isinstance(part, FlatDistribution)]
        self.depends_on = tuple([place for part in flat for place in part.depends_on])
        super().__init__(Size(), self.components[0].event_shape, validate_args=validate_args)

    def __repr__(self) -> str:
        return (
            f"MixtureWeights({len(self.components)} x {type(self.components[0]).__name__}, "
            f"stratified={self.stratified}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

    # ------------------------------------------------------------------ sampling and density

    def draw(self, num: int) -> tuple[Tensor, _Made]:
        """See :meth:`FlatDistribution.draw`."""
        # Counts in random order are choices one by one.
        drawn = [
            part.draw(count) if isinstance(part, FlatDistribution) else (part.rsample(Size((count,))), None)
            for part, count in zip(self.components, self._counts(num), strict=True)
        ]
        parts, noise = [rows for rows, _ in drawn], [made_of for _, made_of in drawn]
        order = torch.randperm(num, device=parts[0].device)
        return torch.cat(parts)[order], _Made(parts, order, noise)

    def _counts(self, num: int) -> list[int]:
        """How many of ``num`` draws come from each component."""
        if self.stratified:  # a comb with random offset over the unit interval
            comb = (torch.arange(num, dtype=torch.double) + torch.rand((), dtype=torch.double)) / max(num, 1)
            which = torch.searchsorted(self.shares.cumsum(0)[:-1].contiguous(), comb, right=True)
        else:
            which = torch.multinomial(self.shares, num, replacement=True) if num else torch.zeros(0, dtype=torch.long)
        return torch.bincount(which, minlength=len(self.components)).tolist()

    def log_prob_of_draw(self, made_of: _Made) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of_draw`."""
        return self._log_mixture(torch.cat(made_of.parts), made_of)[made_of.order]

    def log_prob_of(self, rows: Tensor, made_of: _Made) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of`."""
        sorted_rows = rows[torch.argsort(made_of.order)]
        parts = list(sorted_rows.split([len(part) for part in made_of.parts]))
        made = _Made(parts, made_of.order, made_of.noise, fixed=True)
        return self._log_mixture(sorted_rows, made)[made_of.order]

    def _log_prob_at(self, rows: Tensor) -> Tensor:
        return self._log_mixture(rows, None)

    def _log_mixture(self, rows: Tensor, made: _Made | None) -> Tensor:
        """Log-density of rows ``[S, D]``; ``made`` says which of them came from which component, if that is known."""
        columns: list[Tensor] = []
        for k, component in enumerate(self.components):
            noise = None if made is None else made.noise[k]
            own = None if made is None else made.parts[k]
            if made is None or own is None or len(own) == 0 or noise is None:
                columns.append(component.log_prob(rows))
                continue
            flat = cast("FlatDistribution", component)
            # The noise behind a component's own draws is known, and need not be searched for.
            before, after = torch.cat([own[:0], *made.parts[:k]]), torch.cat([*made.parts[k + 1 :], own[:0]])
            others = torch.cat([before, after])
            elsewhere = component.log_prob(others) if len(others) else others.sum(-1)
            here = flat.log_prob_of(own, noise) if made.fixed else flat.log_prob_of_draw(noise)
            columns.append(torch.cat([elsewhere[: len(before)], here, elsewhere[len(before) :]]))
        stacked = torch.stack(columns, -1)
        return torch.logsumexp(stacked + self.shares.log().to(stacked), -1)


class Mixture(Family, short_form="mixture"):
    """Family of mixtures with equal weights, whose draws are shared out evenly among the components.

    The components start at draws from the prior, in pairs around its centre.

    Args:
        of: What each component is: a family, or the short form of one (``"low_rank"``). A step with K hypernetworks
            searches for the noise that would lead each of them to the draws of the others, and takes many times as
            long.
        num_components: Number K of components.

    Raises:
        ArgumentError: If ``num_components`` is not positive, or ``of`` is no short form.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> family = Mixture("mean_field", 3)
        >>> family
        Mixture(MeanField(), 3)
        >>> family.build(Start([[3, 2]], torch.zeros(6))).distribution().rsample((8,)).shape
        torch.Size([8, 6])
    """

    def __init__(self, of: Family | str = "mean_field", num_components: int = 4) -> None:
        super().__init__()
        require_count("num_components", num_components)
        self.num_components = num_components
        self._of: tuple[Family, ...] = (family_of(of, "of"),)  # in a tuple: no submodule

    def init_parameters(self, start: Start) -> None:
        """See :meth:`Family.init_parameters`."""
        num, of = self.num_components, self.of
        parts: list[Family] = []
        while len(parts) < num:
            place = start.apart * start.noise()
            # In pairs around the centre of the prior: no half of the space is left without a component.
            centres = (place, -place)
            if start.place is not None:  # of a mixture in a mixture: around that one's place
                centres = (start.place + start.scale * place, start.place - start.scale * place)
            both = (replace(start, place=centre, num_components=num) for centre in centres)
            parts.extend(of.build(each) for each in both)
        self.components = nn.ModuleList(parts[:num])
        self._of = ()
        MixtureWeights([part.distribution() for part in self.parts()])  # checks them once

    @property
    def of(self) -> Family:
        """What each component is."""
        return self._of[0] if self._of else self.parts()[0]

    def parts(self) -> list[Family]:
        """Return the components, built."""
        return cast("list[Family]", list(self.components))

    def facts(self) -> Mapping[str, Any]:
        """See :meth:`Family.facts`."""
        return {} if self._of else {"components": self.parts()}

    def num_parameters(self, start: Start) -> int | None:
        """See :meth:`Family.num_parameters`: those of all components."""
        of_each = self.of.num_parameters(replace(start, num_components=self.num_components))
        return None if of_each is None else self.num_components * of_each

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> MixtureWeights:
        """See :meth:`Family.distribution`."""
        parts = [part.distribution(loc, scale) for part in self.parts()]
        return MixtureWeights(parts, stratified=True, validate_args=False)

    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """See :meth:`Family.warm_start`: half of the variance lies between the components, which else stay alike."""
        apart = torch.where(std.isnan(), INIT_SCALE, std * math.sqrt(0.5))
        for part in self.parts():
            part.warm_start(mean + apart * torch.randn_like(mean), std * math.sqrt(0.5))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """See :meth:`Family.param_groups`."""
        return [group for part in self.parts() for group in part.param_groups(lr)]

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Return the component in the worst state: the largest of each number, and each advice once."""
        found = [part.diagnose(num_samples=num_samples, thorough=thorough) for part in self.parts()]
        values = {name: max(each.values[name] for each in found) for name in found[0].values}
        advice = {sentence: f"Component {k}: {sentence}" for k, each in enumerate(found) for sentence in each.advice}
        return Diagnosis(values, list(advice.values()), found[0].category)

    def describe(self) -> str:
        """See :meth:`Family.describe`."""
        return f"Mixture({self.of.describe()}, {self.num_components})"

    @property
    def per_draw(self) -> bool:
        """See :meth:`Family.per_draw`."""
        return all(part.per_draw for part in self.parts())

    @property
    def searches(self) -> bool:
        """See :meth:`Family.searches`; for the noise that would lead a hypernetwork to the draws of the others."""
        return self.num_components > 1 and not all(part.closed_form for part in self.parts())

    @property
    def closed_form(self) -> bool:
        """See :meth:`Family.closed_form`."""
        return all(part.closed_form for part in self.parts())

    @property
    def clip_norm(self) -> float | None:
        """See :meth:`Family.clip_norm`."""
        return min((part.clip_norm for part in self.parts() if part.clip_norm is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Made:
    """What draws were made of.

    Attributes:
        parts: Those of each component.
        order: Place of each draw among the parts.
        noise: What the components made their parts of, None for those that keep no memory of it.
        fixed: Whether the parts are fixed values, whose graph is not that of the draws.
    """

    parts: list[Tensor]
    order: Tensor
    noise: list[Any]
    fixed: bool = False


def _check_components(components: Sequence[Any]) -> None:
    if not components:
        raise ArgumentError("components: is empty; pass one distribution or more.")
    for k, component in enumerate(components):
        if not isinstance(component, torch.distributions.Distribution):  # Pyro's Normal is no TorchDistribution
            raise ArgumentTypeError(f"components: number {k} is {kind_of(component)}; pass distributions.")
        shape, first = tuple(component.event_shape), tuple(components[0].event_shape)
        if component.batch_shape or len(shape) != 1 or shape != first:
            raise ArgumentError(
                f"components: number {k} has batch shape {tuple(component.batch_shape)} and event shape {shape}; all "
                "need batch shape () and one event shape (D,). Try .to_event(1)."
            )
        if isinstance(component, ImplicitWeights) and not component.estimator.everywhere:
            raise ArgumentError(
                f"components: number {k} has the estimator {component.estimator!r}, which gives no differentiable "
                "density at the draws of the other components. Build its hypernetwork with shared noise and use "
                "ChangeOfVariables(), or use ImportanceSampled()."
            )


def _shares(weights: Tensor | Sequence[float] | None, num: int) -> Tensor:
    if weights is None:
        return torch.full((num,), 1.0 / num, dtype=torch.double)
    given = torch.as_tensor(weights)
    if given.requires_grad:
        raise ArgumentError(
            "weights: requires a gradient, but a draw does not move with the weights of a mixture, so that none "
            "arrives there. Pass weights.detach(), and more components where modes differ in weight."
        )
    if given.shape != (num,) or not bool((given > 0).all()) or not bool(torch.isfinite(given).all()):
        raise ArgumentError(f"weights: is {given.tolist()}; pass {num} positive numbers, one per component.")
    given = given.detach().cpu().double()
    return given / given.sum()
