"""Models of transformers, made from a configuration, and a `datasets.Dataset` train in two lines."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness.plain import SEED, quiet
from torch import Tensor, optim

from quik_nb import QuikSession
from quik_nb.training.rng import epoch_seed

SAMPLES, LENGTH, WORDS = 60, 8, 50


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """Without the libraries these tests are skipped; with them, nothing may be asked of the network."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("datasets", reason="datasets is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def bert(dropout: float = 0.1) -> Any:
    """A small BERT with two labels and always the same weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return BertForSequenceClassification(config)


def tokens(samples: int = SAMPLES) -> dict[str, Tensor]:
    """Sentences as a tokenizer gives them; the label says whether the first word is a frequent one."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, WORDS, (samples, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (samples, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": (ids[:, 0] < WORDS // 2).long()}


def dataset(samples: int = SAMPLES) -> Any:
    """The same as a `datasets.Dataset`, which keeps lists."""
    import datasets

    return datasets.Dataset.from_dict({name: value.tolist() for name, value in tokens(samples).items()})


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers, of logits that the model names."""
    return (outputs.argmax(dim=1) == targets).float().mean()


def session(data: Any, valid: Any, dropout: float = 0.1, **settings: Any) -> QuikSession:
    """The two lines: data and model; the loss is the model's own."""
    made = quiet(epochs=2, lr=1e-3, **settings).add_data(train=data, valid=valid)
    return made.add_model(bert(dropout)).set_optimizer(optim.AdamW).set_metrics(accuracy=accuracy)


@pytest.mark.slow
def test_dict_batches_train_as_by_hand() -> None:
    """A dict of tokens gives the losses of the loop one would write, dropout included."""
    model, data = bert(), tokens()
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    expected = []
    with torch.random.fork_rng():
        for epoch in range(2):
            seed = epoch_seed(SEED, epoch)
            order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed))
            torch.manual_seed(seed)
            model.train()
            total = 0.0
            for rows in order.split(16):
                loss = model(**{name: value[rows] for name, value in data.items()}).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                total += loss.item() * len(rows)
            expected.append(total / SAMPLES)
    trained = session(data, tokens(20))
    trained.train()

    assert expected == pytest.approx(list(trained.history.train_loss), abs=1e-6)


@pytest.mark.slow
def test_a_dataset_is_the_same_as_its_tensors() -> None:
    """A `datasets.Dataset` needs no format and no collate function; predict and report take it, too."""
    tensors, lists = session(tokens(), tokens(20), dropout=0.0), session(dataset(), dataset(20), dropout=0.0)
    tensors.train()
    lists.train()

    for column in ("train_loss", "valid_loss", "accuracy"):
        assert list(tensors.history[column]) == pytest.approx(list(lists.history[column]), abs=1e-6)
    assert torch.allclose(tensors.predict(tokens(20)), lists.predict(dataset(20)), atol=1e-5)
    assert tensors.report(["rare", "frequent"]).table.loc["accuracy", "f1-score"] == pytest.approx(
        list(tensors.history.accuracy)[-1]
    )


@pytest.mark.slow
def test_two_ranks_mixed_precision_and_micro_batches() -> None:
    """Two ranks have the losses of one, and bf16 with accumulation learns as well."""
    one, two = (session(tokens(), 0.2, dropout=0.0, processes=n) for n in (1, 2))
    half = session(tokens(), 0.2, dropout=0.0, precision="bf16", accumulate=4)
    for trained in (one, two, half):
        trained.train()

    assert list(one.history.train_loss) == pytest.approx(list(two.history.train_loss), abs=1e-5)
    assert list(one.history.train_loss) == pytest.approx(list(half.history.train_loss), abs=0.03)


@pytest.mark.slow
def test_saved_exported_and_quoted(tmp_path: Any) -> None:
    """A whole session comes back, its weights go out as safetensors, and its script imports the model's class."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from safetensors.torch import load_file

    trained = session(tokens(), 0.2)
    trained.train()
    loaded = QuikSession.load(trained.save(tmp_path / "session.pt"))
    exported = load_file(trained.export(tmp_path / "model.safetensors"))

    assert trained.evaluate("valid") == loaded.evaluate("valid")
    assert sorted(trained.model.state_dict()) == sorted(exported)
    assert "from transformers import BertForSequenceClassification" in trained.as_code()


def with_labels(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A small model that gives its own loss over words, and sentences of which some labels do not count."""
    import transformers

    small: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "bert":
        layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        make: Any = transformers.BertForMaskedLM
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config: Any = transformers.BertConfig(**small, **layers, **off)
    elif name == "gpt2":
        make = transformers.GPT2LMHeadModel
        off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        config = transformers.GPT2Config(**small, **off, n_embd=16, n_layer=1, n_head=2, n_positions=LENGTH)
    else:
        make = transformers.T5ForConditionalGeneration
        config = transformers.T5Config(
            **small,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make(config).double()

    sentences = {key: value for key, value in tokens().items() if key != "labels"}
    generator = torch.Generator().manual_seed(3)
    ignored = torch.rand(SAMPLES, LENGTH, generator=generator) < torch.rand(SAMPLES, 1, generator=generator)
    return model, {**sentences, "labels": sentences["input_ids"].masked_fill(ignored, -100)}


@pytest.mark.slow
@pytest.mark.parametrize("way", [{}, {"processes": 2, "accumulate": 2}])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_loss_of_the_model_over_words(name: str, way: dict[str, Any]) -> None:
    """Over the labels that count, shifted or not: the plain loop's steps, in parts and on ranks, and the mean over all
    words in the history."""
    plain, data = with_labels(name)
    optimizer = optim.SGD(plain.parameters(), lr=0.1)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch_seed(SEED, 0)))
    total = count = 0.0
    for rows in order.split(16):
        loss = plain(**{key: value[rows] for key, value in data.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        labels = data["labels"][rows, 1 if name == "gpt2" else 0 :]
        words = int((labels != -100).sum())
        total, count = total + loss.item() * words, count + words

    model, _ = with_labels(name)
    trained = quiet(epochs=1, lr=0.1, **way).add_data(train=data, valid=data).add_model(model)
    trained.set_optimizer(optim.SGD).train()

    assert total / count == pytest.approx(trained.history.train_loss[0], abs=1e-6)
    with torch.no_grad():
        plain.eval()
        assert plain(**data).loss.item() == pytest.approx(trained.history.valid_loss[0], abs=1e-6)
