"""The documents tell the truth: their code runs, their links lead somewhere, tables are right.

Trees, tables and the benchmarks' figures are made from the code and from benchmarks/results.
After a change there, write them anew with ``python tests/test_docs.py``.
"""

import json
import re
import shlex
import tomllib

import pytest
import yaml
from PIL import Image

from committed import ROOT, result
from qvae import config, recipe_files
from qvae.llm import Vocabulary, write_packed
from qvae.reports.bench_figure import draw, fingerprint
from qvae.reports.curves_figure import draw_curves
from tables import GENERATED
from tables_code import PACKAGE

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(PACKAGE.rglob("*.py"))
BENCHES = ("nearest", "nearest_large", "quantizer")
"""Benchmarks whose results are drawn, too."""
STUDIES = ("aevb_fashion", "aevb_digits")
"""Papers' tables whose curves are drawn."""


def figure_of(name):
    return ROOT / "benchmarks" / "results" / f"{name}.png"


def named(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


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


def test_a_folder_of_tokens_is_of_the_same_run_in_documents_and_recipes():
    recipes = sorted((PACKAGE / "recipes").glob("*.yaml"))
    lines = [words for path in DOCUMENTS for words in command_lines(path)]
    for path in recipes:
        shown = re.findall(r"^#.*? qvae (encode .*)$", path.read_text(encoding="utf-8"), re.M)
        lines += [line.split() for line in shown]
    runs = {}
    for words in lines:
        if words[:1] == ["encode"] and words[3].startswith("runs/"):
            runs.setdefault(words[3], set()).add(words[1])
    assert len(runs) >= 2 and all(len(found) == 1 for found in runs.values()), runs


def test_the_table_of_a_recipe_s_keys_is_complete():
    text = (ROOT / "docs/file-formats.md").read_text(encoding="utf-8").split("## Recipe")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE))
    assert list(rows) == ["extends", *config._TOP]
    assert all(f"`{stage}`" in text.split("| key")[0] for stage in config._STAGES)
    named = re.findall(r"`(\w+)`", rows["sample"])
    assert named == list(config.load_recipe("token_prior", is_complete=False).sample)
    named = re.findall(r"`(\w+)`", rows["model"])
    assert named == list(config.load_recipe("vae", is_complete=False).model)


def test_the_table_of_packed_rows_names_what_is_written(tmp_path):
    words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=9)
    write_packed(tmp_path / "rows", {"train": [{"input_ids": [1, 2]}]}, words)
    text = (ROOT / "docs/file-formats.md").read_text(encoding="utf-8")
    text = text.split("## Rows of a language model")[1].split("\n## ")[0]
    files = re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE)
    assert sorted(files) == sorted(path.name for path in (tmp_path / "rows").iterdir())
    facts = json.loads((tmp_path / "rows/meta.json").read_text(encoding="utf-8"))
    assert all(f"`{key}`" in text for key in [*facts, *facts["splits"]["train"]])


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


@pytest.mark.parametrize("name", [*BENCHES, *STUDIES])
def test_figures_are_of_the_committed_numbers(name):
    with Image.open(figure_of(name)) as image:
        drawn = image.text["Description"]
    report = result(f"{name}.json")
    numbers = report["curves"] if name in STUDIES else report
    assert drawn == fingerprint(numbers), "run python tests/test_docs.py"


if __name__ == "__main__":
    for bench in BENCHES:
        draw(result(f"{bench}.json"), figure_of(bench))
    for study in STUDIES:
        draw_curves(result(f"{study}.json"), figure_of(study))
    for document in GENERATED:
        document.write_text(with_generated(document), encoding="utf-8")
