"""The corpus of a config, and whether the two fit each other."""

from pathlib import Path

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.config.config import Config
from jaxlm.data.corpora import open_corpus, reload_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.data.options import TextOptions
from jaxlm.data.vocab import Vocab
from jaxlm.data.windows import check_fits


def with_corpus(
    config: Config,
    corpus: str | Path | Corpus | None,
    data_dir: str | Path | None = None,
    vocab: Vocab | None = None,
) -> tuple[Config, Corpus]:
    """Loads the corpus of a config.

    Args:
        config: The run's config.
        corpus: A Corpus, or what `--corpus` takes; None: the config's own.
        data_dir: The folder of Penn Treebank's files.
        vocab: A resumed run's vocabulary, where it may be another than its text gives.

    Returns:
        The config with the corpus's vocabulary size, and with the place where it was found; the
        corpus.

    Raises:
        JaxlmError: The corpus cannot be used, or has more words or fewer tokens than the config
            allows.
    """
    most = config.model.vocab_size
    if not isinstance(corpus, Corpus):
        spec = config.data.corpus if corpus is None else str(corpus)
        options = config.data.options
        if vocab:
            corpus = reload_corpus(spec, vocab, data_dir=data_dir, **options)
        else:
            corpus = open_corpus(spec, TextOptions(max_vocab=most, **options), data_dir)
    if len(corpus.vocab) > most and not corpus.vocab.tokens.names:
        raise JaxlmError(
            f"the corpus has {len(corpus.vocab):,} words and vocab_size is {most:,}: raise it, or "
            f"load the corpus with max_vocab={most}"
        )
    counts = config.train
    for split, epochs in (("train", counts.epochs), ("valid", 0)):
        tokens = len(getattr(corpus, split))
        check_fits(split, tokens, counts.batch_size, counts.bptt_length, epochs)
    if len(corpus.test) < 2:
        raise DataError(
            f"the test split has {len(corpus.test)} tokens, and a test reads at least 2: "
            "use more text"
        )
    config = config.replace(vocab_size=len(corpus.vocab), corpus=corpus.spec, **corpus.options)
    return config, corpus
