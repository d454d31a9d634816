"""Turn image-text pairs into image-entities shards: captions mended by a vision-language model, entities by a language model, NLTK or rules."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from jobs import _cli
from uniovseg.runtime.refine import RefineConfig, refine


def main(config: RefineConfig) -> dict[str, object]:
    """Refine; the report holds the counts."""
    report = refine(config)
    Console().print(f"{report['samples']} images with {report['entities']} entities kept, {report['rejected']} rejected {report['rejects'] or ''}")
    for name, use in report["models"].items():
        tokens = f"{use['prompt_tokens']} + {use['completion_tokens']} tokens, ${use['cost']:.2f}"
        Console().print(f"{name} {use['model']}: {use['replies']} replies, {use['bad_replies']} of them bad, {tokens}", soft_wrap=True)
    return report


if __name__ == "__main__":
    sys.exit(_cli.run(RefineConfig, main))
