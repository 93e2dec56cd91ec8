"""What every host has, whatever it serves."""

from __future__ import annotations

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://all"]

LOG = "/var/log/trading-bot/of-the-test.log"


def test_the_service_user_has_its_ids(host: Host) -> None:
    """The app runs as 10001:10001 everywhere, and nobody can log in as it."""
    user = host.user("trading-bot")
    assert (user.uid, user.gid, user.group) == (10001, 10001, "trading-bot")
    assert user.shell == "/usr/sbin/nologin"
    with host.sudo():
        assert user.password.startswith("!")


@pytest.mark.parametrize(
    ("path", "owner", "group", "mode"),
    [("/var/log/trading-bot", "trading-bot", "adm", 0o2750), ("/var/backups/trading-bot", "root", "root", 0o700)],
)
def test_directories_are_closed_to_others(host: Host, path: str, owner: str, group: str, mode: int) -> None:
    """Logs are read by the service and by adm, backups by root."""
    with host.sudo():
        directory = host.file(path)
        assert directory.is_directory
        assert (directory.user, directory.group, directory.mode) == (owner, group, mode)


def test_logs_are_kept_for_thirty_days(host: Host) -> None:
    """The rotation is valid and keeps 30 days."""
    with host.sudo():
        check = host.run("logrotate --debug /etc/logrotate.d/trading-bot")
    assert check.rc == 0
    assert "error" not in check.stderr.lower()
    lines = {line.strip() for line in host.file("/etc/logrotate.d/trading-bot").content_string.splitlines()}
    assert {"daily", "rotate 30", "maxage 30", "copytruncate"} <= lines


def test_a_writer_goes_on_after_a_rotation(host: Host) -> None:
    """A file that is held open for appending is copied and cut: old lines in the copy, new ones in the file."""
    script = f"""set -e
        exec 3>>{LOG}; echo before >&3
        logrotate --force --state /tmp/of-the-test.state /etc/logrotate.d/trading-bot
        echo after >&3
        cat {LOG}; zcat {LOG}-*.gz
        rm -f {LOG} {LOG}-*.gz /tmp/of-the-test.state"""
    with host.sudo():
        result = host.run(script)
    assert result.rc == 0, result.stderr
    assert result.stdout.split() == ["after", "before"]


def test_what_is_too_old_goes_also_beside_a_log_that_nobody_writes(host: Host) -> None:
    """The file of an idle slot is empty, and what was rotated from it ends after 30 days all the same."""
    script = f"""set -e
        : > {LOG}; touch -d '-31 days' {LOG}-20200101.gz; touch -d '-3 days' {LOG}-20200102.gz
        printf 'logrotate state -- version 2\\n"{LOG}" %s-0:0:0\\n' "$(date -d '-2 days' +%Y-%-m-%-d)" > /tmp/of-the-test.state
        sed 's,/[*][.]log,/of-the-test.log,' /etc/logrotate.d/trading-bot > /tmp/of-the-test.conf
        logrotate --state /tmp/of-the-test.state /tmp/of-the-test.conf
        ls {LOG}-2020*
        rm -f {LOG} {LOG}-*.gz /tmp/of-the-test.*"""
    with host.sudo():
        result = host.run(script)
    assert result.rc == 0, result.stderr
    assert result.stdout.split() == [f"{LOG}-20200102.gz"]


def test_the_journal_is_kept_for_thirty_days(host: Host) -> None:
    """The setting is the one that systemd would read."""
    with host.sudo():
        shown = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    settings = [line for line in shown.splitlines() if line.startswith(("MaxRetentionSec=", "MaxFileSec="))]
    assert settings == ["MaxFileSec=1day", "MaxRetentionSec=30day"]


def test_services_may_hold_many_files_open(host: Host) -> None:
    """Whoever is started from now on may open 65536 files, as may a login of the service user."""
    assert host.check_output("systemctl show --property DefaultLimitNOFILESoft --value") == "65536"
    limits = host.file("/etc/security/limits.d/60-trading-bot.conf").content_string
    assert "trading-bot hard nofile 65536" in limits


def test_the_clock_and_the_kernel_are_kept_where_they_are_the_hosts_own(host: Host) -> None:
    """A machine keeps its clock and has the kernel settings; a container leaves both to its machine."""
    container = host.run("systemd-detect-virt --container --quiet").rc == 0
    assert host.file("/etc/sysctl.d/60-trading-bot.conf").exists is not container
    assert host.package("chrony").is_installed is not container
    if not container:
        assert host.service("chrony").is_running
        assert host.sysctl("vm.swappiness") == 1
