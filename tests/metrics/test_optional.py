from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("room", "package", "extra"), [("metrics", "torchmetrics", "metrics"), ("plotting", "matplotlib", "plot")]
)
def test_without_the_optional_package_the_import_says_what_to_install(room, package, extra):
    # A module that is None in sys.modules is one that is not installed, in a process of its own.
    program = f"import sys; sys.modules[{package!r}] = None; import bayeshnet.{room}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"ImportError: bayeshnet.{room} needs {package}" in result.stderr
    assert f"pip install 'bayeshnet[{extra}]'" in result.stderr
