"""AWQ and GPTQ: the algorithms, on arrays alone, and how each format packs what they give."""
