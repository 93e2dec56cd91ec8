#!/usr/bin/env bash
# A Docker engine on this machine: installed from the distribution if missing, started if not running.
. "$(dirname "$0")/lib.sh"

log=/var/log/dockerd-lab.log

# A process that was killed and not yet reaped is none.
alive() { pgrep --exact --runstates D,R,S "$1" >/dev/null; }

answers() { docker info >/dev/null 2>&1; }

start() {
  if [ -d /run/systemd/system ]; then
    as_root systemctl start docker
  else
    # Without systemd nobody clears the pid files of an engine that was killed; a number used anew would stop dockerd.
    alive dockerd || as_root rm -f /var/run/docker.pid
    # A containerd that outlived its engine is taken over by the next one, by this file.
    alive containerd || as_root rm -f /var/run/docker/containerd/containerd.pid
    as_root sh -c "nohup setsid dockerd >>$log 2>&1 </dev/null &"
  fi
  for _ in $(seq 1 120); do
    answers && return 0
    sleep 0.5
  done
  refuse "the Docker engine did not answer within 60 s: read $log or 'journalctl -u docker'."
}

if answers; then
  skip "Docker engine $(docker info --format '{{.ServerVersion}}')"
else
  command -v dockerd >/dev/null || {
    need_space /var 4
    step "Docker engine: install docker.io" apt_install docker.io iptables
  }
  if alive dockerd && [ "$(id -u)" -ne 0 ] && ! docker info >/dev/null 2>&1; then
    refuse "a Docker engine runs, but not for user $(id -un): add it to the group docker and log in again."
  fi
  step "Docker engine: start" start
fi
need_space "$(docker info --format '{{.DockerRootDir}}')" 8
