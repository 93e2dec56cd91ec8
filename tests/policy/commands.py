"""The commands that pages and playbooks show, read as a shell would read them, and what is wrong with each.

A page shows a command in a block of `sh` or `console` and in a span of code; a playbook in the comment at its head and in what
it says of the way back; the CI example in its steps.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from repository import PLAYBOOKS, ROLES, ROOT, contents, files, read, tasks

BIN = Path(sys.executable).parent
#: By name, so that the app is judged by its own settings of mypy alone.
CLI: Any = importlib.import_module("trading_bot.entrypoints.cli")
PROGRAMS = ("ansible-playbook", "make", "trading-bot")
#: Inventories that a reader makes, and the example that each is a copy of.
COPIES = {"inventories/mine": "inventories/production"}
#: Directories that are the repository's own, so that a path into one of them has to lead somewhere.
OWN = (
    "app",
    "bench",
    "docs",
    "group_vars",
    "inventories",
    "lab",
    "molecule",
    "playbooks",
    "plugins",
    "requirements",
    "roles",
    "tests",
)
#: Files that a reader makes on the way.
MADE = re.compile(r"^(inventories/mine(/|$)|group_vars/mine$|inventories/[^/]+/group_vars/[^/]+/vault\.yml$|notes/)")


@dataclass(frozen=True)
class Command:
    """A command as words, and where it stands."""

    path: Path
    line: int
    words: tuple[str, ...]
    #: It stands in the middle of a sentence, which may leave out what it needs besides.
    named: bool = False

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {' '.join(self.words)}"


class Unfit(Exception):
    """What is wrong with a command."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Unfit(message)


# --- reading ---


def split(text: str) -> list[list[str]]:
    """The commands of one line of shell: what `;`, `&`, `|` and redirections part, without comments and assignments in front."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>()")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word and set(word) <= set(";&|<>()"):
            found.append([])
        else:
            found[-1].append(word)
    for words in found:
        while words and (re.match(r"^[A-Z_]+=", words[0]) or words[0] in ("$", "sudo")):
            words.pop(0)
    return [words for words in found if words]


def _lines(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Each line of shell that a page shows, with the number of its first line and whether it is in a sentence; `\\` at an end
    joins lines."""
    inside, joined, start = "", "", 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"^\s*(?:```|~~~)(\w*)", line)
        if fence:
            inside = "" if inside else (fence.group(1) or "text")
        elif inside in ("sh", "bash", "console"):
            if inside == "console" and not joined and not line.startswith("$ "):
                continue
            start = start if joined else number
            joined += line.removesuffix("\\")
            if not line.endswith("\\"):
                yield start, joined, False
                joined = ""
        elif not inside:
            for span in re.findall(r"`([^`]+)`", line):
                if span.startswith(tuple(f"{program} " for program in PROGRAMS)):
                    yield number, span, True


def _said(playbook: Path) -> Iterator[tuple[int, str, bool]]:
    """The commands at the head of a playbook, each apart from what is said of it, and those that it gives as the way back."""
    for number, line in enumerate(playbook.read_text().splitlines(), 1):
        head = re.match(r"^#   (ansible-playbook .+?)(?:   .*)?$", line)
        if head:
            # `a|b` is either.
            yield number, re.sub(r"(=\w+)(\|\w+)+", r"\1", head.group(1)), False
        back = re.search(r"operation_undo: ['\"]?(ansible-playbook [^{'\"]+)$", line)
        if back:
            yield number, back.group(1), False


def _steps(example: Path) -> Iterator[tuple[int, str, bool]]:
    """The shell of each step, with an expression of the CI as a word that stands for something."""
    for job in contents(example)["jobs"].values():
        for step in job["steps"]:
            for line in step.get("run", "").replace("\\\n", "").splitlines():
                number = next(
                    at for at, text in enumerate(example.read_text().splitlines(), 1) if line.split("  ")[0].strip() in text
                )
                yield number, re.sub(r"\$\{\{.*?\}\}", "$VALUE", line), False


@cache
def commands() -> tuple[Command, ...]:
    """Every command of the three programs, wherever a page or a playbook shows it."""
    found = []
    shown = [(page, _lines(page)) for page in files(".md")] + [(playbook, _said(playbook)) for playbook in PLAYBOOKS]
    shown += [(example, _steps(example)) for example in (ROOT / "docs" / "examples").glob("*.yml")]
    for path, lines in shown:
        for number, text, named in lines:
            try:
                parts = split(text)
            except ValueError as error:
                raise AssertionError(f"{path.relative_to(ROOT)}:{number}: {text!r} is no shell: {error}") from error
            found += [Command(path, number, tuple(words), named) for words in parts if Path(words[0]).name in PROGRAMS]
    return tuple(found)


