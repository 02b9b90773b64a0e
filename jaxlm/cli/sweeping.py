"""`jaxlm sweep`."""

import argparse
import json
from functools import partial
from typing import Any

from jaxlm.cli.ending import FAILED, SIGNALLED
from jaxlm.cli.parsing import add_config_flags, changes, starting_config, whole
from jaxlm.cli.training import EPILOG, START, new_run, run_dir
from jaxlm.cli.verbs import DATA_DIR, argument, pathname, switch, verb
from jaxlm.config.config import KINDS
from jaxlm.errors import JaxlmError
from jaxlm.fields import specs
from jaxlm.terminal import say

SPACES = """a field's SPACE is one of:
  0.5,1,2            listed values; true,false; a text
  256x128,200x200    widths of the layers, for hidden_sizes
  range:2:8:2        2, 4, 6 and 8
  uniform:0.5:1      any number between; whole where the field is
  log:0.1:10         any number between, uniform in the logarithm
and every field is a flag too, as in `jaxlm train --help-all`

examples:
  jaxlm sweep --epochs 6 --set learning_rate=0.5,1,2 --set clip_norm=1,5
  jaxlm sweep --set hidden_sizes=256x128,200x200 --set keep_output=0.5,0.7
  jaxlm sweep --set learning_rate=log:0.1:10 --strategy tpe --trials 30
  jaxlm sweep --run-dir runs/mine --resume     on this machine or another
"""
STORAGE = "the URL of a database for Optuna's study ($JAXLM_STORAGE, else a journal in RUN_DIR); it is kept nowhere"


@verb(
    "train many points of a space, and find the best",
    *START,
    argument("--set", action="append", default=[], metavar="FIELD=SPACE", help="a field's SPACE (below); repeatable"),
    pathname("--space", "FILE", "a file of FIELD = SPACE lines in TOML, or JSON", rare=True),
    argument("--strategy", choices=("grid", "random", "tpe"), help="tpe is Optuna's choice, and prunes (default grid)"),
    argument("--trials", type=whole(1), metavar="N", help="how many points; a grid needs none"),
    argument("--seeds", type=whole(1), metavar="K", help="seeds of each point, from --seed on (default 1)"),
    argument("--workers", type=whole(1), metavar="N", help="processes (default: one a core for a long sweep)"),
    argument("--group", type=whole(1), metavar="M", rare=True, help="members in one program (default: by memory)"),
    argument("--storage", metavar="URL", rare=True, help=STORAGE),
    run_dir("runs/PRESET-sweep-DATE-TIME"),
    switch("--resume", "resume the sweep in --run-dir, or join its processes"),
    # Makes this one of the sweep's processes: options of `supervisor.join` in JSON.
    argument("--worker", type=json.loads, help=argparse.SUPPRESS),
    DATA_DIR,
    partial(add_config_flags, often=()),
    epilog=f"{EPILOG}\n\n{SPACES}",
)
def sweep(args: argparse.Namespace) -> int:
    if (args.resume or args.worker) and (args.run_dir is None or args.config):
        raise JaxlmError("--resume takes the sweep in --run-dir and its own config: name it, and leave --config out")
    space, given = _space(args), changes(args)
    if both := sorted(space.keys() & given.keys()):
        raise JaxlmError(f"{both[0]} is in the space and has a flag too: leave one of them out")

    from jaxlm.sweeps import space as spaces
    from jaxlm.sweeps import supervisor

    if args.worker:
        stopped_by = supervisor.join(args.run_dir, args.data_dir, **args.worker)
        return SIGNALLED + stopped_by if stopped_by else 0
    if "keep_last" in given:
        say("--keep-last is for a single run: a sweep's members keep their last and their best checkpoint")
    names = ("strategy", "trials", "seeds", "group", "storage")
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.resume:
        config, space, options = supervisor.saved_options(args.run_dir, space, options)
        config = config.replace(**given)
    else:
        config = starting_config(args.config, args.preset)
        try:
            config = config.replace(**given)
        except JaxlmError:  # a flag may need a kind that only the space names, as a rate of adamw
            config = config.replace(**spaces.first_values(space), **given)
        if "optimizer" in space:  # a flag for a field that all of its optimizers have is meant for all of them
            kinds = spaces.read_space({"optimizer": space["optimizer"]}, config)["optimizer"]
            having = [specs(KINDS["optimizer"][kind]) for kind in spaces.extremes(kinds)]
            space = {**{name: [value] for name, value in given.items() if all(name in one for one in having)}, **space}
    folder = args.run_dir or new_run(f"{config.preset}-sweep")
    options |= {name: getattr(args, name) for name in ("resume", "workers", "data_dir")}
    result = supervisor.sweep(config, space, run_dir=folder, **options)
    if result.stopped_by:
        return SIGNALLED + result.stopped_by
    return 0 if result.best and not result.damaged else FAILED


def _space(args: argparse.Namespace) -> dict[str, Any]:
    """The space of `--space` and `--set`."""
    space: dict[str, Any] = {}
    if args.space:
        from jaxlm.sweeps.space import read_space_file

        space = read_space_file(args.space)
    for setting in args.set:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise JaxlmError(f"--set takes FIELD=SPACE, as in learning_rate=0.5,1,2; it is {setting!r}")
        if name in space:
            raise JaxlmError(f"{name} is in the space twice: leave one of them out")
        space[name] = value
    return space
