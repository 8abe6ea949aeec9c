"""Opening a run: its config, model, parameters and tokenizer, from the directory that training or conversion wrote."""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from mosaics_jax.data.tokenizers import Tokenizer, load_tokenizer
from mosaics_jax.errors import UserError
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.models.registry import build_model
from mosaics_jax.runtime.workdir import find_run
from mosaics_jax.shapes import Params
from mosaics_jax.training.checkpoint_files import steps_in
from mosaics_jax.training.checkpoints import DIRECTORIES, newest_whole, params_shapes, restore_params
from mosaics_jax.training.mesh import shardings_of
from mosaics_jax.training.run_config import CONFIG_FILE, Config, read_config, read_meta
from mosaics_jax.training.state import unboxed_shapes

TOKENIZER = "tokenizer"  # directory of the tokenizer in that of a run
INIT_LENGTH = 64  # positions of the sequence that shapes of parameters are made with, if the model has so many


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that training, conversion or an earlier version of this program left.

    directory: of the run, with ``checkpoints/`` in it. config: all that the run was made with (`training.run_config`).
    model: the network that was trained; None if the config does not name one. tokenizer: None if the run has none.
    which, mesh: as `open_run` was given them.
    """

    directory: pathlib.Path
    config: Config
    model: LanguageModel | MoonMosaic | None
    tokenizer: Tokenizer | None
    which: str
    mesh: Mesh | None

    @functools.cached_property
    def params(self) -> Params:
        """The parameters: a nested dict of arrays, as ``model.apply`` takes them. Loaded when first asked for.

        Runs of moons hold several networks: each array has a leading axis of them, which `jax.tree.map` takes apart.

        The files of the parameters are read twice, to verify and to restore them; of other items nothing is read but
        the meta. Damaged checkpoints are passed over and reported in the log. On a mesh, the processes share the
        verification, each restores the shards of its devices, and all must ask. Raises UserError if no checkpoint is
        whole.
        """
        items = ("params", "meta")
        checkpoint = newest_whole(self.directory, self.which, items, all_processes=self.mesh is not None)
        read_meta(checkpoint)  # refuses a format of the future
        shapes = params_shapes(checkpoint)
        shardings = self._shardings(shapes)
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        return restore_params(checkpoint, abstract)

    def _shardings(self, shapes: Params) -> Params:
        if self.mesh is None:
            whole = SingleDeviceSharding(jax.local_devices()[0])
            return jax.tree.map(lambda _: whole, shapes)
        if not isinstance(self.model, LanguageModel):  # small, and their axes have no names
            replicated = NamedSharding(self.mesh, PartitionSpec())
            return jax.tree.map(lambda _: replicated, shapes)
        length = init_length(self.model)
        with jax.set_mesh(self.mesh):
            boxed = jax.eval_shape(self.model.init, jax.random.key(0), jnp.zeros((1, length), jnp.int32))["params"]
        if jax.tree.map(lambda leaf: leaf.shape, unboxed_shapes(boxed)) != jax.tree.map(
            lambda leaf: leaf.shape, shapes
        ):
            raise UserError(f"{self.directory}: the parameters do not fit the model of the run's config")
        return shardings_of(boxed, self.mesh)


def init_length(model: LanguageModel) -> int:
    """The length of a blank sequence to initialize with: INIT_LENGTH, or the model's positions if it has fewer."""
    return min(INIT_LENGTH, model.max_positions or INIT_LENGTH)


def open_run(directory: str | os.PathLike, which: str = "newest", mesh: Mesh | None = None) -> Run:
    """Opens the run of any experiment in ``directory``; reads its config and tokenizer, no parameters.

    ``directory``: the run's, or one that holds a single run or a run named ``mosaic``. ``which``: the ``newest``
    checkpoint, or ``best``, that of the evaluation with the least loss. ``mesh``: the parameters are sharded over it as
    in training (`training.mesh.make_mesh`); None: they are whole, on this process's first device. Raises UserError if
    there is no run, or if its model or tokenizer cannot be made.
    """
    if which not in DIRECTORIES:
        raise ValueError(f"which={which!r} is not one of {', '.join(DIRECTORIES)}")
    run = find_run(directory)
    config = load_config(run)
    model = _model(run, config)
    tokenizer = load_tokenizer(run / TOKENIZER) if (run / TOKENIZER).exists() else None
    if tokenizer and isinstance(model, LanguageModel) and tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{run / TOKENIZER} has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
            "it is not the tokenizer of this run"
        )
    return Run(run, config, model, tokenizer, which, mesh)


def load_params(directory: str | os.PathLike, which: str = "newest") -> Params:
    """The parameters of a run, whole, on one device. Takes the arguments of `open_run` and raises its errors."""
    if which not in DIRECTORIES:
        raise ValueError(f"which={which!r} is not one of {', '.join(DIRECTORIES)}")
    return Run(find_run(directory), {}, None, None, which, mesh=None).params


def load_config(directory: str | os.PathLike) -> Config:
    """All that a run was made with (`training.run_config`). Reads no parameters. Raises UserError if there is no run.

    Runs of earlier versions have no ``config.json``: the copy in their newest checkpoint is brought up to date.
    """
    run = find_run(directory)
    if (config := read_config(run)) is not None:
        return config
    checkpoints = [run / name / str(step) for name in DIRECTORIES.values() for step in steps_in(run / name)]
    for checkpoint in checkpoints:
        try:
            return read_meta(checkpoint)["config"]
        except (OSError, json.JSONDecodeError):
            continue
    raise UserError(f"{run} holds no {'whole' if checkpoints else 'finished'} checkpoint, and no {CONFIG_FILE}")


def _model(run: pathlib.Path, config: Config) -> LanguageModel | MoonMosaic | None:
    """The model of a config; None if it has no name. Raises UserError if this program cannot build it."""
    model = config.get("task", {}).get("model")
    if not isinstance(model, dict) or "name" not in model:
        return None
    fields = {name: value for name, value in model.items() if name != "name"}
    try:
        if config.get("experiment", "").startswith("three_moons/"):
            return MoonMosaic(MoonMosaicConfig(**fields))
        return build_model(model["name"], fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run} holds no model that this program knows ({error})") from error
