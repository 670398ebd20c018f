"""Write a picture for `docs/` in a small form: `python scripts/small_picture.py demo/report.png docs/report.webp`.

WebP: of photographs and drawings at quality 90, of curves and screens with `--lossless`. All pictures of `docs/`
together have to stay under 1.5 MB (`tests/docs/test_shipped.py`).
"""

import argparse
from pathlib import Path

from PIL import Image

QUALITY = 90


def small(picture: Image.Image, width: int) -> Image.Image:
    """The picture in RGB on white, scaled down to `width` if it is wider."""
    coloured = picture.convert("RGBA")
    plain = Image.new("RGB", picture.size, "white")
    plain.paste(coloured, mask=coloured.getchannel("A"))
    if plain.width <= width:
        return plain
    return plain.resize((width, round(plain.height * width / plain.width)), Image.Resampling.LANCZOS)


def main() -> None:
    """Read, write, and say what became of the size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="a file .webp")
    parser.add_argument("--width", type=int, default=1800, help="most pixels in a row")
    parser.add_argument("--lossless", action="store_true", help="for curves and screens")
    given = parser.parse_args()
    with Image.open(given.source) as picture:
        made = small(picture, given.width)
    quality = 100 if given.lossless else QUALITY
    made.save(given.target, format="WEBP", lossless=given.lossless, quality=quality, method=6)
    sizes = f"{given.source.stat().st_size} -> {given.target.stat().st_size} bytes"
    print(f"{given.target}: {made.width} x {made.height}, {sizes}")


if __name__ == "__main__":
    main()
