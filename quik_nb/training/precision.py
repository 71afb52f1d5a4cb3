"""Mixed precision: the autocast dtype for a device, and the autocast context of a forward pass."""

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch


class Autocast(AbstractContextManager[None]):
    """The context of a forward pass: `torch.autocast` if there is an autocast dtype, otherwise it does nothing.

    It is reentrant, unlike a `torch.autocast` object: nested in itself, that one loses the previous state and leaves
    autocast enabled.

    Args:
        device: of the forward pass.
        precision: "fp32", "bf16", "fp16" or "auto", as the setting `precision`.

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
        """Whether losses must be scaled: small gradients underflow in fp16; bf16 has the range of fp32."""
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
    """The autocast dtype for a precision on a device; None for no autocast.

    >>> resolve_precision("bf16", torch.device("cpu"))
    torch.bfloat16
    """
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
