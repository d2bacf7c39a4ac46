"""Tensors in, tensors out: the network, its losses and its decoding. Knows nothing of files, configs or devices."""

from __future__ import annotations
