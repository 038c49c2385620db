"""The documents tell the truth: their code runs, their links lead somewhere, tables are right.

The source trees, the ladder's recipes and the clock's results are made from the code and from
benchmarks/results. After a change there, write them anew with ``python tests/test_docs.py``.
"""

import ast
import json
import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

from qvae import recipe_files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "qvae"
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(PACKAGE.rglob("*.py"))
RUNGS = {
    # rung: (bottleneck, whether beta differs from 1, whether it is told conditions, its loss)
    "autoencoder": ("identity", False, False, "`nll`"),
    "VAE": ("gaussian", False, False, "`nll + KL(q(z\\|x) ‖ N(0, I))`"),
    "beta-VAE": ("gaussian", True, False, "`nll + beta * KL`"),
    "VQ-VAE": ("vq", False, False, "`nll + cells * ln V +` codebook and commitment terms"),
    "VQ-VAE, EMA codebook": ("vq_ema", False, False, "`nll + cells * ln V +` commitment term"),
    "FSQ": ("fsq", False, False, "`nll + cells * ln V +` a leash on overshoot"),
    "conditional: any, with `conditional: true`": (None, None, True, "as it is, all given `cond`"),
}
"""The ladder in its order; None where a rule does not matter."""


def named(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


# -- what is generated -------------------------------------------------------------------------


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
            names = " ".join(path.name for path in files)
            lines.extend(textwrap.wrap(names, 94, initial_indent=indent, subsequent_indent=indent))
            return
        lines.extend(f"{indent + path.name:<23} {purpose(path)}" for path in files)
        for path in sorted(folder.glob("*/__init__.py")):
            lines.append(f"{f'{indent}{path.parent.name}/':<23} {purpose(path)}")
            walk(path.parent, indent + "    ")

    walk(PACKAGE, "  ")
    lines.append(f"{'  recipes/':<23} One YAML file a recipe; `qvae list recipe` names them")
    return "```text\n" + "\n".join(lines) + "\n```"


def recipes_of(bottleneck, has_beta, is_told):
    """The shipped recipes on a rung."""
    found = []
    for name in recipe_files.recipe_names():
        model = recipe_files.read_recipe(recipe_files.find_recipe(name)).get("model") or {}
        rules = [
            (bottleneck, model.get("bottleneck", {}).get("name")),
            (has_beta, model.get("beta", 1) != 1),
            (is_told, model.get("conditional", False)),
        ]
        if model and all(rule is None or rule == fact for rule, fact in rules):
            found.append(f"`{name}`")
    return ", ".join(found)


def ladder_table():
    lines = ["| rung | bottleneck | loss, nats a sample | recipes |", "|---|---|---|---|"]
    for rung, (bottleneck, has_beta, is_told, loss) in RUNGS.items():
        recipes = (
            recipes_of(bottleneck, has_beta, is_told) or f"any, with `--bottleneck {bottleneck}`"
        )
        part = f"`{bottleneck}`" if bottleneck else ""
        lines.append(f"| {rung} | {part} | {loss} | {recipes} |")
    priors = ", ".join(f"`{n}`" for n in recipe_files.recipe_names() if "prior" in n)
    lines.append(
        f"| prior over tokens | | `-log p(tokens \\| cond)`, in place of `ln V` | {priors} |"
    )
    return "\n".join(lines)


def clock_results():
    """The worst seed of each route in ``benchmarks/results``, a row a split."""
    lines = []
    for route in ("style", "grid"):
        files = sorted((ROOT / "benchmarks" / "results").glob(f"clock_{route}_seed*.json"))
        reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not reports:
            continue
        report = min(reports, key=lambda found: found["samples"]["off_block"]["within_1"])
        recon, colour = report["reconstructions"], report["reconstructions"]["hand_colour_error"]
        names = ", ".join(f"`benchmarks/results/{file.name}`" for file in files)
        lines += [
            f"**{route.capitalize()} tokens**: seed {report['seed']}, the worst of {len(reports)}; "
            f"all in {names}.",
            "",
            "| split | N | within 1 min | without floor | dial right | median min | p99 min "
            "| gross | hour slips |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for split, row in report["samples"].items():
            shares = [
                f"{row[name]:.1%}" for name in ("within_1", "within_1_no_floor", "dial_right")
            ]
            errors = [f"{row['median']:.2f}", f"{row['p99']:.1f}"]
            wrong = [f"{row[name]:.1%}" for name in ("gross", "hour_slips")]
            lines.append("| " + " | ".join([split, str(row["n"]), *shares, *errors, *wrong]) + " |")
        lines += [
            "",
            f"Style variance against real clocks {report['style_variance_ratio']:.2f}; "
            f"reconstructions {recon['psnr']:.2f} dB, "
            f"hands' colour error {colour['mean']:.3f} of full scale.",
            "",
        ]
    return "\n".join(lines).strip() or "_No results are committed yet._"


GENERATED = {
    README: {"ladder": ladder_table, "tree": lambda: source_tree(is_short=True)},
    ROOT / "docs" / "architecture.md": {"tree": source_tree},
    ROOT / "docs" / "clock.md": {"results": clock_results},
}


def with_generated(path):
    """A document's text with its generated parts made anew."""
    text = path.read_text(encoding="utf-8")
    for name, make in GENERATED[path].items():
        begin, end = f"<!-- {name}: made by tests/test_docs.py -->\n", f"\n<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[-1]
        assert begin in text and end in text, f"{path.name} lost its {name} markers"
        text = before + begin + make() + end + after
    return text


@pytest.mark.parametrize("path", GENERATED, ids=named(GENERATED))
def test_trees_and_tables_are_those_of_the_code(path):
    text = path.read_text(encoding="utf-8")
    if "tree" in GENERATED[path]:
        modules = [source.name for source in SOURCES if source.stem != "__init__"]
        missing = [name for name in modules if name not in text]
        assert not missing, f"not in the tree: {missing}; run python tests/test_docs.py"
    assert with_generated(path) == text, "run python tests/test_docs.py"


# -- what is written ---------------------------------------------------------------------------


def python_blocks(path):
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(1))
        yield "\n" * line + match[1]  # so that a traceback names the document's own line


WITH_CODE = [path for path in DOCUMENTS if any(python_blocks(path))]


@pytest.mark.parametrize("path", WITH_CODE, ids=named(WITH_CODE))
def test_python_in_documents_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "document"}
    for block in python_blocks(path):
        exec(compile(block, str(path), "exec"), names)


