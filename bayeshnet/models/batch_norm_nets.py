"""Networks whose batch norm takes its statistics from elsewhere: recorded on some rows, and used for others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["NormalisedByBatch", "NormalisedByGiven", "RecordedStatistics", "norm_layers", "without_running_statistics"]


def norm_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm layers of a network whose statistics follow the batch, by name; no frozen or learned ones.

    Example:
        >>> list(norm_layers(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())))
        ['1']
    """
    return {name: module for name, module in net.named_modules() if _follows_batch(module)}


def _follows_batch(module: nn.Module) -> bool:
    if isinstance(module, BatchNormLayer):
        return module.follows_batch
    return isinstance(module, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage] - torch's common base has no public name


def without_running_statistics(layer: Any, *, drop: bool = False) -> None:
    """Let a layer normalise by the batch in training without noting what its statistics were, in place.

    Args:
        layer: A batch-norm layer of :func:`norm_layers`.
        drop: Let it forget the statistics that it has as well, so that evaluation is by the batch, too.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> without_running_statistics(layer)
        >>> layer(torch.randn(8, 2)).shape, layer.running_mean
        (torch.Size([8, 2]), tensor([0., 0.]))
    """
    if isinstance(layer, BatchNormLayer):
        layer.stop_tracking(drop=drop)
        return
    layer.track_running_stats = False
    if drop:
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None


# ---------------------------------------------------------------------- one call of batch norm


class _Call(NamedTuple):
    """A call of ``torch.nn.functional.batch_norm``, by the names of its arguments."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float | None = 0.1
    eps: float = 1e-5

    def statistics(self) -> Tensor:
        """Mean and variance of the channels ``[2, C]``, of all rows and places.

        Raises:
            ArgumentError: If there is a single value per channel.
        """
        x = self.input
        if x.numel() <= x.shape[1]:
            raise ArgumentError(
                f"x: has a single value per channel where a batch norm takes its statistics (a tensor {list(x.shape)});"
                " pass at least two rows."
            )
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        var, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
        return torch.stack([mean, var])

    def normalised(self, statistics: Tensor) -> Tensor:
        """The output for these statistics ``[2, C]``, with a derivative with respect to them."""
        shape = (-1,) + (1,) * (self.input.dim() - 2)
        mean, factor = statistics[0], torch.rsqrt(statistics[1] + self.eps)
        factor = factor if self.weight is None else factor * self.weight
        out = (self.input - mean.view(shape)) * factor.view(shape)
        out = out if self.bias is None else out + self.bias.view(shape)
        return out.to(self.input.dtype)


class _Redirected(TorchFunctionMode):
    """Inside this context, batch norm that is by the batch or by running statistics of these layers goes elsewhere."""

    def __init__(self, layers: Sequence[nn.Module], normalise: Callable[[_Call], Tensor]) -> None:
        super().__init__()
        self._running = {id(mean) for layer in layers for mean in _running_means(layer)}
        self._normalise = normalise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            call = _Call(*args, **kwargs)
            if call.training or call.running_mean is None or id(call.running_mean) in self._running:
                return self._normalise(call)
        return func(*args, **kwargs)


def _running_means(layer: nn.Module) -> list[Tensor]:
    if isinstance(layer, BatchNormLayer):
        return [layer.get_stats(i)[0] for i in range(layer.num_stats)]
    mean: Tensor | None = getattr(layer, "running_mean", None)
    return [] if mean is None else [mean]


# ---------------------------------------------------------------------- networks


class _Around(nn.Module, MainNetInterface):
    """A main network around another, whose batch norm it redirects."""

    def __init__(self, net: Any, layers: Sequence[nn.Module]) -> None:
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self.net = net
        self.training = net.training
        self._layers = tuple(layers)
        self._records = net.param_table

    @property
    def built_around(self) -> Any:
        """The network itself, by which :func:`~bayeshnet.mnets.batched_forward` remembers what it does."""
        return getattr(self.net, "built_around", self.net)

    def distillation_targets(self) -> None:
        return

    def _redirected(self, x: Any, weights: Any, normalise: Callable[[_Call], Tensor]) -> Any:
        with _Redirected(self._layers, normalise):
            return self.net(x, weights=weights)

    @abstractmethod
    def forward(self, x: Any, weights: Any = None, distilled_params: None = None, condition: None = None) -> Any:
        """See :meth:`MainNetInterface.forward`."""


class RecordedStatistics(_Around):
    """A network that returns the statistics of its batch norm on the rows given, instead of its output.

    Args:
        net: The main network.
        layers: Its batch-norm layers.

    Example:
        >>> from bayeshnet.mnets import ModuleMainNet, batched_forward
        >>> net = ModuleMainNet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), no_weights=True)
        >>> recorded = RecordedStatistics(net, list(norm_layers(net).values()))
        >>> [part.shape for part in batched_forward(recorded, torch.randn(7, 24), torch.randn(20, 3))]
        [torch.Size([7, 2, 4])]
    """

    def forward(self, x: Any, weights: Any = None, distilled_params: None = None, condition: None = None) -> Any:
        """Mean and variance ``[2, C]`` of each call of batch norm, in the order of the calls."""
        found: list[Tensor] = []

        def normalise(call: _Call) -> Tensor:
            statistics = call.statistics()
            found.append(statistics)
            return call.normalised(statistics)

        self._redirected(x, weights, normalise)
        return found


class NormalisedByBatch(_Around):
    """A network whose batch norm is by the rows given, in evaluation too, and notes nothing.

    Args:
        net: The main network.
        layers: Its batch-norm layers.

    Example:
        >>> from bayeshnet.mnets import ModuleMainNet, batched_forward
        >>> net = ModuleMainNet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), no_weights=True).eval()
        >>> by_batch = NormalisedByBatch(net, list(norm_layers(net).values()))
        >>> out = batched_forward(by_batch, torch.ones(7, 24), torch.randn(20, 3))
        >>> bool((out.mean(1) - 1.0).abs().max() < 1e-5)  # the shift
        True
    """

    def forward(self, x: Any, weights: Any = None, distilled_params: None = None, condition: None = None) -> Any:
        """The network's output."""
        return self._redirected(x, weights, lambda call: call.normalised(call.statistics()))


