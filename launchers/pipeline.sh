#!/bin/bash
# Submits the whole pipeline as a chain of jobs, each of which starts when the previous one has succeeded:
#   launchers/pipeline.sh HF QUESTIONS RUN KEY=VALUE ...
# HF: Hugging Face folder of the base model, imported into RUN.nemo; QUESTIONS: jsonl for the evaluation; RUN: the run
# folder, which will contain RUN/hf and RUN/evaluation. KEY=VALUE: overrides of `minordpo train`, including the pairs.
# Options of sbatch: SBATCH_* (launchers/site.example.sh); for import and export also MINORDPO_CPU_SBATCH_ARGS. Number of
# training nodes: MINORDPO_NODES (2).
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

# submit NAME AFTER SBATCH_ARGUMENTS...: prints the job's number, and a description of the job on stderr
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
echo "last job: $before; follow the chain with squeue, the training with: minordpo status $run"
