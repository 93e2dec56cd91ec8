"""Newer packages under a fleet that serves: who can be spared is out of rotation meanwhile; of who cannot, no order is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import APPS, DATA, Fleet, on_host
from test_configuration import CALM, SETTINGS
from test_operations import assert_refused
from test_orders import taken
from test_paper_venue import within
from test_rollouts import assert_nothing_lost, wait_for

#: Below the version that it follows, and not so far that another package breaks with it.
OLDER = "~older"
OLD = (("app1", "logrotate"), ("lb1", "haproxy"), ("mon1", "logrotate"))

pytestmark = pytest.mark.long


def install_older(host: str, package: str) -> None:
    """Install the package as it is, under a lower version, so that the distribution's is newer. Nothing restarts."""
    on_host(
        host,
        f"""set -e
        printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
        mkdir /root/older && cd /root/older && apt-get download {package}
        dpkg-deb --raw-extract ./*.deb tree && sed -i 's/^Version: .*/&{OLDER}/' tree/DEBIAN/control
        dpkg-deb --build tree older.deb && dpkg --install --force-downgrade --force-confold older.deb
        rm -r /root/older /usr/sbin/policy-rc.d""",
    )
    assert installed(host, package).endswith(OLDER)


def installed(host: str, package: str) -> str:
    return on_host(host, f"dpkg-query --show --showformat='${{Version}}' {package}")


def since(host: str, unit: str) -> str:
    """When a unit was started last."""
    return on_host(host, f"systemctl show --property ActiveEnterTimestampMonotonic --value {unit}")


def upgrade(fleet: Fleet, what: str, **more: Any) -> None:
    run = fleet.play("upgrade.yml", "-e", json.dumps({**SETTINGS, "upgrade_what": what, **more}))
    assert run.code == 0, run.output


def test_no_order_fails_while_docker_is_upgraded_on_every_app_host(fleet: Fleet) -> None:
    before = fleet.served()
    install_older("app2", "docker.io")
    began = {host: since(host, "docker") for host in APPS}
    load = fleet.load(rate=CALM, count=1_000_000, name="upgrade-docker")
    run = fleet.start("upgrade.yml", "-e", json.dumps({**SETTINGS, "upgrade_what": "docker", "upgrade_restart": True}))
    wait_for(lambda: "lock | Check that it is ours" in run.printed(), 120, "it has the lock")
    assert_refused(fleet.play("deploy.yml"), "Somebody else is at it", "upgrade docker of")
    upgraded = run.finish()
    assert upgraded.code == 0, upgraded.output
    assert fleet.status()["held"] == []
    assert_nothing_lost(load)
    assert fleet.served() == before
    assert OLDER not in installed("app2", "docker.io")
    assert not [host for host in APPS if since(host, "docker") == began[host]]


def test_no_order_fails_while_every_hosts_packages_are_upgraded(fleet: Fleet) -> None:
    """The app's slot is restarted out of rotation; HAProxy's master starts the new binary without a connection lost."""
    before = fleet.served()
    for host, package in OLD:
        install_older(host, package)
    began = {host: since(host, f"trading-bot@{before[1]}") for host in APPS}
    master, worker = (on_host("lb1", f"pgrep --{which} haproxy") for which in ("oldest", "newest"))
    load = fleet.load(rate=CALM, count=1_000_000, name="upgrade-os")
    upgrade(fleet, "os", upgrade_reboot=False)
    assert_nothing_lost(load)
    assert fleet.served() == before
    assert not [host for host, package in OLD if OLDER in installed(host, package)]
    assert since("app1", f"trading-bot@{before[1]}") != began["app1"]
    assert on_host("lb1", "pgrep --oldest haproxy") == master
    assert on_host("lb1", "pgrep --newest haproxy") != worker
    again = fleet.play("upgrade.yml", "-e", json.dumps({**SETTINGS, "upgrade_what": "os", "upgrade_reboot": False}))
    assert (again.code, set(again.changed.values())) == (0, {0}), again.output


@pytest.mark.parametrize(("what", "unit"), [("redis", "redis-server"), ("nats", "nats-server")])
def test_where_there_is_one_server_orders_wait_for_its_restart_and_none_is_lost(fleet: Fleet, what: str, unit: str) -> None:
    """Those that are asked over the NATS that is restarted are asked again by their clients, as with any of its restarts."""
    install_older(DATA, unit)
    before = since(DATA, unit)
    load = fleet.load(rate=CALM, count=1_000_000, name=f"upgrade-{what}")
    upgrade(fleet, what)
    within(20, lambda: taken(fleet), "orders are taken again")
    load.finish(now=True)
    verdict = load.judge()
    assert (verdict["lost"], verdict["doubled"], verdict["different"]) == (0, 0, 0), verdict
    sent = [json.loads(line) for line in load.log.read_text().splitlines()]
    failed = [one for one in sent if one["status"] not in (200, 201) and (what, one["path"]) != ("nats", "nats")]
    assert not failed, failed[:3]
    assert OLDER not in installed(DATA, unit)
    assert since(DATA, unit) != before
