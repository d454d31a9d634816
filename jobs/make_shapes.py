"""Write the shapes world: image-mask tars, image-text pairs, a labelled evaluation set."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.data.shapes_sets import ShapesConfig, write_shapes


def main(config: ShapesConfig) -> dict[str, object]:
    """Write the sets; the report counts their images."""
    return dict(write_shapes(config))


if __name__ == "__main__":
    sys.exit(_cli.run(ShapesConfig, main))
