"""Interim by the lead until the helper's runs.py lands; helper: overwrite this file."""
import os
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def project_path(s):
    return PROJECT / os.path.expanduser(os.path.expandvars(str(s)))


def record(**m):
    print("RECORD", m)
    return m
