# shellcheck shell=bash
# Shared by pipeline.sh and sweep.sh on the submitting machine; sourced by them.
launchers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Refuses invalid settings before anything is submitted: check_settings [--runs RUNS] KEY=VALUE...
# With a container, or without a suitable Python on this machine, the job checks them first thing instead.
check_settings() {
  local code=0
  (
    # shellcheck source=launchers/python.sh
    source "$launchers/python.sh"
    if [ -z "${MINORDPO_CONTAINER:-}" ]; then "$python" -m nemo_minordpo.train.check "$@"; fi
  ) || code=$?
  if [ "$code" -eq 2 ]; then exit 2; fi
  if [ "$code" -ne 0 ]; then echo "note: this machine cannot check the settings; the job will" >&2; fi
}

# Quotes a text for Hydra, where only backslashes before a quote are doubled: quoted TEXT
quoted() {
  sed -E "s/(\\\\+)('|$)/\\1\\1\\2/g; s/'/\\\\'/g; s/.*/'&'/" <<< "$1"
}

# The inverse, for one text per line.
unquoted() {
  sed -E "/^'.*'$/{ s/^'(.*)'$/\\1/; s/(\\\\+)\\1('|$)/\\1\\2/g; s/\\\\'/'/g }"
}
