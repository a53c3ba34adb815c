"""Write a config for your own pictures and masks: the same as `jseg init`."""
import pathlib, sys
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])  # jseg from this checkout, installed or not
from jseg.cli import main
if __name__ == "__main__":
    sys.exit(main(["init", *sys.argv[1:]]))
