"""YAML as recipes use it: safe, 1e-4 is a number, and no key may be given twice."""

import re
from typing import Any

import yaml

from qvae.errors import UsageError

__all__ = ["dump_yaml", "parse_yaml"]


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and a key may be given only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(None, None, f"key {key.value!r} twice", key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML safely, or raise UsageError that names ``where``.

    Example:
        >>> parse_yaml("[8, 1e-4, yes]", "here")
        [8, 0.0001, True]
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: not valid YAML, {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML, {error}".replace("\n", " ")) from None


def dump_yaml(value: Any) -> str:
    """Write plain values as YAML, keys in their order, short lists on one line.

    Example:
        >>> print(dump_yaml({"levels": [8, 5], "lr": 1e-5}), end="")
        levels: [8, 5]
        lr: 1.0e-05
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Block style for mappings, flow style for lists."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)


for _side in (_Loader, _Dumper):  # the dumper too, so that the text "1e-4" gets its quotes
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
