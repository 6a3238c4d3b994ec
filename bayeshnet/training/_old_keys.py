"""Checkpoints of earlier versions: from the keys and values of a state dict then to those of now."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["renamed_class", "renamed_state"]

_CLASSES = {
    "HypernetBody": "Hypernet",
    "LowRankBody": "LowRank",
    "MeanFieldBody": "MeanField",
    "MixtureBody": "Mixture",
    "UnitBody": "BlockGaussian",
    "UnitHypernetBody": "Hypernet",
    "UnitNoise": "BlockNoise",
}
"""Modules whose class has another name now."""

_KEYS: dict[str, dict[str, str]] = {
    "AutoHypernet": {"body": "family", "candidate_power": "tempering_exponent"},
}
"""By class, as it is called now: old and new names of its submodules, parameters and buffers."""


def renamed_class(name: str) -> str:
    """Return the name that a class has now.

    Example:
        >>> renamed_class("AutoHypernet"), renamed_class("LowRankBody")
        ('AutoHypernet', 'LowRank')
    """
    return _CLASSES.get(name, name)


def renamed_state(module: nn.Module, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of an earlier version the keys of now, and the values where these have changed.

    A key is renamed if it belongs to a class with other names now, in the module itself or anywhere in it, and only
    where the module has the new name and not the old one. A part with a method ``adopt_state(state, prefix)``, such as
    :class:`~bayeshnet.hnets.HMLP`, converts what an earlier version had saved of it.

    Args:
        module: The module to be filled.
        saved: Its tensors by the keys that they were saved with.

    Returns:
        The same tensors by the keys of now, as far as they are known.

    Example:
        >>> class AutoHypernet(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.family = nn.Linear(2, 1, bias=False)
        >>> list(renamed_state(AutoHypernet(), {"body.weight": Tensor([[1.0, 2.0]])}))
        ['family.weight']
        >>> list(renamed_state(nn.Sequential(AutoHypernet()), {"0.body.weight": Tensor([[1.0, 2.0]])}))
        ['0.family.weight']
    """
    found = dict(saved)
    own = module.state_dict().keys()
    for path, part in module.named_modules():
        names = {old: new for kind in type(part).__mro__ for old, new in _KEYS.get(kind.__name__, {}).items()}
        for old, new in names.items():
            before, after = (f"{path}.{name}" if path else name for name in (old, new))
            for key in [key for key in found if key == before or key.startswith(f"{before}.")]:
                now = after + key.removeprefix(before)
                if key not in own and now in own:
                    found[now] = found.pop(key)
    for path, part in module.named_modules():
        adopt = getattr(part, "adopt_state", None)
        if adopt is not None:
            adopt(found, f"{path}." if path else "")
    return found
