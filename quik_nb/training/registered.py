"""Optimizers and other objects that a loop of the user's own made and handed to the session, to be kept for it.

What is not here: those that the session makes itself (`updater.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from quik_nb.errors import RecipeError


class Registered:
    """Objects with a state, by name: restored when they are registered, saved with every row.

    Args:
        saved: their states after an earlier call, as `state` gave them.
    """

    def __init__(self, saved: Mapping[str, Any]) -> None:
        self._saved = saved
        self._objects: dict[str, Any] = {}
        self._made_with: dict[str, Any] = {}
        """hyperparameters of optimizers as the loop made them, before the state of an earlier call was put back"""

    def add(self, name: str, thing: Any) -> None:
        """Restore an object from its state of an earlier call, and save it from now on.

        A rate or another keyword that the loop gives otherwise than before is the one that counts.

        Args:
            name: a word, the same in each call.
            thing: an object with `state_dict` and `load_state_dict`.

        Raises:
            RecipeError: the name is taken or no word; the object has no state; or that of before does not fit it.
        """
        self._check(name, thing)
        self._objects[name] = thing
        made_with = hyperparameters(thing)
        self._made_with[name] = made_with
        if name not in self._saved:
            return

        saved = self._saved[name]
        try:
            thing.load_state_dict(saved["state"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise RecipeError(
                f"register({name!r}): the state of the {type(thing).__name__} of an earlier call does not fit this one "
                f"({error}): use the same class over the same parameters, or another name to start anew."
            ) from error
        for group, before, now in zip(getattr(thing, "param_groups", ()), saved["made_with"], made_with, strict=True):
            group.update({key: value for key, value in now.items() if before.get(key) != value})

    def _check(self, name: str, thing: Any) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise RecipeError(f"register({name!r}, ...): the name becomes a column, so pass a word, 'generator'.")
        if name in self._objects:
            raise RecipeError(
                f"register({name!r}, ...): this name was registered already in this loop, and each state has one: "
                f"register before the epochs begin, and use another name for another object."
            )
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise RecipeError(
                f"register({name!r}, ...): a {type(thing).__name__} has no state_dict and load_state_dict, so it "
                f"cannot be saved and resumed: pass an optimizer, a scheduler, a module, or give its class these two "
                f"methods."
            )

    def __contains__(self, name: object) -> bool:
        return name in self._objects

    def __getitem__(self, name: str) -> Any:
        return self._objects[name]

    @property
    def optimizers(self) -> dict[str, Any]:
        """Those that are optimizers."""
        return {name: thing for name, thing in self._objects.items() if hasattr(thing, "param_groups")}

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that registered optimizers train."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                yield from group["params"]

    def state(self) -> dict[str, Any]:
        """For the next call; of objects that this one did not register, as they were."""
        live = {
            name: {"state": thing.state_dict(), "made_with": self._made_with[name]}
            for name, thing in self._objects.items()
        }
        return {**self._saved, **live}


def hyperparameters(thing: Any) -> list[dict[str, Any]]:
    """The keywords of an optimizer's groups; nothing for another object."""
    groups = getattr(thing, "param_groups", ())
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]
