"""Helpers of the dataset converters in tools/convert_datasets:
archives, tiles, colours, processes, manifest, command line.

A converter names its files and their meaning; everything else is here. It looks like this:

    def convert(src, out, settings=Settings()):
        with Job("roofs", src, out, EXPECTED, settings) as job:
            pairs = pair(job.source.find(r"photos/(\\w+)\\.jpg", "photographs"), job.source.find(r"masks/(\\w+)\\.png"),
            job.source) return job.run(pair_items(((files, (f"img/{key[0]}.jpg", f"ann/{key[0]}.png")) for key, files in
            pairs.items()),
                                      convert_pair, label=ColorTable(COLORS)))

    if __name__ == "__main__":
        sys.exit(command.run(convert, out="data/roofs"))
"""

from jseg.data.prepare import command
from jseg.data.prepare.archives import Source, natural, pair, stem
from jseg.data.prepare.manifest import Item, Job, Remarks, Report, Settings, Writer
from jseg.data.prepare.palettes import ColorTable, IndexTable, Threshold
from jseg.data.prepare.strips import Strips, decode
from jseg.data.prepare.tiles import Box, Tiling
from jseg.data.prepare.works import convert_pair, copy_file, copy_picture, cut_pair, pair_items

__all__ = ["Box", "ColorTable", "IndexTable", "Item", "Job", "Remarks", "Report", "Settings", "Source", "Strips",
           "Threshold", "Tiling", "Writer",
           "command", "convert_pair", "copy_file", "copy_picture", "cut_pair", "decode", "natural", "pair",
           "pair_items", "stem"]
