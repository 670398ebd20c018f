"""The decoders that a page runs give what PyTorch gives, at every rate and condition, with and without updates."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import dekag
from dekag import link
from dekag.alignment.transmission.attention import SnrAttentionCodec
from dekag.alignment.transmission.cala import CalaCodec
from dekag.channel import BlockFading
from dekag.codec import JsccCodec, JsccConfig
from dekag.link import Link
from dekag.serving.onnx import Decoders, OnnxFile, export_decoders
