"""Programs over pictures: classes, pixels, boxes, pairs, and pictures made anew."""

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset, TensorDataset

from programs.program import SAMPLES, Columns, Means, Program, drawn, epochs, made, session_of, update
from quik_nb import QuikSession, StepOutput

VALID = 20

# ---------------------------------------------------------------------- digits


class Digits(nn.Module):
    """The network of every first notebook."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.dropout = nn.Dropout(p)
        self.fc = nn.Linear(8 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(self.dropout(x.flatten(1)))  # type: ignore[no-any-return]


def digits_data(seed: int, samples: int) -> TensorDataset:
    """Pictures of 8 x 8 and their digits."""
    x = drawn(seed, samples, 1, 8, 8)
    return TensorDataset(x, x[:, 0, 0, :5].argmax(1) * 2)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers."""
    return (outputs.argmax(dim=1) == targets).double().mean()


def digits(dropout: float = 0.0, **settings: Any) -> QuikSession:
    session = session_of(made(lambda: Digits(dropout)), **settings)
    session.add_data(train=digits_data(1, SAMPLES), valid=digits_data(2, VALID))
    session.set_criterion(nn.CrossEntropyLoss, label_smoothing=0.1).set_optimizer(optim.Adam)
    return session.set_scheduler(OneCycleLR, max_lr=0.02).set_metrics(accuracy=accuracy)


def digits_by_hand(dropout: float = 0.0) -> Columns:
    model, criterion, means = made(lambda: Digits(dropout)), nn.CrossEntropyLoss(label_smoothing=0.1), Means()
    optimizer = optim.Adam(model.parameters())
    scheduler = OneCycleLR(optimizer, max_lr=0.02, total_steps=6)
    (x, y), (valid_x, valid_y) = digits_data(1, SAMPLES).tensors, digits_data(2, VALID).tensors
    for batches in epochs():
        model.train()
        for rows in batches:
            loss = criterion(model(x[rows]), y[rows])
            update(optimizer, loss)
            scheduler.step()
            means.add(len(rows), train_loss=loss)
        model.eval()
        with torch.no_grad():
            outputs = model(valid_x)
            means.add(VALID, valid_loss=criterion(outputs, valid_y), accuracy=accuracy(outputs, valid_y))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- segmentation

VOID = 255
"""The label of pixels that do not count, as in Pascal VOC and Cityscapes."""


class UNet(nn.Module):
    """One level down and up again, with a bridge."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.down(x)
        below = self.up(self.bottom(F.max_pool2d(top, 2)))
        return self.head(torch.cat([top, below], dim=1))  # type: ignore[no-any-return]


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and a class for each pixel, some of them void, and more of them in some pictures."""

    def __init__(self, seed: int, samples: int) -> None:
        self.images = drawn(seed, samples, 3, 6, 6)
        self.masks = self.images.argmax(1)
        share = torch.linspace(0, 0.9, samples)[:, None, None]
        self.masks[torch.rand(samples, 6, 6, generator=torch.Generator().manual_seed(seed)) < share] = VOID

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.masks[index]


def segmentation(**settings: Any) -> QuikSession:
    session = session_of(made(UNet), **settings)
    session.add_data(train=Scenes(1, SAMPLES), valid=Scenes(2, VALID))
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    session.set_criterion(nn.CrossEntropyLoss, ignore_index=VOID, weight=weight)
    return session.set_optimizer(optim.SGD, momentum=0.9)


def segmentation_by_hand() -> Columns:
    model, means = made(UNet), Means()
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    criterion = nn.CrossEntropyLoss(ignore_index=VOID, weight=weight)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train, valid = Scenes(1, SAMPLES), Scenes(2, VALID)
    for batches in epochs():
        for rows in batches:
            masks = train.masks[rows]
            loss = criterion(model(train.images[rows]), masks)
            update(optimizer, loss)
            means.add(float(weight[masks[masks != VOID]].sum()), train_loss=loss)
        with torch.no_grad():
            means.add(1, valid_loss=criterion(model(valid.images), valid.masks))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- detection


