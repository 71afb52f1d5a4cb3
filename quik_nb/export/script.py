"""A session as the plain PyTorch script that does the same: for learning, and for leaving.

The script has the session's classes and keywords, the totals of its schedule, its seeds and its order of samples, so
it gives the same losses. Its text is `plain_loop.py`, of which what this session needs is left. What is not here: how
objects become text (`quoting.py`), and how branches are taken out of a program (`template.py`).
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quik_nb.errors import CheckpointError
from quik_nb.export.quoting import GAP, Quoter
from quik_nb.export.template import Template, names_made
from quik_nb.recipe.data import SPLITS, Source, Stream, Tensors, describe_source
from quik_nb.recipe.recipe import LABEL_KEYS, Optimizer, Recipe, Spec, fits
from quik_nb.storage.files import Files, write
from quik_nb.training.forward import Labels
from quik_nb.training.optimizers import optimizer_keywords, parameter_groups
from quik_nb.training.rng import preserved

SCRIPT = "train.py"

PLAIN_LOOP = Path(__file__).with_name("plain_loop.py")

AUTOCAST = {
    "bf16": "torch.autocast(device.type, dtype=torch.bfloat16)",
    "fp16": "torch.autocast(device.type, dtype=torch.float16)",
    "auto": 'torch.autocast("cuda", dtype=torch.bfloat16, enabled=torch.cuda.is_bf16_supported(False))',
}
"""The context of a forward pass by `Settings.precision`; fp32 has none."""

WRITTEN_BESIDE = '  # session.as_code("folder") writes these files, and this script beside them'


@dataclass(frozen=True)
class Origin:
    """Where a script finds what its training starts from."""

    maker: Any
    """the function or class that made the model; None for a model that was handed in"""
    seeded: bool
    """whether the maker, called under the seed, gives the weights that training starts from"""
    beside: bool
    """whether the data lies in a folder beside the script, as `write_script` puts it, rather than in the session's"""
    at_hand: bool
    """whether the file of the first weights there is not another session's"""


