"""The load rig: this gateway beside its peers in one run, every byte checked, every call counted.

`make bench` runs it; README.md says how it measures and how to read what it prints.
"""
