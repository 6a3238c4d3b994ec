"""The architecture page names files that exist, and all subpackages in the order of their imports."""

from __future__ import annotations

import re

import pytest

from tests.test_architecture import FILES, PACKAGE, ROOMS, ROOT, room_of

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`([\w/]+(?:\.py|\.md|/))`|`((?:tests|docs)/[\w/]+)`", PAGE)))
CONCEPTS = (
    "importance sampling",
    "NaN tracing",
    "low-rank family",
    "from option to family",
    "hyperfan formulas",
    "vectorisation trial",
    "importance resampling",
    "inducing placement",
    "fit",
    "predict",
    "prediction",
    "checkpoint",
    "priors",
    "likelihoods",
    "forms of data",
    "columns of frames",
    "what is observed of an output",
    "units of the data",
    "statistics of batch norm",
    "what is warned of before a fit",
    "file of a fit to go on from",
    "configuration of what is saved",
    "model",
    "a network in a larger program",
    "batched forward",
    "any module as a main network",
    "HMLP",
    "change of variables",
    "CRPS",
    "what is chosen by size",
    "size of a guide and of a step",
    "memory that is left",
    "estimators of scikit-learn",
    "data of ArviZ",
)


@pytest.mark.parametrize("path", [one or other for one, other in PATHS])
def test_paths_exist(path):
    root = ROOT if path.startswith(("bayeshnet/", "tests/", "docs/")) else PACKAGE
    assert (root / path).exists()


def test_every_subpackage_is_on_the_page_in_the_order_of_imports():
    tree = PAGE.partition("## Data flow")[0]
    named = [name.removesuffix(".py") for name in re.findall(r"^\| (.+?) \|", tree, flags=re.MULTILINE) if "`" in name]
    listed = [part.removesuffix(".py").rstrip("/") for row in named for part in re.findall(r"`([\w./]+)`", row)]
    packages = [name for name in listed if (PACKAGE / name).is_dir()]
    assert packages == sorted(packages, key=ROOMS.index)
    assert {room for path in FILES if (room := room_of(path)) and (PACKAGE / room).is_dir()} == set(packages)


def test_concepts_have_their_files():
    table = PAGE.partition("## Where is ...")[2].partition("## Where to add")[0]
    rows = dict(re.findall(r"^\| ([\w -]+) \| (`.+`) \|$", table, flags=re.MULTILINE))
    assert set(rows) == set(CONCEPTS)
