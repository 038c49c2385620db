"""Recipes: what extends, what overrides, what is refused and in which words."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml
from torch import Tensor, nn

from qvae.config import dump_recipe, load_recipe, normalise_key, recipe_options
from qvae.errors import UsageError
from qvae.recipe_files import MODEL_KEYS, recipe_names
from qvae.schema import REQUIRED, arguments, check_values, options_help
from qvae.yaml_text import dump_yaml, parse_yaml

TINY = """\
data: {name: clocks, size: 8}
model:
  encoder: {name: conv, hidden: 8}
  bottleneck: {name: vq, codebook_size: 32, dim: 8}
  decoder: conv
  likelihood: gaussian
train: {steps: 10, lr: 1e-4}
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def write(folder, text, name="other.yaml"):
    path = folder / name
    path.write_text(text)
    return path


# -- YAML ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-2E+3", -2000.0), ("1.5e2", 150.0), (".5e1", 5.0), ("12", 12), ("1e", "1e")],
)
def test_yaml_numbers(text, value):
    found = parse_yaml(text, "here")
    assert found == value and type(found) is type(value)


def test_yaml_refuses_a_key_given_twice():
    with pytest.raises(UsageError, match="here line 2: not valid YAML, key 'a' twice"):
        parse_yaml("a: 1\na: 2\n", "here")


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system ['true']", "\x00"])
def test_yaml_that_is_broken_or_runs_code_is_refused(text):
    with pytest.raises(UsageError, match="here.*not valid YAML"):
        parse_yaml(text, "here")


def test_yaml_round_trip():
    value = {"a": [1, 2.5e-7, None, True], "b": {"c": "1e-4", "d": "yes", "e": "é"}}
    assert parse_yaml(dump_yaml(value), "here") == value


# -- extends ---------------------------------------------------------------------------------


def test_extends_lays_one_recipe_over_another(tiny, tmp_path):
    child = write(tmp_path, "extends: tiny.yaml\nmodel: {bottleneck: {dim: 4}}\nseed: 3\n")
    recipe = load_recipe(child)
    assert recipe.name == "other" and recipe.seed == 3
    assert recipe.model["bottleneck"]["dim"] == 4
    assert recipe.model["bottleneck"]["codebook_size"] == 32
    assert recipe.train["lr"] == 1e-4


def test_another_component_drops_the_arguments_of_the_old_one(tiny, tmp_path):
    text = "extends: tiny.yaml\nmodel: {bottleneck: {name: fsq, levels: [8, 5]}}\n"
    bottleneck = load_recipe(write(tmp_path, text)).model["bottleneck"]
    assert bottleneck["name"] == "fsq" and list(bottleneck["levels"]) == [8, 5]
    assert "codebook_size" not in bottleneck


def test_extends_is_relative_to_the_file_that_says_it(tiny, tmp_path):
    (tmp_path / "deep").mkdir()
    child = write(tmp_path / "deep", "extends: ../tiny.yaml\n")
    assert load_recipe(child).train["steps"] == 10


