"""What an edge's settings refuse before a model is loaded."""

import pytest

from dekag.serving.edge.settings import EdgeSettings
from dekag.serving.http.settings import load_settings
from dekag.types import InputError


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("tensorrt", "unknown engine 'tensorrt'; known are auto, torch, onnxruntime"),
        ("torch:cuda", "only onnxruntime has execution providers"),
        ("onnxruntime:openvino", "ONNX Runtime has no OpenVINOExecutionProvider here; it has .*CPU"),
    ],
)
def test_an_engine_that_is_not_there(engine: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEKAG_EDGE_ENGINE", engine)
    with pytest.raises(InputError, match=rf"^engine \(DEKAG_EDGE_ENGINE\) is wrong: {words}"):
        load_settings(EdgeSettings)
