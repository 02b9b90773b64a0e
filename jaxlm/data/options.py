"""How a text is read: the kind of its tokens, its lines, its case, its vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxlm.base.fields import count
from jaxlm.base.files import read_bytes
from jaxlm.config.settings import DataConfig
from jaxlm.data.subwords import MOST_BYTES, Subwords
from jaxlm.data.text import read_errors
from jaxlm.data.tokens import WORDS, Bytes, Characters, Words, stripped, unwrapped
from jaxlm.data.vocab import Vocab


@dataclass(frozen=True)
class TextOptions(DataConfig):
    """What determines a corpus besides its text: the fields of `DataConfig`, and one more.

    Attributes:
        max_vocab: The most words or characters of the vocabulary.
    """

    max_vocab: int | None = count(None, "most words or characters of the vocabulary", low=2)

    @cached_property
    def kind(self) -> Words:
        """The kind of tokens. Subwords without a `tokenizer_file` have no model before `build`.

        Raises:
            DataError: A tokenizer's file cannot be used.
        """
        match self.tokens:
            case "characters":
                return Characters(self.normalize)
            case "bytes":
                return Bytes()
            case "subwords" if self.tokenizer_file:
                with read_errors(self.tokenizer_file):
                    model = read_bytes(Path(self.tokenizer_file), MOST_BYTES)
                return Subwords.read(model, self.tokenizer_file)
            case "subwords":
                return Subwords(b"")
        return WORDS

    def build(self, counts: Mapping[str, int]) -> Vocab:
        """Makes the vocabulary of a text.

        Args:
            counts: How often each unit of `kind` occurs in the training split.

        Raises:
            DataError: The text has too few pieces, or `max_vocab` is too small.
        """
        kind = self.kind
        if kind.kind in ("words", "characters"):
            return Vocab.build(counts, max_size=self.max_vocab, min_count=self.min_count, kind=kind)
        if self.tokens == "subwords" and not self.tokenizer_file:
            kind = Subwords.train(counts, self.pieces, self.piece_model)
        return Vocab(kind.names, kind)


def as_read(data: DataConfig, text: str) -> str:
    """Changes the case and the lines of a text, before it is cut into units, as options say.

    Args:
        data: The options `lowercase` and `lines`.
        text: The text, or a part of it that is cut before white space.
    """
    if data.lowercase:
        text = text.lower()
    match data.lines:
        case "stripped":
            return stripped(text)
        case "unwrap":
            return unwrapped(text)
    return text
