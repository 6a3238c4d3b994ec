"""The page on saving and loading."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

PAGE = (Path(__file__).parents[2] / "docs" / "saving.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block.replace("steps=500", "steps=5"), names)
    assert sorted(os.listdir(tmp_path))[:2] == ["own.safetensors", "run.v1.5.safetensors"]
    assert names["message"].startswith("model.net.module.1 is Tanh in the file and ReLU here. ")
    assert names["prior"]["class"] == "Normal"
    # The restored posterior predicts what the one that was loaded does.
    torch.manual_seed(0)
    again = names["bayeshnet"].predict(names["other"], names["second"], names["x"], num_samples=100)
    assert torch.equal(again.mean, names["pred"].mean)
    assert names["own"].model.prior is names["wide"]
