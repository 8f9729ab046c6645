# shellcheck shell=bash
# Shared by the job scripts, which source it inside a job.
#
# Set by the site or the user, in the environment or in the file $MINORDPO_SITE (launchers/site.example.sh):
#   MINORDPO_PYTHON          Python with nemo_minordpo; default: .venv/bin/python of this checkout, else python3
#   MINORDPO_CONTAINER       image for pyxis; then MINORDPO_PYTHON is a command inside it (default: python3)
#   MINORDPO_MOUNTS          host:container,... for pyxis; this checkout and the working folder are always mounted
#   MINORDPO_PLAN_ARGS       options of `minordpo plan`, for example --device-memory 141 if its guess is wrong
#   MINORDPO_SRUN_ARGS       extra arguments of srun, separated by spaces
#   MINORDPO_MAX_CRASHES     crashes or other ends without a new checkpoint in between before the job fails (3)
#   MINORDPO_NODE_WAIT       seconds to wait for a node that does not answer, or for space on a full disk (900)
#   MINORDPO_REQUEUE         scontrol (default), exit = end with MINORDPO_REQUEUE_EXIT (85), no = end without requeueing
set -euo pipefail

# The names of files in a run folder are those of nemo_minordpo/file_names.py.

# shellcheck source=launchers/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

job=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
received='' # the last signal that this script received
tries=0     # number of training starts in this attempt of the job

say() {
  printf '%s job %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)" "$job" "$*"
}

on_exit() {
  local code=$?
  say "end, exit code $code${received:+, after SIG$received}"
}
trap on_exit EXIT
trap 'received=USR1' USR1
trap 'received=TERM' TERM

# Arguments of every srun: the container, if any, and the site's own.
step_args=(--export=ALL)
if [ -n "${MINORDPO_CONTAINER:-}" ]; then
  step_args+=(
    "--container-image=$MINORDPO_CONTAINER"
    "--container-mounts=$checkout,$PWD${MINORDPO_MOUNTS:+,$MINORDPO_MOUNTS}"
    "--container-workdir=$PWD"
  )
fi
read -ra more_args <<< "${MINORDPO_SRUN_ARGS:-}"
step_args+=(${more_args[@]+"${more_args[@]}"})

# Runs Python as a single process on the first node.
python_here() {
  if [ -n "${MINORDPO_CONTAINER:-}" ]; then
    srun "${step_args[@]}" --nodes=1 --ntasks=1 "$python" "$@"
  else
    "$python" "$@"
  fi
}

minordpo() {
  python_here -m nemo_minordpo "$@"
}

report_environment() {
  say "$(uname -srm), $(scontrol --version), ${SLURM_JOB_NUM_NODES} nodes: $SLURM_JOB_NODELIST"
  say "checkout $(git -C "$checkout" rev-parse HEAD 2> /dev/null || echo 'without git'), $python" \
    "${MINORDPO_CONTAINER:+in $MINORDPO_CONTAINER}"
  if command -v nvidia-smi > /dev/null; then nvidia-smi -L; fi
  minordpo doctor 2>&1
}

# Waits for a process, even if signals interrupt the wait; a signal is passed on to all ranks.
wait_for() {
  local pid=$1 passed='' code
  while :; do
    code=0
    wait "$pid" || code=$?
    if [ -n "$received" ] && [ "$received" != "$passed" ]; then
      passed=$received
      say "SIG$received: asking the ranks to save and stop"
      scancel --signal="$received" "$SLURM_JOB_ID" 2> /dev/null || true
    elif ! kill -0 "$pid" 2> /dev/null; then
      return "$code"
    fi
  done
}

# Starts all ranks of a run: srun_ranks RUN RANKS_PER_NODE ARGUMENTS_OF_TRAIN...
# Writes to RUN/logs/JOB.TRY/: rank_*.log, and srun.log with srun's own messages.
srun_ranks() {
  local run=$1 ranks=$2 code=0 pid follower logs
  shift 2
  tries=$((tries + 1))
  logs=$run/logs/job_$job.$tries
  mkdir -p "$logs"
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # a new port for each attempt: the previous one may still hold its own
  MASTER_PORT=$((10000 + (SLURM_JOB_ID * 97 + ${SLURM_RESTART_COUNT:-0} * 13 + tries) % 20000))
  export MASTER_ADDR MASTER_PORT
  say "start $tries: $SLURM_JOB_NUM_NODES x $ranks ranks, $MASTER_ADDR:$MASTER_PORT, logs in $logs"
  : > "$logs/rank_0.log"
  rm -f "$run/logs/waiting"
  srun "${step_args[@]}" --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks=$((SLURM_JOB_NUM_NODES * ranks)) --ntasks-per-node="$ranks" \
    --cpus-per-task=$((SLURM_CPUS_ON_NODE > ranks ? SLURM_CPUS_ON_NODE / ranks : 1)) \
    --kill-on-bad-exit=1 --wait=60 --open-mode=append --output="$logs/rank_%t.log" --error="$logs/rank_%t.log" \
    "$python" -m nemo_minordpo.train "$@" 2> "$logs/srun.log" &
  pid=$!
  tail -n +1 -F --pid=$pid "$logs/rank_0.log" 2> /dev/null &
  follower=$!
  wait_for "$pid" || code=$?
  wait "$follower" 2> /dev/null || true
  cat "$logs/srun.log"
  if [ "$code" -ne 0 ] && [ -z "$received" ]; then note_killed_rank "$run" "$ranks" "$logs/srun.log"; fi
  if refused "$logs/srun.log"; then return 2; fi
  return "$code"
}

