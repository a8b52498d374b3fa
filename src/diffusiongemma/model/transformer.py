"""The stack of weights and its two passes: ``encode`` (causal, writes the cache) and ``denoise`` (bidirectional, reads it).

Shapes: B batch, T tokens, L canvas, D hidden, V vocabulary, H head size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusiongemma import kernels
from diffusiongemma.diffusion import CanvasWindow, make_process
from diffusiongemma.kernels import BatchInvariance, Kernels, SoftPositions, Statistics
from diffusiongemma.model.attention import AttentionBackend, AttentionContext, Role, RowLoop, Segment
from diffusiongemma.model.cache import KVCache, RowCache, prefill_chunk
from diffusiongemma.model.config import ModelConfig, RopeConfig
from diffusiongemma.model.layers import Embedding, Layer, RMSNorm, SelfConditioning
from diffusiongemma.model.packable import Packable
from diffusiongemma.quant import PackedWeight

__all__ = ["PassMetadata", "Tables", "Transformer"]

Tables = dict[str, tuple[Tensor, Tensor]]
"""Layer type to cosines and sines ``[B, T, H]``."""


class PassMetadata(NamedTuple):
    """What all passes over one canvas share.

    Attributes:
        tables: where its tokens stand.
        segment: what they attend to.
    """

    tables: Tables
    segment: Segment


class Transformer(nn.Module):
    """DiffusionGemma's text stack. Built empty; weights come from a checkpoint or from a recipe's initialisation.

    Args:
        config: the checkpoint's configuration.
        kernels: ``plain`` takes the reference of the canvas head, to compare with.

    Attributes:
        process: of diffusion, which the weights were trained with.
        batch_invariant: whether in float32 on a CPU a row has the same bits whatever its neighbours are
            (``kernels.BatchInvariance``). Without it a causal token alone costs less.
        attention: how rows attend to their caches.
        int8_products: whether weights and products are in int8 (``model.fast``): faster on a CPU, not exact.
        compute_dtype: of hidden states, where it is not that of the weights; None: theirs.
        stored_dtype: of keys and values in the cache, where it is not that of hidden states; None: theirs.
        recompute_layers: whether a layer keeps only its input for the gradient and is computed again: less memory, more work.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels = "auto") -> None:
        super().__init__()
        self.config = config
        self.process = make_process(config.process, config.text.vocab_size)
        self.kernels = kernels
        self.batch_invariant = True
        self.attention: AttentionBackend = RowLoop(config.text)
        self.int8_products = False
        self.compute_dtype: torch.dtype | None = None
        self.stored_dtype: torch.dtype | None = None
        self.recompute_layers = False
        text = config.text
        # Rounded to each dtype once: a tensor read back in a pass would cut a compiled one in pieces.
        kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        self._embed_scales = {dtype: torch.tensor(text.hidden_size**0.5, dtype=dtype, device="cpu").item() for dtype in kinds}
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
        """The dtype of hidden states."""
        return self.compute_dtype or self.norm.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype that keys and values are stored in."""
        return self.stored_dtype or self.dtype

    @property
    def invariance(self) -> BatchInvariance:
        """How sequences are filled up."""
        exact = self.batch_invariant and self.device.type == "cpu" and self.dtype == torch.float32
        return kernels.BATCH_INVARIANT if exact else kernels.AS_THEY_COME

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
        rows, tokens = ids_BT.shape
        lengths = [tokens] * rows if lengths_B is None else lengths_B.tolist()
        for each, new in zip(cache.rows, lengths, strict=True):
            each.check_room(new)
        hidden = torch.zeros(rows, tokens, self.config.text.hidden_size, dtype=self.dtype, device=self.device)
        chunk = prefill_chunk(self.device)
        for start in range(0, max(lengths), chunk):
            ends = [min(new, start + chunk) for new in lengths]
            going = [row for row, end in enumerate(ends) if end > start]
            ids = [ids_BT[row, start : ends[row]] for row in going]
            statistics = self._encode(ids, [cache.rows[row] for row in going])
            for place, hidden_TD in zip(going, statistics, strict=True):
                hidden[place, start : ends[place]] = hidden_TD
        return hidden

    def encode_rows(self, ids: Sequence[Sequence[int]], caches: Sequence[RowCache]) -> list[Tensor]:
        """``encode`` for rows of any lengths in one pass, each with a cache of its own.

        Args:
            ids: token ids of each row, at least one.
            caches: of each row.

        Returns:
            ``[T, D]`` final hidden states of each row.

        Raises:
            InputError: a cache has no room.
        """
        for row, cache in zip(ids, caches, strict=True):
            cache.check_room(len(row))
        return self._encode([torch.tensor(row, device=self.device) for row in ids], caches)

    def _encode(self, ids: Sequence[Tensor], caches: Sequence[RowCache]) -> list[Tensor]:
        segments = [self.attention.encoding(cache, len(new)) for new, cache in zip(ids, caches, strict=True)]
        positions = [at for cache, new, _ in segments for at in range(cache.length, cache.length + new)]
        tables = self.rotary(self._filled(torch.tensor([positions], device=self.device)), self.dtype)
        hidden = self._ragged(self.embed(self._filled(_joined(ids, 0)[None])), Role.ENCODE, tables, segments)
        for segment in segments:
            segment.cache.advance(segment.tokens)
        return hidden

    def denoise(
        self, canvas_BL: Tensor, cache: KVCache, soft_BLD: Tensor | None = None, canvas_window: CanvasWindow = "shared"
    ) -> Tensor:
        """Run the bidirectional role over a canvas; the cache is only read.

        Args:
            canvas_BL: ``[B, L]`` int64 token ids.
            cache: the context; row b's canvas stands at positions ``lengths[b] ...``.
            soft_BLD: ``[B, L, D]``, the last step's expected embedding (``soften``); None at the first step.
            canvas_window: what a canvas position sees in sliding layers (``masks``).

        Returns:
            ``[B, L, D]`` final hidden states.
        """
        canvases = torch.split(canvas_BL, 1)
        softs: Sequence[Tensor | None] = [None] * len(canvases) if soft_BLD is None else torch.split(soft_BLD, 1)
        metadata = {row: self.canvas_metadata(row, canvas_BL.shape[1], canvas_window) for row in set(cache.rows)}
        return torch.stack(self.denoise_rows(canvases, softs, [metadata[row] for row in cache.rows]))

    def canvas_metadata(self, cache: RowCache, length: int, canvas_window: CanvasWindow = "shared") -> PassMetadata:
        """What all passes over one canvas of a length share."""
        positions = torch.arange(cache.length, cache.length + length, device=self.device)[None]
        return PassMetadata(self.rotary(positions, self.dtype), self.attention.denoising(cache, length, canvas_window))

    def denoise_rows(
        self, canvases: Sequence[Tensor], softs: Sequence[Tensor | None], metadata: Sequence[PassMetadata]
    ) -> list[Tensor]:
        """``denoise`` for canvases of any lengths in one pass.

        Args:
            canvases: ``[1, L]`` int64 token ids of each row.
            softs: ``[1, L, D]`` of each row, None at its first step.
            metadata: of each row's cache and canvas (``canvas_metadata``); several rows may stand after the same context.

        Returns:
            ``[L, D]`` final hidden states of each row.
        """
        ids = self._filled(_joined(canvases))
        soft = None
        if any(row is not None for row in softs):
            blank_D = torch.zeros(self.config.text.hidden_size, dtype=self.dtype, device=self.device)
            rows = zip(softs, canvases, strict=True)
            soft = self._filled(_joined([blank_D.expand(*canvas.shape, -1) if row is None else row for row, canvas in rows]))
        tables = {
            kind: (
                self._filled(_joined([each.tables[kind][0] for each in metadata])),
                self._filled(_joined([each.tables[kind][1] for each in metadata])),
            )
            for kind in metadata[0].tables
        }
        return self._ragged(self.canvas_embeds(ids, soft), Role.DENOISE, tables, [each.segment for each in metadata])

    def _ragged(self, x_1TD: Tensor, role: Role, tables: Tables, segments: Sequence[Segment]) -> list[Tensor]:
        hidden = self.stack(x_1TD, role, tables, self.attention.prepare(segments))[0]
        lengths = [segment.tokens for segment in segments]
        return list(torch.split(hidden[: sum(lengths)], lengths))

    def stack(self, x_BTD: Tensor, role: Role, tables: Tables, context: AttentionContext) -> Tensor:
        """All layers and the last norm over embeddings that are ready."""
        for kind, layer in zip(self.config.text.layer_types, self.layers, strict=True):
            if self.recompute_layers and torch.is_grad_enabled():
                x_BTD = checkpoint(layer, x_BTD, role, tables[kind], context, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, role, tables[kind], context)
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
        soft: SoftPositions,
        top: int = 0,
        top_at_M: Tensor | None = None,
    ) -> Statistics:
        """The statistics of the distributions over canvases; a position's depend on nothing of the others.

        Args:
            hidden_BLD: ``[B, L, D]`` final hidden states of ``denoise``.
            temperature_B: ``[B]`` float32.
            keys_BL: ``[B, L]`` int64, keys of the draw (``Canvas.keys``).
            likely_BL: ``[B, L]`` int64, tokens thought to be probable: those now on the canvas, say.
            soft: where the expected embedding is wanted, and of how many tokens it is made.
            top, top_at_M: see ``kernels.reference.canvas_head``.
        """
        cap, table = self.config.text.final_logit_softcapping, self.embed_tokens.matrix("weight").table
        statistics = kernels.canvas_head(
            hidden_BLD, table, cap, temperature_B, keys_BL, likely_BL, soft=soft, top=top, top_at_M=top_at_M,
            positions=self.config.canvas_length, kernels=self.kernels, invariance=self.invariance,
        )  # fmt: skip
        return statistics._replace(soft_BLD=None if statistics.soft_BLD is None else statistics.soft_BLD * self._embed_scale())

    def best_of(self, hidden_D: Tensor, allowed_V: Tensor) -> int:
        """The most probable of the allowed tokens at one position; few of them cost few rows of the head.

        Args:
            hidden_D: ``[D]`` final hidden state.
            allowed_V: ``[V]`` bool, one at least.
        """
        ids = allowed_V.nonzero().squeeze(1).to(hidden_D.device)
        few = 8 * len(ids) < self.embed_tokens.num_embeddings
        scores = self.embed_tokens.rows(ids, hidden_D.dtype) @ hidden_D if few else self.embed_tokens.head(hidden_D)[ids]
        return int(ids[scores.argmax()])

    def soften(self, shaped_BLV: Tensor) -> Tensor:
        """The expected embedding ``[B, L, D]`` under the softmax of (temperature-shaped) logits ``[B, L, V]``."""
        probs = shaped_BLV.softmax(dim=-1, dtype=torch.float32).to(self.dtype)
        return self.embed_tokens.mix(probs) * self._embed_scale()

    def rotary(self, positions_BT: Tensor, dtype: torch.dtype) -> Tables:
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
        return self.invariance.fill(x_1T, 1)

    def _embed_scale(self) -> float:
        return self._embed_scales[self.dtype]


def _joined(rows: Sequence[Tensor], dim: int = 1) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows), dim=dim)


def rotary_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Angular frequencies ``[H / 2]`` float32, in radians a position.

    Source: transformers 5.23 ``compute_default_rope_parameters`` and ``_compute_proportional_rope_parameters``.
    """
    half = head_dim // 2
    turning = int(rope.partial_rotary_factor * head_dim // 2)
    exponents = torch.arange(0, 2 * turning, 2, dtype=torch.float32) / head_dim
    frequencies = torch.cat((1.0 / rope.rope_theta**exponents, torch.zeros(half - turning)))
    return frequencies / rope.factor
