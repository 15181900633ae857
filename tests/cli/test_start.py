"""The command line answers at once: help, versions and typing errors need neither torch nor diffusers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import relcache
from relcache.bench.comparison.benchmarks import NAMES
from relcache.cli.bench import bench_app

CODE = """
import json, sys, time
sys.argv = ["relcache", *json.loads(sys.argv[1])]
from relcache.__main__ import main
code = 0
try:
    main()
except SystemExit as error:
    code = error.code
print(json.dumps([code, time.process_time(), [name for name in ("torch", "diffusers") if name in sys.modules]]))
"""


def started(*arguments: str) -> tuple[int, float, list[str], str]:
    """Return the exit code, seconds of processor time, which of the heavy packages were imported, and the output."""
    ended = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(arguments)], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    *lines, last = ended.stdout.splitlines()
    return *json.loads(last), "\n".join(lines) + ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "calibrate"),
        (["--version"], f"relcache {relcache.__version__}, torch "),
        (["sample", "--help"], "--full-steps"),
        (["bench", "race", "--help"], "--exact-steps"),
        (["sampel"], "sample"),
        (["sample", "--promt", "an owl"], "No such option: --promt"),
        (["bench", "rase"], "race"),
        (["sample", "--steps", "many"], "valid integer"),
        (["demo", "--samples"], "requires an argument"),
    ],
)
def test_answered_without_heavy_imports(arguments: list[str], said: str) -> None:
    code, seconds, imported, output = started(*arguments)
    assert code == (0 if "--help" in arguments or "--version" in arguments else 2)
    assert said in output
    assert imported == []
    assert seconds < 1


def test_an_unknown_method_is_answered_before_diffusers_is_imported() -> None:
    for command in (["sample"], ["demo"], ["bench", "race"], ["analyze"]):
        option = "--method" if command == ["sample"] else "--methods"
        code, _, imported, output = started(*command, option, "taylorser")
        assert code == 1
        assert "did you mean 'taylorseer'" in output.replace("\n", " ")
        assert imported == ["torch"]


def test_the_benchmarks_that_are_named_without_an_import_are_all_of_them() -> None:
    assert {command.name for command in bench_app.registered_commands} - {"race", "speed"} == set(NAMES)


def test_import_relcache_imports_nothing_heavy() -> None:
    code = "import sys, relcache; print([n for n in ('torch', 'diffusers') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_names_of_the_package() -> None:
    assert set(relcache.__all__) <= set(dir(relcache))
    assert all(getattr(relcache, name) is not None for name in dir(relcache) if not name.startswith("_"))
    with pytest.raises(AttributeError, match="module 'relcache' has no attribute 'enabel'"):
        relcache.enabel  # noqa: B018
