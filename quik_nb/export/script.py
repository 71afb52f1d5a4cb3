"""`as_code()`: a session as a plain PyTorch script, to learn from it or to continue without quik_nb.

The script has the session's classes and keywords, scheduler totals, seeds and order of samples, so it gives the same
losses. Its text is `plain_loop.py`, reduced to what this session needs.

What is not here: how objects become source code (`quoting.py`), and how branches are removed (`template.py`).
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from json import dumps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset

from quik_nb.errors import CheckpointError
from quik_nb.export.quoting import GAP, Quoter
from quik_nb.export.template import Template, names_defined, names_used
from quik_nb.recipe.assignment import assigned
from quik_nb.recipe.patterns import fits
from quik_nb.recipe.recipe import LABEL_KEYS, Optimizer, Recipe, Scheduler, Spec, needs_closure
from quik_nb.recipe.samples import SPLITS, Source, Stream, Tensors, describe_source, loader_options
from quik_nb.storage.files import Files, write
from quik_nb.training.forward import WeightedMean, arguments_by_name
from quik_nb.training.optimizers import optimizer_keywords, parameter_groups
from quik_nb.training.rng import preserved
from quik_nb.training.schedule import StepArguments
from quik_nb.training.train_mode import eval_parts

SCRIPT = "train.py"

PLAIN_LOOP = Path(__file__).with_name("plain_loop.py")

AUTOCAST = {
    "bf16": "torch.autocast(device.type, dtype=torch.bfloat16)",
    "fp16": "torch.autocast(device.type, dtype=torch.float16)",
    "auto": 'torch.autocast("cuda", dtype=torch.bfloat16, enabled=torch.cuda.is_bf16_supported(False))',
}
"""The autocast context by `Settings.precision`; fp32 has none."""

WRITTEN_BESIDE = '  # session.as_code("folder") writes these files, and this script beside them'


@dataclass(frozen=True)
class Origin:
    """Where a script gets its model, initial weights and data from."""

    model_factory: Any
    """the function or class that created the model; None for a model passed as an instance"""
    seeded: bool
    """whether `model_factory`, called under the seed, gives the initial weights"""
    beside: bool
    """whether the data is in a folder beside the script, where `write_script` puts it; else in that of the session"""
    weights_match: bool
    """whether the file of initial weights is this session's, or not written yet"""


class Logits:
    """Placeholder for model outputs with an attribute `logits`."""

    logits = None


