"""The frozen trunk of a Bayesian network: where it ends, and what it makes of data."""

# Networks of this package are taken apart and put together in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.module_mainnet import ModuleMainNet
from bayeshnet.models.features import Features
from bayeshnet.models.forms import is_single, num_rows, rows_of
from bayeshnet.models.given_data import ROW_DATA

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["PrecomputesTrunk"]

_ROWS = 3  # on which the network is compared with its trunk and its head
_DROPOUT = nn.modules.dropout._DropoutNd


class PrecomputesTrunk:
    """The part of :class:`~bayeshnet.BayesianModel` that evaluates what is frozen in its network once.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> isinstance(BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1)), PrecomputesTrunk)
        True
    """

    def precompute(self, x: Any, *, batch_size: int = 1024) -> Any:
        """What the largest frozen trunk of the network, before all that is Bayesian or learned, makes of inputs.

        The trunk is the part before the first layer with a weight or a learned point: in ``nn.Sequential``, also
        nested ones, or before a layer (or a sequence of layers) with which the network ends, as is checked on a few
        rows. It is evaluated in evaluation mode: dropout in it is off. Numbers are those without ``precompute`` up to
        rounding.

        Args:
            x: Inputs in any form that the model takes: a tensor, an array, a frame; a tuple or dict of the network's
                arguments; or batches of inputs, or of inputs and targets as for a fit, such as a ``DataLoader``.
            batch_size: Number of rows at once, which bounds the memory; batches are taken as they come.

        Returns:
            The features ``[N, ...]``, to be passed in place of ``x`` to :func:`~bayeshnet.fit`, guides and
            :func:`~bayeshnet.predict`; of batches with targets the features and the targets.

        Raises:
            UsageError: If there is no such trunk; the message says why.
            ArgumentTypeError: If inputs are no tensors, or not of the network's dtype.
            ArgumentError: If there are no rows.

        Example:
            >>> from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, predict
            >>> net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
            >>> model = BayesianModel(
            ...     net, likelihood=likelihoods.Normal(scale=0.1), bayesian="last_layer", others="frozen"
            ... )
            >>> x, y = torch.randn(100, 3), torch.randn(100)
            >>> features = model.precompute(x)
            >>> features.shape
            torch.Size([100, 16])
            >>> guide = AutoHypernet(model, example=(features, y))
            >>> history = fit(model, guide, (features, y), 2, progress=False)
            >>> predict(model, guide, features, num_samples=5).mean.shape
            torch.Size([100])
        """
        require_count("batch_size", batch_size)
        model = cast("BayesianModel", self)
        candidates = _candidates(model)
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        with _evaluating(model), torch.no_grad():
            chosen: tuple[str, ...] | None = None
            trunk, off = "", ()
            out: Tensor | None = None
            filled = 0
            for part, y, total in _batches(x, batch_size, model):
                model.check_inputs(part)
                given = model.standardized_inputs(part)
                if chosen is None:
                    chosen = _fitting(model, candidates, given)
                    trunk = f"{chosen[0]}:{_fingerprint(model, chosen)}"
                    off = _dropout(model, chosen)
                values, _ = _recorded(model.net, chosen[0], given)
                if total is None:
                    inputs.append(Features.of(values, trunk, off))
                else:  # rows are written to their places, so that there is one copy of them
                    out = values.new_empty((total, *values.shape[1:])) if out is None else out
                    out[filled : filled + len(values)] = values
                    filled += len(values)
                targets += [] if y is None else [y]
        if out is None and not inputs:
            raise ArgumentError("x: has no rows; pass at least one.")
        features = torch.cat(inputs) if out is None else Features.of(out, trunk, off)
        return (features, torch.cat(targets)) if targets else features

    def network_for(self, x: Any) -> Any:
        """The network that takes these inputs: that of the model, or of features what follows the trunk.

        Args:
            x: Inputs or features.

        Raises:
            ArgumentError: If they are features of another trunk.
        """
        model = cast("BayesianModel", self)
        if not isinstance(x, Features):
            return model.net
        first, _, said = x.trunk.partition(":")
        known = next((paths for paths in _candidates(model) if paths[0] == first), None)
        if known is None or _fingerprint(model, known) != said:
            raise ArgumentError(
                f"x: {x!r} is of another trunk than the model has now (another network, other frozen values, units or "
                "dtype); compute features with this model, model.precompute(x)."
            )
        return _head(model, known)

    def trunk_before(self, first: str) -> str:
        """The trunk, with its fingerprint, that ends before a layer of this name.

        Args:
            first: Name of the first layer after it.

        Raises:
            UsageError: If no trunk ends there.
        """
        model = cast("BayesianModel", self)
        known = next((paths for paths in _candidates(model) if paths[0] == first), None)
        if known is None:
            raise UsageError(f"features: the network has no frozen trunk that ends before {first!r}.")
        return f"{first}:{_fingerprint(model, known)}"


