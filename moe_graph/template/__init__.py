"""`moe-graph new-operator`: the files of a package with an operator of one's own, from its schema.

schema    what a schema says: inputs, attributes, outputs, in torch's words and in GE's
write     the files, from the texts in package/
command   the command
"""
