"""Configurations: JSON and back without loss, one sentence for what is wrong, fields by path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unstir.codec import CODECS, AutoencoderConfig, BitPlanes, Identity, QuantizedConfig
from unstir.config import from_dict, override, read_json, to_dict
from unstir.diffusion.parameterization import (
    PARAMETERIZATIONS,
    FixedLarge,
    LearnedRange,
    LearnedVariance,
    PredictEDM,
    PredictFlip,
    PredictMean,
    PredictV,
    PredictX0,
)
from unstir.diffusion.process import BinomialProcess, GaussianProcess
from unstir.diffusion.schedule import (
    SCHEDULES,
    Cosine,
    LinearBeta,
    LogLinear,
    QuadraticBeta,
    Reciprocal,
    RectifiedFlow,
    Sigmoid,
    Tabulated,
    VarianceExploding,
)
from unstir.diffusion.times import EndTime, LogitNormalTimes, LogNormalTimes, LogSNRTimes, UniformTimes
from unstir.model import ModelConfig, SamplingDefaults
from unstir.nn import NETWORKS, DiTConfig, DiTZeroConfig, MMDiTConfig, UNetConfig
from unstir.nn.layers import BlockStyle
from unstir.nn.text import TextConfig
from unstir.recipes import RECIPES
from unstir.training.run import RunConfig
from unstir.training.trainer import TIMES, TrainingConfig

TEXT = TextConfig(vocabulary=300, max_tokens=5, width=16, depth=1, heads=2)
# One of every registered kind, none of them at its defaults where it has fields.
KINDS: dict[tuple[str, str], Any] = {
    ("schedule", "linear"): LinearBeta(beta_min=0.2, beta_max=1 / 3),
    ("schedule", "cosine"): Cosine(offset=0.1 + 0.2, floor=1e-7),
    ("schedule", "quadratic"): QuadraticBeta(beta_min=0.2, beta_max=1 / 3),
    ("schedule", "reciprocal"): Reciprocal(),
    ("schedule", "sigmoid"): Sigmoid(start=-2.0, end=1 / 3, temperature=0.7, floor=1e-7),
    ("schedule", "log_linear"): LogLinear(high=10.0, low=-1 / 3),
    ("schedule", "variance_exploding"): VarianceExploding(sigma_max=1 / 3),
    ("schedule", "rectified_flow"): RectifiedFlow(shift=1 / 3),
    ("schedule", "tabulated"): Tabulated(table=(0.9, 1 / 3, 5e-324)),
    **{("parameterization", name): PARAMETERIZATIONS[name]() for name in ("noise", "x0", "v", "flow", "score", "bit")},
    ("parameterization", "edm"): PredictEDM(sigma_data=1 / 3),
    ("parameterization", "mean"): PredictMean(process=GaussianProcess(schedule=Sigmoid(), levels=None), num_steps=7),
    ("parameterization", "flip"): PredictFlip(process=BinomialProcess(schedule=Cosine(), rate=1 / 3), num_steps=7),
    ("parameterization", "fixed_large"): FixedLarge(mean=PredictEDM(sigma_data=1 / 3)),
    ("parameterization", "learned_range"): LearnedRange(mean=PredictV()),
    ("parameterization", "learned_variance"): LearnedVariance(
        mean=PredictX0(), process=GaussianProcess(schedule=Tabulated(table=(0.9, 0.1)), levels=17), num_steps=2
    ),
    ("network", "dit"): DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT),
    ("network", "unet"): UNetConfig(
        width=8,
        multipliers=(1, 3),
        attention=(),
        text=TEXT,
        head_width=4,
        up_attention="last",
        transformers=1,
        vector_width=16,
        classes=3,
        dimensions=1,
        style=BlockStyle(modulation="shift", dropout=1 / 3, resampling="projected_block", sum_scale=1 / 3),
    ),
    ("network", "dit_zero"): DiTZeroConfig(size=16, patch=8, width=32, depth=1, heads=2, classes=3, text=TEXT),
    ("network", "mmdit"): MMDiTConfig(
        size=16, largest=32, patch=8, width=32, depth=1, heads=2, has_normed_queries=False, text=TEXT
    ),
    ("codec", "identity"): Identity(channels=4),
    ("codec", "bits"): BitPlanes(channels=4, bits=3),
    ("codec", "kl"): AutoencoderConfig(latent_channels=2, multipliers=(1, 3), groups=4, scale=1 / 3),
    ("codec", "vq"): QuantizedConfig(autoencoder=AutoencoderConfig(width=64, has_attention=False), codes=17),
    ("times", "uniform"): UniformTimes(),
    ("times", "end"): EndTime(),
    ("times", "logit_normal"): LogitNormalTimes(std=0.7, uniform=0.3),
    ("times", "log_normal"): LogNormalTimes(mean=-1.1, std=1 / 3),
    ("times", "log_snr"): LogSNRTimes(low=-3.0, high=1 / 3),
}
REGISTRIES: dict[str, Mapping[str, Any]] = {
    "schedule": SCHEDULES,
    "parameterization": PARAMETERIZATIONS,
    "network": {name: config for name, (config, _) in NETWORKS.items()},
    "codec": CODECS,
    "times": TIMES,
}


def through_json(value: object) -> Any:
    return from_dict(type(value), json.loads(json.dumps(to_dict(value))))


def leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every field that holds no further fields, by path; an independent walk."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        inner = leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        found.update(inner)
    return found


def put(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with the value at the path."""
    head, _, rest = path.partition(".")
    return {**data, head: put(data[head], rest, value) if rest else value}


