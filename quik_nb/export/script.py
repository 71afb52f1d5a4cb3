"""A session as the plain PyTorch script that does the same: for learning, and for leaving.

The script has the session's classes and keywords, the totals of its schedule, its seeds and its order of samples, so
it gives the same losses. It is put together from short paragraphs, each of which a reader could have typed.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quik_nb.errors import CheckpointError
from quik_nb.export.quoting import Quoter
from quik_nb.recipe.data import SPLITS, Samples, Source, Stream, Tensors, describe_source
from quik_nb.recipe.recipe import LABEL_KEYS, Recipe, Spec, fits
from quik_nb.storage.files import Files, write
from quik_nb.training.forward import Labels
from quik_nb.training.optimizers import optimizer_keywords
from quik_nb.training.rng import preserved

SCRIPT = "train.py"

SEEDS = '''
def epoch_seed(epoch):
    """A seed for each epoch, so that training can go on at any epoch with the same random numbers."""
    return int(np.random.SeedSequence([SEED, epoch, 0]).generate_state(1, np.uint32)[0])


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
'''

TO_DEVICE = """
def to_device(batch):
    if isinstance(batch, dict):
        return {name: to_device(value) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [to_device(value) for value in batch]
    return batch.to(device)
"""

AUTOCAST = {
    "bf16": "torch.autocast(device.type, dtype=torch.bfloat16)",
    "fp16": "torch.autocast(device.type, dtype=torch.float16)",
    "auto": 'torch.autocast("cuda", dtype=torch.bfloat16, enabled=torch.cuda.is_bf16_supported(False))',
}


class Script:
    """The paragraphs of one script.

    Args:
        recipe: complete.
        seeded: whether the model's maker, called under the seed, gives the weights that training starts from.
        maker: the function that makes the model; None for a model that was handed in.
        beside: whether its data lies in a folder beside it, as `write_script` puts it, rather than in the session's.
        at_hand: whether the file of the first weights there is not another session's.
    """

    def __init__(self, recipe: Recipe, maker: Any, seeded: bool, beside: bool, at_hand: bool) -> None:
        self.recipe, self.settings, self.maker, self.seeded = recipe, recipe.settings, maker, seeded
        self.beside, self.at_hand = beside, at_hand
        self.quote = Quoter()
        self.notes: list[str] = []
        assert recipe.train is not None  # Recipe.check has seen to it
        self.train: Source = recipe.train
        self.criterion = recipe.make_criterion()
        self.sums = recipe.reduction == "sum"
        self.splits = [split for split in ("train", "valid") if getattr(recipe, split) is not None]

    def text(self) -> str:
        """The whole script."""
        body = [
            self._constants(),
            SEEDS,
            *self._parts(),
            self._take(),
            self._compute(),
            *([self._validate()] if "valid" in self.splits else []),
            self._loop(),
        ]
        clash = sorted(names_made("\n".join(body)) & set(self.quote.definitions))
        if clash:
            self.quote.gaps.append(f"{', '.join(clash)} is a name of yours and of this script, so rename one of them")
        head = ['"""The training of a session as plain PyTorch."""', self._imports(), *self.quote.definitions.values()]
        notes = [f"# To fill in (where it says ...): {gap}." for gap in self.quote.gaps]
        notes += [f"# Not in this script: {note}." for note in self.notes]
        parts = [*head[:1], "\n".join(notes), *head[1:], *body]
        return "\n\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"

    def _imports(self) -> str:
        wanted = self.quote.imports | {
            "import numpy as np",
            "import torch",
            "from pathlib import Path",
            "import random",
        }
        if not all(isinstance(getattr(self.recipe, split), Tensors) for split in self.splits):
            wanted.add("from torch.utils.data import DataLoader")
        torches = sorted({"nn", "optim"} & {line.removeprefix("from torch import ") for line in wanted})
        wanted -= {"from torch import nn", "from torch import optim"}
        if torches:
            wanted.add(f"from torch import {', '.join(torches)}")
        standard = {line for line in wanted if line.split()[1].split(".")[0] in sys.stdlib_module_names}
        blocks = (sorted(block, key=_import_order) for block in (standard, wanted - standard))
        return "\n\n".join("\n".join(block) for block in blocks)

    def _constants(self) -> str:
        settings = self.settings
        lines = [
            f"EPOCHS = {settings.epochs}",
            f"BATCH_SIZE = {self._batch_size(self.train)}  # samples per optimizer step",
            f"SEED = {settings.seed}",
            f"DATE = {settings.date!r}",
            f"DATA = {self._folder()}",
        ]
        if settings.accumulate > 1:
            lines.insert(2, f"ACCUMULATE = {settings.accumulate}  # micro-batches per optimizer step")
        if settings.device is None:
            lines.append('device = torch.device("cuda" if torch.cuda.is_available() else "cpu")')
        else:
            lines.append(f"device = torch.device({settings.device!r})")
        return "\n".join(lines)

    def _folder(self) -> str:
        if self.beside:
            return "Path(__file__).parent / 'data'"
        return f"Path({str(Files(Path(self.settings.base_dir), self.settings.date).folder)!r})"

    def _batch_size(self, source: Source | None) -> int:
        return getattr(source, "batch_size", None) or self.settings.batch_size

    # ------------------------------------------------------------------ the parts

    def _parts(self) -> Iterator[str]:
        """Data, model, criterion, optimizer, scheduler: a paragraph each."""
        yield self._data()
        yield self._model()
        lines = [self._criterion(), self._optimizer(), self._scheduler()]
        if self.settings.precision == "fp16":
            lines.append('scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")')
        if self.settings.ema is not None:
            self.quote.imports.add("from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn")
            average = f"AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn({self.settings.ema}), use_buffers=True)"
            lines.append(f"average = {average}  # what is validated and saved")
        if self.settings.compile:
            lines.append("compiled = torch.compile(model)")
        yield "\n".join(filter(None, lines))

    def _data(self) -> str:
        lines: list[str] = []
        for split in self.splits:
            source = getattr(self.recipe, split)
            path = f'DATA / f"{split}_tensor_{{DATE}}.pt"'
            if isinstance(source, Tensors):
                kind = "a tuple of tensors, the target last" if source.names is None else "a dict of tensors"
                lines += [f"# {describe_source(source)}; {kind}", f"{split} = torch.load({path})"]
            else:
                self.quote.gaps.append(f"{split} is {describe_source(source)}: make or load it")
                lines.append(f"{split} = ...  # {describe_source(source)}")
        if any("torch.load" in line for line in lines):
            lines.insert(0, '# session.as_code("folder") writes these files, and this script beside them')
        return "\n".join(lines)

    def _model(self) -> str:
        model = self.recipe.model
        assert model is not None  # Recipe.check has seen to it
        lines = []
        if self.seeded:
            lines.append("seed_all(SEED)")
        made = self.quote.module(model) if self.maker is None else self._made()
        floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
        cast = f", {next(iter(floats))}" if self.maker is None and floats not in ({torch.float32}, set()) else ""
        lines.append(f"model = {made}.to(device{cast})")
        if not self.seeded and not self.at_hand:
            self.quote.gaps.append("the first weights there are another training's: as_code('folder') writes yours")
            lines.append("model.load_state_dict(...)")
        elif not self.seeded:
            lines.append('model.load_state_dict(torch.load(DATA / f"state_dict_eorig_{DATE}.pt"))  # the first weights')
        frozen = self._frozen(model)
        if frozen:
            lines += ["for name, parameter in model.named_parameters():", f"    if name in {frozen!r}:"]
            lines.append("        parameter.requires_grad_(False)")
        return "\n".join(lines)

    def _made(self) -> str:
        text = self.quote.reference(self.maker)
        return text.removeprefix("(lambda: ")[:-1] if text.startswith("(lambda: ") else f"{text}()"

    def _frozen(self, model: nn.Module) -> list[str]:
        pattern = self.settings.freeze
        named = model.named_parameters()
        return [name for name, p in named if not p.requires_grad or (pattern is not None and fits(name, pattern))]

    def _criterion(self) -> str:
        match self.recipe.criterion:
            case None:
                return ""
            case Spec(target=target, keywords=keywords) if isinstance(target, type) or not isinstance(
                self.criterion, nn.Module
            ):
                name = self.quote.reference(target)
            case Spec(keywords=keywords):  # a function whose class is the same thing
                name = self.quote.reference(type(self.criterion))
            case module:
                return f"criterion = {self.quote.module(module)}.to(device)"
        words = ", ".join(f"{k}={self.quote.value(v, f'the criterion has {k}, which')}" for k, v in keywords.items())
        if isinstance(self.criterion, nn.Module):
            return f"criterion = {name}({words}).to(device)"
        if not words:
            return f"criterion = {name}"
        self.quote.imports.add("from functools import partial")
        return f"criterion = partial({name}, {words})"

    def _optimizer(self) -> str:
        spec, model = self.recipe.optimizer, self.recipe.model
        assert spec is not None  # Recipe.check has seen to both
        assert model is not None
        name = self.quote.reference(spec.target)
        words = [
            f"{k}={self.quote.value(v, f'the keyword {k}')}" for k, v in optimizer_keywords(spec, self.recipe).items()
        ]
        lines, trained = [], "[p for p in model.parameters() if p.requires_grad]"
        if spec.groups:
            trained = "groups"
            lines.append("trained = {name: p for name, p in model.named_parameters() if p.requires_grad}")
            lines += ["groups = [", *self._groups(model), "]"]
        elif not self._frozen(model):
            trained = "model.parameters()"
        return "\n".join([*lines, f"optimizer = {name}({', '.join([trained, *words])})"])

    def _groups(self, model: nn.Module) -> Iterator[str]:
        spec, frozen = self.recipe.optimizer, self._frozen(model)
        assert spec is not None
        members: dict[str | None, list[str]] = {None: [], **{pattern: [] for pattern in spec.groups}}
        for name, _ in model.named_parameters():
            if name not in frozen:
                members[next((pattern for pattern in spec.groups if fits(name, pattern)), None)].append(name)
        for pattern, names in members.items():
            extra = spec.groups[pattern] if pattern is not None else {}
            words = "".join(f", {k!r}: {self.quote.value(v, f'the keyword {k}')}" for k, v in extra.items())
            if names:
                yield f"    {{'params': [trained[name] for name in {names!r}]{words}}},"

    def _scheduler(self) -> str:
        spec = self.recipe.scheduler
        if spec is None:
            return ""
        steps = self.train.steps(self.settings.batch_size)
        filled = spec.totals(self.settings.epochs, steps)
        keywords = {**filled, **spec.keywords}
        words = [f"{k}={self.quote.value(v, f'the keyword {k}')}" for k, v in keywords.items()]
        note = f"  # {self.settings.epochs} epochs of {steps} steps" if filled and spec.per_batch else ""
        return f"scheduler = {self.quote.reference(spec.target)}({', '.join(['optimizer', *words])}){note}"

    # ------------------------------------------------------------------ a batch

    def _take(self) -> str:
        """How a batch comes onto the device."""
        tensors = [getattr(self.recipe, split) for split in self.splits]
        parts = []
        if any(isinstance(source, Tensors) for source in tensors):
            names = self.train.names if isinstance(self.train, Tensors) else None
            batch = "[tensor[rows].to(device) for tensor in data]"
            if names is not None:
                batch = "{name: tensor[rows].to(device) for name, tensor in data.items()}"
            parts.append(
                f'def take(data, rows):\n    """These rows of all tensors, on the device."""\n    return {batch}'
            )
        if not all(isinstance(source, Tensors) for source in tensors):
            parts.append(TO_DEVICE)
        if self._counted(self.train) or self._counted(self.recipe.valid):
            parts.append(self._count())
        return "\n\n\n".join(part.strip("\n") for part in parts)

    def _compute(self) -> str:
        """The function that makes loss and outputs of a batch."""
        criterion = "criterion" if self.recipe.criterion is not None else "None"
        if self.recipe.step is not None:
            lines = [
                f"result = {self.quote.reference(self.recipe.step)}(net, {criterion}, batch)",
                "return result if isinstance(result, tuple) else (result, None)",
            ]
        elif self.recipe.criterion is None:
            lines = ["outputs = net(**batch)", f"return outputs.loss, outputs{self._logits}"]
        elif self._keys:
            lines = [f"inputs = {{name: value for name, value in batch.items() if name != {self._label!r}}}"]
            lines += [
                f"outputs = net(**inputs){self._logits}",
                f"return criterion(outputs, batch[{self._label!r}]), outputs",
            ]
        else:
            lines = ["*inputs, target = batch", f"outputs = net(*inputs){self._logits}"]
            lines.append("return criterion(outputs, target), outputs")
        return "\n".join(["def compute(net, batch):", *(f"    {line}" for line in lines)])

    @property
    def _logits(self) -> str:
        return ".logits" if type(self.recipe.model).__module__.startswith("transformers") else ""

    @property
    def _label(self) -> str:
        """The key of the target in a batch that is a dict."""
        return next((key for key in LABEL_KEYS if key in self._keys), "labels")

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        """The keys of a batch that is a dict; nothing where it is none, or where only reading a stream would tell."""
        if isinstance(self.train, Tensors):
            return self.train.names or ()
        if isinstance(self.train, Stream):
            return ()
        with preserved():
            sample = self.train.sample()
        return tuple(sample) if isinstance(sample, Mapping) else ()

    def _labels(self, source: Source | None) -> Labels | None:
        nobody = self.recipe.criterion is None or source is None
        return None if nobody else Labels.of(self.criterion, source)

    def _counted(self, source: Source | None) -> bool:
        return self._labels(source) is not None

    def _count(self) -> str:
        """What a mean over class weights, or without ignored labels, is a mean over."""
        labels = self._labels(self.train) or self._labels(self.recipe.valid)
        assert labels is not None
        target = f"batch[{self._label!r}]" if self._keys else "batch[-1]"
        kept = f"target[target != {labels.ignored}]"
        value = f"{kept}.numel()" if labels.weight is None else f"criterion.weight[{kept}].sum().item()"
        lines = ["def counted(batch):", '    """What the criterion takes its mean over."""', f"    target = {target}"]
        return "\n".join([*lines, f"    return {value}"])

    def _walk(self, split: str, order: str, size: str) -> list[str]:
        """The lines that go through a split in an order, batch by batch; they set `rows` and `batch`."""
        source = getattr(self.recipe, split)
        if isinstance(source, Tensors):
            return [f"for rows in {order}.split({size}):", f"    batch = take({split}, rows)"]
        options = "".join(
            f", {k}={self.quote.value(v, f'the loader has {k}, which')}" for k, v in source.options.items()
        )
        if isinstance(source, Samples):
            if source.sampler is not None or source.batch_sampler is not None:
                self.notes.append(f"the sampler of {split}, in whose place samples are shuffled or in order")
            whole = f" if len(rows) == {size}" if source.drop_last else ""
            lists = f"lists = [rows.tolist() for rows in {order}.split({size}){whole}]"
            return [
                lists,
                f"for rows, batch in zip(lists, DataLoader({split}, batch_sampler=lists{options})):",
                "    batch = to_device(batch)",
            ]
        words = "batch_size=None" if source.ready else f"batch_size={size}{', drop_last=True' * source.drop_last}"
        return [f"for batch in DataLoader({split}, {words}{options}):", "    batch = to_device(batch)"]

    def _length(self, split: str) -> str:
        source = getattr(self.recipe, split)
        if not isinstance(source, Tensors):
            return f"len({split})"
        return f"len({split}[0])" if source.names is None else f"len({split}[{source.names[0]!r}])"

    def _samples(self, split: str) -> str:
        """How many samples the loss of a batch is the mean of."""
        source = getattr(self.recipe, split)
        if self._counted(source):
            return "counted(batch)"
        return "len(batch[0])" if isinstance(source, Stream) else "len(rows)"

    # ------------------------------------------------------------------ validation

    def _validate(self) -> str:
        size = self._batch_size(self.recipe.valid)
        size_word = "BATCH_SIZE" if size == self._batch_size(self.train) else str(size)
        lines = ["net.eval()", "total, count = 0.0, 0"]
        metrics = self._metrics()
        lines += ["outputs, targets = [], []"] if metrics else []
        inner = self._in_autocast("loss, output = compute(net, batch)")
        inner += self._tally("valid", "loss")
        if metrics:
            target = f"batch[{self._label!r}]" if self._keys else "batch[-1]"
            inner += ["outputs.append(output)", f"targets.append({target})"]
        lines += [*self._walk("valid", f"torch.arange({self._length('valid')})", size_word), *_indented(inner)]
        lines.append('values = {"valid_loss": total / count}')
        if metrics:
            lines.append("outputs, targets = torch.cat(outputs), torch.cat(targets)")
        lines += [f"values[{name!r}] = float({function}(outputs, targets))" for name, function in metrics.items()]
        if not metrics:
            lines[-1] = lines[-1].replace("values =", "return")
        else:
            lines.append("return values")
        return "\n".join(["@torch.no_grad()", "def validate(net):", *_indented(lines)])

    def _metrics(self) -> dict[str, str]:
        """Functions of (outputs, targets) by name; other metrics are left out with a note."""
        plain = self.recipe.step is None
        named = {name: m for name, m in self.recipe.metrics.items() if plain and not hasattr(m, "compute")}
        left = [name for name in self.recipe.metrics if name not in named]
        if left:
            self.notes.append(f"the metrics {', '.join(left)}")
        if self.recipe.metrics and self.recipe.metrics_on_train:
            self.notes.append("the metrics of the training split")
        return {name: self.quote.reference(metric) for name, metric in named.items()}

    def _in_autocast(self, line: str) -> list[str]:
        context = AUTOCAST.get(self.settings.precision)
        return [line] if context is None else [f"with {context}:", f"    {line}"]

    def _tally(self, split: str, loss: str) -> list[str]:
        if self.sums:
            return [f"total += {loss}.item()", f"count += {self._samples(split)}"]
        samples = self._samples(split)
        lines = [] if samples.startswith("len(rows") else [f"samples = {samples}"]
        name = samples if not lines else "samples"
        return [*lines, f"total += {loss}.item() * {name}", f"count += {name}"]

    # ------------------------------------------------------------------ the loop

    def _loop(self) -> str:
        epoch = ["seed = epoch_seed(epoch)"]
        if not isinstance(self.train, Stream):
            shuffled = getattr(self.train, "shuffle", None) is not False
            generator = "torch.Generator().manual_seed(seed)"
            whole = f"torch.randperm({self._length('train')}, generator={generator})"
            order = whole if shuffled else f"torch.arange({self._length('train')})"
            epoch.append(f"order = {order}")
        epoch += ["seed_all(seed)", "model.train()", "total, count = 0.0, 0", *self._steps()]
        epoch.append('values = {"epoch": epoch, "train_loss": total / count}')
        if "valid" in self.splits:
            epoch.append(f"values.update(validate({self._judged}))")
        epoch += self._end_of_epoch()
        lines = ["history = []", *(["level, stale = math.inf, 0"] if self.settings.patience else [])]
        return "\n".join([*lines, "for epoch in range(EPOCHS):", *_indented(epoch)])

    def _steps(self) -> list[str]:
        """Forward, backward, update, for all batches of an epoch."""
        net = "compiled" if self.settings.compile else "model"
        forward = self._in_autocast(f"loss, _ = compute({net}, batch)")
        if self.settings.accumulate == 1 or not isinstance(self.train, Tensors):
            if self.settings.accumulate > 1:
                self.notes.append("accumulation, as whole batches give the same numbers")
            inner = [*forward, f"{self._scaled('loss')}.backward()", *self._update(), *self._tally("train", "loss")]
            return [*self._walk("train", "order", "BATCH_SIZE"), *_indented(inner)]
        whole, part = "len(step_rows)", self._samples("train")
        before = ["whole = counted(take(train, step_rows))"] if part.startswith("counted") else []
        share = f"loss * {part} / {'whole' if before else whole}" if not self.sums else "loss"
        backward = f"{self._scaled(f'({share})' if share != 'loss' else share)}.backward()"
        inner = [
            *before,
            "for rows in step_rows.split(-(-len(step_rows) // ACCUMULATE)):",
            "    batch = take(train, rows)",
        ]
        inner += [*_indented([*forward, backward, *self._tally("train", "loss")]), *self._update()]
        return ["for step_rows in order.split(BATCH_SIZE):", *_indented(inner)]

    def _scaled(self, loss: str) -> str:
        return f"scaler.scale({loss})" if self.settings.precision == "fp16" else loss

    def _update(self) -> list[str]:
        settings, lines = self.settings, []
        scaled = settings.precision == "fp16"
        if scaled and (settings.clip_value is not None or settings.clip_norm is not None):
            lines.append("scaler.unscale_(optimizer)")
        if settings.clip_value is not None:
            lines.append(f"nn.utils.clip_grad_value_(model.parameters(), {settings.clip_value!r})")
        if settings.clip_norm is not None:
            lines.append(f"nn.utils.clip_grad_norm_(model.parameters(), {settings.clip_norm!r})")
        if len(lines) > scaled:
            self.quote.imports.add("from torch import nn")
        lines += ["scaler.step(optimizer)", "scaler.update()"] if scaled else ["optimizer.step()"]
        lines.append("optimizer.zero_grad()")
        if settings.ema is not None:
            lines.append("average.update_parameters(model)")
        if self.recipe.scheduler is not None and self.recipe.scheduler.per_batch:
            lines.append("scheduler.step()")
        return lines

    @property
    def _judged(self) -> str:
        return "model" if self.settings.ema is None else "average.module"

    def _end_of_epoch(self) -> list[str]:
        spec, settings, lines = self.recipe.scheduler, self.settings, []
        watched = f'values["{"valid_loss" if "valid" in self.splits else "train_loss"}"]'
        if spec is not None and not spec.per_batch:
            lines.append(f"scheduler.step({watched if spec.watches_loss else ''})")
        lines += ["history.append(values)", "print(values)"]
        if settings.save:
            lines.append("DATA.mkdir(parents=True, exist_ok=True)")
            lines.append('path = DATA / f"state_dict_e{epoch}_{DATE}.pt"')
            lines.append("path.unlink(missing_ok=True)  # a session may still hold the file of that name")
            lines.append(f"torch.save({self._judged}.state_dict(), path)")
        if settings.patience is not None:
            self.quote.imports.add("import math")
            lines.append(f"better = {watched} < level - {settings.min_delta!r}")
            lines.append(f"level, stale = ({watched}, 0) if better else (level, stale + 1)")
            lines += [f"if stale >= {settings.patience}:", "    break"]
        return lines


def _import_order(line: str) -> tuple[bool, str]:
    """As ruff and isort have it: `import` before `from`, each by name."""
    return line.startswith("from"), line


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def names_made(code: str) -> set[str]:
    """The names that a module of this code gives to things; those within functions and comprehensions are their own.

    >>> sorted(names_made("a, b = 1, 2\\nfor c in []:\\n    d = [e for e in c]\\ndef f():\\n    g = 1"))
    ['a', 'b', 'c', 'd', 'f']
    """
    made: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        elif not isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda):
            for inner in ast.iter_child_nodes(node):
                look(inner)

    look(ast.parse(code))
    return made


def as_code(recipe: Recipe, maker: Any, seeded: bool, beside: bool = False, at_hand: bool = True) -> str:
    """The script of a complete recipe.

    Args:
        recipe: that can train.
        maker: the function or class that made the model; None for a model that was handed in.
        seeded: whether the maker, called under the seed, gives the weights that training starts from.
        beside: whether its data will lie in a folder beside it.
        at_hand: whether the file of the first weights, where it loads them, is not another session's.
    """
    return Script(recipe, maker, seeded, beside, at_hand).text()


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
