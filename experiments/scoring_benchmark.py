"""Words a second of surprisal and generation, and of loops in PyTorch (if installed) over the same
parameters.

    python experiments/scoring_benchmark.py [--data-dir DIR]

Reads Penn Treebank's test split, sentence by sentence, with an untrained model of the preset
`small` (speed does not depend on training). The loops in PyTorch are neural-complexity's, which
takes each sentence and then each word's distribution by itself, and word_language_model's, which
draws one word after the other.
"""

import argparse
import sys
import timeit
from collections.abc import Callable

import jax
import numpy as np

import jaxlm
from jaxlm.cli.ending import exit_code
from jaxlm.interop.exporting import torch_layers
from jaxlm.models import stack
from jaxlm.scoring.language_model import LanguageModel

# Runs, of which the fastest counts; words of a generated text; sentences that the loop in PyTorch
# scores.
REPEATS = 3
WORDS = 200
SENTENCES = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="where Penn Treebank's files are")
    args = parser.parse_args()
    corpus = jaxlm.load_corpus("ptb", data_dir=args.data_dir)
    config = jaxlm.preset("small").replace(vocab_size=len(corpus.vocab))
    lm = LanguageModel(stack.init_params(config.model, jax.random.key(0)), config, corpus.vocab, {})
    lines = " ".join(corpus.vocab.decode(corpus.test)).split(" <eos>")
    sentences = [line.split() for line in lines if line.split()]
    words = sum(map(len, sentences))

    def tell(label: str, count: int, run: Callable[[], object]) -> None:
        """A row of the fastest of some runs, after one that compiles."""
        run()
        seconds = min(timeit.repeat(run, number=1, repeat=REPEATS))
        print(f"| {label} | {count / seconds:,.0f} |", flush=True)

    print("| | words/s |\n|---|---|")
    for name, scoring in (
        ("with entropy and rank", lm.scorer(full=True)),
        ("alone", lm.scorer(full=False)),
    ):
        label = f"surprisal {name}, {len(sentences):,} sentences"
        tell(
            label,
            words,
            lambda scoring=scoring: list(lm.surprisal_stream(sentences, scoring=scoring)),
        )
    for samples in (1, 64):
        label = f"generation, {samples} samples"
        tell(
            label,
            samples * WORDS,
            lambda samples=samples: lm.generate(words=WORDS, samples=samples),
        )
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("(PyTorch is not installed: pip install torch)")
        return
    model = torch_model(torch, lm)
    some = [corpus.vocab.encode(["<eos>", *sentence]) for sentence in sentences[:SENTENCES]]
    count = sum(len(ids) - 1 for ids in some)
    for name, beam in (("", True), (", without its sort", False)):
        label = f"PyTorch, neural-complexity's loop{name}, {len(some):,} sentences"
        tell(label, count, lambda beam=beam: neural_complexity_loop(torch, model, some, beam))
    label = "PyTorch, word_language_model's loop"
    tell(label, WORDS, lambda: word_language_model_loop(torch, model, WORDS))


def torch_model(torch, lm: LanguageModel):
    """The model's parameters as PyTorch modules: an embedding, one nn.LSTM a layer, and a linear
    layer.

    Args:
        torch: the module PyTorch.
        lm: the model to copy.
    """

    def loaded(module, **arrays):
        module.load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        )
        return module

    embedding = lm.params["embedding"]
    softmax = lm.params["softmax"]
    layers = []
    for layer in torch_layers(lm.config.model, lm.params):
        sizes = layer["weight_ih"].shape[1], layer["weight_hh"].shape[1]
        layers.append(
            loaded(torch.nn.LSTM(*sizes), **{f"{name}_l0": value for name, value in layer.items()})
        )
    linear = loaded(
        torch.nn.Linear(*softmax["kernel"].shape), weight=softmax["kernel"].T, bias=softmax["bias"]
    )
    return loaded(torch.nn.Embedding(*embedding.shape), weight=embedding), layers, linear


def torch_logits(model, ids, states):
    """The logits after each word, and the layers' states after the last.

    Args:
        model: what `torch_model` returns.
        ids: token ids of one row, [T, 1].
        states: the state of each layer.
    """
    embedding, layers, linear = model
    x = embedding(ids)
    new = []
    for layer, state in zip(layers, states, strict=True):
        x, state = layer(x, state)
        new.append(state)
    return linear(x)[:, 0], new


def neural_complexity_loop(torch, model, sentences, beam: bool) -> list[tuple[float, float]]:
    """Surprisal and entropy in bits of each word, from sentences' ids, as its `main.py` finds them:
    row by row.

    With `beam` each row is first sorted into its most probable words, which by default are all of
    them.

    Args:
        torch: the module PyTorch.
        model: what `torch_model` returns.
        sentences: token ids, a list a sentence.
        beam: whether the words of each row are sorted first.
    """
    functional = torch.nn.functional

    def beamed(row):
        if not beam:
            return row
        values, places = torch.topk(row, len(row), 0)
        return torch.full_like(row, -torch.inf).scatter(0, places, values)

    def entropy(row):
        row = beamed(row)
        terms = functional.softmax(row, 0).data * functional.log_softmax(row, 0).data
        return torch.Tensor([-torch.sum(terms[terms == terms])])

    found = []
    for ids in sentences:
        ids = torch.from_numpy(ids.astype(np.int64))
        logits, _ = torch_logits(model, ids[:-1, None], [None] * len(model[1]))
        rows = torch.unbind(logits)
        targets = ids[1:]
        functional.cross_entropy(logits, targets, reduction="none").sum().item()
        entropies = torch.log2(torch.exp(torch.cat([entropy(row) for row in rows])))
        surprisals = torch.log2(
            torch.exp(torch.stack([-functional.log_softmax(beamed(row), 0) for row in rows]))
        )
        found += [
            (surprisals[place][int(target)].item(), entropies[place].item())
            for place, target in enumerate(targets)
        ]
    return found


def word_language_model_loop(torch, model, words: int) -> list[int]:
    """One word drawn after the other, as its `generate.py` does it.

    Args:
        torch: the module PyTorch.
        model: what `torch_model` returns.
        words: how many to draw.
    """
    word = torch.randint(len(model[0].weight), (1, 1))
    states = [None] * len(model[1])
    found = []
    with torch.no_grad():
        for _ in range(words):
            logits, states = torch_logits(model, word, states)
            log_p = torch.nn.functional.log_softmax(
                logits, dim=1
            )  # its model's forward ends with it
            odds = log_p.squeeze().div(1.0).exp()
            word.fill_(torch.multinomial(odds, 1)[0])
            found.append(int(word))
    return found


if __name__ == "__main__":
    sys.exit(exit_code(main))
