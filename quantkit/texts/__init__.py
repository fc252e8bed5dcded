"""Texts for calibration and evaluation: documents, datasets of the hub, token ids, samples and windows."""
