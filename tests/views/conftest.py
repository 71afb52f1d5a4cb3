"""Small histories, a clock that is moved by hand, and a page that remembers what was published on it."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from quik_nb.events import EpochEnd, Event, Row, RunEnd, RunStart, StepEnd
from quik_nb.history import History

MakeHistory = Callable[..., History]


def row(epoch: int, **changes: Any) -> Row:
    """A row whose losses fall with the epoch; the lowest valid_loss is that of epoch 5."""
    values: dict[str, Any] = {
        "train_loss": 2.0 / (epoch + 1),
        "valid_loss": 1.0 / (epoch + 1) if epoch <= 5 else 1.0 + epoch / 100,
        "time": 61.0,
        "lr": 1e-3,
        "metrics": {"accuracy": 1 - 1 / (epoch + 2)},
    }
    return Row(epoch=epoch, **(values | changes))


def run_events(epochs: int) -> list[Event]:
    """A whole run: two steps and a row for each epoch."""
    columns = ("train_loss", "valid_loss", "accuracy")
    events: list[Event] = [RunStart(0, epochs, 2, "on the CPU: this machine has no GPU", columns=columns)]
    for epoch in range(epochs):
        events += [StepEnd(epoch, step, 2, 1.0, 10.0) for step in (1, 2)]
        events.append(EpochEnd(row(epoch)))
    return [*events, RunEnd("finished")]


class Clock:
    """Seconds that pass when told to, and a little whenever it is read: so drawing has a cost."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now = 0.0
        self._cost = cost

    def wall(self) -> float:
        self.now += self._cost
        return self.now

    work = wall


class Page:
    """Takes the place of the notebook: a list of (bundle, display id, update), and what stands there now."""

    def __init__(self) -> None:
        self.published: list[tuple[Mapping[str, Any], str, bool]] = []

    def __call__(self, bundle: Mapping[str, Any], display_id: str, update: bool) -> None:
        self.published.append((bundle, display_id, update))

    @property
    def outputs(self) -> list[Mapping[str, Any]]:
        """The bundles that stand on the page, in the order in which they were opened."""
        now: dict[str, Mapping[str, Any]] = {}
        for bundle, display_id, update in self.published:
            assert update == (display_id in now)
            now[display_id] = bundle
        return list(now.values())

    @property
    def last(self) -> Mapping[str, Any]:
        """The bundle that a page shows which draws no widgets."""
        return self.outputs[0]


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """`row(epoch, **changes)`."""
    return row


@pytest.fixture
def make_history() -> MakeHistory:
    """A history of that many epochs, further rows after them."""
    return lambda epochs, *further: History([*(row(epoch) for epoch in range(epochs)), *further])


@pytest.fixture
def make_events() -> Callable[[int], list[Event]]:
    """`run_events(epochs)`."""
    return run_events


@pytest.fixture
def page() -> Page:
    """A page with nothing on it."""
    return Page()


@pytest.fixture
def make_clock() -> type[Clock]:
    """`Clock(cost)`: `cost` seconds pass with every look at it."""
    return Clock
