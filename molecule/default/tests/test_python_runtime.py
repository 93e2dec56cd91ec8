"""The Python and the virtual environments of app hosts."""

from __future__ import annotations

from testinfra.host import Host

testinfra_hosts = ["ansible://app"]

VENVS = "/opt/trading-bot/venvs"


def environments(host: Host) -> list[str]:
    """The virtual environments on a host; a host that runs the app outside Docker has at least one."""
    found = host.file(VENVS).listdir() if host.file(VENVS).is_directory else []
    if host.ansible.get_variables().get("trading_bot_runtime") == "systemd":
        assert found
    return [f"{VENVS}/{name}" for name in found]


def test_python_is_recent_enough(host: Host) -> None:
    """The app needs 3.11, which here is the distribution's own or later."""
    assert host.run("python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'").rc == 0


def test_every_environment_is_whole(host: Host) -> None:
    """None was cut off, each has all that it depends on, and the service user can run but not change it."""
    for path in environments(host):
        assert host.file(f"{path}/.complete").exists
        assert host.run(f"{path}/bin/python -m pip --isolated check").rc == 0
        assert host.run(f"{path}/bin/trading-bot version").rc == 0
        with host.sudo():
            assert host.check_output(f"find {path} -not -user root -o -perm /022 -not -type l") == ""


def test_the_command_is_that_of_a_whole_environment(host: Host) -> None:
    """Where there are environments, /usr/local/bin/trading-bot leads into one of them."""
    paths = environments(host)
    if paths:
        target = host.check_output("readlink --canonicalize-existing /usr/local/bin/trading-bot")
        assert target.removesuffix("/bin/trading-bot") in paths