def _candidates(model: BayesianModel) -> list[tuple[str, ...]]:
    """Where a trunk may end: paths of the modules that follow it one after the other; the largest trunk first."""
    cache = vars(model).get("_trunks")
    if cache is None:
        cache = vars(model)["_trunks"] = _found(model)
    return cache


def _found(model: BayesianModel) -> list[tuple[str, ...]]:
    net = model.net
    if not isinstance(net, ModuleMainNet):
        raise UsageError(
            f"precompute: the layers of {type(net.net if hasattr(net, 'held') else net).__name__}, a main network of "
            "this package, are no modules that a trunk could be cut from; pass a network of torch.nn."
        )
    if net._fixed_rows:
        raise UsageError(f"precompute: the tables {list(net.fixed_rows)} are Bayesian, and take indices, no features.")
    if model.batch_norm.layers:
        raise UsageError(
            f"precompute: the batch norm of {list(model.batch_norm.layers)} follows the batch or the draw; call eval() "
            "on it before the model is built, so that it keeps its running statistics."
        )
    live = {id(module) for slot in (*net._slots, *net._learned) for module, _ in slot.places}
    found: list[tuple[str, ...]] = []
    path, tail = "", ()
    while True:
        module = net.module.get_submodule(path)
        if type(module) is nn.Sequential:
            leaves = _leaves(module, path)
            first = next(i for i, leaf in enumerate(leaves) if _alive(net.module.get_submodule(leaf), live))
            path, tail = leaves[first], (*leaves[first + 1 :], *tail)
            if _held(net, (path, *tail)):
                found.append((path, *tail))
            continue
        if path and (not found or found[-1][0] != path) and _held(net, (path, *tail)):
            found.append((path, *tail))
        inside = [name for name, child in module.named_children() if _alive(child, live)]
        if id(module) in live or len(inside) != 1:
            break
        path = f"{path}.{inside[0]}".lstrip(".")
    if not found:
        raise UsageError(
            "precompute: the network has no frozen trunk, since its first layer, or layers in several places, are "
            "Bayesian or learned; pass bayesian='last_layer', others='frozen', or leave precompute out."
        )
    return found[::-1]


def _leaves(module: nn.Module, path: str) -> list[str]:
    if type(module) is not nn.Sequential:
        return [path]
    # A module that stands at two places is called at both.
    children: list[tuple[str, Any]] = list(module._modules.items())
    return [leaf for name, child in children for leaf in _leaves(child, f"{path}.{name}".lstrip("."))]


def _alive(module: nn.Module, live: set[int]) -> bool:
    return any(id(part) in live for part in module.modules())


class _Reached(Exception):
    """Carries what a layer was called with."""


def _recorded(net: ModuleMainNet, path: str, x: Any) -> tuple[Tensor, int]:
    """The input of a layer, from a run of the network that ends there."""

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args, kwargs)

    handle = net.module.get_submodule(path).register_forward_pre_hook(stop, with_kwargs=True)
    like = next(iter(tensor for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()))
    weights = [torch.zeros(shape, dtype=like.dtype, device=like.device) for shape in net.param_shapes]
    try:
        net(x, weights=weights)
    except _Reached as reached:
        args, kwargs = reached.args
        if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            return args[0], 1
        return torch.empty(0), len(args) + len(kwargs)
    finally:
        handle.remove()
    return torch.empty(0), 0


