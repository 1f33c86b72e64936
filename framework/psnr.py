"""PSNR of 8-bit images, under the name of the module that once held it."""

from framework.metrics.psnr import PEAK, ImagePSNR, squared_error_8bit, to_8bit

__all__ = ["PEAK", "ImagePSNR", "squared_error_8bit", "to_8bit"]
