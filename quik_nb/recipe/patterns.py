"""Patterns of the names of parameters and modules, as `freeze`, `params`, `groups` and `eval_modules` take them."""

from fnmatch import fnmatchcase


def fits(name: str, pattern: str) -> bool:
    """Whether a parameter's name fits one of the patterns, which commas join: "encoder" means all within it.

    >>> fits("encoder.0.weight", "encoder"), fits("head.bias", "encoder, *.bias"), fits("header.bias", "head")
    (True, True, False)
    """
    parts = [part.strip() for part in pattern.split(",")]
    return any(name == part or name.startswith(f"{part}.") or fnmatchcase(name, part) for part in parts)
