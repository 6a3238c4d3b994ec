"""The page on Lightning: its code runs, and learns what ``fit`` learns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import bayeshnet
from bayeshnet import fit, predict

PAGE = Path(__file__).parents[2] / "docs" / "lightning.md"
QUIET = {
    "logger": False,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "inference_mode": False,
}
pl = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # Of Lightning's own calls.
    pytest.mark.filterwarnings("ignore:.*treespec.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's code has defined, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("lightning")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
            exec(block, names)
    return names, folder


class Numbered(Trace_ELBO):
    """Starts each evaluation from a seed of its own, so that two loops draw the same."""

    count = 0

    def _get_traces(self, model, guide, args, kwargs) -> Iterator:
        pyro.set_rng_seed(1000 + self.count)
        self.count += 1
        return super()._get_traces(model, guide, args, kwargs)


def test_the_page_learns_the_curve(page):
    names, folder = page
    # The noise has a standard deviation of .2: 0.5 log(2 pi e .04) = -0.19 nats; a constant would have about 1.1.
    assert names["val_nll"] < 0.2
    assert names["trainer"].global_step == 30 * 4
    assert (folder / "checkpoints" / "best.ckpt").exists()


def test_files_of_both_kinds_have_what_was_learned(page):
    names, _ = page
    x = torch.linspace(-2.0, 2.0, 20)[:, None]
    saved = torch.load(names["best"].best_model_path, weights_only=True)["state_dict"]
    again = names["again"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, saved[name]), name
    posterior = names["posterior"]
    found = [
        predict(model, guide, x, 50, generator=torch.Generator().manual_seed(0)).draws
        for model, guide in ((names["model"], names["guide"]), (posterior.model, posterior.guide))
    ]
    assert torch.equal(*found)


def seeded(guide):
    """The guide, whose inducing points are placed with random numbers that do not depend on what was drawn before."""
    begin = guide.begin_fit

    def begin_fit(model, data):
        pyro.set_rng_seed(7)
        begin(model, data)

    guide.begin_fit = begin_fit
    return guide


def test_it_learns_what_fit_learns(page):
    names, _ = page
    options = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}

    class InOrder(names["Waves"]):  # pyright: ignore[reportUntypedBaseClass] - defined on the page
        """Whoever looks at a shuffling loader before training changes its order; this one has none."""

        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.train, batch_size=50)

    data = InOrder()
    data.setup("fit")
    model, guide = names["built"]()
    seeded(guide)
    trainer = pl.Trainer(max_epochs=5, gradient_clip_val=guide.clip_norm, num_sanity_val_steps=0, **QUIET)
    trainer.fit(names["BayesianModule"](model, guide, Numbered(**options)), data)
    other_model, other = names["built"]()
    seeded(other)
    start = torch.cat([p.detach().flatten() for p in other.parameters()])
    history = fit(
        other_model,
        other,
        data.train_dataloader(),
        epochs=5,
        lr_schedule=lambda step: 1.0,
        loss=Numbered(**options),
        progress=False,
    )
    assert len(history) == trainer.global_step == 20
    learned, expected = (
        torch.cat([p.detach().flatten() for part in pair for p in part.parameters()])
        for pair in ((model, guide), (other_model, other))
    )
    moved = (torch.cat([p.detach().flatten() for p in other.parameters()]) - start).norm()
    assert float(moved) > 0.1
    torch.testing.assert_close(learned, expected, atol=1e-4, rtol=1e-4)


def test_hooks_are_called_and_cancelled(page):
    names, _ = page
    model, guide = names["built"]()

    class Failing(names["BayesianModule"]):  # pyright: ignore[reportUntypedBaseClass] - defined on the page
        def training_step(self, batch, batch_idx):
            assert self.guide._decay is not None
            raise bayeshnet.errors.UsageError("on purpose")

    with pytest.raises(bayeshnet.errors.UsageError, match="on purpose"):
        pl.Trainer(max_epochs=1, num_sanity_val_steps=0, **QUIET).fit(Failing(model, guide), names["Waves"]())
    guide.cancel_fit()
    assert guide._decay is None
    assert names["guide"]._decay is None
