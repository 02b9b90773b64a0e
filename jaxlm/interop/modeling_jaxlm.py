# pyright: reportMissingImports=false, reportOptionalSubscript=false
"""jaxlm's models in PyTorch: layers of the kinds in `CELLS`, bare or in blocks, and any head.

Loaded by transformers with `trust_remote_code=True`.

Parameters have jaxlm's names and layouts; config.json holds their shapes and, under `jaxlm`, the
config of the run. Nothing is dropped out. A token that `attention_mask` hides leaves the state
unchanged: padding may stand on either side, and the last place always has the outputs of the last
token. Letters: `B` batch, `T` steps, `E` input width, `H` hidden width, `V` vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput


class JaxlmConfig(PretrainedConfig):
    """The content of config.json."""

    model_type = "jaxlm"
    # What else a model returns; a Trainer's predictions are the logits alone.
    keys_to_ignore_at_inference = ["state", "last_hidden_state", "hidden_states"]  # noqa: RUF012


@dataclass
class JaxlmOutput(ModelOutput):
    """What the models return.

    Attributes:
        loss: Of the labels, if there are some.
        logits: [B, T, V], of a mixture log p; or [B, labels].
        state: For each layer its output [B, H], and the arrays of jaxlm's carry [B, ...].
        last_hidden_state: What the head reads, [B, T, H].
        hidden_states: The embedded tokens, and each layer's outputs.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: tuple | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple | None = None


class Tree(nn.Module):
    """Parameters under the names of a tree of shapes; a list's entries by their places."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            if isinstance(shape, dict):
                self.add_module(name, Tree(shape))
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-0.1, 0.1)))

    def __iter__(self):
        return (self.get_submodule(str(place)) for place in range(len(self._modules)))


# A step of each kind: the model's fields, a layer, x [B, E] and the arrays of jaxlm's carry -> the
# output [B, H] and the new carry.


def lstm(
    model,
    layer,
    x,
    c,
    h,
):
    """Gates i, j, f, o."""
    i, j, f, o = (torch.cat([x, h], -1) @ layer.kernel + layer.bias).chunk(4, -1)
    c = c * torch.sigmoid(f + model["forget_bias"]) + torch.sigmoid(i) * torch.tanh(j)
    h = torch.tanh(c) * torch.sigmoid(o)
    return h, c, h


def gru(
    model,
    layer,
    x,
    h,
):
    """PyTorch's own cell."""
    bias = F.pad(layer.recurrent_bias, (2 * h.shape[-1], 0))
    h = torch.gru_cell(x, h, layer.kernel.T, layer.recurrent_kernel.T, layer.bias, bias)
    return h, h


def mingru(
    model,
    layer,
    x,
    h,
):
    """Gates z, n, of the input alone."""
    z, n = (x @ layer.kernel + layer.bias).chunk(2, -1)
    if model["positive"]:
        n = torch.where(n >= 0, n + 0.5, torch.sigmoid(n))
    h = torch.sigmoid(-z) * h + torch.sigmoid(z) * n
    return h, h


def mogrifier(
    model,
    layer,
    x,
    c,
    h,
):
    """Rounds in which x and h gate each other; then an LSTM without forget bias."""
    if model["rounds"]:
        for place, weights in enumerate(layer.rounds):
            scores = x if place % 2 else h
            if model["rank"]:
                scores = scores @ weights.left @ weights.right
            else:
                scores = scores @ weights.full
            gate = 2 * torch.sigmoid(scores + weights.bias)
            if place % 2:
                h = h * gate
            else:
                x = x * gate
    from_x = x @ layer.kernel[: x.shape[-1]]
    from_h = h @ layer.kernel[x.shape[-1] :]
    if model["layer_norm"]:
        from_x = F.layer_norm(from_x, from_x.shape[-1:], layer.norms.input)
        from_h = F.layer_norm(from_h, from_h.shape[-1:], layer.norms.state)
    gates = from_x + from_h + layer.bias
    if model["input_gate"] == "coupled":
        j, f, o = gates.chunk(3, -1)
        i = torch.sigmoid(-f)
    else:
        i, j, f, o = gates.chunk(4, -1)
        i = torch.sigmoid(i)
    f = torch.sigmoid(f)
    if model["input_gate"] == "capped":
        i = torch.minimum(i, 1 - f)
    c = c * f + i * torch.tanh(j) * model["update_scale"]
    shown = c
    if model["layer_norm"]:
        shown = F.layer_norm(c, c.shape[-1:], layer.norms.cell, layer.norms.cell_bias)
    h = torch.tanh(shown) * torch.sigmoid(o)
    if model["cell_clip"] is not None:
        c = c.clamp(-model["cell_clip"], model["cell_clip"])
    return h, c, h


