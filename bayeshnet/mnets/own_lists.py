"""The lists that a network of the reference's style keeps itself: what has to hold, and the table made from them.

A class of this package has one table and computes its lists. A class written for the reference's interfaces fills the
lists in its constructor, so they can disagree; what is wrong is named here, with the attribute and the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from bayeshnet.checks import kind_of
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
    """Return the first of these attributes that is not None; None if there is none.

    Example:
        >>> first_set(nn.Linear(3, 1, bias=False), "bias", "in_features")
        3
    """
    return next((value for name in names if (value := getattr(net, name, None)) is not None), None)


def own_list(net: object, name: str, make: Callable[[], Any] = list) -> Any:
    """Return a list of the network; make an empty one where there is none yet.

    Example:
        >>> net = nn.Module()
        >>> own_list(net, "_param_shapes").append([2, 3])
        >>> net._param_shapes
        [[2, 3]]
    """
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
    """Enter tensors in all lists of a network, as internal ones (``params``) or external ones (None).

    Example:
        >>> net = nn.Module()
        >>> add_tensors(net, [[2, 3]], ["weight"], None, 1)
        >>> net._param_shapes, net._hyper_shapes_learned
        ([[2, 3]], [[2, 3]])
    """
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
    """Raise the error that names an attribute, what is wrong with it and how to mend it.

    Example:
        >>> wrong(nn.Module(), "_has_bias", "is None", "set it to True or False")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.UsageError: Module._has_bias: is None; set it to True or False.
    """
    raise UsageError(f"{type(net).__name__}.{attribute}: {problem}; {fix}.")


def check_shapes(net: object, attribute: str, shapes: Any) -> list[list[int]]:
    """Return the attribute as a list of lists of ints.

    Raises:
        UsageError: If it is None or has anything else in it.

    Example:
        >>> check_shapes(nn.Module(), "_param_shapes", [(2, 3), [2]])
        [[2, 3], [2]]
    """
    if shapes is None:
        wrong(net, attribute, "is None", "set it in the constructor to a list with the shape of each tensor")
    fix = "list shapes, such as [[10, 5], [10]]"
    if isinstance(shapes, str | Tensor) or not hasattr(shapes, "__len__"):
        wrong(net, attribute, f"is {kind_of(shapes)}", fix)
    for i, shape in enumerate(shapes):
        sizes: Any = shape
        if isinstance(sizes, str | Tensor) or not hasattr(sizes, "__len__") or not all(_is_int(n, 0) for n in sizes):
            wrong(net, attribute, f"entry {i} is {sizes!r}", fix)
    return [[int(n) for n in shape] for shape in shapes]


def check_refs(net: object, attribute: str, refs: Any, num: int, of: str, *, least: int = 0) -> None:
    """Raise unless ``refs`` are different indices; -1 may occur several times where ``least`` allows it.

    Raises:
        UsageError: If it is something else.

    Example:
        >>> check_refs(nn.Module(), "_hyper_shapes_learned_ref", [0, 2], 3, "_param_shapes")
    """
    if not isinstance(refs, list | tuple) or not all(_is_int(ref, least) for ref in refs):
        wrong(net, attribute, f"is {refs!r}", f"list indices into `{of}`")
    for ref in refs:
        if ref >= num:
            wrong(net, attribute, f"has the entry {ref}, but `{of}` has {num}", "list indices that exist")
        if ref >= 0 and refs.count(ref) > 1:
            wrong(net, attribute, f"has the entry {ref} twice", "list each index once")


def check_flags(net: Any, *, check_has_bias: bool) -> None:
    """Raise unless the flags and the views for initialisation are set.

    Raises:
        UsageError: In this case, or if the numbers of weights and biases of layers differ.

    Example:
        >>> from bayeshnet.mnets import MLP
        >>> net = MLP(3, 1, (4,), verbose=False)
        >>> net._layer_weight_tensors, net._layer_bias_vectors = net.layer_weight_tensors, net.layer_bias_vectors
        >>> check_flags(net, check_has_bias=True)
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
    """Raise unless the lists of a network fit together.

    Returns:
        The places in ``_param_shapes`` of the tensors that the network does not keep.

    Raises:
        UsageError: If the lists are incomplete or do not fit together.

    Example:
        >>> from types import SimpleNamespace
        >>> net = SimpleNamespace(param_shapes=[[2]], param_shapes_meta=None, internal_params=None,
        ...     hyper_shapes_learned=[[2]], _hyper_shapes_learned_ref=[0], _param_shapes_meta=None)
        >>> list(check_lists(net))
        [0]
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
    """Return the table of a network that keeps lists.

    Raises:
        UsageError: If the lists are incomplete or do not fit together.

    Example:
        >>> from types import SimpleNamespace
        >>> net = SimpleNamespace(param_shapes=[[2]], param_shapes_meta=None, internal_params=None,
        ...     hyper_shapes_learned=[[2]], _hyper_shapes_learned_ref=[0], _param_shapes_meta=None)
        >>> [record.shape for record in table_from_lists(net)]
        [(2,)]
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
