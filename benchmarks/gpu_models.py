"""Models of `gpu_throughput.py` in plain torch: a Llama-like decoder and ResNet-50. Nothing else needs to be installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workloads.chunked_loss import ChunkedHead


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder and what one micro batch of it is."""

    layers: int
    width: int
    heads: int
    inner: int
    tied: bool
    micro_batch: int
    block: int = 2048
    vocabulary: int = 32_000
    note: str = ""

    @property
    def flops_per_token(self) -> float:
        """PaLM, appendix B: 6 N + 12 L h s; N without the embedding of an untied model, which multiplies nothing."""
        layer = 4 * self.width**2 + 3 * self.width * self.inner + 2 * self.width
        parameters = self.layers * layer + self.width + self.vocabulary * self.width
        return 6.0 * parameters + 12.0 * self.layers * self.width * self.block


SHAPES = {
    "tiny": Shape(layers=2, width=32, heads=2, inner=64, tied=True, micro_batch=2, block=16, vocabulary=64),
    "125m": Shape(layers=12, width=768, heads=12, inner=2048, tied=True, micro_batch=16),
    "350m": Shape(layers=24, width=1024, heads=16, inner=2816, tied=True, micro_batch=8),
    "1.3b": Shape(layers=24, width=2048, heads=16, inner=5504, tied=False, micro_batch=4),
    "7b": Shape(
        layers=6, width=4096, heads=32, inner=11_008, tied=False, micro_batch=4,
        note="6 of the 32 layers: two copies of all with their optimizers would not fit on one card; FLOPs are those of the 6",
    ),
}  # fmt: skip


class Decoder(nn.Module):  # type: ignore[misc]
    """`forward(tokens, targets)` -> mean cross entropy. RMSNorm, rotary positions, SDPA, SwiGLU."""

    def __init__(self, shape: Shape, chunk: int = 0, stream: torch.dtype | None = None) -> None:
        """`chunk`: the loss is computed from the logits of so many tokens at a time; 0: of all. `stream`: of the residual stream."""
        super().__init__()
        self.chunk, self.stream = chunk, stream
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.head = ChunkedHead(shape.width, shape.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if shape.tied:
            self.head.weight = self.embedding.weight
        angles = torch.outer(torch.arange(shape.block), 10_000.0 ** -(torch.arange(0, 1, 2 * shape.heads / shape.width)))
        self.register_buffer("rotation", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x if self.stream is None else x.to(self.stream)
        for layer in self.layers:
            x = layer(x, self.rotation)
        x = self.norm(x)
        if self.chunk:
            return self.head(x, targets, self.chunk) / targets.numel()
        return functional.cross_entropy(self.head(x).flatten(0, 1).float(), targets.flatten())


class Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.before_attention, self.before_mlp = nn.RMSNorm(shape.width, eps=1e-6), nn.RMSNorm(shape.width, eps=1e-6)
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.gate_up = nn.Linear(shape.width, 2 * shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query_key_value(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """`x` [samples, heads, tokens, width]; `rotation` fp32 [2, tokens, width / 2]. In fp32, as in Llama."""
    cos, sin = rotation
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


RESNET_BATCH = 256
RESNET_FLOPS = 3 * 2 * 4.09e9
"""Of the forward and backward pass of one image of 224 x 224: 4.09 G multiply-adds forward (He et al. 2015, counted for stride in the
3 x 3), twice as much backward."""


class ResNet50(nn.Module):  # type: ignore[misc]
    """He et al. 2015 with the stride in the 3 x 3 convolution. `forward(images, targets)` -> mean cross entropy."""

    def __init__(self, stages: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        incoming = width
        for stage, count in enumerate(stages):
            inner = width << stage
            for number in range(count):
                blocks.append(Bottleneck(incoming, inner, stride=2 if stage and not number else 1))
                incoming = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(incoming, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(self.blocks(self.stem(images)).mean((2, 3))).float(), targets)


class Bottleneck(nn.Module):  # type: ignore[misc]
    def __init__(self, incoming: int, inner: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(incoming, inner, 1, 1), nn.ReLU(inplace=True), *convolution(inner, inner, 3, stride), nn.ReLU(inplace=True),
            *convolution(inner, 4 * inner, 1, 1),
        )  # fmt: skip
        same = incoming == 4 * inner and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(incoming, 4 * inner, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x), inplace=True)


def convolution(incoming: int, outgoing: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(incoming, outgoing, size, stride, size // 2, bias=False), nn.BatchNorm2d(outgoing)


def decoder_batch(shape: Shape, device: torch.device) -> dict[str, Any]:
    tokens = torch.randint(0, shape.vocabulary, (shape.micro_batch, shape.block + 1), device=device)
    return {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


def image_batch(count: int, side: int, device: torch.device) -> dict[str, Any]:
    images = torch.randn(count, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    return {"inputs": images, "targets": torch.randint(0, 1000, (count,), device=device)}
