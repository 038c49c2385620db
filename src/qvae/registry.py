"""The closed tables of components: a name in a recipe, and the class it stands for.

A recipe, a config or a checkpoint can only name what is listed here; it can never import or call
by string. The classes are imported when they are first asked for, so this module costs nothing.

To add a component: one file with the class, one line here, one case in ``tests/cases.py``.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from operator import attrgetter
from typing import Any

from qvae.errors import UsageError

__all__ = [
    "COMPONENTS",
    "Nested",
    "did_you_mean",
    "import_attribute",
    "kinds_of",
    "names",
    "resolve",
]

COMPONENTS: dict[str, dict[str, str]] = {
    "data": {
        "clocks": "qvae.data.clocks:Clocks",
        "images": "qvae.data.images:Images",
        "shapes2d": "qvae.data.shapes2d:Shapes2D",
        "tokens": "qvae.data.tokens:Tokens",
        "clock_rows": "qvae.llm.clock_rows:ClockRows",
    },
    "encoder": {
        "mlp": "qvae.networks.mlp:MLPEncoder",
        "conv": "qvae.networks.conv:ConvEncoder",
        "patch": "qvae.networks.patch:PatchEncoder",
        "coord": "qvae.networks.coord:CoordEncoder",
    },
    "bottleneck": {
        "identity": "qvae.bottlenecks.identity:Identity",
        "gaussian": "qvae.bottlenecks.gaussian:Gaussian",
        "gaussian_tc": "qvae.bottlenecks.gaussian_tc:GaussianTC",
        "gaussian_factor": "qvae.bottlenecks.gaussian_factor:GaussianFactor",
        "vq": "qvae.bottlenecks.vq:VQ",
        "vq_ema": "qvae.bottlenecks.vq_ema:VQEMA",
        "vq_cosine": "qvae.bottlenecks.vq_cosine:VQCosine",
        "simvq": "qvae.bottlenecks.simvq:SimVQ",
        "ibq": "qvae.bottlenecks.ibq:IBQ",
        "diveq": "qvae.bottlenecks.diveq:DiVeQ",
        "gumbel": "qvae.bottlenecks.gumbel:Gumbel",
        "fsq": "qvae.bottlenecks.fsq:FSQ",
        "lfq": "qvae.bottlenecks.lfq:LFQ",
        "bsq": "qvae.bottlenecks.bsq:BSQ",
        "posthoc": "qvae.bottlenecks.posthoc:PostHoc",
        "residual": "qvae.bottlenecks.residual:Residual",
        "grouped": "qvae.bottlenecks.grouped:Grouped",
        "projected": "qvae.bottlenecks.projected:Projected",
    },
    "decoder": {
        "mlp": "qvae.networks.mlp:MLPDecoder",
        "conv": "qvae.networks.conv:ConvDecoder",
        "patch": "qvae.networks.patch:PatchDecoder",
        "coord": "qvae.networks.coord:CoordDecoder",
    },
    "likelihood": {
        "gaussian": "qvae.likelihoods:Gaussian",
        "laplace": "qvae.likelihoods:Laplace",
        "bernoulli": "qvae.likelihoods:Bernoulli",
        "continuous_bernoulli": "qvae.likelihoods:ContinuousBernoulli",
        "discretized_logistic": "qvae.likelihoods:DiscretizedLogistic",
        "categorical": "qvae.likelihoods:Categorical",
    },
    "prior": {
        "uniform": "qvae.priors.uniform:Uniform",
        "unigram": "qvae.priors.unigram:Unigram",
        "pixelcnn": "qvae.priors.pixelcnn:PixelCNN",
        "transformer": "qvae.priors.transformer:Transformer",
        "masked": "qvae.priors.masked:Masked",
        "hf": "qvae.priors.hf:HF",
    },
    "llm": {
        "llama": "qvae.llm.llama:Llama",
    },
}
"""Kind -> name -> ``module:Class``, in the order in which data flows."""


@dataclass(frozen=True, slots=True)
class Nested:
    """Mark a constructor's argument that is a component itself: ``{name: ..., **arguments}``.

    In the annotation: ``Annotated[Mapping[str, Any], Nested("bottleneck")]``.
    """

    kind: str


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ``, did you mean X?`` for the closest known word, or an empty string.

    Example:
        >>> did_you_mean("fsk", ["vq", "fsq"])
        ', did you mean fsq?'
    """
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def names(kind: str) -> list[str]:
    """List the names of a kind, in the table's order.

    Raises:
        UsageError: the kind is unknown.

    Example:
        >>> names("data")
        ['clocks', 'images', 'shapes2d', 'tokens', 'clock_rows']
    """
    return list(_table(kind))


def kinds_of(name: str) -> list[str]:
    """List the kinds that have a component of this name.

    Example:
        >>> kinds_of("gaussian")
        ['bottleneck', 'likelihood']
    """
    return [kind for kind, table in COMPONENTS.items() if name in table]


def resolve(kind: str, name: Any) -> type[Any]:
    """Import and return the class that a name stands for.

    Args:
        kind: a key of :data:`COMPONENTS`.
        name: a name of that kind; never a path to import.

    Raises:
        UsageError: the kind or the name is unknown, or the name is an import path.

    Example:
        >>> resolve("bottleneck", "os.system")
        Traceback (most recent call last):
        qvae.errors.UsageError: bottleneck 'os.system': a component is named, not imported; ...
    """
    table = _table(kind)
    known = ", ".join(table)
    if not isinstance(name, str):
        raise UsageError(f"{kind} {name!r}: the name must be text; known: {known}")
    if "." in name or ":" in name:
        raise UsageError(f"{kind} {name!r}: a component is named, not imported; known: {known}")
    if name not in table:
        hint = did_you_mean(name, list(table)) or ";"
        raise UsageError(f"{kind} {name!r}: no such component{hint} known: {known}")
    component: type[Any] = import_attribute(table[name])
    return component


def import_attribute(target: str) -> Any:
    """Import ``module:name``, a string of this package and never of a user."""
    module, _, attribute = target.partition(":")
    return attrgetter(attribute)(import_module(module))


def _table(kind: str) -> dict[str, str]:
    if kind not in COMPONENTS:
        known = list(COMPONENTS)
        hint = did_you_mean(kind, known) or ";"
        raise UsageError(f"kind {kind!r}: unknown{hint} known: {', '.join(known)}")
    return COMPONENTS[kind]