class Script:
    """Fills in the template `plain_loop.py`: decides its conditions and writes the session's parts as source code.

    Args:
        recipe: a complete recipe.
        origin: of the model, initial weights and data.
    """

    def __init__(self, recipe: Recipe, origin: Origin) -> None:
        self.recipe = recipe
        self.origin = origin
        self.quote = Quoter()
        self.sources = {split: source for split in ("train", "valid") if (source := getattr(recipe, split)) is not None}
        self.facts: dict[str, Any] = {}
        self.parts: dict[str, str | None] = {}
        self.inlined: dict[str, str] = {}
        self.notes: list[str] = []
        """features of the session that the script does not have"""

    def text(self) -> str:
        """The whole script."""
        self._settings()
        self._data()
        self._model()
        self._loss()
        self._metrics()
        self._optimizer()

        imports, body = split_imports(Template(PLAIN_LOOP.read_text(), self.facts, self.parts, self.inlined).filled())
        self._report_clashes(body)

        gaps = [f"# To fill in (where it says ...): {gap}." for gap in self.quote.gaps]
        notes = [f"# Not in this script: {note}." for note in self.notes]
        paragraphs = [
            '"""The training of a session as plain PyTorch."""',
            "\n".join([*gaps, *notes]),
            sorted_imports(self.quote.imports | imports),
            *self.quote.definitions.values(),
            body,
        ]
        return "\n\n\n".join(part.strip("\n") for part in paragraphs if part.strip()) + "\n"

    def _report_clashes(self, body: str) -> None:
        """Report names that both the user and the script define."""
        quoted = [text.partition("  # ")[0] for text in self.parts.values() if text is not None]
        quoted += [text for name, text in self.inlined.items() if name.startswith("STEP") or "LOADER" in name]

        # a local variable of the script would shadow the user's object of that name
        shadowed = names_defined(body, local=True) & set(re.findall(r"\w+", " ".join(quoted)))
        clash = sorted((names_defined(body) | shadowed) & set(self.quote.definitions))
        if clash:
            self.quote.gaps.append(f"{', '.join(clash)} is a name of yours and of this script, so rename one of them")

    def _substitute(self, name: str, text: str) -> None:
        """Write this expression in place of a variable of the plain loop, and remove its assignment."""
        self.parts[name] = None
        self.inlined[rf"{name}\b"] = text

    # ------------------------------------------------------------------ settings and data

    def _settings(self) -> None:
        """Settings are constants of the same name in the plain loop; unused ones are removed."""
        settings = self.recipe.settings
        values = {field.name.upper(): getattr(settings, field.name) for field in fields(settings)}
        self.facts |= values
        self.parts |= {name: repr(value) for name, value in values.items()}

        folder = in_quotes(str(Files(Path(settings.base_dir), settings.date).folder))
        in_memory = any(isinstance(source, Tensors) for source in self.sources.values())
        self.parts["DATE"] = in_quotes(settings.date)
        place = 'Path(__file__).parent / "data"' if self.origin.beside else f"Path({folder})"
        self.parts["DATA"] = f"{place}{WRITTEN_BESIDE}" if in_memory else place
        self.parts["autocast"] = AUTOCAST.get(settings.precision)
        if settings.device is not None:
            self.parts["device"] = f"torch.device({in_quotes(settings.device)})"

        self.facts["scaler"] = True if settings.precision == "fp16" else None
        self.facts["average"] = settings.ema
        self._substitute("evaluated", "model" if settings.ema is None else "average.module")
        if not settings.compile:
            self._substitute("net", "model")
        if settings.accumulate == 1:
            self.parts["pieces"] = None
            self._substitute("part", "batch")

    def _data(self) -> None:
        self.facts |= {"valid": None, "IterableDataset": IterableDataset}
        self.parts["valid"] = None
        if self.recipe.settings.accumulate > 1:
            self.facts["JOINED"] = getattr(self.recipe.train, "joins", False)
            self._substitute("pieces", "batch" if self.facts["JOINED"] else "micro_batches(batch)")
        else:
            self.facts["JOINED"] = False
        self.facts["SHUFFLE"] = getattr(self.recipe.train, "shuffle", False) is not False
        for split, source in self.sources.items():
            what = describe_source(source)
            in_memory = isinstance(source, Tensors)
            self.facts[split] = () if in_memory else source.dataset
            self.parts[split] = (
                f'torch.load(DATA / f"{split}_tensor_{{DATE}}.pt")  # {what}' if in_memory else f"{GAP}  # {what}"
            )
            if not in_memory:
                self.quote.gaps.append(f"{split} is {what}: make or load it")
            self.inlined[rf", \*\*{split.upper()}_LOADER"] = "" if in_memory else "".join(self._options(split, source))
            self.parts[f"{split.upper()}_LOADER"] = None

        sizes = {split: self._batch_size(source) for split, source in self.sources.items()}
        self.parts["BATCH_SIZE"], self.parts["VALID_BATCH_SIZE"] = sizes["train"], sizes.get("valid")
        if sizes.get("valid") == sizes["train"]:
            self._substitute("VALID_BATCH_SIZE", "BATCH_SIZE")

    def _batch_size(self, source: Source) -> str:
        if isinstance(source, Stream) and source.ready:
            return "None  # batches come ready"
        return repr(getattr(source, "batch_size", None) or self.recipe.settings.batch_size)

    def _options(self, split: str, source: Any) -> Iterator[str]:
        """Further keywords of a split's DataLoader."""
        if source.sampler is not None or getattr(source, "batch_sampler", None) is not None:
            self.notes.append(f"the sampler of {split}, in whose place samples are shuffled or in order")
        if source.drop_last and (split == "train" or isinstance(source, Stream)):  # validation takes all samples
            yield ", drop_last=True"
        for name, value in loader_options(source, self.recipe.settings.num_workers).items():
            yield f", {name}={self.quote.value(value, f'the loader has {name}, which')}"

    # ------------------------------------------------------------------ model

    def _model(self) -> None:
        model, origin = self.recipe.model, self.origin
        assert model is not None  # an incomplete recipe is rejected before
        if origin.model_factory is None:
            floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
            cast = f", {next(iter(floats))}" if len(floats) == 1 and floats != {torch.float32} else ""
            self.parts["model"] = f"{self.quote.module(model)}.to(device{cast})"
        else:
            factory = self.quote.reference(origin.model_factory)
            is_lambda = factory.startswith("(lambda: ")
            call = factory.removeprefix("(lambda: ")[:-1] if is_lambda else f"{factory}()"
            self.parts["model"] = f"{call}.to(device)"

        weights = 'DATA / f"state_dict_eorig_{DATE}.pt"'
        if not origin.seeded and not origin.weights_match:
            self.quote.gaps.append("the first weights there are another training's: as_code('folder') writes yours")
            weights = GAP
        self.facts["FIRST_WEIGHTS"] = self.parts["FIRST_WEIGHTS"] = None if origin.seeded else weights

        frozen = self._frozen(model)
        self.facts["FROZEN"], self.parts["FROZEN"] = frozen, in_quotes(frozen)
        evaluated = eval_parts(model, self.recipe.settings.eval_modules)
        self.facts["IN_EVAL_MODE"], self.parts["IN_EVAL_MODE"] = evaluated, in_quotes(evaluated)

    def _frozen(self, model: nn.Module) -> list[str]:
        pattern = self.recipe.settings.freeze
        named = model.named_parameters()
        return [name for name, p in named if not p.requires_grad or (pattern is not None and fits(name, pattern))]

    # ------------------------------------------------------------------ loss and metrics

    def _loss(self) -> None:
        recipe = self.recipe
        criterion = recipe.make_criterion()
        self.facts |= {
            "criterion": criterion,
            "REDUCTION": recipe.step_reduction or recipe.reduction,
            "STEP": recipe.step,
        }
        self.facts["outputs"] = Logits() if type(recipe.model).__module__.startswith("transformers") else None
        self.facts["WEIGHTED"] = any(WeightedMean.of(criterion, source) is not None for source in self.sources.values())
        self.parts["criterion"] = self._criterion()
        if recipe.settings.monitor is not None:
            self.notes.append(f"monitor={recipe.settings.monitor!r}, in whose place the loss is watched")
        self._substitute("MONITOR", '"valid_loss"' if recipe.valid is not None else '"train_loss"')
        if recipe.step is not None:
            self._substitute("STEP", self.quote.value(recipe.step, "the step"))
        self._report_what_a_step_has()

        keys = self._keys()
        if keys is not None:
            self.facts["batch"] = {} if keys else ()
        forms = {source.names is not None for source in self.sources.values() if isinstance(source, Tensors)}
        if len(forms) == 1:
            self.facts["data"] = {} if True in forms else ()
        self._substitute("LABEL", in_quotes(next((key for key in LABEL_KEYS if key in (keys or ())), "labels")))
        if keys is not None and len(forms) == 1 and all(isinstance(s, Tensors) for s in self.sources.values()):
            self.inlined[r"count_samples\((\w+)\)"] = rf"len(\1[{in_quotes(keys[0]) if keys else 0}])"

    def _report_what_a_step_has(self) -> None:
        """What the step of a session is given and may give, and that of the script is not and may not."""
        self.facts["STEP_OUTPUT"] = "StepOutput" in self.quote.definitions
        if names := arguments_by_name(self.recipe.step):
            self.quote.gaps.append(f"the step has parameters {', '.join(names)}, so pass them where it is called")
        if not self.facts["STEP_OUTPUT"]:
            return

        given = keywords_given("StepOutput", self.quote.definitions.values())
        if "values" in given:
            self.notes.append("the columns of StepOutput(values=...)")
        if given & {"count", "reduction"}:
            self.notes.append("StepOutput(count=..., reduction=...), so that each loss counts as a mean over samples")

    def _keys(self) -> tuple[str, ...] | None:
        """The keys of a dict batch; empty for other batches; None for a stream, which would have to be read."""
        train = self.recipe.train
        if isinstance(train, Tensors):
            return train.names or ()
        if train is None or isinstance(train, Stream):
            return None
        with preserved():
            sample = train.sample()
        return tuple(sample) if isinstance(sample, Mapping) else ()

    def _criterion(self) -> str:
        criterion = self.recipe.make_criterion()
        match self.recipe.criterion:
            case None:
                return "None"
            case nn.Module() as module:
                return f"{self.quote.module(module)}.to(device)"
            case Spec(target=target, keywords=keywords):
                words = self._keywords(keywords)
        if isinstance(criterion, nn.Module):  # also for a function, such as F.mse_loss, that has an equivalent class
            name = self.quote.reference(target if isinstance(target, type) else type(criterion))
            return f"{name}({', '.join(words)}).to(device)"
        name = self.quote.reference(target)
        if not words:
            return name
        self.quote.imports.add("from functools import partial")
        return f"partial({', '.join([name, *words])})"

    def _keywords(self, keywords: Mapping[str, Any]) -> list[str]:
        return [f"{name}={self.quote.value(value, f'the keyword {name}')}" for name, value in keywords.items()]

    def _metrics(self) -> None:
        """Functions of (outputs, targets) by name; other metrics are left out with a note."""
        recipe = self.recipe
        plain = {} if recipe.step is not None else recipe.metrics
        named = {
            name: metric
            for name, metric in plain.items()
            if not isinstance(metric, str) and not hasattr(metric, "compute")
        }
        left_out = [name for name in recipe.metrics if name not in named]
        if left_out:
            self.notes.append(f"the metrics {', '.join(left_out)}")
        if recipe.metrics and recipe.metrics_on_train:
            self.notes.append("the metrics of the training split")
        pairs = (f"{in_quotes(name)}: {self.quote.reference(metric)}" for name, metric in named.items())
        self.facts["METRICS"], self.parts["METRICS"] = named, f"{{{', '.join(pairs)}}}"

    # ------------------------------------------------------------------ optimizer and scheduler

    def _optimizer(self) -> None:
        """One optimizer and its scheduler by their own names; several in a dict and in lists."""
        recipe = self.recipe
        members = assigned(recipe)
        made = {key: self._made(spec, members[key]) for key, spec in recipe.optimizers.items()}
        self.facts["CLOSURE"] = any(needs_closure(spec.target) for spec in recipe.optimizers.values())
        self.facts["YIELDS"] = recipe.yields

        if len(made) == 1 and not recipe.yields:
            self.parts |= {"optimizer": next(iter(made.values())), "optimizers": None}
            self._substitute("opt", "optimizer")
            self._substitute("plan", "scheduler")
        else:
            lines = "".join(f"    {in_quotes(key)}: {text},\n" for key, text in made.items())
            self.parts |= {"optimizer": None, "optimizers": f"{{\n{lines}}}"}
        self._schedulers(by_name=len(made) > 1 or recipe.yields)

    def _schedulers(self, by_name: bool) -> None:
        """Schedulers in lists by when they are stepped; a single one by its name.

        Args:
            by_name: whether the optimizers stand in a dict.
        """
        kinds: dict[str, list[str]] = {"batch": [], "epoch": [], "loss": [], "timm": []}
        self.parts["scheduler"] = None
        for key in self.recipe.optimizers:
            schedule = self.recipe.scheduler_of(key)
            if schedule is not None:
                text = self._scheduler(schedule, f"optimizers[{in_quotes(key)}]" if by_name else "optimizer")
                kinds[schedule_kind(schedule)].append(text)
                self.parts["scheduler"] = None if by_name else text

        self.facts["SCHEDULES"] = {kind for kind, texts in kinds.items() if texts}
        for kind, texts in kinds.items():
            listed = ", ".join(text.partition("  # ")[0] for text in texts)
            self.parts[f"{kind}_schedulers"] = f"[{listed}]" if by_name and texts else None

    def _scheduler(self, schedule: Scheduler, optimizer: str) -> str:
        epochs, steps = self.recipe.settings.epochs, self.recipe.steps_per_epoch()
        totals = schedule.totals(epochs, steps)
        words = [optimizer, *self._keywords({**totals, **schedule.keywords})]
        note = f"  # {epochs} epochs of {steps} steps" if totals and schedule.per_batch else ""
        return f"{self.quote.reference(schedule.target)}({', '.join(words)}){note}"

    def _made(self, spec: Optimizer, members: list[str]) -> str:
        """The call that makes an optimizer of the parameters of these names."""
        model = self.recipe.model
        assert model is not None  # an incomplete recipe is rejected before
        words = self._keywords(optimizer_keywords(spec, self.recipe))
        if (method := spec.method_of(model)) is not None:
            return f"model.{method}({', '.join(words)})"
        trained = "model" if spec.takes_model else self._trained(spec, model, members)
        return f"{self.quote.reference(spec.target)}({', '.join([trained, *words])})"

    def _trained(self, spec: Optimizer, model: nn.Module, members: list[str]) -> str:
        """The optimizer's parameters, or its groups of them by name."""
        parameters = dict(model.named_parameters())
        if not spec.groups:
            if len(members) == len(parameters):
                return "model.parameters()"
            if spec.params is None and len(self.recipe.optimizers) == 1:
                return "[p for p in model.parameters() if p.requires_grad]"
            return f"[model.get_parameter(name) for name in {in_quotes(members)}]"

        names = {id(parameter): name for name, parameter in parameters.items()}
        lines = []
        for group in parameter_groups(spec, {name: parameters[name] for name in members}):
            words = {key: value for key, value in group.items() if key != "params"}
            extra = "".join(
                f", {in_quotes(key)}: {self.quote.value(v, f'the keyword {key}')}" for key, v in words.items()
            )
            text = f"[model.get_parameter(name) for name in {in_quotes([names[id(p)] for p in group['params']])}]"
            lines.append(f'    {{"params": {text}{extra}}},\n')
        return f"[\n{''.join(lines)}]"


