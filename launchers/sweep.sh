#!/bin/bash
# Submits a sweep: the reference once, the runs as an array, the report when all of them have ended.
#   launchers/sweep.sh RUNS LIMIT OUTPUT KEY=VALUE ...
# RUNS: a file with a line of overrides a run, exp_manager.explicit_log_dir among them; LIMIT: runs at a time;
# OUTPUT: folder of the report. KEY=VALUE are for all runs. `minordpo sweep EXPERIMENT --slurm LIMIT` writes all that.
# With MINORDPO_QUESTIONS every run is exported and evaluated, with the options in MINORDPO_EVALUATE_ARGS, and so is
# MINORDPO_BASE_MODEL, where there is one, into MINORDPO_BASE_SCORE. Options of sbatch: SBATCH_*
# (launchers/site.example.sh), of the report MINORDPO_CPU_SBATCH_ARGS besides.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,9s/^# //p' "$0" >&2
  exit 2
fi
# shellcheck source=launchers/submit.sh
source "$(dirname "$0")/submit.sh"
runs=$1 limit=$2 output=$3
shift 3
mapfile -t lines < <(grep -v '^ *\(#\|$\)' "$runs")
if [ "${#lines[@]}" -eq 0 ]; then
  echo "error: $runs holds no run" >&2
  exit 2
fi
mapfile -t folders < <(
  printf '%s\n' "${lines[@]}" | xargs -n 1 printf '%s\n' | sed -n 's/^exp_manager.explicit_log_dir=//p' | unquoted
)
if [ "${#folders[@]}" -ne "${#lines[@]}" ]; then
  echo "error: $runs: every line needs its own exp_manager.explicit_log_dir=FOLDER" >&2
  exit 2
fi
check_settings --runs "$runs" "$@"
read -ra cpu_only <<< "${MINORDPO_CPU_SBATCH_ARGS:-}"
mapfile -t first < <(xargs -n 1 printf '%s\n' <<< "${lines[0]}")
reference=$(sbatch --parsable "$launchers/reference.sub" "$@" "${first[@]}")
array=$(sbatch --parsable --dependency=afterok:"$reference" --kill-on-invalid-dep=yes \
  --array=0-$((${#lines[@]} - 1))%"$limit" "$launchers/sweep.sub" "$runs" "$@")
before=$array with_base=()
if [ -n "${MINORDPO_QUESTIONS:-}" ] && [ -n "${MINORDPO_BASE_MODEL:-}" ]; then
  mapfile -t options < <(xargs -rn 1 printf '%s\n' <<< "${MINORDPO_EVALUATE_ARGS:-}")
  base=$(sbatch --parsable --job-name=evaluate "$launchers/command.sub" evaluate "$MINORDPO_BASE_MODEL" \
    "$MINORDPO_QUESTIONS" "$MINORDPO_BASE_SCORE" ${options[@]+"${options[@]}"})
  before=$array:$base
  with_base=(--base "$MINORDPO_BASE_SCORE")
fi
report=$(sbatch --parsable --job-name=report --dependency=afterany:"$before" ${cpu_only[@]+"${cpu_only[@]}"} \
  "$launchers/command.sub" report "${folders[@]}" ${with_base[@]+"${with_base[@]}"} --output "$output" --overwrite)
echo "reference $reference${base:+, base model $base} -> ${#lines[@]} runs $array, $limit at a time -> report $report in $output"
