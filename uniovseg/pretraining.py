"""Pretraining of the shapes world's CLIP, on scenes with captions only.

The loss is CLIP's, and beside it one linear head that reads the caption's words from either embedding, the image's or the text's. A contrastive loss
alone learns the words that tell the images of a batch apart (colours, grounds) and leaves the rest where it starts: while the text tower does not tell
"striped" from "dotted", the image tower gains nothing by seeing stripes, and the other way round. The head gives each tower a reason of its own.

The run goes through phases: the first sees small, simple scenes (cheap steps, few objects), the last the world as it is. Each phase draws a fixed
number of scenes and goes over them in random order with random flips. A checkpoint holds weights, optimizer and step; a run resumes from it.
"""

import json
import time

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.progress import Progress, track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from uniovseg.config import Config, to_yaml
from uniovseg.data import shapes
from uniovseg.data.shapes import SceneConfig
from uniovseg.models.clip import Clip, build_shapes_clip
from uniovseg.storage import local_folder


class Phase(Config):
    """One part of the pretraining."""

    steps: int = Field(..., ge=1, description="optimizer steps")
    scenes: int = Field(..., ge=1, description="number of distinct scenes")
    scene: SceneConfig = Field(SceneConfig(), description="what the scenes look like")


class PretrainConfig(Config):
    """Contrastive pretraining of the shapes CLIP."""

    output: str = Field("runs/shapes_clip", description="folder of checkpoints, weights and report")
    seed: int = Field(0, ge=0, description="seed of scenes, captions, weights and order")
    batch_size: int = Field(128, ge=2, description="image-text pairs a step")
    peak_lr: float = Field(1.5e-3, gt=0, description="highest learning rate of the one-cycle schedule")
    word_weight: float = Field(1.0, ge=0, description="weight of the loss of reading the caption's words from either embedding")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay on matrices")
    clip_grad_norm: float = Field(1.0, gt=0, description="largest L2 norm of the gradient")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    device: str = Field("cpu", description="torch device")
    threads: int = Field(2, ge=1, description="CPU threads of torch, and processes that draw scenes")
    phases: tuple[Phase, ...] = Field(..., min_length=1, description="the parts of the run, in order")


def draw_pairs(scene: SceneConfig, seed: int, phase: int, indices: range) -> tuple[NDArray[np.uint8], list[str]]:
    """Images [n, 3, S, S] and clean captions of the pretraining scenes `indices` of a phase."""
    images, captions = [], []
    for index in indices:
        rng = np.random.default_rng([seed, shapes.PRETRAINING_STREAM, phase, index])
        drawn = shapes.draw_scene(scene, rng, held_out=True)
        images.append(drawn.image.transpose(2, 0, 1))
        captions.append(shapes.write_caption(shapes.entities(drawn), rng, noise_share=0.0))
    return np.stack(images), captions


def _draw_all(config: PretrainConfig, phase: int, count: int) -> tuple[Tensor, list[str]]:
    chunk = 256
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    scene = config.phases[phase].scene
    drawn = Parallel(n_jobs=config.threads, return_as="generator")(delayed(draw_pairs)(scene, config.seed, phase, chunk) for chunk in chunks)
    parts = list(track(drawn, f"drawing the scenes of phase {phase}", len(chunks)))
    return torch.from_numpy(np.concatenate([images for images, _ in parts])), [text for _, texts in parts for text in texts]


class WordHead(nn.Module):
    """Reads which words a caption holds from a normalised embedding [B, C] of the image or of the text.

    Args:
        tokens: [N, L] int token ids of the names that captions are made of, padded with 0; the words are the tokens of some names but not of all.
        dim: C.
    """

    words: Tensor

    def __init__(self, tokens: Tensor, dim: int) -> None:
        super().__init__()
        found, counts = torch.cat([row.unique() for row in tokens]).unique(return_counts=True)
        self.register_buffer("words", found[(counts < len(tokens)) & (found > 0)])
        self.linear = nn.Linear(dim, len(self.words))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """Binary cross-entropy, summed over the words and averaged over the batch, scalar."""
        present = (tokens[:, None, :] == self.words[:, None]).any(-1).float()
        return F.binary_cross_entropy_with_logits(self.linear(self.scale * embedding), present, reduction="sum") / len(tokens)


