"""Options and attributes of version 0.1, which work for one version more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayeshnet.deprecation import warn_renamed
from bayeshnet.errors import ArgumentError
from bayeshnet.families.base import Family
from bayeshnet.families.block_gaussian import BlockGaussian
from bayeshnet.families.hypernet import HnetOrBuilder, Hypernet
from bayeshnet.families.mixture import Mixture
from bayeshnet.guides._family_guide import FamilyGuide

__all__ = ["OldNames", "old_mixture", "with_old_options"]

_OF_HYPERNET = ("noise_dim", "hidden_layers", "noise", "estimator")
_NAMES = {"units": "block_gaussian"}


class OldNames(FamilyGuide):
    """A guide with a family that has the attributes of ``AutoHypernet`` in version 0.1."""

    @property
    def body(self) -> Family | None:
        """The old name of ``family``."""
        warn_renamed("AutoHypernet.body", "AutoHypernet.family")
        return self.family

    @property
    def num_candidates(self) -> int:
        """The old name of ``num_proposals``."""
        warn_renamed("AutoHypernet.num_candidates", "AutoHypernet.num_proposals")
        return self.num_proposals

    @num_candidates.setter
    def num_candidates(self, number: int) -> None:
        warn_renamed("AutoHypernet.num_candidates", "AutoHypernet.num_proposals")
        self.num_proposals = number

    @property
    def candidate_power(self) -> Tensor:
        """The old name of ``tempering_exponent``."""
        warn_renamed("AutoHypernet.candidate_power", "AutoHypernet.tempering_exponent")
        return self.tempering_exponent

    @candidate_power.setter
    def candidate_power(self, value: Tensor) -> None:
        warn_renamed("AutoHypernet.candidate_power", "AutoHypernet.tempering_exponent")
        self.tempering_exponent = value


def old_mixture(num_components: int = 4, of: str = "mean_field") -> Mixture:
    """Make a mixture by the arguments of version 0.1; use ``families.Mixture(of, num_components)``.

    Args:
        num_components: Number of components.
        of: The short form of what each is.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     old_mixture(2, of="low_rank")
        Mixture(LowRank(rank=20), 2)
    """
    warn_renamed("Mixture(num_components, of=...)", "bayeshnet.families.Mixture(of, num_components)")
    return Mixture(_NAMES.get(of, of), num_components)


def with_old_options(
    family: Family | str, hnet: HnetOrBuilder | None, num_proposals: int | None, old: Mapping[str, Any]
) -> tuple[Family | str, HnetOrBuilder | None, int | None]:
    """Return family, hnet and number of proposals as meant by options of version 0.1, with one warning for all.

    Raises:
        TypeError: If an option has never been one.
        ArgumentError: If options exclude each other.
    """
    known = ("body", "num_components", "num_candidates", *_OF_HYPERNET)
    for name in old:
        if name not in known:
            raise TypeError(f"AutoHypernet.__init__() got an unexpected keyword argument {name!r}")
    given = {name: value for name, value in old.items() if value is not None}
    new: list[str] = []
    if "num_candidates" in given:
        if num_proposals is not None:
            raise ArgumentError("num_proposals, num_candidates: both were given; leave out the old num_candidates.")
        num_proposals = given.pop("num_candidates")
        new.append(f"num_proposals={num_proposals}")
    if given and family not in ("auto", "hypernet"):
        raise ArgumentError(
            f"family, {next(iter(given))}: both were given, and the latter is an old option; leave it out and pass "
            "its value to the family."
        )
    made = _family(dict(given), hnet) if given else family
    if isinstance(made, Hypernet | Mixture):
        hnet = None  # it has it
    if given:
        new.append(f"family={made!r}" if isinstance(made, str) else f"family=families.{made!r}")
    listed = ", ".join(f"{name}=..." for name in old)
    warn_renamed(f"AutoHypernet({listed})", f"AutoHypernet({', '.join(new)})" if new else "its defaults")
    return made, hnet, num_proposals


def _family(given: dict[str, Any], hnet: HnetOrBuilder | None) -> Family | str:
    """The family that is meant by old options."""
    body, num = given.pop("body", "hypernet"), given.pop("num_components", None)
    if body == "hypernet":
        options: Any = {**given, **({} if num is None else {"num_components": num})}
        return Hypernet(hnet, **options) if options else "auto"
    if isinstance(body, Mixture) and isinstance(body.of, Hypernet) and (given or hnet is not None):
        return Mixture(Hypernet(hnet, **given), body.num_components)
    if given:
        name = next(iter(given))
        raise ArgumentError(f"body, {name}: {name} belongs to a hypernetwork; leave it out, or body={body!r}.")
    if num is None:
        return _NAMES.get(body, body) if isinstance(body, str) else body
    if body == "units":
        return BlockGaussian(num)
    if body == "mixture":
        return Mixture(num_components=num)
    raise ArgumentError(f"num_components: belongs to a mixture, not to body={body!r}; leave it out.")
