"""A causal model of `transformers`, such as GPT-2, that scores words beside a run."""

import math
from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from jaxlm.base.errors import DataError, JaxlmError

_SPACES = ("\u0120", "\u2581", "\u010a", " ", "\n")  # with which the name of a piece begins


class HubModel:
    """A causal model with its tokenizer, by which words are scored in white space.

    No code of a hub is executed, and parameters are read from safetensors alone.
    """

    def __init__(self, name: str):
        """Loads the model, which transformers downloads where it is no folder.

        Args:
            name: A name on the hub, such as gpt2, or a folder.

        Raises:
            JaxlmError: transformers or PyTorch is missing.
            DataError: There is no such model, or it cannot be loaded without its own code.
        """
        try:
            self._torch = import_module("torch")
            transformers = import_module("transformers")
        except ImportError as error:
            raise JaxlmError(
                f"a model of the hub needs transformers and PyTorch ({error}): "
                "pip install 'jaxlm[hub]'"
            ) from None
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)
        transformers.logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            model = transformers.AutoModelForCausalLM.from_pretrained(name, use_safetensors=True)
        except Exception as error:  # the library and its files raise anything
            line = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise DataError(
                f"the model {name} cannot be loaded ({line[:300]}): name a causal model of the "
                "hub, such as gpt2, or a folder with one"
            ) from None
        self._name = name
        self._model: Any = model.eval()
        names = self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))
        self._begins = np.array([str(piece).startswith(_SPACES) for piece in names])
        end = self._tokenizer.eos_token_id
        start = self._tokenizer.bos_token_id
        self._start = end if start is None else start
        if self._start is None:
            raise DataError(f"the tokenizer of {name} has no token that begins a text")
        if end is not None:
            self._begins[end] = True

    def word_nats(
        self,
        words: Sequence[str],
        where: str,
        corrected: bool = True,
    ) -> np.ndarray:
        """-ln p of each word of a line, given the words before it and the beginning of a text.

        Args:
            words: The words [W], between which white space stands.
            where: Names the line in an error.
            corrected: Include the boundary after a word, given the one before it (`sentences.py`).

        Returns:
            The nats [W].

        Raises:
            DataError: The line is longer than the model's context.
        """
        pieces = []
        for place, word in enumerate(words):
            text = f" {word}" if place else word
            pieces.append(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = [self._start, *chain.from_iterable(pieces)]
        most = getattr(self._model.config, "max_position_embeddings", math.inf)
        if len(ids) > most:
            raise DataError(
                f"{where} has {len(ids):,} pieces for {self._name}, which reads {most:,}: "
                "give shorter lines"
            )
        with self._torch.no_grad():
            logits = self._model(self._torch.tensor([ids])).logits[0].double()
        log_p = logits.log_softmax(-1).numpy()  # after each piece [pieces + 1, V]
        ends = [*accumulate(map(len, pieces), initial=0)]
        piece_nats = -log_p[np.arange(len(ids) - 1), ids[1:]]
        nats = np.array([piece_nats[start:end].sum() for start, end in pairwise(ends)])
        if corrected:
            begins = self._begins[: log_p.shape[1]]
            p_begins = np.exp(log_p[ends][:, : len(begins)][:, begins]).sum(1)
            boundary = -np.log(p_begins)
            boundary[0] = 0.0  # a word begins where a line does
            nats += np.diff(boundary)
        return nats

    def column(
        self,
        sentence_id: Sequence[int],
        words: Sequence[str],
        corrected: bool = True,
    ) -> np.ndarray:
        """The nats of each word of a table, whose rows are the words of sentences in their order.

        Args:
            sentence_id: The number of each word's sentence.
            words: The words.
            corrected: As in `word_nats`.

        Raises:
            DataError: A sentence is longer than the model's context.
        """
        edges = np.flatnonzero(np.diff(np.asarray(sentence_id), prepend=-1, append=-1)).tolist()
        nats = []
        for start, end in pairwise(edges):
            where = f"sentence {sentence_id[start]}"
            nats.append(self.word_nats(words[start:end], where, corrected))
        return np.concatenate(nats)
