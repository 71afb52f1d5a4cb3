"""A folder lock (flock) that the system releases when the process exits, however it exits."""

import os
from pathlib import Path


def lock(path: Path) -> int | None:
    """Lock a folder or file without waiting; a missing file is created.

    A file with the process id would not do: a process of another container or host may have the same id.

    Returns:
        A file descriptor, whose `os.close` releases the lock; None if the path is locked already.

    Raises:
        OSError: the operating system or file system does not support flock.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> descriptor = lock(folder)
    >>> lock(folder) is None
    True
    >>> os.close(descriptor)
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no flock") from error

    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor
