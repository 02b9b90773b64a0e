"""jaxlm's models in the lm-evaluation-harness (extra `lm-eval`).

    python -m jaxlm.lm_eval --model jaxlm --model_args run=RUN --tasks TASK

Importing this module registers the model `jaxlm` beside the harness's own; as a program it is the
harness itself. A request is split as the run's text was, or by `tokenizer=space` (at white space)
or `tokenizer=ptb`.
"""

from typing import Any

import numpy as np

try:
    # The harness registers its own models where this is imported, and else only in an empty
    # registry.
    import lm_eval.models  # noqa: F401  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "jaxlm.lm_eval needs lm-evaluation-harness: pip install 'jaxlm[lm-eval]'", name="lm_eval"
    ) from None

from jaxlm.runs.loading import load

# The names under which tasks give the most tokens of a continuation.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
MOST_WORDS = 256  # of a continuation, where a task does not say


@register_model("jaxlm")
class JaxLM(TemplateLM):
    """A run as the harness's language model."""

    def __init__(
        self,
        run: str,
        checkpoint: str = "last",
        tokenizer: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        """Loads a run.

        Args:
            run: The run's directory.
            checkpoint: `last`, `best` or a step.
            tokenizer: `space` or `ptb`; by default as the text that the run was trained on. (The
                harness itself reads "none" as an absent argument.)
            batch_size: Ignored, as are the next two, which the harness passes: requests are scored
                one at a time.
            max_batch_size: Ignored.
            device: Ignored.

        Raises:
            CheckpointError: There is no such checkpoint, or it is damaged.
        """
        super().__init__()
        self._lm = load(str(run), str(checkpoint))
        self._tokenizer = "none" if tokenizer == "space" else tokenizer
        self._score = self._lm.scorer(boundary="published")

    @property
    def eot_token_id(self) -> int:
        """The id of `<eos>`, from which a text without context is predicted."""
        return self._lm.vocab.eos

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        **_: Any,
    ) -> list[int]:
        """Encodes a text.

        Args:
            string: The text.
            add_special_tokens: Ignored: jaxlm has none.

        Returns:
            Ids of its tokens. Words outside the vocabulary are `<unk>`, newlines `<eos>`. A text of
            punctuation alone, which a tokenizer may drop, is one `<unk>`: an empty answer of a
            multiple choice would have probability 1.
        """
        vocab = self._lm.vocab
        ids = vocab.encode(self._lm.tokens(string, self._tokenizer)).tolist()
        if not ids and string.strip() and vocab.unknown_id >= 0:
            return [vocab.unknown_id]
        return ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Scores continuations.

        Args:
            requests: For each the texts (context, continuation), and the ids of both.

        Returns:
            For each its log-probability in nats, and whether each of its tokens is the likeliest.
        """
        answers = []
        for (_context, text), context_ids, ids in requests:
            # A tokenizer may leave no id of the continuation, or join it to the context's last
            # word.
            continuation = ids or self.tok_encode(text)
            if not continuation:
                answers.append((0.0, True))
                continue
            tokens = [*(context_ids or [self.eot_token_id]), *continuation]
            scores = self._score([np.array(tokens, np.int32)]).rows(slice(-len(continuation), None))
            answers.append((-float(scores.nats.sum()), bool((scores.rank == 1).all())))
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Scores whole texts.

        Args:
            requests: Their `args` are (text,).
            disable_tqdm: Ignored.

        Returns:
            The log-probability of each text in nats, from `<eos>` on.
        """
        texts = [(("", ""), [], self.tok_encode(request.args[0])) for request in requests]
        return [log_p for log_p, _ in self._loglikelihood_tokens(texts)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues texts up to a stop string or a number of words.

        Options and their defaults are those of the harness's own models: 256 words, greedy; a
        temperature above 0 samples, unless `do_sample` says otherwise. A sample's seed is the
        option `seed`, else the place of the request, so that a repeated request gives another text.

        Args:
            requests: Their `args` are (text, options).
            disable_tqdm: Ignored.

        Returns:
            The continuations, without the stop string.
        """
        return [self._generated(place, *request.args) for place, request in enumerate(requests)]

    def _generated(
        self,
        place: int,
        context: str,
        options: dict[str, Any],
    ) -> str:
        """The continuation of one request of `generate_until`, the `place`-th."""
        stops = options.get("until") or []
        if isinstance(stops, str):
            stops = [stops]
        lengths = (options[name] for name in LENGTHS if options.get(name) is not None)
        words = int(next(lengths, MOST_WORDS))
        if words < 1:
            return ""
        do_sample = options.get("do_sample")
        temperature = 0.0
        if do_sample is not False:
            temperature = float(options.get("temperature", bool(do_sample)))
        sampling = {}
        if temperature:
            sampling = {name: options[name] for name in ("top_k", "top_p") if options.get(name)}
        stream = self._lm.stream(
            self._lm.tokens(context, self._tokenizer),
            tokens=words,
            temperature=temperature,
            seed=int(options.get("seed", place)),
            **sampling,
        )
        text = ""
        for piece in self._lm.vocab.tokens.pieces(name for name, _ in stream):
            text += piece
            ends = [text.find(stop) for stop in stops if stop in text]
            if ends:
                return text[: min(ends)]
        return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
