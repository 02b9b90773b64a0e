"""sherpa-onnx itself reads an exported language model, beside a recogniser of a few numbers."""

from dataclasses import replace

import numpy as np
import pytest
from test_exporting import model

from jaxlm.data.vocab import Vocab
from jaxlm.interop.exporting import ONNX_HEADER, export_model

onnx = pytest.importorskip("onnx")
sherpa = pytest.importorskip("sherpa_onnx")

WORDS = ("<blk>", "<eos>", "<unk>", "a", "b", "c", "d", "e")
V = len(WORDS)
ENCODER = f"""e (float[N, T, 80] x, int64[N] lengths) => (float[N, S, {V}] y, int64[N] sizes) {{
    y = Slice (x, starts, stops, axes, steps)
    padded = Add (lengths, three)
    sizes = Div (padded, four)
}}"""
DECODER = f"""decoder (int64[N, 2] tokens) => (float[N, {V}] y) {{
    numbers = Cast <to = 1> (tokens)
    sum = ReduceSum <keepdims = 1> (numbers, axis)
    none = Mul (sum, zero)
    y = Add (none, row)
}}"""
JOINER = f"""joiner (float[N, {V}] x, float[N, {V}] d) => (float[N, {V}] y) {{
    sum = Add (x, d)
    y = Mul (sum, small)
}}"""


def write(path, graph, metadata, **weights):
    program = onnx.parser.parse_model(f"{ONNX_HEADER}\n{graph}")
    for name, values in weights.items():
        program.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    onnx.helper.set_model_props(program, metadata)
    path.write_bytes(program.SerializeToString())
    return str(path)


def test_a_recogniser_prefers_what_the_model_finds_likely(tmp_path):
    lm = replace(model(), vocab=Vocab(WORDS))
    export_model(lm, "sherpa-onnx", tmp_path / "lm")
    parts = [
        write(
            tmp_path / "encoder.onnx",
            ENCODER,
            {},
            starts=[0, 0],
            stops=[1 << 20, V],
            axes=[1, 2],
            steps=[4, 1],
            three=[3],
            four=[4],
        ),
        write(
            tmp_path / "decoder.onnx",
            DECODER,
            {"vocab_size": str(V), "context_size": "2"},
            axis=[1],
            zero=np.float32(0),
            row=np.zeros((1, V), np.float32),
        ),
        write(tmp_path / "joiner.onnx", JOINER, {}, small=np.float32(0.01)),
    ]
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    score = lm.scorer(full=False)
    nats = []
    for scale in (50.0, -50.0):
        recogniser = sherpa.OfflineRecognizer.from_transducer(
            *parts,
            str(tmp_path / "lm/tokens.txt"),
            decoding_method="modified_beam_search",
            lm=str(tmp_path / "lm/lm.onnx"),
            lm_scale=scale,
        )
        stream = recogniser.create_stream()
        stream.accept_waveform(16_000, audio)
        recogniser.decode_stream(stream)
        tokens = stream.result.tokens
        ids = np.array([1, *(WORDS.index(token) for token in tokens), 1], np.int32)
        nats.append(float(score([ids]).nats.sum()))
    assert nats[0] < nats[1] - 0.5
