"""Named recipes."""

from jaxlm.config.config import Config
from jaxlm.errors import JaxlmError
from jaxlm.fields import nearest


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


# The defaults are the configs of TensorFlow 1's PTB tutorial (Zaremba et al. 2014, arXiv:1409.2329), with other widths.
_SMALL = Config(preset="small")
_ZAREMBA_SMALL = _SMALL.replace(preset="zaremba-small", hidden_sizes=(200, 200), batch_size=20, epochs=13)
_ZAREMBA_MEDIUM = _ZAREMBA_SMALL.replace(
    preset="zaremba-medium",
    embedding_size=650,
    hidden_sizes=(650, 650),
    init_scale=0.05,
    keep_embedding=0.5,
    keep_output=0.5,
    decay=0.8,
    hold=6.0,
    bptt_length=35,
    epochs=39,
)
_ZAREMBA_LARGE = _ZAREMBA_MEDIUM.replace(
    preset="zaremba-large",
    embedding_size=1500,
    hidden_sizes=(1500, 1500),
    init_scale=0.04,
    keep_embedding=0.35,
    keep_output=0.35,
    clip_norm=10.0,
    decay=1 / 1.15,
    hold=14.0,
    epochs=55,
)

# Merity et al. 2018, arXiv:1708.02182: validation 61.2, test 58.8 on Penn Treebank.
_AWD_LSTM = _SMALL.replace(
    preset="awd-lstm",
    embedding_size=400,
    hidden_sizes=(1150, 1150, 400),
    tied=True,
    torch_init=True,
    locked_dropout=True,
    keep_words=0.9,
    keep_embedding=0.6,
    keep_output=0.75,
    keep_last_output=0.6,
    keep_recurrent_weights=0.5,
    optimizer="asgd",
    learning_rate=30.0,
    clip_norm=0.25,
    cost="mean",
    weight_decay=1.2e-6,
    activation_penalty=2.0,
    temporal_penalty=1.0,
    decay=1.0,
    batch_size=20,
    bptt_length=70,
    length_deviation=5.0,
    epochs=500,
)
# Yang et al. 2018, arXiv:1711.03953: validation 58.08, test 55.97 before fine-tuning.
_MOS = _AWD_LSTM.replace(
    preset="awd-lstm-mos",
    embedding_size=280,
    hidden_sizes=(960, 960, 620),
    experts=15,
    keep_output=0.775,
    keep_latent=0.71,
    learning_rate=20.0,
    batch_size=12,
    epochs=1000,
)

# Melis et al. 2020, arXiv:1909.01792: 24M parameters, with the published settings for Penn Treebank.
_MOGRIFIER = _SMALL.replace(
    preset="mogrifier",
    model="mogrifier",
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
    optimizer="lamb-adam",
    learning_rate=0.0023,
    beta1=0.0,
    clip_norm=10.0,
    l2_penalty=2.5e-4,
    nonmonotone=50,
    average_latest=800,
    decay=1.0,
    batch_size=64,
    bptt_length=70,
    epochs=966,  # about 1,000 turns of 200 steps
)

# The recipe of experiments/speedrun.py: how each number was found is in docs/lab/speedrun.md.
_TIED_FAST = _SMALL.replace(
    preset="tied-fast",
    embedding_size=256,
    hidden_sizes=(256,),
    tied=True,
    init_scale=0.05,
    optimizer="muon",
    learning_rate=0.025,
    adam_learning_rate=0.02,
    schedule="cosine",
    final=0.0,
    batch_size=40,
    bptt_length=35,
    epochs=2,
)
_TEST = _ZAREMBA_SMALL.replace(
    preset="test", embedding_size=2, hidden_sizes=(2,), clip_norm=1.0, hold=1.0, bptt_length=2, epochs=1
)

PRESETS: dict[str, Config] = {
    config.preset: config
    for config in (
        _SMALL,
        _ZAREMBA_SMALL,
        _ZAREMBA_MEDIUM,
        _ZAREMBA_LARGE,
        _AWD_LSTM,
        _MOS,
        _MOGRIFIER,
        _TEST,
        _TIED_FAST,
    )
}
