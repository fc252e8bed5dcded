"""Texts: documents, datasets of the hub, calibration samples and evaluation windows, as token ids."""
