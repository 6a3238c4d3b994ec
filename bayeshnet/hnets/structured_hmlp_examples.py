"""How to cut residual networks into chunks that follow their layers, for a structured chunked hypernetwork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.resnet import ResNet
from bayeshnet.mnets.wide_resnet import WRN

__all__ = ["ChunkAssembly", "Piece", "resnet_chunking", "wrn_chunking"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one target tensor comes from.

    Attributes:
        chunks: Numbers of the chunks that hold parts of it, in order.
        element: Its position in each of them.
        dim: The dimension along which the parts are joined: 0 for output channels, 1 for input channels.
        copy: Whether a single part is copied. Among layers that are joined, and so have memory of their own, a view
            would keep alive what the internal hypernetwork made for all of them.

    Example:
        >>> Piece(chunks=(0, 1), element=0, dim=1).copy
        False
    """

    chunks: tuple[int, ...]
    element: int
    dim: int
    copy: bool = False


@dataclass(frozen=True, slots=True)
class ChunkAssembly:
    """The ``assembly_fct`` of a chunking: puts the target tensors together.

    A function without state that can be pickled, copied and batched by ``torch.func.vmap``. Where all layers of an
    internal hypernetwork are whole chunks they are handed on as they are, without a copy.

    Attributes:
        pieces: One entry per target tensor, in the order in which they are returned.
        num_chunks: Number of chunks in all.

    Example:
        >>> assembly = ChunkAssembly((Piece((0, 1), 0, 1), Piece((0,), 1, 0)), 2)
        >>> [t.shape for t in assembly([[torch.ones(3, 2), torch.ones(3)], [torch.ones(3, 2), torch.ones(3)]])]
        [torch.Size([3, 4]), torch.Size([3])]
    """

    pieces: tuple[Piece, ...]
    num_chunks: int

    def __call__(self, list_of_chunks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Assemble.

        Args:
            list_of_chunks: The tensors of each chunk; all chunks of the first internal network, then those of the
                second, and so on.

        Returns:
            The target tensors.

        Raises:
            ArgumentError: If the number of chunks differs from that of the chunking.
        """
        if len(list_of_chunks) != self.num_chunks:
            raise ArgumentError(
                f"list_of_chunks: has {len(list_of_chunks)} chunks; pass {self.num_chunks}, the sum of num_per_chunk "
                "of this chunking."
            )
        targets: list[Tensor] = []
        for piece in self.pieces:
            parts = [list_of_chunks[chunk][piece.element] for chunk in piece.chunks]
            if len(parts) > 1:
                targets.append(torch.cat(parts, piece.dim))
            else:
                targets.append(parts[0].clone() if piece.copy else parts[0])
        return targets


Chunking: TypeAlias = "tuple[list[list[list[int]]], list[int], ChunkAssembly]"
"""``chunk_shapes``, ``num_per_chunk`` and ``assembly_fct``, as a structured hypernetwork takes them."""


def resnet_chunking(net: ResNet, gcd_chunking: bool = False) -> Chunking:
    """Chunk a :class:`~bayeshnet.mnets.resnet.ResNet` by layers.

    A chunk is a weight, with the bias and the batch-norm scale and shift that the layer has.

    Layers of one shape and place share an internal hypernetwork, which makes eight of them: the first layer, then for
    each of the three groups its first convolution and its ``2 n - 1`` others, and the output layer.

    With ``gcd_chunking`` the middle six become four, one for each number of input channels ``C_1, ..., C_4``. A chunk
    has as many output channels as the greatest common divisor of the four, and a layer is several chunks joined along
    its output channels. Nothing that is generated is left unused.

    Args:
        net: The network; only its parameter table is read.
        gcd_chunking: See above.

    Returns:
        ``chunk_shapes``, ``num_per_chunk`` and ``assembly_fct``; the latter returns all of ``net.param_shapes``.

    Raises:
        ArgumentTypeError: If ``net`` is not a ``ResNet``.
        ArgumentError: If it has context modulation.

    Example:
        >>> shapes, nums, assembly = resnet_chunking(ResNet(no_weights=True))
        >>> nums, shapes[1]
        ([1, 1, 9, 1, 9, 1, 9, 1], [[16, 16, 3, 3], [16], [16], [16]])
        >>> chunks = [[torch.zeros(s) for s in chunk] for chunk, num in zip(shapes, nums) for _ in range(num)]
        >>> [list(t.shape) for t in assembly(chunks)] == ResNet(no_weights=True).param_shapes
        True
    """
    if not isinstance(net, ResNet):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass a bayeshnet.mnets.ResNet.")
    first, *inner, out = _layers(net)
    per_group = len(inner) // 3
    if gcd_chunking:
        # By the number of input channels: the first layer of a group still has that of the group before.
        cuts = [0, 1, per_group + 1, 2 * per_group + 1, len(inner)]
        size = math.gcd(*(layer.shapes[0][0] for layer in (first, *inner)))
        middle = [_Group(inner[a:b], dim=0, size=size) for a, b in pairwise(cuts)]
    else:
        groups = [inner[i : i + per_group] for i in range(0, len(inner), per_group)]
        middle = [_Group(part) for group in groups for part in (group[:1], group[1:])]
    return _chunking([_Group([first]), *middle, _Group([out])])


def wrn_chunking(
    net: WRN, ignore_bn_weights: bool = True, ignore_out_weights: bool = True, gcd_chunking: bool = False
) -> Chunking:
    """Chunk a :class:`~bayeshnet.mnets.wide_resnet.WRN` by layers, as Sacramento et al. 2020 do (about).

    "Economical ensembles with hypernetworks", https://arxiv.org/abs/2007.12927, table S1. The internal hypernetworks
    (11 at most) make in this order:

    * the first layer,
    * for each of the three groups its first convolution, and its other ``2 n - 1`` convolutions,
    * the 1x1 convolution of the first, second and third group, where there is one,
    * the output layer, unless ``ignore_out_weights``.

    The two of a group are one if the numbers of input and output channels of its first convolution are equal or differ
    by a factor of two, or with ``gcd_chunking``. A chunk then has as many input channels as the greatest common divisor
    of the two numbers, and a layer is several chunks joined along its input channels. Each of these chunks has a bias,
    and a batch-norm scale and shift, if the layer has; only those of a layer's first chunk are used.

    Args:
        net: The network; only its parameter table is read.
        ignore_bn_weights: Leave scales and shifts of the batch norm out.
        ignore_out_weights: Leave weight and bias of the output layer out.
        gcd_chunking: See above.

    Returns:
        ``chunk_shapes``, ``num_per_chunk`` and ``assembly_fct``; the latter returns the tensors of ``net.param_shapes``
        without those left out, in the same order.

    Raises:
        ArgumentTypeError: If ``net`` is not a ``WRN``.
        ArgumentError: If it has context modulation.

    Example:
        >>> shapes, nums, assembly = wrn_chunking(WRN(use_bias=False, no_weights=True))
        >>> list(zip(nums, shapes))[1:4]
        [(1, [[160, 16, 3, 3]]), (7, [[160, 160, 3, 3]]), (15, [[320, 160, 3, 3]])]
        >>> sum(nums), len(assembly.pieces)
        (42, 28)
    """
    if not isinstance(net, WRN):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass a bayeshnet.mnets.WRN.")
    *layers, out = _layers(net, with_norms=not ignore_bn_weights)
    skips = [layer for layer in layers if layer.shapes[0][2:] == (1, 1)]
    first, *inner = [layer for layer in layers if layer not in skips]
    per_group = len(inner) // 3
    groups: list[_Group] = [_Group([first])]
    for i in range(0, len(inner), per_group):
        group = inner[i : i + per_group]
        after, before = group[0].shapes[0][:2]
        size = math.gcd(before, after)
        if gcd_chunking or max(before, after) in (min(before, after), 2 * min(before, after)):
            groups.append(_Group(group, dim=1, size=size))
        else:
            groups += [_Group(group[:1]), _Group(group[1:])]
    groups += [_Group([layer]) for layer in skips]
    return _chunking(groups if ignore_out_weights else [*groups, _Group([out])])


# ---------------------------------------------------------------------- layers and groups of layers


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer: its weight, then what exists of bias, batch-norm scale and shift."""

    refs: tuple[int, ...]  # in the table of the network
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Layers that one internal hypernetwork makes, whole or in parts that are ``size`` wide along ``dim``."""

    layers: Sequence[_Layer]
    dim: int = 0
    size: int | None = None

    def chunk_shapes(self) -> list[list[int]]:
        weight, *vectors = (list(shape) for shape in self.layers[0].shapes)
        if self.size is not None:
            weight[self.dim] = self.size
            vectors = [[self.size] for _ in vectors] if self.dim == 0 else vectors
        return [weight, *vectors]

    def num_chunks(self, layer: _Layer) -> int:
        return 1 if self.size is None else layer.shapes[0][self.dim] // self.size


def _layers(net: MainNetInterface, *, with_norms: bool = True) -> list[_Layer]:
    """The layers in table order, 1x1 convolutions first."""
    table = net.param_table
    if any(record.name == "cm_scale" for record in table):
        raise ArgumentError(
            "net: has context modulation, whose gains and shifts no chunk covers; pass the same network without it "
            "(use_context_mod=False), and give what is generated as weights={'internal_weights': ...} to the one with."
        )
    biases = {record.layer: i for i, record in enumerate(table) if record.name == "bias"}
    # One pair per 3x3 convolution, in the same order.
    norms = [i for i, record in enumerate(table) if record.name == "bn_scale"] if with_norms else []
    layers: list[_Layer] = []
    for i, record in enumerate(table):
        if record.name != "weight":
            continue
        refs = [i]
        if record.layer in biases:
            refs.append(biases[record.layer])
        if record.shape[2:] == (3, 3) and norms:
            refs += [norms[0], norms.pop(0) + 1]
        layers.append(_Layer(tuple(refs), tuple(table[ref].shape for ref in refs)))
    return layers


def _chunking(groups: Sequence[_Group]) -> Chunking:
    pieces: dict[int, Piece] = {}
    nums: list[int] = []
    start = 0
    for group in groups:
        before = start
        joined = any(group.num_chunks(layer) > 1 for layer in group.layers)
        for layer in group.layers:
            chunks = tuple(range(start, start + group.num_chunks(layer)))
            start += len(chunks)
            for element, (ref, shape) in enumerate(zip(layer.refs, layer.shapes, strict=True)):
                # Input channels are a matter of the weight: of the vectors, every chunk holds a whole one.
                whole = group.dim > 0 and len(shape) == 1
                pieces[ref] = Piece(chunks[:1] if whole else chunks, element, group.dim, copy=joined)
        nums.append(start - before)
    assembly = ChunkAssembly(tuple(pieces[ref] for ref in sorted(pieces)), start)
    return [group.chunk_shapes() for group in groups], nums, assembly