def schedule_kind(schedule: Scheduler) -> str:
    """When a scheduler is stepped: per "batch" or "epoch", with the "loss", or as "timm" does, with the epoch."""
    takes = StepArguments.of(schedule.target)
    if takes.epoch:
        return "timm"
    if schedule.watches_loss or takes.value:
        return "loss"
    return "batch" if schedule.per_batch else "epoch"


def in_quotes(value: str | list[str]) -> str:
    """A text, or a list of texts, in double quotes.

    >>> in_quotes(["0.weight", "1.weight"])
    '["0.weight", "1.weight"]'
    """
    return dumps(value, ensure_ascii=False)


def keywords_given(name: str, sources: Iterable[str]) -> set[str]:
    """The keywords with which a class or function is called in pieces of source code.

    >>> sorted(keywords_given("f", ["def g(x):\\n    return f(x, one=1, two=h(three=3))"]))
    ['one', 'two']
    """
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name]
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg is not None}


def split_imports(program: str) -> tuple[set[str], str]:
    """The import lines at the top of a program, one for each name that it uses; and the rest of it."""
    imports, used = set(), names_used(program)
    for statement in ast.parse(program).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module = f"from {statement.module} " if isinstance(statement, ast.ImportFrom) else ""
            names = [alias for alias in statement.names if (alias.asname or alias.name) in used]
            imports |= {f"{module}{ast.unparse(ast.Import([alias]))}" for alias in names}
        elif not isinstance(statement, ast.Expr):  # the docstring
            return imports, "\n".join(program.splitlines()[statement.lineno - 1 :])
    return imports, ""


