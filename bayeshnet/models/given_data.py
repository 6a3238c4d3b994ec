"""From the forms in which data are given to the arguments of a Bayesian network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.features import Features
from bayeshnet.models.forms import as_numbers, as_tensor, is_frame, leaves, mapped

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["ROW_DATA", "GivenData", "NetworkInputs", "network_inputs"]

ROW_DATA = ("weight", "noise", "exposure")
"""What a Bayesian network takes of each row beside ``x`` and ``y``, in this order."""

_KNOWN = ("x", "y", *ROW_DATA)


class NetworkInputs(NamedTuple):
    """What is known of the inputs of a network by the signature of its ``forward``.

    Attributes:
        num: How many stand at the front of a batch ``(u, v, y)``.
        names: Those that can be given by name, in their order; "" for one that can be given by place alone.
        takes_one: Whether it takes one argument, which may be a list or a dict.
        chosen: Whether the user said how many.

    Example:
        >>> network_inputs(nn.Bilinear(2, 3, 1)).names
        ('input1', 'input2')
    """

    num: int
    names: tuple[str, ...] = ()
    takes_one: bool = False
    chosen: bool = False

    def __str__(self) -> str:
        how = "as given" if self.chosen else "required by forward"
        names = f" ({', '.join(self.names[: self.num])})" if self.names else ""
        return f"{self.num}{names}, {how}"


def network_inputs(net: nn.Module, given: int | None = None) -> NetworkInputs:
    """Say what inputs a network takes.

    Args:
        net: The user's network.
        given: How many there are, if the user said so.

    Raises:
        ArgumentTypeError: If ``given`` is no whole number.
        ArgumentError: If it is not positive.

    Example:
        >>> network_inputs(nn.Linear(2, 1)).num, str(network_inputs(nn.Bilinear(2, 3, 1)))
        (1, '2 (input1, input2), required by forward')
    """
    if given is not None:
        require_count("inputs", given, advice=", the arguments of the network at the front of a batch")
    # Those of this package, and of the reference, take x and weights.
    plain = getattr(net, "module", None) if hasattr(net, "param_table") else net
    parameters: list[inspect.Parameter] = []
    if plain is not None:
        try:
            parameters = list(inspect.signature(plain.forward).parameters.values())
        except (AttributeError, TypeError, ValueError):
            parameters = []
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in places if p.default is p.empty]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    one = plain is not None and len(parameters) == 1 and not any_number and _may_be_several(plain)
    names = tuple(p.name if p in named else "" for p in parameters if p in named or p in places)
    return NetworkInputs(given or max(1, len(required)), names, one, given is not None)


def _may_be_several(net: Any) -> bool:
    """Whether the only argument of a network may be a list or a dict: it is not said to be a tensor."""
    while type(net) is nn.Sequential and len(net):
        net = net[0]
    if type(net).__module__.split(".")[0] == "torch":
        return False
    parameter = next(iter(inspect.signature(net.forward).parameters.values()))
    return "Tensor" not in str(parameter.annotation).split("[")[0]


def _units(model: Any) -> Any:
    """The statistics of a model; None while it is being built."""
    return vars(model)["_modules"].get("units")


def _named_x(
    wanted: NetworkInputs, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Arguments of a call by name, ``model(x=..., mask=..., y=...)``, of which the model's own have caught some.

    An ``x`` among them is the input of that name of the network if it can be no other: all others that the network
    requires are given by name.
    """
    own = {name for name in kwargs if name not in _KNOWN and name in wanted.names}
    caught = dict(zip(_KNOWN, args, strict=False))
    if not own or not args or caught.keys() & kwargs.keys():
        return args, kwargs
    if args[0] is None:
        del caught["x"]
    elif (
        isinstance(args[0], tuple | list | Mapping)
        or "x" not in wanted.names
        or not set(wanted.names[: wanted.num]) <= {"x", *own}
    ):
        return args, kwargs
    return args[len(_KNOWN) :], {**caught, **kwargs}


def _refuse_one_of_several(wanted: NetworkInputs, x: Any) -> None:
    """Raise if one tensor is given, by name, for a network that requires several: it would take the targets for one."""
    if wanted.num < 2 or wanted.chosen or x is None or isinstance(x, tuple | list | Mapping | Features):
        return
    names = list(wanted.names[: wanted.num])
    raise ArgumentError(
        f"x: is one input, and forward requires {wanted.num}, {names}; pass {{'x': (u, v), 'y': y}}, or all of them by "
        "their names."
    )


