#!/usr/bin/env bash
# Runs on every VM at each boot and makes a systemd service of the run. systemd starts it again when it was preempted
# (exit code 75) or failed, but not after bad input (2) or Ctrl-C (130), nor more than a few times an hour.
# Where the setup fails there is no service: without a mount, a run would begin anew on the VM's own disk.
set -euo pipefail
@SETUP@
# The volume outlives the container: copies from object stores and compiled programs are still there at a restart.
cat >/usr/local/bin/lsm-train <<'COMMAND'
#!/usr/bin/env bash
exec docker run --init --name lsm-train --privileged --network host --shm-size 16g --stop-timeout 300 \
  --volume lsm-cache:/cache --env XDG_CACHE_HOME=/cache @CONTAINER@
COMMAND
chmod +x /usr/local/bin/lsm-train
cat >/etc/systemd/system/lsm-train.service <<'UNIT'
[Unit]
Description=lsm train
After=docker.service network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=@STARTS@
[Service]
ExecStartPre=-/usr/bin/docker rm --force lsm-train
ExecStart=/usr/local/bin/lsm-train
Restart=on-failure
RestartSec=15
RestartForceExitStatus=75
RestartPreventExitStatus=2 130
TimeoutStartSec=1800
TimeoutStopSec=300
UNIT
systemctl daemon-reload
systemctl restart --no-block lsm-train
