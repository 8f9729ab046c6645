#!/bin/bash
# Submits a sweep: the reference once, the runs as an array, and the report after all of them.
#   launchers/sweep.sh RUNS LIMIT OUTPUT KEY=VALUE ...
# RUNS: a file with one line of overrides per run, including exp_manager.explicit_log_dir; LIMIT: simultaneous runs;
# OUTPUT: the report's folder. KEY=VALUE are for all runs. `minordpo sweep EXPERIMENT --slurm LIMIT` does all this.
# With MINORDPO_QUESTIONS, every run is exported and evaluated with the options in MINORDPO_EVALUATE_ARGS, and
# MINORDPO_BASE_MODEL, if set, is evaluated into MINORDPO_BASE_SCORE. With MINORDPO_SCORE_ARGS (PAIRS and options of
# `minordpo score`), every exported model also scores pairs. Options of sbatch: SBATCH_*
# (launchers/site.example.sh); for the report also MINORDPO_CPU_SBATCH_ARGS.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,10s/^# //p' "$0" >&2
  exit 2
fi
# shellcheck source=launchers/submit.sh
source "$(dirname "$0")/submit.sh"
runs=$1 limit=$2 output=$3
shift 3
mapfile -t lines < <(grep -v '^ *\(#\|$\)' "$runs")
if [ "${#lines[@]}" -eq 0 ]; then
  echo "error: $runs contains no runs" >&2
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
