r"""Training of the default compact model: data, degradations, the script itself and its evaluation.

Installed as ``rbvsr_deploy.training``; needs the ``train`` extra (OpenCV, click, safetensors)::

    python -m rbvsr_deploy.training.train --photos PHOTOS --videos CLIPS --output RUN
"""

from __future__ import annotations

if __name__ != "rbvsr_deploy.training":
    raise ImportError(
        f"this folder is the package 'rbvsr_deploy.training', not '{__name__}': "
        "install the project and import it under that name"
    )
