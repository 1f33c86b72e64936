"""KM-UNet: a U-Net of convolutions whose kernel elements are B-spline functions."""

from models.kmunet.method import KMUNet

__all__ = ["KMUNet"]
