import hashlib
import random

import open_clip
import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn import functional as F

from uniovseg.models.clip import Clip, build_shapes_clip
from uniovseg.models.text_classifier import TEMPLATE_SETS, TextClassifier, build_text_classifier, embed_phrases, template_set
from uniovseg.records import Category, Vocabulary

PHRASES = ["red star", "water", "a {brace} in a name", "striped blue ring", "grass"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_shapes_clip()
    return Clip(model, open_clip.SimpleTokenizer(context_length=model.context_length)).freeze()


class HashedText(Clip):
    """A CLIP whose text tower gives every sentence its own random vector, of a random length, and counts its calls."""

    def __init__(self) -> None:
        super().__init__(build_shapes_clip(), None)
        self.freeze()
        self.calls: list[int] = []

    def encode_text(self, texts: list[str]) -> Tensor:
        self.calls.append(len(texts))
        return torch.stack([torch.frombuffer(bytearray(hashlib.shake_128(text.encode()).digest(128)), dtype=torch.int8).float() for text in texts])


def vocabulary_of(names: list[str]) -> Vocabulary:
    return Vocabulary("made up", tuple(Category(index, name, (name,)) for index, name in enumerate(names)))


def test_the_sets_of_templates() -> None:
    assert {name: len(template_set(name)) for name in TEMPLATE_SETS} == {"vild14": 14, "imagenet80": 80, "simple": 5}
    for templates in map(template_set, TEMPLATE_SETS):
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 and template.format("x").count("{") == 0 for template in templates)
    assert template_set("simple") == template_set("vild14")[:5]
    sizes = [template.format("cat") for template in template_set("vild14")[5:]]
    assert sizes[:3] == ["a photo of a small cat.", "This is a photo of a small cat.", "There is a small cat in the scene."]
    assert [sentence.replace("large", "small") for sentence in sizes[6:]] == sizes[:3]
    assert [template.format("cat") for template in template_set("imagenet80")] == [template("cat") for template in OPENAI_IMAGENET_TEMPLATES]


@pytest.mark.parametrize("templates", ["vild14", "simple"])
def test_a_phrase_is_the_mean_of_its_normalised_sentences(clip: Clip, templates: str) -> None:
    found = embed_phrases(clip, PHRASES, template_set(templates))
    for phrase, embedding in zip(PHRASES, found, strict=True):
        sentences = [clip.encode_text([template.replace("{}", phrase)])[0] for template in template_set(templates)]
        mean = torch.stack([sentence / sentence.norm() for sentence in sentences]).mean(0)
        torch.testing.assert_close(embedding, mean / mean.norm(), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("chunk", [1, 3, 14, 69, 1000])
def test_the_chunk_changes_nothing(clip: Clip, chunk: int) -> None:
    expected = embed_phrases(clip, PHRASES, template_set("vild14"), chunk=20)
    torch.testing.assert_close(embed_phrases(clip, PHRASES, template_set("vild14"), chunk=chunk), expected, rtol=1e-5, atol=1e-6)


def test_at_most_a_chunk_of_sentences_at_once() -> None:
    clip = HashedText()
    embed_phrases(clip, PHRASES, template_set("imagenet80"), chunk=150)
    assert clip.calls == [150, 150, 100]


def test_ten_thousand_words_in_any_order_and_any_chunk() -> None:
    clip, templates = HashedText(), template_set("simple")
    names = [f"name {index}" for index in range(10_000)]
    order = random.Random(0).sample(range(len(names)), len(names))
    regions = torch.randn(7, 128, generator=torch.Generator().manual_seed(0))
    classifier = build_text_classifier(clip, vocabulary_of(names), templates)
    shuffled = build_text_classifier(clip, vocabulary_of([names[index] for index in order]), templates)
    assert torch.equal(shuffled.embeddings, classifier.embeddings[order])
    torch.testing.assert_close(shuffled.scores(regions), classifier.scores(regions)[:, order])
    in_threes = embed_phrases(clip, names, templates, chunk=3)
    assert torch.equal(in_threes, classifier.embeddings)
    assert classifier.scores(regions).shape == (7, 10_000)


def test_a_class_scores_as_its_best_synonym() -> None:
    noise = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(6, 8, generator=noise), dim=-1)
    classifier = TextClassifier(embeddings, torch.tensor([0, 0, 0, 1, 2, 2]), 30.0)
    regions = torch.randn(4, 8, generator=noise)
    logits = classifier.logits(regions)
    for region, row in zip(regions, logits, strict=True):
        cosines = [float(region @ embedding / region.norm()) for embedding in embeddings]
        expected = [30 * max(cosines[:3]), 30 * cosines[3], 30 * max(cosines[4:])]
        assert row.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    exponents = logits.exp()
    torch.testing.assert_close(classifier.scores(regions), exponents / exponents.sum(1, keepdim=True))
    assert classifier.logits(regions[:0]).shape == (0, 3)


def test_the_classifier_of_a_vocabulary(clip: Clip) -> None:
    vocabulary = Vocabulary("two", (Category(7, "star", ("star", "red star")), Category(2, "water", ("water",), is_thing=False)))
    classifier = build_text_classifier(clip, vocabulary, template_set("simple"))
    assert classifier.class_of.tolist() == [0, 0, 1]
    assert len(classifier) == 2
    assert classifier.logit_scale == pytest.approx(float(clip.logit_scale))
    torch.testing.assert_close(
        classifier.embeddings, embed_phrases(clip, ["star", "red star", "water"], template_set("simple")), rtol=1e-5, atol=1e-6
    )
    best = classifier.scores(classifier.embeddings).argmax(1)
    assert best.tolist() == [0, 0, 1]


def test_a_class_may_bring_its_templates(clip: Clip) -> None:
    own = ("the {} of my neighbour", "{}")
    vocabulary = Vocabulary(
        "three", (Category(0, "star", ("star",)), Category(1, "water", ("water", "sea"), templates=own), Category(2, "ring", ("ring",)))
    )
    classifier = build_text_classifier(clip, vocabulary, template_set("simple"))
    assert classifier.class_of.tolist() == [0, 1, 1, 2]
    torch.testing.assert_close(classifier.embeddings[[0, 3]], embed_phrases(clip, ["star", "ring"], template_set("simple")), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(classifier.embeddings[1:3], embed_phrases(clip, ["water", "sea"], own), rtol=1e-5, atol=1e-6)
    plain = Vocabulary("three", tuple(Category(item.id, item.name, item.synonyms) for item in vocabulary.categories))
    assert plain.fingerprint != vocabulary.fingerprint
