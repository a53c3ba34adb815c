"""List, search and show the models with published weights: the same as `jseg models`."""
import pathlib, sys
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])  # jseg from this checkout, installed or not
from jseg.cli import main
if __name__ == "__main__":
    sys.exit(main(["models", *sys.argv[1:]]))
