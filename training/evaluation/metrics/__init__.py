"""Computes the metrics of ``rbvsr-eval``, one family per file.

============================  ==============================================================
``base.py``                   input of a metric: a frame, its ground truth, the previous frame
``fidelity.py``               PSNR and SSIM
``lpips.py``                  LPIPS
``alexnet.py``                network of LPIPS, also used as a loss
``niqe.py``                   NIQE
``brisque.py``                BRISQUE
``temporal.py``               warping error and tOF
``pyiqa_metrics.py``          metrics computed by the package pyiqa
``resize.py``                 bicubic interpolation as in MATLAB
``catalogue.py``              all metrics by name
============================  ==============================================================
"""
