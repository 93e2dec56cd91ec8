#!/usr/bin/env bash
# The programs that tests run and that are no Python packages, from the distribution, with none of their services started.
. "$(dirname "$0")/lib.sh"

packages=(age haproxy nats-server prometheus prometheus-alertmanager redis-server rsync shellcheck)
# The browser that looks at the built-in page. Ubuntu has it as a snap only: `snap install chromium`.
if ! grep -qx 'ID=ubuntu' /etc/os-release; then packages+=(chromium); fi

install() {
  apt_install "${packages[@]}"
  # Tests start these themselves, on free ports; nor do they come up with the next boot.
  if [ -d /run/systemd/system ]; then as_root systemctl --quiet disable haproxy nats-server prometheus prometheus-alertmanager redis-server; fi
}

if dpkg-query -W -f '${Status}\n' "${packages[@]}" 2>/dev/null | grep -c 'ok installed' | grep -qx "${#packages[@]}"; then
  skip "Test tools ${packages[*]}"
else
  step "Test tools ${packages[*]}" install
fi
