"""Programs over numbers: closures, quantiles, teachers, adapters, ratings, adversaries, and a loop of one's own."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from programs.program import EPOCHS, SAMPLES, Columns, Means, Program, drawn, epochs, made, session_of, update
from quik_nb import QuikSession, StepOutput

VALID = 20

# ---------------------------------------------------------------------- waves by LBFGS


class Waves(nn.Module):
    """The two LSTM cells of PyTorch's time_sequence_prediction, and small."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1, self.lstm2, self.linear = nn.LSTMCell(1, 6), nn.LSTMCell(6, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor, future: int = 0) -> Tensor:
        outputs, one, two, out = [], None, None, x[:, :1]
        for step in range(x.size(1) + future):
            one = self.lstm1(x[:, step : step + 1] if step < x.size(1) else out, one)
            two = self.lstm2(one[0], two)
            out = self.linear(two[0])
            outputs.append(out)
        return torch.cat(outputs, dim=1)


def waves_data(seed: int, samples: int) -> tuple[Tensor, Tensor]:
    """Sines of unequal phase, and the same a step later."""
    phase = drawn(seed, samples, 1)
    waves = torch.sin(torch.arange(9, dtype=torch.float64) * 0.6 + phase)
    return waves[:, :-1], waves[:, 1:]


LBFGS: dict[str, Any] = {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"}


def waves(**settings: Any) -> QuikSession:
    session = session_of(made(Waves), **{"batch_size": SAMPLES, **settings}).set_criterion(nn.MSELoss)
    session.set_optimizer(optim.LBFGS, **LBFGS)
    return session.add_data(train=waves_data(1, SAMPLES), valid=waves_data(2, VALID))


def waves_by_hand() -> Columns:
    model, criterion, means = made(Waves), nn.MSELoss(), Means()
    optimizer = optim.LBFGS(model.parameters(), **LBFGS)
    (x, y), valid = waves_data(1, SAMPLES), waves_data(2, VALID)
    for _ in range(EPOCHS):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss  # type: ignore[no-any-return]

        means.add(1, train_loss=optimizer.step(closure))  # type: ignore[arg-type]
        with torch.no_grad():
            means.add(1, valid_loss=criterion(model(valid[0]), valid[1]))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- quantiles


class Pinball(nn.Module):
    """The loss of Koenker and Bassett (1978) for several quantiles at once."""

    def __init__(self, quantiles: list[float]) -> None:
        super().__init__()
        self.register_buffer("quantiles", torch.tensor(quantiles, dtype=torch.float64))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        error = target[:, None] - outputs
        return torch.maximum(self.quantiles * error, (self.quantiles - 1) * error).sum(1).mean()


def houses(seed: int, samples: int) -> pd.DataFrame:
    """A table of numbers, of which one is looked for."""
    x = drawn(seed, samples, 4)
    frame = pd.DataFrame(x.numpy(), columns=["rooms", "age", "distance", "noise"])
    frame["price"] = 2 * frame.rooms - frame.age + frame.noise * frame.distance.abs()
    return frame[["rooms", "age", "price", "distance"]]


class Prices(nn.Module):
    """Several quantiles by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def quantiles(**settings: Any) -> QuikSession:
    session = session_of(made(Prices), **settings).set_criterion(Pinball, quantiles=[0.1, 0.5, 0.9])
    session.set_optimizer(optim.RMSprop, lr=0.01)
    return session.add_data(train=houses(1, SAMPLES), valid=houses(2, VALID), target="price")


def quantiles_by_hand() -> Columns:
    model, criterion, means = made(Prices), Pinball([0.1, 0.5, 0.9]), Means()
    optimizer = optim.RMSprop(model.parameters(), lr=0.01)
    train, valid = (
        [torch.tensor(part.to_numpy()) for part in (table[["rooms", "age", "distance"]], table.price)]
        for table in (houses(1, SAMPLES), houses(2, VALID))
    )
    for batches in epochs():
        for rows in batches:
            loss = criterion(model(train[0][rows]), train[1][rows])
            update(optimizer, loss)
            means.add(len(rows), train_loss=loss)
        with torch.no_grad():
            means.add(1, valid_loss=criterion(model(valid[0]), valid[1]))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- distillation


def classes(seed: int, samples: int) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 6) and three classes."""
    x = drawn(seed, samples, 6)
    return x, x[:, :3].argmax(1)


def teacher() -> nn.Module:
    """A larger network, which is trained already; its dropout is off."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(), nn.Tanh(), nn.Linear(16, 3))

    return made(build).eval().requires_grad_(False)  # type: ignore[no-any-return]


def student() -> nn.Module:
    return made(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))  # type: ignore[no-any-return]


class Distill:
    """The step of Hinton, Vinyals and Dean (2015): what the teacher says, softened, and the labels."""

    def __init__(self, teacher: nn.Module, temperature: float = 2.0) -> None:
        self.teacher = teacher
        self.temperature = temperature

    def losses(self, outputs: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            soft = (self.teacher(x) / self.temperature).log_softmax(1)
        own = (outputs / self.temperature).log_softmax(1)
        return F.kl_div(own, soft, reduction="batchmean", log_target=True), F.cross_entropy(outputs, y)

    def __call__(self, model: Any, criterion: Any, batch: Any) -> StepOutput:
        x, y = batch
        outputs = model(x)
        soft, hard = self.losses(outputs, x, y)
        return StepOutput(0.5 * self.temperature**2 * soft + 0.5 * hard, outputs, values={"soft": soft, "hard": hard})


def distillation(**settings: Any) -> QuikSession:
    session = session_of(student(), **settings).set_step(Distill(teacher())).set_optimizer(optim.Adam)
    return session.add_data(train=classes(1, SAMPLES), valid=classes(2, VALID))


def distillation_by_hand() -> Columns:
    model, distill, means = student(), Distill(teacher()), Means()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    (x, y), (valid_x, valid_y) = classes(1, SAMPLES), classes(2, VALID)
    for batches in epochs():
        for rows in batches:
            soft, hard = distill.losses(model(x[rows]), x[rows], y[rows])
            update(optimizer, 2.0 * soft + 0.5 * hard)
            means.add(len(rows), train_loss=2.0 * soft + 0.5 * hard, soft=soft, hard=hard)
        with torch.no_grad():
            soft, hard = distill.losses(model(valid_x), valid_x, valid_y)
            means.add(1, valid_loss=2.0 * soft + 0.5 * hard, valid_soft=soft)
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- low-rank adapters


class LoRA(nn.Module):
    """A frozen layer and a trained product of two thin matrices beside it (Hu and others, 2021)."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T  # type: ignore[no-any-return]


def adapted(frozen: bool = True) -> nn.Module:
    """A pretrained network with adapters; its base layers are frozen by hand."""

    def build() -> nn.Module:
        layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
        with torch.no_grad():
            layers[1].running_mean.normal_()  # type: ignore[operator,union-attr]
        layers.requires_grad_(not frozen)
        layers[0], layers[3] = LoRA(layers[0]), LoRA(layers[3])  # type: ignore[arg-type]
        return layers

    return made(build)  # type: ignore[no-any-return]


def lora(by_settings: bool, **settings: Any) -> QuikSession:
    if by_settings:
        settings = {"freeze": "*.base.*, 1", **settings}
    session = session_of(adapted(frozen=not by_settings), **{"eval_modules": "1", **settings})
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.AdamW, weight_decay=0.1)
    return session.add_data(train=classes(1, SAMPLES), valid=classes(2, VALID))


