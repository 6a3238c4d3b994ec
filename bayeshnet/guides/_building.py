"""From the options of a guide, and what is known of the model's prior, to the start of its variational family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import kind_of, require_flag, require_positive
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families import BlockLayout
from bayeshnet.families.base import INIT_SCALE, Family, Start, family_of
from bayeshnet.families.hypernet import HnetOrBuilder, Hypernet
from bayeshnet.inducing.flat_layout import FlatLayout
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.prior import PriorStart

__all__ = ["built_family", "check_start", "family_from", "family_start", "unconditional", "whitened"]


def family_from(family: Family | str, hnet: HnetOrBuilder | None) -> Family | None:
    """Return the family that is meant by two options of a guide; None if it is to be chosen by size.

    Raises:
        ArgumentError: If both are given, or ``family`` is no short form.
        ArgumentTypeError: If ``family`` is of another type.
    """
    if hnet is None:
        return None if isinstance(family, str) and family == "auto" else family_of(family, "family")
    if not isinstance(family, str) or family not in ("auto", "hypernet"):
        raise ArgumentError(
            f"family, hnet: both were given, and hnet is short for family=Hypernet(hnet); leave out "
            f"{'hnet' if isinstance(family, Family) else f'family={family!r}'}."
        )
    return Hypernet(hnet)


def check_start(*, init_scale: Any, whiten: Any) -> None:
    """Raise unless the options of where a guide starts are in range.

    Raises:
        ArgumentError: If ``init_scale`` is not positive, or beyond what 32 bits hold.
        ArgumentTypeError: If one is of another type.
    """
    require_flag("whiten", whiten)
    if init_scale is not None:
        require_positive("init_scale", init_scale)
        if not 1e-30 < init_scale < 1e30:  # in units of the prior's spread
            raise ArgumentError(f"init_scale: is {init_scale}; pass a number such as 0.1.")


def whitened(prior: PriorStart, layout: FlatLayout | None, *, init_loc: Tensor | None, whiten: bool) -> PriorStart:
    """Return location and scale of a guide; conditional layers keep those of their prior.

    Args:
        prior: Centre and spread of the prior.
        layout: Where the conditional layers lie, if there are any.
        init_loc: The location that was asked for ``[D]``.
        whiten: Whether the prior's spread is the scale, or 1.
    """
    loc = prior.loc if init_loc is None else init_loc
    scale = prior.scale if whiten else torch.ones_like(prior.scale)
    if layout is not None:
        flags = [torch.full((size,), i in layout.conditional) for i, size in enumerate(layout.sizes)]
        conditional = torch.cat(flags).to(loc.device)
        loc, scale = torch.where(conditional, prior.loc, loc), torch.where(conditional, prior.scale, scale)
    return PriorStart(loc, scale, prior.gaussian)


def unconditional(flat: Tensor, layout: FlatLayout | None) -> Tensor:
    """Return the entries of a vector of all latents ``[D]`` that are not drawn conditionally ``[n]``."""
    if layout is None:
        return flat
    return layout.unconditional(flat)


def family_start(
    model: Callable[..., Any],
    whitening: PriorStart,
    layout: FlatLayout | None,
    target_shapes: list[list[int]],
    placed: bool,
    init_scale: float | None,
    apart: float | None = None,
) -> Start:
    """Return what a family draws in a guide, and where it starts.

    Args:
        model: The model.
        whitening: Location and scale of the guide.
        layout: Where the conditional layers lie, if there are any.
        target_shapes: Shapes of all latents.
        placed: Whether the user asked for a location.
        init_scale: The start of the standard deviations that the user asked for.
        apart: Spread of the random places where means of weights start, in units of the prior's; the default if None.
    """
    like = unconditional(whitening.loc, layout)
    shapes, blocks = target_shapes, None
    if layout is not None:
        shapes = [list(shape) for i, shape in enumerate(layout.shapes) if i not in layout.conditional]
        shapes = [*shapes, [layout.rest]] if layout.rest else shapes
        if has_network(model):
            blocks = BlockLayout.of_network(model.net.param_table, layout.conditional, layout.rest)
    # A conditional layer can make use of many different features from the beginning.
    jitter = apart or (0.3 if layout is None else 1.0)
    scale = INIT_SCALE if init_scale is None else init_scale
    return Start(
        shapes,
        like,
        spread=torch.zeros_like(like) if placed else jitter * unconditional(whitening.gaussian, layout).to(like),
        scale=scale,
        # The components of a mixture look for modes all over the prior, or around the place that was asked for.
        apart=scale if placed else 1.0,
        blocks=blocks,
        anywhere=layout is None and not placed and init_scale is None,
    )


def built_family(chosen: Family, start: Start) -> Family | None:
    """Return a family that is built from here, with a distribution that a guide can use; None if it draws nothing.

    Raises:
        ArgumentError: If its distribution has another shape than the latents, or draws that are not differentiable.
        ArgumentTypeError: If it makes something else than a family and a distribution of Pyro.
    """
    if start.size == 0:
        return None
    name, made = type(chosen).__name__, cast("object", chosen.build(start))
    if not isinstance(made, Family) or made is chosen:
        given = "itself" if made is chosen else kind_of(made)
        raise ArgumentTypeError(
            f"family: {name}.build returned {given}; return a new {name} with parameters, or write init_parameters "
            "instead of build."
        )
    q = cast("object", made.distribution())
    if not isinstance(q, TorchDistributionMixin) or not isinstance(q, torch.distributions.Distribution):
        raise ArgumentTypeError(
            f"family: {name}.distribution returned {kind_of(q)}; return a distribution of pyro.distributions."
        )
    if q.batch_shape != () or q.event_shape != (start.size,):
        raise ArgumentError(
            f"family: {name}.distribution has batch shape {tuple(q.batch_shape)} and event shape "
            f"{tuple(q.event_shape)}; they have to be () and ({start.size},). Try .to_event(1)."
        )
    if not q.has_rsample:
        raise ArgumentError(
            f"family: {name}.distribution is {kind_of(q)}, whose draws are not differentiable (has_rsample is False); "
            "return one with rsample."
        )
    return made