def hawk(
    model,
    layer,
    x,
    h,
    inputs,
):
    """The RG-LRU behind a convolution."""
    n = x
    if model["block"] == "plain":
        n = F.rms_norm(x, x.shape[-1:], eps=1e-6)
    v = n @ layer.x_kernel + layer.x_bias
    u, inputs = _convolved(layer, v, inputs)
    by_head = u.unflatten(-1, (model["heads"], -1))
    gates = torch.einsum("bnd,nde->bne", by_head, layer.gates) + layer.gates_bias
    i, r = (gate.flatten(1) for gate in torch.sigmoid(gates).chunk(2, -1))
    log_a = -8 * r * F.softplus(layer.decay)
    written = -torch.expm1(2 * log_a).clamp(max=-1e-12)
    h = log_a.exp() * h + written.sqrt() * i * u
    gate = F.gelu(n @ layer.y_kernel + layer.y_bias, approximate="tanh")
    return (gate * h) @ layer.output_kernel + layer.output_bias, h, inputs


def attention(
    model,
    layer,
    x,
    keys,
    values,
    held,
):
    """Reads itself and the last W tokens, of which `held` are there."""
    by_head = (x @ layer.kernel).unflatten(-1, (3 * model["heads"], 1, -1))
    q, k, v = by_head.chunk(3, 1)
    keys = torch.cat([keys, k], 2)
    values = torch.cat([values, v], 2)
    W = model["attention_window"]
    is_held = torch.arange(W + 1, device=x.device) >= W - held.view(-1, 1, 1, 1)
    y = F.scaled_dot_product_attention(_turned(q, W), _turned(keys, 0), values, is_held)
    held = (held + 1).clamp(max=W)
    return y.flatten(1) @ layer.output_kernel, keys[:, :, 1:], values[:, :, 1:], held


def _turned(x, first):
    """Turns queries or keys [B, N, S, D] by their positions, from `first` on."""
    S, D = x.shape[2:]
    half = D // 2
    speeds = 10_000 ** -(torch.arange(half).double() / max(half, 1))
    angles = torch.arange(first, first + S)[:, None] * speeds
    cos = angles.cos().to(x)
    sin = angles.sin().to(x)
    a, b, unpaired = x.split([half, half, D % 2], -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, unpaired], -1)


def _convolved(layer, x, inputs):
    """A causal convolution of x [B, C] and the inputs before it, and the inputs before the next."""
    inputs = torch.cat([inputs, x[:, None]], 1)
    return (inputs * layer.convolution).sum(1) + layer.convolution_bias, inputs[:, 1:]


def _normed(
    model,
    factors,
    x,
):
    """The norm of a block, or the one after all blocks."""
    if model["block_norm"] == "layer":
        return F.layer_norm(x, x.shape[-1:], factors)
    return F.rms_norm(x, x.shape[-1:], factors, 1e-6)


