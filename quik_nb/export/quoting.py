"""Objects as source code: classes and functions from cells are copied with all that they use, others are imported.

What has no source code becomes `...` in the expression and a sentence in `gaps`; nothing is guessed silently.
"""

import ast
import dis
import inspect
import linecache
import math
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from quik_nb.recipe.equality import same
from quik_nb.training.rng import preserved

GAP = "..."
"""Placeholder in an expression for what the user has to fill in."""

MAX_ELEMENTS = 1000
"""Larger tensors are not written out."""

SHORT_NAMES = {
    "numpy": ("np", "import numpy as np"),
    "pandas": ("pd", "import pandas as pd"),
    "torch": ("torch", "import torch"),
    "torch.nn": ("nn", "from torch import nn"),
    "torch.nn.functional": ("F", "import torch.nn.functional as F"),
    "torch.optim": ("optim", "from torch import optim"),
}
"""Customary names of modules, with their import statements."""

RNN_KEYWORDS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
"""The arguments of torch's recurrent layers, whose signature has only `*args`."""


class Quoter:
    """Turns objects into expressions, and collects the imports and definitions that they need."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.definitions: dict[str, str] = {}
        """source code by name, each after the definitions that it uses"""
        self.gaps: list[str] = []
        """a sentence for each placeholder to fill in"""
        self._by_name: dict[str, Any] = {}

    # ------------------------------------------------------------------ values

    def value(self, value: Any, what: str) -> str:
        """An expression for a value.

        Args:
            value: any object.
            what: a description of it for `gaps`, if it cannot be expressed.

        >>> Quoter().value({"lr": 0.1, "betas": (0.9, float("inf"))}, "a keyword")
        "{'lr': 0.1, 'betas': (0.9, float('inf'))}"
        """
        match value:
            case float() if not math.isfinite(value):
                return f"float('{value}')"
            case None | bool() | int() | float() | str() | bytes():
                return repr(value)
            case dict():
                pairs = (f"{self.value(k, what)}: {self.value(v, what)}" for k, v in value.items())
                return f"{{{', '.join(pairs)}}}"
            case list():
                return f"[{', '.join(self.value(v, what) for v in value)}]"
            case tuple() if type(value) is tuple:
                return f"({', '.join(self.value(v, what) for v in value)}{',' if len(value) == 1 else ''})"
            case Tensor() if value.numel() <= MAX_ELEMENTS:
                return f"{self._module(torch)}.tensor({value.tolist()!r}, dtype={value.dtype})".replace("nan", GAP)
            case torch.dtype():
                return repr(value)
            case torch.device():
                return f"torch.device({str(value)!r})"
            case nn.Module():
                return self.module(value)
            case partial():
                words = [self.value(v, what) for v in value.args]
                words += [f"{k}={self.value(v, what)}" for k, v in value.keywords.items()]
                self.imports.add("from functools import partial")
                return f"partial({', '.join([self.reference(value.func), *words])})"
            case type() | FunctionType():
                return self.reference(value)
        return self._gap(f"{what} is a {type(value).__name__}, which has no short form")

    def _gap(self, sentence: str) -> str:
        if sentence not in self.gaps:
            self.gaps.append(sentence)
        return GAP

    # ------------------------------------------------------------------ classes and functions

    def reference(self, target: Any) -> str:
        """An expression for a class or function; adds its import or definition."""
        name = getattr(target, "__name__", type(target).__name__)
        if name == "<lambda>":
            return self._lambda(target)
        if installed(getattr(target, "__module__", None)):
            return self._imported(target, name)
        self._define(name, target)
        return str(name)

    def _imported(self, target: Any, name: str) -> str:
        """The name of an imported class or function, from the shortest module path; for torch, as in its tutorials."""
        module = public_module(target, name)
        if module == "builtins":
            return name
        if module is None:
            return self._gap(f"{name} is not found in {target.__module__}, so import it by hand")
        if module in SHORT_NAMES or module == "torch.optim.lr_scheduler":
            return f"{self._module(sys.modules[module])}.{name}"
        self.imports.add(f"from {module} import {name}")
        return name

    def _module(self, module: ModuleType) -> str:
        name = module.__name__
        if name == "torch.optim.lr_scheduler":
            return f"{self._module(torch.optim)}.lr_scheduler"
        short, line = SHORT_NAMES.get(name, (name, f"import {name}"))
        self.imports.add(line)
        return short

    def _define(self, name: str, target: Any) -> None:
        """Add the source of a class or function, after that of all it uses."""
        if name in self._by_name:
            if self._by_name[name] is not target:
                self._gap(f"two things are called {name}, and the script has just one of them")
            return
        self._by_name[name] = target
        source = source_of(target)
        if source is None:
            self._gap(f"the source of {name} ({target.__module__}) was not found, so import or paste it")
            return
        self._bind_all(source, scope_of(target))
        self.definitions[name] = source

    def _lambda(self, target: Any) -> str:
        source = lambda_source(target)
        if source is None:
            return self._gap("a lambda could not be found in its cell")
        self._bind_all(f"({source})", scope_of(target))
        return f"({source})"

    def _bind_all(self, source: str, scope: Mapping[str, Any]) -> None:
        """Define or import all global names that a piece of source code uses."""
        for name in outer_names(compile(source, "quoted", "exec")):
            if name in scope:
                self._bind(name, scope[name])

    def _bind(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            short, line = SHORT_NAMES.get(value.__name__, ("", ""))
            plain = f"import {name}" if value.__name__ == name else f"import {value.__name__} as {name}"
            self.imports.add(line if short == name else plain)
        elif isinstance(value, type | FunctionType | BuiltinFunctionType) and value.__name__ == name:
            if installed(value.__module__):  # the source uses the name without its module
                self.imports.add(f"from {public_module(value, name) or value.__module__} import {name}")
            else:
                self.reference(value)
        elif name not in self._by_name:
            self._by_name[name] = value
            self.definitions[name] = f"{name} = {self.value(value, f'the variable {name}')}"

    # ------------------------------------------------------------------ modules

    def module(self, module: nn.Module) -> str:
        """A call that creates the same module: its class, with the arguments that it stores as attributes.

        For user-defined classes, the call is tried, since they need not store their arguments.
        """
        kind = type(module)
        if kind in (nn.Sequential, nn.ModuleList):
            parts = [self.module(child) for child in module.children()]
            inner = "".join(f"    {textwrap.indent(part, '    ').lstrip()},\n" for part in parts)
            opening, closing = ("(", ")") if kind is nn.Sequential else ("([", "])")
            return f"{self.reference(kind)}{opening}\n{inner}{closing}" if parts else f"{self.reference(kind)}()"

        words, arguments = [], {}
        for keyword, default in keywords_of(kind):
            text = self._argument(module, keyword)
            if text is not None:
                arguments[keyword] = _stored(module, keyword)
            elif default is inspect.Parameter.empty:
                text = self._gap(f"{kind.__name__} does not store its argument {keyword}, so fill it in")
            if text is not None and text != _text(default):
                words.append(f"{keyword}={text}")

        is_open = not kind.__module__.startswith("torch.") and GAP not in "".join(words)
        if is_open and not makes(kind, arguments, module):
            names = ", ".join(keyword for keyword, _ in keywords_of(kind))
            what = f"does not store its arguments ({names})" if names else "was changed after it was created"
            return f"{self.reference(kind)}({self._gap(f'{kind.__name__} {what}')})"
        return f"{self.reference(kind)}({', '.join(words)})"

    def _argument(self, module: nn.Module, keyword: str) -> str | None:
        """The argument that a module stored in an attribute of that name, as an expression; None if there is none."""
        if not hasattr(module, keyword):
            return None
        value = _stored(module, keyword)

        trial = Quoter()  # separate, since a value that cannot be expressed must not add a gap here
        trial.value(value, keyword)
        return None if trial.gaps else self.value(value, keyword)


def _stored(module: nn.Module, keyword: str) -> Any:
    """The value of an argument that a module stored."""
    value = getattr(module, keyword)

    # layers take bias=True or False, and store the parameter itself or None
    if isinstance(value, nn.Parameter) or (value is None and keyword == "bias"):
        return value is not None
    return value


def makes(kind: type[nn.Module], arguments: Mapping[str, Any], module: nn.Module) -> bool:
    """Whether a class, called with these arguments, creates a module of the same structure."""
    # on the meta device a large model takes no memory, but some models cannot be created there
    for place in (torch.device("meta"), nullcontext()):
        with preserved():
            copies = deepcopy(dict(arguments))  # the class may initialise the modules passed to it again
            try:
                with place:
                    created = kind(**copies)
            except Exception:  # any exception means that these are not its arguments
                continue
        if same_structure(created, module):
            return True
    return False


def same_structure(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same structure, recursively: classes, shapes of weights and plain attributes."""
    if type(one) is not type(other):
        return False

    weights = ({name: tuple(p.shape) for name, p in m.named_parameters(recurse=False)} for m in (one, other))
    plain = (
        {name: value for name, value in vars(m).items() if not name.startswith("_") and name != "training"}
        for m in (one, other)
    )
    children = dict(one.named_children()), dict(other.named_children())

    return (
        same(*weights)
        and same(*plain)
        and list(children[0]) == list(children[1])
        and all(same_structure(children[0][name], children[1][name]) for name in children[0])
    )


