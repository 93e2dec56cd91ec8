"""What every file of the repository keeps to: imports, locks, hosts, size, and what is said of the commands."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from repository import ROOT, files

MODULE_UTILS = {path.stem for path in (ROOT / "plugins" / "module_utils").glob("*.py")}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it; a relative one with its leading dot."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def foreign(path: Path, *allowed: str) -> list[str]:
    """What a file imports besides the standard library, its neighbours and what is allowed."""
    return [
        name
        for name in imports(path)
        if not (
            name.split(".")[0] in sys.stdlib_module_names
            or (name.startswith(".") and name.lstrip(".").split(".")[0] in MODULE_UTILS)
            or name in allowed
            or name.removeprefix("ansible.module_utils.") in MODULE_UTILS
        )
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "plugins" / "module_utils").glob("*.py")), ids=lambda path: path.stem)
def test_module_utils_import_the_standard_library_alone(path: Path) -> None:
    assert foreign(path) == []


@pytest.mark.parametrize("path", sorted((ROOT / "plugins" / "modules").glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_nothing_that_a_host_may_lack(path: Path) -> None:
    basic, text, urls = "basic", "common.text.converters", "urls"
    assert foreign(path, *(f"ansible.module_utils.{name}" for name in (basic, text, urls))) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("roles/*/files/*.py")), ids=lambda path: path.stem)
def test_a_program_for_hosts_imports_the_standard_library_alone(path: Path) -> None:
    assert foreign(path) == []


# Locks and indexes

LOCKS = [path for path in files(".txt") if re.search(r"^[\w.-]+(\[.*\])?==", path.read_text(), re.MULTILINE)]


def test_there_are_the_locks_of_the_control_node_the_app_and_the_newest_ansible() -> None:
    names = {str(path.relative_to(ROOT)) for path in LOCKS}
    assert names >= {"requirements/control.txt", "app/requirements.txt", "tests/newest/requirements.txt"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_lock_gives_every_package_one_version_and_its_hashes_and_no_host(path: Path) -> None:
    text = re.sub(r"\s*\\\n\s*", " ", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert [line for line in lines if not re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+( ;.*?)? --hash=sha256:[0-9a-f]{64}", line)] == []
    assert "://" not in text


def hosts_in(*texts: str) -> set[str]:
    return {host for text in texts for url in re.findall(r"https?://[^\s'\"\])]+", text) if (host := urlsplit(url).hostname)}


def index_hosts() -> set[str]:
    """The hosts of the package indexes that this machine uses: its settings say which, and so does pip where they are silent."""
    python = Path(sys.executable)
    pip_settings = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    built_in = "from pip._internal.models.index import PyPI; print(f'https://{PyPI.netloc} https://{PyPI.file_storage_domain}')"
    pip_default = subprocess.run([python, "-c", built_in], capture_output=True, text=True, check=True).stdout
    settings = [value for name, value in os.environ.items() if re.match(r"(PIP|UV|NPM_CONFIG|npm_config)_", name)]
    for path in (Path("/etc/uv/uv.toml"), Path.home() / ".config/uv/uv.toml", Path("/etc/npmrc"), Path.home() / ".npmrc"):
        settings += [path.read_text()] if path.is_file() else []
    apt = [Path("/etc/apt/sources.list"), *(Path("/etc/apt/sources.list.d") / f"{name}.sources" for name in ("debian", "ubuntu"))]
    sources = [re.sub(r"(?m)^\s*#.*$", "", path.read_text()) for path in apt if path.is_file()]
    return hosts_in(pip_settings, pip_default, *settings, *sources)


def test_no_file_names_the_host_of_a_package_index() -> None:
    hosts = index_hosts() - {"localhost", "127.0.0.1"}
    assert hosts, "pip alone knows one"
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(host)}(?![\w-])" for host in sorted(hosts)), re.IGNORECASE)
    found = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


# Size and shape

MOST_LINES = 700
MOST_BYTES = 500_000


def test_no_file_is_too_long_to_read() -> None:
    written = [path for path in files() if path not in LOCKS and path.suffix not in (".svg", ".png", ".jpg")]
    long = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in written}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}
    assert [str(path.relative_to(ROOT)) for path in files() if path.stat().st_size > MOST_BYTES] == []


def test_a_file_with_a_first_line_for_a_program_can_be_run() -> None:
    """Modules and roles' files apart: Ansible gives them their mode where they land. Redis reads the `#!lua` of a script."""
    carried = [ROOT / "plugins" / "modules", *ROOT.glob("roles/*/files")]
    scripts = [path for path in files() if path.read_bytes()[:3] == b"#!/" and path.parent not in carried]
    assert scripts
    assert [str(path.relative_to(ROOT)) for path in scripts if not os.access(path, os.X_OK)] == []


def test_every_target_of_the_makefile_is_explained_by_make_help() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE) == phony.group(1).split()


def test_a_mistyped_target_says_what_there_is() -> None:
    ran = subprocess.run(["make", "no-such-target"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "no-such-target" in ran.stderr
    assert "make demo" in ran.stderr


def test_a_mistyped_stage_says_what_there_is() -> None:
    ran = subprocess.run([sys.executable, "tests/run.py", "lnit"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "lnit" in ran.stderr
    assert "lint" in ran.stderr


def test_ansible_runs_without_injected_facts_and_with_checked_host_keys() -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "ansible.cfg")
    defaults = settings["defaults"]
    assert not defaults.getboolean("inject_facts_as_vars")
    assert defaults["gathering"] == "explicit"
    assert defaults.getboolean("host_key_checking")
    assert defaults["inventory"] == "inventories/local"


def test_every_scenario_of_molecule_is_brought_up_and_asked_by_the_runner() -> None:
    said = subprocess.run([sys.executable, "tests/run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    scenarios = [path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")]
    assert scenarios
    stages = [f"molecule-{name}-{part}" for name in scenarios for part in ("up", "verify")]
    assert [stage for stage in stages if stage not in said.split()] == []
