"""The platform that an op is compiled for."""

import jax


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: the platform of the current mesh, attached or not; without a mesh, JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def one_cpu_device() -> bool:
    """Whether one CPU device computes: there, loops over blocks of the size of a core's cache are fast."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)