def _text(default: Any) -> str | None:
    return None if default is inspect.Parameter.empty else Quoter().value(default, "a default")


def keywords_of(kind: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    """The arguments of a module class, with their defaults."""
    if issubclass(kind, nn.RNNBase) and kind.__module__.startswith("torch."):
        defaults = inspect.signature(nn.RNNBase).parameters
        yield from ((name, defaults[name].default) for name in RNN_KEYWORDS)
        return
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and not name.startswith("_"):
            yield name, parameter.default


# ---------------------------------------------------------------------- sources


def public_module(target: Any, name: str) -> str | None:
    """The shortest module path from which a class or function can be imported by this name; None if there is none."""
    parts = target.__module__.split(".")
    paths = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return next((p for p in paths if getattr(sys.modules.get(p), name, None) is target), None)


def outer_names(code: CodeType) -> dict[str, None]:
    """The global names that code uses, not its arguments, locals and attributes; a dict, for its order."""
    stored = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}
    names = {
        i.argval: None
        for i in dis.get_instructions(code)
        if i.opname in ("LOAD_NAME", "LOAD_GLOBAL") and i.argval not in stored
    }
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names |= outer_names(inner)
    return names


def installed(module: str | None) -> bool:
    """Whether a module belongs to Python or an installed package, so that a script can import it."""
    if module in (None, "__main__") or str(module).split(".")[0] == "quik_nb":  # which the script is to do without
        return False
    file = getattr(sys.modules.get(str(module)), "__file__", None)
    if file is None:
        return str(module).split(".")[0] in sys.stdlib_module_names
    return any(file.startswith(sysconfig.get_path(place)) for place in ("stdlib", "purelib", "platlib"))


