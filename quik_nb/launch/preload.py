"""What the fork server imports once, so that each worker has it from birth. Import this in no other place.

torch imports late: the first optimizer of a process loads over 800 modules and the first DDP model relies on them. With
all of that loaded before the fork, a worker's first step comes within a tenth of a second.
No tensor operation may run here: it could start a thread pool, and a fork of a process with one hangs.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter's interrupt reaches the server too, also while it still imports

import torch  # noqa: E402
import torch.nn.parallel  # noqa: E402
import torch.utils.serialization.config  # noqa: E402

import quik_nb.launch.worker  # noqa: E402, F401

torch.set_num_threads(1)
torch.optim.Adam([torch.nn.Parameter(torch.empty(1))])
