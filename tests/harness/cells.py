"""Cells of the tests' notebooks: files of their own, so that they are linted like any other code."""

from pathlib import Path

CELLS = Path(__file__).parents[1] / "cells"


def cell(name: str) -> str:
    """The text of a cell."""
    return (CELLS / f"{name}.py").read_text()
