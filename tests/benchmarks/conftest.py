"""Benchmarks as modules: their files import each other as scripts do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def parts(request):
    """The modules that the test file's ``NAMES`` lists, by name without underscore."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return {name.lstrip("_"): importlib.import_module(name) for name in request.module.NAMES}
    finally:
        sys.path.remove(str(BENCHMARKS))
