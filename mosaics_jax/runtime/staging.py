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
    """Writes a file through a temporary sibling: ``path`` holds the old content or all of the new, never a part."""
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
    """Gives a temporary sibling directory to fill; on a normal exit it becomes ``target``, otherwise it is removed.

    What killed runs left beside ``target`` is removed first: a live run holds a lock on its temporary directory.
    Raises FileExistsError if ``target`` is not empty by then and ``replace`` is not given.
    """
    target = Path(target).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent)) from error
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        _remove_unless_locked(stale)
    temporary, lock = _make_locked(target)
    set_aside = temporary.with_suffix(".old.tmp")
    try:
        yield temporary
        if replace and target.exists():
            # A directory is not replaced in one step: the old one steps aside, under a name that counts as stale.
            os.rename(target, set_aside)
        try:
            os.rename(temporary, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, "already exists", str(target)) from error
            raise
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(set_aside, ignore_errors=True)
        os.close(lock)


def _make_locked(target: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        path.chmod(0o755)
        lock = os.open(path, os.O_RDONLY)
        _lock(lock)
        if path.exists():
            return path, lock
        # Another run took it for stale between its creation and the lock.
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
    """Locks until the descriptor is closed or its process ends; False if someone else holds it or locks do not work."""
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
