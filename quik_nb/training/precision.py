"""Mixed precision: which dtype a forward pass computes in, and the context in which it does."""

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch


class Autocast(AbstractContextManager[None]):
    """The context of a forward pass: `torch.autocast` where there is a dtype, nothing otherwise.

    It can be entered again within itself. One object of torch's own that is nested in itself forgets the state of
    before, and leaves autocast switched on for good.

    Args:
        device: of the forward pass.
        precision: "fp32", "bf16", "fp16" or "auto", as the setting.

    >>> caster = Autocast(torch.device("cpu"), "bf16")
    >>> with caster, caster:
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    >>> torch.is_autocast_enabled("cpu")
    False
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device = device
        self.dtype = resolve_precision(precision, device)
        self._entered: list[Any] = []

    @property
    def needs_scaling(self) -> bool:
        """Whether losses must be scaled: fp16 on a GPU loses small gradients; bf16 has the range of fp32."""
        return self.dtype is torch.float16 and self.device.type == "cuda"

    def __enter__(self) -> None:
        if self.dtype is not None:
            context = torch.autocast(self.device.type, self.dtype)
            context.__enter__()  # type: ignore[no-untyped-call]
            self._entered.append(context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.dtype is not None:
            self._entered.pop().__exit__(kind, error, traceback)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device; None for none.

    >>> resolve_precision("bf16", torch.device("cpu"))
    torch.bfloat16
    """
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
