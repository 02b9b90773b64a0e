# pyright: reportMissingImports=false, reportOptionalSubscript=false
"""jaxlm's LSTM, GRU, minGRU and Mogrifier LSTM in PyTorch, with any of jaxlm's heads, for transformers.

Parameters have jaxlm's names and layouts; config.json holds their shapes and, under `jaxlm`, the config of the run.
Nothing is dropped out. A token that `attention_mask` hides leaves the state unchanged: padding may stand on either
side, and the last place always has the outputs of the last token. Letters: `B` batch, `T` steps, `E` input width, `H`
hidden width, `V` vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput


class JaxlmConfig(PretrainedConfig):
    model_type = "jaxlm"
    # (A Trainer's predictions are the logits.)
    keys_to_ignore_at_inference = ["state", "last_hidden_state", "hidden_states"]  # noqa: RUF012


@dataclass
class JaxlmOutput(ModelOutput):
    """`logits` are [B, T, V], of a mixture log p, or [B, labels]; `state` is h, then c, [B, H], of each layer.

    `last_hidden_state` [B, T, H] is what the head reads, `hidden_states` the embedded tokens and each layer's outputs.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: tuple | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple | None = None


class Tree(nn.Module):
    """Parameters under the names of a tree of shapes; the names of a list's entries are their places."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            if isinstance(shape, dict):
                self.add_module(name, Tree(shape))
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-0.1, 0.1)))

    def __iter__(self):
        return (self.get_submodule(str(place)) for place in range(len(self._modules)))


def lstm(model, layer, x, h, c):
    """One step of a layer: x [B, E] and its state [B, H] to the new state, whose h is the output."""
    i, j, f, o = (torch.cat([x, h], -1) @ layer.kernel + layer.bias).chunk(4, -1)
    c = c * torch.sigmoid(f + model["forget_bias"]) + torch.sigmoid(i) * torch.tanh(j)
    return torch.tanh(c) * torch.sigmoid(o), c


def gru(model, layer, x, h):
    bias = F.pad(layer.recurrent_bias, (2 * h.shape[-1], 0))
    return (torch.gru_cell(x, h, layer.kernel.T, layer.recurrent_kernel.T, layer.bias, bias),)


def mingru(model, layer, x, h):
    z, n = (x @ layer.kernel + layer.bias).chunk(2, -1)
    return (torch.sigmoid(-z) * h + torch.sigmoid(z) * n,)


def mogrifier(model, layer, x, h, c):
    for place, one in enumerate(layer.rounds if model["rounds"] else ()):
        scores = x if place % 2 else h
        scores = scores @ one.left @ one.right if model["rank"] else scores @ one.full
        gate = 2 * torch.sigmoid(scores + one.bias)
        x, h = (x, h * gate) if place % 2 else (x * gate, h)
    from_x = x @ layer.kernel[: x.shape[-1]]
    from_h = h @ layer.kernel[x.shape[-1] :]
    if model["layer_norm"]:
        from_x = F.layer_norm(from_x, from_x.shape[-1:], layer.norms.input)
        from_h = F.layer_norm(from_h, from_h.shape[-1:], layer.norms.state)
    *i, j, f, o = (from_x + from_h + layer.bias).chunk(
        3 if model["input_gate"] == "coupled" else 4, -1
    )
    f = torch.sigmoid(f)
    taken = torch.sigmoid(i[0]) if i else 1 - f
    taken = torch.minimum(taken, 1 - f) if model["input_gate"] == "capped" else taken
    c = c * f + taken * torch.tanh(j) * model["update_scale"]
    shown = (
        F.layer_norm(c, c.shape[-1:], layer.norms.cell, layer.norms.cell_bias)
        if model["layer_norm"]
        else c
    )
    clip = model["cell_clip"]
    return torch.tanh(shown) * torch.sigmoid(o), c if clip is None else c.clamp(-clip, clip)


CELLS = {
    "lstm": (lstm, 2),
    "gru": (gru, 1),
    "mingru": (mingru, 1),
    "mogrifier": (mogrifier, 2),
}  # (step, arrays)


class JaxlmModel(PreTrainedModel):
    """The embedding and the layers."""

    config_class = JaxlmConfig
    _is_stateful = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(*config.shapes["embedding"]["weight"])
        self.layers = Tree(config.shapes["layers"])
        self.add_head(config)
        self.post_init()

    def add_head(self, config):
        pass

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids=None, attention_mask=None, state=None, inputs_embeds=None, **_):
        """Token ids [B, T] (or their embeddings), a mask of the tokens that count, and the state before the first."""
        model = self.config.jaxlm["model"] | self.config.cell
        step, arrays = CELLS[model["kind"]]
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = [x * model["embedding_size"] ** 0.5 if model["scale_embedding"] else x]
        after = []
        masks = (
            None
            if attention_mask is None
            else attention_mask[:, -x.shape[1] :, None].bool().unbind(1)
        )
        for place, layer in enumerate(self.layers):
            now = (
                state[place]
                if state
                else (x.new_zeros(len(x), model["hidden_sizes"][place]),) * arrays
            )
            outputs = []
            for t, x_t in enumerate(hidden[-1].unbind(1)):
                new = step(model, layer, x_t, *now)
                now = (
                    tuple(torch.where(masks[t], *both) for both in zip(new, now, strict=True))
                    if masks
                    else new
                )
                outputs.append(now[0])
            hidden.append(torch.stack(outputs, 1))
            after.append(now)
        last = sum(hidden[1:]) if model["skip"] else hidden[-1]
        return JaxlmOutput(state=tuple(after), last_hidden_state=last, hidden_states=tuple(hidden))


class JaxlmForCausalLM(JaxlmModel, GenerationMixin):
    def add_head(self, config):
        self.softmax = Tree(config.shapes["softmax"])

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        state=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        **rest,
    ):
        found = super().forward(input_ids, attention_mask, state, inputs_embeds)
        logits = self.logits(found.last_hidden_state[:, -logits_to_keep:])
        items = rest.get("num_items_in_batch")
        loss = (
            None if labels is None else self.loss_function(logits, labels, logits.shape[-1], items)
        )
        return replace(found, loss=loss, logits=logits)

    def logits(self, x):
        """What the head reads [B, T, H] -> logits [B, T, V], of a mixture log p."""
        model = self.config.jaxlm["model"]
        head = self.softmax
        kernel = self.embedding.weight.T if model["tied"] else head.kernel
        if not model["experts"]:
            return (x @ head.projection if model["projection"] else x) @ kernel + head.bias
        log_p = x.new_tensor(model["mixture_epsilon"] or 0).log()
        latents = torch.tanh(x @ head.latent_kernel + head.latent_bias).chunk(model["experts"], -1)
        for latent, log_prior in zip(
            latents, F.log_softmax(x @ head.prior, -1).split(1, -1), strict=True
        ):
            log_p = torch.logaddexp(
                log_p, log_prior + F.log_softmax(latent @ kernel + head.bias, -1)
            )
        return log_p

    # What `generate` asks for: the state, of all tokens but the last, in place of a cache of keys and values.

    def prepare_inputs_for_generation(self, input_ids, state=None, attention_mask=None, **rest):
        if state is not None:
            input_ids = input_ids[:, -1:]
            attention_mask = None
        return {**rest, "input_ids": input_ids, "attention_mask": attention_mask, "state": state}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **rest):
        kept = {"state": outputs.state} if model_kwargs.get("use_cache", True) else {}
        return {
            **super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **rest),
            **kept,
        }

    def _reorder_cache(self, state, rows):
        return tuple(tuple(array[rows] for array in layer) for layer in state)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False


class JaxlmForSequenceClassification(JaxlmModel):
    """A linear layer, to be trained, that reads the features of the last token."""

    accepts_loss_kwargs = (
        False  # the loss is a batch's mean, which a Trainer divides by the batches it accumulates
    )

    def add_head(self, config):
        self.score = nn.Linear(config.jaxlm["model"]["hidden_sizes"][-1], config.num_labels)

    def forward(
        self, input_ids=None, attention_mask=None, state=None, inputs_embeds=None, labels=None, **_
    ):
        found = super().forward(input_ids, attention_mask, state, inputs_embeds)
        logits = self.score(found.last_hidden_state[:, -1])
        loss = (
            None
            if labels is None
            else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        )
        return replace(found, loss=loss, logits=logits)
