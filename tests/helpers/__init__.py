"""What several tests share; no test imports another."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
