"""How much of a text a vocabulary does not know. Unknown words are easy to predict: they make a perplexity good."""

from collections.abc import Mapping

from jaxlm.data.vocab import UNK

MOST_UNKNOWN = 0.05  # the share of unknown tokens from which a result is warned about


def unknown_text(share: float) -> str:
    """A share of unknown tokens as it stands beside a perplexity.

    >>> unknown_text(0.0582), unknown_text(0.0001), unknown_text(0)
    ('5.8% <unk>', '<0.1% <unk>', '0% <unk>')
    """
    return f"{'<0.1' if 0 < share < 0.0005 else f'{100 * share:.3g}' if share >= 0.1 else f'{100 * share:.2g}'}% {UNK}"


def unknown_warning(share: float, text: str) -> str | None:
    """A sentence for the user where too much of a text is unknown: its perplexity compares with no other; else None."""
    if share <= MOST_UNKNOWN:
        return None
    return (
        f"warning: {100 * share:.1f}% of {text} are words that the model does not know, read as {UNK}: the result "
        f"compares with that of no other vocabulary"
    )


def unlearned_warning(shares: Mapping[str, float]) -> list[str]:
    """A warning if valid has a far larger share of unknown tokens than train, or over 10%; else nothing."""
    if shares["valid"] <= 2 * shares["train"]:
        warning = unknown_warning(shares["valid"], "valid") if shares["valid"] > 2 * MOST_UNKNOWN else None
        return [warning] if warning else []
    return [
        f"{shares['valid']:.1%} of the tokens of valid are {UNK}, against {shares['train']:.1%} of those of train: the "
        f"model hardly learns {UNK}. Raise min_count (2 or more), or take other tokens, such as subwords or bytes"
    ]