def sorted_imports(lines: set[str]) -> str:
    """Import lines as ruff and isort have them: Python's own first, `import` before `from`, one line a module.

    >>> print(sorted_imports({"from torch import nn", "import math", "from torch import optim", "import torch"}))
    import math
    <BLANKLINE>
    import torch
    from torch import nn, optim
    """
    modules: dict[str, set[str]] = {}
    plain = set()
    for line in lines:
        module, _, name = line.removeprefix("from ").partition(" import ")
        if name:
            modules.setdefault(module, set()).add(name)
        else:
            plain.add(line)
    joined = [
        *sorted(plain),
        *(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(modules.items())),
    ]
    standard = [line for line in joined if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    others = [line for line in joined if line not in standard]
    return "\n\n".join("\n".join(block) for block in (standard, others) if block)


def as_code(recipe: Recipe, origin: Origin) -> str:
    """The script of a complete recipe.

    Args:
        recipe: a complete recipe.
        origin: of the model, initial weights and data.
    """
    return Script(recipe, origin).text()


def write_script(text: str, recipe: Recipe, initial_weights: dict[str, Any], folder: Path) -> None:
    """Write the script and the files that it loads: the samples and the initial weights.

    Args:
        text: of the script.
        recipe: with the samples.
        initial_weights: the weights before the first epoch.
        folder: where to write.

    Raises:
        CheckpointError: one of the files exists already.
    """
    files = Files(folder, recipe.settings.date)
    values: dict[Path, Any] = {files.weights("orig"): initial_weights}

    for split in SPLITS:
        source = getattr(recipe, split)
        if isinstance(source, Tensors):
            rows = [t.clone() if source.rows is None else t[source.rows] for t in source.tensors]
            values[files.tensors(split)] = source.pack([row.cpu() for row in rows])

    existing = [str(path) for path in (folder / SCRIPT, *values) if path.exists()]
    if existing:
        raise CheckpointError(f"as_code would overwrite {', '.join(existing)}: pass a folder that is empty or new.")
    for path, value in values.items():
        write(value, path)
    (folder / SCRIPT).write_text(text)
