"""jaxlm's models in the lm-evaluation-harness (extra `lm-eval`), which this module starts with them registered.

    python -m jaxlm.lm_eval --model jaxlm --model_args run=RUN --tasks TASK

A request is split as the run's text was, or by `tokenizer=space` (at white space) or `tokenizer=ptb`.
"""

from typing import Any

import numpy as np

try:
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "jaxlm.lm_eval needs lm-evaluation-harness: pip install 'jaxlm[lm-eval]'", name="lm_eval"
    ) from None

from jaxlm.runs.loading import load

LENGTHS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # names of one option


@register_model("jaxlm")
class JaxLM(TemplateLM):
    """A run as the harness's language model.

    Args:
        run: the run's directory.
        checkpoint: `last`, `best` or a step.
        tokenizer: space or ptb (default: as the text that the run was trained on; the harness itself reads "none").
        batch_size, max_batch_size, device: what the harness passes; requests are scored one at a time.
    """

    def __init__(
        self,
        run: str,
        checkpoint: str = "last",
        tokenizer: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        self._lm = load(str(run), str(checkpoint))
        self._tokenizer = "none" if tokenizer == "space" else tokenizer
        self._score = self._lm.scorer(boundary="published")

    @property
    def eot_token_id(self) -> int:
        """The id of `<eos>`, from which a text without context is predicted."""
        return self._lm.vocab.eos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text's words; words outside the vocabulary are `<unk>`, newlines `<eos>`.

        So is a text of marks alone, which a tokenizer drops: no choice may be empty, as it would be certain.
        """
        vocab = self._lm.vocab
        ids = vocab.encode(self._lm.tokens(string, self._tokenizer)).tolist()
        if not ids and string.strip() and vocab.unknown_id >= 0:
            return [vocab.unknown_id]
        return ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """For each (text, context, continuation) the continuation's log-probability, and whether it is likeliest."""
        found = []
        for (_before, text), context, ids in requests:
            continuation = ids or self.tok_encode(
                text
            )  # (none is left of what a tokenizer drops, or joins to a word)
            if not continuation:
                found.append((0.0, True))
                continue
            whole = np.array([*(context or [self.eot_token_id]), *continuation], np.int32)
            scores = self._score([whole]).rows(slice(-len(continuation), None))
            found.append((-float(scores.nats.sum()), bool((scores.rank == 1).all())))
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, from `<eos>` on."""
        asked = [(("", ""), [], self.tok_encode(request.args[0])) for request in requests]
        return [log_p for log_p, _ in self._loglikelihood_tokens(asked)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each text, up to a stop string or so many words; greedy unless it is to sample.

        A task's names of options and their defaults are read as the harness's own models read them: 256 words; a
        temperature above 0 samples, where `do_sample` does not say.
        Samples have the option `seed`, else each request its own, so that one that is repeated gives another text.
        """
        return [self._generated(place, *request.args) for place, request in enumerate(requests)]

    def _generated(self, place: int, context: str, options: dict[str, Any]) -> str:
        stops = options.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        lengths = [options[name] for name in LENGTHS if options.get(name) is not None]
        words = int(lengths[0] if lengths else 256)
        seed = int(options.get("seed", place))
        if words < 1:
            return ""
        sampled = options.get("do_sample")
        temperature = (
            0.0 if sampled is False else float(options.get("temperature", 1.0 if sampled else 0.0))
        )
        limits = {
            name: options[name] for name in ("top_k", "top_p") if temperature and options.get(name)
        }
        text = ""
        prompt = self._lm.tokens(context, self._tokenizer)
        drawn = self._lm.stream(prompt, tokens=words, temperature=temperature, seed=seed, **limits)
        for piece in self._lm.vocab.tokens.pieces(name for name, _ in drawn):
            text += piece
            ends = [text.find(stop) for stop in stops if stop in text]
            if ends:
                return text[: min(ends)]
        return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
