"""Walk a rollout, a step at a time: this control node decides, the agents on the load balancers act."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import ansible.constants
import ansible.module_utils
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import become_loader, connection_loader
from ansible.utils.display import Display

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import rollout, state_files
from ansible.module_utils.run_owner import owner

_ARGUMENTS = {
    "step": {
        "type": "str",
        "required": True,
        "choices": ["begin", "shadow", "stage", "promote", "warm", "end", "rollback", "command"],
    },
    "directory": {"type": "path"},
    "load_balancers": {"type": "list", "elements": "str"},
    "rollout": {"type": "dict"},
    "stage": {"type": "dict"},
    "reasons": {"type": "list", "elements": "str", "default": []},
    "outcome": {"type": "str"},
    "preempt": {"type": "bool", "default": False},
    "mark": {"type": "bool", "default": False},
    "started": {"type": "int", "default": 0},
    "kind": {"type": "str", "default": "canary"},
    "action": {"type": "str", "choices": ["pause", "resume", "promote", "abort"]},
    "agent": {"type": "str", "default": "/usr/local/sbin/trading-bot-release"},
}


class ActionModule(ActionBase):
    """The action; see modules/release_rollout.py for what it takes and gives."""

    _requires_connection = False
    _supports_check_mode = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Take one step."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(argument_spec=_ARGUMENTS)
        self._hostvars = (task_vars or {})["hostvars"]
        try:
            result.update(changed=True, **self._step(given))
        except (rollout.RolloutError, OSError) as error:
            raise AnsibleActionFail(str(error)) from error
        return result

    def _step(self, given: Mapping[str, Any]) -> dict[str, Any]:
        step = given["step"]
        if step == "command":
            return self._command(given)
        directory = Path(given["directory"])
        if step == "begin":
            directory = prepare(directory, {**given["rollout"], "kind": given["kind"]})
        spec = json.loads((directory / "rollout.json").read_text(encoding="utf-8"))
        agents = LoadBalancers(self, self._hostvars, spec["load_balancers"], given["agent"], spec["frontend_port"])
        playbook = os.getppid()
        walk = rollout.Rollout(directory, agents, say, wanted=lambda: os.getppid() == playbook)
        if step == "begin":
            walk.begin(given["kind"], given["preempt"])
        elif step == "rollback":
            # The release may have been waited for as long as the lock lasts.
            walk.renew()
            return {"seconds": walk.roll_back(given["reasons"], given["mark"], started=given["started"])}
        elif step == "end":
            walk.end(given["outcome"], given["reasons"])
        elif step == "promote":
            walk.promote()
        else:
            outcome = walk.stage(rollout.Stage(**given["stage"])) if step == "stage" else getattr(walk, step)()
            return {"outcome": outcome.outcome, "reasons": list(outcome.reasons)}
        return {"id": walk.spec["id"], "directory": str(directory), "rollout": walk.spec}

    def _command(self, given: Mapping[str, Any]) -> dict[str, Any]:
        agents = LoadBalancers(self, self._hostvars, given["load_balancers"], given["agent"])
        told = {"action": given["action"], "by": owner(), "why": "; ".join(given["reasons"])}
        answers = agents.ask("command", dict.fromkeys(agents.names, told))
        wrong = [f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, rollout.AgentError)]
        if len(wrong) == len(answers):
            raise rollout.RolloutError("; ".join(wrong))
        return {"told": sorted(set(answers) - {name.partition(":")[0] for name in wrong}), "wrong": wrong}


class LoadBalancers:
    """The agents of the load balancers, each reached as the inventory says and asked at the same time."""

    def __init__(
        self, action: ActionModule, hostvars: Mapping[str, Any], names: Sequence[str], agent: str, frontend_port: int = 8080
    ) -> None:
        self.names: Sequence[str] = list(names)
        self._agent = agent
        self._port = frontend_port
        self._addresses = {name: str(hostvars[name].get("ansible_host", name)) for name in names}
        self._connections = {name: self._connection(action, hostvars[name]) for name in names}
        self._pool = ThreadPoolExecutor(max_workers=max(len(names), 1))

    def ask(self, command: str, payloads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The answer of each load balancer that is named: a dictionary, or an AgentError."""
        asked = {name: self._pool.submit(self._one, name, command, payload) for name, payload in payloads.items()}
        return {name: answer.result() for name, answer in asked.items()}

    def serves(self, name: str) -> bool:
        """Whether clients can connect to it. What cannot be told counts as yes."""
        try:
            socket.create_connection((self._addresses[name], self._port), timeout=2).close()
        except ConnectionRefusedError:
            return False
        except OSError:
            # No answer at all: a host that is off, or a network that hides it from here.
            others = [other for other in self.names if other != name]
            return not others or any(self._reaches(other, name) for other in others)
        return True

    def _reaches(self, other: str, name: str) -> bool:
        answer = self._one(other, "reach", {"address": self._addresses[name], "port": self._port})
        return isinstance(answer, rollout.AgentError) or bool(answer["open"])

    def _one(self, name: str, command: str, payload: Mapping[str, Any]) -> Any:
        connection = self._connections[name]
        line = f"{self._agent} {command}"
        if connection.become is not None:
            line = connection.become.build_become_command(line, connection._shell)
        try:
            code, out, err = connection.exec_command(line, in_data=json.dumps(dict(payload)).encode(), sudoable=True)
        except (AnsibleConnectionFailure, AnsibleError) as error:
            return rollout.AgentError("unreachable", str(error))
        return answer_of(code, out, err)

    @staticmethod
    def _connection(action: ActionModule, variables: Mapping[str, Any]) -> Any:
        """A connection to a host, made of its variables as Ansible makes that of a task."""
        context = action._play_context.copy()
        context.remote_addr = variables.get("ansible_host", variables["inventory_hostname"])
        kind = variables.get("ansible_connection", "ssh")
        connection = connection_loader.get(
            kind, context, task_uuid=action._task._uuid, ansible_playbook_pid=to_text(str(os.getppid()))
        )
        if variables.get("ansible_become", False):
            become = become_loader.get(variables.get("ansible_become_method", "sudo"))
            become.set_options(var_options=_options("become", become._load_name, variables))
            connection.set_become_plugin(become)
        connection.set_options(var_options=_options("connection", connection._load_name, variables))
        connection._shell.set_options(var_options=_options("shell", connection._shell._load_name, variables))
        return connection


