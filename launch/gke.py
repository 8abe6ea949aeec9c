"""A run on a TPU slice of Google Kubernetes Engine, as a JobSet that restarts when its nodes are taken away.

    python -m launch.gke NAME --tpu=v5e:4x4 --image=IMAGE --claim=CLAIM -- python -m experiments.babistories FLAGS

Fills in launch/jobset.yaml and passes it to kubectl. The volume claim is mounted at /shared on every host.
launch/README.md describes all steps, and the commands to watch, stop and resume.
"""

import argparse
import json
import math
import pathlib
import re
import string
import sys
from collections.abc import Sequence

from launch import common

TEMPLATE = pathlib.Path(__file__).with_name("jobset.yaml")
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}


def main(argv: Sequence[str]) -> int:
    parser = common.Parser(__doc__)
    parser.add_argument("name", type=common.name, help="name of the JobSet")
    parser.add_argument("--tpu", required=True, help="GENERATION:TOPOLOGY of the slice, e.g. v5e:4x4 or v5p:2x2x4")
    parser.add_argument("--image", required=True, help="container with this repository; see launch/Dockerfile")
    parser.add_argument(
        "--claim", type=common.name, required=True, help="persistent volume claim that all hosts can write to"
    )
    parser.add_argument("--chips_per_host", type=common.count, default=4, help="chips of the machine type (default 4)")
    options, command = parser.parse(argv)
    return common.run(["kubectl", "create", "--filename=-"], options.dry_run, jobset(options, command))


def jobset(options: argparse.Namespace, command: Sequence[str]) -> str:
    """The manifest. Invalid options end the program with one line."""
    generation, _, topology = options.tpu.partition(":")
    if generation not in ACCELERATORS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        common.fail(
            f"--tpu={options.tpu} is not GENERATION:TOPOLOGY with one of {', '.join(ACCELERATORS)}, e.g. v5e:4x4"
        )
    chips = math.prod(map(int, topology.split("x")))
    if chips % options.chips_per_host:
        common.fail(
            f"--tpu={options.tpu}: {chips} chips, which is no multiple of --chips_per_host={options.chips_per_host}"
        )
    if not re.fullmatch(r"[\w.:/@-]+", options.image):
        common.fail(f"--image={options.image} is not the name of a container image")
    # JSON is YAML. Kubernetes would substitute $(NAME), unless the dollar sign is doubled.
    words = [word.replace("$(", "$$(") for word in [*command, "--distributed"]]
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=options.name,
        hosts=chips // options.chips_per_host,
        chips=options.chips_per_host,
        accelerator=ACCELERATORS[generation],
        topology=topology,
        image=options.image,
        claim=options.claim,
        command=json.dumps(words, ensure_ascii=False),
        try_again=common.TRY_AGAIN,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
