"""The lists that a network of the reference's style keeps itself: what has to hold, and the table made from them.

A class of this package has one table and computes its lists. A class written for the reference's interfaces fills the
lists in its constructor, so they can disagree; what is wrong is named here, with the attribute and the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from bayeshnet.errors import UsageError
from bayeshnet.mnets.param_table import PARAM_NAMES, ParamRecord, records_from_lists

if TYPE_CHECKING:
    from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = [
    "add_tensors",
    "check_flags",
    "check_lists",
    "check_refs",
    "check_shapes",
    "first_set",
    "kept_params",
    "kept_records",
    "own_list",
    "table_from_lists",
    "wrong",
]


def first_set(net: object, *names: str) -> Any:
    """The first of these attributes that is set to something else than None."""
    return next((value for name in names if (value := getattr(net, name, None)) is not None), None)


def own_list(net: object, name: str, make: Callable[[], Any] = list) -> Any:
    """A list of the network, created where there is none yet."""
    if first_set(net, name) is None:
        setattr(net, name, make())
    return getattr(net, name)


def add_tensors(
    net: object,
    shapes: Sequence[Sequence[int]],
    names: Sequence[str],
    params: Sequence[nn.Parameter] | None,
    layer: int,
) -> None:
    """Enter tensors into all lists, as internal (``params``) or external ones (None)."""
    if getattr(net, "_records", None) is not None:
        wrong(net, "_records", "is the table of this network", "extend the table; lists beside it have no effect")
    all_shapes, meta = own_list(net, "_param_shapes"), getattr(net, "_param_shapes_meta", None)
    for i, (shape, name) in enumerate(zip(shapes, names, strict=True)):
        index = -1
        if params is not None:
            internal = own_list(net, "_internal_params", nn.ParameterList)
            index = len(internal)
            internal.append(params[i])
        else:
            if getattr(net, "_hyper_shapes_learned", None) is None:
                own_list(net, "_hyper_shapes_learned_ref")  # nothing external yet: the references are complete
            own_list(net, "_hyper_shapes_learned").append(list(shape))
            refs = getattr(net, "_hyper_shapes_learned_ref", None)
            if refs is not None:
                refs.append(len(all_shapes))
        all_shapes.append(list(shape))
        if meta is not None:
            meta.append({"name": name, "index": index, "layer": layer})


def wrong(net: object, attribute: str, problem: str, fix: str) -> NoReturn:
    """Raise the error that names an attribute, what is wrong with it and how to mend it."""
    raise UsageError(f"{type(net).__name__}.{attribute}: {problem}; {fix}.")


def check_shapes(net: object, attribute: str, shapes: Any) -> list[list[int]]:
    """The attribute as a list of lists of ints.

    Raises:
        RuntimeError: If it is None or has anything else in it.
    """
    if shapes is None:
        wrong(net, attribute, "is None", "set it in the constructor to a list with the shape of each tensor")
    fix = "list shapes, such as [[10, 5], [10]]"
    if isinstance(shapes, str | Tensor) or not hasattr(shapes, "__len__"):
        wrong(net, attribute, f"is a {type(shapes).__name__}", fix)
    for i, shape in enumerate(shapes):
        sizes: Any = shape
        if isinstance(sizes, str | Tensor) or not hasattr(sizes, "__len__") or not all(_is_int(n, 0) for n in sizes):
            wrong(net, attribute, f"entry {i} is {sizes!r}", fix)
    return [[int(n) for n in shape] for shape in shapes]


def check_refs(net: object, attribute: str, refs: Any, num: int, of: str, *, least: int = 0) -> None:
    """Refuse what is no list of different indices; -1 may occur several times where ``least`` allows it.

    Raises:
        RuntimeError: If it is something else.
    """
    if not isinstance(refs, list | tuple) or not all(_is_int(ref, least) for ref in refs):
        wrong(net, attribute, f"is {refs!r}", f"list indices into `{of}`")
    for ref in refs:
        if ref >= num:
            wrong(net, attribute, f"has the entry {ref}, but `{of}` has {num}", "list indices that exist")
        if ref >= 0 and refs.count(ref) > 1:
            wrong(net, attribute, f"has the entry {ref} twice", "list each index once")


def check_flags(net: Any, *, check_has_bias: bool) -> None:
    """Refuse flags and views for initialisation that were not set.

    Raises:
        RuntimeError: In this case, or if the numbers of weights and biases of layers differ.
    """
    for name in ("_has_fc_out", "_mask_fc_out", "_has_linear_out", *(["_has_bias"] if check_has_bias else [])):
        value = getattr(net, name, None)
        if not isinstance(value, bool):
            wrong(net, name, f"is {value!r}", "set it to True or False")
    for name in ("_layer_weight_tensors", "_layer_bias_vectors"):
        if getattr(net, name, None) is None:
            wrong(net, name, "is None", "fill a list, nn.ParameterList() if there is nothing in it")
    weights, biases = net.layer_weight_tensors, net.layer_bias_vectors
    if check_has_bias and net.has_bias and len(weights) != len(biases):
        wrong(
            net,
            "_layer_bias_vectors",
            f"has {len(biases)} entries for {len(weights)} in `_layer_weight_tensors`",
            "give each weight its bias (None for none), or set `_has_bias` to False",
        )


def check_lists(net: Any) -> Sequence[int]:
    """Refuse lists that contradict each other.

    Returns:
        The places in ``_param_shapes`` of the tensors that the network does not keep.

    Raises:
        RuntimeError: If the lists are incomplete or do not fit together.
    """
    shapes = check_shapes(net, "_param_shapes", net.param_shapes)
    internal: Any = net.internal_params
    learned, refs = net.hyper_shapes_learned, getattr(net, "_hyper_shapes_learned_ref", None)
    distilled = getattr(net, "_hyper_shapes_distilled", None)
    if internal is None and learned is None:
        wrong(
            net,
            "_internal_params",
            "and `_hyper_shapes_learned` are both None",
            "put each tensor of `_param_shapes` into the one (kept) or the other (passed to `forward`)",
        )
    kept: list[Tensor] = [] if internal is None else list(internal)
    if learned is None and distilled is None and len(kept) != len(shapes):
        wrong(
            net,
            "_internal_params",
            f"has {len(kept)} tensors for {len(shapes)} `_param_shapes`",
            "give it one for each, or set `_hyper_shapes_learned` for those that `forward` receives",
        )
    if learned is not None:
        learned = check_shapes(net, "_hyper_shapes_learned", learned)
        if refs is not None:
            check_refs(net, "_hyper_shapes_learned_ref", refs, len(shapes), "_param_shapes", least=-1)
            expected = [shapes[ref] if ref >= 0 else shape for ref, shape in zip(refs, learned, strict=False)]
            if len(refs) != len(learned) or expected != learned:
                wrong(
                    net,
                    "_hyper_shapes_learned_ref",
                    f"is {list(refs)}, the places of {expected}, but `_hyper_shapes_learned` has {learned}",
                    "list the place of each in `_param_shapes`",
                )
    meta: Any = getattr(net, "_param_shapes_meta", None)
    if meta is not None:
        _check_meta(net, shapes, meta, kept, refs if learned is not None else None)
    external = _external(net, shapes, meta)
    listed = [shapes[i] for i in external]
    if refs is None and (learned or []) != listed:
        wrong(
            net,
            "_hyper_shapes_learned",
            f"is {learned}, but those of `_param_shapes` that the network does not keep are {listed}",
            "list these in this order, or set `_hyper_shapes_learned_ref` too",
        )
    if len(shapes) - len(external) != len(kept):
        wrong(
            net,
            "_internal_params",
            f"has {len(kept)} tensors, but `_param_shapes_meta` has an index for {len(shapes) - len(external)}",
            "give each tensor that is kept its entry",
        )
    if learned is not None and refs is not None and {ref for ref in refs if ref >= 0} != set(external):
        wrong(
            net,
            "_hyper_shapes_learned_ref",
            f"is {list(refs)}, but `_param_shapes_meta` has the index -1 (not kept) at {list(external)}",
            "list these places",
        )
    return external


def _check_meta(net: Any, shapes: list[list[int]], meta: Any, internal: list[Tensor], external: Any) -> None:
    name, taken = "_param_shapes_meta", set[int]()
    if len(meta) != len(shapes):
        wrong(net, name, f"has {len(meta)} entries for {len(shapes)} `_param_shapes`", "give it one dict for each")
    num = len(internal)
    for i, entry in enumerate(meta):
        here = f"{name}[{i}]"
        if not isinstance(entry, dict) or not {"name", "index", "layer"} <= set[Any](entry):
            wrong(net, here, f"is {entry!r}", "make it a dict with the keys 'name', 'index' and 'layer'")
        if entry["name"] not in PARAM_NAMES:
            wrong(net, here, f"has the name {entry['name']!r}", f"use one of {PARAM_NAMES}")
        for key in ("index", "layer"):
            if not _is_int(entry[key], -1):
                wrong(net, here, f"has the {key} {entry[key]!r}", "use an int, -1 for none")
        index = entry["index"]
        if index >= num:
            wrong(
                net, here, f"has the index {index}, but `_internal_params` has {num} tensors", "use -1 or one of them"
            )
        if index < 0:
            continue
        if index in taken:
            wrong(net, here, f"has the index {index}, as an entry before it", "give each tensor its own, or -1")
        if external is not None and i in external:
            wrong(net, here, f"has the index {index}, but `_hyper_shapes_learned_ref` has {i} as external", "use -1")
        if list(internal[index].shape) != shapes[i]:
            wrong(
                net,
                here,
                f"refers to an internal tensor {list(internal[index].shape)} (index {index}), but "
                f"`_param_shapes[{i}]` is {shapes[i]}",
                "correct the one or the other",
            )
        taken.add(index)


def table_from_lists(net: Any) -> tuple[ParamRecord, ...]:
    """The table of a network that keeps lists.

    Raises:
        RuntimeError: If the lists are incomplete or do not fit together.
    """
    external = check_lists(net)
    shapes: list[list[int]] = [list(shape) for shape in net.param_shapes]
    unconditional = getattr(net, "_unconditional_param_shapes_ref", None)
    num_conds = getattr(net, "_num_known_conds", None) or 0
    if unconditional is None and num_conds:
        wrong(
            net,
            "_unconditional_param_shapes_ref",
            f"is None, but there are {num_conds} conditions",
            "list the places in `_param_shapes` that all conditions share",
        )
    conditional: set[int] = set()
    if unconditional is not None:
        check_refs(net, "_unconditional_param_shapes_ref", unconditional, len(shapes), "_param_shapes")
        conditional = set(range(len(shapes))) - set(unconditional)
    meta = getattr(net, "_param_shapes_meta", None)
    return records_from_lists(shapes, meta, external, conditional, num_conds)


def _external(net: Any, shapes: Sequence[Sequence[int]], meta: Sequence[dict[str, Any]] | None) -> Sequence[int]:
    """Which tensors the network does not keep."""
    learned, refs = net.hyper_shapes_learned, getattr(net, "_hyper_shapes_learned_ref", None)
    if meta is not None:
        return [i for i, entry in enumerate(meta) if entry["index"] == -1]
    external: Sequence[int] = () if learned is None else refs if refs is not None else range(len(shapes))
    if learned is not None and refs is None and len(learned) != len(shapes):
        # Without references the external tensors are all of them or cannot be told apart.
        wrong(
            net,
            "_hyper_shapes_learned",
            f"names {len(learned)} of {len(shapes)} tensors",
            "set `_hyper_shapes_learned_ref` too, to say which ones they are",
        )
    own = [list(shape) for i, shape in enumerate(shapes) if i not in external]
    found = [list(param.shape) for param in net.internal_params or ()]
    if own != found:
        wrong(
            net,
            "_internal_params",
            f"have the shapes {found}, but those of `_param_shapes` that are not external are {own}",
            "bring them into the same order, or set `_param_shapes_meta`, whose 'index' says which is which",
        )
    return external


def kept_params(net: MainNetInterface) -> list[nn.Parameter]:
    """The internal parameters in the order of the table, whatever that of ``internal_params`` is.

    Example:
        >>> from bayeshnet.mnets import MLP
        >>> [tuple(param.shape) for param in kept_params(MLP(2, 1, hidden_layers=()))]
        [(1, 2), (1,)]
    """
    internal = net.internal_params
    if internal is None:
        return []
    params: list[nn.Parameter] = list(internal)
    return [params[entry["index"]] for entry in net.param_shapes_meta if entry["index"] >= 0]


def kept_records(net: MainNetInterface) -> list[tuple[ParamRecord, nn.Parameter]]:
    """Return the records of the internal parameters, each with its parameter.

    Example:
        >>> from bayeshnet.mnets import MLP
        >>> [(record.name, tuple(param.shape)) for record, param in kept_records(MLP(2, 1, hidden_layers=()))]
        [('weight', (1, 2)), ('bias', (1,))]
    """
    return list(zip((record for record in net.param_table if record.internal), kept_params(net), strict=True))


def _is_int(value: Any, least: int) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__") and int(value) >= least
