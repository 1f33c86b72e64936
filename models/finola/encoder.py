"""Encoders: a compact Mobile-Former of our own and any timm backbone; the attentional pooling behind them."""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.modes import followed

Pooling = Literal["attentional", "linear"]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 8 groups, or as many as divide the channels: no statistics across a batch."""
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class MobileBlock(nn.Module):
    """Inverted residual: 1x1 to twice the channels, depthwise 3x3, 1x1 back, beside a path without normalisation.

    Group statistics belong to one image: a network of normalised layers alone would lose its brightness and contrast,
    which a reconstruction needs. The path beside (an identity; where shapes change, a mean and a 1x1) keeps them.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        wide = 2 * in_channels
        same = stride == 1 and in_channels == out_channels
        self.skip: nn.Module = (
            nn.Identity() if same else nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(in_channels, out_channels, 1))
        )
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, wide, 1, bias=False),
            group_norm(wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            group_norm(wide),
            nn.SiLU(),
            nn.Conv2d(wide, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        return self.skip(x) + self.body(x)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one head, (B, T, D); an exporter knows it with an axis of heads only."""
    if not followed():
        return F.scaled_dot_product_attention(query, key, value)
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


class Former(nn.Module):
    """A few global tokens beside the map: they read it, talk among themselves, and write back (light cross attention).

    The map's side has no projections, as in Mobile-Former: queries (reading) and keys and values (writing) are
    projected on the tokens' side only.
    """

    def __init__(self, channels: int, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.to_map = nn.Linear(dim, channels)
        self.from_map = nn.Linear(channels, dim)
        self.norm_attention, self.norm_mlp, self.norm_write = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.write_key, self.write_value = nn.Linear(dim, channels), nn.Linear(dim, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) and tokens (B, T, D) -> the same shapes."""
        cells = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.from_map(_attend(self.to_map(tokens), cells, cells))
        normed = self.norm_attention(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        normed = self.norm_write(tokens)
        written = _attend(cells, self.write_key(normed), self.write_value(normed))
        return x + written.transpose(1, 2).unflatten(2, x.shape[2:]), tokens


def _check_shape(width: int, depth: int, stride: int) -> None:
    if stride < 2 or stride & (stride - 1):
        raise ConfigError(f"model.stride: expected 2, 4, 8, 16 or 32, got {stride}")
    if width < 1 or depth < 1:
        raise ConfigError(f"model.encoder_width and model.encoder_depth: expected at least 1, got {width}, {depth}")


class MobileFormerEncoder(nn.Module):
    """A compact Mobile-Former-like encoder: convolutions and global tokens in parallel, bridged both ways (section 4).

    Args:
        width: channels after the stem; they double at every further halving.
        stride: input pixels per feature cell, a power of two from 2 up.
        tokens: number of global tokens.
        token_dim: their size.
        depth: blocks per stage.

    Raises:
        ConfigError: a stride that is no power of two.
    """

    def __init__(self, width: int = 32, stride: int = 16, tokens: int = 6, token_dim: int = 96, depth: int = 2) -> None:
        super().__init__()
        _check_shape(width, depth, stride)
        self.stride = stride
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.SiLU())
        self.tokens = nn.Parameter(torch.randn(tokens, token_dim))
        self.mobile, self.former = nn.ModuleList(), nn.ModuleList()
        channels = width
        for level in range(stride.bit_length() - 1):
            out = width * 2**level
            for block in range(depth):
                self.mobile.append(MobileBlock(channels, out, 2 if level and not block else 1))
                self.former.append(Former(out, token_dim))
                channels = out
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, out_channels, H / stride, W / stride)."""
        x = self.stem(x)
        tokens = self.tokens.expand(x.shape[0], -1, -1)
        for mobile, former in zip(self.mobile, self.former, strict=True):
            x, tokens = former(mobile(x), tokens)
        return x


class ConvEncoder(nn.Sequential):
    """3x3 convolutions of stride 2 with doubling channels, SiLU between them and no normalisation.

    Few operations, for short runs and small pictures; brightness and contrast reach the features unnormalised.

    Args:
        width: channels after the first convolution.
        stride: input pixels per feature cell, a power of two from 2 up.
        depth: convolutions per halving; the first has the stride.

    Raises:
        ConfigError: a stride that is no power of two.
    """

    def __init__(self, width: int = 32, stride: int = 16, depth: int = 1) -> None:
        _check_shape(width, depth, stride)
        layers: list[nn.Module] = []
        channels = 3
        for level in range(stride.bit_length() - 1):
            out = width * 2**level
            for block in range(depth):
                layers += [nn.SiLU(), nn.Conv2d(channels, out, 3, 1 if block else 2, 1)]
                channels = out
        super().__init__(*layers[1:])
        self.stride, self.out_channels = stride, channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, out_channels, H / stride, W / stride)."""
        return super().forward(x)


class TimmEncoder(nn.Module):
    """Any timm backbone that gives feature maps, cut behind the level of the wanted stride.

    Later stages are not built: they would cost time, and DDP refuses parameters without a gradient. HRNet's branches
    run beside each other and stay; under DDP it needs `find_unused_parameters`.

    Args:
        name: in timm's words, e.g. `convnextv2_atto.fcmae`.
        stride: input pixels per feature cell.
        pretrained: load timm's weights (downloads them).

    Raises:
        ConfigError: timm has no such model, or it has no level of this stride.
    """

    def __init__(self, name: str, stride: int = 16, pretrained: bool = False) -> None:
        super().__init__()
        import timm

        # the getter leaves out what lies behind the last level; the default of EfficientNet and MobileNetV3 does not
        build: Any = partial(timm.create_model, name, features_only=True, feature_cls="getter")
        try:
            levels = build().feature_info
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            near = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
            raise ConfigError(
                f"model.encoder: expected mobile_former, cnn or a timm model with feature maps, got {name!r} "
                f"({error}); timm has {', '.join(near) or 'nothing of a similar name'}"
            ) from error
        strides = levels.reduction()
        if stride not in strides:
            raise ConfigError(f"model.stride: {name} has feature maps of stride {strides}, got {stride}")
        level = strides.index(stride)
        self.stride, self.out_channels = stride, levels.channels()[level]
        self.backbone = build(pretrained=pretrained, out_indices=(levels.out_indices[level],))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, out_channels, H / stride, W / stride)."""
        return self.backbone(x)[0]


def named_encoder(name: str, width: int, depth: int, stride: int, pretrained: bool) -> nn.Module:
    """`mobile_former` or `cnn` of this width and depth, or a timm model by its name; all have `out_channels`."""
    if name == "mobile_former":
        return MobileFormerEncoder(width, stride, depth=depth)
    if name == "cnn":
        return ConvEncoder(width, stride, depth)
    return TimmEncoder(name, stride, pretrained)


class AttentionalPool(nn.Module):
    """Learned seeds that attend over a feature map (Set Transformer's pooling), concatenated and cut into M vectors.

    The number of seeds and of vectors are independent of each other (section 4). Values and output are as wide as a
    seed's share of the result, and heads differ in where they look, so that the result is not confined to as many
    dimensions as the features have channels. Keys carry the cells' positions, sines of (row, column).

    Args:
        in_channels: of the feature map.
        vectors: M.
        channels: C of every vector.
        seeds: they must divide M C.
        heads: of the attention, fewer where they do not divide a seed's share.

    Raises:
        ConfigError: seeds that do not divide M C.
    """

    def __init__(self, in_channels: int, vectors: int, channels: int, seeds: int = 1, heads: int = 16) -> None:
        super().__init__()
        if seeds < 1 or (vectors * channels) % seeds:
            raise ConfigError(
                f"model.seeds: {seeds} seeds do not divide the latent of {vectors} x {channels} = {vectors * channels}"
            )
        share = vectors * channels // seeds
        self.heads = max(h for h in range(1, min(heads, share) + 1) if share % h == 0)
        self.vectors, self.channels, self.key_dim = vectors, channels, 32
        self.norm = nn.LayerNorm(in_channels)
        # large seeds: heads that look somewhere from the start; small ones would all begin as the mean over the map
        self.seeds = nn.Parameter(6 * torch.randn(self.heads, seeds, self.key_dim))
        self.key = nn.Linear(in_channels + 16, self.heads * self.key_dim)
        self.value = nn.Linear(in_channels, share)
        self.out = nn.Linear(share, share)
        # the vectors begin with about unit variance, and no bias that all images share
        nn.init.normal_(self.out.weight, std=(1 / share) ** 0.5)
        nn.init.zeros_(self.out.bias)
        nn.init.zeros_(self.value.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, M, C)."""
        cells = x.flatten(2).transpose(1, 2)
        places = _position_code(x.shape[2], x.shape[3], cells).expand(x.shape[0], -1, -1)
        key = self.key(torch.cat([self.norm(cells), places], -1)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        value = self.value(cells).unflatten(2, (self.heads, -1)).transpose(1, 2)
        pooled = F.scaled_dot_product_attention(self.seeds.expand(x.shape[0], -1, -1, -1).to(key.dtype), key, value)
        return self.out(pooled.transpose(1, 2).flatten(2)).reshape(x.shape[0], self.vectors, self.channels)


class LinearPool(nn.Module):
    """All cells of a feature map through one linear layer: a latent of a fixed image size.

    Args:
        in_channels: of the feature map.
        cells: of the feature map, H W.
        vectors: M.
        channels: C of every vector.
    """

    def __init__(self, in_channels: int, cells: int, vectors: int, channels: int) -> None:
        super().__init__()
        self.vectors, self.channels = vectors, channels
        self.linear = nn.Linear(in_channels * cells, vectors * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, M, C)."""
        return self.linear(x.flatten(1)).reshape(x.shape[0], self.vectors, self.channels)


def build_pool(
    pooling: Pooling, in_channels: int, cells: int, vectors: int, channels: int, seeds: int
) -> "AttentionalPool | LinearPool":
    """The pooling of this name; `cells` serve `linear`, `seeds` serve `attentional`.

    Raises:
        ConfigError: a name that is neither, or seeds that do not divide M C.
    """
    if pooling == "attentional":
        return AttentionalPool(in_channels, vectors, channels, seeds)
    if pooling == "linear":
        return LinearPool(in_channels, cells, vectors, channels)
    raise ConfigError(f"model.pooling: expected attentional or linear, got {pooling!r}")


def _position_code(height: int, width: int, like: Tensor) -> Tensor:
    """(H W, 16): sines and cosines of both coordinates in [0, 1] at four frequencies."""
    y, x = ((torch.arange(n, device=like.device) + 0.5) / n for n in (height, width))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)
    angles = (grid[:, :, None] * torch.pi * 2.0 ** torch.arange(4, device=like.device)).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)
