"""What a quantizer cannot be made of is a ValueError with name, value and rule."""

import inspect
import re

import pytest

from cases import BOTTLENECKS, QUANTIZERS
from qvae import registry

NO_NUMBER = ["8", None, [2], True]
NO_WHOLE = [2.5, 2.0, *NO_NUMBER]
NO_LIST = [8, 2.0, "88", None, True, [8, 2.5, 5], [8.0, 3, 5], [True, 3, 5], ["8", 3, 5]]
WRONG = {"levels": NO_LIST, "revival": [], "quantizer": [8, None, True, "vq", [8]]}
"""Argument -> what it is not, where its default does not tell: a flag takes anything."""


def arguments():
    """Every argument of every quantizer, and what is wrong for it."""
    for name in QUANTIZERS:
        for argument, told in inspect.signature(
            registry.resolve("bottleneck", name)
        ).parameters.items():
            by_type = {int: NO_WHOLE, float: NO_NUMBER, str: ["none of them", 2, None, [2]]}
            yield name, argument, WRONG.get(argument, by_type.get(type(told.default)))


@pytest.mark.parametrize(("name", "argument", "wrong"), list(arguments()))
def test_what_is_no_such_number_is_refused_by_name(as_users_call, name, argument, wrong):
    for value in wrong:
        with pytest.raises(ValueError, match=re.escape(f"{argument}={value!r}: ")):
            registry.resolve("bottleneck", name)(**{**BOTTLENECKS[name], argument: value})
