"""The processes of one run: the flags by which they find each other, and the joining."""

import dataclasses
import os
import sys

import jax

from mosaics_jax.errors import UserError
from mosaics_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Processes:
    """How the processes of one run find each other; without any of these flags the run has one process."""

    distributed: bool = setting(
        False, "join the other processes of this TPU pod, GKE job or Slurm job; JAX finds out which they are"
    )
    coordinator: str = setting("", "HOST:PORT of process 0, instead of --distributed where JAX cannot find it out")
    num_processes: int = setting(0, "with --coordinator: number of processes")
    process_id: int = setting(-1, "with --coordinator: number of this process, from 0")

    def __post_init__(self) -> None:
        if not self.coordinator and (self.num_processes or self.process_id != -1):
            raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT")
        if not self.coordinator:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"--coordinator={self.coordinator} is not HOST:PORT")
        if self.num_processes < 1 or not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--coordinator needs --num_processes and a --process_id from 0 up to it; "
                f"got {self.num_processes} and {self.process_id}"
            )

    def join(self) -> None:
        """Connects to the other processes, if there are any, and silences stdout of all but process 0.

        Call it before any use of JAX. Raises UserError if the processes do not find each other.
        """
        if not (self.distributed or self.coordinator):
            return
        jax.config.update("jax_enable_preemption_service", False)  # `StopSignals` says why
        arguments = (self.coordinator, self.num_processes, self.process_id) if self.coordinator else ()
        try:
            jax.distributed.initialize(*arguments)
        except ValueError:
            raise UserError(
                "--distributed: this is no TPU pod, GKE job or Slurm job that JAX knows; "
                "start it with a script of launch/, or give --coordinator, --num_processes and --process_id"
            ) from None
        except RuntimeError as error:
            raise UserError(f"the processes did not find each other: {str(error).splitlines()[0]}") from error
        if jax.process_index() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (stays open until the process ends)