# Whether a rank refused its settings, inputs or values (exit code 2): another try would not help.
refused() {
  grep -qE '^srun: error: [^ ]+: tasks? [0-9,-]+: Exited with exit code 2$' "$1"
}

# A killed rank records nothing itself; srun reports it first: "srun: error: node2: task 3: Killed".
note_killed_rank() {
  local run=$1 ranks=$2 log=$3 lost first node task what
  # a node was restarted: what srun then kills is only a consequence
  lost=$(sed -n 's/^srun: error: .*missing step on node \([0-9]*\)$/\1/p' "$log" | head -n 1)
  if [ -n "$lost" ]; then
    node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n "$((lost + 1))p")
    task=$((lost * ranks))
    what=" its node was restarted"
  else
    first=$(grep -m 1 -E '^srun: error: [^ ]+: tasks? [0-9]' "$log" || true)
    if [ -z "$first" ] || [[ $first == *"Exited with"* ]]; then return 0; fi
    IFS=: read -r _ _ node task what <<< "$first"
    task=${task##* }
    node=${node# }
    task=${task%%[-,]*}
  fi
  say "rank $task on $node ended without a message:$what"
  python_here -m nemo_minordpo.train.folder.attempt "$run" "$node" "$task" "the process ended without a message:$what" || true
}

# Reports what the job is waiting for, here and in RUN/logs/waiting for `minordpo status`: waits RUN REASON
waits() {
  say "$2"
  printf '%s\n' "$2" > "$1/logs/waiting" || true # the disk may be full
}

# Waits a few seconds; a signal cuts this short.
pause() {
  sleep 5 &
  wait $! || true
}

# Whether every node of the job can still start processes, whatever else runs there; Slurm replaces dead nodes.
nodes_answer() {
  timeout 60 srun --export=ALL --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    --kill-on-bad-exit=1 --wait=10 true 2> /dev/null
}

# Whether Slurm counts a step of this job as running; the script itself is the step "batch".
step_runs() {
  scontrol --oneliner show step "$SLURM_JOB_ID" 2> /dev/null | grep -qE '^StepId=[^ ]+\.[0-9]+ .*State=RUNNING'
}

# Ends this attempt of the job, so that the next one resumes the run: requeue RUN REASON
requeue() {
  if [ "${MINORDPO_REQUEUE:-scontrol}" = no ]; then
    say "ending: $2"
    rm -f "$1/logs/waiting"
  else
    waits "$1" "requeue: $2"
  fi
  case ${MINORDPO_REQUEUE:-scontrol} in
    scontrol)
      if scontrol requeue "$SLURM_JOB_ID"; then exit 0; fi
      exit "${MINORDPO_REQUEUE_EXIT:-85}"
      ;;
    exit) exit "${MINORDPO_REQUEUE_EXIT:-85}" ;;
    no) exit 75 ;;
    *)
      echo "error: MINORDPO_REQUEUE=$MINORDPO_REQUEUE: choose scontrol, exit or no" >&2
      exit 2
      ;;
  esac
}

# If a node does not answer, Slurm should end and requeue the job. If it does not do so in time, we request it.
wait_for_nodes() {
  local run=$1 since=$SECONDS
  until nodes_answer; do
    if [ -n "$received" ]; then return; fi
    if [ $((SECONDS - since)) -gt "${MINORDPO_NODE_WAIT:-900}" ]; then requeue "$run" "a node does not answer"; fi
    waits "$run" "a node does not answer; waiting for Slurm to replace it"
    pause
  done
}

# A node that loses power and returns before Slurm notices has forgotten its part of the last job step. Slurm counts that
# step as running for ever, and the next step would wait for its resources. A new attempt of the job would not.
leave_lost_step() {
  local run=$1 tries
  for tries in 1 2 3 4; do
    if [ "$received" = TERM ] || ! step_runs; then return; fi
    waits "$run" "all nodes answer, but Slurm counts the last step as running; waiting for its end ($tries of 4)"
    pause
  done
  requeue "$run" "the last step will not end: one of its nodes was restarted"
}

