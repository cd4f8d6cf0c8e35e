"""The stand-in for torchair's extension module: lowered graphs run on the host engine."""