def anchors(text):
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named(DOCUMENTS))
def test_links_between_documents_resolve(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), f"{path.name}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(other.read_text(encoding="utf-8")), f"{path.name}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=named(DOCUMENTS))
def test_source_files_that_documents_name_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{path.name}: {name}"


def command_lines(path):
    """Every ``qvae ...`` of a document's shell blocks, without comments and line ends."""
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["qvae"]:
                yield words[1:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named(DOCUMENTS))
def test_commands_that_documents_show_exist(path):
    from qvae.cli.main import COMMANDS
    from qvae.cli.train import split_overrides

    recipes = recipe_files.recipe_names()
    for words in command_lines(path):
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, words
        if words[0] == "train":
            plain, _ = split_overrides(words[1:])
            recipe = plain[0]
            is_file = recipe.endswith(".yaml") or recipe.startswith("runs/") or recipe == "RECIPE"
            assert is_file or recipe.startswith("-") or recipe in recipes, f"no recipe {recipe}"


def test_layers_in_the_architecture_are_those_that_are_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    text = "\n".join(layers).replace("qvae.", "")
    assert text in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_citation_has_what_cff_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["license"] == "Apache-2.0"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert citation["version"] == version[1]


if __name__ == "__main__":
    for document in GENERATED:
        document.write_text(with_generated(document), encoding="utf-8")
