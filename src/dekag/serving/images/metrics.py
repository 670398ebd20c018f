"""Numbers of an engine for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class EngineMetrics:
    """Images drawn and refused, how long batches take, and how full they are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.refused = Counter("dekag_orders_refused", "Orders refused for lack of room.", registry=registry)
        self._images = Counter("dekag_images_drawn", "Images drawn.", registry=registry)
        self._seconds = Histogram("dekag_batch_seconds", "Time to draw a batch.", registry=registry)
        self._line = Gauge("dekag_images_under_way", "Images that wait or are drawn.", registry=registry)

    def watch(self, places: Callable[[], int]) -> None:
        """Have the number of images under way read when it is asked for."""
        self._line.set_function(places)

    def observe(self, images: int, seconds: float) -> None:
        """Count one batch."""
        self._images.inc(images)
        self._seconds.observe(seconds)
