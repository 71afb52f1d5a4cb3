"""Which optimizers a loop of the user's own stepped: what is not trained, or not kept, is told.

What is not here: the optimizers of the session, which its updater steps (`updater.py`).
"""

from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepWatch:
    """Notes the steps of all optimizers in this thread while it is entered.

    Args:
        model: that is to be trained.
        known: gives the optimizers that are kept: those of the session, and those that were registered.
    """

    def __init__(self, model: nn.Module, known: Callable[[], Iterable[Any]]) -> None:
        self.known = known
        self.steps = 0
        """since the epoch began, of optimizers that train the model or are registered"""
        self.elsewhere = False
        """whether an optimizer was stepped that trains nothing of the model"""
        self.stepped: list[Any] = []
        """all optimizers that were stepped and train the model or are registered, each once"""
        self.unkept: Any = None
        """the first optimizer over the model's parameters that was not registered"""
        self._thread = get_ident()
        self._ours = {id(parameter) for parameter in model.parameters()}
        self._handle: Any = None

    def __enter__(self) -> "StepWatch":
        self._handle = register_optimizer_step_post_hook(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _note(self, optimizer: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if get_ident() != self._thread:
            return
        is_known = any(optimizer is each for each in self.known())
        if is_known or self._trains_model(optimizer):
            self.steps += 1
            if not any(optimizer is each for each in self.stepped):
                self.stepped.append(optimizer)
            if not is_known and self.unkept is None:
                self.unkept = optimizer
        else:
            self.elsewhere = True

    def _trains_model(self, optimizer: Any) -> bool:
        parameters: Iterator[nn.Parameter] = (p for group in optimizer.param_groups for p in group["params"])
        return any(id(parameter) in self._ours for parameter in parameters)

    def end_epoch(self) -> Iterator[tuple[str, str]]:
        """What the user should know of the steps of this epoch, causes and texts; and begin the next."""
        steps, self.steps = self.steps, 0
        if not steps and self.elsewhere:
            yield (
                "optimizer of another model",
                "The loop steps an optimizer whose parameters are none of session.model, so the model stays as it is: "
                "make it of session.model.parameters(), as the loop of a worker has a copy of the notebook's model.",
            )
        elif not steps:
            yield (
                "no optimizer step",
                "No optimizer made a step in an epoch, so the model stays as it is: call session.backward(loss) for "
                "each batch, or loss.backward() and optimizer.step().",
            )
        if self.unkept is not None:
            name = type(self.unkept).__name__
            yield (
                "optimizer is not kept",
                f"The loop made an optimizer of its own, {name}, which starts anew at each call and after a stop, so "
                f"that 1 + 2 epochs are not 3: use optimizer = session.register('main', {name}(...)).",
            )
