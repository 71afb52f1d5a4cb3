"""What a DataLoader's processes send: batches and errors of classes without a name arrive, and nothing hangs."""

import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import pytest
import torch
from harness.cells import cell
from harness.kernel import Kernel
from harness.plain import network, numbers, quiet
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from quik_nb import QuikSession, RecipeError
from quik_nb.launch.batch_pickling import batches_by_value

X, Y = numbers(60)


class Rows(Dataset[Any]):
    """Samples that are fetched; something is done with the one of number 17."""

    def __init__(self, with_17: Callable[[Any], Any] = lambda sample: sample) -> None:
        self.with_17 = with_17

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Any:
        return self.with_17((X[i], Y[i])) if i == 17 else (X[i], Y[i])


def loading(collate: Callable[[list[Any]], Any] | None = None, dataset: Any = None, workers: int = 2) -> QuikSession:
    """A session whose data comes by a DataLoader with processes of its own."""
    loader = DataLoader(dataset or Rows(), batch_size=10, num_workers=workers, collate_fn=collate)
    session = quiet(epochs=1, timeout=30).add_data(train=loader).add_model(network())
    return session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD, lr=0.01)


def stacked(rows: list[Any]) -> tuple[Tensor, Tensor]:
    """Inputs and targets as tensors."""
    x, y = zip(*rows, strict=True)
    return torch.stack(x), torch.stack(y)


CELL = cell("batch_classes")


@pytest.mark.parametrize("kind", ["named", "data"])
@pytest.mark.parametrize("how", ["processes=1", "processes=2", "processes=1, background=True"])
def test_batches_of_a_class_from_a_cell_arrive(notebook: Kernel, kind: str, how: str) -> None:
    """In this process, in ranks and in the background, a step gets the very class that the cell wrote."""
    notebook.ok(CELL)

    assert "finished" == notebook.ok(f"print(trained(kind={kind!r}, {how}))", timeout=40).text.split()[-1]


def test_batches_of_a_class_made_in_a_function_arrive(notebook: Kernel) -> None:
    """A class that has no name in its module arrives in ranks, whose loading processes know it already."""
    notebook.ok(CELL)

    assert "finished" == notebook.ok("print(trained(kind='local', processes=2))", timeout=40).text.split()[-1]


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_of_a_class_from_a_cell_come_at_once(notebook: Kernel, processes: int) -> None:
    """An exception class of the user's own, raised in a loading process, is caught by its name in the cell."""
    notebook.ok(CELL)
    result = notebook.ok(
        "try:\n"
        f"    trained({processes}, error=lambda: Broken('file 17 is broken'))\n"
        "except Broken as error:\n"
        "    print('caught', 'file 17 is broken' in str(error))",
        timeout=25,
    )

    assert "caught True" == result.text.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_with_arguments_of_their_own_come_in_words(notebook: Kernel, processes: int) -> None:
    """An exception that torch cannot make again from its words comes as a RuntimeError that holds them."""
    notebook.ok(CELL)
    result = notebook.run(f"trained({processes}, error=lambda: Picky(17, why='torn'))", timeout=25)

    assert ["RuntimeError"] == result.errors
    assert "Picky: row 17: torn" in result.traceback


def raises(error: BaseException) -> Callable[[Any], Any]:
    """Something that raises."""

    def with_17(sample: Any) -> Any:
        raise error

    return with_17


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "error", [ExceptionGroup("many", [ValueError("one"), KeyError("two")]), StopIteration("no more")]
)
def test_errors_that_torch_cannot_raise_come_in_words(error: Exception, processes: int) -> None:
    """Of an exception group torch makes a TypeError that tells nothing, and of a StopIteration the end of the epoch."""
    session = loading(dataset=Rows(raises(error)))
    with pytest.raises(RuntimeError, match=r"(?s)in DataLoader worker process.*(one.*two|no more)"):
        session.train(processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_stop_iteration_from_a_sample_is_no_end_of_the_epoch(processes: int) -> None:
    """Without loading processes, too, samples are not left out in silence."""
    session = loading(dataset=Rows(raises(StopIteration())), workers=0)
    with pytest.raises(RecipeError, match=r"raised StopIteration in Rows.__getitem__"):
        session.train(processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_cannot_be_pickled_at_all_is_refused(processes: int) -> None:
    """A lock in a batch is an error that says so, where plain PyTorch waits for the batch for ever."""
    session = loading(lambda rows: (*stacked(rows), threading.Lock()))
    with pytest.raises(RecipeError, match=r"A batch of type tuple cannot be sent.*lock.*num_workers=0"):
        session.train(processes=processes)


def test_a_local_class_arrives_in_process() -> None:
    """In this process as well, a batch whose class was made in a function is no hang."""

    class Local(NamedTuple):
        x: Tensor
        y: Tensor

    session = loading(lambda rows: Local(*stacked(rows)))
    session.set_step(lambda model, criterion, batch: criterion(model(batch.x), batch.y))

    assert "finished" == session.train().state


DEATHS = {
    "exit": ("os._exit(3)", "exited unexpectedly"),
    "crash": ("os.kill(os.getpid(), signal.SIGSEGV)", "(Segmentation fault|exited unexpectedly)"),
    "sys.exit": ("raise SystemExit(4)", "exited unexpectedly"),
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("how", DEATHS)
def test_a_loading_process_that_dies_is_told(processes: int, how: str) -> None:
    """A loading process that exits or crashes is an error within seconds, also in ranks."""
    code, words = DEATHS[how]

    def dies(sample: Any) -> Any:
        exec(f"import os, signal\n{code}")

    session = loading(dataset=Rows(dies))
    with pytest.raises(RuntimeError, match=words):
        session.train(processes=processes)


def test_nothing_is_left_behind() -> None:
    """After a training, also a failed one, queues pickle as the standard library has it."""
    before = vars(ForkingPickler)["dumps"]
    with pytest.raises(ZeroDivisionError):
        loading(dataset=Rows(lambda sample: 1 / 0), workers=0).train()
    with batches_by_value(), batches_by_value():
        assert before is not vars(ForkingPickler)["dumps"]

    assert before is vars(ForkingPickler)["dumps"]
