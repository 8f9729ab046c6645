#!/bin/bash
# Submits the whole pipeline as a chain of jobs, each when the one before it has succeeded, and prints it:
#   launchers/pipeline.sh HF QUESTIONS RUN KEY=VALUE ...
# HF: Hugging Face folder of the base model, imported into RUN.nemo; QUESTIONS: jsonl for the evaluation; RUN: the run
# folder, with RUN/hf and RUN/evaluation at the end. KEY=VALUE are `minordpo train`'s, the pairs among them.
# Options of sbatch: SBATCH_* (launchers/site.example.sh), of import and export MINORDPO_CPU_SBATCH_ARGS besides; nodes
# of the training: MINORDPO_NODES (2).
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,7s/^# //p' "$0" >&2
  exit 2
fi
# shellcheck source=launchers/submit.sh
source "$(dirname "$0")/submit.sh"
hf=$1 questions=$2 run=$3
shift 3
read -ra cpu_only <<< "${MINORDPO_CPU_SBATCH_ARGS:-}"
settings=(
  "pretrained_checkpoint.restore_from_path=$(quoted "$run.nemo")" "exp_manager.explicit_log_dir=$(quoted "$run")" "$@"
)
check_settings "${settings[@]}"

# submit NAME AFTER SBATCH_ARGUMENTS...: prints the job's number, and on stderr what was submitted
submit() {
  local name=$1 after=$2 job
  shift 2
  job=$(sbatch --parsable ${after:+--dependency=afterok:"$after" --kill-on-invalid-dep=yes} "$@")
  printf '%-10s job %s%s\n' "$name" "$job" "${after:+, after $after}" >&2
  echo "$job"
}

# the names of files in a run folder are those of nemo_minordpo/file_names.py
before=
if [ ! -e "$run.nemo" ]; then
  before=$(submit import "" --job-name=import-hf ${cpu_only[@]+"${cpu_only[@]}"} \
    "$launchers/command.sub" import-hf "$hf" "$run.nemo")
fi
before=$(submit reference "$before" "$launchers/reference.sub" "${settings[@]}")
before=$(submit train "$before" --nodes="${MINORDPO_NODES:-2}" "$launchers/minordpo.sub" "${settings[@]}")
before=$(submit export "$before" --job-name=export-hf ${cpu_only[@]+"${cpu_only[@]}"} \
  "$launchers/command.sub" export-hf "$run" "$run/hf")
before=$(submit evaluate "$before" --job-name=evaluate \
  "$launchers/command.sub" evaluate "$run/hf" "$questions" "$run/evaluation")
echo "last job: $before; squeue shows the chain, minordpo status $run the training"
