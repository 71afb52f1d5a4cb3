"""Training on GPUs: here, in a worker while the notebook holds CUDA, and on several."""

import pytest
import torch
from harness.kernel import Kernel
from harness.plain import distance, regression
from torch import optim

from quik_nb import QuikSession

ROUNDING = 1e-6

pytestmark = pytest.mark.gpu
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def adam(**settings: str) -> QuikSession:
    """A session in float64, which GPUs compute up to rounding as the CPU does."""
    return regression(epochs=2, lr=0.01, **settings).set_optimizer(optim.Adam)


def assert_equal(expected: QuikSession, actual: QuikSession) -> None:
    """Both have the same losses and the same weights, in the same place."""
    assert list(expected.history.valid_loss) == pytest.approx(list(actual.history.valid_loss), abs=ROUNDING)
    assert distance(expected.model, actual.model) <= ROUNDING  # fails where one model is on another device


def test_one_gpu_gives_the_numbers_of_the_cpu() -> None:
    """In this process on the GPU, losses and weights are those of the CPU, and the model comes back where it was."""
    cpu, cuda = adam(device="cpu"), adam(device="cuda")
    cpu.train()
    cuda.train()

    assert_equal(cpu, cuda)


def test_a_model_on_the_gpu_stays_there() -> None:
    """A model that was on the GPU is there after a training in workers on the CPU and after one on the GPU."""
    session = adam(device="cuda:0")
    session.model.cuda()
    session.train()
    session.train(processes=2)
    session.train(processes=2, device="cpu")

    assert {"cuda"} == {parameter.device.type for parameter in session.model.parameters()}


def test_data_stays_on_the_device() -> None:
    """Samples that fit are to_cpu_copy to the GPU once, not batch by batch."""
    session = adam(device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        session.train()

    copies = [event for event in profile.events() if "Memcpy HtoD" in event.name]
    assert len(copies) < 2 * 7  # steps


def test_workers_train_while_the_notebook_holds_cuda(notebook: Kernel) -> None:
    """With a CUDA context and a model on the GPU in the kernel, workers use that GPU too, to the same numbers."""
    result = notebook.ok(
        "held = torch.randn(1000, 1000, device='cuda'); held @ held\n"
        "losses = []\n"
        "for device, processes in (('cpu', 1), ('cuda:0', 1), ('cuda:0', 2)):\n"
        "    s = session(Net().to(device), view=False, device=device); s.train(processes=processes)\n"
        "    losses.append(s.history.valid_loss)\n"
        "print(max(abs(l - losses[0]).max() for l in losses) < 1e-6, next(s.model.parameters()).device)"
    )

    assert "True cuda:0\n" == result.text


def test_a_plain_fork_is_refused_while_the_notebook_holds_cuda(notebook: Kernel) -> None:
    """start_method="fork" is refused with a sentence once CUDA is in use."""
    result = notebook.run(
        "held = torch.ones(1, device='cuda')\nsession(Net(), start_method='fork', device='cuda:0').train(processes=2)"
    )

    assert ["PlacementError"] == result.errors
    assert "this process has initialised CUDA" in result.traceback


@several
def test_several_gpus_give_the_numbers_of_one() -> None:
    """A worker on each of two GPUs comes to the losses and weights of one process."""
    one, two = adam(device="cuda:0"), adam()
    one.train(processes=1)
    two.train(processes=2)

    assert_equal(one, two)


@several
def test_several_gpus_are_taken_by_default(notebook: Kernel) -> None:
    """Without a word about processes, each GPU gets a worker."""
    result = notebook.ok("s = session(Net()); s.train(); print(torch.cuda.device_count())")

    count = int(result.text.split()[-1])
    assert f"{count} workers on cuda:0" in result.text
