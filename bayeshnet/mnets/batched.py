"""Many weight samples of one network in one call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.layers.torch_modes import under_functorch
from bayeshnet.mnets.failed_calls import KINDS, input_error
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_mainnet import ModuleMainNet, frozen_hint
from bayeshnet.mnets.module_state import Snapshot, fresh, restored_on_failure, vectorising, version
from bayeshnet.mnets.param_table import ParamRecord, num_weights, split_sizes
from bayeshnet.mnets.weight_rules import functional_calls, needs_functional_calls
from bayeshnet.typing import WeightSamples

__all__ = ["batched_forward"]

# What was learned about a network in one training / evaluation state: whether it can be vectorised. The networks are
# held weakly, and nothing depends on the entries but speed.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str | bool, ...], bool]] = weakref.WeakKeyDictionary()
# Likewise, whether it writes to the weights that it is given: it is then given copies.
_WRITES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[bool, ...], bool]] = weakref.WeakKeyDictionary()


def batched_forward(net: nn.Module, weights: WeightSamples, x: Any, *, chunk_size: int | None = None) -> Any:
    """Evaluate a network for S samples of its weights.

    One vectorised call (``torch.func.vmap``, or batched matrix products for chains of linear layers); a loop over the
    samples where a module cannot be vectorised (LSTM, batch norm that updates running statistics, control flow that
    depends on data). Both give the same numbers. Dropout masks differ between samples. The network itself is left
    alone, apart from statistics that a module updates in training mode, once per sample. Neither ``weights`` nor ``x``
    are changed, also by layers that work in place: each call of the network gets a copy of ``x``.

    The numbers are those of the network as a function of its weights, see
    :class:`~bayeshnet.mnets.ModuleMainNet`: transformers are evaluated without PyTorch's fused inference kernels, whose
    outputs at padded places are zeros; frozen parameters and padding rows of embeddings are what they are in the
    network.

    Args:
        net: A main network or any ``nn.Module``.
        weights: A matrix ``[S, D]`` of flat weights in table order (that of ``named_parameters()`` for a plain module);
            or per tensor ``[S, *shape]``, as a list in table order or a dict by parameter name. Only views of it are
            taken. For a main network that keeps some of its weights, those it keeps may be left out.
        x: Inputs, the same for all samples: a tensor ``[B, ...]``, a tuple of arguments or a dict of keyword arguments.
        chunk_size: At most so many samples are evaluated at once, which bounds the memory; all by default.

    Returns:
        What the network returns, each tensor of it with a first dimension S: ``[S, B, ...]``.

    Raises:
        ArgumentError: If sizes, names or numbers of the weights, or the inputs, do not fit the network.
        ArgumentTypeError: If an argument is of another type, or the inputs are of another dtype than the network takes.
        UsageError: If the network writes to its weights in this call and did not in an earlier one.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> batched_forward(net, torch.randn(100, 3 * 8 + 8 + 8 * 2 + 2), torch.randn(5, 3)).shape
        torch.Size([100, 5, 2])
    """
    if not isinstance(net, nn.Module):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass an nn.Module or a network of bayeshnet.mnets.")
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise ArgumentError(f"chunk_size: is {chunk_size!r}; pass the number of samples at once, at least 1, or None.")
    mainnet: Any = net if isinstance(net, MainNetInterface) else ModuleMainNet(net)
    try:
        if chunk_size is None and not isinstance(weights, Mapping) and hasattr(mainnet, "as_chain"):
            chain = mainnet.as_chain()
            outputs = None if chain is None else chain.forward(weights, x)
            if outputs is not None:
                return outputs
        return _evaluated(net, mainnet, weights, x, chunk_size)
    except KINDS as error:
        better = input_error(net, weights, x, error)
        if better is None:
            raise
        raise better from error


def _evaluated(net: nn.Module, mainnet: Any, weights: WeightSamples, x: Any, chunk_size: int | None) -> Any:
    """What :func:`batched_forward` returns, for weights that are to be looked at first."""
    chunks = _chunks(mainnet, weights, chunk_size)
    if hasattr(mainnet, "as_chain"):
        chain = mainnet.as_chain()
        outputs = [None] if chain is None else [chain.forward(chunk, x) for chunk in chunks]
        if outputs[0] is not None:
            return _join(outputs, torch.cat)
    # A network that is built around another for one call is known by that, and by how it is.
    inner = getattr(net, "built_around", net)
    known, writes = _KNOWN.setdefault(inner, {}), _WRITES.setdefault(inner, {})
    modes = tuple(module.training for module in net.modules())
    key = modes if inner is net else (type(net).__qualname__, *modes)

    def evaluate(*, protect: bool) -> Any:
        return _evaluate(net, _Call(mainnet, x, protect=protect), chunks, known, key)

    if modes in writes or under_functorch():
        return evaluate(protect=writes.get(modes, False))
    tensors = [tensor for chunk in chunks for tensor in chunk]
    values, before = [tensor.detach().clone() for tensor in tensors], Snapshot(net, buffers=True)
    outputs, failed = None, False
    try:
        outputs = evaluate(protect=False)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever was raised: with copies of the weights it shows whether that was the reason
        failed = True
    changed = [not torch.equal(tensor, value) for tensor, value in zip(tensors, values, strict=True)]
    if failed or any(changed):
        with torch.no_grad():
            for tensor, value, wrong in zip(tensors, values, changed, strict=True):
                if wrong:
                    tensor.copy_(value)
        before.restore()
        known.pop(key, None)
        outputs = evaluate(protect=True)
    writes[modes] = failed or any(changed)
    return outputs


def _evaluate(
    net: nn.Module,
    run: _Call,
    chunks: list[list[Tensor]],
    known: dict[tuple[str | bool, ...], bool],
    key: tuple[str | bool, ...],
) -> Any:
    """The outputs, by vmap where that is possible and otherwise by a loop."""
    single = len(chunks) == 1 and len(chunks[0][0]) == 1
    outputs: list[Any] | None = None
    if known.get(key, True) and not single:
        call = vmap(run.network, randomness="different")
        outputs = _attempt(net, lambda: [run(chunk, call) for chunk in chunks], first=key not in known)
        if outputs is not None:
            known[key] = True
    how = torch.cat if outputs is not None else torch.stack
    if outputs is None:
        outputs = [run(sample, run.network) for chunk in chunks for sample in zip(*chunk, strict=True)]
        if not single:
            known[key] = False  # only now: what fails in the loop as well is an error of the call, not of the method
    if run.wrote and not run.protect:
        raise UsageError(
            "weights: the network wrote into the weights that it was given, which it did not do the first time; they "
            "are now changed. Let its forward compute new tensors instead, W = self.weight.clamp(-1, 1) rather than "
            "self.weight.clamp_(-1, 1)."
        )
    return _join(outputs, how)


class _Call:
    """Calls of a network that leave inputs and weights alone.

    Attributes:
        protect: Whether it is given copies of the weights.
        wrote: Whether it wrote to the weights it was given.
    """

    def __init__(self, net: Any, x: Any, *, protect: bool) -> None:
        self._net, self._x, self._inputs = net, x, x
        self.protect, self.wrote = protect, False
        # The class of plain modules sees to it itself.
        self._functional = not isinstance(net, ModuleMainNet) and needs_functional_calls(net)

    def __call__(self, weights: Sequence[Tensor], call: Callable[[tuple[Tensor, ...]], Any]) -> Any:
        given = tuple(tensor.clone() for tensor in weights) if self.protect else tuple(weights)
        before = [version(tensor) for tensor in given]
        self._inputs = fresh(self._x)
        out = call(given)
        self.wrote |= before != [version(tensor) for tensor in given]
        return out

    def network(self, weights: tuple[Tensor, ...]) -> Any:
        """The network's output for weights of the parameters' shapes."""
        with functional_calls(self._functional):
            return self._net(self._inputs, weights=list(weights))


def _attempt(net: nn.Module, run: Callable[[], list[Any]], *, first: bool) -> list[Any] | None:
    """The outputs, or None if the network cannot be vectorised; then its state is what it was."""
    try:
        with vectorising(), restored_on_failure(net, buffers=first):
            return run()
    except torch.OutOfMemoryError:
        raise  # the caller should know: chunk_size helps, and a loop may only hide it
    except Exception:  # whatever was raised: the loop shows whether the call itself is valid
        return None


# ---------------------------------------------------------------------- weights


def _chunks(net: MainNetInterface, weights: WeightSamples, chunk_size: int | None) -> list[list[Tensor]]:
    """Views of the weights, ``[s, *shape]`` per tensor, for each chunk of samples."""
    if isinstance(weights, Tensor):
        records = _records_of_flat(net, weights)
        sizes = split_sizes(record.shape for record in records)
        # Rows first: the gradients of the chunks are then put together once, instead of being added up.
        # A split of one part is left out: its gradient would be a copy.
        whole = chunk_size is None or chunk_size >= len(weights)
        rows = [weights] if whole else weights.split(chunk_size)
        return [
            [part.view(-1, *record.shape) for part, record in zip(row.split(sizes, dim=1), records, strict=True)]
            for row in rows
        ]
    tensors = _check_tensors(net, weights)
    if chunk_size is None or chunk_size >= len(tensors[0]):
        return [tensors]
    return [list(parts) for parts in zip(*(t.split(chunk_size) for t in tensors), strict=True)]


def _records_of_flat(net: MainNetInterface, weights: Tensor) -> Sequence[ParamRecord]:
    table = net.param_table
    external = [record for record in table if not record.internal]
    if weights.dim() == 2 and len(weights) > 0:
        for records in (table, external):
            if records and weights.shape[1] == num_weights(record.shape for record in records):
                return records
    parts = ", ".join(f"{name} {list(r.shape)}" for name, r in zip(net.param_names, table, strict=True))
    hint = ""
    if weights.dim() == 1:
        hint = " For one sample pass weights.unsqueeze(0)."
    hint += frozen_hint(getattr(net, "frozen_names", ()), net)
    raise ArgumentError(
        f"weights: has shape {list(weights.shape)}, expected [S, {net.num_params}] with S >= 1: {parts}.{hint}"
    )


def _check_tensors(net: MainNetInterface, weights: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
    table, names = net.param_table, net.param_names
    external = [i for i, record in enumerate(table) if not record.internal]
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in names]
        chosen = [i for i, name in enumerate(names) if name in weights]
        if unknown or len(chosen) not in (len(table), len(external) or -1):
            missing = [name for name in names if name not in weights]
            raise ArgumentError(
                f"weights: unknown names {unknown}, missing names {missing}; the parameters are {names}."
                f"{frozen_hint(unknown, net)}"
            )
        tensors = [weights[names[i]] for i in chosen]
    elif isinstance(weights, Sequence):
        tensors = list(weights)
        chosen = external if len(tensors) == len(external) else list(range(len(table)))
        if len(tensors) != len(chosen):
            raise ArgumentError(f"weights: {len(tensors)} tensors were given, expected {len(table)}: {names}.")
    else:
        raise ArgumentTypeError(
            f"weights: is {kind_of(weights)}; pass a matrix [S, D], or a list or dict of [S, *shape] tensors."
        )
    for i, tensor in zip(chosen, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"weights: {names[i]!r} is {kind_of(tensor)}; pass a tensor [S, *shape].")
        if tensor.dim() == 0 or tensor.shape[0] < 1 or tuple(tensor.shape[1:]) != table[i].shape:
            expected = ", ".join(["S", *map(str, table[i].shape)])
            raise ArgumentError(
                f"weights: {names[i]!r} has shape {list(tensor.shape)}, expected [{expected}] with S >= 1."
            )
    counts = {names[i]: len(tensor) for i, tensor in zip(chosen, tensors, strict=True)}
    if len(set(counts.values())) > 1:
        raise ArgumentError(f"weights: the numbers of samples differ: {counts}; pass the same S for all tensors.")
    return tensors


# ---------------------------------------------------------------------- outputs


def _join(outputs: Sequence[Any], how: Callable[[list[Tensor]], Tensor]) -> Any:
    """Concatenate or stack the outputs of chunks or samples, whatever structure of tensors they are."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return first if how is torch.cat and len(outputs) == 1 else how(list(outputs))
    make: Any = type(first)
    if isinstance(first, Mapping):
        return make({key: _join([out[key] for out in outputs], how) for key in first})
    if isinstance(first, tuple | list):
        parts = [_join(list(column), how) for column in zip(*outputs, strict=True)]
        return make(*parts) if hasattr(first, "_fields") else make(parts)
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first) if field.init]
        return replace(first, **{name: _join([getattr(out, name) for out in outputs], how) for name in names})
    if first is not None and not isinstance(first, bool | int | float | str):
        raise ArgumentTypeError(
            f"net: returns {kind_of(first)}, and those of several samples of weights cannot be put together; let it "
            "return tensors in a tuple, list, dict or dataclass, or pass BayesianModel(..., output=...)."
        )
    return first  # None, numbers, strings: the same for all samples
