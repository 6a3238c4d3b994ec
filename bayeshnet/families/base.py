"""What a variational family is: settings that make a trainable distribution over the latents of a model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import Transform
from typing_extensions import Self

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured
from bayeshnet.deprecation import warn_renamed
from bayeshnet.entropy.protocol import Diagnosis
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.families._blocks import BlockLayout

__all__ = ["INIT_SCALE", "Family", "Start", "assign", "each_at", "family_of", "placed"]

INIT_SCALE = 0.1
"""Start of the standard deviations in units of the prior's, where the user gives none."""

# Filled when the classes of this package are made, and not changed after that.
_SHORT_FORMS: dict[str, type[Family]] = {}
_MODULE_STATE = frozenset(vars(nn.Module()))


@dataclass(frozen=True, slots=True)
class Start:
    """Where a family starts, in whitened coordinates: every latent has mean 0 and standard deviation 1 under its prior.

    Attributes:
        shapes: Shapes of the latents that the family draws, n numbers in all.
        like: A tensor ``[n]`` of the guide's dtype and device.
        spread: Standard deviations ``[n]`` of the random places where means start: the weights of a network must not
            all be alike. Zero where a place was asked for, and for latents that need no such start.
        scale: Start of the standard deviations.
        apart: Standard deviation of the places of the components of a mixture.
        blocks: Which latents are weights of the same unit, if layers that are drawn conditionally on inducing points
            follow; else None.
        anywhere: Whether the posterior may lie anywhere in the prior: no start was given, and no conditional layer
            follows.
        place: Where the means start, instead of at random ``[n]``.
        num_components: Of a component of a mixture the number of its components; 0 otherwise.

    Example:
        >>> start = Start([[3, 2], [3]], torch.zeros(9))
        >>> start.size, start.mean().shape
        (9, torch.Size([9]))
    """

    shapes: list[list[int]]
    like: Tensor
    spread: Tensor | float = 0.0
    scale: float = INIT_SCALE
    apart: float = 1.0
    blocks: BlockLayout | None = None
    anywhere: bool = False
    place: Tensor | None = None
    num_components: int = 0

    @property
    def size(self) -> int:
        """Number n of latents."""
        return len(self.like)

    def mean(self) -> Tensor:
        """A start of the means ``[n]``; another one at each call where it is random."""
        return self.noise() * self.spread if self.place is None else self.place.clone()

    def noise(self) -> Tensor:
        """Standard normal numbers ``[n]``."""
        return torch.randn_like(self.like)


