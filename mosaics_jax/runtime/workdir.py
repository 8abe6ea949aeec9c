"""The work directory of a run: checked before use, locked while a run writes in it, found again afterwards."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

import jax
from absl import logging

from mosaics_jax.errors import UserError


def check_workdir(workdir: str | os.PathLike) -> pathlib.Path:
    """The work directory as an absolute path. Raises UserError if files cannot be written there. Creates nothing."""
    if "://" in str(workdir):
        raise UserError(f"workdir={workdir}: give a path of a mounted file system, not a URL")
    path = pathlib.Path(workdir).absolute()
    existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise UserError(f"workdir={workdir}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"workdir={workdir}: no permission to write in {existing}")
    return path


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the directory if it does not exist, and locks it. Raises UserError if another run holds the lock.

    The lock is an ``flock`` on the directory itself: it needs no lock file and ends with the process. Process 0 alone
    takes it.
    """
    if jax.process_index() > 0:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"workdir={workdir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains in {workdir}: stop it, or choose another work directory") from None
        except OSError:
            logging.warning("%s is on a file system without locks: a second run in it would not be noticed", workdir)
        yield
    finally:
        os.close(descriptor)


def find_run(workdir: str | os.PathLike) -> pathlib.Path:
    """The directory of a run: ``workdir`` itself, its child ``mosaic``, or the only child that is a run.

    A directory is a run if it holds ``checkpoints/``. Raises UserError if there is none, or several.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"{workdir} is not a directory; give the work directory of a run")
    if (workdir / "checkpoints").is_dir():
        return workdir
    runs = sorted(path.parent for path in workdir.glob("*/checkpoints") if path.is_dir())
    if (workdir / "mosaic") in runs:
        return workdir / "mosaic"
    if not runs:
        raise UserError(f"{workdir} holds no checkpoint; give the work directory of a run")
    if len(runs) > 1:
        raise UserError(f"{workdir} holds several runs, give one of them: {', '.join(map(str, runs))}")
    return runs[0]
