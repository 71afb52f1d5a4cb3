"""Programs with models and collators of transformers, made from a configuration, over words that are made up."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, optim
from torch.utils.data import DataLoader, Dataset

from programs.program import SAMPLES, Columns, Means, Program, epochs, made, session_of, update
from quik_nb import QuikSession

VALID = 20
WORDS = 30


def tokenizer() -> Any:
    """One that knows words by their numbers alone; nothing is downloaded."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{number}" for number in range(WORDS - len(special))]
    vocabulary = {word: number for number, word in enumerate(words)}
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True))
    model = models.WordLevel(vocabulary, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **names)


class Sentences(Dataset[dict[str, Any]]):
    """Lists of word numbers of unequal length, as a tokenizer gives them without padding."""

    def __init__(self, seed: int, samples: int, labels: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for index in range(samples):
            ids = torch.randint(5, WORDS, (3 + index % 6,), generator=generator).tolist()
            row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
            self.rows.append({**row, "labels": ids[0] % 2} if labels else row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CERTAIN: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(kind: str) -> Any:
    import transformers

    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, num_labels=2, **SMALL, **CERTAIN)
    return made(lambda: getattr(transformers, kind)(config))


def gpt2() -> Any:
    import transformers

    certain = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=2, eos_token_id=3, **certain
    )
    return made(lambda: transformers.GPT2LMHeadModel(config))


def with_padding() -> Any:
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer())


def masked() -> Any:
    """Which words are masked is drawn in each batch anew."""
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer(), mlm_probability=0.4)


def next_word() -> Any:
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer(), mlm=False)


class MaskedByPlace:
    """A collator that masks the same words of a sentence each time, and more of them in some sentences."""

    def __init__(self) -> None:
        self.pad = with_padding()

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        batch = self.pad(samples)
        ids = batch["input_ids"]
        is_masked = (ids % (2 + ids[:, :1] % 3) == 0) & batch["attention_mask"].bool()
        batch["labels"] = ids.masked_fill(~is_masked, -100)
        batch["input_ids"] = ids.masked_fill(is_masked, self.pad.tokenizer.mask_token_id)
        return batch


def session(model: Any, collate: Any, labels: bool = False, **settings: Any) -> QuikSession:
    made_session = session_of(model, **{"lr": 0.01, **settings}).set_optimizer(optim.AdamW)
    train, valid = Sentences(1, SAMPLES, labels), Sentences(2, VALID, labels)
    return made_session.add_data(train=train, valid=valid, collate_fn=collate)


def by_hand(model: Any, collate: Any, labels: bool = False, shifted: bool = False) -> Columns:
    means = Means()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    train, valid = Sentences(1, SAMPLES, labels), Sentences(2, VALID, labels)

    def count(batch: Any) -> int:
        counted: Tensor = batch["labels"][:, 1:] if shifted else batch["labels"]
        return int((counted != -100).sum())

    for batches in epochs():
        model.train()
        for batch in DataLoader(train, batch_sampler=[rows.tolist() for rows in batches], collate_fn=collate):
            loss = model(**batch).loss
            update(optimizer, loss)
            means.add(count(batch), train_loss=loss)
        model.eval()
        with torch.no_grad():
            for batch in DataLoader(valid, 16, collate_fn=collate):
                means.add(count(batch), valid_loss=model(**batch).loss)
        means.end_epoch()
    return means.columns


def programs() -> dict[str, Program]:
    """None where transformers is not installed."""
    if find_spec("transformers") is None:
        return {}
    kinds = ("BertForSequenceClassification", "BertForMaskedLM")
    return {
        "BERT that classifies": Program(
            lambda **settings: session(bert(kinds[0]), with_padding(), labels=True, **settings),
            lambda: by_hand(bert(kinds[0]), with_padding(), labels=True),
            script=False,
            slow=True,
        ),
        "BERT that fills gaps": Program(
            lambda **settings: session(bert(kinds[1]), MaskedByPlace(), **settings),
            lambda: by_hand(bert(kinds[1]), MaskedByPlace()),
            script=False,
            slow=True,
        ),
        "BERT that fills gaps, drawn in each batch": Program(
            lambda **settings: session(bert(kinds[1]), masked(), **settings),
            lambda: by_hand(bert(kinds[1]), masked()),
            ways=("one rank",),
            script=False,
            slow=True,
        ),
        "GPT-2": Program(
            lambda **settings: session(gpt2(), next_word(), **settings),
            lambda: by_hand(gpt2(), next_word(), shifted=True),
            script=False,
            slow=True,
        ),
    }


PROGRAMS = programs()
