"""`compile=True`: the model through torch.compile, or as it is where that fails, with a word about it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Compiled:
    """A model that is compiled at its first call; a compiler that fails there is told of once, and left aside.

    Args:
        net: the model, inside its DDP wrapper where there is one.
        note: is told why the model runs uncompiled.
    """

    def __init__(self, net: nn.Module, note: Callable[[str], None]) -> None:
        self.net, self.note = net, note
        self.call: Callable[..., Any] = torch.compile(net)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if self.call is self.net:
            return self.net(*args, **keywords)
        try:
            return self.call(*args, **keywords)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            self.note(f"torch.compile failed ({str(error).splitlines()[0]}); training goes on without it.")
            self.call = self.net
            return self.net(*args, **keywords)
