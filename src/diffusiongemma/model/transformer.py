"""The stack of weights and its two passes: ``encode`` (causal, writes the cache) and ``denoise`` (bidirectional, reads it).

Shapes: B batch, T tokens, L canvas, D hidden, V vocabulary, H head size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusiongemma import kernels
from diffusiongemma.kernels import Kernels, Statistics
from diffusiongemma.model.cache import Context, KVCache, Part, Role, Rows
from diffusiongemma.model.config import ModelConfig, RopeConfig
from diffusiongemma.model.layers import Embedding, Layer, RMSNorm, SelfConditioning
from diffusiongemma.model.masks import Masks, denoise_masks, encode_masks
from diffusiongemma.model.packable import Packable
from diffusiongemma.quant import PackedWeight

__all__ = ["Transformer", "View"]


class View(NamedTuple):
    """Where tokens stand and what they see.

    Attributes:
        tables: layer type to cosines and sines ``[B, T, H]``.
        masks: layer type to mask.
    """

    tables: dict[str, tuple[Tensor, Tensor]]
    masks: Masks


class Transformer(nn.Module):
    """DiffusionGemma's text stack. Built empty; weights come from a checkpoint or from a recipe's initialisation.

    Args:
        config: the checkpoint's configuration.
        kernels: ``plain`` takes the reference of the canvas head, to compare with.

    Attributes:
        steady: whether short passes are filled up, so that on a CPU a row's float32 bits do not depend on its neighbours
            (``kernels.STEADY_ROWS``). Without it a causal token alone costs less.
        int8_products: whether weights and products are in int8 (``model.fast``): faster on a CPU, not exact.
        compute_dtype: of hidden states and of the cache, where it is not that of the weights; None: theirs.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels = "auto") -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.steady = True
        self.int8_products = False
        self.compute_dtype: torch.dtype | None = None
        text = config.text
        # Given its memory, it does not draw numbers that a checkpoint replaces (and on the meta device imports the compiler for).
        self.embed_tokens = Embedding(text.vocab_size, text.hidden_size, _weight=torch.empty(text.vocab_size, text.hidden_size))
        self.layers = nn.ModuleList(Layer(text, i) for i in range(text.num_hidden_layers))
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.self_conditioning = SelfConditioning(text)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states and of the cache."""
        return self.compute_dtype or self.norm.weight.dtype

    def packed(self) -> Iterator[tuple[str, PackedWeight]]:
        """The packed weights, each with the name that its parameter would have."""
        for prefix, module in self.named_modules():
            if isinstance(module, Packable):
                yield from ((f"{prefix}.{name}", record) for name, record in module.packed.items())

    def encode(self, ids_BT: Tensor, cache: KVCache, lengths_B: Tensor | None = None) -> Tensor:
        """Run the causal role over new tokens and append them to the cache.

        Args:
            ids_BT: ``[B, T]`` int64; rows shorter than T are padded on the right with any id.
            cache: gains ``lengths_B`` tokens a row.
            lengths_B: ``[B]`` int64, real tokens a row (0 leaves a row as it is); None: T for all.

        Returns:
            ``[B, T, D]`` final hidden states; those of padding mean nothing.

        Raises:
            InputError: the cache has no room.
        """
        tokens = ids_BT.shape[1]
        slots = cache.reserve(tokens)
        positions = cache.lengths[:, None] + torch.arange(tokens, device=ids_BT.device)
        masks = encode_masks(self.config.text, cache.lengths, tokens, slots)
        hidden = self.stack(self.embed(ids_BT), Role.ENCODE, View(self.rotary(positions, self.dtype), masks), cache)
        cache.advance(torch.full_like(cache.lengths, tokens) if lengths_B is None else lengths_B)
        return hidden

    def encode_rows(self, ids: Sequence[Sequence[int]], caches: Sequence[KVCache]) -> list[Tensor]:
        """``encode`` for rows of any lengths in one pass, each with a cache of its own.

        Args:
            ids: token ids of each row.
            caches: of one row each.

        Returns:
            ``[T, D]`` final hidden states of each row.
        """
        slots = [cache.reserve(len(row)) for row, cache in zip(ids, caches, strict=True)]
        positions = [
            cache.lengths[:, None] + torch.arange(len(row), device=self.device) for row, cache in zip(ids, caches, strict=True)
        ]
        masks = [
            encode_masks(self.config.text, cache.lengths, len(row), end) for row, cache, end in zip(ids, caches, slots, strict=True)
        ]
        parts = [Part(cache, len(row), mask) for row, cache, mask in zip(ids, caches, masks, strict=True)]
        flat_1T = torch.tensor([[token for row in ids for token in row]], device=self.device)
        tables = self.rotary(self._filled(torch.cat(positions, dim=1)), self.dtype)
        hidden = self._rows(self.embed(self._filled(flat_1T)), Role.ENCODE, tables, parts)
        for row, cache in zip(ids, caches, strict=True):
            cache.advance(torch.full_like(cache.lengths, len(row)))
        return hidden

    def denoise_rows(
        self, canvases: Sequence[Tensor], caches: Sequence[KVCache], softs: Sequence[Tensor | None], views: "Sequence[View]"
    ) -> list[Tensor]:
        """``denoise`` for rows of any lengths in one pass, each with a cache of its own.

        Args:
            canvases: ``[1, L]`` int64 token ids of each row.
            caches: of one row each.
            softs: ``[1, L, D]`` of each row, None at its first step.
            views: of each row's cache and canvas.

        Returns:
            ``[L, D]`` final hidden states of each row.
        """
        if len(canvases) == 1 and not canvases[0].shape[1] % kernels.STEADY_ROWS:
            return [self.denoise(canvases[0], caches[0], softs[0], views[0])[0]]
        embeds = self.embed(self._filled(torch.cat(list(canvases), dim=1)))
        soft = None
        if any(row is not None for row in softs):
            given = [
                embeds.new_zeros(*canvas.shape, embeds.shape[-1]) if row is None else row
                for row, canvas in zip(softs, canvases, strict=True)
            ]
            soft = self._filled(torch.cat(given, dim=1))
        x = self.self_conditioning.combine(embeds, torch.zeros_like(embeds) if soft is None else soft)
        tables = {
            kind: (
                self._filled(torch.cat([v.tables[kind][0] for v in views], 1)),
                self._filled(torch.cat([v.tables[kind][1] for v in views], 1)),
            )
            for kind in views[0].tables
        }
        parts = [Part(cache, canvas.shape[1], view.masks) for cache, canvas, view in zip(caches, canvases, views, strict=True)]
        return self._rows(x, Role.DENOISE, tables, parts)

    def _rows(self, x_1TD: Tensor, role: Role, tables: dict[str, tuple[Tensor, Tensor]], parts: Sequence[Part]) -> list[Tensor]:
        kinds = self.config.text.layer_types
        hidden = self.stack(x_1TD, role, View(tables, dict.fromkeys(kinds)), Rows(kinds, parts))[0]
        lengths = [part.tokens for part in parts]
        return list(torch.split(hidden[: sum(lengths)], lengths))

    def view(self, cache: KVCache, length: int) -> "View":
        """What all passes over one canvas share."""
        positions = cache.lengths[:, None] + torch.arange(length, device=cache.lengths.device)
        masks = denoise_masks(self.config.text, cache.lengths, length, cache.used, cache.even)
        return View(self.rotary(positions, self.dtype), masks)

    def denoise(self, canvas_BL: Tensor, cache: KVCache, soft_BLD: Tensor | None = None, view: "View | None" = None) -> Tensor:
        """Run the bidirectional role over a canvas; the cache is only read.

        Args:
            canvas_BL: ``[B, L]`` int64 token ids.
            cache: the context; row b's canvas stands at positions ``lengths[b] ...``.
            soft_BLD: ``[B, L, D]``, the last step's expected embedding (``soften``); None at the first step.
            view: of this cache and length, made once for all passes over a canvas; None makes one.

        Returns:
            ``[B, L, D]`` final hidden states.
        """
        view = view or self.view(cache, canvas_BL.shape[1])
        return self.stack(self.canvas_embeds(canvas_BL, soft_BLD), Role.DENOISE, view, cache)

    def stack(self, x_BTD: Tensor, role: Role, view: "View", context: Context) -> Tensor:
        """All layers and the last norm over embeddings that are ready."""
        for kind, layer in zip(self.config.text.layer_types, self.layers, strict=True):
            x_BTD = layer(x_BTD, role, view.tables[kind], view.masks[kind], context)
        out: Tensor = self.norm(x_BTD)
        return out

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Embedding rows times ``sqrt(D)``, the factor rounded to the weights' dtype first, as in the reference."""
        return self.embed_tokens.rows(ids_BT, self.dtype) * self._embed_scale()

    def canvas_embeds(self, canvas_BL: Tensor, soft_BLD: Tensor | None) -> Tensor:
        """The canvas's embeddings passed through the self-conditioning block."""
        embeds = self.embed(canvas_BL)
        return self.self_conditioning.combine(embeds, torch.zeros_like(embeds) if soft_BLD is None else soft_BLD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """The tied head: float32 ``[B, T, V]``, soft-capped."""
        flat_1TD = hidden_BTD.reshape(1, -1, hidden_BTD.shape[-1])
        raw = self.embed_tokens.head(self._filled(flat_1TD))[0, : flat_1TD.shape[1]].view(*hidden_BTD.shape[:-1], -1)
        return kernels.soft_cap(raw, self.config.text.final_logit_softcapping)

    def canvas_head(
        self,
        hidden_BLD: Tensor,
        temperature_B: Tensor,
        keys_BL: Tensor,
        likely_BL: Tensor,
        *,
        soft: bool,
        soft_top_k: int | None = None,
    ) -> Statistics:
        """The statistics of a canvas's distributions, with the expected embedding if it is asked for.

        Args:
            hidden_BLD: ``[B, L, D]`` final hidden states of ``denoise``.
            temperature_B: ``[B]`` float32.
            keys_BL: ``[B, L]`` int64, keys of the draw (``Canvas.keys``).
            likely_BL: ``[B, L]`` int64, tokens thought to be probable: those now on the canvas, say.
            soft: whether the next pass is conditioned on this one.
            soft_top_k: how many of the most probable tokens the expected embedding is made of; None: all.
        """
        cap, table = self.config.text.final_logit_softcapping, self.embed_tokens.matrix("weight")
        found = kernels.canvas_head(
            hidden_BLD, table, cap, temperature_B, keys_BL, likely_BL, soft=soft, soft_top_k=soft_top_k, kernels=self.kernels
        )
        return found._replace(soft_BLD=None if found.soft_BLD is None else found.soft_BLD * self._embed_scale())

    def best_of(self, hidden_BLD: Tensor, row: int, at: int, allowed_V: Tensor) -> int:
        """The most probable of the allowed tokens at one position; few of them cost few rows of the head.

        Args:
            hidden_BLD: ``[B, L, D]`` final hidden states.
            row: which row.
            at: which position.
            allowed_V: ``[V]`` bool, one at least.
        """
        hidden_D, ids = hidden_BLD[row, at], allowed_V.nonzero().squeeze(1).to(hidden_BLD.device)
        few = 8 * len(ids) < self.embed_tokens.num_embeddings
        scores = self.embed_tokens.rows(ids, hidden_D.dtype) @ hidden_D if few else self.embed_tokens.head(hidden_D)[ids]
        return int(ids[scores.argmax()])

    def soften(self, shaped_BLV: Tensor) -> Tensor:
        """The expected embedding ``[B, L, D]`` under the softmax of (temperature-shaped) logits ``[B, L, V]``."""
        probs = shaped_BLV.softmax(dim=-1, dtype=torch.float32).to(self.dtype)
        return self.embed_tokens.mix(probs) * self._embed_scale()

    def rotary(self, positions_BT: Tensor, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosine and sine tables ``[B, T, H]`` for each layer type; angles are computed in float32."""
        tables = {}
        text = self.config.text
        for kind in sorted(set(text.layer_types)):
            frequencies = rotary_frequencies(text.rope[kind], text.head_dim_of(kind)).to(positions_BT.device)
            angles = positions_BT[..., None].float() * frequencies
            angles = torch.cat((angles, angles), dim=-1)
            tables[kind] = (angles.cos().to(dtype), angles.sin().to(dtype))
        return tables

    def _filled(self, x_1T: Tensor) -> Tensor:
        """A sequence with its last entry repeated up to a multiple of ``kernels.STEADY_ROWS``."""
        missing = -x_1T.shape[1] % kernels.STEADY_ROWS
        if not missing or not self.steady or x_1T.device.type != "cpu":
            return x_1T
        return torch.cat((x_1T, x_1T[:, -1:].expand(1, missing, *x_1T.shape[2:])), dim=1)

    def _embed_scale(self) -> float:
        return torch.tensor(self.config.text.hidden_size**0.5, dtype=self.dtype).item()


def rotary_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Angular frequencies ``[H / 2]`` float32, in radians a position.

    Source: transformers 5.23 ``compute_default_rope_parameters`` and ``_compute_proportional_rope_parameters``.
    """
    half = head_dim // 2
    turning = int(rope.partial_rotary_factor * head_dim // 2)
    exponents = torch.arange(0, 2 * turning, 2, dtype=torch.float32) / head_dim
    frequencies = torch.cat((1.0 / rope.rope_theta**exponents, torch.zeros(half - turning)))
    return frequencies / rope.factor
