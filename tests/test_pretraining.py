import open_clip
import torch
from torch.nn import functional as F

from uniovseg.pretraining import WordHead

NAMES = ["striped red star", "dotted red ring", "plain blue star"]


def tokens_of(texts: list[str]) -> torch.Tensor:
    tokens: torch.Tensor = open_clip.SimpleTokenizer(context_length=16)(texts)
    return tokens


def test_the_words_are_those_that_tell_names_apart() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    head = WordHead(tokens_of(NAMES), 4)
    assert {tokenizer.decode([token]).strip() for token in head.words.tolist()} == {"striped", "dotted", "plain", "red", "blue", "star", "ring"}


def test_the_loss_is_the_cross_entropy_of_each_word() -> None:
    """Oracle: one caption and one word at a time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = WordHead(tokens_of(NAMES), 4)
    captions = tokens_of(["a plain red ring", "two stars"])
    embedding = F.normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    expected = 0.0
    with torch.no_grad():
        for row in range(2):
            logits = head.linear.weight @ embedding[row] * 10 + head.linear.bias
            for word, logit in zip(head.words.tolist(), logits.sigmoid().tolist(), strict=True):
                expected -= float(torch.tensor(logit if word in captions[row].tolist() else 1 - logit).log()) / 2
        found = head(embedding, captions).item()
    assert abs(found - expected) < 1e-4


def test_an_embedding_learns_its_words() -> None:
    """The head's gradient reaches the embedding: a few steps on it alone make it say the caption's words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = WordHead(tokens_of(NAMES), 16)
    captions = tokens_of(NAMES)
    embedding = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    optimizer = torch.optim.Adam([embedding, *head.parameters()], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        head(F.normalize(embedding, dim=-1), captions).backward()
        optimizer.step()
    said = head.linear(head.scale * F.normalize(embedding, dim=-1)) > 0
    assert torch.equal(said, (captions[:, None, :] == head.words[:, None]).any(-1))
