# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Read by the other scripts: where things are, and how they talk.

# shellcheck disable=SC2034 # Used by the scripts that read this one.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Exported as found, so that programs that are started from here look in the same place.
export CORACLE_CACHE="${CORACLE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/coracle}"

# Says on stderr what is being done; stdout is for data.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# fail WHAT WHY TRY [STATUS]: ends with an error in three lines.
fail() {
  printf '%s: %s\n  why: %s\n  try: %s\n' "${0##*/}" "$1" "$2" "$3" >&2
  exit "${4:-125}"
}

# need PROGRAM PACKAGE: ends unless the program is there.
need() {
  command -v "$1" >/dev/null || fail "cannot run without \`$1\`" "it is not installed" "sudo apt-get install $2, or scripts/setup"
}

# Debian leaves the system's own programs out of a user's path.
PATH=$PATH:/usr/sbin:/sbin
# Where rustup puts Rust, which is in the path only of shells started after it.
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
