#!/usr/bin/env bash
# A sweep over the tasks of an array, with a GPU each. They share one directory or, with
# DATABASE=postgresql://user@host/name, one database and have a directory each. The first task begins
# the sweep, the others join it, and so does a task that is started again: SIGTERM comes two minutes
# before the time is up, and what was trained is saved.
#SBATCH --job-name=jaxlm-sweep --array=0-49 --ntasks=1 --gpus-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00 --signal=B:TERM@120 --requeue
set -euo pipefail
run=${RUN:-runs/sweep}
begun=$run/study.journal
if [ -n "${DATABASE:-}" ]; then
  export JAXLM_STORAGE=$DATABASE # not as a flag, which all can read: it may have a password
  run=$run/$SLURM_ARRAY_TASK_ID
  begun=$run/trials
fi
mkdir -p "$run"
exec 9>"$run/.begin"
flock 9 # until the sweep has begun
[ -e "$begun" ] || [ -e "$run/sweep.csv" ] && resume=--resume || resume= # others may have done all
jaxlm sweep --run-dir "$run" $resume --corpus "${CORPUS:-data/prepared}" --hidden-sizes 650,650 \
  --embedding-size 650 --keep-output 0.5 --epochs 16 --set learning_rate=log:0.1:4 --set clip_norm=1,5,10 \
  --strategy tpe --trials 1000 --prune halving --workers 1 9>&- &
sweep=$!
trap 'kill -TERM $sweep' TERM
until [ -e "$begun" ] || ! kill -0 $sweep 2>/dev/null; do sleep 1; done
exec 9>&-
wait $sweep || wait $sweep # a signal ends the first wait
