"""Published results, drawn beside measured results and never mixed with them.

RegBench: Zhang et al., ICLR 2025, arXiv 2405.06394, figure 9. The scores were read off the figure from the centres of
its markers: to 0.002 where a marker is free, to 0.015 where another marker hides it. ``s4d`` is their S4.
"""

REGBENCH_NUM_TRAIN = (100, 500, 1000, 2500, 40000)

# Model -> scores on the test split, one per number of training automata.
REGBENCH_ACCURACY: dict[str, tuple[float, ...]] = {
    "mosaic": (0.925, 0.929, 0.934, 0.941, 0.959),
    "transformer": (0.523, 0.543, 0.532, 0.925, 0.951),
    "mamba": (0.379, 0.578, 0.716, 0.866, 0.914),
    "linear_transformer": (0.464, 0.486, 0.515, 0.798, 0.928),
    "hyena": (0.498, 0.579, 0.656, 0.767, 0.907),
    "h3": (0.440, 0.505, 0.553, 0.673, 0.893),
    "lstm": (0.425, 0.475, 0.510, 0.629, 0.808),
    "rwkv": (0.401, 0.479, 0.477, 0.559, 0.860),
    "s4d": (0.498, 0.531, 0.519, 0.543, 0.823),
    "retnet": (0.376, 0.481, 0.525, 0.521, 0.927),
    "gla": (0.354, 0.465, 0.518, 0.521, 0.927),
}
REGBENCH_TVD: dict[str, tuple[float, ...]] = {
    "mosaic": (0.569, 0.254, 0.215, 0.185, 0.122),
    "transformer": (0.682, 0.645, 0.631, 0.231, 0.144),
    "mamba": (0.753, 0.605, 0.483, 0.341, 0.270),
    "linear_transformer": (0.739, 0.641, 0.63, 0.340, 0.19),
    "hyena": (0.701, 0.599, 0.539, 0.458, 0.220),
    "h3": (0.734, 0.67, 0.616, 0.513, 0.237),
    "lstm": (0.733, 0.664, 0.643, 0.533, 0.363),
    "rwkv": (0.766, 0.694, 0.662, 0.603, 0.281),
    "s4d": (0.680, 0.629, 0.629, 0.601, 0.336),
    "retnet": (0.772, 0.694, 0.644, 0.617, 0.180),
    "gla": (0.777, 0.694, 0.652, 0.617, 0.187),
}
