"""Building the body of a guide from the guide's options: one function per kind, in one table."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from bayeshnet.checks import require_count, require_flag, require_positive
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.protocol import LogDensity
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families._default_hnet import HnetOrBuilder, default_hnet
from bayeshnet.families.base import FEW_LATENTS, INIT_SCALE, Body, HypernetBody, LowRankBody, MeanFieldBody, MixtureBody
from bayeshnet.families.block_gaussian import UnitLayout
from bayeshnet.families.unit_body import UnitBody, UnitHypernetBody, UnitNoise
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.mnets.param_table import num_weights

__all__ = ["BodyOptions", "BodyStart", "Mixture", "build_body"]

NUM_COMPONENTS = 4
"""Components of a mixture, where their number is not given."""

_FEW = 4
_SOME = 20
_WIDE = 0.5


@dataclass(frozen=True, slots=True)
class Mixture:
    """Describes a body that is a mixture: ``AutoHypernet(..., body=Mixture(8, of="low_rank"))``.

    Args:
        num_components: Number K of components, equally weighted. They start at draws from the prior, in pairs
            around its centre.
        of: What each is: ``"units"``, ``"mean_field"``, ``"low_rank"`` or ``"hypernet"``. A step with K hypernetworks
            searches for the noise that would lead each of them to the draws of the others, and takes many times as
            long.

    Raises:
        ValueError: If ``num_components`` is not positive or ``of`` is no such name.

    Example:
        >>> Mixture(3)
        Mixture(num_components=3, of='mean_field')
    """

    num_components: int = NUM_COMPONENTS
    of: Literal["units", "mean_field", "low_rank", "hypernet"] = "mean_field"

    def __post_init__(self) -> None:
        require_count("num_components", self.num_components)
        if self.of not in _BODIES:
            raise ArgumentError(f"of: is {self.of!r}; pass one of {', '.join(map(repr, _BODIES))}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyOptions:
    """The options of a guide that concern its body; see :class:`~bayeshnet.AutoHypernet`."""

    body: str | Mixture = "hypernet"
    num_components: int | None = None
    hnet: HnetOrBuilder | None = None
    noise: Literal["shared", "independent"] | None = None
    noise_dim: int | None = None
    hidden_layers: Sequence[int] | None = None
    estimator: LogDensity | None = None
    init_scale: float | None = None

    def check(self, *, whiten: bool = True) -> None:
        """Refuse options that contradict each other.

        Args:
            whiten: The guide's option of this name.

        Raises:
            ValueError: If they do, or one is out of its range.
            TypeError: If one is of another type.
        """
        require_flag("whiten", whiten)
        kind, mixture = self.kind, self.mixture
        if kind not in _BODIES:
            names = [*map(repr, (*_BODIES, "mixture")), "a Mixture"]
            raise ArgumentError(f"body: is {self.body!r}; pass one of {', '.join(names)}.")
        if self.num_components is not None and self.body not in ("mixture", "units", "hypernet"):
            raise ArgumentError(
                f"num_components: belongs to body='hypernet', 'units' or 'mixture', not to {self.body!r}; a "
                "Mixture(num_components, of=...) has it."
            )
        if self.num_components is not None:
            require_count("num_components", self.num_components)
        default_only = {"noise_dim": self.noise_dim, "hidden_layers": self.hidden_layers}
        clash = [name for name, value in default_only.items() if value is not None]
        if self.hnet is not None and clash:
            raise ArgumentError(
                f"hnet, {clash[0]}: both were given; {clash[0]} describes the default hypernetwork. Build yours with "
                "it inside the function hnet."
            )
        if kind != "hypernet":
            given = {"hnet": self.hnet, "noise": self.noise, "estimator": self.estimator, **default_only}
            clash = [name for name, value in given.items() if value is not None]
            if clash:
                raise ArgumentError(
                    f"body, {clash[0]}: {clash[0]} belongs to a hypernetwork; leave out body={self.body!r}."
                )
        elif mixture is not None and self.noise == "independent":
            raise ArgumentError(
                "body, noise: the hypernetworks of a mixture need a density at each other's draws, which independent "
                "noise does not give; leave out noise."
            )
        if self.noise not in (None, "shared", "independent"):
            raise ArgumentError(f"noise: is {self.noise!r}; pass 'shared' or 'independent'.")
        if self.init_scale is not None:
            require_positive("init_scale", self.init_scale)
            if not 1e-30 < self.init_scale < 1e30:  # in units of the prior's spread, and of 32 bits
                raise ArgumentError(f"init_scale: is {self.init_scale}; pass a number such as 0.1.")
        if self.hidden_layers is not None:
            # Typed as a sequence, and yet a single width is what many pass.
            if not isinstance(self.hidden_layers, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ArgumentTypeError(
                    f"hidden_layers: is {self.hidden_layers!r}; pass a list of widths, such as [32, 32]."
                )
            for width in self.hidden_layers:
                require_count("hidden_layers", width)

    @property
    def scale(self) -> float:
        """Start of the spread, where nothing else is known."""
        return INIT_SCALE if self.init_scale is None else self.init_scale

    @property
    def mixture(self) -> Mixture | None:
        """The mixture that is wanted, if it is one."""
        if self.body == "mixture":
            return Mixture() if self.num_components is None else Mixture(self.num_components)
        return self.body if isinstance(self.body, Mixture) else None

    @property
    def kind(self) -> str:
        """What the body is, or each component of a mixture."""
        return str(self.body) if self.mixture is None else self.mixture.of


@dataclass(frozen=True, slots=True)
class BodyStart:
    """Where a body starts, in whitened coordinates.

    Attributes:
        shapes: Shapes of the n latents that the body draws.
        like: A tensor ``[n]`` of the guide's dtype and device.
        jitter: Standard deviation ``[n]`` of the random places where means start. Weights must not all be alike.
        apart: The same for the components of a mixture.
        units: Which of them are weights of the same unit, if conditional layers follow them; None if there are none.
        anywhere: Whether the posterior may lie anywhere in the prior: no start was given, and no layer that is
            conditional on these latents will follow them.
    """

    shapes: list[list[int]]
    like: Tensor
    jitter: Tensor
    apart: float
    units: UnitLayout | None
    anywhere: bool

    def draw(self) -> Tensor:
        """Standard normal numbers ``[n]``."""
        return torch.randn_like(self.like)


def build_body(options: BodyOptions, start: BodyStart) -> Body:
    """What draws the latents that are not conditional.

    Args:
        options: What is wanted, checked already.
        start: What is drawn, and from where.

    Raises:
        ValueError: If the options do not fit what is drawn.
        TypeError: If ``options.hnet`` returns no hypernetwork.
    """
    build, mixture = _BODIES[options.kind], options.mixture
    if mixture is None:
        return build(options, start, lambda: start.draw() * start.jitter)
    if options.kind == "hypernet" and options.estimator is None:
        # Missing a root costs no more than log K nats of the density, and one more start costs time at every step.
        options = replace(options, estimator=ChangeOfVariables(num_starts=2))
    parts: list[Body] = []
    while len(parts) < mixture.num_components:
        place = start.apart * start.draw()
        # In pairs around the centre of the prior: no half of the space is left without a component.
        parts.append(build(options, start, partial(torch.clone, place)))
        parts.append(build(options, start, partial(torch.neg, place)))
    return MixtureBody(parts[: mixture.num_components])


# ---------------------------------------------------------------------- one function per kind


_Mean: TypeAlias = Callable[[], Tensor]


def _hypernet(options: BodyOptions, start: BodyStart, mean: _Mean) -> Body:
    if options.num_components is not None and (options.hnet is not None or start.units is None):
        raise ArgumentError(
            "num_components: the components of body='hypernet' are those of the noise beside conditional layers, which "
            "this guide has not, or replaces by hnet; pass body=Mixture(num_components, of='hypernet')."
        )
    if options.hnet is not None:
        own = _own_hnet(options.hnet, options, start.shapes)
        return HypernetBody(own.to(dtype=start.like.dtype, device=start.like.device), options.estimator)
    size = len(start.like)
    if start.units is not None and options.mixture is None:
        return _unit_hypernet(options, start, start.units, mean)
    # Few latents can start all over the prior: whoever starts narrow finds one of several modes. With many latents
    # draws from the prior fit nothing, and no gradient is of use.
    alone = options.mixture is None
    wide = start.anywhere and size <= _FEW and options.init_scale is None and alone
    # As many noise inputs as latents: on logistic regressions of 30 and 64 weights that gained 2 and 12 nats over 20
    # inputs, for 1.2 and 2 times the time. With many more each step learns too little of a D x D matrix.
    whole = alone and size <= FEW_LATENTS and options.noise != "independent"
    generator = default_hnet(
        start.shapes,
        noise_dim=_noise_dim(options.noise_dim, size, size if whole else _SOME),
        hidden_layers=(64, 64) if options.hidden_layers is None else options.hidden_layers,
        noise=options.noise or "shared",
        start=torch.zeros_like(start.like) if wide else mean(),
        start_scale=_WIDE if wide else options.scale,
    )
    return HypernetBody(generator, options.estimator)


def _unit_hypernet(options: BodyOptions, start: BodyStart, units: UnitLayout, mean: _Mean) -> Body:
    generator = default_hnet(
        start.shapes,
        noise_dim=_noise_dim(options.noise_dim, len(start.like), 4),
        hidden_layers=(32, 32) if options.hidden_layers is None else options.hidden_layers,
        noise=options.noise or "shared",
        start=torch.zeros_like(start.like),
        start_scale=None,
    )
    return UnitHypernetBody(generator, _unit_noise(options, start, units, mean, 1), options.estimator)


def _mean_field(options: BodyOptions, start: BodyStart, mean: _Mean) -> Body:
    return MeanFieldBody(mean(), options.scale)


def _low_rank(options: BodyOptions, start: BodyStart, mean: _Mean) -> Body:
    return LowRankBody(mean(), options.scale)


def _units(options: BodyOptions, start: BodyStart, mean: _Mean) -> Body:
    num = 1 if options.mixture is not None else NUM_COMPONENTS
    return UnitBody(_unit_noise(options, start, start.units or UnitLayout.of(start.shapes, []), mean, num))


def _unit_noise(options: BodyOptions, start: BodyStart, units: UnitLayout, mean: _Mean, default: int) -> UnitNoise:
    starts = [mean() for _ in range(options.num_components or default)]
    if not bool(start.jitter.any()):  # all in the place that was asked for
        starts = [starts[0], *(each + start.apart * start.draw() for each in starts[1:])]
    return UnitNoise(starts, options.scale, units)


_Builder: TypeAlias = Callable[[BodyOptions, BodyStart, _Mean], Body]
_BODIES: dict[str, _Builder] = {
    "hypernet": _hypernet,
    "mean_field": _mean_field,
    "low_rank": _low_rank,
    "units": _units,
}


def _noise_dim(noise_dim: int | None, size: int, default: int) -> int:
    if noise_dim is None:
        return min(default, size)
    if isinstance(noise_dim, bool) or not isinstance(noise_dim, numbers.Integral) or not 1 <= noise_dim <= size:
        raise ArgumentError(
            f"noise_dim: is {noise_dim!r}; the hypernetwork draws {size} latent numbers, so pass 1 to {size}, or "
            f"leave it out for {min(default, size)}."
        )
    return noise_dim


def _own_hnet(build: HnetOrBuilder, options: BodyOptions, shapes: list[list[int]]) -> HPerturbWrapper:
    given = isinstance(build, HyperNetInterface)
    if given and options.mixture is not None:
        raise ArgumentError(
            "hnet: is one hypernetwork, and each component of a mixture needs its own; pass a function from target "
            "shapes to one."
        )
    if not given and (not callable(build) or isinstance(build, nn.Module)):
        raise ArgumentTypeError(
            f"hnet: is a {type(build).__name__}; pass a function from target shapes to a hypernetwork, or one itself."
        )
    hnet: object = build if given else build(shapes)
    if not isinstance(hnet, HyperNetInterface):
        raise ArgumentTypeError(
            f"hnet: returned a {type(hnet).__name__}; it has to return a hypernetwork (HyperNetInterface)."
        )
    if getattr(hnet, "cond_in_size", None) or hnet.num_known_conds:
        raise ArgumentError(
            f"hnet: this {type(hnet).__name__} needs a condition, and the guide feeds it with noise alone; build it "
            "with uncond_in_size=8, cond_in_size=0, such as hnet=lambda shapes: HMLP(shapes, uncond_in_size=8, "
            "cond_in_size=0). AutoHypernetNormal and AutoHypernetDelta take conditions."
        )
    size = num_weights(shapes)
    if hnet.num_outputs != size:
        raise ArgumentError(
            f"hnet: produces {hnet.num_outputs} numbers; the latents that it draws are {size}. Build it from the "
            "target shapes that it is called with."
        )
    if isinstance(hnet, HPerturbWrapper):
        if options.noise is not None:
            raise ArgumentError(
                "hnet, noise: both were given, and the hypernetwork has a perturbation wrapper; choose the noise there."
            )
        return hnet
    # A constant one (a container of plain tensors) uses no entry of the noise twice: the density is exact.
    constant = getattr(hnet, "uncond_in_size", None) == 0
    noise = options.noise or ("independent" if options.mixture is None and not constant else "shared")
    return HPerturbWrapper(hnet, sigma_noise=options.scale, noise=noise, learn_sigma="per_weight", verbose=False)
