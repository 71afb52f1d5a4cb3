"""What the fork server imports once, so that each worker has it from birth. Import this in no other place.

torch imports late: the first optimizer of a process loads over 800 modules, and the first DDP model relies on them. So
what each worker does is done here once, and what this version of torch imports for it comes by itself; a worker's first
step then comes within a tenth of a second. No tensor operation may run here: it could start a thread pool, and a fork
of a process with one hangs.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter's interrupt reaches the server too, also while it still imports

import io  # noqa: E402

import torch  # noqa: E402

import quik_nb.launch.worker  # noqa: E402, F401

torch.set_num_threads(1)

file = io.BytesIO()
torch.save({}, file)
file.seek(0)
torch.load(file, weights_only=False)  # as a worker reads its job

torch.optim.Adam([torch.nn.Parameter(torch.empty(1))])