def sentence(caught: pytest.ExceptionInfo[ValueError]) -> str:
    """The message; one line, and no dump of a validation library."""
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 300
    assert "pydantic" not in message.lower()
    return message


def test_every_registered_kind_is_tried() -> None:
    """A kind that is registered and not listed here would escape the round trip."""
    assert set(KINDS) == {(field, kind) for field, registry in REGISTRIES.items() for kind in registry}


@pytest.mark.parametrize(("field", "kind"), KINDS)
def test_kinds_survive_json(field: str, kind: str) -> None:
    """Each kind comes back equal, of the same class, and is stored under its registered name."""
    value = KINDS[field, kind]
    owner = TrainingConfig() if field == "times" else ModelConfig()
    whole = replace(owner, **{field: value})
    assert to_dict(whole)[field]["kind"] == kind
    again = through_json(whole)
    assert again == whole
    assert type(getattr(again, field)) is type(value)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    """The whole configuration of a recipe comes back equal, and once more it is stored as the same JSON."""
    config = RECIPES[name]()
    again = through_json(config)
    assert again == config
    assert json.dumps(to_dict(again)) == json.dumps(to_dict(config))
    assert config.recipe == name


def test_fields_left_out_take_their_defaults() -> None:
    assert from_dict(RunConfig, {}) == RunConfig()
    assert from_dict(ModelConfig, {"schedule": {"kind": "cosine"}}) == ModelConfig(schedule=Cosine())
    assert from_dict(ModelConfig, {"schedule": "cosine"}) == ModelConfig(schedule=Cosine())


