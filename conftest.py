"""Fixtures of the tests and of the examples in the docstrings: one thread, a fixed seed, no shared state.

It is here and not in ``tests/`` because the docstrings of the package run as tests too and need the same footing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyro
import pytest
import torch

# Two workers of pytest-xdist with two threads each would fight for two cores.
torch.set_num_threads(1)

# Before the first import of the package, since it decorates what is imported (`make test-shapes`).
if os.environ.get("BAYESHNET_CHECK_SHAPES") == "1":
    from tests.shapes import install

    install()

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the command line choose where and in which precision the tests run."""
    parser.addoption("--device", default="cpu", help="device of the tests that take the fixture `device`, e.g. cuda")
    parser.addoption(
        "--dtype",
        default="float32",
        choices=sorted(DTYPES),
        help="precision of the tests that take the fixture `dtype`",
    )


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device given by ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The precision given by ``--dtype``."""
    return DTYPES[request.config.getoption("--dtype")]


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Seed every generator, empty Pyro's global parameter store, and restore torch's default precision."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
