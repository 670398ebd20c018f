"""Prompts and the cloud's pictures: from files, folders and endpoints."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.data.bought import EndpointCloud, draw_to_folder
    from dekag.data.endpoint import ImageEndpoint
    from dekag.data.entries import Entry, Faults
    from dekag.data.images import CloudImages, Pictures, read_dataset, read_folder
    from dekag.data.orders import Account
    from dekag.data.picture import open_picture, picture_tensor
    from dekag.data.pictures import PictureSet
    from dekag.data.prompts import read_prompts

__all__ = [
    "Account",
    "CloudImages",
    "EndpointCloud",
    "Entry",
    "Faults",
    "ImageEndpoint",
    "PictureSet",
    "Pictures",
    "draw_to_folder",
    "open_picture",
    "picture_tensor",
    "read_dataset",
    "read_folder",
    "read_prompts",
]

__getattr__, __dir__ = lazy(__name__)
