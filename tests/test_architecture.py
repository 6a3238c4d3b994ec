"""The rules that keep the rooms of the package apart, read off the source."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bayeshnet"

# A room imports only rooms before it in this list. It is the table of the design, read from top to bottom.
ROOMS = (
    "deprecation",
    "errors",
    "typing",
    "checks",
    "formatting",
    "normal_density",
    "configuration",
    "layers",
    "fans",
    "mnets",
    "hnets",
    "init",
    "probabilistic",
    "entropy",
    "models",
    "sites",
    "families",
    "inducing",
    "guides",
    "training",
    "sampling",
    "evaluation",
    "distributions",
    "infer",
    "metrics",
    "plotting",
    "sklearn",
    "arviz",
    "continual",
)
# What comes in by an extra, and the rooms that may therefore import more than the package itself depends on.
DEPENDENCIES = {"bayeshnet", "numpy", "pyro", "safetensors", "torch", "tqdm", "typing_extensions"}
OPTIONAL = {
    "metrics": {"torchmetrics"},
    "plotting": {"matplotlib"},
    "sklearn": {"sklearn"},
    "arviz": {"arviz", "xarray"},
}
# Imported where it is there, and not needed: see the file.
IF_PRESENT = {"typing": {"jaxtyping"}}
STANDARD_LIBRARY = {*sys.stdlib_module_names}

GLOBAL_STATE = {
    "clear_param_store",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "set_default_device",
    "set_default_dtype",
    "set_default_tensor_type",
    "set_float32_matmul_precision",
    "set_num_interop_threads",
    "set_num_threads",
    "set_printoptions",
    "set_rng_seed",
    "use_deterministic_algorithms",
}

FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, absolute module and imported names (none for ``import module``) of every import, those in functions too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                # One dot is the package that the file is in, also for __init__.py.
                package = path.relative_to(ROOT).parent.parts
                module = ".".join([*package[: len(package) - node.level + 1], *([module] if module else [])])
            yield node.lineno, module, [alias.name for alias in node.names]


def room_of(path: Path) -> str | None:
    """The room of a file, None for the front door ``bayeshnet/__init__.py``."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def rooms_imported(path: Path) -> Iterator[tuple[int, str]]:
    for line, module, names in imports_of(path):
        parts = module.split(".")
        if parts[0] != "bayeshnet":
            continue
        if len(parts) > 1:
            yield line, parts[1]
        else:
            # `from bayeshnet import mnets` names rooms; anything else comes through the front door, which is below all.
            yield from ((line, name if name in ROOMS else "__init__") for name in names or ["__init__"])


def dotted(node: ast.expr) -> str:
    """``torch.cuda.manual_seed`` for a chain of attributes of a name, else empty."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def test_every_room_is_in_the_list():
    rooms = {room_of(path) for path in FILES} - {None}
    assert rooms <= set(ROOMS), "a new room needs a place in the order"


def offenders(find: Callable[[Path], object], paths: list[Path] = FILES) -> dict[str, object]:
    """What ``find`` finds wrong in each file, without the files where it finds nothing."""
    found = {str(path.relative_to(ROOT)): find(path) for path in paths}
    return {name: what for name, what in found.items() if what}


def test_a_room_imports_only_rooms_above_it():
    def below(path: Path) -> list[tuple[int, str]]:
        room = room_of(path)
        if room is None:
            # Whoever has none of the extras can still import the package.
            return [(line, other) for line, other in rooms_imported(path) if other in OPTIONAL]
        allowed = {*ROOMS[: ROOMS.index(room)], room}
        return [(line, other) for line, other in rooms_imported(path) if other not in allowed]

    assert not offenders(below)


def private_parts(path: Path) -> list[tuple[int, str]]:
    """Files of other rooms that are imported though their names start with an underscore."""
    found: list[tuple[int, str]] = []
    for line, module, names in imports_of(path):
        for imported in [module, *(f"{module}.{name}" for name in names)]:
            parts = imported.split(".")
            hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
            if parts[0] == "bayeshnet" and hidden and parts[1] != room_of(path):
                found.append((line, imported))
                break
    return found


def test_files_with_an_underscore_stay_in_their_room():
    assert not offenders(private_parts)


def shadowed(path: Path) -> list[str]:
    """Submodules of a package that ``import p.m as x`` does not give, since ``__init__.py`` binds their name."""
    if path.name != "__init__.py":
        return []
    package = ".".join(path.parent.relative_to(ROOT).parts)
    bound: list[str] = []
    for node in tree_of(path).body:
        if isinstance(node, ast.ImportFrom) and node.module != package:
            bound += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in bound if (path.parent / name).is_dir() or (path.parent / f"{name}.py").exists()]


def test_no_module_is_shadowed_by_a_function():
    assert not offenders(shadowed)


def test_only_dependencies_are_imported():
    def foreign(path: Path) -> list[tuple[int, str]]:
        extra = {**OPTIONAL, **IF_PRESENT}.get(room_of(path) or "", set[str]())
        allowed = DEPENDENCIES | STANDARD_LIBRARY | extra
        return [(line, module) for line, module, _ in imports_of(path) if module.split(".")[0] not in allowed]

    assert not offenders(foreign)


def test_files_are_short():
    def too_long(path: Path) -> int:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        return lines if lines > 400 else 0

    assert not offenders(too_long)


def test_most_files_are_shorter_still():
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    assert statistics.median(lengths) < 180


def test_all_that_the_front_doors_name_has_an_example():
    """Classes and functions that a package's ``__init__`` exports, old names and plain errors apart."""

    def without(path: Path) -> list[str]:
        if path.name != "__init__.py":
            return []
        module = importlib.import_module(".".join(path.relative_to(ROOT).parent.parts))
        public = [(name, vars(module)[name]) for name in module.__all__ if name in vars(module)]
        return [
            name
            for name, value in public
            if (inspect.isclass(value) or inspect.isfunction(value))
            and ">>>" not in (value.__doc__ or "")
            and not (inspect.isclass(value) and issubclass(value, Exception))
        ]

    assert not offenders(without)


