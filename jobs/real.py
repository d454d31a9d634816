"""Both stages on real images (reads UNIOVSEG_REAL_DATA and NLTK_DATA): ingest, train, match, align, evaluate, pictures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.runtime.real import RealConfig, real, real_data


def main(config: RealConfig) -> dict[str, object]:
    """Run it anew in config.output."""
    real_data()
    output = _cli.begin_anew(config.output, "real", ("tars", "shards", "stage1", "entities", "pairs", "stage2"))
    return real(config.model_copy(update={"output": output}))


if __name__ == "__main__":
    sys.exit(_cli.run(RealConfig, main))