def _options(kind: str, plugin: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: variables[name] for name in ansible.constants.config.get_plugin_vars(kind, plugin) if name in variables}


def answer_of(code: int, out: bytes, err: bytes) -> Any:
    """What an agent answered: its dictionary, or an AgentError."""
    lines = [line for line in out.decode(errors="replace").splitlines() if line.startswith("{")]
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = (err.decode(errors="replace").strip() or out.decode(errors="replace").strip())[-300:]
        return rollout.AgentError("unreachable" if code == 255 else "failed", said or f"exit code {code} without a word")
    if answer.get("ok"):
        return answer
    return rollout.AgentError(str(answer.get("code", "failed")), str(answer.get("error", "no reason given")), answer)


def prepare(rollouts: Path, spec: Mapping[str, Any]) -> Path:
    """The rollout's directory, with what is to be done: a new one, or that of the same rollout which was cut off."""
    now = time.time()
    told = {
        **spec,
        "owner": owner(),
        "started_at": state_files.stamp(now),
        "id": f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{spec['to']['release_id']}",
    }
    for known in sorted(rollouts.glob("*/rollout.json"), reverse=True)[:1]:
        before = json.loads(known.read_text(encoding="utf-8"))
        if "outcome" not in before and all(before.get(key) == told[key] for key in ("kind", "from", "to")):
            told.update(id=before["id"], started_at=before["started_at"])
    directory = rollouts / str(told["id"])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rollout.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return directory


def say(line: str) -> None:
    """A line of progress, as it happens."""
    Display().display(f"{time.strftime('%H:%M:%S', time.gmtime())}Z  {line}")
