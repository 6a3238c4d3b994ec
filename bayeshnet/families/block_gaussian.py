r"""Block-diagonal Gaussians over the weights of a network, with one block of covariance for each unit.

What a unit computes depends on its incoming weights and its bias together: a larger slope moves the place where it
bends unless the bias moves along. A posterior in which all weights are independent cannot follow that. Here each unit
has a Gaussian of its own over these numbers, and a mixture of several such Gaussians covers several modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions.transforms import Transform

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.families._blocks import BlockLayout
from bayeshnet.families.base import Family, Start, assign
from bayeshnet.families.flat_distribution import FlatDistribution
from bayeshnet.families.noise_transform import NoiseTransform
from bayeshnet.normal_density import log_standard_normal

__all__ = ["BlockGaussian", "BlockGaussianWeights", "BlockNoise"]


class BlockGaussianWeights(FlatDistribution):
    r"""A mixture of C Gaussians with equal weights, each with one block of covariance per unit.

    .. math:: w = \mu_c + \sigma_c \odot T_c e, \quad e \sim N(0, I), \quad T_c = I + \text{strictly lower triangular}

    with T block-diagonal. The draws of one call are shared out among the components evenly and in random order: each of
    them has the density of the mixture, and means over them vary less than if each chose a component by itself.

    With ``noise`` e comes from another distribution, a hypernetwork for instance, that all components share. The
    density of a draw is then exact for C = 1. For more components it would take a search for the noise that would lead
    each of them to the draw of another. Instead the component c is an auxiliary variable whose posterior is taken to be
    that of Gaussians (Salimans, Kingma & Welling, ICML 2015, section 2):

    .. math:: \log q = \log \frac{1}{C} \sum_k N(w; \mu_k, \sigma_k, T_k) + \log q_e(e) - \log N(e; 0, I)

    with which the ELBO stays a lower bound on the evidence, as tight as the components are apart or e is Gaussian. At a
    value that was not drawn here the density is that of the mixture.

    Args:
        loc: Means ``[C, D]``, entries ordered by unit.
        log_scale: Logarithm of sigma ``[C, D]``, ordered likewise.
        factors: For each layer of units ``[C, units, k, k]``; only what lies below the diagonal counts.
        layout: Which entries belong together.
        noise: Distribution of e, event shape ``[D]``, entries ordered by unit; standard normal by default.

    Raises:
        ArgumentError: If shapes do not fit.

    Example:
        >>> layout = BlockLayout.of([(3, 2), (3,)], [(0, 1)])
        >>> q = BlockGaussianWeights(torch.randn(4, 9), torch.zeros(4, 9), [torch.zeros(4, 3, 3, 3)], layout)
        >>> w = q.rsample((8,))
        >>> w.shape, q.log_prob(w).shape
        (torch.Size([8, 9]), torch.Size([8]))
    """

    def __init__(
        self,
        loc: Tensor,
        log_scale: Tensor,
        factors: Sequence[Tensor],
        layout: BlockLayout,
        *,
        noise: TorchDistribution | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if validate_args is not False:
            _check(loc, log_scale, factors, layout)
            if noise is not None and (noise.batch_shape or noise.event_shape != loc.shape[1:]):
                raise ArgumentError(
                    f"noise: has batch shape {tuple(noise.batch_shape)} and event shape {tuple(noise.event_shape)}; "
                    f"they have to be () and ({loc.shape[1]},)."
                )
        self.loc, self.log_scale, self.factors, self.layout = loc, log_scale, list(factors), layout
        self.noise = noise
        own = {"loc": loc, "log_scale": log_scale, **{f"factors_{i}": factor for i, factor in enumerate(factors)}}
        self.depends_on = (own,)
        self._noise: FlatDistribution | None = None
        if isinstance(noise, FlatDistribution):
            self._noise, self.depends_on = noise, (own, *noise.depends_on)
        super().__init__(Size(), loc.shape[1:], validate_args=validate_args)

    # ------------------------------------------------------------------ sampling and density

    def draw(self, num: int) -> tuple[Tensor, _Made]:
        """See :meth:`FlatDistribution.draw`."""
        parts = len(self.loc)
        rounds = -(-num // parts)  # every component makes as many; of the last round some are left out, at random
        of_noise: Any = None
        if self._noise is not None:
            drawn, of_noise = self._noise.draw(parts * rounds)
        elif self.noise is not None:
            drawn = self.noise.rsample(Size((parts * rounds,)))
        else:
            drawn = torch.randn(parts * rounds, self.loc.shape[1], dtype=self.loc.dtype, device=self.loc.device)
        ordered = self._of_noise(drawn.unflatten(0, (parts, rounds))).flatten(0, 1)
        chosen: Tensor | None = None
        if parts > 1:
            ranks = torch.rand(rounds, parts, device=ordered.device).argsort(1)  # each round in random order
            chosen = (ranks * rounds + torch.arange(rounds, device=ordered.device).unsqueeze(1)).flatten()[:num]
            chosen = chosen[torch.randperm(num, device=ordered.device)]
            ordered = ordered.index_select(0, chosen)
        # Not ordered[:, order]: with its backward pass that takes twice the time.
        return ordered.index_select(1, self.layout.order), _Made(ordered, drawn, chosen, of_noise)

    def _of_noise(self, noise: Tensor) -> Tensor:
        """The weights of each component ``[C, S, D]``, ordered by unit, that noise ``[C, S, D]`` makes."""
        mixed = _mixed(self.factors, self.layout, noise)
        return torch.addcmul(self.loc.unsqueeze(1), self.log_scale.exp().unsqueeze(1), mixed)

    def of_noise(self, noise: Tensor) -> Tensor:
        """Return the weights ``[S, D]`` that the only component makes of e ``[S, D]``."""
        return self._of_noise(noise.unsqueeze(0)).squeeze(0).index_select(1, self.layout.order)

    def log_prob_of_draw(self, made_of: _Made) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of_draw`."""
        if made_of.chosen is None:
            return self._log_drawn_noise(made_of) - self.log_scale.sum()
        log_q = self._average(log_standard_normal(self._residuals(made_of.ordered)))
        if self.noise is None:
            return log_q
        return log_q + (self._log_drawn_noise(made_of) - log_standard_normal(made_of.drawn)).index_select(
            0, made_of.chosen
        )

    def _log_drawn_noise(self, made_of: _Made) -> Tensor:
        if self._noise is not None and made_of.noise is not None:
            return self._noise.log_prob_of_draw(made_of.noise)
        return self._log_noise(made_of.drawn)

    def log_prob_of(self, rows: Tensor, made_of: _Made) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of`; of several components it is that of the mixture."""
        if made_of.chosen is not None or self._noise is None:
            return self._log_prob_at(rows)
        noise = self._residuals(_by_unit(rows, self.layout)).squeeze(0)
        # The numbers of the draw, which is a solution to the last digit, and the gradient of the residuals.
        noise = made_of.drawn.detach() + (noise - noise.detach())
        return self._noise.log_prob_of(noise, made_of.noise) - self.log_scale.sum()

    def _log_prob_at(self, rows: Tensor) -> Tensor:
        return self._average(self._log_noise(self._residuals(_by_unit(rows, self.layout))))

    def _log_noise(self, noise: Tensor) -> Tensor:
        return log_standard_normal(noise) if self.noise is None else self.noise.log_prob(noise)

    def _residuals(self, rows: Tensor) -> Tensor:
        """The noise ``[C, S, D]`` that leads each component to rows ``[S, D]``."""
        residual = (rows - self.loc.unsqueeze(1)) * (-self.log_scale).exp().unsqueeze(1)
        return torch.cat(_unmixed(self.factors, self.layout, residual), -1)

    def _average(self, log_noise: Tensor) -> Tensor:
        """Log-density ``[S]`` of the mixture, of that of the components' noise ``[C, S]``."""
        log_q = log_noise - self.log_scale.sum(1, keepdim=True)
        return log_q.squeeze(0) if len(self.loc) == 1 else log_q.logsumexp(0) - math.log(len(self.loc))


class BlockNoise(nn.Module):
    """Means, scales and the correlations within units, for each of C components; without correlations at the start.

    Args:
        starts: Start of the means ``[n]`` of each component.
        start_scale: Start of the standard deviations.
        layout: Which latents belong to the same unit.
    """

    def __init__(self, starts: Sequence[Tensor], start_scale: float, layout: BlockLayout) -> None:
        super().__init__()
        first = starts[0]
        self.blocks = layout.blocks
        self.register_buffer("order", layout.order.to(first.device))
        self.register_buffer("place", torch.argsort(self.order))
        self.order: Tensor
        self.place: Tensor
        self.loc = nn.Parameter(torch.stack([start.detach()[self.place] for start in starts]))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(start_scale)))
        self.factors = nn.ParameterList(
            first.new_zeros(len(starts), units, size, size) for units, size in layout.blocks
        )

    def distribution(
        self, loc: Tensor | None, scale: Tensor | None, noise: TorchDistribution | None = None
    ) -> BlockGaussianWeights:
        """Return the distribution of ``loc + scale * u``, with standard normal or other noise in place of e."""
        means, log_scale = self.loc, self.log_scale
        if scale is not None:
            by_unit = scale.expand(means.shape[1])[self.place]
            means, log_scale = means * by_unit, log_scale + by_unit.log()
        if loc is not None:
            means = means + loc.expand(means.shape[1])[self.place]
        layout = BlockLayout(self.order, self.blocks)
        return BlockGaussianWeights(means, log_scale, list(self.factors), layout, noise=noise, validate_args=False)

    @staticmethod
    def num_parameters(start: Start, num_components: int) -> int:
        """Number of entries of the parameters that :meth:`start` makes."""
        layout = start.blocks or BlockLayout.of(start.shapes, [])
        return num_components * (2 * start.size + sum(units * size * size for units, size in layout.blocks))

    @classmethod
    def start(cls, start: Start, num_components: int) -> BlockNoise:
        """Return the noise of so many components, which start in different places."""
        starts = [start.mean() for _ in range(num_components)]
        if not bool(torch.as_tensor(start.spread).any()):  # all in the place that was asked for
            starts = [starts[0], *(each + start.apart * start.noise() for each in starts[1:])]
        return cls(starts, start.scale, start.blocks or BlockLayout.of(start.shapes, []))

    @torch.no_grad()
    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """Give each component these means and standard deviations, without correlations; NaN leaves what is there."""
        for factor in self.factors:
            factor.zero_()
        for k in range(len(self.loc)):
            assign(self.loc[k], mean[self.place])
            assign(self.log_scale[k], std.log()[self.place])


class BlockGaussian(Family, short_form="block_gaussian"):
    """Family of mixtures of Gaussians with one block of covariance for each unit of the network.

    Args:
        num_components: Number of components; 4 by default, and 1 inside of a :class:`Mixture`.

    Raises:
        ArgumentError: If ``num_components`` is not positive.
        ArgumentTypeError: If it is no whole number.

    Example:
        >>> family = BlockGaussian(num_components=2)
        >>> family.build(Start([[3, 2]], torch.zeros(6))).distribution().rsample((5,)).shape
        torch.Size([5, 6])
    """

    def __init__(self, num_components: int | None = None) -> None:
        super().__init__()
        if num_components is not None:
            require_count("num_components", num_components)
        self.num_components = num_components

    def init_parameters(self, start: Start) -> None:
        """See :meth:`Family.init_parameters`."""
        self.num_components = self._number(start)
        self.noise = BlockNoise.start(start, self.num_components)

    def _number(self, start: Start) -> int:
        return self.num_components or (1 if start.num_components else 4)

    def num_parameters(self, start: Start) -> int:
        """See :meth:`Family.num_parameters`."""
        return BlockNoise.num_parameters(start, self._number(start))

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> BlockGaussianWeights:
        """See :meth:`Family.distribution`."""
        return self.noise.distribution(loc, scale)

    def noise_transform(self, loc: Tensor, scale: Tensor) -> Transform:
        """See :meth:`Family.noise_transform`: of one component alone.

        Raises:
            UsageError: If there are several.
        """
        if self.num_components != 1:
            raise UsageError(
                f"get_transform: the guide's family is a mixture of {self.num_components} Gaussians, and no bijection "
                "of noise; build the guide with family=BlockGaussian(num_components=1)."
            )
        made = self.distribution(loc, scale)
        return NoiseTransform(made.of_noise, lambda noise: made.log_scale.sum().expand(len(noise)))

    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """See :meth:`Family.warm_start`; correlations start anew."""
        self.noise.warm_start(mean, std)


@dataclass(frozen=True, slots=True)
class _Made:
    """What draws were made of.

    Attributes:
        ordered: The draws, entries ordered by unit ``[S, D]``.
        drawn: Draws of e, of each component one after the other.
        chosen: Which of these the draws are made of, if there are several components.
        noise: What e was made of, if a distribution drew it that remembers.
    """

    ordered: Tensor
    drawn: Tensor
    chosen: Tensor | None
    noise: Any


def _by_unit(rows: Tensor, layout: BlockLayout) -> Tensor:
    """Rows ``[S, D]`` with their entries ordered by unit."""
    return rows[:, torch.argsort(layout.order)]


def _split(entries: Tensor, layout: BlockLayout) -> tuple[list[Tensor], Tensor]:
    """Layers ``[C, units, k, S]`` of ``[C, S, D]``, and the entries that belong to none."""
    sizes = [units * size for units, size in layout.blocks]
    *layers, rest = entries.split([*sizes, entries.shape[-1] - sum(sizes)], dim=-1)
    shaped = [
        layer.unflatten(-1, block).permute(0, 2, 3, 1) for layer, block in zip(layers, layout.blocks, strict=True)
    ]
    return shaped, rest


def _mixed(factors: Sequence[Tensor], layout: BlockLayout, noise: Tensor) -> Tensor:
    """``T e`` of ``[C, S, D]``."""
    layers, rest = _split(noise, layout)
    mixed = [e + factor.tril(-1) @ e for factor, e in zip(factors, layers, strict=True)]
    return torch.cat([*(e.permute(0, 3, 1, 2).flatten(2) for e in mixed), rest], dim=-1)


def _unmixed(factors: Sequence[Tensor], layout: BlockLayout, residual: Tensor) -> list[Tensor]:
    """``T^-1 r`` of ``[C, S, D]``, in parts ``[C, S, *]``."""
    layers, rest = _split(residual, layout)
    solved = [
        # The diagonal and what lies above it are not read.
        torch.linalg.solve_triangular(factor, part, upper=False, unitriangular=True)
        for factor, part in zip((f.tril(-1) for f in factors), layers, strict=True)
    ]
    return [*(part.permute(0, 3, 1, 2).flatten(2) for part in solved), rest]


def _check(loc: Tensor, log_scale: Tensor, factors: Sequence[Tensor], layout: BlockLayout) -> None:
    if loc.dim() != 2 or loc.shape[1] != len(layout.order) or log_scale.shape != loc.shape:
        raise ArgumentError(
            f"loc, log_scale: have shapes {tuple(loc.shape)} and {tuple(log_scale.shape)}; both have to be "
            f"[C, {len(layout.order)}], a row per component."
        )
    expected = [(len(loc), units, size, size) for units, size in layout.blocks]
    given = [tuple(factor.shape) for factor in factors]
    if given != expected:
        raise ArgumentError(f"factors: have shapes {given}; the layout asks for {expected}.")
