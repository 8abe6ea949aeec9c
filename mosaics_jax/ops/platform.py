"""Which kind of device a program is made for, where the quickest form of an op depends on it."""

import jax


def on_cpu() -> bool:
    """Whether the program will run on CPU: by the mesh that is set, whose chips may not be here, or else by default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"
