"""Who works in a folder: a lock that ends with its process, however that ends."""

import os
from pathlib import Path


def hold(path: Path) -> int | None:
    """Lock a folder or file; a file is made where there is none.

    A process's number would not do: another container, or another host with the same folder, may have that number too.

    Returns:
        What `os.close` lets go of; None where another holder has it.

    Raises:
        OSError: this system or file system has no such locks.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> held = hold(folder)
    >>> hold(folder) is None
    True
    >>> os.close(held)
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no flock") from error
    held = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return held