class GivenData:
    """The part of :class:`~bayeshnet.BayesianModel` that says what may stand where its arguments stand.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> isinstance(BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1)), GivenData)
        True
    """

    def as_inputs(self, x: Any) -> Any:
        """Inputs in the form that the network is called with: a tensor, a tuple of arguments, or a dict of them.

        Args:
            x: A tensor, a numpy array, a pandas frame or series; a tuple or list of these; or a dict of them by the
                names of the network's arguments. Floating-point arrays take the network's dtype.

        Raises:
            ArgumentTypeError: If something in it cannot be inputs; the message says what to pass.
            ArgumentError: If the columns of a frame are others than the model knows.

        Example:
            >>> import numpy as np
            >>> from bayeshnet import BayesianModel, likelihoods
            >>> model = BayesianModel(nn.Bilinear(2, 3, 1), likelihood=likelihoods.Normal(scale=0.1))
            >>> [part.dtype for part in model.as_inputs([np.zeros((5, 2)), np.zeros((5, 3))])]
            [torch.float32, torch.float32]
        """
        if isinstance(x, Tensor) and not x.is_nested:
            return x
        model = cast("BayesianModel", self)
        like, wanted, columns = model._like, model.inputs_taken, model.columns  # pyright: ignore[reportPrivateUsage] - this is a part of the same class
        units = _units(model)

        def keeps(name: str) -> bool:
            return units is None or units.takes_any_float(name)

        def taken(name: str, part: Any) -> Any:
            if columns is not None and is_frame(part):
                dtype = torch.double if keeps(name) else like.dtype
                return columns.tensor(part, dtype=dtype, device=like.device)
            return as_tensor(part, "x", like, keep=keeps(name))

        if hasattr(x, "batch_sizes"):  # of packed sequences, which are tuples
            return taken("0", x)
        if isinstance(x, Mapping):
            found: Any = mapped(dict(x), taken)
            one = wanted.takes_one and not set(found) <= set(wanted.names)
            return (found,) if one else found
        if not isinstance(x, tuple | list):
            return taken("0", x)
        if isinstance(x, list) and not any(hasattr(part, "shape") or is_frame(part) for _, part in leaves(x)):
            raise ArgumentTypeError(
                "x: is a list; pass a tensor, torch.tensor(x), or a list of the network's arguments, tensors or arrays."
            )
        found = mapped(x, taken)
        if wanted.takes_one and (len(found) > 1 or (isinstance(x, list) and len(found) == 1)):
            return (list(found) if isinstance(x, list) else tuple(found),)
        # A single argument is the same as a tuple of it, and is what most of the package knows best.
        return found[0] if len(found) == 1 and isinstance(found[0], Tensor) else tuple(found)

    def as_targets(self, y: Any) -> Any:
        """Targets as a tensor: of an array, a series, or a frame of numbers.

        Raises:
            ArgumentTypeError: If they hold something that is no number.
        """
        return self._of_rows(y, "y")

    def _of_rows(self, value: Any, argument: str) -> Any:
        if value is None or isinstance(value, Tensor):
            return value
        model = cast("BayesianModel", self)
        units = _units(model)
        keep = units is None or units.target_scale is not None
        return as_numbers(value, argument, model._like, keep=keep and argument in ("y", "noise"))  # pyright: ignore[reportPrivateUsage] - this is a part of the same class

    def as_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments ``(x, y, weight, noise, exposure)`` that a batch stands for.

        Args:
            args: ``(x, y, ...)``, with x in any form that :meth:`as_inputs` takes; or ``(u, v, y, ...)`` for a network
                whose ``forward`` requires two arguments, and so on.
            kwargs: The same by name; inputs may be given by the names that they have in the network.

        Returns:
            Positional and keyword arguments of the model.

        Raises:
            ArgumentTypeError: As for :meth:`as_inputs`.
            ArgumentError: As for :meth:`as_inputs`, or if inputs are given twice.

        Example:
            >>> from bayeshnet import BayesianModel, likelihoods
            >>> model = BayesianModel(nn.Bilinear(2, 3, 1), likelihood=likelihoods.Normal(scale=0.1))
            >>> (x, y), _ = model.as_arguments((torch.zeros(5, 2), torch.zeros(5, 3), torch.zeros(5)), {})
            >>> len(x), y.shape
            (2, torch.Size([5]))
        """
        wanted = cast("BayesianModel", self).inputs_taken
        args, kwargs = _named_x(wanted, args, dict(kwargs))
        if args and wanted.num > 1 and not isinstance(args[0], tuple | list | Mapping):
            args = (tuple(args[: wanted.num]), *args[wanted.num :])
        own = [name for name in kwargs if name not in _KNOWN and name in wanted.names]
        if own:
            if args or ("x" in kwargs and "x" not in wanted.names):
                raise ArgumentError(f"x: inputs are given twice, as x and as {own}; pass one of them.")
            own += ["x"] if "x" in kwargs else []
            kwargs["x"] = {name: kwargs.pop(name) for name in own}
        elif "x" in kwargs:
            _refuse_one_of_several(wanted, kwargs["x"])
        places = dict(zip(_KNOWN, args, strict=False))
        made = {name: self._argument(name, value) for name, value in places.items()}
        named = {name: self._argument(name, value) for name, value in kwargs.items()}
        return (*made.values(), *args[len(_KNOWN) :]), named

    def in_order(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Inputs, targets, weights, noise and exposures of the arguments of a call; None for those that are missing.

        Raises:
            ArgumentTypeError: As for :meth:`as_arguments`, or if there are more arguments, or others.
            ArgumentError: As for :meth:`as_arguments`.
        """
        while args and args[-1] is None:
            args = args[:-1]
        args, named = self.as_arguments(args, kwargs)
        surplus = [name for name in named if name not in _KNOWN]
        if len(args) > len(_KNOWN) or surplus:
            what = f"has the arguments {surplus}" if surplus else f"has {len(args)} arguments"
            raise ArgumentTypeError(
                f"data: the call {what}; the model takes {', '.join(_KNOWN)}, and inputs by their names in the network "
                f"{list(cast('BayesianModel', self).inputs_taken.names)}."
            )
        twice = [name for name in _KNOWN[: len(args)] if name in named]
        if twice:
            raise ArgumentTypeError(f"data: {twice} are given twice, by place and by name; pass them once.")
        found = {**dict.fromkeys(_KNOWN), **dict(zip(_KNOWN, args, strict=False)), **named}
        return found["x"], found["y"], found["weight"], found["noise"], found["exposure"]

    def _argument(self, name: str, value: Any) -> Any:
        if name == "x":
            return self.as_inputs(value)
        return self._of_rows(value, name) if name in _KNOWN else value
