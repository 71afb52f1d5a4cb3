"""Partial evaluation of a Python program: conditions with a known answer are decided, and values are substituted.

The template is plain Python that runs as it is; no markup is needed, since its `if` statements are the switches.

What is not here: any knowledge of what the template does.
"""

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

FOR_TOOLS = re.compile(r"  # (noqa|type: ignore)\b.*|^# -{9,}.*", re.MULTILINE)
"""Comments for linters, and section headings: removed."""

BUILTINS = {"__builtins__": {"isinstance": isinstance, "hasattr": hasattr, "tuple": tuple, "dict": dict}}
"""What a condition may use besides the facts."""


@dataclass(frozen=True)
class Template:
    """A program and the values known in advance.

    >>> text = "if LOUD:\\n    print(NAME, 'shouts')\\nelse:\\n    print(NAME)\\nNAME = 'x'"
    >>> print(Template(text, facts={"LOUD": False}, parts={"NAME": "'Ada'"}, inlined={}).filled())
    print(NAME)
    NAME = 'Ada'
    """

    text: str
    facts: Mapping[str, Any]
    """values by name: a condition on these alone is decided, any other stays in the program"""
    parts: Mapping[str, str | None]
    """the expression to assign to a name; None to remove the assignment, and a `with` or `for` over that name"""
    inlined: Mapping[str, str]
    """replacements by regular expression; comments are not changed"""

    def filled(self) -> str:
        """The resulting program, without unused definitions."""
        lines = self._block(ast.parse(self.text).body, 1, 0)
        return re.sub(r"\n{4,}", "\n\n\n", without_unused(FOR_TOOLS.sub("", "\n".join(lines))))

    def _block(self, statements: Sequence[ast.stmt], first: int, shift: int) -> list[str]:
        """Statements, each with the comments above it, from line `first` on; dedented by `shift` columns."""
        lines: list[str] = []
        for statement in statements:
            written = self._statement(statement, shift)
            if written:
                lines += self._lines(first, _start(statement) - 1, shift) + written
            first = (statement.end_lineno or 0) + 1
        return "\n".join(lines).lstrip("\n").split("\n") if lines else []

    def _body(self, statements: Sequence[ast.stmt], shift: int) -> list[str]:
        """The body of a compound statement, including the comments above its first statement."""
        return self._block(statements, self._first_line(statements), shift)

    def _first_line(self, statements: Sequence[ast.stmt]) -> int:
        first, lines = _start(statements[0]), self.text.splitlines()
        while lines[first - 2].lstrip().startswith("#"):
            first -= 1
        return first

    def _lines(self, first: int, last: int, shift: int) -> list[str]:
        """Lines of the template from `first` to `last`, both included."""
        return [line[shift:] for line in self.text.splitlines()[first - 1 : last]]

    def _statement(self, statement: ast.stmt, shift: int) -> list[str]:
        match statement:
            case ast.If():
                return self._branch(statement, shift)
            case ast.With(items=[ast.withitem(context_expr=ast.Name(id=name))]) | ast.For(target=ast.Name(id=name)) if (
                self.parts.get(name, "") is None
            ):
                return self._body(statement.body, shift + 4)
            case ast.With() | ast.For():
                lines = self._lines(statement.lineno, self._first_line(statement.body) - 1, shift)
                return [*map(self._inline, lines), *self._body(statement.body, shift)]
            case ast.FunctionDef():
                header = textwrap.indent("\n".join(_header(statement)), " " * (statement.col_offset - shift))
                return [*header.splitlines(), *self._body(statement.body, shift)]
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if (
                name in self.parts
            ):
                return self._part(statement, name, shift)
        return self._simple(statement, shift)

    def _branch(self, statement: ast.If, shift: int) -> list[str]:
        """What is left of an `if`: the branch that applies, or everything from the first undecided condition on."""
        answer = self._answer(statement.test)
        if answer is None:
            lines = self._lines(statement.lineno, statement.end_lineno or 0, shift)
            return self._inline(re.sub(r"^( *)elif", r"\1if", "\n".join(lines))).splitlines()
        branch = statement.body if answer else statement.orelse
        return self._body(branch, shift + branch[0].col_offset - statement.col_offset) if branch else []

    def _answer(self, test: ast.expr) -> bool | None:
        """The value of a condition; None if it depends on the running program."""
        try:
            return bool(eval(ast.unparse(test), {**BUILTINS, **self.facts}))
        except (NameError, AttributeError):
            return None

    def _part(self, statement: ast.Assign | ast.AnnAssign, name: str, shift: int) -> list[str]:
        """An assignment with another value; its comment, such as a unit, stays unless the value has one."""
        part = self.parts[name]
        if part is None:
            return []
        last = self.text.splitlines()[(statement.end_lineno or 0) - 1]
        comment = "" if "  # " in part else last[statement.end_col_offset or 0 :]
        return textwrap.indent(f"{name} = {part}{comment}", " " * (statement.col_offset - shift)).splitlines()

    def _simple(self, statement: ast.stmt, shift: int) -> list[str]:
        """A statement with its conditional expressions decided; an assignment that becomes `= None` is removed."""
        text = "\n".join(self._lines(_start(statement), statement.end_lineno or 0, shift))
        for node in ast.walk(statement):
            if isinstance(node, ast.IfExp) and (answer := self._answer(node.test)) is not None:
                chosen = node.body if answer else node.orelse
                if isinstance(statement, ast.Assign) and node is statement.value and ast.unparse(chosen) == "None":
                    return []
                whole, part = (ast.get_source_segment(self.text, piece) or "" for piece in (node, chosen))
                text = text.replace(whole, part)
        return self._inline(text).splitlines()

    def _inline(self, text: str) -> str:
        for pattern, replacement in self.inlined.items():
            text = re.sub(rf"\b{pattern}", replacement, text)
        return text


