"""Packed folders on disk (AWQ, GPTQ): packing, configuration, layout, reader and writer."""
