"""The fixtures of the plugins' tests: modules run as Ansible runs them, and real servers on free ports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from plugin_testing import PLUGINS, Haproxy, Nats, RunModule, load, program


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Run a module's main() with these arguments and give what it printed for Ansible."""

    def run(name: str, args: dict[str, Any], *, check: bool = False, diff: bool = False) -> dict[str, Any]:
        capsys.readouterr()
        module = load(PLUGINS / "modules" / f"{name}.py")
        given = {**args, "_ansible_check_mode": check, "_ansible_diff": diff}
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def stopped_haproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Haproxy]:
    """A HAProxy that is configured but does not run yet."""
    program("haproxy")
    server = Haproxy(tmp_path_factory.mktemp("haproxy"))
    yield server
    server.stop()


@pytest.fixture
def haproxy(stopped_haproxy: Haproxy) -> Haproxy:
    """A HAProxy that runs."""
    stopped_haproxy.start()
    return stopped_haproxy


@pytest.fixture
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    """A NATS server that runs."""
    program("nats-server")
    server = Nats(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()
