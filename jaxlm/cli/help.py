"""What `--help` shows: one line for each flag, so that it fits a screen; `--help-all` shows everything."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping
from itertools import zip_longest

FLAGS = 28  # the widest column of flags
FIELD = "field:"  # begins the name under which a field's value is parsed
_MARK = "only in --help-all"
TASKS = (
    ("train a model", "jaxlm train"),
    ("on your own text", "jaxlm train --corpus novel.txt"),
    ("resume what was stopped", "jaxlm train --resume"),
    ("search hyperparameters", "jaxlm sweep --set learning_rate=0.5,1,2"),
    ("evaluate", "jaxlm evaluate RUN"),
    ("predict the next word", 'jaxlm predict RUN "the company said"'),
    ("surprisal of every word", "jaxlm surprisal RUN stimuli.txt"),
    ("generate text", 'jaxlm generate RUN "the company"'),
    ("what a run holds", "jaxlm info RUN"),
    ("a page of its curves", "jaxlm report RUN"),
    ("load others' models", "jaxlm import model.pt --vocab vocab.txt RUN"),
)


def later(action: argparse.Action) -> argparse.Action:
    """Leaves an argument to --help-all, and returns it."""
    vars(action)[_MARK] = True
    return action


def tasks() -> str:
    """What `jaxlm` alone prints: a command for each task."""
    width = max(len(task) for task, _ in TASKS)
    return "\n".join(
        [
            "jaxlm trains and uses recurrent language models. RUN is the directory of a run.",
            "",
            *(f"  {task:<{width}}  {command}" for task, command in TASKS),
            "",
            "All verbs: jaxlm --help    All flags of one: jaxlm VERB --help, and --help-all",
            "",
        ]
    )


def verbs(found: Mapping[str, str], epilog: str) -> str:
    """What `jaxlm --help` prints.

    Args:
        found: the verbs, with a line for each.
        epilog: printed at the end.
    """
    width = max(map(len, found))
    lines = [f"  {name:<{width}}  {_cut(line, _columns() - width - 4)[0]}" for name, line in found.items()]
    return "\n".join(
        [
            "usage: jaxlm VERB ...    (jaxlm VERB --help explains one; jaxlm alone: by task)",
            "",
            *lines,
            "",
            epilog.rstrip(),
            "",
        ]
    )


def brief(parser: argparse.ArgumentParser) -> str:
    """The arguments of a parser, but those that are left to --help-all; and its epilog's first paragraph.

    Each has one line, where more would not fit the terminal.
    """
    whole = _brief(parser, wrapped)
    return whole if whole.count("\n") < shutil.get_terminal_size().lines else _brief(parser, _cut)


def _brief(parser: argparse.ArgumentParser, fitted: Callable[[str, int], list[str]]) -> str:
    some_later = any(_MARK in vars(action) for action in parser._actions)
    groups: dict[str, list[argparse.Action]] = {}
    for group in parser._action_groups:
        for action in filter(_is_brief, group._group_actions):
            title = "fields used most" if some_later and action.dest.startswith(FIELD) else group.title or ""
            groups.setdefault(title, []).append(action)
    names = {action: _invocation(action) for shown in groups.values() for action in shown}
    width = max(map(len, names.values()), default=0)
    more = "   (--help-all tells more)" if some_later or fitted is _cut else ""
    usage = f"usage: {' '.join([parser.prog, *_positional(parser)])} [options]"
    usage += more if len(usage + more) <= _columns() else f"\n{more.strip()}" if more else ""
    lines = [
        usage,
        "",
        *(
            part
            for line in (parser.description or "").splitlines()
            for part in (wrapped(line, _columns()) if line[:1].strip() else [line])
        ),
    ]
    for title, shown in groups.items():
        lines += ["", *([] if title in ("positional arguments", "options") else [f"{title}:"])]
        for action in shown:
            text = fitted(_help(parser, action), _columns() - width - 4) or [""]
            lines += [
                f"  {start:<{width}}  {part}".rstrip()
                for start, part in zip_longest([names[action]], text, fillvalue="")
            ]
    return "\n".join([*lines, *(["", parser.epilog.split("\n\n")[0]] if parser.epilog else []), ""])


def _positional(parser: argparse.ArgumentParser) -> list[str]:
    """The arguments without a flag, and those flags that must be given."""
    formatter = parser._get_formatter()
    return [
        *(
            formatter._format_args(action, str(action.metavar or action.dest))
            for action in parser._get_positional_actions()
        ),
        *(_invocation(action) for action in parser._get_optional_actions() if action.required),
    ]


def _is_brief(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and _MARK not in vars(action) and action.dest != "help"


def _invocation(action: argparse.Action) -> str:
    """A flag with its value, such as `--epochs N`."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    flag = action.option_strings[-1 if len(action.option_strings[0]) == 2 else 0]
    if action.nargs == 0:
        return flag
    value = str(action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else "X"))
    return f"{flag} {value}" if len(flag) + 1 + len(value) <= FLAGS else f"{flag} WHICH"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return " ".join(parser._get_formatter()._expand_help(action).split()) if action.help else ""


def wrapped(text: str, room: int) -> list[str]:
    """Lines that end between words, never within `zaremba-medium`."""
    return textwrap.wrap(text, room, break_on_hyphens=False)


def _cut(text: str, room: int) -> list[str]:
    """As much of a text as a line has room for, up to a mark of punctuation, and the default where it fits too."""
    if len(text) <= room:
        return [text]
    default = re.search(r"(?:\(|; )(default [^()]*)\)$", text)
    end = f" ({default[1]})" if default else ""
    for most, tail in ((room - len(end), end), (room, "")):
        ends = [
            found.start()
            for found in re.finditer(r" \(|; |(?<!none): |$", text)
            if found.start() <= most and text.count("(", 0, found.start()) == text.count(")", 0, found.start())
        ]
        if ends and ends[-1] >= most // 3:
            return [text[: ends[-1]] + tail]
    return [f"{text[: room - 3].rsplit(' ', 1)[0].rstrip(',')}..."]


def _columns() -> int:
    return max(40, min(shutil.get_terminal_size().columns, 120))
