"""Language models: sizes, initial values, types, dropout, rematerialisation, scanned layers, and bad configs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig, stack_layers, unstack_layers


def shapes_of(model):
    return jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])


@pytest.mark.parametrize(
    "model, count", [(MemoryMosaic(MosaicConfig()), 123_588_336), (GPT2(GPT2Config()), 123_980_544)]
)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_published_sizes(model, count, scan_layers):
    model = type(model)(dataclasses.replace(model.config, scan_layers=scan_layers))
    assert sum(leaf.size for leaf in shapes_of(model)) == count


def initial(config):
    model = (GPT2 if isinstance(config, GPT2Config) else MemoryMosaic)(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda box: np.asarray(box.value), params, is_leaf=lambda leaf: hasattr(leaf, "names"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(params)
    }


def assert_normal(values, std):
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    assert values.std() == pytest.approx(std, rel=0.02)


WIDE = {"vocab_size": 300, "n_layer": 2, "n_head": 4, "n_embd": 128}


@pytest.mark.parametrize("variant", ["library", "nano"])
@pytest.mark.parametrize("weight_tying", [True, False])
def test_initial_values_of_the_mosaic(variant, weight_tying):
    config = MosaicConfig(pmem_size=100, variant=variant, weight_tying=weight_tying, bias=True, **WIDE)
    params = initial(config)
    width, nano = config.n_embd, variant == "nano"
    inner, output = (0.02, 0.02 / math.sqrt(2 * 2)) if nano else (width**-0.5, (width * 2) ** -0.5)
    embedding = 0.02 if nano else width**-0.5 if weight_tying else 1.0
    assert_normal(params["embedding"], embedding)
    if not weight_tying:
        assert_normal(params["head"], 0.02 if nano else width**-0.5)
    for block in ("blocks_0", "blocks_1"):
        for name in ("contextual/key/W_phi", "contextual/value/W_psi", "persistent/key/W_phi"):
            assert_normal(params[f"{block}/{name}/kernel"], inner)
        for unit in ("contextual", "persistent"):
            assert_normal(params[f"{block}/{unit}/W_z/kernel"], output)
            np.testing.assert_allclose(params[f"{block}/{unit}/key/decay"], np.linspace(0.5, 5, 4) / 10, rtol=1e-6)
            np.testing.assert_allclose(params[f"{block}/{unit}/key/bandwidth"], 0.1)
        for x in "kv":
            assert_normal(params[f"{block}/persistent/P_{x}"], (width // 4) ** -0.5)
        np.testing.assert_allclose(params[f"{block}/contextual/value/gain"], -0.05)
        np.testing.assert_allclose(params[f"{block}/persistent/gain"], -0.05)
        peek = params[f"{block}/contextual/value/peek"]
        assert np.all((peek >= 0) & (peek < 1)) and len(set(peek)) == 4
    assert all(np.all(leaf == 1) for name, leaf in params.items() if name.endswith("scale"))
    assert all(np.all(leaf == 0) for name, leaf in params.items() if name.endswith("bias"))
    assert not np.array_equal(params["blocks_0/persistent/P_k"], params["blocks_1/persistent/P_k"])


def test_initial_values_of_convolutions():
    params = initial(MosaicConfig(pmem_size=4, value_convolution=True, key_taps=3, **WIDE))
    assert_normal(params["blocks_0/contextual/key/W_phi/kernel"], (3 * 128) ** -0.5)
    assert_normal(params["blocks_0/contextual/value/W_psi/kernel"], (2 * 128) ** -0.5)


def test_initial_values_of_the_baseline():
    params = initial(GPT2Config(context_length=64, **WIDE))
    for name, leaf in params.items():
        if name.endswith(("proj/kernel", "down/kernel")):
            assert_normal(leaf, 0.02 / math.sqrt(2 * 2))
        elif not name.endswith("scale"):
            assert_normal(leaf, 0.02)


@pytest.mark.parametrize("config", [MosaicConfig(pmem_size=50, **WIDE), GPT2Config(context_length=64, **WIDE)])
def test_initial_loss_is_ln_v(config):
    """A factor 1/sqrt(C) that is missing or applied twice would change the initial loss."""
    tokens = np.random.default_rng(0).integers(0, 300, (4, 33)).astype(np.int32)
    model = (GPT2 if isinstance(config, GPT2Config) else MemoryMosaic)(config)

    @jax.jit
    def initial_loss(key):
        params = model.init(key, tokens[:, :2])
        return model.apply(params, tokens[:, :-1], tokens[:, 1:], method="loss")[0]

    assert float(initial_loss(jax.random.key(0))) == pytest.approx(math.log(300), abs=0.1)


some = pytest.mark.parametrize("config", ["mosaic", "nano", "gpt2"], indirect=True)


@some
def test_types(config, make, tokens):
    """bfloat16 computes in bfloat16 and keeps float32 parameters, logits, loss and gradients."""
    model, params = make(config, dtype="bfloat16")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))

    def loss_of(params):
        return model.apply({"params": params}, tokens(2, 9), tokens(2, 9, seed=1), method="loss")[0]

    @jax.jit
    def run(params):
        logits = model.apply({"params": params}, tokens(2, 9))
        hidden = model.apply({"params": params}, tokens(2, 9), method="hidden")
        return logits, hidden, jax.value_and_grad(loss_of)(params)

    logits, hidden, (loss, grads) = run(params)
    assert (logits.dtype, loss.dtype, hidden.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    assert all(g.dtype == jnp.float32 and np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


DROPOUTS = [("mosaic", "ic_dropout"), ("mosaic", "hd_dropout"), ("mosaic", "embed_dropout"), ("gpt2", "dropout")]


@pytest.mark.parametrize("config, rate", DROPOUTS, indirect=["config"])
def test_dropout_acts_in_training_only(config, make, tokens, rate):
    layout = {"scan_layers": True, "remat": "full"} if rate == "hd_dropout" else {}
    plain, params = make(config, **layout)
    model, _ = make(config, **layout, **{rate: 0.3})
    sequence = tokens(2, 9)
    run = jax.jit(lambda key: model.apply({"params": params}, sequence, True, rngs={"dropout": key}))
    first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    evaluated = np.asarray(jax.jit(model.apply)({"params": params}, sequence))
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 1e-3 and np.max(np.abs(first - evaluated)) > 1e-3
    np.testing.assert_array_equal(evaluated, jax.jit(plain.apply)({"params": params}, sequence))


SCANS = [("mosaic", True), ("convolutions", False), ("gpt2", True)]


@pytest.mark.parametrize("config, scan_layers", SCANS, indirect=["config"])
def test_what_the_backward_pass_recomputes(config, make, tokens, scan_layers):
    """remat="dots" recomputes no product, "full" recomputes those of a block; gradients with dropout are the same."""
    fields = {"scan_layers": scan_layers, "retrieval": "blockwise", config_dropout(config): 0.3}
    sequence, targets = tokens(2, 9), tokens(2, 9, seed=1)
    products, gradients = [], []
    for remat in ("none", "dots", "full"):
        model, params = make(config, remat=remat, **fields)

        def loss(params, model=model):
            dropout = {"dropout": jax.random.key(0)}
            return model.apply({"params": params}, sequence, targets, True, rngs=dropout, method="loss")[0]

        lowered = jax.jit(jax.grad(loss)).lower(params)
        products.append(lowered.as_text().count("stablehlo.dot_general"))
        gradients.append(lowered.compile()(params))
    assert products[0] == products[1] < products[2]
    for gradient in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, gradients[0])


def config_dropout(config):
    return "dropout" if isinstance(config, GPT2Config) else "ic_dropout"


@some
def test_loss_equals_the_loss_of_the_logits(config, make, tokens):
    model, params = make(config, skip_tokens=3)
    sequence, targets = tokens(2, 9), tokens(2, 9, seed=1)
    targets[0, 5] = -1

    @jax.jit
    def run(params):
        loss = model.apply({"params": params}, sequence, targets, method="loss")
        return loss, jax.nn.log_softmax(model.apply({"params": params}, sequence))

    (loss, count), log_p = run(params)
    valid = targets[:, 3:] >= 0
    picked = np.take_along_axis(np.asarray(log_p), np.maximum(targets[:, 3:], 0)[..., None], axis=-1)[..., 0]
    assert int(count) == valid.sum() == 11
    assert float(loss) == pytest.approx(-picked[valid].mean(), rel=1e-5)


def test_stacking_and_unstacking_layers(config, make):
    """Both layouts have the same numbers, bit for bit."""
    _, params = make(config)
    _, stacked = make(config, scan_layers=True)
    ours = stack_layers(params)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, stacked)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(ours), params)


@pytest.mark.parametrize("config", ["mosaic", "nano", "gpt2", "no_peek", "asymmetric", "unnormalized"], indirect=True)
def test_scanned_layers_compute_the_same(config, make, tokens):
    model, params = make(config)
    scanned, _ = make(config, scan_layers=True)
    ours = jax.jit(scanned.apply)({"params": stack_layers(params)}, tokens(2, 9))
    np.testing.assert_allclose(ours, jax.jit(model.apply)({"params": params}, tokens(2, 9)), atol=2e-5)


@pytest.mark.parametrize("config", ["mosaic", "nano"], indirect=True)
def test_cases_in_which_the_authors_code_divides_by_zero(config, make, tokens):
    """A zero embedding, c = 0 at the last position, and no decay: logits and gradients are finite."""
    model, params = make(config)

    def loss(params, sequence):
        return model.apply({"params": params}, sequence, sequence, method="loss")[0]

    @jax.jit
    def run(params, sequence):
        return model.apply({"params": params}, sequence), jax.grad(loss)(params, sequence)

    def zero(params, *names):
        return jax.tree_util.tree_map_with_path(lambda path, a: 0 * a if path[-1].key in names else a, params)

    sequence = tokens(2, 6)
    first = np.arange(31)[:, None] == sequence[0, 0]
    blank = params | {"embedding": np.where(first, np.float32(0), params["embedding"])}
    cases = [
        blank,
        zero(params, "embedding"),
        zero(params, "peek"),
        zero(params, "decay"),
        zero(blank, "peek", "decay"),
    ]
    for case in cases:
        logits, grads = run(case, sequence)
        assert np.all(np.isfinite(logits)) and all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


BAD = [
    ({"n_embd": 30, "n_head": 4}, "n_embd=30 is not divisible by n_head=4"),
    ({"n_layer": 0}, "n_layer=0 must be at least 1"),
    ({"vocab_size": -1}, "vocab_size=-1"),
    ({"skip_tokens": -1}, "skip_tokens=-1"),
    ({"dtype": "float16"}, "dtype='float16' is not one of float32, bfloat16, float64"),
    ({"remat": "some"}, "remat='some'"),
    ({"retrieval": "flash"}, "retrieval='flash'"),
]
BAD_MOSAIC = [
    ({"pmem_size": 0}, "pmem_size=0"),
    ({"key_taps": 0}, "key_taps=0"),
    ({"variant": "micro"}, "variant='micro' is not one of library, nano"),
    ({"ic_dropout": 1.0}, "ic_dropout=1.0 must be at least 0 and below 1"),
    ({"leaky_average": "none"}, "leaky_average='none' is not one of learned, fixed, off"),
    ({"value_convolution": True, "peek": False}, "needs peek=True"),
]
BAD_GPT2 = [
    ({"context_length": 0}, "context_length=0"),
    ({"gelu": "relu"}, "gelu='relu' is not one of tanh, erf"),
    ({"dropout": -0.1}, "dropout=-0.1"),
]


@pytest.mark.parametrize(
    "config_class, fields, message",
    [(MosaicConfig, *bad) for bad in BAD + BAD_MOSAIC] + [(GPT2Config, *bad) for bad in BAD + BAD_GPT2],
)
def test_bad_configs_are_errors(config_class, fields, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        config_class(**fields)
