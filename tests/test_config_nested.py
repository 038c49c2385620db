"""Components inside components in a recipe: defaults, overrides, and what is refused."""

import pytest

from cases import QUANTIZERS
from qvae import registry
from qvae.config import dump_recipe, load_recipe, recipe_options
from qvae.errors import UsageError
from qvae.recipe_files import NESTED
from qvae.registry import COMPONENTS
from qvae.schema import arguments, options_help


def bottleneck(*changes):
    return load_recipe("vqvae", [("data.path", "x"), *changes]).model["bottleneck"]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_bottleneck_with_codes_can_take_the_place_of_another_by_name(name):
    found = bottleneck(("bottleneck", name))
    arguments_ = {key: value for key, value in found.items() if key != "name"}
    assert registry.resolve("bottleneck", name)(**arguments_).codebook_sizes


def test_every_argument_that_is_a_component_is_known_to_the_recipe_files():
    for kind, table in COMPONENTS.items():
        for name in table:
            nested = {a.name for a in arguments(registry.resolve(kind, name)) if a.kind}
            assert nested <= set(NESTED), name


def test_the_default_is_filled_in_and_overridden_by_dotted_keys():
    found = bottleneck(("bottleneck", "residual"), ("bottleneck.quantizer.codebook_size", 64))
    assert found["num_quantizers"] == 4
    assert found["quantizer"]["name"] == "vq_ema"
    assert found["quantizer"]["codebook_size"] == 64 and found["quantizer"]["ema_decay"] == 0.99


@pytest.mark.parametrize("key", ["bottleneck.quantizer", "bottleneck.quantizer.name"])
def test_naming_another_inner_component_works_in_any_order(key):
    changes = [("bottleneck.quantizer.levels", [4, 4]), (key, "fsq"), ("bottleneck", "residual")]
    for order in (changes, changes[::-1], [changes[1], changes[2], changes[0]]):
        found = bottleneck(*order)
        assert found["quantizer"]["name"] == "fsq" and list(found["quantizer"]["levels"]) == [4, 4]
        assert "codebook_size" not in found["quantizer"]


def test_a_nest_is_checked_at_every_depth(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text(
        "extends: vqvae\nmodel:\n  bottleneck:\n    name: residual\n    quantizer:\n"
        "      name: grouped\n      quantizer: {name: projected, quantizer: lfq}\n"
    )
    data = ("data.path", "x")
    recipe = load_recipe(path, [data, ("bottleneck.quantizer.quantizer.quantizer.dim", 5)])
    inner = recipe.model["bottleneck"]["quantizer"]["quantizer"]["quantizer"]
    assert (inner["name"], inner["dim"], inner["gamma"]) == ("lfq", 5, 20.0)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml").resolved() == recipe.resolved()
    text = options_help(recipe_options(recipe), prog="p")
    assert "--model.bottleneck.quantizer.quantizer.quantizer.dim VALUE" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("bottleneck.quantizer.codebook_sizee", 3),
            "codebook_sizee: unknown key, did you mean co",
        ),
        (
            ("bottleneck.quantizer.dim", "x"),
            r"^--model\.bottleneck\.quantizer\.dim='x': expected i",
        ),
        (("bottleneck.quantizer", "vqq"), "model.bottleneck.quantizer: .*did you mean vq"),
        (("bottleneck.quantizer", "os:system"), "named, not imported"),
        (("bottleneck.quantizer", 3), "quantizer: needs a name"),
        (("bottleneck.quantiser.dim", 3), "quantiser: unknown key, did you mean quantizer"),
    ],
)
def test_bad_inner_values_are_refused_in_one_sentence(change, words):
    with pytest.raises(UsageError, match=words) as caught:
        bottleneck(("bottleneck", "residual"), change)
    assert "\n" not in str(caught.value)


def test_a_component_that_holds_none_takes_none():
    with pytest.raises(UsageError, match="bottleneck.quantizer: unknown key"):
        bottleneck(("bottleneck.quantizer", "fsq"))