@settings(max_examples=15)
@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.text(), st.lists(st.text()))
def test_values_survive_json(low: float, high: float, data: str, previews: list[str]) -> None:
    """Any float (infinities too), any text, to the last bit."""
    sampling = SamplingDefaults(guidance_interval=(low, high), guidance_scale=high)
    config = RunConfig(data=data, previews=tuple(previews), model=ModelConfig(sampling=sampling))
    assert through_json(config) == config


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"trainig": {}}, ("trainig", "training")),
        ({"training": {"optimizer": {"learning_rat": 1}}}, ("training.optimizer.learning_rat", "'learning_rate'")),
        ({"model": {"schedule": {"kind": "cosine", "ofset": 1}}}, ("model.schedule", "ofset", "'offset'")),
        ({"model": {"network": {"kind": "dit", "text": {"vocab": 1}}}}, ("model.network", "vocab", "vocabulary")),
        ({"model": {"schedule": {"kind": "cosin"}}}, ("model.schedule", "cosin", *SCHEDULES)),
        ({"model": {"schedule": {"offset": 1}}}, ("model.schedule", *SCHEDULES)),
        ({"model": {"network": {"kind": 3}}}, ("model.network", "3", *NETWORKS)),
        ({"model": {"schedule": {"kind": ["cosine"]}}}, ("model.schedule", "cosine")),
        ({"model": {"schedule": ["cosine"]}}, ("model.schedule", "cosine")),
        ({"model": {"schedule": {"kind": {}}}}, ("model.schedule", *SCHEDULES)),
        ({"model": {"schedule": {"kind": "cosine", "floor": 2}}}, ("model.schedule", "floor", "2")),
        ({"model": {"schedule": {"kind": "tabulated"}}}, ("model.schedule", "table")),
        ({"training": {"optimizer": {"learning_rate": "fast"}}}, ("training.optimizer.learning_rate", "'fast'")),
        ({"training": {"batch": 1.5}}, ("training.batch", "1.5")),
        ({"training": {"weight": "nose"}}, ("training.weight", "nose", "noise")),
        ({"training": {"batch": 0}}, ("training", "batch")),
        ({"training": 3}, ("training", "3")),
        ({"training": None}, ("training", "None")),
        ({"previews": "a red heart"}, ("previews", "a red heart")),
        ({"data": "x" * 5 + "\n" * 5, "model": "y" * 9999}, ("model",)),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_sentence(data: dict[str, Any], words: tuple[str, ...]) -> None:
    """ValueError with the path, what was given and what there is, in one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        from_dict(RunConfig, data)
    message = sentence(caught)
    for word in words:
        assert word in message, message


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5) | st.sampled_from([*SCHEDULES]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "offset", "table", "x", "batch"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.data())
def test_any_json_gives_a_configuration_or_a_sentence(data: st.DataObject) -> None:
    """Whatever stands at any place: a configuration that survives JSON again, or a ValueError in one line."""
    good = to_dict(RECIPES["tiny"]())
    owners = ["model", "model.schedule", "model.network", "model.network.text", "training.times", "cadence"]
    places = [*leaves(good), *owners]
    path = data.draw(st.sampled_from(places))
    try:
        config = from_dict(RunConfig, put(good, path, data.draw(JUNK)))
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
    else:
        assert repr(through_json(config)) == repr(config)  # repr, for nan is not nan


@pytest.mark.parametrize("name", RECIPES)
def test_setting_every_field_to_itself_changes_nothing(name: str) -> None:
    """Every path of every recipe exists, and its own value fits it."""
    config = RECIPES[name]()
    found = leaves(to_dict(config))
    assert len(found) > 40
    changes = [
        (path, value if isinstance(value, str) else json.dumps(value))
        for path, value in found.items()
        if not path.endswith("kind")
    ]
    assert override(config, changes) == config


INTEGERS = [path for path, value in leaves(to_dict(RunConfig())).items() if type(value) is int]


@settings(max_examples=12)
@given(st.sampled_from(INTEGERS), st.integers(1, 10**9))
def test_override_changes_one_field_and_no_other(path: str, value: int) -> None:
    config = RunConfig()
    before, after = leaves(to_dict(config)), leaves(to_dict(override(config, [(path, str(value))])))
    assert after == {**before, path: value}
    assert config == RunConfig()


def test_override_reads_json_and_words() -> None:
    changes = [
        ("model.sampling.guidance_interval", "[-4, 4]"),
        ("training.optimizer.betas", "[0.5, 0.75]"),
        ("previews", '["a red heart", "x"]'),
        ("allow_missing_captions", "true"),
        ("model.sampling.sampler", "ddim"),
        ("training.batch", "7"),
    ]
    config = override(RunConfig(), changes)
    assert config.model.sampling == SamplingDefaults(guidance_interval=(-4.0, 4.0), sampler="ddim")
    assert config.training.optimizer.betas == (0.5, 0.75)
    assert config.previews == ("a red heart", "x")
    assert config.allow_missing_captions is True
    assert config.training.batch == 7
    assert override(config, [("model.sampling.guidance_interval", "null")]).model.sampling.guidance_interval is None
    assert override(config, [("training.batch", "8"), ("training.batch", "9")]).training.batch == 9


def test_override_switches_kinds() -> None:
    """`model.schedule=cosine` takes the new kind with its defaults; its old fields are not carried over."""
    config = override(RunConfig(), [("model.schedule", "linear")])
    assert config.model.schedule == LinearBeta()
    assert override(config, [("model.schedule", "cosine")]).model.schedule == Cosine()
    whole = override(config, [("model.schedule", '{"kind": "cosine", "offset": 0.5}')])
    assert whole.model.schedule == Cosine(offset=0.5)
    assert override(whole, [("model.schedule.offset", "0.25")]).model.schedule == Cosine(offset=0.25)


def test_override_switches_a_kind_and_sets_its_field() -> None:
    """The fields of the new kind exist for the changes that follow in the same call."""
    changes = [("model.schedule", "cosine"), ("model.schedule.offset", "0.01")]
    assert override(RunConfig(), changes).model.schedule == Cosine(offset=0.01)


@pytest.mark.parametrize("text", ["2024", "true", "null", "1e5", "-1", "NaN"])
def test_override_of_a_text_takes_the_text(text: str) -> None:
    """A folder may be called 2024: what looks like a number is still text where text belongs."""
    assert override(RunConfig(), [("data", text)]).data == text


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("training.bach", "3", ("'training.bach'", "'training.batch'")),
        ("trainin.batch", "3", ("'trainin.batch'", "'training.batch'")),
        ("batch", "3", ("'batch'",)),
        ("training.batch.x", "3", ("'training.batch.x'",)),
        ("", "3", ("training", "model")),
        ("model.schedule", "cosin", ("model.schedule", "cosin", "cosine")),
        ("training.batch", "many", ("training.batch", "many")),
        ("training", "3", ("training", "3")),
    ],
)
def test_override_says_what_is_wrong(path: str, text: str, words: tuple[str, ...]) -> None:
    """A path that does not exist is answered with the nearest one, a value that does not fit with its path."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        override(RunConfig(), [(path, text)])
    message = sentence(caught)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a": 1}}', "\x00"])
def test_read_json_names_the_file(text: str) -> None:
    with pytest.raises(ValueError, match=r"here\.json") as caught:
        read_json(text, "here.json")
    sentence(caught)


def test_read_json_reads() -> None:
    assert read_json('{"a": [1, "ü"]}', "x") == {"a": [1, "ü"]}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("log_to", "tensorboard", ("tensorboard",)),
        ("log_to", '["tensorboard"]', ("tensorboard",)),
        ("log_to", "[]", ()),
        ("previews", "a cat, a dog", ("a cat", "a dog")),
        ("previews", '["a cat, a dog"]', ("a cat, a dog",)),
    ],
)
def test_a_field_of_several_takes_words_with_commas(path: str, text: str, value: tuple[str, ...]) -> None:
    assert getattr(override(RunConfig(), [(path, text)]), path) == value
    with pytest.raises(ValueError, match="log_to"):
        override(RunConfig(), [("log_to", "tensorbord")])
