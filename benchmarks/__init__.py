"""The measurements of benchmark_attention.py: attention, decoding and training steps.

Peers and timing stand below them, tables and the picture beside; no command line is here.
"""
