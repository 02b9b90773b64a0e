#!/usr/bin/env bash
# One run over two hosts of eight GPUs, a process each: the words over eight devices, the rows over two.
# Started again it resumes: SIGTERM comes two minutes before the time is up, and the run saves itself.
#SBATCH --job-name=jaxlm --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=16
#SBATCH --time=24:00:00 --signal=TERM@120 --requeue
set -euo pipefail
export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7 # else JAX gives a process of SLURM one GPU
run=${RUN:-runs/large}
[ -e "$run/config.json" ] && resume=--resume || resume=
srun --kill-on-bad-exit=1 jaxlm train --run-dir "$run" $resume --corpus "${CORPUS:-data/prepared}" \
  --vocab-size 800000 --embedding-size 1024 --hidden-sizes 2048,1024 --sampled-words 8192 --compute-dtype bfloat16 \
  --batch-size 128 --devices 2 --model-devices 8
