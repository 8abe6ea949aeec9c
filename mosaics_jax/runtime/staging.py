"""Files and directories that appear under their final name only when they are complete."""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_file(path: str | Path, content: bytes) -> None:
    """Writes a file through a temporary file beside it: ``path`` holds all of the old content or all of the new."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def directory(target: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside ``target``; a normal exit renames it to ``target``, an exception removes it.

    Temporary directories that killed processes left beside ``target`` are removed first; a live process is recognised
    by its lock. Raises FileExistsError if ``target`` exists at the exit, is not empty, and ``replace`` is False.
    """
    target = Path(target).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent)) from error
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        _remove_unless_locked(stale)
    temporary, lock = _make_locked(target)
    replaced = temporary.with_suffix(".old.tmp")
    try:
        yield temporary
        if replace and target.exists():
            # rename(2) does not replace a directory that has files, so the old one is renamed first, to a name that the
            # cleanup above recognises in case this process is killed here.
            os.rename(target, replaced)
        try:
            os.rename(temporary, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, "already exists", str(target)) from error
            raise
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        os.close(lock)


def _make_locked(target: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        path.chmod(0o755)
        lock = os.open(path, os.O_RDONLY)
        _lock(lock)
        if path.exists():
            return path, lock
        # Another process removed the directory as stale, between its creation and its lock.
        os.close(lock)


def _remove_unless_locked(path: Path) -> None:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # a file, or gone
        return
    try:
        if _lock(lock):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(descriptor: int) -> bool:
    """Takes a lock that lasts until the descriptor is closed. Returns False if it is taken, or not supported."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