def test_extends_in_a_circle_is_refused(tmp_path):
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    b = write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(UsageError, match="extends itself, through b -> a"):
        load_recipe(b)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nothing\n", "extends 'nothing': no such recipe or file"),
        ("extends: [a, b]\n", "must be one recipe's name or file"),
        ("- a\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
    ],
)
def test_bad_files(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        load_recipe(write(tmp_path, text))


def test_an_unknown_recipe_is_refused():
    with pytest.raises(UsageError, match="recipe 'no_such': no such recipe or file"):
        load_recipe("no_such")


# -- overrides -------------------------------------------------------------------------------


def test_overrides_long_and_short(tiny):
    changes = [("bottleneck.dim", 4), ("model.beta", 2), ("train.steps", 5), ("seed", 7)]
    recipe = load_recipe(tiny, changes)
    assert recipe.model["bottleneck"]["dim"] == 4
    assert recipe.model["beta"] == 2.0 and isinstance(recipe.model["beta"], float)
    assert (recipe.train["steps"], recipe.seed) == (5, 7)


@pytest.mark.parametrize("key", ["bottleneck", "bottleneck.name", "model.bottleneck"])
def test_naming_another_component_works_in_any_order(tiny, key):
    changes = [("bottleneck.levels", [8, 5, 5]), (key, "fsq")]
    for order in (changes, changes[::-1]):
        bottleneck = load_recipe(tiny, order).model["bottleneck"]
        assert bottleneck["name"] == "fsq" and list(bottleneck["levels"]) == [8, 5, 5]


def test_every_short_key_is_a_key_of_a_model(tiny):
    model = load_recipe(tiny).model
    assert set(MODEL_KEYS) == set(model)
    assert all(normalise_key(key) == f"model.{key}" for key in MODEL_KEYS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("bottleneck.codebook_sizee", 3), r"^--model\.bottleneck\.codebook_sizee: unknown key, "),
        (("bottleneck.codebook_sizee", 3), "did you mean codebook_size"),
        (("bottleneck.dim", "x"), r"^--model\.bottleneck\.dim='x': expected int$"),
        (("bottleneck.dim", 2.5), "dim=2.5: expected int"),
        (("bottleneck.dim", True), "dim=True: expected int"),
        (("bottleneck.dim", None), "dim=None: expected int"),
        (("bottleneck.name", "torch.nn.Linear"), "bottleneck.name: .*named, not imported"),
        (("bottleneck", "os:system"), "model.bottleneck: .*named, not imported"),
        (("bottleneck.class_path", "os.system"), "class_path: unknown key"),
        (("bottleneck.init_args", {}), "init_args: unknown key"),
        (("bottleneck", 3), "must be a mapping|needs a name"),
        (("encoder.cond_dim", 3), "cond_dim: unknown key"),
        (("encoder.shape", [3, 8, 8]), "shape: unknown key"),
        (("model.decodr.x", 1), "model.decodr: unknown key, did you mean decoder|decodr"),
        (("train.stepz", 1), r"^--train\.stepz: unknown key, did you mean steps"),
        (("train.optimizer", "adam"), "expected 'adamw' . 'muon'"),
        (("train.seed", 1), "train.seed: unknown key"),
        (("trai.steps", 1), "no recipe has a section 'trai', did you mean train"),
        (("prior.dim", 1), "trains a model, it has no prior section"),
        (("seed", -1), "must be a whole number >= 0"),
        (("seed", "x"), "must be a whole number >= 0"),
        (("data.path", "x"), "--data.path: unknown key; known: size"),
        (("train", 3), "train=3: must be a mapping"),
    ],
)
def test_bad_overrides_are_refused_in_one_sentence(tiny, change, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_recipe(tiny, [change])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("hidden: 8", "hiden: 8", r"tiny.yaml: model\.encoder\.hiden: unknown key, did you mean h"),
        ("dim: 8", "dim: wide", r"tiny.yaml: model\.bottleneck\.dim='wide': expected int"),
        ("vq, codebook_size: 32, dim: 8", "gaussian", r"dim: is required, int: number of latent"),
        ("  decoder: conv\n", "", r"model\.decoder: needs a name, one of mlp, conv, patch"),
        ("train:", "trian:", r"tiny.yaml: trian: unknown key, did you mean train"),
        ("data: {name: clocks, size: 8}\n", "", "data: needs a name, one of clocks"),
        ("train:", "prior: uniform\ntrain:", "needs one of model, prior, llm, has model and prior"),
        ("likelihood: gaussian", "likelihood: gausian", "did you mean gaussian"),
        ("1e-4", "fast", r"train\.lr='fast': expected float"),
        ("name: vq,", "name: os.system,", "named, not imported"),
    ],
)
def test_bad_recipes_name_file_and_path(tmp_path, old, new, words):
    assert old in TINY
    with pytest.raises(UsageError, match=words):
        load_recipe(write(tmp_path, TINY.replace(old, new), "tiny.yaml"))


