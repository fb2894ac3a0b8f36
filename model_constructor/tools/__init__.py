"""Tools: what people run from a shell. `cli` lists the commands; each has a file of its own."""
