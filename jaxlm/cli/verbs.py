"""The table of verbs: where each is defined, and its line in the help.

`jaxlm --help` reads this table alone. A verb's module, and JAX with it, is imported once the
command line names the verb.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from jaxlm.cli.arguments import Command, Parser


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: What one types after `jaxlm`.
        place: MODULE:FUNCTION below jaxlm/cli, where `@command` defines it.
        help: Its line in `jaxlm --help`.
    """

    name: str
    place: str
    help: str

    def command(self) -> Command:
        """Imports the verb's module, and returns what `@command` made there."""
        module, _, function = self.place.partition(":")
        return getattr(import_module(f"jaxlm.cli.{module}"), function)

    def parser(self, arguments: Sequence[str] = ()) -> Parser:
        """The parser of the arguments after the verb.

        Args:
            arguments: The arguments themselves: kinds and presets among them decide which flags
                help shows.

        Returns:
            The parser; it leaves the verb's function in the namespace, as `action`.
        """
        command = self.command()
        parser = Parser(
            arguments, prog=f"jaxlm {self.name}", description=self.help, epilog=command.epilog
        )
        parser.set_defaults(action=command.action)
        command.add_to(parser)
        return parser


_ROWS = (  # in the order of the help
    ("train", "training:train", "train a model"),
    ("prepare", "converting:prepare", "convert a text once into a folder of ids, of any size"),
    ("ngram", "converting:ngram", "make an n-gram model of a text, to compare runs with"),
    ("reproduce", "training:reproduce", "train a run again, and compare every byte with it"),
    ("import", "converting:import_", "make a run of a model of PyTorch, TensorFlow 1 or a hub"),
    ("sweep", "sweeping:sweep", "train many points of a space, and find the best"),
    ("evaluate", "using:evaluate", "perplexity of a trained model on a split or on a text file"),
    ("compare", "using:compare", "which of two runs, or groups of seeds, predicts a text better"),
    ("perplexity", "using:perplexity", "perplexity of a text given here, or on standard input"),
    ("predict", "using:predict", "the most probable next words after a text"),
    ("neighbors", "using:neighbors", "the words whose embeddings are nearest to a word's"),
    ("generate", "using:generate", "text that continues a prompt"),
    ("info", "info:info", "show a run's results, config, corpus, checkpoints and problems"),
    ("plot", "drawing:plot", "draw the learning curve and a map of the embedding"),
    ("report", "drawing:report", "write a page of HTML about runs and sweeps"),
    ("export", "converting:export", "write a run's model for another program"),
    ("surprisal", "scoring:surprisal", "the surprisal of every word of a text"),
    ("states", "scoring:states", "the state of every layer after each word, in an .npz file"),
    ("minimal-pairs", "scoring:minimal_pairs", "accuracy on minimal pairs in BLiMP's format"),
    ("syntaxgym", "scoring:syntaxgym", "results of SyntaxGym test suites"),
    ("rescore", "people:rescore", "the best of a recogniser's n-best lists"),
    ("humanlike", "people:humanlike", "what surprisal explains of reading times"),
    ("babylm", "people:babylm", "scores of BabyLM's zero-shot tests, BLiMP among them"),
)
VERBS = {name: Verb(name, place, help) for name, place, help in _ROWS}
