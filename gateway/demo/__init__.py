"""The demo: a base of our own with three adapters (`data/`), and the main job told end to end (`lorikeet demo`)."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
BASE_FOLDER = DATA / "base"
ADAPTERS_FOLDER = DATA / "adapters"
QUESTIONS_FILE = DATA / "questions.json"