def _start(statement: ast.stmt) -> int:
    """The first line of a statement, decorators included."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _header(function: ast.FunctionDef) -> list[str]:
    """The lines of a function before its body, without annotations."""
    bare = deepcopy(function)
    bare.returns, bare.body = None, [ast.Pass()]
    for node in ast.walk(bare.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(bare).splitlines()[:-1]


def without_unused(text: str) -> str:
    """A program without unused imports, assignments and functions at its top level.

    >>> without_unused("import math\\n\\ndef f():\\n    return g()\\n\\ndef g():\\n    return 1\\n\\nprint(2)")
    '\\nprint(2)'
    """
    statements, lines = ast.parse(text).body, text.splitlines()
    used = [names_used(ast.unparse(statement)) for statement in statements]
    left: list[str] = []
    end = 0
    for place, statement in enumerate(statements):
        names = names_defined(ast.unparse(statement))
        if not names or isinstance(statement, ast.If) or names & set().union(*used[:place], *used[place + 1 :]):
            left += lines[end : statement.end_lineno]
        end = statement.end_lineno or 0
    return text if left == lines else without_unused("\n".join(left))


def names_used(code: str) -> set[str]:
    """The names that a program reads.

    >>> sorted(names_used("a = b(c.d)"))
    ['b', 'c']
    """
    nodes = ast.walk(ast.parse(code))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def names_defined(code: str, local: bool = False) -> set[str]:
    """The names that a program defines, except in comprehensions.

    Args:
        code: source of a module.
        local: include local variables and parameters of functions.

    >>> code = "a, b = 1, 2\\nfor c in []:\\n    d = [e for e in c]\\ndef f(h):\\n    g = 1"
    >>> sorted(names_defined(code)), sorted(names_defined(code, local=True))
    (['a', 'b', 'c', 'd', 'f'], ['a', 'b', 'c', 'd', 'f', 'g', 'h'])
    """
    defined: set[str] = set()

    def look(node: ast.AST) -> None:
        match node:
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp() | ast.Lambda():
                return
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
                if not local:
                    return
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                defined.add(name)
            case ast.alias(name=name, asname=other):
                defined.add((other or name).split(".")[0])
        for inner in ast.iter_child_nodes(node):
            look(inner)

    look(ast.parse(code))
    return defined
