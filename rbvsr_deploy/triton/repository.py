"""Writes a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

import shutil
from pathlib import Path

from rbvsr_deploy.errors import ExportError

__all__ = ["NAME", "write_repository"]

NAME = "rbvsr"
"""Name of the model in the repository."""

# Controls as Triton sends them: https://github.com/triton-inference-server/server,
# docs/user_guide/model_configuration.md. Idle sequences are given up after a minute.
_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
sequence_batching {{
  max_sequence_idle_microseconds: 60000000
  oldest {{ max_candidate_sequences: {streams} }}
  control_input [
    {{ name: "START" control [ {{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "END" control [ {{ kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "CORRID" control [ {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }} ] }}
  ]
}}
# RGB, full range. For 16 bits make both TYPE_UINT16.
input [ {{ name: "FRAME" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }} ]
output [
  {{ name: "UPSCALED" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "NUMBER" data_type: TYPE_INT64 dims: [ 1 ] }}
]
parameters {{ key: "lookahead" value: {{ string_value: "{lookahead}" }} }}
parameters {{ key: "device" value: {{ string_value: "auto" }} }}
instance_group [ {{ count: 1 kind: KIND_MODEL }} ]
"""


def write_repository(bundle: Path, folder: Path, *, lookahead: int = 4, streams: int = 4) -> None:
    """Write the model "rbvsr" to a model repository: its configuration, a Python model and a copy
    of the bundle. The server needs this package in the Python of its Python backend.

    Args:
        bundle: the ``model.plan``.
        folder: the repository; made if it is missing, other models in it are left alone.
        lookahead: number of future frames each frame draws on.
        streams: number of streams that are served at the same time.

    Raises:
        ExportError: the folder cannot be written to.
    """
    model = folder / NAME
    try:
        (model / "1").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle, model / "1" / "model.plan")
        shutil.copyfile(Path(__file__).with_name("model.py"), model / "1" / "model.py")
        config = _CONFIG.format(name=NAME, lookahead=lookahead, streams=streams)
        (model / "config.pbtxt").write_text(config, encoding="utf-8")
    except OSError as error:
        raise ExportError(
            f"the model repository '{folder}' cannot be written ({error.strerror}): choose another "
            "folder"
        ) from None
