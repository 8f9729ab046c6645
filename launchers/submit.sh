# shellcheck shell=bash
# What pipeline.sh and sweep.sh share, on the machine that submits; sourced by them.
launchers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Refuses settings that are wrong by themselves: check_settings [--runs RUNS] KEY=VALUE...
# In a container, or without such a Python on this machine, the job does so, as the first thing that it does.
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

# A text as Hydra reads it in quotes, where a backslash is doubled only where a quote follows: quoted TEXT
quoted() {
  sed -E "s/(\\\\+)('|$)/\\1\\1\\2/g; s/'/\\\\'/g; s/.*/'&'/" <<< "$1"
}

# The other way round, a line a text.
unquoted() {
  sed -E "/^'.*'$/{ s/^'(.*)'$/\\1/; s/(\\\\+)\\1('|$)/\\1\\2/g; s/\\\\'/'/g }"
}
