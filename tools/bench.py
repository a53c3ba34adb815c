"""Time jseg's own kernels and models: the same as `jseg bench`."""
import pathlib, sys
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])  # jseg from this checkout, installed or not
from jseg.cli import main
if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
