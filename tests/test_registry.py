"""The closed tables: every name resolves, nothing else can be imported."""

import subprocess
import sys

import pytest

from qvae.errors import UsageError
from qvae.registry import COMPONENTS, did_you_mean, kinds_of, names, resolve

ALL = [(kind, name) for kind, table in COMPONENTS.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_name_is_a_class_of_ours_with_a_documented_purpose(kind, name):
    component = resolve(kind, name)
    assert isinstance(component, type)
    assert component.__module__.startswith("qvae.")
    assert (component.__doc__ or "").strip(), f"{kind} {name} has no docstring"


@pytest.mark.parametrize("name", ["torch.nn.Linear", "os:system", "qvae.bottlenecks.vq:VQ", "."])
def test_an_import_path_is_refused(name):
    with pytest.raises(UsageError, match="a component is named, not imported; known: identity"):
        resolve("bottleneck", name)


def test_an_unknown_name_says_what_was_meant_and_what_there_is():
    with pytest.raises(UsageError, match="'fsk': no such component, did you mean fsq. known: id"):
        resolve("bottleneck", "fsk")
    with pytest.raises(UsageError, match="'zzz': no such component; known: mlp, conv, patch"):
        resolve("encoder", "zzz")


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="kind 'bottlenek': unknown, did you mean bottleneck"):
        names("bottlenek")


@pytest.mark.parametrize("name", [None, 3, ["vq"], {"class_path": "os.system"}])
def test_a_name_is_text(name):
    with pytest.raises(UsageError, match="the name must be text"):
        resolve("bottleneck", name)


def test_names_and_kinds():
    assert names("likelihood")[:3] == ["gaussian", "laplace", "bernoulli"]
    assert kinds_of("conv") == ["encoder", "decoder"]
    assert kinds_of("nothing") == []
    assert did_you_mean("zzzz", ["fsq"]) == ""


def test_importing_the_tables_imports_no_torch():
    code = "import sys, qvae.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