def _feed_forward(
    model,
    layer,
    x,
):
    """What a feed-forward layer adds."""
    n = _normed(model, layer.norm, x)
    name = model["activation"]
    approximate = "tanh" if name == "geglu-tanh" else "none"
    up = n @ layer.up_kernel + layer.up_bias
    read = n @ layer.gate_kernel + layer.gate_bias if "glu" in name else up
    read = F.silu(read) if name in ("silu", "swiglu") else F.gelu(read, approximate=approximate)
    return (read * up if "glu" in name else read) @ layer.down_kernel + layer.down_bias


def _block(
    model,
    layer,
    x,
    *carry,
):
    """A step of a residual block. Its carry is the cell's, and the convolution's inputs."""
    inputs = []
    n = _normed(model, layer.norm, x)
    read = n @ layer.up_kernel if model["block"] == "gated" else n
    if model["convolution"]:
        *carry, before = carry
        read, after = _convolved(layer, read, before)
        read = F.silu(read)
        inputs = [after]
    y, *carry = CELLS[model["kind"]](model, layer.cell, read, *carry)
    if model["block"] == "gated":
        y = (y + layer.skip * read) * F.silu(n @ layer.gate_kernel)
    if hasattr(layer, "down_kernel"):
        y = y @ layer.down_kernel
    x = x + y
    if model["feed_forward_size"]:
        x = x + _feed_forward(model, layer.feed_forward, x)
    return x, *carry, *inputs


CELLS = {step.__name__: step for step in (lstm, gru, mingru, mogrifier, hawk, attention)}


def _zeros(x, *shape):
    """Zeros [B, *shape], of x's batch and dtype; numbers of a row stay exact in float32."""
    return x.new_zeros(len(x), *shape, dtype=x.dtype if shape else torch.float32)


class JaxlmModel(PreTrainedModel):
    """The embedding and the layers."""

    config_class = JaxlmConfig
    _is_stateful = True

    def __init__(self, config):
        """Makes a model of new parameters, of the shapes in `config.shapes`."""
        super().__init__(config)
        self.embedding = nn.Embedding(*config.shapes["embedding"]["weight"])
        self.layers = Tree(config.shapes["layers"])
        for name in {"norm", "input_projection"} & {*config.shapes}:  # around blocks
            self.register_parameter(name, nn.Parameter(torch.ones(config.shapes[name])))
        self.add_head(config)
        self.post_init()

    def add_head(self, config):
        """Adds the parameters of what reads the last layer: here there are none."""

    def get_input_embeddings(self):
        """The embedding, for transformers."""
        return self.embedding

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        state=None,
        inputs_embeds=None,
        **_,
    ):
        """Runs the layers.

        Args:
            input_ids: Tokens [B, T].
            attention_mask: True or 1 for each token that counts, [B, T or more].
            state: As an output has it; None: zeros.
            inputs_embeds: Embedded tokens [B, T, E], in place of tokens.

        Returns:
            A JaxlmOutput without logits.
        """
        model = self.config.jaxlm["model"]
        models = [model | cell for cell in self.config.cells]
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if model["scale_embedding"]:
            x = x * model["embedding_size"] ** 0.5
        if hasattr(self, "input_projection"):
            x = x @ self.input_projection
        if state is None:
            state = [[_zeros(x, *shape) for shape in of_layer["state"]] for of_layer in models]
        masks = None
        if attention_mask is not None:
            masks = attention_mask[:, -x.shape[1] :, None].bool().unbind(1)
        hidden = [x]
        new_state = []
        for of_layer, layer, now in zip(models, self.layers, state, strict=True):
            step = CELLS[of_layer["kind"]] if model["block"] == "plain" else _block
            outputs = []
            read = hidden[-1]
            if model["running_sum"] and len(hidden) > 1:
                read = sum(hidden[2:], hidden[1])
            for t, x_t in enumerate(read.unbind(1)):
                before = now
                now = step(of_layer, layer, x_t, *before[1:])
                if masks:  # a hidden token leaves the state
                    pairs = zip(now, before, strict=True)
                    now = tuple(
                        torch.where(masks[t].view(-1, *[1] * (new.ndim - 1)), new, old)
                        for new, old in pairs
                    )
                outputs.append(now[0])
            hidden.append(torch.stack(outputs, 1))
            new_state.append(now)
        last = sum(hidden[1:]) if model["skip"] or model["running_sum"] else hidden[-1]
        if model["block"] != "plain":
            last = _normed(model, self.norm, last)
        return JaxlmOutput(
            state=tuple(new_state), last_hidden_state=last, hidden_states=tuple(hidden)
        )


