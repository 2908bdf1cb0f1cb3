"""Networks over text and sound, written from their papers at a size that a test can afford."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_zoo_dense import Attention, PreNormBlock


class PostNormBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width, eps=1e-12)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask=mask))
        return self.norm2(x + self.narrow(F.gelu(self.wide(x))))


class Bert(nn.Module):
    """Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2018.

    tokens, mask int64 [1, length] -> last hidden state, pooled first token.
    """

    def __init__(self, words: int = 97, longest: int = 16, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(words, width), nn.Embedding(longest, width)
        self.kind = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(PostNormBlock(width, 4) for _ in range(depth))
        self.pooler = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(tokens.shape[1])[None]
        x = self.word(tokens) + self.position(places) + self.kind(torch.zeros_like(tokens))
        x = self.norm(x)
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(torch.float32).min
        for block in self.blocks:
            x = block(x, hidden)
        return x, torch.tanh(self.pooler(x[:, 0]))


class TextLstm(nn.Module):
    """Graves, Schmidhuber, Framewise Phoneme Classification with Bidirectional LSTM, 2005: two layers, then
    the largest over time; int64 [1, length] -> [1, classes].
    """

    def __init__(self, words: int = 97, width: int = 24, hidden: int = 20, classes: int = 4) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width, padding_idx=0)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.word(tokens))
        return self.head(states.amax(1))


class TextGru(nn.Module):
    """Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014: a language model that
    returns its state; tokens int64 [1, length], state [1, 1, hidden] -> scores of the next token, state.
    """

    def __init__(self, words: int = 97, width: int = 24, hidden: int = 32) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, words)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.gru(self.word(tokens), state)
        return F.log_softmax(self.head(self.norm(states)), -1), last


def sinusoids(length: int, width: int) -> Tensor:
    """The positions of Attention Is All You Need: sines, then cosines."""
    rates = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Whisper(nn.Module):
    """Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022.

    mel [1, bands, frames], tokens int64 [1, length] -> scores of the next token [1, length, words]. Two
    convolutions over time in front of the encoder; a decoder with causal and cross-attention; the output
    shares the embedding's weights.
    """

    def __init__(self, bands: int = 20, frames: int = 40, words: int = 97, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, 2, padding=1)
        self.register_buffer("sound_places", sinusoids(frames // 2, width))
        self.encoder = nn.Sequential(*(PreNormBlock(width, 4) for _ in range(2)), nn.LayerNorm(width))
        self.word, self.positions = nn.Embedding(words, width), nn.Parameter(torch.zeros(16, width))
        self.decoder = nn.ModuleList(PreNormBlock(width, 4, cross=True) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        sound = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        sound = self.encoder(sound + self.sound_places)
        length = tokens.shape[1]
        x = self.word(tokens) + self.positions[:length]
        causal = torch.full((length, length), float("-inf")).triu(1)
        for block in self.decoder:
            x = block(x, sound, causal)
        return self.norm(x) @ self.word.weight.T