def _embed(clip: Clip, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(clip.encode_image(images), dim=-1), F.normalize(clip.model.encode_text(tokens), dim=-1)


def _contrastive_logits(clip: Clip, images: Tensor, tokens: Tensor) -> Tensor:
    image, text = _embed(clip, images, tokens)
    return clip.logit_scale * image @ text.T


@torch.no_grad()
def in_batch_accuracy(clip: Clip, images: Tensor, tokens: Tensor, batch_size: int) -> float:
    """Share of images whose own caption is the most similar one of their batch."""
    hits = [
        (_contrastive_logits(clip, x, t).argmax(1) == torch.arange(len(x), device=x.device)).float()
        for x, t in zip(images.split(batch_size), tokens.split(batch_size), strict=True)
    ]
    return float(torch.cat(hits).mean())


def pretrain(config: PretrainConfig, commit: str) -> dict[str, float]:
    """Train, checkpointing into ``config.output``; write ``shapes_clip.safetensors`` (float16), its card and ``report.json`` there.

    Args:
        config: the run.
        commit: version of the code, for the card.

    Returns:
        The report: in-batch accuracy on held-out scenes and the seconds it took.

    Raises:
        ConfigError: the output is no folder of this machine.
    """
    folder = local_folder(config.output)
    from open_clip import SimpleTokenizer  # takes seconds, as `uniovseg.models.clip` says

    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = SimpleTokenizer(context_length=64)
    clip = Clip(build_shapes_clip(), tokenizer).to(config.device)
    clip.model.visual.to(memory_format=torch.channels_last)
    head = WordHead(tokenizer(list(shapes.CLASS_NAMES)), clip.embed_dim).to(config.device)
    parameters = [*clip.parameters(), *head.parameters()]
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.peak_lr, betas=(0.9, 0.98))
    total = sum(phase.steps for phase in config.phases)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_lr, total_steps=total + 1, pct_start=0.1)

    checkpoint = folder / "checkpoint.pt"
    step, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        clip.model.load_state_dict(saved["model"])
        head.load_state_dict(saved["head"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        step, seconds = saved["step"], saved["seconds"]
        Console().print(f"resuming at step {step} of {total}")

    begin = 0
    for number, phase in enumerate(config.phases):
        end = begin + phase.steps
        if step < end:
            images, captions = _draw_all(config, number, phase.scenes)
            tokens = tokenizer(captions)
            with Progress() as progress:
                task = progress.add_task(f"phase {number}", total=phase.steps, completed=step - begin)
                while step < end:
                    started = time.perf_counter()
                    rng = np.random.default_rng([config.seed, number, step])
                    picked = torch.from_numpy(rng.choice(phase.scenes, config.batch_size, replace=False))
                    batch = images[picked].to(config.device)
                    flips = torch.from_numpy(rng.random(config.batch_size) < 0.5).to(config.device)
                    batch = torch.where(flips[:, None, None, None], batch.flip(3), batch)
                    text_tokens = tokens[picked].to(config.device)
                    image, text = _embed(clip, batch, text_tokens)
                    logits = clip.logit_scale * image @ text.T
                    labels = torch.arange(len(logits), device=logits.device)
                    contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
                    words = head(image, text_tokens)
                    loss = contrastive + config.word_weight * (words + head(text, text_tokens)) / 2
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm)
                    optimizer.step()
                    schedule.step()
                    step += 1
                    seconds += time.perf_counter() - started
                    progress.advance(task)
                    if step % 20 == 0:
                        accuracy = float((logits.argmax(1) == labels).float().mean())
                        figures = {"loss": contrastive.item(), "words": words.item(), "accuracy": accuracy, "seconds": seconds}
                        line = {"step": step} | {name: round(value, 4) for name, value in figures.items()}
                        with (folder / "log.jsonl").open("a") as log:
                            log.write(json.dumps(line) + "\n")
                    if step % config.save_every == 0 or step == total:
                        state = {
                            "model": clip.model.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict(),
                            "schedule": schedule.state_dict(), "step": step, "seconds": seconds,
                        }  # fmt: skip
                        torch.save(state, checkpoint.with_suffix(".tmp"))
                        checkpoint.with_suffix(".tmp").rename(checkpoint)
            del images
        begin = end

    clip.eval()
    last = len(config.phases) - 1
    images_np, captions = draw_pairs(config.phases[last].scene, config.seed + 1, last, range(1024))
    accuracy = in_batch_accuracy(clip, torch.from_numpy(images_np).to(config.device), tokenizer(captions).to(config.device), 128)
    report = {"in_batch_accuracy_of_128": round(accuracy, 4), "seconds": round(seconds, 1), "steps": float(total)}
    state = {name: value.half().contiguous().cpu() for name, value in clip.model.state_dict().items() if name != "attn_mask"}
    save_file(state, folder / "shapes_clip.safetensors")
    (folder / "shapes_clip.md").write_text(card(config, commit, report))
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    return report


def card(config: PretrainConfig, commit: str, report: dict[str, float]) -> str:
    """The model card that goes with the weights."""
    return (
        "# The CLIP of the shapes world\n\n"
        "A 2.0 M-parameter ConvNeXt image tower and a two-layer text tower of width 128 (embedding 128), trained on scenes of the shapes world with\n"
        "clean captions only (CLIP's loss, and a head that reads the caption's words from either embedding): no masks. Its captions name all\n"
        "256 things, those too that stage 2's leave out. Weights are float16. Licence: Apache-2.0.\n\n"
        f"- command: `python jobs/pretrain_clip.py --config jobs/configs/shapes_clip.yaml`, seed {config.seed}\n- commit: {commit}\n"
        f"- in-batch accuracy (image to text, 1,024 unseen scenes in batches of 128): {report['in_batch_accuracy_of_128']}\n"
        f"- {report['steps']:.0f} steps of {config.batch_size}, {report['seconds'] / 60:.0f} minutes on {config.threads} threads ({config.device})\n\n"
        f"```yaml\n{to_yaml(config)}```\n"
    )
