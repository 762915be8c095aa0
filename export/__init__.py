"""Converts a checkpoint to ONNX graphs and writes them as a verified bundle. Start at
:func:`rbvsr_deploy.export.to_bundle.export_bundle`.
"""

if __name__ != "rbvsr_deploy.export":
    raise ImportError(
        f"this folder is the package 'rbvsr_deploy.export', but was imported as '{__name__}': "
        "install the project (pip install -e .) and import it by its full name"
    )