def lora_by_hand() -> Columns:
    model, criterion, means = adapted(), nn.CrossEntropyLoss(), Means()
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    (x, y), (valid_x, valid_y) = classes(1, SAMPLES), classes(2, VALID)
    model.eval()  # all there is to switch off is batch statistics
    for batches in epochs():
        for rows in batches:
            loss = criterion(model(x[rows]), y[rows])
            update(optimizer, loss)
            means.add(len(rows), train_loss=loss)
        with torch.no_grad():
            means.add(1, valid_loss=criterion(model(valid_x), valid_y))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- ratings


class Ratings(nn.Module):
    """Matrix factorization with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(12, 4), nn.Embedding(9, 4)
        self.user_bias, self.item_bias = nn.Embedding(12, 1), nn.Embedding(9, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        dot = (self.users(user) * self.items(item)).sum(1)
        return dot + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]  # type: ignore[no-any-return]


def ratings_data(seed: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Who, what, and how much of it."""
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(0, 12, (samples,), generator=generator)
    item = torch.randint(0, 9, (samples,), generator=generator)
    return user, item, ((user * item) % 5).double()


def ratings(**settings: Any) -> QuikSession:
    session = session_of(made(Ratings), **settings).set_criterion(nn.SmoothL1Loss, beta=0.5)
    session.set_optimizer(optim.Adam, groups={"*_bias.*": {"lr": 0.1, "weight_decay": 0.0}}, weight_decay=0.01)
    return session.add_data(train=ratings_data(1, SAMPLES), valid=ratings_data(2, VALID))


def ratings_by_hand() -> Columns:
    model, criterion, means = made(Ratings), nn.SmoothL1Loss(beta=0.5), Means()
    biases = [*model.user_bias.parameters(), *model.item_bias.parameters()]
    factors = [*model.users.parameters(), *model.items.parameters()]
    groups = [{"params": biases, "lr": 0.1, "weight_decay": 0.0}, {"params": factors}]
    optimizer = optim.Adam(groups, lr=0.05, weight_decay=0.01)
    (user, item, stars), valid = ratings_data(1, SAMPLES), ratings_data(2, VALID)
    for batches in epochs():
        for rows in batches:
            loss = criterion(model(user[rows], item[rows]), stars[rows])
            update(optimizer, loss)
            means.add(len(rows), train_loss=loss)
        with torch.no_grad():
            means.add(1, valid_loss=criterion(model(*valid[:2]), valid[2]))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- adversaries


