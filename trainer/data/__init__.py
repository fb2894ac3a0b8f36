"""Data: items of a data set -> normalised batches on the device, in an order that is a function of the seed."""