class NormalisedByGiven(_Around):
    """A network that takes the statistics of its batch norm as further weights, in the order of the calls.

    Args:
        net: The main network.
        layers: Its batch-norm layers.
        shapes: Shapes ``[2, C]`` of the statistics.

    Raises:
        UsageError: In a call with more or fewer batch norms than there are statistics.

    Example:
        >>> from bayeshnet.mnets import ModuleMainNet, batched_forward
        >>> net = ModuleMainNet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), no_weights=True)
        >>> layers, weights = list(norm_layers(net).values()), [torch.randn(7, *shape) for shape in net.param_shapes]
        >>> statistics = batched_forward(RecordedStatistics(net, layers), weights, torch.randn(20, 3))
        >>> given = NormalisedByGiven(net, layers, [part.shape[1:] for part in statistics])
        >>> batched_forward(given, [*weights, *statistics], torch.randn(1, 3)).shape
        torch.Size([7, 1, 4])
    """

    def __init__(self, net: Any, layers: Sequence[nn.Module], shapes: Sequence[Sequence[int]]) -> None:
        super().__init__(net, layers)
        self._num = len(net.param_table)
        self._records = (*net.param_table, *(ParamRecord(tuple(shape), internal=False) for shape in shapes))

    def forward(self, x: Any, weights: Any = None, distilled_params: None = None, condition: None = None) -> Any:
        """The network's output."""
        statistics = list(weights[self._num :])
        used = 0

        def normalise(call: _Call) -> Tensor:
            nonlocal used
            used += 1
            if used > len(statistics):
                raise _other_calls(len(statistics), f"{used} or more")
            return call.normalised(statistics[used - 1])

        out = self._redirected(x, weights[: self._num], normalise)
        if used != len(statistics):
            raise _other_calls(len(statistics), str(used))
        return out


def _other_calls(known: int, found: str) -> UsageError:
    return UsageError(
        f"net: calls batch norm {found} times for these inputs, and {known} times for the reference rows; let it do so "
        "for all inputs alike, or pass BayesianModel(..., batch_norm='running')."
    )
