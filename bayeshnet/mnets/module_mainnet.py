"""Any ``nn.Module`` as a main network, and copies of networks that keep no weights."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.chain import Chain, chain_of_modules, has_hooks
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_table import module_table
from bayeshnet.mnets.own_lists import first_set

__all__ = ["ModuleMainNet", "functional_copy"]

_Net = TypeVar("_Net", bound=nn.Module)


class ModuleMainNet(nn.Module, MainNetInterface):
    """Any ``nn.Module`` as a main network: its weights can be passed to ``forward``.

    Its parameters are tabled in the order of ``named_parameters()``, tied ones once; ``param_names`` are their dotted
    names there. Layers are numbered in the order of the modules. Buffers stay where they are.

    Args:
        module: The network. It is used as it is, not copied, unless ``no_weights``.
        no_weights: Keep no weights: a copy of the module without its parameters is used, and ``forward`` needs
            ``weights``. The module given is left alone.

    Raises:
        TypeError: If it is not an ``nn.Module``, or one whose weights cannot be exchanged (``DataParallel``, scripted).
        ValueError: If it has no parameters, or lazy ones that are not initialised yet.

    Example:
        >>> import torch
        >>> net = ModuleMainNet(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), no_weights=True)
        >>> net.param_names
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> net(torch.randn(8, 3), weights=[torch.randn(shape) for shape in net.param_shapes]).shape
        torch.Size([8, 1])
    """

    module: nn.Module

    def __init__(self, module: nn.Module, *, no_weights: bool = False) -> None:
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        records, slots = module_table(module)
        if no_weights:
            # Pairs of modules and keys are copied together with the module, so that they refer to the copy.
            module, slots = _copy_without((module, slots), [slot.read() for slot in slots])
        self.module = module
        self.training = module.training
        self._slots = slots
        self._records = tuple(replace(record, internal=not no_weights) for record in records)
        self._recurrent = tuple(m for m in module.modules() if isinstance(m, nn.RNNBase))
        self._has_bias = any(record.name == "bias" for record in records)

    @property
    def internal_params(self) -> nn.ParameterList | None:
        """The parameters of the module, each once; None with ``no_weights``."""
        if not self.param_table[0].internal:
            return None
        return nn.ParameterList([slot.read() for slot in self._slots])

    def distillation_targets(self) -> None:
        """None: a module has no statistics to distil."""
        return

    def forward(
        self,
        x: Any,
        weights: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
        distilled_params: None = None,
        condition: None = None,
    ) -> Any:
        """Call the module.

        Args:
            x: Its argument; a tuple of positional arguments; or a dict of keyword arguments.
            weights: One tensor per entry of :attr:`param_shapes`, or a dict of them by name (see :attr:`param_names`),
                in which those that are missing keep their own values. Needed with ``no_weights``.
            distilled_params: Not supported: None.
            condition: Not supported: None.

        Returns:
            What the module returns.

        Raises:
            ValueError: If weights are missing or their shapes differ.
        """
        if distilled_params is not None or condition is not None:
            raise ArgumentError(
                "distilled_params, condition: a plain module takes neither; pass None, or build the network as one of "
                "bayeshnet.mnets."
            )
        if weights is None:
            if not self.param_table[0].internal:
                raise ArgumentError(
                    "weights: this network keeps no weights (no_weights=True); pass a list of tensors with the shapes "
                    f"{self.param_shapes}."
                )
            return self._call(x)
        with self._exchanged(self._parse(weights)):
            return self._call(x)

    def _call(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return self.module(*x)
        return self.module(**x) if isinstance(x, dict) else self.module(x)

    def _parse(self, weights: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor | None]:
        given: list[Tensor | None]
        if isinstance(weights, Mapping):
            names = self.param_names
            unknown = sorted(set(weights) - set(names))
            missing = [] if self.param_table[0].internal else [name for name in names if name not in weights]
            if unknown or missing:
                raise ArgumentError(
                    f"weights: unknown names {unknown}, missing names {missing}; the parameters are {names}."
                )
            given = [weights.get(name) for name in names]
        elif isinstance(weights, Tensor):
            raise ArgumentTypeError(
                "weights: is one tensor; pass a list of tensors, such as flatten_params(w, net.param_shapes, "
                "unflatten=True), or use batched_forward for a matrix of weight samples."
            )
        else:
            given = list(weights)
        if len(given) != len(self.param_table):
            raise ArgumentError(
                f"weights: {len(given)} tensors were given, expected {len(self.param_table)}: {self.param_shapes}."
            )
        for i, (tensor, record) in enumerate(zip(given, self.param_table, strict=True)):
            if tensor is not None and tensor.shape != record.shape:
                raise ArgumentError(
                    f"weights[{i}]: has shape {list(tensor.shape)}, but parameter {self.param_names[i]!r} has "
                    f"{list(record.shape)}."
                )
        return given

    @contextmanager
    def _exchanged(self, tensors: Sequence[Tensor | None]) -> Generator[None, None, None]:
        own = [slot.read() for slot in self._slots]
        try:
            for slot, tensor in zip(self._slots, tensors, strict=True):
                if tensor is not None:
                    slot.write(tensor)
            self._refresh()
            yield
        finally:
            for slot, param in zip(self._slots, own, strict=True):
                slot.write(param)
            self._refresh()

    def _refresh(self) -> None:
        # Recurrent modules keep a second list of their weights.
        for module in self._recurrent:
            module._init_flat_weights()  # pyright: ignore[reportPrivateUsage]

    def as_chain(self) -> Chain | None:
        """The module as a chain of linear layers and element-wise functions, None if it is not one."""
        if has_hooks(self) or type(self).forward is not ModuleMainNet.forward:
            return None
        index = {(id(module), key): i for i, slot in enumerate(self._slots) for module, key in slot.places}
        return chain_of_modules(self.module, index)

    # ------------------------------------------------------------------ one key per tensor

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state, tied parameters under their first name only."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for alias, _ in self._aliases(prefix):
            state.pop(alias, None)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for alias, name in self._aliases(prefix):
            if name in state_dict:
                state_dict.setdefault(alias, state_dict[name])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _aliases(self, prefix: str) -> list[tuple[str, str]]:
        first = f"{prefix}module."
        return [(first + alias, first + slot.names[0]) for slot in self._slots for alias in slot.names[1:]]


def _copy_without(what: Any, params: Sequence[nn.Parameter | None]) -> Any:
    """A deep copy in which None stands wherever one of the parameters was; their values are not copied."""
    memo: dict[int, Any] = {id(param): None for param in params if param is not None}
    try:
        return copy.deepcopy(what, memo)
    except (RuntimeError, TypeError) as error:
        raise ArgumentTypeError(
            f"module: cannot be copied ({error}). A module that keeps computed tensors as attributes cannot (old-style "
            "torch.nn.utils.weight_norm does that; use torch.nn.utils.parametrizations)."
        ) from error


def functional_copy(net: nn.Module) -> Any:
    """A deep copy of a network that keeps no weights: they are passed to each call.

    Args:
        net: A main network, or any ``nn.Module``. It is left alone.

    Returns:
        A network with the whole of ``MainNetInterface`` whose parameters are all external:
        ``forward(x, weights=[one tensor per entry of param_shapes])``. A plain module comes as a
        :class:`ModuleMainNet`, a main network as its own class. Buffers are kept.

    Raises:
        TypeError: If it is no ``nn.Module``, or one whose weights cannot be exchanged.
        ValueError: If it has no parameters, or lazy ones that are not initialised yet.

    Example:
        >>> import torch
        >>> linear = nn.Linear(3, 1)
        >>> net = functional_copy(linear)
        >>> list(net.parameters()), net.num_params
        ([], 4)
        >>> x = torch.randn(5, 3)
        >>> torch.equal(net(x, weights=[linear.weight, linear.bias]), linear(x))
        True
    """
    if not isinstance(net, nn.Module):
        raise ArgumentTypeError(f"net: is a {type(net).__name__}; pass an nn.Module.")
    if isinstance(net, ModuleMainNet):
        return copy.deepcopy(net) if net.internal_params is None else ModuleMainNet(net.module, no_weights=True)
    if not isinstance(net, MainNetInterface):
        return ModuleMainNet(net, no_weights=True)
    params = list(net.internal_params or ())
    # Networks inside the network lose theirs too, so their tables change with it.
    lost = {id(param) for param in params}
    nested = [
        m
        for m in net.modules()
        if isinstance(m, MainNetInterface) and all(id(param) in lost for param in m.internal_params or ())
    ]
    tables = [m.param_table for m in nested]
    copied, parts = _copy_without((net, nested), params)
    for part, table in zip(parts, tables, strict=True):
        part._records = tuple(replace(record, internal=False) for record in table)
        part._internal_params = None
        # What a class written for the reference keeps beside it refers to the same parameters.
        if first_set(part, "_weights") is not None:
            part._weights = None
        for name in ("_layer_weight_tensors", "_layer_bias_vectors"):
            if first_set(part, name) is not None:
                setattr(part, name, nn.ParameterList())
    return copied
