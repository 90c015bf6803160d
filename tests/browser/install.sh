#!/bin/bash
# Install Chromium on this machine (Debian or Ubuntu, as root). Does nothing where it is installed.
set -euo pipefail
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then
  [ "$(id -u)" -eq 0 ] || { echo "tests/browser/install.sh needs root to install: chromium" >&2; exit 1; }
  apt-get update -qq
  # The fonts are those of pictures of the page
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
fi
"$(command -v chromium || command -v chromium-browser)" --version
