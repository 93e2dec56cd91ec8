"""What the documents promise is there: links lead somewhere, each playbook has its page, commands exist, examples parse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import PLAYBOOKS, ROOT, contents, files

#: Of the environment that runs the tests.
BIN = Path(sys.executable).parent
PAGES = sorted(files(".md"))
RUNBOOK = sorted((ROOT / "docs" / "runbook").glob("*.md"))
#: The inventories that are there to be copied.
EXAMPLES = sorted(path.parent for path in ROOT.glob("inventories/*/hosts.yml"))


def prose(page: Path) -> str:
    """A page without its code, in which nothing is a link."""
    return re.sub(r"^(```|~~~).*?^\1|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code(page: Path) -> str:
    """The blocks of code of a page."""
    return "\n".join(block for _, block in re.findall(r"^(```|~~~)(.*?)^\1", page.read_text(), re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(
        r"^#+ (.+?)\s*$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere, to a missing file or heading."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(page)):
        target, _, anchor = (link[0] or link[1]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        missing = not path.exists() or not path.is_relative_to(ROOT)
        if missing or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            dead.append(link[0] or link[1])
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_there_are_pages_to_check() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert names >= {
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/architecture.md",
        "docs/inventory.md",
        "docs/runbook/README.md",
    }


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.name)
def test_every_playbook_has_a_page_of_the_runbook_that_gives_its_command(playbook: Path) -> None:
    pages = [page for page in RUNBOOK if page.name != "README.md" and f"ansible-playbook {playbook.name}" in code(page)]
    assert pages, f"no page below docs/runbook shows 'ansible-playbook {playbook.name}'"


def test_the_runbook_lists_each_of_its_pages() -> None:
    listed = (ROOT / "docs" / "runbook" / "README.md").read_text()
    assert [page.name for page in RUNBOOK if page.name != "README.md" and f"({page.name})" not in listed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_gives_exists(page: Path) -> None:
    """Targets of make, playbooks, and stages of tests/run.py, in code wherever it stands."""
    makefile = (ROOT / "Makefile").read_text()
    text = page.read_text()
    spans = "\n".join([code(page), *re.findall(r"`([^`\n]+)`", text)])
    targets = set(re.findall(r"^make ([a-z][a-z-]*)", spans, re.MULTILINE))
    playbooks = set(re.findall(r"(?<=ansible-playbook )(?:-i \S+ )?([\w/-]+\.yml)", spans))
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()
    assert {name for name in playbooks if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_redis_cli_of_a_page_names_its_user(page: Path) -> None:
    """Without one, the server answers nobody."""
    text = page.read_text()
    spans = [*code(page).splitlines(), *re.findall(r"`([^`\n]+)`", text)]
    # The guide's own words, in docs/guide.md.
    assert [span for span in spans if "redis-cli " in span and "--user " not in span and span != "redis-cli save"] == []


def test_the_readme_shows_how_to_begin() -> None:
    assert {"make demo", "make test"} <= set(re.findall(r"make [a-z]+", code(ROOT / "README.md")))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_inventory_to_copy_parses_and_every_playbook_accepts_it(example: Path) -> None:
    listed = subprocess.run(
        [str(BIN / "ansible-inventory"), "-i", str(example), "--list"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["app"]["hosts"]
    checked = subprocess.run(
        [str(BIN / "ansible-playbook"), "-i", str(example), "--syntax-check", *(path.name for path in PLAYBOOKS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_inventory_to_copy_names_each_secret_that_is_needed(example: Path) -> None:
    """And gives none: a value that could be deployed would be everybody's password."""
    settings = [*ROOT.glob("group_vars/all/*.yml"), *example.glob(f"group_vars/{example.name}/*.yml")]
    vault = example / "group_vars" / example.name / "vault.example.yml"
    needed = {name for path in settings if path != vault for name in re.findall(r"\bvault_\w+", path.read_text())}
    secrets = contents(vault)
    assert set(secrets) == needed
    assert {name for name, value in secrets.items() if len(value) >= 16} == set()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_inventory_to_copy_configures_the_app_whole(example: Path) -> None:
    """A dictionary replaces the shared one, so none of its keys may be lost on the way."""
    own = contents(example / "group_vars" / example.name / "release.yml").get("release_config")
    shared = contents(ROOT / "group_vars" / "all" / "release.yml")["release_config"]
    for section, keys in shared.items():
        assert own is None or set(keys) <= set(own[section]), section
