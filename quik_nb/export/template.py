"""A program with some of its questions answered: branches that do not apply are left out, and parts are filled in.

The template is Python that runs, without any marks: its questions are the tests of its `if` statements. What is not
here: any knowledge of what the template does.
"""

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

LINT = re.compile(r"  # (noqa|type: ignore)\b.*|^# -{9,}.*", re.MULTILINE)
"""Comments that speak to tools and headings, which a short program does without."""


@dataclass(frozen=True)
class Template:
    """A program to be made shorter.

    >>> text = "if LOUD:\\n    print(NAME, 'shouts')\\nelse:\\n    print(NAME)\\nNAME = 'x'"
    >>> Template(text, answers={"LOUD": False}, parts={"NAME": "'Ada'"}, inlined={}).filled()
    (set(), "print(NAME)\\nNAME = 'Ada'")
    """

    text: str
    answers: Mapping[str, bool]
    """by test, as `ast.unparse` writes it; `is None` and `!=` are answered by `is not None` and `==`"""
    parts: Mapping[str, str | None]
    """what to assign to a name; None to leave it out, with what a `with` or a `for` does for it"""
    inlined: Mapping[str, str]
    """what to write in place of what, by regular expression; comments stay as they are"""

    def filled(self) -> tuple[set[str], str]:
        """The import lines and the rest of the program that is left, without what nothing in it uses."""
        statements = ast.parse(self.text).body
        text = LINT.sub("", "\n".join(self._block(statements, 1, 0)))
        imports, rest = _apart_from_imports(_without_unused(text))
        return imports, re.sub(r"\n{4,}", "\n\n\n", rest)

    # ------------------------------------------------------------------ statements

    def _block(self, statements: Sequence[ast.stmt], first: int, shift: int) -> list[str]:
        """The lines of statements, each with the comments above it, from line `first` on, moved left by `shift`."""
        lines: list[str] = []
        for statement in statements:
            above = self._lines(first, _start(statement) - 1, shift)
            kept = self._statement(statement, shift)
            lines += above + kept if kept else []
            first = (statement.end_lineno or 0) + 1
        while lines and not lines[0].strip():
            del lines[0]
        return lines

    def _lines(self, first: int, last: int, shift: int) -> list[str]:
        """Lines of the template, both ends included."""
        return [line[shift:] for line in self.text.splitlines()[first - 1 : last]]

    def _statement(self, statement: ast.stmt, shift: int) -> list[str]:
        inner = shift + 4
        match statement:
            case ast.If():
                return self._branches(statement, shift)
            case ast.With(items=[ast.withitem(context_expr=ast.Name(id=name))]) if self._is_left_out(name):
                return self._block(statement.body, self._first_line(statement.body[0]), inner)
            case ast.For(target=ast.Name(id=name)) if self._is_left_out(name):
                return self._block(statement.body, self._first_line(statement.body[0]), inner)
            case ast.With() | ast.For():
                first = self._first_line(statement.body[0])
                header = self._lines(statement.lineno, first - 1, shift)
                return [*map(self._inline, header), *self._block(statement.body, first, shift)]
            case ast.FunctionDef():
                return [*_header(statement), *self._block(statement.body, statement.body[0].lineno, shift)]
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if name in self.parts:
                    return self._filled_in(statement, name, shift)
            case ast.Expr(value=ast.Constant()):
                return self._lines(statement.lineno, statement.end_lineno or 0, shift)
        return self._folded(statement, shift)

    def _is_left_out(self, name: str) -> bool:
        return name in self.parts and self.parts[name] is None

    def _branches(self, statement: ast.If, shift: int) -> list[str]:
        """What is left of an `if` with its `elif` and `else`: a branch without its question, or the open questions."""
        lines: list[str] = []
        indent = " " * (statement.col_offset - shift)
        tail: list[ast.stmt] = [statement]
        while len(tail) == 1 and isinstance(branch := tail[0], ast.If):
            tail, answer = branch.orelse, self._answer(branch.test)
            if answer is None:
                word = "elif" if lines else "if"
                lines.append(f"{indent}{word} {self._inline(ast.get_source_segment(self.text, branch.test) or '')}:")
                lines += self._block(branch.body, self._first_line(branch.body[0]), shift)
            if answer:
                tail = branch.body
                break
        if not tail:
            return lines
        first = self._first_line(tail[0])
        if not lines:
            return self._block(tail, first, shift + tail[0].col_offset - statement.col_offset)
        return [*lines, f"{indent}else:", *self._block(tail, first, shift)]

    def _first_line(self, statement: ast.stmt) -> int:
        """The first line of a statement, or of the comments right above it."""
        line, texts = _start(statement), self.text.splitlines()
        while texts[line - 2].lstrip().startswith("#"):
            line -= 1
        return line

    def _filled_in(self, statement: ast.Assign | ast.AnnAssign, name: str, shift: int) -> list[str]:
        """An assignment with another value; what its comment says of a unit stays true."""
        part, value = self.parts[name], statement.value
        if part is None or value is None:
            return []
        last = self.text.splitlines()[(statement.end_lineno or 0) - 1]
        comment = "" if "  # " in part else last[statement.end_col_offset or 0 :]
        indent = " " * (statement.col_offset - shift)
        return textwrap.indent(f"{name} = {part}{comment}", indent).splitlines()

    def _folded(self, statement: ast.stmt, shift: int) -> list[str]:
        """A statement in which the conditional expressions are answered."""
        text = "\n".join(self._lines(statement.lineno, statement.end_lineno or 0, shift))
        for node in ast.walk(statement):
            if isinstance(node, ast.IfExp) and (answer := self._answer(node.test)) is not None:
                whole, chosen = (
                    ast.get_source_segment(self.text, part) or ""
                    for part in (node, node.body if answer else node.orelse)
                )
                text = text.replace(whole, chosen)
        return self._inline(text).splitlines()

    def _inline(self, text: str) -> str:
        for pattern, replacement in self.inlined.items():
            text = re.sub(rf"\b{pattern}", replacement, text)
        return text

    # ------------------------------------------------------------------ questions

    def _answer(self, test: ast.expr) -> bool | None:
        """The answer to a question; None where it stays open."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                answer = self._answer(operand)
                return None if answer is None else not answer
            case ast.BoolOp(op=operator, values=values):
                answers = [self._answer(value) for value in values]
                decisive = isinstance(operator, ast.Or)
                if decisive in answers:
                    return decisive
                return None if None in answers else not decisive
            case ast.Compare(left=left, ops=[ast.Is() | ast.NotEq() as operator], comparators=others):
                opposite = ast.IsNot() if isinstance(operator, ast.Is) else ast.Eq()
                return self._answer(ast.UnaryOp(ast.Not(), ast.Compare(left, [opposite], others)))
        return self.answers.get(ast.unparse(test))


def _start(statement: ast.stmt) -> int:
    """The first line of a statement, decorators included."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _header(function: ast.FunctionDef) -> list[str]:
    """The lines of a function before its body, without annotations."""
    bare = deepcopy(function)
    bare.returns, bare.body = None, [ast.Pass()]
    for argument in ast.walk(bare.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(bare).splitlines()[:-1]


def _without_unused(text: str) -> str:
    """A program without the imports, values and functions at its top level that nothing in it uses."""
    while True:
        tree, lines = ast.parse(text), text.splitlines()
        used = [names_read(ast.unparse(statement)) for statement in tree.body]
        end = 0
        left: list[str] = []
        for place, statement in enumerate(tree.body):
            others = set().union(*used[:place], *used[place + 1 :])
            names = _names(statement)
            if not names or names & others:
                left += lines[end : statement.end_lineno]
            end = statement.end_lineno or 0
        if left == lines:
            return text
        text = "\n".join(left)


def _names(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top level gives to things, where it does nothing else."""
    match statement:
        case ast.FunctionDef(name=name):
            return {name}
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return {(alias.asname or alias.name).split(".")[0] for alias in aliases}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _apart_from_imports(text: str) -> tuple[set[str], str]:
    """The imports at the top of a program, one name a line, as far as it uses them; and what comes after them."""
    imports, used = set(), names_read(text)
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            home = f"from {statement.module} " if isinstance(statement, ast.ImportFrom) else ""
            names = [alias for alias in statement.names if (alias.asname or alias.name) in used]
            imports |= {f"{home}{ast.unparse(ast.Import([alias]))}" for alias in names}
        elif not isinstance(statement, ast.Expr):
            return imports, "\n".join(text.splitlines()[_start(statement) - 1 :])
    return imports, ""


def names_read(code: str) -> set[str]:
    """The names that a program uses.

    >>> sorted(names_read("a = b(c.d)"))
    ['b', 'c']
    """
    nodes = ast.walk(ast.parse(code))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def names_made(code: str, local: bool = False) -> set[str]:
    """The names that a program gives to things; those within comprehensions are their own.

    Args:
        code: of a module.
        local: whether to include names that just one of its functions knows.

    >>> code = "a, b = 1, 2\\nfor c in []:\\n    d = [e for e in c]\\ndef f(h):\\n    g = 1"
    >>> sorted(names_made(code)), sorted(names_made(code, local=True))
    (['a', 'b', 'c', 'd', 'f'], ['a', 'b', 'c', 'd', 'f', 'g', 'h'])
    """
    made: set[str] = set()

    def look(node: ast.AST) -> None:
        match node:
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp() | ast.Lambda():
                return
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                made.add(name)
                if not local:
                    return
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                made.add(name)
        for inner in ast.iter_child_nodes(node):
            look(inner)

    look(ast.parse(code))
    return made
