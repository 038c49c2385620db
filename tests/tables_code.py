"""The parts of the documents that are made from the code: the tree and the ladder."""

import ast
import textwrap

from committed import ROOT
from qvae import recipe_files

PACKAGE = ROOT / "src" / "qvae"
RUNGS = {
    # rung: (bottleneck, whether beta differs from 1, whether it is told conditions, its loss)
    "autoencoder": ("identity", False, False, "`nll`"),
    "VAE": ("gaussian", False, False, "`nll + KL(q(z\\|x) ‖ N(0, I))`"),
    "beta-VAE": ("gaussian", True, False, "`nll + beta * KL`; or `beta * \\|KL - C\\|`"),
    "beta-TCVAE": ("gaussian_tc", False, False, "`nll + KL + (tc_weight - 1) * TC`"),
    "FactorVAE": ("gaussian_factor", None, False, "`nll + beta * KL + tc_weight * TC` of a critic"),
    "IWAE": ("gaussian", False, False, "`-log` of the mean weight of k draws"),
    "VQ-VAE": ("vq", False, False, "`nll + cells * ln V +` codebook and commitment terms"),
    "VQ-VAE, EMA codebook": ("vq_ema", False, False, "`nll + cells * ln V +` commitment term"),
    "FSQ": ("fsq", False, False, "`nll + cells * ln V +` a leash on overshoot"),
    "residual VQ": ("residual", False, False, "the same, summed over levels"),
    "conditional: any, with `conditional: true`": (None, None, True, "as it is, all given `cond`"),
}
"""The ladder in its order; None where a rule does not matter."""


def purpose(path):
    """The first line of a module's docstring, as the tree shows it."""
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]
    return first.replace("``", "").replace(":func:`nearest`", "nearest").rstrip(".")


def source_tree(*, is_short=False):
    """One line for each module; a package's line is its ``__init__``'s.

    The short tree of the README names a package's modules in a list.
    """
    lines = ["src/qvae/"]

    def walk(folder, indent):
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        if is_short and folder != PACKAGE:
            below = [path for path in sorted(folder.glob("*/*.py")) if path.stem != "__init__"]
            found = [path.relative_to(folder).as_posix() for path in [*files, *below]]
            names = " ".join(found)
            lines.extend(textwrap.wrap(names, 94, initial_indent=indent, subsequent_indent=indent))
            return
        lines.extend(f"{indent + path.name:<23} {purpose(path)}" for path in files)
        for path in sorted(folder.glob("*/__init__.py")):
            lines.append(f"{f'{indent}{path.parent.name}/':<23} {purpose(path)}")
            walk(path.parent, indent + "    ")

    walk(PACKAGE, "  ")
    lines.append(f"{'  recipes/':<23} One YAML file a recipe; `qvae list recipe` names them")
    return "```text\n" + "\n".join(lines) + "\n```"


def recipes_of(bottleneck, has_beta, is_told, *, is_many=False):
    """The shipped recipes on a rung."""
    found = []
    for name in recipe_files.recipe_names():
        model = recipe_files.read_recipe(recipe_files.find_recipe(name)).get("model") or {}
        rules = [
            (bottleneck, model.get("bottleneck", {}).get("name")),
            (has_beta, model.get("beta", 1) != 1),
            (is_told, model.get("conditional", False)),
            (is_many, model.get("num_samples", 1) > 1),
        ]
        if model and all(rule is None or rule == fact for rule, fact in rules):
            found.append(f"`{name}`")
    return ", ".join(found)


def ladder_table():
    lines = ["| rung | bottleneck | loss, nats a sample | recipes |", "|---|---|---|---|"]
    for rung, (bottleneck, has_beta, is_told, loss) in RUNGS.items():
        recipes = (
            recipes_of(bottleneck, has_beta, is_told, is_many=rung == "IWAE")
            or f"any, with `--bottleneck {bottleneck}`"
        )
        part = f"`{bottleneck}`" if bottleneck else ""
        lines.append(f"| {rung} | {part} | {loss} | {recipes} |")
    priors = ", ".join(f"`{n}`" for n in recipe_files.recipe_names() if "prior" in n)
    lines.append(
        f"| prior over tokens | | `-log p(tokens \\| cond)`, in place of `ln V` | {priors} |"
    )
    return "\n".join(lines)
