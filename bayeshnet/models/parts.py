"""Which parameters of a network are Bayesian, and what the others are."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_mainnet import ModuleMainNet
from bayeshnet.mnets.module_table import module_table
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.prior_rules import prior_rule

__all__ = ["Bayesian", "Others", "Parts", "Roles", "roles_of"]

Bayesian: TypeAlias = (
    "str | Sequence[str] | Parts | type[nn.Module] | tuple[type[nn.Module], ...] | Callable[..., bool] | None"
)
"""Which parameters are Bayesian."""
Others: TypeAlias = "str | Any | Mapping[str, Any]"
"""What the other parameters are: ``"learned"``, ``"frozen"``, a prior, or a mapping from patterns to these."""

_WHAT = (
    "pass 'all', 'last_layer', 'norm', patterns of parameter names ('*.weight', '!0.*' to leave out), Parts(include=, "
    "exclude=), types of modules (nn.Linear), or a function (name, record) -> bool"
)


class Parts(Configured):
    """Patterns of parameter names that are chosen, and of those that are not.

    Args:
        include: Patterns (``"*.weight"``), or exact names; each has to match something.
        exclude: Likewise, for parameters to be left out.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> parts = Parts(include="*.weight", exclude="0.*")
        >>> list(BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1), bayesian=parts).latent_shapes)
        ['2.weight']
    """

    configured_as = "parts"

    def __init__(self, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()) -> None:
        self.include = (include,) if isinstance(include, str) else tuple(include)
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        for argument, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not isinstance(pattern, str):
                    raise ArgumentTypeError(f"{argument}: has {kind_of(pattern)}; pass patterns of parameter names.")
        if not self.include:
            raise ArgumentError("include: is empty; pass a pattern of parameter names, such as '*.weight'.")

    def __repr__(self) -> str:
        exclude = f", exclude={list(self.exclude)}" if self.exclude else ""
        return f"Parts(include={list(self.include)}{exclude})"


@dataclass(frozen=True, slots=True)
class Roles:
    """What each parameter is.

    Attributes:
        bayesian: Names of those that are weights, in the order of the table; None if nothing was chosen.
        learned: Those that are points, trained with the guide, with the prior of each or None.
        frozen: Those that are kept as they are, beside those that are frozen in the network.
        records: What is known of each that is not frozen in the network, by name.
        size: Number of all parameters of the network, and of all numbers in them.

    Example:
        >>> roles = roles_of(nn.Linear(2, 1), "weight", "learned")
        >>> roles.bayesian, dict(roles.learned), roles.frozen
        (('weight',), {'bias': None}, ())
    """

    bayesian: tuple[str, ...] | None
    learned: Mapping[str, Any]
    frozen: tuple[str, ...]
    records: Mapping[str, ParamRecord]
    size: tuple[int, int] = (0, 0)


def roles_of(net: nn.Module, bayesian: Bayesian, others: Others | None) -> Roles:
    """Say of each parameter of a network what it is.

    Parameters that are frozen (``requires_grad=False``) stay so, and cannot be chosen.

    Args:
        net: The network.
        bayesian: Which parameters are Bayesian; None and ``"all"`` for all of them.
        others: What the others are; ``"learned"`` by default.

    Raises:
        ArgumentError: If a choice or a pattern matches nothing.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        >>> roles_of(net, "norm", None).bayesian, roles_of(net, "last_layer", None).bayesian
        (('1.weight', '1.bias'), ('2.weight', '2.bias'))
    """
    everything = bayesian is None or (isinstance(bayesian, str) and bayesian == "all")
    if everything:
        if others is not None:
            raise ArgumentError(
                f"others: is {others!r}, and all parameters are Bayesian; leave it out, or say which are: bayesian=."
            )
        return Roles(None, {}, (), {})
    names, records, aliases = _table(net)
    chosen = _chosen(net, bayesian, names, records, aliases)
    if not chosen:
        raise ArgumentError(f"bayesian: {_shown(bayesian)} leaves no parameter; there are {_listed(net, names)}.")
    rest = [name for name in names if name not in chosen]
    by_name = _others(others, rest, aliases)
    frozen = tuple(name for name, kind in by_name.items() if isinstance(kind, str) and kind == "frozen")
    learned = {name: None if isinstance(kind, str) else kind for name, kind in by_name.items() if name not in frozen}
    sizes = [param.numel() for param in net.parameters()]
    known = dict(zip(names, records, strict=True))
    return Roles(tuple(name for name in names if name in chosen), learned, frozen, known, (len(sizes), sum(sizes)))


def _table(net: nn.Module) -> tuple[list[str], list[ParamRecord], dict[str, tuple[str, ...]]]:
    """Names and records of the parameters that are not frozen, and all names of each."""
    inner = net.module if type(net) is ModuleMainNet else net
    if not isinstance(inner, MainNetInterface):
        records, slots, _ = module_table(inner)
        return [slot.name for slot in slots], list(records), {slot.name: slot.names for slot in slots}
    pairs = list(zip(inner.param_names, inner.param_table, strict=True))
    if not all(record.internal for _, record in pairs):
        raise ArgumentError(
            "net: keeps no values of its parameters (no_weights=True), so that none of them can be a point; pass the "
            "network with its parameters, or leave out bayesian=."
        )
    frozen = [not param.requires_grad for param in inner.internal_params or ()]
    pairs = [pair for pair, held in zip(pairs, frozen, strict=True) if not held]
    return [name for name, _ in pairs], [record for _, record in pairs], {name: (name,) for name, _ in pairs}


def _chosen(
    net: nn.Module,
    bayesian: Any,
    names: Sequence[str],
    records: Sequence[ParamRecord],
    aliases: Mapping[str, tuple[str, ...]],
) -> set[str]:
    pairs = list(zip(names, records, strict=True))
    if isinstance(bayesian, type) or (
        isinstance(bayesian, tuple) and bayesian and all(isinstance(part, type) for part in bayesian)
    ):
        return _of_types(net, bayesian if isinstance(bayesian, tuple) else (bayesian,), names, aliases)
    if isinstance(bayesian, str) and bayesian == "last_layer":
        layers = [record.layer for _, record in pairs if record.name == "weight"]
        if not layers:
            raise ArgumentError(
                "bayesian: 'last_layer' finds no linear layer or convolution with weights that are not frozen; there "
                f"are {_listed(net, names)}."
            )
        return {name for name, record in pairs if record.layer == layers[-1]}
    if isinstance(bayesian, str) and bayesian == "norm":
        found = {name for name, record in pairs if record.name in ("bn_scale", "bn_shift")}
        if not found:
            raise ArgumentError(
                f"bayesian: 'norm' finds no parameters of normalisation layers; there are {_listed(net, names)}."
            )
        return found
    if isinstance(bayesian, str | Parts) or (
        isinstance(bayesian, Sequence) and all(isinstance(part, str) for part in bayesian)
    ):
        return _by_patterns(net, _as_parts(bayesian), names, aliases)
    if not callable(bayesian) or isinstance(bayesian, nn.Module):
        raise ArgumentTypeError(f"bayesian: is {kind_of(bayesian)}; {_WHAT}.")
    try:
        inspect.signature(bayesian).bind("name", None)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"bayesian: is called as bayesian(name, record), which fails ({error}).") from None
    return {name for name, record in pairs if bayesian(name, record)}


def _as_parts(given: str | Sequence[str] | Parts) -> Parts:
    if isinstance(given, Parts):
        return given
    patterns = [given] if isinstance(given, str) else list(given)
    if not patterns:
        raise ArgumentError(f"bayesian: is an empty sequence; {_WHAT}.")
    include = [pattern for pattern in patterns if not pattern.startswith("!")]
    return Parts(include or "*", [pattern[1:] for pattern in patterns if pattern.startswith("!")])


def _matched(pattern: str, names: Iterable[str], aliases: Mapping[str, tuple[str, ...]]) -> set[str]:
    exact = {name for name in names if pattern in aliases[name]}
    return exact or {name for name in names if any(fnmatch.fnmatchcase(alias, pattern) for alias in aliases[name])}


def _by_patterns(
    net: nn.Module, parts: Parts, names: Sequence[str], aliases: Mapping[str, tuple[str, ...]]
) -> set[str]:
    found: list[set[str]] = []
    for patterns in (parts.include, parts.exclude):
        found.append(set())
        for pattern in patterns:
            matched = _matched(pattern, names, aliases)
            if not matched:
                hint = _frozen_hint(net, names, pattern)
                raise ArgumentError(f"bayesian: {pattern!r} matches nothing; there are {_listed(net, names)}.{hint}")
            found[-1] |= matched
    return found[0] - found[1]


def _frozen_hint(net: nn.Module, names: Sequence[str], pattern: str) -> str:
    frozen = [name for name, _ in net.named_parameters() if name not in names and fnmatch.fnmatchcase(name, pattern)]
    return (
        f" Frozen (requires_grad=False): {frozen[:6]}; call requires_grad_(True) on what is to be a weight."
        if frozen
        else ""
    )


def _of_types(
    net: nn.Module, types: tuple[type, ...], names: Sequence[str], aliases: Mapping[str, tuple[str, ...]]
) -> set[str]:
    inner: nn.Module = net.module if type(net) is ModuleMainNet else net
    chosen: set[str] = set()
    for kind in types:
        prefixes = [f"{path}." if path else "" for path, part in inner.named_modules() if isinstance(part, kind)]
        found = {name for name in names if any(a.startswith(p) for a in aliases[name] for p in prefixes)}
        if not found:
            kinds = sorted({type(part).__name__ for part in inner.modules()})
            raise ArgumentError(
                f"bayesian: {kind.__name__} has no parameters here that are not frozen; the modules are {kinds}."
            )
        chosen |= found
    return chosen


def _others(others: Any, rest: Sequence[str], aliases: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What each of the other parameters is: ``"learned"``, ``"frozen"`` or a prior."""
    if others is None:
        return dict.fromkeys(rest, "learned")
    if not isinstance(others, Mapping):
        return dict.fromkeys(rest, _checked_kind(others, "others"))
    found: dict[str, Any] = {}
    # As in the mappings of priors: a name counts before patterns, and of these the first that fits.
    names = {name for aliased in aliases.values() for name in aliased}
    for pattern, kind in sorted(others.items(), key=lambda item: item[0] not in names):
        matched = _matched(str(pattern), rest, aliases)
        if not matched:
            raise ArgumentError(f"others: {pattern!r} matches nothing; the other parameters are {list(rest)}.")
        if matched <= found.keys():
            raise ArgumentError(
                f"others: {pattern!r} has no effect, as what comes before it matches {sorted(matched)}; put it first."
            )
        checked = _checked_kind(kind, f"others[{pattern!r}]")
        found = {**dict.fromkeys(matched, checked), **found}
    return {name: found.get(name, "learned") for name in rest}


def _checked_kind(kind: Any, where: str) -> Any:
    if isinstance(kind, str):
        if kind not in ("learned", "frozen"):
            raise ArgumentError(f"{where}: is {kind!r}; pass 'learned', 'frozen' or a prior.")
        return kind
    try:
        prior_rule(kind)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{where}: is neither 'learned' nor 'frozen', nor a prior ({error}).") from None
    return kind


def _listed(net: nn.Module, names: Sequence[str]) -> str:
    frozen = sum(1 for _ in net.parameters()) - len(names)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{list(names[:12])}{more}{f', and {frozen} frozen ones' if frozen > 0 else ''}"


def _shown(bayesian: Any) -> str:
    return getattr(bayesian, "__name__", None) or repr(bayesian)
