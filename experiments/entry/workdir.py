"""The flag --workdir, which every experiment that writes has."""

import sys
from pathlib import Path

from absl import flags

from mosaics_jax.errors import UserError
from mosaics_jax.runtime.workdir import check_workdir


def define_workdir_flag() -> None:
    """Defines --workdir as a flag of the program that is run, so that its --help lists the flag."""
    flags.DEFINE_string(
        "workdir", "", "directory for everything that is written; the same command resumes", module_name=sys.argv[0]
    )


def workdir_from_flags() -> Path:
    """The absolute work directory; creates nothing. Raises UserError if there is none, or it cannot be written in."""
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is needed: a directory for checkpoints, metrics and results")
    return check_workdir(flags.FLAGS.workdir)
