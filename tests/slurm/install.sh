#!/bin/bash
# Install Slurm and munge on this machine (Debian or Ubuntu, as root). Does nothing where they are installed.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins)
if dpkg-query --show --showformat '${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | grep -qvx installed ||
  ! dpkg-query --show "${packages[@]}" >/dev/null 2>&1; then
  [ "$(id -u)" -eq 0 ] || { echo "tests/slurm/install.sh needs root to install: ${packages[*]}" >&2; exit 1; }
  # The packages start their services where an init runs; the tests bring up their own, private cluster.
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi
slurmctld -V
