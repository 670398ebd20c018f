"""Pictures on request, as OpenAI's and Hugging Face's clients ask for them."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.serving.images.api import ImageService, images_router
    from dekag.serving.images.engine import Drawing, Engine, Order

__all__ = [
    "Drawing",
    "Engine",
    "ImageService",
    "Order",
    "images_router",
]

__getattr__, __dir__ = lazy(__name__)
