"""What a notebook defines and a worker needs: a dataset, a collate function, a schedule, by value and by closure."""

from torch.utils.data import DataLoader, Dataset, IterableDataset

scale = 3.0
table = {"shift": torch.ones(5).double()}


def prepared(row):
    return row * scale + table["shift"]


stacked = lambda rows: tuple(map(torch.stack, zip(*rows)))


def slower(optimizer):
    return optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + scale * epoch))


class Rows(Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, i):
        return prepared(x[i]), y[i]


class Flow(IterableDataset):
    def __iter__(self):
        yield from (Rows()[i] for i in range(200))


class Loss(nn.Module):
    def forward(self, outputs, target):
        return nn.functional.cross_entropy(outputs, target) * scale


class Slower(optim.SGD):
    def step(self, closure=None):
        super().step(closure)


def alike(**parts):
    losses = []
    for processes in (1, 2):
        s = session(Net(lambda rank, step: table["shift"].sum()))
        for step, arguments in parts.items():
            getattr(s, step)(*arguments)
        s.train(processes=processes)
        losses.append(s.history[["train_loss", "valid_loss"]].to_numpy())
    return bool(abs(losses[0] - losses[1]).max() < 1e-9)