# --- what there is ---


@cache
def inventory(name: str) -> dict[str, set[str]]:
    """The groups of an inventory with their hosts, `all` among them."""
    listed = subprocess.run(
        [str(BIN / "ansible-inventory"), "-i", str(ROOT / name), "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = json.loads(listed.stdout)
    # A group without hosts is told as a child only.
    groups: dict[str, set[str]] = {child: set() for value in told.values() for child in value.get("children", [])}
    groups.update({group: set(value.get("hosts", [])) for group, value in told.items() if group != "_meta"})
    groups["all"] = set(told["_meta"]["hostvars"]) | set().union(*groups.values())
    return groups


def _example_hosts() -> set[str]:
    names = [path.name for path in (ROOT / "inventories").iterdir() if path.is_dir()]
    return set().union(*(inventory(f"inventories/{name}")["all"] for name in names))


@cache
def tags() -> set[str]:
    """Every tag of a task."""
    found: set[str] = set()
    for task in tasks():
        named = task.keys.get("tags", [])
        found |= set([named] if isinstance(named, str) else named)
    return found


def _strings(value: Any) -> Iterator[str]:
    """Every key and every string of a YAML value, but for names and comments."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("name", "msg", "fail_msg", "__lines__"):
                yield str(key)
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def _roles_in(paths: Iterable[Path]) -> set[str]:
    """The roles that plays and tasks name."""
    named = {
        name for path in paths for name in re.findall(r"^\s+(?:- )?(?:name:|role:|-) (\w+)$", path.read_text(), re.MULTILINE)
    }
    return named & {role.name for role in ROLES}


@cache
def inputs(role: str) -> dict[str, list[str]]:
    """What a role takes, with the values to choose from where there are such."""
    found: dict[str, list[str]] = {name: [] for name in contents(ROOT / "roles" / role / "defaults" / "main.yml")}
    for entry in contents(ROOT / "roles" / role / "meta" / "argument_specs.yml").get("argument_specs", {}).values():
        found.update({name: option.get("choices", []) for name, option in entry.get("options", {}).items()})
    return found


@cache
def variables(playbook: Path) -> dict[str, list[str]]:
    """What can be set for a playbook, with the values to choose from where there are such: what its own text and that of the
    playbooks which it imports speaks of, the inputs of their roles, and what every inventory shares."""
    books, waiting = set(), [playbook]
    while waiting:
        path = waiting.pop()
        books.add(path)
        imported = [play["ansible.builtin.import_playbook"] for play in read(path) if "ansible.builtin.import_playbook" in play]
        waiting += [path.parent / name for name in imported if path.parent / name not in books]
    texts: list[Path] = list(books)
    roles: set[str] = set()
    while fresh := _roles_in(texts) - roles:
        roles |= fresh
        texts = [
            path
            for role in fresh
            for path in [*(ROOT / "roles" / role).glob("tasks/*.yml"), *(ROOT / "roles" / role / "meta").glob("main.yml")]
        ]
    found: dict[str, list[str]] = {}
    for path in books:
        found.update({word: [] for text in _strings(read(path)) for word in re.findall(r"[a-z]\w+", text)})
    others = set().union(*(inputs(role.name) for role in ROLES if role.name not in roles))
    for path in (ROOT / "group_vars" / "all").glob("*.yml"):
        found.update({name: [] for name in contents(path) if name not in others})
    for role in roles:
        found.update(inputs(role))
    return found


# --- judging ---


def _extra(text: str) -> dict[str, Any]:
    """The variables of one `-e`."""
    if text.startswith("@"):
        _path(text[1:])
        return {}
    if text.startswith("{"):
        return dict(yaml.safe_load(text))
    pairs = [word.partition("=") for word in shlex.split(text)]
    if not all(equals for _, equals, _ in pairs):
        raise Unfit(f"-e {text!r} is no name=value")
    return {name: value for name, _, value in pairs}


def _hosts(pattern: str, groups: dict[str, set[str]]) -> None:
    known = set(groups) | _example_hosts()
    for part in re.split(r"[,:](?![^\[]*\])", pattern):
        name = re.sub(r"\[.*\]$", "", part.lstrip("!&"))
        # On a page a host that is added has a number after the last one's.
        if name not in known and name.rstrip("0123456789") not in {
            host.rstrip("0123456789") for host in known if host[-1:].isdigit()
        }:
            raise Unfit(f"-l {pattern}: there is neither a group nor a host {name}")


def leads_nowhere(text: str) -> bool:
    """Whether a word is a path into a directory of the repository's own, and there is no such file."""
    own = "/" in text and text.split("/")[0] in OWN
    return own and not MADE.match(text) and not re.search(r"[<>*$…{]|\.\.\.", text) and not (ROOT / text).exists()


def _path(text: str) -> None:
    if leads_nowhere(text):
        raise Unfit(f"there is no {text}")


def _ansible_playbook(words: list[str]) -> None:
    parser = _Parser(prog="ansible-playbook", allow_abbrev=False, add_help=False)
    parser.add_argument("playbooks", nargs="+")
    parser.add_argument("-i", "--inventory", action="append", default=[])
    parser.add_argument("-l", "--limit", action="append", default=[])
    parser.add_argument("-e", "--extra-vars", action="append", default=[])
    parser.add_argument("-t", "--tags", "--skip-tags", action="append", default=[])
    for flags in (
        ("-C", "--check"),
        ("-D", "--diff"),
        ("-J", "--ask-vault-pass"),
        ("--list-tasks",),
        ("--list-hosts",),
        ("--syntax-check",),
    ):
        parser.add_argument(*flags, action="store_true")
    parser.add_argument("-v", action="count")
    parser.add_argument("-f", "--forks", type=int)
    options = parser.parse_intermixed_args(words)
    for name in options.playbooks:
        playbook = (ROOT / name).resolve()
        if not playbook.is_file():
            raise Unfit(f"there is no playbook {name}")
        known = variables(playbook)
        for text in options.extra_vars:
            for variable, value in _extra(text).items():
                if variable not in known:
                    raise Unfit(f"{name} knows no variable {variable}")
                if (
                    known[variable]
                    and "…" not in str(value)
                    and value not in known[variable]
                    and value not in map(str, known[variable])
                ):
                    raise Unfit(f"{variable} is one of {', '.join(map(str, known[variable]))}, not {value}")
    sources = [COPIES.get(source, source) for source in options.inventory] or ["inventories/local"]
    for source in sources:
        if not (ROOT / source).exists():
            raise Unfit(f"there is no inventory {source}")
    for pattern in options.limit:
        _hosts(pattern, inventory(sources[0]))
    for named in options.tags:
        if missing := set(named.split(",")) - tags():
            raise Unfit(f"no task has the tag {', '.join(sorted(missing))}")


def _make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    for target in (word for word in words if "=" not in word):
        if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE):
            raise Unfit(f"the Makefile has no target {target}")
    for name, value in settings.items():
        if f"$({name})" not in makefile:
            raise Unfit(f"the Makefile asks for no {name}")
        if "bench" in words and "." not in value and not (ROOT / "bench" / f"{value}.py").exists():
            raise Unfit(f"there is no benchmark {value}")


def _options(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """The options of the command that the words name."""
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            found |= _options(action.choices[words[0]], words[1:])
    return found


def _trading_bot(words: list[str], named: bool) -> None:
    if not words or words[0] in ("-config", "--config"):
        words = ["run", *words]
    # `[...]` may be left out.
    words = [word.strip("[]") for word in words if word.strip("[]") and word not in ("…", "...")]
    parser, said = CLI._parser(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser.parse_args(words)
        except SystemExit as end:
            message = said.getvalue().strip().splitlines()[-1] if end.code else ""
            unknown = [
                word
                for word in words
                if word.startswith("-") and len(word) > 1 and word.split("=")[0] not in _options(parser, words)
            ]
            if unknown:
                raise Unfit(f"trading-bot has no {', '.join(unknown)} there") from None
            if message and not (named and re.search(r"required|expected one argument", message)):
                raise Unfit(message) from None


def complaint(command: Command) -> str:
    """What is wrong with a command; empty where nothing is."""
    judges: dict[str, Callable[[list[str]], None]] = {
        "ansible-playbook": _ansible_playbook,
        "make": _make,
        "trading-bot": lambda words: _trading_bot(words, command.named),
    }
    program, words = Path(command.words[0]).name, list(command.words[1:])
    try:
        for word in words:
            _path(word)
        judges[program](words)
    except Unfit as unfit:
        return f"{command}: {unfit}"
    return ""
