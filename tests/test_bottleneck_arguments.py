"""What a quantizer cannot be made of is a ValueError with name, value and rule.

The tests' own check of types would come first, so these run in a process of their own without it.
"""

import inspect
import os
import re
import subprocess
import sys

import pytest

from cases import BOTTLENECKS, QUANTIZERS
from qvae import registry

IS_UNTYPED = os.environ.get("QVAE_TEST_UNTYPED") == "1"
untyped = pytest.mark.skipif(not IS_UNTYPED, reason="runs in a process without checks of types")
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


@pytest.mark.skipif(IS_UNTYPED, reason="this is the process without checks of types")
def test_arguments_in_a_process_without_checks_of_types():
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "--tb=short", __file__]
    environment = {**os.environ, "QVAE_TEST_UNTYPED": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert f"{len(list(arguments()))} passed" in run.stdout.splitlines()[-1]


@untyped
@pytest.mark.parametrize(("name", "argument", "wrong"), list(arguments()))
def test_what_is_no_such_number_is_refused_by_name(name, argument, wrong):
    for value in wrong:
        with pytest.raises(ValueError, match=re.escape(f"{argument}={value!r}: ")):
            registry.resolve("bottleneck", name)(**{**BOTTLENECKS[name], argument: value})
