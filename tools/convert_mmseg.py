"""Convert checkpoints and configs of MMSegmentation, SegNeXt and original JSeg: the same as `jseg convert`."""
import pathlib, sys
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])  # jseg from this checkout, installed or not
from jseg.cli import main
if __name__ == "__main__":  # loader workers import this file again
    sys.exit(main(["convert", *sys.argv[1:]]))
