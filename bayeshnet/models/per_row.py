"""Linear and convolutional layers with noise of its own for each row, whatever network calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Moments", "PerRowNoise", "SharedWeightError"]

_CONVOLUTIONS: frozenset[Any] = frozenset(
    {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
)


class Moments(NamedTuple):
    """Means and standard deviations of independent Gaussian weights, each of the weights' shape.

    Example:
        >>> Moments(torch.zeros(1), torch.ones(1)).scale
        tensor([1.])
    """

    loc: Tensor
    scale: Tensor


class SharedWeightError(Exception):
    """A weight is used more than once in a pass, so that its rows' noise would not fit together.

    Attributes:
        index: Its index.

    Example:
        >>> SharedWeightError(3).index
        3
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class PerRowNoise(TorchFunctionMode):
    r"""Inside this context, layers that are given one of these weights draw what comes of them for each row.

    A layer is bilinear in inputs and weights, :math:`a = L(x, w)`, with one product for each pair that meets. So its
    output has mean :math:`L(x, \mu)` and variance :math:`L(x^2, \sigma^2)`.

    Args:
        draws: A draw of each weight; layers are recognised by it, and it is used wherever they are not.
        moments: Its mean and standard deviation, None for weights that are to be used as they are.
        rows: Size of the first dimension of every activation.
        method: ``"local"`` (pre-activations; flipout where a weight meets several positions of a row),
            ``"independent"`` (pre-activations everywhere) or ``"flipout"``.

    Raises:
        SharedWeightError: In the context, if a weight meets the network at more than one place.

    Example:
        >>> x, loc, scale = torch.ones(1000, 1), torch.zeros(1, 1), torch.ones(1, 1)
        >>> with PerRowNoise([loc], [Moments(loc, scale)], rows=1000, method="local"):
        ...     out = F.linear(x, loc)
        >>> bool(0.9 < out.std() < 1.1)
        True
    """

    def __init__(
        self,
        draws: Sequence[Tensor],
        moments: Sequence[Moments | None],
        *,
        rows: int,
        method: Literal["local", "independent", "flipout"],
    ) -> None:
        super().__init__()
        self._draws = tuple(draws)  # kept alive: they are known by their id
        pairs = enumerate(zip(draws, moments, strict=True))
        self._known = {id(draw): (i, known) for i, (draw, known) in pairs if known is not None}
        self._rows, self._method = rows, method
        self._by_rows: set[int] = set()
        self._used: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        touched = [self._known[id(t)][0] for t in _tensors([*args, *kwargs.values()]) if id(t) in self._known]
        if touched and (func is F.linear or func in _CONVOLUTIONS):
            layer = _Layer.read(func, args, kwargs)
            if self._applies(layer):
                self._use(touched, by_rows=True)
                return self._noisy(layer)
        out = func(*args, **kwargs)
        if touched and any(True for _ in _tensors([out])):  # what gives sizes and types does not count
            self._use(touched, by_rows=False)
        return out

    def _use(self, touched: Sequence[int], *, by_rows: bool) -> None:
        for i in touched:
            if i in self._by_rows or (by_rows and i in self._used):
                raise SharedWeightError(i)
        self._used.update(touched)
        if by_rows:
            self._by_rows.update(touched)

    def _applies(self, layer: _Layer) -> bool:
        x = layer.x
        if id(layer.weight) not in self._known or x.dim() < 2 or x.shape[0] != self._rows:
            return False
        return id(x) not in self._known and (layer.func is F.linear or x.dim() == layer.weight.dim())

    def _noisy(self, layer: _Layer) -> Tensor:
        _, weight = self._known[id(layer.weight)]
        _, bias = self._known.get(id(layer.bias), (0, None))
        several = layer.func is not F.linear or layer.x.dim() > 2
        mean = layer(layer.x, weight.loc, layer.bias if bias is None else bias.loc)
        if self._method == "flipout" or (self._method == "local" and several):
            shift = None if layer.bias is None or bias is None else layer.bias - bias.loc
            return self._flipped(layer, mean, layer.weight - weight.loc, shift)
        variance = layer(layer.x.square(), weight.scale.square(), None if bias is None else bias.scale.square())
        # The square root of 0 has no gradient: a row of zeros, without a bias.
        std = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return torch.addcmul(mean, std, torch.randn_like(mean))

    def _flipped(self, layer: _Layer, mean: Tensor, shift: Tensor, bias_shift: Tensor | None) -> Tensor:
        dim = -1 if layer.func is F.linear else 1  # of the channels
        x = layer.x * _signs(layer.x, dim)
        return torch.addcmul(mean, layer(x, shift, bias_shift), _signs(mean, dim))


class _Layer:
    """A call of a linear or convolutional layer, with its arguments told apart."""

    def __init__(self, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rest: Callable[..., Tensor]) -> None:
        self.func, self.x, self.weight, self.bias, self._rest = func, x, weight, bias, rest

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._rest(x, weight, bias)

    @classmethod
    def read(cls, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> _Layer:
        names = ("input", "weight", "bias")
        named = {**dict(zip(names, args, strict=False)), **{key: kwargs[key] for key in names if key in kwargs}}
        more, options = args[3:], {key: value for key, value in kwargs.items() if key not in names}
        return cls(
            func,
            named["input"],
            named["weight"],
            named.get("bias"),
            lambda x, weight, bias: func(x, weight, bias, *more, **options),
        )


def _signs(like: Tensor, dim: int) -> Tensor:
    """Random signs, one for each row and channel of ``like``."""
    shape = [1] * like.dim()
    shape[0], shape[dim] = like.shape[0], like.shape[dim]
    return 2.0 * (torch.rand(shape, device=like.device) < 0.5).to(like.dtype) - 1.0


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
