"""Layers, losses, networks, optimizers and published weights that several models share."""
