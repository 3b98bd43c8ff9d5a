"""Mask2Former's query decoder (Cheng et al. 2021, arXiv 2112.01527): queries become masks with classes.

Before the first layer and after each of nine, the queries are read out as class logits and mask logits; where
its mask is decides where a query may look next. Parameter names are those of DINOv3's port.

Letters: B image, Q query, C width, S place of the level in turn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.heads.adapter import to_tokens
from maskshards.train.model.heads.prediction import MaskProduct, Prediction
from maskshards.train.model.heads.rules import FEED_FORWARD, NUM_QUERIES
from maskshards.train.model.ops.activation_checkpoint import Recomputing
from maskshards.train.model.ops.autocast_norms import to_autocast
from maskshards.train.model.ops.resize import resized
from maskshards.train.model.ops.sine_position import sine_position

NUM_LAYERS = 9
NUM_LEVELS = 3
NUM_HEADS = 16
WIDENED = {"cpu"}  # devices whose kernels of attention take 16-bit heads badly


class Attention(nn.Module):
    """torch.nn.MultiheadAttention's function and parameter names, batch first, one mask for all heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query (B, Q, C), key and value (B, S, C), allowed (B, Q, S) bool -> (B, Q, C)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        out = attended(q, k, v, None if allowed is None else allowed[:, None])
        return self.out_proj(out.transpose(1, 2).flatten(2))


def attended(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d)) v of q (B, M, Q, d), k and v (B, M, S, d), in their type.

    On a CPU 16-bit heads are widened: torch's gradient of this takes 2 to 5 times as long in bfloat16 there.
    """
    if q.device.type not in WIDENED or q.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=allowed).to(q.dtype)


class CrossAttention(nn.Module):
    """Queries look at the allowed places of a feature map; residual, norm behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, query_position: Tensor, key: Tensor, memory: Tensor, allowed: Tensor
    ) -> Tensor:
        """queries (B, Q, C), key and memory (B, S, C): with and without their position, allowed (B, Q, S)."""
        return self.norm(queries + self.multihead_attn(queries + query_position, key, memory, allowed))


class SelfAttention(nn.Module):
    """Queries look at each other; residual, norm behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        placed = queries + query_position
        return self.norm(queries + self.self_attn(placed, placed, queries))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between; residual, norm behind."""

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, width)
        self.norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(queries + self.linear2(F.relu(self.linear1(queries))))


class MaskEmbedding(nn.Module):
    """Three linear layers with ReLU between them: query -> the vector its mask is the response to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        return self.layers[2](F.relu(self.layers[1](x)))


class QueryDecoder(Recomputing):
    """Mask features and three coarse maps -> NUM_LAYERS + 1 predictions, the last final; it alone in eval.

    `tells_product` lets the loss multiply matched masks out by themselves; False: all masks have a gradient.
    `multiplies_out` False, with it: in training no mask is multiplied out here, the loss samples the mask
    features for its costs.
    """

    tells_product: bool = True
    multiplies_out: bool = True

    def __init__(
        self, width: int, num_classes: int, num_queries: int = NUM_QUERIES, ffn_dim: int = FEED_FORWARD
    ) -> None:
        super().__init__()
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(width) for _ in range(NUM_LAYERS)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttention(width) for _ in range(NUM_LAYERS)
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(width, ffn_dim) for _ in range(NUM_LAYERS))
        self.post_norm = nn.LayerNorm(width)
        self.query_feat = nn.Embedding(num_queries, width)
        self.query_embed = nn.Embedding(num_queries, width)
        self.level_embed = nn.Embedding(NUM_LEVELS, width)
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.mask_embed = MaskEmbedding(width)

    def forward(self, mask_features: Tensor, maps: list[Tensor]) -> list[Prediction]:
        """mask_features (B, C, H/4, W/4); maps (B, C, ., .) at strides 32, 16, 8."""
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        memories = [to_autocast(to_tokens(m) + self.level_embed.weight[i]) for i, m in enumerate(maps)]
        exact = torch.promote_types(memories[0].dtype, torch.float32)
        width, device = mask_features.shape[1], mask_features.device
        positions = [sine_position(shape, width, device, exact) for shape in shapes]
        keys = [
            memory + position.to(memory.dtype) for memory, position in zip(memories, positions, strict=True)
        ]
        # Resizing and the product with a query commute: masks are compared at full size once, for all layers.
        small = [resized(mask_features.detach(), shape) for shape in shapes]
        batch = mask_features.shape[0]
        queries = self.query_feat.weight.expand(batch, -1, -1)
        query_position = self.query_embed.weight
        normed = [self.post_norm(queries)]
        vectors = [self.mask_embed(normed[0])]
        for i in range(NUM_LAYERS):
            level = i % NUM_LEVELS
            allowed = allowed_places(vectors[-1].detach(), small[level])
            cross, among = (
                self.transformer_cross_attention_layers[i],
                self.transformer_self_attention_layers[i],
            )
            queries = self.run(cross, queries, query_position, keys[level], memories[level], allowed)
            queries = self.run(among, queries, query_position)
            queries = self.run(self.transformer_ffn_layers[i], queries)
            normed.append(self.post_norm(queries))
            vectors.append(self.mask_embed(normed[-1]))
        return self.read_out(torch.stack(normed, 1), torch.stack(vectors, 1), mask_features)

    def read_out(self, normed: Tensor, vectors: Tensor, mask_features: Tensor) -> list[Prediction]:
        """Class and mask logits of all layers' queries (B, L, Q, C) in one product each.

        In eval mode only the last's. One product has one gradient for the mask features; ten would each write
        one of their size, to be added up.
        """
        if not self.training:  # only the last is asked for: nine products less
            normed, vectors = normed[:, -1:], vectors[:, -1:]
        vectors, mask_features = to_autocast(vectors), to_autocast(mask_features)
        classes = self.class_embed(normed).unbind(1)
        product = MaskProduct(vectors, mask_features) if self.tells_product else None
        if self.training and product is not None and not self.multiplies_out:
            return [Prediction(c, None, product, layer) for layer, c in enumerate(classes)]
        masks = torch.einsum("blqc,bchw->blqhw", vectors, mask_features).unbind(1)
        answers = enumerate(zip(classes, masks, strict=True))
        return [Prediction(c, m, product, layer) for layer, (c, m) in answers]


def allowed_places(vectors: Tensor, small_features: Tensor) -> Tensor:
    """(B, Q, h * w) bool: where each query may look next: inside its own mask, or anywhere if that is empty.

    vectors (B, Q, C) and mask features (B, C, h, w) at the size of the next level. Selected by arithmetic on
    the mask, not by indexing with it: that would wait for the device.
    """
    with torch.no_grad():
        blocked = (vectors @ small_features.flatten(2)).sigmoid() < 0.5
        return ~(blocked & ~blocked.all(-1, keepdim=True))
