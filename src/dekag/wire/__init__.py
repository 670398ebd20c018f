"""What leaves the program: frames, SigMF recordings, pictures, and folders that appear whole."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.wire.files import staged, write_json
    from dekag.wire.frame import Frame, read_frame, write_frame
    from dekag.wire.png import png_bytes, read_image, write_images
    from dekag.wire.sigmf import Recording, read_recording, write_recording

__all__ = [
    "Frame",
    "Recording",
    "png_bytes",
    "read_frame",
    "read_image",
    "read_recording",
    "staged",
    "write_frame",
    "write_images",
    "write_json",
    "write_recording",
]

__getattr__, __dir__ = lazy(__name__)
