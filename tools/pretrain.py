"""Pretrain a backbone: the same as `jseg pretrain`."""
import pathlib, sys
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])  # jseg from this checkout, installed or not
from jseg.cli import main
if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
