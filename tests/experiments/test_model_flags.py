"""Flags of hyper-parameters: typed ones must belong to a chosen model, those in a flagfile need not."""

import json

import pytest
from absl import flags

from experiments.entry import model_flags
from experiments.entry.sequence_flags import MQAR, REGBENCH
from mosaics_jax.errors import UserError
from mosaics_jax.models.registry import ALIASES, MODELS
from tests.experiments.entries import ROOT, refused, run

MQAR_SMOKE = f"--flagfile={ROOT / 'experiments' / 'flags' / 'mqar_smoke.flags'}"
SMOKE = f"--flagfile={ROOT / 'experiments' / 'flags' / 'smoke.flags'}"


@pytest.mark.parametrize(
    ("given", "models", "message"),
    [
        (
            "dropout",
            ["mosaic"],
            r"--dropout: mosaic has no .*its own are --ic_dropout, --hd_dropout, --embed_dropout, --",
        ),
        ("pmem_size", ["mamba"], r"--pmem_size: mamba has no such hyper-parameter; .*--mamba_states"),
        ("context_length", ["mosaic"], "--context_length: mosaic has no such hyper-parameter"),
        ("short_convolution", ["mosaic", "transformer"], "mosaic and transformer have no .*theirs are .*--rotary"),
    ],
)
def test_a_hyper_parameter_of_other_models_is_refused(given, models, message):
    with pytest.raises(UserError, match=message):
        REGBENCH.check_hyper_parameters({given, "n_embd", "seed"}, models)


@pytest.mark.parametrize("name", [*MODELS, *ALIASES])
def test_its_own_hyper_parameters_are_taken(name):
    own = set(model_flags.config_fields(model_flags.model_config_class(name)))
    REGBENCH.check_hyper_parameters(own, [name])
    assert own.isdisjoint(model_flags.fields_of_others([name], ()))
    model_flags.check_hyper_parameters({"dropout"}, ["mosaic", "gpt2"], (), own)  # one of the models has it


def test_settings_of_the_data_are_no_hyper_parameters_of_other_models():
    MQAR.check_hyper_parameters({"context_length", "vocab_size", "learning_rate"}, ["mosaic"])


def test_typed_flags():
    if "typed_size" not in flags.FLAGS:
        for name in ("typed_bias", "typed_norm", "typed_other"):
            flags.DEFINE_bool(name, True, "a flag for this test")
        flags.DEFINE_integer("typed_size", 1, "a flag for this test")
    argv = ["typed_other", "-typed_size", "3", "--flagfile=any.flags", "--notyped_bias", "--typed_norm=true", "--typed"]
    assert model_flags.typed_flags(argv) - {"flagfile"} == {"typed_size", "typed_bias", "typed_norm"}


def test_one_flagfile_serves_several_models_and_typed_flags_do_not(tmp_path):
    workdir = f"--workdir={tmp_path}"
    both = tmp_path / "both.flags"
    both.write_text(f"{MQAR_SMOKE}\n--dropout=0.5\n--pmem_size=8\n--ic_dropout=0.25\n")
    done = run("mqar", f"--flagfile={both}", "--model=transformer", workdir)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["model"] == "transformer" and result["model_config"]["dropout"] == 0.5
    assert not {"pmem_size", "ic_dropout"} & result["model_config"].keys()
    assert "settings" not in result
    # The same run by its other name, and with other spellings, is finished.
    again = run("mqar", f"--flagfile={both}", "--model=gpt2", workdir, "--dropout=5e-1", "--log_every=1")
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout
    # What the flagfile may set is an error where it is typed.
    line = refused("mqar", f"--flagfile={both}", "--model=transformer", workdir, "--pmem_size=8")
    assert "--pmem_size: transformer has no such hyper-parameter" in line
    line = refused("mqar", f"--flagfile={both}", "--model=mosaic", workdir, "--dropout", "0.1")
    assert "--dropout: mosaic has no such hyper-parameter; its own are --ic_dropout, --hd_dropout" in line


def test_language_models_and_plans_refuse_them_too(tmp_path):
    line = refused("babistories", SMOKE, f"--workdir={tmp_path}", "--model=gpt2", "--ic_dropout=0.1")
    assert "--ic_dropout: gpt2 has no such hyper-parameter; its own are --dropout" in line
    assert "--rotary: mosaic has no" in refused("plan", SMOKE, "--model=mosaic", "--rotary")
    assert not list(tmp_path.iterdir())
