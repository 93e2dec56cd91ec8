"""The walk of a rollout: begin, shadow, a stage at a time, promote, keep warm, end; and the way back from each of them.

The control node decides and the agents on the load balancers act (``agent.py``). Between two steps everything that
matters is on the load balancers and in the rollout's directory, so that a step is a call of its own and a control node
that dies leaves nothing behind in memory.

``rollout.json``: what is rolled out. ``state.json``: the judge's memory, counters, fencing numbers. ``looks.jsonl``: every
look. ``journal.jsonl``: the load balancers' journals. ``shadow.json``: what was compared in the shadow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

from .evidence import Counters, StageEvidence
from .judge import FAIL, INSUFFICIENT, PASS, Memory, Plan, Verdict, judge, standard_plan
from .map_files import replace_text
from .run_owner import gone
from .state_files import stamp

#: Seconds that the lock lasts between two steps, while the playbook does something else.
BETWEEN_STEPS = 60.0
#: Seconds between two lines of progress while nothing happens.
PROGRESS = 10.0

ABORT = "abort"


class RolloutError(RuntimeError):
    """The rollout cannot go on; the message is one sentence for the operator."""


class Locked(RolloutError):
    """Another run is in progress; ``lock`` says whose, and ``on`` in it where."""

    def __init__(self, message: str, lock: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.lock = lock


class TakenOver(RolloutError):
    """Somebody else has the lock now; nothing of ours may be written any more."""


class AgentError(RuntimeError):
    """A load balancer's agent refused (``code`` as the agent has it) or could not be reached (``unreachable``)."""

    def __init__(self, code: str, message: str, answer: Optional[Mapping[str, Any]] = None) -> None:
        super().__init__(message)
        self.code = code
        self.answer = dict(answer or {})


