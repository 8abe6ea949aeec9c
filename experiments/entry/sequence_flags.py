"""What RegBench and MQAR share: their flags, and how flags become the configs of a run.

A run is described by the values of flags alone, so that a sweep knows the configs of its runs before it starts them.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_type_hints

from absl import flags

from experiments.entry.model_flags import (
    MODEL_CONFIGS,
    ConfigClass,
    check_hyper_parameters,
    check_typed_flags,
    config_fields,
    default_values,
    define_flags,
    fields_of_others,
    model_config_class,
)
from experiments.entry.results import configs_that_ran
from mosaics_jax.errors import UserError
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.models.registry import NAMES, build_model, canonical_name
from mosaics_jax.settings import setting
from mosaics_jax.tasks.mqar import MQARTaskConfig
from mosaics_jax.tasks.regbench import RegBenchTaskConfig
from mosaics_jax.tasks.splits import SplitConfig, steps_per_epoch
from mosaics_jax.training.loop import LoopConfig
from mosaics_jax.training.optimizer import OptimizerConfig

# Fields that are not flags: they follow from the data, or from other flags.
DERIVED = ("vocab_size", "skip_tokens", "warmup_steps", "min_learning_rate", "sample_every")
# Defaults of flags: the sizes of v1 section 6.3.
DEFAULTS = {
    "n_layer": 2,
    "n_head": 8,
    "n_embd": 128,
    "pmem_size": 448,
    "context_length": 1024,
    "learning_rate": 5e-4,
    "beta2": 0.999,
    "eval_every": 200,
}
PARSERS: dict[type, Any] = {bool: flags.BooleanParser(), int: flags.IntegerParser(), float: flags.FloatParser()}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Which model is trained, how long, and how the learning rate follows from that."""

    model: str = setting("mosaic", f"what to train: {', '.join(NAMES)}")
    epochs: int = setting(200, "passes over the training data")
    steps: int = setting(0, "updates to make (0: as many as --epochs takes)")
    warmup_share: float = setting(0.1, "share of the steps in which the learning rate rises from 0")
    final_share: float = setting(0.1, "learning rate at the last step, as a share of the highest")

    def __post_init__(self) -> None:
        canonical_name(self.model)
        if self.epochs < 1 or self.steps < 0:
            raise ValueError(f"epochs={self.epochs} must be at least 1, and steps={self.steps} not negative")
        for name in ("warmup_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")


# If several configs have a field, the default of its flag is that of the data's config, otherwise of the first class.
CLASSES: tuple[ConfigClass, ...] = (RunConfig, *MODEL_CONFIGS, OptimizerConfig, LoopConfig)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The configs of one run. ``model_name`` is as the user gave it, ``data`` the config of the experiment's task."""

    model_name: str
    model_config: Any
    data: Any
    optimizer: OptimizerConfig
    loop: LoopConfig

    @property
    def model(self) -> LanguageModel:
        """The network."""
        return build_model(self.model_name, dataclasses.asdict(self.model_config))

    def configs(self) -> dict[str, Any]:
        """What `results.json` records of the run, see `results.configs_that_ran`."""
        return configs_that_ran(self.model_config, self.data.as_dict(), self.optimizer, self.loop)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The flags of an experiment.

    task_config: the config of its task, a dataclass whose fields are dataclasses. defaults: of flags, by name.
    """

    name: str
    task_config: type[SplitConfig]
    defaults: dict[str, Any]

    @property
    def data_classes(self) -> dict[str, ConfigClass]:
        """The classes of configs that the config of the task holds, by field."""
        return get_type_hints(self.task_config)

    def flag_defaults(self) -> dict[str, Any]:
        """The default value of every flag that sets a field of a config."""
        of_data = default_values(self.data_classes.values(), {})
        return default_values(CLASSES, DEFAULTS | self.defaults, skip=DERIVED) | of_data

    def shared_fields(self) -> set[str]:
        """The flags that have a meaning for every model."""
        return config_fields(*self.data_classes.values(), RunConfig, OptimizerConfig, LoopConfig)

    def define_flags(self) -> None:
        """Defines the flags of the data, of a run, of every model, of optimizer and loop."""
        define_flags(self.data_classes.values(), {})
        define_flags(CLASSES, DEFAULTS | self.defaults, skip=DERIVED)

    def setup_from_flags(self) -> Setup:
        """The run that this program's flags describe.

        Raises UserError on a bad value, or if a typed flag belongs to other models only.
        """
        check_typed_flags([flags.FLAGS.model], self.shared_fields())
        return self.setup({name: flags.FLAGS[name].value for name in self.flag_defaults()})

    def setup(self, given: Mapping[str, Any]) -> Setup:
        """The run that ``given`` values of flags and the defaults of all others describe. Raises UserError likewise.

        Names that are no flags of a config are passed over, and so are flags of other models.
        """
        values = self.flag_defaults() | {name: given[name] for name in self.flag_defaults() if name in given}

        def config(config_class: Any, **derived: Any) -> Any:
            fields = {field.name for field in dataclasses.fields(config_class)} - set(derived)
            return config_class(**{name: values[name] for name in fields & set(values)}, **derived)

        try:
            run = config(RunConfig)
            data = self.task_config(**{name: config(kind) for name, kind in self.data_classes.items()})
            steps = run.steps or run.epochs * steps_per_epoch(data)
            # The highest learning rate is checked before its share is taken.
            optimizer = config(OptimizerConfig, warmup_steps=round(run.warmup_share * steps), min_learning_rate=0.0)
            return Setup(
                model_name=run.model,
                model_config=config(model_config_class(run.model), vocab_size=data.vocab_size),
                data=data,
                optimizer=dataclasses.replace(optimizer, min_learning_rate=run.final_share * optimizer.learning_rate),
                loop=config(LoopConfig, steps=steps),
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def parse(self, typed: Mapping[str, str]) -> dict[str, Any]:
        """The values of flags given as text, without names that are no flags. Raises UserError on a bad value."""
        values = {}
        defaults = self.flag_defaults()
        for name in typed.keys() & defaults.keys():
            parser = PARSERS.get(type(defaults[name]))
            try:
                values[name] = parser.parse(typed[name]) if parser else typed[name]
            except (ValueError, TypeError) as error:
                raise UserError(f"--{name}={typed[name]}: {error}") from None
        return values

    def used_by(self, model_name: str, names: Collection[str]) -> Iterator[str]:
        """The flags in ``names`` that apply to this model."""
        others = fields_of_others([model_name], self.shared_fields())
        return (name for name in names if name not in others)

    def check_hyper_parameters(self, given: Collection[str], model_names: list[str]) -> None:
        """Raises UserError if a flag in ``given`` belongs to none of the models, but to another one."""
        check_hyper_parameters(given, model_names, self.shared_fields(), set(self.flag_defaults()))


REGBENCH = Experiment("regbench", RegBenchTaskConfig, {})
# The published recipe of arXiv 2312.04927, but for the warm-up.
MQAR = Experiment(
    "mqar",
    MQARTaskConfig,
    {
        "epochs": 64,
        "n_head": 1,
        "n_embd": 64,
        "dropout": 0.1,
        "learning_rate": 2e-3,
        "final_share": 0.0,
        "clip_norm": 0.0,
        "eval_every": 500,
    },
)
EXPERIMENTS = {experiment.name: experiment for experiment in (REGBENCH, MQAR)}
