"""Objects that remember what their constructor was given."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from bayeshnet.configuration.describing import Described, described

__all__ = ["Configured", "known_class"]

# Filled when the classes of this package are made, and not changed after that.
_KNOWN: dict[tuple[str, str], type[Configured]] = {}
_PLAIN = (bool, int, float, str)


class Configured:
    """Base of what can be described by the arguments of its constructor.

    They are recorded as plain data when an object is made, also of a subclass, so that no function or module is kept.
    An attribute with the name of an argument goes before what was recorded, where it is plain or an object of such a
    class: an option that is changed later is described as it is then.

    Attributes:
        configured_as: What kind of object it is, such as ``"prior"``; a base says it for its subclasses.
        unrecorded: Names of arguments that are not described when the object is made, such as data.

    Example:
        >>> class Slope(Configured):
        ...     def __init__(self, by=2.0, *, steps):
        ...         self.steps = steps
        >>> slope = Slope(steps=3)
        >>> slope.steps = 4
        >>> slope.configuration()
        {'by': Described(data=2.0), 'steps': 4}
    """

    configured_as: ClassVar[str] = "object"
    unrecorded: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == "bayeshnet":
            _KNOWN[cls.configured_as, cls.__name__] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments of the constructor."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except (TypeError, ValueError):  # a copy, or a call that the constructor refuses
            return self
        bound.apply_defaults()
        given = dict(list(bound.arguments.items())[1:])
        for parameter in inspect.signature(cls.__init__).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given.update(given.pop(parameter.name))
            elif parameter.kind is parameter.VAR_POSITIONAL and not given[parameter.name]:
                given.pop(parameter.name)  # those of nn.Module, for a class without a constructor
        recorded = {name: described(value) for name, value in given.items() if name not in cls.unrecorded}
        vars(self)["_recorded"] = recorded
        return self

    def configuration(self) -> Mapping[str, Any]:
        """Arguments of the constructor that make an object like this one, its tensors apart."""
        return {name: self._now(name, value) for name, value in self.recorded().items()}

    def recorded(self) -> dict[str, Described]:
        """The arguments that the constructor was given, for a class whose attributes of their names are others."""
        return {name: Described(value) for name, value in vars(self).get("_recorded", {}).items()}

    def facts(self) -> Mapping[str, Any]:
        """What else its results depend on, by name: compared with that of a file, not needed to make an object."""
        return {}

    def not_compared(self) -> Collection[str]:
        """Arguments that a file keeps, but need not agree with: what is only a start, or of training."""
        return ()

    def _now(self, name: str, recorded: Described) -> Any:
        found = vars(self).get(name, recorded)
        return found if _is_plain(found) or isinstance(found, Configured) else recorded


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if type(value) in (list, tuple, torch.Size):
        return all(_is_plain(part) for part in value)
    return value is None or type(value) in _PLAIN


def known_class(kind: str, name: str) -> type[Configured] | None:
    """Return the class of this package of this kind and name, None if there is none.

    Example:
        >>> known_class("prior", "os.system") is None
        True
    """
    return _KNOWN.get((kind, name))
