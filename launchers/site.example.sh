# shellcheck shell=bash
# Settings of a site. Copy this file to launchers/site.sh, or elsewhere and set MINORDPO_SITE to it. Jobs read it; before
# you submit, run: source launchers/site.sh

# sbatch reads these itself; options on its command line override them.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my-project
# export SBATCH_QOS=long
# export SBATCH_CONSTRAINT=h100
# export SBATCH_TIMELIMIT=04:00:00
export SBATCH_GPUS_PER_NODE=8
# For jobs of pipeline.sh and sweep.sh that need no GPU (import, export, report); overrides the settings above.
# export MINORDPO_CPU_SBATCH_ARGS="--partition=cpu --gpus-per-node=0"

# Without a container: the environment with nemo_minordpo.
# export MINORDPO_PYTHON=/shared/venvs/minordpo/bin/python

# With pyxis: the image, and the folders to mount.
# export MINORDPO_CONTAINER=nvcr.io#nvidia/nemo:25.02
# export MINORDPO_MOUNTS=/lustre/models:/lustre/models,/lustre/data:/lustre/data

# The site's network interfaces.
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0

# `module load` and the like also belong here.