def test_no_print_and_no_assert():
    def lines(path: Path) -> list[int]:
        return [
            node.lineno
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and dotted(node.func) == "print")
        ]

    assert not offenders(lines)


def test_hand_written_backward_passes_state_their_gain():
    """At the top of a ``_fused_*`` file: how much faster than the plain formula, in numbers."""

    def silent(path: Path) -> bool:
        text = ast.get_docstring(tree_of(path)) or ""
        return path.name.startswith("_fused_") and not re.search(r"\b(gain|measured)\b.*\d\.\d", text, re.I | re.S)

    assert not offenders(silent)


def test_global_state_of_torch_is_the_users():
    def written(path: Path) -> list[tuple[int, str]]:
        # A generator of one's own may be seeded: torch.Generator().manual_seed(0) is no chain of names.
        calls = [(node.lineno, dotted(node.func)) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        imported = [(line, f"{module}.{name}") for line, module, names in imports_of(path) for name in names]
        return [
            (line, name)
            for line, name in calls + imported
            if name.split(".")[0] in {"torch", "pyro", "np", "numpy", "random"} and name.split(".")[-1] in GLOBAL_STATE
        ]

    assert not offenders(written)


def test_every_module_says_what_is_public():
    def wrong(path: Path) -> list[str]:
        module = importlib.import_module(
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        )
        names = getattr(module, "__all__", None)
        if names is None:
            return ["no __all__"]
        return [name for name in names if not hasattr(module, name) or names.count(name) > 1]

    assert not offenders(wrong)


def test_benchmarks_and_examples_import_only_public_names():
    def hidden(path: Path) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for line, module, names in imports_of(path):
            parts = module.split(".")
            if parts[0] != "bayeshnet":
                continue
            if len(parts) > 2 or (len(parts) == 2 and parts[1] not in ROOMS):
                found.append((line, module))
                continue
            public = {*importlib.import_module(module).__all__, *(ROOMS if len(parts) == 1 else ())}
            found += [(line, f"{module}.{name}") for name in names if name not in public]
        return found

    assert not offenders(hidden, PROGRAMS)


def test_the_rules_see_what_they_forbid(tmp_path, monkeypatch):
    """A rule that finds nothing anywhere must be one that can find something."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "bayeshnet")
    path = tmp_path / "bayeshnet" / "layers" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..infer import fit\nfrom bayeshnet import mnets, AutoHypernet\nimport bayeshnet.hnets.base\n")
    hidden = tmp_path / "bayeshnet" / "layers" / "hidden.py"
    hidden.write_text(
        "from bayeshnet.layers._own import x\nfrom bayeshnet.mnets._other import y\nimport bayeshnet.mnets._other\n"
        "from bayeshnet.mnets import _other, z\nfrom bayeshnet import __version__\nfrom torch import _C\n"
    )
    assert private_parts(hidden) == [
        (2, "bayeshnet.mnets._other"),
        (3, "bayeshnet.mnets._other"),
        (4, "bayeshnet.mnets._other"),
    ]
    assert [room for _, room in rooms_imported(path)] == ["infer", "mnets", "__init__", "hnets"]
    package = path.parent / "__init__.py"
    package.write_text(
        "from bayeshnet.layers.bad import bad\nfrom bayeshnet.layers import hidden\nfrom torch import nn as hidden\n"
        "def other(): ...\nbad = 3\n"
    )
    assert shadowed(package) == ["bad", "hidden", "bad"]
    assert room_of(path) == "layers"
    assert room_of(tmp_path / "bayeshnet" / "__init__.py") is None
    assert dotted(ast.parse("torch.cuda.manual_seed", mode="eval").body) == "torch.cuda.manual_seed"
    assert dotted(ast.parse("torch.Generator().manual_seed", mode="eval").body) == ""
