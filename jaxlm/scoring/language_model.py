"""A trained model with all that can be asked of it; each method is a function of the file named."""

from jaxlm.scoring import evaluation, generation, inspection, scorers
from jaxlm.scoring import minimal_pairs as pairs
from jaxlm.scoring import surprisal as tables
from jaxlm.scoring import syntaxgym as suites
from jaxlm.scoring.trained_model import TrainedModel


class LanguageModel(TrainedModel):
    """A trained model: perplexity, surprisal, minimal pairs, text and more.

    Scores come from the reader that `reader_of` returns; `predict`, `neighbors`, `states`,
    `adaptive` and text come from the network itself.
    """

    # Whole texts.
    perplexity = evaluation.perplexity
    evaluate = evaluation.evaluate
    tune = evaluation.tune

    # Sentences.
    scorer = scorers.scorer
    adaptive = scorers.adaptive
    scored = tables.scored
    surprisal = tables.surprisal
    surprisal_stream = tables.surprisal_stream
    word_surprisal = tables.word_surprisal
    word_surprisal_stream = tables.word_surprisal_stream
    minimal_pairs = pairs.minimal_pairs
    syntaxgym = suites.syntaxgym

    # Words and text.
    predict = generation.predict
    generate = generation.generate
    stream = generation.stream
    states = inspection.states
    neighbors = inspection.neighbors