class JaxlmForCausalLM(JaxlmModel, GenerationMixin):
    """The language model."""

    def add_head(self, config):
        """Adds the softmax."""
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
        """Predicts the next token after each token.

        Args:
            input_ids: As the next three, what JaxlmModel reads.
            attention_mask: Likewise.
            state: Likewise.
            inputs_embeds: Likewise.
            labels: The tokens themselves [B, T], for a loss.
            logits_to_keep: How many of the last tokens get logits; 0: all.
            **rest: `num_items_in_batch`: what a Trainer divides the loss by.

        Returns:
            A JaxlmOutput.
        """
        output = super().forward(input_ids, attention_mask, state, inputs_embeds)
        logits = self.logits(output.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            items = rest.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, logits.shape[-1], items)
        return replace(output, loss=loss, logits=logits)

    def logits(self, x):
        """The logits [B, T, V], of a mixture log p, of what the head reads [B, T, H]."""
        model = self.config.jaxlm["model"]
        head = self.softmax
        kernel = self.embedding.weight.T if model["tied"] else head.kernel
        if not model["experts"]:
            if model["projection"]:
                x = x @ head.projection
            return x @ kernel + head.bias
        log_p = x.new_tensor(model["mixture_epsilon"] or 0).log()
        latents = torch.tanh(x @ head.latent_kernel + head.latent_bias).chunk(model["experts"], -1)
        log_priors = F.log_softmax(x @ head.prior, -1).split(1, -1)
        for latent, log_prior in zip(latents, log_priors, strict=True):
            log_expert = F.log_softmax(latent @ kernel + head.bias, -1)
            log_p = torch.logaddexp(log_p, log_prior + log_expert)
        return log_p

    # What `generate` asks for. The state, of all tokens but the last, stands in place of a cache of
    # keys and values.

    def prepare_inputs_for_generation(
        self,
        input_ids,
        state=None,
        attention_mask=None,
        **rest,
    ):
        """The arguments of the next call: the last token alone, once there is a state."""
        if state is not None:
            input_ids = input_ids[:, -1:]
            attention_mask = None
        return {**rest, "input_ids": input_ids, "attention_mask": attention_mask, "state": state}

    def _update_model_kwargs_for_generation(
        self,
        outputs,
        model_kwargs,
        *args,
        **rest,
    ):
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **rest)
        if model_kwargs.get("use_cache", True):
            updated["state"] = outputs.state
        return updated

    def _reorder_cache(self, state, rows):
        return tuple(tuple(array[rows] for array in layer) for layer in state)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False


class JaxlmForSequenceClassification(JaxlmModel):
    """A linear layer, to be trained, that reads the features of the last token."""

    # The loss is a batch's mean, which a Trainer divides by the batches it accumulates.
    accepts_loss_kwargs = False

    def add_head(self, config):
        """Adds the linear layer."""
        self.score = nn.Linear(config.jaxlm["model"]["hidden_sizes"][-1], config.num_labels)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        state=None,
        inputs_embeds=None,
        labels=None,
        **_,
    ):
        """Classifies texts.

        Args:
            input_ids: As the next three, what JaxlmModel reads.
            attention_mask: Likewise.
            state: Likewise.
            inputs_embeds: Likewise.
            labels: A class or number of each text [B], for a loss.

        Returns:
            A JaxlmOutput.
        """
        output = super().forward(input_ids, attention_mask, state, inputs_embeds)
        logits = self.score(output.last_hidden_state[:, -1])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return replace(output, loss=loss, logits=logits)