class Agents(Protocol):
    """The agents of all load balancers."""

    names: Sequence[str]

    def ask(self, command: str, payloads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The answer of each load balancer that is named, asked at the same time: a dictionary, or an AgentError."""

    def serves(self, name: str) -> bool:
        """Whether a load balancer whose agent cannot be reached still takes clients' connections."""


@dataclass(frozen=True)
class Stage:
    """A share of the accounts, in basis points, and how long it is looked at: at least, and at most."""

    name: str
    cut: int
    min_seconds: float
    deadline: float


@dataclass(frozen=True)
class Outcome:
    """How a step ended: pass, fail, insufficient or abort; and why."""

    outcome: str
    reasons: tuple[str, ...] = ()


def stages_of(cuts: Sequence[float], min_seconds: float, deadline: float) -> list[Stage]:
    """Stages of percentages. Raises RolloutError unless they grow up to 100."""
    percent = [float(cut) for cut in cuts]
    if not percent or sorted(set(percent)) != percent or percent[0] <= 0 or percent[-1] != 100:
        raise RolloutError(f"canary_stages is {list(cuts)}, expected percentages that grow and end with 100, as 5, 20, 50, 100")
    return [Stage(f"{cut:g}%", round(cut * 100), min_seconds, deadline) for cut in percent]


class Rollout:
    """One rollout, in its directory.

    ``spec``: what ``rollout.json`` holds: id, owner, started_at, from, to ({release_id, version, slot}), stages, hosts,
    load_balancers, instances ({host: {slot: address}}), accounts, thresholds {errors (a fraction), latency (seconds), slow
    (a fraction)}, interval, on_insufficient (rollback or promote), lock_ttl, warm_seconds, probe_accounts,
    shadow {orders, deadline, expected}; seconds everywhere.
    """

    def __init__(
        self,
        directory: Path,
        agents: Agents,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """``wanted`` says whether the playbook that takes this step still runs."""
        self.directory = directory
        self.agents = agents
        self.spec: dict[str, Any] = json.loads((directory / "rollout.json").read_text(encoding="utf-8"))
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._wanted = wanted
        state = self._read("state.json", {})
        self._tokens: dict[str, int] = state.get("tokens", {})
        self._memory = Memory.from_dict(state["memory"]) if state.get("memory") else Memory()
        history = state.get("history")
        self._history = Counters.from_dict(history) if history else Counters((self.stable, self.canary))
        self._paused = bool(state.get("paused"))
        self._taken: list[str] = state.get("taken", [])
        self._said = 0.0
        self._unseen: dict[str, float] = {}
        self._noted: dict[str, Any] = {"phase": "begin"}

    @property
    def stable(self) -> str:
        """The slot of the release that serves."""
        return str(self.spec["from"]["slot"])

    @property
    def canary(self) -> str:
        """The slot of the release that is rolled out."""
        return str(self.spec["to"]["slot"])

    @property
    def plan(self) -> Plan:
        """What it is judged by."""
        limits = self.spec["thresholds"]
        return standard_plan(limits["errors"], limits["slow"], accounts=max(int(self.spec["accounts"]), 1))

    # --- the steps ---------------------------------------------------------------------------------------------

    def begin(self, kind: str = "canary", preempt: bool = False) -> None:
        """Take the lock on every load balancer, or on none. Raises Locked, or RolloutError where one is out of reach.

        The lock of a process of this machine that is no more is not in the way for longer than its watchdog needs.
        """
        while True:
            try:
                return self._begin(kind, preempt)
            except Locked as error:
                if not gone(str(error.lock.get("owner"))):
                    raise
                if error.lock.get("kind") not in ("canary", "rollback"):
                    # No account is on trial, so there is nothing that a watchdog would have to do first.
                    self._one(error.lock["on"], "unlock", {"token": error.lock["token"]})
                    continue
                left = error.lock.get("expires_at", 0) - self._clock()
                self._say(f"{error.lock['owner']} is gone; its lock ends in {max(left, 0):.0f} s")
                self._sleep(min(max(left, 0.2), 5))

    def _begin(self, kind: str, preempt: bool) -> None:
        wanted = {"owner": self.spec["owner"], "rollout": self.spec["id"], "kind": kind, "ttl": BETWEEN_STEPS}
        token = 0
        held: dict[str, int] = {}
        names = self._in_reach(without_those_that_serve=preempt)
        for name in names:
            answer = self._one(name, "acquire", {**wanted, "token": token, "preempt": preempt})
            if isinstance(answer, AgentError):
                self.agents.ask("unlock", {done: {"token": number} for done, number in held.items()})
                if answer.code == "locked":
                    raise Locked(f"{name}: {answer}", {**(answer.answer.get("lock") or {}), "on": name})
                raise RolloutError(f"{name}: {answer}")
            held[name] = token = answer["token"]
        # The same number everywhere: a later load balancer may have been further on.
        for name in names:
            if held[name] != token:
                answer = self._one(name, "acquire", {**wanted, "token": token})
                if isinstance(answer, AgentError):
                    raise RolloutError(f"{name}: {answer}")
                held[name] = answer["token"]
        self._tokens = held
        self._history.resume()
        self._note("begin")
        self._journal("start", kind=kind, owner=self.spec["owner"], **{"from": self.spec["from"], "to": self.spec["to"]})

    def shadow(self) -> Outcome:
        """Copies of live orders to the canary, its decisions beside the stable's, until enough of them are the same."""
        wanted = self.spec["shadow"]
        if not wanted["orders"]:
            return Outcome(PASS, ("the shadow is switched off: canary_shadow_orders is 0",))
        self._note("shadow")
        self._tell({"shadow": self.canary, "releases": self._releases()})
        deadline = self._clock() + wanted["deadline"]
        while True:
            looks, command = self._look(shadow=True)
            found = compared(looks, self.canary, wanted["expected"])
            self._write("shadow.json", found)
            outcome = self._shadow_outcome(found, command, deadline)
            if outcome is not None:
                break
            self._progress(
                f"shadow  {found['compared']:,} of {wanted['orders']:,} compared, none differs", deadline - self._clock()
            )
            self._sleep(self.spec["interval"])
        self._journal("shadow", **{name: found[name] for name in ("mirrored", "compared", "skipped")})
        return self._act("shadow", 0, outcome)

    def stage(self, stage: Stage) -> Outcome:
        """Give the canary its share and look at it until the judge has an answer."""
        self._note("stage", stage=stage.name, cut=stage.cut)
        self._journal("stage", stage=stage.name, cut=stage.cut)
        self._steer({"stable": self.stable, "canary": self.canary, "salt": self.spec["to"]["release_id"], "cut": stage.cut})
        wrong = self._probe()
        if wrong:
            return self._act(stage.name, stage.cut, Outcome(FAIL, wrong))
        evidence = StageEvidence(stage.name, stage.cut, self.stable, self.canary, self.spec["thresholds"]["latency"])
        return self._act(stage.name, stage.cut, self._watch(evidence, stage))

    def promote(self) -> None:
        """The canary becomes the stable; the old one keeps running without an account."""
        self._note("promote")
        self._journal("promote", to=self.spec["to"])
        self._steer({"stable": self.canary, "canary": self.canary, "cut": 0})

    def warm(self) -> Outcome:
        """Keep the old release running, so that the way back is one step, and go on looking at the new one."""
        seconds = float(self.spec["warm_seconds"])
        self._note("warm", until=self._clock() + seconds)
        self._journal("warm", seconds=seconds)
        evidence = StageEvidence("warm", 10_000, self.stable, self.canary, self.spec["thresholds"]["latency"])
        return self._act("warm", 10_000, self._watch(evidence, Stage("warm", 0, seconds, seconds), warm=True))

    def end(self, outcome: str, reasons: Sequence[str] = ()) -> None:
        """Write how it ended, bring the journals together, and give the lock back."""
        self._note("end", outcome=outcome)
        self._journal("end", outcome=outcome, reasons=list(reasons))
        self.spec.update(outcome=outcome, ended_at=stamp(self._clock()), reasons=list(reasons))
        self._write("rollout.json", self.spec)
        self.collect()
        for name, answer in self._all("unlock", {}).items():
            if isinstance(answer, AgentError):
                self._say(f"{name}: the lock could not be given back and ends by itself: {answer}")

    def roll_back(
        self, reasons: Sequence[str], mark: bool, verdict: Optional[Mapping[str, Any]] = None, started: int = 0
    ) -> float:
        """All accounts back to the stable slot on every load balancer; the seconds that it took.

        Where the slot was started for it on as many hosts as ``started``, the load balancers are given up to 2 s to find them up.

        What goes wrong with one of them does not keep the others from it. Raises RolloutError at the end if one that
        serves could not be turned back; its watchdog does that when the lock ends.
        """
        began = self._clock()
        decided = {"decided_at": stamp(began), "reasons": list(reasons), "verdict": dict(verdict or {})}
        maps = {"stable": self.stable, "canary": self.canary, "cut": 0, "journal": decided}
        bus = {"shadow": "", "releases": {self.stable: self.spec["from"]["release_id"], self.canary: "none"}}
        answers = self._set({**maps, "min_up": started, "up_timeout": 1}, bus)
        if started and any(isinstance(answer, AgentError) and answer.code != "fenced" for answer in answers.values()):
            answers = self._set({**maps, "min_up": 0}, bus)
        seconds = self._clock() - began
        left: dict[str, Any] = {name: "it could not be reached" for name in self.agents.names if name not in self._tokens}
        left.update({name: answer for name, answer in answers.items() if isinstance(answer, AgentError)})
        taken_over = [str(answer) for answer in answers.values() if isinstance(answer, AgentError) and answer.code == "fenced"]
        if taken_over:
            raise TakenOver(taken_over[0])
        serving = [name for name in left if self.agents.serves(name)]
        if not serving:
            self._say(f"all accounts are on {self.spec['from']['release_id']} ({self.stable}) again, {seconds:.2f} s later")
        self._note("rollback", reasons=list(reasons))
        self._journal("rollback", seconds=round(seconds, 3), **decided)
        if mark:
            why = {"release": self.spec["to"]["release_id"], "why": "; ".join(reasons), "rollout": self.spec["id"]}
            self._all("mark", why)
        if serving:
            raise RolloutError("; ".join(f"{name} could not be turned back: {left[name]}" for name in serving))
        return seconds

    def collect(self) -> None:
        """Bring the load balancers' journals of this rollout together."""
        found: dict[str, dict[str, Any]] = {}
        for name, answer in self._all("status", {"entries": 2000}).items():
            if isinstance(answer, AgentError):
                continue
            for entry in answer["journal"]:
                if entry.get("rollout") == self.spec["id"]:
                    found[json.dumps([name, entry], sort_keys=True)] = {**entry, "load_balancer": name}
        entries = sorted(found.values(), key=lambda entry: str(entry.get("at")))
        replace_text(self.directory / "journal.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))

    # --- looking and deciding ----------------------------------------------------------------------------------

    def _watch(self, evidence: StageEvidence, stage: Stage, warm: bool = False) -> Outcome:
        """Look and judge until there is an answer. While the old release is kept warm, the whole time is looked at."""
        began = last = self._clock()
        deadline = began + stage.deadline
        while True:
            looks, command = self._look()
            now = self._clock()
            if self._paused:
                deadline += now - last
            last = now
            evidence.add(looks)
            verdict, self._memory = judge(self.plan, self._memory, evidence.look(self._history))
            strayed = self._strayed(looks, 0 if warm else stage.cut)
            line = self._record(evidence, verdict, now - began, deadline - now)
            if strayed or verdict.outcome == FAIL:
                return Outcome(FAIL, strayed or verdict.reasons)
            if command == "abort":
                return Outcome(ABORT, ("an operator ended it",))
            if command == "promote":
                return Outcome(PASS, (f"an operator went on while the judge said {verdict.outcome}",))
            late = now >= deadline
            if not self._paused and (late or (not warm and verdict.outcome == PASS and now - began >= stage.min_seconds)):
                # After a stage has passed, only evidence against the release ends the time that the old one is kept.
                return Outcome(PASS if warm else verdict.outcome, verdict.reasons)
            self._progress(line, deadline - now)
            self._keep()
            self._sleep(self.spec["interval"])

    def _look(self, shadow: bool = False) -> tuple[dict[str, Any], Optional[str]]:
        """What every load balancer sees, and what an operator wants. Keeps the lock and the heartbeat alive."""
        if not self._wanted():
            # A step that outlives its playbook leads nowhere: without a heartbeat the watchdogs take the accounts back.
            raise RolloutError("the playbook that walked this rollout was killed")
        ask = {"ttl": self.spec["lock_ttl"], "command": True, "instances": self.spec["instances"], "shadow": shadow}
        looks: dict[str, Any] = {}
        commands: list[Mapping[str, Any]] = []
        for name, answer in self._all("look", ask).items():
            if not isinstance(answer, AgentError):
                looks[name] = answer
                self._unseen.pop(name, None)
                commands += [answer["command"]] if answer.get("command") else []
            elif answer.code == "fenced":
                raise TakenOver(f"{name}: {answer}")
            else:
                self._unseen.setdefault(name, self._clock())
        self._history.add(looks)
        # A command that one load balancer had a look earlier than another is taken once; its `by` names the process.
        commands = [taken for taken in commands if [taken["by"], taken["action"]] != self._taken]
        if not commands:
            return looks, None
        self._taken = [commands[0]["by"], commands[0]["action"]]
        # Every load balancer holds the same command.
        action = str(commands[0]["action"])
        self._say(f"{action}, says {commands[0].get('by')}" + (f": {commands[0]['why']}" if commands[0].get("why") else ""))
        if action in ("pause", "resume"):
            self._paused = action == "pause"
            self._note(**self._noted)
        return looks, action

    def _strayed(self, looks: Mapping[str, Any], cut: int) -> tuple[str, ...]:
        """What a load balancer or an instance is that it should not be."""
        wrong: list[str] = []
        now = self._clock()
        for name, since in self._unseen.items():
            if now - since > self.spec["lock_ttl"] / 2:
                wrong.append(f"{name} has not answered for {now - since:.0f} s")
        for name, look in looks.items():
            found = look["traffic"]["cut"]
            if found != cut or look.get("running_differs"):
                wrong.append(f"{name} gives the canary {found / 100:g}% instead of {cut / 100:g}%")
            for host, by_slot in look["instances"].items():
                instance = by_slot.get(self.canary) or {"up": False}
                if instance["up"] and instance["release_id"] != self.spec["to"]["release_id"]:
                    wrong.append(f"{host} runs {instance['release_id']} in {self.canary}")
        return tuple(dict.fromkeys(wrong))

    def _shadow_outcome(self, found: Mapping[str, Any], command: Optional[str], deadline: float) -> Optional[Outcome]:
        differences = [difference for difference in found["differences"] if not difference["expected"]]
        if differences:
            return Outcome(FAIL, tuple(tell_difference(difference) for difference in differences[:5]))
        crashes = self._history.crashes[self.canary]
        if crashes:
            return Outcome(FAIL, (f"instances of the canary crashed {crashes} times with no account on them",))
        if command == "abort":
            return Outcome(ABORT, ("an operator ended it",))
        if command == "promote":
            return Outcome(PASS, (f"an operator went on after {found['compared']:,} comparisons",))
        if self._paused:
            return None
        wanted = self.spec["shadow"]["orders"]
        if found["compared"] >= wanted:
            return Outcome(PASS, (f"{found['compared']:,} orders were decided alike",))
        if self._clock() < deadline:
            return None
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found["skipped"].items()))
        short = f"only {found['compared']:,} of {wanted:,} orders were compared"
        return Outcome(INSUFFICIENT, (f"{short} (skipped: {skipped})" if skipped else short,))

    def _act(self, stage: str, cut: int, outcome: Outcome) -> Outcome:
        """Say it and do it: whatever is no pass takes the accounts back at once, before anything else."""
        if outcome.outcome == INSUFFICIENT and self.spec["on_insufficient"] == "promote":
            outcome = Outcome(PASS, (*outcome.reasons, "canary_on_insufficient is promote"))
        verdict = {"stage": stage, "cut": cut, "outcome": outcome.outcome, "reasons": list(outcome.reasons)}
        if outcome.outcome == PASS:
            self._say(f"{stage}: pass: {outcome.reasons[0] if outcome.reasons else 'nothing speaks against it'}")
            self._journal("verdict", **verdict)
        else:
            try:
                self.roll_back(outcome.reasons, outcome.outcome == FAIL, verdict)
            finally:
                self._say(f"{stage}: {outcome.outcome}: {'; '.join(outcome.reasons[:5])}")
        self._keep()
        return outcome

    # --- the load balancers ------------------------------------------------------------------------------------

    def _in_reach(self, without_those_that_serve: bool) -> list[str]:
        """The load balancers to steer: all of them, but for one that is down and serves nobody.

        The way back does not wait either for one that serves and cannot be steered; ``roll_back`` tells of it.
        """
        answers = self.agents.ask("status", {name: {"entries": 0} for name in self.agents.names})
        found = []
        for name, answer in answers.items():
            if not isinstance(answer, AgentError):
                found.append(name)
            elif without_those_that_serve:
                self._say(f"{name} cannot be steered: {answer}")
            elif answer.code != "unreachable" or self.agents.serves(name):
                raise RolloutError(f"{name} cannot be steered and may serve: {answer}")
            else:
                self._say(f"{name} is down and serves nobody; it is made equal before it serves again")
        if not found:
            raise RolloutError("no load balancer can be reached")
        return found

    def _one(self, name: str, command: str, payload: Mapping[str, Any]) -> Any:
        return self.agents.ask(command, {name: payload})[name]

    def _all(self, command: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Ask every load balancer that we hold, each with its fencing number."""
        return self.agents.ask(command, {name: {**payload, "token": token} for name, token in self._tokens.items()})

    def _set(self, maps: Mapping[str, Any], bus: Mapping[str, Any]) -> dict[str, Any]:
        """Set the maps on all load balancers at once; one of them tells the instances over NATS, another if it cannot."""
        names = list(self._tokens)
        answers = self.agents.ask(
            "cut",
            {
                name: {**maps, "token": self._tokens[name], "kv": name == names[0], **(bus if name == names[0] else {})}
                for name in names
            },
        )
        first = answers[names[0]]
        if isinstance(first, AgentError) and first.code != "fenced" and len(names) > 1:
            again = self._one(names[1], "cut", {**maps, **bus, "token": self._tokens[names[1]], "kv": True})
            answers[names[1]] = first = again
        if not isinstance(first, AgentError) and not first["kv"]["ok"]:
            self._say(f"NATS could not be told, the instances there follow when it can: {first['kv']['error']}")
        return answers

    def _steer(self, maps: Mapping[str, Any]) -> None:
        """The same on every load balancer and on NATS, or a way back at once and RolloutError."""
        answers = self._set({"min_up": len(self.spec["hosts"]), **maps}, {"shadow": "", "releases": self._releases()})
        wrong = [f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, AgentError)]
        if any(answer.code == "fenced" for answer in answers.values() if isinstance(answer, AgentError)):
            raise TakenOver("; ".join(wrong))
        wrong += [
            f"{name}: NATS: {answer['kv']['error']}"
            for name, answer in answers.items()
            if not isinstance(answer, AgentError) and not answer.get("kv", {"ok": True})["ok"]
        ]
        if wrong:
            reasons = (f"the traffic could not be moved everywhere: {'; '.join(wrong)}",)
            self.roll_back(reasons, mark=False)
            raise RolloutError(reasons[0])

    def _tell(self, bus: Mapping[str, Any]) -> None:
        """Tell the instances over NATS; no account moves."""
        name = next(iter(self._tokens))
        answer = self._one(name, "cut", {**bus, "token": self._tokens[name], "kv": True})
        if isinstance(answer, AgentError):
            raise (TakenOver if answer.code == "fenced" else RolloutError)(f"{name}: {answer}")
        if not answer["kv"]["ok"]:
            raise RolloutError(f"{name} cannot tell the instances over NATS: {answer['kv']['error']}")

    def _probe(self) -> tuple[str, ...]:
        """Ask every load balancer for accounts whose slot is known; what is answered by the other slot."""
        wrong: list[str] = []
        if not self.spec["probe_accounts"]:
            return ()
        for name, answer in self._all("probe", {"accounts": self.spec["probe_accounts"]}).items():
            if isinstance(answer, AgentError):
                wrong.append(f"{name}: {answer}")
            elif answer["wrong"]:
                found = f"{answer['wrong_count']} of {self.spec['probe_accounts']} accounts"
                wrong.append(f"{name} does not send {found} where the split does: {answer['wrong'][0]}")
            else:
                share = answer["on_canary"] / answer["asked"]
                self._say(f"{name}: {share:.1%} of {answer['asked']} probed accounts are on the canary, as the split has it")
        return tuple(wrong)

    def _releases(self) -> dict[str, str]:
        return {self.spec[side]["slot"]: self.spec[side]["release_id"] for side in ("from", "to")}

    def _journal(self, event: str, **fields: Any) -> None:
        for name, answer in self._all("journal", {"entries": [{"event": event, **fields}]}).items():
            if isinstance(answer, AgentError):
                if answer.code == "fenced":
                    raise TakenOver(f"{name}: {answer}")
                self._say(f"{name}: its journal could not be written: {answer}")

    def _note(self, phase: str, **fields: Any) -> None:
        """What release-status.yml shows, and the lock for as long as the playbook may need until the next step."""
        keys = ("id", "from", "to", "stages", "owner", "started_at")
        self._noted = {"phase": phase, **fields}
        told = {
            **{key: self.spec[key] for key in keys},
            "paused": self._paused,
            "updated_at": stamp(self._clock()),
            **self._noted,
        }
        self._all("note", {"rollout": told})
        self.renew()
        self._keep()

    def renew(self) -> None:
        """The lock for as long as the playbook may need until the next step. Raises TakenOver."""
        for name, answer in self._all("renew", {"ttl": BETWEEN_STEPS}).items():
            if isinstance(answer, AgentError) and answer.code == "fenced":
                raise TakenOver(f"{name}: {answer}")

    # --- the directory, and what people read --------------------------------------------------------------------

    def _record(self, evidence: StageEvidence, verdict: Verdict, elapsed: float, left: float) -> str:
        """One line of looks.jsonl, and the same for people."""
        canary, baseline = evidence.numbers(self.canary), evidence.numbers(self.stable)
        share = evidence.share()
        look = {
            "at": stamp(self._clock()), "stage": evidence.name, "cut": evidence.cut, "elapsed": round(elapsed, 3),
            "left": round(left, 3), "share": share, "canary": canary, "baseline": baseline, "paused": self._paused,
            **{key: value for key, value in verdict.to_dict().items() if key in ("outcome", "findings", "reasons")},
        }  # fmt: skip
        with (self.directory / "looks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(look) + "\n")
        strongest = strongest_of(verdict)
        words = [f"{evidence.name:>5}", f"share {share:.1%}" if share is not None else "share -"]
        words += [tell_numbers("canary", canary), tell_numbers("stable", baseline)]
        if strongest is not None:
            words.append(f"evidence {strongest[1]:,.3g} of {strongest[2]:,.0f} ({strongest[0]})")
        return "  ".join([*words, verdict.outcome if not self._paused else f"paused, {verdict.outcome}"])

    def _progress(self, line: str, left: float) -> None:
        now = self._clock()
        if now - self._said >= PROGRESS:
            self._said = now
            self._say(f"{line}  {max(left, 0):.0f} s left")

    def _keep(self) -> None:
        state = {"tokens": self._tokens, "memory": self._memory.to_dict(), "history": self._history.to_dict()}
        self._write("state.json", {**state, "paused": self._paused, "taken": self._taken})

    def _read(self, name: str, missing: Any) -> Any:
        try:
            return json.loads((self.directory / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return missing

    def _write(self, name: str, value: Any) -> None:
        replace_text(self.directory / name, json.dumps(value, indent=1) + "\n")


def strongest_of(verdict: Verdict) -> Optional[tuple[str, float, float]]:
    """The test that is nearest to failing the canary: its name, its evidence and its target."""
    tests = [(f.name, f.evidence, f.target) for f in verdict.findings if f.evidence is not None and f.target is not None]
    return max(tests, key=lambda test: test[1] / test[2], default=None)


def tell_numbers(name: str, numbers: Mapping[str, Any]) -> str:
    """One version's numbers for a line of progress."""
    p99 = numbers["p99"]
    slowest = "-" if p99 is None else f"{p99 * 1000:.1f} ms"
    return f"{name} {numbers['requests']:,} req {numbers['errors']:,} err {numbers['rejections']:,} rej p99 {slowest}"


def tell_difference(difference: Mapping[str, Any]) -> str:
    """One kind of difference between the two versions' decisions, as a sentence."""
    example: Mapping[str, Any] = next(iter(difference.get("examples") or []), {})
    order = f", for instance {example['client_order_id']} of {example['account']}" if example else ""
    stable, canary = (tell_decision(difference[side]) for side in ("stable", "canary"))
    return f"{difference['count']:,} {difference['type']} orders ({difference['side']}): stable {stable}, canary {canary}{order}"


def tell_decision(decision: Mapping[str, Any]) -> str:
    """``accepted``, or ``refused by max_leverage``."""
    return f"{decision['outcome']} by {decision['rule']}" if decision.get("rule") else str(decision["outcome"])


def compared(looks: Mapping[str, Any], canary: str, expected: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the instances of the canary compared in the shadow, together: ``shadow.json``.

    ``expected``: differences that the release's notes declare: any of type, side, stable, canary (``accepted`` or
    ``refused by <rule>``), and why.
    """
    instances: dict[str, Mapping[str, Any]] = {}
    for look in looks.values():
        for host, by_slot in look["instances"].items():
            instance = by_slot.get(canary)
            if instance and instance["up"] and instance.get("trial"):
                instances[host] = instance["trial"]
    skipped: dict[str, int] = {}
    groups: dict[str, dict[str, Any]] = {}
    for found in instances.values():
        for reason, count in found.get("skipped", {}).items():
            skipped[reason] = skipped.get(reason, 0) + count
        for difference in found.get("differences", []):
            kind = {name: difference[name] for name in ("type", "side", "stable", "canary")}
            group = groups.setdefault(json.dumps(kind, sort_keys=True), {**kind, "count": 0, "examples": []})
            group["count"] += difference["count"]
            group["examples"] = [*group["examples"], *difference.get("examples", [])][:3]
    for group in groups.values():
        declared = next((entry for entry in expected if _declares(entry, group)), None)
        group.update(expected=declared is not None, why=declared["why"] if declared else None)
    total = sum(found.get("compared", 0) for found in instances.values())
    return {
        "mirrored": total + sum(skipped.values()),
        "compared": total,
        "skipped": skipped,
        "differences": sorted(groups.values(), key=lambda group: (group["expected"], -group["count"])),
    }


def _declares(entry: Mapping[str, Any], difference: Mapping[str, Any]) -> bool:
    told = {side: tell_decision(difference[side]) for side in ("stable", "canary")}
    told.update({name: difference[name] for name in ("type", "side")})
    return all(entry[name] == told[name] for name in told if name in entry)
