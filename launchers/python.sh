# shellcheck shell=bash
# Reads the site's settings and chooses the Python for the launchers, as described in common.sh; sourced by them.
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
site=${MINORDPO_SITE:-$checkout/launchers/site.sh}
if [ -e "$site" ]; then
  # shellcheck source=/dev/null
  source "$site"
elif [ -n "${MINORDPO_SITE:-}" ]; then
  echo "error: MINORDPO_SITE=$site: no such file" >&2
  exit 2
fi

python=${MINORDPO_PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -z "${MINORDPO_CONTAINER:-}" ] && [ -x "$checkout/.venv/bin/python" ]; then
    python=$checkout/.venv/bin/python
  fi
fi
export PYTHONUNBUFFERED=1 PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