class Script:
    """What a session answers to the questions of the plain loop, and its parts as text.

    Args:
        recipe: complete.
        origin: of its data and weights.
    """

    def __init__(self, recipe: Recipe, origin: Origin) -> None:
        self.recipe = recipe
        self.origin = origin
        self.quote = Quoter()
        self.answers: dict[str, bool] = {}
        self.parts: dict[str, str | None] = {}
        self.inlined: dict[str, str] = {}
        self.notes: list[str] = []
        """what the session does and the script does not"""

    def text(self) -> str:
        """The whole script."""
        self._settings()
        self._data()
        self._batches()
        self._model()
        self._loss()
        self._metrics()
        self._optimizer()

        imports, body = Template(PLAIN_LOOP.read_text(), self.answers, self.parts, self.inlined).filled()
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
        """Ask for another name where the script would use one of the user's for something of its own."""
        quoted = [text or "" for text in self.parts.values()]
        quoted += [text for name, text in self.inlined.items() if name.startswith("STEP") or "LOADER" in name]
        hidden = names_made(body, local=True) & set(re.findall(r"\w+", " ".join(quoted)))
        clash = sorted((names_made(body) | hidden) & set(self.quote.definitions))
        if clash:
            self.quote.gaps.append(f"{', '.join(clash)} is a name of yours and of this script, so rename one of them")

    def _optional(self, **parts: str | None) -> None:
        """Fill in parts that a training can do without; None for those that this one does not have."""
        for name, part in parts.items():
            self.parts[name] = part
            self.answers[f"{name} is not None"] = part is not None

    # ------------------------------------------------------------------ settings

    def _settings(self) -> None:
        settings = self.recipe.settings
        folder = Files(Path(settings.base_dir), settings.date).folder
        self.parts |= {
            "EPOCHS": repr(settings.epochs),
            "SEED": repr(settings.seed),
            "MIN_DELTA": repr(settings.min_delta),
            "DATE": in_quotes(settings.date),
            "DATA": 'Path(__file__).parent / "data"' if self.origin.beside else f"Path({in_quotes(str(folder))})",
            "autocast": AUTOCAST.get(settings.precision),
        }
        if settings.device is not None:
            self.parts["device"] = f"torch.device({in_quotes(settings.device)})"

        for name in ("clip_norm", "clip_value", "patience", "ema"):
            value = getattr(settings, name)
            self._optional(**{name.upper(): None if value is None else repr(value)})

        self._whether("average", settings.ema is not None)
        self._whether("ema", settings.ema is not None)
        self._instead("evaluated", "model" if settings.ema is None else "average.module")

        self._whether("scaler", settings.precision == "fp16")
        self.answers |= {"PRECISION == 'fp16'": settings.precision == "fp16", "SAVE": settings.save}

        self.answers["COMPILE"] = settings.compile
        if not settings.compile:
            self._instead("net", "model")

        self.answers["ACCUMULATE > 1"] = settings.accumulate > 1
        self.parts["ACCUMULATE"] = repr(settings.accumulate)
        if settings.accumulate == 1:
            self._instead("part", "batch")

    def _whether(self, name: str, there: bool) -> None:
        """Whether the script has a variable, which the plain loop makes itself."""
        self.answers[f"{name} is not None"] = there
        if not there:
            self.parts[name] = None

    def _instead(self, name: str, text: str) -> None:
        """Write this wherever the plain loop has a variable, and leave the variable out."""
        self.parts[name] = None
        self.inlined[rf"{name}\b"] = text

    # ------------------------------------------------------------------ data

    def _sources(self) -> dict[str, Source]:
        """The splits that there are, by name."""
        splits = {"train": self.recipe.train, "valid": self.recipe.valid}
        return {split: source for split, source in splits.items() if source is not None}

    def _data(self) -> None:
        self._optional(valid=None)
        self._instead("MONITOR", '"valid_loss"' if self.recipe.valid is not None else '"train_loss"')
        for split, source in self._sources().items():
            what = describe_source(source)
            if isinstance(source, Tensors):
                self._optional(**{split: f'torch.load(DATA / f"{split}_tensor_{{DATE}}.pt")  # {what}'})
                self.parts["DATA"] = f"{str(self.parts['DATA']).removesuffix(WRITTEN_BESIDE)}{WRITTEN_BESIDE}"
            else:
                self.quote.gaps.append(f"{split} is {what}: make or load it")
                self._optional(**{split: f"{GAP}  # {what}"})
            self.answers[f"isinstance({split}, tuple | dict)"] = isinstance(source, Tensors)
            self.answers[f"isinstance({split}, IterableDataset)"] = isinstance(source, Stream)

    def _batches(self) -> None:
        sizes = {split: self._batch_size(source) for split, source in self._sources().items()}
        self.parts["BATCH_SIZE"] = sizes["train"]
        self.parts["VALID_BATCH_SIZE"] = sizes.get("valid")
        if sizes.get("valid") == sizes["train"]:
            self._instead("VALID_BATCH_SIZE", "BATCH_SIZE")

        self.answers["SHUFFLE"] = getattr(self.recipe.train, "shuffle", None) is not False
        for split, source in self._sources().items():
            options = "" if isinstance(source, Tensors) else "".join(self._loader_keywords(split, source))
            self.parts[f"{split.upper()}_LOADER"] = None
            self.inlined[rf", \*\*{split.upper()}_LOADER"] = options

    def _batch_size(self, source: Source) -> str:
        if isinstance(source, Stream) and source.ready:
            return "None  # batches come ready"
        return repr(getattr(source, "batch_size", None) or self.recipe.settings.batch_size)

    def _loader_keywords(self, split: str, source: Any) -> Iterator[str]:
        if source.sampler is not None or getattr(source, "batch_sampler", None) is not None:
            self.notes.append(f"the sampler of {split}, in whose place samples are shuffled or in order")
        if source.drop_last and (split == "train" or isinstance(source, Stream)):
            yield ", drop_last=True"
        for name, value in source.options.items():
            yield f", {name}={self.quote.value(value, f'the loader has {name}, which')}"

    # ------------------------------------------------------------------ model

    def _model(self) -> None:
        model, origin = self.recipe.model, self.origin
        assert model is not None  # an incomplete recipe is refused before
        if origin.maker is None:
            floats = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
            cast = f", {next(iter(floats))}" if len(floats) == 1 else ""
            self.parts["model"] = f"{self.quote.module(model)}.to(device{cast})"
        else:
            made = self.quote.reference(origin.maker)
            is_lambda = made.startswith("(lambda: ")
            self.parts["model"] = f"{made.removeprefix('(lambda: ')[:-1] if is_lambda else f'{made}()'}.to(device)"

        weights = 'DATA / f"state_dict_eorig_{DATE}.pt"'
        if not origin.seeded and not origin.at_hand:
            self.quote.gaps.append("the first weights there are another training's: as_code('folder') writes yours")
            weights = GAP
        self._optional(FIRST_WEIGHTS=None if origin.seeded else weights)

        frozen = self._frozen(model)
        self.parts["FROZEN"], self.answers["FROZEN"] = in_quotes(frozen), bool(frozen)

    def _frozen(self, model: nn.Module) -> list[str]:
        pattern = self.recipe.settings.freeze
        named = model.named_parameters()
        return [name for name, p in named if not p.requires_grad or (pattern is not None and fits(name, pattern))]

    # ------------------------------------------------------------------ loss and metrics

    def _loss(self) -> None:
        recipe = self.recipe
        self.parts["criterion"] = self._criterion()
        self.answers["criterion is not None"] = recipe.criterion is not None
        self.answers["REDUCTION == 'sum'"] = recipe.reduction == "sum"
        self.answers["hasattr(outputs, 'logits')"] = type(recipe.model).__module__.startswith("transformers")
        self.answers["STEP is not None"] = recipe.step is not None
        if recipe.step is not None:
            self._instead("STEP", self.quote.reference(recipe.step))

        keys = self._keys()
        if keys is not None:
            self.answers |= {"isinstance(batch, dict)": bool(keys), "isinstance(data, dict)": bool(keys)}
        label = next((key for key in LABEL_KEYS if key in (keys or ())), "labels")
        self._instead("LABEL", in_quotes(label))
        self._count(keys)

    def _count(self, keys: tuple[str, ...] | None) -> None:
        """What the loss of a batch is a mean over: samples, unless labels are weighted or ignored."""
        criterion = self.recipe.make_criterion()
        labels = [Labels.of(criterion, source) for source in self._sources().values()]
        weighted = next((found for found in labels if found is not None), None)
        self.answers["isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss)"] = weighted is not None
        self.answers["criterion.weight is not None"] = weighted is not None and weighted.weight is not None
        if weighted is None:
            self.inlined[r"count\(criterion, (\w+)\)"] = r"count_samples(\1)"
        if keys is not None and all(isinstance(source, Tensors) for source in self._sources().values()):
            first = in_quotes(keys[0]) if keys else "0"
            self.inlined[r"count_samples\((\w+)\)"] = rf"len(\1[{first}])"

    def _keys(self) -> tuple[str, ...] | None:
        """The keys of a batch that is a dict; empty where it is none; None where only reading a stream would tell."""
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
        if isinstance(criterion, nn.Module):  # also where a function was set whose class is the same thing
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
        named = {name: metric for name, metric in plain.items() if not hasattr(metric, "compute")}
        left_out = [name for name in recipe.metrics if name not in named]
        if left_out:
            self.notes.append(f"the metrics {', '.join(left_out)}")
        if recipe.metrics and recipe.metrics_on_train:
            self.notes.append("the metrics of the training split")
        pairs = (f"{in_quotes(name)}: {self.quote.reference(metric)}" for name, metric in named.items())
        self.parts["METRICS"], self.answers["METRICS"] = f"{{{', '.join(pairs)}}}", bool(named)

    # ------------------------------------------------------------------ optimizer and scheduler

    def _optimizer(self) -> None:
        spec, model, train = self.recipe.optimizer, self.recipe.model, self.recipe.train
        assert spec is not None  # an incomplete recipe is refused before
        assert model is not None
        assert train is not None
        words = self._keywords(optimizer_keywords(spec, self.recipe))
        trained = self._trained(spec, model)
        self.parts["optimizer"] = f"{self.quote.reference(spec.target)}({', '.join([trained, *words])})"

        schedule = self.recipe.scheduler
        self._optional(scheduler=None)
        if schedule is not None:
            steps = train.steps(self.recipe.settings.batch_size)
            totals = schedule.totals(self.recipe.settings.epochs, steps)
            words = ["optimizer", *self._keywords({**totals, **schedule.keywords})]
            note = f"  # {self.recipe.settings.epochs} epochs of {steps} steps" if totals and schedule.per_batch else ""
            self._optional(scheduler=f"{self.quote.reference(schedule.target)}({', '.join(words)}){note}")
            self.answers["isinstance(scheduler, OneCycleLR)"] = schedule.per_batch
            self.answers["isinstance(scheduler, ReduceLROnPlateau)"] = schedule.watches_loss and not schedule.per_batch
        else:
            self.answers |= {f"isinstance(scheduler, {name})": False for name in ("OneCycleLR", "ReduceLROnPlateau")}

    def _trained(self, spec: Optimizer, model: nn.Module) -> str:
        """The optimizer's parameters, or its groups of them by name."""
        frozen = self._frozen(model)
        if not spec.groups:
            return "[p for p in model.parameters() if p.requires_grad]" if frozen else "model.parameters()"
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        lines = []
        for group in parameter_groups(spec, model):
            words = {key: value for key, value in group.items() if key != "params"}
            members = [names[id(p)] for p in group["params"] if names[id(p)] not in frozen]
            extra = "".join(
                f", {in_quotes(key)}: {self.quote.value(v, f'the keyword {key}')}" for key, v in words.items()
            )
            if members:
                parameters = f"[model.get_parameter(name) for name in {in_quotes(members)}]"
                lines.append(f'    {{"params": {parameters}{extra}}},\n')
        return f"[\n{''.join(lines)}]"


