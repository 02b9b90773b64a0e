"""The files that sweep on clusters: their arguments, and the tasks of an array on this machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

from jaxlm.cli.verbs import VERBS

FOLDER = ROOT / "experiments/cluster"
# As `jaxlm` on the tasks' path: a small sweep, by flags that replace those of the file.
SMALL = """#!/bin/sh
case " $* " in *" --resume "*) more=;; *) more="--strategy random --trials 4 --epochs 1
--batch-size 20 --corpus embedded-tiny --hidden-sizes 8 --embedding-size 4";; esac
dir=$3; case " $* " in *" --resume "*) set -- sweep --run-dir "$dir" --resume --workers 1;; esac
echo "$@" $more >> "$TOLD"
exec {python} -m jaxlm "$@" $more
"""


def arguments(name: str) -> list[str]:
    text = (FOLDER / name).read_text().replace("\\\n", " ")
    command = text[text.index("jaxlm sweep --run-dir") :]
    command = re.split(" 9>&-|resources:", command)[0]
    command = command.replace("$resume", "").replace("$run", "runs/sweep")
    return [word.strip('"') for word in command.split()[1:]]


@pytest.mark.parametrize("name", ["slurm_sweep.sh", "kubernetes_sweep.yaml"])
def test_their_arguments_are_accepted(name):
    verb, *words = arguments(name)
    args = VERBS[verb].parser(words).parse_args(words)
    assert (args.trials, args.prune, args.workers) == (1000, "halving", 1)


def test_the_file_for_kubernetes_resumes_where_trials_have_begun():
    text = (FOLDER / "kubernetes_sweep.yaml").read_text()
    assert "[ -e $run/trials ] || [ -e $run/sweep.csv ] && resume=--resume" in text
    assert "restartPolicy: OnFailure" in text and "kind: JobSet" in text
    run = (FOLDER / "kubernetes.yaml").read_text()
    assert "-e /runs/large/config.json ] && resume=--resume" in run and "maxRestarts" in run


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock")
@pytest.mark.parametrize("shared", ["directory", "database"])
def test_the_tasks_of_an_array_share_a_sweep(tmp_path, shared):
    """One of them begins it, the others join; a task that is started again resumes."""
    told = tmp_path / "told"
    (tmp_path / "bin").mkdir()
    jaxlm = tmp_path / "bin/jaxlm"
    jaxlm.write_text(SMALL.replace("{python}", sys.executable))
    jaxlm.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RUN": str(tmp_path / "sweep"),
        "TOLD": str(told),
    }
    if shared == "database":
        environment["DATABASE"] = f"sqlite:///{tmp_path / 'study.db'}"

    def task(number: int) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", FOLDER / "slurm_sweep.sh"],
            env={**environment, "SLURM_ARRAY_TASK_ID": str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    # The last task begins when others have done all, and is started again too.
    for numbers in ([0, 1, 2], [1], [3], [3]):
        for process in [task(number) for number in numbers]:
            _, wrong = process.communicate(timeout=400)
            assert process.returncode == 0, wrong
    begun = ["--resume" not in line for line in told.read_text().splitlines()]
    assert begun.count(True) == (1 if shared == "directory" else 4)
    pattern = "trials/*/metrics.jsonl" if shared == "directory" else "*/trials/*/metrics.jsonl"
    trained: list[Path] = list((tmp_path / "sweep").glob(pattern))
    assert len(trained) == 4
