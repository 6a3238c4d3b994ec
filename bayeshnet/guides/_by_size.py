"""What a guide chooses by the number of latents, and what it refuses: networks of millions of weights have to fit."""

from __future__ import annotations

from torch import Tensor

from bayeshnet.families.base import Family, Start
from bayeshnet.families.hypernet import Hypernet
from bayeshnet.sites.memory import in_bytes, refuse_too_large

__all__ = [
    "LARGE",
    "counted",
    "default_particles",
    "is_large",
    "learned_bytes",
    "refuse_family",
    "refuse_step",
    "step_bytes",
    "why_by_size",
]

LARGE = 100_000
"""Number of latents beyond which what is chosen by default has at most three parameters for each."""

# Draws of a step have in all about as many numbers as 16 of the largest network that is not large; two draws at least,
# so that a step tells how far they differ.
_PARTICLES, _FEWEST = 16, 2
# A parameter, its gradient, the two moments of Adam, and the copy that a fit goes back to.
_OF_A_PARAMETER = 5
# Of each draw its noise, its values and the gradient with respect to them.
_OF_A_DRAW = 3


def is_large(latents: int) -> bool:
    """Whether so many latents are more than 100,000.

    Example:
        >>> is_large(100_000), is_large(100_001)
        (False, True)
    """
    return latents > LARGE


def default_particles(latents: int) -> int:
    """Number of posterior samples of a training step: 16 for up to 100,000 latents, then fewer, 2 at least.

    Example:
        >>> [default_particles(n) for n in (100, 100_000, 200_000, 11_173_962)]
        [16, 16, 8, 2]
    """
    return _PARTICLES if not is_large(latents) else max(_FEWEST, _PARTICLES * LARGE // latents)


def counted(number: int) -> str:
    """A number for people: in full up to 100,000, in thousands and millions beyond.

    Example:
        >>> counted(1470), counted(122_570), counted(11_173_962)
        ('1,470', '123 k', '11.2 M')
    """
    if number <= LARGE:
        return f"{number:,}"
    return f"{number / 1e6:.1f} M" if number >= 1e6 - 500 else f"{number / 1e3:.0f} k"


def learned_bytes(parameters: int, itemsize: int) -> int:
    """Bytes that a fit has for so many parameters: their gradients, the moments of Adam and a copy among them."""
    return _OF_A_PARAMETER * parameters * itemsize


def step_bytes(parameters: int, latents: int, draws: int, itemsize: int) -> int:
    """Bytes that a training step needs at least, without what the network computes.

    Args:
        parameters: Number of parameters that are learned.
        latents: Number D of latents.
        draws: Number S of posterior samples.
        itemsize: Bytes of a number.
    """
    return learned_bytes(parameters, itemsize) + _OF_A_DRAW * draws * latents * itemsize


def why_by_size(start: Start, latents: int) -> str:
    """Say why a default family is not a hypernetwork.

    Args:
        start: What the family draws.
        latents: Number of all latents of the guide.
    """
    parameters = Hypernet().num_parameters(start) or 0
    return (
        f"{counted(latents)} latents: more than {counted(LARGE)}; the hypernetwork would have {counted(parameters)} "
        "parameters"
    )


def refuse_step(parameters: int, latents: int, draws: int, like: Tensor) -> None:
    """Raise if a training step cannot fit into memory.

    Args:
        parameters: Number of parameters that are learned.
        latents: Number D of latents.
        draws: Number S of posterior samples.
        like: A tensor of the guide's dtype and device.

    Raises:
        ArgumentError: If it needs more than there is.
    """
    itemsize = like.element_size()
    fewer = min(draws - 1, default_particles(latents))
    choices = [f"pass num_particles={fewer}"] if fewer else []
    refuse_too_large(
        step_bytes(parameters, latents, draws, itemsize),
        f"num_particles: is {draws}, of {counted(latents)} latents each, beside {counted(parameters)} parameters",
        [*choices, "build the guide with family='mean_field' (2 parameters for each latent)"],
        device=like.device,
    )


def refuse_family(family: Family, start: Start, latents: int) -> None:
    """Raise if a family cannot be trained in the memory that there is, before anything of it is allocated.

    Args:
        family: The family.
        start: What it would draw.
        latents: Number of all latents of the guide.

    Raises:
        ArgumentError: If it needs more; the message has the numbers and what can be done.
    """
    parameters = family.num_parameters(start)
    if parameters is None or not start.size:
        return
    like = start.like
    itemsize = like.element_size()
    mean_field = step_bytes(2 * start.size, latents, 1, itemsize)
    refuse_too_large(
        step_bytes(parameters, latents, 1, itemsize),
        f"family: is {family.describe()} with {counted(parameters)} parameters for {counted(start.size)} latents "
        f"({parameters / start.size:.3g} each)",
        [
            f"pass family='mean_field' (2 parameters each, {in_bytes(mean_field)})",
            "leave out family, which then is chosen by size",
            "make fewer weights Bayesian, such as those of the last layer",
        ],
        device=like.device,
    )
