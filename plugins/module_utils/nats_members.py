"""The members of a JetStream cluster: who is in it, who may be taken out of it, and when what they kept is elsewhere.

A server that was stopped goes on counting: of its cluster's majority, and of the copies of its streams. The cluster forgets it
when its leader is told to. Standard library only, as it travels to hosts.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .jetstream_streams import stream_names
from .nats_client import Connection, NatsError

REMOVE = "$JS.API.SERVER.REMOVE"
_POLL = 0.5
_SECONDS_SILENT = 5
# A new leader counts every member as running at first, and one that died for ten seconds.
_SECONDS_BELIEVED = 12
# What a cluster calls a member that none of its servers has heard of since they started.
_NAMELESS = re.compile(r"\(peerID: (\w+)\)")


@dataclass(frozen=True)
class Member:
    """A server as the leader of its group sees it; its id where it goes by that alone."""

    name: str
    current: bool
    running: bool
    peer: str = ""


@dataclass(frozen=True)
class Stream:
    """A stream: how many copies it is to have, and the servers that keep one; none, and why, where nobody answers for it."""

    name: str
    copies: int
    members: tuple[Member, ...]
    reason: str = ""


@dataclass(frozen=True)
class Cluster:
    """The servers of the cluster by name, its streams, and of the servers that are not healthy what they say."""

    members: Mapping[str, Member]
    streams: tuple[Stream, ...]
    ill: Mapping[str, str]


def _members(group: Mapping[str, Any]) -> dict[str, Member]:
    """The leader and its replicas, as JetStream tells them."""
    found = [Member(str(group["leader"]), True, True)] if group.get("leader") else []
    for one in group.get("replicas") or []:
        nameless = _NAMELESS.search(one["name"])
        peer = nameless[1] if nameless else ""
        # Of a server whose machine died nobody says that it is offline; its leader has not heard of it for seconds.
        running = not one.get("offline") and (bool(one["current"]) or int(one.get("active", 0)) < _SECONDS_SILENT * 10**9)
        found.append(Member(f"server {peer}" if peer else str(one["name"]), bool(one["current"]), running, peer))
    return {member.name: member for member in found}


def _stream(connection: Connection, name: str) -> Stream:
    try:
        answer = connection.api(f"$JS.API.STREAM.INFO.{name}", {})
    except NatsError as error:
        return Stream(name, 0, (), str(error))
    return Stream(name, int(answer["config"]["num_replicas"]), tuple(_members(answer.get("cluster") or {}).values()))


def _page(address: str, path: str, seconds: float) -> dict[str, Any]:
    """A page of a server's monitoring, whatever its status. Raises OSError, HTTPException or ValueError where there is none."""
    connection = http.client.HTTPConnection(address, timeout=seconds)
    try:
        connection.request("GET", path)
        return dict(json.loads(connection.getresponse().read()))
    finally:
        connection.close()


def look(connection: Connection, monitors: Mapping[str, str]) -> Cluster:
    """The cluster as its leader and its streams' leaders see it, and its servers themselves.

    `monitors` has the address of the monitoring of each server of the inventory by name.
    Raises NatsError where the cluster has no leader.
    """
    ill: dict[str, str] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, address in monitors.items():
        try:
            health = _page(address, "/healthz", connection.timeout)
            groups[name] = _page(address, "/jsz", connection.timeout).get("meta_cluster") or {}
        except (OSError, ValueError, http.client.HTTPException) as error:
            ill[name] = f"no answer: {error}"
            continue
        if health.get("status") != "ok":
            ill[name] = str(health.get("error") or health.get("status"))
    # Only the leader tells who the members are. What the others say of it is old while a new one is chosen.
    leaders = [name for name, group in groups.items() if group.get("leader") == name]
    if len(leaders) != 1:
        told = ", ".join(sorted({str(group["leader"]) for group in groups.values() if group.get("leader")} - set(monitors)))
        where = f" ({told} leads it, or did: stop nats-server there, and another one is chosen)" if told else ""
        raise NatsError(f"the cluster has no leader among the servers of the inventory{where}")
    members = _members(groups[leaders[0]])
    return Cluster(members, tuple(_stream(connection, name) for name in stream_names(connection)), ill)


def leaving(cluster: Cluster, hosts: Sequence[str]) -> list[str]:
    """The members that the inventory does not have."""
    return sorted(set(cluster.members) - set(hosts))


def forbidden(cluster: Cluster, hosts: Sequence[str]) -> str:
    """Why no server may leave, whatever happens meanwhile; empty: they may."""
    if len(hosts) < 2:
        return "a cluster does not become a single server: what it knows of its streams needs a majority of its members"
    many = [stream for stream in cluster.streams if stream.copies > len(hosts)]
    if many:
        told = ", ".join(f"{stream.name} ({stream.copies})" for stream in many)
        return f"with {len(hosts)} hosts in the inventory there are too few servers for the copies that streams have: {told}"
    return ""