class Boxes(Dataset[Any]):
    """Pictures of unequal size, each with a dict of its boxes, as torchvision's detectors take them."""

    def __init__(self, seed: int, samples: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.items = []
        for index in range(samples):
            size, count = 6 + index % 3, index % 4  # some pictures have no box
            boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64)
            labels = torch.randint(0, 3, (count,), generator=generator)
            self.items.append((drawn(seed + index, 3, size, size), {"boxes": boxes, "labels": labels}))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def pictures_and_targets(samples: list[Any]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The collate function of torchvision's references."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class Detector(nn.Module):
    """In training it gives a dict of losses, else a list of dicts of what it found, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.box, self.label = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        features = torch.cat([self.backbone(image[None]) for image in images])
        boxes, labels = self.box(features), self.label(features)
        if targets is None:
            return [{"boxes": b[None], "labels": s.argmax()[None]} for b, s in zip(boxes, labels, strict=True)]
        by_box = [
            F.l1_loss(b.expand_as(t["boxes"]), t["boxes"], reduction="sum") for b, t in zip(boxes, targets, strict=True)
        ]
        by_label = [
            F.cross_entropy(s.expand(len(t["labels"]), -1), t["labels"], reduction="sum")
            for s, t in zip(labels, targets, strict=True)
        ]
        return {"loss_box": torch.stack(by_box).mean(), "loss_label": torch.stack(by_label).mean()}


def detection_step(model: Any, criterion: Any, batch: Any) -> StepOutput:
    images, targets = batch
    losses = model(images, targets)
    return StepOutput(sum(losses.values()), values={name: loss.detach() for name, loss in losses.items()})


def detection(**settings: Any) -> QuikSession:
    session = session_of(made(Detector), **settings).set_step(detection_step).set_optimizer(optim.AdamW)
    return session.add_data(train=Boxes(1, SAMPLES), valid=Boxes(2, VALID), collate_fn=pictures_and_targets)


def detection_by_hand() -> Columns:
    model, means = made(Detector), Means()
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    train, valid = Boxes(1, SAMPLES), Boxes(2, VALID)
    for batches in epochs():
        for rows in batches:
            losses = model(*pictures_and_targets([train[row] for row in rows.tolist()]))
            update(optimizer, sum(losses.values()))  # type: ignore[arg-type]
            means.add(len(rows), train_loss=sum(losses.values()), **losses)
        with torch.no_grad():
            losses = model(*pictures_and_targets(valid.items))
            means.add(VALID, valid_loss=sum(losses.values()))
            means.add(VALID, **{f"valid_{name}": loss for name, loss in losses.items()})
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- a variational autoencoder


class VAE(nn.Module):
    """As in PyTorch's examples, and small."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.mean, self.logvar = nn.Linear(16, 3), nn.Linear(16, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 12))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        noise = torch.randn_like(mean) if noise is None else noise
        return self.decoder(mean + noise * (0.5 * logvar).exp()), mean, logvar


def elbo(model: Any, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction and divergence, each a mean over the pictures, and what came out."""
    out, mean, logvar = model(x, noise)
    reconstruction = F.binary_cross_entropy_with_logits(out, x, reduction="sum") / len(x)
    kl = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum() / len(x)
    return reconstruction, kl, out


def vae_step(model: Any, criterion: Any, batch: Any) -> StepOutput:
    x, *noise = batch
    reconstruction, kl, out = elbo(model, x, noise[0] if noise else None)
    return StepOutput(reconstruction + kl, out, x, values={"kl": kl, "reconstruction": reconstruction})


def vae_data(seed: int, samples: int, noise: bool) -> tuple[Tensor, ...]:
    """Pictures in [0, 1], and with them the noise where no other may be drawn."""
    x = drawn(seed, samples, 12).sigmoid()
    return (x, drawn(seed + 10, samples, 3)) if noise else (x,)


def vae(noise: bool, **settings: Any) -> QuikSession:
    session = session_of(made(VAE), **{"lr": 0.01, **settings}).set_step(vae_step).set_optimizer(optim.Adam)
    train, valid = vae_data(1, SAMPLES, noise), vae_data(2, VALID, noise)
    return session.add_data(train=TensorDataset(*train), valid=TensorDataset(*valid))


def vae_by_hand(noise: bool) -> Columns:
    model, means = made(VAE), Means()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train, valid = vae_data(1, SAMPLES, noise), vae_data(2, VALID, noise)
    for batches in epochs():
        for rows in batches:
            reconstruction, kl, _ = elbo(model, train[0][rows], train[1][rows] if noise else None)
            update(optimizer, reconstruction + kl)
            means.add(len(rows), train_loss=reconstruction + kl, kl=kl, reconstruction=reconstruction)
        with torch.no_grad():
            for rows in torch.arange(VALID).split(16):
                reconstruction, kl, _ = elbo(model, valid[0][rows], valid[1][rows] if noise else None)
                means.add(len(rows), valid_loss=reconstruction + kl, valid_kl=kl)
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- pairs


class Siamese(nn.Module):
    """Two pictures through the same network."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(one), self.encoder(other)


def margin_loss(one: Tensor, other: Tensor, same: Tensor) -> Tensor:
    """The loss of Hadsell, Chopra and LeCun (2006): equal ones near, others at least a margin away."""
    distance = F.pairwise_distance(one, other)
    return (same * distance.square() + (1 - same) * F.relu(1.0 - distance).square()).mean()


def siamese_step(model: Any, criterion: Any, batch: Any) -> Any:
    one, other, same = batch
    outputs = model(one, other)
    return margin_loss(*outputs, same), outputs


def pictures(seed: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of pictures, and whether they are of the same thing."""
    one, other = drawn(seed, samples, 1, 4, 4), drawn(seed + 10, samples, 1, 4, 4)
    return one, other, (one.sum((1, 2, 3)) * other.sum((1, 2, 3)) > 0).double()


def siamese(**settings: Any) -> QuikSession:
    session = session_of(made(Siamese), **settings).set_step(siamese_step)
    return session.set_optimizer(optim.SGD).add_data(train=pictures(1, SAMPLES), valid=pictures(2, VALID))


def siamese_by_hand() -> Columns:
    model, means = made(Siamese), Means()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    (one, other, same), valid = pictures(1, SAMPLES), pictures(2, VALID)
    for batches in epochs():
        for rows in batches:
            loss = margin_loss(*model(one[rows], other[rows]), same[rows])
            update(optimizer, loss)
            means.add(len(rows), train_loss=loss)
        with torch.no_grad():
            means.add(1, valid_loss=margin_loss(*model(*valid[:2]), valid[2]))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- contrasts within a batch


def contrast(one: Tensor, other: Tensor) -> Tensor:
    """InfoNCE: each picture finds its partner among all of the batch."""
    scores = F.normalize(one) @ F.normalize(other).T / 0.1
    return F.cross_entropy(scores, torch.arange(len(one)))


def contrast_step(model: Any, criterion: Any, batch: Any) -> Tensor:
    return contrast(*model(*batch))


def contrastive(**settings: Any) -> QuikSession:
    session = session_of(made(Siamese), **settings).set_step(contrast_step).set_optimizer(optim.SGD)
    return session.add_data(train=pictures(1, SAMPLES)[:2])


def contrastive_by_hand() -> Columns:
    model, means = made(Siamese), Means()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    one, other, _ = pictures(1, SAMPLES)
    for batches in epochs():
        for rows in batches:
            loss = contrast(*model(one[rows], other[rows]))
            update(optimizer, loss)
            means.add(len(rows), train_loss=loss)
        means.end_epoch()
    return means.columns


ONE_RANK = ("one rank",)
IN_PARTS = r"loss of this step is neither a mean nor a sum over the samples"

PROGRAMS = {
    "digits": Program(digits, digits_by_hand),
    "digits with dropout": Program(
        lambda **settings: digits(dropout=0.5, **settings), lambda: digits_by_hand(dropout=0.5), ways=ONE_RANK
    ),
    "segmentation": Program(segmentation, segmentation_by_hand, script=False),
    "detection": Program(detection, detection_by_hand, script=False),
    "variational autoencoder": Program(
        lambda **settings: vae(False, **settings), lambda: vae_by_hand(False), ways=ONE_RANK
    ),
    "variational autoencoder with noise in the data": Program(
        lambda **settings: vae(True, **settings), lambda: vae_by_hand(True)
    ),
    "siamese": Program(siamese, siamese_by_hand),
    "contrastive": Program(
        contrastive,
        contrastive_by_hand,
        ways=ONE_RANK,
        told={"two ranks": (IN_PARTS,), "accumulate": (IN_PARTS,)},
    ),
}