def in_quotes(value: str | list[str]) -> str:
    """A text, or a list of texts, in double quotes.

    >>> in_quotes(["0.weight", "1.weight"])
    '["0.weight", "1.weight"]'
    """
    return dumps(value, ensure_ascii=False)


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
    own = [line for line in joined if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    return "\n\n".join("\n".join(block) for block in (own, [line for line in joined if line not in own]) if block)


def as_code(recipe: Recipe, maker: Any, seeded: bool, beside: bool = False, at_hand: bool = True) -> str:
    """The script of a complete recipe.

    Args:
        recipe: that can train.
        maker: the function or class that made the model; None for a model that was handed in.
        seeded: whether the maker, called under the seed, gives the weights that training starts from.
        beside: whether its data will lie in a folder beside it.
        at_hand: whether the file of the first weights, where it loads them, is not another session's.
    """
    return Script(recipe, Origin(maker, seeded, beside, at_hand)).text()


def write_script(text: str, recipe: Recipe, original: dict[str, Any], folder: Path) -> None:
    """Write the script, and beside it what it loads: the samples and the weights of before the first epoch.

    Raises:
        CheckpointError: one of the files is there already.
    """
    files = Files(folder, recipe.settings.date)
    values: dict[Path, Any] = {files.weights("orig"): original}
    for split in SPLITS:
        source = getattr(recipe, split)
        if isinstance(source, Tensors):
            rows = [t.clone() if source.rows is None else t[source.rows] for t in source.tensors]
            values[files.tensors(split)] = source.pack([row.cpu() for row in rows])
    there = [str(path) for path in (folder / SCRIPT, *values) if path.exists()]
    if there:
        raise CheckpointError(f"as_code would overwrite {', '.join(there)}: name a folder that is empty or new.")
    for path, value in values.items():
        write(value, path)
    (folder / SCRIPT).write_text(text)