# Checks the settings, and sets the caller's `ranks` (per node) and `run` (the run folder).
read_plan() {
  local plan more
  read -ra more <<< "${MINORDPO_PLAN_ARGS:-}"
  plan=$(minordpo plan --launcher ${more[@]+"${more[@]}"} "$@" "trainer.num_nodes=$SLURM_JOB_NUM_NODES") || exit 2
  { read -r ranks; read -r run; } <<< "$plan"
}

newest_checkpoint() {
  find "$1/checkpoints" -maxdepth 1 -name 'step_*' 2> /dev/null | sort | tail -n 1 || true
}

# Counts consecutive ends without a new checkpoint, over all attempts, and gives up if there are too many: a run whose
# time limit is too short for a single step would be requeued for ever.
count_end() {
  local run=$1 file=$1/logs/ends newest last='' count=0
  newest=$(newest_checkpoint "$run")
  if [ -e "$file" ]; then { read -r count; read -r last; } < "$file" || true; fi
  if [ "$newest" != "$last" ]; then count=0; fi
  count=$((count + 1))
  printf '%s\n%s\n' "$count" "$newest" > "$file" || true # the disk may be full
  if [ "$count" -gt "${MINORDPO_MAX_CRASHES:-3}" ]; then
    say "giving up after $count ends without a new checkpoint ($2); see $run/failures and $run/logs"
    exit 1
  fi
}

# Waits until a checkpoint as large as the newest one fits on the disk; someone has to free the space.
wait_for_disk() {
  local run=$1 since=$SECONDS newest needed=1024 free
  rm -rf "$run"/checkpoints/.step_*.tmp # left by the ranks that have just ended
  newest=$(newest_checkpoint "$run")
  if [ -n "$newest" ]; then needed=$(du -sk "$newest" | cut -f 1); fi
  while :; do
    free=$(df -Pk "$run" | awk 'NR == 2 { print $4 }')
    if [ "$free" -gt "$needed" ] || [ -n "$received" ]; then return; fi
    if [ $((SECONDS - since)) -gt "${MINORDPO_NODE_WAIT:-900}" ]; then
      rm -f "$run/logs/waiting"
      say "giving up: the disk of $run is full; a checkpoint needs $needed KiB"
      exit 1
    fi
    waits "$run" "the disk of $run is full: $free KiB are free, a checkpoint needs $needed KiB; waiting for space"
    pause
  done
}

# Runs `minordpo train` until it is complete: resumes after crashes, requeues before the time limit and on preemption.
# Sets the caller's `run`, the run folder.
train() {
  local ranks code
  say "start, $# arguments"
  read_plan "$@" # first, so that wrong settings are reported before anything else
  report_environment
  while :; do
    code=0
    srun_ranks "$run" "$ranks" "$@" "trainer.num_nodes=$SLURM_JOB_NUM_NODES" || code=$?
    if minordpo status "$run"; then
      say "complete"
      return
    fi
    if [ "$code" -eq 2 ]; then
      say "giving up: the same settings and inputs would fail again"
      exit 2
    fi
    case $received in
      USR1)
        count_end "$run" "the time limit is too short, or SIGUSR1 comes too early"
        requeue "$run" "the time limit is near"
        ;;
      TERM)
        # scancel, requeue and the time limit end the job anyway; after any other SIGTERM it is still running
        if [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then requeue "$run" "SIGTERM"; fi
        exit 143
        ;;
    esac
    if [ "$code" -eq 0 ]; then
      count_end "$run" "exp_manager.max_time_per_run is too short"
      requeue "$run" "stopped before the end"
    fi
    count_end "$run" "crashes"
    wait_for_nodes "$run"
    leave_lost_step "$run"
    wait_for_disk "$run"
    if [ "$received" = TERM ]; then exit 143; fi
    say "crash: resuming from $(newest_checkpoint "$run")"
  done
}

# Runs a resumable `minordpo` command for the run folder `run`; if the job has to end first, requeues it.
minordpo_or_requeue() {
  local code=0
  if [ -z "$received" ]; then
    minordpo "$@" &
    wait $! || code=$?
    if [ -z "$received" ]; then return "$code"; fi
  fi
  requeue "$run" "SIG$received"
}

# Runs `minordpo reference` on all nodes of the job.
reference() {
  local run ranks
  say "start, $# arguments"
  read_plan "$@"
  srun_ranks "$run" "$ranks" --only-reference "$@" "trainer.num_nodes=$SLURM_JOB_NUM_NODES"
}
