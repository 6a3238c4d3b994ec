"""A container of hypernetworks and plain weights that together make the weights of one network."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning
from bayeshnet.hnets.arguments import HyperInputs, broadcast_size, check_sizes, expand_rows, read_target_shapes
from bayeshnet.hnets.assembly import Assembler, AssemblyFct, trace_places
from bayeshnet.hnets.base import HyperNet
from bayeshnet.hnets.composite import CompositeHyperNet
from bayeshnet.hnets.formats import TargetLayout, format_output
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan_parts import Part, Places, PlainPart, inner_parts
from bayeshnet.mnets.own_lists import kept_records
from bayeshnet.mnets.param_table import PARAM_NAMES, ParamRecord
from bayeshnet.typing import CondId, Shapes

__all__ = ["HContainer"]

_LOGGER = logging.getLogger(__name__)
_PLAIN_STD = 0.02


class HContainer(CompositeHyperNet):
    """Puts the outputs of several hypernetworks and plain weights together.

    A plain weight is a parameter that becomes an output as it is: shared by all conditions, or one per condition. So a
    network can have its first layer generated, its batch norm shared and its last layer specific to each task, without
    knowing of it.

    Parameter table: the tables of ``hnets`` (extra keys ``celement_type="hnet"`` and ``celement_ind``; ``layer`` is -1
    in all but the first), the shared plain weights (``celement_type="uncond"``), then the plain weights of condition 0,
    1, ... (``celement_type="cond"``, ``celement_cind``). In nested containers the keys of the outer one count; those of
    the inner one stay under ``celement_inner``.

    Args:
        target_shapes: Shapes of the weights to produce.
        assembly_fct: ``assembly_fct(list_of_hnet_tensors, uncond_tensors, cond_tensors)`` receives, for one sample, a
            list of tensors per hypernetwork, the shared plain weights and those of the condition, and returns tensors
            of the ``target_shapes``. It should move entries and not change them. It is vectorised over the samples of a
            batch if it allows that (:class:`~bayeshnet.hnets.assembly.Assembler`).
        hnets: The hypernetworks; any that implement the interface, each instance once.
        uncond_param_shapes: Shapes of the shared plain weights.
        cond_param_shapes: Shapes of the plain weights that each condition has; ``forward`` then needs a ``cond_id``.
        uncond_param_names: What the shared plain weights are (``name`` in ``param_shapes_meta``); by default
            ``"weight"`` with more than one dimension, else ``"bias"``.
        cond_param_names: The same for ``cond_param_shapes``.
        verbose: Log the size of the network at INFO.
        no_uncond_weights: Do not keep the shared plain weights. (The hypernetworks have options of their own.)
        no_cond_weights: Do not keep the plain weights of the conditions.
        num_cond_embs: Number of conditions. Hypernetworks that know conditions have to know as many. Without anything
            conditional there are none.

    Raises:
        ArgumentError: If numbers or names do not fit together.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> def assembly_fct(list_of_hnet_tensors, uncond_tensors, cond_tensors):
        ...     return list_of_hnet_tensors[0] + uncond_tensors + cond_tensors
        >>> hnet = HContainer([[10, 5], [10], [2, 10]], assembly_fct, hnets=[HMLP([[10, 5]], num_cond_embs=4)],
        ...                   uncond_param_shapes=[[10]], cond_param_shapes=[[2, 10]], num_cond_embs=4)
        >>> [tuple(w.shape) for w in hnet(cond_id=[0, 3], ret_format="stacked")]
        [(2, 10, 5), (2, 10), (2, 2, 10)]
    """

    _extra_weight_keys = ("hnets",)

    def __init__(
        self,
        target_shapes: Shapes,
        assembly_fct: AssemblyFct,
        hnets: Sequence[HyperNetInterface] | None = None,
        uncond_param_shapes: Shapes | None = None,
        cond_param_shapes: Shapes | None = None,
        uncond_param_names: Sequence[str | None] | None = None,
        cond_param_names: Sequence[str | None] | None = None,
        verbose: bool = True,
        no_uncond_weights: bool = False,
        no_cond_weights: bool = False,
        num_cond_embs: int = 1,
    ) -> None:
        super().__init__()
        target_shapes = read_target_shapes(target_shapes)
        check_sizes(num_cond_embs=num_cond_embs)
        parts = _check_hnets(hnets)
        uncond = _plain_records("uncond", uncond_param_shapes, uncond_param_names, not no_uncond_weights)
        cond = _plain_records("cond", cond_param_shapes, cond_param_names, not no_cond_weights)
        if not parts and not uncond and not cond:
            raise ArgumentError(
                "hnets: is empty, as are uncond_param_shapes and cond_param_shapes; a container needs something in it."
            )
        num_conds = _common_conds(parts, num_cond_embs, has_plain=bool(cond))
        self._num_uncond, self._num_cond = len(uncond), len(cond)
        self._assemble = Assembler(assembly_fct, [tuple(shape) for shape in target_shapes])
        flat = not uncond and not cond
        self._has_fc_out = flat and all(part.has_fc_out for part in parts)
        self._has_linear_out = flat and all(part.has_linear_out for part in parts)
        uncond_sizes = {_in_size(part, "uncond_in_size") for part in parts} - {0}
        cond_sizes = {_in_size(part, "cond_in_size") for part in parts} - {0}
        if len(uncond_sizes - {None}) > 1:
            raise ArgumentError(
                f"hnets: take unconditional inputs of the sizes {sorted(map(str, uncond_sizes))}, but all receive the "
                "same; give them one size, or wrap them in an HPerturbWrapper with an input_handler that cuts it."
            )
        per_condition = [
            replace(r.with_extra(celement_cind=i), condition=i) for i in range(num_conds if cond else 0) for r in cond
        ]
        self._compose(
            parts,
            [[_outer_record(record, i) for record in part.param_table] for i, part in enumerate(parts)],
            [*uncond, *per_condition],
            target_shapes,
            num_known_conds=num_conds,
            uncond_in_size=next(iter(uncond_sizes)) if len(uncond_sizes) == 1 else None if uncond_sizes else 0,
            cond_in_size=next(iter(cond_sizes)) if len(cond_sizes) == 1 else None if cond_sizes else 0,
        )
        with torch.no_grad():
            for tensor in self._own or ():
                tensor.mul_(_PLAIN_STD)
        if verbose:
            _LOGGER.info(
                "Created HContainer: %d outputs from %d hypernetworks, %d shared and %d conditional plain tensors.",
                self.num_outputs,
                len(parts),
                len(uncond),
                len(cond),
            )

    # ------------------------------------------------------------------ arguments

    def _check_conditional_args(
        self, cond_input: Tensor | None, cond_id: CondId | None, extra: Mapping[str, Any]
    ) -> tuple[int, ...] | None:
        if self._num_cond and cond_id is None:
            raise ArgumentError(
                f"cond_id: is required (0..{self._num_known_conds - 1}); it selects the plain weights of a condition."
            )
        if self._num_cond and cond_input is not None:
            # The id selects plain weights, the input goes to the hypernetworks.
            return self._parse_cond_id(cast("CondId", cond_id))
        # Whether a condition is needed is the hypernetworks' to say: it may come in some other way (chunk embeddings).
        if cond_id is None:
            return None
        return super()._check_conditional_args(cond_input, cond_id, extra)

    def _read_extra(self, extra: Mapping[str, Any]) -> dict[str, int]:
        given: Any = extra.get("hnets")
        if given is None:
            return {}
        num = len(self._parts)
        if isinstance(given, (str, Mapping)) or not hasattr(given, "__len__") or len(given) != num:
            raise ArgumentError(
                f"weights['hnets']: is {shown(given)}; pass a list of {num} dicts (or None), one for each of `hnets`."
            )
        for i, entry in enumerate(given):
            if entry is not None and not isinstance(entry, Mapping):
                raise ArgumentTypeError(f"weights['hnets'][{i}]: is {kind_of(entry)}; pass a dict or None.")
        return {}

    # ------------------------------------------------------------------ the map

    def _generate(self, inputs: HyperInputs, weights: list[Tensor]) -> list[Tensor]:
        produced = [self._run_part(i, inputs, weights) for i in range(len(self._parts))]
        sizes = {f"hnets[{i}]": tensors[0].shape[0] for i, tensors in enumerate(produced)}
        if self._num_cond and inputs.cond_id is not None:
            sizes["cond_id"] = len(inputs.cond_id)
        batch = broadcast_size({**sizes, "forward": inputs.batch_size})
        own = self._own_weights(weights)
        uncond = [tensor.expand(batch, *tensor.shape) for tensor in own[: self._num_uncond]]
        cond: list[Tensor] = []
        if self._num_cond and inputs.cond_id is not None:
            start, num = self._num_uncond, self._num_cond
            sets = [own[start + i * num : start + (i + 1) * num] for i in inputs.cond_id]
            cond = [torch.stack(tensors) for tensors in zip(*sets, strict=True)] if len(sets) > 1 else []
            cond = cond or [tensor.unsqueeze(0) for tensor in sets[0]]
        return self._assemble(produced, uncond, cond)

    def _run_part(self, i: int, inputs: HyperInputs, weights: list[Tensor]) -> list[Tensor]:
        """The tensors ``[B or 1, *shape]`` of a hypernetwork."""
        part = self.internal_hnets[i]
        takes_noise = _in_size(part, "uncond_in_size") != 0
        takes_cond_input = _in_size(part, "cond_in_size") != 0
        cond_input = inputs.cond_input if takes_cond_input else None
        ids = inputs.cond_id if cond_input is None and part.num_known_conds else None
        arguments: dict[str, Any] = {
            "uncond_input": inputs.uncond_input if takes_noise else None,
            "cond_input": cond_input,
            "cond_id": None if ids is None else ids[0] if len(ids) == 1 else list(ids),
            "weights": self._weights_of_part(i, inputs, weights),
            "condition": inputs.condition,
        }
        if isinstance(part, HyperNet):
            return part(**arguments, ret_format="stacked")
        # Others know the formats of the reference API only, and need not broadcast a single row themselves.
        given = {key: arguments[key] for key in ("uncond_input", "cond_input") if arguments[key] is not None}
        rows = max([len(ids or ()), *(tensor.shape[0] for tensor in given.values())])
        arguments |= {key: expand_rows(tensor, rows) for key, tensor in given.items()}
        flat = cast("nn.Module", part)(**arguments, ret_format="flattened")
        return cast("list[Tensor]", format_output(flat, TargetLayout.of(part.target_shapes), "stacked"))

    def _weights_of_part(self, i: int, inputs: HyperInputs, weights: list[Tensor]) -> dict[str, Any] | None:
        """The argument ``weights`` of a hypernetwork; None if it has all of its own."""
        found: dict[str, Any] = {}
        given = inputs.weights
        if given is not None and not (isinstance(given, Mapping) and set(given) == {"hnets"}):
            where = self._slices[i]
            own, part = weights[where], self.internal_hnets[i]
            # A part that keeps lists itself may have an order of its own.
            for key, refs in (
                ("uncond_weights", part.unconditional_param_shapes_ref),
                ("cond_weights", part.conditional_param_shapes_ref),
            ):
                tensors = [own[ref] for ref in refs]
                # Conditional weights that nobody picks from may be missing.
                if tensors and not any(tensor is None for tensor in tensors):  # pyright: ignore[reportUnnecessaryComparison]
                    found[key] = tensors
        return {**found, **((inputs.extra.get("hnets") or [{}] * (i + 1))[i] or {})} or None

    # ------------------------------------------------------------------ initialisation

    def init_parts(self, places: Sequence[Places]) -> list[Part]:
        """See :meth:`bayeshnet.hnets.hyperfan_parts.Initialisable.init_parts`."""
        sizes = [len(part.target_shapes) for part in self.internal_hnets]
        kinds = [self._plain_tensors(kind) for kind in ("uncond", "cond")]

        def assemble(tensors: Sequence[Tensor]) -> list[Tensor]:
            rest = iter(tensors)
            made = [[next(rest) for _ in range(size)] for size in sizes]
            return self._assemble(made, *[[next(rest) for _ in plain] for plain in kinds])

        shapes = [shape for part in self.internal_hnets for shape in part.target_shapes]
        shapes += [list(record.shape) for plain in kinds for record, _ in plain]
        device = next((param.device for _, param in kept_records(self)), None)
        found = iter(trace_places(assemble, shapes, places, device))
        parts: list[Part] = []
        for hnet, size in zip(self.internal_hnets, sizes, strict=True):
            parts += inner_parts(hnet, [next(found) for _ in range(size)])
        return parts + [PlainPart(record, params, next(found)) for plain in kinds for record, params in plain]

    def _plain_tensors(self, kind: str) -> list[tuple[ParamRecord, tuple[Tensor, ...]]]:
        """The plain weights of one condition (any), each with the parameters that it is in all conditions."""
        records = [record for record in self.param_table if record.extra.get("celement_type") == kind]
        params = [param for record, param in kept_records(self) if record.extra.get("celement_type") == kind]
        num = len(records) // max(1, len({record.extra.get("celement_cind") for record in records}))
        return [(record, tuple(params[i::num])) for i, record in enumerate(records[:num])]

    # ------------------------------------------------------------------ interface

    @property
    def internal_hnets(self) -> list[HyperNetInterface]:
        """The hypernetworks inside; empty if there are none."""
        return cast("list[HyperNetInterface]", list(self._parts))

    @property
    def assembly_fct(self) -> AssemblyFct:
        """The function that puts the tensors together."""
        return self._assemble.fct


def _in_size(part: HyperNetInterface, name: str) -> int | None:
    """Size of an input, None where the hypernetwork does not tell."""
    return getattr(part, name, None)


def _check_hnets(hnets: Sequence[HyperNetInterface] | None) -> list[HyperNetInterface]:
    if isinstance(hnets, HyperNetInterface):
        raise ArgumentTypeError("hnets: is one hypernetwork; pass a list, [hnet].")
    if hnets is not None and not hasattr(hnets, "__iter__"):
        raise ArgumentTypeError(f"hnets: is {kind_of(hnets)}; pass a list of hypernetworks.")
    parts = list(hnets or ())
    for i, part in enumerate(parts):
        if not isinstance(part, HyperNetInterface) or not isinstance(part, nn.Module):
            raise ArgumentTypeError(
                f"hnets[{i}]: is {kind_of(part)}; pass an nn.Module that implements HyperNetInterface."
            )
    # A wrapper or container around an instance has the parameters of that instance.
    held = [id(x) for part in parts for x in [part, *(part.internal_params or ())]]
    if len(set(held)) < len(held):
        raise ArgumentError(
            "hnets: an instance stands in it twice, so that its parameters would be counted twice; make a second "
            "instance, or one with the targets of both."
        )
    return parts


def _common_conds(parts: Sequence[HyperNetInterface], num_cond_embs: int, *, has_plain: bool) -> int:
    """The number of conditions, that of all parts that know any."""
    known = {part.num_known_conds for part in parts} - {0}
    if has_plain:
        known |= {num_cond_embs}
    if len(known) > 1:
        raise ArgumentError(
            f"num_cond_embs: is {num_cond_embs}, and hnets know {[part.num_known_conds for part in parts]} conditions; "
            "all have to know the same number (or none)."
        )
    if not known and num_cond_embs > 1:
        warnings.warn(
            f"num_cond_embs: is {num_cond_embs}, but nothing in the container is conditional, so there are no "
            "conditions; leave it out.",
            BayeshnetWarning,
            stacklevel=3,
        )
    return known.pop() if known else 0


def _plain_records(
    kind: str, shapes: Shapes | None, names: Sequence[str | None] | None, internal: bool
) -> list[ParamRecord]:
    """Records of plain weights, of one condition if they are conditional."""
    if not shapes:
        if names:
            raise ArgumentError(
                f"{kind}_param_names: is {list(names)} without {kind}_param_shapes; pass both or neither."
            )
        return []
    read = read_target_shapes(shapes, f"{kind}_param_shapes")
    if isinstance(names, str) or not (names is None or hasattr(names, "__iter__")):
        raise ArgumentTypeError(f"{kind}_param_names: is {shown(names)}; pass a list of names.")
    names = ["weight" if len(shape) > 1 else "bias" for shape in read] if names is None else list(names)
    if len(names) != len(read):
        raise ArgumentError(
            f"{kind}_param_names: has {len(names)} entries; pass one for each of the {len(read)} shapes."
        )
    for name in names:
        if name not in PARAM_NAMES:
            raise ArgumentError(f"{kind}_param_names: has the entry {name!r}; pass names from {PARAM_NAMES}.")
    return [
        ParamRecord(tuple(shape), name, -1, kind == "cond", internal, {"celement_type": kind})
        for shape, name in zip(read, names, strict=True)
    ]


def _outer_record(record: ParamRecord, i: int) -> ParamRecord:
    """The record of a parameter of ``hnets[i]`` in the container's table."""
    inner = {key: value for key, value in record.extra.items() if key.startswith("celement_")}
    extra = {key: value for key, value in record.extra.items() if key not in inner}
    extra |= {"celement_type": "hnet", "celement_ind": i}
    if inner:
        extra["celement_inner"] = inner
    return replace(record, layer=record.layer if i == 0 else -1, extra=extra)