class Family(Configured, nn.Module, ABC):
    r"""A variational family: its settings, and, once built, the parameters of one of its members.

    The constructor takes settings alone. A guide calls :meth:`build` with what it knows of the model and gets a copy
    that has parameters, so that one object can be given to any number of guides, which never share any.

    A new family is a subclass with :meth:`init_parameters` and :meth:`distribution`. What else there is has defaults:
    all parameters are trained at one learning rate (:meth:`param_groups`), nothing is diagnosed (:meth:`diagnose`), and
    :func:`~bayeshnet.start_from` is refused (:meth:`warm_start`). The density has to be one of each draw, or
    :attr:`per_draw` False.

    Latents are whitened (:class:`Start`), and :meth:`distribution` is asked for that of
    :math:`\mathrm{loc} + \mathrm{scale} \cdot u`; :func:`placed` helps where means and standard deviations are known.

    Example:
        >>> import pyro.distributions as dist
        >>> class Diagonal(Family):
        ...     def init_parameters(self, start):
        ...         self.loc = nn.Parameter(start.mean())
        ...         self.log_scale = nn.Parameter(torch.full_like(start.like, start.scale).log())
        ...     def distribution(self, loc=None, scale=None):
        ...         return dist.Normal(*placed(self.loc, self.log_scale.exp(), loc, scale)).to_event(1)
        >>> from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods
        >>> model = BayesianModel(nn.Linear(3, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> x, y = torch.randn(20, 3), torch.randn(20)
        >>> guide = AutoHypernet(model, example=(x, y), family=Diagonal(), conditional=None)
        >>> guide
        AutoHypernet(latent_dim=4, sites=2, family=Diagonal())
        >>> len(fit(model, guide, (x, y), steps=3, progress=False))
        3
    """

    configured_as = "family"

    def __init_subclass__(cls, *, short_form: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if short_form is not None:
            _SHORT_FORMS[short_form] = cls
        if "build" in vars(cls):  # a build of its own makes objects by the constructor
            cls.build = cast("Any", _built(cls.build))

    def __init__(self) -> None:
        super().__init__()
        # Until it is built, an object has nothing to make a distribution of.
        vars(self)["distribution"] = partial(_refuse_distribution, type(self).__name__)

    def build(self, start: Start) -> Self:
        """Make a trainable member of the family; this object stays as it is.

        Args:
            start: What is drawn, and from where.

        Returns:
            A copy of this object with parameters of its own, of dtype and device of ``start.like``.

        Raises:
            ArgumentError: If the settings do not fit what is drawn.
            ArgumentTypeError: If a setting makes something of another type than it should.
        """
        made = copy.copy(self)
        # Settings are shared; what a module registers is not.
        vars(made).update({key: copy.deepcopy(value) for key, value in vars(self).items() if key in _MODULE_STATE})
        vars(made).pop("distribution", None)
        made.init_parameters(start)
        return made

    def init_parameters(self, start: Start) -> None:
        """Make the parameters, on a copy with the settings; called by :meth:`build`."""
        raise UsageError(f"family: {type(self).__name__} has no init_parameters(start); write it, or build(start).")

    @abstractmethod
    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> TorchDistribution:
        """Return the distribution of ``loc + scale * u``, event shape ``[n]``; of u itself by default.

        Args:
            loc: Offset ``[n]``.
            scale: Positive factor ``[n]``.
        """

    def noise_transform(self, loc: Tensor, scale: Tensor) -> Transform:
        """Return the bijection from standard normal noise ``[n]`` to ``loc + scale * u``.

        Args:
            loc: Offset ``[n]``.
            scale: Positive factor ``[n]``.

        Raises:
            UsageError: If the family is none.
        """
        raise UsageError(
            f"get_transform: the guide's family, {self.describe()}, is no bijection of as many standard normal numbers "
            "as there are latents; build the guide with family='mean_field', 'low_rank' or 'hypernet'."
        )

    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """Move to these means and standard deviations, latent by latent, in place.

        Args:
            mean: Means ``[n]`` in whitened coordinates; NaN for latents that stay where they are.
            std: Standard deviations ``[n]``; NaN for those that stay.

        Raises:
            UsageError: If the family cannot be moved.
        """
        raise UsageError(
            f"guide: has the family {type(self).__name__}, which has no warm_start(mean, std); write one, or pass "
            "init_loc_fn to the guide."
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimiser, each parameter in one of them.

        Args:
            lr: Learning rate of parameters that act on one latent. What acts on many at once wants smaller steps.

        Returns:
            Groups with ``params``, ``lr`` and, where they shrink by the factor ``1 - lr * decay`` at each step,
            ``decay``.
        """
        return [{"params": list(self.parameters()), "lr": lr}]

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the density can be trusted; nothing is found where it is exact by construction.

        Args:
            num_samples: Number of draws to look at.
            thorough: Whether to search; else only what costs no more than a few training steps.
        """
        return Diagnosis({})

    def describe(self) -> str:
        """Return what it is, for the repr of the guide: the settings, and what was chosen where they leave it open."""
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.settings().items())})"

    def settings(self) -> Mapping[str, Any]:
        """Return the settings to show, by name; public attributes that are neither modules nor tensors by default."""
        hidden = {*_MODULE_STATE, "distribution"}
        own = {key: value for key, value in vars(self).items() if key not in hidden and key[0] != "_"}
        return {k: v for k, v in own.items() if v is not None and not isinstance(v, Tensor | nn.Module)}

    def facts(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.facts`; what was made when it was built, such as a network."""
        return {name: part for name, part in self.named_children() if isinstance(part, Configured)}

    # ------------------------------------------------------------------ what a guide asks for

    def num_parameters(self, start: Start) -> int | None:
        """Return how many numbers :meth:`build` would learn, without building anything; None if that is not known.

        Args:
            start: What is drawn.
        """
        return None

    @property
    def per_draw(self) -> bool:
        """Whether the density is one of each draw, and not of draws on average only."""
        return True

    @property
    def searches(self) -> bool:
        """Whether the density of a draw takes a search, so that many proposals for one would cost too much."""
        return False

    @property
    def draws_all(self) -> bool:
        """Whether a guide with ``conditional="auto"`` leaves all latents to it, the last layer too."""
        return False

    @property
    def closed_form(self) -> bool:
        """Whether the density anywhere has a formula, without a search for the noise that leads there."""
        return True

    @property
    def clip_norm(self) -> float | None:
        """Bound on the norm of the gradient that training wants, if any."""
        return None

    def __repr__(self) -> str:
        return self.describe()


def _built(build: Callable[[Any, Start], Any]) -> Callable[[Any, Start], Any]:
    @wraps(build)
    def wrapped(self: Any, start: Start) -> Any:
        made = build(self, start)
        if isinstance(made, Family):
            vars(made).pop("distribution", None)
        return made

    return wrapped


def _refuse_distribution(name: str, loc: Tensor | None = None, scale: Tensor | None = None) -> TorchDistribution:
    raise UsageError(
        f"family: is a {name} that is not built yet; pass it to a guide, AutoHypernet(model, example=..., family=...), "
        "or call build(start)."
    )


def family_of(value: Family | str, argument: str) -> Family:
    """Return the family that is meant: one itself, or the short form of one with its default settings.

    Args:
        value: What was given.
        argument: Its name, for messages.

    Raises:
        ArgumentError: If it is no short form.
        ArgumentTypeError: If it is of another type.

    Example:
        >>> family_of("mean_field", "family")
        MeanField()
    """
    if isinstance(value, Family):
        if "_parameters" not in vars(value):
            raise UsageError(
                f"{argument}: is a {type(value).__name__} whose constructor does not call super().__init__(); call it "
                "first."
            )
        return value
    names = ", ".join(map(repr, _SHORT_FORMS))
    if isinstance(value, type) and issubclass(value, Family):
        raise ArgumentTypeError(f"{argument}: is the class {value.__name__}; pass an object, {value.__name__}(...).")
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{argument}: is {kind_of(value)}; pass a family such as LowRank(rank=20), or {names}.")
    if value == "units":
        warn_renamed(f"{argument}='units'", f"{argument}='block_gaussian'")
        value = "block_gaussian"
    if value not in _SHORT_FORMS:
        raise ArgumentError(f"{argument}: is {value!r}; pass one of {names}, or a family such as LowRank(rank=20).")
    return _SHORT_FORMS[value]()


def placed(mean: Tensor, std: Tensor, loc: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of ``loc + scale * u`` for those of u.

    Args:
        mean: Means of u ``[n]``.
        std: Standard deviations of u ``[n]``.
        loc: Offset ``[n]``, or None for 0.
        scale: Factor ``[n]``, or None for 1.

    Example:
        >>> placed(torch.ones(2), torch.ones(2), torch.zeros(2), torch.full((2,), 3.0))
        (tensor([3., 3.]), tensor([3., 3.]))
    """
    if scale is not None:
        mean, std = scale * mean, scale * std
    return (mean if loc is None else loc + mean), std


@torch.no_grad()
def assign(param: Tensor, value: Tensor) -> None:
    """Write numbers into a parameter where they are not NaN."""
    param.copy_(torch.where(value.isnan(), param, value))


def each_at(
    groups: Sequence[tuple[list[nn.Parameter], float, float]], rest: list[nn.Parameter], lr: float
) -> list[dict[str, Any]]:
    """Return parameter groups: the rest at ``lr``; of the others each with its factor of ``lr``, and its decay."""
    made: list[dict[str, Any]] = [{"params": rest, "lr": lr}] if rest else []
    for params, rate, decay in groups:
        group = {"params": params, "lr": rate * lr}
        made.append({**group, "decay": decay} if decay else group)
    return made
