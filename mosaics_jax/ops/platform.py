"""The kind of device that an op is compiled for."""

import jax


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: that of the mesh in force, even if its chips are not here, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def one_cpu_device() -> bool:
    """Whether nothing is sharded, so that loops over as much as a core's cache holds are worth their while."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)
