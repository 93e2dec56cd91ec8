"""What is to be told and what was, on disk: a notice is kept before its sender hears that it was taken, a
message is marked as being sent before it is, and what a channel confirmed is never sent again."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trading_bot.notify.notice import FIRING, RESOLVED, Notice, matches
from trading_bot.notify.text import Told

CALL = "call"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS notices (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL,
  state TEXT NOT NULL,
  severity TEXT NOT NULL,
  body BLOB NOT NULL,
  at REAL NOT NULL,
  still INTEGER NOT NULL DEFAULT 0,
  silenced INTEGER NOT NULL DEFAULT 0,
  acknowledged_at REAL,
  acknowledged_by TEXT,
  level INTEGER NOT NULL DEFAULT 0,
  calls INTEGER NOT NULL DEFAULT 0,
  next_call REAL
);
CREATE INDEX IF NOT EXISTS notices_by_key ON notices (key, id);
CREATE INDEX IF NOT EXISTS notices_to_call ON notices (next_call) WHERE next_call IS NOT NULL;
CREATE INDEX IF NOT EXISTS notices_silenced ON notices (id) WHERE silenced;
CREATE TABLE IF NOT EXISTS deliveries (
  id INTEGER PRIMARY KEY,
  notice INTEGER NOT NULL REFERENCES notices (id) ON DELETE CASCADE,
  channel TEXT NOT NULL,
  recipient TEXT NOT NULL,
  round INTEGER NOT NULL DEFAULT 0,
  state TEXT NOT NULL DEFAULT 'waiting',
  message TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  due REAL NOT NULL,
  error TEXT NOT NULL DEFAULT '',
  done REAL,
  UNIQUE (notice, channel, recipient, round)
);
CREATE INDEX IF NOT EXISTS deliveries_open ON deliveries (channel, due)
  WHERE state IN ('waiting', 'sending', 'doubtful');
CREATE INDEX IF NOT EXISTS deliveries_of_message ON deliveries (message);
CREATE TABLE IF NOT EXISTS messages (
  id TEXT PRIMARY KEY,
  channel TEXT NOT NULL,
  recipient TEXT NOT NULL,
  at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS silences (
  id INTEGER PRIMARY KEY,
  matchers TEXT NOT NULL,
  starts REAL NOT NULL,
  ends REAL NOT NULL,
  by TEXT NOT NULL,
  why TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
OPEN = ("waiting", "sending", "doubtful")


@dataclass(frozen=True)
class Batch:
    """Deliveries of one channel to one recipient that go out as one message."""

    message: str
    channel: str
    recipient: str
    told: Sequence[Told]
    attempts: int
    doubtful: bool
    at: float
    """When it was first sent, in seconds since 1970."""


@dataclass(frozen=True)
class Plan:
    """Who hears of a notice: channels and recipients, and after how many seconds the phone rings (None:
    never)."""

    recipients: Sequence[tuple[str, str]]
    call_after: float | None


class Store:
    """A SQLite database that belongs to one process. Times are seconds since 1970."""

    def __init__(self, path: str, *, repeat_after: float, keep: float) -> None:
        """``repeat_after``: seconds after which an alert that is handed over again is told again.
        ``keep``: seconds for which what was told stays."""
        self._repeat_after = repeat_after
        self._keep = keep
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(_SCHEMA)
        # Sent, and not known whether it arrived, when the process ended.
        self._db.execute("UPDATE deliveries SET state = 'doubtful' WHERE state = 'sending'")

    def close(self) -> None:
        self._db.close()

    # what is to be told

    def take(self, notices: Iterable[Notice], plan: Any, mark: tuple[str, str] | None = None) -> int:
        """Keep notices, whom each is told to by ``plan(notice)``, and with them how far a stream was read;
        all or none. Gives how many are news."""
        now = time.time()
        news = 0
        with self._transaction():
            for notice in notices:
                news += self._take(notice, plan, now)
            if mark is not None:
                self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", mark)
        return news

    def _take(self, notice: Notice, plan: Any, now: float) -> bool:
        last = self._db.execute(
            "SELECT id, state, at, silenced FROM notices WHERE key = ? ORDER BY id DESC LIMIT 1",
            (notice.key,),
        ).fetchone()
        still = False
        if last is not None and last[1] == notice.state:
            if notice.state != FIRING or now - last[2] < self._repeat_after or last[3]:
                return False
            still = True
        if notice.state == RESOLVED:
            if last is None:
                return False  # of an alert that nobody was told of
            self._db.execute("UPDATE notices SET next_call = NULL WHERE key = ?", (notice.key,))
        silenced = self._silenced(notice, now)
        added = self._db.execute(
            "INSERT INTO notices (key, state, severity, body, at, still, silenced) VALUES (?, ?, ?, "
            "?, ?, ?, ?)",
            (notice.key, notice.state, notice.severity, msgspec.json.encode(notice), now, still, silenced),
        ).lastrowid
        assert added is not None
        if not silenced:
            self._plan(added, notice, plan(notice), now)
        return True

    def _plan(self, id: int, notice: Notice, plan: Plan, now: float) -> None:
        recipients = list(plan.recipients)
        if notice.state == RESOLVED:
            # Whoever heard of it hears of its end, and nobody else.
            recipients = self._db.execute(
                "SELECT DISTINCT channel, recipient FROM deliveries JOIN notices ON notices.id = notice"
                " WHERE key = ? AND notice < ? AND channel != ? AND deliveries.state != 'refused'",
                (notice.key, id, CALL),
            ).fetchall()
        for channel, recipient in recipients:
            self._deliver(id, channel, recipient, 0, now)
        acknowledged = self._db.execute(
            "SELECT acknowledged_at, acknowledged_by FROM notices WHERE key = ? AND acknowledged_at "
            "IS NOT NULL",
            (notice.key,),
        ).fetchone()
        if acknowledged:
            self._db.execute(
                "UPDATE notices SET acknowledged_at = ?, acknowledged_by = ? WHERE id = ?",
                (*acknowledged, id),
            )
        elif plan.call_after is not None and notice.state != RESOLVED:
            self._db.execute("UPDATE notices SET next_call = ? WHERE id = ?", (now + plan.call_after, id))

    def _deliver(self, notice: int, channel: str, recipient: str, round: int, due: float) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO deliveries (notice, channel, recipient, round, due) VALUES (?, ?, "
            "?, ?, ?)",
            (notice, channel, recipient, round, due),
        )

    def unsilence(self, plan: Any) -> int:
        """Tell what was silenced and goes on, now that its silence is over; gives how many that are."""
        now = time.time()
        told = 0
        for id, body in self._db.execute(
            "SELECT id, body FROM notices WHERE silenced AND state = ? AND id IN (SELECT max(id) "
            "FROM notices GROUP BY key)",
            (FIRING,),
        ).fetchall():
            notice = msgspec.json.decode(body, type=Notice)
            if not self._silenced(notice, now):
                with self._transaction():
                    self._db.execute("UPDATE notices SET silenced = 0 WHERE id = ?", (id,))
                    self._plan(id, notice, plan(notice), now)
                told += 1
        return told

    # who is called

    def to_call(self) -> list[tuple[int, int, int]]:
        """Notices that nobody has acknowledged and whose next call is due: id, contact list, calls so far."""
        return self._db.execute(
            "SELECT id, level, calls FROM notices WHERE next_call <= ? AND acknowledged_at IS NULL",
            (time.time(),),
        ).fetchall()

    def escalate(
        self, id: int, level: int, calls: int, next_call: float | None, recipients: Sequence[tuple[str, str]]
    ) -> None:
        """Write down the next step of a notice's escalation, and what goes out for it."""
        now = time.time()
        with self._transaction():
            self._db.execute(
                "UPDATE notices SET level = ?, calls = ?, next_call = ? WHERE id = ?",
                (level, calls, None if next_call is None else now + next_call, id),
            )
            for channel, recipient in recipients:
                self._deliver(id, channel, recipient, calls if channel == CALL else level, now)

    def acknowledge(self, message: str, by: str) -> int:
        """Whoever got this message looks after all that it told of; gives how many of them nobody had
        acknowledged, -1 where there was no such message."""
        now = time.time()
        if self._db.execute("SELECT 1 FROM messages WHERE id = ?", (message,)).fetchone() is None:
            return -1
        with self._transaction():
            return self._db.execute(
                "UPDATE notices SET acknowledged_at = ?, acknowledged_by = ?, next_call = NULL WHERE "
                "acknowledged_at IS NULL AND key IN"
                " (SELECT key FROM notices JOIN deliveries ON notices.id = notice WHERE message = ?)",
                (now, by, message),
            ).rowcount

    # what goes out

    def next_due(self, channel: str) -> float | None:
        """When the channel's next delivery is due."""
        found = self._db.execute(
            f"SELECT min(due) FROM deliveries WHERE channel = ? AND {_OPEN}",
            (channel,),
        ).fetchone()
        return None if found[0] is None else float(found[0])

    def begin(self, channel: str, fits: Any) -> Batch | None:
        """What goes out on a channel now, marked as being sent: what is in doubt as it was, else all that
        waits for one recipient, as far as ``fits(told)`` says that a message has room."""
        now = time.time()
        with self._transaction():
            first = self._db.execute(
                f"SELECT recipient, message, state FROM deliveries WHERE channel = ? AND {_OPEN} AND due <= ?"
                " ORDER BY state = 'doubtful' DESC, due, id LIMIT 1",
                (channel, now),
            ).fetchone()
            if first is None:
                return None
            recipient, message, state = first
            chosen = (
                "message = ?"
                if state == "doubtful"
                else "deliveries.state = 'waiting' AND channel = ? AND recipient = ? AND due <= ?"
            )
            found = self._db.execute(
                "SELECT deliveries.id, body, still, deliveries.attempts, level, round FROM "
                "deliveries JOIN notices ON"
                f" notices.id = notice WHERE {chosen} ORDER BY deliveries.id LIMIT 1000",
                (message,) if state == "doubtful" else (channel, recipient, now),
            ).fetchall()
            told = [
                Told(
                    msgspec.json.decode(body, type=Notice),
                    bool(still),
                    escalated=channel != CALL and round > 0,
                )
                for _, body, still, _, _, round in found
            ]
            if state != "doubtful":
                fitting = fits(told)
                found, told = found[:fitting], told[:fitting]
                message = secrets.token_hex(4)
                self._db.execute(
                    "INSERT INTO messages VALUES (?, ?, ?, ?)", (message, channel, recipient, now)
                )
            at = self._db.execute("SELECT at FROM messages WHERE id = ?", (message,)).fetchone()[0]
            self._db.executemany(
                "UPDATE deliveries SET state = 'sending', message = ?, attempts = attempts + 1 WHERE id = ?",
                [(message, row[0]) for row in found],
            )
        return Batch(message, channel, recipient, told, found[0][3] + 1, state == "doubtful", at)

    def sent(self, batch: Batch) -> None:
        """The channel has confirmed it."""
        self._end(batch, "sent")

    def refused(self, batch: Batch, error: str, instead: Sequence[tuple[str, str]]) -> None:
        """The channel will never take it: say it to others ``instead``."""
        with self._transaction():
            self._end(batch, "refused", error)
            for (notice,) in self._db.execute(
                "SELECT notice FROM deliveries WHERE message = ?", (batch.message,)
            ).fetchall():
                for channel, recipient in instead:
                    self._deliver(notice, channel, recipient, 0, time.time())

    def later(self, batch: Batch, error: str, seconds: float, *, doubtful: bool) -> None:
        """It is tried again after so many seconds: ``doubtful`` as it was, else with what waits by then."""
        self._db.execute(
            "UPDATE deliveries SET state = ?, due = ?, error = ?, message = CASE WHEN ? THEN message END"
            " WHERE message = ? AND state = 'sending'",
            (
                "doubtful" if doubtful else "waiting",
                time.time() + seconds,
                error[:300],
                doubtful,
                batch.message,
            ),
        )

    def _end(self, batch: Batch, state: str, error: str = "") -> None:
        self._db.execute(
            "UPDATE deliveries SET state = ?, done = ?, error = ? WHERE message = ? AND state = 'sending'",
            (state, time.time(), error[:300], batch.message),
        )

    # silences

    def silence(
        self, matchers: Sequence[Mapping[str, str]], starts: float, ends: float, by: str, why: str
    ) -> int:
        """Nobody is told of what matches between these times; gives its number."""
        added = self._db.execute(
            "INSERT INTO silences (matchers, starts, ends, by, why) VALUES (?, ?, ?, ?, ?)",
            (json.dumps(matchers), starts, ends, by, why),
        ).lastrowid
        assert added is not None
        return added

    def end_silence(self, id: int) -> bool:
        """End a silence now; False where there is none."""
        now = time.time()
        return (
            self._db.execute(
                "UPDATE silences SET ends = ? WHERE id = ? AND ends > ?", (now, id, now)
            ).rowcount
            > 0
        )

    def silences(self) -> list[dict[str, Any]]:
        """Those that are not over."""
        return [
            {"id": id, "matchers": json.loads(matchers), "starts": starts, "ends": ends, "by": by, "why": why}
            for id, matchers, starts, ends, by, why in self._db.execute(
                "SELECT id, matchers, starts, ends, by, why FROM silences WHERE ends > ? ORDER BY id",
                (time.time(),),
            )
        ]

    def _silenced(self, notice: Notice, now: float) -> bool:
        return any(
            matches(json.loads(matchers), notice)
            for (matchers,) in self._db.execute(
                "SELECT matchers FROM silences WHERE starts <= ? AND ends > ?", (now, now)
            )
        )

    # what there is

    def mark(self, name: str) -> str | None:
        """How far a stream was read."""
        found = self._db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def recent(self, count: int) -> list[dict[str, Any]]:
        """The latest notices and what became of each, newest first."""
        rows = self._db.execute(
            "SELECT id, body, at, still, silenced, acknowledged_at, acknowledged_by FROM notices "
            "ORDER BY id DESC LIMIT ?",
            (count,),
        ).fetchall()
        deliveries: dict[int, list[dict[str, Any]]] = {row[0]: [] for row in rows}
        if rows:
            for notice, *values in self._db.execute(
                "SELECT notice, channel, recipient, state, message, attempts, error, done FROM "
                "deliveries WHERE notice >= ? ORDER BY id",
                (rows[-1][0],),
            ):
                names = ("channel", "recipient", "state", "message", "attempts", "error", "done")
                deliveries.setdefault(notice, []).append(dict(zip(names, values, strict=True)))
        return [
            {
                "notice": msgspec.to_builtins(msgspec.json.decode(body, type=Notice)),
                "taken": at,
                "still": bool(still),
                "silenced": bool(silenced),
                "acknowledged": acknowledged,
                "by": by,
                "deliveries": deliveries[id],
            }
            for id, body, at, still, silenced, acknowledged, by in rows
        ]

    def figures(self) -> dict[str, dict[str, float]]:
        """By channel: deliveries by state, and seconds that the oldest open one waits since its notice
        came."""
        found: dict[str, dict[str, float]] = {}
        for channel, state, count, oldest in self._db.execute(
            "SELECT channel, deliveries.state, count(*), min(at) FROM deliveries JOIN notices ON "
            "notices.id = notice GROUP BY 1, 2"
        ):
            figures = found.setdefault(channel, {"waiting": 0, "sent": 0, "refused": 0, "oldest": 0.0})
            figures["waiting" if state in OPEN else state] += count
            if state in OPEN and channel != CALL:
                figures["oldest"] = max(figures["oldest"], time.time() - oldest)
        return found

    def unacknowledged(self) -> int:
        """Alerts that the phone rings for."""
        return int(self._db.execute("SELECT count(*) FROM notices WHERE next_call IS NOT NULL").fetchone()[0])

    def forget(self) -> None:
        """Remove what was told long ago and is over."""
        before = time.time() - self._keep
        with self._transaction():
            self._db.execute(
                "DELETE FROM notices WHERE at < ? AND next_call IS NULL"
                f" AND NOT EXISTS (SELECT 1 FROM deliveries WHERE notice = notices.id AND {_OPEN})"
                " AND NOT (state = 'firing' AND id IN (SELECT max(id) FROM notices GROUP BY key))",
                (before,),
            )
            self._db.execute(
                "DELETE FROM messages WHERE at < ? AND id NOT IN (SELECT message FROM deliveries "
                "WHERE message IS NOT NULL)",
                (before,),
            )
            self._db.execute("DELETE FROM silences WHERE ends < ?", (before,))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


_OPEN = f"deliveries.state IN {OPEN}"


class _Transaction:
    """All of what is written within, on the disk, or none of it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
