"""The layers of convolutional networks, in a form that can be read for the parameters and for the outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from torch import Tensor
from torch.nn import functional as F

from bayeshnet.errors import ArgumentTypeError
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["ImageShape", "LayerReader", "Layers", "ModOptions", "Place", "evaluate", "record"]

T = TypeVar("T")

ImageShape: TypeAlias = "tuple[int, ...]"
"""``(C, H, W)``, or ``(C,)`` once the pixels are averaged."""

Place: TypeAlias = Literal["input", "before", "after", "output"]
"""Where a context modulation may sit; ``before`` and ``after`` refer to the activation of a hidden layer."""


@dataclass(frozen=True, slots=True)
class ModOptions:
    """The options of context modulation, those of :class:`~bayeshnet.mnets.mlp.MLP` and one for images.

    Example:
        >>> ModOptions.from_kwargs({"use_context_mod": True}).sits("before")
        True
    """

    use_context_mod: bool = False
    context_mod_inputs: bool = False
    no_last_layer_context_mod: bool = False
    context_mod_no_weights: bool = False
    context_mod_post_activation: bool = False
    context_mod_gain_offset: bool = False
    context_mod_gain_softplus: bool = False
    context_mod_apply_pixel_wise: bool = False

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> ModOptions:
        """Read the keyword arguments of a constructor.

        Raises:
            ArgumentTypeError: If one is unknown.
        """
        accepted = [option.name for option in fields(cls)]
        unknown = sorted(set(kwargs) - set(accepted))
        if unknown:
            raise ArgumentTypeError(f"{', '.join(unknown)}: no such argument; further keywords are {accepted}.")
        return cls(**kwargs)

    def sits(self, place: Place) -> bool:
        """Whether there is a modulation at a place."""
        wanted = {
            "input": self.context_mod_inputs,
            "before": not self.context_mod_post_activation,
            "after": self.context_mod_post_activation,
            "output": not self.no_last_layer_context_mod,
        }
        return self.use_context_mod and wanted[place]


class LayerReader(Generic[T]):
    """What a convolutional network is written in: its layers, applied to a ``T``.

    There are two readers: one whose ``T`` is the shape of an image, which notes the parameters that are needed, and
    one whose ``T`` is a batch of images, which computes. So the table and the computation cannot disagree.

    Example:
        >>> def layers(reader: LayerReader[T], x: T) -> T:
        ...     return reader.relu(reader.conv(x, 4))
        >>> record(layers, (1, 8, 8), ModOptions(), use_batch_norm=False)[0][0].shape
        (4, 1, 3, 3)
    """

    @abstractmethod
    def conv(self, x: T, width: int, *, stride: int = 1, kernel: int = 3, bias: bool = False, skip: bool = False) -> T:
        """Convolution to ``width`` channels; the parameters of ``skip`` connections come before the others."""

    @abstractmethod
    def linear(self, x: T, width: int, *, bias: bool) -> T:
        """Fully-connected layer."""

    @abstractmethod
    def norm(self, x: T) -> T:
        """Batch norm, if the network has it."""

    @abstractmethod
    def modulate(self, x: T, place: Place) -> T:
        """Context modulation, if the network has it at this place."""

    @abstractmethod
    def relu(self, x: T) -> T:
        """Rectify."""

    @abstractmethod
    def dropout(self, x: T) -> T:
        """Dropout, if the network has it."""

    @abstractmethod
    def shortcut(self, x: T, width: int, *, stride: int) -> T:
        """Every ``stride``-th pixel, with channels of zeros on both sides up to ``width``: no parameters."""

    @abstractmethod
    def add(self, x: T, y: T) -> T:
        """Add two branches."""

    @abstractmethod
    def average(self, x: T) -> T:
        """Mean over the pixels."""


class Layers(Protocol):
    """The layers of a network from input to output.

    Example:
        >>> layers: Layers = lambda reader, x: reader.linear(reader.average(x), 2, bias=False)
        >>> record(layers, (3, 8, 8), ModOptions(), use_batch_norm=False)[0][0].shape
        (2, 3)
    """

    def __call__(self, reader: LayerReader[T], x: T, /) -> T:
        """Apply them to ``x`` through a reader."""
        ...


def record(
    layers: Layers, in_shape: ImageShape, mods: ModOptions, *, use_batch_norm: bool
) -> tuple[list[ParamRecord], tuple[int, ...]]:
    """Find the parameters that layers need.

    Args:
        layers: The layers.
        in_shape: ``(C, H, W)`` of an image.
        mods: Where context modulation sits.
        use_batch_norm: Whether there is batch norm.

    Returns:
        The table: gains and shifts, then batch norm, then skip connections, then the other layers. Layers are numbered
        as they are applied. And in the order of application the position of each tensor behind the gains and shifts.

    Example:
        >>> def layers(reader, x):
        ...     x = reader.norm(reader.conv(x, 4, bias=True))
        ...     return reader.linear(reader.average(x), 2, bias=False)
        >>> records, order = record(layers, (1, 8, 8), ModOptions(), use_batch_norm=True)
        >>> [(r.name, r.layer) for r in records], order
        ([('bn_scale', 1), ('bn_shift', 1), ('weight', 0), ('bias', 0), ('weight', 2)], (2, 3, 0, 1, 4))
    """
    reader = _Recorder(mods, use_batch_norm=use_batch_norm)
    layers(reader, in_shape)
    return reader.table()


def evaluate(
    layers: Layers,
    x: Tensor,
    tensors: Iterable[Tensor],
    mods: ModOptions,
    *,
    modulate: Callable[[int, Tensor], Tensor],
    normalise: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None,
    dropout_rate: float,
) -> Tensor:
    """Compute the outputs.

    Args:
        layers: The layers.
        x: Images ``[B, C, H, W]``.
        tensors: All parameters but gains and shifts, in the order of application.
        mods: Where context modulation sits.
        modulate: Apply the i-th context modulation.
        normalise: Apply the i-th batch norm, with a scale and a shift; None if there is none.
        dropout_rate: Rate of the dropout, 0 for none.

    Returns:
        What the layers make of ``x``.

    Example:
        >>> import torch
        >>> evaluate(
        ...     lambda reader, x: reader.linear(reader.average(x), 2, bias=False),
        ...     torch.ones(5, 3, 8, 8),
        ...     [torch.ones(2, 3)],
        ...     ModOptions(),
        ...     modulate=lambda i, x: x,
        ...     normalise=None,
        ...     dropout_rate=0.0,
        ... ).shape
        torch.Size([5, 2])
    """
    reader = _Evaluator(tensors, mods, modulate=modulate, normalise=normalise, dropout_rate=dropout_rate)
    return layers(reader, x)


class _Recorder(LayerReader[ImageShape]):
    """Follows the shape of an image through the layers and notes the parameters."""

    _KINDS = ("mod", "norm", "skip", "layer")  # their order in the table

    def __init__(self, mods: ModOptions, *, use_batch_norm: bool) -> None:
        self._mods = mods
        self._use_batch_norm = use_batch_norm
        self._noted: list[tuple[int, ParamRecord]] = []
        self._layer = 0

    def _note(self, kind: str, names: Sequence[str], *shapes: tuple[int, ...]) -> None:
        order = self._KINDS.index(kind)
        self._noted += [(order, ParamRecord(s, name, self._layer)) for name, s in zip(names, shapes, strict=True)]
        self._layer += 1

    def table(self) -> tuple[list[ParamRecord], tuple[int, ...]]:
        ranks = sorted(range(len(self._noted)), key=lambda i: self._noted[i][0])
        num_mods = sum(order == 0 for order, _ in self._noted)
        position = {i: rank - num_mods for rank, i in enumerate(ranks)}
        applied = tuple(position[i] for i, (order, _) in enumerate(self._noted) if order > 0)
        return [self._noted[i][1] for i in ranks], applied

    def conv(
        self,
        x: ImageShape,
        width: int,
        *,
        stride: int = 1,
        kernel: int = 3,
        bias: bool = False,
        skip: bool = False,
    ) -> ImageShape:
        shapes = [(width, x[0], kernel, kernel), *([(width,)] if bias else [])]
        self._note("skip" if skip else "layer", ("weight", "bias")[: len(shapes)], *shapes)
        return width, *(-(-size // stride) for size in x[1:])

    def linear(self, x: ImageShape, width: int, *, bias: bool) -> ImageShape:
        shapes = [(width, x[0]), *([(width,)] if bias else [])]
        self._note("layer", ("weight", "bias")[: len(shapes)], *shapes)
        return (width,)

    def norm(self, x: ImageShape) -> ImageShape:
        if self._use_batch_norm:
            self._note("norm", ("bn_scale", "bn_shift"), x[:1], x[:1])
        return x

    def modulate(self, x: ImageShape, place: Place) -> ImageShape:
        if self._mods.sits(place):
            pixels = x[1:] if self._mods.context_mod_apply_pixel_wise else (1,) * (len(x) - 1)
            self._note("mod", ("cm_scale", "cm_shift"), (x[0], *pixels), (x[0], *pixels))
        return x

    def relu(self, x: ImageShape) -> ImageShape:
        return x

    def dropout(self, x: ImageShape) -> ImageShape:
        return x

    def shortcut(self, x: ImageShape, width: int, *, stride: int) -> ImageShape:
        return width, *(-(-size // stride) for size in x[1:])

    def add(self, x: ImageShape, y: ImageShape) -> ImageShape:
        return x

    def average(self, x: ImageShape) -> ImageShape:
        return x[:1]


class _Evaluator(LayerReader[Tensor]):
    """Computes, taking the tensors in the order in which the recorder noted them."""

    def __init__(
        self,
        tensors: Iterable[Tensor],
        mods: ModOptions,
        *,
        modulate: Callable[[int, Tensor], Tensor],
        normalise: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None,
        dropout_rate: float,
    ) -> None:
        self._tensors = iter(tensors)
        self._mods = mods
        self._modulate = modulate
        self._normalise = normalise
        self._dropout_rate = dropout_rate
        self._num_mods = self._num_norms = 0

    def conv(
        self, x: Tensor, width: int, *, stride: int = 1, kernel: int = 3, bias: bool = False, skip: bool = False
    ) -> Tensor:
        weight, shift = next(self._tensors), next(self._tensors) if bias else None
        return F.conv2d(x, weight, shift, stride=stride, padding=kernel // 2)

    def linear(self, x: Tensor, width: int, *, bias: bool) -> Tensor:
        weight, shift = next(self._tensors), next(self._tensors) if bias else None
        return F.linear(x, weight, shift)

    def norm(self, x: Tensor) -> Tensor:
        if self._normalise is None:
            return x
        self._num_norms += 1
        return self._normalise(self._num_norms - 1, x, next(self._tensors), next(self._tensors))

    def modulate(self, x: Tensor, place: Place) -> Tensor:
        if not self._mods.sits(place):
            return x
        self._num_mods += 1
        return self._modulate(self._num_mods - 1, x)

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def dropout(self, x: Tensor) -> Tensor:
        return x if self._dropout_rate == 0 else F.dropout(x, self._dropout_rate)

    def shortcut(self, x: Tensor, width: int, *, stride: int) -> Tensor:
        x = x[:, :, ::stride, ::stride] if stride > 1 else x
        missing = width - x.shape[1]
        return x if missing == 0 else F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def average(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))
