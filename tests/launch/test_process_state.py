"""What a training in workers has of the notebook, and what of it cannot come back."""

import logging
from typing import Any

import pytest
import torch
from harness.plain import network, regression
from torch import nn

from quik_nb import QuikSession, QuikWarning

seen: list[float] = []


class Counting(nn.Module):
    """A model that counts its forwards in a buffer that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.forwards += 1  # type: ignore[assignment,operator]
        return self.net(x)  # type: ignore[no-any-return]


def noting(model: Any, criterion: Any, batch: Any) -> Any:
    """A step that logs each of its training losses, and appends it to a list of the notebook."""
    loss = criterion(model(batch[0]), batch[1])
    if model.training:
        logging.getLogger("noting").info("loss %.3f", loss.item())
    seen.append(loss.item())
    return loss


def test_workers_and_the_notebook(caplog: pytest.LogCaptureFixture) -> None:
    """Records of rank 0 are handled in the notebook, its lists are not changed and that is told, buffers come home."""
    caplog.set_level(logging.INFO, logger="noting")
    session = regression(Counting(), epochs=1, batch_size=50).set_step(noting)
    session.on("epoch_end", lambda event: seen.clear())
    with pytest.warns(QuikWarning) as told:
        session.train(processes=2)

    # of three training steps
    assert ["noting"] * 3 == [record.name for record in caplog.records]
    assert [] == seen
    texts = [str(warning.message).split(".")[0] for warning in told]
    assert ["seen is used by the step and by a callback", "seen was changed in a worker"] == [
        text.split(", which")[0] for text in texts
    ]
    assert 3 == session.model.forwards.item()  # type: ignore[union-attr,operator]


def test_buffers_that_are_not_saved_go_on_after_resume(tmp_path: Any) -> None:
    """A run that is picked up has them as they were, too."""
    session = regression(Counting(), epochs=1, save=True, base_dir=tmp_path)
    session.train()

    assert 7 == QuikSession.resume(session.folder).model.forwards.item()  # type: ignore[union-attr,operator]
