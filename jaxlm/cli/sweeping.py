"""The verb that trains many models: `jaxlm sweep`."""

import argparse
import json
from contextlib import ExitStack
from functools import partial

from jaxlm.base.errors import JaxlmError
from jaxlm.base.terminal import say
from jaxlm.cli.arguments import DATA_DIR, argument, choice, command, pathname, switch, whole
from jaxlm.cli.config_flags import PRESET_NAMES, START, add_config_flags, changes, starting_config
from jaxlm.cli.dated_runs import new_run
from jaxlm.cli.ending import FAILED, SIGNALLED
from jaxlm.sweeps import space as spaces
from jaxlm.sweeps import supervisor

_SPACES = """a field's SPACE is one of:
  0.5,1,2            listed values; true,false; a text
  256x128,200x200    widths of the layers, for hidden_sizes; 256x is one layer
  lstm,hawk+gru      kinds of model; hawk+gru is what --model hawk,gru names
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
_STORAGE = (
    "the URL of a database for Optuna's study ($JAXLM_STORAGE, else a journal in RUN_DIR); "
    "it is not saved"
)


@command(
    *START,
    argument(
        "--set", "FIELD=SPACE", "a field's SPACE (below); repeatable", action="append", default=[]
    ),
    pathname("--space", "FILE", "a file of FIELD = SPACE lines in TOML, or JSON", rare=True),
    choice(
        "--strategy", ("grid", "random", "tpe"), "tpe is Optuna's choice, and prunes (default grid)"
    ),
    choice(
        "--prune",
        ("none", "median", "halving"),
        "end trials worse than the median, or all but the best quarter (default: median, with tpe)",
    ),
    argument("--trials", "N", "how many points; a grid needs none", type=whole(1)),
    argument("--seeds", "K", "seeds of each point, from --seed on (default 1)", type=whole(1)),
    argument("--workers", "N", "processes (default: one a core for a long sweep)", type=whole(1)),
    argument(
        "--group",
        "M",
        "members in one program (default: by memory)",
        type=whole(1),
        rare=True,
    ),
    argument("--storage", "URL", _STORAGE, rare=True),
    pathname("--run-dir", "DIR", "where everything is kept (default: runs/PRESET-sweep-DATE-TIME)"),
    switch("--resume", "resume the sweep in --run-dir, or join its processes"),
    # What a sweep's own processes are started with: options of `supervisor.join` in JSON.
    argument("--as-worker", "", argparse.SUPPRESS, dest="worker", type=json.loads),
    DATA_DIR,
    partial(add_config_flags, often=()),
    epilog=f"{PRESET_NAMES}\n\n{_SPACES}",
)
def sweep(args: argparse.Namespace) -> int:
    """Trains the points of a space: begins a sweep, resumes one, or works for one."""
    if (args.resume or args.worker) and (args.run_dir is None or args.config):
        raise JaxlmError(
            "--resume takes the sweep in --run-dir and its own config: "
            "name it, and leave --config out"
        )
    if args.worker:
        stopped_by = supervisor.join(args.run_dir, args.data_dir, **args.worker)
        return SIGNALLED + stopped_by if stopped_by else 0
    flags = changes(args)
    space = spaces.read_space_file(args.space) if args.space else {}
    space = spaces.with_settings(space, args.set)
    twice = sorted(space.keys() & flags.keys())
    if twice:
        raise JaxlmError(f"{twice[0]} is in the space and has a flag too: leave one of them out")
    if "keep_last" in flags:
        say(
            "--keep-last is for a single run: "
            "a sweep's members keep their last and their best checkpoint"
        )
    options = {}
    for name in ("strategy", "trials", "seeds", "prune", "group", "storage"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.resume:
        config, space, options = supervisor.saved_options(args.run_dir, space, options)
        if args.preset not in (None, config.preset):
            raise JaxlmError(
                f"{args.run_dir} is a sweep of {config.preset}, not of {args.preset}: "
                "leave --preset out"
            )
        config = config.replace(**flags)
    else:
        config = starting_config(args.config, args.preset)
        try:
            config = config.replace(**flags)
        except JaxlmError:  # A flag may need a kind that only the space names, as a rate of adamw.
            config = config.replace(**spaces.first_values(space), **flags)
    space = spaces.with_flags(space, flags, config)
    with ExitStack() as stack:
        run_dir = args.run_dir
        if run_dir is None:
            run_dir = stack.enter_context(new_run(f"{config.preset}-sweep"))
        result = supervisor.sweep(
            config,
            space,
            run_dir=run_dir,
            resume=args.resume,
            workers=args.workers,
            data_dir=args.data_dir,
            **options,
        )
    if result.stopped_by:
        return SIGNALLED + result.stopped_by
    return 0 if result.best and not result.damaged else FAILED
