"""Programs over sequences: a state that goes on from window to window, and sequences of unequal length."""

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

from programs.program import SAMPLES, Columns, Means, Program, drawn, epochs, made, session_of, update
from quik_nb import QuikSession, StepOutput

VALID = 20
WORDS = 11

# ---------------------------------------------------------------------- truncated backpropagation through time

STREAMS, WINDOW = 8, 5
"""Pieces of the text that are read side by side, and how many words of each are read in a step."""


class Speaker(nn.Module):
    """The language model of PyTorch's word_language_model: it goes on from the state that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(WORDS, 6), nn.LSTM(6, 8, batch_first=True)
        self.decoder = nn.Linear(8, WORDS)

    def forward(self, words: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.lstm(self.embedding(words), state)
        return self.decoder(hidden), state


def text(seed: int, windows: int) -> TensorDataset:
    """Windows of words and the words after them: those of one step lie side by side, a stream in each."""
    words = torch.randint(0, WORDS, (STREAMS, windows * WINDOW + 1), generator=torch.Generator().manual_seed(seed))
    words[:, 1:] = (words[:, :-1] + words[:, 1:] // 6) % WORDS

    def cut(part: Tensor) -> Tensor:
        return part.reshape(STREAMS, windows, WINDOW).transpose(0, 1).reshape(-1, WINDOW)

    return TensorDataset(cut(words[:, :-1]), cut(words[:, 1:]))


class CarriedState:
    """A step that begins each window where the one before it ended, and each split anew."""

    def __init__(self) -> None:
        self.state: Any = None

    def __call__(self, model: Any, criterion: Any, batch: Any, step: int) -> tuple[Tensor, Tensor]:
        words, after = batch
        state = None if step == 0 else tuple(part.detach() for part in self.state)
        outputs, self.state = model(words, state)
        return F.cross_entropy(outputs.flatten(0, 1), after.flatten()), outputs


def speaker(step: Any, **settings: Any) -> QuikSession:
    session = session_of(made(Speaker), **{"clip_norm": 0.25, "lr": 0.5, **settings}).set_step(step())
    train, valid = (DataLoader(text(seed, windows), batch_size=STREAMS) for seed, windows in ((1, 6), (2, 3)))
    return session.add_data(train=train, valid=valid).set_optimizer(optim.SGD)


def speaker_by_hand() -> Columns:
    model, means = made(Speaker), Means()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        state: Any = None
        for words, after in DataLoader(text(1, 6), batch_size=STREAMS):
            outputs, state = model(words, None if state is None else tuple(part.detach() for part in state))
            loss = F.cross_entropy(outputs.flatten(0, 1), after.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            means.add(STREAMS, train_loss=loss)
        state = None
        with torch.no_grad():
            for words, after in DataLoader(text(2, 3), batch_size=STREAMS):
                outputs, state = model(words, state)
                means.add(STREAMS, valid_loss=F.cross_entropy(outputs.flatten(0, 1), after.flatten()))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- packed sequences


class Walks(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of 2 to 6 points, and how far each comes."""

    def __init__(self, seed: int, samples: int) -> None:
        self.walks = [drawn(100 * seed + index, 2 + index % 5, 3) for index in range(samples)]

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.walks[index], self.walks[index].sum().tanh()


def packed(samples: list[Any]) -> tuple[PackedSequence, Tensor]:
    walks, ends = zip(*samples, strict=True)
    return pack_sequence(list(walks), enforce_sorted=False), torch.stack(ends)