def _fitting(model: BayesianModel, candidates: Sequence[tuple[str, ...]], x: Any) -> tuple[str, ...]:
    """The first of the places where the rest of the network makes of its input what the network makes."""
    net = model.net
    few = rows_of(x, slice(0, _ROWS))
    like = model._like
    # Any weights serve, and no random numbers are drawn where nothing is random.
    sizes = [(2, *shape) for shape in net.param_shapes]
    weights = [0.1 * torch.arange(1.0, 1.0 + math.prod(size)).mul(1.7).cos().reshape(size).to(like) for size in sizes]
    tolerance = 100 * torch.finfo(like.dtype).eps ** 0.75
    for paths in candidates:
        features, num = _recorded(net, paths[0], few)
        if num != 1 or not features.dim() or len(features) != num_rows(few):
            continue
        if not bool(features.isfinite().all()):
            raise ArgumentError("x: the trunk makes NaN or infinite numbers of its first rows; remove or impute them.")
        with contextlib.suppress(RuntimeError, ValueError, TypeError, IndexError):  # then it is no such place
            whole, again = batched_forward(net, weights, few), batched_forward(_head(model, paths), weights, features)
            same = isinstance(whole, Tensor) and whole.shape == again.shape
            if same and torch.allclose(whole, again, rtol=tolerance, atol=tolerance):
                return paths
    raise UsageError(
        f"precompute: what follows {candidates[0][0]!r} in the network is more than it (or it takes no single tensor "
        "with a row for each of the inputs), so that there is no frozen trunk; write the network as "
        "nn.Sequential(trunk, head), or leave precompute out."
    )


def _head(model: BayesianModel, paths: tuple[str, ...]) -> ModuleMainNet:
    """What follows the trunk, as a network that has the modules of the model's."""
    heads = vars(model).setdefault("_heads", {})
    if paths not in heads:
        net = model.net
        head = ModuleMainNet.__new__(ModuleMainNet)
        vars(head).update({key: value for key, value in vars(net).items() if key != "_modules"})
        modules = [net.module.get_submodule(path) for path in paths]
        head._modules, head._buffers, head._parameters = {}, {}, {}
        head.module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        inside = list(head.module.modules())
        head._recurrent = tuple(module for module in net._recurrent if any(module is part for part in inside))
        head._computed = [pair for pair in net._computed if any(pair[0] is part for part in inside)]
        heads[paths] = head
    return heads[paths]


def _held(net: ModuleMainNet, paths: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Buffers of the trunk, which are all that it has, by name."""
    return [
        (name, value)
        for name, value in net.module.named_buffers()
        if not any(name == path or name.startswith(f"{path}.") for path in paths)
    ]


def _fingerprint(model: BayesianModel, paths: tuple[str, ...]) -> str:
    """A hash of the values of the trunk and of the units of its inputs; computed again when one was written to."""
    tensors = [*_trunk_tensors(model, paths)]
    version = tuple((value.data_ptr(), value._version) for _, value in tensors)
    known = vars(model).setdefault("_prints", {})
    if known.get(paths, (None, ""))[0] != version:
        digest = hashlib.sha256()
        for name, value in tensors:
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        known[paths] = (version, digest.hexdigest()[:16])
    return known[paths][1]


def _trunk_tensors(model: BayesianModel, paths: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    cache = vars(model).setdefault("_trunk_names", {})
    if paths not in cache:
        cache[paths] = [name for name, _ in _held(model.net, paths)]
    found = [(name, model.net.module.get_buffer(name)) for name in cache[paths]]
    return [*found, *((f"units.{name}", value) for name, value in model.units.named_buffers())]


def _dropout(model: BayesianModel, paths: tuple[str, ...]) -> tuple[str, ...]:
    inside = model.net.module.named_modules()
    return tuple(
        name
        for name, part in inside
        if isinstance(part, _DROPOUT) and not any(name == path or name.startswith(f"{path}.") for path in paths)
    )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _batches(x: Any, batch_size: int, model: BayesianModel) -> Iterable[tuple[Any, Tensor | None, int | None]]:
    """Inputs, targets, and number of all rows if it is known, of a batch after the other."""
    if isinstance(x, Features):
        raise ArgumentTypeError("x: are features already; pass the inputs.")
    if is_single(x):
        given = model.as_inputs(x)
        rows = num_rows(given)
        for start in range(0, rows, batch_size):
            yield rows_of(given, slice(start, start + batch_size)), None, rows
        return
    if not isinstance(x, Iterable) or isinstance(x, str):
        raise ArgumentTypeError(f"x: is {kind_of(x)}; pass a tensor, a tuple of arguments, or a DataLoader.")
    for batch in x:
        args, kwargs = _parts_of(batch)
        x_part, y, *rest = model.in_order(*args, **kwargs)
        surplus = [name for name, value in zip(ROW_DATA, rest, strict=True) if value is not None]
        if surplus:
            raise ArgumentTypeError(
                f"x: batches have {surplus} of the rows beside inputs and targets; pass batches (x, y), "
                "or the inputs alone."
            )
        yield x_part, y, None


def _parts_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model that a batch stands for."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})
