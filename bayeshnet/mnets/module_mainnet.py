"""Any ``nn.Module`` as a main network, and copies of networks that keep no weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.chain import Chain, chain_of_modules
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_copy import copy_without
from bayeshnet.mnets.module_table import ParamSlots, module_table
from bayeshnet.mnets.weight_rules import (
    check_spectral_norm,
    computed_tensors,
    fixed_row,
    functional_calls,
    needs_functional_calls,
)

__all__ = ["ModuleMainNet", "frozen_hint", "refuse_parts"]

_Net = TypeVar("_Net", bound=nn.Module)


class ModuleMainNet(nn.Module, MainNetInterface):
    """Any ``nn.Module`` as a main network: its weights can be passed to ``forward``.

    Its parameters are tabled in the order of ``named_parameters()``, tied ones once; ``param_names`` are their dotted
    names there. Layers are numbered in the order of the modules. Buffers stay where they are.

    What is no weight is not passed to it, and named in its ``repr``:

    * A parameter that is frozen (``requires_grad=False``) when the network is built stays what it is. It is not in the
      table; with ``no_weights`` the copy has it as a buffer, which is moved and saved with it.
    * The padding row of an embedding (``padding_idx``) stays what it is: that row of the weights passed does not
      matter. A table that other modules use, too, is a weight as a whole.

    With weights passed, layers that do something to their own weights in PyTorch are functions: an embedding with
    ``max_norm`` scales what it looks up, not its table, and its gradients are dense and exact whatever ``sparse`` and
    ``scale_grad_by_freq`` say. Attention and transformers never use the fused kernels that PyTorch picks for evaluation
    without gradients: outputs at padded places are those of training mode, where the fused kernels give zeros;
    elsewhere the two agree. Without ``weights`` the module is called as it is.

    Args:
        module: The network. It is used as it is, not copied, unless ``no_weights``.
        no_weights: Keep no weights: a copy of the module without its parameters is used, and ``forward`` needs
            ``weights``. The module given is left alone.

    Raises:
        ArgumentTypeError: If it is not an ``nn.Module``, or one whose weights cannot be exchanged (``DataParallel``,
            scripted, compiled, quantised), or cannot be copied.
        ArgumentError: If it has no parameters or all are frozen, or has lazy ones that are not initialised yet, or an
            embedding with ``max_norm`` whose table something else uses, or PyTorch's spectral norm of a weight that is
            not frozen (its power iteration belongs to one weight).

    Example:
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
        records, slots, frozen = module_table(module)
        own = [slot.read() for slot in slots]
        check_spectral_norm(module, own)
        if no_weights:
            # Pairs of modules and keys are copied together with the module, so that they refer to the copy.
            module, slots, frozen = copy_without((module, slots, frozen), module, own)
        self.module = module
        self.training = module.training
        self._slots, self._frozen = slots, frozen
        self._learned: tuple[ParamSlots, ...] = ()
        self._learned_rows: tuple[tuple[ParamSlots, int], ...] = ()
        rows = [fixed_row(slot.name, slot.places) for slot in slots]
        self._fixed_rows = {i: row for i, row in enumerate(rows) if row is not None}
        self._records = records
        self._shapes = tuple(record.shape for record in records)
        self._recurrent = tuple(m for m in module.modules() if isinstance(m, nn.RNNBase))
        self._computed = computed_tensors(module.modules())
        self._needs_functional_calls = needs_functional_calls(module)
        self._has_bias = any(record.name == "bias" for record in records)
        if no_weights:
            self._after_copying({i: self._own_row(i, own[i]).clone() for i in self._fixed_rows})

    def _after_copying(self, rows: Mapping[int, Tensor]) -> None:
        """Make a network without weights of one whose weights were left out of a copy."""
        for slot in self._frozen:
            slot.to_buffer()
        for i, value in rows.items():
            self.register_buffer(f"fixed_row_{i}", value)
        self._records = tuple(replace(record, internal=False) for record in self.param_table)
        self._refresh()

    def without_weights(self, *, learned: Collection[str] = (), frozen: Collection[str] = ()) -> ModuleMainNet:
        """A copy that keeps no weights, of the same class; see :func:`~bayeshnet.mnets.functional_copy`.

        Args:
            learned: Names of parameters that are no weights of the copy: it has them as parameters.
            frozen: Names of those that it has as buffers.
        """
        if not self.param_table[0].internal:
            refuse_parts(learned, frozen)
            return copy.deepcopy(self)
        held = {*learned, *frozen}
        weights = [i for i, slot in enumerate(self._slots) if slot.name not in held]
        rows = {i: self._own_row(i, self._slots[i].read()) for i in self._fixed_rows}
        copied: ModuleMainNet = copy_without(self, self, [self._slots[i].read() for i in weights])
        copied._learned = tuple(slot for slot in copied._slots if slot.name in learned)
        copied._frozen = (*(slot for slot in copied._slots if slot.name in frozen), *copied._frozen)
        fixed = ((copied._slots[i], row) for i, row in self._fixed_rows.items())
        copied._learned_rows = tuple((slot, row) for slot, row in fixed if slot.name in learned)
        places = {old: new for new, old in enumerate(weights)}
        copied._slots = tuple(copied._slots[i] for i in weights)
        copied._records = tuple(self.param_table[i] for i in weights)
        copied._shapes = tuple(record.shape for record in copied._records)
        copied._fixed_rows = {places[i]: row for i, row in self._fixed_rows.items() if i in places}
        copied._has_bias = any(record.name == "bias" for record in copied._records)
        copied._after_copying({places[i]: row.clone() for i, row in rows.items() if i in places})
        return copied

    def with_weights(self, weights: Sequence[Tensor]) -> nn.Module:
        """A copy of the module with these values of its parameters, and the frozen ones that it had.

        Args:
            weights: One tensor per entry of :attr:`param_shapes`; they are copied.

        Example:
            >>> net = ModuleMainNet(nn.Linear(3, 1), no_weights=True)
            >>> layer = net.with_weights([torch.ones(1, 3), torch.zeros(1)])
            >>> layer(torch.ones(2, 3)).shape, list(layer.state_dict())
            (torch.Size([2, 1]), ['weight', 'bias'])
        """
        copied = copy.deepcopy(self)
        for slot in copied._frozen:
            slot.to_parameter()
        own = [slot.read() for slot in copied._slots]
        values = copied._with_fixed_rows([weight.detach().clone() for weight in weights], own)
        for slot, value in zip(copied._slots, values, strict=True):
            slot.write(None if value is None else nn.Parameter(value))
        copied._refresh()
        return copied.module

    def _own_row(self, i: int, param: Tensor | None) -> Tensor:
        """The row of parameter i that is no weight."""
        return getattr(self, f"fixed_row_{i}") if param is None else param.detach()[self._fixed_rows[i]]

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Dotted names of the parameters that were frozen when the network was built, which are no weights."""
        return tuple(slot.name for slot in self._frozen)

    @property
    def learned_names(self) -> tuple[str, ...]:
        """Dotted names of the parameters that this copy without weights has as parameters of its own."""
        return tuple(slot.name for slot in self._learned)

    def learned_values(self) -> dict[str, Tensor]:
        """Those parameters, by name."""
        return {slot.name: param for slot in self._learned if (param := slot.read()) is not None}

    def set_learned(self, values: Mapping[str, nn.Parameter]) -> None:
        """Have these, themselves, in place of those parameters, by name."""
        for slot in self._learned:
            slot.write(values[slot.name])

    @property
    def tied_names(self) -> dict[str, str]:
        """The parameter, by its own name, that each name stands for, for those that several modules have."""
        tied = [slot for slot in (*self._slots, *self._learned) if len({id(module) for module, _ in slot.places}) > 1]
        return {name: slot.name for slot in tied for name in slot.names}

    @property
    def fixed_rows(self) -> dict[str, int]:
        """The row of each embedding, by the name of its weight, that is padding and no weight."""
        return {self._slots[i].name: row for i, row in self._fixed_rows.items()}

    def extra_repr(self) -> str:
        """The frozen parameters and fixed rows, which are no weights."""
        parts = [f"learned={list(self.learned_names)}"] if self._learned else []
        parts += [f"frozen={list(self.frozen_names)}"] if self._frozen else []
        return ", ".join([*parts, *([f"fixed_rows={self.fixed_rows}"] if self._fixed_rows else [])])

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
            ArgumentError: If weights are missing or their shapes differ.
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
        with functional_calls(self._needs_functional_calls), self._exchanged(self._parse(weights)):
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
                    f"{frozen_hint(unknown, self)}"
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
        padded = [(slot, slot.read(), row) for slot, row in self._learned_rows]
        computed = [module.__dict__.get(name) for module, name in self._computed]
        try:
            for slot, tensor in zip(self._slots, self._with_fixed_rows(tensors, own), strict=True):
                if tensor is not None:
                    slot.write(tensor)
            for slot, param, row in padded:
                if param is not None:  # its padding row gets no gradient
                    slot.write(torch.cat([param[:row], param[row : row + 1].detach(), param[row + 1 :]]))
            self._refresh()
            yield
        finally:
            for slot, param in (*zip(self._slots, own, strict=True), *((slot, param) for slot, param, _ in padded)):
                slot.write(param)
            for (module, name), tensor in zip(self._computed, computed, strict=True):
                module.__dict__[name] = tensor
            self._refresh()

    def _with_fixed_rows(
        self, tensors: Sequence[Tensor | None], own: Sequence[nn.Parameter | None]
    ) -> Sequence[Tensor | None]:
        if not self._fixed_rows:
            return tensors
        found = list(tensors)
        for i, row in self._fixed_rows.items():
            tensor, param = found[i], own[i]
            if tensor is not None:
                kept = self._own_row(i, param).to(tensor).unsqueeze(0)
                found[i] = torch.cat([tensor[:row], kept, tensor[row + 1 :]])
        return found

    def _refresh(self) -> None:
        # Recurrent modules keep a second list of their weights.
        for module in self._recurrent:
            module._init_flat_weights()  # pyright: ignore[reportPrivateUsage]
        if parametrize._cache_enabled:  # pyright: ignore[reportPrivateUsage]
            parametrize._cache.clear()  # pyright: ignore[reportPrivateUsage] - of what was computed from other weights

    def as_chain(self) -> Chain | None:
        """The module as a chain of linear layers and element-wise functions, None if it is not one."""
        places = {(id(module), key): i for i, slot in enumerate(self._slots) for module, key in slot.places}
        return chain_of_modules(self.module, places, self._shapes, around=(self, ModuleMainNet.forward))

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
        slots = (*self._slots, *self._learned, *self._frozen)
        return [(first + alias, first + slot.name) for slot in slots for alias in slot.names[1:]]


def frozen_hint(names: Sequence[str], net: Any) -> str:
    """Return what a message adds about unknown names that are those of frozen parameters, or an empty string.

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> handle = layer.bias.requires_grad_(False)
        >>> frozen_hint(["bias"], ModuleMainNet(layer))[:70]
        ' Frozen (requires_grad=False), so that they stay what they are and are'
    """
    frozen = [name for name in names if name in getattr(net, "frozen_names", ())]
    if not frozen:
        return ""
    return (
        f" Frozen (requires_grad=False), so that they stay what they are and are no weights: {frozen}; leave them out, "
        "or call requires_grad_(True) on them before the network is passed."
    )


def refuse_parts(learned: Collection[str], frozen: Collection[str]) -> None:
    """Raise if parameters of a network that keeps none are to be kept.

    Example:
        >>> refuse_parts((), ())
    """
    if learned or frozen:
        raise ArgumentError(
            f"net: keeps no values for {[*learned, *frozen]}, which are to be no weights; pass the network with all of "
            "its parameters (no_weights=False)."
        )