def unready(cluster: Cluster, hosts: Sequence[str], leaver: str = "") -> str:
    """Why this server may not leave yet; empty: nothing keeps it from that. Copies on it do not count."""
    missing = sorted(set(hosts) - set(cluster.members))
    if missing:
        return f"{', '.join(missing)}: in the inventory, and not in the cluster"
    for name in hosts:
        if not cluster.members[name].running:
            return f"{name} does not run"
        if name in cluster.ill:
            return f"{name} is not healthy: {cluster.ill[name]}"
        if not cluster.members[name].current:
            return f"{name} is behind the others"
    running = [member for member in cluster.members.values() if member.running]
    if len(running) <= len(cluster.members) // 2:
        return f"{len(running)} of {len(cluster.members)} servers run, which is no majority"
    for stream in cluster.streams:
        good = [member for member in stream.members if member.running and member.current and member.name != leaver]
        if stream.reason:
            return f"nobody answers for the stream {stream.name}, whose copies would be lost: {stream.reason}"
        if len(good) <= stream.copies // 2:
            return f"of the {stream.copies} copies of the stream {stream.name} {len(good)} are there, which is no majority"
    return ""


def unsettled(cluster: Cluster, hosts: Sequence[str], gone: str) -> str:
    """What is not yet as it was before this server left; empty: it is forgotten, and every stream has its copies."""
    if gone in cluster.members:
        return f"{gone} is still in the cluster"
    for stream in cluster.streams:
        if stream.reason:
            return f"nobody answers for the stream {stream.name}: {stream.reason}"
        late = [member.name for member in stream.members if not (member.running and member.current)]
        if late or len(stream.members) < stream.copies:
            return f"the stream {stream.name} has not all of its {stream.copies} copies: {', '.join(late) or 'one is missing'}"
    return unready(cluster, hosts)


@dataclass(frozen=True)
class Departure:
    """The servers that left the cluster (in a dry run: would leave), those that still run, and the members before and after."""

    removed: tuple[str, ...]
    running: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


def remove(connection: Connection, member: Member) -> None:
    """Have the cluster forget a server."""
    connection.api(REMOVE, {"peer": member.name, **({"peer_id": member.peer} if member.peer else {})})


def _until(ask: Callable[[], Cluster], why_not: Callable[[Cluster], str], seconds: float) -> Cluster:
    """The cluster once nothing speaks against it. Raises NatsError with what still does when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            cluster = ask()
            reason = why_not(cluster)
        except NatsError as error:
            reason = str(error)
        if not reason:
            return cluster
        if time.monotonic() >= deadline:
            raise NatsError(reason)
        time.sleep(_POLL)


def _settled(ask: Callable[[], Cluster], hosts: Sequence[str], seconds: float) -> tuple[Cluster, tuple[str, ...]]:
    """The cluster, and who runs of those not in the inventory: still runs, once one that just died would not count any more."""
    deadline = time.monotonic() + min(seconds, _SECONDS_BELIEVED)
    while True:
        cluster = _until(ask, lambda _: "", seconds)
        running = tuple(name for name in leaving(cluster, hosts) if cluster.members[name].running)
        if not running or time.monotonic() >= deadline:
            return cluster, running
        time.sleep(_POLL)


def depart(
    ask: Callable[[], Cluster], forget: Callable[[Member], None], hosts: Sequence[str], seconds: float, dry: bool
) -> Departure:
    """Have the servers leave that are in the cluster, not in the inventory, and do not run: one after the other.

    Each leaves once the others are well, and the next one when the streams have all of their copies again; either may take
    `seconds`. Raises NatsError where none may leave, or where what has to come first does not.
    """
    cluster, running = _settled(ask, hosts, seconds)
    before = tuple(sorted(cluster.members))
    gone = leaving(cluster, hosts)
    stopped = tuple(name for name in gone if name not in running)
    if not gone:
        return Departure((), (), before, before)
    refused = forbidden(cluster, hosts)
    if dry and not refused:
        # A host that is not in the cluster yet would be by now.
        there = [host for host in hosts if host in cluster.members]
        refused = next((why for why in (unready(cluster, there, name) for name in stopped) if why), "")
    if refused:
        raise NatsError(f"{', '.join(gone)} cannot leave the cluster: {refused}")
    for name in () if dry else stopped:
        try:
            cluster = _until(ask, partial(unready, hosts=hosts, leaver=name), seconds)
        except NatsError as error:
            raise NatsError(f"{name} cannot leave the cluster yet: {error}") from error
        if name in cluster.members and cluster.members[name].running:
            raise NatsError(f"{name} was not removed: it runs again")
        if name in cluster.members:
            forget(cluster.members[name])
        try:
            cluster = _until(ask, partial(unsettled, hosts=hosts, gone=name), seconds)
        except NatsError as error:
            raise NatsError(f"{name} was removed from the cluster, and {seconds:g} s later {error}") from error
    return Departure(stopped, running, before, tuple(name for name in before if name not in stopped))