class Walker(nn.Module):
    """Reads a walk, and says where it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 6), nn.Linear(6, 1)

    def forward(self, walks: PackedSequence) -> Tensor:
        _, last = self.gru(walks)
        return self.head(last[0])[:, 0]  # type: ignore[no-any-return]


def walks(**settings: Any) -> QuikSession:
    session = session_of(made(Walker), **settings).set_criterion(nn.MSELoss).set_optimizer(optim.Adagrad)
    return session.add_data(train=Walks(1, SAMPLES), valid=Walks(2, VALID), collate_fn=packed)


def walks_by_hand() -> Columns:
    model, criterion, means = made(Walker), nn.MSELoss(), Means()
    optimizer = optim.Adagrad(model.parameters(), lr=0.05)
    train, valid = Walks(1, SAMPLES), Walks(2, VALID)
    for batches in epochs():
        for rows in batches:
            sequences, ends = packed([train[row] for row in rows.tolist()])
            loss = criterion(model(sequences), ends)
            update(optimizer, loss)
            means.add(len(rows), train_loss=loss)
        with torch.no_grad():
            sequences, ends = packed([valid[row] for row in range(VALID)])
            means.add(1, valid_loss=criterion(model(sequences), ends))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- translation, a mean over the words that count

PAD = 0


class Translator(nn.Module):
    """An encoder, and a decoder that is told the words so far."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6, padding_idx=PAD)
        self.encoder, self.decoder = nn.GRU(6, 8, batch_first=True), nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(8, WORDS)

    def forward(self, source: Tensor, lengths: Tensor, so_far: Tensor) -> Tensor:
        inputs = pack_padded_sequence(self.embedding(source), lengths, batch_first=True, enforce_sorted=False)
        _, state = self.encoder(inputs)
        return self.head(self.decoder(self.embedding(so_far), state)[0])  # type: ignore[no-any-return]


class Sentences(Dataset[tuple[Tensor, Tensor]]):
    """Words of unequal number in two languages; the second is the first in reverse."""

    def __init__(self, seed: int, samples: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.source = [torch.randint(1, WORDS, (2 + index % 5,), generator=generator) for index in range(samples)]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.source[index], torch.cat([torch.tensor([1]), self.source[index].flip(0)])


def padded(samples: list[Any]) -> dict[str, Tensor]:
    source, target = zip(*samples, strict=True)
    return {
        "source": pad_sequence(list(source), batch_first=True, padding_value=PAD),
        "lengths": torch.tensor([len(words) for words in source]),
        "target": pad_sequence(list(target), batch_first=True, padding_value=PAD),
    }


def translation_loss(model: Any, criterion: Any, batch: Any) -> Tensor:
    outputs = model(batch["source"], batch["lengths"], batch["target"][:, :-1])
    return criterion(outputs.flatten(0, 1), batch["target"][:, 1:].flatten())  # type: ignore[no-any-return]


def translation_step(model: Any, criterion: Any, batch: Any) -> StepOutput:
    return StepOutput(translation_loss(model, criterion, batch), count=(batch["target"][:, 1:] != PAD).sum())


def translation(step: Any, **settings: Any) -> QuikSession:
    session = session_of(made(Translator), **settings).set_step(step).set_optimizer(optim.Adam)
    session.set_criterion(nn.CrossEntropyLoss, ignore_index=PAD)
    return session.add_data(train=Sentences(1, SAMPLES), valid=Sentences(2, VALID), collate_fn=padded)


def translation_by_hand() -> Columns:
    model, criterion, means = made(Translator), nn.CrossEntropyLoss(ignore_index=PAD), Means()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    train, valid = Sentences(1, SAMPLES), Sentences(2, VALID)
    for batches in epochs():
        for rows in batches:
            batch = padded([train[row] for row in rows.tolist()])
            loss = translation_loss(model, criterion, batch)
            update(optimizer, loss)
            means.add(int((batch["target"][:, 1:] != PAD).sum()), train_loss=loss)
        with torch.no_grad():
            means.add(1, valid_loss=translation_loss(model, criterion, padded([valid[i] for i in range(VALID)])))
        means.end_epoch()
    return means.columns


PROGRAMS = {
    "language model with a state": Program(
        lambda **settings: speaker(CarriedState, **settings),
        speaker_by_hand,
        ways=("one rank", "two ranks"),
        script=False,
    ),
    "packed sequences": Program(walks, walks_by_hand, script=False),
    "translation": Program(
        lambda **settings: translation(translation_loss, **settings), translation_by_hand, script=False
    ),
    "translation that says its count": Program(
        lambda **settings: translation(translation_step, **settings), translation_by_hand, script=False
    ),
}
