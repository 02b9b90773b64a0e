"""The surprisal of spans of characters, whose ends may cut a token."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError
from jaxlm.scoring.generation import next_word
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.sentences import Encoded
from jaxlm.scoring.surprisal import UNITS, Surprisals, WordSurprisals
from jaxlm.scoring.token_scores import TINY


def span_surprisal(
    lm: LanguageModel,
    sentences: Sequence[str],
    spans: Sequence[tuple[int, int]],
    where: Callable[[int], str] = "sentence {}".format,
    **options: Any,
) -> WordSurprisals:
    """The surprisal of each line's span, (start, end) in characters (Giulianelli et al. 2024, arXiv:2410.02691).

    It is -log p(the sentence begins with the text up to the span's end) / p(... up to its beginning), whatever follows:
    where a span cuts a token, all tokens that begin alike are summed. So it matters which white space around a word is
    in its span, except where tokens are words.

    Options are `unit`, `oov` and `tokenizer` of `SurprisalOptions`; `where` names a sentence in an error. Raises
    DataError where a span is not within its sentence, or cuts a token that is a word.
    """
    found = [*lm.scored(list(sentences), where=where, eos=True, boundary="published", **options)]
    table, vocab = Surprisals.joined(part for _, _, part in found), lm.vocab
    rows, offset, unit = [], 0, UNITS[table.unit]
    encoded = (one for _, part, _ in found for one in part)
    for number, (text, (start, end), one) in enumerate(zip(sentences, spans, encoded, strict=True), 1):
        text = text if vocab.kind == "words" else "".join(vocab.tokens.pieces(one.tokens))
        if not 0 <= start < end <= len(text):
            raise DataError(f"{where(number)}: the span {start} to {end} is not within the {len(text)} characters")
        ends, cuts = _ends(vocab, text, one), []
        for place in (start, end):
            token = max(k for k, at in enumerate(ends) if at <= place)
            part = text[ends[token] : place] if token < len(one.tokens) else ""
            if vocab.kind == "words" and part.strip():
                cut = f"the span {start} to {end} cuts a word of {text!r:.80}"
                raise DataError(f"{where(number)}: {cut}: give whole words")
            nats = 0.0 if vocab.kind == "words" or not part else _nats(lm, one.ids[: token + 1], part.encode())
            cuts.append((token, nats / unit))
        (first, before), (last, after) = cuts
        piece = slice(offset + first, offset + max(last + (after > 0), first + 1))
        surprisal = table.surprisal[offset + first : offset + last].sum() + after - before
        entropies = table.entropy[piece.start], table.entropy_reduction[piece].sum()
        words = text[start:end], " ".join(table.token[piece])
        rows.append((number, 1, *words, table.oov[piece].any(), surprisal, *entropies))
        offset += len(one.tokens) + 1
    kept = zip(*rows, strict=True)
    columns: list[Any] = [[*one] if isinstance(one[0], str) else np.array(one) for one in kept]
    return WordSurprisals(*columns, unit=table.unit)


def _ends(vocab: Vocab, text: str, sentence: Encoded) -> list[int]:
    """Where the text that comes before each token, and before the end of the line, ends: [n + 1], from 0."""
    if vocab.kind != "words":
        data = [vocab.token_bytes[place] for place in sentence.ids[1:-1]]
        return np.cumsum([0, *(sum(byte & 0xC0 != 0x80 for byte in one) for one in data)]).tolist()
    ends, end = [0], 0
    for word, tokens in zip(text.split(), np.diff(sentence.starts), strict=True):
        end = text.index(word, end) + len(word)
        ends += [end] * tokens
    return ends


def _nats(lm: LanguageModel, ids: np.ndarray, part: bytes) -> float:
    """-log p that the token after some ids begins with a part."""
    alike = [data.startswith(part) for data in lm.vocab.token_bytes]
    return -math.log(max(float(next_word(lm.network, ids)[alike].sum()), TINY))
