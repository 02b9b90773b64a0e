"""Named recipes."""

from jaxlm.config.config import Config
from jaxlm.config.settings import TrainConfig
from jaxlm.errors import JaxlmError
from jaxlm.fields import nearest
from jaxlm.models.lstm import LSTM
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.optimizers.descent import ASGD, SGD
from jaxlm.optimizers.muon import Muon
from jaxlm.published.lamb import LambAdam
from jaxlm.schedules import Cosine, Piecewise


def preset(name: str) -> Config:
    """A named recipe, one of PRESETS.

    Raises:
      JaxlmError: the name is unknown.

    >>> preset("zaremba-medium").model.hidden_sizes
    (650, 650)
    """
    if name not in PRESETS:
        raise JaxlmError(f"unknown preset {name!r}{nearest(name, list(PRESETS))}")
    return PRESETS[name]


def _tutorial(
    name: str,
    *,
    init: float,
    hidden: tuple[int, ...],
    embedding: int,
    keep: float | None = None,
    decay: float,
    hold: int,
    epochs: int,
    batch: int = 20,
    steps: int = 20,
    clip: float = 5.0,
) -> Config:
    """One of the configs of TensorFlow 1's PTB tutorial (Zaremba et al. 2014, arXiv:1409.2329)."""
    return Config(
        model=LSTM(
            embedding_size=embedding, hidden_sizes=hidden, init_scale=init, keep_embedding=keep, keep_output=keep
        ),
        optimizer=SGD(learning_rate=1.0, clip_norm=clip),
        schedule=Piecewise(decay=decay, hold=float(hold)),
        train=TrainConfig(batch_size=batch, bptt_length=steps, epochs=epochs),
        preset=name,
    )


def _mogrifier() -> Config:
    """The Mogrifier of Penn Treebank (Melis et al. 2020, arXiv:1909.01792): 24M parameters, its published settings."""
    return Config(
        model=Mogrifier(
            embedding_size=912,
            hidden_sizes=(912, 912),
            tied=True,
            skip=True,
            rounds=5,
            rank=84,
            input_gate="capped",
            forget_bias=1.0,
            init_scale=0.0574,  # as varied as 1 / 912, the published initial variance
            keep_embedding=1 - 0.729,
            keep_output=1 - 0.291,
            keep_last_output=1 - 0.716,
            keep_state=1 - 0.387,
            keep_carry=1 - 0.01,
        ),
        optimizer=LambAdam(
            learning_rate=0.0023, beta1=0.0, clip_norm=10.0, l2_penalty=2.5e-4, nonmonotone=50, average_latest=800
        ),
        schedule=Piecewise(decay=1.0),
        train=TrainConfig(batch_size=64, bptt_length=70, epochs=966),  # about 1,000 turns of 200 steps
        preset="mogrifier",
    )


def _tied_fast() -> Config:
    """The recipe of experiments/speedrun.py: how each number was found is in docs/speedrun.md."""
    return Config(
        model=LSTM(embedding_size=256, hidden_sizes=(256,), tied=True, init_scale=0.05),
        optimizer=Muon(learning_rate=0.025, adam_learning_rate=0.02, clip_norm=1.0),
        schedule=Cosine(final=0.0),
        train=TrainConfig(batch_size=40, bptt_length=35, epochs=2),
        preset="tied-fast",
    )


PRESETS: dict[str, Config] = {
    config.preset: config
    for config in (
        _tutorial("small", init=0.1, hidden=(256, 128), embedding=200, decay=0.5, hold=4, epochs=15, batch=60),
        _tutorial("zaremba-small", init=0.1, hidden=(200, 200), embedding=200, decay=0.5, hold=4, epochs=13),
        _tutorial(
            "zaremba-medium",
            init=0.05,
            hidden=(650, 650),
            embedding=650,
            keep=0.5,
            decay=0.8,
            hold=6,
            epochs=39,
            steps=35,
        ),
        _tutorial(
            "zaremba-large",
            init=0.04,
            hidden=(1500, 1500),
            embedding=1500,
            keep=0.35,
            decay=1 / 1.15,
            hold=14,
            epochs=55,
            steps=35,
            clip=10.0,
        ),
        # Merity et al. 2018, arXiv:1708.02182: validation 61.2, test 58.8 on Penn Treebank.
        Config(
            model=LSTM(
                embedding_size=400,
                hidden_sizes=(1150, 1150, 400),
                tied=True,
                init_scale=0.1,
                torch_init=True,
                locked_dropout=True,
                keep_words=0.9,
                keep_embedding=0.6,
                keep_output=0.75,
                keep_last_output=0.6,
                keep_recurrent_weights=0.5,
            ),
            optimizer=ASGD(
                learning_rate=30.0,
                clip_norm=0.25,
                cost="mean",
                weight_decay=1.2e-6,
                activation_penalty=2.0,
                temporal_penalty=1.0,
                nonmonotone=5,
            ),
            schedule=Piecewise(decay=1.0),
            train=TrainConfig(batch_size=20, bptt_length=70, length_deviation=5.0, epochs=500),
            preset="awd-lstm",
        ),
        # Yang et al. 2018, arXiv:1711.03953: validation 58.08, test 55.97 before fine-tuning.
        Config(
            model=LSTM(
                embedding_size=280,
                hidden_sizes=(960, 960, 620),
                tied=True,
                experts=15,
                init_scale=0.1,
                torch_init=True,
                locked_dropout=True,
                keep_words=0.9,
                keep_embedding=0.6,
                keep_output=0.775,
                keep_last_output=0.6,
                keep_latent=0.71,
                keep_recurrent_weights=0.5,
            ),
            optimizer=ASGD(
                learning_rate=20.0,
                clip_norm=0.25,
                cost="mean",
                weight_decay=1.2e-6,
                activation_penalty=2.0,
                temporal_penalty=1.0,
                nonmonotone=5,
            ),
            schedule=Piecewise(decay=1.0),
            train=TrainConfig(batch_size=12, bptt_length=70, epochs=1000, length_deviation=5.0),
            preset="awd-lstm-mos",
        ),
        _mogrifier(),
        _tutorial("test", init=0.1, hidden=(2,), embedding=2, decay=0.5, hold=1, epochs=1, steps=2, clip=1.0),
        _tied_fast(),
    )
}