def source_of(target: Any) -> str | None:
    """The source code of a class or function, dedented; None if it is not available."""
    code = next(_codes(target), None)
    if code is not None:
        kinds = (ast.ClassDef,) if isinstance(target, type) else (ast.FunctionDef, ast.AsyncFunctionDef)
        for node, text in _nodes(code, kinds):
            if node.name == target.__name__ and _starts(node) <= code.co_firstlineno <= (node.end_lineno or 0):
                return text
    try:
        return textwrap.dedent(inspect.getsource(target))
    except (OSError, TypeError):  # a class without methods from a cell, or one created dynamically
        return None


def lambda_source(target: FunctionType) -> str | None:
    """The source code of a lambda: of those on its line, the one that compiles to the same code."""
    code = target.__code__
    for node, text in _nodes(code, (ast.Lambda,)):
        if node.lineno == code.co_firstlineno:
            other = next(c for c in compile(f"({text})", "", "eval").co_consts if isinstance(c, CodeType))
            if (other.co_code, other.co_names, other.co_varnames) == (code.co_code, code.co_names, code.co_varnames):
                return text
    return None


def _codes(target: Any) -> Iterator[CodeType]:
    """The code objects of a function, or of the methods that a class defines itself."""
    if isinstance(target, FunctionType):
        yield target.__code__
    elif isinstance(target, type):
        for member in vars(target).values():
            inner = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(inner, FunctionType) and inner.__qualname__.startswith(target.__qualname__ + "."):
                yield inner.__code__


def _nodes(code: CodeType, kinds: tuple[type[Any], ...]) -> Iterator[tuple[Any, str]]:
    """The syntax nodes of some kinds in the file or cell of a code object, with their source code."""
    whole = "".join(linecache.getlines(code.co_filename))
    try:
        tree = ast.parse(whole)
    except SyntaxError:  # the file has changed since
        return
    lines = whole.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            if isinstance(node, ast.Lambda):
                yield node, ast.get_source_segment(whole, node) or ""
            else:
                yield node, textwrap.dedent("".join(lines[_starts(node) - 1 : node.end_lineno])).rstrip("\n")


def _starts(node: Any) -> int:
    """The first line of a class or function, decorators included."""
    return min(int(part.lineno) for part in (node, *node.decorator_list))


def scope_of(target: Any) -> dict[str, Any]:
    """The names visible to a class or function: those of its module and of enclosing functions."""
    functions: list[Any] = [target] if isinstance(target, FunctionType) else []
    if isinstance(target, type):
        functions = [getattr(m, "__func__", getattr(m, "fget", m)) for m in vars(target).values()]
        functions = [f for f in functions if isinstance(f, FunctionType) and f.__module__ == target.__module__]
    module = sys.modules.get(target.__module__)
    scope: dict[str, Any] = dict(vars(module)) if module is not None else {}
    for function in functions:
        scope |= function.__globals__
    for function in functions:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                scope[name] = cell.cell_contents
    return {name: value for name, value in scope.items() if not name.startswith("__")}
