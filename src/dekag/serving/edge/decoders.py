"""The decoders of this edge's users, made when they are first asked for."""

import asyncio
import tempfile
from pathlib import Path

from dekag.link import Link
from dekag.registry.shelf import READ_ONLY
from dekag.serving.edge.bundles import Bundles, Coder
from dekag.serving.edge.recipes import HEAD
from dekag.serving.edge.requests import DecoderFile, DecodersReply
from dekag.serving.onnx import Decoders, OnnxFile, export_decoders

NONE = "none"


class DecoderFiles:
    """Decoders as ONNX in a folder, by the codec's update; elsewhere if that folder cannot be written."""

    def __init__(self, folder: Path, bundles: Bundles) -> None:
        self._folder = folder
        self._bundles = bundles
        self._spare: tempfile.TemporaryDirectory[str] | None = None
        self._alone = asyncio.Lock()
        self._made: dict[str | None, Decoders] = {}
        self._files: dict[str, OnnxFile] = {}

    async def current(self) -> DecodersReply:
        """Those that belong to the active update of the codec."""
        coder = await self._bundles.coder()
        made = await self._make(coder)
        return DecodersReply(
            transmission=coder.bundle, codec=_told(made.codec, coder), image=_told(made.image, coder)
        )

    async def find(self, sha256: str, update: str | None) -> Path | None:
        """The file of that digest. update: of the codec, "none" for none, if another edge may have named the file."""
        if sha256 not in self._files and update is not None:
            wanted = None if update == NONE else self._bundles.find(update).id
            await self._make(await self._bundles.coder_with(wanted))
        file = self._files.get(sha256)
        return None if file is None else file.path

    async def _make(self, coder: Coder) -> Decoders:
        async with self._alone:
            if coder.bundle not in self._made:
                link = Link(generator=self._bundles.generator, codec=coder.codec)
                made = await asyncio.to_thread(self._export, link)
                self._made[coder.bundle] = made
                self._files |= {file.sha256: file for file in (made.codec, made.image)}
        return self._made[coder.bundle]

    def _export(self, link: Link) -> Decoders:
        try:
            return export_decoders(self._folder, link)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
        # for as long as this process lives
        self._spare = self._spare or tempfile.TemporaryDirectory(prefix="dekag-decoders-")
        return export_decoders(Path(self._spare.name), link)


def _told(file: OnnxFile, coder: Coder) -> DecoderFile:
    update = NONE if coder.bundle is None else coder.bundle[:HEAD]
    url = f"/v1/decoders/{file.sha256}.onnx?transmission={update}"
    return DecoderFile(url=url, bytes=file.bytes, sha256=file.sha256)
