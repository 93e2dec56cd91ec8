"""What travels to hosts imports nothing that a host may lack."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from plugin_testing import PLUGINS

TRAVELLING = sorted([*(PLUGINS / "module_utils").glob("*.py"), *(PLUGINS / "modules").glob("*.py")])


def imported(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it; a relative import is one of the project's own."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(f"ansible.module_utils.{node.module}" if node.level else node.module or "")
    return found


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_travels_imports_the_standard_library_and_ansible_only(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots <= {"ansible"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((PLUGINS / "module_utils").glob("*.py")), ids=lambda path: path.name)
def test_the_engine_imports_of_ansible_only_its_own_parts(path: Path) -> None:
    own = {f"ansible.module_utils.{other.stem}" for other in (PLUGINS / "module_utils").glob("*.py")}
    assert {name for name in imported(path) if name.startswith("ansible")} <= own


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_travels_is_read_by_the_oldest_hosts_python(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imports[0].module == "__future__", "annotations are not to be evaluated where their syntax is not known yet"
