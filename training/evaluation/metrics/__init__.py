"""The metrics of ``rbvsr-eval``, one family per file.

============================  ==============================================================
``base.py``                   what a metric is given: a frame, its truth, the frame before
``fidelity.py``               PSNR and SSIM
``lpips.py``                  LPIPS
``alexnet.py``                its network, which serves as a loss too
``niqe.py``                   NIQE
``brisque.py``                BRISQUE
``temporal.py``               warping error and tOF
``pyiqa_metrics.py``          what the package pyiqa computes
``resize.py``                 bicubic interpolation as MATLAB does it
``catalogue.py``              all of them by name
============================  ==============================================================
"""
