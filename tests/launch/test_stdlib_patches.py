"""What quik_nb changes in the standard library still does what it is for: on a Python where it moved, these fail."""

import multiprocessing
import subprocess
import sys
import threading
from multiprocessing import spawn, util
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quik_nb.launch import stdlib_patches


def printed(script: str, folder: Path) -> str:
    """What a script of its own process prints, with `patches` in it; its warnings are errors."""
    head = "import multiprocessing, os, sys, threading\nfrom quik_nb.launch import stdlib_patches as patches\n"
    (folder / "script.py").write_text(head + script)
    command = [sys.executable, "-W", "error", "script.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("inside", [True, False])
def test_servers_are_started_in_groups_of_their_own(tmp_path: Path, inside: bool) -> None:
    """Within `own_process_group` the fork server and the resource tracker leave the kernel's group, else they stay."""
    script = """
from contextlib import nullcontext
from multiprocessing import forkserver, resource_tracker
with INSIDE:
    forkserver.ensure_running()
pids = forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid
print([os.getpgid(pid) == os.getpgid(0) for pid in pids])
"""
    text = printed(script.replace("INSIDE", "patches.own_process_group()" if inside else "nullcontext()"), tmp_path)

    assert f"{[not inside] * 2}\n" == text


def test_servers_in_groups_of_their_own_work(tmp_path: Path) -> None:
    """A process that such a server forks runs, and gives its result through a queue."""
    script = """
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    with patches.own_process_group():
        queue = context.SimpleQueue()
        process = context.Process(target=queue.put, args=("it runs",))
        process.start()
    print(queue.get())
    process.join()
"""
    assert "it runs\n" == printed(script, tmp_path)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_script_without_a_guard_is_not_imported_again(tmp_path: Path, method: str) -> None:
    """Within `hide_main_module` a script that starts a process at its top level runs once."""
    script = f"""
print("the script runs", flush=True)
context = multiprocessing.get_context({method!r})
with patches.hide_main_module():
    process = context.Process(target=print, args=("the process runs",))
    process.start()
process.join()
"""
    assert "the script runs\nthe process runs\n" == printed(script, tmp_path)


def test_a_main_module_without_a_spec_can_be_hidden(tmp_path: Path) -> None:
    """Under pdb of Python 3.11 the main module has no `__spec__`, which the standard library asks for."""
    script = """
del __spec__
context = multiprocessing.get_context("spawn")
with patches.hide_main_module():
    process = context.Process(target=print, args=("the process runs",))
    process.start()
process.join()
"""
    assert "the process runs\n" == printed(script, tmp_path)


def test_other_threads_keep_the_main_module(tmp_path: Path) -> None:
    """A process that another thread starts meanwhile imports the main script, as it asked for."""
    script = """
if __name__ == "__main__":
    from multiprocessing import spawn
    found = []
    def look():
        found.append(sorted(key for key in spawn.get_preparation_data("name") if "main" in key))
    with patches.hide_main_module():
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    print(found)
"""
    assert "[[], ['init_main_from_path'], ['init_main_from_path']]\n" == printed(script, tmp_path)


def test_two_threads_patch_one_after_the_other() -> None:
    """However the patches of two threads would overlap, the standard library's own functions are back afterwards."""
    before = spawn.get_preparation_data, util.spawnv_passfds
    entered, together = threading.Event(), []

    def patch() -> None:
        with stdlib_patches.hide_main_module(), stdlib_patches.own_process_group():
            together.append(spawn.get_preparation_data)

    with stdlib_patches.own_process_group(), stdlib_patches.hide_main_module():
        other = threading.Thread(target=patch)
        other.start()
        entered.wait(0.05)
        assert [] == together
    other.join()

    assert 1 == len(together)
    assert before == (spawn.get_preparation_data, util.spawnv_passfds)


def test_sockets_are_kept_in_a_folder_of_ours(tmp_path: Path) -> None:
    """The standard library's temporary files, of which the fork server's socket is one, come into the folder given."""
    with TemporaryDirectory() as folder:
        script = f"""
from pathlib import Path
from multiprocessing import connection, forkserver
print(patches.has_socket_folder())
patches.keep_sockets_in(Path({folder!r}))
print(patches.has_socket_folder())
forkserver.ensure_running()
print(os.path.dirname(forkserver._forkserver._forkserver_address))
"""
        assert f"False\nTrue\n{folder}\n" == printed(script, tmp_path)


def test_a_folder_with_too_long_a_path_is_not_used(tmp_path: Path) -> None:
    """Where a socket could have no name, the standard library keeps its own folder."""
    before = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    stdlib_patches.keep_sockets_in(tmp_path / ("x" * stdlib_patches.MAX_SOCKET_FOLDER))

    assert before == multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]


def test_a_server_whose_socket_was_deleted_is_restarted(tmp_path: Path) -> None:
    """After a tmp cleaner removed the socket, the next process starts by a new server, and not before."""
    script = """
if __name__ == "__main__":
    import tempfile
    from pathlib import Path
    from multiprocessing import forkserver
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        patches.keep_sockets_in(Path(folder))
        pids = []
        for round in range(3):
            patches.forget_lost_server()
            process = context.Process(target=print, args=("the process runs",))
            process.start()
            process.join()
            pids.append(forkserver._forkserver._forkserver_pid)
            if round == 1:
                os.unlink(forkserver._forkserver._forkserver_address)
    print(pids[0] == pids[1], pids[1] == pids[2])
"""
    assert "the process runs\n" * 3 + "True False\n" == printed(script, tmp_path)
