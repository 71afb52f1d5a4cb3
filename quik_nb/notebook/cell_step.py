"""Turns the source of a cell into a training step, line by line.

The first line of the cell, `%%quik_train session`, becomes the function's header, so line numbers do not change. The
result is source code rather than a syntax tree, so that tracebacks, `inspect.getsource` and `as_code` can show it.
"""

import ast
from collections.abc import Iterator

from quik_nb.errors import RecipeError

HEAD = "def training_step(model, criterion, batch):"
INDENT = "    "


def step_source(body: str) -> str:
    """The source of `training_step(model, criterion, batch)` with this body.

    Args:
        body: statements; if the last one is an expression, it is returned, otherwise the variable `loss`.

    Raises:
        RecipeError: the body does not end in an expression and does not assign to `loss`.
        SyntaxError: the body is not valid Python; line numbers include the header.

    >>> print(step_source("x, y = batch\\ncriterion(model(x), y)"))
    def training_step(model, criterion, batch):
        x, y = batch
        return criterion(model(x), y)
    """
    statements = ast.parse("\n" + body, filename="this cell").body
    lines = ["", *body.rstrip().split("\n")]

    last = statements[-1] if statements else None
    if isinstance(last, ast.Expr):
        row, column = last.lineno - 1, last.col_offset
        line = lines[row].encode()  # the parser counts bytes
        lines[row] = (line[:column] + b"return " + line[column:]).decode()
    elif any(_assigns_loss(statement) for statement in statements):
        lines.append("return loss")
    elif not isinstance(last, ast.Return):
        ending = "is empty" if last is None else f"ends in `{ast.unparse(last).splitlines()[0]}`"
        raise RecipeError(
            f"This cell is the training step of a batch, and it {ending}, which gives no loss to train with: "
            f"end it with loss = criterion(outputs, target), or with the expression only."
        )

    for number in set(range(1, len(lines))) - set(_lines_within_strings(statements)):
        if lines[number].strip():
            lines[number] = INDENT + lines[number]
    return "\n".join([HEAD, *lines[1:]])


def _assigns_loss(statement: ast.AST) -> bool:
    stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return any(node.id == "loss" for node in stored)


def _lines_within_strings(statements: list[ast.stmt]) -> Iterator[int]:
    """The lines that begin inside a multi-line string, where indentation would change its value."""
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None:
                yield from range(node.lineno, node.end_lineno)
