# shellcheck shell=bash
# What a site differs in. Copy it to launchers/site.sh, or anywhere and name it in MINORDPO_SITE; jobs read it, and
# before you submit: source launchers/site.sh

# sbatch reads these itself; options on its command line win over them.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my-project
# export SBATCH_QOS=long
# export SBATCH_CONSTRAINT=h100
# export SBATCH_TIMELIMIT=04:00:00
export SBATCH_GPUS_PER_NODE=8
# Jobs of pipeline.sh and sweep.sh that need no GPU (import, export, report), where these options win over those above.
# export MINORDPO_CPU_SBATCH_ARGS="--partition=cpu --gpus-per-node=0"

# Without a container: the environment that has nemo_minordpo.
# export MINORDPO_PYTHON=/shared/venvs/minordpo/bin/python

# With pyxis: the image, and what it must see.
# export MINORDPO_CONTAINER=nvcr.io#nvidia/nemo:25.02
# export MINORDPO_MOUNTS=/lustre/models:/lustre/models,/lustre/data:/lustre/data

# Networks of this site.
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0

# Modules and the like belong here, too.
