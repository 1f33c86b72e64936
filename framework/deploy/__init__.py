"""Out of the trainer: inference forms of a method as files that other programs run (docs/deploy.md)."""

from framework.deploy.exporting import export
from framework.deploy.form import Axis, Format, InferenceForm, Port, Precision, forms_of
from framework.deploy.loading import load_exported

__all__ = ["Axis", "Format", "InferenceForm", "Port", "Precision", "export", "forms_of", "load_exported"]
