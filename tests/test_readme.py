from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_front_door_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    x, x_test = torch.randn(40, 10), torch.randn(7, 10)
    names = {"x": x, "y": x[:, 0], "x_test": x_test}
    monkeypatch.chdir(tmp_path)
    exec(code.replace("steps=3000", "steps=5, progress=False"), names)
    assert names["pred"].mean.shape == (7,)
    assert len(names["history"]) == 5
    assert {file.name for file in tmp_path.iterdir()} == {"run.safetensors"}


def test_the_files_it_names_exist():
    root = Path(__file__).parents[1]
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    ran = re.findall(r"`python (\S+)`", README)
    assert linked
    assert ran
    assert all((root / file).exists() for file in linked + ran)
