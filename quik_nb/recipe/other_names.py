"""What other tools and older scripts call a setting: the names, and what their values mean here.

Names whose value is that of a setting stand with the setting (`Setting.also_called`). Here are those whose value means
something else, and those that are no setting at all.
"""

from collections.abc import Callable, Mapping
from typing import Any

NOT_SETTINGS = {
    "momentum": "it is a keyword of the optimizer: set_optimizer(optim.SGD, momentum=0.9)",
    "optimizer": "call .set_optimizer(optim.AdamW)",
    "scheduler": "call .set_scheduler(...)",
    "model": "call .add_model(Net())",
    "shuffle": "training data is shuffled; pass a DataLoader(dataset, shuffle=False) to add_data for another order",
    "collate_fn": "pass it to add_data(dataset, collate_fn=...)",
    "nodes": "ranks on several machines are started from outside; leave it out on one",
}
"""Names that are no setting here, and what to use instead."""


def _from_gpus(value: Any) -> dict[str, Any]:
    """GPUs by number; none of them is the CPU, which needs no further process."""
    if value in (0, "0") or str(value).lower() == "none":
        return {"processes": 1, "device": "cpu"}
    return {"processes": value}


def _from_switch(value: Any) -> dict[str, Any]:
    """Mixed precision as a switch: bfloat16 where the GPU computes in it."""
    return {"precision": "auto" if value else "fp32"}


TRANSLATIONS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "gpus": _from_gpus,
    "mixed_precision": _from_switch,
    "amp": _from_switch,
    "fp16": lambda value: {"precision": "fp16" if value else "fp32"},
    "bf16": lambda value: {"precision": "bf16" if value else "fp32"},
}
"""By name, what a value means as settings."""