class Gan(nn.Module):
    """A generator of points in the plane, and who tells them from real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


def gan_losses(model: Any, noise: Tensor, real: Tensor) -> Iterator[tuple[str, Tensor]]:
    """First who tells, with what was made held back, then who makes."""
    fake = model.generator(noise)
    told_real, told_fake = model.discriminator(real), model.discriminator(fake.detach())
    yield (
        "discriminator",
        F.binary_cross_entropy_with_logits(told_real, torch.ones_like(told_real))
        + F.binary_cross_entropy_with_logits(told_fake, torch.zeros_like(told_fake)),
    )
    told_fake = model.discriminator(fake)
    yield "generator", F.binary_cross_entropy_with_logits(told_fake, torch.ones_like(told_fake))


def gan_step(model: Any, criterion: Any, batch: Any) -> Iterator[tuple[str, Tensor]]:
    noise, real = batch
    yield from gan_losses(model, noise, real)


def points(samples: int) -> tuple[Tensor, Tensor]:
    """Noise, and points on a circle."""
    angle = drawn(3, samples, 1)
    return drawn(1, samples, 3), torch.cat([angle.sin(), angle.cos()], dim=1)


def gan(**settings: Any) -> QuikSession:
    session = session_of(made(Gan), **settings).set_step(gan_step).add_data(train=points(SAMPLES))
    for name in ("generator", "discriminator"):
        session.set_optimizer(optim.Adam, params=name, name=name, lr=0.01, betas=(0.5, 0.999))
    return session


def gan_by_hand() -> Columns:
    model, means, (noise, real) = made(Gan), Means(), points(SAMPLES)
    optimizers = {
        name: optim.Adam(part.parameters(), lr=0.01, betas=(0.5, 0.999)) for name, part in model.named_children()
    }
    for batches in epochs():
        for rows in batches:
            total = 0.0
            for name, loss in gan_losses(model, noise[rows], real[rows]):
                model.zero_grad()
                loss.backward()
                optimizers[name].step()
                means.add(len(rows), **{f"{name}_loss": loss})
                total += loss.item()
            means.add(len(rows), train_loss=total)
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- a critic with a penalty, in a loop


def critic() -> nn.Module:
    return made(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))  # type: ignore[no-any-return]


def critic_losses(model: Any, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a critic and the penalty of Gulrajani and others (2017), each a mean over the points."""
    between = (0.3 * real + 0.7 * fake).requires_grad_()
    (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    return model(fake).mean() - model(real).mean(), (slope.norm(dim=1) - 1).square().mean()


def critic_loop(session: Any) -> None:
    for _ in session.iter_epochs():
        for real, fake in session.loader("train"):
            loss, penalty = critic_losses(session.model, real, fake)
            session.backward(loss + 10 * penalty)
            session.metrics.add_loss(loss + 10 * penalty)
            session.metrics.add(penalty=penalty)
        session.end_epoch()


def critic_session(**settings: Any) -> QuikSession:
    real, fake = points(SAMPLES)[1], drawn(5, SAMPLES, 2)
    return session_of(critic(), **settings).add_data(train=(real, fake)).set_optimizer(optim.Adam)


def critic_by_hand() -> Columns:
    model, means, real, fake = critic(), Means(), points(SAMPLES)[1], drawn(5, SAMPLES, 2)
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    for batches in epochs():
        for rows in batches:
            loss, penalty = critic_losses(model, real[rows], fake[rows])
            update(optimizer, loss + 10 * penalty)
            means.add(len(rows), train_loss=loss + 10 * penalty, penalty=penalty)
        means.end_epoch()
    return means.columns


PROGRAMS = {
    "waves by LBFGS": Program(waves, waves_by_hand, ways=("one rank", "two ranks")),
    "quantiles of a table": Program(quantiles, quantiles_by_hand, dtype=torch.float64),
    "distillation": Program(distillation, distillation_by_hand, script=False),
    "adapters, base frozen by hand": Program(lambda **settings: lora(False, **settings), lora_by_hand),
    "adapters, base frozen by a setting": Program(lambda **settings: lora(True, **settings), lora_by_hand),
    "ratings": Program(ratings, ratings_by_hand),
    "adversaries": Program(
        gan,
        gan_by_hand,
        ways=("one rank", "two ranks"),
        refused={"accumulate": "accumulate=2 was asked for, and this step yields losses"},
    ),
    "critic with a penalty, in a loop": Program(critic_session, critic_by_hand, script=False, loop=critic_loop),
}
