"""Imports run downwards only: the layers of the library, and no circle among its files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import relcache

PACKAGE = Path(relcache.__file__).parent

RANKS = {
    "expansion": 0,
    "nearest": 0,
    "sampler": 0,
    "finer": 0,
    "forecasters": 1,
    "schedules": 1,
    "models": 2,
    "correctors": 2,
    "forwards": 1,
    "patch": 2,
    "watch": 3,
    "halt": 2,
    "ranks": 0,
    "wrappers": 3,
    "meta": 1,
    "flops": 2,
    "report": 2,
    "request": 3,
    "offload": 0,
    "storage": 0,
    "store": 1,
    "signs": 1,
    "caller": 0,
    "turn": 1,
    "branches": 2,
    "notes": 3,
    "tracker": 3,
    "runs": 4,
    "features": 3,
    "gauge": 4,
    "compiled": 4,
    "cache": 5,
    "runner": 6,
    "host": 7,
    "estimate": 8,
    "memory_size": 0,
    "memory": 9,
    "timing": 4,
    "requests": 8,
    "operations": 8,
    "record": 9,
    "decision": 4,
    "correction": 9,
    "limit": 10,
    "session": 11,
    "origin": 0,
    "writing": 0,
    "method": 8,
    "presets": 9,
    "methods": 10,
    "components": 4,
    "calibration": 13,
    "api": 12,
    "inspection": 13,
    "": 14,  # the package's own __init__: the public face
    "figures": 15,
    "metrics": 15,
    "bench": 16,
    "commands": 17,
    "cli": 18,
    "__main__": 19,
}
PIPELINES_ALLOWED = {"bench", "cli", "__main__"}


def imported_modules(path: Path, root: Path) -> set[str]:
    """Dotted names that the file at `path` imports, wherever in the file the import stands."""
    inside = path.relative_to(root.parent).with_suffix("").parts
    package = inside[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base_name = ".".join([*base, *([node.module] if node.module else [])])
            names.add(base_name)
            names |= {f"{base_name}.{alias.name}" for alias in node.names}
    return names


def modules_of(root: Path) -> dict[str, Path]:
    """Every module of the package at `root` by its dotted name."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def layer_of(name: str) -> str:
    """The layer of a dotted module name: the file or folder right below the package."""
    return name.split(".")[1] if "." in name else ""


def arrows_of(root: Path) -> dict[str, set[str]]:
    """For each module of the package, the modules of the package that it imports."""
    modules = modules_of(root)
    arrows: dict[str, set[str]] = {}
    for name, path in modules.items():
        imported = imported_modules(path, root)
        targets = {other for other in imported if other in modules and other != name}
        # "from relcache.x import y" runs x as well as y where y is a module; x is then only the way to y.
        ways = {t for t in targets if any(o.startswith(f"{t}.") for o in targets)}
        used = {t for t in ways if not _only_a_way(path, t, modules)}
        arrows[name] = (targets - ways) | used
    return arrows


def _only_a_way(path: Path, package: str, modules: dict[str, Path]) -> bool:
    """Whether every import of `package` in the file takes a module out of it, rather than a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import) and any(alias.name == package for alias in node.names):
            return False
        taken = isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == package
        if taken and any(f"{package}.{alias.name}" not in modules for alias in node.names):
            return False
    return True


def wrong_arrows(root: Path, ranks: dict[str, int]) -> list[str]:
    """What is wrong with the imports of the package at `root`, one line each."""
    wrong = []
    arrows = arrows_of(root)
    for name, targets in arrows.items():
        layer = layer_of(name)
        if layer not in ranks:
            wrong.append(f"{name} belongs to no known layer")
            continue
        for target in sorted(targets):
            other = layer_of(target)
            if other != layer and ranks.get(other, -1) >= ranks[layer]:
                wrong.append(f"{name} imports {target}, which is not below it")
    for name in arrows:
        circle = _circle_through(name, arrows)
        if circle:
            wrong.append("circle: " + " -> ".join(circle))
    for name, path in modules_of(root).items():
        outside = {imported.split(".")[0] for imported in imported_modules(path, root)}
        if "diffusers" in outside and layer_of(name) not in PIPELINES_ALLOWED:
            wrong.append(f"{name} imports diffusers")
    return wrong


def _circle_through(start: str, arrows: dict[str, set[str]]) -> list[str]:
    paths = [[start]]
    seen = set()
    while paths:
        path = paths.pop()
        for target in sorted(arrows.get(path[-1], ())):
            if target == start:
                return [*path, start]
            if target not in seen:
                seen.add(target)
                paths.append([*path, target])
    return []


def test_imports_run_downwards() -> None:
    assert wrong_arrows(PACKAGE, RANKS) == []


def test_the_whole_package_is_read() -> None:
    """The check is worth nothing if it looks at nothing."""
    arrows = arrows_of(PACKAGE)
    assert "relcache.expansion" in arrows["relcache.forecasters.relational"]
    assert "relcache.session" in arrows["relcache.api"]
    assert len(arrows) >= 20


def test_parts_do_not_know_each_other() -> None:
    """What, when and where: no file of one folder imports one of another."""
    parts = {"forecasters", "schedules", "models"}
    for name, targets in arrows_of(PACKAGE).items():
        if layer_of(name) in parts:
            assert {layer_of(target) for target in targets} & parts <= {layer_of(name)}, name


def fake_package(folder: Path, files: dict[str, str]) -> Path:
    root = folder / "relcache"
    for name, text in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"expansion.py": "import relcache.session", "session.py": ""}, "relcache.expansion imports relcache.session"),
        ({"session.py": "from relcache import api", "api.py": ""}, "relcache.session imports relcache.api"),
        ({"session.py": "from . import api", "api.py": ""}, "relcache.session imports relcache.api"),
        ({"session.py": "from .api import x", "api.py": ""}, "relcache.session imports relcache.api"),
        ({"session.py": "def f():\n    from relcache.api import x", "api.py": ""}, "relcache.session imports"),
        ({"session.py": "from relcache import RFC"}, "relcache.session imports relcache"),
        (
            {"forecasters/a.py": "from relcache.schedules.b import x", "schedules/b.py": ""},
            "relcache.forecasters.a imports relcache.schedules.b",
        ),
        (
            {"models/a.py": "from relcache.models import b", "models/b.py": "from relcache.models.a import x"},
            "circle: relcache.models.a -> relcache.models.b -> relcache.models.a",
        ),
        ({"session.py": "from diffusers import DiTPipeline"}, "relcache.session imports diffusers"),
        ({"figures/sheet.py": "import diffusers.models"}, "relcache.figures.sheet imports diffusers"),
        ({"helpers.py": ""}, "relcache.helpers belongs to no known layer"),
    ],
)
def test_a_wrong_arrow_is_found(files: dict[str, str], complaint: str, tmp_path: Path) -> None:
    found = wrong_arrows(fake_package(tmp_path, files), RANKS)
    assert any(complaint in line for line in found), found


def test_right_arrows_are_let_be(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from relcache.api import enable",
        "expansion.py": "import torch",
        "forecasters/__init__.py": "from relcache.forecasters.a import x",
        "forecasters/a.py": "from relcache.expansion import y",
        "api.py": "from relcache import session",
        "session.py": "from relcache.forecasters import x",
        "bench/__init__.py": "",
        "bench/images.py": "import diffusers\nimport relcache\nfrom relcache.expansion import y",
    }
    assert wrong_arrows(fake_package(tmp_path, files), RANKS) == []
