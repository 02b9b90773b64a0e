"""What others make of a hub's folder:
transformers, lm-evaluation-harness and minicons compute jaxlm's numbers.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from language_models import next_word
from recipes import BASE
from test_hub import HELD, KINDS, language_model, vocab

from jaxlm.cli import main
from jaxlm.data.vocab import EOS
from jaxlm.interop.exporting import export_model
from jaxlm.interop.importing import import_model
from jaxlm.runs.loading import keep_model, unread_corpus
from jaxlm.scoring.hub_model import HubModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["the dogs run \n a dog", "runs", "N 's zebra the ca"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each case's model, once made."""
    place = tmp_path_factory.mktemp("hub")

    def folder(case: str) -> Path:
        if not (place / case).exists():
            export_model(language_model(HELD[case]), "hub", place / case)
        return place / case

    return folder


def loaded(folder: Path, kind: str = "ForCausalLM", **options):
    """(model, tokenizer) as a user loads them."""
    model = getattr(transformers, f"AutoModel{kind}").from_pretrained(
        folder, trust_remote_code=True, **options
    )
    return model.eval(), tokenizer_of(folder)


@cache
def tokenizer_of(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def expected(case: str, ids) -> np.ndarray:
    """jaxlm's log-probabilities [N, V] of the word after each id."""
    lm = language_model(HELD[case])
    return np.asarray(next_word(lm.config.model, lm.params, jnp.asarray(ids)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", HELD)
@torch.no_grad()
def test_log_probabilities_and_loss_are_jaxlm_s_with_padding_on_either_side(folders, case, side):
    model, tokenizer = loaded(folders(case))
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    labels = batch["input_ids"].where(
        batch["attention_mask"].cumsum(-1) * batch["attention_mask"] > 1, -100
    )
    out = model(**batch, labels=labels)
    found = out.logits.log_softmax(-1).numpy()
    nats = []
    for row, mask, text in zip(
        range(len(TEXTS)), batch["attention_mask"].bool().numpy(), TEXTS, strict=True
    ):
        ids = language_model(HELD[case]).vocab.encode_text(text)
        want = expected(case, ids)
        np.testing.assert_allclose(found[row][mask], want, atol=1e-5)
        nats += [-want[place, word] for place, word in enumerate(ids[1:])]
        np.testing.assert_allclose(
            found[row][-1], want[-1], atol=1e-5
        )  # padding leaves the last outputs
    np.testing.assert_allclose(out.loss, np.mean(nats), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[1:])
@torch.no_grad()
def test_every_kind_of_tokens_has_jaxlm_s_log_probabilities(kind, tmp_path):
    lm = language_model(BASE, vocab(kind))
    text = "the cat sat\n on a mat\n"
    export_model(lm, "hub", tmp_path / "out")
    model, tokenizer = loaded(tmp_path / "out")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == lm.vocab.encode_text(text).tolist()
    wanted = next_word(lm.config.model, lm.params, jnp.asarray(ids[0].numpy()))
    np.testing.assert_allclose(model(ids).logits[0].log_softmax(-1).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("case", ["mogrifier", "griffin"])
@torch.no_grad()
def test_a_text_in_two_parts_is_the_text(folders, case):
    model, tokenizer = loaded(folders(case))
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    first = model(ids[:, :3])
    second = model(ids[:, 3:], state=first.state)
    whole = model(ids)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole.logits[:, -2:])
    torch.testing.assert_close(
        model(inputs_embeds=model.get_input_embeddings()(ids)).logits, whole.logits
    )


@torch.no_grad()
def test_a_mask_of_the_whole_text_hides_tokens_of_its_last_part(folders):
    model, tokenizer = loaded(folders("mogrifier"))
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 3] = 0
    state = model(ids[:, :3]).state
    second = model(ids[:, 3:], state=state, attention_mask=mask)
    visible = model(torch.cat([ids[:, :3], ids[:, 4:]], 1))
    torch.testing.assert_close(second.logits[:, 1:], visible.logits[:, 3:])


@torch.no_grad()
def test_outputs_have_the_hidden_states_and_a_loss_of_as_many_items_as_a_trainer_says(folders):
    model, tokenizer = loaded(folders("gru-tied"))
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    out = model(ids, labels=ids)
    assert len(out.hidden_states) == 1 + model.config.num_hidden_layers
    torch.testing.assert_close(out.hidden_states[0], model.get_input_embeddings()(ids))
    torch.testing.assert_close(out.hidden_states[-1], out.last_hidden_state)
    of_ten = model(ids, labels=ids, num_items_in_batch=torch.tensor(10)).loss
    torch.testing.assert_close(of_ten * 10, out.loss * (ids.shape[1] - 1))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("case", ["lstm", "gru-tied", "griffin"])
def test_generation_carries_the_state(folders, case, beams):
    model, tokenizer = loaded(folders(case))
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
    how = dict(
        max_new_tokens=6,
        num_beams=beams,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    torch.manual_seed(0)
    read = []
    with model.embedding.register_forward_hook(lambda _, given, __: read.append(given[0].shape[1])):
        made = model.generate(**batch, do_sample=True, **how)
    assert read[1:] == [1] * 5
    torch.manual_seed(0)
    whole = []
    with model.embedding.register_forward_hook(lambda _, x, __: whole.append(x[0].shape[1])):
        again = model.generate(**batch, do_sample=True, use_cache=False, **how)
    assert whole == list(range(whole[0], whole[0] + 6))
    assert (
        torch.equal(made.sequences, again.sequences)
        and len(set(made.sequences[:, -6:].flatten().tolist())) > 1
    )
    torch.testing.assert_close(
        torch.stack(made.logits), torch.stack(again.logits), atol=1e-5, rtol=0
    )
    if beams == 1:
        found = torch.stack(made.logits, 1).log_softmax(-1)
        for row, text in enumerate(TEXTS):
            ids = [*tokenizer(text)["input_ids"], *made.sequences[row, -6:].tolist()]
            np.testing.assert_allclose(found[row], expected(case, ids)[-7:-1], atol=1e-5)


def test_a_classifier_reads_the_state_after_the_last_token(folders):
    model, tokenizer = loaded(folders("lstm-skip"), "ForSequenceClassification", num_labels=3)
    answers = []
    for side in ("left", "right"):
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
        out = model(**batch, labels=torch.tensor([0, 1, 2]))
        answers.append(out.logits.detach())
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    for found in answers:
        torch.testing.assert_close(found, alone)
    out.loss.backward()
    assert float(model.get_input_embeddings().weight.grad.abs().sum()) > 0


def trainer(folders, tmp_path, **options):
    """transformers' Trainer of a classifier, without a step of its own."""
    pytest.importorskip("accelerate")
    model, tokenizer = loaded(folders("lstm-skip"), "ForSequenceClassification", num_labels=3)
    torch.nn.init.constant_(model.score.weight, 0.01)
    how = transformers.TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, optim="sgd", **options
    )
    rows = [{**tokenizer("the dogs run"), "labels": label} for label in (0, 1, 2, 1)]
    return transformers.Trainer(
        model, how, processing_class=tokenizer, train_dataset=rows, eval_dataset=rows
    )


def test_a_trainer_s_predictions_are_the_logits(folders, tmp_path):
    one = trainer(folders, tmp_path, per_device_eval_batch_size=2)
    assert one.predict(one.eval_dataset).predictions.shape == (4, 3)


def test_accumulated_gradients_are_those_of_the_batch(folders, tmp_path):
    weights = []
    for rows, batches in ((4, 1), (1, 4)):
        how = dict(
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=batches,
            max_steps=1,
            max_grad_norm=0,
        )
        one = trainer(
            folders, tmp_path / str(rows), **how, learning_rate=0.5, lr_scheduler_type="constant"
        )
        one.train()
        weights.append(one.model.score.weight.detach().clone())
    torch.testing.assert_close(*weights)


def test_a_fresh_model_is_initialised(folders):
    config = transformers.AutoConfig.from_pretrained(folders("lstm-skip"), trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert all(0 < float(part.detach().abs().max()) <= 1 for part in model.parameters())


def test_special_tokens_and_lower_case(folders, tmp_path):
    export_model(language_model(BASE.replace(lowercase=True)), "hub", tmp_path / "lower")
    tokenizer = tokenizer_of(tmp_path / "lower")
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        *[EOS] * 3,
        "<unk>",
    )
    assert (
        tokenizer(f"{EOS}The DOGS <unk>")["input_ids"] == [0, 2, 3, 1]
        and len(tokenizer) == BASE.model.vocab_size
    )
    assert tokenizer.decode([0, 2, 3], skip_special_tokens=True) == "the dogs"


def test_what_transformers_saves_is_imported(folders, tmp_path):
    model, _ = loaded(folders("tied-mixture"))
    with torch.no_grad():
        model.softmax.bias += 1
    model.save_pretrained(tmp_path / "saved")
    found = import_model(tmp_path / "saved", folders("tied-mixture") / "vocab.txt")
    lm = language_model(HELD["tied-mixture"])
    np.testing.assert_array_equal(found.params["softmax"]["bias"], lm.params["softmax"]["bias"] + 1)
    assert found.config.model == lm.config.model


@pytest.mark.slow
def test_lm_eval_runs_a_task_file_on_the_folder(folders, tmp_path):
    pytest.importorskip("lm_eval")
    from test_lm_eval import TASK

    lm = language_model(HELD["lstm"])
    pairs = [
        ("the dogs run", "dogs N the"),
        ("a dog runs", "the 's"),
        ("runs runs", "dog n't a"),
        ("N", "the zebra"),
    ]
    rows = [{"good": good, "bad": bad} for good, bad in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.yaml").write_text(TASK.format(data=tmp_path / "pairs.jsonl"))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--tasks",
        "jaxlm_pairs",
        "--include_path",
        tmp_path,
    ]
    command += [
        "--model_args",
        f"pretrained={folders('lstm')},trust_remote_code=True",
        "--device",
        "cpu",
    ]
    command += ["--log_samples", "--output_path", tmp_path / "results"]
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **offline}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (tmp_path / "results").rglob("samples_*.jsonl")
    for sample, pair in zip(map(json.loads, samples.read_text().splitlines()), pairs, strict=True):
        found = [float(answer[0][0]) for answer in sample["resps"]]
        wanted = [-float(lm.surprisal([text], unit="nats").surprisal.sum()) for text in pair]
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.slow
def test_minicons_scores_words(folders):
    scorer = pytest.importorskip("minicons.scorer")
    folder = str(folders("gru-tied"))
    lm = language_model(HELD["gru-tied"])
    peer = scorer.IncrementalLMScorer(folder, "cpu", tokenizer=folder, trust_remote_code=True)
    sentences = ["the dogs run", "a dog runs 's zebra", "N"]
    found = peer.token_score(sentences, surprisal=True, bos_token=True)
    table = lm.surprisal(sentences, unit="nats")
    words = [pair for sentence in found for pair in sentence[1:]]
    assert [word for word, _ in words] == [
        word if word in lm.vocab.ids else "<unk>" for word in table.word
    ]
    np.testing.assert_allclose([nats for _, nats in words], table.surprisal, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_minicons_scores_tokens_of_every_kind(kind, tmp_path):
    scorer = pytest.importorskip("minicons.scorer")
    lm = language_model(BASE, vocab(kind))
    folder = str(tmp_path / "out")
    export_model(lm, "hub", folder)
    peer = scorer.IncrementalLMScorer(folder, "cpu", tokenizer=folder, trust_remote_code=True)
    (found,) = peer.token_score(["the cat sat"], surprisal=True, bos_token=True)
    table = lm.surprisal(["the cat sat"], unit="nats", boundary="published")
    np.testing.assert_allclose([nats for _, nats in found[1:]], table.surprisal, atol=1e-5)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A small GPT-2 of random parameters, with a byte-level BPE of a few words."""
    folder = tmp_path_factory.mktemp("gpt2") / "tiny-gpt2"
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["the bank lends every bank money, the bank"] * 9, trainer)
    end = "<|endoftext|>"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=end, eos_token=end
    )
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    sizes |= {"vocab_size": len(tokenizer), "initializer_range": 0.5}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words_run(tmp_path_factory) -> Path:
    lm = language_model(BASE)
    corpus = unread_corpus("x", "0" * 64, lm.vocab)
    folder = tmp_path_factory.mktemp("run") / "run"
    keep_model(folder, lm.config, lm.params, corpus)
    return folder


def test_a_model_of_the_hub_scores_the_words_beside_a_run(gpt2, words_run, tmp_path, capsys):
    sentences = ["the bank lends, every bank", "lends"]
    (tmp_path / "text.txt").write_text("\n".join(sentences) + "\n")
    command = ["surprisal", str(words_run), str(tmp_path / "text.txt"), "--hub", str(gpt2)]
    model = HubModel(str(gpt2))
    for boundary in ("corrected", "published"):
        assert main([*command, "--unit", "nats", "--boundary", boundary]) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert rows[0][-1] == "surprisal.tiny-gpt2"
        assert [row[2] for row in rows[1:]] == " ".join(sentences).split()
        expected = [
            nats
            for line in sentences
            for nats in model.word_nats(line.split(), "", boundary == "corrected")
        ]
        np.testing.assert_allclose([float(row[-1]) for row in rows[1:]], expected, atol=1e-5)


@pytest.mark.parametrize("corrected", [True, False])
def test_minicons_scores_the_words_of_a_model_of_the_hub(gpt2, corrected):
    """It counts pieces after a space as boundaries alone, and neither newline nor end."""
    scorer = pytest.importorskip("minicons.scorer")
    line = "the bank lends, every bank"
    model = HubModel(str(gpt2))
    names = model._tokenizer.convert_ids_to_tokens(range(len(model._begins)))
    spaces = np.array([name.startswith("\u0120") for name in names])
    assert set(np.array(names)[model._begins & ~spaces]) == {"<|endoftext|>", "\u010a"}
    model._begins = spaces
    peer = scorer.IncrementalLMScorer(str(gpt2), "cpu")
    (pairs,) = peer.word_score_tokenized(
        [line],
        bos_token=True,
        tokenize_function=str.split,
        surprisal=True,
        bow_correction=corrected,
    )
    found = model.word_nats(line.split(), "", corrected)
    np.testing.assert_allclose(found, [nats for _, nats in pairs], atol=1e-4)


def test_a_word_of_a_model_of_the_hub_does_not_depend_on_what_follows(gpt2):
    model = HubModel(str(gpt2))
    whole = model.word_nats(["the", "bank"], "a line")
    alone = model.word_nats(["the"], "a line")
    assert whole[0] == pytest.approx(alone[0], abs=1e-5)  # what follows does not count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": "{}"}, "cannot be loaded"),
        ({"config.json": None}, "cannot be loaded"),
        ({"model.safetensors": "damaged"}, "cannot be loaded"),
        ({"text.txt": "the " * 40}, "sentence 1 has .* which reads 32: give shorter lines"),
    ],
)
def test_a_model_of_the_hub_that_cannot_be_is_one_sentence(
    gpt2, words_run, tmp_path, capsys, change, message
):
    folder = tmp_path / "copy"
    shutil.copytree(gpt2, folder)
    (folder / "text.txt").write_text("the bank\n")
    for name, content in change.items():
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
    text = str(folder / "text.txt")
    assert main(["surprisal", str(words_run), text, "--hub", str(folder)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1, said.err
    assert re.search(message, said.err)