def test_a_recipe_that_trains_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="needs one of model, prior, llm, has none"):
        load_recipe(write(tmp_path, "data: clocks\n"))


# -- resolved --------------------------------------------------------------------------------


def test_resolved_holds_every_default_and_loads_as_the_same_recipe(tiny, tmp_path):
    recipe = load_recipe(tiny)
    resolved = recipe.resolved()
    assert resolved["model"]["bottleneck"]["commitment_weight"] == 0.25
    assert resolved["model"]["conditional"] is False
    assert resolved["train"]["betas"] == [0.9, 0.99]
    assert resolved["sample"]["temperature"] == 1.0
    assert "prior" not in resolved and "extends" not in resolved
    again = load_recipe(write(tmp_path, dump_recipe(recipe), "recipe.yaml"))
    assert again.resolved() == resolved
    assert again.name == tmp_path.name  # a run's recipe is named by its folder
    plain = load_recipe(write(tmp_path, yaml.safe_dump(resolved), "plain.yaml"))
    assert replace(plain, name="") == replace(again, name="")


def test_a_prior_recipe_needs_no_data_name(tmp_path):
    path = write(tmp_path, "prior: {name: transformer, dim: 32, num_heads: 2}\n")
    recipe = load_recipe(path, [("data.path", "tokens")])
    assert recipe.model is None and recipe.data["name"] == "tokens"
    with pytest.raises(UsageError, match=r"data.path \(--data PATH\): is required"):
        load_recipe(path)
    assert load_recipe(path, is_complete=False).data["path"] is None


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_complete(name):
    recipe = load_recipe(name, is_complete=False)
    assert recipe.name == name
    assert [recipe.model, recipe.prior, recipe.llm].count(None) == 2


# -- signatures ------------------------------------------------------------------------------


class Sample:
    """Stand for a component.

    Args:
        width: of the thing, which is
            told in two lines.
        rate (float): a share, in 50% of the cases.
        layer: never open to a recipe.

    Raises:
        ValueError: never.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        *,
        rate: float = 0.5,
        sizes: list[int] | None = None,
        layer: nn.Module | None = None,
        hook: Callable[[Tensor], Tensor] | None = None,
        tensor: Tensor | None = None,
    ) -> None:
        pass


def test_only_plain_arguments_are_open_to_a_recipe():
    schema = {item.name: item for item in arguments(Sample)}
    assert list(schema) == ["width", "rate", "sizes"]
    assert schema["width"].default is REQUIRED
    assert schema["width"].doc == "of the thing, which is told in two lines."
    assert schema["sizes"].type_text == "list[int] | null"


def test_values_are_converted_and_defaults_filled_in():
    found = check_values(arguments(Sample), {"width": 3, "rate": 1}, where=str)
    assert found == {"width": 3, "rate": 1.0, "sizes": None}
    assert isinstance(found["rate"], float)
    with pytest.raises(UsageError, match=r"sizes='abc': expected list\[int\] . null"):
        check_values(arguments(Sample), {"width": 3, "sizes": "abc"}, where=str)
    nan = check_values(arguments(Sample), {"width": 3, "rate": math.nan}, where=str)
    assert math.isnan(nan["rate"])


def test_help_shows_key_type_value_and_meaning(tiny):
    text = options_help(recipe_options(load_recipe(tiny)), prog="qvae train tiny")
    assert "--model.bottleneck.codebook_size VALUE" in text
    assert "number of codes V, >= 1. (type: int, default: 32)" in " ".join(text.split())
    assert "--train.steps" in text and "+ VALUE" not in text
    assert "50%" in options_help([("a.rate", arguments(Sample)[1], 0.5)], prog="p")
