"""What `jaxlm` prints without a verb: a command for each task, or a line for each verb."""

from jaxlm.cli.ending import EXIT_CODES
from jaxlm.cli.verbs import VERBS

TASKS = {
    "train a model": "jaxlm train",
    "on your own text": "jaxlm train --corpus novel.txt",
    "resume a stopped run": "jaxlm train --resume",
    "search hyperparameters": "jaxlm sweep --set learning_rate=0.5,1,2",
    "evaluate": "jaxlm evaluate RUN",
    "predict the next word": 'jaxlm predict RUN "the company said"',
    "surprisal of every word": "jaxlm surprisal RUN stimuli.txt",
    "generate text": 'jaxlm generate RUN "the company"',
    "show what a run holds": "jaxlm info RUN",
    "a page of its curves": "jaxlm report RUN",
    "load others' models": "jaxlm import model.pt --vocab vocab.txt RUN",
}


def tasks() -> str:
    """A command for each task."""
    return f"""\
jaxlm trains and uses recurrent language models. RUN is the directory of a run.

{_table(TASKS)}

All verbs: jaxlm --help    Flags: jaxlm VERB --help    All flags: --help-all"""


def verbs() -> str:
    """A line for each verb."""
    return f"""\
usage: jaxlm VERB ...    (jaxlm VERB --help explains one; jaxlm alone: by task)
{_table({one.name: one.help for one in VERBS.values()})}

{EXIT_CODES}"""


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
